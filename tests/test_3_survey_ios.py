"""What requests cost, counted on members at each level; tools/survey_ios.py prints a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "survey_ios.py"
sys.path.insert(0, str(TOOL.parent))

import survey_ios  # noqa: E402

from raidfs.raid.code import LEVELS, code_for  # noqa: E402


def rebuild_cost(one):
    """Cells that rebuild one of data, on average over the data columns: of a copy 1, else k; of
    level 2 those that the lightest of its parities needs."""
    if one.level in ("1", "10"):
        return 1
    if one.level != "2":
        return one.k
    code = code_for(one.level, one.members)
    return min(
        sum(int(x) for x in row) for row in code.parity if row[: code.k].any()
    )  # each data cell is one of three in some parity


def verify(name):
    one = survey_ios.examine(name)
    k, m = one.k, one.m
    # A page is read by one I/O of one member, and nothing is written.
    assert (one.small_read.cells_read, one.small_read.reads, one.small_read.writes) == (1, 1, 0)
    # As many as a row has: one from each data column.
    assert (one.large_read.cells_read, one.large_read.reads, one.large_read.writes) == (k, k, 0)
    # A full row written: each cell of it once, and nothing read.
    assert (one.large_write.cells_written, one.large_write.writes) == (k + m, k + m)
    assert one.large_write.reads == 0
    # A page synced alone: itself and the parity; nothing read.
    assert (one.small_write.cells_written, one.small_write.writes) == (1 + m, 1 + m)
    assert one.small_write.reads == 0
    # Pages synced together: their part of full rows, though they lie anywhere in the file.
    assert one.gathered_write.cells_written == (k + m) / k and one.gathered_write.reads == 0
    # Each sync is one write to the log of each member, for one page and for many.
    assert one.small_write.metadata_writes == one.large_write.metadata_writes == 1
    assert one.gathered_write.metadata_writes == 1 / one.gathered_write.requests
    assert one.storage == pytest.approx(k / (k + m))
    if one.degraded_read is None:
        assert m == 0
    else:
        assert one.degraded_read.cells_read == one.degraded_read.reads == rebuild_cost(one)
        assert one.degraded_read.writes == 0
    return one


def throughput(one):
    """(small read, large read, large write), as the survey's table 3 has them."""
    return (
        one.per_member(one.small_read, 1),
        one.per_member(one.large_read, one.k),
        one.k / one.large_write.ios,
    )


def test_level_5_quickly():
    """Reads and large writes are the survey's; small writes don't read."""
    one = verify("5/3")
    said = survey_ios.survey("5", 3, 2)
    assert throughput(one) == pytest.approx((said.small_read, said.large_read, said.large_write))
    assert (one.small_write.ios, said.ios_small_write) == (2, 3)  # with G = 3, rows are read whole


@pytest.mark.slow
@pytest.mark.parametrize("name", survey_ios.LEVELS)
def test_each_level(name):
    one = verify(name)
    said = survey_ios.survey(one.level, one.members, one.k)
    small_read, large_read, large_write = throughput(one)
    assert large_write == pytest.approx(said.large_write)
    assert one.storage == pytest.approx(said.storage)
    # Members that keep nothing but parity serve no reads.
    reads = one.k / one.members if one.level in ("2", "3", "4") else 1
    assert small_read == large_read == pytest.approx(reads)
    if said.printed:
        assert large_read == pytest.approx(said.large_read)
    assert 1 / one.gathered_write.ios >= said.small_write - 1e-9


def test_the_survey_s_figures():
    """Table 3, and the I/Os of section 3.2, quoted."""
    assert survey_ios.survey("5", 16, 15).ios_small_write == 4
    assert survey_ios.survey("6", 16, 14).ios_small_write == 6
    assert survey_ios.survey("1", 2, 1).ios_small_write == 2
    assert survey_ios.survey("3", 16, 15).ios_small_write == 16
    assert survey_ios.survey("5", 3, 2).small_write == 1 / 3  # max(1/G, 1/4)
    assert survey_ios.survey("6", 5, 3).small_write == 1 / 5  # max(1/G, 1/6)
    assert survey_ios.survey("6", 16, 14).large_write == 14 / 16  # (G-2)/G


def test_all_levels_are_in_the_table():
    levels = {name.rpartition("/")[0] for name in survey_ios.LEVELS}
    assert {level for level in LEVELS if level != "rs:K+M"} < levels
    assert any(level.startswith("rs:") for level in levels)


@pytest.mark.slow
def test_the_tool_prints_a_table_and_json():
    def run(*words):
        done = subprocess.run(
            [sys.executable, TOOL, *words], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    text = run("1/2", "5/3")
    assert "I/Os per request" in text and "Where raidfs differs" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["5", "3", "1", "1", "2", "3", "2", "1.5", "2", "2", "3", "3"] in [x[:12] for x in lines]
    told = json.loads(run("--json", "1/2"))
    assert told["version"] == 1 and told["levels"][0]["large_write"]["writes"] == 2
