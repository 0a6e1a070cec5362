"""A stream that has arrived and was verified becomes the present, and a snapshot of it.

The stream is read once more, from the spool, and made into a wholesale change (store/rewrite.py):
rows as the records say, leaves that name the spool's own cells. So content isn't copied. The spool
goes, and the snapshot comes, with the same commit.

 1. Afterwards the present is what the snapshot was where it was sent, or it is what it was before.
 2. Inode numbers are those that were sent.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..pages import LEAF_PAGES
from ..store.meta import InodeRow, Leaf
from ..store.past import FIRST_VIEW
from ..store.rewrite import Rewrite
from ..store.spool import SPOOL_INO
from .arrival import Arrival
from .spool import PIECE_BYTES, Spool
from .stream import Decoder, Extents, Gone, Header, Inode, Names, Record, Xattr

if TYPE_CHECKING:
    from ..store.store import Store

U64 = npt.NDArray[np.uint64]


async def records_of(spool: Spool, decoder: Decoder, until: int) -> AsyncIterator[Record]:
    """Of the first `until` bytes."""
    offset = 0
    while offset < until:
        piece = await spool.read(offset, min(PIECE_BYTES, until - offset))
        if not len(piece):
            return
        offset += len(piece)
        decoder.feed(piece)
        for record in decoder.records():
            yield record


class _Current:
    """The inode whose records are being read."""

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.xattrs: dict[bytes, bytes | None] = {}
        self.removed: list[bytes] = []
        self.added: list[tuple[bytes, int, int]] = []


class _LeafMade:
    """The leaf whose extents are being read."""

    def __init__(self, ino: int, number: int, old: Leaf | None) -> None:
        self.key = (ino, number)
        self.addresses = np.zeros(LEAF_PAGES, np.uint64)
        self.inline = old.inline if old is not None else None
        if old is not None and old.addresses is not None:
            self.addresses[: len(old.addresses)] = old.addresses


class Delivery:
    """One stream into a rewrite. The present is what the stream's base is, but with `replace`: then
    whatever the stream doesn't hold goes."""

    def __init__(
        self, store: Store, spool: Spool, arrival: Arrival, rewrite: Rewrite, *, replace: bool
    ) -> None:
        self.store = store
        self.meta = store.meta
        self.spool = spool
        self.arrival = arrival
        self.rewrite = rewrite
        self._replace = replace
        self._current: _Current | None = None
        self._leaf: _LeafMade | None = None

    async def run(self) -> Header:
        """All but the commit. OutOfSpace, and what reading raises."""
        decoder = Decoder()
        async for record in records_of(self.spool, decoder, self.spool.size):
            await self._record(record)
        await self._close()
        await self._put_leaf()
        if not decoder.ended or decoder.header is None:
            raise FormatError("what was received is damaged by now; receive it again")
        if self._replace:
            await self._remove_others()
        await self.rewrite.remove_inode(SPOOL_INO)
        self.meta.next_ino = max(self.meta.next_ino, decoder.header.next_ino)
        return decoder.header

    async def _record(self, record: Record) -> None:
        body = record.body
        if isinstance(body, Inode):
            await self._close()
            self._current = _Current(body)
        elif isinstance(body, Xattr):
            assert self._current is not None
            self._current.xattrs[body.name] = body.value
        elif isinstance(body, Names):
            assert self._current is not None
            self._current.removed += body.removed
            self._current.added += [(each.name, each.ino, each.kind) for each in body.added]
        elif isinstance(body, Gone):
            await self._close()
            for ino in body.inos:
                await self.rewrite.remove_inode(ino)
                await self.rewrite.pause()
        elif isinstance(body, Extents):
            await self._close()
            await self._extents(body, record.at)
        else:
            await self._close()

    # -- inodes -----------------------------------------------------------------------------------

    async def _close(self) -> None:
        """All but the content of the last inode has been read."""
        current, self._current = self._current, None
        if current is None:
            return
        inode = current.inode
        old = self.meta.inode(inode.ino)
        self.rewrite.put_inode(_row(inode, self.arrival.home(inode), old))
        await self._xattrs(current)
        if stat.S_ISDIR(inode.mode) or (old is not None and stat.S_ISDIR(old.mode)):
            await self._names(current)
        if old is not None:
            await self._shorten(inode)
        if inode.inline is not None:
            leaf = self.meta.leaf(inode.ino, 0)
            addresses = (
                leaf.addresses.copy() if leaf is not None and leaf.addresses is not None else None
            )
            if addresses is not None:
                addresses[0] = 0
            self.rewrite.put_leaf(inode.ino, 0, Leaf(addresses, inode.inline))
        await self.rewrite.pause()

    async def _xattrs(self, current: _Current) -> None:
        inode, values = current.inode, dict[bytes, bytes]()
        if not inode.whole:
            if not current.xattrs:
                return
            for name in self.meta.xattr_names(inode.ino):
                value = self.meta.xattr(inode.ino, name)
                assert value is not None
                values[name] = value
        for name, new in current.xattrs.items():
            if new is None:
                values.pop(name, None)
            else:
                values[name] = new
        self.rewrite.set_xattrs(inode.ino, values)

    async def _names(self, current: _Current) -> None:
        ino = current.inode.ino
        if current.inode.whole:
            await self.rewrite.set_names(ino, current.added)
            return
        for name in current.removed:
            self.rewrite.remove_name(ino, name)
            await self.rewrite.pause()
        for name, target, kind in current.added:
            self.rewrite.put_name(ino, name, target, kind)
            await self.rewrite.pause()

    async def _shorten(self, inode: Inode) -> None:
        """Pages that the inode has no more are holes; of one that took another's place, all."""
        pages = 0 if inode.whole else -(-inode.size // self.store.cell_bytes)
        number, keep = divmod(pages, LEAF_PAGES)
        if keep:
            leaf = self.meta.leaf(inode.ino, number)
            if leaf is not None and leaf.addresses is not None and leaf.addresses[keep:].any():
                kept = leaf.addresses.copy()
                kept[keep:] = 0
                self.rewrite.put_leaf(inode.ino, number, Leaf(kept, leaf.inline))
            number += 1
        for each, _ in self.meta.leaf_range(inode.ino, number, 1 << 62):
            self.rewrite.put_leaf(inode.ino, each, None)
            await self.rewrite.pause()

    # -- content ----------------------------------------------------------------------------------

    async def _extents(self, body: Extents, at: int) -> None:
        page = at // self.store.cell_bytes
        for extent in body.extents:
            if extent.hole:
                await self._hole(extent.ino, extent.first, extent.first + extent.count)
                continue
            cells = self.spool.cells(page, extent.count)
            page += extent.count
            if not cells.all():
                raise FormatError("what was received is damaged by now; receive it again")
            await self._data(extent.ino, extent.first, cells)

    async def _data(self, ino: int, first: int, cells: U64) -> None:
        done = 0
        while done < len(cells):
            number, at = divmod(first + done, LEAF_PAGES)
            part = min(len(cells) - done, LEAF_PAGES - at)
            leaf = await self._made(ino, number)
            leaf.addresses[at : at + part] = cells[done : done + part]
            if at == 0 and number == 0:
                leaf.inline = None
            done += part

    async def _hole(self, ino: int, first: int, end: int) -> None:
        """Only leaves that are there are looked at, however large the hole."""
        number, last = first // LEAF_PAGES, (end - 1) // LEAF_PAGES
        made = self._leaf.key if self._leaf is not None else (0, 0)
        there = [n for n, _ in self.meta.leaf_range(ino, number, last + 1)]
        if made[0] == ino and number <= made[1] <= last and made[1] not in there:
            there.append(made[1])
        for each in sorted(there):
            leaf = await self._made(ino, each)
            start = max(first - each * LEAF_PAGES, 0)
            leaf.addresses[start : min(end - each * LEAF_PAGES, LEAF_PAGES)] = 0
            if each == 0 and start == 0:
                leaf.inline = None

    async def _made(self, ino: int, number: int) -> _LeafMade:
        """The leaf to be changed; the one before is stored."""
        if self._leaf is None or self._leaf.key != (ino, number):
            await self._put_leaf()
            self._leaf = _LeafMade(ino, number, self.meta.leaf(ino, number))
        return self._leaf

    async def _put_leaf(self) -> None:
        if self._leaf is not None:
            leaf, self._leaf = self._leaf, None
            self.rewrite.put_leaf(*leaf.key, Leaf(leaf.addresses, leaf.inline), shared=True)
            await self.rewrite.pause()

    # -- what was there before --------------------------------------------------------------------

    async def _remove_others(self) -> None:
        """Inodes of the present that the stream hasn't; those without names go by themselves."""
        for row, version in self.meta.all_inodes():
            if (
                version.live
                and row.nlink
                and row.ino < FIRST_VIEW
                and not self.arrival.has(row.ino)
            ):
                await self.rewrite.remove_inode(row.ino)
                await self.rewrite.pause()


def _row(inode: Inode, parent: int, old: InodeRow | None) -> InodeRow:
    return InodeRow(
        inode.ino,
        inode.generation,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.size,
        inode.nlink,
        parent,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
        inode.btime_ns,
        inode.target,
        old.xattrs if old is not None else 0,
        0,
        0,
    )
