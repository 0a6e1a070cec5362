"""`raidfs-ctl convert`: another level or width, while the volume is in use."""

from __future__ import annotations

import click

from raidfs.cli import target
from raidfs.cli.output import confirm
from raidfs.cli.reshaping import ask, tell, wait_for
from raidfs.daemon.reshape import ConvertRequest
from raidfs.errors import UsageError


@click.command("convert")
@click.argument("where", metavar="MOUNTPOINT")
@click.option("--level", metavar="LEVEL", help="As of `create`; without it, the present one.")
@click.option(
    "--width",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Members per zone; without it, all, as far as the level allows.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would happen.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask, not even before less is survived.")
@click.option("--wait", is_flag=True, help="Return when all is converted.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def convert_command(
    where: str,
    level: str | None,
    width: int | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Change a mounted volume to another level or width.

    What is written from now on has the new level. What is stored is moved to it in the background,
    zone by zone, snapshots included, while the volume is used as ever; until that is done, as much
    is survived as the weaker of both levels does. It goes on by itself after a crash or the next
    mount; `raidfs-ctl job` tells how far it is, pauses and limits it, `raidfs-ctl wait` waits for
    it. To go back, convert to the old level.

    Refused if what is stored has no room at the new level. It needs little free room on the way
    there; if that runs out, it says so and goes on when there is some.

    Added members are used by new zones at once; `--width` makes zones wider than they are.

    \b
    Examples:
      raidfs-ctl convert --level 6 /mnt/tank
      raidfs-ctl convert --level rs:8+2 --dry-run /mnt/tank
      raidfs-ctl convert --level 1 --width 2 --wait /mnt/tank
    """
    if level is None and width is None:
        raise UsageError("say what it shall be: --level, --width, or both")
    found = target.must_be_mounted(where, "convert")
    request = ConvertRequest(level=level or "", width=width or 0, dry_run=True)
    planned = ask(found, request)
    if not dry_run and planned.warned:
        confirm(f"{'; '.join(planned.warned)}. Go on?", yes)
    if dry_run:
        return tell(planned, as_json)
    done = ask(found, ConvertRequest(level=level or "", width=width or 0, weaker=True))
    code = tell(done, as_json and not wait)
    return wait_for(found, done, as_json) if wait else code
