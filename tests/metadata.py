"""A metadata database over simulated members, for tests: opened, crashed, compared."""

import itertools

import msgspec
import numpy as np
from simulated import Image, World, members_of

from raidfs.raid.label import Parameters
from raidfs.store.meta import InodeRow, Meta
from raidfs.store.mirror import Mirror

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
        self.members = {
            m.number: m for m in members_of(self.files, self.world, list(numbers), **options)
        }
        self.lost = []
        self.mirror = Mirror(
            self.members,
            read_only=read_only,
            on_failed=lambda *lost: self.lost.append(lost) or True,
        )
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


def row_of(ino, **fields):
    values = dict.fromkeys(InodeRow.__struct_fields__, 0) | {
        "generation": 1,
        "mode": REGULAR,
        "nlink": 1,
        "target": None,
    }
    return InodeRow(**{**values, "ino": ino, **fields})


def make(m, epoch, parent, name, mode=REGULAR, **fields):
    """A file or directory with a name; returns its row."""
    row = row_of(m.new_ino(), mode=mode, parent=parent if mode == DIRECTORY else 0, **fields)
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
    rows = {
        row.ino: msgspec.structs.replace(row, born=0)
        for row, version in m.all_inodes()
        if version.live
    }
    names = {(parent, e.name): e for parent, e, version in m.all_dirents() if version.live}
    attributes = {
        (ino, name): value for ino, name, value, version in m.all_xattrs() if version.live
    }
    leaves = {
        (ino, number): (None if leaf.addresses is None else leaf.addresses.tolist(), leaf.inline)
        for ino, number, leaf, version in m.all_leaves()
        if version.live
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


def many_files(o, count, directories):
    m = o.meta
    parents = [make(m, 2, 1, b"d%d" % d, DIRECTORY).ino for d in range(directories)]
    for number in range(count):
        row = row_of(m.new_ino())
        m.insert_inode(2, row)
        m.link(2, parents[number % directories], b"f%d" % number, row.ino, 8)
    o.durable(2)
    return parents
