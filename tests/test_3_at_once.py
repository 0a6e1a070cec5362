"""Small commits on members whose syncs take no time: done at once, without waking a thread; and as
soon as one of them has to be waited for, beside the event loop."""

import os
import threading
import time
from pathlib import Path

import pytest
import trio
from volumes import ROOT, content, make_members, mounted

from raidfs.raid.directory import DirectoryMember

MEMORY = Path("/dev/shm")


@pytest.fixture
def members(tmp_path_factory):
    if not MEMORY.is_dir():
        pytest.skip("no memory to lay members in")
    path = MEMORY / f"raidfs-test-{os.getpid()}-{tmp_path_factory.getbasetemp().name}"
    path.mkdir()
    yield make_members(path, 3)
    for root, directories, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(root, name))
        for name in directories:
            os.rmdir(os.path.join(root, name))
    path.rmdir()


def test_at_once_where_syncs_take_no_time_and_beside_the_loop_where_they_do(members, monkeypatch):
    wait_s, threads = 0.0, []
    real = DirectoryMember.meta_write_synced

    def watched(self, *args):
        threads.append(threading.current_thread())
        if wait_s:
            time.sleep(wait_s)
        real(self, *args)

    monkeypatch.setattr(DirectoryMember, "meta_write_synced", watched)

    async def commits(volume, ino, count):
        threads.clear()
        for number in range(count):
            await volume.write(ino, 4096 * (number % 7), bytes([number % 256]) * 4096)
            await volume.fsync(ino)
        return sum(thread is threading.main_thread() for thread in threads) / len(threads)

    async def at_once(volume, ino):
        """Sooner or later; other processes may get in between."""
        for _ in range(50):
            if await commits(volume, ino, 10) > 0.5:
                return True
        return False

    async def run():
        nonlocal wait_s
        async with mounted(members) as volume:
            ino = volume.create(1, b"file", 0o644, os.O_RDWR, ROOT).ino
            assert await commits(volume, ino, 1) == 0  # nothing is known of them yet
            assert await at_once(volume, ino)
            wait_s = 0.005
            await commits(volume, ino, 30)
            assert await commits(volume, ino, 10) == 0
            assert len(set(threads)) == 3  # and side by side
            wait_s = 0.0
            assert await at_once(volume, ino)
            await commits(volume, ino, 60)
            volume.release(ino)
        async with mounted(members) as volume:
            ino = volume.lookup(1, b"file").ino
            volume.open(ino, os.O_RDONLY)
            expected = b"".join(
                bytes([max(n for n in range(60) if n % 7 == page)]) * 4096 for page in range(7)
            )
            assert await content(volume, ino) == expected
            volume.release(ino)

    trio.run(run)
