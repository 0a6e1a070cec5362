#!/usr/bin/env python3
"""What names, attributes and small syncs cost the daemon, in microseconds of CPU time each.

No mount and no kernel: a Volume over a real store, level 5 on five directories in memory, driven
from within by the calls that the daemon makes. So the figures are those of raidfs alone, with its
threads; what FUSE adds comes on top. Told are medians over rounds, each on a fresh volume.

`op` is the operation itself. `flush` is its share of the commit after all of them: the pages'
bursts, the leaves, the transaction, the log on all members. For `write 4 KiB, fsync` each operation
has a commit of its own and `op` holds it.
"""

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import random
import statistics as figures
import sys
import tempfile
import time
from pathlib import Path

import trio
from measuring import MEMORY, machine, machine_line, progress, table
from volumes import ROOT, make_members, open_store

from raidfs.errors import FsError
from raidfs.fs.attributes import Changes
from raidfs.fs.volume import Volume

PAGE = os.urandom(4096)
FILE_PAGES = 4096  # of the file that is written at random
DIRECTORY_FILES = 500


class Volumes:
    """Opens one volume again and again, with a real clock."""

    def __init__(self, directory):
        self.paths = make_members(directory, 5, "5", 1 << 30, zone_bytes=16 << 20)

    @contextlib.asynccontextmanager
    async def mounted(self):
        """Cuts come only when asked for, or at pressure."""
        store = await open_store(self.paths, clock=time.time_ns, interval_s=3600.0)
        volume = Volume(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            try:
                yield volume
            finally:
                await store.stop()


class Meter:
    """CPU time of this process, all its threads, per operation; optionally a profile of one."""

    def __init__(self, profiled):
        self.found = {}
        self.profiled = profiled
        self.profile = cProfile.Profile()

    @contextlib.contextmanager
    def time(self, name, part, count):
        """Adds {name: {part: microseconds}} for `count` operations done inside."""
        watched = name == self.profiled
        if watched:
            self.profile.enable()
        begun = time.process_time_ns()
        yield
        spent = time.process_time_ns() - begun
        if watched:
            self.profile.disable()
        self.found.setdefault(name, {})[part] = spent / count / 1e3

    async def both(self, name, volume, items, operation):
        """`operation(item)` for each, then the commit of all."""
        with self.time(name, "op", len(items)):
            for item in items:
                await volume.ready()
                operation(item)
        with self.time(name, "flush", len(items)):
            await volume.store.commit()


async def file_of(volume, parent, name, pages=0):
    """A new file with so many pages, closed and forgotten by the kernel."""
    told = volume.create(parent, name, 0o644, os.O_RDWR, ROOT)
    for first in range(0, pages, 256):
        await volume.write(told.ino, first * 4096, PAGE * min(256, pages - first))
    volume.release(told.ino)
    volume.forget(told.ino)
    return told.ino


async def small_syncs(meter, volume, count):
    """One page somewhere, fsync; the same with nothing but a chmod to sync."""
    ino = await file_of(volume, 1, b"database", FILE_PAGES)
    rng = random.Random(1)
    volume.open(ino, os.O_RDWR)
    await volume.fsync(ino)
    with meter.time("write 4 KiB, fsync", "op", count):
        for _ in range(count):
            await volume.write(ino, rng.randrange(FILE_PAGES) * 4096, PAGE)
            await volume.fsync(ino)
    with meter.time("chmod, fsync", "op", count):
        for number in range(count):
            await volume.setattr(ino, Changes(mode=0o600 + number % 2), ROOT)
            await volume.fsync(ino)
    volume.release(ino)


def directory_of(volume, name):
    told = volume.mkdir(1, name, 0o755, ROOT)
    volume.forget(told.ino)
    return told.ino


async def small_files(meter, volume, count, nbytes):
    """As tar makes them: the name is looked up in vain, made, written, released."""
    name = f"new file of {nbytes} bytes"
    parents = [
        directory_of(volume, f"{nbytes}-{number}".encode())
        for number in range(-(-count // DIRECTORY_FILES))
    ]
    await volume.store.commit()
    content = PAGE[:nbytes]
    with meter.time(name, "op", count):
        for number in range(count):
            parent = parents[number // DIRECTORY_FILES]
            await volume.ready()
            each = b"file%07d" % number
            with contextlib.suppress(FsError):
                volume.lookup(parent, each)
            told = volume.create(parent, each, 0o644, os.O_RDWR, ROOT)
            if content:
                await volume.write(told.ino, 0, content)
            volume.release(told.ino)
    with meter.time(name, "flush", count):
        await volume.store.commit()
    return [(parents[n // DIRECTORY_FILES], b"file%07d" % n) for n in range(count)]


async def lookups(meter, volume, names):
    """Cold: an inode that is not in memory. Known: it is. Missing: no such name."""
    names = random.Random(2).sample(names, len(names))
    for kind in ("cold", "known"):
        with meter.time(f"lookup, {kind}", "op", len(names)):
            for parent, name in names:
                volume.lookup(parent, name)
    with meter.time("lookup, missing", "op", len(names)):
        for parent, name in names:
            with contextlib.suppress(FsError):
                volume.lookup(parent, name + b"?")


async def attributes(meter, volume, names):
    """chmod, chown and utimens of files known; xattrs."""
    inos = [volume.lookup(*each).ino for each in names]
    changes = {
        "chmod": Changes(mode=0o600),
        "chown": Changes(uid=1000, gid=1000),
        "utimens": Changes(atime_ns=10**18, mtime_ns=10**18),
    }
    for name, change in changes.items():
        with meter.time(name, "op", len(inos)):
            for ino in inos:
                await volume.ready()
                await volume.setattr(ino, change, ROOT)
        with meter.time(name, "flush", len(inos)):
            await volume.store.commit()

    def tag(ino):
        volume.setxattr(ino, b"user.tag", b"value", 0, ROOT)

    await meter.both("setxattr", volume, inos, tag)
    for ino, each in zip(inos, names, strict=True):
        assert volume.lookup(*each).ino == ino
        volume.forget(ino, 3)


async def directories(meter, volume, names):
    """mkdir and rmdir, rename within a directory, unlink of files with one page."""
    parent = directory_of(volume, b"directories")
    made = [b"d%07d" % number for number in range(len(names))]

    def mkdir(name):
        volume.forget(volume.mkdir(parent, name, 0o755, ROOT).ino)

    def rename(place):
        volume.rename(*place, place[0], place[1] + b".renamed")

    def link(place):
        ino = volume.lookup(place[0], place[1] + b".renamed").ino
        volume.link(ino, *place)
        volume.forget(ino, 2)

    def unlink(place):
        volume.unlink(place[0], place[1] + b".renamed")

    await meter.both("mkdir", volume, made, mkdir)
    await meter.both("rmdir", volume, made, lambda name: volume.rmdir(parent, name))
    await meter.both("rename", volume, names, rename)
    await meter.both("link", volume, names, link)
    await meter.both("unlink, one of two names", volume, names, unlink)
    await meter.both("unlink", volume, names, lambda place: volume.unlink(*place))


async def measure(meter, directory, count):
    """All cases once, on a fresh volume."""
    volumes = Volumes(directory)
    async with volumes.mounted() as volume:
        names = await small_files(meter, volume, count, 4096)
        await small_files(meter, volume, count, 100)
        await small_files(meter, volume, count, 0)
        await small_syncs(meter, volume, max(1, count // 4))
    async with volumes.mounted() as volume:
        await lookups(meter, volume, names)
    async with volumes.mounted() as volume:
        await attributes(meter, volume, names)
        await directories(meter, volume, names)


def run(rounds, count, profiled=None):
    """{case: {"op": us, "flush": us}}, medians over the rounds; the profile if one was wanted."""
    told, meter = {}, None
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        meter = Meter(profiled)
        parent = MEMORY if MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="raidfs-bench-", dir=parent) as directory:
            trio.run(measure, meter, Path(directory), count)
        for name, parts in meter.found.items():
            for part, us in parts.items():
                told.setdefault(name, {}).setdefault(part, []).append(us)
    medians = {
        name: {part: figures.median(all_of) for part, all_of in parts.items()}
        for name, parts in told.items()
    }
    return medians, meter.profile if profiled else None


def show(results):
    """The table."""
    rows = []
    for name, parts in results.items():
        total = sum(parts.values())
        flush = f"{parts['flush']:.0f}" if "flush" in parts else ""
        rows.append([name, f"{parts['op']:.0f}", flush, f"{total:.0f}"])
    print(table(["operation", "op", "flush", "both"], rows))
    print("\nMicroseconds of CPU time of the whole process, without any kernel request.")


def main():
    """Runs, tells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="operations of each kind")
    parser.add_argument("--profile", metavar="OPERATION", help="of that one, in the last round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = machine()
    results, profile = run(options.rounds, options.count, options.profile)
    if options.json:
        print(json.dumps({"version": 1, "machine": told, "operations": results}))
    else:
        print(machine_line(told))
        show(results)
    if profile is not None:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
    return 0


if __name__ == "__main__":
    sys.exit(main())
