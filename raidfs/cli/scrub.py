"""`raidfs-ctl scrub ...`: read all that is stored, heal what is damaged, name what is lost.

1. Exit codes: 0 nothing is left that is not as it should be, 1 something is (or the command
   failed), 2 a mistake in the command.
2. Who waits may go: the scrub goes on without.
"""

from __future__ import annotations

import sys
import time

import click
import msgspec
import trio

from raidfs.cli import target
from raidfs.cli.output import Size, parse_size, print_json, size_text, table
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon.control import ControlError, Request
from raidfs.daemon.scrub import (
    ScrubChangeRequest,
    ScrubStartRequest,
    ScrubStatusRequest,
    ScrubTold,
    ScrubWaitRequest,
    scrub_told,
)
from raidfs.errors import UsageError
from raidfs.raid.assembly import Assembly
from raidfs.store.store import Store

EXIT_DAMAGED = 1
FILES_SHOWN = 20


class Rate(Size):
    """A click parameter for bytes per second."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Of "50M", "50M/s", "0"."""
        if isinstance(value, int):
            return value
        text = str(value).strip().removesuffix("/s")
        if text == "0":
            return 0
        try:
            return parse_size(text)
        except UsageError:
            return self.fail(f"{value!r} is no rate; write for example 50M/s", param, ctx)


@click.group("scrub")
def scrub_group() -> None:
    """Read all that a volume stores, parity too, and heal what is damaged.

    A scrub goes on in the background while the volume is in use, gives way to its users, and goes
    on after a crash or a remount where it was. What can't be healed is named.

    \b
    Examples:
      raidfs-ctl scrub start /mnt/tank
      raidfs-ctl scrub status /mnt/tank
    """


@scrub_group.command("start")
@click.argument("where", metavar="MOUNTPOINT")
@click.option("--check-only", is_flag=True, help="Only tell what is damaged; heal nothing.")
@click.option(
    "--limit", type=Rate(), default=0, metavar="RATE", help="At most so much in a second."
)
@click.option("--wait", is_flag=True, help="Return when it is through; exit code as of status.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def start_command(where: str, check_only: bool, limit: int, wait: bool, as_json: bool) -> int:
    """Begin a scrub of a mounted volume (its mountpoint, or its name).

    RATE is what is read from all members together. With --wait, if one is running already, that
    is waited for.

    \b
    Example:
      raidfs-ctl scrub start --limit 200M/s /mnt/tank
    """
    volume = target.must_be_mounted(where, "scrub start")
    running = wait and _ask(volume, ScrubStatusRequest()).state in ("running", "waiting")
    if not running:
        told = _ask(volume, ScrubStartRequest(check_only=check_only, limit_bytes_s=limit))
    if not wait:
        if as_json:
            print_json(told)
        else:
            click.echo(f"scrub of {told.volume} has begun; see raidfs-ctl scrub status {where}")
        return 0
    told = _wait(volume, quiet=as_json)
    return _tell(told, as_json)


@scrub_group.command("stop")
@click.argument("where", metavar="MOUNTPOINT")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def stop_command(where: str, as_json: bool) -> int:
    """End a scrub; what it found until then is kept.

    \b
    Example:
      raidfs-ctl scrub stop /mnt/tank
    """
    return _change(where, "stop", as_json)


@scrub_group.command("pause")
@click.argument("where", metavar="MOUNTPOINT")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def pause_command(where: str, as_json: bool) -> int:
    """Let a scrub stand still, also over remounts, until it is resumed.

    \b
    Example:
      raidfs-ctl scrub pause /mnt/tank
    """
    return _change(where, "pause", as_json)


@scrub_group.command("resume")
@click.argument("where", metavar="MOUNTPOINT")
@click.option("--limit", type=Rate(), default=-1, metavar="RATE", help="Another limit; 0: none.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def resume_command(where: str, limit: int, as_json: bool) -> int:
    """Go on with a paused scrub where it was.

    \b
    Example:
      raidfs-ctl scrub resume /mnt/tank
    """
    return _change(where, "resume", as_json, limit)


@scrub_group.command("status")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def status_command(where: str, as_json: bool) -> int:
    """Tell of the scrub under way, or of the last one: what it found, and which files have pages
    that can't be read.

    Exit code: 0 all is as it should be, or was healed; 1 something is damaged, or the scrub failed.

    \b
    Example:
      raidfs-ctl scrub status /mnt/tank
    """
    found = target.find(where)
    if isinstance(found, target.Mounted):
        told = _ask(found, ScrubStatusRequest())
    else:
        told = _unmounted(found)
    return _tell(told, as_json)


def _ask(volume: target.Mounted, request: Request) -> ScrubTold:
    with volume.client() as client:
        return msgspec.json.decode(client.ask(request, timeout_s=None), type=ScrubTold)


def _change(where: str, what: str, as_json: bool, limit: int = -1) -> int:
    volume = target.must_be_mounted(where, f"scrub {what}")
    request = msgspec.convert(
        {"verb": "scrub-change", "what": what, "limit_bytes_s": limit}, ScrubChangeRequest
    )
    told = _ask(volume, request)
    if as_json:
        print_json(told)
    else:
        click.echo(f"scrub of {told.volume}: {told.state}")
    return 0


def _unmounted(found: target.Unmounted) -> ScrubTold:
    """Reads labels and metadata; changes nothing."""
    assembly = Assembly.open(found.path, degraded=True, read_only=True)

    async def look() -> ScrubTold:
        store = await Store.open(assembly, read_only=True, clock=time.time_ns)
        try:
            return scrub_told(store, mounted=False)
        finally:
            await store.close()

    try:
        return trio.run(look)
    finally:
        assembly.close()


def _wait(volume: target.Mounted, *, quiet: bool) -> ScrubTold:
    """To the end, with progress where somebody looks."""
    shown = sys.stderr.isatty() and not quiet
    told: ScrubTold | None = None
    with volume.client() as client:
        for raw in client.answers(ScrubWaitRequest()):
            told = msgspec.json.decode(raw, type=ScrubTold)
            if shown:
                click.echo(f"\r\033[K{_progress(told)}", err=True, nl=False)
    if shown:
        click.echo("\r\033[K", err=True, nl=False)
    if told is None or told.state in ("running", "waiting"):
        raise ControlError("the volume was unmounted; the scrub goes on when it is mounted again")
    return told


def _progress(told: ScrubTold) -> str:
    total = told.done_bytes + told.left_bytes
    percent = 100.0 * told.done_bytes / total if total else 100.0
    parts = [f"{percent:.1f} % of {size_text(total)}"]
    if told.rate_bytes_s:
        parts.append(f"{size_text(round(told.rate_bytes_s))}/s")
    if told.seconds_left is not None:
        parts.append(f"{_duration(told.seconds_left)} left")
    return ", ".join([*parts, *([told.reason] if told.reason else [])])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _tell(told: ScrubTold, as_json: bool) -> int:
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(_lines(told)))
    return 0 if told.ok else EXIT_DAMAGED


def _lines(told: ScrubTold) -> list[str]:
    if told.state == "none":
        return [f"volume {told.volume} was never scrubbed"]
    only = ", checking only" if told.check_only else ""
    lines = [f" volume: {told.volume}", f"  scrub: {told.state}{only}"]
    if told.state in ("running", "waiting", "paused"):
        lines.append(f"   done: {_progress(told)}")
    elif told.reason:
        lines.append(f" reason: {told.reason}")
    if told.limit_bytes_s:
        lines.append(f"  limit: {size_text(told.limit_bytes_s)}/s")
    ended = f", ended {time_text(told.ended_ns)}" if told.ended_ns else ""
    lines.append(f"  since: {time_text(told.started_ns)}{ended}")
    lines.append(f" result: {told.result}")
    lines += ["", *("        " + line for line in _member_table(told))]
    if told.files_damaged:
        lines += ["", f"  files: {told.files_damaged} have pages that can't be read:"]
        for file in told.files[:FILES_SHOWN]:
            of = f"@{file.snapshot}" if file.snapshot else ""
            lines.append(
                f"        {_printable(file.path)}{of}: {file.pages} pages from {file.page}"
            )
        if told.files_damaged > FILES_SHOWN:
            lines.append(f"        and {told.files_damaged - FILES_SHOWN} more: --json has 1000")
        lines.append(" action: restore these from a backup, or delete them; then scrub again")
    return lines


def _member_table(told: ScrubTold) -> list[str]:
    rows: list[tuple[object, ...]] = [("ID", "CELLS", "BAD", "HEALED", "META", "LABEL", "PATH")]
    for each in told.members:
        meta, label = f"{each.metadata}", f"{each.labels}"
        rows.append((each.id, each.cells, each.bad, each.healed, meta, label, each.path))
    return table(rows, frozenset(range(6)))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
