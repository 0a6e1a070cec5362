"""Rollback of a mounted volume: what the kernel has cached, open files, programs at work."""

import contextlib
import errno
import json
import mmap
import os
import subprocess
import sys
import threading
import time

import pytest
from trees import described, make_odd_tree

pytestmark = pytest.mark.mount

WAYS = ["rw", "nolane", "writeback"]
# Makes, writes, renames, reads, removes; counts what went well, and the errnos of what did not.
WORKER = """
import collections, json, os, sys
place, seconds, count = sys.argv[1], float(sys.argv[2]), collections.Counter()
import time
end, n = time.monotonic() + seconds, 0
while time.monotonic() < end:
    n += 1
    try:
        path = f"{place}/{sys.argv[3]}-{n % 50}"
        with open(path, "wb") as file:
            file.write(b"x" * (n * 977 % 100_000))
            os.fsync(file.fileno()) if n % 20 == 0 else None
        os.rename(path, path + ".new")
        with open(path + ".new", "rb") as file:
            assert not file.read().strip(b"x")
        os.stat(f"{place}/odd/large")
        sorted(os.listdir(place))
        os.unlink(path + ".new")
        count["done"] += 1
    except OSError as error:
        count[str(error.errno)] += 1
print(json.dumps(count))
"""


def seen(volume):
    """With what the kernel has in its caches."""
    found = described(volume.mountpoint, numbers=True, atimes=False)
    for name in ("volume.state", *[name for name in found if "\udcff" in str(name)]):
        found.pop(name, None)
    return found


def roll(volume, name, *words):
    done = volume.shop.run(
        "raidfs-ctl",
        *("snapshot", "rollback", "--yes", "--json", volume.mountpoint, name, *words),
        timeout_s=40,
    )
    return json.loads(done.stdout)["rollback"]


def snapshot(volume, name):
    volume.shop.run("raidfs-ctl", "snapshot", "create", volume.mountpoint, name)


def upset(root):
    (root / "odd" / "small").write_bytes(b"now something else")
    os.rename(root / "odd" / "deep", root / "elsewhere")
    os.unlink(root / "odd" / "program")
    with (root / "odd" / "large").open("r+b") as file:
        file.seek(500_000)
        file.write(b"in the middle" * 1000)
    os.truncate(root / "odd" / "page", 100)
    os.setxattr(root / "odd" / "empty", "user.colour", b"red")
    (root / "odd" / "sparse").chmod(0o600)
    for number in range(100):
        (root / f"new {number}").write_bytes(b"new" * number)
    (root / "odd" / "fifo").unlink()
    (root / "odd" / "fifo").mkdir()


def open_files_go_on(root, held, added, way):
    """With what was then; not those that weren't there then, and with the kernel's write-back cache
    none that was changed since."""
    with pytest.raises(OSError) as caught:
        os.pread(added.fileno(), 4, 0)
    assert caught.value.errno in (errno.ESTALE, errno.EIO)
    if way == "writeback":
        for file in held:
            with pytest.raises(OSError, match="Input/output"):
                os.pread(file.fileno(), 4, 0)
        for file in (*held, added):
            with contextlib.suppress(OSError):
                file.close()
        return
    assert held[0].read() == b"small"
    held[1].seek(500_000)
    assert b"in the middle" not in held[1].read(50_000)
    held[0].seek(0)
    held[0].write(b"SMALL")
    for file in (*held, added):
        file.close()
    assert (root / "odd" / "small").read_bytes() == b"SMALL"
    (root / "odd" / "small").write_bytes(b"small")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_kernel_sees_what_was_then(workshop, way):
    volume = workshop.volume(mounted=True, options=[way])
    root = volume.mountpoint
    make_odd_tree(root)
    then = seen(volume)
    snapshot(volume, "one")
    held = [(root / "odd" / name).open("r+b") for name in ("small", "large")]
    upset(root)
    now = seen(volume)
    assert now != then
    added = (root / "new 7").open("r+b")
    added.read()
    directory = os.open(root / "elsewhere", os.O_RDONLY)
    done = roll(volume, "one", "--keep", "before")
    assert done["removed"] >= 101 and done["returned"] >= 1 and done["epoch"]
    assert seen(volume) == then
    open_files_go_on(root, held, added, way)
    assert sorted(os.listdir(directory)) == sorted(os.listdir(root / "odd" / "deep"))
    os.close(directory)
    with (root / "odd" / "small").open("r+b") as file, mmap.mmap(file.fileno(), 5) as mapped:
        assert mapped[:] == b"small"
    roll(volume, "before")
    assert seen(volume) == now
    volume.unmount()
    volume.check()
    volume.mount(way)
    assert seen(volume) == now
    roll(volume, "one")
    assert seen(volume) == then
    volume.unmount()
    workshop.run(  # and of a volume that is not mounted
        "raidfs-ctl", "snapshot", "rollback", "--yes", volume.members[1], "before"
    )
    volume.check()
    volume.mount(way)
    assert seen(volume) == now
    volume.unmount()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_programs_at_work_go_on(workshop, way):
    """They wait, or are told that a file is gone; none is kept waiting for ever."""
    volume = workshop.volume(mounted=True, options=[way])
    root = volume.mountpoint
    make_odd_tree(root)
    snapshot(volume, "one")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), "4", str(number)], stdout=subprocess.PIPE
        )
        for number in range(3)
    ]
    try:
        deadline = time.monotonic() + 3
        rolled = 0
        while time.monotonic() < deadline:
            roll(volume, "one")
            rolled += 1
        told = [json.loads(worker.communicate(timeout=30)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert rolled >= 2
    for each in told:
        assert each.pop("done") > 10
        assert {int(number) for number in each} <= {errno.ENOENT, errno.ESTALE, errno.EIO}, each
    roll(volume, "one")
    volume.unmount()
    volume.check()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rw", "nolane"])
def test_unmounted_meanwhile(workshop, way):
    """The mount ends in the middle: the rollback ends first, or never was."""
    volume = workshop.volume(mounted=True, options=[way])
    root = volume.mountpoint
    for number in range(3000):
        (root / f"{number}").touch()
    snapshot(volume, "one")
    for number in range(3000):
        (root / f"{number}").unlink()
    words = ["raidfs-ctl", "snapshot", "rollback", "--yes", root, "one"]
    rolling = threading.Thread(target=lambda: workshop.run(*words, expect=None))
    rolling.start()
    time.sleep(0.45)
    volume.unmount()
    rolling.join(30)
    assert not rolling.is_alive()
    volume.check()
    volume.mount(way)
    assert len(os.listdir(root)) in (0, 3000)
    volume.unmount()
