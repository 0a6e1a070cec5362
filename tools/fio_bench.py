#!/usr/bin/env python3
"""fio on a raidfs mount and on a plain directory, in one run and in turns.

The volume is level 5 on five directories of the same filesystem as the plain directory (memory,
unless --directory says otherwise). Each job runs on both, one after the other, for several rounds;
told are medians, their ratio, and the CPU time of the daemon per request. A request is one of
fio's; the kernel may make several of it for the daemon, or none.
"""

import argparse
import json
import os
import shutil
import statistics as figures
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from measuring import cpu_ns, machine, machine_line, progress, table, workshop

VOLUME_BYTES = 2 << 30  # of each member
FILE_MIB = 64
JOBS = {
    "4 KiB random read, direct, 16 deep": "--rw=randread --bs=4k --direct=1 --iodepth=16",
    "4 KiB random read, direct": "--rw=randread --bs=4k --direct=1 --iodepth=1",
    "4 KiB random write, direct, 16 deep": "--rw=randwrite --bs=4k --direct=1 --iodepth=16",
    "4 KiB random write, direct": "--rw=randwrite --bs=4k --direct=1 --iodepth=1",
    "1 MiB read, direct": "--rw=read --bs=1m --direct=1 --iodepth=4",
    "1 MiB write, direct": "--rw=write --bs=1m --direct=1 --iodepth=4",
    "1 MiB read": "--rw=read --bs=1m",
    "1 MiB write": "--rw=write --bs=1m",
    "4 KiB append": "--rw=write --bs=4k",
    "4 KiB write and fsync": "--rw=randwrite --bs=4k --fsync=1",
}
TREE_FILES = 1500


class Side:
    """A place where jobs run: the mount (with its daemon's process number) or plain files."""

    def __init__(self, directory, pid=None):
        self.directory = directory
        self.pid = pid

    def _cpu_ns(self):
        return cpu_ns(self.pid) if self.pid is not None else 0

    def fio(self, options, runtime_s):
        """One job on a fresh file; {"iops", "mib_s", "us", "cpu_us"}."""
        path = self.directory / "fio.data"
        direct = "--direct=1" in options
        whole = "--rw=read" in options and not direct  # once: a second time the kernel has it all
        if "--rw=write" not in options:
            path.write_bytes(os.urandom(1 << 20) * (4 * FILE_MIB if whole else FILE_MIB))
            _sync(path)
        command = [
            "fio",
            "--name=job",
            f"--filename={path}",
            *(() if whole else (f"--size={FILE_MIB}m", "--time_based", f"--runtime={runtime_s}")),
            f"--ioengine={'libaio' if direct else 'psync'}",
            "--fallocate=none",
            "--output-format=json",
            *options.split(),
        ]
        cpu = self._cpu_ns()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        _sync(path)  # what is told of a write includes its flush
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        cpu = self._cpu_ns() - cpu
        told = job["write" if "write" in options.split()[0] else "read"]
        path.unlink()
        count = max(1, told["total_ios"])
        return {
            "iops": told["iops"],
            "mib_s": told["bw_bytes"] / 2**20,
            "us": told["lat_ns"]["mean"] / 1e3,
            "cpu_us": cpu / count / 1e3,
        }

    def files(self, archive, files):
        """Unpacks a tree of files, copies it, removes both; per file."""
        target = self.directory / "tree"
        target.mkdir()
        cpu, begun = self._cpu_ns(), time.monotonic()
        for command in (
            ["tar", "-xf", str(archive), "-C", str(target)],
            ["cp", "-a", str(target), str(self.directory / "copy")],
        ):
            subprocess.run(command, check=True)
        spent = time.monotonic() - begun
        cpu = self._cpu_ns() - cpu
        for path in (target, self.directory / "copy"):
            shutil.rmtree(path)
        count = 2 * files
        return {
            "iops": count / spent,
            "mib_s": 2 * archive.stat().st_size / spent / 2**20,
            "us": spent / count * 1e6,
            "cpu_us": cpu / count / 1e3,
        }


def _sync(path):
    with path.open("rb") as file:
        os.fsync(file.fileno())


def small_files(place):
    """A tar archive of real small files, and how many are in it."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts and path.stat().st_size < 200_000:
            found.append(path.relative_to(library))
            if len(found) == TREE_FILES:
                break
    archive = place / "files.tar"
    names = "\0".join(map(str, found))
    command = ["tar", "-cf", str(archive), "-C", str(library), "--null", "-T", "-"]
    subprocess.run(command, input=names, text=True, check=True)
    return archive, len(found)


def run(parent, runtime_s, rounds, wanted):
    """{job: {"raidfs": figures, "plain": figures}}, medians over the rounds."""
    with workshop(parent) as shop:
        plain = shop.directory / "plain"
        plain.mkdir()
        volume = shop.volume(members=5, level="5", size=VOLUME_BYTES, mounted=True)
        sides = {"raidfs": Side(volume.mountpoint, volume.pid), "plain": Side(plain)}
        archive, files = small_files(shop.directory)
        jobs = {
            name: lambda side, options=options: side.fio(options, runtime_s)
            for name, options in JOBS.items()
        }
        jobs["small files: untar, copy"] = lambda side: side.files(archive, files)
        jobs = {name: job for name, job in jobs.items() if wanted in name}
        results = {name: {side: [] for side in sides} for name in jobs}
        for number in range(rounds):
            for name, job in jobs.items():
                progress(f"round {number + 1} of {rounds}: {name}")
                for side, place in sides.items():
                    results[name][side].append(job(place))
        volume.unmount()
    return {
        name: {side: _medians(told) for side, told in both.items()}
        for name, both in results.items()
    }


def _medians(told):
    return {key: figures.median(each[key] for each in told) for key in told[0]}


def show(results):
    """The table."""
    head = ["job", "raidfs/s", "plain/s", "ratio", "MiB/s", "plain", "us", "daemon CPU us"]
    rows = []
    for name, both in results.items():
        ours, plain = both["raidfs"], both["plain"]
        rows.append(
            [
                name,
                f"{ours['iops']:.0f}",
                f"{plain['iops']:.0f}",
                f"{ours['iops'] / plain['iops']:.3f}",
                f"{ours['mib_s']:.0f}",
                f"{plain['mib_s']:.0f}",
                f"{ours['us']:.0f}",
                f"{ours['cpu_us']:.0f}",
            ]
        )
    print(table(head, rows))
    print(
        "\nPer second: requests, or files. us: mean time of a request. Plain figures in memory are"
        "\nthose of memory itself: hold the CPU time per request against them, not the ratio alone."
    )


def main():
    """Runs, tells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="where members and plain files lie")
    parser.add_argument("--runtime", type=float, default=3, help="seconds of each job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", default="", help="only jobs with this in their name")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = machine()
    results = run(options.directory, options.runtime, options.rounds, options.job)
    if options.json:
        print(json.dumps({"version": 1, "machine": told, "jobs": results}))
    else:
        print(machine_line(told))
        show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
