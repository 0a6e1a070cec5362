"""How commands talk: sizes, tables, JSON, and the one place where errors become sentences.

1. A user's mistake gives one sentence and an exit code, never a traceback.
2. Text is stable enough for eyes only; scripts use --json, which carries a version and integers.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click
import msgspec

from raidfs.cli.completion import answer_shell
from raidfs.errors import RaidfsError, UsageError

JSON_VERSION = 1
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(?:i?b)?|b)?", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of "4096", "64K", "1.5GiB": units are powers of 1024, upper or lower case."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{text!r} is not a size; write for example 512M or 4GiB")
    value = float(match[1]) if "." in match[1] else int(match[1])
    shift = _SHIFTS[match[2] or ""]
    nbytes = int(value * (1 << shift))
    if nbytes <= 0:
        raise UsageError(f"the size {text!r} must be above zero")
    return nbytes


class Size(click.ParamType[int]):
    """A click parameter for sizes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See parse_size."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as error:
            return self.fail(str(error), param, ctx)


def size_text(nbytes: int | None) -> str:
    """1536 -> "1.5 KiB"."""
    if nbytes is None:
        return "unknown"
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def table(rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as lines of aligned columns; those in `right` are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        parts = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def print_json(value: Any) -> None:
    """One JSON document with `version` in front; structs that have one keep theirs."""
    plain = msgspec.to_builtins(value)
    if isinstance(plain, list):
        plain = {"items": plain}
    document = {"version": plain.pop("version", JSON_VERSION), **plain}
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def confirm(question: str, yes: bool) -> None:
    """Asks, unless told --yes; anything but a yes ends the command with nothing changed."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo("", err=True)
        agreed = False
    if not agreed:
        raise UsageError(
            "not confirmed, nothing was changed (--yes answers in advance)", errno.ECANCELED
        )


def sentence(error: BaseException) -> str:
    """What an error of the world says to a person."""
    if isinstance(error, RaidfsError):
        return str(error) or os.strerror(error.errno)
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
    return str(error)


def run_command(
    command: click.Command,
    name: str,
    arguments: list[str] | None = None,
    *,
    exit_error: int = EXIT_ERROR,
    exit_usage: int = EXIT_USAGE,
) -> NoReturn:
    """Runs a click command as a whole program and exits with its code."""
    answer_shell(name)
    arguments = sys.argv[1:] if arguments is None else arguments
    code = _guarded(
        lambda: command.main(arguments, prog_name=name, standalone_mode=False),
        name,
        "--json" in arguments,
        exit_error,
        exit_usage,
    )
    _flush()
    sys.exit(code)


def _flush() -> None:
    """A reader that closed its end early (`| head`) is no error worth a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _guarded(
    body: Callable[[], Any], name: str, as_json: bool, exit_error: int, exit_usage: int
) -> int:
    try:
        code = body()
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        error.show()
        return exit_usage
    except click.ClickException as error:
        click.echo(f"{name}: {error.format_message()}", err=True)
        return exit_error
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return exit_error
    except (RaidfsError, OSError) as error:
        said = sentence(error)
        if as_json:
            print_json({"error": said, "errno": getattr(error, "errno", None) or errno.EIO})
        click.echo(f"{name}: {said}", err=True)
        return exit_error
