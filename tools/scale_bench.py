#!/usr/bin/env python3
"""Whether cost and memory stay flat while a volume grows, on a real mount.

One volume (level 5 on five directories in memory) with a sparse terabyte is filled to 10^3, 10^4,
10^5 and 10^6 files, half of them in one directory and half in directories of a hundred. At each
size it is mounted, used and unmounted. Wanted are

  ready    at most 2 s from the start of `raidfs` until it returns, also after kill -9
  memory   of the daemon: at most 300 MiB besides the dirty room in use, and at its highest at most
           300 MiB and the whole dirty room
  cost     of a lookup, a create and a 4 KiB write: the same at all sizes

Files are filled in through the volume in this process, which is faster; all that is measured goes
through the mount. Costs count the daemon's CPU time, with that of the flush at the end.
"""

import argparse
import json
import os
import random
import statistics as figures
import sys
import time

import trio
from measuring import (
    cpu_ns,
    machine,
    machine_line,
    memory_kib,
    progress,
    statistics,
    table,
    workshop,
)

from raidfs.daemon.main import DIRTY_BYTES_MAX
from raidfs.errors import FsError
from raidfs.fs.attributes import Caller, Changes
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.store.store import Store

READY_S_MAX = 2.0
MEMORY_MIB_MAX = 300
SPARSE_BYTES = 1 << 40
SPARSE_PAGES = 4096
PAGE_BYTES = 4096
SMALL, LARGE = b"." * 100, b"#" * 6000  # inside the metadata; in cells
LARGE_EVERY = 50
TREE_FILES = 100
COMMIT_EVERY = 20_000
ME = Caller(os.getuid(), os.getgid(), 1, 0o022)


# -- filling --------------------------------------------------------------------------------------


def place_of(number):
    """(directory, name) of file `number`: even ones in `flat`, odd ones in directories of 100."""
    name = f"f{number:07d}"
    return ("flat" if number % 2 == 0 else f"tree/d{number // (2 * TREE_FILES):05d}"), name


def sparse_offsets(seed, count):
    """Random pages of the terabyte."""
    pages = random.Random(seed).sample(range(SPARSE_BYTES // PAGE_BYTES), count)
    return [page * PAGE_BYTES for page in pages]


class Filler:
    """Puts files into a volume that is not mounted."""

    def __init__(self, volume):
        self.volume = volume
        self.directories = {"": 1}

    def directory(self, path):
        """The inode number of a directory, made if need be."""
        if path not in self.directories:
            parent, _, name = path.rpartition("/")
            above = self.directory(parent)
            try:
                told = self.volume.lookup(above, name.encode())
            except FsError:
                told = self.volume.mkdir(above, name.encode(), 0o755, ME)
            self.volume.forget(told.ino, 1)
            self.directories[path] = told.ino
        return self.directories[path]

    async def file(self, directory, name, pieces, size=None):
        """A file of (offset, content) pieces."""
        volume = self.volume
        await volume.ready()
        told = volume.create(self.directory(directory), name.encode(), 0o644, os.O_RDWR, ME)
        if size is not None:
            await volume.setattr(told.ino, Changes(size=size), ME)
        for offset, content in pieces:
            await volume.write(told.ino, offset, content)
        volume.release(told.ino)
        volume.forget(told.ino, 1)


async def fill(source, first, last):
    """Files number `first` to `last - 1`, and with the first one the sparse terabyte."""
    store = await Store.open(Assembly.open(source))
    volume = Volume(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        filler = Filler(volume)
        if first == 0:
            pieces = [(offset, bytes(PAGE_BYTES)) for offset in sparse_offsets(0, SPARSE_PAGES)]
            await filler.file("", "sparse", pieces, SPARSE_BYTES)
        for number in range(first, last):
            content = LARGE if number % LARGE_EVERY == 0 else SMALL
            await filler.file(*place_of(number), [(0, content)])
            if (number + 1) % COMMIT_EVERY == 0:
                await store.commit()
                if (number + 1) % (5 * COMMIT_EVERY) == 0:
                    progress(f"{number + 1} files")
        await store.stop()


# -- measuring ------------------------------------------------------------------------------------


class Meter:
    """Times single operations and counts the daemon's CPU time for all of them."""

    def __init__(self, volume):
        self.volume = volume

    def run(self, operation, arguments, settle=None):
        """{"us": median of the time of one, "cpu_us": CPU time of the daemon for each}"""
        times = []
        cpu = cpu_ns(self.volume.pid)
        for each in arguments:
            begun = time.perf_counter_ns()
            operation(each)
            times.append(time.perf_counter_ns() - begun)
        if settle is not None:
            settle()
        cpu = cpu_ns(self.volume.pid) - cpu
        return {"us": figures.median(times) / 1e3, "cpu_us": cpu / len(times) / 1e3}


def mount(volume):
    """Seconds from the start of the command until the mount answers."""
    begun = time.monotonic()
    volume.mount()
    os.stat(volume.mountpoint / "flat")
    return time.monotonic() - begun


def sync(place):
    """fsync; FUSE has no other barrier."""
    fd = os.open(place, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def walk(top):
    """As `find -ls`: lists all, asks for the attributes of all; returns how many."""
    count, waiting = 0, [top]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return count


class Sizes:
    """One volume, measured at one size after the other."""

    def __init__(self, shop, operations, writes):
        self.volume = shop.volume(members=5, level="5", size=2 << 30)
        self.meter = Meter(self.volume)
        self.runtime = shop.runtime
        self.operations = operations
        self.writes = writes
        self.files = 0
        self.made = 0  # by measuring, besides those filled in

    def measure(self, files):
        """Fills up to `files` files and returns the figures of that size."""
        progress(f"filling to {files} files")
        trio.run(fill, str(self.volume.members[0]), self.files, files)
        self.files = files
        told = {"files": files, "ready_s": mount(self.volume)}
        told["mounted_mib"] = self._memory()
        progress(f"{files} files: mounted in {told['ready_s']:.2f} s")
        told["cost"] = self._costs()
        self.volume.unmount()
        mount(self.volume)
        told |= self._walk()
        progress(f"{files} files: walked")
        told |= self._terabyte()
        told |= self._killed()
        progress(f"{files} files: killed, mounted in {told['killed_ready_s']:.2f} s")
        self.volume.unmount()
        return told

    def _memory(self):
        """MiB resident, without the dirty pages."""
        dirty = statistics(self.volume, self.runtime)["pages"]["dirty_cells"] * PAGE_BYTES
        return memory_kib(self.volume.pid)["VmRSS"] / 1024 - dirty / 2**20

    def _costs(self):
        top, rng = self.volume.mountpoint, random.Random(self.files)
        flat = range(0, self.files, 2)
        count = min(self.operations, len(flat) // 2)
        chosen = [top / "/".join(place_of(n)) for n in rng.sample(flat, 2 * count)]
        costs = {"lookup": self.meter.run(os.stat, chosen[:count])}
        new = [top / "flat" / f"n{self.made + i}" for i in range(self.operations)]
        self.made += len(new)

        def create(path):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))

        def rewrite(path):
            fd = os.open(path, os.O_WRONLY)
            os.pwrite(fd, page, 0)
            os.close(fd)

        page = os.urandom(PAGE_BYTES)
        costs["create"] = self.meter.run(create, new, lambda: sync(top))
        costs["rewrite"] = self.meter.run(rewrite, chosen[count:], lambda: sync(top))
        fd = os.open(top / "sparse", os.O_RDWR)
        try:
            offsets = sparse_offsets(self.files, self.operations)
            write = self.meter.run(
                lambda offset: os.pwrite(fd, page, offset), offsets, lambda: os.fsync(fd)
            )
        finally:
            os.close(fd)
        return costs | {"write": write}

    def _walk(self):
        cpu = cpu_ns(self.volume.pid)
        entries = walk(self.volume.mountpoint)
        cpu = cpu_ns(self.volume.pid) - cpu
        inodes = statistics(self.volume, self.runtime)["inodes"]
        return {
            "entries": entries,
            "referenced": inodes["referenced"],
            "inodes_cached": inodes["cached"],
            "walk_cpu_us": cpu / entries / 1e3,
            "walked_mib": self._memory(),
        }

    def _terabyte(self):
        """Random reads and writes on the sparse terabyte, pages written early and holes."""
        page = os.urandom(PAGE_BYTES)
        offsets = sparse_offsets(self.files + 1, self.writes)
        written = sparse_offsets(0, SPARSE_PAGES)[: self.writes]
        fd = os.open(self.volume.mountpoint / "sparse", os.O_RDWR)
        try:
            for number, offset in enumerate(offsets):
                os.pwrite(fd, page, offset)
                place = written[number % len(written)]
                os.posix_fadvise(fd, place, PAGE_BYTES, os.POSIX_FADV_DONTNEED)
                assert len(os.pread(fd, PAGE_BYTES, place)) == PAGE_BYTES
            told = {"terabyte_mib": self._memory()}
            os.fsync(fd)
        finally:
            os.close(fd)
        told["settled_mib"] = self._memory()
        told["highest_mib"] = memory_kib(self.volume.pid)["VmHWM"] / 1024
        return told

    def _killed(self):
        """Time to be ready after kill -9 amid unsaved changes."""
        top = self.volume.mountpoint
        for i in range(self.operations):
            (top / "flat" / f"k{self.files}-{i}").write_bytes(SMALL)
            if i == self.operations // 2:
                sync(top)
        self.volume.kill()
        return {"killed_ready_s": mount(self.volume)}


# -- telling --------------------------------------------------------------------------------------


def judge(sizes):
    """What is not as wanted, in sentences."""
    found = []
    highest = MEMORY_MIB_MAX + DIRTY_BYTES_MAX / 2**20
    for told in sizes:
        for name in ("ready_s", "killed_ready_s"):
            if told[name] > READY_S_MAX:
                found.append(f"{told['files']} files: {name} {told[name]:.2f}")
        for name in ("mounted_mib", "walked_mib", "terabyte_mib", "settled_mib"):
            if told[name] > MEMORY_MIB_MAX:
                found.append(f"{told['files']} files: {name} {told[name]:.0f}")
        if told["highest_mib"] > highest:
            found.append(f"{told['files']} files: highest_mib {told['highest_mib']:.0f}")
    return found


def show(sizes):
    """Two tables."""
    names = ["mounted", "walked", "terabyte", "settled", "highest"]
    rows = [
        [
            told["files"],
            f"{told['ready_s']:.2f} s",
            f"{told['killed_ready_s']:.2f} s",
            *(f"{told[name + '_mib']:.0f} MiB" for name in names),
        ]
        for told in sizes
    ]
    print(table(["files", "ready", "after kill -9", *names], rows))
    print("\nDaemon's CPU time for each, microseconds (median time of one in brackets)")
    names = ["lookup", "create", "write", "rewrite"]
    rows = []
    for told in sizes:
        cost = told["cost"]
        cells = [f"{cost[name]['cpu_us']:.0f} ({cost[name]['us']:.0f})" for name in names]
        rows.append([told["files"], *cells, f"{told['walk_cpu_us']:.0f}"])
    first, last = sizes[0], sizes[-1]
    pairs = [(last["cost"][name]["cpu_us"], first["cost"][name]["cpu_us"]) for name in names]
    pairs.append((last["walk_cpu_us"], first["walk_cpu_us"]))
    rows.append(["last/first", *(f"{after / before:.2f}" for after, before in pairs)])
    print(table(["files", *names, "walk"], rows))
    print(
        "\nlookup: stat of a name in a directory of half the files. create: an empty file there."
        "\nwrite: 4 KiB at a random place of the sparse terabyte. rewrite: open a random file,"
        "\nwrite 4 KiB, close. walk: listing and stat, per entry. Memory is without dirty pages;"
        "\n`highest` is with them (dirty room: 256 MiB)."
    )


def run(files_max, *, operations=2000, writes=20_000, parent=None):
    """The figures at each power of ten up to `files_max`."""
    steps = [10**power for power in range(3, 10) if 10**power < files_max] + [files_max]
    with workshop(parent) as shop:
        sizes = Sizes(shop, operations, writes)
        return [sizes.measure(files) for files in steps]


def main():
    """Measures, tells, and ends with 1 if something is not as wanted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files-max", type=int, default=10**6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = machine()
    sizes = run(options.files_max)
    failures = judge(sizes)
    if options.json:
        print(json.dumps({"version": 1, "machine": told, "sizes": sizes, "failures": failures}))
    else:
        print(machine_line(told))
        show(sizes)
        print("\n" + ("\n".join(failures) if failures else "All limits are kept."))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
