"""Members that are lost, replaced, back again, and that go: the zones are mended, and nothing is
lost. Real directories here."""

import shutil
from pathlib import Path

import pytest
import trio
from checking import run_check
from volumes import ROOT as CALLER
from volumes import content, make_members, mounted

from raidfs.raid.enlarge import lay_out_member, plan_members
from raidfs.raid.places import open_member

ROOT = 1


def data_of(name):
    return bytes(name) * 200_000


async def write(volume, name):
    """A file with content of its own, durable."""
    ino = volume.create(ROOT, name, 0o644, 2, CALLER).ino
    await volume.write(ino, 0, data_of(name))
    volume.release(ino)
    await volume.store.commit()


async def all_right(volume, names):
    for name in names:
        assert await content(volume, volume.lookup(ROOT, name).ino) == data_of(name), name


async def add(store, path, **options):
    """A member, as the command would."""
    label = store.assembly.label
    (entry,) = plan_members(label, [str(path)], size_bytes=48 << 20, **options)
    await store.membership.add(entry, lay_out_member(label, entry), lambda done, total: None)
    return entry.id


async def mended(store):
    with trio.fail_after(30):
        while store.mender.lacking() or store.mender.statistics().working:
            await trio.sleep(0.02)


def fresh(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    return path


async def back(store, number, path):
    member = open_member(str(path), lock=True)
    return await store.membership.back(number, member, lambda done, total: None)


@pytest.mark.parametrize(("level", "count"), [("5", 3), ("6", 5), ("1", 2), ("rs:3+2", 5)])
@pytest.mark.trio
async def test_a_lost_member_is_replaced(tmp_path, level, count):
    paths = make_members(tmp_path / "v", count, level)
    names = [b"a", b"b", b"c"]
    async with mounted(paths) as volume:
        store = volume.store
        for name in names:
            await write(volume, name)
        await store.losses.fail_member(1, "a test")
        await write(volume, b"d")
        number = await add(store, fresh(tmp_path, "new"), replaces=[1])
        assert number == count
        await mended(store)
        await all_right(volume, [*names, b"d"])
        assert {e.id for e in store.assembly.label.members} == {*range(count), number} - {1}
        await write(volume, b"e")
    run_check(paths)
    async with mounted(paths) as volume:  # now another may be lost
        await volume.store.losses.fail_member(0, "a test")
        await all_right(volume, [*names, b"d", b"e"])


@pytest.mark.trio
async def test_a_member_that_is_back_gets_what_it_missed_and_no_more(tmp_path):
    paths = make_members(tmp_path / "v", 2, "1")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"before")
        await store.losses.fail_member(1, "a test")
        await write(volume, b"after")
        missed = sum(len(zone.missed) for zone in store.space.zones.values())
        assert missed
        assert await back(store, 1, paths[1])
        await mended(store)
        statistics = store.mender.statistics()
        assert statistics.columns_mended == missed
        rows = sum(zone.fill for zone in store.space.zones.values())
        assert 0 < statistics.done_bytes < rows * store.cell_bytes
        assert not store.array.stale and not store.assembly.label.parameters.uneven
        await write(volume, b"later")
    run_check(paths)
    async with mounted(paths) as volume:
        await volume.store.losses.fail_member(0, "a test")
        await all_right(volume, [b"before", b"after", b"later"])


@pytest.mark.trio
async def test_one_that_is_back_as_it_was_earlier_is_not_believed(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    copy = tmp_path / "copy"
    async with mounted(paths) as volume:
        await write(volume, b"first")
        shutil.copytree(paths[1], copy)
        await write(volume, b"second")
        await volume.store.losses.fail_member(1, "a test")
        shutil.rmtree(paths[1])
        copy.rename(paths[1])
        assert not await back(volume.store, 1, paths[1])
        await mended(volume.store)
    run_check(paths)
    async with mounted(paths) as volume:
        await volume.store.losses.fail_member(0, "a test")
        await all_right(volume, [b"first", b"second"])


@pytest.mark.parametrize("level", ["5", "0", "1"])
@pytest.mark.trio
async def test_a_member_leaves(tmp_path, level):
    paths = make_members(tmp_path / "v", 3, level, **({"width": 2} if level == "1" else {}))
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        await add(store, fresh(tmp_path, "new"))
        await store.membership.change(0, role="leaving")
        await mended(store)
        with trio.fail_after(10):
            while any(entry.id == 0 for entry in store.assembly.label.members):
                await trio.sleep(0.02)
        assert not [p for p in (Path(paths[0]) / "raidfs-zones").rglob("*") if p.is_file()]
        await all_right(volume, [b"x"])
        await write(volume, b"y")
    run_check(paths[1:])
    async with mounted(paths[1:]) as volume:
        await all_right(volume, [b"x", b"y"])
