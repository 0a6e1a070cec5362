"""What every kind of member must do: one suite, to be run against each (see test_2_member.py).

A kind comes as a `Maker`: it makes an empty, laid-out member, and opens the same place again.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from raidfs import native
from raidfs.engine import Batch, Engine
from raidfs.errors import MemberBusy, MemberError
from raidfs.raid.label import (
    LABEL_BYTES,
    Label,
    MemberEntry,
    Parameters,
    read_labels,
    write_label,
)
from raidfs.raid.member import Member, MetaFile

CELL = 4096
ZONE_BYTES = 256 * 1024
SLOTS = 8
DB_BYTES = WAL_BYTES = 1 << 20
PARAMETERS = Parameters("5", 3, CELL, ZONE_BYTES, DB_BYTES, WAL_BYTES, 1)


@dataclass
class Maker:
    """kind; make() -> Member, locked, without a label; reopen(read_only, lock) -> Member."""

    kind: str
    make: Callable[[], Member]
    reopen: Callable[..., Member]
    locks: bool = True
    lists_columns: bool = False


def label_of(member_id=0, kind="directory", path="/somewhere", **changes):
    entries = [MemberEntry(i, kind, f"{path}/{i}", SLOTS, 1 << 30) for i in range(3)]
    fields: dict[str, Any] = {
        "volume_id": "ab" * 16,
        "volume_name": "test",
        "member_id": member_id,
        "generation": 1,
        "generation_id": "01" * 8,
        "history": [(1, "01" * 8)],
        "members": entries,
        "parameters": PARAMETERS,
        "next_member": 1 << 10,
    }
    return Label(**(fields | changes))


def cells(count, seed=0):
    content = native.aligned((count, CELL))
    content[:] = np.random.default_rng(seed).integers(0, 256, (count, CELL), dtype=np.uint8)
    return content


def addresses_of(array):
    """Addresses of the cells of a contiguous (n, CELL) array, which must be kept alive."""
    return np.uint64(array.ctypes.data) + np.arange(len(array), dtype=np.uint64) * np.uint64(CELL)


def read(member, zone, column, slot, row, count):
    out = native.aligned((count, CELL))
    member.column_read(zone, column, slot, row * CELL, out.data.cast("B"))
    return out


class Conformance:
    """Subclass it with a fixture `maker`."""

    @pytest.fixture
    def member(self, maker):
        member = maker.make()
        yield member
        member.close()

    def test_knows_its_kind(self, maker, member):
        assert member.kind == maker.kind
        assert not member.read_only

    def test_labels_start_empty_and_are_kept_apart(self, member):
        assert not any(member.read_label(0)) and not any(member.read_label(1))
        first, second = os.urandom(LABEL_BYTES), os.urandom(LABEL_BYTES)
        member.write_label(0, first)
        assert member.read_label(0) == first and not any(member.read_label(1))
        member.write_label(1, second)
        assert (member.read_label(0), member.read_label(1)) == (first, second)

    def test_everything_is_there_after_reopening(self, maker, member):
        content = cells(3)
        write_label(member, label_of())
        member.meta_write(MetaFile.WAL, 0, b"\x37\x7f\x06\x82 and a log")
        page = bytearray(b"SQLite format 3\0".ljust(4096, b"\7"))
        page[16:18] = (4096).to_bytes(2, "big")
        page[28:32] = (3).to_bytes(4, "big")
        member.meta_write(MetaFile.DB, 0, bytes(page))
        member.meta_write(MetaFile.DB, 8192, bytes(4096))
        member.column_create(9, 1, 2, ZONE_BYTES)
        member.column_write(9, 1, 2, 5 * CELL, addresses_of(content), CELL)
        member.column_sync(9, 1, 2)
        member.meta_sync(MetaFile.DB)
        member.meta_sync(MetaFile.WAL)
        member.close()
        again = maker.reopen()
        try:
            assert read_labels(again) == label_of()
            assert again.slots_total == SLOTS and again.zone_bytes == ZONE_BYTES
            assert again.meta_size(MetaFile.DB) == 3 * 4096
            assert again.meta_read(MetaFile.DB, 0, 4096) == bytes(page)
            assert again.meta_read(MetaFile.WAL, 0, 14) == b"\x37\x7f\x06\x82 and a log"[:14]
            assert (read(again, 9, 1, 2, 5, 3) == content).all()
        finally:
            again.close()

    @pytest.mark.parametrize("file", MetaFile)
    def test_metadata_files_behave_as_files(self, member, file):
        assert member.meta_size(file) == 0
        assert member.meta_read(file, 0, 100) == b""
        member.meta_write(file, 0, b"0123456789")
        member.meta_write(file, 20, b"xy")
        assert member.meta_size(file) == 22
        assert member.meta_read(file, 0, 1000) == b"0123456789" + bytes(10) + b"xy"
        assert member.meta_read(file, 21, 5) == b"y"
        assert member.meta_read(file, 22, 5) == b"" == member.meta_read(file, 500, 5)
        member.meta_write(file, 4, memoryview(b"ABC"))
        member.meta_truncate(file, 6)
        assert member.meta_size(file) == 6 and member.meta_read(file, 0, 99) == b"0123AB"
        member.meta_truncate(file, 8)
        assert member.meta_read(file, 0, 99) == b"0123AB\0\0"
        member.meta_sync(file)
        member.meta_truncate(file, 0)
        assert member.meta_size(file) == 0 and member.meta_read(file, 0, 9) == b""
        assert member.meta_limit(file) >= DB_BYTES

    def test_metadata_files_are_two(self, member):
        member.meta_write(MetaFile.DB, 0, b"d" * 5000)
        member.meta_write(MetaFile.WAL, 0, b"w" * 5000)
        member.meta_truncate(MetaFile.WAL, 0)
        assert member.meta_read(MetaFile.DB, 0, 9999) == b"d" * 5000

    def test_columns_keep_what_is_written(self, maker, member):
        content = cells(64)
        for number, (zone, column, slot) in enumerate([(1, 0, 0), (1 << 33, 2, 7), (2, 23, 3)]):
            assert member.column_exists(zone, column, slot) != maker.lists_columns
            member.column_create(zone, column, slot, ZONE_BYTES)
            assert member.column_exists(zone, column, slot)
            part = content[number * 20 : number * 20 + 10]
            member.column_write(zone, column, slot, number * CELL, addresses_of(part), CELL)
            member.column_sync(zone, column, slot)
        for number, (zone, column, slot) in enumerate([(1, 0, 0), (1 << 33, 2, 7), (2, 23, 3)]):
            part = content[number * 20 : number * 20 + 10]
            assert (read(member, zone, column, slot, number, 10) == part).all()

    def test_what_is_cached_is_the_same_or_not_told(self, member):
        content = cells(4)
        member.column_create(5, 1, 4, ZONE_BYTES)
        member.column_write(5, 1, 4, CELL, addresses_of(content), CELL)
        for _ in range(2):
            out = native.aligned(content.shape)
            if member.column_read_cached(5, 1, 4, CELL, out.data.cast("B")):
                assert (out == content).all()
        member.close()
        assert not member.column_read_cached(5, 1, 4, CELL, out.data.cast("B"))

    def test_a_descriptor_reads_the_column(self, member):
        content = cells(4)
        member.column_create(5, 1, 4, ZONE_BYTES)
        member.column_write(5, 1, 4, CELL, addresses_of(content), CELL)
        found = member.column_descriptor(5, 1, 4)
        if found is not None:
            fd, offset = found
            assert not os.get_inheritable(fd)
            again = member.column_descriptor(5, 1, 4)
            assert again[1] == offset and again[0] != fd
            os.close(again[0])
            member.close()
            out = native.aligned(content.shape)
            assert os.preadv(fd, [out.data], offset + CELL) == 4 * CELL and (out == content).all()
            os.close(fd)
        member.close()
        assert member.column_descriptor(5, 1, 4) is None

    def test_a_borrowed_column_outlives_the_member(self, member):
        if not member.lends:
            return
        content = cells(40)
        order = np.random.default_rng(1).permutation(40)
        member.column_create(5, 1, 4, ZONE_BYTES)
        found = native.aligned(content.shape)
        with member.column_borrow(5, 1, 4) as place, contextlib.closing(Engine()) as engine:
            member.close()
            batch = Batch()
            offset = place.offset_bytes + 2 * CELL
            batch.write_cells(place.fd, offset, addresses_of(content)[order], CELL)
            batch.sync(place.fd)
            batch.read(place.fd, offset, found)
            engine.run_blocking(batch)
            member.column_confirm(place)
        assert batch.errors() == {} and (found == content[order]).all()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(place.fd)
        with pytest.raises(MemberError, match="closed"), member.column_borrow(5, 1, 4):
            pass

    def test_cells_are_gathered_from_anywhere_in_memory(self, member):
        content = cells(16)
        order = np.random.default_rng(1).permutation(16)
        member.column_create(3, 0, 0, ZONE_BYTES)
        member.column_write(3, 0, 0, 0, addresses_of(content)[order], CELL)
        assert (read(member, 3, 0, 0, 0, 16) == content[order]).all()

    def test_the_last_cell_of_a_column_can_be_used(self, member):
        content = cells(1)
        member.column_create(3, 0, SLOTS - 1, ZONE_BYTES)
        last = ZONE_BYTES // CELL - 1
        member.column_write(3, 0, SLOTS - 1, last * CELL, addresses_of(content), CELL)
        assert (read(member, 3, 0, SLOTS - 1, last, 1) == content).all()

    def test_creating_and_removing_twice_is_harmless(self, member):
        content = cells(1)
        member.column_create(4, 1, 1, ZONE_BYTES)
        member.column_write(4, 1, 1, 0, addresses_of(content), CELL)
        member.column_create(4, 1, 1, ZONE_BYTES)
        assert (read(member, 4, 1, 1, 0, 1) == content).all()
        member.column_remove(4, 1, 1)
        member.column_remove(4, 1, 1)
        member.column_create(4, 1, 1, ZONE_BYTES)
        read(member, 4, 1, 1, 0, ZONE_BYTES // CELL)

    def test_columns_are_listed(self, maker, member):
        assert member.columns() == []
        for zone in (7, 300, 1 << 33):
            member.column_create(zone, 1, zone % SLOTS, ZONE_BYTES)
        member.column_remove(300, 1, 300 % SLOTS)
        expected = [(7, 1), (1 << 33, 1)] if maker.lists_columns else []
        assert member.columns() == expected

    def test_there_is_room(self, member):
        assert member.room_bytes() > ZONE_BYTES

    def test_after_close_everything_raises(self, member):
        member.column_create(1, 0, 0, ZONE_BYTES)
        member.close()
        member.close()
        content = cells(1)
        for attempt in (
            lambda: member.read_label(0),
            lambda: member.write_label(0, bytes(LABEL_BYTES)),
            lambda: member.meta_write(MetaFile.DB, 0, b"x"),
            lambda: member.meta_sync(MetaFile.DB),
            lambda: read(member, 1, 0, 0, 0, 1),
            lambda: member.column_write(1, 0, 0, 0, addresses_of(content), CELL),
            lambda: member.column_sync(1, 0, 0),
        ):
            with pytest.raises(MemberError, match=r"closed|in-memory"):
                attempt()

    def test_threads_may_use_it_while_it_is_closed(self, member):
        content = cells(8)
        for slot in range(SLOTS):
            member.column_create(slot + 1, 0, slot, ZONE_BYTES)
        started = threading.Barrier(5)
        outcomes = []

        def work(number):
            started.wait()
            try:
                for turn in range(10_000):
                    slot = (number + turn) % SLOTS
                    member.column_write(slot + 1, 0, slot, 0, addresses_of(content), CELL)
                    assert (read(member, slot + 1, 0, slot, 0, 8) == content).all()
            except MemberError as error:
                outcomes.append(error)

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(work, number) for number in range(4)]
            started.wait()
            threading.Event().wait(0.05)
            member.close()
            for job in jobs:
                job.result()
        assert len(outcomes) == 4

    def test_is_open_in_one_place_only(self, maker, member):
        if not maker.locks:
            return
        write_label(member, label_of())
        with pytest.raises(MemberBusy, match="in use"):
            maker.reopen()
        with pytest.raises(MemberBusy, match="in use"):
            maker.reopen(read_only=True, lock=True)
        looker = maker.reopen(read_only=True)
        assert read_labels(looker) == label_of()
        looker.close()
        member.close()
        maker.reopen().close()

    def test_read_only_reads(self, maker, member):
        content = cells(2)
        write_label(member, label_of())
        member.column_create(1, 0, 0, ZONE_BYTES)
        member.column_write(1, 0, 0, 0, addresses_of(content), CELL)
        member.column_sync(1, 0, 0)
        member.close()
        reader = maker.reopen(read_only=True)
        try:
            assert (read(reader, 1, 0, 0, 0, 2) == content).all()
            assert reader.meta_size(MetaFile.DB) == 0
            assert reader.meta_read(MetaFile.WAL, 0, 10) == b""
            with pytest.raises(AssertionError):
                reader.write_label(0, bytes(LABEL_BYTES))
        finally:
            reader.close()
