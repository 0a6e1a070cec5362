"""Random operations on the content of files of a real mount, against the same bytes in memory: by
pwrite, through mappings and O_DIRECT, with truncates, appends, syncs, dropped caches and new mounts
between them. In the manner of fsx. RAIDFS_TEST_SEED replays a run."""

import errno
import mmap
import os
import random

import pytest
from mounting import run

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SIZE_MAX = 3 << 20
UNIT = 4096


class Exerciser:
    """One file on the mount and what it must hold."""

    def __init__(self, path, dice):
        self.path = path
        self.dice = dice
        self.model = bytearray()
        self.log = []
        self.open()

    def open(self):
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def close(self):
        os.close(self.fd)
        os.close(self.direct)

    def note(self, *what):
        self.log.append(what)

    def span(self, most=SIZE_MAX):
        """An offset and a length, often near the borders of pages."""
        offset = self.dice.randrange(most)
        length = self.dice.choice((1, 7, 511, UNIT, UNIT + 1, 3 * UNIT, 40_000, 200_000, 700_000))
        if self.dice.random() < 0.4:
            offset -= offset % UNIT
        if self.dice.random() < 0.2:
            length += self.dice.randrange(-100, 100)
        return offset, max(1, min(length, most - offset))

    def put(self, offset, data):
        if len(self.model) < offset:
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def check(self, offset, found, length):
        wanted = bytes(self.model[offset : offset + length])
        if found != wanted:
            places = [n for n in range(min(len(found), len(wanted))) if found[n] != wanted[n]]
            first = offset + places[0] if places else f"length {len(found)}, wanted {len(wanted)}"
            raise AssertionError(
                f"differs from {first}, {len(places)} bytes; log: {self.log[-30:]}"
            )

    def step(self):
        names = ("write", "write", "write", "append", "read", "read", "map_read", "map_write")
        more = (
            "truncate",
            "direct_write",
            "direct_read",
            "sync",
            "drop",
            "rewrite",
            "zeros",
            "hole",
        )
        name = self.dice.choice(names + more)
        getattr(self, name)()
        assert os.fstat(self.fd).st_size == len(self.model), self.log[-30:]

    def write(self):
        offset, length = self.span()
        self.note("write", offset, length)
        data = self.dice.randbytes(length)
        assert os.pwrite(self.fd, data, offset) == length
        self.put(offset, data)

    def append(self):
        length = min(self.dice.randrange(1, 30_000), SIZE_MAX - len(self.model))
        self.note("append", len(self.model), length)
        data = self.dice.randbytes(length)
        os.lseek(self.fd, 0, os.SEEK_END)
        os.write(self.fd, data)
        self.model.extend(data)

    def rewrite(self):
        """The same pages again and again, in small pieces."""
        offset, _ = self.span(SIZE_MAX - UNIT)
        self.note("rewrite", offset)
        for _ in range(10):
            at = offset + self.dice.randrange(UNIT)
            data = self.dice.randbytes(self.dice.randrange(1, 50))
            os.pwrite(self.fd, data, at)
            self.put(at, data)

    def zeros(self):
        offset, length = self.span()
        self.note("zeros", offset, length)
        os.pwrite(self.fd, bytes(length), offset)
        self.put(offset, bytes(length))

    def hole(self):
        """Cut off and grown again: zeros lie between."""
        size = self.dice.randrange(len(self.model) + 1)
        again = self.dice.randrange(size, SIZE_MAX)
        self.note("hole", size, again)
        os.ftruncate(self.fd, size)
        os.ftruncate(self.fd, again)
        del self.model[size:]
        self.model.extend(bytes(again - size))

    def read(self):
        offset, length = self.span()
        self.note("read", offset, length)
        self.check(offset, os.pread(self.fd, length, offset), length)

    def map_read(self):
        if self.model:
            self.note("map_read")
            offset, length = self.span()
            with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as mapped:
                self.check(offset, mapped[offset : offset + length], length)

    def map_write(self):
        offset, length = self.span()
        length = min(length, len(self.model) - offset)
        if length > 0:
            self.note("map_write", offset, length)
            data = self.dice.randbytes(length)
            with mmap.mmap(self.fd, len(self.model)) as mapped:
                mapped[offset : offset + length] = data
                if self.dice.random() < 0.5:
                    mapped.flush()
            self.put(offset, data)

    def aligned(self):
        offset = self.dice.randrange(0, SIZE_MAX, UNIT)
        length = UNIT * self.dice.choice((1, 2, 16, 64))
        return offset, min(length, SIZE_MAX - offset)

    def direct_write(self):
        offset, length = self.aligned()
        self.note("direct_write", offset, length)
        with mmap.mmap(-1, length) as buffer:
            buffer[:] = self.dice.randbytes(length)
            assert os.pwrite(self.direct, buffer, offset) == length
            self.put(offset, buffer[:])

    def direct_read(self):
        offset, length = self.aligned()
        self.note("direct_read", offset, length)
        with mmap.mmap(-1, length) as buffer:
            count = os.preadv(self.direct, [buffer], offset)
            self.check(offset, buffer[:count], length)

    def truncate(self):
        size = self.dice.choice((0, self.dice.randrange(SIZE_MAX), len(self.model) // 2))
        if self.dice.random() < 0.3:
            size -= size % UNIT
        self.note("truncate", size)
        os.ftruncate(self.fd, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def sync(self):
        self.note("sync")
        self.dice.choice((os.fsync, os.fdatasync))(self.fd)

    def drop(self):
        self.note("drop")
        os.fdatasync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize(
    ("level", "members", "options", "steps"),
    [
        ("5", 3, {}, 150),
        ("6", 6, {}, 1500),
        ("3", 4, {"cell_bytes": 16384}, 800),
        ("10", 4, {"cell_bytes": 65536}, 800),
    ],
)
def test_random_operations_on_content(workshop, level, members, options, steps):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    dice = random.Random(SEED)
    volume = workshop.volume(members, level=level, size=192 << 20, mounted=True, **options)
    files = [Exerciser(volume.mountpoint / f"file{number}", dice) for number in range(3)]
    for step in range(steps):
        dice.choice(files).step()
        if step % (steps // 4) == steps // 4 - 1:
            mount_again(volume, files, dice)
    for file in files:
        file.close()
    volume.unmount()
    volume.check()


def mount_again(volume, files, dice):
    """In one of three ways; a clean one keeps everything, the others what was synced."""
    way = dice.choice(("unmount", "kill after fsync", "signal"))
    for file in files:
        file.note(way)
        if way == "kill after fsync":
            os.fsync(file.fd)
        file.close()
    if way == "unmount":
        volume.unmount()
    elif way == "kill after fsync":
        volume.kill()
    else:
        os.kill(volume.pid, 15)
        volume.wait_gone()
    volume.check()
    volume.mount()
    for file in files:
        file.open()
        content = file.path.read_bytes()
        file.check(0, content, max(len(content), len(file.model)))


def test_memory_of_the_daemon_stays_bounded(workshop):
    """Many files written and read: what the daemon holds does not grow with what is stored."""
    volume = workshop.volume(3, size=2 << 30)
    volume.mount("dirty=32M")
    data = os.urandom(64 << 20)
    for number in range(12):
        (volume.mountpoint / f"file{number}").write_bytes(data)
    grown = []
    for number in range(12):
        with (volume.mountpoint / f"file{number}").open("rb") as file:
            assert file.read() == data
        text = run("ps", "-o", "rss=", "-p", volume.pid).stdout
        grown.append(int(text) // 1024)
    assert max(grown) < 300, grown
    volume.unmount()


def test_large_requests_and_odd_ends(workshop):
    volume = workshop.volume(3, mounted=True)
    path = volume.mountpoint / "file"
    data = os.urandom((9 << 20) + 1)
    with path.open("w+b", buffering=0) as file:
        assert file.write(data) == len(data)
        assert os.pread(file.fileno(), len(data) + 1, 0) == data
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 10, len(data) - 5) == data[-5:]
        assert os.pread(file.fileno(), 10, len(data)) == b""
        with pytest.raises(OSError, match=r".") as caught:
            os.pread(file.fileno(), 10, -1)
        assert caught.value.errno == errno.EINVAL
    volume.unmount()
    volume.mount()
    assert path.read_bytes() == data
    volume.unmount()
