"""`raidfs-ctl clone`: everything is kept, cells are shared, and it is all there or not at all."""

import json
import os
import stat
import threading
import time

import pytest
from mounting import run
from trees import assert_same, described, make_odd_tree, set_acl

from raidfs.cli import clone
from raidfs.cli.clone import Cloning


def cloned(source, target, **options):
    """By the part that needs no raidfs volume, on any file system."""
    fds = [os.open(path.parent, os.O_RDONLY) for path in (source, target)]
    try:
        return Cloning(**options).run((fds[0], source.name), (fds[1], target.name))
    finally:
        for fd in fds:
            os.close(fd)


def test_a_tree_is_kept_in_all_that_can_be_told_of_it(tmp_path):
    (tmp_path / "from").mkdir()
    make_odd_tree(tmp_path / "from")
    source, target = tmp_path / "from" / "odd", tmp_path / "to" / "odd"
    target.parent.mkdir()
    set_acl(target.parent, default=True)  # which what is made there would inherit
    before = described(source)
    told = cloned(source, target)
    assert_same(before, described(target))
    assert_same(described(source, atimes=False), described(target, atimes=False))
    assert (told.directories, told.others) == (2, 4)
    assert os.listdir(target.parent) == ["odd"]


def test_a_dry_run_counts_the_same_and_makes_nothing(tmp_path):
    (tmp_path / "from").mkdir()
    make_odd_tree(tmp_path / "from")
    source = tmp_path / "from" / "odd"
    dry = cloned(source, tmp_path / "to", dry=True)
    assert not (tmp_path / "to").exists() and len(os.listdir(tmp_path)) == 1
    assert cloned(source, tmp_path / "to") == dry


@pytest.mark.parametrize("name", ["small", "soft", "fifo", "device", "sparse"])
def test_a_single_file_of_any_kind(tmp_path, name):
    make_odd_tree(tmp_path)
    first = (tmp_path / "odd" / name).lstat()
    cloned(tmp_path / "odd" / name, tmp_path / "one")
    second = (tmp_path / "one").lstat()
    for fact in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_atime_ns", "st_rdev"):
        assert getattr(first, fact) == getattr(second, fact)
    if stat.S_ISREG(first.st_mode):
        assert (tmp_path / "odd" / name).read_bytes() == (tmp_path / "one").read_bytes()


def test_nothing_is_replaced_even_if_it_comes_at_the_last_moment(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"mine")
    name = clone._name

    def late(directory, old, new):
        (tmp_path / "to").write_bytes(b"somebody else's")
        name(directory, old, new)

    monkeypatch.setattr(clone, "_name", late)
    with pytest.raises(FileExistsError):
        cloned(tmp_path / "file", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"somebody else's"
    assert sorted(os.listdir(tmp_path)) == ["file", "to"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "from").mkdir()
    make_odd_tree(tmp_path / "from")
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return copy(*args)

    copy = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space"):
        cloned(tmp_path / "from", tmp_path / "to")
    assert os.listdir(tmp_path) == ["from"]


def test_a_deep_tree_and_hard_links_to_its_bottom(tmp_path):
    place = tmp_path / "top"
    place.mkdir()
    (place / "z").write_bytes(b"linked")
    fd = os.open(place, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("deeper-and-deeper", dir_fd=fd)
        below = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.link(place / "z", "bottom", dst_dir_fd=fd)
    os.close(fd)
    clone._allow_descriptors()
    assert cloned(place, tmp_path / "to").directories == 301
    assert (tmp_path / "to" / "z").stat().st_nlink == 2
    for name in ("top", "to"):
        run("rm", "-r", tmp_path / name)


def test_long_names(tmp_path):
    name = "ä" * 127
    (tmp_path / "file").write_bytes(b"x")
    cloned(tmp_path / "file", tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"x"


# ---- on a mount ----


@pytest.mark.slow
def test_a_clone_on_a_mount_shares_its_cells(workshop):
    volume = workshop.volume(3, mounted=True)
    root = volume.mountpoint
    (root / "from").mkdir()
    make_odd_tree(root / "from")
    (root / "from" / "big").write_bytes(os.urandom(8 << 20))
    free = free_bytes(volume)
    done = workshop.run("raidfs-ctl", "clone", "--json", root / "from", root / "to")
    told = json.loads(done.stdout)
    assert told["bytes"] > 9 << 20 and told["directories"] == 3
    volume.ctl("sync")
    assert free - free_bytes(volume) < 1 << 20
    assert_same(described(root / "from", atimes=False), described(root / "to", atimes=False))
    (root / "to" / "big").write_bytes(b"other")
    assert (root / "from" / "big").stat().st_size == 8 << 20
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_a_snapshot_and_a_part_of_it(workshop):
    volume = workshop.volume(3, mounted=True)
    root = volume.mountpoint
    make_odd_tree(root)
    workshop.run("raidfs-ctl", "snapshot", "create", root, "a")
    (root / "odd" / "small").write_bytes(b"other")
    workshop.run("raidfs-ctl", "snapshot", "clone", f"{root}@a", root / "whole")
    assert_same(
        described(root / ".snapshots" / "a", atimes=False), described(root / "whole", atimes=False)
    )
    words = (root, "a", "--path", "odd/large", root / "large")
    workshop.run("raidfs-ctl", "snapshot", "clone", *words)
    assert (root / "large").read_bytes() == (root / "odd" / "large").read_bytes()
    (root / "whole" / "odd" / "large").write_bytes(b"written")
    for words, sentence in [
        ((f"{root}@b", root / "x"), "no snapshot"),
        ((root, root / "x"), "name of a snapshot"),
        ((f"{root}@a",), "new path"),
        ((f"{root}@a", root / "x", "--path", "../odd"), "without '..'"),
        ((f"{root}@a", root / ".snapshots" / "x"), "Read-only"),
    ]:
        done = workshop.run("raidfs-ctl", "snapshot", "clone", *words, expect=None)
        assert done.returncode == 1 and sentence in done.stderr, (words, done.stderr)
    volume.unmount()
    volume.check()


def free_bytes(volume):
    volume.ctl("sync")
    told = os.statvfs(volume.mountpoint)
    return told.f_bavail * told.f_frsize


@pytest.mark.slow
def test_what_can_not_be_cloned_is_told_in_a_sentence(workshop, tmp_path):
    volume = workshop.volume(3, mounted=True)
    root = volume.mountpoint
    (root / "dir").mkdir()
    (root / "file").write_bytes(b"x")
    for words, sentence in [
        ((root / "none", root / "to"), "doesn't exist"),
        ((root / "file", root / "dir"), "exists already"),
        ((root / "file", root / "no" / "to"), "no directory"),
        ((root / "dir", root / "dir" / "to"), "within"),
        ((root, root / "to"), "within"),
        ((root / "file", tmp_path / "to"), "raidfs volume"),
        ((tmp_path, root / "to"), "raidfs volume"),
    ]:
        done = workshop.run("raidfs-ctl", "clone", *words, expect=None)
        assert done.returncode == 1 and sentence in done.stderr, (words, done.stderr)
    assert sorted(os.listdir(root)) == ["dir", "file"]


@pytest.mark.slow
def test_a_daemon_killed_in_the_middle_leaves_a_whole_clone_or_none(workshop):
    volume = workshop.volume(3, mounted=True)
    root = volume.mountpoint
    (root / "from").mkdir()
    for number in range(300):
        (root / "from" / f"{number}").write_bytes(os.urandom(5000))
    volume.ctl("sync")
    whole = described(root / "from", atimes=False)
    for whole_first in (False, True):
        to = root / f"to{whole_first}"
        words = ("raidfs-ctl", "clone", root / "from", to)
        cloning = threading.Thread(target=workshop.run, args=words, kwargs={"expect": None})
        cloning.start()
        if whole_first:
            cloning.join()
            volume.ctl("sync")
        else:
            time.sleep(0.1)
        volume.kill()
        cloning.join()
        volume.mount()
        assert to.exists() or not whole_first
        if to.exists():
            assert_same(whole, described(to, atimes=False))
    volume.unmount()
    volume.check()
