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
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from simulated import WRITE_KINDS, Image, World, members_of
from simulated_volume import SLOTS, assembly_of, fresh_files, in_simulated_time, inline
from workload import Model, Tree, Workload, read_tree

from raidfs.check import check_assembly
from raidfs.fs.volume import Volume
from raidfs.raid.code import code_for
from raidfs.store.store import Store

SHAPES = [("5", 5), ("6", 6), ("1", 3), ("10", 4), ("rs:3+3", 6), ("3", 4), ("2", 7), ("0", 2)]


@dataclass(frozen=True)
class Failure:
    """A member's writes of these kinds fail once it has done `after` of any kind."""

    member: int
    after: int
    kinds: frozenset[str] = WRITE_KINDS


class Recording:
    """One run of a workload: the world's log, and the model at each cut."""

    def __init__(
        self,
        level: str,
        count: int,
        seed: int,
        steps: int,
        failures: tuple[Failure, ...] = (),
        **options: Any,
    ) -> None:
        self.level, self.count, self.seed, self.steps = level, count, seed, steps
        self.failures = failures
        self.world = World(fresh_files(level, count, **options))
        self.options = options
        self.states: dict[int, Model] = {}

    async def run(self) -> None:
        numbers = list(range(self.count))
        members = members_of(self.world.files, self.world, numbers, slots=SLOTS, **self.options)
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembly_of(members), clock=clock, offload=inline)
        for failure in self.failures:
            members[failure.member].writes_left = failure.after
            members[failure.member].fails_then = failure.kinds
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
        self.writes = [member.writes for member in members]
        self.lost = set(store.assembly.lost)

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
    # What fails counts as lost, whether it is gone afterwards or there with what it holds.
    failing = [failure.member for failure in recording.failures]
    others = [n for n in range(recording.count) if n not in failing]
    lost = rng.sample(others, rng.randint(0, tolerance - len(failing)))
    lost += [n for n in failing if rng.random() < 0.5]
    numbers = [n for n in range(recording.count) if n not in lost]
    where = (
        f"level {recording.level}, run seed {recording.seed}, {recording.failures}, log position "
        f"{position}, crash seed {seed}, lost {lost}"
    )
    files = image.crash(seed)
    try:
        durable, tree = in_simulated_time(
            lambda: recover(files, numbers, **recording.options), seed=seed
        )
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r}") from error
    assert durable >= acknowledged, f"{where}: went back to {durable}, {acknowledged} was promised"
    assert tree == recording.states[durable].tree(), where


def record(
    level: str,
    count: int,
    seed: int,
    steps: int,
    failures: tuple[Failure, ...] = (),
    **options: Any,
) -> Recording:
    recording = Recording(level, count, seed, steps, failures, **options)
    in_simulated_time(recording.run, seed=seed)
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
    recording = record(level, count, base_seed(), 80)
    for number, point in enumerate(recording.points()):
        verify(recording, point, base_seed() * 1000 + number)
    for seed in (0, 1):
        verify(recording, point, seed)


KINDS = [WRITE_KINDS, *(frozenset({kind}) for kind in sorted(WRITE_KINDS - {"create"}))]


def record_failing(level: str, count: int, seed: int, steps: int) -> Recording:
    """A run during which members fail, at any of their writes, as many as may."""
    rng = random.Random(seed)
    writes = record(level, count, seed, 1).writes[0], record(level, count, seed, steps).writes[0]
    failures = tuple(
        Failure(member, rng.randrange(*writes), rng.choice(KINDS) if seed % 4 else WRITE_KINDS)
        for member in rng.sample(range(count), rng.randint(1, code_for(level, count).tolerance))
    )
    return record(level, count, seed, steps, failures)


def test_a_failing_member_smoke() -> None:
    recording = record_failing("6", 5, base_seed(), 60)
    assert recording.lost <= {failure.member for failure in recording.failures}
    every = max(1, sum(1 for _ in recording.points()) // 10)
    for number, point in enumerate(itertools.islice(recording.points(), 0, None, every)):
        verify(recording, point, number)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "count"), [s for s in SHAPES if s[0] != "0"] + [("1", 2)])
def test_members_fail_and_then_a_crash(level: str, count: int) -> None:
    """A member that failed counts as lost, and is not believed when it is there again."""
    seen = 0
    for seed in range(base_seed(), base_seed() + 3):
        recording = record_failing(level, count, seed, 80)
        seen += len(recording.lost)
        every = max(1, sum(1 for _ in recording.points()) // 15)
        for number, point in enumerate(itertools.islice(recording.points(), 0, None, every)):
            verify(recording, point, seed * 1000 + number)
    assert seen
