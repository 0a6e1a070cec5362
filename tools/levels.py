#!/usr/bin/env python3
"""Levels: what each costs, what it survives, and the proof: contents read back after the losses.

    levels.py [--json] [LEVEL/MEMBERS ...]

For each level a volume is made in a temporary directory, a few files are written and compared, and
then, for every combination of as many members as the level promises to survive losing (and for
every one of one member more), these members are taken away and the volume is mounted without them:
contents are compared, and the offline checker has nothing to find. With one member more it must be
read in full or refused, never read wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from raidfs.check import check_volume
from raidfs.errors import NotEnoughMembers
from raidfs.fs.attributes import Caller
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.code import code_for
from raidfs.raid.create import plan_volume
from raidfs.store.make import make_volume
from raidfs.store.meta import ROOT_INO
from raidfs.store.store import Store

JSON_VERSION = 1
LEVELS = ["0/2", "1/2", "1/3", "2/7", "3/4", "4/4", "5/3", "5/5", "6/4", "6/6", "10/4", "10/6"]
LEVELS += ["rs:4+2/6", "rs:8+3/11", "rs:4+4/8"]
CALLER = Caller(0, 0, 1, 0o022)
MEMBER_BYTES = 24 << 20
COMBINATIONS_MAX = 40  # of losses tried, chosen evenly from all


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the table. `share`: of the members' bytes that holds data."""

    level: str
    members: int
    k: int
    m: int
    share: float
    survives: int
    combinations: int  # of that many losses
    tried: int
    equal: int  # read back equal, check clean
    beyond_tried: int  # with one loss more
    beyond_equal: int
    beyond_refused: int
    seconds: float

    @property
    def good(self) -> bool:
        beyond = self.beyond_equal + self.beyond_refused == self.beyond_tried
        return self.equal == self.tried and beyond


def contents(level: str) -> dict[bytes, bytes]:
    """Names and bytes of the files: tiny, page by page, and several rows of several zones."""
    chooser = random.Random(level)
    sizes = (0, 1, 2048, 4096, 4097, 65_536, 300_001, 2_000_003)
    return {b"file-%d" % size: chooser.randbytes(size) for size in sizes}


async def write_all(paths: list[str], files: dict[bytes, bytes]) -> None:
    store = await Store.open(Assembly.open(paths[0]))
    volume = Volume(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        for name, content in files.items():
            ino = volume.create(ROOT_INO, name, 0o644, 0, CALLER).ino
            await volume.write(ino, 0, content)
            volume.release(ino)
            await volume.fsync(ino)
        await store.stop()


async def read_all(source: str) -> dict[bytes, bytes]:
    """By a mount that newly runs without what is not there, and records that."""
    store = await Store.open(Assembly.open(source, degraded=True))
    volume = Volume(store)
    found = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        for entry in volume.readdir(ROOT_INO, 0, 1000):
            if entry.name not in (b".", b".."):
                size = volume.getattr(entry.ino).size
                found[entry.name] = bytes(await volume.read(entry.ino, 0, size))
        await store.stop()
    return found


@contextmanager
def copies_without(paths: list[str], lost: tuple[int, ...]) -> Iterator[list[str]]:
    """What is left of the members, in copies, so that each try begins with the same."""
    place = Path(paths[0]).parent
    with tempfile.TemporaryDirectory(dir=place.parent) as directory:
        left = []
        for number, path in enumerate(paths):
            if number not in lost:
                copy = Path(directory) / Path(path).name
                shutil.copytree(path, copy)
                left.append(str(copy))
        away = place.with_name("away")
        place.rename(away)  # the labels remember where the members were
        try:
            yield left
        finally:
            away.rename(place)


def try_without(paths: list[str], lost: tuple[int, ...], files: dict[bytes, bytes]) -> str:
    """ "equal", "different" or "refused"."""
    with copies_without(paths, lost) as left:
        if not left:
            return "refused"
        try:
            found = trio.run(read_all, left[0])
        except NotEnoughMembers:
            return "refused"
        clean = check_volume(left[0]).clean
    return "equal" if found == files and clean else "different"


def some_combinations(members: int, count: int, most: int) -> list[tuple[int, ...]]:
    everything = list(itertools.combinations(range(members), count))
    step = max(1, len(everything) / most)
    return [everything[int(i * step)] for i in range(min(most, len(everything)))]


def examine(name: str, most: int = COMBINATIONS_MAX) -> Outcome:
    """One level, as "5/3": level and members."""
    started = time.monotonic()
    level, _, count = name.rpartition("/")
    members = int(count)
    code = code_for(level, members)
    files = contents(name)
    with tempfile.TemporaryDirectory(prefix="raidfs-levels-") as directory:
        paths = [str(Path(directory) / "members" / f"{n}") for n in range(members)]
        for path in paths:
            Path(path).mkdir(parents=True)
        plan = plan_volume(paths, level=level, size_bytes=MEMBER_BYTES, zone_bytes=1 << 20)
        make_volume(plan, now_ns=time.time_ns)
        trio.run(write_all, paths, files)
        within = some_combinations(members, code.tolerance, most)
        results = [try_without(paths, lost, files) for lost in within]
        beyond = some_combinations(members, code.tolerance + 1, most)
        more = [try_without(paths, lost, files) for lost in beyond]
    return Outcome(
        level,
        members,
        code.k,
        code.m,
        code.k / code.width,
        code.tolerance,
        math.comb(members, code.tolerance),
        len(within),
        results.count("equal"),
        len(beyond),
        more.count("equal"),
        more.count("refused"),
        time.monotonic() - started,
    )


HEADS = ("level", "members", "code", "capacity", "survives", "read back equal", "one more lost")


def cells(outcome: Outcome) -> tuple[str, ...]:
    tried = f"{outcome.equal} of {outcome.tried}"
    if outcome.tried < outcome.combinations:
        tried += f" (of {outcome.combinations})"
    beyond = f"{outcome.beyond_refused} refused, {outcome.beyond_equal} equal"
    wrong = outcome.beyond_tried - outcome.beyond_refused - outcome.beyond_equal
    return (
        outcome.level,
        str(outcome.members),
        f"{outcome.k}+{outcome.m}",
        f"{outcome.share:.0%}",
        str(outcome.survives),
        tried,
        beyond + (f", {wrong} WRONG" if wrong else ""),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [HEADS, *map(cells, outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    text = []
    for line in lines:
        padded = [
            cell.rjust(width) if column in (1, 3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(padded).rstrip())
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("level", nargs="*", default=LEVELS, help="as in 5/3: level and members")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    logging.getLogger("raidfs").setLevel(logging.CRITICAL)  # members are lost on purpose
    outcomes = [examine(name) for name in options.level]
    if options.json:
        levels = [{**asdict(outcome), "good": outcome.good} for outcome in outcomes]
        print(json.dumps({"version": JSON_VERSION, "levels": levels}, indent=2))
    else:
        print(table(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
