"""The metadata database: every kind of row, versions, errors, flat costs."""

import contextlib
import itertools
import random
import re
import time

import apsw
import numpy as np
import pytest
from metadata import (
    DIRECTORY,
    Opened,
    addresses_of,
    check,
    make,
    many_files,
    remove,
    row_of,
    visible,
)

from raidfs.errors import FormatError, FsError, OutOfSpace
from raidfs.store import inodes, meta, past, snapshot_rows, tables, touched, undo
from raidfs.store.meta import INF, Leaf, ZoneRow
from raidfs.store.snapshot_rows import VERSIONED
from raidfs.store.tables import decode_cells, encode_cells, needed

# -- one thing at a time ---------------------------------------------------------------------------


@pytest.fixture
def opened():
    with Opened() as o:
        yield o


def test_a_new_volume_has_a_root(opened):
    m = opened.meta
    root = m.inode(1)
    assert (root.mode, root.uid, root.gid, root.nlink, root.parent) == (DIRECTORY, 7, 8, 2, 1)
    assert root.btime_ns == 12345 and root.born == 1
    assert (m.durable, m.next_ino, m.next_zone, m.count_inodes()) == (1, 2, 1, 1)
    assert m.is_empty(1) and m.orphans() == [] and m.zones() == [] and m.inode(2) is None
    assert m.cell_bytes == 4096 and not m.changed
    check(m)


def test_inode_versions(opened):
    m = opened.meta
    row = row_of(m.new_ino(), target=b"x" * 5000, xattrs=3)
    m.insert_inode(2, row)
    assert m.inode(2) == row and row.born == 2
    row.size = 9
    m.save_inode(2, row)
    m.save_inode(3, row)
    assert row.born == 3 and m.inode(2) == row
    assert [(v.born, v.died) for r, v in m.all_inodes() if r.ino == 2] == [(2, 3), (3, INF)]
    m.remove_inode(3, 2)
    assert m.inode(2) is None and m.count_inodes() == 1
    assert [(v.born, v.died) for r, v in m.all_inodes() if r.ino == 2] == [(2, 3)]
    opened.durable(2)
    assert len([r for r, v in m.all_inodes() if r.ino == 2]) == 1
    opened.durable(3)
    assert not [r for r, v in m.all_inodes() if r.ino == 2]
    check(m)


def test_what_lives_within_one_epoch_leaves_nothing(opened):
    m = opened.meta
    make(m, 2, 1, b"f")
    m.set_xattr(2, 2, b"user.a", b"1")
    remove(m, 2, 1, b"f")
    assert [r.ino for r, _ in m.all_inodes()] == [1, 1]
    assert not list(m.all_dirents()) and not list(m.all_xattrs())
    check(m)


def test_orphans(opened):
    m = opened.meta
    for number in range(5):
        row = make(m, 2, 1, b"%d" % number)
        if number % 2:
            row.nlink = 0
            m.save_inode(2, row)
    assert m.orphans() == [3, 5]
    m.remove_inode(2, 3)
    assert m.orphans() == [5]


NAMES = [
    b"a",
    b"A",
    b" ",
    b"\xff\xfe",
    b"\n",
    bytes(range(1, 47)),
    b"x" * 255,
    "ä".encode(),
    b"'; DROP TABLE inode",
]


def test_names_are_any_bytes(opened):
    m = opened.meta
    inos = {name: make(m, 2, 1, name).ino for name in NAMES}
    assert {name: m.lookup(1, name).ino for name in NAMES} == inos
    assert m.lookup(1, b"b") is None and m.lookup(2, b"a") is None
    entries = m.entries(1, -1, 100)
    assert {e.name: e.ino for e in entries} == inos
    assert [e.position for e in entries] == sorted(e.position for e in entries)
    assert all(0 <= e.position < 1 << 62 and e.kind == 8 for e in entries)
    assert not m.is_empty(1)


def test_reading_a_directory_by_position_while_it_changes(opened):
    m = opened.meta
    for number in range(200):
        make(m, 2, 1, b"n%d" % number)
    seen, after = [], -1
    for step in itertools.count():
        entries = m.entries(1, after, 7)
        if not entries:
            break
        seen += [e.name for e in entries]
        after = entries[-1].position
        make(m, 2, 1, b"new%d" % step)
        if step % 2:
            remove(m, 2, 1, entries[0].name)
    assert len(seen) == len(set(seen))
    assert {b"n%d" % number for number in range(200)} <= set(seen)


def test_names_with_the_same_hash(opened, monkeypatch):
    m = opened.meta
    monkeypatch.setattr(m, "_place", lambda name: 1000)
    rows = [make(m, 2, 1, b"n%d" % number) for number in range(8)]
    with pytest.raises(OutOfSpace):
        make(m, 2, 1, b"one too many")
    assert m.inode(1).nlink == 2 and m.lookup(1, b"one too many") is None
    remove(m, 2, 1, b"n3")
    assert [m.lookup(1, b"n%d" % n) is not None for n in range(8)] == [n != 3 for n in range(8)]
    make(m, 3, 1, b"again")
    assert m.lookup(1, b"again").position == 1003
    assert m.lookup(1, b"n7").ino == rows[7].ino
    check(m)


def test_an_entry_replaced_in_a_later_epoch(opened):
    m = opened.meta
    make(m, 2, 1, b"f")
    opened.durable(2)
    remove(m, 3, 1, b"f")
    new = make(m, 3, 1, b"f")
    assert m.lookup(1, b"f").ino == new.ino
    check(m)
    opened.durable(3)
    assert len(list(m.all_dirents())) == 1


def test_xattrs(opened):
    m = opened.meta
    row = make(m, 2, 1, b"f")
    assert m.set_xattr(2, row.ino, b"user.a", b"1")
    assert not m.set_xattr(2, row.ino, b"user.a", b"22")
    assert m.set_xattr(2, row.ino, b"user.\xff", b"x" * 65536)
    assert m.xattr_names(row.ino) == [b"user.a", b"user.\xff"]
    opened.durable(2)
    m.save_inode(3, row)
    assert not m.set_xattr(3, row.ino, b"user.a", b"333")
    assert m.xattr(row.ino, b"user.a") == b"333" and m.xattr(row.ino, b"user.b") is None
    assert m.remove_xattr(3, row.ino, b"user.a") and not m.remove_xattr(3, row.ino, b"user.a")
    assert m.xattr(row.ino, b"user.a") is None
    assert m.set_xattr(3, row.ino, b"user.a", b"4") and m.xattr(row.ino, b"user.a") == b"4"
    check(m)
    m.remove_xattrs(3, row.ino)
    assert m.xattr_names(row.ino) == []
    opened.durable(3)
    assert not list(m.all_xattrs())


def test_changes_need_a_version_of_their_inode_first(opened):
    m = opened.meta
    row = make(m, 2, 1, b"f")
    with pytest.raises(AssertionError):
        m.set_xattr(3, row.ino, b"user.a", b"1")
    with pytest.raises(AssertionError):
        m.link(3, 1, b"g", row.ino, 8)
    with pytest.raises(AssertionError):
        m.unlink(3, 1, m.lookup(1, b"f").position)


# -- leaves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "runs", "one", "sequence", "prefix", "holes"])
def test_cells_as_stored(kind):
    rng = np.random.default_rng(1)
    for _ in range(30):
        addresses = addresses_of(kind, rng)
        data = encode_cells(addresses)
        if not addresses.any():
            assert data is None
            continue
        assert np.array_equal(decode_cells(data), addresses)
        assert len(data) <= 1 + 8 * (int(np.flatnonzero(addresses)[-1]) + 1)
        if kind == "sequence":
            assert len(data) == 12


def test_damaged_cells_are_an_error():
    rng = random.Random(2)
    for _ in range(300):
        data = bytes([rng.choice((0, 1, 2))]) + rng.randbytes(rng.choice((0, 1, 2, 11, 16, 3000)))
        with contextlib.suppress(FormatError):
            assert len(decode_cells(data)) == 256


def test_leaves(opened):
    m, rng = opened.meta, np.random.default_rng(3)
    model = {}
    for _ in range(200):
        number = int(rng.integers(12))
        inline = (
            rng.bytes(int(rng.integers(1, 2049))) if number == 0 and rng.random() < 0.5 else None
        )
        kind = ("random", "runs", "one", "holes")[int(rng.integers(4))]
        addresses = addresses_of(kind, rng)
        leaf = Leaf(addresses, inline) if rng.random() < 0.8 else None
        m.put_leaf(2, 5, number, leaf)
        model.pop(number, None)
        if leaf is not None and (addresses.any() or inline is not None):
            model[number] = leaf
        found = dict(m.leaf_range(5, 0, 1 << 62))
        assert list(found) == sorted(model)
        for key, expected in model.items():
            for got in (found[key], m.leaf(5, key)):
                assert got.inline == expected.inline
                same = np.array_equal(got.addresses, expected.addresses)
                assert same if expected.addresses.any() else got.addresses is None
    assert [number for number, _ in m.leaf_range(5, 3, 7)] == [
        n for n in sorted(model) if 3 <= n < 7
    ]
    assert m.leaf(6, 0) is None and m.leaf(5, 100) is None


def test_leaf_versions_are_kept_for_retained_epochs(opened):
    m = opened.meta
    leaves = [Leaf(np.full(256, address, np.uint64)) for address in (1, 2, 3, 4)]
    m.put_leaf(2, 5, 0, leaves[0])
    m.put_leaf(3, 5, 0, leaves[1])
    # in place: nobody asks for epoch 2
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(2, INF)]
    m.retained = (3,)
    m.put_leaf(4, 5, 0, leaves[2])
    m.put_leaf(5, 5, 0, leaves[3])
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(2, 4), (4, INF)]
    m.retained = (3, 5)
    m.put_leaf(6, 5, 0, None)
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(2, 4), (4, 6)]
    assert m.leaf(5, 0) is None and not list(m.leaf_range(5, 0, 10))
    m.commit(6)
    m.retained = (5,)
    m.commit(7)
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(2, 4), (4, 6)]
    sweep(m)
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(4, 6)]
    assert [v.addresses[0] for v in m.leaf_versions(5, 0)] == [4]


def sweep(m, limit=3):
    """Drop all that nobody needs, a few at a time."""
    for table in VERSIONED:
        place = m.dead_from(table, 0)
        while rows := m.dead(table, place, INF, limit):
            place = rows[-1]
            for died, *key in rows:
                if m.unneeded(key[-1], died):
                    m.drop_version(table, tuple(key))


# -- zones, checksums, owners, events --------------------------------------------------------------


def test_zones(opened):
    m = opened.meta
    m.insert_zone(1, "5/3", 256, [(0, 4), (1, 5), (2, 6)])
    m.insert_zone(4, "1/2", 128, ((2, 0), (0, 1)))
    m.update_zones([(100, 77, 4)])
    assert m.next_zone == 5
    expected = [
        ZoneRow(1, "5/3", 256, 0, 0, ((0, 4), (1, 5), (2, 6))),
        ZoneRow(4, "1/2", 128, 100, 77, ((2, 0), (0, 1))),
    ]
    assert m.zones() == expected
    m.move_column(4, 1, 9, 3)
    assert m.zones()[1].columns == ((2, 0), (9, 3))
    m.put_crcs(1, 0, np.ones((3, 3), np.uint32))
    m.put_owner(1, 0, 3, 6, b"runs")
    m.delete_zone(1)
    assert (
        [z.zone for z in m.zones()] == [4] and not list(m.all_checksums()) and not list(m.owners(1))
    )
    opened.durable(2)
    with Opened(opened.crashed()) as again:
        assert again.meta.next_zone == 5 and [z.zone for z in again.meta.zones()] == [4]


def test_checksums(opened):
    m, rng = opened.meta, np.random.default_rng(4)
    m.insert_zone(1, "5/3", 2048, [(0, 4), (1, 5), (2, 6)])
    model = np.empty((0, 3), np.uint32)
    while len(model) < 1500:
        rows = rng.integers(0, 2**32, (int(rng.integers(1, 400)), 3), dtype=np.uint32)
        m.put_crcs(1, len(model), rows)
        model = np.concatenate((model, rows))
        for _ in range(5):
            row = int(rng.integers(len(model)))
            count = int(rng.integers(1, len(model) - row + 1))
            assert np.array_equal(m.crcs(1, row, count), model[row : row + count])
    m.put_crcs(1, 250, np.zeros((10, 3), np.uint32))
    model[250:260] = 0
    assert np.array_equal(m.crcs(1, 0, len(model)), model)
    with pytest.raises(FormatError):
        m.crcs(1, -(-len(model) // 256) * 256 - 1, 2)
    assert [(zone, slab) for zone, slab, _ in m.all_checksums()] == [
        (1, s) for s in range(-(-len(model) // 256))
    ]


def test_owners(opened):
    m = opened.meta
    for number, row in enumerate(range(0, 3000, 10)):
        m.put_owner(1, row, 10, number, b"%d" % number)
    m.put_owner(2, 5, 1, 1, b"")
    assert m.owner_of(1, 29).row == 20 and m.owner_of(1, 30).runs == b"3"
    assert m.owner_of(2, 4) is None and m.owner_of(3, 0) is None
    assert [o.row for o in m.owners(1)] == list(range(0, 3000, 10))


def test_events_and_counters(opened, monkeypatch):
    m = opened.meta
    monkeypatch.setattr(tables, "EVENTS_MAX", 20)
    for number in range(50):
        m.add_events([tables.Event(2 * number, number, "Healed", number % 3, f"text {number}")])
    assert [e.time_ns for e in m.events(5)] == [45, 46, 47, 48, 49]
    assert len(m.events(1000)) == 20
    m.set_member_counters({0: (1, 2, 3), 4: (0, 0, 9)})
    m.set_member_counters({0: (1, 2, 4)})
    assert m.member_counters() == {0: (1, 2, 4), 4: (0, 0, 9)}
    assert not m.changed  # a cut of its own isn't due for these


# -- all or nothing --------------------------------------------------------------------------------


def test_atomic(opened):
    m = opened.meta
    row = make(m, 2, 1, b"f")
    opened.durable(2)
    before = visible(m)
    other = row_of(m.new_ino())
    with pytest.raises(FsError), m.atomic():
        m.save_inode(3, row)
        m.insert_inode(3, other)
        m.set_xattr(3, other.ino, b"user.a", b"")
        assert row.born == 3 and m.count_inodes() == 3
        raise FsError(1)
    assert row.born == 2 and other.born == 0 and not m.changed
    assert visible(m) == before and m.count_inodes() == 2
    with pytest.raises(AssertionError):  # the version was taken back
        m.set_xattr(3, row.ino, b"user.a", b"")
    with m.atomic():
        m.save_inode(3, row)
        m.set_xattr(3, row.ino, b"user.a", b"")
    assert m.changed
    check(m)


def test_errors_in_a_statement_leave_the_transaction_alone(opened):
    m = opened.meta
    make(m, 2, 1, b"f")
    with pytest.raises(apsw.ConstraintError):
        m.insert_inode(2, row_of(2))
    assert m.lookup(1, b"f") is not None and m.broken is None


# -- versions and retained epochs ------------------------------------------------------------------


def test_the_pure_rule():
    rng = random.Random(5)
    for _ in range(2000):
        retained = tuple(sorted(rng.sample(range(1, 15), rng.randrange(5))))
        born = rng.randrange(1, 14)
        died = rng.randrange(born + 1, 16)
        assert needed(born, died, retained) == any(born <= e < died for e in retained)


@pytest.mark.parametrize("seed", range(3))
def test_versions_are_dropped_exactly_when_nobody_needs_them(opened, seed):
    """Against a model that keeps every version ever and applies the rule."""
    m, rng = opened.meta, random.Random(seed)
    rows = {}
    ever = {}  # (ino, born) -> died

    for epoch in range(2, 30):
        for _ in range(6):
            if rows and rng.random() < 0.7:
                row = rng.choice(list(rows.values()))
                if row.born != epoch:
                    ever[row.ino, row.born] = epoch
                if rng.random() < 0.3:
                    m.remove_inode(epoch, row.ino)
                    if row.born == epoch:
                        del ever[row.ino, epoch]
                    del rows[row.ino]
                    continue
                m.save_inode(epoch, row)
            else:
                row = row_of(m.new_ino())
                m.insert_inode(epoch, row)
                rows[row.ino] = row
            ever[row.ino, epoch] = INF
        durable = epoch - rng.randrange(2)
        retained = set(m.retained)
        if rng.random() < 0.4:
            retained.add(durable)
        if retained and rng.random() < 0.3:
            retained.remove(rng.choice(sorted(retained)))
        m.retained = tuple(sorted(retained))
        m.commit(max(durable, m.durable))
        sweep(m)
        ever = {
            (ino, born): died
            for (ino, born), died in ever.items()
            if died > m.durable or any(born <= e < died for e in retained)
        }
        found = {(row.ino, v.born): v.died for row, v in m.all_inodes() if row.ino != 1}
        assert found == ever


# -- costs -----------------------------------------------------------------------------------------

SCANS_ALLOWED = {"ZONE_ALL", "COLUMN_ALL", "MEMBER_ALL"}
SCANS_ALLOWED |= {"SNAPSHOT_ALL", "SNAPSHOT_CONDEMNED", "HOLD_ALL"}  # once, at the opening
SCANS_ALLOWED |= {"KEPT_ALL", "RECORDED_IDS"}  # a handful; at the opening, and by check
SCANS_ALLOWED |= {"SNAPSHOT_LAST"}  # one row for each table that counts by itself
SCANS_ALLOWED |= {"EVENT_COUNT"}  # once: 10,000 at most
SCANS_ALLOWED |= {"TOUCHED_WHOLESALE"}  # after a crash in the middle of a rollback


def statements():
    for module in (inodes, tables, meta, past, snapshot_rows, touched, undo):
        for name, value in vars(module).items():
            if not name.isupper() or name.startswith("_"):
                continue
            values = (
                value.values()
                if isinstance(value, dict)
                else value
                if isinstance(value, tuple)
                else (value,)
            )
            for sql in values:
                if isinstance(sql, str) and re.match("SELECT|INSERT|UPDATE|DELETE", sql):
                    yield name, sql


def test_no_statement_scans_a_table(opened):
    found = list(statements())
    assert len(found) > 60
    for name, sql in found:
        plan = opened.meta._rows(f"EXPLAIN QUERY PLAN {sql}", (0,) * sql.count("?"))
        for *_, detail in plan:
            if name in SCANS_ALLOWED:
                continue
            if detail.startswith("SCAN"):  # by an index in its order, and only as far as LIMIT
                assert name in ("EVENT_LIST", "EVENT_LAST", "EVENT_DROP"), (name, detail)
            assert "TEMP B-TREE" not in detail, (name, detail)
            assert "AUTOMATIC" not in detail, (name, detail)


def test_costs_do_not_follow_the_number_of_files(opened):
    """Names and inodes are found in microseconds, and made by the ten thousand per second."""
    m = opened.meta
    start = time.perf_counter()
    many_files(opened, 10_000, 1)
    assert time.perf_counter() - start < 10_000 / 2_000  # a slow machine under load
    start = time.perf_counter()
    for number in range(0, 10_000, 10):
        m.inode(m.lookup(2, b"f%d" % number).ino)
    assert time.perf_counter() - start < 1000 * 500e-6
