"""Columns made anew by the quick way and by the slow one: the same bytes, whatever the number of
rows, where a step ends, what is damaged, and whether files are in memory."""

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_2_array import CELL, Bench

from raidfs.errors import MemberError
from raidfs.raid import regenerate
from raidfs.raid.code import code_for
from raidfs.raid.directory import lay_out_directory
from raidfs.raid.patience import Patience
from raidfs.raid.regenerate import Room
from raidfs.store import pieces
from raidfs.store.pieces import TargetFailed, make_rows

CODES = [("1", 3), ("5", 3), ("6", 5), ("10", 4), ("rs:3+3", 6)]
ZONE = 5
MEMORY = Path("/dev/shm")


@pytest.fixture(params=["where files lie", "in memory"])
def place(request, tmp_path):
    if request.param == "where files lie":
        yield tmp_path
        return
    if not MEMORY.is_dir():
        pytest.skip("no memory file system")
    directory = Path(tempfile.mkdtemp(prefix="raidfs-test-", dir=MEMORY))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def member_at(path):
    path.mkdir()
    return lay_out_directory(str(path))


class Columns(Bench):
    """A zone on directories, and places for its columns to be made anew."""

    def __init__(self, place, code, rows):
        self.place = place
        self.made = 0
        members = [member_at(place / f"member{n}") for n in range(code.width)]
        super().__init__(code, rows, members=members)
        self.array.patience = Patience(5.0)

    def file(self, member, column):
        return Path(member.path) / "zones" / f"{ZONE:02x}" / f"{ZONE:08x}.{column}"

    def flip(self, row, column):
        with self.file(self.members[column], column).open("r+b") as file:
            file.seek(row * CELL + 99)
            old = file.read(1)
            file.seek(row * CELL + 99)
            file.write(bytes([old[0] ^ 4]))

    def shorten(self, column, rows):
        os.truncate(self.file(self.members[column], column), rows * CELL + 5)

    def targets(self, why, firsts=()):
        """Fresh places for these columns. `why`: by column."""
        found = []
        for column, reason in why.items():
            self.made += 1
            member = member_at(self.place / f"new{self.made}")
            member.column_create(ZONE, column, 0, self.zone.rows * CELL)
            first = dict(firsts).get(column, 0)
            task = SimpleNamespace(column=column, why=reason, member=100 + self.made, first=first)
            found.append((task, member, 0))
        return found

    def make(self, targets, step, room_rows=3):
        """In steps; how many rows could not be had."""
        room, beyond = Room(room_rows, CELL), 0
        rows = len(self.present)
        for row in range(0, rows, step):
            part = slice(row, min(rows, row + step))
            known = self.crcs[part].copy(), self.present[part].copy()
            beyond += make_rows(self.array, self.zone, targets, row, *known, room)
        return beyond

    def stored(self, target):
        task, member, _ = target
        return np.fromfile(self.file(member, task.column), np.uint8).reshape(-1, CELL)

    def close(self):
        self.array.close()
        for member in self.members:
            member.close()


@pytest.mark.parametrize("seed", range(12))
def test_both_ways_make_the_same(place, seed, monkeypatch):
    dice = random.Random(seed)
    code = code_for(*dice.choice(CODES))
    rows = dice.choice((1, 5, 33, 70))
    zone = Columns(place, code, rows)
    at = 0
    while at < rows:
        burst = min(rows - at, dice.choice((1, 4, 30)))
        zone.burst(at, burst * code.k - dice.randrange(code.k), seed=seed + at)
        at += burst
    lost = dice.sample(range(code.width), dice.randint(0, code.tolerance))
    there = [column for column in range(code.width) if column not in lost]
    leaving = dice.sample(there, dice.choice((0, 1)) if lost else 1)
    for column in there:
        if len(lost) < code.tolerance and dice.random() < 0.3:
            zone.flip(dice.randrange(rows), column)
            break
    if dice.random() < 0.2 and len(lost) < code.tolerance:
        zone.shorten(dice.choice(there), dice.randrange(rows))
    zone.lose(lost)
    zone.array._heal = False  # both ways find the same
    why = dict.fromkeys(lost, "lost") | dict.fromkeys(leaving, "leaving")
    firsts = {column: dice.randrange(rows) for column in why if dice.random() < 0.3}
    quick, slow = zone.targets(why, firsts), zone.targets(why, firsts)
    step = dice.choice((1, 7, 32, rows))
    beyond = zone.make(quick, step)
    with monkeypatch.context() as patch:
        patch.setattr(
            pieces, "remake", lambda array, map, row, crcs, there, *_: there[:, 0] & False
        )
        assert zone.make(slow, step) == beyond == 0
    for one, other in zip(quick, slow, strict=True):
        task = one[0]
        assert np.array_equal(zone.stored(one), zone.stored(other)), task
        wanted = zone.present[:, task.column].copy()
        wanted[: task.first] = False
        assert np.array_equal(zone.stored(one)[wanted], zone.content[task.column][wanted])
        assert not zone.stored(one)[~wanted].any()
    zone.close()


def test_nearly_all_goes_the_quick_way_and_what_is_damaged_is_healed(place, monkeypatch):
    zone = Columns(place, code_for("6", 5), 200)
    zone.burst(0, 600)
    zone.lose([1])
    zone.flip(50, 0)
    slowly = []
    real = pieces.make_piece
    monkeypatch.setattr(
        pieces, "make_piece", lambda *known: slowly.append(len(known[5])) or real(*known)
    )
    if not zone.members[0].never_waits:
        zone.array.around.open_columns(zone.zone)  # not opened for it: that may take long
    targets = zone.targets({1: "lost"})
    assert zone.make(targets, 64) == 0
    assert np.array_equal(zone.stored(targets[0]), zone.content[1])
    assert zone.names().count("ChecksumError") == 1 and zone.names().count("Healed") == 1
    assert zone.states[10].checksum_errors == 1
    if zone.members[0].never_waits or zone.members[0].tells_cached:
        assert slowly == [1]
    zone.close()


def test_what_would_have_to_be_waited_for_goes_the_slow_way(tmp_path, monkeypatch):
    """Which gives a member up that is late."""
    zone = Columns(tmp_path, code_for("5", 3), 40)
    zone.burst(0, 80)
    zone.lose([1])
    for member in zone.members:
        member.never_waits = False
    read = []
    monkeypatch.setattr(regenerate, "make_columns", lambda *known: read.append(known))
    targets = zone.targets({1: "lost"})
    for member in zone.members:
        member._files.forget((ZONE, 0))
        member._files.forget((ZONE, 2))
    assert zone.make(targets, 40, 40) == 0  # no file is open
    assert np.array_equal(zone.stored(targets[0]), zone.content[1])
    for member in zone.members:
        member._tells_cached = False
    assert zone.make(targets, 40, 40) == 0
    zone.array.patience.sitting = (10,)  # it sits out, and without it there are too few
    assert zone.make(targets, 40, 40) == 0 and not read
    zone.close()


def test_a_target_that_fails_is_named(place, monkeypatch):
    zone = Columns(place, code_for("6", 5), 30)
    zone.burst(0, 90)
    zone.lose([1, 3])
    zone.array.around.open_columns(zone.zone)
    targets = zone.targets({1: "lost", 3: "lost"})
    path = zone.file(targets[1][1], 3)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(TargetFailed) as caught:
        zone.make(targets, 30)
    assert caught.value.member == targets[1][0].member
    cause = caught.value.cause
    assert isinstance(cause, MemberError) and str(path.parents[2]) in str(cause)
    assert isinstance(cause.__cause__, OSError) and cause.__cause__.errno == errno.ENOSPC
    path.unlink()
    targets[1][1].close()
    with pytest.raises(TargetFailed) as caught:  # it can't even be opened
        zone.make(targets, 30)
    assert caught.value.member == targets[1][0].member
    zone.close()
