"""Another shape for what is stored, in numbers: what it would need, and whether that can be.

A volume has a *shape*: level and width of new zones, and how full each of its members is. Plain
functions; nothing is changed by them.

 1. What `plan_conversion` accepts can be done with the room there is, as long as nobody else takes
    it: writers get some new zones in advance, then every zone is emptied in turn, as the worker
    would, and gives its slots to the next.
 2. A move that `even_moves` names makes the fullest of two members less full than it was, and the
    other no fuller than that; so they come to an end. None brings two columns of a zone into one
    failure domain; those that lie so are parted first, where that can be.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..raid.code import Code
from ..raid.create import code_over, size_text
from ..raid.placement import usable_zones
from .zones import SLACK_ROWS

if TYPE_CHECKING:
    from .space import Space

MOVES_MAX = 1 << 20  # planned at once


@dataclass(frozen=True, slots=True)
class Old:
    """A zone that is to be emptied. `cells`: no more live there."""

    cells: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What it takes to get another level or width. `move_bytes`: content of files that is written
    anew, parity not counted."""

    old: Code
    new: Code
    zones: int
    move_bytes: int
    usable_before_bytes: int
    usable_after_bytes: int
    warnings: tuple[str, ...]

    @property
    def is_weaker(self) -> bool:
        return self.new.tolerance < self.old.tolerance


@dataclass(frozen=True, slots=True)
class Move:
    """A column of a zone that shall lie on that member. `source`: where it lies."""

    zone: int
    column: int
    source: int
    member: int


def take_zone(free: dict[int, int], code: Code) -> bool:
    """A slot on each of the members with most room; False if these are too few."""
    members = heapq.nlargest(code.width, free, key=free.__getitem__)
    if len(members) < code.width or not free[members[-1]]:
        return False
    for member in members:
        free[member] -= 1
    return True


def cells_left_over(
    olds: Iterable[Old], free: Mapping[int, int], code: Code, rows: int, room_cells: int
) -> int:
    """Zones are emptied one after the other, those with least first, into new ones of `rows` rows,
    of which the first has `room_cells` left; how many cells then have found no place. `free`: slots
    of each member."""
    free, left = dict(free), sorted(olds, key=lambda old: old.cells, reverse=True)
    while left:
        old = left[-1]
        needed = -(-old.cells // code.k) * code.k
        while room_cells < needed:
            if not take_zone(free, code):
                return sum(each.cells for each in left) - room_cells
            room_cells += rows * code.k
        room_cells -= needed
        left.pop()
        for member in old.members:
            if member in free:
                free[member] += 1
    return 0


def fits(old: Old, free: Mapping[int, int], code: Code, rows: int, room_cells: int) -> bool:
    """That zone can be emptied, and afterwards there is room to empty another one."""
    free, zone_cells = dict(free), rows * code.k
    needed = -(-old.cells // code.k) * code.k
    while room_cells < needed:
        if not take_zone(free, code):
            return False
        room_cells += zone_cells
    for member in old.members:
        if member in free:
            free[member] += 1
    return 2 * (room_cells - needed) >= zone_cells or take_zone(free, code)


# -- another level or width -----------------------------------------------------------------------


def plan_conversion(space: Space, level: str, width: int | None) -> Conversion:
    """`width`: None for what a new volume over these members would have. UsageError: it can't be,
    or is so already."""
    allocation, old = space.allocation, space.code
    members = allocation.free_slots()  # of those that are there and get columns
    new = code_over(level, width, len(members))
    todo = [zone for zone in space.zones.values() if zone.map.code != new]
    if new == old:
        under_way = any(zone.needed and not allocation.fits(zone.map.code) for zone in todo)
        already = "is being changed to" if under_way else "is at"
        raise UsageError(f"the volume {already} level {level}, {new.width} wide, already")
    total = {m: allocation.slots[m].used + free for m, free in members.items()}
    cell_bytes, rows = space.parameters.cell_bytes, space.rows_per_zone
    plan = Conversion(
        old,
        new,
        zones=sum(zone.needed for zone in todo),
        move_bytes=sum(space.reserve.bound(zone) for zone in todo) * cell_bytes,
        usable_before_bytes=_usable(total, old, rows) * cell_bytes,
        usable_after_bytes=_usable(total, new, rows) * cell_bytes,
        warnings=tuple(_warnings(old, new)),
    )
    _refuse(space, plan, members)
    return plan


def _usable(total: Mapping[int, int], code: Code, rows: int) -> int:
    """Cells; one zone is the cleaner's."""
    return max(0, usable_zones(list(total.values()), code) - 1) * rows * code.k


def _warnings(old: Code, new: Code) -> Iterable[str]:
    if new.tolerance < old.tolerance:
        now = f"the loss of {old.tolerance}" if old.tolerance else "no loss"
        then = f"the loss of {new.tolerance}" if new.tolerance else "NO LOSS"
        yield f"afterwards the volume survives {then} of its members instead of {now}"


def _refuse(space: Space, plan: Conversion, free: Mapping[int, int]) -> None:
    """UsageError: it doesn't fit, in the end or on the way there."""
    size, code = space.parameters.cell_bytes, plan.new
    live = sum(map(space.reserve.bound, space.zones.values())) + space.dirty_cells
    live += SLACK_ROWS * code.k
    shape = f"level {code.level}, {code.width} wide,"
    if live * size > plan.usable_after_bytes:
        over = live * size - plan.usable_after_bytes
        raise UsageError(
            f"{size_text(live * size)} are stored, and at {shape} the members have room for"
            f" {size_text(plan.usable_after_bytes)}: free {size_text(over)} (snapshots hold room,"
            " too), or add members"
        )
    olds = [
        Old(space.reserve.bound(zone), tuple(member for member, _ in zone.map.columns))
        for zone in space.zones.values()
        if zone.map.code != code
    ]
    same = [zone for zone in (space.reserve.outlet, space.reserve.spare) if zone is not None]
    room = sum(zone.room_cells for zone in same if zone.map.code == code)
    ahead, free = 1 - (-SLACK_ROWS // space.rows_per_zone), dict(free)
    for member in (member for old in olds if not old.cells for member in old.members):
        if member in free:
            free[member] += 1
    olds = [old for old in olds if old.cells]
    writers = all([take_zone(free, code) for _ in range(ahead)])  # theirs, before anything is moved
    over = cells_left_over(olds, free, code, space.rows_per_zone, room) if writers else live
    if over:
        raise UsageError(
            f"there is too little free room to change to {shape} step by step:"
            f" {size_text(over * size)} would find no place on"
            f" {code.width} members; free as much, or add members"
        )


# -- how full members are -------------------------------------------------------------------------


@dataclass(slots=True)
class Fill:
    """How many slots of each member are used, and of how many."""

    used: dict[int, int]
    total: dict[int, int]

    def of(self, member: int, more: int = 0) -> float:
        return (self.used[member] + more) / self.total[member]


def fill_of(space: Space) -> Fill:
    """Of the members that get columns."""
    slots, free = space.allocation.slots, space.allocation.free_slots()
    total = {m: slots[m].used + count for m, count in free.items()}
    used = {m: slots[m].used for m in free if total[m]}
    return Fill(used, {m: total[m] for m in used})


def even_moves(
    zones: Mapping[int, Iterable[int]],
    fill: Fill,
    domains: Mapping[int, str],
    may: Callable[[int, int], bool] = lambda zone, column: True,
    most: int = MOVES_MAX,
) -> list[Move]:
    """Promise 2. `zones`: members by column, of each. `may`: whether that column can be moved."""
    table = _Table({number: list(members) for number, members in zones.items()}, fill, domains)
    table.may, table.most = may, most
    table.part()
    table.even()
    return table.moves


class _Table:
    """Where columns lie while moves are chosen."""

    may: Callable[[int, int], bool]
    most: int

    def __init__(self, zones: dict[int, list[int]], fill: Fill, domains: Mapping[int, str]) -> None:
        self.zones, self.domains = zones, domains
        self.fill = Fill(dict(fill.used), fill.total)
        self.moves: list[Move] = []
        self._moved: set[tuple[int, int]] = set()
        self._on: dict[int, dict[int, None]] = {member: {} for member in fill.used}
        for number, members in zones.items():
            for member in members:
                if member in self._on:
                    self._on[member][number] = None

    def part(self) -> None:
        """Columns of a zone that lie in one domain."""
        for number, members in self.zones.items() if self.domains else ():
            for column, member in enumerate(members):
                if not self._crowded(number, column) or len(self.moves) >= self.most:
                    continue
                targets = sorted(self._on, key=self.fill.of)
                for target in targets:
                    if self._room(target) and self._apart(number, column, target):
                        if self.may(number, column):
                            self._move(number, column, member, target)
                        break

    def even(self) -> None:
        """Columns of the fullest to the emptiest."""
        while len(self.moves) < self.most:
            order = sorted(self._on, key=self.fill.of)
            if not any(
                self._one(full, empty)
                for full in reversed(order)
                for empty in order
                if self.fill.of(full, -1) >= self.fill.of(empty, 1)
            ):
                return

    def _one(self, full: int, empty: int) -> bool:
        for number in self._on[full]:
            column = self.zones[number].index(full)
            if (number, column) in self._moved or not self._apart(number, column, empty):
                continue
            if self.may(number, column):
                self._move(number, column, full, empty)
                return True
        return False

    def _room(self, member: int) -> bool:
        return self.fill.used[member] < self.fill.total[member]

    def _crowded(self, number: int, column: int) -> bool:
        """An earlier column of the zone lies in the same domain."""
        members = self.zones[number]
        domain = self.domains.get(members[column], "")
        return bool(domain) and any(self.domains.get(m) == domain for m in members[:column])

    def _apart(self, number: int, column: int, target: int) -> bool:
        """No other column of the zone lies there, or in that domain."""
        members = self.zones[number]
        if target in members:
            return False
        domain = self.domains.get(target, "")
        others = (member for c, member in enumerate(members) if c != column)
        return not domain or all(self.domains.get(member) != domain for member in others)

    def _move(self, number: int, column: int, source: int, target: int) -> None:
        self.moves.append(Move(number, column, source, target))
        self._moved.add((number, column))
        self.zones[number][column] = target
        if source in self._on:
            self.fill.used[source] -= 1
            del self._on[source][number]
        self.fill.used[target] += 1
        self._on[target][number] = None
