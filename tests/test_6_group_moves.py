"""Moves between volumes on real mounts: whatever happens, each file is somewhere, and once."""

import json
import os
import random
import signal
import subprocess
import threading
import time

import pytest
from groups import ControlError, Crew, wait_until
from mounting import BIN

from raidfs.daemon.control import ControlClient
from raidfs.daemon.group_requests import MoveRequest

pytestmark = pytest.mark.mount


@pytest.fixture
def crew(workshop):
    made = Crew(workshop)
    made.init()
    yield made
    made.finish()


def mv(crew, *words, expect=0, **options):
    return crew.shop.run("raidfs-ctl", "mv", *words, expect=expect, **options)


def move(crew, at, to, name):
    """Without the price of starting a command."""
    entries = [json.loads(path.read_text()) for path in crew.shop.runtime.glob("*.json")]
    ids = {one["mountpoint"]: one["volume_id"] for one in entries}
    request = MoveRequest(
        source=(name.encode(),), target=ids[str(to)], place=(), name=name.encode()
    )
    with ControlClient(crew.shop.runtime / f"{ids[str(at)]}.sock") as client:
        return list(client.answers(request))


def test_a_file_and_a_directory(crew):
    a, b, _ = (volume.mountpoint for volume in crew.volumes)
    (a / "file").write_bytes(b"x" * 700_000)
    os.setxattr(a / "file", "user.k", b"v")
    os.chmod(a / "file", 0o640)
    os.utime(a / "file", ns=(1_000, 2_000))
    (a / "d" / "e").mkdir(parents=True)
    (a / "d" / "e" / "one").write_text("1")
    os.link(a / "d" / "e" / "one", a / "d" / "same")
    os.symlink("e/one", a / "d" / "link")
    with open(a / "d" / "holes", "wb") as file:
        file.truncate(3_000_000)
        file.seek(2_000_000)
        file.write(b"y" * 5000)
    told = json.loads(mv(crew, "--json", a / "file", a / "d", b).stdout)
    assert [one["state"] for one in told["moves"]] == ["moved", "moved"], told
    assert sorted(os.listdir(a)) == [] and sorted(os.listdir(b)) == ["d", "file"]
    assert (b / "file").read_bytes() == b"x" * 700_000
    assert os.getxattr(b / "file", "user.k") == b"v"
    stat = os.stat(b / "file")
    assert stat.st_mode & 0o777 == 0o640 and stat.st_mtime_ns == 2_000
    assert (b / "d" / "e" / "one").read_text() == "1"
    assert os.stat(b / "d" / "same").st_nlink == 2
    assert os.readlink(b / "d" / "link") == "e/one"
    holes = (b / "d" / "holes").read_bytes()
    assert len(holes) == 3_000_000 and holes.strip(b"\0") == b"y" * 5000
    crew.settle()


def test_what_is_refused_stays(crew):
    a, b, c = (volume.mountpoint for volume in crew.volumes)
    (a / "file").write_text("mine")
    (b / "file").write_text("theirs")
    assert "already" in mv(crew, a / "file", b, expect=1).stderr
    assert "no such" in mv(crew, a / "none", b, expect=1).stderr.lower()
    assert "directory" in mv(crew, a / "file", f"{b}/none/", expect=1).stderr
    assert "would move" in mv(crew, "--dry-run", a / "file", c).stdout
    assert "already" in mv(crew, "--dry-run", a / "file", b, expect=1).stderr
    with open(a / "file", "a"):
        assert "open" in mv(crew, a / "file", c, expect=1).stderr
    assert (a / "file").read_text() == "mine" and (b / "file").read_text() == "theirs"
    assert mv(crew, a / "file", a / "other").stdout.startswith("renamed")
    assert os.listdir(a) == ["other"] and os.listdir(c) == []
    big = os.statvfs(b).f_bavail * os.statvfs(b).f_frsize * 2
    with open(a / "big", "wb") as file:
        file.truncate(big)
    assert "room" in mv(crew, a / "big", b, expect=1).stderr
    assert sorted(os.listdir(a)) == ["big", "other"]
    crew.settle()


POINTS_OUT = {
    "move-out-keep-offered": 1, "send-offered": 1, "move-out-keep-giving": 1, "give": 1,
    "send-given": 1, "move-out-drop": 1, "send-settled": 1,
}  # fmt: skip
POINTS_IN = {
    "move-in-keep-staging": 1, "stage": 1, "move-in-keep-staged": 1, "send-staged": 1, "link": 1,
    "move-in-keep-taken": 1, "send-taken": 1, "move-in-drop": 1,
}  # fmt: skip


def died(volume):
    wait_until(lambda: not volume._daemons(), f"{volume.mountpoint} dies", timeout_s=20)
    volume.pid = None
    volume.shop.run("umount", "-l", volume.mountpoint, expect=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "points"), [(0, POINTS_OUT), (1, POINTS_IN)], ids=["source", "target"]
)
def test_killed_at_each_step(workshop, victim, points):
    """Before and after each; a group snapshot follows; it and the present hold the file once.
    The other side is alive all the time, and so is whoever asked."""
    crew = Crew(workshop)
    crew.init()
    a, b, _ = (volume.mountpoint for volume in crew.volumes)
    for number, (when, point) in enumerate(
        (when, point) for point in points for when in ("before", "after")
    ):
        name = f"f{number}"
        (a / name).write_text(name * 1000)
        crew.volumes[victim].unmount()
        crew.mount(victim, f"move.{when}-{point}")
        crew.settle()
        thread = threading.Thread(target=lambda name=name: mv(crew, a / name, b, expect=None))
        thread.start()
        died(crew.volumes[victim])
        crew.mount(victim)
        crew.settle(0, 1, 2)
        thread.join(60)
        assert not thread.is_alive(), point
        crew.settle(0, 1, 2)
        held = [place for place in (a, b) if (place / name).exists()]
        assert len(held) == 1, (when, point, held)
        assert (held[0] / name).read_text() == name * 1000
        taken = crew.snapshot(f"s{number}")
        assert taken.state == "committed"
        then = [place for place in (a, b) if (place / ".snapshots" / f"s{number}" / name).exists()]
        assert then == held, (when, point)
        os.unlink(held[0] / name)
    crew.finish()


def kill_now_and_then(crew, stop, kills, wrong):
    """A volume at random, which is mounted again at once."""
    try:
        kill_until(crew, stop, kills)
    except Exception as error:
        wrong.append(repr(error))


def kill_until(crew, stop, kills):
    chance = random.Random(7)
    while not stop.wait(1.5):
        number = chance.randrange(3)
        crew.volumes[number].kill()
        crew.mount(number)
        kills.append(number)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alive", "killed", "undelivered"])
def test_each_snapshot_holds_each_token_once(workshop, how):
    """Tokens wander at random among three volumes while snapshots are taken, at each in turn; and
    the same while daemons are killed. If what was recorded isn't delivered, that is seen."""
    killed, faults = how == "killed", {}
    if how == "undelivered":
        faults = dict.fromkeys(range(3), "move.no-deliver")
    crew = Crew(workshop, faults=faults)
    crew.init()
    places = [volume.mountpoint for volume in crew.volumes]
    tokens = [f"token{number}" for number in range(9)]
    for number, token in enumerate(tokens):
        if number % 3:
            (places[number % 3] / token).write_text(token * 100)
        else:
            (places[0] / token / "in").mkdir(parents=True)
            (places[0] / token / "in" / "it").write_text(token * 100)
    stop = threading.Event()
    counts = [0] * 3

    wrong = []

    def wander(part):
        try:
            go(part)
        except Exception as error:
            wrong.append(repr(error))

    def go(part):
        chance = random.Random(part)
        while not stop.is_set():
            token = chance.choice(tokens[part::3])
            try:
                held = [place for place in places if (place / token).exists()]
            except OSError:
                assert killed
                continue
            if killed and not held:
                continue  # on its way
            assert len(held) == 1, (token, held)
            (at,) = held
            to = chance.choice([place for place in places if place != at])
            try:
                move(crew, at, to, token)
            except (ControlError, OSError, KeyError, ValueError):
                assert killed
                time.sleep(0.1)
                continue
            counts[part] += 1

    threads = [threading.Thread(target=wander, args=(part,)) for part in range(3)]
    kills = []
    if killed:
        threads.append(threading.Thread(target=kill_now_and_then, args=(crew, stop, kills, wrong)))
    for thread in threads:
        thread.start()
    taken = []
    try:
        deadline = time.monotonic() + 25
        while time.monotonic() < deadline and all(thread.is_alive() for thread in threads):
            name = f"s{len(taken)}"
            try:
                if crew.snapshot(name, len(taken) % 3).state == "committed":
                    taken.append(name)
            except (ControlError, OSError, ValueError):
                assert killed
                time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    crew.settle()
    recorded = crew.status(0).channel_bytes + crew.status(1).channel_bytes
    assert not wrong, wrong
    print(f"{len(taken)} snapshots, {counts} moves, {len(kills)} kills, {recorded} bytes recorded")
    assert len(taken) > 5 and min(counts) > 3 and (not killed or len(kills) > 3)
    taken = list(crew.same_everywhere())
    assert not wrong, wrong
    for name in ["", *taken]:
        for number, token in enumerate(tokens):
            roots = [place / ".snapshots" / name if name else place for place in places]
            held = [root for root in roots if (root / token).exists()]
            content = "in/it" if number % 3 == 0 else "."
            good = [root for root in held if (root / token / content).read_text() == token * 100]
            if len(held) != 1 or good != held:
                wrong.append((name, token, [str(root) for root in held]))
            others = [root for root in roots if list(root.glob(f"{token}.moved*"))]
            assert not others
    if how == "undelivered":
        assert wrong and all(name and not held for name, _, held in wrong)
        return
    assert not wrong, wrong[:10]
    crew.group("rollback", "-y", str(places[0]), taken[len(taken) // 2])
    for token in tokens:
        held = [place for place in places if (place / token).exists()]
        then = [
            place
            for place in places
            if (place / ".snapshots" / taken[len(taken) // 2] / token).exists()
        ]
        assert held == then and len(held) == 1
    crew.finish()


@pytest.mark.slow
def test_moves_that_wait_for_each_others_room(crew):
    """The group's check tells of the deadlock; who gives up makes room for the other."""
    places = [volume.mountpoint for volume in crew.volumes[:2]]
    free = min(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize for place in places)
    for place in places:
        with open(place / f"big{places.index(place)}", "wb") as file:
            for _ in range(free * 6 // 10 >> 20):
                file.write(os.urandom(1 << 20))
    os.sync()
    assert "room" in mv(crew, places[0] / "big0", places[1], expect=1).stderr
    words = [str(BIN / "raidfs-ctl"), "mv", "--wait"]
    waiting = [
        subprocess.Popen([*words, str(places[0] / "big0"), str(places[1])], env=crew.shop.env),
        subprocess.Popen([*words, str(places[1] / "big1"), str(places[0])], env=crew.shop.env),
    ]

    def deadlocked():
        return crew.group("check", "crew", expect=None).returncode == 3

    wait_until(deadlocked, "a deadlock", timeout_s=20)
    told = crew.told("check", "crew", expect=3)
    assert told["deadlocked"] and len(told["graph"]) == 2 and not told["terminated"]
    assert "big0" in told["deadlock"] and "big1" in told["deadlock"]
    group = crew.group("rollback", "-y", "crew", "none", expect=1)
    assert "none" in group.stderr
    waiting[0].send_signal(signal.SIGINT)
    assert waiting[0].wait(20) != 0
    assert not deadlocked() and (places[0] / "big0").exists()
    os.unlink(places[0] / "big0")
    assert waiting[1].wait(60) == 0
    assert [os.listdir(place) for place in places] == [["big1"], []]
    crew.settle()
    crew.group("check", "crew")


def test_going_back_waits_for_moves_and_moves_go_on_after_a_mount(workshop):
    """The target is away while a file is on its way to it; killed, both, it arrives."""
    crew = Crew(workshop)
    crew.init()
    a, b, _ = (volume.mountpoint for volume in crew.volumes)
    (a / "file").write_text("content" * 1000)
    crew.shop.run("raidfs-ctl", "snapshot", "create", a, "s")
    crew.volumes[1].unmount()
    crew.mount(1, "move.before-link")
    crew.settle()
    thread = threading.Thread(target=lambda: mv(crew, a / "file", b, expect=None))
    thread.start()
    died(crew.volumes[1])
    assert not (a / "file").exists()
    refused = crew.shop.run("raidfs-ctl", "snapshot", "rollback", "-y", a, "s", expect=1)
    assert "on their way" in refused.stderr
    crew.volumes[0].kill()
    thread.join(30)
    crew.mount(0)
    assert os.listdir(a) == []
    crew.mount(1)
    crew.settle()
    assert (b / "file").read_text() == "content" * 1000 and os.listdir(a) == []
    crew.finish()


@pytest.mark.slow
def test_content_goes_on_where_it_was(workshop):
    """96 pieces; the target dies at the 80th, and would again at the 50th more."""
    crew = Crew(workshop)
    crew.init()
    a, b, _ = (volume.mountpoint for volume in crew.volumes)
    content = os.urandom(24 << 20)
    (a / "file").write_bytes(content)
    crew.volumes[1].unmount()
    crew.mount(1, "move.fetch:80")
    crew.settle()
    thread = threading.Thread(target=lambda: mv(crew, a / "file", b, expect=None))
    thread.start()
    died(crew.volumes[1])
    assert (a / "file").exists()
    crew.mount(1, "move.fetch:50")
    thread.join(60)
    crew.settle()
    assert (b / "file").read_bytes() == content and os.listdir(a) == []
    crew.finish()
