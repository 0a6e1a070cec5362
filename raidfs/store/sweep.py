"""The sweeper: drops the versions that only deleted snapshots saw.

A deletion leaves the snapshot's row without a name (snapshots.py). Versions that it alone saw died
after its epoch, and before or at the next retained one; the indexes on `died` name them. They are
dropped in pieces, each in the transaction of an epoch, and in the end the row.

 1. A version is dropped only when neither the present nor a named snapshot sees it; the references
    of a leaf to cells go with it, so zones without any fall free (promise 3 of
    docs/ARCHITECTURE.md).
 2. Whatever a crash leaves, the next mount for writing goes on with.
 3. The cost follows what was changed between the epochs, not the size of the volume; a piece is
    bounded, so it never fills the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio

from ..errors import RaidfsError
from .database import INF
from .snapshot_rows import VERSIONED

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger("raidfs.store")

PIECE_MAX = 1024  # versions looked at in one transaction
PIECE_PART = 64  # or this part of what the log may hold, in frames


class Sweeper:
    """Of one store; `run` in its nursery."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.meta = store.meta
        self.dropped = 0
        self.stopped: str | None = None  # why, until something is deleted
        self._condemned = self.meta.condemned()
        self._wanted = trio.Event()
        self._step = trio.Event()
        if self._condemned:
            self._wanted.set()

    @property
    def busy(self) -> bool:
        """Something is still to be dropped."""
        return bool(self._condemned)

    def wake(self) -> None:
        """A snapshot was condemned: within the change that did it."""
        self._condemned = self.meta.condemned()
        self.stopped = None
        self._wanted.set()

    async def progress(self) -> None:
        """Returns after the next piece."""
        await self._step.wait()

    def statistics(self) -> dict[str, int]:
        return {"condemned": len(self._condemned), "dropped": self.dropped}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self.store.read_only:
                continue
            try:
                while self._condemned:
                    await self._sweep(*self._condemned[0])
            except RaidfsError as error:
                self.stopped = str(error)
                if self.store.failed is None:
                    log.warning("the sweeper stops until something is deleted: %s", error)
            finally:
                self._stepped()

    def _stepped(self) -> None:
        self._step.set()
        self._step = trio.Event()

    async def _sweep(self, snapshot_id: int, epoch: int) -> None:
        await self.store.commit()  # of the deletion, at least
        for table in VERSIONED:
            place: tuple[Any, ...] | None = self.meta.dead_from(table, epoch)
            while place is not None:
                place = await self._piece(table, place, epoch)
        await self.store.cut_with(lambda _: self._finish(snapshot_id))
        self._stepped()

    async def _piece(
        self, table: str, place: tuple[Any, ...], epoch: int
    ) -> tuple[Any, ...] | None:
        """Drop what is to be dropped of the next versions; where to go on, None: all done."""
        self.store.writable()
        limit = max(16, min(PIECE_MAX, self.meta.wal_bytes_max() // 4096 // PIECE_PART))
        rows = self.meta.dead(table, place, self._until(epoch), limit)
        if not rows:
            return None
        if any(self.meta.unneeded(row[-1], row[0]) for row in rows):
            await self.store.cut_with(lambda _: self._drop(table, rows))
            self._stepped()
        else:
            await trio.lowlevel.checkpoint()
        return rows[-1]

    def _until(self, epoch: int) -> int:
        """The next named snapshot's: what died later than that, it sees or its own row explains."""
        after = self.store.snapshots.after(epoch)
        return min(after if after is not None else INF, self.meta.durable)

    def _drop(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """Within a change."""
        for died, *key in rows:
            if not self.meta.unneeded(key[-1], died):
                continue
            cells = self.meta.leaf_cells(*key) if table == "leaf" else None
            self.meta.drop_version(table, tuple(key))
            self.dropped += 1
            if cells is not None:
                self.store.touch(self.store.space.account(cells[cells != 0], -1))
                self.meta.unshare(key[0], key[1], cells)

    def _finish(self, snapshot_id: int) -> None:
        """Within a change."""
        self.meta.delete_snapshot(snapshot_id)
        self._condemned = self.meta.condemned()
