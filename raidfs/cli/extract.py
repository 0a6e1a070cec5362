"""`raidfs-ctl extract`: copies files out of the members without mounting, and without FUSE.

1. Nothing is written to the members, and nothing at the destination is replaced without --force.
2. What can't be read is named and left out; everything else is copied, and the exit code tells.
3. Memory doesn't grow with what is copied, but for names of files with several hard links.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
import trio

from raidfs.cli import target
from raidfs.cli.output import EXIT_ERROR, print_json, sentence, size_text
from raidfs.errors import FormatError, RaidfsError, UsageError
from raidfs.fs.attributes import Attributes, Caller, Entry
from raidfs.fs.volume import Volume
from raidfs.pages import LEAF_PAGES
from raidfs.raid.assembly import Assembly
from raidfs.store.meta import ROOT_INO
from raidfs.store.store import Store

PIECE_BYTES = 1 << 20
LISTED_AT_ONCE = 256
PROGRESS_S = 0.2
ROOT = Caller(0, 0)


@dataclass(slots=True)
class Copied:
    """What was done so far."""

    files: int = 0
    directories: int = 0
    others: int = 0
    bytes: int = 0
    failures: list[str] = field(default_factory=list)


class Extraction:
    """One run over one volume."""

    def __init__(self, volume: Volume, force: bool, progress: bool) -> None:
        self._volume = volume
        self._force = force
        self._progress = progress
        self._told_at = 0.0
        self._privileged = os.geteuid() == 0
        self._linked: dict[int, tuple[bytes, int]] = {}  # ino -> first path, links still to come
        self.copied = Copied()

    async def tree(self, ino: int, path: bytes) -> None:
        """Copies an inode and all beneath it to `path`. A stack instead of recursion: directories
        may be nested deeper than Python's calls."""
        told = self._volume.getattr(ino)
        if not stat.S_ISDIR(told.mode):
            await self._guarded(told, path)
            return
        if not self._make_directory(path):
            return
        stack = [(told, path, self._entries(ino))]
        while stack:
            directory, where, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                self._finish(directory, where)
                continue
            beneath = os.path.join(where, entry.name)
            try:
                child = self._volume.getattr(entry.ino)
            except RaidfsError as error:
                self._failed(beneath, error)
                continue
            if not stat.S_ISDIR(child.mode):
                await self._guarded(child, beneath)
            elif self._make_directory(beneath):
                stack.append((child, beneath, self._entries(entry.ino)))

    def _entries(self, ino: int) -> Iterator[Entry]:
        """The entries of a directory but `.` and `..`; names that could lead astray are refused."""
        after = 0
        self._volume.opendir(ino)
        try:
            while found := self._volume.readdir(ino, after, LISTED_AT_ONCE):
                for entry in found:
                    after = entry.cookie
                    if entry.name in (b".", b".."):
                        continue
                    if b"/" in entry.name or b"\0" in entry.name or not entry.name:
                        self._failed(entry.name, FormatError("this can't be the name of a file"))
                        continue
                    yield entry
        except RaidfsError as error:
            self._failed(b"directory %d" % ino, error)
        finally:
            self._volume.release(ino)

    def _failed(self, path: bytes, error: BaseException) -> None:
        self.copied.failures.append(f"{os.fsdecode(path)}: {sentence(error)}")
        click.echo(f"raidfs-ctl: {self.copied.failures[-1]}", err=True)

    def _make_directory(self, path: bytes) -> bool:
        try:
            if not self._exists(path, directory=True):
                os.mkdir(path, 0o700)
        except (RaidfsError, OSError) as error:
            self._failed(path, error)
            return False
        self.copied.directories += 1
        return True

    def _exists(self, path: bytes, directory: bool = False) -> bool:
        """Whether a directory is there to go into. Anything else there is refused, or replaced."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        if directory and stat.S_ISDIR(found.st_mode):
            return True
        if not self._force:
            raise UsageError("exists already; --force replaces it", errno.EEXIST)
        os.unlink(path)
        return False

    async def _guarded(self, told: Attributes, path: bytes) -> None:
        """One inode that is no directory; what goes wrong is its own affair."""
        try:
            self._exists(path)
            if not self._link(told, path):
                await self._copy(told, path)
        except (RaidfsError, OSError) as error:
            self._failed(path, error)
        self.tell()

    def _link(self, told: Attributes, path: bytes) -> bool:
        """Joins a further name of a file that was copied under its first."""
        if told.nlink < 2:
            return False
        first, left = self._linked.get(told.ino, (path, told.nlink))
        self._linked[told.ino] = (first, left - 1)
        if left <= 1:
            del self._linked[told.ino]
        if first == path:
            return False
        os.link(first, path, follow_symlinks=False)
        return True

    async def _copy(self, told: Attributes, path: bytes) -> None:
        kind = stat.S_IFMT(told.mode)
        if kind == stat.S_IFREG:
            await self._content(told, path)
            self.copied.files += 1
        elif kind == stat.S_IFLNK:
            os.symlink(self._volume.readlink(told.ino), path)
            self.copied.others += 1
        else:
            os.mknod(path, kind | 0o600, told.rdev)
            self.copied.others += 1
        self._finish(told, path)

    async def _content(self, told: Attributes, path: bytes) -> None:
        """Reads only where the metadata has leaves: holes cost nothing and stay holes."""
        store = self._volume.store
        span = LEAF_PAGES * store.cell_bytes
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, told.size)
            for number, _ in store.meta.leaf_range(told.ino, 0, -(-told.size // span)):
                end = min((number + 1) * span, told.size)
                for offset in range(number * span, end, PIECE_BYTES):
                    wanted = min(PIECE_BYTES, end - offset)
                    piece = bytes(await self._volume.read(told.ino, offset, wanted))
                    self._write(fd, offset, piece)
                    self.copied.bytes += len(piece)
                    self.tell()
        finally:
            os.close(fd)

    def _write(self, fd: int, offset: int, piece: bytes) -> None:
        """Writes the cells of a piece that are not all zeros, neighbours together."""
        size = self._volume.store.cell_bytes
        begin = 0
        while begin < len(piece):
            end = begin
            while end < len(piece) and any(piece[end : end + size]):
                end += size
            _write_all(fd, piece[begin:end], offset + begin)
            begin = end + size

    def _finish(self, told: Attributes, path: bytes) -> None:
        """Owner, mode, extended attributes, times: in the order in which each leaves the others."""
        try:
            if self._privileged:
                os.chown(path, told.uid, told.gid, follow_symlinks=False)
            if not stat.S_ISLNK(told.mode):
                os.chmod(path, stat.S_IMODE(told.mode))
            for name in self._volume.listxattr(told.ino, ROOT):
                value = self._volume.getxattr(told.ino, name)
                os.setxattr(path, name, value, follow_symlinks=False)
            times = (told.atime_ns, told.mtime_ns)
            os.utime(path, ns=times, follow_symlinks=False)
        except (RaidfsError, OSError) as error:
            self._failed(path, error)

    def tell(self, end: bool = False) -> None:
        """Progress on a terminal, now and then; `end` closes the line."""
        if not self._progress or (not end and time.monotonic() - self._told_at < PROGRESS_S):
            return
        self._told_at = time.monotonic()
        done = self.copied
        line = f"\r{done.files} files, {done.directories} directories, {size_text(done.bytes)}   "
        print(line, end="\r\n" if end else "", file=sys.stderr, flush=True)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _find(volume: Volume, path: str) -> int:
    """The inode of a path within the volume."""
    ino = ROOT_INO
    for name in os.fsencode(path).split(b"/"):
        if name in (b"", b"."):
            continue
        try:
            ino = volume.lookup(ino, name).ino
        except RaidfsError as error:
            raise UsageError(f"{path}: {os.strerror(error.errno)} in the volume") from error
    return ino


async def _run(
    assembly: Assembly, paths: tuple[str, ...], destination: str, force: bool, progress: bool
) -> Copied:
    store = await Store.open(assembly, read_only=True, clock=time.time_ns)
    try:
        volume = Volume(store, noatime=True)
        found = [(path.strip("/"), _find(volume, path)) for path in paths] or [("", ROOT_INO)]
        extraction = Extraction(volume, force, progress)
        for path, ino in found:
            place = os.fsencode(os.path.join(destination, path)).rstrip(b"/")
            os.makedirs(os.path.dirname(place), exist_ok=True)
            await extraction.tree(ino, place)
        extraction.tell(end=True)
        return extraction.copied
    finally:
        await store.close()


def _check_destination(paths: tuple[str, ...], destination: str, force: bool) -> None:
    """Refuses before anything is written."""
    if os.path.lexists(destination) and not os.path.isdir(destination):
        raise UsageError(f"{destination} is not a directory; name one, new or empty")
    for path in paths:
        if ".." in path.split("/"):
            raise UsageError(f"{path}: name files from the volume's root, without '..'")
        place = os.path.join(destination, path.strip("/"))
        if not force and os.path.lexists(place) and path.strip("/"):
            raise UsageError(f"{place} exists already; name another directory, or use --force")
    whole = not paths or any(not path.strip("/") for path in paths)
    if whole and not force and os.path.isdir(destination) and os.listdir(destination):
        raise UsageError(f"{destination} is not empty; name another directory, or use --force")


@click.command("extract")
@click.argument("where", metavar="MEMBER")
@click.argument("paths", metavar="[PATH...]", nargs=-1)
@click.option("--to", "destination", required=True, help="Directory to copy into.")
@click.option("--member", "members", multiple=True, help="Where another member is now.")
@click.option("--force", is_flag=True, help="Replace what exists.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def extract_command(
    where: str,
    paths: tuple[str, ...],
    destination: str,
    members: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> int:
    """Copy files out of an unmounted volume, named by any member, without FUSE.

    PATHs count from the volume's root and appear under the same names below --to; without any, the
    whole volume is copied. Owners, modes, times, links, holes and extended attributes are kept as
    far as the destination and your rights allow. Works as long as enough members are left.

    Exit code: 0 all copied, 1 something could not be (each is named).

    \b
    Examples:
      raidfs-ctl extract /srv/disk2 --to /mnt/usb/rescued
      raidfs-ctl extract /srv/disk2 home/ann/mail --to .
    """
    found = target.must_be_unmounted(where, "extract")
    _check_destination(paths, destination, force)
    assembly = Assembly.open(found.path, degraded=True, read_only=True, extra_paths=list(members))
    progress = sys.stderr.isatty() and not as_json
    try:
        copied = trio.run(_run, assembly, paths, os.path.abspath(destination), force, progress)
    finally:
        assembly.close()
    if as_json:
        print_json(
            {
                "files": copied.files,
                "directories": copied.directories,
                "others": copied.others,
                "bytes": copied.bytes,
                "failures": copied.failures,
            }
        )
    else:
        click.echo(
            f"{copied.files} files, {copied.directories} directories, {copied.others} others,"
            f" {size_text(copied.bytes)}"
            + (f"; {len(copied.failures)} failures" if copied.failures else "")
        )
    return EXIT_ERROR if copied.failures else 0
