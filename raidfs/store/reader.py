"""Reading pages: memory, then leaves, then cells; checked, rebuilt where needed.

A read first plans (a plain function: which page lies where, and what its CRC must be), then leaves
the event loop with the plan and touches members. Planned zones are pinned, so what the plan names
stays on the members until it has been read, whatever is flushed meanwhile.

Promises (numbers of docs/ARCHITECTURE.md):
 8. A cell is believed only if its CRC matches the one in the metadata; otherwise it is rebuilt
    from its row, checked again and written back before anyone sees it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import Unrecoverable
from ..leaves import ROW_SHIFT, ZONE_SHIFT
from ..pages import LEAF_PAGES
from ..raid.array import Array
from ..raid.code import present
from ..raid.rebuild import runs as ranges
from .past import FIRST_VIEW, within
from .space import Zone

if TYPE_CHECKING:
    from .store import Store

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
CACHED_PAGES_MAX = 16  # of a read that may be done on the event loop
FILE_BYTES_MAX = 2**63 - 1
VIEWED_MAX = 50_000  # files of snapshots of which leaves are cached


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of one column that hold consecutive pages of the request."""

    zone: Zone
    column: int
    row: int
    first: int  # position of the first page in the request
    count: int
    crcs: npt.NDArray[np.uint32]


class Reader:
    """Reads pages of files for one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.viewed: dict[int, set[int]] = {}  # inodes: view numbers whose leaves may be cached

    async def read(self, ino: int, offset: int, nbytes: int) -> memoryview:
        """`nbytes` bytes at `offset`; the caller has clipped the range to the size of the file."""
        cell_bytes = self.store.cell_bytes
        first = offset // cell_bytes
        count = -(-(offset + nbytes) // cell_bytes) - first
        content = native.aligned((count, cell_bytes))
        whole = content.data.cast("B")
        within = whole[: FILE_BYTES_MAX - first * cell_bytes]  # the last page there is, is short
        missing, shared = self.store.pages.read(ino, first * cell_bytes, within)
        if len(missing):
            await self.read_pages(ino, missing, shared, content, (missing - np.uint64(first)))
        start = offset - first * cell_bytes
        return whole[start : start + nbytes]

    async def base(self, ino: int, page: int) -> tuple[object, bytes]:
        """(token, content) of one page below the cells in memory: as its leaf has it, or the cell
        that it came to share since."""
        content = native.aligned((1, self.store.cell_bytes))
        token = self.token(ino, page)
        pages = np.array([page], dtype=np.uint64)
        shared = self._shared(ino, pages)
        await self.read_pages(ino, pages, shared, content, np.zeros(1, dtype=np.uint64))
        return token, content.tobytes()

    def _shared(self, ino: int, pages: U64) -> U64:
        """Of ascending pages the cells that they came to share with others since their leaves were
        written, or 0."""
        first = int(pages[0])
        _, addresses = self.store.pages.map(ino, first, int(pages[-1]) - first + 1)
        return addresses[(pages - np.uint64(first)).astype(np.intp)]

    def token(self, ino: int, page: int) -> object:
        """Equal tokens mean equal content of that page below the cells in memory."""
        shared = self._shared(ino, np.array([page], dtype=np.uint64))
        if shared[0]:
            return int(shared[0]), None
        addresses, inline = self.addresses(ino, np.array([page], dtype=np.uint64))
        return int(addresses[0]), inline

    def addresses(self, ino: int, pages: U64) -> tuple[U64, bytes | None]:
        """Cell addresses of ascending pages, and the inline content that page 0 has instead."""
        addresses, known = self.store.pages.leaf_lookup(ino, pages)
        inline: bytes | None = None
        if known.all():
            return addresses, inline
        numbers = pages >> np.uint64(8)
        for number in np.unique(numbers[~known]).tolist():
            leaf = self.store.meta.leaf(ino, number)
            whole = np.zeros(LEAF_PAGES, dtype=np.uint64)
            if leaf is not None and leaf.addresses is not None:
                whole[: len(leaf.addresses)] = leaf.addresses
            if leaf is not None and leaf.inline is not None:
                inline = leaf.inline
            else:
                self.store.pages.leaf_put(ino, number, whole)
                if ino >= FIRST_VIEW:
                    self._note_view(ino)
            mine = numbers == np.uint64(number)
            addresses[mine] = whole[(pages[mine] & np.uint64(LEAF_PAGES - 1)).astype(np.intp)]
        return addresses, inline if pages[0] == 0 else None

    def _note_view(self, ino: int) -> None:
        """The leaf of a snapshot's file is cached: whoever moves cells must know."""
        if len(self.viewed) > VIEWED_MAX:
            for views in self.viewed.values():
                for view in views:
                    self.store.pages.leaf_forget(view)
            self.viewed.clear()
        self.viewed.setdefault(within(ino), set()).add(ino)

    async def read_pages(self, ino: int, pages: U64, shared: U64, content: U8, where: U64) -> None:
        """Fill content[where[i]] with page pages[i] (ascending) from cell shared[i], or else from
        leaves and cells."""
        while not await self._read_pages(ino, pages, shared, content, where):
            # a zone was emptied while we read a bad cell of it: the pages lie elsewhere now
            shared = self._shared(ino, pages)

    async def _read_pages(self, ino: int, pages: U64, shared: U64, content: U8, where: U64) -> bool:
        addresses, inline = self.addresses(ino, pages)
        if shared.any():
            addresses = np.where(shared != 0, shared, addresses)
            inline = None if shared[0] else inline
        holes = where[addresses == 0].astype(np.intp)
        content[holes] = 0
        if inline is not None:
            content[int(where[0]), : len(inline)] = np.frombuffer(inline, dtype=np.uint8)
        cells = addresses != 0
        if not cells.any():
            return True
        return await self.read_cells(addresses[cells], where[cells], content)

    async def read_cells(self, addresses: U64, where: U64, content: U8) -> bool:
        """Fill content[where[i]] with the cell addresses[i], which a leaf names at this moment.
        False: a zone was given up meanwhile, and what lay there lies elsewhere now."""
        runs = self._plan(addresses, where) if len(addresses) else []
        for run in runs:
            run.zone.pins += 1
        try:
            if not await self.read_runs(runs, content):
                return False
            await self.store.feed.open_columns({run.zone.map.zone: run.zone for run in runs})
            self.store.feed.read((run.zone, run.column, run.row, run.count) for run in runs)
            return True
        finally:
            for run in runs:
                run.zone.pins -= 1

    def _plan(self, addresses: U64, where: U64) -> list[Run]:
        """Group cells into runs: next page, next row, same zone and column."""
        step = np.uint64(1 << ROW_SHIFT)
        breaks = (addresses[1:] != addresses[:-1] + step) | (where[1:] != where[:-1] + np.uint64(1))
        starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        counts = np.diff(np.concatenate((starts, [len(addresses)])))
        runs = []
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            address = int(addresses[start])
            zone = self.store.space.zones[address >> ZONE_SHIFT]
            row, column = (address >> ROW_SHIFT) & 0xFFFFFF, address & 0xFF
            crcs = self.store.meta.crcs(zone.map.zone, row, count)[:, column]
            first = int(where[start])
            runs.append(Run(zone, column, row, first, count, np.ascontiguousarray(crcs)))
        return runs

    async def read_runs(self, runs: list[Run], content: U8) -> bool:
        """Read, check, and rebuild what is not as its CRC says. Raises Unrecoverable. False when
        the rows of a bad cell have been given up meanwhile."""
        if len(content) <= CACHED_PAGES_MAX:
            runs = [run for run in runs if not self._read_cached(run, content)]
            if not runs:
                return True
        doubtful = await self.store.offload(_read_runs, self.store.array, runs, content)
        for run, first, last, late in doubtful:
            if run.zone.map.zone not in self.store.space.zones:
                return False
            row, count = run.row + first, last - first
            rebuilt = await self.rebuild(run.zone, row, count, run.column, late=late)
            content[run.first + first : run.first + last] = rebuilt
        return True

    def _read_cached(self, run: Run, content: U8) -> bool:
        """Little that the kernel has in memory is read at once: handing it to a thread and back
        costs several times the copying."""
        out = content[run.first : run.first + run.count]
        return self.store.array.read_cached(run.zone.map, run.column, run.row, run.crcs, out)

    async def rebuild(
        self, zone: Zone, row: int, count: int, column: int, *, late: bool = False
    ) -> U8:
        """Cells of consecutive rows (count, cell_bytes) from the rest of their rows. The zone is
        pinned by the caller. `late`: they may be good, but their member takes its time. Raises
        Unrecoverable if one of them can't be had."""
        crcs = self.store.meta.crcs(zone.map.zone, row, count)
        where = self.present(zone, row, count)
        wanted = np.zeros_like(where)
        wanted[:, column] = True
        rows = (zone.map, row, crcs, where, wanted)
        work = functools.partial(self.store.array.rebuild_rows, *rows, late=[column] * late)
        content, good = await self.store.offload(work)
        if not good.all():
            raise Unrecoverable(
                f"zone {zone.map.zone} row {row + int(np.argmin(good))} column {column} is lost or "
                "damaged beyond what the rest of its row can rebuild"
            )
        return np.asarray(content[column], dtype=np.uint8)

    def present(self, zone: Zone, row: int, count: int) -> npt.NDArray[np.bool_]:
        """bool (count, width): which cells of these rows were written, by the owner records."""
        where = np.zeros((count, zone.map.code.width), dtype=np.bool_)
        at = row
        while at < row + count:
            owner = self.store.meta.owner_of(zone.map.zone, at)
            assert owner is not None and owner.row <= at < owner.row + owner.rows
            end = min(owner.row + owner.rows, row + count)
            there = present(zone.map.code, owner.pages)[:, at - owner.row : end - owner.row]
            where[at - row : end - row] = there.T
            at = end
        return where


def _read_runs(array: Array, runs: list[Run], content: U8) -> list[tuple[Run, int, int, bool]]:
    """In a thread: read each run; (run, first, last exclusive, their member was too slow) of cells
    that must be rebuilt."""
    doubtful = []
    for run in runs:
        out = content[run.first : run.first + run.count]
        good, late = array.read_in_time(run.zone.map, run.column, run.row, run.crcs, out)
        doubtful += [(run, first, last, late) for first, last in ranges(~good)]
    return doubtful
