"""A volume as a filesystem: every file operation on one page, for whoever speaks to the kernel.

    kernel adapter --> Volume --> Names   directories and what stands in them
                                  Xattrs  extended attributes, access control lists
                                  Files   content
                                  Ranges  holes, allocating, copying by sharing
                                  Views   snapshots, as directories to be read
                                  all --> Inodes --> Meta, Pages, Store

Inodes go by number, names and xattrs are bytes, errors are FsError (POSIX outcomes), ReadOnly,
OutOfSpace and other RaidfsErrors, each with an errno. Only operations that may wait are `async`, so
each of the others is atomic. Permissions are the kernel's matter (`default_permissions`); the mode
bits, owners and times that an operation changes are ours.

 1. lookup, create, tmpfile, mkdir, mknod, symlink and link count one reference of the kernel's to
    the inode they return; `remember` counts those that readdirplus handed out; `forget` takes them
    back.
 2. What an operation returned without error is in every cut from then on, whole.
 3. Inodes of snapshots, reached through `.snapshots` in the root, answer all that reads; what would
    change them is ReadOnly.
 4. `fsync` returns when everything told before it is durable.
 5. What was given to another volume is ESTALE to all that would open or change it (watch.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from ..errors import FsError
from ..known import Known
from ..pages import BaseNeeded
from ..store.meta import ROOT_INO
from ..store.past import FIRST_VIEW
from .attributes import Attributes, Caller, Changes, Entry, GroupsOf, Usage, in_group
from .audience import Audience, Name
from .cached import Inode, InodeStatistics
from .door import Door
from .file import Buffer, Files
from .inode import CACHED_MAX, DIRTY_MAX, Inodes
from .names import Names
from .outdated import forget_views, reread
from .ranges import Ranges
from .views import SNAPSHOTS_INO, check_changeable
from .xattr import Xattrs

if TYPE_CHECKING:
    from ..store.store import Store

INODE_BYTES = 400  # what a small file takes in the metadata, for the count of files that still fit
_TIME_MAX = 2**63 - 1


def no_groups(caller: Caller) -> tuple[int, ...]:
    """Where supplementary groups can't be asked for."""
    return ()


class Volume:
    """One mounted volume. All methods belong to the event loop's thread."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int] | None = None,
        groups_of: GroupsOf = no_groups,
        noatime: bool = False,
        cached_max: int = CACHED_MAX,
        dirty_max: int = DIRTY_MAX,
        known: Known | None = None,
        root: int = ROOT_INO,
        snapshots_listed: bool = False,
    ) -> None:
        """`known`: where C finds what it may tell the kernel itself; if None, nobody looks. `root`:
        that of the view that is to be seen alone, of a store that is read-only."""
        assert root == ROOT_INO or store.read_only
        self.store = store
        self.clock = clock or store.clock
        self.groups_of = groups_of
        self.audience = Audience()
        self._gone: list[int] = []  # snapshots of which something may be in memory yet
        self.door = Door(store.gate)
        self.kernel_keeps_sizes = False  # of files: its write-back cache is on
        self.inodes = Inodes(store, self.clock, cached_max, dirty_max, known, root)
        self.known = self.inodes.known
        self.xattrs = Xattrs(self.inodes, groups_of)
        self.names = Names(self.inodes, self.xattrs, groups_of, snapshots_listed=snapshots_listed)
        self.files = Files(self.inodes, self.xattrs, noatime=noatime)
        self.ranges = Ranges(self.files)
        store.on_cut = self.inodes.save_dirty
        store.on_cells = self.inodes.note_cells
        store.snapshots.on_named.append(self._snapshot_named)
        store.snapshots.on_gone.append(self._snapshot_gone)

    def reap_orphans(self) -> int:
        """After a mount for writing: remove files that were open and nameless when a crash came."""
        return self.inodes.reap_orphans()

    async def ready(self) -> None:
        """Await this before each change of names, attributes, xattrs: it lets the flusher keep up.
        Without it, many changes in a row end in OutOfSpace where the metadata's log is small."""
        await self.inodes.ready()

    def is_ready(self) -> bool:
        """For who can't wait, in the place of `ready`; if False, `relief` is to be awaited."""
        return self.inodes.is_ready()

    async def relief(self) -> None:
        """The waiting part of `ready`."""
        await self.inodes.relief()

    # -- snapshots, and what they do to the present -----------------------------------------------

    def _snapshot_named(self, name: str) -> None:
        """A name of a snapshot has come, gone, or leads elsewhere."""
        self.inodes.views.changed()
        self.known.forget_directory(SNAPSHOTS_INO)
        self.known.forget_inode(SNAPSHOTS_INO)
        self.audience.outdated((), [(SNAPSHOTS_INO, name.encode())])

    def _snapshot_gone(self, snapshot_id: int) -> None:
        """What is in memory of it goes in the loop's next turn, so that many go together; and so
        before the sweeper can free anything."""
        if not self._gone:
            trio.lowlevel.current_trio_token().run_sync_soon(self._forget_gone)
        self._gone.append(snapshot_id)

    def _forget_gone(self) -> None:
        gone, self._gone = self._gone, []
        self.audience.outdated(forget_views(self.inodes, gone))

    def reread(
        self, inos: Collection[int] | None = None, names: Collection[Name] | None = None
    ) -> None:
        """The present in the metadata has become another one (a rollback): everything in memory
        that is older is forgotten. Files that are open go on with their new content, or are ESTALE
        where there is no such inode any more.

        Whoever calls this sees to it that meanwhile nobody is within an operation, no thread of the
        lane either, and that nothing is dirty: all is durable. The kernel is told of `inos` and
        `names` (None: of all it knows); await `audience.told()` to know that it was, and let its
        requests be answered before."""
        self.inodes.watches.break_all()
        for inode in reread(self.inodes):
            self.files.vouch(inode)
        self.names.forget()
        known = self.known.referenced() if inos is None else inos
        told = {ino for ino in known if ino < FIRST_VIEW and self.known.references(ino)}
        self.audience.outdated([*told, ROOT_INO], names)  # which is known without a reference

    # -- references -------------------------------------------------------------------------------

    def _told(self, inode: Inode, parent: int, name: bytes) -> Attributes:
        """The reply that makes the kernel refer to the inode that stands under a name."""
        return self.inodes.told(inode, parent, name, references=1)

    def remember(self, ino: int, count: int = 1) -> None:
        self.inodes.refer(ino, count)

    def forget(self, ino: int, count: int = 1) -> None:
        self.inodes.forget(ino, count)

    def reap_unreferenced(self) -> None:
        """After C has taken references back that were the last ones of inodes without names."""
        self.inodes.reap_unreferenced()

    # -- names ------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """ENOENT when there is none; b"." and b".." work too."""
        self.inodes.watches.check(parent)
        return self._told(self.names.lookup(parent, name), parent, name)

    def parent_of(self, ino: int) -> int:
        """The directory that holds a directory; the root's is the root."""
        return self.names.parent_of(self.names.directory(ino))

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> Attributes:
        """A new regular file, opened: `release` it. One that exists is opened, unless O_EXCL."""
        self.inodes.watches.check(parent)
        try:
            made = self.names.make(parent, name, stat.S_IFREG | mode & 0o7777, caller)
        except FsError as error:
            if error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            found = self.names.lookup(parent, name)
            self.files.open(found.ino, flags, kill_privileges=caller.uid != 0)
            return self._told(found, parent, name)
        self.files.open_inode(made)
        return self._told(made, parent, name)

    def tmpfile(self, parent: int, mode: int, flags: int, caller: Caller) -> Attributes:
        """A new regular file without a name, opened: `release` it. `link` may name it, unless
        O_EXCL; else it goes when it is neither open nor referred to."""
        self.inodes.watches.check(parent)
        linkable = not flags & os.O_EXCL
        made = self.names.make_unnamed(parent, mode, caller, linkable=linkable)
        self.files.open_inode(made)
        return self.inodes.told(made, references=1)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        """A file, fifo, socket or device, by the type bits of `mode` (none: a file)."""
        self.inodes.watches.check(parent)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind in (stat.S_IFDIR, stat.S_IFLNK):
            raise FsError(errno.EINVAL)
        made = self.names.make(parent, name, kind | mode & 0o7777, caller, rdev=rdev)
        return self._told(made, parent, name)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        self.inodes.watches.check(parent)
        made = self.names.make(parent, name, stat.S_IFDIR | mode & 0o7777, caller)
        return self._told(made, parent, name)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        self.inodes.watches.check(parent)
        return self._told(self.names.symlink(parent, name, target, caller), parent, name)

    def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        self.inodes.watches.check(ino, parent)
        return self._told(self.names.link(ino, parent, name), parent, name)

    def unlink(self, parent: int, name: bytes) -> None:
        self.inodes.watches.check(parent)
        self.names.unlink(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.inodes.watches.check(parent)
        self.names.rmdir(parent, name)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """`flags`: 0, RENAME_NOREPLACE or RENAME_EXCHANGE."""
        self.inodes.watches.check(parent, new_parent)
        self.names.rename(parent, name, new_parent, new_name, flags)

    def readlink(self, ino: int) -> bytes:
        inode = self.inodes.get(ino)
        if inode.row.target is None:
            raise FsError(errno.EINVAL)
        self.files.accessed(inode)
        return inode.row.target

    def opendir(self, ino: int) -> None:
        """Each needs a `release`."""
        self.inodes.watches.check(ino)
        self.inodes.open(self.names.directory(ino))

    def readdir(self, ino: int, after: int, limit: int) -> list[Entry]:
        """At most `limit` entries after cookie `after` (0: from the start), first "." and "..". No
        entry means the end. Cookies stay valid for as long as the directory lives."""
        if after == 0:
            self.files.accessed(self.names.directory(ino))
        return self.names.entries(ino, after, limit)

    # -- attributes -------------------------------------------------------------------------------

    def getattr(self, ino: int) -> Attributes:
        return self.inodes.told(self.inodes.get(ino))

    def set_attributes(self, ino: int, changes: Changes, caller: Caller) -> Attributes:
        """chmod, chown and utimens, any of them in one piece: `setattr` without a size."""
        assert changes.size is None
        self.inodes.watches.check(ino)
        inode = self.inodes.get(ino)
        check_changeable(ino)
        if changes != Changes():
            with self.files.unvouched(ino):
                self._change(inode, changes, caller)
        return self.inodes.told(inode)

    async def setattr(
        self, ino: int, changes: Changes, caller: Caller, *, kill_privileges: bool = False
    ) -> Attributes:
        """chmod, chown, utimens and truncate, any of them in one piece. `kill_privileges`: by
        someone without CAP_FSETID, though root."""
        if changes.size is None:
            return self.set_attributes(ino, changes, caller)
        kill = kill_privileges or caller.uid != 0
        with self.inodes.held(ino) as inode:
            self.inodes.watches.check(ino)
            self.files.check_size(inode, changes.size)
            check_changeable(ino)
            self.inodes.make_resident(inode)
            cells = 1 if changes.size % self.store.cell_bytes else 0  # the last page's tail: zeros
            await self.store.reserve(cells, privileged=True)
            try:
                while True:
                    base = await self.files.tail_base(inode, changes.size)
                    # No await from here on: all changes happen at once, or (BaseNeeded) none.
                    with suppress(BaseNeeded), self.files.unvouched(ino):
                        self._change(inode, changes, caller, base, kill=kill)
                        break
            finally:
                self.store.release(cells)
            return self.inodes.told(inode)

    def _change(
        self,
        inode: Inode,
        changes: Changes,
        caller: Caller,
        base: bytes | None = None,
        *,
        kill: bool = False,
    ) -> None:
        """Apply `changes` at once; `base` is what the truncate among them needs, `kill` says that
        it takes setuid and setgid away."""
        row = inode.row
        mode, xattrs = row.mode, dict[bytes, bytes | None]()
        chown = changes.uid is not None or changes.gid is not None
        if chown or changes.size is not None:
            lost = self.xattrs.privileges(inode, chown or kill)
            mode, xattrs = lost if lost is not None else (mode, xattrs)
        gid = row.gid if changes.gid is None else changes.gid
        if changes.mode is not None:
            mode = stat.S_IFMT(mode) | changes.mode & 0o7777
            if mode & stat.S_ISGID and not in_group(caller, gid, self.groups_of):
                mode &= ~stat.S_ISGID
            xattrs = xattrs | self.xattrs.access_after_chmod(inode, mode)
        now_ns = self.clock()
        if xattrs:
            with self.inodes.change(inode, freeing=changes.size is not None) as epoch:
                difference = self.xattrs.write(epoch, inode, xattrs)
                if changes.size is not None:
                    self.store.pages.truncate(inode.ino, changes.size, now_ns, base)
            row.xattrs += difference
            inode.capability = None
        else:
            self.inodes.change_alone(inode, freeing=changes.size is not None)
            if changes.size is not None:
                self.store.pages.truncate(inode.ino, changes.size, now_ns, base)
        row.mode, row.gid = mode, gid
        row.uid = row.uid if changes.uid is None else changes.uid
        atime_ns = None if changes.atime_ns is None else _time(changes.atime_ns)
        mtime_ns = None if changes.mtime_ns is None else _time(changes.mtime_ns)
        ctime_ns = now_ns if changes.ctime_ns is None else _time(changes.ctime_ns)
        self.inodes.stamp(inode, mtime_ns, ctime_ns, atime_ns)

    def statfs(self) -> Usage:
        """Room in cells, as the present members and code give it; files by the metadata's room."""
        usage = self.store.space.usage()
        used_bytes, limit_bytes = self.store.meta.room()
        files_free = max(0, limit_bytes - used_bytes) // INODE_BYTES
        files = self.store.meta.count_inodes()
        return Usage(
            self.store.cell_bytes,
            usage.total_cells,
            usage.free_cells,
            files + files_free,
            files_free,
        )

    # -- content ----------------------------------------------------------------------------------

    def open(self, ino: int, flags: int, *, kill_privileges: bool = False) -> None:
        """By the flags of open(2); O_TRUNC empties the file. Each open needs a `release`."""
        self.inodes.watches.check(ino)
        self.files.open(ino, flags, kill_privileges=kill_privileges)

    def release(self, ino: int) -> None:
        """The end of one open, opendir or create."""
        self.files.release(ino)

    def is_open(self, ino: int) -> bool:
        """By anybody, also by an operation under way."""
        return self.inodes.is_open(ino)

    async def read(self, ino: int, offset: int, nbytes: int) -> memoryview | bytes:
        """At most `nbytes`; fewer only at the end of the file."""
        return await self.files.read(ino, offset, nbytes)

    async def write(
        self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = False
    ) -> int:
        """Returns how many bytes were written. `kill_privileges`: clear setuid and setgid as for a
        writer without CAP_FSETID, where the kernel leaves that to us."""
        return await self.files.write(ino, offset, data, kill_privileges=kill_privileges)

    async def seek(self, ino: int, offset: int, whence: int) -> int:
        """The next data (os.SEEK_DATA) or hole (os.SEEK_HOLE), as lseek(2) finds them."""
        return await self.ranges.seek(ino, offset, whence)

    async def fallocate(
        self, ino: int, offset: int, nbytes: int, mode: int, *, kill_privileges: bool = False
    ) -> None:
        """fallocate(2): allocate, punch a hole, zero a range. Room is checked, not reserved."""
        await self.ranges.fallocate(ino, offset, nbytes, mode, kill_privileges=kill_privileges)

    async def copy_range(
        self,
        ino_in: int,
        offset_in: int,
        ino_out: int,
        offset_out: int,
        nbytes: int,
        *,
        kill_privileges: bool = False,
    ) -> int:
        """copy_file_range(2), which may copy less than asked: one piece, see fs/ranges.py. Cells
        are shared where the page offsets agree."""
        return await self.ranges.copy(
            ino_in, offset_in, ino_out, offset_out, nbytes, kill_privileges=kill_privileges
        )

    def flush(self, ino: int) -> None:
        """close(2) of one descriptor: nothing to do, and no promise."""

    async def fsync(self, ino: int) -> None:
        """Everything told so far, of this file and all others, is durable on return."""
        if ino < FIRST_VIEW:
            await self.store.commit()

    # -- extended attributes ----------------------------------------------------------------------

    def getxattr(self, ino: int, name: bytes) -> bytes:
        return self.xattrs.get(ino, name)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        """`flags`: 0, xattr.CREATE or xattr.REPLACE."""
        self.inodes.watches.check(ino)
        with self.files.unvouched(ino):
            self.xattrs.put(ino, name, value, flags, caller)

    def listxattr(self, ino: int, caller: Caller) -> list[bytes]:
        return self.xattrs.names(ino, caller)

    def removexattr(self, ino: int, name: bytes) -> None:
        self.inodes.watches.check(ino)
        with self.files.unvouched(ino):
            self.xattrs.remove(ino, name)

    def statistics(self) -> InodeStatistics:
        return self.inodes.statistics()


def _time(time_ns: int) -> int:
    """A time as the format can hold it: 1677 to 2262."""
    return max(-_TIME_MAX, min(_TIME_MAX, time_ns))
