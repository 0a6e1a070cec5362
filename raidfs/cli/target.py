"""What the user means by MOUNTPOINT-OR-MEMBER: a volume that a daemon serves, or a bare member."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from raidfs.daemon import mounts, registry
from raidfs.daemon.control import ControlClient
from raidfs.daemon.registry import Entry
from raidfs.errors import LabelMissing, UsageError
from raidfs.raid.label import Label
from raidfs.raid.places import peek


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


def find(target: str) -> Mounted | Unmounted:
    """Looks for a mountpoint, then for a member, then for a mounted volume of that name."""
    mounted = mounts.mount_at(target)
    if mounted is not None and mounted.kind == mounts.FILESYSTEM_TYPE:
        for entry, socket in registry.entries():
            if entry.mountpoint == mounted.mountpoint:
                return Mounted(entry, socket)
        raise UsageError(
            f"{target} is mounted, but its daemon can't be found: it has died (then clear the"
            f" mount: umount -l {target}), or belongs to another user (then run this as root)",
            errno.ENOTCONN,
        )
    if not os.path.lexists(target):
        for entry, socket in registry.entries():
            if target == entry.volume_name:
                return Mounted(entry, socket)
        raise UsageError(
            f"{target} doesn't exist; name a mountpoint or any member of the volume", errno.ENOENT
        )
    try:
        label = read_label(target)
    except LabelMissing:
        raise UsageError(
            f"{target} is neither the mountpoint of a raidfs volume nor a member of one;"
            " `raidfs-ctl list` tells what is mounted"
        ) from None
    found = registry.find_volume(label.volume_id)
    return Mounted(*found) if found else Unmounted(os.path.abspath(target), label)


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
