"""Cells: every written one against its checksum, parity against its row, zeros beyond the ends of
files (promise 8). Takes time by what is stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import MemberError, Unrecoverable
from ..raid.array import Array, MemberState
from ..raid.assembly import Assembly
from ..raid.rebuild import Crcs, runs
from ..store.meta import Meta
from .report import Progress, Report
from .zones import ROWS_PER_READ, Zone

U8 = npt.NDArray[np.uint8]


class Cells:
    """One read of all that zones hold."""

    def __init__(
        self,
        assembly: Assembly,
        meta: Meta,
        zones: dict[int, Zone],
        report: Report,
        progress: Progress,
    ) -> None:
        self.assembly = assembly
        self.meta = meta
        self.zones = zones
        self.report = report
        self.progress = progress
        self.cell_bytes = meta.cell_bytes

    def run(self) -> None:
        states = {
            entry.id: MemberState(
                self.assembly.members.get(entry.id),
                "online" if entry.id in self.assembly.members else "missing",
            )
            for entry in self.assembly.label.members
        }
        array = Array(states, self.cell_bytes, lambda name, member, text: None, heal=False)
        array.stale.update(
            (n, column) for n, zone in self.zones.items() for column in zone.row.missed
        )
        total = sum(zone.row.fill for zone in self.zones.values())
        done = 0
        try:
            for zone in self.zones.values():
                for row in range(0, zone.row.fill, ROWS_PER_READ):
                    count = min(ROWS_PER_READ, zone.row.fill - row)
                    self._rows(array, zone, row, count)
                    done += count
                    self.progress("cells", done, total)
        finally:
            array.close()

    def _rows(self, array: Array, zone: Zone, row: int, count: int) -> None:
        code = zone.map.code
        crcs = self.meta.crcs(zone.row.zone, row, count)
        cells = np.zeros((code.width, count, self.cell_bytes), dtype=np.uint8)
        where = zone.present[:, row : row + count]
        good = ~where
        for column, (member_id, _) in enumerate(zone.map.columns):
            if member_id not in self.assembly.members or column in zone.row.missed:
                continue
            for first, last in runs(where[column]):
                expected = np.ascontiguousarray(crcs[first:last, column])
                out = cells[column, first:last]
                got = array.read_run(zone.map, column, row + first, expected, out)
                good[column, first:last] = got
                self.report.count("cells", last - first)
                for at in np.flatnonzero(~got).tolist():
                    self._damaged(array, zone, row + first + at, column, crcs[first + at])
        self._parity(zone, row, cells, good)
        self._file_ends(zone, row, cells, good)

    def _damaged(self, array: Array, zone: Zone, row: int, column: int, crcs: Crcs) -> None:
        member = zone.map.columns[column][0]
        try:
            array.rebuild_row(zone.map, row, crcs, zone.present[:, row], {column})
            fate = "its row can rebuild it"
        except (Unrecoverable, MemberError):
            fate = "its row can't rebuild it"
        self.report.add(
            "cell.damaged",
            f"zone {zone.row.zone} row {row} column {column} (member {member}): {fate}",
        )

    def _parity(self, zone: Zone, row: int, cells: U8, good: npt.NDArray[np.bool_]) -> None:
        """Parity again, from the data cells, where all of a row could be read."""
        code = zone.map.code
        whole = np.flatnonzero(good.all(axis=0))
        if not len(whole) or not code.m:
            return
        data = np.ascontiguousarray(cells[: code.k, whole]).reshape(code.k, -1)
        want = np.empty((code.m, data.shape[1]), dtype=np.uint8)
        native.multiply(np.ascontiguousarray(code.parity), data, want)
        have = cells[code.k :, whole].reshape(code.m, -1)
        for column in np.flatnonzero((want != have).any(axis=1)).tolist():
            self.report.add(
                "row.parity", f"zone {zone.row.zone} rows {row} up: parity column {column} is wrong"
            )

    def _file_ends(self, zone: Zone, row: int, cells: U8, good: npt.NDArray[np.bool_]) -> None:
        """Bytes beyond the end of a file are zeros in its last cell, whoever else has the cell."""
        assert row % ROWS_PER_READ == 0
        for end in zone.ends.get(row // ROWS_PER_READ, ()):
            at = end.row - row
            if good[end.column, at] and cells[end.column, at, end.nbytes :].any():
                text = f"inode {end.ino}: bytes beyond its end are not zeros"
                self.report.add("cell.end", text)
