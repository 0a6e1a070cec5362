"""Frames: messages as bytes on a stream, and which of them are believed.

Words. *Frame*: a length (4 bytes, little-endian) and so many bytes of msgpack, the array [session,
sequence, kind, body]. *Session*: 16 bytes that name one direction of one connection; both ends
derive them from what each contributed, so no two connections ever share one. *Sequence*: 0, 1, 2,
... within a session. *Kind*: which of the agreed vocabularies the body belongs to. *Vocabulary*: a
msgspec type, usually a tagged union.

 1. Whatever bytes come, `take` gives messages or raises WireError, and after that nothing more.
 2. A frame counts only in its session and in its turn: one that is replayed, left out, put in
    another order, reflected to its sender or brought from another connection is a WireError.
 3. A length is judged as soon as it is there: what is kept is at most one frame and what one call
    of `feed` brought.
 4. A message that is too large to be sent is refused before it takes a sequence number: the session
    goes on.
No clock, no socket.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from raidfs.errors import FormatError

FRAME_BYTES_MAX = 1 << 20  # of a frame, without its length
SESSION_BYTES = 16
HANDSHAKE = bytes(SESSION_BYTES)  # the session before there is one
LENGTH = struct.Struct("<I")
# What is around a body at most: the array, the session, a 64-bit sequence, the kind.
AROUND_BYTES = 1 + 2 + SESSION_BYTES + 9 + 1


class WireError(FormatError):
    """What came is no frame, or not the one that was due; nothing after it can be believed."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    session: Annotated[bytes, msgspec.Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]
    sequence: Annotated[int, msgspec.Meta(ge=0)]
    kind: Annotated[int, msgspec.Meta(ge=0, le=127)]
    body: msgspec.Raw


class Taken(NamedTuple):
    """A message that was believed, and the vocabulary it belongs to."""

    kind: int
    message: Any


class Outgoing:
    """Makes the frames of one direction."""

    def __init__(self, session: bytes = HANDSHAKE) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self.enter(session)

    def enter(self, session: bytes) -> None:
        """Frames from now on belong to that session."""
        assert len(session) == SESSION_BYTES
        self._session = session
        self._sequence = 0

    def frame(self, kind: int, message: object) -> bytes:
        """The next frame, with its length. WireError: the message is too large."""
        body = self._encoder.encode(message)
        if len(body) > FRAME_BYTES_MAX - AROUND_BYTES:
            raise WireError(
                f"a message of {len(body)} bytes doesn't fit into a frame of {FRAME_BYTES_MAX}"
            )
        made = self._encoder.encode(_Frame(self._session, self._sequence, kind, msgspec.Raw(body)))
        assert len(made) <= FRAME_BYTES_MAX
        self._sequence += 1
        return LENGTH.pack(len(made)) + made


class Incoming:
    """Takes the frames of one direction. `vocabularies`: the type of each kind's messages."""

    def __init__(self, vocabularies: Sequence[Any], *, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frames = msgspec.msgpack.Decoder(_Frame)
        self._bodies = [msgspec.msgpack.Decoder(vocabulary) for vocabulary in vocabularies]
        self._pending = bytearray()
        self._failure = ""
        self.enter(HANDSHAKE, bytes_max=bytes_max)

    def enter(self, session: bytes, *, bytes_max: int = FRAME_BYTES_MAX) -> None:
        """Frames not yet taken belong to that session, and are no longer than that."""
        assert len(session) == SESSION_BYTES
        self._session = session
        self._sequence = 0
        self._bytes_max = bytes_max

    def feed(self, data: bytes | bytearray) -> None:
        """What the stream brought; then `take` until None."""
        self._pending += data

    def take(self) -> Taken | None:
        """The next message; None: more has to be fed first. WireError."""
        if self._failure:
            raise WireError(self._failure)
        try:
            return self._take()
        except WireError as error:
            self._failure = str(error)
            self._pending.clear()
            raise

    def _take(self) -> Taken | None:
        pending = self._pending
        if len(pending) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(pending)
        if not 0 < length <= self._bytes_max:
            raise WireError(f"a frame says that it has {length} bytes")
        end = LENGTH.size + length
        if len(pending) < end:
            return None
        made = bytes(pending[LENGTH.size : end])
        del pending[:end]
        frame = _decoded(self._frames, made)
        assert isinstance(frame, _Frame)
        if frame.session != self._session:
            raise WireError("a frame belongs to another session")
        if frame.sequence != self._sequence:
            raise WireError(f"frame {frame.sequence} came where {self._sequence} was due")
        if frame.kind >= len(self._bodies):
            raise WireError(f"a frame is of the unknown kind {frame.kind}")
        message = _decoded(self._bodies[frame.kind], bytes(frame.body))
        self._sequence += 1
        return Taken(frame.kind, message)


def _decoded(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError, OverflowError) as error:  # DecodeError is a ValueError
        raise WireError(f"a frame was not understood: {error}") from error
