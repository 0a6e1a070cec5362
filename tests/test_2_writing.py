"""Rows written by an engine: the same bytes, faults and counts as by the members' own calls."""

import errno
import os

import numpy as np
import pytest
from members_conformance import CELL, SLOTS, ZONE_BYTES, addresses_of, cells, label_of
from members_in_memory import MemoryMember

from raidfs import native
from raidfs.engine import Engine
from raidfs.raid.array import Array, MemberState, ZoneMap
from raidfs.raid.code import burst_cells, burst_layout, code_for, present
from raidfs.raid.directory import lay_out_directory
from raidfs.raid.places import construct
from raidfs.raid.raw import Geometry
from raidfs.raid.writing import lends_all, write_rows

ZONE = 5
PARAMETERS = label_of().parameters


def directory(path, direct):
    path.mkdir(parents=True)
    lay_out_directory(str(path)).close()
    member = construct(str(path), read_only=False, lock=True, direct=direct)
    member.adopt(label_of())
    return member


def image(path, direct):
    path.parent.mkdir(parents=True, exist_ok=True)
    geometry = Geometry.of(PARAMETERS)
    path.write_bytes(b"")
    os.truncate(path, geometry.data_offset_bytes + SLOTS * ZONE_BYTES)
    member = construct(str(path), read_only=False, lock=True, direct=direct)
    member.lay_out(geometry, SLOTS)
    return member


class Bench:
    """One zone over real members, and an engine."""

    def __init__(self, members, code, engine):
        self.members = members
        self.states = {10 + i: MemberState(m, "online") for i, m in enumerate(members)}
        self.events = []
        self.array = Array(
            self.states, CELL, lambda *event: self.events.append(event), engine=engine
        )
        columns = tuple((10 + i, (3 * i) % SLOTS) for i in range(code.width))
        self.zone = ZoneMap(ZONE, code, 20, columns)
        assert self.array.create_zone(self.zone) == {}

    def close(self):
        self.array.close()
        for member in self.members:
            member.close()

    def columns(self):
        found = []
        for column, (_, slot) in enumerate(self.zone.columns):
            out = native.aligned((20, CELL))
            self.members[column].column_read(ZONE, column, slot, 0, out.data.cast("B"))
            found.append(out)
        return np.array(found)


def rows_of(code, pages, seed=0):
    """What a burst of so many random pages is: (rows, addresses, parity, present), kept content."""
    rows, content = burst_layout(code, pages), cells(pages, seed)
    data = np.zeros((code.k, rows), np.uint64)
    columns, heights = burst_cells(code, pages)
    data[columns, heights] = addresses_of(content)
    parity = native.aligned((code.m, rows, CELL))
    native.encode(code.parity, data, parity, CELL)
    return rows, data, parity, present(code, pages), content


@pytest.fixture(params=["threads", "ring", "ring_only"])
def engine(request):
    made = Engine(request.param)
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["cached", "direct"])
def direct(request):
    return request.param


CODES = [code_for("0", 3), code_for("1", 3), code_for("5", 4), code_for("rs:2+3", 5)]


@pytest.mark.trio
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.text)
@pytest.mark.parametrize("kind", [directory, image])
async def test_the_same_bytes_as_by_calls(tmp_path, code, kind, direct, engine):
    benches = []
    for name in ("calls", "engine"):
        members = [kind(tmp_path / name / str(i), direct) for i in range(code.width)]
        benches.append(Bench(members, code, engine))
    by_calls, by_engine = benches
    row = 0
    everything = np.ones(code.width, dtype=np.bool_)
    for pages in (1, 3 * code.k + 1, 5 * code.k):
        rows, data, parity, here, _content = rows_of(code, pages, pages)
        assert by_calls.array.write_burst(by_calls.zone, row, rows, data, parity, here) == set()
        failed = await write_rows(
            by_engine.array, by_engine.zone, row, data, parity, here, everything
        )
        assert failed == set()
        row += rows
    assert lends_all(by_engine.array, by_engine.zone)
    assert (by_calls.columns() == by_engine.columns()).all()
    assert by_calls.array.statistics() == by_engine.array.statistics()
    assert by_engine.array.statistics().cells_written > 0
    for bench in benches:
        assert not bench.events
        bench.close()


@pytest.mark.trio
async def test_faults_are_told_once_each_and_hurt_no_other_column(tmp_path, engine):
    """One member has lost its column's file, one had it deleted while it is open, one can't be
    written, one is gone since before."""
    code = code_for("rs:3+3", 6)
    members = [directory(tmp_path / str(i), False) for i in range(6)]
    bench = Bench(members, code, engine)
    paths = [tmp_path / str(i) / f"zones/05/00000005.{i}" for i in range(6)]
    paths[0].unlink()
    with members[1].column_borrow(ZONE, 1, 0):
        paths[1].unlink()
    members[2]._files._opener = lambda key: os.open(paths[2], os.O_RDONLY | os.O_CLOEXEC)
    bench.states[13].state, bench.states[13].member = "failed", None
    rows, data, parity, here, _content = rows_of(code, 12)
    synced = np.ones(6, dtype=np.bool_)
    failed = await write_rows(bench.array, bench.zone, 2, data, parity, here, synced)
    assert failed == {10, 11, 12}
    assert sorted((name, member) for name, member, _ in bench.events) == [
        ("WriteError", 10),
        ("WriteError", 11),
        ("WriteError", 12),
    ]
    texts = {member: text for _, member, text in bench.events}
    assert "opening 00000005.0 failed: no such file" in texts[10]
    assert "syncing 00000005.1 failed: no such file" in texts[11]
    assert f"writing 00000005.2 failed: {os.strerror(errno.EBADF).lower()}" in texts[12]
    for member_id in (10, 11, 12):
        assert bench.states[member_id].write_errors == 1
        assert bench.states[member_id].write_error == texts[member_id]
        assert str(members[member_id - 10].path) in texts[member_id]
    assert bench.array.statistics().cells_written == 2 * rows
    for column in (4, 5):
        found = np.fromfile(paths[column], np.uint8).reshape(-1, CELL)
        assert (found[2 : 2 + rows] == parity[column - 3]).all()
    bench.close()


@pytest.mark.trio
async def test_only_what_is_asked_for_is_synced_or_opened(tmp_path, engine):
    code = code_for("5", 4)
    members = [directory(tmp_path / str(i), False) for i in range(4)]
    bench = Bench(members, code, engine)
    ran = []
    real = engine.run

    async def run(batch):
        ran.extend(
            (row[0], os.path.basename(os.readlink(f"/proc/self/fd/{row[1]}")), row[6])
            for row in batch._rows
        )
        await real(batch)

    engine.run = run
    _, data, parity, here, _content = rows_of(code, 1)
    synced = np.array([False, True, False, True])
    await write_rows(bench.array, bench.zone, 0, data, parity, here, synced)
    write, sync = 1, 2
    assert ran == [
        (write, "00000005.0", 1),
        (sync, "00000005.1", 2),
        (write, "00000005.3", 3),
        (sync, "00000005.3", 3),
    ]
    assert not members[2]._files._open
    bench.close()


def test_members_that_lend_nothing_are_left_to_calls(engine):
    code = code_for("1", 2)
    members = [MemoryMember(i) for i in range(2)]
    bench = Bench(members, code, engine)
    assert not lends_all(bench.array, bench.zone)
    bench.states[10].state, bench.states[10].member = "missing", None
    assert not lends_all(bench.array, bench.zone)
    bench.close()
