"""`.snapshots`: the directory in the root where every snapshot stands under its name, to be read.

    /.snapshots/NAME/...    inode SNAPSHOTS_INO / the root of a view / inodes of that view

It is made up from the store's list of snapshots and lies in no table. Below a name begins a *view*,
whose inodes go by view numbers (store/past.py); for all who read they are inodes like others.

 1. A snapshot is there from the moment the store says that it exists, and no longer.
 2. A reader's place in the listing goes by the snapshot's id, so it stays right whatever comes,
    goes or gets another name; who is there from the first call to the last is listed exactly once.
 3. Nothing in it and nothing in a view ever changes: `check_changeable` stands before every change.
 4. What raidfs makes for itself is not shown.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from typing import TYPE_CHECKING

from ..errors import NoSuchSnapshot, ReadOnly
from ..store.meta import ROOT_INO, InodeRow
from ..store.past import FIRST_VIEW, as_view, view_of, within
from .attributes import Entry

if TYPE_CHECKING:
    from ..store.snapshot_rows import Snapshot
    from ..store.store import Store

SNAPSHOTS_INO = 1 << 62  # above all view numbers
SNAPSHOTS_NAME = b".snapshots"
SNAPSHOTS_COOKIE = SNAPSHOTS_INO + 8  # in the root's listing: after all positions of names
_COOKIE_AFTER = 2  # cookie - id, of a snapshot in the listing


def is_snapshots(parent: int, name: bytes) -> bool:
    """Whether the name is that of the directory of snapshots."""
    return parent == ROOT_INO and name == SNAPSHOTS_NAME


def is_view_root(ino: int) -> bool:
    return FIRST_VIEW <= ino < SNAPSHOTS_INO and within(ino) == ROOT_INO


def check_changeable(ino: int) -> None:
    """Promise 3."""
    if ino >= FIRST_VIEW:
        raise ReadOnly("snapshots can't be changed; copy what you need out of them")


class Views:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self._snapshots = store.snapshots
        self._meta = store.meta
        self._by_id: list[Snapshot] | None = None  # None: to be asked for again
        self._ids: list[int] = []
        self._newest_ns: int | None = None

    def changed(self) -> None:
        """Snapshots came, went, or got other names."""
        self._by_id = None

    def _list(self) -> list[Snapshot]:
        if self._by_id is None:
            listed = self._by_id = sorted(self._snapshots.all(), key=lambda snapshot: snapshot.id)
            self._ids = [snapshot.id for snapshot in listed]
            self._newest_ns = max((snapshot.created_ns for snapshot in listed), default=None)
        return self._by_id

    def has(self, ino: int) -> bool:
        """Whether the view is there that the inode, not of the present, belongs to."""
        return ino == SNAPSHOTS_INO or view_of(ino) in self._meta.views

    def find(self, name: bytes) -> int | None:
        """The inode of the root of the snapshot of that name."""
        try:
            found = self._snapshots.find(name.decode())
        except (UnicodeDecodeError, NoSuchSnapshot):
            return None
        return None if found.internal else as_view(found.id, ROOT_INO)

    def entries(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` snapshots after that cookie."""
        listed = self._list()
        first = bisect_right(self._ids, after - _COOKIE_AFTER)
        return [
            Entry(
                snapshot.name.encode(),
                as_view(snapshot.id, ROOT_INO),
                stat.S_IFDIR,
                snapshot.id + _COOKIE_AFTER,
            )
            for snapshot in listed[first : first + max(0, limit)]
        ]

    def row(self) -> InodeRow:
        """The directory as it is now: as old as the root, changed by the newest snapshot."""
        root = self._meta.inode(ROOT_INO)
        assert root is not None
        listed = self._list()
        changed_ns = root.btime_ns if self._newest_ns is None else self._newest_ns
        return InodeRow(
            ino=SNAPSHOTS_INO,
            generation=1,
            mode=stat.S_IFDIR | 0o555,
            uid=root.uid,
            gid=root.gid,
            rdev=0,
            size=0,
            nlink=2 + len(listed),
            parent=ROOT_INO,
            atime_ns=changed_ns,
            mtime_ns=changed_ns,
            ctime_ns=changed_ns,
            btime_ns=root.btime_ns,
            target=None,
            xattrs=0,
            cells=0,
            born=0,
        )
