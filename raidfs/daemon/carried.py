"""Requests that the lane carries to Python without pyfuse3: read, decided by the volume, answered.

They are those that the lane would serve itself but can't at the moment (READ, WRITE), those that
wait (FSYNC), and those that pyfuse3 doesn't know (LSEEK, FALLOCATE, COPY_FILE_RANGE, TMPFILE,
STATX). Layouts are those of the kernel's include/uapi/linux/fuse.h, protocol 7.45.

 1. Whatever arrives and whatever happens, there is an answer: an errno or a reply, never neither.
 2. Nothing is read beyond the bytes of the request, and no length or offset is believed before it
    was compared with them and with what the protocol allows.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from raidfs.daemon.fuse import CACHE_S, Watcher, errno_of, may_lose_privileges
from raidfs.errors import FsError
from raidfs.fs.attributes import Attributes, Caller
from raidfs.fs.file import Buffer
from raidfs.fs.volume import Volume

log = logging.getLogger("raidfs.fuse")

READ, WRITE, FSYNC, FSYNCDIR = 15, 16, 20, 30
FALLOCATE, LSEEK, COPY_FILE_RANGE, TMPFILE, STATX, COPY_FILE_RANGE_64 = 43, 46, 47, 51, 52, 53
NAMES = {
    READ: "read",
    WRITE: "write",
    FSYNC: "fsync",
    FSYNCDIR: "fsyncdir",
    FALLOCATE: "fallocate",
    LSEEK: "lseek",
    COPY_FILE_RANGE: "copy_file_range",
    TMPFILE: "tmpfile",
    STATX: "statx",
    COPY_FILE_RANGE_64: "copy_file_range",
}

OFFSET_MAX = 2**63 - 1
NOTHING_FOUND = OFFSET_MAX  # no byte lies there
SEEK_TRIES = 8  # while a mapping is being written to
COPY_BYTES_MAX = 0x7FFF_F000  # of one copy_file_range, as of one read(2): the reply has 32 bits
WRITE_KILL_PRIVILEGES = 1 << 2
OPEN_DIRECT_IO, OPEN_KEEP_CACHE, OPEN_PARALLEL_DIRECT_WRITES = 1 << 0, 1 << 1, 1 << 6
STATX_BASIC, STATX_BTIME = 0x7FF, 0x800

HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extra, -
IO_IN = struct.Struct("=QQIIQII")  # fh, offset, size, flags of read or write, owner, flags, -
FSYNC_IN = struct.Struct("=QII")  # fh, flags, -
LSEEK_IN = struct.Struct("=QQII")  # fh, offset, whence, -
FALLOCATE_IN = struct.Struct("=QQQII")  # fh, offset, length, mode, -
COPY_IN = struct.Struct("=QQQQQQQ")  # fh, offset, nodeid to, fh to, offset to, length, flags
CREATE_IN = struct.Struct("=IIII")  # flags, mode, umask, flags of the open
STATX_IN = struct.Struct("=IIQII")  # flags of getattr, -, fh, flags, mask
WRITE_OUT = struct.Struct("=II")
LSEEK_OUT = struct.Struct("=Q")
COPY_64_OUT = struct.Struct("=Q")
ENTRY_OUT = struct.Struct("=QQQQII")  # nodeid, generation, timeouts: s, s, ns, ns; attr follows
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
OPEN_OUT = struct.Struct("=QII")
STATX_OUT = struct.Struct("=QIIQQ")  # timeout s, ns, flags, -, -; statx follows
SX = struct.Struct("=IIQIIIHHQQQQqIiqIiqIiqIiIIII112x")
assert (HEADER.size, IO_IN.size, ENTRY_OUT.size + ATTR.size, SX.size) == (40, 40, 128, 256)

Answer = tuple[int, Buffer]  # errno (0: none), reply


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its header read. `body` is what follows the header, in memory of the lane: good
    until the reply."""

    opcode: int
    ino: int
    caller: Caller
    body: memoryview

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        """The fixed part of the body."""
        if len(self.body) < layout.size:
            raise FsError(errno.EINVAL, "a request of the kernel is cut short")
        return layout.unpack_from(self.body)


def read_request(message: memoryview) -> Request:
    """FsError(EINVAL) for what is no request."""
    if len(message) < HEADER.size:
        raise FsError(errno.EINVAL, "a request of the kernel is cut short")
    length, opcode, _, ino, uid, gid, pid, extensions, _ = HEADER.unpack_from(message)
    end = length - extensions * 8
    if length != len(message) or end < HEADER.size:
        raise FsError(errno.EINVAL, "a request of the kernel has an impossible length")
    return Request(opcode, ino, Caller(uid, gid, pid), message[HEADER.size : end])


class CarriedRequests:
    """Answers to carried requests of one volume."""

    def __init__(
        self, volume: Volume, watcher: Watcher, io_bytes_max: int, *, owner_uid: int | None = None
    ) -> None:
        """`io_bytes_max`: of one READ or WRITE. `owner_uid`: only this user and root may open
        (allow_root)."""
        self._volume = volume
        self._watcher = watcher
        self._io_bytes_max = io_bytes_max
        self._owner_uid = owner_uid
        self._waiting: dict[int, Callable[[Request], Awaitable[Answer]]] = {
            READ: self._read,
            WRITE: self._write,
            FSYNC: self._fsync,
            FSYNCDIR: self._fsync,
            FALLOCATE: self._fallocate,
            LSEEK: self._lseek,
            COPY_FILE_RANGE: self._copy,
            COPY_FILE_RANGE_64: self._copy,
            TMPFILE: self._tmpfile,
            STATX: self._statx,
        }

    async def answer(self, message: memoryview) -> Answer:
        """Promise 1."""
        name = "a request"
        try:
            request = read_request(message)
            name = NAMES.get(request.opcode, name)
            handler = self._waiting.get(request.opcode)
            if handler is None:
                return errno.ENOSYS, b""
            return await handler(request)
        except Exception as error:
            return errno_of(name, error), b""

    # -- content ----------------------------------------------------------------------------------

    def _range(self, request: Request) -> tuple[int, int, int]:
        """(offset, nbytes, flags) of a READ or WRITE."""
        _, offset, nbytes, flags, _, _, _ = request.fields(IO_IN)
        if nbytes > self._io_bytes_max or offset > OFFSET_MAX - nbytes:
            raise FsError(errno.EINVAL, "a request of the kernel is larger than agreed")
        return offset, nbytes, flags

    async def _read(self, request: Request) -> Answer:
        offset, nbytes, _ = self._range(request)
        return 0, await self._volume.read(request.ino, offset, nbytes)

    async def _write(self, request: Request) -> Answer:
        offset, nbytes, flags = self._range(request)
        data = request.body[IO_IN.size :]
        if len(data) != nbytes:
            raise FsError(errno.EINVAL, "a WRITE of the kernel has another length than it says")
        kill = bool(flags & WRITE_KILL_PRIVILEGES)
        privileged = self._privileged(request.ino)
        done = await self._volume.write(request.ino, offset, data, kill_privileges=kill)
        if privileged:
            await self._watcher.privileges_lost(request.ino)
        return 0, WRITE_OUT.pack(done, 0)

    def _privileged(self, ino: int) -> bool:
        return may_lose_privileges(self._volume.getattr(ino))

    async def _fsync(self, request: Request) -> Answer:
        request.fields(FSYNC_IN)
        await self._volume.fsync(request.ino)
        return 0, b""

    async def _fallocate(self, request: Request) -> Answer:
        _, offset, nbytes, mode, _ = request.fields(FALLOCATE_IN)
        _check_range(offset, nbytes)
        kill = request.caller.uid != 0
        privileged = self._privileged(request.ino)
        await self._volume.fallocate(request.ino, offset, nbytes, mode, kill_privileges=kill)
        if privileged:
            await self._watcher.privileges_lost(request.ino)
        return 0, b""

    async def _lseek(self, request: Request) -> Answer:
        _, offset, whence, _ = request.fields(LSEEK_IN)
        if offset > OFFSET_MAX:
            raise FsError(errno.ENXIO)
        await self._watcher.before_seek(request.ino)
        for _ in range(SEEK_TRIES):
            found, hole_end = await self._seek(request.ino, offset, whence)
            hole = offset if whence == os.SEEK_DATA else found
            if hole >= hole_end:
                break
            # What we take for a hole may be dirty in the kernel, through a mapping.
            if not await self._watcher.write_out(request.ino, hole, hole_end - hole):
                break
            if await self._seek(request.ino, offset, whence) == (found, hole_end):
                break
        if found == NOTHING_FOUND:
            raise FsError(errno.ENXIO)
        return 0, LSEEK_OUT.pack(found)

    async def _seek(self, ino: int, offset: int, whence: int) -> tuple[int, int]:
        """(what was found, end of the hole that this answer speaks of)."""
        size = self._volume.getattr(ino).size
        found = await self._seek_or_nothing(ino, offset, whence)
        if whence != os.SEEK_HOLE or found >= size:
            return found, min(found, size)
        return found, min(await self._seek_or_nothing(ino, found, os.SEEK_DATA), size)

    async def _seek_or_nothing(self, ino: int, offset: int, whence: int) -> int:
        try:
            return await self._volume.seek(ino, offset, whence)
        except FsError as error:
            if error.errno != errno.ENXIO:
                raise
            return NOTHING_FOUND

    async def _copy(self, request: Request) -> Answer:
        _, offset, ino_to, _, offset_to, nbytes, flags = request.fields(COPY_IN)
        if flags:
            raise FsError(errno.EINVAL, "copy_file_range has no flags")
        nbytes = min(nbytes, COPY_BYTES_MAX)
        _check_range(offset, nbytes)
        _check_range(offset_to, nbytes)
        kill = request.caller.uid != 0
        privileged = self._privileged(ino_to)
        done = await self._volume.copy_range(
            request.ino, offset, ino_to, offset_to, nbytes, kill_privileges=kill
        )
        if privileged:
            await self._watcher.privileges_lost(ino_to)
        if request.opcode == COPY_FILE_RANGE_64:
            return 0, COPY_64_OUT.pack(done)
        return 0, WRITE_OUT.pack(done, 0)

    # -- names and attributes ---------------------------------------------------------------------

    def _let_in(self, caller: Caller) -> None:
        """allow_root: the kernel lets everybody in, and whoever is neither is refused here."""
        if self._owner_uid is not None and caller.uid not in (0, self._owner_uid):
            raise FsError(errno.EACCES)

    async def _tmpfile(self, request: Request) -> Answer:
        flags, mode, umask, _ = request.fields(CREATE_IN)
        self._let_in(request.caller)
        asking = request.caller
        caller = Caller(asking.uid, asking.gid, asking.pid, umask)
        await self._volume.ready()
        told = self._volume.tmpfile(request.ino, mode, flags, caller)
        self._watcher.opened(told.ino, flags)
        return 0, entry_out(told) + OPEN_OUT.pack(told.ino, open_flags(flags), 0)

    async def _statx(self, request: Request) -> Answer:
        request.fields(STATX_IN)
        self._let_in(request.caller)
        return 0, statx_out(self._volume.getattr(request.ino))


def _check_range(offset: int, nbytes: int) -> None:
    if offset > OFFSET_MAX or nbytes > OFFSET_MAX - offset:
        raise FsError(errno.EFBIG)


def open_flags(flags: int) -> int:
    """What the kernel is told of a file just opened with `flags`."""
    if flags & os.O_DIRECT:
        return OPEN_KEEP_CACHE | OPEN_DIRECT_IO | OPEN_PARALLEL_DIRECT_WRITES
    return OPEN_KEEP_CACHE


def _seconds(time_ns: int) -> tuple[int, int]:
    return time_ns // 10**9, time_ns % 10**9


def entry_out(told: Attributes) -> bytes:
    """struct fuse_entry_out: an inode that the kernel refers to from now on."""
    timeout_s = int(CACHE_S)
    (atime, atime_ns), (mtime, mtime_ns), (ctime, ctime_ns) = (
        _seconds(time) for time in (told.atime_ns, told.mtime_ns, told.ctime_ns)
    )
    mask = 2**64 - 1  # times before 1970 are negative numbers in unsigned fields
    return ENTRY_OUT.pack(told.ino, told.generation, timeout_s, timeout_s, 0, 0) + ATTR.pack(
        told.ino,
        told.size,
        told.blocks,
        atime & mask,
        mtime & mask,
        ctime & mask,
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


def statx_out(told: Attributes) -> bytes:
    """struct fuse_statx_out: all that stat(2) tells, and the time of birth."""
    times: list[int] = []
    for time_ns in (told.atime_ns, told.btime_ns, told.ctime_ns, told.mtime_ns):
        times += [*_seconds(time_ns), 0]
    return STATX_OUT.pack(int(CACHE_S), 0, 0, 0, 0) + SX.pack(
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
