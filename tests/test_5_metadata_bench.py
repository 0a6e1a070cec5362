"""The benchmark of names, attributes and small syncs runs, and tells each figure."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "metadata_bench.py"


def test_it_runs():
    command = [sys.executable, str(TOOL), "--rounds", "1", "--count", "30", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    operations = told["operations"]
    assert {"write 4 KiB, fsync", "new file of 4096 bytes", "lookup, cold", "unlink"} <= set(
        operations
    )
    assert all(us > 0 for parts in operations.values() for us in parts.values())
