"""A volume's parts of the group snapshots under way: the gate, the cut, and what goes to disk.

The marker process (group.py) says what to do; here it is done to the store.

 1. Shutting the gate and cutting are one step of the event loop. In between, markers are sent:
    nothing can change any more, and the others cut meanwhile.
 2. From its cut until `open_gate`, for each snapshot, the gate is shut; it is counted, so several
    may have it shut at once.
 3. What takes time is done by one task per snapshot, in the order that it was said in, and
    answered with an event. After `end` nothing is begun.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import trio

from raidfs.daemon import fault
from raidfs.daemon.group_figures import Figures
from raidfs.errors import RaidfsError
from raidfs.group import events as e
from raidfs.group.messages import HiddenKept, Kept, Plan, Transfer, VisibleKept
from raidfs.store.store import Store

log = logging.getLogger("raidfs.group")

PREPARED, DECISION = "prepared", "decision"
Durably = e.Prepare | e.Decide | e.Commit | e.Discard | e.Forget


@dataclass(slots=True)
class _Part:
    """Of one snapshot here."""

    begun_ns: int = 0  # the gate is shut since; 0: it is not, for this one
    gate_us: int = 0
    recorded: list[tuple[str, bytes]] = field(default_factory=list)
    todo: deque[Durably] = field(default_factory=deque)
    is_worked_on: bool = False


class Parts:
    """Of one mounted volume. All methods belong to the event loop's thread."""

    def __init__(
        self,
        store: Store,
        figures: Figures,
        give: Callable[[e.Event], None],
        is_running: Callable[[bytes], bool],
        changed: Callable[[], None],
    ) -> None:
        """`give`: events for the process; `is_running`: whether it still has that snapshot;
        `changed`: something is done that others wait for."""
        self.store = store
        self.figures = figures
        self.gates = 0  # how many snapshots have the gate shut
        self.checks: list[Callable[[Plan], None]] = []  # RaidfsError: there is to be no cut
        self.on_cut: list[Callable[[bytes], None]] = []
        self.before_commit: Callable[[bytes], Awaitable[None]] | None = None
        self.looks: set[bytes] = set()  # snapshots of ours that are only to be looked at
        self._give = give
        self._is_running = is_running
        self._changed = changed
        self._parts: dict[bytes, _Part] = {}

    def is_settled(self) -> bool:
        """Nothing is being made durable."""
        return not any(part.is_worked_on for part in self._parts.values())

    def recorded(self, snapshot: bytes) -> list[tuple[str, bytes]]:
        """What was on its way here at its cut: from whom, and the message."""
        return self._part(snapshot).recorded

    def kept(self) -> list[Kept]:
        """What was promised, and what is there, for the process to recover from."""
        parts = self.store.group_snapshots
        found: list[Kept] = [VisibleKept(one) for one in parts.visible()]
        promised = set()
        for group_id, kind, value in self.store.meta.kept():
            if kind in (PREPARED, DECISION):
                found.append(msgspec.msgpack.decode(value, type=Kept))
                promised.add(group_id)
        return found + [HiddenKept(one) for one in sorted(parts.unfinished() - promised)]

    def end(self) -> None:
        """The process is no more."""
        self.open_all()
        self._parts.clear()

    def _part(self, snapshot: bytes) -> _Part:
        return self._parts.setdefault(snapshot, _Part())

    # -- at once ----------------------------------------------------------------------------------

    def shut_gate(self, snapshot: bytes) -> None:
        """Until `open_gate`."""
        if not fault.is_set("group.no-gate"):
            part = self._part(snapshot)
            part.begun_ns = time.perf_counter_ns()
            self.gates += 1
            self.store.gate.shut()

    def cut(self, plan: Plan) -> None:
        """Promise 1, after `shut_gate`. RaidfsError: there is no cut."""
        fault.here("group.before-cut")
        try:
            for check in self.checks:
                check(plan)
            self.store.group_snapshots.cut(plan.snapshot, plan.name, plan.created_ns)
        finally:
            for told in self.on_cut:
                told(plan.snapshot)
        fault.here("group.after-cut")

    def open_gate(self, snapshot: bytes) -> None:
        self._open(self._part(snapshot))

    def open_all(self) -> None:
        for part in self._parts.values():
            self._open(part)

    def _open(self, part: _Part) -> None:
        if part.begun_ns:
            part.gate_us = (time.perf_counter_ns() - part.begun_ns) // 1000
            part.begun_ns = 0
            self.gates -= 1
            self.store.gate.open()
            self.figures.gate_was_shut(part.gate_us)

    def record(self, snapshot: bytes, peer: str, message: Transfer) -> None:
        """It was on its way from there at the cut."""
        encoded = msgspec.msgpack.encode(message)
        self.figures.channel_bytes += len(encoded)
        self._part(snapshot).recorded.append((peer, encoded))

    # -- what takes time --------------------------------------------------------------------------

    def do(self, action: Durably, nursery: trio.Nursery) -> None:
        """Promise 3."""
        kept = isinstance(action, e.Prepare | e.Decide)
        snapshot = action.kept.plan.snapshot if kept else action.snapshot  # type: ignore[union-attr]
        part = self._part(snapshot)
        if snapshot in self.looks and isinstance(action, e.Prepare):
            return  # so that it is never committed
        part.todo.append(action)
        if not part.is_worked_on:
            part.is_worked_on = True
            nursery.start_soon(self._work, snapshot, part)

    async def _work(self, snapshot: bytes, part: _Part) -> None:
        try:
            while part.todo:
                action = part.todo.popleft()
                point = type(action).__name__.lower()
                try:
                    fault.here(f"group.before-{point}")
                    event = await self._done(snapshot, part, action)
                    fault.here(f"group.after-{point}")
                except RaidfsError as error:
                    log.warning("group snapshot %s, %s: %s", snapshot.hex(), point, error)
                    event = e.Failed(snapshot, str(error))
                if event is not None:
                    self._give(event)
        finally:
            part.is_worked_on = False
            if not self._is_running(snapshot):
                self._open(part)
                self._parts.pop(snapshot, None)
            self._changed()

    async def _done(self, snapshot: bytes, part: _Part, action: Durably) -> e.Event | None:
        parts = self.store.group_snapshots
        match action:
            case e.Prepare(kept):
                encoded = msgspec.msgpack.encode(kept)
                epoch = await parts.prepare(snapshot, encoded, part.recorded)
                return e.Durable(snapshot, epoch, part.gate_us)
            case e.Decide(kept):
                await parts.keep(snapshot, DECISION, msgspec.msgpack.encode(kept))
                return e.Decided(snapshot)
            case e.Commit():
                if self.before_commit is not None:
                    await self.before_commit(snapshot)
                await parts.commit(snapshot)
                return e.Visible(snapshot)
            case e.Discard():
                await parts.discard(snapshot)
            case e.Forget():
                await parts.keep(snapshot, DECISION, None)
        return None
