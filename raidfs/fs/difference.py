"""What differs between two snapshots, or a snapshot and the present: names, attributes, content.

    async with difference(volume, "monday", "friday") as changes:     None: the present
        async for change in changes: ...

The inodes that may differ are named by the metadata (store/touched.py). Of each, the rows at both
ends are compared, the names in it if it is a directory, and the leaves if it is a file. Content is
never read: a page counts as changed when it lies elsewhere.

Words: a *link* is a name of an inode that has, or had, another one. Inodes without a name (open,
and removed) are no part of either end, nor is what is hidden for a move (store/hidden.py).

 1. A change is told once for each name that it concerns: what came and went by its names; what was
    renamed, by pairs of them; what else was changed, by one of its names. A directory that was
    renamed is told, and not what stands in it.
 2. The cost follows what was changed, and the size of the directories that hold it: never that of
    the volume. One exception: a file with several names of which none is known to stand in a
    certain directory has to be looked for.
 3. The ends are those of the call, whatever happens meanwhile. If one of them is deleted then, that
    is NoSuchSnapshot, and no wrong answer.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt
import trio

from ..errors import NoSuchSnapshot
from ..pages import LEAF_PAGES
from ..store.hidden import Hidden, hidden
from ..store.meta import ROOT_INO
from ..store.past import as_view, within
from ..store.touched import PRESENT

if TYPE_CHECKING:
    from ..store.meta import InodeRow, Leaf
    from ..store.snapshot_rows import Snapshot
    from ..store.store import Store
    from .volume import Volume

ENTRIES_AT_ONCE = 1000
INODES_PER_TURN = 100
_COMPARED = ("mode", "uid", "gid", "rdev", "size", "mtime_ns", "target")
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_present = itertools.count(1)

Name = tuple[int, bytes]  # a directory (its number within the volume), and a name in it
Bools = npt.NDArray[np.bool_]


class Range(msgspec.Struct, frozen=True):
    """Bytes of a file, in whole pages but for its end."""

    offset: int
    nbytes: int


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change.

    what        "created", "removed", "renamed" or "modified"
    path        bytes from the root, as "/a/b": of a removed name what it was, else what it is
    old_path    of what was renamed
    ino, kind   as stat tells them; kind in words
    link        created or removed: the inode is the same as before, only this name came or went
    size        of a file, at the later end (removed: at the earlier one)
    attributes  of what was modified (or renamed, and modified): which are others: mode, uid, gid,
                rdev, size, mtime, target
    xattrs      and which extended attributes: name -> "created", "removed", "modified"
    ranges      and which content of a file, ascending; what lies above the later end's size is told
                by the size alone
    """

    what: str
    path: bytes
    ino: int
    kind: str
    old_path: bytes | None = None
    link: bool = False
    size: int = 0
    attributes: tuple[str, ...] = ()
    xattrs: dict[bytes, str] = {}
    ranges: tuple[Range, ...] = ()


@asynccontextmanager
async def difference(
    volume: Volume, old: str, new: str | None = None
) -> AsyncIterator[AsyncIterator[Change]]:
    """The changes that lead from `old` to `new` (None: the present), by path. `old` may be the
    later one. NoSuchSnapshot; OutOfSpace when there is no room to keep the present for so long."""
    snapshots = volume.store.snapshots
    first = snapshots.find(old)
    if new is not None:
        async with aclosing(_Difference(volume.store, first, snapshots.find(new)).changes()) as it:
            yield it
        return
    if volume.store.read_only:  # then it stays as it is
        async with aclosing(_Difference(volume.store, first, None).changes()) as it:
            yield it
        return
    present = await snapshots.create_internal(f".present-{next(_present)}")
    try:
        async with aclosing(_Difference(volume.store, first, present).changes()) as it:
            yield it
    finally:
        with trio.CancelScope(shield=True):
            if volume.store.failed is None:
                await snapshots.delete([present.name])


class _End:
    """One of the two states."""

    def __init__(self, store: Store, snapshot: Snapshot | None) -> None:
        self.store = store
        self.meta = store.meta
        self.snapshot = snapshot
        self.epoch = snapshot.epoch if snapshot is not None else PRESENT
        self._names: dict[int, Name] = {ROOT_INO: (0, b"")}  # one of each inode asked for
        self._hidden = Hidden({})  # found later

    def number(self, ino: int) -> int:
        return ino if self.snapshot is None else as_view(self.snapshot.id, ino)

    def check(self) -> None:
        """Promise 3."""
        if self.snapshot is not None and self.store.snapshots.get(self.snapshot.id) is None:
            raise NoSuchSnapshot(
                f"snapshot {self.snapshot.name!r} was deleted while it was compared"
            )

    def row(self, ino: int) -> InodeRow | None:
        """None: it isn't there, or has no name."""
        row = self._hidden.seen(self.meta.inode(self.number(ino)))
        return row if row is not None and row.nlink else None

    async def find_hidden(self) -> Collection[int]:
        """Before all else: what `row` leaves out, or tells with fewer names."""
        self._hidden = await hidden(self.meta, self.snapshot.id if self.snapshot else 0)
        return self._hidden.inos

    def entries(self, directory: int) -> Iterator[tuple[int, bytes, int]]:
        """(position, name, ino), by position"""
        position = -1
        while found := self.meta.entries(self.number(directory), position, ENTRIES_AT_ONCE):
            position = found[-1].position
            for entry in found:
                yield entry.position, entry.name, within(entry.ino)

    def xattrs(self, ino: int) -> dict[bytes, bytes | None]:
        number = self.number(ino)
        return {name: self.meta.xattr(number, name) for name in self.meta.xattr_names(number)}

    def leaf(self, ino: int, number: int) -> Leaf | None:
        return self.meta.leaf(self.number(ino), number)

    # -- paths ------------------------------------------------------------------------------------

    def note_name(self, ino: int, name: Name) -> None:
        """It has that name: spares the search."""
        self._names.setdefault(ino, name)

    async def find_names(self, inos: Iterable[int]) -> None:
        """One name of each of these, and of all directories above. A directory is looked through
        once, or once more if it holds some of these and, further up, another that leads to them."""
        todo, done, lost = set(inos), {0, ROOT_INO}, set[int]()
        while todo := todo - done:
            done |= todo
            above, by_parent = set[int](), dict[int, set[int]]()
            for ino in todo:
                row = self.row(ino)
                if ino in self._names:
                    above.add(self._names[ino][0])
                elif row is not None and row.parent:
                    by_parent.setdefault(within(row.parent), set()).add(ino)
                elif row is not None:
                    lost.add(ino)
            for parent, children in by_parent.items():
                lost |= await self._look_through(parent, children)
                above.add(parent)
            todo = above
        if lost:
            await self._look_everywhere(lost)

    async def _look_through(self, directory: int, wanted: set[int]) -> set[int]:
        """Names in it of these inodes; returns those that have none there."""
        left = set(wanted)
        for at, (_, name, ino) in enumerate(self.entries(directory)):
            if ino in left:
                self._names[ino] = (directory, name)
                left.discard(ino)
                if not left:
                    break
            if at % ENTRIES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return left

    async def _look_everywhere(self, wanted: set[int]) -> None:
        """The exception of promise 2."""
        left, todo = set(wanted), [ROOT_INO]
        while todo and left:
            directory = todo.pop()
            for _, name, ino in self.entries(directory):
                row = self.meta.inode(self.number(ino))
                if ino in left:
                    left.discard(ino)
                    self._names[ino] = (directory, name)
                if row is not None and stat.S_ISDIR(row.mode):
                    self._names.setdefault(ino, (directory, name))
                    todo.append(ino)
            await trio.lowlevel.checkpoint()

    def path(self, name: Name) -> bytes:
        """Of a name whose directory was looked for."""
        directory, last = name
        parts = [last]
        while directory not in (0, ROOT_INO):
            directory, part = self._names[directory]
            parts.append(part)
        return b"/" + b"/".join(reversed(parts))

    def name(self, ino: int) -> Name:
        return self._names[ino]


class _Told(msgspec.Struct, frozen=True):
    """A change while its details are not looked for yet; `path` is what all are sorted by."""

    path: bytes
    what: str
    ino: int
    old_path: bytes | None = None
    link: bool = False
    details: bool = False


class _Difference:
    """Of two ends of one store."""

    def __init__(self, store: Store, old: Snapshot, new: Snapshot | None) -> None:
        self.meta = store.meta
        self.cell_bytes = store.cell_bytes
        self.old, self.new = _End(store, old), _End(store, new)
        earlier = old if new is None or old.epoch <= new.epoch else new
        self._next_ino = earlier.next_ino
        self._span = sorted((self.old.epoch, self.new.epoch))
        self._lost: dict[int, list[Name]] = {}  # by inode: names that only the old end has
        self._gained: dict[int, list[Name]] = {}  # and those that only the new one has

    def _check(self) -> None:
        self.old.check()
        self.new.check()

    async def changes(self) -> AsyncGenerator[Change, None]:
        """By path."""
        since, until = self._span
        touched = {*await self.old.find_hidden(), *await self.new.find_hidden()}
        touched.update(await self.meta.touched(since, self._next_ino, until))
        inos = sorted(touched)
        for at, ino in enumerate(inos):
            await self._compare_names(ino)
            if at % INODES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        self._settle_names()
        told = await self._told(sorted({*inos, *self._lost, *self._gained}))
        for at, each in enumerate(told):
            change = self._change(each)
            self._check()
            yield change
            if at % INODES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    # -- names ------------------------------------------------------------------------------------

    async def _compare_names(self, directory: int) -> None:
        """Both ends list a directory by position, so what is the same is seen side by side."""
        rows = self.old.row(directory), self.new.row(directory)
        if not any(row is not None and stat.S_ISDIR(row.mode) for row in rows):
            return
        sides = [
            self.old.entries(directory) if rows[0] is not None else iter(()),
            self.new.entries(directory) if rows[1] is not None else iter(()),
        ]
        heads = [next(side, None) for side in sides]
        for at in itertools.count(1):
            if not any(heads):
                return
            if at % ENTRIES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            old, new = heads
            if old == new:
                heads = [next(side, None) for side in sides]
                continue
            if old is not None and (new is None or old[0] <= new[0]):
                self._lost.setdefault(old[2], []).append((directory, old[1]))
                heads[0] = next(sides[0], None)
            else:
                assert new is not None
                self._gained.setdefault(new[2], []).append((directory, new[1]))
                heads[1] = next(sides[1], None)

    def _settle_names(self) -> None:
        """A name that has only another position is the same; the others are ones to be found by."""
        for ino in self._lost.keys() & self._gained.keys():
            both = set(self._lost[ino]) & set(self._gained[ino])
            self._lost[ino] = [name for name in self._lost[ino] if name not in both]
            self._gained[ino] = [name for name in self._gained[ino] if name not in both]
        for end, names in ((self.old, self._lost), (self.new, self._gained)):
            for ino, found in names.items():
                found.sort()
                if found:
                    end.note_name(ino, found[0])

    # -- what is told -----------------------------------------------------------------------------

    async def _told(self, inos: list[int]) -> list[_Told]:
        """All changes, sorted."""
        modified = []
        for at, ino in enumerate(inos):
            if self._is_modified(ino):
                modified.append(ino)
            if at % INODES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        self._check()
        await self.old.find_names({name[0] for names in self._lost.values() for name in names})
        above = {name[0] for names in self._gained.values() for name in names}
        await self.new.find_names(above.union(modified))
        self._check()
        details, told = set(modified), list[_Told]()
        for ino in inos:
            told += self._of_inode(ino, ino in details)
        told.sort(key=lambda each: (each.path, each.what))
        return told

    def _of_inode(self, ino: int, modified: bool) -> Iterator[_Told]:
        """Promise 1, for one inode."""
        lost = [self.old.path(name) for name in self._lost.get(ino, ())]
        gained = [self.new.path(name) for name in self._gained.get(ino, ())]
        there = self.old.row(ino) is not None, self.new.row(ino) is not None
        link = all(there)
        pairs = list(zip(lost, gained, strict=False)) if link else []
        for old_path, path in pairs:
            yield _Told(path, "renamed", ino, old_path, details=modified)
            modified = False
        for path in lost[len(pairs) :]:
            yield _Told(path, "removed", ino, link=link)
        for path in gained[len(pairs) :]:
            yield _Told(path, "created", ino, link=link)
        if modified:
            yield _Told(self.new.path(self.new.name(ino)), "modified", ino, details=True)

    def _change(self, told: _Told) -> Change:
        row = (self.old if told.what == "removed" else self.new).row(told.ino)
        if row is None:
            self._check()
        assert row is not None
        mode = row.mode
        change = Change(
            told.what,
            told.path,
            told.ino,
            _KINDS[stat.S_IFMT(mode)],
            told.old_path,
            told.link,
            row.size if stat.S_ISREG(mode) else 0,
        )
        if not told.details:
            return change
        return msgspec.structs.replace(
            change,
            attributes=self._attributes(told.ino),
            xattrs=self._xattrs(told.ino),
            ranges=tuple(self._ranges(told.ino)),
        )

    # -- details ----------------------------------------------------------------------------------

    def _is_modified(self, ino: int) -> bool:
        """It is at both ends, and not the same, whatever its names."""
        if self.old.row(ino) is None or self.new.row(ino) is None:
            return False
        if self._attributes(ino) or self._xattrs(ino):
            return True
        return next(self._ranges(ino), None) is not None

    def _attributes(self, ino: int) -> tuple[str, ...]:
        old, new = self.old.row(ino), self.new.row(ino)
        differs = (name for name in _COMPARED if getattr(old, name) != getattr(new, name))
        return tuple(name.removesuffix("_ns") for name in differs)

    def _xattrs(self, ino: int) -> dict[bytes, str]:
        ends = self.old.row(ino), self.new.row(ino)
        if not any(row is not None and row.xattrs for row in ends):
            return {}
        old, new = self.old.xattrs(ino), self.new.xattrs(ino)
        told = dict.fromkeys(new.keys() - old.keys(), "created")
        told |= dict.fromkeys(old.keys() - new.keys(), "removed")
        told |= {name: "modified" for name in old.keys() & new.keys() if old[name] != new[name]}
        return dict(sorted(told.items()))

    def _ranges(self, ino: int) -> Iterator[Range]:
        row = self.new.row(ino)
        if row is None or not stat.S_ISREG(row.mode):
            return
        first = end = 0
        for start, stop in self._pages(ino, -(-row.size // self.cell_bytes)):
            if start == end:
                end = stop
                continue
            if first < end:
                yield self._range(first, end, row.size)
            first, end = start, stop
        if first < end:
            yield self._range(first, end, row.size)

    def _range(self, first: int, end: int, size: int) -> Range:
        offset = first * self.cell_bytes
        return Range(offset, min(size, end * self.cell_bytes) - offset)

    def _pages(self, ino: int, pages: int) -> Iterator[tuple[int, int]]:
        """Runs of pages (first, end) that lie elsewhere, ascending, of a file of so many pages."""
        for number in self.meta.leaves_between(ino, *self._span):
            start = number * LEAF_PAGES
            if start >= pages:
                return
            differs = _differing(self.old.leaf(ino, number), self.new.leaf(ino, number))
            differs[pages - start :] = False
            edges = np.flatnonzero(np.diff(differs, prepend=False, append=False)).tolist()
            for first, end in zip(edges[::2], edges[1::2], strict=True):
                yield start + first, start + end


def _differing(old: Leaf | None, new: Leaf | None) -> Bools:
    """Which of the pages of a leaf lie elsewhere."""
    addresses = []
    for leaf in (old, new):
        whole = np.zeros(LEAF_PAGES, np.uint64)
        if leaf is not None and leaf.addresses is not None:
            whole[: len(leaf.addresses)] = leaf.addresses
        addresses.append(whole)
    differs: Bools = addresses[0] != addresses[1]
    if (old.inline if old is not None else None) != (new.inline if new is not None else None):
        differs[0] = True
    return differs
