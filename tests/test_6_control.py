"""The control socket: who is answered, what is understood, and how long lines may be."""

import contextlib
import os
import socket
import threading

import msgspec
import pytest
import trio

from raidfs.daemon import control
from raidfs.daemon.control import (
    ControlClient,
    ControlError,
    ControlServer,
    MemberFailRequest,
    StatusRequest,
    SyncRequest,
)
from raidfs.errors import UsageError


@pytest.fixture
def served(tmp_path):
    """A server in a thread of its own; yields its socket's path and what it was asked."""
    path = tmp_path / ("x" * 120) / "control.sock"  # longer than sun_path
    path.parent.mkdir()
    asked = []
    started = threading.Event()
    scope = trio.CancelScope()
    token = None

    async def sync(request):
        asked.append(request)
        return {"done": True}

    async def fail(request):
        raise UsageError(f"there is no member {request.member_id}", errno=22)

    async def broken(request):
        raise ZeroDivisionError

    async def serve():
        nonlocal token
        token = trio.lowlevel.current_trio_token()
        handlers = {SyncRequest: sync, MemberFailRequest: fail, StatusRequest: broken}
        server = ControlServer(path, handlers)
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run)
                started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(10)
    yield path, asked
    token.run_sync_soon(scope.cancel)
    thread.join(10)
    assert not thread.is_alive()


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
            client.ask(MemberFailRequest(member_id=7))
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
    monkeypatch.setattr(control, "peer_uid", lambda connection: 12345)
    with ControlClient(served[0]) as client, pytest.raises(ControlError):
        client.ask(SyncRequest())
    assert not served[1]


def test_no_daemon_is_a_sentence(tmp_path):
    with pytest.raises(ControlError, match="can't reach"):
        ControlClient(tmp_path / "nobody.sock")
