"""Who may make pages dirty: writers in Python one by one, the lane in advance.

Two things bound what is dirty: the *dirty room* (`Store.dirty_cells_max`, so that memory and the
metadata's log suffice), and the room on the members, of which `Space` promises each dirty cell one.
A writer in Python reserves what it may need before it changes anything, and waits if need be. The
lane's threads can't wait: they hold credits, granted before they ask, and spend them one for each
cell that they make dirty.

 1. Dirty cells, reserved ones and the lane's unspent credits together never exceed the dirty room.
 2. Nobody is refused, and nobody waits for a flush, because of credits that the lane has not spent:
    they are taken back first. While a writer waits, the lane gets none.
 3. After each cut the room on the members stands for the unspent credits although the flushes to
    come leave cells unused (promise 10 of docs/ARCHITECTURE.md); what it can't stand for is taken
    back. So it never matters in how many epochs the lane spends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..errors import OutOfSpace, RaidfsError
from ..pages import SERVE_READS

if TYPE_CHECKING:
    from .store import Store

FULL_TRIES = 3
LIMBO_S = 0.02
IDLE_BYTES_KEPT = 16 << 20  # of memory that dirty cells had, while nothing is dirty
LANE_PART = 4  # the lane's unspent credits: this part of the dirty room
LANE_FILES_MAX = 256  # that it may dirty first in an epoch, each with a new version of its inode


class DirtyRoom:
    """The dirty room of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pages = store.pages
        self.space = store.space
        self._entering = trio.Lock()  # held by the first of the writers that wait for room
        if store.read_only:
            self.end_lane()
        else:
            self.pages.allow_files(store.meta.versions_at_cut(LANE_FILES_MAX))

    # -- writers in Python ------------------------------------------------------------------------

    async def reserve(self, cells: int, privileged: bool) -> None:
        """See Store."""
        assert cells <= self.store.dirty_cells_max
        at_once = not self._entering.locked() and self._fits(cells)
        if not (at_once and self.space.take(cells, privileged)):
            async with self._entering:  # one by one, so that nobody is overtaken for ever
                await self._enter(cells, privileged)
        self._look_ahead()

    def release(self, cells: int) -> None:
        """See Store."""
        self.space.give(cells)
        if self._entering.locked():
            self.store.step()

    async def has_room(self, cells: int) -> bool:
        """So many new cells could be written now, as statfs tells. Nothing is promised."""
        if cells <= 0 or self.space.usage().free_cells >= cells:
            return True
        self._take_all_back()
        if self.space.usage().free_cells < cells:
            await self._reclaim()
        return self.space.usage().free_cells >= cells

    def _look_ahead(self) -> None:
        """Begin early with what will be needed soon: a flush, a zone."""
        if self.pages.dirty_cells > self.store.dirty_cells_max // 2:
            self.store.wake()
        if self.space.wants_zone():
            self.space.wanted.set()

    def _free(self) -> int:
        """What nobody has of the dirty room."""
        return self.store.dirty_cells_max - sum(self.pages.claims()) - self.space.reserved

    def _fits(self, cells: int) -> bool:
        lacking = cells - self._free()
        return lacking <= 0 or self.pages.take_back(lacking) == lacking

    async def _enter(self, cells: int, privileged: bool) -> None:
        """Dirty room first, then credits; both are there in the same moment in the end."""
        tries = 0
        while True:
            self.store.writable()
            if not self._fits(cells):
                await self.store.progress()
            elif self.space.take(cells, privileged):
                return
            elif (
                await self.space.make_room(cells, privileged)
                or self._take_all_back()
                or (tries and await self.store.cleaner.gain())
            ):
                continue
            elif tries == FULL_TRIES:
                raise OutOfSpace("the volume is full")
            else:
                await self._reclaim()
                tries += 1

    async def _reclaim(self) -> None:
        """Files removed since the last cut may have emptied zones; a zone may have failed because
        of a member that others can do without."""
        store = self.store
        await store.losses.settle()
        await store.commit()
        await self.space.erase(self.space.erasable(store.durable))
        if self.space.limbo:
            await trio.sleep(LIMBO_S)  # they are being read

    # -- the lane ---------------------------------------------------------------------------------

    def lane_wants(self) -> int:
        """See Store."""
        store = self.store
        if store.failed is not None or store.read_only or self._entering.locked():
            return 0
        wanted = store.dirty_cells_max // LANE_PART - self.pages.claims()[1]
        cells = min(wanted, self._free(), self.space.grantable())
        if cells > 0:
            self.pages.grant(cells)
        self._look_ahead()
        return max(0, cells)

    async def grant(self, cells: int) -> bool:
        """See Store."""
        try:
            await self.store.reserve(cells)
        except RaidfsError:
            return False
        self.pages.grant(cells)
        self.release(cells)
        return True

    def _take_all_back(self) -> int:
        return self.pages.take_back(self.store.dirty_cells_max)

    def idle(self) -> None:
        """Nothing has been dirty for a while: memory goes back to the system."""
        self.pages.keep(IDLE_BYTES_KEPT)

    def before_loss(self) -> None:
        """A member is about to be lost, and room with it: only what is dirty needs the rest."""
        self._take_all_back()

    def at_cut(self) -> None:
        """An epoch has been closed: promise 3."""
        lacking = self.space.lacking_cells
        if lacking > 0:
            self.pages.take_back(lacking)
        self.pages.allow_files(self.store.meta.versions_at_cut(LANE_FILES_MAX))
        self.pages.keep(self.store.dirty_cells_max * self.store.cell_bytes)

    def end_lane(self) -> None:
        """From now on nothing can be changed: the lane only reads, and no atime changes."""
        self.pages.serve(SERVE_READS)
        self._take_all_back()
