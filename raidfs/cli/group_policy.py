"""`raidfs-ctl group policy ...`: how many snapshots a group keeps, in the words of `policy`.

1. The policy is the group's own: it goes on when its keeper leaves. It is carried out where the
   keeper is mounted, and there only.
2. `run` takes and deletes without asking; it says what it did. Of several groups, the failure of
   one doesn't keep it from the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.group_target import ask, find, json_option, keeper_of, volumes
from raidfs.cli.output import EXIT_ERROR, print_json, sentence, table
from raidfs.cli.snapshot import count_text
from raidfs.daemon.group_policies import (
    PREFIX,
    GroupPolicyGetRequest,
    GroupPolicyRan,
    GroupPolicyRunRequest,
    GroupPolicySetRequest,
    GroupPolicyTold,
)
from raidfs.errors import RaidfsError, UsageError
from raidfs.fs.policy import KINDS


@click.group("policy")
def policy_group() -> None:
    """Say how many snapshots a group keeps, of the last hours, days, weeks, months and years.

    `group policy run` then takes those that are due and deletes, in all volumes, those that are too
    many; the timer that runs the policies of volumes does that, too (raidfs-policy.timer).
    Snapshots that you take yourself are never touched, nor are those with a hold in any volume.

    \b
    Example:
      raidfs-ctl group policy set shop --hourly 24 --daily 30
      raidfs-ctl group policy run --all
    """


def _lines(told: GroupPolicyTold) -> list[str]:
    if told.policy is None:
        return [f"{told.group} has no policy"]
    rows = []
    for kind in KINDS:
        if told.policy.count(kind):
            often = f"every {told.policy.minutes} minutes" if kind == "frequently" else ""
            rows.append((f"  {kind}", told.policy.count(kind), often))
    lines = [f"{told.group} keeps", *table(rows, frozenset({1}))]
    also = ", also of those volumes alone that can be reached" if told.allow_missing else ""
    lines.append(f"named {told.prefix}_*, taken where {told.keeper} is mounted{also}")
    if told.surplus:
        lines.append(f"{count_text(told.surplus)} more than that: see `group policy run -n`")
    return lines


def _show(told: GroupPolicyTold, as_json: bool) -> int:
    if not as_json:
        click.echo("\n".join(_lines(told)))
        return 0
    policy = told.policy
    print_json(
        {
            "group": told.group,
            "keeper": told.keeper,
            "keep": None if policy is None else {kind: policy.count(kind) for kind in KINDS},
            "minutes": None if policy is None else policy.minutes,
            "prefix": told.prefix,
            "allow_missing": told.allow_missing,
            "surplus": told.surplus,
        }
    )
    return 0


@policy_group.command("set")
@click.argument("group", metavar="GROUP")
@click.option("--frequently", type=int, metavar="N", help="Of every quarter of an hour.")
@click.option("--hourly", type=int, metavar="N", help="How many hourly ones to keep.")
@click.option("--daily", type=int, metavar="N", help="Taken after midnight.")
@click.option("--weekly", type=int, metavar="N", help="Taken after midnight before Monday.")
@click.option("--monthly", type=int, metavar="N", help="Taken on the first.")
@click.option("--yearly", type=int, metavar="N", help="Taken on the first of January.")
@click.option("--minutes", type=int, metavar="N", help="How often is frequently. At first: 15.")
@click.option("--prefix", metavar="TEXT", help=f"How their names begin. At first: {PREFIX}.")
@click.option(
    "--allow-missing/--all-volumes",
    "allow_missing",
    default=None,
    help="Whether they are taken while volumes can't be reached, without these. At first: not.",
)
@json_option
def set_command(
    group: str,
    prefix: str | None,
    allow_missing: bool | None,
    as_json: bool,
    **fields: int | None,
) -> int:
    """Set how many snapshots are kept; what is not given stays as it is, 0 means none.

    \b
    Example:
      raidfs-ctl group policy set shop --hourly 24 --daily 30 --weekly 8 --monthly 12
    """
    _, status = find(group)
    request = GroupPolicySetRequest(
        fields={name: value for name, value in fields.items() if value is not None},
        prefix=None if prefix is None else target.check_text(prefix),
        allow_missing=allow_missing,
    )
    return _show(ask(keeper_of(status), request, GroupPolicyTold), as_json)


@policy_group.command("show")
@click.argument("group", metavar="GROUP")
@json_option
def show_command(group: str, as_json: bool) -> int:
    """Tell the policy of a group.

    \b
    Example:
      raidfs-ctl group policy show shop
    """
    volume, _ = find(group)
    return _show(ask(volume, GroupPolicyGetRequest(), GroupPolicyTold), as_json)


@policy_group.command("clear")
@click.argument("group", metavar="GROUP")
@json_option
def clear_command(group: str, as_json: bool) -> int:
    """Take the policy away. Snapshots that it has made stay until you delete them.

    \b
    Example:
      raidfs-ctl group policy clear shop
    """
    _, status = find(group)
    request = GroupPolicySetRequest(clear=True)
    return _show(ask(keeper_of(status), request, GroupPolicyTold), as_json)


def kept_here() -> list[tuple[str, target.Mounted | None]]:
    """The groups that have a policy and whose keeper is mounted here."""
    found: list[tuple[str, target.Mounted | None]] = []
    for volume, status in volumes():
        if status.group and status.keeper == status.volume_id and not volume.entry.closing:
            told = ask(volume, GroupPolicyGetRequest(), GroupPolicyTold)
            if told.policy is not None:
                found.append((status.group, volume))
    return found


def _run_one(volume: target.Mounted, dry_run: bool) -> GroupPolicyRan:
    """Its verdicts in one."""
    parts = []
    with volume.client() as client:
        for raw in client.answers(GroupPolicyRunRequest(dry_run=dry_run)):
            parts.append(msgspec.json.decode(raw, type=GroupPolicyRan))
    verdicts = [verdict for part in parts for verdict in part.verdicts]
    return msgspec.structs.replace(parts[0], verdicts=verdicts)


@policy_group.command("run")
@click.argument("groups", metavar="GROUP...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All whose keeper is mounted here.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be taken and deleted.")
@click.option("-q", "--quiet", is_flag=True, help="Tell only what goes wrong.")
@json_option
def run_command(
    groups: tuple[str, ...], everything: bool, dry_run: bool, quiet: bool, as_json: bool
) -> int:
    """Take the snapshots that are due, and delete those that are too many, in all volumes.

    What could not be taken, or deleted, is tried again by the next run.

    Exit code: 0 done; 1 something failed, in one group at least (each is named).

    \b
    Examples:
      raidfs-ctl group policy run --all
      raidfs-ctl group policy run --dry-run shop
    """
    if everything == bool(groups):
        raise UsageError("name the groups whose policy is to be run, or say --all")
    chosen = kept_here() if everything else [(name, None) for name in groups]
    failed, documents = run_groups(chosen, dry_run, quiet or as_json)
    if as_json:
        print_json({"groups": documents})
    return EXIT_ERROR if failed else 0


def run_groups(
    chosen: Iterable[tuple[str, target.Mounted | None]], dry_run: bool, quiet: bool
) -> tuple[bool, list[dict[str, object]]]:
    """Each by its name and, if that is known, its keeper. Whether anything failed (it is told), and
    what was done, for scripts."""
    failed = False
    documents: list[dict[str, object]] = []
    for name, volume in chosen:
        try:
            ran = _run_one(volume or keeper_of(find(name)[1]), dry_run)
        except (RaidfsError, OSError) as error:
            click.echo(f"raidfs-ctl: {name}: {sentence(error)}", err=True)
            documents.append({"group": name, "error": sentence(error)})
            failed = True
            continue
        documents.append(_document(ran, dry_run))
        for failure in ran.failed:
            click.echo(f"raidfs-ctl: {ran.group}: {failure}", err=True)
            failed = True
        if not quiet:
            click.echo("".join(f"{line}\n" for line in _ran_lines(ran, dry_run)), nl=False)
    return failed, documents


def _document(ran: GroupPolicyRan, dry_run: bool) -> dict[str, object]:
    """A run for scripts."""
    return {
        "group": ran.group,
        "dry_run": dry_run,
        "taken": ran.taken,
        "deleted": ran.deleted,
        "failed": ran.failed,
        "verdicts": ran.verdicts,
    }


def _ran_lines(ran: GroupPolicyRan, dry_run: bool) -> list[str]:
    reasons = {verdict.name: verdict.reason for verdict in ran.verdicts}
    done = [f"take {name}" for name in ran.taken]
    done += [f"delete {name}: {reasons[name]}" for name in ran.deleted]
    would = "would " if dry_run and done else ""
    if not done and not ran.failed:
        done = ["nothing to do"]
    return [f"{ran.group}: {would}{line}" for line in done]
