"""The rules that the tables of marker.py name: what a process does at each step of a snapshot.

A rule is called with a snapshot's progress here (or, when it is over, without) and what is given.
It puts the next progress in place and says what is to be done; it calls for nothing else. Which
rule applies when is not decided here. The promises that the rules keep together: marker.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from . import events as e
from .messages import (
    Decision,
    DecisionKept,
    Done,
    Marker,
    Message,
    Outcome,
    Plan,
    Prepared,
    PreparedKept,
    Query,
    Refused,
    Result,
    Roster,
    VolumeResult,
)
from .progress import Given, Kind, Limits, Phase, Progress

REASON_CHARACTERS = 1000
WHY = {
    Kind.GATE_TIMEOUT: "the markers took longer than the gate may be shut",
    Kind.SETTLE_TIMEOUT: "not all volumes were prepared in time",
    Kind.CANCEL: "it was cancelled",
}


class Rules:
    """The state of a process, and the rules. Nothing but marker.py and recovery.py calls them."""

    def __init__(self, me: str, roster: Roster, limits: Limits | None = None) -> None:
        self.me = me
        self.roster = roster
        self.limits = limits or Limits()
        self.sessions: dict[str, int] = {}
        self._running: dict[bytes, Progress] = {}
        self._committed: set[bytes] = set()
        self._aborted: dict[bytes, str] = {}
        self._out: list[e.Action] = []

    def phase(self, snapshot: bytes) -> Phase:
        """Where that snapshot is, as far as it is known here."""
        if progress := self._running.get(snapshot):
            return progress.phase
        if snapshot in self._committed:
            return Phase.COMMITTED
        return Phase.ABORTED if snapshot in self._aborted else Phase.UNKNOWN

    @property
    def gate_shut(self) -> bool:
        return any(one.phase is Phase.RECORDING for one in self._running.values())

    def _taken(self) -> list[e.Action]:
        out, self._out = self._out, []
        return out

    # What the rules are made of.

    def _do(self, action: e.Action) -> None:
        self._out.append(action)

    def _reject(self, event: e.Event, reason: str) -> None:
        self._do(e.Rejected(event, reason))

    def _send(self, peer: str, message: Message) -> None:
        """To a peer, if it can be reached: whoever can't, asks when it is back."""
        session = self.sessions.get(peer)
        if session is not None:
            self._do(e.Send(peer, session, message))

    def _tell(self, progress: Progress, message: Message) -> None:
        for peer in progress.members:
            if peer != self.me:
                self._send(peer, message)

    def _put(self, progress: Progress) -> None:
        self._running[progress.plan.snapshot] = progress

    def _remember_aborted(self, snapshot: bytes, why: str) -> None:
        self._aborted[snapshot] = why[:REASON_CHARACTERS]
        while len(self._aborted) > self.limits.aborted_max:
            del self._aborted[next(iter(self._aborted))]

    def _open_gate(self, progress: Progress, phase: Phase) -> Progress:
        """Out of RECORDING, whatever comes after."""
        after = replace(progress, phase=phase, waiting=frozenset())
        self._put(after)
        self._do(e.OpenGate(progress.plan.snapshot, not self.gate_shut))
        return after

    def _over(self, progress: Progress, why: str) -> None:
        """It is aborted: nothing is left of it but its id."""
        snapshot = progress.plan.snapshot
        if progress.phase is Phase.RECORDING:
            self._open_gate(progress, Phase.ABORTED)
        del self._running[snapshot]
        self._remember_aborted(snapshot, why)
        self._do(e.Discard(snapshot))

    def _finish(self, progress: Progress, why: str = "") -> Progress:
        """Tells whoever asked, once."""
        if progress.finished:
            return progress
        committed = progress.phase in (Phase.COMMITTING, Phase.DISTRIBUTING)
        state: Literal["committed", "aborted", "in doubt"] = "committed" if committed else "aborted"
        if progress.phase is Phase.DECIDING:
            state = "in doubt"
        votes = {vote.volume: vote for vote in progress.votes}
        volumes = tuple(
            _volume(member, votes.get(member), committed, member in progress.done)
            for member in progress.members
        )
        self._do(e.Finished(Result(progress.plan, state, why[:REASON_CHARACTERS], volumes)))
        return replace(progress, finished=True)

    # Rules: the cut.

    def _obstacle(self, plan: Plan) -> str:
        """Why this process can't take part; empty if it can."""
        if (plan.version, plan.fingerprint) != (self.roster.version, self.roster.fingerprint):
            return (
                f"it is of membership version {plan.version}, and this volume knows "
                f"{'another' if plan.version == self.roster.version else self.roster.version}"
            )
        members = self._participants(plan)
        if self.me not in members or plan.initiator not in members:
            return "it leaves out this volume or the one that asks for it"
        if not set(plan.missing) <= set(self.roster.members):
            return "it leaves out a volume that is no member"
        away = [peer for peer in members if peer != self.me and peer not in self.sessions]
        if away:
            return f"there is no connection from {self.me} to {', '.join(away)}"
        if len(self._running) >= self.limits.snapshots_max:
            return f"{len(self._running)} snapshots are under way, the most there may be"
        return ""

    def _participants(self, plan: Plan) -> tuple[str, ...]:
        return tuple(sorted(set(self.roster.members) - set(plan.missing)))

    def _begin(self, given: Given) -> None:
        assert isinstance(given.event, e.Start)
        plan = given.event.plan
        why = self._obstacle(plan)
        if not why and plan.initiator != self.me:
            why = "it names another volume as the one that asks for it"
        if why:
            self._reject(given.event, why)
            return
        self._cut(plan, "")
        self._do(e.StartTimer(e.SettleTimeout(plan.snapshot), self.limits.settle_ms))

    def _join(self, given: Given) -> None:
        """The first marker: the same as the initiator did, and this channel's state is empty."""
        assert isinstance(given.message, Marker)
        plan = given.message.plan
        why = self._obstacle(plan)
        if plan.initiator == self.me:
            why = "its initiator was restarted and knows nothing of it"
        elif not why and given.peer not in self._participants(plan):
            self._reject(given.event, f"{given.peer} doesn't take part in this snapshot")
            return
        if not why:
            self._cut(plan, given.peer)
            return
        self._remember_aborted(plan.snapshot, why)
        for peer in sorted({*self.roster.members, plan.initiator, given.peer} - {self.me}):
            self._send(peer, Refused(plan.snapshot, why[:REASON_CHARACTERS]))

    def _cut(self, plan: Plan, first: str) -> None:
        members = self._participants(plan)
        peers = frozenset(members) - {self.me}
        progress = Progress(plan, Phase.RECORDING, members, peers - {first})
        self._put(progress)
        self._do(e.Cut(plan))
        self._tell(progress, Marker(plan))
        gate_ms = min(plan.gate_ms, self.limits.gate_ms_max)
        self._do(e.StartTimer(e.GateTimeout(plan.snapshot), gate_ms))
        self._settle_if_all_in(progress)

    def _marker(self, progress: Progress, given: Given) -> None:
        assert isinstance(given.message, Marker)
        if given.peer not in progress.waiting:
            self._reject(given.event, f"the marker of {given.peer} came before")
        elif given.message.plan != progress.plan:
            self._reject(given.event, "two different snapshots have the same id")
        else:
            after = replace(progress, waiting=progress.waiting - {given.peer})
            self._put(after)
            self._settle_if_all_in(after)

    def _settle_if_all_in(self, progress: Progress) -> None:
        if not progress.waiting:
            after = self._open_gate(progress, Phase.SETTLING)
            self._do(e.Prepare(PreparedKept(after.plan, after.members)))

    # Rules: two phases.

    def _durable(self, progress: Progress, given: Given) -> None:
        """SETTLING: all that is promised here is kept."""
        assert isinstance(given.event, e.Durable)
        epoch, gate_us = given.event.epoch, given.event.gate_us
        after = progress.with_vote(self.me, epoch, gate_us)
        snapshot, initiator = after.plan.snapshot, after.plan.initiator
        if initiator == self.me:
            self._decide_if_all_prepared(replace(after, phase=Phase.COLLECTING))
            return
        self._put(replace(after, phase=Phase.PREPARED))
        self._send(initiator, Prepared(snapshot, epoch, gate_us))
        self._do(e.StartTimer(e.AskTimeout(snapshot), self.limits.ask_ms))

    def _prepared(self, progress: Progress, given: Given) -> None:
        message = given.message
        assert isinstance(message, Prepared)
        if given.peer in progress.waiting or given.peer in progress.voted():
            self._reject(given.event, f"{given.peer} can't be prepared for it now")
            return
        after = progress.with_vote(given.peer, message.epoch, message.gate_us)
        self._decide_if_all_prepared(after)

    def _decide_if_all_prepared(self, progress: Progress) -> None:
        self._put(progress)
        if progress.voted() == set(progress.members):
            assert progress.phase is Phase.COLLECTING
            self._put(replace(progress, phase=Phase.DECIDING))
            self._do(e.Decide(DecisionKept(progress.plan, progress.votes)))

    def _decided(self, progress: Progress, given: Given) -> None:
        snapshot = progress.plan.snapshot
        after = replace(progress, phase=Phase.COMMITTING)
        self._put(after)
        self._tell(after, Decision(snapshot, "commit"))
        self._do(e.Commit(snapshot))
        self._do(e.StartTimer(e.DoneTimeout(snapshot), self.limits.done_ms))

    def _undecidable(self, progress: Progress, given: Given) -> None:
        """The decision may be kept or not: neither may be said."""
        self._put(self._finish(progress, given.why))

    def _commit(self, progress: Progress, given: Given) -> None:
        """PREPARED, and it is told at last."""
        if given.kind is Kind.COMMIT and given.peer != progress.plan.initiator:
            self._reject(given.event, f"{given.peer} has nothing to decide here")
            return
        self._put(replace(progress, phase=Phase.COMMITTING))
        self._do(e.Commit(progress.plan.snapshot))

    def _visible(self, progress: Progress, given: Given) -> None:
        snapshot = progress.plan.snapshot
        if progress.plan.initiator == self.me:
            after = replace(progress, phase=Phase.DISTRIBUTING, done=progress.done | {self.me})
            self._forget_if_all_done(after)
            return
        del self._running[snapshot]
        self._committed.add(snapshot)
        self._send(progress.plan.initiator, Done(snapshot))

    def _done(self, progress: Progress, given: Given) -> None:
        self._forget_if_all_done(replace(progress, done=progress.done | {given.peer}))

    def _forget_if_all_done(self, progress: Progress) -> None:
        self._put(progress)
        awaited = set(progress.members) & {self.me, *self.roster.members}
        if progress.phase is Phase.DISTRIBUTING and progress.done >= awaited:
            snapshot = progress.plan.snapshot
            self._finish(progress)
            del self._running[snapshot]
            self._committed.add(snapshot)
            self._do(e.Forget(snapshot))

    def _fewer(self, progress: Progress, given: Given) -> None:
        """DISTRIBUTING: who is no member any more is not waited for."""
        self._forget_if_all_done(progress)

    def _waited(self, progress: Progress, given: Given) -> None:
        away = ", ".join(sorted(set(progress.members) - progress.done))
        self._put(self._finish(progress, given.why or f"it will appear later in {away}"))

    # Rules: the abort.

    def _quit(self, progress: Progress, given: Given) -> None:
        """For a reason of our own; the others are told."""
        why = (given.why or WHY[given.kind])[:REASON_CHARACTERS]
        snapshot = progress.plan.snapshot
        mine = progress.plan.initiator == self.me
        told = Decision(snapshot, "abort", why) if mine else Refused(snapshot, why)
        self._over(progress, why)
        self._tell(progress, told)
        if mine:
            self._finish(progress, why)

    def _told(self, progress: Progress, given: Given) -> None:
        """Because another said so."""
        if given.kind is Kind.ABORT and given.peer != progress.plan.initiator:
            self._reject(given.event, f"{given.peer} has nothing to decide here")
            return
        self._over(progress, given.why)

    def _settling_alone(self, progress: Progress, given: Given) -> None:
        """SETTLING: only the initiator is still needed."""
        if given.peer == progress.plan.initiator:
            self._quit(progress, given)

    # Rules: in doubt.

    def _ask(self, progress: Progress, given: Given) -> None:
        plan = progress.plan
        asked = [plan.initiator] if plan.initiator in self.sessions else progress.members
        for peer in asked:
            if peer != self.me:
                self._send(peer, Query(plan.snapshot, plan.initiator))
        self._do(e.StartTimer(e.AskTimeout(plan.snapshot), self.limits.ask_ms))

    def _ask_peer(self, progress: Progress, given: Given) -> None:
        plan = progress.plan
        if given.peer == plan.initiator or plan.initiator not in self.sessions:
            self._send(given.peer, Query(plan.snapshot, plan.initiator))

    def _answer(self, progress: Progress, given: Given) -> None:
        self._send(given.peer, Outcome(progress.plan.snapshot, "commit"))

    def _remind(self, progress: Progress, given: Given) -> None:
        if given.peer not in progress.done:
            self._send(given.peer, Decision(progress.plan.snapshot, "commit"))

    def _stay(self, progress: Progress, given: Given) -> None:
        """Known, and of no consequence."""

    # Rules: what is over.

    def _past_stay(self, given: Given) -> None:
        """Late, and of no consequence."""

    def _past_aborted(self, given: Given) -> None:
        """It was aborted before anything else of it came here: it must not begin any more."""
        self._remember_aborted(given.snapshot, given.why)

    def _past_refuse(self, given: Given) -> None:
        self._send(given.peer, Refused(given.snapshot, self._aborted[given.snapshot]))

    def _past_tell_abort(self, given: Given) -> None:
        """A prepared participant, and we know of no commit."""
        why = self._aborted.get(given.snapshot, "its initiator knows nothing of it")
        self._remember_aborted(given.snapshot, why)
        self._send(given.peer, Decision(given.snapshot, "abort", why))

    def _past_presume(self, given: Given) -> None:
        assert isinstance(given.message, Query)
        if given.message.initiator == self.me:
            self._remember_aborted(given.snapshot, "its initiator knows nothing of it")
            self._send(given.peer, Outcome(given.snapshot, "abort"))

    def _past_answer(self, given: Given) -> None:
        known = self.phase(given.snapshot) is Phase.COMMITTED
        self._send(given.peer, Outcome(given.snapshot, "commit" if known else "abort"))

    def _past_done(self, given: Given) -> None:
        self._send(given.peer, Done(given.snapshot))

    def _past_deleted(self, given: Given) -> None:
        self._committed.discard(given.snapshot)


def _volume(name: str, vote: VolumeResult | None, committed: bool, done: bool) -> VolumeResult:
    if vote is None:
        return VolumeResult(name, "unprepared")
    state: Literal["visible", "pending", "prepared"] = "visible" if done else "pending"
    return VolumeResult(name, state if committed else "prepared", vote.epoch, vote.gate_us)


Rule = Callable[[Rules, Progress, Given], None]
PastRule = Callable[[Rules, Given], None]
