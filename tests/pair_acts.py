"""Operations and what may happen in their middle: see test_5_pairs.py, which says what comes of it.

An outcome is a word, and where somebody is told something a colon and the sentence.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from pairs import (
    COUNT,
    Base,
    Begun,
    Files,
    Hold,
    Life,
    States,
    assembled,
    contents,
    living,
    made_of,
)
from simulated_volume import CELL_BYTES, ROOT

from raidfs.check import check_assembly
from raidfs.daemon.member_requests import (
    MemberAddRequest,
    MemberFailRequest,
    MemberOnlineRequest,
    MemberRemoveRequest,
    MemberReplaceRequest,
)
from raidfs.daemon.reshape import ConvertRequest, RebalanceRequest
from raidfs.daemon.scrub import ScrubStartRequest
from raidfs.errors import RaidfsError, ReadOnly
from raidfs.fs.rollback import rollback

SEED = int(os.environ.get("RAIDFS_PAIRS_SEED", "1"))
PATIENCE_S = 60.0  # of simulated time
FILLED_S = 600.0  # that takes so long

# -- operations -----------------------------------------------------------------------------------


async def replace_lost(life: Life, which: int) -> None:
    if life.is_there(which):
        await life.ask(MemberFailRequest(members=(str(which),)))
    await life.ask(MemberReplaceRequest(pairs=((str(which), life.place()),)))
    await life.store.mender.set(paused=False)


async def spread(life: Life, which: int) -> None:
    if life.is_there(which):
        await life.ask(MemberFailRequest(members=(str(which),)))
    await life.store.mender.set(paused=False)


async def resync(life: Life, which: int) -> None:
    """The first one has missed some rows; the second is older than when it was lost, so that
    nothing is believed of it."""
    if life.is_there(which):
        member = life.members[which]
        older = {name: bytearray(content) for name, content in member.files.items()}
        await life.write("/after-the-copy", 6)
        await life.use()
        await life.ask(MemberFailRequest(members=(str(which),), offline=True))
        await life.use()
        member.files = older
    await life.ask(MemberOnlineRequest(member=str(which)))


async def remove(life: Life, which: int) -> None:
    await life.ask(MemberRemoveRequest(members=(str(which),)))


async def replace(life: Life, which: int) -> None:
    await life.ask(MemberReplaceRequest(pairs=((str(which), life.place()),)))


async def add(life: Life, which: int) -> None:
    await life.ask(MemberAddRequest(paths=(life.place(),)))


async def scrub(life: Life, which: int) -> None:
    await life.ask(ScrubStartRequest())


async def convert(life: Life, which: int) -> None:
    level, width = SHAPES[which != FIRST]
    await life.ask(ConvertRequest(level=level, width=width))


async def rebalance(life: Life, which: int) -> None:
    await life.ask(RebalanceRequest())


async def sweep(life: Life, which: int) -> None:
    await life.store.snapshots.delete([swept_name(which)])


def swept_name(which: int) -> str:
    return "s0" if which == FIRST else "s1"


async def clean(life: Life, which: int) -> None:
    life.clean()


@dataclass(frozen=True)
class Operation:
    """`base`: what it begins with; `seam`: where it is held, `after` so many pieces, and with other
    seeds after up to `pieces` more; `job`: of which kind it is. `again`: a mount forgets it."""

    begin: Callable[[Life, int], Awaitable[None]]
    base: str
    seam: str
    after: int
    job: str = ""
    again: bool = False
    pieces: int = 8


def is_none(life: Life, which: int) -> bool:
    """No member any more, and nothing lies there."""
    known = any(entry.id == which for entry in life.label().members)
    return not known and not life.store.membership.columns_of(which)


def has_nothing(life: Life, which: int) -> bool:
    return not life.store.membership.columns_of(which)


def has_all(life: Life, which: int) -> bool:
    """Or it was lost again, and then others have it."""
    stale = any(zone.missed for zone in life.store.space.zones.values())
    return not stale and (life.is_there(which) or has_nothing(life, which))


def is_added(life: Life, which: int) -> bool:
    return any(entry.id >= COUNT and entry.is_current for entry in life.label().members)


def is_scrubbed(life: Life, which: int) -> bool:
    record = life.store.scrub.record
    return record is not None and record.state == "finished" and not record.damaged


def is_converted(life: Life, which: int) -> bool:
    parameters = life.label().parameters
    zones = life.store.space.zones.values()
    shape = (parameters.level, parameters.width)
    return shape in SHAPES and all(
        (zone.map.code.level, zone.map.code.width) == shape for zone in zones if zone.needed
    )


def is_even(life: Life, which: int) -> bool:
    return not life.store.reshape.settings.rebalance and not life.store.mender.wishes


def is_swept(life: Life, which: int) -> bool:
    return not life.store.snapshots.is_taken(swept_name(which)) and not life.store.sweeper.busy


def is_clean(life: Life, which: int) -> bool:
    return life.store.cleaner.statistics().zones_emptied > 0 or not life.cleaning


DONE: dict[str, Callable[[Life, int], bool]] = {
    "replace lost": is_none,
    "spread": has_nothing,
    "resync": has_all,
    "remove": is_none,
    "replace": is_none,
    "add": is_added,
    "scrub": is_scrubbed,
    "convert": is_converted,
    "rebalance": is_even,
    "sweep": is_swept,
    "clean": is_clean,
}
OF_MENDER = ("replace lost", "spread", "resync", "remove", "replace")
OF_OTHERS = ("scrub", "convert", "rebalance")  # they tell of themselves, and may have to wait
FIRST, SECOND, OTHER = 1, 3, 2  # members that they are about, and one that isn't
TOO_MANY = (2, 3, 4)  # at once
SHAPES = (("1", 3), ("6", 5))
DO = {
    "replace lost": Operation(replace_lost, "lost", "mender", 5, "replace"),
    "spread": Operation(spread, "lost", "mender", 5, "rebuild"),
    "resync": Operation(resync, "offline", "mender", 2, "rebuild", pieces=1),
    "remove": Operation(remove, "plain", "mender", 5, "evacuate"),
    "replace": Operation(replace, "plain", "mender", 5, "replace"),
    "add": Operation(add, "plain", "add", 1, again=True, pieces=1),
    "scrub": Operation(scrub, "plain", "scrub", 5, "scrub"),
    "convert": Operation(convert, "plain", "reshape", 3, "convert"),
    "rebalance": Operation(rebalance, "plain", "mender", 3, "rebalance"),
    "sweep": Operation(sweep, "plain", "sweep", 2, pieces=1),
    "clean": Operation(clean, "plain", "cleaner", 3, again=True),
}


@dataclass(frozen=True)
class At:
    """An operation that stands still in its middle."""

    life: Life
    name: str
    hold: Hold
    begun: Begun


# -- events ---------------------------------------------------------------------------------------


def target(life: Life, name: str) -> int:
    """Who is being written to."""
    work = life.store.mender.mending.work
    if work is not None:
        return work.tasks[0].member
    if name == "add":
        return life.label().next_member - 1
    outlet = life.store.space.reserve.outlet
    return OTHER if outlet is None else outlet.map.columns[0][0]


def source(life: Life) -> int:
    """Whose columns are copied."""
    work = life.store.mender.mending.work
    assert work is not None
    return work.map.columns[work.tasks[0].column][0]


async def lose(life: Life, *members: int) -> None:
    """They fail at whatever comes next."""
    for member in members:
        life.members[member].fail_reads = life.members[member].fail_writes = True
    await life.write("/after-the-loss", 12)
    await life.use()
    assert not any(life.is_there(member) for member in members)


async def attempt(
    act: Callable[[], Awaitable[Any]], hold: Hold, patience_s: float = PATIENCE_S
) -> str:
    """Whether it is over while the operation stands still."""
    outcome: list[str] = []
    over = trio.Event()

    async def acting() -> None:
        try:
            await act()
            outcome.append("goes on")
        except RaidfsError as error:
            outcome.append(f"refused: {error}")
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(acting)
        with trio.move_on_after(patience_s):
            await over.wait()
        if not (waits := not outcome):
            return outcome[0]
        hold.released.set()
    assert outcome == ["goes on"], outcome
    return "waits" if waits else outcome[0]


async def lost_one(at: At) -> str:
    return await attempt(lambda: lose(at.life, 4), at.hold)


async def lost_source(at: At) -> str:
    return await attempt(lambda: lose(at.life, source(at.life)), at.hold)


async def lost_target(at: At) -> str:
    return await attempt(lambda: lose(at.life, target(at.life, at.name)), at.hold)


async def cells_corrupt(at: At) -> str:
    assert corrupt(at.life, 4, 0.3) > 5
    return "goes on"


async def member_full(at: At) -> str:
    """It has slots, but what lies beneath has no room."""
    member = at.life.members[target(at.life, at.name)]
    member.room_bytes = lambda: 0  # type: ignore[method-assign]
    at.hold.released.set()
    why = await at.life.quiet(may_stall=True)
    del member.room_bytes  # type: ignore[method-assign]
    return f"stalls: {why}" if why else "goes on"


async def volume_full(at: At) -> str:
    filled: list[str] = []

    async def fill() -> None:
        filled.extend(await at.life.fill())

    outcome = await attempt(fill, at.hold, FILLED_S)
    assert len(filled) > 3
    at.hold.released.set()
    if why := await at.life.quiet(may_stall=True):
        outcome = f"stalls: {why}"
    for path in filled:
        at.life.unlink(path)
    await at.life.use()
    return outcome


async def snapshot_made(at: At) -> str:
    return await attempt(lambda: at.life.snapshot("meanwhile"), at.hold)


async def gone_back(at: At) -> str:
    async def act() -> None:
        await rollback(at.life.volume, "s1")
        at.life.model = at.life.workload.model = at.life.snapshots["s1"].copy()

    return await attempt(act, at.hold)


async def crash(at: At) -> str:
    """Twice: all that was not synced is lost; and some of it, or torn."""
    life = at.life
    acknowledged = life.store.durable
    for _ in range(3):
        await life.workload.step()
    crashes = [life.crashed(1), life.crashed(SEED + 1)]
    await life.abandon()
    outcomes = {await afterwards(at.name, each, life.states, acknowledged) for each in crashes}
    return " or ".join(sorted(outcomes))


async def remount(at: At) -> str:
    ends: list[Base] = []

    async def act() -> None:
        ends.append(await at.life.stop())

    outcome = await attempt(act, at.hold)
    then = await afterwards(at.name, ends[0])
    return outcome if outcome == "waits" else then


async def lost_too_many(at: At) -> str:
    """The volume says that it is read-only, and so do jobs; what was acknowledged is there when the
    members are."""
    life = at.life
    acknowledged = life.store.durable
    with contextlib.suppress(RaidfsError):
        await lose(life, *TOO_MANY)
    with pytest.raises(RaidfsError):
        await life.write("/later-still", 12)
        await life.volume.fsync(ROOT)
    assert life.store.failed is not None
    at.hold.released.set()
    await trio.sleep(20)
    with pytest.raises(ReadOnly, match="read-only after an error"):
        life.store.writable()
    for job in life.active():
        assert job.state != "running" and job.reason, job
    end = Base(contents(life.members))
    await life.abandon()
    assert await afterwards(at.name, end, life.states, acknowledged, back=True) in (
        "goes on",
        "again",
    )
    return "read-only"


HAPPEN: dict[str, Callable[[At], Awaitable[str]]] = {
    "lost": lost_one,
    "beyond": lost_too_many,
    "source": lost_source,
    "target": lost_target,
    "corrupt": cells_corrupt,
    "kill": crash,
    "unmount": remount,
    "member full": member_full,
    "volume full": volume_full,
    "snapshot": snapshot_made,
    "rollback": gone_back,
}
ENDS_THE_MOUNT = ("kill", "unmount", "beyond")


# -- a second operation ---------------------------------------------------------------------------


def is_over(life: Life, name: str, begun: Begun) -> bool:
    if not begun.answered.is_set():
        return False
    if begun.error is not None:
        return True
    if name == "sweep":
        return not life.store.sweeper.busy
    if name == "clean":
        return not life.cleaning
    return not DO[name].job or all(job.kind != DO[name].job for job in life.active())


async def soon(true: Callable[[], bool]) -> bool:
    with trio.move_on_after(PATIENCE_S):
        while not true():
            await trio.sleep(0.2)
        return True
    return False


async def second(at: At, name: str) -> str:
    """Both are stopped in their middle; then the first is let go, then the other."""
    life, operation = at.life, DO[name]
    hold = life.hold(operation.seam, 2)
    begun = life.start(lambda: operation.begin(life, SECOND))
    if not await soon(lambda: hold.reached.is_set() or is_over(life, name, begun)):
        hold.released.set()
        waiting = [job for job in life.active() if job.kind == operation.job]
        assert not operation.job or waiting or not begun.answered.is_set()
        if begun.answered.is_set() and at.name in OF_MENDER and name in OF_OTHERS:
            assert waiting[0].state == "waiting" and waiting[0].reason, waiting
        return "waits"
    if begun.error is not None:
        hold.released.set()
        return f"refused: {begun.error}"
    at.hold.released.set()
    outcome = "together"
    if hold.reached.is_set() and not await soon(
        lambda: at.hold.later > 8 or is_over(life, at.name, at.begun)
    ):
        outcome = "first"
        if operation.job:
            (job,) = (job for job in life.active() if job.kind == DO[at.name].job)
            assert job.state == "waiting" and job.reason, job
    hold.released.set()
    return outcome


# -- what is to be right then ---------------------------------------------------------------------


def checked(files: Files, without: tuple[int, ...] = ()) -> None:
    report = check_assembly(assembled(made_of(files, without), read_only=True))
    assert not report.findings, report.findings[:10]


async def without_some(end: Base, lacking: set[int], tolerance: int, seed: int) -> None:
    """As many members more are lost as may be; all is there."""
    label = assembled(made_of(end.files)).label
    there = [entry.id for entry in label.members if entry.is_current]
    gone = tuple(random.Random(seed).sample(there, max(0, tolerance - len(lacking))))
    left = Base({k: v for k, v in end.files.items() if k[0] not in gone}, end.model, end.snapshots)
    async with living(left) as life:
        life.store.mender.paused = True
        await life.compare()
        await life.abandon()


def corrupt(life: Life, member: int, part: float) -> int:
    """That part of the cells of a member is something else."""
    rng, count, it = random.Random(life.seed), 0, life.members[member]
    for zone in life.store.space.zones.values():
        columns = [column for column, (m, _) in enumerate(zone.map.columns) if m == member]
        for column in columns:
            content = it.files[f"zone-{zone.map.zone}.{column}"]
            for row in range(zone.fill):
                if rng.random() < part:
                    content[row * CELL_BYTES + rng.randrange(CELL_BYTES)] ^= 0x55
                    count += 1
    return count


# -- all of it ------------------------------------------------------------------------------------


async def afterwards(
    name: str,
    start: Base,
    states: States | None = None,
    acknowledged: int = 0,
    *,
    back: bool = False,
) -> str:
    """The next mount: what was under way goes on, or must be begun again. Then `ended`. `back`:
    those that were lost are."""
    again = DO[name].again
    async with living(start, SEED, states) as life:
        assert life.store.durable >= acknowledged
        await life.compare()
        if again and not (name == "add" and life.is_there(6)):
            outcome = "again"
            await life.quiet()
            life.start(lambda: DO[name].begin(life, FIRST))
        else:
            outcome = "goes on"
        for entry in life.label().members if back else ():
            if entry.id in TOO_MANY and not entry.is_current:
                await life.ask(MemberOnlineRequest(member=str(entry.id)))
        await ended(life, {name: FIRST})
    return outcome


async def ended(life: Life, begun: dict[str, int], *, healed: bool = False) -> None:
    """All goes on to its end, and is right. `begun`: what, and about whom."""
    await life.use()
    await life.quiet()
    for name, which in begun.items():
        assert DONE[name](life, which), (name, which)
    wrong = {member: counts[2] for member, counts in life.store.array.counters().items()}
    assert healed or not any(wrong.values()), f"cells that aren't what they should be: {wrong}"
    if healed:
        await life.ask(ScrubStartRequest())
        await life.quiet()
        record = life.store.scrub.record
        assert record is not None and not record.damaged
    await life.compare()
    life.truth()
    lacking, tolerance = life.lacking(), life.store.space.code.tolerance
    end = await life.stop()
    checked(end.files)
    await without_some(end, lacking, tolerance, SEED)


async def play(name: str, event: str, start: Base) -> str:
    later = 0 if SEED == 1 else random.Random(f"{SEED} {name} {event}").randrange(DO[name].pieces)
    operation = DO[name]
    async with living(start, SEED) as life:
        hold = life.hold(operation.seam, operation.after + later)
        begun = life.start(lambda: operation.begin(life, FIRST))
        with trio.fail_after(600):
            await hold.reached.wait()
        await life.use()
        if operation.job:
            (job,) = (job for job in life.active() if job.kind == operation.job)
            assert job.state == "running" and job.left_bytes, job
        at = At(life, name, hold, begun)
        if event in DO:
            outcome = await second(at, event)
        else:
            outcome = await HAPPEN[event](at)
        if event in ENDS_THE_MOUNT:
            return outcome
        hold.released.set()
        todo = {name: FIRST}
        if event in DO and not outcome.startswith("refused"):
            todo[event] = SECOND
        await begun.answered.wait()
        if begun.error is not None:
            todo, outcome = {}, f"given up: {begun.error}"
        await ended(life, todo, healed=event == "corrupt")
        return outcome
