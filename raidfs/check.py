"""check, or fsck: reads the metadata and every cell of a volume and lists what is not as promised.

It writes nothing: members are opened read-only, and recovery (the log replayed, later epochs
undone) happens in memory. So what is checked is what the next mount would find.

    labels     both copies of each, equal
    metadata   every page of every copy; SQLite's own structure; versions that overlap (promise 6)
    names      entries, link counts, parents, attributes, orphans
    space      leaves, owners, shares, checksums, zones, slots, live counts: each says what the
               others say. A cell may be in several leaves: that of its owner, and such as share it
    cells      every written cell of every column against its CRC; parity against an encode of its
               row by the reference arithmetic; zeros beyond the ends of files (promise 8)

A *finding* is a violated promise. A *note* is something that a crash may leave and the next mount
clears (files without a name, columns without a zone), or a member that is known to be lost.

Memory: some bytes per inode, and one byte per cell of the zones that hold data.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import native
from .errors import FormatError, MemberError, RaidfsError, Unrecoverable
from .pages import LEAF_PAGES
from .raid.array import Array, MemberState, ZoneMap
from .raid.assembly import Assembly
from .raid.code import burst_cells, parse_code, present
from .raid.label import LABEL_COPIES, decode_label
from .raid.rebuild import Crcs, runs
from .store.meta import ROOT_INO, Leaf, Meta, Owner, ZoneRow
from .store.mirror import Mirror

FINDINGS_MAX = 1000
ROWS_PER_READ = 256

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Progress = Callable[[str, int, int], None]  # what is being checked, done, total


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is stable, for scripts: area and what is wrong, as in "names.nlink"."""

    code: str
    text: str


@dataclass(slots=True)
class Report:
    """What was found. `counts`: how much was looked at. `cut_short`: findings not kept."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    cut_short: int = 0

    def add(self, code: str, text: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(code, text))
        else:
            self.cut_short += 1

    def note(self, code: str, text: str) -> None:
        self.notes.append(Finding(code, text))

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def clean(self) -> bool:
        return not self.findings


def check_volume(
    source: str,
    *,
    extra_paths: Iterable[str] = (),
    data: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Check the volume that `source` is a member of. Raises RaidfsError if it can't be opened at
    all. `data` False leaves the cells out, and so takes time by the metadata's size only."""
    assembly = Assembly.open(source, degraded=True, read_only=True, extra_paths=extra_paths)
    try:
        return check_assembly(assembly, data=data, progress=progress)
    finally:
        assembly.close()


def check_assembly(
    assembly: Assembly, *, data: bool = True, progress: Progress | None = None
) -> Report:
    """The same of members that are open already. They stay open."""
    report = Report()
    _check_labels(assembly, report)
    mirror = Mirror(
        assembly.members,
        read_only=True,
        on_event=lambda name, member, text: report.add(
            f"metadata.{name}", f"member {member}: {text}"
        ),
    )
    try:
        for member_id, problem in mirror.scrub():
            report.add("metadata.page", f"member {member_id}: {problem}")
        try:
            meta = Meta(mirror)
        except RaidfsError as error:
            report.add("metadata.open", str(error))
            return report
        try:
            _Checker(assembly, meta, report, progress or (lambda what, done, total: None)).run(data)
        except FormatError as error:
            report.add("metadata.format", str(error))
        finally:
            meta.close()
    finally:
        mirror.close()
    return report


def _check_labels(assembly: Assembly, report: Report) -> None:
    for member in assembly.members.values():
        labels = []
        for copy in range(LABEL_COPIES):
            try:
                labels.append(decode_label(member.read_label(copy)))
            except RaidfsError as error:
                report.add("label.copy", f"{member.path}: copy {copy} of its label: {error}")
        if len({label.generation_id for label in labels}) > 1:
            report.note("label.update", f"{member.path}: a label update was cut off by a crash")
    for member_id, reason in assembly.lost.items():
        report.note("member.lost", f"member {member_id}: {reason}")
    report.count("members", len(assembly.members))


@dataclass(frozen=True, slots=True)
class _End:
    """A cell that holds the end of a file: of its bytes, those up to `nbytes` are the file's."""

    ino: int
    column: int
    row: int
    nbytes: int


@dataclass(slots=True)
class _Zone:
    """A zone while its leaves are walked."""

    row: ZoneRow
    map: ZoneMap
    present: npt.NDArray[np.bool_]  # (width, rows below fill)
    owner: U64  # (k, fill): inode by the owner records; 0 where absent
    page: U64  # (k, fill): page index by the owner records
    live: int = 0  # entries of leaves that refer to its cells
    ends: dict[int, list[_End]] = field(default_factory=dict)  # by row // ROWS_PER_READ


class _Checker:
    """One run over one volume's metadata and cells."""

    def __init__(self, assembly: Assembly, meta: Meta, report: Report, progress: Progress) -> None:
        self.assembly = assembly
        self.meta = meta
        self.report = report
        self.progress = progress
        self.cell_bytes = assembly.label.parameters.cell_bytes
        self.zones: dict[int, _Zone] = {}
        # mode, size, nlink, parent, xattrs, cells
        self.files: dict[int, tuple[int, int, int, int, int, int]] = {}
        self.cells_of: dict[int, int] = {}  # counted in the leaves

    def run(self, data: bool) -> None:
        for problem in self.meta.integrity():
            self.report.add("metadata.sqlite", problem)
        self._inodes()
        self._names()
        self._xattrs()
        self._zones()
        self._leaves()
        self._shares()
        self._live_counts()
        if data:
            self._cells()

    # -- versions and names -----------------------------------------------------------------------

    def _version(self, key: tuple[object, ...], born: int, died: int, last: object) -> object:
        """Promise 6, for versions in key order. `last` is what the previous call returned."""
        if not born < died:
            self.report.add("version.empty", f"{key}: born {born}, died {died}")
        if isinstance(last, tuple) and last[0] == key and last[1] > born:
            self.report.add("version.overlap", f"{key}: a version died at {last[1]}, born {born}")
        if born > self.meta.durable:
            self.report.add("version.later", f"{key}: born {born}, durable is {self.meta.durable}")
        return key, died

    def _inodes(self) -> None:
        last: object = None
        for row, version in self.meta.all_inodes():
            last = self._version(("inode", row.ino), version.born, version.died, last)
            if not version.live:
                continue
            self.files[row.ino] = (row.mode, row.size, row.nlink, row.parent, row.xattrs, row.cells)
            if row.ino >= self.meta.next_ino:
                self.report.add("inode.number", f"inode {row.ino} was never handed out")
            if row.size < 0 or (stat.S_ISLNK(row.mode) and row.size != len(row.target or b"")):
                self.report.add("inode.size", f"inode {row.ino} has size {row.size}")
            self.report.count("inodes")
        if ROOT_INO not in self.files or not stat.S_ISDIR(self.files[ROOT_INO][0]):
            self.report.add("inode.root", "the root directory is missing")
        if self.meta.count_inodes() != len(self.files):
            self.report.add(
                "inode.count", f"{len(self.files)} inodes, not {self.meta.count_inodes()}"
            )

    def _names(self) -> None:
        last: object = None
        links: dict[int, int] = {}
        subdirectories: dict[int, int] = {}
        seen: set[tuple[int, bytes]] = set()
        directory = -1
        for parent, entry, version in self.meta.all_dirents():
            key = ("name", parent, entry.position)
            last = self._version(key, version.born, version.died, last)
            if not version.live:
                continue
            if parent != directory:
                directory, seen = parent, set()
            where = f"{entry.name!r} in inode {parent}"
            if (parent, entry.name) in seen:
                self.report.add("names.twice", where)
            seen.add((parent, entry.name))
            if not self.meta.position_good(entry):
                self.report.add("names.position", f"{where} can't be found by its name")
            if not stat.S_ISDIR(self.files.get(parent, (0,))[0]):
                self.report.add("names.parent", f"{where}: that is no directory")
            self._target(parent, entry.ino, entry.kind, where, subdirectories)
            links[entry.ino] = links.get(entry.ino, 0) + 1
            self.report.count("names")
        self._link_counts(links, subdirectories)

    def _target(
        self, parent: int, ino: int, kind: int, where: str, subdirectories: dict[int, int]
    ) -> None:
        file = self.files.get(ino)
        if file is None:
            self.report.add("names.dangling", f"{where} leads to inode {ino}, which isn't there")
            return
        if file[0] >> 12 != kind:
            self.report.add("names.kind", f"{where} says kind {kind}, inode {ino} is {file[0]:o}")
        if stat.S_ISDIR(file[0]):
            subdirectories[parent] = subdirectories.get(parent, 0) + 1
            if file[3] != parent:
                self.report.add("names.dotdot", f"{where}: inode {ino} has parent {file[3]}")

    def _link_counts(self, links: dict[int, int], subdirectories: dict[int, int]) -> None:
        orphans = 0
        for ino, (mode, _, nlink, _, _, _) in self.files.items():
            found = links.get(ino, 0)
            if stat.S_ISDIR(mode):
                want = 2 + subdirectories.get(ino, 0)
                named = 1 if ino != ROOT_INO else 0
                if found != named and not (nlink == 0 and found == 0):
                    self.report.add("names.directory", f"directory {ino} has {found} names")
                if ino != ROOT_INO and nlink and not self._reaches_root(ino):
                    self.report.add("names.cycle", f"directory {ino} does not lead to the root")
            else:
                want = found
            if nlink == 0 and found == 0 and ino != ROOT_INO:
                orphans += 1
            elif nlink != want:
                self.report.add("names.nlink", f"inode {ino}: nlink {nlink}, counted {want}")
            elif found == 0 and ino != ROOT_INO:
                self.report.add("names.lost", f"inode {ino} has no name")
        if orphans:
            self.report.note("names.orphans", f"{orphans} files have no name; a mount removes them")

    def _reaches_root(self, ino: int) -> bool:
        steps = 0
        while ino != ROOT_INO:
            file = self.files.get(ino)
            if file is None or steps > len(self.files):
                return False
            ino, steps = file[3], steps + 1
        return True

    def _xattrs(self) -> None:
        last: object = None
        counts: dict[int, int] = {}
        for ino, name, _, version in self.meta.all_xattrs():
            last = self._version(("xattr", ino, name), version.born, version.died, last)
            if version.live:
                counts[ino] = counts.get(ino, 0) + 1
                if ino not in self.files:
                    self.report.add("xattr.dangling", f"{name!r} of inode {ino}, which isn't there")
        for ino, file in self.files.items():
            if file[4] != counts.get(ino, 0):
                self.report.add("xattr.count", f"inode {ino}: not {counts.get(ino, 0)}")

    # -- space ------------------------------------------------------------------------------------

    def _zones(self) -> None:
        slots = {entry.id: entry.slots for entry in self.assembly.label.members}
        taken: set[tuple[int, int]] = set()
        for row in self.meta.zones():
            where = f"zone {row.zone}"
            code = parse_code(row.code)
            self.report.count("zones")
            if row.zone >= self.meta.next_zone or not 0 <= row.fill <= row.rows:
                self.report.add("zone.numbers", f"{where}: fill {row.fill} of {row.rows} rows")
            if len(row.columns) != code.width:
                self.report.add("zone.columns", f"{where} has {len(row.columns)} columns")
                continue
            for place in row.columns:
                if place in taken or not 0 <= place[1] < slots.get(place[0], 0):
                    self.report.add("zone.slot", f"{where}: slot {place[1]} of member {place[0]}")
                taken.add(place)
            zone = _Zone(
                row,
                ZoneMap(row.zone, code, row.rows, row.columns),
                np.zeros((code.width, row.fill), dtype=np.bool_),
                np.zeros((code.k, row.fill), dtype=np.uint64),
                np.zeros((code.k, row.fill), dtype=np.uint64),
            )
            self.zones[row.zone] = zone
            self._owners(zone)
            self._column_files(zone)
        self._stray_columns()

    def _owners(self, zone: _Zone) -> None:
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

    def _place_owner(self, zone: _Zone, owner: Owner, runs: U64) -> None:
        counts = runs[:, 2].astype(np.int64)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        offsets = (np.arange(owner.pages) - starts).astype(np.uint64)
        columns, rows = burst_cells(zone.map.code, owner.pages)
        zone.owner[columns, rows + owner.row] = np.repeat(runs[:, 0], counts)
        zone.page[columns, rows + owner.row] = np.repeat(runs[:, 1], counts) + offsets
        part = slice(owner.row, owner.row + owner.rows)
        zone.present[:, part] = present(zone.map.code, owner.pages)

    def _column_files(self, zone: _Zone) -> None:
        for column, (member_id, slot) in enumerate(zone.map.columns):
            member = self.assembly.members.get(member_id)
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

    def _leaves(self) -> None:
        last: object = None
        for ino, number, leaf, version in self.meta.all_leaves():
            last = self._version(("leaf", ino, number), version.born, version.died, last)
            if version.live:
                self._leaf(ino, number, leaf)
                self.report.count("leaves")
        for ino, file in self.files.items():
            if file[5] != self.cells_of.get(ino, 0):
                counted = self.cells_of.get(ino, 0)
                self.report.add("inode.cells", f"inode {ino}: {file[5]} cells, counted {counted}")

    def _leaf(self, ino: int, number: int, leaf: Leaf) -> None:
        where = f"leaf {number} of inode {ino}"
        file = self.files.get(ino)
        if file is None or not stat.S_ISREG(file[0]):
            self.report.add("leaf.dangling", f"{where}: no such file")
            return
        if leaf.inline is not None and any(leaf.inline[file[1] :]):
            self.report.add("leaf.inline", f"{where}: bytes beyond the end are not zeros")
        if leaf.addresses is None:
            return
        used = np.flatnonzero(leaf.addresses)
        if len(used) and (number * LEAF_PAGES + int(used[-1])) * self.cell_bytes >= file[1]:
            self.report.add("leaf.end", f"{where} has cells beyond the end of the file")
        if leaf.inline is not None and leaf.addresses[0]:
            self.report.add("leaf.both", f"{where}: page 0 is inline and in a cell")
        self.cells_of[ino] = self.cells_of.get(ino, 0) + len(used)
        pages = used.astype(np.uint64) + np.uint64(number * LEAF_PAGES)
        self._refer(ino, pages, leaf.addresses[used], where)

    def _refer(self, ino: int, pages: U64, addresses: U64, where: str) -> None:
        """Each address names a present cell, which its owner record gives to this page, or which
        the leaf is recorded to share."""
        numbers = addresses >> np.uint64(32)
        for number in np.unique(numbers).tolist():
            mine = numbers == np.uint64(number)
            zone = self.zones.get(number)
            if zone is None:
                self.report.add("leaf.zone", f"{where}: zone {number} isn't there")
                continue
            rows = ((addresses[mine] >> np.uint64(8)) & np.uint64(0xFFFFFF)).astype(np.intp)
            columns = (addresses[mine] & np.uint64(0xFF)).astype(np.intp)
            if (rows >= zone.row.fill).any() or (columns >= zone.map.code.k).any():
                self.report.add("leaf.cell", f"{where}: a cell beyond what zone {number} holds")
                continue
            zone.live += len(rows)
            if not zone.present[columns, rows].all():
                self.report.add("leaf.absent", f"{where}: a cell of zone {number} holds no page")
            self._note_end(zone, ino, pages[mine], columns, rows)
            own = (zone.owner[columns, rows] == np.uint64(ino)) & (
                zone.page[columns, rows] == pages[mine]
            )
            self.report.count("shared cells", int(len(own) - own.sum()))
            if not own.all() and not self.meta.shares(number, ino, int(pages[0]) // LEAF_PAGES):
                self.report.add("leaf.owner", f"{where}: zone {number} says the cell is another's")

    def _note_end(
        self,
        zone: _Zone,
        ino: int,
        pages: U64,
        columns: npt.NDArray[np.intp],
        rows: npt.NDArray[np.intp],
    ) -> None:
        """Remember which cell holds the end of the file, if one of these does."""
        page, nbytes = divmod(self.files[ino][1], self.cell_bytes)
        if nbytes:
            for at in np.flatnonzero(pages == np.uint64(page)).tolist():
                end = _End(ino, int(columns[at]), int(rows[at]), nbytes)
                zone.ends.setdefault(end.row // ROWS_PER_READ, []).append(end)

    def _shares(self) -> None:
        """A leaf that is recorded to share cells of a zone refers to some."""
        for number, ino, leaf_number in self.meta.all_shares():
            leaf = self.meta.leaf(ino, leaf_number)
            addresses = leaf.addresses if leaf is not None else None
            if addresses is None or not (addresses >> np.uint64(32) == np.uint64(number)).any():
                where = f"leaf {leaf_number} of inode {ino}"
                self.report.add("share.stale", f"{where} refers to no cell of zone {number}")
            self.report.count("shares")

    def _live_counts(self) -> None:
        for number, zone in self.zones.items():
            self.report.count("live cells", zone.live)
            if zone.live != zone.row.live:
                counted = f"live {zone.row.live}, counted {zone.live}"
                self.report.add("zone.live", f"zone {number}: {counted}")

    # -- cells ------------------------------------------------------------------------------------

    def _cells(self) -> None:
        states = {
            entry.id: MemberState(
                self.assembly.members.get(entry.id),
                "online" if entry.id in self.assembly.members else "missing",
            )
            for entry in self.assembly.label.members
        }
        array = Array(states, self.cell_bytes, lambda name, member, text: None, heal=False)
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

    def _rows(self, array: Array, zone: _Zone, row: int, count: int) -> None:
        code = zone.map.code
        crcs = self.meta.crcs(zone.row.zone, row, count)
        cells = np.zeros((code.width, count, self.cell_bytes), dtype=np.uint8)
        where = zone.present[:, row : row + count]
        good = ~where
        for column, (member_id, _) in enumerate(zone.map.columns):
            if member_id not in self.assembly.members:
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

    def _damaged(self, array: Array, zone: _Zone, row: int, column: int, crcs: Crcs) -> None:
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

    def _parity(self, zone: _Zone, row: int, cells: U8, good: npt.NDArray[np.bool_]) -> None:
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

    def _file_ends(self, zone: _Zone, row: int, cells: U8, good: npt.NDArray[np.bool_]) -> None:
        """Bytes beyond the end of a file are zeros in its last cell, whoever else has the cell."""
        assert row % ROWS_PER_READ == 0
        for end in zone.ends.get(row // ROWS_PER_READ, ()):
            at = end.row - row
            if good[end.column, at] and cells[end.column, at, end.nbytes :].any():
                text = f"inode {end.ino}: bytes beyond its end are not zeros"
                self.report.add("cell.end", text)
