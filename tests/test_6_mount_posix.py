"""POSIX, and what Linux adds, by system calls on a real mount. One mount serves all tests here;
each has a directory of its own in it. Other users are other processes with other numbers."""

import ctypes
import errno
import faulthandler
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from mounting import Workshop, run

pytestmark = pytest.mark.mount

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
AT_FDCWD = -100
LARGEST = 2**63 - 1
NOBODY = 65534


@pytest.fixture(scope="module")
def volume():
    """A volume that other users can reach, as below pytest's own directory they could not."""
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        os.chmod(name, 0o755)
        with Workshop(name) as shop:
            made = shop.volume(3, level="5", size=1 << 30)
            made.mount("allow_other")
            made.mountpoint.chmod(0o755)
            yield made
            made.unmount()
            made.check()


@pytest.fixture
def root(volume, request):
    """This test's own directory, empty again at the end."""
    path = volume.mountpoint / request.node.name.replace("/", "_")
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@contextmanager
def refused(*numbers):
    """The block must fail with one of these error numbers."""
    try:
        yield
    except OSError as error:
        assert error.errno in numbers, error
    else:
        raise AssertionError(f"not refused with {[errno.errorcode[n] for n in numbers]}")


@contextmanager
def opened(path, flags, mode=0o666):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def in_child(function, *, uid=0, gid=0, groups=()):
    """Runs the function in a child process; True, or what went wrong there."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        try:
            if uid:
                os.setgroups(groups)
                os.setresgid(gid or uid, gid or uid, gid or uid)
                os.setresuid(uid, uid, uid)
            function()
        except BaseException as error:
            said = repr(error).encode() or b"?"
        finally:
            with suppress(OSError):
                os.write(write_end, said)
            os._exit(bool(said))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said or True


def renameat2(old, new, flags):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


# -- names ----------------------------------------------------------------------------------------


def test_rename_flags(root):
    (root / "file").write_text("file")
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "other").mkdir()
    with refused(errno.EEXIST):
        renameat2(root / "file", root / "directory", NOREPLACE)
    renameat2(root / "file", root / "new", NOREPLACE)
    renameat2(root / "new", root / "directory" / "inner", EXCHANGE)
    assert (root / "directory" / "inner").read_text() == "file"
    assert (root / "new").is_dir()
    assert (root.stat().st_nlink, (root / "directory").stat().st_nlink) == (5, 2)
    renameat2(root / "directory", root / "new", EXCHANGE)
    assert (root / "new" / "inner").read_text() == "file"
    with refused(errno.ENOENT):
        renameat2(root / "new", root / "nothing", EXCHANGE)
    with refused(errno.EINVAL):
        renameat2(root / "other", root / "other" / "below", 0)
    with refused(errno.EINVAL):
        renameat2(root / "other", root / "new", EXCHANGE | NOREPLACE)
    with refused(errno.EINVAL):
        renameat2(root / "other", root / "white", WHITEOUT)


def test_rename_across_directories_moves_the_dots(root):
    (root / "a" / "moved" / "below").mkdir(parents=True)
    (root / "b").mkdir()
    os.rename(root / "a" / "moved", root / "b" / "moved")
    assert (root / "b" / "moved" / ".." / "moved" / "below").is_dir()
    assert os.stat(root / "b" / "moved" / "..").st_ino == (root / "b").stat().st_ino
    assert ((root / "a").stat().st_nlink, (root / "b").stat().st_nlink) == (2, 3)
    with refused(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(root / "a", root / "b")
    with refused(errno.EINVAL):
        os.rename(root / "b", root / "b" / "moved" / "below" / "again")
    (root / "file").touch()
    with refused(errno.ENOTDIR):
        os.rename(root / "b", root / "file")
    with refused(errno.EISDIR):
        os.rename(root / "file", root / "b")
    os.rename(root / "b", root / "a")  # over an empty one
    assert (root / "a" / "moved").is_dir()


def test_rename_over_an_open_file_and_between_links(root):
    (root / "old").write_text("old content")
    (root / "new").write_text("new content")
    with (root / "old").open() as held:
        os.rename(root / "new", root / "old")
        assert held.read() == "old content" and os.fstat(held.fileno()).st_nlink == 0
    assert (root / "old").read_text() == "new content"
    os.link(root / "old", root / "link")
    os.rename(root / "old", root / "link")
    assert sorted(os.listdir(root)) == ["link", "old"]


def test_names_of_any_bytes_and_their_longest(root):
    place = os.fsencode(root)
    names = [bytes([value]) for value in range(1, 256) if value not in b"/."]
    names += [b"x" * 255, b"\xff" * 255, "ä€𝄞".encode(), b"...", b"a\nb"]
    for name in names:
        os.close(os.open(place + b"/" + name, os.O_CREAT | os.O_EXCL, 0o600))
    assert sorted(os.listdir(place)) == sorted(names)
    for name in names:
        assert stat.S_ISREG(os.stat(place + b"/" + name).st_mode)
        os.unlink(place + b"/" + name)
    for call in (os.mkdir, os.stat, os.unlink, lambda p: os.symlink("x", p)):
        with refused(errno.ENAMETOOLONG):
            call(place + b"/" + b"x" * 256)
    with refused(errno.ENAMETOOLONG):
        os.stat(b"x/" * 3000)
    os.symlink("t" * 4095, root / "long")
    assert os.readlink(root / "long") == "t" * 4095
    with refused(errno.ENAMETOOLONG):
        os.symlink("t" * 4096, root / "longer")


def test_links_loops_and_kinds(root):
    os.symlink("self", root / "self")
    with refused(errno.ELOOP):
        os.stat(root / "self")
    (root / "file").write_text("x")
    os.symlink("file", root / "soft")
    with refused(errno.ELOOP):
        os.open(root / "soft", os.O_NOFOLLOW)
    with refused(errno.ENOTDIR):
        os.open(root / "file", os.O_DIRECTORY)
    with refused(errno.ENOTDIR):
        os.stat(root / "file" / "below")
    with refused(errno.EISDIR):
        os.open(root, os.O_WRONLY)
    with refused(errno.EISDIR), opened(root, os.O_RDONLY) as fd:
        os.read(fd, 1)
    with refused(errno.EEXIST):
        os.open(root / "soft", os.O_CREAT | os.O_EXCL)
    with refused(errno.EXDEV):
        os.link("/etc/passwd", root / "far")
    with refused(errno.EPERM):
        os.link(root, root / "second")
    with refused(errno.EINVAL):
        os.readlink(root / "file")
    (root / "full" / "x").mkdir(parents=True)
    with refused(errno.ENOTEMPTY):
        os.rmdir(root / "full")
    with refused(errno.ENOTDIR):
        os.rmdir(root / "file")
    with refused(errno.EISDIR):
        os.unlink(root / "full")
    with refused(errno.EINVAL):
        os.rmdir(str(root / "full") + "/.")
    for number in range(200):
        os.link(root / "file", root / f"link{number}")
    assert (root / "link7").stat().st_nlink == 201
    for number in range(200):
        os.unlink(root / f"link{number}")
    assert (root / "file").stat().st_nlink == 1 and (root / "file").read_text() == "x"


def test_a_removed_current_directory(root):
    def lost():
        os.mkdir(root / "gone")
        os.chdir(root / "gone")
        os.rmdir(root / "gone")
        with refused(errno.ENOENT):
            os.getcwd()
        with refused(errno.ENOENT):
            os.open("file", os.O_CREAT | os.O_WRONLY)
        with refused(errno.ENOENT):
            os.mkdir("below")
        with refused(errno.ENOENT):
            os.rename(root / "mover", "here")
        assert os.listdir(".") == [] and os.stat(".").st_nlink == 0
        os.chdir("..")

    (root / "mover").touch()
    assert in_child(lost) is True
    assert os.listdir(root) == ["mover"]


class DirectoryEntry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


def listed(directory):
    """Names as libc reads them from an open DIR, from where it stands."""
    LIBC.readdir.restype = ctypes.POINTER(DirectoryEntry)
    while entry := LIBC.readdir(ctypes.c_void_p(directory)):
        yield entry.contents.name, entry.contents.offset


def test_listing_goes_on_right_from_any_place_while_names_come_and_go(root):
    names = {f"name{number}".encode() for number in range(1500)}
    for name in names:
        (root / name.decode()).touch()
    LIBC.opendir.restype = ctypes.c_void_p
    directory = LIBC.opendir(os.fsencode(root))
    try:
        seen = []
        for name, offset in listed(directory):
            seen.append((name, offset))
            if len(seen) == 400:
                break
        for name, _ in seen[:300]:
            if name in names:
                (root / name.decode()).unlink()
        LIBC.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
        LIBC.seekdir(directory, seen[349][1])
        rest = [name for name, _ in listed(directory)]
        assert rest[:50] == [name for name, _ in seen[350:]]
        assert {name for name, _ in seen[:350]} | set(rest) == names | {b".", b".."}
        assert len(rest) == len(set(rest)) == len(names) + 2 - 350
        LIBC.rewinddir(ctypes.c_void_p(directory))
        again = [name for name, _ in listed(directory)]
        assert len(again) == len(set(again)) == len(os.listdir(root)) + 2
    finally:
        LIBC.closedir(ctypes.c_void_p(directory))


# -- content --------------------------------------------------------------------------------------


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
    with refused(errno.EOPNOTSUPP, errno.ENOSYS):
        os.open(root, os.O_TMPFILE | os.O_RDWR)
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
        assert LIBC.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP  # no punching of holes
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


# -- attributes -----------------------------------------------------------------------------------


def test_times(root):
    path = root / "file"
    path.write_text("x")
    for atime_ns, mtime_ns in ((1, 2), (-5_000_000_001, -1), (4_102_444_800 * 10**9 + 1, 17)):
        os.utime(path, ns=(atime_ns, mtime_ns))
        found = path.stat()
        assert (found.st_atime_ns, found.st_mtime_ns) == (atime_ns, mtime_ns)
        assert abs(found.st_ctime_ns - time.time_ns()) < 30 * 10**9
    before = root.stat()
    (root / "other").touch()
    after = root.stat()
    assert after.st_mtime_ns > before.st_mtime_ns and after.st_ctime_ns > before.st_ctime_ns
    told = path.stat()
    path.chmod(0o640)
    now = path.stat()
    assert now.st_mtime_ns == told.st_mtime_ns and now.st_ctime_ns > told.st_ctime_ns
    os.link(path, root / "link")
    assert path.stat().st_ctime_ns > now.st_ctime_ns
    os.utime(path, ns=(7, 7))
    run("touch", "-m", path)  # UTIME_OMIT for atime, UTIME_NOW for mtime
    now = path.stat()
    assert now.st_atime_ns == 7 and abs(now.st_mtime_ns - time.time_ns()) < 30 * 10**9
    path.read_bytes()
    assert path.stat().st_atime_ns > 10**18  # relatime: it was older than the change


def test_device_files_pipes_and_sockets(root):
    os.mknod(root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with (root / "zero").open("rb") as file:
        assert file.read(5) == bytes(5)
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(250, 70_000))
    found = (root / "block").stat()
    assert stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(250, 70_000)
    os.mknod(root / "plain", stat.S_IFREG | 0o600)
    assert (root / "plain").read_bytes() == b""
    os.mkfifo(root / "fifo")

    def writes():
        (root / "fifo").write_bytes(b"through the pipe")

    child = os.fork()
    if child == 0:
        try:
            writes()
        finally:
            os._exit(0)
    assert (root / "fifo").read_bytes() == b"through the pipe"
    os.waitpid(child, 0)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        here = os.open(root, os.O_RDONLY)
        name = f"/proc/self/fd/{here}/socket"  # paths of sockets are short
        server.bind(name)
        server.listen()
        client.connect(name)
        accepted, _ = server.accept()
        client.sendall(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.close()
        os.close(here)
    assert stat.S_ISSOCK((root / "socket").stat().st_mode)


def test_extended_attributes_and_their_limits(root):
    path = root / "file"
    path.touch()
    os.setxattr(path, "user.large", b"x" * 65536)
    assert os.getxattr(path, "user.large") == b"x" * 65536
    with refused(errno.E2BIG):
        os.setxattr(path, "user.larger", b"x" * 65537)
    os.setxattr(path, b"user." + b"\xff" * 250, b"")
    assert os.getxattr(path, b"user." + b"\xff" * 250) == b""
    with refused(errno.ERANGE):
        os.setxattr(path, "user." + "n" * 251, b"")
    with refused(errno.ENODATA):
        os.getxattr(path, "user.nothing")
    with refused(errno.ENODATA):
        os.removexattr(path, "user.nothing")
    with refused(errno.EOPNOTSUPP):
        os.setxattr(path, "unheard.of", b"")
    buffer = ctypes.create_string_buffer(10)
    assert LIBC.getxattr(os.fsencode(path), b"user.large", buffer, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert LIBC.getxattr(os.fsencode(path), b"user.large", None, 0) == 65536
    os.setxattr(path, "trusted.secret", b"root's")

    def nobody():
        assert "trusted.secret" not in os.listxattr(path)
        with refused(errno.EPERM, errno.EACCES):
            os.setxattr(path, "user.mine", b"")

    assert in_child(nobody, uid=NOBODY) is True
    os.symlink("file", root / "soft")
    with refused(errno.EPERM):
        os.setxattr(root / "soft", "user.x", b"", follow_symlinks=False)
    for number in range(100):
        os.setxattr(path, f"user.number{number}", str(number).encode())
    assert len(os.listxattr(path)) == 103
    for name in os.listxattr(path):
        os.removexattr(path, name)
    assert os.listxattr(path) == []


def getfacl(path):
    return run("getfacl", "-nc", "--absolute-names", path).stdout.split()


def may(path, flags, uid, gid=0, groups=()):
    """Whether that user can open the path so."""

    def opens():
        os.close(os.open(path, flags))

    said = in_child(opens, uid=uid, gid=gid, groups=groups)
    assert said is True or "Permission denied" in said, said
    return said is True


def test_acls_are_enforced_and_inherited(root):
    root.chmod(0o755)
    path = root / "file"
    path.write_text("x")
    path.chmod(0o600)
    run("setfacl", "-m", "u:2001:rw,u:2002:r,g:3001:r,m::rw", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert may(path, os.O_RDWR, 2001) and may(path, os.O_RDONLY, 2002)
    assert not may(path, os.O_WRONLY, 2002) and not may(path, os.O_RDONLY, 2003)
    assert may(path, os.O_RDONLY, 2003, gid=3001) and may(path, os.O_RDONLY, 2003, groups=(3001,))
    path.chmod(0o640)  # the mask
    assert "user:2001:rw-" in getfacl(path) and "mask::r--" in getfacl(path)
    assert not may(path, os.O_WRONLY, 2001) and may(path, os.O_RDONLY, 2001)
    run("setfacl", "-b", path)
    assert not may(path, os.O_RDONLY, 2001) and os.listxattr(path) == []

    directory = root / "directory"
    directory.mkdir()
    run("setfacl", "-m", "u:2001:rwx,d:u:2001:rwx,d:g::r-x,d:o::---", directory)

    def creates():
        os.umask(0)
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(directory / "below", 0o777)

    assert in_child(creates, uid=2001) is True
    told = getfacl(directory / "file")
    assert {"user::rw-", "user:2001:rwx", "group::r-x", "mask::rw-", "other::---"} <= set(told)
    assert (directory / "file").stat().st_mode & 0o777 == 0o660
    assert "default:user:2001:rwx" in getfacl(directory / "below")
    assert may(directory / "file", os.O_WRONLY, 2001)
    assert not may(directory / "file", os.O_RDONLY, 2002)
    with refused(errno.EACCES, errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr(
            path, "system.posix_acl_default", os.getxattr(directory, "system.posix_acl_default")
        )


def test_modes_owners_and_who_may(root):
    root.chmod(0o777)
    path = root / "file"
    path.write_text("x")
    path.chmod(0o600)

    def stranger():
        for forbidden in (
            lambda: os.open(path, os.O_RDONLY),
            lambda: os.chmod(path, 0o666),
            lambda: os.chown(path, NOBODY, NOBODY),
            lambda: os.utime(path, (1, 1)),
            lambda: os.truncate(path, 0),
            lambda: os.unlink(root / "sticky" / "roots"),
            lambda: os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        ):
            with refused(errno.EACCES, errno.EPERM):
                forbidden()
        os.umask(0o027)
        os.close(os.open(root / "mine", os.O_CREAT, 0o777))
        assert stat.S_IMODE(os.stat(root / "mine").st_mode) == 0o750
        os.mkdir(root / "my directory", 0o777)
        os.chmod(root / "mine", 0o6711)
        assert stat.S_IMODE(os.stat(root / "mine").st_mode) & 0o4000
        os.mkdir(root / "grouped" / "below")
        os.close(os.open(root / "grouped" / "file", os.O_CREAT, 0o666))

    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "sticky" / "roots").touch()
    (root / "grouped").mkdir()
    os.chown(root / "grouped", 0, 4321)
    (root / "grouped").chmod(0o2777)
    assert in_child(stranger, uid=NOBODY) is True
    assert (root / "mine").stat().st_uid == NOBODY
    below = (root / "grouped" / "below").stat()
    assert below.st_gid == 4321 and below.st_mode & stat.S_ISGID
    assert (root / "grouped" / "file").stat().st_gid == 4321
    os.chown(root / "mine", 1, 1)
    assert not (root / "mine").stat().st_mode & stat.S_ISUID


def test_locks_between_processes(root):
    path = root / "locked"
    path.write_bytes(bytes(100))
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 20)

        def other():
            with path.open("r+b") as mine:
                with refused(errno.EWOULDBLOCK):
                    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with refused(errno.EACCES, errno.EAGAIN):
                    fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 22)
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 30)
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 20, 1, 0)
                kind, _, start, length, pid = struct.unpack(
                    "hhqqi4x", fcntl.fcntl(mine, fcntl.F_GETLK, asked)
                )
                assert (kind, start, length) == (fcntl.F_WRLCK, 20, 10)
                assert pid == os.getppid()

        assert in_child(other) is True
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_UN)
        assert (
            in_child(lambda: fcntl.lockf(path.open("r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)) is True
        )


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
