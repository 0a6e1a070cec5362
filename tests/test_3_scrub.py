"""The scrub: whatever is damaged on members is found, healed where redundancy covers it, counted,
and named where not; and the next scrub finds nothing."""

import itertools
import os
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import trio
from checking import run_check
from simulated import World, members_of
from simulated_volume import check, contents, fresh_files, in_simulated_time, inline
from simulated_volume import mounted as simulated
from volumes import ROOT as CALLER
from volumes import content, make_members, mounted, open_store

from raidfs.check import check_volume
from raidfs.errors import ReadOnly, Unrecoverable, UsageError
from raidfs.raid.label import LABEL_BYTES
from raidfs.store import copies, scrub_zone
from raidfs.store.batches import PAGE_BYTES, sealed_page
from raidfs.store.mirror import Mirror

ROOT = 1
CELL = 4096
PAGES = 300


def data_of(name, pages=PAGES):
    """Incompressible, and no two pages are alike."""
    return random.Random(name).randbytes(pages * CELL - 100)


async def write(volume, name, data=None, parent=ROOT):
    ino = volume.create(parent, name, 0o644, 2, CALLER).ino
    await volume.write(ino, 0, data_of(name) if data is None else data)
    volume.release(ino)
    await volume.store.commit()
    return ino


async def all_right(volume, *names):
    for name in names:
        assert await content(volume, volume.lookup(ROOT, name).ino) == data_of(name), name


async def scrubbed(store, **options):
    """The record of a whole scrub."""
    store.scrub.start(**options)
    return await ended(store)


async def ended(store):
    with trio.fail_after(60):
        await store.scrub.ended()
    assert store.scrub.record.state == "finished", store.scrub.record
    return store.scrub.record


def columns(path):
    """Files of columns that hold something."""
    return sorted(p for p in Path(path).joinpath("zones").rglob("*.*") if p.parent.name != "zones")


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def column_of(store, zone, column, paths):
    return Path(paths[zone.map.columns[column][0]], "zones", f"{zone.map.zone & 255:02x}",
                f"{zone.map.zone:08x}.{column}")  # fmt: skip


def written(zone, store, member):
    """How many cells of the zone lie on the member."""
    column = [each for each, _ in zone.map.columns].index(member)
    return int(store.reader.present(zone, 0, zone.fill)[:, column].sum())


def used(store):
    return [zone for zone in store.space.zones.values() if zone.fill]


def totals(record, member):
    figures = record.members[member]
    return figures.bad, figures.healed


# -- damage within redundancy ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "count", "bad_members"),
    [
        ("5", 3, [1]),
        ("6", 5, [0, 3]),
        pytest.param("1", 2, [0], marks=pytest.mark.slow),
        pytest.param("10", 4, [2], marks=pytest.mark.slow),
        pytest.param("rs:3+3", 6, [0, 2, 5], marks=pytest.mark.slow),
        pytest.param("2", 7, [4], marks=pytest.mark.slow),
    ],
)
@pytest.mark.trio
async def test_random_bits_in_any_members(tmp_path, level, count, bad_members):
    paths = make_members(tmp_path, count, level)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a")
        await write(volume, b"b")
        await write(volume, b"odd", data_of(b"odd", 1))  # leaves cells of its row absent
        clean = await scrubbed(store)
        assert not clean.damaged and clean.zones == len(store.space.zones)
        for member, figures in clean.members.items():
            zones = [z for z in used(store) if member in dict(z.map.columns)]
            assert figures.cells == sum(written(zone, store, member) for zone in zones)
        rng, damaged = random.Random(1), dict.fromkeys(bad_members, 0)
        for zone in used(store):
            there = store.reader.present(zone, 0, zone.fill)
            for column, (member, _) in enumerate(zone.map.columns):
                rows = [row for row in range(zone.fill) if there[row, column]]
                if member in damaged:
                    for row in rng.sample(rows, min(9, len(rows))):
                        path = column_of(store, zone, column, paths)
                        flip(path, row * CELL + rng.randrange(CELL))
                        damaged[member] += 1
        before = store.array.counters()
        found = await scrubbed(store)
        for member in range(count):
            many = damaged.get(member, 0)
            assert totals(found, member) == (many, many)
            assert store.array.counters()[member][2] - before[member][2] == many
            assert store.array.states[member].healed == many
        assert not found.damaged and found.done_bytes == clean.done_bytes
        assert not (await scrubbed(store)).total().bad
        await all_right(volume, b"a", b"b")
    run_check(paths)


def truncated(file):
    os.truncate(file, 5 * CELL + 17)
    return 5


def emptied(file):
    os.truncate(file, 0)
    return 0


def deleted(file):
    file.unlink()
    return 0


def replaced(file):
    """Another file under its name; who has the old one open sees nothing of it."""
    other = file.with_name("other")
    other.write_bytes(os.urandom(file.stat().st_size))
    other.rename(file)
    return 0


@pytest.mark.parametrize("harm", [truncated, emptied, deleted, replaced])
@pytest.mark.trio
async def test_files_of_columns_that_are_cut_short_or_gone(tmp_path, harm):
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a", data_of(b"a", 600))
        await scrubbed(store)  # all files are open now
        zone = next(zone for zone in used(store) if zone.fill > 20)
        (file,) = [p for p in columns(paths[1]) if p.name.startswith(f"{zone.map.zone:08x}.")]
        size = file.stat().st_size
        left = harm(file)
        found = await scrubbed(store)
        lacking = written(zone, store, 1) - left
        assert totals(found, 1) == (lacking, lacking) and not found.damaged
        assert file.stat().st_size == size and file.stat().st_blocks * 512 >= size
        assert not (await scrubbed(store)).total().bad
        await write(volume, b"b")
    run_check(paths)


@pytest.mark.trio
async def test_swapped_columns(tmp_path):
    """Each is whole, and in the wrong place: within a zone on one member each."""
    paths = make_members(tmp_path, 4, "6")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a", data_of(b"a", 1200))
        one, other = [zone for zone in used(store) if zone.fill == zone.map.rows][:2]
        files = [
            next(p for p in columns(paths[2]) if p.name.startswith(f"{zone.map.zone:08x}."))
            for zone in (one, other)
        ]
        aside = files[0].with_name("aside")
        files[0].rename(aside)
        files[1].rename(files[0])
        aside.rename(files[1])
        found = await scrubbed(store)
        many = written(one, store, 2) + written(other, store, 2)
        assert totals(found, 2) == (many, many) and not found.damaged
        assert not (await scrubbed(store)).total().bad
    run_check(paths)


@pytest.mark.trio
async def test_a_lost_write(tmp_path):
    """A member answers with what lay there before: whole cells, of older content."""
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a", data_of(b"old", 40))
        zone = used(store)[0]
        file = column_of(store, zone, 0, paths)
        member = zone.map.columns[0][0]
        with file.open("r+b") as handle:
            old = handle.read(10 * CELL)
            handle.seek(10 * CELL)
            handle.write(old[: 5 * CELL])
        found = await scrubbed(store)
        assert totals(found, member) == (5, 5) and not found.damaged
        assert not (await scrubbed(store)).total().bad
    run_check(paths)


@pytest.mark.trio
async def test_labels_and_copies_of_the_metadata(tmp_path):
    paths = make_members(tmp_path, 3)
    old = tmp_path / "old"
    async with mounted(paths) as volume:
        await write(volume, b"a")
        volume.mkdir(ROOT, b"d", 0o755, CALLER)
    shutil.copy(Path(paths[2], "metadata/raidfs.db"), old)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"b")
        await store.offload(store.mirror.sync_db)
        flip(Path(paths[0], "label"), 100)
        flip(Path(paths[1], "label"), LABEL_BYTES + 50)
        databases = [Path(path, "metadata/raidfs.db") for path in paths]
        pages = databases[0].stat().st_size // PAGE_BYTES
        for page in (1, pages // 2, pages - 1):
            flip(databases[1], page * PAGE_BYTES + 77)
        # a lost write: the page is whole, and what the page was before
        now, before = databases[2].read_bytes(), old.read_bytes()
        other = [
            at
            for at in range(0, min(len(now), len(before)), PAGE_BYTES)
            if now[at : at + PAGE_BYTES] != before[at : at + PAGE_BYTES]
            and any(before[at : at + 9])
        ]
        with databases[2].open("r+b") as file:
            for at in other[:2]:
                file.seek(at)
                file.write(before[at : at + PAGE_BYTES])
        wal = Path(paths[0], "metadata/raidfs.db-wal")
        logged = store.mirror.log_written
        if logged > 200:
            flip(wal, 32 + 24 + 100)
        found = await scrubbed(store)
        assert found.members[0].labels == found.members[1].labels_healed == 1
        assert found.members[1].metadata == found.members[1].metadata_healed == 3
        assert found.members[2].metadata == found.members[2].metadata_healed == len(other[:2])
        assert found.members[0].metadata == (1 if logged > 200 else 0)
        assert not found.damaged
        again = (await scrubbed(store)).total()
        assert not (again.metadata or again.labels or again.bad)
        await all_right(volume, b"a", b"b")
    run_check(paths)


@pytest.mark.trio
async def test_two_copies_of_metadata_that_differ_are_told(tmp_path):
    """Nothing says which is right, so neither is overwritten."""
    paths = make_members(tmp_path, 2, "1")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a")
        await store.offload(store.mirror.sync_db)
        database = Path(paths[1], "metadata/raidfs.db")
        right = database.read_bytes()
        page = right[PAGE_BYTES : 2 * PAGE_BYTES]
        wrong = sealed_page(bytes(100) + page[100:], PAGE_BYTES)
        with database.open("r+b") as file:
            file.seek(PAGE_BYTES)
            file.write(wrong)
        found = await scrubbed(store)
        assert found.metadata_lost == 1 and found.damaged
        with database.open("r+b") as file:
            file.seek(PAGE_BYTES)
            assert file.read(PAGE_BYTES) == wrong
            file.seek(PAGE_BYTES)
            file.write(page)
    run_check(paths)


def test_pages_that_are_being_written_are_not_taken_for_damage(tmp_path):
    """Comparing while another thread writes pages to the members."""
    (world_files,) = [fresh_files("1", 3)]
    world = World(world_files)
    members = members_of(world.files, world, [0, 1, 2])
    told = []
    mirror = Mirror(
        {m.number: m for m in members}, on_event=lambda name, member, text: told.append(name)
    )
    try:
        pages = mirror.db_bytes // PAGE_BYTES
        for turn in range(60):
            for page in range(1, pages):
                mirror.write_db(page * PAGE_BYTES, bytes([turn, page]) * (PAGE_BYTES // 2))
            thread = threading.Thread(target=mirror.sync_db)
            thread.start()
            found = copies.compare_pages(mirror, 0, pages, True)
            thread.join()
            assert not found.wrong and not found.undecided, turn
    finally:
        mirror.close()
    assert not told


# -- damage beyond redundancy ----------------------------------------------------------------------


@pytest.mark.trio
async def test_what_is_lost_is_named_and_only_that_cannot_be_read(tmp_path):
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store = volume.store
        directory = volume.mkdir(ROOT, b"dir", 0o755, CALLER).ino
        await write(volume, b"whole")
        ino = await write(volume, b"lost \xff", data_of(b"x"), parent=directory)
        await store.snapshots.create("monday", "")
        gone = await write(volume, b"gone")
        volume.unlink(ROOT, b"gone")
        volume.forget(gone, 1 << 30)
        await store.commit()
        kept = await write(volume, b"shared", data_of(b"x"))
        await store.commit()
        assert kept
        lost = {}
        for number in (3, 77):
            addresses, _ = store.reader.addresses(ino, np_pages(number))
            cell = int(addresses[0])
            zone = store.space.zones[cell >> 32]
            row, column = (cell >> 8) & 0xFFFFFF, cell & 0xFF
            flip(column_of(store, zone, column, paths), row * CELL + 9)
            flip(column_of(store, zone, 2, paths), row * CELL + 9)  # the row's parity
            lost[number] = zone
        found = await scrubbed(store)
        assert found.rows_lost == 2 and found.damaged and found.files == 2
        assert found.total().bad == 4 and not found.total().healed and found.total().left == 4
        files = {(file.path, file.snapshot): file for file in store.scrub.files}
        assert set(files) == {("/dir/lost \\xff", ""), ("/dir/lost \\xff", "monday")}
        assert all(file.pages == 2 and file.page == 3 for file in files.values())
        for page in range(PAGES - 1):
            if page in lost:
                with pytest.raises(Unrecoverable):
                    await volume.read(ino, page * CELL, CELL)
            else:
                read = await volume.read(ino, page * CELL, CELL)
                assert bytes(read) == data_of(b"x")[page * CELL : (page + 1) * CELL]
        await all_right(volume, b"whole")
        kinds = [event.kind for event in store.events.since(0)]
        assert "ScrubStarted" in kinds and "Unrecoverable" in kinds
        assert kinds[-1] == "ScrubFinished" or "ScrubFinished" in kinds
    async with mounted(paths) as volume:  # it is kept
        scrub = volume.store.scrub
        assert scrub.record.damaged and len(scrub.files) == 2
        assert scrub.statistics() is None
        volume.unlink(volume.lookup(ROOT, b"dir").ino, b"lost \xff")
        await volume.store.snapshots.delete(["monday"])
        await volume.store.commit()


def np_pages(*pages):
    return np.array(pages, dtype=np.uint64)


@pytest.mark.trio
async def test_of_several_bad_cells_those_that_can_be_had_are_healed(tmp_path):
    """In RAID 10 a pair is lost, and of other pairs one each is bad in the same row."""
    paths = make_members(tmp_path, 4, "10")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a")
        zone = used(store)[0]
        for column in (0, 2, 1):  # 0 and 2 are copies of each other
            flip(column_of(store, zone, column, paths), 7 * CELL)
        found = await scrubbed(store)
        sums = found.total()
        assert (sums.bad, sums.healed, sums.left) == (3, 1, 2) and found.rows_lost == 1
        assert store.scrub.files[0].pages == 1


@pytest.mark.trio
async def test_rows_that_nobody_needs_are_not_lost(tmp_path):
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store = volume.store
        first = await write(volume, b"first", data_of(b"1", 40))
        await write(volume, b"kept", data_of(b"2", 40))
        volume.unlink(ROOT, b"first")
        volume.forget(first, 1 << 30)
        await store.commit()
        zone = used(store)[0]
        assert zone.live
        for column in (0, 1):
            flip(column_of(store, zone, column, paths), 2 * CELL)
        found = await scrubbed(store)
        assert found.total().bad == 2 and not found.rows_lost and not store.scrub.files


@pytest.mark.trio
async def test_with_a_member_lost_the_rest_is_looked_at(tmp_path):
    paths = make_members(tmp_path, 4, "6")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a")
        await store.losses.fail_member(1, "a test")
        store.mender.paused = True
        zone = used(store)[0]
        columns_left = [c for c, (member, _) in enumerate(zone.map.columns) if member != 1]
        flip(column_of(store, zone, columns_left[0], paths), 4 * CELL)
        found = await scrubbed(store)
        assert found.total().healed == found.total().bad == 1 and not found.damaged
        assert 1 not in found.members
        for column in columns_left[:2]:
            flip(column_of(store, zone, column, paths), 5 * CELL)
        found = await scrubbed(store)
        assert found.rows_lost == 1 and found.total().left == 2
        there = [c for c in range(zone.map.code.k)]  # all data cells of the row: three are bad
        assert store.scrub.files[0].pages == len(there)


# -- how it goes on --------------------------------------------------------------------------------


@pytest.mark.trio
async def test_checking_only_changes_nothing(tmp_path):
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a")
        file = column_of(store, used(store)[0], 1, paths)
        flip(file, 1000)
        flip(Path(paths[0], "label"), 99)
        before = file.read_bytes()
        found = await scrubbed(store, check_only=True)
        assert found.damaged and found.total().bad == 1 and found.total().labels == 1
        assert not found.rows_lost and file.read_bytes() == before
        found = await scrubbed(store)
        assert not found.damaged and found.total().healed == 1
    async with mounted(paths, read_only=True) as volume:
        with pytest.raises(Exception, match="read-only"):
            volume.store.scrub.start()
        assert not (await scrubbed(volume.store, check_only=True)).damaged
    run_check(paths)


@pytest.mark.slow
@pytest.mark.trio
async def test_pause_resume_stop_and_remounts(tmp_path, monkeypatch):
    monkeypatch.setattr(scrub_zone, "STEP_BYTES", 32 * CELL)
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store, scrub = volume.store, volume.store.scrub
        await write(volume, b"a", data_of(b"a", 2000))
        with pytest.raises(UsageError):
            scrub.pause()
        scrub.start(limit_bytes_s=2_000_000)
        with pytest.raises(UsageError, match="running"):
            scrub.start()
        with trio.fail_after(30):
            while not scrub.record.zones:
                await trio.sleep(0.01)
        scrub.pause()
        cursor, cells = scrub.record.cursor, scrub.record.total().cells
        assert scrub.statistics().state == "paused" and scrub.statistics().left_bytes
        await trio.sleep(0.05)
        assert (cursor, cells) == (scrub.record.cursor, scrub.record.total().cells)
    async with mounted(paths) as volume:  # a user's pause outlasts the mount
        scrub = volume.store.scrub
        await trio.sleep(0.05)
        assert scrub.record.state == "paused" and scrub.record.cursor == cursor > 1
        scrub.resume()
        assert scrub.statistics().state == "running"
    async with mounted(paths) as volume:  # and so does that it is running
        store, scrub = volume.store, volume.store.scrub
        assert scrub.running and scrub.record.limit_bytes_s == 2_000_000
        scrub.limit(0)
        found = await ended(store)
        there = sum(written(z, store, m) for z in used(store) for m, _ in z.map.columns)
        assert found.total().cells == there, "each zone was done once"
        scrub.start(limit_bytes_s=1_000_000)
        scrub.stop()
        assert scrub.record.state == "stopped" and scrub.record.ended_ns
        with pytest.raises(UsageError, match="stopped"):
            scrub.resume()
        kinds = [event.kind for event in store.events.since(0)]
        assert {"ScrubPaused", "ScrubStopped", "ScrubFinished"} <= set(kinds)
    run_check(paths)


@pytest.mark.slow
@pytest.mark.trio
async def test_the_limit_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(scrub_zone, "STEP_BYTES", 16 * CELL)
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        await write(volume, b"a", data_of(b"a", 100))
        clean = await scrubbed(volume.store)
        rate = clean.done_bytes * 2
        begun = trio.current_time()
        await scrubbed(volume.store, limit_bytes_s=rate)
        assert trio.current_time() - begun > 0.3


@pytest.mark.slow
@pytest.mark.trio
async def test_it_stands_still_while_columns_are_made_anew(tmp_path):
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"a")
        store.mender._working = True
        store.scrub.start()
        await trio.sleep(0.1)
        told = store.scrub.statistics()
        assert told.state == "waiting" and told.reason and not told.done_bytes
        store.mender._working = False
        assert not (await ended(store)).damaged


@pytest.mark.slow
@pytest.mark.trio
async def test_while_users_write_and_delete_nothing_is_taken_for_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(scrub_zone, "STEP_BYTES", 16 * CELL)
    paths = make_members(tmp_path, 3, size_bytes=24 << 20)
    async with mounted(paths) as volume:
        store, through = volume.store, trio.Event()

        async def use():
            rng, names = random.Random(5), []
            for turn in range(60):
                name = b"%d" % turn
                await write(volume, name, data_of(name, rng.randrange(1, 200)))
                names.append(name)
                if len(names) > 6:
                    gone = names.pop(rng.randrange(len(names)))
                    ino = volume.lookup(ROOT, gone).ino
                    volume.unlink(ROOT, gone)
                    volume.forget(ino, 1 << 30)
            through.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            scrubs = 0
            while not through.is_set() or scrubs < 3:
                found = await scrubbed(store)
                assert not found.damaged and not found.total().bad
                scrubs += 1
    assert not any(sum(c) for c in store.array.counters().values())
    run_check(paths)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3, 4))])
def test_a_crash_anywhere(seed, monkeypatch):
    """Damage, a scrub under load, and a crash before some sync: after it, what is left is healed,
    by a scrub that goes on by itself if it was known durably to run."""
    monkeypatch.setattr(scrub_zone, "STEP_BYTES", 8 * CELL)
    rng = random.Random(seed)
    files = {}

    async def prepare():
        members = members_of(fresh, World(fresh), [0, 1, 2])
        async with simulated(members) as volume:
            for name in (b"a", b"b", b"c"):
                await write(volume, name, data_of(name, 60))
        files.update(contents(members))

    fresh = fresh_files("5", 3)
    in_simulated_time(prepare)
    damaged = {}
    for key in [k for k in files if k[1].startswith("zone-")]:
        if key[0] == 1:
            cells = bytearray(files[key])
            for at in range(0, len(cells), 3 * CELL):
                cells[at + 5] ^= 1
            damaged[key] = bytes(cells)
    world = World({**files, **damaged})

    async def run():
        async with simulated(members_of(world.files, world, [0, 1, 2])) as volume:
            volume.store.scrub.start()
            await volume.store.commit()
            world.mark("running")
            await write(volume, b"d", data_of(b"d", 60))
            await ended(volume.store)
            await volume.store.commit()
            world.mark("finished")

    in_simulated_time(run)
    images = list(itertools.islice(((p, i.copy(), list(m)) for p, i, m in world.images()), 10**6))
    states = set()
    for _, image, marks in rng.sample(images, min(12, len(images))):
        crashed = image.crash(rng.randrange(10**6))
        after = members_of(crashed, World(crashed), [0, 1, 2])

        async def again(after=after, marks=marks):
            async with simulated(after, offload=inline) as volume:
                scrub = volume.store.scrub
                states.add(scrub.record.state if scrub.record else "none")
                if "running" in marks:
                    assert scrub.record is not None
                if "finished" in marks:
                    assert scrub.record.state == "finished"
                if scrub.running:
                    await ended(volume.store)
                await scrubbed(volume.store)
                assert not (await scrubbed(volume.store)).total().bad
                for name in (b"a", b"b", b"c"):
                    got = await content(volume, volume.lookup(ROOT, name).ino)
                    assert got == data_of(name, 60)

        in_simulated_time(again)
        assert not check(after).findings
    assert "running" in states


@pytest.mark.trio
async def test_a_volume_that_fails_ends_it_until_the_next_mount(tmp_path, monkeypatch):
    monkeypatch.setattr(scrub_zone, "STEP_BYTES", 16 * CELL)
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        await write(volume, b"a")
        volume.store.scrub.start(limit_bytes_s=100_000)
        await volume.store.commit()
    store = await open_store(paths)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        assert store.scrub.running
        store.fail("a test")
        with trio.fail_after(30):
            await store.scrub.ended()
        assert store.scrub.record.state == "failed" and "a test" in store.scrub.record.reason
        with pytest.raises(ReadOnly):
            store.scrub.start(check_only=True)
        await store.close()
        nursery.cancel_scope.cancel()
    async with mounted(paths) as volume:
        assert volume.store.scrub.running
        volume.store.scrub.limit(0)
        assert not (await ended(volume.store)).damaged
    run_check(paths)


@pytest.mark.trio
async def test_the_checker_reads_what_is_kept(tmp_path):
    paths = make_members(tmp_path, 3)
    async with mounted(paths) as volume:
        await write(volume, b"a")
        record = await scrubbed(volume.store)
        record.cursor = record.end = 999
        record.of(1).healed = 5
        volume.store.scrub._changed()
    kinds = {finding.code for finding in check_volume(paths[0]).findings}
    assert kinds == {"scrub.cursor", "scrub.figures"}
    async with mounted(paths) as volume:
        put = volume.store.meta.put_setting
        await volume.store.cut_with(lambda _: put("scrub", b"nonsense"))
    assert [f.code for f in check_volume(paths[0]).findings] == ["scrub.record"]
    async with mounted(paths) as volume:  # it is no obstacle
        assert not (await scrubbed(volume.store)).damaged
    run_check(paths)
