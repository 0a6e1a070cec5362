"""The lane between the kernel and whoever answers it, and the gate that all answers pass.

Thin skins over csrc/gate.c and csrc/lane.c, where the words (inside, shut, served, carried,
forwarded, parked) and the promises stand.

 1. `Gate.shut` and `Gate.open` belong to one thread, the event loop; what happens between them
    happens at one moment for everybody outside.
 2. Of a Lane any thread may call anything at any time, but `start`, `stop` and `free` one after
    the other and `stop` not while the gate is shut. Only `stop`, `free` and `notify` may wait.
 3. When `eventfd` is readable: `reset`, then `take`, `released` and `wants` until there is no more,
    `ended`, and what `Known` has unreferenced. It is not raised again before all are empty.
 4. When `late_fd` is readable: `reset_late`, `released`, and what `Known` has unreferenced. Nobody
    waits for these, so who is awake anyway looks after them first.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import trio

from raidfs._native import ffi, lib
from raidfs.columns import Columns
from raidfs.engine import Engine
from raidfs.known import Known
from raidfs.pages import Buffer, Pages

RELEASED_AT_ONCE = 512

# The opcodes that statistics name; others go by their number.
NAMES = {
    1: "lookup",
    2: "forget",
    3: "getattr",
    4: "setattr",
    5: "readlink",
    6: "symlink",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "release",
    20: "fsync",
    21: "setxattr",
    22: "getxattr",
    23: "listxattr",
    24: "removexattr",
    25: "flush",
    26: "init",
    27: "opendir",
    28: "readdir",
    29: "releasedir",
    30: "fsyncdir",
    34: "access",
    35: "create",
    36: "interrupt",
    38: "destroy",
    39: "ioctl",
    40: "poll",
    42: "batch_forget",
    43: "fallocate",
    44: "readdirplus",
    45: "rename2",
    46: "lseek",
    47: "copy_file_range",
    50: "syncfs",
    51: "tmpfile",
    52: "statx",
    53: "copy_file_range_64",
    63: "other",
}
_BY_OPCODE = ("served", "carried", "forwarded")


class Gate:
    """Shut for a cut: nobody is answered, and nothing served, while it is shut. Several may have it
    shut: it opens when the last of them opens it. `shut_ns`: so long `shut_for` has had it shut,
    all in all."""

    def __init__(self) -> None:
        self.shut_ns = 0
        self._shutters = 0
        self._opened = trio.Event()
        gate = lib.rf_gate_new()
        if not gate:
            raise MemoryError
        self.pointer = ffi.gc(gate, lib.rf_gate_free)

    def shut(self) -> None:
        """Returns when all who were inside have left, which is soon: they wait for nothing."""
        if not self._shutters:
            lib.rf_gate_shut(self.pointer)
        self._shutters += 1

    def open(self) -> None:
        """By each who has shut it, once."""
        assert self._shutters
        self._shutters -= 1
        if not self._shutters:
            lib.rf_gate_open(self.pointer)
            self._opened.set()
            self._opened = trio.Event()

    @property
    def is_shut(self) -> bool:
        return self._shutters > 0

    async def opened(self) -> None:
        """Returns when it is open: in that moment. For answers that leave by another way."""
        while self.is_shut:
            await self._opened.wait()

    @contextmanager
    def shut_for(self) -> Iterator[None]:
        """Shut inside of the `with`; no harm if it is so already."""
        begun = time.perf_counter_ns()
        was_shut = self.is_shut
        self.shut()
        try:
            yield
        finally:
            self.open()
            if not was_shut:
                self.shut_ns += time.perf_counter_ns() - begun


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LaneSetup:
    """What a lane works with; as struct rf_lane_setup of csrc/lane.h."""

    pages: Pages
    columns: Columns
    known: Known
    gate: Gate
    engine: Engine | None
    cell_bytes: int
    max_write: int
    max_background: int
    max_readahead: int
    init_add: int
    init_remove: int
    cache_ns: int
    carry: int
    serve: int
    ask_cells: int
    fleeting_ino: int = 0


_OBJECTS = frozenset({"pages", "columns", "known", "gate", "engine"})


class Request(NamedTuple):
    """A carried request: fuse_in_header and all that follows it, in memory of the lane that is good
    until the reply."""

    number: int
    opcode: int
    message: memoryview


class Lane:
    """One mount's lane. The objects of its setup live at least until `free`."""

    def __init__(self, setup: LaneSetup) -> None:
        self._setup = setup
        words = ffi.new("struct rf_lane_setup *")
        for field in fields(setup):
            if field.name not in _OBJECTS:
                setattr(words, field.name, getattr(setup, field.name))
        words.pages = setup.pages.handle
        words.columns = setup.columns.pointer
        words.known = setup.known.pointer
        words.gate = setup.gate.pointer
        words.engine = ffi.NULL if setup.engine is None else setup.engine.handle
        lane = lib.rf_lane_new(words)
        if not lane:
            raise MemoryError
        self._lane = lane
        self._request = ffi.new("struct rf_request *")
        self._inos = ffi.new("uint64_t[]", RELEASED_AT_ONCE)
        self._cells = ffi.new("uint64_t *")
        self.eventfd: int = lib.rf_lane_eventfd(lane)
        self.late_fd: int = lib.rf_lane_late_fd(lane)

    def start(self, device_fds: Sequence[int], socket_fd: int) -> None:
        """One thread per descriptor of the device; `socket_fd` is this side of the pair to the FUSE
        library. All stay the caller's, to be closed after `stop`. OSError."""
        fds = ffi.new("int[]", list(device_fds))
        result = lib.rf_lane_start(self._lane, fds, len(fds), socket_fd)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def stop(self) -> None:
        """Ends all threads; later replies are dropped. More than once does no harm."""
        lib.rf_lane_stop(self._lane)

    def free(self) -> None:
        """After `stop`, or never started. Nothing may be called any more."""
        lane, self._lane = self._lane, ffi.NULL
        if lane:
            lib.rf_lane_free(lane)

    # ---- what it has for Python ----

    def reset(self) -> None:
        """Makes the eventfd unreadable, until there is something new."""
        with suppress(BlockingIOError):
            os.read(self.eventfd, 8)

    def reset_late(self) -> None:
        """The same for `late_fd`."""
        with suppress(BlockingIOError):
            os.read(self.late_fd, 8)

    def take(self) -> Request | None:
        """The next carried request; each is to be replied to."""
        request = self._request
        if not lib.rf_lane_take(self._lane, request):
            return None
        message = memoryview(ffi.buffer(request.bytes, request.nbytes))
        return Request(request.id, request.opcode, message)

    def reply(self, number: int, error: int, data: Buffer = b"") -> bool:
        """Answers a carried request with a positive errno, or with 0 and data; its message is gone
        then. False: there is no memory to keep the answer until the gate opens; try again."""
        at = data if type(data) is bytes else ffi.from_buffer("uint8_t[]", data)
        result = lib.rf_lane_reply(self._lane, number, error, at, len(at))
        if result == 0:
            return True
        assert result == -errno.ENOMEM, f"request {number} can't be answered: {error}, {result}"
        return False

    def released(self) -> list[int]:
        """Inodes that the kernel has closed, once for each open; [] if there are no more."""
        count = lib.rf_lane_released(self._lane, self._inos, RELEASED_AT_ONCE)
        return list(self._inos[0:count])

    def wants(self) -> int | None:
        """None: nothing. Else credits are wanted: soon (0), or for so many cells of WRITEs that are
        parked until `resume` or `pass_on`."""
        if not lib.rf_lane_wants(self._lane, self._cells):
            return None
        cells: int = self._cells[0]
        return cells

    def resume(self) -> None:
        """Parked WRITEs are tried again. Each time credits were granted: those that still lack some
        ask again, at once."""
        lib.rf_lane_resume(self._lane)

    def pass_on(self) -> None:
        """Parked WRITEs are carried."""
        lib.rf_lane_pass_on(self._lane)

    @property
    def ended(self) -> bool:
        """Unmounted: no more requests will come."""
        return bool(lib.rf_lane_ended(self._lane))

    def notify(self, message: Buffer) -> int:
        """Hands the kernel a notification; returns its errno, or 0, when the kernel is through with
        it. Not on the event loop: requests have to be answered meanwhile."""
        at = ffi.from_buffer("uint8_t[]", message)
        return -int(lib.rf_lane_notify(self._lane, at, len(at)))

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, by name; those by opcode as {name of the opcode: count}."""
        out = ffi.new("struct rf_lane_statistics *")
        lib.rf_lane_statistics(self._lane, out)
        told: dict[str, Any] = {}
        for name, _ in ffi.typeof(out[0]).fields:
            value = getattr(out, name)
            if name in _BY_OPCODE:
                value = {NAMES.get(i, str(i)): count for i, count in enumerate(value) if count}
            told[name] = value
        return told
