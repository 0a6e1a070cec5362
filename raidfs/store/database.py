"""The connection, its one open transaction, and its room: what Inodes and Tables stand on.

1. A write transaction is always open. Changes are plain calls in it; `_end` and `_begin` are the
   only places that close and open it.
2. Room is asked for before a change, never found out by failing: when SQLite runs out of pages
   within a statement, it rolls back the *whole* transaction, the changes of others included,
   savepoint or not. So each change first spends from a credit of pages, by a bound on what a
   statement can allocate or dirty; when the credit is used up, it is measured anew. OutOfSpace
   then means: nothing was changed. What is *owed* (`_owe`) counts as spent already.
3. The same credit keeps the transaction within the log: a log on a raw member is a fixed region.
   Members are asked what they can take each time that a few hundred pages were spent, and whenever
   room is scarce; a commit alone is no reason.
4. If a transaction is lost nevertheless, `broken` says so and everything after raises; a new
   opening finds the last commit.
5. Errors of the world leave as classes of raidfs.errors.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
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
STATEMENT_PAGES = 4  # more than a statement dirties, splits averaged over those without
_RESERVE_PAGES_MIN = 64
_ASKED_S_MAX = 0.02  # how old what members said of their room may be
_RESERVE_PAGES_MAX = 4096
_FLOOR_PAGES = 16  # never used: more than one statement takes beyond its bound
_CREDIT_PAGES_MAX = 1024  # then it is measured anew, and the members are asked what they can take

_Row = tuple[Any, ...]


def needed(born: int, died: int, retained: tuple[int, ...]) -> bool:
    """Some retained epoch (ascending) sees the version."""
    index = bisect_left(retained, born)
    return index < len(retained) and retained[index] < died


class Database:
    """See the module. Not to be used by itself: Meta is the one object that callers see.
    `retained`: ascending epochs that snapshots hold. `durable`: the newest committed."""

    retained: tuple[int, ...] = ()

    def __init__(self, mirror: Mirror, connection: apsw.Connection) -> None:
        self.mirror = mirror
        self.broken: str | None = None
        self.durable = 0
        self._db = connection
        self._died: dict[str, int] = {}  # the newest epoch in which a version of the table died
        self._in_atomic = False
        self._unsaved = False  # in `atomic`, and nothing was changed so far: no savepoint yet
        self._privileged = 0  # depth of `reserve`
        self._freeing = False
        self._loose = False  # the credit was measured with part of the reserve
        self._tight = False  # the reserve was touched since the last commit
        self._credit = 0  # pages that may be spent before room is measured again
        self._spent = 0  # since the last commit or spill: bounds what a commit appends to the log
        self._owed = 0  # pages of changes that were told, and that only the cut will make
        self._unasked = _CREDIT_PAGES_MAX  # pages spent since the members were asked for limits
        self._asked_s = 0.0  # when that was
        self._reusable: tuple[int, int] | None = None  # state of a log that is wholly checkpointed
        self._page_limit = 0
        self._reserve_pages = _RESERVE_PAGES_MIN

    # -- statements -------------------------------------------------------------------------------

    def _run(self, sql: str, values: _Row = ()) -> None:
        if self.broken is not None:  # without a transaction it would take effect at once
            raise RaidfsError(self.broken)
        try:
            if self._unsaved:
                self._db.execute("SAVEPOINT operation")
                self._unsaved = False
            self._db.execute(sql, values)
        except Exception as error:
            raise self._told(error) from error

    def _run_many(self, sql: str, values: Sequence[_Row]) -> None:
        """One statement for each of `values`, each of which must change one row."""
        if self.broken is not None:
            raise RaidfsError(self.broken)
        assert not self._in_atomic
        before = self._db.total_changes()
        try:
            self._db.executemany(sql, values)
        except Exception as error:
            raise self._told(error) from error
        assert self._db.total_changes() - before == len(values)

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
        self._credit = max(0, min(self._credit, self._log_room(self._log_limit() // 2)))

    def _end(self) -> None:
        """COMMIT: into the log, synced by nobody yet."""
        assert not self._in_atomic
        self._run("COMMIT")
        self._spent = 0
        self._tight = False

    def _enter(self) -> None:
        """From here to `_leave` all changes happen, or none. Not to be nested."""
        assert not self._in_atomic
        self._in_atomic = self._unsaved = True

    def _leave(self, failed: bool) -> None:
        """If nothing was changed, there is nothing to release: SQLite was never told."""
        saved = not self._unsaved
        self._in_atomic = self._unsaved = False
        if not saved:
            return
        try:
            if not failed:
                self._run("RELEASE operation")
        except BaseException:
            failed = True
            raise
        finally:
            if failed and self._db.in_transaction:
                self._db.execute("ROLLBACK TO operation")
                self._db.execute("RELEASE operation")

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

    def reserve(self) -> _Reserve:
        """Inside, the last reserve may be used: what must succeed once data is on the members."""
        return _Reserve(self)

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

    def has_room(self) -> bool:
        """An ordinary change of a few rows would not be refused."""
        used, limit = self.room()
        return used + _CREDIT_PAGES_MAX * PAGE_BYTES <= limit

    def spare_pages(self) -> int:
        """So many pages could be changed now and leave the last reserve, and half of the log, to
        those whom they are for."""
        return min(self._unused() - self._reserve_pages, self._log_room(self._log_limit() // 2))

    def versions_at_cut(self, most: int) -> int:
        """For how many inodes, `most` at most, a cut may write new versions out of the last reserve
        although nobody asked for room before: each dirties or adds two pages, if every search tree
        splits, and they shall not take more than a quarter of the reserve or an eighth of the
        log."""
        if not self._page_limit:
            self._measure_limit()
        return min(most, self._reserve_pages // 8, self._log_limit() // 16)

    def wal_bytes_max(self) -> int:
        """The most bytes that the log may have, over all members."""
        return self.mirror.wal_room()[1]

    @property
    def pressure(self) -> bool:
        """A commit soon, then `checkpoint_if_due`, keep the log within its limit and give back room
        that removed files still take."""
        if self._tight:
            return True
        used = self._log_frames() + self._spent + self._owed
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
        self._reserve_pages = min(max(limit // 20, _RESERVE_PAGES_MIN), _RESERVE_PAGES_MAX)
        self.mirror.limit_bytes(MetaFile.WAL)
        self._unasked, self._asked_s = 0, time.monotonic()
        self._credit = 0  # it was given by what they said before
        if limit != self._page_limit:
            self._page_limit = limit
            self._db.pragma("max_page_count", limit)  # should the credit ever be wrong

    def _doubt(self) -> None:
        """Others may have filled a member's file system since it was asked: who changes something
        now shall be refused, not the flush that must make it durable."""
        if not self._privileged and time.monotonic() - self._asked_s > _ASKED_S_MAX:
            self._credit, self._unasked = 0, _CREDIT_PAGES_MAX

    def _spend(self, blob_bytes: int = 0) -> None:
        """Promise 2: before each change."""
        pages = STATEMENT_PAGES + blob_bytes // 2048
        self._doubt()
        if self._credit < pages:
            self._measure(pages)
        self._credit -= pages
        self._spent += pages
        self._unasked += pages

    def _owe(self, pages: int) -> None:
        """Promise 2 for what is told now and written at the cut, which can't refuse it."""
        self._doubt()
        if self._credit < pages:
            self._measure(pages)
        self._credit -= pages
        self._owed += pages

    def _pay(self) -> None:
        """What was owed may be spent."""
        self._credit, self._owed = self._credit + self._owed, 0

    def _unused(self) -> int:
        pages, free = self._pages()
        return self._page_limit - pages + free - self._owed

    def _measure(self, wanted: int) -> None:
        """A credit for `wanted` pages or more. OutOfSpace."""
        if self.broken is not None:
            raise RaidfsError(self.broken)
        if self._unasked >= min(_CREDIT_PAGES_MAX, self._reserve_pages // 4):
            self._measure_limit()
        unused = self._unused()
        if self._unasked and unused < 2 * self._reserve_pages:  # scarce: what is there right now?
            self._measure_limit()
            unused = self._unused()
        self._tight = self._tight or unused < self._reserve_pages
        self._loose = False
        room = min(unused - self._reserve_pages, self._log_room(self._log_limit() // 2))
        if room < wanted:
            self._loose = self._freeing or self._privileged > 0
            room = self._last_room(wanted, unused)
        self._credit = min(room, max(wanted, _CREDIT_PAGES_MAX))

    def _last_room(self, wanted: int, unused: int) -> int:
        """With no more kept free than must be, for whoever asks. OutOfSpace."""
        kept = self._kept(self._reserve_pages)
        if unused - kept < wanted:
            raise OutOfSpace("the volume's metadata is full: remove files, or snapshots")
        kept_frames = self._kept(self._log_limit() // 2)
        frames = self._log_room(kept_frames)
        if frames < wanted and self._spent:
            self._db.cache_flush()  # what is dirty goes into the log, and can be counted exactly
            self._spent = 0
            frames = self._log_room(kept_frames)
        if frames < wanted:
            raise OutOfSpace("the volume's metadata log is full: it was not committed in time")
        return min(unused - kept, frames)

    def _log_limit(self) -> int:
        """Frames that the log may have."""
        return self.wal_bytes_max() // FRAME_BYTES - 1

    def _log_room(self, kept: int) -> int:
        """Frames that the open transaction may still add to the log, with so many kept free."""
        return self._log_limit() - kept - self._log_frames() - self._spent - self._owed


class _Reserve:
    """See `Database.reserve`; a class, since every cut and flush passes here."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database._privileged += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._database._privileged -= 1
        self._database._tighten()
