"""One zone's cells against their checksums: read on all members at once, healed from redundancy.

   column files looked at --> rows read in large steps, several under way --> doubtful cells
   doubtful --> read again as any reader would, which counts --> bad --> rebuilt, written, looked at
   bad and not to be had --> who needs them?

1. A cell counts as bad only if it was so twice, and its column could be used both times: whatever
   is moved, lost or erased in between does no harm.
2. Columns that are stale or of lost members are left out, and rows of which the metadata doesn't
   know yet.
3. Nothing is written that did not match its checksum first (array.py), and what was written is
   looked at again before it counts as healed.
4. Rows of which no cell is needed may hold anything that can't be healed: they are not lost.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from .. import native
from ..errors import MemberError
from ..leaves import ROW_SHIFT, ZONE_SHIFT
from ..raid.array import Array, ZoneMap
from ..raid.code import Code, present
from ..raid.member import Member
from ..raid.rebuild import runs
from ..steps import Spot, check_column
from .scrub_files import Needed, who_needs

if TYPE_CHECKING:
    from .space import Zone
    from .store import Store

Bools = npt.NDArray[np.bool_]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
STEP_BYTES = 16 << 20  # of each column, read without a pause
STEP_BYTES_BUSY = 1 << 20  # the same while users read or write
CHUNK_BYTES = 2 << 20  # at once
CHUNK_BYTES_MEMORY = 256 << 10  # where nothing waits: it is still in the CPU's cache when compared
STEPS_AHEAD = 2
ALONE_S = 0.05
NICE = 10
OWNERS_PER_TURN = 256


@dataclass(slots=True)
class Tally:
    """What was found in a zone, by member. `rows_lost`: with cells that can't be had, and that
    somebody needs; `first_lost` of them."""

    cells: dict[int, int] = field(default_factory=dict)
    bad: dict[int, int] = field(default_factory=dict)
    healed: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    nbytes: int = 0
    rows_lost: int = 0
    first_lost: int = 0
    needed: Needed = field(default_factory=Needed)


Pools = tuple[ThreadPoolExecutor, ThreadPoolExecutor]  # the second one's threads `give_way`


class ZoneScrub:
    """Of one zone. `turn`: awaited after each step, with the bytes read. `found`: called with a
    member, how many cells were bad, and how many of these are healed. `step`: how much of
    each column to read before the next turn, and whether in one step at a time."""

    def __init__(
        self,
        store: Store,
        zone: Zone,
        pools: Pools,
        *,
        heal: bool,
        turn: Callable[[int], Awaitable[bool]],
        found: Callable[[int, int, int], None],
        step: Callable[[], tuple[int, bool]],
    ) -> None:
        self.store, self.zone, self.heal = store, zone, heal
        self._pool, self._gentle = pools
        self.tally = Tally()
        self._turn, self._found, self._step = turn, found, step
        self._row = 0  # those below were taken
        self._number = zone.map.zone
        self._complete = True
        self._through = trio.Event()  # all rows were taken, or it was given up
        self._hopeless: list[tuple[int, Bools, Bools, Bools]] = []  # row, there, left, lost

    async def run(self) -> bool:
        """False: it was given up in the middle, since the zone has gone, or `turn` said so."""
        zone = self.zone
        zone.pins += 1
        try:
            fill = self._fill()
            await self._look_at_columns()
            there = await self._presence(fill)
            if there is not None and fill:
                async with trio.open_nursery() as nursery:
                    for number in range(STEPS_AHEAD):
                        nursery.start_soon(self._steps, there, number)
            if self.tally.healed:
                await self._sync()
            if not self._gone and self._hopeless:
                await self._who_needs_them()
            return self._complete and not self._gone
        finally:
            zone.pins -= 1

    @property
    def _gone(self) -> bool:
        return self.store.space.zones.get(self._number) is not self.zone

    def _fill(self) -> int:
        """Rows that the metadata knows of. Others may have been handed out, and be on their way."""
        return self.store.meta.fill_of(self._number) if self.zone.placed else self.zone.fill

    def _columns(self, there: ZoneMap) -> list[int]:
        online = self.store.array.online
        return [c for c in range(there.code.width) if online(there, c) is not None]

    async def _presence(self, fill: int) -> Bools | None:
        """bool (fill, width): which cells were written. None: the zone is gone."""
        code = self.zone.map.code
        there = np.ones((fill, code.width), dtype=np.bool_)
        for at, owner in enumerate(self.store.meta.owners(self._number)):
            if owner.row >= fill:
                break
            if owner.pages % code.k:
                part = present(code, owner.pages).T[: fill - owner.row]
                there[owner.row : owner.row + len(part)] = part
            if at % OWNERS_PER_TURN == OWNERS_PER_TURN - 1:
                await trio.lowlevel.checkpoint()
        return None if self._gone else there

    async def _look_at_columns(self) -> None:
        """Files that were removed are made anew, those that were cut short get their room back."""
        places = self.zone.map
        nbytes = places.rows * self.store.cell_bytes
        look = functools.partial(_afresh, self.store.array, places, nbytes, self.heal)
        if await self.store.offload(look, self._columns(places)):
            self.store.feed.forget(self._number)  # C threads have the old file

    # -- reading ----------------------------------------------------------------------------------

    async def _steps(self, there: Bools, number: int) -> None:
        """Several of these share the zone's rows; where pauses are wanted, one does it all."""
        while self._row < len(there) and self._complete and not self._gone:
            nbytes, alone = self._step()
            if alone and number:
                with trio.move_on_after(ALONE_S):
                    await self._through.wait()
                continue
            row, step = self._row, max(1, nbytes // self.store.cell_bytes)
            where = there[row : row + step]
            count, places = len(where), self.zone.map
            self._row += count
            pool = self._gentle if alone else self._pool
            crcs = self.store.meta.crcs(self._number, row, count)
            columns = self._columns(places)
            array = self.store.array
            doubtful = await self.store.offload(
                _look, pool, array, places, columns, row, crcs, where
            )
            for column in columns:
                member = places.columns[column][0]
                cells = int(np.count_nonzero(where[:, column]))
                self.tally.cells[member] = self.tally.cells.get(member, 0) + cells
            if doubtful.any():
                for first, last in runs(doubtful.any(axis=1)):
                    part = slice(first, last)
                    await self._doubt(row + first, crcs[part], where[part], doubtful[part])
            nbytes = count * len(columns) * self.store.cell_bytes
            self.tally.nbytes += nbytes
            if not await self._turn(nbytes):
                self._complete = False
        self._through.set()

    async def _doubt(self, row: int, crcs: U32, there: Bools, doubtful: Bools) -> None:
        """Rows in each of which a cell seemed bad."""
        if self._gone:
            return
        places, array = self.zone.map, self.store.array
        bad = await self.store.offload(_again, array, places, row, crcs, doubtful)
        if self._gone or not bad.any():
            return
        usable = np.zeros_like(bad)
        usable[:, self._columns(places)] = True
        bad &= usable
        usable = (usable & ~bad) | ~there
        can = bad & _expressible(places.code, bad, usable)
        healed = np.zeros_like(bad)
        if self.heal and can.any():
            await self.store.offload(array.rebuild_rows, places, row, crcs, there, can)
            look = (self._pool, array, places, self._columns(places), row, crcs, can)
            healed = can & ~await self.store.offload(_look, *look)
        self._count(places, bad, healed)
        if (bad & ~can).any():
            lost = there & ~usable & ~bad  # on members that are lost: can these still be had?
            lost = (bad & ~can) | (lost & ~_expressible(places.code, lost, usable))
            hopeless = lost.any(axis=1)
            for first, last in runs(hopeless):
                part = slice(first, last)
                left = (bad & ~can)[part]
                self._hopeless.append((row + first, there[part], left, lost[part]))

    def _count(self, places: ZoneMap, bad: Bools, healed: Bools) -> None:
        for column in np.flatnonzero(bad.any(axis=0)).tolist():
            member = places.columns[column][0]
            counts = int(bad[:, column].sum()), int(healed[:, column].sum())
            self.tally.bad[member] = self.tally.bad.get(member, 0) + counts[0]
            if counts[1]:
                self.tally.healed[member] = self.tally.healed.get(member, 0) + counts[1]
            self._found(member, *counts)

    async def _sync(self) -> None:
        """What was healed survives a crash. A member that can't is lost by it, as by any sync."""
        store = self.store
        for member in await store.offload(store.array.sync_zone, self.zone.map):
            store.notices.loss(member, store.array.states[member].write_error)
        await store.losses.settle()

    # -- what can't be had ------------------------------------------------------------------------

    async def _who_needs_them(self) -> None:
        """Promise 4."""
        places, tally = self.zone.map, self.tally
        k = places.code.k
        cells, lost = list[U64](), list[U64]()
        for row, there, _, gone in self._hopeless:
            cells.append(self._addresses(row, there[:, :k]))
            lost.append(self._addresses(row, gone[:, :k]))
        needed = await who_needs(
            self.store, self._number, np.concatenate(cells), np.concatenate(lost)
        )
        rows = {(cell >> ROW_SHIFT) & 0xFFFFFF for cell in needed.cells}
        for row, _, left, _ in self._hopeless:
            alive = np.array([row + at in rows for at in range(len(left))], dtype=np.bool_)
            for column in np.flatnonzero((left & alive[:, None]).any(axis=0)).tolist():
                member = places.columns[column][0]
                count = int((left[:, column] & alive).sum())
                tally.left[member] = tally.left.get(member, 0) + count
            tally.rows_lost += int(alive.sum())
            if alive.any() and tally.rows_lost == int(alive.sum()):
                tally.first_lost = row + int(np.argmax(alive))
        tally.needed = needed

    def _addresses(self, row: int, which: Bools) -> U64:
        rows, columns = np.nonzero(which)
        found: U64 = (rows + row).astype(np.uint64) << np.uint64(ROW_SHIFT)
        found |= np.uint64(self._number << ZONE_SHIFT) | columns.astype(np.uint64)
        return found


def _expressible(code: Code, wanted: Bools, usable: Bools) -> Bools:
    """Which of the wanted cells (n, width) the usable ones of their row add up to."""
    found = np.zeros_like(wanted)
    kinds, inverse = np.unique(np.hstack((wanted, usable)), axis=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        available = tuple(np.flatnonzero(kind[code.width :]).tolist())
        for column in np.flatnonzero(kind[: code.width]).tolist():
            if code.express((column,), available) is not None:
                found[inverse.ravel() == number, column] = True
    return found


# -- in threads ------------------------------------------------------------------------------------


def _afresh(array: Array, places: ZoneMap, nbytes: int, heal: bool, columns: list[int]) -> bool:
    """Returns whether a file was made, or made longer."""
    changed = False
    for column in columns:
        member = array.online(places, column)
        if member is None:
            continue
        slot = places.columns[column][1]
        try:
            whole = member.column_afresh(places.zone, column, slot, nbytes)
            if heal and not whole and not member.read_only:
                member.column_create(places.zone, column, slot, nbytes)
                changed = True
        except MemberError:
            continue  # reading it will tell
    return changed


def give_way() -> None:
    """This thread gets processors only after those that serve users, where the system allows."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class _Buffers(threading.local):
    cells: npt.NDArray[np.uint8] | None = None


_buffers = _Buffers()


def _buffer(count: int, cell_bytes: int) -> npt.NDArray[np.uint8]:
    """Of this thread."""
    held = _buffers.cells
    if held is None or held.shape[0] < count or held.shape[1] != cell_bytes:
        held = _buffers.cells = native.aligned((count, cell_bytes))
    return held[:count]


def _look(
    pool: ThreadPoolExecutor,
    array: Array,
    places: ZoneMap,
    columns: list[int],
    row: int,
    crcs: U32,
    there: Bools,
) -> Bools:
    """Which of these cells couldn't be read, or are not as their checksums say. Counts nothing."""
    doubtful = np.zeros_like(there)

    def look(column: int) -> None:
        _look_at(array, places, column, row, crcs, there, doubtful)

    list(pool.map(look, columns))
    return doubtful


def _look_at(
    array: Array,
    places: ZoneMap,
    column: int,
    row: int,
    crcs: U32,
    there: Bools,
    doubtful: Bools,
) -> None:
    member = array.online(places, column)
    if member is None:
        return
    if not member.lends:
        _look_in_turn(member, array, places, column, row, crcs, there, doubtful)
        return
    cell_bytes = array.cell_bytes
    nbytes = max(CHUNK_BYTES_MEMORY if member.never_waits else CHUNK_BYTES, cell_bytes)
    try:
        with member.column_borrow(places.zone, column, places.columns[column][1]) as place:
            spot = Spot(place.fd, False, place.offset_bytes + row * cell_bytes)
            room = _buffer(nbytes // cell_bytes, cell_bytes).reshape(-1)
            check_column(spot, column, crcs, there, doubtful, cell_bytes, room)
    except MemberError:
        doubtful[:, column] = there[:, column]


def _look_in_turn(
    member: Member,
    array: Array,
    places: ZoneMap,
    column: int,
    row: int,
    crcs: U32,
    there: Bools,
    doubtful: Bools,
) -> None:
    """The same of members that lend no descriptors."""
    slot, cell_bytes = places.columns[column][1], array.cell_bytes
    at_once = max(1, CHUNK_BYTES // cell_bytes)
    buffer = _buffer(min(at_once, len(there)), cell_bytes)
    wanted, right = there[:, column], np.ascontiguousarray(crcs[:, column])
    for first in range(0, len(there), at_once):
        part = slice(first, first + at_once)
        here = wanted[part]
        if not here.any():
            continue
        cells = buffer[: len(here)]
        offset = (row + first) * cell_bytes
        try:
            member.column_read(places.zone, column, slot, offset, cells.data.cast("B"))
        except MemberError:
            doubtful[part, column] = here
            continue
        wrong = native.crc32c_cells(cells) != right[part]
        if wrong.any():
            doubtful[part, column] = wrong & here


def _again(array: Array, places: ZoneMap, row: int, crcs: U32, doubtful: Bools) -> Bools:
    """Which of the doubtful cells are bad: read as any reader does it, which counts and tells."""
    bad = np.zeros_like(doubtful)
    for column in np.flatnonzero(doubtful.any(axis=0)).tolist():
        for first, last in runs(doubtful[:, column]):
            cells = native.aligned((last - first, array.cell_bytes))
            sums = np.ascontiguousarray(crcs[first:last, column])
            good = array.read_run(places, column, row + first, sums, cells, patient=True)
            bad[first:last, column] = ~good
        if array.online(places, column) is None:
            bad[:, column] = False
    return bad
