"""The metadata files on all members at once: one database and one write-ahead log, kept as copies.

SQLite's writes never reach a member from within SQLite. They go into a queue of *batches* (a
batch: writes to one of the two files with nothing in between that must come after), reads look
into the queue first, and `_drain` alone takes batches to the members, in order, by worker threads.
So the event loop waits for no member when it writes (but for syncs that are over sooner than a
thread could be woken: `at_once`), and the rules of order are those of one function, whoever calls
it and whenever:

 A. Before a write to the database file, all earlier writes to the log are synced.
 B. Before the log is begun anew (header rewritten, or truncated), all writes to the database are
    synced.
 C. Before a frame is written behind a new header, the old header is gone from every member (the new
    one, or the truncation, is synced).
 D. Before the log is begun anew, every loss of a member is recorded in the labels of the others.

A and B are SQLite's own; its xSync calls, which would block, are ignored. SQLite knows C as well
("otherwise an out-of-order write following a WAL restart could result in database corruption").
Without C a member could keep the old header and the old frames up to where the new ones begin to
lie: a valid beginning of the old log, to be replayed over a database that is newer.
D is for a member that failed when others did not. While the log goes on, it holds all that this
member may have missed, and a crash does no harm even if nobody remembers the failure. Once the log
is begun anew that is no longer so: then its label must say that it is not to be believed.

What follows, and what is promised:
 1. When `sync_wal` returns, every commit made before it was called survives a crash and the loss of
    all members but one.
 2. After a crash, `logs.choose` finds the last synced commit or a later one, in full; see there.
 3. A page is believed only if its checksum matches: each page of the database ends with a CRC-32C
    of itself and its number (SQLite leaves 8 bytes at its end); the CRC of each page in the log is
    kept in memory. A bad copy is replaced by a good one and an event says so.
 4. A member that fails to write or sync is out (`failed`), and `on_failed` is called at once, in
    whichever thread noticed. It returns True if it recorded the loss; else the caller of a sync
    does so before telling anyone that something is durable, and calls `recorded`. Where D needs
    that first, LossUnrecorded is raised, with nothing forgotten: record and sync again.
 5. Read-only, nothing is written to a member: the queue just stays.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from raidfs import native, wal
from raidfs.errors import (
    FormatError,
    LossUnrecorded,
    MemberError,
    MemberFull,
    OutOfSpace,
    RaidfsError,
)
from raidfs.raid.crew import Crew
from raidfs.raid.member import Member, MetaFile
from raidfs.store import logs
from raidfs.store.asking import Asking
from raidfs.store.batches import (
    FRAME_BYTES,
    PAGE_BYTES,
    Batch,
    page_good,
    sealed_page,
    unit_at,
)

QUEUE_BYTES_MAX = 64 << 20
SMALL_BYTES_MAX = 256 << 10  # of writes that take no time beside that of a sync
_ZEROS = bytes(PAGE_BYTES)

OnEvent = Callable[[str, int, str], None]  # name, member id, text
OnFailed = Callable[[int, str], bool | None]  # member id, reason -> the loss is recorded


@dataclass(frozen=True, slots=True)
class MirrorStatistics:
    """Counts since the mirror was opened."""

    queued_bytes: int
    written_bytes: int  # of each member
    syncs: int  # of each member
    healed_pages: int


class Mirror:
    """The two metadata files over `members`; see the module. Members are not closed here."""

    def __init__(
        self,
        members: dict[int, Member],
        *,
        read_only: bool = False,
        on_event: OnEvent | None = None,
        on_failed: OnFailed | None = None,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        assert members
        self.read_only = read_only
        self.asking = Asking()
        self.failed: dict[int, str] = {}
        self.broken: str | None = None  # no member is left, or a loss could not be recorded
        self.db_bytes = 0
        self.wal_bytes = 0
        self.log_written = 0  # of wal_bytes, what isn't only in the queue
        self.log_number = 0  # times that the log was begun anew
        self._live = dict(members)  # replaced, never changed
        self._unrecorded: set[int] = set()
        self._log_readers: list[int] | None = None  # members whose log is known good; None: all
        self.on_event: OnEvent = on_event or (lambda name, member, text: None)
        self.on_failed: OnFailed = on_failed or (lambda member, reason: True)
        self._queue: list[Batch] = []
        self._queued_bytes = 0
        self._queue_bytes_max = queue_bytes_max
        self._mutex = threading.Lock()  # the queue and the set of members; held for moments
        self._draining = threading.Lock()  # whoever writes to members
        self._crew = Crew(len(members), "metadata")
        self._unsynced = {MetaFile.DB: False, MetaFile.WAL: False}
        self.rewritten: set[int] | None = None  # pages of the database, for admit.py
        self._header_on_members = False  # of a log that was begun
        self._log_crcs = array("I")  # of the page in frame i + 1
        self._first_page: bytes | None = None  # from the log, in case no database copy has it whole
        self._written_bytes = self._syncs = self._healed = 0
        self._wal_limit = min(m.meta_limit(MetaFile.WAL) for m in members.values())
        try:
            self._open_copies()
        except BaseException:
            self._crew.close()
            raise

    def _open_copies(self) -> None:
        """Decide which log to believe, and give every member that one (not if read-only)."""
        choice = logs.choose(self._live, PAGE_BYTES, page_good, self.lose)
        while choice.best is not None and choice.source not in self._live:
            choice = logs.choose(self._live, PAGE_BYTES, page_good, self.lose)
        if not self.read_only:
            logs.spread(choice, self._live, self.lose)
        self._header_on_members = choice.best is not None
        self.wal_bytes = self.log_written = choice.committed_bytes
        self._log_readers = choice.readers if self.read_only else None
        self._log_crcs = array("I", choice.page_crcs)
        self._first_page = choice.first_page
        sizes = []
        for member_id, member in self._live.items():
            try:
                sizes.append(member.meta_size(MetaFile.DB))
            except MemberError as error:
                self.lose(member_id, str(error))
        if choice.best is not None:
            sizes.append(choice.best.committed_pages * PAGE_BYTES)
        self.db_bytes = max(sizes, default=0) // PAGE_BYTES * PAGE_BYTES

    @property
    def members(self) -> dict[int, Member]:
        """Those that still take part."""
        return self._live

    def close(self) -> None:
        """Ends the threads; what was not synced may be lost, as in a crash."""
        self._crew.close()

    def statistics(self) -> MirrorStatistics:
        return MirrorStatistics(self._queued_bytes, self._written_bytes, self._syncs, self._healed)

    def limit_bytes(self, file: MetaFile) -> int:
        """The most that the file may come to have, on the member that has least room. One that
        can't tell is passed over: whether it is lost, the next write to it says."""
        limits: list[int] = []
        unanswered: MemberError | None = None
        for member_id, member in self._live.items():
            try:
                limits.append(self.asking.limit(member_id, member, file))
            except MemberError as error:
                unanswered = error
        if unanswered is not None and not limits:
            raise unanswered
        limit = min(limits)
        if file is MetaFile.WAL:
            self._wal_limit = limit
        return limit

    def wal_room(self) -> tuple[int, int]:
        """(used, limit) of the log in bytes, with the limit as last asked for."""
        return self.wal_bytes, self._wal_limit

    # -- what SQLite calls ------------------------------------------------------------------------

    def read_db(self, offset: int, nbytes: int) -> bytes:
        """Bytes within one page; short at the end of the file."""
        start = offset - offset % PAGE_BYTES
        assert offset + nbytes <= start + PAGE_BYTES
        page = self._queued(MetaFile.DB, start)
        if page is None:
            page = self.page_written(start) if start < self.db_bytes else b""
        return page if nbytes == PAGE_BYTES else page[offset - start : offset - start + nbytes]

    def write_db(self, offset: int, page: bytes) -> None:
        assert offset % PAGE_BYTES == 0
        self._enqueue(MetaFile.DB, offset, sealed_page(page, offset))
        self.db_bytes = max(self.db_bytes, offset + PAGE_BYTES)

    def truncate_db(self, nbytes: int) -> None:
        """Only the size that SQLite sees changes: what lies beyond doesn't matter to it."""
        self.db_bytes = nbytes

    def read_wal(self, offset: int, nbytes: int) -> bytes:
        """Any bytes; short at the end of the file. Most often the page of a frame."""
        parts = []
        while nbytes > 0:
            start, unit_bytes = unit_at(offset)
            data = self._queued(MetaFile.WAL, start)
            if data is None:
                unit_bytes = min(unit_bytes, self.wal_bytes - start)
                data = self.log_unit(start, unit_bytes) if unit_bytes > 0 else b""
            data = data[offset - start :][:nbytes]
            if not data:
                break
            parts.append(data)
            offset, nbytes = offset + len(data), nbytes - len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_wal(self, offset: int, data: bytes) -> None:
        nbytes = len(data)
        end = offset + nbytes
        if end > self._wal_limit:
            raise OutOfSpace("the metadata log has no room for this change")
        if offset == 0:
            assert nbytes == wal.HEADER_BYTES
            self._begin_log(Batch(MetaFile.WAL, begins=True, writes={0: data}))
        else:
            frame, within = divmod(offset - wal.HEADER_BYTES, FRAME_BYTES)
            if within == wal.FRAME_HEADER_BYTES:
                assert nbytes == PAGE_BYTES
                crc, crcs = native.crc32c(data), self._log_crcs
                if frame == len(crcs):
                    crcs.append(crc)
                else:
                    crcs[frame] = crc
            else:
                assert within == 0 and nbytes == wal.FRAME_HEADER_BYTES
            self._enqueue(MetaFile.WAL, offset, data)
        if end > self.wal_bytes:
            self.wal_bytes = end

    def truncate_wal(self) -> None:
        """To nothing."""
        if self.wal_bytes:
            self._begin_log(Batch(MetaFile.WAL, begins=True, empties=True))

    # -- the queue --------------------------------------------------------------------------------

    def _begin_log(self, batch: Batch) -> None:
        with self._mutex:
            self._queue.append(batch)
            self._queued_bytes += sum(map(len, batch.writes.values()))
        self.log_number += 1
        self._log_crcs = array("I")
        self.wal_bytes = 0
        self._first_page = None

    def _enqueue(self, file: MetaFile, offset: int, data: bytes) -> None:
        with self._mutex:
            last = self._queue[-1] if self._queue else None
            if last is None or last.taken or last.file is not file or last.empties:
                last = Batch(file)
                self._queue.append(last)
            self._queued_bytes += len(data)
            if offset in last.writes:
                self._queued_bytes -= len(last.writes[offset])
            last.writes[offset] = data
        if self._queued_bytes > self._queue_bytes_max and not self.read_only:
            self._drain(everything=True)

    def _queued(self, file: MetaFile, offset: int) -> bytes | None:
        """What the newest batch that has it says of the bytes there; b"" if they are gone."""
        if not self._queue:  # batches leave it when they are on the members
            return None
        with self._mutex:
            for batch in reversed(self._queue):
                if batch.file is file:
                    data = batch.writes.get(offset)
                    if data is not None:
                        return data
                    if batch.begins:
                        return b""
        return None

    # -- taking the queue to the members ----------------------------------------------------------

    @property
    def at_once(self) -> bool:
        """Whether `sync_wal` would be through sooner than a thread could be woken for it: it has a
        few pages to append to the log, and members whose syncs took no time lately."""
        if not self._crew.quick or self._draining.locked():
            return False
        with self._mutex:
            small = self._queued_bytes <= SMALL_BYTES_MAX and not self._unsynced[MetaFile.WAL]
            return small and len(self._queue) == 1 and not self._queue[0].begins

    def sync_wal(self) -> None:
        """Promise 1. Blocks; from any thread. MemberError when no member is left."""
        if self.read_only:
            return
        with self._draining:
            self._drain_locked(everything=False, sync_wal=True)
            self._sync(MetaFile.WAL)

    def sync_db(self) -> None:
        """All that was queued is on the members and synced. Blocks; from any thread."""
        if self.read_only:
            return
        with self._draining:
            self._drain_locked(everything=True)
            self._sync(MetaFile.WAL)
            self._sync(MetaFile.DB)

    def _drain(self, *, everything: bool) -> None:
        with self._draining:
            self._drain_locked(everything=everything)

    def _drain_locked(self, *, everything: bool, sync_wal: bool = False) -> None:
        """In order: all batches, or those up to the last one of the log. `sync_wal`: that one may
        be synced in the same go."""
        assert not self.read_only
        with self._mutex:
            count = len(self._queue)
            while not everything and count and self._queue[count - 1].file is MetaFile.DB:
                count -= 1
        for number in range(count):
            if self.broken is not None:
                raise MemberError(self.broken)
            with self._mutex:
                batch = self._queue[0]
                batch.taken = True
            self._apply(batch, sync=sync_wal and number == count - 1)
            with self._mutex:
                self._queue.pop(0)
                self._queued_bytes -= sum(map(len, batch.writes.values()))

    def _apply(self, batch: Batch, sync: bool) -> None:
        """One batch to all members, after whatever rules A, B and C demand."""
        if batch.file is MetaFile.DB:
            self._sync(MetaFile.WAL)  # A
        elif batch.begins:
            self._sync(MetaFile.DB)  # B
            if self._unrecorded:  # D
                lost = ", ".join(map(str, sorted(self._unrecorded)))
                raise LossUnrecorded(f"the loss of member {lost} is not in the labels yet")
            if batch.empties:
                self._each(lambda member: member.meta_truncate(MetaFile.WAL, 0))
                self._header_on_members = False
                self._sync(MetaFile.WAL, surely=True)  # C
            elif self._header_on_members:
                self._write(MetaFile.WAL, [(0, batch.writes[0])])
                self._sync(MetaFile.WAL)  # C
            else:
                self._header_on_members = True
        self._write(batch.file, list(batch.runs()), sync)
        if batch.file is MetaFile.WAL:
            end = max((offset + len(data) for offset, data in batch.runs()), default=0)
            self.log_written = end if batch.begins else max(end, self.log_written)

    def _write(self, file: MetaFile, runs: list[tuple[int, bytes]], sync: bool = False) -> None:
        """`sync`: each member's copy of the file, too, as soon as it is written."""
        nbytes = sum([len(data) for _, data in runs])

        def write(member: Member) -> None:
            last = len(runs) - sync
            for offset, data in runs[:last]:
                member.meta_write(file, offset, data)
            for offset, data in runs[last:]:
                member.meta_write_synced(file, offset, data)

        if self.rewritten is not None and file is MetaFile.DB:
            for offset, data in runs:
                self.rewritten.update(range(offset, offset + len(data), PAGE_BYTES))
        if runs:
            self._unsynced[file] = not sync  # first, so that a page healed meanwhile isn't missed
            self._each(write, file if sync else None, small=nbytes <= SMALL_BYTES_MAX)
            self._written_bytes += nbytes

    def _sync(self, file: MetaFile, *, surely: bool = False) -> None:
        if self._unsynced[file] or surely:
            self._unsynced[file] = False  # first, as above
            self._each(lambda member: member.meta_sync(file), file, small=file is MetaFile.WAL)

    def _each(
        self,
        action: Callable[[Member], None],
        syncs: MetaFile | None = None,
        *,
        small: bool = False,
    ) -> None:
        """Do it on all members. Those that fail are out, unless all do. `syncs`: the file that is
        synced by it, or isn't if this raises."""
        if self.broken is not None:
            raise MemberError(self.broken)
        errors: dict[int, MemberError] = {}

        def attempt(member: tuple[int, Member]) -> None:
            try:
                action(member[1])
            except MemberError as error:
                errors[member[0]] = error

        try:
            self._crew.map(attempt, list(self._live.items()), small)
            if errors:
                self._give_up(errors)
        except BaseException:
            if syncs is not None:
                self._unsynced[syncs] = True
            raise
        if syncs is not None:
            self._syncs += 1

    def _give_up(self, errors: dict[int, MemberError]) -> None:
        """These members failed at what the others did."""
        lost = [member_id for member_id in errors if member_id in self._live]
        if lost and len(lost) == len(self._live):
            first = errors[lost[0]]
            if not all(isinstance(errors[member_id], MemberFull) for member_id in lost):
                self.broken = f"no member is left that takes metadata: {first}"
                raise MemberError(self.broken) from first
            raise first  # nothing was forgotten: the batch stays and can be tried again
        for member_id in lost:
            self.lose(member_id, str(errors[member_id]))

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Inside, all that was queued is on the members and synced, and nothing is written. Blocks;
        from any thread."""
        with self._draining:
            self._drain_locked(everything=True)
            self._sync(MetaFile.WAL)
            self._sync(MetaFile.DB)
            yield

    def undisturbed(self) -> contextlib.AbstractContextManager[object]:
        """Inside, nothing is written to members but by `heal`. Blocks; any thread; for moments."""
        return self._draining

    def join(self, member_id: int, member: Member) -> None:
        """While all is `still`: the member has all of it, and takes part from here on."""
        old = self._crew
        with self._mutex:
            self.failed.pop(member_id, None)
            self._unrecorded.discard(member_id)
            self._live = {**self._live, member_id: member}
            self._crew = Crew(len(self._live), "metadata")
        old.close()
        self.limit_bytes(MetaFile.WAL)

    def leave(self, member_id: int) -> None:
        """It takes no part any more, and that is to be said in the labels: then call `recorded`."""
        with self._mutex:
            if member_id in self._live:
                self._live = {m: member for m, member in self._live.items() if m != member_id}
                self._unrecorded.add(member_id)

    def recorded(self, member_id: int) -> None:
        """The labels say that the member is lost."""
        with self._mutex:
            self._unrecorded.discard(member_id)

    def lose(self, member_id: int, reason: str, *, evident: bool = False) -> None:
        """The member is out from here on. MemberError if it was the last one. `evident`: each later
        opening would notice, too, so that rule D is met."""
        with self._mutex:
            if member_id in self.failed or member_id not in self._live:
                return
            if len(self._live) == 1:
                self.broken = f"no member is left that holds metadata: {reason}"
                raise MemberError(self.broken)
            self.failed[member_id] = reason
            self._live = {m: member for m, member in self._live.items() if m != member_id}
            if not evident:
                self._unrecorded.add(member_id)
        try:
            if self.on_failed(member_id, reason):
                self.recorded(member_id)
        except RaidfsError as error:
            self.broken = f"the loss of member {member_id} can't be recorded: {error}"
            raise

    # -- reading from members ---------------------------------------------------------------------

    def page_written(self, offset: int) -> bytes:
        """A page of the database as it is on the members, healed. Nobody may be writing it."""
        page = self._first_good(
            MetaFile.DB, offset, PAGE_BYTES, list(self._live), lambda data: page_good(data, offset)
        )
        if page is not None:
            return page
        if offset == 0 and self._first_page is not None:
            return self._first_page
        if all(self._is_hole(member, offset) for member in self._live.values()):
            return _ZEROS  # SQLite doesn't write pages that became free before they were written
        raise FormatError(
            f"page {offset // PAGE_BYTES + 1} of the metadata database is damaged on all members"
        )

    @staticmethod
    def _is_hole(member: Member, offset: int) -> bool:
        try:
            return not any(member.meta_read(MetaFile.DB, offset, PAGE_BYTES))
        except MemberError:
            return False

    def log_unit(self, offset: int, nbytes: int) -> bytes:
        """What was written at once into the log, below `log_written`."""
        frame, within = divmod(offset - wal.HEADER_BYTES, FRAME_BYTES)
        is_page = within == wal.FRAME_HEADER_BYTES and offset and frame < len(self._log_crcs)

        def good(data: bytes) -> bool:
            if len(data) != nbytes:
                return False
            return not is_page or native.crc32c(data) == self._log_crcs[frame]

        readers = self._log_readers if self._log_readers is not None else list(self._live)
        data = self._first_good(MetaFile.WAL, offset, nbytes, readers, good)
        if data is None:
            raise FormatError("the metadata log is damaged on all members")
        return data

    def is_logged(self, frame: int, page: bytes) -> bool:
        """That is the page in frame `frame`, from 0, of the log."""
        return frame < len(self._log_crcs) and native.crc32c(page) == self._log_crcs[frame]

    def _first_good(
        self,
        file: MetaFile,
        offset: int,
        nbytes: int,
        readers: list[int],
        good: Callable[[bytes], bool],
    ) -> bytes | None:
        """The bytes from the first member that has them; those that were asked before are healed.

        Safe beside `_drain`: bytes that it is about to write are in the queue, and would have been
        found there.
        """
        bad: list[tuple[int, str]] = []
        for member_id, data in self.asking.each(readers, self._live, file, offset, nbytes):
            if isinstance(data, MemberError):
                bad.append((member_id, str(data)))
            elif good(data):
                for other, reason in bad:
                    self.heal(other, file, offset, data, reason)
                return data
            else:
                bad.append((member_id, "its checksum did not match"))
        return None

    def heal(self, member_id: int, file: MetaFile, offset: int, data: bytes, reason: str) -> None:
        """That copy is bad; nobody else may be writing there."""
        text = f"metadata at byte {offset} of {file.value}: {reason}"
        member = self._live.get(member_id)
        if self.read_only or member is None:
            self.on_event("MetadataBad", member_id, text)
            return
        self._unsynced[file] = True
        try:
            member.meta_write(file, offset, data)
        except MemberError as error:
            self.lose(member_id, str(error))
            return
        self._healed += 1
        self.on_event("MetadataHealed", member_id, text)

    def scrub(self) -> Iterator[tuple[int, str]]:
        """(member, what is wrong): every page of every copy of the database, for check.

        A page that the log holds anew may be anything: the next opening overwrites it.
        """
        anew = self._logged_pages()
        for member_id, member in list(self._live.items()):
            for number in range(1, self.db_bytes // PAGE_BYTES + 1):
                if number in anew:
                    continue
                offset = (number - 1) * PAGE_BYTES
                try:
                    page = member.meta_read(MetaFile.DB, offset, PAGE_BYTES)
                except MemberError as error:
                    yield member_id, str(error)
                    break
                if not page_good(page, offset) and any(page):
                    yield member_id, f"page {number} of the metadata database is damaged"

    def _logged_pages(self) -> set[int]:
        """Numbers of the database pages in the committed part of the log."""
        frames = range(wal.HEADER_BYTES, self.wal_bytes, FRAME_BYTES)
        heads = (self.read_wal(offset, wal.FRAME_HEADER_BYTES) for offset in frames)
        return {int.from_bytes(head[:4], "big") for head in heads}
