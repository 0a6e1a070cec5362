"""Extended attributes and access control lists on a volume."""

import errno
import stat
import struct

import pytest
from volumes import ALICE, ROOT, make_members, mounted

from raidfs.errors import FsError
from raidfs.fs import acl, xattr
from raidfs.fs.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry
from raidfs.fs.attributes import Caller, Changes

FILE = stat.S_IFREG | 0o644
NAMED = (
    AclEntry(USER_OBJ, 7),
    AclEntry(USER, 6, 1000),
    AclEntry(GROUP_OBJ, 5),
    AclEntry(MASK, 7),
    AclEntry(OTHER, 4),
)
PLAIN = (AclEntry(USER_OBJ, 6), AclEntry(GROUP_OBJ, 4), AclEntry(OTHER, 0))


def refused(expected, function, *arguments):
    with pytest.raises(FsError) as caught:
        function(*arguments)
    assert caught.value.errno == expected, arguments


@pytest.mark.trio
async def test_attributes(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        ino = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        fifo = volume.mknod(1, b"fifo", stat.S_IFIFO | 0o644, 0, ROOT).ino
        put, get = volume.setxattr, volume.getxattr
        for expected, function, *arguments in [
            (errno.ENODATA, get, ino, b"user.a"),
            (errno.ENODATA, volume.removexattr, ino, b"user.a"),
            (errno.ENODATA, put, ino, b"user.a", b"", xattr.REPLACE, ROOT),
            (errno.EINVAL, put, ino, b"user.a", b"", 3, ROOT),
            (errno.EOPNOTSUPP, put, ino, b"system.other", b"", 0, ROOT),
            (errno.EOPNOTSUPP, get, ino, b"plain"),
            (errno.EINVAL, put, ino, b"user.", b"", 0, ROOT),
            (errno.ERANGE, put, ino, b"user." + b"x" * 251, b"", 0, ROOT),
            (errno.E2BIG, put, ino, b"user.a", bytes(65537), 0, ROOT),
            (errno.EPERM, put, fifo, b"user.a", b"", 0, ROOT),
            (errno.ENODATA, get, fifo, b"user.a"),
        ]:
            refused(expected, function, *arguments)
        put(ino, b"user.a", b"1", xattr.CREATE, ROOT)
        refused(errno.EEXIST, put, ino, b"user.a", b"2", xattr.CREATE, ROOT)
        put(ino, b"user.a", b"", xattr.REPLACE, ROOT)
        put(ino, b"user." + b"n" * 250, bytes(65536), 0, ROOT)
        put(ino, b"trusted.t", b"\0\xff", 0, ROOT)
        put(ino, b"user.b", b"x", 0, ROOT)
        volume.removexattr(ino, b"user.b")
    async with mounted(paths) as volume:
        assert volume.getxattr(ino, b"user.a") == b""
        assert volume.getxattr(ino, b"user." + b"n" * 250) == bytes(65536)
        user = {b"user.a", b"user." + b"n" * 250}
        assert set(volume.listxattr(ino, ALICE)) == user
        assert set(volume.listxattr(ino, ROOT)) == {*user, b"trusted.t"}
        assert volume.inodes.get(ino).row.xattrs == 3


@pytest.mark.trio
async def test_as_many_as_can_be_listed(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        ino = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        names = [b"user.%0247d" % number + b"abc" for number in range(256)]
        for name in names:
            volume.setxattr(ino, name, b"", 0, ROOT)
        refused(errno.ENOSPC, volume.setxattr, ino, b"user.one", b"", 0, ROOT)
        volume.setxattr(ino, names[0], b"still", 0, ROOT)
        assert sum(len(name) + 1 for name in volume.listxattr(ino, ROOT)) == 65536


@pytest.mark.trio
async def test_access_lists_and_modes(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        ino = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        link = volume.symlink(1, b"link", b"x", ROOT).ino
        put = volume.setxattr
        refused(errno.EINVAL, put, ino, acl.ACCESS, b"junk!", 0, ROOT)
        refused(errno.EACCES, put, ino, acl.DEFAULT, acl.encode(PLAIN), 0, ROOT)
        refused(errno.EOPNOTSUPP, put, link, acl.ACCESS, acl.encode(PLAIN), 0, ROOT)
        put(ino, acl.ACCESS, acl.encode(PLAIN), 0, ROOT)
        assert volume.getattr(ino).mode == stat.S_IFREG | 0o640
        refused(errno.ENODATA, volume.getxattr, ino, acl.ACCESS)
        put(ino, acl.ACCESS, acl.encode(NAMED), 0, ROOT)
        assert volume.getattr(ino).mode == stat.S_IFREG | 0o774
        assert volume.getxattr(ino, acl.ACCESS) == acl.encode(NAMED)
        assert (await volume.setattr(ino, Changes(mode=0o610), ROOT)).mode & 0o7777 == 0o610
        assert volume.getxattr(ino, acl.ACCESS) == acl.encode(acl.with_mode(NAMED, 0o610))
        put(ino, acl.ACCESS, acl.encode(PLAIN), 0, ROOT)
        assert volume.listxattr(ino, ROOT) == []
        put(ino, acl.ACCESS, acl.encode(NAMED), 0, ROOT)
        volume.removexattr(ino, acl.ACCESS)
        volume.removexattr(ino, acl.ACCESS)
        assert volume.getattr(ino).mode & 0o7777 == 0o774
        put(ino, acl.ACCESS, acl.encode(NAMED), 0, ROOT)
        put(ino, acl.ACCESS, struct.pack("<I", 2), 0, ROOT)
        assert volume.listxattr(ino, ROOT) == []
        for caller, mode in ((ROOT, 0o2640), (Caller(1000, 1), 0o640)):
            await volume.setattr(ino, Changes(mode=0o2777), ROOT)
            put(ino, acl.ACCESS, acl.encode(PLAIN), 0, caller)
            assert volume.getattr(ino).mode & 0o7777 == mode


@pytest.mark.trio
async def test_default_lists_are_inherited(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        top = volume.mkdir(1, b"top", 0o755, ROOT).ino
        volume.setxattr(top, acl.DEFAULT, acl.encode(NAMED), 0, ROOT)
        assert volume.getattr(top).mode & 0o7777 == 0o755
        file = volume.mknod(top, b"file", stat.S_IFREG | 0o666, 0, ALICE)
        assert file.mode & 0o7777 == 0o664  # no umask
        assert volume.getxattr(file.ino, acl.ACCESS) == acl.encode(acl.with_mode(NAMED, 0o664))
        sub = volume.mkdir(top, b"sub", 0o770, ALICE)
        assert sub.mode & 0o7777 == 0o770
        assert set(volume.listxattr(sub.ino, ALICE)) == {acl.ACCESS, acl.DEFAULT}
        assert volume.getxattr(sub.ino, acl.DEFAULT) == acl.encode(NAMED)
        link = volume.symlink(top, b"link", b"x", ALICE)
        assert volume.listxattr(link.ino, ROOT) == []
        volume.setxattr(sub.ino, acl.DEFAULT, acl.encode(PLAIN), 0, ROOT)
        inner = volume.mknod(sub.ino, b"inner", stat.S_IFREG | 0o777, 0, ALICE)
        assert inner.mode & 0o7777 == 0o640
        assert volume.listxattr(inner.ino, ROOT) == []
    async with mounted(paths) as volume:
        assert volume.inodes.get(sub.ino).row.xattrs == 2
        volume.removexattr(sub.ino, acl.DEFAULT)
        made = volume.mknod(sub.ino, b"x", stat.S_IFREG | 0o777, 0, ALICE)
        assert made.mode & 0o7777 == 0o775


@pytest.mark.trio
async def test_capability_goes_with_content_and_owner(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        ino = volume.mknod(1, b"file", FILE, 0, ROOT).ino

        async def lost(operation):
            volume.setxattr(ino, xattr.CAPABILITY, b"\1\0\0\2" + bytes(16), 0, ROOT)
            volume.setxattr(ino, b"user.other", b"", 0, ROOT)
            await operation()
            return xattr.CAPABILITY not in volume.listxattr(ino, ROOT)

        assert await lost(lambda: volume.write(ino, 0, b"x"))
        assert await lost(lambda: volume.setattr(ino, Changes(size=0), ROOT))
        assert await lost(lambda: volume.setattr(ino, Changes(gid=4), ROOT))
        assert not await lost(lambda: volume.setattr(ino, Changes(mode=0o600), ROOT))
        assert volume.listxattr(ino, ROOT) != []
        assert volume.inodes.get(ino).row.xattrs == 2
