"""Where files are that come from another volume, or have gone there: hidden, in the present.

    MOVES_INO / NUMBER / item      of a move, by its number in hex

At the target it is built from what the source has listed, and then gets its name by a rename; at
the source it is put there by a rename, and removed when the target has it. Directories and files
in it are like others, but no name leads there from the root (store/hidden.py).

 1. `hide` and `link` are plain functions: a cut has all of one, or nothing.
 2. What is hidden under a number that nobody knows any more is removed by `sweep`.
 3. A stamp is equal only for what is the same: names, inodes, and when they were changed last.
 4. What was hidden by `hide` can't be opened or changed by who had its name before: that is ESTALE,
    and so the kernel, which may have the name cached, looks for it anew (watch.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Collection, Generator
from typing import TYPE_CHECKING

import msgspec
import trio

from ..errors import FsError, RaidfsError, UsageError
from ..group.move import CONTENT_BYTES, ContentTold, Item
from ..store.hidden import MOVES_INO
from ..store.meta import ROOT_INO, InodeRow
from ..store.past import FIRST_VIEW, as_view, within
from .attributes import Caller, Changes, check_name
from .views import is_snapshots
from .watch import Watch

if TYPE_CHECKING:
    from ..store.meta import Dirent
    from .cached import Inode
    from .volume import Volume

ITEM = b"item"
ITEMS_MAX = 50_000  # of one move: both sides have the list in memory
ITEMS_PER_TURN = 200  # looked at, then others get the event loop
ENTRIES_AT_ONCE = 1000
DURABLE_BYTES = 16 << 20  # of what is fetched, at most so much is fetched again after a crash
_ROOT = Caller(0, 0)
Fetch = Callable[[int, int], Awaitable[ContentTold]]


class Stale(RaidfsError):
    """What the source has listed isn't what it has any more."""


class Tree(msgspec.Struct, frozen=True):
    """What is to be moved. `size_bytes`: of all content. `inos`: those that have no name outside of
    it."""

    items: list[Item]
    stamp: bytes
    size_bytes: int
    inos: set[int]


class Moves:
    """Of one volume. All methods belong to the event loop's thread."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.store = volume.store
        self.meta = volume.store.meta
        self.inodes = volume.inodes
        self.names = volume.names

    # -- looking ----------------------------------------------------------------------------------

    def find(self, place: Collection[bytes]) -> int:
        """The directory of that path. FsError."""
        ino = ROOT_INO
        for name in place:
            ino = self.names.lookup(ino, name).ino
        if ino >= FIRST_VIEW:
            raise UsageError("snapshots can't be changed")
        return self.names.directory(ino).ino

    def check_vacant(self, parent: int, name: bytes) -> None:
        """UsageError, FsError: nothing can get that name there."""
        check_name(name)
        directory = self.names.directory(parent)
        if name in (b".", b"..") or is_snapshots(parent, name):
            raise UsageError(f"{os.fsdecode(name)!r} can't be the name of a file", errno.EINVAL)
        if directory.row.nlink == 0:
            raise UsageError("the directory that it was to go to was removed", errno.ENOENT)
        if self.meta.lookup(parent, name) is not None:
            raise UsageError(f"there is a {os.fsdecode(name)!r} already", errno.EEXIST)

    def place(self, move: bytes) -> int | None:
        """The directory of that move."""
        entry = self.meta.lookup(MOVES_INO, move.hex().encode())
        return entry.ino if entry else None

    def item(self, move: bytes) -> int | None:
        """What is hidden for it."""
        place = self.place(move)
        entry = self.meta.lookup(place, ITEM) if place is not None else None
        return entry.ino if entry else None

    def item_then(self, snapshot: int, move: bytes) -> tuple[int, int] | None:
        """(directory of the move, item) in a snapshot; numbers are those of the present."""
        at = as_view(snapshot, MOVES_INO)
        found = []
        for name in (move.hex().encode(), ITEM):
            entry = self.meta.lookup(at, name)
            if entry is None:
                return None
            at = entry.ino
            found.append(within(at))
        return found[0], found[1]

    def walk(self, parent: int, name: bytes, ino: int) -> Tree:
        """All of it, as it is now. Stale: it isn't there. UsageError: it is too much."""
        steps = self._walk(parent, name, ino, None)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                tree: Tree = end.value
                return tree

    async def look(self, parent: int, name: bytes, ino: int, watch: Watch | None = None) -> Tree:
        """As `walk`, piece by piece; it is as told as long as the watch is whole."""
        steps = self._walk(parent, name, ino, watch)
        while True:
            try:
                for _ in range(ITEMS_PER_TURN):
                    next(steps)
            except StopIteration as end:
                tree: Tree = end.value
                return tree
            except FsError as error:
                if error.errno != errno.ESTALE:
                    raise
                raise Stale("it was changed while it was looked at") from None
            await trio.lowlevel.checkpoint()

    def _walk(
        self, parent: int, name: bytes, ino: int, watch: Watch | None
    ) -> Generator[None, None, Tree]:
        entry = self.meta.lookup(parent, name)
        if entry is None or entry.ino != ino or ino >= FIRST_VIEW:
            raise Stale(f"{os.fsdecode(name)!r} is not there any more", errno.ENOENT)
        items: list[Item] = []
        stamp = hashlib.blake2b(digest_size=16)
        first: dict[int, int] = {}
        links: dict[int, int] = {}  # names of each that are not in it
        todo = [(0, name, ino)]
        for number, (above, called, each) in enumerate(todo):
            if watch is not None:
                watch.inos.add(each)
            inode = self.inodes.get(each)
            links[each] = links.get(each, 0 if inode.is_directory else inode.row.nlink) - 1
            item = self._item(above, called, inode, first.get(each, -1))
            items.append(item)
            first.setdefault(each, number)
            stamp.update(msgspec.msgpack.encode((above, called, *self._stamp(inode))))
            if inode.is_directory:
                todo += [(number, entry.name, entry.ino) for entry in self._entries(each)]
            if len(todo) > ITEMS_MAX:
                raise UsageError(
                    f"{os.fsdecode(name)!r} holds more than {ITEMS_MAX} files, which is the most"
                    " that moves in one piece: move its parts",
                    errno.E2BIG,
                )
            yield
        size = sum(each.size for each in items if stat.S_ISREG(each.mode) and each.same < 0)
        inos = {each for each, left in links.items() if left <= 0}
        return Tree(items, stamp.digest(), size, inos)

    def _entries(self, ino: int) -> list[Dirent]:
        found: list[Dirent] = []
        while more := self.meta.entries(ino, found[-1].position if found else -1, ENTRIES_AT_ONCE):
            found += more
            if len(found) > ITEMS_MAX:
                break
        return found

    def _item(self, above: int, name: bytes, inode: Inode, same: int) -> Item:
        row = inode.row
        size, mtime_ns, _, atime_ns = self.inodes.size_and_times(inode)
        xattrs = []
        for each in self.meta.xattr_names(row.ino) if row.xattrs and same < 0 else ():
            xattrs.append((each, self.meta.xattr(row.ino, each) or b""))
        return Item(
            above, name, row.ino, row.mode, row.uid, row.gid, row.rdev,
            size if inode.is_file else 0, atime_ns, mtime_ns, row.target, xattrs, same,
        )  # fmt: skip

    def _stamp(self, inode: Inode) -> tuple[object, ...]:
        row = inode.row
        size, mtime_ns, ctime_ns, _ = self.inodes.size_and_times(inode)
        return row.ino, row.generation, row.mode, row.uid, row.gid, size, mtime_ns, ctime_ns

    def is_open(self, tree: Tree) -> bool:
        """Somebody has one of its files open."""
        return any(self.inodes.is_open(each.ino) for each in tree.items)

    # -- hiding, and giving a name ----------------------------------------------------------------

    def make_place(self, move: bytes) -> int:
        """The directory of that move, made where there is none."""
        found = self.place(move)
        if found is not None:
            return found
        if self.meta.inode(MOVES_INO) is None:
            self._make_root()
        return self.names.make(MOVES_INO, move.hex().encode(), stat.S_IFDIR | 0o700, _ROOT).ino

    def _make_root(self) -> None:
        now_ns = self.volume.clock()
        times = (now_ns, now_ns, now_ns, now_ns)
        mode, epoch = stat.S_IFDIR | 0o700, self.store.epoch
        row = InodeRow(
            MOVES_INO, 1, mode, 0, 0, 0, 0, 2, ROOT_INO, *times, None, 0, 0, epoch
        )  # fmt: skip
        with self.inodes.change() as epoch:
            self.meta.insert_inode(epoch, row)
        self.inodes.add(row)

    def hide(self, move: bytes, parent: int, name: bytes, tree: Tree) -> None:
        """What has that name is nowhere to be seen from here on. `tree`: as it is now."""
        place = self.make_place(move)
        self.names.rename(parent, name, place, ITEM)
        self.inodes.watches.given[move] = tree.inos
        self.volume.audience.outdated([parent], [(parent, name)])

    def hide_again(self, move: bytes) -> None:
        """After a mount, what is hidden already: promise 4."""
        place, item = self.place(move), self.item(move)
        if place is not None and item is not None:
            self.inodes.watches.given[move] = self.walk(place, ITEM, item).inos

    def link(self, move: bytes, parent: int, name: bytes) -> bytes:
        """What is hidden for the move gets its name, or, where that was taken meanwhile or its
        directory removed, another or in the root. Returns it."""
        place = self.place(move)
        assert place is not None
        try:
            self.names.directory(parent)
            self.check_vacant(parent, name)
        except FsError:
            parent = ROOT_INO
        except UsageError as error:
            parent = ROOT_INO if error.errno == errno.ENOENT else parent
        if self.meta.lookup(parent, name) is not None:
            name = other_name(name, move)
        self.names.rename(place, ITEM, parent, name)
        self.inodes.watches.given.pop(move, None)
        self.volume.audience.outdated([parent], [(parent, name)])
        return name

    def name_then(self, snapshot: int, move: bytes, parent: int, name: bytes) -> tuple[int, bytes]:
        """Where it belongs in a snapshot."""
        row = self.meta.inode(as_view(snapshot, parent))
        if row is None or row.nlink == 0 or not stat.S_ISDIR(row.mode):
            parent = ROOT_INO
        if self.meta.lookup(as_view(snapshot, parent), name) is not None:
            name = other_name(name, move)
        return parent, name

    # -- removing ---------------------------------------------------------------------------------

    async def remove(self, move: bytes) -> None:
        """What is hidden for the move."""
        place = self.place(move)
        if place is not None:
            await self._remove_within(place)
            await self._remove(MOVES_INO, move.hex().encode(), True)

    async def _remove_within(self, ino: int) -> None:
        while entries := self.meta.entries(ino, -1, 100):
            for entry in entries:
                is_directory = entry.kind == stat.S_IFDIR >> 12
                if is_directory:
                    await self._remove_within(entry.ino)
                await self._remove(ino, entry.name, is_directory)

    async def _remove(self, parent: int, name: bytes, is_directory: bool) -> None:
        async with self.volume.door.passing():
            await self.volume.ready()
            if is_directory:
                self.names.rmdir(parent, name)
            else:
                self.names.unlink(parent, name)

    async def sweep(self, known: Callable[[], Collection[bytes]]) -> None:
        """Promise 2; `known`: the moves that there are, now."""
        for entry in self.meta.entries(MOVES_INO, -1, ENTRIES_AT_ONCE):
            move = bytes.fromhex(entry.name.decode())
            if move not in known():
                await self.remove(move)
        given = self.inodes.watches.given
        for move in given.keys() - set(known()):
            given[move] = {ino for ino in given[move] if self.meta.inode(ino) is not None}
            if not given[move]:
                del given[move]
        async with self.volume.door.passing():
            await self.volume.ready()
            if self.meta.inode(MOVES_INO) is not None and self.meta.is_empty(MOVES_INO):
                self._remove_root()

    def _remove_root(self) -> None:
        root = self.inodes.get(MOVES_INO)
        self.inodes.change_alone(root, freeing=True)
        root.row.nlink = 0
        self.inodes.lost_a_name(root)

    # -- content, at the source -------------------------------------------------------------------

    async def content(self, ino: int, offset: int, nbytes_max: int) -> tuple[bytes, int]:
        """(data, 0), or (b"", how long a hole is). Nothing of both: the file ends there."""
        with self.inodes.held(ino) as inode:
            self.inodes.make_resident(inode)
            size = self.inodes.size_and_times(inode)[0]
            if offset >= size:
                return b"", 0
            data = size
            try:
                data = await self.volume.seek(ino, offset, os.SEEK_DATA)
            except FsError as error:
                if error.errno != errno.ENXIO:
                    raise
            if data - offset >= self.store.cell_bytes:
                return b"", data - offset
            nbytes = min(nbytes_max, CONTENT_BYTES, size - offset)
            return bytes(await self.store.read(ino, offset, nbytes)), 0

    # -- content, at the target -------------------------------------------------------------------

    async def build(self, move: bytes, items: list[Item], fetch: Fetch) -> None:
        """All of it, going on where it was left. FsError, OutOfSpace, Stale, or of `fetch`."""
        async with self.volume.door.passing():
            await self.volume.ready()
            place = self.make_place(move)
        made: list[int] = []
        for number, item in enumerate(items):
            parent, name = (made[item.parent], item.name) if number else (place, ITEM)
            entry = self.meta.lookup(parent, name)
            ino = await self._make(parent, name, item, made) if entry is None else entry.ino
            made.append(ino)
            if stat.S_ISREG(item.mode) and item.same < 0:
                await self._fill(ino, number, item, fetch)
        for number in range(len(items) - 1, -1, -1):
            if items[number].same < 0:
                await self._finish(made[number], items[number])

    async def _make(self, parent: int, name: bytes, item: Item, made: list[int]) -> int:
        async with self.volume.door.passing():
            await self.volume.ready()
            if item.same >= 0:
                return self.names.link(made[item.same], parent, name).ino
            if item.target is not None:
                return self.names.symlink(parent, name, item.target, _ROOT).ino
            kind = stat.S_IFMT(item.mode)
            mode = kind | (0o700 if kind == stat.S_IFDIR else 0o600)
            return self.names.make(parent, name, mode, _ROOT, rdev=item.rdev).ino

    async def _fill(self, ino: int, number: int, item: Item, fetch: Fetch) -> None:
        size = self.inodes.size_and_times(self.inodes.get(ino))[0]
        if size > item.size:
            raise Stale("it has become shorter")
        durable = size
        while size < item.size:
            if size - durable >= DURABLE_BYTES:
                await self.store.commit()
                durable = size
            told = await fetch(number, size)
            async with self.volume.door.passing():
                if told.hole:
                    size = min(size + told.hole, item.size)
                    await self.volume.setattr(ino, Changes(size=size), _ROOT)
                elif told.data:
                    size += await self.volume.write(ino, size, told.data)
                else:
                    raise Stale("it has become shorter")

    async def _finish(self, ino: int, item: Item) -> None:
        """Owner, mode, attributes and times."""
        async with self.volume.door.passing():
            await self.volume.ready()
            inodes, inode = self.inodes, self.inodes.get(ino)
            with inodes.change(inode) as epoch:
                more = self.names.xattrs.write(epoch, inode, dict(item.xattrs))
            row = inode.row
            row.xattrs += more
            row.mode, row.uid, row.gid = item.mode, item.uid, item.gid
            inode.capability = None
            inodes.stamp(inode, item.mtime_ns, self.volume.clock(), item.atime_ns)
            inodes.retell(inode)


def other_name(name: bytes, move: bytes) -> bytes:
    """Where that one is taken."""
    tail = b".moved-" + move.hex()[:8].encode()
    return name[: 255 - len(tail)] + tail
