"""What goes on in the background of a volume, of whatever kind, told as one list of jobs.

A job is made of what is left to do, not of a record that it was begun: columns that a lost member
had are a `rebuild`, or a `replace` if some member is to take its place; columns of one that is to
be empty are an `evacuate`. One worker (store/mender.py) does these, those with least redundancy
first. Scrubs and changes of shape have workers of their own, which tell of themselves.

 1. Asking changes nothing, and takes time in proportion to the zones there are.
 2. A job that has ended is told as `done` until the volume is unmounted, or a new one of its name
    begins. What a job had in all is known from when it was first seen by this mount.
 3. A job that can't go on says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from raidfs.raid.label import MemberEntry
from raidfs.store.mender import Why
from raidfs.store.store import Store
from raidfs.store.zones import Zone

Kind = Literal["rebuild", "replace", "evacuate", "scrub", "convert", "rebalance"]
State = Literal["running", "waiting", "paused", "stalled", "done", "failed"]
MENDER_KINDS: tuple[Kind, ...] = ("rebuild", "replace", "evacuate")
ENDED: tuple[State, ...] = ("done", "failed")
ENDED_KEPT_MAX = 32
NO_MEMBER = -1


class Job(msgspec.Struct, frozen=True):
    """`id`: by which commands name it. `left_bytes`: on members; `rate_bytes_s`: lately.
    `seconds_left`: None when it can't be told. `reason`: why it doesn't go on, or what went wrong.
    `limit_bytes_s`: 0 for none. `member`: whose columns these are, or -1."""

    id: str
    kind: Kind
    state: State
    done_bytes: int = 0
    left_bytes: int = 0
    rate_bytes_s: float = 0.0
    seconds_left: float | None = None
    reason: str = ""
    member: int = NO_MEMBER
    limit_bytes_s: int = 0

    @property
    def part_done(self) -> float:
        """0.0 to 1.0."""
        if self.state == "done":
            return 1.0
        return self.done_bytes / max(1, self.done_bytes + self.left_bytes)


@dataclass(slots=True)
class _Seen:
    """A job of the mender since it was first seen."""

    kind: Kind
    member: int
    total_bytes: int
    left_bytes: int
    columns: int
    zones: set[int]


class JobBook:
    """Of one open store; in the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seen: dict[str, _Seen] = {}
        self._ended: dict[str, Job] = {}

    def jobs(self) -> list[Job]:
        """In the order in which they are worked on; those that have ended come last."""
        self.look()
        told = [*self._mending(), *self._of_others()]
        names = {job.id for job in told}
        return told + [job for name, job in self._ended.items() if name not in names]

    def quiet(self) -> bool:
        """Nothing for the mender, as far as labels and columns tell without a look at zones."""
        store = self.store
        entries = store.assembly.label.members
        plain = all(each.is_current and each.role in ("data", "spare") for each in entries)
        return plain and not store.array.stale and not self._seen

    def look(self) -> None:
        """To be called now and then, so that jobs are seen from their beginning."""
        if self.quiet():
            return
        found = self._found()
        still = {one.member for one in found.values()}
        for name in [name for name in self._seen if name not in found]:
            seen = self._seen.pop(name)
            if seen.member not in still and not self._given_up(seen):
                self._end(Job(name, seen.kind, "done", seen.total_bytes, member=seen.member))
        for name, now in found.items():
            before = self._seen.get(name)
            now.total_bytes = max(now.left_bytes, before.total_bytes if before else 0)
            self._seen[name] = now
            self._ended.pop(name, None)

    def _given_up(self, seen: _Seen) -> bool:
        """By command: then there is no more to do, but it is not done."""
        entry = self._entries().get(seen.member)
        if entry is None:
            return False
        if entry.state == "offline":
            return True
        return seen.kind != "rebuild" and entry.role == "data" and entry.is_current

    def _end(self, job: Job) -> None:
        self._ended.pop(job.id, None)
        self._ended[job.id] = job
        while len(self._ended) > ENDED_KEPT_MAX:
            del self._ended[next(iter(self._ended))]

    # -- the mender's -----------------------------------------------------------------------------

    def _found(self) -> dict[str, _Seen]:
        heirs = {entry.replaces for entry in self._entries().values() if entry.replaces >= 0}
        found: dict[str, _Seen] = {}
        for entry in self._entries().values():
            if entry.role == "leaving":  # until it is no member any more
                kind = self._kind("leaving", entry.id, heirs)
                found[f"{kind}:{entry.id}"] = _Seen(kind, entry.id, 0, 0, 0, set())
        for zone, why in self.store.mender.lacking():
            for column, reason in why.items():
                if reason == "wished":
                    continue  # a rebalance's
                member = zone.map.columns[column][0]
                kind = self._kind(reason, member, heirs)
                if f"evacuate:{member}" in found:
                    kind = "evacuate"
                name = f"{kind}:{member}"
                one = found.setdefault(name, _Seen(kind, member, 0, 0, 0, set()))
                one.left_bytes += self._left(zone, column, reason)
                one.columns += 1
                one.zones.add(zone.map.zone)
        return found

    def _kind(self, reason: Why, member: int, heirs: set[int]) -> Kind:
        if reason != "stale" and member in heirs:
            return "replace"
        return "evacuate" if reason == "leaving" else "rebuild"

    def _left(self, zone: Zone, column: int, reason: Why) -> int:
        first = zone.missed.get(column, 0) if reason == "stale" else 0
        return (zone.fill - min(first, zone.fill)) * self.store.cell_bytes

    def _entries(self) -> dict[int, MemberEntry]:
        return {entry.id: entry for entry in self.store.assembly.label.members}

    def _mending(self) -> Iterator[Job]:
        """`look` has just been."""
        if not self._seen:
            return
        mender = self.store.mender
        told = mender.statistics()
        rate, ahead = told.rate_bytes_s if told.working else 0.0, 0
        for name, seen in self._seen.items():
            ahead += seen.left_bytes
            state, reason = self._state(seen)
            yield Job(
                id=name,
                kind=seen.kind,
                state=state,
                done_bytes=seen.total_bytes - seen.left_bytes,
                left_bytes=seen.left_bytes,
                rate_bytes_s=rate if state == "running" else 0.0,
                seconds_left=ahead / rate if rate > 0 and state in ("running", "waiting") else None,
                reason=reason,
                member=seen.member,
                limit_bytes_s=mender.pace.limit_bytes_s,
            )

    def _state(self, seen: _Seen) -> tuple[State, str]:
        store, mender = self.store, self.store.mender
        told = mender.statistics()
        if mender.broken:
            return "failed", mender.broken
        if store.failed is not None:
            return "stalled", f"the volume is read-only after an error: {store.failed}"
        if store.read_only:
            return "stalled", "the volume is mounted read-only"
        if mender.paused:
            return "paused", "paused by command; `raidfs-ctl job resume` goes on with it"
        lost = told.rows_unrecoverable
        beyond = f"{lost} rows beyond redundancy were left as they are" if lost else ""
        if told.working:
            return ("running" if told.zone in seen.zones else "waiting"), beyond
        if told.stalled:
            return "stalled", told.stalled
        return "waiting", beyond or f"it is about to {'begin' if seen.columns else 'end'}"

    # -- others' ----------------------------------------------------------------------------------

    def _of_others(self) -> Iterator[Job]:
        for worker in (self.store.scrub, self.store.reshape):
            told = worker.statistics()
            if told is not None and told.kind is not None and told.state != "idle":
                yield Job(
                    id=told.kind,
                    kind=told.kind,
                    state=told.state,
                    done_bytes=told.done_bytes,
                    left_bytes=told.left_bytes,
                    rate_bytes_s=told.rate_bytes_s,
                    seconds_left=told.seconds_left,
                    reason=told.reason,
                    limit_bytes_s=worker.pace.limit_bytes_s,
                )
