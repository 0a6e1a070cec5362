"""Moves between hosts: over TLS, and by a narrow line, where markers must not wait for content."""

import heapq
import os
import statistics
import threading
import time

import pytest
import trio
from far import DESTINATION, Far, joined
from groups import ControlError, Crew, wait_until

from raidfs.daemon.group_content import AIM_S, PIECE_BYTES_MIN, Pace
from raidfs.group.move import CONTENT_BYTES

NARROW_BYTES_S = 2 << 20


@pytest.mark.parametrize("rtt_s", [0.0002, 0.01, 0.2])
@pytest.mark.parametrize("bytes_s", [1 << 20, 8 << 20, 100 << 20, 1 << 30])
def test_pieces_are_as_large_as_the_line_carries(bytes_s, rtt_s):
    async def run():
        pace, sizes = Pace(), []
        for number in range(60):
            pace.took(1, rtt_s) if number == 0 else None
            sizes.append(pace.nbytes)
            pace.took(pace.nbytes, rtt_s + pace.nbytes / bytes_s)
        return sizes[30:]

    sizes = trio.run(run)
    assert all(PIECE_BYTES_MIN <= size <= CONTENT_BYTES for size in sizes)
    assert max(sizes) / bytes_s < 2 * AIM_S or max(sizes) == PIECE_BYTES_MIN
    assert min(sizes) / bytes_s > AIM_S / 4 or min(sizes) == CONTENT_BYTES


class Narrow(Far):
    """Each way carries so many bytes a second, and packets wait their turn."""

    def __init__(self, count, bytes_s, **options):
        super().__init__(count, **options)
        self.bytes_s, self._free = bytes_s, {}

    def _take(self, came_by, packet, on_the_way, turns):
        to = self._devices.get(packet[DESTINATION])
        if packet[0] >> 4 == 4 and to is not None:
            begins = max(time.monotonic(), self._free.get((came_by, to), 0.0))
            ends = self._free[came_by, to] = begins + len(packet) / self.bytes_s
            item = (ends + self.delay_s, next(turns), came_by, to, packet)
            heapq.heappush(on_the_way, item)


def moved_among_snapshots(crew, nbytes, apart_s):
    """A file goes from the first to the second while snapshots are taken. Returns these."""
    a, b, _ = (volume.mountpoint for volume in crew.volumes)
    content = os.urandom(nbytes)
    (a / "file").write_bytes(content)
    words = ["raidfs-ctl", "mv", "--quiet", str(a / "file"), _target(crew)]
    thread = threading.Thread(target=lambda: crew.shop.run(*words))
    thread.start()
    taken = []
    while thread.is_alive():
        try:
            taken.append(crew.snapshot(f"s{len(taken)}", len(taken) % 3))
        except ControlError as error:
            print(error)  # a connection was lost
        time.sleep(apart_s)
    thread.join()
    wait_until(lambda: (b / "file").exists(), "it is there")
    assert (b / "file").read_bytes() == content and not (a / "file").exists()
    crew.settle()
    names = {one.name for one in taken if one.state == "committed"}
    assert set(crew.same_everywhere()) == names
    for name in names:
        held = [place for place in (a, b) if (place / ".snapshots" / name / "file").exists()]
        assert len(held) == 1, (name, held)
    gates = [max(part.gate_us for part in one.volumes) for one in taken if one.state != "aborted"]
    print(f"{len(names)} of {len(taken)} snapshots; gate, us: {sorted(gates)}")
    return taken, gates


def _target(crew):
    """As it is named on another host."""
    name = next(one.name for one in crew.status(1).members if one.me)
    return f"{name}:/"


@pytest.mark.mount
@pytest.mark.slow
def test_over_tls(workshop):
    crew = Crew(workshop)
    joined(crew)
    taken, _ = moved_among_snapshots(crew, 48 << 20, 0.0)
    assert sum(one.state == "committed" for one in taken) > 2
    crew.finish()


@pytest.mark.mount
@pytest.mark.slow
def test_markers_do_not_wait_for_content(workshop):
    """The largest piece would take an eighth of a second there, and so would each marker."""
    crew = Crew(workshop)
    with Narrow(3, NARROW_BYTES_S, delay_s=0.001) as far:
        crew.unmount()
        for number in range(3):
            workshop.launcher = far.launcher(number)
            crew.mount(number)
        joined(crew, [f"tcp:{far.address(number)}:7400" for number in range(3)])
        taken, gates = moved_among_snapshots(crew, 5 << 20, 0.1)
        assert len(taken) > 4
        assert statistics.median(gates) < 1e6 * CONTENT_BYTES / NARROW_BYTES_S
        crew.finish()
