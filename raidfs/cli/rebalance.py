"""`raidfs-ctl rebalance`: all members equally full."""

from __future__ import annotations

import click

from raidfs.cli import target
from raidfs.cli.reshaping import ask, tell, wait_for
from raidfs.daemon.reshape import RebalanceRequest


@click.command("rebalance")
@click.argument("where", metavar="MOUNTPOINT")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would happen.")
@click.option("--stop", is_flag=True, help="End it; what was moved stays where it is.")
@click.option("--wait", is_flag=True, help="Return when it is done.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def rebalance_command(where: str, dry_run: bool, stop: bool, wait: bool, as_json: bool) -> int:
    """Spread what is stored evenly over the members of a mounted volume.

    After members were added, columns are moved to them from the fullest ones, in the background,
    until all are equally full in proportion to their size. Columns of a zone that lie in one
    failure domain are parted, where that can be. Level and width stay as they are: `convert
    --width` makes zones wider.

    It goes on by itself after a crash or the next mount; `raidfs-ctl job` tells how far it is,
    pauses and limits it, `raidfs-ctl wait` waits for it.

    \b
    Examples:
      raidfs-ctl rebalance --dry-run /mnt/tank
      raidfs-ctl rebalance --wait /mnt/tank
    """
    found = target.must_be_mounted(where, "rebalance")
    answer = ask(found, RebalanceRequest(stop=stop, dry_run=dry_run))
    waits = wait and answer.done and not stop
    code = tell(answer, as_json and not waits)
    return wait_for(found, answer, as_json) if waits else code
