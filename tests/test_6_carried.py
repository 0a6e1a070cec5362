"""Requests that the lane carries to Python: decoded by the kernel's layouts, bounds checked, and
whatever arrives, there is an answer. The layouts here are written by hand, with offsets."""

import errno
import os
import random
import struct

import pytest
import trio

from raidfs.daemon import carried
from raidfs.daemon.carried import CarriedRequests
from raidfs.daemon.fuse import Watcher
from raidfs.errors import FsError, OutOfSpace
from raidfs.fs.attributes import Attributes, Caller

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


class FakeVolume:
    """Notes what it was asked; fails when told."""

    def __init__(self, error=None):
        self.asked = []
        self.error = error

    def __getattr__(self, name):
        results = {
            "read": b"content",
            "write": 5,
            "seek": 8192,
            "copy_range": 4096,
            "getattr": TOLD,
            "tmpfile": TOLD,
        }
        waits = name in ("read", "write", "fsync", "copy_range", "fallocate", "ready", "seek")

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


def ask(volume, whole, watcher=None, **named):
    requests = CarriedRequests(volume, watcher or Watcher(), IO_MAX, **named)
    error, data = trio.run(requests.answer, whole)
    return error, bytes(data)


def test_read_and_write():
    volume = FakeVolume()
    assert ask(volume, message(carried.READ, io(4096, 7))) == (0, b"content")
    assert volume.asked == [("read", 7, 4096, 7)]
    volume = FakeVolume()
    watcher = Noting()
    told = ask(volume, message(carried.WRITE, io(10, 5, 4) + b"bytes"), watcher)
    assert told == (0, struct.pack("<II", 5, 0))
    assert volume.asked == [("getattr", 7), ("write", 7, 10, b"bytes", True)]
    assert watcher.noted == [("lost", 7)]  # it had setuid, and the kernel should know


def test_what_a_write_says_of_its_length_must_be_true():
    for body in (io(0, 5) + b"byte", io(0, 5) + b"bytes!", io(0, 2**32 - 1), io(2**63 - 3, 5)):
        volume = FakeVolume()
        assert ask(volume, message(carried.WRITE, body))[0] == errno.EINVAL
        assert volume.asked == []
    assert ask(FakeVolume(), message(carried.READ, io(0, IO_MAX + 1)))[0] == errno.EINVAL
    assert ask(FakeVolume(), message(carried.READ, io(2**64 - 1, 1)))[0] == errno.EINVAL


def test_extensions_are_no_content():
    volume = FakeVolume()
    whole = message(carried.WRITE, io(0, 5) + b"bytes", extra=b"E" * 16)
    assert ask(volume, whole)[0] == 0
    assert volume.asked[-1] == ("write", 7, 0, b"bytes", False)


@pytest.mark.parametrize("opcode", [carried.FSYNC, carried.FSYNCDIR])
def test_fsync(opcode):
    volume = FakeVolume()
    assert ask(volume, message(opcode, struct.pack("<QII", 7, 1, 0))) == (0, b"")
    assert volume.asked == [("fsync", 7)]


def test_lseek_and_fallocate():
    volume, watcher = FakeVolume(), Noting()
    body = struct.pack("<QQII", 7, 4096, os.SEEK_DATA, 0)
    assert ask(volume, message(carried.LSEEK, body), watcher) == (0, struct.pack("<Q", 8192))
    assert ("seek", 7, 4096, os.SEEK_DATA) in volume.asked and watcher.noted[0] == ("seek", 7)
    body = struct.pack("<QQII", 7, 4096, os.SEEK_DATA, 0)
    error = FsError(errno.ENXIO)
    assert ask(FakeVolume(error), message(carried.LSEEK, body)) == (errno.ENXIO, b"")
    volume = FakeVolume()
    body = struct.pack("<QQQII", 7, 4096, 100, 3, 0)
    assert ask(volume, message(carried.FALLOCATE, body)) == (0, b"")
    assert volume.asked[-1] == ("fallocate", 7, 4096, 100, 3, True)
    too_far = struct.pack("<QQQII", 7, 2**63 - 10, 100, 0, 0)
    assert ask(FakeVolume(), message(carried.FALLOCATE, too_far))[0] == errno.EFBIG


def test_copies():
    body = struct.pack("<QQQQQQQ", 7, 0, 8, 8, 4096, 5000, 0)
    for opcode, reply in (
        (carried.COPY_FILE_RANGE, struct.pack("<II", 4096, 0)),
        (carried.COPY_FILE_RANGE_64, struct.pack("<Q", 4096)),
    ):
        volume = FakeVolume()
        assert ask(volume, message(opcode, body)) == (0, reply)
        assert volume.asked[-1] == ("copy_range", 7, 0, 8, 4096, 5000, True)
    volume = FakeVolume()
    endless = struct.pack("<QQQQQQQ", 7, 0, 8, 8, 0, 2**64 - 1, 0)
    assert ask(volume, message(carried.COPY_FILE_RANGE_64, endless))[0] == 0
    assert volume.asked[-1][5] == 0x7FFFF000
    flags = struct.pack("<QQQQQQQ", 7, 0, 8, 8, 0, 1, 1)
    assert ask(FakeVolume(), message(carried.COPY_FILE_RANGE, flags))[0] == errno.EINVAL


def test_statx():
    error, data = ask(FakeVolume(), message(carried.STATX, bytes(24)))
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
    error, data = ask(volume, message(carried.TMPFILE, body, ino=1), watcher)
    assert error == 0 and len(data) == 128 + 16
    assert struct.unpack_from("<QQ", data, 0) == (7, 1)
    assert struct.unpack_from("<I", data, 40 + 60)[0] == 0o104755
    assert struct.unpack_from("<QI", data, 128) == (7, 1 | 2 | 64)  # direct, parallel
    asked = volume.asked[-1]
    assert asked[:4] == ("tmpfile", 1, 0o100644, os.O_RDWR | os.O_DIRECT)
    assert asked[4] == Caller(1000, 100, 4242, 0o22)
    assert watcher.noted == [("opened", 7, os.O_RDWR | os.O_DIRECT)]


def test_allow_root_lets_in_nobody_else():
    for opcode, body in ((carried.STATX, bytes(24)), (carried.TMPFILE, bytes(17))):
        for uid, number in ((0, 0), (1000, 0), (1001, errno.EACCES)):
            whole = message(opcode, body, uid=uid)
            assert ask(FakeVolume(), whole, owner_uid=1000)[0] == number


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
@pytest.mark.parametrize("opcode", carried.NAMES)
def test_every_error_becomes_an_answer(opcode, error, number):
    body = io(0, 5) + b"bytes" if opcode == carried.WRITE else bytes(56)
    assert ask(FakeVolume(error), message(opcode, body))[0] == number


def test_what_is_unknown_is_answered_too():
    assert ask(FakeVolume(), message(39)) == (errno.ENOSYS, b"")
    assert ask(FakeVolume(), memoryview(b"")) == (errno.EINVAL, b"")


def test_any_bytes_at_all_are_answered():
    """Cut short, overlong, garbage: an errno, and no reading past the end."""
    dice = random.Random(1)
    opcodes = [*carried.NAMES, 0, 1, 63, 2**32 - 1]
    for _ in range(3000):
        whole = bytearray(dice.randbytes(dice.randrange(160)))
        if len(whole) >= 40:
            if dice.random() < 0.9:
                struct.pack_into("<I", whole, 0, len(whole))
            struct.pack_into("<I", whole, 4, dice.choice(opcodes))
            if dice.random() < 0.8:
                struct.pack_into("<H", whole, 36, 0)
        error, data = ask(FakeVolume(), memoryview(bytes(whole)))
        assert error == 0 or (data == b"" and error in errno.errorcode)
