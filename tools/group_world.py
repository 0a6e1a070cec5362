"""The simulated world of marker processes that group_simulator.py drives, and its judge.

A `World` holds processes, the channels of their sessions, what their disks have not finished, what
is kept, and applications: chains of requests that each wait for the reply to the one before
(causality that no channel shows), and readers that learn all that a volume holds. Each thing that
may happen next is a `Step`; `finish` heals everything and then asks:

  - cut: in each snapshot, whatever an operation rests on is in it, too; each channel's messages are
    received, recorded or lost, once, and none is received that was not sent; lost ones only with a
    session that the receiver knew to be over when it cut;
  - whole: a snapshot is visible in all its volumes or in none, as its initiator was told, and
    without a fault it is visible;
  - no hang: applications go on, gates open, nobody stays in doubt, nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from raidfs.group import events as e
from raidfs.group.marker import Process
from raidfs.group.messages import (
    DecisionKept,
    HiddenKept,
    Kept,
    Marker,
    Plan,
    PreparedKept,
    Roster,
    Transfer,
    VisibleKept,
)
from raidfs.group.progress import Limits, Phase

SABOTAGES = (
    "marker lost",
    "marker overtaken",
    "gate opened early",
    "record not durable",
    "prepared not durable",
    "decision not durable",
    "prepared said early",
    "session end untold",
)
Step = tuple[object, ...]
KEEP_ALL = 99
STEPS_MAX = 20_000  # of one run
FAULTS = (
    "crashes",
    "breaks",
    "doubles",
    "timeouts",
    "failures",
    "rosters",
    "cancels",
    "deletes",
    "late",
)


def volume_id(number: int) -> str:
    return f"{number:032x}"


def number_of(volume: str) -> int:
    return int(volume, 16)


class Violation(AssertionError):
    """The protocol does not hold."""


@dataclass(frozen=True)
class Scenario:
    """What there is, and how many faults may come (any step may be followed by any other)."""

    volumes: int = 2
    chains: tuple[tuple[int, ...], ...] = ()
    initiators: tuple[int, ...] = (0,)
    transfers: tuple[tuple[int, int], ...] = ()
    crashes: int = 0
    breaks: int = 0
    doubles: int = 0
    timeouts: int = 0
    failures: int = 0
    rosters: int = 0
    cancels: int = 0
    deletes: int = 0
    late: int = 0  # timers that no longer mean anything, and go off
    channel_bytes: int = 1 << 20
    missing: bool = False
    readers: bool = False
    sabotage: str = ""


@dataclass(frozen=True)
class Content:
    """A volume at its cut. Operations are (chain, number)."""

    applied: frozenset[tuple[int, int]]
    sent: tuple[tuple[int, int], ...]  # (to, how many)
    got: frozenset[tuple[int, int]]  # (from, number)
    ended: frozenset[int]  # sessions whose end it knew of


@dataclass(frozen=True)
class OnDisk:
    """What one volume keeps of one snapshot."""

    content: Content | None = None
    recorded: frozenset[tuple[int, int]] = frozenset()
    prepared: PreparedKept | None = None
    decision: DecisionKept | None = None
    visible: bool = False

    def kept(self, snapshot: bytes) -> Iterator[Kept]:
        if self.content:
            yield HiddenKept(snapshot)
        if self.prepared:
            yield self.prepared
        if self.decision:
            yield self.decision
        if self.visible:
            yield VisibleKept(snapshot)


@dataclass
class Volume:
    """One daemon. All values are immutable, so that a copy is cheap."""

    process: Process | None
    roster: Roster
    disk: tuple[e.Action, ...] = ()  # asked for, not done
    told: tuple[e.Event, ...] = ()  # happened here, not handled
    timers: frozenset[e.Timer] = frozenset()
    gate: frozenset[bytes] = frozenset()
    cuts: dict[bytes, OnDisk] = field(default_factory=dict)  # in memory
    kept: dict[bytes, OnDisk] = field(default_factory=dict)
    applied: frozenset[tuple[int, int]] = frozenset()
    sent: dict[int, int] = field(default_factory=dict)
    got: frozenset[tuple[int, int]] = frozenset()
    ended: frozenset[int] = frozenset()
    broken: bool = False  # its disk fails; only a new mount helps

    def fork(self) -> Volume:
        return replace(
            self,
            process=self.process and self.process.fork(),
            cuts=dict(self.cuts),
            kept=dict(self.kept),
            sent=dict(self.sent),
        )

    def key(self) -> tuple[object, ...]:
        return (
            self.process and self.process.key(),
            self.roster.version,
            self.disk,
            self.told,
            self.timers,
            self.gate,
            tuple(sorted(self.cuts.items(), key=lambda item: item[0])),
            tuple(sorted(self.kept.items(), key=lambda item: item[0])),
            self.applied,
            tuple(sorted(self.sent.items())),
            self.got,
            self.ended,
            self.broken,
        )


@dataclass(frozen=True)
class Item:
    """What a channel brings: kind "up", "down" or "message", of a session."""

    kind: str
    session: int
    message: object = None


class World:
    """Everything there is at one moment, and what may come next."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        n = scenario.volumes
        self.rosters = [Roster(1, tuple(volume_id(v) for v in range(n)))]
        roster = self.rosters[0]
        self.limits = Limits(channel_bytes_max=scenario.channel_bytes)
        self.volumes = [
            Volume(Process(volume_id(v), roster, self.limits), roster) for v in range(n)
        ]
        self.sessions: dict[tuple[int, int], int] = {}
        self.session_last = 0
        self.inbox: dict[tuple[int, int], tuple[Item, ...]] = {}
        self.lost: frozenset[tuple[int, int, int, int]] = frozenset()  # and its session
        self.apps = tuple((0, 0) for _ in scenario.chains)
        self.known: dict[int, frozenset[tuple[int, int]]] = {}
        self.rests: dict[tuple[int, int], frozenset[tuple[int, int]]] = {}
        self.starts_left = tuple(range(len(scenario.initiators)))
        self.transfers_left = scenario.transfers
        self.budget = {name: getattr(scenario, name) for name in FAULTS}
        self.plans: dict[bytes, Plan] = {}
        self.outcomes: dict[bytes, str] = {}
        self.excused: frozenset[bytes] = frozenset()  # its initiator was restarted: none is told
        self.decided: frozenset[bytes] = frozenset()
        self.deleted: dict[tuple[int, bytes], OnDisk] = {}
        self.spoiled = False
        self.faulty = scenario.channel_bytes < 1 << 10
        for a in range(n):
            for b in range(a + 1, n):
                self.do(("join", a, b))
        self.quiet()

    def fork(self) -> World:
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.volumes = [volume.fork() for volume in self.volumes]
        for name in (
            "sessions",
            "inbox",
            "known",
            "rests",
            "budget",
            "plans",
            "outcomes",
            "deleted",
        ):
            setattr(other, name, dict(getattr(self, name)))
        other.rosters = list(self.rosters)
        return other

    def key(self) -> tuple[object, ...]:
        return (
            tuple(volume.key() for volume in self.volumes),
            tuple(sorted(self.sessions.items())),
            tuple(sorted((k, v) for k, v in self.inbox.items() if v)),
            self.lost,
            self.apps,
            self.starts_left,
            self.transfers_left,
            tuple(self.budget.values()),
            tuple(sorted(self.outcomes.items())),
            self.excused,
            frozenset(self.deleted),
            self.spoiled,
            self.faulty,
        )

    # What may happen.

    def steps(self) -> list[Step]:
        """All that happens if nothing fails."""
        found: list[Step] = [("start", s) for s in self.starts_left if self._up(s)]
        found += [("net", *pair) for pair, items in self.inbox.items() if items]
        for v, volume in enumerate(self.volumes):
            if volume.broken:
                found.append(("remount", v))
            if volume.process:
                found += [("disk", v)] * bool(volume.disk) + [("told", v)] * bool(volume.told)
            else:
                found.append(("restart", v))
            for w in range(v + 1, len(self.volumes)):
                if volume.process and self.volumes[w].process and (v, w) not in self.sessions:
                    found.append(("join", v, w))
        if self.transfers_left:
            found.append(("transmit",))
        return found + [("app", c) for c in range(len(self.apps)) if self._app_ready(c)]

    def faults(self) -> list[Step]:
        """All that may go wrong."""
        found: list[Step] = []
        live = [v for v, volume in enumerate(self.volumes) if volume.process]
        if self.budget["crashes"]:
            found += [("crash", v, keep, hid) for v in live for keep, hid in ((0, 1), (99, 0))]
        if self.budget["breaks"]:
            found += [("break", *pair, keep) for pair in self.sessions for keep in (0, KEEP_ALL)]
        if self.budget["doubles"]:
            found += [("double", *pair, keep) for pair in self.sessions for keep in (0, 1)]
        if self.budget["timeouts"]:
            found += [("timer", v, t) for v in live for t in self.relevant(v)]
        if self.budget["failures"]:
            found += [
                ("fail", v, done)
                for v in live
                if isinstance((*self.volumes[v].disk, None)[0], e.Prepare | e.Decide | e.Commit)
                for done in (0, 1)
            ]
        if self.budget["rosters"]:
            found.append(("roster",))
        if self.budget["cancels"]:
            found += [("cancel", snapshot) for snapshot in self.plans if self._here(snapshot)]
        if self.budget["deletes"]:
            found += [
                ("delete", v, snapshot)
                for v in live
                for snapshot, disk in self.volumes[v].kept.items()
                if disk.visible and not self.volumes[v].disk
            ]
        if self.budget["late"]:
            found += [
                ("late", v, timer)
                for v in live
                for timer in sorted(self.volumes[v].timers - {*self.relevant(v)}, key=repr)
            ]
        return found

    def relevant(self, v: int) -> list[e.Timer]:
        """Timers of a volume that would change something."""
        volume = self.volumes[v]
        assert volume.process
        found = []
        for timer in sorted(volume.timers, key=repr):
            phase = volume.process.phase(timer.snapshot)
            if phase in TIMED[type(timer)]:
                found.append(timer)
        return found

    def _here(self, snapshot: bytes) -> bool:
        return self.volumes[number_of(self.plans[snapshot].initiator)].process is not None

    def _up(self, start: int) -> bool:
        return self.volumes[self.scenario.initiators[start]].process is not None

    def _app_ready(self, chain: int) -> bool:
        position, phase = self.apps[chain]
        if position == len(self.scenario.chains[chain]):
            return False
        volume = self.volumes[self.scenario.chains[chain][position]]
        return volume.process is not None and not (phase and volume.gate)

    # What happens.

    def do(self, step: Step) -> None:
        getattr(self, f"_do_{step[0]}")(*step[1:])

    def handle(self, v: int, event: e.Event) -> None:
        process = self.volumes[v].process
        assert process
        for action in process.handle(event):
            self._act(v, action)
        if self.volumes[v].gate and not process.gate_shut:
            raise Violation(f"volume {v}: the gate stays shut for nobody")

    def _act(self, v: int, action: e.Action) -> None:
        volume = self.volumes[v]
        match action:
            case e.Cut(plan):
                sent = tuple(sorted(volume.sent.items()))
                content = Content(volume.applied, sent, volume.got, volume.ended)
                volume.cuts[plan.snapshot] = OnDisk(content)
                if self.scenario.sabotage != "gate opened early":
                    volume.gate |= {plan.snapshot}
            case e.Send(peer, session, message):
                self._send(v, number_of(peer), session, message)
            case e.Record(snapshot, peer, message):
                cut = volume.cuts[snapshot]
                entry = (number_of(peer), int(message.payload))
                if entry in cut.recorded:
                    raise Violation(f"volume {v}: {entry} recorded twice")
                volume.cuts[snapshot] = replace(cut, recorded=cut.recorded | {entry})
            case e.Deliver(peer, message):
                entry = (number_of(peer), int(message.payload))
                if entry in volume.got:
                    raise Violation(f"volume {v}: {entry} delivered twice")
                volume.got |= {entry}
            case e.OpenGate(snapshot, opens):
                volume.gate -= {snapshot}
                if opens != (not volume.gate) and self.scenario.sabotage != "gate opened early":
                    raise Violation(f"volume {v}: the gate is not what was said of it")
            case e.StartTimer(event, _):
                volume.timers |= {event}
            case e.Prepare(kept) if self.scenario.sabotage == "prepared said early":
                volume.disk += (action,)
                volume.told += (e.Durable(kept.plan.snapshot, 1, 0),)
            case e.Prepare() | e.Decide() | e.Commit() | e.Discard() | e.Forget():
                volume.disk += (action,)
            case e.Finished(result):
                snapshot = result.plan.snapshot
                if snapshot in self.outcomes:
                    raise Violation(f"snapshot {snapshot[-1]}: told twice what became of it")
                self.outcomes[snapshot] = result.state
            case e.Rejected(event, reason):
                self._rejected(v, event, reason)

    def _rejected(self, v: int, event: e.Event, reason: str) -> None:
        if isinstance(event, e.Start):
            self.outcomes[event.plan.snapshot] = "rejected"
        elif isinstance(event, e.Received) and not self.scenario.sabotage:
            raise Violation(f"volume {v} rejects {event.message}: {reason}")

    def _send(self, u: int, v: int, session: int, message: object) -> None:
        pair = (min(u, v), max(u, v))
        if self.sessions.get(pair) != session:
            self._lose(u, v, session, message)
            return
        if isinstance(message, Marker) and (u, v) == (0, 1) and not self.spoiled:
            if self.scenario.sabotage == "marker lost":
                self.spoiled = True
                return
            if self.scenario.sabotage == "marker overtaken" and self.transfers_left[:1] == (
                (0, 1),
            ):
                self.spoiled = True
                self._do_transmit()
        self.inbox[(u, v)] = (*self.inbox.get((u, v), ()), Item("message", session, message))

    def _lose(self, u: int, v: int, session: int, message: object) -> None:
        if isinstance(message, Transfer):
            self.lost |= {(u, v, int(message.payload), session)}

    def _do_start(self, start: int) -> None:
        self.starts_left = tuple(s for s in self.starts_left if s != start)
        v = self.scenario.initiators[start]
        volume = self.volumes[v]
        assert volume.process
        missing: tuple[str, ...] = ()
        if self.scenario.missing:
            here = {*volume.process.sessions, volume_id(v)}
            missing = tuple(m for m in volume.roster.members if m not in here)
        snapshot = start.to_bytes(16, "big")
        plan = Plan(
            snapshot,
            f"s{start}",
            1,
            volume_id(v),
            volume.roster.version,
            volume.roster.fingerprint,
            missing=missing,
        )
        self.plans[snapshot] = plan
        self.handle(v, e.Start(plan))

    def _do_net(self, u: int, v: int) -> None:
        item, *rest = self.inbox[(u, v)]
        self.inbox[(u, v)] = tuple(rest)
        peer = volume_id(u)
        volume = self.volumes[v]
        assert volume.process
        if item.kind == "up":
            old = volume.process.sessions.get(peer)
            volume.ended |= set() if old is None else {old}
            self.handle(v, e.SessionUp(peer, item.session))
        elif item.kind == "down":
            volume.ended |= {item.session}
            self.handle(v, e.SessionDown(peer, item.session, "it broke"))
        else:
            self.handle(v, e.Received(peer, item.session, item.message))  # type: ignore[arg-type]

    def _do_disk(self, v: int) -> None:
        volume = self.volumes[v]
        action, *rest = volume.disk
        volume.disk = tuple(rest)
        if volume.broken:
            if isinstance(action, e.Prepare | e.Decide | e.Commit):
                self._fail(v, action)
            return
        spoil = self.scenario.sabotage
        match action:
            case e.Prepare(kept):
                snapshot = kept.plan.snapshot
                made = replace(volume.cuts[snapshot], prepared=kept)
                if spoil == "record not durable":
                    made = replace(made, recorded=frozenset())
                if spoil != "prepared not durable" or number_of(kept.plan.initiator) == v:
                    volume.kept[snapshot] = made
                if spoil != "prepared said early":
                    volume.told += (e.Durable(snapshot, 1, 0),)
            case e.Decide(kept):
                snapshot = kept.plan.snapshot
                if spoil != "decision not durable":
                    volume.kept[snapshot] = replace(volume.kept[snapshot], decision=kept)
                    self.decided |= {snapshot}
                volume.told += (e.Decided(snapshot),)
            case e.Commit(snapshot):
                self._show(v, snapshot)
                volume.told += (e.Visible(snapshot),)
            case e.Discard(snapshot):
                if volume.kept.get(snapshot, OnDisk()).visible:
                    raise Violation(f"volume {v}: a visible snapshot is discarded")
                volume.kept.pop(snapshot, None)
                volume.cuts.pop(snapshot, None)
            case e.Forget(snapshot):
                if snapshot in volume.kept:
                    volume.kept[snapshot] = replace(volume.kept[snapshot], decision=None)
                    if volume.kept[snapshot] == OnDisk():
                        del volume.kept[snapshot]

    def _show(self, v: int, snapshot: bytes) -> None:
        volume = self.volumes[v]
        if snapshot not in self.decided and not self.scenario.sabotage:
            raise Violation(f"volume {v}: visible before the decision is durable")
        kept = volume.kept.get(snapshot)
        memory = volume.cuts.pop(snapshot, None)
        if self.scenario.sabotage and memory:
            kept = replace(kept or memory, content=memory.content, recorded=memory.recorded)
        if kept is None or kept.content is None:
            raise Violation(f"volume {v}: commits what it doesn't have")
        volume.kept[snapshot] = replace(kept, prepared=None, visible=True)

    def _do_told(self, v: int) -> None:
        event, *rest = self.volumes[v].told
        self.volumes[v].told = tuple(rest)
        self.handle(v, event)

    def _do_timer(self, v: int, timer: e.Timer) -> None:
        self.budget["timeouts"] -= 1
        self.faulty = True
        self.volumes[v].timers -= {timer}
        self.handle(v, timer)

    def _do_transmit(self) -> None:
        (u, v), *rest = self.transfers_left
        self.transfers_left = tuple(rest)
        volume = self.volumes[u]
        if volume.process is None or volume_id(v) not in volume.process.sessions:
            return
        number = volume.sent.get(v, 0)
        volume.sent[v] = number + 1
        message = Transfer(number.to_bytes(16, "big"), "ownership", str(number).encode())
        self.handle(u, e.Transmit(volume_id(v), message))

    def _do_app(self, chain: int) -> None:
        position, phase = self.apps[chain]
        volume = self.volumes[self.scenario.chains[chain][position]]
        op = (chain, position)
        if phase == 0:
            volume.applied |= {op}
            self.rests.setdefault(op, self.known.get(chain, frozenset()))
            after = (position, 1)
        else:
            learned = volume.applied if self.scenario.readers else frozenset({op})
            self.known[chain] = self.known.get(chain, frozenset()) | learned
            after = (position + 1, 0)
        self.apps = (*self.apps[:chain], after, *self.apps[chain + 1 :])

    def _do_fail(self, v: int, done: int) -> None:
        """The disk fails for good, either before or after it did what it was asked."""
        self.budget["failures"] -= 1
        self.faulty = True
        volume = self.volumes[v]
        action = volume.disk[0]
        if done:
            self._do_disk(v)
            volume.told = volume.told[:-1]
        else:
            volume.disk = volume.disk[1:]
        volume.broken = True
        self._fail(v, action)

    def _fail(self, v: int, action: e.Action) -> None:
        assert isinstance(action, e.Prepare | e.Decide | e.Commit)
        snapshot = action.snapshot if isinstance(action, e.Commit) else action.kept.plan.snapshot
        self.volumes[v].told += (e.Failed(snapshot, "the disk fails"),)

    def _do_remount(self, v: int) -> None:
        self.budget["crashes"] += 1
        self._do_crash(v, KEEP_ALL, 1)

    def _do_cancel(self, snapshot: bytes) -> None:
        self.budget["cancels"] -= 1
        self.faulty = True
        self.handle(number_of(self.plans[snapshot].initiator), e.Cancel(snapshot))

    def _do_delete(self, v: int, snapshot: bytes) -> None:
        """A visible snapshot is deleted in one volume; what it held is remembered for the check."""
        self.budget["deletes"] -= 1
        volume = self.volumes[v]
        self.deleted[(v, snapshot)] = volume.kept[snapshot]
        if volume.kept[snapshot].decision:
            volume.kept[snapshot] = OnDisk(decision=volume.kept[snapshot].decision)
        else:
            del volume.kept[snapshot]
        self.handle(v, e.Deleted(snapshot))

    def _do_late(self, v: int, timer: e.Timer) -> None:
        self.budget["late"] -= 1
        self.volumes[v].timers -= {timer}
        self.handle(v, timer)

    def _do_roster(self) -> None:
        """One volume leaves, or all that left are back; each hears of it when it does."""
        self.budget["rosters"] -= 1
        self.faulty = True
        version = self.rosters[-1].version + 1
        everybody = self.rosters[0].members
        members = everybody if len(self.rosters[-1].members) < len(everybody) else everybody[:-1]
        self.rosters.append(Roster(version, members))
        for volume in self.volumes:
            volume.roster = self.rosters[-1]
            if volume.process:
                volume.told += (e.Membership(self.rosters[-1]),)

    # Sessions and crashes.

    def _do_join(self, a: int, b: int) -> None:
        self.session_last += 1
        self.sessions[(a, b)] = self.session_last
        for pair in ((a, b), (b, a)):
            self.inbox[pair] = (*self.inbox.get(pair, ()), Item("up", self.session_last))

    def _end(self, a: int, b: int, keep: int, tell: bool) -> None:
        """The session ends; of what is under way, the first `keep` messages still arrive."""
        session = self.sessions.pop((a, b))
        for u, v in ((a, b), (b, a)):
            left = []
            for count, item in enumerate(self.inbox.get((u, v), ())):
                if item.kind == "message" and item.session == session and count >= keep:
                    self._lose(u, v, session, item.message)
                else:
                    left.append(item)
            if tell:
                left.append(Item("down", session))
            self.inbox[(u, v)] = tuple(left)

    def _do_break(self, a: int, b: int, keep: int) -> None:
        self.budget["breaks"] -= 1
        self.faulty = True
        if self.scenario.sabotage == "session end untold":
            session = self.sessions[(a, b)]
            self._end(a, b, keep, tell=False)
            self.sessions[(a, b)] = session
        else:
            self._end(a, b, keep, tell=True)

    def _do_double(self, a: int, b: int, keep: int) -> None:
        """A second connection takes the place of the first, whose end is not told."""
        self.budget["doubles"] -= 1
        self.faulty = True
        self._end(a, b, keep, tell=False)
        self._do_join(a, b)

    def _do_crash(self, v: int, keep: int, hidden: int) -> None:
        self.budget["crashes"] -= 1
        self.faulty = True
        volume = self.volumes[v]
        for pair in [pair for pair in self.sessions if v in pair]:
            self._end(*pair, keep, tell=True)
        for (u, w), items in self.inbox.items():
            if w == v:
                for item in items:
                    self._lose(u, v, item.session, item.message)
                self.inbox[(u, w)] = ()
        volume.ended |= set(range(1, self.session_last + 1))
        for snapshot, cut in volume.cuts.items():
            if hidden and snapshot not in volume.kept:
                volume.kept[snapshot] = OnDisk(cut.content)
        for snapshot, plan in self.plans.items():
            if number_of(plan.initiator) == v:
                self.excused |= {snapshot}
        volume.process, volume.broken = None, False
        volume.disk, volume.told, volume.cuts = (), (), {}
        volume.timers, volume.gate = frozenset(), frozenset()

    def _do_restart(self, v: int) -> None:
        volume = self.volumes[v]
        kept = [one for snapshot, disk in volume.kept.items() for one in disk.kept(snapshot)]
        me = volume_id(v)
        volume.process, actions = Process.recover(me, volume.roster, kept, self.limits)
        for action in actions:
            self._act(v, action)

    # The end, and what must be true then.

    def quiet(self) -> None:
        """Everything that is under way happens, without faults, in some order."""
        while steps := self.steps_without_starts():
            self.do(steps[0])

    def steps_without_starts(self) -> list[Step]:
        return [s for s in self.steps() if s[0] == "net"]

    def finish(self) -> None:
        """All faults are over: does all come to its end, and was it right?"""
        for _ in range(8):
            for _ in range(STEPS_MAX):
                if not (steps := self.steps()):
                    break
                self.do(steps[0])
            else:
                raise Violation("it never comes to rest")
            timers = [(v, t) for v in range(len(self.volumes)) for t in self.relevant(v)]
            if not timers:
                break
            for v, timer in timers:
                self.volumes[v].timers -= {timer}
                self.handle(v, timer)
        self._check_hangs()
        for snapshot, plan in self.plans.items():
            self._check_whole(snapshot, plan)

    def _check_hangs(self) -> None:
        for chain, (position, _) in enumerate(self.apps):
            if position != len(self.scenario.chains[chain]):
                raise Violation(f"application {chain} hangs at its request {position}")
        for v, volume in enumerate(self.volumes):
            assert volume.process
            if volume.gate or volume.process.gate_shut:
                raise Violation(f"volume {v}: the gate stays shut")
            if volume.process.running():
                raise Violation(f"volume {v}: never ends: {volume.process.running()}")
            for snapshot, disk in volume.kept.items():
                if not disk.visible or disk.prepared or disk.decision:
                    raise Violation(f"volume {v}: left of snapshot {snapshot[-1]}: {disk}")

    def _check_whole(self, snapshot: bytes, plan: Plan) -> None:
        roster = next(r for r in self.rosters if r.version == plan.version)
        members = [number_of(m) for m in roster.members if m not in plan.missing]
        shown = {
            v: volume.kept[snapshot]
            for v, volume in enumerate(self.volumes)
            if snapshot in volume.kept
        } | {v: disk for (v, of), disk in self.deleted.items() if of == snapshot}
        label = f"snapshot {snapshot[-1]} of {members}"
        if shown and sorted(shown) != members:
            raise Violation(f"{label} is visible in {sorted(shown)} only")
        outcome = self.outcomes.get(snapshot, "")
        if not outcome and snapshot not in self.excused:
            raise Violation(f"{label}: nobody was told what became of it")
        if outcome not in ("", "in doubt") and (outcome == "committed") != bool(shown):
            raise Violation(f"{label} was told to be {outcome}, and is in {sorted(shown)}")
        if not shown and not self.faulty:
            raise Violation(f"{label} came to nothing ({outcome}) although nothing failed")
        if shown:
            self._check_cut(label, shown)

    def _check_cut(self, label: str, shown: dict[int, OnDisk]) -> None:
        contents = {v: disk.content for v, disk in shown.items() if disk.content}
        inside = {op for content in contents.values() for op in content.applied}
        for op in sorted(inside):
            for before in sorted(self.rests[op]):
                v = self.scenario.chains[before[0]][before[1]]
                if v in contents and before not in inside:
                    raise Violation(f"{label} holds {op}, which rests on {before}, but not that")
        for u, source in contents.items():
            for v, target in contents.items():
                if u != v:
                    self._check_channel(label, u, v, source, target, shown[v])

    def _check_channel(
        self, label: str, u: int, v: int, source: Content, target: Content, disk: OnDisk
    ) -> None:
        sent = set(range(dict(source.sent).get(v, 0)))
        got = {number for peer, number in target.got if peer == u}
        recorded = {number for peer, number in disk.recorded if peer == u}
        lost = {
            number
            for a, b, number, session in self.lost
            if (a, b) == (u, v) and session in target.ended
        }
        if not got | recorded <= sent:
            raise Violation(f"{label}: {v} has {got | recorded} of {u}, which sent {sent}")
        if got & recorded:
            raise Violation(f"{label}: {got & recorded} of {u} are in {v} and recorded")
        if not sent - got - recorded <= lost:
            raise Violation(f"{label}: {sent - got - recorded} from {u} to {v} are nowhere")


TIMED: dict[type, tuple[Phase, ...]] = {
    e.GateTimeout: (Phase.RECORDING,),
    e.SettleTimeout: (Phase.RECORDING, Phase.SETTLING, Phase.COLLECTING),
    e.AskTimeout: (Phase.PREPARED,),
    e.DoneTimeout: (Phase.COMMITTING, Phase.DISTRIBUTING),
}
