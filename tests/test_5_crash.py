"""Promises 4 and 5: cut off anywhere, with unsynced writes kept, dropped or torn, and m members
gone on top, the volume mounts to exactly one cut, not older than the last acknowledged one, and the
checker finds nothing.

A workload runs once on simulated members (simulated.py) and is then cut off just before every sync
takes effect. RAIDFS_CRASH_SEED replays one seed.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from simulated import FileKey, Image, SimulatedMember, World, members_of
from workload import Model, Tree, Workload, read_tree

from raidfs.check import check_assembly
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.code import code_for
from raidfs.raid.label import Label, MemberEntry, Parameters, write_label
from raidfs.store.meta import Meta
from raidfs.store.store import Store

SLOTS = 48
ZONE_BYTES = 64 << 10
SHAPES = [("5", 5), ("6", 6), ("1", 3), ("10", 4), ("rs:3+3", 6), ("3", 4), ("2", 7), ("0", 2)]


async def inline(function: Any, *args: Any) -> Any:
    """The simulator's offload: no thread, but on the clock of the simulation it takes a while, so
    that operations of the next epoch come between the steps of a flush."""
    await trio.sleep(0.01)
    result = function(*args)
    await trio.sleep(0.01)
    return result


def fresh_files(level: str, count: int, **options: Any) -> dict[FileKey, bytes]:
    """The files of a new volume."""
    setup = World()
    members = [SimulatedMember(setup, number, slots=SLOTS, **options) for number in range(count)]
    parameters = Parameters(level, count, 4096, ZONE_BYTES, 1 << 24, 1 << 24, 1)
    table = [MemberEntry(m.number, m.kind, m.path, SLOTS, SLOTS * ZONE_BYTES) for m in members]
    label = Label("ab" * 16, "crash", 0, 1, "cd" * 8, [(1, "cd" * 8)], table, parameters)
    Meta.create({m.number: m for m in members}, parameters, 1)
    for member in members:
        write_label(member, label.for_member(member.number))
    return {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}


def assembly_of(members: list[SimulatedMember], *, read_only: bool = False) -> Assembly:
    """What Assembly.open would decide, by the same tables, of members that are not files."""
    return Assembly.of_members(members, degraded=True, read_only=read_only)


class Recording:
    """One run of a workload: the world's log, and the model at each cut."""

    def __init__(self, level: str, count: int, seed: int, steps: int, **options: Any) -> None:
        self.level, self.count, self.seed, self.steps = level, count, seed, steps
        self.world = World(fresh_files(level, count, **options))
        self.options = options
        self.states: dict[int, Model] = {}

    async def run(self) -> None:
        numbers = list(range(self.count))
        members = members_of(self.world.files, self.world, numbers, slots=SLOTS, **self.options)
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembly_of(members), clock=clock, offload=inline)
        volume = Volume(store)
        workload = Workload(volume, self.seed)
        self._watch(store, workload)
        rng = random.Random(self.seed + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            for _ in range(self.steps):
                await workload.step()
                await trio.sleep(rng.choice((0, 0.004, 0.02)))
                what = rng.random()
                if what < 0.15:
                    nursery.start_soon(self._fsync, volume)
                elif what < 0.2:
                    await self._fsync(volume)
                elif what < 0.25:
                    await trio.sleep(6)  # the flusher's interval passes
            await store.stop()
            self.world.mark(store.durable)

    async def _fsync(self, volume: Volume) -> None:
        await volume.fsync(1)
        self.world.mark(volume.store.durable)

    def _watch(self, store: Store, workload: Workload) -> None:
        """Keep a copy of the model inside each cut."""
        self.states[store.durable] = workload.model.copy()
        save = store.on_cut

        def on_cut(sealed: Any) -> None:
            save(sealed)
            self.states[sealed.generation] = workload.model.copy()

        store.on_cut = on_cut

    def points(self) -> Iterator[tuple[int, Image, int]]:
        """(position, image, last acknowledged epoch) before each sync; an image is good until the
        next is asked for."""
        for position, image, marks in self.world.images():
            yield position, image, max(marks, default=1)


async def recover(files: dict[Any, bytes], numbers: list[int], **options: Any) -> tuple[int, Tree]:
    """Mount what a crash left; the epoch it returned to, and its content. Ends in check."""
    members = members_of(files, World(), numbers, slots=SLOTS, **options)
    store = await Store.open(assembly_of(members), offload=inline)
    durable = store.durable
    volume = Volume(store)
    tree = await read_tree(volume)
    volume.reap_orphans()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await store.stop()
    again = {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}
    members = members_of(again, World(), numbers, slots=SLOTS, **options)
    report = check_assembly(assembly_of(members, read_only=True))
    assert not report.findings, report.findings
    return durable, tree


def verify(recording: Recording, point: tuple[int, Image, int], seed: int) -> None:
    """Crash at one point with one seed, lose m members on top, recover, compare."""
    position, image, acknowledged = point
    rng = random.Random(seed)
    tolerance = code_for(recording.level, recording.count).tolerance
    lost = rng.sample(range(recording.count), rng.randint(0, tolerance))
    numbers = [n for n in range(recording.count) if n not in lost]
    where = (
        f"level {recording.level}, run seed {recording.seed}, log position {position}, crash seed "
        f"{seed}, lost {lost}"
    )
    files = image.crash(seed)
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        durable, tree = trio.run(lambda: recover(files, numbers, **recording.options), clock=clock)
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r}") from error
    assert durable >= acknowledged, f"{where}: went back to {durable}, {acknowledged} was promised"
    assert tree == recording.states[durable].tree(), where


def record(level: str, count: int, seed: int, steps: int, **options: Any) -> Recording:
    recording = Recording(level, count, seed, steps, **options)
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(recording.run, clock=clock)
    return recording


def base_seed() -> int:
    return int(os.environ.get("RAIDFS_CRASH_SEED", "20"))


def test_crash_smoke() -> None:
    recording = record("5", 4, base_seed(), 60)
    every = max(1, sum(1 for _ in recording.points()) // 12)
    for number, point in enumerate(itertools.islice(recording.points(), 0, None, every)):
        verify(recording, point, number)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), SHAPES)
def test_crash_at_every_sync(level: str, count: int) -> None:
    recording = record(level, count, base_seed(), 120)
    for number, point in enumerate(recording.points()):
        verify(recording, point, base_seed() * 1000 + number)
    for seed in (0, 1):
        verify(recording, point, seed)
