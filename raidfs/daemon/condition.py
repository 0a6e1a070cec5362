"""What an open store knows of its volume's health, and taking a member out of it.

Needs no mount: commands use it on bare members as the daemon does on a mounted volume.
"""

from __future__ import annotations

import os

from raidfs.daemon.control import MemberFailRequest
from raidfs.daemon.status import CleanerStatus, Condition, LaneStatus, Usage
from raidfs.errors import UsageError
from raidfs.store.store import Store


def store_condition(
    store: Store, mountpoint: str | None, lane: LaneStatus | None = None
) -> Condition:
    """What an open store knows of its volume."""
    label = store.assembly.label
    lost: dict[int, str] = {}
    counters: dict[int, tuple[int, int, int]] = {}
    reasons = {**store.assembly.lost, **{e.id: e.reason for e in label.members if e.reason}}
    for number, state in store.array.states.items():
        counters[number] = (state.read_errors, state.write_errors, state.checksum_errors)
        if state.state != "online":
            lost[number] = str(reasons.get(number, "")) or "not found"
    cells = store.space.usage()
    size = store.cell_bytes
    usage = Usage(
        total_bytes=cells.total_cells * size,
        used_bytes=cells.live_cells * size,
        free_bytes=cells.free_cells * size,
        files=store.meta.count_inodes(),
        epoch=store.epoch,
    )
    return Condition(
        label=label,
        lost=lost,
        counters=counters,
        usage=usage,
        read_only=store.read_only and mountpoint is not None,
        failed=store.failed,
        mountpoint=mountpoint,
        pid=os.getpid() if mountpoint else None,
        lane=lane,
        cleaner=_cleaner(store) if mountpoint is not None and not store.read_only else None,
    )


def _cleaner(store: Store) -> CleanerStatus:
    it, size = store.cleaner.statistics(), store.cell_bytes
    return CleanerStatus(
        zone=it.zone,
        left_bytes=it.left_cells * size,
        zones_emptied=it.zones_emptied,
        moved_bytes=it.cells_moved * size,
        gain_bytes=it.gain_cells * size,
        waiting=it.waiting,
        broken=it.broken or "",
    )


async def fail_member(store: Store, request: MemberFailRequest) -> None:
    """Takes a member out, unless that would lose data and `force` doesn't say so."""
    store.writable()
    states = store.array.states
    number = request.member_id
    if number not in states:
        known = ", ".join(str(known_id) for known_id in sorted(states))
        raise UsageError(f"there is no member {number}; the members are {known}")
    if states[number].state == "failed":
        raise UsageError(f"member {number} has already left the volume; nothing to do")
    online = {member for member, state in states.items() if state.state == "online"} - {number}
    if not online:
        raise UsageError(f"member {number} is the last one; nothing would remain")
    if not request.force and not survives(store, online):
        raise UsageError(
            f"without member {number} data would be lost: redundancy doesn't cover it;"
            " copy the data away first (--force does it all the same)"
        )
    await store.losses.fail_member(number, request.reason or "failed by the administrator")


def survives(store: Store, online: set[int]) -> bool:
    """Whether every zone can be read with only these members."""
    for zone in store.space.zones.values():
        columns = zone.map.columns
        lost = frozenset(c for c, (member, _) in enumerate(columns) if member not in online)
        if lost and not zone.map.code.survives(lost):
            return False
    return True
