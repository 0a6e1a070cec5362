"""Many rows of columns in one call of C: cells compared with their checksums, or columns made anew.

A thin skin over csrc/steps.c, where the promises stand. While a call goes on, others have the
interpreter. Checksums and presence are by row, then column: uint32 and bool (n, width).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raidfs._native import ffi, lib

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
Bools = NDArray[np.bool_]


class Spot(NamedTuple):
    """Where the first of the rows lies of a column, in an open file. `nowait`: it is read only
    where the kernel has it cached."""

    fd: int
    nowait: bool
    offset_bytes: int


class Goal(NamedTuple):
    """A column that is written; rows before `first`, counted from those of the step, are not."""

    column: int
    first: int
    spot: Spot


class GoalFailed(Exception):
    """A write failed: to which of the goals, and how."""

    def __init__(self, number: int, error: OSError) -> None:
        self.number, self.error = number, error


def check_column(
    spot: Spot, column: int, crcs: U32, there: Bools, wrong: Bools, cell_bytes: int, room: U8
) -> int:
    """Sets wrong[:, column] where a cell is there and can't be read, or isn't as its checksum says;
    how many. `room`: aligned bytes, which say how much is read at once."""
    rows, width = there.shape
    assert crcs.shape == wrong.shape == there.shape and 0 <= column < width
    assert wrong.dtype == there.dtype == np.bool_ and crcs.dtype == np.uint32
    assert crcs.flags.c_contiguous and there.flags.c_contiguous and wrong.flags.c_contiguous
    assert wrong.flags.writeable and room.dtype == np.uint8 and room.size >= cell_bytes
    return int(
        lib.rf_step_check(
            ffi.new("struct rf_place *", tuple(spot)),
            rows,
            cell_bytes,
            width,
            ffi.cast("uint32_t *", crcs.ctypes.data) + column,
            ffi.cast("uint8_t *", there.ctypes.data) + column,
            ffi.cast("uint8_t *", wrong.ctypes.data) + column,
            ffi.cast("uint8_t *", room.ctypes.data),
            room.size,
        )
    )


def make_columns(
    sources: Sequence[tuple[int, Spot]],
    made: Sequence[int],
    coefficients: U8,
    goals: Sequence[Goal],
    crcs: U32,
    there: Bools,
    cell_bytes: int,
    room: U8,
) -> Bools:
    """Reads columns, makes others as coefficients (made, sources) of them, writes to the goals.
    Returns bool (n,): rows all of which matched and was written. GoalFailed."""
    rows, width = there.shape
    assert crcs.shape == there.shape and coefficients.shape == (len(made), len(sources))
    assert crcs.dtype == np.uint32 and there.dtype == np.bool_ and coefficients.dtype == np.uint8
    assert crcs.flags.c_contiguous and there.flags.c_contiguous and room.flags.c_contiguous
    assert room.dtype == np.uint8 and room.size >= (len(sources) + len(made)) * cell_bytes
    columns = {*made, *(column for column, _ in sources)}
    assert sources and all(goal.column in columns for goal in goals) and max(columns) < width
    coefficients = np.ascontiguousarray(coefficients)
    good = np.zeros(rows, dtype=np.bool_)
    kept = (
        ffi.new("uint32_t[]", [column for column, _ in sources]),
        ffi.new("struct rf_place[]", [tuple(spot) for _, spot in sources]),
        ffi.new("uint32_t[]", list(made)),
        ffi.new("struct rf_target[]", [(goal[0], goal[1], tuple(goal[2])) for goal in goals]),
    )
    step = ffi.new("struct rf_step *")
    step.rows, step.cell_bytes, step.width = rows, cell_bytes, width
    step.crcs = ffi.cast("uint32_t *", crcs.ctypes.data)
    step.there = ffi.cast("uint8_t *", there.ctypes.data)
    step.sources_count, step.made_count, step.targets_count = len(sources), len(made), len(goals)
    step.sources, step.places, step.made, step.targets = kept
    step.coefficients = ffi.cast("uint8_t *", coefficients.ctypes.data)
    step.room, step.room_bytes = ffi.cast("uint8_t *", room.ctypes.data), room.size
    failed = ffi.new("uint32_t *")
    error = -lib.rf_step_make(step, ffi.cast("uint8_t *", good.ctypes.data), failed)
    if error:
        raise GoalFailed(int(failed[0]), OSError(error, os.strerror(error)))
    return good
