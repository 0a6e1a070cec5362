"""What the kernel may be told without asking Python: names, attributes; and what it refers to.

A thin skin over csrc/known.h. Python puts here what it tells the kernel anyway, so that C can tell
it again; and forgets it before it changes. References (how often the kernel was told of an inode
and has not forgotten it) are counted here by both.

 1. Answers are what was put and not forgotten since; whatever isn't here, only Python may answer.
 2. References are exact; entries are bounded, the least recently used go first.
 3. Putting and `tell` belong to one thread, that of the event loop; the rest to any.
 4. One that isn't `enabled` holds references only: nobody puts anything into it.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Any

from raidfs._native import ffi, lib

NBYTES_MAX = 64 << 20  # a quarter of a million files and their names
_AT_ONCE = 256

# struct rf_inode, for one call that fills it
_INODE = struct.Struct("=QQQQqqqIIIIIIII")
assert _INODE.size == ffi.sizeof("struct rf_inode")


@dataclass(frozen=True, slots=True)
class KnownInode:
    """What rf_known_getattr and rf_known_lookup tell. With `resident`, size and times are to be
    had from `Pages` alone."""

    ino: int
    generation: int
    size: int
    cells: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    inline_bytes_max: int
    resident: int
    no_xattrs: int


@dataclass(frozen=True, slots=True)
class KnownStatistics:
    """One look at all the counters, taken together."""

    inodes: int
    names: int
    directories: int
    complete: int
    nbytes: int
    nbytes_max: int
    evicted: int
    hits: int
    negative_hits: int
    misses: int
    referenced: int
    reference_bytes: int
    watched: int
    unreferenced: int


def _check(result: int) -> int:
    """The result of a call, unless it is an error."""
    if result == -errno.ENOMEM:
        raise MemoryError
    assert result >= 0, result
    return result


class Known:
    """The names, attributes and references of one volume."""

    def __init__(self, nbytes_max: int = NBYTES_MAX, *, enabled: bool = True) -> None:
        known = lib.rf_known_new(nbytes_max if enabled else 0)
        if not known:
            raise MemoryError
        self._known = ffi.gc(known, lib.rf_known_free)
        self._inode = ffi.new("struct rf_inode *")
        self._fields = ffi.buffer(self._inode)
        self.enabled = enabled

    @property
    def pointer(self) -> Any:
        """struct rf_known *, for C. Lives as long as this object."""
        return self._known

    # -- attributes -------------------------------------------------------------------------------

    def tell(
        self, inode: tuple[int, ...], parent: int = 0, name: bytes = b"", count: int = 0
    ) -> None:
        """What a reply to the kernel says: the attributes (the fields of KnownInode), the name that
        leads there unless it is empty (or `.` or `..`), `count` references. All in one step."""
        _INODE.pack_into(self._fields, 0, *inode)
        if lib.rf_known_tell(self._known, self._inode, parent, name, len(name), count):
            raise MemoryError

    def put_inode(self, inode: tuple[int, ...]) -> None:
        """The attributes alone; without memory they are not known."""
        _INODE.pack_into(self._fields, 0, *inode)
        lib.rf_known_inode_put(self._known, self._inode)

    def forget_inode(self, ino: int) -> bool:
        """Whether the attributes were known until now."""
        return bool(lib.rf_known_inode_forget(self._known, ino))

    def getattr(self, ino: int) -> KnownInode | None:
        """None: not known."""
        out = ffi.new("struct rf_inode *")
        if lib.rf_known_getattr(self._known, ino, out) != 1:
            return None
        return KnownInode(*(getattr(out, field) for field in KnownInode.__slots__))

    # -- names ------------------------------------------------------------------------------------

    def put_name(self, parent: int, name: bytes, ino: int) -> None:
        """`ino` 0: the name doesn't exist."""
        _check(lib.rf_known_name_put(self._known, parent, name, len(name), ino))

    def forget_name(self, parent: int, name: bytes) -> None:
        """Before a name comes, goes or leads elsewhere: until it is put again, it is not known."""
        lib.rf_known_name_forget(self._known, parent, name, len(name))

    def name_removed(self, parent: int, name: bytes) -> None:
        """The name is gone: forgotten, or known not to exist if the directory is complete."""
        lib.rf_known_name_removed(self._known, parent, name, len(name))

    def put_directory(self, ino: int, names: int) -> bool:
        """The directory holds so many names. True if all of them are known: then any other name is
        known not to exist, for as long as the directory is complete."""
        return _check(lib.rf_known_directory_put(self._known, ino, names)) == 1

    def forget_directory(self, ino: int) -> None:
        """And all names in it."""
        lib.rf_known_directory_forget(self._known, ino)

    def forget_between(self, first: int, last: int) -> None:
        """Attributes of inodes first..last and the names in them. Looks at all there is."""
        at = lib.rf_known_forget_between(self._known, first, last, 0)
        while at:
            at = lib.rf_known_forget_between(self._known, first, last, at)

    def lookup(self, parent: int, name: bytes) -> KnownInode | int | None:
        """As C does it: an inode, to which one more reference is counted; 0, the name doesn't
        exist; or None, not known."""
        out = ffi.new("struct rf_inode *")
        result = lib.rf_known_lookup(self._known, parent, name, len(name), out)
        if result == -errno.ENOENT:
            return None
        if not _check(result):
            return 0
        return KnownInode(*(getattr(out, field) for field in KnownInode.__slots__))

    # -- references -------------------------------------------------------------------------------

    def refer(self, ino: int, count: int = 1) -> None:
        if lib.rf_known_refer(self._known, ino, count):
            raise MemoryError

    def references(self, ino: int) -> int:
        count: int = lib.rf_known_references(self._known, ino)
        return count

    def referenced(self) -> list[int]:
        """All inodes that the kernel refers to, in no order."""
        room = self.statistics().referenced
        while True:
            inos = ffi.new("uint64_t[]", room + _AT_ONCE)
            count = lib.rf_known_referenced(self._known, inos, room + _AT_ONCE)
            if count <= room + _AT_ONCE:
                return list(ffi.unpack(inos, count)) if count else []
            room = count

    def release(self, ino: int, count: int = 1) -> int:
        """Take back `count` references, at most all; returns what is left."""
        left: int = lib.rf_known_release(self._known, ino, count)
        return left

    def watch(self, ino: int) -> int:
        """How often the kernel refers to the inode (2**63 - 1: so often or more). If at all, the
        last release leaves it in `unreferenced`."""
        return _check(lib.rf_known_watch(self._known, ino))

    def unreferenced(self) -> list[int]:
        """The watched inodes that have lost their last reference, each once."""
        found: list[int] = []
        if lib.rf_known_any_unreferenced(self._known):
            inos = ffi.new("uint64_t[]", _AT_ONCE)
            while count := lib.rf_known_unreferenced(self._known, inos, _AT_ONCE):
                found += ffi.unpack(inos, count)
        return found

    def statistics(self) -> KnownStatistics:
        out = ffi.new("struct rf_known_statistics *")
        lib.rf_known_statistics(self._known, out)
        return KnownStatistics(*(getattr(out, name) for name in KnownStatistics.__slots__))
