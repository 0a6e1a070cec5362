"""Snapshots in the store: created, held, counted, deleted, swept; seen through view numbers."""

import errno
import random

import numpy as np
import pytest
import trio
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    checked,
    in_simulated_time,
    mounted,
    new_members,
    overwrite,
    pattern,
    read_file,
    reopened,
    simulated,
    write_file,
)
from workload import ME

from raidfs.errors import NoSuchSnapshot, RaidfsError, SnapshotHeld, UsageError
from raidfs.fs.attributes import Changes
from raidfs.store.past import as_view, view_of, within
from raidfs.store.snapshots import check_name


def seen(volume, snapshot, name):
    """Content of a file of the root as the snapshot's leaves have it, holes and all."""
    meta, store = volume.store.meta, volume.store
    entry = meta.lookup(as_view(snapshot.id, ROOT), name)
    if entry is None:
        return None
    assert view_of(entry.ino) == snapshot.id
    row = meta.inode(entry.ino)
    assert row.parent in (0, as_view(snapshot.id, ROOT))
    content = bytearray(-(-row.size // CELL_BYTES) * CELL_BYTES)
    for number, leaf in meta.leaf_range(entry.ino, 0, 1 << 40):
        assert meta.leaf(entry.ino, number) is not None
        if leaf.inline is not None:
            content[: len(leaf.inline)] = leaf.inline
        for at in np.flatnonzero(leaf.addresses) if leaf.addresses is not None else ():
            address = int(leaf.addresses[at])
            zone = store.space.zones[address >> 32]
            row_, column = address >> 8 & 0xFFFFFF, address & 0xFF
            out = np.empty((1, CELL_BYTES), np.uint8)
            crc = np.ascontiguousarray(meta.crcs(zone.map.zone, row_, 1)[:, column])
            assert store.array.read_run(zone.map, column, row_, crc, out).all()
            page = number * 256 + int(at)
            content[page * CELL_BYTES : (page + 1) * CELL_BYTES] = out.tobytes()
    return bytes(content[: row.size])


def live_cells(volume):
    return volume.store.meta.live_cells()


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "Ä b", "2026-01-01_10:00", "x" * 255, "a.b-c+d"])
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "-x", "a/b", "a@b", " a", "a ", "a\nb", "a\0b", "x" * 256, "ä" * 128],
)
def test_bad_names(name):
    with pytest.raises(UsageError):
        check_name(name)


def test_view_numbers():
    assert within(as_view(5, 77)) == 77 and view_of(as_view(5, 77)) == 5 and view_of(77) == 0


# -- life ------------------------------------------------------------------------------------------


def test_a_snapshot_is_what_was():
    first, second = pattern(1, 40, 17), pattern(2, 30)

    async def body(volume):
        snapshots = volume.store.snapshots
        await write_file(volume, b"file", first)
        await write_file(volume, b"gone", b"small")
        one = await snapshots.create("one", "a note")
        assert (one.name, one.note, one.inodes, one.cells) == ("one", "a note", 3, 41)
        assert volume.store.durable >= one.epoch and len(one.guid) == 16
        await overwrite(volume, b"file", second, 5 * CELL_BYTES)
        volume.unlink(ROOT, b"gone")
        await write_file(volume, b"new", b"new")
        two = await snapshots.create("two")
        await volume.setattr(volume.lookup(ROOT, b"file").ino, Changes(size=3), ME)
        await volume.store.commit()
        assert seen(volume, one, b"file") == first and seen(volume, one, b"gone") == b"small"
        assert seen(volume, one, b"new") is None
        assert seen(volume, two, b"gone") is None and seen(volume, two, b"new") == b"new"
        both = bytearray(first)
        both[5 * CELL_BYTES : 35 * CELL_BYTES] = second
        assert seen(volume, two, b"file") == bytes(both)
        assert [row.name for row in snapshots.all()] == ["one", "two"]
        assert snapshots.before(two.epoch) == one.epoch and snapshots.after(two.epoch) is None

    members = simulated(body)

    async def again():
        async with mounted(reopened(members)) as volume:
            one, two = volume.store.snapshots.all()
            assert seen(volume, one, b"file") == first and seen(volume, two, b"new") == b"new"

    in_simulated_time(again)


def test_deleting_frees_what_nobody_else_has():
    async def body(volume):
        store, snapshots = volume.store, volume.store.snapshots
        await write_file(volume, b"file", pattern(1, 64))
        one = await snapshots.create("one")
        await overwrite(volume, b"file", pattern(2, 16))
        two = await snapshots.create("two")
        await overwrite(volume, b"file", pattern(3, 8), 8 * CELL_BYTES)
        three = await snapshots.create("three")
        assert [await snapshots.alone_cells(row) for row in (one, two, three)] == [16, 8, 0]
        assert await snapshots.freed_cells([one, two]) == 24
        volume.unlink(ROOT, b"file")
        await store.commit()
        assert [await snapshots.alone_cells(row) for row in (one, two, three)] == [16, 8, 8]
        assert list((await snapshots.alone_each([one, two, three])).values()) == [16, 8, 8]
        assert await snapshots.freed_cells([two, three]) == 72 - 48  # 48 of one's are theirs too
        assert await snapshots.freed_cells([one, two, three]) == 64 + 16 + 8

        before = references(store)
        await snapshots.delete(["two"])
        await snapshots.swept()
        assert [row.name for row in snapshots.all()] == ["one", "three"]
        assert len(set(before) - set(references(store))) == 8
        assert await snapshots.freed_cells([one, three]) == 80
        await snapshots.delete(["one", "three"])
        await snapshots.swept()
        assert not references(store) and not snapshots.all()
        assert all(zone.live == 0 for zone in store.space.zones.values())
        assert not store.sweeper.busy and store.meta.condemned() == []

    simulated(body)


def references(store):
    """Each cell that some leaf version names."""
    found = []
    for *_, leaf, _ in store.meta.all_leaves():
        if leaf.addresses is not None:
            found += leaf.addresses[leaf.addresses != 0].tolist()
    return found


def test_shared_cells_are_counted_once():
    async def body(volume):
        store, snapshots = volume.store, volume.store.snapshots
        source = await write_file(volume, b"source", pattern(1, 20))
        await store.commit()
        target = await write_file(volume, b"target", b"")
        assert await volume.copy_range(source, 0, target, 0, 20 * CELL_BYTES) == 20 * CELL_BYTES
        one = await snapshots.create("one")
        volume.unlink(ROOT, b"source")
        await store.commit()
        assert await snapshots.alone_cells(one) == 0  # the target has them
        await overwrite(volume, b"target", pattern(2, 5))
        await store.commit()
        assert await snapshots.alone_cells(one) == 5
        two = await snapshots.create("two")
        assert await snapshots.alone_each([one, two]) == {one.id: 5, two.id: 0}
        await snapshots.delete(["two"])
        volume.unlink(ROOT, b"target")
        await store.commit()
        assert await snapshots.alone_cells(one) == 20
        await snapshots.delete(["one"])
        await snapshots.swept()
        assert not references(store)

    simulated(body)


def test_errors():
    async def body(volume):
        snapshots = volume.store.snapshots
        await snapshots.create("one")
        with pytest.raises(UsageError) as error:
            await snapshots.create("one")
        assert error.value.errno == errno.EEXIST
        for call in (snapshots.delete(["one", "none"]), snapshots.rename("none", "x")):
            with pytest.raises(NoSuchSnapshot):
                await call
        assert [row.name for row in snapshots.all()] == ["one"]
        await snapshots.hold("one", "backup")
        with pytest.raises(UsageError):
            await snapshots.hold("one", "backup")
        with pytest.raises(SnapshotHeld, match="backup"):
            await snapshots.delete(["one"])
        with pytest.raises(UsageError):
            await snapshots.release("one", "other")
        await snapshots.rename("one", "two")
        assert snapshots.find("two").holds == ("backup",)
        await snapshots.annotate("two", "why")
        await snapshots.release("two", "backup")
        assert snapshots.find("two").note == "why"
        await snapshots.delete(["two"])
        assert snapshots.all() == []

    simulated(body)


def test_many_at_once_and_in_a_row():
    """Cuts that don't wait for each other's flush, in a volume that is nearly full."""

    async def body(volume):
        store, snapshots = volume.store, volume.store.snapshots
        ino = volume.create(ROOT, b"file", 0o644, 2, ME).ino
        contents = {}

        async def writer():
            for number in range(150):
                data = pattern(number, 3)
                try:
                    await volume.write(ino, 0, data)
                except RaidfsError as error:
                    assert error.errno == errno.ENOSPC
                contents[store.epoch] = data
                await trio.sleep(0.003)

        async def taker(which):
            for number in range(12):
                await snapshots.create(f"{which}-{number}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            for which in range(4):
                nursery.start_soon(taker, which)
        volume.release(ino)
        for row in snapshots.all():
            held = max((epoch for epoch in contents if epoch <= row.epoch), default=None)
            got = seen(volume, row, b"file")
            assert got == (contents[held] if held is not None else b"")
        names = [row.name for row in snapshots.all()]
        random.Random(3).shuffle(names)
        for name in names[:20]:
            await snapshots.delete([name])
        await snapshots.delete(names[20:])
        await snapshots.swept()
        assert await read_file(volume, b"file") == contents[max(contents)]

    simulated(body)


def test_the_sweeper_goes_on_after_a_crash():
    """Condemned, and the daemon is gone before anything was dropped."""
    members = new_members("5", 3)

    async def test():
        async with mounted(members) as volume:
            await write_file(volume, b"file", pattern(1, 64))
            await volume.store.snapshots.create("one")
            volume.unlink(ROOT, b"file")
            await volume.store.commit()
            await volume.store.snapshots.delete(["one"])
            assert volume.store.sweeper.busy
            volume.store.fail("a test ends it here")

    in_simulated_time(test)
    checked(members)

    async def again():
        async with mounted(left) as volume:
            assert not volume.store.snapshots.all()
            await volume.store.snapshots.swept()
            assert not references(volume.store)

    left = reopened(members)
    in_simulated_time(again)
    checked(left)
