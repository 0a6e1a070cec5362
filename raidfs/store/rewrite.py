"""A wholesale change of the present, in one epoch: a rollback, a stream received.

    async with rewriting(store) as rewrite:     the state before is kept under a name of our own
        rewrite.put_inode(...)                  rows of the open epoch, killed and inserted
        await rewrite.breathe()                 committed in pieces, so that the log stays bounded
        await rewrite.finish()                  one cut: all of it is durable, the old is let go

Who leaves the block without `finish` abandons the change.

The pieces are commits that make no epoch durable. A crash before the last one finds that name, and
undoes what is newer than the state before (`Meta._undo`): nothing is ever overwritten meanwhile, as
that state is retained. Zones get their new counts with the last commit.

 1. The new state is there as a whole or not at all, whatever fails and whenever a crash comes.
 2. A row changes only where something differs. So the cost in room follows what differs.
 3. Meanwhile nobody else makes a cut, and the caller keeps away who changes or reads the present:
    in memory (`Inodes`, `Pages`, `Known`) all is as before, and has to be read anew after `finish`.
 4. The log takes a bounded part of its room, however much is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import trio

from ..errors import RaidfsError
from ..leaves import ZONE_SHIFT
from .meta import WHOLESALE, InodeRow, Leaf
from .past import FIRST_VIEW
from .tables import Addresses

if TYPE_CHECKING:
    from .snapshot_rows import Snapshot
    from .store import Store

NAMES_AT_ONCE = 1000
PIECE = 64  # changes between looks at the log
_NONE = np.empty(0, np.uint64)


class Rewrite:
    """A change under way; made by `rewriting`. `before`: the state that it starts from.

    Inode numbers are those of the present's tables. The inode row comes before what belongs to it:
    an inode has to be there when its names, attributes and leaves are put."""

    def __init__(self, store: Store, before: Snapshot) -> None:
        self.store = store
        self.meta = store.meta
        self.before = before
        self.epoch = store.epoch
        self.finished = False
        self._counts: dict[int, int] = {}  # references to cells of zones, more or fewer
        self._cells: dict[int, int] = {}  # cells of inodes, more or fewer, not yet in their rows
        self._cells_told = 0  # to `meta`
        self._changes = 0

    # -- inodes -----------------------------------------------------------------------------------

    def put_inode(self, row: InodeRow) -> None:
        """The inode is as `row` says; one that isn't there is made, whatever its number. `cells`
        and `born` don't count: they follow from the leaves, and from this change."""
        assert 0 < row.ino < FIRST_VIEW
        new, old = copy(row), self.meta.inode(row.ino)
        new.cells = old.cells if old is not None else 0
        new.born = old.born if old is not None else self.epoch
        if new == old:
            return
        self._changes += 1
        if old is not None:
            self.meta.save_inode(self.epoch, new)
        else:
            self.meta.next_ino = max(self.meta.next_ino, row.ino + 1)
            self.meta.insert_inode(self.epoch, new)

    def _touch(self, ino: int) -> None:
        """Whatever changes of an inode comes with a version of it (schema.sql, V4)."""
        self._changes += 1
        if not self.meta.is_touched(self.epoch, ino):
            row = self.meta.inode(ino)
            assert row is not None, "no such inode"
            self.meta.save_inode(self.epoch, row)

    async def remove_inode(self, ino: int) -> None:
        """It is gone, with all that belongs to it but the names that lead to it. No harm if there
        is none."""
        if self.meta.inode(ino) is None:
            return
        self._touch(ino)
        await self.set_names(ino, ())
        for number, _ in self.meta.leaf_range(ino, 0, 1 << 62):
            self.put_leaf(ino, number, None)
            await self.pause()
        self._save_cells()
        self.meta.remove_xattrs(self.epoch, ino)
        self.meta.remove_inode(self.epoch, ino)

    # -- names ------------------------------------------------------------------------------------

    async def set_names(self, parent: int, entries: Iterable[tuple[bytes, int, int]]) -> None:
        """The directory has these entries and no others: (name, ino, kind), kind being the type
        bits of the mode, shifted down by 12. Where inodes lead is the caller's to keep right."""
        wanted = {name: (ino, kind) for name, ino, kind in entries}
        position = -1
        while found := self.meta.entries(parent, position, NAMES_AT_ONCE):
            position = found[-1].position
            await trio.lowlevel.checkpoint()
            for entry in found:
                if wanted.get(entry.name) == (entry.ino, entry.kind):
                    del wanted[entry.name]
                    continue
                self._touch(parent)
                self.meta.unlink(self.epoch, parent, entry.position)
                await self.pause()
        for name, (ino, kind) in wanted.items():
            self.put_name(parent, name, ino, kind)
            await self.pause()

    def put_name(self, parent: int, name: bytes, ino: int, kind: int) -> None:
        """One entry; what stood under that name is gone."""
        entry = self.meta.lookup(parent, name)
        if entry is not None and (entry.ino, entry.kind) == (ino, kind):
            return
        self._touch(parent)
        if entry is not None:
            self.meta.unlink(self.epoch, parent, entry.position)
        self.meta.link(self.epoch, parent, name, ino, kind)

    def remove_name(self, parent: int, name: bytes) -> None:
        """No harm if there is none."""
        entry = self.meta.lookup(parent, name)
        if entry is not None:
            self._touch(parent)
            self.meta.unlink(self.epoch, parent, entry.position)

    # -- extended attributes ----------------------------------------------------------------------

    def set_xattrs(self, ino: int, values: Mapping[bytes, bytes]) -> None:
        """It has these and no others; their number goes into its row."""
        for name in self.meta.xattr_names(ino):
            if name not in values:
                self._touch(ino)
                self.meta.remove_xattr(self.epoch, ino, name)
        for name, value in values.items():
            if self.meta.xattr(ino, name) != value:
                self._touch(ino)
                self.meta.set_xattr(self.epoch, ino, name, value)
        row = self.meta.inode(ino)
        assert row is not None, "no such inode"
        if row.xattrs != len(values):
            self._touch(ino)
            row = self.meta.inode(ino)
            assert row is not None
            row.xattrs = len(values)
            self.meta.save_inode(self.epoch, row)

    # -- leaves -----------------------------------------------------------------------------------

    def put_leaf(self, ino: int, number: int, leaf: Leaf | None, *, shared: bool = False) -> None:
        """The leaf is that (None: there is none). Each cell that it names has other references as
        well, until the change is finished. `shared`: cells were written for pages of other inodes,
        or for other pages of this one."""
        old = self.meta.leaf(ino, number)
        if _same(old, leaf):
            return
        self._touch(ino)
        kept = self.meta.put_leaf(self.epoch, ino, number, leaf, new=old is None)
        new_cells, old_cells = _cells(leaf), _cells(old)
        self._count(new_cells, +1)
        if not kept:  # it was made by this change
            self._count(old_cells, -1)
        if shared:
            for zone in np.unique(new_cells >> np.uint64(ZONE_SHIFT)).tolist():
                self.meta.put_share(zone, ino, number)
        self._cells[ino] = self._cells.get(ino, 0) + len(new_cells) - len(old_cells)

    def _count(self, cells: Addresses, sign: int) -> None:
        if len(cells):
            self.store.touch(self.store.space.account(cells, sign))
            zones, counts = np.unique(cells >> np.uint64(ZONE_SHIFT), return_counts=True)
            for zone, count in zip(zones.tolist(), counts.tolist(), strict=True):
                self._counts[zone] = self._counts.get(zone, 0) + sign * count

    def _save_cells(self) -> None:
        """What leaves gained or lost, into the rows of their inodes."""
        for ino, cells in self._cells.items():
            if cells:
                self.meta.add_cells(self.epoch, ino, cells)
                self._cells_told += cells
        self._cells.clear()

    # -- commits ----------------------------------------------------------------------------------

    async def breathe(self) -> None:
        """Between pieces, often: keeps the log bounded (promise 4), and lets others have the event
        loop. OutOfSpace."""
        self._changes = 0
        self._save_cells()
        await self.store.relieve_log()
        await trio.lowlevel.checkpoint()

    async def pause(self) -> None:
        """`breathe`, if that is due."""
        if self._changes >= PIECE:
            await self.breathe()

    async def finish(
        self, *, keep: str | None = None, also: Callable[[int], None] | None = None
    ) -> int:
        """The change is durable; returns its epoch. `keep`: the state before becomes a snapshot of
        that name (which the caller has checked), else it is let go. `also`: called with the epoch
        within its last transaction, as a change of `Store.cut_with`."""
        assert not self.finished and self.store.epoch == self.epoch
        self._save_cells()

        def change(epoch: int) -> None:
            assert epoch == self.epoch
            if keep is not None:
                self.store.snapshots.rename_in(self.before.id, keep)
            else:
                self._let_go(epoch)
            if self._counts:
                self.store.snapshots.sharing()
            if also is not None:
                also(epoch)

        self.finished = True
        self.store.let_cut()
        return await self.store.cut_with(change)

    def _let_go(self, _: int) -> None:
        """Within a change: the state before isn't needed any more."""
        self.store.snapshots.condemn({self.before.id})

    async def abandon(self) -> None:
        """Undo all of it: the state before goes on. What fails here fails the volume, and the next
        opening undoes it."""
        try:
            for zone, count in self._counts.items():
                self.store.space.zones[zone].live -= count
            self.meta.count_cells(-self._cells_told)
            for _ in self.meta.take_back(self.epoch):
                if self.store.failed is None:
                    await self.store.relieve_log()
            self.store.let_cut()
            if self.store.failed is None:
                await self.store.cut_with(self._let_go)
        except RaidfsError as error:
            self.store.fail(f"a change that could not be finished can't be undone either: {error}")
        finally:
            self.store.let_cut()


@asynccontextmanager
async def rewriting(store: Store) -> AsyncIterator[Rewrite]:
    """A change of the present, from here to its `finish`. One at a time."""
    store.writable()
    async with store.wholesale:
        with trio.CancelScope(shield=True):  # or nobody would let go of what is held
            before = await store.snapshots.create_internal(WHOLESALE)
            await store.hold_cuts()
        rewrite = Rewrite(store, before)
        store.meta.exchanging = rewrite.epoch
        try:
            assert not store.meta.touched_in(rewrite.epoch), "somebody changes the present"
            yield rewrite
        finally:
            store.meta.exchanging = 0
            if not rewrite.finished:
                with trio.CancelScope(shield=True):
                    await rewrite.abandon()


def _cells(leaf: Leaf | None) -> Addresses:
    """Those that it names."""
    if leaf is None or leaf.addresses is None:
        return _NONE
    named: Addresses = leaf.addresses[leaf.addresses != 0]
    return named


def _same(one: Leaf | None, other: Leaf | None) -> bool:
    if _empty(one) or _empty(other):
        return _empty(one) and _empty(other)
    assert one is not None and other is not None
    return one.inline == other.inline and _same_addresses(one.addresses, other.addresses)


def _empty(leaf: Leaf | None) -> bool:
    return leaf is None or (leaf.inline is None and not len(_cells(leaf)))


def _same_addresses(one: Addresses | None, other: Addresses | None) -> bool:
    if one is None or other is None:
        some = one if one is not None else other
        return some is None or not some.any()
    long, short = (one, other) if len(one) >= len(other) else (other, one)
    return bool((long[: len(short)] == short).all()) and not long[len(short) :].any()
