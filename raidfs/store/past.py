"""The past in the metadata: what Meta is asked of an inode number that belongs to a snapshot.

A program sees file `ino` of snapshot `id` under the number id << VIEW_SHIFT | ino, its *view
number*; the root of that view is id << VIEW_SHIFT | 1. Numbers below FIRST_VIEW mean the present.
So whoever reads inodes, names, attributes and leaves need not know of snapshots.

 1. A view number is answered by the versions visible at the snapshot's epoch; the numbers in the
    answer (of inodes, of parents) are view numbers as well.
 2. Of a snapshot that isn't in `views` nothing exists.
 3. It costs what the present costs: one search by the same key, with the epoch in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raidfs.leaves import decode_cells
from raidfs.store.inodes import PROBES, Dirent, InodeRow, Inodes
from raidfs.store.tables import Leaf, Tables

VIEW_SHIFT = 40
FIRST_VIEW = 1 << VIEW_SHIFT
SNAPSHOT_ID_MAX = (1 << 22) - 1  # so that numbers stay below 1 << 62
_WITHIN = FIRST_VIEW - 1

INODE_THEN = (
    "SELECT ino, generation, mode, uid, gid, rdev, size, nlink, parent, atime_ns, mtime_ns, "
    "ctime_ns, btime_ns, target, xattrs, cells, born, died FROM inode "
    "WHERE ino = ? AND born <= ? ORDER BY born DESC LIMIT 1"
)
PROBE_THEN = (
    "SELECT position, name, ino, kind FROM dirent "
    "WHERE parent = ? AND position BETWEEN ? AND ? AND born <= ? AND died > ?"
)
LIST_THEN = (
    "SELECT position, name, ino, kind FROM dirent WHERE parent = ? AND position > ? "
    "AND born <= ? AND died > ? ORDER BY position LIMIT ?"
)
XATTR_THEN = (
    "SELECT value, died FROM xattr WHERE ino = ? AND name = ? AND born <= ? "
    "ORDER BY born DESC LIMIT 1"
)
XATTRS_THEN = "SELECT name FROM xattr WHERE ino = ? AND born <= ? AND died > ? ORDER BY name"
LEAF_THEN = (
    "SELECT cells, inline, died FROM leaf WHERE ino = ? AND number = ? AND born <= ? "
    "ORDER BY born DESC LIMIT 1"
)
LEAVES_THEN = (
    "SELECT number, cells, inline FROM leaf WHERE ino = ? AND number >= ? AND number < ? "
    "AND born <= ? AND died > ? ORDER BY number LIMIT 256"
)
NEXT_THEN = (
    "SELECT number FROM leaf WHERE ino = ? AND number >= ? AND born <= ? AND died > ? "
    "ORDER BY number LIMIT 1"
)


def view_of(ino: int) -> int:
    """The id of the snapshot that the number belongs to; 0: the present."""
    return ino >> VIEW_SHIFT


def within(ino: int) -> int:
    """The number in the metadata's tables."""
    return ino & _WITHIN


def as_view(snapshot_id: int, ino: int) -> int:
    """The number under which that snapshot's file is seen."""
    return snapshot_id << VIEW_SHIFT | ino


class Past(Inodes, Tables):
    """See the module. `views`: the epoch of each snapshot by its id."""

    views: dict[int, int]

    def inode(self, ino: int) -> InodeRow | None:
        if ino < FIRST_VIEW:
            return super().inode(ino)
        epoch = self.views.get(ino >> VIEW_SHIFT)
        row = self._row(INODE_THEN, (ino & _WITHIN, epoch)) if epoch is not None else None
        if row is None or epoch is None or row[-1] <= epoch:
            return None
        found = InodeRow(*row[:-1])
        found.ino = ino
        if found.parent:
            found.parent = as_view(ino >> VIEW_SHIFT, found.parent)
        return found

    def lookup(self, parent: int, name: bytes) -> Dirent | None:
        if parent < FIRST_VIEW:
            return super().lookup(parent, name)
        epoch = self.views.get(parent >> VIEW_SHIFT)
        if epoch is None:
            return None
        place = self._place(name)
        key = (parent & _WITHIN, place, place + PROBES - 1, epoch, epoch)
        for row in self._rows(PROBE_THEN, key):
            if row[1] == name:
                return _seen(parent, row)
        return None

    def entries(self, parent: int, after_position: int, limit: int) -> list[Dirent]:
        if parent < FIRST_VIEW:
            return super().entries(parent, after_position, limit)
        epoch = self.views.get(parent >> VIEW_SHIFT)
        if epoch is None:
            return []
        key = (parent & _WITHIN, after_position, epoch, epoch, limit)
        return [_seen(parent, row) for row in self._rows(LIST_THEN, key)]

    def is_empty(self, parent: int) -> bool:
        return not self.entries(parent, -1, 1)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        if ino < FIRST_VIEW:
            return super().xattr(ino, name)
        epoch = self.views.get(ino >> VIEW_SHIFT)
        row = self._row(XATTR_THEN, (ino & _WITHIN, name, epoch)) if epoch is not None else None
        return row[0] if row is not None and epoch is not None and row[1] > epoch else None

    def xattr_names(self, ino: int) -> list[bytes]:
        if ino < FIRST_VIEW:
            return super().xattr_names(ino)
        epoch = self.views.get(ino >> VIEW_SHIFT)
        if epoch is None:
            return []
        return [row[0] for row in self._rows(XATTRS_THEN, (ino & _WITHIN, epoch, epoch))]

    def leaf(self, ino: int, number: int) -> Leaf | None:
        if ino < FIRST_VIEW:
            return super().leaf(ino, number)
        epoch = self.views.get(ino >> VIEW_SHIFT)
        row = self._row(LEAF_THEN, (ino & _WITHIN, number, epoch)) if epoch is not None else None
        if row is None or epoch is None or row[2] <= epoch:
            return None
        return Leaf(decode_cells(row[0]), row[1])

    def leaf_range(self, ino: int, first: int, last_exclusive: int) -> Iterator[tuple[int, Leaf]]:
        if ino < FIRST_VIEW:
            yield from super().leaf_range(ino, first, last_exclusive)
            return
        while (epoch := self.views.get(ino >> VIEW_SHIFT)) is not None:
            key = (ino & _WITHIN, first, min(last_exclusive, 1 << 62), epoch, epoch)
            rows = self._rows(LEAVES_THEN, key)
            for number, cells, inline in rows:
                yield number, Leaf(decode_cells(cells), inline)
            if not rows:
                return
            first = rows[-1][0] + 1

    def leaf_next(self, ino: int, first: int) -> int | None:
        if ino < FIRST_VIEW:
            return super().leaf_next(ino, first)
        epoch = self.views.get(ino >> VIEW_SHIFT)
        if epoch is None:
            return None
        row = self._row(NEXT_THEN, (ino & _WITHIN, first, epoch, epoch))
        return None if row is None else int(row[0])


def _seen(parent: int, row: tuple[Any, ...]) -> Dirent:
    return Dirent(row[0], row[1], as_view(parent >> VIEW_SHIFT, row[2]), row[3])
