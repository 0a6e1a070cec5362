"""The control socket: who is answered, what is understood, and how long lines may be."""

import contextlib
import os
import socket
import threading

import msgspec
import pytest
import trio

from raidfs import unix_socket
from raidfs.daemon import control
from raidfs.daemon.control import (
    ControlClient,
    ControlError,
    ControlServer,
    StatusRequest,
    SyncRequest,
)
from raidfs.daemon.member_requests import MemberFailRequest
from raidfs.errors import UsageError


@contextlib.contextmanager
def serving(path, handlers):
    """A server in a thread of its own."""
    started = threading.Event()
    scope = trio.CancelScope()
    token = None

    async def serve():
        nonlocal token
        token = trio.lowlevel.current_trio_token()
        server = ControlServer(path, handlers)
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run)
                started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(10)
    yield
    token.run_sync_soon(scope.cancel)
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def served(tmp_path):
    """A server in a thread of its own; yields its socket's path and what it was asked."""
    path = tmp_path / ("x" * 120) / "control.sock"  # longer than sun_path
    path.parent.mkdir()
    asked = []

    async def sync(request):
        asked.append(request)
        return {"done": True}

    async def fail(request):
        raise UsageError(f"there is no member {request.members[0]}", errno=22)

    async def broken(request):
        raise ZeroDivisionError

    with serving(path, {SyncRequest: sync, MemberFailRequest: fail, StatusRequest: broken}):
        yield path, asked


def raw_exchange(path, data):
    directory = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    return answer


def test_socket_is_the_owners_alone(served):
    assert served[0].stat().st_mode & 0o777 == 0o600


def test_requests_are_answered_in_order_on_one_connection(served):
    path, asked = served
    with ControlClient(path) as client:
        for _ in range(3):
            assert msgspec.json.decode(client.ask(SyncRequest())) == {"done": True}
    assert len(asked) == 3


def test_an_error_of_the_world_reaches_the_client_as_its_sentence(served):
    with ControlClient(served[0]) as client:
        with pytest.raises(ControlError, match="there is no member 7") as caught:
            client.ask(MemberFailRequest(members=("7",)))
        assert caught.value.errno == 22
        assert client.ask(SyncRequest())  # and the connection lives on


def test_an_error_of_ours_is_not_shown_in_detail(served):
    with ControlClient(served[0]) as client, pytest.raises(ControlError, match="its log"):
        client.ask(StatusRequest())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"{}",
        b'{"verb": "sync", "version": 1, "extra": 2}',
        b'{"verb": "destroy", "version": 1}',
        b'{"verb": "member-fail", "member_id": "one"}',
        b"[" * 1000,
    ],
)
def test_what_is_not_understood_changes_nothing(served, line):
    path, asked = served
    reply = msgspec.json.decode(raw_exchange(path, line + b"\n"), type=control.Reply)
    assert "not understood" in reply.error and reply.errno == 22 and not asked


def test_another_version_is_refused_with_a_sentence(served):
    path, asked = served
    reply = msgspec.json.decode(raw_exchange(path, b'{"verb": "sync", "version": 2}\n'))
    assert "version 1" in reply["error"] and not asked


def test_endless_lines_are_hung_up_on(served):
    path, asked = served
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        assert raw_exchange(path, b"x" * (4 * control.REQUEST_BYTES_MAX)) == b""
    assert not asked


def test_a_stranger_is_turned_away(served, monkeypatch):
    monkeypatch.setattr(unix_socket, "peer_uid", lambda connection: 12345)
    with ControlClient(served[0]) as client, pytest.raises(ControlError):
        client.ask(SyncRequest())
    assert not served[1]


def test_no_daemon_is_a_sentence(tmp_path):
    with pytest.raises(ControlError, match="can't reach"):
        ControlClient(tmp_path / "nobody.sock")


# -- replies of many lines ------------------------------------------------------------------------


class CountRequest(control.Request, frozen=True, tag="count"):
    """Asks for so many numbers; an error of the world comes before `fails`."""

    until: int = 0
    fails: int = -1


@pytest.fixture
def counting(tmp_path):
    """A server that counts; yields its socket's path and what it yielded and closed."""
    path = tmp_path / "control.sock"
    done = {"yielded": 0, "closed": 0}

    async def count(request):
        try:
            for number in range(request.until):
                await trio.lowlevel.checkpoint()
                if number == request.fails:
                    raise UsageError("that number is not for you", errno=7)
                done["yielded"] += 1
                yield [number, "x" * 10_000]
        finally:
            done["closed"] += 1

    async def sync(request):
        return "synced"

    with serving(path, {CountRequest: count, SyncRequest: sync}):
        yield path, done


def numbers(client, **options):
    return [msgspec.json.decode(raw)[0] for raw in client.answers(CountRequest(**options))]


def test_what_is_yielded_comes_line_by_line_and_the_connection_goes_on(counting):
    path, done = counting
    with ControlClient(path) as client:
        assert numbers(client, until=5) == [0, 1, 2, 3, 4]
        assert numbers(client, until=0) == []
        assert numbers(client, until=1) == [0]
        assert [msgspec.json.decode(raw) for raw in client.answers(SyncRequest())] == ["synced"]
        assert msgspec.json.decode(client.ask(SyncRequest())) == "synced"
    assert done == {"yielded": 6, "closed": 3}


def test_an_error_in_the_middle_ends_it(counting):
    path, done = counting
    with ControlClient(path) as client:
        answers = client.answers(CountRequest(until=5, fails=2))
        assert [msgspec.json.decode(next(answers))[0] for _ in range(2)] == [0, 1]
        with pytest.raises(ControlError, match="not for you") as caught:
            next(answers)
        assert caught.value.errno == 7 and done["closed"] == 1
        assert numbers(client, until=2) == [0, 1]


def test_who_hangs_up_in_the_middle_stops_it_and_nothing_runs_ahead(counting):
    path, done = counting
    client = ControlClient(path)
    answers = client.answers(CountRequest(until=100_000))
    next(answers)
    next(answers)
    for _ in range(20):  # the socket's buffers fill, then nothing more is made
        before = done["yielded"]
        threading.Event().wait(0.05)
        if before == done["yielded"]:
            break
    assert done["yielded"] < 1000 and not done["closed"]
    client.close()
    for _ in range(100):
        if done["closed"]:
            break
        threading.Event().wait(0.05)
    assert done["closed"] == 1
    with ControlClient(path) as another:
        assert numbers(another, until=3) == [0, 1, 2]


def test_a_request_beyond_all_bounds_is_not_even_sent(counting):
    with ControlClient(counting[0]) as client:
        with pytest.raises(ControlError, match="name less"):
            client.ask(MemberFailRequest(reason="x" * control.REQUEST_BYTES_MAX))
        assert numbers(client, until=1) == [0]
