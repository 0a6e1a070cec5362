"""Whole columns made anew, many rows at once: the quick ways of array.rebuild_rows.

Nearly all rows of a zone that lost a column are alike: the same columns are there to rebuild from,
and nothing else is wrong with them. So one pass over all of them gives the wanted cells and the
checksums of everything. There are three ways, each for what the one before leaves over:

    remake         reads, makes and writes in C, as far as nothing has to be waited for
    regenerate     reads each source in one go, as Patience allows, then makes
    rebuild_rows   (array.py) looks at each cell for itself, heals, counts and tells

 1. What is returned as good is as its CRC-32C says; absent cells are nobody's.
 2. Memory is taken once for all pieces (`Room`), since new memory costs as much as the reading.
 3. Each way gives the same cells.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.errors import MemberError
from raidfs.raid.array import Array, ZoneMap, addresses_of
from raidfs.raid.member import Member, said_of
from raidfs.raid.patience import Late
from raidfs.raid.rebuild import Bools, Cells, Crcs, runs
from raidfs.steps import Goal, GoalFailed, Spot, make_columns

NEAR_BYTES = 128 << 10  # of each column at once: all of them stay in the CPU's cache


class Destination(NamedTuple):
    """Where a column is to be written: rows of the zone from `first` on."""

    column: int
    member: Member
    slot: int
    first: int


class DestinationFailed(Exception):
    """Which of them, and why."""

    def __init__(self, number: int, cause: MemberError) -> None:
        self.number, self.cause = number, cause


class Room:
    """Memory for pieces of columns of up to `rows` rows, one after the other."""

    def __init__(self, rows: int, cell_bytes: int) -> None:
        self.rows = rows
        self._shape = (rows, cell_bytes)
        self._cells: dict[int, Cells] = {}
        self._made: Cells | None = None
        self._near: Cells | None = None

    def near(self, columns: int) -> Cells:
        """Bytes for a few rows of so many columns."""
        need = columns * max(NEAR_BYTES, self._shape[1])
        if self._near is None or self._near.size < need:
            self._near = native.aligned((need,))
        return self._near[:need]

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


def remake(
    array: Array,
    zone: ZoneMap,
    row: int,
    crcs: Crcs,
    there: Bools,
    lost: Sequence[int],
    copied: Sequence[int],
    destinations: Sequence[Destination],
    room: Room,
) -> Bools:
    """As `regenerate`, and written, without waiting for any member that is read. Returns bool (n,):
    rows that are done; of the others nothing is. Blocks. DestinationFailed."""
    undone = np.zeros(len(there), dtype=np.bool_)
    readable = functools.partial(array.around.readable, zone)
    others = [c for c in range(zone.code.width) if c not in lost and readable(c) is not None]
    solved = array_solution(zone, lost, others)
    if (lost and solved is None) or not all(each.member.lends for each in destinations):
        return undone
    used, matrix = solved if solved is not None else ([], np.zeros((0, 0), np.uint8))
    columns = [*used, *(column for column in copied if column not in used)]
    coefficients = np.zeros((len(lost), len(columns)), np.uint8)
    coefficients[:, : len(used)] = matrix
    with contextlib.ExitStack() as stack:
        sources = list[tuple[int, Spot]]()
        for column in columns:
            if (spot := _spot(array, zone, column, row, stack)) is None:
                return undone
            sources.append((column, spot))
        goals = _goals(array, zone, row, destinations, stack)
        near = room.near(len(columns) + len(lost))
        try:
            good = make_columns(
                sources, lost, coefficients, goals, crcs, there, array.cell_bytes, near
            )
        except GoalFailed as failed:
            it = destinations[failed.number]
            with _of_destination(failed.number), said_of(it.member.path, _writing(zone, it)):
                raise failed.error from None
    done = there[good]
    array.remade(int(done[:, columns].sum()), int(done[:, list(lost)].sum()))
    return good


def _spot(
    array: Array, zone: ZoneMap, column: int, row: int, stack: contextlib.ExitStack
) -> Spot | None:
    """Where to read the column, as long as `stack` lasts; None: not without waiting."""
    member = array.around.readable(zone, column)
    if member is None or not (member.never_waits or member.tells_cached):
        return None
    found = member.column_descriptor(zone.zone, column, zone.columns[column][1])
    if found is None:
        return None
    fd, start = found
    stack.callback(os.close, fd)
    return Spot(fd, not member.never_waits, start + row * array.cell_bytes)


def _goals(
    array: Array,
    zone: ZoneMap,
    row: int,
    destinations: Sequence[Destination],
    stack: contextlib.ExitStack,
) -> list[Goal]:
    goals = []
    for number, it in enumerate(destinations):
        with _of_destination(number):
            place = stack.enter_context(it.member.column_borrow(zone.zone, it.column, it.slot))
        spot = Spot(place.fd, False, place.offset_bytes + row * array.cell_bytes)
        goals.append(Goal(it.column, max(0, it.first - row), spot))
    return goals


def _writing(zone: ZoneMap, destination: Destination) -> str:
    return f"writing {zone.zone:08x}.{destination.column}"


@contextlib.contextmanager
def _of_destination(number: int) -> Iterator[None]:
    try:
        yield
    except MemberError as error:
        raise DestinationFailed(number, error) from error


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
