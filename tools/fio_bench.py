#!/usr/bin/env python3
"""fio, and jobs of many small files, on a raidfs mount and on others beside it, in turns.

The volume is level 5 of 4 + 1 on five directories in memory (--directory puts it elsewhere). Beside
it stand peers that are set up for the run (--peers mergerfs,btrfs,zfs-fuse,plain: those installed)
and whatever is given (--beside NAME=DIRECTORY, for example another mount). Each round runs each job
on each side, one after the other; told are medians over the rounds, and the ratio of raidfs to each
of the others. tools/fio_jobs.py says what the jobs are and how they are flagged.

CPU us is the CPU time of the daemon per operation, with the final sync; "all us" that of the whole
machine (client, kernel and daemon), which is there for kernel filesystems too.
"""

import argparse
import contextlib
import json
import os
import statistics as figures
import sys
from pathlib import Path

import fio_jobs
from measuring import cpu_ns, machine, machine_line, progress, table, workshop
from peers import PEERS, missing

VOLUME_BYTES = 3 << 30  # of each member
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


class Side:
    """A place where jobs run: the directory, and who serves it."""

    def __init__(self, directory, pid=None):
        self.directory = Path(directory)
        self.pid = pid

    def run(self, work):
        """The job's figures with CPU times per operation added."""
        busy = _busy_us()
        own = cpu_ns(self.pid) if self.pid is not None else 0
        told = work()
        own = cpu_ns(self.pid) - own if self.pid is not None else 0
        count = max(1, told.pop("count"))
        told["cpu_us"] = own / 1e3 / count if self.pid is not None else None
        told["all_us"] = (_busy_us() - busy) / count
        return told


def _busy_us():
    """CPU time that this machine has spent so far, idle and stolen time left out."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) * TICK_US


def _job(name, side, options, tree, tree_files):
    if name in fio_jobs.FIO:
        return fio_jobs.fio(name, side.directory, options.runtime)
    return fio_jobs.files(name, side.directory, tree, tree_files)


def measure(options, names):
    """{job: {side: medians}}; sides in the order of the table, raidfs first."""
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(workshop(options.directory))
        mounted = {"members": 5, "level": "5", "size": VOLUME_BYTES, "mounted": True}
        volume = shop.volume(**mounted, options=options.options)
        sides = {"raidfs": Side(volume.mountpoint, volume.pid)}
        if options.nolane:
            other = shop.volume(**mounted, options=[*options.options, "nolane"])
            sides["nolane"] = Side(other.mountpoint, other.pid)
        for name in options.peers:
            place = shop.directory / name
            place.mkdir()
            sides[name] = Side(*stack.enter_context(PEERS[name](place, VOLUME_BYTES)))
        for text in options.beside:
            name, _, path = text.partition("=")
            sides[name] = Side(path)
        tree = shop.directory / "tree"
        tree.mkdir()
        tree_files = fio_jobs.small_files(tree)
        results = {name: {side: [] for side in sides} for name in names}
        for number in range(options.rounds):
            for name in names:
                # who comes first meets memory that the host has to give anew: take turns
                turn = number % len(sides)
                for label, side in [*sides.items()][turn:] + [*sides.items()][:turn]:
                    progress(f"round {number + 1} of {options.rounds}: {name} on {label}")
                    work, after = _job(name, side, options, tree, tree_files)
                    results[name][label].append(side.run(work))
                    after()
    return {
        name: {side: _medians(told) for side, told in both.items()}
        for name, both in results.items()
    }


def _medians(told):
    return {
        key: None if told[0][key] is None else figures.median(each[key] for each in told)
        for key in told[0]
    }


def show(results):
    """The table: a line per job and side."""
    rows = []
    for name, sides in results.items():
        ours = sides["raidfs"]["per_s"]
        for label, told in sides.items():
            rows.append(
                [
                    fio_jobs.DESCRIPTIONS[name] if label == "raidfs" else "",
                    label,
                    f"{told['per_s']:.0f}",
                    f"{told['mib_s']:.0f}" if told["mib_s"] else "-",
                    f"{told['us']:.1f}",
                    "-" if told["cpu_us"] is None else f"{told['cpu_us']:.1f}",
                    f"{told['all_us']:.1f}",
                    "" if label == "raidfs" else f"{ours / told['per_s']:.2f}",
                ]
            )
    head = ["job", "on", "per s", "MiB/s", "us", "CPU us", "all us", "raidfs is x"]
    print(table(head, rows))


def plot(results, path):
    """Bars per job, raidfs = 1; the format is what the file's name ends in (svg, png)."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'raidfs[bench]'") from None
    labels = list(dict.fromkeys(label for sides in results.values() for label in sides))
    figure, axis = pyplot.subplots(figsize=(11, 0.55 * len(results) * len(labels) / 2 + 1.5))
    height = 0.8 / len(labels)
    for number, label in enumerate(labels):
        places, values = [], []
        for line, sides in enumerate(results.values()):
            if label in sides:
                places.append(line + number * height)
                values.append(sides[label]["per_s"] / sides["raidfs"]["per_s"])
        axis.barh(places, values, height, label=label)
    middle = [line + 0.4 - height / 2 for line in range(len(results))]
    axis.set_yticks(middle, [fio_jobs.DESCRIPTIONS[name] for name in results])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("operations per second, raidfs = 1 (longer is faster)")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def _arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=f"Jobs: {', '.join(fio_jobs.JOBS)}."
    )
    parser.add_argument("--directory", type=Path, help="where members and peers lie")
    parser.add_argument("--peers", default="plain", help=f"of {','.join(PEERS)}; - for none")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="NAME=DIRECTORY", help="a further side"
    )
    parser.add_argument("--nolane", action="store_true", help="a second volume without the lane")
    parser.add_argument("--options", default="", help="mount options of the volume")
    parser.add_argument("--runtime", type=float, default=3, help="seconds of each fio job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default="", help="names with commas, or parts of them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="also draw the ratios into this .svg or .png")
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name not in ("", "-")]
    options.options = [word for word in options.options.split(",") if word]
    for name in options.peers:
        if name not in PEERS:
            parser.error(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
        if lacking := missing(name):
            parser.error(f"{name} needs {', '.join(lacking)}: install it first")
    for text in options.beside:
        if "=" not in text or not os.path.isdir(text.partition("=")[2]):
            parser.error(f"--beside {text}: NAME=DIRECTORY of an existing directory")
    return options


def main():
    """Runs, tells."""
    options = _arguments()
    wanted = [word for word in options.jobs.split(",") if word]
    names = [name for name in fio_jobs.JOBS if not wanted or any(w in name for w in wanted)]
    told = machine()
    results = measure(options, names)
    if options.plot:
        plot(results, options.plot)
    if options.json:
        print(json.dumps({"version": 2, "machine": told, "jobs": results}))
    else:
        print(machine_line(told))
        show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
