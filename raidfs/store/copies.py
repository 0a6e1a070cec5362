"""The copies of the metadata on all members, compared: pages of the database, and of its log.

1. A copy is healed from one that is good: by its checksum, and where several that differ are, as
   most members have it. What can't be decided so is told and left.
2. It may go on while the metadata is in use: what seems wrong is looked at again while nothing is
   written, and so is never a page that was just being written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .. import wal
from ..errors import MemberError
from ..raid.member import MetaFile
from .batches import FRAME_BYTES, PAGE_BYTES, page_good
from .mirror import Mirror

DIFFERS = "it isn't what the other members have"
BAD = "its checksum did not match"
Good = Callable[[bytes], bool]


@dataclass(slots=True)
class Found:
    """By member how many copies were wrong, and of these healed. `undecided`: pieces of which no
    copy can be believed."""

    wrong: dict[int, int] = field(default_factory=dict)
    healed: dict[int, int] = field(default_factory=dict)
    undecided: int = 0
    nbytes: int = 0


def compare_pages(mirror: Mirror, first: int, count: int, heal: bool) -> Found:
    """Pages of the database, by number from 0. Blocks; any thread."""
    found, start = Found(), first * PAGE_BYTES
    nbytes = min(mirror.db_bytes - start, count * PAGE_BYTES)
    if nbytes <= 0:
        return found
    copies = _read(mirror, MetaFile.DB, start, nbytes)
    found.nbytes = nbytes * len(copies)
    for offset in range(start, start + nbytes, PAGE_BYTES):
        at = offset - start
        pages = [copy[at : at + PAGE_BYTES] for copy in copies.values()]
        if not all(page == pages[0] for page in pages[1:]) or not page_good(pages[0], offset):
            with mirror.undisturbed():
                _decide_page(mirror, offset, heal, found)
    return found


def _decide_page(mirror: Mirror, offset: int, heal: bool, found: Found) -> None:
    copies = _read(mirror, MetaFile.DB, offset, PAGE_BYTES)
    if not any(any(page) for page in copies.values()):
        return  # SQLite doesn't write pages that became free before they were written
    _decide(mirror, MetaFile.DB, offset, copies, lambda page: page_good(page, offset), heal, found)


def compare_log(mirror: Mirror, number: int, start: int, nbytes: int, heal: bool) -> Found | None:
    """Part of the log `number`, from a unit's start on. None: there is no more, or another log.
    Blocks; any thread."""
    with mirror.undisturbed():
        if mirror.log_number != number or start >= mirror.log_written:
            return None
        found, nbytes = Found(), min(nbytes, mirror.log_written - start)
        copies = _read(mirror, MetaFile.WAL, start, nbytes)
        found.nbytes = nbytes * len(copies)
        contents = list(copies.values())
        if all(copy == contents[0] for copy in contents[1:]):
            return found
        at = 0
        while at < nbytes:
            unit = wal.HEADER_BYTES if start + at == 0 else FRAME_BYTES
            parts = {member: copy[at : at + unit] for member, copy in copies.items()}
            if len(set(parts.values())) > 1:
                good = _unit_good(mirror, start + at)
                _decide(mirror, MetaFile.WAL, start + at, parts, good, heal, found)
            at += unit
        return found


def _unit_good(mirror: Mirror, offset: int) -> Good:
    """The CRC of each page in the log is in memory; headers are as most have them."""
    if offset == 0:
        return lambda data: len(data) == wal.HEADER_BYTES
    frame = (offset - wal.HEADER_BYTES) // FRAME_BYTES

    def good(data: bytes) -> bool:
        page = data[wal.FRAME_HEADER_BYTES :]
        return len(data) == FRAME_BYTES and mirror.is_logged(frame, page)

    return good


def _read(mirror: Mirror, file: MetaFile, offset: int, nbytes: int) -> dict[int, bytes]:
    """By member; what can't be read is empty."""
    copies: dict[int, bytes] = {}
    for member_id, member in mirror.members.items():
        try:
            copies[member_id] = member.meta_read(file, offset, nbytes)
        except MemberError:
            copies[member_id] = b""
    return copies


def _decide(
    mirror: Mirror,
    file: MetaFile,
    offset: int,
    copies: dict[int, bytes],
    good: Good,
    heal: bool,
    found: Found,
) -> None:
    """Promise 1."""
    votes = Counter(copy for copy in copies.values() if good(copy)).most_common(2)
    if not votes or (len(votes) == 2 and votes[0][1] == votes[1][1]):
        found.undecided += 1
        why = "differs, and nothing tells which is right" if votes else "is damaged everywhere"
        mirror.on_event("MetadataBad", -1, f"byte {offset} of {file.value} {why}")
        return
    right = votes[0][0]
    for member, copy in copies.items():
        if copy == right:
            continue
        found.wrong[member] = found.wrong.get(member, 0) + 1
        reason = DIFFERS if good(copy) else BAD
        if heal:
            mirror.heal(member, file, offset, right, reason)
            found.healed[member] = found.healed.get(member, 0) + (member in mirror.members)
        else:
            mirror.on_event(
                "MetadataBad", member, f"metadata at byte {offset} of {file.value}: {reason}"
            )
