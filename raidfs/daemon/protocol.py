"""The FUSE protocol as far as carried requests speak it: layouts, and what is read from requests.

Layouts are those of the kernel's include/uapi/linux/fuse.h, protocol 7.45.

 1. Nothing is read beyond the bytes of a request; one that is cut short, overlong or says of itself
    what isn't so is an FsError(EINVAL).
 2. What a reply says of an inode is what daemon/fuse.py would have it say.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct

from raidfs.daemon.fuse import CACHE_S, FLEETING_INO
from raidfs.errors import FsError
from raidfs.fs.attributes import Attributes, Caller, Entry, Usage

LOOKUP, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS = 10, 11, 12, 13, 14, 15, 16, 17
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, OPENDIR = 20, 21, 22, 23, 24, 27
FSYNCDIR, ACCESS, CREATE, FALLOCATE, READDIRPLUS, RENAME2 = 30, 34, 35, 43, 44, 45
LSEEK, COPY_FILE_RANGE, TMPFILE, STATX, COPY_FILE_RANGE_64 = 46, 47, 51, 52, 53
NAMES = {
    LOOKUP: "lookup",
    GETATTR: "getattr",
    SETATTR: "setattr",
    READLINK: "readlink",
    SYMLINK: "symlink",
    MKNOD: "mknod",
    MKDIR: "mkdir",
    UNLINK: "unlink",
    RMDIR: "rmdir",
    RENAME: "rename",
    LINK: "link",
    OPEN: "open",
    READ: "read",
    WRITE: "write",
    STATFS: "statfs",
    FSYNC: "fsync",
    SETXATTR: "setxattr",
    GETXATTR: "getxattr",
    LISTXATTR: "listxattr",
    REMOVEXATTR: "removexattr",
    OPENDIR: "opendir",
    FSYNCDIR: "fsyncdir",
    ACCESS: "access",
    CREATE: "create",
    FALLOCATE: "fallocate",
    READDIRPLUS: "readdir",
    RENAME2: "rename",
    LSEEK: "lseek",
    COPY_FILE_RANGE: "copy_file_range",
    TMPFILE: "tmpfile",
    STATX: "statx",
    COPY_FILE_RANGE_64: "copy_file_range",
}

OFFSET_MAX = 2**63 - 1
SECOND_NS = 10**9
OPEN_KEEP_CACHE = 1 << 1
STATX_BASIC, STATX_BTIME = 0x7FF, 0x800

HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extra, -
IO_IN = struct.Struct("=QQIIQII")  # fh, offset, size, flags of read or write, owner, flags, -
FSYNC_IN = struct.Struct("=QII")  # fh, flags, -
LSEEK_IN = struct.Struct("=QQII")  # fh, offset, whence, -
FALLOCATE_IN = struct.Struct("=QQQII")  # fh, offset, length, mode, -
COPY_IN = struct.Struct("=QQQQQQQ")  # fh, offset, nodeid to, fh to, offset to, length, flags
CREATE_IN = struct.Struct("=IIII")  # flags, mode, umask, flags of the open
MKNOD_IN = struct.Struct("=IIII")  # mode, rdev, umask, -
MKDIR_IN = struct.Struct("=II")  # mode, umask
RENAME_IN = struct.Struct("=Q")  # directory to
RENAME2_IN = struct.Struct("=QII")  # directory to, flags, -
LINK_IN = struct.Struct("=Q")  # nodeid of what gets a name
OPEN_IN = struct.Struct("=II")  # flags, flags of the open
STATX_IN = struct.Struct("=IIQII")  # flags of getattr, -, fh, flags, mask
GETATTR_IN = struct.Struct("=IIQ")  # flags, -, fh
ACCESS_IN = struct.Struct("=II")  # mask, -
# valid, -, fh, size, owner, atime, mtime, ctime, their ns, mode, -, uid, gid, -
SETATTR_IN = struct.Struct("=IIQQQqqqIIIIIIII")
SETXATTR_IN = struct.Struct("=II")  # size, flags
GETXATTR_IN = struct.Struct("=II")  # size, -
WRITE_OUT = struct.Struct("=II")
LSEEK_OUT = struct.Struct("=Q")
COPY_64_OUT = struct.Struct("=Q")
GETXATTR_OUT = struct.Struct("=II")
# nodeid, generation, timeouts: s, s, ns, ns; then the attributes: ino, size, blocks, three times
# (s, s, s, ns, ns, ns), mode, nlink, uid, gid, rdev, blksize, flags
ENTRY_OUT = struct.Struct("=QQQQIIQQQqqqIIIIIIIIII")
ATTR_OUT = struct.Struct("=QIIQQQqqqIIIIIIIIII")  # timeout s, ns, -; attributes
OPEN_OUT = struct.Struct("=QII")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
DIRENT = struct.Struct("=QQII")  # ino, cookie, bytes of the name, type
STATX_OUT = struct.Struct("=QIIQQ")  # timeout s, ns, flags, -, -; statx follows
SX = struct.Struct("=IIQIIIHHQQQQqIiqIiqIiqIiIIII112x")
ENTRY_BYTES = ENTRY_OUT.size + DIRENT.size  # of a listing, without the name
assert (HEADER.size, IO_IN.size, SETATTR_IN.size, ENTRY_OUT.size) == (40, 40, 88, 128)
assert (ATTR_OUT.size, STATFS_OUT.size, SX.size) == (104, 80, 256)

TIMEOUT_S = int(CACHE_S)
NO_ENTRY = ENTRY_OUT.pack(0, 0, TIMEOUT_S, *[0] * 19)  # that the kernel may remember

caller_of = functools.lru_cache(maxsize=256)(Caller)  # one process asks many times


class Request:
    """One request, its header read. `body` is what follows the header: bytes, or memory of the lane
    that is good until the reply."""

    __slots__ = ("body", "gid", "ino", "opcode", "pid", "uid")

    def __init__(self, message: memoryview) -> None:
        """FsError(EINVAL) for what is no request."""
        if len(message) < HEADER.size:
            raise malformed()
        length, self.opcode, _, self.ino, self.uid, self.gid, self.pid, extensions, _ = (
            HEADER.unpack_from(message)
        )
        end = length - extensions * 8
        if length != len(message) or end < HEADER.size:
            raise malformed()
        self.body: memoryview | bytes = message[HEADER.size : end]

    def caller(self, umask: int = 0) -> Caller:
        """Who asks."""
        return caller_of(self.uid, self.gid, self.pid, umask)

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        """The fixed part of the body."""
        if len(self.body) < layout.size:
            raise malformed()
        return layout.unpack_from(self.body)

    def strings(self, after: int, count: int) -> list[bytes]:
        """The strings, each with a zero behind it, that are the body from that offset on."""
        found = bytes(self.body[after:]).split(b"\0")
        if len(found) != count + 1 or found.pop():
            raise malformed()
        return found

    def name(self, after: int = 0) -> bytes:
        """The only string from that offset on."""
        body = self.body
        assert isinstance(body, bytes)
        end = len(body) - 1
        if end < after or body.find(b"\0", after) != end:
            raise malformed()
        return body[after:end]


def malformed() -> FsError:
    """A request that can't be from a kernel that keeps to the protocol."""
    return FsError(errno.EINVAL, "a request of the kernel is cut short, overlong or impossible")


def open_out(ino: int) -> bytes:
    """struct fuse_open_out of a file; what O_DIRECT asks for, the lane adds."""
    return OPEN_OUT.pack(ino, OPEN_KEEP_CACHE, 0)


def _attributes(told: Attributes) -> tuple[int, ...]:
    """struct fuse_attr. Times before 1970 have negative seconds, where the kernel takes unsigned
    ones as such."""
    atime, atime_ns = divmod(told.atime_ns, SECOND_NS)
    mtime, mtime_ns = divmod(told.mtime_ns, SECOND_NS)
    ctime, ctime_ns = divmod(told.ctime_ns, SECOND_NS)
    return (
        told.ino,
        told.size,
        told.blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        told.mode,
        told.nlink,
        told.uid,
        told.gid,
        told.rdev & 0xFFFFFFFF,
        told.blksize,
        0,
    )


def entry_out(told: Attributes, parent: int = 0) -> bytes:
    """struct fuse_entry_out: an inode that the kernel refers to from now on, as what stands in
    `parent`."""
    name_s, attributes_s = _timeout(parent), _timeout(told.ino)
    return ENTRY_OUT.pack(told.ino, told.generation, name_s, attributes_s, 0, 0, *_attributes(told))


def _timeout(ino: int) -> int:
    """For how long the kernel may keep an inode's attributes, or the names in it."""
    return 0 if ino == FLEETING_INO else TIMEOUT_S


def attr_out(told: Attributes) -> bytes:
    """struct fuse_attr_out."""
    return ATTR_OUT.pack(_timeout(told.ino), 0, 0, *_attributes(told))


def dirent_bytes(name: bytes) -> int:
    """Of an entry in a listing: padded to 8."""
    return ENTRY_BYTES + len(name) + 7 & ~7


def dirent_out(entry: Entry, told: Attributes | None, parent: int = 0) -> bytes:
    """struct fuse_direntplus. None: `.` or `..`, of which the kernel wants number and type."""
    name, mode = entry.name, stat.S_IFDIR if told is None else told.mode
    head = bytes(ENTRY_OUT.size) if told is None else entry_out(told, parent)
    made = head + DIRENT.pack(entry.ino, entry.cookie, len(name), mode >> 12) + name
    return made.ljust(dirent_bytes(name), b"\0")


def statfs_out(usage: Usage) -> bytes:
    """struct fuse_statfs_out."""
    unit = usage.unit_bytes
    free, files_free = usage.free, usage.files_free
    return STATFS_OUT.pack(
        usage.total, free, free, usage.files, files_free, unit, usage.name_bytes_max, unit, 0
    )


def statx_out(told: Attributes) -> bytes:
    """struct fuse_statx_out: all that stat(2) tells, and the time of birth."""
    times: list[int] = []
    for time_ns in (told.atime_ns, told.btime_ns, told.ctime_ns, told.mtime_ns):
        times += [*divmod(time_ns, SECOND_NS), 0]
    return STATX_OUT.pack(_timeout(told.ino), 0, 0, 0, 0) + SX.pack(
        STATX_BASIC | STATX_BTIME,
        told.blksize,
        0,
        told.nlink,
        told.uid,
        told.gid,
        told.mode,
        0,
        told.ino,
        told.size,
        told.blocks,
        0,
        *times,
        os.major(told.rdev),
        os.minor(told.rdev),
        0,
        0,
    )
