"""Requests that the lane carries to Python: decoded by the kernel's layouts, bounds checked, and
whatever arrives, there is an answer. The layouts here are written by hand, with offsets."""

import errno
import os
import random
import struct

import pytest
import trio

from raidfs.daemon import protocol
from raidfs.daemon.carried import CHANGING, CarriedRequests
from raidfs.daemon.fuse import Watcher
from raidfs.errors import FsError, OutOfSpace
from raidfs.fs.attributes import Attributes, Caller, Changes, Usage
from raidfs.fs.door import Door
from raidfs.lane import Gate

TOLD = Attributes(
    ino=7,
    generation=1,
    mode=0o104755,
    nlink=2,
    uid=3,
    gid=4,
    rdev=0,
    size=99,
    blocks=8,
    blksize=4096,
    atime_ns=1_000_000_011,
    mtime_ns=2_000_000_012,
    ctime_ns=3_000_000_013,
    btime_ns=-1,
)
IO_MAX = 1 << 20


WAITING = {"read", "write", "fsync", "copy_range", "fallocate", "seek", "setattr", "ready"}


class FakeVolume:
    """Notes what it was asked; fails when told."""

    pressed = False

    def is_ready_now(self):
        return not self.pressed

    async def wait_for_relief(self):
        await trio.lowlevel.checkpoint()
        self.asked.append(("relief",))

    def __init__(self, error=None):
        self.asked = []
        self.error = error
        self.door = Door(Gate())

    def __getattr__(self, name):
        results = {
            "read": b"content",
            "write": 5,
            "seek": 8192,
            "copy_range": 4096,
            "getattr": TOLD,
            "tmpfile": TOLD,
            "lookup": TOLD,
            "create": TOLD,
            "mknod": TOLD,
            "mkdir": TOLD,
            "symlink": TOLD,
            "link": TOLD,
            "setattr": TOLD,
            "readlink": b"target",
            "getxattr": b"value",
            "listxattr": [b"user.a", b"security.b"],
            "readdir": [],
            "statfs": Usage(4096, 1000, 900, 500, 400),
            "clock": 5,
        }
        waits = name in WAITING
        if name in ("is_ready", "relief"):
            return self.is_ready_now if name == "is_ready" else self.wait_for_relief
        if name == "set_attributes":
            name = "setattr"  # which the handlers of pyfuse3 call for both

        def plain(*arguments, **named):
            values = [bytes(a) if isinstance(a, memoryview) else a for a in arguments]
            self.asked.append((name, *values, *named.values()))
            if self.error is not None:
                raise self.error
            return results.get(name)

        async def waiting(*arguments, **named):
            await trio.lowlevel.checkpoint()
            return plain(*arguments, **named)

        return waiting if waits else plain


class Noting(Watcher):
    def __init__(self):
        self.noted = []

    def opened(self, ino, flags):
        self.noted.append(("opened", ino, flags))

    async def privileges_lost(self, ino):
        self.noted.append(("lost", ino))

    async def before_seek(self, ino):
        self.noted.append(("seek", ino))


def message(opcode, body=b"", *, ino=7, uid=1000, extra=b"", length=None):
    """fuse_in_header: len 0, opcode 4, unique 8, nodeid 16, uid 24, gid 28, pid 32, extlen 36."""
    whole = bytearray(40) + body + extra
    struct.pack_into("<II", whole, 0, len(whole) if length is None else length, opcode)
    struct.pack_into("<QQ", whole, 8, 12345, ino)
    struct.pack_into("<III", whole, 24, uid, 100, 4242)
    struct.pack_into("<H", whole, 36, len(extra) // 8)
    return memoryview(bytes(whole))


def io(offset, nbytes, flags=0):
    """fuse_read_in, fuse_write_in: fh 0, offset 8, size 16, flags 20, owner 24, flags 32."""
    body = bytearray(40)
    struct.pack_into("<QQII", body, 0, 7, offset, nbytes, flags)
    return bytes(body)


def setattr_in(valid, *, size=0, times=(0, 0, 0), ns=(0, 0, 0), mode=0, uid=0, gid=0):
    """fuse_setattr_in: valid 0, fh 8, size 16, times 32, ns 56, mode 68, uid 76, gid 80."""
    body = bytearray(88)
    struct.pack_into("<I", body, 0, valid)
    struct.pack_into("<QQQqqqIIII", body, 8, 7, size, 1, *times, *ns, mode)
    struct.pack_into("<II", body, 76, uid, gid)
    return bytes(body)


# A body of each kind as the kernel sends it.
BODIES = {
    protocol.LOOKUP: b"name\0",
    protocol.GETATTR: bytes(16),
    protocol.SETATTR: setattr_in(1, mode=0o644),
    protocol.READLINK: b"",
    protocol.SYMLINK: b"name\0target\0",
    protocol.MKNOD: struct.pack("<IIII", 0o10644, 0x501, 0o22, 0) + b"name\0",
    protocol.MKDIR: struct.pack("<II", 0o755, 0o22) + b"name\0",
    protocol.UNLINK: b"name\0",
    protocol.RMDIR: b"name\0",
    protocol.RENAME: struct.pack("<Q", 8) + b"old\0new\0",
    protocol.LINK: struct.pack("<Q", 9) + b"name\0",
    protocol.OPEN: struct.pack("<II", os.O_RDWR, 0),
    protocol.READ: io(0, 5),
    protocol.WRITE: io(0, 5) + b"bytes",
    protocol.STATFS: b"",
    protocol.FSYNC: bytes(16),
    protocol.SETXATTR: struct.pack("<II", 5, 0) + b"user.a\0value",
    protocol.GETXATTR: struct.pack("<II", 100, 0) + b"user.a\0",
    protocol.LISTXATTR: struct.pack("<II", 100, 0),
    protocol.REMOVEXATTR: b"user.a\0",
    protocol.OPENDIR: bytes(8),
    protocol.FSYNCDIR: bytes(16),
    protocol.ACCESS: bytes(8),
    protocol.CREATE: struct.pack("<IIII", os.O_RDWR, 0o100644, 0o22, 0) + b"name\0",
    protocol.FALLOCATE: bytes(32),
    protocol.READDIRPLUS: io(0, 4096),
    protocol.RENAME2: struct.pack("<QII", 8, 1, 0) + b"old\0new\0",
    protocol.LSEEK: bytes(24),
    protocol.COPY_FILE_RANGE: bytes(56),
    protocol.TMPFILE: struct.pack("<IIII", os.O_RDWR, 0o100644, 0o22, 0) + b"name\0",
    protocol.STATX: bytes(24),
    protocol.COPY_FILE_RANGE_64: bytes(56),
}
# Of these what follows the fixed part is nobody's business; all others end where they must.
OPEN_ENDED = BODIES.keys() - {
    protocol.LOOKUP,
    protocol.SYMLINK,
    protocol.MKNOD,
    protocol.MKDIR,
    protocol.UNLINK,
    protocol.RMDIR,
    protocol.RENAME,
    protocol.RENAME2,
    protocol.LINK,
    protocol.WRITE,
    protocol.SETXATTR,
    protocol.GETXATTR,
    protocol.REMOVEXATTR,
    protocol.CREATE,
}


def ask(volume, whole, watcher=None, **named):
    answer = CarriedRequests(volume, watcher or Watcher(), IO_MAX, **named).begin(whole)
    if not isinstance(answer, tuple):

        async def wait():
            return await answer

        answer = trio.run(wait)
    error, data = answer
    return error, bytes(data)


def test_read_and_write():
    volume = FakeVolume()
    assert ask(volume, message(protocol.READ, io(4096, 7))) == (0, b"content")
    assert volume.asked == [("read", 7, 4096, 7)]
    volume = FakeVolume()
    watcher = Noting()
    told = ask(volume, message(protocol.WRITE, io(10, 5, 4) + b"bytes"), watcher)
    assert told == (0, struct.pack("<II", 5, 0))
    assert volume.asked == [("getattr", 7), ("write", 7, 10, b"bytes", True)]
    assert watcher.noted == [("lost", 7)]  # it had setuid, and the kernel should know


def test_what_a_write_says_of_its_length_must_be_true():
    for body in (io(0, 5) + b"byte", io(0, 5) + b"bytes!", io(0, 2**32 - 1), io(2**63 - 3, 5)):
        volume = FakeVolume()
        assert ask(volume, message(protocol.WRITE, body))[0] == errno.EINVAL
        assert volume.asked == []
    assert ask(FakeVolume(), message(protocol.READ, io(0, IO_MAX + 1)))[0] == errno.EINVAL
    assert ask(FakeVolume(), message(protocol.READ, io(2**64 - 1, 1)))[0] == errno.EINVAL


def test_extensions_are_no_content():
    volume = FakeVolume()
    whole = message(protocol.WRITE, io(0, 5) + b"bytes", extra=b"E" * 16)
    assert ask(volume, whole)[0] == 0
    assert volume.asked[-1] == ("write", 7, 0, b"bytes", False)


@pytest.mark.parametrize("opcode", [protocol.FSYNC, protocol.FSYNCDIR])
def test_fsync(opcode):
    volume = FakeVolume()
    assert ask(volume, message(opcode, struct.pack("<QII", 7, 1, 0))) == (0, b"")
    assert volume.asked == [("fsync", 7)]


def test_lseek_and_fallocate():
    volume, watcher = FakeVolume(), Noting()
    body = struct.pack("<QQII", 7, 4096, os.SEEK_DATA, 0)
    assert ask(volume, message(protocol.LSEEK, body), watcher) == (0, struct.pack("<Q", 8192))
    assert ("seek", 7, 4096, os.SEEK_DATA) in volume.asked and watcher.noted[0] == ("seek", 7)
    body = struct.pack("<QQII", 7, 4096, os.SEEK_DATA, 0)
    error = FsError(errno.ENXIO)
    assert ask(FakeVolume(error), message(protocol.LSEEK, body)) == (errno.ENXIO, b"")
    volume = FakeVolume()
    body = struct.pack("<QQQII", 7, 4096, 100, 3, 0)
    assert ask(volume, message(protocol.FALLOCATE, body)) == (0, b"")
    assert volume.asked[-1] == ("fallocate", 7, 4096, 100, 3, True)
    too_far = struct.pack("<QQQII", 7, 2**63 - 10, 100, 0, 0)
    assert ask(FakeVolume(), message(protocol.FALLOCATE, too_far))[0] == errno.EFBIG


def test_copies():
    body = struct.pack("<QQQQQQQ", 7, 0, 8, 8, 4096, 5000, 0)
    for opcode, reply in (
        (protocol.COPY_FILE_RANGE, struct.pack("<II", 4096, 0)),
        (protocol.COPY_FILE_RANGE_64, struct.pack("<Q", 4096)),
    ):
        volume = FakeVolume()
        assert ask(volume, message(opcode, body)) == (0, reply)
        assert volume.asked[-1] == ("copy_range", 7, 0, 8, 4096, 5000, True)
    volume = FakeVolume()
    endless = struct.pack("<QQQQQQQ", 7, 0, 8, 8, 0, 2**64 - 1, 0)
    assert ask(volume, message(protocol.COPY_FILE_RANGE_64, endless))[0] == 0
    assert volume.asked[-1][5] == 0x7FFFF000
    flags = struct.pack("<QQQQQQQ", 7, 0, 8, 8, 0, 1, 1)
    assert ask(FakeVolume(), message(protocol.COPY_FILE_RANGE, flags))[0] == errno.EINVAL


def test_statx():
    error, data = ask(FakeVolume(), message(protocol.STATX, bytes(24)))
    assert error == 0 and len(data) == 32 + 256
    statx = data[32:]
    mask, blksize = struct.unpack_from("<II", statx, 0)
    assert mask == 0xFFF and blksize == 4096  # all of stat(2), and btime
    assert struct.unpack_from("<IIIH", statx, 16) == (2, 3, 4, 0o104755)
    assert struct.unpack_from("<QQQ", statx, 32) == (7, 99, 8)
    times = [struct.unpack_from("<qI", statx, 64 + 16 * i) for i in range(4)]
    assert times == [(1, 11), (-1, 999_999_999), (3, 13), (2, 12)]  # a, b, c, m


def test_tmpfile():
    volume, watcher = FakeVolume(), Noting()
    body = struct.pack("<IIII", os.O_RDWR | os.O_DIRECT, 0o100644, 0o22, 0) + b"name\0"
    error, data = ask(volume, message(protocol.TMPFILE, body, ino=1), watcher)
    assert error == 0 and len(data) == 128 + 16
    assert struct.unpack_from("<QQ", data, 0) == (7, 1)
    assert struct.unpack_from("<I", data, 40 + 60)[0] == 0o104755
    assert struct.unpack_from("<QI", data, 128) == (7, 2)  # that it is direct, the lane adds
    asked = volume.asked[-1]
    assert asked[:4] == ("tmpfile", 1, 0o100644, os.O_RDWR | os.O_DIRECT)
    assert asked[4] == Caller(1000, 100, 4242, 0o22)
    assert watcher.noted == [("opened", 7, os.O_RDWR | os.O_DIRECT)]


OF_OPEN_FILES = {
    protocol.READ,
    protocol.WRITE,
    protocol.FSYNC,
    protocol.FSYNCDIR,
    protocol.READDIRPLUS,
    protocol.FALLOCATE,
    protocol.LSEEK,
    protocol.COPY_FILE_RANGE,
    protocol.COPY_FILE_RANGE_64,
}


@pytest.mark.parametrize("opcode", BODIES)
def test_allow_root_lets_in_nobody_else(opcode):
    refused = 0 if opcode in OF_OPEN_FILES else errno.EACCES
    for uid, number in ((0, 0), (1000, 0), (1001, refused)):
        volume = FakeVolume()
        assert ask(volume, message(opcode, BODIES[opcode], uid=uid), owner_uid=1000)[0] == number
        assert not number or volume.asked == []


def test_times_of_setattr():
    """FATTR_...: mode 1, uid 2, gid 4, size 8, atime 16, mtime 32, fh 64, atime now 128, mtime now
    256, owner 512, ctime 1024, privileges 2048."""
    times, ns = (-3, 5, 6), (10**9 - 1, 7, 8)
    exact = Changes(atime_ns=-2_000_000_001, mtime_ns=5_000_000_007, ctime_ns=6_000_000_008)
    for valid, changes in (
        (16 | 32 | 1024, exact),
        (16, Changes(atime_ns=exact.atime_ns)),
        (16 | 128 | 32, Changes(atime_ns=5, mtime_ns=exact.mtime_ns)),  # the clock says 5
        (32 | 256, Changes(mtime_ns=5)),
        (64 | 512 | 2048, Changes()),
        (1 | 2 | 4, Changes(mode=0o4755, uid=11, gid=12)),
    ):
        volume = FakeVolume()
        body = setattr_in(valid, times=times, ns=ns, mode=0o4755, uid=11, gid=12)
        error, data = ask(volume, message(protocol.SETATTR, body))
        assert error == 0 and len(data) == 104
        assert volume.asked[-1] == ("setattr", 7, changes, Caller(1000, 100, 4242))
    for wrong in ((10**9, 0, 0), (0, 2**32 - 1, 0), (0, 0, 10**9)):
        volume = FakeVolume()
        body = setattr_in(32, ns=wrong)
        assert ask(volume, message(protocol.SETATTR, body)) == (errno.EINVAL, b"")
        assert volume.asked == []


def test_truncating_takes_privileges_where_the_kernel_says_so():
    for valid, kill in ((8, False), (8 | 2048, True), (8 | 64 | 2048, True)):
        volume = FakeVolume()
        whole = message(protocol.SETATTR, setattr_in(valid, size=2**63 - 1), uid=0)
        assert ask(volume, whole)[0] == 0
        changes, caller = Changes(size=2**63 - 1), Caller(0, 100, 4242)
        assert volume.asked == [("setattr", 7, changes, caller, kill)]
    for size in (2**63, 2**64 - 1):
        volume = FakeVolume()
        assert ask(volume, message(protocol.SETATTR, setattr_in(8, size=size)))[0] == errno.EINVAL
        assert volume.asked == []


@pytest.mark.parametrize(
    ("flags", "open_flags", "uid", "kill"),
    [
        (os.O_RDWR, 1, 1000, False),
        (os.O_RDWR | os.O_TRUNC, 0, 1000, True),
        (os.O_RDWR | os.O_TRUNC, 1, 0, True),
        (os.O_RDWR | os.O_TRUNC, 0, 0, False),
    ],
)
def test_opening_with_truncation_takes_privileges(flags, open_flags, uid, kill):
    volume, watcher = FakeVolume(), Noting()
    whole = message(protocol.OPEN, struct.pack("<II", flags, open_flags), uid=uid)
    assert ask(volume, whole, watcher) == (0, struct.pack("<QII", 7, 2, 0))
    assert volume.asked[-1] == ("open", 7, flags, kill)
    noted = [("opened", 7, flags)] + ([("lost", 7)] if kill else [])
    assert watcher.noted == noted


def test_flags_of_setxattr_are_passed_on():
    for flags in (0, 1, 2, 3, 2**31):
        volume = FakeVolume()
        body = struct.pack("<II", 5, flags) + b"user.a\0va\0ue"
        assert ask(volume, message(protocol.SETXATTR, body)) == (0, b"")
        asked = ("setxattr", 7, b"user.a", b"va\0ue", flags, Caller(1000, 100, 4242))
        assert volume.asked == [asked]
    for nbytes in (0, 4, 6, 2**32 - 1):
        volume = FakeVolume()
        body = struct.pack("<II", nbytes, 0) + b"user.a\0value"
        assert ask(volume, message(protocol.SETXATTR, body))[0] == errno.EINVAL
        assert volume.asked == []


@pytest.mark.parametrize(
    ("opcode", "value"),
    [(protocol.GETXATTR, b"value"), (protocol.LISTXATTR, b"user.a\0security.b\0")],
)
def test_room_for_xattrs(opcode, value):
    for room, answer in (
        (0, (0, struct.pack("<II", len(value), 0))),
        (len(value) - 1, (errno.ERANGE, b"")),
        (len(value), (0, value)),
        (2**32 - 1, (0, value)),
    ):
        name = b"user.a\0" if opcode == protocol.GETXATTR else b""
        whole = message(opcode, struct.pack("<II", room, 0) + name)
        assert ask(FakeVolume(), whole) == answer


@pytest.mark.parametrize("opcode", BODIES)
def test_a_change_waits_for_the_metadata(opcode):
    """As the handlers of pyfuse3 do (tests/test_6_carried_names.py compares)."""
    volume = FakeVolume()
    volume.pressed = True
    assert ask(volume, message(opcode, BODIES[opcode]))[0] == 0
    assert volume.asked.count(("relief",)) == (opcode in CHANGING)
    assert ("relief",) not in volume.asked[1:]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (FsError(errno.ENXIO), errno.ENXIO),
        (OutOfSpace("full"), errno.ENOSPC),
        (ZeroDivisionError(), errno.EIO),
        (AssertionError("ours"), errno.EIO),
        (struct.error("ours"), errno.EIO),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("pressed", [False, True])
@pytest.mark.parametrize("opcode", BODIES.keys() - {protocol.ACCESS})  # which asks nobody
def test_every_error_becomes_an_answer(opcode, pressed, error, number):
    volume = FakeVolume(error)
    volume.pressed = pressed
    assert ask(volume, message(opcode, BODIES[opcode]))[0] == number


def test_what_is_unknown_is_answered_too():
    assert ask(FakeVolume(), message(39)) == (errno.ENOSYS, b"")
    assert ask(FakeVolume(), memoryview(b"")) == (errno.EINVAL, b"")


@pytest.mark.parametrize("opcode", BODIES)
def test_what_is_cut_short_or_overlong_is_refused(opcode):
    assert BODIES.keys() == protocol.NAMES.keys()
    whole = BODIES[opcode]
    assert ask(FakeVolume(), message(opcode, whole))[0] == 0
    for nbytes in range(len(whole)):
        volume = FakeVolume()
        refused = ask(volume, message(opcode, whole[:nbytes])) == (errno.EINVAL, b"")
        assert refused or opcode == protocol.TMPFILE  # of which the name means nothing
        assert not refused or volume.asked == []
    for more in (b"\0", b"x", b"x\0", b"\0\0", bytes(5000)):
        volume = FakeVolume()
        error, _ = ask(volume, message(opcode, whole + more))
        assert error == (0 if opcode in OPEN_ENDED else errno.EINVAL)
        assert not error or volume.asked == []


def test_any_bytes_at_all_are_answered():
    """Cut short, overlong, garbage: an errno, and no reading past the end."""
    dice = random.Random(1)
    opcodes = [*BODIES, 0, 2, 63, 2**32 - 1]
    for _ in range(5000):
        opcode = dice.choice(opcodes)
        whole = bytearray(dice.randbytes(dice.randrange(160)))
        if dice.random() < 0.5:
            whole[40:] = BODIES.get(opcode, b"")
        for _ in range(dice.randrange(3) if len(whole) > 40 else 0):
            whole[dice.randrange(40, len(whole))] = dice.randrange(256)
        if len(whole) >= 40:
            if dice.random() < 0.9:
                struct.pack_into("<I", whole, 0, len(whole))
            struct.pack_into("<I", whole, 4, opcode)
            if dice.random() < 0.8:
                struct.pack_into("<H", whole, 36, 0)
        error, data = ask(FakeVolume(), memoryview(bytes(whole)))
        assert error == 0 or (data == b"" and error in errno.errorcode)
