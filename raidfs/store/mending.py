"""One zone after the other that is mended: places for its columns, their rows, the commit.

Promises 1, 2 and 8 of mender.py are kept here; who decides what is to be made, and where, is there.

While the rows of a zone are made the next one's columns get their room (`_Ahead`), which can take
as long. Nothing refers to that until it is that zone's turn; if it never comes, or another way than
was thought, the room is given back.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import trio

from ..errors import MemberError, MemberFull, RaidfsError
from ..raid.array import ZoneMap
from ..raid.regenerate import Room
from .pace import Pace
from .pieces import TargetFailed, Targets, make_rows, sync_targets

if TYPE_CHECKING:
    from ..raid.member import Member
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.mender")

Result = TypeVar("Result")
Why = Literal["lost", "stale", "leaving", "wished"]
PIECE_BYTES = 2 << 20  # of each column, read and written at once
STEP_PIECES = 4  # where nothing waits, and no user: as many without a pause
STEPS_AHEAD = 2  # of these at once
ALONE_S = 0.05
ROUNDS_MAX = 8  # for rows that come while a column is being copied
HELD_UP_S = 0.05
PAGES_TO_RECORD = 64  # of the metadata, that moving the columns of a zone may dirty


@dataclass(frozen=True, slots=True)
class Task:
    """A column to be made anew on `member`; in place, if that is where it lies. `first`: the first
    row of it that is lacking."""

    column: int
    why: Why
    member: int
    first: int = 0


@dataclass(slots=True, eq=False)
class Work:
    """A zone that is being mended. `slots`: where each task's column is to lie. `made`: the tasks
    that are in the metadata, which is durable with `epoch`."""

    zone: Zone
    map: ZoneMap  # as it was when the work began
    fill: int
    tasks: list[Task]
    losses: int  # of the array, when the work began
    slots: dict[int, int] = field(default_factory=dict)
    made: list[Task] = field(default_factory=list)
    start: int = 0  # rows below were made in an earlier round
    epoch: int = 0
    ended: bool = False  # whatever comes now, comes too late
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    following: Callable[[], tuple[Zone, list[Task]] | None] = lambda: None


@dataclass(slots=True, eq=False)
class _Ahead:
    """Room for the columns of the zone that comes next. `whole`: all of it is there."""

    zone: Zone
    map: ZoneMap
    tasks: list[Task]
    slots: dict[int, int] = field(default_factory=dict)
    whole: bool = False


@dataclass(slots=True, eq=False)
class _Going:
    """Once through the rows of a zone; those below `row` were taken."""

    row: int
    beyond: int = 0
    gone: bool = False  # the zone is
    errors: list[RaidfsError] = field(default_factory=list)
    through: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True, eq=False)
class _Old:
    """A place where a column was until `epoch`, and where somebody may still read."""

    zone: Zone
    column: int
    member: int
    slot: int
    epoch: int


class Mending:
    """Of one store: a zone at a time."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self.store = store
        self.pace = pace
        self.work: Work | None = None  # under way
        self.done_bytes = 0
        self.beyond: dict[int, int] = {}  # zones: rows beyond redundancy, as last told
        self.old: list[_Old] = []
        self.on_begun: Callable[[Work], None] = lambda work: None  # it has places
        self.ahead: _Ahead | None = None
        self._rooms: list[Room] = []
        self._pacing = trio.Lock()

    def begin(self) -> None:
        self.done_bytes = 0
        self.pace.begin()

    def end(self) -> None:
        """For a while there is nothing to be made."""
        self._rooms = []

    def stop(self) -> None:
        """What is under way is given up soon."""
        if self.work is not None:
            self.work.scope.cancel()

    def makes(self, member: int) -> bool:
        """Something is being made there, or about to be."""
        works = [it for it in (self.work, self.ahead) if it is not None]
        return any(task.member == member for it in works for task in it.tasks)

    def uses(self, member: int) -> bool:
        """Or somebody may still read an old column there."""
        return self.makes(member) or any(old.member == member for old in self.old)

    async def mend(self, work: Work) -> None:
        """`work.made` says what came of it. RaidfsError: of the volume."""
        zone, store = work.zone, self.store
        zone.pins += 1
        self.work = work
        try:
            with work.scope:
                if await self._make_places(work):
                    self.on_begun(work)
                    for _ in range(ROUNDS_MAX):
                        if not await self._fill(work):
                            break
                        await store.cut_with(functools.partial(self._record, work))
                        if not await self._more(work):
                            break
        except MemberError as error:
            log.warning("zone %d can't be mended now: %s", work.map.zone, error)
        finally:
            work.ended = True
            zone.pins -= 1
            self.work = None
            with trio.CancelScope(shield=True):
                await self._clear(work)

    async def _make_places(self, work: Work) -> bool:
        """Slots and columns. False: there is no room."""
        if self._is_ahead(work.zone, work.tasks) and self.ahead is not None:
            work.slots, self.ahead = self.ahead.slots, None
            return True
        await self.leave_ahead()
        allocation, store = self.store.space.allocation, self.store
        nbytes = work.map.rows * store.cell_bytes
        for task in work.tasks:
            target = self._target(task)
            if task.why == "stale":
                slot = work.map.columns[task.column][1]
                if task.first and not await self._is_there(work, task, target, slot):
                    return False
            elif not allocation.slots[task.member].free:
                return False
            else:
                slot = allocation.slots[task.member].take()
            work.slots[task.column] = slot
            if task.first:
                continue
            try:
                await store.offload(target.column_create, work.map.zone, task.column, slot, nbytes)
            except MemberFull:
                allocation.is_full(task.member)
                return False
            except MemberError as error:
                await self._lost(task.member, error)
                return False
        return True

    async def _is_there(self, work: Work, task: Task, target: Member, slot: int) -> bool:
        """The column whose later rows are stale. Else nothing of it is believed any more."""
        store, number = self.store, work.map.zone
        if await store.offload(target.column_exists, number, task.column, slot):
            return True
        column = [(work.zone, task.column)]
        await store.cut_with(functools.partial(store.space.distrust, column))
        return False

    def _target(self, task: Task) -> Member:
        """MemberError: it is lost."""
        state = self.store.array.states.get(task.member)
        if state is None or state.member is None:
            raise MemberError(f"member {task.member} was lost meanwhile")
        return state.member

    async def _fill(self, work: Work) -> bool:
        """The columns' rows, several steps at once, and room for what comes next. Then their syncs.
        MemberError: of a target, which is lost by it. False: the zone is gone."""
        number = work.map.zone
        targets = [(task, self._target(task), work.slots[task.column]) for task in work.tasks]
        going = _Going(max(work.start, min(task.first for task in work.tasks)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lay_ahead, work)
            for at in range(STEPS_AHEAD):
                nursery.start_soon(self._steps, work, targets, going, at)
        if going.errors:
            raise going.errors[0]
        if going.gone:
            return False
        await self._guarded(sync_targets, work.map, targets)
        if going.beyond and self.beyond.get(number) != going.beyond:
            self.beyond[number] = going.beyond
            log.error("zone %d: %d rows are beyond redundancy", number, going.beyond)
        return True

    async def _steps(self, work: Work, targets: Targets, going: _Going, at: int) -> None:
        """Several of these share the rows; where pauses are wanted, the first does it all."""
        store, size = self.store, self.store.cell_bytes
        while going.row < work.fill and not going.errors and not going.gone:
            most, alone = self._step(work, len(targets))
            if alone and at:
                with trio.move_on_after(ALONE_S):
                    await going.through.wait()
                continue
            if store.space.zones.get(work.map.zone) is not work.zone:
                going.gone = True
                break
            row, count = going.row, min(max(1, most // size), work.fill - going.row)
            going.row += count
            crcs = store.meta.crcs(work.map.zone, row, count)
            there = store.reader.present(work.zone, row, count)
            try:
                going.beyond += await self._guarded(
                    make_rows, store.array, work.map, targets, row, crcs, there, self._room(at)
                )
            except RaidfsError as error:
                going.errors.append(error)
                break
            nbytes = size * sum(max(0, row + count - max(row, t.first)) for t in work.tasks)
            self.done_bytes += nbytes
            async with self._pacing:
                await self.pace.turn(nbytes)
        going.through.set()

    def _step(self, work: Work, columns: int) -> tuple[int, bool]:
        """Bytes of each column, and whether in one step at a time. Members that are to be waited
        for are asked for no more than a piece at once."""
        present = [self.store.array.present(work.map, c) for c in range(work.map.code.width)]
        quick = all(member is None or (member.lends and member.never_waits) for member in present)
        most = PIECE_BYTES * STEP_PIECES if quick else PIECE_BYTES
        return self.pace.step(most, PIECE_BYTES, columns)

    def _room(self, at: int) -> Room:
        size = self.store.cell_bytes
        while len(self._rooms) <= at:
            self._rooms.append(Room(max(1, PIECE_BYTES // size), size))
        return self._rooms[at]

    async def _guarded(self, action: Callable[..., Result], *arguments: object) -> Result:
        """In a thread. A target that fails is lost. MemberError."""
        try:
            result: Result = await self.store.offload(action, *arguments)
            return result
        except TargetFailed as failed:
            await self._lost(failed.member, failed.cause)
            raise failed.cause from None

    async def _lost(self, member: int, error: MemberError) -> None:
        self.store.notices.loss(member, str(error))
        with trio.CancelScope(shield=True):
            await self.store.losses.settle()

    def _record(self, work: Work, epoch: int) -> None:
        """In the transaction that makes an epoch durable: promises 1 and 8."""
        space, zone, store = self.store.space, work.zone, self.store
        gone = work.ended or space.zones.get(work.map.zone) is not zone
        if gone or zone.map is not work.map or store.meta.spare_pages() < PAGES_TO_RECORD:
            return
        lost = set(store.array.losses[work.losses :])
        for task in work.tasks:
            if task.member in lost or not space.online(task.member):
                continue
            if task.why == "stale" and zone.missed.get(task.column) != task.first:
                continue
            if task.why != "stale" and not self._gains(work, task.column):
                continue
            slot = work.slots[task.column]
            space.move_column(zone, task.column, task.member, slot, work.fill)
            work.made.append(task)
        work.epoch = epoch

    def _gains(self, work: Work, column: int) -> bool:
        """Nothing is lost by its moving: a column that can be read has no rows that the new place
        lacks, and gets none just now."""
        space, zone = self.store.space, work.zone
        if space.rows_had(zone, column) > work.fill:
            return False
        return not zone.unrecorded or space.array.online(zone.map, column) is None

    async def _more(self, work: Work) -> bool:
        """Rows came meanwhile that no column may do without: they are next."""
        zone = work.zone
        while (zone.placed or zone.unrecorded) and self.store.failed is None:
            await trio.sleep(HELD_UP_S)
        if work.made or zone.map is not work.map or zone.fill == work.fill:
            return False
        work.start, work.fill = work.fill, zone.fill
        return True

    async def _clear(self, work: Work) -> None:
        """The places that aren't used: new ones at once, if it came to nothing, old ones later."""
        for task in work.tasks:
            if task.why == "stale" or task.column not in work.slots:
                continue
            if task in work.made:
                old = work.map.columns[task.column]
                self.old.append(_Old(work.zone, task.column, *old, work.epoch))
            else:
                await self._remove(work.map.zone, task.column, task.member, work.slots[task.column])
        await self.give_back()

    # -- the next zone ----------------------------------------------------------------------------

    async def _lay_ahead(self, work: Work) -> None:
        """Room for what `work.following` says. What fails is tried again when it is needed."""
        store, slots = self.store, self.store.space.allocation.slots
        if self.ahead is not None or self.pace.busy or self.pace.limit_bytes_s:
            return
        if (following := work.following()) is None:
            return
        zone, tasks = following
        ahead = self.ahead = _Ahead(zone, zone.map, tasks)
        nbytes = zone.map.rows * store.cell_bytes
        for task in tasks:
            if task.why == "stale" or not slots[task.member].free:
                return
            slot = ahead.slots[task.column] = slots[task.member].take()
            try:
                create = self._target(task).column_create
                await store.offload(create, zone.map.zone, task.column, slot, nbytes)
            except MemberError:
                return
        ahead.whole = True

    def tasks_ahead(self, zone: Zone, why: dict[int, Why]) -> list[Task]:
        """What was thought of for this zone, if that is still what is to be done."""
        tasks = self.ahead.tasks if self.ahead is not None else []
        same = {task.column: task.why for task in tasks} == why
        return tasks if same and self._is_ahead(zone, tasks) else []

    def _is_ahead(self, zone: Zone, tasks: list[Task]) -> bool:
        """Room for this was made, and its members are still there."""
        ahead, online = self.ahead, self.store.space.online
        if ahead is None or not ahead.whole or ahead.zone is not zone or ahead.map is not zone.map:
            return False
        return tasks == ahead.tasks and all(online(task.member) for task in tasks)

    async def leave_ahead(self) -> None:
        """It is not wanted any more."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            with trio.CancelScope(shield=True):
                for task in ahead.tasks:
                    if (slot := ahead.slots.get(task.column)) is not None:
                        await self._remove(ahead.map.zone, task.column, task.member, slot)

    async def give_back(self) -> None:
        """Old places: promise 1. If the volume has failed nobody knows what is durable."""
        store = self.store
        if store.failed is not None:
            return
        ready = [o for o in self.old if o.epoch <= store.durable and not o.zone.pins]
        for old in ready:
            self.old.remove(old)
            await self._remove(old.zone.map.zone, old.column, old.member, old.slot)

    async def _remove(self, zone: int, column: int, member: int, slot: int) -> None:
        state = self.store.array.states.get(member)
        if state is not None and state.member is not None:
            try:
                await self.store.offload(state.member.column_remove, zone, column, slot)
            except MemberError as error:  # it is swept at the next mount
                log.info("an old column stays for now: %s", error)
        self.store.space.allocation.give([(member, slot)])
