"""Content of files: sparse, overlapping, concurrent, across cuts and mounts, a full volume."""

import errno
import os
import random

import lane_calls
import pytest
import trio
from checking import run_check
from volumes import ALICE, ROOT, content, forget_all, make_members, mounted

from raidfs.errors import FsError, OutOfSpace
from raidfs.fs.attributes import Changes
from raidfs.pages import SERVE_READS, SERVE_WRITES

FILE = 0o100644


@pytest.mark.trio
async def test_sparse_files(tmp_path):
    paths = make_members(tmp_path)
    pieces = {0: b"start", 5_000_000_000: b"far", 2**50 + 123: b"farther", 2**63 - 10: b"the end"}
    async with mounted(paths) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        for offset, data in pieces.items():
            assert await volume.write(file, offset, data) == len(data)
    async with mounted(paths) as volume:
        assert volume.getattr(file).size == 2**63 - 3
        for offset, data in pieces.items():
            want = bytes(min(7, offset)) + data + bytes(7)
            got = bytes(await volume.read(file, max(0, offset - 7), len(want)))
            assert got == want[: len(got)]
        await volume.setattr(file, Changes(size=2**50 + 125), ROOT)
        await volume.setattr(file, Changes(size=2**60), ROOT)
        assert bytes(await volume.read(file, 2**50 + 123, 9)) == b"fa" + bytes(7)
        assert bytes(await volume.read(file, 2**60 - 2, 9)) == bytes(2)
        assert bytes(await volume.read(file, 2**60, 9)) == b""


@pytest.mark.trio
async def test_blocks_count_what_is_there(tmp_path):
    """st_blocks, as du sums it: dirty pages count, holes don't, a mount changes nothing."""
    paths = make_members(tmp_path)
    units = 4096 // 512
    async with mounted(paths) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        await volume.write(file, 2**40, b"x" * 9000)
        assert volume.getattr(file).blocks == 3 * units
        await volume.fsync(file)
        assert volume.getattr(file).blocks == 3 * units
        await volume.write(file, 0, bytes(4096))
        await volume.fsync(file)
        await volume.write(file, 0, b"again")
        await volume.fsync(file)
        assert volume.getattr(file).blocks == 4 * units
        small = volume.mknod(1, b"small", FILE, 0, ROOT).ino
        await volume.write(small, 0, b"x" * 1000)
        await volume.fsync(small)
        assert volume.getattr(small).blocks == 2
    async with mounted(paths) as volume:
        file = volume.lookup(1, b"file").ino
        assert volume.getattr(file).blocks == 4 * units
        await volume.setattr(file, Changes(size=2**40), ROOT)
        await volume.fsync(file)
        assert volume.getattr(file).blocks == units
        await volume.setattr(file, Changes(size=0), ROOT)
        await volume.fsync(file)
        assert volume.getattr(file).blocks == 0
    run_check(paths)


@pytest.mark.trio
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_writes_and_truncates(tmp_path, seed):
    """One file against a bytearray, with cuts and flushes at random between."""
    print("seed", seed)
    rng = random.Random(seed)
    paths = make_members(tmp_path)
    model = bytearray()
    async with mounted(paths) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        for _ in range(120):
            what = rng.random()
            offset, length = rng.randrange(40_000), rng.choice([1, 100, 4096, 9000])
            if what < 0.5:
                data = rng.randbytes(length)
                await volume.write(file, offset, data)
                model.extend(bytes(max(0, offset + length - len(model))))
                model[offset : offset + length] = data
            elif what < 0.65:
                size = rng.choice([0, offset, offset // 4096 * 4096])
                await volume.setattr(file, Changes(size=size), ROOT)
                model = model[:size] + bytes(max(0, size - len(model)))
            elif what < 0.75:
                volume.store.request_cut()
                await trio.sleep(rng.choice([0, 0.001]))
            elif what < 0.8:
                await volume.fsync(file)
            got = bytes(await volume.read(file, offset, length))
            assert got == bytes(model[offset : offset + length])
        assert await content(volume, file) == bytes(model)
    async with mounted(paths) as volume:
        assert await content(volume, file) == bytes(model)


@pytest.mark.trio
async def test_concurrent_partial_writes_of_one_page_lose_nothing(tmp_path):
    """Each writer fetches the page's old content and waits meanwhile; none may undo another."""
    paths = make_members(tmp_path)
    pages, writers = 6, 64
    async with mounted(paths) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        await volume.write(file, 0, b"\xff" * 4096 * pages)
    async with mounted(paths) as volume:
        cuts = 0

        async def write(number):
            for page in range(pages):
                await volume.write(file, page * 4096 + number * 64, bytes([number]) * 64)

        async def cut_often():
            nonlocal cuts
            while True:
                await volume.fsync(file)
                cuts += 1
                await trio.sleep(0)

        async with trio.open_nursery() as outer:
            outer.start_soon(cut_often)
            async with trio.open_nursery() as nursery:
                for number in range(writers):
                    nursery.start_soon(write, number)
            outer.cancel_scope.cancel()
        want = b"".join(bytes([number]) * 64 for number in range(writers)) * pages
        assert await content(volume, file) == want
        assert volume.store.space.reserved == 0


@pytest.mark.trio
async def test_writes_are_atomic_to_readers(tmp_path):
    """A reader sees a write of many pages whole or not at all."""
    async with mounted(make_members(tmp_path)) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        await volume.write(file, 0, bytes(100_000))

        async def write(done):
            for number in range(1, 30):
                await volume.write(file, 37, bytes([number]) * 99_000)
            done.set()

        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, done)
            while not done.is_set():
                got = bytes(await volume.read(file, 37, 99_000))
                assert len(set(got)) == 1
                await trio.sleep(0)


@pytest.mark.trio
async def test_a_file_removed_while_written(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        for number in range(10):
            file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
            await volume.write(file, 0, b"x" * 10_000)
            await volume.fsync(file)
            forget_all(volume, file)

            async def write(file=file):
                try:
                    await volume.write(file, 5000, b"y" * 100)
                except FsError as error:
                    assert error.errno == errno.ESTALE

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                for _ in range(number):
                    await trio.lowlevel.checkpoint()
                volume.unlink(1, b"file")
            assert volume.statistics().orphans == 0
        await volume.fsync(1)
        await volume.fsync(1)
        assert volume.store.space.reserved == 0
        assert volume.store.space.usage().live_cells == 0


@pytest.mark.trio
async def test_a_full_volume_says_so_and_recovers(tmp_path):
    paths = make_members(tmp_path, size_bytes=24 << 20)
    async with mounted(paths) as volume:
        files, written = [], 0
        with pytest.raises(OutOfSpace):
            while True:
                files.append(volume.mknod(1, b"f%d" % len(files), FILE, 0, ROOT).ino)
                done = await volume.write(files[-1], 0, b"x" * (1 << 20))
                written += done
                if done < 1 << 20:
                    break
                assert written < 1 << 30
            await volume.write(files[-1], 1 << 20, b"x" * (1 << 20))
        assert written > 1 << 20
        await volume.fsync(1)
        assert volume.statfs().free < 256
        for number, file in enumerate(files):
            if number % 2:
                await volume.setattr(file, Changes(size=5), ALICE)
            else:
                volume.unlink(1, b"f%d" % number)
                forget_all(volume, file)
        await volume.fsync(1)
        file = volume.mknod(1, b"new", FILE, 0, ROOT).ino
        assert await volume.write(file, 0, b"y" * (1 << 20)) == 1 << 20
        await volume.fsync(1)
        assert volume.store.space.reserved == 0
    async with mounted(paths) as volume:
        assert await content(volume, file) == b"y" * (1 << 20)
        assert await content(volume, files[1]) == b"x" * 5


# -- beside the lane ------------------------------------------------------------------------------


def lane_write_once(volume, monkeypatch, ino, offset, data):
    """A thread of the lane writes when a change is about to begin, after its bases were read."""
    store, done = volume.store, []
    change = volume.inodes.change_alone

    def change_alone(inode, freeing=False):
        change(inode, freeing)
        if inode.ino == ino and not done:
            store.pages.vouch(ino, SERVE_READS | SERVE_WRITES)
            done.append(lane_calls.write(store.pages, ino, offset, data, volume.clock()))

    monkeypatch.setattr(volume.inodes, "change_alone", change_alone)
    return done


@pytest.mark.trio
async def test_the_lane_extends_a_file_that_is_being_written(tmp_path, monkeypatch):
    """The write covered the whole file when it looked, and needs old content a moment later."""
    async with mounted(make_members(tmp_path)) as volume:
        file = volume.create(1, b"file", 0o644, os.O_RDWR, ROOT).ino
        await volume.write(file, 0, b"a" * 6000)
        await volume.fsync(file)
        assert volume.store.lane_wants() > 0
        done = lane_write_once(volume, monkeypatch, file, 3 * 4096, b"l" * 4096)
        assert await volume.write(file, 4096, b"p" * 1904) == 1904
        assert done == [1]
        expected = b"a" * 4096 + b"p" * 1904 + bytes(3 * 4096 - 6000) + b"l" * 4096
        assert await content(volume, file) == expected


@pytest.mark.trio
async def test_the_lane_extends_a_file_that_is_being_truncated(tmp_path, monkeypatch):
    """It was to grow; now its end is cut off within a page that lies on members."""
    async with mounted(make_members(tmp_path)) as volume:
        file = volume.create(1, b"file", 0o644, os.O_RDWR, ROOT).ino
        await volume.write(file, 0, b"a" * 6000)
        await volume.fsync(file)
        assert volume.store.lane_wants() > 0
        done = lane_write_once(volume, monkeypatch, file, 3 * 4096, b"l" * 4096)
        monkeypatch.setattr(volume.store.pages, "vouch", lambda ino, flags: None)
        volume.store.pages.__class__.vouch(volume.store.pages, file, SERVE_WRITES)
        told = await volume.setattr(file, Changes(size=8000), ROOT)
        assert done == [1] and told.size == 8000
        assert await content(volume, file) == b"a" * 6000 + bytes(2000)
        monkeypatch.undo()
