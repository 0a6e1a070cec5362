"""Snapshots against copies of the model from the instants of their cuts: while files go on
changing, after new mounts, deleted in any order, copied out of, gone back to, while zones are
cleaned; and what is told of the room that they hold, against a full count. Each run ends in check.

RAIDFS_HISTORY_SEED replays one seed.
"""

from __future__ import annotations

import os
import random

import pytest
import trio
from history import History
from simulated_volume import check, checked, in_simulated_time, mounted, new_members, reopened

SEED = int(os.environ.get("RAIDFS_HISTORY_SEED", "7"))


class Run:
    """One volume from its making to its last check; mounts come and go."""

    def __init__(self, level: str, count: int, seed: int) -> None:
        self.members = new_members(level, count)
        self.random = random.Random(seed)
        self.seed = seed
        self.history: History | None = None
        self.told: dict[str, int] = {}

    async def mount(self, steps: int) -> None:
        async with mounted(self.members) as volume:
            history = History(volume, self.random.randrange(1 << 30))
            if self.history is not None:
                history.carry_on(self.history)
                await history.compare()
            history.watch()
            self.history = history
            async with trio.open_nursery() as nursery:
                for _ in range(steps):
                    if self.random.random() < 0.2:
                        await history.snapshot_step(nursery)
                    else:
                        await history.step()
            await history.compare()
            await volume.store.commit()
            await history.snapshots.swept()
            self.told = {
                row.name: await history.snapshots.alone_cells(row)
                for row in history.snapshots.all()
            }

    def look(self) -> dict[str, int]:
        """Check finds nothing, and counts what was told; returns its counts."""
        report = check(self.members)
        assert not report.findings, report.findings[:10]
        assert self.history is not None
        assert {name: held.alone for name, held in report.snapshots.items()} == self.told
        assert set(self.told) == set(self.history.kept)
        assert not report.counts["condemned snapshots"]
        return report.counts

    async def delete(self, names: list[str]) -> int:
        """What was told to become free."""
        async with mounted(self.members) as volume:
            snapshots = volume.store.snapshots
            rows = [snapshots.find(name) for name in names]
            freed = await snapshots.freed_cells(rows)
            for row in rows:
                for tag in row.holds:
                    await snapshots.release(row.name, tag)
            await snapshots.delete(names)
            await snapshots.swept()
            assert self.history is not None
            for name in names:
                del self.history.kept[name]
            self.told = {row.name: await snapshots.alone_cells(row) for row in snapshots.all()}
            return int(freed)

    def delete_and_count(self, names: list[str]) -> None:
        before = self.look()["cells in use"]
        freed = in_simulated_time(lambda: self.delete(names), seed=self.seed)
        assert self.look()["cells in use"] == before - freed, names

    def whole(self, mounts: int, steps: int) -> None:
        for _ in range(mounts):
            in_simulated_time(lambda: self.mount(steps), seed=self.seed)
            self.look()
            self.members = reopened(self.members)
        assert self.history is not None
        names = sorted(self.history.kept)
        self.random.shuffle(names)
        while names:
            some = self.random.randint(1, 4)
            self.delete_and_count(names[:some])
            names = names[some:]
        counts = self.look()
        assert counts["snapshots"] == 0
        self._nothing_dead()

    def _nothing_dead(self) -> None:
        """With the last snapshot went the last version that only snapshots saw."""

        async def count() -> None:
            async with mounted(self.members) as volume:
                for table in ("inode", "dirent", "xattr", "leaf"):
                    after = volume.store.meta.dead_from(table, 0)
                    assert volume.store.meta.dead(table, after, 1 << 62, 10) == []

        in_simulated_time(count)
        checked(self.members)


def test_history_smoke() -> None:
    run = Run("5", 4, SEED)
    run.whole(mounts=2, steps=80)
    assert run.history is not None and run.history.cleaned


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_histories(seed: int) -> None:
    run = Run(*(("1", 2), ("5", 5), ("6", 6), ("10", 4))[seed], seed)
    run.whole(mounts=3, steps=150)
    assert run.history is not None and run.history.cleaned
