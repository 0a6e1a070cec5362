"""The decision tables: each combination has exactly one outcome, and it is the right one."""

import itertools

import pytest
from members_conformance import label_of

from raidfs.raid import decision
from raidfs.raid.decision import (
    LISTED,
    MEMBER_TABLE,
    SEEN,
    VOLUME_TABLE,
    Case,
    Observation,
    decide,
    newest_of,
    outcome_of,
    seen_as,
    verdict_on,
)

ALL_CASES = [
    Case(*values)
    for values in itertools.product(
        (True, False),
        ("none", "recorded", "new"),
        ("within", "beyond"),
        (True, False),
        (True, False),
    )
]


def test_every_observation_of_a_member_matches_one_row():
    for seen, listed in itertools.product(SEEN, LISTED):
        rows = [row for row in MEMBER_TABLE if seen in row[0] and listed in row[1]]
        assert len(rows) == 1, (seen, listed)


def test_every_case_of_a_volume_matches_one_row():
    for case in ALL_CASES:
        rows = [row for row in VOLUME_TABLE if row.matches(case)]
        if case.possible():
            assert len(rows) == 1, case
        else:
            assert len(rows) <= 1, case


def test_every_row_is_needed():
    for row in VOLUME_TABLE:
        assert any(row.matches(case) for case in ALL_CASES if case.possible()), row


def test_the_impossible_is_asserted():
    with pytest.raises(AssertionError):
        outcome_of(Case(False, "none", "beyond", False, False))


def reference(observations, tolerance, may_survive_more, degraded):
    """The rules in words (see the module), as plainly as can be."""
    lost, new = 0, 0
    for seen, listed in observations:
        if seen == "apart" or (seen == "ancient" and listed == "active"):
            return "refused_divergent"
        if listed == "failed":
            lost += 1
        elif seen in ("absent", "corrupt"):
            lost += 1
            new += 1
    if lost == 0:
        return "healthy"
    if lost > tolerance and not may_survive_more:
        return "refused_lost"
    if new and not degraded:
        return "needs_degraded"
    return "ask_zones" if lost > tolerance else "degraded"


@pytest.mark.parametrize("members", [1, 2, 3])
def test_every_combination_for_few_members(members):
    kinds = list(itertools.product(SEEN, LISTED))
    outcomes = set()
    for observations in itertools.product(kinds, repeat=members):
        for tolerance, more, degraded in itertools.product((0, 1, 2), (True, False), (True, False)):
            found = decide(
                {i: Observation(*pair) for i, pair in enumerate(observations)},
                tolerance=tolerance,
                may_survive_more=more,
                degraded=degraded,
            )
            expected = reference(observations, tolerance, more, degraded)
            assert found.outcome == expected, (observations, tolerance, more, degraded)
            outcomes.add(found.outcome)
            for member, (_, listed) in enumerate(observations):
                if listed == "failed":
                    assert found.verdicts[member] in ("stale", "divergent")
    assert len(outcomes) == 6


def test_only_two_verdicts_are_believed():
    believed = {
        (seen, listed)
        for seen, listed in itertools.product(SEEN, LISTED)
        if verdict_on(Observation(seen, listed)) in decision.BELIEVED
    }
    assert believed == {("current", "active"), ("older", "active")}


def line(*generations, member_id=0):
    """A label whose history is these (generation, letter) pairs."""
    history = [(number, letter * 16) for number, letter in generations]
    return label_of(
        member_id, generation=history[-1][0], generation_id=history[-1][1], history=history
    )


def test_how_labels_stand_to_each_other():
    newest = line((3, "a"), (4, "b"), (6, "c"))
    assert seen_as(newest, newest) == "current"
    assert seen_as(line((3, "a"), (4, "b")), newest) == "older"
    assert seen_as(line((3, "a")), newest) == "older"
    assert seen_as(line((2, "f")), newest) == "ancient"
    assert seen_as(line((3, "a"), (4, "e")), newest) == "apart"
    assert seen_as(line((5, "d")), newest) == "apart"
    assert seen_as(line((6, "e")), newest) == "apart"
    assert newest_of([line((3, "a")), newest, line((4, "b"))]) == newest


def test_two_halves_that_went_on_separately_see_each_other():
    one, other = line((1, "a"), (2, "b")), line((1, "a"), (2, "c"))
    newest = newest_of([one, other])
    assert sorted(seen_as(label, newest) for label in (one, other)) == ["apart", "current"]
    longer = line((1, "a"), (2, "b"), (3, "d"))
    assert newest_of([longer, other]) == longer and seen_as(other, longer) == "apart"
