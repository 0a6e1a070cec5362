"""Nothing is held in memory that grows with the volume: the benchmark of scale in small.

Counts and memory are asserted, clock times never: those are for the benchmark itself.
"""

import sys
from pathlib import Path

import pytest

from raidfs.fs.inode import CACHED_MAX

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import scale_bench

FILES_MAX = CACHED_MAX + 5000
OPERATIONS = 200
GROWTH_MIB_MAX = 64  # from 10^3 files; caches that are not full yet


@pytest.mark.slow
@pytest.mark.mount
def test_memory_and_counts_while_a_volume_grows(tmp_path):
    sizes = scale_bench.run(FILES_MAX, operations=OPERATIONS, writes=1500, parent=tmp_path)
    assert [told["files"] for told in sizes] == [1000, 10_000, FILES_MAX]
    for number, told in enumerate(sizes):
        directories = 3 + -(-told["files"] // (2 * scale_bench.TREE_FILES))  # and the sparse file
        made = (number + 1) * OPERATIONS
        # Of those made just before kill -9, at least the half that was synced is there.
        least = told["files"] + directories + made + number * OPERATIONS // 2
        assert least <= told["entries"] <= least + number * OPERATIONS // 2
        assert told["referenced"] == told["entries"]  # not counting the root
        pinned = directories  # listed, so their atime waits for the next cut
        assert told["inodes_cached"] <= CACHED_MAX + pinned
        for name in ("mounted_mib", "walked_mib", "terabyte_mib", "settled_mib"):
            assert told[name] < scale_bench.MEMORY_MIB_MAX, name
    for name in ("mounted_mib", "walked_mib", "settled_mib"):
        assert sizes[-1][name] - sizes[0][name] < GROWTH_MIB_MAX, name
