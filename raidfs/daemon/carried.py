"""Requests that the lane carries to Python without pyfuse3: read, decided by the volume, answered.

    LaneSession --> CarriedRequests --> CarriedNames       (daemon/carried_names.py)
                                        CarriedAttributes  (daemon/carried_attributes.py)
                                        CarriedContent     (daemon/carried_content.py)

They are those that the lane would serve itself but can't at the moment, those that pyfuse3 doesn't
know (LSEEK, FALLOCATE, COPY_FILE_RANGE, TMPFILE, STATX), and the frequent ones, since this way
costs a fraction of pyfuse3's. What is left to pyfuse3, daemon/fuse.py answers, and with `-o nolane`
everything: both ways tell the same, by the same calls of the volume.

 1. Whatever arrives and whatever happens, there is an answer: an errno or a reply, never neither.
 2. What doesn't have to wait is answered at once, in one piece, without a task of its own.
 3. A change waits while the metadata has to be committed first, as in daemon/fuse.py.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Coroutine

from raidfs.daemon.carried_attributes import CarriedAttributes
from raidfs.daemon.carried_content import CarriedContent
from raidfs.daemon.carried_names import CarriedNames
from raidfs.daemon.fuse import Watcher, errno_of
from raidfs.daemon.protocol import (
    COPY_FILE_RANGE,
    COPY_FILE_RANGE_64,
    CREATE,
    FALLOCATE,
    FSYNC,
    FSYNCDIR,
    LINK,
    LSEEK,
    MKDIR,
    MKNOD,
    NAMES,
    READ,
    READDIRPLUS,
    REMOVEXATTR,
    RENAME,
    RENAME2,
    RMDIR,
    SETATTR,
    SETXATTR,
    SYMLINK,
    TMPFILE,
    UNLINK,
    WRITE,
    Request,
)
from raidfs.errors import FsError
from raidfs.fs.file import Buffer
from raidfs.fs.volume import Volume

Answer = tuple[int, Buffer]  # errno (0: none), reply
Quick = Callable[[Request], bytes | None]  # None: the one that waits has to do it
Waiting = Callable[[Request], Awaitable[Buffer]]

OPCODES = frozenset(NAMES)
CHANGING = frozenset(
    {
        SETATTR,
        SYMLINK,
        MKNOD,
        MKDIR,
        UNLINK,
        RMDIR,
        RENAME,
        RENAME2,
        LINK,
        CREATE,
        SETXATTR,
        REMOVEXATTR,
        TMPFILE,
    }
)
# Whoever was let in to open a file may do these with it, and pass it on.
OF_OPEN_FILES = frozenset(
    {
        READ,
        WRITE,
        FSYNC,
        FSYNCDIR,
        READDIRPLUS,
        FALLOCATE,
        LSEEK,
        COPY_FILE_RANGE,
        COPY_FILE_RANGE_64,
    }
)


class CarriedRequests:
    """Answers to carried requests of one volume."""

    def __init__(
        self, volume: Volume, watcher: Watcher, io_bytes_max: int, *, owner_uid: int | None = None
    ) -> None:
        """`io_bytes_max`: of one READ, WRITE or listing. `owner_uid`: only this user and root may
        ask (allow_root)."""
        self._volume = volume
        self._owner_uid = owner_uid
        names = CarriedNames(volume, watcher, io_bytes_max)
        attributes = CarriedAttributes(volume)
        content = CarriedContent(volume, watcher, io_bytes_max)
        self._quick: dict[int, Quick] = {**names.quick, **attributes.quick, **content.quick}
        self._waiting: dict[int, Waiting] = {**attributes.waiting, **content.waiting}
        assert self._quick.keys() | self._waiting.keys() == OPCODES

    def begin(self, message: memoryview) -> Answer | Coroutine[None, None, Answer]:
        """Promises 1 and 2: the answer, or what is to be awaited for it."""
        opcode = -1
        try:
            request = Request(message)
            opcode = request.opcode
            if self._owner_uid is not None and opcode not in OF_OPEN_FILES:
                self._let_in(request.uid)
            quick = self._quick.get(opcode)
            if quick is None:
                return self._wait(request) if opcode in self._waiting else (errno.ENOSYS, b"")
            request.body = bytes(request.body)
            if opcode in CHANGING and not self._volume.is_ready():
                return self._wait(request, changing=True)
            reply = quick(request)
            return (0, reply) if reply is not None else self._wait(request)
        except Exception as error:
            return errno_of(NAMES.get(opcode, "a request"), error), b""

    async def _wait(self, request: Request, *, changing: bool = False) -> Answer:
        opcode = request.opcode
        try:
            reply: Buffer | None = None
            if changing:
                await self._volume.relief()
                reply = self._quick[opcode](request)
            if reply is None:
                reply = await self._waiting[opcode](request)
            return 0, reply
        except Exception as error:
            return errno_of(NAMES[opcode], error), b""

    def _let_in(self, uid: int) -> None:
        """allow_root: the kernel lets everybody in, and whoever is neither is refused here."""
        if uid not in (0, self._owner_uid):
            raise FsError(errno.EACCES)
