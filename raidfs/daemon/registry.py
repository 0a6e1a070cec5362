"""Which volumes are mounted on this host: one small file and one socket for each, under one name.

A daemon keeps `VOLUME_ID.json` (what is mounted where) and `VOLUME_ID.sock` (its control socket) in
the runtime directory: /run/raidfs for root, $XDG_RUNTIME_DIR/raidfs for others. The daemon holds a
lock on its file for as long as it lives, so whether it lives is asked of the lock, never guessed
from a process number.

 1. The runtime directory and all in it are open to their owner only.
 2. An entry is believed only while its lock is held; one whose daemon died is cleared away.
 3. A reader never sees half an entry: each version is written beside the old one and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from raidfs.errors import RaidfsError, UsageError

ENTRY_BYTES_MAX = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """One mounted volume. `members`: the paths of all, also of those that are lost. `closing` says
    that its mount is gone and the last cut is being made."""

    volume_id: str
    volume_name: str
    mountpoint: str
    pid: int
    members: list[str]
    closing: bool = False
    version: int = 1


def runtime_directory(uid: int | None = None) -> Path:
    """Where the daemons of user `uid` (default: the one who runs this) keep entries and sockets."""
    chosen = os.environ.get("RAIDFS_RUNTIME_DIR")
    if chosen:
        return Path(chosen)
    uid = os.geteuid() if uid is None else uid
    if uid == 0:
        return Path("/run/raidfs")
    told = os.environ.get("XDG_RUNTIME_DIR") if uid == os.geteuid() else None
    if told:
        return Path(told) / "raidfs"
    usual = Path(f"/run/user/{uid}")
    if usual.is_dir():
        return usual / "raidfs"
    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = f"/var/tmp/raidfs-{uid}"  # noqa: S108  (made 0700, owner checked below)
    return Path(home) / ".cache" / "raidfs"


def make_runtime_directory() -> Path:
    """The own runtime directory, made if missing, refused if others could write to it."""
    directory = runtime_directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise UsageError(
            f"can't make the runtime directory {directory} ({error.strerror});"
            " set RAIDFS_RUNTIME_DIR to a directory that you own"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UsageError(
            f"the runtime directory {directory} is not yours alone;"
            f" run `chmod 700 {directory}` as its owner, or set RAIDFS_RUNTIME_DIR"
        )
    return directory


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While no other command or daemon of this user looks at what is mounted where, to change it:
    of two that want one mountpoint, the second sees the first."""
    fd = os.open(make_runtime_directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _holder_of(mountpoint: str) -> Entry | None:
    """Who has mounted there, or is about to."""
    for path in sorted(make_runtime_directory().glob("*.json")):
        entry = _read_live(path)
        if entry is not None and entry.mountpoint == mountpoint and not entry.closing:
            return entry
    return None


def socket_path(entry_path: Path) -> Path:
    """The control socket that belongs to an entry."""
    return entry_path.with_suffix(".sock")


class Registration:
    """A daemon's own entry. Held from before the mount until all is durable and closed."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.path = make_runtime_directory() / f"{entry.volume_id}.json"
        self.socket = socket_path(self.path)
        self._fd = -1
        with alone():
            holder = _read_live(self.path) or _holder_of(entry.mountpoint)
            if holder is not None:
                raise UsageError(busy_sentence(holder), errno=RaidfsError.errno)
            self._write(entry)

    def tell_members(self, paths: list[str]) -> None:
        """The members have changed."""
        if self._fd >= 0 and paths != self.entry.members:
            self._write(msgspec.structs.replace(self.entry, members=paths))

    def closing(self) -> None:
        """Tell that the mount is gone and only the last cut is under way."""
        self._write(msgspec.structs.replace(self.entry, closing=True))

    def close(self) -> None:
        """Forget the entry; the lock goes last, so nobody sees a live entry without a daemon."""
        if self._fd < 0:
            return
        for path in (self.socket, self.path):
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(self._fd)
        self._fd = -1

    def _write(self, entry: Entry) -> None:
        self.entry = entry
        beside = self.path.with_suffix(f".{os.getpid()}.new")
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, msgspec.json.encode(entry))
        os.rename(beside, self.path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd


def busy_sentence(holder: Entry) -> str:
    """What to say to someone who wants a volume that is already mounted."""
    return (
        f"volume {holder.volume_name} is mounted on {holder.mountpoint}"
        f" (process {holder.pid}); unmount it first: raidfs-ctl umount {holder.mountpoint}"
    )


def _read_live(path: Path) -> Entry | None:
    """The entry in `path` if its daemon lives; what a dead daemon left is removed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return msgspec.json.decode(os.read(fd, ENTRY_BYTES_MAX), type=Entry)
        # Nobody holds it. It may have been replaced since it was opened: then look again.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                socket_path(path).unlink(missing_ok=True)
                path.unlink()
                return None
        return _read_live(path) if path.exists() else None
    except msgspec.DecodeError:
        return None
    finally:
        os.close(fd)


def entries() -> Iterator[tuple[Entry, Path]]:
    """All volumes mounted by this user (for root: by everybody), each with its control socket."""
    directories = [runtime_directory()]
    if os.geteuid() == 0 and "RAIDFS_RUNTIME_DIR" not in os.environ:
        directories += sorted(Path("/run/user").glob("*/raidfs"))
    for directory in directories:
        for path in sorted(directory.glob("*.json")):
            entry = _read_live(path)
            if entry is not None:
                yield entry, socket_path(path)


def find_member(path: str) -> tuple[Entry, Path] | None:
    """The live entry of the volume that has a member there, as its daemon knows it: whatever is at
    that path now."""
    wanted = os.path.abspath(path)
    for entry, socket in entries():
        if wanted in entry.members:
            return entry, socket
    return None


def find_volume(volume_id: str) -> tuple[Entry, Path] | None:
    """The live entry of one volume and its control socket."""
    for entry, socket in entries():
        if entry.volume_id == volume_id:
            return entry, socket
    return None
