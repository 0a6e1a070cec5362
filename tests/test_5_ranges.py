"""Holes, allocation, seeking for data, and copies that share cells: against plain bytes, over cuts,
flushes and mounts; and the rules of lseek(2), fallocate(2), copy_file_range(2), O_TMPFILE.
"""

import errno
import os
import random

import pytest
import trio
from checking import run_check
from volumes import ALICE, ROOT, content, forget_all, make_members, mounted, names

from raidfs.errors import FsError, OutOfSpace
from raidfs.fs.attributes import Changes
from raidfs.fs.ranges import KEEP_SIZE, PIECE_LEAVES, PUNCH_HOLE, ZERO_RANGE

FILE = 0o100644
PAGE = 4096
PUNCH = PUNCH_HOLE | KEEP_SIZE
UNITS = PAGE // 512


def new(volume, name=b"file"):
    return volume.mknod(1, name, FILE, 0, ROOT).ino


async def filled(volume, name, pages, extra=0, *, flushed=True):
    """A file of random bytes; (ino, bytes)."""
    file = new(volume, name)
    data = random.Random(name).randbytes(pages * PAGE + extra)
    await volume.write(file, 0, data)
    if flushed:
        await volume.fsync(file)
    return file, data


async def copy_all(volume, source, offset_in, target, offset_out, nbytes):
    """As cp does: until it is done or there is no more."""
    done = 0
    while done < nbytes:
        got = await volume.copy_range(
            source, offset_in + done, target, offset_out + done, nbytes - done
        )
        if not got:
            break
        done += got
    return done


async def refused(number, call, *arguments):
    with pytest.raises(FsError) as info:
        result = call(*arguments)
        if hasattr(result, "__await__"):
            await result
    assert info.value.errno == number


async def extents(volume, file):
    """The data of a file as (start, end), as a backup program finds it."""
    found, at = [], 0
    while True:
        try:
            start = await volume.seek(file, at, os.SEEK_DATA)
        except FsError as error:
            assert error.errno == errno.ENXIO
            return found
        at = await volume.seek(file, start, os.SEEK_HOLE)
        found.append((start, at))


def live(volume):
    return sum(zone.live for zone in volume.store.space.zones.values())


# -- seek -----------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_data_and_holes_are_found(tmp_path):
    paths = make_members(tmp_path)
    far = 2**40 + 5 * PAGE
    async with mounted(paths) as volume:
        file = new(volume)
        assert await extents(volume, file) == []
        await refused(errno.ENXIO, volume.seek, file, 0, os.SEEK_HOLE)
        await volume.write(file, 5 * PAGE + 7, b"x" * PAGE)
        await volume.write(file, far, b"y")
        want = [(5 * PAGE, 7 * PAGE), (far, far + 1)]
        for _ in range(3):  # in memory, being flushed, on members
            assert await extents(volume, file) == want
            assert await volume.seek(file, 6 * PAGE + 1, os.SEEK_DATA) == 6 * PAGE + 1
            assert await volume.seek(file, 3, os.SEEK_HOLE) == 3
            assert await volume.seek(file, 6 * PAGE, os.SEEK_HOLE) == 7 * PAGE
            assert await volume.seek(file, far, os.SEEK_HOLE) == far + 1
            await refused(errno.ENXIO, volume.seek, file, far + 1, os.SEEK_DATA)
            await refused(errno.ENXIO, volume.seek, file, far + 1, os.SEEK_HOLE)
            await refused(errno.ENXIO, volume.seek, file, -1, os.SEEK_DATA)
            await refused(errno.EINVAL, volume.seek, file, 0, 7)
            volume.store.request_cut()
            await volume.fsync(file)
        await volume.setattr(file, Changes(size=2**60), ROOT)
        want[1] = (far, far + PAGE)
        assert await extents(volume, file) == want
        await refused(errno.ENXIO, volume.seek, file, far + PAGE, os.SEEK_DATA)
        await volume.setattr(file, Changes(size=6 * PAGE), ROOT)
        assert await extents(volume, file) == [(5 * PAGE, 6 * PAGE)]
        await volume.setattr(file, Changes(size=2**60), ROOT)
        assert await extents(volume, file) == [(5 * PAGE, 6 * PAGE)]  # leaf hidden by a cut
        small = new(volume, b"small")
        await volume.write(small, 0, b"inline")
        await volume.fsync(small)
        assert await extents(volume, small) == [(0, 6)]
        await refused(errno.EISDIR, volume.seek, 1, 0, os.SEEK_DATA)
    async with mounted(paths) as volume:
        assert await extents(volume, file) == [(5 * PAGE, 6 * PAGE)]
        assert await extents(volume, small) == [(0, 6)]


@pytest.mark.trio
async def test_seeking_lets_others_work(tmp_path):
    """A long walk pauses, and sees what changes meanwhile."""
    async with mounted(make_members(tmp_path)) as volume:
        file = new(volume)
        for leaf in range(200):
            await volume.write(file, leaf << 20, b"x")
        await volume.fsync(file)
        await volume.setattr(file, Changes(size=0), ROOT)
        await volume.setattr(file, Changes(size=1 << 40), ROOT)
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await trio.sleep(0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await refused(errno.ENXIO, volume.seek, file, 0, os.SEEK_DATA)
            nursery.cancel_scope.cancel()
        assert turns >= 2


# -- fallocate ------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_what_fallocate_refuses(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        file = new(volume)
        for offset, length in ((-1, 5), (0, 0), (0, -1)):
            await refused(errno.EINVAL, volume.fallocate, file, offset, length, 0)
        for mode in (PUNCH_HOLE, PUNCH | ZERO_RANGE, 8, 0x20, 0x40, 0x41, 4, 1 << 31):
            await refused(errno.EOPNOTSUPP, volume.fallocate, file, 0, 5, mode)
        await refused(errno.EFBIG, volume.fallocate, file, 2**63 - 5, 5, PUNCH)
        await refused(errno.EISDIR, volume.fallocate, 1, 0, 5, 0)
        fifo = volume.mknod(1, b"fifo", 0o010644, 0, ROOT).ino
        await refused(errno.ENODEV, volume.fallocate, fifo, 0, 5, 0)
        assert volume.getattr(file).size == 0


@pytest.mark.trio
async def test_allocating(tmp_path):
    """The size grows as asked; a range without room is refused, as statfs tells."""
    async with mounted(make_members(tmp_path)) as volume:
        file, data = await filled(volume, b"file", 3, 5)
        before = volume.getattr(file)
        await volume.fallocate(file, 0, 10 * PAGE, KEEP_SIZE)
        assert volume.getattr(file) == before
        await volume.fallocate(file, 100, 10 * PAGE, 0)
        after = volume.getattr(file)
        assert (after.size, after.blocks) == (100 + 10 * PAGE, before.blocks)
        assert after.mtime_ns > before.mtime_ns
        assert await content(volume, file) == data.ljust(100 + 10 * PAGE, b"\0")
        space = volume.store.space
        await volume.fsync(file)
        await space.grow(space.wants_zone)  # now, not in the background while we compare
        free = volume.statfs().free
        await volume.fallocate(file, 0, (free + 4) * PAGE, KEEP_SIZE)  # has four of them already
        for length in (free + 5, free * 2):
            with pytest.raises(OutOfSpace):
                await volume.fallocate(file, 0, length * PAGE, 0)
        with pytest.raises(OutOfSpace):
            await volume.fallocate(file, 2**62, (free + 1) * PAGE, ZERO_RANGE)
        assert volume.getattr(file).size == after.size


@pytest.mark.trio
async def test_room_of_removed_files_can_be_allocated(tmp_path):
    async with mounted(make_members(tmp_path, size_bytes=24 << 20)) as volume:
        free = volume.statfs().free
        big = new(volume, b"big")
        await volume.write(big, 0, b"x" * (free // 2 * PAGE))
        await volume.fsync(big)
        file = new(volume)
        with pytest.raises(OutOfSpace):
            await volume.fallocate(file, 0, free * 3 // 4 * PAGE, 0)
        volume.unlink(1, b"big")
        forget_all(volume, big)
        await volume.fallocate(file, 0, free * 3 // 4 * PAGE, 0)


@pytest.mark.trio
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("mode", [PUNCH, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE])
async def test_clearing(tmp_path, flushed, mode):
    """Whole pages become holes, ragged ends zeros, nothing else changes."""
    paths = make_members(tmp_path)
    ranges = [
        (0, 1), (5, PAGE), (PAGE, PAGE), (PAGE - 1, 2), (0, 5 * PAGE + 77), (3 * PAGE + 9, 9000),
        (2 * PAGE + 1, 3 * PAGE - 1), (5 * PAGE, 77), (5 * PAGE + 70, 500), (0, 2**50),
        (9 * PAGE, PAGE), (5 * PAGE + 77, 1),
    ]  # fmt: skip
    async with mounted(paths) as volume:
        files = {}
        for offset, length in ranges:
            name = b"%d+%d" % (offset, length)
            file, data = await filled(volume, name, 5, 77, flushed=flushed)
            before = volume.getattr(file)
            if length == 2**50 and mode != PUNCH:
                length = 10 * PAGE
            await volume.fallocate(file, offset, length, mode)
            end = min(len(data), offset + length)
            if offset < end:
                data = data[:offset] + bytes(end - offset) + data[end:]
                assert volume.getattr(file).mtime_ns > before.mtime_ns
            if mode == ZERO_RANGE:
                data = data.ljust(offset + length, b"\0")
            assert await content(volume, file) == data
            files[file] = data
            first, last = -(-offset // PAGE), (offset + length) // PAGE
            if offset + length >= 5 * PAGE + 77:
                last = 6
            holes = set(range(first, max(first, min(last, 6))))
            kept = [page for page in range(6) if page not in holes]
            assert volume.getattr(file).blocks >= len(kept) * UNITS
            await volume.fsync(file)
            assert volume.getattr(file).blocks == len(kept) * UNITS, (offset, length)
            found = [(a // PAGE, -(-b // PAGE)) for a, b in await extents(volume, file)]
            assert [page for a, b in found for page in range(a, b)] == kept
        assert live(volume) == sum(volume.getattr(file).blocks // UNITS for file in files)
        assert volume.store.space.reserved == 0
    async with mounted(paths) as volume:
        for file, data in files.items():
            assert await content(volume, file) == data
    run_check(paths)


@pytest.mark.trio
async def test_clearing_small_files(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        for flushed in (False, True):
            file = new(volume, b"small %d" % flushed)
            await volume.write(file, 0, b"0123456789")
            if flushed:
                await volume.fsync(file)
            await volume.fallocate(file, 2, 3, PUNCH)
            assert await content(volume, file) == b"01\0\0\x0056789"
            await volume.fallocate(file, 5, 9, ZERO_RANGE)
            assert await content(volume, file) == b"01".ljust(14, b"\0")
            if flushed:
                await volume.fsync(file)
            await volume.fallocate(file, 0, 14, PUNCH)
            assert await content(volume, file) == bytes(14)
            await volume.fsync(file)
            assert await extents(volume, file) == []
    run_check(paths)


@pytest.mark.trio
async def test_a_long_range_costs_by_what_lies_in_it(tmp_path):
    """Terabytes of holes are nothing; many leaves go in pieces, and marks wait within bounds."""
    paths = make_members(tmp_path, count=3)
    async with mounted(paths, store_options={"dirty_bytes_max": 320 * PAGE}) as volume:
        file = new(volume)
        assert volume.ranges.leaves_max == 2 * PIECE_LEAVES
        leaves = 5 * PIECE_LEAVES
        for leaf in range(leaves):
            await volume.write(file, leaf << 24, b"x" * 5000)
        await volume.setattr(file, Changes(size=2**60), ROOT)
        await volume.fsync(file)
        epochs, other = volume.store.epoch, new(volume, b"copy")
        await volume.write(other, 9 << 40, b"z" * 5000)
        assert await copy_all(volume, file, 0, other, 0, 2**59) == 2**59
        assert volume.getattr(other).size == 2**59
        assert await extents(volume, other) == await extents(volume, file)
        assert volume.store.epoch > epochs + 1
        await volume.fallocate(file, 4096, 2**59, PUNCH)
        assert await extents(volume, file) == [(0, 4096)]
        await volume.fallocate(file, 0, 2**61, PUNCH)
        await volume.fsync(file)
        assert volume.getattr(file).blocks == 0
        assert bytes(await volume.read(other, leaves - 1 << 24, 5000)) == b"x" * 5000
    run_check(paths)


@pytest.mark.trio
async def test_a_full_volume_can_punch(tmp_path):
    async with mounted(make_members(tmp_path, size_bytes=24 << 20)) as volume:
        file, written = new(volume), 0
        with pytest.raises(OutOfSpace):
            while True:
                written += await volume.write(file, written, b"x" * (1 << 20))
        await volume.fsync(file)
        await volume.fallocate(file, 100, written - 200, PUNCH)
        await volume.fsync(file)
        assert volume.getattr(file).blocks == 2 * UNITS
        assert await volume.write(file, 0, b"y" * (1 << 20)) == 1 << 20
        await volume.fsync(file)


# -- copying --------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_what_copying_refuses(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        file, data = await filled(volume, b"file", 3)
        other = new(volume, b"other")
        for ino_in, ino_out in ((1, file), (file, 1)):
            await refused(errno.EISDIR, volume.copy_range, ino_in, 0, ino_out, 0, 5)
        fifo = volume.mknod(1, b"fifo", 0o010644, 0, ROOT).ino
        await refused(errno.EINVAL, volume.copy_range, fifo, 0, file, 0, 5)
        await refused(errno.EINVAL, volume.copy_range, file, -1, other, 0, 5)
        for there in (0, 1, PAGE, 2 * PAGE - 1):
            await refused(errno.EINVAL, volume.copy_range, file, 0, file, there, 2 * PAGE)
        assert await volume.copy_range(file, 0, file, 3 * PAGE, 9 * PAGE) == 3 * PAGE
        await refused(errno.EFBIG, volume.copy_range, file, 0, other, 2**63 - 1, 5)
        assert await volume.copy_range(file, 3, other, 2**63 - 4, 5) == 3
        assert await volume.copy_range(file, len(data) * 2, other, 0, 5) == 0
        assert await volume.copy_range(file, 2**62, other, 0, 5) == 0
        assert await volume.copy_range(file, 0, other, 0, 0) == 0


@pytest.mark.trio
@pytest.mark.parametrize("source_flushed", [False, True])
async def test_copies(tmp_path, source_flushed):
    """All alignments, onto nothing, onto content, in the middle; before and after flushes."""
    paths = make_members(tmp_path)
    places = [
        (0, 0, 6 * PAGE), (PAGE, 0, 2 * PAGE), (0, 3 * PAGE, 2**40), (5, 5, 4 * PAGE), (5, 6, 9000),
        (PAGE - 1, 2 * PAGE - 1, 2 * PAGE), (5 * PAGE, PAGE, 100), (5 * PAGE, 5 * PAGE, 77),
        (5 * PAGE, 2 * PAGE, 77), (0, 8 * PAGE, PAGE + 1), (0, 0, 2**40),
    ]  # fmt: skip
    async with mounted(paths) as volume:
        source, data = await filled(volume, b"source", 5, 77, flushed=source_flushed)
        files = {source: data}
        for number, (start, there, length) in enumerate(places):
            for pages in (0, 3, 9):
                name = b"%d on %d" % (number, pages)
                file, old = await filled(volume, name, pages, 5 if pages else 0)
                copied = min(length, len(data) - start)
                assert await copy_all(volume, source, start, file, there, length) == copied
                want = bytearray(old.ljust(there + copied, b"\0"))
                want[there : there + copied] = data[start : start + copied]
                files[file] = bytes(want)
                assert await content(volume, file) == want, (start, there, length, pages)
        for _ in range(2):
            await volume.fsync(1)
            for file, want in files.items():
                assert await content(volume, file) == want
        await volume.write(source, 0, b"\xff" * 3 * PAGE)  # nobody else notices
        await volume.setattr(source, Changes(size=4 * PAGE + 5), ROOT)
        await volume.fsync(1)
        files[source] = b"\xff" * 3 * PAGE + data[3 * PAGE : 4 * PAGE + 5]
        for file, want in files.items():
            assert await content(volume, file) == want
    run_check(paths)
    async with mounted(paths) as volume:
        for file, want in files.items():
            assert await content(volume, file) == want


@pytest.mark.trio
async def test_sharing_takes_no_room_and_counts_each_reference(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        source, data = await filled(volume, b"source", 100, 77)
        filled_rows = sum(zone.fill for zone in volume.store.space.zones.values())
        copies = []
        for number in range(5):
            copies.append(new(volume, b"copy %d" % number))
            assert await copy_all(volume, source, 0, copies[-1], 0, 2**40) == len(data)
            assert volume.store.pages.dirty_cells == 0
            assert await content(volume, copies[-1]) == data
            assert volume.getattr(copies[-1]).blocks == 101 * UNITS
        await volume.fsync(1)
        assert filled_rows == sum(zone.fill for zone in volume.store.space.zones.values())
        assert live(volume) == 6 * 101
        assert volume.store.space.usage().live_cells <= 102
        assert all(volume.getattr(file).blocks == 101 * UNITS for file in copies)
        volume.unlink(1, b"source")
        forget_all(volume, source)
        await volume.fsync(1)
        assert live(volume) == 5 * 101 and volume.store.space.usage().live_cells <= 102
        for number in range(4):
            volume.unlink(1, b"copy %d" % number)
            forget_all(volume, copies[number])
        await volume.fsync(1)
        assert await content(volume, copies[4]) == data
    run_check(paths)
    async with mounted(paths) as volume:
        assert await content(volume, copies[4]) == data
        volume.unlink(1, b"copy 4")
        await volume.fsync(1)
        assert live(volume) == 0 and not list(volume.store.meta.all_shares())
    run_check(paths)


@pytest.mark.trio
async def test_holes_are_copied_as_holes(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        file, other = new(volume), new(volume, b"other")
        await volume.write(file, 3 * PAGE, b"x" * PAGE)
        await volume.write(file, 2**34, b"y" * PAGE)
        await volume.setattr(file, Changes(size=2**35 + 5), ROOT)
        for flushed in (False, True):
            await volume.write(other, 0, b"z" * 9 * PAGE)
            await volume.write(other, 2**33, b"z" * 9 * PAGE)
            if flushed:
                await volume.fsync(1)
            assert await copy_all(volume, file, 0, other, 0, 2**40) == 2**35 + 5
            assert await extents(volume, other) == await extents(volume, file)
            assert volume.getattr(other).size == 2**35 + 5
            assert bytes(await volume.read(other, 2**34 - 5, 10)) == bytes(5) + b"y" * 5
            await volume.setattr(other, Changes(size=0), ROOT)
    run_check(paths)


@pytest.mark.trio
async def test_copies_of_small_files(tmp_path):
    """Content inside the leaf is copied; so is what a copy makes small."""
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        small, other = new(volume, b"small"), new(volume, b"other")
        await volume.write(small, 0, b"inline")
        await volume.fsync(1)
        assert await copy_all(volume, small, 0, other, 0, 100) == 6
        assert await copy_all(volume, small, 0, other, PAGE, 100) == 6
        big, data = await filled(volume, b"big", 3)
        onto = new(volume, b"onto")
        await volume.write(onto, 0, b"inline, too")
        await volume.fsync(1)
        assert await copy_all(volume, big, 0, onto, 0, 2 * PAGE) == 2 * PAGE
        await volume.fsync(1)
        assert await content(volume, onto) == data[: 2 * PAGE]
        assert await content(volume, other) == b"inline".ljust(PAGE, b"\0") + b"inline"
        await volume.setattr(onto, Changes(size=50), ROOT)
        assert await content(volume, onto) == data[:50]
        await volume.fsync(1)
        assert await content(volume, onto) == data[:50]
    run_check(paths)


@pytest.mark.trio
@pytest.mark.parametrize("cut_between", [False, True])
async def test_a_zone_is_kept_for_a_copy_whose_source_goes(tmp_path, cut_between):
    """All that was written to the zone is gone, and only what shares it remains; then that goes."""
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        space = volume.store.space
        pages = 3 * 256 * space.code.k  # whole zones of 256 rows
        source, data = await filled(volume, b"source", pages)
        full = {number for number, zone in space.zones.items() if not zone.room_cells}
        assert len(full) >= 2
        copy = new(volume, b"copy")
        assert await copy_all(volume, source, 0, copy, 0, 2**40) == len(data)
        held = {number for number, zone in space.zones.items() if zone.holds}
        assert full <= held
        if cut_between:
            volume.store.request_cut()
            await trio.lowlevel.checkpoint()
        volume.unlink(1, b"source")
        forget_all(volume, source)
        await volume.fsync(1)
        assert live(volume) == pages and not any(zone.holds for zone in space.zones.values())
        assert await content(volume, copy) == data
        await volume.setattr(copy, Changes(size=PAGE), ROOT)
        await volume.fsync(1)
        assert live(volume) == 1 and len(full & space.zones.keys()) <= 1
        assert await content(volume, copy) == data[:PAGE]
    run_check(paths)


@pytest.mark.trio
async def test_copies_while_the_source_changes_and_flushes_run(tmp_path):
    """Each page of a copy is what the source had at some moment; nothing is lost or freed."""
    paths = make_members(tmp_path)
    pages, rounds = 40, 25
    async with mounted(paths) as volume:
        source, _ = await filled(volume, b"source", 0)
        await volume.write(source, 0, bytes([1]) * pages * PAGE)
        copies = []

        async def rewrite():
            rng = random.Random(1)
            for number in range(2, rounds):
                first = rng.randrange(pages)
                count = rng.randint(1, pages - first)
                await volume.write(source, first * PAGE, bytes([number]) * count * PAGE)
                await trio.sleep(0.001)

        async def copy(number):
            file = new(volume, b"copy %d" % number)
            copies.append(file)
            assert await copy_all(volume, source, 0, file, 0, 2**40) == pages * PAGE
            if number % 3 == 0:
                volume.unlink(1, b"copy %d" % number)
                copies.remove(file)
                forget_all(volume, file)

        async def flush():
            while True:
                await volume.fsync(1)
                await trio.sleep(0)

        async with trio.open_nursery() as outer:
            outer.start_soon(flush)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rewrite)
                for number in range(rounds):
                    nursery.start_soon(copy, number)
                    await trio.sleep(0.002)
            outer.cancel_scope.cancel()
        wholes = [await content(volume, file) for file in copies]
        for whole in wholes:
            for at in range(0, len(whole), PAGE):
                page = whole[at : at + PAGE]
                assert 1 <= page[0] < rounds and page == page[:1] * PAGE
        await volume.fsync(1)
        assert wholes == [await content(volume, file) for file in copies]
    run_check(paths)
    async with mounted(paths) as volume:
        assert wholes == [await content(volume, file) for file in copies]


@pytest.mark.trio
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_operations_on_files_that_share(tmp_path, seed):
    """Four files against bytearrays: everything that changes or shares content, with cuts, flushes
    and mounts at random between."""
    print("seed", seed)
    rng = random.Random(seed)
    paths = make_members(tmp_path)
    models = [bytearray() for _ in range(4)]
    files = []
    for _ in range(3):
        async with mounted(paths) as volume:
            files = files or [new(volume, b"%d" % number) for number in range(4)]
            for _ in range(150):
                await random_step(volume, rng, files, models)
            for file, model in zip(files, models, strict=True):
                assert await content(volume, file) == bytes(model)
                assert volume.getattr(file).size == len(model)
        async with mounted(paths) as volume:
            for file, model in zip(files, models, strict=True):
                assert await content(volume, file) == bytes(model)
        run_check(paths)


def some_range(rng):
    offset, length = rng.randrange(70_000), rng.choice([1, 100, PAGE, 9000, 40_000])
    if rng.random() < 0.6:
        offset, length = offset // PAGE * PAGE, -(-length // PAGE) * PAGE
    return offset, length


async def random_step(volume, rng, files, models):
    which = rng.randrange(4)
    file, model, what = files[which], models[which], rng.random()
    offset, length = some_range(rng)
    size = len(model)
    if what < 0.25:
        data = rng.randbytes(length)
        await volume.write(file, offset, data)
        model.extend(bytes(max(0, offset + length - size)))
        model[offset : offset + length] = data
    elif what < 0.35:
        await volume.setattr(file, Changes(size=offset), ROOT)
        model[offset:] = b""
        model.extend(bytes(offset - len(model)))
    elif what < 0.5:
        mode = rng.choice([PUNCH, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE, 0, KEEP_SIZE])
        await volume.fallocate(file, offset, length, mode)
        end = min(size, offset + length)
        if mode & (PUNCH_HOLE | ZERO_RANGE) and offset < end:
            model[offset:end] = bytes(end - offset)
        if not mode & KEEP_SIZE:
            model.extend(bytes(max(0, offset + length - size)))
    elif what < 0.75:
        other = rng.randrange(4)
        there, _ = some_range(rng)
        if rng.random() < 0.5:
            there = there // PAGE * PAGE + offset % PAGE
        data = bytes(models[other][offset : offset + length])
        if other == which and abs(offset - there) < len(data):
            await refused(errno.EINVAL, volume.copy_range, file, offset, file, there, length)
            return
        assert await copy_all(volume, files[other], offset, file, there, len(data)) == len(data)
        if data:
            model.extend(bytes(max(0, there + len(data) - size)))
            model[there : there + len(data)] = data
    elif what < 0.85:
        volume.store.request_cut()
        await trio.sleep(rng.choice([0, 0.001, 0.005]))
    elif what < 0.9:
        await volume.fsync(file)
    else:
        got = bytes(await volume.read(file, offset, length))
        assert got == bytes(model[offset : offset + length])
        for start, end in await extents(volume, file):
            model_end = (end - 1) // PAGE + 1
            assert 0 <= start < end <= len(model) and model_end
        at = 0
        for start, end in [*await extents(volume, file), (len(model), len(model))]:
            assert not any(model[at:start])  # holes are zeros
            at = end


# -- files without names --------------------------------------------------------------------------


@pytest.mark.trio
async def test_files_without_names(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        told = volume.tmpfile(1, 0o644, os.O_RDWR, ALICE)
        assert (told.nlink, told.size, told.mode, told.uid) == (0, 0, 0o100644, 1000)
        await volume.write(told.ino, 0, b"x" * 9000)
        await volume.fsync(told.ino)
        assert names(volume, 1) == [] and volume.statistics().orphans == 1
        linked = volume.link(told.ino, 1, b"named")
        assert linked.nlink == 1 and volume.statistics().orphans == 0
        volume.release(told.ino)
        forget_all(volume, told.ino)
        assert await content(volume, volume.lookup(1, b"named").ino) == b"x" * 9000

        gone = volume.tmpfile(1, 0o600, os.O_RDWR, ROOT).ino
        await volume.write(gone, 0, b"y" * 9000)
        forget_all(volume, gone)
        assert bytes(await volume.read(gone, 0, 3)) == b"yyy"
        volume.release(gone)
        await refused(errno.ESTALE, volume.getattr, gone)

        exclusive = volume.tmpfile(1, 0o600, os.O_RDWR | os.O_EXCL, ROOT).ino
        await refused(errno.ENOENT, volume.link, exclusive, 1, b"exclusive")
        named = volume.lookup(1, b"named").ino
        volume.open(named, os.O_RDWR)
        volume.unlink(1, b"named")
        await refused(errno.ENOENT, volume.link, named, 1, b"again")  # it was removed
        left = volume.tmpfile(1, 0o600, os.O_RDWR, ROOT).ino
        await volume.write(left, 0, b"left")

        directory = volume.mkdir(1, b"directory", 0o2755, ALICE).ino
        assert volume.tmpfile(directory, 0o644, os.O_RDWR, ROOT).gid == 1000
        await refused(errno.ENOTDIR, volume.tmpfile, named, 0o644, 0, ROOT)
        volume.rmdir(1, b"directory")
        await refused(errno.ENOENT, volume.tmpfile, directory, 0o644, 0, ROOT)
    async with mounted(paths) as volume:  # what had no name is gone
        assert volume.statistics().orphans == 0
        await refused(errno.ESTALE, volume.getattr, left)
        told = volume.statfs()  # once: what others leave of the filesystem beneath changes
        assert told.files - told.files_free == 1
    run_check(paths)


@pytest.mark.trio
async def test_a_privileged_bit_goes_with_the_content(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        source, _ = await filled(volume, b"source", 3)
        for number, call in enumerate([
            lambda file: volume.fallocate(file, 0, 5, 0, kill_privileges=True),
            lambda file: volume.fallocate(file, 0, 5, KEEP_SIZE, kill_privileges=True),
            lambda file: volume.fallocate(file, 0, 5, PUNCH, kill_privileges=True),
            lambda file: volume.fallocate(file, 0, 5, ZERO_RANGE, kill_privileges=True),
            lambda file: volume.copy_range(source, 0, file, 0, PAGE, kill_privileges=True),
            lambda file: volume.copy_range(source, 0, file, 1, 9, kill_privileges=True),
        ]):  # fmt: skip
            file, _ = await filled(volume, b"%d" % number, 2)
            await volume.setattr(file, Changes(mode=0o6755), ROOT)
            await call(file)
            assert volume.getattr(file).mode == 0o100755
