"""`convert` and `rebalance` on real mounts, as users type them."""

import errno
import json
import os
import random
import threading
import time

import pytest
from mounting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SIZE = 64 << 20  # of each member
PIECE = 64 << 10


class Writer(threading.Thread):
    """Writes pieces here and there in a file, with an fsync now and then, and remembers what was
    told; stops by itself when the mount is gone."""

    def __init__(self, path, seed):
        super().__init__()
        self.path, self.random = path, random.Random(seed)
        self.synced, self.told = {}, {}  # piece -> seed of its content
        self.ended = threading.Event()
        self.count = 0

    @staticmethod
    def content(piece, seed):
        return random.Random(piece << 32 | seed).randbytes(PIECE)

    def run(self):
        try:
            with open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0) as file:
                while not self.ended.is_set():
                    piece, seed = self.random.randrange(100), self.random.randrange(1 << 30)
                    self.told.setdefault(piece, []).append(seed)
                    os.pwrite(file.fileno(), self.content(piece, seed), piece * PIECE)
                    self.count += 1
                    if self.random.random() < 0.1:
                        os.fsync(file.fileno())
                        self.synced = {p: seeds[-1] for p, seeds in self.told.items()}
                        self.told = {p: seeds[-1:] for p, seeds in self.told.items()}
                    time.sleep(0.002)
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.EIO), (
                error
            )

    def verify(self, *, killed):
        """Each piece is the one told last, or after a kill the one synced or a later one."""
        with self.path.open("rb") as file:
            for piece, seeds in self.told.items():
                found = os.pread(file.fileno(), PIECE, piece * PIECE)
                may = seeds if killed else seeds[-1:]
                wanted = {self.content(piece, seed) for seed in may}
                if killed and piece not in self.synced:
                    wanted |= {b"", bytes(PIECE)}
                    wanted |= {content[: len(found)] for content in wanted}
                assert found in wanted, piece


def jobs_of(volume):
    done = volume.shop.run("raidfs-ctl", "job", "list", volume.mountpoint, "--json")
    return {each["kind"]: each for each in json.loads(done.stdout)["jobs"]}


def test_a_conversion_under_writes_is_killed_and_goes_on(workshop):
    """From 5 to 6 with a snapshot, kill -9 in the middle; then a member less."""
    volume = workshop.volume(6, level="5", width=5, size=SIZE, zone_bytes=1 << 20, mounted=True)
    root = volume.mountpoint
    still = random.Random(1).randbytes(12 << 20)
    (root / "still").write_bytes(still)
    workshop.run("raidfs-ctl", "snapshot", "create", root, "before")
    planned = json.loads(volume.ctl("convert", "--level", "6", "--dry-run", "--json").stdout)
    assert planned["done"] is False and planned["losses"] == [1, 2]
    assert planned["move_bytes"] >= len(still)
    assert planned["usable_bytes"][1] > planned["usable_bytes"][0] // 2
    assert volume.status()["level"] == "5"
    writer = Writer(root / "moving", 1)
    writer.start()
    workshop.run("raidfs-ctl", "job", "limit", root, "convert", "2M")
    said = volume.ctl("convert", "--level", "6").stdout
    assert "level 6, 6 wide" in said and "losses survived: 1 before, 2 afterwards" in said
    wait_until(lambda: jobs_of(volume)["convert"]["done_bytes"] > 1 << 20, "something is moved")
    told = jobs_of(volume)["convert"]
    assert told["state"] == "running" and told["left_bytes"] > 0 and told["seconds_left"]
    volume.kill()
    writer.join()
    assert writer.count > 20

    volume.mount()
    writer.verify(killed=True)
    workshop.run("raidfs-ctl", "job", "limit", root, "convert", "none")
    again = Writer(root / "again", 2)
    again.start()
    done = workshop.run("raidfs-ctl", "wait", root, "convert")
    again.ended.set()
    again.join()
    assert "done" in done.stdout or "nothing" in done.stdout
    again.verify(killed=False)
    writer.verify(killed=True)
    assert (root / "still").read_bytes() == still
    assert (root / ".snapshots" / "before" / "still").read_bytes() == still
    events = volume.ctl("events").stdout
    assert "ConvertStarted" in events and "ConvertFinished" in events
    status = volume.status()
    assert (status["level"], status["width"], status["losses_survived"]) == ("6", 6, 2)
    volume.unmount()
    volume.check()
    for number in (1, 4):
        volume.members[number].rename(volume.members[number].with_suffix(".gone"))
    volume.mount("degraded")
    assert (root / "still").read_bytes() == still
    again.verify(killed=False)


def test_what_cannot_be_is_refused_in_words(workshop):
    volume = workshop.volume(4, level="5", width=4, size=28 << 20, zone_bytes=1 << 20, mounted=True)
    ctl = volume.ctl
    assert "--level, --width" in ctl("convert", expect=1).stderr
    assert "at least 10 members" in ctl("convert", "--level", "rs:8+2", expect=1).stderr
    (volume.mountpoint / "file").write_bytes(os.urandom(30 << 20))
    ctl("sync")
    refused = ctl("convert", "--level", "1", "--width", "4", expect=1).stderr
    assert "are stored, and at level 1, 4 wide, the members have room for" in refused
    less = ctl("convert", "--level", "0", expect=1)
    assert "survives NO LOSS of its members instead of the loss of 1" in less.stderr
    ctl("convert", "--level", "0", "--yes", "--wait")
    assert volume.status()["level"] == "0"
    assert "nothing to do" in ctl("rebalance").stdout
    volume.unmount()
    assert (
        "not mounted"
        in workshop.run("raidfs-ctl", "convert", "--level", "5", volume.members[0], expect=1).stderr
    )
    volume.check()


def test_an_added_member_gets_its_part(workshop):
    """With the mount in use; then without one of the old ones."""
    volume = workshop.volume(3, level="5", width=3, size=SIZE, zone_bytes=1 << 20, mounted=True)
    root = volume.mountpoint
    content = random.Random(3).randbytes(30 << 20)
    (root / "file").write_bytes(content)
    volume.ctl("sync")
    (new,) = workshop.directories(1, prefix="new")
    workshop.run("raidfs-ctl", "member", "add", "--size", "64M", root, new)
    planned = json.loads(volume.ctl("rebalance", "--dry-run", "--json").stdout)
    assert planned["move_bytes"] > len(content) // 6 and not planned["done"]
    writer = Writer(root / "moving", 3)
    writer.start()
    said = volume.ctl("rebalance", "--wait").stdout
    writer.ended.set()
    writer.join()
    assert "moved from the fullest members" in said and "rebalance: done" in said
    writer.verify(killed=False)
    columns = [sum(p.is_file() for p in member.rglob("zones/*/*")) for member in volume.members]
    assert (root / "file").read_bytes() == content
    kinds = volume.ctl("events").stdout
    assert "RebalanceStarted" in kinds and "RebalanceFinished" in kinds
    mine = sum(p.is_file() for p in new.rglob("zones/*/*"))
    assert mine > max(columns) * 0.55, "in proportion to its slots: it has a little less room"
    volume.unmount()
    volume.check()
    volume.members[0].rename(volume.members[0].with_suffix(".gone"))
    volume.mount("degraded", source=new)
    assert (root / "file").read_bytes() == content
    writer.verify(killed=False)
