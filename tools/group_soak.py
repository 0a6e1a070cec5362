#!/usr/bin/env python3
"""Hundreds of group snapshots under programs whose writes follow one from another; each is judged.

The programs and the exact rule: tests/ordered.py. They run against some volumes, each with its own
daemon, while a snapshot of the group is asked for at each volume in turn. As soon as a snapshot is
there it is read in all volumes, beside the programs, and judged: what it holds of a program must be
where that program was at some moment. In the end all volumes must have the same group snapshots
(older ones are deleted on the way, of all volumes at once), and each must be clean by
`raidfs-ctl check`.

--without group   takes three separate snapshots in a row instead: they are found to be impossible
--without gate    leaves out the gate (a fault switch of the daemons): so are these, now and then

The exit code is 0 if nothing impossible was seen; with --without, if something was.
"""

import argparse
import json
import sys
import time
from collections import Counter

from measuring import machine, machine_line, progress, spread, workshop

from raidfs.daemon.group_requests import GroupWorkRequest
from raidfs.daemon.snapshots import SnapshotCreated, SnapshotCreateRequest

from groups import ControlError, Crew  # isort: skip
from ordered import ALL_KINDS  # isort: skip

KEPT = 20
ENOUGH = 3  # impossible ones, of those that are looked for
EVERY_S = 5.0


def take(crew, name, at, without):
    """Why there is none; "": it is there. And the longest gate, in ms."""
    if without == "group":
        gates = []
        for number in range(len(crew.volumes)):
            told = crew.ask(number, SnapshotCreateRequest(name=name), SnapshotCreated)
            gates.append(told.gate_us / 1e3)
        return "", max(gates)
    taken = crew.snapshot(name, at)
    if taken.state != "committed":
        return f"{taken.state}: {taken.reason}", 0.0
    return "", max(part.gate_us for part in taken.volumes) / 1e3


def soak(crew, snapshots, without="", kinds=ALL_KINDS):
    """What was seen, of so many snapshots."""
    impossible, aborted, gates, moments = [], Counter(), [], set()
    names, told_at = [], time.monotonic()
    with crew.writers(kinds) as told:
        for number in range(snapshots):
            name = f"s{number}"
            why, gate_ms = take(crew, name, number % len(crew.volumes), without)
            if why:
                aborted[why] += 1
                continue
            names.append(name)
            gates.append(gate_ms)
            impossible += crew.violations([name], kinds)
            moments.add(tuple(crew.counts(name, kinds[:1])[kinds[0]]))
            if without and len(impossible) >= ENOUGH:
                break
            if not without and len(names) > KEPT:
                oldest = GroupWorkRequest(kind="delete", name=names.pop(0))
                crew.ask(number % len(crew.volumes), oldest, dict)
            if time.monotonic() - told_at > EVERY_S:
                told_at = time.monotonic()
                progress(f"{number + 1} of {snapshots} snapshots, {len(impossible)} impossible")
    if without != "group":
        assert set(crew.same_everywhere()) == set(names)
    return {
        "snapshots": len(gates),
        "aborted": dict(aborted),
        "impossible": impossible,
        "moments": len(moments),
        "gate_ms": spread(gates or [0.0]),
        "programs": told,
    }


def crew_for(shop, volumes, without=""):
    """A group on this host."""
    faults = dict.fromkeys(range(volumes), "group.no-gate") if without == "gate" else {}
    crew = Crew(shop, volumes, faults)
    crew.init()
    crew.settle()
    return crew


def show(told):
    """For people."""
    gate = told["gate_ms"]
    print(
        f"{told['snapshots']} snapshots, of {told['moments']} moments;"
        f" {len(told['impossible'])} impossible, {sum(told['aborted'].values())} given up"
    )
    for why, count in told["aborted"].items():
        print(f"  given up {count} times: {why}")
    for name, kind, counts in told["impossible"]:
        print(f"  {name}: {kind} was at {counts}")
    print(f"longest gate: median {gate['p50']:.1f} ms, 99 % {gate['p99']:.1f}, {gate['max']:.1f}")
    for kind, one in told["programs"].items():
        print(f"{kind:7} {one['steps']} steps, the longest took {one['longest_s'] * 1e3:.1f} ms")


def main():
    """Runs, tells."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--snapshots", type=int, default=300)
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--without", choices=("gate", "group"), default="")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with workshop() as shop:
        crew = crew_for(shop, options.volumes, options.without)
        try:
            told = soak(crew, options.snapshots, options.without)
        except ControlError as error:
            raise SystemExit(f"group_soak: {error}") from error
        crew.finish()
    if options.json:
        print(json.dumps({"version": 1, "machine": machine(), **told}))
    else:
        print(machine_line(machine()))
        show(told)
    return int(bool(told["impossible"]) != bool(options.without))


if __name__ == "__main__":
    sys.exit(main())
