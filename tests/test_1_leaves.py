"""Leaves as stored: what C writes and reads against a slow reference, and damage."""

import random

import numpy as np
import pytest

from raidfs.errors import FormatError
from raidfs.leaves import decode_cells, encode_cells
from raidfs.pages import LEAF_PAGES


def encode_slowly(addresses):
    """By the words of schema.sql, leaf.cells."""
    cells = list(addresses)
    while cells and cells[-1] == 0:
        cells.pop()
    if not cells:
        return None
    runs = []  # [first address, pages]
    for address in cells:
        if runs:
            first, pages = runs[-1]
            follows = 0 if first == 0 else (first + 256 * pages) % 2**64
            if address == follows:
                runs[-1][1] += 1
                continue
        runs.append([address, 1])
    plain = b"\0" + b"".join(a.to_bytes(8, "little") for a in cells)
    short = b"\1" + len(runs).to_bytes(2, "little")
    short += bytes(pages - 1 for _, pages in runs)
    short += b"".join(first.to_bytes(8, "little") for first, _ in runs)
    return short if len(short) < len(plain) else plain


def leaves(seed):
    rng = random.Random(seed)
    while True:
        cells, pages = [], rng.choice((0, 1, 2, 255, 256, rng.randrange(257)))
        while len(cells) < pages:
            count = min(rng.choice((1, 1, 2, 3, 40, 256)), pages - len(cells))
            first = rng.choice((0, 1 << 32, rng.randrange(2**56), 256 * rng.randrange(100)))
            cells += [first + 256 * i if first else 0 for i in range(count)]
        yield cells


@pytest.mark.parametrize("seed", range(8))
def test_as_the_reference_does_it(seed):
    for _, cells in zip(range(300), leaves(seed), strict=False):
        addresses = np.array(cells, np.uint64)
        stored = encode_cells(addresses)
        assert stored == encode_slowly(cells)
        again = decode_cells(stored)
        if stored is None:
            assert again is None and not addresses.any()
        else:
            assert again.tolist() == cells + [0] * (LEAF_PAGES - len(cells))


def test_nothing_is_no_leaf():
    assert encode_cells(None) is None and decode_cells(None) is None
    assert encode_cells(np.zeros(256, np.uint64)) is None


def test_damage_is_said_and_reads_no_further_than_the_data():
    rng = random.Random(1)
    refused = 0
    for _, cells in zip(range(400), leaves(9), strict=False):
        stored = encode_cells(np.array(cells, np.uint64)) or b"\0"
        data = bytearray(stored)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            what = rng.randrange(3)
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                del data[at:]
            else:
                data[at:at] = rng.randbytes(rng.randrange(4))
            if not data:
                break
        try:
            assert decode_cells(bytes(data)).shape == (256,)
        except FormatError:
            refused += 1
    assert refused > 100
    for data in (b"", b"\2", b"\1", b"\1\0\0", b"\0" * 2050, b"\1\1\0\xff" + b"\0" * 7):
        with pytest.raises(FormatError):
            decode_cells(data)
