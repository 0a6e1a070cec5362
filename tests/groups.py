"""Groups of mounted volumes for tests, and the programs of ordered.py on them."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from mounting import run, wait_until
from ordered import KINDS, count_of, counts_in, impossible, possible

from raidfs.daemon.control import ControlClient, ControlError
from raidfs.daemon.group_requests import (
    GroupListed,
    GroupListRequest,
    GroupSnapshotRequest,
    GroupStatus,
    GroupStatusRequest,
    GroupTaken,
    GroupWaitRequest,
)

NAME = "crew"
PROGRAM = Path(__file__).with_name("ordered.py")


class Crew:
    """Some mounted volumes in one group."""

    def __init__(self, shop, count=3, faults=None, **volume):
        """`faults`: by number of the volume, RAIDFS_FAULT of its daemon."""
        self.shop = shop
        self.faults = faults or {}
        shop.env["RAIDFS_STATE_DIR"] = str(shop.directory / "state")
        self._given = {"members": 2, "level": "1", **volume}
        self.volumes = []
        for _ in range(count):
            self.add()

    def add(self):
        """Another volume, mounted."""
        self.volumes.append(self.shop.volume(**self._given))
        number = len(self.volumes) - 1
        self.mount(number, self.faults.get(number, ""))

    def mount(self, number, fault=""):
        if not fault.startswith("@"):
            self.arm(number, fault)
            fault = f"@{self._fault(number)}"
        self.shop.env["RAIDFS_FAULT"] = fault
        self.volumes[number].mount()
        self.shop.env["RAIDFS_FAULT"] = ""

    def _fault(self, number):
        return self.shop.directory / f"fault{number}"

    def arm(self, number, words):
        """What goes wrong in that volume's daemon from now on (daemon/fault.py)."""
        there = self._fault(number)
        new = there.with_suffix(".new")
        new.write_text(words)
        new.rename(there)

    def died(self, number):
        """Returns when the daemon has killed itself; its mount is cleared away."""
        volume = self.volumes[number]
        wait_until(lambda: not volume._daemons(), f"{volume.mountpoint} dies", timeout_s=20)
        self.arm(number, "")
        volume.pid = None
        self.shop.run("umount", "-l", volume.mountpoint, expect=None)

    def init(self, *words, expect=0):
        """All are reached on return."""
        places = [volume.mountpoint for volume in self.volumes]
        done = self.group("init", NAME, *places, *words, expect=expect)
        if expect == 0:
            self.settle()
        return done

    def group(self, *words, **options):
        return self.shop.run("raidfs-ctl", "group", *words, **options)

    def told(self, *words, expect=0):
        """JSON of a command."""
        return json.loads(self.group(*words, "--json", expect=expect).stdout)

    def socket(self, number):
        """The control socket of that volume's daemon."""
        entries = [json.loads(path.read_text()) for path in self.shop.runtime.glob("*.json")]
        place = str(self.volumes[number].mountpoint)
        (found,) = [one["volume_id"] for one in entries if one["mountpoint"] == place]
        return self.shop.runtime / f"{found}.sock"

    def ask(self, number, request, kind, timeout_s=60):
        """The answer of that volume's daemon."""
        with ControlClient(self.socket(number)) as client:
            return msgspec.json.decode(client.ask(request, timeout_s), type=kind)

    def snapshot(self, name, number=0, **options):
        return self.ask(number, GroupSnapshotRequest(name=name, **options), GroupTaken)

    def status(self, number=0):
        return self.ask(number, GroupStatusRequest(), GroupStatus)

    def settle(self, *numbers):
        """All are reached and nothing is in doubt, as all of these see it."""
        for number in numbers or range(len(self.volumes)):
            self.ask(number, GroupWaitRequest(timeout_s=30), GroupStatus)

    def names(self, number):
        """Group snapshots that one volume has."""
        listed = self.ask(number, GroupListRequest(), GroupListed)
        return {one.name: (one.id, one.created_ns) for one in listed.snapshots}

    def same_everywhere(self):
        """The group snapshots, which all volumes have alike."""
        told = [self.names(number) for number in range(len(self.volumes))]
        assert all(one == told[0] for one in told), told
        return told[0]

    def unmount(self):
        """All that are mounted."""
        for volume in self.volumes:
            if volume.pid is not None:
                volume.unmount()

    def finish(self):
        """All unmounted and checked."""
        self.unmount()
        for volume in self.volumes:
            volume.check()

    @contextlib.contextmanager
    def writers(self, kinds=KINDS):
        """Going on inside of the `with`; yields what each says in the end, by kind."""
        places = [str(volume.mountpoint) for volume in self.volumes]
        crowd, told = {}, {}
        try:
            for kind in kinds:
                words = [sys.executable, str(PROGRAM), kind, *places]
                crowd[kind] = one = subprocess.Popen(words, stdout=subprocess.PIPE)
                assert one.stdout.readline() == b"ready\n"
            yield told
            assert all(one.poll() is None for one in crowd.values()), "a writer ended"
            for one in crowd.values():
                one.terminate()
            for kind, one in crowd.items():
                told[kind] = json.loads(one.communicate(timeout=30)[0])
        finally:
            for one in crowd.values():
                one.kill()
                one.wait()
                one.stdout.close()

    def counts(self, name, kinds=KINDS):
        """By kind of writer: its count in each volume, in a snapshot (or, "", now)."""
        places = [volume.mountpoint for volume in self.volumes]
        if name:
            places = [place / ".snapshots" / name for place in places]
        return counts_in(places, kinds)

    def violations(self, names, kinds=KINDS):
        """What no program could have caused: (name, kind, counts)."""
        wrong = []
        for name in names:
            counts = self.counts(name, kinds)
            wrong += [(name, kind, counts[kind]) for kind in impossible(counts)]
        return wrong


def progress(crew, seconds=0.3):
    """How far the plain writer gets in that time, by the last volume's file."""
    path = crew.volumes[-1].mountpoint / KINDS[0]
    before = count_of(path)
    time.sleep(seconds)
    return count_of(path) - before


__all__ = [
    "KINDS", "NAME", "ControlError", "Crew", "Path", "possible", "progress", "run", "wait_until",
]  # fmt: skip
