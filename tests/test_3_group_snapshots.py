"""A volume's part of group snapshots in the store: hidden, promised, named; through openings."""

import pytest
from checking import run_check
from volumes import make_members, mounted

from raidfs.errors import NoSuchSnapshot, RaidfsError, UsageError
from raidfs.store.group_snapshots import HIDDEN

ONE, TWO = bytes(range(16)), bytes(range(16, 32))


def parts_of(volume):
    return volume.store.group_snapshots


def names(volume):
    return [row.name for row in volume.store.snapshots.all(internal=True)]


@pytest.mark.trio
async def test_hidden_until_committed(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        parts = parts_of(volume)
        before = volume.store.epoch
        assert parts.cut(ONE, "monday", 77) == before
        assert volume.store.epoch == before + 1 and volume.store.durable < before
        assert await parts.prepare(ONE, b"kept", [("a", b"1"), ("b", b"2")]) == before
        assert volume.store.durable == before, "the promise is in the commit of the cut"
        assert names(volume) == [HIDDEN + ONE.hex()]
        assert volume.store.meta.kept() == [(ONE, "prepared", b"kept")]
        with pytest.raises(UsageError, match="already"):
            await volume.store.snapshots.create("monday")
        with pytest.raises(NoSuchSnapshot):
            volume.store.snapshots.find("monday")
        await parts.commit(ONE)
        row = volume.store.snapshots.find("monday")
        assert (row.group_id, row.epoch, row.created_ns, row.note) == (ONE, before, 77, "")
        assert volume.store.meta.kept() == [(ONE, "took-part", b"kept")]
        assert volume.store.meta.recorded(ONE) == [("a", b"1"), ("b", b"2")]
        await parts.commit(ONE)  # again: no harm
        assert volume.store.meta.kept() == [(ONE, "took-part", b"kept")]
        await volume.store.snapshots.delete(["monday"])
        assert volume.store.meta.recorded(ONE) == [] and volume.store.meta.kept() == []
    run_check(paths)


@pytest.mark.trio
async def test_the_promise_after_the_cut_is_durable(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        parts = parts_of(volume)
        epoch = parts.cut(ONE, "monday", 77)
        await volume.store.commit()
        assert volume.store.durable == epoch
        assert names(volume) == [HIDDEN + ONE.hex()] and volume.store.meta.kept() == []
        assert await parts.prepare(ONE, b"kept", []) == epoch
        assert volume.store.durable > epoch
        await parts.discard(ONE)
        assert names(volume) == [] and volume.store.meta.kept() == []
        await parts.discard(ONE)
        await volume.store.snapshots.create("monday")
    run_check(paths)


@pytest.mark.trio
async def test_an_opening_keeps_what_is_promised_and_nothing_else(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        parts = parts_of(volume)
        parts.cut(ONE, "monday", 77)
        await parts.prepare(ONE, b"kept", [("a", b"1")])
        parts.cut(TWO, "tuesday", 78)
        await volume.store.commit()
        assert len(names(volume)) == 2
    run_check(paths)
    async with mounted(paths) as volume:
        parts = parts_of(volume)
        assert names(volume) == [HIDDEN + ONE.hex()]
        assert parts.unfinished() == {ONE}
        assert volume.store.snapshots.is_taken("monday"), "it is kept free for the promised one"
        assert not volume.store.snapshots.is_taken("tuesday")
        await parts.commit(ONE)
        assert names(volume) == ["monday"]
        assert volume.store.meta.recorded(ONE) == [("a", b"1")]
    run_check(paths)


@pytest.mark.trio
async def test_cuts_that_can_not_be(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        parts = parts_of(volume)
        epoch = volume.store.epoch
        await volume.store.snapshots.create("there")
        after = volume.store.epoch
        with pytest.raises(UsageError, match="already"):
            parts.cut(ONE, "there", 1)
        with pytest.raises(UsageError):
            parts.cut(ONE, "a/b", 1)
        async with volume.store.wholesale:
            await volume.store.hold_cuts()
            with pytest.raises(RaidfsError, match="busy with a rollback"):
                parts.cut(ONE, "monday", 1)
            volume.store.let_cut()
        assert volume.store.epoch == after > epoch
        assert not volume.store.snapshots.is_taken("monday") and parts.unfinished() == set()
        assert parts.cut(ONE, "monday", 1) == after
        await parts.discard(ONE)
    run_check(paths)
