"""What the mender does in threads: rows of columns, made and written.

The quick way (`remake`) takes all rows of a step at once, and says which are done; what it leaves
is made piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import MemberError
from ..raid.array import Array, ZoneMap, addresses_of
from ..raid.member import Member
from ..raid.rebuild import Bools, Cells, runs
from ..raid.regenerate import Destination, DestinationFailed, Room, regenerate, remake


class Target(Protocol):
    """A column that is made anew on a member, from row `first` on."""

    @property
    def column(self) -> int: ...
    @property
    def why(self) -> str: ...
    @property
    def member(self) -> int: ...
    @property
    def first(self) -> int: ...


Targets = Sequence[tuple[Target, Member, int]]  # with the member and the slot there


class TargetFailed(Exception):
    """Where a column was to go. Whoever called turns it into the member's loss."""

    def __init__(self, member: int, cause: MemberError) -> None:
        self.member, self.cause = member, cause


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows from `row` on, by column. `write`: bool (n, width), the cells to be written; `beyond`:
    rows that could not be had."""

    row: int
    content: dict[int, Cells]
    write: Bools
    beyond: int


def make_rows(
    array: Array,
    zone: ZoneMap,
    targets: Targets,
    row: int,
    crcs: npt.NDArray[np.uint32],
    there: Bools,
    room: Room,
) -> int:
    """Rows from `row` on of all columns wanted, to where they go. Returns how many could not be
    had. TargetFailed."""
    tasks = [task for task, _, _ in targets]
    lost, copied = _ways(tasks)
    goals = [Destination(task.column, member, slot, task.first) for task, member, slot in targets]
    try:
        done = remake(array, zone, row, crcs, there, lost, copied, goals, room)
    except DestinationFailed as failed:
        raise TargetFailed(tasks[failed.number].member, failed.cause) from failed
    beyond = 0
    for begin, end in runs(~done):
        for first in range(begin, end, room.rows):
            part = slice(first, min(end, first + room.rows))
            piece = make_piece(array, zone, tasks, row + first, crcs[part], there[part], room)
            write_piece(zone, targets, piece)
            beyond += piece.beyond
    return beyond


def _ways(tasks: Sequence[Target]) -> tuple[list[int], list[int]]:
    """Columns that are rebuilt, and those that are copied as long as they can be read."""
    copied = [task.column for task in tasks if task.why in ("leaving", "wished")]
    return [task.column for task in tasks if task.column not in copied], copied


def make_piece(
    array: Array,
    zone: ZoneMap,
    tasks: Sequence[Target],
    row: int,
    crcs: npt.NDArray[np.uint32],
    there: Bools,
    room: Room,
) -> Piece:
    """Rows of all columns wanted, from what is left of them."""
    lost, copied = _ways(tasks)
    content, good = regenerate(array, zone, row, crcs, there, lost, copied, room)
    return Piece(row, content, there & good[:, None], int((~good).sum()))


def write_piece(zone: ZoneMap, targets: Targets, piece: Piece) -> None:
    """To where the columns go. TargetFailed."""
    for task, member, slot in targets:
        cells, wanted = piece.content[task.column], piece.write[:, task.column].copy()
        wanted[: max(0, task.first - piece.row)] = False
        cell_bytes = cells.shape[1]
        for first, last in runs(wanted):
            offset = (piece.row + first) * cell_bytes
            addresses = addresses_of(cells[first:last])
            try:
                member.column_write(zone.zone, task.column, slot, offset, addresses, cell_bytes)
            except MemberError as error:
                raise TargetFailed(task.member, error) from error


def sync_targets(zone: ZoneMap, targets: Targets) -> None:
    """TargetFailed."""
    for task, member, slot in targets:
        try:
            member.column_sync(zone.zone, task.column, slot)
        except MemberError as error:
            raise TargetFailed(task.member, error) from error
