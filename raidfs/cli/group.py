"""`raidfs-ctl group ...`: one snapshot of several volumes, consistent across all of them.

GROUP is the name of a group, as any mounted volume on this host knows it, or the mountpoint of one
of its volumes.

 1. What is told as taken, deleted or gone back to is so in all volumes, or the text and JSON name
    those that will follow, and the exit code is 1 for what was not done at all.
"""

from __future__ import annotations

from typing import TypeVar

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.output import EXIT_ERROR, confirm, print_json, table
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon import registry
from raidfs.daemon.control import ControlError, Request
from raidfs.daemon.group_requests import (
    GroupAdmitRequest,
    GroupAdoptRequest,
    GroupCheckRequest,
    GroupCondition,
    GroupInitRequest,
    GroupInviteRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupListed,
    GroupListRequest,
    GroupResolveRequest,
    GroupSnapshotRequest,
    GroupStatus,
    GroupStatusRequest,
    GroupTaken,
    GroupWaitRequest,
    GroupWorked,
    GroupWorkRequest,
)
from raidfs.errors import RaidfsError, UsageError
from raidfs.group.authority import TOKEN_PREFIX
from raidfs.group.charter import Charter, Member
from raidfs.group.messages import GATE_MS

T = TypeVar("T")
EXIT_DEADLOCK = 3
PATIENCE_S = 300.0  # a daemon answers sooner, whatever happens to its peers
json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON, with a version and plain integers."
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


def ask(volume: target.Mounted, request: Request, kind: type[T], patience_s: float = 0.0) -> T:
    """The answer of one daemon."""
    with volume.client() as client:
        raw = client.ask(request, patience_s or PATIENCE_S)
        return msgspec.json.decode(raw, type=kind)


def status_of(volume: target.Mounted) -> GroupStatus:
    return ask(volume, GroupStatusRequest(), GroupStatus)


def find(group: str) -> tuple[target.Mounted, GroupStatus]:
    """A volume of that group on this host, rather one that takes part; UsageError."""
    if "/" in group:
        volume = target.must_be_mounted(group, "group")
        status = status_of(volume)
        if not status.group:
            raise UsageError(f"volume {status.volume} is in no group; see raidfs-ctl group init")
        return volume, status
    found = [pair for pair in volumes() if pair[1].group == group]
    if not found:
        raise UsageError(f"no mounted volume on this host is in a group {group!r}")
    if len({status.group_id for _, status in found}) > 1:
        raise UsageError(f"there are several groups {group!r}: name a mountpoint instead")
    return min(found, key=lambda pair: bool(pair[1].obstacle or pair[1].trouble))


def volumes() -> list[tuple[target.Mounted, GroupStatus]]:
    """All that are mounted here."""
    found = []
    for entry, socket in registry.entries():
        volume = target.Mounted(entry, socket)
        try:
            found.append((volume, status_of(volume)))
        except ControlError:
            continue  # it is ending, or somebody else's
    return found


def keeper_of(status: GroupStatus) -> target.Mounted:
    """Who changes the membership, if it is here."""
    found = registry.find_volume(status.keeper)
    if found is None:
        called = next((one.name for one in status.members if one.volume == status.keeper), "")
        raise UsageError(
            f"that is done where volume {called} is mounted, which is not on this host"
        )
    return target.Mounted(*found)


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


@group_group.command("init")
@click.argument("name", metavar="GROUP")
@click.argument("mountpoints", metavar="MOUNTPOINT...", nargs=-1, required=True)
@click.option("--listen", metavar="tcp:HOST:PORT", default="", help="Where other hosts reach it.")
@click.option(
    "--gate-timeout", metavar="MS", type=int, default=GATE_MS, show_default=True,
    help="Longest time for which replies are held back; then the snapshot is given up.",
)  # fmt: skip
@json_option
def init_command(
    name: str, mountpoints: tuple[str, ...], listen: str, gate_timeout: int, as_json: bool
) -> int:
    """Make a group of mounted volumes.

    Of volumes on one host name all. Between hosts begin with one and --listen, then invite and
    join the others; they talk over TLS with the group's own certificates.

    \b
    Examples:
      raidfs-ctl group init shop /mnt/orders /mnt/stock
      raidfs-ctl group init shop /mnt/orders --listen tcp:10.0.0.1:7400
    """
    found = [target.must_be_mounted(where, "group init") for where in mountpoints]
    statuses = [status_of(volume) for volume in found]
    if len({status.volume_id for status in statuses}) < len(found):
        raise UsageError("a volume is named twice")
    for status in statuses:
        _check_free(status)
    others = tuple(Member(status.volume_id, status.volume) for status in statuses[1:])
    request = GroupInitRequest(
        name=target.check_text(name), listen=listen, gate_ms=gate_timeout, others=others
    )
    charter = ask(found[0], request, Charter)
    done = [found[0]]
    try:
        for volume in found[1:]:
            ask(volume, GroupAdoptRequest(charter=charter), Charter)
            done.append(volume)
    except (RaidfsError, OSError):
        for volume in done:
            ask(volume, GroupLeaveRequest(force=True), type(None))
        raise
    if not listen:
        ask(found[0], GroupWaitRequest(), GroupStatus)
    return _tell_charter(charter, as_json)


def _check_free(status: GroupStatus) -> None:
    if status.group:
        raise UsageError(f"volume {status.volume} is in group {status.group!r} already")
    if status.obstacle:
        raise UsageError(f"{status.volume}: {status.obstacle}")


def _tell_charter(charter: Charter, as_json: bool) -> int:
    if as_json:
        print_json({"group": charter})
    else:
        names = ", ".join(each.name for each in charter.members)
        click.echo(f"group {charter.name}: {names}")
    return 0


@group_group.command("join")
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.argument("where", metavar="TOKEN-OR-MEMBER")
@click.option("--listen", metavar="tcp:HOST:PORT", default="", help="Where other hosts reach it.")
@json_option
def join_command(mountpoint: str, where: str, listen: str, as_json: bool) -> int:
    """Bring a volume into a group.

    On one host name the group, or the mountpoint of a member; from another host give the token
    that `raidfs-ctl group invite` has made there.

    \b
    Examples:
      raidfs-ctl group join /mnt/bills shop
      raidfs-ctl group join /mnt/bills raidfs-join:... --listen tcp:10.0.0.2:7400
    """
    volume = target.must_be_mounted(mountpoint, "group join")
    status = status_of(volume)
    _check_free(status)
    if where.startswith(TOKEN_PREFIX):
        charter = ask(volume, GroupJoinRequest(token=where, listen=listen), Charter)
        return _tell_charter(charter, as_json)
    _, theirs = find(where)
    keeper = keeper_of(theirs)
    member = Member(status.volume_id, status.volume)
    charter = ask(keeper, GroupAdmitRequest(member=member), Charter)
    ask(volume, GroupAdoptRequest(charter=charter), Charter)
    return _tell_charter(charter, as_json)


@group_group.command("invite")
@click.argument("group", metavar="GROUP")
@click.option("--hours", type=float, default=1.0, show_default=True, help="How long it is good.")
@json_option
def invite_command(group: str, hours: float, as_json: bool) -> int:
    """Make a token by which one volume of another host can join. Hand it on like a password.

    It is good once, for that time, and until the volume that made it is unmounted.

    \b
    Example:
      raidfs-ctl group invite shop
    """
    _, status = find(group)
    token = ask(keeper_of(status), GroupInviteRequest(lifetime_s=hours * 3600), str)
    if as_json:
        print_json({"token": token})
    else:
        click.echo(token)
    return 0


@group_group.command("leave")
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.option("--force", is_flag=True, help="Without telling anybody; the others then count on it.")
def leave_command(mountpoint: str, force: bool) -> int:
    """Take a volume out of its group. Snapshots taken before stay in all volumes.

    \b
    Example:
      raidfs-ctl group leave /mnt/bills
    """
    volume = target.must_be_mounted(mountpoint, "group leave")
    ask(volume, GroupLeaveRequest(force=force), type(None))
    return 0


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
        statuses = [status for _, status in volumes() if status.group]
        statuses = list({status.group_id: status for status in statuses}.values())
    if as_json:
        print_json(statuses[0] if group is not None else {"groups": statuses})
    else:
        for status in statuses:
            click.echo("\n".join(_status_lines(status)))
        if not statuses:
            click.echo("no groups")
    whole = all(one.up for status in statuses for one in status.members)
    return 0 if whole and not any(one.obstacle or one.trouble for one in statuses) else EXIT_ERROR


def _status_lines(status: GroupStatus) -> list[str]:
    lines = [f"group {status.group} as {status.volume} sees it:"]
    rows = [["VOLUME", "STATE", "WHERE"]]
    for one in status.members:
        state = "this one" if one.me else "reached" if one.up else f"AWAY: {one.why}"
        rows.append([one.name, state, ", ".join(one.addresses)])
    lines += table(rows)
    lines += [text for text in (status.obstacle, status.trouble) if text]
    lines += [
        f"snapshot {one.name} ({one.id}) is {one.phase} since {time_text(one.created_ns)}"
        for one in status.running
    ]
    lines += [f"under way: {work}" for work in status.works]
    results = ", ".join(f"{count} {state}" for state, count in sorted(status.results.items()))
    lines.append(f"snapshots: {status.snapshots}; asked for here since the mount: {results or 0}")
    if sum(status.gate.counts):
        bounds = [*(f"<={bound}" for bound in status.gate.bounds_us), "more"]
        shut = ", ".join(
            f"{bound} us: {count}"
            for bound, count in zip(bounds, status.gate.counts, strict=True)
            if count
        )
        lines.append(f"gate shut for {shut}; at most {status.gate.max_us} us")
    return lines


@group_group.command("snapshot")
@click.argument("group", metavar="GROUP")
@click.argument("name", metavar="NAME")
@click.option("--allow-missing", is_flag=True, help="Without volumes that can't be reached.")
@json_option
def snapshot_command(group: str, name: str, allow_missing: bool, as_json: bool) -> int:
    """Take one snapshot of all volumes of a group. Returns when it is durable and visible in all.

    Whatever a program was told by one volume before it asked another is in the snapshots of both,
    or the later of the two is in neither. Programs go on; their replies wait for milliseconds.
    If volumes don't answer within the group's gate timeout, the snapshot is taken nowhere.

    \b
    Exit codes:
      0  taken, in all volumes (or: will appear in those named, when they are back)
      1  taken nowhere

    \b
    Example:
      raidfs-ctl group snapshot shop monday
    """
    volume, _ = find(group)
    request = GroupSnapshotRequest(name=target.check_text(name), allow_missing=allow_missing)
    taken = ask(volume, request, GroupTaken)
    if as_json:
        print_json(taken)
    else:
        click.echo("\n".join(_taken_lines(taken)), err=taken.state != "committed")
    return 0 if taken.state == "committed" else EXIT_ERROR


def _taken_lines(taken: GroupTaken) -> list[str]:
    if taken.state == "aborted":
        return [f"group snapshot {taken.name} was taken nowhere: {taken.reason}"]
    rows = [["VOLUME", "STATE", "EPOCH", "GATE"]]
    rows += [
        [one.name, one.state, str(one.epoch or "-"), f"{one.gate_us / 1000:.2f} ms"]
        for one in taken.volumes
    ]
    head = (
        f"group snapshot {taken.group}@{taken.name}: cut {taken.id}, {time_text(taken.created_ns)}"
    )
    if taken.state == "in doubt":
        head += f"; IN DOUBT until this volume is mounted anew: {taken.reason}"
    elif taken.reason:
        head += f"; {taken.reason}"
    return [head, *table(rows, frozenset({2, 3}))]


@group_group.command("list")
@click.argument("group", metavar="GROUP")
@json_option
def list_command(group: str, as_json: bool) -> int:
    """List the snapshots of a group.

    \b
    Example:
      raidfs-ctl group list shop
    """
    volume, _ = find(group)
    listed = ask(volume, GroupListRequest(), GroupListed)
    if as_json:
        print_json(listed)
        return 0
    rows = [["NAME", "CREATION", "CUT", "HOLDS"]]
    rows += [
        [one.name, time_text(one.created_ns), one.id, ",".join(one.holds) or "-"]
        for one in listed.snapshots
    ]
    click.echo("\n".join(table(rows)) if listed.snapshots else "no snapshots")
    return 0


@group_group.command("show")
@click.argument("group", metavar="GROUP")
@click.argument("name", metavar="NAME")
@json_option
def show_command(group: str, name: str, as_json: bool) -> int:
    """Tell all of one snapshot, in each volume of this host.

    \b
    Example:
      raidfs-ctl group show shop monday
    """
    _, status = find(group)
    parts = []
    for volume, theirs in volumes():
        if theirs.group_id == status.group_id:
            parts.append(_part(volume, name))
    found = [part for part in parts if part.snapshots]
    if not found:
        raise UsageError(f"there is no group snapshot {name!r}; see raidfs-ctl group list")
    if as_json:
        print_json({"group": status.group, "name": name, "volumes": parts})
        return 0
    one = found[0].snapshots[0]
    click.echo(f"{status.group}@{name}: cut {one.id}, {time_text(one.created_ns)}")
    rows = [["VOLUME", "EPOCH", "PATH"]]
    rows += [[p.volume, str(p.snapshots[0].epoch), p.snapshots[0].path] for p in found]
    rows += [[part.volume, "-", "no part of it"] for part in parts if not part.snapshots]
    click.echo("\n".join(table(rows, frozenset({1}))))
    return 0


def _part(volume: target.Mounted, name: str) -> GroupListed:
    listed = ask(volume, GroupListRequest(), GroupListed)
    here = [one for one in listed.snapshots if one.name == name]
    return msgspec.structs.replace(listed, snapshots=here)


def _work(group: str, request: GroupWorkRequest, question: str, yes: bool, as_json: bool) -> int:
    volume, status = find(group)
    names = ", ".join(one.name for one in status.members)
    ask(volume, GroupListRequest(name=request.name), GroupListed)  # is it there?
    confirm(f"{question} in {names}. Go on?", yes)
    worked = ask(volume, request, GroupWorked)
    if as_json:
        print_json(worked)
    elif worked.pending:
        click.echo(f"will be done in {', '.join(worked.pending)} when they are back")
    return 0


@group_group.command("delete")
@click.argument("group", metavar="GROUP")
@click.argument("name", metavar="NAME")
@yes_option
@json_option
def delete_command(group: str, name: str, yes: bool, as_json: bool) -> int:
    """Delete a snapshot in all volumes, or in none.

    \b
    Example:
      raidfs-ctl group delete shop monday
    """
    request = GroupWorkRequest(kind="delete", name=target.check_text(name))
    return _work(group, request, f"snapshot {name} will be deleted", yes, as_json)


@group_group.command("rollback")
@click.argument("group", metavar="GROUP")
@click.argument("name", metavar="NAME")
@click.option("-r", "--delete-newer", is_flag=True, help="Delete the snapshots taken after it.")
@click.option("--keep", metavar="NAME", default="", help="Keep the state before as a snapshot.")
@yes_option
@json_option
def rollback_command(
    group: str, name: str, delete_newer: bool, keep: str, yes: bool, as_json: bool
) -> int:
    """Make all volumes what they were when a snapshot was taken, or none of them.

    Programs wait until it is done everywhere, so none sees one volume as it was beside another as
    it had become.

    \b
    Example:
      raidfs-ctl group rollback shop monday
    """
    request = GroupWorkRequest(
        kind="rollback", name=target.check_text(name), keep=target.check_text(keep),
        delete_newer=delete_newer,
    )  # fmt: skip
    since = f"kept as {keep}" if keep else "LOST (--keep NAME keeps it)"
    question = f"back to {name}: what was done since is {since},"
    return _work(group, request, question, yes, as_json)


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
@click.option("--timeout", metavar="SECONDS", type=float, default=60.0, show_default=True)
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
    """Decide on a snapshot in doubt whose initiator never comes back.

    CUT is its id, as status tells. Say the same word in all volumes that are in doubt.

    \b
    Example:
      raidfs-ctl group resolve /mnt/stock 3f0c... abort
    """
    volume, _ = find(group)
    confirm(f"if {cut} was decided otherwise, the volumes will differ. {verdict}?", yes)
    ask(volume, GroupResolveRequest(snapshot=cut, commit=verdict == "commit"), GroupStatus)
    return 0
