"""Leaves, zones, checksums, owners, shares, counters, events: what the flusher writes per epoch.

These rows change only in the transaction that makes their epoch durable, so a crash leaves none to
undo. Leaves alone have versions, kept for `retained` epochs; see schema.sql for every column.

What changes at every small commit is changed in place, and keeps its length where it can: then
SQLite writes one page for it, not a chain. So a slab of checksums has room for all its rows from
the start; and what a leaf was before, if no retained epoch sees it, leaves its row to what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apsw
import msgspec
import numpy as np
import numpy.typing as npt

from raidfs.errors import FormatError
from raidfs.leaves import decode_cells as decode_cells
from raidfs.leaves import encode_cells as encode_cells
from raidfs.store.database import INF, Database, needed
from raidfs.store.inodes import Version
from raidfs.store.mirror import Mirror

SLAB_ROWS = 256
INLINE_BYTES_MAX = 2048
EVENTS_MAX = 10_000

LEAF_GET = (
    "SELECT cells, inline, born, died FROM leaf WHERE ino = ? AND number = ? "
    "ORDER BY born DESC LIMIT 1"
)
LEAF_RANGE = (
    "SELECT number, cells, inline FROM leaf "
    "WHERE ino = ? AND number >= ? AND number < ? AND died = 9223372036854775807 "
    "ORDER BY number LIMIT 256"
)
LEAF_UPDATE = (
    "UPDATE leaf SET cells = ?, inline = ? "
    "WHERE ino = ? AND number = ? AND died = 9223372036854775807"
)
LEAF_BORN = (
    "SELECT born FROM leaf WHERE ino = ? AND number = ? AND died = 9223372036854775807 "
    "ORDER BY born DESC LIMIT 1"
)
LEAF_INSERT = (
    "INSERT INTO leaf (ino, number, born, died, cells, inline) "
    "VALUES (?, ?, ?, 9223372036854775807, ?, ?)"
)
LEAF_KILL = "UPDATE leaf SET died = ? WHERE ino = ? AND number = ? AND born = ?"
LEAF_DELETE = "DELETE FROM leaf WHERE ino = ? AND number = ? AND died = 9223372036854775807"
LEAF_NEXT = (
    "SELECT number FROM leaf WHERE ino = ? AND number >= ? AND died = 9223372036854775807 "
    "ORDER BY number LIMIT 1"
)
LEAF_ALL = (
    "SELECT ino, number, born, died, cells, inline FROM leaf "
    "WHERE (ino, number, born) > (?, ?, ?) ORDER BY ino, number, born LIMIT 256"
)

ZONE_ALL = "SELECT zone, code, rows, fill, live FROM zone ORDER BY zone"
COLUMN_ALL = 'SELECT zone, "column", member, slot, missed FROM "column" ORDER BY zone, "column"'
ZONE_INSERT = "INSERT INTO zone (zone, code, rows, fill, live) VALUES (?, ?, ?, 0, 0)"
COLUMN_INSERT = 'INSERT INTO "column" (zone, "column", member, slot) VALUES (?, ?, ?, ?)'
COLUMN_MOVE = (
    'UPDATE "column" SET member = ?, slot = ?, missed = NULL WHERE zone = ? AND "column" = ?'
)
COLUMN_MISSED = 'UPDATE "column" SET missed = ? WHERE zone = ? AND "column" = ?'
ZONE_UPDATE = "UPDATE zone SET fill = ?, live = ? WHERE zone = ?"
ZONE_DELETE = (
    "DELETE FROM zone WHERE zone = ?",
    'DELETE FROM "column" WHERE zone = ?',
    "DELETE FROM checksum WHERE zone = ?",
    "DELETE FROM owner WHERE zone = ?",
    "DELETE FROM share WHERE zone = ?",
)
WIDTH_OF = 'SELECT "column" + 1 FROM "column" WHERE zone = ? ORDER BY "column" DESC LIMIT 1'
CODE_OF = "SELECT code FROM zone WHERE zone = ?"
ROWS_OF = "SELECT rows FROM zone WHERE zone = ?"
FILL_OF = "SELECT fill FROM zone WHERE zone = ?"

CHECKSUM_GET = "SELECT crcs FROM checksum WHERE zone = ? AND slab = ?"
CHECKSUM_INSERT = "INSERT INTO checksum (zone, slab, crcs) VALUES (?, ?, ?)"
CHECKSUM_UPDATE = "UPDATE checksum SET crcs = ? WHERE zone = ? AND slab = ?"
CHECKSUM_ALL = (
    "SELECT zone, slab, crcs FROM checksum WHERE (zone, slab) > (?, ?) ORDER BY zone, slab LIMIT 64"
)

OWNER_PUT = 'INSERT OR REPLACE INTO owner (zone, "row", rows, pages, runs) VALUES (?, ?, ?, ?, ?)'
OWNER_OF = (
    'SELECT zone, "row", rows, pages, runs FROM owner '
    'WHERE zone = ? AND "row" <= ? ORDER BY "row" DESC LIMIT 1'
)
OWNER_LIST = (
    'SELECT zone, "row", rows, pages, runs FROM owner '
    'WHERE zone = ? AND "row" > ? ORDER BY "row" LIMIT 256'
)

SHARE_PUT = "INSERT OR IGNORE INTO share (zone, ino, number) VALUES (?, ?, ?)"
SHARE_DELETE = "DELETE FROM share WHERE zone = ? AND ino = ? AND number = ?"
SHARE_GET = "SELECT 1 FROM share WHERE zone = ? AND ino = ? AND number = ?"
SHARE_NEXT_ZONE = "SELECT zone FROM share WHERE zone > ? ORDER BY zone LIMIT 1"
SHARE_ALL = (
    "SELECT zone, ino, number FROM share WHERE (zone, ino, number) > (?, ?, ?) "
    "ORDER BY zone, ino, number LIMIT 1000"
)

EVENT_ADD = (
    "INSERT INTO event (number, time_ns, kind, member, text, details) VALUES (?, ?, ?, ?, ?, ?)"
)
EVENT_DROP = "DELETE FROM event WHERE number IN (SELECT number FROM event ORDER BY number LIMIT ?)"
EVENT_COUNT = "SELECT count(*) FROM event"
EVENT_LAST = "SELECT number, kind FROM event ORDER BY number DESC LIMIT 1"
EVENT_AFTER = (
    "SELECT number, time_ns, kind, member, text, details FROM event WHERE number > ? "
    "ORDER BY number LIMIT ?"
)
EVENT_LIST = (
    "SELECT number, time_ns, kind, member, text, details FROM event ORDER BY number DESC LIMIT ?"
)
MEMBER_ALL = "SELECT member, read_errors, write_errors, checksum_errors, lost_at FROM member"
MEMBER_PUT = (
    "INSERT INTO member (member, read_errors, write_errors, checksum_errors) "
    "VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET read_errors = excluded.read_errors, "
    "write_errors = excluded.write_errors, checksum_errors = excluded.checksum_errors"
)
MEMBER_LOSE = (
    "INSERT INTO member (member, read_errors, write_errors, checksum_errors, lost_at) "
    "VALUES (?, 0, 0, 0, ?) ON CONFLICT DO UPDATE SET lost_at = excluded.lost_at"
)
MEMBER_DROP = "DELETE FROM member WHERE member = ?"

Addresses = npt.NDArray[np.uint64]
Checksums = npt.NDArray[np.uint32]


class Leaf(msgspec.Struct, frozen=True):
    """addresses: uint64[256], or None if all are holes; inline: content of page 0, or None."""

    addresses: Addresses | None
    inline: bytes | None = None


class ZoneRow(msgspec.Struct, frozen=True):
    """A zone; columns are (member, slot) by column. `missed`: by column, the row from which on it
    lacks what was written."""

    zone: int
    code: str
    rows: int
    fill: int
    live: int
    columns: tuple[tuple[int, int], ...]
    missed: dict[int, int] = {}


class Owner(msgspec.Struct, frozen=True):
    """The record of one burst."""

    zone: int
    row: int
    rows: int
    pages: int
    runs: bytes


class Event(msgspec.Struct, frozen=True):
    """See schema.sql, and events.py for what the kinds mean."""

    number: int
    time_ns: int
    kind: str
    member: int
    text: str
    details: str = "{}"


class Tables(Database):
    """See the module."""

    next_zone: int = 1
    zone_inserted = False  # since the last commit

    def __init__(self, mirror: Mirror, connection: apsw.Connection) -> None:
        super().__init__(mirror, connection)
        self._widths: dict[int, int] = {}  # of zones, which the store holds in memory as well
        self._slab: tuple[int, int, bytes] | None = None  # zone, number, content: the last changed
        self._events: int | None = None  # how many are kept
        self._counters: dict[int, tuple[int, int, int]] | None = None  # of members, as stored
        self._shared: set[int] | None = None  # zones with rows in share, or that had some

    # -- leaves -----------------------------------------------------------------------------------

    def leaf(self, ino: int, number: int) -> Leaf | None:
        row = self._row(LEAF_GET, (ino, number))
        if row is None or row[3] != INF:
            return None
        return Leaf(decode_cells(row[0]), row[1])

    def leaf_range(self, ino: int, first: int, last_exclusive: int) -> Iterator[tuple[int, Leaf]]:
        """(number, leaf) of the live leaves there, ascending; leaves may be changed meanwhile."""
        last_exclusive = min(last_exclusive, INF)
        while rows := self._rows(LEAF_RANGE, (ino, first, last_exclusive)):
            for number, cells, inline in rows:
                yield number, Leaf(decode_cells(cells), inline)
            first = rows[-1][0] + 1

    def leaf_next(self, ino: int, first: int) -> int | None:
        """The lowest number from `first` on of which there is a live leaf."""
        row = self._row(LEAF_NEXT, (ino, first))
        return None if row is None else int(row[0])

    def put_leaf(
        self, epoch: int, ino: int, number: int, leaf: Leaf | None, *, new: bool = False
    ) -> bool:
        """The leaf is that from this epoch on (None, or nothing in it: no leaf). The flusher's.
        `new`: there is none yet, as the caller knows. True if the one before is kept: a retained
        epoch sees it."""
        cells = encode_cells(leaf.addresses) if leaf is not None else None
        inline = leaf.inline if leaf is not None else None
        assert inline is None or (number == 0 and len(inline) <= INLINE_BYTES_MAX)
        self._spend(len(cells or b"") + len(inline or b""))
        kept = bool(self.retained) and not new and self._retain_leaf(epoch, ino, number)
        new = new or kept
        if cells is None and inline is None:
            if not new:
                self._run(LEAF_DELETE, (ino, number))
            return kept
        if not new:
            self._run(LEAF_UPDATE, (cells, inline, ino, number))
            if self._changes():
                return kept
        self._run(LEAF_INSERT, (ino, number, epoch, cells, inline))
        return kept

    def _retain_leaf(self, epoch: int, ino: int, number: int) -> bool:
        """End the live version, if there is one and a retained epoch sees it."""
        row = self._row(LEAF_BORN, (ino, number))
        if row is None:
            return False
        assert row[0] <= epoch
        if not needed(row[0], epoch, self.retained):
            return False
        self._spend()
        self._run(LEAF_KILL, (epoch, ino, number, row[0]))
        return True

    # -- zones ------------------------------------------------------------------------------------

    def zones(self) -> list[ZoneRow]:
        columns: dict[int, list[tuple[int, int]]] = {}
        missed: dict[int, dict[int, int]] = {}
        for zone, column, member, slot, row in self._rows(COLUMN_ALL):
            columns.setdefault(zone, []).append((member, slot))
            if row is not None:
                missed.setdefault(zone, {})[column] = row
        return [
            ZoneRow(
                zone, code, rows, fill, live, tuple(columns.get(zone, ())), missed.get(zone, {})
            )
            for zone, code, rows, fill, live in self._rows(ZONE_ALL)
        ]

    def insert_zone(
        self, zone: int, code: str, rows: int, columns: Iterable[tuple[int, int]]
    ) -> None:
        """A new zone with nothing in it; its number is `next_zone` or higher."""
        assert zone >= self.next_zone
        self._spend()
        self._run(ZONE_INSERT, (zone, code, rows))
        for column, (member, slot) in enumerate(columns):
            self._spend()
            self._run(COLUMN_INSERT, (zone, column, member, slot))
        self.next_zone = zone + 1
        self.zone_inserted = True

    def update_zones(self, changed: list[tuple[int, int, int]]) -> None:
        """(fill, live, zone) of each."""
        for _ in changed:
            self._spend()
        if changed:
            self._run_many(ZONE_UPDATE, changed)

    def move_column(self, zone: int, column: int, member: int, slot: int) -> None:
        """The column lies there now, whole."""
        self._spend()
        self._run(COLUMN_MOVE, (member, slot, zone, column))
        assert self._changes() == 1

    def set_missed(self, zone: int, column: int, row: int | None) -> None:
        """The column lacks the rows from there on; None: it is whole again."""
        self._spend()
        self._run(COLUMN_MISSED, (row, zone, column))
        assert self._changes() == 1

    def delete_zone(self, zone: int) -> None:
        """With its columns, checksums and owners."""
        self._spend()
        for sql in ZONE_DELETE:
            self._run(sql, (zone,))
        self._widths.pop(zone, None)
        self._slab = None
        self.shared_zones.discard(zone)

    # -- checksums and owners ---------------------------------------------------------------------

    def code_of(self, zone: int) -> str:
        """As the table has it: level and width."""
        row = self._row(CODE_OF, (zone,))
        assert row is not None, f"no zone {zone}"
        return str(row[0])

    def fill_of(self, zone: int) -> int:
        """Rows of which checksums and owners are recorded."""
        row = self._row(FILL_OF, (zone,))
        return int(row[0]) if row is not None else 0

    def _width(self, zone: int) -> int:
        width = self._widths.get(zone)
        if width is None:
            row = self._row(WIDTH_OF, (zone,))
            assert row is not None, f"no zone {zone}"
            width = self._widths[zone] = int(row[0])
        return width

    def crcs(self, zone: int, row: int, count: int) -> Checksums:
        """uint32 (count, width); of rows that were never written, it means nothing."""
        width, parts = self._width(zone), []
        end = row + count
        for slab in range(row // SLAB_ROWS, (end - 1) // SLAB_ROWS + 1):
            start = slab * SLAB_ROWS
            parts.append(self.slab(zone, slab)[max(row - start, 0) : end - start])
        crcs = np.concatenate(parts).astype(np.uint32) if parts else np.empty((0, width), np.uint32)
        if len(crcs) != count:
            raise FormatError(f"rows {row} to {end - 1} of zone {zone} have no checksums")
        return crcs

    def slab(self, zone: int, slab: int) -> npt.NDArray[Any]:
        """uint32, little-endian (rows, width), of all its rows once one of them was written; those
        that were not are zeros."""
        found = self._row(CHECKSUM_GET, (zone, slab))
        words = np.frombuffer(found[0] if found is not None else b"", "<u4")
        width = self._width(zone)
        if len(words) % width:
            raise FormatError(f"the checksums of zone {zone} are damaged")
        return words.reshape(-1, width)

    def put_crcs(self, zone: int, row: int, crcs: Checksums) -> None:
        """uint32 (rows, width) for rows that follow those already there, or replace some of
        them."""
        width = self._width(zone)
        assert crcs.ndim == 2 and crcs.shape[1] == width
        words = crcs.astype("<u4", copy=False).tobytes()
        row_bytes, done = 4 * width, 0
        while done < len(crcs):
            slab, at = divmod(row + done, SLAB_ROWS)
            count = min(len(crcs) - done, SLAB_ROWS - at)
            part = words[done * row_bytes : (done + count) * row_bytes]
            self._put_part(zone, slab, at * row_bytes, part)
            done += count

    def _put_part(self, zone: int, slab: int, offset: int, part: bytes) -> None:
        """Those bytes of the slab."""
        if self._slab is not None and self._slab[:2] == (zone, slab):
            old = self._slab[2]
        else:
            found = self._row(CHECKSUM_GET, (zone, slab))
            old = found[0] if found is not None else b""
        whole = old
        if len(whole) < offset + len(part):  # the first rows of the slab
            assert len(whole) >= offset or not old, "rows are filled from below"
            whole = whole.ljust(self._slab_rows(zone, slab) * 4 * self._width(zone), b"\0")
            assert len(whole) >= offset + len(part)
        content = whole[:offset] + part + whole[offset + len(part) :]
        self._slab = None
        self._spend(len(content))
        if old:
            self._run(CHECKSUM_UPDATE, (content, zone, slab))
        else:
            self._run(CHECKSUM_INSERT, (zone, slab, content))
        self._slab = (zone, slab, content)

    def _slab_rows(self, zone: int, slab: int) -> int:
        row = self._row(ROWS_OF, (zone,))
        assert row is not None, f"no zone {zone}"
        return min(SLAB_ROWS, int(row[0]) - slab * SLAB_ROWS)

    def put_owner(self, zone: int, row: int, rows: int, pages: int, runs: bytes) -> None:
        self._spend(len(runs))
        self._run(OWNER_PUT, (zone, row, rows, pages, runs))

    def owner_of(self, zone: int, row: int) -> Owner | None:
        """The record with the largest row up to that one."""
        found = self._row(OWNER_OF, (zone, row))
        return Owner(*found) if found is not None else None

    def owners(self, zone: int) -> Iterator[Owner]:
        """Ascending by row."""
        row = -1
        while rows := self._rows(OWNER_LIST, (zone, row)):
            for found in rows:
                yield Owner(*found)
            row = rows[-1][1]

    # -- shares -----------------------------------------------------------------------------------

    @property
    def shared_zones(self) -> set[int]:
        """The zones whose cells leaves may share; mostly none, which spares the look."""
        if self._shared is None:
            self._shared, row = set(), self._row(SHARE_NEXT_ZONE, (0,))
            while row is not None:
                self._shared.add(row[0])
                row = self._row(SHARE_NEXT_ZONE, (row[0],))
        return self._shared

    def put_share(self, zone: int, ino: int, number: int) -> None:
        """The leaf shares a cell of the zone. No harm if it is recorded already."""
        self._spend()
        self._run(SHARE_PUT, (zone, ino, number))
        self.shared_zones.add(zone)

    def drop_share(self, zone: int, ino: int, number: int) -> None:
        """The leaf refers to no cell of the zone any more."""
        self._spend()
        self._run(SHARE_DELETE, (zone, ino, number))

    def shares(self, zone: int, ino: int, number: int) -> bool:
        """The leaf may share cells of the zone."""
        return self._row(SHARE_GET, (zone, ino, number)) is not None

    # -- events and counters ----------------------------------------------------------------------

    def add_events(self, events: Sequence[Event]) -> None:
        """Their numbers rise, and are above those of all that are there."""
        if self._events is None:
            self._events = self._count_events()
        for each in events:
            self._spend(len(each.text) + len(each.details))
            self._run(
                EVENT_ADD,
                (each.number, each.time_ns, each.kind, each.member, each.text, each.details),
            )
        self._events += len(events)
        if self._events > EVENTS_MAX:
            self._spend()
            self._run(EVENT_DROP, (self._events - EVENTS_MAX,))
            self._events = EVENTS_MAX

    def _count_events(self) -> int:
        row = self._row(EVENT_COUNT)
        assert row is not None
        count: int = row[0]
        return count

    def events(self, limit: int) -> list[Event]:
        """The last ones, oldest of them first."""
        return [Event(*row) for row in reversed(self._rows(EVENT_LIST, (limit,)))]

    def events_after(self, number: int, limit: int) -> list[Event]:
        """Those with higher numbers, oldest first."""
        return [Event(*row) for row in self._rows(EVENT_AFTER, (number, limit))]

    def last_event(self) -> tuple[int, str]:
        """Number and kind of the newest; 0 and "" if there is none."""
        row = self._row(EVENT_LAST)
        return (row[0], row[1]) if row is not None else (0, "")

    def member_counters(self) -> dict[int, tuple[int, int, int]]:
        """member -> (read, write, checksum errors)"""
        return {row[0]: (row[1], row[2], row[3]) for row in self._rows(MEMBER_ALL)}

    def set_member_counters(self, counters: Mapping[int, tuple[int, int, int]]) -> None:
        if self._counters is None:
            self._counters = self.member_counters()
        for member, counts in counters.items():
            if self._counters.get(member) != counts:
                self._spend()
                self._run(MEMBER_PUT, (member, *counts))
                self._counters[member] = counts

    def lost_members(self) -> dict[int, int]:
        """What was durable when each was lost, of those that are."""
        return {row[0]: row[4] for row in self._rows(MEMBER_ALL) if row[4] is not None}

    def set_lost(self, member: int, durable: int | None) -> None:
        """The member was lost when that was durable; None: it is back."""
        self._spend()
        self._run(MEMBER_LOSE, (member, durable))

    def drop_member(self, member: int) -> None:
        """It is no member any more."""
        self._spend()
        self._run(MEMBER_DROP, (member,))
        if self._counters is not None:
            self._counters.pop(member, None)

    # -- for check --------------------------------------------------------------------------------

    def all_leaves(self) -> Iterator[tuple[int, int, Leaf, Version]]:
        """(ino, number, leaf, version), all versions in key order"""
        key: tuple[int, int, int] = (0, -1, 0)
        while rows := self._rows(LEAF_ALL, key):
            for ino, number, born, died, cells, inline in rows:
                yield ino, number, Leaf(decode_cells(cells), inline), Version(born, died)
            key = (rows[-1][0], rows[-1][1], rows[-1][2])

    def all_shares(self) -> Iterator[tuple[int, int, int]]:
        """(zone, ino, leaf number) in key order"""
        key: tuple[int, int, int] = (0, 0, -1)
        while rows := self._rows(SHARE_ALL, key):
            for row in rows:
                yield row[0], row[1], row[2]
            key = (rows[-1][0], rows[-1][1], rows[-1][2])

    def all_checksums(self) -> Iterator[tuple[int, int, bytes]]:
        """(zone, slab, crcs) in key order"""
        key: tuple[int, int] = (0, -1)
        while rows := self._rows(CHECKSUM_ALL, key):
            yield from ((row[0], row[1], row[2]) for row in rows)
            key = (rows[-1][0], rows[-1][1])
