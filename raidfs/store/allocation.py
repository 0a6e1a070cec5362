"""Where the columns of zones go: slots, members with room, and the shape of the next zone.

New zones avoid lost members: first at full width, then narrower at the same level ("5" on four
members instead of five is 3+1), so new data has full redundancy while enough members remain. Only
when not even that fits are columns of a new zone missing from the start.

 1. A slot is somebody's from `take` until it is given back; those of lost members, too.
 2. Spares and members that leave get no columns of new zones.
 3. Members that share a file system share its room, and some of it is left for the metadata.
 4. Who takes the place of another keeps room for all columns that lie there: nothing else, new or
    moved, goes into it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..errors import MemberError
from ..raid.array import Array
from ..raid.code import Code, code_for, narrower
from ..raid.label import MemberEntry, Parameters
from ..raid.member import Member
from ..raid.placement import choose_members, usable_zones
from .asking import Asking
from .meta import Meta
from .zones import Slots

METADATA_KEPT_BYTES = 16 << 20  # of a directory's filesystem, which others may fill as well
FULL_S = 10.0  # a member that had no room for a column is asked again after so long


class Allocation:
    """Of one volume, in its event loop's thread."""

    def __init__(
        self, meta: Meta, array: Array, parameters: Parameters, slots: dict[int, int]
    ) -> None:
        """`slots`: zone slots of each member by id."""
        self.meta = meta
        self.array = array
        self.parameters = parameters
        self.code = code_for(parameters.level, parameters.width)
        self.slots = {member: Slots(total) for member, total in slots.items()}
        self.closed_to: frozenset[int] = frozenset()  # promise 2
        self.domains: dict[int, str] = {}
        self.replaced: dict[int, int] = {}  # by whom
        self.asking = Asking(array.patience)
        self._full: dict[int, float] = {}  # members that couldn't make a column, and when
        self._room_cache: tuple[float, dict[int, int]] = (-1.0, {})

    def load(self, taken: Iterable[tuple[int, int]]) -> None:
        """(member, slot) of all columns that there are."""
        of: dict[int, set[int]] = {member: set() for member in self.slots}
        for member, slot in taken:
            if member in of:
                of[member].add(slot)
        for member, slots in self.slots.items():
            slots.free = [slot for slot in range(slots.total) if slot not in of[member]]

    def fits(self, code: Code) -> bool:
        """A new zone may have this code: the wanted one, or a narrower one for lack of members."""
        if code.width > self.code.width:
            return False
        return code in (self.code, narrower(self.parameters.level, code.width))

    def retable(self, entries: Iterable[MemberEntry], parameters: Parameters) -> None:
        """What the labels say now."""
        entries = list(entries)
        self.parameters = parameters
        self.code = code_for(parameters.level, parameters.width)
        self.closed_to = frozenset(each.id for each in entries if each.role != "data")
        self.domains = {each.id: each.domain for each in entries if each.domain}
        self.replaced = {each.id: each.replaces for each in entries if each.replaces >= 0}
        self.changed()

    def changed(self) -> None:
        """Rooms are asked for anew."""
        self._room_cache = (-1.0, {})

    def give(self, places: Iterable[tuple[int, int]]) -> None:
        """These slots are free again."""
        for member, slot in places:
            if member in self.slots:
                self.slots[member].give(slot)
        self.changed()

    def is_full(self, member: int) -> None:
        """It couldn't make a column."""
        self._full[member] = time.monotonic()

    def _ask_again(self) -> None:
        """Those that were full some time ago."""
        now = time.monotonic()
        self._full = {m: when for m, when in self._full.items() if now - when < FULL_S}

    def nobody_is_full(self) -> None:
        self._full.clear()

    def online(self, member: int) -> bool:
        state = self.array.states.get(member)
        return state is not None and state.state == "online"

    def owed(self, member: int) -> int:
        """Columns that are still to come to it from those that it replaces (promise 4)."""
        count, known = 0, {member}
        while (member := self.replaced.get(member, -1)) not in known and member in self.slots:
            count += self.slots[member].used
            known.add(member)
        return count

    def _room(self, member: int, rooms: dict[int, int], none: int = 0) -> int:
        """For new columns; `none`: of a member that doesn't tell its room."""
        room = min(len(self.slots[member].free), rooms.get(member, none))
        return room - self.owed(member) if self.replaced else room

    def for_column(
        self, members: Iterable[int], others: Iterable[int], wished: Iterable[int] = ()
    ) -> list[int]:
        """Members that a column of a zone could go to, the best first. None of `members`, who have
        one; `others`: those whose columns stay. `wished`: before all others, closed or not."""
        self._ask_again()
        have, rooms, wished = set(members), self._rooms(), list(wished)
        free = {
            member: self.room_of(member) if member in wished else self._room(member, rooms)
            for member in self.slots
            if member not in have and self.online(member) and member not in self._full
        }
        taken = [self.domains[each] for each in others if each in self.domains]
        order = sorted(
            (member for member, count in free.items() if count > 0),
            key=lambda member: (self.domains.get(member, "") in taken, -free[member], member),
        )
        chosen = [member for member in wished if member in order]
        return chosen + [m for m in order if m not in self.closed_to and m not in chosen]

    def admit(self, member: int, total: int) -> None:
        """A member that is new, or back: before it is online."""
        if member not in self.slots:
            self.slots[member] = Slots(total, list(range(total)))
        self._full.pop(member, None)
        self._room_cache = (-1.0, {})

    def withdraw(self, member: int) -> None:
        """A member that holds nothing, and is none any more."""
        self.slots.pop(member, None)
        self._full.pop(member, None)
        self._room_cache = (-1.0, {})

    def choose(self, whole: bool) -> tuple[Code, list[int]] | None:
        """Code and members of the next zone: full width, else narrower, else columns missing."""
        self._ask_again()
        rooms = self._rooms()
        free = {
            member: self._room(member, rooms)
            for member in self.slots
            if self.online(member) and member not in self._full and member not in self.closed_to
        }
        free = {member: count for member, count in free.items() if count > 0}
        number = self.meta.next_zone
        members = choose_members(free, self.code, number, self.domains)
        if members is not None:
            return self.code, members
        lost = [m for m in self.slots if not self.online(m) and m not in self.closed_to]
        if not lost:
            return None
        code = narrower(self.parameters.level, min(len(free), self.code.width))
        if code is not None:
            members = choose_members(free, code, number, self.domains)
            if members is not None:
                return code, members
        lost.sort(key=lambda member: -len(self.slots[member].free))
        needed = [m for m in lost if self.slots[m].free][: max(0, self.code.width - len(free))]
        everyone = free | {m: len(self.slots[m].free) for m in needed}
        members = choose_members(everyone, self.code, number, self.domains) if not whole else None
        if members is None:
            return None
        missing = frozenset(c for c, m in enumerate(members) if m in lost)
        return (self.code, members) if self.code.survives(missing) else None

    def _rooms(self) -> dict[int, int]:
        """Zones that each member's underlying filesystem has room for. Members that share one share
        its room, so it is divided. Asked at most once a second."""
        asked, rooms = self._room_cache
        now = time.monotonic()
        if now - asked < 1.0:
            return rooms
        rooms = {}
        shared: dict[object, list[int]] = {}
        told: dict[int, int] = {}
        for member in self.slots:
            if not self.online(member):
                continue
            try:
                key, room_bytes = self.asking.room(member, self.member(member))
            except (OSError, MemberError):
                continue
            told[member] = room_bytes
            shared.setdefault(key, []).append(member)
        for group in shared.values():
            it = self.member(group[0])
            room = told[group[0]] // len(group)
            if it.kind == "directory":
                room -= METADATA_KEPT_BYTES
            for member in group:
                rooms[member] = max(0, room) // self.parameters.zone_bytes
        self._room_cache = (now, rooms)
        return rooms

    def room_of(self, member: int) -> int:
        """Columns that it could take."""
        return min(len(self.slots[member].free), self._rooms().get(member, 0))

    def free_slots(self) -> dict[int, int]:
        """Columns that each member could take that gets columns of new zones."""
        rooms = self._rooms()
        return {
            member: max(0, self._room(member, rooms))
            for member in self.slots
            if self.online(member) and member not in self.closed_to
        }

    def shape(self) -> tuple[Code, list[int]]:
        """The code that a new zone would have, and the members it would choose from."""
        online = [m for m in self.slots if self.online(m) and m not in self.closed_to]
        code = self.code
        if len(online) < code.width:
            code = narrower(self.parameters.level, len(online)) or code
            if (
                len(online) < code.width
            ):  # zones with columns missing, on whom they would be is moot
                online = [m for m in self.slots if m not in self.closed_to]
        return code, online

    def zones_possible(self) -> int:
        """How many zones could be allocated now."""
        if self.choose(whole=False) is None:
            return 0
        rooms = self._rooms()
        code, members = self.shape()
        free_slots = [max(0, self._room(m, rooms, 1 << 40)) for m in members]
        return usable_zones(free_slots, code)

    def member(self, member: int) -> Member:
        found = self.array.states[member].member
        assert found is not None, "asked of a member that isn't online"
        return found
