"""Rows of the tables snapshot, hold, kept, recorded, setting, and of dead versions.

All methods that change something belong into the transaction that makes an epoch durable
(schema.sql, V5).

 1. Dropping dead versions goes by the indexes on `died`, in pieces: each costs what it drops and
    looks at, wherever it is in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from raidfs.leaves import ZONE_SHIFT, decode_cells
from raidfs.store.database import INF, needed
from raidfs.store.past import SNAPSHOT_ID_MAX, Past
from raidfs.store.tables import Addresses

SNAPSHOT_ALL = (
    "SELECT id, guid, name, epoch, created_ns, note, next_ino, inodes, cells, group_id "
    "FROM snapshot WHERE name IS NOT NULL ORDER BY epoch, id"
)
SNAPSHOT_LAST = "SELECT seq FROM sqlite_sequence WHERE name = 'snapshot'"
SNAPSHOT_CONDEMNED = "SELECT id, epoch FROM snapshot WHERE name IS NULL ORDER BY epoch, id"
SNAPSHOT_INSERT = (
    "INSERT INTO snapshot (guid, name, epoch, created_ns, note, next_ino, inodes, cells, group_id) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
SNAPSHOT_CONDEMN = "UPDATE snapshot SET name = NULL, group_id = NULL WHERE id = ?"
SNAPSHOT_DELETE = "DELETE FROM snapshot WHERE id = ?"
SNAPSHOT_NAME = "UPDATE snapshot SET name = ? WHERE id = ?"
SNAPSHOT_NOTE = "UPDATE snapshot SET note = ? WHERE id = ?"
SNAPSHOT_WHOLESALE = "SELECT 1 FROM snapshot WHERE name = ?"
HOLD_ALL = "SELECT snapshot, tag FROM hold ORDER BY snapshot, tag"
HOLD_PUT = "INSERT OR REPLACE INTO hold (snapshot, tag, created_ns) VALUES (?, ?, ?)"
HOLD_DELETE = "DELETE FROM hold WHERE snapshot = ? AND tag = ?"
HOLDS_DELETE = "DELETE FROM hold WHERE snapshot = ?"
KEPT_ALL = "SELECT group_id, kind, value FROM kept ORDER BY group_id, kind"
KEPT_OF = "SELECT value FROM kept WHERE group_id = ? AND kind = ?"
KEPT_PUT = "INSERT OR REPLACE INTO kept (group_id, kind, value) VALUES (?, ?, ?)"
KEPT_DELETE = "DELETE FROM kept WHERE group_id = ? AND kind = ?"
RECORDED_OF = "SELECT peer, message FROM recorded WHERE group_id = ? ORDER BY number"
RECORDED_IDS = "SELECT DISTINCT group_id FROM recorded ORDER BY group_id"
RECORDED_PUT = "INSERT INTO recorded (group_id, number, peer, message) VALUES (?, ?, ?, ?)"
RECORDED_DELETE = "DELETE FROM recorded WHERE group_id = ?"
SETTING_GET = "SELECT value FROM setting WHERE name = ?"
SETTING_PUT = "INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)"
SETTING_DELETE = "DELETE FROM setting WHERE name = ?"

# Dead versions in the order of the index on `died`, from a place on, at most so many.
DEAD_INODE = (
    "SELECT died, ino, born FROM inode WHERE died < 9223372036854775807 "
    "AND (died, ino, born) > (?, ?, ?) AND died <= ? ORDER BY died, ino, born LIMIT ?"
)
DEAD_DIRENT = (
    "SELECT died, parent, position, born FROM dirent WHERE died < 9223372036854775807 "
    "AND (died, parent, position, born) > (?, ?, ?, ?) AND died <= ? "
    "ORDER BY died, parent, position, born LIMIT ?"
)
DEAD_XATTR = (
    "SELECT died, ino, name, born FROM xattr WHERE died < 9223372036854775807 "
    "AND (died, ino, name, born) > (?, ?, ?, ?) AND died <= ? "
    "ORDER BY died, ino, name, born LIMIT ?"
)
DEAD_LEAF = (
    "SELECT died, ino, number, born FROM leaf WHERE died < 9223372036854775807 "
    "AND (died, ino, number, born) > (?, ?, ?, ?) AND died <= ? "
    "ORDER BY died, ino, number, born LIMIT ?"
)
DROP_INODE = "DELETE FROM inode WHERE (ino, born) = (?, ?)"
DROP_DIRENT = "DELETE FROM dirent WHERE (parent, position, born) = (?, ?, ?)"
DROP_XATTR = "DELETE FROM xattr WHERE (ino, name, born) = (?, ?, ?)"
DROP_LEAF = "DELETE FROM leaf WHERE (ino, number, born) = (?, ?, ?)"
LEAF_ROW = "SELECT cells FROM leaf WHERE (ino, number, born) = (?, ?, ?)"
LEAF_VERSIONS = "SELECT born, died, cells FROM leaf WHERE ino = ? AND number = ? ORDER BY born"
LEAF_REWRITE = "UPDATE leaf SET cells = ? WHERE (ino, number, born) = (?, ?, ?)"
SHARE_OF = "SELECT ino, number FROM share WHERE zone = ? ORDER BY ino, number"

# Table -> its statements, and the lowest key: what `dead` begins after.
_DEAD: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "inode": (DEAD_INODE, DROP_INODE, (0, 0)),
    "dirent": (DEAD_DIRENT, DROP_DIRENT, (0, -1, 0)),
    "xattr": (DEAD_XATTR, DROP_XATTR, (0, b"", 0)),
    "leaf": (DEAD_LEAF, DROP_LEAF, (0, -1, 0)),
}
VERSIONED = tuple(_DEAD)


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot, columns as in schema.sql; `holds`: its tags, ascending."""

    id: int
    guid: bytes
    name: str
    epoch: int
    created_ns: int
    note: str
    next_ino: int
    inodes: int
    cells: int
    group_id: bytes | None = None
    holds: tuple[str, ...] = ()

    @property
    def internal(self) -> bool:
        """raidfs's own, not a user's."""
        return self.name.startswith(".")


class LeafVersion(msgspec.Struct, frozen=True):
    """One row of a leaf; addresses: uint64[256], or None if all are holes."""

    born: int
    died: int
    addresses: Addresses | None


class SnapshotRows(Past):
    """See the module."""

    # -- snapshots --------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """By epoch and id, without condemned ones."""
        holds: dict[int, list[str]] = {}
        for snapshot, tag in self._rows(HOLD_ALL):
            holds.setdefault(snapshot, []).append(tag)
        return [
            msgspec.structs.replace(Snapshot(*row), holds=tuple(holds.get(row[0], ())))
            for row in self._rows(SNAPSHOT_ALL)
        ]

    def snapshot_numbers_left(self) -> int:
        """So many can still be made."""
        row = self._row(SNAPSHOT_LAST)
        return SNAPSHOT_ID_MAX - (row[0] if row is not None else 0)

    def condemned(self) -> list[tuple[int, int]]:
        """(id, epoch), by epoch"""
        return [(row[0], row[1]) for row in self._rows(SNAPSHOT_CONDEMNED)]

    def insert_snapshot(
        self,
        guid: bytes,
        name: str,
        epoch: int,
        created_ns: int,
        note: str,
        group_id: bytes | None = None,
    ) -> Snapshot:
        """A name for the epoch that the open transaction makes durable."""
        next_ino, inodes, cells = self.as_of(epoch)
        self._spend(len(note) + len(name))
        values = (guid, name, epoch, created_ns, note, next_ino, inodes, cells, group_id)
        self._run(SNAPSHOT_INSERT, values)
        return Snapshot(self._db.last_insert_rowid(), *values)

    def as_of(self, epoch: int) -> tuple[int, int, int]:
        """(next_ino, inodes, cells) at the end of an epoch about to be durable."""
        raise NotImplementedError

    def condemn_snapshot(self, snapshot_id: int) -> None:
        self._spend()
        self._run(SNAPSHOT_CONDEMN, (snapshot_id,))
        self._run(HOLDS_DELETE, (snapshot_id,))

    def delete_snapshot(self, snapshot_id: int) -> None:
        self._spend()
        self._run(SNAPSHOT_DELETE, (snapshot_id,))

    def rename_snapshot(self, snapshot_id: int, name: str) -> None:
        self._spend()
        self._run(SNAPSHOT_NAME, (name, snapshot_id))

    def annotate_snapshot(self, snapshot_id: int, note: str) -> None:
        self._spend(len(note))
        self._run(SNAPSHOT_NOTE, (note, snapshot_id))

    def all_holds(self) -> list[tuple[int, str]]:
        """(snapshot, tag), for check."""
        return [(row[0], row[1]) for row in self._rows(HOLD_ALL)]

    def put_hold(self, snapshot_id: int, tag: str, now_ns: int) -> None:
        self._spend()
        self._run(HOLD_PUT, (snapshot_id, tag, now_ns))

    def drop_hold(self, snapshot_id: int, tag: str) -> None:
        self._spend()
        self._run(HOLD_DELETE, (snapshot_id, tag))

    # -- groups -----------------------------------------------------------------------------------

    def kept(self) -> list[tuple[bytes, str, bytes]]:
        """(group's id, kind, value): what was promised to others."""
        return [(bytes(row[0]), row[1], bytes(row[2])) for row in self._rows(KEPT_ALL)]

    def kept_of(self, group_id: bytes, kind: str) -> bytes | None:
        row = self._row(KEPT_OF, (group_id, kind))
        return None if row is None else bytes(row[0])

    def keep(self, group_id: bytes, kind: str, value: bytes | None) -> None:
        """None: it is not kept any more."""
        self._spend(len(value or b""))
        if value is None:
            self._run(KEPT_DELETE, (group_id, kind))
        else:
            self._run(KEPT_PUT, (group_id, kind, value))

    def recorded(self, group_id: bytes) -> list[tuple[str, bytes]]:
        """(peer, message), in their order."""
        return [(row[0], bytes(row[1])) for row in self._rows(RECORDED_OF, (group_id,))]

    def recorded_ids(self) -> list[bytes]:
        """Of which group snapshots there are any, for check."""
        return [bytes(row[0]) for row in self._rows(RECORDED_IDS)]

    def record(self, group_id: bytes, messages: Sequence[tuple[str, bytes]]) -> None:
        for number, (peer, message) in enumerate(messages):
            self._spend(len(message))
            self._run(RECORDED_PUT, (group_id, number, peer, message))

    def drop_recorded(self, group_id: bytes) -> None:
        self._spend()
        self._run(RECORDED_DELETE, (group_id,))

    # -- settings ---------------------------------------------------------------------------------

    def setting(self, name: str) -> bytes | None:
        row = self._row(SETTING_GET, (name,))
        return None if row is None else bytes(row[0])

    def put_setting(self, name: str, value: bytes | None) -> None:
        """None: there is no such setting any more."""
        self._spend(len(value or b""))
        if value is None:
            self._run(SETTING_DELETE, (name,))
        else:
            self._run(SETTING_PUT, (name, value))

    # -- dead versions ----------------------------------------------------------------------------

    @staticmethod
    def dead_from(table: str, epoch: int) -> tuple[Any, ...]:
        """The place before all versions of the table that died later than `epoch`."""
        return (epoch + 1, *_DEAD[table][2])

    def dead(
        self, table: str, after: tuple[Any, ...], until: int, limit: int
    ) -> list[tuple[Any, ...]]:
        """(died, *key) of at most `limit` versions, after the place `after`, that died at `until`
        or before; the last `born` of the key is that of the version."""
        return self._rows(_DEAD[table][0], (*after, min(until, INF - 1), limit))

    def drop_version(self, table: str, key: tuple[Any, ...]) -> None:
        self._spend()
        self._run(_DEAD[table][1], key)

    # -- versions of leaves -----------------------------------------------------------------------

    def leaf_cells(self, ino: int, number: int, born: int) -> Addresses | None:
        """What that version of the leaf refers to: uint64[256], or None if all are holes."""
        row = self._row(LEAF_ROW, (ino, number, born))
        return decode_cells(row[0]) if row is not None else None

    def leaf_versions(self, ino: int, number: int) -> list[LeafVersion]:
        """All rows of the leaf, ascending."""
        rows = self._rows(LEAF_VERSIONS, (ino, number))
        return [LeafVersion(born, died, decode_cells(cells)) for born, died, cells in rows]

    def rewrite_leaf(self, ino: int, number: int, born: int, cells: bytes | None) -> None:
        """The same pages of that version lie elsewhere; `cells` as raidfs.leaves encodes them."""
        self._spend(len(cells or b""))
        self._run(LEAF_REWRITE, (cells, ino, number, born))
        assert self._changes() == 1, "no such version"

    def unshare(self, ino: int, number: int, gone: Addresses) -> None:
        """A version of the leaf that referred to these cells (0: none) is no more: forget what it
        shared of zones, where no version refers to them."""
        zones = set((gone >> np.uint64(ZONE_SHIFT)).tolist()) & self.shared_zones
        for version in self.leaf_versions(ino, number) if zones else ():
            if version.addresses is not None:
                zones -= set((version.addresses >> np.uint64(ZONE_SHIFT)).tolist())
        for zone in sorted(zones):
            self.drop_share(zone, ino, number)

    def sharers(self, zone: int) -> list[tuple[int, int]]:
        """(ino, leaf number) of the leaves recorded to share cells of the zone."""
        return [(row[0], row[1]) for row in self._rows(SHARE_OF, (zone,))]

    def unneeded(self, born: int, died: int) -> bool:
        """No named snapshot, nor the present, sees the version."""
        return died <= self.durable and not needed(born, died, self.retained)
