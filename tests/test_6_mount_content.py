"""The content of files by system calls on a real mount: sizes, holes, flags, copies, mappings, open
files without a name, files by handle. One mount serves all tests; each has its own directory."""

import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import resource
import select
import signal
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest
from mounting import run
from posix_calls import (
    AT_FDCWD,
    LIBC,
    in_child,
    opened,
    own_directory,
    refused,
    shared_volume,
)

__all__ = ["own_directory", "shared_volume"]  # fixtures
pytestmark = pytest.mark.mount

LARGEST = 2**63 - 1


def test_the_largest_sizes(root):
    with (root / "huge").open("w+b", buffering=0) as file:
        fd = file.fileno()
        os.ftruncate(fd, LARGEST)
        assert os.fstat(fd).st_size == LARGEST
        assert os.pwrite(fd, b"last", LARGEST - 4) == 4
        assert os.pread(fd, 4, LARGEST - 4) == b"last"
        assert os.pread(fd, 6000, LARGEST - 6000) == bytes(5996) + b"last"
        assert os.pwrite(fd, b"ab", LARGEST - 2) == 2
        with refused(errno.EFBIG, errno.EINVAL):
            os.pwrite(fd, b"x", LARGEST)
        with suppress(OSError):  # the kernel may cut it short or refuse it
            assert os.pwrite(fd, b"xyz", LARGEST - 1) == 1
        assert os.fstat(fd).st_size == LARGEST
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 3, LARGEST - 4) == b"laa"
        os.ftruncate(fd, 5)
        assert os.pread(fd, 10, 0) == bytes(5)
        os.ftruncate(fd, 1 << 62)
        assert os.pread(fd, 5000, 1 << 62) == b""
        assert os.pread(fd, 5000, (1 << 62) - 5000) == bytes(5000)


def test_the_limit_of_a_process_on_sizes(root):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open(root / "file", os.O_CREAT | os.O_RDWR)
        assert os.write(fd, bytes(20_000)) == 10_000
        with refused(errno.EFBIG):
            os.write(fd, b"x")
        with refused(errno.EFBIG):
            os.ftruncate(fd, 10_001)

    assert in_child(limited) is True
    assert (root / "file").stat().st_size == 10_000


def test_holes_read_as_zeros_and_take_no_room(volume, root):
    before = os.statvfs(volume.mountpoint)
    with (root / "sparse").open("w+b", buffering=0) as file:
        fd = file.fileno()
        for place in (1 << 20, 1 << 30, 1 << 40, 1 << 50):
            os.pwrite(fd, b"island", place)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 100, (1 << 40) - 47) == bytes(47) + b"island" + bytes(47)
        assert os.pread(fd, 70_000, 1 << 35) == bytes(70_000)
    volume.ctl("sync")
    assert 0 < (root / "sparse").stat().st_blocks * 512 <= 64 << 10
    (root / "full").write_bytes(b"x" * 1_000_000)
    volume.ctl("sync")
    assert 1_000_000 <= (root / "full").stat().st_blocks * 512 < 1_100_000
    after = os.statvfs(volume.mountpoint)
    assert (before.f_bfree - after.f_bfree) * after.f_frsize < 8 << 20


def test_open_flags(root):
    path = root / "file"
    path.write_bytes(b"0123456789")
    with closing(os.fdopen(os.open(path, os.O_WRONLY | os.O_TRUNC), "wb")):
        assert path.stat().st_size == 0
    path.write_bytes(b"0123456789")
    before = path.stat()
    with path.open("r+b", buffering=0) as reader:
        path.write_bytes(b"abc")  # O_TRUNC by another descriptor
        assert reader.read() == b"abc"
        os.truncate(path, 0)
        assert reader.read() == b""
    after = path.stat()
    assert after.st_mtime_ns > before.st_mtime_ns and after.st_ino == before.st_ino
    with opened(root, os.O_TMPFILE | os.O_RDWR) as nameless:
        os.write(nameless, b"never seen")
    fd = os.open(path, os.O_WRONLY | os.O_SYNC | os.O_APPEND)
    os.write(fd, b"synced")
    os.close(fd)
    assert path.read_bytes() == b"synced"
    with refused(errno.EBADF), opened(path, os.O_RDONLY) as reader:
        os.write(reader, b"x")


def test_appending_from_many_processes_loses_nothing(root):
    path = root / "log"
    path.touch()

    def append(number):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for turn in range(100):
            line = f"{number} {turn} ".encode().ljust(99, b".") + b"\n"
            assert os.write(fd, line) == 100

    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                append(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    lines = path.read_bytes().splitlines()
    assert {len(line) for line in lines} == {99}
    told = [tuple(map(int, line.split()[:2])) for line in lines]
    for number in range(4):
        assert [turn for who, turn in told if who == number] == list(range(100))


def test_unlinked_files_live_while_open(volume, root):
    path = root / "gone"
    data = os.urandom(3_000_000)
    with path.open("w+b", buffering=0) as file:
        os.write(file.fileno(), data)
        path.unlink()
        os.fsync(file.fileno())
        volume.ctl("sync")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), len(data), 0) == data
        os.pwrite(file.fileno(), b"more", 1_000_000)
        os.fchmod(file.fileno(), 0o611)
        os.setxattr(file.fileno(), "user.still", b"here")
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_mode & 0o777) == (0, 0o611)
        assert (
            os.pread(file.fileno(), 6, 999_999)
            == data[999_999:1_000_000] + b"more" + data[1_000_004:1_000_005]
        )
        # AT_SYMLINK_FOLLOW
        descriptor = f"/proc/self/fd/{file.fileno()}".encode()
        assert LIBC.linkat(AT_FDCWD, descriptor, AT_FDCWD, os.fsencode(root / "back"), 0x400) == -1
        assert ctypes.get_errno() == errno.ENOENT
    assert os.listdir(root) == []


def test_copies_inside_the_kernel(root):
    data = os.urandom(1_234_567)
    (root / "from").write_bytes(data)
    with (root / "from").open("rb") as source, (root / "to").open("wb") as target:
        done = 0
        while count := os.copy_file_range(source.fileno(), target.fileno(), len(data)):
            done += count
        assert done == len(data)
    assert (root / "to").read_bytes() == data
    with (root / "from").open("rb") as source, (root / "sent").open("wb") as target:
        done = 0
        while count := os.sendfile(target.fileno(), source.fileno(), done, len(data)):
            done += count
    assert (root / "sent").read_bytes() == data
    read_end, write_end = os.pipe()
    with (root / "from").open("rb") as source, (root / "spliced").open("wb") as target:
        while count := os.splice(source.fileno(), write_end, 65536):
            while count:
                count -= os.splice(read_end, target.fileno(), count)
    os.close(read_end)
    os.close(write_end)
    assert (root / "spliced").read_bytes() == data


def test_vectors_preallocation_and_syncs(root):
    with (root / "file").open("w+b", buffering=0) as file:
        fd = file.fileno()
        pieces = [os.urandom(size) for size in (1, 4095, 4097, 100_000)]
        whole = b"".join(pieces)
        assert os.pwritev(fd, pieces, 333) == len(whole)
        into = [bytearray(len(whole) - 5000), bytearray(5000)]
        assert os.preadv(fd, into, 333) == len(whole)
        assert b"".join(into) == whole
        os.posix_fallocate(fd, 0, 300_000)
        assert os.fstat(fd).st_size == 300_000
        assert os.pread(fd, len(whole), 333) == whole
        assert LIBC.fallocate(fd, 8, ctypes.c_long(0), ctypes.c_long(4096)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP  # no collapsing of ranges
        os.fdatasync(fd)
        assert LIBC.syncfs(fd) == 0
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_memory_shared_between_processes(root):
    path = root / "shared"
    path.write_bytes(bytes(40_000))
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 40_000) as mine:

        def other():
            theirs = mmap.mmap(os.open(path, os.O_RDWR), 40_000)
            assert theirs[100:105] == b"hello"
            theirs[20_000:20_005] = b"reply"
            with path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), b"written", 30_000)

        mine[100:105] = b"hello"
        assert in_child(other) is True
        assert mine[20_000:20_005] == b"reply" and mine[30_000:30_007] == b"written"
        assert os.pread(fd, 5, 20_000) == b"reply"
        mine.flush()
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        content = path.read_bytes()
        assert (content[100:105], content[20_000:20_005]) == (b"hello", b"reply")
        with mmap.mmap(fd, 40_000, flags=mmap.MAP_PRIVATE) as private:
            private[0:5] = b"apart"
            assert os.pread(fd, 5, 0) == bytes(5)
    os.close(fd)

    def beyond():
        fd = os.open(path, os.O_RDWR)
        mapped = mmap.mmap(fd, 40_000)
        os.ftruncate(fd, 4096)
        mapped[30_000]

    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            beyond()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGBUS


class Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_char * 128))


def test_handles_outlive_the_caches(volume, root):
    """What NFS needs: a file by its number and generation, long after the kernel forgot it."""
    (root / "below").mkdir()
    path = root / "below" / "file"
    path.write_text("found")
    handle, mount_id = Handle(bytes=128), ctypes.c_int()
    told = LIBC.name_to_handle_at(
        AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0
    )
    assert told == 0, os.strerror(ctypes.get_errno())
    run("sysctl", "-q", "vm.drop_caches=2")
    mount = os.open(volume.mountpoint, os.O_RDONLY)
    fd = LIBC.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    assert os.read(fd, 10) == b"found"
    os.close(fd)
    path.unlink()
    run("sysctl", "-q", "vm.drop_caches=2")
    assert LIBC.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY) == -1
    assert ctypes.get_errno() == errno.ESTALE
    os.close(mount)


def test_waiting_for_data_and_unknown_requests(root):
    (root / "file").write_text("x")
    with (root / "file").open("r+b") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0)  # files are always ready
        with refused(errno.ENOTTY, errno.ENOSYS, errno.EINVAL):
            fcntl.ioctl(file, 0x5401, bytes(64))
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1
        with refused(errno.ENXIO):
            os.lseek(file.fileno(), 1, os.SEEK_DATA)


def test_a_program_that_is_running_from_the_mount_cant_be_written(root):
    program = root / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as running:
        try:
            with refused(errno.ETXTBSY):
                os.open(program, os.O_WRONLY)
        finally:
            running.kill()
    run(program, "0")
