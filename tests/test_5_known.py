"""What C may tell the kernel without asking is what Python would say: after every operation.

`Kernel` stands between random operations and a volume. It keeps account of references as the real
kernel does, and it asks and forgets through `Known`, as the lane's threads do, as often as through
the volume. After each operation, whether it succeeded or was refused for want of room, all that
`Known` would answer of many names and inodes is compared with what the metadata and the inodes say.
"""

import errno
import os
import random
import stat
from collections import Counter

import pytest
import trio
from volumes import ALICE, ROOT, Clock, make_members, mounted
from workload import Workload

from raidfs.errors import FsError, OutOfSpace, RaidfsError
from raidfs.fs import acl
from raidfs.fs import names as names_module
from raidfs.fs.attributes import RENAME_EXCHANGE, Changes
from raidfs.known import Known, KnownInode

UNIT_BYTES = 512
PLENTY = 8 << 20
NAMES = [f"{letter}{number}".encode() for letter in "abcdefgh" for number in range(30)]


class Kernel:
    """A volume whose references are kept account of."""

    def __init__(self, volume, seed):
        self.volume = volume
        self.known = volume.known
        self.random = random.Random(seed)
        self.references, self.opens = Counter(), Counter()
        self.seen = {1}  # every inode there ever was
        self.answers = Counter()

    def __getattr__(self, name):
        return getattr(self.volume, name)

    def told(self, attributes):
        self.references[attributes.ino] += 1
        self.seen.add(attributes.ino)
        return attributes

    def lookup(self, parent, name):
        if self.random.random() < 0.5:
            answer = self.known.lookup(parent, name)
            if answer == 0:
                raise FsError(errno.ENOENT)
            if answer is not None:
                return self.told(answer)
        return self.told(self.volume.lookup(parent, name))

    def create(self, *arguments):
        told = self.told(self.volume.create(*arguments))
        self.opens[told.ino] += 1
        return told

    def tmpfile(self, *arguments):
        told = self.told(self.volume.tmpfile(*arguments))
        self.opens[told.ino] += 1
        return told

    def mkdir(self, *arguments):
        return self.told(self.volume.mkdir(*arguments))

    def mknod(self, *arguments):
        return self.told(self.volume.mknod(*arguments))

    def symlink(self, *arguments):
        return self.told(self.volume.symlink(*arguments))

    def link(self, *arguments):
        return self.told(self.volume.link(*arguments))

    def remember(self, ino):
        self.volume.remember(ino)
        self.references[ino] += 1

    def forget(self, ino, count=1):
        count = min(count, self.references[ino])
        self.references[ino] -= count
        if self.random.random() < 0.5:
            self.known.release(ino, count)
            self.volume.reap_unreferenced()
        else:
            self.volume.forget(ino, count)

    def open(self, ino, flags):
        self.volume.open(ino, flags)
        self.opens[ino] += 1

    def release(self, ino):
        self.volume.release(ino)
        self.opens[ino] -= 1

    def prime(self):
        """Let much be known, so that much can be wrong afterwards."""
        for ino in self.random.sample(sorted(self.seen), min(len(self.seen), 30)):
            if self.row(ino) is None:
                continue
            self.volume.getattr(ino)
            if self.is_directory(ino):
                for entry in self.volume.inodes.meta.entries(ino, -1, 20):
                    self.told(self.volume.lookup(ino, entry.name))
                    self.forget(entry.ino)

    # -- the comparison ---------------------------------------------------------------------------

    def check(self):
        # What happened last is what could be wrong: recent inodes and names, and some of all.
        recent = sorted(self.seen)[-12:]
        some = self.random.sample(sorted(self.seen), min(len(self.seen), 40))
        for ino in {1, *recent, *some}:
            self.check_inode(ino)
            self.check_references(ino)
        directories = [ino for ino in some + recent if self.row(ino) and self.is_directory(ino)]
        for ino in {1, *directories}:
            listed = [entry.name for entry in self.volume.inodes.meta.entries(ino, -1, 1000)]
            for name in {*self.random.sample(NAMES, 6), *listed}:
                self.check_name(ino, name)
        for ino in set(some) - set(directories):
            self.check_name(ino, self.random.choice(NAMES))

    def row(self, ino):
        return self.volume.inodes.meta.inode(ino)

    def is_directory(self, ino):
        return stat.S_ISDIR(self.row(ino).mode)

    def check_inode(self, ino):
        answer = self.known.getattr(ino)
        self.answers["inode" if answer else "inode not known"] += 1
        if answer is not None:
            self.compare(answer)

    def compare(self, answer):
        """What the lane would make of the answer, and what the volume says."""
        assert self.row(answer.ino) is not None, "the inode is gone"
        inode = self.volume.inodes.get(answer.ino)
        truth = self.volume.inodes.attributes(inode)
        same = ("ino", "generation", "mode", "nlink", "uid", "gid", "rdev")
        for field in same:
            assert getattr(answer, field) == getattr(truth, field), (field, answer, truth)
        assert answer.cells == inode.row.cells
        assert answer.no_xattrs == (not self.volume.inodes.meta.xattr_names(answer.ino))
        self.answers["no xattrs" if answer.no_xattrs else "xattrs"] += 1
        assert answer.resident == inode.resident
        if answer.resident:
            self.answers["resident"] += 1
            return  # what Pages says
        for field in ("size", "atime_ns", "mtime_ns", "ctime_ns"):
            assert getattr(answer, field) == getattr(truth, field), (field, answer, truth)
        units = 0
        if inode.is_file and truth.size <= answer.inline_bytes_max:
            units = -(-truth.size // UNIT_BYTES)
        elif inode.is_file:
            cells = min(answer.cells, -(-truth.size // truth.blksize))
            units = cells * truth.blksize // UNIT_BYTES
        assert units == truth.blocks

    def check_name(self, parent, name):
        answer = self.known.lookup(parent, name)
        if answer is None:
            self.answers["name not known"] += 1
            return
        row = self.row(parent)
        assert row is not None and stat.S_ISDIR(row.mode)
        entry = self.volume.inodes.meta.lookup(parent, name)
        if answer == 0:
            self.answers["no such name"] += 1
            assert entry is None, (parent, name)
            return
        assert isinstance(answer, KnownInode)
        self.answers["name"] += 1
        self.references[answer.ino] += 1
        self.check_references(answer.ino)
        self.forget(answer.ino)
        assert entry is not None and entry.ino == answer.ino, (parent, name, answer, entry)
        self.compare(answer)

    def check_references(self, ino):
        assert self.known.references(ino) == self.references[ino], ino
        if self.row(ino) is None:
            assert self.references[ino] == 0 and self.opens[ino] == 0

    def check_orphans(self):
        """Inodes without names are there exactly as long as somebody needs them."""
        for ino in self.volume.inodes._orphans:
            assert self.references[ino] or self.opens[ino], ino
            assert self.row(ino) is not None


class Operations:
    """Random operations on whatever there is, by inode number, refused or not."""

    def __init__(self, kernel, seed):
        self.kernel = kernel
        self.random = random.Random(seed)

    def inos(self):
        return [ino for ino in self.kernel.seen if self.kernel.row(ino) is not None]

    def any(self):
        return self.random.choice(self.inos())

    def directory(self):
        return self.random.choice([i for i in self.inos() if self.kernel.is_directory(i)])

    def place(self):
        """(directory, name): mostly of an entry that exists."""
        parent = self.directory()
        entries = self.kernel.volume.inodes.meta.entries(parent, -1, 1000)
        if entries and self.random.random() < 0.7:
            return parent, self.random.choice(entries).name
        return parent, self.random.choice(NAMES)

    async def step(self):
        names = [name for name in dir(self) if name.startswith("do_")]
        name = self.random.choice(names)
        result = getattr(self, name)()
        if result is not None:
            await result
        return name

    def do_look_in_vain(self):
        parent = self.directory()
        for name in self.random.sample(NAMES, 4):
            self.kernel.lookup(parent, name)

    def do_look(self):
        self.kernel.lookup(*self.place())

    def do_getattr(self):
        for _ in range(5):
            self.kernel.getattr(self.any())

    def do_make(self):
        kind = self.random.choice((stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR))
        self.kernel.mknod(self.directory(), self.random.choice(NAMES), kind | 0o4755, 77, ALICE)

    def do_mkdir(self):
        self.kernel.mkdir(self.directory(), self.random.choice(NAMES), 0o2775, ROOT)

    def do_create(self):
        self.kernel.create(*self.place(), 0o644, os.O_RDWR, ROOT)

    def do_create_anew(self):
        self.kernel.create(*self.place(), 0o644, os.O_RDWR | os.O_TRUNC, ALICE)

    def do_tmpfile(self):
        flags = self.random.choice((os.O_RDWR, os.O_RDWR | os.O_EXCL))
        ino = self.kernel.tmpfile(self.directory(), 0o600, flags, ROOT).ino
        if self.random.random() < 0.5:
            self.kernel.link(ino, *self.place())

    def do_link(self):
        self.kernel.link(self.any(), *self.place())

    def do_unlink(self):
        self.kernel.unlink(*self.place())

    def do_rmdir(self):
        self.kernel.rmdir(*self.place())

    def do_rename(self):
        self.kernel.rename(*self.place(), *self.place(), self.random.choice((0, 1)))

    def do_exchange(self):
        self.kernel.rename(*self.place(), *self.place(), RENAME_EXCHANGE)

    def do_open(self):
        self.kernel.open(self.any(), self.random.choice((os.O_RDONLY, os.O_RDWR, os.O_TRUNC)))

    def do_release(self):
        for ino in [ino for ino, count in self.kernel.opens.items() if count][:3]:
            self.kernel.release(ino)

    def do_forget(self):
        for _ in range(4):
            ino = self.any()
            self.kernel.forget(ino, self.random.choice((1, 2, 1 << 40)))

    async def do_write(self):
        ino, data = self.any(), bytes(self.random.choice((1, 3000, 9000)))
        offset = self.random.randrange(20_000)
        await self.kernel.write(ino, offset, data, kill_privileges=self.random.random() < 0.5)

    async def do_read(self):
        ino = self.any()
        self.kernel.volume.clock.now_ns += 25 * 3600 * 10**9  # so that it changes atime
        await self.kernel.read(ino, 0, 5000)

    async def do_fallocate(self):
        mode = self.random.choice((0, 1, 3, 16, 17))  # holes, zeros, with and without growing
        offset, nbytes = self.random.randrange(20_000), self.random.choice((1, 5000, 20_000))
        await self.kernel.fallocate(self.any(), offset, nbytes, mode)

    async def do_copy(self):
        offset = self.random.choice((0, 4096, 100))
        await self.kernel.copy_range(self.any(), 0, self.any(), offset, 30_000)

    async def do_truncate(self):
        await self.change(Changes(size=self.random.choice((0, 5000, 30_000))))

    async def do_chmod(self):
        await self.change(Changes(mode=self.random.choice((0o600, 0o4755, 0o2755))))

    async def do_chown(self):
        await self.change(Changes(uid=self.random.randrange(9), gid=self.random.randrange(9)))

    async def do_utimes(self):
        await self.change(Changes(mtime_ns=self.random.randrange(99), atime_ns=5))

    async def do_all_at_once(self):
        await self.change(Changes(size=100, mode=0o755, uid=1, mtime_ns=3, ctime_ns=4))

    async def change(self, changes):
        caller = self.random.choice((ROOT, ALICE))
        await self.kernel.setattr(self.any(), changes, caller)

    def do_setxattr(self):
        name = self.random.choice((b"user.a", b"security.capability", b"trusted.b"))
        self.kernel.setxattr(self.any(), name, bytes(20), 0, ROOT)

    def do_removexattr(self):
        self.kernel.removexattr(self.any(), self.random.choice((b"user.a", b"trusted.b")))

    def do_set_acl(self):
        entries = [(acl.USER_OBJ, 6), (acl.GROUP_OBJ, 4), (acl.OTHER, self.random.randrange(8))]
        value = b"\2\0\0\0" + b"".join(
            tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + b"\xff" * 4
            for tag, mode in entries
        )
        self.kernel.setxattr(self.any(), acl.ACCESS, value, 0, ROOT)

    def do_list(self):
        ino = self.directory()
        self.kernel.opendir(ino)
        self.kernel.opens[ino] += 1
        for entry in self.kernel.readdir(ino, 0, 100):
            if entry.name not in (b".", b".."):
                self.kernel.getattr(entry.ino)
                self.kernel.remember(entry.ino)
        self.kernel.release(ino)

    def do_readlink(self):
        self.kernel.readlink(self.any())

    async def do_fsync(self):
        await self.kernel.fsync(1)

    async def do_cut(self):
        """The flush goes on meanwhile, among the operations that follow."""
        store = self.kernel.volume.store
        epoch = store.epoch
        store.request_cut()
        while store.epoch == epoch and store.dirty:
            await trio.lowlevel.checkpoint()


class Meanwhile:
    """While a name changes nothing is known of it, nor of its directory's attributes; while xattrs
    change, nothing of their inode: C may ask at any moment, and the operation may still fail or
    succeed."""

    def __init__(self, volume, monkeypatch):
        self.known, self.meta = volume.known, volume.inodes.meta
        self.link, self.unlink = self.meta.link, self.meta.unlink
        monkeypatch.setattr(self.meta, "link", self.checked_link)
        monkeypatch.setattr(self.meta, "unlink", self.checked_unlink)
        for name in ("set_xattr", "remove_xattr"):
            monkeypatch.setattr(self.meta, name, self.checked_xattr(getattr(self.meta, name)))

    def checked_xattr(self, function):
        def call(epoch, ino, *arguments):
            assert self.known.getattr(ino) is None
            function(epoch, ino, *arguments)
            assert self.known.getattr(ino) is None

        return call

    def check(self, parent, name):
        assert self.known.lookup(parent, name) is None
        assert self.known.getattr(parent) is None

    def checked_link(self, epoch, parent, name, ino, kind):
        self.check(parent, name)
        self.link(epoch, parent, name, ino, kind)
        self.check(parent, name)

    def checked_unlink(self, epoch, parent, position):
        (entry,) = self.meta.entries(parent, position - 1, 1)
        assert entry.position == position
        self.check(parent, entry.name)
        self.unlink(epoch, parent, position)
        self.check(parent, entry.name)


class Faults:
    """Now and then a statement that changes names or attributes finds no room."""

    NAMES = ("insert_inode", "link", "unlink", "set_xattr", "remove_xattr", "remove_inode")

    def __init__(self, meta, seed, monkeypatch):
        self.random = random.Random(seed)
        self.happened = 0
        for name in self.NAMES:
            monkeypatch.setattr(meta, name, self.wrapped(getattr(meta, name)))

    def wrapped(self, function):
        def call(*arguments):
            if self.random.random() < 0.04:
                self.happened += 1
                raise OutOfSpace("none of it")
            return function(*arguments)

        return call


async def run(directory, steps, seed, nbytes_max, monkeypatch, *, faults=False):
    async with mounted(
        make_members(directory), clock=Clock(), cached_max=16, known=Known(nbytes_max)
    ) as volume:
        kernel = Kernel(volume, seed)
        workload = Workload(kernel, seed)
        operations = Operations(kernel, seed)
        Meanwhile(volume, monkeypatch)
        injected = Faults(volume.inodes.meta, seed, monkeypatch) if faults else None
        done, refused = Counter(), Counter()
        for number in range(steps):
            actor = workload if number < steps // 3 and not faults else operations
            name = "refused"
            if number % 4 == 0:
                kernel.prime()
            try:
                name = await actor.step()
            except RaidfsError as error:
                refused[error.errno] += 1
            done[name] += 1
            kernel.check()
            if injected is None:
                kernel.check_orphans()
        print(dict(kernel.answers), dict(refused), volume.known.statistics())
        assert kernel.known.statistics().referenced == sum(
            count > 0 for count in kernel.references.values()
        )
        if injected is not None:
            assert injected.happened > steps // 200
        return kernel, volume.known.statistics()


@pytest.mark.slow
@pytest.mark.trio
async def test_nothing_stale_and_references_exact(tmp_path, monkeypatch):
    kernel, statistics = await run(tmp_path, 900, 1, PLENTY, monkeypatch)
    for what in ("inode", "resident", "name", "no such name", "name not known", "no xattrs"):
        assert kernel.answers[what] > 100, what
    assert kernel.answers["xattrs"] > 50
    assert statistics.complete > 3 and statistics.evicted == 0


@pytest.mark.trio
async def test_nothing_stale_where_entries_are_evicted(tmp_path, monkeypatch):
    kernel, statistics = await run(tmp_path, 600, 2, 4000, monkeypatch)
    assert statistics.evicted > 300
    assert kernel.answers["name"] > 50


@pytest.mark.slow
@pytest.mark.trio
async def test_nothing_stale_after_operations_that_failed(tmp_path, monkeypatch):
    kernel, _ = await run(tmp_path, 600, 3, PLENTY, monkeypatch, faults=True)
    assert kernel.answers["name"] > 100 and kernel.answers["no such name"] > 100


class Telling:
    """A volume with a directory `d`, a file `f` in it and one `g`, open, and what changes them."""

    def __init__(self, volume):
        self.volume, self.known = volume, volume.known
        self.directory = volume.mkdir(1, b"d", 0o755, ROOT).ino
        self.other = volume.mkdir(1, b"e", 0o755, ROOT).ino
        self.file = volume.mknod(self.directory, b"f", stat.S_IFREG | 0o644, 0, ROOT).ino
        self.open = volume.create(self.directory, b"g", 0o644, os.O_RDWR, ROOT).ino
        self.fifo = volume.mknod(self.directory, b"p", stat.S_IFIFO | 0o644, 0, ROOT).ino
        self.link = volume.symlink(self.directory, b"s", b"target", ROOT).ino
        self.inos = (1, self.directory, self.other, self.file, self.open, self.fifo, self.link)

    def tell_all(self):
        for ino in self.inos:
            self.volume.getattr(ino)

    def forget_all(self):
        for ino in self.inos:
            self.known.forget_inode(ino)

    def check(self, *, known, but=()):
        for ino in self.inos:
            answer = self.known.getattr(ino)
            assert (answer is not None) == (known or ino in but), ino
            if answer is None:
                continue
            inode = self.volume.inodes.get(ino)
            truth = self.volume.inodes.attributes(inode)
            assert (answer.mode, answer.nlink) == (truth.mode, truth.nlink)
            assert answer.no_xattrs == (not inode.row.xattrs)
            assert answer.resident == inode.resident
            if not answer.resident:
                times = (answer.size, answer.mtime_ns, answer.ctime_ns, answer.atime_ns)
                assert times == (truth.size, truth.mtime_ns, truth.ctime_ns, truth.atime_ns)

    def changes(self):
        """Functions, and the inodes that each of them tells the kernel of."""
        volume, d, e, f, g = self.volume, self.directory, self.other, self.file, self.open
        yield lambda: volume.mknod(d, b"new", stat.S_IFREG, 0, ROOT), ()
        yield lambda: volume.mkdir(d, b"sub", 0o755, ROOT), ()
        yield lambda: volume.symlink(e, b"symlink", b"there", ROOT), ()
        yield lambda: volume.link(f, e, b"link"), (f,)
        yield lambda: volume.rename(d, b"new", d, b"newer"), ()
        yield lambda: volume.rename(d, b"newer", e, b"newest"), ()
        yield lambda: volume.rename(d, b"f", e, b"newest"), ()
        yield lambda: volume.rename(d, b"sub", e, b"sub"), ()
        yield lambda: volume.mkdir(e, b"sub2", 0o755, ROOT), ()
        yield lambda: volume.rename(e, b"sub2", e, b"sub"), ()  # e has one directory less
        yield lambda: volume.rename(d, b"g", e, b"sub", RENAME_EXCHANGE), ()
        yield lambda: volume.unlink(e, b"newest"), ()
        yield lambda: volume.rmdir(d, b"g"), ()
        for ino in (d, f, g):
            yield lambda ino=ino: volume.setxattr(ino, b"user.a", b"x", 0, ROOT), ()
            yield lambda ino=ino: volume.removexattr(ino, b"user.a"), ()
            yield lambda ino=ino: volume.setattr(ino, Changes(mode=0o4755), ALICE), (ino,)
        yield lambda: volume.setxattr(g, b"security.capability", b"x", 0, ROOT), ()
        yield lambda: volume.write(g, 0, b"y" * 9000, kill_privileges=True), ()
        yield lambda: volume.setattr(g, Changes(size=5), ROOT), (g,)
        yield lambda: volume.fallocate(g, 100, 9000, 0), ()
        yield lambda: volume.copy_range(g, 0, f, 0, 20_000), ()
        yield lambda: volume.open(f, os.O_RDWR | os.O_TRUNC), ()
        yield lambda: volume.release(f), ()
        yield lambda: volume.read(f, 0, 10), ()
        yield lambda: volume.readlink(self.link), ()
        yield lambda: volume.readdir(d, 0, 100), ()
        yield lambda: volume.write(f, 0, b"z" * 20_000), ()
        yield lambda: volume.unlink(e, b"link"), ()  # it has no other name, but is referred to
        yield lambda: volume.fsync(1), ()
        yield lambda: volume.release(g), ()
        yield lambda: volume.fsync(1), ()


@pytest.mark.trio
@pytest.mark.parametrize("known", [True, False])
async def test_after_a_change_as_much_is_known_as_before(tmp_path, known):
    async with mounted(make_members(tmp_path), clock=Clock(), known=Known()) as volume:
        telling = Telling(volume)
        for change, told in telling.changes():
            volume.clock.now_ns += 25 * 3600 * 10**9
            if known:
                telling.tell_all()
            else:
                telling.forget_all()
            result = change()
            if result is not None and hasattr(result, "__await__"):
                await result
            telling.check(known=known, but=told)
        assert not volume.inodes.get(telling.open).resident


@pytest.mark.trio
async def test_what_a_flush_and_an_eviction_change_is_told_again(tmp_path):
    async with mounted(make_members(tmp_path), known=Known()) as volume:
        ino = volume.create(1, b"f", 0o644, os.O_RDWR, ROOT).ino
        await volume.write(ino, 0, b"x" * 20_000)
        assert volume.known.getattr(ino).resident
        volume.release(ino)
        await volume.fsync(ino)
        answer = volume.known.getattr(ino)
        assert (answer.resident, answer.cells) == (True, 5)
        await volume.write(ino, 5000, b"y")
        await volume.fsync(ino)
        volume.open(ino, os.O_RDONLY)
        assert volume.known.getattr(ino).resident
        volume.release(ino)
        answer = volume.known.getattr(ino)
        assert (answer.resident, answer.size, answer.cells) == (False, 20_000, 5)
        assert answer.no_xattrs


def missing(volume, directory, name):
    with pytest.raises(FsError):
        volume.lookup(directory, name)


@pytest.mark.trio
async def test_a_directory_in_which_many_look_in_vain_is_known_wholly(tmp_path, monkeypatch):
    monkeypatch.setattr(names_module, "LISTED_MAX", 20)
    async with mounted(make_members(tmp_path), known=Known()) as volume:
        known = volume.known
        for count in (0, 1, 20, 21):
            directory = volume.mkdir(1, b"d%d" % count, 0o755, ROOT).ino
            for number in range(count):
                volume.mknod(directory, b"n%d" % number, stat.S_IFREG, 0, ROOT)
            known.forget_directory(directory)
            if count == 21:
                volume.lookup(directory, b"n20")  # some are known all the same
            missing(volume, directory, b"a")
            missing(volume, directory, b"b")
            assert known.lookup(directory, b"a") == 0
            assert known.lookup(directory, b"x") is None
            missing(volume, directory, b"c")
            assert known.lookup(directory, b"x") == (0 if count <= 20 else None), count
            assert known.lookup(directory, b"n3") != 0 or count < 4


@pytest.mark.trio
async def test_a_removed_directory_is_not_answered_for(tmp_path):
    async with mounted(make_members(tmp_path), known=Known()) as volume:
        directory = volume.mkdir(1, b"d", 0o755, ROOT).ino
        volume.rmdir(1, b"d")
        for name in (b"a", b"b", b"c", b"d"):
            missing(volume, directory, name)
        assert volume.known.lookup(directory, b"a") is None
        assert volume.known.lookup(1, b"d") is None or volume.known.lookup(1, b"d") == 0


@pytest.mark.trio
async def test_nothing_but_references_without_a_lane(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        directory = volume.mkdir(1, b"d", 0o755, ROOT).ino
        volume.create(directory, b"f", 0o644, os.O_RDWR, ROOT)
        volume.getattr(directory)
        for name in (b"a", b"b", b"c", b"d"):
            missing(volume, directory, name)
        statistics = volume.known.statistics()
        assert (statistics.inodes, statistics.names, statistics.directories) == (0, 0, 0)
        assert statistics.referenced == 2


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("seed", range(10, 14))
async def test_nothing_stale_for_longer(tmp_path, monkeypatch, seed):
    nbytes_max = (PLENTY, 12_000, 3000)[seed % 3]
    await run(tmp_path, 1500, seed, nbytes_max, monkeypatch, faults=seed % 2 == 1)
