"""Gathered writes of cells (short writes are tested in csrc/tests/test_cells.c)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from raidfs import native


def addresses_of(memory: native.Bytes, order: list[int]) -> native.Addresses:
    base, cell_bytes = memory.ctypes.data, memory.shape[1]
    return np.array([base + i * cell_bytes for i in order], np.uint64)


@pytest.mark.parametrize("cell_bytes", [4096, 16384])
def test_cells_are_written_in_the_order_given(tmp_path: Path, cell_bytes: int) -> None:
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, (1500, cell_bytes), dtype=np.uint8)
    order = [*rng.permutation(1300).tolist(), *range(1300, 1500)]  # more than one system call takes
    with (tmp_path / "column").open("wb+") as file:
        native.write_cells(file.fileno(), 3 * cell_bytes, addresses_of(memory, order), cell_bytes)
        content = (tmp_path / "column").read_bytes()
    assert content[: 3 * cell_bytes] == bytes(3 * cell_bytes)
    assert content[3 * cell_bytes :] == memory[order].tobytes()


def test_no_cells_write_nothing(tmp_path: Path) -> None:
    with (tmp_path / "column").open("wb") as file:
        native.write_cells(file.fileno(), 4096, np.empty(0, np.uint64), 4096)
    assert (tmp_path / "column").stat().st_size == 0


def test_errors_are_told(tmp_path: Path) -> None:
    memory = np.zeros((2, 4096), np.uint8)
    addresses = addresses_of(memory, [0, 1])
    path = tmp_path / "column"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            native.write_cells(fd, 0, addresses, 4096)
    finally:
        os.close(fd)
    assert caught.value.errno == errno.EBADF


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_told() -> None:
    memory = np.zeros((2, 4096), np.uint8)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        native.write_cells(file.fileno(), 0, addresses_of(memory, [0, 1]), 4096)
    assert caught.value.errno == errno.ENOSPC


def test_an_absent_cell_is_our_own_error(tmp_path: Path) -> None:
    with (tmp_path / "column").open("wb") as file, pytest.raises(AssertionError):
        native.write_cells(file.fileno(), 0, np.zeros(1, np.uint64), 4096)
