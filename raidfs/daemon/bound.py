"""A snapshot of a volume that is mounted already, seen at a mountpoint of its own: bound there.

The volume has one daemon, which serves the snapshot below `.snapshots`; that directory is bound to
the mountpoint, read-only, by mount(8). It is one filesystem: the volume ends only when what was
bound is unmounted, too.

 1. There is a mount, or nothing has changed and a sentence says why and where to look instead.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Collection

from raidfs.daemon import mounts, stale
from raidfs.daemon.registry import Entry
from raidfs.errors import NoSuchSnapshot, UsageError
from raidfs.fs.views import SNAPSHOTS_NAME

MOUNT = "mount"
# Words of -o that mean something for one of several mounts of a filesystem.
OF_MOUNTS = frozenset({"noexec", "nosuid", "nodev", "noatime", "nodiratime"})


def bind_snapshot(entry: Entry, name: str, mountpoint: str, words: Collection[str]) -> None:
    """Promise 1. `words`: of -o."""
    where = os.path.join(entry.mountpoint, os.fsdecode(SNAPSHOTS_NAME), name)
    _check(entry, name, where)
    stale.clear(mountpoint)
    checked = mounts.check_mountpoint(mountpoint)
    if os.geteuid() != 0:
        raise UsageError(
            f"volume {entry.volume_name} is mounted on {entry.mountpoint}: look at {where}"
            " (only root can have it at another place, too)",
            errno.EBUSY,
        )
    options = ["bind", "ro", *sorted(OF_MOUNTS & set(words))]
    done = subprocess.run(
        [MOUNT, "-i", "-o", ",".join(options), "--", where, checked],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"{MOUNT} failed"
        raise UsageError(f"can't bind {where} to {mountpoint}: {said}", errno.EIO)


def _check(entry: Entry, name: str, where: str) -> None:
    try:
        os.stat(where)
    except FileNotFoundError:
        raise NoSuchSnapshot(
            f"volume {entry.volume_name}, mounted on {entry.mountpoint}, has no snapshot {name!r}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"volume {entry.volume_name} is mounted on {entry.mountpoint}, and {where} can't be"
            f" seen: {error.strerror}",
            error.errno,
        ) from None
