"""The two sides of a work (work.py has its promises): what each does about what happens, as tables.

States of a participant, and what is true in each:
  checking    asked; users are being kept out, and it is looked whether it can
  able        it can, users are kept out, and it may withdraw
  binding     the promise is being made durable; nobody was told of it
  abandoning  as binding, and it was given up
  agreed      it has promised, and doesn't know the verdict: in doubt
  doing       the verdict is "go": being done
  failing     the verdict is "go", and it could not be done; it is tried again
  done        done; users are kept out until it is done in all, or the coordinator is away
  dropping    the verdict is "no", users go on; the promise is being forgotten
and of a coordinator:
  asking      not all are able yet
  binding     not all have agreed yet
  deciding    all have; the verdict may be durable, or not
  doing       the verdict is "go", for ever; not all have said that they have done it
  dropping    all have; the verdict is being forgotten
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from .rules import REASON_CHARACTERS
from .work_events import (
    INTENT,
    VERDICT,
    Action,
    Do,
    Down,
    Drop,
    Failed,
    Finished,
    Free,
    Heard,
    Keep,
    Refuse,
    StartTimer,
    Timeout,
    TimerName,
    Up,
)

if TYPE_CHECKING:
    from .work import Works

Kind = str  # of an event, to one work


@dataclass
class Participant:
    """`why` it can't be done, although it was decided."""

    work: Work
    group: Works
    state: str = "checking"
    why: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "dropping")

    def _go(self, state: str, *actions: Action) -> None:
        self.state = state
        self.group.out += actions
        if state == "ended":
            del self.group.parts[self.work.work]

    def _say(self, message: Working) -> None:
        self.group.send(self.work.coordinator, message)

    def _timer(self, name: TimerName, delay_ms: int) -> Action:
        return StartTimer(Timeout(self.work.work, name), delay_ms)

    def _able(self, _: object) -> None:
        self._go("able", self._timer("able", self.group.limits.able))
        self._say(Able(self.work.work))

    def _unable(self, event: object) -> None:
        assert isinstance(event, Failed)
        self._go("ended", Free(self.work.work))
        self._say(Objected(self.work.work, event.why[:REASON_CHARACTERS]))

    def _withdraw(self, _: object) -> None:
        self._go("ended", Free(self.work.work))
        self._say(Objected(self.work.work, "it was not told in time that all others can"))

    def _bind(self, _: object) -> None:
        self._go("binding", Keep(self.work, INTENT))

    def _agree(self, _: object) -> None:
        self._go("agreed", self._timer("hold", self.group.limits.hold))
        self._say(Agreed(self.work.work))

    def _ask(self, _: object) -> None:
        self._say(WorkAsked(self.work.work))

    def _refuse(self, _: object) -> None:
        why = self.why or "the volume that has asked for it doesn't tell whether it is to be done"
        self._go(self.state, Refuse(self.work, why))

    def _stop(self, _: object) -> None:
        """Nothing was promised, and it was given up."""
        self._go("ended", Free(self.work.work))

    def _abandon_binding(self, _: object) -> None:
        """The promise may be durable by now, but nobody was told of it, nor will be."""
        self._go("abandoning")

    def _abandon(self, _: object) -> None:
        self._go("dropping", Free(self.work.work), Drop(self.work.work, INTENT))

    def _end(self, _: object) -> None:
        self._go("ended")

    def _do(self, _: object) -> None:
        self._go("doing", Do(self.work))

    def _did(self, _: object) -> None:
        self._go("done")
        self._say(WorkDone(self.work.work))
        if self.work.verb == "delete" or self.work.coordinator not in self.group.up:
            self._release(_)

    def _release(self, _: object) -> None:
        self._go("ended", Free(self.work.work))

    def _retry(self, event: object) -> None:
        assert isinstance(event, Failed)
        self.why = f"it was decided, and can't be done: {event.why}"
        retry = self._timer("retry", self.group.limits.retry)
        self._go("failing", Refuse(self.work, self.why), retry)


ParticipantRule = Callable[[Participant, object], None]
PARTICIPANT: dict[str, dict[Kind, ParticipantRule]] = {
    "checking": {
        "prepared": Participant._able,
        "failed": Participant._unable,
        "verdict no": Participant._stop,
        "coordinator down": Participant._stop,
    },
    "able": {
        "bind": Participant._bind,
        "able timeout": Participant._withdraw,
        "verdict no": Participant._stop,
        "coordinator down": Participant._stop,
    },
    "binding": {
        "kept": Participant._agree,
        "failed": Participant._unable,
        "verdict no": Participant._abandon_binding,
        "coordinator down": Participant._abandon_binding,
    },
    "abandoning": {"kept": Participant._abandon, "failed": Participant._stop},
    "agreed": {
        "verdict go": Participant._do,
        "verdict no": Participant._abandon,
        "resolve go": Participant._do,
        "resolve no": Participant._abandon,
        "coordinator up": Participant._ask,
        "hold timeout": Participant._refuse,
    },
    "doing": {"ended": Participant._did, "failed": Participant._retry},
    "failing": {"retry timeout": Participant._do},
    "done": {"release": Participant._release, "coordinator down": Participant._release},
    "dropping": {"dropped": Participant._end},
    "ended": {},
}
BUSY = frozenset({"checking", "able", "binding", "abandoning", "agreed", "doing", "failing"})


# -- the coordinator ------------------------------------------------------------------------------


@dataclass
class Coordinator:
    """`heard`: who is able, then who has agreed, then who has done it; `gone`: who is no member any
    more, and isn't waited for."""

    work: Work
    group: Works
    state: str = "asking"
    heard: set[str] = field(default_factory=set)
    gone: frozenset[str] = frozenset()
    is_finished: bool = False  # whoever asked knows
    is_released: bool = False

    @property
    def undone(self) -> frozenset[str]:
        left = self.gone if self.state == "doing" else frozenset()
        return frozenset(self.work.members) - self.heard - left

    def _go(self, state: str, *actions: Action) -> None:
        self.state = state
        self.group.out += actions
        if state == "ended":
            del self.group.votes[self.work.work]

    def _tell(self, message: Working) -> None:
        for member in self.work.members:
            self.group.send(member, message)

    def _finish(self, why: str = "") -> None:
        if not self.is_finished:
            self.is_finished = True
            undone = frozenset() if why else self.undone
            self.group.out.append(Finished(self.work.work, undone, why))

    def _timer(self, name: TimerName, delay_ms: int) -> None:
        self.group.out.append(StartTimer(Timeout(self.work.work, name), delay_ms))

    def begin(self) -> None:
        away = sorted(set(self.work.members) - self.group.up)
        if away:
            self._quit_for(f"{', '.join(away)} can't be reached")
            return
        self._timer("vote", self.group.limits.vote)
        self._tell(Intend(self.work))

    def _able(self, event: object) -> None:
        assert isinstance(event, Heard)
        self.heard.add(event.peer)
        if not self.undone:
            self.heard.clear()
            self._go("binding")
            self._timer("vote", self.group.limits.vote)
            self._tell(Bind(self.work.work))

    def _agreed(self, event: object) -> None:
        assert isinstance(event, Heard)
        self.heard.add(event.peer)
        if not self.undone:
            self.heard.clear()
            self._go("deciding", Keep(self.work, VERDICT))

    def _quit_for(self, why: str) -> None:
        self._go("ended")
        self._tell(Verdict(self.work.work, False))
        self._finish(why)

    def _objected(self, event: object) -> None:
        assert isinstance(event, Heard) and isinstance(event.message, Objected)
        self._quit_for(f"{event.peer}: {event.message.reason}")

    def _away(self, event: object) -> None:
        assert isinstance(event, Down)
        self._quit_for(f"the connection to {event.peer} ended")

    def _slow(self, _: object) -> None:
        self._quit_for(f"no answer in time from {', '.join(sorted(self.undone))}")

    def _cancel(self, _: object) -> None:
        self._quit_for("it was given up by whoever asked for it")

    def _undecidable(self, event: object) -> None:
        """The verdict may be durable or not: neither may be said."""
        assert isinstance(event, Failed)
        self._finish(f"it is in doubt until this volume is mounted again: {event.why}")

    def _decided(self, _: object) -> None:
        self._go("doing")
        self._timer("done", self.group.limits.done)
        self._tell(Verdict(self.work.work, True))
        self._look(_)

    def _remind(self, event: object) -> None:
        assert isinstance(event, Up)
        if event.peer in self.undone:
            self.group.send(event.peer, Verdict(self.work.work, True))

    def _answer(self, event: object) -> None:
        assert isinstance(event, Heard)
        self.group.send(event.peer, Verdict(self.work.work, True))

    def _done(self, event: object) -> None:
        assert isinstance(event, Heard)
        self.heard.add(event.peer)
        if self.is_released:
            self._again(event)
        self._look(event)

    def _again(self, event: object) -> None:
        assert isinstance(event, Heard)
        self.group.send(event.peer, Release(self.work.work))

    def _look(self, _: object) -> None:
        """Promise 4: who is away shows nobody anything, so nobody has to wait for it."""
        if not self.undone & self.group.up:
            self._release(_)
        if not self.undone:
            self._go("dropping", Drop(self.work.work, VERDICT))

    def _release(self, _: object) -> None:
        self._finish()
        if not self.is_released:
            self.is_released = True
            self._tell(Release(self.work.work))

    def _give_up(self, _: object) -> None:
        self.gone |= frozenset(self.work.members) - self.group.up
        self._look(_)

    def _end(self, _: object) -> None:
        self._go("ended")


CoordinatorRule = Callable[[Coordinator, object], None]
_UNDECIDED: dict[Kind, CoordinatorRule] = {
    "objected": Coordinator._objected,
    "member down": Coordinator._away,
    "vote timeout": Coordinator._slow,
    "cancel": Coordinator._cancel,
}
COORDINATOR: dict[str, dict[Kind, CoordinatorRule]] = {
    "asking": {**_UNDECIDED, "able": Coordinator._able},
    "binding": {**_UNDECIDED, "agreed": Coordinator._agreed},
    "deciding": {"kept": Coordinator._decided, "failed": Coordinator._undecidable},
    "doing": {
        "workdone": Coordinator._done,
        "workasked": Coordinator._answer,
        "member up": Coordinator._remind,
        "member down": Coordinator._look,
        "membership": Coordinator._look,
        "done timeout": Coordinator._release,
        "resolve go": Coordinator._give_up,
    },
    "dropping": {"dropped": Coordinator._end, "workdone": Coordinator._again},
    "ended": {},
}
