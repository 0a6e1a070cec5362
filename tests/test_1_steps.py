"""Many rows of columns in one call, against a slow reference: whatever the size of a step and of
the room for it, wherever it begins and ends, and whatever is wrong with the files."""

import contextlib
import errno
import os
import random

import numpy as np
import pytest

from raidfs import native
from raidfs.raid.code import code_for
from raidfs.steps import Goal, GoalFailed, Spot, check_column, make_columns

CODES = [("1", 3), ("2", 7), ("5", 2), ("5", 3), ("6", 6), ("10", 6), ("rs:5+4", 9)]
UNTOUCHED = 0xAB


class Columns:
    """A zone's columns in files. `absent`: cells that were never written hold anything."""

    def __init__(self, dice, directory, code, rows, cell_bytes):
        self.code, self.rows, self.cell_bytes = code, rows, cell_bytes
        generator = np.random.default_rng(dice.randrange(1 << 32))
        k, width = code.k, code.width
        self.there = np.ones((rows, width), dtype=np.bool_)
        self.there[:, :k] = generator.random((rows, k)) < dice.choice((0.7, 1.0))
        data = generator.integers(0, 256, (k, rows, cell_bytes), dtype=np.uint8)
        data[~self.there[:, :k].T] = 0
        parity = np.empty((code.m, rows, cell_bytes), np.uint8)
        native.multiply(code.parity, data.reshape(k, -1), parity.reshape(code.m, -1))
        self.right = np.concatenate([data, parity])
        sums = [native.crc32c_cells(np.ascontiguousarray(column)) for column in self.right]
        self.crcs = np.array(sums, np.uint32).T.copy()
        self.offsets = [dice.choice((0, 4096, 12288)) for _ in range(width)]
        self.paths = [directory / f"column{column}" for column in range(width)]
        stored = self.right.copy()
        stored[:k][~self.there[:, :k].T] = generator.integers(0, 256, dtype=np.uint8)
        for column, path in enumerate(self.paths):
            path.write_bytes(bytes(self.offsets[column]) + stored[column].tobytes())
        self.good = np.ones((rows, width), dtype=np.bool_)
        self.length = [rows] * width

    def damage(self, row, column):
        at = self.offsets[column] + row * self.cell_bytes + self.cell_bytes // 2
        with self.paths[column].open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1 + self.good[row, column]]))  # never what it was
        self.good[row, column] = False

    def shorten(self, column, rows):
        """To so many, and a part of the next."""
        os.truncate(self.paths[column], self.offsets[column] + rows * self.cell_bytes + 100)
        self.length[column] = rows

    @contextlib.contextmanager
    def spot(self, column, row, nowait=False):
        fd = os.open(self.paths[column], os.O_RDONLY)
        try:
            yield Spot(fd, nowait, self.offsets[column] + row * self.cell_bytes)
        finally:
            os.close(fd)


def pieces(rows, room_rows):
    """What is read at once."""
    return [(first, min(rows, first + room_rows)) for first in range(0, rows, room_rows)]


def size_of(dice):
    return dice.choice((1, 2, 3, 7, 64, 127, 128, 129, 200, 300)), dice.choice((1, 2, 3, 8, 128))


@pytest.mark.parametrize("seed", range(30))
def test_cells_are_compared_as_the_reference_does(tmp_path, seed):
    dice = random.Random(seed)
    rows, room_rows = size_of(dice)
    cell_bytes = dice.choice((4096, 8192))
    columns = Columns(dice, tmp_path, code_for("5", 3), rows, cell_bytes)
    for _ in range(dice.choice((0, 1, 5))):
        columns.damage(dice.randrange(rows), dice.randrange(3))
    if dice.random() < 0.4:
        columns.shorten(1, dice.randrange(rows))
    first = dice.choice((0, dice.randrange(rows)))
    last = dice.choice((rows, dice.randint(first, rows)))
    crcs, there = columns.crcs[first:last].copy(), columns.there[first:last].copy()
    room = native.aligned((room_rows * cell_bytes + dice.choice((0, 100)),))
    for column in range(3):
        expected = np.zeros_like(there)
        for begin, end in pieces(last - first, room_rows):
            part = slice(first + begin, first + end)
            fits = first + end <= columns.length[column]
            wrong = ~columns.good[part, column] if fits else np.ones(end - begin, np.bool_)
            expected[begin:end, column] = wrong & columns.there[part, column]
        found = np.zeros_like(there)
        with columns.spot(column, first) as spot:
            count = check_column(spot, column, crcs, there, found, cell_bytes, room)
        assert np.array_equal(found, expected)
        assert count == int(expected.sum())


def test_a_column_that_cannot_be_read_is_all_wrong_and_the_absent_is_not(tmp_path):
    columns = Columns(random.Random(5), tmp_path, code_for("5", 3), 50, 4096)
    columns.there[10:20, 0] = False
    wrong = np.zeros((50, 3), dtype=np.bool_)
    spot = Spot(os.open(tmp_path, os.O_RDONLY), False, 0)
    room = native.aligned((8 * 4096,))
    try:
        check_column(spot, 0, columns.crcs, columns.there, wrong, 4096, room)
    finally:
        os.close(spot.fd)
    assert np.array_equal(wrong[:, 0], columns.there[:, 0]) and not wrong[:, 1:].any()


def reference(columns, first, last, sources, made, room_rows):
    """Rows that are good."""
    good = np.zeros(last - first, dtype=np.bool_)
    for begin, end in pieces(last - first, room_rows):
        if any(first + end > columns.length[column] for column in sources):
            break  # it is the others' from here on
        part = slice(first + begin, first + end)
        fine = columns.good[part] | ~columns.there[part]
        good[begin:end] = fine[:, sources].all(axis=1)
    return good


@pytest.mark.parametrize("seed", range(80))
def test_columns_are_made_as_the_reference_does(tmp_path, seed):
    dice = random.Random(seed)
    rows, room_rows = size_of(dice)
    cell_bytes = dice.choice((4096, 4096, 16384)) if rows < 64 else 4096
    code = code_for(*dice.choice(CODES))
    columns = Columns(dice, tmp_path, code, rows, cell_bytes)
    lost = sorted(dice.sample(range(code.width), dice.randint(0, code.tolerance)))
    others = [column for column in range(code.width) if column not in lost]
    copied = dice.sample(others, dice.choice((0, 1)) if lost else 1)
    used, matrix = code.express(lost, others) if lost else ([], np.zeros((0, 0), np.uint8))
    sources = [*used, *(column for column in copied if column not in used)]
    coefficients = np.zeros((len(lost), len(sources)), np.uint8)
    coefficients[:, : len(used)] = matrix
    for _ in range(dice.choice((0, 0, 1, 4))):
        columns.damage(dice.randrange(rows), dice.choice(sources))
    if dice.random() < 0.2:
        columns.shorten(dice.choice(sources), dice.randrange(rows))
    first = dice.choice((0, dice.randrange(rows)))
    last = dice.choice((rows, dice.randint(first + 1, rows)))
    count = last - first
    written = {column: dice.choice((0, 0, dice.randrange(count))) for column in [*lost, *copied]}
    room = native.aligned((room_rows * (len(sources) + len(lost)) * cell_bytes + 64,))
    with contextlib.ExitStack() as stack:
        goals = []
        for column, begin in written.items():
            file = stack.enter_context((tmp_path / f"made{column}").open("w+b"))
            file.write(bytes([UNTOUCHED]) * ((rows + 1) * cell_bytes))
            file.flush()
            goals.append(Goal(column, begin, Spot(file.fileno(), False, first * cell_bytes)))
        spots = [(c, stack.enter_context(columns.spot(c, first))) for c in sources]
        there, crcs = columns.there[first:last].copy(), columns.crcs[first:last].copy()
        good = make_columns(spots, lost, coefficients, goals, crcs, there, cell_bytes, room)
    expected = reference(columns, first, last, sources, lost, min(room_rows, 128))
    assert np.array_equal(good, expected)
    for column, begin in written.items():
        stored = np.fromfile(tmp_path / f"made{column}", np.uint8).reshape(rows + 1, cell_bytes)
        wanted = np.full_like(stored, UNTOUCHED)
        for row in np.flatnonzero(good & there[:, column]).tolist():
            if row >= begin:
                wanted[first + row] = columns.right[column, first + row]
        assert np.array_equal(stored, wanted), column


def test_what_comes_out_wrong_is_not_written(tmp_path):
    """Sources match, and yet the outcome doesn't: its checksum was another one."""
    columns = Columns(random.Random(1), tmp_path, code_for("5", 3), 20, 4096)
    columns.there[:] = True
    columns.crcs[7, 2] ^= 1
    room = native.aligned((3 * 4 * 4096,))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((tmp_path / "made").open("w+b"))
        spots = [(c, stack.enter_context(columns.spot(c, 0))) for c in (0, 1)]
        sums = [native.crc32c_cells(np.fromfile(p, np.uint8)[o:].reshape(-1, 4096))
                for p, o in zip(columns.paths, columns.offsets, strict=True)]  # fmt: skip
        columns.crcs[:, :2] = np.array(sums).T[:, :2]  # what is there, absent or not
        data = [np.fromfile(columns.paths[c], np.uint8)[columns.offsets[c] :] for c in (0, 1)]
        outcome = native.crc32c_cells((data[0] ^ data[1]).reshape(-1, 4096))
        columns.crcs[:, 2] = outcome
        columns.crcs[7, 2] ^= 1
        goal = Goal(2, 0, Spot(file.fileno(), False, 0))
        good = make_columns(
            spots, [2], np.ones((1, 2), np.uint8), [goal], columns.crcs, columns.there, 4096, room
        )
        stored = np.fromfile(tmp_path / "made", np.uint8).reshape(-1, 4096)
    assert good.tolist() == [row != 7 for row in range(20)]
    assert not stored[7].any() and np.array_equal(stored[8], (data[0] ^ data[1]).reshape(20, -1)[8])


def test_a_write_that_fails_says_where(tmp_path):
    columns = Columns(random.Random(2), tmp_path, code_for("1", 3), 9, 4096)
    room = native.aligned((4 * 2 * 4096,))
    with contextlib.ExitStack() as stack:
        fine = stack.enter_context((tmp_path / "made").open("w+b"))
        full = stack.enter_context(open("/dev/full", "wb", buffering=0))
        spots = [(1, stack.enter_context(columns.spot(1, 0)))]
        goals = [
            Goal(1, 0, Spot(fine.fileno(), False, 0)),
            Goal(0, 0, Spot(full.fileno(), False, 0)),
        ]
        columns.there[:] = True
        columns.crcs[:] = columns.crcs[:, 1:2]
        with pytest.raises(GoalFailed) as caught:
            make_columns(
                spots,
                [0],
                np.ones((1, 1), np.uint8),
                goals,
                columns.crcs,
                columns.there,
                4096,
                room,
            )
    assert caught.value.number == 1 and caught.value.error.errno == errno.ENOSPC


def test_what_is_not_cached_is_left_over(tmp_path):
    """A pipe is never seekable, so it stands for what can't be asked for without waiting."""
    columns = Columns(random.Random(3), tmp_path, code_for("1", 3), 9, 4096)
    room = native.aligned((4 * 2 * 4096,))
    beneath, above = os.pipe()
    try:
        good = make_columns(
            [(1, Spot(beneath, True, 0))], [0], np.ones((1, 1), np.uint8), [],
            columns.crcs, columns.there, 4096, room,
        )  # fmt: skip
    finally:
        os.close(beneath)
        os.close(above)
    assert not good.any()
