"""The control socket of a daemon: one line of JSON in, one line of JSON out, any number of times.

A request whose handler is an asynchronous generator is answered by one line for each thing it
yields, and one more, without `more`, at the end.

1. Only the daemon's own user and root are answered; the socket is 0600 and the peer is asked for.
2. A request is decoded strictly, of bounded length, and changes nothing unless it is understood.
3. Every reply carries `version`; one that reports an error carries the sentence for the user.
4. A reply of many lines takes no more memory than one line: the next is made when the client has
   taken the last, and none when it has gone.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import operator
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import trio

from raidfs import unix_socket
from raidfs.daemon.registry import Entry, find_volume
from raidfs.daemon.status import VolumeStatus
from raidfs.errors import RaidfsError

VERSION = 1
REQUEST_BYTES_MAX = 1 << 20  # the names of thousands of snapshots
REPLY_BYTES_MAX = 16 << 20
IDLE_S_MAX = 30.0
log = logging.getLogger(__name__)


class Request(msgspec.Struct, frozen=True, tag_field="verb", forbid_unknown_fields=True):
    """What all requests have in common; the verb is the tag."""

    version: int = VERSION

    def changes(self) -> bool:
        """Whether it may change the volume."""
        return False


class StatusRequest(Request, frozen=True, tag="status"):
    """Asks for a VolumeStatus."""


class StatisticsRequest(Request, frozen=True, tag="statistics"):
    """Asks for counters by part of the daemon: {part: {name: number}}."""


class SyncRequest(Request, frozen=True, tag="sync"):
    """Everything told so far is durable when the reply comes."""


class WaitRequest(Request, frozen=True, tag="wait"):
    """Answered when the volume is unmounted and closed: empty, or with what went wrong."""


class StopRequest(Request, frozen=True, tag="stop"):
    """Unmounts (open files or not), then answers as `wait` does."""


class Reply(msgspec.Struct, frozen=True):
    """`error` empty: `result` is the answer. Else `error` is a sentence and `errno` its number.
    `more`: further replies to the same request follow."""

    version: int = VERSION
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    errno: int = 0
    more: bool = False


class ControlError(RaidfsError):
    """A daemon can't be reached, or answered what is no answer."""


Handler = Callable[[Any], Awaitable[Any] | AsyncGenerator[Any, None]]
NULL = b"null"


def _listener(path: Path) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(unix_socket.listen(path)))


class ControlServer:
    """Answers requests with the handler of their class until cancelled."""

    def __init__(
        self,
        path: Path,
        handlers: dict[type[Request], Handler],
        may_tell: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """`may_tell` returns when answers may leave, which may tell what was done before."""
        self._listener = _listener(path)
        self._may_tell = may_tell
        self._handlers = handlers
        self._decoder = msgspec.json.Decoder(functools.reduce(operator.or_, handlers))
        self._requests = 0
        self._unanswered = 0
        self._answered = trio.Event()

    async def run(self) -> None:
        """Serves until cancelled."""
        await trio.serve_listeners(self._serve, [self._listener])

    async def finish(self, timeout_s: float = 1.0) -> None:
        """Returns when requests under way are answered (a client that doesn't read is left)."""
        with trio.move_on_after(timeout_s):
            while self._unanswered:
                await self._answered.wait()

    def statistics(self) -> dict[str, int]:
        """Requests answered."""
        return {"requests": self._requests}

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if unix_socket.stranger(stream.socket) is not None:
                log.warning("control: a user other than the owner was turned away")
                return
            try:
                await self._converse(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the client went away; nothing of ours depends on it

    async def _converse(self, stream: trio.SocketStream) -> None:
        pending = bytearray()
        while True:
            end = pending.find(b"\n")
            if end < 0:
                if len(pending) > REQUEST_BYTES_MAX:
                    return
                chunk = b""
                with trio.move_on_after(IDLE_S_MAX):
                    chunk = await stream.receive_some(4096)
                if not chunk:
                    return
                pending += chunk
                continue
            line = bytes(pending[:end])
            del pending[: end + 1]
            self._unanswered += 1
            try:
                await self._answer(stream, line)
            finally:
                self._unanswered -= 1
                self._answered.set()
                self._answered = trio.Event()

    async def _answer(self, stream: trio.SocketStream, line: bytes) -> None:
        self._requests += 1
        request = self._understood(line)
        if isinstance(request, Reply):
            await _send(stream, request)
            return
        handled = self._handlers[type(request)](request)
        if not inspect.isasyncgen(handled):
            assert isinstance(handled, Awaitable)
            await self._tell(stream, await _outcome(handled))
            return
        async with aclosing(handled) as parts:
            more = True
            while more:
                reply = await _outcome(anext(parts, None))
                more = not reply.error and bytes(reply.result) != NULL
                await self._tell(stream, msgspec.structs.replace(reply, more=more))

    async def _tell(self, stream: trio.SocketStream, reply: Reply) -> None:
        await self._may_tell()
        await _send(stream, reply)

    def _understood(self, line: bytes) -> Request | Reply:
        """The request, or what to reply to something else."""
        try:
            request: Request = self._decoder.decode(line)
        except msgspec.DecodeError as error:
            return Reply(error=f"the request was not understood: {error}", errno=errno.EINVAL)
        if request.version != VERSION:
            return Reply(
                error=f"this daemon speaks control version {VERSION}, not {request.version};"
                " use the raidfs-ctl that belongs to it",
                errno=errno.EPROTO,
            )
        return request


async def _outcome(result: Awaitable[Any]) -> Reply:
    """Waits for a handler, or for the next thing it yields."""
    try:
        return Reply(result=msgspec.Raw(msgspec.json.encode(await result)))
    except RaidfsError as error:
        return Reply(error=str(error), errno=error.errno)
    except Exception:
        log.exception("control: a request failed")
        return Reply(error="the daemon failed here; its log has the details", errno=errno.EIO)


async def _send(stream: trio.SocketStream, reply: Reply) -> None:
    await stream.send_all(msgspec.json.encode(reply) + b"\n")


class ControlClient:
    """The other end, for commands: plain blocking calls."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with unix_socket.short(path) as name:
                self._socket.connect(name)
        except OSError as error:
            self._socket.close()
            raise ControlError(
                f"can't reach the daemon of this volume ({error.strerror});"
                " run this as the user who mounted it, or as root",
                error.errno,
            ) from error
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self._stream.close()
        self._socket.close()

    def send(self, request: Request) -> None:
        """Sends without waiting for the answer."""
        line = msgspec.json.encode(request) + b"\n"
        if len(line) > REQUEST_BYTES_MAX:
            raise ControlError("that is too much to ask at once; name less", errno.E2BIG)
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise ControlError(f"the daemon hung up ({error.strerror})", error.errno) from error

    def receive(self, timeout_s: float | None = 60.0) -> msgspec.Raw:
        """The result of the oldest request not yet answered; a reported error is raised."""
        return self._receive(timeout_s).result

    def _receive(self, timeout_s: float | None) -> Reply:
        self._socket.settimeout(timeout_s)
        try:
            line = self._stream.readline(REPLY_BYTES_MAX)
        except ConnectionError:
            line = b""  # it was killed
        except OSError as error:
            raise ControlError(
                f"the daemon doesn't answer within {timeout_s} s; see its log", errno.ETIMEDOUT
            ) from error
        if not line.endswith(b"\n"):
            raise ControlError("the daemon ended without an answer; see its log", errno.EPIPE)
        try:
            reply = msgspec.json.decode(line, type=Reply)
        except msgspec.DecodeError as error:
            raise ControlError(f"the daemon's answer was not understood: {error}") from error
        if reply.error:
            raise ControlError(reply.error, reply.errno or errno.EIO)
        return reply

    def answers(self, request: Request) -> Iterator[msgspec.Raw]:
        """Sends; all that is replied, one by one, however long each takes: what handlers yield, or
        the one result."""
        self.send(request)
        reply = self._receive(None)
        if not reply.more and bytes(reply.result) != NULL:
            yield reply.result
        while reply.more:
            yield reply.result
            reply = self._receive(None)

    def ask(self, request: Request, timeout_s: float | None = 60.0) -> msgspec.Raw:
        """Sends and waits."""
        self.send(request)
        return self.receive(timeout_s)

    def status(self) -> VolumeStatus:
        """The volume's status."""
        return msgspec.json.decode(self.ask(StatusRequest()), type=VolumeStatus)


def connect(volume_id: str) -> tuple[Entry, ControlClient] | None:
    """The daemon of a volume, or None if nobody serves it."""
    found = find_volume(volume_id)
    return None if found is None else (found[0], ControlClient(found[1]))
