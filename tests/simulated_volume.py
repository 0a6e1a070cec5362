"""Volumes on simulated members, in simulated time: made, mounted, crashed, opened again.

world, members = new_members("5", 5)
async with mounted(members) as volume: ...
in_simulated_time(test)
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from simulated import FileKey, SimulatedMember, World, members_of
from trio._core import _run
from workload import ME

from raidfs.check import Report, check_assembly
from raidfs.errors import RaidfsError
from raidfs.fs.attributes import Changes
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.label import Label, MemberEntry, Parameters, write_label
from raidfs.store.meta import Meta
from raidfs.store.store import Store

SLOTS = 48
ZONE_BYTES = 64 << 10
CELL_BYTES = 4096
ZONE_ROWS = ZONE_BYTES // CELL_BYTES
ROOT = 1
LEVELS = [("1", 2), ("1", 3), ("2", 7), ("3", 4), ("4", 3), ("5", 5), ("6", 6), ("10", 4)]
QUICK = (("1", 2), ("5", 5), ("10", 4))


def levels(*more: tuple[str, int]) -> list[Any]:
    """All levels as parameters of a test, most of them slow."""
    marks = {False: [pytest.mark.slow], True: []}
    return [pytest.param(*each, marks=marks[each in QUICK]) for each in (*LEVELS, *more)]


async def inline(function: Any, *args: Any) -> Any:
    """The simulator's offload: no thread, but on the clock of the simulation it takes a while, so
    that operations of the next epoch come between the steps of a flush."""
    await trio.sleep(0.01)
    result = function(*args)
    await trio.sleep(0.01)
    return result


def in_simulated_time(
    test: Callable[[], Awaitable[Any]], limit_s: float = 3600.0, seed: int = 0
) -> Any:
    """Run on a clock that jumps ahead whenever all wait. Who waits for ever is found out. Tasks
    take turns in an order that follows from the seed (by what pytest-trio uses, too)."""
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)

    async def limited() -> Any:
        with trio.fail_after(limit_s):
            return await test()

    return trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))


def fresh_files(
    level: str,
    count: int,
    slots: int | list[int] = SLOTS,
    width: int | None = None,
    **options: Any,
) -> dict[FileKey, bytes]:
    """The files of a new volume. `slots`: of each member, or of all. `width`: None for all."""
    setup = World()
    each = slots if isinstance(slots, list) else [slots] * count
    members = [SimulatedMember(setup, n, slots=each[n], **options) for n in range(count)]
    parameters = Parameters(level, width or count, CELL_BYTES, ZONE_BYTES, 1 << 24, 1 << 24, 1)
    table = [
        MemberEntry(m.number, m.kind, m.path, m.slots_total, m.slots_total * ZONE_BYTES)
        for m in members
    ]
    label = Label(
        "ab" * 16, "crash", 0, 1, "cd" * 8, [(1, "cd" * 8)], table, parameters, len(table)
    )
    Meta.create({m.number: m for m in members}, parameters, 1)
    for member in members:
        write_label(member, label.for_member(member.number))
    return {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}


def assembly_of(members: list[SimulatedMember], *, read_only: bool = False) -> Assembly:
    """What Assembly.open would decide, by the same tables, of members that are not files."""
    return Assembly.of_members(members, degraded=True, read_only=read_only)


def new_members(level: str, count: int, **options: Any) -> list[SimulatedMember]:
    """The members of a new volume, in a world of their own."""
    world = World(fresh_files(level, count, **options))
    options.pop("slots", None)
    return members_of(world.files, world, list(range(count)), **options)


def reopened(
    members: list[SimulatedMember], without: tuple[int, ...] = ()
) -> list[SimulatedMember]:
    """The same contents, synced, in members that work; some may be gone."""
    files = contents(members)
    numbers = [m.number for m in members if m.number not in without]
    return members_of(files, World(files), numbers)


def contents(members: list[SimulatedMember]) -> dict[FileKey, bytes]:
    return {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}


@asynccontextmanager
async def mounted(
    members: list[SimulatedMember], *, fails: bool = False, **options: Any
) -> AsyncIterator[Volume]:
    """A running volume. At the end it is stopped; that it failed before is no error here. `fails`:
    it may do so then, too."""
    options = {"offload": inline, "clock": itertools.count(10**18, 1000).__next__, **options}
    store = await Store.open(assembly_of(members), **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        try:
            yield Volume(store)
        finally:
            with trio.CancelScope(shield=True), trio.fail_after(600):
                if store.failed is None:
                    with contextlib.suppress(*([RaidfsError] if fails else [])):
                        await store.stop()
                else:
                    nursery.cancel_scope.cancel()
                    await store.close()


def check(members: list[SimulatedMember], without: tuple[int, ...] = ()) -> Report:
    """The offline checker's view; it has nothing to find."""
    again = reopened(members, without)
    before = contents(again)
    report = check_assembly(assembly_of(again, read_only=True))
    assert contents(again) == before, "check wrote something"
    return report


def checked(members: list[SimulatedMember], without: tuple[int, ...] = ()) -> None:
    report = check(members, without)
    assert not report.findings, report.findings[:10]


def simulated(
    body: Callable[[Volume], Awaitable[None]], level: str = "5", count: int = 3, **options: Any
) -> list[SimulatedMember]:
    """Run `body(volume)` on a new volume, then check it; returns the members."""
    members = new_members(level, count, **options)

    async def test() -> None:
        async with mounted(members) as volume:
            await body(volume)

    in_simulated_time(test)
    checked(members)
    return members


async def write_file(volume: Volume, name: bytes, content: bytes) -> int:
    ino = volume.create(ROOT, name, 0o644, 0, ME).ino
    try:
        assert await volume.write(ino, 0, content) == len(content)
    finally:
        volume.release(ino)
        volume.forget(ino)
    return ino


async def overwrite(volume: Volume, name: bytes, content: bytes, offset: int = 0) -> None:
    ino = volume.lookup(ROOT, name).ino
    volume.open(ino, 2)
    try:
        await volume.write(ino, offset, content)
    finally:
        volume.release(ino)
        volume.forget(ino)


async def read_file(volume: Volume, name: bytes) -> bytes:
    ino = volume.lookup(ROOT, name).ino
    volume.open(ino, 0)
    try:
        return bytes(await volume.read(ino, 0, volume.getattr(ino).size))
    finally:
        volume.release(ino)
        volume.forget(ino)


def pattern(seed: int, cells: int, extra: int = 0) -> bytes:
    return random.Random(seed).randbytes(cells * CELL_BYTES + extra)


# -- some of everything ---------------------------------------------------------------------------


async def furnish(volume: Volume) -> None:
    """Some of everything."""
    await write_file(volume, b"large", pattern(1, 600, 77))
    await write_file(volume, b"small", b"x" * 100)
    await write_file(volume, b"kept", pattern(2, 10))
    directory = volume.mkdir(ROOT, b"directory", 0o755, ME).ino
    inner = volume.mkdir(directory, b"inner", 0o700, ME).ino
    volume.symlink(inner, b"soft", b"../../large", ME)
    volume.link(volume.lookup(ROOT, b"small").ino, inner, b"hard")
    volume.setxattr(directory, b"user.colour", b"blue", 0, ME)
    volume.setxattr(volume.lookup(ROOT, b"kept").ino, b"user.long", b"y" * 3000, 0, ME)
    for number in range(30):
        name = b"many %d" % number
        volume.release(ino := volume.create(inner, name, 0o600, 0, ME).ino)
        volume.forget(ino)


async def upset(volume: Volume) -> None:
    """Change all that `furnish` has made."""
    directory = volume.lookup(ROOT, b"directory").ino
    inner = volume.lookup(directory, b"inner").ino
    await overwrite(volume, b"large", pattern(3, 5), 100 * CELL_BYTES + 9)
    await volume.setattr(volume.lookup(ROOT, b"large").ino, Changes(size=300_000), ME)
    await overwrite(volume, b"small", pattern(4, 3))
    volume.unlink(ROOT, b"small")
    volume.removexattr(directory, b"user.colour")
    volume.setxattr(directory, b"user.size", b"large", 0, ME)
    for number in range(30):
        volume.unlink(inner, b"many %d" % number)
    volume.unlink(inner, b"soft")
    volume.unlink(inner, b"hard")
    volume.rmdir(directory, b"inner")
    volume.rename(ROOT, b"directory", ROOT, b"moved")
    await write_file(volume, b"new", pattern(5, 40))
    volume.mkdir(directory, b"inner", 0o711, ME)
    volume.unlink(ROOT, b"kept")


async def furnish_and_upset(volume: Volume) -> None:
    """What snapshot "one" holds, and a present in which all of it is otherwise."""
    await furnish(volume)
    await volume.store.snapshots.create("one")
    await upset(volume)
