"""Another level or width, and members equally full: nothing changes but where cells lie."""

import random
import re

import pytest
import trio
from checking import run_check
from simulated import World, members_of
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    assembly_of,
    checked,
    fresh_files,
    in_simulated_time,
    mounted,
    pattern,
    read_file,
    reopened,
    write_file,
)
from test_3_cleaner import make_past, trees
from volumes import make_members
from volumes import mounted as mounted_on
from workload import ME, Model, Workload, read_tree

from raidfs.check import check_assembly
from raidfs.errors import NotEnoughMembers, OutOfSpace, UsageError
from raidfs.raid.code import code_for
from raidfs.raid.enlarge import lay_out_member, plan_members
from raidfs.store.shape import plan_conversion

SHAPES = [
    ("0", 3), ("1", 2), ("1", 3), ("2", 6), ("3", 4), ("4", 3), ("5", 3), ("5", 5),
    ("6", 5), ("10", 4), ("rs:3+3", 6),
]  # fmt: skip
QUICK = {("5", 5): ("6", 5), ("1", 2): ("5", 3), ("0", 3): ("1", 2), ("5", 3): ("rs:3+3", 6)}
MEMBERS = 6


def all_pairs():
    return [
        pytest.param(*old, *new, marks=[pytest.mark.slow] * (QUICK.get(old) != new))
        for old in SHAPES
        for new in SHAPES
        if old != new
    ]


def volume_of(level, width, count=MEMBERS, **options):
    """Members of a new volume whose zones are that wide."""
    files = fresh_files(level, count, width=width, **options)
    options.pop("slots", None)
    return members_of(files, World(files), list(range(count)), **options)


async def convert(volume, level, width, limit_s=2000):
    """As the command would, and wait."""
    plan = plan_conversion(volume.store.space, level, width)
    await volume.store.reshape.convert(plan.new.level, plan.new.width)
    await ended(volume, limit_s)
    return plan


async def ended(volume, limit_s=2000):
    reshape, since = volume.store.reshape, trio.current_time()
    while (told := reshape.statistics()).state != "done":
        assert told.state in ("running", "waiting"), told
        assert trio.current_time() < since + limit_s, told
        await trio.sleep(0.1)


def codes(volume):
    return {zone.map.code for zone in volume.store.space.zones.values()}


def all_is(volume, level, width):
    """Every zone has that code, and the labels know."""
    assert codes(volume) <= {code_for(level, width)}
    parameters = volume.store.assembly.label.parameters
    assert (parameters.level, parameters.width, parameters.uneven) == (level, width, False)
    assert volume.store.space.losses_survived == code_for(level, width).tolerance


@pytest.mark.parametrize(("level", "width", "new_level", "new_width"), all_pairs())
def test_every_level_becomes_every_other(level, width, new_level, new_width):
    """Contents and snapshots are the same; then as many are lost as the new level survives."""
    members, wanted = volume_of(level, width), {}

    async def test():
        async with mounted(members) as volume:
            await make_past(volume, random.Random(1), snapshots=2)
            wanted.update(await trees(volume))
            await convert(volume, new_level, new_width)
            assert await trees(volume) == wanted
            all_is(volume, new_level, new_width)
            assert volume.store.cleaner.broken is None

    in_simulated_time(test)
    checked(members)
    lost = tuple(random.Random(2).sample(range(MEMBERS), code_for(new_level, new_width).tolerance))
    left = reopened(members, lost)

    async def degraded():
        async with mounted(left) as volume:
            assert await trees(volume) == wanted
            await write_file(volume, b"later", pattern(9, 40))
            await volume.fsync(ROOT)
            assert await read_file(volume, b"later") == pattern(9, 40)

    in_simulated_time(degraded)


@pytest.mark.slow
def test_five_and_one_become_eight_and_two():
    """Over four more members than zones had, which then share in it."""
    members, wanted = volume_of("5", 6, 10), {}

    async def test():
        async with mounted(members) as volume:
            volume.store.space.allocation.closed_to = frozenset({6, 7, 8, 9})
            await make_past(volume, random.Random(12), snapshots=2)
            volume.store.space.allocation.closed_to = frozenset()
            wanted.update(await trees(volume))
            plan = await convert(volume, "rs:8+2", None)
            assert plan.usable_after_bytes > plan.usable_before_bytes * 0.9
            assert await trees(volume) == wanted
            all_is(volume, "rs:8+2", 10)
            with pytest.raises(UsageError, match="already"):
                plan_conversion(volume.store.space, "rs:8+2", None)

    in_simulated_time(test)
    checked(members)
    left = reopened(members, (0, 9))

    async def degraded():
        async with mounted(left) as volume:
            assert await trees(volume) == wanted

    in_simulated_time(degraded)


def test_a_mount_in_between_goes_on():
    members, wanted = volume_of("5", 5), {}

    async def begin():
        async with mounted(members) as volume:
            await make_past(volume, random.Random(3), snapshots=2)
            wanted.update(await trees(volume))
            await volume.store.reshape.convert("6", 6)
            while not volume.store.reshape.statistics().done_bytes:
                await trio.sleep(0.05)
            assert volume.store.reshape.statistics().left_bytes
            assert volume.store.assembly.label.parameters.uneven
            assert volume.store.space.losses_survived == 1
            # new zones have the new code from the first moment on
            await write_file(volume, b"new", pattern(7, 30))
            volume.store.reshape.pause()
            await volume.store.membership.tidy()
            await volume.store.membership.settle_uneven()
            assert volume.store.assembly.label.parameters.uneven

    in_simulated_time(begin)
    checked(members)
    wanted[""]["/new"] = ("file", 0o644, pattern(7, 30), (), ("/new",))

    async def with_losses():
        async with mounted(reopened(members, (1,))) as volume:
            assert await trees(volume) == wanted
        with pytest.raises(NotEnoughMembers):
            async with mounted(reopened(members, (1, 2))):
                pass

    in_simulated_time(with_losses)
    again = reopened(members)

    async def go_on():
        async with mounted(again) as volume:
            assert volume.store.reshape.statistics().state == "paused"
            volume.store.reshape.resume()
            await ended(volume)
            assert volume.store.events.counts["ConvertFinished"] == 1
            assert await trees(volume) == wanted
            all_is(volume, "6", 6)

    in_simulated_time(go_on)
    checked(again)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_crash_at_any_sync_leaves_all_contents(part):
    """Of a conversion from 5 to 6, one member wider; it is then carried through."""
    setup, wanted = volume_of("5", 4, 5, slots=24), {}

    async def prepare():
        async with mounted(setup) as volume:
            await make_past(volume, random.Random(4), snapshots=2)
            wanted.update(await trees(volume))

    in_simulated_time(prepare)
    members = reopened(setup)
    world = members[0].world

    async def run():
        async with mounted(members) as volume:
            await convert(volume, "6", 5)

    in_simulated_time(run)
    count = 0
    for number, (position, image, _) in enumerate(world.images()):
        if number % 4 != part:
            continue
        crashed = members_of(image.crash(number), World(), list(range(5)))
        count += 1

        async def go_on(crashed=crashed, carried_through=number % 20 == part):
            async with mounted(crashed) as volume:
                if not carried_through:
                    volume.store.reshape.pause()
                assert await trees(volume) == wanted
                if carried_through and volume.store.reshape.unwanted_zones():
                    await ended(volume)
                    assert await trees(volume) == wanted
                    all_is(volume, "6", 5)

        in_simulated_time(go_on)
        report = check_assembly(assembly_of(reopened(crashed), read_only=True))
        assert not report.findings, (position, report.findings[:5])
    assert count > 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("5", 5), ("6", 6)),
        pytest.param(("1", 2), ("rs:3+3", 6), marks=pytest.mark.slow),
        pytest.param(("0", 6), ("1", 2), marks=pytest.mark.slow),
        pytest.param(("10", 6), ("5", 3), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_users_notice_nothing(old, new, seed):
    """Random operations, forth and back, compared with a model; with snapshots."""
    members = volume_of(*old)
    model = Model()

    async def test():
        async with mounted(members) as volume:
            workload = Workload(volume, seed, model)
            for _ in range(60):
                await workload.step()
            for level, width in (new, old):
                await volume.store.snapshots.create(f"at-{level.replace(':', '')}")
                before = await read_tree(volume)
                await volume.store.reshape.convert(level, width)
                for _ in range(25):
                    for _ in range(4 * (volume.store.reshape.statistics().state != "done")):
                        await workload.step()
                    await trio.sleep(0.05)
                await ended(volume)
                assert await read_tree(volume) == model.tree()
                assert (await trees(volume))[f"at-{level.replace(':', '')}"] == before
                await volume.fsync(ROOT)
                await ended(volume)
                all_is(volume, level, width)

    in_simulated_time(test)
    checked(members)


@pytest.mark.parametrize("level", ["1", "5", "rs:3+3"])
def test_a_lost_member_holds_nothing_up(level):
    """Lost in the middle: it ends with zones that do without it."""
    members, wanted = volume_of("6", 6), {}
    width = {"1": 3, "5": 5, "rs:3+3": 6}[level]

    async def test():
        async with mounted(members) as volume:
            await make_past(volume, random.Random(5), snapshots=2)
            wanted.update(await trees(volume))
            await volume.store.reshape.convert(level, width)
            while volume.store.reshape.statistics().done_bytes < 50 * CELL_BYTES:
                await trio.sleep(0.05)
            await volume.store.losses.fail_member(2, "a test")
            await ended(volume)
            assert await trees(volume) == wanted
            for zone in volume.store.space.zones.values():
                assert zone.map.code.tolerance == code_for(level, width).tolerance
                assert zone.map.code.level.partition(":")[0] == level.partition(":")[0]

    in_simulated_time(test)
    checked(members, (2,))


def test_zones_made_narrower_for_a_loss_become_wide_again():
    members = volume_of("5", 5, 5)

    async def degraded():
        async with mounted(members) as volume:
            await volume.store.losses.fail_member(4, "a test")
            await write_file(volume, b"narrow", pattern(1, 300))
            await volume.fsync(ROOT)
            assert code_for("5", 4) in codes(volume)
            assert not volume.store.reshape.unwanted_zones(), "as long as there are no more members"
            await volume.store.reshape.convert("5", 4)
            await ended(volume)
            all_is(volume, "5", 4)

    in_simulated_time(degraded)
    left = reopened(members, (4,))

    async def wide():
        async with mounted(left) as volume:
            assert await read_file(volume, b"narrow") == pattern(1, 300)
            with pytest.raises(UsageError, match="not 5"):
                plan_conversion(volume.store.space, "5", 5)

    in_simulated_time(wide)
    checked(left, (4,))


def test_what_stops_it_is_told_with_numbers_and_what_to_do():
    members = volume_of("5", 5)

    async def test():
        async with mounted(members) as volume:
            await write_file(volume, b"file", pattern(1, 400))
            store, reshape = volume.store, volume.store.reshape
            grow = store.space.grow

            async def full(*_):
                raise OutOfSpace("the metadata has no room for this change")

            store.space.grow = full
            await reshape.convert("6", 6)
            await trio.sleep(1)
            told = reshape.statistics()
            assert told.state == "stalled" and told.zones_left > 3
            wanted = (
                rf"{told.zones_left} zones with 1\.\d+ MiB are left .*metadata has no room.*remove"
            )
            assert re.match(wanted, told.reason), told.reason
            store.space.grow = grow
            await trio.sleep(6)
            await ended(volume)
            all_is(volume, "6", 6)
            await reshape.convert("5", 6)
            store.fail("a test")
            told = reshape.statistics()
            wanted = (
                r"the volume is read-only after an error: a test; \d+ zones \(.*iB\) wait.*check"
            )
            assert told.state == "stalled" and re.match(wanted, told.reason), told.reason

    in_simulated_time(test)
    checked(members)


def test_it_can_be_paused_and_limited_and_that_is_kept():
    members = volume_of("5", 5)

    async def pause():
        async with mounted(members) as volume:
            await write_file(volume, b"file", pattern(1, 400))
            reshape = volume.store.reshape
            reshape.limit(100_000)
            reshape.pause()
            await reshape.convert("6", 6)
            await trio.sleep(60)
            told = reshape.statistics()
            assert (told.state, told.done_bytes) == ("paused", 0) and told.left_bytes
            assert "resume" in told.reason

    in_simulated_time(pause)
    again = reopened(members)

    async def resume():
        async with mounted(again) as volume:
            reshape = volume.store.reshape
            assert reshape.paused and reshape.pace.limit_bytes_s == 100_000
            left = reshape.statistics().left_bytes
            reshape.resume()
            begun = trio.current_time()
            await ended(volume)
            assert trio.current_time() - begun > 0.8 * left / 100_000
            assert await read_file(volume, b"file") == pattern(1, 400)

    in_simulated_time(resume)
    checked(again)


# -- real members ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.trio
async def test_zones_made_narrower_for_a_loss_become_wide_by_themselves(tmp_path):
    paths = make_members(tmp_path / "v", 5, "5")
    async with mounted_on(paths) as volume:
        store = volume.store
        await store.losses.fail_member(4, "a test")
        ino = volume.create(ROOT, b"narrow", 0o644, 2, ME).ino
        await volume.write(ino, 0, pattern(1, 1500))
        volume.release(ino)
        await store.commit()
        assert code_for("5", 4) in codes(volume) and not store.reshape.unwanted_zones()
        label, path = store.assembly.label, tmp_path / "new"
        path.mkdir()
        (entry,) = plan_members(label, [str(path)], size_bytes=48 << 20, replaces=[4])
        await store.membership.add(entry, lay_out_member(label, entry), lambda *_: None)
        with trio.fail_after(60):
            while codes(volume) != {code_for("5", 5)}:
                store.reshape.wake()
                await trio.sleep(0.05)
            assert await read_file(volume, b"narrow") == pattern(1, 1500)
    run_check([*paths[:4], str(path)])
    async with mounted_on([*paths[:4], str(path)]) as volume:
        await volume.store.losses.fail_member(0, "a test")
        assert await read_file(volume, b"narrow") == pattern(1, 1500)
