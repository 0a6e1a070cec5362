"""`raidfs-ctl events`: what happened to a volume, and what happens.

1. A volume that is not mounted answers as a mounted one, and nothing is written to its members.
2. With --json, one document; with --follow too, one on each line, as soon as the event is there.
"""

from __future__ import annotations

import datetime
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.output import JSON_VERSION, print_json
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon.events import EventsPart, EventsRequest, EventTold, told, wanted
from raidfs.errors import UsageError
from raidfs.raid.assembly import Assembly
from raidfs.store.events import KINDS, Event, family, read_log
from raidfs.store.meta import Meta
from raidfs.store.mirror import Mirror

FOLLOWED_LAST = 10
_AGO = re.compile(r"(\d+)\s*([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_time(text: str, now_s: float) -> int:
    """Nanoseconds since 1970 of "2h" (ago), "today", "2026-05-01", "2026-05-01 14:30",
    "@SECONDS"; UsageError."""
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        return int((now_s - int(ago[1]) * _UNITS_S[ago[2]]) * 1e9)
    if text in ("today", "yesterday"):
        midnight = datetime.datetime.fromtimestamp(now_s).replace(
            hour=0, minute=0, second=0, microsecond=0
        )
        day = midnight - datetime.timedelta(days=text == "yesterday")
        return int(day.timestamp() * 1e9)
    try:
        if text.startswith("@"):
            return int(float(text[1:]) * 1e9)
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no time; write 2h, 3d, today, yesterday, 2026-05-01 or '2026-05-01 14:30'"
        ) from None


def event_line(event: EventTold) -> str:
    """For eyes. What comes from outside of raidfs (paths) is told without control characters."""
    mark = {"info": " ", "warning": "!", "alert": "*"}.get(event.severity, " ")
    of = f"member {event.member} {event.path}: " if event.member >= 0 else ""
    line = f"{time_text(event.time_ns)} {mark} {event.kind:<18} {of}{event.text}"
    return printable(line).rstrip()


def printable(text: str) -> str:
    """The same without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def event_document(event: EventTold) -> dict[str, Any]:
    """As JSON has it."""
    return {"version": JSON_VERSION, **msgspec.to_builtins(event)}


def _of_daemon(volume: target.Mounted, request: EventsRequest) -> Iterator[EventTold]:
    with volume.client() as client:
        for raw in client.answers(request):
            yield from msgspec.json.decode(raw, type=EventsPart).events


def _of_members(volume: target.Unmounted, request: EventsRequest) -> list[EventTold]:
    """Promise 1."""
    assembly = Assembly.open(volume.path, degraded=True, read_only=True)
    try:
        mirror = Mirror(assembly.members, read_only=True)
        try:
            meta = Meta(mirror)
            try:
                rows: Iterable[Event] = [row for row in read_log(meta) if wanted(row, request)]
            finally:
                meta.close()
        finally:
            mirror.close()
        if request.last:
            rows = deque(rows, maxlen=request.last)
        return [told(row, assembly.label) for row in rows]
    finally:
        assembly.close()


def _check_kinds(kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        if family(kind) not in KINDS:
            raise UsageError(f"there are no events {kind!r}; the kinds are: {', '.join(KINDS)}")


@click.command("events")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("-f", "--follow", is_flag=True, help="Go on, and tell each event as it happens.")
@click.option(
    "-n", "last", type=click.IntRange(1), metavar="N", help="Only the last N (-f: at first 10)."
)
@click.option("--since", metavar="TIME", help="Not those before: 2h, today, '2026-05-01 14:30'.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only these; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="JSON; with -f, one document on each line.")
def events_command(
    where: str,
    follow: bool,
    last: int | None,
    since: str | None,
    kinds: tuple[str, ...],
    as_json: bool,
) -> int:
    """Tell what happened to a volume: members lost and back, errors found and healed, jobs, room.

    The newest 10,000 events are kept in the volume itself, so its members are enough to read them.
    Names are those of mdadm --monitor where it has one. "!" marks warnings, "*" alerts. To be told
    by mail or to run a program, see raidfs-ctl monitor.

    \b
    Examples:
      raidfs-ctl events --since today /mnt/tank
      raidfs-ctl events --kind Fail --kind DegradedArray /srv/disk1
      raidfs-ctl events -f --json /mnt/tank | jq .kind
    """
    _check_kinds(kinds)
    request = EventsRequest(
        since_ns=parse_time(since, time.time()) if since else 0,
        last=last or (FOLLOWED_LAST if follow else 0),
        kinds=kinds,
        follow=follow,
    )
    if follow:
        volume = target.must_be_mounted(where, "following its events")
        for event in _of_daemon(volume, request):
            line = event_line(event)
            if as_json:
                line = msgspec.json.encode(event_document(event)).decode()
            click.echo(line)
        return 0
    found = target.find(where)
    if isinstance(found, target.Mounted):
        events = list(_of_daemon(found, request))
        name = found.entry.volume_name
    else:
        events = _of_members(found, request)
        name = found.label.volume_name
    if as_json:
        print_json({"volume": name, "events": events})
        return 0
    for event in events:
        click.echo(event_line(event))
    if not events:
        click.echo(f"nothing is known to have happened to volume {name}", err=True)
    return 0
