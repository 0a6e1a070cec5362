"""A volume's part of group snapshots: cut at once, hidden until all have one, then named.

    cut --> prepared: durable, and so is the promise --> committed: has its name
      \\-----------------\\--> discarded

What the group keeps (table kept) is opaque here. `cut` waits for nothing; all else returns when
it is durable, and may be done again after a crash without harm.

 1. Of a group snapshot that isn't committed nothing can be seen; its name can't be given meanwhile.
 2. A promise and the snapshot it is about are durable together, and stay through any opening until
    the snapshot is committed or discarded: then both changes are one commit.
 3. The name that a hidden one is to have is its note meanwhile.
 4. What is not prepared is gone at the next opening (Snapshots.condemn_leftovers).
 5. A committed one keeps the promise's text (TOOK_PART) for as long as it is there: who took part.
 6. What was on its way to this volume at the cut is in the part from the moment it can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import RaidfsError
from .snapshot_rows import Snapshot
from .snapshots import PREPARED, TOOK_PART, check_name

if TYPE_CHECKING:
    from .store import Store

HIDDEN = ".group-"
MOVE_OUT, MOVE_IN = "move-out", "move-in"  # kept of moves, by their numbers
MOVING = frozenset({MOVE_OUT, MOVE_IN})
BUSY = "the volume is busy with a rollback, or with earlier cuts"


class GroupSnapshots:
    """Of one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.meta = store.meta
        self.snapshots = store.snapshots
        self._epochs: dict[bytes, int] = {}  # cut and not over
        self._names: dict[bytes, str] = {}  # kept free for them
        # Called with a part that is about to be committed and what was recorded for it, within the
        # transaction: whatever was on its way is put into the part (promise 6).
        self.deliver: Callable[[Snapshot, list[tuple[str, bytes]]], None] = lambda row, ways: None
        self.bound: set[bytes] = set()  # committed ones that all volumes are about to change
        promised = {group_id for group_id, kind, _ in self.meta.kept() if kind == PREPARED}
        for group_id, row in self.hidden().items():
            if group_id in promised and not self.snapshots.is_taken(row.note):
                self.snapshots.reserve_name(row.note)
                self._names[group_id] = row.note

    # -- looking ----------------------------------------------------------------------------------

    def visible(self) -> dict[bytes, Snapshot]:
        """Those that are committed, by the group's id, in the order of their cuts."""
        return {row.group_id: row for row in self.snapshots.all() if row.group_id is not None}

    def unfinished(self) -> set[bytes]:
        """Those that were cut and are neither committed nor discarded."""
        return {*self._epochs, *self.hidden()}

    def hidden(self) -> dict[bytes, Snapshot]:
        """Those that aren't, as far as they are durable."""
        rows = self.snapshots.all(internal=True)
        return {row.group_id: row for row in rows if row.group_id is not None and row.internal}

    def epoch(self, group_id: bytes) -> int:
        """Of its cut; 0: there is none."""
        if group_id in self._epochs:
            return self._epochs[group_id]
        row = self.visible().get(group_id) or self.hidden().get(group_id)
        return 0 if row is None else row.epoch

    # -- one snapshot -----------------------------------------------------------------------------

    def check(self, name: str) -> None:
        """RaidfsError: `cut` can't be now."""
        self.store.writable()
        check_name(name)
        self.snapshots.check_room()
        if not self.store.can_cut:
            raise RaidfsError(BUSY)

    def cut(self, group_id: bytes, name: str, created_ns: int) -> int:
        """Closes the epoch now; returns it. RaidfsError, then nothing has happened. The flusher
        isn't woken for it: `prepare` and `discard` do that, when the gate is open again."""
        self.check(name)
        self.snapshots.reserve_name(name)
        self._names[group_id] = name
        epoch = self.store.cut()
        self.snapshots.retain(epoch)
        self._epochs[group_id] = epoch
        guid = os.urandom(16)

        def change(_: int) -> None:
            hidden = HIDDEN + group_id.hex()
            row = self.meta.insert_snapshot(guid, hidden, epoch, created_ns, name, group_id)
            self.snapshots.admit(row)

        made = self.store.also_in(epoch, change)
        assert made
        return epoch

    async def prepare(
        self, group_id: bytes, value: bytes, recorded: Sequence[tuple[str, bytes]]
    ) -> int:
        """The cut, what was recorded for it, and the promise; returns the cut's epoch."""
        epoch = self._epochs[group_id]

        def change(_: int) -> None:
            self.meta.record(group_id, recorded)
            self.meta.keep(group_id, PREPARED, value)

        if self.store.also_in(epoch, change):  # one commit for both
            self.store.wake()
            await self.store.until_durable(epoch)
        else:
            await self.store.cut_with(change)
        return epoch

    async def commit(self, group_id: bytes) -> None:
        """It has its name, and the promise is kept."""

        def change(_: int) -> None:
            row = self.hidden().get(group_id)
            if row is not None:
                if ways := self.meta.recorded(group_id):
                    self.deliver(row, ways)
                self.snapshots.unhide_in(row)
                promise = self.meta.kept_of(group_id, PREPARED)
                if promise is not None:
                    self.meta.keep(group_id, TOOK_PART, promise)
            self.meta.keep(group_id, PREPARED, None)
            self._over(group_id)

        await self.store.cut_with(change)

    async def discard(self, group_id: bytes) -> None:
        """It and the promise are no more, if they ever were."""
        if group_id not in self._epochs and group_id not in self.hidden():
            self._over(group_id)
            return

        def change(_: int) -> None:
            row = self.hidden().get(group_id)
            if row is not None:
                self.snapshots.condemn({row.id})
            self.meta.drop_recorded(group_id)
            self.meta.keep(group_id, PREPARED, None)
            self._over(group_id)

        await self.store.cut_with(change)

    def _over(self, group_id: bytes) -> None:
        self._epochs.pop(group_id, None)
        name = self._names.pop(group_id, None)
        if name is not None:
            self.snapshots.release_name(name)

    # -- what else is kept ------------------------------------------------------------------------

    async def keep(self, group_id: bytes, kind: str, value: bytes | None) -> None:
        """None: not any more."""
        await self.store.cut_with(lambda _: self.meta.keep(group_id, kind, value))
