"""Works: what all volumes of a group do together without a cut, or none does; both sides as tables.

    coordinator                        participant (each volume, the coordinator's too)
    asking     -- Intend -->           checking    keeps users out, looks whether it can
               <-- Able --             able        may still withdraw, by itself
    binding    -- Bind -->             binding     the promise is made durable
               <-- Agreed --           agreed      in doubt: it can't withdraw any more
    deciding   the verdict is made durable
    doing      -- Verdict -->          doing       the work, and the end of the promise, in one step
               <-- WorkDone --         done        waits for the others
    ended      -- Release -->          ended

Two-phase commit, with a round before it in which all is done that takes time: who is in doubt has
only to wait for two small writes. A *work* is to delete a group snapshot, or to go back to one; for
the second users are kept out: they *wait*, and are *refused* where that takes long. Nothing here
awaits, has a clock or a socket: `handle` takes an event and gives the actions to carry out, in
their order. The states and what is true in each: work_sides.py.

 1. It is done in all volumes or in none. Agreed is said when the promise is durable, the verdict
    when it is itself; it is "go" only if all have agreed. A coordinator that knows nothing of a
    work has not decided to do it, and says so to whoever asks, or promises.
 2. The work and the end of the promise are one step: it is done once in each volume.
 3. No volume that has agreed lets users in before it knows the verdict and has acted on it, through
    crashes and partitions. So once a volume has changed, nobody is shown another as it was before.
 4. Who has done it keeps users waiting until all have, as long as the coordinator can be reached
    and the others can: what kernels have cached of the others is old until then.
 5. Nobody waits without end. Before the promise a volume withdraws: when its limit is over, or the
    coordinator can't be reached. After it users are refused (EIO) when the limit is over, until
    it is decided: by the coordinator, or by a person (Resolve) if that is gone for good.
 6. A volume takes part in one work at a time; a second one is objected to.
 7. Each event has an answer in each state: the tables', or none, which changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .charter import (
    Able,
    Agreed,
    Bind,
    Intend,
    Objected,
    Release,
    Verdict,
    Work,
    WorkAsked,
    WorkDone,
    Working,
)
from .work_events import (
    INTENT,
    VERDICT,
    Action,
    Cancel,
    Down,
    Dropped,
    Ended,
    Event,
    Failed,
    Heard,
    Kept,
    KeptKind,
    Membership,
    Prepare,
    Prepared,
    Rejected,
    Resolve,
    Send,
    Start,
    Timeout,
    Up,
    WorkLimits,
)
from .work_sides import BUSY, COORDINATOR, PARTICIPANT, Coordinator, Kind, Participant


class Works:
    """The works that volume `me` has to do with."""

    def __init__(self, me: str, limits: WorkLimits | None = None) -> None:
        self.me = me
        self.limits = limits or WorkLimits()
        self.up = {me}
        self.parts: dict[bytes, Participant] = {}
        self.votes: dict[bytes, Coordinator] = {}
        self.out: list[Action] = []
        self._own: deque[Working] = deque()  # what it says to itself

    @classmethod
    def recover(
        cls, me: str, kept: Iterable[tuple[KeptKind, Work]], limits: WorkLimits | None = None
    ) -> tuple[Works, list[Action]]:
        """Those of a volume just opened, before anybody sees it, and what to begin with."""
        works = cls(me, limits)
        rows = sorted(kept, key=lambda row: row[0] == INTENT)
        intended = {work.work for kind, work in rows if kind == INTENT}
        for kind, work in rows:
            if kind == VERDICT:
                vote = works.votes[work.work] = Coordinator(work, works, "doing", is_finished=True)
                if work.work not in intended:
                    vote.heard.add(me)  # it was done here
            else:
                part = works.parts[work.work] = Participant(work, works, "agreed")
                works.out.append(Prepare(work, again=True))
                works.out.append(part._timer("hold", works.limits.hold))
        for part in list(works.parts.values()):
            if part.work.coordinator == me:
                part._ask(None)
        for vote in list(works.votes.values()):
            vote._timer("done", works.limits.done)
            vote._look(None)
        return works, works._taken()

    def handle(self, event: Event) -> list[Action]:
        """What to do about an event, in this order."""
        match event:
            case Up(peer):
                self.up.add(peer)
                self._of_peer(peer, event, "up")
            case Down(peer):
                self.up.discard(peer)
                self._of_peer(peer, event, "down")
            case Membership(members):
                for number, vote in list(self.votes.items()):
                    vote.gone = frozenset(vote.work.members) - members
                    self._step(self.votes, number, "membership", event)
            case Heard(peer, message):
                self._heard(peer, message)
            case Start(work):
                vote = self.votes[work.work] = Coordinator(work, self)
                vote.begin()
            case Kept(number, kind) | Dropped(number, kind):
                what = type(event).__name__.lower()
                self._step(self.votes if kind == VERDICT else self.parts, number, what, event)
            case Timeout(number, name):
                self._both(number, f"{name} timeout", event)
            case Failed(number):
                self._failed(number, event)
            case Resolve(number, go):
                self._resolve(number, go, event)
            case Prepared(number) | Ended(number) | Cancel(number):
                self._both(number, type(event).__name__.lower(), event)
        return self._taken()

    def send(self, peer: str, message: Working) -> None:
        if peer == self.me:
            self._own.append(message)
        elif peer in self.up:
            self.out.append(Send(peer, message))

    def _taken(self) -> list[Action]:
        while self._own:
            self._heard(self.me, self._own.popleft())
        out, self.out = self.out, []
        return out

    def _step(
        self,
        those: dict[bytes, Participant] | dict[bytes, Coordinator],
        number: bytes,
        kind: Kind,
        event: object,
    ) -> bool:
        """The tables, applied; whether there was a rule."""
        one = those.get(number)
        if isinstance(one, Participant):
            part = PARTICIPANT[one.state].get(kind)
            if part is not None:
                part(one, event)
            return part is not None
        if one is not None:
            vote = COORDINATOR[one.state].get(kind)
            if vote is not None:
                vote(one, event)
            return vote is not None
        return False

    def _both(self, number: bytes, kind: Kind, event: object) -> None:
        self._step(self.votes, number, kind, event)
        self._step(self.parts, number, kind, event)

    def _failed(self, number: bytes, event: Failed) -> None:
        """Of whichever was asked to do something."""
        vote = self.votes.get(number)
        if vote is not None and vote.state == "deciding":
            self._step(self.votes, number, "failed", event)
        else:
            self._step(self.parts, number, "failed", event)

    def _of_peer(self, peer: str, event: object, what: str) -> None:
        for number, vote in list(self.votes.items()):
            if peer in vote.work.members:
                self._step(self.votes, number, f"member {what}", event)
        for number, part in list(self.parts.items()):
            if peer == part.work.coordinator:
                self._step(self.parts, number, f"coordinator {what}", event)

    def _heard(self, peer: str, message: Working) -> None:
        event = Heard(peer, message)
        kind = type(message).__name__.lower()
        match message:
            case Intend(work):
                if work.coordinator == peer and work.work not in self.parts:
                    self._intended(work)
            case Bind(number) | Verdict(number) | Release(number):
                self._told(peer, number, event, message)
            case Able(number) | Agreed(number) | WorkAsked(number) if number not in self.votes:
                self.send(peer, Verdict(number, False))  # promise 1
            case WorkDone(number) if number not in self.votes:
                self.send(peer, Release(number))
            case _:
                vote = self.votes.get(message.work)
                if vote is not None and peer in vote.work.members:
                    self._step(self.votes, message.work, kind, event)

    def _intended(self, work: Work) -> None:
        if any(part.state in BUSY for part in self.parts.values()):
            why = "another deletion or rollback of the group is under way"
            self.send(work.coordinator, Objected(work.work, why))
            return
        self.parts[work.work] = Participant(work, self)
        self.out.append(Prepare(work))

    def _told(self, peer: str, number: bytes, event: Heard, message: Working) -> None:
        """By the coordinator."""
        part = self.parts.get(number)
        if isinstance(message, Bind) and part is None:
            self.send(peer, Objected(number, "it was withdrawn"))
        elif isinstance(message, Verdict) and message.go and (part is None or part.is_over):
            self.send(peer, WorkDone(number))  # done before; the answer may be lost
        elif part is not None and peer == part.work.coordinator:
            kind = type(message).__name__.lower()
            if isinstance(message, Verdict):
                kind = "verdict go" if message.go else "verdict no"
            self._step(self.parts, number, kind, event)

    def _resolve(self, number: bytes, go: bool, event: Resolve) -> None:
        kind = "resolve go" if go else "resolve no"
        found = self._step(self.parts, number, kind, event)
        found = self._step(self.votes, number, kind, event) or found
        if not found:
            state = self.phase(number)
            self.out.append(Rejected(number, f"the work is {state} here: {kind} makes no sense"))

    def phase(self, number: bytes) -> str:
        """For people."""
        part, vote = self.parts.get(number), self.votes.get(number)
        if part is not None and (vote is None or part.state in ("agreed", "failing")):
            return {"agreed": "in doubt", "failing": part.why}.get(part.state, part.state)
        if vote is not None:
            away = ", ".join(sorted(vote.undone - self.up)) if vote.state == "doing" else ""
            return f"waiting for {away}" if away else vote.state
        return "unknown"

    def promised(self) -> list[Work]:
        """By this volume, and not done."""
        bound = ("binding", "agreed", "doing", "failing")
        return [part.work for part in self.parts.values() if part.state in bound]

    def owed(self) -> list[Work]:
        """What others rely on: promises, and verdicts that not all may have heard of."""
        decided = [one.work for one in self.votes.values() if one.state in ("deciding", "doing")]
        return [*self.promised(), *(work for work in decided if work.work not in self.parts)]

    def pending(self) -> list[Work]:
        """Under way, in doubt, or not yet done everywhere."""
        found = {number: vote.work for number, vote in self.votes.items()}
        found |= {number: part.work for number, part in self.parts.items()}
        return list(found.values())
