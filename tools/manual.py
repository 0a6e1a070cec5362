"""The manual pages, made of what --help says: `make man`, or tools/manual.py DIRECTORY,
which is then one for MANPATH.

One page for each program, and one for each group of verbs of raidfs-ctl. A command that is added,
or an option, is in the manual without further ado. The macros are those of man(7) alone, which
groff and mandoc both read. The date is that of SOURCE_DATE_EPOCH, if it is set.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import inspect
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from raidfs.cli.completion import command_of
from raidfs.cli.words import meanings, usage_words

SECTION = 8
PROGRAMS = {
    "raidfs": "mount a raidfs volume",
    "mkfs.raidfs": "make a raidfs volume of directories, image files and block devices",
    "fsck.raidfs": "check an unmounted raidfs volume",
    "raidfs-ctl": "make, look at and take care of raidfs volumes",
}
FILES = {
    "raidfs": [
        ("/run/raidfs/", "What is mounted where, and the sockets of the daemons of root."),
        ("$XDG_RUNTIME_DIR/raidfs/", "The same for everybody else."),
        ("/etc/raidfs/NAME.conf", "For raidfs@NAME.service, which mounts volume NAME."),
    ],
}
ENVIRONMENT = {
    "raidfs": [("RAIDFS_RUNTIME_DIR", "Another directory in place of /run/raidfs.")],
    "raidfs-ctl": [
        ("RAIDFS_RUNTIME_DIR", "Where to look for daemons, in place of /run/raidfs."),
        ("RAIDFS_COMPLETION_SECONDS", "How long a completion in a shell may take; 1 if not set."),
    ],
}


@dataclass(frozen=True)
class Page:
    name: str
    text: str


# -- roff -----------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """As running text. A hyphen stays one that can be typed."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("^", r"\(ha").replace("~", r"\(ti")
    text = text.replace("`", r"\(ga").replace('"', r"\(dq").replace("'", r"\(aq")
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in text.split("\n"))


def quoted(text: str) -> str:
    """As one argument of a macro."""
    return f'"{escaped(text)}"'


def heading(text: str, level: str = "SH") -> list[str]:
    return [f".{level} {quoted(text)}"]


def verbatim(lines: list[str]) -> list[str]:
    return [".PP", ".in +4", ".nf", *(escaped(line) or r"\&" for line in lines), ".fi", ".in"]


def described(text: str | None) -> list[str]:
    """A help text: paragraphs, of which those after \\b keep their lines."""
    out: list[str] = []
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or "").partition("\f")[0])
    for paragraph in filter(None, paragraphs):
        lines = paragraph.split("\n")
        if lines[0] != "\b":
            out += [".PP", escaped(" ".join(line.strip() for line in lines))]
            continue
        lines = lines[1:]
        while lines:
            if not lines[0].startswith(" "):
                out += [".PP", escaped(lines.pop(0))]
                continue
            block = []
            while lines and lines[0].startswith(" "):
                block.append(lines.pop(0))
            out += verbatim(inspect.cleandoc("\n".join(["", *block])).split("\n"))
    return out


# -- commands -------------------------------------------------------------------------------------


def tagged(rows: list[tuple[str, str]]) -> list[str]:
    out = []
    for tag, text in rows:
        out += [".TP", rf"\fB{escaped(tag)}\fR", escaped(text)]
    return out


def arguments_of(context: click.Context) -> list[tuple[str, str]]:
    """The words of the usage and what they mean."""
    rows: dict[str, str] = {}
    for parameter in context.command.params:
        if not isinstance(parameter, click.Argument):
            continue
        own = getattr(parameter, "help", None)
        found = [pair for name, _ in usage_words(parameter) for pair in meanings(context, name)]
        for name, word in found:
            text = own or (word.help if word is not None else "")
            if isinstance(parameter.type, click.Choice) and own is None:
                text += f" One of: {', '.join(map(str, parameter.type.choices))}."
            rows[name] = text
    return list(rows.items())


def options_of(context: click.Context) -> list[tuple[str, str]]:
    """All that are not hidden, with what they do."""
    rows = []
    for parameter in context.command.get_params(context):
        record = None
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(context)
        if record is not None:
            rows.append((record[0], " ".join(record[1].split())))
    return rows


def command_text(context: click.Context, level: str) -> list[str]:
    """What it does, its arguments, its options. `level`: the macro for the headings of these."""
    command = context.command
    out = described(command.help)
    for title, rows in (
        ("Arguments", arguments_of(context)),
        ("Options", options_of(context)),
    ):
        if rows:
            out += heading(title.upper() if level == "SH" else title, level) if level else []
            out += tagged(rows)
    return out + described(command.epilog)


def usage(context: click.Context) -> list[str]:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return [".PP", rf"\fB{escaped(context.command_path)}\fR {escaped(pieces)}"]


def subcommands(context: click.Context) -> list[click.Context]:
    command = context.command
    if not isinstance(command, click.Group):
        return []
    found = []
    for name in command.list_commands(context):
        sub = command.get_command(context, name)
        if sub is not None and not sub.hidden:
            found.append(click.Context(sub, info_name=name, parent=context))
    return found


def first_sentence(command: click.Command) -> str:
    text = " ".join(inspect.cleandoc(command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)])[.:;] ", text + " ")[0].rstrip(". ")


# -- pages ----------------------------------------------------------------------------------------


def front(name: str, summary: str) -> list[str]:
    version = importlib.metadata.version("raidfs")
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch else now
    title = f'.TH {quoted(name.upper())} {SECTION} "{day:%Y-%m-%d}" {quoted(f"raidfs {version}")}'
    return [
        r".\" Made by tools/manual.py of the help texts; change those.",
        title + ' "raidfs"',
        *heading("NAME"),
        rf"{escaped(name)} \- {escaped(summary[:1].lower() + summary[1:])}",
        *heading("SYNOPSIS"),
    ]


def see_also(name: str, names: list[str]) -> list[str]:
    others = [rf"\fB{escaped(each)}\fR({SECTION})" for each in names if each != name]
    return [*heading("SEE ALSO"), ",\n".join(others)]


def page_name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def page_of(context: click.Context, names: list[str]) -> Page:
    """A program, or a group of verbs; verbs that are groups have pages of their own."""
    name = page_name(context)
    subs = subcommands(context)
    singles = [sub for sub in subs if not subcommands(sub)]
    groups = [sub for sub in subs if subcommands(sub)]
    lines = front(name, PROGRAMS.get(name) or first_sentence(context.command))
    for each in [context] if not subs else singles:
        lines += usage(each)
    for each in groups:
        verbs = "|".join(sub.info_name or "" for sub in subcommands(each))
        lines += [".PP", rf"\fB{escaped(each.command_path)}\fR {escaped(verbs)} ..."]
    lines += [*heading("DESCRIPTION"), *command_text(context, "SH")]
    if singles:
        lines += heading("COMMANDS")
    for each in singles:
        pieces = " ".join(each.command.collect_usage_pieces(each))
        lines += [*heading(f"{each.command_path} {pieces}", "SS"), *command_text(each, "")]
    if groups:
        lines += heading("MORE COMMANDS")
        lines += tagged(
            [(f"{page_name(each)}({SECTION})", first_sentence(each.command)) for each in groups]
        )
    for title, table in (("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT)):
        if name in table:
            lines += [*heading(title), *tagged(table[name])]
    return Page(name, "\n".join([*lines, *see_also(name, names), ""]))


def with_pages(context: click.Context) -> list[click.Context]:
    """It, and the groups of commands below it, however deep."""
    groups = [sub for sub in subcommands(context) if subcommands(sub)]
    return [context, *(each for group in groups for each in with_pages(group))]


def pages() -> list[Page]:
    """All, in the order in which one would read them."""
    roots = [click.Context(command_of(name), info_name=name) for name in PROGRAMS]
    contexts = []
    for root in roots:
        contexts += with_pages(root)
    names = [*(page_name(context) for context in contexts), "mount"]
    made = [page_of(context, names) for context in contexts]
    return [*made, Page("mount.raidfs", f".so man{SECTION}/raidfs.{SECTION}\n")]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: tools/manual.py DIRECTORY")
    directory = Path(sys.argv[1], f"man{SECTION}")  # as MANPATH has it
    directory.mkdir(parents=True, exist_ok=True)
    for page in pages():
        (directory / f"{page.name}.{SECTION}").write_text(page.text)


if __name__ == "__main__":
    main()
