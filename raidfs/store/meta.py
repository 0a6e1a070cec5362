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
 6. A version is dropped exactly when it died at an epoch that is durable, and no epoch in
    `retained` sees it. `retained` may be set at any time; what it lets go is dropped at the next
    commit.
"""

from __future__ import annotations

import os
from importlib import resources

import apsw

from raidfs.errors import FormatError, MemberError
from raidfs.raid.label import Parameters
from raidfs.raid.member import Member
from raidfs.store.database import CACHE_BYTES, INF, needed
from raidfs.store.inodes import Dirent, InodeRow, Inodes, Version
from raidfs.store.mirror import Mirror
from raidfs.store.tables import Event, Leaf, Owner, Tables, ZoneRow
from raidfs.store.vfs import SQLiteFiles, connect

__all__ = ["INF", "Dirent", "Event", "InodeRow", "Leaf", "Meta", "Owner", "Version", "ZoneRow"]

FORMAT = 2
ROOT_INO = 1

STATE_INSERT = "INSERT INTO state VALUES (1, ?, 1, 2, 1, 1, ?, ?, ?)"
STATE_GET = (
    "SELECT format, durable, next_ino, next_zone, inodes, hash_key, cell_bytes FROM state "
    "WHERE id = 1"
)
STATE_PUT = "UPDATE state SET durable = ?, next_ino = ?, next_zone = ?, inodes = ? WHERE id = 1"
ROOT_INSERT = (
    "INSERT INTO inode (ino, born, died, generation, mode, uid, gid, rdev, size, nlink, parent, "
    "atime_ns, mtime_ns, ctime_ns, btime_ns, target, xattrs, cells) "
    "VALUES (1, 1, 9223372036854775807, 1, 16877, ?, ?, 0, 0, 2, 1, ?, ?, ?, ?, NULL, 0, 0)"
)

# Tables with versions, by key; the last column of each key is `born`.
_KEYS = {
    "inode": "ino, born",
    "dirent": "parent, position, born",
    "xattr": "ino, name, born",
    "leaf": "ino, number, born",
}
_OWNER = {"dirent": "parent", "xattr": "ino", "inode": "ino"}  # the inode that names what to undo


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
UNDO_DELETE = _each_table("DELETE FROM TABLE WHERE KEY = ? AND born > ?", _OWNER)
UNDO_REVIVE = _each_table(
    "UPDATE TABLE SET died = 9223372036854775807 "
    "WHERE KEY = ? AND died > ? AND died < 9223372036854775807",
    _OWNER,
)


class Meta(Inodes, Tables):
    """See the module. Methods are those of Inodes, Tables and Database, and these."""

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
        self._swept: tuple[int, ...] = ()  # `retained` at the last commit
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
                connection.execute("BEGIN IMMEDIATE")
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
        self._end()
        if not self.mirror.read_only:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
            self.mirror.sync_db()
        self._begin()

    def _load_state(self) -> None:
        row = self._row(STATE_GET)
        if row is None:
            raise FormatError("the metadata database has no state: it is not one of raidfs")
        if row[0] != FORMAT:
            raise FormatError(
                f"the metadata has format {row[0]} and this raidfs knows format {FORMAT}: use the "
                "raidfs that made it, or a newer one"
            )
        self.durable, self.next_ino, self.next_zone, self._inodes, self._hash_key = row[1:6]
        self.cell_bytes: int = row[6]

    def _undo(self) -> None:
        """Back to `durable`. What to undo is named by the inodes (schema.sql, V4)."""
        inos = {row[0] for row in self._rows(TOUCHED_BY_DEATH, (self.durable,))}
        inos |= {row[0] for row in self._rows(TOUCHED_BY_BIRTH, (self.next_ino,))}
        for ino in sorted(inos):
            for table in _OWNER:
                self._run(UNDO_DELETE[table], (ino, self.durable))
                self._run(UNDO_REVIVE[table], (ino, self.durable))

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
        self._begin()

    def _settle(self, durable: int) -> None:
        """The row of `state` as of the end of that epoch."""
        done = [epoch for epoch in self._accounts if epoch <= durable]
        inodes = self._inodes + sum(self._accounts[epoch].inodes for epoch in done)
        later = [a.first_ino for epoch, a in self._accounts.items() if epoch > durable]
        self._run(STATE_PUT, (durable, min([self.next_ino, *later]), self.next_zone, inodes))
        self._inodes, self.durable = inodes, durable
        for epoch in done:
            del self._accounts[epoch]
        self._touched = {ino: epoch for ino, epoch in self._touched.items() if epoch > durable}

    def _drop_versions(self, durable: int) -> None:
        """Promise 6: those that died since the last time, all if `retained` lets some go."""
        retained = tuple(sorted(self.retained))
        let_go = bool(self._swept) and not set(self._swept) <= set(retained)
        since = 0 if let_go else self.durable
        for table in _KEYS:
            if self._died.get(table, 0) <= since and not let_go:
                continue  # none died since then
            if not retained:
                self._run(DROP[table], (since, durable))
                continue
            for died, *key in self._rows(DEAD[table], (since, durable)):
                if not needed(key[-1], died, retained):
                    self._run(DROP_ONE[table], tuple(key))
        self._swept = retained

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
