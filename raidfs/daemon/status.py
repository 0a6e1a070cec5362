"""The state of a volume as people and scripts are told it, from a daemon or from bare members.

Words are those of zpool(8): ONLINE (all members), DEGRADED (some lost, all data whole), FAILED
(something is lost, or can't be told apart from lost).

 1. The text that a person reads and the JSON that a script reads have the same names and states.
 2. Every state but ONLINE says what it means and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from raidfs.raid.code import Code, code_for
from raidfs.raid.label import Label

State = Literal["ONLINE", "DEGRADED", "FAILED"]
MemberStateName = Literal["ONLINE", "FAILED", "MISSING"]
EXIT_CODES: dict[State, int] = {"ONLINE": 0, "DEGRADED": 1, "FAILED": 2}
EXIT_UNKNOWN = 4
CONSISTENCY = "rows are written once, in full, before anything refers to them (no write hole)"


class MemberStatus(msgspec.Struct, frozen=True):
    """One member. Errors are counted since creation: reads, writes, cells with a wrong checksum."""

    id: int
    kind: str
    path: str
    state: MemberStateName
    read_errors: int
    write_errors: int
    checksum_errors: int
    bytes: int
    reason: str = ""


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
    cleaner: CleanerStatus | None = None


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _state(condition: Condition, code: Code) -> State:
    active_lost = len(condition.lost)
    if condition.failed is not None or (active_lost > code.tolerance and not condition.mountpoint):
        return "FAILED"
    return "DEGRADED" if active_lost else "ONLINE"


def _sentences(condition: Condition, code: Code, state: State, errors: int) -> tuple[str, str]:
    """What it means, and what to do. Both empty when there is nothing to say."""
    lost = len(condition.lost)
    if state == "FAILED" and condition.mountpoint:
        return (
            f"An error went beyond the redundancy: {condition.failed}. The volume is read-only.",
            "Save what you need by reading it; then unmount, run `raidfs-ctl check MEMBER`, mount.",
        )
    if state == "FAILED":
        reason = condition.failed or f"{_count(lost, 'member')} lost, {code.tolerance} survivable"
        return (
            f"The volume can't be mounted: {reason}",
            "Bring back the members that are missing below (paths, cables), then mount.",
        )
    if state == "DEGRADED":
        left = max(code.tolerance - lost, 0)
        return (
            f"{_count(lost, 'member')} lost. All data is whole;"
            f" {'no' if left == 0 else left} more may be lost.",
            "Back up now. This version can't rebuild onto a new member: to have full redundancy"
            " again, create a new volume and copy the files over.",
        )
    if errors:
        return (
            "Members gave errors; what was damaged has been rebuilt from the rest.",
            "Nothing is lost. If a counter goes on rising, replace that member's hardware.",
        )
    return "", ""


def _members(condition: Condition) -> list[MemberStatus]:
    rows = []
    for entry in condition.label.members:
        reads, writes, checksums = condition.counters.get(entry.id, (0, 0, 0))
        reason = condition.lost.get(entry.id, "")
        state: MemberStateName = "ONLINE"
        if entry.state == "failed":
            state, reason = "FAILED", entry.reason or reason
        elif entry.id in condition.lost:
            state = "MISSING"
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
            )
        )
    return rows


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
        errors=condition.failed or ("No known data errors" if state != "FAILED" else "Unknown"),
        lane=condition.lane,
        cleaner=condition.cleaner,
    )
