"""Zones as they are held in memory, and what is said of them: see space.py."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from ..raid.array import ZoneMap


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
    kept: bool = False  # for the cleaner: see reserve.py
    counted: int | None = None  # cells that were live when somebody counted, `live` being
    counted_live: int = 0  # that then
    missed: dict[int, int] = field(default_factory=dict)  # column -> row: see schema.sql
    youngest: int = 0  # when its content was written, by the number of the zone made last then

    @property
    def room_cells(self) -> int:
        return (self.map.rows - self.fill) * self.map.code.k

    @property
    def needed(self) -> bool:
        """Something refers to its cells, or will when an epoch has been flushed."""
        return self.live > 0 or self.holds > 0 or self.placed


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

    def take(self) -> int:
        return heapq.heappop(self.free)

    def give(self, slot: int) -> None:
        heapq.heappush(self.free, slot)
