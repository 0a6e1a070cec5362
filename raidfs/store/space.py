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
    (`rounding_cells`).

A cell may have several references, by versions of a leaf that snapshots keep and by leaves that
share it, and each counts as live: `live` of a zone may be more than its cells. A reference that was
made in memory (a page was told to share the cell) is counted only when its epoch is flushed; until
then the epoch *holds* the zone, and it stays. A flush alone would not empty it meanwhile, since
what the reference was copied from lives until that epoch, too; the cleaner could.

New zones avoid lost members: first at full width, then narrower at the same level ("5" on four
members instead of five is 3+1), so new data has full redundancy while enough members remain. Only
when not even that fits are zones written with columns missing: new ones, or *damaged* ones, which
had room left when a member was lost.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import trio

from ..errors import MemberError, MemberFull, OutOfSpace
from ..leaves import ZONE_SHIFT
from ..raid.array import Array, ZoneMap
from ..raid.code import Code, code_for, narrower, parse_code
from ..raid.label import Parameters
from ..raid.member import Member
from ..raid.placement import choose_members, usable_zones
from .meta import Meta
from .reserve import Reserve
from .zones import Rows as Rows
from .zones import Slots
from .zones import Usage as Usage
from .zones import Zone as Zone

Offload = Callable[..., Awaitable[Any]]
Addresses = npt.NDArray[np.uint64]

SLACK_ROWS = 32  # room that only the privileged get: for truncates on a full volume
METADATA_KEPT_BYTES = 16 << 20  # of a directory's filesystem, which others may fill as well
FEW = 16  # cells that a loop is through with before numpy has begun
FULL_S = 10.0  # a member that had no room for a column is asked again after so long


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
    ) -> None:
        """`slots`: zone slots of each member by id. `claims`: how many cells are dirty in memory
        now, and how many more may become so without asking again."""
        self.meta = meta
        self.array = array
        self.parameters = parameters
        self.offload = offload
        self.pages_per_burst_max = pages_per_burst_max
        self.code = code_for(parameters.level, parameters.width)
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
        self.slots = {member: Slots(total) for member, total in slots.items()}
        self._allocating = trio.Lock()
        self.on_failed: Callable[[int, str], None] = lambda member, reason: None
        self.on_gone: Callable[[int], None] = lambda zone: None  # it went into limbo
        self._idle: set[int] = set()  # zones without live cells that are full, or damaged
        self._held: dict[int, set[int]] = {}  # by epoch: the zones that it holds
        self._full: dict[int, float] = {}  # members that couldn't make a column, and when
        self._room_cache: tuple[float, dict[int, int]] = (-1.0, {})
        self.reserve = Reserve(self)
        self._load()
        self.reserve.load()

    def _load(self) -> None:
        taken: dict[int, set[int]] = {member: set() for member in self.slots}
        for row in self.meta.zones():
            code = parse_code(row.code)
            zone = Zone(
                ZoneMap(row.zone, code, row.rows, tuple((m, s) for m, s in row.columns)),
                row.fill,
                row.live,
                youngest=row.zone,
            )
            self.zones[row.zone] = zone
            for member, slot in row.columns:
                if member in taken:
                    taken[member].add(slot)
            if zone.room_cells:
                self.open.append(zone)
        for member, slots in self.slots.items():
            slots.free = [s for s in range(slots.total) if s not in taken[member]]
        self.after_loss()

    # -- room and credits -----------------------------------------------------------------------

    @property
    def room_cells(self) -> int:
        return sum(zone.room_cells for zone in self.open)

    @property
    def credits(self) -> int:
        """Cells promised: reserved, granted in advance, or dirty in memory and not yet given a
        row."""
        return self.reserved + sum(self._claims()) - self.placed

    @property
    def _k_max(self) -> int:
        return max((zone.map.code.k for zone in self.open), default=self.code.k)

    @property
    def rounding_cells(self) -> int:
        """Cells that the flushes to come may leave unused, less than a row each: those of sealed
        epochs, that of the open one, and one for each writer, who may be last to dirty an epoch."""
        return (self.writers + 1 + self.sealed_epochs) * (self._k_max - 1)

    def _grantable(self, privileged: bool) -> int:
        """To one more writer: what is left of the room when `rounding_cells`, as they are with it,
        and unless it is privileged the slack, are kept."""
        room_cells, k_max = 0, 0
        for zone in self.open:
            k = zone.map.code.k
            room_cells += (zone.map.rows - zone.fill) * k
            k_max = k if k > k_max else k_max
        k_max = k_max or self.code.k
        flushes = self.writers + 2 + self.sealed_epochs
        kept = flushes * (k_max - 1) + (0 if privileged else SLACK_ROWS * k_max)
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
        kept = self.rounding_cells + self._k_max - 1
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
        return all(map(self.online, (member for member, _ in zone.map.columns)))

    def online(self, member: int) -> bool:
        return self.array.states[member].state == "online"

    def readable(self, zone: Zone, without: int = -1) -> bool:
        """Its code survives the members lost, and this one."""
        lost = frozenset(
            column
            for column, (member, _) in enumerate(zone.map.columns)
            if member == without or not self.online(member)
        )
        return not lost or zone.map.code.survives(lost)

    def _sort_open(self) -> None:
        """Whole zones first, then the oldest: what is written next goes to open[0]."""
        self.open.sort(key=lambda zone: (not self.healthy(zone), zone.map.zone))

    def after_loss(self) -> None:
        """A member went offline: a zone beyond reading takes nothing more."""
        self.reserve.after_loss()
        self.open = [zone for zone in self.open if self.readable(zone)]
        self._sort_open()
        empty = (zone for zone in self.zones.values() if zone.live == 0)
        self._idle = {z.map.zone for z in empty if not z.room_cells or not self.healthy(z)}

    def affordable(self, member: int) -> bool:
        """Without it, all that lies in zones can be read, and what was promised room has it."""
        room = sum(zone.room_cells for zone in self.open if self.readable(zone, member))
        full = (zone for zone in self.zones.values() if zone.needed)
        return room >= self.credits and all(self.readable(zone, member) for zone in full)

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
        async with self._allocating:
            while still_wanted():
                keep = self.reserve.wanted()
                choice = self._choose(whole)
                if choice is None:
                    return False
                code, members = choice
                slots = [self.slots[m].take() for m in members]
                number = self.meta.next_zone
                columns = tuple(zip(members, slots, strict=True))
                new = ZoneMap(number, code, self.rows_per_zone, columns)
                errors = await self.offload(self.array.create_zone, new)
                if not errors:
                    zone = await self._admit(new)
                    if keep:
                        self.reserve.keep(zone)
                        continue
                    return True
                for member, error in errors.items():
                    self._full[member] = time.monotonic()  # passed over for a while, or for good:
                    if not isinstance(error, MemberFull):
                        self.on_failed(member, str(error))
                self._give_slots(new)
            return True

    def _give_slots(self, zone: ZoneMap) -> None:
        for member, slot in zone.columns:
            if member in self.slots:
                self.slots[member].give(slot)
        self._room_cache = (-1.0, {})

    async def _admit(self, new: ZoneMap) -> Zone:
        try:
            with self.meta.atomic():
                self.meta.insert_zone(new.zone, new.code.text, new.rows, new.columns)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.offload(self.array.remove_zone, new)
            self._give_slots(new)
            raise
        self.zones[new.zone] = zone = Zone(new, youngest=new.zone)
        self.open.append(zone)
        self._sort_open()
        self._room_cache = (-1.0, {})
        return zone

    def release(self, zone: Zone) -> None:
        """The cleaner keeps the zone no longer: what room it has is the writers'."""
        zone.kept = False
        if zone.room_cells:
            self.open.append(zone)
            self._sort_open()
        if zone.live == 0:
            self._idle.add(zone.map.zone)

    def _choose(self, whole: bool) -> tuple[Code, list[int]] | None:
        """Code and members of the next zone: full width, else narrower, else columns missing."""
        now = time.monotonic()
        self._full = {m: when for m, when in self._full.items() if now - when < FULL_S}
        rooms = self._member_rooms()
        free = {
            member: min(len(slots.free), rooms.get(member, 0))
            for member, slots in self.slots.items()
            if self.online(member) and member not in self._full
        }
        free = {member: count for member, count in free.items() if count > 0}
        number = self.meta.next_zone
        members = choose_members(free, self.code, number)
        if members is not None:
            return self.code, members
        lost = [m for m in self.slots if not self.online(m)]
        if not lost:
            return None
        code = narrower(self.parameters.level, min(len(free), self.code.width))
        if code is not None:
            members = choose_members(free, code, number)
            if members is not None:
                return code, members
        lost.sort(key=lambda member: -len(self.slots[member].free))
        needed = [m for m in lost if self.slots[m].free][: max(0, self.code.width - len(free))]
        everyone = free | {m: len(self.slots[m].free) for m in needed}
        members = choose_members(everyone, self.code, number) if not whole else None
        if members is None:
            return None
        missing = frozenset(c for c, m in enumerate(members) if m in lost)
        return (self.code, members) if self.code.survives(missing) else None

    def _member_rooms(self) -> dict[int, int]:
        """Zones that each member's underlying filesystem has room for. Members that share one share
        its room, so it is divided. Asked at most once a second."""
        asked, rooms = self._room_cache
        now = time.monotonic()
        if now - asked < 1.0:
            return rooms
        rooms = {}
        shared: dict[object, list[int]] = {}
        for member in self.slots:
            if not self.online(member):
                continue
            it = self._member(member)
            key: object = member
            if it.kind == "directory":
                try:
                    key = ("filesystem", os.stat(it.path).st_dev)
                except OSError:
                    continue
            shared.setdefault(key, []).append(member)
        for group in shared.values():
            try:
                it = self._member(group[0])
                room = it.room_bytes() // len(group)
            except MemberError:
                continue
            if it.kind == "directory":
                room -= METADATA_KEPT_BYTES
            for member in group:
                rooms[member] = max(0, room) // self.parameters.zone_bytes
        self._room_cache = (now, rooms)
        return rooms

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
        async with self._allocating:
            zones = [z for z in zones if z.map.zone in self.limbo and not z.pins]
            if not zones:
                return
            for zone in zones:
                del self.limbo[zone.map.zone]
            await self.offload(self._erase_columns, zones)
            for zone in zones:
                self._give_slots(zone.map)
            self._full.clear()

    def _erase_columns(self, zones: list[Zone]) -> None:
        for zone in zones:
            self.array.remove_zone(zone.map)  # what fails stays behind and is swept at a mount

    def sweep(self) -> int:
        """At mount: remove columns that no zone owns (a crash came between making one and the
        commit that names it). Returns how many."""
        count = 0
        for member in filter(self.online, self.slots):
            store = self._member(member)
            for zone, column in store.columns():
                known = self.zones.get(zone)
                columns = known.map.columns if known is not None else ()
                if column < len(columns) and columns[column][0] == member:
                    continue
                with contextlib.suppress(MemberError):
                    store.column_remove(zone, column, 0)
                    count += 1
        return count

    def _member(self, member: int) -> Member:
        found = self.array.states[member].member
        assert found is not None, "asked of a member that isn't online"
        return found

    # -- figures --------------------------------------------------------------------------------

    def _shape(self) -> tuple[Code, list[int]]:
        """The code that a new zone would have, and the members it would choose from."""
        online = [m for m in self.slots if self.online(m)]
        code = self.code
        if len(online) < code.width:
            code = narrower(self.parameters.level, len(online)) or code
            if (
                len(online) < code.width
            ):  # zones with columns missing, on whom they would be is moot
                online = list(self.slots)
        return code, online

    def zones_possible(self) -> int:
        """How many zones could be allocated now."""
        if self._choose(whole=False) is None:
            return 0
        rooms = self._member_rooms()
        code, members = self._shape()
        free_slots = [min(len(self.slots[m].free), rooms.get(m, 1 << 40)) for m in members]
        return usable_zones(free_slots, code)

    def usage(self) -> Usage:
        """What statfs tells: free is what pages that need new cells could be written, once the
        cleaner has been asked to. The cleaner's spare is nobody's."""
        code, members = self._shape()
        per_zone = self.rows_per_zone * code.k
        total = (usable_zones([self.slots[m].total for m in members], code) - 1) * per_zone
        unallocated = max(0, self.zones_possible() * per_zone - self.reserve.withheld_cells)
        free = unallocated + self._grantable(False) + self._claims()[1] + self.reserve.gains()
        # cells with several references are fewer than those: no more than were written
        live = sum(self.reserve.bound(zone) for zone in self.zones.values())
        return Usage(max(total, live), max(0, free), live, len(self.zones))
