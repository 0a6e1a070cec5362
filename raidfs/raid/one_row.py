"""A burst of one row on its way to the members: what a small fsync writes.

As `encode` of store/burst.py and `write_rows` of writing.py, without arrays: for a handful of cells
numpy's beginnings cost more than all the rest. Promises as there; the columns written are synced.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from raidfs import native
from raidfs.engine import Batch
from raidfs.errors import MemberError
from raidfs.raid.array import Array, ZoneMap
from raidfs.raid.member import Member, Place
from raidfs.raid.writing import raise_fault

Crcs = native.Checksums


def encode_row(zone: ZoneMap, pages: list[int], cell_bytes: int) -> tuple[list[int], Crcs, object]:
    """Parity and checksums of one row. pages: the addresses in memory of those of the first data
    columns, the rest being absent.

    Returns where the cell of each column lies (0: absent), uint32 (1, width), and what must be kept
    for as long as the parity cells are needed.
    """
    code = zone.code
    data = pages + [0] * (code.k - len(pages))
    parity, crcs = native.encode_row(code.parity, data, cell_bytes)
    start = native.address_of(parity)
    return data + [start + i * cell_bytes for i in range(code.m)], crcs, parity


async def write_row(array: Array, zone: ZoneMap, row: int, cells: list[int]) -> set[int]:
    """Write the cells that lie at those addresses (0: absent) into that row, each column in a chain
    of its own, and sync the columns. Returns the ids of members that failed."""
    assert array.engine is not None and 0 <= row < zone.rows and len(cells) == zone.code.width
    batch, failed = Batch(), set[int]()
    lent: list[tuple[int, Member, AbstractContextManager[Place], Place]] = []
    try:
        for column, address in enumerate(cells):
            member = array.online(zone, column) if address else None
            if member is None:
                continue
            borrowed = member.column_borrow(zone.zone, column, zone.columns[column][1])
            try:
                place = borrowed.__enter__()
            except MemberError as error:
                failed.add(array.write_failed(zone, column, error))
                continue
            lent.append((column, member, borrowed, place))
            batch.chain()
            offset = place.offset_bytes + row * array.cell_bytes
            batch.write_memory(place.fd, offset, address, array.cell_bytes)
            batch.sync(place.fd)
        await array.engine.run(batch)
        faults = batch.errors()
        for number, (column, member, _, place) in enumerate(lent):
            try:
                raise_fault(member, place, faults.get(number + 1))
                member.column_confirm(place)
            except MemberError as error:
                failed.add(array.write_failed(zone, column, error))
    finally:
        for _, _, borrowed, _ in lent:
            borrowed.__exit__(None, None, None)
    array.wrote(len(lent) - len(failed))
    return failed
