"""Reading around members that answer late: nobody waits, all that is read is right, and what comes
late is thrown away. Members here answer when the test says so; no time matters but the deadline."""

import itertools
import threading
import time

import numpy as np
import pytest
from members_in_memory import MemoryMember
from test_2_array import CELL, Bench

from raidfs.errors import MemberError
from raidfs.raid import patience as patience_module
from raidfs.raid.code import code_for
from raidfs.raid.patience import (
    DEADLINE_S_MAX,
    DEADLINE_S_MIN,
    PROBES_GOOD,
    SAMPLES_FEW,
    THREADS,
    Late,
    Latencies,
    Patience,
    bucket_end_s,
    bucket_of,
)

DEADLINE_S = 0.03
TIMEOUT_S = 30


class Silent(MemoryMember):
    """Answers reads of columns only while `answers` is set. `asked`: how often it was."""

    never_waits = False

    def __init__(self, number=0):
        super().__init__(number)
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0

    def column_read(self, zone, column, slot, offset_bytes, out):
        self.asked += 1
        assert self.answers.wait(TIMEOUT_S)
        super().column_read(zone, column, slot, offset_bytes, out)


class SlowBench(Bench):
    """Members that can be silent, and an array with patience."""

    def __init__(self, level, width, **options):
        members = [Silent(i) for i in range(width)]
        super().__init__(code_for(level, width), members=members, **options)
        self.array.patience = self.patience = Patience(DEADLINE_S)

    def silence(self, *columns):
        for column, member in enumerate(self.members):
            member.answers.set() if column not in columns else member.answers.clear()

    def close(self):
        self.silence()
        self.array.close()


def until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- asking ----


def test_answers_and_errors_come_back():
    patience = Patience(TIMEOUT_S)
    assert patience.ask(1, lambda: 7) == 7
    with pytest.raises(MemberError, match="broken"):
        patience.ask(1, lambda: (_ for _ in ()).throw(MemberError("broken")))
    assert not patience.slow and patience.sitting == ()
    patience.close()


def test_a_late_member_sits_out_and_holds_a_bounded_number_of_threads():
    told = []
    patience = Patience(DEADLINE_S, on_sit_out=lambda member, sits: told.append((member, sits)))
    answers, begun = threading.Event(), []

    def work():
        begun.append(1)
        assert answers.wait(TIMEOUT_S)

    for _ in range(3 * THREADS):
        with pytest.raises(Late):
            patience.ask(4, work)
    assert len(begun) == THREADS
    assert patience.sitting == (4,) and told == [(4, True)]
    assert patience.statistics()[4].late == 3 * THREADS
    begin = time.monotonic()
    with pytest.raises(Late):
        patience.ask(4, work)  # not asked at all
    assert patience.ask(5, lambda: 1) == 1  # others are not concerned
    assert time.monotonic() - begin < TIMEOUT_S
    threading.Timer(0.05, answers.set).start()
    assert patience.ask(4, lambda: 3, patient=True) == 3
    until(lambda: not patience._states[4].desk.oldest_s())
    assert len(begun) <= 2 * THREADS  # those that waited for a thread were forgotten
    patience.close()


def test_who_waits_for_a_thread_is_not_late_while_others_answer():
    patience = Patience(0.2)
    threads = [
        threading.Thread(target=patience.ask, args=(1, lambda: time.sleep(0.02)))
        for _ in range(12 * THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert patience.statistics()[1].late == 0
    patience.close()


# ---- what is usual ----


def test_buckets():
    for took_us in (0, 1, 3, 4, 7, 100, 999, 10**6, 2**32 - 1):
        bucket = bucket_of(took_us / 1e6)
        assert took_us / 1e6 < bucket_end_s(bucket) * 1.001
        assert bucket < 12 or took_us / 1e6 * 1.001 >= bucket_end_s(bucket - 4)


def test_the_deadline_follows_what_is_usual():
    patience = Patience()

    def learn(member, took_s, reads=1000):
        counts = [0] * 128
        counts[bucket_of(took_s)] = reads
        patience.learn(member, counts)
        patience.reckon()
        return patience.deadline_s(member)

    assert patience.deadline_s(1) == DEADLINE_S_MAX
    assert learn(1, 0.0001, reads=SAMPLES_FEW - 1) == DEADLINE_S_MAX
    assert learn(1, 0.0001) == DEADLINE_S_MIN
    assert 0.1 <= learn(2, 0.5) <= 0.15  # the others need so much less
    assert learn(1, 0.015) == patience.deadline_s(1) >= 0.05
    alone = Patience()
    alone.learn(1, [0] * bucket_of(0.5) + [1000] + [0] * (127 - bucket_of(0.5)))
    alone.reckon()
    assert alone.deadline_s(1) == DEADLINE_S_MAX


def test_late_reads_are_not_usual():
    latencies = Latencies()
    latencies.add(bucket_of(0.001), 100)
    latencies.add(bucket_of(5.0), 1000)
    assert latencies.usual_s() < 0.01 and latencies.count == 100


# ---- being slow, and normal again ----


def test_probes_bring_it_back_and_relapses_last_longer(monkeypatch):
    monkeypatch.setattr(patience_module, "PROBE_S", 0.0)
    monkeypatch.setattr(patience_module, "HOLD_S_MIN", 0.02)
    answers, told = threading.Event(), []

    def probe(member):
        return lambda: answers.wait(TIMEOUT_S)

    patience = Patience(
        DEADLINE_S, probe=probe, on_tell=lambda *what: told.append(what[:2]), tell_s=0.0
    )
    holds = []
    for _ in range(3):
        answers.clear()
        patience.late(2, 1.0)
        holds.append(patience._states[2].hold_s)
        for _ in range(5 * PROBES_GOOD):
            patience.look()
            time.sleep(DEADLINE_S / 5)
        assert patience.sitting == (2,) and "reads go around it" in patience.describe(2)
        answers.set()
        looks = 0
        while patience.slow:
            patience.look()
            looks += 1
            time.sleep(0.001)
        assert looks > PROBES_GOOD and patience.sitting == () and patience.describe(2) == ""
    assert holds == [0.02, 0.04, 0.08]
    assert told == [("slow", 2), ("normal", 2)] * 3
    patience.close()


def test_a_lost_member_is_not_slow():
    patience = Patience(DEADLINE_S)
    patience.late(1, 1.0)
    patience.forget(1)
    assert not patience.slow and patience.sitting == ()


# ---- the array ----


@pytest.mark.parametrize(
    ("level", "width"), [("1", 3), ("5", 4), ("6", 5), ("10", 4), ("3", 4), ("rs:2+3", 5)]
)
def test_all_is_read_right_around_silent_members(level, width):
    tolerance = code_for(level, width).tolerance
    for silent in itertools.combinations(range(width), tolerance):
        bench = SlowBench(level, width, rows=4)
        bench.burst(0, 3 * bench.code.k)
        bench.burst(3, 1, seed=1)
        bench.silence(*silent)
        bench.read_all()
        asked = [bench.members[column].asked for column in silent]
        bench.read_all()
        assert [bench.members[column].asked for column in silent] == asked
        assert not bench.events and bench.array.statistics().cells_healed == 0
        bench.close()


def test_what_comes_late_is_thrown_away():
    bench = SlowBench("5", 4, rows=4)
    bench.burst(0, 12)
    bench.silence(1)
    out = np.full((4, CELL), 77, np.uint8)
    crcs = np.ascontiguousarray(bench.crcs[:, 1])
    good, late = bench.array.read_in_time(bench.zone, 1, 0, crcs, out)
    assert late and not good.any()
    bench.silence()
    until(lambda: not bench.patience._states[11].desk.oldest_s())
    assert (out == 77).all() and bench.states[11].read_errors == 0
    bench.close()


def test_it_is_waited_for_where_too_few_others_are_left():
    for others in ("lost", "silent", "damaged"):
        bench = SlowBench("5", 4, rows=2)
        bench.burst(0, 6)
        bench.silence(1)
        out = np.zeros((2, CELL), np.uint8)
        crcs = np.ascontiguousarray(bench.crcs[:, 1])
        assert bench.array.read_in_time(bench.zone, 1, 0, crcs, out)[1]
        if others == "lost":
            bench.lose([0])
        elif others == "silent":
            bench.silence(0, 1)
        else:
            bench.damage(0, 0)
        reader = threading.Thread(target=bench.read_all)
        reader.start()
        reader.join(4 * DEADLINE_S)
        assert reader.is_alive()
        bench.silence()
        reader.join(TIMEOUT_S)
        assert not reader.is_alive()
        assert "Unrecoverable" not in bench.names()
        assert bench.states[10].healed == (1 if others == "damaged" else 0)
        bench.close()


def test_nobody_goes_on_waiting_for_a_silent_member_when_others_answer_again():
    """Three late ones, of which level 6 can do without two: when one of them, whichever is asked,
    answers, the reader goes on."""
    for back in range(3):
        bench = SlowBench("6", 5, rows=2)
        bench.burst(0, 6)
        bench.silence(0, 1, 2)
        for column in range(3):
            bench.patience.late(10 + column, 0.1)
        reader = threading.Thread(target=bench.read_all)
        reader.start()
        reader.join(4 * DEADLINE_S)
        assert reader.is_alive()
        bench.silence(*{0, 1, 2} - {back})
        bench.patience._normal(10 + back, bench.patience._state(10 + back))  # as probes find out
        reader.join(TIMEOUT_S)
        assert not reader.is_alive()
        bench.close()


def test_without_redundancy_it_is_waited_for():
    bench = SlowBench("0", 3, rows=2)
    bench.burst(0, 6)
    bench.silence(1)
    reader = threading.Thread(target=bench.read_all)
    reader.start()
    reader.join(4 * DEADLINE_S)
    assert reader.is_alive()
    bench.silence()
    reader.join(TIMEOUT_S)
    assert not reader.is_alive() and not bench.events
    bench.close()


def test_the_patient_wait():
    bench = SlowBench("5", 4, rows=2)
    bench.burst(0, 6)
    bench.silence(1)
    crcs = np.ascontiguousarray(bench.crcs[:, 1])
    out = np.zeros((2, CELL), np.uint8)
    assert not bench.array.read_run(bench.zone, 1, 0, crcs, out).any()
    threading.Timer(2 * DEADLINE_S, bench.silence).start()
    assert bench.array.read_run(bench.zone, 1, 0, crcs, out, patient=True).all()
    assert (out == bench.content[1]).all()
    bench.close()


def test_damage_beside_a_silent_member_is_healed_and_the_silent_one_left_alone():
    bench = SlowBench("6", 5, rows=3)
    bench.burst(0, 9)
    bench.damage(1, 0)
    bench.silence(2)
    writes = len(bench.members[2].writes)
    bench.read_all()
    assert bench.states[10].healed == 1 and bench.states[10].checksum_errors == 1
    assert bench.states[12].healed == 0 and len(bench.members[2].writes) == writes
    bench.close()
