"""Rollback: the present becomes what a snapshot holds, wholly or not at all; compared attribute by
attribute and byte by byte with what the snapshot's view shows, and with what was there then."""

from __future__ import annotations

import errno
import functools
import os
import random

import pytest
import trio
from simulated import World, members_of
from simulated_volume import (
    ROOT,
    SLOTS,
    checked,
    fresh_files,
    furnish,
    furnish_and_upset,
    in_simulated_time,
    mounted,
    overwrite,
    pattern,
    read_file,
    simulated,
    upset,
    write_file,
)
from whole import whole
from workload import ME, Workload

from raidfs.errors import FsError, NoSuchSnapshot, OutOfSpace, SnapshotHeld, UsageError
from raidfs.fs.rollback import rollback
from raidfs.store import database
from raidfs.store import rewrite as rewrite_module
from raidfs.store import store as store_module
from raidfs.store.rewrite import rewriting


def test_all_is_as_it_was_and_forward_again():
    async def body(volume):
        await furnish(volume)
        then = await whole(volume)
        first = await volume.store.snapshots.create("first")
        await upset(volume)
        now = await whole(volume)
        second = await volume.store.snapshots.create("second")
        assert await whole(volume, first) == then and await whole(volume, second) == now
        seen = await rollback(volume, "first", dry_run=True)
        assert await whole(volume) == now and seen.epoch == 0
        done = await rollback(volume, "first")
        assert await whole(volume) == then == await whole(volume, first)
        assert await whole(volume, second) == now
        assert (seen.changed, seen.removed, seen.returned) == (
            done.changed,
            done.removed,
            done.returned,
        )
        assert done.returned >= 33 and done.removed >= 2 and done.epoch <= volume.store.durable
        nothing = await rollback(volume, "first", dry_run=True)
        assert not nothing.removed and not nothing.returned
        await rollback(volume, "second")  # inodes that came back are found and go again
        assert await whole(volume) == now
        await rollback(volume, "first")
        assert await whole(volume) == then
        await volume.store.snapshots.delete(["second"])
        await volume.store.snapshots.swept()
        assert await whole(volume) == then

    simulated(body)


def test_what_came_back_belongs_to_a_later_snapshot():
    """A file that is gone in between has an old number, and no version that died after."""

    async def body(volume):
        await write_file(volume, b"a", pattern(1, 5))
        directory = volume.mkdir(ROOT, b"d", 0o755, ME).ino
        volume.release(volume.create(directory, b"within", 0o644, 0, ME).ino)
        await volume.store.snapshots.create("with")
        volume.unlink(ROOT, b"a")
        volume.unlink(directory, b"within")
        volume.rmdir(ROOT, b"d")
        await volume.store.snapshots.create("without")
        without = await whole(volume)
        await rollback(volume, "with")
        assert await read_file(volume, b"a") == pattern(1, 5)
        await rollback(volume, "without")
        assert await whole(volume) == without

    simulated(body)


def test_the_state_before_can_be_kept_and_newer_snapshots_deleted():
    async def body(volume):
        store = volume.store
        await write_file(volume, b"a", pattern(1, 5))
        await store.snapshots.create("one")
        await overwrite(volume, b"a", pattern(2, 9))
        await store.snapshots.create("two")
        volume.unlink(ROOT, b"a")
        last = await whole(volume)
        done = await rollback(volume, "one", delete_newer=True, keep="before")
        assert done.deleted == ("two",)
        assert [each.name for each in store.snapshots.all()] == ["one", "before"]
        assert await read_file(volume, b"a") == pattern(1, 5)
        await rollback(volume, "before")
        assert await whole(volume) == last
        await store.snapshots.delete(["one", "before"])
        await store.snapshots.swept()
        assert not store.snapshots.all(internal=True)
        assert not store.meta.live_cells() and not store.meta.condemned()

    simulated(body)


def test_what_a_snapshot_holds_alone_is_told_anew():
    async def body(volume):
        store = volume.store
        await write_file(volume, b"a", pattern(1, 50))
        one = await store.snapshots.create("one")
        await overwrite(volume, b"a", pattern(2, 50))
        two = await store.snapshots.create("two")
        await overwrite(volume, b"a", pattern(3, 50))
        await store.snapshots.create("three")
        assert [await store.snapshots.alone_cells(each) for each in (one, two)] == [50, 50]
        await rollback(volume, "one")
        assert [await store.snapshots.alone_cells(each) for each in (one, two)] == [0, 50]
        freed = await store.snapshots.freed_cells(store.snapshots.all())
        before = sum(zone.live for zone in store.space.zones.values())
        assert freed == 100 and store.meta.live_cells() == 50
        await store.snapshots.delete(["one", "two", "three"])
        await store.snapshots.swept()
        assert sum(zone.live for zone in store.space.zones.values()) == 50 < before
        assert await read_file(volume, b"a") == pattern(1, 50)

    simulated(body)


def test_refusals_change_nothing():
    async def body(volume):
        store = volume.store
        await store.snapshots.create("one")
        await store.snapshots.create("two")
        await store.snapshots.hold("two", "mine")
        before = store.epoch
        with pytest.raises(NoSuchSnapshot):
            await rollback(volume, "three")
        with pytest.raises(SnapshotHeld, match="mine"):
            await rollback(volume, "one", delete_newer=True)
        with pytest.raises(UsageError):
            await rollback(volume, "one", keep="two")
        with pytest.raises(UsageError):
            await rollback(volume, "one", keep=".hidden")
        assert store.epoch == before

    simulated(body)


def test_open_files():
    async def body(volume):
        store = volume.store
        kept = await write_file(volume, b"kept", b"then" * 2000)
        await store.snapshots.create("one")
        await overwrite(volume, b"kept", b"now!" * 3000)
        added = await write_file(volume, b"added", b"later")
        for ino in (kept, added):
            volume.open(ino, 2)
        unnamed = volume.tmpfile(ROOT, 0o600, os.O_RDWR, ME).ino
        await volume.write(unnamed, 0, b"z" * 10000)
        await rollback(volume, "one")
        assert bytes(await volume.read(kept, 0, 100_000)) == b"then" * 2000
        for gone in (added, unnamed):
            with pytest.raises(FsError) as caught:
                await volume.read(gone, 0, 10)
            assert caught.value.errno == errno.ESTALE
        await volume.write(kept, 0, b"more")
        assert bytes(await volume.read(kept, 0, 8)) == b"morethen"
        for ino in (kept, added, unnamed):
            volume.release(ino)
        assert await read_file(volume, b"kept") == b"more" + b"then" * 1999

    simulated(body)


def test_an_unnamed_file_of_then_does_not_come_back():
    async def body(volume):
        store = volume.store
        unnamed = volume.tmpfile(ROOT, 0o600, os.O_RDWR, ME).ino
        await volume.write(unnamed, 0, b"z" * 10000)
        await store.snapshots.create("one")
        volume.link(unnamed, ROOT, b"named")
        volume.release(unnamed)
        volume.forget(unnamed)
        await rollback(volume, "one")
        assert store.meta.inode(unnamed) is None
        with pytest.raises(FsError):
            volume.lookup(ROOT, b"named")

    simulated(body)


def test_users_wait_meanwhile_and_see_one_state():
    async def body(volume):
        store = volume.store
        await furnish(volume)
        then = await whole(volume)
        await store.snapshots.create("one")
        await upset(volume)
        now = await whole(volume)
        states = []

        async def user():
            for _ in range(40):
                async with volume.door.passing():
                    states.append(await whole(volume))
                await trio.sleep(0.005)

        async def writer():
            await trio.sleep(0.01)
            async with volume.door.passing():
                await write_file(volume, b"written", b"after")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(user)
            await trio.sleep(0.02)
            await rollback(volume, "one")
            nursery.start_soon(writer)
        assert all(state in (now, then) for state in states[:2])
        assert now in states and await read_file(volume, b"written") == b"after"
        volume.unlink(ROOT, b"written")
        again = await whole(volume)
        assert {path: each for path, each in again.items() if path} == {
            path: each for path, each in then.items() if path
        }

    simulated(body)


def test_a_change_that_fails_is_undone():
    async def body(volume):
        store = volume.store
        await furnish_and_upset(volume)
        now = await whole(volume)
        await store.commit()
        figures = store.meta.live_cells(), store.meta.count_inodes()
        lives = {number: zone.live for number, zone in store.space.zones.items()}
        touched = await store.meta.touched(
            store.snapshots.find("one").epoch, store.snapshots.find("one").next_ino
        )
        for fails_at in (1, 5, len(touched) - 1):

            def fail(done, _, fails_at=fails_at):
                if done == fails_at:
                    raise OutOfSpace("as if")

            with pytest.raises(OutOfSpace, match="as if"):
                await rollback(volume, "one", progress=fail)
            assert store.failed is None and await whole(volume) == now
            assert (store.meta.live_cells(), store.meta.count_inodes()) == figures
            assert {n: zone.live for n, zone in store.space.zones.items()} == lives
            await write_file(volume, b"goes on", b"1")
            volume.unlink(ROOT, b"goes on")
            now = await whole(volume)
        await store.snapshots.swept()
        await rollback(volume, "one")

    simulated(body)


def test_a_cut_waits_for_the_end():
    """Commits, snapshots, and the interval: none of them makes half of it durable."""

    async def body(volume):
        store = volume.store
        await write_file(volume, b"a", b"then")
        await store.snapshots.create("one")
        await write_file(volume, b"b", b"now")
        async with (
            trio.open_nursery() as nursery,
            volume.door.closed(),
            rewriting(store) as rewrite,
        ):
            epoch = rewrite.epoch
            nursery.start_soon(store.snapshots.create, "two")
            nursery.start_soon(store.commit)
            store.request_cut()
            for name in (b"a", b"b"):
                ino = store.meta.lookup(ROOT, name).ino
                rewrite.remove_name(ROOT, name)
                await trio.sleep(30)
                await rewrite.breathe()
                assert store.epoch == epoch and store.durable == epoch - 1
                await rewrite.remove_inode(ino)
            await rewrite.finish()
            volume.reread()
        two = store.snapshots.find("two")
        assert two.epoch > epoch and two.inodes == 1

    simulated(body)


def random_states(seed, steps=40, snapshots=4):
    """A test: a random life with snapshots, going back to any, deleting some."""
    rng = random.Random(seed)

    async def body(volume):
        store, states = volume.store, {}
        workload = Workload(volume, seed)
        for number in range(snapshots):
            for _ in range(steps):
                await workload.step()
            name = f"s{number}"
            await store.snapshots.create(name)
            states[name] = await whole(volume), workload.model.copy()
        for _ in range(6):
            name = rng.choice(sorted(states))
            await rollback(volume, name, delete_newer=rng.random() < 0.2)
            assert await whole(volume) == states[name][0], (seed, name)
            for gone in set(states) - {each.name for each in store.snapshots.all()}:
                del states[gone]
            workload.model = states[name][1].copy()
            if rng.random() < 0.3 and len(states) > 1:
                await store.snapshots.delete([gone := rng.choice(sorted(states))])
                del states[gone]
            for _ in range(rng.choice((0, steps))):
                await workload.step()
            for each, (state, _) in states.items():
                found = await whole(volume, store.snapshots.find(each))
                assert found == state, (seed, each)

    return body


def test_random_states():
    simulated(random_states(1, steps=25, snapshots=3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_more_random_states(seed):
    simulated(random_states(seed))


class Recorded:
    """A life that ends in a rollback, on members whose writes can be cut off."""

    def __init__(self, level, count, seed, steps):
        self.level, self.count = level, count
        self.world = World(fresh_files(level, count))
        self.seed, self.steps = seed, steps

    async def run(self):
        numbers = list(range(self.count))
        members = members_of(self.world.files, self.world, numbers, slots=SLOTS)
        async with mounted(members) as volume:
            store = volume.store
            await furnish(volume)
            workload = Workload(volume, self.seed)
            for _ in range(self.steps):
                await workload.step()
            self.then = await whole(volume)
            await store.snapshots.create("one")
            await upset(volume)
            for _ in range(self.steps):
                await workload.step()
            self.now = await whole(volume)
            await store.commit()
            self.begun = store.durable
            self.world.mark("begun")
            self.epoch = (await rollback(volume, "one")).epoch
            self.world.mark("done")
            await store.snapshots.swept()

    def points(self):
        """(position, image, whether it was told to be done), from where it begins."""
        for position, image, marks in self.world.images():
            if "begun" in marks:
                yield position, image, "done" in marks


async def recovered(files, count):
    """What a crash left: the state, the volume's epoch; and the rollback from there, if need be."""
    members = members_of(files, World(), list(range(count)), slots=SLOTS)
    async with mounted(members) as volume:
        durable = volume.store.durable
        state = await whole(volume)
        await volume.store.snapshots.swept()
        assert await whole(volume) == state
        await rollback(volume, "one")
        again = await whole(volume)
        await volume.store.snapshots.swept()
    checked(members)
    return durable, state, again


def crash_everywhere(recorded, every=1):
    seen = []
    for number, (position, image, done) in enumerate(recorded.points()):
        if number % every:
            continue
        for seed in (number + 2, number % 2):
            where = f"level {recorded.level}, log position {position}, crash seed {seed}"
            files = image.crash(seed)
            durable, state, again = in_simulated_time(
                functools.partial(recovered, files, recorded.count), seed=seed
            )
            expected = recorded.then if durable >= recorded.epoch else recorded.now
            assert state == expected, where
            assert durable >= (recorded.epoch if done else recorded.begun), where
            assert again == recorded.then, where
            seen.append(durable >= recorded.epoch)
    return seen


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Much of the log is used at once: commits, checkpoints and syncs between the pieces."""
    monkeypatch.setattr(store_module, "UNLOGGED_PAGES_MAX", 40)
    monkeypatch.setattr(database, "CHECKPOINT_FRAMES", 30)
    monkeypatch.setattr(rewrite_module, "PIECE", 1)


@pytest.mark.usefixtures("in_small_pieces")
def test_crash_smoke():
    recorded = Recorded("5", 3, 7, 10)
    in_simulated_time(recorded.run)
    seen = crash_everywhere(recorded, every=9)
    assert any(seen) and not all(seen)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), [("5", 3), ("1", 2)])
@pytest.mark.usefixtures("in_small_pieces")
def test_crash_at_every_sync(level, count):
    recorded = Recorded(level, count, 8, 25)
    in_simulated_time(recorded.run)
    seen = crash_everywhere(recorded)
    assert any(seen) and not all(seen)


@pytest.mark.usefixtures("in_small_pieces")
def test_in_small_pieces():
    simulated(random_states(9, steps=25, snapshots=3))
