"""`raidfs-ctl snapshot ...`: making, naming, keeping and deleting snapshots.

SNAPSHOT is written as MOUNTPOINT NAME, MOUNTPOINT@NAME, VOLUME@NAME or MOUNTPOINT/.snapshots/NAME;
any member of an unmounted volume may stand for its mountpoint (cli/target.py).

 1. What destroys shows what it would do with --dry-run, and asks unless told --yes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.output import confirm, print_json, size_text
from raidfs.cli.service import ask, each
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon.policies import PolicyRan, PolicyRunRequest
from raidfs.daemon.snapshots import (
    RolledBack,
    SnapshotCreated,
    SnapshotCreateRequest,
    SnapshotDeleted,
    SnapshotDeleteRequest,
    SnapshotHoldRequest,
    SnapshotNoteRequest,
    SnapshotRenameRequest,
    SnapshotRollbackRequest,
    SnapshotTold,
)

NAMES_SHOWN = 20
TAG = "keep"
# Verbs that live elsewhere: module, command. Imported when called.
VERBS = {
    "list": ("raidfs.cli.snapshot_list", "list_command"),
    "show": ("raidfs.cli.snapshot_list", "show_command"),
    "diff": ("raidfs.cli.snapshot_diff", "diff_command"),
    "clone": ("raidfs.cli.clone", "snapshot_clone_command"),
    "send": ("raidfs.cli.stream", "send_command"),
    "receive": ("raidfs.cli.stream", "receive_command"),
}
ORDER = [
    "create", "list", "show", "delete", "rename", "note", "hold", "release", "rollback", "diff",
    "clone", "send", "receive", "prune",
]  # fmt: skip


class Verbs(click.Group):
    """Finds commands here and by the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one needs them."""
        return ORDER

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None for an unknown verb; click then says so."""
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        module, name = VERBS[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group("snapshot", cls=Verbs)
def snapshot_group() -> None:
    """Take, look at, compare, return to and delete snapshots of a volume.

    A snapshot is the whole volume as it was at one moment. It costs nothing to take, and then only
    what has been changed or deleted since. It is seen, read-only, in MOUNTPOINT/.snapshots/NAME.

    \b
    A snapshot is named in one of these ways:
      /mnt/tank monday      mountpoint and name
      /mnt/tank@monday      the same in one word
      tank@monday           by the volume's name, while it is mounted
      /mnt/tank/.snapshots/monday
    Of a volume that is not mounted, any member stands for the mountpoint.

    \b
    Examples:
      raidfs-ctl snapshot create /mnt/tank monday
      raidfs-ctl snapshot list /mnt/tank
    """


def shown(names: Sequence[str]) -> str:
    """A list for one line, cut short where it is long."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def count_text(count: int) -> str:
    """ "1 snapshot", "2 snapshots"."""
    return f"{count} snapshot{'' if count == 1 else 's'}"


json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON, with a version and plain integers."
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


@snapshot_group.command("create")
@click.argument("words", metavar="MOUNTPOINT NAME", nargs=-1, required=True)
@click.option("--note", default="", help="What it is for; shown by list and show.")
@json_option
def create_command(words: tuple[str, ...], note: str, as_json: bool) -> int:
    """Take a snapshot. Returns when it is durable.

    Everything that programs were told before this command is in it, and nothing that they are told
    after it has returned. They go on meanwhile. On a mount with -o writeback, what the kernel has
    not yet passed on is fetched first.

    \b
    Examples:
      raidfs-ctl snapshot create /mnt/tank monday
      raidfs-ctl snapshot create tank@before-upgrade --note "kernel 6.12 to 6.19"
    """
    named = target.snapshots(words)
    request = SnapshotCreateRequest(name=named.names[0], note=target.check_text(note))
    made = ask(named.volume, request, SnapshotCreated)
    if as_json:
        print_json(made)
        return 0
    told, durable_ms, still_ms = made.snapshot, made.seconds * 1000, made.gate_us / 1000
    click.echo(
        f"{told.volume}@{told.name}: epoch {told.epoch}, {time_text(told.created_ns)},"
        f" durable after {durable_ms:.0f} ms; replies stood still for {still_ms:.2f} ms"
    )
    return 0


@snapshot_group.command("delete")
@click.argument("words", metavar="MOUNTPOINT NAME...", nargs=-1, required=True)
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be freed.")
@yes_option
@click.option("--wait", is_flag=True, help="Return when the room is free (unmounted: always).")
@click.option("--force", is_flag=True, help="Also parts of group snapshots, in this volume alone.")
@json_option
def delete_command(
    words: tuple[str, ...], dry_run: bool, yes: bool, wait: bool, force: bool, as_json: bool
) -> int:
    """Delete snapshots: all that are named, or none.

    FIRST%LAST names all from one to another, %LAST those up to one, FIRST% those from one on, and %
    all. They are gone at once; the room that only they took is freed in the background.

    \b
    Examples:
      raidfs-ctl snapshot delete -n /mnt/tank monday tuesday
      raidfs-ctl snapshot delete /mnt/tank@monday%friday
    """
    named = target.snapshots(words, most=None)
    if yes and not dry_run:
        request = SnapshotDeleteRequest(names=named.names, wait=wait, measure=as_json, force=force)
        told = ask(named.volume, request, SnapshotDeleted)
    else:
        told = _planned_deletion(named, dry_run, wait, force, as_json)
    if as_json:
        print_json(
            {
                "volume": told.volume,
                "deleted": not dry_run,
                "names": told.names,
                "freed_bytes": told.freed_bytes,
            }
        )
    return 0


def _planned_deletion(
    named: target.Named, dry_run: bool, wait: bool, force: bool, as_json: bool
) -> SnapshotDeleted:
    """Tells what would be done and, unless that is all, asks and does it."""
    request = SnapshotDeleteRequest(names=named.names, dry_run=True, force=force)
    plan = ask(named.volume, request, SnapshotDeleted)
    what = f"{count_text(len(plan.names))} of {plan.volume} ({shown(plan.names)})"
    frees = f"{plan.freed_bytes} bytes ({size_text(plan.freed_bytes)})"
    if not dry_run:
        confirm(f"{what} will be deleted, which frees {frees}. Go on?", yes=False)
        request = SnapshotDeleteRequest(
            names=tuple(plan.names), wait=wait, measure=False, force=force
        )
        ask(named.volume, request, SnapshotDeleted)
    elif not as_json:
        click.echo(f"would delete {what}\nwould free {frees}")
    return plan


def _report(told: SnapshotTold, as_json: bool) -> int:
    if as_json:
        print_json(told)
    return 0


@snapshot_group.command("rename")
@click.argument("words", metavar="MOUNTPOINT NAME NEW-NAME", nargs=-1, required=True)
@json_option
def rename_command(words: tuple[str, ...], as_json: bool) -> int:
    """Give a snapshot another name.

    \b
    Example:
      raidfs-ctl snapshot rename /mnt/tank monday before-the-fire
    """
    named = target.snapshots(words, least=2, most=2)
    request = SnapshotRenameRequest(name=named.names[0], new_name=named.names[1])
    return _report(ask(named.volume, request, SnapshotTold), as_json)


@snapshot_group.command("note")
@click.argument("words", metavar="MOUNTPOINT NAME", nargs=-1, required=True)
@click.argument("text", metavar="TEXT")
@json_option
def note_command(words: tuple[str, ...], text: str, as_json: bool) -> int:
    """Write down what a snapshot is for; an empty TEXT takes the note away.

    \b
    Example:
      raidfs-ctl snapshot note /mnt/tank@monday "the last one before the move"
    """
    named = target.snapshots(words)
    request = SnapshotNoteRequest(name=named.names[0], note=target.check_text(text))
    return _report(ask(named.volume, request, SnapshotTold), as_json)


def _hold(words: tuple[str, ...], tag: str, release: bool, as_json: bool) -> int:
    named = target.snapshots(words, most=None)
    request = SnapshotHoldRequest(names=named.names, tag=target.check_text(tag), release=release)
    names = ask(named.volume, request, list[str])
    if as_json:
        print_json({"tag": tag, "released" if release else "held": names})
    return 0


tag_option = click.option("-t", "--tag", default=TAG, show_default=True, help="Why, in one word.")


@snapshot_group.command("hold")
@click.argument("words", metavar="MOUNTPOINT NAME...", nargs=-1, required=True)
@tag_option
@json_option
def hold_command(words: tuple[str, ...], tag: str, as_json: bool) -> int:
    """Protect snapshots from being deleted, by command or by policy, until they are released.

    Several holds with different tags are independent of each other.

    \b
    Example:
      raidfs-ctl snapshot hold --tag lawsuit /mnt/tank@monday
    """
    return _hold(words, tag, False, as_json)


@snapshot_group.command("release")
@click.argument("words", metavar="MOUNTPOINT NAME...", nargs=-1, required=True)
@tag_option
@json_option
def release_command(words: tuple[str, ...], tag: str, as_json: bool) -> int:
    """Take a hold away from snapshots.

    \b
    Example:
      raidfs-ctl snapshot release --tag lawsuit /mnt/tank@monday
    """
    return _hold(words, tag, True, as_json)


def _effects(told: RolledBack) -> str:
    done = told.rollback
    counts = ((done.changed, "changed"), (done.removed, "removed"), (done.returned, "brought back"))
    files = ", ".join(f"{count} {what}" for count, what in counts)
    deleted = f"; deleted with it: {shown(done.deleted)}" if done.deleted else ""
    return f"files and directories: {files}{deleted}"


@snapshot_group.command("rollback")
@click.argument("words", metavar="MOUNTPOINT NAME", nargs=-1, required=True)
@click.option("-r", "--delete-newer", is_flag=True, help="Delete the snapshots taken after it.")
@click.option("--keep", metavar="NAME", default="", help="Keep the state before as a snapshot.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would change.")
@yes_option
@json_option
def rollback_command(
    words: tuple[str, ...], delete_newer: bool, keep: str, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Make the volume what it was when a snapshot was taken.

    All that was done since is gone, unless --keep gives it a name; newer snapshots stay unless told
    otherwise, so one can go forward to them again. The time depends on what differs. Programs wait
    meanwhile; files that they have open go on with what the snapshot has of them, or answer ESTALE
    if it hasn't. After a crash the volume is as before, or as in the snapshot.

    \b
    Examples:
      raidfs-ctl snapshot rollback -n /mnt/tank@monday
      raidfs-ctl snapshot rollback --keep before-rollback /mnt/tank@monday
    """
    named = target.snapshots(words)
    request = SnapshotRollbackRequest(
        name=named.names[0], delete_newer=delete_newer, keep=target.check_text(keep), dry_run=True
    )
    told = ask(named.volume, request, RolledBack)
    snapshot = f"{told.volume}@{told.snapshot.name} of {time_text(told.snapshot.created_ns)}"
    if not dry_run:
        since = f"is kept as {keep}" if keep else "is LOST (--keep NAME keeps it)"
        confirm(f"back to {snapshot}: {_effects(told)}; the state now {since}. Go on?", yes)
        request = msgspec.structs.replace(request, dry_run=False)
        told = ask(named.volume, request, RolledBack)
    if as_json:
        print_json(told)
    else:
        click.echo(f"{'would go' if dry_run else 'went'} back to {snapshot}\n{_effects(told)}")
    return 0


def run_policy(volume: target.Mounted | target.Unmounted, request: PolicyRunRequest) -> PolicyRan:
    """One run, its verdicts in one."""
    parts: list[PolicyRan] = []
    each(volume, request, PolicyRan, parts.append)
    verdicts = [verdict for part in parts for verdict in part.verdicts]
    first = parts[0]
    return PolicyRan(first.volume, first.taken, verdicts, first.freed_bytes)


def verdict_lines(ran: PolicyRan, kept: bool) -> list[str]:
    """What goes and why; `kept`: also what stays and why."""
    return [
        f"{'keep' if verdict.keep else 'delete'} {verdict.name}: {verdict.reason}"
        for verdict in ran.verdicts
        if kept or not verdict.keep
    ]


@snapshot_group.command("prune")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would go, and why.")
@click.option("-v", "--verbose", is_flag=True, help="Tell also what stays, and why.")
@yes_option
@json_option
def prune_command(where: str, dry_run: bool, verbose: bool, yes: bool, as_json: bool) -> int:
    """Delete the snapshots that the volume's policy doesn't keep (see raidfs-ctl policy).

    Only those go that the policy has named; held ones never.

    \b
    Example:
      raidfs-ctl snapshot prune -n -v /mnt/tank
    """
    volume = target.find(where)
    plan = run_policy(volume, PolicyRunRequest(take=False, dry_run=True))
    going = [verdict.name for verdict in plan.verdicts if not verdict.keep]
    if not as_json:
        click.echo("".join(f"{line}\n" for line in verdict_lines(plan, verbose)), nl=False)
        if dry_run or not going:
            click.echo(f"would free {plan.freed_bytes} bytes" if going else "nothing to prune")
    if going and not dry_run:
        what = f"{count_text(len(going))} of {plan.volume} will be deleted"
        confirm(f"{what}, which frees {size_text(plan.freed_bytes)}. Go on?", yes)
        plan = run_policy(volume, PolicyRunRequest(take=False))
    if as_json:
        print_json(ran_document(plan, dry_run))
    return 0


def ran_document(ran: PolicyRan, dry_run: bool) -> dict[str, object]:
    """A run for scripts."""
    return {
        "volume": ran.volume,
        "dry_run": dry_run,
        "taken": ran.taken,
        "deleted": [verdict.name for verdict in ran.verdicts if not verdict.keep],
        "freed_bytes": ran.freed_bytes,
        "verdicts": ran.verdicts,
    }
