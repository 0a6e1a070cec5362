"""`raidfs-ctl group init`, `join`, `invite`, `leave`, `expel`, `take-over`: who is in a group."""

from __future__ import annotations

import click

from raidfs.cli import target
from raidfs.cli.group_target import ask, find, json_option, keeper_of, status_of, yes_option
from raidfs.cli.output import confirm, print_json
from raidfs.daemon.group_requests import (
    GroupAdmitRequest,
    GroupAdoptRequest,
    GroupExpelRequest,
    GroupInitRequest,
    GroupInviteRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupLeft,
    GroupStatus,
    GroupTakeOverRequest,
    GroupWaitRequest,
)
from raidfs.errors import RaidfsError, UsageError
from raidfs.group.authority import TOKEN_PREFIX
from raidfs.group.charter import Charter, Member
from raidfs.group.messages import GATE_MS


@click.command("init")
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
            ask(volume, GroupLeaveRequest(force=True), GroupLeft)
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


@click.command("join")
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.argument("where", metavar="TOKEN-OR-MEMBER")
@click.option("--listen", metavar="tcp:HOST:PORT", default="", help="Where other hosts reach it.")
@click.option(
    "--renew", is_flag=True, help="It is a member, and its certificate has ended: get another."
)
@json_option
def join_command(mountpoint: str, where: str, listen: str, renew: bool, as_json: bool) -> int:
    """Bring a volume into a group.

    On one host name the group, or the mountpoint of a member; from another host give the token
    that `raidfs-ctl group invite` has made there.

    \b
    Examples:
      raidfs-ctl group join /mnt/bills shop
      raidfs-ctl group join /mnt/bills raidfs-join:... --listen tcp:10.0.0.2:7400
      raidfs-ctl group join --renew /mnt/bills raidfs-join:...
    """
    volume = target.must_be_mounted(mountpoint, "group join")
    status = status_of(volume)
    if renew and (listen or not where.startswith(TOKEN_PREFIX)):
        raise UsageError("--renew takes a token (raidfs-ctl group invite), and nothing else")
    if not renew:
        _check_free(status)
    if where.startswith(TOKEN_PREFIX):
        request = GroupJoinRequest(token=where, listen=listen, renew=renew)
        return _tell_charter(ask(volume, request, Charter), as_json)
    if listen:
        raise UsageError("a volume that is to listen comes from another host: it joins by a token")
    _, theirs = find(where)
    keeper = keeper_of(theirs)
    member = Member(status.volume_id, status.volume)
    charter = ask(keeper, GroupAdmitRequest(member=member), Charter)
    try:
        ask(volume, GroupAdoptRequest(charter=charter), Charter)
    except (RaidfsError, OSError):
        ask(keeper, GroupExpelRequest(volume=status.volume_id, force=True), Charter)
        raise
    return _tell_charter(charter, as_json)


@click.command("invite")
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


@click.command("leave")
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.option("--force", is_flag=True, help="Without telling anybody; the others then count on it.")
@json_option
def leave_command(mountpoint: str, force: bool, as_json: bool) -> int:
    """Take a volume out of its group. Snapshots taken before stay in all volumes.

    What it has promised to the others must be decided first, --force or not: by the others, if they
    can be reached, or by you with `raidfs-ctl group resolve`. What it has only begun is given up.

    \b
    Example:
      raidfs-ctl group leave /mnt/bills
    """
    volume = target.must_be_mounted(mountpoint, "group leave")
    left = ask(volume, GroupLeaveRequest(force=force), GroupLeft)
    if as_json:
        print_json(left)
    for note in () if as_json else left.notes:
        click.echo(note)
    return 0


@click.command("expel")
@click.argument("group", metavar="GROUP")
@click.argument("volume", metavar="VOLUME")
@click.option("--force", is_flag=True, help="Although it can be reached.")
@yes_option
@json_option
def expel_command(group: str, volume: str, force: bool, yes: bool, as_json: bool) -> int:
    """Take a volume that is gone for good out of a group. Done where the keeper is mounted.

    Its parts of the group's snapshots stay in it; those of the others stay as they are. Should it
    come back, it hears that it is no member any more, and may join again.

    \b
    Example:
      raidfs-ctl group expel shop bills
    """
    _, status = find(group)
    keeper = keeper_of(status)
    _check_member(status, volume)
    confirm(f"{volume} will be no member of group {status.group} any more. Go on?", yes)
    request = GroupExpelRequest(volume=target.check_text(volume), force=force)
    return _tell_charter(ask(keeper, request, Charter), as_json)


def _check_member(status: GroupStatus, volume: str) -> None:
    if not any(volume in (one.name, one.volume) for one in status.members):
        names = ", ".join(one.name for one in status.members)
        raise UsageError(f"{volume!r} is no member of group {status.group}; its members: {names}")


@click.command("take-over")
@click.argument("mountpoint", metavar="MOUNTPOINT")
@click.option("--force", is_flag=True, help="Without a majority of all members.")
@yes_option
@json_option
def take_over_command(mountpoint: str, force: bool, yes: bool, as_json: bool) -> int:
    """Make a volume the keeper of its group, since the keeper is gone for good.

    The keeper is who says who is a member. All members that can be reached have to agree, and they
    have to be more than half of all; the old keeper is a member no more. Only for groups on one
    host: between hosts the keeper alone signs certificates, and the group has to be built anew.

    \b
    Example:
      raidfs-ctl group take-over /mnt/stock
    """
    volume = target.must_be_mounted(mountpoint, "group take-over")
    status = status_of(volume)
    if not status.group:
        raise UsageError(status.out or f"volume {status.volume} is in no group")
    old = next((one.name for one in status.members if one.volume == status.keeper), status.keeper)
    confirm(
        f"{status.volume} will keep group {status.group}, and {old} will be no member any more."
        " Go on?",
        yes,
    )
    return _tell_charter(ask(volume, GroupTakeOverRequest(force=force), Charter), as_json)
