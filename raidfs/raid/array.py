"""The array: rows written over members, read with their checksums, rebuilt from what is left.

It knows zones (which member holds which column, and the code) and what state each member is in; it
knows no files and decides no policy: a failed write is reported, and whether a member leaves the
volume is decided above.

 1. A cell is handed out only if its CRC-32C matches the one given; otherwise it was rebuilt from
    its row, checked again, and (where its member is online and healing is on) written back first.
 2. Any loss that the zone's code survives is survived, cell by cell: a row needs only enough good
    cells of its own, wherever the bad ones lie.
 3. Healing writes the same bytes that were there, nothing else.
 4. Absent cells are zeros by definition: never read or written, and good sources for a rebuild.
 5. Every fault is counted at the member that showed it and told to `on_event` by name: ReadError,
    WriteError, ChecksumError, Healed, Unrecoverable, Fail, DegradedArray. `on_event` is called in
    the thread that met the fault and must not block.
 6. With `patience`, a column whose member is slow is *shunned* where the others are enough: it is
    rebuilt, read only if there is no other way, and not healed, as nothing is wrong with it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.engine import Engine
from raidfs.errors import MemberError, Unrecoverable
from raidfs.raid.around import Around
from raidfs.raid.code import Code
from raidfs.raid.member import Member
from raidfs.raid.patience import Late, Patience
from raidfs.raid.rebuild import Bools, Cells, Crcs, Rebuild, runs

OnEvent = Callable[[str, int, str], None]

NO_MEMBER = -1  # the member id of an event that concerns no single member


@dataclass(frozen=True, slots=True)
class ZoneMap:
    """Where a zone lies. columns: (member id, slot) by column, code.width of them."""

    zone: int
    code: Code
    rows: int
    columns: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        assert len(self.columns) == self.code.width
        assert len({member for member, _ in self.columns}) == self.code.width


@dataclass(frozen=True, slots=True)
class Reach:
    """What is written to a zone from some moment on reaches its columns where `zone` says that they
    lie, but for those `absent`, and those of members lost since (`losses`: how many there were)."""

    zone: ZoneMap
    absent: tuple[int, ...]
    losses: int


@dataclass(slots=True)
class MemberState:
    """A member as the array sees it. `member` is None unless online."""

    member: Member | None
    state: Literal["online", "failed", "missing"]
    read_errors: int = 0
    write_errors: int = 0
    checksum_errors: int = 0
    healed: int = 0
    write_error: str = ""  # what the last failed write said


@dataclass(frozen=True, slots=True)
class ArrayStatistics:
    """What was done since the array was opened."""

    cells_read: int = 0
    cells_written: int = 0
    cells_rebuilt: int = 0
    cells_healed: int = 0
    rows_unrecoverable: int = 0


class Array:
    """See the module. All methods may be called from any thread, and block."""

    def __init__(
        self,
        states: dict[int, MemberState],
        cell_bytes: int,
        on_event: OnEvent,
        *,
        heal: bool = True,
        engine: Engine | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.engine = engine  # for writing.py
        self.patience = patience
        self.around = Around(self)
        self.states = states
        self.stale: set[tuple[int, int]] = set()  # (zone, column) that lack rows: as if lost
        self.losses: list[int] = []  # members that were lost, in order; some perhaps back by now
        self.cell_bytes = cell_bytes
        self._on_event = on_event
        self._heal = heal
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(ArrayStatistics.__dataclass_fields__, 0)
        self._threads = max(2, len(states))
        self._outgrown: list[ThreadPoolExecutor] = []
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="member")

    def close(self) -> None:
        """Wait for what is under way. The members are not closed: who opened them does that."""
        for pool in (*self._outgrown, self._pool):
            pool.shutdown()
        if self.patience is not None:
            self.patience.close()

    def statistics(self) -> ArrayStatistics:
        with self._lock:
            return ArrayStatistics(**self._counts)

    def counters(self) -> dict[int, tuple[int, int, int]]:
        """member -> (read, write, checksum errors)"""
        with self._lock:
            return {
                member_id: (state.read_errors, state.write_errors, state.checksum_errors)
                for member_id, state in self.states.items()
            }

    def fail(self, member_id: int, reason: str) -> None:
        """From now on nothing is read from or written to this member. The label is not ours."""
        state = self.states[member_id]
        with self._lock:
            was, state.state, state.member = state.state, "failed", None
        if self.patience is not None:
            self.patience.forget(member_id)
        if was == "online":
            self.losses.append(member_id)
            self._on_event("Fail", member_id, reason)
            self._on_event("DegradedArray", NO_MEMBER, f"running without member {member_id}")

    def admit(self, member_id: int, member: Member) -> None:
        """A new member, or one that is back. What it may lack is in `stale` before."""
        with self._lock:
            state = self.states.setdefault(member_id, MemberState(None, "missing"))
            state.member, state.state, state.write_error = member, "online", ""
            if len(self.states) > self._threads:
                self._outgrown.append(self._pool)  # somebody may be about to use it
                self._threads = 2 * len(self.states)
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="member")

    def withdraw(self, member_id: int) -> None:
        """It is no member any more, and holds nothing."""
        with self._lock:
            self.states.pop(member_id, None)
        if self.patience is not None:
            self.patience.forget(member_id)

    def online(self, zone: ZoneMap, column: int) -> Member | None:
        """The member that holds the column, if it can be used, and has all of it."""
        if self.stale and (zone.zone, column) in self.stale:
            return None
        return self.present(zone, column)

    def absent(self, zone: ZoneMap) -> tuple[int, ...]:
        """Columns that what is written now doesn't reach."""
        width = zone.code.width
        return tuple([c for c in range(width) if self.online(zone, c) is None])

    def reach(self, zone: ZoneMap) -> Reach:
        """To be asked before writing, and handed to `missed` when what was written is recorded."""
        return Reach(zone, self.absent(zone), len(self.losses))

    def missed(self, reach: Reach, now: ZoneMap) -> set[int]:
        """Columns that, as they lie `now`, lack what was written since."""
        lost = set(self.losses[reach.losses :])
        return {*reach.absent, *self.absent(now)} | {
            column
            for column, place in enumerate(reach.zone.columns)
            if place != now.columns[column] or place[0] in lost
        }

    def present(self, zone: ZoneMap, column: int) -> Member | None:
        """The member that holds the column, whatever it lacks."""
        state = self.states.get(zone.columns[column][0])
        return state.member if state is not None and state.state == "online" else None

    # reading

    def read_run(
        self, zone: ZoneMap, column: int, row: int, crcs: Crcs, out: Cells, *, patient: bool = False
    ) -> Bools:
        """One contiguous read of len(crcs) cells into out (n, cell_bytes) uint8.

        Returns bool (n,): False where the member is lost, the cell unreadable or its CRC wrong, or
        (unless `patient`) the member is slow and the others are enough;
        what `out` holds there means nothing. Never raises for a member's faults.
        """
        return self.read_in_time(zone, column, row, crcs, out, patient=patient)[0]

    def read_in_time(
        self,
        zone: ZoneMap,
        column: int,
        row: int,
        crcs: Crcs,
        out: Cells,
        *,
        patient: bool = False,
        unless: Callable[[], bool] = lambda: False,
    ) -> tuple[Bools, bool]:
        """As `read_run`, and whether the member was too slow: then nothing is known of cells.
        `unless`: as in Patience.ask."""
        cells = len(crcs)
        assert out.shape == (cells, self.cell_bytes) and out.flags.c_contiguous
        assert row >= 0 and row + cells <= zone.rows
        try:
            good = self._read_cells(zone, column, row, out, patient, unless)
        except Late:
            return np.zeros(cells, dtype=np.bool_), True
        if not good.any():
            return good, False
        self._count(cells_read=int(good.sum()))
        matches: Bools = native.crc32c_cells(out) == crcs
        wrong = good & ~matches
        if wrong.any():
            count = int(wrong.sum())
            state = self.states[zone.columns[column][0]]
            with self._lock:
                state.checksum_errors += count
            self._tell("ChecksumError", zone, column, row + int(np.argmax(wrong)), count)
        good &= matches
        return good, False

    def read_cached(self, zone: ZoneMap, column: int, row: int, crcs: Crcs, out: Cells) -> bool:
        """As `read_run`, if all of it can be had without waiting and is as its CRCs say. Else
        False, nothing is counted, and `read_run` will tell."""
        member = self.around.readable(zone, column)
        if member is None:
            return False
        slot, offset = zone.columns[column][1], row * self.cell_bytes
        if not member.column_read_cached(zone.zone, column, slot, offset, out.data.cast("B")):
            return False
        if not np.array_equal(native.crc32c_cells(out), crcs):
            return False
        self._count(cells_read=len(crcs))
        return True

    def _read_cells(
        self,
        zone: ZoneMap,
        column: int,
        row: int,
        out: Cells,
        patient: bool,
        unless: Callable[[], bool],
    ) -> Bools:
        """bool (n,): what could be read. After an error of the whole, cell by cell. Late."""
        cells = len(out)
        good = np.zeros(cells, dtype=np.bool_)
        member = self.online(zone, column)
        if member is None or cells == 0:
            return good
        if not patient and self.around.readable(zone, column) is None:
            raise Late
        try:
            self.around.column_read(member, zone, column, row, out, patient, unless)
        except MemberError:
            pass
        else:
            good[:] = True
            return good
        error = ""
        for i in range(cells):
            try:
                self.around.column_read(
                    member, zone, column, row + i, out[i : i + 1], patient, unless
                )
                good[i] = True
            except MemberError as cause:
                error = str(cause)
        if not good.all():
            state = self.states[zone.columns[column][0]]
            with self._lock:
                state.read_errors += int((~good).sum())
            first, count = row + int(np.argmin(good)), int((~good).sum())
            self._tell("ReadError", zone, column, first, count, error)
        return good

    # rebuilding

    def rebuild_row(
        self, zone: ZoneMap, row: int, crcs: Crcs, present: Bools, wanted: Iterable[int]
    ) -> dict[int, Cells]:
        """The wanted columns' cells (cell_bytes,) of one row; crcs and present are (width,).

        Wanted cells count as bad. Raises Unrecoverable if they can't be had.
        """
        columns = sorted(set(wanted))
        mask = np.zeros((1, zone.code.width), dtype=np.bool_)
        mask[0, columns] = True
        cells, good = self.rebuild_rows(zone, row, crcs[None], present[None], mask)
        if not good[0]:
            raise Unrecoverable(
                f"zone {zone.zone:x} row {row}: columns {', '.join(map(str, columns))} are lost or "
                "damaged beyond what the rest of the row can rebuild"
            )
        return {column: cells[column][0] for column in columns}

    def rebuild_rows(
        self,
        zone: ZoneMap,
        row: int,
        crcs: Crcs,
        present: Bools,
        wanted: Bools,
        *,
        late: Collection[int] = (),
    ) -> tuple[dict[int, Cells], Bools]:
        """Rebuild cells of n consecutive rows; crcs, present and wanted are (n, width).

        Wanted cells count as bad and are not read; but those of columns that are shunned, or in
        `late` (those may be good, and are not healed), are waited for where they can't be rebuilt.
        Returns the content by column, uint8
        (n, cell_bytes), valid where wanted and the row is good, and bool (n,): rows rebuilt.
        """
        assert row >= 0 and row + len(wanted) <= zone.rows
        work = Rebuild(zone.code, crcs, present, wanted, self.cell_bytes)
        for column in range(zone.code.width):
            if self.online(zone, column) is None:
                work.lose(column)
        self._gather(work, zone, row, late)
        rebuilt = work.decode()
        while not work.solved.all() and self._wait_for_wanted(work, zone, row):
            self._gather(work, zone, row, late)
            rebuilt |= work.decode()
        done = int(rebuilt.sum())
        lost = int((~work.solved).sum())
        self._count(cells_rebuilt=done, rows_unrecoverable=lost)
        if lost:
            first = row + int(np.argmin(work.solved))
            text = f"zone {zone.zone:x} row {first} ({lost} rows)"
            self._on_event("Unrecoverable", NO_MEMBER, text)
        if self._heal:
            bad = {c: cells for c, cells in work.content.items() if c not in late}
            self._write_back(zone, row, bad, rebuilt)
        return work.content, work.solved

    def _gather(self, work: Rebuild, zone: ZoneMap, row: int, late: Collection[int]) -> None:
        """Read what rebuilding takes. Who is shunned is asked again each time, as it changes."""
        waiting = set(late)  # wanted only for being late
        while True:
            shunned = self.around.shunned(zone)
            for column in waiting - shunned:
                self._try_wanted(work, zone, row, column, patient=False)
            waiting &= shunned
            work.shunned = {*late, *shunned}
            work.slowest_last = self.around.slowest_last(zone, work.shunned)
            needed = work.cells_to_read()
            if not needed:
                break
            fetch = functools.partial(self._fetch, work, zone, row, shunned)
            for job in [self._pool.submit(fetch, *job) for job in needed]:
                job.result()

    def _fetch(
        self,
        work: Rebuild,
        zone: ZoneMap,
        row: int,
        shunned: frozenset[int],
        column: int,
        first: int,
        last: int,
    ) -> None:
        """Read rows first..last-1 of one column; jobs that run together share no cell. A column
        that is shunned is waited for, as long as nobody else is, or is no more: what it is asked
        for is had in no other way."""
        crcs = np.ascontiguousarray(work.crcs[first:last, column])
        good, late = self.read_in_time(
            zone,
            column,
            row + first,
            crcs,
            work.content[column][first:last],
            patient=column in work.shunned,
            unless=lambda: self.around.shunned(zone) != shunned,
        )
        if not late:
            work.tried(column, first, last, good)

    def _try_wanted(
        self, work: Rebuild, zone: ZoneMap, row: int, column: int, *, patient: bool
    ) -> bool:
        """Wanted cells of rows that were not rebuilt: they may be good, and were not read for being
        late alone. Whether any is."""
        found = False
        for first, last in runs(work.wanted[:, column] & ~work.solved):
            crcs = np.ascontiguousarray(work.crcs[first:last, column])
            out = work.content[column][first:last]
            good = self.read_run(zone, column, row + first, crcs, out, patient=patient)
            work.found(column, first, last, good)
            found = found or bool(good.any())
        return found

    def _wait_for_wanted(self, work: Rebuild, zone: ZoneMap, row: int) -> bool:
        """Of one column after the other that is shunned, until one has some."""
        columns = self.around.slowest_last(zone, work.shunned)
        return any(self._try_wanted(work, zone, row, c, patient=True) for c in columns)

    def _write_back(
        self, zone: ZoneMap, row: int, content: dict[int, Cells], rebuilt: Bools
    ) -> None:
        for column, cells in content.items():
            member = self.online(zone, column)
            if member is None or member.read_only:
                continue
            member_id, slot = zone.columns[column]
            state = self.states[member_id]
            for first, last in runs(rebuilt[:, column]):
                addresses = addresses_of(cells[first:last])
                offset = (row + first) * self.cell_bytes
                try:
                    member.column_write(zone.zone, column, slot, offset, addresses, self.cell_bytes)
                except MemberError as error:
                    with self._lock:
                        state.write_errors += 1
                    self._tell("WriteError", zone, column, row + first, last - first, str(error))
                    continue
                with self._lock:
                    state.healed += last - first
                self._count(cells_healed=last - first)
                self._tell("Healed", zone, column, row + first, last - first)

    # writing

    def write_burst(
        self,
        zone: ZoneMap,
        row: int,
        rows: int,
        data_addresses: npt.NDArray[np.uint64],
        parity: Cells,
        present: Bools,
        *,
        sync: bool = True,
    ) -> set[int]:
        """Write `rows` rows from `row` on and (unless sync is False) sync them.

        data_addresses uint64 (k, rows), parity uint8 (m, rows, cell_bytes), present bool
        (width, rows). Returns the ids of members that failed; lost members are left out silently.
        """
        code = zone.code
        assert data_addresses.shape == (code.k, rows)
        assert parity.shape == (code.m, rows, self.cell_bytes) and parity.flags.c_contiguous
        assert present.shape == (code.width, rows)
        assert row >= 0 and row + rows <= zone.rows

        def write(column: int) -> None:
            member = self.online(zone, column)
            if member is None:
                return
            slot = zone.columns[column][1]
            if column < code.k:
                addresses = data_addresses[column]
            else:
                addresses = addresses_of(parity[column - code.k])
            for first, last in runs(present[column]):
                offset = (row + first) * self.cell_bytes
                part = np.ascontiguousarray(addresses[first:last])
                assert part.all(), "a present cell without content"
                member.column_write(zone.zone, column, slot, offset, part, self.cell_bytes)
                self._count(cells_written=last - first)
            if sync and present[column].any():
                member.column_sync(zone.zone, column, slot)

        return self._on_columns(zone, range(code.width), write)

    def sync_zone(self, zone: ZoneMap) -> set[int]:
        """Sync all columns of a zone; the ids of members that failed."""

        def sync(column: int) -> None:
            member = self.online(zone, column)
            if member is not None:
                member.column_sync(zone.zone, column, zone.columns[column][1])

        return self._on_columns(zone, range(zone.code.width), sync)

    def create_zone(self, zone: ZoneMap) -> dict[int, MemberError]:
        """Make room for all columns, durably. Returns what went wrong by member id; if anything
        did, no column is left behind on the others."""
        errors: dict[int, MemberError] = {}
        nbytes = zone.rows * self.cell_bytes

        def create(column: int) -> None:
            member = self.online(zone, column)
            if member is None:
                return  # a zone that is written degraded from the start
            member_id, slot = zone.columns[column]
            try:
                member.column_create(zone.zone, column, slot, nbytes)
            except MemberError as error:
                errors[member_id] = error

        list(self._pool.map(create, range(zone.code.width)))
        if errors:
            self.remove_zone(zone)
        return errors

    def remove_zone(self, zone: ZoneMap) -> set[int]:
        """Give the columns' room back; the ids of members that failed."""

        def remove(column: int) -> None:
            member = self.present(zone, column)
            if member is not None:
                member.column_remove(zone.zone, column, zone.columns[column][1])

        return self._on_columns(zone, range(zone.code.width), remove)

    def _on_columns(
        self, zone: ZoneMap, columns: Sequence[int], work: Callable[[int], None]
    ) -> set[int]:
        """Do it for each column, in parallel; count and tell errors; ids of failed members."""

        def guarded(column: int) -> int | None:
            try:
                work(column)
            except MemberError as error:
                return self.write_failed(zone, column, error)
            return None

        failed = self._pool.map(guarded, columns)
        return {member_id for member_id in failed if member_id is not None}

    def write_failed(self, zone: ZoneMap, column: int, error: MemberError) -> int:
        """Count and tell what new data met; the id of the member."""
        member_id = zone.columns[column][0]
        with self._lock:
            self.states[member_id].write_errors += 1
            self.states[member_id].write_error = str(error)
        self._on_event("WriteError", member_id, str(error))
        return member_id

    def wrote(self, cells: int) -> None:
        self._count(cells_written=cells)

    def remade(self, cells_read: int, cells_rebuilt: int) -> None:
        self._count(cells_read=cells_read, cells_rebuilt=cells_rebuilt)

    def side_by_side(self, work: Callable[[int], None], columns: Iterable[int]) -> None:
        """Do it for each column, in threads."""
        list(self._pool.map(work, columns))

    def gave_up(self, zone: ZoneMap, row: int, rows: int) -> None:
        """So many rows, `row` the first of them, are beyond redundancy, as somebody found out."""
        self._count(rows_unrecoverable=rows)
        self._on_event("Unrecoverable", NO_MEMBER, f"zone {zone.zone:x} row {row} ({rows} rows)")

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def _tell(
        self, name: str, zone: ZoneMap, column: int, row: int, cells: int, why: str = ""
    ) -> None:
        text = f"zone {zone.zone:x} column {column} row {row} ({cells} cells)"
        self._on_event(name, zone.columns[column][0], f"{text}: {why}" if why else text)


def addresses_of(cells: Cells) -> npt.NDArray[np.uint64]:
    """Where the cells of a C-contiguous (n, cell_bytes) array lie in memory."""
    assert cells.ndim == 2 and cells.flags.c_contiguous
    start = np.uint64(cells.ctypes.data)
    return start + np.arange(len(cells), dtype=np.uint64) * np.uint64(cells.shape[1])
