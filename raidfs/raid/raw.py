"""Members without a filesystem of their own: an image file, a block device.

    offset          content
    0               label copy 0
    64 KiB          label copy 1
    128 KiB         database area: db_bytes
    + db_bytes      log area: wal_bytes
    data_offset     slot 0, slot 1, ...: zone_bytes each; data_offset is a multiple of 1 MiB

A column lies in a slot; which one, its zone says. The metadata areas have no inode that would keep
a size, so it comes from the content: the database's own header names its pages; the log is empty
if it doesn't begin as a log does, and otherwise taken to fill its area until this process cuts it.

 1. What lies in an area beyond the size is never part of a file that SQLite would believe: cutting
    the log also destroys the frame header at the cut, and frames of older logs carry other salts.
 2. Nothing is written outside of the label, the areas and the slots in use.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import sys
import threading
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.columns import Look, look_at
from raidfs.errors import MemberBusy, MemberError, MemberFull
from raidfs.raid.directory import lock_file
from raidfs.raid.label import LABEL_BYTES, LABEL_COPIES, Label, Parameters
from raidfs.raid.member import (
    Descriptors,
    Lent,
    Member,
    MetaFile,
    are_aligned,
    open_direct,
    read_bytes,
    read_up_to,
    said_of,
    write_whole,
)

MIB = 1 << 20
META_OFFSET_BYTES = LABEL_COPIES * LABEL_BYTES
ROOM_UNKNOWN_BYTES = 1 << 60

_REST, _COLUMNS = 0, 1  # what a descriptor is for

_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_SQLITE_MAGIC = b"SQLite format 3\0"
_CUT_BYTES = 4096
_BLKROGET = 0x125E  # linux/fs.h
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where things lie on a raw member."""

    db_bytes: int
    wal_bytes: int
    zone_bytes: int

    @classmethod
    def of(cls, parameters: Parameters) -> Geometry:
        return cls(parameters.db_bytes, parameters.wal_bytes, parameters.zone_bytes)

    @property
    def data_offset_bytes(self) -> int:
        end = META_OFFSET_BYTES + self.db_bytes + self.wal_bytes
        return -(-end // MIB) * MIB

    def area(self, file: MetaFile) -> tuple[int, int]:
        """(offset, bytes) of a metadata area."""
        if file is MetaFile.DB:
            return META_OFFSET_BYTES, self.db_bytes
        return META_OFFSET_BYTES + self.db_bytes, self.wal_bytes

    def slots_in(self, member_bytes: int) -> int:
        """How many zone slots a member of that size has."""
        return max(0, (member_bytes - self.data_offset_bytes) // self.zone_bytes)


class RawMember(Member):
    """What image and device share. Before `adopt` only the label can be reached."""

    lends = True

    def __init__(
        self, path: str, *, read_only: bool = False, lock: bool = True, direct: bool = False
    ) -> None:
        self.path = path
        self.read_only = read_only
        self.direct = direct
        fd = column_fd = self._open(lock)
        try:
            if lock:
                lock_file(fd, path)
            self.bytes_total = os.lseek(fd, 0, os.SEEK_END)
            if direct:  # what the open file is, whatever has come to stand at its path
                column_fd = open_direct(path, f"/proc/self/fd/{fd}", self._flags())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._column_fd = column_fd
        self._look = look_at(column_fd)
        self.never_waits = self._look.never_waits
        self._descriptors = Descriptors(path, self._duplicate)
        self._geometry: Geometry | None = None
        self._sizes: dict[MetaFile, int] = {}
        self._sizes_lock = threading.Lock()

    def _flags(self) -> int:
        return os.O_CLOEXEC | (os.O_RDONLY if self.read_only else os.O_RDWR)

    def _open(self, lock: bool) -> int:
        flags = self._flags()
        if lock:
            flags |= self._exclusive
        with said_of(self.path, "opening"):
            try:
                return os.open(self.path, flags)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise MemberBusy(
                    f"{self.path} is in use (mounted, or part of something else): "
                    "unmount or release it first"
                ) from None

    _exclusive = 0

    def _duplicate(self, key: Hashable) -> int:
        return os.dup(self._column_fd if key == _COLUMNS else self._fd)

    def close(self) -> None:
        self._descriptors.close()
        for fd in {self._fd, self._column_fd} - {-1}:
            os.close(fd)
        self._fd = self._column_fd = -1

    def adopt(self, label: Label) -> None:
        super().adopt(label)
        geometry = Geometry.of(label.parameters)
        needed = geometry.data_offset_bytes + self.slots_total * geometry.zone_bytes
        if needed > self.bytes_total:
            raise MemberError(
                f"{self.path} has {self.bytes_total} bytes and its label says {needed}: it was cut "
                "off or is a partial copy",
                self.path,
            )
        self._geometry = geometry

    def lay_out(self, geometry: Geometry, slots: int) -> None:
        """Make it an empty member: no label, no metadata. MemberError."""
        self._geometry = geometry
        self.slots_total = slots
        self.zone_bytes = geometry.zone_bytes
        for copy in range(LABEL_COPIES):
            self.write_label(copy, bytes(LABEL_BYTES))
        for file in MetaFile:
            self._sizes[file] = 0
            self.meta_truncate(file, 0)

    @property
    def geometry(self) -> Geometry:
        assert self._geometry is not None, "adopt() comes first"
        return self._geometry

    # label

    def read_label(self, copy: int) -> bytes:
        assert 0 <= copy < LABEL_COPIES
        out = bytearray(LABEL_BYTES)
        with said_of(self.path, "reading the label"), self._descriptors.borrow(_REST) as fd:
            got = read_up_to(fd, copy * LABEL_BYTES, memoryview(out))
        return bytes(out[:got])

    def write_label(self, copy: int, data: bytes) -> None:
        assert not self.read_only and 0 <= copy < LABEL_COPIES and len(data) == LABEL_BYTES
        with said_of(self.path, "writing the label"), self._descriptors.borrow(_REST) as fd:
            write_whole(fd, copy * LABEL_BYTES, data)
            os.fsync(fd)

    # metadata

    def meta_read(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes:
        assert offset_bytes >= 0
        nbytes = max(0, min(nbytes, self.meta_size(file) - offset_bytes))
        return self._area_read(file, offset_bytes, nbytes)

    def _area_read(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes:
        start, area_bytes = self.geometry.area(file)
        assert offset_bytes + nbytes <= area_bytes or nbytes == 0
        with said_of(self.path, f"reading {file.value}"), self._descriptors.borrow(_REST) as fd:
            return read_bytes(fd, start + offset_bytes, nbytes)

    def meta_read_cached(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes | None:
        size = self._sizes.get(file)
        if size is None or offset_bytes + nbytes > size:
            return None
        start, _ = self.geometry.area(file)
        return self._meta_cached(self._descriptors.borrow(_REST), start + offset_bytes, nbytes)

    def meta_write(self, file: MetaFile, offset_bytes: int, data: bytes | memoryview) -> None:
        assert not self.read_only
        start, area_bytes = self.geometry.area(file)
        end = offset_bytes + memoryview(data).nbytes
        if end > area_bytes:
            raise MemberFull(f"{self.path}: the metadata area is full", self.path)
        size = self.meta_size(file)
        with said_of(self.path, f"writing {file.value}"), self._descriptors.borrow(_REST) as fd:
            if offset_bytes > size:  # a file would show zeros between
                write_whole(fd, start + size, bytes(offset_bytes - size))
            write_whole(fd, start + offset_bytes, data)
        with self._sizes_lock:
            self._sizes[file] = max(self._sizes[file], end)

    def meta_truncate(self, file: MetaFile, nbytes: int) -> None:
        assert not self.read_only
        start, area_bytes = self.geometry.area(file)
        if nbytes > area_bytes:
            raise MemberFull(f"{self.path}: the metadata area is full", self.path)
        size = self.meta_size(file)
        with said_of(self.path, f"truncating {file.value}"), self._descriptors.borrow(_REST) as fd:
            if nbytes > size:
                write_whole(fd, start + size, bytes(nbytes - size))
            elif file is MetaFile.WAL or nbytes == 0:  # promise 1
                write_whole(fd, start + nbytes, bytes(min(_CUT_BYTES, area_bytes - nbytes)))
        with self._sizes_lock:
            self._sizes[file] = nbytes

    def meta_size(self, file: MetaFile) -> int:
        with self._sizes_lock:
            if file in self._sizes:
                return self._sizes[file]
        head = self._area_read(file, 0, 32)
        area_bytes = self.geometry.area(file)[1]
        size = 0
        if file is MetaFile.WAL:
            size = area_bytes if head[:4] in _WAL_MAGIC else 0
        elif head[:16] == _SQLITE_MAGIC:
            page_bytes = int.from_bytes(head[16:18], "big")
            page_bytes = 65536 if page_bytes == 1 else page_bytes
            size = min(area_bytes, page_bytes * int.from_bytes(head[28:32], "big"))
        with self._sizes_lock:
            return self._sizes.setdefault(file, size)

    def meta_sync(self, file: MetaFile) -> None:
        with said_of(self.path, f"syncing {file.value}"), self._descriptors.borrow(_REST) as fd:
            os.fdatasync(fd)

    def meta_limit(self, file: MetaFile) -> int:
        return self.geometry.area(file)[1]

    # columns

    def _slot_offset(self, slot: int, offset_bytes: int, nbytes: int) -> int:
        geometry = self.geometry
        assert 0 <= slot < self.slots_total, (slot, self.slots_total)
        assert 0 <= offset_bytes <= offset_bytes + nbytes <= geometry.zone_bytes
        return geometry.data_offset_bytes + slot * geometry.zone_bytes + offset_bytes

    def column_create(self, zone: int, column: int, slot: int, nbytes: int) -> None:
        assert not self.read_only and zone > 0 and 0 <= column < 256
        self._slot_offset(slot, 0, nbytes)

    def column_afresh(self, zone: int, column: int, slot: int, nbytes: int) -> bool:
        start = self._slot_offset(slot, 0, nbytes)
        with said_of(self.path, f"reading slot {slot}"), self._descriptors.borrow(_COLUMNS) as fd:
            os.posix_fadvise(fd, start, nbytes, os.POSIX_FADV_DONTNEED)
        return True

    def column_remove(self, zone: int, column: int, slot: int) -> None:
        assert not self.read_only
        self._slot_offset(slot, 0, 0)

    def column_read(
        self, zone: int, column: int, slot: int, offset_bytes: int, out: memoryview
    ) -> None:
        out = out.cast("B") if out.ndim != 1 or out.format != "B" else out
        assert not self.direct or are_aligned(out)
        start = self._slot_offset(slot, offset_bytes, len(out))
        with said_of(self.path, f"reading slot {slot}"), self._descriptors.borrow(_COLUMNS) as fd:
            got = read_up_to(fd, start, out)
        if got < len(out):
            raise MemberError(f"{self.path}: it ends inside slot {slot}", self.path)

    def column_read_cached(
        self, zone: int, column: int, slot: int, offset_bytes: int, out: memoryview
    ) -> bool:
        start = self._slot_offset(slot, offset_bytes, len(out))
        return self._read_cached(self._descriptors.borrow(_COLUMNS), start, out)

    def look(self) -> Look:
        return self._look

    def column_descriptor(self, zone: int, column: int, slot: int) -> tuple[int, int] | None:
        start = self._slot_offset(slot, 0, 0)
        return self._descriptor_of(self._descriptors.borrow(_COLUMNS), start)

    def column_borrow(self, zone: int, column: int, slot: int) -> Lent:
        start = self._slot_offset(slot, 0, 0)
        return Lent(self.path, self._descriptors.borrow(_COLUMNS), start, f"slot {slot}")

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
        start = self._slot_offset(slot, offset_bytes, len(addresses) * cell_bytes)
        with said_of(self.path, f"writing slot {slot}"), self._descriptors.borrow(_COLUMNS) as fd:
            native.write_cells(fd, start, addresses, cell_bytes)

    def column_sync(self, zone: int, column: int, slot: int) -> None:
        with said_of(self.path, f"syncing slot {slot}"), self._descriptors.borrow(_COLUMNS) as fd:
            os.fdatasync(fd)

    def column_exists(self, zone: int, column: int, slot: int) -> bool:
        return True

    def columns(self) -> list[tuple[int, int]]:
        return []

    def room_bytes(self) -> int:
        return ROOM_UNKNOWN_BYTES


class DeviceMember(RawMember):
    """A block device. O_EXCL makes the kernel refuse one that is mounted or held by another."""

    kind = "device"
    _exclusive = os.O_EXCL

    def __init__(
        self, path: str, *, read_only: bool = False, lock: bool = True, direct: bool = False
    ) -> None:
        super().__init__(path, read_only=read_only, lock=lock, direct=direct)
        assert stat.S_ISBLK(os.fstat(self._fd).st_mode)

    def _open(self, lock: bool) -> int:
        """The kernel opens a read-only device for writing, and only refuses the writes."""
        fd = super()._open(lock)
        try:
            with said_of(self.path, "opening"):
                protected = int.from_bytes(fcntl.ioctl(fd, _BLKROGET, bytes(4)), sys.byteorder)
                if protected and not self.read_only:
                    raise OSError(errno.EROFS, "")
        except BaseException:
            os.close(fd)
            raise
        return fd


class ImageMember(RawMember):
    """An image file, possibly sparse: a column's room is taken when the column is made."""

    kind = "image"

    def column_create(self, zone: int, column: int, slot: int, nbytes: int) -> None:
        super().column_create(zone, column, slot, nbytes)
        start = self._slot_offset(slot, 0, nbytes)
        doing = f"a column of {nbytes} bytes"
        with said_of(self.path, doing), self._descriptors.borrow(_COLUMNS) as fd:
            try:
                os.posix_fallocate(fd, start, nbytes)
            except OSError:
                _punch_hole(fd, start, nbytes)
                raise
            os.fsync(fd)

    def column_remove(self, zone: int, column: int, slot: int) -> None:
        """Best effort: where holes can't be punched, the room stays with the image."""
        start = self._slot_offset(slot, 0, 0)
        with said_of(self.path, "giving back a column"), self._descriptors.borrow(_COLUMNS) as fd:
            _punch_hole(fd, start, self.geometry.zone_bytes)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _punch_hole(fd: int, offset_bytes: int, nbytes: int) -> None:
    """os has no fallocate(2) with a mode."""
    _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset_bytes, nbytes)
