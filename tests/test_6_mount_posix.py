"""Names, links, listings, modes, owners, times, attributes, ACLs, locks: by system calls on a real
mount. One mount serves all tests here; each has a directory of its own in it. Other users are
other processes with other numbers."""

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import time

import pytest
from mounting import run
from posix_calls import (
    LIBC,
    in_child,
    opened,
    own_directory,
    refused,
    renameat2,
    shared_volume,
)

__all__ = ["own_directory", "shared_volume"]  # fixtures
pytestmark = pytest.mark.mount

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
NOBODY = 65534


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
