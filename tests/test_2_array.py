"""The array over members in memory: any tolerated loss, any damage, and the data is whole."""

import contextlib
import itertools
import random
import shutil
import threading

import numpy as np
import pytest
from loop_devices import loop_device
from members_in_memory import MemoryMember

from raidfs import native
from raidfs.errors import MemberError, Unrecoverable
from raidfs.raid.array import NO_MEMBER, Array, MemberState, ZoneMap
from raidfs.raid.assembly import Assembly
from raidfs.raid.code import burst_cells, burst_layout, code_for, present
from raidfs.raid.create import create_volume, plan_volume
from raidfs.raid.rebuild import runs

CELL = 4096
CODES = [
    code_for("0", 3),
    code_for("1", 3),
    code_for("2", 5),
    code_for("3", 4),
    code_for("4", 3),
    code_for("5", 4),
    code_for("6", 5),
    code_for("10", 4),
    code_for("rs:2+3", 5),
]


class Bench:
    """A zone over members in memory, and what was written to it."""

    def __init__(self, code, rows=12, *, heal=True, members=None):
        self.code = code
        self.members = members or [MemoryMember(i) for i in range(code.width)]
        self.events = []
        self.states = {10 + i: MemberState(m, "online") for i, m in enumerate(self.members)}
        self.array = Array(self.states, CELL, lambda *event: self.events.append(event), heal=heal)
        self.zone = ZoneMap(5, code, rows, tuple((10 + i, i) for i in range(code.width)))
        assert self.array.create_zone(self.zone) == {}
        self.content = np.zeros((code.width, rows, CELL), np.uint8)
        self.crcs = np.zeros((rows, code.width), np.uint32)
        self.present = np.zeros((rows, code.width), np.bool_)

    def burst(self, row, pages, seed=0, **options):
        """Write so many random pages from `row` on; what failed."""
        code, rows = self.code, burst_layout(self.code, pages)
        data = np.random.default_rng(seed).integers(0, 256, (pages, CELL), dtype=np.uint8)
        addresses = np.zeros((code.k, rows), np.uint64)
        columns, heights = burst_cells(code, pages)
        addresses[columns, heights] = data.ctypes.data + np.arange(pages) * CELL
        parity = np.zeros((code.m, rows, CELL), np.uint8)
        crcs = native.encode(code.parity, addresses, parity, CELL)
        here = present(code, pages)
        failed = self.array.write_burst(self.zone, row, rows, addresses, parity, here, **options)
        part = slice(row, row + rows)
        self.content[columns, row + heights] = data
        self.content[code.k :, part] = parity
        self.crcs[part] = crcs.T
        self.present[part] = here.T
        return failed

    def read_all(self):
        """Every present cell, rebuilt where it must be; compared with what was written."""
        for column in range(self.code.width):
            for first, last in runs(self.present[:, column]):
                out = np.empty((last - first, CELL), np.uint8)
                crcs = np.ascontiguousarray(self.crcs[first:last, column])
                good, late = self.array.read_in_time(self.zone, column, first, crcs, out)
                assert (out[good] == self.content[column, first:last][good]).all()
                if good.all():
                    continue
                wanted = np.zeros((last - first, self.code.width), np.bool_)
                wanted[:, column] = ~good
                known = (self.crcs[first:last], self.present[first:last], wanted)
                cells, solved = self.array.rebuild_rows(
                    self.zone, first, *known, late=[column] * late
                )
                assert solved.all(), (column, first, last)
                bad = ~good
                assert (cells[column][bad] == self.content[column, first:last][bad]).all()

    def damage(self, row, column, how="flip"):
        member = self.members[column]
        if how == "flip":
            member.data[5, column][row * CELL + 17] ^= 0x40
        elif how == "stale":
            member.data[5, column][row * CELL : row * CELL + CELL] = bytes(CELL)
        else:
            member.unreadable.add((5, column, row * CELL))

    def lose(self, columns):
        for column in columns:
            self.states[10 + column].state = "missing"
            self.states[10 + column].member = None

    def names(self):
        return [name for name, _, _ in self.events]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.text)
def test_any_tolerated_loss_leaves_the_data_whole(code):
    for count in range(code.tolerance + 1):
        for lost in itertools.combinations(range(code.width), count):
            bench = Bench(code, rows=8)
            bench.burst(0, 3 * code.k)
            bench.burst(3, 2 * code.k - 1 if code.k > 1 else 2, seed=1)
            bench.burst(5, 1, seed=2)
            bench.lose(lost)
            bench.read_all()
            assert not bench.events
            bench.array.close()


def test_level_10_beyond_its_tolerance():
    code = code_for("10", 6)
    for lost in itertools.product(*((c, 3 + c) for c in range(3))):
        bench = Bench(code, rows=4)
        bench.burst(0, 11)
        bench.lose(lost)
        bench.read_all()
        bench.array.close()
    bench = Bench(code, rows=4)
    bench.burst(0, 12)
    bench.lose((0, 3))
    wanted = np.zeros((4, 6), np.bool_)
    wanted[:, 0] = True
    _, solved = bench.array.rebuild_rows(bench.zone, 0, bench.crcs, bench.present, wanted)
    assert not solved.any() and bench.names() == ["Unrecoverable"]
    wanted[:] = False
    wanted[:, 1] = True
    _, solved = bench.array.rebuild_rows(bench.zone, 0, bench.crcs, bench.present, wanted)
    assert solved.all(), "the other pairs are whole"


def test_one_loss_too_many_is_unrecoverable():
    for code in CODES:
        if code.may_survive_more:
            continue
        bench = Bench(code, rows=2)
        bench.burst(0, code.k * 2)
        lost = range(code.tolerance + 1)
        bench.lose(lost)
        with pytest.raises(Unrecoverable, match="zone 5 row 1: columns 0"):
            bench.array.rebuild_row(bench.zone, 1, bench.crcs[1], bench.present[1], lost)
        assert "Unrecoverable" in bench.names()
        assert bench.array.statistics().rows_unrecoverable == 1
        bench.array.close()


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.text)
@pytest.mark.parametrize("how", ["flip", "stale", "unreadable"])
def test_any_damage_within_a_row_is_healed(code, how):
    for damaged in itertools.combinations(range(code.width), code.tolerance):
        bench = Bench(code, rows=4)
        bench.burst(0, 4 * code.k)
        before = [bytes(m.data[5, c]) for c, m in enumerate(bench.members)]
        for column in damaged:
            bench.damage(2, column, how)
        bench.read_all()
        after = [bytes(m.data[5, c]) for c, m in enumerate(bench.members)]
        assert after == before, "healing writes the same bytes"
        assert bench.names().count("Healed") == len(damaged)
        states = [bench.states[10 + column] for column in damaged]
        assert all(state.healed == 1 for state in states)
        count = "read_errors" if how == "unreadable" else "checksum_errors"
        assert all(getattr(state, count) >= 1 for state in states)
        told = "ReadError" if how == "unreadable" else "ChecksumError"
        assert {member for name, member, _ in bench.events if name == told} == {
            10 + column for column in damaged
        }
        bench.events.clear()
        bench.read_all()
        assert not bench.events
        bench.array.close()


def test_damage_and_losses_at_random():
    """Each row with its own pattern of up to m bad cells; several rows rebuilt in one go."""
    rng = random.Random(4)
    for turn in range(15):
        code = rng.choice([code for code in CODES if code.tolerance])
        bench = Bench(code, rows=40)
        row = 0
        while row < 30:
            pages = rng.randrange(1, 6 * code.k)
            if row + burst_layout(code, pages) > 40:
                break
            bench.burst(row, pages, seed=turn)
            row += burst_layout(code, pages)
        lost = rng.sample(range(code.width), rng.randrange(code.tolerance + 1))
        for height in range(row):
            left = code.tolerance - len(lost)
            for column in rng.sample(range(code.width), rng.randrange(left + 1)):
                if bench.present[height, column] and column not in lost:
                    bench.damage(height, column, rng.choice(["flip", "unreadable", "stale"]))
        bench.lose(lost)
        bench.read_all()
        bench.events.clear()
        bench.read_all()
        assert not bench.events, "one reading heals everything"
        bench.array.close()


def test_rebuild_finds_more_damage_on_its_way():
    code = code_for("6", 6)
    bench = Bench(code, rows=3)
    bench.burst(0, 12)
    bench.damage(1, 0)
    bench.damage(1, 3)
    cells = bench.array.rebuild_row(bench.zone, 1, bench.crcs[1], bench.present[1], {0})
    assert list(cells) == [0] and (cells[0] == bench.content[0, 1]).all()
    assert sorted(m for name, m, _ in bench.events if name == "Healed") == [10, 13]
    assert bench.array.statistics().cells_healed == 2


def test_a_rebuild_reads_no_more_than_it_needs():
    bench = Bench(code_for("rs:3+3", 6), rows=4)
    bench.burst(0, 12)
    bench.damage(2, 0)
    bench.array.rebuild_row(bench.zone, 2, bench.crcs[2], bench.present[2], {0})
    assert [len(member.reads) for member in bench.members] == [0, 1, 1, 1, 0, 0]


def test_absent_cells_are_never_read_or_written():
    code = code_for("5", 4)
    bench = Bench(code, rows=4)
    bench.burst(0, 4)  # rows of 3: two full columns, one half of the third... two rows
    assert bench.present[:2].tolist() == [[True, True, False, True]] * 2
    assert not bench.members[2].writes
    bench.lose([0])
    bench.read_all()
    assert not bench.members[2].reads and not bench.members[2].writes


def test_a_wanted_cell_that_is_absent_is_zeros():
    bench = Bench(code_for("5", 4), rows=4)
    bench.burst(0, 1)
    cells = bench.array.rebuild_row(bench.zone, 0, bench.crcs[0], bench.present[0], {1, 2})
    assert not cells[1].any() and not cells[2].any()
    assert not bench.members[1].writes and not bench.events


def test_wrong_checksums_are_not_believed():
    """If the table itself is wrong, nothing is handed out and nothing is written."""
    bench = Bench(code_for("5", 4), rows=2)
    bench.burst(0, 6)
    writes = [list(member.writes) for member in bench.members]
    bench.crcs[1, 0] ^= 1
    out = np.empty((1, CELL), np.uint8)
    assert not bench.array.read_run(bench.zone, 0, 1, bench.crcs[1:2, 0].copy(), out).any()
    with pytest.raises(Unrecoverable):
        bench.array.rebuild_row(bench.zone, 1, bench.crcs[1], bench.present[1], {0})
    assert [member.writes for member in bench.members] == writes


def test_without_healing_nothing_is_written():
    bench = Bench(code_for("5", 4), rows=2, heal=False)
    bench.burst(0, 6)
    writes = [list(member.writes) for member in bench.members]
    bench.damage(1, 1)
    bench.read_all()
    assert [member.writes for member in bench.members] == writes
    assert "Healed" not in bench.names()


def test_a_heal_that_fails_is_counted_and_the_data_still_handed_out():
    bench = Bench(code_for("5", 4), rows=2)
    bench.burst(0, 6)
    bench.damage(1, 1)
    bench.members[1].fail_writes = True
    bench.read_all()
    assert bench.states[11].write_errors == 1 and "WriteError" in bench.names()


def test_one_unreadable_cell_does_not_spoil_its_run():
    bench = Bench(code_for("5", 4), rows=8)
    bench.burst(0, 24)
    bench.damage(3, 1, "unreadable")
    out = np.empty((8, CELL), np.uint8)
    good = bench.array.read_run(bench.zone, 1, 0, bench.crcs[:, 1].copy(), out)
    assert np.flatnonzero(~good).tolist() == [3]
    assert bench.states[11].read_errors == 1
    assert [name for name, _, _ in bench.events] == ["ReadError"]


def test_each_column_is_one_write_and_one_sync():
    for code in (code_for("5", 4), code_for("3", 4)):
        bench = Bench(code, rows=12)
        bench.burst(2, 3 * 7 - 2)
        for column, member in enumerate(bench.members):
            assert len(member.writes) == 1 and member.synced == [(5, column)]
            assert member.writes[0][2] == 2 * CELL
        bench.array.close()
    bench = Bench(code_for("5", 4), rows=12)
    bench.burst(0, 9, sync=False)
    assert not any(member.synced for member in bench.members)
    assert bench.array.sync_zone(bench.zone) == set()
    assert all(member.synced for member in bench.members)


def test_writes_that_fail_are_reported():
    bench = Bench(code_for("6", 5), rows=8)
    bench.members[1].fail_writes = True
    bench.members[4].data.clear()  # the directory has vanished
    assert bench.burst(0, 9) == {11, 14}
    assert {m for name, m, _ in bench.events if name == "WriteError"} == {11, 14}
    for member_id in (11, 14):
        bench.array.fail(member_id, "write failed")
    assert bench.states[11].state == "failed" and bench.states[11].member is None
    assert bench.burst(3, 9, seed=1) == set(), "lost members are left out silently"
    bench.read_all()
    assert bench.names().count("Fail") == 2
    assert ("DegradedArray", NO_MEMBER, "running without member 11") in bench.events
    bench.array.fail(11, "again")
    assert bench.names().count("Fail") == 2


def test_a_zone_that_does_not_fit_leaves_no_column():
    code = code_for("5", 4)
    bench = Bench(code)
    bench.members[2].full = True
    other = ZoneMap(6, code, 4, bench.zone.columns)
    errors = bench.array.create_zone(other)
    assert list(errors) == [12] and isinstance(errors[12], MemberError)
    assert all((6, column) not in member.data for column, member in enumerate(bench.members))
    assert bench.array.remove_zone(bench.zone) == set()
    assert not any(member.data for member in bench.members)


def test_a_member_may_fail_while_others_read():
    bench = Bench(code_for("5", 4), rows=12)
    bench.burst(0, 36)
    stop = threading.Event()
    errors = []

    def reader():
        while not stop.is_set():
            try:
                bench.read_all()
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.05)
    bench.array.fail(12, "pulled")
    bench.members[2].close()
    threading.Event().wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    bench.read_all()


def test_on_real_members_of_all_kinds(tmp_path):
    """Level 6 over two directories, an image and two loop devices; damage, and two lost."""
    paths = [tmp_path / name for name in ("a", "b", "c.img", "d", "e")]
    for path in paths[:2]:
        path.mkdir()
    with contextlib.ExitStack() as stack:
        with open(paths[2], "wb") as file:
            file.truncate(64 << 20)
        paths[3:] = [stack.enter_context(loop_device(path, 64 << 20)) for path in paths[3:]]
        plan = plan_volume([str(path) for path in paths], level="6", zone_bytes=1 << 20)
        create_volume(plan, lambda *_: None)
        assembly = Assembly.open(str(paths[3]))
        stack.callback(assembly.close)
        bench = Bench(plan.code, rows=256, members=list(assembly.members.values()))
        assert bench.burst(0, 3 * 100) == set()
        assert bench.burst(100, 3 * 156 - 1, seed=1) == set()
        bench.read_all()
        assert not bench.events
        column = tmp_path / "a" / "zones" / "05" / "00000005.0"
        with open(column, "r+b") as file:
            file.write(b"rot")
        bench.read_all()
        assert bench.names() == ["ChecksumError", "Healed"]
        shutil.rmtree(tmp_path / "b")
        bench.members[1].close()
        bench.read_all()
        bench.lose([1, 3])
        bench.read_all()
        assert bench.burst(0, 3 * 20, seed=2) == set()
        bench.read_all()
        bench.array.close()


def test_statistics_count_cells():
    bench = Bench(code_for("5", 4), rows=4)
    bench.burst(0, 12)
    bench.damage(0, 0)
    bench.read_all()
    statistics = bench.array.statistics()
    assert statistics.cells_written == 16 and statistics.cells_healed == 1
    assert statistics.cells_rebuilt == 1 and statistics.cells_read == 16 + 3


def test_runs():
    for bits in itertools.product((False, True), repeat=6):
        mask = np.array(bits, dtype=np.bool_)
        again = np.zeros(6, np.bool_)
        for first, last in runs(mask):
            assert first < last and mask[first:last].all()
            again[first:last] = True
        assert (again == mask).all()
        text = "".join(" x"[bit] for bit in bits)
        assert len(runs(mask)) == len(text.split())
    assert runs(np.zeros(0, np.bool_)) == []
