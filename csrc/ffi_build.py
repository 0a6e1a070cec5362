"""Builds raidfs/_native from csrc/*.c by cffi in API mode.

Each public header of csrc is plain C declarations that cffi can parse: no macros besides include
guards and `#include` lines, which are dropped here. So the headers are the only place where a
signature is written, and a mismatch is a compile error.
"""

import os
from pathlib import Path

from cffi import FFI

here = Path(__file__).resolve().parent
PUBLIC_HEADERS = [
    "erasure.h",
    "pages.h",
    "cells.h",
    "steps.h",
    "wal.h",
    "leaf_runs.h",
    "engine.h",
    "mount.h",
    "gate.h",
    "known.h",
    "columns.h",
    "lane.h",
]


def declarations(header: str) -> str:
    """The declarations of one public header: its text without preprocessor lines."""
    text = (here / header).read_text()
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


ffibuilder = FFI()
for header in PUBLIC_HEADERS:
    ffibuilder.cdef(declarations(header))
ffibuilder.set_source(
    "raidfs._native",
    "".join(f'#include "{header}"\n' for header in PUBLIC_HEADERS),
    sources=[os.path.relpath(path, here.parent) for path in sorted(here.glob("*.c"))],
    include_dirs=["csrc"],
    depends=[os.path.relpath(path, here.parent) for path in sorted(here.glob("*.h"))],
    # Python's own flags define NDEBUG; our asserts stay on.
    extra_compile_args=["-O3", "-g", "-std=gnu11", "-Wall", "-Wextra", "-UNDEBUG"],
    libraries=["pthread"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
