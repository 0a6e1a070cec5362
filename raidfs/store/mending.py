"""One zone after the other that is mended: places for its columns, their rows, the commit.

Promises 1, 2 and 8 of mender.py are kept here; who decides what is to be made, and where, is there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import trio

from ..errors import MemberError, MemberFull, RaidfsError
from ..raid.array import ZoneMap
from ..raid.regenerate import Room
from .pace import Pace
from .pieces import TargetFailed, make_piece, sync_targets, write_piece

if TYPE_CHECKING:
    from ..raid.member import Member
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.mender")

Why = Literal["lost", "stale", "leaving", "wished"]
PIECE_BYTES = 2 << 20  # of each column, read and written at once
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
        self._rooms: tuple[Room, Room] | None = None

    def begin(self) -> None:
        self.done_bytes = 0
        self.pace.begin()

    def end(self) -> None:
        """For a while there is nothing to be made."""
        self._rooms = None

    def stop(self) -> None:
        """What is under way is given up soon."""
        if self.work is not None:
            self.work.scope.cancel()

    def makes(self, member: int) -> bool:
        """Something is being made there."""
        return self.work is not None and any(t.member == member for t in self.work.tasks)

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
        """The columns' rows, in pieces: while one is written the next is made. Then their syncs.
        MemberError: of a target, which is lost by it. False: the zone is gone."""
        store, number = self.store, work.map.zone
        targets = [(task, self._target(task), work.slots[task.column]) for task in work.tasks]
        most = max(1, PIECE_BYTES // store.cell_bytes)
        rooms = self._rooms or (Room(most, store.cell_bytes), Room(most, store.cell_bytes))
        self._rooms, beyond, write = rooms, 0, None
        first = max(work.start, min(task.first for task in work.tasks))
        for at, row in enumerate(range(first, work.fill, most)):
            if store.space.zones.get(number) is not work.zone:
                return False
            count = min(most, work.fill - row)
            crcs = store.meta.crcs(number, row, count)
            there = store.reader.present(work.zone, row, count)
            make = functools.partial(
                store.offload, make_piece, store.array, work.map, work.tasks, row, crcs, there,
                rooms[at % 2],
            )  # fmt: skip
            piece, _ = await self._both(make, write)
            beyond += piece.beyond
            write = functools.partial(self._write, work, targets, piece)
            nbytes = sum(max(0, row + count - max(row, t.first)) for t in work.tasks)
            self.done_bytes += nbytes * store.cell_bytes
            await self.pace.turn(nbytes * store.cell_bytes)
        if write is not None:
            await write()
        await self._guarded(sync_targets, work.map, targets)
        if beyond and self.beyond.get(number) != beyond:
            self.beyond[number] = beyond
            log.error("zone %d: %d rows are beyond redundancy", number, beyond)
        return True

    async def _both(
        self, make: Callable[[], Awaitable[Any]], write: Callable[[], Awaitable[Any]] | None
    ) -> tuple[Any, None]:
        """At the same time; what either raised."""
        if write is None:
            return await make(), None
        errors, made = list[Exception](), list[Any]()

        async def attempt(action: Callable[[], Awaitable[Any]]) -> None:
            try:
                made.append((action, await action()))
            except RaidfsError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, write)
            nursery.start_soon(attempt, make)
        if errors:
            raise errors[0]
        return next(result for action, result in made if action is make), None

    async def _write(self, work: Work, targets: Sequence[Any], piece: Any) -> None:
        await self._guarded(write_piece, work.map, targets, piece)

    async def _guarded(self, action: Callable[..., None], *arguments: object) -> None:
        """In a thread. A target that fails is lost. MemberError."""
        try:
            await self.store.offload(action, *arguments)
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
