"""Members that fail while the volume is in use (promises 8, 11, 12), and cells that went bad."""

import itertools
import random

import numpy as np
import pytest
import trio
from simulated import WRITE_KINDS
from simulated_volume import (
    CELL_BYTES,
    ZONE_BYTES,
    assembly_of,
    check,
    checked,
    in_simulated_time,
    inline,
    mounted,
    new_members,
    reopened,
)
from workload import ME, Workload, read_tree

from raidfs.errors import NotEnoughMembers, RaidfsError, ReadOnly, Unrecoverable
from raidfs.raid.code import code_for, parse_code
from raidfs.raid.label import read_labels
from raidfs.store.store import Store

ROOT = 1
LEVELS = [("1", 2), ("1", 3), ("2", 7), ("3", 4), ("4", 3), ("5", 5), ("6", 6), ("10", 4)]


async def write_file(volume, name, content):
    ino = volume.create(ROOT, name, 0o644, 0, ME).ino
    try:
        assert await volume.write(ino, 0, content) == len(content)
    finally:
        volume.release(ino)
        volume.forget(ino)
    return ino


async def read_file(volume, name):
    ino = volume.lookup(ROOT, name).ino
    volume.open(ino, 0)
    try:
        return bytes(await volume.read(ino, 0, volume.getattr(ino).size))
    finally:
        volume.release(ino)
        volume.forget(ino)


def pattern(seed, cells, extra=0):
    return random.Random(seed).randbytes(cells * CELL_BYTES + extra)


# -- a member fails -------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "count"), LEVELS)
@pytest.mark.parametrize("kind", sorted(WRITE_KINDS - {"create", "label"}))
def test_a_failed_write_takes_a_member_out_and_the_volume_goes_on(level, count, kind):
    async def run():
        members = new_members(level, count)
        first, second, third = pattern(1, 40, 9), pattern(2, 50), pattern(3, 30, 77)
        async with mounted(members) as volume:
            await write_file(volume, b"first", first)
            await volume.fsync(ROOT)
            members[1].failing = {kind}
            await write_file(volume, b"second", second)
            await volume.fsync(ROOT)
            assert volume.store.failed is None and set(volume.store.assembly.lost) == {1}
            assert volume.store.array.states[1].state == "failed"
            for member in members[:1] + members[2:]:
                label = read_labels(member)
                assert label.generation == 2 and label.entry(1).state == "failed"
            assert read_labels(members[1]).generation == 1
            await write_file(volume, b"third", third)
            names = [event.name for event in volume.store.meta.events(50)]
        again = reopened(members)
        async with mounted(again) as volume:
            assert 1 not in volume.store.assembly.members, "a member that missed changes is believed"
            for name, content in ((b"first", first), (b"second", second), (b"third", third)):
                assert await read_file(volume, name) == content
            names = [event.name for event in volume.store.meta.events(50)]
            assert "Fail" in names and "DegradedArray" in names
        checked(again)
        checked(again, without=(1,))

    in_simulated_time(run)


def losable(level, count):
    """(losses covered, one more that isn't), by member number."""
    if level == "10":
        return [(0,), (0, 1)]
    tolerance = code_for(level, count).tolerance
    return [tuple(range(tolerance)), tuple(range(tolerance + 1))]


@pytest.mark.parametrize(("level", "count"), [*LEVELS[:1], *LEVELS[2:], ("0", 2)])
@pytest.mark.parametrize("kind", ["all", "data", "metadata", "sync"])
def test_beyond_redundancy_the_volume_is_read_only(level, count, kind):
    """Promise 11. Nothing hangs, dirty pages stay readable, a new mount finds the last cut."""

    async def run():
        members = new_members(level, count)
        durable, lost = pattern(1, 40), pattern(2, 50)
        async with mounted(members) as volume:
            ino = await write_file(volume, b"durable", durable)
            await volume.fsync(ROOT)
            other = await write_file(volume, b"lost", lost)
            broken = losable(level, count)[1]
            for number in broken:
                members[number].failing = set(WRITE_KINDS) if kind == "all" else {kind}
            outcomes = []

            async def sync():
                with pytest.raises(RaidfsError) as caught:
                    await volume.fsync(ROOT)
                outcomes.append(caught.value.errno)

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(sync)
            assert set(outcomes) == {5}
            assert volume.store.failed is not None
            volume.open(other, 0)
            assert bytes(await volume.read(other, 0, len(lost))) == lost
            with pytest.raises(ReadOnly):
                await volume.write(ino, 0, b"x")
            with pytest.raises(ReadOnly):
                volume.mkdir(ROOT, b"dir", 0o755, ME)
            with pytest.raises(RaidfsError):
                await volume.fsync(ino)
            volume.release(other)
        again = reopened(members)
        async with mounted(again) as volume:  # the cause is mended
            assert await read_file(volume, b"durable") == durable
            assert volume.store.failed is None
            await write_file(volume, b"more", lost)
        checked(again)

    in_simulated_time(run)


@pytest.mark.parametrize("then", ["label", "metadata", "data"])
def test_another_member_fails_while_a_loss_is_recorded(then):
    async def run():
        members = new_members("6", 5)
        contents = {b"%d" % n: pattern(n, 30) for n in range(4)}
        async with mounted(members) as volume:
            await write_file(volume, b"0", contents[b"0"])
            await volume.fsync(ROOT)
            members[2].failing = {then}  # found out at the label, or at the next write
            members[4].failing = set(WRITE_KINDS)
            for number in range(1, 4):
                await write_file(volume, b"%d" % number, contents[b"%d" % number])
                await volume.fsync(ROOT)
            assert volume.store.failed is None
            assert set(volume.store.assembly.lost) == {2, 4}
            for number in (0, 1, 3):
                label = read_labels(members[number])
                assert [e.id for e in label.members if e.state == "failed"] == [2, 4]
        again = reopened(members)
        async with mounted(again) as volume:
            assert sorted(volume.store.assembly.members) == [0, 1, 3]
            for name, content in contents.items():
                assert await read_file(volume, name) == content
        checked(again)

    in_simulated_time(run)


@pytest.mark.parametrize("when", ["final cut", "closing"])
@pytest.mark.parametrize("kind", ["all", "sync", "metadata"])
def test_a_member_fails_during_the_unmount(kind, when):
    """Clean for whoever unmounts; the member is not believed afterwards if it missed anything."""

    async def run():
        members = new_members("5", 3)
        content = pattern(1, 40)
        async with mounted(members) as volume:
            await write_file(volume, b"file", content)
            if when == "closing":
                await volume.fsync(ROOT)
                await trio.sleep(1)
            members[0].failing = set(WRITE_KINDS) if kind == "all" else {kind}
        again = reopened(members)
        async with mounted(again) as volume:
            assert await read_file(volume, b"file") == content
        checked(again)
        checked(again, without=(0,))

    in_simulated_time(run)


@pytest.mark.parametrize("kind", ["reads", "all", "label", "metadata", "sync"])
def test_a_member_that_fails_while_the_volume_is_mounted(kind):
    async def run():
        members = new_members("5", 4)
        content = pattern(1, 40)
        async with mounted(members) as volume:
            await write_file(volume, b"file", content)
            await volume.fsync(ROOT)
            crashed = reopened(members)  # with a log to be replayed
        assembly = assembly_of(crashed)
        crashed[2].fail_reads = kind == "reads"
        crashed[2].failing = {"all": set(WRITE_KINDS), "reads": set()}.get(kind, {kind})
        store = await Store.open(assembly, offload=inline)
        assert store.failed is None
        await store.close()
        again = reopened(crashed)
        async with mounted(again) as volume:
            assert await read_file(volume, b"file") == content
        checked(again, without=(2,))

    in_simulated_time(run)


# -- new data after a loss ------------------------------------------------------------------------


def codes_of(volume, ino):
    """The codes of the zones that hold a file's cells."""
    found = set()
    for _, leaf in volume.store.meta.leaf_range(ino, 0, 1 << 40):
        zones = np.unique(leaf.addresses[leaf.addresses != 0] >> np.uint64(32)).tolist()
        found |= {volume.store.space.zones[zone].map.code.text for zone in zones}
    return found


@pytest.mark.parametrize(
    ("level", "count", "code"), [("5", 5, "5/4"), ("6", 6, "6/5"), ("rs:4+2", 6, "rs:3+2/5")]
)
def test_what_is_written_after_a_loss_survives_as_many_again(level, count, code):
    """New zones are narrower and whole, so that losses up to the tolerance are survived anew."""

    async def run():
        members = new_members(level, count)
        tolerance = code_for(level, count).tolerance
        old, new = pattern(1, 60), pattern(2, 200)
        async with mounted(members) as volume:
            await write_file(volume, b"old", old)
            await volume.fsync(ROOT)
            members[0].failing = {"metadata"}
            await write_file(volume, b"between", pattern(3, 20))
            await volume.fsync(ROOT)
            ino = await write_file(volume, b"new", new)
            await volume.fsync(ROOT)
            assert codes_of(volume, ino) == {code}
            for name in (b"old", b"between"):  # all of what was there at the loss goes
                volume.unlink(ROOT, name)
            await volume.fsync(ROOT)
            await trio.sleep(1)
            assert {z.map.code.text for z in volume.store.space.zones.values()} == {code}
            for number in range(1, 1 + tolerance):
                members[number].failing = {"data"}
                assert await read_file(volume, b"new") == new
                await write_file(volume, b"more%d" % number, old)
                await volume.fsync(ROOT)
                assert volume.store.failed is None
        checked(members)
        again = reopened(members)
        async with mounted(again) as volume:
            assert await read_file(volume, b"new") == new
        one = reopened(members[1:])
        assert len(assembly_of(one).lost) == 1 + tolerance

    in_simulated_time(run)


def test_old_data_is_gone_with_the_second_loss_and_the_mount_says_so():
    async def run():
        members = new_members("5", 5)
        async with mounted(members) as volume:
            await write_file(volume, b"old", pattern(1, 60))
            await volume.fsync(ROOT)
            members[0].failing = {"metadata"}
            await write_file(volume, b"new", pattern(2, 200))
            await volume.fsync(ROOT)
        with pytest.raises(NotEnoughMembers, match="zone 1 can't be read"):
            await Store.open(assembly_of(reopened(members, without=(1,))), offload=inline)
        again = reopened(members)  # it changed nothing
        async with mounted(again) as volume:
            assert await read_file(volume, b"old") == pattern(1, 60)

    in_simulated_time(run)


def test_a_full_degraded_volume_uses_the_damaged_zones_too():
    async def run():
        members = new_members("5", 4, slots=9)
        async with mounted(members) as volume:
            ino = await write_file(volume, b"file", pattern(1, 60))
            await volume.fsync(ROOT)
            members[3].failing = {"metadata"}
            written = 60
            with pytest.raises(RaidfsError, match="full"):
                while True:
                    done = await volume.write(ino, written * CELL_BYTES, pattern(written, 16))
                    await volume.fsync(ROOT)
                    written += done // CELL_BYTES
            assert volume.store.failed is None
            assert volume.store.space.usage().free_cells <= 16
            assert {"5/4", "5/3"} == {z.map.code.text for z in volume.store.space.zones.values()}
            size = volume.getattr(ino).size
            want = await read_file(volume, b"file")
            volume.unlink(ROOT, b"file")
            await volume.fsync(ROOT)
            assert size == len(want)
            codes = [z.map.code.text for z in volume.store.space.zones.values()]
            assert "5/4" not in codes, "empty damaged zones are given back"
            await write_file(volume, b"again", pattern(2, 60))
        checked(reopened(members))

    in_simulated_time(run)


def test_a_mirror_of_two_goes_on_alone():
    async def run():
        members = new_members("1", 2)
        async with mounted(members) as volume:
            await write_file(volume, b"one", pattern(1, 40))
            await volume.fsync(ROOT)
            members[0].failing = {"data"}
            for number in range(20):
                await write_file(volume, b"n%d" % number, pattern(number, 40))
                await volume.fsync(ROOT)
            assert volume.store.failed is None
        again = reopened(members, without=(0,))
        async with mounted(again) as volume:
            for number in range(20):
                assert await read_file(volume, b"n%d" % number) == pattern(number, 40)
            await write_file(volume, b"two", pattern(2, 40))
        checked(again)

    in_simulated_time(run)


@pytest.mark.parametrize("lost", list(itertools.combinations(range(4), 2)))
def test_level_10_beyond_its_tolerance(lost):
    """Two members of different pairs: all is there. Both of a pair: refused, or read-only."""

    async def run():
        members = new_members("10", 4)
        content = pattern(1, 40)
        async with mounted(members) as volume:
            await write_file(volume, b"file", content)
            await volume.fsync(ROOT)
            zones = [z.map for z in volume.store.space.zones.values() if z.live]
            pairs = {
                frozenset((m.columns[c][0], m.columns[m.code.k + c][0])) for m in zones for c in (0, 1)
            }
        survives = frozenset(lost) not in pairs
        at_mount = reopened(members, without=lost)
        if survives:
            async with mounted(at_mount) as volume:
                assert await read_file(volume, b"file") == content
                await write_file(volume, b"more", content)
                assert volume.store.failed is None
            checked(at_mount)
        else:
            with pytest.raises(NotEnoughMembers, match="can't be read"):
                await Store.open(assembly_of(at_mount), offload=inline)
        running = reopened(members)
        async with mounted(running) as volume:
            for number in lost:
                running[number].failing = set(WRITE_KINDS)
                await write_file(volume, b"during%d" % number, content)
                try:
                    await volume.fsync(ROOT)
                except RaidfsError:
                    assert not survives
            assert (volume.store.failed is None) == survives
        again = reopened(running)
        async with mounted(again) as volume:
            assert await read_file(volume, b"file") == content
        checked(again)

    in_simulated_time(run)


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


@pytest.mark.parametrize(("level", "count"), [*LEVELS, ("rs:3+3", 6)])
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
            names = {event.name for event in volume.store.meta.events(1000)}
            wanted = {"ReadError", "Healed"} if kind == 0 else {"ChecksumError", "Healed"}
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
            assert "Unrecoverable" in {event.name for event in volume.store.meta.events(100)}
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
                    column = chooser.choice([c for c, (m, _) in enumerate(zone.map.columns) if m != lost])
                    damage(everyone, zone.map, column, row, "noise", chooser)
            assert await read_file(volume, b"file") == content

    in_simulated_time(run)


# -- reads racing with everything else ------------------------------------------------------------


@pytest.mark.parametrize(("level", "count", "seed"), [("5", 3, 1), ("5", 4, 2), ("1", 2, 3), ("6", 4, 4)])
def test_readers_race_with_overwriters_and_erasure(level, count, seed):
    """Each page is whole and one that was there between the begin and the end of the read."""

    async def run():
        chooser = random.Random(seed)
        members = new_members(level, count, slots=20)
        pages = 24
        async with mounted(members, interval_s=0.05) as volume:
            store = volume.store
            inos = [await write_file(volume, b"%d" % n, bytes(pages * CELL_BYTES)) for n in range(3)]
            await volume.fsync(ROOT)
            history = {(ino, page): [(0, 0)] for ino in inos for page in range(pages)}
            stamp = itertools.count(1)
            done = trio.Event()

            async def overwrite():
                for _ in range(60):
                    ino, first = chooser.choice(inos), chooser.randrange(pages)
                    count = chooser.randint(1, pages - first)
                    value = next(stamp)
                    data = value.to_bytes(4, "little") * (count * CELL_BYTES // 4)
                    now = trio.current_time()
                    await volume.write(ino, first * CELL_BYTES, data)
                    for page in range(first, first + count):
                        history[ino, page].append((value, now))
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
                        allowed = [v for v, _ in history[ino, page][started[page] - 1 :]]
                        assert value in [*allowed, *range(max(allowed), 10**6)][: len(allowed) + 3]
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

    in_simulated_time(run)


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


# -- whole workloads ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_workload_during_which_members_fail_one_after_the_other(seed):
    """Until nothing is left to fail: the volume holds the model, or says that it is read-only."""

    async def run():
        chooser = random.Random(seed)
        level, count = chooser.choice([*LEVELS, ("rs:2+3", 5)])
        members = new_members(level, count)
        async with mounted(members) as volume:
            workload = Workload(volume, seed)
            order = chooser.sample(range(count), count)
            for number in order:
                try:
                    for _ in range(chooser.randrange(40)):
                        await workload.step()
                        await trio.sleep(chooser.choice((0, 0.01, 0.2)))
                        if chooser.random() < 0.2:
                            await volume.fsync(ROOT)
                except RaidfsError:
                    assert volume.store.failed is not None
                    break
                kinds = [WRITE_KINDS, {"data"}, {"metadata"}, {"sync"}]
                members[number].failing = set(chooser.choice(kinds))
                members[number].fail_reads = chooser.random() < 0.3
            if volume.store.failed is None:
                with pytest.raises(RaidfsError):
                    volume.mkdir(ROOT, b"last one", 0o755, ME)
                    await volume.fsync(ROOT)
            lost = len(volume.store.assembly.lost)
            assert lost >= min(code_for(level, count).tolerance, count - 1) or level == "1"
        again = reopened(members)
        async with mounted(again) as volume:
            await read_tree(volume)
        checked(again)

    in_simulated_time(run)


def test_codes_of_zones_can_be_parsed():
    assert parse_code("5/4").k == 3 and ZONE_BYTES % CELL_BYTES == 0
