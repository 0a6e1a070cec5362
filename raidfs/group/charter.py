"""Who is in a group, and what members say to each other beside the marker protocol.

A *charter* is the group: its name, its members and where they are found, its *keeper*. The keeper
is the one volume that changes it; whoever hears of a higher version takes that over. A *work* is
what all volumes do together without a cut: deleting a group snapshot everywhere, or going back.

 1. A charter's version rises with each change, and only the keeper makes changes: so two charters
    of one version are the same.
 2. Nothing here is an application's message: none of it is recorded by a snapshot.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .messages import GATE_MS, GateMs, Message, Name, Reason, Roster, Said, SnapshotId, VolumeId
from .move import ContentAsked, ContentTold
from .stable import OnTheWay, VolumeState

MEMBERS_MAX = 256
CHANNELS_MAX = 1000
AddressText = Annotated[str, Meta(max_length=300)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume. `addresses`: where its daemon listens; none: it is on the same host as all."""

    volume: VolumeId
    name: Name
    addresses: Annotated[tuple[AddressText, ...], Meta(max_length=8)] = ()


class Charter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`gate_ms`: how long a gate may stay shut for a snapshot."""

    group: VolumeId
    name: Name
    keeper: VolumeId
    version: Count
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]
    gate_ms: GateMs = GATE_MS

    @property
    def roster(self) -> Roster:
        return Roster(self.version, tuple(sorted(each.volume for each in self.members)))

    def member(self, volume: str) -> Member | None:
        return next((each for each in self.members if each.volume == volume), None)

    def follows(self, old: Charter) -> bool:
        """It is of another group, or a later one of the same."""
        return self.group != old.group or self.version > old.version

    def called(self, volume: str) -> str:
        """The volume's name, for people."""
        member = self.member(volume)
        return volume if member is None else member.name

    def changed(self, members: tuple[Member, ...], keeper: str = "") -> Charter:
        """The next version."""
        return msgspec.structs.replace(
            self, version=self.version + 1, members=members, keeper=keeper or self.keeper
        )


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`work`: a number never used before. `snapshot`: the group snapshot that it is about. `keep`:
    the name that the state before a rollback gets, or empty."""

    work: SnapshotId
    verb: Literal["delete", "rollback"]
    snapshot: SnapshotId
    name: Name
    coordinator: VolumeId
    members: Annotated[tuple[VolumeId, ...], Meta(max_length=MEMBERS_MAX)]
    keep: Annotated[str, Meta(max_length=255)] = ""
    delete_newer: bool = False


class CharterTold(Said, frozen=True):
    """This is the group, as far as I know."""

    charter: Charter


class LeaveAsked(Said, frozen=True):
    """To the keeper: I want to leave."""


class Intend(Said, frozen=True):
    """To all: can you do this, and will you? The answer is Agreed or Objected."""

    work: Work


class Agreed(Said, frozen=True):
    """I can, and will, if all can: durably so."""

    work: SnapshotId


class Objected(Said, frozen=True):
    """I can't. So it isn't done anywhere."""

    work: SnapshotId
    reason: Reason


class Verdict(Said, frozen=True):
    """From the coordinator: do it, or forget it. `go` is durable before it is said."""

    work: SnapshotId
    go: bool


class WorkDone(Said, frozen=True):
    """To the coordinator: it is done here, durably."""

    work: SnapshotId


class Release(Said, frozen=True):
    """It is done everywhere: let the applications go on."""

    work: SnapshotId


class WorkAsked(Said, frozen=True):
    """To the coordinator: I agreed to this once; what became of it?"""

    work: SnapshotId


class StateAsked(Said, frozen=True):
    """To who was sent the marker before this: tell me what you have recorded for the snapshot."""

    snapshot: SnapshotId


class StateTold(Said, frozen=True):
    """The state at the cut, and what was on its way to it, without the payload."""

    snapshot: SnapshotId
    state: VolumeState
    channels: Annotated[tuple[OnTheWay, ...], Meta(max_length=CHANNELS_MAX)] = ()


Working = Intend | Agreed | Objected | Verdict | WorkDone | Release | WorkAsked
Moving = ContentAsked | ContentTold
Spoken = Message | CharterTold | LeaveAsked | StateAsked | StateTold | Working | Moving
