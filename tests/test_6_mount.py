"""A real mount: it comes, serves, goes, and comes back as it was."""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import signal
import stat
import subprocess
import tempfile
import threading
import time

import pytest
from mounting import BIN, Workshop, fingerprint, is_mounted, run, wait_until

pytestmark = pytest.mark.mount


@pytest.fixture
def volume(workshop, request):
    """By default behind the lane."""
    return workshop.volume(3, level="5", mounted=True, options=getattr(request, "param", ()))


both_ways = pytest.mark.parametrize(
    "volume",
    [
        pytest.param((), id="lane"),
        pytest.param(("nolane",), id="nolane", marks=pytest.mark.slow),
    ],
    indirect=True,
)


@both_ways
@pytest.mark.processes
def test_write_read_unmount_mount_read(volume):
    data = os.urandom(3_000_001)
    (volume.mountpoint / "directory").mkdir()
    file = volume.mountpoint / "directory" / "file"
    file.write_bytes(data)
    assert file.read_bytes() == data
    before = file.stat()
    volume.unmount()
    assert not is_mounted(volume.mountpoint)
    volume.check()
    volume.mount(source=volume.members[2])
    assert file.read_bytes() == data
    after = file.stat()
    for name in ("st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_nlink"):
        assert getattr(before, name) == getattr(after, name), name
    volume.unmount()
    volume.check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "device", "mixed"])
def test_all_kinds_of_members(workshop, kind):
    members = {
        "image": lambda: workshop.images(3),
        "device": lambda: workshop.loop_devices(3),
        "mixed": lambda: [
            *workshop.directories(1), *workshop.images(1), *workshop.loop_devices(1)
        ],
    }[kind]()  # fmt: skip
    volume = workshop.volume(members, mounted=True)
    data = os.urandom(5_000_000)
    (volume.mountpoint / "file").write_bytes(data)
    volume.unmount()
    volume.check()
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == data
    volume.unmount()


@pytest.mark.slow
def test_what_df_and_mount_say(volume):
    with open("/proc/self/mountinfo") as file:
        (line,) = [line for line in file if f" {volume.mountpoint} " in line]
    assert f" - fuse.raidfs raidfs:{volume.status()['volume']} " in line
    room = os.statvfs(volume.mountpoint)
    status = volume.status()
    assert room.f_blocks * room.f_frsize == status["total_bytes"]
    assert abs(room.f_bavail * room.f_frsize - status["free_bytes"]) < 1 << 20
    assert room.f_namemax == 255


@pytest.mark.slow
@both_ways
@pytest.mark.processes
def test_umount_by_the_usual_command_then_mount_at_once(volume):
    (volume.mountpoint / "file").write_bytes(os.urandom(20_000_000))
    for _ in range(3):
        run("umount", volume.mountpoint)
        volume.pid = None
        volume.mount()  # waits for the last daemon's last cut
    assert (volume.mountpoint / "file").stat().st_size == 20_000_000
    run("fusermount3", "-u", volume.mountpoint)
    volume.mount()
    volume.unmount()
    volume.check()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_cleanly(volume, number):
    (volume.mountpoint / "file").write_text("kept")
    os.kill(volume.pid, number)
    volume.wait_gone()
    assert not is_mounted(volume.mountpoint)
    volume.check()
    volume.mount()
    assert (volume.mountpoint / "file").read_text() == "kept"
    volume.unmount()


@pytest.mark.slow
@both_ways
def test_a_signal_with_files_open_still_keeps_what_was_written(volume):
    fd = os.open(volume.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"written")
    os.kill(volume.pid, signal.SIGTERM)
    volume.wait_gone()
    with pytest.raises(OSError, match=r".") as caught:
        os.write(fd, b"too late")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    with contextlib.suppress(OSError):
        os.close(fd)
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"written"
    volume.unmount()
    volume.check()


@pytest.mark.slow
@both_ways
def test_umount_of_a_busy_mount_is_refused_unless_forced(volume):
    fd = os.open(volume.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"written")
    done = volume.ctl("umount", expect=1)
    assert "busy" in done.stderr and "--force" in done.stderr
    assert is_mounted(volume.mountpoint)
    volume.ctl("umount", "--force")
    with contextlib.suppress(OSError):
        os.close(fd)
    volume.wait_gone()
    volume.check()


@pytest.mark.slow
def test_foreground(workshop):
    volume = workshop.volume(3)
    words = [volume.shop.directory, "raidfs", "-f", volume.members[0], volume.mountpoint]
    process = subprocess.Popen(
        [BIN / words[1], *words[2:]], env=workshop.env, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: is_mounted(volume.mountpoint), "mounted")
        assert volume.status()["pid"] == process.pid
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0 and "is mounted on" in said and "is closed" in said
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_read_only_changes_nothing(volume):
    (volume.mountpoint / "file").write_text("content")
    volume.unmount()
    before = fingerprint(*volume.members)
    volume.mount("ro")
    assert (volume.mountpoint / "file").read_text() == "content"
    with pytest.raises(OSError, match="Read-only"):
        (volume.mountpoint / "other").touch()
    assert volume.status()["read_only"]
    volume.unmount()
    assert fingerprint(*volume.members) == before


@pytest.mark.slow
@both_ways
def test_kill_and_mount_again_keeps_what_was_synced(volume):
    with (volume.mountpoint / "synced").open("wb") as file:
        file.write(b"x" * 1_000_000)
        file.flush()
        os.fsync(file.fileno())
    (volume.mountpoint / "later").write_bytes(b"y" * 1_000_000)
    volume.kill()
    volume.check()
    volume.mount()
    assert (volume.mountpoint / "synced").read_bytes() == b"x" * 1_000_000
    with contextlib.suppress(FileNotFoundError):
        assert (volume.mountpoint / "later").read_bytes() in (b"", b"y" * 1_000_000)
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_sync_verb_is_a_barrier(volume):
    (volume.mountpoint / "file").write_bytes(b"z" * 300_000)
    volume.ctl("sync")
    volume.kill()
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"z" * 300_000


@pytest.mark.slow
@both_ways
def test_member_fail_while_mounted(volume):
    data = os.urandom(2_000_000)
    (volume.mountpoint / "file").write_bytes(data)
    done = volume.shop.run(
        "raidfs-ctl", "member", "fail", volume.mountpoint, volume.members[1], "--yes", "--json"
    )
    told = json.loads(done.stdout)
    assert told["state"] == "DEGRADED"
    assert [m["state"] for m in told["members"]] == ["ONLINE", "FAILED", "ONLINE"]
    subprocess.run(["rm", "-rf", volume.members[1]], check=True)
    run("sysctl", "-q", "vm.drop_caches=2", expect=None)
    (volume.mountpoint / "more").write_bytes(data)
    assert (volume.mountpoint / "file").read_bytes() == data
    assert "DEGRADED" in volume.ctl("status", expect=1).stdout
    volume.unmount()
    volume.check()
    volume.mount()  # the loss is on record: no need to ask for it
    assert (volume.mountpoint / "file").read_bytes() == data
    assert (volume.mountpoint / "more").read_bytes() == data
    volume.unmount()


# -- what applications rely on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One mounted volume for all tests below that don't unmount it; checked at the end."""
    with Workshop(tmp_path_factory.mktemp("shared")) as shop:
        volume = shop.volume(3, level="5", mounted=True)
        yield volume
        volume.unmount()
        volume.check()


@pytest.fixture
def root(shared, request):
    """A directory of its own for each test, on the shared mount."""
    directory = shared.mountpoint / re.sub(r"\W+", "_", request.node.name)
    directory.mkdir()
    return directory


def test_kinds_of_files_links_and_times(root):
    (root / "file").write_text("one")
    os.link(root / "file", root / "hard")
    assert (root / "file").stat().st_nlink == 2
    os.symlink("file", root / "soft")
    assert os.readlink(root / "soft") == "file" and (root / "soft").read_text() == "one"
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    (root / "null").write_text("swallowed")  # root's mounts have working devices
    os.utime(root / "file", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    found = (root / "hard").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (
        1_234_567_890_123_456_789,
        987_654_321_987_654_321,
    )
    os.unlink(root / "file")
    assert (root / "hard").stat().st_nlink == 1 and (root / "hard").read_text() == "one"
    name = b"\xff\x01 odd \n"
    fd = os.open(os.fsencode(root) + b"/" + name, os.O_CREAT | os.O_WRONLY)
    os.close(fd)
    assert name in os.listdir(os.fsencode(root))
    with pytest.raises(OSError, match="File name too long"):
        (root / ("x" * 256)).touch()
    (root / ("x" * 255)).touch()


def renameat2(old, new, flags):
    libc = ctypes.CDLL(None, use_errno=True)
    at = -100
    if libc.renameat2(at, os.fsencode(old), at, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_rename_in_all_its_forms(root):
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    os.rename(root / "a", root / "c")
    assert not (root / "a").exists() and (root / "c").read_text() == "a"
    with pytest.raises(OSError, match="renameat2") as caught:
        renameat2(root / "c", root / "b", 1)
    assert caught.value.errno == errno.EEXIST
    renameat2(root / "c", root / "b", 2)
    assert (root / "c").read_text() == "b" and (root / "b").read_text() == "a"
    os.rename(root / "c", root / "b")
    assert (root / "b").read_text() == "b" and not (root / "c").exists()
    (root / "d1").mkdir()
    (root / "d2").mkdir()
    (root / "d2" / "in").touch()
    with pytest.raises(OSError, match="not empty"):
        os.rename(root / "d1", root / "d2")
    os.rename(root / "d2", root / "d1")
    assert (root / "d1" / "in").exists()
    with pytest.raises(OSError, match="Invalid"):
        os.rename(root / "d1", root / "d1" / "deeper")


def test_sparse_truncate_and_far_offsets(root):
    path = root / "sparse"
    with path.open("w+b") as file:
        file.seek(1 << 40)
        file.write(b"end")
        file.flush()
        assert path.stat().st_size == (1 << 40) + 3
        file.seek(123_456_789)
        assert file.read(5) == bytes(5)
        file.truncate(10)
        file.truncate(20_000)
        file.seek(0)
        assert file.read() == bytes(20_000)
        with pytest.raises(OSError, match=r".") as caught:
            os.pwrite(file.fileno(), b"x", (1 << 63) - 1)
        assert caught.value.errno in (errno.EFBIG, errno.EINVAL)


def test_open_and_unlinked(root):
    path = root / "gone"
    with path.open("w+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read() == b"still here"
        file.write(b", and writable")
        file.seek(0)
        assert file.read() == b"still here, and writable"
    assert os.listdir(root) == []


def test_shared_writable_mmap(root):
    path = root / "mapped"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[50_000:50_005] = b"mmap!"
        mapped.flush()
    assert path.read_bytes()[50_000:50_005] == b"mmap!"


def test_direct_io(root):
    path = root / "direct"
    buffer = mmap.mmap(-1, 1 << 20)
    buffer.write(os.urandom(1 << 20))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        assert os.pwrite(fd, buffer, 4096) == 1 << 20
        again = mmap.mmap(-1, 1 << 20)
        assert os.preadv(fd, [again], 4096) == 1 << 20
        assert again[:] == buffer[:]
    finally:
        os.close(fd)
    assert path.read_bytes()[4096:] == buffer[:]  # and the page cache agrees


def test_xattrs_and_acls(root):
    path = root / "file"
    path.touch()
    os.setxattr(path, "user.colour", b"blue")
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.colour", b"red", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        os.setxattr(path, "user.other", b"red", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.colour") == b"blue"
    assert os.listxattr(path) == ["user.colour"]
    os.removexattr(path, "user.colour")
    run("setfacl", "-m", "u:1234:rw", path)
    assert "user:1234:rw-" in run("getfacl", "-n", "--absolute-names", path).stdout
    directory = root / "directory"
    directory.mkdir()
    run("setfacl", "-d", "-m", "g:4321:rx", directory)
    (directory / "inherits").mkdir()
    text = run("getfacl", "-n", "--absolute-names", directory / "inherits").stdout
    assert "default:group:4321:r-x" in text and "group:4321:r-x" in text


def test_a_large_directory_is_listed_right_while_it_changes(root):
    directory = root / "large"
    directory.mkdir()
    stays = {f"stays{number}" for number in range(700)}
    for name in stays:
        (directory / name).touch()
    seen = []
    with os.scandir(directory) as listing:
        for number, entry in enumerate(listing):
            seen.append(entry.name)
            if number % 3 == 0:
                (directory / f"comes{number}").touch()
                if (directory / f"comes{number - 30}").exists():
                    (directory / f"comes{number - 30}").unlink()
    assert len(seen) == len(set(seen))
    assert stays <= set(seen)


@pytest.fixture
def open_place():
    """A directory that other users can reach, as pytest's own can't be."""
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        os.chmod(name, 0o755)
        with Workshop(name) as shop:
            yield shop


STRANGER = ("setpriv", "--reuid=12345", "--clear-groups")


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), ("nolane",)], ids=["lane", "nolane"])
def test_setuid_goes_when_another_user_writes(open_place, way):
    volume = open_place.volume(3, mounted=True, options=("allow_other", *way))
    path = volume.mountpoint / "program"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o6777)
    volume.mountpoint.chmod(0o777)
    run(*STRANGER, "sh", "-c", f"echo true >> {path}")
    assert path.stat().st_mode & 0o7777 == 0o777
    path.chmod(0o6777)
    run(*STRANGER, "truncate", "-s", "3", path)
    assert path.stat().st_mode & 0o7777 == 0o777
    run(*STRANGER, "touch", volume.mountpoint / "mine")
    assert (volume.mountpoint / "mine").stat().st_uid == 12345
    path.chmod(0o700)
    assert "Permission denied" in run(*STRANGER, "cat", path, expect=1).stderr


@pytest.mark.slow
def test_others_are_let_in_only_when_told(open_place):
    volume = open_place.volume(3, mounted=True)
    volume.mountpoint.chmod(0o777)
    done = run(*STRANGER, "ls", volume.mountpoint, expect=2)
    assert "Permission denied" in done.stderr


@pytest.mark.slow
def test_concurrent_writers_and_fsyncs(root):
    errors = []

    def work(number):
        try:
            path = root / f"writer{number}"
            with path.open("wb") as file:
                for turn in range(20):
                    file.write(bytes([number]) * 10_000)
                    file.flush()
                    if turn % 5 == 0:
                        os.fsync(file.fileno())
            assert path.read_bytes() == bytes([number]) * 200_000
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and time.monotonic() - begun < 30
