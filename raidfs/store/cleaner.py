"""The cleaner: turns zones that are partly dead into free ones, as in a log-structured file system.

A zone can be erased only as a whole. So what still lives in a zone of many dead cells is moved
elsewhere (moving.py), and the zone falls free. Which zone comes first is decided by cost and
benefit: (1 - u) * age / (1 + u), u being the part of it that lives (Rosenblum and Ousterhout, "The
Design and Implementation of a Log-Structured File System", ACM TOCS 10(1), 1992, section 3.6): a
zone that has not changed for long is worth cleaning at higher u than one whose cells die anyway.

 1. It works when room is low, with pauses that grow with what users do meanwhile; or when a writer
    would otherwise be told ENOSPC, without pauses, until that writer has room or there is nothing
    to gain. Else it idles.
 2. It needs no room beside its reserve (reserve.py): what is moved goes to the outlet, and the zone
    emptied last gives the next spare, before any writer gets it.
 3. Content does not change, nor any file's or snapshot's view of it, wherever a crash comes.
 4. A zone that can't be read, or whose leaves the metadata has no room to change, is left alone for
    a while; the volume goes on.
 5. Others may have zones emptied (reshape.py), one at a time, and stop as soon as a writer waits:
    what was moved until then stays moved.
 6. How many cells of a zone live is known from its references alone, unless snapshots or sharing
    give cells several of them. Then zones are surveyed when room is low, each once until enough of
    its references are gone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from ..errors import RaidfsError, Unrecoverable
from .moving import Mover
from .owners import Owned
from .survey import Survey, survey

if TYPE_CHECKING:
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.cleaner")

LOOK_S = 1.0  # between looks at the room, if nobody asks
LOW_PART = 16  # of all zones: so many that nobody has are enough
LOW_ZONES_MIN = 2
BACKGROUND_PART = 8  # with nobody waiting, a zone must gain this part of itself
MOVE_BYTES = 4 << 20  # read and written at once
ROUNDS_MAX = 3  # surveys of one zone, in case that its cells come to be shared meanwhile
PASSED_OVER_S = 60.0  # promise 4
LIMBO_S = 0.02
Turn = Callable[[int], Awaitable[None]]  # after each piece, with how many bytes were moved by it
TURN_S = 0.002  # of work without a pause
PAUSE_BUSY, PAUSE_IDLE = 4.0, 0.25  # times what the work before it took
PAUSE_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class CleanerStatistics:
    """Since the mount. `zone`: the one that is being cleaned, with `left_cells` to move; 0: none.
    `gain_cells`: what cleaning could gain now."""

    zone: int
    left_cells: int
    zones_emptied: int
    zones_surveyed: int
    cells_moved: int
    versions_rewritten: int
    gain_cells: int
    waiting: bool
    broken: str | None


class Cleaner:
    """Of one store. `run` is one of its tasks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.space = store.space
        self.reserve = store.space.reserve
        self.broken: str | None = None  # an error of raidfs itself: no more cleaning
        self._mover = Mover(store)
        self._wanted = trio.Event()
        self._answer: trio.Event | None = None  # a writer waits for it, and for `_gained`
        self._gained = False
        self._turned = 0.0  # when work began after the last pause
        self._passed: dict[int, float] = {}  # zones left alone, until then
        self._zone = 0
        self._left_cells = 0
        self._emptied = 0
        self._surveyed = 0
        self._busy = trio.Lock()  # held by whoever moves cells

    # -- for others -------------------------------------------------------------------------------

    async def gain(self) -> bool:
        """A writer would be told ENOSPC. True: now there is more room than before. False: there is
        nothing to gain."""
        if self._answer is None:
            self._answer = trio.Event()
        self._wanted.set()
        answer = self._answer
        await answer.wait()
        return self._gained

    @property
    def waiting(self) -> bool:
        """A writer waits for room."""
        return self._answer is not None

    async def asked(self) -> None:
        """Returns when a writer waits, or soon."""
        await self._wanted.wait()

    async def empty(self, zone: Zone, turn: Turn, stop: Callable[[], bool] | None = None) -> bool:
        """All that lives in the zone goes elsewhere, and the zone is erased. `turn`: see there;
        `stop`: asked after each. False: not now (promises 4 and 5), or it shall stop. The zone
        takes nothing more: it is full, or closed."""
        assert not zone.room_cells
        async with self._busy:
            if not await self._mover.finish():
                return False
            return await self._clean(zone, turn, stop)

    def statistics(self) -> CleanerStatistics:
        return CleanerStatistics(
            self._zone,
            self._left_cells,
            self._emptied,
            self._surveyed,
            self._mover.moved_cells,
            self._mover.rewritten_versions,
            self.reserve.gains(),
            self._answer is not None,
            self.broken,
        )

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._wanted.wait()
            self._turned = trio.current_time()
            try:
                await self._work()
            except RaidfsError as error:  # the store failed, or the metadata is full
                log.warning("cleaning was given up for now: %s", error)
            except Exception:
                log.exception("the cleaner met an error of raidfs itself")
                self.broken = "an error inside raidfs; its log tells more"
            finally:
                self._zone = self._left_cells = 0
                self._tell(gained=False)

    def _tell(self, *, gained: bool) -> None:
        if self._answer is not None:
            self._gained = gained
            self._answer.set()
            self._answer = None
        self._wanted = trio.Event()

    async def _work(self) -> None:
        while self.broken is None and self.store.failed is None and not self.store.read_only:
            async with self._busy:
                if not await self._mover.finish():  # left half told: the metadata was full
                    return
                if self._answer is not None:
                    self._tell(gained=await self._gain_once())
                elif self._low() and await self._clean_in_background():
                    continue
                elif self._answer is None:  # nobody has asked meanwhile
                    return

    # -- when somebody waits ----------------------------------------------------------------------

    async def _gain_once(self) -> bool:
        """More room for writers than there was. False: it can't be had."""
        while not self._growable():
            zone = self._best(part=1)
            if zone is None and await self._survey_one() is not None:
                continue
            if zone is None:
                return self.reserve.hand_over(without_spare=not self._passed)
            if not await self._clean(zone):
                if self._mover.unfinished is not None:  # that comes first, and can't go on now
                    return False
                self._pass_over(zone)
        return True

    def _growable(self) -> bool:
        """A writer could have a zone now."""
        spare = self.reserve.spare is not None
        return self.space.zones_possible() > (0 if spare else 1)

    # -- when nobody waits ------------------------------------------------------------------------

    def _low(self) -> bool:
        """Room that costs no cleaning is low."""
        space = self.space
        per_zone = space.rows_per_zone * space.code.k
        free = space.zones_possible() * per_zone + max(0, space.grantable())
        zones = len(space.zones) + free // per_zone
        return free < max(LOW_ZONES_MIN, zones // LOW_PART) * per_zone

    async def _clean_in_background(self) -> bool:
        """One step. False: there is nothing to do."""
        zone = self._best(part=BACKGROUND_PART)
        if zone is None:
            return await self._survey_one() is not None
        if not await self._clean(zone):
            self._pass_over(zone)
        return True

    async def _turn(self, _: int = 0) -> None:
        """A piece is done: others have the event loop, and the members, for longer than it took,
        unless somebody waits for room (promise 1)."""
        await trio.lowlevel.checkpoint()
        worked = trio.current_time() - self._turned
        if self._answer is None and worked > TURN_S:
            busy = self.store.pages.open_files > 0
            pause = worked * (PAUSE_BUSY if busy else PAUSE_IDLE)
            with trio.move_on_after(min(pause, PAUSE_S_MAX)):
                await self._wanted.wait()
        if worked > TURN_S:
            self._turned = trio.current_time()

    # -- which zone -------------------------------------------------------------------------------

    def _candidates(self) -> list[Zone]:
        now = trio.current_time()
        self._passed = {zone: until for zone, until in self._passed.items() if until > now}
        return [
            zone
            for number, zone in self.space.zones.items()
            if number not in self._passed
            and zone.live
            and not (zone.kept or zone.room_cells or zone.holds or zone.placed)
            and self.space.readable(zone)
        ]

    def _best(self, part: int) -> Zone | None:
        """The zone with most benefit for its cost, of those that what is moved has room for. With
        `part` above 1, only one that gains that part of itself."""
        best, most = None, 0.0
        room_cells = self.reserve.room_cells
        for zone in self._candidates():
            gained = self.reserve.gain(zone)
            cells = zone.map.rows * zone.map.code.k
            bound = self.reserve.bound(zone)
            if not gained or (part > 1 and gained * part < cells) or bound > room_cells:
                continue
            used = bound / cells
            age = self.space.meta.next_zone - zone.youngest
            value = (1 - used) * age / (1 + used)
            if value > most:
                best, most = zone, value
        return best

    def _pass_over(self, zone: Zone) -> None:
        self._passed[zone.map.zone] = trio.current_time() + PASSED_OVER_S

    async def _survey_one(self) -> Zone | None:
        """Count what lives in the zone of which least is known (promise 6). None: all is known."""
        meta = self.store.meta
        doubtful = [
            zone
            for zone in self._candidates()
            if (meta.retained or self.store.sweeper.busy or zone.map.zone in meta.shared_zones)
            and self._doubt(zone) >= self.reserve.gain_least(zone)
        ]
        if not doubtful:
            return None
        zone = max(doubtful, key=lambda zone: (self._doubt(zone), -zone.youngest))
        await self._look(zone)
        return zone

    @staticmethod
    def _doubt(zone: Zone) -> int:
        """So many more cells may be dead than is known."""
        if zone.counted is None:
            return min(zone.live, zone.map.rows * zone.map.code.k) - 1
        return min(zone.counted, zone.counted_live - zone.live)

    async def _look(self, zone: Zone, turn: Turn | None = None) -> Survey:
        live = zone.live
        pause = functools.partial(turn or self._turn, 0)
        found = await survey(self.store.meta, zone, self.store.offload, pause)
        zone.counted, zone.counted_live = len(found.live.cells), live
        self._surveyed += 1
        return found

    # -- cleaning ---------------------------------------------------------------------------------

    async def _clean(
        self, zone: Zone, turn: Turn | None = None, stop: Callable[[], bool] | None = None
    ) -> bool:
        """Empty the zone; False if that can't be done now."""
        number = zone.map.zone
        self._zone = number
        try:
            for _ in range(ROUNDS_MAX):
                found = await self._look(zone, turn)
                if not await self._move_all(zone, found, turn or self._turn, stop):
                    return False
                if number in self.space.zones and not zone.needed:
                    await self.store.cut_with(lambda _: None)  # with that it goes
                if number not in self.space.zones:
                    await self._settle()
                    self._emptied += 1
                    return True
            return False
        except Unrecoverable as error:
            log.warning("zone %d can't be cleaned: %s", number, error)
            return False
        finally:
            self._zone = self._left_cells = 0

    async def _move_all(
        self, zone: Zone, found: Survey, turn: Turn, stop: Callable[[], bool] | None
    ) -> bool:
        """All that lives there, as far as is known."""
        first, end = 0, len(found.live.cells)
        while first < end:
            self._left_cells = end - first
            self.store.writable()
            if stop is not None and stop():
                return False
            if not self.reserve.room_cells:  # the spare went with a member that was lost
                await self.space.grow(self.reserve.wanted)
            outlet = self.reserve.take_outlet()
            if outlet is None or self.space.zones.get(zone.map.zone) is not zone:
                break
            k = outlet.map.code.k
            rows = max(1, MOVE_BYTES // self.store.cell_bytes // k)  # whole ones, but for the last
            last = min(end, first + min(rows * k, outlet.room_cells))
            part = slice(first, last)
            live = found.live
            cells = Owned(live.cells[part], live.inos[part], live.indexes[part])
            if not await self._mover.move(zone, cells, found.leaves_of(first, last), outlet):
                break
            await turn((last - first) * self.store.cell_bytes)
            first = last
        return first == end or zone.map.zone not in self.space.zones

    async def _settle(self) -> None:
        """The zone just emptied is erased, and its place is the spare's if there is none."""
        space, store = self.space, self.store
        await space.erase(space.erasable(store.durable))
        while self.reserve.wanted():
            if await space.grow(self.reserve.wanted) or not space.limbo:
                break
            await trio.sleep(LIMBO_S)  # it is being read
            await space.erase(space.erasable(store.durable))
