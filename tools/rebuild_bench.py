#!/usr/bin/env python3
"""How fast a lost member is rebuilt beside dd, and what users who read meanwhile notice of it.

speed    a member is lost and rebuilt onto a new one, all within this process, and dd of all columns
         of the members that are left (one dd for each member, all at once), in turns: bytes read
         per second of both, and their ratio within each round. A rebuild reads k columns of each
         zone and writes one: it is told by what it reads (of as many columns as dd reads).
latency  a program reads 4 KiB at random, past the kernel's cache of the mount, with pauses, for
         some seconds: alone, and while a member is rebuilt again and again.

Members lie in memory (--directory puts them elsewhere). Others who compute on the machine slow both
down, and not equally: trust the median of many rounds, or the CPU time that each byte took.
"""

import argparse
import os
import shutil
import threading
import time
from pathlib import Path
from statistics import median

import trio
from measuring import machine, machine_line, progress, workshop
from scrub_bench import MIB, dd, quantiles, read_us

from raidfs.raid.enlarge import lay_out_member, plan_members

# isort: split
from volumes import ROOT as CALLER
from volumes import make_members, mounted


class Members:
    """What `dd` wants of a volume."""

    def __init__(self, paths):
        self.members = [Path(path) for path in paths]


async def rebuild(store, new):
    """Loses the oldest member. (seconds, CPU seconds, bytes written)"""
    label = store.assembly.label
    lost = min(entry.id for entry in label.members)
    path = store.membership.entry(lost).path
    await store.losses.fail_member(lost, "a benchmark")
    label, size = store.assembly.label, store.membership.entry(lost).bytes
    (entry,) = plan_members(label, [str(new)], size_bytes=size, replaces=[lost])
    before = store.mender.statistics().columns_mended
    await store.membership.add(entry, lay_out_member(label, entry), lambda done, total: None)
    begun, cpu = time.monotonic(), time.process_time()
    while any(each.id == lost for each in store.assembly.label.members):
        await trio.sleep(0.005)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    columns = store.mender.statistics().columns_mended - before
    shutil.rmtree(path)
    return seconds, cpu, columns * store.parameters.zone_bytes


async def speed(shop, wanted):
    base = Path(shop.directory) / "speed"
    room = max(512, wanted.mib * 2 // (wanted.members - 1))
    options = {"size_bytes": room * MIB, "zone_bytes": wanted.zone_mib * MIB}
    paths = make_members(base, wanted.members, wanted.level, **options)
    ratios, costs = [], []
    async with mounted(paths) as volume:
        ino = volume.create(1, b"file", 0o644, 2, CALLER).ino
        for number in range(wanted.mib // 4):
            await volume.write(ino, number * 4 * MIB, os.urandom(4 * MIB))
        await volume.store.commit()
        progress("written")
        for number in range(wanted.rounds):
            new = base / f"new{number}"
            new.mkdir()
            seconds, cpu, written = await rebuild(volume.store, new)
            k = volume.store.space.code.k
            there = [entry.path for entry in volume.store.assembly.label.members]
            other = await trio.to_thread.run_sync(dd, Members(there))
            read = written * k / seconds
            ratios.append(read / other[0])
            costs.append(other[1] / (cpu * 1e9 / (written * k)))
            print(
                f"rebuild {written / seconds / 1e9:5.2f} GB/s written, {read / 1e9:5.2f} GB/s read,"
                f" {cpu * 1e9 / (written * k):.3f} CPU s/GB read; dd {other[0] / 1e9:5.2f} GB/s,"
                f" {other[1]:.3f} CPU s/GB; ratio {ratios[-1]:.2f}, of CPU {costs[-1]:.2f}",
                flush=True,
            )
    print(f"median: ratio {median(ratios):.2f}, by CPU time {median(costs):.2f}")
    shutil.rmtree(base)


def latency(shop, wanted):
    room = max(512, wanted.mib * 2 // (wanted.members - 1))
    volume = shop.volume(
        wanted.members, level=wanted.level, size=room * MIB, zone_bytes=wanted.zone_mib * MIB,
        mounted=True,
    )  # fmt: skip
    path = volume.mountpoint / "file"
    with path.open("wb") as file:
        for _ in range(wanted.mib):
            file.write(os.urandom(MIB))
    volume.ctl("sync")
    alone, meanwhile, rates = [], [], []
    for lost in range(wanted.rounds):
        alone += read_us(path, wanted.seconds / 2, wanted.pause_ms / 1e3)
        shop.run("raidfs-ctl", "member", "fail", volume.mountpoint, str(lost), "--yes")
        new = Path(shop.directory) / f"new{lost}"
        new.mkdir()
        ended, begun = threading.Event(), time.monotonic()

        def work(lost=lost, new=new, ended=ended, begun=begun):
            shop.run(
                "raidfs-ctl", "member", "replace", volume.mountpoint, str(lost), str(new), "--yes"
            )
            shop.run("raidfs-ctl", "wait", volume.mountpoint)
            rates.append(time.monotonic() - begun)
            ended.set()

        thread = threading.Thread(target=work)
        thread.start()
        while not ended.is_set():
            meanwhile += read_us(path, 0.1, wanted.pause_ms / 1e3)
        thread.join()
    quantiles("reads alone", sorted(alone))
    quantiles("reads while rebuilding", sorted(meanwhile))
    print(f"rebuilds meanwhile took {median(rates):.2f} s (median of {len(rates)})")
    volume.unmount()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--level", default="5")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--mib", type=int, default=2048, help="of data")
    parser.add_argument("--zone-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each reading")
    parser.add_argument("--pause-ms", type=float, default=1, help="of the reader, between reads")
    parser.add_argument("--only", choices=("speed", "latency"))
    parser.add_argument("--directory", help="where members lie; memory if not given")
    wanted = parser.parse_args()
    print(machine_line(machine()))
    with workshop(wanted.directory) as shop:
        os.environ["RAIDFS_RUNTIME_DIR"] = str(shop.runtime)
        if wanted.only != "latency":
            trio.run(speed, shop, wanted)
        if wanted.only != "speed":
            latency(shop, wanted)


if __name__ == "__main__":
    main()
