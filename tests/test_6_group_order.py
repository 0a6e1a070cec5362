"""Group snapshots under programs whose writes follow one from another over three volumes: no
snapshot holds what no program could have caused, and what such a snapshot would look like is known.

The programs and the rule: ordered.py; the loop: tools/group_soak.py, which takes hundreds.
"""

import sys
from pathlib import Path

import pytest
from groups import Crew
from ordered import ALL_KINDS, KINDS, READ, impossible, possible, possible_reads

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import group_soak

SNAPSHOTS = 30
GATE_MS_MAX = 500


def test_the_judge_of_counts():
    for counts in ([5, 5, 5], [6, 5, 5], [6, 6, 5]):
        assert possible(counts)
    for counts in ([5, 6, 5], [5, 5, 6], [7, 6, 5], [7, 5, 5], [5, 6, 6]):
        assert not possible(counts)


def test_the_judge_of_what_was_read():
    """By volume: A was written from C, B from A, C from B."""
    assert possible_reads([4, 6, 6], [6, 6, 5])
    assert possible_reads([0, 0, 0], [6, 6, 5])
    for read in ([6, 6, 6], [5, 7, 6], [5, 6, 7]):
        assert not possible_reads(read, [6, 6, 5])
    counts = {kind: [6, 6, 5] for kind in KINDS}
    assert impossible({**counts, READ: [5, 6, 6]}) == []
    assert impossible({**counts, READ: [6, 6, 6]}) == [READ]
    assert impossible({**counts, "fsync": [5, 6, 6], READ: [5, 6, 6]}) == ["fsync"]


@pytest.mark.mount
@pytest.mark.slow
def test_no_snapshot_of_a_group_breaks_the_order(workshop):
    """Started at each volume in turn."""
    crew = group_soak.crew_for(workshop, 3)
    told = group_soak.soak(crew, SNAPSHOTS)
    assert told["impossible"] == [] and not told["aborted"], told
    assert told["snapshots"] == SNAPSHOTS
    assert told["moments"] > SNAPSHOTS // 2, "the programs did nothing between snapshots"
    assert set(told["programs"]) == set(ALL_KINDS)
    assert 0 < told["gate_ms"]["max"] < GATE_MS_MAX
    crew.finish()


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.parametrize("without", ["gate", "group"])
def test_what_is_missing_is_seen(workshop, without):
    """Markers alone don't know of what programs carry from one volume to another."""
    crew = group_soak.crew_for(workshop, 3, without)
    told = group_soak.soak(crew, 100, without)
    assert len(told["impossible"]) >= group_soak.ENOUGH, told


@pytest.mark.mount
@pytest.mark.slow
def test_no_gate_waits_for_a_disk(workshop):
    """Each sync of one volume takes 200 ms longer: what is answered later is the snapshot alone."""
    crew = Crew(workshop, faults={0: "member.slow-sync:200"})
    crew.init()
    with crew.writers(["write"]):
        taken = [crew.snapshot(f"s{number}", number % 3) for number in range(4)]
    assert [one.state for one in taken] == ["committed"] * 4
    assert min(one.seconds for one in taken) > 0.4, "the members are not slow"
    # of the four, so that a machine that is busy for a moment changes nothing
    assert min(max(part.gate_us for part in one.volumes) for one in taken) < 100_000
    crew.finish()
