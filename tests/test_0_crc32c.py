"""CRC-32C: known values, and every kernel against the table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from raidfs import native

SEED = 20240612

# RFC 3720 (iSCSI), appendix B.4, and the check value of the catalogue of CRCs.
KNOWN = [
    (b"", 0),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.fixture(autouse=True, params=native.kernel_names())
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    selected = native.kernel_selected()
    native.kernel_select(request.param)
    yield request.param
    native.kernel_select(selected)


@pytest.fixture(scope="module")
def data() -> bytes:
    return np.random.default_rng(SEED).bytes((1 << 20) + 64)


def by_definition(data: bytes) -> int:
    """Long division, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def by_table(kernel: str, data: bytes, value: int = 0) -> int:
    native.kernel_select("scalar")
    crc = native.crc32c(data, value)
    native.kernel_select(kernel)
    return crc


@pytest.mark.parametrize(("message", "crc"), KNOWN)
def test_known_values(message: bytes, crc: int) -> None:
    assert native.crc32c(message) == crc == by_definition(message)


def test_is_by_definition(data: bytes) -> None:
    for nbytes in [*range(66), 255, 512, 1111]:
        assert native.crc32c(data[:nbytes]) == by_definition(data[:nbytes])


def test_all_lengths_and_alignments(kernel: str, data: bytes) -> None:
    view = memoryview(data)
    for nbytes in [*range(0, 5000, 7), 8192, 65536, 65537, 1 << 20]:
        part = view[nbytes % 64 :][:nbytes]
        assert native.crc32c(part, nbytes) == by_table(kernel, part, nbytes), nbytes


def test_continues(data: bytes) -> None:
    whole = native.crc32c(data[:10000])
    for cut in [0, 1, 8, 63, 511, 512, 4095, 9999, 10000]:
        assert native.crc32c(data[cut:10000], native.crc32c(data[:cut])) == whole


def test_takes_all_kinds_of_buffers(data: bytes) -> None:
    crc = native.crc32c(data[:4096])
    array = np.frombuffer(data[:4096], np.uint64)
    for buffer in (bytearray(data[:4096]), memoryview(data)[:4096], array):
        assert native.crc32c(buffer) == crc


@pytest.mark.parametrize("cell_bytes", [4096, 65536])
def test_cells(data: bytes, cell_bytes: int) -> None:
    cells = np.frombuffer(data[: 8 * cell_bytes], np.uint8).reshape(8, cell_bytes)
    crcs = native.crc32c_cells(cells)
    assert crcs.dtype == np.uint32 and crcs.shape == (8,)
    assert crcs.tolist() == [native.crc32c(cell) for cell in cells]
    assert native.crc32c_cells(cells[:0]).shape == (0,)


def test_any_flipped_bit_is_noticed(data: bytes) -> None:
    cell = bytearray(data[:4096])
    crc = native.crc32c(cell)
    for bit in range(0, 8 * 4096, 97):
        cell[bit // 8] ^= 1 << bit % 8
        assert native.crc32c(cell) != crc
        cell[bit // 8] ^= 1 << bit % 8
