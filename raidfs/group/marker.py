"""The marker process: one per mount daemon; the whole protocol of group snapshots as tables.

Chandy and Lamport, "Distributed Snapshots" (ACM TOCS 3(1), 1985): who starts a snapshot, or meets
the first marker of one, records its own state (the cut) and sends a marker on each of its channels
before anything else; what arrives on a channel between the own cut and that channel's marker was on
its way, and is the channel's recorded state. Added to it are the gate, for causality that takes a
way past the channels (an application is answered by A, then asks B), and two phases, so that the
recorded state appears everywhere or nowhere.

Words. *Participant*: a volume of the roster that the plan doesn't call missing; the initiator is
one. *Prepared*: can do both, commit and abort, through any crash. *In doubt*: prepared, and not
told. *Session*: see events.py. Nothing here awaits, has a clock, a socket or randomness: `handle`
takes an event and gives the actions to carry out, in their order.

 1. Between a cut and its markers no other message is sent: `Cut` and all markers come out of one
    event, and whoever sends anything to a peer does so through `handle`.
 2. No reply to an application leaves between a cut and the last peer's marker. So if w2 on B
    follows from the reply to w1 on A, and w1 is after A's cut, then B had cut before w2 came.
 3. The gate opens for each snapshot at the last marker, at its timer, or at the abort.
 4. If a session ends between a cut and its marker, the snapshot aborts: a message may be lost.
 5. Prepared is said after what was promised is durable; commit after the decision is. The decision
    is commit only if all participants are prepared.
 6. Refused is said by who never is going to be prepared for that snapshot, so it proves the abort.
    An initiator that knows nothing of a snapshot of its own has aborted it.
 7. Who is in doubt asks until it hears. Who isn't in doubt waits for nothing.
 8. Every event has an answer in every state: the tables' or `Rejected`, which changes nothing.

The phases and what is true in each: progress.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from . import events as e
from .messages import (
    Decision,
    Done,
    Kept,
    Marker,
    Message,
    Outcome,
    Prepared,
    Query,
    Refused,
    Roster,
    Transfer,
)
from .progress import Given, Kind, Limits, Phase, Progress
from .recovery import recover
from .rules import PastRule, Rule, Rules


class Process(Rules):
    """The marker process of volume `me`. `fork` and `key` are for those who explore what may
    happen: a copy, and a value that is equal exactly for processes that will behave the same, but
    for the words of reasons and the order of snapshots that have nothing to do with each other."""

    @classmethod
    def recover(
        cls, me: str, roster: Roster, kept: Iterable[Kept], limits: Limits | None = None
    ) -> tuple[Process, list[e.Action]]:
        """The process of a volume just opened, and the actions to begin with. FormatError: what
        was kept contradicts itself."""
        process = cls(me, roster, limits)
        recover(process, kept)
        return process, process._taken()

    def handle(self, event: e.Event) -> list[e.Action]:
        """What to do about an event, in this order."""
        assert not self._out
        match event:
            case e.Received():
                self._received(event)
            case e.SessionUp():
                self._session_up(event)
            case e.SessionDown():
                self._session_down(event)
            case e.Membership():
                self._membership(event)
            case e.Transmit():
                self._transmit(event)
            case e.Start():
                self._step(Given(event.plan.snapshot, Kind.START, event, peer=self.me))
            case e.Failed():
                self._step(Given(event.snapshot, Kind.FAILED, event, why=event.why))
            case e.Resolve():
                kind = Kind.RESOLVE_COMMIT if event.commit else Kind.RESOLVE_ABORT
                why = "decided by a person"
                self._step(Given(event.snapshot, kind, event, peer=self.me, why=why))
            case _:
                self._step(Given(event.snapshot, _LOCAL[type(event)], event))
        return self._taken()

    def running(self) -> list[Progress]:
        """The snapshots that are under way here, oldest first."""
        return list(self._running.values())

    def fork(self) -> Process:
        other = Process(self.me, self.roster, self.limits)
        other.sessions = dict(self.sessions)
        other._running = dict(self._running)
        other._committed = set(self._committed)
        other._aborted = dict(self._aborted)
        return other

    def key(self) -> tuple[object, ...]:
        return (
            self.me,
            self.roster,
            frozenset(self.sessions.items()),
            frozenset(self._running.values()),
            frozenset(self._committed),
            frozenset(self._aborted),
        )

    # Events of the whole process, turned into what they are to each snapshot.

    def _received(self, event: e.Received) -> None:
        peer, message = event.peer, event.message
        if self.sessions.get(peer) != event.session:
            self._reject(event, f"it is of a session with {peer} that is over")
            return
        match message:
            case Transfer():
                self._transfer(event, message)
                return
            case Marker():
                snapshot, kind, why = message.plan.snapshot, Kind.MARKER, ""
            case Refused():
                snapshot, kind = message.snapshot, Kind.REFUSED
                why = f"{peer} refused: {message.reason}"
            case Decision():
                commit = message.verdict == "commit"
                snapshot, kind = message.snapshot, Kind.COMMIT if commit else Kind.ABORT
                why = message.reason
            case Outcome():
                commit = message.verdict == "commit"
                snapshot, why = message.snapshot, f"{peer} knows that it was aborted"
                kind = Kind.LEARN_COMMIT if commit else Kind.LEARN_ABORT
            case Prepared() | Done() | Query():
                snapshot, kind, why = message.snapshot, _SAID[type(message)], ""
            case _:
                assert_never(message)
        progress = self._running.get(snapshot)
        if progress and peer not in progress.members:
            self._reject(event, f"{peer} doesn't take part in this snapshot")
            return
        self._step(Given(snapshot, kind, event, peer, message, why))

    def _session_up(self, event: e.SessionUp) -> None:
        old = self.sessions.get(event.peer)
        if old == event.session:
            self._reject(event, "it is up already")
            return
        if old is not None:
            down = e.SessionDown(event.peer, old, "replaced by another session")
            self._session_down(down)
        self.sessions[event.peer] = event.session
        for snapshot, progress in list(self._running.items()):
            if event.peer in progress.members:
                self._step(Given(snapshot, Kind.PEER_UP, event, event.peer))

    def _session_down(self, event: e.SessionDown) -> None:
        if self.sessions.get(event.peer) != event.session:
            self._reject(event, "that session is not up")
            return
        del self.sessions[event.peer]
        why = f"the connection to {event.peer} ended: {event.why}"
        for snapshot, progress in list(self._running.items()):
            if event.peer in progress.members:
                self._step(Given(snapshot, Kind.PEER_DOWN, event, event.peer, why=why))

    def _membership(self, event: e.Membership) -> None:
        if event.roster == self.roster:
            return
        if event.roster.version <= self.roster.version:
            self._reject(event, f"roster {self.roster.version} is in force already")
            return
        self.roster = event.roster
        why = f"the group's membership changed to version {event.roster.version}"
        for snapshot in list(self._running):
            self._step(Given(snapshot, Kind.MEMBERSHIP, event, why=why))

    def _transmit(self, event: e.Transmit) -> None:
        if event.peer in self.sessions:
            self._send(event.peer, event.message)
        else:
            self._reject(event, f"there is no connection to {event.peer}")

    def _transfer(self, event: e.Received, message: Transfer) -> None:
        for snapshot, progress in list(self._running.items()):
            if event.peer not in progress.waiting:
                continue
            total = progress.channel_bytes + len(message.payload)
            if total > self.limits.channel_bytes_max:
                why = f"more than {self.limits.channel_bytes_max} bytes were on their way"
                self._step(Given(snapshot, Kind.OVERFLOW, event, event.peer, why=why))
            else:
                self._put(replace(progress, channel_bytes=total))
                self._do(e.Record(snapshot, event.peer, message))
        self._do(e.Deliver(event.peer, message))

    def _step(self, given: Given) -> None:
        """The tables, applied."""
        progress = self._running.get(given.snapshot)
        if progress is None:
            past = _PAST[self.phase(given.snapshot)].get(given.kind)
            if past:
                past(self, given)
                return
        else:
            table = INITIATOR if progress.plan.initiator == self.me else PARTICIPANT
            present = table[progress.phase].get(given.kind)
            if present:
                present(self, progress, given)
                return
        phase = self.phase(given.snapshot)
        self._reject(given.event, f"the snapshot is {phase} here: {given.kind} makes no sense")


_SAID: dict[type[Message], Kind] = {
    Prepared: Kind.PREPARED,
    Done: Kind.DONE,
    Query: Kind.QUERY,
}
_LOCAL: dict[type, Kind] = {
    e.Durable: Kind.DURABLE,
    e.Decided: Kind.DECIDED,
    e.Visible: Kind.VISIBLE,
    e.GateTimeout: Kind.GATE_TIMEOUT,
    e.SettleTimeout: Kind.SETTLE_TIMEOUT,
    e.AskTimeout: Kind.ASK_TIMEOUT,
    e.DoneTimeout: Kind.DONE_TIMEOUT,
    e.Cancel: Kind.CANCEL,
    e.Deleted: Kind.DELETED,
}
# (phase, kind) -> rule. What isn't in a table is Rejected.
_TIMERS: dict[Kind, Rule] = {
    Kind.GATE_TIMEOUT: Rules._stay,
    Kind.SETTLE_TIMEOUT: Rules._stay,
    Kind.ASK_TIMEOUT: Rules._stay,
    Kind.DONE_TIMEOUT: Rules._stay,
}
# What an undecided snapshot dies of, at its initiator.
_UNDECIDED: dict[Kind, Rule] = {
    **_TIMERS,
    Kind.PREPARED: Rules._prepared,
    Kind.REFUSED: Rules._quit,
    Kind.PEER_UP: Rules._stay,
    Kind.PEER_DOWN: Rules._quit,
    Kind.MEMBERSHIP: Rules._quit,
    Kind.FAILED: Rules._quit,
    Kind.SETTLE_TIMEOUT: Rules._quit,
    Kind.CANCEL: Rules._quit,
    Kind.QUERY: Rules._stay,
}
# What no longer changes anything once the decision is under way.
_FIRM: dict[Kind, Rule] = {
    **_TIMERS,
    Kind.PEER_UP: Rules._stay,
    Kind.PEER_DOWN: Rules._stay,
    Kind.MEMBERSHIP: Rules._stay,
}
INITIATOR: dict[Phase, dict[Kind, Rule]] = {
    Phase.RECORDING: {
        **_UNDECIDED,
        Kind.MARKER: Rules._marker,
        Kind.GATE_TIMEOUT: Rules._quit,
        Kind.OVERFLOW: Rules._quit,
    },
    Phase.SETTLING: {**_UNDECIDED, Kind.DURABLE: Rules._durable},
    Phase.COLLECTING: _UNDECIDED,
    Phase.DECIDING: {
        **_FIRM,
        Kind.DECIDED: Rules._decided,
        Kind.FAILED: Rules._undecidable,
        Kind.QUERY: Rules._stay,
    },
    Phase.COMMITTING: {
        **_FIRM,
        Kind.VISIBLE: Rules._visible,
        Kind.FAILED: Rules._waited,
        Kind.DONE: Rules._done,
        Kind.DONE_TIMEOUT: Rules._waited,
        Kind.PEER_UP: Rules._remind,
        Kind.QUERY: Rules._answer,
        Kind.DELETED: Rules._stay,
    },
    Phase.DISTRIBUTING: {
        **_FIRM,
        Kind.DONE: Rules._done,
        Kind.DONE_TIMEOUT: Rules._waited,
        Kind.PEER_UP: Rules._remind,
        Kind.QUERY: Rules._answer,
        Kind.DELETED: Rules._stay,
        Kind.MEMBERSHIP: Rules._fewer,
    },
}
PARTICIPANT: dict[Phase, dict[Kind, Rule]] = {
    Phase.RECORDING: {
        **_TIMERS,
        Kind.MARKER: Rules._marker,
        Kind.REFUSED: Rules._told,
        Kind.ABORT: Rules._told,
        Kind.PEER_UP: Rules._stay,
        Kind.PEER_DOWN: Rules._quit,
        Kind.MEMBERSHIP: Rules._quit,
        Kind.OVERFLOW: Rules._quit,
        Kind.FAILED: Rules._quit,
        Kind.GATE_TIMEOUT: Rules._quit,
        Kind.QUERY: Rules._stay,
    },
    Phase.SETTLING: {
        **_TIMERS,
        Kind.DURABLE: Rules._durable,
        Kind.REFUSED: Rules._told,
        Kind.ABORT: Rules._told,
        Kind.PEER_UP: Rules._stay,
        Kind.PEER_DOWN: Rules._settling_alone,
        Kind.MEMBERSHIP: Rules._quit,
        Kind.FAILED: Rules._quit,
        Kind.QUERY: Rules._stay,
    },
    Phase.PREPARED: {
        **_FIRM,
        Kind.COMMIT: Rules._commit,
        Kind.LEARN_COMMIT: Rules._commit,
        Kind.RESOLVE_COMMIT: Rules._commit,
        Kind.REFUSED: Rules._told,
        Kind.ABORT: Rules._told,
        Kind.LEARN_ABORT: Rules._told,
        Kind.RESOLVE_ABORT: Rules._told,
        Kind.PEER_UP: Rules._ask_peer,
        Kind.ASK_TIMEOUT: Rules._ask,
        Kind.QUERY: Rules._stay,
    },
    Phase.COMMITTING: {
        **_FIRM,
        Kind.VISIBLE: Rules._visible,
        Kind.FAILED: Rules._stay,
        Kind.COMMIT: Rules._stay,
        Kind.LEARN_COMMIT: Rules._stay,
        Kind.QUERY: Rules._answer,
        Kind.DELETED: Rules._stay,
    },
}
_LATE: dict[Kind, PastRule] = {
    Kind.DURABLE: Rules._past_stay,
    Kind.DECIDED: Rules._past_stay,
    Kind.VISIBLE: Rules._past_stay,
    Kind.FAILED: Rules._past_stay,
    Kind.GATE_TIMEOUT: Rules._past_stay,
    Kind.SETTLE_TIMEOUT: Rules._past_stay,
    Kind.ASK_TIMEOUT: Rules._past_stay,
    Kind.DONE_TIMEOUT: Rules._past_stay,
}
_PAST: dict[Phase, dict[Kind, PastRule]] = {
    Phase.UNKNOWN: {
        **_LATE,
        Kind.START: Rules._begin,
        Kind.MARKER: Rules._join,
        Kind.PREPARED: Rules._past_tell_abort,
        Kind.REFUSED: Rules._past_aborted,
        Kind.ABORT: Rules._past_aborted,
        # It was committed and deleted here: who is not told Done would ask for ever.
        Kind.COMMIT: Rules._past_done,
        Kind.LEARN_COMMIT: Rules._past_stay,
        Kind.LEARN_ABORT: Rules._past_stay,
        Kind.DONE: Rules._past_stay,
        Kind.QUERY: Rules._past_presume,
    },
    Phase.ABORTED: {
        **_LATE,
        Kind.MARKER: Rules._past_refuse,
        Kind.PREPARED: Rules._past_tell_abort,
        Kind.REFUSED: Rules._past_stay,
        Kind.ABORT: Rules._past_stay,
        Kind.LEARN_ABORT: Rules._past_stay,
        Kind.QUERY: Rules._past_answer,
    },
    Phase.COMMITTED: {
        **_LATE,
        Kind.COMMIT: Rules._past_done,
        Kind.LEARN_COMMIT: Rules._past_stay,
        Kind.DONE: Rules._past_stay,
        Kind.QUERY: Rules._past_answer,
        Kind.DELETED: Rules._past_deleted,
    },
}
