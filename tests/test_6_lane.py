"""Mounts behind the lane: what it serves, what pyfuse3 lacks, how mounts come and go."""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import signal
import stat
import struct
import subprocess
import tempfile
import threading
import time

import pytest
from mounting import BIN, Workshop, is_mounted, run, wait_until

pytestmark = pytest.mark.mount

LIBC = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
STRANGER = ("setpriv", "--reuid=12345", "--clear-groups")
# struct vfs_ns_cap_data: cap_net_raw, permitted and effective
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture(scope="module")
def shared():
    """One mounted volume that other users reach, for the tests that leave it mounted."""
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        os.chmod(name, 0o755)
        with Workshop(name) as shop:
            volume = shop.volume(3, level="5", mounted=True, options=("allow_other",))
            volume.mountpoint.chmod(0o755)
            yield volume
            volume.unmount()
            volume.check()


@pytest.fixture
def root(shared, request):
    """A directory of its own for each test."""
    directory = shared.mountpoint / re.sub(r"\W+", "_", request.node.name)
    directory.mkdir()
    return directory


def lane(volume):
    return volume.status()["lane"]


def fallocate(fd, mode, offset, nbytes):
    arguments = [ctypes.c_int(fd), ctypes.c_int(mode)]
    arguments += [ctypes.c_int64(offset), ctypes.c_int64(nbytes)]
    if LIBC.fallocate(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_name(fd, path):
    """linkat(2) as its manual page has it for files without a name."""
    source, at_symlink_follow = f"/proc/self/fd/{fd}".encode(), 0x400
    if LIBC.linkat(-100, source, -100, os.fsencode(path), at_symlink_follow):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def seek(fd, offset, whence):
    """The offset found, or None where there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return None


# -- what it serves -------------------------------------------------------------------------------


@pytest.mark.slow
def test_status_tells_how_requests_were_answered(shared, root):
    before = lane(shared)
    path = root / "file"
    path.write_bytes(b"x" * 300_000)
    path.read_bytes()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    after = lane(shared)
    assert after["threads"] >= 1 and not after["writeback"]
    assert after["served"]["write"] > before["served"].get("write", 0)
    assert after["carried"]["fsync"] > before["carried"].get("fsync", 0)
    assert after["carried"]["create"] > before["carried"].get("create", 0)
    assert after["forwarded"]["init"] == 1
    text = " ".join(shared.ctl("status").stdout.split())
    assert re.search(r"lane: \d+ threads?; \d+ requests served in C, \d+ answered by Python", text)
    told = json.loads(shared.ctl("statistics", "--json").stdout)
    assert told["lane"]["served"]["write"] >= after["served"]["write"]
    assert "lane.served.write" in shared.ctl("statistics").stdout


def test_content_in_all_sizes_and_places(root):
    model = bytearray()
    with (root / "file").open("w+b", buffering=0) as file:
        for number, (offset, nbytes) in enumerate(
            [(0, 1), (1, 4095), (4096, 4096), (5000, 100), (3 << 20, 1 << 20), (100, 3_000_000),
             ((5 << 20) + 17, 70_001), (2, 2)]
        ):  # fmt: skip
            data = bytes([number + 1]) * nbytes
            assert os.pwrite(file.fileno(), data, offset) == nbytes
            model.extend(bytes(max(0, offset + nbytes - len(model))))
            model[offset : offset + nbytes] = data
            if number % 3 == 2:
                os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == len(model)
        run("sysctl", "-q", "vm.drop_caches=1", expect=None)
        assert os.pread(file.fileno(), len(model) + 100, 0) == model


def test_direct_buffered_and_mapped_agree(root):
    path = root / "file"
    path.write_bytes(b"0" * 65536)
    buffered = os.open(path, os.O_RDWR)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    try:
        with mmap.mmap(buffered, 65536) as mapped:
            page[:] = b"d" * 4096
            assert os.pwrite(direct, page, 8192) == 4096
            assert os.pread(buffered, 4096, 8192) == b"d" * 4096 == mapped[8192:12288]
            os.pwrite(buffered, b"b" * 4096, 16384)
            assert os.preadv(direct, [page], 16384) == 4096 and page[:] == b"b" * 4096
            assert mapped[16384:20480] == b"b" * 4096
            mapped[0:5] = b"mmap!"
            mapped.flush()
            assert os.preadv(direct, [page], 0) == 4096 and page[:5] == b"mmap!"
            assert os.pread(buffered, 5, 0) == b"mmap!"
        with mmap.mmap(direct, 65536) as mapped:  # of a direct descriptor, too
            assert mapped[8192:8196] == b"dddd"
            mapped[0:5] = b"again"
            mapped.flush()
        assert os.pread(buffered, 5, 0) == b"again"
    finally:
        page.close()
        os.close(buffered)
        os.close(direct)


def test_appends_of_many_writers_are_whole(root):
    path = root / "log"
    path.touch()

    def append(number):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(200):
            os.write(fd, bytes([65 + number]) * 99 + b"\n")
        os.close(fd)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 800 and all(len(line) == 99 and len(set(line)) == 1 for line in lines)


def test_a_file_open_and_unlinked_is_written_and_goes(shared, root):
    before = json.loads(shared.ctl("statistics", "--json").stdout)["inodes"]["orphans"]
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR)
    os.unlink(root / "file")
    os.write(fd, b"x" * 100_000)
    assert os.pread(fd, 100_000, 0) == b"x" * 100_000
    os.close(fd)

    def gone():
        told = json.loads(shared.ctl("statistics", "--json").stdout)["inodes"]
        return told["orphans"] == before

    wait_until(gone, "the file without a name is removed")


# -- what the kernel leaves to us -----------------------------------------------------------------


def test_umask_and_default_acls(root):
    old = os.umask(0o027)
    try:
        (root / "plain").touch(mode=0o666)
        assert stat.S_IMODE((root / "plain").stat().st_mode) == 0o640
        (root / "directory").mkdir(mode=0o777)
        assert stat.S_IMODE((root / "directory").stat().st_mode) == 0o750
        os.mkfifo(root / "fifo", 0o666)
        assert stat.S_IMODE((root / "fifo").stat().st_mode) == 0o640
        ruled = root / "ruled"
        ruled.mkdir()
        run("setfacl", "-d", "-m", "u::rwx,g::rwx,o::rwx,u:12345:rwx", ruled)
        # POSIX: where a default ACL rules, the umask plays no part
        (ruled / "file").touch(mode=0o666)
        assert stat.S_IMODE((ruled / "file").stat().st_mode) == 0o666
        (ruled / "below").mkdir(mode=0o777)
        assert stat.S_IMODE((ruled / "below").stat().st_mode) == 0o777
        text = run("getfacl", "-n", "--absolute-names", ruled / "file").stdout
        assert "user:12345:rwx" in text and "mask::rw-" in text
    finally:
        os.umask(old)


@pytest.mark.parametrize("way", ["write", "direct", "truncate", "open", "fallocate"])
def test_setuid_goes_when_another_user_changes_content(root, way):
    path = root / "program"
    path.write_bytes(b"#!/bin/sh\n" * 1000)
    path.chmod(0o6777)
    shell = {
        "write": f"echo true >> {path}",
        "direct": f"dd if=/dev/zero of={path} bs=4096 count=1 oflag=direct conv=notrunc",
        "truncate": f"truncate -s 3 {path}",
        "open": f": > {path}",
        "fallocate": f"fallocate -l 100000 {path}",
    }[way]
    root.chmod(0o777)
    run(*STRANGER, "sh", "-c", shell)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    done = run(*STRANGER, "stat", "-c", "%a", path)
    assert done.stdout.strip() == "777"


def test_setuid_stays_when_root_writes(root):
    path = root / "program"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o6755)
    with path.open("ab") as file:
        file.write(b"true\n")
    os.truncate(path, 5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6755
    path.chmod(0o755)
    path.write_bytes(b"served again\n")
    assert path.read_bytes() == b"served again\n"


def test_a_capability_goes_with_any_write(root):
    path = root / "ping"
    path.write_bytes(b"program")
    os.setxattr(path, "security.capability", CAPABILITY)
    assert os.listxattr(path) == ["security.capability"]
    with path.open("ab") as file:
        file.write(b"!")
    assert os.listxattr(path) == []
    os.setxattr(path, "security.capability", CAPABILITY)
    os.truncate(path, 3)
    assert os.listxattr(path) == []
    fd = os.open(path, os.O_RDWR)  # also while it is open for writing
    os.write(fd, b"x")
    os.setxattr(path, "security.capability", CAPABILITY)
    os.write(fd, b"y")
    assert os.listxattr(path) == []
    os.close(fd)


# -- what pyfuse3 lacks ---------------------------------------------------------------------------


def test_a_file_without_a_name_gets_one(root):
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    assert os.fstat(fd).st_nlink == 0 and os.listdir(root) == []
    give_name(fd, root / "name")
    os.close(fd)
    assert (root / "name").read_bytes() == b"content"
    assert (root / "name").stat().st_nlink == 1
    assert stat.S_IMODE((root / "name").stat().st_mode) == 0o640
    fd = os.open(root, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL, 0o600)
    with pytest.raises(FileNotFoundError):
        give_name(fd, root / "never")
    os.close(fd)


@pytest.mark.parametrize("synced", [False, True], ids=["in memory", "on members"])
def test_holes_are_found(root, synced):
    path = root / "sparse"
    with path.open("w+b", buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, b"a" * 8192, 0)
        os.pwrite(fd, b"b" * 8192, 1 << 20)
        os.truncate(path, 4 << 20)
        if synced:
            os.fsync(fd)
        assert seek(fd, 0, os.SEEK_DATA) == 0
        assert seek(fd, 0, os.SEEK_HOLE) == 8192
        assert seek(fd, 8192, os.SEEK_DATA) == 1 << 20
        assert seek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 8192
        assert seek(fd, (1 << 20) + 8192, os.SEEK_DATA) is None
        assert seek(fd, 2 << 20, os.SEEK_HOLE) == 2 << 20
        assert seek(fd, 4 << 20, os.SEEK_HOLE) is None
    run("cp", "--sparse=auto", path, root / "copy")
    assert (root / "copy").read_bytes() == path.read_bytes()
    assert (root / "copy").stat().st_blocks == path.stat().st_blocks == 32


def test_fallocate_in_all_modes(root):
    path = root / "file"
    path.write_bytes(b"x" * 40_000)
    with path.open("r+b", buffering=0) as file:
        fd = file.fileno()
        fallocate(fd, 0, 0, 100_000)
        assert os.fstat(fd).st_size == 100_000
        fallocate(fd, KEEP_SIZE, 0, 200_000)
        assert os.fstat(fd).st_size == 100_000
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 5000, 20_000)
        expected = b"x" * 5000 + bytes(20_000) + b"x" * 15_000 + bytes(60_000)
        assert path.read_bytes() == expected
        assert seek(fd, 8192, os.SEEK_DATA) == 24576 and seek(fd, 0, os.SEEK_HOLE) == 8192
        os.fsync(fd)
        fallocate(fd, ZERO_RANGE, 30_000, 80_000)
        assert path.read_bytes() == expected[:30_000] + bytes(80_000)
        with pytest.raises(OSError, match="not supported"):
            fallocate(fd, 8, 0, 4096)  # collapse
        with pytest.raises(OSError, match=r"Invalid|not supported"):
            fallocate(fd, PUNCH_HOLE, 0, 4096)
        for offset, nbytes, number in ((0, 0, errno.EINVAL), (2**63 - 1, 10, errno.EFBIG)):
            with pytest.raises(OSError, match=r".") as caught:
                fallocate(fd, 0, offset, nbytes)
            assert caught.value.errno == number


@pytest.mark.slow
@pytest.mark.parametrize("synced", [False, True], ids=["in memory", "on members"])
def test_copies_within_the_volume(shared, root, synced):
    data = os.urandom(1_000_000)
    (root / "from").write_bytes(data)
    source = os.open(root / "from", os.O_RDWR)
    target = os.open(root / "to", os.O_RDWR | os.O_CREAT)
    if synced:
        os.fsync(source)
    before = lane(shared)
    done = 0
    while done < len(data):
        done += os.copy_file_range(source, target, len(data) - done)
    after = lane(shared)
    assert (root / "to").read_bytes() == data
    for kind in ("read", "write"):  # not by way of the page cache
        both = [
            told["served"].get(kind, 0) + told["carried"].get(kind, 0) for told in (before, after)
        ]
        assert both[1] - both[0] <= 2
    os.pwrite(source, b"changed", 4096)
    assert os.pread(target, 7, 4096) == data[4096:4103]
    assert os.copy_file_range(source, target, 5000, 100, 2_000_001) == 5000
    assert os.pread(target, 5000, 2_000_001) == os.pread(source, 5000, 100)
    assert os.fstat(target).st_size == 2_005_001
    os.close(source)
    os.close(target)


def test_the_time_of_birth(root):
    before = time.time()
    path = root / "file"
    path.write_text("born")
    path.chmod(0o600)
    born = int(run("stat", "-c", "%W", path).stdout)
    assert int(before) <= born <= time.time()
    os.utime(path, (1, 1))
    assert int(run("stat", "-c", "%W", path).stdout) == born


# -- coming and going -----------------------------------------------------------------------------


@pytest.fixture
def volume(workshop):
    return workshop.volume(3, level="5", mounted=True)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads(workshop, threads):
    volume = workshop.volume(3)
    volume.mount(f"lane_threads={threads}")
    assert lane(volume)["threads"] == threads
    data = os.urandom(5_000_000)
    (volume.mountpoint / "file").write_bytes(data)
    assert (volume.mountpoint / "file").read_bytes() == data
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_without_the_lane(workshop):
    volume = workshop.volume(3, level="5")
    volume.mount("nolane")
    assert lane(volume) is None
    assert "lane: none (nolane)" in volume.ctl("status").stdout
    data = os.urandom(3_000_001)
    path = volume.mountpoint / "file"
    path.write_bytes(data)
    path.chmod(0o4755)
    fd = os.open(path, os.O_RDWR)
    for call, number in (
        (lambda: fallocate(fd, 0, 0, 10), errno.EOPNOTSUPP),
        (lambda: os.open(volume.mountpoint, os.O_TMPFILE | os.O_RDWR), errno.EOPNOTSUPP),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            call()
        assert caught.value.errno == number
    os.close(fd)
    volume.unmount()
    volume.check()
    volume.mount()
    assert path.read_bytes() == data and lane(volume) is not None
    volume.unmount()


@pytest.mark.slow
def test_lazy_unmount_lives_on_for_open_files(volume):
    fd = os.open(volume.mountpoint / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"before, ")
    run("umount", "-l", volume.mountpoint)
    assert not is_mounted(volume.mountpoint)
    os.write(fd, b"after")
    assert os.pread(fd, 20, 0) == b"before, after"
    os.fsync(fd)
    os.close(fd)
    volume.wait_gone()
    volume.check()
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"before, after"
    volume.unmount()


def busy(path, stop, errors):
    """Writes, reads and syncs until told to stop, or until the mount is gone."""
    number = 0
    while not stop.is_set():
        try:
            with path.open("ab", buffering=0) as file:
                file.write(bytes([number % 251]) * 50_000)
                if number % 7 == 0:
                    os.fsync(file.fileno())
            path.stat()
            path.read_bytes()
            if number % 20 == 19:
                path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            errors.append(error.errno)
            return
        number += 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["SIGTERM", "force", "SIGKILL"])
def test_an_end_under_load_leaves_nothing_hanging(volume, way):
    stop, errors = threading.Event(), []
    threads = [
        threading.Thread(target=busy, args=(volume.mountpoint / f"file{number}", stop, errors))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    if way == "SIGTERM":
        os.kill(volume.pid, signal.SIGTERM)
    elif way == "force":
        volume.ctl("umount", "--force")
    else:
        os.kill(volume.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a system call hangs"
    stop.set()
    volume.wait_gone()
    gone = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESHUTDOWN, errno.ENODEV)
    assert set(errors) <= set(gone), [errno.errorcode[number] for number in errors]
    if way == "SIGKILL":
        run("umount", "-l", volume.mountpoint)
    assert not is_mounted(volume.mountpoint)
    volume.check()
    volume.mount()
    volume.unmount()


@pytest.mark.slow
def test_read_only(volume):
    path = volume.mountpoint / "file"
    data = os.urandom(1_000_000)
    path.write_bytes(data)
    volume.unmount()
    volume.mount("ro")
    assert path.read_bytes() == data
    with pytest.raises(OSError, match="Read-only"):
        path.open("ab")
    volume.unmount()


@pytest.mark.slow
def test_a_failed_volume_refuses_writes_and_still_reads(workshop):
    volume = workshop.volume(3, level="5", mounted=True)
    path = volume.mountpoint / "file"
    data = os.urandom(500_000)
    path.write_bytes(data)
    volume.ctl("sync")
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"served", 0)
    for member in volume.members[:2]:
        subprocess.run(["rm", "-rf", member], check=True)
        member.write_text("gone")
    with pytest.raises(OSError, match=r".") as caught:
        os.pwrite(fd, b"lost", 0)
        os.fsync(fd)
    assert caught.value.errno in (errno.EIO, errno.EROFS)
    with pytest.raises(OSError, match=r".") as caught:
        os.pwrite(fd, b"refused", 0)
    assert caught.value.errno == errno.EROFS
    assert os.pread(fd, 2, 0) == b"lo"
    os.close(fd)


# -- the kernel's write-back cache ----------------------------------------------------------------


def close(fd):
    """Nobody may be there any more who would say that he needn't be told."""
    with contextlib.suppress(OSError):
        os.close(fd)


@pytest.mark.slow
def test_writeback_and_a_sync_that_was_asked_for(workshop):
    volume = workshop.volume(3, level="5")
    volume.mount("writeback")
    assert lane(volume)["writeback"]
    data = os.urandom(1_000_000)
    kept = [volume.mountpoint / f"file{number}" for number in range(3)]
    fds = []
    for path in kept:
        fds.append(os.open(path, os.O_CREAT | os.O_RDWR))
        for offset in range(0, len(data), 10_000):
            os.pwrite(fds[-1], data[offset : offset + 10_000], offset)
    assert lane(volume)["served"].get("write", 0) < 300  # 300 were made; the kernel collects
    volume.ctl("sync")
    volume.kill()
    for fd in fds:
        with pytest.raises(OSError, match=r"."):
            os.fsync(fd)
        close(fd)
    volume.check()
    volume.mount("writeback")
    assert all(path.read_bytes() == data for path in kept)
    (volume.mountpoint / "last").write_bytes(data)
    fd = os.open(volume.mountpoint / "open", os.O_CREAT | os.O_RDWR)
    os.write(fd, data)
    volume.ctl("umount", "--force")
    close(fd)
    volume.wait_gone()
    volume.check()
    volume.mount()
    assert (volume.mountpoint / "last").read_bytes() == data
    assert (volume.mountpoint / "open").read_bytes() == data
    volume.unmount()


def test_what_a_mapping_has_dirty_is_no_hole(root):
    path = root / "sparse"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.truncate(path, 1 << 20)
    assert seek(fd, 0, os.SEEK_DATA) is None
    with mmap.mmap(fd, 1 << 20) as mapped:
        mapped[65536:65541] = b"dirty"
        assert seek(fd, 0, os.SEEK_DATA) == 65536
        assert seek(fd, 65536, os.SEEK_HOLE) == 69632
        mapped[69632:69637] = b"dirty"
        assert seek(fd, 65536, os.SEEK_HOLE) == 73728
        mapped[0:3] = b"new"
        run("cp", "--sparse=auto", path, root / "copy")
        assert (root / "copy").read_bytes() == mapped[:]
    os.close(fd)


@pytest.mark.slow
def test_writeback_hides_no_data_from_seekers(workshop):
    volume = workshop.volume(3)
    volume.mount("writeback")
    fd = os.open(volume.mountpoint / "file", os.O_CREAT | os.O_RDWR)
    os.truncate(volume.mountpoint / "file", 1 << 20)
    os.pwrite(fd, b"x" * 4096, 65536)  # the kernel has it, and nobody else
    assert seek(fd, 0, os.SEEK_DATA) == 65536
    assert seek(fd, 65536, os.SEEK_HOLE) == 69632
    os.close(fd)
    volume.unmount()
    volume.check()


# -- by other users -------------------------------------------------------------------------------

BY_NOBODY = """
set -e
mount --bind {directory}/fuse /dev/fuse
run() {{ setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }}
run {bin}/raidfs -o log={directory}/log,lane_threads=2 {directory}/d0 {directory}/mnt
run sh -c 'head -c 3000000 /dev/urandom | tee {directory}/mnt/file | md5sum > {directory}/sum'
run {bin}/raidfs-ctl status --json {directory}/mnt > {directory}/status
grep " {directory}/mnt " /proc/self/mountinfo > {directory}/mountinfo
run fallocate -p -o 4096 -l 4096 {directory}/mnt/file
run {how}
while run {bin}/raidfs-ctl status --json {directory}/d0 | grep -q '"pid": [0-9]'; do sleep 0.1; done
run {bin}/raidfs-ctl check {directory}/d0
run {bin}/raidfs {directory}/d0 {directory}/mnt
run stat -c %s {directory}/mnt/file
run {bin}/raidfs-ctl umount {directory}/mnt
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fusermount3 -u {}/mnt", "{bin}/raidfs-ctl umount --force {}/mnt"])
def test_a_user_mounts_by_fusermount3(how):
    """/dev/fuse may be closed to users here: in a mount namespace of its own, there is another."""
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        os.chmod(name, 0o755)
        how = how.format(name, bin=BIN)
        os.mknod(f"{name}/fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
        os.chmod(f"{name}/fuse", 0o666)
        members = [f"{name}/d{number}" for number in range(3)]
        for path in [*members, f"{name}/mnt", f"{name}/run"]:
            os.mkdir(path)
            os.chown(path, 65534, 65534)
        os.chown(name, 65534, 65534)
        if run("test", "-r", f"{name}/fuse", expect=None).returncode:
            pytest.skip("devices don't work there")
        env = {**os.environ, "RAIDFS_RUNTIME_DIR": f"{name}/run", "HOME": name}
        as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        run(*as_nobody, f"{BIN}/raidfs-ctl", "create", "--size", "200M", *members, env=env)
        script = BY_NOBODY.format(directory=name, bin=BIN, how=how)
        done = run("unshare", "-m", "--propagation", "private", "sh", "-c", script, env=env)
        assert "clean" in done.stdout and done.stdout.split()[-1] == "3000000"
        with open(f"{name}/status") as file:
            assert json.load(file)["lane"]["threads"] == 2
        with open(f"{name}/mountinfo") as file:
            told = file.read()
        assert "nosuid,nodev" in told and "user_id=65534" in told and "fuse.raidfs" in told


@pytest.mark.slow
def test_who_may_not_use_the_device_is_told_so():
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        for part in ("d0", "d1", "mnt", "run"):
            os.mkdir(f"{name}/{part}")
            os.chown(f"{name}/{part}", 65534, 65534)
        os.chmod(name, 0o755)
        env = {**os.environ, "RAIDFS_RUNTIME_DIR": f"{name}/run", "HOME": name}
        os.mknod(f"{name}/fuse", stat.S_IFCHR | 0o600, os.makedev(10, 229))
        as_nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
        words = [*as_nobody.split(), f"{BIN}/raidfs-ctl", "create", "--size", "100M"]
        run(*words, f"{name}/d0", f"{name}/d1", env=env)
        script = f"mount --bind {name}/fuse /dev/fuse && exec {as_nobody} {BIN}/raidfs"
        script += f" {name}/d0 {name}/mnt"
        done = run(
            "unshare", "-m", "--propagation", "private", "sh", "-c", script, env=env, expect=1
        )
        assert "/dev/fuse" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_allow_root_lets_in_root_and_nobody_else():
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        os.chmod(name, 0o755)
        with Workshop(name) as shop:
            volume = shop.volume(3, mounted=True, options=("allow_root",))
            volume.mountpoint.chmod(0o777)
            (volume.mountpoint / "file").write_text("for root")
            assert (volume.mountpoint / "file").read_text() == "for root"
            for words in (["cat", "file"], ["stat", "-c", "%W", "other"], ["touch", "new"]):
                done = run(*STRANGER, *words[:-1], volume.mountpoint / words[-1], expect=1)
                assert "Permission denied" in done.stderr, done.stderr
            volume.unmount()


def test_a_program_can_hold_locks(root):
    """Kernel-local; nothing of them reaches the lane."""
    with (root / "lock").open("w") as one, (root / "lock").open("w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
