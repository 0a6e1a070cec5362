"""Meta: the metadata database as the rest of raidfs sees it; opening, committing, undoing.

    create  -> an empty database with the root directory, on all members
    open    SQLite finds the last commit in the log -> checkpoint, log emptied -> stamp raised,
            changes of epochs that didn't become durable undone, committed and synced -> one open
            transaction
    commit  state.durable raised, dead versions dropped, COMMIT, BEGIN; synced by
            `mirror.sync_wal()`, which the caller makes off the event loop
    close   the open transaction is rolled back (what counts was committed), the log emptied

Promises (1 to 3 of inodes.py, and):
 4. After opening, the content is that of epoch `durable`, and of no later one: inodes, names,
    attributes, the count of inodes, and the next inode number.
 5. Undoing takes time by what was changed since, and by the size of directories that were changed;
    never by the size of the volume.
 6. A version is dropped by the commit that makes the epoch durable at which it died, if no epoch in
    `retained` sees it. What is retained no more later on is the sweeper's (sweep.py).
"""

from __future__ import annotations

import os
from importlib import resources

import apsw

from raidfs.errors import FormatError, MemberError
from raidfs.raid.label import Parameters
from raidfs.raid.member import Member
from raidfs.store import logs
from raidfs.store.amend import Amend
from raidfs.store.database import CACHE_BYTES, INF, needed
from raidfs.store.inodes import Dirent, InodeRow, Version
from raidfs.store.mirror import Mirror
from raidfs.store.snapshot_rows import SNAPSHOT_WHOLESALE
from raidfs.store.tables import Event, Leaf, Owner, ZoneRow
from raidfs.store.vfs import SQLiteFiles, connect

__all__ = ["INF", "Dirent", "Event", "InodeRow", "Leaf", "Meta", "Owner", "Version", "ZoneRow"]

FORMAT = 4
ROOT_INO = 1

STATE_INSERT = "INSERT INTO state VALUES (1, ?, 1, 2, 1, 1, 0, ?, ?, ?)"
STATE_GET = (
    "SELECT format, durable, next_ino, next_zone, inodes, cells, hash_key, cell_bytes FROM state "
    "WHERE id = 1"
)
STATE_FORMAT = "SELECT format FROM state WHERE id = 1"
STATE_PUT = (
    "UPDATE state SET durable = ?, next_ino = ?, next_zone = ?, inodes = ?, cells = ? WHERE id = 1"
)
ZONE_LATER = "SELECT zone FROM zone WHERE zone >= ? ORDER BY zone DESC LIMIT 1"
WHOLESALE = ".before"  # the name of the state before a wholesale change that is under way
ROOT_INSERT = (
    "INSERT INTO inode (ino, born, died, generation, mode, uid, gid, rdev, size, nlink, parent, "
    "atime_ns, mtime_ns, ctime_ns, btime_ns, target, xattrs, cells) "
    "VALUES (1, 1, 9223372036854775807, 1, 16877, ?, ?, 0, 0, 2, 1, ?, ?, ?, ?, NULL, 0, 0)"
)

# Tables with versions but leaf: who commits drops, and a crash undoes, by these keys; the last
# column of each is `born`.
_KEYS = {"inode": "ino, born", "dirent": "parent, position, born", "xattr": "ino, name, born"}


def _each_table(template: str, of: dict[str, str]) -> dict[str, str]:
    """One statement per table from a template with TABLE, KEY (what `of` says) and MARKS."""
    statements = {}
    for table, key in of.items():
        marks = ", ".join("?" * len(key.split(",")))
        sql = template.replace("TABLE", table).replace("KEY", key).replace("MARKS", marks)
        statements[table] = sql
    return statements


DROP = _each_table(
    "DELETE FROM TABLE WHERE died > ? AND died <= ? AND died < 9223372036854775807", _KEYS
)
DEAD = _each_table(
    "SELECT died, KEY FROM TABLE WHERE died > ? AND died <= ? AND died < 9223372036854775807", _KEYS
)
DROP_ONE = _each_table("DELETE FROM TABLE WHERE (KEY) = (MARKS)", _KEYS)
TOUCHED_BY_DEATH = "SELECT ino FROM inode WHERE died > ? AND died < 9223372036854775807"
TOUCHED_BY_BIRTH = "SELECT ino FROM inode WHERE ino >= ?"
TOUCHED_WHOLESALE = "SELECT ino FROM inode WHERE born > ?"


class Meta(Amend):
    """See the module. Methods are those of the floors below it (Amend, Undo, Touched, SnapshotRows,
    Past, Tables, Inodes, Database), and these."""

    def __init__(self, mirror: Mirror, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Opens and recovers; blocks. FormatError, MemberError."""
        if not mirror.db_bytes:
            raise FormatError("the members hold no metadata database")
        self._files = SQLiteFiles(mirror)
        try:
            connection = _connected(self._files, cache_bytes)
        except BaseException:
            self._files.unregister()
            raise
        super().__init__(mirror, connection)
        self._inodes = 0  # as of durable
        self._cells = 0  # as of durable
        self._cells_more = 0  # by the epoch that is being applied
        self.views = {}
        self._closed = False
        try:
            self._recover()
        except BaseException:
            self._disconnect()
            raise

    @staticmethod
    def create(
        members: dict[int, Member],
        parameters: Parameters,
        now_ns: int,
        *,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """A database with nothing but the root directory, synced, on members that hold none. The
        root belongs to uid and gid, those of this process if not given. MemberError if a member
        fails."""
        mirror = Mirror(members)
        files = SQLiteFiles(mirror)
        try:
            assert not mirror.db_bytes, "there is a database already"
            connection = connect(files, CACHE_BYTES, empty=True)
            try:
                volume = logs.volume_mark(next(iter(members.values())).volume_id)
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA application_id = {volume}")
                connection.execute(
                    resources.files("raidfs.store").joinpath("schema.sql").read_text()
                )
                created = (FORMAT, os.urandom(16), now_ns, parameters.cell_bytes)
                connection.execute(STATE_INSERT, created)
                owner = (
                    os.getuid() if uid is None else uid,
                    os.getgid() if gid is None else gid,
                )
                connection.execute(ROOT_INSERT, (*owner, now_ns, now_ns, now_ns, now_ns))
                connection.execute("COMMIT")
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            finally:
                connection.close()
            mirror.sync_db()
            if mirror.failed:
                raise MemberError(f"a member failed: {'; '.join(mirror.failed.values())}")
        finally:
            files.unregister()
            mirror.close()

    # -- opening ----------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Promises 4 and 5. The log of the run before is emptied first: see logs.py."""
        self._load_state()
        if self.mirror.wal_bytes:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self.mirror.sync_db()
        self._begin()
        if not self.mirror.read_only:
            stamp = self._row("PRAGMA user_version")
            assert stamp is not None
            self._run(f"PRAGMA user_version = {(stamp[0] + 1) & 0x7FFFFFFF}")
        self._undo()
        for row in self.snapshots():
            self.views[row.id] = row.epoch
        self.retained = tuple(sorted(set(self.views.values())))
        self._end()
        if not self.mirror.read_only:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
            self.mirror.sync_db()
        self._begin()

    def _load_state(self) -> None:
        row = self._row(STATE_FORMAT)
        if row is None:
            raise FormatError("the metadata database has no state: it is not one of raidfs")
        if row[0] != FORMAT:
            raise FormatError(
                f"the metadata has format {row[0]} and this raidfs knows format {FORMAT}: use the "
                "raidfs that made it, or a newer one"
            )
        row = self._row(STATE_GET)
        assert row is not None
        self.durable, self.next_ino, self.next_zone, self._inodes, self._cells = row[1:6]
        self._hash_key, self.cell_bytes = row[6:8]
        later = self._row(ZONE_LATER, (self.next_zone,))
        if later is not None:  # it came with a commit that made no epoch durable
            self.next_zone = later[0] + 1

    def _undo(self) -> None:
        """Back to `durable`. What to undo is named by the inodes (schema.sql, V4). A wholesale
        change may have brought back numbers of old, and changed leaves."""
        inos = {row[0] for row in self._rows(TOUCHED_BY_DEATH, (self.durable,))}
        inos |= {row[0] for row in self._rows(TOUCHED_BY_BIRTH, (self.next_ino,))}
        if self._row(SNAPSHOT_WHOLESALE, (WHOLESALE,)) is None:
            for ino in sorted(inos):
                self.undo(ino, self.durable)
            return
        inos |= {row[0] for row in self._rows(TOUCHED_WHOLESALE, (self.durable,))}
        for ino in sorted(inos):
            for _ in self.undo_wholly(ino, self.durable):
                self._relieve()

    def _relieve(self) -> None:
        """Undoing a wholesale change may take more than one transaction; stopped in between, it
        begins anew."""
        if self.mirror.read_only or not self.pressure:
            return
        self._end()
        self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        self.mirror.sync_db()
        self._begin()

    # -- committing -------------------------------------------------------------------------------

    def commit(self, durable: int | None) -> None:
        """Everything so far into the log, not yet synced. `durable`: the epoch that is complete
        with it; None: none is, and a crash takes back what came since the last one that was."""
        if durable is not None:
            assert durable >= self.durable
            with self.reserve():
                self._spend()
                self._drop_versions(durable)
                self._settle(durable)
            assert all(epoch <= durable for epoch, _, _ in self._replaced)
            self._replaced = []
        self._end()
        self.zone_inserted = False
        self._begin()

    def as_of(self, epoch: int) -> tuple[int, int, int]:
        done = (account.inodes for each, account in self._accounts.items() if each <= epoch)
        later = [a.first_ino for each, a in self._accounts.items() if each > epoch]
        cells = self._cells + self._cells_more
        return min([self.next_ino, *later]), self._inodes + sum(done), cells

    def _settle(self, durable: int) -> None:
        """The row of `state` as of the end of that epoch."""
        next_ino, self._inodes, self._cells = self.as_of(durable)
        self._cells_more = 0
        values = (durable, next_ino, self.next_zone, self._inodes, self._cells)
        self._run(STATE_PUT, values)
        self.durable = durable
        for epoch in [epoch for epoch in self._accounts if epoch <= durable]:
            del self._accounts[epoch]
        self._touched = {ino: epoch for ino, epoch in self._touched.items() if epoch > durable}

    def add_cells(self, epoch: int, ino: int, cells: int) -> None:
        super().add_cells(epoch, ino, cells)
        self.count_cells(cells)

    def count_cells(self, cells: int) -> None:
        """Live leaves hold so many more (or fewer) as of the epoch about to be durable."""
        self._cells_more += cells

    def _drop_versions(self, durable: int) -> None:
        """Promise 6."""
        retained = self.retained
        for table in _KEYS:
            if self._died.get(table, 0) <= self.durable:
                continue  # none died since then
            if not retained:
                self._run(DROP[table], (self.durable, durable))
                continue
            for died, *key in self._rows(DEAD[table], (self.durable, durable)):
                if not needed(key[-1], died, retained):
                    self._run(DROP_ONE[table], tuple(key))

    def live_cells(self) -> int:
        """Entries of live leaves that name cells, as of `durable`."""
        return self._cells

    def count_inodes(self) -> int:
        """Live inodes now."""
        return self._inodes + sum(account.inodes for account in self._accounts.values())

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the structure of its own file; for check."""
        found = [row[0] for row in self._rows("PRAGMA integrity_check(100)")]
        return [] if found == ["ok"] else found

    # -- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Rolls back what was not committed, leaves an empty log where it can. The mirror stays."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if self.broken is None and self.mirror.broken is None and not self.mirror.read_only:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
                self.mirror.sync_db()
        finally:
            self._disconnect()

    def _disconnect(self) -> None:
        self._db.close()
        self._files.unregister()


def _connected(files: SQLiteFiles, cache_bytes: int) -> apsw.Connection:
    try:
        return connect(files, cache_bytes)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise FormatError(f"the metadata database is damaged: {error}") from error
