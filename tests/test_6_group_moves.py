"""Moves between volumes on real mounts: whatever happens, each file is somewhere, and once.

One crew of three is mounted for all tests here. Its daemons look for faults in a file each, so that
one that is to die at a point need not be mounted anew for that.
"""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from groups import ControlError, Crew, wait_until
from mounting import BIN, Workshop

from raidfs.daemon.control import ControlClient
from raidfs.daemon.group_requests import MoveRequest

pytestmark = pytest.mark.mount


class Armed(Crew):
    """`arm` says where a daemon is to end, and what else is to go wrong in it."""

    def _fault(self, number):
        return self.shop.directory / f"fault{number}"

    def mount(self, number, fault=""):
        self.arm(number, fault)
        super().mount(number, f"@{self._fault(number)}")

    def arm(self, number, words):
        there = self._fault(number)
        new = there.with_suffix(".new")
        new.write_text(words)
        new.rename(there)

    @property
    def places(self):
        return [volume.mountpoint for volume in self.volumes]

    def died(self, number):
        """Returns when it has, and its mount is cleared."""
        volume = self.volumes[number]
        wait_until(lambda: not volume._daemons(), f"{volume.mountpoint} dies", timeout_s=30)
        self.arm(number, "")
        volume.pid = None
        self.shop.run("umount", "-l", volume.mountpoint, expect=None)

    def again(self):
        """As it was at the beginning: for the next test."""
        for number, volume in enumerate(self.volumes):
            self.arm(number, "")
            if volume.pid is None or not volume._daemons():
                self.shop.run("umount", "-l", volume.mountpoint, expect=None)
                self.mount(number)
        self.settle()

    def id_of(self, place):
        entries = [json.loads(path.read_text()) for path in self.shop.runtime.glob("*.json")]
        return {one["mountpoint"]: one["volume_id"] for one in entries}[str(place)]


@pytest.fixture(scope="module")
def all_crew(tmp_path_factory):
    with Workshop(tmp_path_factory.mktemp("moves")) as shop:
        made = Armed(shop)
        made.init()
        yield made
        made.finish()


@pytest.fixture
def crew(all_crew):
    all_crew.again()
    assert [os.listdir(place) for place in all_crew.places] == [[], [], []]
    yield all_crew
    for place in all_crew.places:
        subprocess.run(["find", str(place), "-mindepth", "1", "-delete"], check=False)
        subprocess.run(["sync", str(place)], check=False)  # or a kill brings it back


def mv(crew, *words, expect=0, **options):
    return crew.shop.run("raidfs-ctl", "mv", *words, expect=expect, **options)


def move(crew, at, to, name):
    """Without the price of starting a command."""
    me, target = crew.id_of(at), crew.id_of(to)
    request = MoveRequest(source=(name.encode(),), target=target, place=(), name=name.encode())
    with ControlClient(crew.shop.runtime / f"{me}.sock") as client:
        return list(client.answers(request))


def moving(crew, at, to, name):
    """The same, going on beside what follows, and failing with the daemon that dies."""

    def run():
        try:
            move(crew, at, to, name)
        except (ControlError, OSError, ValueError) as error:
            print(f"the move of {name} ended: {error!r}")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def durably(path, text):
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def holders(places, name, snapshot=""):
    roots = [place / ".snapshots" / snapshot if snapshot else place for place in places]
    return [place for place, root in zip(places, roots, strict=True) if (root / name).exists()]


def test_a_file_and_a_directory(crew):
    a, b, _ = crew.places
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
    a, b, c = crew.places
    (a / "file").write_text("mine")
    (b / "file").write_text("theirs")
    (a / "opened").write_text("mine, too")
    said = []
    crew.arm(0, "move.busy-ms:1500")
    with open(a / "opened", "a"):
        thread = threading.Thread(target=lambda: said.append(mv(crew, a / "opened", c, expect=1)))
        thread.start()
        refuse(crew)
        thread.join(60)
    assert "open" in said[0].stderr and (a / "opened").read_text() == "mine, too"
    assert sorted(os.listdir(a)) == ["big", "opened", "other"] and os.listdir(c) == []
    assert (a / "other").read_text() == "mine" and (b / "file").read_text() == "theirs"


def refuse(crew):
    """What is refused at once."""
    a, b, c = crew.places
    assert "already" in mv(crew, a / "file", b, expect=1).stderr
    assert "no such" in mv(crew, a / "none", b, expect=1).stderr.lower()
    assert "directory" in mv(crew, a / "file", f"{b}/none/", expect=1).stderr
    assert "would move" in mv(crew, "--dry-run", a / "file", c).stdout
    assert "already" in mv(crew, "--dry-run", a / "file", b, expect=1).stderr
    assert mv(crew, a / "file", a / "other").stdout.startswith("renamed")
    assert sorted(os.listdir(a)) == ["opened", "other"] and os.listdir(c) == []
    big = os.statvfs(b).f_bavail * os.statvfs(b).f_frsize * 2
    with open(a / "big", "wb") as file:
        file.truncate(big)
    assert "room" in mv(crew, a / "big", b, expect=1).stderr
    assert sorted(os.listdir(a)) == ["big", "opened", "other"]


# Where nothing lies between the end of one step and the beginning of the next, one of them.
POINTS_OUT = (
    "before-move-out-keep-offered", "before-send-offered", "after-send-offered",
    "before-move-out-keep-giving", "before-give", "before-send-given", "after-send-given",
    "before-move-out-drop", "before-send-settled", "after-send-settled",
)  # fmt: skip
POINTS_IN = (
    "before-move-in-keep-staging", "before-stage", "before-move-in-keep-staged",
    "before-send-staged", "after-send-staged", "before-link", "before-move-in-keep-taken",
    "before-send-taken", "after-send-taken", "before-move-in-drop", "after-move-in-drop",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "points"), [(0, POINTS_OUT), (1, POINTS_IN)], ids=["source", "target"]
)
def test_killed_at_each_step(crew, victim, points):
    """kill -9; a group snapshot follows; it and the present hold the file once. The other side is
    alive all the time."""
    a, b, _ = crew.places
    for number, point in enumerate(points):
        name = f"f{number}"
        durably(a / name, name * 1000)
        crew.arm(victim, f"move.{point}")
        thread = moving(crew, a, b, name)
        crew.died(victim)
        crew.mount(victim)
        thread.join(60)
        assert not thread.is_alive(), point
        crew.settle(0, 1)
        held = holders((a, b), name)
        assert len(held) == 1, (point, held)
        assert (held[0] / name).read_text() == name * 1000
        taken = f"killed-{victim}-{number}"
        assert crew.snapshot(taken).state == "committed"
        assert holders((a, b), name, taken) == held, point


def kill_now_and_then(crew, stop, kills, wrong):
    """A volume at random, which is mounted again at once."""
    chance = random.Random(7)
    try:
        while not stop.wait(0.7):
            number = chance.randrange(3)
            crew.volumes[number].kill()
            crew.mount(number)
            kills.append(number)
    except Exception as error:
        wrong.append(repr(error))


class Wandering:
    """Tokens wander at random among three volumes, a part of them by each of three threads."""

    def __init__(self, crew, killed):
        self.crew, self.killed = crew, killed
        self.tokens = [f"token{number}" for number in range(9)]
        self.counts, self.wrong, self.stop = [0] * 3, [], threading.Event()
        for number, token in enumerate(self.tokens):
            if number % 3:
                durably(crew.places[number % 3] / token, token * 100)
            else:
                (crew.places[0] / token / "in").mkdir(parents=True)
                durably(crew.places[0] / token / "in" / "it", token * 100)

    def wander(self, part):
        try:
            chance = random.Random(part)
            while not self.stop.is_set():
                self.step(part, chance)
        except Exception as error:
            self.wrong.append(repr(error))

    def step(self, part, chance):
        token, places = chance.choice(self.tokens[part::3]), self.crew.places
        try:
            held = holders(places, token)
        except OSError:
            assert self.killed
            return
        if self.killed and not held:
            return  # on its way
        assert len(held) == 1, (token, held)
        try:
            move(self.crew, held[0], chance.choice([p for p in places if p != held[0]]), token)
        except (ControlError, OSError, KeyError, ValueError):
            assert self.killed
            time.sleep(0.05)
            return
        self.counts[part] += 1

    def look(self, names):
        """What is wrong in these snapshots ("": the present): (name, token, where it is)."""
        wrong = []
        for name in names:
            for number, token in enumerate(self.tokens):
                held = holders(self.crew.places, token, name)
                content = "in/it" if number % 3 == 0 else "."
                roots = [place / ".snapshots" / name if name else place for place in held]
                good = [(root / token / content).read_text() == token * 100 for root in roots]
                if good != [True]:
                    wrong.append((name, token, held))
                for place in self.crew.places:
                    root = place / ".snapshots" / name if name else place
                    assert not list(root.glob(f"{token}.moved*"))
        return wrong


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alive", "killed", "undelivered"])
def test_each_snapshot_holds_each_token_once(crew, how):
    """Snapshots are taken meanwhile, at each in turn; and the same while daemons are killed. If
    what was recorded isn't delivered, that is seen."""
    killed, seconds = how == "killed", 6 if how == "killed" else 3
    one = Wandering(crew, killed)
    if how == "undelivered":
        for number in range(3):
            crew.arm(number, "move.no-deliver")
    threads = [threading.Thread(target=one.wander, args=(part,)) for part in range(3)]
    kills, taken = [], []
    if killed:
        arguments = (crew, one.stop, kills, one.wrong)
        threads.append(threading.Thread(target=kill_now_and_then, args=arguments))
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 60
        enough = time.monotonic() + seconds
        while time.monotonic() < deadline and all(thread.is_alive() for thread in threads):
            name = f"tokens-{how}-{len(taken)}"
            try:
                if crew.snapshot(name, len(taken) % 3).state == "committed":
                    taken.append(name)
            except (ControlError, OSError, ValueError):
                assert killed
                time.sleep(0.05)
            if how == "undelivered" and len(taken) % 10 == 0 and taken and one.look(taken[-10:]):
                break
            done = len(taken) > 5 and min(one.counts) > 3 and (not killed or len(kills) > 3)
            if done and time.monotonic() > enough and how != "undelivered":
                break
    finally:
        one.stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not one.wrong, one.wrong
    crew.settle()
    print(f"{len(taken)} snapshots, {one.counts} moves, {len(kills)} kills")
    assert min(one.counts) > 3 or how == "undelivered"
    same = crew.same_everywhere()
    assert set(taken) <= set(same)
    wrong = one.look(["", *(name for name in same if name.startswith(f"tokens-{how}"))])
    if how == "undelivered":
        assert wrong and all(name and not held for name, _, held in wrong)
        return
    assert not wrong, wrong[:10]
    middle = taken[len(taken) // 2]
    crew.group("rollback", "-y", str(crew.places[0]), middle)
    assert one.look([""]) == []
    for token in one.tokens:
        assert holders(crew.places, token) == holders(crew.places, token, middle)


@pytest.mark.slow
def test_moves_that_wait_for_each_others_room(workshop):
    """The group's check tells of the deadlock; who gives up makes room for the other."""
    crew = Armed(workshop, count=2, size=64 << 20)
    crew.init()
    places = crew.places
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
    wait_until(lambda: not deadlocked(), "no deadlock any more", timeout_s=20)
    assert (places[0] / "big0").exists()
    os.unlink(places[0] / "big0")
    assert waiting[1].wait(60) == 0
    assert [os.listdir(place) for place in places] == [["big1"], []]
    crew.settle()
    crew.group("check", "crew")
    crew.finish()


def gone(crew, names):
    """Given to a volume that is gone before it had names for them."""
    a, b, _ = crew.places
    crew.arm(1, "move.hold-link")
    threads = [moving(crew, a, b, name) for name in names]
    wait_until(lambda: not set(names) & set(os.listdir(a)), "all are given", timeout_s=20)
    crew.volumes[1].kill()
    return threads


def held_open(path):
    """The directory, as a program has it that was there before."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def test_what_is_given_is_out_of_reach_and_goes_on_after_a_mount(crew):
    """The target is away while things are on their way to it; who is in a directory that was given
    can't write there; both sides are killed, and all arrives."""
    a, b, _ = crew.places
    durably(a / "file", "content" * 1000)
    (a / "d").mkdir()
    durably(a / "d" / "f", "before")
    crew.shop.run("raidfs-ctl", "snapshot", "create", a, "s")
    directory = held_open(a / "d")
    assert (a / "d" / "f").read_text() == "before"  # known to the kernel
    threads = gone(crew, ("file", "d"))
    try:
        for name, flags in (
            ("f", os.O_WRONLY | os.O_APPEND),
            ("f", os.O_WRONLY | os.O_TRUNC),
            ("new", os.O_WRONLY | os.O_CREAT),
        ):
            with pytest.raises(OSError) as refused:
                os.close(os.open(name, flags, dir_fd=directory))
            assert refused.value.errno in (errno.ESTALE, errno.ENOENT)
        with pytest.raises(OSError):
            os.unlink("f", dir_fd=directory)
        with pytest.raises(OSError):
            os.utime("f", dir_fd=directory)
    finally:
        os.close(directory)
    refused = crew.shop.run("raidfs-ctl", "snapshot", "rollback", "-y", a, "s", expect=1)
    assert "on their way" in refused.stderr
    crew.volumes[0].kill()
    for thread in threads:
        thread.join(30)
    crew.mount(0)
    assert os.listdir(a) == []
    crew.mount(1)
    crew.settle()
    assert (b / "file").read_text() == "content" * 1000 and os.listdir(a) == []
    assert (b / "d" / "f").read_text() == "before"
    crew.shop.run("raidfs-ctl", "snapshot", "delete", "-y", a, "s")


APPENDER = """
import os, random, sys, time
name, said, *places = sys.argv[1:]
paths = [os.path.join(place, name) for place in places]
chance, number, said = random.Random(name), 0, open(said, "a")
while not os.path.exists(places[0] + "/stop"):
    time.sleep(chance.random() * 0.08)
    for path in paths:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError:
            continue
        os.write(fd, f"{number}\\n".encode())
        os.close(fd)
        print(number, file=said, flush=True)
        number += 1
"""


@pytest.mark.slow
def test_every_append_is_where_the_file_ends_up(crew):
    """Programs append through the path, wherever it leads to, while the file goes to and fro."""
    a, b, _ = crew.places
    names = [f"log{number}" for number in range(4)]
    for name in names:
        durably(a / name, "")
    told = {name: crew.shop.directory / f"{name}.said" for name in names}
    words = [sys.executable, "-c", APPENDER]
    programs = [subprocess.Popen([*words, name, told[name], a, b]) for name in names]
    try:
        wait_until(lambda: all(path.exists() for path in told.values()), "all append")
        moved, deadline = 0, time.monotonic() + 120
        while moved < 24 and time.monotonic() < deadline:
            for name in names:
                (at,) = holders((a, b), name)
                try:
                    move(crew, at, b if at == a else a, name)
                    moved += 1
                except ControlError as error:
                    assert "open" in str(error) or "changed" in str(error), error
        (a / "stop").touch()
        for program in programs:
            program.wait(30)
    finally:
        for program in programs:
            program.kill()
            program.wait()
    said = {name: path.read_text() for name, path in told.items()}
    os.unlink(a / "stop")
    crew.settle()
    print(f"{moved} moves, {[text.count(chr(10)) for text in said.values()]} appends")
    assert moved >= 24
    for name, text in said.items():
        (at,) = holders((a, b), name)
        assert (at / name).read_text() == text and text.count("\n") > 20


def test_a_target_that_is_gone(crew):
    """Status names what was given to it; a person decides; a snapshot without it waits for that."""
    a, b, _ = crew.places
    for name in ("one", "two", "three"):
        durably(a / name, name * 1000)
    (a / "taken").mkdir()
    threads = gone(crew, ("one", "two", "three"))
    assert os.listdir(a) == ["taken"]
    moves = {one["name"]: one for one in crew.told("status", str(a), expect=1)["moves"]}
    assert moves.keys() == {"one", "two", "three"}
    assert all(
        one["state"] == "given" and one["begun_ns"] and not one["up"] for one in moves.values()
    )
    assert moves["one"]["id"] in crew.group("status", a, expect=1).stdout
    refused = crew.group("snapshot", a, "alone", "--allow-missing", expect=1)
    assert "would be in no part" in refused.stderr and "resolve" in refused.stderr
    asked = crew.group("resolve", a, moves["one"]["id"], "abort", expect=1)
    assert "it is in both" in asked.stdout + asked.stderr and "one" not in os.listdir(a)
    durably(a / "one", "somebody else's")
    crew.group("resolve", "-y", a, moves["one"]["id"], "abort")
    (back,) = [name for name in os.listdir(a) if name.startswith("one.moved")]
    assert (a / back).read_text() == "one" * 1000
    crew.group("resolve", "-y", a, moves["two"]["id"], "commit")
    assert "two" not in os.listdir(a)
    crew.group("snapshot", a, "alone", "--allow-missing", expect=1)
    crew.group("resolve", "-y", a, moves["three"]["id"], "abort")
    assert (a / "three").read_text() == "three" * 1000
    assert crew.told("status", str(a), expect=1)["moves"] == []
    for thread in threads:
        thread.join(30)
    crew.group("snapshot", a, "alone", "--allow-missing")
    with open(a / "three", "a") as file:
        file.write("more")
    # it comes back: what was taken back is dropped there, and so is what it was believed to have
    crew.mount(1)
    crew.settle()
    assert os.listdir(b) == [] and sorted(os.listdir(a)) == ["one", back, "taken", "three"]
    refused = crew.group("resolve", "-y", a, moves["three"]["id"], "abort", expect=1)
    assert "Traceback" not in refused.stderr


def test_a_source_that_is_gone(crew):
    """What was staged from it gets its name, or goes, as a person says."""
    a, b, _ = crew.places
    for name in ("x", "y"):
        durably(a / name, name * 1000)
    crew.arm(0, "move.hold-give")
    threads = [moving(crew, a, b, name) for name in ("x", "y")]
    wait_until(lambda: [one.state for one in crew.status(1).moves] == ["staged"] * 2, "staged")
    crew.volumes[0].kill()
    moves = {one["name"]: one["id"] for one in crew.told("status", str(b), expect=1)["moves"]}
    for name, verdict in (("x", "commit"), ("y", "abort")):
        crew.group("resolve", "-y", b, moves[name], verdict)
    assert os.listdir(b) == ["x"] and (b / "x").read_text() == "x" * 1000
    assert crew.told("status", str(b), expect=1)["moves"] == []
    crew.mount(0)
    for thread in threads:
        thread.join(30)
    # it may have given both, for all that it knows; the target knows of neither any more
    wait_until(lambda: all("unknown" in one.state for one in crew.status(0).moves), "it is told")
    assert os.listdir(a) == [] and "unknown there" in crew.group("status", a, expect=None).stdout
    for name, verdict in (("x", "commit"), ("y", "abort")):
        crew.group("resolve", "-y", a, moves[name], verdict)
    crew.settle()
    assert (os.listdir(a), os.listdir(b)) == (["y"], ["x"])


@pytest.mark.slow
def test_a_large_directory(crew):
    """Of as many entries as would take a tenth of a second to look at in one step; the step that
    gives them is short, and they are all there."""
    a, b, _ = crew.places
    (a / "many").mkdir()
    for number in range(70):
        (a / "many" / str(number)).mkdir()
        first = a / "many" / str(number) / "first"
        first.touch()
        for name in range(80):
            os.link(first, a / "many" / str(number) / str(name))
    move(crew, a, b, "many")
    assert os.listdir(a) == []
    assert sum(len(files) for _, _, files in os.walk(b / "many")) == 70 * 81
    log = crew.volumes[0].log.read_text()
    items, given_us = re.findall(r"move of many: (\d+) items given in (\d+) us", log)[-1]
    assert int(items) == 70 * 82 + 1
    print(f"{items} items given in {given_us} us")
    assert int(given_us) < 50_000


@pytest.mark.slow
def test_content_goes_on_where_it_was(crew):
    """The target dies at a piece, and at another one when it has gone on."""
    a, b, _ = crew.places
    content = os.urandom(24 << 20)
    (a / "file").write_bytes(content)
    crew.arm(1, "move.fetch:50")
    thread = moving(crew, a, b, "file")
    crew.died(1)
    assert (a / "file").exists()
    crew.mount(1, "move.fetch:20")
    crew.died(1)
    crew.mount(1)
    thread.join(60)
    crew.settle()
    assert (b / "file").read_bytes() == content and os.listdir(a) == []
