"""A wholesale change of the present: built row by row, whole or not at all, in a small log."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from simulated import World, members_of
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    SLOTS,
    checked,
    contents,
    fresh_files,
    in_simulated_time,
    mounted,
    new_members,
    pattern,
    read_file,
    simulated,
    write_file,
)
from whole import whole
from workload import ME

from raidfs.errors import OutOfSpace
from raidfs.fs.rollback import rollback
from raidfs.store import database
from raidfs.store import rewrite as rewrite_module
from raidfs.store import store as store_module
from raidfs.store.meta import InodeRow, Leaf
from raidfs.store.rewrite import rewriting

DIRECTORY, REGULAR = 0o040755, 0o100644
WAL_BYTES = 1 << 20


def row(ino, mode, *, size=0, nlink=1, parent=ROOT, xattrs=0):
    times = (5, 6, 7, 8)
    return InodeRow(ino, 1, mode, 3, 4, 0, size, nlink, parent, *times, None, xattrs, 999, 999)


async def arrive(volume, rewrite):
    """A tree with numbers of its own, and a file that shares the cells of another."""
    meta = volume.store.meta
    spool = meta.lookup(ROOT, b"spool").ino
    leaf = meta.leaf(spool, 0)
    root = meta.inode(ROOT)
    root.nlink = 3
    rewrite.put_inode(root)
    rewrite.put_name(ROOT, b"directory", 100, DIRECTORY >> 12)
    rewrite.put_inode(row(100, DIRECTORY, nlink=2, xattrs=1))
    rewrite.set_xattrs(100, {b"user.a": b"1"})
    entries = [(b"few", 50, REGULAR >> 12), (b"many", 4000, REGULAR >> 12)]
    await rewrite.set_names(100, entries)
    rewrite.put_inode(row(50, REGULAR, size=3, parent=100))
    rewrite.put_leaf(50, 0, Leaf(None, b"few"))
    rewrite.put_inode(row(4000, REGULAR, size=10 * CELL_BYTES, parent=100))
    await rewrite.breathe()
    addresses = np.zeros(256, np.uint64)
    addresses[1:10] = leaf.addresses[:9]
    rewrite.put_leaf(4000, 0, Leaf(addresses), shared=True)
    rewrite.put_leaf(4000, 0, Leaf(addresses), shared=True)
    await rewrite.breathe()


def test_a_tree_with_numbers_of_its_own():
    content = pattern(1, 16)

    async def body(volume):
        store = volume.store
        await write_file(volume, b"spool", content)
        await store.commit()
        async with volume.door.closed(), rewriting(store) as rewrite:
            await arrive(volume, rewrite)
            spool = store.meta.lookup(ROOT, b"spool").ino
            rewrite.remove_name(ROOT, b"spool")
            await rewrite.remove_inode(spool)
            named = store.snapshots
            epoch = await rewrite.finish(also=lambda e: named.insert_in(e, "in", "", b"g" * 16, 1))
            volume.reread()
        assert store.snapshots.find("in").epoch == epoch
        found = await whole(volume)
        assert sorted(found) == ["", "/directory", "/directory/few", "/directory/many"]
        assert found["/directory"][1] == {b"user.a": b"1"}
        assert found["/directory/few"][2] == b"few"
        assert found["/directory/many"][2] == bytes(CELL_BYTES) + content[: 9 * CELL_BYTES]
        many = found["/directory/many"][0]
        assert many["ino"] == 4000 and many["blocks"] == 9 * CELL_BYTES // 512
        assert (many["uid"], many["gid"], many["mtime_ns"], many["btime_ns"]) == (3, 4, 6, 8)
        assert volume.create(ROOT, b"next", 0o644, 0, ME).ino > 4000
        assert store.meta.live_cells() == 9
        assert await whole(volume, store.snapshots.find("in")) == found
        await store.snapshots.swept()

    simulated(body)


def test_what_differs_not_is_left():
    async def body(volume):
        store, meta = volume.store, volume.store.meta
        ino = await write_file(volume, b"file", pattern(1, 16))
        volume.setxattr(ino, b"user.a", b"1", 0, ME)
        volume.forget(ino)
        async with volume.door.closed(), rewriting(store) as rewrite:
            for each in (ROOT, ino):
                rewrite.put_inode(meta.inode(each))
            rewrite.set_xattrs(ino, {b"user.a": b"1"})
            await rewrite.set_names(ROOT, [(b"file", ino, REGULAR >> 12)])
            rewrite.put_leaf(ino, 0, meta.leaf(ino, 0))
            rewrite.put_leaf(ino, 1, None)
            rewrite.put_leaf(ino, 2, Leaf(np.zeros(256, np.uint64)))
            assert not meta.touched_in(rewrite.epoch)
            await rewrite.finish()
        assert await read_file(volume, b"file") == pattern(1, 16)

    simulated(body)


def test_leaving_undoes_all():
    async def body(volume):
        store, meta = volume.store, volume.store.meta
        await write_file(volume, b"spool", pattern(1, 16))
        await store.commit()
        before = await whole(volume)
        lives = {number: zone.live for number, zone in store.space.zones.items()}
        for _ in range(2):
            with pytest.raises(OutOfSpace, match="as if"):
                async with volume.door.closed(), rewriting(store) as rewrite:
                    await arrive(volume, rewrite)
                    raise OutOfSpace("as if")
            assert await whole(volume) == before
            assert meta.count_inodes() == 2 and meta.live_cells() == 16
            assert {number: zone.live for number, zone in store.space.zones.items()} == lives
            assert not list(meta.all_shares())
        await store.snapshots.swept()
        assert not store.snapshots.all(internal=True)

    simulated(body)


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Commits, checkpoints and syncs after each few changes."""
    monkeypatch.setattr(store_module, "UNLOGGED_PAGES_MAX", 1)
    monkeypatch.setattr(database, "CHECKPOINT_FRAMES", 1)
    monkeypatch.setattr(rewrite_module, "PIECE", 1)


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("ends", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_crash_leaves_nothing_of_it_or_all(ends):
    """What was recorded to be shared included: check looks for that."""
    world, states = World(fresh_files("5", 3)), []

    async def record():
        members = members_of(world.files, world, [0, 1, 2], slots=SLOTS)
        async with mounted(members) as volume:
            await write_file(volume, b"spool", pattern(1, 16))
            await volume.store.commit()
            states.append(await whole(volume))
            world.mark("begun")
            async with volume.door.closed(), rewriting(volume.store) as rewrite:
                await arrive(volume, rewrite)
                if ends:
                    await rewrite.finish()
                    world.mark("done")
                    volume.reread()
            states.append(await whole(volume))

    async def recovered(files):
        members = members_of(files, World(), [0, 1, 2], slots=SLOTS)
        async with mounted(members) as volume:
            state = await whole(volume)
        checked(members)
        return state

    in_simulated_time(record)
    seen = []
    for number, (_, image, marks) in enumerate(world.images()):
        if "begun" in marks:
            for seed in (number % 2, number + 2):
                state = in_simulated_time(functools.partial(recovered, image.crash(seed)))
                assert state in states[-1:] if "done" in marks else states
                seen.append(states.index(state))
    assert 0 in seen and (1 in seen) == ends


def test_a_zone_that_came_with_a_piece():
    """It is there after a crash, and the next one gets another number."""
    members, files = new_members("5", 3), {}

    async def grow():
        async with mounted(members) as volume:
            await volume.store.commit()
            assert await volume.store.space.grow(lambda: True)
            volume.store.meta.commit(None)
            volume.store.mirror.sync_wal()
            files.update(contents(members))
            assert await volume.store.space.grow(lambda: True)  # this one a crash takes back

    in_simulated_time(grow)
    again = members_of(files, World(), [0, 1, 2], slots=SLOTS)

    async def grow_again():
        async with mounted(again) as volume:
            zones = set(volume.store.space.zones)
            assert zones and await volume.store.space.grow(lambda: True)
            await write_file(volume, b"file", pattern(1, 100))
            assert zones < set(volume.store.space.zones)

    in_simulated_time(grow_again)
    checked(again)


def crowd(volume, directories=12, files=120):
    """Many inodes with attributes, and two large directories' worth of names."""
    for number in range(directories):
        directory = volume.mkdir(ROOT, b"d%d" % number, 0o755, ME).ino
        for each in range(files):
            made = volume.create(directory, b"%d" % each, 0o644, 0, ME)
            volume.release(made.ino)
            volume.forget(made.ino)
        yield directory


async def remove_crowd(volume):
    for directory in list(volume.names.entries(ROOT, 2, 1000)):
        for entry in volume.names.entries(directory.ino, 2, 10_000):
            await volume.ready()
            volume.unlink(directory.ino, entry.name)
        volume.rmdir(ROOT, directory.name)


@pytest.mark.parametrize(
    "how", ["finish", "abandon", pytest.param("crash", marks=pytest.mark.slow)]
)
def test_the_log_stays_bounded(how):
    """A thousand files and more come back where the log holds few of them."""
    peak = 0
    members = new_members("5", 3, wal_bytes_max=WAL_BYTES)

    async def test():
        nonlocal peak
        async with mounted(members) as volume:
            store = volume.store
            for directory in crowd(volume):
                volume.forget(directory)
                await store.commit()
            then = await whole(volume)
            await store.snapshots.create("one")
            await remove_crowd(volume)
            now = await whole(volume)
            await store.commit()

            def watch(done, of):
                nonlocal peak
                peak = max(peak, store.mirror.wal_bytes)
                if done == of - 3 and how != "finish":
                    raise OutOfSpace("as if")

            if how == "finish":
                await rollback(volume, "one", progress=watch)
                assert await whole(volume) == then
                return None
            if how == "crash":
                taken = rewrite_module.Rewrite.abandon

                async def crash(self):
                    await store.relieve_log()
                    store.meta.commit(None)
                    store.mirror.sync_wal()
                    files = {(m.number, n): bytes(d) for m in members for n, d in m.files.items()}
                    lost.append(files)
                    await taken(self)

                rewrite_module.Rewrite.abandon = crash
            try:
                with pytest.raises(OutOfSpace, match="as if"):
                    await rollback(volume, "one", progress=watch)
            finally:
                if how == "crash":
                    rewrite_module.Rewrite.abandon = taken
            assert await whole(volume) == now
            return now

    lost: list = []
    now = in_simulated_time(test)
    assert WAL_BYTES // 8 < peak <= WAL_BYTES
    checked(members)
    if how == "crash":

        async def recover():
            again = members_of(lost[0], World(), [0, 1, 2], slots=SLOTS, wal_bytes_max=WAL_BYTES)
            async with mounted(again) as volume:
                assert await whole(volume) == now
            checked(again)

        in_simulated_time(recover)
