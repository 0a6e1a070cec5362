"""Leaves, zones, checksums, owners, counters and events: what the flusher writes with each epoch.

These rows change only in the transaction that makes their epoch durable, so a crash leaves none to
undo. Leaves alone have versions, kept for `retained` epochs; see schema.sql for every column.

`encode_cells` writes a leaf's addresses as runs where that is shorter (a file written in sequence
takes tens of bytes per leaf instead of 2 KiB), and as plain words else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

import apsw
import msgspec
import numpy as np
import numpy.typing as npt

from raidfs.errors import FormatError
from raidfs.pages import LEAF_PAGES
from raidfs.store.database import INF, Database
from raidfs.store.inodes import Version
from raidfs.store.mirror import Mirror

SLAB_ROWS = 256
INLINE_BYTES_MAX = 2048
EVENTS_MAX = 10_000
_ROW_STEP = np.uint64(256)  # from a cell's address to the one below it

LEAF_GET = (
    "SELECT cells, inline, born, died FROM leaf WHERE ino = ? AND number = ? "
    "ORDER BY born DESC LIMIT 1"
)
LEAF_RANGE = (
    "SELECT number, cells, inline FROM leaf "
    "WHERE ino = ? AND number >= ? AND number < ? AND died = 9223372036854775807 "
    "ORDER BY number LIMIT 256"
)
LEAF_REPLACE = (
    "UPDATE leaf SET born = ?, cells = ?, inline = ? WHERE ino = ? AND number = ? AND born = ?"
)
LEAF_INSERT = (
    "INSERT INTO leaf (ino, number, born, died, cells, inline) "
    "VALUES (?, ?, ?, 9223372036854775807, ?, ?)"
)
LEAF_KILL = "UPDATE leaf SET died = ? WHERE ino = ? AND number = ? AND born = ?"
LEAF_DELETE = "DELETE FROM leaf WHERE ino = ? AND number = ? AND born = ?"
LEAF_ALL = (
    "SELECT ino, number, born, died, cells, inline FROM leaf "
    "WHERE (ino, number, born) > (?, ?, ?) ORDER BY ino, number, born LIMIT 256"
)

ZONE_ALL = "SELECT zone, code, rows, fill, live FROM zone ORDER BY zone"
COLUMN_ALL = 'SELECT zone, member, slot FROM "column" ORDER BY zone, "column"'
ZONE_INSERT = "INSERT INTO zone (zone, code, rows, fill, live) VALUES (?, ?, ?, 0, 0)"
COLUMN_INSERT = 'INSERT INTO "column" (zone, "column", member, slot) VALUES (?, ?, ?, ?)'
COLUMN_MOVE = 'UPDATE "column" SET member = ?, slot = ? WHERE zone = ? AND "column" = ?'
ZONE_UPDATE = "UPDATE zone SET fill = ?, live = ? WHERE zone = ?"
ZONE_DELETE = (
    "DELETE FROM zone WHERE zone = ?",
    'DELETE FROM "column" WHERE zone = ?',
    "DELETE FROM checksum WHERE zone = ?",
    "DELETE FROM owner WHERE zone = ?",
)
WIDTH_OF = 'SELECT "column" + 1 FROM "column" WHERE zone = ? ORDER BY "column" DESC LIMIT 1'

CHECKSUM_GET = "SELECT crcs FROM checksum WHERE zone = ? AND slab = ?"
CHECKSUM_PUT = "INSERT OR REPLACE INTO checksum (zone, slab, crcs) VALUES (?, ?, ?)"
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

EVENT_ADD = "INSERT INTO event (time_ns, name, member, text) VALUES (?, ?, ?, ?)"
EVENT_DROP = "DELETE FROM event WHERE number <= ?"
EVENT_LIST = "SELECT time_ns, name, member, text FROM event ORDER BY number DESC LIMIT ?"
MEMBER_ALL = "SELECT member, read_errors, write_errors, checksum_errors FROM member"
MEMBER_PUT = (
    "INSERT OR REPLACE INTO member (member, read_errors, write_errors, checksum_errors) "
    "VALUES (?, ?, ?, ?)"
)

Addresses = npt.NDArray[np.uint64]
Checksums = npt.NDArray[np.uint32]


class Leaf(msgspec.Struct, frozen=True):
    """addresses: uint64[256], or None if all are holes; inline: content of page 0, or None."""

    addresses: Addresses | None
    inline: bytes | None = None


class ZoneRow(msgspec.Struct, frozen=True):
    """A zone; columns are (member, slot) by column."""

    zone: int
    code: str
    rows: int
    fill: int
    live: int
    columns: tuple[tuple[int, int], ...]


class Owner(msgspec.Struct, frozen=True):
    """The record of one burst."""

    zone: int
    row: int
    rows: int
    pages: int
    runs: bytes


class Event(msgspec.Struct, frozen=True):
    time_ns: int
    name: str
    member: int
    text: str


def encode_cells(addresses: Addresses | None) -> bytes | None:
    """Column leaf.cells for up to 256 addresses."""
    if addresses is None:
        return None
    assert addresses.dtype == np.uint64 and len(addresses) <= LEAF_PAGES
    used = np.flatnonzero(addresses)
    if not len(used):
        return None
    cells = addresses[: int(used[-1]) + 1]
    step = np.where(cells[:-1] == 0, np.uint64(0), _ROW_STEP)
    starts = np.concatenate(([0], np.flatnonzero(cells[1:] != cells[:-1] + step) + 1))
    if 3 + 9 * len(starts) >= 1 + 8 * len(cells):
        return b"\0" + cells.astype("<u8").tobytes()
    lengths = np.diff(np.append(starts, len(cells))) - 1
    head = b"\1" + len(starts).to_bytes(2, "little")
    return head + lengths.astype(np.uint8).tobytes() + cells[starts].astype("<u8").tobytes()


def decode_cells(data: bytes | None) -> Addresses | None:
    """uint64[256] from column leaf.cells. FormatError."""
    if data is None:
        return None
    addresses = np.zeros(LEAF_PAGES, np.uint64)
    if data[:1] == b"\0" and len(data) % 8 == 1 and len(data) <= 1 + 8 * LEAF_PAGES:
        addresses[: len(data) // 8] = np.frombuffer(data, "<u8", offset=1)
        return addresses
    count = int.from_bytes(data[1:3], "little")
    if data[:1] != b"\1" or not 0 < count <= LEAF_PAGES or len(data) != 3 + 9 * count:
        raise FormatError("a leaf of the metadata is damaged")
    lengths = np.frombuffer(data, np.uint8, count, 3).astype(np.int64) + 1
    first = np.frombuffer(data, "<u8", count, 3 + count)
    total = int(lengths.sum())
    if total > LEAF_PAGES:
        raise FormatError("a leaf of the metadata is damaged")
    within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    steps = np.where(first == 0, np.uint64(0), _ROW_STEP)
    addresses[:total] = np.repeat(first, lengths) + within.astype(np.uint64) * np.repeat(
        steps, lengths
    )
    return addresses


def needed(born: int, died: int, retained: tuple[int, ...]) -> bool:
    """Some retained epoch (ascending) sees the version."""
    index = bisect_left(retained, born)
    return index < len(retained) and retained[index] < died


class Tables(Database):
    """See the module. `retained`: ascending epochs that snapshots hold."""

    retained: tuple[int, ...] = ()
    next_zone: int = 1

    def __init__(self, mirror: Mirror, connection: apsw.Connection) -> None:
        super().__init__(mirror, connection)
        self._widths: dict[int, int] = {}  # of zones, which the store holds in memory as well

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

    def put_leaf(self, epoch: int, ino: int, number: int, leaf: Leaf | None) -> None:
        """The leaf is that from this epoch on (None, or nothing in it: no leaf). The flusher's."""
        cells = encode_cells(leaf.addresses) if leaf is not None else None
        inline = leaf.inline if leaf is not None else None
        assert inline is None or (number == 0 and len(inline) <= INLINE_BYTES_MAX)
        self._spend(len(cells or b"") + len(inline or b""))
        old = self._row(LEAF_GET, (ino, number))
        born = old[2] if old is not None and old[3] == INF else None
        assert born is None or born <= epoch
        if born is not None and needed(born, epoch, self.retained):
            self._spend()
            self._run(LEAF_KILL, (epoch, ino, number, born))
            born = None
        if cells is None and inline is None:
            if born is not None:
                self._run(LEAF_DELETE, (ino, number, born))
        elif born is not None:
            self._run(LEAF_REPLACE, (epoch, cells, inline, ino, number, born))
        else:
            self._run(LEAF_INSERT, (ino, number, epoch, cells, inline))

    # -- zones ------------------------------------------------------------------------------------

    def zones(self) -> list[ZoneRow]:
        columns: dict[int, list[tuple[int, int]]] = {}
        for zone, member, slot in self._rows(COLUMN_ALL):
            columns.setdefault(zone, []).append((member, slot))
        return [
            ZoneRow(zone, code, rows, fill, live, tuple(columns.get(zone, ())))
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

    def update_zone(self, zone: int, fill: int, live: int) -> None:
        self._spend()
        self._run(ZONE_UPDATE, (fill, live, zone))
        assert self._changes() == 1

    def move_column(self, zone: int, column: int, member: int, slot: int) -> None:
        """The column lies there now."""
        self._spend()
        self._run(COLUMN_MOVE, (member, slot, zone, column))
        assert self._changes() == 1

    def delete_zone(self, zone: int) -> None:
        """With its columns, checksums and owners."""
        self._spend()
        for sql in ZONE_DELETE:
            self._run(sql, (zone,))
        self._widths.pop(zone, None)

    # -- checksums and owners ---------------------------------------------------------------------

    def _width(self, zone: int) -> int:
        width = self._widths.get(zone)
        if width is None:
            row = self._row(WIDTH_OF, (zone,))
            assert row is not None, f"no zone {zone}"
            width = self._widths[zone] = int(row[0])
        return width

    def crcs(self, zone: int, row: int, count: int) -> Checksums:
        """uint32 (count, width); asking for rows that were never written is an error of ours."""
        width, parts = self._width(zone), []
        end = row + count
        for slab in range(row // SLAB_ROWS, (end - 1) // SLAB_ROWS + 1):
            found = self._row(CHECKSUM_GET, (zone, slab))
            words = np.frombuffer(found[0] if found is not None else b"", "<u4")
            if len(words) % width:
                raise FormatError(f"the checksums of zone {zone} are damaged")
            start = slab * SLAB_ROWS
            parts.append(words.reshape(-1, width)[max(row - start, 0) : end - start])
        crcs = np.concatenate(parts).astype(np.uint32) if parts else np.empty((0, width), np.uint32)
        if len(crcs) != count:
            raise FormatError(f"rows {row} to {end - 1} of zone {zone} have no checksums")
        return crcs

    def put_crcs(self, zone: int, row: int, crcs: Checksums) -> None:
        """uint32 (rows, width) for rows that follow those already there, or replace some of
        them."""
        assert crcs.ndim == 2 and crcs.shape[1] == self._width(zone)
        done = 0
        while done < len(crcs):
            slab, at = divmod(row + done, SLAB_ROWS)
            part = crcs[done : done + SLAB_ROWS - at]
            found = self._row(CHECKSUM_GET, (zone, slab))
            old = found[0] if found is not None else b""
            row_bytes = 4 * crcs.shape[1]
            assert len(old) >= at * row_bytes, "rows are filled from below"
            new = old[: at * row_bytes] + part.astype("<u4").tobytes()
            new += old[len(new) :]
            self._spend(len(new))
            self._run(CHECKSUM_PUT, (zone, slab, new))
            done += len(part)

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

    # -- events and counters ----------------------------------------------------------------------

    def add_event(self, time_ns: int, name: str, member: int, text: str) -> None:
        self._spend(len(text))
        self._run(EVENT_ADD, (time_ns, name, member, text))
        self._run(EVENT_DROP, (self._db.last_insert_rowid() - EVENTS_MAX,))

    def events(self, limit: int) -> list[Event]:
        """The last ones, oldest of them first."""
        return [Event(*row) for row in reversed(self._rows(EVENT_LIST, (limit,)))]

    def member_counters(self) -> dict[int, tuple[int, int, int]]:
        """member -> (read, write, checksum errors)"""
        return {row[0]: (row[1], row[2], row[3]) for row in self._rows(MEMBER_ALL)}

    def set_member_counters(self, counters: Mapping[int, tuple[int, int, int]]) -> None:
        known = self.member_counters()
        for member, counts in counters.items():
            if known.get(member) != tuple(counts):
                self._spend()
                self._run(MEMBER_PUT, (member, *counts))

    # -- for check --------------------------------------------------------------------------------

    def all_leaves(self) -> Iterator[tuple[int, int, Leaf, Version]]:
        """(ino, number, leaf, version), all versions in key order"""
        key: tuple[int, int, int] = (0, -1, 0)
        while rows := self._rows(LEAF_ALL, key):
            for ino, number, born, died, cells, inline in rows:
                yield ino, number, Leaf(decode_cells(cells), inline), Version(born, died)
            key = (rows[-1][0], rows[-1][1], rows[-1][2])

    def all_checksums(self) -> Iterator[tuple[int, int, bytes]]:
        """(zone, slab, crcs) in key order"""
        key: tuple[int, int] = (0, -1)
        while rows := self._rows(CHECKSUM_ALL, key):
            yield from ((row[0], row[1], row[2]) for row in rows)
            key = (rows[-1][0], rows[-1][1])
