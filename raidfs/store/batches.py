"""Pages, frames and batches: the pieces that the mirror's queue is made of.

A page of the database ends with a trailer of 8 bytes that SQLite leaves alone (its reserve_bytes):
the CRC-32C of the rest, begun with the page's number, and four letters. So a page is known to be
whole, and to be the one that belongs there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from raidfs import native, wal
from raidfs.raid.member import MetaFile

PAGE_BYTES = 4096
RESERVED_BYTES = 8
FRAME_BYTES = wal.FRAME_HEADER_BYTES + PAGE_BYTES
_TRAILER = struct.Struct("<I4s")
_MAGIC = b"rfdb"
_CONTENT_BYTES = PAGE_BYTES - RESERVED_BYTES
_WRITE_BYTES_MAX = 4 << 20
_ONE_RUN_WRITES_MAX = 256


def page_crc(page: bytes, offset_bytes: int) -> int:
    """CRC-32C of a database page's content, begun with its number (so it is bound to its place)."""
    return native.crc32c(memoryview(page)[:_CONTENT_BYTES], offset_bytes // PAGE_BYTES + 1)


def sealed_page(page: bytes, offset_bytes: int) -> bytes:
    """The page with its trailer."""
    assert len(page) == PAGE_BYTES
    return page[:_CONTENT_BYTES] + _TRAILER.pack(page_crc(page, offset_bytes), _MAGIC)


def page_good(page: bytes, offset_bytes: int) -> bool:
    """The page is whole and its trailer says so."""
    if len(page) != PAGE_BYTES:
        return False
    crc, magic = _TRAILER.unpack_from(page, _CONTENT_BYTES)
    return bool(magic == _MAGIC and crc == page_crc(page, offset_bytes))


def unit_at(offset: int) -> tuple[int, int]:
    """(start, bytes) of what SQLite writes at once there: the header, a frame's header, its
    page."""
    if offset < wal.HEADER_BYTES:
        return 0, wal.HEADER_BYTES
    within = (offset - wal.HEADER_BYTES) % FRAME_BYTES
    if within < wal.FRAME_HEADER_BYTES:
        return offset - within, wal.FRAME_HEADER_BYTES
    return offset - within + wal.FRAME_HEADER_BYTES, PAGE_BYTES


@dataclass(slots=True)
class Batch:
    """Writes to one file that may reach the members in any order among themselves."""

    file: MetaFile
    begins: bool = False  # the log begins anew here: nothing of it that is older counts
    empties: bool = False  # by being truncated to nothing, not by a new header
    taken: bool = False  # on its way to the members: later writes belong to a new batch
    writes: dict[int, bytes] = field(default_factory=dict)  # offset -> bytes, never overlapping

    def _is_one_run(self) -> bool:
        """What a small commit appends to the log: each write came where the one before ended."""
        if not self.writes or len(self.writes) > _ONE_RUN_WRITES_MAX:
            return False
        start = end = next(iter(self.writes))
        for offset, data in self.writes.items():
            if offset != end:
                return False
            end += len(data)
        return end - start <= _WRITE_BYTES_MAX

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) ascending, neighbours joined to large writes."""
        if self._is_one_run():
            yield next(iter(self.writes)), b"".join(self.writes.values())
            return
        start, end, parts = 0, 0, list[bytes]()
        for offset in sorted(self.writes):
            if parts and (offset != end or end - start >= _WRITE_BYTES_MAX):
                yield start, b"".join(parts)
                parts = []
            if not parts:
                start = end = offset
            parts.append(self.writes[offset])
            end += len(parts[-1])
        if parts:
            yield start, b"".join(parts)
