"""The values that pass between the filesystem and whoever asks it: no behaviour beyond mode bits.

Times are integer nanoseconds since 1970, modes are those of stat(2), names and xattrs are bytes.

 1. A value never changes once made, so that one handed out is a record of that moment.
 2. Which setuid and setgid bits an operation keeps or clears is decided here, as Linux does.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ..errors import FsError

FILE_BYTES_MAX = 2**63 - 1
NAME_BYTES_MAX = 255
TARGET_BYTES_MAX = 4095
LINKS_MAX = 2**31

RENAME_NOREPLACE = 1  # the kernel's numbers
RENAME_EXCHANGE = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the context of a request. `umask` matters to operations that create."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


GroupsOf = Callable[[Caller], Collection[int]]
"""The supplementary groups of a caller; asked only where a setgid bit hangs on it."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) tells. `blocks` are of 512 bytes; `generation` makes `ino` unique for NFS."""

    ino: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr is to change; None leaves as is. Of `mode` only the permission bits count."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory. Reading goes on after `cookie`; `kind` is the mode's file type."""

    name: bytes
    ino: int
    kind: int
    cookie: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What statvfs(3) tells; room is counted in units of `unit_bytes`."""

    unit_bytes: int
    total: int
    free: int
    files: int
    files_free: int
    name_bytes_max: int = NAME_BYTES_MAX


def without_privileges(mode: int) -> int:
    """The mode after a write, truncate or chown by someone without CAP_FSETID: setuid goes, and
    setgid where it means a group to run as (group may execute), not mandatory locking."""
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode & ~stat.S_ISUID


def in_group(caller: Caller, gid: int, groups_of: GroupsOf) -> bool:
    """The caller is in the group or privileged, so it may set the setgid bit for it."""
    return caller.uid == 0 or caller.gid == gid or gid in groups_of(caller)


def check_name(name: bytes) -> None:
    """Raise for what can't be the name of an entry."""
    if len(name) > NAME_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise FsError(errno.EINVAL)
