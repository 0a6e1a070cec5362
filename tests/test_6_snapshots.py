"""The snapshot service on an open store: what commands can't easily bring about.

Races between requests, a full volume, clocks, what raidfs keeps for itself, and large answers.
"""

from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from checking import run_check
from volumes import ROOT, Clock, make_members, mounted

from raidfs.cli.snapshot_diff import Joined
from raidfs.daemon import snapshots as service
from raidfs.daemon.policies import PolicyGetRequest, PolicyRunRequest, PolicySetRequest
from raidfs.daemon.snapshots import (
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotDiffRequest,
    SnapshotHoldRequest,
    SnapshotListRequest,
    SnapshotNoteRequest,
    SnapshotRenameRequest,
    SnapshotRollbackRequest,
    SnapshotService,
)
from raidfs.daemon.streams import SnapshotGiveUpRequest, SnapshotTokenRequest, TokenTold
from raidfs.errors import FormatError, NoSuchSnapshot, OutOfSpace, SnapshotHeld
from raidfs.fs.difference import Change, Range
from raidfs.fs.spool import Spool

DAY_NS = 24 * 3600 * 10**9


@asynccontextmanager
async def serving(tmp_path, clock=None):
    """`ask(request)`: the answer, or all that is yielded. Check has the last word."""
    paths = make_members(tmp_path)
    async with mounted(paths, clock=clock) as volume:
        handlers = SnapshotService(volume, seen_at="/mnt/.snapshots").handlers()

        async def ask(request):
            handled = handlers[type(request)](request)
            if not hasattr(handled, "__aiter__"):
                return await handled
            async with aclosing(handled) as parts:
                found = []
                async for part in parts:
                    found += part if isinstance(part, list) else [part]
                return found

        yield SimpleNamespace(ask=ask, volume=volume, store=volume.store,
                              snapshots=volume.store.snapshots, handlers=handlers)  # fmt: skip
    run_check(paths)


async def names(served):
    return [told.name for told in await served.ask(SnapshotListRequest())]


async def take(served, *names_):
    for name in names_:
        await served.ask(SnapshotCreateRequest(name=name))


@pytest.mark.trio
async def test_what_is_kept_of_a_stream_and_damaged_can_be_given_up(tmp_path):
    """It is told that something is there, and no way to go on with it."""
    async with serving(tmp_path) as served:
        spool = Spool(served.volume)
        await spool.make()
        await spool.write(0, b"what no raidfs has sent" * 1000)
        told = await served.ask(SnapshotTokenRequest())
        assert told == TokenTold(bytes=23_000)
        assert await served.ask(SnapshotGiveUpRequest()) == 23_000
        assert await served.ask(SnapshotTokenRequest()) == TokenTold()


@pytest.mark.trio
async def test_what_raidfs_keeps_for_itself_is_nobodys(tmp_path):
    async with serving(tmp_path) as served:
        await served.snapshots.create_internal(".mine")
        await take(served, "yours")
        assert await names(served) == ["yours"]
        for request in (
            SnapshotListRequest(names=(".mine",)),
            SnapshotDeleteRequest(names=(".mine",)),
            SnapshotDeleteRequest(names=(".mine%yours",)),
            SnapshotRenameRequest(name=".mine", new_name="x"),
            SnapshotNoteRequest(name=".mine", note="x"),
            SnapshotHoldRequest(names=(".mine",), tag="x"),
            SnapshotRollbackRequest(name=".mine"),
            SnapshotDiffRequest(old=".mine"),
            SnapshotDiffRequest(old="yours", new=".mine"),
        ):
            with pytest.raises(NoSuchSnapshot):
                await served.ask(request)
        assert [each.name for each in served.snapshots.all(internal=True)] == [".mine", "yours"]
        assert (await served.ask(SnapshotDeleteRequest(names=("%",), dry_run=True))).names == [
            "yours"
        ]
        await served.snapshots.delete([".mine"])


@pytest.mark.trio
async def test_a_hold_that_comes_while_room_is_counted_saves_all(tmp_path, monkeypatch):
    async with serving(tmp_path) as served:
        await take(served, "a", "b")
        counting = served.snapshots.freed_cells

        async def held_meanwhile(chosen):
            await served.ask(SnapshotHoldRequest(names=("b",), tag="court"))
            return await counting(chosen)

        monkeypatch.setattr(served.snapshots, "freed_cells", held_meanwhile)
        with pytest.raises(SnapshotHeld):
            await served.ask(SnapshotDeleteRequest(names=("a", "b")))
        assert await names(served) == ["a", "b"]


@pytest.mark.trio
async def test_waiting_for_room_returns_when_it_is_free(tmp_path):
    async with serving(tmp_path) as served:
        ino = served.volume.create(1, b"file", 0o644, 0, ROOT).ino
        for name in ("a", "b", "c"):
            await served.volume.write(ino, 0, name.encode() * 300_000)
            await take(served, name)
        await served.volume.write(ino, 0, b"d" * 300_000)
        await served.volume.fsync(ino)
        before = served.store.space.usage().live_cells
        done = await served.ask(SnapshotDeleteRequest(names=("%",), wait=True))
        assert done.names == ["a", "b", "c"] and done.freed_bytes > 3 * 299_000
        freed = before - served.store.space.usage().live_cells
        assert freed * served.store.cell_bytes == done.freed_bytes
        assert served.store.meta.condemned() == []
        served.volume.release(ino)


@pytest.mark.trio
async def test_a_list_goes_on_when_snapshots_go_meanwhile(tmp_path, monkeypatch):
    """Between pieces, and within one."""
    monkeypatch.setattr(service, "PIECE", 2)
    async with serving(tmp_path) as served:
        await take(served, "a", "b", "c", "d")
        counting = served.snapshots.alone_each

        async def meanwhile(snapshots):
            cells = await counting(snapshots)
            await served.ask(SnapshotDeleteRequest(names=("b",)))
            return cells

        monkeypatch.setattr(served.snapshots, "alone_each", meanwhile)
        listed = []
        request = SnapshotListRequest(used=True)
        async with aclosing(served.handlers[SnapshotListRequest](request)) as parts:
            async for part in parts:
                if not listed:
                    await served.ask(SnapshotDeleteRequest(names=("c",)))
                    await served.ask(SnapshotRenameRequest(name="d", new_name="dd"))
                listed += [told.name for told in part]
        assert listed == ["a", "dd"]


@pytest.mark.trio
async def test_a_list_has_no_patience_without_end(tmp_path, monkeypatch):
    async with serving(tmp_path) as served:
        await take(served, "a", "b", "c")
        counting = served.snapshots.alone_each

        async def slowly(snapshots):
            await trio.sleep(0.1)
            return await counting(snapshots)

        monkeypatch.setattr(served.snapshots, "alone_each", slowly)
        for patience_ms, used in ((10, None), (0, 0), (60_000, 0)):
            told = await served.ask(SnapshotListRequest(used=True, patience_ms=patience_ms))
            assert [one.used_bytes for one in told] == [used] * 3
        told = await served.ask(SnapshotListRequest(patience_ms=60_000))
        assert [one.used_bytes for one in told] == [None] * 3


@pytest.mark.slow
@pytest.mark.trio
async def test_forty_days_of_a_policy(tmp_path):
    """By a clock that goes as we say; what is kept has the age that it should have."""
    clock = Clock()
    async with serving(tmp_path, clock) as served:
        await served.ask(PolicySetRequest(fields={"hourly": 3, "daily": 5, "weekly": 2}))
        ino = served.volume.create(1, b"file", 0o644, 0, ROOT).ino
        for step in range(40 * 4):
            await served.volume.write(ino, step % 7 * 4096, b"%d" % step * 1000)
            (ran,) = await served.ask(PolicyRunRequest())
            dry = (await served.ask(PolicyRunRequest(dry_run=True)))[0]
            assert not dry.taken and all(verdict.keep for verdict in dry.verdicts), dry
            assert len(ran.taken) in (1, 2, 3)
            clock.now_ns += DAY_NS // 4
        told = await served.ask(SnapshotListRequest())
        ages = {}
        for one in told:
            kind = one.name.rpartition("_")[2]
            ages.setdefault(kind, []).append((clock.now_ns - one.created_ns) / DAY_NS)
        assert {kind: len(found) for kind, found in ages.items()} == dict(
            hourly=3, daily=5, weekly=2
        )
        assert max(ages["hourly"]) < 1 and 4 < max(ages["daily"]) < 6
        assert 7 < max(ages["weekly"]) < 14.5
        await served.snapshots.swept()
        served.volume.release(ino)


@pytest.mark.trio
async def test_a_run_spares_what_is_held_or_gone_since_it_was_judged(tmp_path, monkeypatch):
    async with serving(tmp_path) as served:
        old = [f"autosnap_2020-01-0{day}_00:00:00_daily" for day in range(1, 6)]
        await take(served, *old)
        await served.ask(PolicySetRequest(fields={"daily": 1}))
        counting = served.snapshots.freed_cells

        async def meanwhile(chosen):
            monkeypatch.setattr(served.snapshots, "freed_cells", counting)
            cells = await counting(chosen)
            await served.ask(SnapshotHoldRequest(names=(old[0],), tag="court"))
            await served.ask(SnapshotDeleteRequest(names=(old[1],)))
            return cells

        monkeypatch.setattr(served.snapshots, "freed_cells", meanwhile)
        await served.ask(PolicyRunRequest(take=False))
        assert await names(served) == [old[0], old[4]]


@pytest.mark.trio
async def test_two_runs_at_once_take_nothing_twice(tmp_path):
    clock = Clock()
    async with serving(tmp_path, clock) as served:
        await served.ask(PolicySetRequest(fields={"daily": 5, "monthly": 5}))
        taken = []

        async def run():
            clock.now_ns += 2 * 10**9  # so the names would be others
            (ran,) = await served.ask(PolicyRunRequest())
            taken.extend(ran.taken)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)
        assert sorted(name.rpartition("_")[2] for name in taken) == ["daily", "monthly"]
        assert sorted(await names(served)) == sorted(taken)


@pytest.mark.trio
async def test_on_a_full_volume_what_is_to_go_makes_room_first(tmp_path, monkeypatch):
    async with serving(tmp_path) as served:
        old = [f"autosnap_2020-01-0{day}_00:00:00_monthly" for day in range(1, 4)]
        await take(served, *old, "mine")
        await served.ask(PolicySetRequest(fields={"daily": 1, "monthly": 1}))
        creating = served.snapshots.create

        async def full(name, *args, **more):
            if len(served.snapshots.all()) > 2:
                raise OutOfSpace("the volume's metadata is full")
            return await creating(name, *args, **more)

        monkeypatch.setattr(served.snapshots, "create", full)
        (ran,) = await served.ask(PolicyRunRequest())
        assert len(ran.taken) == 1 and await names(served) == [old[2], "mine", *ran.taken]
        assert served.store.meta.condemned() == []
        await served.ask(PolicySetRequest(fields={"hourly": 1}))
        with pytest.raises(OutOfSpace):  # nothing to go: said as it is
            await served.ask(PolicyRunRequest())
        assert await names(served) == [old[2], "mine", *ran.taken]


@pytest.mark.trio
async def test_a_policy_that_is_not_understood_runs_nothing_and_can_be_set_anew(tmp_path):
    async with serving(tmp_path) as served:
        await take(served, "autosnap_2020-01-01_00:00:00_daily")
        await served.store.cut_with(lambda _: served.store.meta.put_setting("policy", b"\xff{"))
        setting = PolicySetRequest(fields={"daily": 1})
        for request in (PolicyGetRequest(), PolicyRunRequest(), setting):
            with pytest.raises(FormatError, match="set it anew"):
                await served.ask(request)
        assert len(await names(served)) == 1
        told = await served.ask(PolicySetRequest(fields={"daily": 1}, clear=True))
        assert told.policy.daily == 1 and (await served.ask(PolicyGetRequest())) == told


def test_a_change_with_very_many_ranges_comes_in_parts_and_is_whole_again(monkeypatch):
    monkeypatch.setattr(service, "RANGES_AT_ONCE", 10)
    changes = [
        Change("modified", b"/%d" % count, count + 2, "file",
               ranges=tuple(Range(at * 8192, 4096) for at in range(count)))
        for count in (0, 1, 10, 11, 35)
    ]  # fmt: skip
    parts = [part for change in changes for part in service._split(change)]
    assert [len(part.ranges) for part in parts] == [0, 1, 10, 10, 1, 10, 10, 10, 5]
    whole = []
    joined = Joined(whole.append)
    for at in range(0, len(parts), 2):
        joined.add(parts[at : at + 2])
    joined.flush()
    assert whole == changes
