"""Ranges of files: where data lies, holes made, room asked for, content copied by sharing cells.

What the manual pages of lseek(2), fallocate(2) and copy_file_range(2) say, as Linux does it on its
own filesystems. A page that becomes a hole, or comes to share a cell with another page, is a mark
in `Pages`: it takes no room and no content is touched.

 1. Making holes and zeros is atomic (to any other operation, and to a cut) for a range of up to 16
    leaves that hold something, 4096 pages: 16 MiB with cells of 4 KiB. A longer one is done in
    pieces of that size, from its start; who looks in between, and a crash, may find some done.
 2. A copy is one such piece per call and tells how far it got. Whole pages that lie in cells (or
    nowhere) are shared, up to 16 leaves; others, and the ragged ends of a range, are read and
    written, up to 1 MiB. A piece appears in the target at once.
 3. Holes cost nothing: all this takes time by the leaves and dirty pages in a range.
 4. Marks that wait for their flush are bounded: whoever makes more waits for it.
 5. Rows are written once and in full, so no room can be tied to a range: `allocate` checks that
    there is enough for its holes now, lets the size grow, and promises nothing for later.
"""

from __future__ import annotations

import errno
import os

import numpy as np
import trio

from ..errors import FsError, OutOfSpace
from ..pages import BaseNeeded
from ..store.layout import CONTENT, HOLE, Part
from .attributes import FILE_BYTES_MAX
from .cached import Inode
from .file import PIECE_BYTES_MAX, Files
from .views import check_changeable

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # the modes of fallocate(2) that there are
PIECE_LEAVES = 16
PARTS_PER_TURN = 64  # of a walk; then others get the event loop
_MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)

Edge = tuple[int, int]  # [start, end): bytes of one page, a part of it


class Ranges:
    """Of the files of one volume."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.inodes = files.inodes
        self.store = files.store
        self.pages = files.pages
        self.layout = files.store.layout
        self.cell_bytes = files.store.cell_bytes
        self.leaves_max = max(2 * PIECE_LEAVES, files.store.dirty_cells_max // 16)
        self._marked = (0, 0)  # an epoch, and how many leaves got marks in it

    # -- where data lies --------------------------------------------------------------------------

    async def seek(self, ino: int, offset: int, whence: int) -> int:
        """The next data (os.SEEK_DATA) or hole (os.SEEK_HOLE) at or after `offset`. The end of the
        file counts as a hole; ENXIO where there is no more."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise FsError(errno.EINVAL)
        with self.inodes.held(ino) as inode:
            self.files.check_file(inode)
            self.inodes.make_resident(inode)
            if not 0 <= offset < self._size(inode):
                raise FsError(errno.ENXIO)
            page, data = offset // self.cell_bytes, whence == os.SEEK_DATA
            found, page = self._seek(inode, page, data)
            while not found:
                await trio.lowlevel.checkpoint()
                self.inodes.check_there(inode)
                found, page = self._seek(inode, page, data)
            size = self._size(inode)
            if data and page * self.cell_bytes >= size:
                raise FsError(errno.ENXIO)
            return max(offset, min(page * self.cell_bytes, size))

    def _seek(self, inode: Inode, page: int, data: bool) -> tuple[bool, int]:
        """(True, the next page that is data, or a hole, or the end), or False and how far it has
        looked in vain."""
        end = self._end_page(inode)
        for _ in range(PARTS_PER_TURN):
            part = self.layout.next_part(inode.ino, page, end)
            if part is None:
                return True, end if data else page
            if not data and part.first > page:
                return True, page
            wanted = np.flatnonzero((part.kinds != HOLE) == data)
            if len(wanted):
                return True, part.first + int(wanted[0])
            page = part.end
        return False, page

    # -- allocating, punching, zeroing ------------------------------------------------------------

    async def fallocate(
        self, ino: int, offset: int, nbytes: int, mode: int, *, kill_privileges: bool = False
    ) -> None:
        """By the modes of fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE and that
        with KEEP_SIZE. EOPNOTSUPP for others."""
        if offset < 0 or nbytes <= 0:
            raise FsError(errno.EINVAL)
        if mode not in _MODES:
            raise FsError(errno.EOPNOTSUPP)
        with self.inodes.held(ino) as inode:
            if not inode.is_file:
                raise FsError(errno.EISDIR if inode.is_directory else errno.ENODEV)
            end = offset + nbytes
            if end > FILE_BYTES_MAX:
                raise FsError(errno.EFBIG)
            self.store.writable()
            check_changeable(ino)
            self.inodes.make_resident(inode)
            if not mode & PUNCH_HOLE:
                await self._check_room(inode, offset, end)
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                await self._clear(inode, offset, end, kill_privileges)
            # No await from here on: what comes last of zeroing and growing happens at once.
            if not mode & KEEP_SIZE and self._size(inode) < end:
                self.files.change(inode, kill_privileges)
                self._grow(inode, end, self.inodes.clock())
            elif kill_privileges:
                self.files.change(inode, kill_privileges)

    async def _check_room(self, inode: Inode, offset: int, end: int) -> None:
        """OutOfSpace unless what statfs tells as free would do for all holes of the range."""
        page, last = offset // self.cell_bytes, -(-end // self.cell_bytes)
        wanted, parts = last - page, 0
        free = self.store.space.usage().free_cells
        while wanted > free:
            part = self.layout.next_part(inode.ino, page, min(last, self._end_page(inode)))
            if part is None:
                break
            wanted -= int(np.count_nonzero(part.kinds))
            page, parts = part.end, parts + 1
            if parts % PARTS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        if not await self.store.dirty_room.has_room(wanted):
            raise OutOfSpace("the volume has no room for so much")

    async def _clear(self, inode: Inode, offset: int, end: int, kill_privileges: bool) -> None:
        """[offset, end) reads as zeros from now on; its whole pages are holes."""
        at: int | None = offset
        while at is not None:
            await self._marks_admitted()
            ragged = (at % self.cell_bytes > 0) + (end % self.cell_bytes > 0)
            await self.store.reserve(ragged, privileged=True)
            try:
                edges = self._edges(inode, at, end)
                bases = await self.files.bases(inode, *edges)
                # No await from here on: a piece happens at once, or (BaseNeeded) not at all.
                with self.files.unvouched(inode.ino):
                    at = self._clear_piece(inode, at, end, bases, kill_privileges)
            except BaseNeeded:
                continue
            finally:
                self.store.release(ragged)

    def _whole_pages(self, inode: Inode, offset: int, end: int) -> tuple[int, int]:
        """(first, end) of the pages that [offset, end) covers as far as the file goes."""
        size = self._size(inode)
        first = -(-offset // self.cell_bytes)
        return first, end // self.cell_bytes if end < size else self._end_page(inode)

    def _edges(self, inode: Inode, offset: int, end: int) -> list[Edge]:
        """The parts of pages at both ends of [offset, end), below the size, that aren't holes."""
        end = min(end, self._size(inode))
        first, last = self._whole_pages(inode, offset, end)
        edges = [(offset, min(first * self.cell_bytes, end))]
        if last >= first:
            edges.append((last * self.cell_bytes, end))
        return [(a, b) for a, b in edges if a < b and self._has_content(inode, a)]

    def _has_content(self, inode: Inode, offset: int) -> bool:
        return bool(self.layout.part(inode.ino, offset // self.cell_bytes, 1).kinds[0] != HOLE)

    def _clear_piece(
        self, inode: Inode, offset: int, end: int, bases: dict[int, bytes], kill_privileges: bool
    ) -> int | None:
        """One piece, at once. Where the next one starts, or None."""
        page, last = self._whole_pages(inode, offset, end)
        parts: list[Part] = []
        while len(parts) < PIECE_LEAVES and (part := self.layout.next_part(inode.ino, page, last)):
            parts.append(part)
            page = part.end
        done = len(parts) < PIECE_LEAVES or page >= last
        until = end if done else page * self.cell_bytes
        edges = self._edges(inode, offset, until)
        for start, stop in edges:
            if set(self.pages.missing(inode.ino, start, stop - start).tolist()) - bases.keys():
                raise BaseNeeded
        parts = [part for part in parts if part.kinds.any()]
        if edges or parts:
            self.files.change(inode, kill_privileges)
            now_ns = self.inodes.clock()
            for start, stop in edges:
                self.pages.write(inode.ino, start, bytes(stop - start), now_ns, bases)
            for part in parts:
                self._punch(inode, part, now_ns)
        return None if done else until

    def _punch(self, inode: Inode, part: Part, now_ns: int) -> None:
        used = np.flatnonzero(part.kinds)
        first, count = part.first + int(used[0]), int(used[-1] - used[0]) + 1
        self.pages.punch(inode.ino, first, count, now_ns)
        self._note_marks(1)

    # -- copying ----------------------------------------------------------------------------------

    async def copy(
        self,
        ino_in: int,
        offset_in: int,
        ino_out: int,
        offset_out: int,
        nbytes: int,
        *,
        kill_privileges: bool = False,
    ) -> int:
        """One piece of copy_file_range(2): how many bytes were copied; 0 at the end of the source.
        EINVAL where both ranges lie in one file and overlap."""
        if min(offset_in, offset_out, nbytes) < 0:
            raise FsError(errno.EINVAL)
        with self.inodes.held(ino_in) as source, self.inodes.held(ino_out) as target:
            for inode in (source, target):
                self.files.check_file(inode)
                self.inodes.make_resident(inode)
            self.store.writable()
            check_changeable(ino_out)
            nbytes = min(nbytes, self._size(source) - offset_in)
            if nbytes <= 0:
                return 0
            if offset_out >= FILE_BYTES_MAX:
                raise FsError(errno.EFBIG)
            nbytes = min(nbytes, FILE_BYTES_MAX - offset_out)
            if source is target and abs(offset_in - offset_out) < nbytes:
                raise FsError(errno.EINVAL, "the ranges overlap")
            self.files.accessed(source)
            first, within = divmod(offset_in, self.cell_bytes)
            aligned = offset_out % self.cell_bytes == within
            if aligned and within:
                nbytes = min(nbytes, self.cell_bytes - within)  # what comes next may be shared
            elif aligned:
                await self._marks_admitted()
                self.inodes.check_there(source)
                shift = offset_out // self.cell_bytes - first
                if done := self._share(source, first, target, shift, nbytes, kill_privileges):
                    return done
                nbytes = self._unshared(source, first, nbytes)
            data = await self.files.read(ino_in, offset_in, min(nbytes, PIECE_BYTES_MAX))
            return await self.files.write(
                ino_out, offset_out, data, kill_privileges=kill_privileges
            )

    def _unshared(self, source: Inode, first: int, nbytes: int) -> int:
        """Bytes, from page `first` on and at most `nbytes`, up to the next page that lies in a cell
        or nowhere; at least one page, which is the end of the range if it isn't in memory."""
        count = min(-(-nbytes // self.cell_bytes), PIECE_BYTES_MAX // self.cell_bytes)
        kinds = self.layout.part(source.ino, first, count).kinds
        others = np.flatnonzero(kinds != CONTENT)
        pages = max(1, int(others[0])) if len(others) else count
        return min(nbytes, pages * self.cell_bytes)

    def _share(
        self,
        source: Inode,
        first: int,
        target: Inode,
        shift: int,
        nbytes: int,
        kill_privileges: bool,
    ) -> int:
        """Let pages of the target, `shift` pages further, share the cells of `nbytes` bytes of the
        source from page `first` on. At once, up to one piece; how many bytes that was."""
        start = (first + shift) * self.cell_bytes
        with self.files.unvouched(target.ino):
            nbytes = min(nbytes, self._size(source) - first * self.cell_bytes)
            last = first + self._sharable(source, first, target, shift, nbytes)
            page, plan = self._plan(source, first, last, target, shift)
            if page <= first:
                return 0
            nbytes = min(nbytes, (page - first) * self.cell_bytes)
            self.files.change(target, kill_privileges)
            now_ns = self.inodes.clock()
            for part in plan:
                end = min(part.end * self.cell_bytes, start + nbytes)
                self.layout.share(target.ino, part.first, part.addresses, end, now_ns)
            self._grow(target, start + nbytes, now_ns)
        self._note_marks(len(plan))
        return nbytes

    def _sharable(self, source: Inode, first: int, target: Inode, shift: int, nbytes: int) -> int:
        """How many pages hold nothing but those bytes: the whole ones, and that with the end of the
        source if it becomes the end of the target, too."""
        pages, rest = divmod(max(0, nbytes), self.cell_bytes)
        at_end = first * self.cell_bytes + nbytes >= self._size(source)
        becomes_end = (first + shift) * self.cell_bytes + nbytes >= self._size(target)
        return pages + (rest > 0 and at_end and becomes_end)

    def _plan(
        self, source: Inode, first: int, last: int, target: Inode, shift: int
    ) -> tuple[int, list[Part]]:
        """Up to which page of the source one piece goes, and what it makes of the target: parts by
        its own page numbers, whose `addresses` it comes to share (0: holes)."""
        plan: list[Part] = []
        page, steps = first, 0
        while page < last and steps < PIECE_LEAVES:
            steps += 1
            part = self.layout.next_part(source.ino, page, last)
            holes_end = part.first if part is not None else last
            while page < holes_end and steps < PIECE_LEAVES:
                steps += 1
                until = min(holes_end + shift, self._end_page(target))
                there = self.layout.next_part(target.ino, page + shift, until)
                page = there.end - shift if there is not None else holes_end
                if there is not None and there.kinds.any():
                    plan.append(Part(there.first, there.kinds, np.zeros_like(there.addresses)))
            if part is None or page < holes_end:
                continue
            content = np.flatnonzero(part.kinds == CONTENT)
            count = int(content[0]) if len(content) else len(part.kinds)
            if count:
                plan.append(Part(part.first + shift, part.kinds[:count], part.addresses[:count]))
            page = part.first + count
            if len(content):
                break
        return page, plan

    # -- sizes and marks --------------------------------------------------------------------------

    def _size(self, inode: Inode) -> int:
        return self.inodes.size_and_times(inode)[0]

    def _end_page(self, inode: Inode) -> int:
        return -(-self._size(inode) // self.cell_bytes)

    def _grow(self, inode: Inode, size: int, now_ns: int) -> None:
        """A smaller file gets that size; one that the lane has let grow meanwhile keeps its own."""
        self.layout.share(inode.ino, 0, np.empty(0, np.uint64), size, now_ns)

    async def _marks_admitted(self) -> None:
        """Wait until another piece's marks may wait for their flush."""
        while self._marks() + PIECE_LEAVES > self.leaves_max:
            await self.store.commit()

    def _marks(self) -> int:
        """Leaves that got marks in the open epoch."""
        return self._marked[1] if self._marked[0] == self.store.epoch else 0

    def _note_marks(self, leaves: int) -> None:
        self._marked = (self.store.epoch, self._marks() + leaves)
