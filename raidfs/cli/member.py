"""`raidfs-ctl member ...`: the members of a volume, one by one."""

from __future__ import annotations

import time

import click
import msgspec
import trio

from raidfs.cli import target
from raidfs.cli.output import confirm, print_json, size_text, table
from raidfs.cli.status import status_lines, status_of
from raidfs.daemon.condition import fail_member, store_condition
from raidfs.daemon.control import MemberFailRequest
from raidfs.daemon.status import VolumeStatus, describe
from raidfs.errors import UsageError
from raidfs.raid.assembly import Assembly
from raidfs.store.store import Store


@click.group("member")
def member_group() -> None:
    """List the members of a volume, or take one out.

    \b
    Examples:
      raidfs-ctl member list /mnt/tank
      raidfs-ctl member fail /mnt/tank /srv/disk3
    """


@member_group.command("list")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def list_command(where: str, as_json: bool) -> int:
    """List the members of one volume: number, kind, size, state, errors, path.

    \b
    Example:
      raidfs-ctl member list /mnt/tank
    """
    status = status_of(where)
    if as_json:
        print_json({"volume": status.volume, "members": status.members})
        return 0
    rows: list[tuple[object, ...]] = [
        ("ID", "KIND", "SIZE", "STATE", "READ", "WRITE", "CKSUM", "PATH")
    ]
    for member in status.members:
        counts = (member.read_errors, member.write_errors, member.checksum_errors)
        size = size_text(member.bytes)
        rows.append((member.id, member.kind, size, member.state, *counts, member.path))
    click.echo("\n".join(table(rows, frozenset({0, 2, 4, 5, 6}))))
    return 0


@member_group.command("fail")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.argument("member", metavar="MEMBER")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would happen.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--force", is_flag=True, help="Even if data is lost by it.")
@click.option("--json", "as_json", is_flag=True, help="Answer with the status after it, as JSON.")
def fail_command(
    where: str, member: str, dry_run: bool, yes: bool, force: bool, as_json: bool
) -> int:
    """Take MEMBER (its path, or its number in `status`) out of a volume, for good.

    The others record it as failed: it is never believed again, even if it comes back. The volume
    goes on with less redundancy. Refused if data would be lost.

    \b
    Example:
      raidfs-ctl member fail /mnt/tank /srv/disk3
    """
    status = status_of(where)
    number = target.member_number([(m.id, m.path) for m in status.members], member)
    chosen = next(m for m in status.members if m.id == number)
    _check(status, number, force)
    lost = sum(m.state != "ONLINE" for m in status.members if m.id != number) + 1
    left = status.losses_survived - lost
    what = f"member {number} ({chosen.path}) leaves volume {status.volume} for good"
    after = f"; after that {left} more may be lost" if left > 0 else "; after that none may be lost"
    if left < 0:
        after = "; THE VOLUME'S DATA WILL BE LOST IN WHOLE OR IN PART"
    if dry_run:
        if as_json:
            print_json({"member": number, "path": chosen.path, "losses_left": left})
        else:
            click.echo(f"would do: {what}{after}")
        return 0
    confirm(f"{what}{after}. Go on?", yes)
    told = _fail(where, MemberFailRequest(member_id=number, force=force))
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(status_lines(told)))
    return 0


def _check(status: VolumeStatus, number: int, force: bool) -> None:
    """Refuses what can't be meant, before anything is asked or opened."""
    chosen = next(m for m in status.members if m.id == number)
    if chosen.state == "FAILED":
        raise UsageError(f"member {number} ({chosen.path}) has already left; nothing to do")
    lost = sum(m.state != "ONLINE" for m in status.members if m.id != number) + 1
    if lost == len(status.members):
        raise UsageError(f"member {number} is the last one; nothing would remain")
    if lost > status.losses_survived and not force and status.level != "10":
        raise UsageError(
            f"without member {number} data would be lost: {lost} of {len(status.members)} members"
            f" would be gone and level {status.level} survives {status.losses_survived};"
            " copy the data away first (--force does it all the same)"
        )


def _fail(where: str, request: MemberFailRequest) -> VolumeStatus:
    found = target.find(where)
    if isinstance(found, target.Mounted):
        with found.client() as client:
            return msgspec.json.decode(client.ask(request), type=VolumeStatus)
    source = found.path
    label = found.label
    if label.member_id == request.member_id:  # it is to go, so it can't be the one to start from
        others = [m.path for m in label.members if m.id != request.member_id]
        source = next((path for path in others if _answers(path, label.volume_id)), source)
    assembly = Assembly.open(source, degraded=True)
    try:
        return trio.run(_fail_unmounted, assembly, request)
    finally:
        assembly.close()


def _answers(path: str, volume_id: str) -> bool:
    try:
        return target.read_label(path).volume_id == volume_id
    except Exception:
        return False


async def _fail_unmounted(assembly: Assembly, request: MemberFailRequest) -> VolumeStatus:
    store = await Store.open(assembly, read_only=False, clock=time.time_ns)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            await fail_member(store, request)
            status = describe(store_condition(store, None))
            await store.stop()
            nursery.cancel_scope.cancel()
    except BaseException:
        await store.close()
        raise
    return status
