"""Reading cells by what is known of zones, against a slow reference that knows the same."""

import errno
import gc
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from raidfs import native
from raidfs._native import ffi, lib
from raidfs.columns import SLAB_ROWS, Columns, zones_affordable
from raidfs.raid.code import code_for

ROOT = Path(__file__).resolve().parent.parent
CELL = 4096
ZERO_CRC = native.crc32c(bytes(CELL))
CODES = [("0", 3), ("1", 3), ("2", 7), ("3", 4), ("5", 3), ("6", 5), ("10", 6), ("rs:4+3", 7)]


def address(zone, row, column):
    return zone << 32 | row << 8 | column


class Zone:
    """A zone of random rows in files (or, `shared`, one after the other in few files)."""

    def __init__(self, chooser, directory, number, members, code, rows):
        self.number, self.code, self.rows = number, code, rows
        self.members = members
        self.lost = set()
        self.recipes = {}  # column -> coefficients
        self.slabs = {}  # slab -> rows known
        width, k = code.width, code.k
        generator = np.random.default_rng(chooser.randrange(1 << 32))
        cells = generator.integers(0, 256, (width, rows, CELL), dtype=np.uint8)
        self.absent = generator.random((k, rows)) < 0.15
        data = cells[:k].copy()
        data[self.absent] = 0
        if code.m:
            flat = cells[k:].reshape(code.m, -1)
            native.multiply(code.parity, data.reshape(k, -1), flat)
        logical = np.concatenate([data, cells[k:]])
        self.crcs = np.array(
            [native.crc32c_cells(np.ascontiguousarray(column)) for column in logical]
        ).T.copy()
        self.content = cells  # garbage where cells are absent
        self.paths, self.offsets = [], []
        for column in range(width):
            offset = chooser.choice((0, 0, CELL, 7 * CELL))
            path = directory / f"{number}.{column}"
            path.write_bytes(os.urandom(offset) + cells[column].tobytes())
            self.paths.append(path)
            self.offsets.append(offset)
        self.short = dict.fromkeys(range(width), rows)  # rows that the file still has

    def damage(self, column, row):
        self.content[column, row, 17] ^= 1
        with open(self.paths[column], "r+b") as file:
            file.seek(self.offsets[column] + row * CELL + 17)
            file.write(bytes([self.content[column, row, 17]]))

    def shorten(self, column, rows):
        self.short[column] = min(rows, self.short[column])
        os.truncate(self.paths[column], self.offsets[column] + rows * CELL + 100)

    def crc_known(self, row):
        return row % SLAB_ROWS < self.slabs.get(row // SLAB_ROWS, 0)

    def plain(self, row, column):
        """The cell as its file has it, or None if it isn't as its checksum says."""
        if row >= self.short[column]:
            return None
        cell = self.content[column, row]
        return cell if native.crc32c(cell.tobytes()) == self.crcs[row, column] else None

    def cell(self, row, column):
        """(errno, content) by the rules of csrc/columns.h, slowly."""
        if row >= self.rows or column >= self.code.width or not self.crc_known(row):
            return errno.ENOENT, None
        if column not in self.lost:
            cell = self.plain(row, column)
            return (0, cell) if cell is not None else (errno.EIO, None)
        if column not in self.recipes:
            return errno.ENOENT, None
        total = np.zeros(CELL, np.uint8)
        for source, coefficient in enumerate(self.recipes[column].tolist()):
            if coefficient and self.crcs[row, source] != ZERO_CRC:
                cell = self.plain(row, source)
                if cell is None:
                    return errno.EIO, None
                total ^= native.gf_multiply(cell, coefficient)
        if native.crc32c(total.tobytes()) != self.crcs[row, column]:
            return errno.EIO, None
        return 0, total


class Model:
    """The same things told to `Columns` and to the reference."""

    def __init__(self, seed, directory):
        self.chooser = random.Random(seed)
        self.directory = directory
        self.columns = Columns(CELL)
        self.engine = lib.rf_engine_new(0, 2, ffi.new("int *"))
        self.zones = {}
        self.lost = set()
        self.next = 1

    def new_zone(self):
        code = code_for(*self.chooser.choice(CODES))
        members = self.chooser.sample(range(10), code.width)
        rows = self.chooser.choice((1, 5, 40, 255, 256, 300))
        zone = Zone(self.chooser, self.directory, self.next, members, code, rows)
        self.next += self.chooser.choice((1, 1 << 20))
        self.zones[zone.number] = zone
        self.put(zone)

    def put(self, zone):
        zone.lost = {c for c, member in enumerate(zone.members) if member in self.lost}
        zone.slabs, zone.recipes = {}, {}
        where = [
            (-1 if c in zone.lost else os.open(zone.paths[c], os.O_RDONLY), zone.offsets[c])
            for c in range(zone.code.width)
        ]
        self.columns.zone_put(zone.number, zone.code.k, zone.rows, where, zone.members)

    def put_recipes(self, zone):
        available = [c for c in range(zone.code.width) if c not in zone.lost]
        self.chooser.shuffle(available)
        for column in zone.lost:
            solved = zone.code.express([column], available)
            if solved is not None:
                coefficients = np.zeros(zone.code.width, np.uint8)
                coefficients[solved[0]] = solved[1][0]
                zone.recipes[column] = coefficients
                self.columns.recipe_put(zone.number, column, coefficients)

    def put_slab(self, zone):
        slab = self.chooser.randrange(-(-zone.rows // SLAB_ROWS))
        first = slab * SLAB_ROWS
        rows = min(SLAB_ROWS, zone.rows - first)
        if self.chooser.random() < 0.3:
            rows = self.chooser.randint(0, rows)
        zone.slabs[slab] = rows
        self.columns.slab_put(zone.number, slab, zone.crcs[first : first + rows])

    def put_rows(self, zone):
        row = self.chooser.randrange(zone.rows)
        rows = self.chooser.randint(1, zone.rows - row)
        self.columns.rows_put(zone.number, row, zone.crcs[row : row + rows])
        for slab in range(row // SLAB_ROWS, (row + rows - 1) // SLAB_ROWS + 1):
            first = max(row - slab * SLAB_ROWS, 0)
            last = min(row + rows - slab * SLAB_ROWS, SLAB_ROWS)
            if first > zone.slabs.get(slab, 0):
                zone.slabs.pop(slab, None)
            else:
                zone.slabs[slab] = max(zone.slabs.get(slab, 0), last)

    def lose(self):
        if len(self.lost) < 3:
            member = self.chooser.choice([m for m in range(10) if m not in self.lost])
            self.lost.add(member)
            self.columns.lose(member)
            for zone in self.zones.values():
                if member in zone.members:
                    zone.lost.add(zone.members.index(member))
                    zone.recipes = {}

    def forget(self, zone):
        del self.zones[zone.number]
        self.columns.zone_forget(zone.number)

    def request(self):
        """Addresses as files have them: runs over the columns, dealt or not, holes, anything."""
        found = []
        for _ in range(self.chooser.choice((1, 1, 2, 4))):
            number = self.chooser.choice([*self.zones, 1 << 31])
            zone = self.zones.get(number)
            if zone is None or self.chooser.random() < 0.05:
                row, column = self.chooser.randrange(400), self.chooser.randrange(9)
                found.append(address(number, row, column))
                continue
            k, count = zone.code.k, self.chooser.choice((1, 1, 2, 10, 100))
            row = self.chooser.randrange(zone.rows)
            if self.chooser.random() < 0.5:
                pages = [(row + page // k, page % k) for page in range(count)]
            else:
                height = -(-count // k)
                pages = [(row + page % height, page // height) for page in range(count)]
            there = [(r, c) for r, c in pages if r < zone.rows and not zone.absent[c, r]]
            found += [address(number, r, c) for r, c in there]
            if there and self.chooser.random() < 0.2:
                found += [0, found[-1], 0]
        return np.array(found or [0], np.uint64)

    def expected(self, addresses):
        worst, cells = 0, []
        for one in addresses.tolist():
            cell = None
            if one:
                zone = self.zones.get(one >> 32)
                row, column = one >> 8 & 0xFFFFFF, one & 0xFF
                error, cell = zone.cell(row, column) if zone else (errno.ENOENT, None)
                worst = errno.ENOENT if errno.ENOENT in (error, worst) else error or worst
            cells.append(cell)
        return worst, cells

    def start(self, addresses, out):
        """Through the engine; the result, as if it had been waited for at once."""
        results, finished = [], threading.Event()

        @ffi.callback("void(void *, int)")
        def done(_, result):
            results.append(result)
            finished.set()

        error = lib.rf_columns_read_start(
            self.columns.pointer,
            self.engine,
            ffi.cast("uint64_t *", addresses.ctypes.data),
            len(addresses),
            ffi.cast("uint8_t *", out.ctypes.data),
            done,
            ffi.NULL,
        )
        if error:
            assert not results
            return -error
        assert finished.wait(60)
        assert len(results) == 1
        return -results[0]

    def read(self):
        addresses = self.request()
        want, cells = self.expected(addresses)
        fill = np.full((len(addresses), CELL), 0xA5, np.uint8)
        for way in self.chooser.sample(("read", "nowait", "start"), 2):
            out = fill.copy()
            if way == "start":
                got = self.start(addresses, out)
            else:
                got = self.columns.read(addresses, out, nowait=way == "nowait")
            if way == "nowait" and got == errno.EWOULDBLOCK:
                continue
            assert got == want, (way, [hex(a) for a in addresses.tolist()])
            if got == 0:
                for one, cell, read in zip(addresses.tolist(), cells, out, strict=True):
                    assert (read == (cell if one else 0xA5)).all()

    def step(self):
        zone = self.chooser.choice(list(self.zones.values())) if self.zones else None
        kind = self.chooser.random()
        if zone is None or (kind < 0.03 and len(self.zones) < 6):
            self.new_zone()
        elif kind < 0.12:
            self.put_slab(zone)
        elif kind < 0.17:
            self.put_rows(zone)
        elif kind < 0.22:
            self.put_recipes(zone)
        elif kind < 0.225:
            self.lose()
        elif kind < 0.24:
            self.forget(zone)
        elif kind < 0.25:
            self.put(zone)
        elif kind < 0.265:
            zone.damage(self.chooser.randrange(zone.code.width), self.chooser.randrange(zone.rows))
        elif kind < 0.27:
            zone.shorten(self.chooser.randrange(zone.code.width), self.chooser.randrange(zone.rows))
        else:
            self.read()

    def close(self):
        lib.rf_engine_free(self.engine)
        self.columns.close()
        assert self.columns.statistics().descriptors == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_zones_and_losses(tmp_path, seed):
    model = Model(seed, tmp_path)
    for _ in range(600):
        model.step()
    statistics = model.columns.statistics()
    assert statistics.reads > 50 and statistics.unknown > 10
    model.close()


def zone_in(columns, directory, number, *, width=3, rows=8, k=2, members=None):
    """One known zone of random cells (k, rows, CELL) over `width` files."""
    cells = np.random.default_rng(number).integers(0, 256, (width, rows, CELL), dtype=np.uint8)
    where = []
    for column in range(width):
        path = directory / f"{number}.{column}"
        path.write_bytes(cells[column].tobytes())
        where.append((os.open(path, os.O_RDWR), 0))
    columns.zone_put(number, k, rows, where, members or list(range(width)))
    crcs = np.array([native.crc32c_cells(column) for column in cells]).T
    for slab in range(-(-rows // SLAB_ROWS)):
        columns.slab_put(number, slab, crcs[slab * SLAB_ROWS : (slab + 1) * SLAB_ROWS])
    return cells


def read_one(columns, number, row=0, column=0):
    out = np.zeros((1, CELL), np.uint8)
    result = columns.read(np.array([address(number, row, column)], np.uint64), out)
    return result, out[0]


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_the_least_recently_used_zones_go_first(tmp_path):
    before = open_descriptors()
    columns = Columns(CELL, zones_max=3)
    for number in (1, 2, 3):
        zone_in(columns, tmp_path, number)
    assert read_one(columns, 1)[0] == 0
    zone_in(columns, tmp_path, 4)
    assert [columns.zone_known(n) for n in (1, 2, 3, 4)] == [True, False, True, True]
    statistics = columns.statistics()
    assert statistics.zones == 3 and statistics.slabs == 3
    assert statistics.descriptors <= 3 * 3
    columns.close()
    assert open_descriptors() == before
    assert columns.statistics().slab_bytes == 0


def test_the_least_recently_used_slabs_go_first(tmp_path):
    slab_bytes = SLAB_ROWS * 3 * 4
    columns = Columns(CELL, slab_bytes_max=2 * slab_bytes)
    zone_in(columns, tmp_path, 1, rows=SLAB_ROWS + 1)
    assert columns.statistics().slab_bytes == 2 * slab_bytes
    assert read_one(columns, 1, 0)[0] == 0
    zone_in(columns, tmp_path, 2)
    assert read_one(columns, 1, 0)[0] == 0
    assert read_one(columns, 1, SLAB_ROWS)[0] == errno.ENOENT
    assert columns.slab_known(1, 0) and not columns.slab_known(1, 1)
    assert columns.statistics().slab_bytes <= 2 * slab_bytes
    columns.close()


def test_columns_in_one_file_share_a_descriptor(tmp_path):
    """As those of images and devices are; it is closed with the last of them."""
    columns = Columns(CELL)
    path = tmp_path / "image"
    content = np.random.default_rng(1).integers(0, 256, (20, CELL), dtype=np.uint8)
    path.write_bytes(content.tobytes())
    before = open_descriptors()
    for number in range(1, 6):
        columns.zone_put(number, 1, 4, [(os.open(path, os.O_RDONLY), (number - 1) * 4 * CELL)], [7])
        crcs = native.crc32c_cells(content[(number - 1) * 4 :][:4])
        columns.slab_put(number, 0, crcs[:, None])
    assert open_descriptors() == before + 1
    for number in range(1, 6):
        result, cell = read_one(columns, number, 3)
        assert result == 0 and (cell == content[number * 4 - 1]).all()
    columns.zone_forget(3)
    assert read_one(columns, 3)[0] == errno.ENOENT and read_one(columns, 4)[0] == 0
    columns.lose(7)
    assert open_descriptors() == before
    assert read_one(columns, 4)[0] == errno.ENOENT
    columns.close()


def test_a_forgotten_zones_files_are_closed(tmp_path):
    """Or their room would not come back when they are removed."""
    columns = Columns(CELL)
    before = open_descriptors()
    zone_in(columns, tmp_path, 1)
    columns.zone_forget(1)
    columns.zone_forget(1)
    assert open_descriptors() == before
    columns.close()


def test_descriptors_are_taken_over_whatever_happens(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(CELL))
    columns = Columns(CELL)
    before = open_descriptors()

    def where(count):
        return [(os.open(path, os.O_RDONLY), 0) for _ in range(count)]

    for zone, k, rows, width in ((0, 1, 1, 2), (1, 3, 1, 2), (1, 1, 0, 2), (1, 1, 1, 40)):
        with pytest.raises(AssertionError, match="columns"):
            columns.zone_put(zone, k, rows, where(width), list(range(width)))
        assert open_descriptors() == before
    columns.close()
    columns.zone_put(1, 1, 1, where(2), [0, 1])
    assert not columns.zone_known(1) and open_descriptors() == before
    del columns
    gc.collect()


def test_recipes_that_make_no_sense_are_refused(tmp_path):
    columns = Columns(CELL)
    zone_in(columns, tmp_path, 1)
    ones = np.array([0, 1, 1], np.uint8)
    with pytest.raises(AssertionError):
        columns.recipe_put(1, 0, ones)  # the column isn't lost
    columns.lose(0)
    columns.recipe_put(1, 0, ones)
    columns.recipe_put(2, 0, ones)  # not known: nothing happens
    with pytest.raises(AssertionError):
        columns.recipe_put(1, 0, np.array([1, 1, 1], np.uint8))
    columns.close()


def test_what_memory_holds_is_read_although_nothing_may_wait():
    """tmpfs can't say what would wait, and never does."""
    with_memory = "/dev/shm"
    path = f"{with_memory}/raidfs-columns-{os.getpid()}"
    content = np.random.default_rng(2).integers(0, 256, (4, CELL), dtype=np.uint8)
    columns = Columns(CELL)
    with open(path, "w+b") as file:
        os.unlink(path)
        file.write(content.tobytes())
        file.flush()
        columns.zone_put(1, 1, 4, [(os.dup(file.fileno()), 0)], [0])
    columns.slab_put(1, 0, native.crc32c_cells(content)[:, None])
    out = np.zeros((4, CELL), np.uint8)
    addresses = np.array([address(1, row, 0) for row in range(4)], np.uint64)
    assert columns.read(addresses, out, nowait=True) == 0 and (out == content).all()
    columns.close()


@pytest.mark.slow
def test_zones_come_and_go_while_others_read(tmp_path):
    """A place is used by one zone after the other, as slots are: no reader sees the next one's."""
    columns = Columns(CELL, zones_max=4)
    rows, turns = 8, 300
    path = tmp_path / "place"
    path.write_bytes(bytes(rows * CELL))
    place = os.open(path, os.O_RDWR)
    current = [0]
    stop = threading.Event()
    good = [0] * 3

    def reader(number):
        out = np.zeros((rows, CELL), np.uint8)
        while not stop.is_set():
            zone = current[0]
            addresses = np.array([address(zone, row, 0) for row in range(rows)], np.uint64)
            if zone and columns.read(addresses, out, nowait=number == 1) == 0:
                assert (out == zone & 0xFF).all()
                good[number] += 1

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for zone in range(1, turns):
            content = np.full((rows, CELL), zone & 0xFF, np.uint8)
            os.pwrite(place, content.tobytes(), 0)
            columns.zone_put(zone, 1, rows, [(os.dup(place), 0)], [0])
            columns.slab_put(zone, 0, native.crc32c_cells(content)[:, None])
            current[0] = zone
            threading.Event().wait(0.001)
            if zone % 7 == 0:
                columns.lose(0)
            columns.zone_forget(zone)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sum(good) > 10
    os.close(place)
    columns.close()
    assert columns.statistics().descriptors == 0


def test_so_many_zones_can_be_afforded():
    assert 8 <= zones_affordable(24) <= zones_affordable(1) <= 65536
