#!/usr/bin/env python3
"""Load for a long time: mixed fio with verification, a cut every second, a member lost halfway.

The volume is level 6 of 6 directories in memory. At the end: every fio job verified what it wrote,
the daemon's memory stayed within bounds (told, and compared between the second tenth and the last
of the run), the volume unmounts, the check is clean, and it mounts again. Exit code 0 only if all
of that holds.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from measuring import machine, machine_line, memory_kib, progress, statistics, workshop

MEMBERS = 6
MEMBER_BYTES = 3 << 30
GROWTH_KIB_MAX = 64 << 10
RATE = "24m"  # bytes per second of each job: what is overwritten comes back by whole zones only
JOBS = {
    "random": "--rw=randrw --rwmixread=50 --bs=4k --direct=1 --ioengine=libaio --iodepth=16",
    "odd": "--rw=randrw --rwmixread=30 --bsrange=512-64k --ioengine=psync",
    "large": "--rw=rw --bs=1m --direct=1 --ioengine=libaio --iodepth=4",
    "mapped": "--rw=randwrite --bs=8k --ioengine=mmap",
    "append": "--rw=write --bs=4k --ioengine=psync --fsync=64",
}
VERIFY = "--verify=crc32c --verify_fatal=1 --verify_backlog=2048 --verify_state_save=0"


def _fio(name, flags, directory, seconds):
    # a pass ends with everything verified; passes are repeated until the time is over
    return subprocess.Popen(
        [
            "fio",
            f"--name={name}",
            f"--directory={directory}",
            "--size=96m",
            "--time_based",
            f"--runtime={seconds}s",
            f"--rate={RATE},{RATE}",
            "--fallocate=none",
            "--output-format=json",
            *flags.split(),
            *VERIFY.split(),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Watch(threading.Thread):
    """A cut every second; memory; the loss of a member halfway."""

    def __init__(self, volume, seconds):
        super().__init__()
        self.volume = volume
        self.seconds = seconds
        self.over = threading.Event()
        self.memory = []
        self.cuts = 0
        self.trouble = []

    def run(self):
        begun = time.monotonic()
        failed = False
        while not self.over.wait(1):
            spent = time.monotonic() - begun
            try:
                self.volume.ctl("sync")
                self.cuts += 1
                self.memory.append((spent, memory_kib(self.volume.pid)["RssAnon"]))
                if not failed and spent > self.seconds / 2:
                    failed = True
                    progress("a member fails")
                    words = ("member", "fail", self.volume.mountpoint, "2", "--yes")
                    self.volume.shop.run("raidfs-ctl", *words)
            except (AssertionError, OSError) as error:
                self.trouble.append(str(error))
                return


def soak(volume, seconds):
    """What went wrong, as sentences; and figures."""
    watch = Watch(volume, seconds)
    watch.start()
    running = {name: _fio(name, flags, volume.mountpoint, seconds) for name, flags in JOBS.items()}
    wrong, told = [], {}
    try:
        for name, process in running.items():
            out, complaints = process.communicate(timeout=seconds * 3 + 300)
            if process.returncode:
                wrong.append(f"fio {name}: {complaints.strip()[-500:] or out[-500:]}")
                continue
            job = json.loads(out[out.index("{") :])["jobs"][0]
            told[name] = {
                side: {"count": job[side]["total_ios"], "per_s": job[side]["iops"]}
                for side in ("read", "write")
            }
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        watch.over.set()
        watch.join()
    wrong += watch.trouble
    early = [kib for at, kib in watch.memory if seconds * 0.1 < at < seconds * 0.2]
    late = [kib for at, kib in watch.memory if at > seconds * 0.9]
    if early and late and max(late) > max(early) + GROWTH_KIB_MAX:
        wrong.append(f"memory grew from {max(early)} to {max(late)} KiB")
    figures = {
        "cuts": watch.cuts,
        "memory_kib_max": max((kib for _, kib in watch.memory), default=None),
        "memory_kib": [kib for _, kib in watch.memory[:: max(1, len(watch.memory) // 20)]],
        "jobs": told,
    }
    return wrong, figures


def main():
    """Runs, tells, and ends with 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--options", default="", help="mount options")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    mount_options = [word for word in options.options.split(",") if word]
    with workshop(options.directory) as shop:
        volume = shop.volume(
            members=MEMBERS, level="6", size=MEMBER_BYTES, mounted=True, options=mount_options
        )
        wrong, figures = soak(volume, options.seconds)
        figures["daemon"] = statistics(volume, shop.runtime)
        volume.unmount()
        check = volume.check(expect=None)
        if check.returncode:
            wrong.append(f"check: {check.stdout}")
        progress(check.stdout.strip().splitlines()[-1] if check.stdout.strip() else "checked")
        volume.mount(*mount_options)
        volume.unmount()
    if options.json:
        print(json.dumps({"version": 1, "machine": machine(), "wrong": wrong, **figures}))
    else:
        print(machine_line(machine()))
        print(json.dumps(figures, indent=1))
        print("\n".join(wrong) if wrong else "nothing was wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
