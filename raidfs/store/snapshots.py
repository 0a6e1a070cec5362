"""Snapshots: names for epochs, given by a cut; and what each of them holds.

   create:  cut -> the epoch is retained from that moment on -> its flush inserts the row -> durable
   delete:  the row loses its name and the epoch is retained no more, in one commit; then the
            sweeper (sweep.py) drops what nobody sees any more, and the row

1. `create` returns when the cut is durable. What was told before the call is in the snapshot,
   nothing that was told after the return.
2. Creating, renaming, deleting cost one commit each, whatever there is; a list costs no look at the
   metadata.
3. A deletion is whole at once: no crash brings back a part. What it frees is found before by
   `freed_cells`: cells that only versions refer to which only the deleted ones see.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from ..errors import NoSuchSnapshot, OutOfSpace, RaidfsError, SnapshotHeld, UsageError
from .held import Found, Held
from .past import SNAPSHOT_ID_MAX
from .snapshot_rows import Snapshot

if TYPE_CHECKING:
    from .store import Store

NAME_BYTES_MAX = 255
NOTE_BYTES_MAX = 4096
NUMBERS_KEPT = 2  # for a wholesale change: the state before, and the snapshot received
PREPARED = "prepared"  # what is kept of a group snapshot that may yet be committed
TOOK_PART = "took-part"  # and of one that is
_FORBIDDEN = frozenset("/@%")


def check_name(name: str, what: str = "snapshot") -> None:
    """UsageError unless it can be the name of a snapshot (or the tag of a hold)."""
    try:
        nbytes = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"the name of a {what} must be UTF-8") from None
    if not 1 <= nbytes <= NAME_BYTES_MAX:
        raise UsageError(f"the name of a {what} has 1 to {NAME_BYTES_MAX} bytes, not {nbytes}")
    if name[0] in "-.":
        raise UsageError(f"{name!r}: the name of a {what} can't begin with {name[0]!r}")
    if name != name.strip():
        raise UsageError(f"{name!r}: the name of a {what} can't begin or end with a blank")
    for letter in name:
        if letter in _FORBIDDEN or not (letter.isprintable()):
            raise UsageError(f"{name!r}: the name of a {what} can't have {letter!r} in it")


class Snapshots:
    """Of one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.meta = store.meta
        self.on_gone: list[Callable[[int], None]] = []  # told the id of what was deleted
        self.on_named: list[Callable[[str], None]] = []  # told names that come, go, or change
        self._rows: dict[int, Snapshot] = {}
        self._order: list[tuple[int, int]] = []  # (epoch, id), ascending
        self._by_name: dict[str, int] = {}
        self._epochs: dict[int, int] = {}  # how many snapshots, or such as are made, retain it
        self._pending: set[str] = set()  # names about to be given
        self._held = Held(self.meta)
        self._alone: dict[int, int] = {}  # by id: see `alone_cells`
        self._shares = 0
        for row in self.meta.snapshots():
            self._put(row)
            self._retain(row.epoch, +1)
        assert self.meta.retained == tuple(sorted(self._epochs))

    def _put(self, row: Snapshot) -> None:
        insort(self._order, (row.epoch, row.id))
        self._rows[row.id] = row
        self._by_name[row.name] = row.id
        self.meta.views[row.id] = row.epoch

    def _drop(self, row: Snapshot) -> None:
        self._order.remove((row.epoch, row.id))
        del self._rows[row.id], self._by_name[row.name], self.meta.views[row.id]
        self._alone.pop(row.id, None)

    def _retain(self, epoch: int, sign: int) -> None:
        """One reason more (or less) to keep what is visible at that epoch."""
        self._epochs[epoch] = self._epochs.get(epoch, 0) + sign
        if not self._epochs[epoch]:
            del self._epochs[epoch]
        retained = self.meta.retained
        at = bisect_left(retained, epoch)
        there = retained[at : at + 1] == (epoch,)
        if there != (epoch in self._epochs):
            self.meta.retained = (
                *retained[:at],
                *(() if there else (epoch,)),
                *retained[at + there :],
            )

    # -- looking ----------------------------------------------------------------------------------

    def all(self, *, internal: bool = False) -> list[Snapshot]:
        """By epoch; those of raidfs itself only if asked for."""
        rows = (self._rows[snapshot_id] for _, snapshot_id in self._order)
        return [row for row in rows if internal or not row.internal]

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, name: str) -> Snapshot:
        """NoSuchSnapshot."""
        snapshot_id = self._by_name.get(name)
        if snapshot_id is None:
            raise NoSuchSnapshot(f"there is no snapshot {name!r}; `snapshot list` shows them")
        return self._rows[snapshot_id]

    def get(self, snapshot_id: int) -> Snapshot | None:
        return self._rows.get(snapshot_id)

    def before(self, epoch: int) -> int | None:
        """The last retained epoch before that one."""
        at = bisect_left(self.meta.retained, epoch)
        return self.meta.retained[at - 1] if at else None

    def after(self, epoch: int) -> int | None:
        """The first retained epoch after that one."""
        at = bisect_right(self.meta.retained, epoch)
        return self.meta.retained[at] if at < len(self.meta.retained) else None

    # -- making -----------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        note: str = "",
        *,
        guid: bytes | None = None,
        created_ns: int | None = None,
    ) -> Snapshot:
        """Promise 1. UsageError (EEXIST where the name is taken), and what `commit` raises."""
        check_name(name)
        return await self.create_internal(name, note, guid=guid, created_ns=created_ns)

    async def create_internal(
        self,
        name: str,
        note: str = "",
        *,
        guid: bytes | None = None,
        created_ns: int | None = None,
    ) -> Snapshot:
        """The same under a name that is raidfs's own."""
        self.store.writable()
        self._check_vacant(name)
        if len(note.encode()) > NOTE_BYTES_MAX:
            raise UsageError(f"a note has at most {NOTE_BYTES_MAX} bytes")
        self.check_room()
        guid = guid or os.urandom(16)
        made: list[Snapshot] = []
        taken_ns = created_ns

        def at_cut(epoch: int) -> None:
            nonlocal taken_ns
            taken_ns = self.store.clock() if created_ns is None else created_ns
            self._retain(epoch, +1)

        def change(epoch: int) -> None:
            assert taken_ns is not None
            made.append(self.meta.insert_snapshot(guid, name, epoch, taken_ns, note))
            self._admit(made[0])

        await self._cut_giving(name, change, at_cut)
        return made[0]

    async def _cut_giving(
        self,
        name: str,
        change: Callable[[int], None],
        at_cut: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        """`Store.cut_with` a change that gives the name to somebody. Once it is cut, that will be
        so, whoever asked for it be cancelled: until then nobody else can have the name."""
        self._pending.add(name)
        is_cut = False

        def cut(epoch: int) -> None:
            nonlocal is_cut
            is_cut = True
            at_cut(epoch)

        def give(epoch: int) -> None:
            self._pending.discard(name)
            change(epoch)

        try:
            await self.store.cut_with(give, cut)
        except BaseException:
            if not is_cut:
                self._pending.discard(name)
            raise

    def check_room(self) -> None:
        """OutOfSpace: no room for one more, or no number (nor those for what raidfs itself keeps
        meanwhile)."""
        self._check_metadata()
        if self.meta.snapshot_numbers_left() <= len(self._pending) + NUMBERS_KEPT:
            raise OutOfSpace(
                "the volume has no numbers left for more snapshots, which are never used twice:"
                " receive its newest snapshot into a new volume, and go on there"
            )

    def _check_metadata(self) -> None:
        if not self.meta.has_room():
            raise OutOfSpace("the volume's metadata is full: remove files, or snapshots")

    # For who takes one by steps of his own (group_snapshots.py).

    def reserve_name(self, name: str) -> None:
        """Nobody else can give it until `release_name`. UsageError (EEXIST)."""
        self._check_vacant(name)
        self._pending.add(name)

    def release_name(self, name: str) -> None:
        self._pending.discard(name)

    def retain(self, epoch: int) -> None:
        """In the moment of its cut: what is visible then stays, until the snapshot that `admit` is
        given is condemned."""
        self._retain(epoch, +1)

    def admit(self, row: Snapshot) -> None:
        """Within a change: a row that was inserted."""
        self._admit(row)

    def insert_in(self, epoch: int, name: str, note: str, guid: bytes, created_ns: int) -> Snapshot:
        """Within a change of that epoch: the snapshot of the epoch itself. Nobody may have changed
        anything since its cut."""
        assert not self.is_taken(name)
        row = self.meta.insert_snapshot(guid, name, epoch, created_ns, note)
        self._retain(epoch, +1)
        self._admit(row)
        return row

    def _admit(self, row: Snapshot) -> None:
        assert row.id <= SNAPSHOT_ID_MAX
        self._put(row)
        self._tell(row.name)

    def is_taken(self, name: str) -> bool:
        return name in self._by_name or name in self._pending

    def _check_vacant(self, name: str) -> None:
        if self.is_taken(name):
            raise UsageError(f"there is a snapshot {name!r} already", errno.EEXIST)

    def _tell(self, *names: str) -> None:
        for name in names:
            for told in self.on_named:
                told(name)

    # -- changing ---------------------------------------------------------------------------------

    async def delete(self, names: Sequence[str]) -> None:
        """All of them, in one commit. NoSuchSnapshot, SnapshotHeld: then none (but for one that
        somebody comes to hold in that very moment)."""
        ids = [self.find(name).id for name in names]
        self._check_not_held(ids)
        if ids:
            await self.store.cut_with(lambda epoch: self.condemn(ids))
            self._check_not_held(ids)

    def _check_not_held(self, ids: Collection[int]) -> None:
        for row in filter(None, map(self._rows.get, ids)):
            if row.holds:
                tags = ", ".join(row.holds)
                raise SnapshotHeld(
                    f"snapshot {row.name!r} is held ({tags}): `snapshot release` it first"
                )

    def condemn(self, ids: Collection[int]) -> None:
        """Within a change: these, as far as they are there and not held, are no more; nor is what
        was recorded on the way to them."""
        gone = [row for row in map(self._rows.get, ids) if row is not None and not row.holds]
        for row in gone:
            self.meta.condemn_snapshot(row.id)
            if row.group_id is not None:
                self.meta.drop_recorded(row.group_id)
                self.meta.keep(row.group_id, TOOK_PART, None)
            self._drop(row)
            self._retain(row.epoch, -1)
        if gone:
            self._alone.clear()  # of the neighbours, at least
            self.store.sweeper.wake()
        for row in gone:
            self._tell(row.name)
            for told in self.on_gone:
                told(row.id)

    def condemn_leftovers(self) -> None:
        """At the opening: what a crash left of raidfs's own, but for what others were promised."""
        promised = {group_id for group_id, kind, _ in self.meta.kept() if kind == PREPARED}
        ids = {
            row.id for row in self._rows.values() if row.internal and row.group_id not in promised
        }
        if ids:
            with self.meta.reserve():
                self.condemn(ids)
            self.store.changed()

    async def rename(self, old: str, new: str) -> None:
        """NoSuchSnapshot, UsageError (EEXIST)."""
        row = self.find(old)
        check_name(new)
        if old == new:
            return
        self._check_vacant(new)

        def change(_: int) -> None:
            if self._replace(row.id, name=new):
                self.meta.rename_snapshot(row.id, new)
                self._tell(old, new)

        await self._cut_giving(new, change)

    def rename_in(self, snapshot_id: int, name: str) -> None:
        """Within a change: the same for one of raidfs's own, under a name that is vacant, or was
        reserved for it."""
        row = self.get(snapshot_id)
        assert row is not None and name not in self._by_name
        self._replace(snapshot_id, name=name)
        self.meta.rename_snapshot(snapshot_id, name)
        self._tell(row.name, name)

    def unhide_in(self, row: Snapshot) -> None:
        """Within a change: a hidden part of a group snapshot gets the name that is its note."""
        self.rename_in(row.id, row.note)
        self._replace(row.id, note="")
        self.meta.annotate_snapshot(row.id, "")

    async def annotate(self, name: str, note: str) -> None:
        row = self.find(name)
        if len(note.encode()) > NOTE_BYTES_MAX:
            raise UsageError(f"a note has at most {NOTE_BYTES_MAX} bytes")
        if len(note) > len(row.note):
            self._check_metadata()

        def change(_: int) -> None:
            if self._replace(row.id, note=note):
                self.meta.annotate_snapshot(row.id, note)

        await self.store.cut_with(change)

    async def hold(self, name: str, tag: str) -> None:
        """UsageError (EEXIST) if it has that tag."""
        row = self.find(name)
        check_name(tag, "hold")
        if tag in row.holds:
            raise UsageError(f"snapshot {name!r} is held by {tag!r} already", errno.EEXIST)
        self._check_metadata()

        def change(_: int) -> None:
            now = self.get(row.id)
            if now is not None:
                self._replace(row.id, holds=tuple(sorted({*now.holds, tag})))
                self.meta.put_hold(row.id, tag, self.store.clock())

        await self.store.cut_with(change)
        if self.get(row.id) is None:
            raise NoSuchSnapshot(f"snapshot {name!r} was deleted meanwhile")

    async def release(self, name: str, tag: str) -> None:
        """UsageError (ENOENT) if it has no such tag."""
        row = self.find(name)
        if tag not in row.holds:
            raise UsageError(f"snapshot {name!r} is not held by {tag!r}", errno.ENOENT)

        def change(_: int) -> None:
            now = self.get(row.id)
            if now is not None:
                self._replace(row.id, holds=tuple(each for each in now.holds if each != tag))
                self.meta.drop_hold(row.id, tag)

        await self.store.cut_with(change)

    def _replace(self, snapshot_id: int, **fields: object) -> bool:
        """Change a row in memory; False if it is gone."""
        row = self._rows.get(snapshot_id)
        if row is None:
            return False
        del self._by_name[row.name]
        self._rows[snapshot_id] = now = msgspec.structs.replace(row, **fields)
        self._by_name[now.name] = snapshot_id
        return True

    # -- space ------------------------------------------------------------------------------------

    async def alone_cells(self, snapshot: Snapshot) -> int:
        """What deleting it would free. Remembered where only a neighbour's deletion, or sharing,
        can change it."""
        known = self._alone.get(snapshot.id)
        if known is not None:
            return known
        shares, newer = self._shares, self.after(snapshot.epoch)
        held = await self._only_by([snapshot])
        settled = newer is not None and newer <= self.store.durable and not held.shared
        if settled and shares == self._shares and self.get(snapshot.id) is not None:
            self._alone[snapshot.id] = held.cells
        return held.cells

    async def alone_each(self, snapshots: Collection[Snapshot]) -> dict[int, int]:
        """The same of many, by id, found in one go."""
        missing = [row for row in snapshots if row.id not in self._alone]
        if len(missing) <= 1:
            return {row.id: await self.alone_cells(row) for row in snapshots}
        shares, retained = self._shares, self.meta.retained
        found = await self._held.alone(retained)
        cells = dict(zip(retained, found.cells.tolist(), strict=True))
        unsettled = {e for e, open_ in zip(retained, found.unsettled, strict=True) if open_}
        told: dict[int, int] = {}
        for row in snapshots:
            several = self._epochs.get(row.epoch, 0) > 1
            told[row.id] = 0 if several else cells.get(row.epoch, 0)
            newer = self.after(row.epoch)
            settled = newer is not None and newer <= self.store.durable
            unchanged = shares == self._shares and retained == self.meta.retained
            if settled and unchanged and row.epoch not in unsettled:
                self._alone[row.id] = told[row.id]
        return told

    def sharing(self) -> None:
        """Cells came to be shared by more leaves."""
        self._shares += 1
        self._alone.clear()

    async def freed_cells(self, snapshots: Collection[Snapshot]) -> int:
        """What deleting all of these would free, beside what the sweeper is at already."""
        return (await self._only_by(snapshots)).cells

    async def _only_by(self, snapshots: Collection[Snapshot]) -> Found:
        left = dict(self._epochs)
        for row in snapshots:
            left[row.epoch] -= 1
        kept = tuple(epoch for epoch in self.meta.retained if left[epoch])
        doomed = tuple(epoch for epoch in self.meta.retained if not left[epoch])
        return await self._held.only_by(doomed, kept)

    async def swept(self) -> None:
        """Returns when nothing is left of what was deleted. RaidfsError: that won't be so."""
        sweeper = self.store.sweeper
        while sweeper.busy and not self.store.read_only:
            if (why := self.store.failed or sweeper.stopped) is not None:
                raise RaidfsError(f"not swept: {why}")
            await sweeper.progress()
            await trio.lowlevel.checkpoint()
