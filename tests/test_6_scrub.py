"""Scrubs of mounted volumes by command; killed in the middle under load, they go on."""

import json
import os
import random
import subprocess
import sys

import pytest
from mounting import wait_until

MIB = 1 << 20
CELL = 4096
WRITER = """
import os, random, sys
path, name = sys.argv[1], 0
while True:
    with open(f"{path}/load{name % 4}", "wb") as file:
        file.write(random.Random(name).randbytes(700_000))
        file.flush()
        os.fsync(file.fileno())
    name += 1
"""


def scrub(volume, *words, expect=0):
    done = volume.shop.run("raidfs-ctl", "scrub", words[0], "--json", *words[1:], expect=expect)
    return json.loads(done.stdout)


def columns(volume, member):
    root = volume.members[member] / "zones"
    return sorted(p for p in root.rglob("*.*") if p.parent != root)


def damage(path, cells):
    """A bit of each of these cells."""
    with path.open("r+b") as file:
        for cell in cells:
            file.seek(cell * CELL + 11)
            byte = file.read(1)[0]
            file.seek(cell * CELL + 11)
            file.write(bytes([byte ^ 1]))


@pytest.mark.slow
def test_scrub_by_command(workshop):
    volume = workshop.volume(3, level="5", name="tank", zone_bytes=MIB, mounted=True)
    told = scrub(volume, "status", volume.mountpoint)
    assert told["state"] == "none" and told["version"] == 1
    (volume.mountpoint / "sub").mkdir()
    content = random.Random(1).randbytes(3 * MIB)
    (volume.mountpoint / "sub" / "file").write_bytes(content)
    volume.ctl("sync")
    told = scrub(volume, "start", "--wait", volume.mountpoint)
    assert told["state"] == "finished" and told["ok"] and told["done_bytes"] >= 3 * MIB
    damage(columns(volume, 0)[0], [1, 2, 30])
    told = scrub(volume, "start", "--wait", "--check-only", "tank", expect=1)
    assert sum(m["bad"] for m in told["members"]) == 3 and not told["ok"]
    done = workshop.run("raidfs-ctl", "scrub", "start", "--wait", "--", "tank")
    assert "3 damaged cells, 3 of them healed" in done.stdout
    assert volume.status()["scrub"]["healed_cells"] == 3
    for member in (0, 1):
        damage(columns(volume, member)[0], [5])
    told = scrub(volume, "start", "--wait", "tank", expect=1)
    assert [f["path"] for f in told["files"]] == ["/sub/file"] and told["rows_lost"] == 1
    done = workshop.run("raidfs-ctl", "scrub", "status", volume.mountpoint, expect=1)
    assert "/sub/file: " in done.stdout
    said = volume.ctl("status", expect=None).stdout
    assert "  scrub: finished on " in said and "1 files have pages that can't be read" in said
    kinds = [e["kind"] for e in json.loads(volume.ctl("events", "--json").stdout)["events"]]
    assert kinds.count("ScrubStarted") == kinds.count("ScrubFinished") == 4
    assert "Unrecoverable" in kinds
    lost, page = set(), told["files"][0]["page"]
    with (volume.mountpoint / "sub" / "file").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what the kernel has of it
        for number in range(3 * MIB // CELL):
            file.seek(number * CELL)
            try:
                assert file.read(CELL) == content[number * CELL : (number + 1) * CELL]
            except OSError:
                lost.add(number)
    assert page in lost and len(lost) == told["pages_lost"]
    for verb, said in (("pause", "no scrub is running"), ("resume", "no scrub is paused")):
        done = workshop.run("raidfs-ctl", "scrub", verb, volume.mountpoint, expect=1)
        assert said in done.stderr and "Traceback" not in done.stderr
    volume.unmount()
    told = scrub(volume, "status", volume.members[1], expect=1)
    assert told["state"] == "finished" and told["files_damaged"] == 1
    done = workshop.run("raidfs-ctl", "scrub", "start", volume.members[1], expect=1)
    assert "not mounted" in done.stderr
    done = workshop.run("raidfs-ctl", "scrub", "start", "--limit", "x", "tank", expect=2)
    assert "50M/s" in done.stderr


@pytest.mark.slow
def test_killed_in_the_middle_under_load(workshop):
    """On loop devices: damage all over one member, a slow scrub, kill -9 twice."""
    members = workshop.loop_devices(4, 96 * MIB)
    volume = workshop.volume(members, level="6", zone_bytes=MIB, mounted=True)
    content = random.Random(2).randbytes(24 * MIB)
    (volume.mountpoint / "file").write_bytes(content)
    volume.unmount()
    found = damage_device(volume.members[2], content)
    assert found > 300
    volume.mount()
    scrub(volume, "start", "--limit", "3M/s", volume.mountpoint)
    cursor = 0
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(volume.mountpoint)])
        try:
            before = cursor

            def went_on(before=before):
                return scrub(volume, "status", volume.mountpoint)["done_bytes"] > before + 4 * MIB

            wait_until(went_on, "the scrub is past a zone", 60)
            volume.ctl("sync")  # with it where the scrub is
            volume.kill()
        finally:
            writer.kill()
            writer.wait()
        volume.mount()
        told = scrub(volume, "status", volume.mountpoint)
        assert told["state"] in ("running", "waiting") and told["done_bytes"] > 0
        cursor = told["done_bytes"]
    workshop.run("raidfs-ctl", "scrub", "pause", volume.mountpoint)
    workshop.run("raidfs-ctl", "scrub", "resume", "--limit", "0", volume.mountpoint)
    told = scrub(volume, "start", "--wait", volume.mountpoint, expect=None)
    assert told["state"] == "finished" and told["ok"]
    again = scrub(volume, "start", "--wait", volume.mountpoint)
    assert not sum(m["bad"] + m["metadata"] + m["labels"] for m in again["members"])
    assert (volume.mountpoint / "file").read_bytes() == content
    volume.unmount()
    volume.check()


def damage_device(path, content):
    """Every 5th page of the content that lies there, found by its first bytes."""
    pages = {content[at : at + 16] for at in range(0, len(content), 5 * CELL)}
    damaged = []
    with open(path, "rb") as file:
        at = 0
        while data := file.read(MIB):
            damaged += [
                at + offset for offset in range(0, len(data), CELL) if data[offset:][:16] in pages
            ]
            at += len(data)
    with open(path, "r+b") as file:
        for place in damaged:
            file.seek(place + 100)
            file.write(b"not what was written")
    return len(damaged)
