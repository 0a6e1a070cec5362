"""Zones, slots and credits: who may write how much, and where the next rows lie.

Words: a *slot* is the place of one column on one member; a *credit* is the promise of one data cell
to a dirty page; *room* is what the open zones (allocated, not yet full) can still take, in data
cells. A zone in *limbo* is empty and its row is gone from the metadata, but it may be erased only
when that commit is durable and nobody reads from it any more.

Promises (numbers of docs/ARCHITECTURE.md):
 3. A zone is erased only when no retained epoch refers to a cell in it and the commit that removed
    the last reference is durable: `store_zones` -> (commit is durable) -> `erasable`.
10. A full volume says ENOSPC when the write arrives: credits are granted only against zones that
    are allocated and preallocated on their members. Room never falls below credits, because a
    flush of P pages uses at most P + k - 1 cells, and as many flushes as may still come are counted
    (`rounding_cells`). Open zones may have different codes: what was promised while some had
    narrow rows holds when one with wide rows comes (zones.py, `rounding_of`), and one is closed
    only when the others' room stands for all promises (`close`).

A cell may have several references, by versions of a leaf that snapshots keep and by leaves that
share it, and each counts as live: `live` of a zone may be more than its cells. A reference that was
made in memory (a page was told to share the cell) is counted only when its epoch is flushed; until
then the epoch *holds* the zone, and it stays. A flush alone would not empty it meanwhile, since
what the reference was copied from lives until that epoch, too; the cleaner could.

New zones avoid lost members (allocation.py). Only when that can't be are zones written with columns
missing: new ones, or *damaged* ones, which had room left when a member was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from ..errors import MemberError, MemberFull, OutOfSpace
from ..leaves import ZONE_SHIFT
from ..raid.array import Array, Reach, ZoneMap
from ..raid.code import Code, parse_code
from ..raid.label import MemberEntry, Parameters
from ..raid.member import Member
from ..raid.placement import usable_zones
from .allocation import Allocation
from .meta import Meta
from .reserve import Reserve
from .zones import SLACK_ROWS as SLACK_ROWS
from .zones import Rows as Rows
from .zones import Usage as Usage
from .zones import Zone as Zone
from .zones import rounding_of

Offload = Callable[..., Awaitable[Any]]
Addresses = npt.NDArray[np.uint64]

FEW = 16  # cells that a loop is through with before numpy has begun


class Space:
    """The zones of one volume. Plain functions run on the event loop; only members are awaited."""

    def __init__(
        self,
        meta: Meta,
        array: Array,
        parameters: Parameters,
        slots: dict[int, int],
        offload: Offload,
        claims: Callable[[], tuple[int, int]],
        pages_per_burst_max: int = 4096,
        entries: Sequence[MemberEntry] = (),
    ) -> None:
        """`slots`: zone slots of each member by id. `entries`: of the labels. `claims`: how many
        cells are dirty in memory now, and how many more may become so without asking again."""
        self.meta = meta
        self.array = array
        self.parameters = parameters
        self.offload = offload
        self.pages_per_burst_max = pages_per_burst_max
        self.rows_per_zone = parameters.zone_bytes // parameters.cell_bytes
        self.zones: dict[int, Zone] = {}
        self.limbo: dict[int, Zone] = {}
        self.open: list[Zone] = []
        self.reserved = 0  # credits of writers that haven't made their cells yet
        self.writers = 0  # how many those are
        self.placed = 0  # dirty cells that have rows already, until their epoch is retired
        self.sealed_epochs = 1  # that wait for their flush, or may do so soon: one at least
        self._claims = claims
        self.wanted = trio.Event()  # a zone should be allocated ahead
        self.allocation = Allocation(meta, array, parameters, slots)
        self.allocation.retable(entries, parameters)
        self.allocating = trio.Lock()  # held while a zone is made or erased
        self.on_failed: Callable[[int, str], None] = lambda member, reason: None
        self.on_gone: Callable[[int], None] = lambda zone: None  # it went into limbo
        self._idle: set[int] = set()  # zones without live cells that are full, or damaged
        self._held: dict[int, set[int]] = {}  # by epoch: the zones that it holds
        self.reserve = Reserve(self)
        self._load()
        self.reserve.load()

    def _load(self) -> None:
        for row in self.meta.zones():
            code = parse_code(row.code)
            zone = Zone(
                ZoneMap(row.zone, code, row.rows, tuple((m, s) for m, s in row.columns)),
                row.fill,
                row.live,
                youngest=row.zone,
                missed=dict(row.missed),
            )
            self.zones[row.zone] = zone
            self.array.stale.update((row.zone, column) for column in row.missed)
            if zone.room_cells:
                self.open.append(zone)
        self.allocation.load(place for zone in self.zones.values() for place in zone.map.columns)
        self.after_loss()

    # -- room and credits -----------------------------------------------------------------------

    @property
    def code(self) -> Code:
        """Of new zones, while enough members are there."""
        return self.allocation.code

    @property
    def zone_cells(self) -> int:
        """Of a new zone."""
        return self.rows_per_zone * self.code.k

    @property
    def room_cells(self) -> int:
        return sum(zone.room_cells for zone in self.open)

    @property
    def dirty_cells(self) -> int:
        """In memory, and not yet given a row."""
        return self._claims()[0] - self.placed

    @property
    def credits(self) -> int:
        """Cells promised: reserved, granted in advance, or dirty in memory and not yet given a
        row."""
        return self.reserved + sum(self._claims()) - self.placed

    @property
    def _flushes(self) -> int:
        """That are to come: those of sealed epochs, that of the open one, and one for each writer,
        who may be last to dirty an epoch."""
        return self.writers + 1 + self.sealed_epochs

    @property
    def rounding_cells(self) -> int:
        """Cells that the flushes to come may leave unused, less than a row each."""
        return rounding_of(self.open, self._flushes, self.code.k)

    def _grantable(self, privileged: bool, without: Zone | None = None) -> int:
        """To one more writer: what is left of the room when `rounding_cells`, as they are with it,
        and unless it is privileged the slack, are kept. `without`: as if that zone weren't open."""
        zones = self.open
        if without is not None:
            zones = [zone for zone in zones if zone is not without]
        room_cells, k_max = 0, 0
        for zone in zones:
            k = zone.map.code.k
            room_cells += (zone.map.rows - zone.fill) * k
            k_max = k if k > k_max else k_max
        kept = rounding_of(zones, self._flushes + 1, self.code.k)
        if not privileged:
            kept += SLACK_ROWS * (k_max or self.code.k)
        return room_cells - self.credits - kept

    def grantable(self) -> int:
        """Cells that may be granted in advance, now; may be negative."""
        return self._grantable(False)

    @property
    def lacking_cells(self) -> int:
        """At a cut, how many promises granted in advance must be taken back (none, if negative):
        they may be kept in the epoch just opened, whose flush then leaves cells unused as well."""
        return self.credits + self.rounding_cells - self.room_cells

    def allows_cut(self) -> bool:
        """One more epoch may be sealed now although others wait for their flush: with the promises
        granted in advance taken back, room stands for what all those flushes may leave unused."""
        kept = rounding_of(self.open, self._flushes + 1, self.code.k)
        return self.room_cells - self.credits + self._claims()[1] >= kept

    def wants_zone(self) -> bool:
        """Less than a zone's worth can be granted: time to allocate one ahead."""
        return self._grantable(False) < self.rows_per_zone * self.code.k

    def take(self, cells: int, privileged: bool = False) -> bool:
        """Grant a writer `cells` credits, of the room there is. False: it isn't enough."""
        assert cells > 0
        if self._grantable(privileged) < cells:
            return False
        self.reserved += cells
        self.writers += 1
        return True

    async def make_room(self, cells: int, privileged: bool = False) -> bool:
        """Allocate zones until `take` can grant that many; False when no more fits."""
        while self._grantable(privileged) < cells:
            if not await self.grow(lambda: self._grantable(privileged) < cells):
                return False
        return True

    def give(self, cells: int) -> None:
        """End a reservation: its cells are dirty in memory now, or weren't needed."""
        assert 0 < cells <= self.reserved and self.writers, (cells, self.reserved)
        self.reserved -= cells
        self.writers -= 1

    # -- zones ----------------------------------------------------------------------------------

    def healthy(self, zone: Zone) -> bool:
        """All its columns can be used."""
        online, there = self.array.online, zone.map
        return all([online(there, column) is not None for column in range(there.code.width)])

    def online(self, member: int) -> bool:
        return self.allocation.online(member)

    def readable(self, zone: Zone, without: int = -1) -> bool:
        """Its code survives the members lost, and this one."""
        lost = frozenset(
            column
            for column, (member, _) in enumerate(zone.map.columns)
            if member == without or self.array.online(zone.map, column) is None
        )
        return not lost or zone.map.code.survives(lost)

    def _sort_open(self) -> None:
        """What is written next goes to open[0]: whole zones first, of these such that no column is
        to go elsewhere, and of the wanted code, of these the oldest."""
        closed, code = self.allocation.closed_to, self.code

        def worth(zone: Zone) -> tuple[bool, bool, int]:
            goes = bool(closed) and any(member in closed for member, _ in zone.map.columns)
            goes = goes or zone.map.code != code
            return not self.healthy(zone), goes, zone.map.zone

        self.open.sort(key=worth)

    def after_loss(self) -> None:
        """A member went offline: a zone beyond reading takes nothing more."""
        self.reserve.after_loss()
        self.open = [zone for zone in self.open if self.readable(zone)]
        self._sort_open()
        self.find_idle()

    def after_retable(self) -> None:
        """Labels say something else of members."""
        self._sort_open()

    def after_return(self) -> None:
        """A member is online again: zones that nobody could write to take rows again."""
        known = set(map(id, self.open))
        self.open += [
            zone
            for zone in self.zones.values()
            if zone.room_cells and not zone.kept and id(zone) not in known and self.readable(zone)
        ]
        self._sort_open()

    def find_idle(self) -> None:
        """Zones that nobody needs, and that could go."""
        empty = (zone for zone in self.zones.values() if zone.live == 0)
        self._idle = {z.map.zone for z in empty if not z.room_cells or not self.healthy(z)}

    def survive(self, lost: set[int]) -> bool:
        """All that lies in zones can be read without these members. From any thread."""
        for zone in list(self.zones.values()):
            columns = enumerate(zone.map.columns)
            gone = frozenset(c for c, (m, _) in columns if m in lost or c in zone.missed)
            if zone.needed and gone and not zone.map.code.survives(gone):
                return False
        return True

    def affordable(self, member: int) -> bool:
        """Without it, all that lies in zones can be read, and what was promised room has it."""
        room = sum(zone.room_cells for zone in self.open if self.readable(zone, member))
        full = (zone for zone in self.zones.values() if zone.needed)
        return room >= self.credits and all(self.readable(zone, member) for zone in full)

    def note_rows(self, zone: Zone, row: int, reach: Reach) -> None:
        """Rows from there on were written, when `reach` had been asked for. In the transaction that
        records the rows."""
        for column in self.array.missed(reach, zone.map):
            if column not in zone.missed:
                zone.missed[column] = row
                self.array.stale.add((zone.map.zone, column))
                self.meta.set_missed(zone.map.zone, column, row)

    def distrust(self, columns: list[tuple[Zone, int]], epoch: int) -> None:
        """Nothing of these is believed: in the transaction that says so."""
        for zone, column in columns:
            if self.zones.get(zone.map.zone) is zone:
                zone.missed[column] = 0
                self.array.stale.add((zone.map.zone, column))
                self.meta.set_missed(zone.map.zone, column, 0)

    def rows_had(self, zone: Zone, column: int) -> int:
        """How many rows of the column can be read where it lies now."""
        if self.array.present(zone.map, column) is None:
            return 0
        return min(zone.missed.get(column, zone.fill), zone.fill)

    def move_column(self, zone: Zone, column: int, member: int, slot: int, rows: int) -> None:
        """It lies there now, with rows below `rows`: in the transaction that says so. When that is
        durable the slot that it had, if it had another, may be given back."""
        number = zone.map.zone
        columns = list(zone.map.columns)
        columns[column] = (member, slot)
        self.meta.move_column(number, column, member, slot)
        zone.map = ZoneMap(number, zone.map.code, zone.map.rows, tuple(columns))
        if rows < zone.fill:
            zone.missed[column] = rows
            self.array.stale.add((number, column))
            self.meta.set_missed(number, column, rows)
        else:
            zone.missed.pop(column, None)
            self.array.stale.discard((number, column))
        self.on_gone(number)  # C threads learn of it anew
        self._sort_open()

    async def prepare(self, pages: int) -> None:
        """Before `rows_for`: allocate whole zones, lest so many pages go to damaged ones."""

        if self.open and self.open[0].room_cells >= pages and self.healthy(self.open[0]):
            return

        def lacking() -> bool:
            whole = sum(zone.room_cells for zone in self.open if self.healthy(zone))
            return whole < pages

        while lacking() and not all(map(self.healthy, self.open)):
            try:
                if not await self.grow(lacking, whole=True):
                    return
            except OutOfSpace:  # of the metadata: the damaged ones will do
                return

    async def grow(self, still_wanted: Callable[[], bool], whole: bool = False) -> bool:
        """Allocate one more zone; False when no set of members has room for one. `whole`: only one
        without missing columns will do. OutOfSpace when the metadata has no room for it. Where room
        is scarce, the cleaner's spare comes first."""
        async with self.allocating:
            while still_wanted():
                keep = self.reserve.wanted()
                if not keep and not self.reserve.spares_a_zone():
                    return False
                choice = self.allocation.choose(whole)
                if choice is None:
                    return False
                code, members = choice
                slots = [self.allocation.slots[m].take() for m in members]
                number = self.meta.next_zone
                columns = tuple(zip(members, slots, strict=True))
                new = ZoneMap(number, code, self.rows_per_zone, columns)
                reach = self.array.reach(new)
                errors = await self.offload(self.array.create_zone, new)
                if not errors:
                    zone = await self._admit(new, reach)
                    if keep:
                        self.reserve.keep(zone)
                        continue
                    return True
                for member, error in errors.items():
                    self.allocation.is_full(member)  # passed over for a while, or for good:
                    if not isinstance(error, MemberFull):
                        self.on_failed(member, str(error))
                self.allocation.give(new.columns)
            return True

    async def _admit(self, new: ZoneMap, reach: Reach) -> Zone:
        missed = dict.fromkeys(self.array.missed(reach, new), 0)
        try:
            with self.meta.atomic():
                self.meta.insert_zone(new.zone, new.code.text, new.rows, new.columns)
                for column in missed:
                    self.meta.set_missed(new.zone, column, 0)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.offload(self.array.remove_zone, new)
            self.allocation.give(new.columns)
            raise
        self.zones[new.zone] = zone = Zone(new, youngest=new.zone, missed=missed)
        self.array.stale.update((new.zone, column) for column in missed)
        self.open.append(zone)
        self._sort_open()
        self.allocation.changed()
        return zone

    def release(self, zone: Zone) -> None:
        """The cleaner keeps the zone no longer: what room it has is the writers'."""
        zone.kept = False
        if zone.room_cells:
            self.open.append(zone)
            self._sort_open()
        if zone.live == 0:
            self._idle.add(zone.map.zone)

    async def close(self, zone: Zone) -> bool:
        """Nothing more is written to the zone: it is to be emptied. False: what was promised needs
        its room, as no other can be had."""
        if zone in self.open:

            def lacking() -> bool:
                return zone in self.open and self._grantable(False, zone) < 0

            while lacking() and await self.grow(lacking):
                pass
            if zone not in self.open:
                return zone.closed
            if self._grantable(False, zone) < 0:
                return False
            self.open.remove(zone)
        self.discard(zone)
        return True

    def discard(self, zone: Zone) -> None:
        """Of a zone that isn't open: its room is nobody's any more, and if it holds nothing it goes
        with the next cut."""
        assert zone not in self.open
        zone.closed, zone.kept = True, False
        if zone.live == 0:
            self._idle.add(zone.map.zone)

    @property
    def losses_survived(self) -> int:
        """Members that may be lost, whichever they are, while none is: of all that is stored."""
        zones = (zone.map.code.tolerance for zone in self.zones.values() if zone.needed)
        return min(zones, default=self.code.tolerance)

    # -- rows for a flush -----------------------------------------------------------------------

    def rows_for(self, pages: int) -> list[Rows]:
        """Hand out rows for `pages` pages that have their credits; never fails, by promise 10."""
        taken: list[Rows] = []
        self.placed += pages
        while pages:
            zone = self.open[0]
            code = zone.map.code
            most = max(1, self.pages_per_burst_max // code.k) * code.k  # or each burst would round
            here = min(pages, zone.room_cells, most)
            rows = -(-here // code.k)
            zone.placed = True
            taken.append(Rows(zone, zone.fill, rows, here))
            zone.fill += rows
            pages -= here
            if zone.room_cells == 0:
                self.open.pop(0)
        return taken

    def retire(self, pages: int) -> None:
        """The pages that `rows_for` placed have left memory."""
        self.placed -= pages
        assert self.placed >= 0

    # -- references -----------------------------------------------------------------------------

    def hold(self, cells: Addresses, epoch: int) -> None:
        """Files came to share these cells (0: none) in that epoch: their zones stay until it has
        been applied."""
        held = self._held.setdefault(epoch, set())
        for number in np.unique(cells >> np.uint64(ZONE_SHIFT)).tolist():
            if number and number not in held:
                self.zones[number].holds += 1
                held.add(number)

    def let_go(self, epoch: int) -> None:
        """What the epoch shares is counted as live now. Before its `store_zones`."""
        for number in self._held.pop(epoch, ()):
            zone = self.zones[number]
            zone.holds -= 1
            if zone.live == 0:
                self._idle.add(number)

    def account(self, cells: Addresses | list[int], sign: int) -> set[int]:
        """Add (sign 1) or take away (-1) references to cells; returns the zones touched."""
        if len(cells) <= FEW:
            counts = dict[int, int]()
            for cell in cells if isinstance(cells, list) else cells.tolist():
                counts[cell >> ZONE_SHIFT] = counts.get(cell >> ZONE_SHIFT, 0) + 1
        else:
            found = np.unique(np.asarray(cells) >> np.uint64(ZONE_SHIFT), return_counts=True)
            counts = dict(zip(*(each.tolist() for each in found), strict=True))
        for number, count in counts.items():
            zone = self.zones[number]
            zone.live += sign * count
            assert zone.live >= 0, zone
        return set(counts)

    def store_zones(self, touched: Iterable[int], epoch: int) -> None:
        """Write fill and live of touched zones to the metadata that becomes durable with `epoch`;
        those that are full of dead cells go into limbo, and damaged ones that nobody needs."""
        touched, changed = set(touched), []
        for number in touched:
            zone = self.zones[number]
            zone.placed = False
            if zone.live == 0:
                self._idle.add(number)
        for number in touched | self._idle:
            zone = self.zones[number]
            if not (zone.needed or zone.kept) and (zone.room_cells == 0 or self._spare(zone)):
                self.meta.delete_zone(number)
                self.array.stale.difference_update((number, column) for column in zone.missed)
                zone.retired = epoch
                self.limbo[number] = self.zones.pop(number)
                self.on_gone(number)
                self._idle.discard(number)
                if zone in self.open:
                    self.open.remove(zone)
                continue
            if zone.live or zone.kept or (zone.room_cells and self.healthy(zone)):
                self._idle.discard(number)
            if number in touched:
                changed.append((zone.fill, zone.live, number))
        self.meta.update_zones(changed)

    def _spare(self, zone: Zone) -> bool:
        """The zone is damaged, and what was promised room has it elsewhere."""
        if self.healthy(zone):
            return False
        return zone not in self.open or self._grantable(True) >= zone.room_cells

    def erasable(self, durable: int) -> list[Zone]:
        """Zones in limbo whose commit is durable and that nobody reads (promise 3)."""
        return [z for z in self.limbo.values() if z.retired <= durable and not z.pins]

    async def erase(self, zones: list[Zone]) -> None:
        """Remove the columns and give the slots back. Whoever calls `grow` from now on waits until
        that is done. Zones that were erased meanwhile, or are being read, are left out."""
        async with self.allocating:
            zones = [z for z in zones if z.map.zone in self.limbo and not z.pins]
            if not zones:
                return
            for zone in zones:
                del self.limbo[zone.map.zone]
            await self.offload(self._erase_columns, zones)
            for zone in zones:
                self.allocation.give(zone.map.columns)
            self.allocation.nobody_is_full()

    def _erase_columns(self, zones: list[Zone]) -> None:
        for zone in zones:
            self.array.remove_zone(zone.map)  # what fails stays behind and is swept at a mount

    def sweep(self) -> int:
        """At mount: remove columns that no zone owns (a crash came between making one and the
        commit that names it). Returns how many."""
        count = 0
        for member in filter(self.online, self.allocation.slots):
            count += self.sweep_member(member, self.allocation.member(member))
        return count

    def sweep_member(self, member: int, store: Member) -> int:
        """The same on one that is back, before it is online. Blocks; from any thread."""
        count = 0
        for zone, column in store.columns():
            known = self.zones.get(zone) or self.limbo.get(zone)
            columns = known.map.columns if known is not None else ()
            if column < len(columns) and columns[column][0] == member:
                continue
            with contextlib.suppress(MemberError):
                store.column_remove(zone, column, 0)
                count += 1
        return count

    # -- figures --------------------------------------------------------------------------------

    def zones_possible(self) -> int:
        """How many zones could be allocated now."""
        return self.allocation.zones_possible()

    def usage(self) -> Usage:
        """What statfs tells: free is what pages that need new cells could be written, once the
        cleaner has been asked to. The cleaner's spare is nobody's."""
        code, members = self.allocation.shape()
        per_zone = self.rows_per_zone * code.k
        total = (
            usable_zones([self.allocation.slots[m].total for m in members], code) - 1
        ) * per_zone
        unallocated = max(0, self.zones_possible() * per_zone - self.reserve.withheld_cells)
        free = unallocated + self._grantable(False) + self._claims()[1] + self.reserve.gains()
        # cells with several references are fewer than those: no more than were written
        live = sum(self.reserve.bound(zone) for zone in self.zones.values())
        return Usage(max(total, live), max(0, free), live, len(self.zones))
