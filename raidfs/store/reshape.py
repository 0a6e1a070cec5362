"""Change of shape: what is stored goes over to another level or width, and evenly over members.

What is to be done follows from the labels and the zones alone: after a crash, a remount or a loss
the work goes on with what there is. A zone is *unwanted* if it has another code than new zones get,
or was made narrower for lack of members and could be wider now. It is emptied as the cleaner does
it (moving.py), into new zones. When none is left, and a rebalance was asked for (one of the
volume's settings), columns are moved from the fullest members to the emptiest by the mender, until
that would make nothing better.

 1. Content does not change, nor any file's or snapshot's view of it, wherever a crash comes: cells
    are moved by the cleaner's means and columns by the mender's.
 2. What was promised to writers stands: an unwanted zone with room is closed only when other zones
    stand for it (`Space.close`), and who waits for room comes first.
 3. A zone is begun only if all that lives in it has a place, and there is room afterwards to empty
    another. So it needs little room, and never leaves the cleaner without its spare.
 4. What was lost comes first: while columns are being rebuilt it waits.
 5. As long as zones survive less than the labels' level, or more, these say `uneven`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import trio

from ..errors import RaidfsError, UsageError
from . import stalls
from .evening import Evening
from .pace import Pace
from .shape import Old, fill_of, fits

if TYPE_CHECKING:
    from ..raid.code import Code
    from .meta import Meta
    from .space import Zone
    from .store import Store

log = logging.getLogger("raidfs.reshape")

SETTING = "reshape"  # among the volume's settings
LOOK_S = 5.0  # between looks, if nobody asks
HELD_UP_S = 0.05  # by what is being written
ORDER_S = 30.0  # between looks at all zones
PASSED_OVER_S = 10.0  # a zone that couldn't be emptied
MOVES_AT_ONCE = 8  # of columns

Kind = Literal["convert", "rebalance"]
State = Literal["idle", "running", "waiting", "paused", "stalled", "done", "failed"]


class ReshapeSettings(msgspec.Struct, frozen=True):
    """What was commanded, kept in the volume. convert, rebalance: until that is done.
    limit_bytes_s: 0 for none."""

    convert: bool = False
    rebalance: bool = False
    paused: bool = False
    limit_bytes_s: int = 0


@dataclass(frozen=True, slots=True)
class ReshapeStatistics:
    """`kind`: what is under way, or was last; None (and "idle"): nothing since the mount. Bytes of
    files' content where cells are moved (`convert`), of columns where these are (`rebalance`);
    `done` since the work, or the mount, began. `reason`: why it isn't running."""

    kind: Kind | None
    state: State
    done_bytes: int
    left_bytes: int
    rate_bytes_s: float
    seconds_left: int | None
    reason: str
    zones_left: int
    columns_left: int


class Reshape:
    """Of one store. `run` is one of its tasks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = _load(store.meta)
        self.pace = Pace(store)
        self.evening = Evening(store)
        self.pace.limit_bytes_s = self.settings.limit_bytes_s
        self.broken: str | None = None
        self._wanted = trio.Event()
        self._kind: Kind | None = None
        if self.settings.convert or self.settings.rebalance:
            self._kind = "convert" if self.settings.convert else "rebalance"
        self._last: Kind | None = None  # that has ended
        self._working = False
        self._done_bytes = 0
        self._reason, self._waits = "", False  # why nothing goes on, if by itself it soon will
        self._order: list[Zone] = []  # unwanted zones, last comes first; as of the last look
        self._looked = float("-inf")
        self._passed: dict[int, float] = {}  # zones left alone, until then

    # -- for others -------------------------------------------------------------------------------

    async def convert(self, level: str, width: int) -> None:
        """New zones get that code from here on, and the others are emptied. The caller has made
        sure that it can be (shape.py, `plan_conversion`)."""
        old = self.store.space.code
        await self.store.membership.reshape(level, width)
        self._passed.clear()
        self._looked = float("-inf")
        self._set_off("convert", f"from {_named(old)} to {_named(self.store.space.code)}")
        await self._set(convert=True)
        self.wake()

    async def rebalance(self) -> None:
        """Columns are moved until all members are equally full."""
        await self._set(rebalance=True)
        self.evening.forget()
        self._set_off("rebalance", f"over {len(fill_of(self.store.space).used)} members")
        self.wake()

    async def stop_rebalance(self) -> None:
        """What was moved stays where it is. UsageError: there is none."""
        if not self.settings.rebalance:
            raise UsageError("there is no rebalance to stop")
        if self._kind != "convert":  # else it was to come after that
            self._kind = "rebalance"
            await self._finish("stopped by command")
        else:
            await self._set(rebalance=False)
        self.wake()

    async def _set(self, **values: Any) -> None:
        """Durable on return."""
        self._change(**values)
        await self.store.commit()

    def _change(self, **values: Any) -> None:
        """Durable with the next cut, which is asked for."""
        store = self.store
        store.writable()
        self.settings = kept = msgspec.structs.replace(self.settings, **values)
        stored = None if kept == ReshapeSettings() else msgspec.json.encode(kept)
        store.also_in(store.epoch, lambda _: store.meta.put_setting(SETTING, stored))
        store.request_cut()

    @property
    def paused(self) -> bool:
        return self.settings.paused

    def pause(self) -> None:
        """After the piece that is under way, until `resume`, also after the next mount."""
        self._change(paused=True)
        self.wake()

    def resume(self) -> None:
        self._change(paused=False)
        self._passed.clear()
        self.wake()

    def limit(self, bytes_s: int) -> None:
        """No faster than that; 0: as fast as users leave room for."""
        self._change(limit_bytes_s=bytes_s)
        self.pace.limit_bytes_s = bytes_s

    def wake(self) -> None:
        self._looked = float("-inf")
        self._wanted.set()

    def unwanted(self, code: Code) -> bool:
        """Zones of that code are to be emptied."""
        allocation = self.store.space.allocation
        if code == allocation.code:
            return False
        return not allocation.fits(code) or allocation.shape()[0].width > code.width

    def unwanted_zones(self) -> list[Zone]:
        """But for the spare and the outlet, which are given back first."""
        found, known = [], dict[str, bool]()
        for zone in self.store.space.zones.values():
            text = zone.map.code.text
            if text not in known:
                known[text] = self.unwanted(zone.map.code)
            if known[text] and not zone.kept:
                found.append(zone)
        return found

    def statistics(self) -> ReshapeStatistics:
        zones = self.unwanted_zones()
        size, rate = self.store.cell_bytes, self.pace.rate_bytes_s
        left = sum(map(self.store.space.reserve.bound, zones)) * size
        kind = self._kind
        if kind is None and zones:
            kind = "convert"
        elif kind is None and self.settings.rebalance:
            kind = "rebalance"
        if kind == "rebalance" and not left:
            left = self.evening.left_bytes
        state = self._state(kind is not None)
        seconds = round(left / rate) if rate and state == "running" else None
        reason = self.broken or (self._reason if state in ("waiting", "stalled") else "")
        if state == "stalled" and not self._writable:
            reason = stalls.not_writable(self.store, len(zones), left)
        if state == "paused":
            reason = "paused by command; `raidfs-ctl job resume` goes on with it"
        return ReshapeStatistics(
            kind or self._last, state, self._done_bytes, left, rate if self._working else 0.0,
            seconds, reason, len(zones), len(self.evening.moves),
        )  # fmt: skip

    def _state(self, todo: bool) -> State:
        if self.broken:
            return "failed"
        if not todo:
            return "done" if self._last is not None else "idle"
        if self.paused:
            return "paused"
        if not self._writable:
            return "stalled"
        if self._reason:
            return "waiting" if self._waits else "stalled"
        return "running"

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wanted = trio.Event()
            try:
                while self._may() and await self._step():
                    pass
            except RaidfsError as error:  # the store failed, or the metadata is full
                self._hold_up(self._explained(error))
                log.warning("change of shape was given up for now: %s", error)
            except Exception:
                log.exception("the change of shape met an error of raidfs itself")
                self.broken = "an error inside raidfs; its log tells more"
                self.store.events.note("JobFailed", text=f"{self._kind}: {self.broken}")
            finally:
                self._working = False
            with trio.move_on_after(LOOK_S):
                await self._wanted.wait()

    @property
    def _writable(self) -> bool:
        return not (self.store.failed or self.store.read_only)

    def _may(self) -> bool:
        return self._writable and not (self.broken or self.paused)

    async def _step(self) -> bool:
        """Something of what there is to do. False: nothing is, or can be now."""
        uneven = self.store.assembly.label.parameters.uneven
        if self._has_unwanted():
            self._begin("convert")
            return await self._empty_one()
        if self._kind == "convert":
            await self.store.membership.settle_uneven()
            await self._finish(f"all is at {_named(self.store.space.code)}")
            return True
        if uneven:
            await self.store.membership.settle_uneven()
        if self.settings.rebalance:
            self._begin("rebalance")
            return await self._even_out()
        return False

    # -- beginning and ending ---------------------------------------------------------------------

    def _set_off(self, kind: Kind, text: str) -> None:
        self._kind, self._done_bytes = kind, 0
        self._reason, self._waits = "", False
        event = "ConvertStarted" if kind == "convert" else "RebalanceStarted"
        self.store.events.note(event, text=text, left_bytes=self.statistics().left_bytes)

    def _begin(self, kind: Kind) -> None:
        """There is work of that kind; perhaps since before the mount."""
        if self._kind != kind or not self._working:
            self._working = True
            self.pace.begin()
        if self._kind != kind:
            text = "zones that were made narrower, or of another code, are made anew"
            self._set_off(kind, text if kind == "convert" else "it was to come after a conversion")

    async def _finish(self, text: str) -> None:
        """That it has ended becomes durable together with the event that says so."""
        assert self._kind is not None
        event = "ConvertFinished" if self._kind == "convert" else "RebalanceFinished"
        self.store.events.note(event, text=text, moved_bytes=self._done_bytes)
        if getattr(self.settings, self._kind):
            await self._set(**{self._kind: False})
        self._kind, self._last, self._reason = None, self._kind, ""
        self.evening.forget()

    def _explained(self, error: RaidfsError) -> str:
        if self._kind == "rebalance":
            return stalls.of_rebalance(error, len(self.evening.moves), self.evening.left_bytes)
        return stalls.of_conversion(error, self.store, self.unwanted_zones())

    def _hold_up(self, reason: str, *, waits: bool = False) -> None:
        self._reason, self._waits = reason, waits

    def _mending(self) -> bool:
        """Promise 4. What can't be mended now is not waited for."""
        mender = self.store.mender
        if not mender.working or mender.wishes:
            return False
        self._hold_up("a rebuild comes first", waits=True)
        return True

    # -- emptying zones ---------------------------------------------------------------------------

    def _has_unwanted(self) -> bool:
        """Looks at all zones now and then only: there may be many."""
        zones, now = self.store.space.zones, trio.current_time()
        while self._order and zones.get(self._order[-1].map.zone) is not self._order[-1]:
            self._order.pop()
        if not self._order or now > self._looked + ORDER_S:
            bound = self.store.space.reserve.bound
            self._order = sorted(self.unwanted_zones(), key=bound, reverse=True)
            self._looked = now
        return bool(self._order)

    async def _empty_one(self) -> bool:
        space = self.store.space
        if self._mending():
            return False
        if space.reserve.renew(self.unwanted):
            await self._collect()
            self._looked = float("-inf")
            return True
        if await self._drop_empty():
            return True
        now, held_up = trio.current_time(), False
        self._passed = {zone: until for zone, until in self._passed.items() if until > now}
        reason, waits = "some zones could not be emptied just now", True
        for zone in reversed(self._order):
            if zone.map.zone in self._passed or space.zones.get(zone.map.zone) is not zone:
                continue
            if zone.holds or zone.placed:
                held_up = True
            elif not space.readable(zone):
                reason, waits = stalls.beyond(space, self._order), False
            elif not self._has_room(zone):
                reason, waits = stalls.full(space, self._needed_zones(zone) + 1), False
            elif not await space.close(zone):
                reason, waits = stalls.promised(space), False
            else:
                self._hold_up("")
                await self._empty(zone)
                return True
        if held_up:
            await trio.sleep(HELD_UP_S)
            return True
        self._hold_up(reason, waits=waits)
        return False

    async def _collect(self) -> None:
        """Zones that hold nothing go, and their slots are free."""
        store = self.store
        await store.cut_with(lambda _: None)
        await store.space.erase(store.space.erasable(store.durable))

    async def _drop_empty(self) -> bool:
        """Those in which nothing lives, which come first. False: there are none that could go."""
        space, found = self.store.space, False
        for zone in reversed(self._order):
            if space.reserve.bound(zone):
                break
            if not zone.needed and space.zones.get(zone.map.zone) is zone:
                found |= await space.close(zone)
        if found:
            await self._collect()
        return found

    def _needed_zones(self, zone: Zone) -> int:
        """That what lives in it takes on top of what there is room for."""
        space = self.store.space
        code, _ = space.allocation.shape()
        cells = -(-space.reserve.bound(zone) // code.k) * code.k
        return max(0, -(-(cells - space.reserve.room_cells) // (space.rows_per_zone * code.k)))

    def _has_room(self, zone: Zone) -> bool:
        """Promise 3."""
        space = self.store.space
        choice = space.allocation.choose(whole=True)
        narrow = choice is not None and choice[0].width <= zone.map.code.width
        if narrow and space.allocation.fits(zone.map.code):
            return False  # what it goes to would be as narrow
        old = Old(space.reserve.bound(zone), tuple(member for member, _ in zone.map.columns))
        code, _ = space.allocation.shape()
        free = space.allocation.free_slots()
        return fits(old, free, code, space.rows_per_zone, space.reserve.room_cells)

    async def _empty(self, zone: Zone) -> None:
        store, reserve = self.store, self.store.space.reserve
        before = self._done_bytes
        reserve.owed = self._needed_zones(zone)
        try:
            await store.space.grow(reserve.wanted)
            done = await store.cleaner.empty(zone, self._turn, self._must_stop)
        finally:
            reserve.owed = 0
        if not done and before == self._done_bytes and not self._must_stop():
            self._passed[zone.map.zone] = trio.current_time() + PASSED_OVER_S
        if store.cleaner.waiting:
            await trio.sleep(HELD_UP_S)

    def _must_stop(self) -> bool:
        return self.store.cleaner.waiting or not self._may()

    async def _turn(self, nbytes: int) -> None:
        """A piece is done; promise 2."""
        self._done_bytes += nbytes

        async def cut_short() -> None:
            await self.store.cleaner.asked()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_short)
            await self.pace.turn(nbytes)
            nursery.cancel_scope.cancel()

    # -- moving columns ---------------------------------------------------------------------------

    async def _even_out(self) -> bool:
        """Some columns. False: none can be moved now, or all is even."""
        mender = self.store.mender
        if self._mending():
            return False
        if mender.paused:
            self._hold_up("columns are moved by rebuilding, which is paused", waits=True)
            return False
        if not await self.evening.choose():
            if self.evening.waits:
                self._hold_up("some columns could not be moved just now", waits=True)
                return False
            await self._finish("all members are equally full, as far as can be")
            return True
        self._hold_up("")
        done = await self.evening.some(
            1 if self.pace.limit_bytes_s else MOVES_AT_ONCE,
            lambda: self._may() and self.settings.rebalance,
        )
        self._done_bytes += done
        await self.pace.turn(done)
        return True


def _load(meta: Meta) -> ReshapeSettings:
    """What can't be understood is as if nothing had been said."""
    stored = meta.setting(SETTING)
    if stored is None:
        return ReshapeSettings()
    try:
        return msgspec.json.decode(stored, type=ReshapeSettings)
    except msgspec.MsgspecError:
        return ReshapeSettings()


def _named(code: Code) -> str:
    return f"level {code.level}, {code.width} wide"
