"""Moving cells from one zone to another: read, verified, written, sealed; then leaves are told.

A move takes some cells that live in one zone. Their content goes to rows of the cleaner's outlet,
with an owner record that says the same of them as the old one did. When these rows are sealed,
every version of every leaf that names an old address gets the new one, in place, in transactions
that make an epoch durable: as many versions at once as the metadata's log can take. So a cell may
for a while be named by both addresses; each is good, and each reference counts where it is.

 1. Rows are sealed before any leaf names them (promise 2 of docs/ARCHITECTURE.md), and until the
    transaction that records them, the zone's fill mark doesn't count them: a crash leaves nothing.
 2. A cell is moved only as its checksum says it is; where needed it is rebuilt from its row first.
 3. What changed since the zone was surveyed does no harm: only references that are there in the
    moment of the change are moved, all others stay where they are.
 4. A leaf that shares a cell still does so, and is recorded to.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import RaidfsError
from ..leaves import ROW_SHIFT, encode_cells
from ..pages import LEAF_PAGES
from ..raid.array import addresses_of
from . import burst
from .database import INF
from .owners import Owned
from .past import FIRST_VIEW
from .reader import Run
from .space import Rows, Zone
from .survey import Key, cells_within

if TYPE_CHECKING:
    from .snapshot_rows import LeafVersion
    from .store import Store

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
VERSIONS_PER_CUT = 64  # rewritten in one transaction, during which the event loop stands still
PAGES_PER_VERSION = 16  # of the metadata, that rewriting one may dirty; more than it takes
PAGES_TO_RECORD = 256  # and what recording rows may
ROW_MASK = np.uint64(0xFFFFFF)
COLUMN_MASK = np.uint64(0xFF)


@dataclass(slots=True, eq=False)
class Move:
    """`old` cells, ascending, are at `new`, and were written for these pages. `leaves`: of which
    versions are still to be told."""

    source: Zone
    written: burst.Written
    old: U64
    new: U64
    inos: U64
    indexes: U64
    leaves: list[Key]
    recorded: bool = False
    told: int = 0  # versions rewritten
    split: bool = False  # for a while versions of one leaf named a cell by two addresses

    @property
    def rows(self) -> Rows:
        return self.written.burst.rows


@dataclass(slots=True)
class Mover:
    """Moves cells within one store."""

    store: Store
    unfinished: Move | None = None  # recorded, and some leaves are not told yet
    moved_cells: int = 0
    rewritten_versions: int = 0

    async def move(self, source: Zone, cells: Owned, leaves: list[Key], outlet: Zone) -> bool:
        """These cells into rows of `outlet`, which has room for them. False: the metadata has no
        room, or the zones are not what they were. Raises Unrecoverable if a cell can't be read, and
        what `cut_with` raises."""
        assert self.unfinished is None
        outlet.unrecorded = True
        try:
            return await self._move(source, cells, leaves, outlet)
        finally:
            outlet.unrecorded = False

    async def _move(self, source: Zone, cells: Owned, leaves: list[Key], outlet: Zone) -> bool:
        found = await self._read(source, cells.cells)
        if found is None:
            return False
        content, places = found
        written = await self._write(cells, outlet, addresses_of(content)[places])
        by_old = np.argsort(cells.cells)
        move = Move(
            source,
            written,
            cells.cells[by_old],
            written.burst.cells()[by_old],
            cells.inos[by_old],
            cells.indexes[by_old],
            leaves,
        )
        self.unfinished = move
        del content  # it is sealed: nothing in memory is needed of it
        return await self.finish() and move.recorded

    # -- content ----------------------------------------------------------------------------------

    async def _read(self, zone: Zone, cells: U64) -> tuple[U8, npt.NDArray[np.intp]] | None:
        """(n, cell_bytes), and where in it each cell is: promise 2. None if the zone is gone."""
        store = self.store
        if store.space.zones.get(zone.map.zone) is not zone:
            return None
        content = native.aligned((len(cells), store.cell_bytes))
        runs, places = self._plan(zone, cells)
        zone.pins += 1
        try:
            if not await store.reader.read_runs(runs, content):
                return None
        finally:
            zone.pins -= 1
        return content, places

    def _plan(self, zone: Zone, cells: U64) -> tuple[list[Run], npt.NDArray[np.intp]]:
        """Reads by column and row; and where each of `cells` is among them."""
        rows = ((cells >> np.uint64(ROW_SHIFT)) & ROW_MASK).astype(np.int64)
        columns = (cells & COLUMN_MASK).astype(np.int64)
        order = np.lexsort((rows, columns))
        places = np.empty(len(cells), np.intp)
        places[order] = np.arange(len(cells))
        rows, columns = rows[order], columns[order]
        lowest, highest = int(rows.min()), int(rows.max())
        crcs = self.store.meta.crcs(zone.map.zone, lowest, highest - lowest + 1)
        breaks = (rows[1:] != rows[:-1] + 1) | (columns[1:] != columns[:-1])
        starts = np.concatenate(([0], np.flatnonzero(breaks) + 1)).tolist()
        runs = []
        for start, end in zip(starts, [*starts[1:], len(cells)], strict=True):
            column, row, count = int(columns[start]), int(rows[start]), end - start
            want = crcs[row - lowest : row - lowest + count, column]
            runs.append(Run(zone, column, row, start, count, np.ascontiguousarray(want)))
        return runs, places

    async def _write(self, cells: Owned, outlet: Zone, addresses: U64) -> burst.Written:
        """Cells that are at `addresses` in memory into the outlet's next rows: promise 1."""
        store = self.store
        count = len(addresses)
        rows = Rows(outlet, outlet.fill, -(-count // outlet.map.code.k), count)
        made = burst.Burst(rows, cells.inos, cells.indexes, addresses)
        (synced,) = burst.syncs([made])
        outlet.pins += 1  # its columns may be moved meanwhile: then what they had isn't given back
        try:
            written = await burst.write(store.array, made, store.cell_bytes, store.offload, synced)
            await self._settle(written.failed)
            if not written.synced:
                await self._settle(await store.offload(burst.sync, store.array, [outlet]))
        finally:
            outlet.pins -= 1
        return written

    async def _settle(self, failed: set[int]) -> None:
        store = self.store
        for member in failed:
            store.notices.loss(member, store.array.states[member].write_error)
        await store.losses.settle()
        if store.failed is not None:
            raise RaidfsError(store.failed)

    # -- leaves -----------------------------------------------------------------------------------

    async def finish(self) -> bool:
        """Tell the leaves of what was moved, in as many cuts as it takes. False: the metadata has
        no room for it now."""
        while self.unfinished is not None:
            move = self.unfinished
            before = (move.recorded, move.told, len(move.leaves))
            await self.store.cut_with(functools.partial(self._change, move))
            if not move.leaves:
                self.unfinished = None
                if move.split:  # who compared versions meanwhile may have been wrong
                    self.store.snapshots.sharing()
            elif before == (move.recorded, move.told, len(move.leaves)):
                if not move.recorded:  # nobody knows of these rows: they are written anew
                    self.unfinished = None
                return False
        return True

    def _change(self, move: Move, epoch: int) -> None:
        """In the transaction that makes an epoch durable."""
        store, meta = self.store, self.store.meta
        if store.space.zones.get(move.source.map.zone) is not move.source:
            move.leaves.clear()  # all that lived there is gone
            return
        pages = meta.spare_pages()
        if not move.recorded:
            if pages < PAGES_TO_RECORD + PAGES_PER_VERSION or not move.rows.zone.kept:
                return
            self._record(move)
            pages -= PAGES_TO_RECORD
        left = min(VERSIONS_PER_CUT, pages // PAGES_PER_VERSION)
        while move.leaves and left > 0:
            left -= max(1, self._rewrite(move, *move.leaves[-1], left))

    def _record(self, move: Move) -> None:
        store, rows = self.store, move.rows
        number = rows.zone.map.zone
        store.meta.put_crcs(number, rows.row, move.written.crcs)
        store.space.note_rows(rows.zone, rows.row, move.written.reach)
        store.feed.written(rows.zone, rows.row, move.written.crcs)
        runs = move.written.burst.owner_runs()
        store.meta.put_owner(number, rows.row, rows.rows, rows.pages, runs)
        rows.zone.youngest = max(rows.zone.youngest if rows.row else 0, move.source.youngest)
        store.space.reserve.advance(rows.zone, rows.row, rows.rows)
        store.touch([number])
        move.recorded = True
        self.moved_cells += rows.pages

    def _rewrite(self, move: Move, ino: int, number: int, most: int) -> int:
        """Versions of one leaf, at most so many; how many that were. The live one first: it is the
        one that is copied from."""
        done, zone = 0, move.source.map.zone
        gone: U64 | None = None
        for version in reversed(self.store.meta.leaf_versions(ino, number)):
            where = cells_within(version.addresses, zone)
            if version.addresses is None or not len(where):
                continue
            cells = version.addresses[where]
            at = np.minimum(np.searchsorted(move.old, cells), len(move.old) - 1)
            mine = move.old[at] == cells
            if not mine.any():
                continue
            if done == most:
                move.split = True
                return done
            self._rewrite_version(move, ino, number, version, where[mine], at[mine])
            gone = cells[mine] if gone is None else gone
            done += 1
        move.leaves.pop()
        if gone is not None and zone in self.store.meta.shared_zones:
            self.store.meta.unshare(ino, number, gone)
        return done

    def _rewrite_version(
        self,
        move: Move,
        ino: int,
        number: int,
        version: LeafVersion,
        where: npt.NDArray[np.intp],
        at: npt.NDArray[np.intp],
    ) -> None:
        """Pages `where` of the leaf lie in the cells move.new[at] now."""
        store = self.store
        assert version.addresses is not None
        addresses = version.addresses.copy()
        addresses[where] = move.new[at]
        store.meta.rewrite_leaf(ino, number, version.born, encode_cells(addresses))
        store.touch(store.space.account(version.addresses[where], -1))
        store.touch(store.space.account(move.new[at], +1))
        own = (move.inos[at] == np.uint64(ino)) & (
            move.indexes[at] == (where + number * LEAF_PAGES).astype(np.uint64)
        )
        if not own.all():
            store.meta.put_share(move.rows.zone.map.zone, ino, number)
        if version.died == INF and store.pages.leaf(ino, number) is not None:
            store.pages.leaf_put(ino, number, addresses)
        for view in store.reader.viewed.pop(ino, ()):
            assert view >= FIRST_VIEW
            store.pages.leaf_forget(view)
        move.told += 1
        self.rewritten_versions += 1
