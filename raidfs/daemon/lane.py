"""A mounted filesystem behind the lane: C answers what it can, Python the rest.

    /dev/fuse, clones --> csrc/lane.c --+-- served there
                                        +-- carried: eventfd --> CarriedRequests --> Volume
                                        +-- forwarded: socket --> pyfuse3 --> FuseOperations

Everything that changes state in Python happens on the event loop, so no request falls into a cut;
what threads of the lane change, they change inside of the gate, which a cut shuts.

 1. Every request taken from the lane is answered once; one that fails by its errno.
 2. After `close` no thread of the lane runs, so the last cut holds all that was told.
 3. WRITEs for which the lane has no credits wait; they get credits, or are carried to the volume,
    which says ENOSPC where that is so. None is left waiting.
 4. With the kernel's write-back cache, `drain` brings in what files open for writing have dirty
    there; a request to sync, unmount or stop begins with it.
 5. However many requests come, all other tasks get their turn after each few. What nobody waits for
    (files closed, inodes that the kernel has forgotten) is looked after when a request comes, or
    soon; always before the requests that could tell the difference, and before the last cut.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Collection, Coroutine, Iterator
from typing import Any

import pyfuse3
import trio

from raidfs._native import lib
from raidfs.daemon.carried import OPCODES, Answer, CarriedRequests
from raidfs.daemon.device import Device, open_device
from raidfs.daemon.fuse import CACHE_S, FLEETING_INO, FuseOperations, Watcher, errno_of
from raidfs.daemon.protocol import LOOKUP, RENAME, RENAME2, RMDIR, STATFS, UNLINK
from raidfs.daemon.session import READ_AHEAD_BYTES, LaneOptions, captured_stderr
from raidfs.daemon.status import LaneStatus
from raidfs.daemon.teller import Teller, inode_notice
from raidfs.errors import UsageError
from raidfs.fs.volume import Volume
from raidfs.lane import Lane, LaneSetup
from raidfs.store.store import Store

log = logging.getLogger("raidfs.lane")

IO_BYTES_MAX = 1 << 20  # of one READ or WRITE; measured: more gains nothing
IO_BYTES_MIN = 128 << 10
BACKGROUND_MAX = 128
SOCKET_BYTES = 4 << 20
MESSAGE_EXTRA_BYTES = 8 << 10  # headers around the largest payload
DRAINED_AT_ONCE = 8
# Carried requests, before the flusher gets its turn: more gain nothing, and fsync waits for longer.
ANSWERED_AT_ONCE = 4
# To these it matters which files are open or referred to: LOOKUP may ask for an inode by number.
AFTER_RELEASE = frozenset({LOOKUP, UNLINK, RMDIR, RENAME, RENAME2, STATFS})
RETRY_S = 0.01
ATTRIBUTES_ONLY = -1  # as an offset of NOTIFY
WRITEBACK_CACHE = 1 << 16  # of INIT
SO_SNDBUFFORCE = 32
ASK_PARTS = 16  # the lane asks for credits each time it has spent this part of the dirty room


def socket_pair() -> tuple[socket.socket, socket.socket, int]:
    """(the lane's, pyfuse3's, the largest message that either can send)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    room = SOCKET_BYTES
    for end in (ours, theirs):
        try:
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES)
        except PermissionError:  # others get what net.core.wmem_max allows
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        room = min(room, end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    return ours, theirs, room


def io_bytes(room: int, cell_bytes: int) -> int:
    """The largest READ or WRITE (or listing) whose message fits: a power of two."""
    largest = IO_BYTES_MAX
    while largest > max(IO_BYTES_MIN, cell_bytes) and largest + MESSAGE_EXTRA_BYTES > room:
        largest //= 2
    return largest


class LaneSession(Watcher):
    """See the module, and Session in daemon/session.py."""

    def __init__(self, store: Store, volume: Volume, options: LaneOptions) -> None:
        self._store = store
        self._volume = volume
        self._options = options
        self._operations = FuseOperations(volume, self)
        self._teller = Teller(volume, self._notify)
        volume.audience = self._teller
        volume.kernel_keeps_sizes = options.writeback
        self._device: Device | None = None
        self._lane: Lane | None = None
        self._clones: list[int] = []
        self._socket: socket.socket | None = None
        self._writing: set[int] = set()  # files opened for writing; some may be closed by now
        self._draining = trio.CapacityLimiter(DRAINED_AT_ONCE)
        self._initialized = False
        self._wanted_cells = 0
        self._wanted = trio.Event()
        self._under_way = 0
        self._done = trio.Event()

    # -- coming and going -------------------------------------------------------------------------

    def open(self, mountpoint: str, name: str, words: Collection[str]) -> None:
        """See Session."""
        ours, theirs, room = socket_pair()
        self._socket = ours
        try:
            nbytes = io_bytes(room, self._store.cell_bytes)
            self._lane = Lane(self._setup(nbytes, words))
            owner = os.getuid() if "allow_root" in words else None
            self._carried = CarriedRequests(self._volume, self, nbytes, owner_uid=owner)
            self._device = open_device(mountpoint, name, words)
            self._clones = self._clone(self._device.fd, self._options.thread_count() - 1)
            self._hand_over(theirs, words)
            self._lane.start([self._device.fd, *self._clones], ours.fileno())
            self._store.lane_wants()
        except BaseException:
            theirs.close()
            self.close()
            raise

    def _setup(self, nbytes: int, words: Collection[str]) -> LaneSetup:
        serve = self._options.serve
        if "ro" in words:
            serve &= ~lib.RF_LANE_WRITE
        if "allow_root" in words:  # libfuse looks who asks, and refuses the others
            serve &= ~(lib.RF_LANE_LOOKUP | lib.RF_LANE_GETATTR | lib.RF_LANE_XATTR)
        return LaneSetup(
            pages=self._store.pages,
            columns=self._store.columns,
            known=self._volume.known,
            gate=self._store.gate,
            engine=self._store.engine,
            cell_bytes=self._store.cell_bytes,
            max_write=nbytes,
            max_background=BACKGROUND_MAX,
            max_readahead=READ_AHEAD_BYTES,
            init_add=WRITEBACK_CACHE if self._options.writeback else 0,
            init_remove=0,
            cache_ns=int(CACHE_S * 1e9),
            carry=sum(1 << opcode for opcode in OPCODES),
            serve=serve,
            ask_cells=max(1, self._store.dirty_cells_max // ASK_PARTS),
            fleeting_ino=FLEETING_INO,
        )

    def _hand_over(self, theirs: socket.socket, words: Collection[str]) -> None:
        """libfuse takes the socket for the device, and closes it in the end."""
        with captured_stderr() as text:
            try:
                pyfuse3.init(
                    self._operations, f"/dev/fd/{theirs.fileno()}", {"allow_root"} & set(words)
                )
            except RuntimeError as error:
                raise UsageError(f"libfuse doesn't start: {text() or error}", errno.EIO) from error
        theirs.detach()
        self._initialized = True

    def _clone(self, fd: int, count: int) -> list[int]:
        """More descriptors of the device, one per thread; where /dev/fuse can't be opened again (a
        user's daemon), the same one several times."""
        clones: list[int] = []
        for _ in range(count):
            clone = lib.rf_lane_clone(fd)
            clones.append(clone if clone >= 0 else os.dup(fd))
        return clones

    async def run(self) -> None:
        """See Session."""
        lane = self._running()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, lane, nursery)
            nursery.start_soon(self._look_late, lane)
            nursery.start_soon(self._grant, lane)
            nursery.start_soon(self._teller.run, self._counted)
            await pyfuse3.main()
            while self._under_way:
                await self._done.wait()
            await self._volume.door.opened()
            await self._store.gate.opened()  # the lane can't stop while it is shut
            nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """`run` doesn't return inside of the `with`."""
        self._under_way += 1
        try:
            yield
        finally:
            self._uncount()

    def _uncount(self) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._done.set()
            self._done = trio.Event()

    def _running(self) -> Lane:
        assert self._lane is not None, "not open"
        return self._lane

    def stop(self) -> None:
        """pyfuse3.main() returns when the requests under way are answered."""
        if self._lane is not None:
            pyfuse3.terminate()

    def close(self) -> None:
        """Promise 2. The threads first, so that nothing is told that the last cut doesn't hold."""
        self._volume.door.give_way()
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.stop()
            self._release(lane)
            lane.free()
        if self._initialized:
            self._initialized = False
            pyfuse3.close(unmount=False)  # that mount is ours to take away
        while self._clones:
            os.close(self._clones.pop())
        if self._device is not None:
            self._device.unmount()
            self._device = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- what the lane asks -----------------------------------------------------------------------

    async def _serve(self, lane: Lane, nursery: trio.Nursery) -> None:
        """Until cancelled: whatever the lane has for Python."""
        while True:
            await trio.lowlevel.wait_readable(lane.eventfd)
            await self._volume.door.opened()
            lane.reset()
            more = True
            while more:
                more = self._answer_some(lane, nursery)
                self._release(lane)
                self._note_wants(lane)
                if lane.ended:
                    self.stop()
                if more:  # the flusher and others get their turn
                    await trio.lowlevel.checkpoint()
                    await self._volume.door.opened()

    def _answer_some(self, lane: Lane, nursery: trio.Nursery) -> bool:
        """Promise 1, for those that are there; False: for all of them."""
        for _ in range(ANSWERED_AT_ONCE):
            request = lane.take()
            if request is None:
                return False
            number, opcode, message = request
            if opcode in AFTER_RELEASE:
                self._release(lane)
            refused = self._volume.door.refusal
            answer = (errno.EIO, b"") if refused else self._carried.begin(message)
            if isinstance(answer, tuple) and lane.reply(number, *answer):
                continue
            self._under_way += 1
            self._volume.door.enter()
            nursery.start_soon(self._answer_later, lane, number, answer)
        return True

    async def _answer_later(
        self, lane: Lane, number: int, answer: Answer | Coroutine[None, None, Answer]
    ) -> None:
        """Promise 1, for a request that has to wait, or of which the answer must be given again,
        since there was no memory to keep it while the gate was shut. It is counted already."""
        try:
            if isinstance(answer, tuple):
                await trio.sleep(RETRY_S)
            else:
                answer = await answer
            while not lane.reply(number, *answer):
                await trio.sleep(RETRY_S)
        finally:
            self._volume.door.leave()
            self._uncount()

    async def _look_late(self, lane: Lane) -> None:
        """Until cancelled: what nobody waits for, if no request came meanwhile."""
        while True:
            await trio.lowlevel.wait_readable(lane.late_fd)
            await self._volume.door.opened()
            lane.reset_late()
            self._release(lane)

    def _release(self, lane: Lane) -> None:
        """What the lane has told the kernel already: closed files, inodes nobody refers to."""
        while inos := lane.released():
            for ino in inos:
                self._guarded("release", self._volume.release, ino)
                if not self._volume.is_open(ino):
                    self._writing.discard(ino)
        self._guarded("forget", self._volume.reap_unreferenced)

    @staticmethod
    def _guarded(name: str, function: Callable[..., object], *arguments: object) -> None:
        """Nobody waits for an answer; an error is for the log alone."""
        try:
            function(*arguments)
        except Exception as error:
            errno_of(name, error)

    def _note_wants(self, lane: Lane) -> None:
        cells = lane.wants()
        if cells is None:
            return
        self._guarded("credits", self._store.lane_wants)
        if cells:
            self._wanted_cells = max(cells, self._wanted_cells)
            self._wanted.set()

    async def _grant(self, lane: Lane) -> None:
        """Promise 3, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            cells, self._wanted_cells = self._wanted_cells, 0
            granted = False
            try:
                async with self._volume.door.passing():
                    granted = await self._store.grant(min(cells, self._store.dirty_cells_max))
            except Exception as error:
                errno_of("credits", error)
            if granted:
                lane.resume()
            else:
                lane.pass_on()

    # -- the kernel's caches ----------------------------------------------------------------------

    def opened(self, ino: int, flags: int) -> None:
        """See Watcher."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._writing.add(ino)

    async def privileges_lost(self, ino: int) -> None:
        """The kernel's copy of the mode is out of date, and it would go by it at exec. Before the
        write is answered, so that nobody comes in between."""
        await self._invalidate(ino, ATTRIBUTES_ONLY)

    async def before_seek(self, ino: int) -> None:
        """With the write-back cache, the kernel may know of more than we do, also of the size."""
        if self._options.writeback and ino in self._writing:
            await self._invalidate(ino, 0)

    async def write_out(self, ino: int, offset: int, nbytes: int) -> bool:
        """See Watcher."""
        if ino not in self._writing:
            return False
        await self._invalidate(ino, offset, nbytes)
        return True

    async def drain(self) -> None:
        """Promise 4."""
        if not self._options.writeback:
            return
        async with trio.open_nursery() as nursery:
            for ino in self._writing:
                nursery.start_soon(self._invalidate, ino, 0)

    async def _invalidate(self, ino: int, offset: int, nbytes: int = 0) -> None:
        """Returns when the kernel has written out what it holds of the range (0 bytes: from there
        to the end; or ATTRIBUTES_ONLY), and forgotten it. That takes as
        long as its WRITEs do, which are answered meanwhile: so the lane must not stop before."""
        lane = self._lane
        if lane is None:
            return
        message = inode_notice(ino, offset, nbytes)
        with self._counted(), self._volume.door.ajar():
            number = await trio.to_thread.run_sync(lane.notify, message, limiter=self._draining)
        if number not in (0, errno.ENOENT):
            log.warning("the kernel's cache of inode %d: %s", ino, os.strerror(number))

    def _notify(self, message: bytes) -> int:
        """In a thread."""
        lane = self._lane
        return errno.ESHUTDOWN if lane is None else lane.notify(message)

    def status(self) -> LaneStatus | None:
        """See Session."""
        if self._lane is None:
            return None
        told = self._lane.statistics()
        return LaneStatus(
            threads=1 + len(self._clones),
            writeback=self._options.writeback,
            served=told["served"],
            carried=told["carried"],
            forwarded=told["forwarded"],
        )

    def statistics(self) -> dict[str, Any] | None:
        """See Session."""
        return None if self._lane is None else self._lane.statistics()
