"""What C threads are told of zones, so that they read cells without asking: see raidfs/columns.py.

When Python has read cells for somebody, the next reader nearby need not ask: the zone's columns,
the checksums of the whole slab and, of lost columns, the recipes are put. Rows that a flush wrote
are put before any leaf says that they are there. All of it may be forgotten at any time, and is put
again when somebody had to ask.

 1. Only zones of `Space.zones` are put, and whoever takes one out of there calls `forget` in the
    same moment: so a zone's columns are never read when they have been erased.
 2. A zone is put whole: if a member that is online gives no descriptor for its column (simulated
    ones don't), Python goes on reading the zone; unless that member sits out, as being slow: then
    the zone is put without, and forgotten when the member is read again.
 3. Nothing here waits for a member; what that takes is done by `open_columns`, beside the loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..columns import SLAB_ROWS, ZONES_MAX, Columns, Look, close_all, zones_affordable
from ..errors import RaidfsError
from .space import Zone

if TYPE_CHECKING:
    from .store import Store

NO_LOOK = Look(0, 0, False, False)  # at a column that is lost
BUSY_S = 0.2
SLABS_AHEAD = 8  # put at once where slabs are asked for in sequence


class Feed:
    """Of one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        zones_max = ZONES_MAX  # columns of images and devices share descriptors
        if any(entry.kind == "directory" for entry in store.assembly.label.members):
            zones_max = zones_affordable(store.parameters.width)
        self.columns = Columns(store.cell_bytes, zones_max)
        self._without: dict[int, set[int]] = {}  # zones put without a member that sits out
        self._cells_read, self._read_s = 0, -BUSY_S

    def close(self) -> None:
        """Let go of the members' descriptors, which would keep their locks."""
        self.columns.close()

    def busy(self) -> bool:
        """Users have read from members lately; as of the last look."""
        told, now_s = self.columns.statistics(), time.monotonic()
        cells = told.cells_read + told.cells_rebuilt
        if cells != self._cells_read:
            self._cells_read, self._read_s = cells, now_s
        return now_s - self._read_s < BUSY_S

    # -- putting ----------------------------------------------------------------------------------

    async def open_columns(self, zones: Mapping[int, Zone]) -> None:
        """These zones, which somebody has pinned, are about to be put."""
        array = self.store.array
        if array.patience is None:
            return
        for number, zone in zones.items():
            if not self.columns.zone_known(number) and self._waits(zone):
                await self.store.offload(array.around.open_columns, zone.map)

    def _waits(self, zone: Zone) -> bool:
        """Whether a file of the zone may be one that opening takes time."""
        states = self.store.array.states
        members = (states[number].member for number, _ in zone.map.columns if number in states)
        return any(member is not None and not member.never_waits for member in members)

    def read(self, parts: Iterable[tuple[Zone, int, int, int]]) -> None:
        """Somebody asked for these (zone, column, row, rows): put what reading them takes."""
        done: set[tuple[int, int]] = set()
        for zone, column, row, rows in parts:
            number = zone.map.zone
            if not self._zone(zone):
                continue
            if self.store.array.around.readable(zone.map, column) is None:
                self._recipes(zone, [column])
            for slab in range(row // SLAB_ROWS, (row + rows - 1) // SLAB_ROWS + 1):
                if (number, slab) not in done:
                    done.add((number, slab))
                    self._slabs(number, slab)

    def written(self, zone: Zone, row: int, crcs: npt.NDArray[np.uint32]) -> None:
        """These rows, uint32 (rows, width), are on the members."""
        if self._zone(zone):
            self.columns.rows_put(zone.map.zone, row, crcs)

    def _zone(self, zone: Zone) -> bool:
        """Put the zone, unless it is known. False if that can't be."""
        number = zone.map.zone
        if self.store.space.zones.get(number) is not zone:
            return False
        if self.columns.zone_known(number):
            return True
        found: list[tuple[int, int]] = []
        looks: list[Look | None] = []
        lost, without = [], []
        for column, (member_id, slot) in enumerate(zone.map.columns):
            member = self.store.array.online(zone.map, column)
            where = None if member is None else member.column_descriptor(number, column, slot)
            readable = self.store.array.around.readable(zone.map, column) is not None
            if not readable:
                lost.append(column)
            if where is None and readable:
                close_all(fd for fd, _ in found)
                return False
            if where is None and member is not None:
                without.append(member_id)
            looks.append(None if where is None or member is None else member.look())
            found.append(where or (-1, 0))
        self._put(zone, found, looks)
        for member_id in without:
            self._without.setdefault(member_id, set()).add(number)
        self._recipes(zone, [column for column in lost if column < zone.map.code.k])
        return True

    def _put(self, zone: Zone, found: list[tuple[int, int]], looks: list[Look | None]) -> None:
        """Promise 3: what is known of the files is told, so that nobody has to ask them."""
        known = all(look is not None or fd < 0 for look, (fd, _) in zip(looks, found, strict=True))
        members = [member for member, _ in zone.map.columns]
        self.columns.zone_put(
            zone.map.zone,
            zone.map.code.k,
            zone.map.rows,
            found,
            members,
            [look or NO_LOOK for look in looks] if known else None,
        )

    def _recipes(self, zone: Zone, columns: Iterable[int]) -> None:
        """How to do without lost columns."""
        code, array = zone.map.code, self.store.array
        there = [c for c in range(code.width) if array.around.readable(zone.map, c) is not None]
        for column in columns:
            solved = code.express([column], there)
            if solved is not None:
                coefficients = np.zeros(code.width, dtype=np.uint8)
                coefficients[solved[0]] = solved[1][0]
                self.columns.recipe_put(
                    zone.map.zone, column, coefficients, in_doubt=array.patience is not None
                )

    def _slabs(self, zone: int, slab: int) -> None:
        """Put the slab, unless it is known, and some after it if they seem to be wanted next."""
        if self.columns.slab_known(zone, slab):
            return
        in_sequence = slab == 0 or self.columns.slab_known(zone, slab - 1)
        with contextlib.suppress(RaidfsError):  # whoever needs them will be told
            for number in range(slab, slab + (SLABS_AHEAD if in_sequence else 1)):
                crcs = self.store.meta.slab(zone, number)
                if not len(crcs):
                    return
                self.columns.slab_put(zone, number, crcs)

    # -- forgetting -------------------------------------------------------------------------------

    def forget(self, zone: int) -> None:
        """Promise 1."""
        self.columns.zone_forget(zone)

    def forget_all(self) -> None:
        """Members are back, so columns can be read that could not be."""
        for number in self.store.space.zones:
            self.columns.zone_forget(number)

    def normal(self, member: int) -> None:
        """It is read again. Zones that were put without it have lost nothing: they are put anew."""
        for number in self._without.pop(member, ()):
            self.columns.zone_forget(number)

    def lose(self, member: int) -> None:
        """Nothing is read from this member any more."""
        self.columns.lose(member)
