"""The metadata after crashes, and with members that differ: it is the state of a cut."""

import random
import threading
import time
from copy import copy

import apsw
import numpy as np
import pytest
from metadata import (
    DIRECTORY,
    REGULAR,
    Opened,
    check,
    content,
    created,
    make,
    many_files,
    remove,
    visible,
)
from simulated import Image

from raidfs.errors import FormatError, MemberError, RaidfsError
from raidfs.raid.assembly import Assembly
from raidfs.raid.create import plan_volume
from raidfs.raid.label import read_labels
from raidfs.raid.places import open_member
from raidfs.store.make import make_volume
from raidfs.store.meta import Leaf, Meta
from raidfs.store.mirror import Mirror

# -- crashes ---------------------------------------------------------------------------------------


@pytest.fixture
def opened():
    with Opened() as o:
        yield o


class Life:
    """Random operations on a Meta; `states[e]` is what was visible when epoch e was cut."""

    def __init__(self, opened, rng, states=None):
        self.opened, self.m, self.rng = opened, opened.meta, rng
        self.epoch = self.m.durable + 1
        self.cut = []  # epochs closed and not durable
        self.told = {}  # ino -> (row, before): changed in memory alone, until the cut
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
                make(m, epoch, parent, name, rng.choice((REGULAR, REGULAR, DIRECTORY)))
        elif what < 0.55 and names:
            parent, name = rng.choice(list(names))
            if m.is_empty(names[parent, name].ino):
                self.told.pop(names[parent, name].ino, None)
                remove(m, epoch, parent, name)
        elif what < 0.75:
            ino = rng.choice(list(rows))
            row = self.told[ino][0] if ino in self.told else m.inode(ino)
            if rng.random() < 0.3 or row.mode == DIRECTORY:
                row.size = rng.randrange(10**6)
                m.save_inode(epoch, row)
            else:
                if ino not in self.told:
                    m.owe_inode(row)
                    self.told[ino] = (row, copy(row) if row.born != epoch else None)
                row.size = rng.randrange(10**6)
        elif what < 0.9:
            row = self.row(rng.choice(list(rows)))
            with m.atomic():
                m.save_inode(epoch, row)
                m.set_xattr(epoch, row.ino, b"user.%d" % rng.randrange(3), rng.randbytes(8))
        elif attributes:
            ino, name = rng.choice(list(attributes))
            with m.atomic():
                m.save_inode(epoch, self.row(ino))
                m.remove_xattr(epoch, ino, name)

    def row(self, ino):
        return self.told[ino][0] if ino in self.told else self.m.inode(ino)

    def renew(self):
        """Commits may have made versions of what the cut before had put in place."""
        for row, _ in self.told.values():
            row.born = self.m.inode(row.ino).born

    def close_epoch(self):
        self.m.save_inodes(self.epoch, list(self.told.values()))
        self.told = {}
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
                self.renew()
                self.opened.mirror.sync_wal()
            else:
                self.m._end()
                self.renew()
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
        if (
            record.kind == "sync"
            and image.pending.get(record.key)
            and marks
            and rng.random() < probability
        ):
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
@pytest.mark.parametrize("seed", range(50, 56))
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


def test_reopening_after_a_crash_reads_little(monkeypatch):
    """Undoing a few changes among many files: pages read and time don't follow the files."""
    reads, read = {}, Mirror.page_written
    for count in (2000, 50_000):
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
        counted = []
        monkeypatch.setattr(
            Mirror, "page_written", lambda self, at, to=counted: (to.append(at), read(self, at))[1]
        )
        start = time.perf_counter()
        with Opened(files, (0,)) as again:
            seconds = time.perf_counter() - start
            reads[count] = len(counted)
            assert again.meta.count_inodes() == count + 401
            assert all(again.meta.lookup(p, b"undone") is None for p in parents[:3])
        assert seconds < 1
    assert reads[50_000] < reads[2000] + 60, reads


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
        files[number, "raidfs.db"] = files[number, "raidfs.db"].replace(
            b"SQLite format 3", b"SQLite format 4"
        )
    with pytest.raises(RaidfsError):
        Opened(files)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_another_format_is_refused(opened, number):
    """A newer one, and those of volumes made before cells could be shared, before groups, and
    before members could be mended."""
    opened.meta._run(f"UPDATE state SET format = {number}")
    opened.durable(2)
    opened.meta.close()
    with pytest.raises(FormatError, match=f"format {number} "):
        Opened(content(opened.members))


# -- real members ----------------------------------------------------------------------------------


def test_on_directories_and_images(tmp_path):
    """Closed, and cut off while a writer is at it; each kind alone finds the last commit."""
    paths = [tmp_path / "directory", tmp_path / "image", tmp_path / "other"]
    paths[0].mkdir()
    paths[2].mkdir()
    with open(paths[1], "wb") as file:
        file.truncate(400 << 20)
    plan = plan_volume([str(path) for path in paths], level="1", size_bytes=400 << 20)
    make_volume(plan, now_ns=lambda: 1)
    for epoch in range(2, 6):
        assembly = Assembly.open(str(paths[0]))
        mirror = Mirror(assembly.members)
        m = Meta(mirror)
        assert m.durable == epoch - 1 and m.count_inodes() == 1 + 100 * (epoch - 2)
        for number in range(100):
            make(m, epoch, 1, b"%d %d" % (epoch, number))
        m.commit(epoch)
        mirror.sync_wal()
        make(m, epoch + 1, 1, b"lost")
        m.commit(None)
        mirror.sync_wal()
        if epoch % 2:
            m.close()  # else: nothing but the log knows of the epoch
        else:
            m._disconnect()
        mirror.close()
        assembly.close()
    for path in paths:
        alone = {0: open_member(str(path), read_only=True)}
        alone[0].adopt(read_labels(alone[0]))
        mirror = Mirror(alone, read_only=True)
        m = Meta(mirror)
        assert m.durable == 5 and m.count_inodes() == 401 and m.lookup(1, b"lost") is None
        check(m)
        m.close()
        mirror.close()
        alone[0].close()
