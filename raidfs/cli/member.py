"""`raidfs-ctl member ...`: the members of a volume, over its life."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from raidfs.cli.member_list import list_command
from raidfs.cli.member_say import carry_out
from raidfs.cli.output import Size
from raidfs.daemon.member_requests import (
    MemberAddRequest,
    MemberDomainRequest,
    MemberEvacuateRequest,
    MemberFailRequest,
    MemberOnlineRequest,
    MemberPolicyRequest,
    MemberRemoveRequest,
    MemberReplaceRequest,
    MemberSpareRequest,
)

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group("member")
def member_group() -> None:
    """Add, replace, remove the members of a volume; take them out of use and back.

    All of it while the volume is in use. MEMBER is a number as `member list` shows it, a path, or
    the last part of a path if only one has it. What takes long goes on in the background:
    --wait, or `raidfs-ctl wait`, returns when it is done.

    \b
    Examples:
      raidfs-ctl member list /mnt/tank
      raidfs-ctl member replace /mnt/tank disk3 /srv/disk7
    """


def _words(dry: bool = True, wait: bool = False) -> Callable[[Command], Command]:
    """The options that all have."""

    def add(command: Command) -> Command:
        options = [click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")]
        options.append(click.option("-y", "--yes", is_flag=True, help="Don't ask."))
        if dry:
            told = "Only tell what would happen, in numbers."
            options.append(click.option("-n", "--dry-run", is_flag=True, help=told))
        if wait:
            told = "Return when what it begins in the background is done."
            options.append(click.option("-w", "--wait", is_flag=True, help=told))
        for option in options:
            command = option(command)
        return command

    return add


_WHERE = click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
_FORCE = click.option("--force", is_flag=True, help="Even over what looks like data.")
_DOMAIN = click.option("--domain", metavar="NAME", default="", help="They fail with others of it.")
_SIZE = click.option("--size", type=Size(), default=0, help="Room to take on each. Default: all.")


@member_group.command("add")
@_WHERE
@click.argument("paths", metavar="PLACE...", nargs=-1, required=True)
@click.option("--spare", is_flag=True, help="Hot spares: they hold nothing until they are needed.")
@_DOMAIN
@_SIZE
@_FORCE
@_words(wait=True)
def add_command(
    where: str,
    paths: tuple[str, ...],
    spare: bool,
    domain: str,
    size: int,
    force: bool,
    **how: bool,
) -> int:
    """Add directories, image files or block devices to a volume.

    New data lies on them at once. If members are lost, what they had is rebuilt there.
    `raidfs-ctl rebalance` spreads what is stored already.

    \b
    Examples:
      raidfs-ctl member add /mnt/tank /srv/disk6 /srv/disk7
      raidfs-ctl member add --spare --domain shelf2 /mnt/tank /dev/sdh
    """
    request = MemberAddRequest(
        paths=paths,
        spare=spare,
        domain=domain,
        size_bytes=size,
        force=force,
        cwd=os.getcwd(),
    )
    return carry_out(where, request, asks=force, **how)


@member_group.command("remove")
@_WHERE
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@_words(wait=True)
def remove_command(where: str, members: tuple[str, ...], **how: bool) -> int:
    """Remove members: what they hold goes to the others, then they are members no more.

    Refused if it doesn't fit. `member evacuate --cancel` gives it up on the way.

    \b
    Examples:
      raidfs-ctl member remove --dry-run /mnt/tank disk2 disk3
      raidfs-ctl member remove --yes --wait /mnt/tank disk2
    """
    request = MemberRemoveRequest(members=members, cwd=os.getcwd())
    return carry_out(where, request, asks=True, **how)


@member_group.command("replace")
@_WHERE
@click.argument("pairs", metavar="OLD NEW...", nargs=-1, required=True)
@_SIZE
@_FORCE
@_words(wait=True)
def replace_command(where: str, pairs: tuple[str, ...], size: int, force: bool, **how: bool) -> int:
    """Put NEW in the place of OLD, one pair or several: OLD NEW OLD NEW ...

    A member that is online is copied, and stays in use until that is done; one that is lost is
    rebuilt from the others. NEW is a spare, or any place; it may be OLD's own path if something
    else is there now. OLD is no member any more at the end.

    \b
    Examples:
      raidfs-ctl member replace /mnt/tank disk3 /srv/disk7
      raidfs-ctl member replace --yes --wait /mnt/tank 2 /dev/sdg 4 /dev/sdh
    """
    if len(pairs) % 2:
        raise click.UsageError(f"{pairs[-1]} has no NEW: name pairs of OLD NEW")
    request = MemberReplaceRequest(
        pairs=tuple(zip(pairs[::2], pairs[1::2], strict=True)),
        size_bytes=size,
        force=force,
        cwd=os.getcwd(),
    )
    return carry_out(where, request, asks=True, **how)


@member_group.command("fail")
@_WHERE
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@_words(wait=True)
def fail_command(where: str, members: tuple[str, ...], **how: bool) -> int:
    """Take members out of use: they count as lost, and are rebuilt on others.

    Refused if data would be lost by it. `member online` brings one back if it is whole after all.

    \b
    Example:
      raidfs-ctl member fail /mnt/tank /srv/disk3
    """
    request = MemberFailRequest(members=members, cwd=os.getcwd())
    return carry_out(where, request, asks=True, **how)


@member_group.command("offline")
@_WHERE
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@_words()
def offline_command(where: str, members: tuple[str, ...], **how: bool) -> int:
    """Take members out of use for a while, to move a cable, say.

    Nothing is rebuilt meanwhile. `member online` brings one back, and it gets what it missed.
    Refused if data could not be read without them.

    \b
    Example:
      raidfs-ctl member offline /mnt/tank disk3
    """
    request = MemberFailRequest(members=members, offline=True, cwd=os.getcwd())
    return carry_out(where, request, asks=True, **how)


@member_group.command("online")
@_WHERE
@click.argument("member", metavar="MEMBER")
@click.option("--path", default="", help="Where it is now, if not where it was.")
@_words(wait=True)
def online_command(where: str, member: str, path: str, **how: bool) -> int:
    """Bring back a member that was offline, failed or missing; it gets what it missed.

    What isn't that member, or went on by itself, is refused. If it comes back older than it was
    when it was lost, nothing that it holds is believed, and all is rebuilt.

    \b
    Examples:
      raidfs-ctl member online /mnt/tank disk3
      raidfs-ctl member online /mnt/tank 3 --path /dev/sdk
    """
    request = MemberOnlineRequest(member=member, path=path, cwd=os.getcwd())
    return carry_out(where, request, asks=False, **how)


@member_group.command("spare")
@_WHERE
@click.argument("word", metavar="MEMBER|PLACE")
@click.option("--no", "data", is_flag=True, help="A spare becomes an ordinary member.")
@_DOMAIN
@_SIZE
@_FORCE
@_words()
def spare_command(
    where: str, word: str, data: bool, domain: str, size: int, force: bool, **how: bool
) -> int:
    """Make a hot spare of a member that holds nothing, or of a new place.

    A spare takes over when a member is lost.

    \b
    Examples:
      raidfs-ctl member spare /mnt/tank /srv/disk9
      raidfs-ctl member spare --no /mnt/tank disk9
    """
    request = MemberSpareRequest(
        word=word, data=data, domain=domain, size_bytes=size, force=force, cwd=os.getcwd()
    )
    return carry_out(where, request, asks=force, **how)


@member_group.command("evacuate")
@_WHERE
@click.argument("members", metavar="MEMBER...", nargs=-1, required=True)
@click.option("--cancel", is_flag=True, help="They stay as they are, or get data again.")
@_words(wait=True)
def evacuate_command(where: str, members: tuple[str, ...], cancel: bool, **how: bool) -> int:
    """Empty members, which stay members: what they hold goes to the others.

    Refused if it doesn't fit. --cancel also gives up a `remove` or `replace` that is under way.

    \b
    Examples:
      raidfs-ctl member evacuate --wait /mnt/tank disk2
      raidfs-ctl member evacuate --cancel /mnt/tank disk2
    """
    request = MemberEvacuateRequest(members=members, cancel=cancel, cwd=os.getcwd())
    return carry_out(where, request, asks=False, **how)


@member_group.command("domain")
@_WHERE
@click.argument("member", metavar="MEMBER")
@click.argument("name", metavar="DOMAIN")
@_words()
def domain_command(where: str, member: str, name: str, **how: bool) -> int:
    """Tell what a member fails together with: a shelf, a controller, a machine.

    No two columns of a zone lie in one domain as long as there are enough domains. "" or - takes
    it out of any.

    \b
    Examples:
      raidfs-ctl member domain /mnt/tank disk3 shelf1
      raidfs-ctl member domain /mnt/tank disk3 -
    """
    name = "" if name == "-" else name
    request = MemberDomainRequest(member=member, name=name, cwd=os.getcwd())
    return carry_out(where, request, asks=False, **how)


@member_group.command("policy")
@_WHERE
@click.argument(
    "rebuild",
    metavar="[POLICY]",
    type=click.Choice(["", "auto", "spare", "manual"]),
    default="",
)
@_words(dry=False)
def policy_command(where: str, rebuild: Literal["", "auto", "spare", "manual"], **how: bool) -> int:
    """Tell, or choose, what is done by itself when a member is lost.

    \b
    auto    a hot spare takes its place, or all members with room share its columns
    spare   only a hot spare does
    manual  nothing is rebuilt until `member replace` says where

    \b
    Example:
      raidfs-ctl member policy /mnt/tank spare
    """
    return carry_out(where, MemberPolicyRequest(rebuild=rebuild), asks=False, **how)


member_group.add_command(list_command)
