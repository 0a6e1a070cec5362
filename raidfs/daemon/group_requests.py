"""What can be asked of a daemon about its group, and what it answers."""

from __future__ import annotations

import msgspec

from raidfs.daemon.control import Request
from raidfs.group.charter import Charter, Member
from raidfs.group.messages import GATE_MS


class GroupStatusRequest(Request, frozen=True, tag="group-status"):
    """Answered with a GroupStatus."""


class GroupInitRequest(Request, frozen=True, tag="group-init"):
    """A new group, of this volume, its keeper, and of others that are asked to adopt it next.
    `listen`: tcp:HOST:PORT, or empty if all are on this host. Answered with the Charter."""

    name: str = ""
    listen: str = ""
    gate_ms: int = GATE_MS
    others: tuple[Member, ...] = ()


class GroupAdoptRequest(Request, frozen=True, kw_only=True, tag="group-adopt"):
    """To be in that group, which has this volume among its members. Answered with the Charter."""

    charter: Charter


class GroupAdmitRequest(Request, frozen=True, kw_only=True, tag="group-admit"):
    """To the keeper, from who is on the same host: another member. Answered with the Charter."""

    member: Member


class GroupInviteRequest(Request, frozen=True, tag="group-invite"):
    """To the keeper. Answered with a token, good for one volume and so many seconds."""

    lifetime_s: float = 3600.0


class GroupJoinRequest(Request, frozen=True, tag="group-join"):
    """By a token. `renew`: it is in the group, and only its certificate is to be a new one.
    Answered with the Charter."""

    token: str = ""
    listen: str = ""
    renew: bool = False


class GroupLeaveRequest(Request, frozen=True, tag="group-leave"):
    """`force`: without asking anybody. Answered with a GroupLeft."""

    force: bool = False


class GroupExpelRequest(Request, frozen=True, kw_only=True, tag="group-expel"):
    """To the keeper: a volume (id or name) is a member no more. `force`: although it is reached.
    Answered with the Charter."""

    volume: str
    force: bool = False


class GroupTakeOverRequest(Request, frozen=True, tag="group-take-over"):
    """To who is to be the keeper, since the keeper is gone for good. `force`: without a majority of
    all members. Answered with the Charter."""

    force: bool = False


class GroupSnapshotRequest(Request, frozen=True, tag="group-snapshot"):
    """Answered with a GroupTaken, whatever became of it. `allow_missing`: without the volumes that
    can't be reached."""

    name: str = ""
    allow_missing: bool = False


class GroupListRequest(Request, frozen=True, tag="group-list"):
    """Answered with a GroupListed. `name`: that one only. `everywhere`: others are asked what they
    have."""

    name: str = ""
    everywhere: bool = False


class GroupWorkRequest(Request, frozen=True, tag="group-work"):
    """`kind`: delete or rollback. Answered with a GroupWorked."""

    kind: str = ""
    name: str = ""
    keep: str = ""
    delete_newer: bool = False


class GroupWaitRequest(Request, frozen=True, tag="group-wait"):
    """Answered with a GroupStatus when all members are reached and nothing is under way or in doubt
    here; or with an error after so long."""

    timeout_s: float = 60.0


class GroupResolveRequest(Request, frozen=True, tag="group-resolve"):
    """A person's word on a snapshot in doubt whose initiator is gone for good."""

    snapshot: str = ""
    commit: bool = False


class MoveRequest(Request, frozen=True, kw_only=True, tag="move"):
    """To the source: what is there goes to another volume, into the directory `place` (a path from
    its root), as `name`. `wait`: for room. Answered with MoveProgress, the last of them saying
    "moved" (or "would move", with `dry_run`); or with an error: then nothing was moved."""

    source: tuple[bytes, ...]
    target: str
    place: tuple[bytes, ...]
    name: bytes
    wait: bool = False
    dry_run: bool = False


class MoveCheckRequest(Request, frozen=True, kw_only=True, tag="move-check"):
    """To the target: would that be refused? Answered with its free bytes."""

    place: tuple[bytes, ...]
    name: bytes
    size_bytes: int
    wait: bool = False


class MoveProgress(msgspec.Struct, frozen=True):
    """Bytes of content; `name`: what it is called in the end."""

    state: str
    done: int
    total: int
    files: int
    seconds: float
    name: bytes = b""


class GroupCheckRequest(Request, frozen=True, tag="group-check"):
    """Answered with a GroupCondition."""


class PeerTold(msgspec.Struct, frozen=True):
    """A member. `why` it can't be reached, if it isn't `up`, and since when. `certificate_ends_s`:
    the time (of the epoch of 1970) after which it can't be reached; None: it has none, or that is
    not known here."""

    volume: str
    name: str
    addresses: tuple[str, ...]
    up: bool
    why: str
    me: bool
    away_since_ns: int = 0
    certificate_ends_s: int | None = None


class GroupLeft(msgspec.Struct, frozen=True):
    """`notes`: what is to be known of it, as sentences."""

    group: str
    notes: list[str]


class RunningTold(msgspec.Struct, frozen=True):
    """A snapshot that is under way or in doubt."""

    id: str
    name: str
    created_ns: int
    initiator: str
    phase: str


class MoveTold(msgspec.Struct, frozen=True):
    """A move that is under way here. `way`: "to" or "from" `peer`; `state`: as in group/move.py;
    `up`: the other side can be reached."""

    id: str
    name: str
    way: str
    peer: str
    state: str
    begun_ns: int
    size_bytes: int
    up: bool


class GateFigures(msgspec.Struct, frozen=True):
    """So many gates (`counts`) were shut for at most so long (`bounds_us`); the last for longer.
    `sum_us`: all together."""

    bounds_us: tuple[int, ...]
    counts: tuple[int, ...]
    max_us: int
    sum_us: int = 0


class GroupStatus(msgspec.Struct, frozen=True):
    """`group` is empty where there is none. `obstacle`, `trouble`: why this volume is not in it;
    `out`: it was taken out of it. `authority_ends_s`: as of certificates."""

    volume: str
    volume_id: str
    group: str
    group_id: str
    keeper: str
    version_of_members: int
    gate_ms: int
    members: list[PeerTold]
    listening: list[str]
    obstacle: str
    trouble: str
    running: list[RunningTold]
    works: list[str]
    gate: GateFigures
    results: dict[str, int]
    channel_bytes: int
    snapshots: int
    moves: list[MoveTold] = []
    out: str = ""
    authority_ends_s: int | None = None
    certificate_trouble: str = ""


class VolumeTaken(msgspec.Struct, frozen=True):
    """A volume's part of a snapshot. `state`: as in group/messages.py, or "missing"."""

    volume: str
    name: str
    state: str
    epoch: int
    gate_us: int


class GroupTaken(msgspec.Struct, frozen=True):
    """What became of a snapshot. `state`: "committed", "aborted", "in doubt"."""

    group: str
    id: str
    name: str
    created_ns: int
    state: str
    reason: str
    volumes: list[VolumeTaken]
    seconds: float


class GroupPartTold(msgspec.Struct, frozen=True):
    """A volume's part. `state`: "here", "pending" (it will appear there), "LACKING" (it took part,
    and has none), "away" (not known), "left out", "left the group"."""

    volume: str
    name: str
    state: str
    epoch: int


class GroupSnapshotTold(msgspec.Struct, frozen=True):
    """A committed one, as this volume has it. Of those below only if others were asked: `state` is
    "complete", "INCOMPLETE" or "unknown" (of some member); `epoch` 0: it isn't in this volume;
    `holds`: of all."""

    id: str
    name: str
    created_ns: int
    epoch: int
    holds: tuple[str, ...]
    path: str
    state: str = ""
    parts: tuple[GroupPartTold, ...] = ()


class GroupListed(msgspec.Struct, frozen=True):
    group: str
    volume: str
    snapshots: list[GroupSnapshotTold]


class GroupWorked(msgspec.Struct, frozen=True):
    """`pending`: volumes that will do it when they are back."""

    group: str
    verb: str
    name: str
    id: str
    pending: list[str]


class GroupCondition(msgspec.Struct, frozen=True):
    """Properties that stay true once they are. `graph`: sentences, who waits for whom."""

    group: str
    terminated: bool
    termination: str
    outstanding: list[str]
    deadlocked: bool
    deadlock: str
    graph: list[str]
