"""What the kernel asks, put to the volume: translation of types and errors, nothing else.

1. Whatever happens in a handler, the kernel gets an answer: an error of the world its errno, an
   error of ours EIO and a traceback in the log. The daemon lives on.
2. One reference is counted for each inode the kernel was told of, no more: in a directory listing
   only for the entries that fitted into the reply.
3. Names, attributes and pages stay in the kernel's caches for long: all changes pass through it,
   so nothing there can be out of date. But what it knows of `.snapshots` and the names in it, it
   must ask for again each time: snapshots come and go without it.
4. A change waits while the metadata has to be committed first (`Volume.ready`); then it is made and
   answered in one piece.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from raidfs.errors import MemberError, MemberFull, RaidfsError
from raidfs.fs.attributes import Attributes, Caller, Changes, Entry
from raidfs.fs.views import SNAPSHOTS_INO
from raidfs.fs.volume import Volume

log = logging.getLogger("raidfs.fuse")

CACHE_S = 300.0
FLEETING_INO = SNAPSHOTS_INO  # of this inode and its names the kernel keeps nothing
LISTED_AT_ONCE = 128
Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


def errno_of(name: str, error: Exception) -> int:
    """What the kernel is told of an error in the operation of that name; EIO goes to the log too,
    an error of ours with its traceback."""
    if isinstance(error, FUSEError):
        number: int = error.errno
        return number
    if not isinstance(error, RaidfsError):
        log.error("%s failed inside raidfs", name, exc_info=error)
        return errno.EIO
    number = error.errno
    if isinstance(error, MemberError) and not isinstance(error, MemberFull):
        number = errno.EIO  # what the member's own filesystem said is not said of this one
    if number == errno.EIO:
        log.error("%s: %s", name, error)
    return number


def answered(handler: Handler, *, refusable: bool = True) -> Handler:
    """Promise 1, for one handler, which waits while the volume's door is closed."""

    @functools.wraps(handler)
    async def guarded(operations: FuseOperations, *arguments: Any) -> Any:
        try:
            async with operations.door.passing(refusable=refusable):
                return await handler(operations, *arguments)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(errno_of(handler.__name__, error)) from None

    return guarded  # type: ignore[return-value]


# Of what gives something back: that is never refused.
giving_back = functools.partial(answered, refusable=False)


def entry_of(told: Attributes, parent: int = 0) -> EntryAttributes:
    """Attributes as pyfuse3 wants them, perhaps of what stands in `parent`."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(told.ino)
    entry.generation = told.generation
    entry.entry_timeout = 0 if parent == FLEETING_INO else CACHE_S
    entry.attr_timeout = 0 if told.ino == FLEETING_INO else CACHE_S
    entry.st_mode = ModeT(told.mode)
    entry.st_nlink = told.nlink
    entry.st_uid = told.uid
    entry.st_gid = told.gid
    entry.st_rdev = told.rdev
    entry.st_size = told.size
    entry.st_blksize = told.blksize
    entry.st_blocks = told.blocks
    entry.st_atime_ns = told.atime_ns
    entry.st_mtime_ns = told.mtime_ns
    entry.st_ctime_ns = told.ctime_ns
    return entry


def no_entry() -> EntryAttributes:
    """ENOENT that the kernel may remember: inode 0."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(0)
    entry.entry_timeout = CACHE_S
    return entry


def dot_entry(ino: int) -> EntryAttributes:
    """`.` and `..`: of these the kernel takes number and type, and counts no reference."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(ino)
    entry.st_mode = ModeT(stat.S_IFDIR)
    return entry


def caller_of(context: RequestContext) -> Caller:
    """Who asks."""
    return Caller(context.uid, context.gid, context.pid, context.umask)


def groups_of(caller: Caller) -> set[int]:
    """Supplementary groups of the asking process; none if it is already gone."""
    try:
        return pyfuse3.get_sup_groups(caller.pid)
    except (OSError, RuntimeError):
        return set()


def may_lose_privileges(told: Attributes) -> bool:
    """The mode has bits that a change of content takes away."""
    return bool(told.mode & (stat.S_ISUID | stat.S_ISGID))


class Watcher:
    """Who must know what happens to files because of what the kernel keeps in its caches. Without
    a lane nobody: the kernel then takes care of it."""

    def opened(self, ino: int, flags: int) -> None:
        """A file was opened with these flags of open(2)."""

    async def privileges_lost(self, ino: int) -> None:
        """A change of content may have taken setuid or setgid away. Before it is answered."""

    async def before_seek(self, ino: int) -> None:
        """SEEK_DATA or SEEK_HOLE is about to be answered."""

    async def write_out(self, ino: int, offset: int, nbytes: int) -> bool:
        """Has the kernel pass on what is dirty there, through a mapping, say. False: there can't
        be anything."""
        return False


class FuseOperations(pyfuse3.Operations):
    """pyfuse3's handlers over a Volume. File handles are inode numbers: the volume counts opens."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, volume: Volume, watcher: Watcher | None = None) -> None:
        super().__init__()
        self._volume = volume
        self.door = volume.door
        self._watcher = watcher or Watcher()

    # -- names ------------------------------------------------------------------------------------

    @answered
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Finds a name; a missing one is remembered by the kernel as missing."""
        try:
            return entry_of(self._volume.lookup(parent_inode, name), parent_inode)
        except RaidfsError as error:
            if error.errno != errno.ENOENT or parent_inode == FLEETING_INO:
                raise
            return no_entry()

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Takes references back. Nobody waits for an answer."""
        await self.door.opened()
        for ino, count in inode_list:
            try:
                self._volume.forget(ino, count)
            except Exception:
                log.exception("forget failed inside raidfs")

    @answered
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new file, opened."""
        await self._volume.ready()
        told = self._volume.create(parent_inode, name, mode, flags, caller_of(ctx))
        self._watcher.opened(told.ino, flags)
        return FileInfo(fh=FileHandleT(told.ino), keep_cache=True), entry_of(told)

    @answered
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """A new special or regular file, not opened."""
        await self._volume.ready()
        return entry_of(self._volume.mknod(parent_inode, name, mode, rdev, caller_of(ctx)))

    @answered
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """A new directory."""
        await self._volume.ready()
        return entry_of(self._volume.mkdir(parent_inode, name, mode, caller_of(ctx)))

    @answered
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """A new symbolic link."""
        await self._volume.ready()
        return entry_of(self._volume.symlink(parent_inode, name, target, caller_of(ctx)))

    @answered
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Another name for a file."""
        await self._volume.ready()
        return entry_of(self._volume.link(inode, new_parent_inode, new_name))

    @answered
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Takes a name from a file."""
        await self._volume.ready()
        self._volume.unlink(parent_inode, name)

    @answered
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Removes an empty directory."""
        await self._volume.ready()
        self._volume.rmdir(parent_inode, name)

    @answered
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """renameat2(2)."""
        await self._volume.ready()
        self._volume.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @answered
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Where a symbolic link leads."""
        return FileNameT(self._volume.readlink(inode))

    @answered
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Directories are listed by inode number too."""
        self._volume.opendir(inode)
        return FileHandleT(inode)

    @answered
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """As many entries after `start_id` as fit, with their attributes. An error after the first
        one waits for the next call, or the references of those already sent would be lost."""
        after = start_id
        try:
            while entries := self._volume.readdir(fh, after, LISTED_AT_ONCE):
                for entry in entries:
                    if not self._list(token, entry, fh):
                        return
                    after = entry.cookie
        except RaidfsError:
            if after == start_id:
                raise

    def _list(self, token: ReaddirToken, entry: Entry, directory: int) -> bool:
        """Adds one entry to a listing; False if it has no room left."""
        name = FileNameT(entry.name)
        if entry.name in (b".", b".."):
            return pyfuse3.readdir_reply(token, name, dot_entry(entry.ino), entry.cookie)
        told = entry_of(self._volume.getattr(entry.ino), directory)
        if not pyfuse3.readdir_reply(token, name, told, entry.cookie):
            return False
        self._volume.remember(entry.ino)
        return True

    @giving_back
    async def releasedir(self, fh: FileHandleT) -> None:
        """closedir(3)."""
        self._volume.release(fh)

    # -- attributes -------------------------------------------------------------------------------

    @answered
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """stat(2)."""
        return entry_of(self._volume.getattr(inode))

    @answered
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """chmod(2), chown(2), utimensat(2), truncate(2)."""
        await self._volume.ready()
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return entry_of(await self._volume.setattr(inode, changes, caller_of(ctx)))

    @answered
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """The kernel checks permissions itself (default_permissions)."""
        return True

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """statvfs(3)."""
        usage = self._volume.statfs()
        told = StatvfsData()
        told.f_bsize = told.f_frsize = usage.unit_bytes
        told.f_blocks = usage.total
        told.f_bfree = told.f_bavail = usage.free
        told.f_files = usage.files
        told.f_ffree = told.f_favail = usage.files_free
        told.f_namemax = usage.name_bytes_max
        return told

    # -- content ----------------------------------------------------------------------------------

    @answered
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """open(2) of what exists."""
        privileges = bool(flags & os.O_TRUNC) and ctx.uid != 0
        privileged = privileges and may_lose_privileges(self._volume.getattr(inode))
        self._volume.open(inode, flags, kill_privileges=privileges)
        self._watcher.opened(inode, flags)
        if privileged:
            await self._watcher.privileges_lost(inode)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @answered
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """pread(2). pyfuse3 takes any buffer."""
        return await self._volume.read(fh, off, size)  # type: ignore[return-value]

    @answered
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """pwrite(2). The kernel has taken setuid and setgid away before."""
        return await self._volume.write(fh, off, buf)

    @answered
    async def flush(self, fh: FileHandleT) -> None:
        """close(2) promises nothing: this answer makes the kernel ask only once."""
        raise FUSEError(errno.ENOSYS)

    @giving_back
    async def release(self, fh: FileHandleT) -> None:
        """The last close of one open."""
        self._volume.release(fh)

    @answered
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Durable on return."""
        await self._volume.fsync(fh)

    @answered
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Durable on return."""
        await self._volume.fsync(fh)

    # -- extended attributes ----------------------------------------------------------------------

    @answered
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Also asked for security.capability before every write: the volume answers that from
        the inode when it has no extended attributes."""
        return self._volume.getxattr(inode, name)

    @answered
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """pyfuse3 has checked XATTR_CREATE and XATTR_REPLACE by getxattr just before."""
        await self._volume.ready()
        self._volume.setxattr(inode, name, value, 0, caller_of(ctx))

    @answered
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Names only."""
        return [XAttrNameT(name) for name in self._volume.listxattr(inode, caller_of(ctx))]

    @answered
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Takes one away."""
        await self._volume.ready()
        self._volume.removexattr(inode, name)
