"""`raidfs-ctl snapshot list` and `show`: what there is, for eyes and for scripts.

1. Columns have the names of the fields in JSON where these have no unit in their name, and the same
   values; --exact gives those as JSON has them, times in seconds.
2. With --scripts a line is a snapshot and a tab is between columns; no value has either in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import click

from raidfs.cli import target
from raidfs.cli.output import print_json, size_text, table
from raidfs.cli.service import ask, each
from raidfs.daemon import registry
from raidfs.daemon.snapshots import (
    SnapshotListRequest,
    SnapshotSpace,
    SnapshotSpaceRequest,
    SnapshotTold,
)
from raidfs.errors import UsageError

DEFAULT_COLUMNS = "name,used,refer,creation,holds,note"
SECOND_NS = 10**9
UNKNOWN = "?"
PATIENCE_MS = 2000  # for what nobody asked for by its name


@dataclass(frozen=True, slots=True)
class Column:
    """`value`: exact; `text`: for eyes; `order`: what is sorted by, if not the value."""

    value: Callable[[SnapshotTold], str | int]
    text: Callable[[SnapshotTold], str]
    right: bool = False
    order: Callable[[SnapshotTold], int] | None = None


def time_text(time_ns: int) -> str:
    """In the machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // SECOND_NS))


def _one_line(text: str) -> str:
    """Control characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _plain(value: Callable[[SnapshotTold], str | int], right: bool = False) -> Column:
    return Column(value, lambda told: _one_line(str(value(told))), right)


def _size(value: Callable[[SnapshotTold], int | None]) -> Column:
    def text(told: SnapshotTold) -> str:
        nbytes = value(told)
        return UNKNOWN if nbytes is None else size_text(nbytes)

    return Column(lambda told: value(told) or 0, text, True)


COLUMNS = {
    "name": _plain(lambda told: told.name),
    "volume": _plain(lambda told: told.volume),
    "full": _plain(lambda told: f"{told.volume}@{told.name}"),
    "path": _plain(lambda told: told.path or "-"),
    "id": _plain(lambda told: told.id, True),
    "guid": _plain(lambda told: told.guid),
    "epoch": _plain(lambda told: told.epoch, True),
    "creation": Column(
        lambda told: told.created_ns // SECOND_NS,
        lambda told: time_text(told.created_ns),
        order=lambda told: told.created_ns,
    ),
    "used": _size(lambda told: told.used_bytes),
    "refer": _size(lambda told: told.refer_bytes),
    "inodes": _plain(lambda told: told.inodes, True),
    "group": _plain(lambda told: told.group_id or "-"),
    "holds": _plain(lambda told: ",".join(told.holds) or "-"),
    "note": _plain(lambda told: told.note or "-"),
}


def _columns(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"there is no column {name!r}; there are {', '.join(COLUMNS)}")
    if not names:
        raise UsageError(f"name at least one column of {', '.join(COLUMNS)}")
    return names


def sort(told: list[SnapshotTold], keys: Sequence[str]) -> None:
    """By the first key, among equals by the second, ...; -KEY: from the top down."""
    names = _columns(",".join(key.lstrip("-") for key in keys)) if keys else []
    for key, name in reversed(list(zip(keys, names, strict=True))):
        column = COLUMNS[name]
        told.sort(key=column.order or column.value, reverse=key.startswith("-"))


def list_lines(
    told: Iterable[SnapshotTold], names: Sequence[str], exact: bool, scripts: bool
) -> list[str]:
    """The table, or with `scripts` lines of values with tabs between."""
    columns = [COLUMNS[name] for name in names]
    rows = [
        [_one_line(str(column.value(one))) if exact else column.text(one) for column in columns]
        for one in told
    ]
    if scripts:
        return ["\t".join(row) for row in rows]
    right = frozenset(at for at, column in enumerate(columns) if column.right)
    return table([[name.upper() for name in names], *rows], right)


def _volumes(words: Sequence[str]) -> list[tuple[target.Mounted | target.Unmounted, str | None]]:
    """All that are mounted, or those that are named, each perhaps with a snapshot."""
    if not words:
        return [(target.Mounted(entry, socket), None) for entry, socket in registry.entries()]
    pairs = [target.split(word) for word in words]
    return [(target.find(where), name) for where, name in pairs]


def gather(words: Sequence[str], used: bool, patience_ms: int = 0) -> list[SnapshotTold]:
    """What those volumes tell."""
    told: list[SnapshotTold] = []
    for volume, name in _volumes(words):
        names = () if name is None else (target.check_text(name),)
        request = SnapshotListRequest(names=names, used=used, patience_ms=patience_ms)
        each(volume, request, list[SnapshotTold], told.extend)
    return told


@click.command("list")
@click.argument("words", metavar="[MOUNTPOINT-OR-MEMBER...]", nargs=-1)
@click.option("-o", "--columns", default=None, help=f"Of {', '.join(COLUMNS)}.")
@click.option("-s", "--sort", "keys", multiple=True, help="Column to sort by; -COLUMN: backwards.")
@click.option("-p", "--exact", is_flag=True, help="Bytes, and seconds since 1970.")
@click.option("-H", "--scripts", is_flag=True, help="No header, tabs between columns.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def list_command(
    words: tuple[str, ...],
    columns: str | None,
    keys: tuple[str, ...],
    exact: bool,
    scripts: bool,
    as_json: bool,
) -> int:
    """List snapshots: of the volumes named, or of all that are mounted.

    The oldest comes first, unless --sort says otherwise. USED is what deleting that one snapshot
    would free; what several hold together is freed with the last of them (`delete --dry-run` tells
    that of any set, `show` of all). REFER is the content that the snapshot shows. Of very many
    snapshots the first list leaves some of USED open, unless it is for scripts or asked for by -o.

    \b
    Examples:
      raidfs-ctl snapshot list /mnt/tank
      raidfs-ctl snapshot list -H -o name -s -used /mnt/tank | head -1
    """
    several = len(words) != 1
    names = _columns(columns or ("volume," if several else "") + DEFAULT_COLUMNS)
    sort([], keys)  # refuses what it doesn't know before anything is asked
    by_name = "used" in (names if columns else ()) or "used" in (key.lstrip("-") for key in keys)
    patience_ms = 0 if by_name or as_json or exact or scripts else PATIENCE_MS
    told = gather(words, used=by_name or not columns, patience_ms=patience_ms)
    sort(told, keys)
    if as_json:
        print_json({"snapshots": told})
        return 0
    if told or scripts:
        lines = list_lines(told, names, exact, scripts)
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
        if "used" in names and any(one.used_bytes is None for one in told):
            click.echo(f"{UNKNOWN}: takes longer to find out; `-o name,used` does so", err=True)
    else:
        click.echo("no snapshots")
    return 0


def _show_lines(told: SnapshotTold) -> list[str]:
    facts = [
        ("snapshot", f"{told.volume}@{told.name}"),
        ("created", f"{time_text(told.created_ns)} (epoch {told.epoch})"),
        ("refer", f"{size_text(told.refer_bytes)} ({told.refer_bytes} bytes)"),
        ("used", f"{size_text(told.used_bytes)} ({told.used_bytes} bytes), freed by deleting it"),
        ("inodes", str(told.inodes)),
        ("holds", ", ".join(told.holds) or "none"),
        ("path", told.path or "the volume is not mounted"),
        ("guid", told.guid),
        ("id", str(told.id)),
        ("group", told.group_id or "of this volume alone"),
    ]
    if told.note:
        facts.insert(1, ("note", _one_line(told.note)))
    return [f"{name:>9}: {fact}" for name, fact in facts]


@click.command("show")
@click.argument("words", metavar="MOUNTPOINT [NAME...]", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def show_command(words: tuple[str, ...], as_json: bool) -> int:
    """Tell all about snapshots; without a NAME, what those of the volume hold together.

    \b
    Examples:
      raidfs-ctl snapshot show /mnt/tank@monday
      raidfs-ctl snapshot show /mnt/tank
    """
    named = target.snapshots(words, least=0, most=None)
    if not named.names:
        space = ask(named.volume, SnapshotSpaceRequest(), SnapshotSpace)
        if as_json:
            print_json(space)
        else:
            nbytes = space.together_bytes
            click.echo(f"   volume: {space.volume}\nsnapshots: {space.snapshots}")
            click.echo(f" together: {size_text(nbytes)} ({nbytes} bytes), freed by deleting all")
        return 0
    told: list[SnapshotTold] = []
    request = SnapshotListRequest(names=named.names, used=True)
    each(named.volume, request, list[SnapshotTold], told.extend)
    if as_json:
        print_json({"snapshots": told})
    else:
        click.echo("\n\n".join("\n".join(_show_lines(one)) for one in told))
    return 0
