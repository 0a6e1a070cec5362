"""Bursts: the rows that one flush writes together, from resident pages to sealed rows.

A flush hands over its pages sorted by (inode, page). `Space` hands out rows; the pages of one
burst are laid over the data columns by the code's placement (contiguous: page i of P lies in
column i // R of R = ceil(P / k) rows); parity and the CRC of every cell come from one C call over
the pages where they lie in memory; then each member gets one contiguous write per column.

Promises (numbers of docs/ARCHITECTURE.md):
 1. Rows come from `Space.rows_for`, which hands out each row once.
 2. Rows are sealed when the syncs that `write` was asked for, or else `sync`, have returned: then
    one has finished on every member that holds one. Members that failed are named, and the caller
    records the loss before the commit.

Cells left over in the last rows are absent: zeros by definition, neither written nor read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import native
from ..leaves import ROW_SHIFT, ZONE_SHIFT
from ..raid.array import Array, Reach
from ..raid.code import Code, burst_cells, present
from ..raid.one_row import encode_row, write_row
from ..raid.writing import lends_all, write_rows
from .space import Offload, Rows, Zone

FEW = 16  # pages that a loop is through with before numpy has begun
_RUN = struct.Struct("<QQQ")
U64 = npt.NDArray[np.uint64]
AT_ONCE_BYTES_MAX = 512 << 10  # to encode on the event loop: 25 us, and a thread costs 60


@dataclass(frozen=True, slots=True)
class Burst:
    """`inos`, `indexes`: whose pages, in burst order. `addresses`: where they lie in memory."""

    rows: Rows
    inos: U64
    indexes: U64
    addresses: U64

    @property
    def code(self) -> Code:
        return self.rows.zone.map.code

    def cells(self) -> U64:
        """The cell address of each page."""
        if self.rows.rows == 1:  # page i in column i, whatever the layout
            first = self.rows.zone.map.zone << ZONE_SHIFT | self.rows.row << ROW_SHIFT
            return np.arange(first, first + self.rows.pages, dtype=np.uint64)
        column, row = burst_cells(self.code, self.rows.pages)
        zone = np.uint64(self.rows.zone.map.zone) << np.uint64(ZONE_SHIFT)
        row_bits = (row + self.rows.row).astype(np.uint64) << np.uint64(ROW_SHIFT)
        return np.asarray(zone | row_bits | column.astype(np.uint64), dtype=np.uint64)

    def owner_runs(self) -> bytes:
        """Whose pages the burst holds: little-endian uint64 triples (inode, first page, count)."""
        if len(self.inos) <= FEW:
            return self._few_runs()
        ends = (self.inos[1:] != self.inos[:-1]) | (self.indexes[1:] != self.indexes[:-1] + 1)
        starts = np.concatenate(([0], np.flatnonzero(ends) + 1))
        counts = np.diff(np.concatenate((starts, [len(self.inos)])))
        runs = np.column_stack((self.inos[starts], self.indexes[starts], counts.astype(np.uint64)))
        return np.ascontiguousarray(runs, dtype="<u8").tobytes()

    def _few_runs(self) -> bytes:
        runs: list[list[int]] = []
        for ino, index in zip(self.inos.tolist(), self.indexes.tolist(), strict=True):
            if runs and runs[-1][0] == ino and sum(runs[-1][1:]) == index:
                runs[-1][2] += 1
            else:
                runs.append([ino, index, 1])
        return b"".join([_RUN.pack(*run) for run in runs])


@dataclass(frozen=True, slots=True)
class Encoded:
    """data (k, rows): where the pages lie, 0 where none is; parity (m, rows, cell_bytes); crcs
    (width, rows)."""

    data: U64
    parity: npt.NDArray[np.uint8]
    crcs: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Written:
    """`crcs`: uint32 (rows, width), as the checksum table keeps them. `failed`: lost by it.
    `synced`: with it the zone's columns were. `reach`: as it was before."""

    burst: Burst
    crcs: npt.NDArray[np.uint32]
    failed: set[int]
    synced: bool
    reach: Reach


def plan(taken: list[Rows], inos: U64, indexes: U64, addresses: U64) -> list[Burst]:
    """Deal the pages of a flush to the rows that `Space.rows_for` handed out."""
    bursts = []
    start = 0
    for rows in taken:
        part = slice(start, start + rows.pages)
        bursts.append(Burst(rows, inos[part], indexes[part], addresses[part]))
        start += rows.pages
    assert start == len(inos)
    return bursts


def is_one_row(array: Array, bursts: list[Burst]) -> bool:
    """A single burst of a single row, on members that lend descriptors."""
    return (
        len(bursts) == 1 and bursts[0].rows.rows == 1 and lends_all(array, bursts[0].rows.zone.map)
    )


def encode(burst: Burst, cell_bytes: int) -> Encoded:
    """Parity and checksums. Any thread."""
    code, rows = burst.code, burst.rows
    data = np.zeros((code.k, rows.rows), dtype=np.uint64)
    column, row = burst_cells(code, rows.pages)
    data[column, row] = burst.addresses
    parity = native.aligned((code.m, rows.rows, cell_bytes))
    return Encoded(data, parity, native.encode(code.parity, data, parity, cell_bytes))


def syncs(bursts: list[Burst]) -> list[npt.NDArray[np.bool_]]:
    """For each burst the columns (width,) to sync after it: with the last burst of a zone, all that
    hold a cell of any of the zone's bursts."""
    held: dict[int, npt.NDArray[np.bool_]] = {}
    found = []
    for burst in bursts:
        zone = burst.rows.zone.map.zone
        columns = present(burst.code, burst.rows.pages).any(axis=1)
        held[zone] = held.get(zone, np.zeros_like(columns)) | columns
    for burst in reversed(bursts):
        nothing = np.zeros(burst.code.width, dtype=np.bool_)
        found.append(held.pop(burst.rows.zone.map.zone, nothing))
    return found[::-1]


async def write(
    array: Array,
    burst: Burst,
    cell_bytes: int,
    offload: Offload,
    synced: npt.NDArray[np.bool_],
) -> Written:
    """Encode and write all columns, and sync those of `synced`, if members lend descriptors: a
    small burst then leaves the event loop's thread for nothing but the engine. Otherwise write them
    in a thread; then the rows are sealed once `sync` says so."""
    rows = burst.rows
    zone = rows.zone.map  # it may lie elsewhere when this returns
    reach = array.reach(zone)
    if not lends_all(array, zone):
        written: Written = await offload(write_in_thread, array, burst, cell_bytes)
        return written
    if rows.pages * cell_bytes <= AT_ONCE_BYTES_MAX:
        encoded = encode(burst, cell_bytes)
    else:
        encoded = await offload(encode, burst, cell_bytes)
    there = present(burst.code, rows.pages)
    failed = await write_rows(array, zone, rows.row, encoded.data, encoded.parity, there, synced)
    crcs = np.ascontiguousarray(encoded.crcs.T)
    return Written(burst, crcs, failed, bool(synced.any()), reach)


async def write_one_row(array: Array, burst: Burst, cell_bytes: int) -> Written:
    """As `write`, of a burst of one row, with its syncs. Members lend descriptors."""
    zone, pages = burst.rows.zone.map, burst.addresses.tolist()
    reach = array.reach(zone)
    cells, crcs, kept = encode_row(zone, pages, cell_bytes)
    failed = await write_row(array, zone, burst.rows.row, cells)
    del kept
    return Written(burst, crcs, failed, True, reach)


def write_in_thread(array: Array, burst: Burst, cell_bytes: int) -> Written:
    """Encode and write all columns. Nothing is synced."""
    rows = burst.rows
    zone = rows.zone.map
    reach = array.reach(zone)
    encoded = encode(burst, cell_bytes)
    there = present(burst.code, rows.pages)
    failed = array.write_burst(
        zone, rows.row, rows.rows, encoded.data, encoded.parity, there, sync=False
    )
    return Written(burst, np.ascontiguousarray(encoded.crcs.T), failed, False, reach)


def sync(array: Array, zones: Iterable[Zone]) -> set[int]:
    """In a thread: sync the columns of zones just written. Returns the members that failed."""
    failed: set[int] = set()
    for zone in zones:
        failed |= array.sync_zone(zone.map)
    return failed
