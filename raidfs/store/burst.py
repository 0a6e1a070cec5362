"""Bursts: the rows that one flush writes together, from resident pages to sealed rows.

A flush hands over its pages sorted by (inode, page). `Space` hands out rows; the pages of one
burst are laid over the data columns by the code's placement (contiguous: page i of P lies in
column i // R of R = ceil(P / k) rows); parity and the CRC of every cell come from one C call over
the pages where they lie in memory; then each member gets one contiguous write per column.

Promises (numbers of docs/ARCHITECTURE.md):
 1. Rows come from `Space.rows_for`, which hands out each row once.
 2. Rows are sealed when `sync` has returned: a sync has finished on every member that holds one.
    Members that failed are named, and the caller records the loss before the commit.

Cells left over in the last rows are absent: zeros by definition, neither written nor read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import native
from ..raid.array import Array
from ..raid.code import Code, burst_cells, present
from .space import ROW_SHIFT, ZONE_SHIFT, Rows, Zone

U64 = npt.NDArray[np.uint64]


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
        column, row = burst_cells(self.code, self.rows.pages)
        zone = np.uint64(self.rows.zone.map.zone) << np.uint64(ZONE_SHIFT)
        row_bits = (row + self.rows.row).astype(np.uint64) << np.uint64(ROW_SHIFT)
        return np.asarray(zone | row_bits | column.astype(np.uint64), dtype=np.uint64)

    def owner_runs(self) -> bytes:
        """Whose pages the burst holds: little-endian uint64 triples (inode, first page, count)."""
        ends = (self.inos[1:] != self.inos[:-1]) | (self.indexes[1:] != self.indexes[:-1] + 1)
        starts = np.concatenate(([0], np.flatnonzero(ends) + 1))
        counts = np.diff(np.concatenate((starts, [len(self.inos)])))
        runs = np.column_stack((self.inos[starts], self.indexes[starts], counts.astype(np.uint64)))
        return np.ascontiguousarray(runs, dtype="<u8").tobytes()


@dataclass(frozen=True, slots=True)
class Written:
    """`crcs`: uint32 (rows, width), as the checksum table keeps them. `failed`: lost by it."""

    burst: Burst
    crcs: npt.NDArray[np.uint32]
    failed: set[int]


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


def write(array: Array, burst: Burst, cell_bytes: int) -> Written:
    """In a thread: encode and write all columns. The rows are sealed once `sync` says so."""
    code, rows = burst.code, burst.rows
    data = np.zeros((code.k, rows.rows), dtype=np.uint64)
    column, row = burst_cells(code, rows.pages)
    data[column, row] = burst.addresses
    parity = np.empty((code.m, rows.rows, cell_bytes), dtype=np.uint8)
    crcs = native.encode(code.parity, data, parity, cell_bytes)
    failed = array.write_burst(
        rows.zone.map, rows.row, rows.rows, data, parity, present(code, rows.pages), sync=False
    )
    return Written(burst, np.ascontiguousarray(crcs.T), failed)


def sync(array: Array, zones: Iterable[Zone]) -> set[int]:
    """In a thread: sync the columns of zones just written. Returns the members that failed."""
    failed: set[int] = set()
    for zone in zones:
        failed |= array.sync_zone(zone.map)
    return failed
