"""Completion of what is typed at a shell, and `raidfs-ctl completion`, which prints what a shell
needs for it. The protocol is click's; what is offered for which word is said in words.py.

 1. It takes LIMIT_S at most, whatever hangs, and then offers nothing.
 2. It never prints anything but offers: no error, no traceback, whatever was typed.
 3. It looks at no mounted directory and at no member: it asks daemons, through their sockets.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator

import click
import msgspec
from click.shell_completion import CompletionItem, get_completion_class

from raidfs.cli.words import OPTIONS, Offer, command_path, meanings, usage_words

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = {
    "raidfs-ctl": ("raidfs.cli.main", "control"),
    "raidfs": ("raidfs.cli.mount", "mount_command"),
    "mkfs.raidfs": ("raidfs.cli.create", "create_command"),
    "fsck.raidfs": ("raidfs.cli.check", "check_command"),
}
LIMIT_S = 1.0  # RAIDFS_COMPLETION_SECONDS: another, for slow machines
RESERVE_S = 0.3  # of it, for the start of the program
NAMES_MAX = 1000
TYPED: list[str] = []  # all words before the one to be completed
# Bash puts what is offered into the line as it is, after expanding it.
PLAIN = re.compile(r"[\w@%+=:,./-]+")


# -- the limit ------------------------------------------------------------------------------------


def variable(program: str) -> str:
    """The name of the variable by which a shell asks the program for offers."""
    return f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()


def answer_shell(program: str) -> None:
    """If a shell asks for offers, gives them and ends the program; else returns.

    Who looks is a child: one that hangs can be left alone, in whatever it hangs."""
    told = os.environ.get(variable(program), "")
    if program not in PROGRAMS or not told.endswith("_complete"):
        return
    deadline = time.monotonic() + _limit() - RESERVE_S
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(from_child)
        _look(program, told.partition("_")[0], to_parent)
    os.close(to_parent)
    offers = _within(from_child, deadline)
    if offers is None:
        os.kill(child, signal.SIGKILL)
        os._exit(0)
    os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        os.write(1, offers)
    os._exit(0)


def _limit() -> float:
    try:
        return float(os.environ.get("RAIDFS_COMPLETION_SECONDS", LIMIT_S))
    except ValueError:
        return LIMIT_S


def _within(fd: int, deadline: float) -> bytes | None:
    """All that comes until the end of the stream; None if that comes too late."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _look(program: str, shell: str, out: int) -> None:
    """In the child. Never returns."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 2)
        kind = get_completion_class(shell)
        if kind is not None:
            # In this process all arguments of all commands complete by the table of words.
            click.Argument.shell_complete = offer_argument  # type: ignore
            click.Option.shell_complete = offer_option  # type: ignore
            asked = kind(command_of(program), {}, program, variable(program))
            arguments, incomplete = asked.get_completion_args()
            TYPED.extend(arguments)
            items = asked.get_completions(arguments, incomplete)
            kept = [item for item in items if _can_be_typed(item, shell)]
            text = "".join(f"{asked.format_completion(item)}\n" for item in kept)
            with os.fdopen(out, "wb") as stream:
                stream.write(text.encode(errors="surrogateescape"))
    finally:
        os._exit(0)


def _can_be_typed(item: CompletionItem[str], shell: str) -> bool:
    value = item.value
    if not value.isprintable():
        return False
    return shell != "bash" or item.type != "plain" or PLAIN.fullmatch(value) is not None


def command_of(program: str) -> click.Command:
    """What a program does."""
    module, name = PROGRAMS[program]
    command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command)
    return command


def _offer_of(option: click.Option) -> Offer | None:
    return next((OPTIONS[name] for name in (*option.opts, option.metavar) if name in OPTIONS), None)


# -- offers ---------------------------------------------------------------------------------------


def offer_argument(
    parameter: click.Argument, context: click.Context, incomplete: str
) -> list[CompletionItem[str]]:
    """For the word of the usage that is next."""
    if isinstance(parameter.type, click.Choice):
        return parameter.type.shell_complete(context, parameter, incomplete)
    given = _given(context, parameter)
    if incomplete.startswith("@") or given[-1:] == ["@"]:  # bash takes VOLUME@NAME apart
        names = _snapshots(context, given[:1], incomplete.removeprefix("@"))
        return [CompletionItem(f"@{name.value}", help=name.help) for name in names]
    words = usage_words(parameter)
    at = len([word for word in given if not word.startswith("@")])
    if at >= len(words):
        repeated = [index for index, (_, again) in enumerate(words) if again]
        if not repeated:
            return []
        at = repeated[-1]
    before = _volumes_before(context, parameter, given)
    offers = [word.offer for _, word in meanings(context, words[at][0]) if word is not None]
    return [item for each in offers for item in _offers(each, context, before, incomplete)]


def offer_option(
    parameter: click.Option, context: click.Context, incomplete: str
) -> list[CompletionItem[str]]:
    """For the value of an option."""
    offer = _offer_of(parameter)
    if offer is None:
        return parameter.type.shell_complete(context, parameter, incomplete)
    # click knows no arguments while an option lacks its value
    before = [word for word in TYPED if not word.startswith("-")][len(command_path(context)) :]
    return list(_offers(offer, context, before, incomplete))


def _given(context: click.Context, parameter: click.Parameter) -> list[str]:
    """The words already typed for an argument; a default is none."""
    if not isinstance(parameter, click.Argument):
        return []
    value = context.params.get(parameter.name or "")
    if isinstance(value, tuple):
        return [str(word) for word in value]
    return [value] if isinstance(value, str) and value else []


def _volumes_before(
    context: click.Context, parameter: click.Parameter, given: list[str]
) -> list[str]:
    earlier = []
    for other in context.command.params:
        if other is parameter:
            break
        earlier += _given(context, other)
    return earlier + given


def _offers(
    offer: Offer, context: click.Context, before: list[str], incomplete: str
) -> Iterator[CompletionItem[str]]:
    match offer:
        case Offer.FILE:
            yield CompletionItem(incomplete, type="file")
        case Offer.DIRECTORY:
            yield CompletionItem(incomplete, type="dir")
        case Offer.MOUNTPOINT | Offer.VOLUME:
            yield from _volumes(context, offer, incomplete)
        case Offer.SNAPSHOT:
            yield from _snapshots(context, before, incomplete)
        case Offer.MEMBER_OF:
            yield CompletionItem(incomplete, type="file")
            yield from _members(before, incomplete)
        case Offer.JOB:
            yield from _jobs(before, incomplete)
        case Offer.GROUP:
            yield from _groups(incomplete)
        case Offer.MOUNT_OPTION:
            yield from _mount_options(incomplete)


def _volumes(
    context: click.Context, offer: Offer, incomplete: str
) -> Iterator[CompletionItem[str]]:
    """Files come first: bash then offers them only where no mountpoint fits."""
    from raidfs.daemon import registry

    where, sign, _ = incomplete.rpartition("@")
    if sign and command_path(context)[:1] == ["snapshot"]:
        for item in _snapshots(context, [where], incomplete.rpartition("@")[2]):
            yield CompletionItem(f"{where}@{item.value}", help=item.help)
        return
    yield CompletionItem(incomplete, type="dir" if offer is Offer.MOUNTPOINT else "file")
    for entry, _ in registry.entries():
        if entry.mountpoint.startswith(incomplete):
            yield CompletionItem(entry.mountpoint, help=f"volume {entry.volume_name}")
        if incomplete and offer is Offer.VOLUME and entry.volume_name.startswith(incomplete):
            yield CompletionItem(entry.volume_name, help=f"mounted on {entry.mountpoint}")


def _snapshots(
    context: click.Context, before: list[str], incomplete: str
) -> list[CompletionItem[str]]:
    if not before:
        return []
    if command_path(context)[:1] == ["group"]:
        return _group_snapshots(before[0], incomplete)
    from raidfs.cli import target
    from raidfs.cli.service import each
    from raidfs.cli.snapshot_list import time_text
    from raidfs.daemon.snapshots import SnapshotListRequest, SnapshotTold

    volume = target.find(before[0].partition("@")[0])
    if not isinstance(volume, target.Mounted):
        return []
    told: list[SnapshotTold] = []
    each(volume, SnapshotListRequest(), list[SnapshotTold], told.extend)
    return [
        CompletionItem(one.name, help=one.note or time_text(one.created_ns))
        for one in told
        if one.name.startswith(incomplete) and one.name not in before
    ][:NAMES_MAX]


def _group_snapshots(group: str, incomplete: str) -> list[CompletionItem[str]]:
    from raidfs.cli import group_target
    from raidfs.daemon.group_requests import GroupListed, GroupListRequest

    volume, _ = group_target.find(group)
    told = group_target.ask(volume, GroupListRequest(), GroupListed)
    names = sorted({one.name for one in told.snapshots})
    return [CompletionItem(name) for name in names if name.startswith(incomplete)][:NAMES_MAX]


def _members(before: list[str], incomplete: str) -> Iterator[CompletionItem[str]]:
    from raidfs.cli import target

    volume = target.find(before[0])
    if not isinstance(volume, target.Mounted):
        return
    with volume.client() as client:
        status = client.status()
    for member in status.members:
        for value, help_text in ((str(member.id), member.path), (member.path, member.state)):
            if value.startswith(incomplete) and (incomplete or value.isdecimal()):
                yield CompletionItem(value, help=help_text)


def _jobs(before: list[str], incomplete: str) -> Iterator[CompletionItem[str]]:
    from raidfs.cli import target
    from raidfs.cli.job_lines import job_line
    from raidfs.daemon.jobs import Job
    from raidfs.daemon.member_requests import JobListRequest, JobsAnswer

    volume = target.find(before[0])
    if not isinstance(volume, target.Mounted):
        return
    found: list[Job] = []
    with volume.client() as client:
        for raw in client.answers(JobListRequest()):
            found = msgspec.json.decode(raw, type=JobsAnswer).jobs
    for job in found:
        if job.id.startswith(incomplete) and job.id not in before:
            yield CompletionItem(job.id, help=job_line(job).removeprefix(f"{job.id}: "))


def _groups(incomplete: str) -> Iterator[CompletionItem[str]]:
    from raidfs.cli import group_target
    from raidfs.daemon import registry

    if incomplete.startswith("/"):
        mountpoints = [entry.mountpoint for entry, _ in registry.entries()]
        yield from (CompletionItem(each) for each in mountpoints if each.startswith(incomplete))
        return
    names = {status.group for _, status in group_target.volumes() if status.group}
    yield from (CompletionItem(name) for name in sorted(names) if name.startswith(incomplete))


def _mount_options(incomplete: str) -> Iterator[CompletionItem[str]]:
    from raidfs.cli.mount import OFFERED

    typed, comma, last = incomplete.rpartition(",")
    for name in OFFERED:
        if name.startswith(last) and name not in typed.split(","):
            yield CompletionItem(f"{typed}{comma}{name}")


# -- the command ----------------------------------------------------------------------------------


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
@click.argument(
    "program", type=click.Choice(list(PROGRAMS)), metavar="[PROGRAM]", default="raidfs-ctl"
)
def completion_command(shell: str, program: str) -> int:
    """Print what a shell needs to complete the arguments of a program.

    Verbs, options, mountpoints, members, names of snapshots and of groups are completed. PROGRAM
    is raidfs-ctl, raidfs, mkfs.raidfs or fsck.raidfs. `make install` puts all of it where bash, zsh
    and fish look for it.

    \b
    Examples:
      eval "$(raidfs-ctl completion bash)"
      raidfs-ctl completion zsh > ~/.zfunc/_raidfs-ctl
      raidfs-ctl completion fish raidfs > ~/.config/fish/completions/raidfs.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(click.Command(program), {}, program, variable(program))
    sys.stdout.write(made.source_template % made.source_vars())
    return 0
