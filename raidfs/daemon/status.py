"""The state of a volume as people and scripts are told it, from a daemon or from bare members.

Words are those of zpool(8): ONLINE, DEGRADED (all data is whole, but has less redundancy than it
should), FAILED (something is lost, or can't be told apart from lost).

 1. The text that a person reads and the JSON that a script reads have the same names and states.
 2. Every state but ONLINE says what it means and what to do next.
 3. DEGRADED is what is so of the data: some zone lacks a column, or new ones can't be as wide as
    they should. A lost member whose columns were all made anew elsewhere is listed, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from raidfs.daemon.jobs import ENDED, Job
from raidfs.raid.code import Code, code_for
from raidfs.raid.label import Label, MemberEntry

State = Literal["ONLINE", "DEGRADED", "FAILED"]
MemberStateName = Literal["ONLINE", "FAILED", "MISSING", "OFFLINE"]
Role = Literal["data", "spare", "leaving", "evacuating"]
EXIT_CODES: dict[State, int] = {"ONLINE": 0, "DEGRADED": 1, "FAILED": 2}
EXIT_UNKNOWN = 4
CONSISTENCY = "rows are written once, in full, before anything refers to them (no write hole)"


class MemberStatus(msgspec.Struct, frozen=True):
    """One member. Errors are counted since creation: reads, writes, cells with a wrong checksum.
    `columns`: of zones, that lie on it or did when it was lost; `lacking`: of these, those that
    are lost or stale. `replaces`: the member whose place it is taking, or -1. `removable`: it can
    be removed, and nothing needs it."""

    id: int
    kind: str
    path: str
    state: MemberStateName
    read_errors: int
    write_errors: int
    checksum_errors: int
    bytes: int
    reason: str = ""
    slow: str = ""
    role: Role = "data"
    domain: str = ""
    replaces: int = -1
    columns: int = 0
    lacking: int = 0
    removable: bool = False


class Redundancy(msgspec.Struct, frozen=True):
    """What is really there, of zones that hold anything or are about to. `lacking`: zones with a
    column lost or stale; `unreadable`: with more of them than their code survives. `losses_left`:
    so many more may be lost, whichever they are. `shared_domains`: zones with two columns in one
    failure domain."""

    zones: int
    lacking: int
    unreadable: int
    losses_left: int
    shared_domains: int = 0


class LaneStatus(msgspec.Struct, frozen=True):
    """How the kernel's requests were answered since the mount, by kind of request: `served` by
    threads in C, `carried` to Python by the lane itself, `forwarded` to pyfuse3."""

    threads: int
    writeback: bool
    served: dict[str, int]
    carried: dict[str, int]
    forwarded: dict[str, int]


class CleanerStatus(msgspec.Struct, frozen=True):
    """What makes free zones of half-empty ones, since the mount. `zone`: the one that it is at,
    with `left_bytes` to move; 0: it idles. `gain_bytes`: free only once it has worked; part of
    `free_bytes`."""

    zone: int
    left_bytes: int
    zones_emptied: int
    moved_bytes: int
    gain_bytes: int
    waiting: bool
    broken: str = ""


class ScrubStatus(msgspec.Struct, frozen=True):
    """The scrub under way, or the last one. `ok`: nothing that it found is left as it was. Cells
    are counted on all members together."""

    state: Literal["running", "paused", "stopped", "finished", "failed"]
    started_ns: int
    ended_ns: int
    ok: bool
    result: str
    read_bytes: int
    bad_cells: int
    healed_cells: int
    metadata_damaged: int
    rows_lost: int
    files_damaged: int


class VolumeStatus(msgspec.Struct, frozen=True):
    """All that `raidfs-ctl status` tells. Bytes are what files may use, parity not counted."""

    volume: str
    volume_id: str
    state: State
    read_only: bool
    status: str
    action: str
    level: str
    width: int
    losses_survived: int
    cell_bytes: int
    zone_bytes: int
    total_bytes: int | None
    used_bytes: int | None
    free_bytes: int | None
    files: int | None
    epoch: int | None
    mountpoint: str | None
    pid: int | None
    consistency: str
    members: list[MemberStatus]
    errors: str
    lane: LaneStatus | None = None
    cleaner: CleanerStatus | None = None
    redundancy: Redundancy | None = None
    jobs: list[Job] = []
    scrub: ScrubStatus | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store can say of itself; absent when the metadata can't be read."""

    total_bytes: int
    used_bytes: int
    free_bytes: int
    files: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Condition:
    """What was found about a volume, before it is put into words."""

    label: Label
    lost: Mapping[int, str]  # member id -> why it is not in use
    counters: Mapping[int, tuple[int, int, int]]  # member id -> read, write, checksum errors
    usage: Usage | None = None
    read_only: bool = False
    failed: str | None = None  # why nothing more may be written, or why it can't be mounted
    mountpoint: str | None = None
    pid: int | None = None
    lane: LaneStatus | None = None
    scrub: ScrubStatus | None = None
    cleaner: CleanerStatus | None = None
    redundancy: Redundancy | None = None  # None: the zones were not looked at
    columns: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # all, and lacking
    jobs: Sequence[Job] = ()
    slow: Mapping[int, str] = field(default_factory=dict)  # how, by member id

    @property
    def newly_lost(self) -> list[int]:
        """Members that should be there, by the labels."""
        return [e.id for e in self.label.members if e.is_current and e.id in self.lost]

    @property
    def offline(self) -> list[int]:
        return [e.id for e in self.label.members if e.state == "offline" and e.id in self.lost]

    @property
    def in_use(self) -> int:
        """Members that zones lie on, or could."""
        count = 0
        for entry in self.label.members:
            taking = entry.role == "data" or entry.replaces >= 0
            holding = entry.role != "spare" and self.columns.get(entry.id, (0, 0))[0] > 0
            count += entry.id not in self.lost and (taking or holding)
        return count

    @property
    def narrow(self) -> bool:
        """Fewer than a zone should be wide."""
        return self.in_use < self.label.parameters.width


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _state(condition: Condition, code: Code) -> State:
    lost, zones = len(condition.lost), condition.redundancy
    if condition.failed is not None:
        return "FAILED"
    if zones is None:
        beyond = lost > code.tolerance and not condition.mountpoint
        return "FAILED" if beyond else "DEGRADED" if lost else "ONLINE"
    if zones.unreadable:
        return "FAILED"
    lacking = zones.lacking or condition.newly_lost or condition.narrow
    return "DEGRADED" if lacking else "ONLINE"


def _sentences(condition: Condition, code: Code, state: State, errors: int) -> tuple[str, str]:
    """What it means, and what to do. Both empty when there is nothing to say."""
    lost = len(condition.lost)
    if state == "FAILED" and condition.mountpoint and condition.failed:
        return (
            f"An error went beyond the redundancy: {condition.failed}. The volume is read-only.",
            "Save what you need by reading it; then unmount, run `raidfs-ctl check MEMBER`, mount.",
        )
    if state == "FAILED" and condition.redundancy is not None and condition.failed is None:
        zones = condition.redundancy
        return (
            f"{zones.unreadable} of {_count(zones.zones, 'zone')} lost more columns than their code"
            " survives: what lies there can't be read.",
            "Bring back the members that are missing below: `raidfs-ctl member online`.",
        )
    if state == "FAILED":
        reason = condition.failed or f"{_count(lost, 'member')} lost, {code.tolerance} survivable"
        return (
            f"The volume can't be mounted: {reason}",
            "Bring back the members that are missing below (paths, cables), then mount.",
        )
    if state == "DEGRADED":
        return _meaning(condition, code), _remedy(condition)
    if lost:
        return _needless(condition)
    if errors:
        return (
            "Members gave errors; what was damaged has been rebuilt from the rest.",
            "Nothing is lost. If a counter goes on rising, replace that member's hardware.",
        )
    return "", ""


def _needless(condition: Condition) -> tuple[str, str]:
    """Members are lost, and nothing is lacking."""
    numbers, where = sorted(condition.lost), condition.mountpoint or "MOUNTPOINT"
    listed, one = ", ".join(map(str, numbers)), len(numbers) == 1
    return (
        f"{'Member' if one else 'Members'} {listed} {'is' if one else 'are'} lost and"
        f" {'holds' if one else 'hold'} nothing any more: all data is whole, with its full"
        f" redundancy, on the others.",
        f"`raidfs-ctl member remove {where} {' '.join(map(str, numbers))}` takes"
        f" {'it' if one else 'them'} off the list, at once; `raidfs-ctl member online {where}"
        f" {numbers[0]}` brings {'it' if one else 'one'} back.",
    )


def _meaning(condition: Condition, code: Code) -> str:
    lost, zones = len(condition.lost), condition.redundancy
    left = max(code.tolerance - lost, 0) if zones is None else zones.losses_left
    more = f"All data is whole; {'no' if left <= 0 else left} more may be lost."
    said = f"{_count(lost, 'member')} lost. " if lost else ""
    if zones is not None and zones.lacking:
        said += f"{zones.lacking} of {_count(zones.zones, 'zone')} lack a column. "
    elif zones is not None and condition.narrow:
        width = condition.label.parameters.width
        said += f"New zones are {condition.in_use} wide instead of {width}. "
    return said + more


def _remedy(condition: Condition) -> str:
    where = condition.mountpoint or "MOUNTPOINT"
    mending = [job for job in condition.jobs if job.kind in ("rebuild", "replace")]
    active = [job for job in mending if job.state not in ENDED]
    if not condition.mountpoint:
        return (
            "Bring back what is missing, or mount it (-o degraded if members are missing newly):"
            " what can be rebuilt is rebuilt while it is mounted."
        )
    if condition.read_only:
        return "Mount it for writing: what can be rebuilt is rebuilt then."
    if any(job.state in ("running", "waiting") for job in active):
        return f"It is being rebuilt; `raidfs-ctl wait {where}` returns when that is done."
    if any(job.state == "paused" for job in active):
        return f"Rebuilding was paused by command: `raidfs-ctl job resume {where}`."
    if condition.offline:
        number = condition.offline[0]
        return (
            f"Member {number} is expected back: `raidfs-ctl member online {where} {number}`, or"
            f" `member fail {where} {number}` to have it rebuilt on others."
        )
    who = str(min(condition.lost)) if condition.lost else "OLD"
    return (
        f"Back up now. Then `raidfs-ctl member replace {where} {who} NEW` rebuilds it onto another"
        f" member; `member online` brings it back if it is whole; or `member add {where} PATH`."
    )


def _members(condition: Condition) -> list[MemberStatus]:
    rows = []
    for entry in condition.label.members:
        reads, writes, checksums = condition.counters.get(entry.id, (0, 0, 0))
        reason = condition.lost.get(entry.id, "")
        state: MemberStateName = "ONLINE"
        if entry.state == "failed":
            state, reason = "FAILED", entry.reason or reason
        elif entry.state == "offline":
            state, reason = "OFFLINE", entry.reason or reason
        elif entry.id in condition.lost:
            state = "MISSING"
        columns, lacking = condition.columns.get(entry.id, (0, 0))
        looked = condition.redundancy is not None
        rows.append(
            MemberStatus(
                id=entry.id,
                kind=entry.kind,
                path=entry.path,
                state=state,
                read_errors=reads,
                write_errors=writes,
                checksum_errors=checksums,
                bytes=entry.bytes,
                reason=reason,
                slow=condition.slow.get(entry.id, ""),
                role=entry.role,
                domain=entry.domain,
                replaces=entry.replaces,
                columns=columns,
                lacking=lacking,
                removable=looked and not columns and _spared(condition, entry, state),
            )
        )
    return rows


def _spared(condition: Condition, entry: MemberEntry, state: MemberStateName) -> bool:
    """Nobody counts on that member, which holds nothing."""
    idle = state == "FAILED" or entry.role == "evacuating"
    return idle and not condition.narrow


def _data_errors(condition: Condition, state: State) -> str:
    files = condition.scrub.files_damaged if condition.scrub is not None else 0
    if files:
        return f"{files} files have pages that can't be read; `raidfs-ctl scrub status` names them"
    return "No known data errors" if state != "FAILED" else "Unknown"


def describe(condition: Condition) -> VolumeStatus:
    """Puts what was found into the words of the module's head."""
    parameters = condition.label.parameters
    code = code_for(parameters.level, parameters.width)
    state = _state(condition, code)
    errors = sum(sum(counts) for counts in condition.counters.values())
    status, action = _sentences(condition, code, state, errors)
    usage = condition.usage
    return VolumeStatus(
        volume=condition.label.volume_name,
        volume_id=condition.label.volume_id,
        state=state,
        read_only=condition.read_only or condition.failed is not None,
        status=status,
        action=action,
        level=parameters.level,
        width=parameters.width,
        losses_survived=code.tolerance,
        cell_bytes=parameters.cell_bytes,
        zone_bytes=parameters.zone_bytes,
        total_bytes=usage.total_bytes if usage else None,
        used_bytes=usage.used_bytes if usage else None,
        free_bytes=usage.free_bytes if usage else None,
        files=usage.files if usage else None,
        epoch=usage.epoch if usage else None,
        mountpoint=condition.mountpoint,
        pid=condition.pid,
        consistency=CONSISTENCY,
        members=_members(condition),
        errors=condition.failed or _data_errors(condition, state),
        lane=condition.lane,
        cleaner=condition.cleaner,
        scrub=condition.scrub,
        redundancy=condition.redundancy,
        jobs=list(condition.jobs),
    )
