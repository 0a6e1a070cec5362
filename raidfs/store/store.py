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
 9. `cut()` has no await, and while it runs the gate is shut: no reply leaves, and no thread of the
    lane is in the middle of a change.
11. After an error that redundancy can't cover, `failed` says why; dirty pages stay readable,
    `commit()` raises, changes raise ReadOnly, and only a new mount leaves that state.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from ..errors import LossUnrecorded, OutOfSpace, RaidfsError, ReadOnly
from ..lane import Gate
from ..pages import Pages, Sealed
from ..raid.assembly import Assembly
from .cleaner import Cleaner
from .dirty import DirtyRoom
from .durations import Durations
from .events import Events
from .feed import Feed
from .flush import Flush
from .group_snapshots import GroupSnapshots
from .layout import Layout
from .losses import Losses
from .members import engine_for, member_states, require_zones
from .membership import Membership
from .mender import Mender
from .meta import Meta
from .mirror import Mirror
from .notices import Notices
from .offload import in_thread as in_thread
from .reader import Reader
from .reshape import Reshape
from .scrub import Scrub
from .slow import SlowMembers, array_of, end_engine, patience_for
from .snapshots import Snapshots
from .space import Offload, Space
from .sweep import Sweeper

log = logging.getLogger("raidfs.store")

CUT_INTERVAL_S = 5.0
DIRTY_BYTES_MAX = 256 << 20
DIRTY_CELLS_MIN = 320  # one write of 1 MiB and a bit must fit
CHANGES_PER_LOOK = 64  # between looks at the metadata's pressure
UNLOGGED_PAGES_MAX = 4096  # of a wholesale change: then it goes into the log
ENDED = "the volume is being closed"
SEALED_MAX = 16  # epochs that may wait for their flush: each keeps its pages


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
        gate: Gate | None = None,
    ) -> None:
        self.gate = gate or Gate()
        self.assembly = assembly
        self.parameters = assembly.label.parameters
        self.mirror, self.meta, self.notices = mirror, meta, notices
        self.read_only = read_only
        self.clock = clock
        self.offload, self.interval_s = offload, interval_s
        self.failed: str | None = None
        self.epoch, self.durable, self.cuts = meta.durable + 1, meta.durable, 0
        self.cell_bytes = self.parameters.cell_bytes
        self.pages = Pages(self.cell_bytes, generation=self.epoch)
        states = member_states(assembly, meta)
        self.engine = engine = engine_for(assembly)
        self.array = array_of(states, self.cell_bytes, notices, mirror, read_only, engine)
        slots = {entry.id: entry.slots for entry in assembly.label.members}
        entries = assembly.label.members
        self.space = Space(
            meta, self.array, self.parameters, slots, offload, self.pages.claims, entries=entries
        )
        self.space.on_failed = notices.loss
        assembly.zones_survive = self.space.survive
        self.reader = Reader(self)
        self.layout = Layout(self)
        self.feed = Feed(self)
        self.columns = self.feed.columns
        self.space.on_gone = self.feed.forget
        self.dirty_cells_max = self._dirty_cells_max(dirty_bytes_max)
        self.dirty_room = DirtyRoom(self)
        self.losses, self.flushes = Losses(self), Durations()
        self.events = Events(meta, notices, clock, keeps=self._keeps, states=states)
        self.on_cut: Callable[[Sealed], None] = lambda sealed: None
        self.on_cells: Callable[[dict[int, int]], None] = lambda changes: None
        self._due: dict[int, list[Callable[[int], None]]] = {}  # by epoch: see `cut_with`
        self._applied = meta.durable  # of this epoch and before, those changes were made
        self._touched: set[int] = set()  # zones that those changes touched
        self.snapshots = Snapshots(self)
        self.group_snapshots = GroupSnapshots(self)
        self.sweeper = Sweeper(self)
        self.cleaner = Cleaner(self)
        self.users_busy: Callable[[], bool] = self.feed.busy  # writes are seen by themselves
        self.mender = Mender(self)
        self.membership = Membership(self)
        self.reshape = Reshape(self)
        self.scrub = Scrub(self)
        self.slow = SlowMembers(self)
        self._sealed: list[Sealed] = []
        self._changed, self._changes = False, 0
        self._wanted = trio.Event()
        self._progress: trio.Event | None = None  # where somebody waits for it
        self._committed: trio.Event | None = None
        self.wholesale = trio.Lock()  # held by whoever changes the present as a whole: rewrite.py
        self._held: trio.Event | None = None  # set by `let_cut`, after `hold_cuts`
        self._stopping = False
        self._stopped: trio.Event | None = None  # set when `run` has ended
        self._running: trio.CancelScope | None = None  # what `run` began

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
        gate: Gate | None = None,
        slow_read_ms: int | None = None,
    ) -> Store:
        """Open what `assembly` found: recover the metadata, sweep what a crash left behind.

        NotEnoughMembers when a doubtful assembly's zones can't all be read; FormatError when the
        metadata is damaged on every member. The assembly is closed if this fails. `slow_read_ms`:
        see patience_for.
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
                mirror.asking.patience = patience_for(slow_read_ms, assembly)
                meta = Meta(mirror)
            except BaseException:
                mirror.close()
                raise
            mirror.on_failed = notices.loss
            store = cls(
                assembly, mirror, meta, notices,
                read_only=read_only, clock=clock, offload=offload,
                dirty_bytes_max=dirty_bytes_max, interval_s=interval_s, gate=gate,
            )  # fmt: skip
            if not read_only:
                await store.losses.settle()
                await offload(store.space.sweep)
                store.snapshots.condemn_leftovers()
            store.events.attach()
            return store
        except BaseException:
            assembly.close()
            raise

    def _dirty_cells_max(self, dirty_bytes_max: int) -> int:
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
        if self._ended:
            raise ReadOnly(ENDED)

    @property
    def _ended(self) -> bool:
        """The flusher is no more, for whatever reason: nothing can become durable."""
        return self._stopped is not None and self._stopped.is_set()

    def _keeps(self) -> bool:
        return self.failed is None and not self.read_only

    def fail(self, reason: str) -> None:
        """Promise 11: enter the state that only a new mount leaves."""
        if self.failed is None:
            self.dirty_room.end_lane()  # first: from here on no thread writes
            self.failed = reason
            log.error("volume is read-only from now on: %s", reason)
            self.events.note("ReadOnly", text=reason)
        self._step_committed()
        self._wanted.set()

    # -- the cut ----------------------------------------------------------------------------------

    def cut(self) -> int:
        """Close the open epoch and return its number. O(inodes dirtied); no await inside."""
        with self.gate.shut_for():
            sealed = self.pages.seal()
            assert sealed.generation == self.epoch
            self.on_cut(sealed)
            self.meta.note_cut(self.epoch)
            self._sealed.append(sealed)
            self.space.sealed_epochs = len(self._sealed)
            self._changed = False
            self.epoch += 1
            self.dirty_room.at_cut()
        return sealed.generation

    @property
    def can_cut(self) -> bool:
        """A cut that waits for nothing may be taken now; if the volume is writable."""
        room = not self._sealed or (len(self._sealed) < SEALED_MAX and self.space.allows_cut())
        return self._held is None and room

    async def cut_with(
        self, change: Callable[[int], None], at_cut: Callable[[int], None] | None = None
    ) -> int:
        """Cut now, whatever waits for its flush; return the epoch when it is durable. `at_cut` is
        called with it in the moment of the cut; `change` in the transaction that makes it durable,
        when all else of the epoch is in the metadata. Zones of which `change` accounts references
        it must `touch`. It may not fail: an exception there fails the volume."""
        self.writable()
        while not self.can_cut:
            await (self._held.wait() if self._held is not None else self.progress())
            self.writable()
        epoch = self.cut()
        if at_cut is not None:
            at_cut(epoch)
        self.also_in(epoch, change)
        self._wanted.set()
        await self.until_durable(epoch)
        return epoch

    def also_in(self, epoch: int, change: Callable[[int], None]) -> bool:
        """A change as in `cut_with`, of an epoch that was cut. False: its transaction was made."""
        if is_in_time := epoch > self._applied:
            self._due.setdefault(epoch, []).append(change)
        return is_in_time

    async def hold_cuts(self) -> None:
        """From here to `let_cut` the open epoch stays open, whoever wants a cut. Returns when all
        before it is durable."""
        assert self._held is None and self.wholesale.locked()
        self._held = trio.Event()
        try:
            await self.until_durable(self.epoch - 1)
        except BaseException:
            self.let_cut()
            raise

    def let_cut(self) -> None:
        """Whoever calls `cut_with` in the same moment is first. No harm if cuts aren't held."""
        if self._held is not None:
            self._held.set()
            self._held = None
            self._wanted.set()

    async def relieve_log(self) -> None:
        """While cuts are held: what was changed so far goes into the log, and that into the
        database, if it is much. A crash takes it back."""
        self.writable()
        assert not self._sealed
        if self.meta.pressure or self.meta.unlogged_pages >= UNLOGGED_PAGES_MAX:
            self.meta.commit(None)
            await self._checkpoint()
            self.writable()

    def touch(self, zones: Iterable[int]) -> None:
        """References to cells of these zones were accounted by a change."""
        self._touched.update(zones)

    def changes_of(self, epoch: int) -> set[int]:
        """Make the changes that wait for the epoch; the flusher's. Returns the zones touched."""
        self._applied = epoch
        for change in self._due.pop(epoch, ()):
            change(epoch)
        touched, self._touched = self._touched, set()
        return touched & self.space.zones.keys()

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
            self._changed or self.meta.changed or self.events.waiting or self.pages.open_files > 0
        )

    async def commit(self) -> None:
        """Return when everything told so far is durable; concurrent callers share one cut."""
        self._changed = self.dirty  # what made it dirty may be gone before the cut that is promised
        target = self.epoch if self._changed else self.epoch - 1
        await self.until_durable(target)
        if self.failed is not None and self.dirty:
            raise RaidfsError(f"not durable: {self.failed}")

    async def until_durable(self, epoch: int) -> None:
        """RaidfsError: the volume has failed."""
        while self.durable < epoch:
            if self.failed is not None:
                raise RaidfsError(f"not durable: {self.failed}")
            if self._ended:
                raise RaidfsError(f"not durable: {ENDED}")
            if self.epoch == epoch or not self.dirty:  # not cut yet, or cut and nobody was woken
                self._wanted.set()
            if self._committed is None:
                self._committed = trio.Event()
            await self._committed.wait()

    def wake(self) -> None:
        """Ask the flusher to look soon whether there is something to flush."""
        self._wanted.set()

    async def progress(self) -> None:
        """Ask for a flush, and return when something has become durable, or room was given up."""
        self._wanted.set()
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    def step(self) -> None:
        """Wake whoever waits for dirty room."""
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _step_committed(self) -> None:
        """Wake whoever waits for durability, too."""
        if self._committed is not None:
            self._committed.set()
            self._committed = None
        self.step()

    # -- the flusher ------------------------------------------------------------------------------

    async def run(self) -> None:
        """The flusher: until `stop()`, cut and flush when asked, at pressure, at each interval."""
        assert self._stopped is None
        self._stopped = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._running = nursery.cancel_scope
                nursery.start_soon(self._allocate_ahead)
                nursery.start_soon(self._tick)
                nursery.start_soon(self.sweeper.run)
                nursery.start_soon(self.cleaner.run)
                nursery.start_soon(self.scrub.run)
                nursery.start_soon(self.slow.run)
                if not self.read_only:
                    nursery.start_soon(self.mender.run)
                    nursery.start_soon(self.reshape.run)
                while not self._stopping:
                    await self._wanted.wait()
                    self._wanted = trio.Event()
                    if self.failed is None and not self.read_only:
                        await self._flush_once()
                nursery.cancel_scope.cancel()
        except Exception:
            self.fail("an error inside raidfs; its log tells more")  # whoever waits shall not
            raise
        finally:
            self._stopped.set()
            self.let_cut()  # all who wait are told
            self._step_committed()

    async def _tick(self) -> None:
        """Ask for a flush at each interval."""
        while True:
            await trio.sleep(self.interval_s)
            self.events.look()
            self._wanted.set()

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
            await self.losses.settle()
            if self.dirty and self.failed is None and self._held is None:
                self.cut()
            else:
                self.dirty_room.idle()
            while self._sealed and self.failed is None:
                await self._make_durable(self._sealed[0])
        except RaidfsError as error:
            self.fail(str(error))
        except Exception:
            log.exception("the flusher met an error of raidfs itself")
            self.fail("an error inside raidfs; its log tells more")

    async def _make_durable(self, sealed: Sealed) -> None:
        begun_ns = time.monotonic_ns()
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
        self.step()  # dirty room is free again, although not yet durable
        at_once = self.engine is not None and self.mirror.at_once
        if not await self.losses.sync(self.mirror.sync_wal, at_once):
            return
        self._sealed.pop(0)
        self.space.sealed_epochs = max(1, len(self._sealed))
        self.durable = sealed.generation
        self.cuts += 1
        self.flushes.add((time.monotonic_ns() - begun_ns) // 1000)
        self._step_committed()
        if erasable := self.space.erasable(self.durable):
            await self.space.erase(erasable)
        await self._checkpoint()

    async def _checkpoint(self) -> None:
        """When the log has become long, move its pages into the database, off the loop: the next
        fsync shall not have to wait for that."""
        if self.meta.checkpoint_if_due():
            await self.losses.sync(self.mirror.sync_db)

    # -- what files need --------------------------------------------------------------------------

    async def reserve(self, cells: int, privileged: bool = False) -> None:
        """Wait for dirty room, then take credits for `cells` new dirty cells; OutOfSpace if the
        volume is full, after cuts have freed what they can."""
        self.writable()
        if cells == 0:
            return
        await self.dirty_room.reserve(cells, privileged)

    def release(self, cells: int) -> None:
        """End a reservation made by `reserve`: call with the same number, once the cells are dirty
        in memory (from there on they are counted as such) or turned out not to be needed."""
        if cells:
            self.dirty_room.release(cells)

    def lane_wants(self) -> int:
        """Give the lane credits at once, such that a part of the dirty room is unspent in its
        hands, or what there is. Returns how many cells that were."""
        return self.dirty_room.lane_wants()

    async def grant(self, cells: int) -> bool:
        """Wait for room as `reserve` does, then give the lane so many credits more. False: that
        can't be, as the volume is full or read-only; a writer in Python would be told."""
        return await self.dirty_room.grant(cells)

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
        self.events.look(at_once=True)
        try:
            if not self.read_only:
                await self.commit()
        finally:
            self._stopping = True
            self._wanted.set()
            if self._stopped is not None:
                await self._stopped.wait()
            if self.meta.zone_inserted and self.failed is None:
                self.meta.commit(None)  # or its columns would be nobody's
            await self.close()

    async def close(self) -> None:
        """Close without a cut, as after a failure."""
        if self._running is not None and self._stopped is not None:
            self._running.cancel()  # nobody touches the metadata from here on
            await self._stopped.wait()
        try:
            if not self.read_only and self.failed is None:
                await self.space.erase(self.space.erasable(self.durable))
            await self._close_meta()
        finally:
            self.array.close()
            end_engine(self.engine, self.columns)
            self.feed.close()
            self.mirror.close()
            self.assembly.close()

    async def _close_meta(self) -> None:
        """A member that fails at the very end leaves the volume as at any other time."""
        try:
            self.meta.close()
        except RaidfsError as error:
            if self.failed is not None:
                log.warning("the metadata's log is left to the next mount: %s", error)
            elif not (
                isinstance(error, LossUnrecorded) and await self.losses.sync(self.mirror.sync_db)
            ):
                raise
        if self.failed is None:
            await self.losses.settle()

    def statistics(self) -> StoreStatistics:
        space, pages = self.space, self.pages
        return StoreStatistics(
            self.epoch, self.durable, self.cuts, pages.dirty_cells, self.dirty_cells_max,
            space.credits, space.room_cells, len(space.zones), self.failed,
        )  # fmt: skip
