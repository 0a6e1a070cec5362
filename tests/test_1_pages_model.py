"""raidfs/pages.py and csrc/pages*.c against a slow, obvious model, over all operations.

The model keeps two independent pictures. `content` is what an application would see: per file its
size and the bytes of each page that isn't zero; it knows nothing of generations. `layers` are what
each generation did, as plain dicts, by the lookup rule. `members` is what a flusher would have
written: at each retire the cuts and cells of that generation are applied to it, and then it must
show exactly the content as of that seal.
"""

import os
import random
import time

import pytest

from raidfs.pages import FILE_BYTES_MAX, Pages

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
    while time.monotonic() < started + 4:
        walk(seed, random.Random(seed).choice(CELL_SIZES[:3]), kind, 400)
        seed += 1
