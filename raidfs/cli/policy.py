"""`raidfs-ctl policy ...`: how many snapshots a volume keeps, and the command that a timer runs.

1. The policy is the volume's own: it goes wherever its members go.
2. `run` takes and deletes without asking; it says what it did. Of several volumes, the failure of
   one doesn't keep it from the others.
"""

from __future__ import annotations

import errno

import click

from raidfs.cli import target
from raidfs.cli.group_policy import kept_here, run_groups
from raidfs.cli.output import EXIT_ERROR, print_json, sentence, table
from raidfs.cli.service import ask
from raidfs.cli.snapshot import count_text, ran_document, run_policy, verdict_lines
from raidfs.daemon import registry
from raidfs.daemon.control import ControlError
from raidfs.daemon.policies import (
    PolicyGetRequest,
    PolicyRan,
    PolicyRunRequest,
    PolicySetRequest,
    PolicyTold,
)
from raidfs.errors import RaidfsError, UsageError
from raidfs.fs.policy import KINDS


@click.group("policy")
def policy_group() -> None:
    """Say how many snapshots a volume keeps, of the last hours, days, weeks, months and years.

    `policy run` then takes those that are due and deletes those that are too many; let a timer do
    that (systemd: raidfs-policy.timer, in `make install`; else cron, every 5 minutes). Snapshots
    that you take yourself are never touched, nor are those with a hold.

    \b
    Example:
      raidfs-ctl policy set /mnt/tank --hourly 24 --daily 30 --monthly 12
      raidfs-ctl policy run --all
    """


def _lines(told: PolicyTold) -> list[str]:
    if told.policy is None:
        return [f"{told.volume} has no policy"]
    rows = []
    for kind in KINDS:
        if told.policy.count(kind):
            often = f"every {told.policy.minutes} minutes" if kind == "frequently" else ""
            rows.append((f"  {kind}", told.policy.count(kind), often))
    lines = [f"{told.volume} keeps", *table(rows, frozenset({1}))]
    if told.surplus:
        lines.append(f"{count_text(told.surplus)} more than that: see `snapshot prune -n`")
    return lines


def _show(told: PolicyTold, as_json: bool) -> int:
    if not as_json:
        click.echo("\n".join(_lines(told)))
        return 0
    policy = told.policy
    counts = None if policy is None else {kind: policy.count(kind) for kind in KINDS}
    minutes = None if policy is None else policy.minutes
    document = {"volume": told.volume, "keep": counts, "minutes": minutes, "surplus": told.surplus}
    print_json(document)
    return 0


json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON, with a version and plain integers."
)


@policy_group.command("set")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--frequently", type=int, metavar="N", help="Of every quarter of an hour.")
@click.option("--hourly", type=int, metavar="N", help="How many hourly ones to keep.")
@click.option("--daily", type=int, metavar="N", help="Taken after midnight.")
@click.option("--weekly", type=int, metavar="N", help="Taken after midnight before Monday.")
@click.option("--monthly", type=int, metavar="N", help="Taken on the first.")
@click.option("--yearly", type=int, metavar="N", help="Taken on the first of January.")
@click.option("--minutes", type=int, metavar="N", help="How often is frequently. At first: 15.")
@json_option
def set_command(where: str, as_json: bool, **fields: int | None) -> int:
    """Set how many snapshots are kept; what is not given stays as it is, 0 means none.

    \b
    Example:
      raidfs-ctl policy set /mnt/tank --hourly 24 --daily 30 --weekly 8 --monthly 12 --yearly 2
    """
    given = {name: value for name, value in fields.items() if value is not None}
    return _show(ask(target.find(where), PolicySetRequest(fields=given), PolicyTold), as_json)


@policy_group.command("show")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@json_option
def show_command(where: str, as_json: bool) -> int:
    """Tell the policy of a volume.

    \b
    Example:
      raidfs-ctl policy show /mnt/tank
    """
    return _show(ask(target.find(where), PolicyGetRequest(), PolicyTold), as_json)


@policy_group.command("clear")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@json_option
def clear_command(where: str, as_json: bool) -> int:
    """Take the policy away. Snapshots that it has made stay until you delete them.

    \b
    Example:
      raidfs-ctl policy clear /mnt/tank
    """
    return _show(ask(target.find(where), PolicySetRequest(clear=True), PolicyTold), as_json)


def _has_policy(volume: target.Mounted) -> bool:
    """Whether there is something to run, and to be changed. A volume that is just being unmounted
    has nothing."""
    try:
        with volume.client() as client:
            if volume.entry.closing or client.status().read_only:
                return False
        return ask(volume, PolicyGetRequest(), PolicyTold).policy is not None
    except ControlError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.EPIPE):
            return False
        raise


def _run_one(name: str, volume: target.Mounted | None, dry_run: bool) -> PolicyRan | None:
    """One volume; None: there is nothing to run."""
    if volume is not None and not _has_policy(volume):
        return None
    return run_policy(volume or target.find(name), PolicyRunRequest(dry_run=dry_run))


@policy_group.command("run")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All mounted volumes that have a policy.")
@click.option("--groups", is_flag=True, help="Then also what `group policy run --all` does.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be taken and deleted.")
@click.option("-q", "--quiet", is_flag=True, help="Tell only what goes wrong.")
@json_option
def run_command(
    where: tuple[str, ...],
    everything: bool,
    groups: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Take the snapshots that are due, and delete those that are too many.

    Exit code: 0 done; 1 something failed, on one volume at least (each is named).

    \b
    Examples:
      raidfs-ctl policy run --all
      raidfs-ctl policy run --dry-run /mnt/tank
    """
    if everything == bool(where):
        raise UsageError("name the volumes whose policy is to be run, or say --all")
    code = 0
    documents: list[dict[str, object]] = []
    volumes = [target.Mounted(*found) for found in registry.entries()] if everything else []
    for name, volume in [*((v.entry.mountpoint, v) for v in volumes), *((w, None) for w in where)]:
        try:
            ran = _run_one(name, volume, dry_run)
        except (RaidfsError, OSError) as error:
            click.echo(f"raidfs-ctl: {name}: {sentence(error)}", err=True)
            documents.append({"volume": name, "error": sentence(error)})
            code = EXIT_ERROR
            continue
        if ran is None:
            continue
        documents.append(ran_document(ran, dry_run))
        if not as_json and not quiet:
            click.echo("".join(f"{line}\n" for line in _ran_lines(ran, dry_run)), nl=False)
    of_groups: list[dict[str, object]] = []
    if groups:
        failed, of_groups = run_groups(kept_here(), dry_run, quiet or as_json)
        code = EXIT_ERROR if failed else code
    if as_json:
        told = {"volumes": documents}
        print_json({**told, "groups": of_groups} if groups else told)
    return code


def _ran_lines(ran: PolicyRan, dry_run: bool) -> list[str]:
    done = [f"take {name}" for name in ran.taken] + verdict_lines(ran, kept=False)
    would = "would " if dry_run and done else ""
    return [f"{ran.volume}: {would}{line}" for line in done or ["nothing to do"]]
