"""The promises and edges of raidfs/pages.py, one by one; test_1_pages_model.py walks at random."""

import errno
import gc
import os
import random
import threading
import time
from pathlib import Path

import lane_calls
import numpy as np
import pytest

from raidfs.pages import (
    FILE_BYTES_MAX,
    LEAF_PAGES,
    MARKS_AT_ONCE,
    PAGE_CELL,
    PAGE_LEAF,
    PAGE_SHARED,
    PAGE_ZERO,
    SERVE_READS,
    SERVE_WRITES,
    BaseNeeded,
    Pages,
)

ROOT = Path(__file__).resolve().parent.parent
CELL_SIZES = (4096, 8192, 16384, 32768, 65536)


def bytes_at(address, nbytes):
    from raidfs._native import ffi

    return bytes(ffi.buffer(ffi.cast("char *", int(address)), nbytes))


def resident(size=0, cell=4096, **more):
    pages = Pages(cell, **more)
    pages.load(5, size, 1, 2, 3)
    return pages


def flush(pages, members, ino=5):
    """Seals and retires everything; `members` gets the pages of one file."""
    generation = pages.seal().generation
    for own, first in zip(*(a.tolist() for a in pages.sealed_cuts(generation)), strict=True):
        for index in [i for i in members if own == ino and i >= first]:
            del members[index]
    for own, index, address in zip(*pages.sealed_cells(generation), strict=True):
        if own == ino:
            members[int(index)] = bytes_at(address, pages.cell_bytes)
    pages.retire(generation)


def test_a_file_that_is_not_resident_is_a_key_error():
    pages = Pages(4096)
    for call in (
        lambda: pages.attributes(5),
        lambda: pages.set_times(5, 1, 1),
        lambda: pages.cost(5, 0, 1),
        lambda: pages.missing(5, 0, 1),
        lambda: pages.write(5, 0, b"x", 1),
        lambda: pages.read(5, 0, bytearray(1)),
        lambda: pages.truncate(5, 0, 1),
        lambda: pages.missing_tail(5, 0),
        lambda: pages.punch(5, 0, 1, 1),
        lambda: pages.share(5, 0, np.ones(1, np.uint64), 1, 1),
        lambda: pages.map(5, 0, 1),
        lambda: pages.vouch(5, 1),
    ):
        with pytest.raises(KeyError):
            call()
    assert pages.evict(5) and not pages.resident(5)


def test_load_leaves_a_resident_file_as_it_is():
    pages = resident(100)
    pages.load(5, 7, 8, 9, 10)
    assert pages.attributes(5) == (100, 1, 2, 3)


@pytest.mark.parametrize("cell", [0, 1, 2048, 4095, 5000, 131072, -4096])
def test_cell_sizes_that_make_no_sense_are_refused(cell):
    with pytest.raises(AssertionError):
        Pages(cell)


def test_ranges_beyond_the_largest_file_are_refused():
    pages = resident()
    for offset, nbytes in ((FILE_BYTES_MAX, 1), (FILE_BYTES_MAX + 1, 0), (2**64 - 1, 2)):
        for call in (pages.cost, pages.missing):
            with pytest.raises(AssertionError):
                call(5, offset, nbytes)
        with pytest.raises(AssertionError):
            pages.write(5, offset, b"x" * nbytes, 1)
        with pytest.raises(AssertionError):
            pages.read(5, offset, bytearray(nbytes))
    with pytest.raises(AssertionError):
        pages.truncate(5, FILE_BYTES_MAX + 1, 1)
    with pytest.raises(AssertionError):
        pages.load(0, 0, 0, 0, 0)
    with pytest.raises(AssertionError):
        pages.load(6, FILE_BYTES_MAX + 1, 0, 0, 0)
    assert pages.attributes(5) == (0, 1, 2, 3)
    assert pages.write(5, FILE_BYTES_MAX - 1, b"x", 3) == 1
    assert pages.attributes(5) == (FILE_BYTES_MAX, 3, 3, 3)


@pytest.mark.parametrize("cell", CELL_SIZES)
def test_the_largest_sparse_file(cell):
    pages, members = resident(cell=cell), {}
    pages.truncate(5, FILE_BYTES_MAX, 1)
    last = FILE_BYTES_MAX // cell
    assert pages.missing(5, FILE_BYTES_MAX - 3, 3).tolist() == [last]
    pages.write(5, FILE_BYTES_MAX - 3, b"end", 1, {last: bytes(cell)})
    flush(pages, members)
    assert members == {last: bytes(cell - 4) + b"end\0"}
    started = time.perf_counter()
    pages.truncate(5, 1, 2, bytes(cell))
    pages.truncate(5, FILE_BYTES_MAX, 3)
    assert time.perf_counter() - started < 0.1
    out = bytearray(b"x" * 10)
    assert not pages.read(5, FILE_BYTES_MAX - 10, out)[0].size
    assert out == bytes(10)
    flush(pages, members)
    assert not members


def test_what_a_write_covers_needs_no_base():
    pages = resident(10_000)
    assert pages.missing(5, 0, 4096).tolist() == []
    assert pages.missing(5, 1, 4096).tolist() == [0, 1]
    assert pages.missing(5, 0, 4095).tolist() == [0]
    assert pages.missing(5, 8192, 1808).tolist() == []  # to the end of the file
    assert pages.missing(5, 8192, 1807).tolist() == [2]
    assert pages.missing(5, 8193, 1807).tolist() == [2]
    assert pages.missing(5, 10_000, 1).tolist() == [2]  # the last page is kept
    assert pages.missing(5, 12_288, 1).tolist() == []  # beyond it nothing is
    assert pages.missing(5, 0, 0).tolist() == []


def test_rubbish_of_a_base_beyond_the_size_stays_out():
    pages, out = resident(100), bytearray(4096)
    pages.write(5, 200, b"x", 1, {0: b"r" * 4096})
    pages.truncate(5, 4096, 2)
    assert not pages.read(5, 0, out)[0].size
    assert out == b"r" * 100 + bytes(100) + b"x" + bytes(4096 - 201)


def test_a_hole_cut_in_two_costs_no_cell():
    pages = resident(10_000)
    assert pages.missing_tail(5, 5000) == 1
    assert pages.truncate(5, 5000, 3, bytes(4096)) == 0
    assert pages.missing_tail(5, 5000) is None and pages.missing_tail(5, 9000) is None
    assert pages.attributes(5) == (5000, 3, 3, 3)
    sealed = pages.seal()
    assert sealed.sizes.tolist() == [5000]
    assert [a.tolist() for a in pages.sealed_cuts(1)] == [[5], [2]]


def test_a_sealed_cell_keeps_address_and_content():
    pages = resident()
    pages.write(5, 0, b"a" * 10_000, 1)
    pages.seal()
    before = pages.sealed_cells(1)
    contents = [bytes_at(address, 4096) for address in before[2]]
    pages.write(5, 100, b"b" * 5000, 2)
    pages.truncate(5, 50, 3)
    pages.seal()
    pages.drop(5)
    after = pages.sealed_cells(1)
    assert [a.tolist() for a in after] == [a.tolist() for a in before]
    assert [bytes_at(address, 4096) for address in after[2]] == contents
    assert bytes_at(pages.sealed_cells(2)[2][0], 4096) == b"a" * 50 + bytes(4046)


def test_only_the_oldest_sealed_generation_retires():
    pages = Pages(4096, generation=40)
    with pytest.raises(AssertionError):
        pages.retire(40)
    assert [pages.seal().generation for _ in range(3)] == [40, 41, 42]
    for wrong in (39, 41, 43):
        with pytest.raises(AssertionError):
            pages.retire(wrong)
    for generation in (40, 41, 42):
        assert [a.size for a in pages.sealed_cells(generation)] == [0, 0, 0]
        assert [a.size for a in pages.sealed_marks(generation)] == [0, 0, 0]
        pages.retire(generation)
        calls = (pages.retire, pages.sealed_cells, pages.sealed_marks, pages.sealed_cuts)
        for call in calls:
            with pytest.raises(AssertionError):
                call(generation)
    assert pages.generation == 43


def test_a_seal_reports_attributes_as_of_then():
    pages = resident(10)
    pages.set_times(5, None, None)
    assert not pages.seal().inos.size  # nothing was changed
    pages.set_times(5, None, 33, 34)
    assert not pages.evict(5)
    sealed = pages.seal()
    pages.write(5, 0, b"x" * 20, 44)
    assert (sealed.inos.tolist(), sealed.sizes.tolist()) == ([5], [10])
    assert (sealed.mtimes.tolist(), sealed.ctimes.tolist()) == ([1], [33])
    assert sealed.atimes.tolist() == [34]
    assert pages.seal().sizes.tolist() == [20]
    for generation in (1, 2, 3):
        pages.retire(generation)
    assert pages.evict(5)


def test_a_dropped_file_goes_with_its_last_generation():
    pages = resident()
    pages.write(5, 0, b"x" * 5000, 1)
    pages.leaf_put(5, 0, np.ones(LEAF_PAGES, np.uint64))
    pages.seal()
    pages.write(5, 0, b"y", 1)
    pages.drop(5)
    pages.drop(5)
    pages.drop(6)  # never loaded: its leaves are to go, too
    assert pages.open_cells == 0 and pages.dirty_cells == 2
    assert not pages.evict(5)
    assert not pages.seal().inos.size
    assert [a.tolist() for a in pages.sealed_cuts(2)] == [[5, 6], [0, 0]]
    pages.retire(1)
    assert pages.resident(5) and pages.leaf(5, 0) is not None
    pages.retire(2)
    assert not pages.resident(5) and not pages.resident(6) and pages.leaf(5, 0) is None


def test_buffers_of_any_kind():
    pages, out = resident(), np.zeros((2, 4096), np.uint8)
    array = np.arange(2048, dtype=np.uint32)
    for data in (array, array.tobytes(), bytearray(array), memoryview(array.tobytes())):
        pages.truncate(5, 0, 1)
        pages.write(5, 0, data, 1)
        assert not pages.read(5, 0, out)[0].size
        assert (out.reshape(-1).view(np.uint32) == array).all()
        out[:] = 0
    assert not pages.read(5, 4, memoryview(out).cast("B")[3:11])[0].size
    assert out.reshape(-1)[3:11].tolist() == [1, 0, 0, 0, 2, 0, 0, 0]
    with pytest.raises((BufferError, TypeError, ValueError)):
        pages.read(5, 0, b"read-only")
    with pytest.raises((BufferError, TypeError, ValueError)):
        pages.write(5, 0, np.zeros((8, 8))[:, 2], 1)
    with pytest.raises(AssertionError):
        pages.truncate(5, 1, 1, b"short")


def test_many_cells_of_one_file_and_truncates_of_it():
    rng, pages, cells = random.Random(3), resident(), {}
    for size in (2**40, 2**34, 2**33, 2**32 + 1, 4097 * 4096, 4000 * 4096, 3999 * 4096, 1, 0):
        for _ in range(1500):
            index = rng.choice((rng.randrange(5000), rng.randrange(2**29)))
            cells[index] = rng.randbytes(4) * 1024
            pages.write(5, index * 4096, cells[index], 1)
        assert pages.open_cells == len(cells)
        needed = pages.missing_tail(5, size)
        pages.truncate(5, size, 1, None if needed is None else bytes(4096))
        cells = {i: data for i, data in cells.items() if i * 4096 < size}
        if size % 4096 and size // 4096 in cells:
            kept = cells[size // 4096][: size % 4096]
            cells[size // 4096] = kept.ljust(4096, b"\0")
        assert pages.open_cells == len(cells)
        generation = pages.seal().generation
        _, indexes, addresses = pages.sealed_cells(generation)
        assert indexes.tolist() == sorted(cells)
        for index, address in zip(indexes.tolist(), addresses.tolist(), strict=True):
            assert bytes_at(address, 4096) == cells[index]
        pages.retire(generation)
        pages.truncate(5, 0, 1)
        cells = {}


def test_many_files_come_and_go():
    rng, pages, files = random.Random(4), Pages(4096), {}
    for _ in range(60_000):
        ino = rng.choice((rng.randrange(1, 9000), rng.randrange(2**63, 2**64)))
        if len(files) < 8000 and rng.random() < 0.6:
            pages.load(ino, ino // 2, 0, 0, 0)
            files[ino] = ino // 2
        elif files:
            ino = ino if ino in files or rng.random() < 0.5 else next(iter(files))
            assert pages.evict(ino)
            files.pop(ino, None)
    assert pages.statistics().resident == len(files) > 1000
    assert all(pages.attributes(ino)[0] == size for ino, size in files.items())
    for ino in files:
        assert pages.evict(ino)
    assert pages.statistics().table_bytes < 8192


# ---- marks ----


def addresses(*numbers):
    return np.array(numbers, np.uint64)


def test_a_page_has_a_cell_or_a_mark():
    pages = resident(10 * 4096)
    pages.write(5, 0, b"w" * (3 * 4096), 1)
    assert pages.punch(5, 1, 1, 2) == -1
    assert pages.share(5, 2, addresses(77), 0, 3) == -1
    assert pages.share(5, 4, addresses(78, 0), 0, 4) == 0
    kinds, shared = pages.map(5, 0, 11)
    assert kinds.tolist() == [
        PAGE_CELL,
        PAGE_ZERO,
        PAGE_SHARED,
        PAGE_LEAF,
        PAGE_SHARED,
        PAGE_ZERO,
    ] + [PAGE_LEAF] * 4 + [PAGE_ZERO]
    assert shared.tolist() == [0, 0, 77, 0, 78] + [0] * 6
    assert pages.missing(5, 2 * 4096 + 1, 4096).tolist() == [2, 3]
    with pytest.raises(BaseNeeded):
        pages.write(5, 2 * 4096 + 1, b"x", 5)
    pages.write(5, 2 * 4096 + 1, b"x", 5, {2: b"s" * 4096})
    pages.write(5, 1 * 4096 + 1, b"y", 6)  # a hole needs no base
    assert (pages.open_cells, pages.statistics().marks) == (3, 2)
    assert [pages.next_entry(5, at) for at in (0, 3, 5, 6)] == [0, 4, 5, None]
    pages.seal()
    assert [a.tolist() for a in pages.sealed_marks(1)] == [[5, 5], [4, 5], [78, 0]]
    cells = [bytes_at(address, 4096) for address in pages.sealed_cells(1)[2]]
    assert cells == [b"w" * 4096, b"\0y" + bytes(4094), b"sx" + b"s" * 4094]
    pages.truncate(5, 4 * 4096 + 9, 7, b"t" * 4096)
    out = bytearray(5 * 4096)
    assert [a.tolist() for a in pages.read(5, 0, out)] == [[3], [0]]
    assert out[4 * 4096 :] == b"t" * 9 + bytes(4087)
    pages.retire(1)
    pages.seal()
    pages.retire(2)
    assert pages.statistics().marks == 0 and pages.evict(5)


def test_marks_of_more_than_the_file_are_refused():
    pages = resident(10_000)
    with pytest.raises(AssertionError):
        pages.share(5, 2, addresses(7, 7), 0, 1)
    with pytest.raises(AssertionError):
        pages.share(5, 0, addresses(7), FILE_BYTES_MAX + 1, 1)
    with pytest.raises(AssertionError):
        pages.share(5, 2**63, addresses(), 1, 1)
    assert pages.attributes(5) == (10_000, 1, 2, 3)
    assert pages.share(5, 2, addresses(7, 7), 12_289, 9) == 0
    assert pages.attributes(5) == (12_289, 9, 9, 3)


def test_a_large_hole():
    pages = resident(2**30)
    pages.write(5, MARKS_AT_ONCE * 4096, b"x" * 4096, 1)
    assert pages.punch(5, 0, 2**18 + 9, 2) == -1
    assert pages.statistics().marks == 2**18
    assert pages.next_entry(5, 0) == 0 and pages.next_entry(5, 2**18) is None
    pages.leaf_put(5, 0, np.zeros(LEAF_PAGES, np.uint64))
    pages.punch(5, 0, LEAF_PAGES, 3)  # known to be holes: no marks
    assert pages.statistics().marks == 2**18 - LEAF_PAGES


# ---- the lane ----


def test_what_the_lane_may_do():
    pages = resident(4096)
    assert lane_calls.write(pages, 5, 0, b"x", 1) == -errno.EPERM
    pages.vouch(5, SERVE_WRITES)
    assert lane_calls.read(pages, 5, 0, 1, 1)[0] == -errno.EPERM
    assert lane_calls.write(pages, 5, 0, b"x" * 4096, 1) == -errno.EUSERS
    pages.allow_files(1)
    assert lane_calls.write(pages, 5, 0, b"x" * 4096, 1) == -errno.EDQUOT
    pages.grant(2)
    assert lane_calls.put(pages, 5, 0, b"x" * 4096, 1) == 1
    assert lane_calls.put(pages, 5, 0, b"y" * 100, 1) == 0  # has its cell already
    assert pages.claims() == (1, 1)
    assert lane_calls.write(pages, 5, 4096, b"z" * 4097, 1) == -errno.EDQUOT
    assert (pages.take_back(5), pages.take_back(5)) == (1, 0)
    pages.serve(SERVE_READS)
    assert lane_calls.put(pages, 5, 0, b"y", 1) == -errno.EPERM
    pages.vouch(5, SERVE_READS | SERVE_WRITES)
    result, out, elsewhere = lane_calls.read(pages, 5, 50, 4000, 1)
    assert (result, out, elsewhere) == (4000, b"y" * 100 + b"x" * 3996, [0])
    assert pages.attributes(5)[3] == 3  # may not be changed
    assert lane_calls.put(pages, 5, 1, b"x", 1) == -errno.EINVAL
    assert lane_calls.write(pages, 5, 0, b"", 1) == -errno.EINVAL
    pages.seal()
    pages.retire(1)
    assert pages.evict(5)
    pages.load(5, 4096, 1, 2, 3)
    assert lane_calls.read(pages, 5, 0, 1, 1)[0] == -errno.EPERM  # nobody vouches for it any more


def test_the_lane_takes_a_base_only_from_where_the_page_lies():
    pages = resident(8192)
    pages.vouch(5, SERVE_READS | SERVE_WRITES)
    pages.allow_files(1)
    pages.grant(10)
    base = b"b" * 4096
    assert lane_calls.missing(pages, 5, 1, 1) == [(0, None)]
    assert lane_calls.write(pages, 5, 1, b"x", 1, [(0, base, 0)]) == -errno.EAGAIN
    leaf = np.zeros(LEAF_PAGES, np.uint64)
    leaf[0] = 1 << 32
    pages.leaf_put(5, 0, leaf)
    assert lane_calls.missing(pages, 5, 1, 4096) == [(0, 1 << 32)]  # page 1 is a hole
    assert lane_calls.write(pages, 5, 1, b"x" * 4096, 1, [(0, base, 2 << 32)]) == -errno.EAGAIN
    assert lane_calls.write(pages, 5, 1, b"x" * 4096, 1, [(1, base, 1 << 32)]) == -errno.EAGAIN
    bases = [(0, base, 1 << 32), (1, base, 1 << 32)]
    assert lane_calls.write(pages, 5, 1, b"x" * 4096, 1, bases) == 2
    result, out, elsewhere = lane_calls.read(pages, 5, 0, 8192, 1)
    assert (result, out, elsewhere) == (8192, b"b" + b"x" * 4096 + bytes(4095), [0, 0])


def test_cells_for_the_lane_are_given_back():
    pages = Pages(4096, pool_bytes_kept=0)
    cells = lane_calls.take_cells(pages, 2000)
    assert len({int(lane_calls.ffi.cast("uintptr_t", cell)) for cell in cells}) == 2000
    assert all(int(lane_calls.ffi.cast("uintptr_t", cell)) % 4096 == 0 for cell in cells)
    assert pages.dirty_cells == 0 and pages.statistics().cell_pool_bytes >= 2000 * 4096
    lane_calls.give_cells(pages, cells)
    assert pages.statistics().cell_pool_bytes <= 2 << 20


# ---- leaves ----


def test_leaves_agree_with_a_model():
    rng, pages, model = random.Random(5), Pages(4096), {}
    for _ in range(4000):
        ino, number = rng.choice((1, 2, 2**64 - 1)), rng.choice((0, 1, 7, 2**43 - 1))
        what = rng.random()
        if what < 0.4:
            leaf = np.zeros(LEAF_PAGES, np.uint64)
            leaf[: rng.choice((0, 1, 200, 256))] = rng.randrange(2**64)
            leaf[rng.randrange(256)] = rng.choice((0, 1))
            pages.leaf_put(ino, number, leaf)
            model[ino, number] = leaf
        elif what < 0.5:
            first = rng.choice((0, 1, 5, 2**43 - 1))
            pages.leaf_forget(ino, first)
            model = {k: v for k, v in model.items() if k[0] != ino or k[1] < first}
        elif what < 0.52:
            assert pages.evict(ino)
            model = {k: v for k, v in model.items() if k[0] != ino}
        elif what < 0.75:
            leaf, expected = pages.leaf(ino, number), model.get((ino, number))
            assert (leaf is None) == (expected is None)
            assert leaf is None or (leaf == expected).all()
        else:
            indexes = [rng.choice((0, 1, 7, 2**43 - 1)) * 256 + rng.randrange(256) for _ in "abcde"]
            addresses, known = pages.leaf_lookup(ino, np.array(indexes, np.uint64))
            for index, address, is_known in zip(indexes, addresses, known, strict=True):
                leaf = model.get((ino, index // 256))
                assert is_known == (leaf is not None)
                assert address == (0 if leaf is None else leaf[index % 256])
        assert pages.statistics().leaves == len(model)
    assert pages.leaf_lookup(1, np.empty(0, np.uint64))[0].size == 0


def test_leaves_stay_within_their_bytes_and_the_unused_go_first():
    pages, full = Pages(4096, leaf_bytes_max=1 << 20), np.ones(LEAF_PAGES, np.uint64)
    for number in range(2000):
        pages.leaf_put(1, number, full)
        pages.leaf(1, 3)  # used again and again: stays
        assert pages.statistics().leaf_bytes <= 1 << 20
    kept = [number for number in range(2000) if pages.leaf(1, number) is not None]
    assert len(kept) > 400 and kept == [3, *range(2001 - len(kept), 2000)]
    small = np.zeros(LEAF_PAGES, np.uint64)
    small[0] = 9
    for ino in range(10, 20_000):
        pages.leaf_put(ino, 0, small)
    assert pages.statistics().leaves > 4000
    pages.leaf_put(1, 0, full)
    for ino in range(20_000):
        pages.leaf_forget(ino)
    assert (pages.statistics().leaves, pages.statistics().leaf_bytes) == (0, 0)
    none = Pages(4096, leaf_bytes_max=0)
    none.leaf_put(1, 0, full)
    assert none.leaf(1, 0) is None


# ---- threads and memory ----


def test_writers_readers_and_a_flusher_at_once():
    """Each writer owns a file; whatever the flusher does, it finds there what it wrote."""
    pages, members, stop = Pages(4096), {}, threading.Event()
    errors = []

    def write(ino):
        rng, mine = random.Random(ino), bytearray(40 * 4096)
        pages.load(ino, len(mine), 0, 0, 0)
        while not stop.is_set():
            index = rng.randrange(40)
            data = bytes([rng.randrange(256)]) * (4096 * rng.choice((1, 2, 3)))
            data = data[: len(mine) - index * 4096]
            pages.write(ino, index * 4096, data, 1)
            mine[index * 4096 : index * 4096 + len(data)] = data
            out = bytearray(len(mine))
            for at in pages.read(ino, 0, out)[0].tolist():
                out[at * 4096 : (at + 1) * 4096] = members.get((ino, at), bytes(4096))
            if out != mine:
                errors.append(ino)
                return

    def run(flushes):
        for _ in range(flushes):
            generation = pages.seal().generation
            for ino, index, address in zip(*pages.sealed_cells(generation), strict=True):
                members[int(ino), int(index)] = bytes_at(address, 4096)
            pages.retire(generation)
        stop.set()

    threads = [threading.Thread(target=write, args=(ino,)) for ino in (1, 2, 3)]
    for thread in threads:
        thread.start()
    run(60)
    for thread in threads:
        thread.join()
    assert not errors


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_pages_are_freed_with_the_object():
    def use():
        pages = resident()
        pages.write(5, 0, bytes(8 << 20), 1)
        pages.seal()
        pages.write(5, 0, bytes(8 << 20), 1)

    use()
    gc.collect()
    before = resident_bytes()
    for _ in range(5):
        use()
    gc.collect()
    assert resident_bytes() < before + (8 << 20)


def test_memory_kept_goes_back_when_asked():
    pages = Pages(4096, pool_bytes_kept=64 << 20)
    pages.load(5, 0, 1, 2, 3)
    for keep, left in (
        (64 << 20, 64 << 20),
        (10 << 20, 10 << 20),
        (2**64 - 1, 100 << 20),
        (0, 2 << 20),
    ):
        pages.write(5, 0, bytes(100 << 20), 1)
        pages.keep(keep)
        pages.truncate(5, 0, 2)
        assert left - (2 << 20) <= pages.statistics().cell_pool_bytes <= left + (2 << 20)
    pages.write(5, 0, bytes(100 << 20), 1)
    pages.keep(2**40)
    pages.truncate(5, 0, 2)
    assert pages.statistics().cell_pool_bytes >= 100 << 20
    pages.keep(1 << 20)
    assert pages.statistics().cell_pool_bytes == 2 << 20


@pytest.mark.slow
def test_a_million_files_cost_little_and_leave_nothing():
    pages = Pages(4096)
    before = resident_bytes()
    for ino in range(1, 1_000_001):
        pages.load(ino, ino, 1, 2, 3)
    cost = (resident_bytes() - before) / 1e6
    print(f"a resident clean file: {cost:.0f} bytes")
    assert cost < 200
    for ino in range(1, 1_000_001):
        pages.set_times(ino, 3, 3)
    assert pages.seal().inos.size == 1_000_000
    pages.retire(1)
    for ino in range(1, 1_000_001):
        assert pages.evict(ino)
    gc.collect()
    assert resident_bytes() - before < 8 << 20
    statistics = pages.statistics()
    assert statistics.table_bytes + statistics.layer_bytes < 2 << 20
