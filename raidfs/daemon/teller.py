"""Tells the kernel what it must not go by any longer, of what it was told before (fs/audience.py).

One notification at a time goes to the device, in a thread: the kernel is through with it only when
pages that are being read or written out have been, for which requests must be answered meanwhile.

 1. What is said to be outdated is passed on in that order, soon; repeated, it is passed on once.
 2. All names at once are outdated by one notification where the kernel knows that (Linux 6.16); an
    older one is told of the names that each directory it refers to has now.
 3. Without a mount nobody is told, and nobody waits.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import trio

from raidfs.errors import RaidfsError
from raidfs.fs.audience import Audience, Name
from raidfs.fs.volume import Volume
from raidfs.store.meta import ROOT_INO

log = logging.getLogger("raidfs.teller")

NOTIFY_INODE, NOTIFY_ENTRY, NOTIFY_EPOCH = 2, 3, 8
HEADER = struct.Struct("=IiQ")  # length, code, 0
INODE = struct.Struct("=IiQQqq")  # header, inode, offset, length
ENTRY = struct.Struct("=IiQQII")  # header, directory, bytes of the name, flags; the name and a zero
AT_ONCE = 64  # before others of the thread's limit get their turn
LISTED_AT_ONCE = 512
# The kernel knows nothing of it, or is no longer there.
HARMLESS = frozenset(
    {0, errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESHUTDOWN, errno.ENOTCONN, errno.EBADF}
)


def inode_notice(ino: int, offset: int = 0, nbytes: int = 0) -> bytes:
    """Attributes, and content from `offset` on (0 bytes: to the end; offset -1: none)."""
    return INODE.pack(INODE.size, NOTIFY_INODE, 0, ino, offset, nbytes)


def entry_notice(directory: int, name: bytes) -> bytes:
    """Where a name leads."""
    head = ENTRY.pack(ENTRY.size + len(name) + 1, NOTIFY_ENTRY, 0, directory, len(name), 0)
    return head + name + b"\0"


EPOCH_NOTICE = HEADER.pack(HEADER.size, NOTIFY_EPOCH, 0)


class Teller(Audience):
    """Of one mount. `send` hands a notification to the kernel and returns its errno."""

    def __init__(
        self, volume: Volume, send: Callable[[bytes], int], *, abandons: bool = False
    ) -> None:
        """`abandons`: when `run` is cancelled, a thread may be left waiting for the kernel."""
        self._volume = volume
        self._send = send
        self._abandons = abandons
        self._limiter = trio.CapacityLimiter(1)
        self._notices: dict[bytes, None] = {}  # in order
        self._asked = self._done = 0
        self._wanted = trio.Event()
        self._progress = trio.Event()
        self._running = False

    def outdated(self, inos: Collection[int], names: Collection[Name] | None = ()) -> None:
        """See Audience."""
        for ino in inos:
            self._notices[inode_notice(ino)] = None
        if names is None:
            self._notices[EPOCH_NOTICE] = None
        for directory, name in names or ():
            self._notices[entry_notice(directory, name)] = None
        self._asked += 1
        self._wanted.set()

    async def told(self) -> None:
        """See Audience."""
        asked = self._asked
        while self._running and self._done < asked:
            await self._progress.wait()

    async def run(self, counted: Callable[[], AbstractContextManager[None]]) -> None:
        """Until cancelled. `counted` is around each time that the kernel is told something: the
        mount must not end within. What was outdated before, nobody has been told yet."""
        self._notices.clear()
        self._running = True
        try:
            while True:
                self._step(self._asked)
                await self._wanted.wait()
                self._wanted = trio.Event()
                while self._notices:
                    with counted():
                        await self._tell(self._take())
        finally:
            self._running = False
            self._step(self._done)

    def _step(self, done: int) -> None:
        self._done = done
        self._progress.set()
        self._progress = trio.Event()

    def _take(self) -> list[bytes]:
        taken = list(self._notices)[:AT_ONCE]
        for notice in taken:
            del self._notices[notice]
        return taken

    async def _tell(self, notices: list[bytes]) -> None:
        results = await trio.to_thread.run_sync(
            lambda: [self._send(notice) for notice in notices],
            limiter=self._limiter,
            abandon_on_cancel=self._abandons,
        )
        for notice, number in zip(notices, results, strict=True):
            if notice == EPOCH_NOTICE and number == errno.EINVAL:
                await self._tell_names()
            elif number not in HARMLESS:
                log.warning("the kernel can't be told of a change: %s", os.strerror(number))

    async def _tell_names(self) -> None:
        """Promise 2, for older kernels."""
        for ino in {ROOT_INO, *self._volume.known.referenced()}:
            after = 0
            try:
                while entries := self._volume.names.entries(ino, after, LISTED_AT_ONCE):
                    after = entries[-1].cookie
                    notices = [entry_notice(ino, entry.name) for entry in entries]
                    await self._tell(notices)
            except RaidfsError:  # no directory, or gone
                continue
