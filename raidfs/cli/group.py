"""`raidfs-ctl group ...`: one snapshot of several volumes, consistent across all of them.

The commands about members, snapshots and the policy are in files of their own; here are those that
tell of the group itself.
"""

from __future__ import annotations

import time

import click

from raidfs.cli import group_members, group_policy, group_snapshot, target
from raidfs.cli.group_moves import find_move, move_lines, warning
from raidfs.cli.group_target import ask as ask
from raidfs.cli.group_target import find as find
from raidfs.cli.group_target import json_option, yes_option
from raidfs.cli.group_target import volumes as volumes
from raidfs.cli.output import EXIT_ERROR, confirm, print_json, size_text, table
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon.group_requests import (
    GateFigures,
    GroupCheckRequest,
    GroupCondition,
    GroupResolveRequest,
    GroupStatus,
    GroupWaitRequest,
    PeerTold,
)

EXIT_DEADLOCK = 3
WARN_DAYS, YEAR_S = 30, 365 * 86400


@click.group("group")
def group_group() -> None:
    """Snapshots over several volumes that no program can catch being inconsistent.

    Volumes of a group stay independent of each other. A snapshot of the group holds back replies
    for the milliseconds in which the daemons tell each other of it, and waits for no disk then.

    \b
    A first session:
      raidfs-ctl group init shop /mnt/orders /mnt/stock
      raidfs-ctl group snapshot shop monday
      ls /mnt/orders/.snapshots/monday /mnt/stock/.snapshots/monday
    """


for command in (
    group_members.init_command,
    group_members.join_command,
    group_members.invite_command,
    group_members.leave_command,
    group_members.expel_command,
    group_members.take_over_command,
    group_snapshot.snapshot_command,
    group_snapshot.list_command,
    group_snapshot.show_command,
    group_snapshot.delete_command,
    group_snapshot.rollback_command,
    group_policy.policy_group,
):
    group_group.add_command(command)


@group_group.command("status")
@click.argument("group", metavar="[GROUP]", required=False)
@json_option
def status_command(group: str | None, as_json: bool) -> int:
    """Tell who is in a group, who can be reached, and what is under way.

    Exit code 1: a member can't be reached, or takes no part.

    \b
    Example:
      raidfs-ctl group status shop
    """
    if group is not None:
        statuses = [find(group)[1]]
    else:
        seen = [status for _, status in volumes()]
        groups = {status.group_id: status for status in seen if status.group}
        statuses = [*groups.values(), *(status for status in seen if status.out)]
    if as_json:
        print_json(statuses[0] if group is not None else {"groups": statuses})
    else:
        for status in statuses:
            click.echo("\n".join(_status_lines(status)))
        if not statuses:
            click.echo("no groups")
    whole = all(one.up for status in statuses for one in status.members)
    wrong = any(one.obstacle or one.trouble or one.out for one in statuses)
    return 0 if whole and not wrong else EXIT_ERROR


def _status_lines(status: GroupStatus) -> list[str]:
    lines = [status.out] if status.out else []
    if status.group:
        keeper = next((one.name for one in status.members if one.volume == status.keeper), "")
        lines.append(f"group {status.group} as {status.volume} sees it, kept by {keeper}:")
        rows = [["VOLUME", "STATE", "WHERE"]]
        rows += [[one.name, _member_text(one), ", ".join(one.addresses)] for one in status.members]
        lines += table(rows)
    lines += [text for text in (status.obstacle, status.trouble) if text]
    lines += _certificate_lines(status, time.time())
    lines += [
        f"snapshot {one.name} ({one.id}) is {one.phase} since {time_text(one.created_ns)}"
        for one in status.running
    ]
    lines += [f"under way: {work}" for work in status.works]
    lines += move_lines(status)
    if status.group:
        results = ", ".join(f"{count} {state}" for state, count in sorted(status.results.items()))
        lines.append(
            f"snapshots: {status.snapshots} here; asked for here since the mount: {results or 0};"
            f" recorded of what was on its way: {size_text(status.channel_bytes)}"
        )
        lines += _gate_lines(status.gate)
    return lines


def _member_text(one: PeerTold) -> str:
    if one.me:
        return "this one"
    if one.up:
        return "reached"
    since = f" since {time_text(one.away_since_ns)}" if one.away_since_ns else ""
    return f"AWAY{since}: {one.why}"


def _certificate_lines(status: GroupStatus, now_s: float) -> list[str]:
    """When they end; those soon to end, with a warning."""
    lines = [f"certificate: {status.certificate_trouble}"] if status.certificate_trouble else []
    for one in status.members:
        ends_s = one.certificate_ends_s
        if ends_s is None:
            continue
        days, when = (ends_s - now_s) / 86400, time_text(ends_s * 10**9)
        if days <= 0:
            lines.append(f"WARNING: the certificate of {one.name} has ended, {when}")
        elif days < WARN_DAYS:
            lines.append(f"WARNING: the certificate of {one.name} ends in {days:.0f} days, {when}")
        else:
            lines.append(f"certificate of {one.name}: good until {when}")
    if status.authority_ends_s is not None and status.authority_ends_s - now_s < YEAR_S:
        when = time_text(status.authority_ends_s * 10**9)
        lines.append(f"WARNING: the group's authority ends {when}: build the group anew before")
    return lines


def _gate_lines(gate: GateFigures) -> list[str]:
    """In words; all counts are in the JSON."""
    total = sum(gate.counts)
    if not total:
        return []
    p50, p99 = (f"{_quantile_us(gate, part) / 1000:g}" for part in (0.5, 0.99))
    return [
        f"gate shut {total} times: half of them for at most {p50} ms, 99 of 100 for at most"
        f" {p99} ms, the longest {gate.max_us / 1000:.2f} ms"
    ]


def _quantile_us(gate: GateFigures, part: float) -> int:
    """So long at most that part of the gates was shut: a bound of the histogram, or the longest."""
    wanted, seen = part * sum(gate.counts), 0
    for bound, count in zip(gate.bounds_us, gate.counts, strict=False):
        seen += count
        if seen >= wanted:
            return min(bound, gate.max_us)
    return gate.max_us


@group_group.command("check")
@click.argument("group", metavar="GROUP")
@json_option
def check_command(group: str, as_json: bool) -> int:
    """Tell whether work is outstanding anywhere in the group, and whether moves block each other.

    The states of all volumes are recorded as for a snapshot, and compared; none is kept. What is
    found to be so will stay so, until somebody asks for more work or makes room.

    \b
    Exit codes:
      0  nothing is outstanding
      1  something is
      3  there is a deadlock

    \b
    Example:
      raidfs-ctl group check shop
    """
    volume, _ = find(group)
    told = ask(volume, GroupCheckRequest(), GroupCondition)
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join([told.termination, told.deadlock, *told.graph]))
    if told.deadlocked:
        return EXIT_DEADLOCK
    return 0 if told.terminated else EXIT_ERROR


@group_group.command("wait")
@click.argument("group", metavar="GROUP")
@click.option(
    "--timeout", metavar="SECONDS", type=float, default=60.0, show_default=True,
    help="How long to wait at most.",
)  # fmt: skip
def wait_command(group: str, timeout: float) -> int:
    """Wait until all members are reached and no snapshot is under way or in doubt.

    \b
    Example:
      raidfs-ctl group wait shop --timeout 10
    """
    volume, _ = find(group)
    ask(volume, GroupWaitRequest(timeout_s=timeout), GroupStatus, timeout + 30)
    return 0


@group_group.command("resolve")
@click.argument("group", metavar="GROUP")
@click.argument("cut", metavar="CUT")
@click.argument("verdict", type=click.Choice(["commit", "abort"]))
@yes_option
def resolve_command(group: str, cut: str, verdict: str, yes: bool) -> int:
    """Decide on what is in doubt since another volume never comes back.

    CUT is the id of a snapshot, a deletion or rollback, or a move, as status tells. Say the same
    word in all volumes that are in doubt.

    \b
    Example:
      raidfs-ctl group resolve /mnt/stock 3f0c... abort
    """
    if "/" in group:  # also one that is in no group any more
        volume = target.must_be_mounted(group, "group resolve")
    else:
        volume, _ = find(group)
    move = find_move(volume, cut)
    question = f"if {cut} was decided otherwise, the volumes will differ."
    confirm(f"{warning(move, verdict) if move else question} {verdict}?", yes)
    ask(volume, GroupResolveRequest(snapshot=cut, commit=verdict == "commit"), GroupStatus)
    return 0
