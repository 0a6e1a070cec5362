"""The scrub: all that is stored is read and compared with what it should be, and healed.

   labels --> metadata, every page on every member --> zones, ascending, on all members at once

1. What it found and how far it came is in the metadata with each epoch that becomes durable: after
   a crash or a remount it goes on from there. A zone is done as a whole or again.
2. Zones that come or go meanwhile are no harm: those that are made after it began are not its.
3. It gives way to users (pace.py) and stands still while the mender works: what lacks redundancy
   comes first. Its limit in bytes per second is of what is read from all members together.
4. What can't be healed is named: files of the present and of snapshots. With `check_only`, and
   where nothing may be written, all is only told.
5. It reads what lies on the members, past what the kernel remembers of their files.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from .. import wal
from ..errors import FormatError, RaidfsError, UsageError
from . import scrub_zone
from .batches import FRAME_BYTES, PAGE_BYTES
from .copies import Found, compare_log, compare_pages
from .pace import Pace
from .scrub_files import named
from .scrub_record import (
    FILES_MAX,
    FILES_SETTING,
    SETTING,
    LostFile,
    Record,
    decode_files,
    decode_record,
    encode_files,
    encode_record,
    text_of,
)
from .scrub_zone import Pools, ZoneScrub, give_way

if TYPE_CHECKING:
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.scrub")

LOOK_S = 1.0  # whether the mender is through
PAGES_AT_ONCE = 256  # of the metadata
LOG_FRAMES_AT_ONCE = 256
MENDING = "lost redundancy is restored first"

JobState = Literal["running", "waiting", "paused", "stalled", "done", "failed"]


@dataclass(frozen=True, slots=True)
class ScrubStatistics:
    """As a job; bytes are read from members. `zone`: the one that it is at, or 0."""

    kind: Literal["scrub"]
    state: JobState
    done_bytes: int
    left_bytes: int
    rate_bytes_s: float
    seconds_left: float | None
    reason: str
    member: int
    zone: int


class Scrub:
    """Of one store. `run` is one of its tasks. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pace = Pace(store)
        self.record: Record | None = None
        self.files: list[LostFile] = []
        try:
            self.record = decode_record(store.meta.setting(SETTING))
            self.files = decode_files(store.meta.setting(FILES_SETTING))
        except FormatError as error:
            log.warning("%s", error)
        self._here = self.under_way  # it has not ended before this opening
        self._mine = not store.read_only  # what the record says is to be done is for this mount
        self._unsaved = self._files_unsaved = False
        self._wanted = trio.Event()
        if self.running:
            self._wanted.set()
        self._ended = trio.Event()
        self._working: trio.CancelScope | None = None
        self._pacing = trio.Lock()
        self._waiting = ""
        self._zone = self._zone_bytes = 0

    # -- for others -------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """It works, or will when it may; not if it is paused."""
        return self._mine and self.record is not None and self.record.state == "running"

    @property
    def under_way(self) -> bool:
        """It was started, and neither stopped nor through."""
        return self.record is not None and self.record.state in ("running", "paused")

    def start(self, *, check_only: bool = False, limit_bytes_s: int = 0) -> None:
        """From the beginning. UsageError: there is one under way."""
        store = self.store
        if not check_only or store.failed is not None:
            store.writable()
        if self.record is not None and self.under_way and not store.read_only:
            hint = "`scrub resume` goes on with it" if self.record.state == "paused" else "wait"
            raise UsageError(f"a scrub is {self.record.state}: {hint}, or `scrub stop` ends it")
        if self.running:
            raise UsageError("a scrub is running: wait, or `scrub stop` ends it")
        self.record = Record(
            check_only=check_only,
            limit_bytes_s=limit_bytes_s,
            started_ns=store.clock(),
            end=store.meta.next_zone,
        )
        self._mine = self._here = True
        self.files, self._files_unsaved = [], True
        how = "check only" if check_only else "with healing"
        store.events.note("ScrubStarted", text=how, check_only=check_only, limit=limit_bytes_s)
        self._begin()

    def pause(self) -> None:
        """UsageError: none is running."""
        record = self._need("running")
        record.state = "paused"
        self.store.events.note("ScrubPaused", text=f"before zone {record.cursor}")
        self._end_work()

    def resume(self) -> None:
        """UsageError: none is paused."""
        record = self._need("paused")
        record.state = "running"
        self.store.events.note("ScrubStarted", text=f"goes on from zone {record.cursor}")
        self._begin()

    def stop(self) -> None:
        """For good. UsageError: none is under way."""
        record = self._need("running", "paused")
        record.state, record.ended_ns = "stopped", self.store.clock()
        self.store.events.note("ScrubStopped", text=f"by then: {text_of(record)}")
        self._end_work()

    def _need(self, *states: str) -> Record:
        if self.record is None or self.record.state not in states or not self._mine:
            was = "there was none" if self.record is None else f"the last one: {self.record.state}"
            raise UsageError(f"no scrub is {' or '.join(states)} ({was})")
        return self.record

    def limit(self, limit_bytes_s: int) -> None:
        """From now on; 0: none. UsageError: none is under way."""
        self._need("running", "paused").limit_bytes_s = self.pace.limit_bytes_s = limit_bytes_s
        self._changed()

    async def ended(self) -> None:
        """Return when none is under way, or it is paused."""
        while self.running:
            await self._ended.wait()

    def statistics(self) -> ScrubStatistics | None:
        """None: there was none since the opening."""
        record = self.record
        if record is None or not self._here:
            return None
        left = self._left_bytes() if record.state in ("running", "paused") else 0
        states: dict[str, JobState] = {"paused": "paused", "failed": "failed", "running": "running"}
        state = states.get(record.state, "done")
        reason = record.reason
        if record.state == "running" and (self._waiting or not self._mine):
            state, reason = "waiting", self._waiting or "the volume is mounted read-only"
        rate = self.pace.rate_bytes_s if state == "running" else 0.0
        seconds = left / rate if rate else None
        done = record.done_bytes + self._zone_bytes
        return ScrubStatistics(
            "scrub", state, done, left, rate, seconds, reason, -1, self._zone
        )  # fmt: skip

    def _left_bytes(self) -> int:
        assert self.record is not None
        cursor, end = self.record.cursor, self.record.end
        zones = [z for number, z in self.store.space.zones.items() if cursor <= number < end]
        cells = sum(zone.fill * zone.map.code.width for zone in zones)
        return max(0, cells * self.store.cell_bytes - self._zone_bytes)

    # -- keeping ----------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._unsaved = True
        if self._keeps:
            self.store.changed()

    @property
    def _keeps(self) -> bool:
        return not self.store.read_only and self.store.failed is None

    def save(self) -> None:
        """In a transaction that makes an epoch durable: promise 1."""
        if self._unsaved and self.record is not None:
            self._unsaved = False
            self.store.meta.put_setting(SETTING, encode_record(self.record))
        if self._files_unsaved:
            self._files_unsaved = False
            stored = encode_files(self.files) if self.files else None
            self.store.meta.put_setting(FILES_SETTING, stored)

    def _begin(self) -> None:
        self._ended = trio.Event()
        self._wanted.set()
        self._changed()
        if self._keeps:
            self.store.request_cut()

    def _end_work(self) -> None:
        if self._working is not None:
            self._working.cancel()
        self._changed()
        if self._keeps:
            self.store.request_cut()
        self._ended.set()

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._wanted.wait()
            self._wanted = trio.Event()
            if not self.running:
                continue
            if self.store.failed is not None:  # what is kept says that it goes on at the next mount
                self._conclude("failed", f"the volume is read-only after: {self.store.failed}")
                continue
            if self._held_up():
                continue
            try:
                with trio.CancelScope() as self._working:
                    await self._work()
            except RaidfsError as error:  # the metadata is full, or the store failed: tried again
                self._waiting = str(error)
                log.warning("scrubbing was given up for now: %s", error)
            except Exception:
                log.exception("the scrub met an error of raidfs itself")
                self._conclude("failed", "an error inside raidfs; its log tells more")
            finally:
                self._working, self._zone, self._zone_bytes = None, 0, 0

    def _held_up(self) -> bool:
        """Somebody else's work comes first, or nothing can be done now."""
        store = self.store
        if store.failed is not None:
            self._waiting = f"the volume is read-only after an error: {store.failed}"
        elif store.mender.working:
            self._waiting = MENDING
        else:
            self._waiting = ""
        return bool(self._waiting)

    async def _work(self) -> None:
        record = self.record
        assert record is not None
        self.pace.limit_bytes_s = record.limit_bytes_s
        self.pace.begin()
        if not record.copies:
            await self._copies(record)
        threads = 2 * len(self.store.array.states)
        with (
            ThreadPoolExecutor(threads, "scrub") as pool,
            ThreadPoolExecutor(threads, "scrub", initializer=give_way) as gentle,
        ):
            while (zone := self._next(record)) is not None:
                if not await self._one(record, zone, (pool, gentle)) and self._held_up():
                    return
        self._conclude("finished")

    def _next(self, record: Record) -> Zone | None:
        """Promise 2."""
        zones = self.store.space.zones
        number = min((n for n in zones if record.cursor <= n < record.end), default=None)
        return None if number is None else zones[number]

    def _conclude(self, state: Literal["finished", "failed"], reason: str = "") -> None:
        record = self.record
        assert record is not None
        record.state, record.reason, record.ended_ns = state, reason, self.store.clock()
        sums = record.total()
        self.store.events.note(
            "ScrubFinished" if state == "finished" else "JobFailed",
            text=text_of(record) if state == "finished" else f"scrub: {reason}",
            seconds=(record.ended_ns - record.started_ns) // 10**9,
            read_bytes=record.done_bytes,
            bad_cells=sums.bad,
            healed_cells=sums.healed,
            rows_lost=record.rows_lost,
            files=record.files,
        )
        self._end_work()

    # -- copies of labels and metadata ------------------------------------------------------------

    async def _copies(self, record: Record) -> None:
        store, heal = self.store, not record.check_only
        check = functools.partial(store.assembly.check_copies, heal=heal)
        wrong, failed = await store.offload(check)
        for member, count in wrong.items():
            record.of(member).labels += count
            if heal and member not in failed:
                record.of(member).labels_healed += count
        for member, reason in failed.items():
            store.notices.loss(member, reason)
        await store.losses.settle()
        page = 0
        while page * PAGE_BYTES < store.mirror.db_bytes:
            await self._compared(
                record, store.offload(compare_pages, store.mirror, page, PAGES_AT_ONCE, heal)
            )
            page += PAGES_AT_ONCE
        number, start = store.mirror.log_number, 0
        end = wal.HEADER_BYTES + LOG_FRAMES_AT_ONCE * FRAME_BYTES
        while await self._compared(
            record,
            store.offload(compare_log, store.mirror, number, start, end - start, heal),
        ):
            start, end = end, end + LOG_FRAMES_AT_ONCE * FRAME_BYTES
        record.copies = True
        self._changed()

    async def _compared(self, record: Record, comparison: Awaitable[Found | None]) -> bool:
        found = await comparison
        if found is None:
            return False
        for member, count in found.wrong.items():
            record.of(member).metadata += count
            record.of(member).metadata_healed += found.healed.get(member, 0)
        record.metadata_lost += found.undecided
        if found.wrong or found.undecided:
            self._changed()
        await self.store.losses.settle()
        await self._paced(found.nbytes)
        return True

    async def _paced(self, nbytes: int) -> None:
        async with self._pacing:
            await self.pace.turn(nbytes)

    # -- zones ------------------------------------------------------------------------------------

    async def _one(self, record: Record, zone: Zone, pools: Pools) -> bool:
        """False: it is to be done again, if it is still there."""
        number = zone.map.zone
        self._zone, self._zone_bytes = number, 0

        def found(member: int, bad: int, healed: int) -> None:
            record.of(member).bad += bad
            record.of(member).healed += healed
            self._changed()

        async def turn(nbytes: int) -> bool:
            self._zone_bytes += nbytes
            await self._paced(nbytes)
            return not self._held_up()

        scrub = ZoneScrub(
            self.store,
            zone,
            pools,
            heal=not record.check_only,
            turn=turn,
            found=found,
            step=functools.partial(self._step, zone.map.code.width),
        )
        if not await scrub.run():
            return False
        await self._take(record, scrub)
        record.cursor = number + 1
        self._changed()
        return True

    def _step(self, width: int) -> tuple[int, bool]:
        """Little at once while users are there, or where a limit would make long pauses of much."""
        return self.pace.step(scrub_zone.STEP_BYTES, scrub_zone.STEP_BYTES_BUSY, width)

    async def _take(self, record: Record, scrub: ZoneScrub) -> None:
        """A zone is through."""
        tally, store = scrub.tally, self.store
        files: list[LostFile] = []
        if tally.rows_lost:
            files = await named(store, tally.needed, FILES_MAX)
        for member, cells in tally.cells.items():
            record.of(member).cells += cells
        for member, cells in tally.left.items():
            record.of(member).left += cells
        record.done_bytes += tally.nbytes
        record.zones += 1
        self._zone_bytes = 0
        if tally.rows_lost:
            store.array.gave_up(scrub.zone.map, tally.first_lost, tally.rows_lost)
            record.rows_lost += tally.rows_lost
            self._merge(record, files)

    def _merge(self, record: Record, files: list[LostFile]) -> None:
        known = {(file.snapshot, file.ino): at for at, file in enumerate(self.files)}
        for file in files:
            record.pages_lost += file.pages
            at = known.get((file.snapshot, file.ino))
            if at is not None:
                old = self.files[at]
                pages, page = old.pages + file.pages, min(old.page, file.page)
                self.files[at] = LostFile(old.path, old.snapshot, old.ino, pages, page)
                continue
            record.files += 1
            if len(self.files) < FILES_MAX:
                self.files.append(file)
        self._files_unsaved = True
