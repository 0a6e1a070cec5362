"""Cells that went bad (promise 8), and reads that race with flushes and erasure (promise 3)."""

import itertools
import random

import pytest
import trio
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    check,
    checked,
    in_simulated_time,
    levels,
    mounted,
    new_members,
    pattern,
    read_file,
    reopened,
    write_file,
)

from raidfs.errors import Unrecoverable

# -- damaged cells --------------------------------------------------------------------------------


def damage(members, zone, column, row, how, chooser):
    """Spoil one cell of one member; a missing column spoils all of it."""
    member = members[zone.columns[column][0]]
    name = f"zone-{zone.zone}.{column}"
    if how == "missing":
        member.files.pop(name, None)
    elif how == "unreadable":
        member.unreadable.add((name, row * CELL_BYTES))
    elif name in member.files:
        cell = member.files[name][row * CELL_BYTES :][:CELL_BYTES]
        at = chooser.randrange(CELL_BYTES)
        if how == "zeros":
            cell[:] = bytes(CELL_BYTES)
        elif how == "bit":
            cell[at] ^= 1 << chooser.randrange(8)
        else:
            cell[at:] = chooser.randbytes(CELL_BYTES - at)
        member.files[name][row * CELL_BYTES : (row + 1) * CELL_BYTES] = cell


def zones_of(volume):
    return [zone for zone in volume.store.space.zones.values() if zone.live]


@pytest.mark.parametrize(("level", "count"), levels(("rs:3+3", 6)))
@pytest.mark.parametrize("how", ["bit", "noise", "zeros", "unreadable", "missing"])
def test_bad_cells_are_rebuilt_healed_and_counted(level, count, how):
    """Any m cells of every row: content is right, members are whole again, and it is known."""

    async def run():
        chooser = random.Random(f"{level} {how}")
        members = new_members(level, count)
        content = pattern(1, 100, 33)
        async with mounted(members) as volume:
            await write_file(volume, b"file", content)
        members = reopened(members)
        async with mounted(members) as volume:
            bad = 0
            for zone in zones_of(volume):
                code = zone.map.code
                columns = chooser.sample(range(code.width), code.tolerance)
                for row in range(zone.fill):
                    if how != "missing":
                        columns = chooser.sample(range(code.width), code.tolerance)
                    for column in columns:
                        damage(members, zone.map, column, row, how, chooser)
                        bad += column < code.k
            assert await read_file(volume, b"file") == content
            counters = volume.store.array.counters()
            kind = 0 if how in ("unreadable", "missing") else 2
            found = sum(counts[kind] for counts in counters.values())
            assert found >= min(bad, 1)
            if how != "missing":
                healed = volume.store.array.statistics().cells_healed
                assert healed >= found, "not all that was found was healed"
                assert await read_file(volume, b"file") == content
                assert volume.store.array.counters() == counters, "it was bad a second time"
        after = reopened(members)
        async with mounted(after, read_only=True) as volume:
            kept = volume.store.meta.member_counters()
            assert {m: kept.get(m, (0, 0, 0)) for m in counters} == counters, "counts were lost"
            names = {event.kind for event in volume.store.meta.events(1000)}
            wanted = {"ReadErrors", "Healed"} if kind == 0 else {"ChecksumErrors", "Healed"}
            assert not bad or how == "missing" or wanted <= names
        if how != "missing" and code.tolerance < code.width - code.k:
            return  # level 2 and 10: cells that nobody asked for stay as they are
        findings = {finding.code for finding in check(members).findings}
        if how != "missing":
            assert findings <= {"cell.damaged"}  # parity that no rebuild looked at

    in_simulated_time(run)


@pytest.mark.parametrize("level", ["5", "6"])
def test_damage_beyond_redundancy_costs_those_pages_only(level):
    async def run():
        chooser = random.Random(3)
        members = new_members(level, 5)
        victim, other = pattern(1, 40), pattern(2, 40)
        async with mounted(members) as volume:
            ino = await write_file(volume, b"victim", victim)
            await volume.fsync(ROOT)
            await write_file(volume, b"other", other)
            await volume.fsync(ROOT)
            leaf = volume.store.meta.leaf(ino, 0)
            address = int(leaf.addresses[7])
            zone = volume.store.space.zones[address >> 32].map
            row, column = (address >> 8) & 0xFFFFFF, address & 0xFF
            others = [c for c in range(zone.code.width) if c != column][: zone.code.m]
            for bad in (column, *others):
                damage(members, zone, bad, row, "noise", chooser)
            volume.open(ino, 0)
            failed = []
            for page in range(40):
                try:
                    data = bytes(await volume.read(ino, page * CELL_BYTES, CELL_BYTES))
                    assert data == victim[page * CELL_BYTES :][:CELL_BYTES]
                except Unrecoverable as error:
                    assert error.errno == 5
                    failed.append(page)
            assert 7 in failed and len(failed) <= zone.code.k
            assert await read_file(volume, b"other") == other
            assert volume.store.failed is None
            await volume.write(ino, 7 * CELL_BYTES, b"new" * 1000 + bytes(1096))  # the whole page
            await volume.fsync(ino)
            assert bytes(await volume.read(ino, 7 * CELL_BYTES, 3)) == b"new"
            with pytest.raises(Unrecoverable):  # part of a page that is lost
                await volume.write(ino, failed[-1] * CELL_BYTES + 1, b"x")
                assert failed == [7]
                raise Unrecoverable
            assert volume.store.space.reserved == 0
            assert "Unrecoverable" in {event.kind for event in volume.store.meta.events(100)}
            volume.release(ino)
        codes = {finding.code for finding in check(members).findings}
        assert codes == {"cell.damaged"}

    in_simulated_time(run)


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_degraded_volume_reads_damaged_cells_as_far_as_it_can(lost):
    async def run():
        chooser = random.Random(lost)
        members = new_members("6", 5)
        content = pattern(1, 60)
        async with mounted(members) as volume:
            await write_file(volume, b"file", content)
        members = reopened(members, without=(lost,))
        everyone = {member.number: member for member in members}
        async with mounted(members) as volume:
            for zone in zones_of(volume):
                for row in range(zone.fill):
                    column = chooser.choice(
                        [c for c, (m, _) in enumerate(zone.map.columns) if m != lost]
                    )
                    damage(everyone, zone.map, column, row, "noise", chooser)
            assert await read_file(volume, b"file") == content

    in_simulated_time(run)


# -- reads racing with everything else ------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "count", "seed"), [("5", 3, 1), ("5", 4, 2), ("1", 2, 3), ("6", 4, 4)]
)
def test_readers_race_with_overwriters_and_erasure(level, count, seed):
    """Each page is whole and one that was there between the begin and the end of the read."""

    async def run():
        chooser = random.Random(seed)
        members = new_members(level, count, slots=40)
        pages = 24
        async with mounted(members, interval_s=0.05) as volume:
            store = volume.store
            inos = [
                await write_file(volume, b"%d" % n, bytes(pages * CELL_BYTES)) for n in range(3)
            ]
            await volume.fsync(ROOT)
            history = {(ino, page): [0] for ino in inos for page in range(pages)}
            stamp = itertools.count(1)
            done = trio.Event()

            async def overwrite():
                for _ in range(60):
                    ino, first = chooser.choice(inos), chooser.randrange(pages)
                    count = chooser.randint(1, pages - first)
                    value = next(stamp)
                    data = value.to_bytes(4, "little") * (count * CELL_BYTES // 4)
                    await volume.write(ino, first * CELL_BYTES, data)
                    for page in range(first, first + count):
                        history[ino, page].append(value)
                    if chooser.random() < 0.4:
                        await volume.fsync(ino)
                    await trio.sleep(chooser.choice((0, 0.005, 0.03)))
                done.set()

            async def read():
                while not done.is_set():
                    ino, first = chooser.choice(inos), chooser.randrange(pages)
                    count = chooser.randint(1, pages - first)
                    started = {p: len(history[ino, p]) for p in range(first, first + count)}
                    data = bytes(await volume.read(ino, first * CELL_BYTES, count * CELL_BYTES))
                    for page in range(first, first + count):
                        cell = data[(page - first) * CELL_BYTES :][:CELL_BYTES]
                        value = int.from_bytes(cell[:4], "little")
                        assert cell == value.to_bytes(4, "little") * (CELL_BYTES // 4), "torn"
                        assert value in history[ino, page][started[page] - 1 :]
                    await trio.sleep(chooser.choice((0, 0.004, 0.02)))

            async def spoil():
                """Cells go bad now and then, so that reads take longer than planned."""
                while not done.is_set():
                    zones = zones_of(volume)
                    if zones:
                        zone = chooser.choice(zones)
                        column = chooser.randrange(zone.map.code.k)
                        row = chooser.randrange(max(1, zone.fill))
                        damage(members, zone.map, column, row, "noise", chooser)
                    await trio.sleep(0.5)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(overwrite)
                nursery.start_soon(spoil)
                for _ in range(4):
                    nursery.start_soon(read)
            assert store.failed is None
            assert all(zone.pins == 0 for zone in store.space.zones.values())
            assert store.meta.next_zone > 8, "zones were erased meanwhile"

    in_simulated_time(run, seed=seed)


def test_a_zone_that_is_read_is_erased_only_afterwards():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = await write_file(volume, b"file", pattern(1, 96))
            await volume.fsync(ROOT)
            volume.open(ino, 0)
            gate = trio.Event()
            store = volume.store
            real = store.offload

            async def slow(function, *args):
                if function.__name__ == "_read_runs":
                    await gate.wait()
                return await real(function, *args)

            store.offload = slow
            got = []

            async def read():
                got.append(bytes(await volume.read(ino, 0, 96 * CELL_BYTES)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.sleep(0.1)
                await volume.write(ino, 0, pattern(2, 96))
                await volume.fsync(ino)
                await trio.sleep(1)
                assert store.space.limbo, "its old zones are empty, and pinned"
                gate.set()
            assert got == [pattern(1, 96)]
            await volume.write(ino, 0, b"x")
            await volume.fsync(ino)
            await trio.sleep(1)
            assert not store.space.limbo
            volume.release(ino)
        checked(members)

    in_simulated_time(run)
