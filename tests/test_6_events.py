"""Events of a mounted volume: who follows gets each once and in order, who doesn't read holds up
nothing; what a mount itself notes; little room and enough of it.
"""

import json
import os
import random
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from groups import Crew
from mounting import fingerprint, run
from volumes import ROOT, make_members, mounted

from raidfs.daemon import events as module
from raidfs.daemon.control import ControlClient, ControlError, ControlServer
from raidfs.daemon.events import EventService, EventsPart, EventsRequest, RoomWatch, follow
from raidfs.errors import RaidfsError


class Served:
    """A volume with its service at a socket, without a mount."""

    def __init__(self, volume, service, socket, server):
        self.volume, self.service, self.socket, self.server = volume, service, socket, server
        self.store, self.events = volume.store, volume.store.events

    def note(self, count, kind="TestMessage"):
        for _ in range(count):
            self.events.note(kind)


@asynccontextmanager
async def served(paths, tmp_path, **options):
    async with mounted(paths, **options) as volume:
        service = EventService(volume.store, "/mnt/x")
        socket = tmp_path / "control.sock"
        server = ControlServer(socket, service.handlers())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            yield Served(volume, service, socket, server)
            nursery.cancel_scope.cancel()


@pytest.fixture
def paths(tmp_path):
    return make_members(tmp_path)


async def take(socket, count, **request):
    """So many events, and where they ended."""
    found = []
    with trio.fail_after(20):
        async for part in follow(socket, EventsRequest(follow=True, **request)):
            found += part.events
            if len(found) >= count:
                return found, part
    raise AssertionError(f"the stream has ended after {len(found)}")


async def all_of(socket, **request):
    with trio.fail_after(20):
        return [e async for part in follow(socket, EventsRequest(**request)) for e in part.events]


@pytest.mark.trio
async def test_whoever_follows_gets_each_event_once_and_in_order(paths, tmp_path):
    async with served(paths, tmp_path) as it:
        it.note(700)
        await it.store.commit()  # in the metadata: told in pieces
        it.note(5)  # in memory
        found = []

        async def collect():
            async for part in follow(it.socket, EventsRequest(after=100, follow=True)):
                found.extend(event.number for event in part.events)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(collect)
                await trio.sleep(0.1)
                it.note(3)
                await it.store.commit()
                it.note(40)
                await trio.sleep(0.1)
                it.note(1)
                await it.service.unmounted()
        last = it.events.last
        assert last == 700 + 5 + 3 + 40 + 1 + 1
        assert sorted(found) == sorted(list(range(101, last + 1)) * 3)
        assert it.events.since(last - 1)[0].kind == "Unmounted"


@pytest.mark.trio
async def test_requests_choose_by_kind_time_and_number(paths, tmp_path):
    async with served(paths, tmp_path) as it:
        it.note(2)
        it.note(1, "Rebuild20")
        it.note(1, "Fail")
        await it.store.commit()
        it.note(1, "Rebuild40")
        kinds = [event.kind for event in await all_of(it.socket)]
        assert kinds == ["TestMessage", "TestMessage", "Rebuild20", "Fail", "Rebuild40"]
        some = await all_of(it.socket, kinds=("RebuildNN", "Fail"))
        assert [event.kind for event in some] == kinds[2:]
        assert [event.number for event in await all_of(it.socket, last=2)] == [4, 5]
        newest = await all_of(it.socket, last=1, kinds=("TestMessage",))
        assert [event.number for event in newest] == [2]
        since = await all_of(it.socket, since_ns=some[-1].time_ns)
        assert [event.kind for event in since] == ["Rebuild40"]
        assert some[1].severity == "alert" and some[1].volume == it.store.assembly.label.volume_name


@pytest.mark.trio
async def test_following_goes_on_where_it_ended_also_in_another_mount(paths, tmp_path):
    async with served(paths, tmp_path) as it:
        it.service.mounted()
        it.note(5)
        found, part = await take(it.socket, 6)
        after = found[-1].number
        it.note(2)
        await it.service.unmounted()
    async with served(paths, tmp_path) as it:
        it.service.mounted()
        found, _ = await take(it.socket, 4, after=after, session=part.session)
        assert [e.kind for e in found] == ["TestMessage", "TestMessage", "Unmounted", "Mounted"]
        found, _ = await take(it.socket, 1, after=-1)
        assert [e.kind for e in found] == ["Mounted"], "of this mount only"


@pytest.mark.trio
async def test_what_is_not_kept_is_told_once_to_each_session(paths, tmp_path):
    async with served(paths, tmp_path, read_only=True) as it:
        it.note(3)
        found, part = await take(it.socket, 3)
        assert [event.number for event in found] == [-1, -2, -3] and part.through_not_kept == 3
        it.note(1)
        found, part = await take(it.socket, 1, not_kept=3, session=part.session)
        assert [event.number for event in found] == [-4]
        found, _ = await take(it.socket, 4, not_kept=4, session="of another mount")
        assert len(found) == 4


@pytest.mark.trio
async def test_who_does_not_read_holds_up_nothing(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LAST_S", 0.2)
    async with served(paths, tmp_path) as it:
        text = "x" * 1000
        client = ControlClient(it.socket)
        client.send(EventsRequest(follow=True))
        for _ in range(900):
            it.events.note("TestMessage", text=text)
        await trio.sleep(0.1)
        assert it.service._followers == 1
        await take(it.socket, 900)  # another
        with trio.fail_after(10):
            await it.service.unmounted()
        client.close()
        with trio.fail_after(10):
            while it.service._followers:
                await trio.sleep(0.01)


@pytest.mark.trio
async def test_a_follower_that_went_away_is_noticed(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    async with served(paths, tmp_path) as it:
        client = ControlClient(it.socket)
        client.send(EventsRequest(follow=True))
        with trio.fail_after(10):
            while not it.service._followers:
                await trio.sleep(0.01)
        client.close()
        with trio.fail_after(10):
            while it.service._followers:
                await trio.sleep(0.01)


@pytest.mark.trio
async def test_a_daemon_that_goes_away_is_noticed(paths, tmp_path):
    async with served(paths, tmp_path) as it:
        it.note(1)
        with pytest.raises(ControlError):
            async for _ in follow(it.socket, EventsRequest(follow=True)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(end_all_connections, it)
    with pytest.raises(ControlError):
        await all_of(tmp_path / "nobody.sock")


async def end_all_connections(it):
    """As when the process is killed."""
    for number in os.listdir("/proc/self/fd"):
        try:
            import socket

            with socket.socket(fileno=os.dup(int(number))) as one:
                if one.family == socket.AF_UNIX and one.getsockname().endswith("control.sock"):
                    one.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            continue


@pytest.mark.trio
async def test_an_unmount_that_can_not_be_clean_is_not_told_as_one(paths, tmp_path):
    async with mounted(paths) as volume:
        service = EventService(volume.store, "/mnt/x")
        entry = volume.create(1, b"file", 0o644, os.O_RDWR, ROOT)
        await volume.write(entry.ino, 0, b"x")
        volume.store.fail("a test")
        await service.unmounted()
        assert [e.kind for e in volume.store.events.since(0)] == ["ReadOnly"]
        with pytest.raises(RaidfsError):
            await volume.store.commit()
        volume.store.dirty_room.idle()
        volume.store.stop = volume.store.close


# -- room -----------------------------------------------------------------------------------------


def test_low_and_enough_alternate_with_a_gap_between_them():
    watch = RoomWatch()

    def rooms(*frees):
        for free in frees:
            watch.room = watch.judge(free, 1000, 20)
            yield watch.room

    assert list(rooms(900, 50, 49, 60, 49, 55, 62, 63, 500)) == [
        *("enough", "enough", "low", "low", "low", "low", "low", "enough", "enough")
    ]
    assert list(rooms(30, 19, 30, 10, 200, 0)) == [
        *("low", "reserve", "reserve", "reserve", "enough", "reserve")
    ]


@pytest.mark.trio
async def test_little_room_and_enough_of_it_are_events(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "AGAIN_S", 0.02)
    paths = make_members(tmp_path, size_bytes=24 << 20)

    def found(it):
        return [e for e in it.events.since(0) if e.kind.startswith("Room")]

    async with served(paths, tmp_path) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.service.run)
        volume = it.volume
        ino = volume.create(1, b"file", 0o644, os.O_RDWR, ROOT).ino
        size = 0
        with trio.fail_after(60):
            while not found(it):
                usage = it.store.space.usage()
                if usage.free_cells * 40 > usage.total_cells:
                    count = 1 << 20 if usage.free_cells * 5 > usage.total_cells else 128 << 10
                    await volume.write(ino, size, os.urandom(count))
                    size += count
                    await volume.fsync(ino)
                await trio.sleep(0.01)
            usage = it.store.space.usage()
            assert usage.free_cells * 10 < usage.total_cells
            details = json.loads(found(it)[0].details)
            assert details["free_bytes"] * 20 < details["total_bytes"]
            assert details["level"] in ("low", "reserve")
            volume.release(ino)
            volume.unlink(1, b"file")
            volume.forget(ino, 1)
            await volume.fsync(1)
            while found(it)[-1].kind != "RoomEnough":
                await trio.sleep(0.02)
        told = [e.kind for e in found(it)]  # low, and perhaps even lower
        assert told in (["RoomLow", "RoomEnough"], ["RoomLow", "RoomLow", "RoomEnough"])
        nursery.cancel_scope.cancel()


# -- real mounts ----------------------------------------------------------------------------------


def events_of(volume, *words, where=None):
    done = volume.shop.run("raidfs-ctl", "events", "--json", *words, where or volume.mountpoint)
    told = json.loads(done.stdout)
    assert told["version"] == 1
    return told["events"]


def kinds(events):
    return [event["kind"] for event in events]


@pytest.mark.mount
@pytest.mark.slow
def test_the_log_of_a_volume_over_its_mounts(workshop):
    """Lost at a mount, once; degraded at each; a crash leaves a gap; read without a mount."""
    volume = workshop.volume(4, level="6", mounted=True)
    (volume.mountpoint / "file").write_bytes(b"x" * 100_000)
    volume.unmount()
    gone = volume.members[3].rename(workshop.directory / "gone")
    volume.mount("degraded")
    events = events_of(volume, "--since", "1h")
    assert kinds(events) == [
        "Mounted",
        "Unmounted",
        "Mounted",
        "DeviceDisappeared",
        "DegradedArray",
    ]
    assert events[3]["member"] == 3 and events[3]["path"] == str(volume.members[3])
    assert events[4]["details"] == {"missing": [3]} and events[4]["severity"] == "alert"
    volume.ctl("sync")
    volume.kill()
    volume.mount()
    events = events_of(volume)[-2:]
    assert kinds(events) == ["Mounted", "DegradedArray"]
    assert events[0]["number"] > 1000, "numbers that a crash may have taken back are not used again"
    volume.shop.run("raidfs-ctl", "member", "fail", "-y", volume.mountpoint, "1")
    assert kinds(events_of(volume, "--kind", "Fail")) == ["Fail"]
    volume.unmount()
    before = fingerprint(*volume.members[:3])
    events = events_of(volume, where=volume.members[0])[-3:]
    assert kinds(events) == ["Fail", "DegradedArray", "Unmounted"]
    assert events == events_of(volume, where=volume.members[2])[-3:]
    assert fingerprint(*volume.members[:3]) == before, "reading the log wrote something"
    text = volume.shop.run("raidfs-ctl", "events", volume.members[0]).stdout.splitlines()
    assert len(text) == 10 and " * Fail " in text[-3] and str(volume.members[1]) in text[-3]
    assert gone.is_dir()
    volume.check()


@pytest.mark.mount
@pytest.mark.slow
def test_damage_found_and_healed_is_told_with_its_extent(workshop):
    volume = workshop.volume(3, level="5", zone_bytes=1 << 20, mounted=True)
    dice = random.Random(5)
    content = dice.randbytes(2 << 20)
    (volume.mountpoint / "file").write_bytes(content)
    volume.ctl("sync")
    for path in sorted((volume.members[1] / "zones").rglob("*")):
        if path.is_file():
            with path.open("r+b") as file:
                for offset in range(0, os.fstat(file.fileno()).st_size, 16 << 10):
                    os.pwrite(file.fileno(), dice.randbytes(100), offset)
    run("sysctl", "-q", "vm.drop_caches=1")
    assert (volume.mountpoint / "file").read_bytes() == content
    volume.unmount()
    events = events_of(volume, where=volume.members[0])
    told = {kind: [e for e in events if e["kind"] == kind] for kind in ("ChecksumErrors", "Healed")}
    volume.mount()
    member = volume.status()["members"][1]
    cells = sum(event["details"]["cells"] for event in told["ChecksumErrors"])
    assert cells == member["checksum_errors"] > 10
    assert sum(event["details"]["cells"] for event in told["Healed"]) == cells
    for found in told.values():
        assert 1 <= len(found) <= 3 and {event["member"] for event in found} == {1}
    volume.unmount()
    volume.check()


@pytest.mark.mount
@pytest.mark.slow
def test_mistakes_are_told_in_a_sentence(workshop):
    volume = workshop.volume(3)
    shop = workshop
    refused = shop.run("raidfs-ctl", "events", "-f", volume.members[0], expect=1)
    assert "not mounted" in refused.stderr
    refused = shop.run("raidfs-ctl", "events", "--kind", "Fial", volume.members[0], expect=1)
    assert "DegradedArray" in refused.stderr
    refused = shop.run("raidfs-ctl", "events", "--since", "soon", volume.members[0], expect=1)
    assert "yesterday" in refused.stderr
    nothing = shop.run("raidfs-ctl", "events", volume.members[0])
    assert not nothing.stdout and "nothing is known" in nothing.stderr


@pytest.mark.mount
@pytest.mark.slow
def test_a_snapshot_of_the_group_that_was_not_taken_is_an_event(workshop):
    crew = Crew(workshop, count=2)
    crew.init()
    first, second = crew.volumes
    assert kinds(events_of(first)) == ["Mounted"]
    second.kill()
    refused = crew.group("snapshot", "crew", "monday", expect=1)
    assert "no snapshot was taken" in refused.stderr
    (event,) = events_of(first, "--kind", "GroupSnapshotFailed")
    assert event["details"] == {"group": "crew", "snapshot": "monday"}
    first.unmount()
    first.check()


@pytest.mark.trio
async def test_parts_can_be_decoded_by_an_older_client(paths, tmp_path):
    """Unknown fields of an event are no error."""
    async with served(paths, tmp_path) as it:
        it.events.note("TestMessage", later="field")
        part = EventsPart(
            "s", [module.told(e, it.store.assembly.label) for e in it.events.since(0)]
        )
        raw = json.loads(msgspec.json.encode(part))
        raw["events"][0]["more"] = raw["more"] = 1
        again = msgspec.json.decode(json.dumps(raw), type=EventsPart)
        assert again.events[0].details == {"later": "field"}
