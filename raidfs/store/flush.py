"""One flush: a sealed epoch becomes rows on members, then leaves, checksums and owners.

    place():  pages -> bursts -> written and synced          (promise 2: before any leaf says so)
    apply():  cuts, inline contents and cell addresses -> leaves; the cells they replace are dead

Everything that `apply` changes belongs to one transaction, so it may pause between files and let
the event loop serve others: readers still see the pages and cuts of the sealed epoch in memory,
which say the same as the leaves will.

Content of a file that fits in `INLINE_BYTES_MAX` and one page lies in leaf 0 itself; the next
flush of its page 0 decides anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from .. import native
from ..pages import LEAF_PAGES, Sealed
from . import burst
from .meta import Leaf
from .tables import INLINE_BYTES_MAX

if TYPE_CHECKING:
    from .store import Store

U64 = npt.NDArray[np.uint64]
LEAF_SHIFT = 8
LEAVES_PER_TURN = 64  # then others get the event loop


class Flush:
    """Makes one sealed epoch placeable and applied; `Store` commits it."""

    def __init__(self, store: Store, sealed: Sealed) -> None:
        self.store = store
        self.sealed = sealed
        self.generation = sealed.generation
        inos, indexes, memory = store.pages.sealed_cells(self.generation)
        inline = _inline(sealed, inos, indexes)
        self.inline_inos, self.inline_memory = inos[inline], memory[inline]
        self.inos, self.indexes, self.memory = inos[~inline], indexes[~inline], memory[~inline]
        self.cells = np.zeros(len(self.inos), dtype=np.uint64)
        self.written: list[burst.Written] = []
        self.touched: set[int] = set()  # zones whose fill or live changes
        self.changes: dict[int, int] = {}  # cells that the leaves of an inode gain or lose
        self._turns = 0

    async def place(self) -> None:
        """Write and sync the bursts. On a loss beyond redundancy the store fails, and nothing will
        refer to them."""
        store = self.store
        if not len(self.inos):
            return  # names and inline contents alone: no member's columns to write or sync
        await store.space.prepare(len(self.inos))
        taken = store.space.rows_for(len(self.inos))
        start = 0
        for each in burst.plan(taken, self.inos, self.indexes, self.memory):
            written = await store.offload(burst.write, store.array, each, store.cell_bytes)
            await self._settle(written.failed)
            if store.failed is not None:
                return
            self.cells[start : start + each.rows.pages] = each.cells()
            start += each.rows.pages
            self.written.append(written)
        zones = {rows.zone.map.zone: rows.zone for rows in taken}
        await self._settle(await store.offload(burst.sync, store.array, zones.values()))

    async def _settle(self, failed: set[int]) -> None:
        for member in failed:
            self.store.notices.loss(member, self.store.array.states[member].write_error)
        await self.store.settle_losses()

    async def apply(self) -> None:
        """Change leaves, checksums, owners, zones in the open transaction."""
        store = self.store
        with store.meta.reserve():
            for each in self.written:
                rows = each.burst.rows
                zone = rows.zone.map.zone
                store.meta.put_crcs(zone, rows.row, each.crcs)
                store.meta.put_owner(zone, rows.row, rows.rows, rows.pages, each.burst.owner_runs())
                self.touched.add(zone)
            if len(self.cells):
                self.touched |= store.space.account(self.cells, +1)
            await self._apply_cuts()
            await self._apply_inline()
            await self._apply_cells()
            for ino, change in self.changes.items():
                store.meta.add_cells(self.generation, ino, change)
            store.on_cells(self.changes)
            store.space.store_zones(self.touched, self.generation)
            self._report()

    def _report(self) -> None:
        """Events and error counts noticed since the last flush go into the same transaction."""
        for time_ns, name, member, text in self.store.notices.take_events():
            self.store.meta.add_event(time_ns, name, member, text)
        self.store.meta.set_member_counters(self.store.array.counters())

    async def _turn(self) -> None:
        self._turns += 1
        if self._turns % LEAVES_PER_TURN == 0:
            with self.store.meta.unreserved():  # the others' changes are ordinary ones
                await trio.lowlevel.checkpoint()

    def _dead(self, ino: int, addresses: U64 | None) -> None:
        """Cells that no leaf of the file refers to any more."""
        if addresses is None:
            return
        gone = addresses[addresses != 0]
        if len(gone):
            self.touched |= self.store.space.account(gone, -1)
            self.changes[ino] = self.changes.get(ino, 0) - len(gone)

    async def _apply_cuts(self) -> None:
        """Everything from a file's cut on becomes a hole."""
        meta, pages = self.store.meta, self.store.pages
        cuts = (array.tolist() for array in pages.sealed_cuts(self.generation))
        for ino, first in zip(*cuts, strict=True):
            number = first >> LEAF_SHIFT
            keep = first & (LEAF_PAGES - 1)
            if keep:
                leaf = meta.leaf(ino, number)
                if leaf is not None and leaf.addresses is not None:
                    self._dead(ino, leaf.addresses[keep:])
                    kept = leaf.addresses.copy()
                    kept[keep:] = 0
                    meta.put_leaf(self.generation, ino, number, Leaf(kept, leaf.inline))
                number += 1
            for old_number, leaf in meta.leaf_range(ino, number, 1 << 62):
                self._dead(ino, leaf.addresses)
                meta.put_leaf(self.generation, ino, old_number, None)
                await self._turn()
            pages.leaf_forget(ino, first >> LEAF_SHIFT)

    async def _apply_inline(self) -> None:
        """Small files: page 0 goes into leaf 0."""
        store = self.store
        sizes = dict(zip(self.sealed.inos.tolist(), self.sealed.sizes.tolist(), strict=True))
        for ino, memory in zip(self.inline_inos.tolist(), self.inline_memory.tolist(), strict=True):
            content = native.memory(memory, store.cell_bytes)[: sizes[ino]]
            old = store.meta.leaf(ino, 0)
            if old is not None:
                self._dead(ino, old.addresses)
            store.meta.put_leaf(self.generation, ino, 0, Leaf(None, bytes(content)))
            store.pages.leaf_forget(ino, 0)
            await self._turn()

    async def _apply_cells(self) -> None:
        """Addresses of the placed cells go into their leaves, one leaf at a time."""
        meta, pages = self.store.meta, self.store.pages
        if not len(self.inos):
            return
        numbers = self.indexes >> np.uint64(LEAF_SHIFT)
        borders = (self.inos[1:] != self.inos[:-1]) | (numbers[1:] != numbers[:-1])
        starts = np.concatenate(([0], np.flatnonzero(borders) + 1))
        ends = np.concatenate((starts[1:], [len(self.inos)]))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            ino, number = int(self.inos[start]), int(numbers[start])
            old = meta.leaf(ino, number)
            addresses = np.zeros(LEAF_PAGES, dtype=np.uint64)
            if old is not None and old.addresses is not None:
                addresses[:] = old.addresses
            where = (self.indexes[start:end] & np.uint64(LEAF_PAGES - 1)).astype(np.intp)
            inline = old.inline if old is not None else None
            if where[0] == 0:
                inline = None  # page 0 moves out into a cell
            self._dead(ino, addresses[where])
            addresses[where] = self.cells[start:end]
            self.changes[ino] = self.changes.get(ino, 0) + end - start
            meta.put_leaf(self.generation, ino, number, Leaf(addresses, inline))
            if inline is None:
                pages.leaf_put(ino, number, addresses)
            await self._turn()


def _inline(sealed: Sealed, inos: U64, indexes: U64) -> npt.NDArray[np.bool_]:
    """Which sealed cells are the whole content of a small file."""
    small = sealed.inos[sealed.sizes.astype(np.uint64) <= np.uint64(INLINE_BYTES_MAX)]
    return np.asarray((indexes == 0) & np.isin(inos, small), dtype=np.bool_)
