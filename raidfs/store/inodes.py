"""Inodes, names and extended attributes in the metadata: the tables with versions that users
change.

Rows are versions, visible at epoch e iff born <= e < died (schema.sql). Every method that changes
something takes the open epoch and is a plain function within the one open transaction.

 1. Versions of one key never overlap; what is made and undone within one epoch leaves nothing.
 2. A change of a directory's entries or of an inode's attributes comes after a version of that
    inode in the same epoch (asserted), so recovery finds all of it through the inodes.
 3. Cost is that of a few searches by primary key, whatever the number of files, entries or
    versions.
 4. `save_inodes` may put what an epoch made of an inode in the place of the version before, which
    nobody will ask for again: when no retained epoch sees that one, and the very next commit makes
    the epoch durable. Should another commit come first, the two versions are made of it before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import apsw
import msgspec

from raidfs.errors import OutOfSpace
from raidfs.store.database import INF, STATEMENT_PAGES, Database, needed
from raidfs.store.mirror import Mirror

PROBES = 8  # positions that a name may have
_POSITION_BITS = 62

INODE_NEWEST = (
    "SELECT ino, generation, mode, uid, gid, rdev, size, nlink, parent, atime_ns, mtime_ns, "
    "ctime_ns, btime_ns, target, xattrs, cells, born, died FROM inode "
    "WHERE ino = ? ORDER BY born DESC LIMIT 1"
)
INODE_INSERT = (
    "INSERT INTO inode (ino, generation, mode, uid, gid, rdev, size, nlink, parent, atime_ns, "
    "mtime_ns, ctime_ns, btime_ns, target, xattrs, cells, born, died) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 9223372036854775807)"
)
INODE_UPDATE = (
    "UPDATE inode SET generation = ?, mode = ?, uid = ?, gid = ?, rdev = ?, size = ?, nlink = ?, "
    "parent = ?, atime_ns = ?, mtime_ns = ?, ctime_ns = ?, btime_ns = ?, target = ?, xattrs = ?, "
    "cells = ? WHERE ino = ? AND born = ?"
)
INODE_KILL = "UPDATE inode SET died = ? WHERE ino = ? AND born = ?"
INODE_REBORN = "UPDATE inode SET born = ? WHERE ino = ? AND born = ?"
INODE_CELLS_OF = "SELECT cells FROM inode WHERE ino = ? AND born = ?"
INODE_INSERT_DEAD = (
    "INSERT INTO inode (ino, generation, mode, uid, gid, rdev, size, nlink, parent, atime_ns, "
    "mtime_ns, ctime_ns, btime_ns, target, xattrs, cells, born, died) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INODE_CELLS = "UPDATE inode SET cells = cells + ? WHERE ino = ? AND died > ?"
INODE_END = "UPDATE inode SET died = ? WHERE ino = ? AND died = 9223372036854775807"
INODE_DELETE = "DELETE FROM inode WHERE ino = ? AND born = ?"
INODE_ORPHANS = (
    "SELECT ino FROM inode "
    "WHERE nlink = 0 AND died = 9223372036854775807 AND ino > ? ORDER BY ino LIMIT ?"
)
INODE_ALL = (
    "SELECT ino, generation, mode, uid, gid, rdev, size, nlink, parent, atime_ns, mtime_ns, "
    "ctime_ns, btime_ns, target, xattrs, cells, born, died FROM inode "
    "WHERE (ino, born) > (?, ?) ORDER BY ino, born LIMIT 1000"
)

DIRENT_PROBE = (
    "SELECT position, name, ino, kind FROM dirent "
    "WHERE parent = ? AND position BETWEEN ? AND ? AND died = 9223372036854775807"
)
DIRENT_INSERT = (
    "INSERT INTO dirent (parent, position, born, died, name, ino, kind) "
    "VALUES (?, ?, ?, 9223372036854775807, ?, ?, ?)"
)
DIRENT_KILL = (
    "UPDATE dirent SET died = ? "
    "WHERE parent = ? AND position = ? AND born < ? AND died = 9223372036854775807"
)
DIRENT_DELETE = (
    "DELETE FROM dirent "
    "WHERE parent = ? AND position = ? AND born = ? AND died = 9223372036854775807"
)
DIRENT_LIST = (
    "SELECT position, name, ino, kind FROM dirent "
    "WHERE parent = ? AND position > ? AND died = 9223372036854775807 ORDER BY position LIMIT ?"
)
DIRENT_ALL = (
    "SELECT parent, position, born, died, name, ino, kind FROM dirent "
    "WHERE (parent, position, born) > (?, ?, ?) ORDER BY parent, position, born LIMIT 1000"
)

XATTR_NEWEST = (
    "SELECT born, died, value FROM xattr WHERE ino = ? AND name = ? ORDER BY born DESC LIMIT 1"
)
XATTR_LIST = "SELECT name FROM xattr WHERE ino = ? AND died = 9223372036854775807 ORDER BY name"
XATTR_BORN = "SELECT name, born FROM xattr WHERE ino = ? AND died = 9223372036854775807"
XATTR_INSERT = (
    "INSERT INTO xattr (ino, name, born, died, value) VALUES (?, ?, ?, 9223372036854775807, ?)"
)
XATTR_UPDATE = "UPDATE xattr SET value = ? WHERE ino = ? AND name = ? AND born = ?"
XATTR_KILL = "UPDATE xattr SET died = ? WHERE ino = ? AND name = ? AND born = ?"
XATTR_DELETE = "DELETE FROM xattr WHERE ino = ? AND name = ? AND born = ?"
XATTR_ALL = (
    "SELECT ino, name, born, died, value FROM xattr "
    "WHERE (ino, name, born) > (?, ?, ?) ORDER BY ino, name, born LIMIT 1000"
)


class InodeRow(msgspec.Struct):
    """The live version of an inode; columns as in schema.sql. `born` is kept by save_inode."""

    ino: int
    generation: int
    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    nlink: int
    parent: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    target: bytes | None
    xattrs: int
    cells: int
    born: int


class Dirent(msgspec.Struct, frozen=True):
    """A live directory entry."""

    position: int
    name: bytes
    ino: int
    kind: int


class Version(msgspec.Struct, frozen=True):
    """Lifetime of a row, for check."""

    born: int
    died: int

    @property
    def live(self) -> bool:
        return self.died == INF


def _update_of(row: InodeRow) -> tuple[Any, ...]:
    """The values of INODE_UPDATE, for the version that the row stands for."""
    values = msgspec.structs.astuple(row)
    return (*values[1:-1], values[0], values[-1])


class _Account:
    """What an epoch that isn't durable yet changes in the row of `state`."""

    __slots__ = ("first_ino", "inodes")

    def __init__(self, first_ino: int = INF, inodes: int = 0) -> None:
        self.first_ino = first_ino
        self.inodes = inodes


class _Atomic:
    """See `Inodes.atomic`; a class, since each change of a name passes here."""

    __slots__ = ("_changed", "_freeing", "_inodes")

    def __init__(self, inodes: Inodes, freeing: bool) -> None:
        self._inodes = inodes
        self._freeing = freeing

    def __enter__(self) -> None:
        self._changed = self._inodes._begin_atomic(self._freeing)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._inodes._end_atomic(error is not None, self._changed)


class Inodes(Database):
    """See the module. `changed`: something here was changed since the last `note_cut`."""

    def __init__(self, mirror: Mirror, connection: apsw.Connection) -> None:
        super().__init__(mirror, connection)
        self.changed = False
        self.next_ino = 2
        self._hash_key = b""
        self._accounts: dict[int, _Account] = {}  # by epoch, of those not durable
        self._probed: tuple[int, bytes, int, list[Any]] | None = None  # the last name looked for
        self._touched: dict[int, int] = {}  # ino -> newest epoch (not durable) with a version of it
        self._replaced: list[tuple[int, InodeRow, InodeRow]] = []  # epoch, before, now: promise 4
        self._journal: list[tuple[Any, int, Any]] | None = None  # see `atomic`
        self.exchanging = 0  # the epoch of a `Rewrite` that isn't finished

    def atomic(self, freeing: bool = False) -> _Atomic:
        """All changes inside happen, or, after an exception, none; the rows' `born` go back, too.
        Not to be nested. `freeing`: it gives room back, so it may use half of the reserve."""
        return _Atomic(self, freeing)

    def _begin_atomic(self, freeing: bool) -> bool:
        self._enter()
        self._journal, self._freeing = [], freeing
        return self.changed

    def _end_atomic(self, failed: bool, changed: bool) -> None:
        """`changed`: what `_begin_atomic` returned."""
        journal, self._journal, self._freeing = self._journal, None, False
        try:
            self._leave(failed)
        except BaseException:
            failed = True
            raise
        finally:
            if failed:
                self.changed = changed
                self._probed = None
                self._take_back(journal or [])
            if not self._privileged:
                self._tighten()

    @staticmethod
    def _take_back(journal: list[tuple[Any, int, Any]]) -> None:
        """What is in memory goes back as the statements do."""
        for what, key, old in reversed(journal):
            if isinstance(what, InodeRow):
                what.born = key
            elif isinstance(what, _Account):
                what.first_ino, what.inodes = key, old
            elif old is None:
                del what[key]
            else:
                what[key] = old

    def note_cut(self, epoch: int) -> None:
        """The epoch is closed; changes come with higher ones from here on."""
        self.changed = False

    def _touch(self, epoch: int, ino: int) -> None:
        self.changed = True
        old = self._touched.get(ino)
        if old != epoch:
            assert old is None or old < epoch
            self._touched[ino] = epoch
            if self._journal is not None:
                self._journal.append((self._touched, ino, old))

    def _account(self, epoch: int) -> _Account:
        """About to be changed."""
        account = self._accounts.get(epoch)
        if account is None:
            account = self._accounts[epoch] = _Account()
            if self._journal is not None:
                self._journal.append((self._accounts, epoch, None))
        elif self._journal is not None:
            self._journal.append((account, account.first_ino, account.inodes))
        return account

    # -- inodes -----------------------------------------------------------------------------------

    def new_ino(self) -> int:
        """An inode number never used before (unless a crash took that back)."""
        self.next_ino += 1
        return self.next_ino - 1

    def inode(self, ino: int) -> InodeRow | None:
        row = self._row(INODE_NEWEST, (ino,))
        return InodeRow(*row[:-1]) if row is not None and row[-1] == INF else None

    def insert_inode(self, epoch: int, row: InodeRow) -> None:
        """A new inode, its number from `new_ino`."""
        self._spend(len(row.target or b""))
        self._set_born(row, epoch)
        self._run(INODE_INSERT, msgspec.structs.astuple(row))
        self._touch(epoch, row.ino)
        account = self._account(epoch)
        account.inodes += 1
        account.first_ino = min(account.first_ino, row.ino)

    def save_inode(self, epoch: int, row: InodeRow) -> None:
        """The inode is as `row` says from this epoch on. Sets row.born."""
        self._spend(len(row.target or b""))
        if row.born == epoch:
            self._run(INODE_UPDATE, _update_of(row))
        else:
            assert row.born < epoch
            self._spend()
            self._run(INODE_KILL, (epoch, row.ino, row.born))
            self._died["inode"] = epoch
            if self._changes() == 1:
                self._set_born(row, epoch)
                self._run(INODE_INSERT, msgspec.structs.astuple(row))
        assert self._changes() == 1, "no such version"
        self._touch(epoch, row.ino)

    def owe_inode(self, row: InodeRow, freeing: bool = False) -> None:
        """Take the room now that `save_inodes` will need for an inode not yet changed in this
        epoch: a cut can't be refused."""
        self._freeing = freeing
        try:
            self._owe(2 * STATEMENT_PAGES + len(row.target or b"") // 2048)
        finally:
            self._freeing = False
            if not self._privileged:
                self._tighten()

    def save_inodes(self, epoch: int, rows: list[tuple[InodeRow, InodeRow | None]]) -> None:
        """At the cut: each inode as it is now, and as it was before its first change of the epoch
        (None: `save_inode` made a version since)."""
        self._pay()
        updates = []
        next_durable = epoch == self.durable + 1
        for row, before in rows:
            if row.born == epoch:
                pass
            elif next_durable and before and not needed(row.born, epoch, self.retained):
                before.born = row.born  # which `_unreplace` may have raised meanwhile
                self._replaced.append((epoch, before, row))
            else:
                self.save_inode(epoch, row)
                continue
            self._spend(len(row.target or b""))
            updates.append(_update_of(row))
        if updates:
            self.changed = True
            self._run_many(INODE_UPDATE, updates)

    def _end(self) -> None:
        """Promise 4: a commit that doesn't make the epoch durable finds both versions."""
        if self._replaced:
            with self.reserve():
                self._unreplace()
        super()._end()

    def _unreplace(self) -> None:
        for epoch, before, row in self._replaced:
            self._spend(2 * len(row.target or b""))
            self._spend()
            cells = self._row(INODE_CELLS_OF, (before.ino, before.born))
            assert cells is not None, "no such version"
            self._run(INODE_REBORN, (epoch, before.ino, before.born))
            dead = (*msgspec.structs.astuple(before)[:-2], cells[0], before.born, epoch)
            self._run(INODE_INSERT_DEAD, dead)
            self._died["inode"] = max(epoch, self._died.get("inode", 0))
            if row.born == before.born:
                row.born = epoch
        self._replaced = []

    def add_cells(self, epoch: int, ino: int, cells: int) -> None:
        """The leaves of that epoch, about to be durable, hold so many cells more (or fewer)."""
        self._spend()
        self._run(INODE_CELLS, (cells, ino, epoch))

    def remove_inode(self, epoch: int, ino: int) -> None:
        """No inode of that number from this epoch on. Its attributes: remove_xattrs."""
        self._spend()
        self._run(INODE_DELETE, (ino, epoch))
        if not self._changes():
            self._run(INODE_END, (epoch, ino))
            assert self._changes() == 1, "no such inode"
            self._died["inode"] = epoch
        self._touch(epoch, ino)
        self._account(epoch).inodes -= 1

    def _set_born(self, row: InodeRow, epoch: int) -> None:
        if self._journal is not None and row.born != epoch:
            self._journal.append((row, row.born, None))
        row.born = epoch

    def orphans(self) -> list[int]:
        """Live inodes without a name, ascending."""
        found: list[int] = []
        while rows := self._rows(INODE_ORPHANS, (found[-1] if found else 0, 1000)):
            found += [row[0] for row in rows]
        return found

    # -- names ------------------------------------------------------------------------------------

    def _place(self, name: bytes) -> int:
        digest = hashlib.blake2b(name, digest_size=8, key=self._hash_key).digest()
        return min(int.from_bytes(digest, "big") >> 2, (1 << _POSITION_BITS) - PROBES)

    def lookup(self, parent: int, name: bytes) -> Dirent | None:
        for row in self._probe(parent, name)[1]:
            if row[1] == name:
                return Dirent(*row)
        return None

    def _probe(self, parent: int, name: bytes) -> tuple[int, list[Any]]:
        """The first position that the name may have, and the live entries there and next to it.
        Whoever makes a name has mostly just looked in vain for it, perhaps twice."""
        if self._probed is not None and self._probed[0] == parent and self._probed[1] == name:
            return self._probed[2], self._probed[3]
        place = self._place(name)
        rows = self._rows(DIRENT_PROBE, (parent, place, place + PROBES - 1))
        self._probed = (parent, name, place, rows)
        return place, rows

    def link(self, epoch: int, parent: int, name: bytes, ino: int, kind: int) -> int:
        """A new entry, which must not exist; returns its position."""
        assert 0 < len(name) <= 255 and self._touched.get(parent) == epoch
        place, rows = self._probe(parent, name)
        taken = set()
        for row in rows:
            assert row[1] != name
            taken.add(row[0])
        position = next((p for p in range(place, place + PROBES) if p not in taken), None)
        if position is None:  # the key is secret: needs 8 collisions of 59 bits
            raise OutOfSpace("too many names of this directory have the same hash")
        self._spend()
        self._probed = None
        self._run(DIRENT_INSERT, (parent, position, epoch, name, ino, kind))
        self.changed = True
        return position

    def unlink(self, epoch: int, parent: int, position: int) -> None:
        """No live entry at that position from this epoch on."""
        assert self._touched.get(parent) == epoch
        self._spend()
        self._probed = None
        self._run(DIRENT_KILL, (epoch, parent, position, epoch))
        if self._changes():
            self._died["dirent"] = epoch
        else:
            self._run(DIRENT_DELETE, (parent, position, epoch))
            assert self._changes() == 1, "no such name"
        self.changed = True

    def entries(self, parent: int, after_position: int, limit: int) -> list[Dirent]:
        """At most `limit` live entries by position, those above `after_position` (-1: all)."""
        return [Dirent(*row) for row in self._rows(DIRENT_LIST, (parent, after_position, limit))]

    def is_empty(self, parent: int) -> bool:
        return self._row(DIRENT_LIST, (parent, -1, 1)) is None

    # -- extended attributes ----------------------------------------------------------------------

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        row = self._row(XATTR_NEWEST, (ino, name))
        return row[2] if row is not None and row[1] == INF else None

    def xattr_names(self, ino: int) -> list[bytes]:
        """Sorted."""
        return [row[0] for row in self._rows(XATTR_LIST, (ino,))]

    def set_xattr(self, epoch: int, ino: int, name: bytes, value: bytes) -> bool:
        """Make or replace it; True if it is new (the inode's count is the caller's to raise)."""
        assert self._touched.get(ino) == epoch
        self._spend(len(value))
        row = self._row(XATTR_NEWEST, (ino, name))
        self.changed = True
        new = row is None or row[1] != INF
        if row is not None and not new and row[0] == epoch:
            self._run(XATTR_UPDATE, (value, ino, name, epoch))
            return False
        if row is not None and not new:
            self._spend()
            self._run(XATTR_KILL, (epoch, ino, name, row[0]))
            self._died["xattr"] = epoch
        self._run(XATTR_INSERT, (ino, name, epoch, value))
        return new

    def remove_xattr(self, epoch: int, ino: int, name: bytes) -> bool:
        """True if there was one (the inode's count is the caller's to lower)."""
        row = self._row(XATTR_NEWEST, (ino, name))
        if row is None or row[1] != INF:
            return False
        self._end_xattr(epoch, ino, name, row[0])
        return True

    def remove_xattrs(self, epoch: int, ino: int) -> None:
        for name, born in self._rows(XATTR_BORN, (ino,)):
            self._end_xattr(epoch, ino, name, born)

    def _end_xattr(self, epoch: int, ino: int, name: bytes, born: int) -> None:
        assert self._touched.get(ino) == epoch
        self._spend()
        self.changed = True
        if born == epoch:
            self._run(XATTR_DELETE, (ino, name, epoch))
        else:
            self._run(XATTR_KILL, (epoch, ino, name, born))
            self._died["xattr"] = epoch

    # -- for check: all versions, in key order ----------------------------------------------------

    def all_inodes(self) -> Iterator[tuple[InodeRow, Version]]:
        key: tuple[Any, ...] = (0, 0)
        while rows := self._rows(INODE_ALL, key):
            for row in rows:
                yield InodeRow(*row[:-1]), Version(row[-2], row[-1])
            key = (rows[-1][0], rows[-1][-2])

    def all_dirents(self) -> Iterator[tuple[int, Dirent, Version]]:
        """(parent, entry, version)"""
        key: tuple[Any, ...] = (0, -1, 0)
        while rows := self._rows(DIRENT_ALL, key):
            for parent, position, born, died, name, ino, kind in rows:
                yield parent, Dirent(position, name, ino, kind), Version(born, died)
            key = rows[-1][:3]

    def all_xattrs(self) -> Iterator[tuple[int, bytes, bytes, Version]]:
        """(ino, name, value, version)"""
        key: tuple[Any, ...] = (0, b"", 0)
        while rows := self._rows(XATTR_ALL, key):
            for ino, name, born, died, value in rows:
                yield ino, name, value, Version(born, died)
            key = rows[-1][:3]

    def position_good(self, dirent: Dirent) -> bool:
        """The entry lies where a lookup of its name looks."""
        return 0 <= dirent.position - self._place(dirent.name) < PROBES
