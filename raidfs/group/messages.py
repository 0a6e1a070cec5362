"""What the mount daemons of a group say to each other, and what each keeps through a crash.

Words: a *group snapshot* has an id, a name, a timestamp and an initiator, told by its `Plan`, which
travels with each marker: whoever hears of a snapshot first by any marker knows all of it. A
*roster* is the membership with its version. A plan names the roster by version and fingerprint and
lists who is left out of it (`missing`), so a marker stays small however many volumes there are.

 1. `Message` is all that may come from a peer: a tagged union (the field `type`), each field
    bounded. What doesn't fit is not a message; nothing here is trusted beyond its type.
 2. `Kept` is all that must survive a crash; what is not among it may be forgotten at any time.
 3. A message is never changed, and means the same however late it comes: all name their snapshot.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PAYLOAD_BYTES_MAX = (1 << 20) - (1 << 16)  # a Transfer fits a frame of 1 MiB with room to spare
MEMBERS_MAX = 1024
GATE_MS_MAX = 120_000
GATE_MS = 500

SnapshotId = Annotated[bytes, Meta(min_length=16, max_length=16)]
MoveId = Annotated[bytes, Meta(min_length=16, max_length=16)]
VolumeId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z", max_length=32)]
Fingerprint = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Reason = Annotated[str, Meta(max_length=1000)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
GateMs = Annotated[int, Meta(ge=1, le=GATE_MS_MAX)]
Volumes = Annotated[tuple[VolumeId, ...], Meta(max_length=MEMBERS_MAX)]
Verdict = Literal["commit", "abort"]


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The membership of a group; its version rises with each volume that joins or leaves."""

    version: Count
    members: Volumes

    @property
    def fingerprint(self) -> bytes:
        """Tells apart two memberships that were given the same version."""
        text = ",".join([str(self.version), *sorted(self.members)])
        return hashlib.sha256(text.encode()).digest()[:16]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All there is to know of a group snapshot before it is taken. `created_ns`: the initiator's
    clock, the same in all volumes. `gate_ms`: how long a gate may stay shut for it."""

    snapshot: SnapshotId
    name: Name
    created_ns: Count
    initiator: VolumeId
    version: Count
    fingerprint: Fingerprint
    gate_ms: GateMs = GATE_MS
    missing: Volumes = ()


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower):
    """Base of what is said: `type` on the wire is the class's name in small letters."""


class Marker(Said, frozen=True):
    """I have cut; what I send after this is after my cut. On every channel between participants."""

    plan: Plan


class Prepared(Said, frozen=True):
    """To the initiator: my epoch and what arrived on my channels are durable, and so is this word.
    Who said it can't abort by itself any more. `gate_us`: how long my gate was shut."""

    snapshot: SnapshotId
    epoch: Count
    gate_us: Count


class Refused(Said, frozen=True):
    """I am not prepared and never will be. So it can't be committed: proof of the abort."""

    snapshot: SnapshotId
    reason: Reason


class Decision(Said, frozen=True):
    """From the initiator alone. A commit is durable before it is said; an abort needs not be."""

    snapshot: SnapshotId
    verdict: Verdict
    reason: Reason = ""


class Done(Said, frozen=True):
    """To the initiator: visible, durably. Who said it never asks again."""

    snapshot: SnapshotId


class Query(Said, frozen=True):
    """I am prepared and don't know the outcome. `initiator` tells who has to know: it answers abort
    if it knows nothing; others answer only what they know."""

    snapshot: SnapshotId
    initiator: VolumeId


class Outcome(Said, frozen=True):
    """The answer to a Query, of whoever knows."""

    snapshot: SnapshotId
    verdict: Verdict


class Transfer(Said, frozen=True):
    """A step of a file's move between volumes: to the marker protocol an application's message,
    delivered and, if a cut falls behind it, recorded, but not looked into."""

    move: MoveId
    step: Literal["offer", "ownership", "ack"]
    payload: Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)] = b""


Message = Marker | Prepared | Refused | Decision | Done | Query | Outcome | Transfer


class VolumeResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One volume's part. `state`: "visible"; "pending": will be visible, without anybody's doing,
    when that volume is back; "prepared", "unprepared": of a snapshot that isn't committed."""

    volume: VolumeId
    state: Literal["visible", "pending", "prepared", "unprepared"]
    epoch: Count = 0
    gate_us: Count = 0


VolumeResults = Annotated[tuple[VolumeResult, ...], Meta(max_length=MEMBERS_MAX)]


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a snapshot, for whoever asked for it. "in doubt": the initiator could not
    learn whether its decision is durable; a new mount of its volume tells."""

    plan: Plan
    state: Literal["committed", "aborted", "in doubt"]
    reason: Reason
    volumes: VolumeResults


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower):
    """Base of what is kept through a crash."""


class HiddenKept(Remembered, frozen=True):
    """The cut was made: there is an epoch held for this snapshot, but nobody was told anything."""

    snapshot: SnapshotId


class PreparedKept(Remembered, frozen=True):
    """Kept before Prepared is said, together with the epoch and the recorded channels.
    `members`: all who take part."""

    plan: Plan
    members: Volumes


class DecisionKept(Remembered, frozen=True):
    """The initiator's commit. There is none of an abort: what isn't known was aborted."""

    plan: Plan
    volumes: VolumeResults


class VisibleKept(Remembered, frozen=True):
    """The snapshot is in the volume, with this id, for all to see."""

    snapshot: SnapshotId


Kept = HiddenKept | PreparedKept | DecisionKept | VisibleKept
