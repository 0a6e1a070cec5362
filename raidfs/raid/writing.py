"""New rows on their way to members by an engine: each column a chain, beside the event loop.

The array's own `write_burst` and `sync_zone` do the same by members' calls in threads; they are for
members that lend no descriptors. Here nobody waits in a thread: one batch goes to the engine, and
the event loop is told when all of it is done.

 1. A column is synced after its cells were written, and not if that failed.
 2. Faults are counted and told as the array does it: once for each column, under its member.
 3. A column that holds none of the cells is neither written nor synced.
"""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt

from raidfs.engine import Batch, Fault
from raidfs.errors import MemberError
from raidfs.raid.array import Array, ZoneMap, addresses_of
from raidfs.raid.member import Member, Place, are_aligned, said_of
from raidfs.raid.rebuild import Bools, Cells, runs


def lends_all(array: Array, zone: ZoneMap) -> bool:
    """Whether the zone's columns can be written by the array's engine."""
    members = (array.online(zone, column) for column in range(zone.code.width))
    return array.engine is not None and all(member is None or member.lends for member in members)


async def write_rows(
    array: Array,
    zone: ZoneMap,
    row: int,
    data_addresses: npt.NDArray[np.uint64],
    parity: Cells,
    present: Bools,
    synced: Bools,
) -> set[int]:
    """Write rows from `row` on, then sync the columns that `synced` (width,) names.

    Otherwise as `Array.write_burst`: data_addresses uint64 (k, rows), parity uint8 (m, rows,
    cell_bytes), present bool (width, rows). Returns the ids of members that failed.
    """
    code, rows = zone.code, data_addresses.shape[1]
    assert data_addresses.shape == (code.k, rows)
    assert parity.shape == (code.m, rows, array.cell_bytes) and parity.flags.c_contiguous
    assert present.shape == (code.width, rows) and synced.shape == (code.width,)
    assert row >= 0 and row + rows <= zone.rows
    with _Chains(array, zone) as chains:
        for column in range(code.width):
            where = present[column]
            if not where.any() and not synced[column]:
                continue
            if column < code.k:
                addresses = data_addresses[column]
            else:
                addresses = addresses_of(parity[column - code.k])
            chains.begin(column)
            for first, last in runs(where):
                chains.write(row + first, addresses[first:last])
            if synced[column]:
                chains.sync()
        return await chains.run()


class _Chains:
    """A batch of one chain per column, and the descriptors that it needs, open until the end."""

    def __init__(self, array: Array, zone: ZoneMap) -> None:
        self._array = array
        self._zone = zone
        self._batch = Batch()
        self._lent = contextlib.ExitStack()
        self._chains: list[tuple[int, Member, Place]] = []  # column of chain i + 1, where it lies
        self._cells: list[int] = []
        self._syncs: list[bool] = []
        self._failed: set[int] = set()
        self._place: Place | None = None  # of the chain being made; None: leave it out

    def __enter__(self) -> _Chains:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._lent.close()

    def begin(self, column: int) -> None:
        """What follows concerns this column. Of a lost member it is left out silently."""
        self._place = None
        member = self._array.online(self._zone, column)
        if member is None:
            return
        slot = self._zone.columns[column][1]
        try:
            place = self._lent.enter_context(member.column_borrow(self._zone.zone, column, slot))
        except MemberError as error:
            self._failed.add(self._array.write_failed(self._zone, column, error))
            return
        self._place = place
        self._batch.chain()
        self._chains.append((column, member, place))
        self._cells.append(0)
        self._syncs.append(False)

    def write(self, row: int, addresses: npt.NDArray[np.uint64]) -> None:
        if self._place is None:
            return
        assert not self._chains[-1][1].direct or are_aligned(addresses)
        cell_bytes = self._array.cell_bytes
        offset = self._place.offset_bytes + row * cell_bytes
        self._batch.write_cells(self._place.fd, offset, addresses, cell_bytes)
        self._cells[-1] += len(addresses)

    def sync(self) -> None:
        if self._place is not None:
            self._batch.sync(self._place.fd)
            self._syncs[-1] = True

    async def run(self) -> set[int]:
        """The ids of the members that failed."""
        assert self._array.engine is not None
        await self._array.engine.run(self._batch)
        faults = self._batch.errors()
        written = 0
        for i, (column, member, place) in enumerate(self._chains):
            try:
                raise_fault(member, place, faults.get(i + 1))
                if self._syncs[i]:
                    member.column_confirm(place)
            except MemberError as error:
                self._failed.add(self._array.write_failed(self._zone, column, error))
            else:
                written += self._cells[i]
        self._array.wrote(written)
        return self._failed


def raise_fault(member: Member, place: Place, fault: Fault | None) -> None:
    """MemberError for a fault, in the words that the member's own calls use."""
    if fault is not None:
        with said_of(member.path, f"{fault.doing} {place.name}"):
            raise OSError(fault.errno, "")
