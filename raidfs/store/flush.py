"""One flush: a sealed epoch becomes rows on members, then leaves, checksums and owners.

    place():  pages -> bursts -> written and synced          (promise 2: before any leaf says so)
    apply():  cuts, inline contents, cell addresses and marks -> leaves; what they replace has a
              reference less, unless a snapshot sees it; then whatever else waits for the epoch

Everything that `apply` changes belongs to one transaction, so it may pause between files and let
the event loop serve others: readers still see the pages and cuts of the sealed epoch in memory,
which say the same as the leaves will.

Marks are pages without content of their own: holes, and cells that another page has too. Such a
reference is counted as live here, and recorded (schema.sql, share); what a leaf shares of a zone is
forgotten when the leaf refers to nothing there any more.

Content of a file that fits in `INLINE_BYTES_MAX` and one page lies in leaf 0 itself; the next
flush of its page 0 decides anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from .. import native
from ..leaves import ZONE_SHIFT
from ..pages import LEAF_PAGES, Sealed
from . import burst
from .meta import Leaf
from .tables import INLINE_BYTES_MAX

if TYPE_CHECKING:
    from .store import Store

U64 = npt.NDArray[np.uint64]
LEAF_SHIFT = 8
LEAVES_PER_TURN = 64  # then others get the event loop
FEW = 16  # entries that a loop is through with before numpy has begun
_NONE = np.empty(0, np.uint64)


class Flush:
    """Makes one sealed epoch placeable and applied; `Store` commits it."""

    def __init__(self, store: Store, sealed: Sealed) -> None:
        self.store = store
        self.sealed = sealed
        self.generation = sealed.generation
        inos, indexes, memory = store.pages.sealed_cells(self.generation)
        self.inline_inos = self.inline_memory = _NONE
        inline = _inline(sealed, inos, indexes)
        if inline is not None:
            self.inline_inos, self.inline_memory = inos[inline], memory[inline]
            inos, indexes, memory = inos[~inline], indexes[~inline], memory[~inline]
        self.inos, self.indexes, self.memory = inos, indexes, memory
        self.marks = store.pages.sealed_marks(self.generation)  # inos, indexes, addresses
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
        zones = {rows.zone.map.zone: rows.zone for rows in taken}
        bursts = burst.plan(taken, self.inos, self.indexes, self.memory)
        if burst.is_one_row(store.array, bursts):
            self.written = [await burst.write_one_row(store.array, bursts[0], store.cell_bytes)]
            self.cells = bursts[0].cells()
            await self._settle(self.written[0].failed)
            return
        start = 0
        for each, synced in zip(bursts, burst.syncs(bursts), strict=True):
            written = await burst.write(store.array, each, store.cell_bytes, store.offload, synced)
            if written.synced:
                del zones[each.rows.zone.map.zone]
            await self._settle(written.failed)
            if store.failed is not None:
                return
            self.cells[start : start + each.rows.pages] = each.cells()
            start += each.rows.pages
            self.written.append(written)
        if zones:
            await self._settle(await store.offload(burst.sync, store.array, zones.values()))

    async def _settle(self, failed: set[int]) -> None:
        for member in failed:
            self.store.notices.loss(member, self.store.array.states[member].write_error)
        await self.store.losses.settle()

    async def apply(self) -> None:
        """Change leaves, checksums, owners, zones in the open transaction."""
        store = self.store
        with store.meta.reserve():
            for each in self.written:
                rows = each.burst.rows
                zone = rows.zone.map.zone
                store.meta.put_crcs(zone, rows.row, each.crcs)
                store.space.note_rows(rows.zone, rows.row, each.reach)
                store.feed.written(rows.zone, rows.row, each.crcs)
                store.meta.put_owner(zone, rows.row, rows.rows, rows.pages, each.burst.owner_runs())
                self.touched.add(zone)
            if len(self.cells):
                self.touched |= store.space.account(self.cells, +1)
            if len(self.marks[2]):
                self._count_shared()
            await self._apply_cuts()
            if len(self.inline_inos):
                await self._apply_inline()
            if not len(self.marks[0]) and len(self.inos) <= FEW:
                await self._apply_few()
            else:
                await self._apply_cells()
            self.changes = {ino: change for ino, change in self.changes.items() if change}
            for ino, change in self.changes.items():
                store.meta.add_cells(self.generation, ino, change)
            store.on_cells(self.changes)
            self.touched |= store.changes_of(self.generation)
            store.space.let_go(self.generation)
            store.space.store_zones(self.touched, self.generation)
            self._report()

    def _report(self) -> None:
        """Events and error counts noticed since the last flush go into the same transaction."""
        self.store.events.keep()
        self.store.meta.set_member_counters(self.store.array.counters())
        self.store.losses.save()
        self.store.scrub.save()

    async def _turn(self) -> None:
        self._turns += 1
        if self._turns % LEAVES_PER_TURN == 0:
            with self.store.meta.unreserved():  # the others' changes are ordinary ones
                await trio.lowlevel.checkpoint()

    def _count_shared(self) -> None:
        """Each mark that names a cell is one more reference to it."""
        shared = self.marks[2][self.marks[2] != 0]
        self.touched |= self.store.space.account(shared, +1)
        if len(shared):
            self.store.snapshots.sharing()

    def _dead(self, ino: int, addresses: U64 | None) -> None:
        """Cells to which an entry of a leaf refers no more."""
        if addresses is None:
            return
        gone = addresses[addresses != 0]
        if len(gone):
            self.touched |= self.store.space.account(gone, -1)
            self.changes[ino] = self.changes.get(ino, 0) - len(gone)

    def _put(self, ino: int, number: int, old: Leaf | None, new: Leaf | None) -> None:
        """Change a leaf. If the old one is kept for a snapshot, it refers to its cells as before;
        else what it shared of zones is forgotten where no version is left that refers to them."""
        meta = self.store.meta
        kept = meta.put_leaf(self.generation, ino, number, new, new=old is None)
        if old is None or old.addresses is None:
            return
        if kept:
            self.touched |= self.store.space.account(old.addresses[old.addresses != 0], +1)
        elif meta.shared_zones:
            meta.unshare(ino, number, old.addresses)

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
                    self._put(ino, number, leaf, Leaf(kept, leaf.inline))
                number += 1
            for old_number, leaf in meta.leaf_range(ino, number, 1 << 62):
                self._dead(ino, leaf.addresses)
                self._put(ino, old_number, leaf, None)
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
            self._put(ino, 0, old, Leaf(None, bytes(content)))
            store.pages.leaf_forget(ino, 0)
            await self._turn()

    def _entries(self) -> tuple[U64, U64, U64, npt.NDArray[np.bool_]]:
        """Inos, indexes and addresses of placed cells and marks together, by (ino, index), and
        which of the addresses other pages have too."""
        inos, indexes, addresses = self.inos, self.indexes, self.cells
        shared = np.zeros(len(inos), dtype=np.bool_)
        if len(self.marks[0]):
            inos = np.concatenate((inos, self.marks[0]))
            indexes = np.concatenate((indexes, self.marks[1]))
            addresses = np.concatenate((addresses, self.marks[2]))
            shared = np.concatenate((shared, self.marks[2] != 0))
            order = np.lexsort((indexes, inos))
            inos, indexes = inos[order], indexes[order]
            addresses, shared = addresses[order], shared[order]
        return inos, indexes, addresses, shared

    def _leaf(self, ino: int, number: int) -> Leaf | None:
        """As it is before this flush. The cache in memory says the same as the metadata."""
        addresses = self.store.pages.leaf(ino, number)
        return self.store.meta.leaf(ino, number) if addresses is None else Leaf(addresses)

    async def _apply_few(self) -> None:
        """As `_apply_cells`, without marks, for the few pages of a small fsync."""
        leaves: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        columns = (self.inos.tolist(), self.indexes.tolist(), self.cells.tolist())
        for ino, index, cell in zip(*columns, strict=True):
            where, cells = leaves.setdefault((ino, index >> LEAF_SHIFT), ([], []))
            where.append(index & LEAF_PAGES - 1)
            cells.append(cell)
        for (ino, number), entries in leaves.items():
            self._few_in_leaf(ino, number, *entries)
            await self._turn()

    def _few_in_leaf(self, ino: int, number: int, where: list[int], cells: list[int]) -> None:
        """These pages of a leaf, ascending, lie in cells of their own now."""
        old = self._leaf(ino, number)
        if old is None or old.addresses is None:
            addresses = np.zeros(LEAF_PAGES, dtype=np.uint64)
            gone = []
        else:
            addresses = old.addresses.copy()
            gone = [cell for at in where if (cell := int(addresses[at]))]
        if gone:
            self.touched |= self.store.space.account(gone, -1)
        for at, cell in zip(where, cells, strict=True):
            addresses[at] = cell
        self.changes[ino] = self.changes.get(ino, 0) + len(where) - len(gone)
        inline = old.inline if old is not None and where[0] != 0 else None
        self._put(ino, number, old, Leaf(addresses, inline))
        if inline is None:
            self.store.pages.leaf_put(ino, number, addresses)

    async def _apply_cells(self) -> None:
        """Addresses of the placed cells, and marks, go into their leaves, one leaf at a time."""
        meta, pages = self.store.meta, self.store.pages
        inos, indexes, cells, shared = self._entries()
        if not len(inos):
            return
        numbers = indexes >> np.uint64(LEAF_SHIFT)
        borders = (inos[1:] != inos[:-1]) | (numbers[1:] != numbers[:-1])
        starts = np.concatenate(([0], np.flatnonzero(borders) + 1))
        ends = np.concatenate((starts[1:], [len(inos)]))
        where_all = (indexes & np.uint64(LEAF_PAGES - 1)).astype(np.intp)
        marked = len(self.marks[0]) > 0
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            ino, number = int(inos[start]), int(numbers[start])
            if end - start <= FEW and not marked:
                where_few, few = where_all[start:end].tolist(), cells[start:end].tolist()
                self._few_in_leaf(ino, number, where_few, few)
                await self._turn()
                continue
            old = self._leaf(ino, number)
            addresses = np.zeros(LEAF_PAGES, dtype=np.uint64)
            if old is not None and old.addresses is not None:
                addresses[:] = old.addresses
            where = where_all[start:end]
            inline = old.inline if old is not None else None
            if where[0] == 0:
                inline = None  # page 0 is no longer there
            self._dead(ino, addresses[where])
            addresses[where] = cells[start:end]
            gained = int(np.count_nonzero(cells[start:end]))
            self.changes[ino] = self.changes.get(ino, 0) + gained
            self._put(ino, number, old, Leaf(addresses, inline))
            if marked:
                of_others = cells[start:end][shared[start:end]]
                for zone in np.unique(of_others >> np.uint64(ZONE_SHIFT)).tolist():
                    meta.put_share(zone, ino, number)
            if inline is None:
                pages.leaf_put(ino, number, addresses)
            await self._turn()


def _inline(sealed: Sealed, inos: U64, indexes: U64) -> npt.NDArray[np.bool_] | None:
    """Which sealed cells are the whole content of a small file; None if none is."""
    few = len(sealed.sizes) <= FEW
    if few and not any(size <= INLINE_BYTES_MAX for size in sealed.sizes.tolist()):
        return None
    small = sealed.inos[sealed.sizes.astype(np.uint64) <= np.uint64(INLINE_BYTES_MAX)]
    return np.asarray((indexes == 0) & np.isin(inos, small), dtype=np.bool_)
