"""The connection, its one open transaction, and its room: what Inodes and Tables stand on.

1. A write transaction is always open. Changes are plain calls in it; `_end` and `_begin` are the
   only places that close and open it.
2. Room is asked for before a change, never found out by failing: when SQLite runs out of pages
   within a statement, it rolls back the *whole* transaction, the changes of others included,
   savepoint or not. So each change first spends from a credit of pages, by a bound on what a
   statement can allocate or dirty; when the credit is used up, it is measured anew. OutOfSpace
   then means: nothing was changed.
3. The same credit keeps the transaction within the log: a log on a raw member is a fixed region.
4. If a transaction is lost nevertheless, `broken` says so and everything after raises; a new
   opening finds the last commit.
5. Errors of the world leave as classes of raidfs.errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from raidfs.errors import FormatError, MemberError, OutOfSpace, RaidfsError
from raidfs.raid.member import MetaFile
from raidfs.store.batches import FRAME_BYTES, PAGE_BYTES
from raidfs.store.mirror import Mirror

INF = 2**63 - 1
CACHE_BYTES = 64 << 20
CHECKPOINT_FRAMES = 1000  # copying a page takes the loop about 20 microseconds
_STATEMENT_PAGES = 4  # more than a statement dirties, splits averaged over those without
_RESERVE_PAGES_MIN = 64
_RESERVE_PAGES_MAX = 4096
_FLOOR_PAGES = 16  # never used: more than one statement takes beyond its bound

_Row = tuple[Any, ...]


class Database:
    """See the module. Not to be used by itself: Meta is the one object that callers see."""

    def __init__(self, mirror: Mirror, connection: apsw.Connection) -> None:
        self.mirror = mirror
        self.broken: str | None = None
        self._db = connection
        self._in_atomic = False
        self._privileged = 0  # depth of `reserve`
        self._freeing = False
        self._loose = False  # the credit was measured with part of the reserve
        self._tight = False  # the reserve was touched since the last commit
        self._credit = 0  # pages that may be spent before room is measured again
        self._spent = 0  # since the last commit or spill: bounds what a commit appends to the log
        self._reusable: tuple[int, int] | None = None  # state of a log that is wholly checkpointed
        self._page_limit = 0
        self._reserve_pages = _RESERVE_PAGES_MIN

    # -- statements -------------------------------------------------------------------------------

    def _run(self, sql: str, values: _Row = ()) -> None:
        if self.broken is not None:  # without a transaction it would take effect at once
            raise RaidfsError(self.broken)
        try:
            self._db.execute(sql, values)
        except Exception as error:
            raise self._told(error) from error

    def _row(self, sql: str, values: _Row = ()) -> _Row | None:
        try:
            return self._db.execute(sql, values).fetchone()
        except Exception as error:
            raise self._told(error) from error

    def _rows(self, sql: str, values: _Row = ()) -> list[_Row]:
        try:
            return self._db.execute(sql, values).fetchall()
        except Exception as error:
            raise self._told(error) from error

    def _changes(self) -> int:
        """Rows changed by the last statement."""
        return self._db.changes()

    def _told(self, error: Exception) -> Exception:
        """The error as callers know it (promise 5); notes the loss of the transaction (4)."""
        told: Exception = error
        if isinstance(error, apsw.FullError):
            told = OutOfSpace("the metadata has no room for this change")
        elif isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
            told = FormatError(f"the metadata database is damaged: {error}")
        elif isinstance(error, apsw.Error) and self.mirror.broken is not None:
            told = MemberError(self.mirror.broken)
        elif isinstance(error, (apsw.IOError, apsw.CantOpenError)):
            told = MemberError(f"the metadata can't be read or written: {error}")
        if self.broken is not None:
            return RaidfsError(self.broken)
        if not self._db.in_transaction:
            self.broken = f"changes to the metadata since the last commit are lost: {error}"
        return told

    # -- the transaction --------------------------------------------------------------------------

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._measure_limit()
        self._credit = 0
        self._db.pragma("max_page_count", self._page_limit)  # should the credit ever be wrong

    def _end(self) -> None:
        """COMMIT: into the log, synced by nobody yet."""
        assert not self._in_atomic
        self._run("COMMIT")
        self._spent = 0
        self._tight = False

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        assert not self._in_atomic
        self._in_atomic = True
        try:
            self._run("SAVEPOINT operation")
            yield
            self._run("RELEASE operation")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO operation")
                self._db.execute("RELEASE operation")
            raise
        finally:
            self._in_atomic = False

    def checkpoint_if_due(self) -> bool:
        """Move the log's pages towards the database when it has become long. In memory: what is
        left for `mirror.sync_db()` is to write and sync them, best called off the loop soon
        after. True if it was due."""
        if self.mirror.read_only or self._log_frames() < self._checkpoint_frames():
            return False
        self._end()
        try:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        finally:
            self._begin()
        return True

    def _checkpoint(self, mode: int) -> None:
        """Between transactions."""
        try:
            frames, done = self._db.wal_checkpoint(mode=mode)
        except Exception as error:
            raise self._told(error) from error
        assert frames == done
        self._reusable = (self.mirror.log_number, self.mirror.wal_bytes)

    # -- room -------------------------------------------------------------------------------------

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Inside, the last reserve may be used: what must succeed once data is on the members."""
        self._privileged += 1
        try:
            yield
        finally:
            self._privileged -= 1
            self._tighten()

    def _tighten(self) -> None:
        """A credit that was measured with less kept free is void."""
        if self._loose:
            self._credit, self._loose = 0, False

    def _kept(self, reserve: int) -> int:
        """What must stay free: the reserve, half of it for what frees, little for the flusher."""
        if self._privileged:
            return _FLOOR_PAGES
        return reserve // 2 if self._freeing else reserve

    @contextmanager
    def unreserved(self) -> Iterator[None]:
        """Around an await within `reserve`: what others do meanwhile may not use the reserve."""
        depth, self._privileged = self._privileged, 0
        self._tighten()
        try:
            yield
        finally:
            assert self._privileged == 0
            self._privileged = depth

    def room(self) -> tuple[int, int]:
        """(used, limit) bytes of the database, the limit being that of ordinary changes."""
        self._measure_limit()
        pages, free = self._pages()
        return (pages - free) * PAGE_BYTES, (self._page_limit - self._reserve_pages) * PAGE_BYTES

    def wal_bytes_max(self) -> int:
        """The most bytes that the log may have, over all members."""
        return self.mirror.wal_room()[1]

    @property
    def pressure(self) -> bool:
        """A commit soon, then `checkpoint_if_due`, keep the log within its limit and give back room
        that removed files still take."""
        if self._tight:
            return True
        used = self._log_frames() + self._spent
        return 4 * used * FRAME_BYTES > self.wal_bytes_max()

    def _log_frames(self) -> int:
        if self._reusable == (self.mirror.log_number, self.mirror.wal_bytes):
            return 0  # the next frame begins it anew
        return self.mirror.wal_bytes // FRAME_BYTES

    def _checkpoint_frames(self) -> int:
        return min(CHECKPOINT_FRAMES, self.wal_bytes_max() // FRAME_BYTES // 8)

    def _pages(self) -> tuple[int, int]:
        """(all, free) pages of the database as the open transaction has it."""
        pages, free = self._row("PRAGMA page_count"), self._row("PRAGMA freelist_count")
        assert pages is not None and free is not None
        return pages[0], free[0]

    def _measure_limit(self) -> None:
        """Members in directories have what their file systems have, which others use as well."""
        limit = self.mirror.limit_bytes(MetaFile.DB) // PAGE_BYTES
        reserve = min(max(limit // 20, _RESERVE_PAGES_MIN), _RESERVE_PAGES_MAX)
        self._page_limit, self._reserve_pages = limit, reserve
        self.mirror.limit_bytes(MetaFile.WAL)

    def _spend(self, blob_bytes: int = 0) -> None:
        """Promise 2: before each change."""
        pages = _STATEMENT_PAGES + blob_bytes // 2048
        if self._credit < pages:
            self._measure(pages)
        self._credit -= pages
        self._spent += pages

    def _measure(self, wanted: int) -> None:
        if self.broken is not None:
            raise RaidfsError(self.broken)
        self._measure_limit()
        kept = self._kept(self._reserve_pages)
        pages, free = self._pages()
        room = self._page_limit - pages + free - kept
        self._tight = self._tight or room + kept < self._reserve_pages
        if room < wanted:
            raise OutOfSpace("the volume's metadata is full: remove files, or snapshots")
        self._credit = min(room, self._log_room(wanted))
        self._loose = self._freeing or self._privileged > 0

    def _log_room(self, wanted: int) -> int:
        """Frames that the open transaction may still add to the log."""
        limit = self.wal_bytes_max() // FRAME_BYTES - 1
        kept = self._kept(limit // 2)
        room = limit - kept - self._log_frames() - self._spent
        if room < wanted and self._spent:
            self._db.cache_flush()  # what is dirty goes into the log, and can be counted exactly
            self._spent = 0
            room = limit - kept - self._log_frames()
        if room < wanted:
            raise OutOfSpace("the volume's metadata log is full: it was not committed in time")
        return room
