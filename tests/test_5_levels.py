"""Each level keeps what it promises, on real directories; tools/levels.py prints it as a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "levels.py"
sys.path.insert(0, str(TOOL.parent))

import levels  # noqa: E402


def verify(name, most):
    outcome = levels.examine(name, most)
    assert outcome.good, outcome
    assert outcome.tried == min(most, outcome.combinations)
    return outcome


@pytest.mark.parametrize(
    ("name", "share", "survives"), [("0/2", 1, 0), ("1/2", 1 / 2, 1), ("5/3", 2 / 3, 1)]
)
def test_levels_quickly(name, share, survives):
    outcome = verify(name, 2)
    assert (outcome.share, outcome.survives) == (share, survives)


@pytest.mark.slow
@pytest.mark.parametrize("name", levels.LEVELS)
def test_levels(name):
    outcome = verify(name, 20)
    assert outcome.survives or name == "0/2"
    if name.startswith(("0", "1/", "5", "6", "rs")):  # these survive not one more, ever
        assert outcome.beyond_equal == 0


@pytest.mark.slow
def test_the_tool_for_people_and_for_programs():
    run = [sys.executable, str(TOOL), "1/2", "5/3"]
    text = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    heads, *lines = text.splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["1", "2", "1+1", "50%", "1"],
        ["5", "3", "2+1", "67%", "1"],
    ]
    assert all(line.index("of") > heads.index("read back") for line in lines), "not aligned"
    run.append("--json")
    told = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert told["version"] == 1
    assert [entry["level"] for entry in told["levels"]] == ["1", "5"]
    assert all(entry["good"] for entry in told["levels"])
