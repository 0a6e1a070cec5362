"""Puts what was built into the system: `make install`, `make uninstall`.

    tools/install.py install|uninstall --prefix /usr/local [--destdir DIR] [--helper-directory DIR]

The program and the libraries that it needs, in the versions of .venv that it was tested with, go to
PREFIX/lib/raidfs, where they are in nobody's way; a few lines in PREFIX/bin and PREFIX/sbin start
it from there with the Python that .venv was made with. Nothing is downloaded.

 1. Nothing outside of DESTDIR is touched, and nothing in there refers to the checkout.
 2. Installing over another version leaves nothing of that one; uninstalling leaves nothing at all,
    but what others have put beside it.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.metadata
import os
import re
import shutil
import stat
import sys
from pathlib import Path

from raidfs.cli.completion import PROGRAMS, SHELLS, completion_command

sys.path.insert(0, str(Path(__file__).resolve().parent))
import manual

ROOT = Path(__file__).resolve().parent.parent
NAME = "raidfs"
BUILT_FOR = "/usr/local"  # what the units in systemd/ say
LAUNCHER = """\
#!{python} -I
import sys

sys.path.insert(0, {library!r})
from {module} import {function}

{function}()
"""
COMPLETION = {
    "bash": ("share/bash-completion/completions", "{}"),
    "zsh": ("share/zsh/site-functions", "_{}"),
    "fish": ("share/fish/vendor_completions.d", "{}.fish"),
}
SYSTEM_PROGRAMS = ("mkfs.", "fsck.")  # to sbin
HELPER = "mount."


class Places:
    """Where things go. What is written is below `destdir`; what is named in it is not."""

    def __init__(self, prefix: str, destdir: str, helpers: str) -> None:
        self.prefix, self.destdir, self.helpers = prefix, destdir, helpers
        self.library = f"{prefix}/lib/{NAME}"

    def real(self, path: str) -> Path:
        """Where to write what will be at `path`."""
        return Path(f"{self.destdir}{path}")

    def program(self, name: str) -> str:
        """The path of a command."""
        if name.startswith(HELPER):
            return f"{self.helpers}/{name}"
        where = "sbin" if name.startswith(SYSTEM_PROGRAMS) else "bin"
        return f"{self.prefix}/{where}/{name}"

    def units(self) -> dict[str, Path]:
        """systemd's, each with where it comes from."""
        directory = f"{self.prefix}/lib/systemd/system"
        return {f"{directory}/{path.name}": path for path in sorted((ROOT / "systemd").iterdir())}

    def pages(self) -> dict[str, str]:
        """The manual's, each with its text."""
        directory = f"{self.prefix}/share/man/man{manual.SECTION}"
        return {f"{directory}/{p.name}.{manual.SECTION}": p.text for p in manual.pages()}

    def completions(self) -> dict[str, tuple[str, str]]:
        """Scripts for shells, each with the shell and the program."""
        found = {}
        for shell in SHELLS:
            directory, form = COMPLETION[shell]
            for program in PROGRAMS:
                found[f"{self.prefix}/{directory}/{form.format(program)}"] = (shell, program)
        return found


def commands() -> list[importlib.metadata.EntryPoint]:
    """All programs, as pyproject.toml names them."""
    found = importlib.metadata.distribution(NAME).entry_points.select(group="console_scripts")
    return sorted(found, key=lambda each: each.name)


# -- what is needed -------------------------------------------------------------------------------


def needed(name: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """A distribution and all that it requires, extras left out."""
    distribution = importlib.metadata.distribution(name)
    key = re.sub(r"[-_.]+", "-", distribution.name).lower()
    if key in found:
        return
    found[key] = distribution
    for requirement in distribution.requires or ():
        text, _, marker = requirement.partition(";")
        word = re.match(r"[\w.-]+", text)
        if word is None or "extra" in marker:
            continue
        try:
            needed(word[0], found)
        except importlib.metadata.PackageNotFoundError:
            if not marker.strip():  # else it is for another system or version
                raise


def copy_distribution(distribution: importlib.metadata.Distribution, into: Path) -> None:
    """Its files below site-packages; compiled ones are made anew."""
    for file in distribution.files or ():
        if file.parts[0] == ".." or file.suffix in (".pyc", ".pth") or "tests" in file.parts:
            continue
        source = Path(str(distribution.locate_file(file)))
        if source.is_file() and file.name not in ("direct_url.json", "RECORD"):
            put(source.read_bytes(), into / file)


def copy_own(into: Path) -> None:
    """The package itself: of the checkout, the tests and sources of C are elsewhere."""
    for source in sorted((ROOT / NAME).rglob("*")):
        wanted = source.suffix in (".py", ".so", ".sql", ".pyi") or source.name == "py.typed"
        if source.is_file() and wanted:
            put(source.read_bytes(), into / source.relative_to(ROOT))
    described = importlib.metadata.distribution(NAME)
    directory = into / f"{NAME}-{described.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        put((described.read_text(name) or "").encode(), directory / name)


def put(content: bytes, path: Path, mode: int = 0o644) -> None:
    """A file that replaces what was there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.chmod(mode)
    beside.replace(path)


# -- commands -------------------------------------------------------------------------------------


def install(places: Places, compiled: bool) -> None:
    fill_library(places, compiled)
    python = os.path.realpath(sys.executable)
    for command in commands():
        text = LAUNCHER.format(
            python=python, library=places.library, module=command.module, function=command.attr
        )
        put(text.encode(), places.real(places.program(command.name)), 0o755)
    for path, source in places.units().items():
        text = source.read_text().replace(f"{BUILT_FOR}/bin/", f"{places.prefix}/bin/")
        put(text.encode(), places.real(path))
    for path, text in places.pages().items():
        put(text.encode(), places.real(path))
    for path, (shell, program) in places.completions().items():
        put(completion(shell, program).encode(), places.real(path))


def fill_library(places: Places, compiled: bool) -> None:
    """Beside the old one, which then gives way as a whole: no module of it can be left."""
    new, old = places.real(f"{places.library}.new"), places.real(f"{places.library}.old")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    found: dict[str, importlib.metadata.Distribution] = {}
    needed(NAME, found)
    del found[NAME]
    for distribution in found.values():
        copy_distribution(distribution, new)
    copy_own(new)
    if compiled:
        compileall.compile_dir(
            new, quiet=1, workers=0, stripdir=str(new), prependdir=places.library
        )
    for path in (new, *(path for path in new.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    target = places.real(places.library)
    if target.exists():
        target.replace(old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def completion(shell: str, program: str) -> str:
    """What raidfs-ctl completion prints."""
    from click.testing import CliRunner

    told = CliRunner().invoke(completion_command, [shell, program], standalone_mode=True)
    assert told.exit_code == 0, told.output
    return told.output


def uninstall(places: Places) -> None:
    paths = [places.program(command.name) for command in commands()]
    paths += [*places.units(), *places.pages(), *places.completions()]
    for path in paths:
        places.real(path).unlink(missing_ok=True)
    shutil.rmtree(places.real(places.library), ignore_errors=True)
    for path in sorted(paths, key=len, reverse=True):
        remove_empty(places.real(path).parent, places)


def remove_empty(directory: Path, places: Places) -> None:
    """Directories that are left with nothing in them, if they may have been made here."""
    stop = {Path(places.destdir or "/"), places.real(places.prefix), places.real(places.helpers)}
    kept = {"bin", "sbin", "lib", "share"}
    while directory not in stop and directory.name not in kept and directory.is_dir():
        if any(directory.iterdir()) or stat.S_ISLNK(directory.lstat().st_mode):
            return
        directory.rmdir()
        directory = directory.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("install", "uninstall"))
    parser.add_argument("--prefix", default=BUILT_FOR)
    parser.add_argument("--destdir", default="")
    parser.add_argument(
        "--helper-directory", default="/sbin", help="where mount(8) looks for helpers"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled modules")
    asked = parser.parse_args()
    for name in ("prefix", "helper_directory"):
        if not os.path.isabs(getattr(asked, name)):
            parser.error(f"--{name} must be an absolute path")
    places = Places(
        asked.prefix.rstrip("/"), asked.destdir.rstrip("/"), asked.helper_directory.rstrip("/")
    )
    try:
        if asked.action == "install":
            install(places, not asked.no_compile)
        else:
            uninstall(places)
    except PermissionError as error:
        sys.exit(f"{error.filename}: {error.strerror}; install as root, or set DESTDIR")


if __name__ == "__main__":
    main()
