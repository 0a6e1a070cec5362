"""Everything that is done to an array, on every kind of member: under verified writes of fio,
killed in its middle, and continued.

A table, operations x kinds of members. Each case:

 1. A volume with known content, also in a snapshot; the operation is slowed by its limit.
 2. fio writes and verifies all the while. One file of it is finished, and synced, while the
    operation is under way; another is being written when the daemon is killed with -9, in the
    middle of the operation.
 3. Mounted again the operation is under way by itself, with something left, and what was done is
    not done again. fio writes again, and ends without an error; the operation ends, too.
 4. Then check is clean, and everything is compared as it comes from the members: after another
    mount, and again without as many members as may be lost.
"""

import hashlib
import os
import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import ctl, status_of
from damage import PAGE, Survey, Tree, noise, patch
from mounting import run, wait_until

pytestmark = pytest.mark.mount

KIB, MIB = 1 << 10, 1 << 20
ZONE = 128 * KIB
MEMBER = 96 * MIB
SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
FIO = (
    "fio", "--ioengine=psync", "--rw=randwrite", "--bs=16k", "--verify=crc32c", "--verify_fatal=1",
    "--do_verify=1", "--fallocate=none", "--eta=never", "--verify_state_save=0",
    f"--randseed={SEED}",
)  # fmt: skip
BUSY = ("--size=1m", "--loops=1000", "--rate=4m", "--direct=1", "--fsync=8")
SETTLED = ("--size=2m", "--end_fsync=1")
AGAIN = ("--size=1m", "--loops=3", "--rate=4m", "--direct=1", "--end_fsync=1")


class Fio:
    """One fio that writes a file and verifies what it wrote, again and again."""

    def __init__(self, case, name, *words):
        self.path = case.load / name
        self.said = case.shop.directory / f"fio-{name}"
        words = [*FIO, *words, f"--name={name}", f"--filename={self.path}"]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                words, stdout=said, stderr=said, cwd=case.shop.directory, stdin=subprocess.DEVNULL
            )

    def __enter__(self):
        wait_until(lambda: self.path.exists() and self.path.stat().st_size, "fio writes")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @property
    def runs(self):
        return self.process.poll() is None

    def ended(self):
        """Its exit code."""
        return self.process.wait(90)

    def succeeds(self):
        assert self.ended() == 0, self.said.read_text()


def cold(path):
    """A file's content, from the members and not from the kernel's cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def digest(path):
    return hashlib.sha256(cold(path)).hexdigest()


class Case:
    """A volume, what is to be in it, and where its members are."""

    def __init__(self, shop, kind, operation):
        self.shop, self.operation = shop, operation
        self.dice = random.Random(f"{SEED} operations")
        count = operation.members
        self.paths = {
            "directories": lambda n: shop.directories(n, prefix="m"),
            "image files": lambda n: shop.images(n, MEMBER, prefix="m"),
            "loop devices": lambda n: shop.loop_devices(n, MEMBER),
        }[kind](count + operation.extra)
        self.extra = self.paths[count:]
        self.volume = shop.volume(
            self.paths[:count],
            level=operation.level,
            width=operation.width,
            zone_bytes=ZONE,
            size=MEMBER,
        )
        self.root = self.volume.mountpoint
        self.load = self.root / "fio"
        self.tree, self.before, self.large = Tree(), Tree(), {}
        self.killed_at = None  # how far the operation was
        self.damaged = {}  # place -> what it was made to be
        self.synced = {}  # files of fio -> digests

    # -- as users do ------------------------------------------------------------------------------

    def mount(self):
        """Member 0 is the one to which things happen: not by it."""
        self.volume.mount(source=self.paths[1])

    def ctl(self, verb, *words):
        return ctl(self.shop, verb, *words).stdout

    def member(self, verb, *words):
        return self.ctl("member", verb, "--yes", self.root, *words)

    def add(self, *words):
        size = ["--size", MEMBER] if self.extra[0].is_dir() else []
        return self.member("add", *size, *words, *self.extra)

    def limit(self, rate):
        kinds = [self.operation.kind] if self.operation.kind in ("convert", "rebalance") else []
        self.ctl("job", "limit", self.root, *kinds, rate)

    def job(self):
        """The operation's, or None."""
        found = {job.id: job for job in status_of(self.volume).jobs}
        return found.get(self.operation.job)

    def is_in_the_middle(self):
        told = self.job()
        part = (told.done_bytes + told.left_bytes) // 4 if self.operation.kind == "scrub" else 0
        return told.done_bytes >= max(self.operation.enough, part) and told.left_bytes > 0

    def members(self):
        return {member.id: member for member in status_of(self.volume).members}

    # -- content ----------------------------------------------------------------------------------

    def fill(self):
        """Durable on return."""
        root = self.root / "tree"
        root.mkdir()
        self.load.mkdir()
        self.tree.grow(root, self.dice)
        self.ctl("snapshot", "create", self.root, "before")
        self.before = self.tree.copy()
        self.tree.change(root, self.dice)
        self.write("filled", 5 * MIB)

    def write(self, name, nbytes):
        self.large[name] = self.dice.randbytes(nbytes)
        (self.root / name).write_bytes(self.large[name])
        self.ctl("sync", self.root)

    def settle(self):
        """A file of fio's that is finished, verified, and synced."""
        with Fio(self, "settled", *SETTLED) as fio:
            fio.succeeds()
        self.keep(fio)

    def keep(self, fio):
        self.synced[fio.path] = digest(fio.path)

    def verify(self):
        """By fio, what it finished."""
        files = [word for path in self.synced for word in (f"--name={path}", f"--filename={path}")]
        run(*FIO, "--rw=read", "--direct=1", "--size=100%", *files, cwd=self.shop.directory)

    def compare(self):
        """Everything, as it comes from the members."""
        self.tree.compare(self.root / "tree")
        self.before.compare(self.root / ".snapshots" / "before" / "tree")
        for name, content in self.large.items():
            assert cold(self.root / name) == content, name
        for path, known in self.synced.items():
            assert digest(path) == known, path
        assert len(cold(self.load / "busy")) == MIB, "it can be read, whatever is in it"

    # -- damage -----------------------------------------------------------------------------------

    def damage(self):
        """To cells of every column of member 0 that hold something; not mounted."""
        self.ctl("umount", self.root)
        self.volume.wait_gone()
        for column in Survey(self.volume.members).of_member(0):
            rows = column.there.nonzero()[0].tolist()
            for row in self.dice.sample(rows, min(3, len(rows))):
                place = column.path, column.base + row * PAGE
                self.damaged[place] = noise(self.dice, cell(place))
                patch(*place, self.damaged[place])
        assert len(self.damaged) > 30
        self.mount()

    def damaged_still(self):
        return sum(content == cell(place) for place, content in self.damaged.items())


def cell(place):
    path, offset = place
    if not path.exists():
        return b""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), offset, PAGE, os.POSIX_FADV_DONTNEED)
        return os.pread(file.fileno(), PAGE, offset)


def wipe(path):
    """Nothing is left of a member."""
    if path.is_block_device():
        run("blkdiscard", "--force", path)
    elif path.is_dir():
        path.rename(path.with_name(f"{path.name} gone"))
    else:
        os.truncate(path, 0)


# -- the operations: how each begins, and what is so when it has ended -----------------------------


def replace(case):
    case.member("replace", "0", *case.extra)


def replace_lost(case):
    case.member("policy", "manual")
    case.member("fail", "0")
    case.member("replace", "0", *case.extra)


def fail(case):
    case.member("fail", "0")


def remove(case):
    case.member("remove", "0")


def offline_and_online(case):
    case.member("offline", "0")
    case.write("missed", 5 * MIB)
    said = case.member("online", "0")
    assert "in use again" in said and "not believed" not in said


def add_and_rebalance(case):
    case.add()
    case.ctl("rebalance", case.root)


def convert(*words):
    return lambda case: case.ctl("convert", *words, case.root)


def scrub(case):
    case.ctl("scrub", "start", "--limit", "4M/s", case.root)


def replaced(case):
    members = case.members()
    assert 0 not in members and members[case.operation.members].columns
    assert members[case.operation.members].path == str(case.extra[0])


def spread(case):
    member = case.members()[0]
    assert (member.state, member.columns, member.removable) == ("FAILED", 0, True)
    case.member("remove", "0")


def removed(case):
    assert sorted(case.members()) == [1, 2, 3]


def back(case):
    member = case.members()[0]
    assert (member.state, member.lacking) == ("ONLINE", 0) and member.columns


def balanced(case):
    columns = [member.columns for _, member in sorted(case.members().items())]
    assert columns[-1] > max(columns) // 2, columns


def converted(level, width, losses):
    def ended(case):
        told = status_of(case.volume)
        assert (told.level, told.width, told.losses_survived) == (level, width, losses)

    return ended


def healed(case):
    told = status_of(case.volume).scrub
    assert told.state == "finished" and told.ok and told.files_damaged == 0
    assert 0 < told.healed_cells <= len(case.damaged)


@dataclass(frozen=True)
class Operation:
    """On a volume of so many members, with `extra` ones at hand. `job`: by which it is told."""

    job: str
    start: Callable
    ended: Callable
    level: str = "5"
    width: int = 3
    members: int = 4
    extra: int = 0
    tolerance: int = 1
    limit: str = "384K"
    enough: int = 3 * ZONE  # bytes, of which it is said that they are done
    events: tuple = ()
    prepare: Callable = field(default=lambda case: None)

    @property
    def kind(self):
        return self.job.partition(":")[0]


OPERATIONS = {
    "replace of one online": Operation("replace:0", replace, replaced, extra=1),
    "rebuild onto a replacement": Operation("replace:0", replace_lost, replaced, extra=1),
    "rebuild onto a hot spare": Operation(
        "replace:0", fail, replaced, extra=1, prepare=lambda case: case.add("--spare"),
        events=("SpareActive",),
    ),
    "rebuild spread over the others": Operation("rebuild:0", fail, spread),
    "remove": Operation("evacuate:0", remove, removed),
    "offline and online": Operation(
        "rebuild:0", offline_and_online, back, level="1", width=2, members=2
    ),
    "add and rebalance": Operation(
        "rebalance", add_and_rebalance, balanced, extra=1,
        events=("RebalanceStarted", "RebalanceFinished"),
    ),
    "convert 5 to 6": Operation(
        "convert", convert("--level", "6", "--width", "4"), converted("6", 4, 2), tolerance=2,
        limit="1M", enough=8 * ZONE,
        events=("ConvertStarted", "ConvertFinished"),
    ),
    "convert 1 to 5": Operation(
        "convert", convert("--level", "5", "--width", "3"), converted("5", 3, 1), level="1",
        width=2, members=3, limit="1M", enough=8 * ZONE,
        events=("ConvertStarted", "ConvertFinished"),
    ),
    "scrub": Operation(
        "scrub", scrub, healed, prepare=Case.damage, events=("ScrubStarted", "ScrubFinished")
    ),
}  # fmt: skip
KINDS = ("directories", "image files", "loop devices")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_in_its_middle_under_verified_writes(workshop, name, kind):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    case = Case(workshop, kind, OPERATIONS[name])
    case.mount()
    case.fill()
    case.operation.prepare(case)
    killed_in_the_middle(case)
    goes_on_by_itself(case)
    nothing_is_lost(case)


def killed_in_the_middle(case):
    """Promises 1 and 2. Something is done when it is killed, and something is left."""
    case.limit(case.operation.limit)
    with Fio(case, "busy", *BUSY) as busy:
        case.operation.start(case)
        assert case.job() is not None
        case.settle()
        wait_until(case.is_in_the_middle, "some of it is done, and some is left", 40)
        case.killed_at = case.job()
        assert case.killed_at.left_bytes > 0, "it went by too fast"
        assert busy.runs, busy.said.read_text()
        case.volume.kill()
        assert busy.ended() != 0


def goes_on_by_itself(case):
    """Promise 3."""
    case.mount()
    wait_until(lambda: (told := case.job()) is None or told.left_bytes > 0, "it is told how much")
    told, before = case.job(), case.killed_at
    assert told is not None and told.state in ("running", "waiting"), told
    assert told.left_bytes > 0, told
    if case.operation.kind == "scrub":
        assert told.done_bytes > before.done_bytes // 2, (told, before)
        assert 0 < case.damaged_still() < len(case.damaged)
    elif case.operation.kind != "rebalance":  # of which there is more, the more is written
        assert told.left_bytes < before.left_bytes + before.done_bytes // 2, (told, before)
    with Fio(case, "again", *AGAIN) as again:
        told = case.job()
        assert told.left_bytes > 0, told
        case.limit("none")
        said = case.ctl("wait", "--timeout", "90", case.root)
        assert f"{case.operation.job}: done" in said
        again.succeeds()
    case.keep(again)
    wait_until(lambda: status_of(case.volume).state == "ONLINE", "it is whole")
    case.operation.ended(case)
    assert not case.damaged_still()
    events = re.findall(r"\w+", case.ctl("events", case.root))
    assert set(case.operation.events) <= set(events)


def nothing_is_lost(case):
    """Promise 4."""
    case.ctl("umount", case.root)
    case.volume.wait_gone()
    case.ctl("check", case.paths[1])
    case.mount()
    case.verify()
    case.compare()
    case.ctl("job", "pause", case.root)
    members = case.members()
    for number in case.dice.sample(sorted(members), case.operation.tolerance):
        case.member("fail", number)
        wipe(Path(members[number].path))
    case.compare()
    case.ctl("umount", case.root)
    case.volume.wait_gone()
