"""Credits of the lane: what C threads may make dirty, and that it is promised like all else.

The lane is played by its calls (tests/lane_calls.py) on the pages of a running volume.
"""

import errno
import random

import lane_calls
import pytest
import trio
from simulated_volume import (
    CELL_BYTES,
    checked,
    in_simulated_time,
    mounted,
    new_members,
    read_file,
    reopened,
)
from workload import ME

from raidfs.errors import OutOfSpace, ReadOnly
from raidfs.store import dirty

ROOT = 1
PAGE = CELL_BYTES


async def open_file(volume, name):
    return volume.create(ROOT, name, 0o644, 2, ME).ino


def lane_put(volume, ino, page, byte, pages=1):
    data = byte * (pages * PAGE)
    return lane_calls.put(volume.store.pages, ino, page * PAGE, data, volume.clock())


async def lane_writes(volume, ino, page, byte, pages=1):
    """As the lane and the daemon do together: park, ask for credits, or carry it to Python."""
    store = volume.store
    while True:
        result = lane_put(volume, ino, page, byte, pages)
        if result >= 0:
            return "lane"
        if result == -errno.EDQUOT and (store.lane_wants() >= pages or await store.grant(pages)):
            continue
        await volume.write(ino, page * PAGE, byte * (pages * PAGE))
        return "python"


async def with_room(volume):
    """A zone is there."""
    await volume.store.reserve(1)
    volume.store.release(1)


def test_the_lane_gets_a_part_of_the_dirty_room():
    async def run():
        members = new_members("5", 4)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            store.dirty_cells_max = 64
            got = [store.lane_wants()]  # no zone is there yet, but asked for
            with trio.fail_after(60):
                while sum(got) < 16:
                    await trio.sleep(1)
                    got.append(store.lane_wants())
            assert got[0] == 0 and sum(got) == 16 and store.lane_wants() == 0
            ino = await open_file(volume, b"file")
            promised, free = store.space.credits, store.space.usage().free_cells
            assert lane_put(volume, ino, 0, b"l", 7) == 7
            assert store.pages.claims() == (7, 9)
            assert store.space.credits == promised == 16
            assert store.space.usage().free_cells == free - 7  # what isn't spent is free
            assert store.lane_wants() == 7
            assert lane_put(volume, ino, 7, b"m", 17) == -errno.EDQUOT
            store.dirty_cells_max = 25
            assert store.lane_wants() == 0
            await volume.fsync(ino)
            assert store.pages.claims() == (0, 16) and store.space.credits == 16
        checked(members)
        async with mounted(reopened(members)) as volume:
            assert await read_file(volume, b"file") == b"l" * (7 * PAGE)

    in_simulated_time(run)


def test_writers_in_python_take_back_what_the_lane_has_not_spent():
    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            await with_room(volume)
            store.dirty_cells_max = 64
            assert store.lane_wants() == 16
            await store.reserve(50)
            assert store.pages.claims() == (0, 14)
            await store.reserve(14)
            assert store.pages.claims() == (0, 0)
            store.release(14)
            store.release(50)
            ino = await open_file(volume, b"file")
            assert store.lane_wants() == 16
            assert lane_put(volume, ino, 0, b"l", 10) == 10
            await store.reserve(60)  # what is spent must be flushed
            assert store.pages.claims() == (0, 0)
            store.release(60)

    in_simulated_time(run)


def test_a_waiting_writer_is_not_starved_by_the_lane():
    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            await with_room(volume)
            store.dirty_cells_max = 16
            await store.reserve(8)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.reserve, 12)
                await trio.sleep(1)
                assert store.lane_wants() == 0
                store.release(8)
            store.release(12)
            assert store.lane_wants() == 4

    in_simulated_time(run)


def test_grant_waits_for_room_as_a_writer_does():
    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            store.dirty_cells_max = 16
            ino = await open_file(volume, b"file")
            assert await store.grant(16)
            assert lane_put(volume, ino, 0, b"l", 16) == 16
            assert await store.grant(9)
            assert store.pages.claims() == (0, 9) and store.space.reserved == 0
            assert lane_put(volume, ino, 20, b"m", 9) == 9

    in_simulated_time(run)


@pytest.mark.parametrize("level", [("5", 3), ("6", 6), ("1", 2)])
def test_one_cell_in_each_epoch_until_the_volume_is_full(level):
    """Each flush leaves cells unused: credits granted long ago don't outlive the room for them."""

    async def run():
        members = new_members(*level, slots=6)
        async with mounted(members) as volume:
            store = volume.store
            ino, by = await open_file(volume, b"file"), []
            while await store.space.grow(lambda: True):
                pass
            granted = store.lane_wants()
            assert granted > store.space.room_cells // 2
            with pytest.raises(OutOfSpace):
                for page in range(10_000):
                    by.append(await lane_writes(volume, ino, page, b"%d" % (page % 10)))
                    assert store.space.room_cells >= store.space.credits
                    await volume.fsync(ino)
            assert len(by) // 2 < by.count("lane")
            assert store.pages.claims()[1] == 0 and not await store.grant(1)
            assert volume.getattr(ino).size == len(by) * PAGE
            pages = len(by)
        checked(members)
        async with mounted(reopened(members)) as volume:
            wanted = b"".join(b"%d" % (page % 10) * PAGE for page in range(pages))
            assert await read_file(volume, b"file") == wanted

    in_simulated_time(run)


@pytest.mark.parametrize("seed", range(4))
def test_lane_and_writers_in_little_dirty_room(seed):
    async def run():
        members = new_members("5", 4)
        chooser = random.Random(seed)
        model = {}
        async with mounted(members, dirty_bytes_max=1) as volume:
            store = volume.store
            store.dirty_cells_max = chooser.choice((16, 64))
            by = []

            async def writer(number):
                ino = await open_file(volume, b"%d" % number)
                mine = model[number] = bytearray(12 * PAGE)
                await volume.write(ino, 0, bytes(12 * PAGE))
                for _ in range(12):
                    page, count = chooser.randrange(12), chooser.randrange(1, 4)
                    count, byte = min(count, 12 - page), chooser.randbytes(1)
                    if chooser.random() < 0.5:
                        by.append(await lane_writes(volume, ino, page, byte, count))
                    else:
                        await volume.write(ino, page * PAGE, byte * (count * PAGE))
                    mine[page * PAGE : (page + count) * PAGE] = byte * (count * PAGE)
                    claims = sum(store.pages.claims()) + store.space.reserved
                    assert claims <= store.dirty_cells_max
                    assert store.space.room_cells >= store.space.credits
                    if chooser.random() < 0.2:
                        await volume.fsync(ino)
                    await trio.sleep(chooser.random() / 100)
                volume.release(ino)

            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(writer, number)
            assert trio.current_time() - started < 60, "someone waited for the interval"
            assert store.space.reserved == store.space.writers == 0
            assert "lane" in by
        checked(members)
        async with mounted(reopened(members)) as volume:
            for number, wanted in model.items():
                assert await read_file(volume, b"%d" % number) == bytes(wanted), number

    in_simulated_time(run, 600, seed)


def test_files_that_the_lane_alone_dirtied_are_saved_by_the_cut(monkeypatch):
    monkeypatch.setattr(dirty, "LANE_FILES_MAX", 3)

    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            await with_room(volume)
            inos = [await open_file(volume, b"%d" % number) for number in range(6)]
            for ino in inos:
                assert lane_put(volume, ino, 0, b"a") == -errno.EDQUOT
            store.lane_wants()
            for ino in inos:  # just created: their versions are of this epoch
                assert lane_put(volume, ino, 0, b"a") == 1
            await volume.fsync(ROOT)
            saved = volume.store.meta.durable
            for ino in inos[:3]:
                assert lane_put(volume, ino, 1, b"b") == 1
            assert lane_put(volume, inos[3], 1, b"b") == -errno.EUSERS
            await volume.write(inos[3], PAGE, b"b" * PAGE)
            assert lane_put(volume, inos[3], 2, b"c") == 1
            assert lane_put(volume, inos[4], 1, b"b") == -errno.EUSERS
            told = [volume.getattr(ino) for ino in inos]
            await volume.fsync(ROOT)
            assert store.meta.durable == saved + 1
            assert lane_put(volume, inos[4], 1, b"b") == 1  # another epoch
        checked(members)
        async with mounted(reopened(members)) as volume:
            for number, before in enumerate(told[:4]):
                now = volume.lookup(ROOT, b"%d" % number)
                assert (now.size, now.mtime_ns) == (before.size, before.mtime_ns)
            assert await read_file(volume, b"3") == b"a" * PAGE + b"b" * PAGE + b"c" * PAGE
            assert await read_file(volume, b"5") == b"a" * PAGE

    in_simulated_time(run)


def test_a_read_of_the_lane_changes_atime_and_the_cut_saves_it():
    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            ino = await open_file(volume, b"file")
            await volume.write(ino, 0, b"content")
            await volume.fsync(ino)
            before = volume.getattr(ino)
            pages = volume.store.pages
            assert lane_calls.read(pages, ino, 0, 100, volume.clock())[0] == -errno.EAGAIN
            assert volume.getattr(ino) == before
            await volume.read(ino, 0, 7)
            read = volume.getattr(ino).atime_ns
            assert read > before.atime_ns
            later = read + 24 * 3600 * 10**9
            await volume.write(ino, 0, b"c" * PAGE)
            assert lane_calls.read(pages, ino, 0, 100, later)[0] == 100
            assert volume.getattr(ino).atime_ns == later
        checked(members)
        async with mounted(reopened(members)) as volume:
            assert volume.lookup(ROOT, b"file").atime_ns == later

    in_simulated_time(run)


def test_a_failed_volume_takes_nothing_from_the_lane():
    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            ino = await open_file(volume, b"file")
            await volume.write(ino, 0, b"x" * PAGE)
            store.lane_wants()
            assert lane_put(volume, ino, 0, b"y") == 0
            store.fail("a test")
            assert store.pages.claims() == (1, 0)
            assert lane_put(volume, ino, 0, b"z") == -errno.EPERM
            assert lane_calls.read(store.pages, ino, 0, 1, volume.clock())[0] == 1
            assert store.lane_wants() == 0 and not await store.grant(1)
            with pytest.raises(ReadOnly):
                await volume.write(ino, 0, b"z")

    in_simulated_time(run)


def test_a_member_is_lost_while_the_lane_has_credits():
    """What the lane has not spent is no reason to fail the volume."""

    async def run():
        members = new_members("5", 4, slots=6)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            await with_room(volume)
            assert store.lane_wants() > 0
            ino = await open_file(volume, b"file")
            assert lane_put(volume, ino, 0, b"l") == 1
            await store.losses.fail_member(1, "a test")
            assert store.failed is None
            assert await lane_writes(volume, ino, 1, b"m") in ("lane", "python")
            await volume.fsync(ino)
        checked(members, without=(1,))

    in_simulated_time(run)


def test_a_read_only_mount_serves_no_writes():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = await open_file(volume, b"file")
            await volume.write(ino, 0, b"x" * PAGE)
        async with mounted(reopened(members), read_only=True) as volume:
            pages = volume.store.pages
            volume.open(ino, 0)
            pages.grant(9)
            pages.allow_files(9)
            assert lane_put(volume, ino, 0, b"y") == -errno.EPERM
            volume.release(ino)

    in_simulated_time(run)
