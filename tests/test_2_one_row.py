"""Rows written one at a time, for small fsyncs: as bursts of any size are written."""

import os

import numpy as np
import pytest
import trio

from raidfs import native
from raidfs.engine import Engine
from raidfs.raid.array import Array, MemberState, ZoneMap
from raidfs.raid.code import code_for, present
from raidfs.raid.directory import lay_out_directory
from raidfs.raid.one_row import encode_row, write_row

CELL = 4096
ROWS = 8
LEVELS = [("0", 3), ("1", 3), ("2", 7), ("3", 4), ("5", 5), ("6", 6), ("10", 4), ("rs:3+3", 6)]


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


def arrays(tmp_path, width, engine):
    members, events = {}, []
    for number in range(width):
        path = tmp_path / str(number)
        path.mkdir()
        members[number] = lay_out_directory(str(path))
        members[number].column_create(1, number, 0, ROWS * CELL)
    states = {n: MemberState(m, "online") for n, m in members.items()}
    return Array(states, CELL, lambda *event: events.append(event), engine=engine), members, events


def written(members, zone, row):
    """(width, CELL) what lies in a row."""
    found = np.empty((zone.code.width, CELL), np.uint8)
    for column, (member, slot) in enumerate(zone.columns):
        members[member].column_read(1, column, slot, row * CELL, found[column].data)
    return found


@pytest.mark.parametrize(("level", "width"), LEVELS)
def test_as_a_burst_is_written(tmp_path, engine, level, width):
    array, members, events = arrays(tmp_path, width, engine)
    code = code_for(level, width)
    zone = ZoneMap(1, code, ROWS, tuple((n, 0) for n in range(width)))
    rng = np.random.default_rng(1)
    for row, pages in enumerate(range(1, code.k + 1)):
        cells = rng.integers(0, 256, (pages, CELL), dtype=np.uint8)
        addresses = [native.address_of(cell) for cell in cells]
        where, crcs, kept = encode_row(zone, addresses, CELL)
        data = np.zeros((code.k, 1), np.uint64)
        data[:pages, 0] = addresses
        parity = np.empty((code.m, 1, CELL), np.uint8)
        expected = native.encode(code.parity, data, parity, CELL)
        assert np.array_equal(crcs, expected.T)
        assert [w != 0 for w in where] == present(code, pages)[:, 0].tolist()
        assert trio.run(write_row, array, zone, row, where) == set()
        del kept
        found = written(members, zone, row)
        assert np.array_equal(found[:pages], cells)
        assert not found[pages : code.k].any()
        assert np.array_equal(found[code.k :], parity[:, 0])
    assert not events
    assert array.statistics().cells_written == sum(p + code.m for p in range(1, code.k + 1))
    array.close()


def test_a_member_that_fails_is_named(tmp_path, engine):
    array, members, events = arrays(tmp_path, 5, engine)
    zone = ZoneMap(1, code_for("5", 5), ROWS, tuple((n, 0) for n in range(5)))
    array.fail(3, "for the test")
    os.unlink(tmp_path / "1" / "zones" / "01" / "00000001.1")
    cells = np.random.default_rng(1).integers(0, 256, (4, CELL), dtype=np.uint8)
    where, _, kept = encode_row(zone, [native.address_of(cell) for cell in cells], CELL)
    failed = trio.run(write_row, array, zone, 0, where)
    del kept
    assert failed == {1}
    assert [(name, member) for name, member, _ in events if name == "WriteError"] == [
        ("WriteError", 1)
    ]
    assert array.states[1].write_errors == 1 and "00000001.1" in array.states[1].write_error
    out = np.empty(CELL, np.uint8)
    members[2].column_read(1, 2, 0, 0, out.data)
    assert np.array_equal(out, cells[2])
    array.close()
