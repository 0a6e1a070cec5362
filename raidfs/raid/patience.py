"""How long a read waits for a member, and which members are read around meanwhile.

A read that a member has not answered at its *deadline* is *late*. A member with a late read is
*slow*, and *sits out*: what lies on it is rebuilt from the others, as if it were lost, where the
others are enough. It is probed all the while, and is read again when it answers as it should.

The deadline is given, or follows what is usual: ten times the time that 99 of 100 reads of the
member take, between 50 ms and a second; a member is not given much more time than the others need.

 1. `ask` without `patient` returns, or raises Late, not much after the deadline, whatever the
    member does.
 2. What runs late owns its memory: nobody looks at what it finds, and nothing that anybody else has
    is written to.
 3. At most THREADS threads are ever stuck in one member. While all are, it isn't asked.
 4. A member is slow until PROBES_GOOD probes one after the other were answered in time, and for
    some time at least; for longer each time that it turns slow again soon.

Whether the others are enough is not decided here but for each zone: Array.shunned. Only reads are
asked for in this way. A write waits for all members, however long: that it is on all of them is
what redundancy promises.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

Result = TypeVar("Result")

THREADS = 8  # per member
DEADLINE_S_MIN, DEADLINE_S_MAX = 0.05, 1.0
TIMES_USUAL = 10  # that a read may take
TIMES_OTHERS = 10  # that a member's usual may be of the others', and count
OTHERS_S_MIN = 0.01  # less than this is no reproach to a member among faster ones
SAMPLES_FEW = 32  # too few to know what is usual
SAMPLES_MANY = 2000  # from here on old ones count half
PROBE_S = 0.25
AGAIN_S = 0.1  # who waits for a member looks so often whether he has to
PROBES_GOOD = 3
HOLD_S_MIN, HOLD_S_MAX = 1.0, 300.0
RELAPSE_S = 60.0  # slow again so soon: it is held for twice as long
TELL_S = 5.0  # slow for so long is told
BUCKETS = 128  # as csrc/columns.h has them: four for each doubling, of microseconds

OnTell = Callable[[Literal["slow", "normal"], int, str], None]


class Late(Exception):
    """The member has not answered in time."""


def bucket_of(took_s: float) -> int:
    """As rf_latency of csrc."""
    took_us = min(int(took_s * 1e6), 2**32 - 1)
    if took_us < 4:
        return 0 if took_us < 2 else 4
    doubled = took_us.bit_length() - 1
    return 4 * doubled + (took_us >> (doubled - 2) & 3)


def bucket_end_s(bucket: int) -> float:
    """What is below this, and not in an earlier one, is in the bucket."""
    if bucket < 8:
        return 4e-6
    return float(2 ** (bucket // 4)) * (1 + (bucket % 4 + 1) / 4) / 1e6


_BUCKET_MAX = bucket_of(DEADLINE_S_MAX)  # from here on nothing is usual


class Latencies:
    """How long reads took of late; `count`: how many, without those that were late."""

    def __init__(self) -> None:
        self._recent = [0.0] * _BUCKET_MAX
        self.count = 0.0

    def add(self, bucket: int, reads: int = 1) -> None:
        if bucket < _BUCKET_MAX:
            self._recent[bucket] += reads
            self.count += reads
        if self.count > SAMPLES_MANY:
            self._recent = [each / 2 for each in self._recent]
            self.count /= 2

    def usual_s(self, share: float = 0.99) -> float | None:
        """So many of all reads of late took no longer. None: there were too few."""
        if self.count < SAMPLES_FEW:
            return None
        left = self.count * share
        for bucket, reads in enumerate(self._recent):
            left -= reads
            if left <= 0:
                return bucket_end_s(bucket)
        return DEADLINE_S_MAX


class _Job:
    """Something asked of a member. `begun_s`: 0 as long as no thread has it."""

    __slots__ = ("begun_s", "done", "error", "given_up", "result", "took_s", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.begun_s = self.took_s = 0.0
        self.given_up = False
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error
        self.took_s = time.monotonic() - self.begun_s
        self.done.release()


class _Desk:
    """One member's threads, begun when they are needed; they live as long as the process, since one
    may never come back."""

    def __init__(self, member: int, latencies: Latencies) -> None:
        self._name = f"asks-{member}"
        self._latencies = latencies
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._queued = 0
        self._running: set[_Job] = set()

    def submit(self, work: Callable[[], Any]) -> _Job:
        job = _Job(work)
        with self._lock:
            self._queued += 1
            idle = self._threads - len(self._running)
            if begin := idle < self._queued and self._threads < THREADS:
                self._threads += 1
        if begin:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        self._jobs.put(job)
        return job

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            with self._lock:
                self._queued -= 1
                if job.given_up:
                    continue
                job.begun_s = time.monotonic()
                self._running.add(job)
            job.run()
            with self._lock:
                self._running.remove(job)
                self._latencies.add(bucket_of(job.took_s))
            del job

    def end(self) -> None:
        """Its threads, when they are through with what they have."""
        for _ in range(THREADS):
            self._jobs.put(None)

    def oldest_s(self) -> float:
        """For how long the first of those that run has been running."""
        with self._lock:
            begun = min((job.begun_s for job in self._running), default=0.0)
        return time.monotonic() - begun if begun else 0.0

    @property
    def full(self) -> bool:
        """No thread is free, and none can be had."""
        with self._lock:
            return len(self._running) >= THREADS


@dataclass(slots=True)
class _State:
    """Of one member."""

    desk: _Desk
    latencies: Latencies
    late: int = 0  # reads, all in all
    slow_since: float | None = None
    held_until: float = 0.0
    hold_s: float = HOLD_S_MIN
    normal_since: float = 0.0
    told: bool = False
    probe: _Job | None = None
    probed_s: float = 0.0
    probes_good: int = 0
    longest_s: float = 0.0  # that a read has waited, since it is slow
    counted: list[int] = field(default_factory=lambda: [0] * BUCKETS)  # of C's reads


@dataclass(frozen=True, slots=True)
class Slowness:
    """What is known of a member's reads. `slow_s`: for so long it has been slow; None: it isn't."""

    late: int
    usual_s: float | None
    median_s: float | None
    deadline_s: float
    slow_s: float | None
    longest_s: float


class Patience:
    """See the module. Any thread may call anything, but `look` is one thread's.

    `deadline_s`: for all members; None: by what is usual. `on_sit_out` is called in any thread, in
    the moment that a member begins or ends to sit out; `on_tell` by `look`. `may_sit_out`: whether
    that is of use at all. `probe`: something to ask of a member to see whether it answers.
    """

    def __init__(
        self,
        deadline_s: float | None = None,
        *,
        on_sit_out: Callable[[int, bool], None] = lambda member, sits: None,
        on_tell: OnTell = lambda what, member, text: None,
        may_sit_out: Callable[[int], bool] = lambda member: True,
        probe: Callable[[int], Callable[[], object] | None] = lambda member: None,
        tell_s: float = TELL_S,
    ) -> None:
        self.fixed_s = deadline_s
        self.on_sit_out, self.on_tell = on_sit_out, on_tell
        self.may_sit_out, self.probe = may_sit_out, probe
        self.tell_s = tell_s
        self.sitting: tuple[int, ...] = ()  # replaced, never changed; who is worst comes first
        self._lock = threading.Lock()
        self._states: dict[int, _State] = {}
        self._deadlines: dict[int, float] = {}
        self.late_count = 0  # reads, of all members

    def _state(self, member: int) -> _State:
        state = self._states.get(member)
        if state is None:
            with self._lock:
                latencies = Latencies()
                made = _State(_Desk(member, latencies), latencies)
                state = self._states.setdefault(member, made)
        return state

    # -- asking -----------------------------------------------------------------------------------

    def deadline_s(self, member: int) -> float:
        """How long a read of this member may take."""
        if self.fixed_s is not None:
            return self.fixed_s
        return self._deadlines.get(member, DEADLINE_S_MAX)

    def ask(
        self,
        member: int,
        work: Callable[[], Result],
        *,
        patient: bool = False,
        unless: Callable[[], bool] = lambda: False,
    ) -> Result:
        """`work()`, in a thread of the member's. Promise 1; `patient`: as long as it takes, or
        until `unless` says, which is asked now and then, that there is no need any more: then it is
        Late, too. What it raises is raised."""
        state = self._state(member)
        limit_s = self.deadline_s(member)
        if not patient and state.desk.full and state.desk.oldest_s() > limit_s:
            self.late(member, state.desk.oldest_s())
            raise Late
        job = state.desk.submit(work)
        if patient:
            while not job.done.acquire(timeout=AGAIN_S):
                if unless():
                    job.given_up = True
                    raise Late
        else:
            self._wait(member, state, job, limit_s)
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job
        result: Result = job.result
        return result

    def _wait(self, member: int, state: _State, job: _Job, limit_s: float) -> None:
        left_s = limit_s
        while not job.done.acquire(timeout=left_s):
            now = time.monotonic()
            if not job.begun_s:
                if state.desk.oldest_s() <= limit_s:  # it waits for its turn, and that will come
                    continue
            elif (left_s := job.begun_s + limit_s - now) > 0:
                continue
            job.given_up = True
            self.late(member, now - job.begun_s if job.begun_s else limit_s)
            raise Late

    # -- who is slow ------------------------------------------------------------------------------

    def late(self, member: int, waited_s: float, reads: int = 1) -> None:
        """Reads of the member were not answered in time."""
        state = self._state(member)
        with self._lock:
            state.late += reads
            self.late_count += reads
            state.longest_s = max(state.longest_s, waited_s)
            state.probes_good = 0
            if state.slow_since is not None:
                return
            now = time.monotonic()
            relapsed = state.normal_since and now - state.normal_since < RELAPSE_S
            state.hold_s = min(2 * state.hold_s, HOLD_S_MAX) if relapsed else HOLD_S_MIN
            state.slow_since, state.held_until = now, now + state.hold_s
            state.told = False
        if self.may_sit_out(member):
            self.on_sit_out(member, True)  # first, so that nobody counts on it in vain
            with self._lock:
                self.sitting = (*(m for m in self.sitting if m != member), member)

    def waited_s(self, member: int) -> float:
        """How long it has kept somebody waiting, since it is slow."""
        state = self._state(member)
        return max(state.longest_s, state.desk.oldest_s())

    def _normal(self, member: int, state: _State) -> None:
        with self._lock:
            self.sitting = tuple([m for m in self.sitting if m != member])
            slow_s = time.monotonic() - (state.slow_since or 0.0)
            state.slow_since, state.normal_since = None, time.monotonic()
            state.longest_s = 0.0
        self.on_sit_out(member, False)
        if state.told:
            state.told = False
            self.on_tell("normal", member, f"it answers as usual again, after {slow_s:.0f} s")

    def forget(self, member: int) -> None:
        """It is lost, or no member any more: nobody asks it, so it isn't slow."""
        with self._lock:
            known = self._states.pop(member, None)
            self.sitting = tuple([m for m in self.sitting if m != member])
        if known is not None:
            known.desk.end()
            self.on_sit_out(member, False)

    def close(self) -> None:
        """Its threads end; those that are stuck, when their member answers."""
        for state in self._states.values():
            state.desk.end()

    # -- now and then -----------------------------------------------------------------------------

    @property
    def look_s(self) -> float:
        """How often to look."""
        return 0.05 if self.fixed_s is None else max(0.005, min(0.05, self.fixed_s / 2))

    @property
    def slow(self) -> bool:
        """Somebody is."""
        return any(state.slow_since is not None for state in list(self._states.values()))

    def look(self) -> None:
        """Probe who is slow, tell of who has been so for long, and take back who is no more."""
        now = time.monotonic()
        for member, state in list(self._states.items()):
            if state.slow_since is None:
                continue
            if not state.told and now - state.slow_since >= self.tell_s:
                state.told = True
                self.on_tell("slow", member, self.describe(member))
            self._probe(member, state, now)
            if state.probes_good >= PROBES_GOOD and now >= state.held_until:
                self._normal(member, state)
        if self.sitting:
            self._rank()

    def _probe(self, member: int, state: _State, now: float) -> None:
        if state.probe is not None:
            if not state.probe.done.acquire(blocking=False):
                state.longest_s = max(state.longest_s, now - (state.probe.begun_s or now))
                return  # it still is what we would see
            in_time = state.probe.took_s <= self.deadline_s(member) and state.probe.error is None
            state.longest_s = max(state.longest_s, state.probe.took_s)
            state.probes_good = state.probes_good + 1 if in_time else 0
            state.probe = None
        if now - state.probed_s >= PROBE_S and not state.desk.full:
            work = self.probe(member)
            if work is not None:
                state.probed_s, state.probe = now, state.desk.submit(work)

    def _rank(self) -> None:
        """Those first that have kept somebody waiting for longest."""
        with self._lock:
            waits = {member: self._states[member].longest_s for member in self.sitting}
            self.sitting = tuple(sorted(self.sitting, key=lambda member: -waits[member]))

    def learn(self, member: int, counts: list[int]) -> None:
        """How many reads by C took how long, since the start."""
        state = self._state(member)
        for bucket, (count, before) in enumerate(zip(counts, state.counted, strict=True)):
            if count != before:
                state.latencies.add(bucket, count - before)
        state.counted = counts

    def reckon(self) -> None:
        """Deadlines by what is usual now."""
        usual = {m: state.latencies.usual_s() for m, state in list(self._states.items())}
        for member, own in usual.items():
            others = sorted([s for m, s in usual.items() if m != member and s is not None])
            limits = [] if own is None else [own]
            if others:
                limits.append(max(TIMES_OTHERS * others[len(others) // 2], OTHERS_S_MIN))
            deadline_s = TIMES_USUAL * min(limits, default=DEADLINE_S_MAX)
            self._deadlines[member] = min(max(deadline_s, DEADLINE_S_MIN), DEADLINE_S_MAX)

    # -- telling ----------------------------------------------------------------------------------

    def describe(self, member: int) -> str:
        """Of a slow member, in words; "" of others."""
        it = self.statistics().get(member)
        if it is None or it.slow_s is None:
            return ""
        usual = "" if it.usual_s is None else f", 99 % up to {1000 * it.usual_s:.3g} ms"
        around = "reads go around it" if member in self.sitting else "reads wait for it"
        return (
            f"slow for {it.slow_s:.0f} s: a read took {it.longest_s:.2g} s or more{usual}"
            f" (deadline {1000 * it.deadline_s:.0f} ms, {it.late} late); {around}"
        )

    def statistics(self) -> dict[int, Slowness]:
        now = time.monotonic()
        return {
            member: Slowness(
                state.late,
                state.latencies.usual_s(),
                state.latencies.usual_s(0.5),
                self.deadline_s(member),
                None if state.slow_since is None else now - state.slow_since,
                state.longest_s,
            )
            for member, state in list(self._states.items())
        }
