"""Which instant a snapshot of a mount shows: exactly a prefix of what each writer did, with
everything that it had been told when the command began and nothing that it began after the command
returned; and where it shows what somebody did, it shows whatever anybody had been told before that.
"""

import random
import subprocess
import sys
import time

import acknowledged
import pytest
from acknowledged import WRITERS, Board, State, prepare, seen
from mounting import wait_until

from raidfs.daemon.control import connect
from raidfs.daemon.snapshots import SnapshotCreateRequest, SnapshotDeleteRequest
from raidfs.raid.places import peek

pytestmark = pytest.mark.mount

SEED = 5


class Taken:
    """A snapshot, and what was on the board around the command."""

    def __init__(self, name, told, begun):
        self.name, self.told, self.begun = name, told, begun

    def __repr__(self):
        return f"{self.name}: told {self.told}, begun {self.begun}"


def start(volume, board):
    for number in range(WRITERS):
        prepare(volume.mountpoint / f"writer{number}")
    script = acknowledged.__file__
    return [
        subprocess.Popen(
            [sys.executable, script, volume.mountpoint / f"writer{number}", board, str(number)]
        )
        for number in range(WRITERS)
    ]


def take(volume, board, name, ask=None):
    """By the command, or by what the command asks the daemon, which takes less time."""
    told = board.told.tolist()
    if ask is None:
        volume.shop.run("raidfs-ctl", "snapshot", "create", volume.mountpoint, name)
    else:
        ask(SnapshotCreateRequest(name=name))
    return Taken(name, told, board.begun.tolist())


def instants(root, taken, states):
    """How many operations of each writer it shows. `states`: of some instant before that."""
    shown = []
    for number, state in enumerate(states):
        found = seen(root / f"writer{number}")
        while state.done < taken.told[number]:
            state.do(*state.plan())
        while not state.is_shown(*found):
            assert state.done < taken.begun[number], f"{taken}: no prefix of writer {number}"
            state.do(*state.plan())
        shown.append(state.done)
    return shown


def compare(volume, board, taken):
    """The instants that these snapshots show, in the order in which they were taken."""
    states, found = [State(number) for number in range(WRITERS)], []
    for each in taken:
        shown = instants(volume.mountpoint / ".snapshots" / each.name, each, states)
        for number, done in enumerate(shown):
            known = board.known[number, done - 1].tolist() if done else [0] * WRITERS
            assert all(a >= b for a, b in zip(shown, known, strict=True)), (each, shown, known)
        found.append(shown)
    return found


def end(processes, board):
    board.stop[0] = 1
    for process in processes:
        assert process.wait(30) == 0


def scenario(workshop, options, count, monkeypatch):
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(workshop.runtime))
    dice = random.Random(SEED)
    volume = workshop.volume(4, level="5", size=512 << 20)
    volume.mount(*options)
    path = workshop.directory / "board"
    board = Board(path, create=True)
    processes = start(volume, path)
    taken = []
    try:
        wait_until(lambda: board.told.min() > 100, "all writers are at it")
        taken.append(take(volume, board, "first"))
        with connect(peek(str(volume.members[0])).volume_id)[1] as client:
            for number in range(count):
                time.sleep(dice.random() * 0.1)
                taken.append(take(volume, board, f"s{number}", client.ask))
                if number % 3 == 2:  # while the writers go on
                    gone = taken.pop(dice.randrange(len(taken)))
                    client.ask(SnapshotDeleteRequest(names=(gone.name,)))
    finally:
        end(processes, board)
    shown = compare(volume, board, taken)
    assert all(a < b for a, b in zip(shown[0], shown[-1], strict=True)), shown
    return volume, board, taken, shown


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 12),
        (("nolane",), 6),
    ],
)
@pytest.mark.slow
def test_a_snapshot_shows_one_instant(workshop, options, count, monkeypatch):
    volume, board, taken, shown = scenario(workshop, options, count, monkeypatch)
    volume.unmount()
    volume.check()
    volume.mount(*options)
    assert compare(volume, board, taken) == shown
    volume.unmount()


@pytest.mark.slow
def test_and_so_after_a_kill(workshop, monkeypatch):
    volume, board, taken, shown = scenario(workshop, (), 6, monkeypatch)
    volume.kill()
    volume.check()
    volume.mount()
    assert compare(volume, board, taken) == shown
    volume.unmount()
    volume.check()
