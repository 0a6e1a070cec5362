"""A full volume on a real mount: it says so when the write arrives and never later; what it took it
keeps; deleting works and gives the room back."""

import contextlib
import errno
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from mounting import run

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SIZE = 24 << 20  # of each member
CHUNK = 50_000


def chunk(name, number):
    """Content that tells whose it is."""
    return random.Random(f"{name} {number}").randbytes(CHUNK)


def fill(path, *, chunk_max=1 << 30):
    """Writes chunks until the volume is full; returns how many bytes were taken."""
    taken = 0
    with open(path, "wb", buffering=0) as file:
        for number in range(chunk_max):
            data = chunk(path.name, number)
            while data:
                try:
                    written = file.write(data)
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error
                    os.fsync(file.fileno())  # what was taken has its room
                    return taken
                taken += written
                data = data[written:]
        os.fsync(file.fileno())
    return taken


def verify(path, taken):
    """The file holds exactly what was taken."""
    content = path.read_bytes()
    assert len(content) == taken
    whole = b"".join(chunk(path.name, number) for number in range(taken // CHUNK + 1))
    assert content == whole[:taken]


def settled_room(root):
    """What df says when the zone is made that the cleaner keeps for itself: until then, in the
    first moments of a mount, df counts it twice."""
    told = []
    while len(told) < 2 or told[-1] != told[-2]:
        room = os.statvfs(root)
        told.append(room.f_bavail * room.f_frsize)
        time.sleep(0.2)
    return told[-1]


def forget_cached(path):
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_enospc_comes_with_the_write_and_all_that_was_taken_stays(workshop):
    volume = workshop.volume(3, level="5", size=SIZE, zone_bytes=1 << 20, mounted=True)
    root = volume.mountpoint
    offered = settled_room(root)
    taken = fill(root / "first")
    assert offered * 0.9 < taken <= offered
    room = os.statvfs(root)
    assert room.f_bavail * room.f_frsize < 1 << 20
    forget_cached(root / "first")
    verify(root / "first", taken)
    with contextlib.suppress(OSError):
        (root / "late").write_bytes(bytes(3 << 20))
    (root / "directory").mkdir()  # names need no room of this kind
    volume.ctl("status", expect=0)
    volume.unmount()
    volume.check()

    volume.mount()
    verify(root / "first", taken)
    os.truncate(root / "first", taken // 2)
    verify(root / "first", taken // 2)
    (root / "first").unlink()
    (root / "late").unlink()
    again = fill(root / "second")
    assert again > 0.9 * taken
    volume.kill()
    volume.check()
    volume.mount()
    verify(root / "second", again)
    run("rm", "-r", root / "second", root / "directory")
    volume.unmount()
    volume.check()


def test_many_writers_meet_the_end_of_room_together(workshop):
    volume = workshop.volume(4, level="6", size=SIZE, zone_bytes=1 << 20, mounted=True)
    root = volume.mountpoint
    for turn in range(3):
        taken = {}
        paths = [root / f"writer{turn}-{number}" for number in range(6)]

        def work(path, taken=taken):
            taken[path] = fill(path)

        threads = [threading.Thread(target=work, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == sorted(paths)
        assert sum(taken.values()) > 0.85 * 2 * SIZE - (4 << 20)
        volume.kill()
        volume.check()
        volume.mount()
        for path in paths:
            verify(path, taken[path])
            path.unlink()
    volume.unmount()
    volume.check()


def test_writing_over_old_content_where_no_room_is_left(workshop):
    """New content needs new room, so it may be refused; then the old content is still there."""
    volume = workshop.volume(3, level="5", size=SIZE, zone_bytes=1 << 20, mounted=True)
    path = volume.mountpoint / "file"
    taken = fill(path)
    model = bytearray(path.read_bytes())
    dice = random.Random(5)
    refused = 0
    with path.open("r+b", buffering=0) as file:
        for turn in range(400):
            offset = dice.randrange(taken - 9000)
            data = dice.randbytes(dice.randrange(1, 9000))
            try:
                written = os.pwrite(file.fileno(), data, offset)
                model[offset : offset + written] = data[:written]
            except OSError as error:
                assert error.errno == errno.ENOSPC
                refused += 1
            if turn % 50 == 0:
                os.fsync(file.fileno())
        os.fsync(file.fileno())
        forget_cached(path)
        assert path.read_bytes() == model
    volume.kill()
    volume.check()
    volume.mount()
    assert path.read_bytes() == model
    print(f"{refused} of 400 overwrites were refused")
    for size in range(taken, 0, -(3 << 20)):
        os.truncate(path, size)
        assert path.read_bytes() == model[:size]
    (volume.mountpoint / "new").write_bytes(model[: taken - (8 << 20)])
    volume.unmount()
    volume.check()


def test_mapped_memory_where_no_room_is_left(workshop):
    """Pages dirtied through a mapping find no room when they arrive: msync or fsync says so."""
    volume = workshop.volume(3, level="5", size=SIZE, zone_bytes=1 << 20, mounted=True)
    path = volume.mountpoint / "mapped"
    with path.open("w+b") as file:
        file.truncate(8 << 20)
        taken = fill(volume.mountpoint / "filler")
        with mmap.mmap(file.fileno(), 8 << 20) as mapped:
            mapped[:] = b"m" * (8 << 20)
            with pytest.raises(OSError, match=r".") as caught:
                mapped.flush()
                os.fsync(file.fileno())
            assert caught.value.errno in (errno.ENOSPC, errno.EIO)
    verify(volume.mountpoint / "filler", taken)
    volume.ctl("status", expect=0)
    (volume.mountpoint / "filler").unlink()
    path.write_bytes(b"fits" * 1000)
    volume.unmount()
    volume.check()
    volume.mount()
    assert path.read_bytes() == b"fits" * 1000
    volume.unmount()


def test_small_files_until_nothing_more_fits(workshop):
    """Metadata has its own end: image files have a region of fixed size for it."""
    volume = workshop.volume(workshop.images(3, 48 << 20), level="5", mounted=True)
    root = volume.mountpoint
    counts = []
    for turn in range(2):
        directory = root / f"turn{turn}"
        directory.mkdir()
        count = 0
        with pytest.raises(OSError, match="No space"):
            while True:
                os.symlink("x" * 2000 + str(count), directory / f"{'n' * 200}{count}")
                count += 1
        counts.append(count)
        assert len(os.listdir(directory)) == count
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        assert os.statvfs(root).f_favail < 200
        volume.kill()
        volume.check()
        volume.mount()
        names = os.listdir(directory)
        assert len(names) == count
        for name in names:
            number = int(name[200:])
            assert os.readlink(directory / name) == "x" * 2000 + str(number)
        shutil.rmtree(directory)
    assert counts[0] > 1000 and counts[1] > 0.9 * counts[0]
    assert os.listdir(root) == []
    volume.unmount()
    volume.check()


def test_the_filesystem_beneath_fills_up(workshop, tmp_path):
    """Somebody else takes the room that directory members counted on."""
    places = [tmp_path / f"disk{number}" for number in range(3)]
    with contextlib.ExitStack() as cleanup:
        for place in places:
            place.mkdir()
            run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place)
            cleanup.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
            (place / "member").mkdir()
        members = [place / "member" for place in places]
        volume = workshop.volume(members, level="5", size=48 << 20, zone_bytes=1 << 20)
        cleanup.callback(volume.tear_down)
        volume.mount()
        root = volume.mountpoint
        first = fill(root / "first", chunk_max=100)
        for place in places:
            fill_up(place / "foreign")
        synced, number = fill_synced(root / "second")
        if number != errno.ENOSPC:  # metadata found no room: the volume says so, and takes no more
            status = volume.status(expect=2)
            assert status["read_only"] or "read-only" in status["status"]
            assert "room" in status["status"]
        verify(root / "first", first)
        for place in places:
            (place / "foreign").unlink()
        volume.tear_down()
        volume.check()
        volume.mount()
        verify(root / "first", first)
        assert (root / "second").stat().st_size >= synced
        os.truncate(root / "second", synced)
        verify(root / "second", synced)
        assert fill(root / "third", chunk_max=100) == 100 * CHUNK
        volume.unmount()
        volume.check()


def fill_synced(path):
    """Chunks, each made durable, until an error: (bytes that an fsync acknowledged, error)."""
    synced = 0
    with open(path, "wb", buffering=0) as file:
        while True:
            data = chunk(path.name, synced // CHUNK)[synced % CHUNK :]
            try:
                written = file.write(data)
                os.fsync(file.fileno())
            except OSError as error:
                return synced, error.errno
            synced += written


def fill_up(path: Path):
    """Takes all but what is already granted to the volume, and a little for its metadata."""
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - (2 << 20)))
