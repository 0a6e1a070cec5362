"""Names: directories, lookup, creating, linking, removing, renaming.

A directory's entries are read by position, a keyed hash of the name that never changes while the
entry lives, so a reader's cookie stays right whatever happens to other entries.

 1. An operation that fails has changed nothing; one that succeeds is whole in one epoch.
 2. nlink of a directory is 2 plus its subdirectories; of anything else, the names that lead to it.
 3. Directories form one tree: each has one name, `..` is the directory that holds it, no rename
    makes a directory its own descendant.
 4. An entry that is there from the first call of readdir to the last is listed exactly once.
 5. In the root, `.snapshots` is the directory of snapshots (views.py) and no name of anything else.
    It is listed only if `snapshots_listed`.
 6. mtime and ctime of a directory change with its entries, ctime of an inode with its names.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FsError
from ..store.meta import ROOT_INO, InodeRow
from .attributes import (
    LINKS_MAX,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    TARGET_BYTES_MAX,
    Caller,
    Entry,
    GroupsOf,
    check_name,
    in_group,
)
from .cached import Inode
from .inode import Inodes
from .views import (
    SNAPSHOTS_COOKIE,
    SNAPSHOTS_INO,
    SNAPSHOTS_NAME,
    check_changeable,
    is_snapshots,
    is_view_root,
)
from .xattr import Xattrs

if TYPE_CHECKING:
    from ..store.meta import Dirent

MISSED_MAX = 3  # lookups in vain until the whole directory is made known
MISSED_AGAIN = 1000  # and that many more until that is tried again, if it could not be
MISSED_DIRECTORIES_MAX = 1000  # for which this is counted
LISTED_MAX = 1024  # names of a directory that is made known as a whole
COOKIE_FIRST = 3  # cookies: 1 after ".", 2 after "..", position + 3 after an entry
_SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a directory, and what stands there."""

    directory: Inode
    name: bytes
    entry: Dirent | None
    inode: Inode | None


class Names:
    """The tree of names of one volume."""

    def __init__(
        self,
        inodes: Inodes,
        xattrs: Xattrs,
        groups_of: GroupsOf,
        *,
        snapshots_listed: bool = False,
    ) -> None:
        self.inodes = inodes
        self.views = inodes.views
        self.has_snapshots = inodes.root == ROOT_INO  # else a snapshot is seen alone
        self.snapshots_listed = snapshots_listed and self.has_snapshots
        self.meta = inodes.meta
        self.known = inodes.known
        self.xattrs = xattrs
        self.groups_of = groups_of
        self._missed: dict[int, int] = {}  # lookups in a directory that found nothing

    # -- looking ----------------------------------------------------------------------------------

    def directory(self, ino: int) -> Inode:
        inode = self.inodes.get(ino)
        if not inode.is_directory:
            raise FsError(errno.ENOTDIR)
        return inode

    def lookup(self, parent: int, name: bytes) -> Inode:
        if name == b".":
            return self.inodes.get(parent)
        directory = self.directory(parent)
        if name == b"..":
            return self.inodes.get(self.parent_of(directory))
        check_name(name)
        if parent == SNAPSHOTS_INO:
            return self._snapshot(name)
        if is_snapshots(parent, name) and self.has_snapshots:
            return self.inodes.get(SNAPSHOTS_INO)
        entry = self.meta.lookup(self.inodes.number(parent), name)
        if entry is None:
            if self.known.enabled and directory.row.nlink:
                self._missing(parent, name)
            raise FsError(errno.ENOENT)
        return self.inodes.get(entry.ino)

    def _snapshot(self, name: bytes) -> Inode:
        """The root of that snapshot."""
        ino = self.views.find(name)
        if ino is None:
            raise FsError(errno.ENOENT)
        return self.inodes.get(ino)

    def _missing(self, parent: int, name: bytes) -> None:
        """Let it be known that there is no such name. Where others are looked for in vain, too, let
        all that there are be known, so that nobody need ask for the next."""
        self.known.put_name(parent, name, 0)
        missed = self._missed.get(parent, 0) + 1
        if missed == MISSED_MAX:
            missed = 0 if self._list_known(parent) else -MISSED_AGAIN
        if len(self._missed) >= MISSED_DIRECTORIES_MAX and parent not in self._missed:
            self._missed.clear()
        self._missed[parent] = missed

    def _list_known(self, ino: int) -> bool:
        """All names of a directory that has not too many; False if it isn't known wholly now."""
        entries = self.meta.entries(self.inodes.number(ino), -1, LISTED_MAX + 1)
        if len(entries) > LISTED_MAX:
            return False
        for entry in entries:
            self.known.put_name(ino, entry.name, entry.ino)
        snapshots = int(ino == ROOT_INO and self.has_snapshots)
        if snapshots:
            self.known.put_name(ino, SNAPSHOTS_NAME, SNAPSHOTS_INO)
        return self.known.put_directory(ino, len(entries) + snapshots)

    def parent_of(self, directory: Inode) -> int:
        if directory.ino in (ROOT_INO, SNAPSHOTS_INO) or directory.row.parent == self.inodes.root:
            return ROOT_INO
        return SNAPSHOTS_INO if is_view_root(directory.ino) else directory.row.parent

    def entries(self, ino: int, after: int, limit: int) -> list[Entry]:
        """At most `limit` entries after cookie `after` (0: from the start), with "." and ".."."""
        directory = self.directory(ino)
        found: list[Entry] = []
        if after < 1:
            found.append(Entry(b".", ino, stat.S_IFDIR, 1))
        if after < 2:
            found.append(Entry(b"..", self.parent_of(directory), stat.S_IFDIR, 2))
        if directory.row.nlink == 0 or len(found) >= limit:
            return found[:limit]
        if ino == SNAPSHOTS_INO:
            return found + self.views.entries(max(after, 2), limit - len(found))
        position = max(after - COOKIE_FIRST, -1)
        number = self.inodes.number(ino)
        for entry in self.meta.entries(number, position, limit - len(found)):
            kind = entry.kind << 12
            found.append(Entry(entry.name, entry.ino, kind, entry.position + COOKIE_FIRST))
        if ino == ROOT_INO and self.snapshots_listed and after < SNAPSHOTS_COOKIE:
            last = Entry(SNAPSHOTS_NAME, SNAPSHOTS_INO, stat.S_IFDIR, SNAPSHOTS_COOKIE)
            found += [last] if len(found) < limit else []
        return found

    def _place(self, parent: int, name: bytes) -> Place:
        """Where something is to be changed."""
        directory = self.directory(parent)
        check_name(name)
        check_changeable(parent)
        if is_snapshots(parent, name):
            raise FsError(errno.EPERM, "the directory of snapshots can't be changed")
        entry = self.meta.lookup(parent, name)
        return Place(directory, name, entry, self.inodes.get(entry.ino) if entry else None)

    def _existing(self, parent: int, name: bytes) -> tuple[Inode, Dirent, Inode]:
        """The directory, its entry of that name, and the inode it leads to."""
        place = self._place(parent, name)
        if place.entry is None or place.inode is None:
            raise FsError(errno.ENOENT)
        return place.directory, place.entry, place.inode

    def _vacant(self, parent: int, name: bytes) -> Inode:
        """The directory, in which a new name may be made."""
        if name in (b".", b"..") or is_snapshots(parent, name):
            raise FsError(errno.EEXIST)
        place = self._place(parent, name)
        if place.entry is not None:
            raise FsError(errno.EEXIST)
        if place.directory.row.nlink == 0:
            raise FsError(errno.ENOENT, "the directory was removed")
        return place.directory

    # -- making -----------------------------------------------------------------------------------

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes | None = None,
    ) -> Inode:
        """A new inode of any kind (by the type bits of `mode`) under a new name."""
        directory = self._vacant(parent, name)
        kind = stat.S_IFMT(mode)
        is_directory = kind == stat.S_IFDIR
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, *_SPECIAL):
            raise FsError(errno.EINVAL)
        if is_directory and directory.row.nlink >= LINKS_MAX:
            raise FsError(errno.EMLINK)
        row, xattrs = self._row(directory, mode, caller)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            row.rdev = rdev
        if target is not None:
            row.target, row.size = target, len(target)
        self._unsettle((parent, name))
        with self.inodes.change(directory) as epoch:
            self._insert(epoch, row, xattrs)
            self.meta.link(epoch, parent, name, row.ino, kind >> 12)
        self._touched(directory, row.ctime_ns, subdirectories=int(is_directory))
        if is_directory and self.known.enabled:
            self.known.put_directory(row.ino, 0)
        self.inodes.retell(directory)
        return self.inodes.add(row)

    def make_unnamed(self, parent: int, mode: int, caller: Caller, *, linkable: bool) -> Inode:
        """A regular file without a name, as if made in that directory: an orphan from the start,
        which `link` may give a name if `linkable`, for as long as it is open."""
        directory = self.directory(parent)
        check_changeable(parent)
        if directory.row.nlink == 0:
            raise FsError(errno.ENOENT, "the directory was removed")
        row, xattrs = self._row(directory, stat.S_IFREG | mode & 0o7777, caller)
        row.nlink = row.parent = 0
        with self.inodes.change() as epoch:
            self._insert(epoch, row, xattrs)
        inode = self.inodes.add(row)
        inode.linkable = linkable
        self.inodes.made_unnamed(inode)
        return inode

    def _row(
        self, directory: Inode, mode: int, caller: Caller
    ) -> tuple[InodeRow, dict[bytes, bytes | None]]:
        """A new inode in a directory, with one name, and the xattrs that come with it."""
        mode, gid = self._group(directory, mode, caller)
        mode, xattrs = self.xattrs.inherited(directory, mode, caller)
        is_directory = stat.S_ISDIR(mode)
        now_ns = self.inodes.clock()
        row = InodeRow(
            ino=self.meta.new_ino(),
            generation=1,
            mode=mode,
            uid=caller.uid,
            gid=gid,
            rdev=0,
            size=0,
            nlink=2 if is_directory else 1,
            parent=directory.ino,
            atime_ns=now_ns,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            btime_ns=now_ns,
            target=None,
            xattrs=len(xattrs),
            cells=0,
            born=self.inodes.store.epoch,
        )
        return row, xattrs

    def _insert(self, epoch: int, row: InodeRow, xattrs: dict[bytes, bytes | None]) -> None:
        self.meta.insert_inode(epoch, row)
        for xattr, value in xattrs.items():
            assert value is not None
            self.meta.set_xattr(epoch, row.ino, xattr, value)

    def _unsettle(self, *places: tuple[int, bytes]) -> None:
        """Before names come, go or lead elsewhere: until that is over, nothing is known of them."""
        if self.known.enabled:
            for parent, name in places:
                self.known.forget_name(parent, name)

    def _group(self, directory: Inode, mode: int, caller: Caller) -> tuple[int, int]:
        """(mode, gid) of a new inode: a setgid directory hands its group down, and to directories
        the bit itself; nobody gets a setgid program of a group they are not in."""
        if not directory.row.mode & stat.S_ISGID or stat.S_ISLNK(mode):
            gid = directory.row.gid if directory.row.mode & stat.S_ISGID else caller.gid
            return mode, gid
        gid = directory.row.gid
        if stat.S_ISDIR(mode):
            return mode | stat.S_ISGID, gid
        program = stat.S_ISGID | stat.S_IXGRP
        if mode & program == program and not in_group(caller, gid, self.groups_of):
            mode &= ~stat.S_ISGID
        return mode, gid

    def _touched(self, directory: Inode, now_ns: int, subdirectories: int = 0) -> None:
        """Entries of a directory changed, and with them the number of its subdirectories."""
        directory.row.nlink += subdirectories
        self.inodes.stamp(directory, now_ns, now_ns)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        if not target:
            raise FsError(errno.ENOENT)
        if len(target) > TARGET_BYTES_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if b"\0" in target:
            raise FsError(errno.EINVAL)
        return self.make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """One more name for an inode that is no directory."""
        inode = self.inodes.get(ino)
        check_changeable(ino)
        directory = self._vacant(parent, name)
        if inode.is_directory:
            raise FsError(errno.EPERM, "a directory has one name")
        if inode.row.nlink == 0 and not (inode.linkable and inode.opens):
            raise FsError(errno.ENOENT, "the file was removed")
        if inode.row.nlink >= LINKS_MAX:
            raise FsError(errno.EMLINK)
        now_ns = self.inodes.clock()
        self._unsettle((parent, name))
        with self.inodes.change(directory, inode) as epoch:
            self.meta.link(epoch, parent, name, ino, stat.S_IFMT(inode.row.mode) >> 12)
        inode.row.nlink += 1
        inode.row.parent = inode.row.parent or parent
        self.inodes.got_a_name(inode)
        self.inodes.stamp(inode, None, now_ns)
        self._touched(directory, now_ns)
        self.inodes.retell(directory, inode)
        return inode

    # -- removing ---------------------------------------------------------------------------------

    def unlink(self, parent: int, name: bytes) -> None:
        directory, entry, inode = self._existing(parent, name)
        if inode.is_directory:
            raise FsError(errno.EISDIR)
        now_ns = self.inodes.clock()
        self._unsettle((parent, name))
        with self.inodes.change(directory, inode, freeing=True) as epoch:
            self.meta.unlink(epoch, parent, entry.position)
        self._removed_name(parent, name)
        self._touched(directory, now_ns)
        self._removed(inode, parent, now_ns)
        self.inodes.retell(directory, inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        if name in (b".", b".."):
            raise FsError(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        directory, entry, inode = self._existing(parent, name)
        if not inode.is_directory:
            raise FsError(errno.ENOTDIR)
        if not self.meta.is_empty(inode.ino):
            raise FsError(errno.ENOTEMPTY)
        now_ns = self.inodes.clock()
        self._unsettle((parent, name))
        self._forget_names(inode)
        with self.inodes.change(directory, inode, freeing=True) as epoch:
            self.meta.unlink(epoch, parent, entry.position)
        self._removed_name(parent, name)
        self._touched(directory, now_ns, subdirectories=-1)
        self._removed(inode, parent, now_ns)
        self.inodes.retell(directory, inode)

    def _removed_name(self, parent: int, name: bytes) -> None:
        if self.known.enabled:
            self.known.name_removed(parent, name)

    def _forget_names(self, directory: Inode) -> None:
        """Of a directory that is to be removed; there are none, and soon nobody may say so."""
        if self.known.enabled:
            self.known.forget_directory(directory.ino)

    def _removed(self, inode: Inode, parent: int, now_ns: int) -> None:
        """An inode lost a name there; a directory with its one name loses `.` too."""
        inode.row.nlink -= 2 if inode.is_directory else 1
        if not inode.is_directory and inode.row.parent == parent:
            inode.row.parent = 0  # it may have another name there, or not
        self.inodes.stamp(inode, None, now_ns)
        self.inodes.lost_a_name(inode)

    # -- renaming ---------------------------------------------------------------------------------

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FsError(errno.EINVAL)
        for each in (name, new_name):
            if each in (b".", b".."):
                raise FsError(errno.EBUSY)
        if is_snapshots(new_parent, new_name):
            raise FsError(errno.EEXIST)
        old, new = self._place(parent, name), self._place(new_parent, new_name)
        if old.inode is None:
            raise FsError(errno.ENOENT)
        if flags == RENAME_NOREPLACE and new.inode is not None:
            raise FsError(errno.EEXIST)
        if flags == RENAME_EXCHANGE and new.inode is None:
            raise FsError(errno.ENOENT)
        if new.directory.row.nlink == 0:  # and those that held it may be gone as well
            raise FsError(errno.ENOENT, "the directory was removed")
        if old.inode.is_directory and self._within(new.directory, old.inode):
            raise FsError(errno.EINVAL, "a directory can't move into itself")
        if flags == RENAME_EXCHANGE:
            self._exchange(old, new)
        elif old.inode is not new.inode:  # two names of one file: POSIX says, nothing happens
            self._move(old, new)

    def _within(self, directory: Inode, ancestor: Inode) -> bool:
        """`directory` is `ancestor` or lies beneath it."""
        ino = directory.ino
        while ino != ancestor.ino:
            if ino == ROOT_INO:
                return False
            ino = self.inodes.parent(ino)
        return True

    def forget(self) -> None:
        """What was looked for in vain may be there now."""
        self._missed.clear()

    def _check_replaced(self, old: Place, new: Place) -> None:
        """Whether what stands at `new` may give way to what stands at `old`."""
        assert old.inode is not None
        if new.inode is None:
            return
        if new.inode.is_directory and self._within(old.directory, new.inode):
            raise FsError(errno.ENOTEMPTY)
        if old.inode.is_directory and not new.inode.is_directory:
            raise FsError(errno.ENOTDIR)
        if new.inode.is_directory and not old.inode.is_directory:
            raise FsError(errno.EISDIR)
        if new.inode.is_directory and not self.meta.is_empty(new.inode.ino):
            raise FsError(errno.ENOTEMPTY)

    def _move(self, old: Place, new: Place) -> None:
        self._check_replaced(old, new)
        moved, replaced = old.inode, new.inode
        assert moved is not None and old.entry is not None
        across = int(moved.is_directory and old.directory is not new.directory)
        gained = across - int(moved.is_directory and replaced is not None)
        if gained > 0 and new.directory.row.nlink >= LINKS_MAX:
            raise FsError(errno.EMLINK)
        now_ns = self.inodes.clock()
        here, there = (old.directory.ino, old.name), (new.directory.ino, new.name)
        self._unsettle(here, there)
        if replaced is not None and replaced.is_directory:
            self._forget_names(replaced)
        with self.inodes.change(*_distinct(old.directory, new.directory, moved, replaced)) as epoch:
            self.meta.unlink(epoch, old.directory.ino, old.entry.position)
            if new.entry is not None:
                self.meta.unlink(epoch, new.directory.ino, new.entry.position)
            self.meta.link(epoch, new.directory.ino, new.name, moved.ino, old.entry.kind)
        if self.known.enabled:
            self.known.name_removed(*here)
            self.known.put_name(*there, moved.ino)
        self._touched(old.directory, now_ns, subdirectories=-across)
        self._touched(new.directory, now_ns, subdirectories=gained)
        self._settle(moved, new.directory, now_ns)
        if replaced is not None:
            self._removed(replaced, new.directory.ino, now_ns)
            self.inodes.retell(replaced)
        self.inodes.retell(old.directory, new.directory, moved)

    def _exchange(self, old: Place, new: Place) -> None:
        first, second = old.inode, new.inode
        assert first is not None and old.entry is not None
        assert second is not None and new.entry is not None
        if second.is_directory and self._within(old.directory, second):
            raise FsError(errno.EINVAL, "a directory can't move into itself")
        if first is second:
            return
        difference = 0  # subdirectories that move from `old` to `new`, less those that come back
        if old.directory is not new.directory:
            difference = int(first.is_directory) - int(second.is_directory)
        for directory, gained in ((old.directory, -difference), (new.directory, difference)):
            if gained > 0 and directory.row.nlink >= LINKS_MAX:
                raise FsError(errno.EMLINK)
        now_ns = self.inodes.clock()
        here, there = (old.directory.ino, old.name), (new.directory.ino, new.name)
        self._unsettle(here, there)
        with self.inodes.change(*_distinct(old.directory, new.directory, first, second)) as epoch:
            self.meta.unlink(epoch, old.directory.ino, old.entry.position)
            self.meta.unlink(epoch, new.directory.ino, new.entry.position)
            self.meta.link(epoch, old.directory.ino, old.name, second.ino, new.entry.kind)
            self.meta.link(epoch, new.directory.ino, new.name, first.ino, old.entry.kind)
        if self.known.enabled:
            self.known.put_name(*here, second.ino)
            self.known.put_name(*there, first.ino)
        self._touched(old.directory, now_ns, subdirectories=-difference)
        self._touched(new.directory, now_ns, subdirectories=difference)
        self._settle(first, new.directory, now_ns)
        self._settle(second, old.directory, now_ns)
        self.inodes.retell(old.directory, new.directory, first, second)

    def _settle(self, inode: Inode, directory: Inode, now_ns: int) -> None:
        """An inode has arrived under a name in `directory`."""
        inode.row.parent = directory.ino
        self.inodes.stamp(inode, None, now_ns)


def _distinct(*inodes: Inode | None) -> list[Inode]:
    """Each once: the same directory may be old and new."""
    found = {inode.ino: inode for inode in inodes if inode is not None}
    return list(found.values())
