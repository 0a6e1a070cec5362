"""What the kernel says is mounted, and whether a directory may become a mountpoint.

1. Nothing here looks into a mounted directory: a mount whose daemon hangs would hang us too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raidfs.errors import UsageError

FILESYSTEM_TYPE = "fuse.raidfs"
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo. `device` is major:minor; `root`: what is to be seen of the
    filesystem: "/", or the directory that was bound. `number`: the kernel's, never twice at a time;
    `owner`: user and group of who mounted it, for FUSE."""

    mountpoint: str
    kind: str
    source: str
    device: str
    root: str = "/"
    number: int = -1
    owner: tuple[int, int] | None = None


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts in the order of mounting (proc(5): fields after ` - ` are type and source)."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(rest) >= 2:
            mountpoint, source, root = map(_unescape, (fields[4], rest[1], fields[3]))
            number = int(fields[0]) if fields[0].isdecimal() else -1
            owner = _owner(rest[2]) if len(rest) > 2 else None
            mounts.append(Mount(mountpoint, rest[0], source, fields[2], root, number, owner))
    return mounts


def _owner(options: str) -> tuple[int, int] | None:
    """FUSE tells it among the options of the filesystem."""
    told = dict(each.partition("=")[::2] for each in options.split(","))
    user, group = told.get("user_id", ""), told.get("group_id", "")
    return (int(user), int(group)) if user.isdecimal() and group.isdecimal() else None


def all_mounts() -> list[Mount]:
    """What is mounted where, as this process sees it."""
    raw = Path("/proc/self/mountinfo").read_bytes()
    return parse_mountinfo(os.fsdecode(raw))


def resolve(path: str | os.PathLike[str]) -> str:
    """`path` without links, its last part left alone: that one may be a mount that hangs."""
    full = os.path.abspath(path)
    parent, name = os.path.split(full)
    return os.path.join(os.path.realpath(parent), name) if name else full


def mount_at(path: str | os.PathLike[str]) -> Mount | None:
    """The mount whose root is `path`, the topmost if there are several."""
    wanted = resolve(path)
    found = [mount for mount in all_mounts() if mount.mountpoint == wanted]
    if not found and os.path.islink(wanted):
        return mount_at(os.path.realpath(wanted))
    return found[-1] if found else None


def _above(full: str) -> str:
    """The mountpoint of the mount in which a path lies."""
    points = {mount.mountpoint for mount in all_mounts()}
    return next((str(each) for each in Path(full).parents if str(each) in points), "/")


def is_of(mount: Mount, mountpoint: str) -> bool:
    """Whether that is the filesystem mounted on `mountpoint`, or a directory of it, bound."""
    if mount.mountpoint == mountpoint:
        return True
    found = mount_at(mountpoint)
    return found is not None and found.device == mount.device


def others_of(mount: Mount) -> list[Mount]:
    """What else is to be seen of the same filesystem elsewhere: bound directories."""
    return [
        each
        for each in all_mounts()
        if each.device == mount.device and each.mountpoint != mount.mountpoint
    ]


def is_mounted(mountpoint: str) -> bool:
    """Whether a raidfs volume is mounted there now."""
    return any(m.mountpoint == mountpoint and m.kind == FILESYSTEM_TYPE for m in all_mounts())


def check_mountpoint(path: str) -> str:
    """The absolute mountpoint, or a UsageError that says what is wrong with it. A dead mount of
    ours is one of these things: see stale.py, whose turn is before."""
    full = resolve(path)
    mounted = mount_at(full)
    if mounted is not None and mounted.kind == FILESYSTEM_TYPE:
        raise _busy(path, mounted)
    try:
        found = os.stat(full)
    except FileNotFoundError:
        raise UsageError(
            f"mountpoint {path} doesn't exist; create it: mkdir -p {path}", errno.ENOENT
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) or mounted is not None:
            stale = mounted.mountpoint if mounted is not None else _above(full)
            raise UsageError(
                f"mountpoint {path} {'is' if mounted else 'lies in'} a stale mount, left by a"
                f" daemon that has died; clear it first: umount -l {stale}",
                errno.EBUSY,
            ) from None
        raise UsageError(f"can't use mountpoint {path}: {error.strerror}", error.errno) from None
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"mountpoint {path} is not a directory; name one", errno.ENOTDIR)
    if mounted is not None:
        raise _busy(path, mounted)
    return os.path.realpath(full)


def _busy(path: str, mounted: Mount) -> UsageError:
    return UsageError(
        f"mountpoint {path} is busy: {mounted.source} ({mounted.kind}) is mounted there;"
        f" unmount it first (umount {path}) or name another directory",
        errno.EBUSY,
    )


def check_apart(mountpoint: str, members: Iterable[str]) -> None:
    """A member below its own mountpoint would be hidden by it; the reverse would hide the member's
    files from the administrator and the mount from its own volume's growth."""
    inside = Path(mountpoint)
    for member in members:
        path = Path(os.path.realpath(member))
        if path == inside or inside in path.parents:
            raise UsageError(
                f"member {member} lies below the mountpoint {mountpoint}, which would hide it;"
                " mount elsewhere"
            )
        if path in inside.parents:
            raise UsageError(
                f"mountpoint {mountpoint} lies inside member {member};"
                " only raidfs may write there: mount elsewhere"
            )


def check_fuse_device() -> None:
    """UsageError unless the kernel's FUSE device is there."""
    try:
        kind = os.stat("/dev/fuse").st_mode
    except OSError:
        kind = 0
    if not stat.S_ISCHR(kind):
        raise UsageError(
            "/dev/fuse is missing: load the kernel module (modprobe fuse), or start the container"
            " with --device /dev/fuse; without FUSE, raidfs-ctl extract copies files out",
            errno.ENODEV,
        )
