#!/usr/bin/env python3
"""How fast the erasure kernels are, in GB/s of source data, beside what the memory can do.

Three figures for each kernel, code (k data + m parity) and size of a source buffer:
  product   parity alone (native.multiply)
  encode    parity and the CRC-32C of all data and parity cells, by rows of 4 KiB cells
  rebuild   min(m, 2) lost data cells from k others (the same product, other coefficients)
and for each size the limits of the same run: `read` (all bytes loaded once by the kernel's widest
loads) and `memcpy`. All sources together have k times the size, so a code leaves a cache earlier
than the limits of its column do.

Each figure is the best of several rounds of CPU time of one thread, without the time of an empty
call; what takes less than a microsecond is understated. Machines are shared: trust ratios within
one run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raidfs import native

CELL_BYTES = 4096
CODES = "4+1,4+2,8+2,10+4"
SIZES = "16K,256K,4M,32M"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

ffi, lib = native.ffi, native.lib


def parse_size(text: str) -> int:
    unit = UNITS.get(text[-1:].upper(), 0)
    nbytes = int(text[:-1]) * unit if unit else int(text)
    if nbytes < CELL_BYTES or nbytes % CELL_BYTES:
        raise ValueError(f"{text}: a size is a multiple of {CELL_BYTES} bytes")
    return nbytes


def parse_code(text: str) -> tuple[int, int]:
    k, m = (int(part) for part in text.split("+"))
    if not (1 <= k <= native.SOURCES_MAX and 1 <= m <= native.OUTPUTS_MAX):
        raise ValueError(f"{text}: k is 1..{native.SOURCES_MAX}, m is 1..{native.OUTPUTS_MAX}")
    return k, m


def size_name(nbytes: int) -> str:
    for unit, factor in reversed(UNITS.items()):
        if nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


def best_rate(
    call: Callable[[], object], empty: Callable[[], object], nbytes: int, ms: int
) -> float:
    """GB/s of the best of five rounds of `ms` / 5 each; `empty` is the call without any bytes."""

    def seconds(function: Callable[[], object], calls: int) -> float:
        start = time.thread_time()
        for _ in range(calls):
            function()
        return (time.thread_time() - start) / calls

    once = max(seconds(call, 1), 1e-7)
    calls = max(1, int(ms / 5e3 / once))
    overhead = min(seconds(empty, 200) for _ in range(5))
    best = min(seconds(call, calls) for _ in range(5))
    return nbytes / max(best - overhead, 1e-9) / 1e9


class Memory:
    """Buffers for the largest case, touched once, and addresses within them."""

    def __init__(self, sources_bytes: int, outputs_bytes: int) -> None:
        self.sources = np.random.default_rng(1).integers(0, 256, sources_bytes, dtype=np.uint8)
        self.outputs = np.zeros(outputs_bytes, np.uint8)
        self.libc = ctypes.CDLL(None)

    def rows(self, array: native.Bytes, count: int, nbytes: int) -> native.Addresses:
        return array.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(nbytes)

    def read(self, nbytes: int, ms: int) -> float:
        data = ffi.cast("void *", self.sources.ctypes.data)
        return best_rate(
            lambda: lib.rf_read_all(data, nbytes), lambda: lib.rf_read_all(data, 0), nbytes, ms
        )

    def memcpy(self, nbytes: int, ms: int) -> float:
        to, source = (
            ctypes.c_void_p(self.outputs.ctypes.data),
            ctypes.c_void_p(self.sources.ctypes.data),
        )
        move, size, zero = self.libc.memcpy, ctypes.c_size_t(nbytes), ctypes.c_size_t(0)
        return best_rate(lambda: move(to, source, size), lambda: move(to, source, zero), nbytes, ms)

    def product(self, matrix: native.Bytes, nbytes: int, ms: int) -> float:
        n_out, n_in = matrix.shape
        sources = self.rows(self.sources, n_in, nbytes)
        outputs = self.rows(self.outputs, n_out, nbytes)
        coefficients = ffi.from_buffer("uint8_t[]", matrix)
        to = ffi.cast("uint8_t **", outputs.ctypes.data)
        source = ffi.cast("uint8_t **", sources.ctypes.data)

        def call(size: int = nbytes) -> None:
            lib.rf_multiply(coefficients, n_out, n_in, source, to, size)

        return best_rate(call, lambda: call(0), n_in * nbytes, ms)

    def encode(self, matrix: native.Bytes, nbytes: int, ms: int) -> float:
        (m, k), rows = matrix.shape, nbytes // CELL_BYTES
        addresses = self.rows(self.sources, k * rows, CELL_BYTES)
        crcs = np.empty((k + m) * rows, np.uint32)
        coefficients = ffi.from_buffer("uint8_t[]", matrix)
        data = ffi.cast("uint64_t *", addresses.ctypes.data)
        parity = ffi.cast("uint8_t *", self.outputs.ctypes.data)
        to = ffi.cast("uint32_t *", crcs.ctypes.data)

        def call(count: int = rows) -> None:
            lib.rf_encode(coefficients, m, k, data, parity, count, CELL_BYTES, to)

        return best_rate(call, lambda: call(0), k * nbytes, ms)


def parity_matrix(k: int, m: int) -> native.Bytes:
    """A first row of ones and powers below it: the work of any code, if not the best of them."""
    rows = np.ones((m, k), np.uint8)
    for row in range(1, m):
        for column in range(1, k):
            power = native.gf_multiply(int(rows[row - 1, 1]), 2) if column == 1 else 0
            rows[row, column] = power or native.gf_multiply(
                int(rows[row, column - 1]), int(rows[row, 1])
            )
    return rows


def rebuild_matrix(parity: native.Bytes) -> native.Bytes:
    """Coefficients of the first min(m, 2) data cells by the other data and the first parities."""
    m, k = parity.shape
    lost = min(m, 2, k)
    generator = np.concatenate([np.eye(k, dtype=np.uint8)[lost:], parity[:lost]])
    inverse = native.gf_invert_matrix(generator)
    assert inverse is not None
    return np.ascontiguousarray(inverse[:lost])


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def measure(
    kernels: list[str], codes: list[tuple[int, int]], sizes: list[int], ms: int
) -> dict[str, object]:
    memory = Memory(max(k for k, _ in codes) * max(sizes), max(m for _, m in codes) * max(sizes))
    limits, results = [], []
    for kernel in kernels:
        native.kernel_select(kernel)
        native.self_test()
        for nbytes in sizes:
            if kernel == kernels[-1]:  # the widest loads say what memory can do
                read, memcpy = memory.read(nbytes, ms), memory.memcpy(nbytes, ms)
                limits.append({"bytes": nbytes, "read": read, "memcpy": memcpy})
            for k, m in codes:
                parity = parity_matrix(k, m)
                results.append(
                    {
                        "kernel": kernel,
                        "code": f"{k}+{m}",
                        "bytes": nbytes,
                        "product": memory.product(parity, nbytes, ms),
                        "encode": memory.encode(parity, nbytes, ms),
                        "rebuild": memory.product(rebuild_matrix(parity), nbytes, ms),
                    }
                )
    return {"version": 1, "unit": "GB/s", "cpu": cpu_model(), "limits": limits, "results": results}


def print_table(report: dict[str, list[dict[str, float]]], sizes: list[int]) -> None:
    print(f"{report['cpu']}; GB/s of source data, one thread; product / encode / rebuild")
    names = [size_name(nbytes) for nbytes in sizes]
    print(f"{'kernel':8}{'code':7}" + "".join(f"{name:>22}" for name in names))
    for limit in ("read", "memcpy"):
        cells = [f"{row[limit]:.1f}" for row in report["limits"]]
        print(f"{limit:15}" + "".join(f"{cell:>22}" for cell in cells))
    lines: dict[tuple[object, object], list[str]] = {}
    for row in report["results"]:
        text = f"{row['product']:.1f} /{row['encode']:5.1f} /{row['rebuild']:6.1f}"
        lines.setdefault((row["kernel"], row["code"]), []).append(text)
    for (kernel, code), cells in lines.items():
        print(f"{kernel:8}{code:7}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", help="comma-separated names (default: all of this machine)")
    parser.add_argument(
        "--codes", default=CODES, help="k+m, comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes",
        default=SIZES,
        help="bytes of each source, comma-separated (default: %(default)s)",
    )
    parser.add_argument(
        "--ms", type=int, default=100, help="CPU time per figure (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    options = parser.parse_args()
    try:
        kernels = options.kernels.split(",") if options.kernels else native.kernel_names()
        for kernel in kernels:
            native.kernel_select(kernel)
        codes = [parse_code(text) for text in options.codes.split(",")]
        sizes = [parse_size(text) for text in options.sizes.split(",")]
        report = measure(kernels, codes, sizes, max(1, options.ms))
    except (ValueError, native.UsageError) as error:
        print(f"kernel_bench: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print_table(report, sizes)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main())
