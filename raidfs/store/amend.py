"""A name moved within the past: what was on its way at a group's cut arrives in the snapshot of it.

The versions concerned that are visible at the snapshot's epoch e are split, so that one of them is
visible at e alone, [e, e+1), and that one is changed. Whoever reads the snapshot, goes back to it,
sends or compares it finds the name as any other (schema.sql, V7).

 1. No other retained epoch sees a difference, nor does the present: rows that still live are not
    split; the caller sees to it that those concerned have died.
 2. It belongs into the transaction that makes an epoch durable, and is done whole or not at all.
"""

from __future__ import annotations

import stat
from typing import Any

from raidfs.errors import RaidfsError
from raidfs.store.database import INF, needed
from raidfs.store.inodes import PROBES, Dirent, InodeRow
from raidfs.store.past import as_view, within
from raidfs.store.undo import Undo

AT = {
    "inode": "SELECT born, died FROM inode WHERE ino = ? AND born <= ? AND died > ?",
    "dirent": (
        "SELECT born, died FROM dirent WHERE parent = ? AND position = ? AND born <= ? AND died > ?"
    ),
}
COPY = {
    "inode": (
        "INSERT INTO inode SELECT ino, ?, ?, generation, mode, uid, gid, rdev, size, nlink, "
        "parent, atime_ns, mtime_ns, ctime_ns, btime_ns, target, xattrs, cells "
        "FROM inode WHERE ino = ? AND born = ?"
    ),
    "dirent": (
        "INSERT INTO dirent SELECT parent, position, ?, ?, name, ino, kind "
        "FROM dirent WHERE parent = ? AND position = ? AND born = ?"
    ),
}
END = {
    "inode": "UPDATE inode SET died = ? WHERE ino = ? AND born = ?",
    "dirent": "UPDATE dirent SET died = ? WHERE parent = ? AND position = ? AND born = ?",
}
REMOVE = {
    "inode": "DELETE FROM inode WHERE ino = ? AND born = ?",
    "dirent": "DELETE FROM dirent WHERE parent = ? AND position = ? AND born = ?",
}
PARENT = "SELECT parent FROM inode WHERE ino = ? AND born <= ? AND died > ?"
PUT_NAME = (
    "INSERT INTO dirent (parent, position, born, died, name, ino, kind) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
PUT_PLACE = "UPDATE inode SET parent = ?, nlink = nlink + ? WHERE ino = ? AND born = ?"
POSITIONS = (
    "SELECT position FROM dirent WHERE parent = ? AND position BETWEEN ? AND ? "
    "AND born <= ? AND died > ?"
)


class Amend(Undo):
    """See the module."""

    def move_then(
        self, snapshot: int, parent: int, name: bytes, new_parent: int, new_name: bytes
    ) -> None:
        """In that snapshot, what is called `name` in a directory is called `new_name` in another.
        Numbers are those of the present. RaidfsError: nothing was changed."""
        epoch = self.views[snapshot]
        entry = self.lookup(as_view(snapshot, parent), name)
        if entry is None:
            raise RaidfsError("there is no such name in the snapshot")
        ino = within(entry.ino)
        moved = self.inode(entry.ino)
        assert moved is not None
        position = self._vacant_then(epoch, new_parent, new_name)
        for each in {parent, new_parent, ino}:
            self._check_dead("inode", (each,), epoch)
        self._check_dead("dirent", (parent, entry.position), epoch)
        self._put_then(epoch, entry, moved, (parent, new_parent), position, new_name)

    def _put_then(
        self,
        epoch: int,
        entry: Dirent,
        moved: InodeRow,
        parents: tuple[int, int],
        position: int,
        name: bytes,
    ) -> None:
        parent, new_parent = parents
        ino, is_directory = within(entry.ino), stat.S_ISDIR(moved.mode)
        for _ in range(16):
            self._spend()
        self._isolate("dirent", (parent, entry.position), epoch)
        self._run(REMOVE["dirent"], (parent, entry.position, epoch))
        values = (new_parent, position, epoch, epoch + 1, name, ino, entry.kind)
        self._run(PUT_NAME, values)
        self._isolate("inode", (ino,), epoch)
        self._run(PUT_PLACE, (new_parent, 0, ino, epoch))
        for each, links in ((parent, -1), (new_parent, 1)):
            row = self._parent_then(each, epoch)
            self._isolate("inode", (each,), epoch)
            self._run(PUT_PLACE, (row, links * is_directory, each, epoch))

    def _parent_then(self, ino: int, epoch: int) -> int:
        """The directory that held it."""
        row = self._row(PARENT, (ino, epoch, epoch))
        assert row is not None
        return int(row[0])

    def is_live_then(self, ino: int, epoch: int) -> bool:
        """The version that was visible then is that of the present."""
        row = self._row(AT["inode"], (ino, epoch, epoch))
        return row is not None and row[1] == INF

    def _vacant_then(self, epoch: int, parent: int, name: bytes) -> int:
        place = self._place(name)
        rows = self._rows(POSITIONS, (parent, place, place + PROBES - 1, epoch, epoch))
        taken = {row[0] for row in rows}
        for position in range(place, place + PROBES):
            if position not in taken:
                return position
        raise RaidfsError("too many names of this directory have the same hash")

    def _check_dead(self, table: str, key: tuple[Any, ...], epoch: int) -> None:
        row = self._row(AT[table], (*key, epoch, epoch))
        if row is None or row[1] == INF:
            raise RaidfsError(f"{table} {key} can't be split at epoch {epoch}")

    def _isolate(self, table: str, key: tuple[Any, ...], epoch: int) -> None:
        """The version visible at that epoch is [epoch, epoch + 1) on return; of what it was before
        and after, what somebody needs stays."""
        row = self._row(AT[table], (*key, epoch, epoch))
        assert row is not None
        born, died = row
        if (born, died) == (epoch, epoch + 1):
            return
        if died > epoch + 1 and needed(epoch + 1, died, self.retained):
            self._run(COPY[table], (epoch + 1, died, *key, born))
        if born < epoch:
            self._run(COPY[table], (epoch, epoch + 1, *key, born))
            if needed(born, epoch, self.retained):
                self._run(END[table], (epoch, *key, born))
            else:
                self._run(REMOVE[table], (*key, born))
            return
        self._run(END[table], (epoch + 1, *key, born))
