"""Who is in a group, and what members say to each other beside the marker protocol.

A *charter* is the group: its name, its members and where they are found, its *keeper*, and when
snapshots are taken. The keeper is the one volume that changes it; whoever hears of a later one
takes that over. If the keeper is gone for good another takes over (*take-over*), with the consent
of the others. A *work* is what all volumes do together without a cut: deleting a group snapshot
everywhere, or going back.

 1. A charter's version rises with each change, and only the keeper makes changes: so two charters
    of one version and keeper are the same. Charters have one order, by version, then keeper.
 2. A take-over leaves a gap of versions, in which the old keeper may have made changes that nobody
    has heard of: it is overruled by them all when it comes back.
 3. Nothing here is an application's message: none of it is recorded by a snapshot.
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
PARTS_AT_ONCE = 1000  # in a message, if so many fit
HOLDS_MAX = 16  # of a part that are told
TAKE_OVER_GAP = 1000
AddressText = Annotated[str, Meta(max_length=300)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume. `addresses`: where its daemon listens; none: it is on the same host as all."""

    volume: VolumeId
    name: Name
    addresses: Annotated[tuple[AddressText, ...], Meta(max_length=8)] = ()


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the keeper takes snapshots of the group, and which are kept. `policy`: in the form in
    which a volume keeps its own (fs/policy.py). `prefix`: of their names. `allow_missing`: also
    while members can't be reached, without these."""

    policy: Annotated[bytes, Meta(max_length=4096)]
    prefix: Annotated[str, Meta(min_length=1, max_length=100)]
    allow_missing: bool = False


class Charter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`gate_ms`: how long a gate may stay shut for a snapshot."""

    group: VolumeId
    name: Name
    keeper: VolumeId
    version: Count
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]
    gate_ms: GateMs = GATE_MS
    schedule: Schedule | None = None

    @property
    def roster(self) -> Roster:
        return Roster(self.version, tuple(sorted(each.volume for each in self.members)))

    def member(self, volume: str) -> Member | None:
        return next((each for each in self.members if each.volume == volume), None)

    def follows(self, old: Charter) -> bool:
        """It is of another group, or a later one of the same."""
        return self.group != old.group or self._place > old._place

    @property
    def _place(self) -> tuple[int, str]:
        return self.version, self.keeper

    def called(self, volume: str) -> str:
        """The volume's name, for people."""
        member = self.member(volume)
        return volume if member is None else member.name

    def changed(self, members: tuple[Member, ...], keeper: str = "") -> Charter:
        """The next version."""
        return msgspec.structs.replace(
            self, version=self.version + 1, members=members, keeper=keeper or self.keeper
        )

    def without(self, volume: str) -> tuple[Member, ...]:
        """All other members."""
        return tuple(each for each in self.members if each.volume != volume)

    def removal(self) -> Removal:
        """For who is no member of it."""
        by = self.called(self.keeper)
        return Removal(self.group, self.name, self.version, self.keeper, by)

    def taken_over(self, by: str) -> Charter:
        """What the group is when that member has become its keeper, without the one that was."""
        return msgspec.structs.replace(
            self, version=self.version + TAKE_OVER_GAP, members=self.without(self.keeper), keeper=by
        )


class Removal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a volume hears that comes back and is no member any more; also what it keeps of that.
    `name`: the group's; `keeper`, `by`: the id and the name of the group's keeper."""

    group: VolumeId
    name: Name
    version: Count
    keeper: VolumeId
    by: Name

    def concerns(self, charter: Charter) -> bool:
        """It is later than what is known of the group."""
        later = (self.version, self.keeper) > (charter.version, charter.keeper)
        return self.group == charter.group and later

    def text(self, volume: str) -> str:
        """For people, of the volume of that name: what is so, and what to do."""
        return (
            f"volume {volume} is not in group {self.name!r} any more: {self.by}, its keeper, has"
            " taken it out; its parts of the group's snapshots stay here. Let it join again"
            " (raidfs-ctl group join), or make an end of it (raidfs-ctl group leave)"
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
    """To all: can you do this? The answer is Able or Objected."""

    work: Work


class Able(Said, frozen=True):
    """I can, and for a rollback my users are kept out; but I may still withdraw."""

    work: SnapshotId


class Bind(Said, frozen=True):
    """From the coordinator: all can; promise that you will. The answer is Agreed or Objected."""

    work: SnapshotId


class Agreed(Said, frozen=True):
    """I will, if I am told to: durably so. Who said it can't withdraw any more."""

    work: SnapshotId


class Objected(Said, frozen=True):
    """I can't, and have promised nothing. So it isn't done anywhere."""

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


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A volume's part of a group snapshot. `members`: the volumes that took part in it, `missing`:
    those left out, both empty if that isn't known. `pending`: not committed here yet."""

    snapshot: SnapshotId
    name: Name
    created_ns: Count
    epoch: Count
    holds: Annotated[tuple[Annotated[str, Meta(max_length=255)], ...], Meta(max_length=HOLDS_MAX)]
    members: Annotated[tuple[VolumeId, ...], Meta(max_length=MEMBERS_MAX)]
    missing: Annotated[tuple[VolumeId, ...], Meta(max_length=MEMBERS_MAX)] = ()
    pending: bool = False


class PartsAsked(Said, frozen=True):
    """Which parts of group snapshots are with you, of later epochs than that? `number`: never used
    before."""

    number: SnapshotId
    after: Count = 0


class PartsTold(Said, frozen=True):
    """These, by epoch; and more if it is asked for more, unless they are the `last`."""

    number: SnapshotId
    parts: Annotated[tuple[Part, ...], Meta(max_length=PARTS_AT_ONCE)]
    last: bool


class RenewAsked(Said, frozen=True):
    """To the keeper, over a link that proves who asks: a certificate for a new key of mine."""

    request: Annotated[bytes, Meta(max_length=4096)]


class RenewTold(Said, frozen=True):
    """The certificate (DER), or why there is none."""

    certificate: Annotated[bytes, Meta(max_length=8192)] = b""
    why: Reason = ""


class TakeOverAsked(Said, frozen=True):
    """The keeper is gone: may I be the keeper, and is this the group from then on?"""

    charter: Charter


class TakeOverTold(Said, frozen=True):
    """To a charter of that version: yes, or why not."""

    version: Count
    why: Reason = ""


class StateAsked(Said, frozen=True):
    """To who was sent the marker before this: tell me what you have recorded for the snapshot."""

    snapshot: SnapshotId


class StateTold(Said, frozen=True):
    """The state at the cut, and what was on its way to it, without the payload."""

    snapshot: SnapshotId
    state: VolumeState
    channels: Annotated[tuple[OnTheWay, ...], Meta(max_length=CHANNELS_MAX)] = ()


Working = Intend | Able | Bind | Agreed | Objected | Verdict | WorkDone | Release | WorkAsked
Moving = ContentAsked | ContentTold
Keeping = RenewAsked | RenewTold | TakeOverAsked | TakeOverTold
Looking = StateAsked | StateTold | PartsAsked | PartsTold
Spoken = Message | CharterTold | LeaveAsked | Keeping | Looking | Working | Moving
