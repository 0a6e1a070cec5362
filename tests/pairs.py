"""An operation is stopped in its middle, something happens, and all goes on to its end: the rig.

A `Base` is a volume of level 6, four columns wide, over six simulated members, with files and
snapshots that a model knows. A `Life` is one mount of it: requests go to the same services that the
control socket's go to. Operations pass *seams* between their pieces; a `Hold` stops there whoever
comes, until it is released.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from simulated import FileKey, Image, SimulatedMember, World, members_of
from simulated_volume import CELL_BYTES, ROOT, ZONE_BYTES, inline
from workload import ME, File, Model, Workload, read_tree

from raidfs.daemon import member_changes, member_losing
from raidfs.daemon.condition import store_condition
from raidfs.daemon.jobs import ENDED, Job, JobBook
from raidfs.daemon.members import MemberService
from raidfs.daemon.reshape import ReshapeService
from raidfs.daemon.scrub import ScrubService
from raidfs.errors import LabelError, OutOfSpace, RaidfsError
from raidfs.fs.volume import Volume
from raidfs.raid import array, assembly, crew
from raidfs.raid.assembly import Assembly
from raidfs.raid.label import Label, MemberEntry, read_labels
from raidfs.store import allocation, mending, scrub
from raidfs.store.past import as_view
from raidfs.store.store import Store

LEVEL, WIDTH, COUNT = "6", 4, 6
SLOTS = 24
MEMBERS = 10  # places, those for later members included
PIECE_CELLS = 5
LIMIT_S = 400.0  # of simulated time, for whatever must come to an end
STILL_S = 40.0  # for which nothing goes on: it stalls

Files = dict[FileKey, bytes]
States = dict[int, tuple[Model, dict[str, Model]]]
Names = ("mender", "add", "scrub", "reshape", "sweep", "cleaner")


class Hold:
    """Whoever passes stops, the first one after so many that did not. `later`: who passed when it
    was released."""

    def __init__(self, after: int) -> None:
        self.after, self.later = after, 0
        self.reached, self.released = trio.Event(), trio.Event()

    async def passed(self) -> None:
        if self.released.is_set():
            self.later += 1
            return
        self.after -= 1
        if self.after <= 0:
            self.reached.set()
            await self.released.wait()


@dataclass
class Begun:
    """Something asked for. `error`: it was refused, or given up."""

    answered: trio.Event = field(default_factory=trio.Event)
    error: RaidfsError | None = None


@dataclass
class Base:
    """What a mount begins with: the files, and what must be in them."""

    files: Files
    model: Model = field(default_factory=Model)
    snapshots: dict[str, Model] = field(default_factory=dict)

    def copy(self) -> Base:
        return Base(self.files, self.model.copy(), dict(self.snapshots))


def assembled(members: list[SimulatedMember], *, read_only: bool = False) -> Assembly:
    """Of those that have a label."""
    labelled = []
    for member in members:
        with contextlib.suppress(LabelError):
            read_labels(member)
            labelled.append(member)
    return Assembly.of_members(labelled, degraded=True, read_only=read_only)


def made_of(files: Files, without: tuple[int, ...] = ()) -> list[SimulatedMember]:
    numbers = [number for number in range(MEMBERS) if number not in without]
    return members_of(files, World(files), numbers, slots=SLOTS)


def contents(members: list[SimulatedMember]) -> Files:
    return {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}


class Life:
    """One mount. `states`: the model at each cut."""

    def __init__(self, base: Base, seed: int) -> None:
        self.seed = seed
        self.model, self.snapshots = base.model, base.snapshots
        self.members = made_of(base.files)
        self.world = self.members[0].world
        self.holds: dict[str, list[Hold]] = {name: [] for name in Names}
        self.states: States = {}
        self.running = 0  # operations that were begun, and not answered yet
        self.cleaning = False

    async def open(self, nursery: trio.Nursery, states: States | None = None) -> None:
        """`states`: of the mount that a crash ended: it is one of these again."""
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembled(self.members), clock=clock, offload=self._offload)
        if states is not None:
            model, snapshots = states[store.durable]
            self.model, self.snapshots = model.copy(), dict(snapshots)
        self.store, self.volume = store, Volume(store)
        self.volume.reap_orphans()
        self.random = random.Random(self.seed)
        self.workload = Workload(self.volume, self.seed, self.model)
        self.book = JobBook(store)
        self.service = MemberService(store, None, lambda: None, self.book.look)  # type: ignore
        self._seams()
        self._watch()
        await nursery.start(self._serve)
        nursery.start_soon(store.run)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Requests, until the end of the mount."""
        self.served = trio.Event()
        async with trio.open_nursery() as self.requests:
            await self.requests.start(self.service.run)
            task_status.started()
        self.served.set()

    # -- seams ------------------------------------------------------------------------------------

    def hold(self, name: str, after: int) -> Hold:
        hold = Hold(after)
        self.holds[name].append(hold)
        return hold

    async def _pass(self, name: str) -> None:
        for hold in tuple(self.holds[name]):
            await hold.passed()

    async def _offload(self, function: Any, *arguments: Any) -> Any:
        if getattr(function, "__name__", "") == "activate":  # it has metadata, and no label
            await self._pass("add")
        return await inline(function, *arguments)

    def _before(self, it: Any, method: str, name: str) -> None:
        real = getattr(it, method)

        async def passing(*arguments: Any) -> Any:
            await self._pass(name)
            return await real(*arguments)

        setattr(it, method, passing)

    def _seams(self) -> None:
        store = self.store
        self._before(store.mender.pace, "turn", "mender")
        self._before(store.scrub.pace, "turn", "scrub")
        self._before(store.reshape.pace, "turn", "reshape")
        self._before(store.sweeper, "_piece", "sweep")
        self._before(store.cleaner, "_turn", "cleaner")
        low = store.cleaner._low
        store.cleaner._low = lambda: self.cleaning or low()  # type: ignore[method-assign]

    def _watch(self) -> None:
        store, told = self.store, self.store.on_cut

        def on_cut(sealed: Any) -> None:
            told(sealed)
            self.states[sealed.generation] = self.model.copy(), dict(self.snapshots)

        store.on_cut = on_cut
        self.states[store.durable] = self.model.copy(), dict(self.snapshots)

    # -- what an administrator does ---------------------------------------------------------------

    def place(self) -> str:
        """Of the next new member."""
        return f"/simulated/{self.store.assembly.label.next_member}"

    async def ask(self, request: Any) -> None:
        """As by control socket."""
        services = (self.service, ReshapeService(self.store), ScrubService(self.store))
        for service in services:
            if (handler := service.handlers().get(type(request))) is not None:
                answer: Any = handler(request)
                if hasattr(answer, "__aiter__"):
                    async for _ in answer:
                        pass
                else:
                    await answer
                return
        raise AssertionError(request)

    def start(self, begin: Callable[[], Awaitable[None]]) -> Begun:
        """In the background."""
        begun = Begun()

        async def carry_out() -> None:
            try:
                await begin()
            except RaidfsError as error:
                begun.error = error
            self.running -= 1
            begun.answered.set()

        self.running += 1
        self.requests.start_soon(carry_out)
        return begun

    def clean(self) -> None:
        """Room is low, it says from here on."""
        self.cleaning = True
        self.store.cleaner._wanted.set()

    # -- what users do ----------------------------------------------------------------------------

    async def write(self, path: str, cells: int) -> None:
        name, content = path[1:].encode(), random.Random(path).randbytes(cells * CELL_BYTES)
        ino = self.volume.create(ROOT, name, 0o644, 0, ME).ino
        number = self.model.add(path, File("file", 0o644))
        try:
            await self.volume.write(ino, 0, content)
            self.model.files[number] = File("file", 0o644, content)
        finally:
            self.volume.release(ino)
            self.volume.forget(ino)

    async def fill(self) -> list[str]:
        """Until there is no room."""
        for number in itertools.count():
            try:
                await self.write(f"/fill{number}", 24)
                await self.volume.fsync(ROOT)
            except OutOfSpace:
                self.unlink(f"/fill{number}")
                await self.volume.fsync(ROOT)
                return [f"/fill{each}" for each in range(number)]
        raise AssertionError

    def unlink(self, path: str) -> None:
        """If it still has that name."""
        if self.model.names.pop(path, None) is not None:
            self.volume.unlink(ROOT, path[1:].encode())

    async def snapshot(self, name: str) -> None:
        self.snapshots[name] = self.model.copy()
        await self.store.snapshots.create(name)

    async def use(self, steps: int = 4) -> None:
        """Some operations, then what was told is durable."""
        for _ in range(steps):
            await self.workload.step()
        await self.volume.fsync(ROOT)

    # -- looking ----------------------------------------------------------------------------------

    def active(self) -> list[Job]:
        return [job for job in self.book.jobs() if job.state not in ENDED]

    def is_there(self, member: int) -> bool:
        return any(entry.id == member and entry.is_current for entry in self.label().members)

    def label(self) -> Label:
        return self.store.assembly.label

    def lacking(self) -> set[int]:
        """Members that zones name and that have not all of it."""
        zones, online = self.store.space.zones.values(), self.store.array.online
        return {
            member
            for zone in zones
            if zone.needed
            for column, (member, _) in enumerate(zone.map.columns)
            if online(zone.map, column) is None
        }

    def _is_quiet(self) -> bool:
        store = self.store
        cleaner = store.cleaner
        if self.cleaning:
            self.cleaning = cleaner._best(8) is not None
        idle = not self.cleaning and not cleaner._busy.locked() and not store.sweeper.busy
        gone = any(e.role == "leaving" for e in self.label().members)
        return not (self.running or self.active() or gone) and idle

    async def quiet(self, *, may_stall: bool = False) -> str:
        """All has come to its end, or what is left stands still: then why, as it says."""
        store, since, before = self.store, trio.current_time(), None
        moved = since
        while not self._is_quiet():
            now, broken = trio.current_time(), (store.mender.broken, store.reshape.broken)
            assert broken == (None, None) and store.cleaner.broken is None, broken
            assert store.failed is None, store.failed
            jobs = self.active()
            done = [(job.id, job.left_bytes, job.done_bytes) for job in jobs]
            if done != before:
                before, moved = done, now
            if may_stall and now > moved + STILL_S and jobs:
                assert all(job.state in ("stalled", "waiting") and job.reason for job in jobs), jobs
                return jobs[0].reason
            assert now < since + LIMIT_S, (jobs, store.mender.statistics(), self.label().members)
            await trio.sleep(0.2)
        return ""

    async def compare(self) -> None:
        assert await read_tree(self.volume) == self.model.tree()
        for row in self.store.snapshots.all():
            found = await read_tree(self.volume, as_view(row.id, ROOT))
            assert found == self.snapshots[row.name].tree(), row.name

    def truth(self) -> None:
        """Nothing is left to do, and status says so."""
        assert not self.active()
        told = store_condition(self.store, None, jobs=self.book.jobs())
        assert told.failed is None
        redundancy = told.redundancy
        assert redundancy is not None and not redundancy.unreadable
        assert bool(redundancy.lacking) == bool(self.lacking())
        assert redundancy.losses_left == self.store.space.code.tolerance - len(self.lacking())

    # -- ends -------------------------------------------------------------------------------------

    def crashed(self, seed: int) -> Base:
        """What is found after the machine stopped at this moment."""
        image = Image(dict(self.world.files))
        for record in self.world.log:
            if record.kind != "mark":
                image.apply(record)
        return Base(image.crash(seed))

    async def stop(self) -> Base:
        """A clean end."""
        self.requests.cancel_scope.cancel()
        await self.served.wait()
        await self.store.stop()
        return Base(contents(self.members), self.model, self.snapshots)

    async def abandon(self) -> None:
        """Nothing more is written."""
        for hold in itertools.chain(*self.holds.values()):
            hold.released.set()
        self.store.fail("the end")
        self.requests.cancel_scope.cancel()
        await self.served.wait()
        await self.store.close()


@asynccontextmanager
async def living(base: Base, seed: int = 1, states: States | None = None) -> AsyncIterator[Life]:
    """A mount; whoever has it must `stop` or `abandon` it."""
    life = Life(base.copy(), seed)
    with _simulated_places(life):
        async with trio.open_nursery() as nursery:
            await life.open(nursery, states)
            yield life
            nursery.cancel_scope.cancel()


class AtOnce(Executor):
    """No threads: what members do has one order, and costs no waiting."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def without_threads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (array, assembly, crew, scrub):
            patch.setattr(module, "ThreadPoolExecutor", AtOnce)
        yield


@contextlib.contextmanager
def _simulated_places(life: Life) -> Iterator[None]:
    """Where services open members; and rooms are asked for on the simulation's clock."""

    def plan(label: Label, paths: list[str], **options: Any) -> list[MemberEntry]:
        given = {k: v for k, v in options.items() if k in ("role", "domain")}
        heirs = options.get("replaces") or [-1] * len(paths)
        return [
            MemberEntry(
                label.next_member + at, "image", path, SLOTS, SLOTS * ZONE_BYTES,
                replaces=heirs[at], **given,
            )
            for at, path in enumerate(paths)
        ]  # fmt: skip

    def found(label: Label, entry: MemberEntry, *where: Any) -> SimulatedMember:
        return life.members[entry.id]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member_changes, "plan_members", plan)
        patch.setattr(member_changes, "lay_out_member", found)
        patch.setattr(member_changes, "abandon", lambda entry, member: None)
        patch.setattr(member_losing, "open_back", found)
        patch.setattr(allocation, "time", SimpleNamespace(monotonic=trio.current_time))
        patch.setattr(mending, "PIECE_BYTES", PIECE_CELLS * CELL_BYTES)
        yield
