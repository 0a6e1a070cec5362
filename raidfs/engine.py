"""Reads, writes and syncs of many descriptors at once, beside the event loop.

A thin skin over csrc/engine.h, where batches, chains and their order stand. All kinds do the same:
`threads`; `ring`, which does by io_uring what that is better at; `ring_only`, to compare. `auto` is
`ring` where the kernel has and allows one, else `threads`.

 1. A batch belongs to the engine until `run` has returned: a task that is cancelled meanwhile is
    cancelled after that, so no buffer is given back while the kernel still writes to it.
 2. A failed io is no exception: `Batch.errors` tells of each chain what ended it.
 3. `close` may be called at any time. What is under way is finished; who comes later is refused.
    Whoever was given the `handle` has been stopped before.
 4. One event loop at a time awaits `run`; `run_blocking` is for any thread. What it is asked in one
    chain, or in small writes into the page cache, is done in the caller's thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import trio

from raidfs._native import ffi, lib

Kind = Literal["auto", "threads", "ring", "ring_only"]
Writable = memoryview | bytearray | npt.NDArray[Any]
Readable = bytes | Writable
Addresses = npt.NDArray[np.uint64]

THREADS = 8
_RING: dict[str, int] = {"threads": 0, "auto": 1, "ring": 1, "ring_only": 2}
_IDS = 64  # taken at once
_LEFT: list[Any] = []  # engines that were left, for as long as the process lives


_DOING = {lib.RF_READ: "reading", lib.RF_WRITE: "writing", lib.RF_SYNC: "syncing"}


class Fault(NamedTuple):
    """Why a chain ended early. doing: reading, writing, syncing."""

    errno: int
    doing: str


class Batch:
    """Ios in chains: `chain` begins the next one, the others add to it. To be run once."""

    __slots__ = ("_chain", "_held", "_ios", "_rows")

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._held: list[Any] = []  # what must stay in memory until it has been run
        self._chain = 0
        self._ios: Any = None

    def __len__(self) -> int:
        return len(self._rows)

    def chain(self) -> None:
        """What is added from now on is done in order, until the first error."""
        self._chain += 1

    def read(self, fd: int, offset_bytes: int, out: Writable) -> None:
        """Fill `out`; ENODATA where the file ends before it is full."""
        view = ffi.from_buffer(out, require_writable=True)
        self._add(lib.RF_READ, fd, offset_bytes, view, len(view))

    def write(self, fd: int, offset_bytes: int, data: Readable) -> None:
        view = ffi.from_buffer(data)
        self._add(lib.RF_WRITE, fd, offset_bytes, view, len(view))

    def write_cells(
        self, fd: int, offset_bytes: int, addresses: Addresses, cell_bytes: int
    ) -> None:
        """Cells from where they lie in memory (the caller's care) to contiguous bytes."""
        assert addresses.dtype == np.uint64 and addresses.ndim == 1 and addresses.all()
        addresses = np.ascontiguousarray(addresses)
        if len(addresses):
            view = ffi.from_buffer(addresses)
            self._add(lib.RF_WRITE, fd, offset_bytes, view, cell_bytes, len(addresses))

    def write_memory(self, fd: int, offset_bytes: int, address: int, nbytes: int) -> None:
        """Bytes from where they lie in memory, which is the caller's care."""
        self._rows.append((lib.RF_WRITE, fd, offset_bytes, address, nbytes, 0, self._chain, 0, 0))

    def sync(self, fd: int) -> None:
        """fdatasync"""
        self._rows.append((lib.RF_SYNC, fd, 0, 0, 0, 0, self._chain, 0, 0))

    def _add(
        self, op: int, fd: int, offset_bytes: int, view: Any, nbytes: int, cells: int = 0
    ) -> None:
        assert self._ios is None, "a batch is run once"
        self._held.append(view)
        address = int(ffi.cast("uintptr_t", view))
        row = (op, fd, offset_bytes, address, nbytes, cells, self._chain, 0, 0)
        self._rows.append(row)

    def errors(self) -> dict[int, Fault]:
        """After the run: what ended which chain (the first `chain` began number 1). {}: nothing."""
        found: dict[int, Fault] = {}
        if self._ios is None or not lib.rf_ios_failed(self._ios, len(self._rows)):
            return found
        for io in self._ios:
            if io.result:
                found.setdefault(io.chain, Fault(-io.result, _DOING[io.op]))
        return found

    def _freeze(self) -> Any:
        assert self._ios is None, "a batch is run once"
        self._ios = ffi.new("struct rf_io[]", self._rows)
        return self._ios


class Engine:
    """See the module. `kind`: what it came to be."""

    def __init__(self, kind: Kind = "auto", threads: int = THREADS) -> None:
        self.kind: Kind = "ring" if kind == "auto" else kind
        error = ffi.new("int *")
        self._engine = lib.rf_engine_new(_RING[kind], threads, error)
        if self._engine == ffi.NULL and kind == "auto":
            self.kind = "threads"
            self._engine = lib.rf_engine_new(0, threads, error)
        if self._engine == ffi.NULL:
            raise OSError(-error[0], f"no engine of kind {kind}: {os.strerror(-error[0])}")
        self._engine = ffi.gc(self._engine, lib.rf_engine_free)  # forgotten ones end too
        self._eventfd = lib.rf_engine_eventfd(self._engine)
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._numbers = itertools.count(1)
        self._finished: set[int] = set()
        self._waiting: dict[int, trio.Event] = {}
        self._led = False  # somebody waits on the eventfd, for all
        self._ids = ffi.new("uint64_t[]", _IDS)

    @property
    def handle(self) -> Any:
        """The struct rf_engine, for C. See promise 3."""
        assert not self._closed
        return self._engine

    def relieve(self, stuck: int) -> None:
        """So many of its jobs will not end soon: threads stand in for theirs."""
        if not self._closed:
            lib.rf_engine_relieve(self._engine, stuck)

    def leave(self) -> None:
        """As `close`, but what is under way is left alone, as it may never end."""
        with self._lock:
            if not self._closed:
                self._closed = True
                _LEFT.append(self._engine)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = self._users == 0
        if last:
            ffi.release(self._engine)

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise ValueError("the engine was closed")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and self._users == 0 and self._engine not in _LEFT
        if last:
            ffi.release(self._engine)

    def run_blocking(self, batch: Batch) -> None:
        """Return when all of it is done, one way or the other."""
        if not len(batch):
            return
        self._enter()
        try:
            ios = batch._freeze()
            _check(lib.rf_engine_run(self._engine, ios, len(batch)))
        finally:
            self._leave()

    async def run(self, batch: Batch) -> None:
        """As `run_blocking`; others get the event loop meanwhile, unless it is over at once."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not len(batch):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        self._enter()
        try:
            ios = batch._freeze()
            if lib.rf_engine_at_once(self._engine, ios, len(batch)):
                _check(lib.rf_engine_run(self._engine, ios, len(batch)))
                return
            number = next(self._numbers)
            _check(lib.rf_engine_start(self._engine, ios, len(batch), number))
            with trio.CancelScope(shield=True):
                await self._told(number)
        finally:
            self._leave()

    async def _told(self, number: int) -> None:
        """One of the waiting tasks waits on the eventfd and tells the others; then it appoints the
        next. So nobody has to keep a task for it."""
        while number not in self._finished:
            if self._led:
                event = self._waiting[number] = trio.Event()
                await event.wait()
                continue
            self._led = True
            try:
                await trio.lowlevel.wait_readable(self._eventfd)
                self._collect()
            finally:
                self._led = False
        self._finished.remove(number)
        if self._waiting and not self._led:
            self._waiting.popitem()[1].set()

    def _collect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        count = _IDS
        while count == _IDS:
            count = lib.rf_engine_finished(self._engine, self._ids, _IDS)
            for number in self._ids[0:count]:
                self._finished.add(number)
                event = self._waiting.pop(number, None)
                if event is not None:
                    event.set()


def _check(error: int) -> None:
    if error == 0:
        return
    if error == -errno.ENOMEM:
        raise MemoryError
    raise AssertionError(f"the engine refuses a batch: {os.strerror(-error)}")
