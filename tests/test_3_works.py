"""What events tell of rebuilds and of members that are emptied: each beginning and each end once,
and none that is not so. Also over mounts, and over crashes (test_3_membership_crash.py)."""

import pytest
import trio
from test_3_mender import ROOT, add, all_right, back, data_of, fresh, mended, write
from volumes import ROOT as CALLER
from volumes import forget_all, make_members, mounted

from raidfs.daemon.member_requests import MemberEvacuateRequest, MemberRemoveRequest
from raidfs.daemon.members import MemberService
from raidfs.store.mender import LOOK_S

WORK = ("Rebuild", "Evacuate", "Member", "Spare")


def told(store, kept=0):
    """Of works, over all mounts since the event `kept`."""
    events = store.events.since(kept, limit=1 << 20)
    return [(each.kind, each.member) for each in events if each.kind.startswith(WORK)]


def of(store, member):
    """But for the steps on the way."""
    names = [kind for kind, number in told(store) if number == member]
    return [kind for kind in names if not kind.removeprefix("Rebuild").isdecimal()]


async def looked(store):
    """The mender has, and finds nothing that it could do."""
    with trio.fail_after(30):
        store.mender.wake()
        await trio.sleep(0.05)
        while store.mender.statistics().working or store.mender._wanted.is_set():
            await trio.sleep(0.02)


async def stalled(store, words):
    with trio.fail_after(30):
        while words not in store.mender.statistics().stalled:
            await trio.sleep(0.02)


async def removed(store, member):
    """It is told, too: a moment after labels say so."""
    with trio.fail_after(30):
        while ("MemberRemoved", member) not in told(store):
            await trio.sleep(0.02)


async def ask(service, request):
    async for _ in service.handlers()[type(request)](request):
        pass


async def told_once(store, count):
    """Of members 0 to `count`, who is none any more was told so, once; and each work that was told
    to begin ends once. After all that could be done is done."""
    await trio.sleep(2 * LOOK_S)
    await store.commit()
    events = told(store)
    names = {entry.id for entry in store.assembly.label.members}
    gone = [member for kind, member in events if kind == "MemberRemoved"]
    assert len(gone) == len(set(gone)) and not names & set(gone), events
    assert set(range(count)) - names <= set(gone), events
    going_on = {
        zone.map.columns[column][0] for zone, why in store.mender.lacking() for column in why
    }
    for member in {member for _, member in events}:
        for kind in ("Rebuild", "Evacuate"):
            names = [name.removeprefix(kind) for name, m in events if m == member and kind in name]
            steps = [name for name in names if name in ("Started", "Finished", "Stopped")]
            begun = [step == "Started" for step in steps]
            assert begun[::2] == [True] * len(begun[::2]) and not any(begun[1::2]), events
            assert len(begun) % 2 == 0 or member in going_on, (member, events)


class Commands:
    """As by control socket."""

    def __init__(self, store, nursery):
        self.service = MemberService(store, None, lambda: None, lambda: None)
        self.nursery = nursery

    async def __aenter__(self):
        await self.nursery.start(self.service.run)
        return self

    async def __aexit__(self, *error):
        self.nursery.cancel_scope.cancel()

    async def evacuate(self, member, cancel=False):
        await ask(self.service, MemberEvacuateRequest(members=(str(member),), cancel=cancel))

    async def remove(self, member):
        await ask(self.service, MemberRemoveRequest(members=(str(member),)))


@pytest.mark.trio
async def test_a_rebuild_without_a_place_has_not_begun(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        await store.losses.fail_member(1, "a test")
        await stalled(store, "add one")
        await looked(store)
        assert told(store) == []
        names = [event.kind for event in store.events.since(0)]
        assert names.count("DegradedArray") == 1 and names.count("Fail") == 1
        await add(store, fresh(tmp_path, "new"))
        await mended(store)
        assert of(store, 1) == ["RebuildStarted", "RebuildFinished"]
        (started,) = [e for e in store.events.since(0) if e.kind == "RebuildStarted"]
        assert '"columns":' in started.details and " columns, " in started.text


async def some_columns(volume, count):
    """Files in zones of their own."""
    for number in range(count):
        ino = volume.create(ROOT, b"f%d" % number, 0o644, 2, CALLER).ino
        await volume.write(ino, 0, data_of(b"%d" % (number % 10)))
        volume.release(ino)
        forget_all(volume, ino)
        await volume.store.commit()


@pytest.mark.trio
async def test_what_has_begun_and_stands_still_is_told_once_and_ends_once(tmp_path):
    """Over two mounts, in both of which it has no place for a while."""
    paths = make_members(tmp_path / "v", 4, width=3, zone_bytes=1 << 16)
    async with mounted(paths) as volume:
        store = volume.store
        await some_columns(volume, 6)
        store.mender.pace.limit_bytes_s = 256 << 10
        await store.losses.fail_member(1, "a test")
        with trio.fail_after(30):
            while ("Rebuild20", 1) not in told(store):
                await trio.sleep(0.005)
        await store.mender.set(rebuild="manual")
        await stalled(store, "setting")
        await looked(store)
        assert of(store, 1) == ["RebuildStarted", "RebuildStalled"]
    async with mounted(paths) as volume:
        store = volume.store
        await stalled(store, "setting")
        assert of(store, 1) == ["RebuildStarted", "RebuildStalled"]
        await store.mender.set(rebuild="auto")
        await mended(store)
        assert of(store, 1) == ["RebuildStarted", "RebuildStalled", "RebuildFinished"]
        steps = [kind for kind, _ in told(store) if kind.removeprefix("Rebuild").isdecimal()]
        assert steps == ["Rebuild20", "Rebuild40", "Rebuild60", "Rebuild80"]


@pytest.mark.trio
async def test_who_is_replaced_while_it_is_there_is_rebuilt_in_the_words_of_mdadm(tmp_path):
    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        number = await add(store, fresh(tmp_path, "new"), replaces=[0])
        await store.membership.change(0, role="leaving")
        await removed(store, 0)
        assert of(store, 0) == ["RebuildStarted", "RebuildFinished", "MemberRemoved"]
        assert of(store, number) == ["SpareActive"]
        await all_right(volume, [b"x"])


@pytest.mark.trio
async def test_a_member_is_emptied_given_up_and_removed_each_told_once(tmp_path):
    paths = make_members(tmp_path / "v", 4, width=3, zone_bytes=1 << 16)
    async with mounted(paths) as volume, trio.open_nursery() as nursery:
        store = volume.store
        await some_columns(volume, 4)
        async with Commands(store, nursery) as commands:
            await store.mender.set(paused=True)
            await commands.evacuate(0)
            await commands.evacuate(0, cancel=True)
            given_up = ["EvacuateStarted", "EvacuateFinished"]
            assert of(store, 0) == given_up
            await store.mender.set(paused=False)
            await looked(store)
            assert of(store, 0) == given_up
            store.mender.pace.limit_bytes_s = 256 << 10
            await commands.evacuate(0)
            with trio.fail_after(30):
                while not store.mender.statistics().columns_mended:
                    await trio.sleep(0.005)
            await commands.evacuate(0, cancel=True)
            await looked(store)
            assert of(store, 0) == 2 * given_up
            store.mender.pace.limit_bytes_s = 0
            await commands.evacuate(0)
            with trio.fail_after(30):
                while of(store, 0) != 3 * given_up:
                    await trio.sleep(0.02)
            await commands.evacuate(0, cancel=True)  # it is empty: nothing is given up
            await commands.evacuate(0)
            await looked(store)
            assert of(store, 0) == 3 * given_up
            await commands.remove(0)
            await removed(store, 0)
            assert of(store, 0) == [*3 * given_up, "MemberRemoved"]


@pytest.mark.trio
async def test_one_that_is_lost_while_it_is_emptied_is_rebuilt(tmp_path):
    paths = make_members(tmp_path / "v", 5, width=3, zone_bytes=1 << 16)
    async with mounted(paths) as volume, trio.open_nursery() as nursery:
        store = volume.store
        await some_columns(volume, 4)
        async with Commands(store, nursery) as commands:
            store.mender.pace.limit_bytes_s = 128 << 10
            await commands.remove(0)
            await store.losses.fail_member(0, "a test")
            store.mender.pace.limit_bytes_s = 0
            await removed(store, 0)
        assert of(store, 0) == [
            "EvacuateStarted",
            "EvacuateFinished",
            "RebuildStarted",
            "RebuildFinished",
            "MemberRemoved",
        ]
        assert "lost on the way" in next(
            e.text for e in store.events.since(0) if e.kind == "EvacuateFinished"
        )


@pytest.mark.trio
async def test_one_that_goes_offline_and_comes_back(tmp_path):
    paths = make_members(tmp_path / "v", 2, "1")
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"before")
        await store.losses.fail_member(1, "a test", expected=True)
        await write(volume, b"after")
        await looked(store)
        assert told(store) == []
        await back(store, 1, paths[1])
        await mended(store)
        await looked(store)
        assert of(store, 1) == ["RebuildStarted", "RebuildFinished"]


@pytest.mark.trio
async def test_what_a_crash_left_of_a_member_that_is_none_any_more(tmp_path, monkeypatch):
    """Labels don't know it, and the metadata do: it is told then, and once."""
    paths = make_members(tmp_path / "v", 4, width=3)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x")
        forgotten = store.meta.drop_member
        monkeypatch.setattr(store.meta, "drop_member", lambda member: None)
        note = store.events.note
        monkeypatch.setattr(
            store.events, "note", lambda kind, *rest, **more: kind == "MemberRemoved" or note(
                kind, *rest, **more
            )
        )  # fmt: skip
        await store.membership.change(0, role="leaving")
        await mended(store)
        assert forgotten and of(store, 0)[-1] != "MemberRemoved"
    for _ in range(2):
        async with mounted(paths[1:]) as volume:
            store = volume.store
            await removed(store, 0)
            assert of(store, 0).count("MemberRemoved") == 1
            assert 0 not in store.meta.member_counters()
