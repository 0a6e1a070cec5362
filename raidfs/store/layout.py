"""Where the pages of a file lie: in memory, in cells on members, or nowhere; and sharing cells.

Pages in memory come first, newest generation first, then the leaf, as in every lookup. What this
module says is true of the moment of the call: plain functions, to be used before the next await.

Two files, or two pages of one, share a cell when the leaves of both name it. Cells are never
changed in place, so nothing else follows from it: whoever writes gets a cell of its own.

 1. A page that is told to share a cell has it for good: the zone is held until the epoch has been
    applied, and then the reference is counted (promise 3 of docs/ARCHITECTURE.md).
 2. The walk over a file costs by what lies in it (leaves, and pages in memory), not by its holes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..pages import LEAF_PAGES

if TYPE_CHECKING:
    from .store import Store

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

HOLE, CONTENT, CELL = 0, 1, 2  # zeros that lie nowhere; in memory, or inline; in a cell
_ASK_LEAF = 3  # what `Pages.map` says of pages that memory knows nothing of


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Pages [first, end) of a file. `addresses`: where those in cells lie; 0 for others."""

    first: int
    kinds: U8
    addresses: U64

    @property
    def end(self) -> int:
        return self.first + len(self.kinds)


class Layout:
    """Of the files of one store. They must be resident; pages at or above their size are holes."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def part(self, ino: int, first: int, count: int) -> Part:
        """How `count` pages lie."""
        kinds, addresses = self.store.pages.map(ino, first, count)
        asked = np.flatnonzero(kinds == _ASK_LEAF)
        if len(asked):
            pages = asked.astype(np.uint64) + np.uint64(first)
            found, inline = self.store.reader.addresses(ino, pages)
            addresses[asked] = found
            kinds[asked] = np.where(found != 0, CELL, HOLE)
            if inline is not None:
                kinds[0] = CONTENT
        kinds[(kinds == CELL) & (addresses == 0)] = HOLE
        return Part(first, kinds, addresses)

    def next_part(self, ino: int, first: int, end: int) -> Part | None:
        """The next pages of [first, end) that may not all be holes: at most one leaf's. None: the
        rest are holes. To start again at `end` of the part gives the next one: a moment each, and
        much time for all of a large file."""
        number = self.store.meta.leaf_next(ino, first // LEAF_PAGES)
        entry = self.store.pages.next_entry(ino, first)
        found = [] if number is None else [number]
        found += [] if entry is None else [entry // LEAF_PAGES]
        if not found:
            return None
        first = max(first, min(found) * LEAF_PAGES)
        if first >= end:
            return None
        until = min(end, (first // LEAF_PAGES + 1) * LEAF_PAGES)
        return self.part(ino, first, until - first)

    def share(self, ino: int, first: int, addresses: U64, size: int, now_ns: int) -> None:
        """Pages from `first` on become these cells (0: holes), which some page has at this moment;
        a file smaller than `size` grows to it. Counts as a write."""
        store = self.store
        store.space.hold(addresses, store.epoch)
        store.pages.share(ino, first, addresses, size, now_ns)
