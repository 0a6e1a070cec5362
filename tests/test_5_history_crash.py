"""Promise 4 with snapshots: cut off anywhere, with unsynced writes kept, dropped or torn and
members lost, the volume mounts to exactly one cut with exactly the snapshots that there were then,
each with what it had; nothing of an unfinished deletion is left when the mount has swept up, and
the checker finds nothing. RAIDFS_HISTORY_SEED replays one seed.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from history import History
from simulated import Image, World, members_of
from simulated_volume import SLOTS, assembly_of, fresh_files, in_simulated_time, inline
from workload import read_tree

from raidfs.check import check_assembly
from raidfs.fs.volume import Volume
from raidfs.raid.code import code_for
from raidfs.store.past import as_view
from raidfs.store.store import Store

SEED = int(os.environ.get("RAIDFS_HISTORY_SEED", "30"))


class Recording:
    """One run: the world's log; the model at each cut; and by each epoch that became durable, the
    snapshots that there were, with their epochs."""

    def __init__(self, level: str, count: int, seed: int, steps: int) -> None:
        self.level, self.count, self.seed, self.steps = level, count, seed, steps
        self.world = World(fresh_files(level, count))
        self.named: dict[int, dict[str, int]] = {}

    async def run(self) -> None:
        numbers = list(range(self.count))
        members = members_of(self.world.files, self.world, numbers, slots=SLOTS)
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembly_of(members), clock=clock, offload=inline)
        self.history = History(Volume(store), self.seed)
        self.history.watch()
        self._watch(store)
        rng = random.Random(self.seed + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            for _ in range(self.steps):
                if rng.random() < 0.3:
                    await self.history.snapshot_step(nursery)
                    self.world.mark(store.durable)
                else:
                    await self.history.step()
                await trio.sleep(rng.choice((0, 0.004, 0.02)))
                if rng.random() < 0.05:
                    await trio.sleep(6)  # the flusher's interval passes
            await self.history.compare()
            await self.history.settle()
            await store.stop()
            self.world.mark(store.durable)

    def _watch(self, store: Store) -> None:
        """What names there are when an epoch is committed."""
        self.named[store.durable] = {}
        commit = store.meta.commit

        def noted(durable: int | None) -> None:
            commit(durable)
            if durable is not None:
                self.named[durable] = {row.name: row.epoch for row in store.snapshots.all()}

        store.meta.commit = noted  # type: ignore[method-assign]

    def points(self) -> Iterator[tuple[int, Image, int]]:
        """(position, image, last acknowledged epoch) before each sync; an image is good until the
        next is asked for."""
        for position, image, marks in self.world.images():
            yield position, image, max(marks, default=1)


def record(level: str, count: int, seed: int, steps: int) -> Recording:
    recording = Recording(level, count, seed, steps)
    in_simulated_time(recording.run, seed=seed)
    return recording


def check_before(files: dict[Any, bytes], numbers: list[int]) -> None:
    """What the next mount would find has no findings either; an unfinished rollback is undone.
    That copies of the metadata differ is what a crash leaves, and a mount heals."""
    members = members_of(files, World(), numbers, slots=SLOTS)
    report = check_assembly(assembly_of(members, read_only=True))
    found = [each for each in report.findings if not each.code.startswith("metadata.")]
    assert not found, found[:10]


async def recover(recording: Recording, files: dict[Any, bytes], numbers: list[int]) -> int:
    """Mount what a crash left, and compare all there is; sweep up; check. The epoch returned to."""
    members = members_of(files, World(), numbers, slots=SLOTS)
    store = await Store.open(assembly_of(members), offload=inline)
    durable = store.durable
    volume = Volume(store)
    names = {row.name: row.epoch for row in store.snapshots.all()}
    assert names == recording.named[durable], durable
    models = recording.history.at_cut
    assert await read_tree(volume) == models[durable].tree()
    for row in store.snapshots.all():
        assert await read_tree(volume, as_view(row.id, 1)) == models[row.epoch].tree(), row
    volume.reap_orphans()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await store.snapshots.swept()
        held = {row.name: await store.snapshots.alone_cells(row) for row in store.snapshots.all()}
        await store.stop()
    again = {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}
    members = members_of(again, World(), numbers, slots=SLOTS)
    report = check_assembly(assembly_of(members, read_only=True))
    assert not report.findings, report.findings[:10]
    assert not report.counts["condemned snapshots"]
    assert {name: each.alone for name, each in report.snapshots.items()} == held
    return durable


def verify(recording: Recording, point: tuple[int, Image, int], seed: int) -> None:
    """Crash at one point with one seed, lose m members on top, recover, compare."""
    position, image, acknowledged = point
    rng = random.Random(seed)
    tolerance = code_for(recording.level, recording.count).tolerance
    lost = rng.sample(range(recording.count), rng.randint(0, tolerance))
    numbers = [number for number in range(recording.count) if number not in lost]
    files = image.crash(seed)
    where = (
        f"level {recording.level}, run seed {recording.seed}, log position {position}, "
        f"crash seed {seed}, lost {lost}"
    )
    try:
        if seed % 4 == 0:
            check_before(files, numbers)
        durable = in_simulated_time(lambda: recover(recording, files, numbers), seed=seed)
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r}") from error
    assert durable >= acknowledged, f"{where}: back at {durable}, {acknowledged} was promised"


def test_crash_smoke() -> None:
    recording = record("5", 4, SEED, 60)
    every = max(1, sum(1 for _ in recording.points()) // 12)
    for number, point in enumerate(itertools.islice(recording.points(), 0, None, every)):
        verify(recording, point, number)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count", "steps"), [("5", 5, 90), ("6", 6, 50), ("1", 3, 80)])
def test_crash_at_every_sync(level: str, count: int, steps: int) -> None:
    recording = record(level, count, SEED, steps)
    for number, point in enumerate(recording.points()):
        verify(recording, point, SEED * 1000 + number)
