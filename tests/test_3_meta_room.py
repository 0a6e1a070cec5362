"""The metadata when it is full: said before anything changed, and never by losing a transaction."""

import numpy as np
import pytest
from metadata import (
    Opened,
    addresses_of,
    check,
    make,
    remove,
    row_of,
)

from raidfs.errors import OutOfSpace, RaidfsError
from raidfs.raid.member import MetaFile
from raidfs.store.batches import FRAME_BYTES
from raidfs.store.meta import Leaf

# -- room ------------------------------------------------------------------------------------------


@pytest.fixture
def opened():
    with Opened() as o:
        yield o


class Small:
    """Limits of the metadata files on every member."""

    def __init__(self, monkeypatch, opened, db_bytes=1 << 30, wal_bytes=1 << 30):
        self.bytes = {MetaFile.DB: db_bytes, MetaFile.WAL: wal_bytes}
        for member in opened.members.values():
            monkeypatch.setattr(member, "meta_limit", self.bytes.__getitem__)
        opened.meta._measure_limit()
        opened.mirror.limit_bytes(MetaFile.WAL)
        opened.meta._credit = 0


def fill(m, epoch, done):
    number = 0
    while True:
        make(m, epoch, 1, b"%0240d" % (done + number))
        number += 1


def test_a_full_database_says_so_before_anything_changed(opened, monkeypatch):
    m = opened.meta
    Small(monkeypatch, opened, db_bytes=400 * 4096)
    with pytest.raises(OutOfSpace):
        fill(m, 2, 0)
    used, limit = m.room()
    assert used <= limit < 400 * 4096 and limit - used < 10 * 4096
    assert m.broken is None
    check(m)
    with pytest.raises(OutOfSpace):
        make(m, 2, 1, b"one more")
    count = m.count_inodes()
    with m.reserve():  # the flusher still can
        for number in range(20):
            m.put_leaf(2, 5, number, Leaf(addresses_of("random", np.random.default_rng(number))))
    opened.durable(2)
    names = [e.name for e in m.entries(1, -1, 10_000)]
    assert len(names) == count - 1
    epoch = 3
    for name in names[:-20]:
        remove(m, epoch, 1, name)  # freeing may use the reserve
        if m.pressure:  # what is dead still takes room until then
            opened.durable(epoch)
            epoch += 1
    opened.durable(epoch)
    make(m, epoch + 1, 1, b"there is room again")
    opened.durable(epoch + 1)
    files = opened.crashed()
    assert max(len(data) for key, data in files.items() if key[1] == "raidfs.db") <= 400 * 4096
    with Opened(files) as again:
        check(again.meta)
        assert again.meta.lookup(1, b"there is room again")


def test_a_full_log_says_so_and_a_commit_helps(opened, monkeypatch):
    m = opened.meta
    limit = 200 * FRAME_BYTES
    Small(monkeypatch, opened, wal_bytes=limit)
    done = 0
    for epoch in range(2, 12):
        assert not m.pressure
        with pytest.raises(OutOfSpace):
            fill(m, epoch, done)
        done = m.count_inodes()
        assert m.pressure and m.broken is None
        with m.reserve():
            m.put_leaf(epoch, 5, 0, Leaf(addresses_of("random", np.random.default_rng(1))))
        opened.durable(epoch)
        assert opened.mirror.wal_bytes <= limit
        m.checkpoint_if_due()
        opened.mirror.sync_db()
    assert m.count_inodes() > 500
    with Opened(opened.crashed()) as again:
        check(again.meta)
        assert again.meta.count_inodes() == done


def test_pressure_comes_long_before_the_log_is_full(opened, monkeypatch):
    m = opened.meta
    Small(monkeypatch, opened, wal_bytes=1000 * FRAME_BYTES)
    for epoch in range(2, 60):
        for number in range(100):
            make(m, epoch, 1, b"%d-%0200d" % (epoch, number))
            if m.pressure:
                m.commit(None)
                m.checkpoint_if_due()
        m.commit(epoch)
        m.checkpoint_if_due()
        opened.mirror.sync_wal()
    assert m.broken is None and opened.mirror.wal_bytes <= 1000 * FRAME_BYTES


def test_a_lost_transaction_is_not_hidden(opened, monkeypatch):
    """If the credit were wrong: SQLite runs out of pages, and takes the whole transaction back."""
    m = opened.meta
    make(m, 2, 1, b"a")
    m._run("PRAGMA max_page_count = 1")
    monkeypatch.setattr(m, "_measure", lambda wanted: setattr(m, "_credit", 10**6))
    with pytest.raises(OutOfSpace):
        for number in range(10_000):
            m.insert_inode(2, row_of(m.new_ino(), target=b"x" * 4000, size=number))
    assert m.broken
    for change in (lambda: m.commit(2), lambda: make(m, 2, 1, b"b")):
        with pytest.raises(RaidfsError):
            change()
