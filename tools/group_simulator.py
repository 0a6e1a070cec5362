#!/usr/bin/env python3
"""Marker processes in a simulated world, without clock or network: does the protocol hold?

The world and what must be true of it: group_world.py. Either all orders of what may happen are
tried (`explore`), or seeded random ones with crashes, restarts, partitions, duplicate connections,
failing disks and changed memberships (`wander`).

`--sabotage NAME` spoils one promise: then something must be found. `--gate-time` tells what the
gate costs by the number of volumes. Exit code 1: a violation (told with the seed that shows it).
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from dataclasses import dataclass, replace

from group_world import (
    SABOTAGES,
    STEPS_MAX,
    Scenario,
    Step,
    Violation,
    World,
    number_of,
    volume_id,
)

from raidfs.group import events as e
from raidfs.group.marker import Process
from raidfs.group.messages import Marker, Plan, Roster
from raidfs.group.progress import Phase


@dataclass
class Found:
    """What an exploration saw. `violation` is empty if all held; `path` leads to it."""

    states: int = 0
    ends: int = 0
    committed: int = 0
    violation: str = ""
    path: tuple[Step, ...] = ()


def explore(scenario: Scenario, states_max: int = 2_000_000) -> Found:
    """All orders of all steps and faults. Stops at the first violation."""
    found = Found()
    start = World(scenario)
    seen = {hash(start.key())}
    todo: list[tuple[World, tuple[Step, ...]]] = [(start, ())]
    while todo:
        world, path = todo.pop()
        found.states += 1
        assert found.states <= states_max, f"more than {states_max} states"
        steps = world.steps()
        try:
            if not steps:
                end = world.fork()
                end.finish()
                found.ends += 1
                found.committed += "committed" in end.outcomes.values()
        except Violation as violation:
            return replace(found, violation=str(violation), path=path)
        for step in (*steps, *world.faults()):
            after = world.fork()
            try:
                after.do(step)
            except Violation as violation:
                return replace(found, violation=str(violation), path=(*path, step))
            mark = hash(after.key())
            if mark not in seen:
                seen.add(mark)
                todo.append((after, (*path, step)))
    return found


def pair_of(rng: random.Random, n: int) -> tuple[int, int]:
    u, v = rng.sample(range(n), 2)
    return u, v


def scenario_of(seed: int, sabotage: str = "") -> Scenario:
    """A random one. Each seed leaves out some kinds of fault, so that others show more."""
    rng = random.Random(seed)
    n = rng.randint(2, 8)
    chains = tuple(
        tuple(rng.randrange(n) for _ in range(rng.randint(2, 8))) for _ in range(rng.randint(1, 4))
    )

    def some(most: int) -> int:
        return rng.randint(1, most) if rng.random() < 0.5 else 0

    return Scenario(
        volumes=n,
        chains=chains,
        initiators=tuple(rng.randrange(n) for _ in range(rng.randint(1, 4))),
        transfers=tuple(pair_of(rng, n) for _ in range(rng.randint(0, 12))),
        crashes=some(4),
        breaks=some(4),
        doubles=some(2),
        timeouts=some(2),
        failures=some(1),
        rosters=some(2),
        cancels=some(1),
        deletes=some(2),
        late=some(20),
        channel_bytes=2 if rng.random() < 0.05 else 1 << 20,
        missing=rng.random() < 0.3,
        readers=rng.random() < 0.5,
        sabotage=sabotage,
    )


def wander(scenario: Scenario, seed: int) -> World:
    """One random run to its end. Violation if it is wrong."""
    rng = random.Random(seed)
    world = World(scenario)
    fault = rng.choice((0.0, 0.01, 0.03, 0.1))
    slow = {step: rng.random() for step in ("net", "disk", "told", "app", "restart", "join")}
    late = {pair: rng.random() ** 3 for pair in world.inbox}  # some channels are slow
    for _ in range(STEPS_MAX):
        steps = world.steps()
        if not steps:
            break
        faults = world.faults() if rng.random() < fault * (8 if deciding(world) else 1) else []
        step = rng.choice(faults) if faults else _pick(rng, steps, slow, late)
        if step[0] in ("break", "double", "crash") and rng.random() < 0.5:
            at = 3 if step[0] != "crash" else 2
            step = (*step[:at], rng.randrange(4), *step[at + 1 :])
        world.do(step)
    else:
        raise Violation("it never comes to rest")
    world.finish()
    return world


def deciding(world: World) -> bool:
    """The short moment at which most depends on what is durable."""
    live = [volume.process for volume in world.volumes if volume.process]
    return any(one.phase is Phase.DECIDING for process in live for one in process.running())


def _pick(
    rng: random.Random,
    steps: list[Step],
    slow: dict[str, float],
    late: dict[tuple[int, int], float],
) -> Step:
    """One of them; kinds and channels have their own paces."""
    paces = []
    for step in steps:
        pace = slow.get(str(step[0]), 0.3) + 0.02
        if step[0] == "net":
            pace *= late.get((int(str(step[1])), int(str(step[2]))), 1.0) + 0.02
        paces.append(pace)
    return rng.choices(steps, paces)[0]


def gate_time(volumes: int, delay_us: float, handle_us: float, seed: int = 1) -> dict[str, float]:
    """One snapshot over so many volumes, with a clock: each message takes `delay_us` on average
    (exponential, in order), each daemon handles one after the other, `handle_us` to send one and
    as much to take one. Returns gate times in us."""
    rng = random.Random(seed)
    roster = Roster(1, tuple(volume_id(v) for v in range(volumes)))
    processes = [Process(volume_id(v), roster) for v in range(volumes)]
    for u, process in enumerate(processes):
        for v in range(volumes):
            if u != v:
                process.handle(e.SessionUp(volume_id(v), 1))
    free = [0.0] * volumes
    arrived = [[0.0] * volumes for _ in range(volumes)]
    cut, gate = [0.0] * volumes, [0.0] * volumes
    queue: list[tuple[float, int, int, e.Event]] = []
    count = 0
    plan = Plan(bytes(16), "s", 1, volume_id(0), 1, roster.fingerprint)
    heapq.heappush(queue, (0.0, count, 0, e.Start(plan)))
    while queue:
        when, _, v, event = heapq.heappop(queue)
        now = max(when, free[v]) + handle_us
        for action in processes[v].handle(event):
            match action:
                case e.Cut():
                    cut[v] = now
                case e.OpenGate():
                    gate[v] = now - cut[v]
                case e.Send(peer, session, Marker() as message):
                    now += handle_us
                    u = number_of(peer)
                    arrival = max(arrived[v][u], now + rng.expovariate(1 / delay_us))
                    arrived[v][u] = arrival
                    count += 1
                    received = e.Received(volume_id(v), session, message)
                    heapq.heappush(queue, (arrival, count, u, received))
        free[v] = now
    gate.sort()
    return {
        "volumes": volumes,
        "markers": count,
        "gate_us_median": gate[volumes // 2],
        "gate_us_max": gate[-1],
    }


SMALL = (
    Scenario(2, ((0, 1, 0),), (0,), ((0, 1), (1, 0))),
    Scenario(2, ((0, 1), (1, 0)), (0, 1)),
    Scenario(3, ((0, 1, 2),), (1,)),
    Scenario(2, ((0, 1),), (0,), ((1, 0),), crashes=1),
    Scenario(2, ((0, 1),), (0,), ((0, 1),), breaks=1),
    Scenario(2, ((1, 0),), (0,), doubles=1),
    Scenario(2, ((0, 1),), (1,), timeouts=1, failures=1),
    Scenario(2, (), (0,), rosters=1),
)


def measured_handle_us() -> float:
    """What one marker costs a process on this machine."""
    count = 200
    began = time.perf_counter()
    gate_time(count, 1.0, 1.0)
    return (time.perf_counter() - began) * 1e6 / (count * (count - 1))


def tell_gate_times(delay_us: float, handle_us: float) -> None:
    print(f"messages {delay_us:.0f} us, each handled in {handle_us:.0f} us at either end")
    print(f"{'volumes':>8} {'markers':>9} {'gate, median':>14} {'gate, longest':>14}")
    for volumes in (2, 3, 8, 32, 100, 200, 400):
        told = gate_time(volumes, delay_us, handle_us)
        median, longest = told["gate_us_median"] / 1000, told["gate_us_max"] / 1000
        print(f"{volumes:>8} {told['markers']:>9} {median:>11.2f} ms {longest:>11.2f} ms")


def run_exhaustive(sabotage: str) -> int:
    for scenario in SMALL:
        began = time.monotonic()
        found = explore(replace(scenario, sabotage=sabotage))
        print(f"{scenario}\n  {found.states} states, {found.ends} ends, {found.committed} with a")
        print(f"  snapshot, {time.monotonic() - began:.1f} s: {found.violation or 'holds'}")
        if found.violation:
            print("  " + "\n  ".join(map(str, found.path)))
            return 1
    return 0


def run_random(seed: int, runs: int, sabotage: str) -> int:
    print(f"seed {seed}")
    outcomes: dict[str, int] = {}
    for one in range(seed, seed + runs):
        try:
            world = wander(scenario_of(one, sabotage), one)
        except Violation as violation:
            print(f"violation, again with --seed {one} --runs 1: {violation}")
            return 1
        for outcome in world.outcomes.values():
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(f"{runs} runs hold; snapshots: {outcomes}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exhaustive", action="store_true", help="all orders of small worlds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--sabotage", choices=SABOTAGES, default="")
    parser.add_argument("--gate-time", action="store_true")
    parser.add_argument("--delay-us", type=float, default=100.0)
    parser.add_argument("--handle-us", type=float, help="default: measured here")
    given = parser.parse_args()
    if given.gate_time:
        tell_gate_times(given.delay_us, given.handle_us or measured_handle_us())
        return 0
    if given.exhaustive:
        return run_exhaustive(given.sabotage)
    return run_random(given.seed, given.runs, given.sabotage)


if __name__ == "__main__":
    sys.exit(main())
