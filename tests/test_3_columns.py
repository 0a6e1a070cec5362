"""What C threads are told of zones: all they read by it is what Python reads, whatever happens."""

import errno
import itertools
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from checking import run_check
from volumes import ROOT, START_NS, Clock, content, forget_all, mounted

from raidfs import native
from raidfs.fs.attributes import Changes
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.create import plan_volume
from raidfs.store.make import make_volume
from raidfs.store.store import Store

CELL = 4096
SIZE_BYTES = 48 << 20
LEVELS = [("1", 3), ("5", 4), ("6", 5), ("10", 4), ("rs:4+2", 6), ("3", 4)]


def make_members(directory, kind, count, level):
    """A new volume over directories, images, or both in turn; returns their paths."""
    names = []
    for number in range(count):
        path = Path(directory) / f"member{number}"
        if kind == "image" or (kind == "mixed" and number % 2):
            path.write_bytes(b"")
            os.truncate(path, SIZE_BYTES)
        else:
            path.mkdir(parents=True)
        names.append(str(path))
    plan = plan_volume(names, level=level, size_bytes=SIZE_BYTES, zone_bytes=1 << 20)
    make_volume(plan, now_ns=Clock(START_NS - 10**9))
    return names


async def write_some(volume, chooser, name, pages):
    """A file written in pieces, with holes, overwritten here and there, synced now and then."""
    ino = volume.create(1, name, 0o644, os.O_RDWR, ROOT).ino
    at = 0
    while at < pages * CELL:
        nbytes = chooser.choice((100, CELL, 5 * CELL, 60 * CELL))
        if chooser.random() < 0.9:
            await volume.write(ino, at, chooser.randbytes(nbytes))
        at += nbytes
        if chooser.random() < 0.1:
            await volume.fsync(ino)
    for _ in range(20):
        data = chooser.randbytes(chooser.choice((10, CELL, 3 * CELL + 5)))
        await volume.write(ino, chooser.randrange(pages * CELL), data)
    await volume.fsync(ino)
    return ino


class Comparison:
    """Reads files by their addresses through Columns and compares with what Python read."""

    def __init__(self, volume):
        self.volume = volume
        self.columns = volume.store.columns
        self.asked = 0  # how often Python had to be asked

    async def compare(self, ino, want, *, pages_at_once=64):
        store = self.volume.store
        count = -(-len(want) // CELL)
        want = want.ljust(count * CELL, b"\0")
        for first in range(0, count, pages_at_once):
            pages = np.arange(first, min(count, first + pages_at_once), dtype=np.uint64)
            addresses, inline = store.reader.addresses(ino, pages)
            assert inline is None
            expected = want[first * CELL : (first + len(pages)) * CELL]
            cells = np.frombuffer(expected, np.uint8).reshape(-1, CELL)
            out = native.aligned(cells.shape)
            out[:] = 0
            result = self.columns.read(addresses, out)
            if result == errno.ENOENT:
                self.asked += 1
                offset = first * CELL
                nbytes = min(len(expected), self.volume.getattr(ino).size - offset)
                got = bytes(await self.volume.read(ino, offset, nbytes))
                assert got == expected[:nbytes]
                result = self.columns.read(addresses, out)
            assert result == 0, os.strerror(result)
            assert (out == cells).all()


async def some_files(volume, seed):
    chooser = random.Random(seed)
    found = {}
    for number, pages in enumerate((30, 700, 300)):
        ino = await write_some(volume, chooser, b"file%d" % number, pages)
        found[b"file%d" % number] = (ino, await content(volume, ino))
    return found


async def compare_all(volume, files):
    comparison = Comparison(volume)
    for ino, want in files.values():
        await comparison.compare(ino, want)
    return comparison.asked


@pytest.mark.parametrize(("level", "count"), LEVELS)
@pytest.mark.parametrize("kind", ["directory", "mixed"])
@pytest.mark.trio
async def test_all_that_was_written_is_read_right(tmp_path, kind, level, count):
    """Just flushed, after a new mount, and then without as many members as the level survives."""
    paths = make_members(tmp_path, kind, count, level)
    async with mounted(paths) as volume:
        files = await some_files(volume, 1)
        assert await compare_all(volume, files) == 0, "what a flush has written is known"
        columns = volume.store.columns
    assert columns.statistics().descriptors == 0
    async with mounted(paths) as volume:
        for name, (_, want) in list(files.items()):
            files[name] = (volume.lookup(1, name).ino, want)
        asked = await compare_all(volume, files)
        assert 0 < asked <= len(volume.store.space.zones) * 2
        assert await compare_all(volume, files) == 0
        zone = volume.store.space.zones[min(volume.store.space.zones)].map
        for member, _ in zone.columns[: zone.code.tolerance]:
            await volume.store.losses.fail_member(member, "a test")
            await compare_all(volume, files)
            assert await compare_all(volume, files) == 0
            ino = await write_some(volume, random.Random(member), b"more%d" % member, 100)
            files[b"more%d" % member] = (ino, await content(volume, ino))
            await compare_all(volume, files)
        statistics = volume.store.columns.statistics()
        assert statistics.cells_rebuilt > 0 and statistics.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), LEVELS)
@pytest.mark.trio
async def test_every_loss_that_is_survived(tmp_path, level, count):
    """Mounted without them, each combination; with fewer members some fall away as well."""
    paths = make_members(tmp_path, "directory", count, level)
    async with mounted(paths) as volume:
        files = await some_files(volume, 3)
        tolerance = volume.store.space.code.tolerance
    for lost in range(1, tolerance + 1):
        for away in itertools.combinations(range(count), lost):
            for member in away:
                os.rename(paths[member], paths[member] + ".away")
            first = next(path for path in paths if os.path.exists(path))
            assembly = Assembly.open(first, read_only=True, degraded=True)
            store = await Store.open(assembly, read_only=True)
            try:
                comparison = await mounted_comparison(store, files)
                assert comparison.columns.statistics().failed == 0
            finally:
                await store.close()
            for member in away:
                os.rename(paths[member] + ".away", paths[member])


async def mounted_comparison(store, files):
    """Twice over all files of a store that has no flusher running."""
    volume = Volume(store)
    for turn in range(2):
        comparison = Comparison(volume)
        for name, (_, want) in files.items():
            ino = volume.lookup(1, name).ino
            volume.open(ino, os.O_RDONLY)
            await comparison.compare(ino, want)
            volume.release(ino)
            forget_all(volume, ino)
        assert not (turn and comparison.asked)
    return comparison


@pytest.mark.trio
async def test_past_the_page_cache(tmp_path):
    """Descriptors for direct IO: nothing is to be had without waiting."""
    paths = make_members(tmp_path, "mixed", 4, "5")
    async with mounted(paths) as volume:
        files = await some_files(volume, 8)
    assembly = Assembly.open(paths[0], read_only=True, direct=True)
    store = await Store.open(assembly, read_only=True)
    try:
        await mounted_comparison(store, files)
        addresses, _ = store.reader.addresses(files[b"file1"][0], np.arange(9, dtype=np.uint64))
        out = native.aligned((9, CELL))
        assert store.columns.read(addresses, out) == 0
        assert store.columns.read(addresses, out, nowait=True) == errno.EWOULDBLOCK
    finally:
        await store.close()


@pytest.mark.parametrize("kind", ["directory", "image"])
@pytest.mark.trio
async def test_damage_is_told_and_healed(tmp_path, kind):
    paths = make_members(tmp_path, kind, 3, "5")
    async with mounted(paths) as volume:
        files = await some_files(volume, 4)
        store = volume.store
        ino, want = files[b"file1"]
        pages = np.arange(len(want) // CELL, dtype=np.uint64)
        addresses, _ = store.reader.addresses(ino, pages)
        page = int(np.flatnonzero(addresses)[5])
        address = int(addresses[page])
        zone, row, column = store.space.zones[address >> 32], address >> 8 & 0xFFFFFF, address & 255
        member, slot = zone.map.columns[column]
        fd, offset = store.array.states[member].member.column_descriptor(
            address >> 32, column, slot
        )
        os.pwrite(fd, b"damage", offset + row * CELL + 7)
        os.close(fd)
        out = np.zeros((1, CELL), np.uint8)
        assert store.columns.read(addresses[page : page + 1], out) == errno.EIO
        assert bytes(await volume.read(ino, page * CELL, CELL)) == want[page * CELL :][:CELL]
        assert store.columns.read(addresses[page : page + 1], out) == 0
        assert out.tobytes() == want[page * CELL :][:CELL]
    run_check(paths)


@pytest.mark.parametrize("kind", ["directory", pytest.param("image", marks=pytest.mark.slow)])
@pytest.mark.trio
async def test_zones_that_are_erased_and_their_places_used_again(tmp_path, kind):
    """An address is never of other content, however often the place behind it is."""
    paths = make_members(tmp_path, kind, 3, "5")
    known, wrong, reads = [], [], [0]
    stop = threading.Event()

    def hammer(columns):
        chooser = random.Random(5)
        out = np.zeros((64, CELL), np.uint8)
        while not stop.is_set():
            if known:
                addresses, cells = known[-1 - min(len(known) - 1, chooser.randrange(4))]
                first = chooser.randrange(len(addresses))
                part = slice(first, first + 64)
                into = out[: len(addresses[part])]
                into[:] = 0
                if columns.read(addresses[part], into) == 0:
                    reads[0] += 1
                    if not (into == cells[part]).all():
                        wrong.append(addresses[part])

    async with mounted(paths) as volume:
        store, chooser = volume.store, random.Random(6)
        thread = threading.Thread(target=hammer, args=(store.columns,))
        thread.start()
        gone = set()
        try:
            for number in range(40):
                name = b"file%d" % number
                ino = volume.create(1, name, 0o644, os.O_RDWR, ROOT).ino
                data = chooser.randbytes((1 << 20) + (3 << 19) * (number % 3))
                await volume.write(ino, 0, data[: 1 << 20])
                await volume.write(ino, 1 << 20, data[1 << 20 :])
                before = set(store.space.zones)
                await volume.fsync(ino)
                pages = np.arange(len(data) // CELL, dtype=np.uint64)
                addresses, _ = store.reader.addresses(ino, pages)
                known.append((addresses, np.frombuffer(data, np.uint8).reshape(-1, CELL)))
                await Comparison(volume).compare(ino, data)
                if number % 5 == 4:
                    await volume.setattr(ino, Changes(size=0), ROOT)
                volume.release(ino)
                forget_all(volume, ino)
                if number >= 3:
                    volume.unlink(1, b"file%d" % (number - 3))
                gone |= before - set(store.space.zones)
                assert not any(store.columns.zone_known(zone) for zone in gone)
        finally:
            stop.set()
            thread.join()
        assert len(gone) > 6 and reads[0] > 10 and not wrong
        statistics = store.columns.statistics()
        assert statistics.zones <= len(store.space.zones)
        assert statistics.descriptors <= 3 * (statistics.zones + 1)
    run_check(paths)


@pytest.mark.trio
async def test_a_member_without_descriptors_is_left_to_python(tmp_path):
    paths = make_members(tmp_path, "directory", 3, "5")
    async with mounted(paths) as volume:
        store = volume.store
        member = store.array.states[1].member
        member.column_descriptor = lambda zone, column, slot: None
        files = await some_files(volume, 7)
        ino, want = files[b"file1"]
        assert bytes(await volume.read(ino, 0, len(want))) == want
        pages = np.arange(4, dtype=np.uint64)
        addresses, _ = store.reader.addresses(ino, pages)
        out = np.zeros((4, CELL), np.uint8)
        assert store.columns.read(addresses, out) == errno.ENOENT
        assert store.columns.statistics().descriptors == 0
