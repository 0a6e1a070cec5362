"""Streams to other daemons of a group, and who is at the other end of them.

An *address* is `unix:PATH` or `tcp:HOST:PORT`. On a unix socket the kernel says whose process is at
the other end; over TCP it is TLS 1.3, and a certificate of the group's authority says which volume.

 1. Nothing is said to the other end, and nothing it says is looked at, before it is known to be the
    daemon's own user or root (unix), or a volume of the group (TLS).
 2. Whatever breaks on the way is a TransportError with a sentence, and the stream is closed then.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from raidfs import unix_socket
from raidfs.errors import RaidfsError, UsageError
from raidfs.group.keys import volume_of
from raidfs.group.tls import TlsStream, send_some
from raidfs.group.wire import Incoming, Outgoing, Taken

RECEIVE_BYTES = 64 << 10


class TransportError(RaidfsError):
    """A connection couldn't be made, or ended."""

    errno = errno.ENOTCONN


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket on this host."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port of a host, by name or number; empty: all of this host's (to listen only)."""

    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """UsageError for what is none."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return UnixAddress(Path(rest))
    host, colon, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if kind != "tcp" or not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address: write tcp:HOST:PORT or unix:/PATH")
    return TcpAddress(host, int(port))


def broken(error: BaseException) -> TransportError:
    """An error of a stream as a sentence."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # ssl.SSLError is an OSError
        cause = cause.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransportError(f"its certificate is not accepted here: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        said = (cause.reason or "TLS error").lower().replace("_", " ")
        return TransportError(f"TLS could not be agreed on or was broken off: {said}")
    if cause is not None:
        return TransportError(cause.strerror or str(cause), cause.errno)
    return TransportError("the other end is gone")


# ---- listening ----


def listen_unix(path: Path) -> trio.SocketListener:
    """A socket at `path` that only its owner can connect to."""
    try:
        raw = unix_socket.listen(path)
    except OSError as error:
        raise TransportError(f"can't listen at {path}: {error.strerror}", error.errno) from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(raw))


async def listen_tcp(address: TcpAddress) -> list[trio.SocketListener]:
    """One listener for each of the host's addresses; port 0: any that is free."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host or None)
    except OSError as error:
        raise TransportError(f"can't listen at {address}: {error.strerror}", error.errno) from error


def bound_address(listener: trio.SocketListener) -> TcpAddress:
    """Where a TCP listener really listens."""
    host, port = listener.socket.getsockname()[:2]
    return TcpAddress(host, port)


# ---- who is there ----


def check_credentials(connection: trio.socket.SocketType) -> None:
    """TransportError unless the other end of a unix socket is ours, or root's."""
    uid = unix_socket.stranger(connection)
    if uid is not None:
        raise TransportError(f"user {uid} has no business here", errno.EACCES)


async def secured(
    raw: trio.abc.Stream, context: ssl.SSLContext, protocol: str, *, listening: bool
) -> tuple[TlsStream, str]:
    """TLS over a stream, and the volume that the other end's certificate names ("": it showed none,
    where the context allows that). TransportError, TrustError; the stream is closed then."""
    stream = TlsStream(raw, context, listening=listening)
    try:
        await stream.do_handshake()
        if stream.tls.version() != "TLSv1.3" or stream.tls.selected_alpn_protocol() != protocol:
            raise TransportError(f"the other end doesn't speak {protocol}", errno.EPROTO)
        shown = stream.tls.getpeercert(binary_form=True)
        return stream, volume_of(shown) if shown else ""
    except BaseException as error:
        await trio.aclose_forcefully(stream)
        if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError | ssl.SSLError):
            raise broken(error) from error
        raise


async def connect_unix(address: UnixAddress) -> trio.SocketStream:
    """To a daemon on this host, of our user or root. TransportError."""
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with unix_socket.short(address.path) as name:
            await connection.connect(name)
        check_credentials(connection)
        return trio.SocketStream(connection)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise broken(error) from error
        raise


async def connect_tcp(address: TcpAddress) -> trio.SocketStream:
    """TCP alone. TransportError."""
    try:
        return await trio.open_tcp_stream(address.host, address.port)
    except OSError as error:
        raise broken(error) from error


Stream = trio.abc.Stream | TlsStream


class Framed:
    """A stream of frames. One task may say and one may hear at a time."""

    def __init__(self, stream: Stream, vocabularies: Sequence[Any], *, bytes_max: int) -> None:
        self.stream = stream
        self.outgoing = Outgoing()
        self.incoming = Incoming(vocabularies, bytes_max=bytes_max)
        self.received_bytes = 0
        self._rest = b""  # of what `write_now` was given

    async def say(self, kind: int, message: object) -> None:
        """One message. TransportError."""
        await self.write(self.outgoing.frame(kind, message))

    async def write(self, frames: bytes) -> None:
        """Frames made by `outgoing`, in the order they were made. TransportError."""
        try:
            rest, self._rest = self._rest, b""
            await self.stream.send_all(rest + frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise broken(error) from error

    def write_now(self, frames: bytes) -> bool:
        """As `write`, unless somebody is at it, without waiting. Whether the kernel has all of it;
        if not, the next `write` sends the rest. TransportError."""
        if isinstance(self.stream, TlsStream):
            try:
                return self.stream.send_now(frames)
            except trio.BrokenResourceError as error:
                raise broken(error) from error
        frames = self._rest + frames
        self._rest = frames[send_some(self.stream, frames) :]
        return not self._rest

    async def hear(self, silence_s_max: float = math.inf) -> Taken:
        """The next message. TransportError, also after that long a silence; WireError."""
        while True:
            taken = self.incoming.take()
            if taken is not None:
                return taken
            data = None
            try:
                with trio.move_on_after(silence_s_max):
                    data = await self.stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise broken(error) from error
            if data is None:
                raise TransportError(f"nothing was heard of it for {silence_s_max:g} s")
            if not data:
                raise TransportError("the other end has closed the connection")
            self.received_bytes += len(data)
            self.incoming.feed(data)

    async def close(self) -> None:
        """At once."""
        await trio.aclose_forcefully(self.stream)
