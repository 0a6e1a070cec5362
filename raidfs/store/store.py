"""The store: pages in memory, cells on members, metadata over all; and the cut between them.

One epoch is open. `cut()` closes it: a plain function, so nothing else happens meanwhile. The
flusher then makes closed epochs durable in order: pages become bursts, bursts are written and
synced, their leaves, checksums and owners go into the metadata, the commit that says `durable = e`
is synced, whoever waits is told. Operations of the next epoch go on meanwhile.

    open --cut()--> sealed --bursts written, synced--> placed --commit, sync--> durable

Promises (numbers of docs/ARCHITECTURE.md):
 2. Leaves are written after their bursts' sync has returned.
 4. `commit()` returns only when a cut that holds everything told before it is durable. Losses of
    members noticed until then are in the labels first, so no later mount believes a stale member.
 7. A cut costs O(inodes dirtied in the epoch).
 9. `cut()` has no await: no reply leaves while it runs.
11. After an error that redundancy can't cover, `failed` says why; dirty pages stay readable,
    `commit()` raises, changes raise ReadOnly, and only a new mount leaves that state.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from ..errors import LossUnrecorded, OutOfSpace, RaidfsError, ReadOnly
from ..pages import Pages, Sealed
from ..raid.array import Array
from ..raid.assembly import Assembly
from .flush import Flush
from .members import member_states, require_zones
from .meta import Meta
from .mirror import Mirror
from .notices import Notices
from .reader import Reader
from .space import Offload, Space

log = logging.getLogger("raidfs.store")

CUT_INTERVAL_S = 5.0
DIRTY_BYTES_MAX = 256 << 20
DIRTY_CELLS_MIN = 320  # one write of 1 MiB and a bit must fit
CHANGES_PER_LOOK = 64  # between looks at the metadata's pressure
FULL_TRIES = 3
LIMBO_S = 0.02


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """A moment's figures. Cells are data cells; `cuts` became durable since the mount."""

    epoch: int
    durable: int
    cuts: int
    dirty_cells: int
    dirty_cells_max: int
    credits: int
    room_cells: int
    zones: int
    failed: str | None


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """The real `offload`. The simulator's calls the function at once, so that runs replay."""
    return await trio.to_thread.run_sync(function, *args)


class Store:
    """One volume's store. All methods belong to the event loop's thread."""

    def __init__(
        self,
        assembly: Assembly,
        mirror: Mirror,
        meta: Meta,
        notices: Notices,
        *,
        read_only: bool,
        clock: Callable[[], int],
        offload: Offload,
        dirty_bytes_max: int,
        interval_s: float,
    ) -> None:
        self.assembly = assembly
        self.parameters = assembly.label.parameters
        self.mirror = mirror
        self.meta = meta
        self.notices = notices
        self.read_only = read_only
        self.clock = clock
        self.offload = offload
        self.interval_s = interval_s
        self.failed: str | None = None
        self.epoch = meta.durable + 1
        self.durable = meta.durable
        self.cuts = 0
        self.cell_bytes = self.parameters.cell_bytes
        self.pages = Pages(self.cell_bytes, generation=self.epoch)
        states = member_states(assembly, meta)
        self.array = Array(states, self.cell_bytes, notices.event, heal=not read_only)
        slots = {entry.id: entry.slots for entry in assembly.label.members}
        self.space = Space(
            meta, self.array, self.parameters, slots, offload, lambda: self.pages.dirty_cells
        )
        self.space.on_failed = notices.loss
        self.reader = Reader(self)
        self.dirty_cells_max = self._dirty_room(dirty_bytes_max)
        self.on_cut: Callable[[Sealed], None] = lambda sealed: None
        self.on_cells: Callable[[dict[int, int]], None] = lambda changes: None
        self._sealed: list[Sealed] = []
        self._changed = False
        self._changes = 0
        self._wanted = trio.Event()
        self._progress = trio.Event()
        self._entering = trio.Lock()  # held by the first of the writers that wait for room
        self._settling = trio.Lock()
        self._stopping = False
        self._stopped: trio.Event | None = None  # set when `run` has ended

    @classmethod
    async def open(
        cls,
        assembly: Assembly,
        *,
        read_only: bool = False,
        clock: Callable[[], int] = time.time_ns,
        offload: Offload = in_thread,
        dirty_bytes_max: int = DIRTY_BYTES_MAX,
        interval_s: float = CUT_INTERVAL_S,
    ) -> Store:
        """Open what `assembly` found: recover the metadata, sweep what a crash left behind.

        NotEnoughMembers when a doubtful assembly's zones can't all be read; FormatError when the
        metadata is damaged on every member. The assembly is closed if this fails.
        """
        try:
            if assembly.doubtful:
                require_zones(assembly)
                if not read_only:
                    await offload(assembly.settle)
            notices = Notices(clock)

            def record(member: int, reason: str) -> bool:
                """While opening: a loss goes into the labels at once."""
                notices.loss(member, reason)
                assembly.fail(member, reason)
                return True

            mirror = Mirror(
                dict(assembly.members),
                read_only=read_only,
                on_event=notices.event,
                on_failed=record,
            )
            try:
                meta = Meta(mirror)
            except BaseException:
                mirror.close()
                raise
            mirror.on_failed = notices.loss
            store = cls(
                assembly,
                mirror,
                meta,
                notices,
                read_only=read_only,
                clock=clock,
                offload=offload,
                dirty_bytes_max=dirty_bytes_max,
                interval_s=interval_s,
            )
            if not read_only:
                await store.settle_losses()
                await offload(store.space.sweep)
            return store
        except BaseException:
            assembly.close()
            raise

    def _dirty_room(self, dirty_bytes_max: int) -> int:
        """Dirty cells allowed. Each may dirty a leaf of its own, so what a flush adds to the WAL is
        bounded by them; a raw member's WAL region is finite."""
        wal_cells = self.meta.wal_bytes_max() // (6 * 4096)  # leaf: row and overflow; and its CRC
        return max(DIRTY_CELLS_MIN, min(dirty_bytes_max // self.cell_bytes, wal_cells))

    # -- what the volume may do -------------------------------------------------------------------

    def writable(self) -> None:
        """Raise ReadOnly unless changes are allowed now."""
        if self.failed is not None:
            raise ReadOnly(f"the volume is read-only after an error: {self.failed}")
        if self.read_only:
            raise ReadOnly("the volume is mounted read-only")

    def fail(self, reason: str) -> None:
        """Promise 11: enter the state that only a new mount leaves."""
        if self.failed is None:
            self.failed = reason
            log.error("volume is read-only from now on: %s", reason)
        self._step()
        self._wanted.set()

    async def settle_losses(self) -> None:
        """Write every loss noticed so far into the labels of the others, before anything is told
        durable that the lost member missed. On return that has been done, or the store failed."""
        async with self._settling:
            while self.notices.losses:
                member, reason = self.notices.losses.popitem()
                if self.array.states[member].state != "failed":
                    await self._settle_loss(member, reason)

    async def _settle_loss(self, member: int, reason: str) -> None:
        if not self.space.affordable(member):  # then it is better to go on reading from it
            self.fail(f"member {member} failed, and the others don't make up for it: {reason}")
            return
        self.array.fail(member, reason)
        self.space.after_loss()
        try:
            self.mirror.lose(member, reason)
            left = await self.offload(
                functools.partial(self.assembly.fail, member, reason, zones_survive=True)
            )
            self.mirror.recorded(member)
        except RaidfsError as error:
            self.fail(f"member {member} failed ({reason}): {error}")
            return
        for other in left - {member}:
            self.notices.loss(other, "its label could not be written")

    async def fail_member(self, member: int, reason: str) -> None:
        """An administrator takes a member out. The caller has checked that redundancy covers it."""
        self.notices.loss(member, reason)
        await self.settle_losses()
        self._changed = True
        await self.commit()

    # -- the cut ----------------------------------------------------------------------------------

    def cut(self) -> int:
        """Close the open epoch and return its number. O(inodes dirtied); no await inside."""
        sealed = self.pages.seal()
        assert sealed.generation == self.epoch
        self.on_cut(sealed)
        self.meta.note_cut(self.epoch)
        self._sealed.append(sealed)
        self._changed = False
        self.epoch += 1
        return sealed.generation

    def changed(self) -> None:
        """The open epoch holds something: a cut is due within `interval_s`, or soon if the log or
        the metadata's last reserve fill up."""
        self._changed = True
        self._changes += 1
        if self._changes % CHANGES_PER_LOOK == 0 and self.meta.pressure:
            self._wanted.set()

    def request_cut(self) -> None:
        """Ask the flusher for a cut soon; returns at once."""
        self._changed = True
        self._wanted.set()

    @property
    def dirty(self) -> bool:
        return (
            self._changed
            or self.meta.changed
            or self.notices.waiting
            or self.pages.statistics().open_files > 0
        )

    async def commit(self) -> None:
        """Return when everything told so far is durable; concurrent callers share one cut."""
        self._changed = self.dirty  # what made it dirty may be gone before the cut that is promised
        target = self.epoch if self._changed else self.epoch - 1
        while self.durable < target:
            if self.failed is not None:
                raise RaidfsError(f"not durable: {self.failed}")
            if self.epoch == target:  # not cut yet; once it is, there is no need of another
                self._wanted.set()
            await self._progress.wait()
        if self.failed is not None and self.dirty:
            raise RaidfsError(f"not durable: {self.failed}")

    def _step(self) -> None:
        """Wake whoever waits for durability or dirty room."""
        self._progress.set()
        self._progress = trio.Event()

    # -- the flusher ------------------------------------------------------------------------------

    async def run(self) -> None:
        """The flusher: until `stop()`, cut and flush when asked, at pressure, or every interval."""
        assert self._stopped is None
        self._stopped = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._allocate_ahead)
                while not self._stopping:
                    with trio.move_on_after(self.interval_s):
                        await self._wanted.wait()
                    self._wanted = trio.Event()
                    if self.failed is None and not self.read_only:
                        await self._flush_once()
                nursery.cancel_scope.cancel()
        finally:
            self._stopped.set()

    async def _allocate_ahead(self) -> None:
        """Keep a zone's worth of room granted ahead, so that writers seldom wait for one."""
        while True:
            await self.space.wanted.wait()
            self.space.wanted = trio.Event()
            if self.failed is None and not self.read_only:
                with contextlib.suppress(OutOfSpace):  # whoever needs the zone will be told
                    await self.space.grow(self.space.wants_zone)

    async def _flush_once(self) -> None:
        try:
            await self.settle_losses()
            if self.dirty and self.failed is None:
                self.cut()
            while self._sealed and self.failed is None:
                await self._make_durable(self._sealed[0])
        except RaidfsError as error:
            self.fail(str(error))
        except Exception:
            log.exception("the flusher met an error of raidfs itself")
            self.fail("an error inside raidfs; its log tells more")

    async def _make_durable(self, sealed: Sealed) -> None:
        flush = Flush(self, sealed)
        await flush.place()
        if self.failed is not None:
            return
        if self.meta.pressure:  # make room in the log for what this flush adds
            self.meta.commit(None)
            await self._checkpoint()
        await flush.apply()
        self.meta.commit(sealed.generation)
        self.pages.retire(sealed.generation)
        self.space.retire(len(flush.inos))
        self._step()  # dirty room is free again, although not yet durable
        if not await self._sync(self.mirror.sync_wal):
            return
        self._sealed.pop(0)
        self.durable = sealed.generation
        self.cuts += 1
        self._step()
        await self.space.erase(self.space.erasable(self.durable))
        await self._checkpoint()

    async def _checkpoint(self) -> None:
        """When the log has become long, move its pages into the database, off the loop: the next
        fsync shall not have to wait for that."""
        if self.meta.checkpoint_if_due():
            await self._sync(self.mirror.sync_db)

    async def _sync(self, sync: Callable[[], None]) -> bool:
        """Sync the log, or all, on the members that are left, with losses recorded. False if that
        failed the volume."""
        while True:
            try:
                await self.offload(sync)
                again = False
            except LossUnrecorded:  # the mirror wants the loss in the labels first
                again = True
            await self.settle_losses()
            if self.failed is not None or not again:
                return self.failed is None

    # -- what files need --------------------------------------------------------------------------

    async def reserve(self, cells: int, privileged: bool = False) -> None:
        """Wait for dirty room, then take credits for `cells` new dirty cells; OutOfSpace if the
        volume is full, after cuts have freed what they can."""
        self.writable()
        if cells == 0:
            return
        assert cells <= self.dirty_cells_max
        at_once = not self._entering.locked() and self._fits(cells)
        if not (at_once and self.space.take(cells, privileged)):
            async with self._entering:  # one by one, so that nobody is overtaken for ever
                await self._enter(cells, privileged)
        if self.pages.dirty_cells > self.dirty_cells_max // 2:
            self._wanted.set()
        if self.space.wants_zone():
            self.space.wanted.set()

    def _fits(self, cells: int) -> bool:
        return self.pages.dirty_cells + self.space.reserved + cells <= self.dirty_cells_max

    async def _enter(self, cells: int, privileged: bool) -> None:
        """Dirty room first, then credits; both are there in the same moment in the end."""
        tries = 0
        while True:
            self.writable()
            if not self._fits(cells):
                self._wanted.set()
                await self._progress.wait()
            elif self.space.take(cells, privileged):
                return
            elif not await self.space.make_room(cells, privileged):
                if tries == FULL_TRIES:
                    raise OutOfSpace("the volume is full")
                await self._reclaim()
                tries += 1

    async def _reclaim(self) -> None:
        """Files removed since the last cut may have emptied zones; a zone may have failed because
        of a member that others can do without."""
        await self.settle_losses()
        await self.commit()
        await self.space.erase(self.space.erasable(self.durable))
        if self.space.limbo:
            await trio.sleep(LIMBO_S)  # they are being read

    def release(self, cells: int) -> None:
        """End a reservation made by `reserve`: call with the same number, once the cells are dirty
        in memory (from there on they are counted as such) or turned out not to be needed."""
        if cells:
            self.space.give(cells)
            if self._entering.locked():
                self._step()

    async def read(self, ino: int, offset: int, nbytes: int) -> memoryview:
        """Content of a range that the caller has clipped to the file's size."""
        return await self.reader.read(ino, offset, nbytes)

    async def base(self, ino: int, page: int) -> tuple[object, bytes]:
        """(token, content) of a page as it is below the pages in memory."""
        return await self.reader.base(ino, page)

    def unchanged(self, ino: int, page: int, token: object) -> bool:
        """The page below the pages in memory is still the one that `base` read."""
        return self.reader.token(ino, page) == token

    # -- end --------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Final cut, everything durable, members closed. Raises if that could not be done."""
        try:
            if not self.read_only:
                await self.commit()
        finally:
            self._stopping = True
            self._wanted.set()
            if self._stopped is not None:
                await self._stopped.wait()
            await self.close()

    async def close(self) -> None:
        """Close without a cut, as after a failure."""
        try:
            if not self.read_only and self.failed is None:
                await self.space.erase(self.space.erasable(self.durable))
            await self._close_meta()
        finally:
            self.array.close()
            self.mirror.close()
            self.assembly.close()

    async def _close_meta(self) -> None:
        """A member that fails at the very end leaves the volume as at any other time."""
        try:
            self.meta.close()
        except RaidfsError as error:
            if self.failed is not None:
                log.warning("the metadata's log is left to the next mount: %s", error)
            elif not (isinstance(error, LossUnrecorded) and await self._sync(self.mirror.sync_db)):
                raise
        if self.failed is None:
            await self.settle_losses()

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            self.epoch,
            self.durable,
            self.cuts,
            self.pages.dirty_cells,
            self.dirty_cells_max,
            self.space.credits,
            self.space.room_cells,
            len(self.space.zones),
            self.failed,
        )
