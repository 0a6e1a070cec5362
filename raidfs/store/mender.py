"""The mender: columns that are lost, stale, or on members that leave are made anew, zone by zone.

What is to be done follows from the zones and the labels alone: after a crash, a remount or another
loss the work goes on with what there is. A column is

    lost     its member failed, or is none any more: it is rebuilt onto another member
    stale    its member is back, and missed rows (schema.sql, `missed`): these are rebuilt in place
    leaving  its member is to go: it is copied, or rebuilt where it can't be read
    wished   it shall lie on another member (`wish`): the same; this one is forgotten at the end

 1. A column's new place counts from the commit that says so on; until then nothing refers to it,
    and what a crash leaves of it is swept (Space.sweep). Its old place is given back when that is
    durable and nobody reads there any more.
 2. Rows written meanwhile are those that the column then lacks (`missed`), and come next: writers
    never wait, and when a zone is full, or gets no rows for the time of one pass, it is whole. But
    no column moves that has rows where it lies which it would lack then: zones of which one leaves
    are the last that new rows go to.
 3. Zones that nothing refers to aren't mended: they fall free. Those of which most is dead are
    emptied by the cleaner instead, where it can, which is less work than mending them and gives
    room back; so all rows of a column that was mended hold what their checksums say, dead or not,
    and nobody who reads them (check, scrub) has to know which of them live.
 4. Those with least redundancy come first.
 5. Where it goes: to who replaces the member; else to any member with room, of another failure
    domain than the zone's others if that can be, and if the volume's setting allows (settings.py).
 6. A row beyond redundancy is told, and left as it is: the rest of the zone is mended.
 7. Who is offline is expected back: nothing of its columns is made anew elsewhere.
 8. A column counts as mended only if its member was never lost between the beginning and the
    commit; and no column is given up for one that isn't there.
 9. While there is work, labels say `uneven`: columns may lack rows on members that are not lost.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from ..errors import LossUnrecorded, OutOfSpace, RaidfsError
from .mending import Mending, Task, Work
from .mending import Why as Why
from .pace import Pace
from .settings import RebuildSettings, load_settings
from .spares import Spares
from .works import Works

if TYPE_CHECKING:
    from ..raid.array import ZoneMap
    from ..raid.label import MemberEntry
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.mender")

Found = tuple["Zone", dict[int, Why]]
Following = Callable[[], tuple["Zone", list[Task]] | None]
LOOK_S = 5.0  # between looks, if nobody asks
HELD_UP_S = 0.05
PASSED_OVER_S = 30.0  # a zone that can't be mended now
EMPTY_S = 60.0  # for which the cleaner is left alone with one that it couldn't empty
ZONES_PER_TURN = 256


@dataclass(frozen=True, slots=True)
class MenderStatistics:
    """`total_bytes`: of columns that were to be made when the work began; `left_bytes` of them are;
    `done_bytes`: since the work began, also for what came on top. `stalled`: why nothing goes on,
    or empty. `waiting`: columns of members that are offline."""

    working: bool
    zone: int
    total_bytes: int
    left_bytes: int
    done_bytes: int
    rate_bytes_s: float
    seconds_left: float | None
    columns_mended: int
    rows_unrecoverable: int
    waiting: int
    stalled: str
    broken: str | None


class Mender:
    """Of one store. `run` is one of its tasks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings: RebuildSettings = load_settings(store.meta)
        self.pace = Pace(store)
        self.pace.limit_bytes_s = self.settings.limit_bytes_s
        self.paused = self.settings.paused
        self.mending = Mending(store, self.pace)
        self.works = Works(store)
        self.mending.on_begun = lambda work: self._begun(
            work.map, [task.column for task in work.tasks if task.why != "wished"]
        )
        self.spares = Spares(store)
        self.broken: str | None = None
        self.wishes: dict[tuple[int, int], int] = {}  # zone and column -> member
        self._wanted = trio.Event()
        self._again = True  # what there is to do may be something else by now
        self._passed: dict[int, float] = {}  # zones left alone, until then
        self._emptied: dict[int, float] = {}  # those that the cleaner couldn't empty, until then
        self._working = False
        self._mended = 0
        self._stalled = ""

    # -- for others -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Members or labels changed."""
        self._passed.clear()
        self._stalled, self._again = "", True
        self._wanted.set()

    async def set(
        self,
        *,
        rebuild: Literal["auto", "spare", "manual"] | None = None,
        paused: bool | None = None,
        limit_bytes_s: int | None = None,
    ) -> None:
        """How it works from now on; durable on return."""
        given = {"rebuild": rebuild, "paused": paused, "limit_bytes_s": limit_bytes_s}
        values = {name: value for name, value in given.items() if value is not None}
        self.settings = self.settings.changed(**values)
        self.paused, self.pace.limit_bytes_s = self.settings.paused, self.settings.limit_bytes_s
        if self.paused:
            self.mending.stop()
        self.wake()
        settings = self.settings
        await self.store.cut_with(lambda _: settings.save(self.store.meta))

    def wish(self, zone: int, column: int, member: int) -> None:
        """The column shall lie on that member. It is tried once; `wishes` has it until then."""
        self.wishes[zone, column] = member
        self._wanted.set()

    @property
    def working(self) -> bool:
        """There is something to do, and it goes on."""
        return self._working

    def uses(self, member: int) -> bool:
        """Something is being made there, or somebody may still read an old column there."""
        return self.mending.uses(member)

    async def stand_aside(self, member: int) -> None:
        """Give up what is being made there. Whoever calls sees to it that nothing else is begun."""
        while self.mending.uses(member):
            if self.mending.makes(member):
                self.mending.stop()
            if self.mending.work is None:
                await self.mending.leave_ahead()
            await trio.sleep(HELD_UP_S)
            await self.mending.give_back()

    def statistics(self) -> MenderStatistics:
        rate, left = self.pace.rate_bytes_s, self.works.left_bytes
        return MenderStatistics(
            self._working,
            self.mending.work.map.zone if self.mending.work is not None else 0,
            self.works.total_bytes,
            left,
            self.mending.done_bytes,
            rate,
            left / rate if self._working and rate > 0 else None,
            self._mended,
            sum(self.mending.beyond.values()),
            self._waiting(),
            self._stalled if self.works.left_bytes or self._stalled else "",
            self.broken,
        )

    def lacking(self) -> list[Found]:
        """What there is to do: zones with the columns and why, in order (promise 4)."""
        if self._quiet():
            return []
        entries = self._entries()
        zones = self.store.space.zones.values()
        return _ordered([(zone, why) for zone in zones if (why := self._why(zone, entries))])

    # -- what is to be done -----------------------------------------------------------------------

    def _entries(self) -> dict[int, MemberEntry]:
        return {entry.id: entry for entry in self.store.assembly.label.members}

    def _quiet(self) -> bool:
        """Nothing can be lacking, as far as members tell. Zones name members that are none any more
        only if their lines went without their columns, which `_remove` refuses."""
        states, entries = self.store.array.states, self.store.assembly.label.members
        return (
            not self.store.array.stale
            and not self.wishes
            and all(state.state == "online" for state in states.values())
            and all(entry.role in ("data", "spare") for entry in entries)
        )

    def _why(self, zone: Zone, entries: dict[int, MemberEntry]) -> dict[int, Why]:
        found = dict[int, Why]()
        if not (zone.needed or zone.room_cells):
            return found  # promise 3
        array = self.store.array
        for column, (member, _) in enumerate(zone.map.columns):
            entry = entries.get(member)
            if entry is not None and entry.state == "offline":
                continue  # promise 7
            if array.present(zone.map, column) is None:
                found[column] = "lost"
            elif entry is not None and entry.role in ("leaving", "evacuating"):
                found[column] = "leaving"
            elif column in zone.missed:
                found[column] = "stale"
            elif self.wishes and (zone.map.zone, column) in self.wishes:
                found[column] = "wished"
        return found

    async def _survey(self) -> list[Found]:
        """`lacking`, but others get the event loop."""
        self._again = False
        if self._quiet():
            return []
        entries, found = self._entries(), list[Found]()
        for at, zone in enumerate(list(self.store.space.zones.values())):
            if why := self._why(zone, entries):
                found.append((zone, why))
            if at % ZONES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return _ordered(found)

    def _waiting(self) -> int:
        """Columns on members that are offline."""
        offline = {entry.id for entry in self._entries().values() if entry.state == "offline"}
        if not offline:
            return 0
        zones = self.store.space.zones.values()
        return sum(member in offline for zone in zones for member, _ in zone.map.columns)

    def _heirs(self, member: int) -> list[int]:
        """Who gets its columns, and if that one is lost, who gets those of that one."""
        found, todo = list[int](), [member]
        while todo:
            old = todo.pop()
            for entry in self._entries().values():
                if entry.replaces == old and entry.id not in found:
                    found.append(entry.id)
                    todo.append(entry.id)
        return found

    def _plan(self, zone: Zone, why: dict[int, Why]) -> list[Task]:
        """Where each column goes; those for which there is no place are left out (promise 5)."""
        allocation, tasks = self.store.space.allocation, list[Task]()
        have = {member for member, _ in zone.map.columns}
        for column, reason in why.items():
            member = zone.map.columns[column][0]
            if reason == "stale":
                tasks.append(Task(column, reason, member, zone.missed[column]))
                continue
            key, heirs = (zone.map.zone, column), self._heirs(member)
            wish = self.wishes[key] if reason == "wished" else None
            wished = heirs if wish is None else [wish]
            places = allocation.for_column(have, have - {member}, wished)
            if reason == "lost" and not self.settings.spreads:
                places = [place for place in places if place in heirs]
            if wish is not None and places[:1] != [wish]:
                del self.wishes[key]
            elif places:
                tasks.append(Task(column, reason, places[0]))
                have.add(places[0])
        return tasks

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._wanted = trio.Event()
                try:
                    await self._look()
                except LossUnrecorded:
                    await self.store.losses.settle()
                except RaidfsError as error:  # the store failed, or the metadata is full
                    self._stalled = str(error)
                    log.warning("mending was given up for now: %s", error)
                except Exception:
                    log.exception("the mender met an error of raidfs itself")
                    self.broken = "an error inside raidfs; its log tells more"
                finally:
                    self._working = False
                    self.mending.end()
                with trio.move_on_after(LOOK_S):
                    await self._wanted.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self.mending.give_back()

    def _may(self) -> bool:
        store = self.store
        return not (self.broken or self.paused or store.failed or store.read_only)

    async def _look(self) -> None:
        """All that there is to do now."""
        while self._may():
            await self.mending.give_back()
            found = await self._survey()
            self.works.look(found, self._cells_left)
            if await self.spares.take(found, self.settings):
                continue
            if not found:
                self._stalled, self._working = "", False
                await self.store.membership.tidy()
                if not self.mending.old and not self._again:
                    return
                await trio.sleep(HELD_UP_S)  # somebody reads where a column was
                continue
            if not self._working:
                self._working = True
                self.mending.begin()
            outcome = await self._pass(found)
            if outcome == "stalled":
                self._working = False
                self.works.stalled(self._stalled)
                await self.store.membership.tidy()
                return
            if outcome == "held up":
                await trio.sleep(HELD_UP_S)

    def _cells_left(self, zone: Zone, column: int, why: Why) -> int:
        first = min(zone.missed.get(column, 0), zone.fill) if why == "stale" else 0
        return zone.fill - first

    async def _pass(self, found: list[Found]) -> Literal["mended", "held up", "stalled"]:
        """Each zone once, as long as nothing else is to be done first."""
        try:
            return await self._each(found)
        finally:
            await self.mending.leave_ahead()

    async def _each(self, found: list[Found]) -> Literal["mended", "held up", "stalled"]:
        mended = held_up = False
        self._stalled, stalled = "", ""
        for at, (zone, _) in enumerate(found):
            if self._again or not self._may():
                return "mended"
            number, now = zone.map.zone, trio.current_time()
            if self.store.space.zones.get(number) is not zone or self._passed.get(number, 0) > now:
                continue
            why = self._why(zone, self._entries())
            if why and not self.store.space.readable(zone):
                stalled = stalled or "some zones have lost more than their code survives"
                continue
            if not why:
                continue
            tasks = self.mending.tasks_ahead(zone, why) or self._plan(zone, why)
            following = functools.partial(self._following, found, at + 1)
            if not tasks:
                stalled = stalled or self.settings.why_no_place
            elif zone.placed:  # rows of it are being written, which nobody knows yet
                held_up = True
            elif await self._one(zone, why, tasks, following):
                mended = True
        if mended:
            return "mended"
        self._stalled = "" if held_up else stalled
        return "held up" if held_up else "stalled"

    def _following(self, found: list[Found], at: int) -> tuple[Zone, list[Task]] | None:
        """What is next by all that is known now, if it is a column to be made elsewhere."""
        if self._again or at >= len(found):
            return None
        zone, entries = found[at][0], self._entries()
        number, now = zone.map.zone, trio.current_time()
        if self.store.space.zones.get(number) is not zone or self._passed.get(number, 0) > now:
            return None
        why = self._why(zone, entries)
        if not why or {*why.values()} - {"lost", "leaving"} or self._to_be_emptied(zone, why):
            return None
        if zone.placed or not self.store.space.readable(zone):
            return None
        tasks = self._plan(zone, why)
        return (zone, tasks) if len(tasks) == len(why) else None

    async def _one(
        self, zone: Zone, why: dict[int, Why], tasks: list[Task], following: Following
    ) -> bool:
        """False: not now."""
        number = zone.map.zone
        if await self._emptied_instead(zone, why):
            self._begun(zone.map, why)
            return True
        if await self.store.membership.be_uneven():  # promise 9
            return True  # that took a while: to be looked at again
        losses = len(self.store.array.losses)
        work = Work(zone, zone.map, zone.fill, tasks, losses, following=following)
        try:
            await self.mending.mend(work)
        finally:
            for task in tasks:
                self.wishes.pop((number, task.column), None)
        self._mended += len(work.made)
        for task in work.made:
            owner, cells = work.map.columns[task.column][0], work.fill - task.first
            self.works.made(number, task.column, owner, task.why, cells)
        interrupted = work.scope.cancel_called or losses != len(self.store.array.losses)
        if not work.made and not interrupted:  # else there is another look soon
            wait = PASSED_OVER_S if zone.fill == work.fill else LOOK_S
            self._passed[number] = trio.current_time() + wait
        return bool(work.made)

    def _begun(self, zone: ZoneMap, columns: Iterable[int]) -> None:
        """These are being made anew, or emptied with their zone."""
        owners = [(column, zone.columns[column][0]) for column in columns]
        self.works.begins(zone.zone, owners)

    async def _empty(self, zone: Zone) -> bool:
        """What lives there takes less than a zone."""
        space = self.store.space
        space.reserve.owed = int(not space.reserve.room_cells)
        try:
            await space.grow(space.reserve.wanted)
            return await self.store.cleaner.empty(zone, self.pace.turn, lambda: self._again)
        except OutOfSpace:
            return False
        finally:
            space.reserve.owed = 0

    def _to_be_emptied(self, zone: Zone, why: dict[int, Why]) -> bool:
        reserve, number, now = self.store.space.reserve, zone.map.zone, trio.current_time()
        if zone.room_cells or self._emptied.get(number, 0) > now or "wished" in why.values():
            return False
        cells = zone.map.rows * zone.map.code.k
        return 2 * reserve.bound(zone) <= cells and bool(reserve.gain(zone))

    async def _emptied_instead(self, zone: Zone, why: dict[int, Why]) -> bool:
        """Promise 3. A zone less than half of which lives costs less to empty: each row mended is
        k cells read and one written, each cell moved is one read and (k + m) / k written."""
        space, number, now = self.store.space, zone.map.zone, trio.current_time()
        if not self._to_be_emptied(zone, why):
            return False
        if space.reserve.owed or await self._empty(zone):
            return not space.reserve.owed
        if not self._again:
            self._emptied[number] = now + EMPTY_S
        return False


def _ordered(found: list[Found]) -> list[Found]:
    """By what may still be lost of each; wishes come last."""

    def left(pair: Found) -> tuple[int, int]:
        gone = sum(why in ("lost", "stale") for why in pair[1].values())
        return pair[0].map.code.tolerance - gone, pair[0].map.zone

    return sorted(found, key=left)
