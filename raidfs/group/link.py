"""A daemon's sessions with its peers: who connects to whom, and who is let in.

Of two volumes the one with the smaller id connects, so a pair has one session at a time. Handshake
(wire.py has the frames): the connector says Hello, the acceptor answers with its own; from both,
with what was random in them, come the names of the session's two directions. The connector shows
by its first frame under that name that it is there now, and not a recording; the acceptor ends the
session that it may still have with this peer, and answers when that one is gone.

 1. Only peers that `set_peers` has named get a session, in the same group, with the same protocol,
    and each as itself: over TLS, as the volume that its certificate names.
 2. `events` gives, per peer, SessionUp, Received..., SessionDown, and again, never two sessions at
    once; messages of one session are in order and complete up to its end (session.py). Nobody
    taking events holds up the peers, not the memory.
 3. Of two connections by one peer the one begun later stays, whichever arrives first; a peer that
    was restarted replaces what it was before.
 4. An end that is lost is connected again, at once and then ever slower; what is wrong with a peer
    is in `states` as a sentence.
 5. A connection that isn't a peer's costs at most `handshake_s_max`, and there are at most
    `strangers_max` of them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio

from raidfs.errors import RaidfsError, UsageError
from raidfs.group.events import SessionDown
from raidfs.group.keys import Credentials, TrustError
from raidfs.group.session import (
    REASON_CHARS_MAX,
    Alive,
    Event,
    Farewell,
    Kind,
    LinkDown,
    LinkLimits,
    Reason,
    Session,
    Tell,
    Traffic,
)
from raidfs.group.transport import (
    Address,
    Framed,
    Stream,
    TransportError,
    UnixAddress,
    bound_address,
    check_credentials,
    connect_tcp,
    connect_unix,
    listen_tcp,
    listen_unix,
    secured,
)

VERSION = 1
PROTOCOL = "raidfs-link/1"
RANDOM_BYTES = 16
HANDSHAKE_BYTES_MAX = 8 << 10  # of a frame
STABLE_S = 10.0  # a session that lived so long was a good one: the next attempt follows at once
Serve = Callable[[trio.SocketStream], Awaitable[None]]
log = logging.getLogger(__name__)

Identity = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z", max_length=32)]
Random = Annotated[bytes, msgspec.Meta(min_length=RANDOM_BYTES, max_length=RANDOM_BYTES)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """Who speaks, and to whom. `nonce`: new each time; `incarnation`: the same for one life of the
    daemon, within which `attempt` rises. Later versions may add fields at the end."""

    version: int
    group: Identity
    volume: Identity
    peer: Identity
    nonce: Random
    incarnation: Random
    attempt: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    """There will be no session. `parting`: for who isn't a peer any more, from whoever uses the
    links; not looked into here."""

    why: Reason
    parting: Annotated[bytes, msgspec.Meta(max_length=2048)] = b""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The first word of either side in a session."""


LinkMessage = Hello | Refusal | Ready | Alive | Farewell


class RefusedError(TransportError):
    """The handshake came to nothing."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """For people. `why` there is no session: what ended the last one, or the last attempt."""

    is_up: bool
    session: int
    address: str
    why: str
    queued_bytes: int
    traffic: Traffic


@dataclass(slots=True, eq=False)
class _Peer:
    volume: str
    addresses: tuple[Address, ...] = ()
    is_member: bool = True
    is_dialed: bool = False
    address: str = ""
    why: str = "it was not heard of yet"
    session: Session | None = None
    latest: Hello | None = None  # of the connection that has, or waits for, the turn
    turn: trio.Lock = field(default_factory=trio.Lock)  # held for as long as a session lives
    changed: trio.Event = field(default_factory=trio.Event)
    traffic: Traffic = field(default_factory=Traffic)


class Links:
    """`vocabulary`: the type of all messages. `keys`: the directory of the volume's credentials,
    read anew for each connection; None: unix sockets only."""

    def __init__(
        self,
        *,
        group: str,
        volume: str,
        vocabulary: Any,
        keys: Path | None = None,
        limits: LinkLimits | None = None,
        random: Callable[[int], bytes] = os.urandom,
        clock: Callable[[], float] = time.time,
        parting: Callable[[str], bytes] = lambda volume: b"",
        on_parting: Callable[[str, bytes], None] = lambda peer, told: None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """`on_event`: is told at once what else `events` would give. `parting`: what is said to a
        volume of the group that is no peer; `on_parting`: a peer has said so to this one."""
        self._parting = parting
        self._on_parting = on_parting
        self.group = group
        self.volume = volume
        self._vocabularies = (LinkMessage, vocabulary)
        self._keys = keys
        self._limits = limits or LinkLimits()
        self._random = random
        self._clock = clock
        self._incarnation = random(RANDOM_BYTES)
        self._attempts = 0
        self._strangers = 0
        self._turned_away = 0
        self.last_refusal = ""  # why a connection was turned away, for people
        self._logged = ("", -math.inf)
        self._peers: dict[str, _Peer] = {}
        self._nursery: trio.Nursery | None = None
        # No buffer: when `send` returns somebody has taken the event.
        self._out: trio.MemorySendChannel[Event]
        self.events: trio.MemoryReceiveChannel[Event]
        self._out, self.events = trio.open_memory_channel[Event](0)
        self._tell: Tell = self._out.send if on_event is None else partial(_told, on_event)

    # ---- for whoever uses it ----

    async def run(
        self,
        listen: Sequence[Address] = (),
        *,
        task_status: trio.TaskStatus[tuple[Address, ...]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled or `stop`ped; says where it listens once it does. TransportError,
        UsageError, TrustError if it can't. `events` ends with it."""
        if self._keys is not None:
            self._credentials()  # what is wrong with them is said now
        async with self._out, AsyncExitStack() as stack:
            listening = await self._listen(listen, stack)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    for serve, listener, _ in listening:
                        nursery.start_soon(trio.serve_listeners, serve, [listener])
                    for peer in self._peers.values():
                        self._dial_if_due(peer)
                    task_status.started(tuple(bound for _, _, bound in listening))
                    await trio.sleep_forever()
                finally:
                    self._nursery = None

    async def stop(self, why: str) -> None:
        """Says so to all peers, and makes `run` return. Somebody has to take the events still."""
        nursery, self._nursery = self._nursery, None
        for peer in self._peers.values():
            peer.is_member = False
            peer.changed.set()
            if peer.session is not None:
                peer.session.end(why, farewell=True)
        with trio.move_on_after(1.0):
            for peer in self._peers.values():
                async with peer.turn:
                    pass
        if nursery is not None:
            nursery.cancel_scope.cancel()

    def set_peers(self, peers: Mapping[str, Sequence[Address]]) -> None:
        """All peers there are from now on, and where to find those whom this end connects to."""
        assert self.volume not in peers
        for volume, peer in self._peers.items():
            if peer.is_member and volume not in peers:
                peer.is_member = False
                peer.changed.set()
                if peer.session is not None:
                    peer.session.end("the volume is no longer a peer", farewell=True)
        for volume, addresses in peers.items():
            peer = self._peers.setdefault(volume, _Peer(volume))
            peer.is_member = True
            peer.addresses = tuple(addresses)
            peer.changed.set()
            self._dial_if_due(peer)

    async def send(self, peer: str, message: object, *, session: int | None = None) -> None:
        """Queued on return; waits for room. Given a `session`, in that one only. LinkDown: it was
        not sent, and won't be; WireError: it is too large."""
        await self._session(peer, session).send(message)

    def send_nowait(self, peer: str, message: object, *, session: int | None = None) -> None:
        """As `send`, without waiting: for the small messages that must not wait behind `send`."""
        self._session(peer, session).send_nowait(message)

    async def inquire(self, volume: str) -> None:
        """Connects to a peer that should do so itself, only to hear why it refuses: this volume
        may be no peer there any more."""
        peer = self._peers.get(volume)
        if peer is None or not peer.is_member or peer.session is not None:
            return
        for address in peer.addresses:
            self._attempts += 1
            with trio.move_on_after(self._limits.handshake_s_max):
                try:
                    framed = await self._reach(peer, address, self._attempts)
                except RaidfsError as error:
                    log.debug("group link: asked at %s: %s", address, error)
                    continue
                await framed.close()

    def states(self) -> dict[str, PeerState]:
        """Of all peers, by volume."""
        return {
            volume: PeerState(
                peer.session is not None and not peer.session.why,
                0 if peer.session is None else peer.session.number,
                peer.address,
                peer.why,
                0 if peer.session is None else peer.session.queued_bytes,
                peer.traffic,
            )
            for volume, peer in self._peers.items()
            if peer.is_member
        }

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        traffic = [peer.traffic for peer in self._peers.values()]
        return {
            "peers": sum(peer.is_member for peer in self._peers.values()),
            "peers_up": sum(state.is_up for state in self.states().values()),
            "attempts": self._attempts,
            "turned_away": self._turned_away,
            "sessions": sum(one.sessions for one in traffic),
            "sent": sum(one.sent for one in traffic),
            "sent_bytes": sum(one.sent_bytes for one in traffic),
            "received": sum(one.received for one in traffic),
            "received_bytes": sum(one.received_bytes for one in traffic),
        }

    def _session(self, volume: str, number: int | None) -> Session:
        peer = self._peers.get(volume)
        if peer is None or peer.session is None:
            why = peer.why if peer is not None else "it is no peer"
            raise LinkDown(f"there is no session with {volume}: {why}")
        if number not in (None, peer.session.number):
            raise LinkDown(f"session {number} with {volume} has ended")
        return peer.session

    def _credentials(self) -> Credentials:
        if self._keys is None:
            raise UsageError("TCP needs certificates: this volume has none")
        found = Credentials.load(self._keys)
        if (found.group, found.volume) != (self.group, self.volume):
            raise TrustError(f"the certificate in {self._keys} is of another group or volume")
        if found.expires_s <= self._clock():
            raise TrustError(
                "this volume's certificate has expired; renew it by a token: raidfs-ctl group"
                " invite on the keeper's host, then raidfs-ctl group join --renew here"
            )
        return found

    # ---- connecting ----

    def _dial_if_due(self, peer: _Peer) -> None:
        if self._nursery is None or peer.is_dialed or not peer.is_member:
            return
        if self.volume < peer.volume:
            peer.is_dialed = True
            self._nursery.start_soon(self._dial, peer)

    async def _dial(self, peer: _Peer) -> None:
        limits = self._limits
        delay_s = limits.retry_s_min
        while peer.is_member:
            peer.changed = trio.Event()
            for address in peer.addresses:
                lived_s = await self._attempt(peer, address)
                if lived_s is not None:
                    delay_s = limits.retry_s_min if lived_s > STABLE_S else delay_s
                    break
            jitter = 0.5 + self._random(1)[0] / 512  # peers of one that died don't come all at once
            with trio.move_on_after(delay_s * jitter):
                await peer.changed.wait()
            delay_s = min(delay_s * 2, limits.retry_s_max)
        peer.is_dialed = False

    async def _attempt(self, peer: _Peer, address: Address) -> float | None:
        """One connection, and the session on it until that ends. For how long there was one, in
        seconds; None: for none at all."""
        self._attempts += 1
        attempt = self._attempts
        try:
            with trio.fail_after(self._limits.handshake_s_max):
                framed = await self._reach(peer, address, attempt)
        except trio.TooSlowError:
            peer.why = f"{address} doesn't answer"
            return None
        except RaidfsError as error:  # of TCP, TLS, the keys or the handshake
            peer.why = f"{address}: {error}"
            return None
        begun = trio.current_time()
        async with peer.turn:
            await self._hold(peer, framed, str(address))
        return trio.current_time() - begun

    async def _reach(self, peer: _Peer, address: Address, attempt: int) -> Framed:
        stream: Stream
        if isinstance(address, UnixAddress):
            stream = await connect_unix(address)
        else:
            context = self._credentials().client_context(PROTOCOL)
            raw = await connect_tcp(address)
            stream, volume = await secured(raw, context, PROTOCOL, listening=False)
            if volume != peer.volume:
                await trio.aclose_forcefully(stream)
                raise TrustError(f"volume {volume} is there, not {peer.volume}")
        framed = Framed(stream, self._vocabularies, bytes_max=HANDSHAKE_BYTES_MAX)
        try:
            await self._introduce(framed, peer.volume, attempt)
        except BaseException:
            await framed.close()
            raise
        return framed

    async def _introduce(self, framed: Framed, peer: str, attempt: int) -> None:
        """The connector's side of the handshake. TransportError, WireError."""
        own = self._hello(peer, attempt)
        await framed.say(Kind.LINK, own)
        other = await self._hear_link(framed, Hello, peer)
        why = self._objection(other)
        if not why and other.volume != peer:
            why = f"volume {other.volume} is there, not {peer}"
        if why:
            await framed.say(Kind.LINK, Refusal(why))
            raise RefusedError(why)
        forth, back = _directions(own, other)
        framed.outgoing.enter(forth)
        framed.incoming.enter(back)
        await framed.say(Kind.LINK, Ready())
        await self._hear_link(framed, Ready)

    # ---- accepting ----

    async def _listen(
        self, addresses: Sequence[Address], stack: AsyncExitStack
    ) -> list[tuple[Serve, trio.SocketListener, Address]]:
        """The listeners, who serves what they accept, and where they really listen."""
        found: list[tuple[Serve, trio.SocketListener, Address]] = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                listener = await stack.enter_async_context(listen_unix(address.path))
                found.append((partial(self._serve, is_tcp=False), listener, address))
                continue
            self._credentials()
            for listener in await listen_tcp(address):
                await stack.enter_async_context(listener)
                serve = partial(self._serve, is_tcp=True)
                found.append((serve, listener, bound_address(listener)))
        return found

    async def _serve(self, raw: trio.SocketStream, *, is_tcp: bool) -> None:
        """One connection that somebody has made, until it ends."""
        peer: _Peer | None = None
        stream: Stream = raw
        try:
            if self._strangers >= self._limits.strangers_max:
                raise RefusedError("there are too many connections whose other end isn't known yet")
            self._strangers += 1
            try:
                with trio.fail_after(self._limits.handshake_s_max):
                    framed, said = await self._welcome(raw, is_tcp)
                    stream = framed.stream
                    peer = await self._admit(framed, said)
            finally:
                self._strangers -= 1
            await self._hold(peer, framed, "")
        except trio.TooSlowError:
            self._turn_away("somebody connected and didn't introduce themselves in time")
        except RaidfsError as error:
            self._turn_away(str(error))
        finally:
            if peer is not None:
                peer.turn.release()
            await trio.aclose_forcefully(stream)

    async def _welcome(self, raw: trio.SocketStream, is_tcp: bool) -> tuple[Framed, Hello]:
        """Who is there, and is now. TransportError, TrustError, WireError."""
        stream: Stream = raw
        certified = ""
        if is_tcp:
            context = self._credentials().server_context(PROTOCOL)
            stream, certified = await secured(raw, context, PROTOCOL, listening=True)
        else:
            check_credentials(raw.socket)
        framed = Framed(stream, self._vocabularies, bytes_max=HANDSHAKE_BYTES_MAX)
        other = await self._hear_link(framed, Hello)
        why = self._objection(other)
        if not why and is_tcp and certified != other.volume:
            why = f"the certificate is that of volume {certified}, not {other.volume}"
        if not why and other.volume >= self.volume:
            why = "of two volumes the one with the smaller id connects"
        if why:
            is_itself = not is_tcp or certified == other.volume
            known = is_itself and (other.group, other.peer) == (self.group, self.volume)
            parting = self._parting(other.volume) if known else b""
            await framed.say(Kind.LINK, Refusal(why, parting))
            raise RefusedError(f"{other.volume}: {why}")
        own = self._hello(other.volume, 0)
        await framed.say(Kind.LINK, own)
        forth, back = _directions(other, own)
        framed.outgoing.enter(back)
        framed.incoming.enter(forth)
        await self._hear_link(framed, Ready)
        return framed, other

    async def _admit(self, framed: Framed, said: Hello) -> _Peer:
        """Has the peer's turn on return: nobody else has a session with it."""
        peer = self._peers[said.volume]
        if not _is_later(said, peer.latest):
            await framed.say(Kind.LINK, Refusal("a later connection of the same peer is there"))
            raise RefusedError(f"{said.volume}: an old connection came after a newer one")
        peer.latest = said
        if peer.session is not None:
            peer.session.end("the peer has connected anew")
        await peer.turn.acquire()
        try:
            if peer.latest is not said or not peer.is_member:
                raise RefusedError(f"{said.volume}: it connected anew meanwhile, or was removed")
            await framed.say(Kind.LINK, Ready())
        except BaseException:
            peer.turn.release()
            raise
        return peer

    def _turn_away(self, why: str) -> None:
        """Counted, and logged, but once a second at most, and the same thing once a minute."""
        self._turned_away += 1
        self.last_refusal = why
        now = trio.current_time()
        since_s = now - self._logged[1]
        if since_s > 60 or (why != self._logged[0] and since_s > 1):
            log.warning("group link: a connection was turned away: %s", why)
            self._logged = (why, now)

    # ---- both ----

    def _hello(self, peer: str, attempt: int) -> Hello:
        nonce = self._random(RANDOM_BYTES)
        return Hello(VERSION, self.group, self.volume, peer, nonce, self._incarnation, attempt)

    def _objection(self, other: Hello) -> str:
        """Why there can be no session with who says that; "" if there can."""
        if other.version != VERSION:
            return f"this end speaks version {VERSION} of the protocol, the other {other.version}"
        if other.group != self.group:
            return "the volumes are in different groups"
        if other.peer != self.volume:
            return f"this is volume {self.volume}, not {other.peer}"
        peer = self._peers.get(other.volume)
        if peer is None or not peer.is_member:
            return f"volume {other.volume} is not a peer here"
        return ""

    async def _hear_link(self, framed: Framed, expected: type[Any], peer: str = "") -> Any:
        """The next word of the handshake, by that peer. TransportError if it is another,
        WireError."""
        kind, message = await framed.hear()
        if kind == Kind.LINK and isinstance(message, Refusal):
            if peer and message.parting:
                self._on_parting(peer, message.parting)
            raise RefusedError(f"it refused: {message.why[:REASON_CHARS_MAX]}")
        if kind != Kind.LINK or not isinstance(message, expected):
            raise RefusedError("it didn't keep to the handshake")
        return message

    async def _hold(self, peer: _Peer, framed: Framed, address: str) -> None:
        """A session from its beginning to its end. The caller has the peer's turn."""
        traffic = peer.traffic
        traffic.sessions += 1
        session = Session(peer.volume, traffic.sessions, framed, self._limits, traffic)
        peer.session, peer.address, peer.why = session, address, ""
        if not peer.is_member:
            session.end("the volume is no longer a peer", farewell=True)
        try:
            await session.run(self._tell)
        finally:
            peer.session, peer.why = None, session.why
        if session.is_told:
            await self._tell(SessionDown(peer.volume, session.number, session.why))


async def _told(on_event: Callable[[Event], None], event: Event) -> None:
    """Others get their turn after each event; whoever has told it always hears so."""
    on_event(event)
    await trio.lowlevel.cancel_shielded_checkpoint()


def _is_later(said: Hello, latest: Hello | None) -> bool:
    """Whether a connection replaces the one before it."""
    if latest is None or said.incarnation != latest.incarnation:
        return True
    return said.attempt > latest.attempt


def _directions(connector: Hello, acceptor: Hello) -> tuple[bytes, bytes]:
    """The names of a session's two directions: from the connector, and back."""
    both = msgspec.msgpack.encode((connector, acceptor))
    names = [
        hashlib.blake2b(both, digest_size=16, person=person).digest()
        for person in (b"raidfs-link-from", b"raidfs-link-to")
    ]
    return names[0], names[1]
