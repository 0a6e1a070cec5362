"""The lane is only ever faster, never different: the same random system calls on a mount with it,
on one without it, and on a plain directory; every result, error and content is compared.

Where the handlers alone lack an operation (fallocate, copy_file_range, O_TMPFILE), that side does
the same by reads and writes. One seed replays a run.
"""

import contextlib
import errno
import mmap
import os
import random
import stat

import pytest
from mounting import is_mounted

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
OPERATIONS = int(os.environ.get("RAIDFS_TEST_OPERATIONS", "2500"))
SIZE_MAX = 3_000_000
NAMES = [f"n{number}" for number in range(14)]
PUNCH, KEEP, ZERO = 2, 1, 16  # FALLOC_FL_...


class Side:
    """One directory in which the calls are made; each returns what can be compared."""

    def __init__(self, root, whole):
        self.root = root
        self.whole = whole  # has fallocate and the like
        self.open = {}

    def __str__(self):
        return str(self.root)

    def path(self, name):
        return self.root / name

    def do(self, verb, *arguments):
        """(result, errno) of one operation."""
        try:
            return getattr(self, verb)(*arguments), 0
        except OSError as error:
            return None, error.errno

    # -- descriptors ------------------------------------------------------------------------------

    def opened(self, key, name, flags):
        fd = os.open(self.path(name), flags, 0o640)
        self.open[key] = fd
        return stat.S_IFMT(os.fstat(fd).st_mode)

    def closed(self, key):
        os.close(self.open.pop(key))

    def pread(self, key, nbytes, offset):
        return os.pread(self.open[key], nbytes, offset)

    def pwrite(self, key, data, offset):
        return os.pwrite(self.open[key], data, offset)

    def write(self, key, data):
        return os.write(self.open[key], data)

    def direct(self, name, offset, pages, fill):
        """O_DIRECT from aligned memory; a plain write where that isn't known."""
        with mmap.mmap(-1, pages * 4096) as memory:
            memory[:] = bytes([fill]) * len(memory)
            flags = os.O_RDWR | (os.O_DIRECT if self.whole is not None else 0)
            fd = os.open(self.path(name), flags)
            try:
                written = os.pwrite(fd, memory, offset)
                got = os.preadv(fd, [memory], offset)
                return written, got, bytes(memory)
            finally:
                os.close(fd)

    def mapped(self, name, offset, data):
        """Writes through a shared mapping."""
        fd = os.open(self.path(name), os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            if size < offset + len(data):
                return None
            with mmap.mmap(fd, 0) as memory:
                memory[offset : offset + len(data)] = data
                return memory[max(0, offset - 10) : offset + len(data) + 10]
        finally:
            os.close(fd)

    def truncated(self, key, size):
        os.ftruncate(self.open[key], size)

    def synced(self, key):
        os.fsync(self.open[key])

    def size(self, key):
        return os.fstat(self.open[key]).st_size

    def fallocated(self, key, mode, offset, nbytes):
        fd = self.open[key]
        size = os.fstat(fd).st_size
        if self.whole is not False:
            _fallocate(fd, mode, offset, nbytes)
        elif mode & (PUNCH | ZERO):
            end = min(size, offset + nbytes) if mode & KEEP else offset + nbytes
            if end > offset:
                self._placed(fd, bytes(end - offset), offset)
        elif not mode & KEEP and size < offset + nbytes:
            os.ftruncate(fd, offset + nbytes)

    @staticmethod
    def _placed(fd, data, offset):
        """pwrite(2) that means it, also when the descriptor appends."""
        another = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            return os.pwrite(another, data, offset)
        finally:
            os.close(another)

    def copied(self, source, target, offset, nbytes, to):
        """copy_file_range until all is there."""
        done = 0
        while done < nbytes:
            if self.whole is not False:
                a, b = self.open[source], self.open[target]
                count = os.copy_file_range(a, b, nbytes - done, offset + done, to + done)
            else:
                part = os.pread(self.open[source], nbytes - done, offset + done)
                count = os.pwrite(self.open[target], part, to + done)
            if count == 0:
                break
            done += count
        return done

    # -- names ------------------------------------------------------------------------------------

    def made(self, name):
        os.mkdir(self.path(name), 0o751)

    def removed(self, name):
        os.rmdir(self.path(name))

    def unlinked(self, name):
        os.unlink(self.path(name))

    def renamed(self, name, other):
        os.rename(self.path(name), self.path(other))

    def linked(self, name, other):
        os.link(self.path(name), self.path(other))

    def symlinked(self, name, other):
        os.symlink(name, self.path(other))

    def chmodded(self, name, mode):
        os.chmod(self.path(name), mode)

    def touched(self, name, when_ns):
        os.utime(self.path(name), ns=(when_ns, when_ns + 1))
        told = os.stat(self.path(name))
        return told.st_atime_ns, told.st_mtime_ns

    def xattr(self, name, value):
        os.setxattr(self.path(name), b"user.test", value)
        return os.getxattr(self.path(name), b"user.test"), os.listxattr(self.path(name))

    def told(self, name):
        """What lstat says, without what may differ between filesystems."""
        told = os.lstat(self.path(name))
        size = told.st_size if not stat.S_ISDIR(told.st_mode) else None
        return told.st_mode, told.st_nlink, told.st_uid, told.st_gid, size

    def listed(self, name):
        return sorted(os.listdir(self.path(name)))

    def tree(self):
        """Everything below, with its content."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            content = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[name] = (self.told(name), content)
        return found


def _fallocate(fd, mode, offset, nbytes):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, mode, offset, nbytes):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Player:
    """Draws operations and plays each on all sides."""

    def __init__(self, dice, sides):
        self.dice = dice
        self.sides = sides
        self.keys = []
        self.next_key = 0

    def play(self, verb, *arguments):
        """One operation everywhere; all must tell the same."""
        outcomes = [side.do(verb, *arguments) for side in self.sides]
        for side, outcome in zip(self.sides[1:], outcomes[1:], strict=True):
            if outcome != outcomes[0]:
                raise AssertionError(
                    f"{verb}{_short(arguments)}: {_short(outcomes[0])} on {self.sides[0]}, "
                    f"{_short(outcome)} on {side}"
                )
        return outcomes[0]

    def offset(self):
        """Often at the ends of pages."""
        page = self.dice.randrange(SIZE_MAX // 4096) * 4096
        return max(0, page + self.dice.choice((0, 0, 0, 1, -1, 100, 4095, 2048)))

    def nbytes(self):
        return self.dice.choice((1, 100, 4096, 4097, 8192, 30_000, 65_536, 200_000, 1 << 20))

    def name(self):
        """Sometimes inside a directory, if that name is one."""
        name = self.dice.choice(NAMES)
        return name if self.dice.random() < 0.8 else f"{self.dice.choice(NAMES)}/{name}"

    def step(self):
        """One random operation."""
        dice = self.dice
        if not self.keys or dice.random() < 0.06:
            self.open()
        elif dice.random() < 0.05:
            self.play("closed", self.keys.pop(dice.randrange(len(self.keys))))
        elif dice.random() < 0.62:
            self.content(dice.choice(self.keys))
        else:
            self.names()

    def open(self):
        flags = self.dice.choice((os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_APPEND))
        flags |= self.dice.choice((0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC))
        key, self.next_key = self.next_key, self.next_key + 1
        if self.play("opened", key, self.name(), flags)[1] == 0:
            self.keys.append(key)
        if len(self.keys) > 12:
            self.play("closed", self.keys.pop(0))

    def content(self, key):
        dice = self.dice
        kind = dice.random()
        if kind < 0.32:
            self.play("pread", key, self.nbytes(), self.offset())
        elif kind < 0.66:
            data = dice.randbytes(self.nbytes())
            self.play("pwrite", key, data, self.offset())
        elif kind < 0.74:
            self.play("write", key, dice.randbytes(dice.choice((1, 50, 4096, 5000))))
        elif kind < 0.79:
            self.play("truncated", key, dice.choice((0, self.offset(), self.offset())))
        elif kind < 0.85:
            mode = dice.choice((0, KEEP, PUNCH | KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP))
            self.play("fallocated", key, mode, self.offset(), self.nbytes())
        elif kind < 0.92:
            other = dice.choice(self.keys)
            self.copy(key, other)
        elif kind < 0.95:
            self.play("synced", key)
        else:
            self.play("size", key)

    def copy(self, source, target):
        offset, to, nbytes = self.offset(), self.offset(), self.nbytes()
        if self.dice.random() < 0.7:
            to = to // 4096 * 4096 + offset % 4096  # cells can be shared
        same = [os.path.sameopenfile(s.open[source], s.open[target]) for s in self.sides]
        appends = [_appends(side.open[target]) for side in self.sides]
        if not any(same) and not any(appends):
            self.play("copied", source, target, offset, nbytes, to)

    def names(self):
        dice = self.dice
        name, other = self.name(), self.name()
        choice = dice.randrange(13)
        if choice == 0:
            self.play("made", name)
        elif choice == 1:
            self.play("removed", name)
        elif choice == 2:
            self.play("unlinked", name)
        elif choice == 3:
            self.play("renamed", name, other)
        elif choice == 4:
            self.play("linked", name, other)
        elif choice == 5:
            self.play("symlinked", dice.choice(NAMES), other)
        elif choice == 6:
            self.play("chmodded", name, dice.choice((0o600, 0o644, 0o4755, 0o2755, 0o777)))
        elif choice == 7:
            self.play("touched", name, dice.randrange(10**18))
        elif choice == 8:
            self.play("direct", name, dice.randrange(100) * 4096, 1 + dice.randrange(8), 7)
        elif choice == 9:
            self.play("mapped", name, self.offset(), dice.randbytes(100))
        elif choice == 10:
            self.play("listed", dice.choice(["", *NAMES]))
        else:
            self.play("told", name)


def _appends(fd):
    import fcntl

    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


def _short(told):
    text = repr(told)
    return text if len(text) < 300 else f"{text[:140]} ... {text[-140:]}"


@pytest.mark.parametrize("level", ["5", "6"])
def test_the_same_operations_on_both(workshop, tmp_path, level):
    seed = f"{SEED} {level}"
    print(f"seed {SEED} (RAIDFS_TEST_SEED), {OPERATIONS} operations (RAIDFS_TEST_OPERATIONS)")
    dice = random.Random(seed)
    lane = workshop.volume(6, level=level, zone_bytes=4 << 20, size=128 << 20, mounted=True)
    plain_handlers = workshop.volume(6, level=level, zone_bytes=4 << 20, size=128 << 20)
    plain_handlers.mount("nolane")
    truth = tmp_path / "truth"
    truth.mkdir()
    sides = [Side(truth, None), Side(lane.mountpoint, True), Side(plain_handlers.mountpoint, False)]
    player = Player(dice, sides)
    for number in range(OPERATIONS):
        player.step()
        if number % 400 == 399:
            compare(sides)
        if number % 1000 == 999:
            for volume in (lane, plain_handlers):
                volume.ctl("sync")
    while player.keys:
        player.play("closed", player.keys.pop())
    compare(sides)
    for volume in (lane, plain_handlers):
        volume.unmount()
        assert not is_mounted(volume.mountpoint)
        volume.check()
        volume.mount(*(["nolane"] if volume is lane else []))
    compare(sides)
    for volume in (lane, plain_handlers):
        volume.unmount()


def compare(sides):
    """All content, attributes and names."""
    trees = [side.tree() for side in sides]
    for side, tree in zip(sides[1:], trees[1:], strict=True):
        assert sorted(tree) == sorted(trees[0]), side
        for name, told in tree.items():
            assert told[0] == trees[0][name][0], (side, name)
            assert told[1] == trees[0][name][1], (side, name)


def test_errors_are_told_the_same(workshop, tmp_path):
    """The errors of calls that make no sense."""
    lane = workshop.volume(3, size=64 << 20, mounted=True)
    other = workshop.volume(3, size=64 << 20)
    other.mount("nolane")
    roots = [lane.mountpoint, other.mountpoint]
    for root in roots:
        (root / "file").write_bytes(b"x" * 10_000)
        (root / "directory").mkdir()
    told = [
        (
            _error(lambda r=root: os.pwrite(_fd(r / "file", os.O_RDONLY), b"x", 0)),
            _error(lambda r=root: os.pread(_fd(r / "directory", os.O_RDONLY), 10, 0)),
            _error(lambda r=root: os.truncate(r / "file", 2**63 - 1)),
            _error(lambda r=root: os.pwrite(_fd(r / "file", os.O_RDWR), b"xy", 2**63 - 2)),
            _error(lambda r=root: os.open(r / ("n" * 256), os.O_CREAT)),
            _error(lambda r=root: os.rename(r / "directory", r / "directory" / "below")),
            _error(lambda r=root: os.unlink(r / "directory")),
            _error(lambda r=root: os.rmdir(r / "file")),
        )
        for root in roots
    ]
    assert told[0] == told[1]
    assert told[0][0] == errno.EBADF and errno.EISDIR in told[0]


def _fd(path, flags):
    fd = os.open(path, flags)
    _OPEN.append(fd)
    return fd


_OPEN = []


def _error(call):
    try:
        call()
    except OSError as error:
        return error.errno
    finally:
        while _OPEN:
            with contextlib.suppress(OSError):
                os.close(_OPEN.pop())
    return 0
