"""Reading around members that are slow: which columns of a zone are *shunned*, and reading a column
in time.

 1. A column is shunned only if the others that are there are enough, by the zone's code.
 2. What was read in vain, as it came too late, is written nowhere.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from raidfs import native
from raidfs.errors import MemberError
from raidfs.raid.member import Member
from raidfs.raid.patience import Late
from raidfs.raid.rebuild import Cells

if TYPE_CHECKING:
    from raidfs.raid.array import Array, ZoneMap


class Around:
    """Of one array. All methods may be called from any thread."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def shunned(self, zone: ZoneMap, also: int | None = None) -> frozenset[int]:
        """Columns of members that sit out, as far as the others are enough to do without them; with
        `also`, as if the member of that column did, too."""
        patience = self._array.patience
        sitting = patience.sitting if patience is not None else ()
        if not sitting and also is None:
            return frozenset()
        lost = set(self._array.absent(zone))
        slow = [c for m in sitting for c, (member, _) in enumerate(zone.columns) if member == m]
        found: set[int] = set()
        for column in slow if also is None or also in slow else [*slow, also]:
            if column not in lost and zone.code.survives(lost | found | {column}):
                found.add(column)
        return frozenset(found)

    def slowest_last(self, zone: ZoneMap, columns: Iterable[int]) -> list[int]:
        """If one of them has to be waited for, rather one of the first: a member that is late for
        once answers soon, and one that is silent perhaps never."""
        patience = self._array.patience
        if patience is None:
            return sorted(columns)
        return sorted(columns, key=lambda column: patience.waited_s(zone.columns[column][0]))

    def readable(self, zone: ZoneMap, column: int) -> Member | None:
        """As `Array.online`, for whoever reads and can do without."""
        patience = self._array.patience
        if patience is not None and patience.sitting and column in self.shunned(zone):
            return None
        return self._array.online(zone, column)

    def open_columns(self, zone: ZoneMap) -> None:
        """So that members tell their descriptors at once. Not on the event loop."""
        patience = self._array.patience
        if patience is None:
            return
        for column in range(zone.code.width):
            member = self.readable(zone, column)
            if member is None or member.never_waits:
                continue
            member_id, slot = zone.columns[column]
            work = functools.partial(member.column_open, zone.zone, column, slot)
            with contextlib.suppress(Late, MemberError):
                patience.ask(member_id, work)

    def column_read(
        self,
        member: Member,
        zone: ZoneMap,
        column: int,
        row: int,
        out: Cells,
        patient: bool = False,
        unless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Fill `out`, or MemberError, or (unless `patient`) Late, if the others are enough, or come
        to be so while it is waited for."""
        patience, size = self._array.patience, self._array.cell_bytes
        member_id, slot = zone.columns[column]
        offset, data = row * size, out.data.cast("B")
        if patience is None or member.never_waits:
            member.column_read(zone.zone, column, slot, offset, data)
            return
        if member.column_read_cached(zone.zone, column, slot, offset, data):
            return

        def read() -> Cells:
            own = native.aligned(out.shape)
            member.column_read(zone.zone, column, slot, offset, own.data.cast("B"))
            return own

        def can_do_without() -> bool:
            return column in self.shunned(zone, also=column)

        if patient:
            out[:] = patience.ask(member_id, read, patient=True, unless=unless)
        elif can_do_without():
            out[:] = patience.ask(member_id, read)
        else:
            out[:] = patience.ask(member_id, read, patient=True, unless=can_do_without)
