"""The kernel's FUSE device, and the mount behind it: how a daemon comes by them and lets go.

Root opens /dev/fuse and mounts by mount(2). Everybody else asks fusermount3, which is setuid root:
it opens, mounts, and passes the descriptor over a socket (_FUSE_COMMFD), as fusermount3(1) and
libfuse's mount.c agree on. Words of -o go by their meaning to whom they concern: to the kernel's
flags, to FUSE's own options, or to fusermount3.

 1. There is a descriptor and a mount, or neither and a sentence that says why.
 2. `unmount` takes away the mount of this descriptor and no other, lazily: open files keep nothing
    waiting. When the kernel has already ended the connection, there is none left to take.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

from raidfs._native import lib
from raidfs.daemon.mounts import FILESYSTEM_TYPE
from raidfs.errors import UsageError

DEVICE = "/dev/fuse"
FUSERMOUNT = "fusermount3"
FUSERMOUNT_S_MAX = 30.0
SUBTYPE = FILESYSTEM_TYPE.partition(".")[2]

# Words that are flags of the mount. Without "suid" and "dev", FUSE mounts are nosuid and nodev.
_FLAGS = {
    "ro": lib.RF_MOUNT_READ_ONLY,
    "noexec": lib.RF_MOUNT_NO_PROGRAMS,
    "sync": lib.RF_MOUNT_SYNCHRONOUS,
    "dirsync": lib.RF_MOUNT_SYNCHRONOUS_NAMES,
    "noatime": lib.RF_MOUNT_NO_ATIME,
    "nodiratime": lib.RF_MOUNT_NO_DIRECTORY_ATIME,
}
_ALLOWING = {"suid": lib.RF_MOUNT_NO_SETUID, "dev": lib.RF_MOUNT_NO_DEVICES}
# Words that fusermount3 would not know: it starts from what these ask for, or we keep them.
_NOT_FOR_FUSERMOUNT = frozenset({"suid", "dev", "allow_root"})


@dataclass(slots=True)
class Device:
    """An open descriptor of the FUSE device with a mount behind it."""

    fd: int
    mountpoint: str
    by_fusermount: bool = False
    channel: socket.socket | None = field(default=None, repr=False)  # held for auto_unmount

    def ended(self) -> bool:
        """The kernel has ended the connection: unmounted and no longer in use, or aborted."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def unmount(self) -> None:
        """Promise 2. Who still has files open gets errors from then on: nobody answers any more.
        All other descriptors of the device are closed before."""
        if self.fd < 0:
            return
        ended = self.ended()
        os.close(self.fd)  # first: an orderly unmount would ask us to sync, and wait for the answer
        self.fd = -1
        if not ended:
            _take_away(self.mountpoint, self.by_fusermount)
        if self.channel is not None:
            self.channel.close()


def open_device(mountpoint: str, name: str, words: Collection[str]) -> Device:
    """Mounts a FUSE filesystem that shows up as `name` and returns its device.

    `words` are those of -o that concern the mount (see the tables above), and auto_unmount,
    allow_other, allow_root, default_permissions. UsageError with a sentence for people.
    """
    if os.geteuid() == 0 and "auto_unmount" not in words:
        device = _mount(mountpoint, name, words)
        if device is not None:
            return device
    return _ask_fusermount(mountpoint, name, words)


def _take_away(mountpoint: str, by_fusermount: bool) -> None:
    """Best effort: a daemon that ends has done what it can."""
    if not by_fusermount:
        lib.rf_unmount(os.fsencode(mountpoint))
        return
    program = shutil.which(FUSERMOUNT)
    if program is not None:
        subprocess.run(
            [program, "-u", "-q", "-z", "--", mountpoint],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )


def _failed(mountpoint: str, reason: str, number: int) -> UsageError:
    return UsageError(
        f"can't mount on {mountpoint}: {reason};"
        " check the mount options and your rights on the mountpoint",
        number,
    )


def _open(mountpoint: str) -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        number = error.errno or errno.EIO
        hint = "; load the kernel module: modprobe fuse" if number in (2, errno.ENODEV) else ""
        raise _failed(mountpoint, f"{DEVICE}: {os.strerror(number)}{hint}", number) from None


# -- by root --------------------------------------------------------------------------------------


def _mount(mountpoint: str, name: str, words: Collection[str]) -> Device | None:
    """By mount(2); None if this root may not (a container), but fusermount3 perhaps may."""
    fd = _open(mountpoint)
    result = -errno.EIO
    try:
        result = lib.rf_mount(
            os.fsencode(name),
            os.fsencode(mountpoint),
            FILESYSTEM_TYPE.encode(),
            kernel_flags(words),
            kernel_data(fd, mountpoint, words).encode(),
        )
    finally:
        if result:
            os.close(fd)
    if result == -errno.EPERM and shutil.which(FUSERMOUNT):
        return None
    if result:
        raise _failed(mountpoint, os.strerror(-result), -result)
    return Device(fd, mountpoint)


def kernel_flags(words: Collection[str]) -> int:
    """The flags of mount(2), as csrc/mount.h names them."""
    flags = 0
    for word, flag in _FLAGS.items():
        flags |= flag if word in words else 0
    for word, flag in _ALLOWING.items():
        flags |= flag if word not in words or f"no{word}" in words else 0
    return flags


def kernel_data(fd: int, mountpoint: str, words: Collection[str]) -> str:
    """FUSE's own options: whose mount it is, and who may use it."""
    kind = stat.S_IFMT(os.stat(mountpoint).st_mode)
    options = [f"fd={fd}", f"rootmode={kind:o}", f"user_id={os.getuid()}"]
    options.append(f"group_id={os.getgid()}")
    if not {"allow_other", "allow_root"}.isdisjoint(words):
        options.append("allow_other")  # of allow_root the kernel knows nothing: libfuse refuses
    if "default_permissions" in words:
        options.append("default_permissions")
    return ",".join(options)


# -- by fusermount3 -------------------------------------------------------------------------------


def fusermount_words(name: str, words: Collection[str]) -> str:
    """The argument of its -o. A comma within a name is escaped."""
    escaped = name.replace("\\", "\\\\").replace(",", "\\,")
    told = sorted(set(words) - _NOT_FOR_FUSERMOUNT)
    if "allow_root" in words and "allow_other" not in words:
        told.append("allow_other")
    if os.geteuid() == 0:
        told += [word for word in _ALLOWING if word in words and f"no{word}" not in words]
    return ",".join([*told, f"fsname={escaped}", f"subtype={SUBTYPE}"])


def _ask_fusermount(mountpoint: str, name: str, words: Collection[str]) -> Device:
    program = shutil.which(FUSERMOUNT)
    if program is None:
        raise _failed(
            mountpoint,
            f"only root may mount without {FUSERMOUNT}, which is not installed (package fuse3)",
            errno.EPERM,
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(FUSERMOUNT_S_MAX)
    said_fd = os.memfd_create("stderr")
    fds: list[int] = []
    try:
        child = subprocess.Popen(
            [program, "-o", fusermount_words(name, words), "--", mountpoint],
            stdin=subprocess.DEVNULL,
            stderr=said_fd,
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()  # so that an end of the child is an end of the stream
        fds = _received(ours)
        if not fds or "auto_unmount" not in words:
            child.wait(FUSERMOUNT_S_MAX)
        said = " ".join(os.pread(said_fd, 4096, 0).decode(errors="replace").split())
    except subprocess.TimeoutExpired:
        said = f"{FUSERMOUNT} doesn't end"
    finally:
        theirs.close()
        os.close(said_fd)
    if len(fds) != 1:
        ours.close()
        for fd in fds:
            os.close(fd)
        raise _failed(mountpoint, said or f"{FUSERMOUNT} passed no descriptor", errno.EPERM)
    if said:
        print(said, file=sys.stderr)
    if "auto_unmount" in words:  # fusermount3 lives on and unmounts when we hang up
        return Device(fds[0], mountpoint, by_fusermount=True, channel=ours)
    ours.close()
    return Device(fds[0], mountpoint, by_fusermount=True)


def _received(channel: socket.socket) -> list[int]:
    """The descriptors in one message; none if the other end has gone away or says nothing."""
    try:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    except (TimeoutError, ConnectionError):
        return []
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)
