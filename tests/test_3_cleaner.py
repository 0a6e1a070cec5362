"""The cleaner: half-empty zones become free ones, and nobody sees a difference but in room."""

import contextlib
import itertools
import random

import numpy as np
import pytest
import trio
from simulated import World, members_of
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    assembly_of,
    checked,
    fresh_files,
    in_simulated_time,
    inline,
    mounted,
    new_members,
    pattern,
    read_file,
    reopened,
    write_file,
)
from workload import ME, read_tree

from raidfs.check import check_assembly
from raidfs.errors import OutOfSpace
from raidfs.fs.volume import Volume
from raidfs.store.moving import Mover
from raidfs.store.past import as_view
from raidfs.store.store import Store
from raidfs.store.survey import survey
from raidfs.store.zones import Zone

SHAPES = [("5", 3), ("1", 2), ("6", 5), ("3", 4), ("10", 4)]
MOSTLY_SLOW = [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] != "5")) for each in SHAPES]


async def overwrite(volume, ino, cells, chooser, content=None):
    """Random pages of a file, one write each; `content`: bytes of the file, kept up to date."""
    pages = volume.getattr(ino).size // CELL_BYTES
    volume.open(ino, 2)
    try:
        for _ in range(cells):
            page, data = chooser.randrange(pages), chooser.randbytes(CELL_BYTES)
            await volume.write(ino, page * CELL_BYTES, data)
            if content is not None:
                content[page * CELL_BYTES : (page + 1) * CELL_BYTES] = data
    finally:
        volume.release(ino)


async def trees(volume):
    """What the present and each snapshot hold."""
    found = {"": await read_tree(volume)}
    for row in volume.store.snapshots.all():
        found[row.name] = await read_tree(volume, as_view(row.id, ROOT))
    return found


async def clean_all(volume):
    """Clean each zone that is full and not wholly live; returns how many are gone."""
    store = volume.store
    space, reserve = store.space, store.space.reserve
    await volume.fsync(ROOT)
    count = 0
    for number in list(space.zones):
        zone = space.zones.get(number)
        if zone is None or zone.kept or zone.room_cells or not zone.live:
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reserve, "wanted", lambda: reserve.spare is None)  # as if it were scarce
            await space.grow(reserve.wanted)
            found = await survey(store.meta, zone, inline)
            if len(found.live.cells) == zone.map.rows * zone.map.code.k:
                continue
            assert await store.cleaner._clean(zone), zone
        assert number not in space.zones
        count += 1
    assert store.cleaner.broken is None
    return count


def simulated(body, level="5", count=3, *, options=None, **members_options):
    """`body(volume)` on a new volume, then check."""
    members = new_members(level, count, **members_options)

    async def test():
        async with mounted(members, **(options or {})) as volume:
            await body(volume)
            assert volume.store.cleaner.broken is None
            assert volume.store.failed is None

    in_simulated_time(test)
    checked(members)
    return members


async def make_past(volume, chooser, *, snapshots=4):
    """Files, snapshots, shared cells, holes, small files; and overwrites in between."""
    inos = [await write_file(volume, b"f%d" % n, pattern(n, 60, 100 * n)) for n in range(3)]
    await write_file(volume, b"small", b"little")
    await volume.fsync(ROOT)
    for turn in range(snapshots):
        await volume.store.snapshots.create(f"s{turn}")
        for ino in inos:
            await overwrite(volume, ino, 12, chooser)
        copy = volume.create(ROOT, b"copy%d" % turn, 0o644, 0, ME).ino
        volume.open(inos[0], 0)
        done = 0
        while done < 40 * CELL_BYTES:
            done += await volume.copy_range(
                inos[0], done, copy, done + 256 * CELL_BYTES * (turn % 2), 40 * CELL_BYTES - done
            )
        volume.release(copy)
        volume.forget(copy)
        volume.release(inos[0])
        await volume.fsync(ROOT)
        for ino in inos:
            await overwrite(volume, ino, 12, chooser)
    await volume.store.snapshots.delete(["s1"])
    await volume.store.snapshots.swept()
    return inos


@pytest.mark.parametrize(("level", "count"), SHAPES)
def test_contents_of_all_snapshots_are_the_same_before_and_after(level, count):
    async def body(volume):
        chooser = random.Random(5)
        await make_past(volume, chooser)
        before = await trees(volume)
        cells = volume.store.space.usage().live_cells
        assert await clean_all(volume) >= 2
        assert await trees(volume) == before
        assert volume.store.space.usage().live_cells <= cells
        assert volume.store.cleaner.statistics().cells_moved > 50

    members = simulated(body, level, count)

    async def again():
        async with mounted(members) as volume:
            await volume.store.snapshots.delete(["s0", "s2"])
            await volume.store.snapshots.swept()
            left = await trees(volume)
            await clean_all(volume)
            assert await trees(volume) == left
            await volume.store.snapshots.delete(["s3"])
            for name in [entry.name for entry in volume.readdir(ROOT, 0, 1000)]:
                if name not in (b".", b".."):
                    volume.unlink(ROOT, name)
            await volume.store.snapshots.swept()
            await volume.fsync(ROOT)
            assert volume.store.space.usage().live_cells == 0

    members = reopened(members)
    in_simulated_time(again)
    checked(members)


# -- room -----------------------------------------------------------------------------------------


def withheld(store):
    """What the reserve takes from writers, in zones: one at most, but while a zone is emptied."""
    reserve = store.space.reserve
    kept = [zone for zone in store.space.zones.values() if zone.kept]
    assert {id(zone) for zone in kept} == {
        id(zone) for zone in (reserve.spare, reserve.outlet) if zone is not None
    }
    assert not any(zone in store.space.open for zone in kept)
    assert reserve.spare is None or not reserve.spare.fill
    return kept


async def overwrite_for_ever(volume, *, pages, files, turns, chooser):
    """Random writes over files of so many pages, turns of a file each; returns what they hold."""
    wanted = {}
    for number in range(files):
        content = bytearray(pattern(number, pages))
        wanted[await write_file(volume, b"%d" % number, bytes(content))] = content
    await volume.fsync(ROOT)
    for _ in range(turns):
        ino = chooser.choice(list(wanted))
        await overwrite(volume, ino, 30, chooser, wanted[ino])
        assert len(withheld(volume.store)) <= 2
    return wanted


async def compare(volume, wanted):
    for ino, content in wanted.items():
        volume.open(ino, 0)
        assert bytes(await volume.read(ino, 0, len(content))) == content
        volume.release(ino)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), MOSTLY_SLOW)
def test_random_writes_go_on_for_ever(level, count):
    """Over 70 % of the room, four times as much as all of it."""

    async def body(volume):
        chooser = random.Random(1)
        room = volume.store.space.usage().free_cells
        pages = room * 7 // 10 // 4
        turns = 4 * volume.store.space.usage().total_cells // 30
        wanted = await overwrite_for_ever(
            volume, pages=pages, files=4, turns=turns, chooser=chooser
        )
        statistics = volume.store.cleaner.statistics()
        assert statistics.zones_emptied > 10
        written = turns * 30
        assert statistics.cells_moved < 6 * written, "it takes more than it gives"
        await volume.fsync(ROOT)
        await compare(volume, wanted)
        await trio.sleep(60)
        assert volume.store.space.reserve.spare is not None

    members = simulated(body, level, count, slots=24)
    members = reopened(members)

    async def again():
        async with mounted(members) as volume:
            await overwrite_for_ever_again(volume)

    in_simulated_time(again)
    checked(members)


async def overwrite_for_ever_again(volume):
    """After a mount, too, and with a page per fsync now and then."""
    chooser = random.Random(2)
    for name in [b"0", b"1", b"2", b"3"] * 3:
        ino = volume.lookup(ROOT, name).ino
        for _ in range(20):
            await overwrite(volume, ino, 1, chooser)
            await volume.fsync(ino)
        await overwrite(volume, ino, 60, chooser)
        volume.forget(ino)


async def fill(volume, name):
    """Append until the volume is full; how many cells that were."""
    ino = volume.create(ROOT, name, 0o644, 0, ME).ino
    written = 0
    with contextlib.suppress(OutOfSpace):
        while True:
            done = await volume.write(ino, written * CELL_BYTES, bytes([1]) * (8 * CELL_BYTES))
            written += done // CELL_BYTES
    await volume.fsync(ino)
    volume.release(ino)
    volume.forget(ino)
    return written


def test_what_was_punched_here_and_there_can_be_written_again():
    """No zone is empty, and yet statfs's word is kept."""

    async def body(volume):
        chooser = random.Random(3)
        total = await fill(volume, b"full")
        ino = volume.lookup(ROOT, b"full").ino
        volume.open(ino, 2)
        punched = chooser.sample(range(total), total // 3)
        for page in punched:
            await volume.ranges.fallocate(ino, page * CELL_BYTES, CELL_BYTES, 3)
        await volume.fsync(ino)
        told = volume.store.space.usage().free_cells
        assert told > 0.8 * len(punched)
        written = await fill(volume, b"again")
        assert written >= told - 8
        assert volume.store.cleaner.statistics().zones_emptied > 5
        assert volume.store.space.usage().free_cells < 40
        content = bytes(await volume.read(ino, 0, total * CELL_BYTES))
        holes = set(punched)
        for page in range(total):
            want = bytes(CELL_BYTES) if page in holes else bytes([1]) * CELL_BYTES
            assert content[page * CELL_BYTES : (page + 1) * CELL_BYTES] == want
        volume.release(ino)

    simulated(body, "5", 4, slots=20)


def test_deleting_snapshots_of_a_full_volume_gives_their_room():
    """The snapshots hold some cells of every zone, and nothing else."""

    async def body(volume):
        chooser, store = random.Random(4), volume.store
        ino = await write_file(volume, b"file", pattern(0, 200))
        content = bytearray(pattern(0, 200))
        wanted = {}
        for number in itertools.count():
            try:
                await store.snapshots.create(f"s{number}")
                wanted[f"s{number}"] = bytes(content)
                await overwrite(volume, ino, 25, chooser, content)
                await volume.fsync(ino)
            except OutOfSpace:
                break
        assert number > 8
        await volume.fsync(ino)
        assert store.space.usage().free_cells < 100
        doomed = [f"s{n}" for n in range(1, number - 2)]
        freed = await store.snapshots.freed_cells([store.snapshots.find(name) for name in doomed])
        assert freed > 60
        for name in doomed:
            await store.snapshots.delete([name])
            await store.snapshots.swept()
        room = await fill(volume, b"room")
        assert room > 0.9 * freed
        assert store.cleaner.statistics().zones_surveyed > 0
        for row in store.snapshots.all():
            found = volume.lookup(as_view(row.id, ROOT), b"file").ino
            volume.open(found, 0)
            assert bytes(await volume.read(found, 0, len(content))) == wanted[row.name]
            volume.release(found)
            volume.forget(found)
        volume.unlink(ROOT, b"room")
        await volume.fsync(ROOT)
        assert await fill(volume, b"room") > 0.9 * room

    simulated(body, "5", 4, slots=14)


def test_it_idles_while_there_is_room_and_works_before_anybody_waits():
    async def body(volume):
        chooser = random.Random(6)
        store = volume.store
        wanted = await overwrite_for_ever(volume, pages=100, files=3, turns=10, chooser=chooser)
        await trio.sleep(60)
        assert store.cleaner.statistics().cells_moved == 0
        per_zone = store.space.rows_per_zone * store.space.code.k
        while not store.cleaner._low():
            assert store.cleaner.statistics().cells_moved == 0
            await overwrite(volume, chooser.choice(list(wanted)), 10, chooser)
            await volume.fsync(ROOT)
        assert store.space.reserve.spare is not None
        await trio.sleep(60)
        assert store.cleaner.statistics().zones_emptied > 0
        assert not store.cleaner._low()
        assert store.space.zones_possible() * per_zone + store.space.grantable() >= 2 * per_zone

    simulated(body, "5", 3, slots=30)


# -- beside others --------------------------------------------------------------------------------


def test_a_snapshots_file_that_was_read_before_is_read_after():
    """What memory knows of leaves is of no age."""

    async def body(volume):
        chooser = random.Random(7)
        ino = await write_file(volume, b"file", pattern(1, 90))
        await volume.fsync(ino)
        row = await volume.store.snapshots.create("then")
        await overwrite(volume, ino, 40, chooser)
        await volume.fsync(ino)
        await overwrite(volume, ino, 40, chooser)
        await volume.fsync(ino)
        view = volume.lookup(as_view(row.id, ROOT), b"file").ino
        volume.open(view, 0)
        volume.open(ino, 0)
        before = [bytes(await volume.read(each, 0, 90 * CELL_BYTES)) for each in (view, ino)]
        assert before[0] == pattern(1, 90)
        assert volume.store.pages.leaf(view, 0) is not None
        assert await clean_all(volume)
        for each, content in zip((view, ino), before, strict=True):
            assert bytes(await volume.read(each, 0, 90 * CELL_BYTES)) == content
        volume.release(view)
        volume.release(ino)
        volume.forget(view)

    simulated(body)


@pytest.mark.parametrize("seed", range(2))
def test_readers_and_writers_beside_it(seed):
    """Cells are shared, overwritten, read, cut and snapshotted while their zones are cleaned."""

    async def body(volume):
        chooser = random.Random(seed)
        store = volume.store
        inos = await make_past(volume, chooser, snapshots=2)
        size = volume.getattr(inos[0]).size
        contents = {}
        for ino in inos:
            volume.open(ino, 2)
            contents[ino] = bytearray(await volume.read(ino, 0, size))
        done = trio.Event()

        async def use():
            for turn in range(60):
                ino, other = chooser.sample(inos, 2)
                await overwrite(volume, ino, 1, chooser, contents[ino])
                at = chooser.randrange(40) * CELL_BYTES
                got = await volume.copy_range(ino, at, other, at, 10 * CELL_BYTES)
                contents[other][at : at + got] = contents[ino][at : at + got]
                if turn % 9 == 0:
                    await volume.fsync(ino)
                if turn == 30:
                    await store.snapshots.create("meanwhile")
                await compare(volume, {ino: contents[ino]})
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            while not done.is_set():
                await clean_some(volume)
                await trio.sleep(0.01)
        await volume.fsync(ROOT)
        await compare(volume, contents)
        assert store.cleaner.statistics().cells_moved > 10
        for ino in inos:
            volume.release(ino)

    simulated(body)


async def clean_some(volume):
    """One zone, any, if it can be."""
    store = volume.store
    reserve = store.space.reserve
    for zone in list(store.space.zones.values()):
        if not reserve.gain(zone):
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reserve, "wanted", lambda: reserve.spare is None)
            await store.space.grow(reserve.wanted)
            if zone.map.zone in store.space.zones and not zone.holds:
                await store.cleaner._clean(zone)
        return


def test_as_many_versions_at_once_as_the_metadata_can_take(monkeypatch):
    """In many cuts, each with part of a leaf's versions; with none, it ends later what it began."""
    monkeypatch.setattr("raidfs.store.moving.VERSIONS_PER_CUT", 2)

    async def body(volume):
        chooser = random.Random(8)
        await make_past(volume, chooser, snapshots=6)
        before = await trees(volume)
        meta, cleaner = volume.store.meta, volume.store.cleaner
        spare_pages, calls = meta.spare_pages, itertools.count()
        monkeypatch.setattr(meta, "spare_pages", lambda: spare_pages() if next(calls) < 3 else 5)
        with contextlib.suppress(AssertionError):
            await clean_all(volume)
        assert cleaner._mover.unfinished is not None and cleaner._mover.unfinished.recorded
        assert await trees(volume) == before
        checked_now(volume)
        assert not await cleaner._mover.finish()
        monkeypatch.setattr(meta, "spare_pages", spare_pages)
        assert await cleaner._mover.finish()
        assert await clean_all(volume) > 1
        assert await trees(volume) == before

    simulated(body)


def test_a_writer_waits_for_no_other_zone_while_leaves_are_half_told(monkeypatch):
    """What was begun comes first: without room in the metadata there is nothing to gain now."""
    monkeypatch.setattr("raidfs.store.moving.VERSIONS_PER_CUT", 2)

    async def body(volume):
        chooser = random.Random(8)
        await make_past(volume, chooser, snapshots=6)
        before = await trees(volume)
        store, cleaner = volume.store, volume.store.cleaner
        meta, reserve = store.meta, store.space.reserve
        spare_pages, calls = meta.spare_pages, itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meta, "spare_pages", lambda: spare_pages() if next(calls) < 3 else 5)
            patch.setattr(reserve, "wanted", lambda: reserve.spare is None)
            await store.space.grow(reserve.wanted)
            patch.setattr(reserve, "gain_least", lambda zone: 1)
            patch.setattr(cleaner, "_growable", lambda: False)
            assert not await cleaner._gain_once()
        assert cleaner._mover.unfinished is not None and cleaner._mover.unfinished.recorded
        assert await cleaner._mover.finish()
        assert await trees(volume) == before

    simulated(body)


def checked_now(volume):
    """The members as a crash at this moment would leave them, with all that was written."""
    members = [state.member for state in volume.store.array.states.values()]
    checked(reopened(members))


# -- damage ---------------------------------------------------------------------------------------


def test_damaged_cells_are_rebuilt_before_they_are_moved():
    async def body(volume):
        store = volume.store
        chooser = random.Random(9)
        await make_past(volume, chooser)
        before = await trees(volume)
        members = [state.member for state in store.array.states.values()]
        full = [zone for zone in store.space.zones.values() if not zone.room_cells and zone.live]
        for zone in full:
            damage(members[zone.map.zone % 3], zone)
        assert await clean_all(volume) >= 2
        assert await trees(volume) == before

    simulated(body)


def damage(member, zone):
    """Other bytes wherever the member holds some of the zone."""
    for column, (number, slot) in enumerate(zone.map.columns):
        if number == member.number:
            junk = np.frombuffer(random.Random(column).randbytes(CELL_BYTES), np.uint8)
            for row in range(zone.map.rows):
                address = np.array([junk.ctypes.data], np.uint64)
                offset = row * CELL_BYTES
                member.column_write(zone.map.zone, column, slot, offset, address, CELL_BYTES)


def test_a_zone_beyond_repair_is_left_alone_and_the_others_are_cleaned():
    members = new_members("5", 3, slots=20)

    async def test():
        async with mounted(members) as volume:
            store = volume.store
            chooser = random.Random(10)
            total = await fill(volume, b"full")
            ino = volume.lookup(ROOT, b"full").ino
            for page in chooser.sample(range(total), total // 3):
                await volume.ranges.fallocate(ino, page * CELL_BYTES, CELL_BYTES, 3)
            await volume.fsync(ino)
            bad = next(z for z in store.space.zones.values() if store.space.reserve.gain(z))
            for member in members[:2]:
                damage(member, bad)
            assert await fill(volume, b"again") > total // 5
            assert bad.map.zone in store.space.zones
            assert store.cleaner.broken is None and store.failed is None
            assert store.cleaner.statistics().zones_emptied > 3

    in_simulated_time(test)


def test_a_member_is_lost_while_zones_are_cleaned():
    members = new_members("5", 4, slots=24)

    async def test():
        async with mounted(members) as volume:
            store = volume.store
            chooser = random.Random(11)
            await make_past(volume, chooser)
            before = await trees(volume)
            write = Mover._write

            async def fails(*arguments):
                members[1].writes_left, members[1].fails_then = 0, frozenset({"write", "sync"})
                return await write(*arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Mover, "_write", fails)
                await clean_all(volume)
            assert store.array.states[1].state == "failed" and store.failed is None
            assert await trees(volume) == before
            assert withheld(store) is not None

    in_simulated_time(test)
    checked(members, (1,))


@pytest.mark.slow
def test_random_writes_go_on_when_a_member_is_lost():
    """The spare, which lay on it as well, is another one afterwards."""
    members = new_members("5", 4, slots=20)

    async def test():
        async with mounted(members) as volume:
            store = volume.store
            chooser = random.Random(14)
            pages = store.space.usage().free_cells * 45 // 100 // 4
            wanted = await overwrite_for_ever(
                volume, pages=pages, files=4, turns=60, chooser=chooser
            )
            for _ in range(30):
                await overwrite(volume, chooser.choice(list(wanted)), 1, chooser)
                await volume.fsync(ROOT)
            await trio.sleep(60)
            before = store.space.reserve.spare
            assert before is not None
            await store.losses.fail_member(2, "a test")
            for _ in range(60):
                ino = chooser.choice(list(wanted))
                await overwrite(volume, ino, 20, chooser)
                await volume.fsync(ino)
            await trio.sleep(60)
            assert store.cleaner.broken is None and store.failed is None
            after = store.space.reserve.spare
            assert after is not None and after is not before and store.space.healthy(after)
            assert store.cleaner.statistics().zones_emptied > 0

    in_simulated_time(test)
    checked(members, (2,))


# -- which zone -----------------------------------------------------------------------------------


def test_an_old_zone_is_cleaned_at_higher_use_than_a_young_one():
    """By (1 - u) * age / (1 + u); and none that what is left of the reserve doesn't hold."""

    async def body(volume):
        store = volume.store
        cleaner, reserve = store.cleaner, store.space.reserve
        await write_file(volume, b"file", pattern(1, 8))
        await volume.fsync(ROOT)
        model = next(iter(store.space.zones.values()))
        cells = model.map.rows * model.map.code.k
        store.meta.next_zone, kept = 1000, store.meta.next_zone

        def zone(used, age):
            live = int(used * cells)
            return Zone(model.map, model.map.rows, live, youngest=1000 - age)

        old, young = zone(0.75, 100), zone(0.5, 10)
        cases = [
            ([old, young], 1, cells, old),
            ([zone(0.75, 20), young], 1, cells, young),
            ([old, zone(0.5, 1)], 4, cells, old),
            ([old, young], 3, cells, young),  # with nobody waiting, it isn't worth it
            ([old, young], 1, cells * 3 // 5, young),  # the other doesn't fit
            ([zone(1.0, 900)], 1, cells, None),
            ([], 1, cells, None),
        ]
        for candidates, part, room_cells, want in cases:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cleaner, "_candidates", lambda these=candidates: these)
                patch.setattr(type(reserve), "room_cells", room_cells)
                assert cleaner._best(part) is want
        store.meta.next_zone = kept

    simulated(body)


# -- crashes --------------------------------------------------------------------------------------


class Cleaning:
    """A volume with a past, all of it durable, whose zones are then cleaned."""

    def __init__(self, level, count, slots):
        self.numbers = list(range(count))
        self.slots = slots
        self.world = World(fresh_files(level, count, slots=slots))
        self.trees = {}
        self.began = 0

    async def run(self):
        members = members_of(self.world.files, self.world, self.numbers, slots=self.slots)
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembly_of(members), clock=clock, offload=inline)
        volume = Volume(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            await make_past(volume, random.Random(12), snapshots=3)
            await volume.fsync(ROOT)
            self.trees = await trees(volume)
            self.world.mark("cleaning")
            assert await clean_all(volume) >= 2
            self.world.mark("cleaned")
            await store.stop()

    async def recover(self, files):
        """Mount what a crash left: all is as it was, and there is room to go on cleaning."""
        members = members_of(files, World(files), self.numbers, slots=self.slots)
        async with mounted(members) as volume:
            assert await trees(volume) == self.trees
            withheld(volume.store)
            await fill(volume, b"more")
            await clean_all(volume)
            assert volume.store.space.reserve.spare is not None
            volume.unlink(ROOT, b"more")
            assert await trees(volume) == self.trees
        checked(members)


def crash_everywhere(cleaning, every):
    in_simulated_time(cleaning.run)
    tried = 0
    for number, (_, image, marks) in enumerate(cleaning.world.images()):
        if "cleaning" not in marks or "cleaned" in marks or number % every:
            continue
        files = image.crash(number)
        report = check_assembly(
            assembly_of(
                members_of(dict(files), World(), cleaning.numbers, slots=cleaning.slots),
                read_only=True,
            )
        )
        assert not report.findings, (number, report.findings[:5])
        in_simulated_time(lambda files=files: cleaning.recover(files), seed=number)
        tried += 1
    return tried


def test_a_crash_while_cleaning_smoke():
    assert crash_everywhere(Cleaning("5", 3, 26), 9) > 3


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), SHAPES)
def test_a_crash_at_every_sync_of_cleaning(level, count):
    cleaning = Cleaning(level, count, 26 if level != "1" else 50)
    assert crash_everywhere(cleaning, 2 if level == "5" else 10) > 3


class CleaningWhenFull(Cleaning):
    """The zones of a full volume are cleaned since somebody writes; nothing is left but the
    reserve."""

    async def run(self):
        members = members_of(self.world.files, self.world, self.numbers, slots=self.slots)
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembly_of(members), clock=clock, offload=inline)
        volume = Volume(store)
        chooser = random.Random(13)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            total = await fill(volume, b"full")
            ino = volume.lookup(ROOT, b"full").ino
            self.punched = chooser.sample(range(total), total // 2)
            for page in self.punched:
                await volume.ranges.fallocate(ino, page * CELL_BYTES, CELL_BYTES, 3)
            await volume.fsync(ino)
            self.content = await read_file(volume, b"full")
            self.world.mark("cleaning")
            self.written = await fill(volume, b"again")
            assert store.cleaner.statistics().zones_emptied > 3
            self.world.mark("cleaned")
            await store.stop()

    async def recover(self, files):
        members = members_of(files, World(files), self.numbers, slots=self.slots)
        async with mounted(members) as volume:
            assert await read_file(volume, b"full") == self.content
            if any(entry.name == b"again" for entry in volume.readdir(ROOT, 0, 100)):
                volume.unlink(ROOT, b"again")
            written = await fill(volume, b"more")
            assert written > 0.9 * self.written, (written, self.written)
            assert volume.store.space.reserve.spare is not None
            assert await read_file(volume, b"full") == self.content
        checked(members)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), [("5", 3), ("1", 2)])
def test_a_crash_while_a_full_volume_is_cleaned(level, count):
    assert crash_everywhere(CleaningWhenFull(level, count, 12 if level == "5" else 16), 3) > 10
