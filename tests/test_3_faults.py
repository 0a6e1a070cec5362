"""Members that fail while the volume is in use (promises 11 and 12, and new data after a loss)."""

import itertools
import random

import numpy as np
import pytest
import trio
from simulated import WRITE_KINDS
from simulated_volume import (
    CELL_BYTES,
    LEVELS,
    ROOT,
    assembly_of,
    checked,
    in_simulated_time,
    inline,
    levels,
    mounted,
    new_members,
    pattern,
    read_file,
    reopened,
    write_file,
)
from workload import ME, Workload, read_tree

from raidfs.errors import NotEnoughMembers, OutOfSpace, RaidfsError, ReadOnly, Unrecoverable
from raidfs.raid.code import code_for
from raidfs.raid.label import read_labels
from raidfs.store.store import Store

# -- a member fails -------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "count"), levels())
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
        again = reopened(members)
        async with mounted(again) as volume:
            assert 1 not in volume.store.assembly.members, (
                "a member that missed changes is believed"
            )
            for name, content in ((b"first", first), (b"second", second), (b"third", third)):
                assert await read_file(volume, name) == content
            names = [event.kind for event in volume.store.meta.events(50)]
            assert "Fail" in names and "DegradedArray" in names
        checked(again)
        checked(again, without=(1,))

    in_simulated_time(run)


def losable(level, count):
    """(losses covered, one more that isn't), by member number."""
    if level == "10":
        return [(0,), (0, 1, 2)]
    if level == "2":
        return [(0, 1), (0, 1, 2, 3)]  # some three are survived
    tolerance = code_for(level, count).tolerance
    return [tuple(range(tolerance)), tuple(range(tolerance + 1))]


@pytest.mark.parametrize(("level", "count"), levels(("0", 2)))
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
            for number in range(12):
                await write_file(volume, b"n%d" % number, pattern(number, 40))
                await volume.fsync(ROOT)
            assert volume.store.failed is None
        again = reopened(members, without=(0,))
        async with mounted(again) as volume:
            for number in range(12):
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
                frozenset((m.columns[c][0], m.columns[m.code.k + c][0]))
                for m in zones
                for c in (0, 1)
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


# -- whole workloads ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_workload_during_which_members_fail_one_after_the_other(seed):
    """Until nothing is left to fail. What the volume told is there to be read, whatever became of
    the volume; it is read-only once redundancy doesn't cover a failure, full once no zone can be
    made of what is left."""

    async def run():
        chooser = random.Random(seed)
        level, count = chooser.choice([*LEVELS, ("rs:2+3", 5), ("0", 3)])
        unreadable = chooser.random() < 0.3
        members = new_members(level, count)
        async with mounted(members, fails=True) as volume:
            workload = Workload(volume, seed)
            for number in chooser.sample(range(count), count):
                try:
                    for _ in range(chooser.randrange(40)):
                        await workload.step()
                        await trio.sleep(chooser.choice((0, 0.01, 0.2)))
                        if chooser.random() < 0.2:
                            await volume.fsync(ROOT)
                except OutOfSpace:
                    assert len(volume.store.assembly.lost) > code_for(level, count).tolerance
                    assert volume.store.space.usage().free_cells < 100  # no zone can be made
                    break
                except RaidfsError as error:
                    assert volume.store.failed or (unreadable and isinstance(error, Unrecoverable))
                    break
                kinds = [WRITE_KINDS, {"data"}, {"metadata"}, {"sync"}]
                members[number].failing = set(chooser.choice(kinds))
                members[number].fail_reads = unreadable and chooser.random() < 0.5
            if not any(member.fail_reads for member in members):
                assert await read_tree(volume) == workload.model.tree()
        again = reopened(members)
        async with mounted(again) as volume:
            await read_tree(volume)
        checked(again)

    in_simulated_time(run, seed=seed)
