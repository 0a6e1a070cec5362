"""TLS streams that send without waiting: in order, never stuck, and broken ones are noticed."""

import socket

import pytest
import trio
from group_rig import GROUP, A, B, Rig, enrolled, taken

from raidfs.group.authority import Authority
from raidfs.group.messages import Done, Transfer
from raidfs.group.tls import TlsStream

pytestmark = pytest.mark.trio

PROTOCOL = "test/1"


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """Of a client and a server."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority.create(directory / "authority", GROUP)
    one, two = (enrolled(authority, directory / volume, volume) for volume in (A, B))
    return one.client_context(PROTOCOL), two.server_context(PROTOCOL)


@pytest.fixture
async def ends(contexts):
    """Two ends of a small pipe, after the handshake."""
    raw = socket.socketpair()
    for one in raw:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in raw]
    made = [
        TlsStream(stream, context, listening=at == 1)
        for at, (stream, context) in enumerate(zip(streams, contexts, strict=True))
    ]
    async with trio.open_nursery() as nursery:
        for one in made:
            nursery.start_soon(one.do_handshake)
    yield made
    for one in made:
        await trio.aclose_forcefully(one)


async def received(stream, nbytes):
    found = bytearray()
    with trio.fail_after(20):
        while len(found) < nbytes:
            data = await stream.receive_some()
            assert data, "it ended"
            found += data
    return bytes(found)


async def test_what_is_sent_now_is_with_the_kernel(ends):
    """Nobody else had a turn."""
    here, there = ends
    assert here.send_now(b"word")
    assert there.raw.socket.fileno() >= 0
    waiting = socket.socket(fileno=socket.dup(there.raw.socket.fileno()))
    with waiting:
        assert len(waiting.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT)) > len(b"word")
    assert await received(there, 4) == b"word"


async def test_the_order_is_that_of_the_calls(ends):
    """Also when the pipe is full, and what was sent now has to wait for `send_all`."""
    here, there = ends
    words = [bytes([number]) * 3000 for number in range(60)]
    taken_at_once = [here.send_now(word) for word in words]
    assert taken_at_once[0] and not taken_at_once[-1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.send_all, b"last")
        assert await received(there, 60 * 3000 + 4) == b"".join([*words, b"last"])
    assert here.send_now(b"again")
    assert await received(there, 5) == b"again"


async def test_both_may_send_more_than_the_pipe_takes(ends):
    """Who receives doesn't wait until the other one receives."""
    data = bytes(300_000)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for one in ends:
                one.send_now(data)
                nursery.start_soon(one.send_all, data)
                nursery.start_soon(received, one, 2 * len(data))


async def test_an_end_without_a_word_is_a_broken_stream(ends):
    here, there = ends
    await trio.aclose_forcefully(here.raw)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await there.receive_some()


async def test_an_end_that_was_announced_is_an_end(ends):
    here, there = ends
    await here.aclose()
    with trio.fail_after(5):
        assert await there.receive_some() == b""


async def test_bytes_that_are_no_tls_break_it_and_the_other_end_hears_so(ends):
    here, there = ends
    await here.raw.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await there.receive_some()
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):  # it was told by an alert
        await here.receive_some()


@pytest.mark.parametrize("is_tls", [False, True], ids=["unix", "tls"])
async def test_what_a_link_sends_now_comes_behind_what_waits(tmp_path, nursery, is_tls):
    """The queue's writer has had no turn when the second message of each pair is sent."""
    one, two, _ = await Rig(tmp_path, nursery, is_tls).pair()
    sent = []

    async def say():
        for number in range(300):
            long = Transfer(number.to_bytes(16, "big"), "offer", bytes(number * 50))
            short = Done(number.to_bytes(16, "big"))
            await one.send(B, long)
            one.send_nowait(B, short)
            sent.extend((long, short))

    nursery.start_soon(say)
    found = [(await taken(two)).message for _ in range(600)]
    assert found == sent
    assert one.states()[B].queued_bytes == 0


async def test_events_are_told_at_once_to_who_asks_for_it(tmp_path, nursery):
    """Before anybody else gets a turn, and in order; the end, too."""
    told = []
    made = Rig(tmp_path, nursery)
    one, two = made.links(A), made.links(B, on_event=told.append)
    two.set_peers({A: ()})
    one.set_peers({B: [await made.start(two)]})
    await made.start(one)
    await taken(one)
    for number in range(100):
        one.send_nowait(B, Done(number.to_bytes(16, "big")))
    with trio.fail_after(5):
        while len(told) < 101:
            await trio.sleep(0.01)
        await one.stop("enough")
        while len(told) < 102:
            await trio.sleep(0.01)
    numbers = [int.from_bytes(event.message.snapshot, "big") for event in told[1:-1]]
    assert numbers == list(range(100)) and "enough" in told[-1].why
