"""The whole of a check, from the members up."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import FormatError, RaidfsError
from ..raid.assembly import Assembly
from ..raid.label import LABEL_COPIES, decode_label
from ..store.meta import Meta
from ..store.mirror import Mirror
from .cells import Cells
from .events import check_events
from .leaves import Leaves
from .report import Progress, Report
from .scrub import check_scrub
from .snapshots import Snapshots
from .tree import Tree
from .zones import Zones


def check_volume(
    source: str,
    *,
    extra_paths: Iterable[str] = (),
    data: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Check the volume that `source` is a member of. Raises RaidfsError if it can't be opened at
    all. `data` False leaves the cells out, and so takes time by the metadata's size only."""
    assembly = Assembly.open(source, degraded=True, read_only=True, extra_paths=extra_paths)
    try:
        return check_assembly(assembly, data=data, progress=progress)
    finally:
        assembly.close()


def check_assembly(
    assembly: Assembly, *, data: bool = True, progress: Progress | None = None
) -> Report:
    """The same of members that are open already. They stay open."""
    report = Report()
    _check_labels(assembly, report)
    mirror = Mirror(
        assembly.members,
        read_only=True,
        on_event=lambda name, member, text: report.add(
            f"metadata.{name}", f"member {member}: {text}"
        ),
        on_failed=lambda member, reason: report.add(
            "metadata.member", f"member {member}: {reason}"
        ),
    )
    try:
        for member_id, problem in mirror.scrub():
            report.add("metadata.page", f"member {member_id}: {problem}")
        try:
            meta = Meta(mirror)
        except RaidfsError as error:
            report.add("metadata.open", str(error))
            return report
        try:
            for problem in meta.integrity():
                report.add("metadata.sqlite", problem)
            zones = _check_metadata(assembly, meta, report)
            if data:
                show = progress or (lambda what, done, total: None)
                Cells(assembly, meta, zones.zones, report, show).run()
        except FormatError as error:
            report.add("metadata.format", str(error))
        finally:
            meta.close()
    finally:
        mirror.close()
    return report


def _check_labels(assembly: Assembly, report: Report) -> None:
    for member in assembly.members.values():
        labels = []
        for copy in range(LABEL_COPIES):
            try:
                labels.append(decode_label(member.read_label(copy)))
            except RaidfsError as error:
                report.add("label.copy", f"{member.path}: copy {copy} of its label: {error}")
        if len({label.generation_id for label in labels}) > 1:
            report.note("label.update", f"{member.path}: a label update was cut off by a crash")
    for member_id, reason in assembly.lost.items():
        report.note("member.lost", f"member {member_id}: {reason}")
    report.count("members", len(assembly.members))


def _check_metadata(assembly: Assembly, meta: Meta, report: Report) -> Zones:
    """All but the cells."""
    snapshots = Snapshots(meta, report)
    snapshots.table()
    tree = Tree(meta, snapshots.views, snapshots.versions, report)
    tree.run()
    zones = Zones(assembly, meta, snapshots.views, report)
    zones.load()
    leaves = Leaves(meta, snapshots.views, tree, zones, report)
    leaves.run(snapshots.versions())
    tree.conclude()
    zones.conclude()
    snapshots.figures(tree, leaves, zones)
    check_events(meta, report)
    check_scrub(meta, report)
    return zones
