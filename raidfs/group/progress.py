"""How far a group snapshot is at one process: phases, what happens to them, and the values.

Phases, and what is true in each:
  RECORDING     cut; the gate is shut; markers of `waiting` are missing
  SETTLING      all markers are in, the gate is open; not yet durable
  PREPARED      (not the initiator) durable and said so: in doubt
  COLLECTING    (initiator) own part durable; somebody's Prepared is missing
  DECIDING      (initiator) all are prepared; the commit may be durable, or not
  COMMITTING    it is commit, for ever; here not yet visible
  DISTRIBUTING  (initiator) visible here; somebody's Done is missing
and when it is over, known by its id alone:
  COMMITTED, ABORTED (some time long), UNKNOWN
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from .events import Event
from .messages import GATE_MS_MAX, Message, Plan, VolumeResult


class Phase(StrEnum):
    UNKNOWN = "unknown"
    ABORTED = "aborted"
    COMMITTED = "committed"
    RECORDING = "recording"
    SETTLING = "settling"
    PREPARED = "prepared"
    COLLECTING = "collecting"
    DECIDING = "deciding"
    COMMITTING = "committing"
    DISTRIBUTING = "distributing"


class Kind(StrEnum):
    """What an event is to one snapshot."""

    START = "start"
    MARKER = "marker"
    PREPARED = "prepared"
    REFUSED = "refused"
    COMMIT = "commit"
    ABORT = "abort"
    LEARN_COMMIT = "learn commit"
    LEARN_ABORT = "learn abort"
    DONE = "done"
    QUERY = "query"
    PEER_UP = "peer up"
    PEER_DOWN = "peer down"
    MEMBERSHIP = "membership"
    OVERFLOW = "overflow"
    DURABLE = "durable"
    DECIDED = "decided"
    VISIBLE = "visible"
    FAILED = "failed"
    GATE_TIMEOUT = "gate timeout"
    SETTLE_TIMEOUT = "settle timeout"
    ASK_TIMEOUT = "ask timeout"
    DONE_TIMEOUT = "done timeout"
    CANCEL = "cancel"
    RESOLVE_COMMIT = "resolve commit"
    RESOLVE_ABORT = "resolve abort"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a process: how much it holds, how long it waits."""

    snapshots_max: int = 64
    channel_bytes_max: int = 64 << 20  # recorded for one snapshot
    gate_ms_max: int = GATE_MS_MAX
    settle_ms: int = 60_000
    ask_ms: int = 2_000
    done_ms: int = 10_000
    aborted_max: int = 1024  # remembered


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one snapshot is, here. A value: each step makes a new one."""

    plan: Plan
    phase: Phase
    members: tuple[str, ...]
    waiting: frozenset[str] = frozenset()
    channel_bytes: int = 0
    votes: tuple[VolumeResult, ...] = ()
    done: frozenset[str] = frozenset()
    finished: bool = False  # whoever asked has been told

    def voted(self) -> frozenset[str]:
        return frozenset(vote.volume for vote in self.votes)

    def with_vote(self, volume: str, epoch: int, gate_us: int) -> Progress:
        vote = VolumeResult(volume, "prepared", epoch, gate_us)
        return replace(self, votes=tuple(sorted((*self.votes, vote), key=lambda v: v.volume)))


@dataclass(frozen=True, slots=True)
class Given:
    """An event as one snapshot sees it. `peer`: who said it, or whose session it is."""

    snapshot: bytes
    kind: Kind
    event: Event
    peer: str = ""
    message: Message | None = None
    why: str = ""
