"""Whole columns made anew, many rows at once: the quick way of array.rebuild_rows.

Nearly all rows of a zone that lost a column are alike: the same columns are there to rebuild from,
and nothing else is wrong with them. So each source is read in one go, and one pass over all of them
gives the wanted cells and the checksums of everything. Rows in which something doesn't check are
left to `Array.rebuild_rows`, which looks at each cell for itself, heals, counts and tells.

 1. What is returned as good is as its CRC-32C says; absent cells are nobody's.
 2. Memory is taken once for all pieces (`Room`), since new memory costs as much as the reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.errors import MemberError
from raidfs.raid.array import Array, ZoneMap, addresses_of
from raidfs.raid.patience import Late
from raidfs.raid.rebuild import Bools, Cells, Crcs, runs


class Room:
    """Memory for pieces of columns of up to `rows` rows, one after the other."""

    def __init__(self, rows: int, cell_bytes: int) -> None:
        self._shape = (rows, cell_bytes)
        self._cells: dict[int, Cells] = {}
        self._made: Cells | None = None

    def read(self, column: int, rows: int) -> Cells:
        """Where the column is read to."""
        if column not in self._cells:
            self._cells[column] = native.aligned(self._shape)
        return self._cells[column][:rows]

    def made(self, columns: int, rows: int) -> Cells:
        """(columns, rows, cell_bytes): where so many are made."""
        need = columns * rows * self._shape[1]
        if self._made is None or self._made.size < need:
            self._made = native.aligned((columns * self._shape[0] * self._shape[1],))
        return self._made[:need].reshape(columns, rows, self._shape[1])


def regenerate(
    array: Array,
    zone: ZoneMap,
    row: int,
    crcs: Crcs,
    there: Bools,
    lost: Sequence[int],
    copied: Sequence[int],
    room: Room,
) -> tuple[dict[int, Cells], Bools]:
    """The cells of rows from `row` on of the columns `lost`, which are rebuilt, and `copied`, which
    are read where they are, or rebuilt. crcs, there: (n, width). Blocks.

    Returns by column (n, cell_bytes) in the room's memory, and bool (n,): rows that are good.
    """
    rows, width = there.shape
    around = array.around  # members that are slow count as lost, where the others are enough
    others = [c for c in range(width) if c not in lost and around.readable(zone, c) is not None]
    solved = array_solution(zone, lost, others)
    content: dict[int, Cells] = {column: room.read(column, rows) for column in copied}
    good = np.ones(rows, dtype=np.bool_)
    if lost and solved is None:
        content.update({column: room.read(column, rows) for column in lost})
        good[:] = False
    else:
        sources, matrix = solved if solved is not None else ([], None)
        failed = _read(array, zone, row, rows, {*sources, *copied}, room)
        if matrix is not None:
            good &= _make(zone, crcs, there, lost, sources, matrix, content, room)
        for column in copied:
            if column not in sources or matrix is None:
                sums = native.crc32c_cells(content[column])
                good &= (sums == crcs[:, column]) | ~there[:, column]
        if failed:
            good[:] = False
        read = int(there[:, sorted({*sources, *copied})].sum())
        array.remade(read, int(there[:, list(lost)].sum()))
    _repair(array, zone, row, crcs, there, (lost, copied), content, good)
    return content, good


def array_solution(
    zone: ZoneMap, lost: Sequence[int], others: Sequence[int]
) -> tuple[list[int], npt.NDArray[np.uint8]] | None:
    """Which columns add up to the lost ones. None: there is nothing to make, or no way."""
    return zone.code.express(lost, others) if lost else None


def _read(
    array: Array, zone: ZoneMap, row: int, rows: int, columns: set[int], room: Room
) -> set[int]:
    """Each in one go, side by side; those that could not be read."""
    failed: set[int] = set()
    into = {column: room.read(column, rows) for column in columns}

    def read(column: int) -> None:
        member = array.around.readable(zone, column)
        try:
            if member is None:
                raise MemberError("it was lost, or is slow")
            array.around.column_read(member, zone, column, row, into[column])
        except (MemberError, Late):
            failed.add(column)

    array.side_by_side(read, sorted(columns))
    return failed


def _make(
    zone: ZoneMap,
    crcs: Crcs,
    there: Bools,
    lost: Sequence[int],
    sources: Sequence[int],
    matrix: npt.NDArray[np.uint8],
    content: dict[int, Cells],
    room: Room,
) -> Bools:
    """The lost columns into `content`; in which rows all of it, sources too, checks."""
    rows = len(there)
    data = np.zeros((len(sources), rows), dtype=np.uint64)  # 0: absent, so zeros
    for at, source in enumerate(sources):
        data[at] = np.where(there[:, source], addresses_of(room.read(source, rows)), np.uint64(0))
    made = room.made(len(lost), rows)
    sums = native.encode(matrix, data, made, made.shape[2])
    content.update(zip(lost, made, strict=True))
    wanted = crcs[:, [*sources, *lost]].T
    used = there[:, [*sources, *lost]].T
    return np.asarray(((sums == wanted) | ~used).all(axis=0))


def _repair(
    array: Array,
    zone: ZoneMap,
    row: int,
    crcs: Crcs,
    there: Bools,
    columns: tuple[Sequence[int], Sequence[int]],
    content: dict[int, Cells],
    good: Bools,
) -> None:
    """Rows that didn't check, cell by cell."""
    lost, copied = columns
    for first, last in runs(~good):
        part = slice(first, last)
        wanted = np.zeros_like(there[part])
        wanted[:, list(lost)] = there[part][:, list(lost)]
        slow = []
        for column in copied:
            sums = np.ascontiguousarray(crcs[part, column])
            out = content[column][part]
            had, late = array.read_in_time(zone, column, row + first, sums, out)
            if late:
                slow.append(column)
            wanted[:, column] = there[part, column] & ~had
        if not wanted.any():
            good[part] = True
            continue
        cells, solved = array.rebuild_rows(
            zone, row + first, crcs[part], there[part], wanted, late=slow
        )
        good[part] = solved | ~wanted.any(axis=1)
        for column in (*lost, *copied):
            if column in cells:
                mine = wanted[:, column]
                content[column][part][mine] = cells[column][mine]
