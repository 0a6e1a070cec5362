"""The metrics of a mounted volume over HTTP: on an address or a unix socket, for Prometheus to get.

A minimal responder, since one path and one method are all that is needed: a request is read, an
answer is written, the connection is closed. It runs in the daemon's loop.

 1. It begins before the mount is told ready, or the mount is refused with a sentence.
 2. Whatever a client does, it holds REQUEST_BYTES_MAX of memory and one of CLIENTS_MAX places, for
    no longer than CLIENT_S; who comes when all are taken is turned away at once.
 3. Nothing that comes in changes anything. There are no names of files in what goes out but those
    of members and the mountpoint.
 4. A unix socket is open to its owner only, and taken away at the end.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import trio

from raidfs import unix_socket
from raidfs.daemon.metrics import Sample, exposition
from raidfs.errors import UsageError

REQUEST_BYTES_MAX = 8 << 10
CLIENT_S = 10.0
CLIENTS_MAX = 8
PATHS = ("/metrics", "/")
UNIX = "unix:"
log = logging.getLogger("raidfs.metrics")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """HOST and PORT, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"{UNIX}{self.path}" if self.path else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """HOST:PORT, [IPv6]:PORT or unix:/PATH; UsageError."""
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or path.endswith("/"):
            raise UsageError(f"metrics={text}: the path of a socket begins with /")
        return Endpoint(path=os.path.normpath(path))
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"metrics={text}: write an IPv6 address as [::1]:9100")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(
            f"metrics={text}: write HOST:PORT, for example 127.0.0.1:9813, or unix:/path"
        )
    return Endpoint(host, int(port))


class MetricsServer:
    """Of one volume. `samples` tells its figures."""

    def __init__(self, endpoint: Endpoint, samples: Callable[[], list[Sample]]) -> None:
        self.endpoint = endpoint
        self._samples = samples
        self._listeners: list[trio.SocketListener] = []
        self._clients = 0

    async def open(self) -> None:
        """Promise 1. UsageError."""
        try:
            if self.endpoint.path:
                _clear(Path(self.endpoint.path))
                raw = unix_socket.listen(Path(self.endpoint.path))
                self._listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(raw))]
            else:
                self._listeners = await trio.open_tcp_listeners(
                    self.endpoint.port, host=self.endpoint.host
                )
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"can't serve metrics on {self.endpoint} ({reason}); choose another address, or"
                " mount without -o metrics",
                error.errno if error.errno and error.errno > 0 else errno.EINVAL,
            ) from error

    @property
    def port(self) -> int:
        """Where it listens; chosen by the system if 0 was asked for."""
        port: int = self._listeners[0].socket.getsockname()[1]
        return port

    async def run(self) -> None:
        """Until cancelled."""
        if self.endpoint.port == 0 and not self.endpoint.path:
            log.info("metrics are served on %s:%d", self.endpoint.host, self.port)
        await trio.serve_listeners(self._serve, self._listeners)

    def close(self) -> None:
        """Promise 4."""
        for listener in self._listeners:
            listener.socket.close()
        if self._listeners and self.endpoint.path:
            with contextlib.suppress(OSError):
                os.unlink(self.endpoint.path)
        self._listeners = []

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._clients >= CLIENTS_MAX:
            stream.socket.close()
            return
        self._clients += 1
        try:
            with trio.move_on_after(CLIENT_S):
                async with stream:
                    await stream.send_all(await self._answer(await _request(stream)))
                    await stream.send_eof()
                    while await stream.receive_some(1024):
                        pass  # closed with something unread, the answer might be lost
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client went away
        except Exception:
            log.exception("metrics: a request failed")
        finally:
            self._clients -= 1

    async def _answer(self, request: bytes | HTTPStatus) -> bytes:
        """The whole answer to the head of a request, or to what was none."""
        if isinstance(request, HTTPStatus):
            return _response(request)
        lines = request.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        method, path, _ = words
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, extra="Allow: GET, HEAD\r\n")
        if path.partition("?")[0] not in PATHS:
            return _response(HTTPStatus.NOT_FOUND)
        fields = (line.partition(":") for line in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        samples = self._samples()
        body, content_type = await trio.to_thread.run_sync(
            exposition, [samples], headers.get("accept", "")
        )
        return _response(HTTPStatus.OK, body, content_type, head=method == "HEAD")


async def _request(stream: trio.SocketStream) -> bytes | HTTPStatus:
    """The head of the request, without its end; or what to say of it."""
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > REQUEST_BYTES_MAX:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        chunk = await stream.receive_some(4096)
        if not chunk:
            return HTTPStatus.BAD_REQUEST
        received += chunk
    return bytes(received[:end])


def _response(
    status: HTTPStatus,
    body: bytes = b"",
    content_type: str = "text/plain; charset=utf-8",
    *,
    head: bool = False,
    extra: str = "",
) -> bytes:
    if status is not HTTPStatus.OK:
        body = f"{status.value} {status.phrase}\n".encode()
    header = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    )
    return header.encode() + (b"" if head else body)


def _clear(path: Path) -> None:
    """A socket that nobody listens at any more is removed. UsageError for anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"metrics={UNIX}{path}: something else than a socket is there; remove it")
    try:
        with (
            unix_socket.short(path) as name,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        ):
            probe.connect(name)
    except ConnectionRefusedError:
        return
    except OSError as error:
        raise UsageError(f"metrics={UNIX}{path}: {error.strerror}", error.errno) from error
    raise UsageError(
        f"metrics={UNIX}{path}: somebody listens there already; each volume needs a socket of its"
        " own",
        errno.EADDRINUSE,
    )
