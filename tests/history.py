"""A workload with snapshots, and for each of them the model's copy from the instant of its cut.

    history = History(volume, seed)
    history.watch()
    await history.step()              an operation on files, as in workload.py
    await history.snapshot_step(nursery)     take, rename, hold, delete, go back, copy out, clean
    await history.compare()           every snapshot, and the present, through the volume

A snapshot is deleted in the model in the moment in which it is gone from the volume.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from workload import Model, Workload, read_tree

from raidfs.errors import FsError, NoSuchSnapshot, RaidfsError, SnapshotHeld
from raidfs.fs.rollback import rollback
from raidfs.fs.volume import Volume
from raidfs.store.past import as_view
from raidfs.store.snapshot_rows import Snapshot
from raidfs.store.survey import survey

TAKEN_MAX = 12


class History(Workload):
    """See the module. `at_cut`: the model at each cut; `kept`: as of each snapshot, by name."""

    def __init__(self, volume: Volume, seed: int, model: Model | None = None) -> None:
        super().__init__(volume, seed, model)
        self.snapshots = volume.store.snapshots
        self.at_cut: dict[int, Model] = {volume.store.durable: self.model.copy()}
        self.kept: dict[str, Model] = {}
        self.held: set[str] = set()
        self.under_way = 0  # snapshots that others are taking
        self.cleaned = 0  # zones that were emptied
        self._cleaning = False
        self._names = 0

    def carry_on(self, other: History) -> None:
        """After a new mount of the same volume."""
        self.model, self.kept, self.held = other.model, other.kept, other.held
        self._names, self.cleaned = other._names, other.cleaned
        self.at_cut = {self.volume.store.durable: self.model.copy()}

    def watch(self) -> None:
        """Keep a copy of the model inside each cut."""
        store = self.volume.store
        save = store.on_cut

        def on_cut(sealed: Any) -> None:
            save(sealed)
            self.at_cut[sealed.generation] = self.model.copy()

        store.on_cut = on_cut

    def forget_before(self, epoch: int) -> None:
        """Cuts that no crash can bring back, and that no snapshot is to be made of."""
        self.at_cut = {e: model for e, model in self.at_cut.items() if e >= epoch}

    # -- snapshots --------------------------------------------------------------------------------

    async def snapshot_step(self, nursery: trio.Nursery) -> str:
        """One thing done with snapshots; returns what. Some are taken in the nursery, so that files
        change between the cut and the moment in which it is durable."""
        few = len(self.kept) < TAKEN_MAX
        if few and self.random.random() < 0.2:
            self.under_way += 1
            nursery.start_soon(self._take_meanwhile, self.new_name())
            return "take meanwhile"
        if not self._cleaning and self.random.random() < 0.2:
            self._cleaning = True
            nursery.start_soon(self._clean)
            return "clean"
        names = ("take",) * (5 if few else 1) + ("delete", "delete", "rename", "hold", "reuse")
        names += ("go_back",) * 2 + ("copy_out",) * 5 + ("look",)
        name = self.random.choice(names)
        await getattr(self, f"_{name}_snapshot")()
        return name

    def new_name(self) -> str:
        self._names += 1
        return f"{self.random.choice(('daily', 'Größe ', 'x.'))}{self._names}"

    def pick_snapshot(self) -> str | None:
        return self.random.choice(sorted(self.kept)) if self.kept else None

    async def take(self, name: str) -> Snapshot:
        """Nothing that was told before is missing, nothing is there that was told after."""
        store = self.volume.store
        first = store.epoch
        taken = await self.snapshots.create(name)
        self.kept[name] = self.at_cut[taken.epoch]
        assert taken == self.snapshots.find(name) and first <= taken.epoch <= store.durable
        return taken

    async def _take_meanwhile(self, name: str) -> None:
        try:
            await self.take(name)
        finally:
            self.under_way -= 1

    async def _clean(self) -> None:
        """The cleaner empties a zone, as it would if room were scarce. It may give up, when what
        lives there comes to be shared, or changes, again and again."""
        store = self.volume.store
        cleaner, space = store.cleaner, store.space
        zones = cleaner._candidates()
        self.random.shuffle(zones)
        try:
            for zone in zones[:2]:
                live = await survey(store.meta, zone, store.offload)
                if (
                    zone not in cleaner._candidates()
                    or len(live.live.cells) == zone.map.rows * zone.map.code.k
                ):
                    continue
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(space.reserve, "wanted", lambda: space.reserve.spare is None)
                    await space.grow(space.reserve.wanted)
                    self.cleaned += await cleaner._clean(zone)
            assert cleaner.broken is None
        finally:
            self._cleaning = False

    async def _take_snapshot(self) -> None:
        await self.take(self.new_name())

    async def _delete_snapshot(self) -> None:
        names = self.random.sample(sorted(self.kept), min(len(self.kept), self._some()))
        ids = [self.snapshots.find(name).id for name in names]
        if self.held.intersection(names):
            try:
                await self.snapshots.delete(names)
            except SnapshotHeld:
                return
            raise AssertionError(f"one of {names} is held")
        await self.snapshots.delete(names)
        for name, number in zip(names, ids, strict=True):
            del self.kept[name]
            await self._is_gone(name, number)

    def _some(self) -> int:
        return self.random.choice((1, 1, 2, 5))

    async def _is_gone(self, name: str, number: int) -> None:
        try:
            self.snapshots.find(name)
        except NoSuchSnapshot:
            pass
        else:
            raise AssertionError(f"{name} is still there")
        try:
            self.volume.getattr(as_view(number, 1))
        except (FsError, RaidfsError):
            return
        raise AssertionError(f"{name} can still be looked at")

    async def _rename_snapshot(self) -> None:
        old = self.pick_snapshot()
        if old is not None:
            new = self.new_name()
            await self.snapshots.rename(old, new)
            self.kept[new] = self.kept.pop(old)
            if old in self.held:
                self.held = self.held - {old} | {new}

    async def _reuse_snapshot(self) -> None:
        """A name that was given up is given again, to another state."""
        name = self.pick_snapshot()
        if name is not None and name not in self.held:
            await self.snapshots.delete([name])
            del self.kept[name]
            await self.take(name)

    async def _hold_snapshot(self) -> None:
        name = self.pick_snapshot()
        if name in self.held:
            await self.snapshots.release(name, "why")
            self.held.discard(name)
        elif name is not None:
            await self.snapshots.hold(name, "why")
            self.held.add(name)

    async def _copy_out_snapshot(self) -> None:
        """What a file held then comes into a file of the present; the cells are shared."""
        name, target = self.pick_snapshot(), self._pick("file")
        if name is None or target is None:
            return
        then = self.kept[name]
        files = [p for p, n in sorted(then.names.items()) if then.files[n].kind == "file"]
        if not files:
            return
        source = max(
            self.random.choice(files),
            self.random.choice(files),
            key=lambda path: len(then.files[then.names[path]].content),
        )
        want = then.files[then.names[source]].content
        root = as_view(self.snapshots.find(name).id, 1)
        inos, done = (self._ino(source, root), self._ino(target)), 0
        new = self.model.names[target]
        while done < len(want):
            places = (inos[0], done, inos[1], done, len(want) - done)
            got = await self.volume.copy_range(*places)
            assert got > 0
            self._patch(new, done, want[done : done + got])
            done += got

    async def _go_back_snapshot(self) -> None:
        """Rollback; sometimes the newer ones go with it, and sometimes the present stays."""
        name = self.pick_snapshot()
        if name is None:
            return
        await self._alone()
        epoch = self.snapshots.find(name).epoch
        newer = {row.name for row in self.snapshots.all() if row.epoch > epoch}
        delete = self.random.random() < 0.3
        keep = self.new_name() if self.random.random() < 0.4 else None
        try:
            done = await rollback(self.volume, name, delete_newer=delete, keep=keep)
        except SnapshotHeld:
            assert delete and newer & self.held
            return
        assert not (delete and newer & self.held)
        if keep is not None:
            self.kept[keep] = self.model
        self.model = self.kept[name].copy()
        for epoch in self.at_cut:  # whoever cut later saw that state
            if epoch >= done.epoch:
                self.at_cut[epoch] = self.model.copy()
        assert set(done.deleted) == (newer if delete else set())
        for gone in done.deleted:
            del self.kept[gone]

    async def _look_snapshot(self) -> None:
        name = self.pick_snapshot()
        if name is not None:
            await self.compare_snapshot(name)

    # -- comparing --------------------------------------------------------------------------------

    async def compare_snapshot(self, name: str) -> None:
        root = as_view(self.snapshots.find(name).id, 1)
        assert await read_tree(self.volume, root) == self.kept[name].tree(), name

    async def _alone(self) -> None:
        """Nobody takes a snapshot."""
        while self.under_way:
            await trio.sleep(0.01)

    async def settle(self) -> None:
        """Returns when nothing goes on in the background."""
        while self.under_way or self._cleaning:
            await trio.sleep(0.01)

    async def compare(self) -> None:
        """All that there is."""
        await self._alone()
        assert {row.name for row in self.snapshots.all()} == set(self.kept)
        for name in self.kept:
            await self.compare_snapshot(name)
            await trio.lowlevel.checkpoint()
        assert await read_tree(self.volume) == self.model.tree()
