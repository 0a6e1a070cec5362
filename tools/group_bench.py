#!/usr/bin/env python3
"""What group snapshots cost: how long gates are shut, and the longest wait of a writer.

Volumes on this host (mirrors over two directories in memory), each with its daemon, in one group,
over unix sockets or over TCP and TLS on the loopback. Writers of our own note how long each write
of 4 KiB took; *light*: one, a write each millisecond, to the volumes in turn; *tight*: three, which
never rest. Snapshots are asked for at each volume in turn.

Told are, over all snapshots: the longest gate of the volumes (as the daemons report it), and of all
gates the 99th percentile; the longest write that somebody waited for between the request and its
answer, which comes when the snapshot is durable and visible everywhere; the same for spans of the
same length between snapshots (quiet); and the time until that answer.

slow    The members of one volume take --slow ms longer for each sync. No gate gets longer for it.
against DIR has the raidfs package of another version: both take turns, --rounds times, and of all
        figures the median of the rounds is told. On a shared machine nothing less says anything.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
from measuring import machine, machine_line, progress, spread, table, workshop
from snapshot_bench import longest_ms

from raidfs.daemon.control import ControlClient
from raidfs.daemon.group_requests import GroupSnapshotRequest, GroupTaken

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from far import joined
from groups import Crew

LIGHT_S = 0.001
TIGHT = 3
NOTED_S = 0.0002  # shorter writes are only counted
SIZE = 1 << 30
# Words: the file to note in, the pause, and a file in each volume, written to in turn.
WRITER = """
import array, os, random, signal, sys, time
notes, pause_s, noted_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
fds = [os.open(path, os.O_CREAT | os.O_RDWR, 0o600) for path in sys.argv[4:]]
page, pages = bytes(range(256)) * 16, 64
for fd in fds:
    for at in range(pages):
        os.pwrite(fd, page, at * 4096)
found, count, going = array.array("d"), 0, True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
dice = random.Random(1)
while going:
    for fd in fds:
        at = dice.randrange(pages) * 4096
        begun = time.perf_counter()
        os.pwrite(fd, page, at)
        took = time.perf_counter() - begun
        if took > noted_s:
            found.extend((time.time(), took))
        count += 1
        if pause_s:
            time.sleep(pause_s)
with open(notes, "wb") as file:
    found.tofile(file)
print(count, flush=True)
"""


class Writers:
    """Going on inside of the `with`; then `count` and `waits`: (end, seconds) of long writes."""

    def __init__(self, crew, kind):
        self.crew, self.kind = crew, kind
        self.count, self.waits, self._running = 0, [], []

    def __enter__(self):
        directory = self.crew.shop.directory
        for number in range(TIGHT if self.kind == "tight" else 1):
            notes = directory / f"notes{number}"
            files = [volume.mountpoint / f"w{number}" for volume in self.crew.volumes]
            pause_s = 0.0 if self.kind == "tight" else LIGHT_S
            words = [sys.executable, "-c", WRITER, notes, pause_s, NOTED_S, *files]
            writer = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE)
            self._running.append((writer, notes))
            assert writer.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_):
        for writer, _ in self._running:
            writer.send_signal(signal.SIGTERM)
        for writer, notes in self._running:
            with writer.stdout:
                self.count += int(writer.stdout.read() or 0)
            writer.wait()
            if notes.exists():
                numbers = memoryview(notes.read_bytes()).cast("d").tolist()
                self.waits += zip(numbers[::2], numbers[1::2], strict=True)
                notes.unlink()
        self.waits.sort()


class Asked:
    """A daemon's control socket, kept open."""

    def __init__(self, crew, number):
        self.client = ControlClient(crew.socket(number))

    def snapshot(self, name):
        told = self.client.ask(GroupSnapshotRequest(name=name))
        return msgspec.json.decode(told, type=GroupTaken)


def measure(crew, writers, options):
    """One row: snapshots while writers write."""
    dice, spans, gates = random.Random(1), [], []
    with contextlib.ExitStack() as stack:
        asked = [Asked(crew, number) for number in range(len(crew.volumes))]
        for one in asked:
            stack.enter_context(one.client)
        going = stack.enter_context(Writers(crew, writers))
        time.sleep(0.5)
        begun = time.monotonic()
        while len(spans) < options.snapshots:
            name = f"s{time.time_ns()}"
            first = time.time()
            taken = asked[len(spans) % len(asked)].snapshot(name)
            spans.append((first, time.time()))
            if taken.state != "committed":
                raise SystemExit(f"group_bench: a snapshot was {taken.state}: {taken.reason}")
            gates.append([part.gate_us / 1e3 for part in taken.volumes])
            time.sleep(options.every * (0.5 + dice.random()))
        seconds = time.monotonic() - begun
    quiet = []
    for (first, last), (following, _) in pairwise(spans):
        middle, length = (last + following) / 2, min(last - first, following - last)
        quiet.append((middle - length / 2, middle + length / 2))
    waits = going.waits or [(0.0, 0.0)]
    return {
        "snapshots": len(spans),
        "writes_per_s": going.count / seconds,
        "gate_ms": spread([max(one) for one in gates]),
        "gates_ms": spread([gate for one in gates for gate in one]),
        "delay_ms": spread(longest_ms(waits, spans)),
        "quiet_ms": spread(longest_ms(waits, quiet)),
        "answer_ms": spread([(last - first) * 1e3 for first, last in spans]),
    }


@contextlib.contextmanager
def group(options, way, count, slow_ms=None, package=None):
    """A Crew of that many volumes in one group; the first one with slow members."""
    with workshop(options.directory) as shop:
        shop.launcher = ("env",)  # each daemon is a process begun anew
        if package is not None:
            shop.env["PYTHONPATH"] = str(package)
        faults = {} if slow_ms is None else {0: f"member.slow-sync:{slow_ms}"}
        crew = Crew(shop, count, faults, size=SIZE)
        del shop.run  # commands, too
        crew.init() if way == "unix" else joined(crew)
        crew.settle()
        yield crew
        crew.unmount()


def middle(rounds):
    """Of each figure the median of the rounds."""
    if isinstance(rounds[0], dict):
        return {key: middle([one[key] for one in rounds]) for key in rounds[0]}
    return median(rounds)


def sides(options):
    """(name, package) of the versions that take turns."""
    return [("", None)] if options.against is None else [("before", options.against), ("", None)]


def cost(options):
    """Rows of ways, counts of volumes and writers."""
    rows = []
    for way in options.ways:
        for count in options.volumes:
            told = {(side, kind): [] for side, _ in sides(options) for kind in options.writers}
            for turn in range(options.rounds):
                for side, package in sides(options):
                    progress(f"{count} volumes, {way} {side}, round {turn + 1}")
                    with group(options, way, count, package=package) as crew:
                        for kind in options.writers:
                            told[side, kind].append(measure(crew, kind, options))
            for (side, kind), rounds in sorted(told.items(), key=lambda one: one[0][1]):
                what = f"{count} volumes, {way}, {kind} {side}".strip()
                rows.append({"what": what, **middle(rounds), "rounds": len(rounds)})
    return rows


def slow(options):
    """The same with members that sync at once, and slowly."""
    rows = []
    for delay_ms in (0, options.slow):
        progress(f"members {delay_ms} ms slower")
        with group(options, options.ways[0], options.volumes[0], delay_ms) as crew:
            told = measure(crew, options.writers[0], options)
        rows.append({"what": f"one volume's syncs {delay_ms} ms longer", **told, "rounds": 1})
    return rows


def show(rows):
    """A line for each."""
    head = ["ms", "taken", "writes/s", "gate p50", "p99", "max", "all p99", "write p50", "p99"]
    head += ["max", "quiet p99", "max", "answer p50"]
    lines = []
    for row in rows:
        figures = [row["gate_ms"][rank] for rank in ("p50", "p99", "max")]
        figures.append(row["gates_ms"]["p99"])
        figures += [row["delay_ms"][rank] for rank in ("p50", "p99", "max")]
        figures += [row["quiet_ms"][rank] for rank in ("p99", "max")]
        figures.append(row["answer_ms"]["p50"])
        cells = [f"{row['snapshots']:.0f} x {row['rounds']}", f"{row['writes_per_s']:.0f}"]
        lines.append([row["what"], *cells, *(f"{figure:.2f}" for figure in figures)])
    print(table(head, lines))


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help="cost, slow; both if none is named")
    parser.add_argument("--directory", type=Path, help="where members lie; memory if not given")
    parser.add_argument("--ways", default="unix,tls")
    parser.add_argument("--volumes", default="3,8", help="how many, ...")
    parser.add_argument("--writers", default="light,tight")
    parser.add_argument("--snapshots", type=int, default=100, help="of each row and round")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between snapshots")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--slow", type=int, default=200, help="ms of each sync")
    parser.add_argument("--against", type=Path, metavar="DIR", help="has another raidfs package")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name, known in (("ways", ("unix", "tls")), ("writers", ("light", "tight"))):
        words = getattr(options, name).split(",")
        setattr(options, name, words)
        if set(words) - set(known):
            parser.error(f"--{name}: there are {' and '.join(known)}")
    options.volumes = [int(word) for word in options.volumes.split(",")]
    if set(options.parts) - {"cost", "slow"}:
        parser.error("the parts are cost and slow")
    return options


def main():
    """Runs, tells."""
    options, rows = _arguments(), []
    parts = options.parts or ["cost", "slow"]
    told = machine()
    if "cost" in parts:
        rows += cost(options)
    if "slow" in parts:
        rows += slow(options)
    if options.json:
        print(json.dumps({"version": 1, "machine": told, "rows": rows}))
        return 0
    print(machine_line(told))
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
