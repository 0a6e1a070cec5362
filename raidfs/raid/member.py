"""The member: a place that keeps bytes. The one seam between raidfs and the world's storage.

Directories (directory.py), image files and devices (raw.py) stand behind it, and so does whatever a
simulator puts there. A member keeps three things: its label (two copies), two metadata files (an
SQLite database and its write-ahead log) and columns, one per (zone, column) that lies on it.

 1. Every method blocks until done, may be called from any thread, and raises MemberError (or
    MemberFull, when room is what lacks) for whatever the world does wrong; then nothing is known of
    the bytes it was to write, and everything else is as before.
 2. What was written before a sync of the same file or column that returned survives a crash.
    `write_label` and `column_create` need no sync after them.
 3. `close` may be called at any time; operations under way finish on open descriptors, later ones
    raise MemberError. Descriptors are never used after they were closed.
 4. A member opened with a lock is open in no other process that asks for the lock.
 5. A column's bytes are undefined until written; reading them is not an error.
 6. Opened with `direct`, columns (and nothing else) are read and written past the page cache. Then
    buffers are those of `native.aligned`, offsets and lengths multiples of whole cells.
"""

from __future__ import annotations

import abc
import enum
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.columns import Look
from raidfs.errors import MemberError, MemberFull, UsageError
from raidfs.raid.label import LABEL_BYTES as LABEL_BYTES
from raidfs.raid.label import Label

Kind = Literal["directory", "image", "device"]


class MetaFile(enum.Enum):
    """The metadata files; the value is the name inside a directory member."""

    DB = "raidfs.db"
    WAL = "raidfs.db-wal"

    __hash__ = object.__hash__  # each is one object, and Enum's own is a function of Python


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column lies: in an open file, from there on. `name`: for messages."""

    fd: int
    offset_bytes: int
    name: str


class Member(abc.ABC):
    """See the module. `slots_total` and `zone_bytes` are known once a label was adopted, and so is
    `volume_id`, by which the metadata know each other.

    lends: whether `column_borrow` gives descriptors, so that an engine can do the work.
    never_waits: it is memory; else reading may take as long as it likes, and `column_descriptor`
    and what ends in `_cached` ask for nothing that isn't there already.
    """

    kind: ClassVar[Kind]
    lends: ClassVar[bool] = False
    path: str
    read_only: bool = False
    direct: bool = False
    never_waits: bool = True
    slots_total: int = 0
    zone_bytes: int = 0
    volume_id: str = ""
    _tells_cached: bool = True

    def adopt(self, label: Label) -> None:
        """Take sizes (and, on raw members, where things lie) from this label."""
        self.slots_total = label.entry(label.member_id).slots
        self.zone_bytes = label.parameters.zone_bytes
        self.volume_id = label.volume_id

    @abc.abstractmethod
    def close(self) -> None: ...

    @abc.abstractmethod
    def read_label(self, copy: int) -> bytes:
        """The raw bytes of copy 0 or 1: LABEL_BYTES of them, fewer if the member ends there."""

    @abc.abstractmethod
    def write_label(self, copy: int, data: bytes) -> None:
        """Write one copy and sync it."""

    @abc.abstractmethod
    def meta_read(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes:
        """Short at the end of the file."""

    def meta_read_cached(self, file: MetaFile, offset_bytes: int, nbytes: int) -> bytes | None:
        """As `meta_read`, if all of it can be had without waiting for the medium; else None."""
        return None

    @abc.abstractmethod
    def meta_write(self, file: MetaFile, offset_bytes: int, data: bytes | memoryview) -> None: ...

    @abc.abstractmethod
    def meta_truncate(self, file: MetaFile, nbytes: int) -> None: ...

    @abc.abstractmethod
    def meta_size(self, file: MetaFile) -> int:
        """Bytes. On raw members an upper bound for a log that this process hasn't written."""

    @abc.abstractmethod
    def meta_sync(self, file: MetaFile) -> None: ...

    def meta_write_synced(self, file: MetaFile, offset_bytes: int, data: bytes) -> None:
        """`meta_write`, then `meta_sync`."""
        self.meta_write(file, offset_bytes, data)
        self.meta_sync(file)

    @abc.abstractmethod
    def meta_limit(self, file: MetaFile) -> int:
        """The most bytes that this file may come to have, as things are now."""

    @abc.abstractmethod
    def column_create(self, zone: int, column: int, slot: int, nbytes: int) -> None:
        """Room for the column, durably. Harmless if it exists; one that was cut short keeps what it
        has. MemberFull leaves nothing behind that wasn't there."""

    @abc.abstractmethod
    def column_remove(self, zone: int, column: int, slot: int) -> None:
        """Give the room back. Harmless if the column isn't there."""

    @abc.abstractmethod
    def column_read(
        self, zone: int, column: int, slot: int, offset_bytes: int, out: memoryview
    ) -> None:
        """Fill `out` (writable bytes) wholly, or MemberError."""

    def column_read_cached(
        self, zone: int, column: int, slot: int, offset_bytes: int, out: memoryview
    ) -> bool:
        """As `column_read`, but only if that needs no waiting for the medium: else False, and
        nothing is known of `out`. May be called where nothing may block; doesn't raise."""
        return False

    @property
    def tells_cached(self) -> bool:
        """Its files can be asked for no more than is there without waiting."""
        return self._tells_cached and not self.direct

    def column_open(self, zone: int, column: int, slot: int) -> None:
        """So that `column_descriptor` finds the column open."""
        return

    def look(self) -> Look | None:
        """What is known of the files of columns; None: nothing."""
        return None

    def column_descriptor(self, zone: int, column: int, slot: int) -> tuple[int, int] | None:
        """(a descriptor that is now the caller's, where the column begins in that file), to read
        the column by until it is removed; None if there is no such thing. Doesn't raise."""
        return None

    def column_borrow(self, zone: int, column: int, slot: int) -> AbstractContextManager[Place]:
        """`with` it: the column's place, open inside, not to be closed. MemberError on entry."""
        raise NotImplementedError("this kind of member lends no descriptors")

    def column_confirm(self, place: Place) -> None:
        """After a sync of a borrowed descriptor: MemberError if what it wrote is lost even so."""
        assert place.fd >= 0

    def _descriptor_of(
        self, descriptor: AbstractContextManager[int], offset_bytes: int
    ) -> tuple[int, int] | None:
        """`column_descriptor` of a place in a file."""
        try:
            with descriptor as fd:
                return os.dup(fd), offset_bytes
        except (OSError, MemberError):
            return None

    def _meta_cached(
        self, descriptor: AbstractContextManager[int], offset_bytes: int, nbytes: int
    ) -> bytes | None:
        """`meta_read_cached` of a place in a file."""
        if not self._tells_cached:
            return None
        out = bytearray(nbytes)
        try:
            with descriptor as fd:
                got = os.preadv(fd, [out], offset_bytes, os.RWF_NOWAIT)
        except (OSError, MemberError) as error:
            self._tells_cached = error.errno != errno.EOPNOTSUPP
            return None
        return bytes(out) if got == nbytes else None

    def _read_cached(
        self, descriptor: AbstractContextManager[int], offset_bytes: int, out: memoryview
    ) -> bool:
        """`column_read_cached` of a place in a file. Some file systems can't do it."""
        if self.direct or not self._tells_cached:
            return False
        try:
            with descriptor as fd:
                return os.preadv(fd, [out], offset_bytes, os.RWF_NOWAIT) == len(out)
        except (OSError, MemberError) as error:
            self._tells_cached = error.errno != errno.EOPNOTSUPP
            return False

    @abc.abstractmethod
    def column_write(
        self,
        zone: int,
        column: int,
        slot: int,
        offset_bytes: int,
        addresses: npt.NDArray[np.uint64],
        cell_bytes: int,
    ) -> None:
        """Write the cells that lie in memory at `addresses`, one after the other."""

    @abc.abstractmethod
    def column_sync(self, zone: int, column: int, slot: int) -> None: ...

    @abc.abstractmethod
    def column_exists(self, zone: int, column: int, slot: int) -> bool:
        """Raw members can't tell and say True."""

    def column_afresh(self, zone: int, column: int, slot: int, nbytes: int) -> bool:
        """What is read of the column from now on is what lies there by its name and on the medium,
        as far as that can be had, not what is remembered of it. False: it hasn't so many bytes."""
        return self.column_exists(zone, column, slot)

    @abc.abstractmethod
    def columns(self) -> list[tuple[int, int]]:
        """(zone, column) of all columns found, ascending; raw members can't tell: []."""

    @abc.abstractmethod
    def room_bytes(self) -> int:
        """What the place beneath has left for more columns; a large number on raw members."""


class said_of:
    """Turn an OSError inside into a MemberError that names the member and what was being done.

    A class, as `Descriptors.borrow` uses one, since each metadata page that is read passes here: a
    generator costs several times as much.
    """

    __slots__ = ("_doing", "_path")

    def __init__(self, path: str, doing: str) -> None:
        self._path = path
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        path, doing = self._path, self._doing
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MemberFull(
                f"{path}: no room for {doing}: free some on its filesystem", path
            ) from error
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise MemberError(f"{path}: {doing} failed: {reason}{remedy}", path, error.errno) from error


class Lent:
    """`column_borrow` of a place in a file."""

    __slots__ = ("_borrowed", "_name", "_offset_bytes", "_path")

    def __init__(self, path: str, borrowed: _Borrowed, offset_bytes: int, name: str) -> None:
        self._path = path
        self._borrowed = borrowed
        self._offset_bytes = offset_bytes
        self._name = name

    def __enter__(self) -> Place:
        with said_of(self._path, f"opening {self._name}"):
            return Place(self._borrowed.__enter__(), self._offset_bytes, self._name)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._borrowed.__exit__(kind, error, trace)


_REMEDIES = {
    errno.ENOENT: "; check the path, or mount the filesystem that it lies on",
    errno.EACCES: "; give yourself access to it or run as root",
    errno.EPERM: "; give yourself access to it or run as root",
    errno.EROFS: "; make it writable, or mount the volume with -o ro",
}


def open_direct(path: str, name: str, flags: int) -> int:
    """Open the file `name` of the member at `path` past the page cache, and see that it can be read
    so. UsageError where that can't be: no fault of the member, so it is not to leave for it."""
    with said_of(path, "opening it past the page cache"):
        try:
            fd = os.open(name, flags | os.O_DIRECT)
            try:
                os.preadv(fd, [native.aligned((native.ALIGNMENT_BYTES,)).data], 0)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise UsageError(
                f"{path}: its filesystem or device can't bypass the page cache: mount without "
                "-o direct, or move this member to one that can (ext4, XFS, a device)"
            ) from None
    return fd


def are_aligned(addresses: npt.NDArray[np.uint64] | memoryview) -> bool:
    """Whether these buffers will do for promise 6."""
    if isinstance(addresses, memoryview):
        start = np.frombuffer(addresses, np.uint8).ctypes.data
        return (start | len(addresses)) % native.ALIGNMENT_BYTES == 0
    return not (addresses % np.uint64(native.ALIGNMENT_BYTES)).any()


def read_bytes(fd: int, offset_bytes: int, nbytes: int) -> bytes:
    """At most `nbytes`, fewer only at the end of the file. OSError."""
    data = os.pread(fd, nbytes, offset_bytes)
    while data and len(data) < nbytes:
        more = os.pread(fd, nbytes - len(data), offset_bytes + len(data))
        if not more:
            break
        data += more
    return data


def read_up_to(fd: int, offset_bytes: int, out: memoryview) -> int:
    """Fill `out` as far as the file goes; the bytes read. OSError."""
    done = 0
    while done < len(out):
        got = os.preadv(fd, [out[done:]], offset_bytes + done)
        if got == 0:
            break
        done += got
    return done


def write_whole(fd: int, offset_bytes: int, data: bytes | memoryview) -> None:
    """pwrite all of `data`. OSError."""
    rest = memoryview(data).cast("B")
    while len(rest):
        done = os.pwrite(fd, rest, offset_bytes)
        rest = rest[done:]
        offset_bytes += done


class Descriptors:
    """Open file descriptors by key, at most `limit` idle ones; keeps promise 3 of the module. The
    lock is never held while a file is opened or closed, which a member may take its time for."""

    def __init__(self, path: str, opener: Callable[[Hashable], int], limit: int = 64) -> None:
        self._path = path
        self._opener = opener
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Hashable, list[int]] = OrderedDict()  # key -> [fd, users]
        self._closed = False
        self._forgets = 0

    def borrow(self, key: Hashable) -> _Borrowed:
        """`with borrow(key) as fd`: the descriptor, opened if need be (OSError), open inside."""
        return _Borrowed(self, key)

    def borrow_open(self, key: Hashable) -> _Borrowed:
        """The same, but only if it is open already: else MemberError, at once."""
        return _Borrowed(self, key, opens=False)

    def _take(self, key: Hashable, opens: bool) -> list[int]:
        while True:
            with self._lock:
                held = self._held(key)
                if held is not None:
                    return held
                forgets = self._forgets
            if not opens:
                raise MemberError(f"{self._path}: not open", self._path)
            fd, closing = self._opener(key), []
            with self._lock:
                if self._closed or self._forgets != forgets:  # that may be another file by now
                    held, closing = None, [fd]
                elif (held := self._held(key)) is not None:  # somebody was faster
                    closing = [fd]
                else:
                    held = self._open[key] = [fd, 1]
                    closing = self._evicted()
            _close_all(closing)
            if held is not None:
                return held

    def _held(self, key: Hashable) -> list[int] | None:
        """With the lock held: one more user has it, if it is open."""
        if self._closed:
            raise MemberError(f"{self._path}: this member was closed", self._path)
        held = self._open.get(key)
        if held is not None:
            held[1] += 1
            self._open.move_to_end(key)
        return held

    def _give(self, key: Hashable, held: list[int]) -> None:
        with self._lock:
            held[1] -= 1
            over = held[1] == 0 and self._open.get(key) is not held
        if over:
            os.close(held[0])

    def forget(self, key: Hashable) -> None:
        """Close the descriptor of `key`, at once or when its last borrower is done."""
        with self._lock:
            self._forgets += 1
            closing = self._dropped(key)
        _close_all(closing)

    def close(self) -> None:
        """Forget all, for good."""
        with self._lock:
            self._closed = True
            closing = [fd for key in list(self._open) for fd in self._dropped(key)]
        _close_all(closing)

    def _dropped(self, key: Hashable) -> list[int]:
        """With the lock held: the descriptor, if nobody uses it; to be closed."""
        held = self._open.pop(key, None)
        return [held[0]] if held is not None and held[1] == 0 else []

    def _evicted(self) -> list[int]:
        """With the lock held: as many of the oldest as there are too many; to be closed."""
        closing: list[int] = []
        if len(self._open) <= self._limit:
            return closing
        for key, held in list(self._open.items()):
            if held[1] == 0:
                closing += self._dropped(key)
                if len(self._open) <= self._limit:
                    break
        return closing


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class _Borrowed:
    """One use of a descriptor."""

    __slots__ = ("_descriptors", "_held", "_key", "_opens")

    def __init__(self, descriptors: Descriptors, key: Hashable, opens: bool = True) -> None:
        self._descriptors = descriptors
        self._key = key
        self._opens = opens

    def __enter__(self) -> int:
        self._held = self._descriptors._take(self._key, self._opens)
        return self._held[0]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._descriptors._give(self._key, self._held)
