"""Termination and deadlock, decided on recorded global states."""

import itertools
import random

import msgspec
import pytest

from raidfs.group.messages import Transfer
from raidfs.group.stable import (
    GlobalState,
    Move,
    OnTheWay,
    VolumeState,
    Wait,
    Work,
    deadlock,
    termination,
)

A, B, C = ("0a" * 16, "0b" * 16, "0c" * 16)
NAMES = {A: "/a", B: "/b", C: "/c"}


def move(number, source, target, size_bytes=10, waits=True):
    return Move(bytes([number]) * 16, f"file{number}", source, target, size_bytes, waits)


def state(moves=(), free=0, channels=(), works=()):
    """Each move is known to both its volumes; only the target knows that it waits."""
    volumes = []
    for volume, name in NAMES.items():
        here = []
        for one in moves:
            if one.target == volume:
                here.append(one)
            elif one.source == volume:
                here.append(msgspec.structs.replace(one, waits=False))
        room = free[volume] if isinstance(free, dict) else free
        mine = tuple(work for at, work in works if at == volume)
        volumes.append(VolumeState(volume, name, room, tuple(here), mine))
    return GlobalState(tuple(volumes), tuple(channels))


def on_the_way(one, step="offer"):
    return OnTheWay(one.source, one.target, Transfer(one.move, step))


def test_nothing_outstanding_is_terminated():
    answer = termination(state())
    assert answer.holds
    assert answer.text.startswith("Terminated")
    assert not answer.outstanding


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (state([move(1, A, B, waits=False)]), "the move of file1 from /a to /b"),
        (state(channels=[on_the_way(move(1, B, C), "ack")]), "the ack of a move is on its way"),
        (state(works=[(B, Work("rebuild", "disk 3"))]), "rebuild of disk 3 in /b"),
        (state(works=[(C, Work("cleaning"))]), "cleaning in /c"),
    ],
)
def test_each_kind_of_work_is_seen_and_named(found, words):
    answer = termination(found)
    assert not answer.holds
    assert len(answer.outstanding) == 1
    assert words in answer.text


def test_a_move_is_counted_once():
    one = move(1, A, B)
    answer = termination(state([one], channels=[on_the_way(one)]))
    assert len(answer.outstanding) == 1


def test_two_that_wait_for_each_other():
    one, two = moves = [move(1, A, B, 12), move(2, B, A, 10)]
    answer = deadlock(state(moves, free={A: 9, B: 5, C: 100}))
    assert answer.holds
    assert answer.cycle == answer.moves == (one.move, two.move)
    assert answer.graph == (Wait(one.move, two.move, B), Wait(two.move, one.move, A))
    assert "the move of file1 from /a to /b waits for room in /b (12 bytes, 5 are free)" in (
        answer.text
    )
    assert "Free 7 bytes in /b" in answer.text


def test_room_for_one_of_them_is_enough():
    moves = [move(1, A, B, 12), move(2, B, A, 10)]
    answer = deadlock(state(moves, free={A: 10, B: 5, C: 0}))
    assert not answer.holds
    assert not answer.moves
    assert not answer.stalled
    assert "will get it" in answer.text


def test_a_circle_of_three_and_who_waits_for_it():
    moves = [move(1, A, B), move(2, B, C), move(3, C, A), move(4, A, B)]
    answer = deadlock(state(moves))
    assert answer.holds
    assert len(answer.cycle) == 3
    assert set(answer.moves) == {one.move for one in moves}
    assert "1 more wait" in answer.text


@pytest.mark.parametrize("step", ["offer", "ownership", "ack"])
def test_a_message_on_its_way_may_break_the_circle(step):
    """What was recorded in a channel changes the state when it arrives: no deadlock yet."""
    one, two = moves = [move(1, A, B), move(2, B, A)]
    assert deadlock(state(moves)).holds
    assert not deadlock(state(moves, channels=[on_the_way(one, step)])).holds
    assert not deadlock(state(moves, channels=[on_the_way(two, step)])).holds


def test_a_move_that_does_not_wait_frees_its_source():
    moves = [move(1, A, B), move(2, B, A), move(3, B, C, waits=False)]
    assert not deadlock(state(moves)).holds
    small = [move(1, A, B), move(2, B, A), move(3, B, C, 9, waits=False)]
    assert deadlock(state(small)).holds


def test_room_that_no_move_frees_is_not_a_deadlock():
    one, two = move(1, A, B, 50), move(2, C, A, 10)
    answer = deadlock(state([one, two]))
    assert not answer.holds
    assert answer.stalled == (one.move, two.move)
    assert answer.text.count("Stalled") == 2
    assert "waits for 50 bytes more in /b" in answer.text


def test_a_volume_that_was_not_recorded_is_not_judged():
    away = "0d" * 16
    lonely = Move(bytes(16), "file0", A, away, 10, True)
    found = GlobalState((VolumeState(A, "/a", 0, (lonely,)),))
    assert not deadlock(found).holds
    assert away in termination(found).text


def random_state(rng):
    moves = [
        move(number, *rng.sample((A, B, C), 2), rng.randint(1, 9), rng.random() < 0.85)
        for number in range(rng.randint(1, 6))
    ]
    return moves, {volume: rng.randint(0, 6) for volume in (A, B, C)}


def ever_run(moves, free):
    """By trying all orders: the moves that can ever be carried out."""
    found, seen, todo = set(), set(), [(frozenset(moves), tuple(sorted(free.items())))]
    while todo:
        left, room = todo.pop()
        for one in left:
            now = dict(room)
            # who doesn't wait has been promised its room, apart from what is free
            if one.waits and one.size_bytes > now[one.target]:
                continue
            found.add(one.move)
            now[one.target] -= one.size_bytes if one.waits else 0
            now[one.source] += one.size_bytes
            after = (left - {one}, tuple(sorted(now.items())))
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return found


def test_against_all_orders():
    """None that is called stuck can ever go on; and if nothing at all can, all are called so."""
    rng = random.Random(5)
    stuck_count = dead_count = 0
    for _ in range(1500):
        moves, free = random_state(rng)
        answer = deadlock(state(moves, free))
        stuck = {*answer.moves, *answer.stalled}
        runs = ever_run(moves, free)
        assert not stuck & runs, (moves, free)
        assert not set(answer.moves) & set(answer.stalled)
        if not runs:
            assert stuck == {one.move for one in moves}, (moves, free)
            dead_count += 1
        stuck_count += bool(stuck)
    assert stuck_count > 100
    assert dead_count > 50


def test_a_cycle_is_one():
    """Each waits for the next, and none shorter exists."""
    rng = random.Random(6)
    count = 0
    for _ in range(1500):
        moves, free = random_state(rng)
        answer = deadlock(state(moves, free))
        edges = {(wait.waiting, wait.awaited) for wait in answer.graph}
        assert answer.holds == bool(answer.cycle)
        if not answer.cycle:
            continue
        count += 1
        assert set(itertools.pairwise((*answer.cycle, answer.cycle[0]))) <= edges
        assert len(set(answer.cycle)) == len(answer.cycle)
        among = sorted(set(answer.moves))
        for length in range(2, len(answer.cycle)):
            for ring in itertools.permutations(among, length):
                assert not set(itertools.pairwise((*ring, ring[0]))) <= edges
    assert count > 50
