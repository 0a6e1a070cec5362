"""What SQLite sees of a mirror: a file system with one database and its log.

A thin layer: it names the two files, hands reads and writes to the `Mirror`, and answers with
nothing to whatever doesn't apply. There is no shared memory, so the connection must set
locking_mode to EXCLUSIVE before it first looks at the log; xSync does nothing (see mirror.py); no
other file can be opened, so temporary ones and journals must stay in memory.
"""

from __future__ import annotations

import itertools
from typing import Any

import apsw

from raidfs.errors import OutOfSpace
from raidfs.store.batches import PAGE_BYTES, RESERVED_BYTES
from raidfs.store.mirror import Mirror

DB_NAME = "/raidfs.db"
WAL_NAME = DB_NAME + "-wal"
_numbers = itertools.count()


class _File:
    """The methods that SQLite demands of a file and that mean nothing here."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def xSync(self, flags: int) -> None:
        pass

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return PAGE_BYTES

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xClose(self) -> None:
        pass


class _Database(_File):
    def xRead(self, amount: int, offset: int) -> bytes:
        return self._mirror.read_db(offset, amount)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._mirror.write_db(offset, data)

    def xTruncate(self, newsize: int) -> None:
        self._mirror.truncate_db(newsize)

    def xFileSize(self) -> int:
        return self._mirror.db_bytes


class _Log(_File):
    def xRead(self, amount: int, offset: int) -> bytes:
        return self._mirror.read_wal(offset, amount)

    def xWrite(self, data: bytes, offset: int) -> None:
        try:
            self._mirror.write_wal(offset, data)
        except OutOfSpace as error:
            raise apsw.FullError(str(error)) from error

    def xTruncate(self, newsize: int) -> None:
        assert newsize == 0
        self._mirror.truncate_wal()

    def xFileSize(self) -> int:
        return self._mirror.wal_bytes


class SQLiteFiles(apsw.VFS):
    """Registered with SQLite under `name` until `unregister` is called."""

    def __init__(self, mirror: Mirror) -> None:
        self.name = f"raidfs-{next(_numbers)}"
        self._mirror = mirror
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path == DB_NAME:
            return _Database(self._mirror)
        if path == WAL_NAME:
            return _Log(self._mirror)
        raise apsw.CantOpenError(f"no file {path} here")

    def xDelete(self, filename: str, syncdir: bool) -> None:
        if filename == WAL_NAME:
            self._mirror.truncate_wal()

    def xAccess(self, pathname: str, flags: int) -> bool:
        if pathname == WAL_NAME:
            return self._mirror.wal_bytes > 0
        return pathname == DB_NAME and self._mirror.db_bytes > 0

    def xFullPathname(self, name: str) -> str:
        return DB_NAME


def connect(vfs: SQLiteFiles, cache_bytes: int, *, empty: bool = False) -> apsw.Connection:
    """A connection that keeps all but the two files in memory. `empty`: there is no database."""
    connection = apsw.Connection(DB_NAME, vfs=vfs.name, statementcachesize=512)
    # Statements on tables with partial indexes would else be compiled anew at each execution, in
    # case a bound value lets SQLite use such an index.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.pragma("locking_mode", "exclusive")
    connection.reserve_bytes(None, RESERVED_BYTES)  # heeded while the database is empty
    connection.pragma("page_size", PAGE_BYTES)
    connection.pragma("temp_store", "memory")
    connection.pragma("auto_vacuum", 0)
    if empty:  # becoming a WAL database goes through a journal
        connection.pragma("journal_mode", "memory")
    mode = connection.pragma("journal_mode", "wal")
    assert mode == "wal"
    connection.pragma("synchronous", 1)
    connection.pragma("wal_autocheckpoint", 0)
    connection.pragma("cache_size", -(cache_bytes >> 10))
    return connection
