"""The file that a stream is kept in while it comes in: byte n of the stream is byte n of the file.

It has a number of its own and no name (store/spool.py), survives crashes as far as any file does,
and is the only thing that a receiver changes until the whole stream has been verified.

 1. What `read` and `cells` tell is what the metadata has: after a commit, all that was written.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import native
from ..pages import LEAF_PAGES
from ..store.meta import InodeRow
from ..store.spool import SPOOL_INO
from .attributes import Caller, Changes

if TYPE_CHECKING:
    from .volume import Volume

U64 = npt.NDArray[np.uint64]
PIECE_BYTES = 1 << 20
_ROOT = Caller(0, 0)


class Spool:
    """Of one volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.store = volume.store
        self.meta = volume.store.meta
        self._leaf: tuple[int, U64] | None = None  # the last one that `cells` looked at

    @property
    def there(self) -> bool:
        return self.meta.inode(SPOOL_INO) is not None

    @property
    def size(self) -> int:
        """As of the last cut."""
        row = self.meta.inode(SPOOL_INO)
        return row.size if row is not None else 0

    # -- writing ----------------------------------------------------------------------------------

    async def make(self) -> None:
        inodes, now_ns = self.volume.inodes, self.volume.clock()
        mode, times = stat.S_IFREG | 0o600, (now_ns, now_ns, now_ns, now_ns)
        row = InodeRow(SPOOL_INO, 0, mode, 0, 0, 0, 0, 0, 0, *times, None, 0, 0, 0)
        async with self.volume.door.passing():
            await self.volume.ready()
            with inodes.change() as epoch:
                self.meta.insert_inode(epoch, row)
            inodes.add(row)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        done = 0
        while done < len(data):
            part = memoryview(data)[done : done + PIECE_BYTES]
            async with self.volume.door.passing():
                await self.volume.ready()
                done += await self.volume.write(SPOOL_INO, offset + done, part)

    async def cut(self, size: int) -> None:
        """Nothing behind that is needed any more."""
        async with self.volume.door.passing():
            await self.volume.setattr(SPOOL_INO, Changes(size=size), _ROOT)

    async def drop(self) -> None:
        """No harm if there is none. Durable on return: before that there can't be another, as it
        would have the same number."""
        async with self.volume.door.passing():
            await self.volume.ready()
            if not self.there:
                return
            self.volume.inodes.remove_spool()
        await self.store.commit()

    # -- reading ----------------------------------------------------------------------------------

    def cells(self, page: int, count: int) -> U64:
        """Where so many pages lie."""
        found = np.zeros(count, np.uint64)
        done = 0
        while done < count:
            number, at = divmod(page + done, LEAF_PAGES)
            part = min(count - done, LEAF_PAGES - at)
            found[done : done + part] = self._addresses(number)[at : at + part]
            done += part
        return found

    def _addresses(self, number: int) -> U64:
        if self._leaf is None or self._leaf[0] != number:
            leaf = self.meta.leaf(SPOOL_INO, number)
            whole = np.zeros(LEAF_PAGES, np.uint64)
            if leaf is not None and leaf.addresses is not None:
                whole[: len(leaf.addresses)] = leaf.addresses
            self._leaf = (number, whole)
        return self._leaf[1]

    async def read(self, offset: int, nbytes: int) -> memoryview:
        """From a multiple of the volume's pages on; less at the end."""
        cell_bytes = self.store.cell_bytes
        assert offset % cell_bytes == 0
        nbytes = min(nbytes, self.size - offset)
        if nbytes <= 0:
            return memoryview(b"")
        content = native.aligned((-(-nbytes // cell_bytes), cell_bytes))
        done = False
        while not done:  # again where a zone was given up while a bad cell of it was rebuilt
            self._leaf = None
            content[:] = 0
            cells = self.cells(offset // cell_bytes, len(content))
            leaf = self.meta.leaf(SPOOL_INO, 0) if offset == 0 else None
            if leaf is not None and leaf.inline is not None:
                content[0, : len(leaf.inline)] = np.frombuffer(leaf.inline, np.uint8)
            where = np.flatnonzero(cells).astype(np.uint64)
            done = await self.store.reader.read_cells(cells[cells != 0], where, content)
        self._leaf = None
        return content.reshape(-1)[:nbytes].data
