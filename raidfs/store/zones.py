"""Zones as they are held in memory, and what is said of them: see space.py."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..raid.array import ZoneMap

SLACK_ROWS = 32  # room that only the privileged get: for truncates on a full volume


@dataclass(slots=True, eq=False)
class Zone:
    """One zone in memory. `fill`: rows handed out so far; `live`: references of leaves to it."""

    map: ZoneMap
    fill: int = 0
    live: int = 0
    pins: int = 0  # reads under way; a pinned zone isn't erased
    holds: int = 0  # epochs, not applied yet, in which files came to share cells of it
    retired: int = 0  # in limbo: the epoch whose commit removed it from the metadata
    placed: bool = False  # got rows from the flush under way, which `live` doesn't count yet
    unrecorded: bool = False  # the cleaner is writing rows to it that `fill` doesn't count yet
    kept: bool = False  # for the cleaner: see reserve.py
    closed: bool = False  # takes nothing more until the next mount: see Space.close
    counted: int | None = None  # cells that were live when somebody counted, `live` being
    counted_live: int = 0  # that then
    missed: dict[int, int] = field(default_factory=dict)  # column -> row: see schema.sql
    youngest: int = 0  # when its content was written, by the number of the zone made last then

    @property
    def room_cells(self) -> int:
        """What it will take: nothing when it is closed."""
        return 0 if self.closed else (self.map.rows - self.fill) * self.map.code.k

    @property
    def needed(self) -> bool:
        """Something refers to its cells, or will when an epoch has been flushed."""
        return self.live > 0 or self.holds > 0 or self.placed


def rounding_of(zones: Sequence[Zone], flushes: int, k: int) -> int:
    """Cells that so many flushes may leave unused of these zones' room; `k`: of zones to come, if
    there are none. A flush leaves less than a row, of the zone in which it ends, and no other flush
    ends in that row: so where rows are wider than in other zones, a flush for each row that is left
    is the most. One more zone adds more room than this grows by, whatever its code."""
    least = min([zone.map.code.k for zone in zones], default=k)
    cells = 0
    for zone in sorted(zones, key=lambda zone: -zone.map.code.k) if len(zones) > 1 else ():
        if zone.map.code.k == least:
            break
        ends = min(flushes, zone.map.rows - zone.fill)
        cells += ends * (zone.map.code.k - 1)
        flushes -= ends
    return cells + flushes * (least - 1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows handed out to one burst: `pages` pages in rows [row, row + rows) of `zone`."""

    zone: Zone
    row: int
    rows: int
    pages: int


@dataclass(frozen=True, slots=True)
class Usage:
    """For statfs and status, in data cells of this volume's own code."""

    total_cells: int
    free_cells: int
    live_cells: int
    zones: int


@dataclass(slots=True)
class Slots:
    """The free slots of one member: lowest first, so that a raw member fills from its start."""

    total: int
    free: list[int] = field(default_factory=list)

    @property
    def used(self) -> int:
        return self.total - len(self.free)

    def take(self) -> int:
        return heapq.heappop(self.free)

    def give(self, slot: int) -> None:
        heapq.heappush(self.free, slot)
