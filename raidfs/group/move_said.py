"""What two volumes say to each other of a move (move.py), and what each keeps of it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .messages import Count, MoveId, Reason, Said, Transfer, VolumeId

Bytes = Annotated[bytes, Meta(max_length=4096)]
Place = Annotated[tuple[Bytes, ...], Meta(max_length=4096)]
Stamp = Annotated[bytes, Meta(max_length=32)]
CONTENT_BYTES = 256 << 10
LIST_BYTES = 128 << 10


# -- what is said, as the payload of a Transfer ---------------------------------------------------


class Offered(Said, frozen=True):
    """From the source: stage this, to be `name` in the directory `place`. `waits`: for room.
    `stale`: the stamp of what was staged before and isn't any more what there is."""

    name: Bytes
    place: Place
    size_bytes: Count
    waits: bool = False
    stale: Stamp = b""


class Withdrawn(Said, frozen=True):
    """From the source: I know nothing of this move, or not any more; and it was never given."""


class Given(Said, frozen=True):
    """From the source: it is yours. `parent`, `name`: as Staged said."""

    parent: Count
    name: Bytes


class Staging(Said, frozen=True):
    """From the target: I am at it. Withdrawn if that is news."""


class Staged(Said, frozen=True):
    """From the target: I have all of it, hidden and durable, as it was with that stamp."""

    stamp: Stamp
    parent: Count
    name: Bytes


class Refused(Said, frozen=True):
    """From the target: no, and I have kept nothing of it."""

    reason: Reason


class Taken(Said, frozen=True):
    """From the target: it is here under that name, durably."""

    name: Bytes


class Settled(Said, frozen=True):
    """From the source: I know that you have it, and have forgotten the move."""


class Unknown(Said, frozen=True):
    """From the target, to Given: I know nothing of this move. So a person has decided on it here,
    and has to do so there."""


Payload = Offered | Withdrawn | Given | Staging | Staged | Refused | Taken | Settled | Unknown
_STEPS: dict[type, Literal["offer", "ownership", "ack"]] = {
    Offered: "offer",
    Withdrawn: "offer",
    Given: "ownership",
}
_decoder = msgspec.msgpack.Decoder(Payload)


def transfer(move: bytes, payload: Payload) -> Transfer:
    return Transfer(move, _STEPS.get(type(payload), "ack"), msgspec.msgpack.encode(payload))


def payload_of(message: Transfer) -> Payload | None:
    """None: it is none."""
    try:
        payload: Payload = _decoder.decode(message.payload)
    except msgspec.DecodeError:
        return None
    return payload if _STEPS.get(type(payload), "ack") == message.step else None


# -- how content is fetched: beside the moves, recorded by no snapshot ----------------------------


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A file, directory or other thing of what is moved; number 0 is the root of it, and `parent`
    the number of its directory. `same`: the number of the item that it is another name of."""

    parent: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    target: bytes | None
    xattrs: list[tuple[bytes, bytes]]
    same: int = -1


class ContentAsked(Said, frozen=True):
    """From the target: content of an item from there on, at most so much; of item -1: items from
    that number on."""

    move: MoveId
    item: int
    offset: Count
    nbytes: Count = CONTENT_BYTES


class ContentTold(Said, frozen=True):
    """`hole`: so many zeros, and no data. `last`: there is no more. `failed`: why there is none."""

    move: MoveId
    item: int
    offset: Count
    data: Annotated[bytes, Meta(max_length=CONTENT_BYTES)] = b""
    hole: Count = 0
    last: bool = False
    stamp: Stamp = b""
    failed: Reason = ""


# -- what is kept ---------------------------------------------------------------------------------


class SourceRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`parent`, `source_name`, `ino`: what is moved, and where it stands. `stamp`: of what is
    given, or, as long as it is only offered, of what was staged and has changed."""

    state: Literal["offered", "giving"]
    peer: VolumeId
    parent: Count
    source_name: Bytes
    ino: Count
    name: Bytes
    place: Place
    size_bytes: Count
    waits: bool = False
    stamp: Stamp = b""
    to_parent: Count = 0
    to_name: Bytes = b""
    begun_ns: Count = 0


class TargetRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stamp`: of what is being staged, or was."""

    state: Literal["staging", "staged", "taken"]
    peer: VolumeId
    parent: Count
    name: Bytes
    size_bytes: Count
    waits: bool = False
    stamp: Stamp = b""
    taken_as: Bytes = b""
    begun_ns: Count = 0
