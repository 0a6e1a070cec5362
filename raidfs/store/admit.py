"""A member that comes: the metadata is copied to it while the others go on with theirs.

1. Nobody believes the member before `admit` has returned and its label says so (assembly.py): a
   crash before leaves one more member that nobody knows.
2. On return it holds, synced, what all others hold, and gets whatever is written from then on.
3. The others wait only for what changed while most of it was being copied, and for the log.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import MemberError
from ..raid.member import Member, MetaFile
from .batches import PAGE_BYTES, page_good, unit_at
from .mirror import Mirror

PROGRESS_BYTES = 1 << 20


def admit(
    mirror: Mirror, member_id: int, member: Member, progress: Callable[[int, int], None]
) -> None:
    """Blocks; one at a time. MemberError: of that member; it takes no part then. `progress`: bytes
    copied so far, and all."""
    assert not mirror.read_only and member_id not in mirror.members and mirror.rewritten is None
    mirror.rewritten = later = set()
    try:
        member.meta_truncate(MetaFile.WAL, 0)
        member.meta_sync(MetaFile.WAL)  # an old log must not be believed with a new database
        for offset in range(0, mirror.db_bytes, PAGE_BYTES):
            page = _good(mirror, offset)
            if page is None:  # being written just now, or to be healed
                later.add(offset)
            else:
                member.meta_write(MetaFile.DB, offset, page)
            if offset % PROGRESS_BYTES == 0:
                progress(offset, mirror.db_bytes)
        member.meta_sync(MetaFile.DB)
        with mirror.still():
            _copy_rest(mirror, member, later)
            mirror.join(member_id, member)
    finally:
        mirror.rewritten = None


def _good(mirror: Mirror, offset: int) -> bytes | None:
    """A page as some member has it, whole; perhaps not the newest."""
    for other in mirror.members.values():
        try:
            page = other.meta_read(MetaFile.DB, offset, PAGE_BYTES)
        except MemberError:
            continue
        if page_good(page, offset):
            return page
    return None


def _copy_rest(mirror: Mirror, member: Member, later: set[int]) -> None:
    """From what is on the others: what is queued comes to this one by itself."""
    for offset in sorted(later):
        member.meta_write(MetaFile.DB, offset, mirror.page_written(offset))
    member.meta_sync(MetaFile.DB)
    offset, end = 0, mirror.log_written
    while offset < end:
        start, nbytes = unit_at(offset)
        member.meta_write(MetaFile.WAL, start, mirror.log_unit(start, nbytes))
        offset = start + nbytes
    member.meta_sync(MetaFile.WAL)
