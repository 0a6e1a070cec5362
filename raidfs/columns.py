"""Cells of members for C threads: what they must know to read without asking Python.

A thin skin over csrc/columns.c and columns_read.c, where the words (slab, recipe, lost) and the
promises stand. Python puts what it knows of zones when it has looked itself; C reads by that.

 1. Any thread may call anything at any time; only `read` waits for members.
 2. After `zone_forget` has returned, no read is handed a cell of that zone, so its place may be
    given to another zone.
 3. After `close`, whatever is put is refused, every read says ENOENT, and no descriptor is left
    open when the reads under way have ended.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raidfs._native import ffi, lib

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

SLAB_ROWS = 256
SLAB_BYTES_MAX = 64 << 20
ZONES_MAX = 65536
ZONES_MIN = 8
WAITS_MAX = 256  # members that are told of at once
DESCRIPTORS_KEPT = 512  # for everything else that the process opens


class Look(NamedTuple):
    """What putting a column needs to know of its file: see struct rf_look. `inode` 0: nothing, as
    each column has a file of its own."""

    device: int
    inode: int
    never_waits: bool
    is_direct: bool


class Wait(NamedTuple):
    """Reads that a member has not answered yet; the first of them is so old."""

    member: int
    reads: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class ColumnsStatistics:
    """What is known, and how reads have ended since the start."""

    zones: int
    slabs: int
    slab_bytes: int
    descriptors: int
    reads: int
    cells_read: int
    cells_rebuilt: int
    unknown: int
    waiting: int
    failed: int
    given_up: int
    stuck: int


def zones_affordable(width: int) -> int:
    """How many zones of so many columns, each in a file of its own, half of the descriptors that
    this process may have are enough for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ZONES_MAX
    return max(ZONES_MIN, min(ZONES_MAX, (soft - DESCRIPTORS_KEPT) // 2 // width))


class Columns:
    """The columns of one volume. `pointer` is for other C parts, which must end before it."""

    def __init__(
        self, cell_bytes: int, zones_max: int = ZONES_MAX, slab_bytes_max: int = SLAB_BYTES_MAX
    ) -> None:
        columns = lib.rf_columns_new(cell_bytes, zones_max, slab_bytes_max)
        if not columns:
            raise MemoryError
        self.pointer = ffi.gc(columns, lib.rf_columns_free)
        self.cell_bytes = cell_bytes
        self._closed = False
        self._waits = ffi.new("struct rf_columns_wait[]", WAITS_MAX)

    def close(self) -> None:
        """Forget all zones, for good."""
        self._closed = True
        lib.rf_columns_clear(self.pointer)

    # ---- zones ----

    def zone_put(
        self,
        zone: int,
        k: int,
        rows: int,
        columns: Sequence[tuple[int, int]],
        members: Sequence[int],
        looks: Sequence[Look] | None = None,
    ) -> None:
        """`columns`: (descriptor, offset of the column in that file) by column; descriptor -1: the
        column is lost. The descriptors are taken over, whatever happens. `looks`: what is known of
        the files; without, their systems are asked, and may be waited for."""
        fds = [fd for fd, _ in columns]
        if self._closed:
            close_all(fds)
            return
        offsets = [offset for _, offset in columns]
        width = len(columns)
        assert len(members) == width
        known = (self.pointer, zone, width, k, rows, fds, offsets, members)
        if looks is None:
            _check(lib.rf_columns_zone_put(*known))
        else:
            _check(lib.rf_columns_zone_put_seen(*known, [tuple(look) for look in looks]))

    def zone_known(self, zone: int) -> bool:
        return bool(lib.rf_columns_zone_known(self.pointer, zone))

    def zone_forget(self, zone: int) -> None:
        """Promise 2; harmless if the zone isn't known."""
        lib.rf_columns_zone_forget(self.pointer, zone)

    def lose(self, member: int) -> None:
        """The member's columns are lost from now on."""
        lib.rf_columns_lose(self.pointer, member)

    def sit_out(self, member: int, sits: bool) -> None:
        """The member's columns are read as if they were lost, or are read again."""
        lib.rf_columns_sit_out(self.pointer, member, sits)

    def recipe_put(
        self, zone: int, column: int, coefficients: U8, *, in_doubt: bool = False
    ) -> None:
        """The lost column is the sum of coefficients[c] times column c. uint8 (width,). Nothing
        happens if the zone was forgotten meanwhile, or, `in_doubt`, if it makes no sense any
        more, as other members sit out."""
        assert coefficients.dtype == np.uint8 and coefficients.ndim == 1
        coefficients = np.ascontiguousarray(coefficients)
        at = ffi.cast("uint8_t *", coefficients.ctypes.data)
        result = lib.rf_columns_recipe_put(self.pointer, zone, column, at)
        if result != -errno.EINVAL or not in_doubt:
            _check(result)

    # ---- checksums ----

    def slab_put(self, zone: int, slab: int, crcs: U32) -> None:
        """uint32 (rows, width): the first rows of the slab, which are those that are known.
        Nothing happens if the zone was forgotten meanwhile."""
        crcs = np.ascontiguousarray(crcs, dtype=np.uint32)
        assert crcs.ndim == 2 and len(crcs) <= SLAB_ROWS
        at = ffi.cast("uint32_t *", crcs.ctypes.data)
        _check(lib.rf_columns_slab_put(self.pointer, zone, slab, at, len(crcs)))

    def slab_known(self, zone: int, slab: int) -> bool:
        return bool(lib.rf_columns_slab_known(self.pointer, zone, slab))

    def rows_put(self, zone: int, row: int, crcs: U32) -> None:
        """uint32 (rows, width) of rows just written, if the zone is known."""
        crcs = np.ascontiguousarray(crcs, dtype=np.uint32)
        assert crcs.ndim == 2
        at = ffi.cast("uint32_t *", crcs.ctypes.data)
        lib.rf_columns_rows_put(self.pointer, zone, row, len(crcs), at)

    # ---- reading ----

    def read(self, addresses: U64, out: U8, *, nowait: bool = False) -> int:
        """Cell addresses[i] (0: none) into out[i], uint8 (n, cell_bytes). 0, or the errno that
        csrc/columns.h explains."""
        assert addresses.dtype == np.uint64 and out.shape == (len(addresses), self.cell_bytes)
        assert out.dtype == np.uint8 and out.flags.c_contiguous and out.flags.writeable
        addresses = np.ascontiguousarray(addresses)
        at = ffi.cast("uint64_t *", addresses.ctypes.data)
        to = ffi.cast("uint8_t *", out.ctypes.data)
        return -int(lib.rf_columns_read(self.pointer, at, len(addresses), to, nowait))

    # ---- members that don't answer ----

    def waiting(self) -> list[Wait]:
        """Of each member that has not answered all reads by the engine."""
        waits = self._waits
        count = lib.rf_columns_waiting(self.pointer, waits, WAITS_MAX)
        return [Wait(it.member, it.reads, it.oldest_ns / 1e9) for it in waits[0:count]]

    def give_up(self, member: int, older_than_s: float = 0.0) -> int:
        """Ends reads that the member has not answered for so long; how many."""
        return int(lib.rf_columns_give_up(self.pointer, member, int(older_than_s * 1e9)))

    def latencies(self, member: int) -> list[int]:
        """How many reads by the engine took how long; see csrc/columns.h."""
        counts = ffi.new("uint64_t[]", lib.RF_LATENCIES)
        lib.rf_columns_latencies(self.pointer, member, counts)
        return list(counts)

    def statistics(self) -> ColumnsStatistics:
        out: Any = ffi.new("struct rf_columns_statistics *")
        lib.rf_columns_statistics(self.pointer, out)
        names = ColumnsStatistics.__dataclass_fields__
        return ColumnsStatistics(**{name: getattr(out, name) for name in names})


def look_at(fd: int) -> Look:
    """Asks the file's system, which may not answer."""
    look: Any = ffi.new("struct rf_look *")
    lib.rf_look_at(fd, look)
    return Look(look.device, look.inode, bool(look.never_waits), bool(look.is_direct))


def close_all(fds: Iterable[int]) -> None:
    """Of descriptors that nobody wants after all; negative ones are none."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _check(result: int) -> None:
    if result == -errno.ENOMEM:
        raise MemoryError
    assert result in (0, -errno.ENOENT), f"columns: {os.strerror(-result)}"
