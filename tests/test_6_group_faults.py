"""kill -9 at each step of a group snapshot, and of what is done to one, and daemons that don't
answer: all or nothing, and the others' input and output goes on.

A daemon is killed by itself at a named point (daemon/fault.py). Then the others are written to, the
volume is mounted again, and the group comes to rest by itself. What happens in other orders is
tried by the simulators (test_5_marker.py, test_5_work.py).
"""

import contextlib
import errno
import os
import signal
import threading
import time

import pytest
from groups import ControlError, Crew, wait_until
from mounting import Workshop

from raidfs.daemon.group_requests import GroupWorked, GroupWorkRequest

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
# Of a deletion or rollback: whose daemon, where, and whether it is done.
WORKS = [
    (0, "before-intent", False), (0, "before-verdict", False), (0, "after-verdict", True),
    (0, "before-work", True), (0, "after-work", True),
    (1, "before-intent", False), (1, "after-intent", False), (1, "before-work", True),
    (1, "after-work", True),
]  # fmt: skip
IO_S_MAX = 3.0  # of a write while a daemon is away: the gate's limit is 0.5 s


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    """Three volumes for all tests that leave them as they were."""
    with Workshop(tmp_path_factory.mktemp("faults")) as shop:
        crew = Crew(shop)
        crew.init()
        yield crew
        crew.finish()


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


@pytest.mark.parametrize(
    ("victim", "points"), [(0, INITIATOR), (1, PARTICIPANT)], ids=["initiator", "participant"]
)
def test_killed_at_each_step(crew, victim, points):
    """Volume 0 asks. After each death the victim is mounted again."""
    others = [number for number in range(3) if number != victim]
    expected = set(crew.same_everywhere())
    for at, (point, committed) in enumerate(points.items()):
        name = f"s{victim}-{at}"
        crew.settle()  # nothing that comes to that point is left of the last one
        crew.arm(victim, f"group.{point}")
        thread, told = snapshot_in_background(crew, name, 0)
        crew.died(victim)
        assert write_everywhere(crew, others, name) < IO_S_MAX, point
        crew.mount(victim)
        thread.join(30)
        assert not thread.is_alive(), f"{point}: whoever asked waits for ever"
        crew.settle()
        names = set(crew.same_everywhere())
        assert names - {name} == expected, point
        if committed is not None:
            assert (name in names) == committed, (point, told)
        if told and not isinstance(told[0], Exception):
            assert (told[0].state == "committed") == (name in names), (point, told)
        if name in names:
            expected.add(name)
        assert crew.snapshot(f"after-{name}").state == "committed", point
        expected.add(f"after-{name}")


def durably(path, text):
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def work_in_background(crew, verb, name):
    """As `snapshot_in_background`, of volume 0."""
    told = []

    def ask():
        try:
            told.append(crew.ask(0, GroupWorkRequest(kind=verb, name=name), GroupWorked))
        except (ControlError, OSError) as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, told


@pytest.mark.parametrize("verb", ["delete", "rollback"])
def test_works_killed_at_each_step(crew, verb):
    files = [volume.mountpoint / "file" for volume in crew.volumes]
    for at, (victim, point, done) in enumerate(WORKS):
        name = f"{verb}-{at}"
        for file in files:
            durably(file, f"then {at}")
        assert crew.snapshot(name).state == "committed"
        for file in files:
            durably(file, f"now {at}")
        before = set(crew.same_everywhere())
        crew.arm(victim, f"group.{point}")
        thread, told = work_in_background(crew, verb, name)
        crew.died(victim)
        crew.mount(victim)
        thread.join(30)
        assert not thread.is_alive(), point
        crew.settle()
        gone = before - set(crew.same_everywhere())
        assert gone == ({name} if done and verb == "delete" else set()), (point, told)
        word = "then" if done and verb == "rollback" else "now"
        assert [file.read_text() for file in files] == [f"{word} {at}"] * 3, (point, told)
        if isinstance(told[0], GroupWorked):
            assert done, point


def refused(call):
    """It says EIO; until the kernel has forgotten what it has cached, perhaps not yet."""
    wait_until(lambda: says_eio(call), "users are refused", timeout_s=10)
    assert says_eio(call)


def says_eio(call):
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EIO
        return True
    return False


@pytest.mark.parametrize(
    ("point", "verdict", "text"),
    [("before-verdict", "abort", "now"), ("after-verdict", "commit", "then")],
)
def test_who_has_agreed_shows_nothing_until_it_is_decided(workshop, point, verdict, text):
    """The coordinator is gone, for the others for good: a person decides. And then it is back."""
    short = "group.hold-ms:300"
    crew = Crew(workshop, faults={1: short, 2: short})
    crew.init()
    files = [volume.mountpoint / "file" for volume in crew.volumes]
    for file in files:
        durably(file, "then")
    assert crew.snapshot("s").state == "committed"
    for file in files:
        durably(file, "now")
    opened = os.open(files[1], os.O_RDWR)
    assert os.pread(opened, 9, 0) == files[2].read_bytes() == b"now"  # in all caches
    crew.arm(0, f"group.{point}")
    thread, _ = work_in_background(crew, "rollback", "s")
    crew.died(0)
    thread.join(30)
    assert not thread.is_alive()
    refused(lambda: os.pread(opened, 9, 0))
    refused(lambda: os.pwrite(opened, b"x", 0))
    refused(lambda: os.fsync(opened))
    for number in (1, 2):
        place = crew.volumes[number].mountpoint
        refused(files[number].read_text)
        refused(lambda number=number: files[number].write_text("x"))
        refused(lambda place=place: os.listdir(place))
        refused(lambda place=place: os.mkdir(place / "d"))
    (work,) = crew.status(1).works
    assert "rollback of s: in doubt" in work
    number = work.partition("(id ")[2].rstrip(")")
    waits = crew.group("wait", crew.volumes[1].mountpoint, "--timeout", "0.1", expect=None)
    assert waits.returncode and number in waits.stderr
    crew.volumes[2].unmount()  # which doesn't hang
    crew.mount(2, short)
    assert says_eio(files[2].read_text)
    crew.volumes[2].kill()
    crew.mount(2, short)
    assert says_eio(files[2].read_text)
    for at in (1, 2):
        crew.group("resolve", "-y", crew.volumes[at].mountpoint, number, verdict)
        wait_until(lambda at=at: not crew.status(at).works, "it is decided")
        assert files[at].read_text() == text
    assert os.pread(opened, 9, 0) == text.encode()
    os.close(opened)
    crew.mount(0)
    crew.settle()
    assert [file.read_text() for file in files] == [text] * 3
    assert crew.snapshot("after").state == "committed"
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
    # who was stopped may hear only now of the one that was given up, which had the name
    wait_until(lambda: crew.snapshot("s").state == "committed", "the next one is taken")
    assert list(crew.same_everywhere()) == ["s"]
    results = crew.status(0).results
    assert results["aborted"] >= 1 and results["committed"] == 1, results
    crew.finish()


def test_an_end_in_the_middle_hangs_nobody(workshop):
    """One is stopped so that the gates of the others are shut when the daemon of one is ended."""
    crew = Crew(workshop)
    crew.init("--gate-timeout", "20000")
    with stopped(crew.volumes[2]):
        thread, told = snapshot_in_background(crew, "s", 0)
        time.sleep(0.3)
        begun = time.monotonic()
        os.kill(crew.volumes[1].pid, signal.SIGTERM)
        crew.volumes[1].wait_gone()
        assert time.monotonic() - begun < 4.0
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
