"""Undoing what came after an epoch: of all that an opening finds, of a wholesale change in pieces.

What an epoch changed is named by the inodes with a version of it (schema.sql, V4). Of each, rows
that were born later go, and those that died later live again; its own rows last, so that whoever
is stopped within, or by a crash, finds it again.

 1. A piece changes a bounded number of rows; commits may come between pieces, in any number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raidfs.leaves import decode_cells
from raidfs.store.touched import Touched

PIECE_ROWS = 256

# Rows of an inode to be undone, from a place on: the place, `born`, and of leaves the cells.
CHANGED = {
    "leaf": (
        "SELECT number, born, cells FROM leaf WHERE ino = ? AND number >= ? "
        "AND (born > ? OR (died > ? AND died < 9223372036854775807)) ORDER BY number, born LIMIT ?"
    ),
    "dirent": (
        "SELECT position, born, NULL FROM dirent WHERE parent = ? AND position >= ? "
        "AND (born > ? OR (died > ? AND died < 9223372036854775807)) "
        "ORDER BY position, born LIMIT ?"
    ),
    "xattr": (
        "SELECT name, born, NULL FROM xattr WHERE ino = ? AND name >= ? "
        "AND (born > ? OR (died > ? AND died < 9223372036854775807)) ORDER BY name, born LIMIT ?"
    ),
}
_LOWEST: dict[str, Any] = {"leaf": 0, "dirent": -1, "xattr": b""}
DELETE_ROW = {
    "leaf": "DELETE FROM leaf WHERE (ino, number, born) = (?, ?, ?)",
    "dirent": "DELETE FROM dirent WHERE (parent, position, born) = (?, ?, ?)",
    "xattr": "DELETE FROM xattr WHERE (ino, name, born) = (?, ?, ?)",
}
REVIVE_ROW = {
    "leaf": "UPDATE leaf SET died = 9223372036854775807 WHERE (ino, number, born) = (?, ?, ?)",
    "dirent": (
        "UPDATE dirent SET died = 9223372036854775807 WHERE (parent, position, born) = (?, ?, ?)"
    ),
    "xattr": "UPDATE xattr SET died = 9223372036854775807 WHERE (ino, name, born) = (?, ?, ?)",
}
# All rows of an inode at once; the inode's own come last.
DELETE = {
    "dirent": "DELETE FROM dirent WHERE parent = ? AND born > ?",
    "xattr": "DELETE FROM xattr WHERE ino = ? AND born > ?",
    "inode": "DELETE FROM inode WHERE ino = ? AND born > ?",
}
REVIVE = {
    "dirent": (
        "UPDATE dirent SET died = 9223372036854775807 "
        "WHERE parent = ? AND died > ? AND died < 9223372036854775807"
    ),
    "xattr": (
        "UPDATE xattr SET died = 9223372036854775807 "
        "WHERE ino = ? AND died > ? AND died < 9223372036854775807"
    ),
    "inode": (
        "UPDATE inode SET died = 9223372036854775807 "
        "WHERE ino = ? AND died > ? AND died < 9223372036854775807"
    ),
}


class Undo(Touched):
    """See the module."""

    def undo(self, ino: int, epoch: int) -> None:
        """Names, attributes and row of an inode are again what they were in that epoch."""
        for table in DELETE:
            self._run(DELETE[table], (ino, epoch))
            self._run(REVIVE[table], (ino, epoch))

    def undo_wholly(self, ino: int, epoch: int) -> Iterator[None]:
        """The same in pieces, leaves included, and what was recorded to be shared by them."""
        for table in CHANGED:
            place = _LOWEST[table]
            values = (epoch, epoch, PIECE_ROWS)
            while rows := self._rows(CHANGED[table], (ino, place, *values)):
                for place, born, cells in rows:
                    self._spend()
                    if born <= epoch:
                        self._run(REVIVE_ROW[table], (ino, place, born))
                        continue
                    self._run(DELETE_ROW[table], (ino, place, born))
                    gone = decode_cells(cells)
                    if gone is not None:
                        self.unshare(ino, place, gone)
                yield
        self._spend()
        self._run(DELETE["inode"], (ino, epoch))
        self._run(REVIVE["inode"], (ino, epoch))
        yield

    # -- of the open epoch, while it goes on ------------------------------------------------------

    @property
    def unlogged_pages(self) -> int:
        """At most so many pages the open transaction has dirtied."""
        return self._spent

    def is_touched(self, epoch: int, ino: int) -> bool:
        """The inode has a version of that epoch, or its end, which is not durable."""
        return self._touched.get(ino) == epoch

    def touched_in(self, epoch: int) -> list[int]:
        """All of those, ascending."""
        return sorted(ino for ino, newest in self._touched.items() if newest == epoch)

    def take_back(self, epoch: int) -> Iterator[None]:
        """Nothing of the open epoch ever happened: in pieces, which may go into the log one by
        one. The epoch before is durable."""
        assert epoch == self.durable + 1
        for ino in self.touched_in(epoch):
            pieces = self.undo_wholly(ino, epoch - 1)
            more = True
            while more:
                with self.reserve():
                    more = next(pieces, True) is None
                yield
            del self._touched[ino]
        self._accounts.pop(epoch, None)
        self._probed = None
        self.changed = False
