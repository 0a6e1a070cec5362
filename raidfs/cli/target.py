"""What the user means by MOUNTPOINT-OR-MEMBER: a volume that a daemon serves, or a bare member.

And what is meant by SNAPSHOT: MOUNTPOINT-OR-MEMBER NAME, the two with an "@" between them, or
MOUNTPOINT/.snapshots/NAME. No name of a snapshot has "/" or "@" in it, so none is ambiguous; what
exists as it was written is taken for a mountpoint or member first.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raidfs.daemon import mounts, registry, stale
from raidfs.daemon.control import ControlClient
from raidfs.daemon.registry import Entry
from raidfs.errors import LabelMissing, UsageError
from raidfs.raid.label import Label
from raidfs.raid.places import peek

SNAPSHOTS = ".snapshots"  # the directory in the root of a mount in which they are seen


@dataclass(frozen=True, slots=True)
class Mounted:
    """The volume is served by a daemon; talk to it through its socket."""

    entry: Entry
    socket: Path

    def client(self) -> ControlClient:
        """A connection to the daemon."""
        return ControlClient(self.socket)


@dataclass(frozen=True, slots=True)
class Unmounted:
    """The volume is not mounted on this host; `path` is the member that was named."""

    path: str
    label: Label


@dataclass(frozen=True, slots=True)
class Named:
    """Snapshots of one volume, which need not exist. `where`: the volume as the user wrote it."""

    volume: Mounted | Unmounted
    where: str
    names: tuple[str, ...]


def snapshots(words: Sequence[str], least: int = 1, most: int | None = 1) -> Named:
    """What WHERE NAME..., WHERE@NAME and paths below .snapshots name: at least and at most so many
    of one volume."""
    where, name = split(words[0])
    volume = find(where)
    names = [] if name is None else [name]
    for word in words[1:]:
        other, name = (None, word) if not {"@", "/"} & set(word) else split(word)
        if other is not None and (name is None or not _same(volume, find(other))):
            raise UsageError(f"{word} names no snapshot of {where}; name those of one volume")
        names.append(name or "")
    _check_names(names, where, least, most)
    return Named(volume, where, tuple(names))


def _check_names(names: Sequence[str], where: str, least: int, most: int | None) -> None:
    for name in names:
        if not name:
            raise UsageError(f"the name of a snapshot of {where} is empty")
        check_text(name)
    if len(names) < least:
        wanted = "the name of a snapshot" if least == 1 else f"the names of {least} snapshots"
        raise UsageError(f"{wanted} of {where} must follow, or be written as {where}@NAME")
    if most is not None and len(names) > most:
        raise UsageError(f"{names[most]!r} is one name too many; quote names that have blanks")


def split(word: str) -> tuple[str, str | None]:
    """The volume that a word names, and the snapshot, if it names one."""
    above, name = os.path.split(os.path.abspath(word))
    mountpoint, directory = os.path.split(above)
    if directory == SNAPSHOTS and mounts.is_mounted(mounts.resolve(mountpoint)):
        return mountpoint, name
    known = mounts.mount_at(word) is not None or os.path.lexists(word)
    if known or "@" not in word or any(e.volume_name == word for e, _ in registry.entries()):
        return word, None
    where, _, name = word.rpartition("@")
    return where, name


def _same(one: Mounted | Unmounted, other: Mounted | Unmounted) -> bool:
    return volume_id(one) == volume_id(other)


def volume_id(volume: Mounted | Unmounted) -> str:
    """Whichever way it was named."""
    if isinstance(volume, Mounted):
        return volume.entry.volume_id
    return volume.label.volume_id


def check_text(text: str) -> str:
    """UsageError unless it is Unicode, which is all that a daemon understands."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!a} is not UTF-8, as names and notes must be") from None
    return text


def find(target: str) -> Mounted | Unmounted:
    """Looks for a mountpoint, then for a member, then for a mounted volume of that name, and last
    for a place where a mounted volume had a member."""
    mounted = mounts.mount_at(target)
    if mounted is not None and mounted.kind == mounts.FILESYSTEM_TYPE:
        for entry, socket in registry.entries():
            if mounts.is_of(mounted, entry.mountpoint):
                return Mounted(entry, socket)
        raise UsageError(_without_daemon(target, mounted), errno.ENOTCONN)
    if not os.path.lexists(target):
        for entry, socket in registry.entries():
            if target == entry.volume_name:
                return Mounted(entry, socket)
        if known := registry.find_member(target):
            return Mounted(*known)
        raise UsageError(
            f"{target} doesn't exist; name a mountpoint or any member of the volume", errno.ENOENT
        )
    try:
        label = read_label(target)
    except LabelMissing:
        if known := registry.find_member(target):
            return Mounted(*known)  # of one that was lost: something else is there now
        raise UsageError(
            f"{target} is neither the mountpoint of a raidfs volume nor a member of one;"
            " `raidfs-ctl list` tells what is mounted"
        ) from None
    found = registry.find_volume(label.volume_id)
    return Mounted(*found) if found else Unmounted(os.path.abspath(target), label)


def _without_daemon(target: str, mounted: mounts.Mount) -> str:
    if stale.is_dead(mounted):
        return (
            f"{target} is a stale mount: the daemon that served it has died. All that was durable"
            f" by then is on the members. `raidfs-ctl umount {target}` takes the mount away; so"
            " does mounting the volume there again"
        )
    return (
        f"{target} is mounted, but its daemon can't be found: it belongs to another user (then run"
        " this as root), or hangs"
    )


def read_label(path: str) -> Label:
    """The newest label of one member, without locking it: it may be in use."""
    return peek(os.path.abspath(path))


def must_be_mounted(target: str, verb: str) -> Mounted:
    """The daemon of `target`, or a UsageError that says why `verb` needs one."""
    found = find(target)
    if isinstance(found, Unmounted):
        raise UsageError(f"{target} is not mounted; {verb} is for mounted volumes")
    return found


def must_be_unmounted(target: str, verb: str) -> Unmounted:
    """The bare volume of `target`, or a UsageError: a mounted one changes under our eyes."""
    found = find(target)
    if isinstance(found, Mounted):
        raise UsageError(
            f"volume {found.entry.volume_name} is mounted on {found.entry.mountpoint};"
            f" unmount it before {verb}: raidfs-ctl umount {found.entry.mountpoint}",
            errno.EBUSY,
        )
    return found


def member_number(label_members: list[tuple[int, str]], wanted: str) -> int:
    """The id of the member that `wanted` names: its path, or its number as `status` shows it."""
    numbers = {number for number, _ in label_members}
    if wanted.isdecimal() and int(wanted) in numbers:
        return int(wanted)
    real = os.path.realpath(wanted)
    for number, path in label_members:
        if real == os.path.realpath(path):
            return number
    listing = ", ".join(f"{number} {path}" for number, path in label_members)
    raise UsageError(f"{wanted} is no member of this volume; its members are: {listing}")
