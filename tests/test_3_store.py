"""The cut and the flusher: what ends up in leaves, what waits for whom, what is told when."""

import random

import pytest
import trio
from simulated_volume import (
    CELL_BYTES,
    assembly_of,
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
from raidfs.raid.label import read_labels
from raidfs.store.store import Store

ROOT = 1


def new_file(volume, name):
    ino = volume.create(ROOT, name, 0o644, 0, ME).ino
    volume.release(ino)
    volume.forget(ino)
    return ino


async def content_of(volume, ino):
    volume.open(ino, 0)
    try:
        return bytes(await volume.read(ino, 0, volume.getattr(ino).size))
    finally:
        volume.release(ino)


# -- leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_cut_keeps_what_is_inline(keep):
    """Page 0 lies in the leaf, page 3 in a cell; the file is cut in between."""

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = new_file(volume, b"file")
            await volume.write(ino, 0, b"inline")
            await volume.fsync(ino)
            await volume.write(ino, 3 * CELL_BYTES, b"x" * CELL_BYTES)
            await volume.fsync(ino)
            await volume.setattr(ino, Changes(size=keep * CELL_BYTES), ME)
            await volume.fsync(ino)
            want = b"inline".ljust(keep * CELL_BYTES, b"\0")
            assert await content_of(volume, ino) == want
        again = reopened(members)
        async with mounted(again) as volume:
            assert await content_of(volume, ino) == want
        checked(again)

    in_simulated_time(run)


@pytest.mark.parametrize("seed", range(6))
def test_files_around_the_inline_and_leaf_limits(seed):
    """Sizes and offsets where a file changes its form, an fsync or a remount between."""
    chooser = random.Random(seed)
    places = [0, 1, 100, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 12289]
    places += [256 * CELL_BYTES + d for d in (-4097, -1, 0, 1, 4096)]
    model = {}

    async def some_steps(members):
        async with mounted(members) as volume:
            for number in range(4):
                if number not in model:
                    new_file(volume, b"%d" % number)
                    model[number] = b""
            for _ in range(30):
                number = chooser.randrange(4)
                ino = volume.lookup(ROOT, b"%d" % number).ino
                volume.forget(ino)
                old, at = model[number], chooser.choice(places)
                if chooser.random() < 0.4:
                    await volume.setattr(ino, Changes(size=at), ME)
                    model[number] = old[:at].ljust(at, b"\0")
                else:
                    data = chooser.randbytes(chooser.choice((1, 50, 2048, 4096, 5000)))
                    await volume.write(ino, at, data)
                    model[number] = old.ljust(at, b"\0")[:at] + data + old[at + len(data) :]
                if chooser.random() < 0.5:
                    await volume.fsync(ino)
                assert await content_of(volume, ino) == model[number]

    async def run():
        members = new_members("5", 3)
        for _ in range(4):
            await some_steps(members)
            members = reopened(members)
            async with mounted(members, read_only=True) as volume:
                for number, want in model.items():
                    assert await content_of(volume, volume.lookup(ROOT, b"%d" % number).ino) == want
        checked(members)

    in_simulated_time(run)


# -- commit ---------------------------------------------------------------------------------------


def test_fsyncs_at_the_same_time_share_a_cut():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = new_file(volume, b"file")
            await volume.fsync(ROOT)
            await volume.fsync(ROOT)
            cuts = volume.store.cuts
            await volume.write(ino, 0, bytes(CELL_BYTES))
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(volume.fsync, ino)
            assert volume.store.cuts <= cuts + 2
            cuts = volume.store.cuts
            await volume.fsync(ino)
            assert volume.store.cuts == cuts, "nothing was dirty"

    in_simulated_time(run)


def test_what_is_noticed_is_kept_although_nothing_else_changes():
    """Events and error counts reach the metadata at the next interval."""

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            await volume.fsync(ROOT)
            volume.store.notices.event("Example", 1, "text")
            await trio.sleep(20)
            assert "Example" in [event.kind for event in volume.store.meta.events(10)]
            cuts = volume.store.cuts
            await trio.sleep(60)
            assert volume.store.cuts == cuts

    in_simulated_time(run)


def test_an_fsync_that_finds_only_events_ends():
    """The events go with a cut that is under way when the fsync comes."""

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = new_file(volume, b"file")
            for delay in range(12):
                await volume.write(ino, 0, bytes([delay]) * 5 * CELL_BYTES)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(volume.fsync, ino)
                    await trio.sleep(delay * 0.01)
                    volume.store.notices.event("Example", 1, "text")
                    with trio.fail_after(100):
                        await volume.fsync(ino)

    in_simulated_time(run)


@pytest.mark.parametrize("delay", range(12))
def test_a_member_taken_out_during_a_flush_is_in_the_labels_first(delay):
    """`fail_member` and the flusher at the same time: no acknowledgement in between."""

    async def run():
        members = new_members("6", 4)
        async with mounted(members) as volume:
            store = volume.store
            ino = new_file(volume, b"file")
            await volume.write(ino, 0, b"a" * (20 * CELL_BYTES))
            told = []

            async def sync():
                while store.space.online(2):
                    await trio.sleep(0.001)
                await volume.write(ino, 0, b"b" * (20 * CELL_BYTES))
                await volume.fsync(ino)
                told.append([read_labels(m).generation for m in members])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(volume.fsync, ino)
                nursery.start_soon(sync)
                await trio.sleep(delay * 0.01)
                await store.losses.fail_member(2, "an administrator's wish")
            assert told == [[2, 2, 1, 2]]
        checked(members)

    in_simulated_time(run)


# -- errors of ours and of others -----------------------------------------------------------------


def test_the_flusher_survives_metadata_that_is_full():
    """A zone can't be allocated ahead; whoever needs it is told, and all goes on afterwards."""

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            store = volume.store
            ino = new_file(volume, b"file")
            await volume.fsync(ROOT)
            real = store.meta.insert_zone

            def full(*args):
                raise OutOfSpace("the volume's metadata is full")

            store.meta.insert_zone = full
            with pytest.raises(RaidfsError) as caught:
                for number in range(300):
                    await volume.write(ino, number * CELL_BYTES, b"x" * CELL_BYTES)
            assert caught.value.errno == 28
            assert store.failed is None
            store.meta.insert_zone = real
            await volume.write(ino, 0, b"y" * (200 * CELL_BYTES))
            await volume.fsync(ino)
            await trio.sleep(1)
            columns = {zone for member in members for zone, _ in member.columns()}
            assert columns == set(store.space.zones)
        checked(members)

    in_simulated_time(run)


def test_an_error_inside_raidfs_fails_the_volume():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = new_file(volume, b"file")
            await volume.write(ino, 0, b"x" * CELL_BYTES)

            def broken(pages):
                raise AssertionError("a bug")

            volume.store.space.rows_for = broken
            with pytest.raises(RaidfsError, match="an error inside raidfs"):
                await volume.fsync(ino)
            assert await content_of(volume, ino) == b"x" * CELL_BYTES
        checked(members)

    in_simulated_time(run)


def test_columns_of_no_zone_are_swept_at_the_mount():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = new_file(volume, b"file")
            await volume.write(ino, 0, b"x" * (20 * CELL_BYTES))
        members = reopened(members)
        members[1].column_create(77, 0, 3, 16 * CELL_BYTES)
        members[0].column_create(1, 2, 3, 16 * CELL_BYTES)  # of another member, if of any
        async with mounted(members) as volume:
            zones = volume.store.space.zones
            for member in members:
                for zone, column in member.columns():
                    assert zones[zone].map.columns[column][0] == member.number
            assert await content_of(volume, ino) == b"x" * (20 * CELL_BYTES)
        checked(members)

    in_simulated_time(run)


def test_a_read_only_mount_writes_nothing():
    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            ino = new_file(volume, b"file")
            await volume.write(ino, 0, b"x" * (20 * CELL_BYTES))
        members = reopened(members)
        name = next(name for name in members[0].files if name.startswith("zone-"))
        members[0].files[name][:] = bytes(
            len(members[0].files[name])
        )  # bad cells: read, not healed
        before = [member.writes for member in members]
        store = await Store.open(
            assembly_of(members, read_only=True), read_only=True, offload=inline
        )
        content = bytearray(20 * CELL_BYTES)
        size = len(content)
        store.pages.load(ino, size, 0, 0, 0)
        assert bytes(await store.read(ino, 0, size)) == b"x" * size
        await store.close()
        assert [member.writes for member in members] == before

    in_simulated_time(run)


@pytest.mark.slow
@pytest.mark.parametrize("removal", ["unlink", "truncate"])
def test_a_scattered_file_is_removed_where_the_log_is_small(removal):
    """Removing it is one change of the metadata, however many leaves it has."""

    async def run():
        members = new_members("0", 2, slots=1900, wal_bytes_max=2 << 20)
        for member in members:
            member.world.add = lambda record: None  # nothing here is crashed: keep no log
        async with mounted(members) as volume:
            ino = new_file(volume, b"scattered")
            step = 2 * CELL_BYTES
            for number in range(36_000):
                await volume.write(ino, number * step, number.to_bytes(8, "little") * 512)
                if number % 32 == 0:
                    await volume.ready()
            await volume.fsync(ino)
            leaves = sum(1 for _ in volume.store.meta.leaf_range(ino, 0, 1 << 40))
            assert leaves > 250
            if removal == "unlink":
                volume.unlink(ROOT, b"scattered")
            else:
                await volume.setattr(ino, Changes(size=0), ME)
            await volume.fsync(ROOT)
            assert volume.store.failed is None
            assert not list(volume.store.meta.leaf_range(ino, 0, 1 << 40))
        checked(members)

    in_simulated_time(run)
