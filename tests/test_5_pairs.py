"""Every operation in progress, and everything that may happen meanwhile: what comes of it.

The operation is stopped in its middle, between two pieces. Then the event happens, or another
operation is begun. The operation is let go, and all goes on to its end. Afterwards the contents are
those of a model, `check` finds nothing, nothing is left to be done and status says so, and then as
many members may be lost as the level survives.

The table says what is to come of each pair; docs/ARCHITECTURE.md shows it. RAIDFS_PAIRS_SEED
replays another seed than the first, with other contents and another middle.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pair_acts
import pytest
from pair_acts import DO, HAPPEN, SEED, play
from pairs import COUNT, LEVEL, PIECE_CELLS, SLOTS, WIDTH, Base, Life, living, without_threads
from simulated_volume import ROOT, fresh_files, in_simulated_time

from raidfs.daemon.jobs import JobBook
from raidfs.store import mending
from raidfs.store.membership import Membership
from raidfs.store.scrub import Scrub

OPERATIONS = {
    "replace lost": "rebuild onto a replacement",
    "spread": "rebuild spread over others",
    "resync": "resync of a member that is back",
    "remove": "removal (evacuation)",
    "replace": "replacement of a member in use",
    "add": "add",
    "scrub": "scrub, healing",
    "convert": "convert",
    "rebalance": "rebalance",
    "sweep": "sweep after a snapshot was deleted",
    "clean": "cleaning",
}
EVENTS = {
    "lost": "another member is lost",
    "beyond": "more are lost than redundancy covers",
    "source": "the member that is read from is lost",
    "target": "the member that is written to is lost",
    "corrupt": "a member's cells are corrupt",
    "member full": "the member that is written to is full",
    "kill": "crash",
    "unmount": "unmount and mount",
    "volume full": "users fill the volume",
    "snapshot": "a snapshot is created",
    "rollback": "rollback",
}
WORDS = {
    "goes on": "by itself, to its end; after a crash or an unmount with the next mount",
    "waits": "what happens, or is begun second, waits until the first has finished a piece, or all",
    "stalls": "it stands still and says why, and goes on when there is room",
    "read-only": "the volume is, until members are back and it is mounted again; then it goes on",
    "again": "it left nothing behind, and can be begun again",
    "given up": "with an error; nothing of it is left",
    "together": "both go on",
    "first": "the second one comes first, and the first waits",
    "refused": "with a sentence that says what to do",
}
TABLES = [
    """
    members      | lost    | beyond    | source  | target   | corrupt | member full
    replace lost | goes on | read-only | -       | goes on  | goes on | goes on
    spread       | goes on | read-only | -       | goes on  | goes on | goes on
    resync       | goes on | read-only | -       | goes on  | goes on | goes on
    remove       | goes on | read-only | goes on | goes on  | goes on | goes on
    replace      | goes on | read-only | goes on | goes on  | goes on | goes on
    add          | goes on | read-only | -       | given up | goes on | goes on
    scrub        | goes on | read-only | -       | goes on  | goes on | goes on
    convert      | goes on | read-only | -       | goes on  | goes on | goes on
    rebalance    | goes on | read-only | goes on | goes on  | goes on | goes on
    sweep        | goes on | read-only | -       | goes on  | goes on | goes on
    clean        | goes on | read-only | -       | goes on  | goes on | goes on
    """,
    """
    volume       | kill    | unmount | volume full | snapshot | rollback
    replace lost | goes on | goes on | goes on     | goes on  | goes on
    spread       | goes on | goes on | stalls      | goes on  | goes on
    resync       | goes on | goes on | waits       | goes on  | goes on
    remove       | goes on | goes on | stalls      | goes on  | goes on
    replace      | goes on | goes on | goes on     | goes on  | goes on
    add          | again   | waits   | goes on     | goes on  | goes on
    scrub        | goes on | goes on | goes on     | goes on  | goes on
    convert      | goes on | goes on | stalls      | goes on  | goes on
    rebalance    | goes on | goes on | goes on     | goes on  | goes on
    sweep        | goes on | goes on | goes on     | goes on  | goes on
    clean        | again   | again   | waits       | goes on  | goes on
    """,
    """
    and          | replace lost | spread   | resync   | remove   | replace
    replace lost | waits        | waits    | waits    | waits    | waits
    spread       | waits        | waits    | waits    | waits    | waits
    resync       | waits        | waits    | waits    | waits    | waits
    remove       | waits        | waits    | waits    | waits    | waits
    replace      | waits        | waits    | waits    | waits    | waits
    add          | waits        | waits    | waits    | waits    | waits
    scrub        | first        | first    | first    | first    | first
    convert      | first        | first    | first    | first    | first
    rebalance    | waits        | waits    | waits    | waits    | waits
    sweep        | together     | together | together | together | together
    clean        | together     | together | together | together | together
    """,
    """
    and          | add      | scrub    | convert  | rebalance | sweep    | clean
    replace lost | together | waits    | waits    | waits     | together | together
    spread       | together | waits    | waits    | waits     | together | together
    resync       | together | waits    | waits    | waits     | together | together
    remove       | together | waits    | waits    | waits     | together | together
    replace      | together | waits    | waits    | waits     | together | together
    add          | waits    | together | waits    | waits     | together | together
    scrub        | together | refused  | together | first     | together | together
    convert      | together | together | waits    | waits     | together | first
    rebalance    | together | waits    | waits    | refused   | together | together
    sweep        | together | together | together | together  | waits    | together
    clean        | together | together | waits    | together  | together | -
    """,
]
SAYS = {  # whoever is refused, or looks why nothing goes on
    ("spread", "volume full"): "no member that could take them has room: add one",
    ("remove", "volume full"): "no member that could take them has room: add one",
    ("convert", "volume full"): "too little room: .* free files or snapshots, or add members",
    ("add", "target"): "/simulated/6: simulated write error of label",
    ("scrub", "scrub"): "a scrub is running: wait, or `scrub stop` ends it",
    ("rebalance", "rebalance"): "a rebalance is under way already; `raidfs-ctl wait` waits for it",
}
ALSO = {  # with other seeds: whether a zone that both want is in hand just then
    "volume full": {"goes on", "waits"},
    "clean": {"together", "first"},
}
QUICK = {
    ("replace lost", "kill"), ("spread", "lost"), ("resync", "corrupt"), ("remove", "source"),
    ("replace", "volume full"), ("add", "target"), ("scrub", "scrub"), ("convert", "remove"),
    ("rebalance", "unmount"), ("sweep", "rollback"), ("clean", "beyond"),
}  # fmt: skip
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "ARCHITECTURE.md"


def cells_of(table: str) -> tuple[list[str], dict[str, list[str]]]:
    """Columns; and by operation what comes of it."""
    lines = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return lines[0][1:], {line[0]: line[1:] for line in lines[1:]}


def expected() -> dict[tuple[str, str], str]:
    found = {}
    for table in TABLES:
        columns, rows = cells_of(table)
        for name, cells in rows.items():
            found.update({(name, c): cell for c, cell in zip(columns, cells, strict=True)})
    return found


# -- volumes to begin with ------------------------------------------------------------------------


async def furnished(life: Life) -> None:
    """Files, snapshots, and zones of which a part is dead; members that aren't equally full."""
    allocation = life.store.space.allocation
    allocation.closed_to = frozenset({5})
    for number in range(5):
        await life.write(f"/large{number}", 20 + 3 * number)
        await life.write(f"/gone{number}", 14)
        await life.volume.fsync(ROOT)
    await life.snapshot("s0")
    await life.use(12)
    await life.snapshot("s1")
    allocation.closed_to = frozenset()
    for number in range(4):
        await life.write(f"/later{number}", 16)
        await life.write(f"/dead{number}", 16)
        await life.volume.fsync(ROOT)
    for number in range(5):
        life.unlink(f"/gone{number}")
    for number in range(4):
        life.unlink(f"/dead{number}")
    await life.use(6)


async def written_without(life: Life, member: int) -> None:
    """It is offline, and lacks rows of a zone that it has a column of: most of them."""
    space = life.store.space
    for number in range(60):
        zone = space.open[0] if space.open else None
        if zone is not None and 0 < zone.fill < 5 and member in dict(zone.map.columns):
            break
        await life.write(f"/little{number}", 4)
        await life.volume.fsync(ROOT)
    else:
        raise AssertionError("no zone that is fit")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "healthy", lambda zone: True)  # or rows would go to whole zones
        await life.store.losses.fail_member(member, "a test", expected=True)
        await life.write("/missed", 22)
        await life.volume.fsync(ROOT)
    (first,) = zone.missed.values()
    assert zone.fill - first > 2 * PIECE_CELLS, (zone.fill, zone.missed)


@functools.cache
def base(kind: str) -> Base:
    """plain: one member has less than the others; lost: one is, and mending is paused; offline:
    one is, and has missed something."""
    start = Base(fresh_files(LEVEL, COUNT, slots=SLOTS, width=WIDTH))

    async def make() -> Base:
        async with living(start) as life:
            await furnished(life)
            if kind == "lost":
                await life.store.mender.set(paused=True)
                await life.store.losses.fail_member(1, "a test")
                await life.write("/missed", 40)
            if kind == "offline":
                await written_without(life, 1)
            await life.use(6)
            return await life.stop()
        raise AssertionError

    made: Base = in_simulated_time(make)
    return made


# -- the table ------------------------------------------------------------------------------------


def pairs() -> list[Any]:
    return [
        pytest.param(
            *pair,
            word,
            marks=[] if pair in QUICK else [pytest.mark.slow],
            id="-".join(pair).replace(" ", "_"),
        )
        for pair, word in expected().items()
        if word != "-"
    ]


def test_no_pair_is_left_out() -> None:
    table = expected()
    assert set(table) == {(name, event) for name in DO for event in (*EVENTS, *DO)}
    assert set(DO) == set(OPERATIONS) and set(HAPPEN) == set(EVENTS)
    assert set(table.values()) - {"-"} == set(WORDS)
    for pair, word in table.items():
        assert (pair in SAYS) == (word in ("stalls", "refused", "given up")), pair


def outcome_of(name: str, event: str) -> str:
    with without_threads():
        start = base(DO[name].base)
        found: str = in_simulated_time(lambda: play(name, event, start), limit_s=7200, seed=SEED)
    return found


@pytest.mark.parametrize(("name", "event", "word"), pairs())
def test_what_comes_of_it(name: str, event: str, word: str) -> None:
    found, _, sentence = outcome_of(name, event).partition(": ")
    also = ALSO.get(event, set()) if SEED != 1 else set()
    assert found == word or {found, word} <= also, (found, sentence)
    if (name, event) in SAYS:
        assert re.fullmatch(SAYS[name, event], sentence), sentence


# -- as it is printed -----------------------------------------------------------------------------


def printed() -> str:
    """For docs/ARCHITECTURE.md; `python tests/test_5_pairs.py` shows it."""
    return "\n".join(_printed())


def _printed() -> Iterator[str]:
    for word, text in WORDS.items():
        yield f"- *{word}*: {text}"
    for table in TABLES:
        columns, rows = cells_of(table)
        known = [EVENTS.get(column) or OPERATIONS[column] for column in columns]
        yield "\n| in progress | " + " | ".join(known) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for name, cells in rows.items():
            yield "| " + " | ".join([OPERATIONS[name], *cells]) + " |"
    yield ""
    for (name, event), text in SAYS.items():
        what = EVENTS.get(event) or OPERATIONS[event]
        yield f'- {OPERATIONS[name]}; {what}: "{text.replace(".*", "...")}"'


def test_the_documentation_shows_the_table() -> None:
    assert printed() in ARCHITECTURE.read_text(), f"it should show:\n{printed()}"


# -- would it notice? -----------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def not_synced(patch: Patch) -> None:
    patch.setattr(mending, "sync_targets", lambda zone, targets: None)


def labels_are_not_tidied(patch: Patch) -> None:
    async def tidy(self: Membership) -> None:
        pass

    patch.setattr(Membership, "tidy", tidy)


def jobs_always_run(patch: Patch) -> None:
    """Says status."""
    patch.setattr(JobBook, "_state", lambda self, seen: ("running", ""))


def scrub_waits_for_nobody(patch: Patch) -> None:
    patch.setattr(Scrub, "_held_up", lambda self: False)


def half_removed(patch: Patch) -> None:
    """Nothing looks whether it is over."""
    patch.setattr(pair_acts.Life, "quiet", lambda self, may_stall=False: pair_acts.trio.sleep(0))


SABOTAGE: list[tuple[Callable[[Patch], None], str, str]] = [
    (not_synced, "replace lost", "kill"),
    (labels_are_not_tidied, "replace lost", "snapshot"),
    (jobs_always_run, "remove", "volume full"),
    (scrub_waits_for_nobody, "scrub", "remove"),
    (half_removed, "remove", "lost"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("sabotage", "name", "event"), SABOTAGE)
def test_it_would_be_noticed(
    sabotage: Callable[[Patch], None], name: str, event: str, monkeypatch: Patch
) -> None:
    base(DO[name].base)
    sabotage(monkeypatch)
    try:
        outcome = outcome_of(name, event)
    except (AssertionError, ExceptionGroup):
        return
    assert outcome != expected()[name, event]


if __name__ == "__main__":
    print(printed())
