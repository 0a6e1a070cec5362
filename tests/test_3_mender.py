"""Members that are lost, replaced, back again, and that go: the zones are mended, and nothing is
lost. Real directories here."""

import shutil
import threading
from pathlib import Path

import pytest
import trio
from checking import run_check
from volumes import ROOT as CALLER
from volumes import content, forget_all, make_members, mounted

from raidfs.check import check_volume
from raidfs.errors import MemberError, UsageError
from raidfs.raid.directory import ZONES_NAME
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
    """Nothing is left to be made, and labels say so."""

    def going():
        table = store.assembly.label.members
        heirs = {entry.replaces for entry in table}
        return any(e.role == "leaving" or (e.id in heirs and not e.is_current) for e in table)

    with trio.fail_after(30):
        while store.mender.lacking() or store.mender.statistics().working or going():
            assert store.mender.broken is None and store.failed is None
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
async def test_an_heir_that_is_lost_itself_is_replaced_at_once(tmp_path):
    """And the zone that was in hand just then isn't left alone for long."""
    paths = make_members(tmp_path / "v", 3, zone_bytes=1 << 16)
    names = [b"a", b"b", b"c"]
    async with mounted(paths) as volume:
        store = volume.store
        for name in names:
            await write(volume, name)
        await store.mender.set(limit_bytes_s=1 << 19)
        await store.losses.fail_member(1, "a test")
        heir = await add(store, fresh(tmp_path, "heir"), replaces=[1])
        with trio.fail_after(10):
            while not store.mender.mending.makes(heir):
                await trio.sleep(0.01)
        await store.losses.fail_member(heir, "a test")
        number = await add(store, fresh(tmp_path, "another"), replaces=[heir])
        await store.mender.set(limit_bytes_s=0)
        with trio.fail_after(15):
            while len(store.assembly.label.members) > 3:
                await trio.sleep(0.02)
        assert {e.id for e in store.assembly.label.members} == {0, 2, number}
        await all_right(volume, names)
    run_check(paths)


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
        # an empty zone may be made meanwhile, for writers to come
        assert missed <= statistics.columns_mended <= len(store.space.zones)
        rows = sum(zone.fill for zone in store.space.zones.values())
        assert 0 < statistics.done_bytes < rows * store.cell_bytes
        assert not store.array.stale
        with trio.fail_after(10):
            while store.assembly.label.parameters.uneven:
                await trio.sleep(0.02)
        await write(volume, b"later")
    run_check(paths)
    async with mounted(paths) as volume:
        await volume.store.losses.fail_member(0, "a test")
        await all_right(volume, [b"before", b"after", b"later"])


@pytest.mark.trio
async def test_a_zone_that_is_being_made_when_a_member_is_back_is_mended_too(tmp_path, monkeypatch):
    """It was begun without that member, so it lacks a column; nobody has to wait for a later look
    of the mender."""
    paths = make_members(tmp_path / "v", 2, "1")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        await store.losses.fail_member(1, "a test")
        create, begun, go_on = store.array.create_zone, trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()

        def slowly(zone):
            token.run_sync_soon(begun.set)
            assert go_on.wait(30)
            return create(zone)

        monkeypatch.setattr(store.array, "create_zone", slowly)
        returned = trio.Event()

        async def come_back():
            assert await back(store, 1, paths[1])
            returned.set()

        async with trio.open_nursery() as nursery:
            number = store.meta.next_zone
            nursery.start_soon(store.space.grow, lambda: store.meta.next_zone == number)
            await begun.wait()
            nursery.start_soon(come_back)
            with trio.fail_after(30):
                while store.array.states[1].state != "online":
                    await trio.sleep(0.01)
            await trio.sleep(0.5)
            assert not returned.is_set(), "the mender was woken too early"
            go_on.set()
        assert number in store.space.zones
        await mended(store)
        assert not store.array.stale
    run_check(paths)


@pytest.mark.trio
async def test_labels_that_are_about_to_say_even_are_not_taken_for_uneven(tmp_path, monkeypatch):
    """Who begins to mend in that moment has them say `uneven` again."""
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store, membership = volume.store, volume.store.membership
        assert await membership.be_uneven() and not await membership.be_uneven()
        retable, begun, go_on = store.assembly.retable, trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()

        def slowly(*arguments):
            token.run_sync_soon(begun.set)
            assert go_on.wait(30)
            return retable(*arguments)

        monkeypatch.setattr(store.assembly, "retable", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(membership.settle_uneven)
            await begun.wait()
            nursery.start_soon(membership.be_uneven)
            await trio.sleep(0.1)
            monkeypatch.setattr(store.mender, "_working", True)  # as it is when it mends
            go_on.set()
        assert store.assembly.label.parameters.uneven
    run_check(paths)


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
        assert all(entry.id != 0 for entry in store.assembly.label.members)
        zones = Path(paths[0]) / ZONES_NAME
        assert zones.is_dir() and not list(zones.rglob("????????.*"))
        await all_right(volume, [b"x"])
        await write(volume, b"y")
    run_check(paths[1:])
    async with mounted(paths[1:]) as volume:
        await all_right(volume, [b"x", b"y"])


@pytest.mark.trio
async def test_who_is_replaced_has_an_heir_as_long_as_it_is_a_member(tmp_path, monkeypatch):
    """Else it would be told as one that is emptied, in its last moment."""
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store, told = volume.store, []
        retable = store.assembly.retable

        def told_of(*arguments, **options):
            left = retable(*arguments, **options)
            told.append({e.id: e for e in store.assembly.label.members})
            return left

        monkeypatch.setattr(store.assembly, "retable", told_of)
        await write(volume, b"x")
        number = await add(store, fresh(tmp_path, "new"), replaces=[0])
        await store.membership.change(0, role="leaving")
        await mended(store)
        going = [table for table in told if 0 in table and table[0].role == "leaving"]
        assert going
        assert all(table[number].replaces == 0 for table in going)
        assert {e.id: e.replaces for e in store.assembly.label.members}[number] == -1


# -- spares, settings, events ----------------------------------------------------------------------


def kinds(store):
    """What was noted since the opening."""
    return [(each.kind, each.member) for each in store.events.since(store.events.first - 1)]


@pytest.mark.trio
async def test_a_hot_spare_takes_the_place_of_a_lost_member(tmp_path):
    paths = make_members(tmp_path / "v", 3, zone_bytes=1 << 16)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        number = await add(store, fresh(tmp_path, "spare"), role="spare")
        await write(volume, b"y")
        assert store.membership.columns_of(number) == 0
        await store.losses.fail_member(1, "a test")
        await mended(store)
        entry = store.membership.entry(number)
        assert (entry.role, entry.replaces) == ("data", -1)
        assert store.membership.columns_of(number)
        told = kinds(store)
        for kind in ("RebuildStarted", "Rebuild20", "Rebuild80", "RebuildFinished"):
            assert told.count((kind, 1)) == 1, told
        assert ("SpareActive", number) in told and ("SparesMissing", 1) in told
        await all_right(volume, [b"x", b"y"])
    run_check([paths[0]])


@pytest.mark.trio
async def test_a_spare_is_taken_for_a_loss_of_an_earlier_mount(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        await write(volume, b"x")
        await volume.store.losses.fail_member(1, "a test")
    async with mounted(paths) as volume:
        number = await add(volume.store, fresh(tmp_path, "spare"), role="spare")
        await mended(volume.store)
        assert {e.id for e in volume.store.assembly.label.members} == {0, 2, number}
        await all_right(volume, [b"x"])
    run_check([paths[0]])


@pytest.mark.trio
async def test_of_several_spares_the_smallest_that_suffices_and_is_apart(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        await store.membership.change(0, domain="shelf")
        near = await add(store, fresh(tmp_path, "near"), role="spare", domain="shelf")
        far = await add(store, fresh(tmp_path, "far"), role="spare", domain="other")
        await store.losses.fail_member(1, "a test")
        await mended(store)
        assert store.membership.entry(far).role == "data"
        assert store.membership.entry(near).role == "spare"
        assert "SparesMissing" not in [kind for kind, _ in kinds(store)]


@pytest.mark.trio
async def test_nothing_is_made_anew_of_who_is_offline(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        spare = await add(store, fresh(tmp_path, "spare"), role="spare")
        await store.losses.fail_member(1, "to be back", expected=True)
        assert store.membership.entry(1).state == "offline"
        await trio.sleep(0.1)
        assert not store.mender.lacking() and store.mender.statistics().waiting
        assert store.membership.entry(spare).role == "spare"
        await store.membership.change(1, state="failed")
        await mended(store)
        assert store.membership.entry(spare).role == "data"


@pytest.mark.parametrize("rebuild", ["spare", "manual"])
@pytest.mark.trio
async def test_the_setting_says_whether_columns_are_spread(tmp_path, rebuild):
    paths = make_members(tmp_path / "v", 4, width=3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        await store.mender.set(rebuild=rebuild, limit_bytes_s=1 << 30)
        await store.losses.fail_member(1, "a test")
        with trio.fail_after(10):
            while not store.mender.statistics().stalled:
                await trio.sleep(0.02)
        assert "setting" in store.mender.statistics().stalled
        assert not [kind for kind, _ in kinds(store) if kind.startswith("Rebuild")]
        assert (("SparesMissing", 1) in kinds(store)) == (rebuild == "spare")
    async with mounted(paths) as volume:
        store = volume.store
        assert store.mender.settings.rebuild == rebuild and store.mender.pace.limit_bytes_s
        assert store.mender.lacking()
        await store.mender.set(rebuild="auto")
        await mended(store)
        await all_right(volume, [b"x"])
    assert not check_volume(paths[0]).findings  # but a note on the member that is lost


@pytest.mark.trio
async def test_paused_it_stands_still_also_after_the_next_mount(tmp_path):
    paths = make_members(tmp_path / "v", 4, width=3)
    async with mounted(paths) as volume:
        await write(volume, b"x")
        await volume.store.mender.set(paused=True)
        await volume.store.losses.fail_member(1, "a test")
    async with mounted(paths) as volume:
        store = volume.store
        await trio.sleep(0.2)
        assert store.mender.paused and store.mender.lacking()
        assert not store.mender.statistics().columns_mended
        await store.mender.set(paused=False)
        await mended(store)
        assert store.mender.statistics().columns_mended


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.trio
async def test_who_is_there_is_not_taken_back(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        member = volume.store.assembly.members[1]
        with pytest.raises(UsageError, match="in use already"):
            await volume.store.membership.back(1, member, lambda done, total: None)


@pytest.mark.trio
async def test_zones_of_which_most_is_dead_are_emptied_instead(tmp_path):
    paths = make_members(tmp_path / "v", 4, width=3, zone_bytes=1 << 16)
    async with mounted(paths) as volume:
        store = volume.store
        for number in range(40):
            ino = volume.create(ROOT, b"f%d" % number, 0o644, 2, CALLER).ino
            await volume.write(ino, 0, b"%d" % (number % 10) * 20_000)
            volume.release(ino)
            forget_all(volume, ino)
            await store.commit()
        for number in range(40):
            if number % 4:
                volume.unlink(ROOT, b"f%d" % number)
        await store.commit()
        fill = sum(zone.fill for zone in store.space.zones.values() if zone.live)
        await store.losses.fail_member(1, "a test")
        await mended(store)
        assert store.cleaner.statistics().cells_moved
        assert store.mender.statistics().done_bytes < fill * store.cell_bytes
        for number in range(0, 40, 4):
            found = await content(volume, volume.lookup(ROOT, b"f%d" % number).ino)
            assert found == b"%d" % (number % 10) * 20_000
    assert not check_volume(paths[0]).findings


@pytest.mark.trio
async def test_a_row_beyond_redundancy_is_told_and_the_rest_is_mended(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        zone = next(zone for zone in store.space.zones.values() if zone.live)
        column = next(c for c, (m, _) in enumerate(zone.map.columns) if m == 0)
        (path,) = (Path(paths[0]) / ZONES_NAME).rglob(f"{zone.map.zone:08x}.{column}")
        await store.losses.fail_member(1, "a test")
        with open(path, "r+b") as file:
            file.seek(store.cell_bytes)
            file.write(b"\xff" * store.cell_bytes)
        number = await add(store, fresh(tmp_path, "new"), replaces=[1])
        await mended(store)
        assert store.mender.statistics().rows_unrecoverable == 1
        assert store.membership.columns_of(number)


@pytest.mark.trio
async def test_a_new_member_that_fails_while_it_joins_is_none(tmp_path, monkeypatch):
    """At its label, when it has all metadata already: the volume goes on, and mounts again."""
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        label = store.assembly.label
        place = fresh(tmp_path, "new")
        (entry,) = plan_members(label, [str(place)], size_bytes=48 << 20)
        member = lay_out_member(label, entry)
        real, calls = member.write_label, []

        def write_label(copy, data):
            calls.append(copy)
            if copy == 1:
                raise MemberError("simulated", str(place))
            real(copy, data)

        monkeypatch.setattr(member, "write_label", write_label)
        with pytest.raises(MemberError, match="simulated"):
            await store.membership.add(entry, member, lambda done, total: None)
        assert calls == [0, 1]
        member.close()
        assert {e.id for e in store.assembly.label.members} == {0, 1, 2}
        assert entry.id not in store.array.states and entry.id not in store.mirror.members
        await write(volume, b"y")
        assert store.failed is None
    run_check(paths)
    async with mounted(paths) as volume:
        await all_right(volume, [b"x", b"y"])
        with pytest.raises(UsageError, match="added meanwhile"):
            await volume.store.membership.add(entry, member, lambda done, total: None)


@pytest.mark.trio
async def test_an_empty_member_is_removed_and_one_with_columns_is_not(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        number = await add(store, fresh(tmp_path, "spare"), role="spare")
        with pytest.raises(UsageError, match="columns of zones"):
            await store.membership.remove(0)
        await store.membership.remove(number)
        with pytest.raises(UsageError, match="no member"):
            store.membership.entry(number)
        await write(volume, b"y")
    run_check(paths)
