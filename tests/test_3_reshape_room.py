"""Room while a volume gets another shape: what is refused, promised, told and waited for."""

import contextlib
import random
import re

import pytest
import trio
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    checked,
    in_simulated_time,
    mounted,
    pattern,
    read_file,
    write_file,
)
from test_3_cleaner import compare, fill, overwrite
from test_3_reshape import all_is, convert, ended, volume_of
from workload import ME

from raidfs.errors import OutOfSpace, UsageError
from raidfs.store.shape import plan_conversion


def test_what_has_no_room_is_refused_in_numbers():
    async def test():
        async with mounted(volume_of("0", 6, slots=10)) as volume:
            space = volume.store.space
            with pytest.raises(UsageError, match="needs at least"):
                plan_conversion(space, "rs:8+2", None)
            with pytest.raises(UsageError, match="not 7"):
                plan_conversion(space, "5", 7)
            with pytest.raises(UsageError, match="already"):
                plan_conversion(space, "0", 6)
            await write_file(volume, b"much", pattern(1, 250))
            await volume.fsync(ROOT)
            await write_file(volume, b"more", pattern(2, 240))
            await volume.fsync(ROOT)
            with pytest.raises(
                UsageError, match=r"are stored, and at level 1, 2 wide, the members"
            ):
                plan_conversion(space, "1", 2)
            with pytest.raises(UsageError, match=r"too little free room .* step by step"):
                plan_conversion(space, "5", 6)
            volume.unlink(ROOT, b"more")
            await volume.fsync(ROOT)
            plan = plan_conversion(space, "5", 6)
            assert plan.move_bytes == 250 * CELL_BYTES
            assert plan.usable_before_bytes == 9 * 6 * 16 * CELL_BYTES
            assert plan.usable_after_bytes == 9 * 5 * 16 * CELL_BYTES
            assert not plan.is_weaker and not plan.warnings
            await convert(volume, "5", 6)
            assert "instead of the loss of 1" in plan_conversion(space, "0", 6).warnings[0]
            assert await read_file(volume, b"much") == pattern(1, 250)

    in_simulated_time(test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("0", 6), ("5", 6)),
        (("0", 6), ("1", 2)),
        (("1", 3), ("rs:3+3", 6)),
        (("5", 3), ("6", 6)),
    ],
)
def test_what_is_accepted_can_be_done(old, new):
    """However full: either it is refused, or it comes to an end, and neither always."""
    accepted = []
    for percent in range(5, 105, 16):
        members = volume_of(*old, slots=[12, 12, 14, 14, 16, 16])

        async def test(members=members, percent=percent):
            async with mounted(members) as volume:
                free, wanted = volume.store.space.usage().free_cells * percent // 100, {}
                for number in range(10):
                    name, part = b"f%d" % number, max(1, free // 10)
                    wanted[name] = pattern(number, part)
                    with contextlib.suppress(OutOfSpace):
                        await write_file(volume, name, wanted[name])
                        continue
                    del wanted[name]
                for number in range(0, 10, 3):  # holes
                    if b"f%d" % number in wanted:
                        volume.unlink(ROOT, b"f%d" % number)
                        del wanted[b"f%d" % number]
                await volume.fsync(ROOT)
                try:
                    plan_conversion(volume.store.space, *new)
                except UsageError as error:
                    assert "free" in str(error)
                    return False
                await convert(volume, *new)
                for name, content in wanted.items():
                    assert await read_file(volume, name) == content
                return True

        accepted.append(in_simulated_time(test))
        checked(members)
    assert accepted[0] and accepted == sorted(accepted, reverse=True), accepted


def test_writers_are_told_the_truth_until_the_end():
    """A volume that is full while it is converted: nobody who was told yes is told no, it stands
    still and says why, and goes on when there is room."""
    members = volume_of("0", 3, 4, slots=14)

    async def test():
        async with mounted(members) as volume:
            chooser, store = random.Random(6), volume.store
            await write_file(volume, b"kept", pattern(1, 150))
            await volume.fsync(ROOT)
            plan_conversion(store.space, "1", 2)
            await store.reshape.convert("1", 2)
            async with trio.open_nursery() as nursery:
                for name in (b"x", b"y", b"z"):
                    nursery.start_soon(fill, volume, name)
            with trio.fail_after(200):
                while (told := store.reshape.statistics()).state != "stalled":
                    assert told.state in ("running", "waiting"), told
                    await trio.sleep(0.5)
            assert re.search(r"\d [KM]iB .*free files", told.reason) and told.left_bytes
            assert store.failed is None
            contents = {}
            for name in (b"x", b"y", b"z", b"kept"):
                contents[name] = await read_file(volume, name)
            assert contents[b"kept"] == pattern(1, 150)
            ino = volume.lookup(ROOT, b"kept").ino  # a full volume can still be overwritten
            content = bytearray(pattern(1, 150))
            with contextlib.suppress(OutOfSpace):
                await overwrite(volume, ino, 30, chooser, content)
            await volume.fsync(ino)
            await compare(volume, {ino: content})
            for name in (b"x", b"y", b"z"):
                volume.unlink(ROOT, name)
            await volume.fsync(ROOT)
            await trio.sleep(6)
            await ended(volume)
            all_is(volume, "1", 2)
            await compare(volume, {ino: content})

    in_simulated_time(test)
    checked(members)


@pytest.mark.parametrize(("old", "new"), [(("1", 2), ("5", 6)), (("5", 6), ("1", 3))])
def test_promised_room_is_there_whatever_the_code(old, new):
    """Many writers with a page each and an fsync, while zones of other codes come and go."""
    members = volume_of(*old, slots=10)

    async def write(volume, number, told):
        ino = volume.create(ROOT, b"w%d" % number, 0o644, 0, ME).ino
        chooser = random.Random(number)
        with contextlib.suppress(OutOfSpace):
            for page in range(chooser.randrange(10, 30)):
                data = bytes([number + 1]) * CELL_BYTES
                await volume.write(ino, page * CELL_BYTES, data)
                if chooser.random() < 0.3:
                    await volume.fsync(ino)
                told[number] = page + 1
                await trio.sleep(chooser.random() / 10)
        volume.release(ino)
        volume.forget(ino)

    async def test():
        async with mounted(members) as volume:
            told = {}
            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(write, volume, number, told)
                await trio.sleep(0.3)
                await volume.store.reshape.convert(*new)
            assert volume.store.failed is None
            for number, pages in told.items():
                content = await read_file(volume, b"w%d" % number)
                assert content[: pages * CELL_BYTES] == bytes([number + 1]) * pages * CELL_BYTES

    in_simulated_time(test)
    checked(members)


def test_a_zone_that_stands_for_promises_is_not_closed():
    """All room is promised to pages in memory, and not yet written."""
    members = volume_of("0", 3, 4, slots=6)

    async def test():
        async with mounted(members) as volume:
            space = volume.store.space
            ino = volume.create(ROOT, b"file", 0o644, 0, ME).ino
            written = 0
            while space.zones_possible() or space.grantable() > 5:
                data = bytes([written % 251]) * CELL_BYTES
                await volume.write(ino, written * CELL_BYTES, data)
                written += 1
            assert space.credits > 100 and not space.zones_possible()
            for zone in list(space.open):
                assert not await space.close(zone)
            assert space.room_cells >= space.credits
            await volume.fsync(ino)
            content = await volume.read(ino, 0, written * CELL_BYTES)
            assert bytes(content[::CELL_BYTES]) == bytes(n % 251 for n in range(written))
            volume.release(ino)
            assert volume.store.failed is None

    in_simulated_time(test)
    checked(members)


@pytest.mark.slow
@pytest.mark.parametrize("new", [("1", 2), ("rs:3+3", 6)])
@pytest.mark.parametrize("cells", [0, 30])
def test_statfs_tells_what_can_be_written_between_two_levels(new, cells):
    """Zones of the wider code give less than they took; half-dead ones too."""
    members = volume_of("0", 6, slots=24)

    async def test():
        async with mounted(members) as volume:
            chooser, store = random.Random(1), volume.store
            inos = [await write_file(volume, b"%d" % n, pattern(n, 60)) for n in range(5)]
            await volume.fsync(ROOT)
            for ino in inos:
                await overwrite(volume, ino, 25, chooser)
            await volume.fsync(ROOT)
            await store.reshape.convert(*new)
            while store.reshape.statistics().done_bytes < cells * CELL_BYTES:
                await trio.sleep(0.02)
            store.reshape.pause()
            await trio.sleep(10)
            told = store.space.usage().free_cells
            written = await fill(volume, b"fill")
            assert written >= told * 0.97 - 8, (told, written)

    in_simulated_time(test)
    checked(members)


def test_who_waits_for_room_does_not_wait_for_a_limit():
    members = volume_of("5", 3, 4, slots=12)

    async def test():
        async with mounted(members) as volume:
            store = volume.store
            ino = await write_file(volume, b"file", pattern(1, 200))
            await volume.fsync(ROOT)
            await overwrite(volume, ino, 60, random.Random(1))
            await volume.fsync(ROOT)
            store.reshape.limit(500)
            await store.reshape.convert("5", 4)
            while not store.reshape.statistics().done_bytes:
                await trio.sleep(0.02)
            begun = trio.current_time()
            await fill(volume, b"fill")
            assert trio.current_time() - begun < 100
            assert store.reshape.statistics().state in ("running", "stalled")

    in_simulated_time(test)
    checked(members)
