"""Trees with everything a copy may get wrong, and descriptions of trees that can be compared."""

import hashlib
import os
import stat
from pathlib import Path


def make_odd_tree(root):
    """Links of both kinds, modes, owners, times, holes, attributes, ACLs, special files, names that
    are no text. Needs root."""
    root = Path(root)
    odd = root / "odd"
    odd.mkdir(mode=0o1750)
    (odd / "deep").mkdir()
    (odd / "program").write_text("#!/bin/sh\necho ran\n")
    os.chown(odd / "program", 12, 34)
    (odd / "program").chmod(0o6711)
    os.link(odd / "program", odd / "same program")
    os.link(odd / "program", odd / "deep" / "same program")
    os.symlink("program", odd / "soft")
    os.symlink("../nowhere", odd / "dangling")
    os.mkfifo(odd / "fifo", 0o640)
    os.mknod(odd / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with (odd / "sparse").open("wb") as file:
        for offset in (0, 1 << 20, 5_000_000):
            file.seek(offset)
            file.write(os.urandom(9000))
        file.truncate(6_000_000)
    (odd / "all hole").touch()
    os.truncate(odd / "all hole", 123_456)
    (odd / "large").write_bytes(os.urandom(1_234_567))
    (odd / "small").write_bytes(b"small")
    (odd / "page").write_bytes(os.urandom(4096))
    (odd / "empty").touch()
    name = os.fsencode(odd) + b"/\xff\xfe \n\t"
    Path(os.fsdecode(name)).write_bytes(b"bytes")
    os.setxattr(odd / "empty", "user.colour", b"blue")
    os.setxattr(odd / "deep", "user.large", os.urandom(3000))
    os.setxattr(odd / "soft", "trusted.link", b"on a link", follow_symlinks=False)
    set_acl(odd / "small", default=False)
    set_acl(odd / "deep", default=True)
    os.utime(odd / "empty", ns=(1_111_111_111_222_333_444, 999_999_999_888_777_666))
    os.utime(odd / "soft", ns=(5, 7), follow_symlinks=False)
    os.chown(odd / "soft", 12, 34, follow_symlinks=False)
    os.utime(odd, ns=(1, 2_000_000_000_000_000_001))


def set_acl(path, default):
    """u::rwx, u:12:rw-, g::r-x, m::rwx, o::--- as the kernel encodes it."""
    entries = [(1, 7, 0xFFFFFFFF), (2, 6, 12), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF)]
    entries.append((32, 0, 0xFFFFFFFF))
    value = (2).to_bytes(4, "little")
    for tag, permissions, who in entries:
        value += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        value += who.to_bytes(4, "little")
    os.setxattr(path, f"system.posix_acl_{'default' if default else 'access'}", value)


def described(root, *, numbers=False, atimes=True):
    """path -> all that stat, getxattr, readlink and read tell, holes too; hard links as the set of
    their paths. `numbers`: inode numbers as well. Atimes only of what isn't read by looking."""
    found, links = {}, {}
    root = os.fsencode(root)
    paths = [root]
    for place, directories, files in os.walk(root):
        paths += [os.path.join(place, name) for name in (*directories, *files)]
    for path in paths:
        told = os.lstat(path)
        relative = os.path.relpath(path, root)
        kept = {
            "stat": (told.st_mode, told.st_uid, told.st_gid, told.st_nlink, told.st_rdev),
            "mtime": told.st_mtime_ns,
            "xattrs": {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        }
        if atimes and not stat.S_ISDIR(told.st_mode) and not stat.S_ISLNK(told.st_mode):
            kept["atime"] = told.st_atime_ns
        if numbers:
            kept["ino"] = told.st_ino & (1 << 40) - 1  # the same in a snapshot as outside
        if not stat.S_ISDIR(told.st_mode):
            kept["size"] = told.st_size
            links.setdefault(told.st_ino, set()).add(relative)
            kept["links"] = links[told.st_ino]
        if stat.S_ISLNK(told.st_mode):
            kept["target"] = os.readlink(path)
        if stat.S_ISREG(told.st_mode):
            kept["data"], kept["sha256"] = content(path)
        found[relative] = kept
    return found


def content(path):
    """(where data lies, digest of all)"""
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        ranges, offset, size = [], 0, os.fstat(fd).st_size
        while offset < size:
            try:
                start = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:
                break
            offset = os.lseek(fd, start, os.SEEK_HOLE)
            ranges.append((start, offset))
        os.lseek(fd, 0, os.SEEK_SET)
        digest = hashlib.sha256()
        while piece := os.read(fd, 1 << 20):
            digest.update(piece)
        return ranges, digest.hexdigest()
    finally:
        os.close(fd)


def assert_same(one, other):
    """Two descriptions."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for path, kept in one.items():
        different = {k: (v, other[path].get(k)) for k, v in kept.items() if other[path].get(k) != v}
        assert not different, (path, different)
