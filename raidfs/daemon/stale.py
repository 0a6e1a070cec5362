"""Taking away what a daemon that was killed has left on its mountpoint.

The kernel keeps a mount whose daemon is dead, and answers ENOTCONN ("Transport endpoint is not
connected") to whoever touches it. Whoever mounts there again wants it gone.

 1. Only a raidfs mount is taken away, and only if all of this holds: no living daemon is registered
    for it; the kernel itself says ENOTCONN for this very mount (its number is compared); and
    nothing waits for an answer through it. All else is refused with a sentence.
 2. Nothing here hangs: the question is put by a child, as the one who mounted (the kernel answers
    others without asking), and one that isn't answered counts as alive.
 3. Several on one mountpoint go one by one. Programs that still are in a dead mount keep nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from raidfs._native import lib
from raidfs.daemon import mounts, registry
from raidfs.daemon.mounts import FILESYSTEM_TYPE, Mount
from raidfs.errors import UsageError

CONNECTIONS = Path("/sys/fs/fuse/connections")
ANSWER_S = 5.0
SETTLE_S = 5.0  # for those who waited when the daemon died, to hear of it
POLL_S = 0.02
UNMOUNT_S_MAX = 30.0
FUSERMOUNT = "fusermount3"
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
log = logging.getLogger(__name__)


def clear(path: str) -> int:
    """Takes away all dead mounts on top of `path`; how many. UsageError if one is alive."""
    cleared = 0
    full = mounts.resolve(path)
    while _raidfs_at(full) is not None:
        with registry.alone():  # or one would take away what another has just mounted
            mounted = _raidfs_at(full)
            if mounted is None:
                break
            _refuse_if_alive(mounted)
            _detach(mounted)
        log.warning("cleared the stale mount on %s: its daemon had died", mounted.mountpoint)
        cleared += 1
    return cleared


def is_dead(mounted: Mount) -> bool:
    """A mount of ours, of which the daemon has certainly died. False: it lives, or nobody knows."""
    if mounted.kind != FILESYSTEM_TYPE or _registered(mounted) is not None:
        return False
    return _ask(mounted) in DEAD


def _registered(mounted: Mount) -> registry.Entry | None:
    """The living daemon behind it, if the registry knows one."""
    for entry, _ in registry.entries():
        if mounts.is_of(mounted, entry.mountpoint):
            return entry
    return None


def _raidfs_at(full: str) -> Mount | None:
    mounted = mounts.mount_at(full)
    return mounted if mounted is not None and mounted.kind == FILESYSTEM_TYPE else None


def _refuse_if_alive(mounted: Mount) -> None:
    """Promise 1."""
    if (entry := _registered(mounted)) is not None:
        raise UsageError(
            f"mountpoint {mounted.mountpoint} is busy: {registry.busy_sentence(entry)}",
            errno.EBUSY,
        )
    found = _ask(mounted)
    if found not in DEAD:
        answer = "its daemon doesn't answer" if found is None else "it is in use"
        raise UsageError(
            f"mountpoint {mounted.mountpoint} is busy: {mounted.source} is mounted there and"
            f" {answer}; unmount it first (umount {mounted.mountpoint}) or name another directory",
            errno.EBUSY,
        )
    if not _settled(mounted):
        raise UsageError(
            f"mountpoint {mounted.mountpoint} is a stale mount, but programs still wait for it;"
            f" look for them (fuser -vm {mounted.mountpoint}), or clear it yourself:"
            f" umount -l {mounted.mountpoint}",
            errno.EBUSY,
        )


# -- asking the kernel ----------------------------------------------------------------------------


def _ask(mounted: Mount) -> int | None:
    """What the kernel says to statfs(2) on that mount: an errno, 0; None: nothing in time."""
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        code = errno.EIO
        try:
            os.close(from_child)
            code = _statfs(mounted)
            os.write(to_parent, code.to_bytes(2, "big"))
        finally:
            os._exit(0)
    os.close(to_parent)
    try:
        if not select.select([from_child], [], [], ANSWER_S)[0]:
            os.kill(child, signal.SIGKILL)
            return None
        told = os.read(from_child, 2)
        return int.from_bytes(told, "big") if told else errno.EIO
    finally:
        os.close(from_child)
        _reap(child)


def _reap(child: int) -> None:
    """One that can't even be killed is left to who comes after us."""
    deadline = time.monotonic() + 1.0
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(POLL_S)


def _statfs(mounted: Mount) -> int:
    """In the child. The way to the mount is gone as who we are; only the question is the owner's:
    it may have been mounted where he can no longer go."""
    try:
        fd = os.open(mounted.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        if _mount_number(fd) != mounted.number:
            return errno.EBUSY
        if os.geteuid() == 0 and mounted.owner is not None and mounted.owner != (0, 0):
            os.setgroups([])
            os.setresgid(*[mounted.owner[1]] * 3)
            os.setresuid(*[mounted.owner[0]] * 3)
        os.fstatvfs(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _mount_number(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return int(value)
    return -1


def _settled(mounted: Mount) -> bool:
    """Nobody waits for an answer; those who did when the daemon died are just being told."""
    counter = CONNECTIONS / mounted.device.partition(":")[2] / "waiting"
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            if int(counter.read_text()) == 0:
                return True
        except (OSError, ValueError):
            return True  # the connection is gone, or nobody has mounted fusectl
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)


# -- taking away ----------------------------------------------------------------------------------


def _detach(mounted: Mount) -> None:
    """Lazily: whoever is in it keeps getting ENOTCONN, and keeps nothing else."""
    said = ""
    if os.geteuid() == 0:
        code = lib.rf_unmount(os.fsencode(mounted.mountpoint))
        said = os.strerror(-code) if code else ""
    else:
        said = _ask_fusermount(mounted.mountpoint)
    if any(each.number == mounted.number for each in mounts.all_mounts()):
        raise UsageError(
            f"mountpoint {mounted.mountpoint} is a stale mount, left by a daemon that has died, and"
            f" can't be cleared ({said or 'it is still there'}); as root:"
            f" umount -l {mounted.mountpoint}",
            errno.EBUSY,
        )


def _ask_fusermount(mountpoint: str) -> str:
    program = shutil.which(FUSERMOUNT)
    if program is None:
        return f"{FUSERMOUNT} is not installed"
    try:
        done = subprocess.run(
            [program, "-u", "-z", "--", mountpoint],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UNMOUNT_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{FUSERMOUNT} doesn't end"
    return " ".join(done.stderr.split())
