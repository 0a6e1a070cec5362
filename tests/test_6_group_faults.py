"""kill -9 at each step of a group snapshot, and daemons that don't answer: all or nothing, and the
others' input and output goes on.

A daemon is killed by itself at a named point (daemon/fault.py). Then the others are written to, the
volume is mounted again, and the group comes to rest by itself.
"""

import contextlib
import os
import signal
import threading
import time

import pytest
from groups import ControlError, Crew, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.slow]  # each mounts several volumes

# Where, and what must come of it: None: both are right.
INITIATOR = {
    "before-cut": False,
    "after-cut": False,
    "before-send-marker:2": False,
    "after-send-marker:2": False,
    "before-prepare": False,
    "after-prepare": False,
    "before-decide": False,
    "after-decide": True,
    "before-send-decision-commit": True,
    "after-send-decision-commit:2": True,
    "before-commit": True,
    "after-commit": True,
    "before-forget": True,
    "after-forget": True,
}
PARTICIPANT = {
    "before-cut": False,
    "after-cut": False,
    "before-send-marker:2": False,
    "after-send-marker:2": False,
    "before-prepare": False,
    "after-prepare": False,
    "before-send-prepared": False,
    "after-send-prepared": None,
    "before-commit": True,
    "after-commit": True,
    "before-send-done": True,
    "after-send-done": True,
}
IO_S_MAX = 3.0  # of a write while a daemon is away: the gate's limit is 0.5 s


def write_everywhere(crew, numbers, text):
    """How long the slowest write took."""
    slowest = 0.0
    for number in numbers:
        begun = time.monotonic()
        (crew.volumes[number].mountpoint / "file").write_text(text)
        slowest = max(slowest, time.monotonic() - begun)
    return slowest


def snapshot_in_background(crew, name, number):
    """A thread that asks; what it was told, or why not, is appended to the list."""
    told = []

    def ask():
        try:
            told.append(crew.snapshot(name, number))
        except (ControlError, OSError) as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, told


def died(volume):
    """The daemon has killed itself; its mount is cleared away."""
    wait_until(lambda: not volume._daemons(), f"{volume.mountpoint} dies", timeout_s=20)
    volume.pid = None
    crew_umount(volume)


def crew_umount(volume):
    volume.shop.run("umount", "-l", volume.mountpoint, expect=None)


@pytest.mark.parametrize(
    ("victim", "points"), [(0, INITIATOR), (1, PARTICIPANT)], ids=["initiator", "participant"]
)
def test_killed_at_each_step(workshop, victim, points):
    """Volume 0 asks. After each death the victim is mounted again, armed for the next."""
    crew = Crew(workshop)
    crew.init()
    others = [number for number in range(3) if number != victim]
    expected = set()
    for at, (point, committed) in enumerate(points.items()):
        name = f"s{at}"
        crew.volumes[victim].unmount()
        crew.mount(victim, f"group.{point}")
        crew.settle()
        thread, told = snapshot_in_background(crew, name, 0)
        died(crew.volumes[victim])
        assert write_everywhere(crew, others, name) < IO_S_MAX, point
        thread.join(30)
        assert not thread.is_alive(), f"{point}: whoever asked waits for ever"
        crew.mount(victim)
        crew.settle()
        names = set(crew.same_everywhere())
        assert names - {name} == expected, point
        if committed is not None:
            assert (name in names) == committed, (point, told)
        if told and not isinstance(told[0], Exception):
            assert (told[0].state == "committed") == (name in names), (point, told)
        if name in names:
            expected.add(name)
        assert crew.snapshot(f"after-{at}").state == "committed", point
        expected.add(f"after-{at}")
    crew.finish()


@pytest.mark.parametrize("verb", ["delete", "rollback"])
@pytest.mark.parametrize(
    ("victim", "point", "done"),
    [
        (0, "before-verdict", False), (0, "after-verdict", True), (0, "before-work", True),
        (0, "after-work", True), (1, "after-intent", False), (1, "before-work", True),
        (1, "after-work", True),
    ],
)  # fmt: skip
def test_works_killed_at_each_step(workshop, verb, victim, point, done):
    crew = Crew(workshop)
    crew.init()
    files = [volume.mountpoint / "file" for volume in crew.volumes]
    for file in files:
        file.write_text("then")
    crew.group("snapshot", "crew", "s")
    for file in files:
        file.write_text("now")
    crew.volumes[victim].unmount()
    crew.mount(victim, f"group.{point}")
    crew.settle()
    thread = threading.Thread(
        target=lambda: crew.group(verb, "-y", str(crew.volumes[0].mountpoint), "s", expect=None)
    )
    thread.start()
    died(crew.volumes[victim])
    crew.mount(victim)
    thread.join(60)
    assert not thread.is_alive()
    crew.settle()
    if verb == "delete":
        assert list(crew.same_everywhere()) == ([] if done else ["s"])
    else:
        assert [file.read_text() for file in files] == ["then" if done else "now"] * 3
    crew.finish()


@contextlib.contextmanager
def stopped(volume):
    """SIGSTOP of its daemon, inside of the `with`."""
    os.kill(volume.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(volume.pid, signal.SIGCONT)


def test_a_stopped_daemon_costs_the_snapshot_and_nothing_else(workshop):
    crew = Crew(workshop)
    crew.init("--gate-timeout", "300")
    with stopped(crew.volumes[2]):
        thread, told = snapshot_in_background(crew, "s", 0)
        time.sleep(0.05)
        slowest = write_everywhere(crew, [0, 1], "x")
        thread.join(20)
        assert not thread.is_alive()
    assert slowest < 1.0, slowest
    assert told[0].state == "aborted", told
    assert "longer than the gate may be shut" in told[0].reason
    crew.settle()
    assert crew.same_everywhere() == {}
    assert crew.snapshot("s").state == "committed"
    assert list(crew.same_everywhere()) == ["s"]
    assert crew.status(0).results == {"aborted": 1, "committed": 1}
    crew.finish()


def test_an_unmount_in_the_middle_hangs_nobody(workshop):
    """One is stopped so that the gates of the others are shut when one of them is unmounted."""
    crew = Crew(workshop)
    crew.init("--gate-timeout", "20000")
    with stopped(crew.volumes[2]):
        thread, told = snapshot_in_background(crew, "s", 0)
        time.sleep(0.3)
        begun = time.monotonic()
        crew.volumes[1].unmount()
        assert time.monotonic() - begun < 8.0
        thread.join(20)
        assert not thread.is_alive() and told[0].state == "aborted", told
    crew.mount(1)
    crew.settle()
    assert crew.same_everywhere() == {}
    crew.finish()


def test_replies_wait_for_the_gate_and_so_does_the_control_socket(workshop):
    crew = Crew(workshop)
    crew.init("--gate-timeout", "1500")
    file = crew.volumes[0].mountpoint / "file"
    file.write_text("before")
    waits = {}

    def timed(what, call):
        begun = time.monotonic()
        call()
        waits[what] = time.monotonic() - begun

    with stopped(crew.volumes[2]):
        thread, told = snapshot_in_background(crew, "s", 0)
        time.sleep(0.2)
        calls = {
            "write": lambda: file.write_text("after"),
            "names": lambda: os.mkdir(crew.volumes[0].mountpoint / "d"),
            "xattr": lambda: os.setxattr(crew.volumes[1].mountpoint, "user.x", b"1"),
            "control": lambda: crew.status(0),
        }
        threads = [threading.Thread(target=timed, args=pair) for pair in calls.items()]
        for one in threads:
            one.start()
        for one in [*threads, thread]:
            one.join(20)
            assert not one.is_alive()
    assert told[0].state == "aborted"
    assert set(waits) == set(calls) and min(waits.values()) > 0.8, waits
    assert max(waits.values()) < 3.0, waits
    crew.settle()
    crew.finish()
