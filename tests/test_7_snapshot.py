"""`raidfs-ctl snapshot` and `policy` on unmounted volumes and real mounts: what they do, what they
refuse, and what scripts get from them.

Commands run in this process, by the same function as the program, to spare each its start.
"""

import base64
import contextlib
import io
import json
import os
import re
import sys
import time
from configparser import RawConfigParser
from pathlib import Path

import pytest
import trio
from mounting import fingerprint, run

from raidfs.cli import snapshot_list, target
from raidfs.cli.main import control
from raidfs.cli.output import run_command
from raidfs.cli.snapshot_list import COLUMNS
from raidfs.daemon import policies
from raidfs.daemon import snapshots as service
from raidfs.errors import UsageError
from raidfs.store.snapshots import Snapshots

UNITS = Path(__file__).resolve().parent.parent / "systemd"


class Said:
    """What a command did."""

    def __init__(self, code, raw, err):
        self.code, self.raw, self.err = code, raw, err

    @property
    def out(self):
        return self.raw.decode()

    @property
    def lines(self):
        return self.out.splitlines()

    @property
    def json(self):
        told = json.loads(self.out)
        assert told["version"] == 1
        return told


@pytest.fixture
def ctl(workshop, monkeypatch):
    """`raidfs-ctl ...`; `expect` is the exit code."""
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(workshop.runtime))

    def call(*words, expect=0, typed=""):
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run_command(control, "raidfs-ctl", [str(word) for word in words])
            except SystemExit as end:
                code = end.code
        said = Said(code, out.buffer.getvalue(), err.buffer.getvalue().decode())
        assert code == expect, f"{words}: exit {code}\n{said.out}\n{said.err}"
        if code == 1 and "--json" not in words:
            *questions, last = [line for line in said.err.splitlines() if line]
            assert re.match(r"(.* )?raidfs-ctl: \S", last), last
            assert all(line.endswith("Go on? [y/N]: ") for line in questions), said.err
        return said

    return call


def names(ctl, where, *more):
    return ctl("snapshot", "list", "-H", "-o", "name", where, *more).lines


def used(ctl, where):
    return ctl("status", "--json", where).json["used_bytes"]


# -- how snapshots are named ----------------------------------------------------------------------


def test_every_way_to_name_a_snapshot_means_the_same(workshop, ctl):
    volume = workshop.volume(3, name="tank")
    member = volume.members[1]
    ctl("snapshot", "create", member, "monday")
    for words in ((member, "monday"), (f"{member}@monday",), (f"{volume.members[2]}@monday",)):
        (told,) = ctl("snapshot", "show", *words, "--json").json["snapshots"]
        assert (told["name"], told["volume"], told["path"]) == ("monday", "tank", None)
    for words in ((member, "x@y"), (f"{member}@",), (f"{member}@a", f"{workshop.directory}/b")):
        ctl("snapshot", "show", *words, expect=1)
    ctl("snapshot", "show", "tank@monday", expect=1)  # by that name only while it is mounted


def test_a_member_with_an_at_in_its_path_is_itself(workshop, ctl):
    members = workshop.directories(3, prefix="disk@home")
    workshop.volume(members)
    ctl("snapshot", "create", members[0], "a")
    ctl("snapshot", "create", f"{members[1]}@b")
    assert names(ctl, members[2]) == ["a", "b"]


@pytest.mark.slow
def test_paths_and_volume_names_while_mounted(workshop, ctl):
    volume, other = workshop.volume(3, name="tank", mounted=True), workshop.volume(3, mounted=True)
    root = volume.mountpoint
    ctl("snapshot", "create", root, "a")
    ctl("snapshot", "create", "tank@b")
    ctl("snapshot", "create", f"{volume.members[0]}@c")
    ctl("snapshot", "create", other.mountpoint, "elsewhere")
    for one in ("tank@a", f"{root}@a", f"{root}/.snapshots/a", f"{root}/.snapshots/a/"):
        (told,) = ctl("snapshot", "show", "--json", one).json["snapshots"]
        assert told["name"] == "a" and told["path"] == f"{root}/.snapshots/a"
        assert Path(told["path"]).is_dir()
    words = [f"{root}/.snapshots/{name}" for name in "ac"]  # as a shell expands them
    assert ctl("snapshot", "delete", "-n", "--json", *words).json["names"] == ["a", "c"]
    said = ctl("snapshot", "delete", "-y", "tank@a", f"{other.mountpoint}@elsewhere", expect=1)
    assert "one volume" in said.err
    assert names(ctl, root) == ["a", "b", "c"]
    both = ctl("snapshot", "list", "-H", "-o", "full").lines  # all that are mounted
    assert {"tank@a", "tank@b", "tank@c"} < set(both) and len(both) == 4


@pytest.mark.parametrize(
    ("words", "where", "found"),
    [(["/no/such@name"], "/no/such", ("name",)), (["/no/such", "a", "b"], "/no/such", ("a", "b")),
     (["/no/such@a", "b", "/no/such@c"], "/no/such", ("a", "b", "c")),
     (["pool", "a"], "pool", ("a",)), (["we@ird@a"], "we@ird", ("a",))],
)  # fmt: skip
def test_words_are_split(monkeypatch, words, where, found):
    volume = target.Unmounted("/no/such", None)
    monkeypatch.setattr(target, "find", lambda one: volume if one == where else None)
    monkeypatch.setattr(target, "volume_id", id)
    named = target.snapshots(words, most=None)
    assert (named.volume, named.where, named.names) == (volume, where, found)


def test_text_that_is_not_unicode_is_a_sentence(workshop, ctl):
    volume = workshop.volume(3)
    before = fingerprint(*volume.members)
    for words in (("create", volume.members[0], "x\udcff"),
                  ("create", volume.members[0], "x", "--note", "\udcff"),
                  ("hold", volume.members[0], "x", "--tag", "\udcff")):  # fmt: skip
        assert "UTF-8" in ctl("snapshot", *words, expect=1).err
    assert fingerprint(*volume.members) == before
    with pytest.raises(UsageError):
        target.check_text("\ud800")


# -- on an unmounted volume -----------------------------------------------------------------------


def test_a_life_without_a_mount(workshop, ctl):
    volume = workshop.volume(3, name="tank")
    member = volume.members[0]
    assert ctl("snapshot", "list", member).out == "no snapshots\n"
    said = ctl("snapshot", "create", member, "a", "--note", "one\ttwo")
    assert said.out.startswith("tank@a: epoch ") and "durable after" in said.out
    made = ctl("snapshot", "create", member, "b", "--json").json
    assert made["snapshot"]["name"] == "b" and 0 < made["gate_us"] < 10**6 * made["seconds"]
    ctl("snapshot", "create", member, "a", expect=1)
    ctl("snapshot", "rename", member, "b", "c")
    ctl("snapshot", "rename", member, "c", "a", expect=1)
    ctl("snapshot", "note", f"{member}@c", "three")
    ctl("snapshot", "hold", member, "a", "c", "--tag", "tax")
    ctl("snapshot", "hold", member, "a")
    before = fingerprint(*volume.members)
    told = {one["name"]: one for one in ctl("snapshot", "list", "--json", member).json["snapshots"]}
    assert (told["a"]["note"], told["c"]["note"]) == ("one\ttwo", "three")
    assert (told["a"]["holds"], told["c"]["holds"]) == (["keep", "tax"], ["tax"])
    assert told["a"]["epoch"] < told["c"]["epoch"] and len(told["a"]["guid"]) == 32
    for words in (("-n", member, "a"), (member, "a%c")):
        assert "hold" in ctl("snapshot", "delete", *words, expect=1).err
    assert fingerprint(*volume.members) == before  # looking changes nothing
    assert "hold" in ctl("snapshot", "delete", "-y", member, "a", expect=1).err
    ctl("snapshot", "release", member, "a", "c", "--tag", "tax")
    ctl("snapshot", "release", member, "c", expect=1)
    ctl("snapshot", "release", member, "a")
    ctl("snapshot", "delete", "-y", member, "a%")
    assert names(ctl, member) == []
    volume.check()


def test_with_a_member_missing_one_may_look_but_not_change(workshop, ctl):
    """That needs a decision, as a mount does: -o degraded."""
    volume = workshop.volume(3)
    member = volume.members[0]
    ctl("snapshot", "create", member, "a")
    volume.members[2].rename(workshop.directory / "away")
    before = fingerprint(*volume.members[:2])
    assert names(ctl, member) == ["a"]
    assert (
        ctl("snapshot", "delete", "-n", member, "a").lines[0].startswith("would delete 1 snapshot")
    )
    assert "degraded" in ctl("snapshot", "create", member, "b", expect=1).err
    assert fingerprint(*volume.members[:2]) == before


def test_columns_sorting_exactness(workshop, ctl):
    volume = workshop.volume(3, name="tank")
    member = volume.members[0]
    for name in ("b", "c", "a"):
        ctl("snapshot", "create", member, name, "--note", f"note of {name}")
    header, *rows = ctl("snapshot", "list", member, "-o", ",".join(COLUMNS)).lines
    assert header.split() == [name.upper() for name in COLUMNS] and len(rows) == 3
    assert names(ctl, member) == ["b", "c", "a"]
    assert names(ctl, member, "-s", "name") == ["a", "b", "c"]
    assert names(ctl, member, "-s", "-creation") == ["a", "c", "b"]
    assert names(ctl, member, "-s", "used", "-s", "-name") == ["c", "b", "a"]
    told = ctl("snapshot", "list", member, "--json").json["snapshots"]
    lines = ctl("snapshot", "list", member, "-Hp", "-o", "name,creation,used,refer,guid,note").lines
    assert [line.split("\t") for line in lines] == [
        [one["name"], str(one["created_ns"] // 10**9), str(one["used_bytes"]),
         str(one["refer_bytes"]), one["guid"], one["note"]] for one in told
    ]  # fmt: skip
    for words in (("-o", "size"), ("-o", ","), ("-s", "size")):
        assert "name,volume" in ctl("snapshot", "list", member, *words, expect=1).err.replace(
            ", ", ","
        )


def test_what_takes_too_long_is_left_open_for_eyes_and_never_for_scripts(
    workshop, ctl, monkeypatch
):
    volume = workshop.volume(3)
    member = volume.members[0]
    ctl("snapshot", "create", member, "a")
    ctl("snapshot", "create", member, "b")

    async def slowly(self, snapshots):
        await trio.sleep(0.05)
        return dict.fromkeys((snapshot.id for snapshot in snapshots), 1)

    monkeypatch.setattr(snapshot_list, "PATIENCE_MS", 20)
    monkeypatch.setattr(Snapshots, "alone_each", slowly)
    said = ctl("snapshot", "list", member)
    assert [line.split()[1] for line in said.lines] == ["USED", "?", "?"]
    assert said.err.startswith("?: takes longer")
    for words in (("-p",), ("-o", "name,used"), ("-H",)):
        said = ctl("snapshot", "list", member, *words)
        assert "?" not in said.out and not said.err
    for words, wanted in (((), 4096), (("-s", "used", "-o", "name"), 4096), (("-o", "name"), None)):
        told = ctl("snapshot", "list", member, "--json", *words).json["snapshots"]
        assert [one["used_bytes"] for one in told] == [wanted] * 2


def test_long_lists_come_in_pieces(workshop, ctl, monkeypatch):
    monkeypatch.setattr(service, "PIECE", 2)
    monkeypatch.setattr(policies, "VERDICTS_AT_ONCE", 2)
    volume = workshop.volume(3)
    member = volume.members[0]
    ctl("policy", "set", member, "--daily", "1")
    wanted = [f"s{number}" for number in range(5)]
    for name in wanted:
        ctl("snapshot", "create", member, name)
    assert names(ctl, member) == wanted
    verdicts = ctl("snapshot", "prune", "-n", member, "--json").json["verdicts"]
    assert [verdict["name"] for verdict in verdicts] == wanted
    assert ctl("snapshot", "delete", "-n", "--json", member, "s1%s3").json["names"] == wanted[1:4]
    assert ctl("snapshot", "delete", "-n", "--json", member, "%s1").json["names"] == wanted[:2]
    assert "newer" in ctl("snapshot", "delete", "-n", member, "s3%s1", expect=1).err
    ctl("snapshot", "delete", "-n", member, "s1%nobody", expect=1)


WRONG = [
    ("create", "{m}"), ("create", "{m}", ""), ("create", "{m}", "a/b"), ("create", "{m}@-x"),
    ("create", "{m}", ".x"), ("create", "{m}", "a%b"), ("create", "{m}", " a"),
    ("create", "{m}", "a\nb"), ("create", "{m}", "x" * 256), ("create", "{m}", "old"),
    ("create", "{m}", "a", "b"), ("create", "{m}@a", "--note", "x" * 5000),
    ("create", "/no/such", "a"),
    ("create", "{d}", "a"), ("show", "{m}", "nobody"), ("delete", "-y", "{m}", "nobody"),
    ("delete", "-y", "{m}", "old", "nobody"), ("delete", "-y", "{m}"), ("delete", "{m}", "old"),
    ("rename", "{m}", "old"), ("rename", "{m}", "old", ".new"), ("rename", "{m}", "nobody", "new"),
    ("note", "{m}", "nobody", "text"), ("hold", "{m}", "nobody"),
    ("hold", "{m}", "old", "-t", "a/b"),
    ("release", "{m}", "old"), ("rollback", "-y", "{m}", "nobody"), ("rollback", "{m}", "old"),
    ("rollback", "-y", "{m}", "old", "--keep", "old"), ("prune", "-y", "{m}"),
]  # fmt: skip


def test_what_is_wrong_gets_a_sentence_and_changes_nothing(workshop, ctl):
    volume = workshop.volume(3)
    ctl("snapshot", "create", volume.members[0], "old")
    before = ctl("snapshot", "list", "--json", volume.members[0]).out
    for verb, *words in WRONG:
        filled = [word.format(m=volume.members[0], d=workshop.directory) for word in words]
        ctl("snapshot", verb, *filled, expect=1, typed="n\n")
    for words in (("frobnicate",), ("create",), ("list", "--wrong")):
        ctl("snapshot", *words, expect=2)
    for words in (("set", volume.members[0]), ("set", volume.members[0], "--daily", "-1"),
                  ("set", volume.members[0], "--daily", "0"), ("run", volume.members[0]), ("run",),
                  ("set", volume.members[0], "--daily", "1", "--minutes", "7"),
                  ("run", "--all", volume.members[0])):  # fmt: skip
        ctl("policy", *words, expect=1)
    ctl("policy", "set", volume.members[0], "--daily", "many", expect=2)
    assert ctl("snapshot", "list", "--json", volume.members[0]).out == before
    volume.check()


def test_an_error_in_json_has_its_number(workshop, ctl):
    volume = workshop.volume(3)
    told = ctl("snapshot", "show", "--json", volume.members[0], "nobody", expect=1).json
    assert told["errno"] == 2 and "nobody" in told["error"]


def test_help_of_every_verb(ctl):
    for group in ("snapshot", "policy"):
        shown = ctl(group, "--help").out
        verbs = re.findall(r"^  (\w+) +\S", shown[shown.index("Commands:") :], re.MULTILINE)
        assert len(verbs) > 3
        for verb in verbs:
            shown = ctl(group, verb, "--help").out
            assert "--json" in shown or verb == "send", verb  # which writes its stream there


# -- on a mounted volume --------------------------------------------------------------------------


def write(path, nbytes, seed=b"x"):
    """Durable bytes that don't compress to nothing."""
    with path.open("wb") as file:
        file.write((seed * (nbytes // len(seed) + 1))[:nbytes])
        os.fsync(file.fileno())


@pytest.mark.slow
def test_deleting_frees_what_the_dry_run_said(workshop, ctl):
    volume = workshop.volume(5, level="6", mounted=True)
    root = volume.mountpoint
    write(root / "both", 300_000, b"both")  # in the first two
    for number in range(4):
        if number == 2:
            (root / "both").unlink()
        for name in ("one", "two", "three")[: number + 1]:
            write(root / name, (number + 2) * 100_000, f"{name}{number}".encode())
        ctl("snapshot", "create", root, f"s{number}")
    write(root / "one", 10, b"end")
    told = {one["name"]: one for one in ctl("snapshot", "list", "--json", root).json["snapshots"]}
    together = ctl("snapshot", "show", "--json", root).json["together_bytes"]
    assert together > sum(one["used_bytes"] for one in told.values()) > 0
    for names_ in (["s1"], ["s0", "s2"], ["s3"]):
        plan = ctl("snapshot", "delete", "-n", "--json", root, *names_).json
        if len(names_) == 1:
            single = ctl("snapshot", "show", "--json", root, *names_).json["snapshots"][0]
            assert plan["freed_bytes"] == single["used_bytes"]
        before = used(ctl, root)
        ctl("snapshot", "delete", root, *names_, "-n")
        assert used(ctl, root) == before
        done = ctl("snapshot", "delete", "-y", "--wait", "--json", root, *names_).json
        assert done["freed_bytes"] == plan["freed_bytes"] and done["deleted"]
        assert before - used(ctl, root) == plan["freed_bytes"]
        together -= plan["freed_bytes"]
    assert together == 0 and names(ctl, root) == []
    volume.unmount()
    volume.check()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", "writeback", "nolane"])
def test_what_was_told_before_is_in_it_and_what_came_after_is_not(workshop, ctl, option):
    """Without fsync: in the kernel, in the daemon's memory, wherever it was."""
    volume = workshop.volume(3, mounted=True, options=[option])
    root = volume.mountpoint
    with (root / "log").open("wb", buffering=0) as file:
        for number in range(8):
            file.write(b"%08d" % number * 1000)
            (root / f"file{number}").write_bytes(b"%d" % number * 5000)
            ctl("snapshot", "create", root, f"s{number}")
    for number in range(8):
        seen = root / ".snapshots" / f"s{number}"
        assert (seen / "log").read_bytes() == b"".join(
            b"%08d" % n * 1000 for n in range(number + 1)
        )
        files = sorted(path.name for path in seen.iterdir())
        assert files == sorted(["log", *(f"file{n}" for n in range(number + 1))])
        assert (seen / f"file{number}").read_bytes() == b"%d" % number * 5000
    ctl("snapshot", "rename", root, "s3", "three")
    assert (root / ".snapshots/three/file3").exists() and not (root / ".snapshots/s3").exists()
    ctl("snapshot", "delete", "-y", root, "three")
    assert not (root / ".snapshots/three").exists()
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_rollback_mounted_and_not(workshop, ctl):
    volume = workshop.volume(3, mounted=True)
    root = volume.mountpoint
    write(root / "kept", 50_000, b"old")
    write(root / "gone", 50_000, b"gone")
    ctl("snapshot", "create", root, "monday")
    write(root / "kept", 70_000, b"new")
    (root / "gone").unlink()
    write(root / "extra", 1000)
    ctl("snapshot", "create", root, "tuesday")
    said = ctl("snapshot", "rollback", "-n", "-r", root, "monday")
    assert "would go back" in said.out and "deleted with it: tuesday" in said.out
    assert (root / "extra").exists() and names(ctl, root) == ["monday", "tuesday"]
    assert "nothing was changed" in ctl("snapshot", "rollback", root, "monday", expect=1).err
    done = ctl("snapshot", "rollback", "-y", "--keep", "wrong", "--json", f"{root}@monday").json
    figures = done["rollback"]
    assert (figures["removed"], figures["returned"], figures["deleted"]) == (1, 1, [])
    assert figures["epoch"] > done["snapshot"]["epoch"]
    assert sorted(path.name for path in root.iterdir()) == ["gone", "kept"]
    assert (root / "kept").read_bytes()[:3] == b"old" and (root / "gone").stat().st_size == 50_000
    assert names(ctl, root) == ["monday", "tuesday", "wrong"]
    volume.unmount()
    volume.check()
    member = volume.members[0]
    ctl("snapshot", "rollback", "-y", member, "tuesday")  # forward
    ctl("snapshot", "rollback", "-y", "-r", member, "monday")
    assert names(ctl, member) == ["monday"]
    volume.check()
    volume.mount()
    assert sorted(path.name for path in root.iterdir()) == ["gone", "kept"]
    volume.unmount()


@pytest.mark.slow
def test_a_read_only_mount_lists_and_refuses(workshop, ctl):
    volume = workshop.volume(3)
    ctl("snapshot", "create", volume.members[0], "a")
    ctl("policy", "set", volume.members[0], "--daily", "1")
    volume.mount("ro")
    assert names(ctl, volume.mountpoint) == ["a"]
    root = volume.mountpoint
    for words in (("snapshot", "create", root, "b"), ("snapshot", "delete", "-y", root, "a"),
                  ("policy", "run", root), ("policy", "set", root, "--daily", "3")):  # fmt: skip
        assert "read-only" in ctl(*words, expect=1).err
    ctl("policy", "run", "--all")  # a timer has nothing to do there, and nothing to complain of
    ctl("snapshot", "delete", "-n", volume.mountpoint, "a")
    volume.unmount()
    volume.check()


# -- diff -----------------------------------------------------------------------------------------

ODD = b"line\nbreak \xff\\ "


@pytest.mark.slow
def test_diff_in_all_its_forms(workshop, ctl, monkeypatch):
    volume = workshop.volume(3, mounted=True)
    root = volume.mountpoint
    for name in ("same", "old", "gone", "changed"):
        write(root / name, 40_960, name.encode())
    (root / "d").mkdir()
    write(root / "d/inner", 10)
    ctl("snapshot", "create", root, "monday")
    assert ctl("snapshot", "diff", root, "monday").out == ""
    assert ctl("snapshot", "diff", root, "monday", "--json").json["changes"] == []
    (root / "old").rename(root / "new")
    (root / "d").rename(root / "e")
    (root / "gone").unlink()
    odd = os.fsencode(root) + b"/" + ODD
    with open(odd, "wb") as file:
        file.write(b"x" * 10)
    os.link(root / "same", root / "link")
    with (root / "changed").open("r+b") as file:
        for page in (1, 3, 5, 7):
            file.seek(page * 4096)
            file.write(b"n" * 4096)
    os.setxattr(root / "changed", "user.a", b"b")
    (root / "changed").chmod(0o600)
    ctl("snapshot", "create", root, "tuesday")
    (root / "later").touch()

    odd_shown = r"/line\012break \377\134\040"
    text = ctl("snapshot", "diff", root, "monday", "tuesday").lines
    assert text == [
        "M\t/", "M\t/changed", "R\t/d/ -> /e/", "-\t/gone", f"+\t{odd_shown}", "+\t/link",
        "R\t/old -> /new",
    ]  # fmt: skip
    assert ctl("snapshot", "diff", f"{root}@monday").lines == sorted(
        [*text, "+\t/later"], key=by_path
    )
    more = ctl("snapshot", "diff", "-v", f"{root}/.snapshots/monday", "tuesday").lines
    assert "\t    attributes: mode, mtime" in more and "\t    xattr user.a: created" in more
    content = "\t    content: 16384 bytes, at 4096+4096, 12288+4096, 20480+4096, 28672+4096"
    assert content in more and "\t    a link: the file itself has another name, too" in more

    fields = ctl("snapshot", "diff", "-z", root, "monday", "tuesday").raw.split(b"\0")
    assert fields.pop() == b"" and b"/" + ODD in fields
    at = fields.index(b"R")
    assert fields[at : at + 3] == [b"R", b"/d", b"/e"]

    told = ctl("snapshot", "diff", "--json", root, "monday", "tuesday").json
    assert (told["from"], told["to"]) == ("monday", "tuesday")
    by_name = {change["path"]: change for change in told["changes"]}
    changed = by_name["/changed"]
    assert changed["ino"] == (root / "changed").stat().st_ino and changed["kind"] == "file"
    assert changed["ranges"] == [{"offset": page * 4096, "nbytes": 4096} for page in (1, 3, 5, 7)]
    assert changed["xattrs"] == [{"name": "user.a", "what": "created"}]
    assert by_name["/new"]["old_path"] == "/old" and by_name["/link"]["link"]
    (odd_one,) = [change for change in told["changes"] if "path_base64" in change]
    assert base64.b64decode(odd_one["path_base64"]) == b"/" + ODD
    assert len(told["changes"]) == len(text)

    volume.unmount()
    monkeypatch.setattr(service, "RANGES_AT_ONCE", 3)
    monkeypatch.setattr(service, "PIECE", 2)
    again = ctl("snapshot", "diff", "--json", volume.members[0], "monday", "tuesday").json
    assert again == told
    for words in (("nobody",), ("monday", "nobody"), ("monday", "tuesday", "x")):
        ctl("snapshot", "diff", volume.members[0], *words, expect=1)
    ctl("snapshot", "diff", "-z", "--json", volume.members[0], "monday", expect=1)
    backwards = ctl("snapshot", "diff", volume.members[0], "tuesday", "monday").lines
    assert "+\t/gone" in backwards and "R\t/new -> /old" in backwards
    volume.check()


def by_path(line):
    """As diff sorts: by the new path of what was renamed, by bytes of the path."""
    return line.partition("\t")[2].rpartition(" -> ")[2].rstrip("/").encode()


@pytest.mark.slow
def test_a_policy_is_the_volumes_and_a_timer_runs_it(workshop, ctl):
    volume, other = workshop.volume(3, name="tank"), workshop.volume(3, mounted=True)
    member = volume.members[0]
    assert ctl("policy", "show", member, "--json").json["keep"] is None
    ctl("policy", "set", member, "--hourly", "2", "--daily", "3")
    said = ctl("policy", "set", member, "--monthly", "1", "--hourly", "0")
    assert [line.split() for line in said.lines] == [["tank", "keeps"], ["daily", "3"],
                                                     ["monthly", "1"]]  # fmt: skip
    volume.mount()
    root = volume.mountpoint
    told = ctl("policy", "show", root, "--json").json
    assert told["keep"] == {"frequently": 0, "hourly": 0, "daily": 3, "weekly": 0, "monthly": 1,
                            "yearly": 0}  # fmt: skip
    ctl("snapshot", "create", root, "mine")
    # Older ones, by name; their age counts by when they were taken: now, after each other.
    days = [f"autosnap_2020-01-0{day}_00:00:00_daily" for day in range(1, 7)]
    for name in days:
        ctl("snapshot", "create", root, name)
    ctl("snapshot", "hold", root, days[0])
    plan = ctl("policy", "run", "--all", "-n")
    assert sum("would take" in line for line in plan.lines) == 1  # monthly; today has a daily one
    assert sum("would delete" in line for line in plan.lines) == 2
    assert names(ctl, root) == ["mine", *days]
    timer = RawConfigParser(strict=False)
    timer.read(UNITS / "raidfs-policy.service")
    program, *words = timer["Service"]["execstart"].split()
    assert program == "/usr/local/bin/raidfs-ctl"
    done = workshop.run("raidfs-ctl", *words)
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == ["tank"] * 3
    left = names(ctl, root)
    assert left[:-1] == ["mine", days[0], *days[3:]]
    assert re.fullmatch(r"autosnap_\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d_monthly", left[-1])
    assert time.strftime("autosnap_%Y-%m-") == left[-1][:17]
    assert ctl("policy", "run", root).out == "tank: nothing to do\n"
    assert names(ctl, other.mountpoint) == []
    ctl("policy", "set", root, "--daily", "1")
    assert "2 snapshots more" in ctl("policy", "show", root).out
    said = ctl("snapshot", "prune", "-n", "-v", root)
    assert "keep mine: not of this policy" in said.out and f"keep {days[0]}: held" in said.out
    assert f"delete {days[3]}: daily, number 3, and 1 are kept" in said.out
    assert "not confirmed" in ctl("snapshot", "prune", root, expect=1).err
    done = ctl("snapshot", "prune", "--yes", "--json", root).json
    assert done["deleted"] == days[3:5]
    ctl("policy", "clear", root)
    assert "no policy" in ctl("policy", "show", root).out
    assert "no policy" in ctl("policy", "run", root, expect=1).err
    said = ctl("policy", "run", root, other.mountpoint, "--json", expect=1)
    assert len(json.loads(said.out)["volumes"]) == 2
    assert ctl("policy", "run", "--all").out == ""
    volume.unmount()
    volume.check()


def test_the_timer_asks_every_five_minutes():
    unit, timer = (RawConfigParser(strict=False) for _ in range(2))
    assert unit.read(UNITS / "raidfs-policy.service") and timer.read(UNITS / "raidfs-policy.timer")
    assert unit["Service"]["type"] == "oneshot"
    assert timer["Timer"]["oncalendar"] == "*:0/5"
    assert "timers.target" in timer["Install"]["wantedby"]


# -- as the program -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_itself(workshop):
    volume = workshop.volume(3, mounted=True)
    done = workshop.run("raidfs-ctl", "snapshot", "create", volume.mountpoint, "a")
    assert "durable after" in done.stdout and not done.stderr
    done = workshop.run("raidfs-ctl", "snapshot", "create", volume.mountpoint, "a", expect=1)
    assert done.stderr.startswith("raidfs-ctl: there is a snapshot 'a' already")
    listed = workshop.run("raidfs-ctl", "snapshot", "list", "-H", "-o", "name", volume.mountpoint)
    assert listed.stdout == "a\n"
    volume.kill()  # and after a crash
    listed = workshop.run("raidfs-ctl", "snapshot", "list", "-Ho", "name", volume.members[0])
    assert listed.stdout == "a\n"
    run("sync")
    volume.check()
