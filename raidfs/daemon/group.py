"""A volume's part in its group while it is mounted: the marker process, carried out.

    links (group/link.py) --events--> Process (group/marker.py) --actions--> gate, store, links

What the process says is done in its order, at once: shutting the gate, sending the markers and
cutting are one step of the event loop. In that order: with the gate shut nothing changes before the
cut, and what it costs is no part of the others' gate time. What is done to the store, and what
takes time, is in group_parts.py.

 1. From the cut to the last marker, or to the timer, the gate is shut; nothing that has to be done
    meanwhile needs it open. Answers of the control socket wait, too (`told`).
 2. What was promised to others (table kept) is taken up again at the next mount.
 3. Whatever ends the mount opens the gate, by aborting what has it shut.
 4. A mount that can't keep the gate's promise takes no part, and says why: `obstacle`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from raidfs.daemon import fault
from raidfs.daemon.group_figures import Figures
from raidfs.daemon.group_parts import Parts
from raidfs.errors import NoSuchSnapshot, RaidfsError, UsageError
from raidfs.group import events as e
from raidfs.group.charter import Charter, CharterTold, LeaveAsked, Member, Removal, Spoken
from raidfs.group.link import Links, PeerState
from raidfs.group.marker import Process
from raidfs.group.messages import (
    Message,
    Plan,
    Result,
    Transfer,
)
from raidfs.group.session import LinkDown, LinkLimits
from raidfs.group.stable import OnTheWay
from raidfs.group.transport import Address, UnixAddress, parse_address
from raidfs.group.wire import WireError
from raidfs.store.store import Store

log = logging.getLogger("raidfs.group")

SETTING = "group"  # its name among the volume's settings
OUT_SETTING = "group-out"  # there is one if others have taken the volume out of its group
RETRY_S = 2.0
LEAVE_S = 5.0
LIMITS = LinkLimits(retry_s_max=1.0)  # a member that is back is soon reached again
LOCAL_LIMITS = LinkLimits(retry_s_max=0.2)  # on one host to try costs nothing
SETTLE_S = 2.0  # at an unmount, for what is being made durable
Listener = Callable[[e.Event], bool]


def decode_charter(stored: bytes | None) -> Charter | None:
    """The volume's group, as `SETTING` holds it."""
    return None if stored is None else msgspec.json.decode(stored, type=Charter)


def _decode_removal(stored: bytes | None) -> Removal | None:
    return None if stored is None else msgspec.json.decode(stored, type=Removal)


class GroupProcess:
    """Of one mounted volume. All methods belong to the event loop's thread."""

    def __init__(self, store: Store, runtime: Path, state: Path, obstacle: str = "") -> None:
        """`runtime`: where daemons of this host have their sockets; `state`: for this volume's
        keys; `obstacle`: why this mount can't take part."""
        self.store = store
        self.me = store.assembly.label.volume_id
        self.obstacle = obstacle
        self.keys = state / "keys"
        self.authority = state / "authority"
        self.charter = decode_charter(store.meta.setting(SETTING))
        self.out = _decode_removal(store.meta.setting(OUT_SETTING))
        self.trouble = ""  # why it isn't listening
        self.listening: tuple[Address, ...] = ()
        self.figures = Figures()
        self.results: deque[Result] = deque(maxlen=100)
        self.on_message: Callable[[str, object], None] = lambda peer, message: None
        self.on_up: Callable[[str], None] = lambda peer: None
        self.on_down: Callable[[str], None] = lambda peer: None
        self.parts = Parts(store, self.figures, self.give, self._is_running, self.changed)
        self._runtime = runtime
        self._process: Process | None = None
        self._links: Links | None = None
        self._nursery: trio.Nursery | None = None
        self._waiting: dict[bytes, Callable[[Result], None]] = {}
        self._rejected: dict[bytes, str] = {}
        self._events: deque[e.Event] = deque()
        self._handling = False
        self._closing = False
        self._scope: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._adopting = trio.Lock()
        self._names: dict[int, bytes] = {}
        store.snapshots.on_gone.append(self._gone)
        store.snapshots.on_named.append(self._named)
        for group_id, row in store.group_snapshots.visible().items():
            self._names[row.id] = group_id

    # -- for whoever uses it ----------------------------------------------------------------------

    def changed(self) -> None:
        """Something that others wait for."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when it holds; looked at with each event."""
        while not condition():
            await self._changed.wait()

    async def told(self) -> None:
        """Returns when no snapshot of the group has the gate shut."""
        await self.until(lambda: not self.parts.gates)

    def must_be_in(self) -> Charter:
        """UsageError unless the volume is in a group, and takes part."""
        if self.charter is None:
            if self.out is not None:
                raise UsageError(self.out.text(self.store.assembly.label.volume_name))
            raise UsageError(
                f"volume {self.store.assembly.label.volume_name} is in no group;"
                " make one: raidfs-ctl group init NAME MOUNTPOINT..."
            )
        if self.obstacle:
            raise UsageError(self.obstacle)
        if self._process is None:
            raise RaidfsError(f"the group isn't reached: {self.trouble or 'not yet started'}")
        return self.charter

    @property
    def is_linked(self) -> bool:
        """Its process and its links are there."""
        return self._links is not None

    def is_up(self, peer: str) -> bool:
        """There is a session with it, as far as the process has heard."""
        return self._process is not None and peer in self._process.sessions

    def states(self) -> dict[str, PeerState]:
        """Of all peers."""
        return {} if self._links is None else self._links.states()

    def running(self) -> list[tuple[Plan, str]]:
        """Group snapshots under way or in doubt here, with their phases."""
        if self._process is None:
            return []
        return [(one.plan, str(one.phase)) for one in self._process.running()]

    def away(self) -> dict[str, str]:
        """Members that can't be reached, and why."""
        states = self.states()
        members = self.charter.roster.members if self.charter else ()
        told = {peer: states.get(peer) for peer in members if peer != self.me}
        return {
            peer: "it was not heard of yet" if state is None else state.why
            for peer, state in told.items()
            if state is None or not state.is_up
        }

    async def snapshot(self, name: str, missing: tuple[str, ...] = ()) -> Result:
        """Of all members but those. RaidfsError: it could not even begin."""
        plan = self.plan(name, missing)
        return await self.taken(plan)

    def plan(self, name: str, missing: tuple[str, ...] = ()) -> Plan:
        """Of a new one. RaidfsError: it can't be taken here."""
        charter = self.must_be_in()
        self.store.group_snapshots.check(name)
        roster = charter.roster
        return Plan(
            os.urandom(16), name, self.store.clock(), self.me, roster.version,
            roster.fingerprint, charter.gate_ms, missing,
        )  # fmt: skip

    async def taken(self, plan: Plan) -> Result:
        """What becomes of it. RaidfsError: it could not even begin."""
        found: list[Result] = []

        def finished(result: Result) -> None:
            found.append(result)
            self.changed()

        self._waiting[plan.snapshot] = finished
        try:
            self.give(e.Start(plan))
            why = self._rejected.pop(plan.snapshot, "")
            if why:
                raise RaidfsError(f"no snapshot was taken: {why}")
            await self.until(lambda: bool(found))
        finally:
            self._waiting.pop(plan.snapshot, None)
        return found[0]

    def recorded(self, snapshot: bytes) -> list[OnTheWay] | None:
        """What was on its way here, without payloads; None: not all of it is known yet."""
        phases = {plan.snapshot: phase for plan, phase in self.running()}
        if phases.get(snapshot) in (None, "recording"):
            return None
        found = []
        for peer, encoded in self.parts.recorded(snapshot):
            message = msgspec.msgpack.decode(encoded, type=Transfer)
            message = msgspec.structs.replace(message, payload=b"")
            found.append(OnTheWay(peer, self.me, message))
        return found

    def resolve(self, snapshot: bytes, commit: bool) -> None:
        """A person's word on a snapshot in doubt. UsageError: it isn't."""
        self.must_be_in()
        self.give(e.Resolve(snapshot, commit))
        if why := self._rejected.pop(snapshot, ""):
            raise UsageError(why)

    def send(self, peer: str, message: object) -> bool:
        """What is no application's; to itself, too. False: it can't be reached."""
        if peer == self.me:
            self.on_message(peer, message)
            return True
        try:
            if self._links is None:
                return False
            self._links.send_nowait(peer, message)
        except (LinkDown, WireError):
            return False
        return True

    # -- the charter ------------------------------------------------------------------------------

    async def adopt(self, charter: Charter | None) -> None:
        """The group is this from now on, durably; None: there is none. An older one changes
        nothing."""
        if charter is not None and charter.member(self.me) is None:
            await self.part(charter.removal())
            return
        async with self._adopting:
            old = self.charter
            if old is not None and charter is not None and not charter.follows(old):
                return
            if charter is not None and self.obstacle:
                raise UsageError(self.obstacle)
            await self._become(charter, None)
        self.changed()

    async def part(self, removal: Removal) -> None:
        """Others have taken this volume out of the group."""
        async with self._adopting:
            if self.charter is not None and removal.concerns(self.charter):
                log.warning("group %s: %s has taken this volume out", removal.name, removal.by)
                await self._become(None, removal)
        self.changed()

    async def _become(self, charter: Charter | None, out: Removal | None) -> None:
        old = self.charter
        stored = None if charter is None else msgspec.json.encode(charter)
        stored_out = None if out is None else msgspec.json.encode(out)

        def change(_: int) -> None:
            self.store.meta.put_setting(SETTING, stored)
            self.store.meta.put_setting(OUT_SETTING, stored_out)

        await self.store.cut_with(change)
        self.charter, self.out = charter, out
        if charter is None or old is None or charter.group != old.group:
            if self._scope is not None:
                self._scope.cancel()
        elif self._links is not None:
            self.give(e.Membership(charter.roster))
            self._links.set_peers(self._addresses(charter))

    async def change(self, members: tuple[Member, ...], keeper: str = "") -> Charter:
        """By the keeper: another membership. All who are or were members are told."""
        return await self.put(self.must_be_in().changed(members, keeper))

    async def put(self, new: Charter) -> Charter:
        """By the keeper: its next charter. All who are or were members are told."""
        charter, members = self.must_be_in(), new.members
        if charter.keeper != self.me:
            raise UsageError(f"only {charter.called(charter.keeper)} changes who is in the group")
        if any(phase != "distributing" for _, phase in self.running()):
            raise RaidfsError("a group snapshot is under way or in doubt; try again in a moment")
        others = {each.volume for each in charter.members} - {self.me}
        if new.member(self.me) is None:
            for peer in others:
                self.send(peer, CharterTold(new))
            with trio.move_on_after(LEAVE_S):  # who knows of it ends the session
                await self.until(lambda: self.away().keys() >= others)
        else:
            for peer in others - {each.volume for each in members}:  # the last it will hear
                self.send(peer, CharterTold(new))
        await self.adopt(new)
        for peer in others:
            self.send(peer, CharterTold(new))
        return new

    def _addresses(self, charter: Charter) -> dict[str, list[Address]]:
        return {
            each.volume: [parse_address(text) for text in each.addresses]
            or [self.socket(each.volume)]
            for each in charter.members
            if each.volume != self.me
        }

    def _removal(self, volume: str) -> bytes:
        """What is said to who isn't a peer here any more."""
        charter = self.charter
        if charter is None or charter.member(volume) is not None:
            return b""
        return msgspec.msgpack.encode(charter.removal())

    def _removed(self, peer: str, told: bytes) -> None:
        """A peer has said that: it may not yet know that this volume is in."""
        try:
            removal = msgspec.msgpack.decode(told, type=Removal)
        except msgspec.DecodeError:
            log.warning("group: what %s said on leaving was not understood", peer)
            return
        self._spawn(self.part, removal)

    async def inquire(self, peer: str) -> None:
        """Of a peer that should connect to this volume and doesn't: is this one still a member?"""
        if self._links is not None:
            await self._links.inquire(peer)

    def socket(self, volume: str) -> UnixAddress:
        """Where a volume of this host is reached."""
        return UnixAddress(self._runtime / f"{volume}.group")

    # -- its life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled or `stop`ped."""
        while not self._closing:
            if self.charter is None or self.obstacle:
                await self._changed.wait()
                continue
            self.trouble = ""
            try:
                await self._in_group(self.charter)
            except* RaidfsError as group:
                self.trouble = "; ".join(str(error) for error in _leaves(group))
                log.error("group %s: %s", self.charter and self.charter.name, self.trouble)
                await trio.sleep(RETRY_S)

    async def _in_group(self, charter: Charter) -> None:
        own = charter.member(self.me)
        assert own is not None
        links = Links(
            group=charter.group, volume=self.me, vocabulary=Spoken,
            keys=self.keys if own.addresses else None,
            limits=LIMITS if own.addresses else LOCAL_LIMITS,
            parting=self._removal, on_parting=self._removed, on_event=self._heard,
        )  # fmt: skip
        links.set_peers(self._addresses(charter))
        listen = [parse_address(text) for text in own.addresses] or [self.socket(self.me)]
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._process, actions = Process.recover(
                        self.me, charter.roster, self.parts.kept()
                    )
                    self._carry_out(actions)
                    self._links = links
                    self.listening = await self._nursery.start(links.run, listen)
                    self.changed()
                    async for _ in links.events:  # until the links end: all events are told
                        pass
        finally:
            self.parts.end()
            for peer in list(self._process.sessions) if self._process else ():
                self.on_down(peer)
            self._links = self._process = self._nursery = self._scope = None
            self.listening = ()
            self.changed()

    def give_way(self) -> None:
        """Promise 3; from here on nothing is cut any more."""
        self._closing = True
        for plan, phase in self.running():
            if phase == "recording":
                self.give(e.GateTimeout(plan.snapshot))
        self.parts.open_all()
        self.changed()

    async def stop(self) -> None:
        """Before the store is closed."""
        self.give_way()
        with trio.move_on_after(SETTLE_S):
            await self.until(self.parts.is_settled)
        if self._links is not None:
            await self._links.stop("the volume is being unmounted")
        if self._scope is not None:
            self._scope.cancel()
        await self.until(lambda: self._scope is None)

    # -- events -----------------------------------------------------------------------------------

    def _heard(self, event: Any) -> None:
        """From the links."""
        message: Any = event.message if isinstance(event, e.Received) else None
        if message is not None and not isinstance(message, Message):
            match message:
                case CharterTold(charter):
                    self._told_charter(charter)
                case LeaveAsked():
                    self._spawn(self._let_go, event.peer)
                case _:
                    self.on_message(event.peer, message)
            return
        self.give(event)
        if isinstance(event, e.SessionUp):
            if self.charter is not None:
                self.send(event.peer, CharterTold(self.charter))
            self.on_up(event.peer)
        elif isinstance(event, e.SessionDown):
            self.on_down(event.peer)

    def _told_charter(self, charter: Charter) -> None:
        own = self.charter
        if own is not None and charter.group == own.group and charter.follows(own):
            self._spawn(self.adopt, charter)

    async def _let_go(self, peer: str) -> None:
        charter = self.charter
        if charter is None or charter.keeper != self.me or charter.member(peer) is None:
            return
        await self.change(tuple(each for each in charter.members if each.volume != peer))

    def _spawn(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._guarded, partial(work, *arguments))

    @staticmethod
    async def _guarded(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except RaidfsError as error:
            log.warning("%s", error)

    def give(self, event: e.Event) -> None:
        """Tells the process, and does what it says."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and self._process is not None:
                self._carry_out(self._process.handle(self._events.popleft()))
        finally:
            self._handling = False
            self._events.clear()
        self.changed()

    # -- actions ----------------------------------------------------------------------------------

    def _carry_out(self, actions: list[e.Action]) -> None:
        for action in self._markers_first(actions):
            match action:
                case e.Cut(plan):
                    self._cut(plan)
                case e.Send():
                    self._send(action)
                case e.OpenGate(snapshot):
                    self.parts.open_gate(snapshot)
                case e.StartTimer(event, delay_ms):
                    self._spawn(self._timer, event, delay_ms)
                case e.Record(snapshot, peer, message):
                    self.parts.record(snapshot, peer, message)
                case e.Deliver(peer, message):
                    self.on_message(peer, message)
                case e.Finished(result):
                    self._finished(result)
                case e.Rejected(event, reason):
                    self._reject(event, reason)
                case e.Prepare() | e.Decide() | e.Commit() | e.Discard() | e.Forget():
                    if self._nursery is not None:
                        self.parts.do(action, self._nursery)

    def _markers_first(self, actions: list[e.Action]) -> list[e.Action]:
        """A cut is always the first of them; the gate is shut on return if it can be taken."""
        if self._closing or not actions or not isinstance(actions[0], e.Cut):
            return actions
        self.parts.shut_gate(actions[0].plan.snapshot)
        markers = list(itertools.takewhile(lambda one: isinstance(one, e.Send), actions[1:]))
        return [*markers, actions[0], *actions[1 + len(markers) :]]

    def _cut(self, plan: Plan) -> None:
        """Or Failed after the other actions."""
        try:
            if self._closing:
                raise RaidfsError("the volume is being unmounted")
            self.parts.cut(plan)
        except RaidfsError as error:
            called = self.charter.called(self.me) if self.charter else self.me
            self._events.append(e.Failed(plan.snapshot, f"{called}: {error}"))

    def _send(self, action: e.Send) -> None:
        point = f"send-{type(action.message).__name__.lower()}"
        if point == "send-decision":
            point += f"-{action.message.verdict}"  # type: ignore[union-attr]
        fault.here(f"group.before-{point}")
        try:
            if self._links is not None:
                self._links.send_nowait(action.peer, action.message, session=action.session)
        except (LinkDown, WireError) as error:
            log.info("not sent to %s: %s", action.peer, error)
        fault.here(f"group.after-{point}")

    async def _timer(self, event: e.Timer, delay_ms: int) -> None:
        await trio.sleep(delay_ms / 1000)
        self.give(event)

    def _finished(self, result: Result) -> None:
        state = result.state
        self.figures.results[state] = self.figures.results.get(state, 0) + 1
        self.results.append(result)
        log.info("group snapshot %s: %s %s", result.plan.name, state, result.reason)
        waiting = self._waiting.get(result.plan.snapshot)
        if waiting is not None:
            waiting(result)

    def _reject(self, event: e.Event, reason: str) -> None:
        self.figures.rejected += 1
        if isinstance(event, e.Start):
            self._rejected[event.plan.snapshot] = reason
        elif isinstance(event, e.Resolve):
            self._rejected[event.snapshot] = reason
        else:
            log.info("group: %s: %s", type(event).__name__, reason)

    def _is_running(self, snapshot: bytes) -> bool:
        return any(plan.snapshot == snapshot for plan, _ in self.running())

    # -- snapshots that go ------------------------------------------------------------------------

    def _named(self, name: str) -> None:
        """A snapshot came, went or changed its name: which are parts of which group snapshots?"""
        with contextlib.suppress(NoSuchSnapshot):
            row = self.store.snapshots.find(name)
            if row.group_id is not None and not row.internal:
                self._names[row.id] = row.group_id

    def _gone(self, snapshot_id: int) -> None:
        group_id = self._names.pop(snapshot_id, None)
        if group_id is not None and self._process is not None:
            self.give(e.Deleted(group_id))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]
