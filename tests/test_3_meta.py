"""The metadata database: every kind of row, versions, undoing after a crash, room, flat costs."""

import itertools
import random
import re
import threading
import time

import apsw
import msgspec
import numpy as np
import pytest
from simulated import Image, World, members_of

from raidfs.errors import FormatError, FsError, MemberError, OutOfSpace, RaidfsError
from raidfs.raid.label import Parameters
from raidfs.raid.member import MetaFile
from raidfs.store import inodes, meta, tables
from raidfs.store.meta import INF, InodeRow, Leaf, Meta, ZoneRow
from raidfs.store.mirror import FRAME_BYTES, Mirror
from raidfs.store.tables import decode_cells, encode_cells, needed

PARAMETERS = Parameters("5", 5, 4096, 1 << 20, 1 << 20, 1 << 20, 1)
REGULAR, DIRECTORY = 0o100644, 0o040755


def created(count=3, **options):
    """{number: member} with an empty database."""
    members = {m.number: m for m in members_of({}, World(), list(range(count)), **options)}
    Meta.create(members, PARAMETERS, 12345, uid=7, gid=8)
    return members


def content(members):
    return {(m, name): bytes(data) for m, x in members.items() for name, data in x.files.items()}


class Opened:
    """A Meta over fresh members that begin with these files; closes what it opened."""

    def __init__(self, files=None, numbers=(0, 1, 2), *, read_only=False, **options):
        self.files = content(created(len(numbers), **options)) if files is None else files
        self.world = World()
        self.members = {m.number: m for m in members_of(self.files, self.world, list(numbers), **options)}
        self.lost = []
        self.mirror = Mirror(self.members, read_only=read_only, on_failed=lambda *lost: self.lost.append(lost) or True)
        try:
            self.meta = Meta(self.mirror)
        except BaseException:
            self.mirror.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.meta.close()
        self.mirror.close()

    def crashed(self, seed=1):
        """The files as a crash at this moment leaves them; seed 1: nothing that wasn't synced."""
        image = Image(dict(self.files))
        for record in self.world.log:
            if record.kind != "mark":
                image.apply(record)
        return image.crash(seed)

    def durable(self, epoch):
        self.meta.note_cut(epoch)
        self.meta.commit(epoch)
        self.mirror.sync_wal()


@pytest.fixture
def opened():
    with Opened() as o:
        yield o


def row_of(ino, **fields):
    values = dict.fromkeys(InodeRow.__struct_fields__, 0) | {"generation": 1, "mode": REGULAR, "nlink": 1, "target": None}
    return InodeRow(**{**values, "ino": ino, **fields})


def make(m, epoch, parent, name, mode=REGULAR, **fields):
    """A file or directory with a name; returns its row."""
    row = row_of(m.new_ino(), mode=mode, **fields)
    with m.atomic():
        directory = m.inode(parent)
        m.save_inode(epoch, directory)
        m.insert_inode(epoch, row)
        m.link(epoch, parent, name, row.ino, mode >> 12)
    return row


def remove(m, epoch, parent, name):
    entry = m.lookup(parent, name)
    with m.atomic(freeing=True):
        m.save_inode(epoch, m.inode(parent))
        m.unlink(epoch, parent, entry.position)
        m.remove_inode(epoch, entry.ino)
        m.remove_xattrs(epoch, entry.ino)


def visible(m):
    """All that is live, as plain values."""
    rows = {row.ino: msgspec.structs.replace(row, born=0) for row, version in m.all_inodes() if version.live}
    names = {(parent, e.name): e for parent, e, version in m.all_dirents() if version.live}
    attributes = {(ino, name): value for ino, name, value, version in m.all_xattrs() if version.live}
    leaves = {
        (ino, number): (None if leaf.addresses is None else leaf.addresses.tolist(), leaf.inline)
        for ino, number, leaf, version in m.all_leaves() if version.live
    }
    return rows, names, attributes, leaves, m.zones(), m.count_inodes()


def check(m):
    """The invariants of schema.sql that can be seen."""
    assert m._rows("PRAGMA integrity_check") == [("ok",)]
    spans = {}
    for row, version in m.all_inodes():
        spans.setdefault(("i", row.ino), []).append(version)
    for parent, entry, version in m.all_dirents():
        spans.setdefault(("d", parent, entry.position), []).append(version)
        assert m.position_good(entry)
    for ino, name, _, version in m.all_xattrs():
        spans.setdefault(("x", ino, name), []).append(version)
    for versions in spans.values():
        for before, after in itertools.pairwise(versions):
            assert before.born < before.died <= after.born
        assert versions[-1].born < versions[-1].died
    assert m.count_inodes() == sum(v[-1].live for k, v in spans.items() if k[0] == "i")


# -- one thing at a time ---------------------------------------------------------------------------


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


NAMES = [b"a", b"A", b" ", b"\xff\xfe", b"\n", bytes(range(1, 47)), b"x" * 255, "ä".encode(), b"'; DROP TABLE inode"]


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
    rng = random.Random(3)
    for step in itertools.count():
        entries = m.entries(1, after, 7)
        if not entries:
            break
        seen += [e.name for e in entries]
        after = entries[-1].position
        make(m, 2, 1, b"new%d" % step)
        remove(m, 2, 1, rng.choice(seen)) if step % 2 and m.lookup(1, seen[0]) else None
        seen = list(dict.fromkeys(seen))
    assert len([name for name in seen if name.startswith(b"n") and not name.startswith(b"new")]) == 200


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


def addresses_of(kind, rng):
    addresses = np.zeros(256, np.uint64)
    if kind == "random":
        addresses[:] = rng.integers(1, 2**63, 256, dtype=np.uint64)
    elif kind == "runs":
        at = 0
        while at < 250:
            count = int(rng.integers(1, 60))
            start = rng.integers(1, 2**62, dtype=np.uint64) if rng.random() < 0.8 else np.uint64(0)
            steps = np.arange(min(count, 256 - at), dtype=np.uint64) * np.uint64(256)
            addresses[at : at + count] = start + steps if start else 0
            at += count
    elif kind == "one":
        addresses[int(rng.integers(256))] = 1 << 32
    elif kind == "sequence":
        addresses[:] = np.uint64(1 << 32) + np.arange(256, dtype=np.uint64) * np.uint64(256)
    elif kind == "prefix":
        addresses[:3] = (5 << 32, 5 << 32 | 1, 7 << 32)
    return addresses


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
        try:
            assert len(decode_cells(data)) == 256
        except FormatError:
            pass


def test_leaves(opened):
    m, rng = opened.meta, np.random.default_rng(3)
    model = {}
    for _ in range(200):
        number = int(rng.integers(12))
        inline = rng.bytes(int(rng.integers(1, 2049))) if number == 0 and rng.random() < 0.5 else None
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
    assert [number for number, _ in m.leaf_range(5, 3, 7)] == [n for n in sorted(model) if 3 <= n < 7]
    assert m.leaf(6, 0) is None and m.leaf(5, 100) is None


def test_leaf_versions_are_kept_for_retained_epochs(opened):
    m = opened.meta
    leaves = [Leaf(np.full(256, address, np.uint64)) for address in (1, 2, 3, 4)]
    m.put_leaf(2, 5, 0, leaves[0])
    m.put_leaf(3, 5, 0, leaves[1])
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(3, INF)]
    m.retained = (3,)
    m.put_leaf(4, 5, 0, leaves[2])
    m.put_leaf(5, 5, 0, leaves[3])
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(3, 4), (5, INF)]
    m.retained = (3, 5)
    m.put_leaf(6, 5, 0, None)
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(3, 4), (5, 6)]
    assert m.leaf(5, 0) is None and not list(m.leaf_range(5, 0, 10))
    m.commit(6)
    m.retained = (5,)
    m.commit(7)
    assert [(v.born, v.died) for *_, v in m.all_leaves()] == [(5, 6)]


# -- zones, checksums, owners, events --------------------------------------------------------------


def test_zones(opened):
    m = opened.meta
    m.insert_zone(1, "5/3", 256, [(0, 4), (1, 5), (2, 6)])
    m.insert_zone(4, "1/2", 128, ((2, 0), (0, 1)))
    m.update_zone(4, 100, 77)
    assert m.next_zone == 5
    expected = [ZoneRow(1, "5/3", 256, 0, 0, ((0, 4), (1, 5), (2, 6))), ZoneRow(4, "1/2", 128, 100, 77, ((2, 0), (0, 1)))]
    assert m.zones() == expected
    m.move_column(4, 1, 9, 3)
    assert m.zones()[1].columns == ((2, 0), (9, 3))
    m.put_crcs(1, 0, np.ones((3, 3), np.uint32))
    m.put_owner(1, 0, 3, 6, b"runs")
    m.delete_zone(1)
    assert [z.zone for z in m.zones()] == [4] and not list(m.all_checksums()) and not list(m.owners(1))
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
        m.crcs(1, len(model) - 1, 2)
    assert [(zone, slab) for zone, slab, _ in m.all_checksums()] == [(1, s) for s in range(-(-len(model) // 256))]


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
        m.add_event(number, "Healed", number % 3, f"text {number}")
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
        ever = {
            (ino, born): died
            for (ino, born), died in ever.items()
            if died > m.durable or any(born <= e < died for e in retained)
        }
        found = {(row.ino, v.born): v.died for row, v in m.all_inodes() if row.ino != 1}
        assert found == ever


# -- crashes ---------------------------------------------------------------------------------------


class Life:
    """Random operations on a Meta; `states[e]` is what was visible when epoch e was cut."""

    def __init__(self, opened, rng, states=None):
        self.opened, self.m, self.rng = opened, opened.meta, rng
        self.epoch = self.m.durable + 1
        self.cut = []  # epochs closed and not durable
        self.states = {self.m.durable: visible(self.m)} if states is None else states

    def step(self):
        m, rng, epoch = self.m, self.rng, self.epoch
        rows, names, attributes, *_ = visible(m)
        directories = [ino for ino, row in rows.items() if row.mode == DIRECTORY]
        what = rng.random()
        if what < 0.4:
            parent = rng.choice(directories)
            name = b"n%d" % rng.randrange(30)
            if m.lookup(parent, name) is None:
                make(m, epoch, parent, name, rng.choice((REGULAR, REGULAR, DIRECTORY)), parent=parent)
        elif what < 0.6 and names:
            parent, name = rng.choice(list(names))
            if m.is_empty(names[parent, name].ino):
                remove(m, epoch, parent, name)
        elif what < 0.75:
            row = m.inode(rng.choice(list(rows)))
            row.size = rng.randrange(10**6)
            m.save_inode(epoch, row)
        elif what < 0.9:
            row = m.inode(rng.choice(list(rows)))
            with m.atomic():
                m.save_inode(epoch, row)
                m.set_xattr(epoch, row.ino, b"user.%d" % rng.randrange(3), rng.randbytes(8))
        elif attributes:
            ino, name = rng.choice(list(attributes))
            with m.atomic():
                m.save_inode(epoch, m.inode(ino))
                m.remove_xattr(epoch, ino, name)

    def close_epoch(self):
        self.states[self.epoch] = visible(self.m)
        self.m.note_cut(self.epoch)
        self.cut.append(self.epoch)
        self.epoch += 1

    def make_durable(self):
        """The oldest closed epoch, with a leaf and a zone as the flusher writes them."""
        epoch = self.cut.pop(0)
        with self.m.reserve():
            self.m.put_leaf(epoch, 1, 0, Leaf(np.full(256, epoch, np.uint64)))
            self.m.insert_zone(self.m.next_zone, "0/1", 1, [(0, epoch)])
        rows, names, attributes, _, _, count = self.states[epoch]
        leaves = {(1, 0): ([epoch] * 256, None)}
        self.states[epoch] = (rows, names, attributes, leaves, self.m.zones(), count)
        self.opened.world.mark(("committing", epoch))
        self.m.commit(epoch)

    def run(self, steps):
        for _ in range(steps):
            what = self.rng.random()
            if what < 0.8:
                self.step()
            elif what < 0.88:
                self.close_epoch()
            elif what < 0.95 and self.cut:
                self.make_durable()
                if self.rng.random() < 0.7:
                    self.opened.mirror.sync_wal()
                    self.opened.world.mark(("synced", self.m.durable))
            elif what < 0.97:
                self.m.commit(None)
                self.opened.mirror.sync_wal()
            else:
                self.m._end()
                self.m._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
                self.m._begin()


def crash_everywhere(seed, steps, probability, depth=1, files=None, states=None):
    """One life, cut off before some of its syncs; what is found is the state of a cut."""
    rng = random.Random(seed)
    with Opened(files) as o:
        life = Life(o, rng, states)
        o.world.mark(("synced", o.meta.durable))
        life.run(steps)
        start, log = o.files, list(o.world.log)
    image, marks = Image(dict(start)), []
    for record in log:
        if record.kind == "mark":
            marks.append(record.value)
            continue
        if record.kind == "sync" and image.pending.get(record.key) and marks and rng.random() < probability:
            after_crash(image.crash(rng.randrange(2**32)), marks, life.states, rng, depth)
        image.apply(record)
    after_crash(image.crash(1), marks, life.states, rng, depth)


def after_crash(files, marks, states, rng, depth):
    numbers = sorted(rng.sample(range(3), rng.randint(1, 3)))
    synced = max(epoch for what, epoch in marks if what == "synced")
    begun = max(epoch for _, epoch in marks)
    mine = {key: data for key, data in files.items() if key[0] in numbers}
    with Opened(mine, tuple(numbers)) as o:
        assert synced <= o.meta.durable <= begun
        assert visible(o.meta) == states[o.meta.durable]
        assert o.meta.next_ino > max(states[o.meta.durable][0])
        assert not [v for _, v in o.meta.all_inodes() if not v.live]
        check(o.meta)
        assert not o.lost
        if depth and len(numbers) == 3 and rng.random() < 0.3:
            known = {epoch: state for epoch, state in states.items() if epoch <= o.meta.durable}
            left = o.crashed()
            crash_everywhere(rng.randrange(2**32), 60, 0.3, depth - 1, left, known)


@pytest.mark.parametrize("seed", range(3))
def test_after_a_crash_it_is_the_state_of_a_cut(seed):
    crash_everywhere(seed, 150, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50, 62))
def test_after_a_crash_it_is_the_state_of_a_cut_more(seed):
    crash_everywhere(seed, 400, 0.6, 2)


def test_inode_numbers_of_later_epochs_are_taken_back(opened):
    m = opened.meta
    make(m, 2, 1, b"a")
    make(m, 3, 1, b"b")
    make(m, 3, 1, b"c")
    opened.durable(2)
    with Opened(opened.crashed()) as again:
        assert again.meta.next_ino == 3 and [e.name for e in again.meta.entries(1, -1, 9)] == [b"a"]
        assert again.meta.count_inodes() == 2


def test_undoing_read_only_changes_nothing_on_members(opened):
    m = opened.meta
    make(m, 2, 1, b"a")
    opened.durable(2)
    remove(m, 3, 1, b"a")
    m.commit(None)
    opened.mirror.sync_wal()
    files = opened.crashed()
    with Opened(files, read_only=True) as again:
        assert again.meta.lookup(1, b"a") is not None and again.meta.count_inodes() == 2
        check(again.meta)
        again.meta.checkpoint_if_due()
        assert not [r for r in again.world.log if r.kind != "mark"]
    with Opened(files) as again:
        assert again.meta.lookup(1, b"a") is not None


def many_files(o, count, directories):
    m = o.meta
    parents = [make(m, 2, 1, b"d%d" % d, DIRECTORY).ino for d in range(directories)]
    for number in range(count):
        row = row_of(m.new_ino())
        m.insert_inode(2, row)
        m.link(2, parents[number % directories], b"f%d" % number, row.ino, 8)
    o.durable(2)
    return parents


def test_reopening_after_a_crash_reads_little():
    """Undoing a few changes among many files: pages read and time don't follow the files."""
    reads = {}
    for count in (2000, 100_000):
        with Opened(numbers=(0,)) as o:
            parents = many_files(o, count, 400)
            o.mirror.sync_db()
            o.meta._end()
            o.meta._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
            o.meta._begin()
            o.mirror.sync_db()
            for parent in parents[:3]:
                make(o.meta, 3, parent, b"undone")
                remove(o.meta, 3, parent, o.meta.entries(parent, -1, 1)[0].name)
            o.meta.commit(None)
            o.mirror.sync_wal()
            files = o.crashed()
        read = itertools.count()
        original = Mirror._db_page
        try:
            Mirror._db_page = lambda self, offset: (next(read), original(self, offset))[1]
            start = time.perf_counter()
            with Opened(files, (0,)) as again:
                seconds = time.perf_counter() - start
                reads[count] = next(read)
                assert again.meta.count_inodes() == count + 401
                assert all(again.meta.lookup(p, b"undone") is None for p in parents[:3])
        finally:
            Mirror._db_page = original
        assert seconds < 1
    assert reads[100_000] < reads[2000] + 60, reads


# -- members ---------------------------------------------------------------------------------------


def test_a_member_from_a_backup_is_noticed(opened):
    make(opened.meta, 2, 1, b"a")
    opened.durable(2)
    opened.meta.close()
    backup = content(opened.members)
    with Opened(backup) as later:
        make(later.meta, 3, 1, b"b")
        later.durable(3)
        later.meta.close()
        mixed = content(later.members)
    mixed |= {key: data for key, data in backup.items() if key[0] == 0}
    with Opened(mixed) as again:
        assert [member for member, _ in again.lost] == [0]
        assert again.meta.lookup(1, b"b") is not None
    for number in (1, 2):
        mixed |= {key: data for key, data in backup.items() if key[0] == number}
    with Opened(mixed) as again:
        assert not again.lost  # all are old alike: nobody could tell


def test_no_member_left(opened):
    m = opened.meta
    make(m, 2, 1, b"a")
    for member in opened.members.values():
        member.fail_writes = True
    m.commit(2)
    with pytest.raises(MemberError):
        opened.mirror.sync_wal()


def test_not_a_database():
    with pytest.raises(FormatError):
        Opened({})
    files = content(created())
    for number in range(3):
        files[number, "raidfs.db"] = files[number, "raidfs.db"].replace(b"SQLite format 3", b"SQLite format 4")
    with pytest.raises(RaidfsError):
        Opened(files)


def test_a_newer_format_is_refused(opened):
    opened.meta._run("UPDATE state SET format = 2")
    opened.durable(2)
    opened.meta.close()
    with pytest.raises(FormatError, match="format 2"):
        Opened(content(opened.members))


# -- room ------------------------------------------------------------------------------------------


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
    for name in names[:200]:
        remove(m, 3, 1, name)  # freeing may use the reserve
    opened.durable(3)
    make(m, 4, 1, b"there is room again")
    opened.durable(4)
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


# -- costs -----------------------------------------------------------------------------------------

SCANS_ALLOWED = {"ZONE_ALL", "COLUMN_ALL", "MEMBER_ALL"}


def statements():
    for module in (inodes, tables, meta):
        for name, value in vars(module).items():
            if not name.isupper() or name.startswith("_"):
                continue
            values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
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
                assert name == "EVENT_LIST", (name, detail)
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


def test_syncing_beside_the_loop(opened):
    """A worker syncs while the loop goes on changing."""
    m, stop, errors = opened.meta, threading.Event(), []

    def worker():
        while not stop.is_set():
            try:
                opened.mirror.sync_wal()
                opened.mirror.sync_db()
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=worker)
    thread.start()
    try:
        for epoch in range(2, 40):
            for number in range(20):
                make(m, epoch, 1, b"%d-%d" % (epoch, number))
            m.commit(epoch)
            if epoch % 5 == 0:
                m._end()
                m._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
                m._begin()
    finally:
        stop.set()
        thread.join()
    assert not errors
    opened.mirror.sync_wal()
    with Opened(opened.crashed()) as again:
        assert again.meta.count_inodes() == 1 + 38 * 20 and again.meta.durable == 39
        check(again.meta)


