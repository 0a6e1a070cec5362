"""Damage under a live mount: bytes overwritten, files and members gone. Everything is read back
right, what was wrong is counted, told and mended, and the volume goes on."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
import threading

import pytest
from mounting import run, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.slow]

SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


def fill(root, dice, count=40):
    """Files of many sizes; returns name -> content."""
    made = {}
    for number in range(count):
        size = dice.choice((0, 10, 3000, 4096, 50_000, 300_000, 1_500_000))
        made[f"file{number}"] = dice.randbytes(size)
        (root / f"file{number}").write_bytes(made[f"file{number}"])
    return made


def assert_all(root, made):
    """Everything as it was, from the members: the kernel's cache is dropped before."""
    run("sysctl", "-q", "vm.drop_caches=1")
    assert sorted(os.listdir(root)) == sorted(made)
    for name, content in made.items():
        assert (root / name).read_bytes() == content, name


def column_files(member):
    return sorted(path for path in (member / "zones").rglob("*") if path.is_file())


def overwrite(path, dice, count, start=0):
    """Random bytes in random places."""
    with path.open("r+b") as file:
        end = os.fstat(file.fileno()).st_size
        for _ in range(count):
            offset = dice.randrange(start, end)
            length = min(dice.choice((1, 100, 5000, 70_000)), end - offset)
            os.pwrite(file.fileno(), dice.randbytes(length), offset)


def errors_of(status):
    return [member["checksum_errors"] for member in status["members"]]


LEVELS = [("5", 3, 1), ("6", 6, 2), ("1", 3, 2), ("rs:3+3", 6, 3), ("10", 4, 1), ("4", 4, 1)]


@pytest.mark.parametrize(
    ("level", "members", "count"),
    LEVELS,
)
def test_bytes_overwritten_on_members(workshop, level, members, count):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    dice = random.Random(f"{SEED} {level}")
    volume = workshop.volume(members, level=level, zone_bytes=1 << 20, mounted=True)
    made = fill(volume.mountpoint, dice)
    volume.ctl("sync")
    read = members - (level == "4")  # reads don't ask the parity member
    hit = dice.sample(range(read), count)
    for number in hit:
        for path in column_files(volume.members[number]):
            overwrite(path, dice, 12)
    assert_all(volume.mountpoint, made)
    errors = errors_of(volume.status(expect=0))
    for number in range(members):
        assert errors[number] == 0 or number in hit, errors
    assert sum(errors) > 0
    assert "Healed" in volume.log.read_text()

    assert_all(volume.mountpoint, made)
    assert errors_of(volume.status(expect=0)) == errors  # what was mended is not met again
    volume.unmount()
    volume.mount()
    assert errors_of(volume.status(expect=0)) == errors  # and what was counted is kept
    assert_all(volume.mountpoint, made)
    assert errors_of(volume.status(expect=0)) == errors
    volume.unmount()


@pytest.mark.parametrize("kind", ["image", "device"])
def test_bytes_overwritten_in_images_and_devices(workshop, kind):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    dice = random.Random(SEED)
    size = 96 << 20
    make = workshop.images if kind == "image" else workshop.loop_devices
    members = make(5, size)
    volume = workshop.volume(members, level="6", mounted=True)
    made = fill(volume.mountpoint, dice)
    volume.ctl("sync")
    for number in (1, 3):
        # not the labels and metadata, which have copies of their own, but all zones
        overwrite_zones(members[number], size, dice)
    assert_all(volume.mountpoint, made)
    errors = errors_of(volume.status(expect=0))
    assert errors[1] + errors[3] > 0 and errors[0] == errors[2] == errors[4] == 0
    assert_all(volume.mountpoint, made)
    assert errors_of(volume.status(expect=0)) == errors
    volume.unmount()
    volume.mount()
    assert_all(volume.mountpoint, made)
    volume.unmount()


def overwrite_zones(place, size, dice):
    """Through the page cache, then written out: what a flipped bit beneath would look like."""
    with place.open("r+b") as file:
        # all over them, so that no seed misses what was written
        for start in range(40 << 20, size - 200_000, 100_000):
            offset = start + dice.randrange(30_000)
            os.pwrite(file.fileno(), dice.randbytes(dice.choice((1, 5000, 70_000))), offset)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_column_files_that_vanish_or_are_cut_short(workshop):
    dice = random.Random(7)
    volume = workshop.volume(5, level="6", zone_bytes=1 << 20, mounted=True)
    made = fill(volume.mountpoint, dice)
    volume.unmount()
    gone = column_files(volume.members[2])
    for number, path in enumerate(gone):
        if number % 2:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 3)
    volume.mount()
    assert_all(volume.mountpoint, made)
    made["new"] = dice.randbytes(3_000_000)
    (volume.mountpoint / "new").write_bytes(made["new"])
    volume.unmount()
    volume.mount()
    assert_all(volume.mountpoint, made)
    volume.unmount()


def test_metadata_and_labels_overwritten_between_mounts(workshop):
    """Metadata has a copy on every member: any one good copy of each page is enough."""
    dice = random.Random(11)
    volume = workshop.volume(4, level="5", mounted=True)
    made = fill(volume.mountpoint, dice)
    volume.unmount()
    pages = (volume.members[0] / "metadata" / "raidfs.db").stat().st_size // 4096
    for page in range(pages):
        whole = dice.randrange(4)  # keeps its page; the others may be hit
        for number, member in enumerate(volume.members):
            if number != whole and dice.random() < 0.6:
                with (member / "metadata" / "raidfs.db").open("r+b") as file:
                    os.pwrite(file.fileno(), dice.randbytes(50), page * 4096 + dice.randrange(4000))
    for number, member in enumerate(volume.members):
        with (member / "label").open("r+b") as file:
            os.pwrite(file.fileno(), dice.randbytes(300), 65536 * (number % 2) + 20)
    volume.check(expect=4)
    volume.mount()
    assert_all(volume.mountpoint, made)
    (volume.mountpoint / "file0").write_bytes(b"again")
    made["file0"] = b"again"
    volume.unmount()
    volume.mount()
    assert_all(volume.mountpoint, made)
    volume.unmount()


class Writer(threading.Thread):
    """Writes files one after the other until told to stop; `made` is what was taken."""

    def __init__(self, root, number):
        super().__init__()
        self.root, self.number = root, number
        self.made, self.error = {}, None
        self.stopping = threading.Event()

    def run(self):
        dice = random.Random(self.number)
        try:
            while not self.stopping.is_set():
                name = f"writer{self.number}-{len(self.made)}"
                content = dice.randbytes(dice.randrange(200_000))
                with (self.root / name).open("wb") as file:
                    file.write(content)
                    if dice.random() < 0.3:
                        file.flush()
                        os.fsync(file.fileno())
                self.made[name] = content
        except Exception as error:
            self.error = error


@contextlib.contextmanager
def writers(root, count=3):
    """Writers at work during the block; yields name -> content, complete at its end."""
    first = len(os.listdir(root))  # so that no name comes twice
    working = [Writer(root, first + number) for number in range(count)]
    for writer in working:
        writer.start()
    made = {}
    try:
        yield made
    finally:
        for writer in working:
            writer.stopping.set()
            writer.join()
    for writer in working:
        assert writer.error is None, writer.error
        made.update(writer.made)


def wait_files(root, count):
    """Until that many files more are there."""
    wanted = len(os.listdir(root)) + count
    wait_until(lambda: len(os.listdir(root)) >= wanted, f"{count} more files", timeout_s=30)


def remove_member(path):
    while path.exists():  # the daemon may be making files there
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize(
    ("level", "members", "lose"),
    [
        ("5", 4, (2,)),
        ("6", 5, (1, 4)),
        ("1", 3, (0, 1)),
        ("rs:3+3", 7, (0, 3, 6)),
    ],
)
def test_members_removed_while_writing(workshop, level, members, lose):
    volume = workshop.volume(members, level=level, zone_bytes=1 << 20, mounted=True)
    root = volume.mountpoint
    with writers(root) as made:
        wait_files(root, 20)
        for number in lose:
            remove_member(volume.members[number])
            wait_files(root, 20)
    volume.ctl("sync")
    status = volume.status(expect=1)
    assert status["state"] == "DEGRADED" and not status["read_only"]
    states = [member["state"] for member in status["members"]]
    assert [n for n, state in enumerate(states) if state != "ONLINE"] == sorted(lose), states
    assert_all(root, made)
    left = next(m for n, m in enumerate(volume.members) if n not in lose)
    volume.unmount()
    volume.check(source=left)
    volume.mount(source=left)  # the losses are on record
    assert_all(root, made)
    assert volume.status(expect=1)["state"] == "DEGRADED"
    with writers(root) as more:
        wait_files(root, 20)
    assert_all(root, made | more)
    volume.unmount()
    volume.check(source=left)


def test_a_member_too_many_leaves_the_volume_readable_where_it_can_be(workshop):
    """Beyond redundancy: no more writing, fsync says so, the state is FAILED with its reason."""
    volume = workshop.volume(3, level="5", zone_bytes=1 << 20, mounted=True)
    root = volume.mountpoint
    made = fill(root, random.Random(3), 10)
    volume.ctl("sync")
    for member in volume.members[:2]:
        remove_member(member)
    with pytest.raises(OSError, match=r".") as caught, (root / "new").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(100_000))
            file.flush()
            os.fsync(file.fileno())
    assert caught.value.errno in (errno.EIO, errno.EROFS)
    status = volume.status(expect=2)
    assert status["state"] == "FAILED" and status["status"] and status["action"]
    assert sorted(set(os.listdir(root)) - {"new"}) == sorted(made)
    volume.tear_down()


def test_names_go_on_at_the_moment_a_member_vanishes(workshop):
    """Operations that only ask a member for its room must not fail with it."""
    volume = workshop.volume(3, level="5", mounted=True)
    root = volume.mountpoint
    volume.ctl("sync")
    remove_member(volume.members[1])
    assert os.statvfs(root).f_blocks > 0
    for number in range(2000):
        (root / f"file{number}").touch()
    volume.ctl("sync")
    assert volume.status(expect=1)["state"] == "DEGRADED"
    volume.unmount()
    volume.check()


@contextlib.contextmanager
def member_on_its_own_disk(workshop, disk):
    """A volume of three directories and one more on a filesystem of its own, mounted."""
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(subprocess.run, ["umount", "-lq", str(disk)], check=False)
        (disk / "member").mkdir()
        members = [*workshop.directories(3), disk / "member"]
        volume = workshop.volume(members, level="5", size=120 << 20, zone_bytes=1 << 20)
        cleanup.callback(volume.tear_down)
        volume.mount()
        yield volume


def test_the_filesystem_of_a_member_is_unmounted(workshop, tmp_path):
    """Files that the daemon has open can still be written to, but no later mount would find them:
    the member must leave."""
    disk = tmp_path / "disk"
    with member_on_its_own_disk(workshop, disk) as volume:
        with writers(volume.mountpoint) as made:
            wait_files(volume.mountpoint, 20)
            run("umount", "-l", disk)
            wait_files(volume.mountpoint, 60)
        volume.ctl("sync")
        status = volume.status(expect=1)
        assert [m["state"] for m in status["members"]] == ["ONLINE"] * 3 + ["FAILED"]
        assert_all(volume.mountpoint, made)
        volume.unmount()
        volume.check()
        volume.mount()
        assert_all(volume.mountpoint, made)
        volume.unmount()


def test_the_filesystem_of_a_member_is_full(workshop, tmp_path):
    """Somebody else fills it: the volume says ENOSPC, or goes on; it keeps what it took, and goes
    on in any case once there is room again."""
    disk = tmp_path / "disk"
    with member_on_its_own_disk(workshop, disk) as volume:
        root = volume.mountpoint
        before = fill(root, random.Random(5))
        volume.ctl("sync")
        take_all_room(disk)
        writer = Writer(root, 0)
        writer.start()
        writer.join(timeout=3)
        writer.stopping.set()
        writer.join()
        if writer.error is not None:
            assert writer.error.errno == errno.ENOSPC, writer.error
            (root / f"writer0-{len(writer.made)}").unlink(missing_ok=True)
        made = before | writer.made
        volume.ctl("sync")
        assert volume.status()["state"] in ("ONLINE", "DEGRADED")
        assert_all(root, made)
        (disk / "foreign").unlink()
        wait_until(lambda: takes(root / "probe", 30 << 20), "room again", timeout_s=20)
        with writers(root) as more:
            wait_files(root, 60)
        volume.unmount()
        volume.check()
        volume.mount()
        assert_all(root, made | more)
        volume.unmount()


def takes(path, nbytes):
    try:
        path.write_bytes(bytes(nbytes))
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    finally:
        path.unlink()
    return True


def take_all_room(disk):
    """The volume may take some of it meanwhile."""
    with (disk / "foreign").open("wb", buffering=0) as file:
        while (room := os.statvfs(disk)).f_bavail > 0:
            with contextlib.suppress(OSError):
                file.write(bytes(min(1 << 20, room.f_bavail * room.f_frsize)))


def test_a_loop_device_that_loses_its_backing(workshop):
    """Image file and loop device members; the file under one device is cut to nothing."""
    devices = workshop.loop_devices(2, 96 << 20)
    backing = sorted(workshop.directory.glob("loop*.img"))
    members = [*workshop.images(2, 96 << 20), *devices]
    volume = workshop.volume(members, level="6", mounted=True)
    root = volume.mountpoint
    with writers(root) as made:
        wait_files(root, 20)
        os.truncate(backing[1], 0)
        wait_files(root, 30)
    volume.ctl("sync")
    assert_all(root, made)
    volume.unmount()
    volume.mount("degraded")
    assert_all(root, made)
    volume.unmount()
