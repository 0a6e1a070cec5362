"""`raidfs-ctl group snapshot`, `list`, `show`, `delete`, `rollback`: snapshots of a whole group.

1. What is told as taken, deleted or gone back to is so in all volumes, or the text and JSON name
   those that will follow, and the exit code is 1 for what was not done at all.
"""

from __future__ import annotations

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.group_target import ask, find, json_option, volumes, yes_option
from raidfs.cli.output import EXIT_ERROR, confirm, print_json, table
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon.group_requests import (
    GroupListed,
    GroupListRequest,
    GroupSnapshotRequest,
    GroupSnapshotTold,
    GroupStatus,
    GroupTaken,
    GroupWorked,
    GroupWorkRequest,
)
from raidfs.errors import UsageError


@click.command("snapshot")
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


@click.command("list")
@click.argument("group", metavar="GROUP")
@json_option
def list_command(group: str, as_json: bool) -> int:
    """List the snapshots of a group, as all members that can be reached have them.

    INCOMPLETE: a volume that took part has no part of it any more; `group delete` removes the rest.
    unknown: a volume that took part can't be reached now.

    \b
    Example:
      raidfs-ctl group list shop
    """
    volume, _ = find(group)
    listed = ask(volume, GroupListRequest(everywhere=True), GroupListed)
    if as_json:
        print_json(listed)
        return 0
    rows = [["NAME", "CREATION", "CUT", "STATE", "HOLDS"]]
    rows += [
        [one.name, time_text(one.created_ns), one.id, _state_text(one), ",".join(one.holds) or "-"]
        for one in listed.snapshots
    ]
    click.echo("\n".join(table(rows)) if listed.snapshots else "no snapshots")
    return 0


def _state_text(one: GroupSnapshotTold) -> str:
    """With the names of those for whom it isn't complete, and of those that were left out."""
    wanted = {"INCOMPLETE": "LACKING", "unknown": "away"}.get(one.state)
    names = ", ".join(part.name for part in one.parts if part.state == wanted)
    text = f"{one.state}: {names}" if names else one.state
    out = ", ".join(part.name for part in one.parts if part.state == "left out")
    return f"{text}, without {out}" if out else text


@click.command("show")
@click.argument("group", metavar="GROUP")
@click.argument("name", metavar="NAME")
@json_option
def show_command(group: str, name: str, as_json: bool) -> int:
    """Tell all of one snapshot: what each volume has of it, and where it is seen on this host.

    \b
    Example:
      raidfs-ctl group show shop monday
    """
    asked, status = find(group)
    request = GroupListRequest(name=target.check_text(name), everywhere=True)
    listed = ask(asked, request, GroupListed)
    parts: list[GroupListed] = []
    paths: dict[str, str] = {}
    for volume, theirs in volumes():
        if theirs.group_id == status.group_id:
            part = _part(volume, name)
            parts.append(part)
            if part.snapshots:
                paths[theirs.volume_id] = part.snapshots[0].path
    (one, *_) = listed.snapshots
    if as_json:
        document = {"group": status.group, "name": name, "state": one.state, "parts": one.parts}
        print_json({**document, "volumes": parts})
        return 0
    head = f"{status.group}@{name}: cut {one.id}, {time_text(one.created_ns)}"
    rows = [["VOLUME", "EPOCH", "STATE", "PATH"]]
    rows += [
        [part.name, str(part.epoch or "-"), part.state, paths.get(part.volume, "-")]
        for part in one.parts
    ]
    click.echo("\n".join([f"{head}, {one.state}", *table(rows, frozenset({1}))]))
    return 0


def _part(volume: target.Mounted, name: str) -> GroupListed:
    listed = ask(volume, GroupListRequest(), GroupListed)
    here = [one for one in listed.snapshots if one.name == name]
    return msgspec.structs.replace(listed, snapshots=here)


def _who_has(group: str, name: str) -> tuple[target.Mounted, GroupStatus]:
    """A volume of the group on this host that has a part of it; UsageError, RaidfsError."""
    asked, status = find(group)
    for volume, theirs in [(asked, status), *volumes()]:
        if theirs.group_id == status.group_id and _part(volume, name).snapshots:
            return volume, theirs
    ask(asked, GroupListRequest(name=name, everywhere=True), GroupListed)  # is it there at all?
    raise UsageError(f"no volume on this host has a part of {name!r}; do this where one is mounted")


def _work(group: str, request: GroupWorkRequest, question: str, yes: bool, as_json: bool) -> int:
    volume, status = _who_has(group, request.name)
    names = ", ".join(one.name for one in status.members)
    confirm(f"{question} in {names}. Go on?", yes)
    worked = ask(volume, request, GroupWorked)
    if as_json:
        print_json(worked)
    elif worked.pending:
        click.echo(f"will be done in {', '.join(worked.pending)} when they are back")
    return 0


@click.command("delete")
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


@click.command("rollback")
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
