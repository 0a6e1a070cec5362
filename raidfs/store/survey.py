"""What a zone holds that is needed, and who needs it: the first step of cleaning.

Owner records and the table share name every leaf of which a version may refer to a cell of the
zone. All versions of these leaves are looked at, live and dead; cells that one of them names live.

 1. A survey may pause, and leaves change meanwhile. In a zone that gets no new cells, and that no
    epoch in memory holds, it finds all that live at its end, but for cells that a leaf came to
    share after it was looked at: the reference to them is found by the next survey.
 2. Cells come in the order of the pages that they were written for, so that what belongs together
    lies together again when it is moved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from trio.lowlevel import checkpoint

from ..leaves import ZONE_SHIFT
from ..pages import LEAF_PAGES
from .owners import Owned, owned
from .space import Offload, Zone

if TYPE_CHECKING:
    from .meta import Meta

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Key = tuple[int, int]  # inode and number of a leaf
Turn = Callable[[], Awaitable[None]]
VERSIONS_PER_TURN = 64
_NOTHING = Owned(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint64))


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """`live`: cells that live, and the pages they were written for, by (inode, page). A leaf
    `leaves[whose[i]]` refers to cell `which[i]` of these, `which` ascending."""

    live: Owned
    leaves: list[Key]
    which: I64
    whose: I64

    def leaves_of(self, first: int, end: int) -> list[Key]:
        """Those that refer to cells [first, end)."""
        part = slice(*np.searchsorted(self.which, (first, end)))
        return [self.leaves[each] for each in np.unique(self.whose[part]).tolist()]


def cells_within(addresses: U64 | None, zone: int) -> npt.NDArray[np.intp]:
    """At which pages of a leaf there are cells of the zone."""
    if addresses is None:
        return np.empty(0, np.intp)
    return np.flatnonzero(addresses >> np.uint64(ZONE_SHIFT) == np.uint64(zone))


async def survey(meta: Meta, zone: Zone, offload: Offload, turn: Turn = checkpoint) -> Survey:
    """Of a zone that is full, and perhaps gone at the end. `turn` is awaited again and again, for
    others to have the event loop."""
    number = zone.map.zone
    parts = [_NOTHING]
    leaves = set(meta.sharers(number))
    for owner in meta.owners(number):
        parts.append(owned(number, zone.map.code, owner))
        leaves |= _leaves(parts[-1])
        await turn()
    all_cells: Owned = await offload(_joined, parts)
    order, versions = sorted(leaves), 0
    which, whose = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for at, (ino, leaf) in enumerate(order):
        named = [_NOTHING.cells]
        for version in meta.leaf_versions(ino, leaf):
            where = cells_within(version.addresses, number)
            if version.addresses is not None and len(where):
                named.append(version.addresses[where])
            versions += 1
            if versions % VERSIONS_PER_TURN == 0:
                await turn()
        cells = np.unique(np.concatenate(named))
        if len(cells):
            which.append(np.searchsorted(all_cells.cells, cells))
            whose.append(np.full(len(cells), at))
    found: Survey = await offload(
        _arranged, all_cells, order, np.concatenate(which), np.concatenate(whose)
    )
    return found


def _leaves(part: Owned) -> set[Key]:
    """For whose pages these cells were written."""
    keys = np.column_stack((part.inos, part.indexes // np.uint64(LEAF_PAGES)))
    return {(ino, number) for ino, number in np.unique(keys, axis=0).tolist()}


def _joined(parts: list[Owned]) -> Owned:
    """Ascending by address. Any thread."""
    cells = np.concatenate([part.cells for part in parts])
    inos = np.concatenate([part.inos for part in parts])
    indexes = np.concatenate([part.indexes for part in parts])
    order = np.argsort(cells)
    return Owned(cells[order], inos[order], indexes[order])


def _arranged(all_cells: Owned, leaves: list[Key], which: I64, whose: I64) -> Survey:
    """Of references to all cells a survey of those that live: promise 2. Any thread."""
    living = np.unique(which)
    order = np.lexsort((all_cells.indexes[living], all_cells.inos[living]))
    chosen = living[order]
    place = np.empty(len(all_cells.cells), np.int64)
    place[chosen] = np.arange(len(chosen))
    live = Owned(all_cells.cells[chosen], all_cells.inos[chosen], all_cells.indexes[chosen])
    by_place = np.argsort(place[which], kind="stable")
    return Survey(live, leaves, place[which][by_place], whose[by_place])
