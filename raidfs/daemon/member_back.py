"""A member that was lost is back: is it that one, and may it be believed at all?

1. Refused, with a sentence that says what was found and what to do: what belongs to another
   volume; another member of this one; one that went on by itself in another line (the other half
   of a mirror, say); one of which there are two; one whose label can't be told to be of our line.
2. Whether what it holds is as new as it was when it was lost, Membership.back finds out, from its
   metadata. If not it is taken back like an empty one.
3. Nothing is written here; what is opened is locked, and its label was read under the lock.
"""

from __future__ import annotations

import errno
import os

from raidfs.errors import LabelMissing, MemberError, RaidfsError, UsageError
from raidfs.raid.decision import seen_as
from raidfs.raid.finding import find_members
from raidfs.raid.label import Label, MemberEntry, read_labels
from raidfs.raid.member import Member
from raidfs.raid.places import identity, open_member, peek


class NotBelieved(UsageError):
    """It is there, and is not what it should be."""

    errno = errno.ESTALE


def open_back(label: Label, entry: MemberEntry, source: str, path: str, direct: bool) -> Member:
    """The member of that line, opened and locked. `source`: a member in use; `path`: where it is to
    be, or empty: where it is found. Blocks. NotBelieved, MemberError, MemberBusy, LabelMissing."""
    place = path or _found(label, entry, source)
    judge(label, entry, place, _look(entry, place))
    if path:
        _refuse_second(label, entry, path)
    member = open_member(place, lock=True, direct=direct)
    try:
        judge(label, entry, place, read_labels(member))
    except BaseException:
        member.close()
        raise
    return member


def _look(entry: MemberEntry, place: str) -> Label:
    """Where it says that it isn't there, what to do is said, too."""
    try:
        return peek(place)
    except LabelMissing:
        raise LabelMissing(
            f"{place} has no label of raidfs, so it isn't member {entry.id} any more; to use it in"
            f" that place: raidfs-ctl member replace MOUNTPOINT {entry.id} {place}"
        ) from None


def _found(label: Label, entry: MemberEntry, source: str) -> str:
    """Where a place with its number is: as its line says, beside others, or another device."""
    found = find_members(source)
    if entry.id in found.paths:
        return found.paths[entry.id]
    if os.path.lexists(entry.path):
        judge(label, entry, entry.path, _look(entry, entry.path))  # says what is there instead
    reason = found.problems.get(entry.id, "")
    told = f" ({reason})" if reason and entry.path not in reason else ""
    raise MemberError(
        f"member {entry.id} is not found at {entry.path}{told}; plug it in, or say where it is:"
        f" raidfs-ctl member online MOUNTPOINT {entry.id} --path PATH",
        entry.path,
        errno.ENOENT,
    )


def judge(label: Label, entry: MemberEntry, place: str, found: Label) -> None:
    """NotBelieved by promise 1. `label`: the newest, in use."""
    command = f"raidfs-ctl member replace --force MOUNTPOINT {entry.id} {place}"
    wipe = f"to give up what it holds: {command}"
    if found.volume_id != label.volume_id:
        raise NotBelieved(f"{place} belongs to another volume, {found.volume_name}; {wipe}")
    if found.member_id != entry.id:
        raise NotBelieved(
            f"{place} is member {found.member_id} of this volume, not {entry.id}: were cables or"
            f" names swapped? Look for {entry.id}, or bring back {found.member_id}"
        )
    seen = seen_as(found, label)
    if seen == "apart":
        raise NotBelieved(
            f"{place} went on by itself (generation {found.generation}) after it was parted from"
            f" this volume (generation {label.generation}): what was written there since is not"
            f" here, and the reverse; mount it alone elsewhere to save that, or {wipe}"
        )
    if seen == "ancient":
        raise NotBelieved(
            f"{place} has not been in use for so long (generation {found.generation}, now"
            f" {label.generation}) that nobody can tell whether it is of this line; {wipe}"
        )
    if seen == "current":
        raise NotBelieved(
            f"{place} has a label that only members in use can have, so it is a copy; {wipe}"
        )


def _refuse_second(label: Label, entry: MemberEntry, path: str) -> None:
    """Another one is where it was last seen: one of them is a copy."""
    try:
        if identity(path) == identity(entry.path):
            return
        other = peek(entry.path)
    except RaidfsError:
        return
    if (other.volume_id, other.member_id) == (label.volume_id, entry.id):
        raise NotBelieved(
            f"{entry.path} and {path} both hold member {entry.id}, so one is a copy: disconnect or"
            " rename the one that is not to be used"
        )
