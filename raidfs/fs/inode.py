"""The inodes in memory: a bounded cache, what changed since the last cut, what the kernel knows.

Words: an inode is *pinned* while it is open, in use by an operation, dirty, or resident (its pages
are in `Pages`); others may be forgotten at any time and read again. It is *dirty* while its row in
memory is newer than the one in the metadata. It is an *orphan* once no name leads to it; it lives
on while it is open or the kernel refers to it, and is reaped, data and all, when the last of these
goes.

Every operation that changes something follows one skeleton:

    look up and check; raise FsError          nothing has changed yet, nothing needs undoing
    with inodes.change(parent, inode) as e:   read-only? then versions split; names, xattrs change:
        meta...(e, ...)                       all of it, or, when a statement fails, none of it
    inode.row.nlink += 1; inodes.stamp(...)   rows in memory: can't fail, saved by the cut
    inodes.retell(parent, inode)              last of all: the kernel may be told of it again

    inodes.change_alone(inode)                or so, where neither names nor xattrs change

 1. The version of an inode splits before the first change of an epoch to its names or its xattrs
    reaches the metadata (so the versions name all there is to undo). Room for a version is taken
    while failing is still possible: a cut can't be refused.
 2. What `save_dirty` writes at a cut is every change told before it, O(changed inodes).
 3. Size and times (but btime) of a resident file belong to `Pages`; of all others to the row.
 4. Memory: `cached_max` inodes that nobody needs, those pinned, and below 8 bytes for each that
    the kernel refers to (where inode numbers lie close together).
 5. Inode numbers are never used twice.
 6. Inodes of snapshots go by view numbers (views.py) and are as others, but never change: `change`
    refuses them. One that is *gone*, with its snapshot or by a rollback, while it is open, answers
    ESTALE until it is closed.
 7. What `Known` tells the kernel of an inode is true: `change` and whatever else changes what
    stat(2) tells or whether there are xattrs takes it back first. `told` puts it there, and
    `retell`, when a change is over: so no more is known than the kernel was told once.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import TYPE_CHECKING

from ..errors import FsError, RaidfsError
from ..known import Known
from ..store.meta import ROOT_INO
from ..store.past import FIRST_VIEW, view_of
from ..store.spool import SPOOL_INO
from ..store.tables import INLINE_BYTES_MAX
from .attributes import Attributes
from .cached import Inode, InodeStatistics
from .change import Change
from .views import SNAPSHOTS_INO, Views, check_changeable
from .watch import Watches

if TYPE_CHECKING:
    from ..pages import Sealed
    from ..store.meta import InodeRow
    from ..store.store import Store

CACHED_MAX = 20_000
DIRTY_MAX = 8192
LOOK_EVERY = 32
UNIT_BYTES = 512  # of st_blocks


class Inodes:
    """The inode cache of one volume and the rules by which inodes change, live and go."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], int],
        cached_max: int = CACHED_MAX,
        dirty_max: int = DIRTY_MAX,
        known: Known | None = None,
        root: int = ROOT_INO,
    ) -> None:
        """`root`: what the metadata is asked for when the root is meant; the root of a view if that
        is to be seen alone."""
        assert cached_max >= 16  # one operation holds a few
        self.store = store
        self.meta = store.meta
        self.pages = store.pages
        self.clock = clock
        self.cached_max = cached_max
        self.dirty_max = dirty_max
        self.known = known or Known(enabled=False)
        self._idle: OrderedDict[int, Inode] = OrderedDict()  # least recently used first
        self._pinned: dict[int, Inode] = {}
        self._dirty: dict[int, Inode] = {}
        self._closed: OrderedDict[int, Inode] = OrderedDict()  # resident but not open
        self._orphans: set[int] = set()
        self.viewed: set[int] = set()  # snapshots of which inodes were here
        self.root = root
        self.views = Views(store)
        self.watches = Watches()
        self._until_look = LOOK_EVERY  # calls of `ready` until it looks again

    # -- the cache --------------------------------------------------------------------------------

    def get(self, ino: int) -> Inode:
        """The inode; FsError(ESTALE) if there is none of that number."""
        inode = self._pinned.get(ino)
        if inode is not None:
            self.check_there(inode)
            return inode
        inode = self._idle.get(ino)
        if inode is not None:
            self.check_there(inode)
            self._idle.move_to_end(ino)
            return inode
        row = self.row(ino)
        if row is None:
            raise FsError(errno.ESTALE, "the file is gone")
        return self._admit(Inode(row, told=self.known.enabled))

    def row(self, ino: int) -> InodeRow | None:
        """As the metadata has it."""
        if ino == SNAPSHOTS_INO:
            return self.views.row()
        row = self.meta.inode(self.number(ino))
        if row is not None:
            row.ino = ino
        if ino >= FIRST_VIEW:
            self.viewed.add(view_of(ino))
        return row

    def number(self, ino: int) -> int:
        """The inode's number in the metadata."""
        return self.root if ino == ROOT_INO else ino

    def check_there(self, inode: Inode) -> None:
        """ESTALE if the inode is gone. Whoever reads asks again after each await."""
        ino = inode.row.ino
        gone = inode.gone or (ino >= FIRST_VIEW and not self.views.has(ino))
        if gone:
            raise FsError(errno.ESTALE, "the file is gone")

    def opened(self, ino: int) -> Inode:
        """The inode of something open, be it gone. ESTALE: it isn't open."""
        inode = self._pinned.get(ino)
        if inode is None or not inode.opens:
            raise FsError(errno.ESTALE, "the file is not open")
        return inode

    def parent(self, ino: int) -> int:
        """The directory that holds a directory. Leaves the cache as it is: a path may be longer
        than the cache, and the caller holds inodes of it."""
        inode = self._pinned.get(ino) or self._idle.get(ino)
        row = inode.row if inode is not None else self.meta.inode(ino)
        assert row is not None
        return row.parent

    def add(self, row: InodeRow) -> Inode:
        """An inode that `meta.insert_inode` has just stored."""
        inode = self._admit(Inode(row, told=False))
        self._mark(inode)
        return inode

    def _admit(self, inode: Inode) -> Inode:
        self._idle[inode.ino] = inode
        self._shrink()
        return inode

    def _shrink(self) -> None:
        while len(self._idle) > self.cached_max:
            self._idle.popitem(last=False)

    def pin(self, inode: Inode) -> None:
        if inode.pins == 0:
            del self._idle[inode.ino]
            self._pinned[inode.ino] = inode
        inode.pins += 1

    def unpin(self, inode: Inode) -> None:
        assert inode.pins > 0
        inode.pins -= 1
        if inode.pins == 0:
            del self._pinned[inode.ino]
            if not inode.gone:
                self._idle[inode.ino] = inode
                self._shrink()

    @contextmanager
    def held(self, ino: int) -> Iterator[Inode]:
        """The inode, kept as if open while an operation awaits."""
        inode = self.get(ino)
        self.open(inode)
        try:
            yield inode
        finally:
            self.close(inode)

    # -- changes ----------------------------------------------------------------------------------

    def change(self, *inodes: Inode, freeing: bool = False) -> Change:
        """The changing part of an operation: yields the epoch; see the skeleton above. `freeing`:
        it gives room back, so it may use the last reserve."""
        return Change(self, inodes, freeing)

    def change_alone(self, inode: Inode, freeing: bool = False) -> None:
        """As `change`, where nothing changes but the inode's row and its content: room for them is
        taken now, but they are written at the cut."""
        self.store.writable()
        check_changeable(inode.row.ino)
        self.watches.note(inode.row.ino)
        self.untell(inode)
        if inode.dirty:
            return
        if inode.row.born != self.store.epoch:
            self.meta.owe_inode(inode.row, freeing)
            inode.before = copy(inode.row)
        self.store.changed()
        self._mark(inode)

    def changed(self, inodes: tuple[Inode, ...]) -> None:
        """The end of a `change`."""
        self.store.changed()
        for inode in inodes:
            self._mark(inode)

    def untell(self, inode: Inode) -> None:
        """Before what stat(2) tells of the inode changes (promise 6)."""
        if inode.told:
            inode.untold = self.known.forget_inode(inode.ino)
            inode.told = False

    def retell(self, *inodes: Inode) -> None:
        """When a change is over, and rows and `Pages` are current: what was known of the inodes
        before is known again."""
        for inode in inodes:
            if inode.untold and not inode.gone:
                inode.told, inode.untold = True, False
                self.known.put_inode(self._fields(inode))

    def _mark(self, inode: Inode) -> None:
        if not inode.dirty:
            inode.dirty = True
            self.pin(inode)
            self._dirty[inode.ino] = inode
            if len(self._dirty) >= self.dirty_max:
                self.store.request_cut()

    def stamp(
        self,
        inode: Inode,
        mtime_ns: int | None,
        ctime_ns: int | None,
        atime_ns: int | None = None,
    ) -> None:
        """Set times where they live (promise 3). Only after `change`, or nobody saves them."""
        if inode.resident:
            self.pages.set_times(inode.ino, mtime_ns, ctime_ns, atime_ns)
            return
        if atime_ns is not None:
            inode.row.atime_ns = atime_ns
        if mtime_ns is not None:
            inode.row.mtime_ns = mtime_ns
        if ctime_ns is not None:
            inode.row.ctime_ns = ctime_ns

    def save_dirty(self, sealed: Sealed) -> None:
        """The store's `on_cut`: the closing epoch gets what it changed."""
        with self.meta.reserve():
            self._save_dirty(self.store.epoch, sealed)
        self._evict_closed(len(self._closed))

    def _save_dirty(self, epoch: int, sealed: Sealed) -> None:
        rows: list[tuple[InodeRow, InodeRow | None]] = []
        columns = (sealed.inos, sealed.sizes, sealed.mtimes, sealed.ctimes, sealed.atimes)
        for ino, size, *times in zip(*(c.tolist() for c in columns), strict=True):
            if epoch == self.meta.exchanging and self.meta.is_touched(epoch, ino):
                continue  # it was exchanged; what is in memory of it is of the present before
            inode = self._pinned[ino]  # because it is resident
            row = inode.row
            if not inode.dirty:  # the lane alone changed it: Pages.allow_files bounds how many
                rows.append((row, copy(row)))
            row.size = size
            row.mtime_ns, row.ctime_ns, row.atime_ns = times
        dirty = list(self._dirty.values())
        rows += [(inode.row, inode.before) for inode in dirty]
        self.meta.save_inodes(epoch, rows)
        for inode in dirty:
            self._clean(inode)

    def _clean(self, inode: Inode) -> None:
        if inode.dirty:
            inode.dirty, inode.before = False, None
            del self._dirty[inode.ino]
            self.unpin(inode)

    async def ready(self) -> None:
        """Wait until the metadata has room for more changes before the next commit. Names change in
        plain functions, which can't wait; who calls many of them awaits this before each."""
        if not self.is_ready():
            await self.relief()

    def is_ready(self) -> bool:
        """For who can't wait: counts as `ready` does; if False, `relief` is to be awaited."""
        self._until_look -= 1
        if self._until_look > 0:
            return True
        self._until_look = LOOK_EVERY
        return not self._pressed()

    async def relief(self) -> None:
        """The waiting part of `ready`."""
        while self._pressed():
            await self.store.commit()

    def _pressed(self) -> bool:
        return self.meta.pressure and self.store.dirty and self.store.failed is None

    # -- open, resident, referred to --------------------------------------------------------------

    def open(self, inode: Inode) -> None:
        self.watches.note(inode.ino)
        inode.opens += 1
        self.pin(inode)

    def close(self, inode: Inode) -> None:
        """The counterpart of `open`: pages may leave memory, an orphan may go."""
        assert inode.opens > 0
        inode.opens -= 1
        self.reap_if_unused(inode)
        if inode.opens == 0 and inode.resident:
            if inode.gone:
                self._unload(inode)
            else:
                self._closed[inode.ino] = inode
                self._evict_closed(2)
        self.unpin(inode)

    def is_open(self, ino: int) -> bool:
        inode = self._pinned.get(ino)
        return inode is not None and inode.opens > 0

    def make_resident(self, inode: Inode) -> None:
        """Let `Pages` own size and times. The inode must be open."""
        assert inode.opens and inode.is_file
        if inode.resident:
            self._closed.pop(inode.ino, None)
            return
        row = inode.row
        self.untell(inode)
        self.pages.load(row.ino, row.size, row.mtime_ns, row.ctime_ns, row.atime_ns)
        if inode.dirty:  # then its version is of this epoch, and the lane needs none of its share
            self.pages.set_times(row.ino, row.mtime_ns, None)
        inode.resident = True
        self.pin(inode)
        self.retell(inode)

    def _evict_closed(self, count: int) -> None:
        """Try to drop the pages of the files closed longest ago; those with dirty pages go to the
        end of the queue, until the flusher is through with them."""
        for _ in range(min(count, len(self._closed))):
            ino, inode = self._closed.popitem(last=False)
            if inode.opens:
                continue
            if self.pages.evict(ino):
                self.untell(inode)
                inode.resident = False
                self.retell(inode)
                self.unpin(inode)
            else:
                self._closed[ino] = inode

    def _unload(self, inode: Inode) -> None:
        """Of a file without dirty pages."""
        self._closed.pop(inode.ino, None)
        evicted = self.pages.evict(inode.ino)
        assert evicted, "changed while nobody may change it"
        inode.resident = False
        self.unpin(inode)

    def refer(self, ino: int, count: int = 1) -> None:
        """The kernel was told of the inode."""
        self.known.refer(ino, count)

    def forget(self, ino: int, count: int) -> None:
        """The kernel has forgotten the inode `count` times."""
        if self.known.release(ino, count) == 0 and self._orphans:
            self.reap_unreferenced()

    # -- orphans ----------------------------------------------------------------------------------

    def made_unnamed(self, inode: Inode) -> None:
        """It is an orphan already; open it, or it goes with the next `close` or `forget`."""
        self._orphans.add(inode.ino)

    def got_a_name(self, inode: Inode) -> None:
        """After a change gave the inode a name."""
        inode.linkable = False
        self._orphans.discard(inode.ino)

    def lost_a_name(self, inode: Inode) -> None:
        """After a change took a name from the inode (nlink says how many are left)."""
        if inode.row.nlink == 0:
            self._orphans.add(inode.ino)
            self.reap_if_unused(inode)

    def reap_if_unused(self, inode: Inode) -> None:
        """Remove an orphan that is neither open nor referred to. Without room or on a read-only
        volume it stays for the next mount."""
        if inode.ino == SPOOL_INO or inode.row.nlink or inode.opens or inode.gone:
            return
        if self.known.watch(inode.ino):
            return
        with suppress(RaidfsError):
            self._reap(inode)

    def reap_unreferenced(self) -> None:
        """Remove the orphans to which the kernel has stopped referring."""
        for ino in self.known.unreferenced():
            if ino in self._orphans:
                self.reap_if_unused(self.get(ino))

    def _reap(self, inode: Inode) -> None:
        ino = inode.ino
        self.untell(inode)
        with self.change(freeing=True) as epoch:
            self.meta.remove_inode(epoch, ino)
            if inode.row.xattrs:
                self.meta.remove_xattrs(epoch, ino)
        inode.gone = True
        self._orphans.discard(ino)
        if inode.is_file and (inode.resident or inode.row.size):
            self.pages.drop(ino)
        self._closed.pop(ino, None)
        self._clean(inode)
        if inode.resident:
            inode.resident = False
            self.unpin(inode)
        self._idle.pop(ino, None)

    def reap_orphans(self) -> int:
        """At mount, before anything is open: remove what a crash left. Returns how many."""
        orphans = [ino for ino in self.meta.orphans() if ino != SPOOL_INO]
        for ino in orphans:
            self._reap(self.get(ino))
        return len(orphans)

    def remove_spool(self) -> None:
        """What came of a stream is given up (receive.py). It is not open."""
        self._reap(self.get(SPOOL_INO))

    # -- what goes, or changes, past all this: see outdated.py ------------------------------------

    def in_memory(self) -> list[Inode]:
        return [*self._idle.values(), *self._pinned.values()]

    def vanish(self, inode: Inode) -> None:
        """It exists no more. From here on nothing of it is told; who has it open closes it yet."""
        assert not inode.dirty
        inode.gone = True
        self._idle.pop(inode.ino, None)
        if inode.resident:
            self.pages.vouch(inode.ino, 0)
            self.pages.leaf_forget(inode.ino)
            if not inode.opens:
                self._unload(inode)

    def renew(self, inode: Inode, row: InodeRow) -> None:
        """It is as `row` says now, its content another one. Nobody vouches for it."""
        assert not inode.dirty
        inode.row, inode.gone, inode.capability = row, False, None
        inode.told = inode.untold = False
        if inode.resident:
            opened = inode.opens > 0
            self._unload(inode)
            if opened:
                self.make_resident(inode)

    def found_orphans(self, inos: Iterable[int]) -> None:
        """These have no names, and no others."""
        self._orphans = set(inos)
        for ino in sorted(self._orphans):
            self.reap_if_unused(self.get(ino))

    # -- what stat tells --------------------------------------------------------------------------

    def told(
        self, inode: Inode, parent: int = 0, name: bytes = b"", references: int = 0
    ) -> Attributes:
        """A reply to the kernel that tells the inode's attributes, perhaps as what stands under a
        name, and perhaps makes the kernel refer to the inode."""
        told = self.attributes(inode)
        if not self.known.enabled:
            if references:
                self.known.refer(told.ino, references)
            return told
        inode.told, inode.untold = True, False
        self.known.tell(self._fields(inode), parent, name, references)
        return told

    def _fields(self, inode: Inode) -> tuple[int, ...]:
        """The fields of KnownInode. Size and times of a resident file aren't looked at."""
        row = inode.row
        return (
            row.ino,
            row.generation,
            self.store.cell_bytes if inode.is_directory else row.size,
            row.cells,
            row.atime_ns,
            row.mtime_ns,
            row.ctime_ns,
            row.mode,
            row.nlink,
            row.uid,
            row.gid,
            row.rdev,
            INLINE_BYTES_MAX,
            inode.resident,
            not row.xattrs,
        )

    def attributes(self, inode: Inode) -> Attributes:
        if inode.row.ino == SNAPSHOTS_INO:
            inode.row = self.views.row()
        row = inode.row
        size, mtime_ns, ctime_ns, atime_ns = self.size_and_times(inode)
        if inode.is_directory:
            size = self.store.cell_bytes  # a custom older than any use of it
        return Attributes(
            row.ino,
            row.generation,
            row.mode,
            row.nlink,
            row.uid,
            row.gid,
            row.rdev,
            size,
            self._units(inode, size) if inode.is_file else 0,
            self.store.cell_bytes,
            atime_ns,
            mtime_ns,
            ctime_ns,
            row.btime_ns,
        )

    def _units(self, inode: Inode, size: int) -> int:
        """st_blocks: what the leaves hold, and what is dirty. A page that is both counts twice
        until the next cut, but no file takes more than its size."""
        if size <= INLINE_BYTES_MAX:
            return -(-size // UNIT_BYTES)
        cells = inode.row.cells + (self.pages.cells(inode.ino) if inode.resident else 0)
        return min(cells, -(-size // self.store.cell_bytes)) * self.store.cell_bytes // UNIT_BYTES

    def note_cells(self, changes: dict[int, int]) -> None:
        """The store's hook: the leaves of these inodes hold so many cells more (or fewer) now."""
        for ino, change in changes.items():
            inode = self._pinned.get(ino) or self._idle.get(ino)
            if inode is not None:
                self.untell(inode)
                inode.row.cells += change
                self.retell(inode)
            elif self.known.enabled:
                self.known.forget_inode(ino)

    def size_and_times(self, inode: Inode) -> tuple[int, int, int, int]:
        """(size, mtime_ns, ctime_ns, atime_ns) from where they live (promise 3)."""
        if inode.resident:
            return self.pages.attributes(inode.ino)
        row = inode.row
        return row.size, row.mtime_ns, row.ctime_ns, row.atime_ns

    def statistics(self) -> InodeStatistics:
        return InodeStatistics(
            len(self._idle) + len(self._pinned),
            len(self._pinned),
            len(self._dirty),
            len(self._closed),
            len(self._orphans),
            self.known.statistics().referenced,
        )
