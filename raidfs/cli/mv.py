"""`raidfs-ctl mv`: files and directories from one volume of a group to another, each exactly once.

1. What is told as moved is at the target, durably; what is not is where it was, untouched, or (when
   a daemon ended meanwhile) on its way: then the text says so, and it arrives by itself.
2. Nothing is ever overwritten.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.group_target import status_of
from raidfs.cli.output import EXIT_ERROR, print_json, sentence, size_text
from raidfs.daemon import registry
from raidfs.daemon.control import ControlError
from raidfs.daemon.group_requests import MoveCheckRequest, MoveProgress, MoveRequest
from raidfs.errors import RaidfsError, UsageError

EXIT_ON_THE_WAY = 3
LOST = (errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET)


@dataclass(frozen=True, slots=True)
class Where:
    """A path on a mounted volume, by names from its root."""

    volume: target.Mounted
    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A directory of a volume of the group, which may be mounted on another host: the volume's name
    or id, and names from its root."""

    volume: str
    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say."""

    dry_run: bool
    wait: bool
    shows_progress: bool


class Moved(msgspec.Struct, frozen=True):
    """What became of one source. `state`: moved, would move, renamed, would rename, failed, on its
    way."""

    source: str
    target: str
    state: str
    bytes: int = 0
    files: int = 0
    seconds: float = 0.0
    error: str = ""


def locate(path: str) -> Where:
    """UsageError unless it is on a mounted volume. A last name that is a symbolic link is that."""
    above, name = os.path.split(os.path.abspath(path))
    full = os.path.join(os.path.realpath(above), name) if name else os.path.realpath(path)
    at, names = full, list[bytes]()
    while not os.path.ismount(at):
        at, last = os.path.split(at)
        names.insert(0, os.fsencode(last))
    return Where(target.must_be_mounted(at, "mv"), tuple(names))


def elsewhere(path: str) -> Elsewhere | None:
    """What VOLUME:/DIRECTORY means. None: it is no such thing."""
    volume, colon, directory = path.partition(":")
    if not colon or "/" in volume or not directory.startswith("/") or os.path.lexists(path):
        return None
    return Elsewhere(volume, tuple(os.fsencode(name) for name in directory.split("/") if name))


@click.command("mv")
@click.argument("paths", metavar="SRC... DST", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done, refusals included.")
@click.option("--wait", is_flag=True, help="Where the target has no room, wait for some.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def mv_command(
    paths: tuple[str, ...], dry_run: bool, wait: bool, quiet: bool, as_json: bool
) -> int:
    """Move files and whole directories between mounted volumes of one group.

    Each is at every moment in one volume, or on its way between them, whatever crashes; every
    snapshot of the group holds it exactly once. Content is copied first, while the source stays as
    it is; if the source is changed meanwhile that begins anew. A file that is open isn't moved, and
    nothing is overwritten. Interrupted (Ctrl-C), it stays where it was. Within one volume it is a
    rename. A directory moves as one piece, of at most 50000 files; of a larger one move the parts.

    DST can be VOLUME:/DIRECTORY, too, for a volume of the group that is mounted on another host;
    --dry-run then can't tell what that volume would refuse.

    \b
    Exit codes:
      0  all are moved (or would be)
      1  some are not, and stayed where they were
      3  a daemon ended meanwhile; the move goes on when it is back: raidfs-ctl group wait

    \b
    Examples:
      raidfs-ctl mv /mnt/orders/2023 /mnt/archive/
      raidfs-ctl mv --dry-run /mnt/a/x /mnt/a/y /mnt/b
      raidfs-ctl mv /mnt/orders/2023 archive:/years
    """
    if len(paths) < 2:
        raise click.UsageError("name what is to be moved, and where to")
    *sources, to = paths
    there = elsewhere(to)
    into = there is not None or os.path.isdir(to)
    if not into and (len(sources) > 1 or to.endswith("/")):
        raise UsageError(f"{to} is no directory", errno.ENOTDIR)
    asked = Asked(dry_run, wait, not quiet and not as_json and os.isatty(2))
    done = [_one(source, there or to, into, asked) for source in sources]
    if as_json:
        print_json({"moves": done})
    else:
        for one in done:
            _tell(one)
    states = {one.state for one in done}
    return EXIT_ON_THE_WAY if "on its way" in states else EXIT_ERROR if "failed" in states else 0


def _tell(one: Moved) -> None:
    if one.error:
        click.echo(f"raidfs-ctl mv: {one.source}: {one.error}", err=True)
    else:
        figures = f"{one.files} files, {size_text(one.bytes)}" if one.files else "a rename"
        click.echo(f"{one.state} {one.source} -> {one.target} ({figures})")


def _one(source: str, to: str | Elsewhere, into: bool, asked: Asked) -> Moved:
    name = os.path.basename(source.rstrip("/"))
    if isinstance(to, Elsewhere):
        place = f"{to.volume}:/" + os.fsdecode(b"/".join((*to.names, os.fsencode(name))))
    else:
        place = os.path.join(to, name) if into else to
    told = (_printable(source), _printable(place))
    try:
        if not name or name in (".", ".."):
            raise UsageError("the root of a volume can't be moved")
        here = locate(source.rstrip("/"))
        os.lstat(source)
        if isinstance(to, Elsewhere):
            names = (*to.names, os.fsencode(name))
            return _moved(here, member(here.volume, to.volume), names, place, told, asked)
        there = locate(place)
        if here.volume.entry.volume_id == there.volume.entry.volume_id:
            return _renamed(source.rstrip("/"), place, told, asked)
        return _moved(here, there.volume.entry.volume_id, there.names, place, told, asked)
    except ControlError as error:
        lost = error.errno in LOST and not asked.dry_run
        if lost:
            return Moved(*told, "on its way", error=f"{error}; the move goes on by itself")
        return Moved(*told, "failed", error=str(error))
    except (RaidfsError, OSError) as error:
        return Moved(*told, "failed", error=sentence(error))


def _renamed(source: str, place: str, told: tuple[str, str], asked: Asked) -> Moved:
    if os.path.lexists(place):
        raise UsageError(f"there is a {os.path.basename(place)!r} already", errno.EEXIST)
    if asked.dry_run:
        return Moved(*told, "would rename")
    os.rename(source, place)
    return Moved(*told, "renamed")


def member(volume: target.Mounted, called: str) -> str:
    """The id of the volume of that name in the same group. UsageError."""
    status = status_of(volume)
    found = [one for one in status.members if called in (one.name, one.volume)]
    if not found or found[0].me:
        names = ", ".join(one.name for one in status.members if not one.me) or "none"
        raise UsageError(f"{called} is no other volume of the group; these are: {names}")
    if len(found) > 1:
        ids = ", ".join(one.volume for one in found)
        raise UsageError(f"several volumes are called {called}: say which by its id ({ids})")
    return found[0].volume


def _moved(
    here: Where,
    there: str,
    names: tuple[bytes, ...],
    place: str,
    told: tuple[str, str],
    asked: Asked,
) -> Moved:
    """`there`: the target's id; `names`: from its root."""
    if not names:
        raise UsageError("the root of a volume can't be replaced")
    *above, name = names
    request = MoveRequest(
        source=here.names,
        target=there,
        place=tuple(above),
        name=name,
        wait=asked.wait,
        dry_run=asked.dry_run,
    )
    last = MoveProgress("", 0, 0, 0, 0.0)
    try:
        with here.volume.client() as client:
            for raw in client.answers(request):
                last = msgspec.json.decode(raw, type=MoveProgress)
                if asked.shows_progress:
                    click.echo("\r\033[K" + progress_text(last), nl=False, err=True)
    finally:
        if asked.shows_progress:
            click.echo("\r\033[K", nl=False, err=True)
    mounted = registry.find_volume(there) if asked.dry_run else None
    if mounted is not None:
        check = MoveCheckRequest(
            place=tuple(above), name=name, size_bytes=last.total, wait=asked.wait
        )
        with target.Mounted(*mounted).client() as client:
            client.ask(check)
    if last.name and last.name != name:
        place = os.path.join(os.path.dirname(place), os.fsdecode(last.name))
    seconds = round(last.seconds, 3)
    return Moved(told[0], _printable(place), last.state, last.total, last.files, seconds)


def progress_text(told: MoveProgress) -> str:
    """One line: how much, how fast, how long yet."""
    text = f"{told.state}: {size_text(told.done)} of {size_text(told.total)}"
    if told.seconds > 0 and told.done:
        rate = told.done / told.seconds
        left = max(0, told.total - told.done) / rate
        text += f", {size_text(int(rate))}/s, {left:.0f} s left"
    return text


def _printable(path: str) -> str:
    """What can be printed, and put into JSON, of any name."""
    return os.fsencode(path).decode(errors="replace")
