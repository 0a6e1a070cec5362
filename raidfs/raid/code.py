"""Every RAID level is a generator matrix; this file is where the levels differ.

A code has k data columns and m parity columns; column c < k holds data, column k + i the sum over
GF(2^8) (polynomial 0x11d) of parity[i, c] times data column c. Which columns a loss leaves
recoverable is linear algebra on the generator (the identity above the parity rows), the same for
all levels.

    level    parity rows                                      survives
    0        none                                             nothing
    1        all ones, k = 1: copies                          width - 1
    2        Hamming: row i has a 1 where bit i of h(c) is 1  2 (distance 3)
    3 4 5    all ones: P                                      1
    6        P, and powers of two: Q, as in Linux RAID-6      2
    10       identity: each column twice                      1, and more if not both of a pair
    rs:K+M   extended Cauchy, its first rows P and Q          M

The Cauchy matrix (the construction of SnapRAID): entry (i, j) of rows i >= 1 is 1 / (x_j + y_i)
with x_j = 2^-j, y_1 = 0 and y_i = 2^(i-1) for i >= 2, all distinct for the sizes allowed here; so
row 1 is 2^j, that is Q. Row 0 is all ones (a Cauchy row with y at infinity, scaled). Each further
row is scaled so that its first entry is 1, which changes no rank. Every square submatrix of such a
matrix is invertible, so any M losses are survived.

 1. `tolerance` losses are survived wherever they fall. `survives` says it for one loss exactly.
 2. `express` uses a source only if its coefficient isn't 0, and prefers sources named first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from raidfs import native
from raidfs.errors import UsageError

WIDTH_MAX = 24
PARITY_MAX = 8
COPIES_MAX = 16  # parity columns of any code: what one call of the kernels yields
LEVELS = ("0", "1", "2", "3", "4", "5", "6", "10", "rs:K+M")

Placement = Literal["rotated", "dedicated", "pairs", "any"]
Matrix = npt.NDArray[np.uint8]
_RS = re.compile(r"rs:([0-9]{1,2})\+([0-9]{1,2})")


@dataclass(frozen=True, slots=True)
class Code:
    """See the module. `dealt`: page i of a burst lies in column i % k (else contiguous)."""

    level: str
    k: int
    m: int
    tolerance: int
    parity: Matrix = field(repr=False, compare=False)
    placement: Placement
    dealt: bool = False

    @property
    def name(self) -> str:
        return self.level

    @property
    def width(self) -> int:
        return self.k + self.m

    @property
    def text(self) -> str:
        """How the metadata names it; `parse_code` reads it."""
        return f"{self.level}/{self.width}"

    @property
    def may_survive_more(self) -> bool:
        """Whether some losses of more than `tolerance` columns are survived."""
        return self.m > self.tolerance

    def generator(self) -> Matrix:
        """uint8 (width, k)."""
        return np.concatenate([np.eye(self.k, dtype=np.uint8), self.parity])

    def survives(self, lost: frozenset[int] | set[int]) -> bool:
        """Whether all columns can be had from those that are not lost."""
        if len(lost) <= self.tolerance:
            return True
        return self.decode_matrix(frozenset(lost)) is not None

    def decode_matrix(self, lost: frozenset[int]) -> tuple[list[int], Matrix] | None:
        """(sources, uint8 (len(lost), len(sources))): the lost columns, ascending, from others."""
        available = tuple(c for c in range(self.width) if c not in lost)
        return self.express(tuple(sorted(lost)), available)

    def express(
        self, wanted: Sequence[int], available: Sequence[int]
    ) -> tuple[list[int], Matrix] | None:
        """The wanted columns as combinations of available ones, at most k; None if impossible."""
        solved = _express(self, tuple(wanted), tuple(available))
        return None if solved is None else (list(solved[0]), solved[1])


@functools.lru_cache(maxsize=4096)
def _express(
    code: Code, wanted: tuple[int, ...], available: tuple[int, ...]
) -> tuple[tuple[int, ...], Matrix] | None:
    """A basis among the available rows of the generator, taken in order; then a small inverse."""
    generator = code.generator()
    basis = _independent(generator, available)
    square = generator[list(basis)]
    # Rows of the basis span a space; complete it to k rows with unit rows to have an inverse.
    # A wanted row lies in the span just if it has no part in what was added.
    added = [
        unit for unit in _independent(generator, basis + tuple(range(code.k))) if unit not in basis
    ]
    full = np.concatenate([square, generator[added]])
    inverse = native.gf_invert_matrix(full)
    assert inverse is not None, "rows chosen to be independent"
    coefficients = native.gf_matrix_multiply(generator[list(wanted)], inverse)
    if coefficients[:, len(basis) :].any():
        return None
    coefficients = coefficients[:, : len(basis)]
    used = np.flatnonzero(coefficients.any(axis=0))
    matrix = np.ascontiguousarray(coefficients[:, used])
    matrix.setflags(write=False)
    return tuple(basis[i] for i in used), matrix


def _independent(generator: Matrix, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """The candidates, in order, whose generator rows are independent of those before."""
    reduced: list[tuple[int, Matrix]] = []  # (pivot column, row with 1 there)
    chosen: list[int] = []
    for candidate in candidates:
        row = generator[candidate]
        for pivot, other in reduced:
            row = row ^ native.gf_multiply(other, int(row[pivot]))
        nonzero = np.flatnonzero(row)
        if not len(nonzero):
            continue
        pivot = int(nonzero[0])
        reduced.append((pivot, native.gf_multiply(row, native.gf_inverse(int(row[pivot])))))
        chosen.append(candidate)
        if len(chosen) == generator.shape[1]:
            break
    return tuple(chosen)


def cauchy_rows(k: int, m: int) -> Matrix:
    """uint8 (m, k), see the module."""
    assert k > 0 and 0 < m <= PARITY_MAX and k + m <= 256
    powers = [1]
    for _ in range(254):
        powers.append(native.gf_multiply(powers[-1], 2))
    rows = np.ones((m, k), dtype=np.uint8)
    for i in range(1, m):
        y = 0 if i == 1 else powers[i - 1]
        entries = [native.gf_inverse(powers[-j % 255] ^ y) for j in range(k)]
        scale = native.gf_inverse(entries[0])
        rows[i] = [native.gf_multiply(scale, entry) for entry in entries]
    return rows


def _hamming_rows(k: int, m: int) -> Matrix:
    """Columns h(c): the k largest m-bit numbers with two bits or more, so no parity is idle."""
    vectors = [v for v in range((1 << m) - 1, 0, -1) if v.bit_count() >= 2][:k]
    assert len(vectors) == k
    return np.array([[v >> i & 1 for v in vectors] for i in range(m)], dtype=np.uint8)


def _hamming_parity(width: int) -> int:
    """The fewest parity columns of a distance-3 code of that width."""
    m = 2
    while (1 << m) - 1 < width:
        m += 1
    return m


@functools.cache
def code_for(level: str, width: int) -> Code:
    """The code of that level over `width` columns. UsageError if there is none."""
    if not 1 <= width <= WIDTH_MAX:
        raise UsageError(f"a zone can be 1 to {WIDTH_MAX} members wide, not {width}")
    least = width_least(level)
    if width < least:
        raise UsageError(f"level {level} needs a width of at least {least}, not {width}")
    code = _build(level, width)
    if code.m > COPIES_MAX:
        raise UsageError(
            f"level {level} with a width of {width} has {code.m} parity columns and "
            f"{COPIES_MAX} is the most: choose a smaller width"
        )
    code.parity.setflags(write=False)
    assert code.parity.shape == (code.m, code.k) and code.width == width
    return code


def _build(level: str, width: int) -> Code:
    if level == "0":
        return Code(level, width, 0, 0, np.zeros((0, width), dtype=np.uint8), "any")
    if level == "1":
        return Code(level, 1, width - 1, width - 1, np.ones((width - 1, 1), np.uint8), "any")
    if level == "2":
        m = _hamming_parity(width)
        return Code(level, width - m, m, 2, _hamming_rows(width - m, m), "dedicated")
    if level in ("3", "4", "5"):
        rows = cauchy_rows(width - 1, 1)
        placement: Placement = "rotated" if level == "5" else "dedicated"
        return Code(level, width - 1, 1, 1, rows, placement, dealt=level == "3")
    if level == "6":
        return Code(level, width - 2, 2, 2, cauchy_rows(width - 2, 2), "rotated")
    if level == "10":
        if width % 2:
            raise UsageError(f"level 10 keeps pairs and needs an even width, not {width}")
        return Code(level, width // 2, width // 2, 1, np.eye(width // 2, dtype=np.uint8), "pairs")
    k, m = rs_numbers(level)
    if k + m != width:
        raise UsageError(f"level {level} is {k + m} members wide, not {width}")
    return Code(level, k, m, m, cauchy_rows(k, m), "rotated")


def rs_numbers(level: str) -> tuple[int, int]:
    """(K, M) of "rs:K+M"; UsageError for anything else, unknown levels included."""
    parts = _RS.fullmatch(level)
    if parts is None:
        raise UsageError(f"unknown level {level!r}: choose one of {', '.join(LEVELS)}")
    k, m = int(parts[1]), int(parts[2])
    if not (k >= 1 and 1 <= m <= PARITY_MAX and k + m <= WIDTH_MAX):
        raise UsageError(
            f"level {level}: K must be at least 1, M 1 to {PARITY_MAX} and K+M at most {WIDTH_MAX}"
        )
    return k, m


def width_least(level: str) -> int:
    """The fewest columns with which the level still is what it says (k >= 1, m as promised)."""
    fixed = {"0": 1, "1": 2, "2": 3, "3": 2, "4": 2, "5": 2, "6": 3, "10": 2}
    return fixed[level] if level in fixed else 1 + rs_numbers(level)[1]


def narrower(level: str, width_available: int) -> Code | None:
    """The widest code of the level that fits, keeping what it survives; None if none does."""
    width = min(width_available, WIDTH_MAX if level != "1" else 1 + COPIES_MAX)
    if width < width_least(level):
        return None
    if level == "10":
        return code_for(level, width - width % 2)
    if level.startswith("rs:"):
        k, m = rs_numbers(level)
        k = min(k, width - m)
        return code_for(f"rs:{k}+{m}", k + m)
    return code_for(level, width)


def parse_code(text: str) -> Code:
    """The reverse of `Code.text`. UsageError."""
    level, _, width = text.rpartition("/")
    if not width.isdigit():
        raise UsageError(f"{text!r} doesn't name a code")
    return code_for(level, int(width))


def burst_layout(code: Code, pages: int) -> int:
    """How many rows a burst of so many pages takes."""
    assert pages > 0
    return -(-pages // code.k)


def burst_cells(code: Code, pages: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(column, row) of each page of a burst, row 0 being the burst's first."""
    page = np.arange(pages, dtype=np.int64)
    if code.dealt:
        return page % code.k, page // code.k
    rows = burst_layout(code, pages)
    return page // rows, page % rows


def burst_page(code: Code, pages: int, column: int, row: int) -> int | None:
    """Which page lies there; None for parity and absent cells."""
    rows = burst_layout(code, pages)
    assert 0 <= column < code.width and 0 <= row < rows
    page = row * code.k + column if code.dealt else column * rows + row
    return page if column < code.k and page < pages else None


def present(code: Code, pages: int) -> npt.NDArray[np.bool_]:
    """bool (width, rows): which cells of a burst of so many pages exist. Parity always does."""
    rows = burst_layout(code, pages)
    out = np.zeros((code.width, rows), dtype=np.bool_)
    out[code.k :] = True
    columns, heights = burst_cells(code, pages)
    out[columns, heights] = True
    return out
