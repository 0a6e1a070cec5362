"""The cleaner beneath a real mount: random writes without a pause, over more than there is room."""

import os
import random
import threading

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SIZE = 24 << 20  # of each member
PAGE = 4096


class Writer(threading.Thread):
    """Overwrites random pages of a file of its own; `newest`: what each page has, as its seed."""

    def __init__(self, path, pages, writes, seed):
        super().__init__()
        self.path, self.pages, self.writes = path, pages, writes
        self.dice = random.Random(seed)
        self.newest = [0] * pages
        self.error = None

    @staticmethod
    def page(seed):
        return seed.to_bytes(8, "little") * (PAGE // 8)

    def run(self):
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                os.pwrite(fd, self.page(0) * self.pages, 0)
                for number in range(1, self.writes + 1):
                    first = self.dice.randrange(self.pages)
                    count = min(self.dice.choice((1, 1, 1, 16)), self.pages - first)
                    assert os.pwrite(fd, self.page(number) * count, first * PAGE) == count * PAGE
                    self.newest[first : first + count] = [number] * count
                    if number % 500 == 0:
                        os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self.error = error

    def verify(self):
        content = self.path.read_bytes()
        for number, seed in enumerate(self.newest):
            assert content[number * PAGE : (number + 1) * PAGE] == self.page(seed), number


@pytest.mark.parametrize("options", [(), ("nolane",)], ids=["lane", "nolane"])
def test_random_writes_over_four_times_the_volume(workshop, options):
    volume = workshop.volume(3, level="5", size=SIZE, zone_bytes=1 << 20, mounted=True)
    if options:
        volume.unmount()
        volume.mount(*options)
    root = volume.mountpoint
    room = os.statvfs(root)
    pages = room.f_bavail * 7 // 10 // 3
    writes = 4 * room.f_blocks // 3 // 5  # of almost five pages each
    writers = [Writer(root / f"{n}", pages, writes, n) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.error is None, writer.error
    for writer in writers:
        writer.verify()
    status = volume.status(expect=0)
    assert status["cleaner"]["zones_emptied"] > 10
    volume.kill()
    volume.check()
    volume.mount(*options)
    for writer in writers:
        assert len(writer.path.read_bytes()) == pages * PAGE
    volume.unmount()
    volume.check()
