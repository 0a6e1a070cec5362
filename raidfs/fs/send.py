"""Sending a snapshot: from versions in the metadata, and cells, to the bytes of stream.py.

What changed between two snapshots is found by versions alone (store/touched.py). Of a file both
leaves are compared address by address: cells are never changed in place, so the same address means
the same content (and where the cleaner moves a cell, it moves it for all versions).

 1. The bytes depend on nothing but the snapshot, the base, and the name and note that the snapshot
    had when the sending began (stream.py, promise 1).
 2. Holes are not sent, nor what both snapshots have in common. Files without a name aren't either,
    nor what is hidden for a move to or from another volume (store/hidden.py).
 3. Memory is bounded by one record, and a number for each inode that changed.
 4. A snapshot that is deleted meanwhile ends the sending; no record is sent that it has spoilt.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt
import trio

from .. import native
from ..errors import NoSuchSnapshot, UsageError
from ..pages import LEAF_PAGES
from ..store.hidden import Hidden, hidden
from ..store.past import as_view, within
from ..store.spool import SPOOL_INO
from .stream import (
    EXTENTS_MAX,
    GONE_MAX,
    NAMES_MAX,
    PAGE_BYTES,
    Encoder,
    Extent,
    Gone,
    Header,
    Inode,
    Names,
    NameTo,
    Token,
    Xattr,
)

if TYPE_CHECKING:
    from ..store.inodes import InodeRow
    from ..store.snapshot_rows import Snapshot
    from ..store.store import Store
    from ..store.tables import Leaf

Bools = npt.NDArray[np.bool_]
Write = Callable[[bytes], Awaitable[None]]
WRITE_BYTES = 256 << 10
INODES_PER_TURN = 64  # then others get the event loop


class Sent(msgspec.Struct, frozen=True):
    """What one sending did. `bytes`: that were written now, from `resumed_at` on."""

    snapshot: str
    base: str | None
    bytes: int
    resumed_at: int
    records: int
    pages: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """Pages of an extent that are to be read, by the inode's view number."""

    view: int
    first: int
    count: int


def choose(
    store: Store, name: str, base: str | None, page_bytes: int | None, token: Token | None
) -> Sending:
    """What is to be sent, by names or by the token of a receiver. NoSuchSnapshot, UsageError."""
    if token is not None:
        return _resumed(store, token, name, base)
    snapshot = store.snapshots.find(name)
    older = store.snapshots.find(base) if base is not None else None
    if older is not None and older.epoch > snapshot.epoch:
        raise UsageError(f"{base!r} is newer than {name!r}; a base is older")
    if older is not None and older.guid == snapshot.guid:
        raise UsageError(f"{name!r} can't be its own base")
    page_bytes = page_bytes or store.cell_bytes
    if page_bytes not in PAGE_BYTES:
        raise UsageError(f"pages can be 4, 8, 16, 32 or 64 KiB, not {page_bytes} bytes")
    header = Header(
        snapshot.guid,
        older.guid if older is not None else None,
        snapshot.name,
        snapshot.note,
        snapshot.created_ns,
        page_bytes,
        snapshot.next_ino,
        store.assembly.label.volume_name,
    )
    return Sending(store, snapshot, older, header)


def _resumed(store: Store, token: Token, name: str, base: str | None) -> Sending:
    """As the token says; names, if given, must mean the same."""
    by_guid = {row.guid: row for row in store.snapshots.all()}
    snapshot = by_guid.get(token.header.guid)
    older = by_guid.get(token.header.base) if token.header.base is not None else None
    if snapshot is None or (older is None and token.header.base is not None):
        missing = token.header.name if snapshot is None else "its base"
        raise NoSuchSnapshot(
            f"the token is for snapshot {token.header.name!r}, and this volume has not got"
            f" {missing!r} (any more); send another one from the start"
        )
    if name and snapshot.name != name:
        raise UsageError(f"the token is for snapshot {snapshot.name!r}, not {name!r}")
    if base is not None and (older is None or older.name != base):
        raise UsageError(f"the token is for another base than {base!r}; leave the base out")
    return Sending(store, snapshot, older, token.header, token)


class Sending:
    """One run. `choose` makes it."""

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        base: Snapshot | None,
        header: Header,
        token: Token | None = None,
    ) -> None:
        self.store = store
        self.meta = store.meta
        self.snapshot = snapshot
        self.base = base
        self.header = header
        self._token = token
        self._encoder = Encoder(header, token)
        self._write: Write
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._sent = 0
        self._hidden: dict[int, Hidden] = {}  # by the snapshot's id
        self._gone: list[int] = []
        self._extents: list[Extent] = []
        self._pieces: list[_Piece] = []  # of the extents with content
        self._pages = 0  # of these
        # Leaves are compared by units: pages of the stream, or cells where those are larger.
        self._unit_bytes = max(header.page_bytes, store.cell_bytes)
        self._unit_cells = self._unit_bytes // store.cell_bytes
        self._unit_pages = self._unit_bytes // header.page_bytes

    async def run(self, write: Write) -> Sent:
        """Send all of it. What `write` raises, MemberError, Unrecoverable; NoSuchSnapshot if the
        snapshot is deleted meanwhile."""
        self._write = write
        await self._put(self._encoder.begin())
        for row in (self.snapshot, self.base):
            if row is not None:
                self._hidden[row.id] = await hidden(self.meta, row.id)
        for number, ino in enumerate(await self._inos()):
            await self._inode(ino)
            if number % INODES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        await self._flush_gone()
        await self._flush_extents()
        await self._put(self._encoder.end())
        await self._flush()
        resumed_at = self._token.offset if self._token is not None else 0
        base = self.base.name if self.base is not None else None
        counts = (self._encoder.records, self._encoder.pages)
        return Sent(self.snapshot.name, base, self._sent, resumed_at, *counts)

    async def _put(self, data: bytes) -> None:
        """Promise 4: what was made from versions that are no more is not sent."""
        self._still()
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= WRITE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        data, self._out, self._out_bytes = b"".join(self._out), [], 0
        if data:
            await self._write(data)
            self._sent += len(data)

    def _still(self) -> None:
        for row in (self.snapshot, self.base):
            if row is not None and self.meta.views.get(row.id) != row.epoch:
                raise NoSuchSnapshot(f"snapshot {row.name!r} was deleted while it was being sent")

    # -- which inodes -----------------------------------------------------------------------------

    async def _inos(self) -> Iterable[int]:
        """Ascending: all that the snapshot has, or may differ from those of the base."""
        if self.base is not None:
            base, epoch = self.base, self.snapshot.epoch
            inos = {*await self.meta.touched(base.epoch, base.next_ino, epoch)}
            inos.update(*(end.inos for end in self._hidden.values()))
            return sorted(inos)
        return self._all()

    def _all(self) -> Iterator[int]:
        epoch = self.snapshot.epoch
        for row, version in self.meta.all_inodes():
            if version.born <= epoch < version.died:
                yield row.ino

    def _row(self, snapshot: Snapshot | None, ino: int) -> InodeRow | None:
        """The inode as a snapshot has it, if it has a name there."""
        if snapshot is None or ino == SPOOL_INO:
            return None
        row = self._hidden[snapshot.id].seen(self.meta.inode(as_view(snapshot.id, ino)))
        return row if row is not None and row.nlink > 0 else None

    # -- one inode --------------------------------------------------------------------------------

    async def _inode(self, ino: int) -> None:
        new, old = self._row(self.snapshot, ino), self._row(self.base, ino)
        if new is None:
            if old is not None:
                self._gone.append(ino)
                if len(self._gone) == GONE_MAX:
                    await self._flush_gone()
            return
        if old is not None and not _same_file(old, new):
            old = None
        await self._flush_gone()
        inline = self._inline(new)
        await self._put(self._encoder.record(_inode_record(new, old is None, inline)))
        await self._xattrs(new, old)
        if stat.S_ISDIR(new.mode):
            await self._names(new, old)
        elif stat.S_ISREG(new.mode):
            await self._content(new, old, inline is not None)

    async def _flush_gone(self) -> None:
        if self._gone:
            await self._put(self._encoder.record(Gone(self._gone)))
            self._gone = []

    async def _xattrs(self, new: InodeRow, old: InodeRow | None) -> None:
        names = set(self.meta.xattr_names(new.ino)) if new.xattrs else set()
        before = set(self.meta.xattr_names(old.ino)) if old is not None and old.xattrs else set()
        for name in sorted(names | before):
            value = self.meta.xattr(new.ino, name)
            if old is None or name not in before or self.meta.xattr(old.ino, name) != value:
                await self._put(self._encoder.record(Xattr(name, value)))

    async def _names(self, new: InodeRow, old: InodeRow | None) -> None:
        """Both listings are in the order of positions, which a name keeps."""
        removed: list[bytes] = []
        added: list[NameTo] = []
        before = self._entries(old.ino) if old is not None else iter(())
        there = next(before, None)
        for at, (position, entry) in enumerate(self._entries(new.ino)):
            if at % NAMES_MAX == 0:
                await trio.lowlevel.checkpoint()
            while there is not None and there[0] < position:
                removed.append(there[1].name)
                there = next(before, None)
            if there is not None and there == (position, entry):
                there = next(before, None)
                continue
            if there is not None and there[0] == position:
                removed.append(there[1].name)
                there = next(before, None)
            added.append(entry)
            if max(len(removed), len(added)) >= NAMES_MAX:
                removed, added = await self._flush_names(removed, added)
        while there is not None:
            removed.append(there[1].name)
            there = next(before, None)
            if len(removed) >= NAMES_MAX:
                removed, added = await self._flush_names(removed, added)
        await self._flush_names(removed, added)

    async def _flush_names(
        self, removed: list[bytes], added: list[NameTo]
    ) -> tuple[list[bytes], list[NameTo]]:
        while removed or added:  # of a name that is another's now, first that it went
            last = len(removed) <= NAMES_MAX
            record = Names(removed[:NAMES_MAX], added[:NAMES_MAX] if last else [])
            await self._put(self._encoder.record(record))
            removed, added = removed[NAMES_MAX:], added[NAMES_MAX:] if last else added
        return [], []

    def _entries(self, view: int) -> Iterator[tuple[int, NameTo]]:
        after = -1
        while found := self.meta.entries(view, after, NAMES_MAX):
            for entry in found:
                yield entry.position, NameTo(entry.name, within(entry.ino), entry.kind)
            after = found[-1].position

    # -- content ----------------------------------------------------------------------------------

    def _inline(self, row: InodeRow) -> bytes | None:
        """The beginning of page 0 where that is all there is of it."""
        if not stat.S_ISREG(row.mode) or not row.size:
            return None
        leaf = self.meta.leaf(row.ino, 0)
        if leaf is None or leaf.inline is None:
            return None
        if leaf.addresses is not None and leaf.addresses[: self._unit_cells].any():
            return None  # it shares its page of the stream with cells
        return bytes(leaf.inline[: row.size])

    async def _content(self, new: InodeRow, old: InodeRow | None, inline: bool) -> None:
        """Extents of what changed, of a whole file of what isn't a hole."""
        units = -(-new.size // self._unit_bytes)
        for number, leaf, base in self._leaves(new, old):
            data = self._data(leaf)
            changed = data if old is None else self._changed(leaf, base)
            if inline and number == 0:
                changed[0] = False
            first = number * len(data)
            await self._runs(new, first, changed[: max(0, units - first)], data)
            await trio.lowlevel.checkpoint()

    def _leaves(
        self, new: InodeRow, old: InodeRow | None
    ) -> Iterator[tuple[int, Leaf | None, Leaf | None]]:
        """(number, the leaf, what it was in the base) of leaves that may differ."""
        if old is None or self.base is None:
            for number, leaf in self.meta.leaf_range(new.ino, 0, 1 << 62):
                yield number, leaf, None
            return
        epochs = self.base.epoch, self.snapshot.epoch
        for number in self.meta.leaves_between(within(new.ino), *epochs):
            yield number, self.meta.leaf(new.ino, number), self.meta.leaf(old.ino, number)

    def _data(self, leaf: Leaf | None) -> Bools:
        """Units of a leaf that have content."""
        found = np.zeros(LEAF_PAGES, np.bool_)
        if leaf is not None and leaf.addresses is not None:
            found[: len(leaf.addresses)] = leaf.addresses != 0
        if leaf is not None and leaf.inline is not None:
            found[0] = True
        return np.asarray(found.reshape(-1, self._unit_cells).any(axis=1), dtype=np.bool_)

    def _changed(self, leaf: Leaf | None, base: Leaf | None) -> Bools:
        """Units of a leaf that lie elsewhere than before."""
        both = np.zeros((2, LEAF_PAGES), np.uint64)
        for row, each in zip(both, (leaf, base), strict=True):
            if each is not None and each.addresses is not None:
                row[: len(each.addresses)] = each.addresses
        found = both[0] != both[1]
        inlines = [each.inline if each is not None else None for each in (leaf, base)]
        found[0] |= inlines[0] != inlines[1]
        return np.asarray(found.reshape(-1, self._unit_cells).any(axis=1), dtype=np.bool_)

    async def _runs(self, row: InodeRow, first: int, changed: Bools, data: Bools) -> None:
        """Units of one leaf, from `first` on, as extents of data and of holes."""
        kinds = np.where(changed, np.where(data[: len(changed)], 1, 2), 0)
        borders = np.flatnonzero(np.diff(kinds)) + 1
        starts = [0, *borders.tolist()] if len(kinds) else []
        ends = [*borders.tolist(), len(kinds)]
        last = -(-row.size // self.header.page_bytes)
        for start, end in zip(starts, ends, strict=False):
            if kinds[start]:
                page = (first + start) * self._unit_pages
                until = min((first + end) * self._unit_pages, last)
                await self._extent(row.ino, page, until - page, hole=bool(kinds[start] == 2))

    async def _extent(self, view: int, first: int, count: int, *, hole: bool) -> None:
        """Goes on with the last one where it can, within the bounds of a record."""
        while count:
            if len(self._extents) >= EXTENTS_MAX - 1 or self._pages >= self.header.pages_max:
                await self._flush_extents()
            part = count if hole else min(count, self.header.pages_max - self._pages)
            extent = Extent(within(view), first, part, hole)
            if self._extents and _continues(self._extents[-1], extent):
                extent = msgspec.structs.replace(
                    extent,
                    first=self._extents[-1].first,
                    count=self._extents[-1].count + part,
                )
                self._extents.pop()
            self._extents.append(extent)
            if not hole:
                self._pieces.append(_Piece(view, first, part))
                self._pages += part
            first, count = first + part, count - part

    async def _flush_extents(self) -> None:
        if not self._extents:
            return
        content: memoryview | bytes = b""
        if self._pages and self._encoder.wants(self._extents):
            content = await self._read()
        await self._put(self._encoder.extents(self._extents, content))
        self._extents, self._pieces, self._pages = [], [], 0

    async def _read(self) -> memoryview:
        """The content of the pieces, one after the other."""
        nbytes, at = self.header.page_bytes, 0
        content = native.aligned((self._pages, nbytes))
        whole = content.reshape(-1)
        for piece in self._pieces:
            cell_bytes = self.store.cell_bytes
            start, size = piece.first * nbytes, piece.count * nbytes
            first = start // cell_bytes
            cells = native.aligned((-(-(start + size) // cell_bytes) - first, cell_bytes))
            await self._cells(piece.view, first, cells)
            skipped = start - first * cell_bytes
            whole[at : at + size] = cells.reshape(-1)[skipped : skipped + size]
            at += size
        return whole.data

    async def _cells(self, view: int, first: int, content: npt.NDArray[np.uint8]) -> None:
        """Pages of the volume, as many as `content` takes."""
        done = False
        while not done:  # again where a zone was given up while a bad cell of it was rebuilt
            addresses = np.zeros(len(content), np.uint64)
            content[:] = 0
            for number in range(first // LEAF_PAGES, (first + len(content) - 1) // LEAF_PAGES + 1):
                leaf = self.meta.leaf(view, number)
                self._of_leaf(leaf, number * LEAF_PAGES - first, addresses, content)
            where = np.flatnonzero(addresses).astype(np.uint64)
            done = await self.store.reader.read_cells(addresses[addresses != 0], where, content)
            self._still()

    @staticmethod
    def _of_leaf(
        leaf: Leaf | None,
        shift: int,
        addresses: npt.NDArray[np.uint64],
        content: npt.NDArray[np.uint8],
    ) -> None:
        """Where page p of the leaf is entry p + shift: its address, or its inline content."""
        if leaf is not None and leaf.addresses is not None:
            start, end = max(0, shift), min(len(addresses), shift + len(leaf.addresses))
            addresses[start:end] = leaf.addresses[start - shift : end - shift]
        if leaf is not None and leaf.inline is not None and shift == 0:
            content[0, : len(leaf.inline)] = np.frombuffer(leaf.inline, np.uint8)


def _same_file(old: InodeRow, new: InodeRow) -> bool:
    """Not one that got the number after a crash had taken it back."""
    kinds = stat.S_IFMT(old.mode) == stat.S_IFMT(new.mode)
    return kinds and (old.generation, old.btime_ns) == (new.generation, new.btime_ns)


def _continues(last: Extent, extent: Extent) -> bool:
    ends = (last.ino, last.first + last.count, last.hole)
    return ends == (extent.ino, extent.first, extent.hole)


def _inode_record(row: InodeRow, whole: bool, inline: bytes | None) -> Inode:
    return Inode(
        within(row.ino),
        whole,
        row.generation,
        row.mode,
        row.uid,
        row.gid,
        row.rdev,
        row.size,
        row.nlink,
        within(row.parent),
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
        row.btime_ns,
        row.target,
        inline,
    )
