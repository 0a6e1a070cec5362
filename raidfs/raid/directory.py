"""A member in a directory: everything is a file that an administrator can look at.

   label                          both copies, at 0 and at 65536
   metadata/raidfs.db, -wal       the metadata
   zones/xx/ZONE.COLUMN           a column; ZONE in hex (8 digits or more), COLUMN in decimal,
                                  xx the last two hex digits of ZONE
   zones/spare.N                  while open: a column that was removed and will be the next one

1. Nothing else is created, and nothing but these is ever removed.
2. Column files have all their room from the start, so a write into one never lacks any.
3. A few removed columns are kept for the next ones: room that is already there is cheaper to
   write to than new room (of memory filesystems by half, elsewhere by what extents cost).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
from collections.abc import Hashable
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.columns import Look, look_at
from raidfs.errors import LabelMissing, MemberBusy, MemberError
from raidfs.raid.label import LABEL_BYTES, LABEL_COPIES
from raidfs.raid.member import (
    Descriptors,
    Lent,
    Member,
    MetaFile,
    Place,
    are_aligned,
    open_direct,
    read_bytes,
    read_up_to,
    said_of,
    write_whole,
)

LABEL_NAME = "label"
METADATA_NAME = "metadata"
ZONES_NAME = "zones"
SPARE_PREFIX = "spare."
SPARES_MAX = 4
OWN_NAMES = (LABEL_NAME, METADATA_NAME, ZONES_NAME)

_COLUMN_NAME = re.compile(r"([0-9a-f]{8,16})\.([0-9]{1,3})")


class DirectoryMember(Member):
    """See the module. Opening needs the label file to be there; its content is not looked at."""

    kind = "directory"
    lends = True

    def __init__(
        self, path: str, *, read_only: bool = False, lock: bool = True, direct: bool = False
    ) -> None:
        self.path = path
        self.read_only = read_only
        self.direct = direct
        self._mode = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        self._files = Descriptors(path, self._open_file)
        with said_of(path, "opening the label"):
            try:
                fd = os.open(self._at(LABEL_NAME), self._mode)
            except FileNotFoundError:
                os.stat(path)
                raise LabelMissing(
                    f"{path} is not a member of a raidfs volume: it has no file named label"
                ) from None
        try:
            if lock:
                lock_file(fd, path)
            if direct:  # now, since a column that can't be opened so would count as lost
                os.close(open_direct(path, self._at(LABEL_NAME), os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            os.close(fd)
            raise
        self.never_waits = look_at(fd).never_waits
        self._lock_fd = fd  # holds the lock until close, whatever Descriptors evicts
        self._spares: list[tuple[str, int]] = []  # (path, bytes)
        self._spares_lock = threading.Lock()
        self._spares_made = 0
        if not read_only:
            _remove_spares(path)  # of a daemon that was killed

    def close(self) -> None:
        self._files.close()
        with self._spares_lock, contextlib.suppress(OSError):
            while self._spares:
                os.unlink(self._spares.pop()[0])
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def _at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def _open_file(self, key: Hashable) -> int:
        if isinstance(key, MetaFile):
            directory = self._at(METADATA_NAME)
            name = os.path.join(directory, key.value)
            with contextlib.suppress(FileNotFoundError):
                return os.open(name, self._mode)
            if self.read_only:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            fd = os.open(name, self._mode | os.O_CREAT, 0o600)
            _sync_directory(directory)
            return fd
        if key == LABEL_NAME:
            return os.open(self._at(LABEL_NAME), self._mode)
        assert isinstance(key, tuple)
        return os.open(self._column_path(*key), self._mode | (os.O_DIRECT if self.direct else 0))

    # label

    def read_label(self, copy: int) -> bytes:
        assert 0 <= copy < LABEL_COPIES
        out = bytearray(LABEL_BYTES)
        with said_of(self.path, "reading the label"), self._files.borrow(LABEL_NAME) as fd:
            got = read_up_to(fd, copy * LABEL_BYTES, memoryview(out))
        return bytes(out[:got])

    def write_label(self, copy: int, data: bytes) -> None:
        assert not self.read_only and 0 <= copy < LABEL_COPIES and len(data) == LABEL_BYTES
        with said_of(self.path, "writing the label"), self._files.borrow(LABEL_NAME) as fd:
            write_whole(fd, copy * LABEL_BYTES, data)
            os.fsync(fd)

    # metadata

    def meta_read(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes:
        with said_of(self.path, f"reading {file.value}"):
            try:
                with self._files.borrow(file) as fd:
                    return read_bytes(fd, offset_bytes, nbytes)
            except FileNotFoundError:
                return b""

    def meta_read_cached(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes | None:
        return self._meta_cached(self._files.borrow_open(file), offset_bytes, nbytes)

    def meta_write(self, file: MetaFile, offset_bytes: int, data: bytes | memoryview) -> None:
        assert not self.read_only
        with said_of(self.path, f"writing {file.value}"), self._files.borrow(file) as fd:
            write_whole(fd, offset_bytes, data)

    def meta_truncate(self, file: MetaFile, nbytes: int) -> None:
        assert not self.read_only
        with said_of(self.path, f"truncating {file.value}"), self._files.borrow(file) as fd:
            os.ftruncate(fd, nbytes)

    def meta_size(self, file: MetaFile) -> int:
        with said_of(self.path, f"looking at {file.value}"):
            try:
                with self._files.borrow(file) as fd:
                    return os.fstat(fd).st_size
            except FileNotFoundError:
                return 0

    def meta_sync(self, file: MetaFile) -> None:
        with said_of(self.path, f"syncing {file.value}"), self._files.borrow(file) as fd:
            _sync_file(fd)

    def meta_write_synced(self, file: MetaFile, offset_bytes: int, data: bytes) -> None:
        assert not self.read_only
        with said_of(self.path, "writing the log"), self._files.borrow(file) as fd:
            if os.pwrite(fd, data, offset_bytes) != len(data):
                write_whole(fd, offset_bytes, data)
            _sync_file(fd)

    def meta_limit(self, file: MetaFile) -> int:
        return self.meta_size(file) + self._free_bytes()

    # columns

    def _column_path(self, zone: int, column: int) -> str:
        return self._at(ZONES_NAME, f"{zone & 255:02x}", f"{zone:08x}.{column}")

    def column_create(self, zone: int, column: int, slot: int, nbytes: int) -> None:
        assert not self.read_only and zone > 0 and 0 <= column < 256 and nbytes > 0
        path = self._column_path(zone, column)
        directory = os.path.dirname(path)
        self._files.forget((zone, column))
        with said_of(self.path, f"a column of {nbytes} bytes"):
            was_there = False
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_size == nbytes:
                    return
                was_there = True
            if not os.path.isdir(directory):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o700)
                _sync_directory(os.path.dirname(directory))
            if not was_there and self._take_spare(path, nbytes):
                _sync_directory(directory)
                return
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, nbytes)
                os.ftruncate(fd, nbytes)
                os.fsync(fd)
            except OSError:
                if not was_there:
                    os.unlink(path)
                raise
            finally:
                os.close(fd)
            _sync_directory(directory)

    def column_remove(self, zone: int, column: int, slot: int) -> None:
        assert not self.read_only
        self._files.forget((zone, column))
        path = self._column_path(zone, column)
        with said_of(self.path, "removing a column"), contextlib.suppress(FileNotFoundError):
            if not self._make_spare(path):
                os.unlink(path)

    def _make_spare(self, path: str) -> bool:
        """Keeps a removed column's file, if it has all its room (where files are compressed, none
        has) and there aren't enough. OSError."""
        found = os.stat(path)
        with self._spares_lock:
            enough = len(self._spares) >= SPARES_MAX or self._lock_fd < 0
            if enough or found.st_blocks * 512 < found.st_size:
                return False
            self._spares_made += 1
            spare = self._at(ZONES_NAME, f"{SPARE_PREFIX}{self._spares_made}")
            os.rename(path, spare)
            self._spares.append((spare, found.st_size))
            return True

    def _take_spare(self, path: str, nbytes: int) -> bool:
        """Makes a kept file of that size the column `path`. One that somebody removed or cut short
        is forgotten."""
        with self._spares_lock:
            for spare, size in [each for each in self._spares if each[1] == nbytes]:
                self._spares.remove((spare, size))
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(spare).st_size == nbytes:
                        os.rename(spare, path)
                        return True
                    os.unlink(spare)
            return False

    def column_read(
        self, zone: int, column: int, slot: int, offset_bytes: int, out: memoryview
    ) -> None:
        out = out.cast("B") if out.ndim != 1 or out.format != "B" else out
        assert not self.direct or are_aligned(out)
        name = f"{zone:08x}.{column}"
        with said_of(self.path, f"reading {name}"), self._files.borrow((zone, column)) as fd:
            got = read_up_to(fd, offset_bytes, out)
        if got < len(out):
            raise MemberError(f"{self.path}: {name} is shorter than it was made", self.path)

    def column_read_cached(
        self, zone: int, column: int, slot: int, offset_bytes: int, out: memoryview
    ) -> bool:
        return self._read_cached(self._lent_at_once(zone, column), offset_bytes, out)

    def column_open(self, zone: int, column: int, slot: int) -> None:
        with said_of(self.path, f"opening {zone:08x}.{column}"), self._files.borrow((zone, column)):
            pass

    def look(self) -> Look:
        return Look(0, 0, self.never_waits, self.direct)

    def column_descriptor(self, zone: int, column: int, slot: int) -> tuple[int, int] | None:
        return self._descriptor_of(self._lent_at_once(zone, column), 0)

    def _lent_at_once(self, zone: int, column: int) -> AbstractContextManager[int]:
        """Opening a file may take its time, where reading does."""
        key = (zone, column)
        return self._files.borrow(key) if self.never_waits else self._files.borrow_open(key)

    def column_borrow(self, zone: int, column: int, slot: int) -> Lent:
        name = f"{zone:08x}.{column}"
        return Lent(self.path, self._files.borrow((zone, column)), 0, name)

    def column_confirm(self, place: Place) -> None:
        with said_of(self.path, f"syncing {place.name}"):
            _require_linked(place.fd)

    def column_write(
        self,
        zone: int,
        column: int,
        slot: int,
        offset_bytes: int,
        addresses: npt.NDArray[np.uint64],
        cell_bytes: int,
    ) -> None:
        assert not self.read_only and (not self.direct or are_aligned(addresses))
        doing = f"writing {zone:08x}.{column}"
        with said_of(self.path, doing), self._files.borrow((zone, column)) as fd:
            native.write_cells(fd, offset_bytes, addresses, cell_bytes)

    def column_sync(self, zone: int, column: int, slot: int) -> None:
        doing = f"syncing {zone:08x}.{column}"
        with said_of(self.path, doing), self._files.borrow((zone, column)) as fd:
            _sync_file(fd)

    def column_exists(self, zone: int, column: int, slot: int) -> bool:
        return os.path.exists(self._column_path(zone, column))

    def column_afresh(self, zone: int, column: int, slot: int, nbytes: int) -> bool:
        self._files.forget((zone, column))
        with said_of(self.path, f"opening {zone:08x}.{column}"):
            try:
                with self._files.borrow((zone, column)) as fd:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    return os.fstat(fd).st_size >= nbytes
            except FileNotFoundError:
                return False

    def columns(self) -> list[tuple[int, int]]:
        found = []
        with said_of(self.path, "listing the columns"):
            for directory in os.listdir(self._at(ZONES_NAME)):
                if re.fullmatch("[0-9a-f]{2}", directory) is None:
                    continue
                for name in os.listdir(self._at(ZONES_NAME, directory)):
                    parts = _COLUMN_NAME.fullmatch(name)
                    if parts is not None:
                        found.append((int(parts[1], 16), int(parts[2])))
        return sorted(found)

    def room_bytes(self) -> int:
        with self._spares_lock:
            kept = sum(nbytes for _, nbytes in self._spares)
        return self._free_bytes() + kept

    def _free_bytes(self) -> int:
        with said_of(self.path, "asking for free room"):
            room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize


def lock_file(fd: int, path: str) -> None:
    """Promise 4 of the member, for files and directories."""
    with said_of(path, "locking"):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MemberBusy(
                f"{path} is in use: its volume is mounted or being worked on; unmount it first"
            ) from None


def lay_out_directory(path: str) -> DirectoryMember:
    """Make the empty structure in `path` and open it, locked. What exists of ours is emptied."""
    with said_of(path, "making the directories"):
        fd = os.open(os.path.join(path, LABEL_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(fd)
        member = DirectoryMember(path)
        try:
            for name in (METADATA_NAME, ZONES_NAME):
                os.makedirs(os.path.join(path, name), 0o700, exist_ok=True)
            clear_directory(path)
            for copy in range(LABEL_COPIES):
                member.write_label(copy, bytes(LABEL_BYTES))
            _sync_directory(path)
        except BaseException:
            member.close()
            raise
    return member


def clear_directory(path: str) -> None:
    """Remove our metadata and columns, and nothing that isn't ours. OSError."""
    for file in MetaFile:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, METADATA_NAME, file.value))
    _remove_spares(path)
    zones = os.path.join(path, ZONES_NAME)
    for directory in os.listdir(zones):
        if re.fullmatch("[0-9a-f]{2}", directory) is None:
            continue
        for name in os.listdir(os.path.join(zones, directory)):
            if _COLUMN_NAME.fullmatch(name):
                os.unlink(os.path.join(zones, directory, name))
        with contextlib.suppress(OSError):  # something that isn't ours lies there: it stays
            os.rmdir(os.path.join(zones, directory))


def _remove_spares(path: str) -> None:
    """What can't be removed only takes room."""
    with contextlib.suppress(OSError):
        zones = os.path.join(path, ZONES_NAME)
        for name in os.listdir(zones):
            if re.fullmatch(re.escape(SPARE_PREFIX) + "[0-9]+", name):
                os.unlink(os.path.join(zones, name))


def remove_layout(path: str) -> None:
    """Undo lay_out_directory as far as what is there is ours. Never raises OSError."""
    with contextlib.suppress(OSError):
        clear_directory(path)
    for name in (METADATA_NAME, ZONES_NAME):
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(path, name))
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(path, LABEL_NAME))


def _sync_file(fd: int) -> None:
    os.fdatasync(fd)
    _require_linked(fd)


def _require_linked(fd: int) -> None:
    """ENOENT for a file that was deleted under us: what is in it is in vain."""
    if os.fstat(fd).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "deleted")


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
