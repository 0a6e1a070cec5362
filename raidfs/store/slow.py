"""Slow members of an open store: who is noticed, what is told of it, and what is asked of them to
see whether they answer again.

Reads by Python notice themselves (raid/patience.py). Reads by the engine wait for nobody in a
thread of their own, so a look at each of them every few hundredths of a second does it here.

 1. A read by the engine is given up, and handed to Python, not much after its member's deadline;
    all others that wait for that member at the same time.
 2. A look that came late itself notices nobody: then it was this process that stood still.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import trio

from .. import native
from ..columns import Columns, Wait
from ..engine import Engine
from ..raid.array import Array, MemberState
from ..raid.assembly import Assembly
from ..raid.patience import Patience
from .mirror import Mirror
from .notices import Notices

if TYPE_CHECKING:
    from .store import Store

STALLED = 4  # looks that were left out
LEARN_S = 1.0
QUIET_S, IDLE_LOOK_S = 1.0, 0.25  # with nobody waiting for so long, looks are rarer
STUCK_MAX = 128  # reads by the engine, given up and not answered: while there are so many, nobody
# who is slow is read again
CELLS_TRIED = 8  # for one that the kernel has not in memory
NORMAL = "MemberNormal"


class SlowMembers:
    """Of one store. `run` and all else belong to the event loop's thread, but `sit_out`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._random = random.Random(0)  # noqa: S311
        self._learned = 0.0
        patience = store.array.patience
        self.patience = patience or Patience()  # one that nobody asks
        self._active = patience is not None
        if patience is None:
            return
        patience.on_sit_out = self._sit_out
        patience.on_tell = self._tell
        patience.may_sit_out = self._may_sit_out
        patience.probe = self._probe_of

    async def run(self) -> None:
        """Until cancelled."""
        last = busy = trio.current_time()
        while self._active:
            step_s = self.patience.look_s
            if last - busy > QUIET_S and not self.patience.slow:
                step_s = max(step_s, IDLE_LOOK_S)
            await trio.sleep(step_s)
            now = trio.current_time()
            if self.look(notice=now - last < STALLED * step_s):
                busy = now
            last = now
            if now - self._learned > LEARN_S:
                self._learned = now
                self.learn()

    def look(self, notice: bool = True) -> bool:
        """Promises 1 and 2. Returns whether anybody waits."""
        columns, patience = self.store.columns, self.patience
        waits = columns.waiting()
        overdue = [wait for wait in waits if self._overdue(wait)] if notice else []
        overdue.sort(key=lambda wait: -wait.oldest_s)
        for wait in overdue:
            patience.late(wait.member, wait.oldest_s, wait.reads)
        for wait in waits:
            if wait.member in patience.sitting or wait in overdue:
                columns.give_up(wait.member)
        if overdue and self.store.engine is not None:
            self.store.engine.relieve(columns.statistics().stuck)
        if patience.slow and columns.statistics().stuck < STUCK_MAX:
            patience.look()
        return bool(waits)

    def _overdue(self, wait: Wait) -> bool:
        return wait.oldest_s > self.patience.deadline_s(wait.member)

    def learn(self) -> None:
        """What is usual."""
        for member, state in self.store.array.states.items():
            if state.member is not None and not state.member.never_waits:
                self.patience.learn(member, self.store.columns.latencies(member))
        self.patience.reckon()

    # -- telling ----------------------------------------------------------------------------------

    def described(self) -> dict[int, str]:
        """Members that are slow, and how."""
        told = {member: self.patience.describe(member) for member in self.patience.statistics()}
        return {member: text for member, text in told.items() if text}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """By member: how its reads went, those by the engine as of a second ago."""
        sitting = self.patience.sitting
        return {
            str(member): {
                "late_reads": it.late,
                "median_s": it.median_s,
                "p99_s": it.usual_s,
                "deadline_s": it.deadline_s,
                "slow_s": it.slow_s,
                "longest_s": it.longest_s,
                "sits_out": member in sitting,
            }
            for member, it in self.patience.statistics().items()
        }

    # -- what patience asks for -------------------------------------------------------------------

    def _sit_out(self, member: int, sits: bool) -> None:
        """In any thread; but members are read again by `look`."""
        self.store.columns.sit_out(member, sits)
        if not sits:
            self.store.feed.normal(member)

    def _tell(self, what: Literal["slow", "normal"], member: int, text: str) -> None:
        it = self.patience.statistics()[member]
        self.store.events.note(
            "MemberSlow" if what == "slow" else NORMAL,
            member,
            text,
            late_reads=it.late,
            usual_ms=None if it.usual_s is None else round(1000 * it.usual_s, 3),
            deadline_ms=round(1000 * it.deadline_s, 3),
            longest_ms=round(1000 * it.longest_s, 3),
        )

    def _may_sit_out(self, member: int) -> bool:
        """In any thread: whether the others are ever enough."""
        space = self.store.space
        if space.code.tolerance > 0:
            return True
        return any(zone.map.code.tolerance > 0 for zone in list(space.zones.values()))

    def _probe_of(self, member: int) -> Callable[[], object] | None:
        """A read of a cell that the member has and the kernel hasn't; whatever is in it."""
        state = self.store.array.states.get(member)
        found = [
            (zone.map, column, slot)
            for zone in self.store.space.zones.values()
            for column, (number, slot) in enumerate(zone.map.columns)
            if number == member
        ]
        if state is None or state.member is None:
            return None
        it, size = state.member, self.store.cell_bytes
        out = native.aligned((1, size))
        if not found:
            return lambda: it.read_label(0)
        tried = []
        for _ in range(CELLS_TRIED):
            zone, column, slot = self._random.choice(found)
            row = self._random.randrange(zone.rows)
            tried.append((zone.zone, column, slot, row * size))

        def read() -> None:
            for place in tried:
                if not it.column_read_cached(*place, out.data.cast("B")):
                    it.column_read(*place, out.data.cast("B"))
                    return

        return read


def patience_for(slow_read_ms: int | None, assembly: Assembly) -> Patience | None:
    """For how long a read waits for one member where the others are enough. `slow_read_ms`: 0: as
    long as it takes; None: by what is usual. None: as long as it takes, as also where there is no
    engine, so no real member."""
    if slow_read_ms == 0 or not all(member.lends for member in assembly.members.values()):
        return None
    return Patience(None if slow_read_ms is None else slow_read_ms / 1000)


def array_of(
    states: dict[int, MemberState],
    cell_bytes: int,
    notices: Notices,
    mirror: Mirror,
    read_only: bool,
    engine: Engine | None,
) -> Array:
    """The array, as patient as who asks for metadata."""
    return Array(
        states,
        cell_bytes,
        notices.event,
        heal=not read_only,
        engine=engine,
        patience=mirror.asking.patience,
    )


def end_engine(engine: Engine | None, columns: Columns) -> None:
    """When the volume is closed: reads that were given up may never end, and nobody waits."""
    if engine is not None and columns.statistics().stuck:
        engine.leave()
    elif engine is not None:
        engine.close()
