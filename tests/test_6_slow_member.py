"""Members that answer late or not at all, under a live mount: all that is read is right, reads go
around them once they are noticed; when they answer again, they are used again."""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import time

import pytest
from mounting import Workshop, wait_until
from slow_place import SlowPlace

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
DEADLINE_MS = 60
NEVER_S = 20.0  # a read that took so long has waited for a member


@contextlib.contextmanager
def slow_volume(tmp_path, level, members, slow=1, files=24, options=(), **create):
    """(volume, places that can be slow, content by name); read anew and checked at the end."""
    print(f"RAIDFS_TEST_SEED={SEED}")
    dice = random.Random(SEED)
    with contextlib.ExitStack() as stack:
        places = [
            stack.enter_context(SlowPlace(tmp_path / f"beneath{n}", tmp_path / f"slow{n}"))
            for n in range(slow)
        ]
        shop = stack.enter_context(Workshop(tmp_path))
        others = shop.directories(members - slow)
        paths = [place.path for place in places] + others
        volume = shop.volume(paths, level=level, size=48 << 20, zone_bytes=1 << 18, **create)
        words = (f"slow_read_ms={DEADLINE_MS}", "noatime", *options)
        volume.mount(*words, source=others[0])
        made = {}
        for number in range(files):
            made[f"file{number}"] = dice.randbytes(dice.choice((10, 4096, 50_000, 300_000)))
            (volume.mountpoint / f"file{number}").write_bytes(made[f"file{number}"])
        made["large"] = dice.randbytes(2 << 20)  # data, not parity alone, on each member
        (volume.mountpoint / "large").write_bytes(made["large"])
        volume.ctl("sync")
        try:
            yield volume, places, made
        finally:
            for place in places:
                place.read_delay_ms = 0
                place.go_on()
        volume.unmount()
        volume.check(source=others[0])


def read_all(volume, made):
    """Everything is as it was; how long the slowest file took. By another process, which can be
    ended whatever it waits for."""
    script = (
        "import sys, os, time, hashlib, json\n"
        "told = {}\n"
        "for name in sys.argv[2:]:\n"
        "    file = open(sys.argv[1] + '/' + name, 'rb')\n"
        "    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "    begun = time.monotonic()\n"
        "    data = file.read()\n"
        "    told[name] = [data.hex() if len(data) < 64 else hashlib.sha256(data).hexdigest(),\n"
        "                  time.monotonic() - begun]\n"
        "print(json.dumps(told))\n"
    )
    words = ["python3", "-c", script, str(volume.mountpoint), *made]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    for name, content in made.items():
        want = content.hex() if len(content) < 64 else hashlib.sha256(content).hexdigest()
        assert told[name][0] == want, name
    return max(took for _, took in told.values())


def statistics(volume):
    told = json.loads(volume.ctl("statistics", "--json").stdout)
    return told.get("statistics", told)


def slow_members(volume):
    members = statistics(volume)["members"].items()
    return {int(number) for number, it in members if it["slow_s"] is not None}


def has_event(volume, kind):
    return kind in volume.ctl("events", "--json").stdout


def wait_normal(volume):
    wait_until(lambda: not slow_members(volume), "all answer as usual", timeout_s=30)


def rebuilt(volume):
    told = statistics(volume)
    return told["array"]["cells_rebuilt"] + told["columns"]["cells_rebuilt"]


def test_a_member_that_never_answers_hangs_nobody(tmp_path):
    with slow_volume(tmp_path, "5", 4) as (volume, (place,), made):
        assert read_all(volume, made) < NEVER_S
        place.stop()
        read_all(volume, made)  # the first reads wait for the deadline
        assert slow_members(volume) == {0}
        assert read_all(volume, made) < NEVER_S
        assert rebuilt(volume) > 0
        place.go_on()
        wait_normal(volume)
        before = rebuilt(volume)
        read_all(volume, made)
        assert rebuilt(volume) == before  # it is read again


@pytest.mark.parametrize("options", [(), ("nolane",)])
def test_reads_go_around_a_slow_member(tmp_path, options):
    with slow_volume(tmp_path, "5", 4, options=options) as (volume, (place,), made):
        place.read_delay_ms = 1500
        read_all(volume, made)
        assert slow_members(volume) == {0}
        assert read_all(volume, made) < 1.0  # less than one read of it
        wait_until(lambda: has_event(volume, "MemberSlow"), "it is told")
        assert "slow for" in volume.ctl("status").stdout
        place.read_delay_ms = 0
        wait_normal(volume)
        assert has_event(volume, "MemberNormal")
        read_all(volume, made)


def test_two_slow_members_on_level_6(tmp_path):
    with slow_volume(tmp_path, "6", 5, slow=2) as (volume, places, made):
        places[0].read_delay_ms = 1500
        places[1].stop()
        read_all(volume, made)
        assert slow_members(volume) == {0, 1}
        assert read_all(volume, made) < 1.0
        places[1].go_on()
        places[0].read_delay_ms = 0
        wait_normal(volume)
        read_all(volume, made)


def test_too_few_others_are_left_so_reads_wait(tmp_path):
    with slow_volume(tmp_path, "5", 4, slow=2, files=6) as (volume, places, made):
        for place in places:
            place.read_delay_ms = 300
        read_all(volume, made)
        for place in places:
            place.read_delay_ms = 0
        wait_normal(volume)
        assert not any(it["read_errors"] for it in volume.status()["members"])


def test_without_redundancy_reads_wait(tmp_path):
    with slow_volume(tmp_path, "0", 3, files=6) as (volume, (place,), made):
        place.read_delay_ms = 300
        read_all(volume, made)
        place.stop()
        command = ["cat", *(str(volume.mountpoint / name) for name in made)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
            time.sleep(0.5)
            assert reader.poll() is None
            place.read_delay_ms = 0
            place.go_on()
            assert reader.communicate(timeout=30)[0] == b"".join(made.values())
        assert rebuilt(volume) == 0


def test_off_they_wait(tmp_path):
    with slow_volume(tmp_path, "5", 4, files=4, options=("slow_read_ms=0",)) as found:
        volume, (place,), made = found
        place.read_delay_ms = 200
        read_all(volume, made)
        assert rebuilt(volume) == 0


def test_a_member_is_replaced_and_all_is_scrubbed_beside_a_slow_one(tmp_path):
    with slow_volume(tmp_path, "6", 5) as (volume, (place,), made):
        place.read_delay_ms = 400
        read_all(volume, made)
        assert slow_members(volume) == {0}
        (tmp_path / "new").mkdir()
        words = ("replace", volume.mountpoint, volume.members[4], tmp_path / "new", "-y", "-w")
        volume.shop.run("raidfs-ctl", "member", *words)
        assert read_all(volume, made) < NEVER_S
        place.read_delay_ms = 100  # still slow; a scrub waits for it, as it is to look at all
        volume.shop.run("raidfs-ctl", "scrub", "start", volume.mountpoint)
        wait_until(lambda: has_event(volume, "ScrubFinished"), "the scrub is over", timeout_s=60)
        read_all(volume, made)
        assert slow_members(volume) == {0}
        told = volume.status()["members"]
        assert not any(it["read_errors"] or it["checksum_errors"] for it in told)
        assert not any(statistics(volume)["healed"].values())
