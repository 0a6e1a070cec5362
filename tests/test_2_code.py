"""Codes: what each level survives, checked without the arithmetic that the code itself uses."""

import itertools
import random

import numpy as np
import pytest

from raidfs import native
from raidfs.errors import UsageError
from raidfs.raid.code import (
    PARITY_MAX,
    WIDTH_MAX,
    burst_cells,
    burst_layout,
    burst_page,
    cauchy_rows,
    code_for,
    narrower,
    parse_code,
    present,
)

# An independent route: multiplication by shift and reduce, from the definition of the field.


def slow_multiply(a, b):
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << (bit - 8)
    return product


TABLE = np.array([[slow_multiply(a, b) for b in range(256)] for a in range(256)], dtype=np.uint8)


def test_the_table_of_this_test_is_a_field():
    for a in range(1, 256):
        assert sorted(TABLE[a]) == list(range(256))
        assert TABLE[a][1] == a
    rng = random.Random(0)
    for _ in range(1000):
        a, b, c = (rng.randrange(256) for _ in range(3))
        assert TABLE[a][b] == TABLE[b][a] and TABLE[a][b ^ c] == TABLE[a][b] ^ TABLE[a][c]
        assert TABLE[a][TABLE[b][c]] == TABLE[TABLE[a][b]][c]


def slow_rank(rows):
    """By plain elimination over the table."""
    rows = [list(map(int, row)) for row in rows]
    rank = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        lead = rows[rank][column]
        for i in range(rank + 1, len(rows)):
            if rows[i][column]:  # row_i * lead - row_rank * row_i[column]: no inverse needed
                factor = rows[i][column]
                rows[i] = [
                    int(TABLE[lead][x] ^ TABLE[factor][y])
                    for x, y in zip(rows[i], rows[rank], strict=True)
                ]
        rank += 1
    return rank


def all_square_submatrices_are_invertible(rows):
    """Laplace: the determinants of all sizes, each from those one size smaller, for all at once."""
    m, k = rows.shape
    minors = {(r,): rows[r] for r in range(m)}  # by row set: determinants by column set, in order
    columns = [(c,) for c in range(k)]
    if not all(values.all() for values in minors.values()):
        return False
    for size in range(2, min(m, k) + 1):
        index = {chosen: i for i, chosen in enumerate(columns)}
        columns = list(itertools.combinations(range(k), size))
        # expand along the last row: for each column of the set, entry times minor of the others
        smaller = np.array(
            [[index[c[:i] + c[i + 1 :]] for i in range(size)] for c in columns], dtype=np.int64
        )
        entries = np.array(columns, dtype=np.int64)
        grown = {}
        for chosen in itertools.combinations(range(m), size):
            parts = TABLE[rows[chosen[-1]][entries], minors[chosen[:-1]][smaller]]
            grown[chosen] = np.bitwise_xor.reduce(parts, axis=1)
            if not grown[chosen].all():
                return False
        minors = grown
    return True


def test_the_submatrix_check_can_fail():
    powers = np.array([[1] * 20, [2**0] * 20, [3] * 20], dtype=np.uint8)
    assert not all_square_submatrices_are_invertible(powers)
    vandermonde = np.ones((4, 24), dtype=np.uint8)  # rows of powers alone: they stop at three
    for row in range(1, 4):
        for column in range(24):
            value = 1
            for _ in range(row * column):
                value = slow_multiply(value, 2)
            vandermonde[row, column] = value
    assert all_square_submatrices_are_invertible(vandermonde[:3])
    assert not all_square_submatrices_are_invertible(vandermonde)


@pytest.mark.parametrize("m", range(1, PARITY_MAX + 1))
def test_cauchy_submatrices_are_invertible(m):
    """For the largest k allowed beside each m, so for all sizes."""
    assert all_square_submatrices_are_invertible(cauchy_rows(WIDTH_MAX - m, m))


def test_smaller_matrices_are_corners_of_the_largest():
    """So the invertibility of the largest is that of all."""
    largest = cauchy_rows(23, 8)
    for k, m in [(1, 1), (4, 2), (16, 8), (2, 7)]:
        assert (cauchy_rows(k, m) == largest[:m, :k]).all()


def test_known_rows():
    """The first entries of the matrix that SnapRAID publishes for this construction."""
    rows = cauchy_rows(8, 3)
    assert rows[0].tolist() == [1] * 8
    assert rows[1].tolist() == [1, 2, 4, 8, 16, 32, 64, 128]
    assert rows[2].tolist() == [0x01, 0xF5, 0xD2, 0xC4, 0x9A, 0x71, 0xF1, 0x7F]


def linux_raid6(data):
    """P and Q as lib/raid6/int.uc has it, a byte at a time: Horner from the highest down."""
    p, q = [], []
    for offset in range(len(data[0])):
        wp = wq = data[-1][offset]
        for z in range(len(data) - 2, -1, -1):
            wd = data[z][offset]
            wp ^= wd
            w2 = 0xFF if wq & 0x80 else 0x00  # MASK(wq)
            w1 = wq << 1 & 0xFF  # SHLBYTE(wq)
            w2 &= 0x1D
            w1 ^= w2
            wq = w1 ^ wd
        p.append(wp)
        q.append(wq)
    return p, q


@pytest.mark.parametrize("level", ["6", "rs:5+2", "rs:5+4"])
def test_p_and_q_are_those_of_linux(level):
    code = code_for(level, 9 if level == "rs:5+4" else 7)
    data = np.random.default_rng(3).integers(0, 256, (5, 300), dtype=np.uint8)
    out = np.zeros((code.m, 300), np.uint8)
    native.multiply(code.parity, data, out)
    p, q = linux_raid6(data.tolist())
    assert out[0].tolist() == p and out[1].tolist() == q
    xor = code_for("5", 6)
    first = np.zeros((1, 300), np.uint8)
    native.multiply(xor.parity, data, first)
    assert first[0].tolist() == p


CODES = [
    *(code_for("0", w) for w in (1, 2, 5)),
    *(code_for("1", w) for w in (2, 3, 4)),
    *(code_for("2", w) for w in range(3, 12)),
    *(code_for(level, w) for level in "345" for w in (2, 3, 4, 6)),
    *(code_for("6", w) for w in (3, 4, 5, 8)),
    *(code_for("10", w) for w in (2, 4, 6, 8)),
    *(code_for(f"rs:{k}+{m}", k + m) for k in (1, 2, 4, 6) for m in (1, 2, 3, 4)),
    code_for("rs:3+8", 11),
]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.text)
def test_what_a_code_survives(code):
    """All losses of up to tolerance + 1 columns, against the rank by the independent route."""
    generator = np.concatenate([np.eye(code.k, dtype=np.uint8), code.parity])
    assert (code.generator() == generator).all()
    for count in range(min(code.tolerance + 2, code.width) + 1):
        for lost in itertools.combinations(range(code.width), count):
            kept = [c for c in range(code.width) if c not in lost]
            expected = slow_rank(generator[kept]) == code.k if kept else False
            assert code.survives(set(lost)) == expected, lost
            if count <= code.tolerance:
                assert expected, lost
    if code.tolerance < code.m:
        assert code.may_survive_more
    elif code.width > code.tolerance:
        assert not code.may_survive_more
        lost = range(code.tolerance + 1)
        assert not code.survives(set(lost))


def test_level_10_survives_one_of_each_pair():
    code = code_for("10", 8)
    for lost in itertools.product(*((c, 4 + c) for c in range(4))):
        assert code.survives(set(lost))
    assert not code.survives({1, 5})
    sources, matrix = code.decode_matrix(frozenset({1}))
    assert sources == [5] and matrix.tolist() == [[1]], "reads the copy and nothing else"


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.text)
def test_decode_gives_back_the_data(code):
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, (code.k, 40), dtype=np.uint8)
    columns = np.zeros((code.width, 40), np.uint8)
    columns[: code.k] = data
    if code.m:
        native.multiply(code.parity, data, columns[code.k :])
    combinations = list(itertools.combinations(range(code.width), code.tolerance))
    for lost in random.Random(1).sample(combinations, min(40, len(combinations))):
        sources, matrix = code.decode_matrix(frozenset(lost))
        assert not set(sources) & set(lost) and len(sources) <= code.k
        assert matrix.any(axis=0).all(), "no source is read in vain"
        for i, column in enumerate(lost):
            expected = np.zeros(40, np.uint8)
            for j, source in enumerate(sources):
                expected ^= TABLE[matrix[i, j]][columns[source]]
            assert (expected == columns[column]).all()


def test_express_takes_what_is_offered_first():
    code = code_for("rs:4+3", 7)
    assert code.express((0,), (6, 5, 4, 3, 2, 1))[0] == [6, 5, 4, 3]
    assert code.express((0,), (1, 2, 3, 4, 5, 6))[0] == [1, 2, 3, 4]
    assert code.express((0,), (1, 2, 3)) is None
    assert code.express((), ())[0] == []
    pairs = code_for("10", 6)
    assert pairs.express((1,), (0, 3, 4))[0] == [4], "though the row as a whole is beyond repair"


def test_hamming_uses_all_its_parity():
    for width in range(3, 20):
        code = code_for("2", width)
        assert (1 << code.m) - 1 >= width > (1 << code.m - 1) - 1
        assert code.parity.any(axis=1).all() and code.tolerance == 2
    assert (code_for("2", 7).k, code_for("2", 7).m) == (4, 3)


@pytest.mark.parametrize(
    ("level", "width"),
    [
        ("0", 0),
        ("0", 25),
        ("1", 1),
        ("1", 18),
        ("2", 2),
        ("5", 1),
        ("6", 2),
        ("10", 5),
        ("7", 5),
        ("", 5),
        ("raid5", 5),
        ("rs:4", 4),
        ("rs:4+9", 13),
        ("rs:0+2", 2),
        ("rs:20+8", 28),
        ("rs:4+2", 7),
        ("rs:4+2", 5),
    ],
)
def test_impossible_codes(level, width):
    with pytest.raises(UsageError):
        code_for(level, width)


def test_names():
    for code in CODES:
        assert parse_code(code.text) is code
    for bad in ("", "5", "5/", "/5", "5/x", "rs:4+2", "5/-3"):
        with pytest.raises(UsageError):
            parse_code(bad)


def test_narrower():
    assert narrower("5", 4).text == "5/4" and narrower("5", 2).text == "5/2"
    assert narrower("5", 1) is None and narrower("6", 2) is None and narrower("1", 1) is None
    assert narrower("10", 5).text == "10/4" and narrower("10", 1) is None
    assert narrower("rs:4+2", 5).text == "rs:3+2/5"
    assert narrower("rs:4+2", 9).text == "rs:4+2/6"
    assert narrower("rs:4+2", 2) is None and narrower("rs:4+2", 3).text == "rs:1+2/3"
    assert narrower("0", 1).text == "0/1" and narrower("1", 40).width == 17
    assert narrower("2", 3).text == "2/3" and narrower("2", 2) is None


@pytest.mark.parametrize("code", [code_for("5", 5), code_for("3", 5), code_for("10", 6)])
def test_bursts(code):
    """For all small numbers of pages: each has its own cell, and the layout is as described."""
    for pages in range(1, 70):
        rows = burst_layout(code, pages)
        assert rows == -(-pages // code.k)
        columns, heights = burst_cells(code, pages)
        assert len(set(zip(columns.tolist(), heights.tolist(), strict=True))) == pages
        here = present(code, pages)
        assert here.shape == (code.width, rows) and here.sum() == pages + code.m * rows
        assert here[code.k :].all() and here[0].all()
        for page in range(pages):
            column, row = int(columns[page]), int(heights[page])
            if code.dealt:
                assert (column, row) == (page % code.k, page // code.k)
            else:
                assert (column, row) == (page // rows, page % rows)
            assert burst_page(code, pages, column, row) == page
        for column in range(code.width):
            gaps = np.diff(here[column].astype(int))
            assert not (gaps > 0).any(), "each column's present cells are one run from row 0"
            for row in range(rows):
                page = burst_page(code, pages, column, row)
                assert (page is not None) == (bool(here[column, row]) and column < code.k)
