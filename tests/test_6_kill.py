"""kill -9 of the daemon during writes, again and again: after each, the volume is exactly the state
after one of the operations told before, and not an older one than the last fsync that returned."""

import contextlib
import os
import random
import signal
import threading
import zlib

import pytest
from mounting import run

ROUNDS = 50
NAMES = [f"name{number}" for number in range(12)]
SEED = int(os.environ.get("RAIDFS_TEST_SEED", "20240607"))


class Model:
    """What the directory must hold: name -> content. Digests tell states apart."""

    def __init__(self):
        self.files = {}

    def digest(self):
        return hash(tuple(sorted((n, len(c), zlib.crc32(c)) for n, c in self.files.items())))


def one_operation(dice, model, root):
    """Chooses one operation; returns (do it for real, do it in the model). Each is one request."""
    name = dice.choice(NAMES)
    path = os.path.join(root, name)
    old = model.files.get(name)
    if old is None:

        def create():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))

        return create, lambda: model.files.update({name: b""})
    kind = dice.choice(["write", "write", "write", "truncate", "rename", "unlink"])
    if kind == "write":
        offset = dice.randrange(0, len(old) + 3000)
        data = dice.randbytes(dice.choice([1, 100, 4096, 5000, 60_000]))
        if offset % 4096 + len(data) > 4096:
            # The kernel sends a page that it has only in part by itself, and the rest after it: a
            # write(2) from the middle of one page into the next is two requests, not one.
            offset -= offset % 4096

        def write():
            fd = os.open(path, os.O_WRONLY)
            with contextlib.closing(os.fdopen(fd, "wb", buffering=0)):
                assert os.pwrite(fd, data, offset) == len(data)

        padded = old.ljust(offset, b"\0")
        new = padded[:offset] + data + padded[offset + len(data) :]
        return write, lambda: model.files.update({name: new})
    if kind == "truncate":
        size = dice.randrange(0, len(old) + 5000)
        return lambda: os.truncate(path, size), lambda: model.files.update(
            {name: old[:size].ljust(size, b"\0")}
        )
    if kind == "rename":
        other = dice.choice(NAMES)

        def renamed():
            if other != name:
                model.files[other] = model.files.pop(name)

        return lambda: os.rename(path, os.path.join(root, other)), renamed
    return lambda: os.unlink(path), lambda: model.files.pop(name)


def work_until_killed(dice, model, volume):
    """Operations and now and then an fsync, until the daemon is gone. Returns the digests of all
    states from the last acknowledged one on, each with the state itself."""
    states = [(model.digest(), dict(model.files))]
    timer = threading.Timer(dice.uniform(0.02, 0.4), os.kill, (volume.pid, signal.SIGKILL))
    timer.start()
    root = str(volume.mountpoint)
    try:
        while True:
            real, modelled = one_operation(dice, model, root)
            modelled()
            states.append((model.digest(), dict(model.files)))  # it may have happened
            real()
            if dice.random() < 0.05:
                fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
                with contextlib.ExitStack() as cleanup:
                    cleanup.callback(os.close, fd)
                    os.fsync(fd)
                states = states[-1:]
    except OSError:
        pass
    finally:
        timer.join()
    return states


def found_in(volume):
    return {path.name: path.read_bytes() for path in volume.mountpoint.iterdir()}


def nearest(found, states):
    """Tells how what was found differs from the state that is most like it."""
    told = {}
    for number, (_, files) in enumerate(states):
        names = [n for n in {*found, *files} if found.get(n) != files.get(n)]
        told[number] = [(n, described(files.get(n)), described(found.get(n))) for n in names]
    best = min(told, key=lambda number: len(told[number]))
    return (
        f"a state that never was, or was too old; nearest is {best} of 0 (acknowledged) to"
        f" {len(states) - 1} but for (name, expected, found): {told[best]}"
    )


def described(content):
    return None if content is None else (len(content), zlib.crc32(content))


@pytest.mark.slow
@pytest.mark.mount
def test_fifty_kills(workshop):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    dice = random.Random(SEED)
    volume = workshop.volume(3, level="5", mounted=True)
    model = Model()
    lengths = []
    for turn in range(ROUNDS):
        states = work_until_killed(dice, model, volume)
        volume.wait_gone()
        run("umount", "-l", volume.mountpoint)
        if turn % 5 == 0:
            volume.check()
        volume.mount()
        found = found_in(volume)
        model.files = dict(found)
        digests = [digest for digest, _ in states]
        assert model.digest() in digests, f"round {turn}: {nearest(found, states)}"
        lengths.append(len(states) - 1 - digests.index(model.digest()))
    volume.unmount()
    volume.check()
    print(f"operations lost at each kill, never one that was acknowledged: {lengths}")
