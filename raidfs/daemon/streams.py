"""Sending and receiving of a volume, as requests: the bytes go over a socket of their own.

Whoever asks listens at a socket and names it in the request. The daemon (or the command itself, of
an unmounted volume) connects to it, sends or takes the stream there, and answers the request when
all is over. So the control socket stays one of lines.

 1. Only sockets of root or of the daemon's own user are talked to.
 2. One stream comes in at a time; any number go out.
 3. `end` returns when none is under way any more: before the store is closed.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import trio

from raidfs import unix_socket
from raidfs.daemon.control import Handler, Request
from raidfs.errors import FormatError, RaidfsError, Unrecoverable, UsageError
from raidfs.fs.receive import Received, Receiver, give_up, kept_token
from raidfs.fs.send import Sent, choose
from raidfs.fs.spool import Spool
from raidfs.fs.stream import Token
from raidfs.fs.volume import Volume

TAKEN_BYTES = 1 << 20


class SnapshotSendRequest(Request, frozen=True, tag="snapshot-send"):
    """Sends to the listening socket; answered with a Sent. `base`, `token` may be empty; with a
    token the name may be. `page_bytes` 0: those of the volume."""

    socket: str = ""
    name: str = ""
    base: str = ""
    page_bytes: int = 0
    token: str = ""


class SnapshotReceiveRequest(Request, frozen=True, tag="snapshot-receive"):
    """Takes what comes from the listening socket, to its end; answered with a Received."""

    socket: str = ""
    name: str = ""
    force: bool = False

    def changes(self) -> bool:
        return True


class SnapshotTokenRequest(Request, frozen=True, tag="snapshot-token"):
    """Answered with a TokenTold."""


class SnapshotGiveUpRequest(Request, frozen=True, tag="snapshot-give-up"):
    """Drops what came of an interrupted stream. Answered with how many bytes that were."""

    def changes(self) -> bool:
        return True


class TokenTold(msgspec.Struct, frozen=True):
    """Of the interrupted stream: which snapshot, how much of it is here, how to go on. Nothing is
    here: all are empty; all but `bytes`: what is here is damaged."""

    snapshot: str = ""
    bytes: int = 0
    token: str = ""


class StreamService:
    """Of one volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._scopes: set[trio.CancelScope] = set()
        self._none_left = trio.Event()
        self._receiving = False

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            SnapshotSendRequest: self._send,
            SnapshotReceiveRequest: self._receive,
            SnapshotTokenRequest: self._token,
            SnapshotGiveUpRequest: self._give_up,
        }

    async def end(self) -> None:
        """Promise 3: streams under way are broken off. What came of one is kept."""
        while self._scopes:
            for scope in self._scopes:
                scope.cancel()
            self._none_left = trio.Event()
            await self._none_left.wait()

    @asynccontextmanager
    async def _under_way(self) -> AsyncIterator[None]:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._none_left.set()
        if scope.cancelled_caught:
            raise RaidfsError("the volume is being unmounted; try again later", errno.ESHUTDOWN)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Promise 2."""
        if self._receiving:
            raise UsageError("another stream is being received; wait for its end", errno.EBUSY)
        self._receiving = True
        try:
            yield
        finally:
            self._receiving = False

    async def _send(self, request: SnapshotSendRequest) -> Sent:
        token = Token.of(request.token) if request.token else None
        sending = choose(
            self.volume.store,
            request.name,
            request.base or None,
            request.page_bytes or None,
            token,
        )
        async with self._under_way(), await _connected(request.socket) as stream:

            async def write(data: bytes) -> None:
                try:
                    await stream.send_all(data)
                except trio.BrokenResourceError:
                    raise RaidfsError(
                        "whoever was to take the stream has gone away", errno.EPIPE
                    ) from None

            return await sending.run(write)
        raise AssertionError

    async def _receive(self, request: SnapshotReceiveRequest) -> Received:
        with self._alone():
            async with self._under_way(), await _connected(request.socket) as stream:

                async def read() -> bytes:
                    try:
                        return bytes(await stream.receive_some(TAKEN_BYTES))
                    except trio.BrokenResourceError:
                        return b""  # as an end that comes too early

                receiver = Receiver(
                    self.volume, read, force=request.force, name=request.name or None
                )
                return await receiver.run()
        raise AssertionError

    async def _token(self, _: SnapshotTokenRequest) -> TokenTold:
        with self._alone():
            async with self._under_way():
                try:
                    token = await kept_token(self.volume)
                except (FormatError, Unrecoverable):  # it can only be given up
                    return TokenTold(bytes=Spool(self.volume).size)
                if token is None:
                    return TokenTold()
                return TokenTold(token.header.name, token.offset, token.text())
        raise AssertionError

    async def _give_up(self, _: SnapshotGiveUpRequest) -> int:
        with self._alone():
            return await give_up(self.volume)


async def _connected(path: str) -> trio.SocketStream:
    """Promise 1."""
    raw = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        with unix_socket.short(Path(path)) as name:
            await raw.connect(name)
        if unix_socket.stranger(raw) is not None:
            raise UsageError("the socket for the stream is somebody else's", errno.EACCES)
    except OSError as error:
        raw.close()
        raise UsageError(f"can't reach the socket for the stream: {error.strerror}") from error
    except BaseException:
        raw.close()
        raise
    return trio.SocketStream(raw)
