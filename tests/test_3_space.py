"""Promise 10: room for whatever was granted. Space by itself, then under a running volume."""

import itertools
import random

import numpy as np
import pytest
import trio
from simulated import SimulatedMember, World
from simulated_volume import (
    CELL_BYTES,
    ZONE_BYTES,
    ZONE_ROWS,
    checked,
    in_simulated_time,
    inline,
    mounted,
    new_members,
    reopened,
)
from workload import ME

from raidfs.errors import OutOfSpace, RaidfsError
from raidfs.fs.attributes import Changes
from raidfs.raid.array import Array, MemberState
from raidfs.raid.code import narrower
from raidfs.raid.label import Parameters
from raidfs.store.space import Space

ROOT = 1
SHAPES = [("0", 2), ("1", 2), ("1", 3), ("2", 7), ("3", 4), ("5", 3), ("5", 5), ("6", 6), ("10", 4)]


class MetaRows:
    """What Space needs of the metadata, in a dictionary."""

    def __init__(self):
        self.rows = {}
        self.next_zone = 1
        self.full = False

    def atomic(self):
        return trio.CancelScope()  # any context manager

    def zones(self):
        return []

    def insert_zone(self, zone, code, rows, columns):
        if self.full:
            raise OutOfSpace("metadata")
        self.rows[zone] = (0, 0)
        self.next_zone = zone + 1

    def update_zones(self, changed):
        for fill, live, zone in changed:
            assert zone in self.rows
            self.rows[zone] = (fill, live)

    def delete_zone(self, zone):
        del self.rows[zone]


class Bench:
    """A Space on simulated members, and writers, epochs and files as plain numbers."""

    def __init__(self, level, count, slots, seed):
        self.random = random.Random(seed)
        world = World()
        self.members = [SimulatedMember(world, n, slots=slots[n]) for n in range(count)]
        self.array = Array(
            {m.number: MemberState(m, "online") for m in self.members},
            CELL_BYTES,
            lambda name, member, text: None,
        )
        parameters = Parameters(level, count, CELL_BYTES, ZONE_BYTES, 1 << 24, 1 << 24, 1)
        self.meta = MetaRows()
        table = {m.number: m.slots_total for m in self.members}
        self.space = Space(self.meta, self.array, parameters, table, inline, self.claims)
        self.held = []  # reservations of writers
        self.dirty = 0  # cells, in the open epoch and the one being flushed
        self.open = 0
        self.epoch = 1
        self.live = []  # addresses that leaves refer to
        self.pinned = []

    def claims(self):
        """No credits were granted in advance."""
        return self.dirty, 0

    async def step(self):
        await self.random.choice(
            (
                self.take,
                self.take,
                self.make_dirty,
                self.make_dirty,
                self.flush,
                self.kill,
                self.pin,
            )
        )()
        self.verify()

    async def take(self):
        if len(self.held) >= 60:
            return
        cells = self.random.choice((1, 1, 1, 2, 17))
        privileged = cells == 1 and self.random.random() < 0.3
        if await self.space.make_room(cells, privileged):
            assert self.space.take(cells, privileged)
            self.held.append(cells)
        else:
            assert not self.space.take(cells, privileged)

    async def make_dirty(self):
        if self.held:
            cells = self.held.pop(self.random.randrange(len(self.held)))
            used = self.random.randint(0, cells)
            self.dirty += used
            self.open += used
            self.space.give(cells)

    async def flush(self):
        """The open epoch gets rows; some of what it overwrites dies; others go on meanwhile."""
        sealed, self.open = self.open, 0
        await self.space.prepare(sealed)
        taken = self.space.rows_for(sealed)
        assert sum(rows.pages for rows in taken) == sealed
        for _ in range(self.random.randrange(3)):
            await self.random.choice((self.take, self.make_dirty))()
        touched, new = {rows.zone.map.zone for rows in taken}, []
        for rows in taken:
            assert rows.row + rows.rows <= rows.zone.fill <= rows.zone.map.rows
            assert rows.rows == -(-rows.pages // rows.zone.map.code.k)
            new += [rows.zone.map.zone << 32 | (rows.row << 8) + i for i in range(rows.pages)]
        if new:
            touched |= self.space.account(np.array(new, dtype=np.uint64), +1)
        self.live += new
        dead = [self.live.pop(self.random.randrange(len(self.live))) for _ in new[::2] if self.live]
        if dead:
            touched |= self.space.account(np.array(dead, dtype=np.uint64), -1)
        await self._commit(touched)
        self.dirty -= sealed
        self.space.retire(sealed)

    async def kill(self):
        """Files are removed."""
        if self.live and self.random.random() < 0.2:
            count = self.random.randint(1, len(self.live))
            self.random.shuffle(self.live)
            dead, self.live = self.live[:count], self.live[count:]
            await self._commit(self.space.account(np.array(dead, dtype=np.uint64), -1))

    async def _commit(self, touched):
        before = set(self.space.limbo)
        self.space.store_zones(touched, self.epoch)
        fresh = set(self.space.limbo) - before
        assert not {z.map.zone for z in self.space.erasable(self.epoch - 1)} & fresh
        columns = {zone for m in self.members for zone, _ in m.columns()}
        assert fresh <= columns, "erased before the commit was durable"
        await self.space.erase(self.space.erasable(self.epoch))
        columns = {zone for m in self.members for zone, _ in m.columns()}
        for zone in fresh:
            assert (zone in columns) == (zone in self.space.limbo)
        self.epoch += 1

    async def pin(self):
        """A reader begins, or ends."""
        if self.pinned and self.random.random() < 0.6:
            self.pinned.pop().pins -= 1
        elif self.space.zones:
            zone = self.random.choice(list(self.space.zones.values()))
            zone.pins += 1
            self.pinned.append(zone)

    def verify(self):
        space = self.space
        assert space.reserved == sum(self.held) and space.writers == len(self.held)
        assert space.credits == sum(self.held) + self.open == space.reserved + self.open
        # however the writers' cells are dealt to flushes, there is room
        k = max((zone.map.code.k for zone in space.open), default=1)
        flushes = len(self.held) + (self.open > 0)
        assert space.room_cells >= space.credits + flushes * (k - 1), "a flush could fail"
        for number, zone in space.zones.items():
            assert self.meta.rows[number][1] == zone.live or zone.placed
            assert (zone in space.open) == (zone.room_cells > 0 and not zone.kept)
            assert zone.live or zone.room_cells or zone.placed, "an empty zone was kept"
            assert zone.kept == (zone is space.reserve.spare), "more than the spare is withheld"
        assert all(zone.map.zone in space.limbo for zone in self.pinned if zone.retired)
        self.verify_slots()

    def verify_slots(self):
        """Each slot is free, or taken once."""
        zones = [*self.space.zones.values(), *self.space.limbo.values()]
        for number, slots in self.space.allocation.slots.items():
            taken = [s for zone in zones for m, s in zone.map.columns if m == number]
            assert sorted(taken + slots.free) == list(range(slots.total)), number


@pytest.mark.parametrize(("level", "count"), SHAPES)
def test_room_never_falls_below_what_was_granted(level, count):
    async def run():
        for seed in range(6):
            chooser = random.Random(seed)
            bench = Bench(level, count, [chooser.randint(3, 9) for _ in range(count)], seed)
            try:
                for _ in range(150):
                    await bench.step()
                for zone in bench.pinned:
                    zone.pins -= 1
                bench.pinned.clear()
                while bench.held:
                    await bench.make_dirty()
                await bench.flush()
                if bench.live:
                    dead = np.array(bench.live, dtype=np.uint64)
                    bench.live.clear()
                    await bench._commit(bench.space.account(dead, -1))
                bench.verify()
                spare = bench.space.reserve.spare
                assert len(bench.space.zones) <= len(bench.space.open) + (spare is not None)
            finally:
                bench.array.close()

    in_simulated_time(run)


def test_a_zone_that_an_epoch_shares_stays_until_it_is_applied():
    async def run():
        bench = Bench("5", 3, [6, 6, 6], 0)
        space = bench.space
        assert await space.make_room(ZONE_ROWS * 2) and space.take(ZONE_ROWS * 2)
        bench.held.append(ZONE_ROWS * 2)
        bench.dirty = bench.open = ZONE_ROWS * 2
        bench.held.clear()
        space.give(ZONE_ROWS * 2)
        await space.prepare(bench.open)
        (rows,) = space.rows_for(bench.open)
        zone, number = rows.zone, rows.zone.map.zone
        cells = np.array([number << 32 | row << 8 for row in range(ZONE_ROWS)], dtype=np.uint64)
        space.store_zones(space.account(cells, +1), 1)
        for epoch in (7, 8):
            space.hold(np.append(cells[:3], np.uint64(0)), epoch)
            space.hold(cells[2:5], epoch)
        assert zone.holds == 2
        space.store_zones(space.account(cells, -1), 6)  # the last one that leaves referred to
        assert number in space.zones and bench.meta.rows[number] == (ZONE_ROWS, 0)
        space.store_zones(space.account(cells[:1], +1), 7)
        space.let_go(7)
        space.store_zones(space.account(cells[:1], -1), 7)
        assert number in space.zones
        space.let_go(8)
        space.store_zones((), 8)
        assert number in space.limbo and zone.retired == 8 and not space._held
        bench.array.close()

    in_simulated_time(run)


def test_an_empty_zone_found_at_a_mount_goes_with_the_next_flush():
    """A crash came while only an epoch that was lost held it."""

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = await new_file(volume, b"file")
            pages = 2 * ZONE_ROWS * volume.store.space.code.k
            assert await volume.write(ino, 0, bytes(pages * CELL_BYTES)) == pages * CELL_BYTES
            await volume.fsync(ino)
            for zone in list(volume.store.space.zones.values()):
                if zone.live:
                    zone.holds += 1
            volume.unlink(ROOT, b"file")
            await volume.fsync(ROOT)
            zones = volume.store.space.zones
            empty = {n for n, z in zones.items() if not z.room_cells and not z.live}
            assert empty
        members = reopened(members)
        checked(members)
        async with mounted(members) as volume:
            assert empty <= volume.store.space.zones.keys()
            await new_file(volume, b"other")
            await volume.fsync(ROOT)
            assert not empty & volume.store.space.zones.keys()
        checked(reopened(members))

    in_simulated_time(run)


def test_a_zone_that_cannot_be_recorded_leaves_nothing_behind():
    async def run():
        bench = Bench("5", 3, [4, 4, 4], 0)
        bench.meta.full = True
        with pytest.raises(OutOfSpace, match="metadata"):
            await bench.space.make_room(10)
        bench.verify_slots()
        assert not any(member.columns() for member in bench.members)
        bench.meta.full = False
        assert await bench.space.make_room(10)
        bench.array.close()

    in_simulated_time(run)


def test_a_member_without_room_is_passed_over_and_asked_again():
    async def run():
        bench = Bench("5", 4, [8] * 4, 0)
        bench.space.allocation.code = narrower("5", 3)
        bench.members[2].failing = {"create"}
        assert await bench.space.make_room(10)
        zone = next(iter(bench.space.zones.values()))
        assert 2 not in [member for member, _ in zone.map.columns]
        bench.verify_slots()
        bench.members[2].failing = set()
        await bench.space.erase([])  # nothing was erased: it is still passed over
        assert 2 in bench.space.allocation._full
        bench.space.allocation._full[2] -= 60  # but not for ever
        bench.space.allocation.choose(False)
        assert 2 not in bench.space.allocation._full
        bench.array.close()

    in_simulated_time(run)


# -- under a running volume -----------------------------------------------------------------------


async def new_file(volume, name):
    ino = volume.create(ROOT, name, 0o644, 0, ME).ino
    volume.release(ino)
    volume.forget(ino)
    return ino


async def fill(volume, ino, piece_cells, *, sync=False):
    """Append until the volume is full; the cells written. Nothing fails after it was told."""
    written = 0
    content = bytes(range(1, 251)) * (piece_cells * CELL_BYTES // 250 + 1)
    while True:
        data = content[: piece_cells * CELL_BYTES]
        try:
            done = await volume.write(ino, written * CELL_BYTES, data)
        except OutOfSpace:
            return written
        assert done % CELL_BYTES == 0
        written += done // CELL_BYTES
        if sync:
            await volume.fsync(ino)


@pytest.mark.parametrize(("level", "count"), SHAPES)
def test_statfs_tells_what_can_be_written(level, count):
    """Free falls with what is written, never says more than fits, and ends near zero; a remount
    says the same; everything that was acknowledged is there; all room returns."""

    async def run():
        members = new_members(level, count, slots=14)
        async with mounted(members) as volume:
            space = volume.store.space
            first = space.usage()
            ino = await new_file(volume, b"first")
            assert await volume.write(ino, 0, bytes(100 * CELL_BYTES)) == 100 * CELL_BYTES
            await volume.fsync(ino)
            usage = space.usage()
            assert first.free_cells - 100 - space.code.k <= usage.free_cells
            assert usage.free_cells <= first.free_cells - 100
            assert usage.total_cells == first.total_cells
            assert (usage.live_cells, usage.zones) == (100, len(space.zones))
        members = reopened(members)
        async with mounted(members) as volume:
            space = volume.store.space
            free = space.usage().free_cells
            assert usage.free_cells - space.code.k * ZONE_ROWS <= free <= usage.free_cells
            other = await new_file(volume, b"other")
            written = await fill(volume, other, 40)
            assert free - 40 <= written, "statfs said there was more"
            assert written <= free + 2 * space.code.k * ZONE_ROWS, "statfs said there was less"
            assert space.usage().free_cells <= 40
            await volume.fsync(other)
            volume.unlink(ROOT, b"other")
            volume.unlink(ROOT, b"first")
            await volume.fsync(ROOT)
            await trio.sleep(1)
            again = space.usage()
            assert again.live_cells == 0
            assert again.free_cells >= first.free_cells - space.code.k * ZONE_ROWS
            few = 4 + 40 // (space.code.k * ZONE_ROWS)  # slack, what didn't fit, the spare
            assert sum(len(m.columns()) for m in members) <= few * space.code.width
            third = await new_file(volume, b"third")
            assert await fill(volume, third, 40) >= again.free_cells - 40
        checked(members)

    in_simulated_time(run)


@pytest.mark.parametrize(
    ("level", "count", "slots"),
    [("5", 5, [6, 9, 14, 14, 5]), ("1", 3, [5, 9, 7]), ("5", 4, [9] * 4)],
)
def test_a_page_per_fsync_until_full(level, count, slots):
    """Each fsync takes a whole row for one page."""

    async def run():
        members = new_members(level, count, slots=slots)
        async with mounted(members) as volume:
            ino = await new_file(volume, b"small")
            written = await fill(volume, ino, 1, sync=True)
            assert written >= 32 and volume.store.failed is None
            size = volume.getattr(ino).size
            assert size == written * CELL_BYTES
            await volume.fsync(ino)
        again = reopened(members)
        async with mounted(again) as volume:
            ino = volume.lookup(ROOT, b"small").ino
            volume.open(ino, 0)
            content = bytes(await volume.read(ino, 0, size))
            volume.release(ino)
            want = (bytes(range(1, 251)) * 17)[:CELL_BYTES]
            assert content == want * written
        checked(again)

    in_simulated_time(run)


def test_writers_that_end_one_by_one_each_get_their_row():
    """Many hold a credit of one cell; then each dirties it and syncs, a flush for each."""

    async def run():
        members = new_members("5", 5, slots=10)
        async with mounted(members) as volume:
            store = volume.store
            ino = await new_file(volume, b"file")
            volume.open(ino, 1)
            room = store.space.usage().free_cells
            await volume.write(ino, 0, bytes((room - 100) * CELL_BYTES))
            await volume.fsync(ino)
            held = 0
            with pytest.raises(OutOfSpace):
                while True:
                    await store.reserve(1)
                    held += 1
            assert held > 5
            for number in range(held):
                store.pages.write(ino, number * CELL_BYTES, b"x" * CELL_BYTES, number)
                store.release(1)
                await volume.fsync(ino)
            volume.release(ino)
            assert store.failed is None
        checked(members)

    in_simulated_time(run)


def test_truncate_and_unlink_work_on_a_full_volume():
    async def run():
        members = new_members("5", 4, slots=10)
        async with mounted(members) as volume:
            inos = [await new_file(volume, b"%d" % n) for n in range(12)]
            for ino in inos:
                await volume.write(ino, 0, b"x" * (20 * CELL_BYTES))
            big = await new_file(volume, b"big")
            await fill(volume, big, 7)
            await fill(volume, big, 1)
            for ino in inos:  # each needs a cell for the page in which it ends
                await volume.setattr(ino, Changes(size=10 * CELL_BYTES + 5), ME)
                await volume.fsync(ino)
            for ino in inos * 3:  # these need none, how ever many they are
                size = volume.getattr(ino).size
                await volume.setattr(ino, Changes(size=(size // CELL_BYTES - 1) * CELL_BYTES), ME)
                await volume.fsync(ino)
            await volume.setattr(big, Changes(size=0), ME)
            assert await fill(volume, big, 8) > 100  # without an fsync in between
            volume.unlink(ROOT, b"big")
            again = await new_file(volume, b"again")
            assert await fill(volume, again, 8) > 80
        checked(members)

    in_simulated_time(run)


def test_room_is_there_as_soon_as_it_was_given_back():
    """A write right after the fsync of a removal waits for the erasing, rather than fail."""

    async def run():
        members = new_members("5", 3, slots=8)
        async with mounted(members) as volume:
            kept = await new_file(volume, b"kept")
            for _ in range(3):
                big = await new_file(volume, b"big")
                await fill(volume, big, 16)
                volume.unlink(ROOT, b"big")
                await volume.fsync(ROOT)
                assert not volume.store.dirty
                assert await volume.write(kept, 0, bytes(32 * CELL_BYTES)) == 32 * CELL_BYTES
                await volume.fsync(kept)
        checked(members)

    in_simulated_time(run)


def test_erased_slots_are_used_again():
    async def run():
        members = new_members("5", 3, slots=9)
        async with mounted(members) as volume:
            ino = await new_file(volume, b"file")
            for turn in range(30):
                await volume.write(ino, 0, bytes([turn]) * (50 * CELL_BYTES))
                await volume.fsync(ino)
            assert volume.store.meta.next_zone > 30
            for member in members:
                assert len(member.columns()) <= 9
        checked(members)

    in_simulated_time(run)


# -- many writers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_many_writers_in_little_dirty_room(seed):
    """No deadlock, no lost wake-up: it takes no longer than flushing does."""

    async def run():
        members = new_members("5", 4)
        async with mounted(members, dirty_bytes_max=1) as volume:
            store = volume.store
            chooser = random.Random(seed)
            store.dirty_cells_max = chooser.choice((16, 64))
            inos = [await new_file(volume, b"%d" % n) for n in range(20)]
            for ino in inos:
                await volume.write(ino, 0, b"." * (12 * CELL_BYTES))
            await volume.fsync(ROOT)
            model = {ino: bytearray(b"." * (12 * CELL_BYTES)) for ino in inos}
            most = 0

            async def writer(ino):
                nonlocal most
                for turn in range(6):
                    offset = chooser.randrange(11 * CELL_BYTES)  # bases are read, in time
                    data = bytes([65 + turn]) * chooser.randrange(1, CELL_BYTES)
                    await volume.write(ino, offset, data)
                    model[ino][offset : offset + len(data)] = data
                    most = max(most, store.pages.dirty_cells + store.space.reserved)
                    if chooser.random() < 0.2:
                        await volume.fsync(ino)

            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for ino in inos:
                    for _ in range(2 if chooser.random() < 0.5 else 1):
                        nursery.start_soon(writer, ino)
            assert most <= store.dirty_cells_max
            assert trio.current_time() - started < 20, "someone waited for the interval"
            assert store.space.reserved == store.space.writers == 0
            for ino, want in model.items():
                size = len(want)
                assert len(bytes(await volume.read(ino, 0, size))) == size
        checked(members)

    in_simulated_time(run, 600, seed)


def test_a_writer_is_woken_when_another_gives_up_its_room():
    """All dirty room is reserved and nothing is dirty: a flush can't help."""

    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            store.dirty_cells_max = 16
            await store.reserve(16)
            got = []

            async def wait(cells):
                await store.reserve(cells)
                got.append(cells)

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, 4)
                    nursery.start_soon(wait, 12)
                    await trio.sleep(1)
                    assert not got
                    store.release(16)
            assert sorted(got) == [4, 12]
            for cells in got:
                store.release(cells)

    in_simulated_time(run)


def test_the_largest_writer_is_not_overtaken_for_ever():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            store = volume.store
            store.dirty_cells_max = 16
            small = [await new_file(volume, b"%d" % n) for n in range(4)]
            done = trio.Event()

            async def writer(ino):
                for turn in itertools.count():
                    await volume.write(ino, turn % 5 * CELL_BYTES, b"s" * CELL_BYTES)
                    await trio.sleep(0)
                    if done.is_set():
                        return

            async with trio.open_nursery() as nursery:
                for ino in small:
                    nursery.start_soon(writer, ino)
                with trio.fail_after(60):
                    await store.reserve(16)
                    store.release(16)
                done.set()

    in_simulated_time(run)


def test_waiting_writers_are_told_when_the_volume_fails():
    async def run():
        members = new_members("5", 3)
        async with mounted(members, interval_s=3600.0) as volume:
            store = volume.store
            store.dirty_cells_max = 16
            await store.reserve(16)
            told = []

            async def wait(cells):
                try:
                    await store.reserve(cells)
                except RaidfsError as error:
                    told.append(error)

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for cells in (1, 5, 16):
                        nursery.start_soon(wait, cells)
                    await trio.sleep(1)
                    store.fail("a test")
            assert len(told) == 3 and all("a test" in str(error) for error in told)
            with pytest.raises(RaidfsError, match="a test"):
                await store.reserve(1)

    in_simulated_time(run)


def test_unequal_members_are_used_up_together():
    """Five members, the largest as large as two: nothing is left unused."""

    async def run():
        members = new_members("5", 5, slots=[4, 4, 8, 8, 6])
        async with mounted(members) as volume:
            space = volume.store.space
            space.allocation.code = narrower("5", 3)
            ino = await new_file(volume, b"file")
            await fill(volume, ino, 20)
            assert sum(len(slots.free) for slots in space.allocation.slots.values()) < 3
            assert space.usage().free_cells <= 20
        checked(members)

    in_simulated_time(run)
