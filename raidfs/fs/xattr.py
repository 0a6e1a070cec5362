"""Extended attributes, and the two of them that mean something: the access control lists.

1. Names are of the namespaces user, trusted, security, or are one of the two ACLs; what Linux
   refuses on its own filesystems is refused here with the same error.
2. The names of one inode always fit the 64 KiB that listxattr(2) can return.
3. `security.capability` goes when content or owner of a file changes, as setuid does.
"""

from __future__ import annotations

import errno
import stat

from ..errors import FsError
from . import acl
from .attributes import Caller, GroupsOf, in_group, without_privileges
from .cached import Inode
from .inode import Inodes
from .views import check_changeable

CREATE, REPLACE = 1, 2  # flags of setxattr(2)
NAME_BYTES_MAX = 255
VALUE_BYTES_MAX = 65536
LIST_BYTES_MAX = 65536
CAPABILITY = b"security.capability"
ACLS = (acl.ACCESS, acl.DEFAULT)
_NAMESPACES = (b"user.", b"trusted.", b"security.")


class Xattrs:
    """Extended attributes of one volume's inodes."""

    def __init__(self, inodes: Inodes, groups_of: GroupsOf) -> None:
        self.inodes = inodes
        self.meta = inodes.meta
        self.groups_of = groups_of

    # -- the four calls ---------------------------------------------------------------------------

    def get(self, ino: int, name: bytes) -> bytes:
        inode = self.inodes.get(ino)
        _check(name)
        value = self._value(inode, name)
        if value is None:
            raise FsError(errno.ENODATA)
        return value

    def names(self, ino: int, caller: Caller) -> list[bytes]:
        """The names that the caller may know of: `trusted` is root's."""
        inode = self.inodes.get(ino)
        if not inode.row.xattrs:
            return []
        names = self.meta.xattr_names(self.inodes.number(ino))
        if caller.uid == 0:
            return list(names)
        return [name for name in names if not name.startswith(b"trusted.")]

    def put(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        inode = self.inodes.get(ino)
        check_changeable(ino)
        _check(name)
        _check_kind(inode, name)
        if flags & ~(CREATE | REPLACE) or flags == CREATE | REPLACE:
            raise FsError(errno.EINVAL)
        if len(value) > VALUE_BYTES_MAX:
            raise FsError(errno.E2BIG)
        had = self._value(inode, name) is not None
        if had and flags & CREATE:
            raise FsError(errno.EEXIST)
        if not had and flags & REPLACE:
            raise FsError(errno.ENODATA)
        if name in ACLS:
            self._set_acl(inode, name, acl.parse(value), caller)
        else:
            self._apply(inode, {name: value})
        self.inodes.retell(inode)

    def remove(self, ino: int, name: bytes) -> None:
        inode = self.inodes.get(ino)
        check_changeable(ino)
        _check(name)
        _check_kind(inode, name)
        if self._value(inode, name) is not None:
            self._apply(inode, {name: None})
            self.inodes.retell(inode)
        elif name not in ACLS:  # an ACL that isn't kept is there all the same: in the mode
            raise FsError(errno.ENODATA)

    # -- how they change --------------------------------------------------------------------------

    def _value(self, inode: Inode, name: bytes) -> bytes | None:
        if not inode.row.xattrs:
            return None
        return self.meta.xattr(self.inodes.number(inode.ino), name)

    def _apply(self, inode: Inode, values: dict[bytes, bytes | None]) -> None:
        with self.inodes.change(inode) as epoch:
            difference = self.write(epoch, inode, values)
        inode.row.xattrs += difference
        inode.capability = None
        self.inodes.stamp(inode, None, self.inodes.clock())

    def write(self, epoch: int, inode: Inode, values: dict[bytes, bytes | None]) -> int:
        """Inside a change of the inode: set values, remove those that are None. Returns by how much
        the count of xattrs changes, for the caller to add once nothing can fail any more."""
        difference = 0
        for name, value in values.items():
            had = self._value(inode, name) is not None
            if value is not None:
                if not had:
                    self._check_room(inode, name)
                self.meta.set_xattr(epoch, inode.ino, name, value)
                difference += not had
            elif had:
                self.meta.remove_xattr(epoch, inode.ino, name)
                difference -= 1
        return difference

    def _check_room(self, inode: Inode, name: bytes) -> None:
        if inode.row.xattrs * (NAME_BYTES_MAX + 1) + len(name) + 1 <= LIST_BYTES_MAX:
            return
        listed = sum(len(each) + 1 for each in self.meta.xattr_names(inode.ino))
        if listed + len(name) + 1 > LIST_BYTES_MAX:
            raise FsError(errno.ENOSPC, "no more extended attributes can be listed")

    # -- access control lists ---------------------------------------------------------------------

    def _set_acl(self, inode: Inode, name: bytes, new: acl.Acl | None, caller: Caller) -> None:
        mode = inode.row.mode
        if stat.S_ISLNK(mode):
            raise FsError(errno.EOPNOTSUPP)
        if name == acl.DEFAULT and new is not None and not inode.is_directory:
            raise FsError(errno.EACCES, "only a directory has a default ACL")
        if name == acl.ACCESS and new is not None:
            mode = acl.mode_of(new, mode)
            if not in_group(caller, inode.row.gid, self.groups_of):
                mode &= ~stat.S_ISGID
            if acl.minimal(new):
                new = None
        self._apply(inode, {name: acl.encode(new) if new is not None else None})
        inode.row.mode = mode

    def access_after_chmod(self, inode: Inode, mode: int) -> dict[bytes, bytes | None]:
        """What chmod(mode) must change in the inode's xattrs: its access ACL, if it has one."""
        value = self._value(inode, acl.ACCESS)
        old = acl.parse(value) if value is not None else None
        if old is None:
            return {}
        return {acl.ACCESS: acl.encode(acl.with_mode(old, mode))}

    def inherited(
        self, parent: Inode, mode: int, caller: Caller
    ) -> tuple[int, dict[bytes, bytes | None]]:
        """(mode, xattrs) of an object about to be created: by the parent's default ACL if it has
        one, else by the umask. A symbolic link has neither."""
        if stat.S_ISLNK(mode):
            return mode, {}
        value = self._value(parent, acl.DEFAULT)
        default = acl.parse(value) if value is not None else None
        if value is None or default is None:
            return mode & ~(caller.umask & 0o777), {}
        xattrs: dict[bytes, bytes | None] = {}
        mode, access = acl.inherit(default, mode)
        if access is not None:
            xattrs[acl.ACCESS] = acl.encode(access)
        if stat.S_ISDIR(mode):
            xattrs[acl.DEFAULT] = value
        return mode, xattrs

    # -- privileges -------------------------------------------------------------------------------

    def privileges(self, inode: Inode, kill: bool) -> tuple[int, dict[bytes, bytes | None]] | None:
        """What a change of content or owner takes from a file: (mode, xattrs) afterwards, or None
        when it has nothing to lose. `kill`: setuid and setgid go too, not only the capability."""
        if inode.is_directory:
            return None
        mode = without_privileges(inode.row.mode) if kill else inode.row.mode
        if inode.row.xattrs and inode.capability is None:
            inode.capability = self._value(inode, CAPABILITY) is not None
        lost: dict[bytes, bytes | None] = (
            {CAPABILITY: None} if inode.row.xattrs and inode.capability else {}
        )
        return (mode, lost) if lost or mode != inode.row.mode else None


def _check(name: bytes) -> None:
    """Raise for what no attribute is called."""
    if len(name) > NAME_BYTES_MAX:
        raise FsError(errno.ERANGE)
    if name in ACLS:
        return
    if not name.startswith(_NAMESPACES):
        raise FsError(errno.EOPNOTSUPP, "no such namespace of extended attributes")
    if b"\0" in name or name in _NAMESPACES:
        raise FsError(errno.EINVAL)


def check_xattr_name(name: bytes, mode: int) -> None:
    """Raise for what an inode of that mode can't have."""
    _check(name)
    if name.startswith(b"user.") and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FsError(errno.EPERM, "only files and directories have attributes of users")


def _check_kind(inode: Inode, name: bytes) -> None:
    if name.startswith(b"user.") and not (inode.is_file or inode.is_directory):
        raise FsError(errno.EPERM, "only files and directories have attributes of users")
