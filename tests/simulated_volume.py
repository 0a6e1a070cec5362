"""Volumes on simulated members, in simulated time: made, mounted, crashed, opened again.

    world, members = new_members("5", 5)
    async with mounted(members) as volume: ...
    in_simulated_time(test)
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from simulated import FileKey, SimulatedMember, World, members_of

from raidfs.check import Report, check_assembly
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.label import Label, MemberEntry, Parameters, write_label
from raidfs.store.meta import Meta
from raidfs.store.store import Store

SLOTS = 48
ZONE_BYTES = 64 << 10
CELL_BYTES = 4096
ZONE_ROWS = ZONE_BYTES // CELL_BYTES


async def inline(function: Any, *args: Any) -> Any:
    """The simulator's offload: no thread, but on the clock of the simulation it takes a while, so
    that operations of the next epoch come between the steps of a flush."""
    await trio.sleep(0.01)
    result = function(*args)
    await trio.sleep(0.01)
    return result


def in_simulated_time(test: Callable[[], Awaitable[Any]], limit_s: float = 3600.0) -> Any:
    """Run on a clock that jumps ahead whenever all wait. Who waits for ever is found out."""

    async def limited() -> Any:
        with trio.fail_after(limit_s):
            return await test()

    return trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))


def fresh_files(
    level: str, count: int, slots: int | list[int] = SLOTS, **options: Any
) -> dict[FileKey, bytes]:
    """The files of a new volume. `slots`: of each member, or of all."""
    setup = World()
    each = slots if isinstance(slots, list) else [slots] * count
    members = [SimulatedMember(setup, n, slots=each[n], **options) for n in range(count)]
    parameters = Parameters(level, count, CELL_BYTES, ZONE_BYTES, 1 << 24, 1 << 24, 1)
    table = [
        MemberEntry(m.number, m.kind, m.path, m.slots_total, m.slots_total * ZONE_BYTES)
        for m in members
    ]
    label = Label("ab" * 16, "crash", 0, 1, "cd" * 8, [(1, "cd" * 8)], table, parameters)
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


def reopened(members: list[SimulatedMember], without: tuple[int, ...] = ()) -> list[SimulatedMember]:
    """The same contents, synced, in members that work; some may be gone."""
    files = contents(members)
    numbers = [m.number for m in members if m.number not in without]
    return members_of(files, World(files), numbers)


def contents(members: list[SimulatedMember]) -> dict[FileKey, bytes]:
    return {(m.number, name): bytes(data) for m in members for name, data in m.files.items()}


@asynccontextmanager
async def mounted(members: list[SimulatedMember], **options: Any) -> AsyncIterator[Volume]:
    """A running volume. At the end it is stopped; that it failed meanwhile is no error here."""
    options = {"offload": inline, "clock": itertools.count(10**18, 1000).__next__, **options}
    store = await Store.open(assembly_of(members), **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        try:
            yield Volume(store)
        finally:
            with trio.CancelScope(shield=True), trio.fail_after(600):
                if store.failed is None:
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
