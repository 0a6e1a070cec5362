"""Placement: unequal members are used up, and every member shares in every rebuild."""

import random
from collections import Counter

import pytest

from raidfs.raid.code import code_for
from raidfs.raid.placement import choose_members, usable_zones


def filled(slots, code):
    """Zones made one after the other until no more fit, by choose_members itself."""
    free = dict(enumerate(slots))
    zones = []
    while (chosen := choose_members(free, code, len(zones) + 1)) is not None:
        assert len(set(chosen)) == code.width
        for member in chosen:
            free[member] -= 1
            assert free[member] >= 0
        zones.append(chosen)
    return zones


def most_zones(slots, width):
    """Brute force for few slots: the best of all ways to take one zone after another."""
    best = 0
    seen = set()

    def go(free, made):
        nonlocal best
        best = max(best, made)
        key = tuple(sorted(free))
        if key in seen:
            return
        seen.add(key)
        order = [i for i, count in enumerate(free) if count]
        for chosen in combinations(order, width):
            go([count - (i in chosen) for i, count in enumerate(free)], made + 1)

    from itertools import combinations

    go(list(slots), 0)
    return best


def test_usable_zones_is_the_best_that_any_way_reaches():
    rng = random.Random(7)
    for _ in range(150):
        slots = [rng.randrange(0, 5) for _ in range(rng.randrange(1, 6))]
        width = rng.randrange(1, len(slots) + 1)
        code = code_for("0", width)
        assert usable_zones(slots, code) == most_zones(slots, width), (slots, width)


@pytest.mark.parametrize("level", ["0", "1", "4", "5", "6", "10", "rs:2+2"])
def test_making_zones_reaches_usable_zones(level):
    rng = random.Random(8)
    for _ in range(40):
        members = rng.randrange(4, 9)
        slots = [rng.choice((0, 3, 10, 40, 41)) for _ in range(members)]
        code = code_for(level, 4)
        assert len(filled(slots, code)) == usable_zones(slots, code), slots


def test_examples():
    five = code_for("5", 3)
    assert usable_zones([10, 10, 10], five) == 10
    assert usable_zones([10, 20, 30], five) == 10
    assert usable_zones([10, 10, 20, 20], five) == 20, "not cut to the smallest"
    assert usable_zones([1000, 1, 1], five) == 1
    assert usable_zones([5, 5], five) == 0
    assert usable_zones([7], code_for("0", 1)) == 7


def test_too_few_members_with_room():
    code = code_for("5", 3)
    assert choose_members({0: 1, 1: 1, 2: 0}, code, 1) is None
    assert choose_members({}, code, 1) is None


def test_parity_turns_from_zone_to_zone():
    code = code_for("5", 4)
    parity = Counter(choose_members(dict.fromkeys(range(4), 9), code, z)[3] for z in range(1, 41))
    assert parity == dict.fromkeys(range(4), 10)


@pytest.mark.parametrize("level", ["3", "4"])
def test_dedicated_parity_stays(level):
    code = code_for(level, 4)
    for zone in range(1, 20):
        assert choose_members(dict.fromkeys(range(4), 9), code, zone) == [0, 1, 2, 3]


def test_pairs_are_the_same_in_all_zones():
    code = code_for("10", 6)
    for zone in range(1, 30):
        chosen = choose_members(dict.fromkeys(range(6), 9), code, zone)
        pairs = {frozenset((chosen[c], chosen[c + 3])) for c in range(3)}
        assert pairs == {frozenset((0, 1)), frozenset((2, 3)), frozenset((4, 5))}
    first = Counter(choose_members(dict.fromkeys(range(6), 9), code, z)[0] for z in range(60))
    assert set(first) == set(range(6)), "all members are read first now and then"


def test_more_members_than_width_are_declustered():
    code = code_for("5", 4)
    zones = filled([60] * 8, code)
    assert len(zones) == 120
    together = Counter()
    for zone in zones:
        if 0 in zone:
            together.update(member for member in zone if member != 0)
    assert set(together) == set(range(1, 8)), "all others help to rebuild member 0"
    assert max(together.values()) < 3 * min(together.values())


def test_placement_is_the_same_every_time():
    code = code_for("6", 5)
    free = dict.fromkeys(range(9), 4)
    assert choose_members(free, code, 77) == choose_members(dict(reversed(free.items())), code, 77)
