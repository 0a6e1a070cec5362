"""What an open store knows of its volume's health.

Needs no mount: commands use it on bare members as the daemon does on a mounted volume.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from raidfs.daemon.jobs import Job
from raidfs.daemon.status import (
    CleanerStatus,
    Condition,
    LaneStatus,
    Redundancy,
    ScrubStatus,
    Usage,
)
from raidfs.store.scrub_record import text_of
from raidfs.store.store import Store
from raidfs.store.zones import Zone


def store_condition(
    store: Store,
    mountpoint: str | None,
    lane: LaneStatus | None = None,
    jobs: Sequence[Job] = (),
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
    found = survey_zones(store)
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
        scrub=_scrub(store),
        cleaner=_cleaner(store) if mountpoint is not None and not store.read_only else None,
        redundancy=found.redundancy(store.space.code.tolerance),
        columns={n: (found.columns.get(n, 0), found.lacking_on.get(n, 0)) for n in counters},
        jobs=jobs,
        slow=store.slow.described(),
    )


def _scrub(store: Store) -> ScrubStatus | None:
    record = store.scrub.record
    if record is None:
        return None
    sums = record.total()
    return ScrubStatus(
        state=record.state,
        started_ns=record.started_ns,
        ended_ns=record.ended_ns,
        ok=not (record.damaged or record.state == "failed"),
        result=text_of(record),
        read_bytes=record.done_bytes,
        bad_cells=sums.bad,
        healed_cells=sums.healed,
        metadata_damaged=sums.metadata + sums.labels,
        rows_lost=record.rows_lost,
        files_damaged=record.files,
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


# -- zones ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Survey:
    """Of all zones that count; by member where it says so."""

    zones: int = 0
    lacking: int = 0
    unreadable: int = 0
    shared_domains: int = 0
    losses_left: int | None = None
    columns: dict[int, int] = field(default_factory=dict)
    lacking_on: dict[int, int] = field(default_factory=dict)

    def redundancy(self, tolerance: int) -> Redundancy:
        left = tolerance if self.losses_left is None else self.losses_left
        return Redundancy(
            self.zones, self.lacking, self.unreadable, max(0, left), self.shared_domains
        )


def counted_zones(store: Store) -> Iterator[Zone]:
    """Those that hold something, or are about to: the mender's, too."""
    return (zone for zone in store.space.zones.values() if zone.needed or zone.room_cells)


def survey_zones(store: Store) -> _Survey:
    """One look at each zone. `columns` counts those of all zones, also of empty ones."""
    found, array = _Survey(), store.array
    domains = {entry.id: entry.domain for entry in store.assembly.label.members if entry.domain}
    for zone in store.space.zones.values():
        columns = found.columns
        for member, _ in zone.map.columns:
            columns[member] = columns.get(member, 0) + 1
    for zone in counted_zones(store):
        code, lost = zone.map.code, frozenset(array.absent(zone.map))
        found.zones += 1
        left = code.tolerance - len(lost)
        if found.losses_left is None or left < found.losses_left:
            found.losses_left = left
        if domains:
            of = [domains[member] for member, _ in zone.map.columns if member in domains]
            found.shared_domains += len(set(of)) < len(of)
        if not lost:
            continue
        found.lacking += 1
        found.unreadable += zone.needed and not code.survives(lost)
        for column in lost:
            member = zone.map.columns[column][0]
            found.lacking_on[member] = found.lacking_on.get(member, 0) + 1
    return found


def unreadable_without(store: Store, gone: Set[int]) -> list[Zone]:
    """Zones that could be read, and can't without these members; what was promised to writers may
    lie in any that has room."""
    found = []
    for zone in counted_zones(store):
        lost = frozenset(store.array.absent(zone.map))
        more = lost | {c for c, (member, _) in enumerate(zone.map.columns) if member in gone}
        code = zone.map.code
        if more > lost and not code.survives(more) and (not lost or code.survives(lost)):
            found.append(zone)
    return found


def data_bytes(store: Store, zones: Iterable[Zone]) -> int:
    """Of files, that lie in these zones."""
    cells = sum(min(zone.live, zone.fill * zone.map.code.k) for zone in zones)
    return cells * store.cell_bytes
