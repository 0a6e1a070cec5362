"""Rebuilding cells of several rows at once: which cells to read, and what they add up to.

No input or output happens here: the array reads what `cells_to_read` names, tells the outcome with
`tried`, asks again, and decodes when nothing is lacking. Rows of which the same is known are taken
together, so the work is a few matrix products however many rows there are.

 1. A cell is used as a source only if it is absent (zeros) or was read and checked.
 2. A cell counts as rebuilt only if its own CRC-32C matches.
 3. Reading ends: each round settles at least one cell that was untried.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.raid.code import Code

Cells = npt.NDArray[np.uint8]
Crcs = npt.NDArray[np.uint32]
Bools = npt.NDArray[np.bool_]

BAD, WANTED = 254, 255  # ranks of cells; others below


class Rebuild:
    """What is known of the cells of n rows while they are rebuilt.

    A cell is good (its content is in its column's buffer, checked, or it is absent), bad (not to
    be had from its member) or untried. A row is solved once its wanted cells are decoded, or found.
    `shunned`: columns that are read only where there is no other way, in the order `slowest_last`.
    """

    def __init__(
        self,
        code: Code,
        crcs: Crcs,
        present: Bools,
        wanted: Bools,
        cell_bytes: int,
    ) -> None:
        rows, width = wanted.shape
        assert crcs.shape == present.shape == wanted.shape and width == code.width
        self.code = code
        self.crcs = crcs
        self.absent: Bools = ~present
        self.wanted: Bools = wanted & present
        self.good: Bools = ~present
        self.bad: Bools = self.wanted.copy()
        self.solved: Bools = np.zeros(rows, dtype=np.bool_)
        self.content: dict[int, Cells] = {}
        self.shunned: set[int] = set()
        self.slowest_last: list[int] = []
        self._cell_bytes = cell_bytes
        for column in np.flatnonzero(wanted.any(axis=0)).tolist():
            self._buffer(column)

    def lose(self, column: int) -> None:
        """Its member can't be asked."""
        self.bad[:, column] |= ~self.good[:, column]

    def tried(self, column: int, first: int, last: int, good: Bools) -> None:
        """Rows first..last-1 of the column were read into `content`; `good`: those that check."""
        part = slice(first, last)
        untried = ~self.good[part, column] & ~self.bad[part, column]
        self.good[part, column] |= good & untried
        self.bad[part, column] |= ~good & untried

    def found(self, column: int, first: int, last: int, good: Bools) -> None:
        """Wanted cells were read after all, into `content`; `good`: those that check."""
        part = slice(first, last)
        self.wanted[part, column] &= ~good
        self.bad[part, column] &= ~good
        self.good[part, column] |= good

    def _buffer(self, column: int) -> Cells:
        """The column's cells, zeros where nothing was read."""
        if column not in self.content:
            shape = (len(self.solved), self._cell_bytes)
            self.content[column] = native.aligned(shape)
            self.content[column][:] = 0
        return self.content[column]

    def cells_to_read(self) -> list[tuple[int, int, int]]:
        """(column, first row, last row exclusive): what the best guess still lacks; [] if nothing.

        Rows are taken together by what is known of their cells. For each the sources are those
        that `express` picks: absent cells first, then good ones, then untried ones, and of these
        the shunned ones last.
        """
        lacking = np.zeros_like(self.good)
        for rows, sources in self._plans():
            for source in sources:
                lacking[rows, source] = ~self.good[rows, source]
        jobs = []
        for column in np.flatnonzero(lacking.any(axis=0)).tolist():
            self._buffer(column)
            jobs += [(column, first, last) for first, last in runs(lacking[:, column])]
        return jobs

    def _plans(self) -> list[tuple[npt.NDArray[np.int64], list[int]]]:
        """(row numbers, sources) for each pattern of known cells that can be solved."""
        plans = []
        for rows, wanted, available in self._patterns():
            solved = self.code.express(wanted, available)
            if solved is not None:
                plans.append((rows, solved[0]))
        return plans

    def _patterns(
        self,
    ) -> list[tuple[npt.NDArray[np.int64], tuple[int, ...], tuple[int, ...]]]:
        """Rows that know the same of their cells: (row numbers, wanted, available in order)."""
        # 0 absent, 1 good, 2 untried, 3 and more shunned: the order in which they are liked
        rank = np.full(self.good.shape, 2, dtype=np.uint8)
        rank[:, list(self.shunned)] = 3 + len(self.slowest_last)
        for place, column in enumerate(self.slowest_last):
            rank[:, column] = 3 + place
        rank[self.bad] = BAD
        rank[self.good] = 1
        rank[self.good & self.absent] = 0
        rank[self.wanted] = WANTED
        found = []
        kinds, inverse = np.unique(rank, axis=0, return_inverse=True)
        for number, kind in enumerate(kinds):
            wanted = tuple(np.flatnonzero(kind == WANTED).tolist())
            if wanted:
                order = np.argsort(kind, kind="stable")
                available = tuple(order[: int((kind < BAD).sum())].tolist())
                found.append((np.flatnonzero(inverse.ravel() == number), wanted, available))
        return found

    def decode(self) -> Bools:
        """Fill in the wanted cells; bool (n, width): which cells were rebuilt and check.

        Cells found bad on the way are rebuilt too where the row allows, to be healed.
        """
        rebuilt = np.zeros_like(self.good)
        tried_and_bad = self.bad & ~self.wanted & ~self.absent
        for rows, wanted, available in self._patterns():
            also = tuple(
                column
                for column in np.flatnonzero(tried_and_bad[rows[0]]).tolist()
                if column in self.content
            )
            known = tuple(column for column in available if self.good[rows[0], column])
            if not self._solve(rows, wanted + also, known, rebuilt):
                self._solve(rows, wanted, known, rebuilt)
        self.solved = np.asarray(~(self.wanted & ~rebuilt).any(axis=1))
        return rebuilt

    def _solve(
        self,
        rows: npt.NDArray[np.int64],
        columns: tuple[int, ...],
        known: tuple[int, ...],
        rebuilt: Bools,
    ) -> bool:
        """Decode these columns of these rows from known ones. False if that can't be."""
        solution = self.code.express(columns, known)
        if solution is None:
            return False
        sources, matrix = solution
        # an absent source adds nothing, whatever its coefficient
        adds = [i for i, s in enumerate(sources) if not self.absent[rows[0], s]]
        shape = (len(columns), len(rows), self._cell_bytes)
        outputs = np.zeros(shape, dtype=np.uint8)
        if adds:
            inputs = np.stack([self.content[sources[i]][rows] for i in adds])
            native.multiply(
                np.ascontiguousarray(matrix[:, adds]),
                inputs.reshape(len(adds), -1),
                outputs.reshape(len(columns), -1),
            )
        for column, cells in zip(columns, outputs, strict=True):
            right = native.crc32c_cells(cells) == self.crcs[rows, column]
            self._buffer(column)[rows[right]] = cells[right]
            rebuilt[rows[right], column] = True
        return True


def runs(mask: Bools) -> list[tuple[int, int]]:
    """(first, last exclusive) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
