#!/usr/bin/env python3
"""What snapshots cost: the delay of replies to writers, and what 10,000 of them make slower.

delay   fio writes at random (4 jobs of 4 KiB, each at a rate that leaves the machine some time),
        and snapshots are taken meanwhile, on raidfs (level 5 of 4 + 1, in memory) and on btrfs
        (raid5 over five loop devices in the same place), in turns. Told is, over all snapshots,
        the longest reply that a write had to wait for between the call that takes a snapshot and
        its return (both return when it is durable); and beside it the same for spans of the same
        length between snapshots: what the machine does by itself. --fill says what else is there,
        in pairs FILES:MIB, so whether the delay grows with them.
many    a volume with 10, 100, ... snapshots, a page changed between each two: how long a snapshot
        takes to be created and deleted (asked of the daemon), a list (the command), a mount (until
        the command returns), and a lookup of a file in an old snapshot.

Members lie in memory (--directory puts them elsewhere). fio and mkfs.btrfs are the user's to
install; --peers - leaves btrfs out.
"""

import argparse
import bisect
import contextlib
import fcntl
import json
import os
import random
import statistics as figures
import struct
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from measuring import machine, machine_line, progress, spread, table, workshop
from peers import PEERS, missing

from raidfs.daemon.control import connect
from raidfs.daemon.snapshots import SnapshotCreateRequest, SnapshotDeleteRequest
from raidfs.raid.places import peek

JOBS = 4
PAGE = 4096
FIO = (
    f"fio --name=job --filename_format=job$jobnum --numjobs={JOBS} --rw=randwrite --bs=4k "
    "--ioengine=psync --fallocate=none --norandommap --time_based --log_unix_epoch=1 "
    "--log_entries=100000 --disable_clat=1 --disable_slat=1 --output-format=json"
)
VOLUME_BYTES = 3 << 30  # of each member
SETTLE_S = 1.0  # fio has begun, and is not about to end
FILES_PER_DIRECTORY = 1000
SNAPSHOT_IOCTL = 0x50009417  # BTRFS_IOC_SNAP_CREATE_V2
READ_ONLY = 2  # BTRFS_SUBVOL_RDONLY
TIMED = 15  # operations, of which the median is told


class Raidfs:
    """Snapshots of a mount, asked of its daemon."""

    name = "raidfs"

    def __init__(self, stack, shop, place, options):
        self.volume = shop.volume(5, level="5", size=VOLUME_BYTES)
        self.volume.mount(*options)
        os.environ["RAIDFS_RUNTIME_DIR"] = str(shop.runtime)
        self.directory = self.volume.mountpoint
        self.client = None
        stack.callback(self.close)
        self.gates_us = []

    def take(self, name):
        told = json.loads(bytes(self._client().ask(SnapshotCreateRequest(name=name))))
        self.gates_us.append(told["gate_us"])

    def delete(self, name):
        self._client().ask(SnapshotDeleteRequest(names=(name,)))

    def delete_all(self):
        self._client().ask(SnapshotDeleteRequest(names=("%",), wait=True), timeout_s=None)

    def _client(self):
        if self.client is None:
            self.client = connect(peek(str(self.volume.members[0])).volume_id)[1]
        return self.client

    def close(self):
        if self.client is not None:
            self.client.__exit__(None, None, None)
            self.client = None


class Btrfs:
    """Read-only snapshots of a subvolume."""

    name = "btrfs"
    gates_us = ()

    def __init__(self, stack, shop, place, options):
        place.mkdir()
        self.root, _ = stack.enter_context(PEERS["btrfs"](place, VOLUME_BYTES))
        self.directory = self.root / "live"
        self._run("subvolume", "create", self.directory)
        self.names = []

    @staticmethod
    def _run(*words):
        subprocess.run(["btrfs", *map(str, words)], check=True, capture_output=True)

    def take(self, name):
        live, root = os.open(self.directory, os.O_RDONLY), os.open(self.root, os.O_RDONLY)
        try:
            head = struct.pack("=qQQ32x", live, 0, READ_ONLY)
            words = bytearray(head + name.encode().ljust(4040, b"\0"))
            fcntl.ioctl(root, SNAPSHOT_IOCTL, words)
        finally:
            os.close(live)
            os.close(root)
        self.names.append(name)

    def delete_all(self):
        for name in self.names:
            self._run("subvolume", "delete", self.root / name)
        self.names = []


SIDES = {side.name: side for side in (Raidfs, Btrfs)}


# -- the delay of replies -------------------------------------------------------------------------


def fill(directory, files, mib):
    """So many small files, and a file of so many MiB."""
    content = os.urandom(100)
    for number in range(files):
        below = directory / f"d{number // FILES_PER_DIRECTORY}"
        if number % FILES_PER_DIRECTORY == 0:
            below.mkdir()
        (below / f"f{number}").write_bytes(content)
    chunk = os.urandom(1 << 20)
    with (directory / "data").open("wb") as file:
        for _ in range(mib):
            file.write(chunk)
        os.fsync(file.fileno())


def start_fio(directory, logs, options):
    """Four jobs, each on a file of its own that is there; every reply's time goes into `logs`."""
    chunk = os.urandom(1 << 20)
    for job in range(JOBS):
        with (directory / f"job{job}").open("wb") as file:
            for _ in range(options.mib):
                file.write(chunk)
            os.fsync(file.fileno())
    return subprocess.Popen(
        [
            *FIO.split(),
            f"--directory={directory}",
            f"--size={options.mib}m",
            f"--direct={int(options.direct)}",
            f"--runtime={options.runtime * 1000:.0f}ms",
            f"--rate_iops={options.rate}",
            f"--write_lat_log={logs}/log",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def replies(logs):
    """(end, duration) of each write, in seconds since 1970, by their ends; ends are whole ms."""
    found = []
    for path in logs.glob("log_lat.*.log"):
        for line in path.read_text().splitlines():
            end_ms, lat_ns = line.split(",")[:2]
            found.append((int(end_ms) / 1e3, int(lat_ns) / 1e9))
        path.unlink()
    assert found, "fio logged nothing"
    return sorted(found)


def longest_ms(found, spans):
    """For each span of time, the longest reply that somebody waited for in it. A write that ends
    when nobody is looking any more began before; none lasts longer than the longest of all."""
    ends = [end for end, _ in found]
    most = max(lat for _, lat in found)
    told = []
    for begin, end in spans:
        first = bisect.bisect_left(ends, begin - 0.001)
        last = bisect.bisect_right(ends, end + most + 0.001)
        waited = [lat for at, lat in found[first:last] if at - lat <= end + 0.001]
        told.append(max(waited, default=0.0) * 1e3)
    return told


def measure_delay(side, logs, options):
    """One run of fio with snapshots, and what it told."""
    dice, spans = random.Random(1), []
    process = start_fio(side.directory, logs, options)
    try:
        ends = time.monotonic() + options.runtime - SETTLE_S
        time.sleep(2 * SETTLE_S)
        while time.monotonic() < ends:
            begin = time.time()
            side.take(f"s{len(spans)}")
            spans.append((begin, time.time()))
            time.sleep(options.every * (0.5 + dice.random()))
        output, errors = process.communicate(timeout=600)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        raise SystemExit(f"fio: {errors.strip()[-500:]}")
    found = replies(logs)
    jobs = json.loads(output[output.index("{") :])["jobs"]
    quiet = []
    for (begin, end), (following, _) in pairwise(spans):
        middle = (end + following) / 2
        length = min(end - begin, following - end)
        quiet.append((middle - length / 2, middle + length / 2))
    return {
        "snapshots": len(spans),
        "writes_per_s": sum(job["write"]["iops"] for job in jobs),
        "create_ms": spread([(end - begin) * 1e3 for begin, end in spans]),
        "delay_ms": spread(longest_ms(found, spans)),
        "quiet_ms": spread(longest_ms(found, quiet)),
        "gate_us": spread(side.gates_us) if side.gates_us else None,
    }


def delay(options):
    """{fill: {side: told}}"""
    results = {}
    for files, mib in options.fill:
        results[f"{files} files, {mib} MiB"] = told = {}
        for name in ["raidfs", *options.peers]:
            progress(f"{name}: {files} files and {mib} MiB")
            with contextlib.ExitStack() as stack:
                shop = stack.enter_context(workshop(options.directory))
                side = SIDES[name](stack, shop, shop.directory / "peer", options.options)
                fill(side.directory, files, mib)
                logs = shop.directory / "logs"
                logs.mkdir()
                progress(f"{name}: fio and snapshots, {options.runtime:.0f} s")
                told[name] = measure_delay(side, logs, options)
                side.delete_all()
    return results


def show_delay(results):
    """A line per fill and side."""
    rows = []
    for fill_text, sides in results.items():
        for name, told in sides.items():
            cells = [fill_text if name == "raidfs" else "", name, told["snapshots"]]
            cells += [f"{told['writes_per_s']:.0f}", f"{told['create_ms']['p50']:.1f}"]
            for what in ("delay_ms", "quiet_ms"):
                cells += [f"{told[what][rank]:.2f}" for rank in ("p50", "p99", "max")]
            gate = told["gate_us"]
            rows.append([*cells, f"{gate['max'] / 1e3:.2f}" if gate else "-"])
    head = ["longest reply while a snapshot is taken, ms", "on", "taken", "writes/s", "create ms"]
    print(table([*head, "p50", "p99", "max", "quiet p50", "p99", "max", "gate max"], rows))


# -- ten thousand ---------------------------------------------------------------------------------


def _timed_ms(work, times=TIMED):
    """The median of several."""
    spent = []
    for number in range(times):
        begun = time.perf_counter()
        work(number)
        spent.append((time.perf_counter() - begun) * 1e3)
    return figures.median(spent)


def many(options):
    """{count: {what: ms}}"""
    results = {}
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(workshop(options.directory))
        side = Raidfs(stack, shop, None, options.options)
        path = side.directory / "file"
        path.write_bytes(os.urandom(64 * PAGE))
        page = os.open(path, os.O_RDWR)
        taken = 0
        for count in options.counts:
            progress(f"{count} snapshots")
            while taken < count:
                os.pwrite(page, os.urandom(PAGE), taken % 64 * PAGE)
                side.take(f"s{taken}")
                taken += 1
            os.close(page)
            results[count] = _measure_many(side, shop, count)
            page = os.open(path, os.O_RDWR)
        os.close(page)
        progress("all of them are deleted")
        begun = time.perf_counter()
        side.delete_all()
        deleted_s = time.perf_counter() - begun
        side.close()
        side.volume.unmount()
        side.volume.check()
    return {"counts": results, "delete_all_s": deleted_s}


def _measure_many(side, shop, count):
    """What is measured with so many snapshots; in the end there are as many."""
    volume, root = side.volume, side.directory / ".snapshots"
    file = os.open(side.directory / "file", os.O_RDWR)

    def create(number):
        os.pwrite(file, os.urandom(PAGE), number * PAGE)
        side.take(f"more{number}")

    told = {"create": _timed_ms(create)}
    told["delete"] = _timed_ms(lambda number: side.delete(f"more{number}"))
    dice = random.Random(count)
    told["look"] = _timed_ms(lambda _: os.stat(root / f"s{dice.randrange(count)}" / "file"))
    told["readdir"] = _timed_ms(lambda _: os.listdir(root), 3)
    command = ["raidfs-ctl", "snapshot", "list", "-H", "-o", "name", volume.mountpoint]
    told["list"] = _timed_ms(lambda _: shop.run(*command), 3)
    told["help"] = _timed_ms(lambda _: shop.run("raidfs-ctl", "snapshot", "--help"), 3)
    os.close(file)
    side.close()

    def mount(_):
        volume.unmount()
        begun = time.perf_counter()
        volume.mount()
        spent.append((time.perf_counter() - begun) * 1e3)

    spent = []
    _timed_ms(mount, 3)
    told["mount"] = figures.median(spent)
    return told


def show_many(results):
    """A line per number of snapshots."""
    head = ["snapshots", "create", "delete", "stat in one", "ls .snapshots", "list", "(start)"]
    keys = ("create", "delete", "look", "readdir", "list", "help", "mount")
    rows = [
        [f"{count}", *(f"{told[key]:.1f}" for key in keys)]
        for count, told in results["counts"].items()
    ]
    print("Milliseconds; (start) is the command without a list:")
    print(table([*head, "mount"], rows))
    print(f"All of them deleted, and the room free, after {results['delete_all_s']:.1f} s")


# -- arguments ------------------------------------------------------------------------------------


def _pair(text):
    files, _, mib = text.partition(":")
    return int(files), int(mib)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help="delay, many; both if none is named")
    parser.add_argument("--directory", type=Path, help="where members and peers lie")
    parser.add_argument("--options", default="", help="mount options of the volume")
    parser.add_argument("--peers", default="btrfs", help="btrfs; - for none")
    parser.add_argument("--runtime", type=float, default=20, help="seconds of each fio run")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between snapshots")
    parser.add_argument("--rate", type=int, default=1000, help="writes per second of each job")
    parser.add_argument("--mib", type=int, default=32, help="size of each job's file")
    parser.add_argument("--direct", action="store_true", help="fio writes with O_DIRECT")
    parser.add_argument("--fill", default="100:64,50000:64,100:1024", help="FILES:MIB,...")
    parser.add_argument("--counts", default="10,100,1000,10000", help="numbers of snapshots")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.options = [word for word in options.options.split(",") if word]
    options.peers = [name for name in options.peers.split(",") if name not in ("", "-")]
    options.fill = [_pair(text) for text in options.fill.split(",")]
    options.counts = sorted(int(text) for text in options.counts.split(","))
    for name in options.parts:
        if name not in ("delay", "many"):
            parser.error(f"there is no part {name!r}; there are delay and many")
    for name in options.peers:
        if name not in SIDES or name == "raidfs":
            parser.error(f"there is no peer {name!r}; there is btrfs")
        if lacking := missing(name):
            parser.error(f"{name} needs {', '.join(lacking)}: install it first, or --peers -")
    return options


def main():
    """Runs, tells."""
    options = _arguments()
    told, results = machine(), {}
    parts = options.parts or ["delay", "many"]
    if "delay" in parts:
        results["delay"] = delay(options)
    if "many" in parts:
        results["many"] = many(options)
    if options.json:
        print(json.dumps({"version": 1, "machine": told, **results}))
        return 0
    print(machine_line(told))
    if "delay" in results:
        show_delay(results["delay"])
    if "many" in results:
        show_many(results["many"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
