"""raidfs/pages.py and csrc/pages*.c against a slow, obvious model, over all operations.

The model keeps two independent pictures. `content` is what an application would see: per file its
size and the bytes of each page that isn't zero; it knows nothing of generations. `layers` are what
each generation did, as plain dicts, by the lookup rule. `leaves` and `stored` are what a flusher
would have written: at each retire the cuts, cells and marks of that generation are applied to them,
and then they must show exactly the content as of that seal. A cell on the members is written once,
as there: its address stands for its content.

The lane's calls go through tests/lane_calls.py.
"""

import errno
import os
import random
import time

import lane_calls
import numpy as np
import pytest

from raidfs.pages import (
    FILE_BYTES_MAX,
    LEAF_PAGES,
    NO_ATIME,
    PAGE_CELL,
    PAGE_LEAF,
    PAGE_SHARED,
    PAGE_ZERO,
    SERVE_READS,
    SERVE_WRITES,
    BaseNeeded,
    Pages,
)

DAY_NS = 24 * 3600 * 10**9
CELL_SIZES = (4096, 8192, 16384, 32768, 65536)


def bytes_at(address, nbytes):
    from raidfs._native import ffi

    return bytes(ffi.buffer(ffi.cast("char *", int(address)), nbytes))


class Layer:
    def __init__(self):
        self.cut = None
        self.cells = {}
        self.marks = {}  # page index -> address, 0: a hole


class File:
    def __init__(self, size, mtime, ctime, atime):
        self.size, self.mtime, self.ctime, self.atime = size, mtime, ctime, atime
        self.content = {}  # page index -> cell_bytes bytes, only pages that aren't zero
        self.dropped = False
        self.vouched = 0


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
        self.frozen = {}  # generation -> contents as of the seal
        self.leaves = {}  # (ino, index) -> address
        self.stored = {0: bytes(cell_bytes)}  # address -> the cell there
        self.persisted = {}  # ino -> size, mtime, ctime, atime as of its last seal
        self.clock = 1
        self.served = SERVE_READS | SERVE_WRITES
        self.credits = self.lane_files = self.lane_files_max = 0

    # ---- the model's own rules ----

    def tick(self):
        self.clock += self.rng.choice((1, 1, 1, DAY_NS // 2, DAY_NS - 1, DAY_NS))
        return self.clock

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

    @property
    def open_layers(self):
        return self.layers[self.generations[-1]]

    def layer(self, ino):
        if ino not in self.dirtied:
            self.dirtied.append(ino)
        return self.open_layers.setdefault(ino, Layer())

    def place(self, ino, index):
        """(kind, content or address): the lookup rule."""
        if index >= self.count(self.files[ino].size):
            return PAGE_ZERO, self.zero()
        for generation in reversed(self.generations):
            layer = self.layers[generation].get(ino)
            if layer is None:
                continue
            if index in layer.cells:
                return PAGE_CELL, layer.cells[index]
            if index in layer.marks:
                address = layer.marks[index]
                return (PAGE_SHARED, address) if address else (PAGE_ZERO, self.zero())
            if layer.cut is not None and index >= layer.cut:
                return PAGE_ZERO, self.zero()
        return PAGE_LEAF, None

    def in_memory(self, ino, index):
        return self.place(ino, index)[0] in (PAGE_ZERO, PAGE_CELL)

    def cached_address(self, ino, index):
        """What the lane can know of a page in no layer: None if its leaf isn't cached."""
        leaf = self.pages.leaf(ino, index // LEAF_PAGES)
        if leaf is None:
            return None
        address = int(leaf[index % LEAF_PAGES])
        assert address == self.leaves.get((ino, index), 0)
        return address

    def lane_place(self, ino, index):
        """(kind, content or address), PAGE_LEAF only if its leaf isn't cached."""
        kind, what = self.place(ino, index)
        if kind == PAGE_LEAF:
            address = self.cached_address(ino, index)
            if address == 0:
                return PAGE_ZERO, self.zero()
            if address is not None:
                return PAGE_SHARED, address
        return kind, what

    def below(self, ino, index):
        """The content of a page that isn't in memory."""
        kind, address = self.place(ino, index)
        if kind == PAGE_LEAF:
            address = self.leaves.get((ino, index), 0)
        return self.stored[address]

    def member_content(self, ino):
        pages = {i: self.stored[address] for (own, i), address in self.leaves.items() if own == ino}
        return {i: data for i, data in pages.items() if data.strip(b"\0")}

    def store(self, content):
        """A new cell on the members."""
        address = (len(self.stored) << 32) + (self.rng.randrange(1 << 24) << 8)
        self.stored[address] = content
        return address

    def parts(self, offset, nbytes):
        while nbytes:
            index, start = divmod(offset, self.cell)
            step = min(nbytes, self.cell - start)
            yield index, start, start + step
            offset, nbytes = offset + step, nbytes - step

    def partial(self, ino, offset, nbytes):
        """The pages whose old content is wanted."""
        size = self.files[ino].size
        return [
            index
            for index, start, end in self.parts(offset, nbytes)
            if start > 0 or (end < self.cell and index * self.cell + end < size)
        ]

    # ---- operations ----

    def load(self, ino):
        self.clock += 1
        times = self.persisted.get(ino, (0, self.clock, self.clock, self.clock))
        self.pages.load(ino, *times)
        if ino not in self.files:
            self.files[ino] = file = File(*times)
            file.content = self.member_content(ino)

    def base(self, ino, index):
        """What lies below, with rubbish beyond the size, which nobody may ever see."""
        data = self.below(ino, index)
        valid = max(0, min(self.cell, self.files[ino].size - index * self.cell))
        assert not data[valid:].strip(b"\0")
        return data[:valid] + b"\xee" * (self.cell - valid)

    def write(self, ino, offset, data):
        self.tick()
        partial = self.partial(ino, offset, len(data))
        needed = [index for index in partial if not self.in_memory(ino, index)]
        assert self.pages.missing(ino, offset, len(data)).tolist() == needed
        touched = [index for index, _, _ in self.parts(offset, len(data))]
        own = self.open_layers.get(ino, Layer()).cells
        cost = sum(index not in own for index in touched)
        assert self.pages.cost(ino, offset, len(data)) == cost
        bases = {index: self.base(ino, index) for index in needed}
        if needed and self.rng.random() < 0.1:
            before = self.pages.statistics()
            with pytest.raises(BaseNeeded):
                self.pages.write(ino, offset, data, self.clock)
            assert self.pages.statistics() == before
        if self.rng.random() < 0.3 and touched:
            bases[touched[0]] = bases.get(touched[0], b"\xdd" * self.cell)  # not needed: ignored
        assert self.pages.write(ino, offset, data, self.clock, bases or None) == cost
        if data:
            self.written(ino, offset, data)

    def written(self, ino, offset, data):
        """The pictures after a write."""
        file, layer, done = self.files[ino], self.layer(ino), 0
        for index, start, end in self.parts(offset, len(data)):
            old = self.page(file, index)
            new = old[:start] + data[done : done + end - start] + old[end:]
            self.set_page(file, index, new)
            layer.cells[index] = new
            layer.marks.pop(index, None)
            done += end - start
        file.size = max(file.size, offset + len(data))
        file.mtime = file.ctime = self.clock

    def truncate(self, ino, size):
        file = self.files[ino]
        self.tick()
        index, tail = divmod(size, self.cell)
        split = size < file.size and tail > 0
        needed = index if split and not self.in_memory(ino, index) else None
        assert self.pages.missing_tail(ino, size) == needed
        base = None if needed is None else self.base(ino, index)
        if needed is not None and self.rng.random() < 0.1:
            with pytest.raises(BaseNeeded):
                self.pages.truncate(ino, size, self.clock)
        change = self.pages.truncate(ino, size, self.clock, base)
        layer = self.layer(ino)
        before = len(layer.cells)
        first = self.count(size)
        if first < self.count(file.size):
            layer.cut = first if layer.cut is None else min(layer.cut, first)
            layer.cells = {i: data for i, data in layer.cells.items() if i < first}
            layer.marks = {i: address for i, address in layer.marks.items() if i < first}
            file.content = {i: data for i, data in file.content.items() if i < first}
        if split:
            old = self.page(file, index)
            if index in layer.cells or old[tail:].strip(b"\0"):
                layer.cells[index] = old[:tail].ljust(self.cell, b"\0")
                layer.marks.pop(index, None)
            self.set_page(file, index, old[:tail].ljust(self.cell, b"\0"))
        file.size = size
        file.mtime = file.ctime = self.clock
        assert change == len(layer.cells) - before

    def set_times(self, ino, mtime, ctime, atime):
        file = self.files[ino]
        self.pages.set_times(ino, mtime, ctime, atime)
        if (mtime, ctime, atime) != (None, None, None):
            self.layer(ino)
        file.mtime = file.mtime if mtime is None else mtime
        file.ctime = file.ctime if ctime is None else ctime
        file.atime = file.atime if atime is None else atime

    def read(self, ino, offset, nbytes):
        file = self.files[ino]
        out = bytearray(b"\xcc" * nbytes)
        elsewhere, addresses = (a.tolist() for a in self.pages.read(ino, offset, out))
        touched = [i for i, _, _ in self.parts(offset, nbytes)]
        assert elsewhere == [i for i in touched if not self.in_memory(ino, i)]
        assert addresses == [self.place(ino, i)[1] or 0 for i in elsewhere]
        done = 0
        for index, start, end in self.parts(offset, nbytes):
            part = bytes(out[done : done + end - start])
            if index in elsewhere:
                assert part == b"\xcc" * (end - start)  # untouched
                part = self.below(ino, index)[start:end]
            assert part == self.page(file, index)[start:end], (ino, index)
            done += end - start

    def drop(self, ino):
        self.pages.drop(ino)
        if ino not in self.files:
            self.files[ino] = File(0, 0, 0, 0)
        layer = self.layer(ino)
        layer.cut, layer.cells, layer.marks = 0, {}, {}
        self.dirtied.remove(ino)
        file = self.files[ino]
        file.dropped, file.size, file.content, file.vouched = True, 0, {}, 0
        for call in (self.pages.write, lane_calls.write):
            if call is lane_calls.write:
                assert call(self.pages, ino, 0, b"x", 1) == -errno.ESTALE
                assert lane_calls.read(self.pages, ino, 0, 1, 1)[0] == -errno.ENOENT
            else:
                with pytest.raises(AssertionError, match="dropped"):
                    call(ino, 0, b"x", 1)

    def evict(self, ino):
        layers = self.layers.values()
        needed = any(ino in of for of in layers)
        assert self.pages.evict(ino) is not needed
        if not needed:
            self.files.pop(ino, None)
            with pytest.raises(KeyError):
                self.pages.attributes(ino)
            assert lane_calls.attributes(self.pages, ino) == -errno.ENOENT
            assert lane_calls.write(self.pages, ino, 0, b"x", 1) == -errno.ENOENT
            assert lane_calls.read(self.pages, ino, 0, 1, 1)[0] == -errno.ENOENT
        assert self.pages.resident(ino) is needed

    # ---- marks ----

    def punch(self, ino, first, count):
        file, own = self.files[ino], self.open_layers.get(ino, Layer())
        self.tick()
        end = min(first + count, self.count(file.size))
        touched = range(first, max(first, end))
        freed = sum(index in own.cells for index in touched)
        assert self.pages.punch(ino, first, count, self.clock) == -freed
        if count == 0:
            return
        layer = self.layer(ino)
        for index in touched:
            self.make_hole(ino, layer, index)
        file.mtime = file.ctime = self.clock

    def make_hole(self, ino, layer, index):
        layer.cells.pop(index, None)
        layer.marks.pop(index, None)
        if self.lane_place(ino, index)[0] != PAGE_ZERO:
            layer.marks[index] = 0
        self.files[ino].content.pop(index, None)

    def share(self, ino, first, size, addresses):
        """The cells hold zeros beyond the size, `size` or the present one."""
        file, own = self.files[ino], self.open_layers.get(ino, Layer())
        self.tick()
        freed = sum(first + i in own.cells for i in range(len(addresses)))
        at = np.array(addresses, np.uint64)
        assert self.pages.share(ino, first, at, size, self.clock) == -freed
        layer = self.layer(ino)
        for index, address in enumerate(addresses, first):
            if address:
                layer.cells.pop(index, None)
                layer.marks[index] = address
                self.set_page(file, index, self.stored[address])
            else:
                self.make_hole(ino, layer, index)
        file.size = max(file.size, size)
        file.mtime = file.ctime = self.clock

    def check_map(self, ino, first, count):
        kinds, addresses = (a.tolist() for a in self.pages.map(ino, first, count))
        for index, kind, address in zip(range(first, first + count), kinds, addresses, strict=True):
            expected, what = self.place(ino, index)
            assert (kind, address) == (expected, what if expected == PAGE_SHARED else 0)
        layers = [of[ino] for of in self.layers.values() if ino in of]
        entries = {i for layer in layers for i in (*layer.cells, *layer.marks) if i >= first}
        assert self.pages.next_entry(ino, first) == min(entries, default=None)

    # ---- the lane ----

    def vouch(self, ino, flags):
        self.pages.vouch(ino, flags)
        self.files[ino].vouched = flags

    def serve(self, flags):
        self.pages.serve(flags)
        self.served = flags

    def grant(self, cells):
        self.pages.grant(cells)
        self.credits += cells

    def take_back(self, cells_max):
        cells = min(cells_max, self.credits)
        assert self.pages.take_back(cells_max) == cells
        self.credits -= cells

    def allow_files(self, files_max):
        self.pages.allow_files(files_max)
        self.lane_files_max = files_max

    def lane_error(self, ino, way):
        return 0 if self.files[ino].vouched & self.served & way else -errno.EPERM

    def lane_may_dirty(self, ino):
        return ino in self.open_layers or self.lane_files < self.lane_files_max

    def lane_dirties(self, ino):
        self.lane_files += ino not in self.open_layers
        self.layer(ino)

    def lane_write(self, ino, offset, data, put):
        self.tick()
        lane_call = lane_calls.put if put else lane_calls.write
        places = {i: self.lane_place(ino, i) for i in self.partial(ino, offset, len(data))}
        needed = {i: p for i, p in places.items() if p[0] in (PAGE_SHARED, PAGE_LEAF)}
        error = self.lane_error(ino, SERVE_WRITES)
        missing = [(i, what if kind == PAGE_SHARED else None) for i, (kind, what) in needed.items()]
        told = lane_calls.missing(self.pages, ino, offset, len(data))
        assert told == (error or missing)
        own = self.open_layers.get(ino, Layer()).cells
        cost = sum(index not in own for index, _, _ in self.parts(offset, len(data)))
        rng = self.rng
        bases = [(i, self.base(ino, i), what or 0) for i, (_, what) in needed.items()]
        spoiled = bool(bases) and rng.random() < 0.2
        if spoiled:
            index, content, address = bases.pop()
            if rng.random() < 0.5:
                bases.append((index, content, address ^ 1 << 32))  # where it lay before a flush
        elif rng.random() < 0.3:
            unneeded = [i for i, _, _ in self.parts(offset, len(data)) if i not in needed]
            bases += [(i, b"\xdd" * self.cell, rng.choice((0, 77))) for i in unneeded[-1:]]
        if not error and not self.lane_may_dirty(ino):
            error = -errno.EUSERS
        if not error and cost > self.credits:
            error = -errno.EDQUOT
        if not error and (spoiled or any(kind == PAGE_LEAF for kind, _ in needed.values())):
            error = -errno.EAGAIN
        before = self.pages.statistics()
        assert lane_call(self.pages, ino, offset, data, self.clock, bases) == (error or cost)
        if error:
            after = self.pages.statistics()
            assert (after.credits, after.dirty_cells) == (before.credits, before.dirty_cells)
            assert (after.open_files, after.marks) == (before.open_files, before.marks)
            return
        self.credits -= cost
        self.lane_dirties(ino)
        self.written(ino, offset, data)

    def lane_read(self, ino, offset, nbytes):
        file, now = self.files[ino], self.tick()
        reply = max(0, min(nbytes, file.size - offset))
        touched = list(self.parts(offset, reply))
        recent = file.mtime < file.atime and file.ctime < file.atime and now - file.atime < DAY_NS
        due = nbytes > 0 and not recent
        due = due and bool(self.served & SERVE_WRITES) and not file.vouched & NO_ATIME
        error = self.lane_error(ino, SERVE_READS)
        if not error and due and not self.lane_may_dirty(ino):
            error = -errno.EUSERS
        places = {index: self.lane_place(ino, index) for index, _, _ in touched}
        if not error and any(kind == PAGE_LEAF for kind, _ in places.values()):
            error = -errno.EAGAIN
        result, out, addresses = lane_calls.read(self.pages, ino, offset, nbytes, now)
        assert result == (error or reply)
        if error:
            return
        if due:
            self.lane_dirties(ino)
            file.atime = now
        for i, (index, start, end) in enumerate(touched):
            kind, what = places[index]
            assert addresses[i] == (what if kind == PAGE_SHARED else 0)
            page = out[i * self.cell : (i + 1) * self.cell]
            if addresses[i]:
                assert page == b"\xcc" * self.cell
                page = self.stored[addresses[i]]
            assert page[start:end] == self.page(file, index)[start:end], (ino, index)

    def cache(self, ino, index):
        """Somebody read the leaf."""
        number = index // LEAF_PAGES
        leaf = np.zeros(LEAF_PAGES, np.uint64)
        for (own, page), address in self.leaves.items():
            if own == ino and page // LEAF_PAGES == number:
                leaf[page % LEAF_PAGES] = address
        self.pages.leaf_put(ino, number, leaf)

    # ---- generations ----

    def seal(self):
        sealed = self.pages.seal()
        generation = self.generations[-1]
        assert sealed.generation == generation
        reported = zip(
            sealed.inos.tolist(),
            sealed.sizes.tolist(),
            sealed.mtimes.tolist(),
            sealed.ctimes.tolist(),
            sealed.atimes.tolist(),
            strict=True,
        )
        expected = [(i, *self.attributes(i)) for i in self.dirtied]
        assert sorted(reported) == sorted(expected)
        for ino, *attributes in expected:
            self.persisted[ino] = tuple(attributes)
        layers = self.layers[generation]
        empty = [i for i, of in layers.items() if not of.cells and not of.marks and of.cut is None]
        for ino in empty:
            del layers[ino]
        self.frozen[generation] = {ino: dict(file.content) for ino, file in self.files.items()}
        self.dirtied = []
        self.lane_files = 0
        self.generations.append(generation + 1)
        self.layers[generation + 1] = {}

    def attributes(self, ino):
        file = self.files[ino]
        return file.size, file.mtime, file.ctime, file.atime

    def check_sealed(self, generation):
        """What the flusher is given; returns it as dicts."""
        layers = self.layers[generation]
        inos, indexes, addresses = (a.tolist() for a in self.pages.sealed_cells(generation))
        expected = [(i, p) for i in sorted(layers) for p in sorted(layers[i].cells)]
        assert list(zip(inos, indexes, strict=True)) == expected
        assert all(address % 4096 == 0 for address in addresses)
        cells = {}
        for ino, index, address in zip(inos, indexes, addresses, strict=True):
            cells[ino, index] = bytes_at(address, self.cell)
            assert cells[ino, index] == layers[ino].cells[index], (ino, index)
        marks = [a.tolist() for a in self.pages.sealed_marks(generation)]
        expected = [
            (i, p, layers[i].marks[p]) for i in sorted(layers) for p in sorted(layers[i].marks)
        ]
        assert list(zip(*marks, strict=True)) == expected
        assert not {(ino, index) for ino, index, _ in expected} & set(cells)
        cuts = [a.tolist() for a in self.pages.sealed_cuts(generation)]
        expected = [(i, layers[i].cut) for i in sorted(layers) if layers[i].cut is not None]
        assert list(zip(*cuts, strict=True)) == expected
        return cells, dict(zip(zip(*marks[:2], strict=True), marks[2], strict=True)), dict(expected)

    def retire(self):
        """Flushes the oldest sealed generation, as the store would."""
        generation = self.generations[0]
        if generation == self.generations[-1]:
            return
        cells, marks, cuts = self.check_sealed(generation)
        for ino, first in cuts.items():
            for key in [key for key in self.leaves if key[0] == ino and key[1] >= first]:
                del self.leaves[key]
            self.pages.leaf_forget(ino, first // LEAF_PAGES)
        for key, address in [*marks.items(), *((key, self.store(cells[key])) for key in cells)]:
            self.leaves[key] = address
            if self.rng.random() < 0.5:
                self.pages.leaf_forget(key[0], key[1] // LEAF_PAGES)
        for ino, index in {**cells, **marks}:
            if self.pages.leaf(ino, index // LEAF_PAGES) is not None:
                self.cache(ino, index)
        for ino, content in self.frozen.pop(generation).items():
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
        layers = [one for of in self.layers.values() for one in of.values()]
        open_cells = sum(len(one.cells) for one in self.open_layers.values())
        cells = sum(len(one.cells) for one in layers)
        assert self.pages.generation == self.generations[-1] == statistics.generation
        assert self.pages.open_cells == open_cells == statistics.open_cells
        assert self.pages.dirty_cells == cells == statistics.dirty_cells
        assert statistics.marks == sum(len(one.marks) for one in layers)
        assert self.pages.claims() == (cells, self.credits)
        assert statistics.credits == self.credits
        assert statistics.lane_files == self.lane_files
        assert statistics.resident == len(self.files)
        assert statistics.open_files == len(self.dirtied)
        assert statistics.generations_sealed == len(self.generations) - 1
        assert cells * self.cell <= statistics.cell_pool_bytes
        assert cells or statistics.cell_pool_bytes <= 2 << 20
        for ino, file in self.files.items():
            if not file.dropped:
                assert self.pages.attributes(ino) == self.attributes(ino)
                own = [of[ino] for of in self.layers.values() if ino in of]
                shared = sum(address != 0 for one in own for address in one.marks.values())
                cells = sum(len(one.cells) for one in own) + shared
                assert self.pages.cells(ino) == cells
                assert lane_calls.attributes(self.pages, ino) == (*self.attributes(ino), cells)


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
        kinds = ("change", "lane", "rules", "seal", "retire", "evict", "drop")
        what = rng.choices(kinds, (26, 26, 4, 2, 2, 2, 0.3))[0]
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
        elif what == "rules":
            self.rules()
        else:
            model.load(ino)
            self.change(ino) if what == "change" else self.lane(ino)

    def change(self, ino):
        rng, model = self.rng, self.model
        size = model.files[ino].size
        kinds = ("write", "read", "truncate", "punch", "share", "map", "times")
        what = rng.choices(kinds, (10, 8, 5, 3, 3, 3, 1))[0]
        if what == "write":
            offset = min(size, FILE_BYTES_MAX) if rng.random() < 0.2 else self.offset()
            model.write(ino, offset, self.data(offset))
        elif what == "read":
            offset = self.offset(size)
            model.read(ino, offset, min(rng.randrange(6 * self.cell), size - offset))
        elif what == "truncate":
            sizes = (0, size, self.offset(), self.offset(), rng.randrange(size + 1))
            model.truncate(ino, rng.choice(sizes))
        elif what == "punch":
            model.punch(ino, self.offset() // self.cell, rng.randrange(5))
        elif what == "share":
            self.share(ino, size)
        elif what == "map":
            model.check_map(ino, self.offset() // self.cell, rng.randrange(6))
        else:
            times = (rng.choice((None, rng.randrange(-(2**63), 2**63))) for _ in "mca")
            model.set_times(ino, *times)

    def share(self, ino, size):
        """Cells that other files have; of the last page, one that fits."""
        rng, model = self.rng, self.model
        first = self.offset() // self.cell
        count = rng.randrange(4)
        end = min(
            (first + count) * self.cell - rng.choice((0, 0, 1, self.cell // 3)), FILE_BYTES_MAX
        )
        if count == 0 or end <= first * self.cell:
            return
        size = max(size, end)
        addresses = []
        for start in range(first * self.cell, end, self.cell):
            valid = min(self.cell, size - start)
            fitting = [a for a, data in model.stored.items() if not data[valid:].strip(b"\0")]
            if rng.random() < 0.3:
                fitting = [model.store(rng.randbytes(1) * valid + bytes(self.cell - valid))]
            addresses.append(rng.choice(fitting))
        model.share(ino, first, end, addresses)

    def lane(self, ino):
        rng, model = self.rng, self.model
        size = model.files[ino].size
        if rng.random() < 0.5:
            model.vouch(ino, rng.choice((0, 1, 2, 3, 3, 3, 7)))
        what = rng.choices(("write", "put", "read", "cache"), (5, 5, 6, 3))[0]
        if what == "read":
            model.lane_read(ino, self.offset(), rng.randrange(6 * self.cell))
        elif what == "cache":
            model.cache(ino, self.offset() // self.cell)
        else:
            offset = min(size, FILE_BYTES_MAX) if rng.random() < 0.2 else self.offset()
            offset -= offset % self.cell if what == "put" else 0
            data = self.data(offset)
            if data:
                model.lane_write(ino, offset, data, what == "put")

    def rules(self):
        """What the lane may do."""
        rng, model = self.rng, self.model
        what = rng.choice(("grant", "grant", "take back", "files", "serve"))
        if what == "grant":
            model.grant(rng.randrange(20))
        elif what == "take back":
            model.take_back(rng.choice((0, 3, 2**64 - 1)))
        elif what == "files":
            model.allow_files(rng.choice((0, 1, 2, 100)))
        else:
            model.serve(rng.choice((3, 3, 3, 1, 0, 2)))

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
    while time.monotonic() < started + 4:
        walk(seed, random.Random(seed).choice(CELL_SIZES[:3]), kind, 400)
        seed += 1
