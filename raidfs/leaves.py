"""The addresses of a leaf as the metadata keeps them: column leaf.cells of store/schema.sql.

A thin skin over csrc/leaf_runs.c. `LEAF_PAGES` addresses in memory, uint64; as stored, runs where
that is shorter (a file written in sequence takes tens of bytes per leaf instead of 2 KiB), and
plain words else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raidfs._native import ffi, lib
from raidfs.errors import FormatError
from raidfs.pages import LEAF_PAGES

U64 = npt.NDArray[np.uint64]
ZONE_SHIFT = 32  # an address is zone << ZONE_SHIFT | row << ROW_SHIFT | column
ROW_SHIFT = 8

assert lib.RF_RUNS_PAGES == LEAF_PAGES


def encode_cells(addresses: U64 | None) -> bytes | None:
    """As stored, of up to 256 addresses; None if all are holes."""
    if addresses is None:
        return None
    assert addresses.dtype == np.uint64 and addresses.ndim == 1 and addresses.flags.c_contiguous
    out = ffi.new("uint8_t[]", lib.RF_RUNS_BYTES_MAX)
    nbytes = lib.rf_leaf_encode(ffi.from_buffer("uint64_t[]", addresses), len(addresses), out)
    return bytes(ffi.buffer(out, nbytes)) if nbytes else None


def decode_cells(data: bytes | None) -> U64 | None:
    """uint64[256]; None if all are holes. FormatError."""
    if data is None:
        return None
    addresses = np.empty(LEAF_PAGES, np.uint64)
    if lib.rf_leaf_decode(data, len(data), ffi.from_buffer("uint64_t[]", addresses)):
        raise FormatError("a leaf of the metadata is damaged")
    return addresses
