"""The numbers of a change of shape: moves, slots, and what flushes may leave unused."""

import random

import pytest

from raidfs.raid.array import ZoneMap
from raidfs.raid.code import code_for
from raidfs.store.shape import Fill, Old, cells_left_over, even_moves, fits
from raidfs.store.zones import rounding_of


@pytest.mark.parametrize("seed", range(20))
def test_moves_make_members_more_equal_and_end(seed):
    chooser = random.Random(seed)
    members = chooser.randrange(3, 9)
    width = chooser.randrange(1, members)
    total = {member: chooser.randrange(10, 60) for member in range(members)}
    domains = {member: f"d{chooser.randrange(4)}" for member in range(members) if seed % 2}
    used, zones = dict.fromkeys(range(members), 0), {}
    for number in range(1, 200):
        open_ones = [m for m in range(members) if used[m] < total[m] and (m or seed % 3)]
        if len(open_ones) < width:
            break
        zones[number] = chooser.sample(open_ones, width)
        for member in zones[number]:
            used[member] += 1
    spread, crowded = unevenness(used, total), crowding(zones, domains)
    rounds = 0
    while moves := even_moves(zones, Fill(used, total), domains):
        rounds += 1
        assert rounds < 10
        assert len({(move.zone, move.column) for move in moves}) == len(moves)
        for move in moves:
            assert zones[move.zone][move.column] == move.source
            zones[move.zone][move.column] = move.member
            used[move.source] -= 1
            used[move.member] += 1
            assert used[move.member] <= total[move.member]
            assert len(set(zones[move.zone])) == width
    assert crowding(zones, domains) <= crowded
    if not domains:
        assert unevenness(used, total) <= spread
    if not domains and width < members - 1:
        assert unevenness(used, total) < 2.5 / min(total.values())


def unevenness(used, total):
    parts = [used[member] / total[member] for member in used]
    return max(parts) - min(parts)


def crowding(zones, domains):
    found = 0
    for members in zones.values():
        named = [domains[member] for member in members if member in domains]
        found += len(named) - len(set(named))
    return found


def test_columns_in_one_domain_are_parted():
    domains = {0: "a", 1: "a", 2: "b", 3: "c"}
    zones = {number: [0, 1, 2] for number in range(1, 5)}
    used, total = {0: 4, 1: 4, 2: 4, 3: 0}, dict.fromkeys(range(4), 10)
    moves = even_moves(zones, Fill(used, total), domains)
    for move in moves:
        zones[move.zone][move.column] = move.member
    assert crowding(zones, domains) == 0


def test_what_a_change_of_shape_needs_on_the_way():
    """Slots come back zone by zone; what can't begin can't be done."""
    code = code_for("1", 2)
    olds = [Old(16, (0, 1)) for _ in range(4)]
    free = {0: 0, 1: 0, 2: 1, 3: 1}
    assert cells_left_over(olds, free, code, 16, 0) == 0
    assert cells_left_over(olds, {0: 0, 1: 0, 2: 1, 3: 0}, code, 16, 0) == 64
    assert cells_left_over([Old(48, (0, 1, 2))], {0: 1, 1: 1, 2: 1}, code, 16, 0) == 32
    assert cells_left_over([Old(16, (0, 1, 2))], {0: 1, 1: 1, 2: 1}, code, 16, 0) == 0


class Open:
    """As much of a zone as counts here."""

    def __init__(self, level, width, rows):
        self.map = ZoneMap(1, code_for(level, width), rows, tuple((m, 0) for m in range(width)))
        self.fill = 0


def most_left_unused(zones, flushes):
    """By trying: each flush ends in some zone that has a row, and leaves all but a cell of it."""
    if not flushes:
        return 0
    best = 0
    for number, zone in enumerate(zones):
        if zone[0]:
            rest = [*zones[:number], (zone[0] - 1, zone[1]), *zones[number + 1 :]]
            best = max(best, zone[1] - 1 + most_left_unused(rest, flushes - 1))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_room_that_flushes_may_leave_unused(seed):
    """Never less than is possible; and one more zone, of whatever code, never breaks a promise."""
    chooser = random.Random(seed)
    shapes = [("5", 3), ("0", 6), ("1", 2), ("rs:3+3", 6)]
    zones = [Open(*chooser.choice(shapes), chooser.randrange(1, 4)) for _ in range(seed % 4)]
    for flushes in range(6):
        k = chooser.choice([1, 2, 5])
        told = rounding_of(zones, flushes, k)
        plain = [(zone.map.rows, zone.map.code.k) for zone in zones]
        assert told >= most_left_unused(plain, flushes)
        for shape in shapes if zones else ():
            more = Open(*shape, chooser.randrange(1, 20))
            gained = more.map.rows * more.map.code.k
            assert rounding_of([*zones, more], flushes, k) - told <= gained


def test_a_zone_is_begun_only_if_another_can_be_emptied_afterwards():
    code = code_for("1", 2)
    assert fits(Old(16, (0, 1)), {0: 0, 1: 0, 2: 1, 3: 1}, code, 16, 0)
    assert not fits(Old(16, (0,)), {0: 0, 2: 1, 3: 1}, code, 16, 0)
    assert fits(Old(8, (0,)), {0: 0, 2: 1, 3: 1}, code, 16, 0), "the outlet has half of its room"
    assert fits(Old(16, (0,)), {0: 0, 2: 2, 3: 1, 4: 1}, code, 16, 0)
    assert not fits(Old(17, (0, 1)), {0: 0, 1: 0, 2: 1, 3: 1}, code, 16, 0)
    assert fits(Old(17, (0, 1)), {0: 0, 1: 0, 2: 1, 3: 1}, code, 16, 1)
