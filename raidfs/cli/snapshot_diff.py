"""`raidfs-ctl snapshot diff`: what changed between two snapshots, or one and the present.

1. Each form prints as it is told: a diff of any size takes little memory.
2. No name can be taken for something else: in text, what isn't printable is written as an octal
   escape; with -z names are as they are; JSON has the bytes of names that are not UTF-8.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.output import JSON_VERSION
from raidfs.cli.service import each
from raidfs.daemon.snapshots import SnapshotDiffRequest
from raidfs.errors import UsageError
from raidfs.fs.difference import Change

SIGNS = {"created": "+", "removed": "-", "modified": "M", "renamed": "R"}
TYPES = {
    "directory": "/",
    "symlink": "@",
    "fifo": "|",
    "socket": "=",
    "character device": "c",
    "block device": "b",
}
RANGES_SHOWN = 8


class Form(Protocol):
    """How a diff is printed: begun, each change, ended."""

    def begin(self) -> None: ...
    def change(self, change: Change) -> None: ...
    def end(self) -> None: ...


def escaped(path: bytes) -> str:
    """Printable, in one line, without blanks at the ends; a backslash begins an octal escape."""
    text = path.decode(errors="surrogateescape")
    shown = []
    for at, letter in enumerate(text):
        plain = letter.isprintable() and letter != "\\"
        if plain and not (letter.isspace() and at in (0, len(text) - 1)):
            shown.append(letter)
        else:
            raw = letter.encode(errors="surrogateescape")
            shown += [f"\\{byte:03o}" for byte in raw]
    return "".join(shown)


def details(change: Change) -> Iterator[str]:
    """What of it changed, line by line."""
    if change.link:
        yield "a link: the file itself has another name, too"
    if change.attributes:
        yield f"attributes: {', '.join(change.attributes)}"
    for name, what in sorted(change.xattrs.items()):
        yield f"xattr {escaped(name)}: {what}"
    if change.ranges:
        parts = [f"{part.offset}+{part.nbytes}" for part in change.ranges[:RANGES_SHOWN]]
        more = len(change.ranges) - RANGES_SHOWN
        nbytes = sum(part.nbytes for part in change.ranges)
        tail = f" and {more} more" if more > 0 else ""
        yield f"content: {nbytes} bytes, at {', '.join(parts)}{tail}"


class Text:
    """A sign, a tab, and the path, with a sign of its type behind it."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose

    def begin(self) -> None:
        """There is no head."""

    def change(self, change: Change) -> None:
        """One line, or more if verbose."""
        kind = TYPES.get(change.kind, "") if change.path != b"/" else ""
        old = f"{escaped(change.old_path)}{kind} -> " if change.old_path is not None else ""
        click.echo(f"{SIGNS[change.what]}\t{old}{escaped(change.path)}{kind}")
        for line in details(change) if self.verbose else ():
            click.echo(f"\t    {line}")

    def end(self) -> None:
        """There is no foot."""


class Zeros:
    """Sign and path, a zero byte behind each; of what was renamed the old path comes first."""

    def begin(self) -> None:
        """There is no head."""

    def change(self, change: Change) -> None:
        """Two fields, or three."""
        fields = [SIGNS[change.what].encode()]
        fields += [change.old_path] if change.old_path is not None else []
        click.echo(b"".join(field + b"\0" for field in (*fields, change.path)), nl=False)

    def end(self) -> None:
        """There is no foot."""


def document(change: Change) -> dict[str, Any]:
    """For scripts. Where a name is not UTF-8, it comes a second time in base64."""
    made: dict[str, Any] = {"what": change.what}
    for key, path in (("path", change.path), ("old_path", change.old_path)):
        if path is not None:
            made |= _named(key, path)
    made |= {"ino": change.ino, "kind": change.kind, "link": change.link, "size": change.size}
    made["attributes"] = change.attributes
    made["xattrs"] = [
        {**_named("name", name), "what": what} for name, what in sorted(change.xattrs.items())
    ]
    made["ranges"] = change.ranges
    return made


def _named(key: str, name: bytes) -> dict[str, str]:
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        return {key: name.decode(errors="replace"),
                f"{key}_base64": base64.b64encode(name).decode()}  # fmt: skip


class Json:
    """One document, a change on each line."""

    def __init__(self, old: str, new: str) -> None:
        self.ends = {"version": JSON_VERSION, "from": old, "to": new or None}
        self.first = True

    def begin(self) -> None:
        """All before the changes."""
        head = msgspec.json.encode(self.ends).decode()
        click.echo(f'{head[:-1]},"changes":[', nl=False)

    def change(self, change: Change) -> None:
        """One line."""
        comma = "\n" if self.first else ",\n"
        self.first = False
        click.echo(comma + msgspec.json.encode(document(change)).decode(), nl=False)

    def end(self) -> None:
        """All behind them."""
        click.echo("]}")


class Joined:
    """Puts together again what came in parts, as it had too many ranges."""

    def __init__(self, consume: Callable[[Change], None]) -> None:
        self._consume = consume
        self._last: Change | None = None

    def add(self, changes: list[Change]) -> None:
        """The next of them."""
        for change in changes:
            last = self._last
            if last is not None and msgspec.structs.replace(last, ranges=change.ranges) == change:
                ranges = last.ranges + change.ranges
                self._last = msgspec.structs.replace(last, ranges=ranges)
                continue
            self.flush()
            self._last = change

    def flush(self) -> None:
        """There is no more."""
        if self._last is not None:
            self._consume(self._last)
        self._last = None


@click.command("diff")
@click.argument("words", metavar="MOUNTPOINT OLD [NEW]", nargs=-1, required=True)
@click.option("-v", "--verbose", is_flag=True, help="Tell also what changed of each.")
@click.option("-z", "zeros", is_flag=True, help="Names as they are, a zero byte behind each field.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def diff_command(words: tuple[str, ...], verbose: bool, zeros: bool, as_json: bool) -> int:
    """Tell what changed from one snapshot to another, or to the present.

    \b
    +  created    -  removed    M  modified    R  renamed: OLD -> NEW

    Found in the metadata alone, in a time that follows what changed. -v and JSON tell which
    attributes, extended attributes and parts of the content (OFFSET+BYTES, whole pages) changed.

    \b
    Examples:
      raidfs-ctl snapshot diff /mnt/tank monday tuesday
      raidfs-ctl snapshot diff --json /mnt/tank@monday | jq -r '.changes[].path'
    """
    if zeros and as_json:
        raise UsageError("-z and --json are two forms; choose one")
    named = target.snapshots(words, most=2)
    old, new = (*named.names, "")[:2]
    form: Form = Json(old, new) if as_json else Zeros() if zeros else Text(verbose)
    begun = False

    def begin_once() -> None:
        nonlocal begun
        if not begun:
            form.begin()
        begun = True

    def consume(changes: list[Change]) -> None:
        begin_once()  # only when it is known that there is such a snapshot
        joined.add(changes)

    joined = Joined(form.change)
    each(named.volume, SnapshotDiffRequest(old=old, new=new), list[Change], consume)
    begin_once()
    joined.flush()
    form.end()
    return 0
