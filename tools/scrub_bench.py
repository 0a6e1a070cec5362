#!/usr/bin/env python3
"""How fast a scrub is beside dd, and what users who read meanwhile notice of it.

speed    a scrub of a mounted volume, and dd of all its columns (one dd for each member, all at
         once), in turns: bytes per second of both, and their ratio within each round.
latency  a program reads 4 KiB at random, past the kernel's cache of the mount, with pauses, for
         some seconds: alone, and while the volume is scrubbed again and again.

Members lie in memory (--directory puts them elsewhere). Others who compute on the machine slow both
down, and not equally: trust the median of many rounds, or the CPU time that each byte took.
"""

import argparse
import contextlib
import os
import random
import subprocess
import threading
import time
from statistics import median

import msgspec
from measuring import cpu_ns, machine, machine_line, progress, workshop

from raidfs.daemon.control import connect
from raidfs.daemon.scrub import ScrubChangeRequest, ScrubStartRequest, ScrubTold, ScrubWaitRequest
from raidfs.raid.places import peek

MIB = 1 << 20
PAGE = 4096


def ask(volume, request):
    """The last of the answers."""
    _, client = connect(peek(str(volume.members[0])).volume_id)
    with client:
        return msgspec.json.decode(list(client.answers(request))[-1], type=ScrubTold)


def scrub(volume):
    """(bytes per second, CPU seconds per GB)"""
    before, begun = cpu_ns(volume.pid), time.monotonic()
    ask(volume, ScrubStartRequest())
    told = ask(volume, ScrubWaitRequest())
    seconds, cpu = time.monotonic() - begun, cpu_ns(volume.pid) - before
    assert told.state == "finished" and told.ok, told
    return told.done_bytes / seconds, cpu / told.done_bytes


def is_full(path):
    """What was never written is read faster, from the page of zeros, and not at all by a scrub."""
    with path.open("rb") as file:
        file.seek(-PAGE, os.SEEK_END)
        return any(file.read(PAGE))


def dd(volume):
    """(bytes per second, CPU seconds per GB)"""
    each, total = [], 0
    for member in volume.members:
        files = [path for path in sorted((member / "zones").glob("*/*.*")) if is_full(path)]
        total += sum(path.stat().st_size for path in files)
        each.append("".join(f"dd if={p} of=/dev/null bs=1M status=none;" for p in files))
    before, begun = os.times(), time.monotonic()
    for process in [subprocess.Popen(["sh", "-c", words]) for words in each]:
        assert process.wait() == 0
    seconds, after = time.monotonic() - begun, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return total / seconds, cpu * 1e9 / total


def read_us(path, seconds, pause_s):
    """Microseconds of reads at random."""
    found, pages = [], path.stat().st_size // PAGE
    rng, until = random.Random(time.monotonic_ns()), time.monotonic() + seconds
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        while time.monotonic() < until:
            at = rng.randrange(pages) * PAGE
            os.posix_fadvise(fd, at, PAGE, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            os.pread(fd, PAGE, at)
            found.append((time.perf_counter() - begun) * 1e6)
            time.sleep(pause_s)
    finally:
        os.close(fd)
    return sorted(found)


@contextlib.contextmanager
def scrubbing(volume):
    """Again and again inside. Yields a list of bytes per second."""
    ended, rates = threading.Event(), []

    def work():
        while not ended.is_set():
            begun = time.monotonic()
            ask(volume, ScrubStartRequest())
            told = ask(volume, ScrubWaitRequest())
            rates.append(told.done_bytes / (time.monotonic() - begun))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield rates
    finally:
        ended.set()
        with contextlib.suppress(Exception):  # there is none at the moment
            ask(volume, ScrubChangeRequest(what="stop"))
        thread.join()


def quantiles(name, times):
    part = {f"p{p}": times[min(len(times) - 1, len(times) * p // 100)] for p in (50, 95, 99)}
    told = ", ".join(f"{key} {value:.0f}" for key, value in part.items())
    print(f"{name:<24} {told}, longest {times[-1]:.0f} us of {len(times)} reads")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", default="6")
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--mib", type=int, default=2048, help="of data")
    parser.add_argument("--zone-mib", type=int, default=128, help="small ones are unfair to dd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each reading")
    parser.add_argument("--pause-ms", type=float, default=1, help="of the reader, between reads")
    parser.add_argument("--directory", help="where members lie; memory if not given")
    wanted = parser.parse_args()
    print(machine_line(machine()))
    with workshop(wanted.directory) as shop:
        os.environ["RAIDFS_RUNTIME_DIR"] = str(shop.runtime)
        room = max(512, wanted.mib * 2 // (wanted.members - 1))
        zone_bytes = wanted.zone_mib * MIB
        volume = shop.volume(
            wanted.members, level=wanted.level, size=room * MIB, zone_bytes=zone_bytes, mounted=True
        )
        path = volume.mountpoint / "file"
        with path.open("wb") as file:
            for _ in range(wanted.mib):
                file.write(os.urandom(MIB))
        volume.ctl("sync")
        progress("written")
        ratios, costs = [], []
        for _ in range(wanted.rounds):
            one, other = scrub(volume), dd(volume)
            ratios.append(one[0] / other[0])
            costs.append(other[1] / one[1])
            print(
                f"scrub {one[0] / 1e9:5.2f} GB/s, {one[1]:.3f} CPU s/GB; dd {other[0] / 1e9:5.2f}"
                f" GB/s, {other[1]:.3f} CPU s/GB; ratio {ratios[-1]:.2f}, of CPU {costs[-1]:.2f}",
                flush=True,
            )
        print(f"median: ratio {median(ratios):.2f}, by CPU time {median(costs):.2f}")
        alone, meanwhile, rates = [], [], []
        for _ in range(wanted.rounds):
            alone += read_us(path, wanted.seconds / 2, wanted.pause_ms / 1e3)
            with scrubbing(volume) as rates_now:
                time.sleep(0.2)
                meanwhile += read_us(path, wanted.seconds / 2, wanted.pause_ms / 1e3)
            rates += rates_now
        quantiles("reads alone", sorted(alone))
        quantiles("reads while scrubbing", sorted(meanwhile))
        print(f"scrubs meanwhile: {median(rates) / 1e9:.2f} GB/s (median of {len(rates)})")
        volume.unmount()


if __name__ == "__main__":
    main()
