"""Members come, go, are lost, replaced and back again, and a crash comes before any sync takes
effect; unsynced writes are kept, dropped or torn. After reopening the volume is one cut, none older
than what was acknowledged, the work that was under way goes on and ends, `check` finds nothing, and
then as many members may be lost as the level survives.

A life is run once on simulated members and cut off afterwards, as in test_5_crash.py.
RAIDFS_CRASH_SEED replays one seed; RAIDFS_CRASH_ALL=1 cuts at every sync, not at some.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from simulated import Image, Record, SimulatedMember, World, members_of
from simulated_volume import CELL_BYTES, SLOTS, ZONE_BYTES, fresh_files, in_simulated_time, inline
from test_3_works import told_once
from workload import ME, File, Model, Tree, Workload, read_tree

from raidfs.check import check_assembly
from raidfs.errors import LabelError, UsageError
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.code import code_for
from raidfs.raid.label import MemberEntry, read_labels
from raidfs.raid.member import MetaFile
from raidfs.store import membership, mending
from raidfs.store.membership import Membership
from raidfs.store.mending import Mending
from raidfs.store.mirror import Mirror
from raidfs.store.space import Space
from raidfs.store.store import Store

SEED = int(os.environ.get("RAIDFS_CRASH_SEED", "30"))
ALL = os.environ.get("RAIDFS_CRASH_ALL") == "1"


def line(store: Store, member: SimulatedMember, **options: Any) -> MemberEntry:
    """Of a new member."""
    number = store.assembly.label.next_member
    assert number == member.number
    slots = member.slots_total
    return MemberEntry(number, "image", member.path, slots, slots * ZONE_BYTES, **options)


def nothing(done: int, total: int) -> None:
    """Whoever wants to know how far it is."""


def assembled(members: list[SimulatedMember], *, read_only: bool = False) -> Assembly:
    """Of those that have a label."""
    labelled = []
    for member in members:
        try:
            read_labels(member)
        except LabelError:
            continue
        labelled.append(member)
    return Assembly.of_members(labelled, degraded=True, read_only=read_only)


async def settled(store: Store) -> None:
    """Nothing is left that the mender, or a change of shape, can do."""
    with trio.move_on_after(600):
        while True:
            table = store.assembly.label.members
            told = store.mender.statistics()
            heirs = {entry.replaces for entry in table}
            going = any(e.role == "leaving" or (e.id in heirs and not e.is_current) for e in table)
            shaped = store.reshape.statistics().state in ("running", "waiting")
            if not (store.mender.lacking() or told.working or going or shaped):
                return
            if told.stalled.startswith("no member") and not told.working:
                return
            assert told.broken is None and store.failed is None, (told, store.failed)
            await trio.sleep(0.05)
    raise AssertionError(f"it doesn't end: {told}, {table}, {store.mender.lacking()}")


@dataclass
class Life:
    """What happens, in one volume with members of a world. `others`: not members at first."""

    volume: Volume
    members: list[SimulatedMember]
    count: int
    seed: int

    @property
    def store(self) -> Store:
        return self.volume.store

    async def add(self, number: int, **options: Any) -> None:
        member = self.members[number]
        await self.store.membership.add(line(self.store, member, **options), member, nothing)

    async def back(self, number: int) -> bool:
        return await self.store.membership.back(number, self.members[number], nothing)

    async def fail(self, number: int) -> None:
        await self.store.losses.fail_member(number, "a test")

    async def later(self) -> None:
        """Time for users to write."""
        await trio.sleep(1.5)


async def add(life: Life) -> None:
    await life.add(life.count)
    await life.later()


async def back(life: Life) -> None:
    await life.fail(1)
    await life.later()
    assert await life.back(1)


async def back_twice(life: Life) -> None:
    for _ in range(2):
        await life.fail(1)
        await life.later()
        assert await life.back(1)
        await trio.sleep(0.2)


async def back_as_it_was(life: Life) -> None:
    """A copy that somebody had made earlier."""
    copy = {name: bytes(content) for name, content in life.members[1].files.items()}
    await life.later()
    await life.volume.fsync(1)
    await life.fail(1)
    await life.later()
    rewind(life.members[1], copy)
    assert not await life.back(1)


async def replace_lost(life: Life) -> None:
    await life.fail(1)
    await life.later()
    await life.add(life.count, replaces=1)


async def replace_there(life: Life) -> None:
    await life.add(life.count, replaces=0)
    await life.store.membership.change(0, role="leaving")


async def spare(life: Life) -> None:
    await life.add(life.count, role="spare")
    await life.later()
    await life.fail(1)


async def spread(life: Life) -> None:
    """There are more members than a zone has columns."""
    await life.fail(1)


async def leave(life: Life) -> None:
    await life.store.membership.change(0, role="leaving")
    life.store.mender.works.evacuates(0, "a test")


async def two_at_once(life: Life) -> None:
    await life.fail(0)
    await life.fail(1)
    await life.add(life.count, replaces=0)
    await life.add(life.count + 1, replaces=1)


async def heir_fails(life: Life) -> None:
    await life.fail(1)
    await life.add(life.count, replaces=1)
    await trio.sleep(0.3)
    await life.fail(life.count)
    await life.add(life.count + 1, replaces=life.count)


async def back_while_rebuilt(life: Life) -> None:
    await life.fail(1)
    await life.later()
    await life.add(life.count, replaces=1)
    await trio.sleep(0.1)
    if any(entry.id == 1 for entry in life.store.assembly.label.members):
        await life.back(1)


async def something(life: Life, rng: random.Random) -> None:
    store = life.store
    table = store.assembly.label.members
    there = [entry.id for entry in table if entry.is_current and entry.role == "data"]
    lost = [entry.id for entry in table if entry.state == "failed"]
    what = rng.choice(("fail", "fail", "back", "add", "add", "leave"))
    if what == "fail" and (able := [m for m in there if store.space.affordable(m)]):
        await life.fail(rng.choice(able))
    elif what == "back" and lost:
        await life.back(rng.choice(lost))
    elif what == "add" and store.assembly.label.next_member < len(life.members):
        heir = {"replaces": rng.choice(lost)} if lost and rng.random() < 0.7 else {}
        role = "data" if heir else rng.choice(("data", "spare"))
        await life.add(store.assembly.label.next_member, role=role, **heir)
    elif what == "leave" and len(there) > store.parameters.width:
        await store.membership.change(rng.choice(there), role="leaving")


async def anything(life: Life) -> None:
    """Members fail, are back, come and go at random, as far as what is stored allows."""
    rng, store = random.Random(life.seed), life.store
    for _ in range(10):
        await trio.sleep(rng.choice((0.0, 0.05, 0.3, 1.0)))
        with contextlib.suppress(UsageError):  # who is replaced may be none any more by then
            await something(life, rng)
    while lost := [e.id for e in store.assembly.label.members if e.state == "failed"]:
        with contextlib.suppress(UsageError):  # it may be replaced, and none, by now
            await life.back(lost[0])


def rewind(member: SimulatedMember, files: dict[str, bytes]) -> None:
    """It holds these files, synced, and no others."""
    for name in {*files, *member.files}:
        key = (member.number, name)
        if name in files:
            member.world.add(Record("create", key, len(files[name])))
            member.world.add(Record("write", key, 0, files[name]))
        else:
            member.world.add(Record("remove", key))
        member.world.add(Record("sync", key))
    member.files = {name: bytearray(content) for name, content in files.items()}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone takes several, so that much comes between."""
    monkeypatch.setattr(mending, "PIECE_BYTES", 3 * CELL_BYTES)


@dataclass(frozen=True)
class Case:
    """`width`: of zones, if there are more members. `extra`: members that come later."""

    act: Callable[[Life], Awaitable[None]]
    level: str
    count: int
    width: int = 0
    extra: int = 1

    def __str__(self) -> str:
        return f"{self.act.__name__}-{self.level}x{self.count}"


CASES = [
    Case(add, "5", 3),
    Case(back, "5", 4, extra=0),
    Case(back, "1", 2, extra=0),
    Case(back_twice, "6", 5, extra=0),
    Case(back_as_it_was, "5", 3, extra=0),
    Case(replace_lost, "5", 3),
    Case(replace_lost, "10", 4),
    Case(replace_there, "5", 3),
    Case(replace_there, "0", 2),
    Case(spare, "6", 4),
    Case(spread, "5", 5, width=3, extra=0),
    Case(leave, "5", 4, width=3, extra=0),
    Case(two_at_once, "6", 5, extra=2),
    Case(heir_fails, "6", 4, extra=2),
    Case(back_while_rebuilt, "5", 3),
]


async def large(workload: Workload, path: str, cells: int) -> None:
    """A new file of so many cells."""
    volume, name = workload.volume, path[1:].encode()
    content = random.Random(path).randbytes(cells * CELL_BYTES)
    ino = volume.create(1, name, 0o644, 0, ME).ino
    number = workload.model.add(path, File("file", 0o644))
    await volume.write(ino, 0, content)
    workload.model.files[number] = File("file", 0o644, content)
    volume.release(ino)
    volume.forget(ino)


class Recording:
    """One life: the world's log, and the model at each cut."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.seed = case, seed
        options = {"width": case.width} if case.width else {}
        self.world = World(fresh_files(case.level, case.count, **options))
        self.states: dict[int, Model] = {}
        self.began = 0  # position in the log

    async def run(self) -> None:
        case = self.case
        numbers = list(range(case.count + case.extra))
        members = members_of(self.world.files, self.world, numbers, slots=SLOTS)
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembled(members), clock=clock, offload=inline)
        volume = Volume(store)
        workload = Workload(volume, self.seed)
        self._watch(store, workload)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            for number in range(12):
                await large(workload, f"/large{number}", 20 + number)
                await volume.fsync(1)
            for _ in range(20):
                await workload.step()
            await volume.fsync(1)
            self.began = len(self.world.log)
            self.world.mark(store.durable)
            async with trio.open_nursery() as users:
                users.start_soon(self._use, volume, workload)
                await case.act(Life(volume, members, case.count, self.seed))
                await settled(store)
                users.cancel_scope.cancel()
            self.quiet = len(self.world.log)
            await volume.fsync(1)
            self.world.mark(store.durable)
            await store.stop()

    async def _use(self, volume: Volume, workload: Workload) -> None:
        rng = random.Random(self.seed)
        for _ in range(20):
            await trio.sleep(rng.choice((0.02, 0.1, 0.4)))
            with trio.CancelScope(shield=True):
                await workload.step()
                if rng.random() < 0.3:
                    await large(workload, f"/more{rng.randrange(1 << 30)}", rng.randrange(4, 30))
            if rng.random() < 0.4:
                await volume.fsync(1)
                self.world.mark(volume.store.durable)

    def _watch(self, store: Store, workload: Workload) -> None:
        self.states[store.durable] = workload.model.copy()
        save = store.on_cut

        def on_cut(sealed: Any) -> None:
            save(sealed)
            self.states[sealed.generation] = workload.model.copy()

        store.on_cut = on_cut

    def points(self) -> Iterator[tuple[int, Image, int]]:
        """Before each sync since the life began; an image is good until the next is asked for."""
        for position, image, marks in self.world.images():
            if position >= self.began:
                yield position, image, max(marks, default=1)


async def opened(
    files: dict[Any, bytes], numbers: list[int], *, mend: int = 0
) -> tuple[int, Tree, dict[Any, bytes], set[int]]:
    """Mount these; the epoch, the content, the files afterwards, and who has columns without being
    there. `mend`: until there is nothing more to be done, for a volume that had so many members."""
    world = World(files)
    members = members_of(files, world, numbers, slots=SLOTS)
    store = await Store.open(assembled(members), offload=inline)
    durable = store.durable
    volume = Volume(store)
    tree = await read_tree(volume)
    volume.reap_orphans()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        if mend:
            await settled(store)
            assert await read_tree(volume) == tree
            await told_once(store, mend)
        lacking = {
            member
            for zone in store.space.zones.values()
            for column, (member, _) in enumerate(zone.map.columns)
            if store.array.online(zone.map, column) is None
        }
        await store.stop()
    return durable, tree, contents(members), lacking


def contents(members: list[SimulatedMember]) -> dict[Any, bytes]:
    return {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}


def alike(files: dict[Any, bytes], numbers: list[int]) -> None:
    """After a clean end each has all metadata."""
    copies = {files[number, MetaFile.DB.value] for number in numbers}
    assert len(copies) == 1, f"of {numbers}, {len(copies)} different copies of the metadata"


def checked(files: dict[Any, bytes], numbers: list[int]) -> None:
    members = members_of(files, World(files), numbers, slots=SLOTS)
    report = check_assembly(assembled(members, read_only=True))
    assert not report.findings, report.findings[:10]


def verify(recording: Recording, point: tuple[int, Image, int], seed: int) -> None:
    """Crash there, reopen, let it end, lose more, compare."""
    position, image, acknowledged = point
    case, rng = recording.case, random.Random(seed)
    where = f"{case}, seed {recording.seed}, log position {position}, crash seed {seed}"
    numbers = list(range(case.count + case.extra))
    files = image.crash(seed)

    async def life() -> None:
        durable, tree, after, lacking = await opened(files, numbers, mend=case.count)
        assert durable >= acknowledged, f"went back to {durable}, {acknowledged} was promised"
        assert tree == recording.states[durable].tree()
        checked(after, numbers)
        label = assembled(members_of(after, World(after), numbers, slots=SLOTS)).label
        tolerance = code_for(label.parameters.level, label.parameters.width).tolerance
        there = [entry.id for entry in label.members if entry.is_current]
        alike(after, there)
        gone = rng.sample(there, max(0, min(tolerance - len(lacking), len(there) - 1)))
        left = [number for number in there if number not in gone]
        again, same, after, _ = await opened(after, left)
        assert again >= durable and same == tree, f"without {gone}"
        checked(after, left)

    try:
        in_simulated_time(life, seed=seed)
    except BaseException as error:
        raise AssertionError(f"{where}: {error!r}") from error


def record(case: Case, seed: int = SEED) -> Recording:
    recording = Recording(case, seed)
    in_simulated_time(recording.run, seed=seed)
    return recording


def verify_some(recording: Recording, most: int) -> int:
    """At so many points, spread over all; or at every one."""
    every = 1 if ALL else max(1, sum(1 for _ in recording.points()) // most)
    points = itertools.islice(recording.points(), 0, None, every)
    count = 0
    for count, point in enumerate(points, 1):
        verify(recording, point, recording.seed * 1000 + count)
    return count


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=str)
def test_members_and_a_crash_smoke(case: Case) -> None:
    assert verify_some(record(case), 2) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_members_and_a_crash(case: Case) -> None:
    assert verify_some(record(case), 4) >= 4


RANDOM = [Case(anything, "6", 6, width=5, extra=4), Case(anything, "5", 4, width=3, extra=4)]


@pytest.mark.slow
@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_members_come_and_go_at_random(case: Case) -> None:
    for seed in range(SEED, SEED + 3):
        assert verify_some(record(case, seed), 2) >= 2


# -- would it notice? -----------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def not_synced(patch: Patch) -> None:
    """A column lies there, say the metadata, before it was synced."""
    patch.setattr(mending, "sync_targets", lambda zone, targets: None)


def missed_not_recorded(patch: Patch) -> None:
    patch.setattr(Space, "note_rows", lambda self, zone, row, reach: None)


def label_before_metadata(patch: Patch) -> None:
    """A member counts, and has no metadata yet."""

    def admit(mirror: Mirror, number: int, member: SimulatedMember, progress: Any) -> None:
        with mirror.still():
            mirror.join(number, member)

    patch.setattr(membership, "admit", admit)


def old_place_given_up_early(patch: Patch) -> None:
    """Before the commit that says where the column is now."""
    real = Mending._record

    def record(self: Mending, work: Any, epoch: int) -> None:
        real(self, work, epoch)
        for task in work.made:
            member, slot = work.map.columns[task.column]
            state = self.store.array.states[member]
            if state.member is not None and task.why != "stale":
                state.member.column_remove(work.map.zone, task.column, slot)

    patch.setattr(Mending, "_record", record)


def believed_in_any_case(patch: Patch) -> None:
    patch.setattr(membership, "durable_of", lambda member: 1 << 60)


def not_distrusted(patch: Patch) -> None:
    async def distrust(self: Membership, number: int) -> None:
        pass

    patch.setattr(Membership, "_distrust", distrust)


def rows_into_damaged_zones(patch: Patch) -> None:
    """As if there were no room for whole ones, and so that some come to each zone that has room
    while it is being mended. No sabotage yet."""
    real = Mending._fill

    async def fill(self: Mending, work: Any) -> bool:
        done = await real(self, work)
        with trio.move_on_after(1.0):
            while work.zone.fill == work.fill and work.zone.room_cells:
                await trio.sleep(0.02)
        return done

    patch.setattr(Mending, "_fill", fill)

    async def prepare(self: Space, pages: int) -> None:
        pass

    patch.setattr(Space, "prepare", prepare)


def rows_written_meanwhile_forgotten(patch: Patch) -> None:
    """A column that was moved while rows came counts as whole."""
    rows_into_damaged_zones(patch)
    real = Space.move_column

    def move(self: Space, zone: Any, column: int, member: int, slot: int, rows: int) -> None:
        real(self, zone, column, member, slot, zone.fill)

    patch.setattr(Space, "move_column", move)


@pytest.mark.slow
def test_rows_come_to_zones_that_are_being_mended(monkeypatch: Patch) -> None:
    rows_into_damaged_zones(monkeypatch)
    for case in (Case(replace_lost, "1", 2), Case(back, "1", 2, extra=0)):
        assert verify_some(record(case), 5) >= 5


SABOTAGE = [
    (not_synced, Case(replace_lost, "5", 3)),
    (missed_not_recorded, Case(back, "1", 2, extra=0)),
    (label_before_metadata, Case(add, "1", 2)),
    (old_place_given_up_early, Case(replace_there, "0", 2)),
    (believed_in_any_case, Case(back_as_it_was, "5", 3, extra=0)),
    (not_distrusted, Case(back_as_it_was, "5", 3, extra=0)),
    (rows_written_meanwhile_forgotten, Case(back, "1", 2, extra=0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "case"), SABOTAGE, ids=lambda each: getattr(each, "__name__", None)
)
def test_the_crash_test_notices(sabotage: Any, case: Case, monkeypatch: Patch) -> None:
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)):
        for seed in range(SEED, SEED + 12):
            verify_some(record(case, seed), 16)
