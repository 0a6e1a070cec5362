"""The mender: columns that are lost, stale, or on members that leave are made anew, zone by zone.

What is to be done follows from the zones and the labels alone: after a crash, a remount or another
loss the work goes on with what there is. A column is

    lost     its member failed, or is none any more: it is rebuilt onto another member
    stale    its member is back, and missed rows (schema.sql, `missed`): these are rebuilt in place
    leaving  its member is to go: it is copied, or rebuilt where it can't be read

 1. A column's new place counts from the commit that says so on; until then nothing refers to it,
    and what a crash leaves of it is swept (Space.sweep). Its old place is given back after that.
 2. Rows written meanwhile are those that the column then lacks (`missed`), and come next: writers
    never wait, and when a zone is full, or gets no rows for the time of one pass, it is whole.
 3. Zones that nothing refers to aren't mended: they fall free. Of the others, rows without a live
    cell may be left out.
 4. Those with least redundancy come first.
 5. Where it goes: to who replaces the member; else to any member with room, of another failure
    domain than the zone's others if that can be.
 6. A row beyond redundancy is told, once, and left as it is: the rest of the zone is mended.
 7. Who is offline is expected back: nothing of its columns is made anew elsewhere.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import trio

from .. import native
from ..errors import MemberError, MemberFull, RaidfsError
from ..raid.array import Array, ZoneMap, addresses_of
from ..raid.rebuild import Cells, runs
from .pace import Pace

if TYPE_CHECKING:
    from ..raid.label import MemberEntry
    from ..raid.member import Member
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.mender")

Bools = npt.NDArray[np.bool_]
Why = Literal["lost", "stale", "leaving"]
PIECE_BYTES = 4 << 20  # of each column, read and written at once
LOOK_S = 5.0  # between looks, if nobody asks
HELD_UP_S = 0.05
PASSED_OVER_S = 30.0  # a zone that can't be mended now


@dataclass(frozen=True, slots=True)
class Task:
    """A column to be made anew on `member`; in place, if that is where it lies."""

    column: int
    why: Why
    member: int


@dataclass(frozen=True, slots=True)
class MenderStatistics:
    """`left_bytes`: of columns that are to be made; `done_bytes`: since the work began. `stalled`:
    why nothing goes on, or empty. `waiting`: columns of members that are offline."""

    working: bool
    zone: int
    left_bytes: int
    done_bytes: int
    rate_bytes_s: float
    columns_mended: int
    rows_unrecoverable: int
    waiting: int
    stalled: str
    broken: str | None


@dataclass(slots=True)
class _Work:
    """A zone that is being mended. `slots`: where each task's column is to lie."""

    zone: Zone
    map: ZoneMap  # as it was when the work began
    fill: int
    tasks: list[Task]
    slots: dict[int, int] = field(default_factory=dict)
    made: bool = False  # it is in the metadata


class Mender:
    """Of one store. `run` is one of its tasks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.pace = Pace(store)
        self.broken: str | None = None
        self.paused = False
        self._wanted = trio.Event()
        self._passed: dict[int, float] = {}  # zones left alone, until then
        self._working = False
        self._zone = self._done_bytes = self._mended = self._unrecoverable = 0
        self._stalled = ""
        self._held_up = False  # by rows that are being written

    # -- for others -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Members or labels changed."""
        self._passed.clear()
        self._wanted.set()

    def statistics(self) -> MenderStatistics:
        found = self.lacking()
        size = self.store.cell_bytes
        left = sum(zone.fill * size * len(why) for zone, why in found)
        waiting = sum(self._waiting(zone) for zone in self._zones())
        return MenderStatistics(
            self._working, self._zone, left, self._done_bytes, self.pace.rate_bytes_s,
            self._mended, self._unrecoverable, waiting, self._stalled if left else "", self.broken,
        )  # fmt: skip

    def lacking(self) -> list[tuple[Zone, dict[int, Why]]]:
        """What there is to do: zones with the columns and why, in order (promise 4)."""
        found = [(zone, why) for zone in self._zones() if (why := self._why(zone))]

        def left(pair: tuple[Zone, dict[int, Why]]) -> tuple[int, int]:
            gone = sum(why != "leaving" for why in pair[1].values())
            return pair[0].map.code.m - gone, pair[0].map.zone

        return sorted(found, key=left)

    # -- what is to be done -----------------------------------------------------------------------

    def _zones(self) -> list[Zone]:
        return [zone for zone in self.store.space.zones.values() if zone.needed or zone.room_cells]

    def _entries(self) -> dict[int, MemberEntry]:
        return {entry.id: entry for entry in self.store.assembly.label.members}

    def _why(self, zone: Zone) -> dict[int, Why]:
        entries, found = self._entries(), dict[int, Why]()
        for column, (member, _) in enumerate(zone.map.columns):
            entry = entries.get(member)
            if entry is not None and entry.state == "offline":
                continue  # promise 7
            if self.store.array.present(zone.map, column) is None:
                found[column] = "lost"
            elif entry is not None and entry.role == "leaving":
                found[column] = "leaving"
            elif column in zone.missed:
                found[column] = "stale"
        return found

    def _waiting(self, zone: Zone) -> int:
        """Columns on members that are offline."""
        of = (self._entries().get(member) for member, _ in zone.map.columns)
        return sum(entry is not None and entry.state == "offline" for entry in of)

    def _plan(self, zone: Zone, why: dict[int, Why]) -> list[Task]:
        """Where each column goes; those for which there is no place are left out (promise 5)."""
        allocation, tasks = self.store.space.allocation, list[Task]()
        have = {member for member, _ in zone.map.columns}
        heirs: dict[int, list[int]] = {}
        for entry in self._entries().values():
            if entry.replaces >= 0:
                heirs.setdefault(entry.replaces, []).append(entry.id)
        for column, reason in why.items():
            member = zone.map.columns[column][0]
            if reason == "stale":
                tasks.append(Task(column, reason, member))
                continue
            places = allocation.for_column(have, have - {member}, heirs.get(member, ()))
            if places:
                tasks.append(Task(column, reason, places[0]))
                have.add(places[0])
        return tasks

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self._work()
            except RaidfsError as error:  # the store failed, or the metadata is full
                self._stalled = str(error)
                log.warning("mending was given up for now: %s", error)
            except Exception:
                log.exception("the mender met an error of raidfs itself")
                self.broken = "an error inside raidfs; its log tells more"
            finally:
                self._working, self._zone = False, 0

    def _may(self) -> bool:
        store = self.store
        return not (self.broken or self.paused or store.failed or store.read_only)

    async def _work(self) -> None:
        while self._may():
            now = trio.current_time()
            self._passed = {zone: until for zone, until in self._passed.items() if until > now}
            work = self._next()
            if work is None and self._held_up:
                await trio.sleep(HELD_UP_S)
                continue
            if work is None:
                if self._mended and not self.lacking():
                    await self.store.membership.tidy()
                return
            if not self._working:
                self._working, self._done_bytes = True, 0
                self.pace.begin()
            self._zone = work.map.zone
            if await self._mend(work):
                self._mended += len(work.tasks)
            else:
                self._passed[work.map.zone] = trio.current_time() + PASSED_OVER_S

    def _next(self) -> _Work | None:
        stalled, self._held_up = "", False
        for zone, why in self.lacking():
            if zone.map.zone in self._passed:
                continue
            if not self.store.space.readable(zone):
                stalled = stalled or "some zones have lost more than their code survives"
                continue
            tasks = self._plan(zone, why)
            if not tasks:
                stalled = stalled or "no member that could take them has room: add one"
                continue
            self._stalled = ""
            if not zone.placed:  # else rows of it are being written, which nobody knows yet
                return _Work(zone, zone.map, zone.fill, tasks)
            self._held_up = True
        self._stalled = stalled
        return None

    # -- one zone ---------------------------------------------------------------------------------

    async def _mend(self, work: _Work) -> bool:
        """False: not now."""
        zone = work.zone
        zone.pins += 1
        try:
            if not await self._make_places(work):
                return False
            await self._fill(work)
            await self.store.cut_with(functools.partial(self._record, work))
        except MemberError as error:
            log.warning("zone %d can't be mended now: %s", work.map.zone, error)
        finally:
            zone.pins -= 1
            with trio.CancelScope(shield=True):
                await self._clear(work)
        return work.made

    async def _make_places(self, work: _Work) -> bool:
        """Slots and columns. False: there is no room."""
        allocation, store = self.store.space.allocation, self.store
        nbytes = work.map.rows * store.cell_bytes
        for task in work.tasks:
            in_place = task.why == "stale"
            slot = work.map.columns[task.column][1] if in_place else None
            if slot is None:
                slot = allocation.slots[task.member].take()
            work.slots[task.column] = slot
            target = allocation.member(task.member)
            try:
                await store.offload(target.column_create, work.map.zone, task.column, slot, nbytes)
            except MemberFull:
                allocation.is_full(task.member)
                return False
            except MemberError as error:
                await self._lost(task.member, error)
                return False
        return True

    async def _fill(self, work: _Work) -> None:
        """The columns' rows, in pieces, then their syncs. MemberError: of a target, which is lost
        by it."""
        zone, store = work.zone, self.store
        rows_at_once = max(1, PIECE_BYTES // store.cell_bytes)
        first = min(self._first_row(work, task) for task in work.tasks)
        for row in range(first, work.fill, rows_at_once):
            count = min(rows_at_once, work.fill - row)
            crcs = store.meta.crcs(work.map.zone, row, count)
            there = store.reader.present(zone, row, count)
            await self._guarded(work, _piece, store.array, row, crcs, there)
            nbytes = count * store.cell_bytes * len(work.tasks)
            self._done_bytes += nbytes
            await self.pace.turn(nbytes)
        await self._guarded(work, _sync)

    @staticmethod
    def _first_row(work: _Work, task: Task) -> int:
        return work.zone.missed.get(task.column, 0) if task.why == "stale" else 0

    async def _guarded(self, work: _Work, action: Callable[..., int], *arguments: object) -> None:
        """In a thread. A target that fails is lost."""
        member = self.store.space.allocation.member
        targets = [(each, member(each.member), work.slots[each.column]) for each in work.tasks]
        try:
            bad: int = await self.store.offload(action, work.map, targets, *arguments)
        except _TargetFailed as failed:
            await self._lost(failed.member, failed.cause)
            raise failed.cause from None
        if bad:
            self._unrecoverable += bad
            log.error("zone %d: %d rows are beyond redundancy", work.map.zone, bad)

    async def _lost(self, member: int, error: MemberError) -> None:
        self.store.notices.loss(member, str(error))
        await self.store.losses.settle()

    def _record(self, work: _Work, epoch: int) -> None:
        """In the transaction that makes an epoch durable: promise 1."""
        space, zone = self.store.space, work.zone
        if space.zones.get(work.map.zone) is not zone or zone.map is not work.map:
            return
        for task in work.tasks:
            slot = work.slots[task.column]
            space.move_column(zone, task.column, task.member, slot, work.fill)
        work.made = True

    async def _clear(self, work: _Work) -> None:
        """The places that aren't used: the old ones, or, if it came to nothing, the new ones."""
        space, number = self.store.space, work.map.zone
        for task in work.tasks:
            if task.why == "stale" or task.column not in work.slots:
                continue
            old, new = work.map.columns[task.column], (task.member, work.slots[task.column])
            member, slot = old if work.made else new
            state = self.store.array.states.get(member)
            if state is not None and state.member is not None:
                remove = functools.partial(state.member.column_remove, number, task.column, slot)
                try:
                    await self.store.offload(remove)
                except MemberError as error:  # it is swept at the next mount
                    log.info("an old column stays for now: %s", error)
            space.allocation.give([(member, slot)])


class _TargetFailed(Exception):
    def __init__(self, member: int, cause: MemberError) -> None:
        self.member, self.cause = member, cause


def _piece(
    zone: ZoneMap,
    targets: list[tuple[Task, Member, int]],
    array: Array,
    row: int,
    crcs: npt.NDArray[np.uint32],
    there: Bools,
) -> int:
    """In a thread: rows of all columns wanted, from what is left of them, to their new places.
    Returns how many rows could not be had."""
    copied, wanted = dict[int, Cells](), np.zeros_like(there)
    for task, _, _ in targets:
        wanted[:, task.column] = there[:, task.column]
        if task.why == "leaving":
            cells = copied[task.column] = native.aligned((len(there), array.cell_bytes))
            sums = np.ascontiguousarray(crcs[:, task.column])
            wanted[:, task.column] &= ~array.read_run(zone, task.column, row, sums, cells)
    content, good = dict[int, Cells](), np.ones(len(there), dtype=np.bool_)
    if wanted.any():
        content, good = array.rebuild_rows(zone, row, crcs, there, wanted)
        good = good | ~wanted.any(axis=1)
    for column, cells in copied.items():
        bad = wanted[:, column]
        if bad.any():
            cells[bad] = content[column][bad]
        content[column] = cells
    for task, member, slot in targets:
        column = task.column
        if column not in content:
            continue
        cells = content[column]
        for first, last in runs(there[:, column] & good):
            offset = (row + first) * array.cell_bytes
            addresses = addresses_of(cells[first:last])
            try:
                member.column_write(zone.zone, column, slot, offset, addresses, array.cell_bytes)
            except MemberError as error:
                raise _TargetFailed(task.member, error) from error
    return int((~good).sum())


def _sync(zone: ZoneMap, targets: list[tuple[Task, Member, int]]) -> int:
    for task, member, slot in targets:
        try:
            member.column_sync(zone.zone, task.column, slot)
        except MemberError as error:
            raise _TargetFailed(task.member, error) from error
    return 0
