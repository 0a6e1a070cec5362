"""The cleaner's part of the zones, without which a full volume could not be cleaned.

Words: the *spare* is a zone, allocated and empty; the *outlet* is the zone that cells are moved to.
Both are kept out of `Space.open`, so no writer's credit rests on them. What cleaning a zone *gains*
is the cells that can be written again afterwards.

 1. One zone is withheld from writers, and no more: the spare. When room becomes scarce, the first
    zone that can be allocated is the spare, before any writer's (`Space.grow`). So the zone that
    was emptied with its help takes its place. Where what lives in a zone takes more than the spare
    at another code, so many zones more are withheld until it is empty (`owed`).
 2. What the outlet has room for is the writers', too, before one of them is told ENOSPC: as soon as
    there is a spare.
 3. A crash leaves as much as it takes to end what was under way. Then there may be no empty zone;
    but the outlet, whichever it was, takes what is left of the zone that was being emptied, and the
    zone with most room, which is kept at the next mount, takes no less.
 4. `bound` tells no fewer cells than live (but for those that came to be shared while they were
    counted): a full zone gets no new cells, and a cell to which nothing refers is referred to never
    again. So what was counted once stays an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .zones import Zone

if TYPE_CHECKING:
    from ..raid.code import Code
    from .space import Space

SCARCE_ZONES = 3  # so few that can still be allocated: now the spare is taken
GAIN_PART = 32  # a zone that gains less than this part of it isn't worth the copying


class Reserve:
    """Of one `Space`, in its event loop's thread."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.spare: Zone | None = None
        self.outlet: Zone | None = None
        self.owed = 0  # zones that emptying one, which is under way, still takes

    def load(self) -> None:
        """At a mount: promise 3. Nothing has been granted yet."""
        space = self.space
        possible = space.zones_possible()
        if possible > SCARCE_ZONES:
            return
        empty = [zone for zone in space.open if not zone.fill and space.healthy(zone)]
        if empty:
            self.keep(empty[-1])
        elif not possible and space.open:
            self.outlet = max(space.open, key=lambda zone: zone.room_cells)
            self._withhold(self.outlet)

    def wanted(self) -> bool:
        """The next zone shall be the spare."""
        if self.spare is not None:
            return False
        return self.owed > 0 or self.space.zones_possible() <= SCARCE_ZONES

    def spares_a_zone(self) -> bool:
        """A writer may have one more."""
        return not self.owed or self.space.zones_possible() > self.owed

    def keep(self, zone: Zone) -> None:
        """An empty zone becomes the spare."""
        assert self.spare is None and not zone.fill and not zone.live
        self.spare = zone
        self.owed = max(0, self.owed - 1)
        self._withhold(zone)

    def _withhold(self, zone: Zone) -> None:
        zone.kept = True
        self.space.open.remove(zone)

    @property
    def withheld_cells(self) -> int:
        """Of room that isn't allocated, what a spare will take of it first."""
        return self.space.zone_cells * (self.owed or int(self.spare is None))

    @property
    def room_cells(self) -> int:
        """What can be moved, before a zone was emptied."""
        return sum(zone.room_cells for zone in (self.outlet, self.spare) if zone is not None)

    def take_outlet(self) -> Zone | None:
        """Where cells can be moved to now. None: there is no room left."""
        if self.outlet is None:
            self.outlet, self.spare = self.spare, None
        return self.outlet

    def advance(self, zone: Zone, row: int, rows: int) -> None:
        """Rows of the outlet are recorded. When it is full, it is a zone like others."""
        assert zone is self.outlet and zone.fill == row
        zone.fill += rows
        if not zone.room_cells:
            self.outlet = None
            self.space.release(zone)

    def renew(self, unwanted: Callable[[Code], bool]) -> bool:
        """A spare and an outlet of an unwanted code are given back: cells are to go to others.
        Returns whether there were any."""
        found = False
        if self.spare is not None and unwanted(self.spare.map.code):
            self.space.discard(self.spare)
            self.spare, found = None, True
        if self.outlet is not None and unwanted(self.outlet.map.code):
            found = self.hand_over(without_spare=True)
        return found

    def hand_over(self, *, without_spare: bool = False) -> bool:
        """Give the outlet's room to the writers (promise 2). False: there is none to give."""
        zone = self.outlet
        if zone is None or (self.spare is None and not without_spare):
            return False
        self.outlet = None
        self.space.release(zone)
        return True

    def after_loss(self) -> None:
        """A member went offline. A spare without one of its columns is given back: another is taken
        of what members are left. The outlet is good as long as it can be read."""
        if self.spare is not None and not self.space.healthy(self.spare):
            self.spare.kept, self.spare = False, None
        if self.outlet is not None and not self.space.readable(self.outlet):
            self.outlet.kept, self.outlet = False, None

    # -- what there is to gain --------------------------------------------------------------------

    @staticmethod
    def bound(zone: Zone) -> int:
        """No more than so many of its cells are live (promise 4)."""
        most = min(zone.live, zone.fill * zone.map.code.k)
        return most if zone.counted is None else min(most, zone.counted)

    def gain(self, zone: Zone) -> int:
        """What cleaning the zone gains at least; 0 if it can't be done now, or isn't worth it."""
        if zone.kept or zone.room_cells or zone.holds or zone.placed or not zone.live:
            return 0
        k = self.space.code.k
        gained = self.worth(zone) - -(-self.bound(zone) // k) * k
        return gained if gained >= self.gain_least(zone) else 0

    def worth(self, zone: Zone) -> int:
        """Cells that new zones have in the place of this one, at least as far as is known: of
        another code they may have fewer."""
        code, new = zone.map.code, self.space.code
        cells = zone.map.rows * code.k
        if code == new or self.space.allocation.fits(code):
            return cells
        return min(cells, zone.map.rows * code.width * new.k // new.width)

    @staticmethod
    def gain_least(zone: Zone) -> int:
        cells = zone.map.rows * zone.map.code.k
        return max(zone.map.code.k, cells // GAIN_PART)

    def gains(self) -> int:
        """What writers can have of the outlet, and of all zones by cleaning them."""
        space = self.space
        if self.spare is None and self.outlet is None and not space.zones_possible():
            return 0
        outlet = self.outlet.room_cells if self.outlet is not None else 0
        return outlet + sum(
            gained
            for zone in space.zones.values()
            if zone.live and (gained := self.gain(zone)) and space.readable(zone)
        )
