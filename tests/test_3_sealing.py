"""Flushes over real members, where an engine writes: order, faults, past the page cache."""

import os
import random
import shutil
import subprocess

import pytest
import trio
import trio.testing
from checking import run_check
from volumes import ROOT, Clock, content, make_members, mounted

from raidfs.check import check_volume
from raidfs.errors import UsageError
from raidfs.raid.assembly import Assembly
from raidfs.raid.create import plan_volume
from raidfs.store.make import make_volume
from raidfs.store.mirror import Mirror
from raidfs.store.store import in_thread

WRITE, SYNC = 1, 2
CELL = 4096


def new_file(volume, name):
    return volume.create(1, name, 0o644, os.O_RDWR, ROOT).ino


class Watch:
    """What the engine was asked, and what the log's syncs found unsynced then."""

    def __init__(self, store, monkeypatch):
        self.unsynced = set()
        self.written = 0
        self.log_syncs = 0
        self.calls = []
        real_run, real_sync = store.engine.run, Mirror.sync_wal

        async def run(batch):
            names = [(row[0], os.readlink(f"/proc/self/fd/{row[1]}")) for row in batch._rows]
            await real_run(batch)
            assert batch.errors() == {}
            for op, name in names:
                assert op in (WRITE, SYNC)
                self.written += op == WRITE
                (self.unsynced.add if op == WRITE else self.unsynced.discard)(name)

        def sync_wal(mirror):
            assert not self.unsynced
            self.log_syncs += 1
            real_sync(mirror)

        monkeypatch.setattr(store.engine, "run", run)
        monkeypatch.setattr(Mirror, "sync_wal", sync_wal)


@pytest.mark.trio
async def test_columns_are_synced_before_the_metadata_says_so(tmp_path, monkeypatch):
    paths = make_members(tmp_path, 4)
    chooser = random.Random(1)
    async with mounted(paths) as volume:
        watch = Watch(volume.store, monkeypatch)
        ino = new_file(volume, b"file")
        for turn in range(25):  # zones of 1 MiB a column: many flushes have several bursts
            for _ in range(chooser.choice((1, 2, 5))):
                pages = chooser.choice((1, 3, 60, 256))
                offset = chooser.randrange(1500) * CELL
                await volume.write(ino, offset, bytes([turn]) * (pages * CELL))
            await volume.fsync(ino)
            assert not watch.unsynced
        assert watch.written > 100 and watch.log_syncs >= 25
    run_check(paths)


@pytest.mark.trio
async def test_a_small_flush_needs_a_thread_for_the_log_alone(tmp_path):
    paths = make_members(tmp_path, 3)
    calls = []

    async def offload(function, *args):
        calls.append(getattr(function, "__name__", "") or function.func.__name__)
        return await in_thread(function, *args)

    async with mounted(paths, store_options={"offload": offload}) as volume:
        ino = new_file(volume, b"file")
        await volume.write(ino, 0, b"x" * (4 * CELL))
        await volume.fsync(ino)
        await trio.testing.wait_all_tasks_blocked(0.05)
        del calls[:]
        await volume.write(ino, 0, b"y" * (4 * CELL))
        await volume.fsync(ino)
        assert not [name for name in calls if name in ("write_in_thread", "encode", "sync")]
        await volume.write(ino, 0, b"z" * (1 << 20))
        await volume.fsync(ino)
        assert calls.count("encode") == 1


@pytest.mark.trio
async def test_a_member_that_fails_a_flush_leaves(tmp_path):
    """Its columns vanish under open descriptors: the sync comes too late."""
    paths = make_members(tmp_path, 4, "6")
    async with mounted(paths) as volume:
        ino = new_file(volume, b"file")
        await volume.write(ino, 0, b"a" * (40 * CELL))
        await volume.fsync(ino)
        shutil.rmtree(f"{paths[2]}/zones")
        await volume.write(ino, 0, b"b" * (41 * CELL))
        await volume.fsync(ino)
        store = volume.store
        assert store.failed is None
        state = store.array.states[2]
        assert state.state == "failed" and state.write_errors >= 1
        assert "failed: no such file" in state.write_error and paths[2] in state.write_error
        assert store.assembly.label.entry(2).state == "failed"
        assert await content(volume, ino) == b"b" * (41 * CELL)
    async with mounted(paths) as volume:
        assert await content(volume, ino) == b"b" * (41 * CELL)
    report = check_volume(paths[0])
    assert not report.findings and [note.code for note in report.notes] == ["member.lost"]


def make_images(directory, count, level):
    paths = [str(directory / f"image{number}") for number in range(count)]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(96 << 20)
    make_volume(plan_volume(paths, level=level, zone_bytes=1 << 20), now_ns=Clock())
    return paths


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["directory", "image"])
async def test_past_the_page_cache(tmp_path, kind):
    """The same content comes back, from whole rows and from rows with lost and damaged cells."""
    make = make_members if kind == "directory" else make_images
    paths = make(tmp_path, 5, "6")
    model = bytearray(3 << 20)
    chooser = random.Random(7)
    async with mounted(paths, direct=True) as volume:
        assert all(member.direct for member in volume.store.assembly.members.values())
        ino = new_file(volume, b"file")
        for _ in range(60):
            nbytes = chooser.choice((1, 1000, CELL, 3 * CELL + 5, 300_000))
            offset = chooser.randrange(len(model) - nbytes)
            data = chooser.randbytes(nbytes)
            model[offset : offset + nbytes] = data
            await volume.write(ino, offset, data)
            if chooser.random() < 0.4:
                await volume.fsync(ino)
        size = volume.getattr(ino).size
        for _ in range(40):
            nbytes = chooser.choice((1, 1000, CELL, 300_000))
            offset = chooser.randrange(size)
            want = bytes(model[offset : min(offset + nbytes, size)])
            assert bytes(await volume.read(ino, offset, nbytes)) == want
    run_check(paths)
    async with mounted(paths, direct=True) as volume:
        store = volume.store
        await store.losses.fail_member(1, "by the test")
        damage(store, 3)
        assert await content(volume, ino) == bytes(model[:size])
        assert store.array.statistics().cells_healed > 0
        await volume.write(ino, 0, b"degraded" * 10_000)
        model[:80_000] = b"degraded" * 10_000
        await volume.fsync(ino)
        assert await content(volume, ino) == bytes(model[:size])
    async with mounted(paths, direct=True, read_only=True) as volume:
        assert await content(volume, ino) == bytes(model[:size])
    for finding in check_volume(paths[0]).findings:  # what no read came across is still damaged
        assert finding.code == "cell.damaged" and "(member 3): its row can" in finding.text


def damage(store, member_id):
    """Zeros over what one member holds of every zone, behind its back."""
    member = store.array.states[member_id].member
    for zone in store.space.zones.values():
        for column, (holder, slot) in enumerate(zone.map.columns):
            if holder != member_id:
                continue
            with member.column_borrow(zone.map.zone, column, slot) as place:
                name, offset = os.readlink(f"/proc/self/fd/{place.fd}"), place.offset_bytes
            with open(name, "r+b") as file:
                file.seek(offset)
                file.write(bytes(zone.map.rows * CELL))
                os.fsync(file.fileno())


def test_a_member_that_can_not_be_used_directly_is_not_lost_for_it(tmp_path):
    paths = make_members(tmp_path, 3, size_bytes=8 << 20)
    shutil.move(paths[1], tmp_path / "away")
    os.mkdir(paths[1])
    subprocess.run(["mount", "-t", "ramfs", "none", paths[1]], check=True)
    try:
        shutil.copytree(tmp_path / "away", paths[1], dirs_exist_ok=True)
        with pytest.raises(UsageError, match=r"member1: .*mount without -o direct"):
            Assembly.open(paths[0], direct=True)
        again = Assembly.open(paths[0])  # nothing is locked, and nobody is missing
        assert not again.lost and again.label.generation == 1
        again.close()
        run_check(paths)
    finally:
        subprocess.run(["umount", paths[1]], check=True)
