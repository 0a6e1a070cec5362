#!/usr/bin/env python3
"""I/Os per request: the survey's table for each RAID level, counted on the members of real volumes.

    survey_ios.py [--json] [LEVEL/MEMBERS ...]

The survey is Chen, Lee, Gibson, Katz, Patterson, "RAID: High-Performance, Reliable Secondary
Storage", ACM Computing Surveys 26(2), 1994; its table 3 gives the throughput of small and large
requests per member, relative to level 0. A small request is one page (the survey's striping unit),
a large one as many pages as a row has data cells. For each level a volume is made of directories
in a temporary place, and what its store asks of its members is counted. An I/O is one cell read or
written, as the survey counts striping units; raidfs asks for cells that lie one after the other in
a column by one call (`reads` and `writes` in --json).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from raidfs.check import check_volume
from raidfs.fs.attributes import Caller
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.code import Code, code_for
from raidfs.raid.create import plan_volume
from raidfs.raid.directory import DirectoryMember
from raidfs.raid.label import read_labels
from raidfs.store.make import make_volume
from raidfs.store.meta import ROOT_INO
from raidfs.store.store import Store

JSON_VERSION = 1
LEVELS = ["0/4", "1/2", "2/7", "3/5", "4/5", "5/5", "6/6", "10/4", "rs:4+3/7"]
CALLER = Caller(0, 0, 1, 0o022)
CELL_BYTES = 4096
ZONE_BYTES = 64 << 10
MEMBER_BYTES = 24 << 20

WHY = """\
Where raidfs differs from the survey, and why:
 - A small write reads nothing. The survey's array reads old data and old parity to change a row in
   place (4 I/Os at level 5, 6 at level 6). In raidfs a row is written once, in full, before
   anything refers to it; cells of a row that hold nothing are known to be zeros and are not
   written. So a page that is synced alone costs itself and the row's parity: 1 + m.
 - Small writes that come together share rows, wherever in files they lie: then each costs what its
   part of a full row does, (k + m) / k. So do large ones, as in the survey.
 - What is overwritten stays where it was until its zone is cleaned. The survey's array has no such
   cost: each cell that is still in use when its zone is cleaned is read once and written once more
   with its part of the parity. It is not in these figures.
 - Level 3 (and 2) interleaves whole pages, not bits: a small read touches one member, not all.
 - At levels 2, 3 and 4 no page is read from the members that keep parity, so that reads have k of G
   members to go to. The survey counts level 3 so; it leaves 2 and 4 out, as inferior to the rest.
 - Level 10 always writes the copies of a whole row, since parity of a row is always present: a page
   that is synced alone costs 1 + m there, too, and not 2.
 - Metadata is extra: each sync of a file ends in one write to the log on every member, whatever the
   number of its pages. It stands in the last column and is in none of the others.
 - Checksums lie in the metadata, too. What of it is not in memory is read from one member, and one
   page of it serves many cells (metadata_reads in --json)."""


class CountedMember(DirectoryMember):
    """Counts what is asked of its columns and metadata. It lends no descriptors, and answers
    nothing from the page cache, so that all goes through these calls."""

    lends = False

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.reset()

    def reset(self) -> None:
        self.reads = self.writes = self.cells_read = self.cells_written = 0
        self.meta_reads = self.log_writes = self.log_bytes = 0

    def column_read(self, zone, column, slot, offset_bytes, out):
        self.reads += 1
        self.cells_read += out.nbytes // CELL_BYTES
        super().column_read(zone, column, slot, offset_bytes, out)

    def column_read_cached(self, zone, column, slot, offset_bytes, out):
        return False

    def column_write(self, zone, column, slot, offset_bytes, addresses, cell_bytes):
        self.writes += 1
        self.cells_written += len(addresses)
        super().column_write(zone, column, slot, offset_bytes, addresses, cell_bytes)

    def meta_read(self, file, offset_bytes, nbytes):
        self.meta_reads += 1
        return super().meta_read(file, offset_bytes, nbytes)

    def meta_write(self, file, offset_bytes, data):
        self.log_writes += 1
        self.log_bytes += len(data)
        super().meta_write(file, offset_bytes, data)

    def meta_write_synced(self, file, offset_bytes, data):
        self.log_writes += 1
        self.log_bytes += len(data)
        super().meta_write_synced(file, offset_bytes, data)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request cost, on average over `requests` of them. `reads`, `writes`: calls. `load`:
    cells of the member that had most of them. Metadata: on each member."""

    requests: int
    reads: float
    writes: float
    cells_read: float
    cells_written: float
    load: float
    metadata_reads: float
    metadata_writes: float
    metadata_bytes: float

    @property
    def ios(self) -> float:
        return self.cells_read + self.cells_written


@dataclass(frozen=True, slots=True)
class Outcome:
    """One level. Of a large request: `k` pages. `gathered`: small writes, synced together."""

    level: str
    members: int
    k: int
    m: int
    small_read: Cost
    degraded_read: Cost | None  # of a page on a member that is lost
    large_read: Cost
    small_write: Cost
    gathered_write: Cost
    large_write: Cost
    storage: float

    def per_member(self, cost: Cost, pages: int) -> float:
        """Throughput of reads per member, relative to level 0: the busiest member is the limit."""
        return pages / (self.members * cost.load)


class Counter:
    """Counts over all members from one look to the next."""

    def __init__(self, members: Sequence[CountedMember]) -> None:
        self.members = members

    def start(self) -> None:
        for member in self.members:
            member.reset()

    def cost(self, requests: int) -> Cost:
        each = self.members
        return Cost(
            requests,
            sum(m.reads for m in each) / requests,
            sum(m.writes for m in each) / requests,
            sum(m.cells_read for m in each) / requests,
            sum(m.cells_written for m in each) / requests,
            max(m.cells_read + m.cells_written for m in each) / requests,
            max(m.meta_reads for m in each) / requests,
            max(m.log_writes for m in each) / requests,
            max(m.log_bytes for m in each) / requests,
        )

    def server(self) -> int:
        """Which member was read from just now."""
        return next(i for i, member in enumerate(self.members) if member.reads)


class Bench:
    """A volume of one level whose members count."""

    def __init__(self, paths: Sequence[str], code: Code) -> None:
        self.paths = paths
        self.code = code
        self.pages = code.k * (ZONE_BYTES // CELL_BYTES) * code.width  # a turn of the rotation
        self.chooser = random.Random(f"{code.text}")
        self.content = self.chooser.randbytes(self.pages * CELL_BYTES)
        self.servers: dict[tuple[bytes, int], int] = {}  # (file, page) -> member that it came from

    async def open(self, lost: int | None = None) -> tuple[Store, Counter]:
        members = []
        for number, path in enumerate(self.paths):
            if number != lost:
                members.append(CountedMember(path))
                members[-1].adopt(read_labels(members[-1]))
        assembly = Assembly.of_members(members, degraded=lost is not None)
        return await Store.open(assembly, interval_s=3600.0), Counter(members)

    async def healthy(self) -> tuple[Cost, Cost, Cost, Cost, Cost]:
        """(small read, large read, small write, gathered, large write)."""
        store, counter = await self.open()
        volume = Volume(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            ino = volume.create(ROOT_INO, b"file", 0o644, os.O_RDWR, CALLER).ino
            await self.fill(volume, ino)
            small_read = await self.read_small(volume, ino, counter)
            large_write, large_read = await self.large(volume, counter)
            writes = await self.write_small(volume, ino, counter)
            volume.release(ino)
            await store.stop()
        return small_read, large_read, *writes, large_write

    async def fill(self, volume: Volume, ino: int) -> None:
        """Write all of the file, and have it on the members."""
        step = 1 << 20
        for offset in range(0, len(self.content), step):
            await volume.write(ino, offset, self.content[offset : offset + step])
        await volume.fsync(ino)

    async def read_small(self, volume: Volume, ino: int, counter: Counter) -> Cost:
        """Each page on its own, in some order."""
        counter.start()
        for page in self.chooser.sample(range(self.pages), self.pages):
            await self.read_page(volume, ino, page, self.content)
        return counter.cost(self.pages)

    async def read_page(self, volume: Volume, ino: int, page: int, content: bytes) -> None:
        start = page * CELL_BYTES
        found = bytes(await volume.read(ino, start, CELL_BYTES))
        assert found == content[start : start + CELL_BYTES], f"page {page} reads wrong"

    async def large(self, volume: Volume, counter: Counter) -> tuple[Cost, Cost]:
        """Requests of a row's pages, each a file: written and synced, then read. (write, read)."""
        rows = self.rows()
        inos = {name: volume.create(ROOT_INO, name, 0o644, os.O_RDWR, CALLER).ino for name in rows}
        await volume.fsync(ROOT_INO)
        counter.start()
        for name, ino in inos.items():
            await volume.write(ino, 0, rows[name])
            await volume.fsync(ino)
        write = counter.cost(len(rows))
        counter.start()
        for name, ino in inos.items():
            found = bytes(await volume.read(ino, 0, len(rows[name])))
            assert found == rows[name], f"{name!r} reads wrong"
        read = counter.cost(len(rows))
        for name, ino in inos.items():
            for page in range(self.code.k):
                counter.start()
                await self.read_page(volume, ino, page, rows[name])
                self.servers[name, page] = counter.server()
            volume.release(ino)
        return write, read

    def rows(self) -> dict[bytes, bytes]:
        """Files that fill a row each, by name: a zone's worth for each member."""
        nbytes = self.code.k * CELL_BYTES
        count = self.code.width * (ZONE_BYTES // CELL_BYTES)
        return {b"row-%d" % i: random.Random(i).randbytes(nbytes) for i in range(count)}

    async def write_small(self, volume: Volume, ino: int, counter: Counter) -> tuple[Cost, Cost]:
        """Pages overwritten, which lets their old cells be: each synced; then many at once."""
        alone = self.chooser.sample(range(self.pages), 8)
        counter.start()
        for page in alone:
            await volume.write(ino, page * CELL_BYTES, self.new_page(page))
            await volume.fsync(ino)
        single = counter.cost(len(alone))
        together = self.chooser.sample(range(self.pages), self.code.k * 8)
        counter.start()
        for page in together:
            await volume.write(ino, page * CELL_BYTES, self.new_page(page))
        await volume.fsync(ino)
        return single, counter.cost(len(together))

    def new_page(self, page: int) -> bytes:
        new, start = self.chooser.randbytes(CELL_BYTES), page * CELL_BYTES
        self.content = self.content[:start] + new + self.content[start + CELL_BYTES :]
        return new

    async def without(self, lost: int) -> Cost:
        """Pages that lay on a member, read when it is lost."""
        store, counter = await self.open(lost)
        volume = Volume(store)
        pages = [place for place, server in self.servers.items() if server == lost][:64]
        rows = self.rows()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            inos = {name: volume.lookup(ROOT_INO, name).ino for name, _ in pages}
            for ino in inos.values():
                volume.open(ino, os.O_RDONLY)
            counter.start()
            for name, page in pages:
                await self.read_page(volume, inos[name], page, rows[name])
            cost = counter.cost(len(pages))
            for ino in inos.values():
                volume.release(ino)
            await store.stop()
        return cost


def examine(name: str) -> Outcome:
    """One level, as "5/5": level and members."""
    level, _, count = name.rpartition("/")
    code = code_for(level, int(count))
    with tempfile.TemporaryDirectory(prefix="raidfs-survey-") as directory:
        paths = [str(Path(directory) / f"{number}") for number in range(code.width)]
        for path in paths:
            Path(path).mkdir()
        plan = plan_volume(paths, level=level, size_bytes=MEMBER_BYTES, zone_bytes=ZONE_BYTES)
        make_volume(plan, now_ns=time.time_ns)
        bench = Bench(paths, code)
        small_read, large_read, small, gathered, large_write = trio.run(bench.healthy)
        assert check_volume(paths[0]).clean
        degraded = None
        if code.tolerance:
            away = Path(paths[0]).rename(Path(directory) / "away")
            degraded = trio.run(bench.without, 0)
            assert away.exists() and check_volume(paths[1]).clean
    return Outcome(
        level,
        code.width,
        code.k,
        code.m,
        small_read,
        degraded,
        large_read,
        small,
        gathered,
        large_write,
        plan.usable_bytes / (plan.zones * code.width * ZONE_BYTES),
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """Table 3 for one level, G = members: throughput per member relative to level 0, and the I/Os
    of a small write that follow from it. `printed`: it is in the table; else from the text, or by
    the rule of its neighbours there."""

    small_read: float
    small_write: float
    large_read: float
    large_write: float
    storage: float
    printed: bool

    @property
    def ios_small_write(self) -> float:
        return 1 / self.small_write

    def ios_small_read(self, k: int) -> float:
        """Level 3: "each read request accesses all data disks" (section 3.2.4); parity is idle."""
        return 1 if self.small_read == 1 else k


def survey(level: str, members: int, k: int) -> Survey:
    """Level 2 as 3, 4 as 5 (section 3.2.5: four I/Os per small write; its dedicated parity then
    bounds it further), 10 as 1; K+M by 2 (1 + M) I/Os, or all members if these are fewer."""
    share = k / members
    if level == "0":
        return Survey(1, 1, 1, 1, 1, True)
    if level in ("1", "10"):
        return Survey(1, share if level == "1" else 1 / 2, 1, share, share, members == 2)
    if level in ("2", "3"):
        return Survey(1 / members, 1 / members, share, share, share, level == "3")
    ios = 2 * (1 + members - k)
    small = max(1 / members, 1 / ios)
    return Survey(1, small, 1, share, share, level in ("5", "6"))


HEADS = ("", "", "small read", "", "degraded", "small write", "", "", "large read", "")
HEADS += ("large write", "", "metadata")
SUBHEADS = ("level", "G", "survey", "raidfs", "read", "survey", "alone", "together")
SUBHEADS += ("survey", "raidfs", "survey", "raidfs", "per sync")


def ios_table(outcomes: Sequence[Outcome]) -> list[str]:
    """I/Os per request."""
    rows: list[tuple[str, ...]] = [HEADS, SUBHEADS]
    for one in outcomes:
        said = survey(one.level, one.members, one.k)
        mark = "" if said.printed else "*"
        rows.append(
            (
                one.level,
                str(one.members),
                number(said.ios_small_read(one.k)) + mark,
                number(one.small_read.ios),
                "-" if one.degraded_read is None else number(one.degraded_read.ios),
                number(said.ios_small_write) + mark,
                number(one.small_write.ios),
                number(one.gathered_write.ios),
                number(one.k) + mark,
                number(one.large_read.ios),
                number(one.k / said.large_write) + mark,
                number(one.large_write.ios),
                f"{one.small_write.metadata_writes:.1f} x "
                f"{one.small_write.metadata_bytes / 1024:.0f} KiB",
            )
        )
    return aligned(rows)


def throughput_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Table 3: survey / raidfs."""
    rows = [("level", "G", "small read", "small write (alone, together)", "large read")]
    rows[0] += ("large write", "storage")
    for one in outcomes:
        said = survey(one.level, one.members, one.k)
        mark = "" if said.printed else "*"
        rows.append(
            (
                one.level,
                str(one.members),
                f"{said.small_read:.2f}{mark} / {one.per_member(one.small_read, 1):.2f}",
                f"{said.small_write:.2f}{mark} / {1 / one.small_write.ios:.2f}, "
                f"{1 / one.gathered_write.ios:.2f}",
                f"{said.large_read:.2f}{mark} / {one.per_member(one.large_read, one.k):.2f}",
                f"{said.large_write:.2f}{mark} / {one.k / one.large_write.ios:.2f}",
                f"{said.storage:.2f}{mark} / {one.storage:.2f}",
            )
        )
    return aligned(rows)


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    lines = list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("level", nargs="*", default=LEVELS, help="as in 5/5: level and members")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    logging.getLogger("raidfs").setLevel(logging.CRITICAL)  # members are lost on purpose
    outcomes = [examine(name) for name in options.level]
    if options.json:
        levels = [
            {**asdict(one), "survey": asdict(survey(one.level, one.members, one.k))}
            for one in outcomes
        ]
        print(json.dumps({"version": JSON_VERSION, "levels": levels}, indent=2))
        return 0
    print("I/Os per request (* not in the survey's table: by the rule of its neighbours)")
    print("\n".join(ios_table(outcomes)))
    print("\nThroughput per member relative to level 0 (the survey's table 3): survey / raidfs")
    print("\n".join(throughput_table(outcomes)))
    print(f"\n{WHY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
