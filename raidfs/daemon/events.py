"""The events of a mounted volume: told to whoever asks or follows, and those that only a mount has.

Which kinds there are and how they are kept: store/events.py.

 1. Whoever follows gets every event once, in order, from the one he names on, until the volume is
    unmounted; the last one is then Unmounted.
 2. A follower who doesn't read holds up nothing but himself.
 3. RoomLow and RoomEnough alternate: the second needs a bit more room than the first.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from raidfs import unix_socket
from raidfs.daemon.control import REPLY_BYTES_MAX, ControlError, Handler, Reply, Request
from raidfs.errors import RaidfsError
from raidfs.raid.label import Label
from raidfs.store.events import Event, family, kind_of
from raidfs.store.store import Store

BEAT_S = 20.0  # how often a follower hears something, so that one who has gone is noticed
LAST_S = 1.0  # for followers to take the last events, at the end
LOOK_S = 5.0
AGAIN_S = 0.5
LOW_PART = 20  # less than this part of the volume is little room
ENOUGH_PART = 16
TAKEN_BYTES = 1 << 16

Room = Literal["enough", "low", "reserve"]


class EventsRequest(Request, frozen=True, tag="events"):
    """Answered with EventsParts. `after`: the last one known; below 0: the one before this mount's
    first. `not_kept`: of those that aren't kept so many are known, if `session` is the volume's.
    `last`: so many, and those that come then; 0: all. `kinds`: these only. `follow`: also those to
    come; then an empty part is sent now and then."""

    after: int = 0
    not_kept: int = 0
    session: str = ""
    since_ns: int = 0
    last: int = 0
    kinds: tuple[str, ...] = ()
    follow: bool = False


class EventTold(msgspec.Struct, frozen=True):
    """`number`: below zero if it isn't kept. `member`: its id, or -1; `path`: where that is."""

    number: int
    time_ns: int
    kind: str
    severity: str
    volume: str
    member: int
    path: str
    text: str
    details: dict[str, Any]


class EventsPart(msgspec.Struct, frozen=True):
    """`session`: of this mount. `through`, `through_not_kept`: all up to these were told by now, or
    not asked for."""

    session: str
    events: list[EventTold]
    through: int = 0
    through_not_kept: int = 0


def told(event: Event, label: Label) -> EventTold:
    """With what the label adds to it."""
    details: dict[str, Any] = {}
    with contextlib.suppress(msgspec.DecodeError):
        details = msgspec.json.decode(event.details, type=dict[str, Any])
    path = next((entry.path for entry in label.members if entry.id == event.member), "")
    return EventTold(
        number=event.number,
        time_ns=event.time_ns,
        kind=event.kind,
        severity=kind_of(event.kind).severity,
        volume=label.volume_name,
        member=event.member,
        path=path,
        text=event.text,
        details=details,
    )


def wanted(event: Event, request: EventsRequest) -> bool:
    """By kind and time. RebuildNN stands for Rebuild20 and its like."""
    return event.time_ns >= request.since_ns and (
        not request.kinds or bool({event.kind, family(event.kind)} & set(request.kinds))
    )


class RoomWatch:
    """When room is little, and when it is enough again. In bytes of data."""

    def __init__(self) -> None:
        self.room: Room = "enough"

    def judge(self, free: int, total: int, reserve: int) -> Room:
        """What it is, seen from what it was. `reserve`: the cleaner's, of which writers get
        nothing."""
        if free * LOW_PART < total:
            return "reserve" if free < reserve or self.room == "reserve" else "low"
        return "enough" if free * ENOUGH_PART >= total else self.room


class EventService:
    """Of one mounted volume. `counts` of events by kind are in the store's Events."""

    def __init__(self, store: Store, mountpoint: str) -> None:
        self.store = store
        self.events = store.events
        self.session = os.urandom(8).hex()
        self._mountpoint = mountpoint
        self._watch = RoomWatch()
        self._news = trio.Event()
        self._followers = 0
        self._ended = self._gone = False
        self.events.listeners.append(lambda event: self._wake())

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {EventsRequest: self._tell}

    # -- what only a mount has --------------------------------------------------------------------

    def mounted(self) -> None:
        """Notes the mount, and what is missing at it."""
        assembly = self.store.assembly
        how = "read-only " if self.store.read_only else ""
        self.events.note("Mounted", text=f"{how}on {self._mountpoint}", pid=os.getpid())
        for member, reason in sorted(assembly.lost.items()):
            if member not in assembly.known_lost:
                self.events.note("DeviceDisappeared", member, str(reason))
        states = self.store.array.states
        missing = sorted(member for member, state in states.items() if state.state != "online")
        if missing:
            numbers = ", ".join(map(str, missing))
            text = f"running without member{'s' if len(missing) > 1 else ''} {numbers}"
            self.events.note("DegradedArray", text=text, missing=missing)

    async def unmounted(self) -> None:
        """Notes the end, if all is durable, as the last event; followers are told all of it."""
        self.events.look(at_once=True)
        with contextlib.suppress(RaidfsError):  # the store's own end meets it again, and tells
            await self.store.commit()
            self.events.note("Unmounted", text=f"from {self._mountpoint}")
            self._ended = True
        self._wake()
        with trio.move_on_after(LAST_S):
            while self._followers:
                await self._news.wait()
        self._gone = True

    async def run(self) -> None:
        """Until cancelled: looks at the room. What is so for a moment only (a zone that is being
        allocated is nobody's) is not told."""
        while True:
            if self.store.failed is None and not self.store.read_only:
                room = self._watch.judge(*self._room())
                if room != self._watch.room:
                    await trio.sleep(AGAIN_S)
                    self._note_room(self._watch.judge(*self._room()))
            await trio.sleep(LOOK_S)

    def _room(self) -> tuple[int, int, int]:
        """Bytes: free, in all, the cleaner's."""
        space, cell_bytes = self.store.space, self.store.cell_bytes
        usage = space.usage()
        reserve = space.rows_per_zone * space.code.k
        return usage.free_cells * cell_bytes, usage.total_cells * cell_bytes, reserve * cell_bytes

    def _note_room(self, room: Room) -> None:
        if room == self._watch.room:
            return
        self._watch.room = room
        free, total, _ = self._room()
        part = f"{free * 100 / max(total, 1):.1f} % of {total >> 20} MiB are free"
        if room == "enough":
            self.events.note("RoomEnough", text=part, free_bytes=free, total_bytes=total)
            return
        more = ""
        if room == "reserve":
            more = "; that is less than the cleaner needs to be quick: writes will wait, or fail"
        self.events.note(
            "RoomLow", text=f"{part}{more}", level=room, free_bytes=free, total_bytes=total
        )

    # -- telling ----------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _tell(self, request: EventsRequest) -> AsyncGenerator[EventsPart, None]:
        self._followers += 1
        try:
            after = request.after if request.after >= 0 else self.events.first - 1
            not_kept = request.not_kept if request.session == self.session else 0
            newest: deque[Event] = deque(maxlen=request.last or None)
            while batch := self.events.since(after, not_kept):
                after, not_kept = _through(batch, after, not_kept)
                newest.extend(event for event in batch if wanted(event, request))
                if not request.last:
                    yield self._part(newest, after, not_kept)
                    newest.clear()
                await trio.lowlevel.checkpoint()
            yield self._part(newest, after, not_kept)
            while request.follow and not self._gone:
                news = self._news
                if batch := self.events.since(after, not_kept):
                    after, not_kept = _through(batch, after, not_kept)
                    found = [event for event in batch if wanted(event, request)]
                    yield self._part(found, after, not_kept)
                elif self._ended:
                    return
                else:
                    with trio.move_on_after(BEAT_S) as scope:
                        await news.wait()
                    if scope.cancelled_caught:
                        yield self._part((), after, not_kept)
        finally:
            self._followers -= 1
            self._wake()

    def _part(self, events: Iterable[Event], after: int, not_kept: int) -> EventsPart:
        label = self.store.assembly.label
        found = [told(event, label) for event in events]
        return EventsPart(self.session, found, after, not_kept)


def _through(batch: list[Event], after: int, not_kept: int) -> tuple[int, int]:
    """What is known when these are."""
    for event in batch:
        after, not_kept = max(after, event.number), max(not_kept, -event.number)
    return after, not_kept


# -- the other end ---------------------------------------------------------------------------------


async def follow(socket: Path, request: EventsRequest) -> AsyncGenerator[EventsPart, None]:
    """All parts that the daemon at that socket sends, to the end. ControlError if it can't be
    reached, or goes away in the middle; RaidfsError is what it reports."""
    raw = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with contextlib.closing(raw):
        try:
            with unix_socket.short(socket) as name:
                await raw.connect(name)
            stream = trio.SocketStream(raw)
            await stream.send_all(msgspec.json.encode(request) + b"\n")
        except (OSError, trio.BrokenResourceError) as error:
            raise ControlError(f"can't reach the daemon of this volume: {error}") from error
        pending = bytearray()
        while True:
            reply = await _reply(stream, pending)
            if bytes(reply.result) != b"null":
                yield msgspec.json.decode(reply.result, type=EventsPart)
            if not reply.more:
                return


async def _reply(stream: trio.SocketStream, pending: bytearray) -> Reply:
    """The next line. `pending`: what came of the one after it."""
    while (end := pending.find(b"\n")) < 0:
        if len(pending) > REPLY_BYTES_MAX:
            raise ControlError("the daemon's answer is too long")
        chunk = b""
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(3 * BEAT_S):
            chunk = bytes(await stream.receive_some(TAKEN_BYTES))
        if not chunk:
            raise ControlError("the daemon is gone, or stands still")
        pending += chunk
    line = bytes(pending[:end])
    del pending[: end + 1]
    try:
        reply = msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError as error:
        raise ControlError(f"the daemon's answer was not understood: {error}") from error
    if reply.error:
        raise RaidfsError(reply.error, reply.errno)
    return reply
