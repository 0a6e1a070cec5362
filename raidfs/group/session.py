"""One session: a connection to a peer, from the end of its handshake to its own end.

Words: what an application of the link says is a *message*; the link itself says Alive (nothing
else was to be said) and Farewell (why it ends). The *queue* holds frames that the connection hasn't
taken.

 1. Messages arrive in the order they were sent, each once and none left out, until the session
    ends. What of the last ones arrived, nobody can tell from this end.
 2. The queue is bounded. `send` waits for room; `send_nowait` has a reserve besides, and a peer
    that lets this fill up, too, has lost the session: memory doesn't grow with a peer's slowness.
 3. A peer of which nothing comes for `silence_s_max` is gone. Time in which this end doesn't
    listen, because nobody takes the messages, doesn't count.
 4. Once a session has ended nothing can be sent in it: LinkDown, also for who waits for room.
 5. What `send_nowait` is given is with the kernel on return, and all that was queued before it, if
    the connection takes it: who has shut a gate doesn't wait for the event loop's next turn.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import msgspec
import trio

from raidfs.errors import RaidfsError
from raidfs.group.events import Received, SessionDown, SessionUp
from raidfs.group.transport import Framed, TransportError
from raidfs.group.wire import FRAME_BYTES_MAX, WireError

BATCH_BYTES = 256 << 10  # of frames that go to the connection in one call
FAREWELL_S_MAX = 0.2

Event = Received | SessionUp | SessionDown
Tell = Callable[[Event], Awaitable[None]]  # somebody has taken it on return
REASON_CHARS_MAX = 1000
Reason = Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)]


class Kind(IntEnum):
    """Which vocabulary a frame's body belongs to."""

    LINK = 0
    MESSAGE = 1


class LinkDown(RaidfsError):
    """There is no session with that peer, or it ended before the message could be sent."""

    errno = errno.ENOTCONN


class Alive(msgspec.Struct, frozen=True, array_like=True, tag="alive"):
    """Nothing was to be said."""


class Farewell(msgspec.Struct, frozen=True, array_like=True, tag="farewell"):
    """This end ends the session."""

    why: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """Times in seconds. `alive_s`: something is sent so often, at least. `retry_s_min`, `_max`: the
    first wait between attempts to connect, and the longest. `strangers_max`: connections at once
    whose other end isn't known yet."""

    alive_s: float = 1.0
    silence_s_max: float = 5.0
    handshake_s_max: float = 5.0
    retry_s_min: float = 0.05
    retry_s_max: float = 5.0
    queue_bytes_max: int = 4 << 20
    reserve_bytes: int = 1 << 20
    strangers_max: int = 64

    def __post_init__(self) -> None:
        assert 0 < 2 * self.alive_s <= self.silence_s_max, "one late Alive must not end a session"
        assert 0 < self.retry_s_min <= self.retry_s_max


@dataclass(slots=True)
class Traffic:
    """With one peer, over all sessions."""

    sessions: int = 0
    sent: int = 0  # messages
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0


class Session:
    """`number`: never used before for this peer. `run` once; the rest from any task of its loop."""

    def __init__(
        self, peer: str, number: int, framed: Framed, limits: LinkLimits, traffic: Traffic
    ) -> None:
        self.peer = peer
        self.number = number
        self.why = ""  # it ended; "": it didn't
        self.is_told = False  # somebody has taken SessionUp
        self._framed = framed
        self._limits = limits
        self._traffic = traffic
        self._queue: deque[bytes] = deque()
        self.queued_bytes = 0
        self._filled = trio.Event()
        self._is_writing = False
        self._turn = trio.Lock()  # who waits in `send` goes first come, first served
        self._room = trio.lowlevel.ParkingLot()
        self._life = trio.CancelScope()
        self._reading = trio.CancelScope()

    # ---- for whoever sends ----

    async def send(self, message: object) -> None:
        """In the queue on return. Cancelled or LinkDown: it was not, and won't be, sent.
        WireError: too large."""
        async with self._turn:
            while self.queued_bytes >= self._limits.queue_bytes_max and not self.why:
                await self._room.park()
            self._put_message(message)

    def send_nowait(self, message: object) -> None:
        """As `send`, at once: before whatever waits for room. LinkDown, WireError."""
        full = self._limits.queue_bytes_max + FRAME_BYTES_MAX + self._limits.reserve_bytes
        if self.queued_bytes >= full:
            self.end("it doesn't take what is sent to it")
        self._put_message(message)
        if not self._is_writing:
            self._write_now()

    def _put_message(self, message: object) -> None:
        if self.why:
            raise LinkDown(f"the session with {self.peer} has ended: {self.why}")
        self._put(Kind.MESSAGE, message)
        self._traffic.sent += 1

    def _put(self, kind: Kind, message: object) -> None:
        frame = self._framed.outgoing.frame(kind, message)
        self._queue.append(frame)
        self.queued_bytes += len(frame)
        self._filled.set()

    def end(self, why: str, *, farewell: bool = False) -> None:
        """Nothing can be sent and nothing is delivered any more; `run` returns soon. `farewell`:
        what is queued still goes out, and then why, if the peer takes it soon. The first reason
        counts."""
        if self.why:
            return
        self.why = why
        self._reading.cancel()
        self._room.unpark_all()
        if farewell:
            self._put(Kind.LINK, Farewell(why[:REASON_CHARS_MAX]))
            self._life.deadline = trio.current_time() + FAREWELL_S_MAX
        else:
            self._life.cancel()

    # ---- its life ----

    async def run(self, tell: Tell) -> None:
        """Tells SessionUp, then what comes; returns when the session has ended, without a word.
        Cancelled: it ends, too. The connection is closed in any case."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    with self._reading:
                        await self._read(tell)
        finally:
            self.end("this daemon's link has stopped")
            await self._framed.close()
            self._queue.clear()

    async def _write(self) -> None:
        while self._queue or not self.why:
            with trio.move_on_after(self._limits.alive_s) as waiting:
                await self._filled.wait()
            if waiting.cancelled_caught and not self._queue:
                self._put(Kind.LINK, Alive())
            frames = self._batch()
            self._is_writing = True
            try:
                await self._framed.write(frames)
            except TransportError as error:
                self.end(str(error))
                return
            finally:
                self._is_writing = False
            self._note_written(frames)

    def _write_now(self) -> None:
        """Promise 5. The writer, which is awake, sends the rest, if there is one."""
        while self._queue:
            frames = self._batch()
            try:
                all_sent = self._framed.write_now(frames)
            except TransportError as error:
                self.end(str(error))
                return
            self._note_written(frames)
            if not all_sent:
                self._filled.set()
                return

    def _note_written(self, frames: bytes) -> None:
        self.queued_bytes -= len(frames)
        self._traffic.sent_bytes += len(frames)
        self._room.unpark_all()

    def _batch(self) -> bytes:
        """Frames to be written in one go; none if all were written meanwhile."""
        frames: list[bytes] = []
        size = 0
        while self._queue and (not frames or size + len(self._queue[0]) <= BATCH_BYTES):
            frames.append(self._queue.popleft())
            size += len(frames[-1])
        if not self._queue:
            self._filled = trio.Event()
        return b"".join(frames)

    async def _read(self, tell: Tell) -> None:
        await tell(SessionUp(self.peer, self.number))
        self.is_told = True
        while True:
            message = await self._heard()
            if message is None:
                return
            self._traffic.received += 1
            await tell(Received(self.peer, self.number, message))

    async def _heard(self) -> Any:
        """The next message; None: the session has ended."""
        while True:
            before = self._framed.received_bytes
            try:
                kind, message = await self._framed.hear(self._limits.silence_s_max)
            except (TransportError, WireError) as error:
                self.end(str(error))
                return None
            finally:
                self._traffic.received_bytes += self._framed.received_bytes - before
            if kind == Kind.MESSAGE:
                return message
            if isinstance(message, Farewell):
                self.end(f"it ended the session: {message.why}")
                return None
            if not isinstance(message, Alive):
                self.end("it said in a session what belongs to a handshake")
                return None
