"""What the lane carries is answered as the handlers behind pyfuse3 answer it: the same calls of the
volume, the same replies and errors. The replies here are taken apart by hand, with offsets."""

import errno
import os
import struct
from types import SimpleNamespace

import pyfuse3
import pytest
import trio
from test_6_carried import BODIES, IO_MAX, FakeVolume, Noting, ask, io, message, setattr_in
from volumes import make_members, mounted

from raidfs.daemon import fuse, protocol
from raidfs.daemon.carried import CarriedRequests
from raidfs.daemon.fuse import CACHE_S, FuseOperations, Watcher
from raidfs.errors import FsError, MemberError, OutOfSpace, ReadOnly, Unrecoverable
from raidfs.fs.attributes import Attributes, Entry
from raidfs.fs.door import Door
from raidfs.lane import Gate

TOLD = Attributes(10, 1, 0o100644, 1, 2, 3, 0, 99, 1, 4096, 11, 12, 13, 14)
PLAIN = SimpleNamespace(uid=1000, gid=100, pid=4242, umask=0)
MAKING = SimpleNamespace(uid=1000, gid=100, pid=4242, umask=0o22)
FIELDS = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")


def wanted(**values):
    """(attributes, fields) as pyfuse3 hands a SETATTR over."""
    attributes = pyfuse3.EntryAttributes()
    for name, value in values.items():
        ending = "_ns" if name.endswith("time") else ""
        setattr(attributes, f"st_{name}{ending}", value)
    fields = {f"update_{name}": name in values for name in FIELDS}
    return attributes, SimpleNamespace(**fields)


# name of the handler, its arguments, opcode, body
CASES = [
    ("lookup", (7, b"name", PLAIN), protocol.LOOKUP, None),
    ("getattr", (7, PLAIN), protocol.GETATTR, None),
    ("setattr", (7, *wanted(mode=0o644), None, PLAIN), protocol.SETATTR, None),
    (
        "setattr",
        (7, *wanted(uid=5, gid=6), None, PLAIN),
        protocol.SETATTR,
        setattr_in(6, uid=5, gid=6),
    ),
    (
        "setattr",
        (7, *wanted(size=2**62, mtime=2 * 10**9 + 3), 7, PLAIN),
        protocol.SETATTR,
        setattr_in(8 | 32 | 64, size=2**62, times=(0, 2, 0), ns=(0, 3, 0)),
    ),
    (
        "setattr",
        (7, *wanted(atime=-1, ctime=10**9 + 4), None, PLAIN),
        protocol.SETATTR,
        setattr_in(16 | 1024, times=(-1, 0, 1), ns=(10**9 - 1, 0, 4)),
    ),
    ("setattr", (7, *wanted(), None, PLAIN), protocol.SETATTR, setattr_in(0)),
    ("readlink", (7, PLAIN), protocol.READLINK, None),
    ("symlink", (7, b"name", b"target", PLAIN), protocol.SYMLINK, None),
    ("mknod", (7, b"name", 0o10644, 0x501, MAKING), protocol.MKNOD, None),
    ("mkdir", (7, b"name", 0o755, MAKING), protocol.MKDIR, None),
    ("unlink", (7, b"name", PLAIN), protocol.UNLINK, None),
    ("rmdir", (7, b"name", PLAIN), protocol.RMDIR, None),
    ("rename", (7, b"old", 8, b"new", 0, PLAIN), protocol.RENAME, None),
    ("rename", (7, b"old", 8, b"new", 1, PLAIN), protocol.RENAME2, None),
    ("link", (9, 7, b"name", PLAIN), protocol.LINK, None),
    ("open", (7, os.O_RDWR, PLAIN), protocol.OPEN, None),
    (
        "open",
        (7, os.O_RDWR | os.O_TRUNC, PLAIN),
        protocol.OPEN,
        struct.pack("<II", os.O_RDWR | os.O_TRUNC, 1),
    ),
    ("statfs", (PLAIN,), protocol.STATFS, None),
    ("setxattr", (7, b"user.a", b"value", PLAIN), protocol.SETXATTR, None),
    ("getxattr", (7, b"user.a", PLAIN), protocol.GETXATTR, None),
    ("listxattr", (7, PLAIN), protocol.LISTXATTR, None),
    ("removexattr", (7, b"user.a", PLAIN), protocol.REMOVEXATTR, None),
    ("opendir", (7, PLAIN), protocol.OPENDIR, None),
    ("access", (7, 4, PLAIN), protocol.ACCESS, None),
    ("create", (7, b"name", 0o100644, os.O_RDWR, MAKING), protocol.CREATE, None),
    ("fsync", (7, False), protocol.FSYNC, None),
    ("fsyncdir", (7, True), protocol.FSYNCDIR, None),
    ("read", (7, 0, 5), protocol.READ, None),
]


def attr_of(data):
    """fuse_attr: ino 0, size 8, blocks 16, times 24, ns 48, mode 60, nlink, uid, gid, rdev,
    blksize 80."""
    ino, size, blocks, *times = struct.unpack_from("<QQQqqq", data, 0)
    ns = struct.unpack_from("<III", data, 48)
    rest = struct.unpack_from("<IIIIII", data, 60)
    return (ino, size, blocks, *(t * 10**9 + n for t, n in zip(times, ns, strict=True)), *rest)


def attr_told(entry):
    return (
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        entry.st_atime_ns,
        entry.st_mtime_ns,
        entry.st_ctime_ns,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev,
        entry.st_blksize,
    )


def check_attributes(data, told):
    assert len(data) == 104 and struct.unpack_from("<QI", data) == (told.attr_timeout, 0)
    assert attr_of(data[16:]) == attr_told(told)


def check_entry(data, told):
    assert len(data) == 128
    timeouts = (told.entry_timeout, told.attr_timeout, 0, 0)
    assert struct.unpack_from("<QQQQII", data) == (told.st_ino, told.generation, *timeouts)
    assert attr_of(data[40:]) == attr_told(told)


def check_reply(data, told):
    """That a reply says what pyfuse3 makes of what the handler returned."""
    if isinstance(told, pyfuse3.EntryAttributes) and len(data) == 104:
        check_attributes(data, told)
    elif isinstance(told, pyfuse3.EntryAttributes):
        check_entry(data, told)
    elif isinstance(told, tuple):  # of create
        check_reply(data[128:], told[0])
        check_entry(data[:128], told[1])
    elif isinstance(told, pyfuse3.FileInfo):
        assert told.keep_cache and data == struct.pack("<QII", told.fh, 2, 0)
    elif isinstance(told, pyfuse3.StatvfsData):
        counts = (told.f_blocks, told.f_bfree, told.f_bavail, told.f_files, told.f_ffree)
        units = (told.f_bsize, told.f_namemax, told.f_frsize)
        assert data == struct.pack("<QQQQQIII28x", *counts, *units)
    elif isinstance(told, list):
        assert data == b"".join(name + b"\0" for name in told)
    elif isinstance(told, int) and not isinstance(told, bool):  # of opendir
        assert data == struct.pack("<QII", told, 0, 0)
    else:
        assert data == (told if isinstance(told, bytes) else b"")


def told_by_pyfuse3(volume, watcher, handler, arguments):
    """(errno, what the handler returned)."""
    try:
        return 0, trio.run(getattr(FuseOperations(volume, watcher), handler), *arguments)
    except pyfuse3.FUSEError as error:
        return error.errno, None


def calls_of(volume):
    """What a volume was asked, but for the waiting; nobody takes privileges unless it is said."""
    calls = [call for call in volume.asked if call[0] not in ("ready", "relief")]
    return [call[:-1] if call[0] == "setattr" and call[-1] is False else call for call in calls]


@pytest.mark.parametrize("pressed", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        None,
        FsError(errno.ENOENT),
        FsError(errno.ESTALE),
        OutOfSpace("full"),
        ReadOnly("no"),
        Unrecoverable("gone"),
        MemberError("broken"),
        OSError(errno.EBADF, "low"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("handler", "arguments", "opcode", "body"), CASES, ids=[case[0] for case in CASES]
)
def test_same_calls_and_same_answers(handler, arguments, opcode, body, error, pressed):
    plain, carried = FakeVolume(error), FakeVolume(error)
    carried.pressed = pressed
    watchers = Noting(), Noting()
    number, told = told_by_pyfuse3(plain, watchers[0], handler, arguments)
    whole = message(opcode, BODIES[opcode] if body is None else body)
    found, data = ask(carried, whole, watchers[1])
    assert found == number
    assert watchers[0].noted == watchers[1].noted
    if ("ready",) in plain.asked and error is not None:
        assert not pressed or carried.asked[0] == ("relief",)
    else:
        assert calls_of(carried) == calls_of(plain)
    waited = [calls.asked.count((name,)) for calls, name in ((plain, "ready"), (carried, "relief"))]
    assert waited[0] == waited[1] or not pressed
    if number == 0:
        if handler == "lookup" and error is not None:  # missing
            assert told.st_ino == 0 and struct.unpack_from("<QQQ", data) == (0, 0, CACHE_S)
        else:
            check_reply(data, told)


def test_all_that_both_know_is_compared():
    assert {case[2] for case in CASES} == BODIES.keys() - {
        protocol.WRITE,  # behind pyfuse3 the kernel takes privileges away itself
        protocol.READDIRPLUS,  # below
        protocol.FALLOCATE,  # the others pyfuse3 doesn't know
        protocol.LSEEK,
        protocol.COPY_FILE_RANGE,
        protocol.COPY_FILE_RANGE_64,
        protocol.TMPFILE,
        protocol.STATX,
    }


# ---- listings ----


def entries_of_a_directory():
    found = [Entry(b".", 7, 0o40000, 1), Entry(b"..", 1, 0o40000, 2)]
    return found + [Entry(b"n" * (1 + n * 7 % 40), 10 + n, 0o100000, 3 + n) for n in range(20)]


class Directory:
    """Lists the entries above; notes references."""

    def __init__(self, fails_after=None):
        self.remembered = []
        self.fails_after = fails_after
        self.door = Door(Gate())

    def readdir(self, ino, after, limit):
        assert ino == 7 and limit > 0
        if self.fails_after is not None and after >= self.fails_after:
            raise Unrecoverable("gone")
        end = after + limit if self.fails_after is None else self.fails_after
        return [e for e in entries_of_a_directory() if after < e.cookie <= end][:limit]

    def getattr(self, ino):
        return TOLD

    def remember(self, ino):
        self.remembered.append(ino)


def taken_apart(data):
    """[(name, inode of the reply, inode of the entry, cookie, type)] of fuse_direntplus: entry 0,
    attr 40, ino 128, cookie 136, bytes of the name 144, type 148, name 152."""
    found, at = [], 0
    while at < len(data):
        ino, cookie, nbytes, kind = struct.unpack_from("<QQII", data, at + 128)
        name = data[at + 152 : at + 152 + nbytes]
        found.append((name, struct.unpack_from("<Q", data, at)[0], ino, cookie, kind))
        at += -(-(152 + nbytes) // 8) * 8
    assert at == len(data)
    return found


def listed_by_pyfuse3(monkeypatch, volume, after, room):
    """[(name, cookie, type)] that the handler got into so much room, and its errno."""
    left, sent = [room], []

    def reply(token, name, attributes, next_id):
        left[0] -= -(-(152 + len(name)) // 8) * 8
        if left[0] < 0:
            return False
        sent.append((bytes(name), next_id, attributes.st_mode >> 12))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    number, _ = told_by_pyfuse3(volume, Watcher(), "readdir", (7, after, None))
    return sent, number


@pytest.mark.parametrize("fails_after", [None, 0, 3, 9])
@pytest.mark.parametrize("after", [0, 1, 2, 5, 22, 10**9])
def test_same_listings(monkeypatch, after, fails_after):
    for room in (0, 100, 159, 160, 320, 1000, 1500, 4096, 2**32 - 1):
        plain, carried = Directory(fails_after), Directory(fails_after)
        sent, number = listed_by_pyfuse3(monkeypatch, plain, after, room)
        found, data = ask(carried, message(protocol.READDIRPLUS, io(after, room)))
        assert found == number and len(data) <= room
        apart = taken_apart(data)
        assert [(name, cookie, kind) for name, _, _, cookie, kind in apart] == sent
        assert carried.remembered == plain.remembered
        assert [told for name, told, *_ in apart if name not in (b".", b"..")] == [10] * len(
            carried.remembered
        )
        assert all(ino == (7, 1)[cookie - 1] for *_, ino, cookie, _ in apart if cookie < 3)
    assert ask(Directory(), message(protocol.READDIRPLUS, io(2**63, 4096)))[0] == errno.EINVAL


# ---- a true volume ----

LONG = b"n" * 256


def reply_of(volume, opcode, body, ino=1):
    answer = CarriedRequests(volume, Watcher(), IO_MAX).begin(message(opcode, body, ino=ino))
    assert isinstance(answer, tuple)
    return answer


def test_names_that_can_not_be(tmp_path):
    """As what no kernel sends: empty, too long, with a slash."""

    async def main():
        async with mounted(make_members(tmp_path)) as volume:
            number, data = reply_of(volume, protocol.MKDIR, struct.pack("<II", 0o755, 0) + b"d\0")
            assert number == 0
            ino = struct.unpack_from("<Q", data)[0]
            for name, wrong in ((b"", errno.EINVAL), (LONG, errno.ENAMETOOLONG), (b"a/b", 22)):
                for opcode, body in BODIES.items():
                    if b"name\0" not in body or opcode == protocol.TMPFILE:
                        continue
                    body = body.replace(b"name", name).replace(struct.pack("<Q", 9), bytes(8))
                    expected = errno.ESTALE if opcode == protocol.LINK else wrong
                    assert reply_of(volume, opcode, body) == (expected, b""), opcode
                for opcode, head in (
                    (protocol.RENAME, struct.pack("<Q", 1)),
                    (protocol.RENAME2, struct.pack("<QII", 1, 0, 0)),
                ):
                    for names in ((b"d", name), (name, b"d")):
                        body = head + b"%b\0%b\0" % names
                        assert reply_of(volume, opcode, body) == (wrong, b"")
                body = struct.pack("<Q", ino) + name + b"\0"
                assert reply_of(volume, protocol.LINK, body)[0] in (wrong, errno.EPERM)
            assert [entry.name for entry in volume.readdir(1, 2, 9)] == [b"d"]

    trio.run(main)


def test_the_life_of_a_file(tmp_path):
    async def main():
        async with mounted(make_members(tmp_path)) as volume:
            reply = reply_of(volume, protocol.CREATE, BODIES[protocol.CREATE])
            ino = struct.unpack_from("<Q", reply[1])[0]
            assert attr_of(reply[1][40:])[6] == 0o100644 & ~0o22  # of the umask
            assert volume.is_open(ino) and volume.known.references(ino) == 1
            assert reply_of(volume, protocol.LOOKUP, b"name\0")[1] == reply[1][:128]
            assert volume.known.references(ino) == 2
            for flags, number in ((2, errno.ENODATA), (1, 0), (1, errno.EEXIST), (2, 0)):
                body = struct.pack("<II", 5, flags) + b"user.a\0value"
                assert reply_of(volume, protocol.SETXATTR, body, ino) == (number, b"")
            before = volume.getattr(ino).mtime_ns
            number, _ = reply_of(volume, protocol.SETATTR, setattr_in(16 | 32 | 128 | 256), ino)
            told = volume.getattr(ino)
            assert number == 0 and before < told.atime_ns == told.mtime_ns < told.ctime_ns
            apart = taken_apart(reply_of(volume, protocol.READDIRPLUS, io(0, 4096))[1])
            assert [name for name, *_ in apart] == [b".", b"..", b"name"]
            assert volume.known.references(ino) == 3
            assert reply_of(volume, protocol.UNLINK, b"name\0") == (0, b"")
            number, data = reply_of(volume, protocol.LOOKUP, b"name\0")
            assert number == 0 and struct.unpack_from("<QQQ", data) == (0, 0, CACHE_S)

    trio.run(main)


def test_one_listing_asks_for_no_more_than_fits(monkeypatch):
    limits = []

    def readdir(ino, after, limit):
        limits.append(limit)
        return []

    for room in (0, 4096, 2**20):
        ask(SimpleNamespace(readdir=readdir), message(protocol.READDIRPLUS, io(0, room)))
    assert limits == [1, 27, fuse.LISTED_AT_ONCE]
