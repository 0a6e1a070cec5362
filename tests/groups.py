"""Groups of mounted volumes for tests, and writers whose order of writes no snapshot may break."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from mounting import run, wait_until

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
# Writes its count to A, then B, then C, and again; each is answered before the next is asked for.
WRITER = """
import os, sys
kind, name, *places = sys.argv[1:]
paths = [os.path.join(place, name) for place in places]
if kind == "rename":
    for path in paths:
        os.mkdir(path)
        os.close(os.open(path + "/0", os.O_CREAT | os.O_WRONLY))
else:
    fds = [os.open(path, os.O_CREAT | os.O_RDWR, 0o600) for path in paths]
    for fd in fds:
        os.pwrite(fd, bytes(8), 0)
print("ready", flush=True)
number = 0
while True:
    number += 1
    word = number.to_bytes(8, "little")
    for at, path in enumerate(paths):
        if kind == "rename":
            os.rename(f"{path}/{number - 1}", f"{path}/{number}")
            continue
        os.pwrite(fds[at], word, 0)
        if kind == "fsync":
            os.fsync(fds[at])
"""
KINDS = ("write", "fsync", "rename")


class Crew:
    """Some mounted volumes in one group."""

    def __init__(self, shop, count=3, faults=None, **volume):
        """`faults`: by number of the volume, RAIDFS_FAULT of its daemon."""
        self.shop = shop
        self.faults = faults or {}
        shop.env["RAIDFS_STATE_DIR"] = str(shop.directory / "state")
        given = {"members": 2, "level": "1", **volume}
        self.volumes = [shop.volume(**given) for _ in range(count)]
        for number in range(count):
            self.mount(number, self.faults.get(number, ""))

    def mount(self, number, fault=""):
        self.shop.env["RAIDFS_FAULT"] = fault
        self.volumes[number].mount()
        self.shop.env["RAIDFS_FAULT"] = ""

    def init(self, *words, expect=0):
        places = [volume.mountpoint for volume in self.volumes]
        return self.group("init", NAME, *places, *words, expect=expect)

    def group(self, *words, **options):
        return self.shop.run("raidfs-ctl", "group", *words, **options)

    def told(self, *words, expect=0):
        """JSON of a command."""
        return json.loads(self.group(*words, "--json", expect=expect).stdout)

    def ask(self, number, request, kind, timeout_s=60):
        """The answer of that volume's daemon."""
        entries = [json.loads(path.read_text()) for path in self.shop.runtime.glob("*.json")]
        place = str(self.volumes[number].mountpoint)
        (found,) = [one["volume_id"] for one in entries if one["mountpoint"] == place]
        with ControlClient(self.shop.runtime / f"{found}.sock") as client:
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
        """Going on inside of the `with`; yields what tells whether they live."""
        places = [str(volume.mountpoint) for volume in self.volumes]
        crowd = []
        try:
            for kind in kinds:
                words = [sys.executable, "-c", WRITER, kind, kind, *places]
                crowd.append(subprocess.Popen(words, stdout=subprocess.PIPE))
                assert crowd[-1].stdout.readline() == b"ready\n"
            yield crowd
            assert all(one.poll() is None for one in crowd), "a writer ended"
        finally:
            for one in crowd:
                one.kill()
                one.wait()
                one.stdout.close()

    def counts(self, name, kinds=KINDS):
        """By kind of writer: its count in each volume, in a snapshot (or, "", now)."""
        found = {}
        for kind in kinds:
            found[kind] = []
            for volume in self.volumes:
                place = volume.mountpoint / ".snapshots" / name if name else volume.mountpoint
                found[kind].append(_count(place / kind))
        return found

    def violations(self, names, kinds=KINDS):
        """What no program could have caused. A count of None: before the writer began."""
        wrong = []
        for name in names:
            for kind, counts in self.counts(name, kinds).items():
                if not possible(counts):
                    wrong.append((name, kind, counts))
        return wrong


def _count(path):
    if path.is_dir():
        (name,) = os.listdir(path)
        return int(name)
    return int.from_bytes(path.read_bytes(), "little")


def possible(counts):
    """A counts before B, B before C, and C before A goes on: 5 5 5, 6 5 5, 6 6 5, 6 6 6."""
    return sorted(counts, reverse=True) == counts and counts[0] - counts[-1] <= 1


def progress(crew, seconds=0.3):
    """How far the plain writer gets in that time, by the last volume's file."""
    path = crew.volumes[-1].mountpoint / KINDS[0]
    before = _count(path)
    time.sleep(seconds)
    return _count(path) - before


__all__ = [
    "KINDS", "NAME", "ControlError", "Crew", "Path", "possible", "progress", "run", "wait_until",
]  # fmt: skip
