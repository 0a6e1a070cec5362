"""What memory knows of files that is newer than what lies on the members: sizes, times, pages.

A thin skin over csrc/pages.c, where the words (resident, generation, layer, cell, mark, cut, base,
lane, credit), the invariants and the lookup rule stand. The C threads of the lane use calls of
their own on the same files, at any time: what a call told may be out of date at the next one.

 1. Any thread may call anything at any time; no call waits for more than the others' copying.
 2. No Python loop per page: what is many goes in and out as numpy arrays.
 3. A mistake of the caller (a generation retired out of order, a range beyond 2**63 - 1) is an
    assertion and has changed nothing; a file that isn't resident is a KeyError; a base that is
    needed, perhaps only since the lane wrote, and wasn't given is BaseNeeded.
 4. A sealed generation doesn't change: addresses from `sealed_cells` hold the same bytes until
    `retire`, whatever is written meanwhile.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from raidfs._native import ffi, lib

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Buffer = bytes | bytearray | memoryview | NDArray[Any]

LEAF_PAGES = 256
CELL_BYTES_MIN, CELL_BYTES_MAX = 4096, 65536
FILE_BYTES_MAX = 2**63 - 1
SERVE_READS, SERVE_WRITES, NO_ATIME = lib.RF_SERVE_READS, lib.RF_SERVE_WRITES, lib.RF_NO_ATIME
PAGE_ZERO, PAGE_CELL = lib.RF_PAGE_ZERO, lib.RF_PAGE_CELL
PAGE_SHARED, PAGE_LEAF = lib.RF_PAGE_SHARED, lib.RF_PAGE_LEAF
MARKS_AT_ONCE: int = lib.RF_MARKS_AT_ONCE


class BaseNeeded(Exception):
    """A write or truncate needs the base of a page and wasn't given it; nothing has changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """A generation just sealed: the files it dirtied, in the order of their first change in it."""

    generation: int
    inos: U64
    sizes: I64
    mtimes: I64
    ctimes: I64
    atimes: I64


@dataclass(frozen=True, slots=True)
class PagesStatistics:
    """One look at all the counters, taken together."""

    generation: int
    generations_sealed: int
    resident: int
    open_files: int
    open_cells: int
    dirty_cells: int
    marks: int
    credits: int
    lane_files: int
    table_bytes: int
    layer_bytes: int
    cell_pool_bytes: int
    cell_pool_free_bytes: int
    leaves: int
    leaf_bytes: int
    leaf_hits: int
    leaf_misses: int


def _failed(result: int, ino: int) -> NoReturn:
    if result == -errno.ENOENT:
        raise KeyError(ino)
    if result == -errno.ENOMEM:
        raise MemoryError
    if result == -errno.EAGAIN:
        raise BaseNeeded(ino)
    reason = {
        -errno.ESTALE: "the file was dropped",
        -errno.EINVAL: "an argument makes no sense",
    }
    raise AssertionError(f"pages, inode {ino}: {reason.get(result, result)}")


def _u64(count: int) -> U64:
    return np.empty(count, np.uint64)


_NONE = _u64(0)


def _indexes(at: Any, count: int) -> U64:
    """The first of the indexes that a call left `at`; mostly there are none."""
    return np.frombuffer(ffi.buffer(at, count * 8), np.uint64) if count else _NONE


class Pages:
    """The resident files of one volume. `generation` is the open one, equal to the open epoch."""

    def __init__(
        self,
        cell_bytes: int,
        leaf_bytes_max: int = 32 << 20,
        generation: int = 1,
        *,
        pool_bytes_kept: int = 64 << 20,
    ) -> None:
        """`pool_bytes_kept`: memory of freed cells kept for the next ones, not given back."""
        assert CELL_BYTES_MIN <= cell_bytes <= CELL_BYTES_MAX
        assert cell_bytes & (cell_bytes - 1) == 0, cell_bytes
        pages = lib.rf_pages_new(cell_bytes, leaf_bytes_max, pool_bytes_kept, generation)
        if not pages:
            raise MemoryError
        self._pages = ffi.gc(pages, lib.rf_pages_free)
        self.cell_bytes = cell_bytes

    def keep(self, pool_bytes_kept: int) -> None:
        """Another value for `pool_bytes_kept`; what is too much then goes back at once."""
        lib.rf_pages_keep(self._pages, pool_bytes_kept)

    @property
    def handle(self) -> Any:
        """The `struct rf_pages *`, for C threads; keep this object as long as they use it."""
        return self._pages

    # ---- files ----

    def load(self, ino: int, size: int, mtime_ns: int, ctime_ns: int, atime_ns: int) -> None:
        """Makes a file resident; one that is resident stays as it is."""
        result = lib.rf_pages_load(self._pages, ino, size, mtime_ns, ctime_ns, atime_ns)
        if result < 0:
            _failed(result, ino)

    def resident(self, ino: int) -> bool:
        return bool(lib.rf_pages_resident(self._pages, ino))

    def evict(self, ino: int) -> bool:
        """Forgets a file and its leaves. False, and kept: a generation still needs it."""
        return bool(lib.rf_pages_evict(self._pages, ino))

    def drop(self, ino: int) -> None:
        """The file is gone for good: no later `seal` reports it, its open cells are freed, a cut at
        0 is recorded. It needn't be resident. With its last generation it is forgotten."""
        result = lib.rf_pages_drop(self._pages, ino)
        if result < 0:
            _failed(result, ino)

    def attributes(self, ino: int) -> tuple[int, int, int, int]:
        """Size, mtime_ns, ctime_ns, atime_ns."""
        out = ffi.new("struct rf_attributes *")
        result = lib.rf_pages_attributes(self._pages, ino, out)
        if result < 0:
            _failed(result, ino)
        return out.size, out.mtime_ns, out.ctime_ns, out.atime_ns

    def cells(self, ino: int) -> int:
        """Cells of the file in memory, in all generations, and those on the members that its pages
        came to share; 0 if it isn't resident."""
        return int(lib.rf_pages_cells(self._pages, ino))

    def set_times(
        self, ino: int, mtime_ns: int | None, ctime_ns: int | None, atime_ns: int | None = None
    ) -> None:
        """None leaves a time as it is. The next seal reports the file, unless all are None."""
        times = [
            ffi.NULL if time_ns is None else ffi.new("int64_t *", time_ns)
            for time_ns in (mtime_ns, ctime_ns, atime_ns)
        ]
        result = lib.rf_pages_set_times(self._pages, ino, *times)
        if result < 0:
            _failed(result, ino)

    # ---- pages ----

    def cost(self, ino: int, offset: int, nbytes: int) -> int:
        """How many cells `write` would add to the open generation."""
        result: int = lib.rf_pages_cost(self._pages, ino, offset, nbytes)
        if result < 0:
            _failed(result, ino)
        return result

    def missing(self, ino: int, offset: int, nbytes: int) -> U64:
        """The pages (0 to 2, ascending) whose base `write` needs."""
        at = ffi.new("uint64_t[2]")
        result = lib.rf_pages_missing(self._pages, ino, offset, nbytes, at)
        if result < 0:
            _failed(result, ino)
        return _indexes(at, result)

    def write(
        self,
        ino: int,
        offset: int,
        data: Buffer,
        now_ns: int,
        bases: dict[int, bytes] | None = None,
    ) -> int:
        """Into the open generation; returns how many cells that added to it. `bases` holds what
        `missing` named (more does no harm), each of cell_bytes; BaseNeeded if that isn't enough.
        Nothing happens for empty data."""
        source = ffi.from_buffer("uint8_t[]", data)
        if bases:
            keep = {index: ffi.from_buffer("uint8_t[]", base) for index, base in bases.items()}
            assert all(len(base) == self.cell_bytes for base in keep.values())
            array = ffi.new("struct rf_base[]", [(*item, 0) for item in keep.items()])
        else:
            array = ffi.NULL
        result: int = lib.rf_pages_write(
            self._pages, ino, offset, source, len(source), now_ns, array, len(bases or ())
        )
        if result < 0:
            _failed(result, ino)
        return result

    def read(self, ino: int, offset: int, out: Buffer) -> tuple[U64, U64]:
        """Fills what memory knows of [offset, offset + len(out)); returns the pages, ascending,
        that must come from elsewhere, and of each the cell that it shares (0: as its leaf says);
        their parts of `out` are untouched. The caller clips to the size; beyond it are zeros."""
        target = ffi.from_buffer("uint8_t[]", out, require_writable=True)
        nbytes = len(target)
        room = nbytes // self.cell_bytes + 2
        at = ffi.new("uint64_t[]", 2 * room)
        addresses = at + room
        result = lib.rf_pages_read(self._pages, ino, offset, target, nbytes, at, addresses, room)
        if result < 0:
            _failed(result, ino)
        if not result:
            return _NONE, _NONE
        both = np.frombuffer(ffi.buffer(at), np.uint64)
        return both[:result], both[room : room + result]

    def truncate(self, ino: int, size: int, now_ns: int, base: bytes | None = None) -> int:
        """Sets the size; returns by how many cells the open generation changed: at most 1 more, or
        less by those cut off. `base` is the content of the page that `missing_tail` named;
        BaseNeeded if it is None and shouldn't be."""
        assert base is None or len(base) == self.cell_bytes
        change = ffi.new("int64_t *")
        at = ffi.NULL if base is None else ffi.from_buffer("uint8_t[]", base)
        result = lib.rf_pages_truncate(self._pages, ino, size, now_ns, at, change)
        if result < 0:
            _failed(result, ino)
        cells: int = change[0]
        return cells

    def missing_tail(self, ino: int, size: int) -> int | None:
        """The page whose base a truncate to `size` needs."""
        index = ffi.new("uint64_t *")
        result = lib.rf_pages_missing_tail(self._pages, ino, size, index)
        if result < 0:
            _failed(result, ino)
        return index[0] if result else None

    # ---- marks ----

    def punch(self, ino: int, first_page: int, count: int, now_ns: int) -> int:
        """Whole pages become holes, those that begin below the size; returns the change of open
        cells (<= 0). O(count)."""
        change = 0
        for first in range(first_page, first_page + count, MARKS_AT_ONCE):
            pages = min(MARKS_AT_ONCE, first_page + count - first)
            result = lib.rf_pages_punch(self._pages, ino, first, pages, now_ns)
            if result < 0:
                _failed(result, ino)
            change -= result
        return change

    def share(self, ino: int, first_page: int, addresses: U64, size: int, now_ns: int) -> int:
        """Whole pages, at most MARKS_AT_ONCE, become those cells on the members (0: holes); the
        file grows to `size` if it is smaller, and all must begin below that. Returns the change of
        open cells (<= 0). The caller sees to it that a cell holds zeros where its page lies beyond
        the size, and stays on the members until the open generation is retired."""
        assert addresses.dtype == np.uint64 and len(addresses) <= MARKS_AT_ONCE
        at = ffi.from_buffer("uint64_t[]", np.ascontiguousarray(addresses))
        result = lib.rf_pages_share(self._pages, ino, first_page, at, len(addresses), size, now_ns)
        if result < 0:
            _failed(result, ino)
        return -int(result)

    def map(self, ino: int, first_page: int, count: int) -> tuple[NDArray[np.uint8], U64]:
        """What memory knows of each page: PAGE_ZERO, PAGE_CELL, PAGE_SHARED (and the address of
        the cell on the members; else 0), or PAGE_LEAF: its leaf says."""
        kinds, addresses = np.empty(count, np.uint8), _u64(count)
        result = lib.rf_pages_map(
            self._pages,
            ino,
            first_page,
            count,
            ffi.from_buffer("uint8_t[]", kinds),
            ffi.from_buffer("uint64_t[]", addresses),
        )
        if result < 0:
            _failed(result, ino)
        return kinds, addresses

    def next_entry(self, ino: int, first_page: int) -> int | None:
        """The lowest page from there up that has a cell or mark in some layer; `map` tells whether
        a later cut hides it."""
        index = ffi.new("uint64_t *")
        return index[0] if lib.rf_pages_next_entry(self._pages, ino, first_page, index) else None

    # ---- the lane ----

    def vouch(self, ino: int, flags: int) -> None:
        """What C threads may do with the file from now on without asking: SERVE_READS,
        SERVE_WRITES; NO_ATIME: their reads leave atime alone. 0 takes it back; when this returns,
        none of them is within such a call any more."""
        result = lib.rf_pages_vouch(self._pages, ino, flags)
        if result < 0:
            _failed(result, ino)

    def serve(self, flags: int) -> None:
        """What C threads may do at all: SERVE_READS | SERVE_WRITES at first."""
        lib.rf_pages_serve(self._pages, flags)

    def grant(self, cells: int) -> None:
        """C threads may make so many more cells dirty. Room for each is promised."""
        lib.rf_pages_grant(self._pages, cells)

    def take_back(self, cells_max: int) -> int:
        """How many of the granted cells were still unspent and are taken back."""
        cells: int = lib.rf_pages_take_back(self._pages, cells_max)
        return cells

    def claims(self) -> tuple[int, int]:
        """(dirty cells, credits not yet spent), of one moment."""
        both = ffi.new("uint64_t[2]")
        lib.rf_pages_claims(self._pages, both, both + 1)
        return both[0], both[1]

    def allow_files(self, files_max: int) -> None:
        """How many files C threads may dirty first in each generation."""
        lib.rf_pages_allow_files(self._pages, files_max)

    # ---- generations ----

    @property
    def generation(self) -> int:
        number: int = lib.rf_pages_generation(self._pages)
        return number

    @property
    def open_cells(self) -> int:
        cells: int = lib.rf_pages_open_cells(self._pages)
        return cells

    @property
    def open_files(self) -> int:
        """How many files the open generation has dirtied."""
        files: int = lib.rf_pages_open_files(self._pages)
        return files

    @property
    def dirty_cells(self) -> int:
        """Of the open generation and of the sealed ones."""
        cells: int = lib.rf_pages_dirty_cells(self._pages)
        return cells

    def seal(self) -> Sealed:
        """Closes the open generation and opens the next one, in one step for all other threads."""
        sealed = ffi.new("uint64_t *")
        while True:
            room = lib.rf_pages_open_files(self._pages) + 16  # other threads go on dirtying
            inos, columns = _u64(room), np.empty((4, room), np.int64)
            at = ffi.from_buffer("int64_t[]", columns)
            files = lib.rf_pages_seal(
                self._pages,
                room,
                ffi.from_buffer("uint64_t[]", inos),
                *(at + number * room for number in range(4)),
                sealed,
            )
            if files >= 0:
                break
            if files != -errno.EAGAIN:
                _failed(files, 0)
        return Sealed(sealed[0], inos[:files], *(column[:files] for column in columns))

    def _sealed_counts(self, generation: int) -> tuple[int, int, int]:
        """(cells, cuts, marks)"""
        counts = ffi.new("uint64_t[3]")
        at = (counts, counts + 1, counts + 2)
        result = lib.rf_pages_sealed_counts(self._pages, generation, *at)
        assert result == 0, f"generation {generation} is not sealed"
        return counts[0], counts[1], counts[2]

    def sealed_cells(self, generation: int) -> tuple[U64, U64, U64]:
        """Inos, page indexes and addresses in memory of its cells, sorted by (ino, index). Only by
        whoever retires it."""
        cells = self._sealed_counts(generation)[0]
        arrays = _u64(cells), _u64(cells), _u64(cells)
        places = [ffi.from_buffer("uint64_t[]", array) for array in arrays]
        result = lib.rf_pages_sealed_cells(self._pages, generation, *places)
        if result < 0:
            _failed(result, 0)
        return arrays

    def sealed_cuts(self, generation: int) -> tuple[U64, U64]:
        """Inos, ascending, and first pages: from there up, what is older is holes. Apply the cuts
        of a generation before its cells and marks."""
        cuts = self._sealed_counts(generation)[1]
        if not cuts:
            return _NONE, _NONE
        arrays = _u64(cuts), _u64(cuts)
        places = [ffi.from_buffer("uint64_t[]", array) for array in arrays]
        result = lib.rf_pages_sealed_cuts(self._pages, generation, *places)
        if result < 0:
            _failed(result, 0)
        return arrays

    def sealed_marks(self, generation: int) -> tuple[U64, U64, U64]:
        """Inos, page indexes and addresses of the cells on the members that these pages now have
        in common with others (0: the page is a hole), sorted by (ino, index). No page is among
        both the marks and the cells of a generation."""
        marks = self._sealed_counts(generation)[2]
        if not marks:
            return _NONE, _NONE, _NONE
        arrays = _u64(marks), _u64(marks), _u64(marks)
        places = [ffi.from_buffer("uint64_t[]", array) for array in arrays]
        result = lib.rf_pages_sealed_marks(self._pages, generation, *places)
        if result < 0:
            _failed(result, 0)
        return arrays

    def retire(self, generation: int) -> None:
        """Drops cells, marks and cuts of the oldest sealed generation: the leaves now say so."""
        result = lib.rf_pages_retire(self._pages, generation)
        assert result == 0, f"generation {generation} is not the oldest sealed one"

    # ---- leaves ----

    def leaf(self, ino: int, number: int) -> U64 | None:
        """A copy of the addresses of pages [256 * number, + 256), or None: not cached."""
        addresses = _u64(LEAF_PAGES)
        at = ffi.from_buffer("uint64_t[]", addresses)
        return addresses if lib.rf_pages_leaf(self._pages, ino, number, at) else None

    def leaf_put(self, ino: int, number: int, addresses: U64) -> None:
        assert addresses.shape == (LEAF_PAGES,) and addresses.dtype == np.uint64
        at = ffi.from_buffer("uint64_t[]", np.ascontiguousarray(addresses))
        result = lib.rf_pages_leaf_put(self._pages, ino, number, at)
        if result < 0:
            _failed(result, ino)

    def leaf_forget(self, ino: int, first_number: int = 0) -> None:
        lib.rf_pages_leaf_forget(self._pages, ino, first_number)

    def leaf_lookup(self, ino: int, indexes: U64) -> tuple[U64, NDArray[np.bool_]]:
        """For each page its address (0: a hole), and whether its leaf is cached (if not: 0)."""
        count = len(indexes)
        assert indexes.dtype == np.uint64
        addresses = _u64(count)
        known = np.empty(count, np.bool_)
        lib.rf_pages_leaf_lookup(
            self._pages,
            ino,
            ffi.from_buffer("uint64_t[]", np.ascontiguousarray(indexes)),
            count,
            ffi.from_buffer("uint64_t[]", addresses),
            ffi.from_buffer("uint8_t[]", known),
        )
        return addresses, known

    def statistics(self) -> PagesStatistics:
        out = ffi.new("struct rf_pages_statistics *")
        lib.rf_pages_statistics(self._pages, out)
        return PagesStatistics(*(getattr(out, name) for name in PagesStatistics.__slots__))
