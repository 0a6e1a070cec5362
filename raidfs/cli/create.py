"""`raidfs-ctl create` and mkfs.raidfs: members become a volume."""

from __future__ import annotations

import os
import time
from typing import Any, NoReturn

import click

from raidfs.cli.output import Size, confirm, print_json, run_command, size_text, table
from raidfs.errors import UsageError
from raidfs.raid.create import Plan, check_domain, plan_volume
from raidfs.store.make import make_volume


def plan_lines(plan: Plan) -> list[str]:
    """What a volume will be, or is now that it was made."""
    survives = {0: "no loss: ONE LOST MEMBER LOSES ALL", 1: "the loss of any 1 member"}.get(
        plan.code.tolerance, f"the loss of any {plan.code.tolerance} members"
    )
    parameters = plan.parameters
    raw = sum(member.bytes for member in plan.members)
    share = 100 * plan.usable_bytes / raw if raw else 0.0
    lines = [
        f" volume: {plan.volume_name}",
        f"  level: {plan.code.level} over {plan.code.width} members, survives {survives}",
        f" usable: {size_text(plan.usable_bytes)} of {size_text(raw)} ({share:.0f} %)",
        f"  zones: {size_text(parameters.zone_bytes)} on each member,"
        f" cells of {parameters.cell_bytes} bytes",
        "",
    ]
    rows: list[tuple[object, ...]] = [("ID", "KIND", "SIZE", "ZONES", "PATH", "")]
    for member in plan.members:
        domain = f"domain {member.domain}" if member.domain else ""
        size = size_text(member.bytes)
        rows.append((member.id, member.kind, size, member.slots, member.path, domain))
    lines += ["        " + line for line in table(rows, frozenset({0, 2, 3}))]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return lines


def plan_document(plan: Plan) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "volume": plan.volume_name,
        "volume_id": plan.volume_id,
        "level": plan.code.level,
        "width": plan.code.width,
        "losses_survived": plan.code.tolerance,
        "usable_bytes": plan.usable_bytes,
        "zone_bytes": plan.parameters.zone_bytes,
        "cell_bytes": plan.parameters.cell_bytes,
        "members": [
            {
                "id": m.id,
                "kind": m.kind,
                "path": m.path,
                "bytes": m.bytes,
                "zones": m.slots,
                "domain": m.domain,
            }
            for m in plan.members
        ],
        "warnings": list(plan.warnings),
    }


def _domains_of(members: tuple[str, ...], named: tuple[str, ...]) -> list[str]:
    """The domain of each member, by options NAME=MEMBER,MEMBER... UsageError."""
    found = dict[int, str]()
    for option in named:
        name, _, words = option.partition("=")
        if not name or not words:
            raise UsageError(f"--domain {option}: write NAME=MEMBER, or NAME=MEMBER,MEMBER,...")
        check_domain(name)
        for word in [words] if words in members else words.split(","):
            at = [i for i, each in enumerate(members) if word in (each, os.path.basename(each))]
            if len(at) != 1:
                which = "no member" if not at else "more than one member"
                raise UsageError(f"--domain {option}: {word!r} is {which} of those that are named")
            if at[0] in found:
                raise UsageError(f"--domain: {word} was put in two domains; it can be in one")
            found[at[0]] = name
    return [found.get(i, "") for i in range(len(members))] if found else []


@click.command("create")
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@click.option("--level", help="0, 1, 2, 3, 4, 5, 6, 10 or rs:K+M. Default: by number of members.")
@click.option("--name", help="What the volume is called. Default: made up.")
@click.option("--width", type=click.IntRange(1, 24), help="Members a zone lies on. Default: all.")
@click.option("--zone-size", type=Size(), help="Bytes of a zone on one member, a power of two.")
@click.option("--cell-size", type=Size(), default=4096, show_default=True, help="4K to 64K.")
@click.option("--size", type=Size(), help="Room to take on each member. Default: all that is free.")
@click.option(
    "--domain",
    "domains",
    metavar="NAME=MEMBER,...",
    multiple=True,
    help="What fails together: no two columns of a zone lie there, if that can be. Repeatable.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Show what would come out; change nothing.")
@click.option("--force", is_flag=True, help="Even over what looks like data.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask (matters with --force).")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def create_command(
    members: tuple[str, ...],
    level: str | None,
    name: str | None,
    width: int | None,
    zone_size: int | None,
    cell_size: int,
    size: int | None,
    domains: tuple[str, ...],
    dry_run: bool,
    force: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Make a volume of directories, image files and block devices.

    Members may be of different sizes: --dry-run shows how much is usable. A directory must be
    empty, an image file must exist (truncate -s 10G FILE makes one), and nothing that looks like
    data is written over without --force.

    \b
    Examples:
      raidfs-ctl create /srv/disk1 /srv/disk2 /srv/disk3
      raidfs-ctl create --level 6 --name tank --dry-run /srv/disk*
      raidfs-ctl create --level rs:4+3 /dev/sd[b-h]
      raidfs-ctl create --domain left=sdb,sdc --domain right=sdd,sde /dev/sd[b-e]
    """
    plan = plan_volume(
        [os.path.abspath(member) for member in members],
        level=level,
        name=name,
        width=width,
        cell_bytes=cell_size,
        zone_bytes=zone_size,
        size_bytes=size,
        force=force,
        domains=_domains_of(members, domains),
    )
    if not dry_run:
        if force:
            for line in plan_lines(plan):
                click.echo(line, err=True)
            confirm("Everything that is on these members now will be lost. Go on?", yes)
        make_volume(plan, now_ns=time.time_ns)
    if as_json:
        print_json({**plan_document(plan), "created": not dry_run})
        return 0
    click.echo("\n".join(plan_lines(plan)))
    if dry_run:
        click.echo("nothing was changed (--dry-run)")
    else:
        click.echo(f"mount it with: raidfs {members[0]} MOUNTPOINT")
    return 0


def mkfs_main() -> NoReturn:
    """Entry point of mkfs.raidfs."""
    run_command(create_command, "mkfs.raidfs")
