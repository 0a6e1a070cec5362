"""The house rules that a program can check: imports go down only, names mean one thing, ..."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "raidfs"
FLOORS = {
    "_native": 0,
    "native": 1,
    "pages": 1,
    "leaves": 1,
    "wal": 1,
    "lane": 1,
    "known": 1,
    "engine": 1,
    "columns": 1,
    "steps": 1,
    "reliability": 1,
    "errors": 1,
    "unix_socket": 1,
    "raid": 2,
    "store": 3,
    "check": 4,
    "fs": 5,
    "group": 5,
    "daemon": 6,
    "cli": 7,
}
ONLY_IN = {
    "pyfuse3": "daemon",
    "cryptography": "group",
    "click": "cli",
    "rich": "cli",
    "apsw": "store",
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
SOURCES = sorted(PACKAGE.rglob("*.py"))
C_SOURCES = sorted((ROOT / "csrc").glob("*.[ch]"))
# Words that already mean two things in this field (docs/ARCHITECTURE.md), as parts of names.
BANNED = ("block", "stripe", "node", "disk", "segment")
# Names that others chose: POSIX, SQLite, zlib and the like; `inode` is a word of its own.
FOREIGN = re.compile(
    r"inodes?|st_blocks|st_blksize|blksize|blocks|f_blocks|blocking|blockdev|BLK\w*|S_ISBLK|S_IFBLK"
    r"|mknod|is_block_device|BlockingIOError|nodev|might_not_block",
    re.IGNORECASE,
)


def part_of(path: Path) -> str:
    """The name by which FLOORS knows a file: that of its directory, or its own."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of raidfs that a file imports, wherever in the file, also for types only."""
    module = ["raidfs", *path.relative_to(PACKAGE).with_suffix("").parts]
    if module[-1] == "__init__":
        module.pop()
        package = module
    else:
        package = module[:-1]
    found = set()
    for item in ast.walk(ast.parse(path.read_text())):
        names: list[list[str]] = []
        if isinstance(item, ast.Import):
            names = [alias.name.split(".") for alias in item.names]
        elif isinstance(item, ast.ImportFrom):
            base = package[: len(package) - item.level + 1] if item.level else []
            base = base + (item.module.split(".") if item.module else [])
            names = [[*base, alias.name] for alias in item.names]
        found |= {name[1] for name in names if name[0] == "raidfs" and len(name) > 1}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    part = part_of(path)
    if part == "__init__":
        assert not imported_parts(path)
        return
    assert part in FLOORS, f"{path} is on no floor; give it one in this test"
    for other in imported_parts(path) & FLOORS.keys():
        assert FLOORS[other] <= FLOORS[part], f"{path} (floor {FLOORS[part]}) imports {other}"


def test_libraries_stay_on_their_floor():
    for path in SOURCES:
        for item in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(item, ast.Import):
                names = [alias.name for alias in item.names]
            elif isinstance(item, ast.ImportFrom) and not item.level:
                names = [item.module or ""]
            for name in names:
                home = ONLY_IN.get(name.split(".")[0])
                assert home in (None, part_of(path)), f"{path} imports {name}"


def test_every_module_says_what_it_is_for():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert not tree.body or ast.get_docstring(tree), f"{path} has no docstring"


def test_no_file_is_named_for_nothing():
    banned = {"utils", "util", "common", "helpers", "helper", "misc", "types", "base"}
    files = [*SOURCES, *C_SOURCES, *(ROOT / "tools").rglob("*"), *(ROOT / "tests").rglob("*.py")]
    assert not [path for path in files if path.stem in banned]


def test_functions_fit_a_screen_and_files_a_head():
    for path in SOURCES:
        text = path.read_text()
        lines = text.count("\n")
        assert lines <= FILE_LINES_MAX, f"{path} has {lines} lines"
        for item in ast.walk(ast.parse(text)):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (item.end_lineno or item.lineno) - item.lineno + 1
                assert length <= FUNCTION_LINES_MAX, f"{path}: {item.name} has {length} lines"


def test_nothing_dangerous_is_used():
    for path in SOURCES:
        text = path.read_text()
        assert "shell=True" not in text, path
        for item in ast.walk(ast.parse(text)):
            names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else []
            if isinstance(item, ast.ImportFrom):
                names = [item.module or ""]
            assert not {"pickle", "marshal", "shelve"} & set(names), path
            if isinstance(item, ast.Call) and isinstance(item.func, ast.Name):
                assert item.func.id not in ("eval", "exec"), path
            if isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute):
                where = item.func.value
                owner = where.id if isinstance(where, ast.Name) else ""
                assert (owner, item.func.attr) not in (("os", "system"), ("os", "popen")), path


def names_defined(tree):
    for item in ast.walk(tree):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield item.name
        elif isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store):
            yield item.id
        elif isinstance(item, ast.arg):
            yield item.arg
        elif isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store):
            yield item.attr


def test_words_that_mean_two_things_are_not_used_as_names():
    for path in SOURCES:
        for name in names_defined(ast.parse(path.read_text())):
            ours = FOREIGN.sub("", name).lower()
            assert not [word for word in BANNED if word in ours], f"{path}: {name}"


def test_nothing_names_the_place_where_it_lies():
    """No path of this checkout in code or documents: it is somewhere else on the next machine."""
    files = [*SOURCES, *C_SOURCES, *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    files += [path for path in (ROOT / "tools").rglob("*") if path.suffix in (".py", ".sh", ".c")]
    for path in files:
        assert f"{ROOT}/" not in path.read_text(), path


def test_the_group_stands_on_floor_1_only():
    for path in SOURCES:
        if part_of(path) == "group":
            others = imported_parts(path) & FLOORS.keys() - {"group"}
            assert all(FLOORS[other] <= 1 for other in others), f"{path} imports {others}"
