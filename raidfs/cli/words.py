"""The words that stand for arguments in usage lines, and for the values of some options: what each
means, and what a shell may offer for it.

 1. Every argument of every command is made of words of this table (a test asks); so the manual
    explains them all, and new commands complete as old ones do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

import click


class Offer(Enum):
    """What there is to choose from."""

    NOTHING = auto()
    FILE = auto()
    DIRECTORY = auto()
    MOUNTPOINT = auto()  # of a mounted volume
    VOLUME = auto()  # that, or a member of any
    SNAPSHOT = auto()  # of the volume, or of the group, that was named before
    MEMBER_OF = auto()  # number or path of a member of the volume that was named before
    JOB = auto()  # of the volume that was named before
    GROUP = auto()
    MOUNT_OPTION = auto()


@dataclass(frozen=True, slots=True)
class Word:
    """`help` is a sentence for the manual."""

    help: str
    offer: Offer = Offer.NOTHING


_MEMBER = "A member: a directory, an image file or a block device."
WORDS = {
    "MOUNTPOINT": Word("The directory on which a volume is mounted.", Offer.MOUNTPOINT),
    "MOUNTPOINT-OR-MEMBER": Word(
        "A volume: the directory on which it is mounted, any one of its members, or the name of a"
        " mounted volume.",
        Offer.VOLUME,
    ),
    "MEMBER": Word(_MEMBER, Offer.FILE),
    "NAME": Word("The name of a snapshot; VOLUME@NAME names both in one word.", Offer.SNAPSHOT),
    "OLD": Word("The name of the older snapshot.", Offer.SNAPSHOT),
    "NEW": Word("The name of the newer snapshot; without it, the present.", Offer.SNAPSHOT),
    "NEW-NAME": Word("The name that it will have."),
    "BASE": Word("The name of an older snapshot, which the receiver has.", Offer.SNAPSHOT),
    "TEXT": Word("Any text, quoted as one word."),
    "GROUP": Word(
        "The name of a group of which a volume is mounted here, or the mountpoint of a volume in"
        " it.",
        Offer.GROUP,
    ),
    "TOKEN-OR-MEMBER": Word(
        "What `raidfs-ctl group invite` has printed on another host; on the same host the name of"
        " the group, or the mountpoint of a volume in it.",
        Offer.GROUP,
    ),
    "VOLUME": Word("A member of the group: its name, or its id, as the group's status shows them."),
    "CUT": Word("The number of a cut of the group, as its status shows it."),
    "VERDICT": Word("What became of the cut, as whoever resolves it has found out."),
    "PATH": Word("A path within the volume, from its root."),
    "SRC": Word("A file or directory.", Offer.FILE),
    "DST": Word("A directory, or the new name of the only source.", Offer.FILE),
    "SOURCE": Word(
        "What is read from: a file, a directory or a member; where a snapshot is meant,"
        " MEMBER@NAME.",
        Offer.FILE,
    ),
    "TARGET": Word("The new name or place, which must not exist yet.", Offer.FILE),
    "SIZE": Word("A size such as 512M, 4GiB or 8T; units are powers of 1024."),
    "PLACE": Word(
        "Where a new member is to be: an empty directory, an image file or a block device.",
        Offer.FILE,
    ),
    "DOMAIN": Word("A failure domain, by a name of your own: what fails together is in one."),
    "POLICY": Word("auto, spare or manual."),
    "JOB": Word(
        "What goes on in the background: a kind (rebuild, replace, evacuate, scrub, convert,"
        " rebalance), or one of them as `job list` shows it, such as rebuild:3.",
        Offer.JOB,
    ),
    "RATE": Word("Bytes a second, such as 50M; or none."),
    "SHELL": Word("The shell that is to complete: bash, zsh or fish."),
    "PROGRAM": Word("The program whose arguments are to be completed."),
}
# Where a word of the table means something else to one command: (command, word).
SPECIAL = {
    ("raidfs", "MOUNTPOINT"): Word("An empty directory.", Offer.DIRECTORY),
    ("raidfs", "SOURCE"): Word(
        "Any one member of the volume: a directory, an image file or a block device. MEMBER@NAME"
        " mounts that snapshot, read-only.",
        Offer.FILE,
    ),
    ("member", "MEMBER"): Word(
        "One of the volume's members: its number as status shows it, its path, or the last part of"
        " that if no other has it.",
        Offer.MEMBER_OF,
    ),
    ("member replace", "OLD"): Word(
        "The member that goes: its number as status shows it, or its path.", Offer.MEMBER_OF
    ),
    ("member replace", "NEW"): Word(
        "What takes its place: a spare, or a directory, image file or block device.", Offer.FILE
    ),
    ("snapshot create", "NAME"): Word("The name of the new snapshot."),
    ("group init", "GROUP"): Word("The name of the new group."),
    ("group snapshot", "NAME"): Word("The name of the new snapshot."),
}
# Options whose values can be offered, by name or by the word for the value.
OPTIONS = {
    "--member": Offer.FILE,
    "--to": Offer.DIRECTORY,
    "--base": Offer.SNAPSHOT,
    "--program": Offer.FILE,
    "--textfile": Offer.FILE,
    "--hooks": Offer.DIRECTORY,
    "--state": Offer.DIRECTORY,
    "OPTIONS": Offer.MOUNT_OPTION,
}


def usage_words(argument: click.Argument) -> list[tuple[str, bool]]:
    """The words of an argument's usage, each with whether it may be repeated."""
    text = argument.metavar or (argument.name or "").upper()
    found = [re.fullmatch(r"\[?([^\[\].]+)(\.\.\.)?\]?", part) for part in text.split()]
    return [(match[1], bool(match[2])) for match in found if match is not None]


def meanings(context: click.Context, name: str) -> list[tuple[str, Word | None]]:
    """Of SIZE|MEMBER, both."""
    return [(each, word_of(context, each)) for each in name.split("|")]


def word_of(context: click.Context, name: str) -> Word | None:
    """The meaning of a word in the usage of a command; None: there is none."""
    path = command_path(context)
    for size in range(len(path), 0, -1):
        special = SPECIAL.get((" ".join(path[:size]), name))
        if special is not None:
            return special
    return WORDS.get(name)


def command_path(context: click.Context) -> list[str]:
    """["member", "fail"] of raidfs-ctl member fail; ["raidfs"] of a program of one command."""
    path: list[str] = []
    at: click.Context | None = context
    while at is not None and at.parent is not None:
        path.insert(0, at.info_name or "")
        at = at.parent
    return path or [context.command.name or ""]
