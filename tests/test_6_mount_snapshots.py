"""Snapshots browsed on real mounts, by the programs that people use for it; with the lane and
without it."""

import ctypes
import errno
import json
import mmap
import os
import shutil
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from mounting import is_mounted, run, wait_until
from trees import described, make_odd_tree

from raidfs.daemon.control import ControlClient
from raidfs.daemon.snapshots import (
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotRenameRequest,
    SnapshotRollbackRequest,
)

pytestmark = pytest.mark.mount

both_ways = pytest.mark.parametrize(
    "way", [(), pytest.param(("nolane",), marks=pytest.mark.slow)], ids=["lane", "nolane"]
)
PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)


def ask(volume, request):
    """Of the daemon, as `raidfs-ctl snapshot` does."""
    (socket,) = volume.shop.runtime.glob("*.sock")
    with ControlClient(socket) as client:
        client.ask(request)


def create(volume, name):
    ask(volume, SnapshotCreateRequest(name=name))


def delete(volume, name):
    ask(volume, SnapshotDeleteRequest(names=(name,)))


def rename(volume, name, new_name):
    ask(volume, SnapshotRenameRequest(name=name, new_name=new_name))


def seen(volume, name):
    return volume.mountpoint / ".snapshots" / name


def lane(volume):
    """What the lane served and what it carried, by opcode."""
    told = json.loads(volume.ctl("statistics", "--json").stdout)["lane"]
    return told["served"], told["carried"]


def ruin(root):
    """The present becomes another one."""
    shutil.rmtree(root / "odd")
    (root / "odd").write_text("no directory any more")
    (root / "new").mkdir()


def failing(number, function, *arguments, **options):
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, caught.value


# -- by programs ----------------------------------------------------------------------------------


@pytest.mark.slow
@both_ways
def test_copied_and_compared_by_programs(workshop, way):
    """cp -a, diff -r, rsync -aHAX, find, getfattr, tar: a snapshot is a tree like others."""
    volume = workshop.volume(mounted=True, options=("noatime", *way))
    make_odd_tree(volume.mountpoint)
    before = described(volume.mountpoint / "odd")
    plain = workshop.directory / "plain"
    run("cp", "-a", volume.mountpoint / "odd", plain)
    create(volume, "one")
    ruin(volume.mountpoint)
    odd = seen(volume, "one") / "odd"
    assert described(odd) == before

    copies = [plain, workshop.directory / "by cp", workshop.directory / "by rsync"]
    run("cp", "-a", odd, copies[1])
    run("rsync", "-aHAXS", f"{odd}/", copies[2])
    for copy in copies:
        run("diff", "-r", "--no-dereference", "-x", "fifo", "-x", "device", odd, copy)
        for one, other in ((odd, copy), (copy, odd)):
            done = run("rsync", "-aHAXnic", "--delete", f"{one}/", f"{other}/")
            assert done.stdout == "", done.stdout
    assert len(run("find", odd, "-printf", "%y").stdout) == len(before)
    assert "user.colour" in run("getfattr", "-d", odd / "empty").stdout
    assert "user:12:rw-" in run("getfacl", "-nc", odd / "small").stdout
    inode = os.stat(odd / "program").st_ino
    links = run("find", odd, "-samefile", odd / "program").stdout.splitlines()
    assert len(links) == 3 and inode >= 1 << 40
    # Back again, by rsync as one would.
    run("rsync", "-aHAXS", "--delete", f"{seen(volume, 'one')}/", f"{volume.mountpoint}/")
    done = run("rsync", "-aHAXnic", "--delete", f"{odd}/", f"{volume.mountpoint}/odd/")
    assert done.stdout == ""
    assert os.listdir(volume.mountpoint) == ["odd"]
    volume.unmount()
    volume.check()


@pytest.mark.slow
@both_ways
def test_nothing_in_it_can_be_changed(workshop, way):
    volume = workshop.volume(mounted=True, options=way)
    root = volume.mountpoint
    (root / "file").write_bytes(b"content")
    (root / "dir").mkdir()
    create(volume, "s")
    there = seen(volume, "s")
    failing(errno.EROFS, (there / "file").write_bytes, b"no")
    failing(errno.EROFS, os.open, there / "new", os.O_CREAT | os.O_RDWR, 0o644)
    failing(errno.EROFS, os.open, there / "file", os.O_RDONLY | os.O_TRUNC)
    number = errno.EOPNOTSUPP if way else errno.EROFS  # pyfuse3 knows no such files
    failing(number, os.open, there, os.O_TMPFILE | os.O_RDWR, 0o644)
    failing(errno.EROFS, os.truncate, there / "file", 2)
    failing(errno.EROFS, os.mkdir, there / "new")
    failing(errno.EROFS, os.rmdir, there / "dir")
    failing(errno.EROFS, os.unlink, there / "file")
    failing(errno.EROFS, os.rename, there / "file", root / "file2")
    failing(errno.EROFS, os.rename, root / "file", there / "file2")
    failing(errno.EROFS, os.link, there / "file", root / "file2")
    failing(errno.EROFS, os.link, root / "file", there / "file2")
    failing(errno.EROFS, os.symlink, "x", there / "soft")
    failing(errno.EROFS, os.mkfifo, there / "fifo")
    failing(errno.EROFS, os.chmod, there / "file", 0o600)
    failing(errno.EROFS, os.chown, there / "file", 1, 1)
    failing(errno.EROFS, os.utime, there / "file")
    failing(errno.EROFS, os.setxattr, there / "file", "user.new", b"")
    failing(errno.EROFS, os.mkdir, root / ".snapshots" / "new")
    failing(errno.EROFS, os.rmdir, there)
    failing(errno.EROFS, os.rename, there, root / ".snapshots" / "t")
    failing(errno.EROFS, os.chmod, root / ".snapshots", 0o777)
    failing(errno.EEXIST, os.mkdir, root / ".snapshots")
    failing(errno.EPERM, os.rmdir, root / ".snapshots")
    failing(errno.EPERM, os.rename, root / ".snapshots", root / "other")
    for name in ("file", "dir"):
        with pytest.raises(OSError):
            os.rename(root / name, root / ".snapshots")
    with (there / "file").open("rb") as file:
        assert mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:] == b"content"
        os.fsync(file.fileno())
    assert sorted(os.listdir(there)) == ["dir", "file"]
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_the_lane_serves_it_as_live_files(workshop):
    """What was read once is served in C, the content from members, too; no atime is written."""
    volume = workshop.volume(mounted=True)
    data = os.urandom(3 << 20)
    (volume.mountpoint / "dir").mkdir()
    (volume.mountpoint / "dir" / "file").write_bytes(data)
    create(volume, "s")
    (volume.mountpoint / "dir" / "file").unlink()
    path = seen(volume, "s") / "dir" / "file"
    assert path.read_bytes() == data
    atime = path.stat().st_atime_ns
    epoch = json.loads(volume.ctl("statistics", "--json").stdout)["store"]["epoch"]
    served, carried = lane(volume)
    with path.open("rb") as file:
        for _ in range(20):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), len(data), 0) == data
            os.stat(path)
            os.listdir(path.parent)
    served_now, carried_now = lane(volume)
    assert served_now["read"] > served.get("read", 0) + 50
    assert carried_now["read"] <= carried["read"] + 5  # a leaf is asked for once
    # The name of a snapshot is asked for each time, but of the lane.
    assert served_now["lookup"] > served["lookup"] + 40
    assert carried_now.get("lookup", 0) <= carried.get("lookup", 0) + 2
    assert path.stat().st_atime_ns == atime
    assert json.loads(volume.ctl("statistics", "--json").stdout)["store"]["epoch"] == epoch
    volume.unmount()
    volume.check()


@pytest.mark.slow
@both_ways
def test_content_on_members_alone(workshop, way):
    """Read by a fresh daemon, a member missing: rebuilt, as for live files."""
    volume = workshop.volume(3, mounted=True, options=("noatime", *way))
    make_odd_tree(volume.mountpoint)
    before = described(volume.mountpoint / "odd", numbers=False)
    create(volume, "s")
    ruin(volume.mountpoint)
    volume.unmount()
    shutil.rmtree(volume.members[1])
    volume.mount("degraded", "noatime", *way)
    assert described(seen(volume, "s") / "odd") == before


@pytest.mark.slow
@both_ways
def test_a_copy_from_a_snapshot_shares_its_cells(workshop, way):
    volume = workshop.volume(mounted=True, options=way)
    data = os.urandom(8 << 20)
    (volume.mountpoint / "file").write_bytes(data)
    create(volume, "s")
    (volume.mountpoint / "file").unlink()
    os.sync()
    volume.ctl("sync")
    free = os.statvfs(volume.mountpoint).f_bfree
    with (
        (seen(volume, "s") / "file").open("rb") as old,
        (volume.mountpoint / "copy").open("wb") as new,
    ):
        done = 0
        while done < len(data):
            done += os.copy_file_range(old.fileno(), new.fileno(), len(data) - done, done, done)
        os.fsync(new.fileno())
    assert (volume.mountpoint / "copy").read_bytes() == data
    used = free - os.statvfs(volume.mountpoint).f_bfree
    assert used * PAGE < (1 << 20 if not way else 16 << 20)  # pyfuse3 copies
    delete(volume, "s")
    assert (volume.mountpoint / "copy").read_bytes() == data
    volume.unmount()
    volume.check()


# -- coming and going -----------------------------------------------------------------------------


@pytest.mark.slow
@both_ways
def test_names_are_right_at_once(workshop, way):
    """Whatever the kernel was told of them before, missing ones included."""
    volume = workshop.volume(mounted=True, options=way)
    (volume.mountpoint / "file").write_bytes(b"first")
    directory = volume.mountpoint / ".snapshots"
    assert ".snapshots" not in os.listdir(volume.mountpoint)
    assert os.listdir(directory) == [] and directory.stat().st_nlink == 2
    for number in range(5):
        name = f"s{number}"
        assert not (directory / name).exists()
        (volume.mountpoint / "file").write_bytes(name.encode())
        create(volume, name)
        assert (directory / name / "file").read_bytes() == name.encode()
        assert directory.stat().st_nlink == 3 + number
        assert os.listdir(directory) == [f"s{each}" for each in range(number + 1)]
    rename(volume, "s1", "t1")
    assert not (directory / "s1").exists()
    assert (directory / "t1" / "file").read_bytes() == b"s1"
    rename(volume, "s2", "s1")
    assert (directory / "s1" / "file").read_bytes() == b"s2"
    delete(volume, "s1")
    assert not (directory / "s1").exists() and not (directory / "s1" / "file").exists()
    assert sorted(os.listdir(directory)) == ["s0", "s3", "s4", "t1"]
    (volume.mountpoint / "file").write_bytes(b"again")
    create(volume, "s1")
    assert (directory / "s1" / "file").read_bytes() == b"again"
    inner = os.stat(directory / "s1")
    assert os.stat(directory / "s1" / ".." / "s1").st_ino == inner.st_ino
    assert os.stat(directory / "..").st_ino == 1
    volume.unmount()
    volume.check()


@pytest.mark.slow
@both_ways
def test_what_is_open_of_a_deleted_snapshot(workshop, way):
    """Files, directories and mappings: ESTALE, also for what the kernel had in its cache."""
    volume = workshop.volume(mounted=True, options=way)
    (volume.mountpoint / "dir").mkdir()
    (volume.mountpoint / "dir" / "file").write_bytes(b"x" * 100_000)
    create(volume, "s")
    path = seen(volume, "s") / "dir"
    fd, place = os.open(path / "file", os.O_RDONLY), os.open(path, os.O_RDONLY)
    try:
        assert len(os.pread(fd, 100_000, 0)) == 100_000
        assert os.listdir(place) == ["file"]
        delete(volume, "s")

        def stale():
            try:
                os.pread(fd, 10, 0)
            except OSError as error:
                return error.errno == errno.ESTALE
            return False

        wait_until(stale, "the open file is stale", 5)
        failing(errno.ESTALE, os.fstat, fd)
        failing(errno.ESTALE, os.listdir, place)
        with pytest.raises(OSError):
            os.open("file", os.O_RDONLY, dir_fd=place)
    finally:
        os.close(fd)
        os.close(place)
    volume.unmount()
    volume.check()


@pytest.mark.slow
@both_ways
def test_snapshots_come_and_go_under_readers(workshop, way):
    """Whoever reads one gets its content or an error that says it is gone."""
    volume = workshop.volume(mounted=True, options=way)
    for number in range(20):
        (volume.mountpoint / f"file {number}").write_bytes(b"%d" % number * 10_000)
    end, wrong, read = threading.Event(), [], [0]
    directory = volume.mountpoint / ".snapshots"

    def reader():
        while not end.is_set():
            for name in os.listdir(directory):
                for number in range(20):
                    try:
                        content = (directory / name / f"file {number}").read_bytes()
                    except OSError as error:
                        if error.errno not in (errno.ENOENT, errno.ESTALE):
                            wrong.append(error)
                    else:
                        read[0] += 1
                        if content != b"%d" % number * 10_000:
                            wrong.append((name, number, len(content)))

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            create(volume, f"s{number}")
            if number >= 2:
                delete(volume, f"s{number - 2}")
            time.sleep(0.02)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:5]
    assert read[0] > 20
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_listed_in_the_root_if_asked_for(workshop):
    volume = workshop.volume(mounted=True, options=("snapdir=visible",))
    (volume.mountpoint / "file").write_bytes(b"content")
    create(volume, "s")
    assert sorted(os.listdir(volume.mountpoint)) == [".snapshots", "file"]
    found = run("find", volume.mountpoint, "-name", "file").stdout.splitlines()
    assert len(found) == 2
    done = volume.shop.run(
        "raidfs", "-o", "snapdir=sometimes", volume.members[0], volume.mountpoint, expect=None
    )
    assert done.returncode != 0 and "snapdir=sometimes" in done.stderr


# -- the present becomes another one ---------------------------------------------------------------


def listed(root):
    """Path -> what a program sees: kind, mode, size, content; names that are missing, too."""
    found = {}
    for path in sorted(root.rglob("*")):
        told = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (told.st_mode, told.st_size, told.st_mtime_ns, content)
    return found


@pytest.mark.slow
@both_ways
def test_the_kernel_goes_by_nothing_older_than_a_rollback(workshop, way):
    """Names it had and names it missed, attributes, pages, links, directories moved and replaced;
    open files, and what programs have mapped."""
    volume = workshop.volume(mounted=True, options=("noatime", *way))
    root = volume.mountpoint
    (root / "dir" / "inner").mkdir(parents=True)
    for number in range(30):
        (root / "dir" / f"file {number}").write_bytes(b"%d" % number * 5000)
    (root / "kept").write_bytes(b"then" * 5000)
    (root / "gone").write_bytes(b"gone")
    (root / "swapped").write_text("a file")
    then = listed(root)
    create(volume, "s")
    (root / "gone").unlink()
    (root / "kept").write_bytes(b"now" * 9000)
    (root / "kept").chmod(0o600)
    (root / "new").write_bytes(b"new")
    (root / "swapped").unlink()
    (root / "swapped").mkdir()
    (root / "dir").rename(root / "moved")
    (root / "moved" / "file 1").rename(root / "moved" / "file 100")
    (root / "moved" / "file 2").write_bytes(b"changed")
    (root / "moved" / "file 3").unlink()
    os.symlink("kept", root / "soft")
    now = listed(root)
    assert not (root / "gone").exists() and not (root / "dir" / "file 3").exists()
    assert not (root / "moved" / "file 3").exists()
    with (
        (root / "kept").open("rb", buffering=0) as kept,
        (root / "new").open("rb", buffering=0) as new,
        (root / "moved" / "file 2").open("r+b", buffering=0) as moved,
    ):
        mapped = mmap.mmap(kept.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped[:3] == b"now" and new.read() == b"new"
        inner = os.open(root / "moved" / "inner", os.O_RDONLY)
        ask(volume, SnapshotRollbackRequest(name="s", keep="before"))
        # By name first: a listing would tell the kernel of names as well.
        assert (root / "gone").read_bytes() == b"gone"
        assert not (root / "new").exists() and not (root / "soft").is_symlink()
        assert not (root / "moved").exists() and not (root / "moved" / "file 5").exists()
        assert (root / "dir" / "file 3").read_bytes() == b"3" * 5000
        assert not (root / "dir" / "file 100").exists()
        assert (root / "swapped").read_text() == "a file"
        assert listed(root) == then
        assert os.pread(kept.fileno(), 8, 0) == b"then" * 2 and mapped[:4] == b"then"
        assert os.fstat(kept.fileno()).st_size == 20_000
        assert stat.S_IMODE(os.fstat(kept.fileno()).st_mode) == 0o644
        failing(errno.ESTALE, os.fstat, new.fileno())
        failing(errno.ESTALE, os.pread, new.fileno(), 10, 0)
        assert os.pread(moved.fileno(), 5, 0) == b"22222"
        assert os.listdir(inner) == []
        os.mkdir("made", dir_fd=inner)
        assert (root / "dir" / "inner" / "made").is_dir()
        os.rmdir("made", dir_fd=inner)
        os.close(inner)
        ask(volume, SnapshotRollbackRequest(name="before"))
        assert listed(root) == now
        assert os.pread(new.fileno(), 10, 0) == b"new"
        assert os.pread(moved.fileno(), 10, 0) == b"changed"
        os.pwrite(moved.fileno(), b"C", 0)
        mapped.close()
    assert (root / "moved" / "file 2").read_bytes() == b"Changed"
    volume.unmount()
    volume.check()


# -- handles, as NFS has them ---------------------------------------------------------------------


def handle_of(path):
    """name_to_handle_at(2)"""
    buffer = ctypes.create_string_buffer(8 + 128)
    struct.pack_into("=Ii", buffer, 0, 128, 0)
    mount_id = ctypes.c_int()
    result = LIBC.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount_id), 0)
    assert result == 0, os.strerror(ctypes.get_errno())
    return buffer


def open_handle(mountpoint, handle):
    """open_by_handle_at(2)"""
    at = os.open(mountpoint, os.O_RDONLY)
    try:
        fd = LIBC.open_by_handle_at(at, handle, os.O_RDONLY)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return fd
    finally:
        os.close(at)


@both_ways
def test_file_handles_lead_into_snapshots(workshop, way):
    """What an NFS server does with a client's handle when it has forgotten all names: by number,
    then `..` by `..` to the root. For that `.snapshots` has to be listed."""
    volume = workshop.volume(mounted=True, options=("snapdir=visible", *way))
    (volume.mountpoint / "dir").mkdir()
    (volume.mountpoint / "dir" / "file").write_bytes(b"content")
    create(volume, "s")
    (volume.mountpoint / "dir" / "file").unlink()
    path = seen(volume, "s") / "dir"
    handles = handle_of(path / "file"), handle_of(path)
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
    fd = open_handle(volume.mountpoint, handles[0])
    assert os.read(fd, 100) == b"content"
    os.close(fd)
    fd = open_handle(volume.mountpoint, handles[1])
    assert os.listdir(fd) == ["file"] and stat.S_ISDIR(os.fstat(fd).st_mode)
    os.close(fd)
    delete(volume, "s")
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
    failing(errno.ESTALE, open_handle, volume.mountpoint, handles[0])


# -- a snapshot at a mountpoint of its own --------------------------------------------------------


@pytest.mark.slow
@both_ways
def test_a_snapshot_of_an_unmounted_volume(workshop, way):
    volume = workshop.volume(mounted=True, options=("noatime", *way))
    make_odd_tree(volume.mountpoint)
    before = described(volume.mountpoint / "odd")
    create(volume, "one")
    ruin(volume.mountpoint)
    volume.unmount()
    files = {path: path.read_bytes() for path in volume.members[0].rglob("*") if path.is_file()}
    volume.mount(*way, source=f"{volume.members[1]}@one")
    assert described(volume.mountpoint / "odd") == before
    assert os.listdir(volume.mountpoint) == ["odd"]
    assert not (volume.mountpoint / ".snapshots").exists()
    assert os.stat(volume.mountpoint / "odd" / "..").st_ino == 1
    failing(errno.EROFS, (volume.mountpoint / "new").write_bytes, b"no")
    failing(errno.EROFS, os.unlink, volume.mountpoint / "odd" / "empty")
    assert "@one" in run("findmnt", "-no", "SOURCE", volume.mountpoint).stdout
    volume.unmount()
    assert not is_mounted(volume.mountpoint)
    assert files == {path: path.read_bytes() for path in files}
    done = volume.mount(source=f"{volume.members[1]}@two", expect=1)
    assert "no snapshot 'two'" in done.stderr
    volume.check()


@pytest.mark.slow
def test_a_snapshot_of_a_mounted_volume(workshop):
    """Is bound, and goes without the volume; the volume says what it is still needed for."""
    volume = workshop.volume(mounted=True, options=("noatime",))
    make_odd_tree(volume.mountpoint)
    before = described(volume.mountpoint / "odd")
    create(volume, "one")
    ruin(volume.mountpoint)
    place = workshop.directory / "place"
    place.mkdir()
    done = workshop.run("raidfs", f"{volume.members[0]}@two", place, expect=None)
    assert done.returncode == 1 and "no snapshot 'two'" in done.stderr
    try:
        workshop.run("raidfs", "-o", "noexec", f"{volume.members[0]}@one", place)
        assert described(place / "odd") == before
        failing(errno.EROFS, os.mkdir, place / "new")
        failing(errno.EACCES, subprocess.run, [place / "odd" / "program"], check=False)
        done = workshop.run("raidfs-ctl", "umount", volume.mountpoint, expect=None)
        assert done.returncode == 1 and str(place) in done.stderr
        assert (volume.mountpoint / "new").is_dir()
        done = workshop.run("raidfs", f"{volume.members[0]}@one", place, expect=None)
        assert done.returncode == 1 and "busy" in done.stderr
        assert json.loads(workshop.run("raidfs-ctl", "status", "--json", place).stdout)
        workshop.run("raidfs-ctl", "umount", place)
        assert os.listdir(place) == [] and (volume.mountpoint / "new").is_dir()
        workshop.run("raidfs", f"{volume.mountpoint}@one", place)
        delete(volume, "one")
        with pytest.raises(OSError):
            (place / "odd" / "empty").read_bytes()
    finally:
        run("umount", place, expect=None)
    volume.unmount()
    volume.check()
