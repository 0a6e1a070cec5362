"""The whole of Volume against a dictionary: whatever is done to both, they answer the same.

The model is slow and obvious. Each rule does one operation to both and compares result or errno;
after a remount, and after a crash, the whole tree is compared. A crash may bring back any cut that
is not older than the last fsync. Each run ends in a check of the members.
"""

import copy
import errno
import os
import random
import shutil
import stat
import tempfile
import threading

import pytest
import trio
from checking import run_check
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from volumes import ROOT, Clock, make_members, open_store

from raidfs.errors import RaidfsError
from raidfs.fs.attributes import RENAME_EXCHANGE, RENAME_NOREPLACE, Caller, Changes
from raidfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from raidfs.fs.volume import Volume
from raidfs.store.past import as_view

PAGE = 4096
WHOLE_BYTES_MAX = 100_000  # files up to this size are compared whole, others around their pages


def refuse(number):
    raise OSError(number, errno.errorcode[number])


class Thing:
    """An inode of the model."""

    def __init__(self, kind, mode, parent):
        self.kind, self.mode, self.parent = kind, mode, parent
        self.ino = 0
        self.nlink = 2 if kind == stat.S_IFDIR else 1
        self.children, self.xattrs, self.pages = {}, {}, {}
        self.size, self.target = 0, None
        self.linkable = False
        self.opens, self.refs = 0, 0

    @property
    def is_directory(self):
        return self.kind == stat.S_IFDIR

    @property
    def gone(self):
        return not (self.nlink or self.opens or self.refs)

    def read(self, offset, length):
        length = max(0, min(length, self.size - offset))
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        whole = b"".join(bytes(self.pages.get(index, bytes(PAGE))) for index in range(first, end))
        return whole[offset - first * PAGE :][:length]

    def write(self, offset, data):
        for position, byte in enumerate(data, offset):
            page = self.pages.setdefault(position // PAGE, bytearray(PAGE))
            page[position % PAGE] = byte
        self.size = max(self.size, offset + len(data))

    def clear(self, offset, length):
        length = min(length, self.size - offset)
        if length > 0:
            self.write(offset, bytes(length))

    def truncate(self, size):
        if size < self.size:
            self.pages = {i: page for i, page in self.pages.items() if i * PAGE < size}
            if size // PAGE in self.pages:
                self.pages[size // PAGE][size % PAGE :] = bytes(PAGE - size % PAGE)
        self.size = size


class Model:
    """The tree, and everything in it that still exists."""

    def __init__(self):
        self.root = Thing(stat.S_IFDIR, 0o755, None)
        self.root.ino = 1
        self.root.parent = self.root
        self.things = [self.root]

    def forget_kernel(self):
        """A mount ended: nothing is open or referred to any more."""
        for thing in self.things:
            thing.opens = thing.refs = 0
        self.sweep()

    def named(self):
        """All that have a name."""
        return [thing for thing in self.things if thing.nlink]

    def sweep(self):
        self.things = [thing for thing in self.things if not thing.gone]

    @staticmethod
    def directory(thing):
        if not thing.is_directory:
            refuse(errno.ENOTDIR)
        return thing

    def existing(self, parent, name):
        return self.directory(parent).children.get(name) or refuse(errno.ENOENT)

    def vacant(self, parent, name):
        if name in self.directory(parent).children:
            refuse(errno.EEXIST)
        if parent.nlink == 0:
            refuse(errno.ENOENT)

    def make(self, parent, name, kind):
        self.vacant(parent, name)
        thing = Thing(kind, 0o755 if kind == stat.S_IFDIR else 0o644, parent)
        if kind == stat.S_IFLNK:
            thing.mode, thing.target, thing.size = 0o777, b"to " + name, 3 + len(name)
        thing.refs = 1
        parent.children[name] = thing
        parent.nlink += thing.is_directory
        self.things.append(thing)
        return thing

    def make_unnamed(self, parent):
        if self.directory(parent).nlink == 0:
            refuse(errno.ENOENT)
        thing = Thing(stat.S_IFREG, 0o644, parent)
        thing.nlink, thing.refs, thing.opens, thing.linkable = 0, 1, 1, True
        self.things.append(thing)
        return thing

    def link(self, thing, parent, name):
        self.vacant(parent, name)
        if thing.is_directory:
            refuse(errno.EPERM)
        if thing.nlink == 0 and not (thing.linkable and thing.opens):
            refuse(errno.ENOENT)
        thing.linkable = False
        parent.children[name] = thing
        thing.nlink += 1
        thing.refs += 1

    def unlink(self, parent, name):
        if self.existing(parent, name).is_directory:
            refuse(errno.EISDIR)
        self.detach(parent, name)

    def rmdir(self, parent, name):
        thing = self.existing(parent, name)
        if not thing.is_directory:
            refuse(errno.ENOTDIR)
        if thing.children:
            refuse(errno.ENOTEMPTY)
        self.detach(parent, name)

    def detach(self, parent, name):
        thing = parent.children.pop(name)
        thing.nlink -= 2 if thing.is_directory else 1
        parent.nlink -= thing.is_directory
        self.sweep()

    def within(self, directory, ancestor):
        while directory is not ancestor and directory is not self.root:
            directory = directory.parent
        return directory is ancestor

    def rename(self, old, name, new, new_name, flags):
        moved = self.directory(old).children.get(name)
        other = self.directory(new).children.get(new_name)
        if moved is None:
            refuse(errno.ENOENT)
        if flags == RENAME_NOREPLACE and other:
            refuse(errno.EEXIST)
        if flags == RENAME_EXCHANGE and not other:
            refuse(errno.ENOENT)
        if new.nlink == 0:
            refuse(errno.ENOENT)
        if moved.is_directory and self.within(new, moved):
            refuse(errno.EINVAL)
        if flags == RENAME_EXCHANGE and other.is_directory and self.within(old, other):
            refuse(errno.EINVAL)
        if moved is other:
            return
        if flags != RENAME_EXCHANGE:
            self.check_replaced(moved, old, other, new)
            if other:
                self.detach(new, new_name)
            old.children.pop(name)
        else:
            self.put(old, name, other, new)
        self.put(new, new_name, moved, old)

    def check_replaced(self, moved, old, other, new):
        if other is None:
            return
        if other.is_directory and self.within(old, other):
            refuse(errno.ENOTEMPTY)
        if moved.is_directory != other.is_directory:
            refuse(errno.ENOTDIR if moved.is_directory else errno.EISDIR)
        if other.children:
            refuse(errno.ENOTEMPTY)

    def put(self, directory, name, thing, before):
        directory.children[name] = thing
        if thing.is_directory:
            thing.parent = directory
            before.nlink -= 1
            directory.nlink += 1

    @staticmethod
    def check_file(thing):
        if thing.kind != stat.S_IFREG:
            refuse(errno.EISDIR if thing.is_directory else errno.EINVAL)

    def removexattr(self, thing, name):
        if name not in thing.xattrs:
            refuse(errno.ENODATA)
        del thing.xattrs[name]


async def compare(volume, thing, view=0):
    """Assert that the volume shows what the model says of a thing and all beneath it. `view`: the
    id of the snapshot in which it is to be seen."""
    ino = as_view(view, thing.ino)
    got = volume.getattr(ino)
    expected = (thing.kind | thing.mode, thing.nlink)
    assert (got.mode, got.nlink) == expected, thing.ino
    names = volume.listxattr(ino, ROOT)
    assert {name: volume.getxattr(ino, name) for name in names} == thing.xattrs
    if thing.kind == stat.S_IFLNK:
        assert volume.readlink(ino) == thing.target
    if thing.kind == stat.S_IFREG:
        await compare_content(volume, thing, ino, got.size)
    if thing.is_directory:
        entries = volume.readdir(ino, 0, 1000)
        assert [entry.name for entry in entries[:2]] == [b".", b".."]
        assert entries[1].ino == as_view(view, thing.parent.ino) or (view and thing.ino == 1)
        found = {entry.name: (entry.ino, entry.kind) for entry in entries[2:]}
        assert len(found) == len(entries) - 2
        assert found == {n: (as_view(view, t.ino), t.kind) for n, t in thing.children.items()}
        for child in thing.children.values():
            await compare(volume, child, view)


async def compare_content(volume, thing, ino, size):
    assert size == thing.size
    if size <= WHOLE_BYTES_MAX:
        assert bytes(await volume.read(ino, 0, size)) == thing.read(0, size)
        return
    starts = [max(0, index * PAGE - 100) for index in thing.pages]
    for start in [0, size - 1, *starts]:
        got = bytes(await volume.read(ino, start, 2 * PAGE))
        assert got == thing.read(start, 2 * PAGE), (thing.ino, start)


class Mount:
    """A mounted volume in an event loop of its own, in a thread, so that rules can be plain."""

    def __init__(self, paths, clock):
        self.ready = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self.work, args=(paths, clock), daemon=True)
        self.thread.start()
        assert self.ready.wait(30)
        if self.error:
            raise self.error

    def work(self, paths, clock):
        try:
            trio.run(self.main, paths, clock)
        except BaseException as error:
            self.error = error
            self.ready.set()

    async def main(self, paths, clock):
        self.token = trio.lowlevel.current_trio_token()
        self.end = trio.Event()
        store = await open_store(paths, clock=clock)
        self.volume = Volume(store, cached_max=16)
        self.volume.reap_orphans()
        self.clean = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            self.ready.set()
            await self.end.wait()
            if self.clean:
                await store.stop()
            nursery.cancel_scope.cancel()
        if not self.clean:
            await store.close()

    def call(self, function, *arguments):
        async def run():
            result = function(*arguments)
            return await result if hasattr(result, "__await__") else result

        return trio.from_thread.run(run, trio_token=self.token)

    async def cut(self):
        store = self.volume.store
        epoch = store.epoch
        store.request_cut()
        while store.epoch == epoch:
            await trio.lowlevel.checkpoint()

    def close(self, clean=True):
        self.clean = clean
        trio.from_thread.run_sync(self.end.set, trio_token=self.token)
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error


ANY = st.integers(0, 1000)
NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", b"n" * 255])
KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO])
OFFSETS = st.one_of(
    st.integers(0, 20_000),
    st.integers(0, 5).map(lambda number: number * PAGE),
    st.sampled_from([2**20, 2**40, 2**62]).flatmap(lambda at: st.integers(at - 5000, at + 5000)),
)
LENGTHS = st.one_of(st.integers(0, 100), st.sampled_from([PAGE, 2 * PAGE, 9000]))
MODES = st.sampled_from([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
XATTRS = st.sampled_from([b"user.x", b"user.y", b"trusted.z"])


class VolumeMachine(RuleBasedStateMachine):
    """Each rule: one operation on the volume and on the model."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="raidfs-model-")
        self.mount = None
        self.clock = Clock()
        self.model = Model()
        self.cuts = [copy.deepcopy(self.model)]  # what a crash may bring back, oldest first
        self.kept = {}  # name of a snapshot -> the model as it was
        try:
            self.paths = make_members(self.directory)
            self.mount = Mount(self.paths, self.clock)
        except BaseException:
            shutil.rmtree(self.directory)
            raise

    def both(self, model, real, *arguments):
        """Do it to both; the results, or None when both refuse alike."""
        try:
            expected, refused = model(), None
        except OSError as error:
            expected, refused = None, error.errno
        try:
            got = self.mount.call(real, *arguments)
        except RaidfsError as error:
            assert error.errno == refused, (real, arguments, error)
            return None, None
        assert refused is None, (real, arguments, errno.errorcode[refused])
        return expected, got

    @property
    def volume(self):
        return self.mount.volume

    def pick(self, number, kind=None):
        """Something that exists; of a kind, if there is any."""
        things = [t for t in self.model.things if kind in (None, t.kind)] or self.model.things
        return things[number % len(things)]

    def pick_directory(self, number):
        return self.pick(number, stat.S_IFDIR if number % 10 else None)

    def pick_file(self, number):
        return self.pick(number, stat.S_IFREG if number % 10 else None)

    def pick_entry(self, number, name, directory=None):
        """(directory, name): mostly one that exists; `directory`: whether it leads to one."""
        found = [
            (parent, each)
            for parent in self.model.things
            for each, thing in parent.children.items()
            if directory in (None, thing.is_directory)
        ]
        if not found or number % 10 == 0:
            return self.pick_directory(number), name
        return found[number % len(found)]

    @initialize()
    def plant(self):
        """Something to work on."""
        for parent, name, kind in [
            (0, b"a", stat.S_IFDIR),
            (1, b"b", stat.S_IFDIR),
            (0, b"b", stat.S_IFREG),
            (1, b"c", stat.S_IFREG),
        ]:
            self.make(self.model.things[parent], name, kind)

    @rule(parent=ANY, name=NAMES, kind=KINDS)
    def make_one(self, parent, name, kind):
        self.make(self.pick_directory(parent), name, kind)

    def make(self, parent, name, kind):
        if kind == stat.S_IFDIR:
            real = self.volume.mkdir, parent.ino, name, 0o777, ROOT
        elif kind == stat.S_IFLNK:
            real = self.volume.symlink, parent.ino, name, b"to " + name, ROOT
        else:
            real = self.volume.mknod, parent.ino, name, kind | 0o666, 0, ROOT
        thing, got = self.both(lambda: self.model.make(parent, name, kind), *real)
        if thing is not None:
            thing.ino = got.ino

    @rule(thing=ANY, parent=ANY, name=NAMES)
    def link(self, thing, parent, name):
        thing, parent = self.pick_file(thing), self.pick_directory(parent)
        self.both(
            lambda: self.model.link(thing, parent, name),
            *(self.volume.link, thing.ino, parent.ino, name),
        )

    @rule(entry=ANY, name=NAMES)
    def unlink(self, entry, name):
        parent, name = self.pick_entry(entry, name, directory=False)
        self.both(lambda: self.model.unlink(parent, name), self.volume.unlink, parent.ino, name)

    @rule(entry=ANY, name=NAMES)
    def rmdir(self, entry, name):
        parent, name = self.pick_entry(entry, name, directory=True)
        self.both(lambda: self.model.rmdir(parent, name), self.volume.rmdir, parent.ino, name)

    @rule(old=ANY, name=NAMES, new=ANY, new_name=NAMES, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, old, name, new, new_name, flags):
        old, name = self.pick_entry(old, name)
        if new % 2:
            new = self.pick_directory(new)
        else:
            new, new_name = self.pick_entry(new, new_name)
        self.both(
            lambda: self.model.rename(old, name, new, new_name, flags),
            *(self.volume.rename, old.ino, name, new.ino, new_name, flags),
        )

    @rule(thing=ANY, offset=OFFSETS, length=LENGTHS, seed=ANY)
    def write(self, thing, offset, length, seed):
        thing = self.pick_file(thing)
        data = random.Random(seed).randbytes(length)

        def model():
            self.model.check_file(thing)
            if data:
                thing.write(offset, data)

        self.both(model, self.volume.write, thing.ino, offset, data)

    @rule(thing=ANY, size=OFFSETS, within=st.booleans())
    def truncate(self, thing, size, within):
        thing = self.pick_file(thing)
        if within and thing.pages:  # cut through content
            index = sorted(thing.pages)[size % len(thing.pages)]
            size = index * PAGE + size % PAGE

        def model():
            self.model.check_file(thing)
            thing.truncate(size)

        self.both(model, self.volume.setattr, thing.ino, Changes(size=size), ROOT)

    @rule(thing=ANY, offset=OFFSETS, length=LENGTHS, mode=MODES)
    def fallocate(self, thing, offset, length, mode):
        thing = self.pick_file(thing)

        def model():
            if not length:
                refuse(errno.EINVAL)
            if thing.kind != stat.S_IFREG:
                refuse(errno.EISDIR if thing.is_directory else errno.ENODEV)
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                thing.clear(offset, length)
            if not mode & KEEP_SIZE:
                thing.size = max(thing.size, offset + length)

        self.both(model, self.volume.fallocate, thing.ino, offset, length, mode)

    @rule(one=ANY, start=OFFSETS, other=ANY, there=OFFSETS, length=LENGTHS, same=st.booleans())
    def copy_range(self, one, start, other, there, length, same):
        """One piece, however large it is; mostly of pages that can be shared."""
        one, other = self.pick_file(one), self.pick_file(other)
        if same:
            start %= one.size + 1
            start, there = start // PAGE * PAGE, there // PAGE * PAGE
        count = max(0, min(length, one.size - start))

        def model():
            for thing in (one, other):
                self.model.check_file(thing)
            if one is other and count and abs(start - there) < count:
                refuse(errno.EINVAL)

        places = one.ino, start, other.ino, there, length
        _, got = self.both(model, self.volume.copy_range, *places)
        if got is not None:
            assert (0 < got <= count) if count else got == 0
            if got:
                other.write(there, one.read(start, got))

    @rule(parent=ANY)
    def tmpfile(self, parent):
        parent = self.pick_directory(parent)
        real = self.volume.tmpfile, parent.ino, 0o644, os.O_RDWR, Caller(0, 0)
        thing, got = self.both(lambda: self.model.make_unnamed(parent), *real)
        if thing is not None:
            thing.ino = got.ino

    @rule(thing=ANY, offset=OFFSETS)
    def seek(self, thing, offset):
        """What is told to be a hole is zeros; data or a hole begins right there."""
        thing = self.pick(thing, stat.S_IFREG)
        if thing.kind != stat.S_IFREG:
            return

        def model():
            if offset >= thing.size:
                refuse(errno.ENXIO)

        _, hole = self.both(model, self.volume.seek, thing.ino, offset, os.SEEK_HOLE)
        if hole is None:
            return
        try:
            data = self.mount.call(self.volume.seek, thing.ino, offset, os.SEEK_DATA)
        except RaidfsError as error:
            assert error.errno == errno.ENXIO
            data = thing.size
        assert offset <= hole <= thing.size and offset in (hole, data)
        for index in thing.pages:
            if offset <= index * PAGE < data:
                assert not any(thing.read(index * PAGE, min(PAGE, data - index * PAGE)))

    @rule(thing=ANY, offset=OFFSETS, length=LENGTHS)
    def read(self, thing, offset, length):
        thing = self.pick(thing, stat.S_IFREG)

        def model():
            self.model.check_file(thing)
            return thing.read(offset, length)

        expected, got = self.both(model, self.volume.read, thing.ino, offset, length)
        assert expected == (None if got is None else bytes(got))

    @rule(thing=ANY, name=XATTRS, length=st.sampled_from([0, 1, 5000, 65536]))
    def setxattr(self, thing, name, length):
        thing = self.pick(thing)

        def model():
            if name.startswith(b"user") and thing.kind not in (stat.S_IFREG, stat.S_IFDIR):
                refuse(errno.EPERM)
            thing.xattrs[name] = bytes(length)

        self.both(model, self.volume.setxattr, thing.ino, name, bytes(length), 0, ROOT)

    @rule(thing=ANY, name=XATTRS)
    def removexattr(self, thing, name):
        thing = self.pick(thing, stat.S_IFREG)
        if thing.kind == stat.S_IFREG:
            self.both(
                lambda: self.model.removexattr(thing, name),
                *(self.volume.removexattr, thing.ino, name),
            )

    @rule(thing=ANY, mode=st.sampled_from([0, 0o600, 0o751]))
    def chmod(self, thing, mode):
        thing = self.pick(thing)
        self.mount.call(self.volume.setattr, thing.ino, Changes(mode=mode), ROOT)
        thing.mode = mode

    @rule(thing=ANY)
    def open(self, thing):
        thing = self.pick(thing, stat.S_IFREG)
        if thing.kind == stat.S_IFREG:
            self.mount.call(self.volume.open, thing.ino, 0)
            thing.opens += 1

    @rule(thing=ANY)
    def release(self, thing):
        opened = [each for each in self.model.things if each.opens]
        if opened:
            thing = opened[thing % len(opened)]
            self.mount.call(self.volume.release, thing.ino)
            thing.opens -= 1
            self.model.sweep()

    @rule(thing=ANY)
    def forget(self, thing):
        thing = self.pick(thing)
        if thing.refs:
            self.mount.call(self.volume.forget, thing.ino, thing.refs)
            thing.refs = 0
            self.model.sweep()

    @rule()
    def fsync(self):
        self.mount.call(self.volume.fsync, 1)
        self.cuts = [copy.deepcopy(self.model)]

    @rule()
    def cut(self):
        """A cut whose flush goes on meanwhile, and may or may not be durable when a crash comes."""
        self.mount.call(self.mount.cut)

    @rule(name=st.sampled_from(["one", "two", "three"]))
    def take_or_delete_snapshot(self, name):
        """Durable on return, either way."""
        snapshots = self.volume.store.snapshots
        if name in self.kept:
            del self.kept[name]
            self.mount.call(snapshots.delete, [name])
        else:
            self.mount.call(snapshots.create, name)
            self.kept[name] = copy.deepcopy(self.model)
        self.cuts = [copy.deepcopy(self.model)]

    @rule(name=ANY, thing=ANY, other=ANY)
    def copy_out_of_a_snapshot(self, name, thing, other):
        """A piece of a file as it was comes into one of the present."""
        if not self.kept:
            return
        name = sorted(self.kept)[name % len(self.kept)]
        then = [t for t in self.kept[name].named() if t.kind == stat.S_IFREG and t.size]
        other = self.pick(other, stat.S_IFREG)
        if not then or other.kind != stat.S_IFREG:
            return
        one = then[thing % len(then)]
        ino = as_view(self.volume.store.snapshots.find(name).id, one.ino)
        got = self.mount.call(self.volume.copy_range, ino, 0, other.ino, 0, 3 * PAGE)
        assert 0 < got <= min(one.size, 3 * PAGE)
        other.write(0, one.read(0, got))

    @rule()
    def compare_all(self):
        self.mount.call(compare, self.volume, self.model.root)
        snapshots = self.volume.store.snapshots
        assert {row.name for row in snapshots.all()} == set(self.kept)
        for name, model in self.kept.items():
            self.mount.call(compare, self.volume, model.root, snapshots.find(name).id)

    @rule()
    def remount(self):
        mount, self.mount = self.mount, None
        mount.close()
        self.model.forget_kernel()
        self.mount = Mount(self.paths, self.clock)
        self.compare_all()
        self.cuts = [copy.deepcopy(self.model)]

    @rule()
    def crash(self):
        """All that memory knew is lost; one of the cuts since the last fsync is what remains."""
        mount, self.mount = self.mount, None
        mount.close(clean=False)
        self.mount = Mount(self.paths, self.clock)
        for candidate in reversed(self.cuts):
            candidate.forget_kernel()
            try:
                self.mount.call(compare, self.volume, candidate.root)
            except (AssertionError, RaidfsError):
                if candidate is self.cuts[0]:
                    raise
                continue
            self.model = candidate
            break
        self.compare_all()
        self.cuts = [copy.deepcopy(self.model)]

    @invariant()
    def may_be_a_cut(self):
        """The flusher may cut between any two operations, and never within one."""
        self.cuts.append(copy.deepcopy(self.model))

    def teardown(self):
        try:
            if self.mount is not None:
                self.remount()
                self.mount.close()
                run_check(self.paths)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)


def run(examples, steps):
    run_state_machine_as_test(
        VolumeMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_against_a_dictionary():
    run(examples=4, steps=30)


@pytest.mark.slow
def test_against_a_dictionary_for_longer():
    run(examples=30, steps=80)
