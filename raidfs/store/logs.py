"""Which of several copies of the metadata log to believe after a crash, and making them equal.

States a crash can leave, per member (writes since the last sync of a file are kept, lost or torn,
on each member differently; rules A, B, C are those of mirror.py). A *generation* of the log is
what was written behind one header; a copy *commits* if at least one commit of its generation is
valid in it.

 1. At most one generation has commits that can be found. For a frame of generation G to exist
    anywhere, the header of G-1 must be gone from all members (C). So while a copy still shows G-1,
    no frame of G has been written.
 2. If copies of G commit: all databases hold all of G-1 (B, before G's header), and each copy
    holds a prefix of the commits of G that reaches at least to the last synced one. All are
    prefixes of one sequence. The one with most commits has the newest state and nothing that was
    never committed.
 3. If only copies of G-1 commit (other members already show an empty log, G's header without
    commits, or a torn header): all databases hold all of G-1 (B). Replaying a whole copy of G-1
    changes nothing. But a copy of G-1 is only harmless while it is whole: it is, since nothing was
    written over its frames (1).
 4. If no copy commits: all databases hold the last synced commit (B, and any commit since was never
    synced). The logs are emptied.

So: highest checkpoint sequence among the copies that commit, then most commits. By 1 there is only
one sequence, with one exception: a member that failed while G's header was written still shows G-1,
whole, over a database that holds all of G-1; G, which is higher by one, is then copied to it.
A member that missed anything that the log no longer holds isn't among the copies: that it failed
was recorded before the log was begun anew (D).

A torn page of a database is in the log: it was being written from there (A), and the log is begun
anew only when all databases are synced (B). SQLite takes it from the log, and the checkpoint that
follows writes it to all members. One page SQLite reads before it looks at the log is the first, so
`choose` keeps the log's copy of that at hand.

Making the copies equal must itself stand a crash and the loss of the best copy:
 - a copy of the same generation gets the frames that it lacks, behind its own; at every moment it
   keeps the commits that it had;
 - any other copy holds no commit that its member's database lacks (2, 3), or none at all. Its
   header is zeroed and synced, then frames, synced, then the header: a partial copy of G-1, which
   would be replayed over a newer database, is never seen.

The log of an earlier run is never appended to: the opener checkpoints it and empties it first.

Beyond crashes: a member that someone restored from a backup shows an older database, whole in
itself. Each read-write opening raises SQLite's `user_version` on page 1 (its *stamp*) and syncs it
before anything else. A member whose stamp is lower than the highest is lost: by more than one, or
by one while the log doesn't hold page 1 (with it, a crash while stamping explains the difference).

A member may also show the metadata of another volume, under a label of this one: whole in itself,
and perhaps stamped more often. SQLite's `application_id` on page 1 is a *mark* made of the volume's
id; a member with another mark is lost before its log or its stamp is looked at. Where page 1 is
damaged there is no mark, and the page will be healed. 0 tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from raidfs import native, wal
from raidfs.errors import FormatError, MemberError
from raidfs.raid.member import Member, MetaFile

_PIECE_FRAMES = 256
_STAMP_AT = 60  # byte of page 1: SQLite's user_version, big-endian
_MARK_AT = 68  # SQLite's application_id


class Lose(Protocol):
    """How a member is given up (Mirror.lose)."""

    def __call__(self, member_id: int, reason: str, *, evident: bool = False) -> None: ...


GoodPage = Callable[[bytes, int], bool]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was found, and the copy to believe. `best` is None if no copy commits."""

    best: wal.WalState | None
    source: int  # member that holds the best copy
    states: dict[int, wal.WalState | None]
    page_crcs: list[int]  # CRC-32C of the page in each committed frame
    first_page: bytes | None  # page 1 as the log has it

    @property
    def committed_bytes(self) -> int:
        return self.best.committed_bytes if self.best is not None else 0

    @property
    def readers(self) -> list[int]:
        """Members whose copy is as good as the best one, that one first."""
        if self.best is None:
            return []
        equal = [m for m, state in self.states.items() if state is not None and state == self.best]
        return [self.source, *(m for m in equal if m != self.source)]


def choose(members: dict[int, Member], page_bytes: int, good: GoodPage, lose: Lose) -> Choice:
    """Scan all copies; see the module. `good(page, offset)` knows a whole database page."""
    states: dict[int, wal.WalState | None] = {}
    foreign = _lose_foreign(members, page_bytes, good, lose)
    for member_id, member in members.items():
        if member_id in foreign:
            continue
        try:
            states[member_id] = wal.scan(_reader(member))
        except MemberError as error:
            lose(member_id, str(error))
    committing = {m: s for m, s in states.items() if s is not None and s.committed}
    best, source = None, -1
    for member_id, state in committing.items():
        if best is None or (state.sequence, state.committed) > (best.sequence, best.committed):
            best, source = state, member_id
    if best is None:
        choice = Choice(None, source, states, [], None)
    else:
        if best.page_bytes != page_bytes:
            raise FormatError(f"the metadata log has pages of {best.page_bytes} bytes")
        choice = _read_best(members, best, source, states)
    _lose_stale({m: members[m] for m in states}, choice, page_bytes, good, lose)
    return choice


def volume_mark(volume_id: str) -> int:
    """As SQLite's application_id, of which 31 bits can be had. 0: it tells nothing."""
    return (native.crc32c(volume_id.encode()) & 0x7FFFFFFF or 1) if volume_id else 0


def _lose_foreign(
    members: dict[int, Member], page_bytes: int, good: GoodPage, lose: Lose
) -> set[int]:
    """Members with the metadata of another volume."""
    foreign = set()
    for member_id, member in members.items():
        page = _first_page(member, page_bytes, good)
        mark = int.from_bytes(page[_MARK_AT : _MARK_AT + 4], "big") if page is not None else 0
        if mark and member.volume_id and mark != volume_mark(member.volume_id):
            foreign.add(member_id)
    for member_id in foreign:
        lose(member_id, "its metadata are those of another volume", evident=True)
    return foreign


def _first_page(member: Member, page_bytes: int, good: GoodPage) -> bytes | None:
    """Of its database, if it can be had."""
    try:
        page = member.meta_read(MetaFile.DB, 0, page_bytes)
    except MemberError:
        return None
    return page if good(page, 0) else None


def _reader(member: Member) -> Callable[[int, int], bytes]:
    return lambda offset, nbytes: member.meta_read(MetaFile.WAL, offset, nbytes)


def _pieces(member: Member, start: int, end: int, frame_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of whole frames from start to end."""
    for offset in range(start, end, _PIECE_FRAMES * frame_bytes):
        nbytes = min(_PIECE_FRAMES * frame_bytes, end - offset)
        data = member.meta_read(MetaFile.WAL, offset, nbytes)
        if len(data) != nbytes:
            raise MemberError(f"{member.path}: the metadata log became shorter", member.path)
        yield offset, data


def _read_best(
    members: dict[int, Member],
    best: wal.WalState,
    source: int,
    states: dict[int, wal.WalState | None],
) -> Choice:
    frame_bytes = wal.FRAME_HEADER_BYTES + best.page_bytes
    crcs = []
    member = members[source]
    for _, data in _pieces(member, wal.HEADER_BYTES, best.committed_bytes, frame_bytes):
        view = memoryview(data)
        for start in range(wal.FRAME_HEADER_BYTES, len(data), frame_bytes):
            crcs.append(native.crc32c(view[start : start + best.page_bytes]))
    first_page = None
    if best.first_page_frame:
        offset = wal.page_offset(best.first_page_frame, best.page_bytes)
        first_page = member.meta_read(MetaFile.WAL, offset, best.page_bytes)
    return Choice(best, source, states, crcs, first_page)


def _lose_stale(
    members: dict[int, Member], choice: Choice, page_bytes: int, good: GoodPage, lose: Lose
) -> None:
    """Members whose database is of an earlier opening; see the end of the module's text."""
    stamps = {}
    for member_id, member in members.items():
        page = _first_page(member, page_bytes, good)
        if page is not None:  # else reading it will heal it, or not
            stamps[member_id] = int.from_bytes(page[_STAMP_AT : _STAMP_AT + 4], "big")
    newest = max(stamps.values(), default=0)
    lag_max = 1 if choice.first_page is not None else 0
    for member_id, stamp in stamps.items():
        if stamp < newest - lag_max:
            lose(member_id, "its metadata is older than that of the other members", evident=True)


def spread(choice: Choice, members: dict[int, Member], lose: Lose) -> None:
    """Give every member the best copy, or none if there is none."""
    for member_id, member in members.items():
        if member_id == choice.source:
            continue
        try:
            if choice.best is None:
                _empty(member)
            elif choice.states[member_id] != choice.best:
                _copy(choice, member_id, members)
        except MemberError as error:
            lose(member_id, str(error))


def _empty(member: Member) -> None:
    if member.meta_size(MetaFile.WAL):
        member.meta_truncate(MetaFile.WAL, 0)
        member.meta_sync(MetaFile.WAL)


def _copy(choice: Choice, member_id: int, members: dict[int, Member]) -> None:
    best, state, member = choice.best, choice.states[member_id], members[member_id]
    assert best is not None
    source = members[choice.source]
    if state is not None and state.salts == best.salts and state.sequence == best.sequence:
        _write_frames(source, member, max(state.committed_bytes, wal.HEADER_BYTES), best)
        if wal.scan(_reader(member)) == best:
            return
    member.meta_write(MetaFile.WAL, 0, bytes(wal.HEADER_BYTES))
    member.meta_sync(MetaFile.WAL)
    _write_frames(source, member, wal.HEADER_BYTES, best)
    member.meta_write(MetaFile.WAL, 0, source.meta_read(MetaFile.WAL, 0, wal.HEADER_BYTES))
    member.meta_sync(MetaFile.WAL)
    if wal.scan(_reader(member)) != best:
        raise MemberError(f"{member.path}: a copy of the metadata log did not arrive", member.path)


def _write_frames(source: Member, target: Member, start: int, best: wal.WalState) -> None:
    frame_bytes = wal.FRAME_HEADER_BYTES + best.page_bytes
    for offset, data in _pieces(source, start, best.committed_bytes, frame_bytes):
        target.meta_write(MetaFile.WAL, offset, data)
    target.meta_sync(MetaFile.WAL)
