"""Zones: where their columns lie, whose their cells are, and who refers to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..raid.array import ZoneMap
from ..raid.assembly import Assembly
from ..raid.code import burst_cells, parse_code, present
from ..store.meta import Meta, Owner, ZoneRow
from .ledger import Numbers, Span, Views
from .report import Report

ROWS_PER_READ = 256
MANY = -1  # in `Zone.views`: more than one view has the cell

U64 = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class End:
    """A cell that holds the end of a file: of its bytes, those up to `nbytes` are the file's."""

    ino: int
    column: int
    row: int
    nbytes: int


@dataclass(slots=True)
class Zone:
    """A zone while its leaves are walked."""

    row: ZoneRow
    map: ZoneMap
    present: npt.NDArray[np.bool_]  # (width, rows below fill)
    owner: U64  # (k, fill): inode by the owner records; 0 where absent
    page: U64  # (k, fill): page index by the owner records
    used: npt.NDArray[np.bool_]  # (k, fill): some version of a leaf refers to it
    views: npt.NDArray[np.int32]  # the same, if there are snapshots: which view has it, plus 1; 0:
    # none; or MANY
    live: int = 0  # entries of leaves that refer to its cells
    ends: dict[int, set[End]] = field(default_factory=dict)  # by row // ROWS_PER_READ


@dataclass(frozen=True, slots=True)
class Reference:
    """A version of a leaf, as who refers to cells."""

    ino: int
    number: int
    span: Span
    where: str


class Zones:
    """All zones of a volume, by number."""

    def __init__(self, assembly: Assembly, meta: Meta, views: Views, report: Report) -> None:
        self.assembly = assembly
        self.meta = meta
        self.views = views
        self.report = report
        self.zones: dict[int, Zone] = {}
        self._shares = set(meta.all_shares())
        self._unused = set(self._shares)  # no version of the leaf referred to the zone so far

    def load(self) -> None:
        slots = {entry.id: entry.slots for entry in self.assembly.label.members}
        taken: set[tuple[int, int]] = set()
        for row in self.meta.zones():
            where = f"zone {row.zone}"
            code = parse_code(row.code)
            self.report.count("zones")
            if row.zone >= self.meta.next_zone or not 0 <= row.fill <= row.rows:
                self.report.add("zone.numbers", f"{where}: fill {row.fill} of {row.rows} rows")
            if row.live and code.tolerance < self._tolerance():
                text = f"{where}: code {row.code} survives less than labels say"
                self.report.add("zone.code", text)
            if len(row.columns) != code.width:
                self.report.add("zone.columns", f"{where} has {len(row.columns)} columns")
                continue
            for place in row.columns:
                if place in taken or not 0 <= place[1] < slots.get(place[0], 0):
                    self.report.add("zone.slot", f"{where}: slot {place[1]} of member {place[0]}")
                taken.add(place)
            zone = Zone(
                row,
                ZoneMap(row.zone, code, row.rows, row.columns),
                np.zeros((code.width, row.fill), dtype=np.bool_),
                np.zeros((code.k, row.fill), dtype=np.uint64),
                np.zeros((code.k, row.fill), dtype=np.uint64),
                np.zeros((code.k, row.fill), dtype=np.bool_),
                np.zeros((code.k, row.fill if self.views.present else 0), dtype=np.int32),
            )
            self.zones[row.zone] = zone
            self._owners(zone)
            self._column_files(zone)
        self._stray_columns()

    def _tolerance(self) -> int:
        """Losses that each zone survives, for all that labels say: of those that look at the labels
        alone when a member is lost."""
        label = self.assembly.label
        settled = all(entry.is_current for entry in label.members)
        return self.assembly.tolerance if settled else 0

    def _owners(self, zone: Zone) -> None:
        """Owner records cover rows 0 to fill without gap or overlap, and say whose each cell is."""
        next_row = 0
        code = zone.map.code
        for owner in self.meta.owners(zone.row.zone):
            where = f"zone {owner.zone} row {owner.row}"
            runs = np.frombuffer(owner.runs, dtype="<u8").reshape(-1, 3)
            last = owner.row + owner.rows
            rows = -(-owner.pages // code.k)
            if owner.row != next_row or last > zone.row.fill or rows != owner.rows:
                self.report.add("owner.rows", f"{where}: {owner.rows} rows, not at {next_row}")
                return
            if int(runs[:, 2].sum()) != owner.pages:
                self.report.add("owner.pages", f"{where}: {owner.pages} pages, runs differ")
                return
            self._place_owner(zone, owner, runs)
            next_row = last
        if next_row != zone.row.fill:
            self.report.add("owner.gap", f"zone {zone.row.zone}: rows {next_row} up have no owner")

    def _place_owner(self, zone: Zone, owner: Owner, runs: U64) -> None:
        counts = runs[:, 2].astype(np.int64)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        offsets = (np.arange(owner.pages) - starts).astype(np.uint64)
        columns, rows = burst_cells(zone.map.code, owner.pages)
        zone.owner[columns, rows + owner.row] = np.repeat(runs[:, 0], counts)
        zone.page[columns, rows + owner.row] = np.repeat(runs[:, 1], counts) + offsets
        part = slice(owner.row, owner.row + owner.rows)
        zone.present[:, part] = present(zone.map.code, owner.pages)

    def _column_files(self, zone: Zone) -> None:
        for column, (member_id, slot) in enumerate(zone.map.columns):
            member = self.assembly.members.get(member_id)
            missed = zone.row.missed.get(column, zone.row.fill)
            if not 0 <= missed <= zone.row.fill:
                self.report.add("zone.missed", f"zone {zone.row.zone} column {column}: {missed}")
            if zone.row.missed.get(column) == 0:
                continue  # it may never have been made
            if member is not None and not member.column_exists(zone.row.zone, column, slot):
                self.report.add(
                    "column.missing", f"{member.path}: no column {column} of zone {zone.row.zone}"
                )

    def _stray_columns(self) -> None:
        for member_id, member in self.assembly.members.items():
            stray = 0
            for number, column in member.columns():
                zone = self.zones.get(number)
                places = zone.map.columns if zone is not None else ()
                stray += column >= len(places) or places[column][0] != member_id
            if stray:
                self.report.note(
                    "column.stray",
                    f"{member.path}: {stray} columns without a zone; a mount removes them",
                )

    # -- references -------------------------------------------------------------------------------

    def refer(self, leaf: Reference, pages: U64, addresses: U64, sizes: Numbers) -> None:
        """Each address names a present cell, which its owner record gives to this page, or which
        the leaf is recorded to share. `sizes`: those of the file in the views that see the leaf."""
        numbers = addresses >> np.uint64(32)
        for number in np.unique(numbers).tolist():
            mine = numbers == np.uint64(number)
            zone = self.zones.get(number)
            share = (number, leaf.ino, leaf.number)
            self._unused.discard(share)
            if zone is None:
                self.report.add("leaf.zone", f"{leaf.where}: zone {number} isn't there")
                continue
            rows = ((addresses[mine] >> np.uint64(8)) & np.uint64(0xFFFFFF)).astype(np.intp)
            columns = (addresses[mine] & np.uint64(0xFF)).astype(np.intp)
            if (rows >= zone.row.fill).any() or (columns >= zone.map.code.k).any():
                text = f"{leaf.where}: a cell beyond what zone {number} holds"
                self.report.add("leaf.cell", text)
                continue
            zone.live += len(rows)
            if not zone.present[columns, rows].all():
                text = f"{leaf.where}: a cell of zone {number} holds no page"
                self.report.add("leaf.absent", text)
            zone.used[columns, rows] = True
            if self.views.present:
                self._seen(zone, columns, rows, leaf.span)
            self._note_ends(zone, leaf.ino, pages[mine], (columns, rows), sizes)
            own = (zone.owner[columns, rows] == np.uint64(leaf.ino)) & (
                zone.page[columns, rows] == pages[mine]
            )
            self.report.count("shared cells", int(len(own) - own.sum()))
            if not own.all() and share not in self._shares:
                text = f"{leaf.where}: zone {number} says the cell is another's"
                self.report.add("leaf.owner", text)

    @staticmethod
    def _seen(zone: Zone, columns: Places, rows: Places, span: Span) -> None:
        """These views have the cells."""
        first, end = span
        if first == end:
            return
        mine = first + 1 if end == first + 1 else MANY
        seen = zone.views[columns, rows]
        zone.views[columns, rows] = np.where((seen == 0) | (seen == mine), mine, MANY)

    def _note_ends(
        self, zone: Zone, ino: int, pages: U64, cells: tuple[Places, Places], sizes: Numbers
    ) -> None:
        """Remember which cells hold the end of the file, if any of these does."""
        for size in sizes.tolist():
            page, nbytes = divmod(size, self.meta.cell_bytes)
            if not nbytes:
                continue
            for at in np.flatnonzero(pages == np.uint64(page)).tolist():
                end = End(ino, int(cells[0][at]), int(cells[1][at]), nbytes)
                zone.ends.setdefault(end.row // ROWS_PER_READ, set()).add(end)

    # -- after all leaves -------------------------------------------------------------------------

    def conclude(self) -> None:
        """A leaf recorded to share cells of a zone refers to some; live counts are right."""
        self.report.count("shares", len(self._shares))
        for number, ino, leaf in sorted(self._unused):
            text = f"leaf {leaf} of inode {ino} refers to no cell of zone {number}"
            self.report.add("share.stale", text)
        for number, zone in self.zones.items():
            self.report.count("live cells", zone.live)
            self.report.count("cells in use", int(zone.used.sum()))
            if zone.live != zone.row.live:
                counted = f"live {zone.row.live}, counted {zone.live}"
                self.report.add("zone.live", f"zone {number}: {counted}")

    def alone(self) -> list[int]:
        """How many cells each view has that no other has, the present last."""
        found = np.zeros(self.views.present + 1, dtype=np.int64)
        for zone in self.zones.values():
            seen = zone.views[zone.views > 0]
            found += np.bincount(seen - 1, minlength=len(found))
        return [int(number) for number in found]
