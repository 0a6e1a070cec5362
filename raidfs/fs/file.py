"""The content of files: open, read, write, truncate, sync.

A write covers some pages only in part; what it needs of their old content is fetched first, and in
one synchronous piece at the end everything changes. What was fetched may be out of date by then
(another writer, a flush), so the piece begins by asking again and fetches again if need be. The
lane's threads write even within the piece: if then more is needed of old content, `Pages` refuses
to change anything (BaseNeeded), and the piece is tried again.

 1. A write or truncate is atomic: any other operation sees all or nothing of it, and so does a cut.
 2. Room for a write is granted before it changes anything (promise 10 of docs/ARCHITECTURE.md).
 3. Bytes beyond the end of a file are never seen again: what lies between an old end and a later
    one reads as zeros.
 4. Every byte lies below 2^63 - 1 (EFBIG).
 5. A read changes atime only if that was not after the last change or is a day old ("relatime").
 6. Files of snapshots are served as others, but nothing about them ever changes.
 7. The lane writes to no file that has privileges to lose: it is vouched for when opened, and no
    longer while mode, owner or xattrs change.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import FsError, RaidfsError
from ..pages import NO_ATIME, SERVE_READS, SERVE_WRITES, BaseNeeded
from ..store.past import FIRST_VIEW
from .attributes import FILE_BYTES_MAX
from .cached import Inode
from .inode import Inodes
from .views import check_changeable
from .xattr import Xattrs

Buffer = bytes | bytearray | memoryview
PIECE_BYTES_MAX = 1 << 20  # of a write, so that none keeps others waiting for long
DAY_NS = 24 * 3600 * 10**9


class Files:
    """The files of one volume. `noatime`: reading never changes an atime."""

    def __init__(self, inodes: Inodes, xattrs: Xattrs, *, noatime: bool = False) -> None:
        self.inodes = inodes
        self.store = inodes.store
        self.pages = inodes.pages
        self.xattrs = xattrs
        self.noatime = noatime

    # -- open and close ---------------------------------------------------------------------------

    def open(self, ino: int, flags: int, *, kill_privileges: bool = False) -> None:
        """Count an open with the flags of open(2): O_TRUNC empties the file. `release` it later."""
        inode = self.inodes.get(ino)
        if inode.is_directory:
            raise FsError(errno.EISDIR)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self.store.writable()
            if inode.is_file:
                check_changeable(ino)
        self.open_inode(inode)
        if flags & os.O_TRUNC and inode.is_file:
            try:
                self.change(inode, kill_privileges)
            except BaseException:
                self.inodes.close(inode)
                raise
            self.pages.truncate(ino, 0, self.inodes.clock())

    def open_inode(self, inode: Inode) -> None:
        """Count an open; a regular file becomes resident."""
        self.inodes.open(inode)
        if inode.is_file:
            self.inodes.make_resident(inode)
            self.vouch(inode)

    def vouch(self, inode: Inode) -> None:
        """Tell the lane's threads what they may do with a resident file without asking. A write
        that takes privileges away changes more than content, so it is not among that."""
        flags = SERVE_READS
        if inode.ino >= FIRST_VIEW:
            self.pages.vouch(inode.ino, flags | NO_ATIME)
            return
        if self.noatime:
            flags |= NO_ATIME
        if self.xattrs.privileges(inode, kill=True) is None:
            flags |= SERVE_WRITES
        self.pages.vouch(inode.ino, flags)

    @contextmanager
    def unvouched(self, ino: int) -> Iterator[None]:
        """Around a change that may give a file privileges: nobody writes past it meanwhile."""
        inode = self.inodes.get(ino)
        if not inode.resident:
            yield
            return
        self.pages.vouch(ino, 0)
        try:
            yield
        finally:
            self.vouch(inode)

    def release(self, ino: int) -> None:
        """The counterpart of each `open` (and opendir)."""
        self.inodes.close(self.inodes.opened(ino))

    # -- reading ----------------------------------------------------------------------------------

    async def read(self, ino: int, offset: int, nbytes: int) -> memoryview | bytes:
        """At most `nbytes` bytes; fewer only at the end of the file."""
        if offset < 0 or nbytes < 0:
            raise FsError(errno.EINVAL)
        with self.inodes.held(ino) as inode:
            self.check_file(inode)
            self.inodes.make_resident(inode)
            if nbytes:
                self.accessed(inode)
            size = self.inodes.size_and_times(inode)[0]
            nbytes = min(nbytes, size - offset)
            content = await self.store.read(ino, offset, nbytes) if nbytes > 0 else b""
            self.inodes.check_there(inode)
            return content

    def accessed(self, inode: Inode) -> None:
        """Bring atime up to date by promise 5, if the volume can be changed."""
        if self.noatime or inode.ino >= FIRST_VIEW:
            return
        now_ns = self.inodes.clock()
        _, mtime_ns, ctime_ns, atime_ns = self.inodes.size_and_times(inode)
        if mtime_ns < atime_ns and ctime_ns < atime_ns and now_ns - atime_ns < DAY_NS:
            return
        try:
            self.inodes.change_alone(inode)
        except RaidfsError:
            return  # no room, or read-only: nobody is owed an atime
        self.inodes.stamp(inode, None, None, now_ns)
        self.inodes.retell(inode)

    # -- writing ----------------------------------------------------------------------------------

    async def write(
        self, ino: int, offset: int, data: Buffer, *, kill_privileges: bool = False
    ) -> int:
        """Write, and return how many bytes: all, or fewer when room or the largest size of a file
        ends within. `kill_privileges`: by someone who makes setuid and setgid go."""
        content = memoryview(data).cast("B")
        if offset < 0:
            raise FsError(errno.EINVAL)
        if len(content) and offset >= FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        content = content[: FILE_BYTES_MAX - offset]
        with self.inodes.held(ino) as inode:
            self.check_file(inode)
            self.store.writable()
            check_changeable(ino)
            self.inodes.make_resident(inode)
            room = (self.store.dirty_cells_max - 1) * self.store.cell_bytes
            most, done = min(PIECE_BYTES_MAX, room), 0
            while done < len(content):
                piece = content[done : done + most]
                try:
                    await self._write_piece(inode, offset + done, piece, kill_privileges)
                except RaidfsError:
                    if not done:
                        raise
                    break
                done += len(piece)
            return done

    async def _write_piece(
        self, inode: Inode, offset: int, piece: memoryview, kill_privileges: bool
    ) -> None:
        ino = inode.ino
        cell_bytes = self.store.cell_bytes
        cells = (offset + len(piece) - 1) // cell_bytes - offset // cell_bytes + 1
        await self.store.reserve(cells)
        try:
            while True:
                bases = await self.bases(inode, (offset, offset + len(piece)))
                # No await from here on: the write happens at once.
                self.change(inode, kill_privileges)
                with suppress(BaseNeeded):
                    self.pages.write(ino, offset, piece, self.inodes.clock(), bases)
                    break
        finally:
            self.store.release(cells)  # what became dirty is counted as such from here on

    async def bases(self, inode: Inode, *ranges: tuple[int, int]) -> dict[int, bytes]:
        """Old content of the pages that writes to [start, end) cover in part, true at the moment of
        return."""
        ino = inode.ino
        known: dict[int, tuple[object, bytes]] = {}
        while True:
            missing = [
                page
                for start, end in ranges
                for page in self.pages.missing(ino, start, end - start).tolist()
            ]
            stale = [
                page
                for page in missing
                if page not in known or not self.store.unchanged(ino, page, known[page][0])
            ]
            if not stale:
                return {page: known[page][1] for page in missing}
            for page in stale:
                known[page] = await self.store.base(ino, page)

    def change(self, inode: Inode, kill_privileges: bool) -> None:
        """What changing a resident file's content changes in its inode: not size and times."""
        lost = self.xattrs.privileges(inode, kill_privileges)
        if lost is None and inode.dirty:
            self.store.writable()
            return  # its version is of this epoch already
        mode, xattrs = lost if lost is not None else (inode.row.mode, {})
        if not xattrs:
            self.inodes.change_alone(inode)
        else:
            with self.inodes.change(inode) as epoch:
                difference = self.xattrs.write(epoch, inode, xattrs)
            inode.row.xattrs += difference
            inode.capability = None
        inode.row.mode = mode
        self.inodes.retell(inode)
        if lost is not None:
            self.vouch(inode)

    # -- truncating -------------------------------------------------------------------------------

    async def tail_base(self, inode: Inode, size: int) -> bytes | None:
        """Old content of the page in which a truncate will leave the end; true on return."""
        ino = inode.ino
        known: dict[int, tuple[object, bytes]] = {}
        while True:
            page = self.pages.missing_tail(ino, size)
            if page is None:
                return None
            if page in known and self.store.unchanged(ino, page, known[page][0]):
                return known[page][1]
            known[page] = await self.store.base(ino, page)

    def check_size(self, inode: Inode, size: int) -> None:
        """Raise for a truncate that can't be."""
        self.check_file(inode)
        if size < 0:
            raise FsError(errno.EINVAL)
        if size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)

    @staticmethod
    def check_file(inode: Inode) -> None:
        if inode.is_directory:
            raise FsError(errno.EISDIR)
        if not inode.is_file:
            raise FsError(errno.EINVAL)
