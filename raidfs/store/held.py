"""What snapshots hold: the cells that would be free without them, counted exactly.

A cell is held by some snapshots alone if every leaf version that names it is seen by these and by
nobody else. Only dead versions can be so, and the index on `died` names those between two epochs.
All versions of their leaves are looked at, once each; and, for cells of zones in which leaves share
cells, all versions of the leaves that owner records and the table share name.

 1. The cost follows what was changed between the epochs in question, not the size of the volume.
 2. It may await between pieces; what changes meanwhile may or may not be counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from ..leaves import ZONE_SHIFT
from .database import INF, needed
from .owners import owner_leaves

if TYPE_CHECKING:
    from .meta import Meta

VERSIONS_PER_TURN = 256
LEAVES_PER_TURN = 16
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Key = tuple[int, int]  # of a leaf: inode, number


@dataclass(frozen=True, slots=True)
class Named:
    """Cells that versions name, each with the lifetime of the version; `died`: INF if it lives."""

    cells: U64
    born: I64
    died: I64

    def seen_by(self, epochs: I64) -> I64:
        """By how many of the epochs (ascending) each version is seen."""
        until = np.searchsorted(epochs, self.died, "left")
        return np.asarray(until - np.searchsorted(epochs, self.born), np.int64)


@dataclass(frozen=True, slots=True)
class Found:
    """How many cells; `shared`: some may be other leaves' as well, so more may become free."""

    cells: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Alone:
    """`cells`: how many each of the epochs holds alone, in their order. `unsettled`: to these more
    may fall without a deletion, as leaves share cells with them."""

    cells: I64
    unsettled: npt.NDArray[np.bool_]


class Held:
    """Of one volume's metadata."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta

    async def only_by(self, doomed: tuple[int, ...], kept: tuple[int, ...]) -> Found:
        """Cells that some of the epochs `doomed` hold (ascending), and none of `kept`, nor the
        present."""
        going, staying = np.array(doomed, np.int64), np.array(kept, np.int64)
        count, shared = 0, False

        def measure(named: Named) -> U64:
            cells, place = np.unique(named.cells, return_inverse=True)
            live = named.died == INF
            goes = np.bincount(place, named.seen_by(going), len(cells)) > 0
            stays = np.bincount(place, named.seen_by(staying) + live, len(cells)) > 0
            return np.asarray(cells[goes & ~stays], np.uint64)

        keys = await self._keys(
            _gaps(doomed, kept),
            lambda born, died: needed(born, died, doomed) and not needed(born, died, kept),
        )
        async for named, is_shared in self._pieces(keys, measure):
            count += len(measure(named))
            shared = shared or is_shared
        return Found(count, shared)

    async def alone(self, retained: tuple[int, ...]) -> Alone:
        """What each of the retained epochs holds alone, found in one go."""
        epochs = np.array(retained, np.int64)
        counts = np.zeros(len(epochs), np.int64)
        unsettled = np.zeros(len(epochs), np.bool_)

        def owners(named: Named) -> tuple[U64, I64]:
            """Cells that one epoch alone holds, and the index of that."""
            cells, place = np.unique(named.cells, return_inverse=True)
            first = np.searchsorted(epochs, named.born).astype(np.int64)
            last = np.searchsorted(epochs, named.died, "left").astype(np.int64) - 1
            last[named.died == INF] = len(epochs)
            seen = first <= last
            lowest = np.full(len(cells), len(epochs), np.int64)
            highest = np.full(len(cells), -1, np.int64)
            np.minimum.at(lowest, place[seen], first[seen])
            np.maximum.at(highest, place[seen], last[seen])
            one = (lowest == highest) & (lowest < len(epochs))
            return np.asarray(cells[one], np.uint64), lowest[one]

        keys = await self._keys(_gaps(retained, ()), lambda born, died: True)
        async for named, is_shared in self._pieces(keys, lambda named: owners(named)[0]):
            which = owners(named)[1]
            np.add.at(counts, which, 1)
            if is_shared:
                for index in self._seers(named, epochs):
                    unsettled[index] = True
        return Alone(counts, unsettled)

    @staticmethod
    def _seers(named: Named, epochs: I64) -> Iterable[slice]:
        """The epochs that see some of these versions, as slices of `epochs`."""
        first = np.searchsorted(epochs, named.born)
        last = np.searchsorted(epochs, named.died, "left")
        pairs = np.unique(np.column_stack((first, last)), axis=0).tolist()
        return [slice(one, other) for one, other in pairs]

    # -- what to look at --------------------------------------------------------------------------

    async def _keys(
        self, gaps: list[tuple[int, int]], wanted: Callable[[int, int], bool]
    ) -> set[Key]:
        """Leaves with a dead version in one of the gaps that is `wanted` (born, died)."""
        keys: set[Key] = set()
        for first, until in gaps:
            after = self.meta.dead_from("leaf", first)
            while rows := self.meta.dead("leaf", after, until, VERSIONS_PER_TURN):
                after = rows[-1]
                keys.update((row[1], row[2]) for row in rows if wanted(row[3], row[0]))
                await trio.lowlevel.checkpoint()
        return keys

    def _named(self, keys: Iterable[Key]) -> Named:
        """By all versions of these leaves that the present or a named snapshot sees."""
        cells: list[U64] = [np.empty(0, np.uint64)]
        lifetimes: list[tuple[int, int]] = []
        for ino, number in keys:
            for version in self.meta.leaf_versions(ino, number):
                if version.addresses is not None:
                    cells.append(version.addresses[version.addresses != 0])
                    died = INF if version.died > self.meta.durable else version.died
                    lifetimes.append((version.born, died))
        lengths = [len(part) for part in cells[1:]]
        each = np.array(lifetimes, np.int64).reshape(-1, 2)
        return Named(
            np.concatenate(cells), np.repeat(each[:, 0], lengths), np.repeat(each[:, 1], lengths)
        )

    async def _pieces(
        self, keys: set[Key], candidates: Callable[[Named], U64]
    ) -> AsyncIterator[tuple[Named, bool]]:
        """(named, shared): of cells in zones where nobody shares, leaf by leaf; then, zone by zone,
        of those that are `candidates` by their own leaf, with whoever names them."""
        several: dict[int, list[U64]] = {}
        for turn, key in enumerate(sorted(keys)):
            named = self._named([key])
            shared = self._in_shared_zones(named.cells)
            if shared.any():
                cells = np.intersect1d(candidates(named), named.cells[shared])
                numbers = cells >> np.uint64(ZONE_SHIFT)
                for zone in np.unique(numbers).tolist():
                    several.setdefault(zone, []).append(cells[numbers == np.uint64(zone)])
            yield _of(named, ~shared), False
            if turn % LEAVES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        for zone, parts in sorted(several.items()):
            cells = np.unique(np.concatenate(parts))
            leaves = set(self.meta.sharers(zone)) | owner_leaves(self.meta, zone, cells)
            named = self._named(sorted(leaves))
            yield _of(named, np.isin(named.cells, cells)), True
            await trio.lowlevel.checkpoint()

    def _in_shared_zones(self, cells: U64) -> npt.NDArray[np.bool_]:
        zones = self.meta.shared_zones
        if not zones:
            return np.zeros(len(cells), np.bool_)
        return np.isin(cells >> np.uint64(ZONE_SHIFT), np.fromiter(zones, np.uint64, len(zones)))


def _of(named: Named, which: npt.NDArray[np.bool_]) -> Named:
    return Named(named.cells[which], named.born[which], named.died[which])


def _gaps(doomed: tuple[int, ...], kept: tuple[int, ...]) -> list[tuple[int, int]]:
    """(first, until): versions that only `doomed` epochs see died after such a first one of them,
    and at the next kept one or before."""
    found: list[tuple[int, int]] = []
    for epoch in doomed:
        at = bisect_right(kept, epoch)
        until = kept[at] if at < len(kept) else INF
        if not found or found[-1][1] != until:
            found.append((epoch, until))
    return found
