"""Going back to a snapshot: the present becomes what the snapshot holds, in one epoch.

    door closed -> the present kept -> what differs rewritten -> durable -> caches dropped -> opened

Inodes that came since are removed, those that went come back under their old numbers, the others
get back row, names, attributes and leaves. Cells are referred to, never copied.

 1. A crash at any moment leaves the present as it was, or as the snapshot holds it.
 2. Nobody sees anything in between: users' requests wait at the door (door.py) meanwhile.
 3. The time follows what differs, not the size of the volume.
 4. Files that are open go on with what the snapshot has of them; those that it doesn't know are
    ESTALE. It knows none without a name, so such a file that was changed since is ESTALE, too.
 5. A kernel with its write-back cache on believes nobody about size and times of a file that it
    knows. So changed files then get another generation: it takes them for others when it looks
    them up again, and what is open of them has to be opened again (EIO).
 6. What moves had hidden, then or now, is in neither: it belonged to another volume, or belongs to
    one, or was a copy. So a file that the snapshot of the whole group has elsewhere doesn't come
    back here.
 7. Newer snapshots stay, unless told otherwise, and so does what they hold: going forward to one
    of them later is a rollback as any other.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from copy import copy
from typing import TYPE_CHECKING

import msgspec
import trio

from ..errors import NoSuchSnapshot, RaidfsError, SnapshotHeld, UsageError
from ..store.group_snapshots import MOVING
from ..store.hidden import Hidden, hidden
from ..store.past import as_view, within
from ..store.rewrite import Rewrite, rewriting
from ..store.snapshots import check_name
from ..store.spool import SPOOL_INO

if TYPE_CHECKING:
    from ..store.meta import Dirent, InodeRow, Meta
    from ..store.snapshot_rows import Snapshot
    from ..store.snapshots import Snapshots
    from ..store.store import Store
    from .volume import Volume

ENTRIES_AT_ONCE = 1000
Progress = Callable[[int, int], None]  # inodes done, of how many


class Rollback(msgspec.Struct, frozen=True):
    """What a rollback does, or did: how many inodes change, are removed, come back; and which newer
    snapshots go. `epoch`: in which it was done; 0: it was not."""

    name: str
    changed: int
    removed: int
    returned: int
    deleted: tuple[str, ...]
    epoch: int = 0


async def rollback(
    volume: Volume,
    name: str,
    *,
    delete_newer: bool = False,
    keep: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    door: AbstractAsyncContextManager[None] | None = None,
    also: Callable[[int], None] | None = None,
) -> Rollback:
    """Go back to the snapshot of that name; durable on return, and the kernel knows. `keep`: the
    present stays as a snapshot of that name. `dry_run`: only look what it would do. `door`: what
    keeps users out meanwhile, if not the volume's. `also`: a change of the same transaction.

    NoSuchSnapshot; SnapshotHeld, when one that is to be deleted is; UsageError when `keep` can't be
    a name, or is taken; OutOfSpace when the metadata has no room. Then nothing has changed."""
    store = volume.store
    store.writable()
    check_no_moves(store)
    _newer(volume, name, delete_newer)
    if keep is not None:
        check_name(keep)
        if store.snapshots.is_taken(keep):
            raise UsageError(f"there is a snapshot {keep!r} already; choose another name")
    if dry_run:
        await store.commit()
        return await _look(volume, name, delete_newer)
    with _reserved(store.snapshots, keep):
        async with door or volume.door.closed(), rewriting(store) as rewrite:
            going = _GoingBack(volume, store.snapshots.find(name), delete_newer, progress)
            going.also = also or going.also
            await going.rewrite(rewrite)
            with trio.CancelScope(shield=True):  # what is durable, all must know of
                epoch = await _finish(volume, rewrite, keep, going.finish)
    await volume.audience.told()
    return msgspec.structs.replace(going.figures, epoch=epoch)


def check_no_moves(store: Store) -> None:
    """UsageError: the present can't be exchanged, since the other side counts on it."""
    if any(kind in MOVING for _, kind, _ in store.meta.kept()):
        raise UsageError(
            "files are on their way to or from another volume: go back when these moves are over",
            errno.EBUSY,
        )


@contextmanager
def _reserved(snapshots: Snapshots, name: str | None) -> Iterator[None]:
    """Nobody else is given the name meanwhile."""
    if name is not None:
        snapshots.reserve_name(name)
    try:
        yield
    finally:
        if name is not None:
            snapshots.release_name(name)


async def _finish(
    volume: Volume, rewrite: Rewrite, keep: str | None, also: Callable[[int], None]
) -> int:
    try:
        epoch = await rewrite.finish(keep=keep, also=also)
    except RaidfsError:  # the volume has failed: what can be read yet shall be of one state
        with suppress(RaidfsError):
            volume.reread()
        raise
    volume.reread()
    return epoch


async def go_back(volume: Volume, snapshot: Snapshot, rewrite: Rewrite) -> None:
    """The first part of a change that goes on from that snapshot, in its rewrite. NoSuchSnapshot if
    it was deleted meanwhile; it may have got another name."""
    now = volume.store.snapshots.get(snapshot.id)
    if now is None:
        raise NoSuchSnapshot(f"snapshot {snapshot.name!r} was deleted meanwhile")
    await _GoingBack(volume, now, False, None).rewrite(rewrite)


def _newer(volume: Volume, name: str, delete: bool) -> list[Snapshot]:
    """The snapshots that go with it. NoSuchSnapshot, SnapshotHeld."""
    snapshots = volume.store.snapshots
    epoch = snapshots.find(name).epoch
    newer = [each for each in snapshots.all() if each.epoch > epoch] if delete else []
    held = next((each for each in newer if each.holds), None)
    if held is not None:
        raise SnapshotHeld(
            f"snapshot {held.name!r} is newer and held ({', '.join(held.holds)}): release it "
            "first, or go back without deleting newer ones"
        )
    return newer


async def _look(volume: Volume, name: str, delete_newer: bool) -> Rollback:
    """What it would do now."""
    meta = volume.store.meta
    snapshot = volume.store.snapshots.find(name)
    changed = removed = returned = 0
    ends = await _hidden(meta, snapshot)
    for ino in await _touched(meta, snapshot, ends):
        then, there = _then(meta, snapshot, ino, ends[0]), _is_there(meta, ino, ends[1])
        changed += then is not None and there
        removed += then is None and there
        returned += then is not None and not there
    deleted = tuple(each.name for each in _newer(volume, name, delete_newer))
    return Rollback(name, changed, removed, returned, deleted)


async def _hidden(meta: Meta, snapshot: Snapshot) -> tuple[Hidden, Hidden]:
    """Then, and now."""
    return await hidden(meta, snapshot.id), await hidden(meta)


async def _touched(meta: Meta, snapshot: Snapshot, ends: tuple[Hidden, Hidden]) -> list[int]:
    """The inodes to be looked at. A stream that is being received belongs to no state."""
    inos = {*await meta.touched(snapshot.epoch, snapshot.next_ino)}
    inos.update(*(end.inos for end in ends))
    return sorted(inos - {SPOOL_INO})


def _then(meta: Meta, snapshot: Snapshot, ino: int, veil: Hidden) -> InodeRow | None:
    """The inode as the snapshot has it, in the terms of the present; None: it has no name there."""
    row = veil.seen(meta.inode(as_view(snapshot.id, ino)))
    if row is None or row.nlink == 0:
        return None
    row = copy(row)
    row.ino, row.parent = within(row.ino), within(row.parent)
    return row


def _is_there(meta: Meta, ino: int, veil: Hidden) -> bool:
    """In the present, under a name."""
    row = veil.seen(meta.inode(ino))
    return row is not None and row.nlink > 0


class _GoingBack:
    """One rollback, in a rewrite."""

    def __init__(
        self, volume: Volume, snapshot: Snapshot, delete_newer: bool, progress: Progress | None
    ) -> None:
        self.meta = volume.store.meta
        self.snapshots = volume.store.snapshots
        self.snapshot = snapshot
        self.deleted = _newer(volume, snapshot.name, delete_newer)
        self.progress = progress or (lambda done, total: None)
        self.new_generations = volume.kernel_keeps_sizes
        self.changed = self.removed = self.returned = 0
        self.also: Callable[[int], None] = lambda epoch: None

    @property
    def figures(self) -> Rollback:
        deleted = tuple(each.name for each in self.deleted)
        return Rollback(self.snapshot.name, self.changed, self.removed, self.returned, deleted)

    async def rewrite(self, rewrite: Rewrite) -> None:
        ends = await _hidden(self.meta, self.snapshot)
        touched = await _touched(self.meta, self.snapshot, ends)
        for done, ino in enumerate(touched):
            then = _then(self.meta, self.snapshot, ino, ends[0])
            there = _is_there(self.meta, ino, ends[1])
            if then is not None:
                await self._put(rewrite, then)
            else:
                await rewrite.remove_inode(ino)
            self.changed += then is not None and there
            self.removed += then is None and there
            self.returned += then is not None and not there
            await rewrite.pause()
            self.progress(done + 1, len(touched))

    async def _put(self, rewrite: Rewrite, row: InodeRow) -> None:
        """The inode gets back what the snapshot has of it."""
        meta, ino, view = self.meta, row.ino, as_view(self.snapshot.id, row.ino)
        now = meta.inode(ino)
        if self.new_generations and now is not None and stat.S_ISREG(row.mode):
            row.generation = max(now.generation, row.generation) + 1
        rewrite.put_inode(row)
        if row.xattrs or (now is not None and now.xattrs):
            names = meta.xattr_names(view)
            values = {name: meta.xattr(view, name) for name in names}
            rewrite.set_xattrs(ino, {n: value for n, value in values.items() if value is not None})
        entries = await self._entries(view)
        if entries or not meta.is_empty(ino):
            await rewrite.set_names(ino, [(e.name, within(e.ino), e.kind) for e in entries])
        for number in meta.leaves_between(ino, self.snapshot.epoch):
            rewrite.put_leaf(ino, number, meta.leaf(view, number))
            await rewrite.pause()

    async def _entries(self, view: int) -> list[Dirent]:
        found: list[Dirent] = []
        while more := self.meta.entries(view, found[-1].position if found else -1, ENTRIES_AT_ONCE):
            found += more
            await trio.lowlevel.checkpoint()
        return found

    def finish(self, epoch: int) -> None:
        """Within the last transaction."""
        self.also(epoch)
        if self.deleted:
            self.snapshots.condemn({each.id for each in self.deleted})
