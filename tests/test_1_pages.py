"""raidfs/pages.py and csrc/pages*.c against a slow, obvious model, and its promises one by one.

The model keeps two independent pictures. `content` is what an application would see: per file its
size and the bytes of each page that isn't zero; it knows nothing of generations. `layers` are what
each generation did, as plain dicts, by the lookup rule. `members` is what a flusher would have
written: at each retire the cuts and cells of that generation are applied to it, and then it must
show exactly the content as of that seal.
"""

import gc
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from raidfs.pages import FILE_BYTES_MAX, LEAF_PAGES, Pages

ROOT = Path(__file__).resolve().parent.parent
CELL_SIZES = (4096, 8192, 16384, 32768, 65536)


def bytes_at(address, nbytes):
    from raidfs._native import ffi

    return bytes(ffi.buffer(ffi.cast("char *", int(address)), nbytes))


class Layer:
    def __init__(self):
        self.cut = None
        self.cells = {}


class File:
    def __init__(self, size, mtime, ctime):
        self.size, self.mtime, self.ctime = size, mtime, ctime
        self.content = {}  # page index -> cell_bytes bytes, only pages that aren't zero
        self.dropped = False


class Model:
    """Drives a Pages and the pictures together; every method compares."""

    def __init__(self, cell_bytes, rng, leaf_bytes_max=1 << 20):
        self.cell = cell_bytes
        self.rng = rng
        self.pages = Pages(cell_bytes, leaf_bytes_max, generation=7, pool_bytes_kept=0)
        self.files = {}
        self.generations = [7]  # oldest first, the last is open
        self.layers = {7: {}}  # generation -> ino -> Layer
        self.dirtied = []  # in the open generation, in order
        self.frozen = {}  # generation -> (cells by (ino, index), contents as of the seal)
        self.members = {}  # (ino, index) -> bytes
        self.persisted = {}  # ino -> size, mtime, ctime as of its last seal
        self.clock = 1

    # ---- the model's own rules ----

    def zero(self):
        return bytes(self.cell)

    def count(self, size):
        return -(-size // self.cell)

    def page(self, file, index):
        return file.content.get(index, self.zero())

    def set_page(self, file, index, data):
        assert len(data) == self.cell
        if data.strip(b"\0"):
            file.content[index] = data
        else:
            file.content.pop(index, None)

    def layer(self, ino):
        open_layers = self.layers[self.generations[-1]]
        if ino not in self.dirtied:
            self.dirtied.append(ino)
        return open_layers.setdefault(ino, Layer())

    def look_up(self, ino, index):
        """The bytes that memory knows of a page, or None."""
        if index >= self.count(self.files[ino].size):
            return self.zero()
        for generation in reversed(self.generations):
            layer = self.layers[generation].get(ino)
            if layer is None:
                continue
            if index in layer.cells:
                return layer.cells[index]
            if layer.cut is not None and index >= layer.cut:
                return self.zero()
        return None

    def member_page(self, ino, index):
        return self.members.get((ino, index), self.zero())

    def member_content(self, ino):
        pages = {i: data for (own, i), data in self.members.items() if own == ino}
        return {i: data for i, data in pages.items() if data.strip(b"\0")}

    def parts(self, offset, nbytes):
        while nbytes:
            index, start = divmod(offset, self.cell)
            step = min(nbytes, self.cell - start)
            yield index, start, start + step
            offset, nbytes = offset + step, nbytes - step

    def needed(self, ino, offset, nbytes):
        file = self.files[ino]
        return [
            index
            for index, start, end in self.parts(offset, nbytes)
            if (start > 0 or (end < self.cell and index * self.cell + end < file.size))
            and self.look_up(ino, index) is None
        ]

    # ---- operations ----

    def load(self, ino):
        self.clock += 1
        size, mtime, ctime = self.persisted.get(ino, (0, self.clock, self.clock))
        self.pages.load(ino, size, mtime, ctime)
        if ino not in self.files:
            self.files[ino] = file = File(size, mtime, ctime)
            file.content = self.member_content(ino)

    def base(self, ino, index):
        """What lies below, with rubbish beyond the size, which nobody may ever see."""
        data = self.member_page(ino, index)
        valid = max(0, min(self.cell, self.files[ino].size - index * self.cell))
        assert not data[valid:].strip(b"\0")
        return data[:valid] + b"\xee" * (self.cell - valid)

    def write(self, ino, offset, data):
        file = self.files[ino]
        self.clock += 1
        needed = self.needed(ino, offset, len(data))
        assert self.pages.missing(ino, offset, len(data)).tolist() == needed
        touched = [index for index, _, _ in self.parts(offset, len(data))]
        own = self.layers[self.generations[-1]].get(ino, Layer()).cells
        cost = sum(index not in own for index in touched)
        assert self.pages.cost(ino, offset, len(data)) == cost
        bases = {index: self.base(ino, index) for index in needed}
        if needed and self.rng.random() < 0.1:
            before = self.pages.statistics()
            with pytest.raises(AssertionError, match="base"):
                self.pages.write(ino, offset, data, self.clock)
            assert self.pages.statistics() == before
        if self.rng.random() < 0.3 and touched:
            bases[touched[0]] = bases.get(touched[0], b"\xdd" * self.cell)  # not needed: ignored
        assert self.pages.write(ino, offset, data, self.clock, bases or None) == cost
        if not data:
            return
        layer, done = self.layer(ino), 0
        for index, start, end in self.parts(offset, len(data)):
            old = self.page(file, index)
            new = old[:start] + data[done : done + end - start] + old[end:]
            self.set_page(file, index, new)
            layer.cells[index] = new
            done += end - start
        file.size = max(file.size, offset + len(data))
        file.mtime = file.ctime = self.clock

    def truncate(self, ino, size):
        file = self.files[ino]
        self.clock += 1
        index, tail = divmod(size, self.cell)
        split = size < file.size and tail > 0
        known = self.look_up(ino, index)
        needed = index if split and known is None else None
        assert self.pages.missing_tail(ino, size) == needed
        base = None if needed is None else self.base(ino, index)
        change = self.pages.truncate(ino, size, self.clock, base)
        layer = self.layer(ino)
        before = len(layer.cells)
        first = self.count(size)
        if first < self.count(file.size):
            layer.cut = first if layer.cut is None else min(layer.cut, first)
            layer.cells = {i: data for i, data in layer.cells.items() if i < first}
            file.content = {i: data for i, data in file.content.items() if i < first}
        if split:
            old = self.page(file, index)
            if index in layer.cells or old[tail:].strip(b"\0"):
                layer.cells[index] = old[:tail].ljust(self.cell, b"\0")
            self.set_page(file, index, old[:tail].ljust(self.cell, b"\0"))
        file.size = size
        file.mtime = file.ctime = self.clock
        assert change == len(layer.cells) - before

    def set_times(self, ino, mtime, ctime):
        file = self.files[ino]
        self.pages.set_times(ino, mtime, ctime)
        if mtime is not None or ctime is not None:
            self.layer(ino)
        file.mtime = file.mtime if mtime is None else mtime
        file.ctime = file.ctime if ctime is None else ctime

    def read(self, ino, offset, nbytes):
        file = self.files[ino]
        out = bytearray(b"\xcc" * nbytes)
        elsewhere = self.pages.read(ino, offset, out)
        expected = [i for i, _, _ in self.parts(offset, nbytes) if self.look_up(ino, i) is None]
        assert elsewhere.tolist() == expected
        done = 0
        for index, start, end in self.parts(offset, nbytes):
            part = bytes(out[done : done + end - start])
            if index in expected:
                assert part == b"\xcc" * (end - start)  # untouched
                part = self.member_page(ino, index)[start:end]
            assert part == self.page(file, index)[start:end], (ino, index)
            done += end - start

    def drop(self, ino):
        self.pages.drop(ino)
        if ino not in self.files:
            self.files[ino] = File(0, 0, 0)
        layer = self.layer(ino)
        layer.cut, layer.cells = 0, {}
        self.dirtied.remove(ino)
        file = self.files[ino]
        file.dropped, file.size, file.content = True, 0, {}
        with pytest.raises(AssertionError, match="dropped"):
            self.pages.write(ino, 0, b"x", 1)

    def evict(self, ino):
        layers = self.layers.values()
        needed = any(ino in of for of in layers)
        assert self.pages.evict(ino) is not needed
        if not needed:
            self.files.pop(ino, None)
            with pytest.raises(KeyError):
                self.pages.attributes(ino)
        assert self.pages.resident(ino) is needed

    def seal(self):
        sealed = self.pages.seal()
        generation = self.generations[-1]
        assert sealed.generation == generation
        reported = zip(
            sealed.inos.tolist(),
            sealed.sizes.tolist(),
            sealed.mtimes.tolist(),
            sealed.ctimes.tolist(),
            strict=True,
        )
        expected = [(i, *self.attributes(i)) for i in self.dirtied]
        assert sorted(reported) == sorted(expected)
        for ino, *attributes in expected:
            self.persisted[ino] = tuple(attributes)
        layers = self.layers[generation]
        for ino in [i for i, one in layers.items() if not one.cells and one.cut is None]:
            del layers[ino]
        self.frozen[generation] = {
            ino: (file.size, dict(file.content)) for ino, file in self.files.items()
        }
        self.dirtied = []
        self.generations.append(generation + 1)
        self.layers[generation + 1] = {}

    def attributes(self, ino):
        file = self.files[ino]
        return file.size, file.mtime, file.ctime

    def check_sealed(self, generation):
        """What the flusher is given; returns it as dicts."""
        layers = self.layers[generation]
        inos, indexes, addresses = (a.tolist() for a in self.pages.sealed_cells(generation))
        expected = [(i, p) for i in sorted(layers) for p in sorted(layers[i].cells)]
        assert list(zip(inos, indexes, strict=True)) == expected
        assert all(address % 64 == 0 for address in addresses)
        cells = {}
        for ino, index, address in zip(inos, indexes, addresses, strict=True):
            cells[ino, index] = bytes_at(address, self.cell)
            assert cells[ino, index] == layers[ino].cells[index], (ino, index)
        cuts = [a.tolist() for a in self.pages.sealed_cuts(generation)]
        expected = [(i, layers[i].cut) for i in sorted(layers) if layers[i].cut is not None]
        assert list(zip(*cuts, strict=True)) == expected
        return cells, dict(expected)

    def retire(self):
        """Flushes the oldest sealed generation, as the store would."""
        generation = self.generations[0]
        if generation == self.generations[-1]:
            return
        cells, cuts = self.check_sealed(generation)
        for ino, first in cuts.items():
            for key in [key for key in self.members if key[0] == ino and key[1] >= first]:
                del self.members[key]
        for key, data in cells.items():
            self.members[key] = data
        for ino, (_, content) in self.frozen.pop(generation).items():
            if any(ino in of for g, of in self.layers.items() if g <= generation):
                assert self.member_content(ino) == content
        with pytest.raises(AssertionError, match="oldest"):
            self.pages.retire(generation + 1)
        self.pages.retire(generation)
        self.generations.pop(0)
        del self.layers[generation]
        for ino in [i for i, file in self.files.items() if file.dropped]:
            if not any(ino in of for of in self.layers.values()):
                assert not self.pages.resident(ino)
                del self.files[ino]

    def check(self):
        statistics = self.pages.statistics()
        open_cells = sum(len(one.cells) for one in self.layers[self.generations[-1]].values())
        cells = sum(len(one.cells) for of in self.layers.values() for one in of.values())
        assert self.pages.generation == self.generations[-1] == statistics.generation
        assert self.pages.open_cells == open_cells == statistics.open_cells
        assert self.pages.dirty_cells == cells == statistics.dirty_cells
        assert statistics.resident == len(self.files)
        assert statistics.open_files == len(self.dirtied)
        assert statistics.generations_sealed == len(self.generations) - 1
        assert cells * self.cell <= statistics.cell_pool_bytes
        assert cells or statistics.cell_pool_bytes <= 2 << 20
        for ino, file in self.files.items():
            if not file.dropped:
                assert self.pages.attributes(ino) == self.attributes(ino)


class Walk:
    """One random sequence of all operations."""

    INOS = (1, 2, 3, 2**64 - 1)

    def __init__(self, seed, cell_bytes, far):
        self.rng = random.Random(seed)
        self.model = Model(cell_bytes, self.rng)
        self.cell = cell_bytes
        self.far = far  # about which offset the files lie
        self.next_ino = 10
        self.inos = list(self.INOS)

    def offset(self, end=FILE_BYTES_MAX):
        cell = self.cell
        whole = self.rng.randrange(12) * cell
        near = self.rng.choice((0, 0, 0, 1, cell - 1, cell // 2, self.rng.randrange(cell)))
        return min(self.far + whole + near, end)

    def data(self, offset):
        cell = self.cell
        nbytes = self.rng.choice((0, 1, cell - 1, cell, cell + 1, 2 * cell, 5 * cell))
        if self.rng.random() < 0.4:
            nbytes = self.rng.randrange(3 * cell)
        nbytes = min(nbytes, FILE_BYTES_MAX - offset)
        fill = self.rng.choice((b"\0", b"x", self.rng.randbytes(7)))
        return (fill * (nbytes // len(fill) + 1))[:nbytes]

    def step(self):
        rng, model = self.rng, self.model
        ino = rng.choice(self.inos)
        file = model.files.get(ino)
        what = rng.choices(
            ("write", "read", "truncate", "times", "seal", "retire", "evict", "drop"),
            (10, 8, 5, 1, 2, 2, 2, 0.3),
        )[0]
        if what == "seal":
            if len(model.generations) < 5:
                model.seal()
        elif what == "retire":
            model.retire()
        elif what == "drop":
            if not (file and file.dropped):
                model.drop(ino)
                self.inos[self.inos.index(ino)] = self.next_ino
                self.next_ino += 1
        elif what == "evict":
            model.evict(ino)
        else:
            model.load(ino)
            self.change(what, ino)

    def change(self, what, ino):
        rng, model = self.rng, self.model
        size = model.files[ino].size
        if what == "write":
            offset = min(size, FILE_BYTES_MAX) if rng.random() < 0.2 else self.offset()
            model.write(ino, offset, self.data(offset))
        elif what == "read":
            offset = self.offset(size)
            model.read(ino, offset, min(rng.randrange(6 * self.cell), size - offset))
        elif what == "truncate":
            sizes = (0, size, self.offset(), self.offset(), rng.randrange(size + 1))
            model.truncate(ino, rng.choice(sizes))
        else:
            mtime, ctime = (rng.choice((None, rng.randrange(-(2**63), 2**63))) for _ in "mc")
            model.set_times(ino, mtime, ctime)

    def run(self, steps):
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.2:
                self.model.check()
        model = self.model
        for generation in model.generations[:-1]:
            model.check_sealed(generation)
        model.seal()
        while len(model.generations) > 1:
            model.retire()
        model.check()
        for ino in list(model.files):
            size = model.files[ino].size
            model.read(ino, min(self.far, size), min(16 * self.cell, max(size - self.far, 0)))
            model.evict(ino)
        assert model.pages.statistics().resident == 0


def far_of(kind, cell):
    near_end = FILE_BYTES_MAX - 10 * cell
    return {"start": 0, "middle": 3 * cell + (1 << 45), "end": near_end}[kind]


def walk(seed, cell, kind, steps):
    print(f"seed {seed} cell_bytes {cell} offsets at the {kind}")
    Walk(seed, cell, far_of(kind, cell)).run(steps)


@pytest.mark.parametrize("kind", ["start", "middle", "end"])
@pytest.mark.parametrize("cell", CELL_SIZES)
def test_random_operations_agree_with_the_model(cell, kind):
    walk(int(os.environ.get("RAIDFS_SEED", "1")), cell, kind, 4000 if cell <= 8192 else 800)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["start", "middle", "end"])
def test_many_random_operations_agree_with_the_model(kind):
    started = time.monotonic()
    seed = random.SystemRandom().randrange(2**32)
    while time.monotonic() < started + 6:
        walk(seed, random.Random(seed).choice(CELL_SIZES[:3]), kind, 400)
        seed += 1


# ---- promises and edges, one by one ----


def resident(size=0, cell=4096, **more):
    pages = Pages(cell, **more)
    pages.load(5, size, 1, 2)
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
    ):
        with pytest.raises(KeyError):
            call()
    assert pages.evict(5) and not pages.resident(5)


def test_load_leaves_a_resident_file_as_it_is():
    pages = resident(100)
    pages.load(5, 7, 8, 9)
    assert pages.attributes(5) == (100, 1, 2)


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
        pages.load(0, 0, 0, 0)
    with pytest.raises(AssertionError):
        pages.load(6, FILE_BYTES_MAX + 1, 0, 0)
    assert pages.attributes(5) == (0, 1, 2)
    assert pages.write(5, FILE_BYTES_MAX - 1, b"x", 3) == 1
    assert pages.attributes(5) == (FILE_BYTES_MAX, 3, 3)


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
    assert pages.read(5, FILE_BYTES_MAX - 10, out).tolist() == []
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
    assert not pages.read(5, 0, out).size
    assert out == b"r" * 100 + bytes(100) + b"x" + bytes(4096 - 201)


def test_a_hole_cut_in_two_costs_no_cell():
    pages = resident(10_000)
    assert pages.missing_tail(5, 5000) == 1
    assert pages.truncate(5, 5000, 3, bytes(4096)) == 0
    assert pages.missing_tail(5, 5000) is None and pages.missing_tail(5, 9000) is None
    assert pages.attributes(5) == (5000, 3, 3)
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
        pages.retire(generation)
        for call in (pages.retire, pages.sealed_cells, pages.sealed_cuts):
            with pytest.raises(AssertionError):
                call(generation)
    assert pages.generation == 43


def test_a_seal_reports_attributes_as_of_then():
    pages = resident(10)
    pages.set_times(5, None, None)
    assert not pages.seal().inos.size  # nothing was changed
    pages.set_times(5, None, 33)
    assert not pages.evict(5)
    sealed = pages.seal()
    pages.write(5, 0, b"x" * 20, 44)
    assert (sealed.inos.tolist(), sealed.sizes.tolist()) == ([5], [10])
    assert (sealed.mtimes.tolist(), sealed.ctimes.tolist()) == ([1], [33])
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
        assert not pages.read(5, 0, out).size
        assert (out.reshape(-1).view(np.uint32) == array).all()
        out[:] = 0
    assert not pages.read(5, 4, memoryview(out).cast("B")[3:11]).size
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
            pages.load(ino, ino // 2, 0, 0)
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
        pages.load(ino, len(mine), 0, 0)
        while not stop.is_set():
            index = rng.randrange(40)
            data = bytes([rng.randrange(256)]) * (4096 * rng.choice((1, 2, 3)))
            data = data[: len(mine) - index * 4096]
            pages.write(ino, index * 4096, data, 1)
            mine[index * 4096 : index * 4096 + len(data)] = data
            out = bytearray(len(mine))
            for at in pages.read(ino, 0, out).tolist():
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


@pytest.mark.slow
def test_a_million_files_cost_little_and_leave_nothing():
    pages = Pages(4096)
    before = resident_bytes()
    for ino in range(1, 1_000_001):
        pages.load(ino, ino, 1, 2)
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


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_the_c_test_under_sanitizers(tmp_path, sanitizers):
    sources = [ROOT / "csrc/tests/test_pages.c", *sorted((ROOT / "csrc").glob("pages*.c"))]
    program = tmp_path / "test_pages"
    flags = ["-g", "-O1", "-std=gnu11", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["cc", *flags, *map(str, sources), "-o", str(program), "-lpthread"], check=True, timeout=120
    )
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    print(result.stdout, result.stderr, file=sys.stderr)
    assert result.returncode == 0
