"""`raidfs-ctl status`, `list`, `statistics`: what state volumes are in, and what they counted."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec
import trio

from raidfs.cli import target
from raidfs.cli.job_lines import job_line
from raidfs.cli.output import print_json, sentence, size_text, table
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon import registry
from raidfs.daemon.condition import store_condition
from raidfs.daemon.control import ControlClient, StatisticsRequest
from raidfs.daemon.status import (
    EXIT_CODES,
    EXIT_UNKNOWN,
    CleanerStatus,
    Condition,
    LaneStatus,
    MemberStatus,
    Redundancy,
    ScrubStatus,
    VolumeStatus,
    describe,
)
from raidfs.errors import Divergent, NotEnoughMembers, RaidfsError
from raidfs.raid.assembly import Assembly
from raidfs.store.store import Store

LINE_COLUMNS = 80


def status_of(where: str, members: tuple[str, ...] = ()) -> VolumeStatus:
    """The status of a volume, from its daemon or, unmounted, from its members."""
    found = target.find(where)
    if isinstance(found, target.Mounted):
        with found.client() as client:
            return client.status()
    return unmounted_status(found, members)


def unmounted_status(found: target.Unmounted, members: tuple[str, ...] = ()) -> VolumeStatus:
    """Reads labels and metadata; changes nothing."""
    try:
        assembly = Assembly.open(
            found.path, degraded=True, read_only=True, extra_paths=list(members)
        )
    except (NotEnoughMembers, Divergent) as error:
        return describe(_without_store(found, str(error)))
    try:
        return describe(trio.run(_look_inside, assembly))
    finally:
        assembly.close()


async def _look_inside(assembly: Assembly) -> Condition:
    try:
        store = await Store.open(assembly, read_only=True, clock=time.time_ns)
    except RaidfsError as error:
        label = assembly.label
        return Condition(label, dict(assembly.lost), {}, failed=f"its metadata: {error}")
    try:
        return store_condition(store, None)
    finally:
        await store.close()


def _without_store(found: target.Unmounted, reason: str) -> Condition:
    """What the one label that can be read says; which members answer is looked up one by one."""
    lost = {}
    for entry in found.label.members:
        try:
            label = target.read_label(entry.path)
        except RaidfsError as error:
            lost[entry.id] = sentence(error)
            continue
        if (label.volume_id, label.member_id) != (found.label.volume_id, entry.id):
            lost[entry.id] = "another member is found at this path"
    return Condition(found.label, lost, {}, failed=reason)


# -- text -----------------------------------------------------------------------------------------


def _line(name: str, text: str) -> str:
    """A header line as zpool(8) has it: the name set to the right, long text hanging below."""
    return textwrap.fill(
        text,
        LINE_COLUMNS,
        initial_indent=f"{name:>8}: ",
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )


def role_text(member: MemberStatus) -> str:
    """In one word or two."""
    if member.replaces >= 0:
        return f"replaces {member.replaces}"
    if member.role == "evacuating":
        return "evacuating" if member.columns else "empty"
    return member.role


def note_text(member: MemberStatus) -> str:
    """What else there is to say of it."""
    said = [text for text in (member.reason, member.slow) if text]
    if member.removable:
        said.append("holds nothing, can be removed")
    elif member.state == "ONLINE" and member.lacking:
        some = "1 column lacks" if member.lacking == 1 else f"{member.lacking} columns lack"
        said.append(f"{some} rows")
    return "; ".join(said)


def _member_row(member: MemberStatus) -> tuple[object, ...]:
    role = role_text(member)
    said = [text for text in ("" if role == "data" else role, note_text(member)) if text]
    return (
        f"  {member.id} {member.path}",
        member.state,
        member.read_errors,
        member.write_errors,
        member.checksum_errors,
        "; ".join(said),
    )


def _redundancy_text(zones: Redundancy) -> str:
    whole = zones.zones - zones.lacking
    text = f"{whole} of {zones.zones} zones whole"
    if zones.unreadable:
        text += f", {zones.unreadable} BEYOND READING"
    left = {0: "no more loss", 1: "the loss of any 1 member more"}.get(
        zones.losses_left, f"the loss of any {zones.losses_left} members more"
    )
    text += f", survive {left}"
    if zones.shared_domains:
        text += f"; {zones.shared_domains} zones with two columns in one failure domain"
    return text


def _lane_text(lane: LaneStatus | None) -> str:
    if lane is None:
        return "none (nolane): every request goes through Python"
    served, carried, forwarded = (
        sum(counts.values()) for counts in (lane.served, lane.carried, lane.forwarded)
    )
    threads = f"{lane.threads} thread{'s' if lane.threads != 1 else ''}"
    cache = ", write-back cache" if lane.writeback else ""
    return (
        f"{threads}{cache}; {served} requests served in C,"
        f" {carried + forwarded} answered by Python ({carried} carried, {forwarded} forwarded)"
    )


def _cleaner_text(cleaner: CleanerStatus) -> str:
    done = (
        f"{cleaner.zones_emptied} zones emptied by moving {size_text(cleaner.moved_bytes)}; "
        f"{size_text(cleaner.gain_bytes)} of what is free wait for it"
    )
    if cleaner.broken:
        return f"stopped after {cleaner.broken}; unmount and mount to start it again; {done}"
    if not cleaner.zone:
        return f"idle; {done}"
    waited = ", and writers wait for room" if cleaner.waiting else ""
    left = f"{size_text(cleaner.left_bytes)} left to move"
    return f"emptying zone {cleaner.zone}, {left}{waited}; {done}"


def _scrub_text(scrub: ScrubStatus | None) -> str:
    if scrub is None:
        return "never; `raidfs-ctl scrub start` reads all that is stored and heals it"
    when = time_text(scrub.ended_ns or scrub.started_ns)
    since = "on" if scrub.ended_ns else "since"
    more = "" if scrub.ok else "; `raidfs-ctl scrub status` tells what is damaged"
    return f"{scrub.state} {since} {when}: {scrub.result}{more}"


def status_lines(status: VolumeStatus) -> list[str]:
    """The whole report, line by line."""
    state = status.state + (" (READ-ONLY)" if status.read_only else "")
    survives = {0: "no loss", 1: "the loss of any 1 member"}.get(
        status.losses_survived, f"the loss of any {status.losses_survived} members"
    )
    lines = [_line("volume", status.volume), _line("state", state)]
    if status.status:
        lines.append(_line("status", status.status))
    if status.action:
        lines.append(_line("action", status.action))
    lines.append(_line("level", f"{status.level} over {status.width} members, survives {survives}"))
    if status.total_bytes is not None:
        lines.append(
            _line(
                "space",
                f"{size_text(status.used_bytes)} used, {size_text(status.free_bytes)} free"
                f" of {size_text(status.total_bytes)}; {status.files} inodes",
            )
        )
    where = f"{status.mountpoint} (process {status.pid})" if status.mountpoint else "not mounted"
    lines.append(_line("mounted", where))
    if status.mountpoint:
        lines.append(_line("lane", _lane_text(status.lane)))
    if status.redundancy is not None:
        lines.append(_line("whole", _redundancy_text(status.redundancy)))
    lines += [_line("job", job_line(job)) for job in status.jobs if job.kind != "scrub"]
    if status.cleaner is not None:
        lines.append(_line("cleaner", _cleaner_text(status.cleaner)))
    if status.total_bytes is not None:  # else the metadata could not be read
        lines.append(_line("scrub", _scrub_text(status.scrub)))
    lines.append(_line("policy", status.consistency))
    rows: list[tuple[object, ...]] = [("NAME", "STATE", "READ", "WRITE", "CKSUM", "")]
    counters = [(m.read_errors, m.write_errors, m.checksum_errors) for m in status.members]
    sums = [sum(column) for column in zip(*counters, strict=True)]
    rows.append((status.volume, status.state, *sums, ""))
    rows += [_member_row(member) for member in status.members]
    lines += ["", *("        " + line for line in table(rows, frozenset({2, 3, 4}))), ""]
    lines.append(f" errors: {status.errors}")
    return lines


# -- commands -------------------------------------------------------------------------------------


@click.command("status")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER...", nargs=-1, required=True)
@click.option(
    "--member", "members", multiple=True, help="Where a member of an unmounted volume is now."
)
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
@click.option("-x", "--unhealthy", is_flag=True, help="Tell only volumes that are not ONLINE.")
def status_command(
    where: tuple[str, ...], members: tuple[str, ...], as_json: bool, unhealthy: bool
) -> int:
    """Tell the state of volumes: what it means, what to do, each member's errors.

    A mounted volume is asked through its daemon; an unmounted one is read from its members, and
    any one of them is enough to name it.

    Exit code: 0 ONLINE, 1 DEGRADED, 2 FAILED, 4 can't tell (the largest, if several are named).

    \b
    Examples:
      raidfs-ctl status /mnt/tank
      raidfs-ctl status --json /srv/disk1 | jq .state
    """
    worst = 0
    told = []
    for one in where:
        try:
            status = status_of(one, members)
        except (RaidfsError, OSError) as error:
            click.echo(f"raidfs-ctl: {sentence(error)}", err=True)
            worst = EXIT_UNKNOWN
            if as_json:
                told.append(
                    {"version": 1, "target": one, "state": "UNKNOWN", "error": sentence(error)}
                )
            continue
        worst = max(worst, EXIT_CODES[status.state])
        if unhealthy and status.state == "ONLINE":
            continue
        told.append(msgspec.to_builtins(status))
        if not as_json:
            click.echo("\n".join(status_lines(status)) + ("\n" if len(where) > 1 else ""))
    if as_json:
        print_json(told[0] if len(where) == 1 and told else {"volumes": told})
    elif unhealthy and worst == 0:
        click.echo("all volumes are ONLINE")
    return worst


@click.command("list")
@click.argument("where", metavar="[MEMBER...]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def list_command(where: tuple[str, ...], as_json: bool) -> int:
    """List volumes: all that are mounted on this host, and those of the members named.

    \b
    Examples:
      raidfs-ctl list
      raidfs-ctl list /srv/*
    """
    volumes: dict[str, VolumeStatus] = {}
    code = 0
    for entry, socket in registry.entries():
        try:
            with ControlClient(socket) as client:
                volumes[entry.volume_id] = client.status()
        except RaidfsError as error:
            click.echo(f"raidfs-ctl: {entry.mountpoint}: {sentence(error)}", err=True)
            code = EXIT_UNKNOWN
    for one in where:
        try:
            if target.read_label(one).volume_id not in volumes:
                status = status_of(one)
                volumes[status.volume_id] = status
        except (RaidfsError, OSError) as error:
            click.echo(f"raidfs-ctl: {sentence(error)}", err=True)
            code = EXIT_UNKNOWN
    if as_json:
        print_json({"volumes": list(volumes.values())})
        return code
    rows: list[tuple[object, ...]] = [
        ("VOLUME", "STATE", "LEVEL", "MEMBERS", "USED", "FREE", "MOUNTPOINT")
    ]
    for status in volumes.values():
        used, free = size_text(status.used_bytes), size_text(status.free_bytes)
        place = status.mountpoint or "-"
        lost = sum(member.state != "ONLINE" for member in status.members)
        count = f"{len(status.members) - lost}{f' + {lost} lost' if lost else ''}"
        rows.append((status.volume, status.state, status.level, count, used, free, place))
    click.echo("\n".join(table(rows, frozenset({3, 4, 5}))) if volumes else "no volumes")
    return code


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """`{"a": {"b": 1}}` -> ("a.b", 1)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


@click.command("statistics")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def statistics_command(where: str, as_json: bool) -> int:
    """Tell what a mounted volume's daemon has counted since the mount, by part of it.

    \b
    Examples:
      raidfs-ctl statistics /mnt/tank
      raidfs-ctl statistics --json /mnt/tank | jq .lane.served
    """
    found = target.must_be_mounted(where, "statistics")
    with contextlib.closing(found.client()) as client:
        told: dict[str, Any] = msgspec.json.decode(client.ask(StatisticsRequest()))
    if as_json:
        print_json(told)
    else:
        rows = [(name, "-" if value is None else value) for name, value in _flat(told)]
        click.echo("\n".join(table(rows, frozenset({1}))))
    return 0
