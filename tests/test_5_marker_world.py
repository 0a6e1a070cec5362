"""Many marker processes in a simulated world: all small interleavings, thousands of random ones,
and the same for what is spoiled on purpose, which must be found."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raidfs.group.marker import _PAST, INITIATOR, PARTICIPANT, Process
from raidfs.group.progress import Kind, Phase

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from group_simulator import explore, gate_time, scenario_of, wander  # noqa: E402
from group_world import SABOTAGES, Scenario, Violation, World  # noqa: E402

# Each says what it is for: a sabotage must be found in a world that holds without it.
SABOTAGED = {
    "marker lost": (Scenario(2, ((0, 1),)), "came to nothing"),
    "marker overtaken": (Scenario(2, transfers=((0, 1),)), "which sent set()"),
    "gate opened early": (Scenario(2, ((0, 1),)), "rests on"),
    "record not durable": (Scenario(2, transfers=((1, 0),), crashes=1), "are nowhere"),
    "prepared not durable": (Scenario(2, crashes=1), "visible in [0] only"),
    "decision not durable": (Scenario(2, crashes=1), "visible in [1] only"),
    "prepared said early": (Scenario(2, crashes=1), "visible in [0] only"),
    "session end untold": (Scenario(2, transfers=((0, 1),), breaks=1), "are nowhere"),
}


def brief(scenario):
    """What is not as usual in it."""
    usual = Scenario()
    return " ".join(
        f"{name}={value}" for name, value in vars(scenario).items() if value != getattr(usual, name)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotage_is_found(name):
    scenario, words = SABOTAGED[name]
    assert explore(scenario).violation == ""
    found = explore(replace(scenario, sabotage=name))
    assert words in found.violation


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(2, ((0, 1, 0),), (0,), ((0, 1),)),
        Scenario(3, ((0, 1, 2),), (1,)),
        Scenario(2, ((1, 0),), (0,), doubles=1),
        Scenario(2, ((0, 1),), (1,), timeouts=1),
        Scenario(2, failures=1),
        Scenario(2, rosters=1),
        Scenario(2, cancels=1),
        Scenario(2, crashes=1, deletes=1),
    ],
    ids=brief,
)
def test_all_interleavings_of_small_worlds(scenario):
    found = explore(scenario)
    assert found.violation == "", found.path
    assert found.committed


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(2, ((0, 1),), (0, 1)),
        Scenario(2, ((1, 0),), (0,), ((0, 1),), breaks=1),
        Scenario(2, crashes=2),
        Scenario(3, ((2, 1, 0), (0, 2)), (1,)),
    ],
    ids=brief,
)
def test_all_interleavings_of_larger_worlds(scenario):
    found = explore(scenario)
    assert found.violation == "", found.path
    assert found.committed


def hits(monkeypatch):
    """What the tables are asked, from now on."""
    asked = set()
    real = Process._step

    def step(self, given):
        progress = self._running.get(given.snapshot)
        if progress is None:
            whose = "nobody's"
        else:
            whose = "mine" if progress.plan.initiator == self.me else "theirs"
        asked.add((whose, self.phase(given.snapshot), given.kind))
        real(self, given)

    monkeypatch.setattr(Process, "_step", step)
    return asked


@pytest.mark.slow
def test_random_worlds(monkeypatch):
    """Each seed is a scenario and a way through it. They must reach what matters."""
    asked = hits(monkeypatch)
    outcomes = {}
    for seed in range(300):
        try:
            world = wander(scenario_of(seed), seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
        for outcome in world.outcomes.values():
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["committed"] > 100
    assert outcomes["aborted"] > 100
    for row in (
        ("theirs", Phase.PREPARED, Kind.REFUSED),
        ("mine", Phase.COLLECTING, Kind.PEER_DOWN),
        ("mine", Phase.DISTRIBUTING, Kind.PEER_UP),
        ("nobody's", Phase.ABORTED, Kind.MARKER),
        ("nobody's", Phase.ABORTED, Kind.QUERY),
    ):
        assert row in asked


def test_a_peer_is_lost_at_every_step(monkeypatch):
    asked = hits(monkeypatch)
    assert explore(Scenario(2, crashes=1)).violation == ""
    lost = {(whose, phase) for whose, phase, kind in asked if kind is Kind.PEER_DOWN}
    phases = {*(("mine", one) for one in INITIATOR), *(("theirs", one) for one in PARTICIPANT)}
    # with two volumes the second has all markers with the first: it never stays RECORDING
    assert phases - lost == {("theirs", Phase.RECORDING)}


# Rows that are there so that every event has an answer, and that these runs don't reach: most
# because no order of events can. Timers, of which most phases start none, aside.
UNREACHED = {
    ("mine", Phase.RECORDING): {Kind.FAILED, Kind.PEER_UP},
    ("mine", Phase.SETTLING): {Kind.PEER_UP, Kind.QUERY},
    ("mine", Phase.COLLECTING): {Kind.FAILED, Kind.PEER_UP},
    ("theirs", Phase.RECORDING): {Kind.FAILED, Kind.PEER_UP, Kind.QUERY},
    ("theirs", Phase.SETTLING): {Kind.QUERY},
    ("theirs", Phase.PREPARED): {Kind.RESOLVE_COMMIT, Kind.RESOLVE_ABORT},
    ("theirs", Phase.COMMITTING): {Kind.QUERY},
    ("nobody's", Phase.ABORTED): {Kind.DECIDED, Kind.VISIBLE},
    ("nobody's", Phase.COMMITTED): {Kind.DURABLE, Kind.DECIDED, Kind.VISIBLE, Kind.FAILED},
    ("nobody's", Phase.UNKNOWN): {
        Kind.ABORT,
        Kind.COMMIT,
        Kind.DECIDED,
        Kind.DONE,
        Kind.DURABLE,
        Kind.FAILED,
        Kind.LEARN_ABORT,
        Kind.PREPARED,
        Kind.VISIBLE,
    },
}


@pytest.mark.slow
def test_thousands_of_random_worlds(monkeypatch):
    asked = hits(monkeypatch)
    for seed in range(1000, 2200):
        try:
            wander(scenario_of(seed), seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    tables = {"mine": INITIATOR, "theirs": PARTICIPANT, "nobody's": _PAST}
    rows = {
        (whose, phase, kind)
        for whose, table in tables.items()
        for phase, kinds in table.items()
        for kind in kinds
    }
    expected = {(*place, kind) for place, kinds in UNREACHED.items() for kind in kinds}
    unreached = {row for row in rows - asked if "timeout" not in row[2]}
    assert unreached <= expected, unreached - expected


def test_a_seed_is_a_run():
    first, second = (wander(scenario_of(11), 11) for _ in range(2))
    assert first.key() == second.key()
    assert first.outcomes


def test_a_fork_is_on_its_own():
    world = World(Scenario(2, ((0, 1),)))
    before = world.key()
    other = world.fork()
    while steps := other.steps():
        other.do(steps[0])
    assert world.key() == before != other.key()


def test_gate_time_grows_with_the_number_of_markers():
    told = [gate_time(volumes, delay_us=100, handle_us=10) for volumes in (3, 30, 100)]
    assert [one["markers"] for one in told] == [6, 870, 9900]
    times = [one["gate_us_max"] for one in told]
    assert times == sorted(times)
    assert 100 * 10 < times[-1] < 500_000


@pytest.mark.slow
def test_the_model_holds_and_its_sabotaged_variants_fail():
    command = [str(ROOT / "docs/protocol/check.sh"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": holds\n") == 3
    assert done.stdout.count(": assertion violated") == 4
