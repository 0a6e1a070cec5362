"""Carried requests for the content of files: opened, read, written, synced, holes, copies.

READ and WRITE come here when the lane can't serve them at the moment.

 1. No length or offset is believed before it was compared with the bytes of the request and with
    what the protocol allows.
 2. A file that loses setuid or setgid by what another user does to its content has lost it in the
    kernel's cache too when that is answered.
"""

from __future__ import annotations

import errno
import os

from raidfs.daemon.fuse import Watcher, may_lose_privileges
from raidfs.daemon.protocol import (
    COPY_64_OUT,
    COPY_FILE_RANGE,
    COPY_FILE_RANGE_64,
    COPY_IN,
    CREATE_IN,
    FALLOCATE,
    FALLOCATE_IN,
    FSYNC,
    FSYNC_IN,
    FSYNCDIR,
    IO_IN,
    LSEEK,
    LSEEK_IN,
    LSEEK_OUT,
    OFFSET_MAX,
    OPEN,
    OPEN_IN,
    READ,
    TMPFILE,
    WRITE,
    WRITE_OUT,
    Request,
    entry_out,
    open_out,
)
from raidfs.errors import FsError
from raidfs.fs.file import Buffer
from raidfs.fs.volume import Volume

NOTHING_FOUND = OFFSET_MAX  # no byte lies there
SEEK_TRIES = 8  # while a mapping is being written to
COPY_BYTES_MAX = 0x7FFF_F000  # of one copy_file_range, as of one read(2): the reply has 32 bits
WRITE_KILL_PRIVILEGES = 1 << 2
OPEN_KILL_PRIVILEGES = 1 << 0


class CarriedContent:
    """See the module."""

    def __init__(self, volume: Volume, watcher: Watcher, io_bytes_max: int) -> None:
        self._volume = volume
        self._watcher = watcher
        self._io_bytes_max = io_bytes_max
        self.quick = {OPEN: self._open, TMPFILE: self._tmpfile}
        self.waiting = {
            OPEN: self._open_emptied,
            READ: self._read,
            WRITE: self._write,
            FSYNC: self._fsync,
            FSYNCDIR: self._fsync,
            FALLOCATE: self._fallocate,
            LSEEK: self._lseek,
            COPY_FILE_RANGE: self._copy,
            COPY_FILE_RANGE_64: self._copy,
        }

    # -- open -------------------------------------------------------------------------------------

    def _open(self, request: Request) -> bytes | None:
        """None: it takes privileges from the file."""
        flags, open_flags = request.fields(OPEN_IN)
        kill = bool(flags & os.O_TRUNC) and self._kills(request, open_flags, OPEN_KILL_PRIVILEGES)
        if kill and self._privileged(request.ino):
            return None
        self._volume.open(request.ino, flags, kill_privileges=kill)
        self._watcher.opened(request.ino, flags)
        return open_out(request.ino)

    async def _open_emptied(self, request: Request) -> bytes:
        flags, _ = request.fields(OPEN_IN)
        self._volume.open(request.ino, flags, kill_privileges=True)
        self._watcher.opened(request.ino, flags)
        await self._watcher.privileges_lost(request.ino)
        return open_out(request.ino)

    def _tmpfile(self, request: Request) -> bytes:
        flags, mode, umask, _ = request.fields(CREATE_IN)
        told = self._volume.tmpfile(request.ino, mode, flags, request.caller(umask))
        self._watcher.opened(told.ino, flags)
        return entry_out(told) + open_out(told.ino)

    @staticmethod
    def _kills(request: Request, flags: int, flag: int) -> bool:
        """The one who asks makes setuid and setgid go: of root the kernel knows and says so, of
        others an older one doesn't say it."""
        return request.uid != 0 or bool(flags & flag)

    def _privileged(self, ino: int) -> bool:
        return may_lose_privileges(self._volume.getattr(ino))

    # -- read and write ---------------------------------------------------------------------------

    def _range(self, request: Request) -> tuple[int, int, int]:
        """(offset, nbytes, flags) of a READ or WRITE."""
        _, offset, nbytes, flags, _, _, _ = request.fields(IO_IN)
        if nbytes > self._io_bytes_max or offset > OFFSET_MAX - nbytes:
            raise FsError(errno.EINVAL, "a request of the kernel is larger than agreed")
        return offset, nbytes, flags

    async def _read(self, request: Request) -> Buffer:
        offset, nbytes, _ = self._range(request)
        return await self._volume.read(request.ino, offset, nbytes)

    async def _write(self, request: Request) -> bytes:
        offset, nbytes, flags = self._range(request)
        data = request.body[IO_IN.size :]
        if len(data) != nbytes:
            raise FsError(errno.EINVAL, "a WRITE of the kernel has another length than it says")
        kill = bool(flags & WRITE_KILL_PRIVILEGES)
        privileged = self._privileged(request.ino)
        done = await self._volume.write(request.ino, offset, data, kill_privileges=kill)
        if privileged:
            await self._watcher.privileges_lost(request.ino)
        return WRITE_OUT.pack(done, 0)

    async def _fsync(self, request: Request) -> bytes:
        request.fields(FSYNC_IN)
        await self._volume.fsync(request.ino)
        return b""

    # -- holes and copies -------------------------------------------------------------------------

    async def _fallocate(self, request: Request) -> bytes:
        _, offset, nbytes, mode, _ = request.fields(FALLOCATE_IN)
        _check_range(offset, nbytes)
        kill = request.uid != 0
        privileged = self._privileged(request.ino)
        await self._volume.fallocate(request.ino, offset, nbytes, mode, kill_privileges=kill)
        if privileged:
            await self._watcher.privileges_lost(request.ino)
        return b""

    async def _lseek(self, request: Request) -> bytes:
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
        return LSEEK_OUT.pack(found)

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

    async def _copy(self, request: Request) -> bytes:
        _, offset, ino_to, _, offset_to, nbytes, flags = request.fields(COPY_IN)
        if flags:
            raise FsError(errno.EINVAL, "copy_file_range has no flags")
        nbytes = min(nbytes, COPY_BYTES_MAX)
        _check_range(offset, nbytes)
        _check_range(offset_to, nbytes)
        kill = request.uid != 0
        privileged = self._privileged(ino_to)
        done = await self._volume.copy_range(
            request.ino, offset, ino_to, offset_to, nbytes, kill_privileges=kill
        )
        if privileged:
            await self._watcher.privileges_lost(ino_to)
        if request.opcode == COPY_FILE_RANGE_64:
            return COPY_64_OUT.pack(done)
        return WRITE_OUT.pack(done, 0)


def _check_range(offset: int, nbytes: int) -> None:
    if offset > OFFSET_MAX or nbytes > OFFSET_MAX - offset:
        raise FsError(errno.EFBIG)
