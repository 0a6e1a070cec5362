"""Owner records read: which page of which file each cell of a zone was written for.

With the table share they are the zone's reverse map: together they name every leaf of which some
version may refer to a cell of the zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..leaves import ROW_SHIFT, ZONE_SHIFT
from ..pages import LEAF_PAGES
from ..raid.code import Code, burst_cells, parse_code

if TYPE_CHECKING:
    from .meta import Meta, Owner

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Owned:
    """One burst, page by page in burst order: `cells` (addresses), `inos`, `indexes` of pages."""

    cells: U64
    inos: U64
    indexes: U64


def owned(zone: int, code: Code, owner: Owner) -> Owned:
    """What the record says. FormatError if that makes no sense."""
    runs = np.frombuffer(owner.runs, dtype="<u8")
    if len(runs) % 3 or int(runs[2::3].sum()) != owner.pages:
        raise FormatError(f"the owner record of zone {zone} row {owner.row} is damaged")
    inos, firsts, counts = runs[0::3], runs[1::3], runs[2::3].astype(np.int64)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    indexes = np.repeat(firsts, counts) + (np.arange(owner.pages) - starts).astype(np.uint64)
    column, row = burst_cells(code, owner.pages)
    rows = (row + owner.row).astype(np.uint64) << np.uint64(ROW_SHIFT)
    cells = np.uint64(zone << ZONE_SHIFT) | rows | column.astype(np.uint64)
    return Owned(cells, np.repeat(inos, counts), indexes)


def owner_leaves(meta: Meta, zone: int, cells: U64) -> set[tuple[int, int]]:
    """(ino, leaf number) of the leaves for whose pages these cells of the zone were written."""
    code = parse_code(meta.code_of(zone))
    found: set[tuple[int, int]] = set()
    for owner in meta.owners(zone):
        burst = owned(zone, code, owner)
        mine = np.isin(burst.cells, cells)
        if mine.any():
            numbers = burst.indexes[mine] // np.uint64(LEAF_PAGES)
            keys = np.unique(np.column_stack((burst.inos[mine], numbers)), axis=0)
            found.update((int(ino), int(number)) for ino, number in keys)
    return found
