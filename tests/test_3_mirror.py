"""The mirrored metadata files: the log's scanner, order of writes and syncs, bad members."""

import random
import struct

import apsw
import pytest
from mirrored import DB, WAL, Opened, Workload, settled, table

from raidfs import wal
from raidfs.errors import FormatError, LossUnrecorded, MemberError, MemberFull
from raidfs.store.batches import FRAME_BYTES, PAGE_BYTES, page_good, sealed_page

# -- the scanner -----------------------------------------------------------------------------------


def state_by_words(data):
    """The reference: (frames committed, bytes of them) by the text of SQLite's file format."""
    if len(data) < 32:
        return None
    magic, version, page_bytes, _, salt1, salt2, sum1, sum2 = struct.unpack(">8I", data[:32])
    order = {0x377F0682: "<", 0x377F0683: ">"}.get(magic)
    if order is None or version != 3007000:
        return None

    def add(sums, part):
        s1, s2 = sums
        for first, second in struct.iter_unpack(order + "II", part):
            s1 = (s1 + first + s2) & 0xFFFFFFFF
            s2 = (s2 + second + s1) & 0xFFFFFFFF
        return s1, s2

    sums = add((0, 0), data[:24])
    if sums != (sum1, sum2):
        return None
    committed, frames, at = 0, 0, 32
    while at + 24 + page_bytes <= len(data):
        page, pages, f1, f2, c1, c2 = struct.unpack(">6I", data[at : at + 24])
        sums = add(add(sums, data[at : at + 8]), data[at + 24 : at + 24 + page_bytes])
        if page == 0 or (f1, f2) != (salt1, salt2) or (c1, c2) != sums:
            break
        frames, at = frames + 1, at + 24 + page_bytes
        committed = frames if pages else committed
    return committed, 32 + committed * (24 + page_bytes) if committed else 0


def a_log():
    """A log with leftovers of its generation before, and the place where these begin."""
    with Opened(numbers=(0,)) as opened:
        load = Workload(opened, random.Random(5))
        load.run(30)
        opened.checkpoint()
        load.transaction(3)
        load.transaction(5)
        opened.mirror.sync_db()
        return bytes(opened.members[0].files[WAL]), opened.mirror.wal_bytes


def scanned(data):
    state = wal.scan(lambda offset, nbytes: data[offset : offset + nbytes])
    return state if state is None else (state.committed, state.committed_bytes)


def test_scan_finds_what_sqlite_committed():
    data, used = a_log()
    assert used < len(data)
    assert scanned(data) == state_by_words(data) == ((used - 32) // FRAME_BYTES, used)


def test_scan_agrees_with_the_reference_on_damaged_logs():
    data, used = a_log()
    rng = random.Random(6)
    for _ in range(60):
        bad = bytearray(data[: rng.choice((rng.randrange(used), used, len(data)))])
        if bad and rng.random() < 0.8:
            bad[rng.randrange(min(len(bad), used))] ^= 1 << rng.randrange(8)
        assert scanned(bytes(bad)) == state_by_words(bytes(bad))


@pytest.mark.parametrize("data", [b"", bytes(32), b"\x37\x7f\x06\x82" + bytes(100), b"x" * 5000])
def test_scan_of_no_log(data):
    assert scanned(data) is None


def test_scan_knows_page_one():
    data, _ = a_log()
    state = wal.scan(lambda offset, nbytes: data[offset : offset + nbytes])
    frame = state.first_page_frame
    if frame:
        at = wal.page_offset(frame, PAGE_BYTES)
        assert data[at : at + 15] == b"SQLite format 3"


# -- order -----------------------------------------------------------------------------------------


def check_order(world):
    """Rules A, B and C, from the log of what each member was asked to do."""
    numbers = {record.key[0] for record in world.log if record.kind != "mark"}
    for number in numbers:
        unsynced = {DB: False, WAL: False}
        new_header = False  # written, not synced
        had_header = False
        for record in world.log:
            owner, name = record.key
            if owner != number:
                continue
            if record.kind == "sync":
                unsynced[name] = False
                new_header = False if name == WAL else new_header
            elif name == DB:
                assert not unsynced[WAL], "A"
                unsynced[DB] = True
            else:
                begins = record.kind == "truncate" or record.offset == 0
                if begins:
                    assert not unsynced[DB], "B"
                frames = record.kind == "write" and record.offset + len(record.data) > 32
                if frames and had_header:
                    assert not new_header, "C"
                if begins and len(record.data) <= 32:
                    new_header, had_header = True, record.kind == "write" or had_header
                had_header = had_header or record.offset == 0
                unsynced[WAL] = True


@pytest.mark.parametrize("seed", range(4))
def test_order_of_writes_and_syncs(seed):
    with Opened(
        cache_bytes=(1 << 16, 1 << 20)[seed % 2], queue_bytes_max=(1 << 18, 1 << 26)[seed // 2]
    ) as o:
        Workload(o, random.Random(seed)).run(120)
        o.mirror.sync_db()
        check_order(o.world)
        starts = [
            r for r in o.world.log if r.key == (0, WAL) and r.kind == "write" and r.offset == 0
        ]
        assert len(starts) > 6  # the log was begun anew several times
        assert len({bytes(m.files[DB]) for m in o.members.values()}) == 1


def test_sqlite_itself_touches_no_member():
    with Opened() as opened:
        load = Workload(opened, random.Random(1))
        before = len([r for r in opened.world.log if r.kind != "mark"])
        for _ in range(10):
            load.transaction(3)
        opened.checkpoint()
        load.transaction(3)
        assert len([r for r in opened.world.log if r.kind != "mark"]) == before
        assert opened.mirror.statistics().queued_bytes > 0
        opened.mirror.sync_db()
        assert opened.mirror.statistics().queued_bytes == 0
        assert table(opened.db) == load.states[-1]


def test_sync_wal_leaves_the_checkpoint_for_later():
    with Opened() as opened:
        load = Workload(opened, random.Random(2))
        load.transaction(5)
        opened.checkpoint()
        before = len(opened.world.log)
        opened.mirror.sync_wal()
        assert {r.key[1] for r in opened.world.log[before:] if r.kind == "write"} == {WAL}


def test_a_full_queue_is_drained():
    with Opened(queue_bytes_max=1 << 16) as opened:
        load = Workload(opened, random.Random(3))
        for _ in range(20):
            load.transaction(20)
        assert opened.mirror.statistics().queued_bytes <= 1 << 17


# -- bad copies ------------------------------------------------------------------------------------


def test_page_trailer():
    page = sealed_page(random.Random(0).randbytes(PAGE_BYTES), 8192)
    assert page_good(page, 8192)
    assert not page_good(page, 4096)  # a page that was written elsewhere
    assert not page_good(page[:-1], 8192)
    assert not page_good(bytes(PAGE_BYTES), 8192)


def filled():
    with Opened() as opened:
        load = Workload(opened, random.Random(7))
        for _ in range(5):
            load.transaction(20)
        settled(opened)
        return opened.content(), load.states


def test_bad_pages_are_healed():
    files, states = filled()
    pages = len(files[0, DB]) // PAGE_BYTES
    for page in range(pages):  # each page is good on one member only
        for number in {0, 1, 2} - {page % 3}:
            data = bytearray(files[number, DB])
            data[page * PAGE_BYTES + page % PAGE_BYTES] ^= 0x55
            files[number, DB] = bytes(data)
    with Opened(files) as opened:
        assert table(opened.db) == states[-1]
        assert opened.db.execute("PRAGMA integrity_check").get == "ok"
        healed = [event for event in opened.events if event[0] == "MetadataHealed"]
        assert len(healed) == opened.mirror.statistics().healed_pages > pages // 2
        opened.mirror.sync_db()
        assert table(opened.db) == states[-1]


def test_a_page_bad_everywhere_is_an_error():
    files, _ = filled()
    for number in range(3):
        files[number, DB] = files[number, DB][:PAGE_BYTES] + b"x" * (
            len(files[number, DB]) - PAGE_BYTES
        )
    with Opened(files) as opened, pytest.raises((FormatError, apsw.Error)):
        table(opened.db)


def test_bad_log_pages_are_healed():
    with Opened(cache_bytes=1 << 15) as opened:
        load = Workload(opened, random.Random(8))
        for _ in range(4):
            load.transaction(20)
        opened.mirror.sync_wal()
        for number in (0, 1):
            opened.members[number].files[WAL][5000:] = bytes(
                len(opened.members[number].files[WAL]) - 5000
            )
        opened.checkpoint()
        opened.mirror.sync_db()
        assert table(opened.db) == load.states[-1]
        assert any(event[0] == "MetadataHealed" for event in opened.events)


def test_read_errors_are_healed_or_end_the_member():
    files, states = filled()
    with Opened(files) as opened:
        opened.members[0].fail_reads = True
        opened.members[1].fail_reads = opened.members[1].fail_writes = True
        assert table(opened.db) == states[-1]
        assert set(opened.mirror.failed) == {1}


# -- members that fail -----------------------------------------------------------------------------


def test_a_failing_member_is_out_and_said_so_first():
    with Opened() as opened:
        load = Workload(opened, random.Random(9))
        said = []
        opened.mirror.on_failed = lambda member, reason: said.append((member, reason)) or True
        opened.members[1].fail_writes = True
        load.transaction(3)
        opened.mirror.sync_wal()
        assert [member for member, _ in said] == [1] == list(opened.mirror.failed)
        opened.checkpoint()
        load.transaction(3)
        opened.mirror.sync_db()
        files = {key: data for key, data in opened.content().items() if key[0] != 1}
    with Opened(files, (0, 2)) as again:
        assert table(again.db) == load.states[-1]


def test_the_log_is_not_begun_anew_before_a_loss_is_recorded():
    with Opened() as opened:
        load = Workload(opened, random.Random(10))
        opened.mirror.on_failed = lambda member, reason: None
        load.transaction(3)
        opened.mirror.sync_db()
        opened.members[2].fail_writes = True
        opened.checkpoint()
        opened.mirror.sync_db()  # the database alone may go on
        load.transaction(3)
        with pytest.raises(LossUnrecorded):
            opened.mirror.sync_wal()
        opened.members[2].fail_writes = False
        unaware = opened.content()  # a crash here: nobody knows that member 2 missed something
        opened.mirror.recorded(2)
        opened.mirror.sync_wal()
        assert table(opened.db) == load.states[-1]
    with Opened(unaware) as again:
        assert table(again.db) == load.states[1]
        settled(again)


def test_without_any_member_it_is_an_error_for_good():
    with Opened() as opened:
        load = Workload(opened, random.Random(11))
        load.transaction(3)
        for member in opened.members.values():
            member.fail_writes = True
        with pytest.raises(MemberError):
            opened.mirror.sync_wal()
        for member in opened.members.values():
            member.fail_writes = False
        with pytest.raises(MemberError):
            opened.mirror.sync_wal()
        assert opened.mirror.broken


def test_full_members_can_be_tried_again():
    with Opened() as opened:
        load = Workload(opened, random.Random(12))
        load.transaction(3)
        writes = {}
        for number, member in opened.members.items():
            writes[number] = member.meta_write

            def full(file, offset, data, path=member.path):
                raise MemberFull("full", path)

            member.meta_write = full
        with pytest.raises(MemberFull):
            opened.mirror.sync_wal()
        for number, member in opened.members.items():
            member.meta_write = writes[number]
        opened.mirror.sync_wal()
        assert not opened.mirror.failed
        files = opened.content()
    with Opened(files) as again:
        assert table(again.db) == load.states[-1]


def test_read_only_writes_nothing():
    with Opened() as opened:
        load = Workload(opened, random.Random(13))
        for _ in range(3):
            load.transaction(5)
            opened.mirror.sync_wal()
        files = opened.content()
    files[1, WAL] = files[1, WAL][: FRAME_BYTES + 60]
    files[0, WAL] = b""
    with Opened(files, read_only=True) as again:
        assert table(again.db) == load.states[-1]
        again.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        again.db.execute("DELETE FROM t")
        again.mirror.sync_db()
        assert table(again.db) == {}
        assert not again.world.log
        assert again.content() == files
