"""`raidfs-ctl clone`: a file or a whole tree once more, its cells shared with the original.

Plain system calls over the mount: copy_file_range(2) makes the volume share cells, everything else
is what `cp -a` would do. The original may be live, or lie below .snapshots.

 1. The clone is built under a hidden name beside its place and gets its own name last of all, in
    one step that replaces nothing. So it is there whole, or not at all, also after a crash.
 2. Modes, owners, times, extended attributes, access control lists, hard links within the tree,
    special files and holes are as in the original. Without being root: owners as far as one may.
 3. What goes wrong takes back all that was made; the original is never changed.
 4. No symbolic link is followed on the way, whoever changes the tree meanwhile: files are reached
    through the descriptors of their directories.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from raidfs.cli import target as target_of
from raidfs.cli.output import print_json, size_text
from raidfs.daemon import mounts
from raidfs.errors import UsageError

PIECE_BYTES = 1 << 30
PROGRESS_S = 0.2
_RENAME_NOREPLACE = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Cloned:
    """What was cloned. `bytes`: of content, holes left out."""

    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Level:
    """A directory being cloned: descriptors of both, and the names still to come."""

    source: int
    target: int
    found: os.stat_result
    names: list[str] = field(default_factory=list)

    def close(self) -> None:
        for fd in (self.source, self.target):
            if fd >= 0:
                os.close(fd)


class Cloning:
    """One run. Paths are (descriptor of the directory, name). `dry`: only look and count."""

    def __init__(self, *, dry: bool = False, progress: bool = False) -> None:
        self.cloned = Cloned()
        self._dry = dry
        self._progress = progress
        self._told_at = 0.0
        self._root = os.geteuid() == 0
        self._device = 0
        self._top = -1  # directory of the clone, for further names of a file
        self._linked: dict[int, list[str]] = {}  # inode -> the clone's first path from there
        self._path: list[str] = []

    def run(self, source: tuple[int, str], target: tuple[int, str]) -> Cloned:
        """Clone what stands at `source`. `target` must not exist. OSError; then nothing is left."""
        found = os.stat(source[1], dir_fd=source[0], follow_symlinks=False)
        hidden = f".{_shortened(target[1])}.clone-{secrets.token_hex(4)}"
        self._device = found.st_dev
        self._top, self._path = target[0], [hidden]
        if self._dry:
            self._tree(source, (-1, hidden), found)
            return self.cloned
        try:
            self._tree(source, (target[0], hidden), found)
            _name(target[0], hidden, target[1])
        except BaseException:
            _remove(target[0], hidden)
            raise
        return self.cloned

    # -- the tree ---------------------------------------------------------------------------------

    def _tree(
        self, source: tuple[int, str], target: tuple[int, str], found: os.stat_result
    ) -> None:
        """A stack instead of recursion: directories may be nested deeper than Python's calls."""
        if not stat.S_ISDIR(found.st_mode):
            self._leaf(source, target, found)
            return
        stack = [self._enter(source, target)]
        try:
            while stack:
                level = stack[-1]
                if not level.names:
                    if not self._dry:
                        self._finish_open(level.source, level.target, level.found)
                    stack.pop().close()
                    self._path.pop()
                    continue
                name = level.names.pop()
                self._path.append(name)
                child = os.stat(name, dir_fd=level.source, follow_symlinks=False)
                if stat.S_ISDIR(child.st_mode):
                    stack.append(self._enter((level.source, name), (level.target, name)))
                else:
                    self._leaf((level.source, name), (level.target, name), child)
                    self._path.pop()
        finally:
            for level in stack:
                level.close()

    def _enter(self, source: tuple[int, str], target: tuple[int, str]) -> _Level:
        fd = os.open(source[1], _DIRECTORY, dir_fd=source[0])
        level = _Level(fd, -1, os.fstat(fd))
        try:
            if level.found.st_dev != self._device:
                raise OSError(errno.EXDEV, "another file system is mounted there", source[1])
            level.names = sorted(os.listdir(fd), reverse=True)
            if not self._dry:
                os.mkdir(target[1], 0o700, dir_fd=target[0])
                level.target = os.open(target[1], _DIRECTORY, dir_fd=target[0])
        except BaseException:
            level.close()
            raise
        self.cloned.directories += 1
        return level

    def _leaf(
        self, source: tuple[int, str], target: tuple[int, str], found: os.stat_result
    ) -> None:
        """Anything but a directory."""
        if found.st_nlink > 1 and self._link(target, found.st_ino):
            return
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            self._file(source, target)
            self.cloned.files += 1
            self.tell()
            return
        self.cloned.others += 1
        if self._dry:
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(source[1], dir_fd=source[0]), target[1], dir_fd=target[0])
        else:
            os.mknod(target[1], kind | 0o600, found.st_rdev, dir_fd=target[0])
        self._finish(_by_descriptor(*source), _by_descriptor(*target), found, follow=False)

    def _link(self, target: tuple[int, str], ino: int) -> bool:
        """A further name of a file that was cloned under its first."""
        first = self._linked.setdefault(ino, list(self._path))
        if first == self._path:
            return False
        if not self._dry:
            fd = self._top
            opened: list[int] = []
            try:
                for name in first[:-1]:
                    fd = os.open(name, _DIRECTORY | os.O_PATH, dir_fd=fd)
                    opened.append(fd)
                os.link(
                    first[-1], target[1], src_dir_fd=fd, dst_dir_fd=target[0], follow_symlinks=False
                )
            finally:
                for fd in opened:
                    os.close(fd)
        return True

    # -- content ----------------------------------------------------------------------------------

    def _file(self, source: tuple[int, str], target: tuple[int, str]) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd_in = os.open(source[1], os.O_RDONLY | flags, dir_fd=source[0])
        fd_out = -1
        try:
            found = os.fstat(fd_in)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ESTALE, "it was replaced meanwhile", source[1])
            if not self._dry:
                made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags
                fd_out = os.open(target[1], made, 0o600, dir_fd=target[0])
                os.ftruncate(fd_out, found.st_size)
            self._content(fd_in, fd_out, found.st_size)
            if not self._dry:
                self._finish_open(fd_in, fd_out, found)
        finally:
            for fd in (fd_in, fd_out):
                if fd >= 0:
                    os.close(fd)

    def _content(self, fd_in: int, fd_out: int, size: int) -> None:
        """Everything that isn't a hole. Cells are shared where pages agree, and they do here."""
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(fd_in, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            end = min(size, os.lseek(fd_in, offset, os.SEEK_HOLE))
            self.cloned.bytes += end - offset
            if self._dry:
                offset = end
            while offset < end:
                count = min(PIECE_BYTES, end - offset)
                done = os.copy_file_range(fd_in, fd_out, count, offset, offset)
                if not done:  # it has become shorter meanwhile
                    return
                offset += done
                self.tell()

    # -- what stat and getxattr tell --------------------------------------------------------------

    def _finish_open(self, source: int, target: int, found: os.stat_result) -> None:
        self._finish(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", found, follow=True)

    def _finish(self, source: str, target: str, found: os.stat_result, *, follow: bool) -> None:
        """Owner, mode, extended attributes, times: in the order in which each leaves the others."""
        mode = stat.S_IMODE(found.st_mode)
        if self._root:
            os.chown(target, found.st_uid, found.st_gid, follow_symlinks=follow)
        else:
            with contextlib.suppress(PermissionError):  # as cp -a: no more than one may
                os.chown(target, -1, found.st_gid, follow_symlinks=follow)
            made = os.stat(target, follow_symlinks=follow)
            if (made.st_uid, made.st_gid) != (found.st_uid, found.st_gid):
                mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(target, mode)
        self._xattrs(source, target, follow)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=follow)

    def _xattrs(self, source: str, target: str, follow: bool) -> None:
        """All that can be seen; and none that came from the directory's default ACL."""
        wanted = os.listxattr(source, follow_symlinks=follow)
        for name in os.listxattr(target, follow_symlinks=follow):
            if name not in wanted:
                os.removexattr(target, name, follow_symlinks=follow)
        for name in wanted:
            value = os.getxattr(source, name, follow_symlinks=follow)
            try:
                os.setxattr(target, name, value, follow_symlinks=follow)
            except PermissionError:
                if self._root or name.startswith("user."):
                    raise

    def tell(self, end: bool = False) -> None:
        """Progress on a terminal, now and then; `end` closes the line."""
        if not self._progress or (not end and time.monotonic() - self._told_at < PROGRESS_S):
            return
        self._told_at = time.monotonic()
        line = f"\r{_sentence(self.cloned)}   "
        print(line, end="\r\n" if end else "", file=sys.stderr, flush=True)


def _shortened(name: str) -> str:
    """So that a prefix and a suffix fit beside it into the 255 bytes of a name."""
    return os.fsdecode(os.fsencode(name)[:200])


def _by_descriptor(directory: int, name: str) -> str:
    """A path whose last part is not followed when told so, and whose others can't be changed."""
    return f"/proc/self/fd/{directory}/{name}"


def _name(directory: int, old: str, new: str) -> None:
    """renameat2(2): nothing is replaced."""
    names = os.fsencode(old), os.fsencode(new)
    if _LIBC.renameat2(directory, names[0], directory, names[1], _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)


def _remove(directory: int, name: str) -> None:
    """What was made so far."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


def _sentence(cloned: Cloned) -> str:
    return (
        f"{cloned.files} files, {cloned.directories} directories, {cloned.others} others,"
        f" {size_text(cloned.bytes)}"
    )


def _allow_descriptors() -> None:
    """Two for each level of directories."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _mount_of(path: str) -> str:
    """The mountpoint of the raidfs volume that `path` lies on. UsageError if it is no such one."""
    device = os.lstat(path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    for mount in mounts.all_mounts():
        if mount.device == name and mount.kind == mounts.FILESYSTEM_TYPE:
            return mount.mountpoint
    raise UsageError(
        f"{path} is not on a mounted raidfs volume; to copy other files, use cp", errno.EXDEV
    )


def _check(source: str, target: str) -> tuple[str, str, str]:
    """(source, directory of the clone, its name), or a UsageError before anything is made."""
    if not os.path.lexists(source):
        raise UsageError(f"{source} doesn't exist; name a file or directory", errno.ENOENT)
    target = target.rstrip("/") or "/"
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already; give the clone a new name", errno.EEXIST)
    parent, name = os.path.split(os.path.abspath(target))
    if not os.path.isdir(parent):
        raise UsageError(
            f"{parent} is no directory; make it first: mkdir -p {parent}", errno.ENOENT
        )
    source, parent = mounts.resolve(source.rstrip("/") or "/"), os.path.realpath(parent)
    if _mount_of(source) != _mount_of(parent):
        raise UsageError(
            f"{source} and {parent} are on different volumes, which can't share cells; use cp -a",
            errno.EXDEV,
        )
    top, above = os.lstat(source), Path(parent)
    for directory in (above, *above.parents):
        if os.path.samestat(os.stat(directory), top):
            raise UsageError(f"{target} lies within {source}; a clone can't contain itself")
    return source, parent, name


def _settle(source: str) -> None:
    """What is only in memory gets cells, so that they can be shared."""
    if stat.S_IFMT(os.lstat(source).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return
    with contextlib.suppress(OSError):
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def clone(source: str, target: str, *, dry: bool = False, progress: bool = False) -> Cloned:
    """`source` once more under the path `target`, on the same mounted volume. UsageError, OSError;
    then there is no `target`."""
    source, parent, name = _check(source, target)
    _allow_descriptors()
    if not dry:
        _settle(source)
    above, last = os.path.split(source)
    cloning = Cloning(dry=dry, progress=progress)
    fd_in = os.open(above, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        fd_out = os.open(parent, _DIRECTORY)
        try:
            cloned = cloning.run((fd_in, last or "."), (fd_out, name))
        finally:
            os.close(fd_out)
    finally:
        os.close(fd_in)
    cloning.tell(end=True)
    return cloned


def _report(cloned: Cloned, target: str, dry: bool, as_json: bool) -> int:
    if as_json:
        print_json({"target": target, "dry_run": dry, **{k: getattr(cloned, k) for k in _FIELDS}})
    else:
        click.echo(f"{'would clone' if dry else 'cloned'}: {_sentence(cloned)}")
    return 0


_FIELDS = ("files", "directories", "others", "bytes")


def _run(source: str, target: str, dry: bool, as_json: bool) -> int:
    progress = sys.stderr.isatty() and not as_json
    return _report(clone(source, target, dry=dry, progress=progress), target, dry, as_json)


@click.command("clone")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only tell what would be cloned.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def clone_command(source: str, target: str, dry: bool, as_json: bool) -> int:
    """Clone a file or a directory tree of a mounted volume to the new path TARGET on it.

    Cells are shared: a clone takes next to no room until one of both changes. SOURCE may lie below
    .snapshots. Modes, owners, times, links, holes and extended attributes are kept; TARGET
    appears when all of it is there.

    \b
    Examples:
      raidfs-ctl clone /mnt/tank/vm.img /mnt/tank/vm-test.img
      raidfs-ctl clone /mnt/tank/.snapshots/monday/home /mnt/tank/home-monday
    """
    return _run(source, target, dry, as_json)


def snapshot_path(words: Sequence[str]) -> str:
    """Where the snapshot that the words name is browsed. UsageError if it isn't there."""
    named = target_of.snapshots(words)
    if isinstance(named.volume, target_of.Unmounted):
        raise UsageError(f"{named.where} is not mounted; clone works on mounted volumes")
    name = named.names[0]
    path = os.path.join(named.volume.entry.mountpoint, target_of.SNAPSHOTS, name)
    if not os.path.isdir(path):
        raise UsageError(
            f"there is no snapshot {name!r} of {named.where}; `raidfs-ctl snapshot list` tells"
            " which there are",
            errno.ENOENT,
        )
    return path


@click.command("clone")
@click.argument("words", metavar="MOUNTPOINT NAME TARGET", nargs=-1, required=True)
@click.option("--path", "inner", default="", help="Only that file or directory of the snapshot.")
@click.option("-n", "--dry-run", "dry", is_flag=True, help="Only tell what would be cloned.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def snapshot_clone_command(words: tuple[str, ...], inner: str, dry: bool, as_json: bool) -> int:
    """Clone a snapshot of a mounted volume, or a part of it, to the new path TARGET.

    A writable copy that shares all cells with the snapshot, so it takes next to no room.

    \b
    Examples:
      raidfs-ctl snapshot clone /mnt/tank@monday /mnt/tank/monday
      raidfs-ctl snapshot clone /mnt/tank@monday --path home/ann /mnt/tank/ann-monday
    """
    if len(words) < 2:
        raise UsageError("name a snapshot, and the new path that its clone is to have")
    if ".." in inner.split("/"):
        raise UsageError(f"{inner}: name the part from the snapshot's root, without '..'")
    source = snapshot_path(words[:-1])
    return _run(os.path.join(source, inner.strip("/")), words[-1], dry, as_json)
