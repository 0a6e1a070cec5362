"""The figures of volumes as metrics for Prometheus: one table of families, and what fills it.

Made of what `raidfs-ctl status`, `statistics` and `group status` tell; docs/METRICS.md lists them.

 1. Names, units and labels are those of FAMILIES and no others: seconds and bytes, counters end in
    `_total`, every sample has the label `volume`.
 2. A figure that can't be had is left out; none is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from raidfs import native
from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group_requests import GroupStatus
from raidfs.daemon.status import EXIT_CODES, VolumeStatus
from raidfs.fs.volume import Volume
from raidfs.store.durations import BOUNDS_US
from raidfs.store.space import Space

if TYPE_CHECKING:
    from prometheus_client.core import Metric

US = 1e6
NO_GROUP = ""


@dataclass(frozen=True, slots=True)
class Family:
    """`labels`: besides `volume`."""

    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()


def _counter(text: str, *labels: str) -> Family:
    return Family("counter", text, labels)


def _gauge(text: str, *labels: str) -> Family:
    return Family("gauge", text, labels)


FAMILIES: dict[str, Family] = {
    "raidfs_up": _gauge("1: the daemon of the volume has answered; 0: it has not."),
    "raidfs_volume": Family(
        "info", "What the volume is, and where it is mounted.", ("volume_id", "level", "mountpoint")
    ),
    "raidfs_volume_state": _gauge(
        "1 at the state that the volume is in: online, degraded, failed.", "state"
    ),
    "raidfs_read_only": _gauge("1: nothing can be written, by mount option or after an error."),
    "raidfs_losses_survived": _gauge("Members that may be lost while all are there."),
    "raidfs_size_bytes": _gauge("Room for data of files, parity not counted."),
    "raidfs_used_bytes": _gauge("Room that data of files takes, snapshots included."),
    "raidfs_free_bytes": _gauge("Room for new data, as df tells it."),
    "raidfs_inodes": _gauge("Files, directories and other inodes of the present."),
    # members
    "raidfs_members": _gauge("Members by state: online, failed, missing, ...", "state"),
    "raidfs_member": Family("info", "Where a member is.", ("member", "kind", "path")),
    "raidfs_member_up": _gauge("1: the member is in use.", "member"),
    "raidfs_member_size_bytes": _gauge("Room on the member, parity included.", "member"),
    "raidfs_member_errors": _counter(
        "Errors of a member since it joined: reads and writes that failed, cells with a wrong"
        " checksum (kind: read, write, checksum).",
        "member",
        "kind",
    ),
    "raidfs_member_healed_cells": _counter("Cells rebuilt and written back.", "member"),
    "raidfs_member_latency_seconds": _gauge(
        "How long its reads have taken of late that were not in memory (quantile: 0.5, 0.99).",
        "member",
        "quantile",
    ),
    "raidfs_member_deadline_seconds": _gauge(
        "How long a read waits for it where the others are enough.", "member"
    ),
    "raidfs_member_late_reads": _counter("Reads that took longer than that.", "member"),
    "raidfs_member_slow": _gauge("1: it is slow; reads go around it where they can.", "member"),
    # what is stored, and how
    "raidfs_zones": _gauge(
        "Zones by state: open (being filled), full, kept (for the cleaner), degraded (a member of"
        " theirs is lost), erasing, possible (not allocated).",
        "state",
    ),
    "raidfs_cells": _counter(
        "Cells read from members, written to them, rebuilt from others, healed (kind).", "kind"
    ),
    "raidfs_unrecoverable_rows": _counter("Rows damaged beyond what redundancy covers."),
    "raidfs_cleaner_zones_emptied": _counter("Zones emptied by moving what was left in them."),
    "raidfs_cleaner_moved_bytes": _counter("Data moved by the cleaner."),
    "raidfs_cleaner_gain_bytes": _gauge("Free only once the cleaner has worked."),
    "raidfs_cleaner_left_bytes": _gauge("Data still to move out of the zone being emptied."),
    "raidfs_cleaner_waiting": _gauge("1: a writer waits for the cleaner."),
    "raidfs_cleaner_broken": _gauge("1: the cleaner has stopped for an error."),
    "raidfs_snapshots": _gauge("Snapshots with a name."),
    "raidfs_snapshots_condemned": _gauge("Deleted snapshots of which something is still there."),
    "raidfs_epoch": _gauge("Number of the open epoch: how many cuts there were, and one."),
    "raidfs_commits": _counter("Epochs made durable."),
    "raidfs_flush_seconds": Family("histogram", "From the start of a flush until it is durable."),
    "raidfs_flush_max_seconds": _gauge("The longest of these."),
    "raidfs_dirty_bytes": _gauge("Data in memory that is not yet on members."),
    "raidfs_dirty_max_bytes": _gauge("The most that there may be; then writers wait."),
    "raidfs_metadata_written_bytes": _counter("Metadata written to each member."),
    "raidfs_metadata_syncs": _counter("Syncs of the metadata, on each member."),
    "raidfs_resident_inodes": _gauge("Inodes whose pages are in memory."),
    "raidfs_open_files": _gauge("Files open for writing."),
    "raidfs_memory_bytes": _gauge("Memory by part: cells, leaves and tables, names.", "part"),
    "raidfs_events": _counter("Events noted, by kind.", "kind"),
    # the scrub
    "raidfs_scrub_state": _gauge(
        "1 at the state of the last scrub: running, paused, stopped, finished, failed.", "state"
    ),
    "raidfs_scrub_started_timestamp_seconds": _gauge("When the last scrub began."),
    "raidfs_scrub_ended_timestamp_seconds": _gauge("When it ended, if it has."),
    "raidfs_scrub_clean": _gauge("1: it left nothing damaged that it found by now."),
    "raidfs_scrub_read_bytes": _gauge("What it has read from all members, of zones done."),
    "raidfs_scrub_bad_cells": _gauge("Cells that it found damaged, on all members."),
    "raidfs_scrub_healed_cells": _gauge("Of these, those that it wrote anew."),
    "raidfs_scrub_damaged_copies": _gauge(
        "Copies of labels and pages of metadata that it found damaged."
    ),
    "raidfs_scrub_lost_rows": _gauge("Rows that it found damaged beyond redundancy."),
    "raidfs_scrub_damaged_files": _gauge(
        "Files of the present and of snapshots with pages that can't be read."
    ),
    # requests of the kernel
    "raidfs_requests": _counter(
        "Requests of the kernel, by kind and by how: served in C, carried to Python, forwarded.",
        "how",
        "request",
    ),
    "raidfs_lane_threads": _gauge("Threads that take requests from the kernel."),
    "raidfs_lane_bytes": _counter("Bytes of READs and WRITEs served in C.", "direction"),
    "raidfs_lane_parked": _gauge("WRITEs that wait for room in memory now."),
    "raidfs_lane_refused": _counter("Requests that made no sense."),
    "raidfs_lane_lost": _counter("Answers that the kernel did not take."),
    # the group
    "raidfs_group": Family("info", "The group that the volume is in.", ("group",)),
    "raidfs_group_members": _gauge("Volumes of the group by state: up, away.", "state"),
    "raidfs_group_snapshots": _gauge("Snapshots of the group that are kept here."),
    "raidfs_group_running": _gauge("Snapshots of the group under way or in doubt."),
    "raidfs_group_snapshots_taken": _counter(
        "Snapshots of the group asked for here, by result: committed, aborted.", "result"
    ),
    "raidfs_group_gate_seconds": Family(
        "histogram", "How long replies to applications stood still for a snapshot of the group."
    ),
    "raidfs_group_gate_max_seconds": _gauge("The longest of these."),
    "raidfs_group_channel_bytes": _counter("Messages recorded as part of snapshots."),
}


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value of a family; of a histogram the sum, with `buckets`: bound, and how many in all are
    not above it."""

    name: str
    labels: dict[str, str]
    value: float
    buckets: list[tuple[str, float]] = []


class MetricsRequest(Request, frozen=True, tag="metrics"):
    """Answered with a list of Samples."""


class MetricsService:
    """Of one mounted volume. The functions given tell its status, statistics and group."""

    def __init__(
        self,
        status: Callable[[], VolumeStatus],
        statistics: Callable[[], dict[str, Any]],
        group: Callable[[], GroupStatus],
    ) -> None:
        self._status, self._statistics, self._group = status, statistics, group

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {MetricsRequest: self._tell}

    async def _tell(self, _: MetricsRequest) -> list[Sample]:
        return self.samples()

    def samples(self) -> list[Sample]:
        """The volume as it is now."""
        statistics = msgspec.to_builtins(self._statistics())
        return samples_of(self._status(), statistics, self._group())


def statistics_of(volume: Volume, lane: dict[str, Any] | None) -> dict[str, Any]:
    """What `raidfs-ctl statistics` tells, by part of the daemon."""
    store = volume.store
    return {
        "store": store.statistics(),
        "flushes": {"bounds_us": BOUNDS_US, **msgspec.to_builtins(store.flushes)},
        "pages": store.pages.statistics(),
        "inodes": volume.statistics(),
        "known": volume.known.statistics(),
        "array": store.array.statistics(),
        "columns": store.columns.statistics(),
        "members": store.slow.statistics(),
        "healed": {str(number): state.healed for number, state in store.array.states.items()},
        "zones": zone_states(store.space),
        "mirror": store.mirror.statistics(),
        "sweeper": {"snapshots": len(store.snapshots.all()), **store.sweeper.statistics()},
        "events": dict(store.events.counts),
        "kernel": native.kernel_selected(),
        "lane": lane,
    }


def zone_states(space: Space) -> dict[str, int]:
    """How many zones are in which state; each in one."""
    counts = dict.fromkeys(("open", "full", "kept", "degraded"), 0)
    for zone in space.zones.values():
        if not space.healthy(zone):
            counts["degraded"] += 1
        elif zone.kept:
            counts["kept"] += 1
        else:
            counts["open" if zone.room_cells else "full"] += 1
    return {**counts, "erasing": len(space.limbo), "possible": space.zones_possible()}


# -- from figures to samples -----------------------------------------------------------------------


def samples_of(
    status: VolumeStatus, statistics: dict[str, Any], group: GroupStatus
) -> list[Sample]:
    """All that there is to tell of a volume, by what it told of itself."""
    found = [
        *_of_status(status),
        *_of_members(status, statistics["healed"]),
        *_of_slowness(statistics["members"]),
        *_of_store(statistics, status.cell_bytes),
        *_of_cleaner(status),
        *_of_scrub(status),
        *_of_lane(status, statistics["lane"]),
        *(_of_group(group) if group.group != NO_GROUP else ()),
    ]
    name = status.volume
    return [msgspec.structs.replace(s, labels={"volume": name, **s.labels}) for s in found]


def unreachable(volume: str) -> list[Sample]:
    """What can be told of a volume whose daemon doesn't answer."""
    return [Sample("raidfs_up", {"volume": volume}, 0)]


def _one(name: str, value: float | None, **labels: str) -> Iterator[Sample]:
    if value is not None:
        yield Sample(name, labels, float(value))


def _histogram(name: str, told: dict[str, Any]) -> Iterator[Sample]:
    buckets, so_far = [], 0
    for bound_us, count in zip(told["bounds_us"], told["counts"], strict=False):
        so_far += count
        buckets.append((f"{bound_us / US:g}", float(so_far)))
    buckets.append(("+Inf", float(sum(told["counts"]))))
    yield Sample(name, {}, told["sum_us"] / US, buckets)


def _of_status(status: VolumeStatus) -> Iterator[Sample]:
    yield from _one("raidfs_up", 1)
    yield from _one(
        "raidfs_volume",
        1,
        volume_id=status.volume_id,
        level=status.level,
        mountpoint=status.mountpoint or "",
    )
    for state in EXIT_CODES:
        yield from _one("raidfs_volume_state", status.state == state, state=state.lower())
    yield from _one("raidfs_read_only", status.read_only)
    yield from _one("raidfs_losses_survived", status.losses_survived)
    yield from _one("raidfs_size_bytes", status.total_bytes)
    yield from _one("raidfs_used_bytes", status.used_bytes)
    yield from _one("raidfs_free_bytes", status.free_bytes)
    yield from _one("raidfs_inodes", status.files)
    yield from _one("raidfs_epoch", status.epoch)


def _of_members(status: VolumeStatus, healed: dict[str, int]) -> Iterator[Sample]:
    states = dict.fromkeys(("online", "failed", "missing"), 0)
    for member in status.members:
        state, number = member.state.lower(), str(member.id)
        states[state] = states.get(state, 0) + 1
        yield from _one("raidfs_member", 1, member=number, kind=member.kind, path=member.path)
        yield from _one("raidfs_member_up", member.state == "ONLINE", member=number)
        yield from _one("raidfs_member_size_bytes", member.bytes, member=number)
        errors = {
            "read": member.read_errors,
            "write": member.write_errors,
            "checksum": member.checksum_errors,
        }
        for kind, count in errors.items():
            yield from _one("raidfs_member_errors", count, member=number, kind=kind)
        yield from _one("raidfs_member_healed_cells", healed.get(number), member=number)
    for state, count in states.items():
        yield from _one("raidfs_members", count, state=state)


def _of_slowness(members: dict[str, Any]) -> Iterator[Sample]:
    for number, told in members.items():
        for quantile, name in (("0.5", "median_s"), ("0.99", "p99_s")):
            yield from _one(
                "raidfs_member_latency_seconds", told[name], member=number, quantile=quantile
            )
        yield from _one("raidfs_member_deadline_seconds", told["deadline_s"], member=number)
        yield from _one("raidfs_member_late_reads", told["late_reads"], member=number)
        yield from _one("raidfs_member_slow", told["slow_s"] is not None, member=number)


def _of_store(told: dict[str, Any], cell_bytes: int) -> Iterator[Sample]:
    store, pages, array = told["store"], told["pages"], told["array"]
    for state, count in told["zones"].items():
        yield from _one("raidfs_zones", count, state=state)
    cells = {kind: array[f"cells_{kind}"] for kind in ("read", "written", "rebuilt", "healed")}
    cells["read"] += told["columns"]["cells_read"]
    cells["rebuilt"] += told["columns"]["cells_rebuilt"]
    for kind, count in cells.items():
        yield from _one("raidfs_cells", count, kind=kind)
    yield from _one("raidfs_unrecoverable_rows", array["rows_unrecoverable"])
    yield from _one("raidfs_snapshots", told["sweeper"]["snapshots"])
    yield from _one("raidfs_snapshots_condemned", told["sweeper"]["condemned"])
    yield from _one("raidfs_commits", store["cuts"])
    yield from _histogram("raidfs_flush_seconds", told["flushes"])
    yield from _one("raidfs_flush_max_seconds", told["flushes"]["max_us"] / US)
    yield from _one("raidfs_dirty_bytes", store["dirty_cells"] * cell_bytes)
    yield from _one("raidfs_dirty_max_bytes", store["dirty_cells_max"] * cell_bytes)
    yield from _one("raidfs_metadata_written_bytes", told["mirror"]["written_bytes"])
    yield from _one("raidfs_metadata_syncs", told["mirror"]["syncs"])
    yield from _one("raidfs_resident_inodes", pages["resident"])
    yield from _one("raidfs_open_files", pages["open_files"])
    parts = {
        "cells": pages["cell_pool_bytes"],
        "leaves": pages["table_bytes"] + pages["layer_bytes"],
        "names": told["known"]["nbytes"],
    }
    for part, nbytes in parts.items():
        yield from _one("raidfs_memory_bytes", nbytes, part=part)
    for kind, count in told["events"].items():
        yield from _one("raidfs_events", count, kind=kind)


def _of_cleaner(status: VolumeStatus) -> Iterator[Sample]:
    cleaner = status.cleaner
    if cleaner is None:
        return
    yield from _one("raidfs_cleaner_zones_emptied", cleaner.zones_emptied)
    yield from _one("raidfs_cleaner_moved_bytes", cleaner.moved_bytes)
    yield from _one("raidfs_cleaner_gain_bytes", cleaner.gain_bytes)
    yield from _one("raidfs_cleaner_left_bytes", cleaner.left_bytes)
    yield from _one("raidfs_cleaner_waiting", cleaner.waiting)
    yield from _one("raidfs_cleaner_broken", bool(cleaner.broken))


def _of_scrub(status: VolumeStatus) -> Iterator[Sample]:
    scrub = status.scrub
    if scrub is None:
        return
    for state in ("running", "paused", "stopped", "finished", "failed"):
        yield from _one("raidfs_scrub_state", scrub.state == state, state=state)
    yield from _one("raidfs_scrub_started_timestamp_seconds", scrub.started_ns / 1e9)
    if scrub.ended_ns:
        yield from _one("raidfs_scrub_ended_timestamp_seconds", scrub.ended_ns / 1e9)
    yield from _one("raidfs_scrub_clean", scrub.ok)
    yield from _one("raidfs_scrub_read_bytes", scrub.read_bytes)
    yield from _one("raidfs_scrub_bad_cells", scrub.bad_cells)
    yield from _one("raidfs_scrub_healed_cells", scrub.healed_cells)
    yield from _one("raidfs_scrub_damaged_copies", scrub.metadata_damaged)
    yield from _one("raidfs_scrub_lost_rows", scrub.rows_lost)
    yield from _one("raidfs_scrub_damaged_files", scrub.files_damaged)


def _of_lane(status: VolumeStatus, told: dict[str, Any] | None) -> Iterator[Sample]:
    lane = status.lane
    if lane is None or told is None:
        return
    yield from _one("raidfs_lane_threads", lane.threads)
    ways = {"served": lane.served, "carried": lane.carried, "forwarded": lane.forwarded}
    for how, counts in ways.items():
        for request, count in counts.items():
            yield from _one("raidfs_requests", count, how=how, request=request)
    yield from _one("raidfs_lane_bytes", told["bytes_read"], direction="read")
    yield from _one("raidfs_lane_bytes", told["bytes_written"], direction="written")
    yield from _one("raidfs_lane_parked", told["parked_now"])
    yield from _one("raidfs_lane_refused", told["refused"])
    yield from _one("raidfs_lane_lost", told["lost"])


def _of_group(group: GroupStatus) -> Iterator[Sample]:
    yield from _one("raidfs_group", 1, group=group.group)
    up = sum(member.up for member in group.members)
    yield from _one("raidfs_group_members", up, state="up")
    yield from _one("raidfs_group_members", len(group.members) - up, state="away")
    yield from _one("raidfs_group_snapshots", group.snapshots)
    yield from _one("raidfs_group_running", len(group.running))
    for result in sorted({"committed", "aborted", *group.results}):
        count = group.results.get(result, 0)
        yield from _one("raidfs_group_snapshots_taken", count, result=result)
    yield from _histogram("raidfs_group_gate_seconds", msgspec.to_builtins(group.gate))
    yield from _one("raidfs_group_gate_max_seconds", group.gate.max_us / US)
    yield from _one("raidfs_group_channel_bytes", group.channel_bytes)


# -- from samples to text --------------------------------------------------------------------------


def exposition(volumes: Iterable[list[Sample]], accept: str = "") -> tuple[bytes, str]:
    """The text that Prometheus reads, all volumes together, and its Content-Type. `accept`: which
    form of text is wanted, as in the header of that name."""
    # Imported where it is used: most daemons and commands do without.
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    families = _families(volumes)

    class Collector:
        """Of these samples."""

        def collect(self) -> Iterable[Metric]:
            """As prometheus_client wants it."""
            return families

    registry = CollectorRegistry()
    registry.register(Collector())
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _families(volumes: Iterable[list[Sample]]) -> list[Metric]:
    """In the order of FAMILIES; those without a sample are left out."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )

    made: dict[str, Any] = {}
    classes = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    for sample in (each for volume in volumes for each in volume):
        family = FAMILIES[sample.name]
        labels = ("volume", *family.labels)
        values = [sample.labels.get(label, "") for label in labels]
        metric = made.get(sample.name)
        if family.kind == "histogram":
            if metric is None:
                metric = HistogramMetricFamily(sample.name, family.help, labels=labels)
            metric.add_metric(values, sample.buckets, sample.value)
        elif family.kind == "info":
            if metric is None:
                metric = InfoMetricFamily(sample.name, family.help, labels=labels)
            metric.add_metric(values, {})
        else:
            if metric is None:
                metric = classes[family.kind](sample.name, family.help, labels=labels)
            metric.add_metric(values, sample.value)
        made[sample.name] = metric
    return [made[name] for name in FAMILIES if name in made]
