"""TLS over a stream, that can also send without waiting.

As trio.SSLStream, but what is said by `send_now` is with the kernel on return, or else with the
next `send_all`: a marker must not wait for its turn in the event loop.

 1. What is given to `send_now` and `send_all` leaves in that order.
 2. Who receives never waits for the other end to receive.
 3. A stream that breaks, or ends without having said so, is a BrokenResourceError; what there was
    to say about it (a TLS alert) has been sent.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

RECEIVE_BYTES = 64 << 10
Result = TypeVar("Result")


def send_some(stream: trio.abc.Stream, data: bytes) -> int:
    """How many of the first bytes the kernel has taken, at once. What is wrong with a stream is for
    who waits for it."""
    if not data or not isinstance(stream, trio.SocketStream):
        return 0
    try:
        return os.write(stream.socket.fileno(), data)
    except OSError:
        return 0


class TlsStream(trio.abc.AsyncResource):
    """One task may send and one may receive at a time; `tls` tells who is at the other end."""

    def __init__(self, raw: trio.abc.Stream, context: ssl.SSLContext, *, listening: bool) -> None:
        self.raw = raw
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=listening)
        self._flushing = trio.Lock()

    async def do_handshake(self) -> None:
        """BrokenResourceError, with the ssl.SSLError as its cause."""
        await self._until(self.tls.do_handshake, is_handshake=True)
        await self._flush()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._encrypt(data)
        await self._flush()

    def send_now(self, data: bytes) -> bool:
        """Whether the kernel has all of it; if not, the next `send_all` sends the rest."""
        self._encrypt(data)
        return self._flush_now()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._until(partial(self.tls.read, max_bytes or RECEIVE_BYTES))
        except ssl.SSLZeroReturnError:
            return b""

    async def aclose(self) -> None:
        """Says so, if it can be sent."""
        with contextlib.suppress(ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError):
            with contextlib.suppress(ssl.SSLWantReadError):  # nobody waits for the other's word
                self.tls.unwrap()
            await self._flush()
        await self.raw.aclose()

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
        try:
            if data:
                self.tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from error

    def _flush_now(self) -> bool:
        if not self._flushing.locked():
            encrypted = self._out.read()
            rest = encrypted[send_some(self.raw, encrypted) :]
            self._out.write(rest)  # nothing came behind it meanwhile
        return not self._out.pending

    async def _flush(self) -> None:
        async with self._flushing:
            while data := self._out.read():
                await self.raw.send_all(data)

    async def _until(self, work: Callable[[], Result], *, is_handshake: bool = False) -> Result:
        """Its result, once enough has been received."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                result = work()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                raise
            except ssl.SSLError as error:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._flush()
                raise trio.BrokenResourceError from error
            else:
                return result
            if is_handshake:
                await self._flush()
            else:  # never wait for the other end to receive before it is listened to
                self._flush_now()
            data = await self.raw.receive_some(RECEIVE_BYTES)
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()
