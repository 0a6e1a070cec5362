"""rename(2) by table: what is moved, what stands there, which flags, and what must come of it."""

import errno
import stat

import pytest
from volumes import ROOT, forget_all, make_members, mounted, names

from raidfs.errors import FsError
from raidfs.fs.attributes import RENAME_EXCHANGE, RENAME_NOREPLACE

KINDS = ("none", "file", "link", "fifo", "empty", "full")


def make(volume, parent, name, kind):
    """Something of a kind under a name; its inode number."""
    if kind == "none":
        return None
    if kind == "file":
        return volume.mknod(parent, name, stat.S_IFREG | 0o644, 0, ROOT).ino
    if kind == "link":
        return volume.symlink(parent, name, b"target", ROOT).ino
    if kind == "fifo":
        return volume.mknod(parent, name, stat.S_IFIFO | 0o644, 0, ROOT).ino
    ino = volume.mkdir(parent, name, 0o755, ROOT).ino
    if kind == "full":
        volume.mkdir(ino, b"inside", 0o755, ROOT)
    return ino


def is_directory(kind):
    return kind in ("empty", "full")


def outcome(source, target, flags):
    """What POSIX and Linux say: an errno, or None for success. The table in prose."""
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        return errno.EINVAL
    if source == "none":
        return errno.ENOENT
    if flags == RENAME_NOREPLACE and target != "none":
        return errno.EEXIST
    if flags == RENAME_EXCHANGE:
        return errno.ENOENT if target == "none" else None
    if target == "none":
        return None
    if is_directory(source) and not is_directory(target):
        return errno.ENOTDIR
    if is_directory(target) and not is_directory(source):
        return errno.EISDIR
    return errno.ENOTEMPTY if target == "full" else None


def tree(volume, ino):
    """(name, inode, nlink, parent) of everything beneath a directory."""
    found = []
    for entry in volume.readdir(ino, 2, 1000):
        attributes = volume.getattr(entry.ino)
        assert stat.S_IFMT(attributes.mode) == entry.kind
        parent = None
        if stat.S_ISDIR(attributes.mode):
            found += tree(volume, entry.ino)
            parent = volume.parent_of(entry.ino)
            assert parent == ino
        found.append((ino, entry.name, entry.ino, attributes.nlink, parent))
    directories = sum(
        stat.S_ISDIR(volume.getattr(each[2]).mode) for each in found if each[0] == ino
    )
    assert volume.getattr(ino).nlink == 2 + directories
    return sorted(found)


def check_one(volume, number, source, target, flags, across):
    base = volume.mkdir(1, b"%d" % number, 0o755, ROOT).ino
    old = volume.mkdir(base, b"old", 0o755, ROOT).ino
    new = volume.mkdir(base, b"new", 0o755, ROOT).ino if across else old
    moved, replaced = make(volume, old, b"a", source), make(volume, new, b"b", target)
    before, was = tree(volume, base), volume.getattr(old)
    expected = outcome(source, target, flags)
    if expected is not None:
        with pytest.raises(FsError) as caught:
            volume.rename(old, b"a", new, b"b", flags)
        assert caught.value.errno == expected
        assert tree(volume, base) == before
        assert volume.getattr(old) == was
        return
    volume.rename(old, b"a", new, b"b", flags)
    tree(volume, base)
    at_new, changed = volume.lookup(new, b"b"), volume.getattr(old)
    assert at_new.ino == moved
    assert at_new.ctime_ns > was.ctime_ns
    assert changed.mtime_ns == changed.ctime_ns > was.mtime_ns
    assert volume.getattr(new).mtime_ns == changed.mtime_ns
    if flags == RENAME_EXCHANGE:
        assert volume.lookup(old, b"a").ino == replaced
        assert volume.getattr(replaced).ctime_ns == at_new.ctime_ns
        return
    assert b"a" not in names(volume, old)
    if replaced is not None:
        assert volume.getattr(replaced).nlink == 0
        forget_all(volume, replaced)
        with pytest.raises(FsError) as caught:
            volume.getattr(replaced)
        assert caught.value.errno == errno.ESTALE


@pytest.mark.trio
async def test_every_combination(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        number = 0
        for source in KINDS:
            for target in KINDS:
                for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3, 4, 8):
                    for across in (False, True):
                        check_one(volume, number, source, target, flags, across)
                        number += 1


@pytest.mark.trio
async def test_into_itself(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        a = volume.mkdir(1, b"a", 0o755, ROOT).ino
        b = volume.mkdir(a, b"b", 0o755, ROOT).ino
        c = volume.mkdir(b, b"c", 0o755, ROOT).ino
        volume.mkdir(c, b"x", 0o755, ROOT)
        before = tree(volume, 1)
        for parent, name, new_parent, new_name, flags, expected in [
            (1, b"a", a, b"z", 0, errno.EINVAL),
            (1, b"a", c, b"z", 0, errno.EINVAL),
            (a, b"b", c, b"x", 0, errno.EINVAL),
            (1, b"a", c, b"x", RENAME_EXCHANGE, errno.EINVAL),
            (c, b"x", 1, b"a", RENAME_EXCHANGE, errno.EINVAL),
            (c, b"x", 1, b"a", 0, errno.ENOTEMPTY),
            (c, b"x", a, b"b", 0, errno.ENOTEMPTY),
            (1, b".", 1, b"z", 0, errno.EBUSY),
            (1, b"a", 1, b"..", 0, errno.EBUSY),
        ]:
            with pytest.raises(FsError) as caught:
                volume.rename(parent, name, new_parent, new_name, flags)
            assert caught.value.errno == expected, (name, new_name, flags)
        volume.rename(1, b"a", 1, b"a")
        assert tree(volume, 1) == before


@pytest.mark.trio
async def test_two_names_of_one_file_and_removed_directories(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        ino = make(volume, 1, b"one", "file")
        volume.link(ino, 1, b"two")
        volume.rename(1, b"one", 1, b"two")
        volume.rename(1, b"one", 1, b"two", RENAME_EXCHANGE)
        assert sorted(names(volume, 1)) == [b"one", b"two"]
        assert volume.getattr(ino).nlink == 2
        gone = volume.mkdir(1, b"gone", 0o755, ROOT).ino
        volume.rmdir(1, b"gone")
        with pytest.raises(FsError) as caught:
            volume.rename(1, b"one", gone, b"x")
        assert caught.value.errno == errno.ENOENT
        assert volume.getattr(gone).nlink == 0
        assert [entry.name for entry in volume.readdir(gone, 0, 10)] == [b".", b".."]


@pytest.mark.trio
async def test_into_a_removed_directory_whose_own_is_gone(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        make(volume, 1, b"moved", "full")
        outer = volume.mkdir(1, b"outer", 0o755, ROOT).ino
        inner = volume.mkdir(outer, b"inner", 0o755, ROOT).ino
        volume.rmdir(outer, b"inner")
        volume.rmdir(1, b"outer")
        forget_all(volume, outer)
        for flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            with pytest.raises(FsError) as caught:
                volume.rename(1, b"moved", inner, b"x", flags)
            assert caught.value.errno == errno.ENOENT
