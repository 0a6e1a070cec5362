"""Erasure kernels: every kernel against the reference, and that against the field."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from raidfs import native
from raidfs.errors import RaidfsError, UsageError

PAGE = mmap.PAGESIZE
PROT_NONE = 0
SEED = 20240611


@pytest.fixture(autouse=True)
def _restore_kernel() -> Iterator[None]:
    selected = native.kernel_selected()
    yield
    native.kernel_select(selected)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def random_bytes(rng: np.random.Generator, *shape: int) -> native.Bytes:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def random_matrix(rng: np.random.Generator, m: int, k: int, xor_rows: int) -> native.Bytes:
    matrix = random_bytes(rng, m, k)
    matrix[:xor_rows] &= 1
    return matrix


def product_by_field(matrix: native.Bytes, sources: native.Bytes) -> native.Bytes:
    return native.gf_matrix_multiply(matrix, sources)


def multiply(kernel: str, matrix: native.Bytes, sources: native.Bytes) -> native.Bytes:
    native.kernel_select(kernel)
    outputs = np.full((len(matrix), sources.shape[1]), 0xA5, np.uint8)
    native.multiply(matrix, sources, outputs)
    return outputs


def assert_all_kernels_agree(matrix: native.Bytes, sources: native.Bytes, what: str) -> None:
    expected = multiply("scalar", matrix, sources)
    for kernel in native.kernel_names()[1:]:
        found = multiply(kernel, matrix, sources)
        assert np.array_equal(expected, found), f"{kernel} differs: {what}, seed {SEED}"


# ---- the field ----


def shift_and_add(a: int, b: int) -> int:
    """The product by its definition."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << (bit - 8)
    return product


def test_products_are_by_definition() -> None:
    everything = np.arange(256, dtype=np.uint8)
    table = native.gf_multiply(everything[:, np.newaxis], everything[np.newaxis, :])
    assert table.dtype == np.uint8
    for a, b in itertools.product(range(256), repeat=2):
        assert table[a, b] == shift_and_add(a, b)
    assert native.gf_multiply(0x80, 2) == 0x1D


def test_tables_of_c_are_by_definition() -> None:
    everything = np.arange(256, dtype=np.uint8)[np.newaxis, :]
    for kernel in native.kernel_names():
        table = np.concatenate(
            [multiply(kernel, np.array([[c]], np.uint8), everything) for c in range(256)]
        )
        assert np.array_equal(table, native.gf_multiply(everything.T, everything)), kernel


def test_inverses() -> None:
    for a in range(1, 256):
        assert native.gf_multiply(a, native.gf_inverse(a)) == 1


def test_inverse_matrices(rng: np.random.Generator) -> None:
    singular = 0
    for n in [*range(1, 9), 16, 32] * 3:
        matrix = random_bytes(rng, n, n)
        inverse = native.gf_invert_matrix(matrix)
        if inverse is None:
            singular += 1
            continue
        identity = np.eye(n, dtype=np.uint8)
        assert np.array_equal(native.gf_matrix_multiply(matrix, inverse), identity)
        assert np.array_equal(native.gf_matrix_multiply(inverse, matrix), identity)
    assert singular < 5
    permutation = np.eye(5, dtype=np.uint8)[[3, 0, 4, 1, 2]]
    assert np.array_equal(native.gf_invert_matrix(permutation), permutation.T)


def test_singular_matrices_have_no_inverse(rng: np.random.Generator) -> None:
    assert native.gf_invert_matrix(np.zeros((3, 3), np.uint8)) is None
    matrix = random_bytes(rng, 4, 4)
    matrix[2] = native.gf_multiply(matrix[0], 7) ^ native.gf_multiply(matrix[3], 9)
    assert native.gf_invert_matrix(matrix) is None


# ---- kernels ----


def test_reference_is_the_field(rng: np.random.Generator) -> None:
    for k, m in [(1, 1), (3, 2), (10, 4), (32, 16)]:
        matrix, sources = random_bytes(rng, m, k), random_bytes(rng, k, 333)
        found = multiply("scalar", matrix, sources)
        assert np.array_equal(found, product_by_field(matrix, sources))


def test_kernels_agree_for_all_shapes(rng: np.random.Generator) -> None:
    sizes = itertools.cycle([1, 17, 64, 100, 255, 256, 300, 511, 1024, 1500])
    for k, m in itertools.product(range(1, 17), range(9)):
        sources = random_bytes(rng, k, next(sizes))
        for xor_rows in {0, m // 2, m}:
            matrix = random_matrix(rng, m, k, xor_rows)
            assert_all_kernels_agree(matrix, sources, f"{k}+{m}, {xor_rows} rows of XOR")
    for k, m in [(32, 16), (32, 1), (1, 16), (17, 13)]:
        assert_all_kernels_agree(
            random_bytes(rng, m, k), random_bytes(rng, k, next(sizes)), f"{k}+{m}"
        )


def test_kernels_agree_for_all_short_lengths(rng: np.random.Generator) -> None:
    matrix, sources = random_matrix(rng, 3, 5, 1), random_bytes(rng, 5, 700)
    for nbytes in range(700):
        assert_all_kernels_agree(matrix, sources[:, :nbytes], f"{nbytes} bytes")


def test_kernels_agree_for_all_alignments(rng: np.random.Generator) -> None:
    matrix, memory = random_matrix(rng, 2, 4, 1), random_bytes(rng, 4, 64 + 777)
    room = np.empty((2, 64 + 777), np.uint8)
    for start in range(64):
        sources = memory[:, start : start + 777]
        expected = product_by_field(matrix, sources)
        for kernel in native.kernel_names():
            native.kernel_select(kernel)
            room[:] = 0xA5
            end = 64 - start + 777
            native.multiply(matrix, sources, room[:, 64 - start : end])
            assert np.array_equal(room[:, 64 - start : end], expected), (kernel, start)
            assert (room[:, : 64 - start] == 0xA5).all() and (room[:, end:] == 0xA5).all()


@pytest.mark.slow
def test_kernels_agree_exhaustively(rng: np.random.Generator) -> None:
    memory = random_bytes(rng, 16, (1 << 20) + 128)
    sizes = [31, 63, 129, 1023, 4096, 4097, 12345, 65536 + 13]
    for k, m in itertools.product(range(1, 17), range(9)):
        matrix = random_matrix(rng, m, k, (k + m) % (m + 1))
        for turn, nbytes in enumerate(sizes):
            start = (7 * k + m + turn) % 64
            sources = memory[:k, start : start + nbytes]
            assert_all_kernels_agree(matrix, sources, f"{k}+{m}, {nbytes} bytes from {start}")
        start, nbytes = 5 * k, (1 << 20) - 5 * m
        assert_all_kernels_agree(matrix, memory[:k, start : start + nbytes], f"{k}+{m}, 1 MiB")


def test_rows_of_xor(rng: np.random.Generator) -> None:
    sources = random_bytes(rng, 6, 5000)
    matrix = np.array([[1] * 6, [0] * 6, [0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 1]], np.uint8)
    expected = [
        np.bitwise_xor.reduce(sources, axis=0),
        np.zeros(5000, np.uint8),
        sources[2],
        sources[0] ^ sources[2] ^ sources[5],
    ]
    for kernel in native.kernel_names():
        assert np.array_equal(multiply(kernel, matrix, sources), np.stack(expected)), kernel


def test_multiplying_decodes(rng: np.random.Generator) -> None:
    k, m = 4, 2
    parity = np.array([[1, 1, 1, 1], [1, 2, 4, 8]], np.uint8)
    generator = np.concatenate([np.eye(k, dtype=np.uint8), parity])
    data = random_bytes(rng, k, 4097)
    for kernel in native.kernel_names():
        cells = np.concatenate([data, multiply(kernel, parity, data)])
        for lost in itertools.combinations(range(k + m), m):
            survivors = [i for i in range(k + m) if i not in lost]
            inverse = native.gf_invert_matrix(generator[survivors])
            assert inverse is not None
            rows = native.gf_matrix_multiply(generator[list(lost)], inverse)
            rebuilt = multiply(kernel, rows, np.ascontiguousarray(cells[survivors]))
            assert np.array_equal(rebuilt, cells[list(lost)]), (kernel, lost)


class GuardedRows:
    """Rows of nbytes, each between two pages that can't be touched; odd ones end there."""

    def __init__(self, count: int, nbytes: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        room = -(-nbytes // PAGE) * PAGE
        self.rows = []
        self.maps = []
        for row in range(count):
            mapped = mmap.mmap(-1, room + 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.maps.append(mapped)
            whole = np.frombuffer(mapped, np.uint8)
            start = PAGE + (room - nbytes) * (row % 2)
            self.rows.append(whole[start : start + nbytes])
            for edge in (0, PAGE + room):
                address = ctypes.c_void_p(whole.ctypes.data + edge)
                assert libc.mprotect(address, ctypes.c_size_t(PAGE), PROT_NONE) == 0
        self.addresses = np.array([row.ctypes.data for row in self.rows], np.uint64)


@pytest.mark.parametrize("nbytes", [1, 15, 33, 64, 65, 100, 257, 4095, 4096, 4097, 9000])
def test_nothing_beside_the_buffers_is_touched(rng: np.random.Generator, nbytes: int) -> None:
    k, m = 5, 6
    matrix = random_matrix(rng, m, k, 1)
    data, outputs = GuardedRows(k, nbytes), GuardedRows(m, nbytes)
    for row in data.rows:
        row[:] = random_bytes(rng, nbytes)
    expected = product_by_field(matrix, np.stack(data.rows))
    for kernel in native.kernel_names():
        native.kernel_select(kernel)
        native.lib.rf_multiply(
            native.ffi.from_buffer("uint8_t[]", matrix), m, k,
            native.ffi.cast("uint8_t **", data.addresses.ctypes.data),
            native.ffi.cast("uint8_t **", outputs.addresses.ctypes.data), nbytes,
        )  # fmt: skip
        assert np.array_equal(np.stack(outputs.rows), expected), kernel
        for row in data.rows:
            native.crc32c(row)


# ---- bursts ----


def crcs_of(cells: native.Bytes) -> native.Checksums:
    """Of (n, rows, cell_bytes), one by one."""
    return np.array([[native.crc32c(cell) for cell in column] for column in cells], np.uint32)


def encode_and_check(
    kernel: str, matrix: native.Bytes, data: native.Bytes, absent: native.Bytes
) -> None:
    """Encodes data (k, rows, cell_bytes) but for the cells marked `absent` (k, rows)."""
    (m, k), (_, rows, cell_bytes) = matrix.shape, data.shape
    data = np.where(absent[:, :, np.newaxis], np.uint8(0), data)
    at = data.ctypes.data + np.arange(k * rows, dtype=np.uint64) * np.uint64(cell_bytes)
    addresses = np.where(absent, np.uint64(0), at.reshape(k, rows))
    parity = np.full((m, rows, cell_bytes), 0xA5, np.uint8)
    native.kernel_select(kernel)
    crcs = native.encode(matrix, addresses, parity, cell_bytes)
    native.kernel_select("scalar")
    expected = np.empty((m, rows * cell_bytes), np.uint8)
    native.multiply(matrix, data.reshape(k, -1), expected)
    assert np.array_equal(parity.reshape(expected.shape), expected), kernel
    native.kernel_select(native.kernel_names()[-1])
    assert np.array_equal(crcs, crcs_of(np.concatenate([data, parity]))), kernel


@pytest.mark.parametrize("kernel", native.kernel_names())
def test_encoding_gives_parity_and_checksums(rng: np.random.Generator, kernel: str) -> None:
    for k, m in itertools.product([1, 2, 3, 5, 9], [0, 1, 2, 3, 5, 8]):
        data = random_bytes(rng, k, 2, 4096)
        nothing = np.zeros((k, 2), np.uint8)
        for xor_rows in {0, m // 2, m}:
            encode_and_check(kernel, random_matrix(rng, m, k, xor_rows), data, nothing)


@pytest.mark.parametrize("kernel", native.kernel_names())
def test_absent_cells_are_zeros(rng: np.random.Generator, kernel: str) -> None:
    k, rows = 4, 7
    for m, density in itertools.product([0, 1, 2, 5], [0.2, 0.7, 1.0]):
        absent = (rng.random((k, rows)) < density).astype(np.uint8)
        data = random_bytes(rng, k, rows, 8192)
        encode_and_check(kernel, random_matrix(rng, m, k, m // 2), data, absent)


@pytest.mark.slow
@pytest.mark.parametrize("cell_bytes", [4096, 65536])
def test_encoding_exhaustively(rng: np.random.Generator, cell_bytes: int) -> None:
    for k, m in [*itertools.product(range(1, 17, 3), range(9)), (32, 16)]:
        absent = (rng.random((k, 2)) < 0.1).astype(np.uint8)
        data = random_bytes(rng, k, 2, cell_bytes)
        matrix = random_matrix(rng, m, k, 1)
        for kernel in native.kernel_names():
            encode_and_check(kernel, matrix, data, absent)


def test_sources_may_lie_anywhere(rng: np.random.Generator) -> None:
    sources = random_bytes(rng, 3, 2, 1000)[:, 1, 3:900]
    outputs = np.zeros((4, 897), np.uint8)
    matrix = random_bytes(rng, 3, 2).T
    native.multiply(matrix, sources, outputs[::2])
    assert np.array_equal(outputs[::2], product_by_field(matrix, sources))
    assert not outputs[1::2].any()


def test_outputs_over_sources_are_refused(rng: np.random.Generator) -> None:
    data = random_bytes(rng, 2, 100)
    with pytest.raises(AssertionError):
        native.multiply(np.ones((1, 2), np.uint8), data, data[:1])


def test_others_run_meanwhile(rng: np.random.Generator) -> None:
    """The GIL is released: another thread's clock ticks inside of one long call."""
    native.kernel_select("scalar")
    data, outputs = random_bytes(rng, 8, 1 << 20), np.empty((8, 1 << 20), np.uint8)
    span = []

    def work() -> None:
        span.append(time.monotonic())
        native.multiply(random_bytes(rng, 8, 8), data, outputs)
        span.append(time.monotonic())

    thread = threading.Thread(target=work)
    ticks = [time.monotonic()]
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        ticks.append(time.monotonic())
    thread.join()
    start, end = span
    assert any(start + (end - start) * 0.2 < tick < start + (end - start) * 0.8 for tick in ticks)


# ---- choice and self-test ----


def test_the_last_kernel_is_the_default_and_any_can_be_chosen() -> None:
    names = native.kernel_names()
    assert names[0] == "scalar" and len(set(names)) == len(names)
    for name in [*names, native.CYCLE]:
        native.kernel_select(name)
        assert native.kernel_selected() == name
        native.self_test()
    with pytest.raises(UsageError, match="scalar"):
        native.kernel_select("mmx")


def test_cycling_takes_all_kernels(rng: np.random.Generator) -> None:
    sources, matrix = random_bytes(rng, 4, 999), random_matrix(rng, 3, 4, 1)
    expected = product_by_field(matrix, sources)
    for _ in range(2 * len(native.kernel_names())):
        assert np.array_equal(multiply(native.CYCLE, matrix, sources), expected)


def run_with(kernel: str) -> str:
    program = (
        "from raidfs import native\n"
        "try:\n"
        "    native.self_test(); print(native.kernel_selected())\n"
        "except native.UsageError as error: print('refused:', error)"
    )
    environment = {**os.environ, "RAIDFS_KERNEL": kernel}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_environment_chooses() -> None:
    assert run_with("scalar") == "scalar"
    assert run_with("cycle") == "cycle"
    assert run_with("abacus").startswith("refused: there is no kernel 'abacus' on this machine")


@pytest.mark.parametrize("flaw", [1, 2, 3, 4])
def test_the_self_test_notices(flaw: int) -> None:
    """1: another coefficient; 2: one bit of an output; 3: a checksum; 4: a checksum of a burst."""
    for index, name in enumerate(native.kernel_names()):
        native._compare(index)
        with pytest.raises(RaidfsError, match=name):
            native._compare(index, flaw)


def test_the_comparison_of_these_tests_notices(rng: np.random.Generator) -> None:
    """One coefficient of the reference's matrix is wrong: the comparison must fail."""
    matrix, sources = random_matrix(rng, 3, 5, 1), random_bytes(rng, 5, 100)
    wrong = matrix.copy()
    wrong[2, 4] ^= 1
    for kernel in native.kernel_names():
        assert not np.array_equal(
            multiply("scalar", wrong, sources), multiply(kernel, matrix, sources)
        )
