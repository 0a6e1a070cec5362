"""Sessions between daemons over real sockets and real TLS: who gets one, and what arrives."""

import logging
import os
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import trio
from group_rig import (
    FAST,
    GROUP,
    OTHER_GROUP,
    A,
    B,
    C,
    D,
    Rig,
    ended,
    enrolled,
    nothing_comes,
    taken,
)

from raidfs.errors import UsageError
from raidfs.group import link, transport
from raidfs.group.authority import Authority
from raidfs.group.events import Received, SessionDown, SessionUp
from raidfs.group.keys import Credentials, TrustError
from raidfs.group.link import PROTOCOL, Hello, Links, Ready, Refusal
from raidfs.group.messages import Message, Query, Transfer
from raidfs.group.session import Alive, Farewell, Kind, LinkDown
from raidfs.group.transport import (
    Framed,
    TcpAddress,
    TransportError,
    UnixAddress,
    connect_tcp,
    connect_unix,
    parse_address,
    secured,
)
from raidfs.group.wire import HANDSHAKE, Outgoing, WireError

pytestmark = pytest.mark.trio


@pytest.fixture(params=["unix", "tls"])
def rig(request, tmp_path, nursery):
    return Rig(tmp_path, nursery, is_tls=request.param == "tls")


@pytest.fixture
def unix_rig(tmp_path, nursery):
    return Rig(tmp_path, nursery)


@pytest.fixture
def tls_rig(tmp_path, nursery):
    return Rig(tmp_path, nursery, is_tls=True)


def message(number, size=0):
    return Transfer(number.to_bytes(16, "little"), "offer", bytes(size))


def number_of(event):
    assert isinstance(event, Received), event
    return int.from_bytes(event.message.move, "little")


# ---- what arrives ----


async def test_messages_arrive_in_order_both_ways(rig):
    one, two, _ = await rig.pair()

    async def talk(links, peer):
        for number in range(600):
            await links.send(peer, message(number, number % 7 * 3000))

    async def listen(links, peer):
        for number in range(600):
            event = await taken(links)
            assert (event.peer, event.session, number_of(event)) == (peer, 1, number)
            assert len(event.message.payload) == number % 7 * 3000

    async with trio.open_nursery() as nursery:
        for links, peer in ((one, B), (two, A)):
            nursery.start_soon(talk, links, peer)
            nursery.start_soon(listen, links, peer)
    for links, peer in ((one, B), (two, A)):
        state = links.states()[peer]
        assert (state.is_up, state.session, state.queued_bytes) == (True, 1, 0)
        assert (state.traffic.sent, state.traffic.received) == (600, 600)
        assert state.traffic.received_bytes > 600 * 9000 - 9000
        assert links.statistics()["peers_up"] == links.statistics()["sessions"] == 1


async def test_every_pair_has_one_session(rig):
    """Whoever comes first: the smaller id tries until the other is there."""
    volumes = [D, B, A, C]
    places = {volume: rig.unix(volume) for volume in volumes}
    if rig.is_tls:
        for volume in volumes:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                places[volume] = TcpAddress(*probe.getsockname())
    all_links = {}
    for volume in volumes:
        links = all_links[volume] = rig.links(volume)
        links.set_peers({other: [places[other]] for other in volumes if other != volume})
        await rig.nursery.start(partial(links.run, [places[volume]]))
        await trio.sleep(0.02)
    for volume, links in all_links.items():
        ups = [await taken(links) for _ in range(3)]
        assert {up.peer for up in ups} == set(volumes) - {volume}
        assert all(up == SessionUp(up.peer, 1) for up in ups)
    for volume, links in all_links.items():
        for other in volumes:
            if other != volume:
                links.send_nowait(other, Query(b"q" * 16, volume), session=1)
    for volume, links in all_links.items():
        events = [await taken(links) for _ in range(3)]
        assert {(e.peer, e.message.initiator) for e in events} == {
            (other, other) for other in volumes if other != volume
        }
        assert links.statistics()["sessions"] == 3


async def test_a_message_too_large_harms_nothing(rig):
    one, two, _ = await rig.pair()
    with pytest.raises(WireError):
        await one.send(B, message(0, 1 << 20))
    with pytest.raises(WireError):
        one.send_nowait(B, message(0, 1 << 20))
    await one.send(B, message(1))
    assert number_of(await taken(two)) == 1


async def test_what_came_before_the_end_of_a_session_is_a_prefix(rig):
    one, two, wire = await rig.pair(wire=True)

    async def talk():
        number = 0
        with pytest.raises(LinkDown):
            while True:
                await one.send(B, message(number, 20_000), session=1)
                number += 1

    rig.nursery.start_soon(talk)
    for number in range(50):
        assert number_of(await taken(two)) == number
    await wire.cut()
    number = 50
    while isinstance(event := await taken(two), Received):
        assert (number_of(event), event.session) == (number, 1)
        number += 1
    assert event == SessionDown(A, 1, event.why)
    assert (await taken(one)) == SessionDown(B, 1, one.states()[B].why)
    assert await taken(two) == SessionUp(A, 2)
    assert await taken(one) == SessionUp(B, 2)
    with pytest.raises(LinkDown):
        one.send_nowait(B, message(999), session=1)
    one.send_nowait(B, message(1000), session=2)
    event = await taken(two)
    assert (number_of(event), event.session) == (1000, 2)


# ---- room ----


@pytest.mark.slow
async def test_a_peer_that_takes_nothing_holds_up_the_sender_and_loses_nothing(rig):
    """Longer than silence: who isn't listened to isn't silent."""
    limits = replace(FAST, silence_s_max=0.5, queue_bytes_max=100_000)
    one, two, _ = await rig.pair(limits)
    sent = []

    async def talk():
        for number in range(300):
            await one.send(B, message(number, 100_000))
            sent.append(number)

    rig.nursery.start_soon(talk)
    await trio.sleep(1.2)
    stuck = len(sent)
    assert 0 < stuck < 250  # what sockets take, and the queue
    assert one.states()[B].queued_bytes < 100_000 + 2 * (1 << 20)
    assert one.states()[B].is_up and two.states()[A].is_up
    for number in range(300):
        assert number_of(await taken(two)) == number
    assert one.states()[B].session == two.states()[A].session == 1


@pytest.mark.slow
async def test_who_waits_for_room_goes_in_turn_and_may_give_up(unix_rig):
    limits = replace(FAST, queue_bytes_max=100_000)
    one, two, _ = await unix_rig.pair(limits)
    number = 0
    with trio.move_on_after(0.3):
        while True:
            await one.send(B, message(number, 60_000))
            number += 1
    scopes = {}

    async def send_one(which):
        with trio.CancelScope() as scopes[which]:
            await one.send(B, message(which))

    for which in range(number, number + 20):
        unix_rig.nursery.start_soon(send_one, which)
        while which not in scopes:
            await trio.sleep(0)
    one.send_nowait(B, message(10_000))  # has a reserve, and is first
    given_up = number + 7
    scopes[given_up].cancel()
    wanted = [*range(number), 10_000, *(w for w in range(number, number + 20) if w != given_up)]
    assert [number_of(await taken(two)) for _ in wanted] == wanted
    await nothing_comes(two, 0.1)


async def test_a_peer_that_takes_not_even_urgent_messages_loses_the_session(unix_rig):
    limits = replace(FAST, queue_bytes_max=100_000, reserve_bytes=100_000)
    one, two, _ = await unix_rig.pair(limits)
    sent = 0
    told = trio.Event()

    async def wait_for_room():
        with pytest.raises(LinkDown):
            while True:
                await one.send(B, message(0, 1000))
        told.set()

    unix_rig.nursery.start_soon(wait_for_room)
    await trio.sleep(0.2)
    with pytest.raises(LinkDown):
        while True:
            one.send_nowait(B, message(sent, 50_000))
            sent += 1
    assert sent * 50_000 < 4 << 20
    assert not one.states()[B].is_up
    with trio.fail_after(1):
        await told.wait()
    assert await taken(one) == SessionDown(B, 1, "it doesn't take what is sent to it")
    assert await ended(two)


# ---- silence, and coming again ----


@pytest.mark.slow
async def test_an_idle_session_lives_and_a_dead_wire_ends_it_at_both_ends(rig):
    limits = replace(FAST, alive_s=0.05, silence_s_max=0.4)
    one, two, wire = await rig.pair(limits, wire=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nothing_comes, one, 1.2)
        nursery.start_soon(nothing_comes, two, 1.2)
    wire.is_stopped = True
    began = time.monotonic()
    said = [await ended(one), await ended(two)]
    assert any("nothing was heard of it for 0.4 s" in why for why in said)  # who noticed first
    assert all("nothing was heard" in why or "has closed" in why for why in said)
    assert 0.2 < time.monotonic() - began < 5
    assert not one.states()[B].is_up
    with pytest.raises(LinkDown, match="no session with"):
        one.send_nowait(B, message(0))
    wire.is_stopped = False
    assert await taken(one) == SessionUp(B, 2)
    assert await taken(two) == SessionUp(A, 2)


@pytest.mark.slow
async def test_attempts_become_rarer(unix_rig):
    one = unix_rig.links(A, replace(FAST, retry_s_min=0.02, retry_s_max=0.4))
    one.set_peers({B: [unix_rig.unix(B)]})
    await unix_rig.start(one)
    await trio.sleep(1.0)
    assert 4 <= one.statistics()["attempts"] <= 12  # not 50
    assert "No such file" in one.states()[B].why
    two = unix_rig.links(B)
    two.set_peers({A: ()})
    await unix_rig.start(two)
    assert await taken(one) == SessionUp(B, 1)


async def test_a_second_address_is_tried(rig):
    two = rig.links(B)
    two.set_peers({A: ()})
    address = await rig.start(two)
    one = rig.links(A)
    one.set_peers({B: [UnixAddress(rig.directory / "nobody"), address]})
    await rig.start(one)
    assert await taken(one) == SessionUp(B, 1)
    assert one.states()[B].address == str(address)


async def test_a_peer_that_was_restarted_replaces_what_it_was(rig):
    """The old one isn't known to be gone: its wire swallows everything, also the end."""
    limits = replace(FAST, silence_s_max=60.0, alive_s=1.0)
    _, two, wire = await rig.pair(limits, wire=True)
    wire.is_stopped = True
    again = rig.links(A, limits)
    again.set_peers({B: [wire.address]})
    await rig.start(again)
    assert await taken(two) == SessionDown(A, 1, "the peer has connected anew")
    assert await taken(two) == SessionUp(A, 2)
    assert await taken(again) == SessionUp(B, 1)
    two.send_nowait(A, message(5), session=2)
    assert number_of(await taken(again)) == 5


async def test_the_new_session_waits_until_the_end_of_the_old_was_taken(unix_rig):
    one, two, wire = await unix_rig.pair(wire=True)
    await wire.cut()
    assert await ended(one)
    await nothing_comes(one, 0.3)  # nobody has taken SessionDown at the other end
    assert two.events.statistics().tasks_waiting_send == 1
    assert isinstance(await taken(two), SessionDown)
    assert isinstance(await taken(two), SessionUp)
    assert isinstance(await taken(one), SessionUp)


async def test_peers_come_and_go(rig):
    one, two, wire = await rig.pair()
    two.send_nowait(A, message(1))
    two.set_peers({})
    assert number_of(await taken(one)) == 1  # said before
    assert await ended(one) == "it ended the session: the volume is no longer a peer"
    assert await ended(two) == "the volume is no longer a peer"
    assert two.states() == {}
    with pytest.raises(LinkDown):
        two.send_nowait(A, message(2))
    with trio.fail_after(5):
        while "is not a peer here" not in one.states()[B].why:
            await trio.sleep(0.01)
    two.set_peers({A: ()})
    assert await taken(one) == SessionUp(B, 2)
    assert await taken(two) == SessionUp(A, 2)
    one.set_peers({})
    one.set_peers({B: [wire.address]})
    assert await ended(one)
    assert await ended(two)
    assert await taken(one) == SessionUp(B, 3)


async def test_stop_says_why_and_ends_everything(rig):
    one, two, _ = await rig.pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.stop, "unmounted")
        assert await ended(one) == "unmounted"
    assert await ended(two) == "it ended the session: unmounted"
    with trio.fail_after(5), pytest.raises(trio.EndOfChannel):
        await one.events.receive()
    with pytest.raises(LinkDown):
        await two.send(A, message(1))


# ---- who is turned away ----


class Impostor:
    """Says what it likes, in frames."""

    def __init__(self, stream, speaks_for=A, group=GROUP):
        self.framed = Framed(stream, (link.LinkMessage, Message), bytes_max=1 << 20)
        self.hello = Hello(1, group, speaks_for, B, b"n" * 16, b"i" * 16, 1)

    async def begin(self, **changes):
        """Says Hello, and gives the answer."""
        hello = Hello(
            **{name: getattr(self.hello, name) for name in Hello.__struct_fields__} | changes
        )
        await self.framed.say(Kind.LINK, hello)
        answer = (await self.framed.hear()).message
        if isinstance(answer, Hello):
            forth, back = link._directions(hello, answer)
            self.framed.outgoing.enter(forth)
            self.framed.incoming.enter(back)
        return answer

    async def finish(self):
        await self.framed.say(Kind.LINK, Ready())
        return (await self.framed.hear()).message

    async def is_left(self):
        """Whether the other end hangs up without a word."""
        with trio.fail_after(10), pytest.raises(TransportError):
            while isinstance((await self.framed.hear()).message, Alive):
                pass
        return True


async def acceptor(rig, **changes):
    """B, which takes A for a peer."""
    links = rig.links(B, **changes)
    links.set_peers({A: (), C: ()})
    return links, await rig.start(links)


async def refused_with(links, why):
    """Waits until the other end has seen it, too."""
    with trio.fail_after(5):
        while why not in links.last_refusal:
            await trio.sleep(0.005)


async def knock(address, **changes):
    return Impostor(await connect_unix(address), **changes)


async def test_who_keeps_to_the_handshake_is_let_in(unix_rig):
    """So that what is turned away below, is for its one fault."""
    links, address = await acceptor(unix_rig)
    guest = await knock(address)
    assert (await guest.begin()).volume == B
    assert await guest.finish() == Ready()
    assert await taken(links) == SessionUp(A, 1)
    await guest.framed.say(Kind.MESSAGE, message(3))
    assert number_of(await taken(links)) == 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 2}, "version 1 of the protocol, the other 2"),
        ({"group": OTHER_GROUP}, "different groups"),
        ({"peer": C}, "not " + C),
        ({"volume": D}, "is not a peer here"),
        ({"volume": C}, "smaller id connects"),
        ({"volume": B}, "is not a peer here"),
    ],
)
async def test_a_wrong_introduction_is_refused_with_the_reason(unix_rig, changes, why):
    links, address = await acceptor(unix_rig)
    guest = await knock(address)
    answer = await guest.begin(**changes)
    assert isinstance(answer, Refusal) and why in answer.why
    assert await guest.is_left()
    await nothing_comes(links, 0.05)
    assert links.statistics()["turned_away"] == 1 and links.statistics()["sessions"] == 0


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4,
        Outgoing(HANDSHAKE).frame(Kind.LINK, Ready()),
        Outgoing(HANDSHAKE).frame(Kind.LINK, Alive()),
        Outgoing(HANDSHAKE).frame(Kind.MESSAGE, message(1)),
        Outgoing(HANDSHAKE).frame(Kind.LINK, Refusal("x")),
        Outgoing(b"s" * 16).frame(Kind.LINK, Hello(1, GROUP, A, B, b"n" * 16, b"i" * 16, 1)),
        Outgoing(HANDSHAKE).frame(Kind.LINK, Hello(1, GROUP, "", B, b"n" * 16, b"i" * 16, 1)),
        Outgoing(HANDSHAKE).frame(Kind.LINK, Farewell("x" * 1001)),
    ],
)
async def test_what_is_no_introduction_gets_no_answer(unix_rig, first):
    links, address = await acceptor(unix_rig)
    stream = await connect_unix(address)
    await stream.send_all(first)
    with trio.fail_after(5):
        with suppress(trio.BrokenResourceError):  # it hung up while more was on its way
            assert await stream.receive_some() == b""
    await nothing_comes(links, 0.05)
    assert links.statistics()["turned_away"] == 1


async def test_a_session_begins_with_ready_and_nothing_else(unix_rig):
    links, address = await acceptor(unix_rig)
    for word in (message(1), Alive(), Farewell("x")):
        guest = await knock(address)
        await guest.begin()
        kind = Kind.MESSAGE if isinstance(word, Transfer) else Kind.LINK
        await guest.framed.say(kind, word)
        assert await guest.is_left()
    guest = await knock(address)
    await guest.begin()
    await guest.finish()
    assert await taken(links) == SessionUp(A, 1)
    await guest.framed.say(Kind.LINK, Ready())
    assert "belongs to a handshake" in await ended(links)


async def test_other_users_are_turned_away(unix_rig):
    """The kernel's word counts, whatever the socket's mode lets through."""
    links, address = await acceptor(unix_rig)
    path = address.path
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.geteuid() == 0, "this test changes the user of a process"
    stranger = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "d = os.open(sys.argv[1], os.O_PATH)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s.connect(f'/proc/self/fd/{d}/' + sys.argv[2])\n"
        "try: s.sendall(bytes.fromhex(sys.argv[3])); print(s.recv(100))\n"
        "except OSError: print(b'')\n"
    )
    hello = Outgoing().frame(Kind.LINK, Hello(1, GROUP, A, B, b"n" * 16, b"i" * 16, 1))
    path.chmod(0o666)
    path.parent.chmod(0o711)
    command = ["python3", "-c", stranger, str(path.parent), path.name, hello.hex()]
    with trio.fail_after(10):
        done = await trio.run_process(command, capture_stdout=True)
    assert done.stdout == b"b''\n"
    await refused_with(links, "user 65534 has no business here")
    await nothing_comes(links, 0.05)


async def test_a_socket_of_another_user_is_not_talked_to(unix_rig, monkeypatch):
    links, address = await acceptor(unix_rig)
    monkeypatch.setattr(transport, "check_credentials", _deny)
    with pytest.raises(TransportError):
        await connect_unix(address)
    await nothing_comes(links, 0.05)


def _deny(connection):
    raise TransportError("user 1000 has no business here")


async def test_recorded_connections_and_frames_get_nowhere(unix_rig):
    """Everything that A ever said is said again, on a new connection and into the one that is."""
    one, two, wire = await unix_rig.pair(wire=True)
    for number in range(3):
        one.send_nowait(B, message(number))
    assert [number_of(await taken(two)) for _ in range(3)] == [0, 1, 2]
    recorded = bytes(wire.forth)
    again = await connect_unix(wire.address)
    await again.send_all(recorded)
    with trio.fail_after(5):
        assert b"hello" in await again.receive_some()
        with trio.move_on_after(1), pytest.raises(trio.BrokenResourceError):
            while await again.receive_some():
                pass
            raise trio.BrokenResourceError
    await nothing_comes(two, 0.05)  # and what there was, goes on
    assert two.states()[A].session == 1 and two.states()[A].is_up
    one.send_nowait(B, message(3))
    assert number_of(await taken(two)) == 3
    await wire.inject(_last_message(wire.forth))
    why = await ended(two)
    assert "came where" in why
    assert await ended(one)
    assert await taken(two) == SessionUp(A, 2)


async def test_a_recording_of_a_former_life_gets_nowhere(unix_rig):
    """The acceptor knows a later life of A by now, and could take the recording for a newer one."""
    one, two, wire = await unix_rig.pair(wire=True)
    one.send_nowait(B, message(1))
    assert number_of(await taken(two)) == 1
    recorded = bytes(wire.forth)
    unix_rig.nursery.start_soon(one.stop, "restart")
    assert await ended(one) and await ended(two)
    again = unix_rig.links(A)
    again.set_peers({B: [wire.address]})
    await unix_rig.start(again)
    assert await taken(two) == SessionUp(A, 2)
    assert await taken(again) == SessionUp(B, 1)
    stream = await connect_unix(wire.address)
    await stream.send_all(recorded)
    await refused_with(two, "another session")
    await nothing_comes(two, 0.05)
    assert two.states()[A].is_up


def _last_message(stream):
    """The last frame that holds a Transfer."""
    at, found = 0, b""
    while at < len(stream):
        end = at + 4 + int.from_bytes(stream[at : at + 4], "little")
        if b"transfer" in stream[at:end]:
            found = bytes(stream[at:end])
        at = end
    assert found
    return found


async def test_frames_of_an_earlier_session_get_nowhere(unix_rig):
    one, two, wire = await unix_rig.pair(wire=True)
    one.send_nowait(B, message(1))
    assert number_of(await taken(two)) == 1
    old = _last_message(wire.forth)
    await wire.cut()
    assert await ended(two) and await ended(one)
    assert await taken(two) == SessionUp(A, 2) and await taken(one) == SessionUp(B, 2)
    await wire.inject(old)
    assert "another session" in await ended(two)


async def test_what_was_said_does_not_come_back_as_said_to_oneself(unix_rig):
    one, two, wire = await unix_rig.pair(wire=True)
    two.send_nowait(A, message(1))
    assert number_of(await taken(one)) == 1
    await wire.inject(_last_message(wire.back))
    assert "another session" in await ended(two)


async def test_of_two_connections_the_later_begun_stays(unix_rig):
    links, address = await acceptor(unix_rig)
    first, second, third = [await knock(address) for _ in range(3)]
    for guest, attempt in ((first, 1), (second, 3), (third, 2)):
        assert isinstance(await guest.begin(attempt=attempt), Hello)
    assert await first.finish() == Ready()
    assert await taken(links) == SessionUp(A, 1)
    await second.framed.say(Kind.LINK, Ready())
    assert isinstance(await taken(links), SessionDown)
    assert (await second.framed.hear()).message == Ready()
    assert await taken(links) == SessionUp(A, 2)
    answer = await third.finish()
    assert isinstance(answer, Refusal) and "later connection" in answer.why
    await second.framed.say(Kind.MESSAGE, message(1))
    assert number_of(await taken(links)) == 1


async def test_of_connections_that_wait_the_later_begun_stays_too(unix_rig):
    """None gets in before the end of the one before was taken."""
    links, address = await acceptor(unix_rig)
    guests = [await knock(address) for _ in range(4)]
    for attempt, guest in enumerate(guests):
        await guest.begin(attempt=attempt)
    assert await guests[0].finish() == Ready()
    assert await taken(links) == SessionUp(A, 1)
    for guest in guests[1:]:
        await guest.framed.say(Kind.LINK, Ready())
        await trio.sleep(0.05)
    assert isinstance(await taken(links), SessionDown)
    assert (await guests[3].framed.hear()).message == Ready()
    assert await taken(links) == SessionUp(A, 2)
    assert await guests[1].is_left() and await guests[2].is_left()
    await nothing_comes(links, 0.05)


@pytest.mark.slow
async def test_those_who_say_nothing_cost_little_and_not_for_long(rig):
    limits = replace(FAST, handshake_s_max=0.5, strangers_max=5)
    two, address = await acceptor(rig, limits=limits)
    silent = []
    for _ in range(5):
        if rig.is_tls:
            silent.append(await connect_tcp(address))
        else:
            silent.append(await connect_unix(address))
    await trio.sleep(0.05)
    extra = await (connect_tcp if rig.is_tls else connect_unix)(address)
    with trio.fail_after(0.4):
        assert await extra.receive_some() == b""
    one = rig.links(A)
    one.set_peers({B: [address]})
    await rig.start(one)
    assert await taken(one, 5) == SessionUp(B, 1)  # they had to leave
    for stream in silent:
        assert await stream.receive_some() == b""
    assert await taken(two) == SessionUp(A, 1)
    assert two.statistics()["turned_away"] >= 6


async def test_a_flood_of_strangers_does_not_flood_the_log(unix_rig, caplog):
    caplog.set_level(logging.WARNING)
    _, address = await acceptor(unix_rig)
    for turn in range(30):
        stream = await connect_unix(address)
        await stream.send_all(bytes([255, 255, 255, turn]))
        with trio.fail_after(5):
            await stream.receive_some()
    assert 1 <= len(caplog.records) <= 3


# ---- TLS ----


async def try_tls(address, context, alpn=PROTOCOL):
    """What becomes of a connection made so, when it comes to a Hello."""
    raw = await connect_tcp(address)
    with trio.fail_after(5):
        stream, volume = await secured(raw, context, alpn, listening=False)
        assert volume == B
        guest = Impostor(stream)
        return await guest.begin()


async def test_a_certificate_of_the_group_is_needed(tls_rig, tmp_path):
    links, address = await acceptor(tls_rig)
    good = enrolled(tls_rig.authority, tmp_path / "a", A).client_context(PROTOCOL)
    assert isinstance(await try_tls(address, good), Hello)

    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    nobody.set_alpn_protocols([PROTOCOL])
    with pytest.raises(TransportError):
        await try_tls(address, nobody)
    await refused_with(links, "did not return a certificate")

    foreign = Authority.create(tmp_path / "foreign", GROUP)
    stranger = enrolled(foreign, tmp_path / "stranger", A).client_context(PROTOCOL)
    with pytest.raises(TransportError, match="not accepted here"):
        await try_tls(address, stranger)  # it doesn't believe B either
    stranger.verify_mode = ssl.CERT_NONE
    with pytest.raises(TransportError):
        await try_tls(address, stranger)
    await refused_with(links, "not accepted here: ")
    await nothing_comes(links, 0.05)
    assert links.statistics()["turned_away"] >= 3


async def test_an_expired_certificate_opens_nothing(tls_rig, tmp_path):
    links, address = await acceptor(tls_rig)
    long_ago = Authority(tmp_path / "authority", clock=lambda: time.time() - 366 * 86400)
    expired = enrolled(long_ago, tmp_path / "a", A)
    assert expired.expires_s < time.time() and expired.is_due(time.time())
    with pytest.raises(TransportError):
        await try_tls(address, expired.client_context(PROTOCOL))
    await refused_with(links, "not accepted here: certificate has expired")
    await nothing_comes(links, 0.05)


async def test_a_certificate_of_tomorrow_opens_nothing(tls_rig, tmp_path):
    links, address = await acceptor(tls_rig)
    early = Authority(tmp_path / "authority", clock=lambda: time.time() + 86400)
    with pytest.raises(TransportError):
        await try_tls(address, enrolled(early, tmp_path / "a", A).client_context(PROTOCOL))
    await refused_with(links, "not accepted here: certificate is not yet valid")
    await nothing_comes(links, 0.05)


async def test_nobody_speaks_for_another_volume(tls_rig, tmp_path):
    links, address = await acceptor(tls_rig)
    other = enrolled(tls_rig.authority, tmp_path / "c", C)
    answer = await try_tls(address, other.client_context(PROTOCOL))
    assert isinstance(answer, Refusal) and f"that of volume {C}, not {A}" in answer.why
    await nothing_comes(links, 0.05)


async def test_older_tls_and_other_protocols_are_refused(tls_rig, tmp_path):
    links, address = await acceptor(tls_rig)
    credentials = enrolled(tls_rig.authority, tmp_path / "a", A)
    older = credentials.client_context(PROTOCOL)
    older.minimum_version = older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(TransportError):
        await try_tls(address, older)
    await refused_with(links, "unsupported protocol")
    with pytest.raises(TransportError):
        await try_tls(address, credentials.client_context("raidfs-join/1"), "raidfs-join/1")
    await refused_with(links, "doesn't speak raidfs-link/1")
    unnamed = credentials.client_context(PROTOCOL)
    unnamed.set_alpn_protocols([])
    with pytest.raises(TransportError):
        await try_tls(address, unnamed)
    plain = await connect_tcp(address)
    with pytest.raises(TransportError), trio.fail_after(5):
        await Impostor(plain).begin()
    await nothing_comes(links, 0.05)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("of another volume", f"volume {C} is there, not {B}"),
        ("expired", "certificate has expired"),
        ("foreign", "not accepted here"),
    ],
)
async def test_a_listener_that_is_not_the_peer_hears_nothing(tls_rig, tmp_path, kind, why):
    """It gets through with TLS at most; no word follows."""
    authority = tls_rig.authority
    if kind == "expired":
        authority = Authority(tmp_path / "authority", clock=lambda: time.time() - 366 * 86400)
    if kind == "foreign":
        authority = Authority.create(tmp_path / "foreign", GROUP)
    shown = enrolled(authority, tmp_path / "shown", C if kind == "of another volume" else B)
    heard = []

    async def listen(raw):
        context = shown.server_context(PROTOCOL)
        context.verify_mode = ssl.CERT_NONE
        try:
            stream, _ = await secured(raw, context, PROTOCOL, listening=True)
            heard.append(await stream.receive_some())
        except (TransportError, trio.BrokenResourceError):
            pass

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    tls_rig.nursery.start_soon(trio.serve_listeners, listen, listeners)
    one = tls_rig.links(A)
    one.set_peers({B: [transport.bound_address(listeners[0])]})
    await tls_rig.start(one)
    with trio.fail_after(5):
        while why not in one.states()[B].why:
            await trio.sleep(0.01)
    assert not any(heard)
    await nothing_comes(one, 0.05)


async def test_bytes_changed_on_the_way_end_the_session(tls_rig):
    one, two, wire = await tls_rig.pair(wire=True)
    await wire.inject(bytes(wire.forth[-60:]))
    assert "TLS" in await ended(two)
    assert await ended(one)
    assert await taken(two) == SessionUp(A, 2)


async def test_a_renewed_certificate_is_used_by_the_next_connection(tls_rig):
    one, two, wire = await tls_rig.pair(wire=True)
    keys = tls_rig.directory / f"keys-{A}"
    before = (keys / "volume.pem").read_bytes()
    tls_rig.authority.forget(A)
    enrolled(tls_rig.authority, keys, A)
    assert (keys / "volume.pem").read_bytes() != before
    tls_rig.authority.forget(A)
    await wire.cut()
    assert await ended(one) and await ended(two)
    assert await taken(one) == SessionUp(B, 2)


async def test_what_cannot_work_is_said_at_the_start(tmp_path, tls_rig):
    bare = Links(group=GROUP, volume=A, vocabulary=Message)
    with pytest.raises(UsageError, match="TCP needs certificates"):
        await bare.run([TcpAddress("127.0.0.1", 0)])
    with pytest.raises(TrustError, match="can't be read"):
        await Links(group=GROUP, volume=A, vocabulary=Message, keys=tmp_path / "none").run()
    enrolled(tls_rig.authority, tmp_path / "a", A)
    for group, volume in ((OTHER_GROUP, A), (GROUP, B)):
        links = Links(group=group, volume=volume, vocabulary=Message, keys=tmp_path / "a")
        with pytest.raises(TrustError, match="another group or volume"):
            await links.run()
    Credentials.load(tmp_path / "a")


async def test_addresses():
    for text in ("tcp:host:1", "tcp:[::1]:65535", "tcp::7", "unix:/run/x y", "tcp:10.0.0.1:0"):
        assert str(parse_address(text)) == text
    for text in (
        "",
        "tcp:",
        "tcp:host",
        "tcp:host:",
        "tcp:host:65536",
        "tcp:::1:5",
        "unix:run",
        "http://x:1",
        "tcp:host:-1",
        "tcp:host:٣",
        "host:1",
    ):
        with pytest.raises(UsageError, match="write tcp:HOST:PORT"):
            parse_address(text)
