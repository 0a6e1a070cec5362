"""Room for the next zone's columns, made while the rows of this one are: it is used, or given back;
and what goes wrong beside it. Real directories."""

import errno
from pathlib import Path

import pytest
import trio
from checking import run_check
from test_3_mender import add, all_right, fresh, mended, write
from volumes import make_members, mounted

from raidfs.check import check_volume
from raidfs.errors import MemberError, MemberFull
from raidfs.raid.directory import DirectoryMember
from raidfs.store import pace
from raidfs.store.mending import Mending

NAMES = [bytes([letter]) * 5 for letter in b"abcdefghijklmn"]  # 1 MB of content each


@pytest.fixture
def idle(monkeypatch):
    """No user is ever in the way."""
    monkeypatch.setattr(pace.Pace, "busy", False)


@pytest.fixture
def laid(monkeypatch):
    """(zone, whole) of what was laid ahead."""
    found, real = [], Mending._lay_ahead

    async def lay(self, work):
        before = self.ahead
        await real(self, work)
        if self.ahead is not None and self.ahead is not before:
            found.append((self.ahead.map.zone, self.ahead.whole))

    monkeypatch.setattr(Mending, "_lay_ahead", lay)
    return found


def slots_add_up(store):
    """Each slot is free, or a column's."""
    used = {}
    for zone in (*store.space.zones.values(), *store.space.limbo.values()):
        for member, _ in zone.map.columns:
            used[member] = used.get(member, 0) + 1
    for member, slots in store.space.allocation.slots.items():
        assert len(slots.free) + used.get(member, 0) == slots.total, member


def files_of(path):
    return sorted(file.name for file in Path(path, "zones").glob("??/*"))


@pytest.mark.trio
async def test_the_next_zone_has_its_room_when_its_turn_comes(tmp_path, monkeypatch, idle, laid):
    created, real = [], DirectoryMember.column_create

    def create(self, zone, column, slot, nbytes):
        created.append((self.path, zone, column))
        real(self, zone, column, slot, nbytes)

    paths = make_members(tmp_path / "v", 3)
    async with mounted(paths) as volume:
        store = volume.store
        for name in NAMES:
            await write(volume, name)
        await store.losses.fail_member(1, "a test")
        monkeypatch.setattr(DirectoryMember, "column_create", create)
        new = fresh(tmp_path, "new")
        await add(store, new, replaces=[1])
        await mended(store)
        there = [each for each in created if each[0] == str(new)]
        assert len(laid) >= 2 and all(whole for _, whole in laid)
        assert len(there) == len(set(there)) >= store.mender.statistics().columns_mended
        assert store.mender.mending.ahead is None
        slots_add_up(store)
        await all_right(volume, NAMES)
    run_check(paths)


@pytest.mark.trio
async def test_what_was_laid_ahead_in_vain_is_given_back(tmp_path, monkeypatch, idle, laid):
    """The work is paused when it is about to go on with it; and one piece of it is all there was
    room for."""
    paths, full, paused = make_members(tmp_path / "v", 4, "6"), [False], []
    real_create, real_fill = DirectoryMember.column_create, Mending._fill

    def create(self, zone, column, slot, nbytes):
        if full[0]:
            raise MemberFull(f"{self.path}: no room", self.path)
        real_create(self, zone, column, slot, nbytes)

    async def fill(self, work):
        full[0] = not laid  # the first time, what is laid ahead finds no room
        done = await real_fill(self, work)
        full[0] = False
        if len(laid) == 2 and not paused:
            paused.append(True)
            self.store.mender.paused = True
        return done

    monkeypatch.setattr(DirectoryMember, "column_create", create)
    monkeypatch.setattr(Mending, "_fill", fill)
    async with mounted(paths) as volume:
        store = volume.store
        for name in NAMES:
            await write(volume, name)
        await store.losses.fail_member(1, "a test")
        await store.losses.fail_member(2, "a test")
        places = [fresh(tmp_path, "new1"), fresh(tmp_path, "new2")]
        numbers = [await add(store, place, replaces=[at + 1]) for at, place in enumerate(places)]
        with trio.fail_after(20):
            while not (store.mender.paused and not store.mender.statistics().working):
                await trio.sleep(0.01)
        assert not laid[0][1] and laid[1][1]
        assert store.mender.mending.ahead is None and store.mender.lacking()
        slots_add_up(store)
        for place, number in zip(places, numbers, strict=True):
            columns = [
                f"{zone.map.zone:08x}.{column}"
                for zone in store.space.zones.values()
                for column, (member, _) in enumerate(zone.map.columns)
                if member == number
            ]
            assert files_of(place) == sorted(columns)
        await store.mender.set(paused=False)
        await mended(store)
        await all_right(volume, NAMES)
    run_check(paths)


@pytest.mark.trio
async def test_a_place_that_fails_beside_what_is_laid_ahead(tmp_path, monkeypatch, idle, laid):
    """It is lost, another takes its place, and nothing stays taken."""
    paths, broken = make_members(tmp_path / "v", 4, "6"), []
    new = fresh(tmp_path, "new")
    real = DirectoryMember.column_sync

    def sync(self, zone, column, slot):
        if self.path == str(new) and len(laid) >= 1:
            broken.append(zone)
            raise MemberError(f"{self.path}: it broke", self.path, errno.EIO)
        real(self, zone, column, slot)

    async with mounted(paths) as volume:
        store = volume.store
        for name in NAMES:
            await write(volume, name)
        await store.losses.fail_member(1, "a test")
        monkeypatch.setattr(DirectoryMember, "column_sync", sync)
        number = await add(store, new, replaces=[1])
        with trio.fail_after(20):
            while store.membership.entry(number).state != "failed":
                await trio.sleep(0.01)
        await add(store, fresh(tmp_path, "other"), replaces=[number])
        await mended(store)
        assert broken and store.mender.mending.ahead is None
        await all_right(volume, NAMES)
        slots_add_up(store)
    assert not check_volume(paths[0]).findings
