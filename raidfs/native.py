"""The border to C: erasure codes, checksums and gathered writes over numpy arrays.

Words as in csrc/erasure.h: a *kernel* is the implementation for one instruction set, the
*reference* is the kernel "scalar". Arithmetic is that of GF(2^8) with the polynomial 0x11d.

 1. Whatever kernel is chosen, results are the same bytes.
 2. Arrays are checked here (shape, type, contiguity) by asserts, since C can't check them.
 3. Calls that touch much data release the GIL, keep no state, and may run in parallel.
 4. The small field functions here share no code with C, so that each checks the other.

RAIDFS_KERNEL=NAME in the environment chooses a kernel, `cycle` takes the next one at every call.
"""

from __future__ import annotations

import math
import os
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from raidfs._native import ffi, lib
from raidfs.errors import RaidfsError, UsageError

Bytes = npt.NDArray[np.uint8]
Checksums = npt.NDArray[np.uint32]
Addresses = npt.NDArray[np.uint64]
Buffer = bytes | bytearray | memoryview | npt.NDArray[Any]

CYCLE = "cycle"
ALIGNMENT_BYTES = 4096  # what O_DIRECT asks for at most, and the least that a cell has
SOURCES_MAX = 32
OUTPUTS_MAX = 16


# ---- kernels ----


def kernel_names() -> list[str]:
    """The kernels that this CPU can run, slowest first; the first is the reference."""
    return [
        ffi.string(lib.rf_kernel_name(index)).decode() for index in range(lib.rf_kernel_count())
    ]


def kernel_selected() -> str:
    """The name of the kernel in use, or "cycle". UsageError if RAIDFS_KERNEL named none of them."""
    _require_environment()
    index = lib.rf_kernel_selected()
    return CYCLE if index < 0 else kernel_names()[index]


def kernel_select(name: str) -> None:
    """Makes all calls of this process take that kernel; "cycle": the next one at every call."""
    global _environment_error
    names = kernel_names()
    if name != CYCLE and name not in names:
        raise UsageError(
            f"there is no kernel {name!r} on this machine; RAIDFS_KERNEL may be one of: "
            f"{', '.join([*names, CYCLE])}"
        )
    lib.rf_kernel_select(-1 if name == CYCLE else names.index(name))
    _environment_error = None


def self_test() -> None:
    """Compares the chosen kernel (all, if they cycle) with the reference, in 3 to 5 ms each.

    RaidfsError if one differs; UsageError if RAIDFS_KERNEL names none of this machine's.
    """
    _require_environment()
    selected = lib.rf_kernel_selected()
    indexes = range(lib.rf_kernel_count()) if selected < 0 else [selected]
    for index in indexes:
        _compare(index)


def _compare(index: int, flaw: int = 0) -> None:
    """Compares one kernel with the reference; `flaw` 1..4 puts one fault in, to test the test."""
    differs = lib.rf_self_test(index, flaw)
    if differs != ffi.NULL:
        names, what = kernel_names(), ffi.string(differs).decode()
        raise RaidfsError(
            f"the kernel {names[index]!r} computes wrong {what} on this machine, so nothing was "
            f"read or written; set RAIDFS_KERNEL to another one ({', '.join(names)})"
        )


def _require_environment() -> None:
    if _environment_error is not None:
        raise _environment_error


# ---- checksums ----


def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC-32C of contiguous bytes, continued from `value`."""
    view = ffi.from_buffer(data)
    return int(lib.rf_crc32c(value, view, len(view)))


def crc32c_cells(cells: Bytes) -> Checksums:
    """(n, cell_bytes) uint8, C-contiguous -> (n,) uint32."""
    assert cells.ndim == 2 and cells.dtype == np.uint8 and cells.flags.c_contiguous
    count, cell_bytes = cells.shape
    crcs = np.empty(count, np.uint32)
    lib.rf_crc32c_cells(_pointer("void *", cells), count, cell_bytes, _pointer("uint32_t *", crcs))
    return crcs


# ---- products ----


def multiply(coefficients: Bytes, sources: Bytes, outputs: Bytes) -> None:
    """outputs = coefficients x sources over GF(2^8): encodes, decodes and rebuilds.

    coefficients (n_out, n_in), sources (n_in, nbytes), outputs (n_out, nbytes), all uint8;
    n_in <= 32, n_out <= 16. Rows of sources and outputs may lie anywhere, the bytes of a row are
    contiguous. outputs is overwritten, and must not overlap sources.
    """
    n_out, n_in = coefficients.shape
    assert coefficients.dtype == np.uint8 and n_in <= SOURCES_MAX and n_out <= OUTPUTS_MAX
    nbytes = outputs.shape[1]
    assert outputs.shape == (n_out, nbytes) and sources.shape == (n_in, nbytes)
    assert outputs.flags.writeable and not np.may_share_memory(sources, outputs)
    coefficients = np.ascontiguousarray(coefficients)
    source_addresses, output_addresses = _row_addresses(sources), _row_addresses(outputs)
    lib.rf_multiply(
        _pointer("uint8_t *", coefficients),
        n_out,
        n_in,
        _pointer("uint8_t **", source_addresses),
        _pointer("uint8_t **", output_addresses),
        nbytes,
    )


def encode(matrix: Bytes, data_addresses: Addresses, parity: Bytes, cell_bytes: int) -> Checksums:
    """Fills the parity of a burst; returns the CRC-32C of all its cells, (k + m, rows) uint32.

    matrix (m, k) uint8: the parity rows of the code. data_addresses (k, rows) uint64: where in
    memory the data cells are; 0 is an absent cell, which is zeros. parity (m, rows, cell_bytes)
    uint8, C-contiguous. cell_bytes is a multiple of 4096. The caller keeps the data cells alive and
    unchanged.
    """
    m, k = matrix.shape
    rows = data_addresses.shape[1]
    assert matrix.dtype == np.uint8 and 1 <= k <= SOURCES_MAX and m <= OUTPUTS_MAX
    assert data_addresses.dtype == np.uint64 and data_addresses.shape == (k, rows)
    assert parity.dtype == np.uint8 and parity.shape == (m, rows, cell_bytes)
    assert parity.flags.c_contiguous and parity.flags.writeable
    matrix = np.ascontiguousarray(matrix)
    data_addresses = np.ascontiguousarray(data_addresses)
    crcs = np.empty((k + m, rows), np.uint32)
    lib.rf_encode(
        _pointer("uint8_t *", matrix),
        m,
        k,
        _pointer("uint64_t *", data_addresses),
        _pointer("uint8_t *", parity),
        rows,
        cell_bytes,
        _pointer("uint32_t *", crcs),
    )
    return crcs


def encode_row(matrix: Bytes, data: list[int], cell_bytes: int) -> tuple[Bytes, Checksums]:
    """As `encode`, of one row. data: the addresses of its k data cells, 0 for an absent one.

    Returns the parity, uint8 (m, cell_bytes), aligned, and uint32 (1, k + m).
    """
    m, k = matrix.shape
    assert matrix.dtype == np.uint8 and 1 <= k <= SOURCES_MAX and m <= OUTPUTS_MAX
    assert len(data) == k and matrix.flags.c_contiguous
    parity = aligned((m, cell_bytes))
    crcs = np.empty((1, k + m), np.uint32)
    lib.rf_encode(
        ffi.from_buffer("uint8_t[]", matrix),
        m,
        k,
        ffi.new("uint64_t[]", data),
        ffi.from_buffer("uint8_t[]", parity),
        1,
        cell_bytes,
        ffi.from_buffer("uint32_t[]", crcs),
    )
    return parity, crcs


def address_of(buffer: Bytes) -> int:
    """Where the bytes of a contiguous array lie."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def write_cells(fd: int, offset_bytes: int, addresses: Addresses, cell_bytes: int) -> None:
    """Writes cells from their addresses in memory to contiguous bytes of a file. OSError."""
    assert addresses.dtype == np.uint64 and addresses.ndim == 1 and addresses.all()
    addresses = np.ascontiguousarray(addresses)
    error = -lib.rf_write_cells(
        fd, offset_bytes, _pointer("uint64_t *", addresses), len(addresses), cell_bytes
    )
    if error:
        raise OSError(error, os.strerror(error))


def aligned(shape: tuple[int, ...]) -> Bytes:
    """A C-contiguous array for cells to be read into or written from, also past the page cache:
    its address is a multiple of ALIGNMENT_BYTES. Its content is undefined."""
    nbytes = math.prod(shape)
    room = np.empty(nbytes + ALIGNMENT_BYTES - 1, np.uint8)
    start = -address_of(room) % ALIGNMENT_BYTES
    return room[start : start + nbytes].reshape(shape)


def memory(address: int, nbytes: int) -> memoryview:
    """The bytes that lie there. The caller knows that they do, and for how long."""
    return memoryview(ffi.buffer(ffi.cast("uint8_t *", address), nbytes))


def _pointer(ctype: str, array: npt.NDArray[Any]) -> Any:
    return ffi.cast(ctype, array.ctypes.data)


def _row_addresses(array: Bytes) -> Addresses:
    """The address of each row of a 2-D array whose rows are contiguous."""
    assert array.ndim == 2 and array.dtype == np.uint8
    assert array.strides[1] == 1 or array.shape[1] <= 1 or array.size == 0
    offsets = np.arange(array.shape[0], dtype=np.int64) * array.strides[0]
    return (offsets + array.ctypes.data).astype(np.uint64)


# ---- the field, in small ----


def _powers() -> tuple[Bytes, npt.NDArray[np.int64]]:
    """exp[i] = 2^i for i < 510 (so that two logarithms can be added), log[a] for a > 0."""
    exp = np.zeros(510, np.uint8)
    log = np.zeros(256, np.int64)
    value = 1
    for i in range(255):
        exp[i] = exp[i + 255] = value
        log[value] = i
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return exp, log


_EXP, _LOG = _powers()


@overload
def gf_multiply(a: int, b: int) -> int: ...
@overload
def gf_multiply(a: Bytes, b: Bytes | int) -> Bytes: ...
@overload
def gf_multiply(a: int, b: Bytes) -> Bytes: ...
def gf_multiply(a: Bytes | int, b: Bytes | int) -> Bytes | int:
    """The product, by logarithms; element by element (with broadcasting) for uint8 arrays."""
    product = np.where((np.equal(a, 0) | np.equal(b, 0)), np.uint8(0), _EXP[_LOG[a] + _LOG[b]])
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return product
    return int(product)


def gf_inverse(a: int) -> int:
    """1 / a; a must not be 0."""
    assert 0 < a < 256, "0 has no inverse"
    return int(_EXP[255 - _LOG[a]])


def gf_matrix_multiply(a: Bytes, b: Bytes) -> Bytes:
    """The product of two small matrices, (n, l) x (l, m) -> (n, m)."""
    assert a.shape[1] == b.shape[0]
    products = gf_multiply(a[:, :, np.newaxis], b[np.newaxis, :, :])
    product: Bytes = np.bitwise_xor.reduce(products, axis=1)
    return product


def gf_invert_matrix(matrix: Bytes) -> Bytes | None:
    """The inverse of a square matrix by Gauss and Jordan, or None if it is singular."""
    n = len(matrix)
    assert matrix.shape == (n, n) and matrix.dtype == np.uint8
    work = np.concatenate([matrix, np.eye(n, dtype=np.uint8)], axis=1)
    for column in range(n):
        candidates = np.flatnonzero(work[column:, column])
        if not len(candidates):
            return None
        pivot = column + int(candidates[0])
        work[[column, pivot]] = work[[pivot, column]]
        work[column] = gf_multiply(work[column], gf_inverse(int(work[column, column])))
        factors = work[:, column].copy()
        factors[column] = 0
        work ^= gf_multiply(factors[:, np.newaxis], work[np.newaxis, column])
    return np.ascontiguousarray(work[:, n:])


# ---- at import ----

_environment_error: UsageError | None = None
if "RAIDFS_KERNEL" in os.environ:
    try:
        kernel_select(os.environ["RAIDFS_KERNEL"])
    except UsageError as error:
        _environment_error = error  # an import is no place to complain: the self-test of a mount is
