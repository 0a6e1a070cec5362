"""What the mender does in threads: pieces of columns, made and written."""

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
from ..raid.regenerate import Room, regenerate


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
    copied = [task.column for task in tasks if task.why in ("leaving", "wished")]
    lost = [task.column for task in tasks if task.column not in copied]
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
