"""What a process begins with after a restart, by what was kept: a table of all combinations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import assert_never

from ..errors import FormatError
from . import events as e
from .messages import DecisionKept, HiddenKept, Kept, PreparedKept, VisibleKept
from .progress import Phase, Progress
from .rules import Rules


@dataclass(slots=True)
class Found:
    """What was kept of one snapshot."""

    hidden: bool = False
    prepared: PreparedKept | None = None
    decision: DecisionKept | None = None
    visible: bool = False

    def add(self, item: Kept) -> None:
        match item:
            case HiddenKept():
                self.hidden = True
            case PreparedKept():
                self.prepared = item
            case DecisionKept():
                self.decision = item
            case VisibleKept():
                self.visible = True
            case _:
                assert_never(item)

    def case(self, me: str) -> tuple[str, bool, bool, bool]:
        """(whose, prepared, decided, visible)"""
        kept = self.decision or self.prepared
        whose = "nobody's" if kept is None else "mine" if kept.plan.initiator == me else "theirs"
        return whose, self.prepared is not None, self.decision is not None, self.visible

    def decided_progress(self, phase: Phase, done: frozenset[str]) -> Progress:
        assert self.decision
        members = tuple(vote.volume for vote in self.decision.volumes)
        votes = self.decision.volumes
        return Progress(self.decision.plan, phase, members, votes=votes, done=done, finished=True)


def _discard(process: Rules, snapshot: bytes, found: Found) -> None:
    process._remember_aborted(snapshot, "its initiator was restarted before it was decided")
    process._do(e.Discard(snapshot))


def _hidden(process: Rules, snapshot: bytes, found: Found) -> None:
    process._remember_aborted(snapshot, f"{process.me} was restarted before it was prepared")
    process._do(e.Discard(snapshot))


def _known(process: Rules, snapshot: bytes, found: Found) -> None:
    process._committed.add(snapshot)


def _in_doubt(process: Rules, snapshot: bytes, found: Found) -> None:
    assert found.prepared
    process._put(Progress(found.prepared.plan, Phase.PREPARED, found.prepared.members))
    process._do(e.StartTimer(e.AskTimeout(snapshot), process.limits.ask_ms))


def _committing(process: Rules, snapshot: bytes, found: Found) -> None:
    process._put(found.decided_progress(Phase.COMMITTING, frozenset()))
    process._do(e.Commit(snapshot))


def _distributing(process: Rules, snapshot: bytes, found: Found) -> None:
    progress = found.decided_progress(Phase.DISTRIBUTING, frozenset({process.me}))
    process._forget_if_all_done(progress)


def _impossible(process: Rules, snapshot: bytes, found: Found) -> None:
    raise FormatError(
        f"what is kept of group snapshot {snapshot.hex()} contradicts itself: run the check"
    )


RecoveryRule = Callable[[Rules, bytes, Found], None]

# (whose, prepared, decided, visible) -> rule; each combination has a row.
RECOVERY: dict[tuple[str, bool, bool, bool], RecoveryRule] = {
    ("nobody's", False, False, False): _hidden,
    ("nobody's", False, False, True): _known,
    ("mine", True, False, False): _discard,
    ("theirs", True, False, False): _in_doubt,
    ("mine", True, True, False): _committing,
    ("mine", False, True, True): _distributing,
    # made visible, and deleted since; others still have to hear of the commit
    ("mine", False, True, False): _distributing,
    # Commit is one durable step, and only the initiator decides
    ("mine", True, False, True): _impossible,
    ("mine", True, True, True): _impossible,
    ("theirs", True, False, True): _impossible,
    ("theirs", True, True, False): _impossible,
    ("theirs", True, True, True): _impossible,
    ("theirs", False, True, False): _impossible,
    ("theirs", False, True, True): _impossible,
}


def recover(process: Rules, kept: Iterable[Kept]) -> None:
    """Puts the process where it was. FormatError: what was kept contradicts itself."""
    found: dict[bytes, Found] = {}
    for item in kept:
        if isinstance(item, HiddenKept | VisibleKept):
            snapshot = item.snapshot
        else:
            snapshot = item.plan.snapshot
        found.setdefault(snapshot, Found()).add(item)
    for snapshot, one in found.items():
        RECOVERY[one.case(process.me)](process, snapshot, one)
