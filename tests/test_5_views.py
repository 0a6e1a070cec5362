"""Snapshots seen as directories: what a view tells is what the present told when it was taken.

`described` walks a tree through the volume and writes down all that a program could learn of it but
inode numbers. Taken of the present at the moment of a snapshot, and of the view later, whatever has
happened to the present meanwhile, both must be equal.
"""

import errno
import os
import random
import stat

import pytest
import trio
from volumes import ALICE, ROOT, Clock, content, make_members, mounted, names
from workload import Workload

from raidfs.check import check_volume
from raidfs.errors import FsError, RaidfsError, ReadOnly
from raidfs.fs import acl, xattr
from raidfs.fs.attributes import RENAME_EXCHANGE, Changes
from raidfs.fs.audience import Audience
from raidfs.fs.rollback import rollback
from raidfs.fs.views import SNAPSHOTS_INO, SNAPSHOTS_NAME
from raidfs.known import Known
from raidfs.store.past import as_view, view_of, within

PAGE = 4096


def check(paths):
    """Nothing is wrong; a zone made ahead of need may have been left."""
    report = check_volume(paths[0])
    assert not report.findings, report.findings[:20]
    assert not [note for note in report.notes if note.code != "column.stray"], report.notes[:20]


def run(tmp_path, body, *, size_bytes=48 << 20, **options):
    """body(volume) on a fresh volume, which is checked afterwards."""
    paths = make_members(tmp_path, size_bytes=size_bytes)

    async def main():
        async with mounted(paths, **options) as volume:
            await body(volume)
            for ino in volume.known.referenced():
                volume.forget(ino, 1 << 40)

    trio.run(main)
    check(paths)
    return paths


async def described(volume, root, *, caller=ROOT):
    """Path -> all that can be learned of it, but numbers of inodes; links by who else has them."""
    found, paths = {}, {}
    waiting = [(b"/", root)]
    while waiting:
        path, ino = waiting.pop()
        told = volume.getattr(ino)
        assert told.ino == ino
        paths.setdefault(ino, []).append(path)
        entry = [told.mode, told.nlink, told.uid, told.gid, told.rdev, told.size, told.blocks]
        entry += [told.atime_ns, told.mtime_ns, told.ctime_ns, told.btime_ns, told.generation]
        xattrs = volume.listxattr(ino, caller)
        entry.append({name: volume.getxattr(ino, name) for name in xattrs})
        if stat.S_ISLNK(told.mode):
            entry.append(volume.readlink(ino))
        if stat.S_ISREG(told.mode):
            entry.append((await content(volume, ino), await holes(volume, ino, told.size)))
        if stat.S_ISDIR(told.mode):
            after = 0
            while entries := volume.names.entries(ino, after, 7):
                after = entries[-1].cookie
                for each in entries:
                    if each.name not in (b".", b".."):
                        assert volume.names.lookup(ino, each.name).ino == each.ino
                        waiting.append((os.path.join(path, each.name), each.ino))
        found[path] = entry
    return found, sorted(sorted(group) for group in paths.values())


async def holes(volume, ino, size):
    """Where data begins and ends, by SEEK_DATA and SEEK_HOLE."""
    found, at = [], 0
    while at < size:
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            try:
                at = await volume.seek(ino, at, whence)
            except FsError as error:
                assert error.errno == errno.ENXIO
                return found
            found.append(at)
    return found


async def make_file(volume, parent, name, data, mode=0o644):
    told = volume.create(parent, name, mode, os.O_RDWR, ROOT)
    await volume.write(told.ino, 0, data)
    volume.release(told.ino)
    return told.ino


async def make_tree(volume):
    """One of each kind, with links, attributes, ACLs and holes."""
    await make_file(volume, 1, b"small", b"small content")
    large = await make_file(volume, 1, b"large", os.urandom(300 * PAGE + 17))
    sparse = await make_file(volume, 1, b"sparse", b"begin")
    await volume.write(sparse, 400 * PAGE, b"far")
    await volume.setattr(sparse, Changes(size=900 * PAGE), ROOT)
    directory = volume.mkdir(1, b"dir", 0o2750, ALICE).ino
    deep = volume.mkdir(directory, b"deep", 0o755, ROOT).ino
    volume.link(large, deep, b"also large")
    volume.symlink(deep, b"soft", b"../../large", ALICE)
    volume.mknod(deep, b"fifo", stat.S_IFIFO | 0o640, 0, ROOT)
    volume.mknod(deep, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), ROOT)
    volume.setxattr(large, b"user.colour", b"blue", 0, ROOT)
    volume.setxattr(1, b"user.of root", b"yes", 0, ROOT)
    volume.setxattr(deep, b"trusted.large", os.urandom(3000), 0, ROOT)
    entries = (
        acl.AclEntry(acl.USER_OBJ, 7),
        acl.AclEntry(acl.USER, 6, 12),
        acl.AclEntry(acl.GROUP_OBJ, 5),
        acl.AclEntry(acl.MASK, 7),
        acl.AclEntry(acl.OTHER, 0),
    )
    volume.setxattr(directory, acl.DEFAULT, acl.encode(entries), 0, ROOT)
    volume.setxattr(large, acl.ACCESS, acl.encode(entries), 0, ROOT)
    for number in range(40):
        await make_file(volume, deep, b"file %d" % number, b"%d" % number * number)


async def ruin_tree(volume):
    """Nothing stays as `make_tree` left it."""
    large = volume.lookup(1, b"large").ino
    await volume.write(large, 5 * PAGE + 100, os.urandom(20 * PAGE))
    await volume.setattr(large, Changes(size=100 * PAGE), ROOT)
    volume.removexattr(large, b"user.colour")
    volume.set_attributes(large, Changes(mode=0o600, uid=99, mtime_ns=5), ROOT)
    sparse = volume.lookup(1, b"sparse").ino
    await volume.fallocate(sparse, 0, 500 * PAGE, 3)
    volume.unlink(1, b"small")
    await make_file(volume, 1, b"small", b"another")
    deep = volume.lookup(volume.lookup(1, b"dir").ino, b"deep").ino
    for name in names(volume, deep):
        volume.unlink(deep, name)
    volume.rmdir(volume.lookup(1, b"dir").ino, b"deep")
    volume.rename(1, b"dir", 1, b"directory")
    volume.setxattr(1, b"user.of root", b"no", 0, ROOT)


def refused(number, function, *arguments, **options):
    with pytest.raises(RaidfsError) as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, caught.value


async def refused_later(number, function, *arguments, **options):
    with pytest.raises(RaidfsError) as caught:
        await function(*arguments, **options)
    assert caught.value.errno == number, caught.value


# -- what a view tells ----------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["plain", "known"])
def test_a_view_tells_what_the_present_told(tmp_path, known):
    at_the_time = {}

    async def body(volume):
        await make_tree(volume)
        await volume.fsync(1)
        at_the_time["first"] = await described(volume, 1)
        first = await volume.store.snapshots.create("first")
        await ruin_tree(volume)
        await volume.fsync(1)
        at_the_time["second"] = await described(volume, 1)
        second = await volume.store.snapshots.create("second")
        assert at_the_time["first"] != at_the_time["second"]
        for snapshot in (first, second):
            root = volume.lookup(SNAPSHOTS_INO, snapshot.name.encode()).ino
            assert root == as_view(snapshot.id, 1)
            assert await described(volume, root) == at_the_time[snapshot.name]

    async def again(volume):
        for name, told in at_the_time.items():
            root = volume.lookup(SNAPSHOTS_INO, name.encode()).ino
            assert await described(volume, root) == told

    paths = run(tmp_path, body, known=Known() if known else None, noatime=True)

    async def reopened(**options):
        async with mounted(paths, **options) as volume:
            await again(volume)

    trio.run(reopened)
    trio.run(lambda: reopened(read_only=True))
    check(paths)


@pytest.mark.parametrize("seed", range(3))
def test_views_after_a_random_history(tmp_path, seed):
    """Each snapshot, long after: after others came and went, in whatever order."""

    async def body(volume):
        chance = random.Random(seed)
        workload = Workload(volume, seed)
        at_the_time = {}
        for step in range(12):
            for _ in range(chance.randrange(5, 40)):
                await workload.step()
            await volume.fsync(1)
            name = f"s{step}"
            at_the_time[name] = await described(volume, 1)
            await volume.store.snapshots.create(name)
            if chance.random() < 0.4 and len(at_the_time) > 2:
                gone = chance.choice(sorted(at_the_time))
                del at_the_time[gone]
                await volume.store.snapshots.delete([gone])
            for each in chance.sample(sorted(at_the_time), min(3, len(at_the_time))):
                root = volume.lookup(SNAPSHOTS_INO, each.encode()).ino
                assert await described(volume, root) == at_the_time[each], (step, each)
        await volume.store.snapshots.swept()
        for each, told in at_the_time.items():
            root = volume.lookup(SNAPSHOTS_INO, each.encode()).ino
            assert await described(volume, root) == told, each

    run(tmp_path, body, noatime=True, known=Known())


def test_reading_changes_nothing(tmp_path):
    """Not even an atime, of the view or of the present."""

    async def body(volume):
        await make_tree(volume)
        snapshot = await volume.store.snapshots.create("s")
        await volume.store.snapshots.swept()
        before = volume.store.epoch
        root = as_view(snapshot.id, 1)
        told = await described(volume, root)
        volume.readdir(root, 0, 100)
        volume.readdir(SNAPSHOTS_INO, 0, 100)
        large = volume.lookup(root, b"large").ino
        volume.open(large, os.O_RDONLY)
        assert len(await volume.read(large, 0, 100)) == 100
        volume.readlink(
            volume.lookup(volume.lookup(volume.lookup(root, b"dir").ino, b"deep").ino, b"soft").ino
        )
        await volume.fsync(large)
        volume.release(large)
        assert await described(volume, root) == told
        assert not volume.store.dirty and volume.store.epoch == before
        assert volume.statistics().dirty == 0

    run(tmp_path, body)


def test_every_change_is_refused(tmp_path):
    async def body(volume):
        await make_tree(volume)
        snapshot = await volume.store.snapshots.create("s")
        root = as_view(snapshot.id, 1)
        told = await described(volume, root)
        small, large = (volume.lookup(root, name).ino for name in (b"small", b"large"))
        directory = volume.lookup(root, b"dir").ino
        live = volume.lookup(1, b"small").ino
        changes = [
            (volume.mkdir, root, b"new", 0o755, ROOT),
            (volume.mknod, directory, b"new", stat.S_IFIFO | 0o644, 0, ROOT),
            (volume.symlink, root, b"new", b"target", ROOT),
            (volume.create, root, b"new", 0o644, os.O_RDWR, ROOT),
            (volume.create, root, b"small", 0o644, os.O_RDWR, ROOT),
            (volume.tmpfile, root, 0o644, os.O_RDWR, ROOT),
            (volume.link, small, 1, b"new"),
            (volume.link, live, root, b"new"),
            (volume.link, small, root, b"new"),
            (volume.unlink, root, b"small"),
            (volume.rmdir, root, b"dir"),
            (volume.rename, root, b"small", root, b"new"),
            (volume.rename, root, b"small", 1, b"new"),
            (volume.rename, 1, b"small", root, b"new"),
            (volume.rename, root, b"dir", directory, b"new"),
            (volume.rename, root, b"small", 1, b"small", RENAME_EXCHANGE),
            (volume.set_attributes, small, Changes(mode=0o600), ROOT),
            (volume.set_attributes, root, Changes(mtime_ns=1), ROOT),
            (volume.setxattr, small, b"user.new", b"value", 0, ROOT),
            (volume.setxattr, large, b"user.colour", b"red", xattr.REPLACE, ROOT),
            (volume.removexattr, large, b"user.colour"),
            (volume.open, small, os.O_WRONLY),
            (volume.open, small, os.O_RDONLY | os.O_TRUNC),
            (volume.mkdir, SNAPSHOTS_INO, b"new", 0o755, ROOT),
            (volume.create, SNAPSHOTS_INO, b"new", 0o644, os.O_RDWR, ROOT),
            (volume.rmdir, SNAPSHOTS_INO, b"s"),
            (volume.rename, SNAPSHOTS_INO, b"s", SNAPSHOTS_INO, b"t"),
            (volume.rename, SNAPSHOTS_INO, b"s", 1, b"t"),
            (volume.set_attributes, SNAPSHOTS_INO, Changes(mode=0o700), ROOT),
            (volume.setxattr, SNAPSHOTS_INO, b"user.new", b"value", 0, ROOT),
        ]
        for function, *arguments in changes:
            refused(errno.EROFS, function, *arguments)
        volume.open(large, os.O_RDONLY)
        await refused_later(errno.EROFS, volume.write, large, 0, b"no")
        await refused_later(errno.EROFS, volume.setattr, large, Changes(size=5), ROOT)
        await refused_later(errno.EROFS, volume.fallocate, large, 0, PAGE, 3)
        await refused_later(errno.EROFS, volume.copy_range, live, 0, large, 0, 5)
        volume.release(large)
        refused(errno.EISDIR, volume.open, root, os.O_RDONLY)
        with pytest.raises(ReadOnly), volume.inodes.change(volume.inodes.get(small)):
            pytest.fail("changed")
        with pytest.raises(ReadOnly):
            volume.inodes.change_alone(volume.inodes.get(small))
        assert await described(volume, root) == told
        assert names(volume, SNAPSHOTS_INO) == [b"s"]

    run(tmp_path, body, noatime=True)


def test_copied_out_of_a_view_cells_are_shared(tmp_path):
    """And stay when the snapshot goes."""
    data = os.urandom(300 * PAGE + 100)

    async def body(volume):
        ino = await make_file(volume, 1, b"file", data)
        snapshot = await volume.store.snapshots.create("s")
        await volume.setattr(ino, Changes(size=0), ROOT)
        await volume.fsync(ino)
        used = volume.statfs().free
        view = volume.lookup(as_view(snapshot.id, 1), b"file").ino
        copy = volume.create(1, b"copy", 0o644, os.O_RDWR, ROOT).ino
        done = 0
        while done < len(data):
            done += await volume.copy_range(view, done, copy, done, len(data) - done)
        await volume.fsync(copy)
        assert used - volume.statfs().free < 5
        await volume.store.snapshots.delete(["s"])
        await volume.store.snapshots.swept()
        assert await content(volume, copy) == data
        volume.release(copy)

    run(tmp_path, body)


# -- the directory of snapshots -------------------------------------------------------------------


def test_the_directory_of_snapshots(tmp_path):
    async def body(volume):
        store = volume.store
        assert SNAPSHOTS_NAME not in names(volume, 1)
        before = volume.lookup(1, SNAPSHOTS_NAME)
        assert before.ino == SNAPSHOTS_INO and before.mode == stat.S_IFDIR | 0o555
        assert before.nlink == 2 and names(volume, SNAPSHOTS_INO) == []
        one = await store.snapshots.create("one")
        two = await store.snapshots.create("zwei ü")
        assert names(volume, SNAPSHOTS_INO) == [b"one", "zwei ü".encode()]
        told = volume.getattr(SNAPSHOTS_INO)
        assert told.nlink == 4 and told.mtime_ns == told.ctime_ns == two.created_ns
        refused(errno.ENOENT, volume.lookup, SNAPSHOTS_INO, b"three")
        refused(errno.ENOENT, volume.lookup, SNAPSHOTS_INO, b"\xff")
        assert volume.lookup(SNAPSHOTS_INO, b"..").ino == 1
        assert volume.lookup(SNAPSHOTS_INO, b".").ino == SNAPSHOTS_INO
        root = volume.lookup(SNAPSHOTS_INO, b"one").ino
        assert volume.lookup(root, b"..").ino == volume.parent_of(root) == SNAPSHOTS_INO
        refused(errno.ENOENT, volume.lookup, root, SNAPSHOTS_NAME)
        dots = {entry.name: entry.ino for entry in volume.readdir(root, 0, 2)}
        assert dots == {b".": root, b"..": SNAPSHOTS_INO}
        dots = {entry.name: entry.ino for entry in volume.readdir(SNAPSHOTS_INO, 0, 2)}
        assert dots == {b".": SNAPSHOTS_INO, b"..": 1}
        await store.snapshots.rename("one", "uno")
        refused(errno.ENOENT, volume.lookup, SNAPSHOTS_INO, b"one")
        assert volume.lookup(SNAPSHOTS_INO, b"uno").ino == root
        await store.snapshots.delete(["uno"])
        refused(errno.ENOENT, volume.lookup, SNAPSHOTS_INO, b"uno")
        refused(errno.ESTALE, volume.getattr, root)
        assert volume.getattr(SNAPSHOTS_INO).nlink == 3
        assert one.id != two.id

    run(tmp_path, body)


def test_it_is_listed_only_if_asked_for(tmp_path):
    async def body(volume):
        for number in range(50):
            await make_file(volume, 1, b"file %d" % number, b"")
        for limit in (1, 2, 3, 7, 52, 53, 54, 1000):
            found = names(volume, 1, limit)
            assert len(found) == 51 and len(set(found)) == 51 and found[-1] == SNAPSHOTS_NAME

    run(tmp_path, body, snapshots_listed=True)


def test_a_listing_goes_on_while_snapshots_come_and_go(tmp_path):
    async def body(volume):
        snapshots = volume.store.snapshots
        for number in range(20):
            await snapshots.create(f"s{number}")
        found, after, stay = [], 0, {f"s{number}".encode() for number in range(0, 20, 2)}
        step = 0
        while entries := volume.readdir(SNAPSHOTS_INO, after, 3):
            found += [entry.name for entry in entries]
            after = entries[-1].cookie
            if 2 * step + 1 < 20:
                await snapshots.delete([f"s{2 * step + 1}"])
            if step == 2:
                await snapshots.rename("s0", "another")
            step += 1
        assert stay <= set(found) and len(found) == len(set(found))
        assert (await snapshots.create("last")).name.encode() in names(volume, SNAPSHOTS_INO)

    run(tmp_path, body)


def test_its_name_is_taken(tmp_path):
    async def body(volume):
        ino = await make_file(volume, 1, b"file", b"content")
        directory = volume.mkdir(1, b"dir", 0o755, ROOT).ino
        refused(errno.EEXIST, volume.mkdir, 1, SNAPSHOTS_NAME, 0o755, ROOT)
        refused(errno.EEXIST, volume.symlink, 1, SNAPSHOTS_NAME, b"target", ROOT)
        refused(errno.EEXIST, volume.link, ino, 1, SNAPSHOTS_NAME)
        refused(errno.EEXIST, volume.rename, 1, b"file", 1, SNAPSHOTS_NAME)
        refused(errno.EEXIST, volume.rename, 1, b"dir", 1, SNAPSHOTS_NAME, RENAME_EXCHANGE)
        excl = os.O_RDWR | os.O_EXCL
        refused(errno.EEXIST, volume.create, 1, SNAPSHOTS_NAME, 0o644, excl, ROOT)
        refused(errno.EISDIR, volume.create, 1, SNAPSHOTS_NAME, 0o644, os.O_RDWR, ROOT)
        refused(errno.EPERM, volume.unlink, 1, SNAPSHOTS_NAME)
        refused(errno.EPERM, volume.rmdir, 1, SNAPSHOTS_NAME)
        refused(errno.EPERM, volume.rename, 1, SNAPSHOTS_NAME, 1, b"other")
        # Elsewhere it is a name like others.
        assert volume.mkdir(directory, SNAPSHOTS_NAME, 0o755, ROOT).ino < SNAPSHOTS_INO
        assert sorted(names(volume, 1)) == [b"dir", b"file"]

    run(tmp_path, body)


# -- what comes and goes --------------------------------------------------------------------------


class Listener(Audience):
    def __init__(self):
        self.inos, self.names = [], []

    def outdated(self, inos, names=()):
        self.inos += inos
        self.names += [None] if names is None else names


def test_a_deleted_snapshot_is_forgotten(tmp_path):
    """By all caches; what is open of it answers ESTALE until it is closed."""

    async def body(volume):
        volume.audience = listener = Listener()
        await make_tree(volume)
        gone = await volume.store.snapshots.create("gone")
        kept = await volume.store.snapshots.create("kept")
        for snapshot in (gone, kept):
            await described(volume, as_view(snapshot.id, 1))
        root, other = as_view(gone.id, 1), as_view(kept.id, 1)
        large = volume.lookup(root, b"large").ino
        sparse = volume.lookup(root, b"sparse").ino
        volume.open(large, os.O_RDONLY)
        volume.opendir(root)
        assert volume.known.getattr(large) is not None
        kept_large = volume.lookup(other, b"large").ino
        cached = volume.known.statistics()
        listener.names.clear()
        await volume.store.snapshots.delete(["gone"])
        assert set(listener.inos) == {large, root}
        assert listener.names == [(SNAPSHOTS_INO, b"gone")]
        for ino in (large, sparse, root):
            assert volume.known.getattr(ino) is None
            refused(errno.ESTALE, volume.getattr, ino)
            await refused_later(errno.ESTALE, volume.read, ino, 0, 10)
        assert volume.known.lookup(root, b"large") is None
        refused(errno.ESTALE, volume.lookup, root, b"large")
        refused(errno.ESTALE, volume.open, large, os.O_RDONLY)
        refused(errno.ESTALE, volume.readdir, root, 0, 10)
        await refused_later(errno.ESTALE, volume.seek, large, 0, os.SEEK_DATA)
        target = await make_file(volume, 1, b"target", b"")
        await refused_later(errno.ESTALE, volume.copy_range, large, 0, target, 0, PAGE)
        refused(errno.ESTALE, volume.getxattr, large, b"user.colour")
        assert volume.known.getattr(kept_large) is not None
        assert volume.known.statistics().referenced >= cached.referenced
        pinned = volume.statistics().pinned
        volume.release(large)
        volume.release(root)
        assert volume.statistics().pinned == pinned - 2
        assert not volume.store.pages.resident(large)
        assert not volume.store.pages.resident(sparse)
        refused(errno.ESTALE, volume.release, large)
        volume.forget(large, 1 << 40)
        await volume.store.snapshots.swept()
        assert len(await content(volume, kept_large)) == 300 * PAGE + 17

    run(tmp_path, body, known=Known())


def test_a_read_under_way_when_the_snapshot_goes(tmp_path):
    """It fails; it never tells zeros for content that is no longer found."""

    async def body(volume):
        store = volume.store
        ino = await make_file(volume, 1, b"file", b"x" * (64 * PAGE))
        await store.snapshots.create("s")
        volume.unlink(1, b"file")
        volume.forget(ino, 1 << 40)
        await volume.fsync(1)
        view = volume.lookup(volume.lookup(SNAPSHOTS_INO, b"s").ino, b"file").ino
        volume.open(view, os.O_RDONLY)
        offload, held, go = store.offload, trio.Event(), trio.Event()

        async def slow(function, *arguments):
            held.set()
            await go.wait()
            return await offload(function, *arguments)

        results = []

        async def reader():
            try:
                results.append(bytes(await volume.read(view, 0, 64 * PAGE)))
            except FsError as error:
                results.append(error.errno)

        async with trio.open_nursery() as nursery:
            store.offload = slow
            nursery.start_soon(reader)
            await held.wait()
            store.offload = offload
            await store.snapshots.delete(["s"])
            await store.snapshots.swept()
            go.set()
        assert results == [errno.ESTALE]
        volume.release(view)
        assert not store.pages.resident(view)

    run(tmp_path, body)


def test_what_the_lane_is_told_of_views(tmp_path):
    """Names and attributes known, files vouched for reading alone; nothing dirtied by its reads."""

    async def body(volume):
        await make_tree(volume)
        known = volume.known
        snapshot = await volume.store.snapshots.create("s")
        root = volume.lookup(SNAPSHOTS_INO, b"s").ino
        assert known.lookup(SNAPSHOTS_INO, b"s").ino == root
        large = volume.lookup(root, b"large").ino
        assert known.lookup(root, b"large").ino == large
        told = known.getattr(large)
        assert (told.ino, told.nlink, told.no_xattrs) == (large, 2, 0)
        for name in (b"x", b"y", b"z"):
            refused(errno.ENOENT, volume.lookup, root, name)
        assert known.lookup(root, b"whatever") == 0  # it is known wholly by now
        volume.open(large, os.O_RDONLY)
        await volume.read(large, 0, 300 * PAGE)
        assert not volume.store.dirty
        assert volume.store.pages.statistics().open_files == 0
        volume.release(large)
        # The live root, too, once all its names are known.
        for name in (b"x", b"y", b"z"):
            refused(errno.ENOENT, volume.lookup, 1, name)
        assert known.lookup(1, b"whatever") == 0
        assert known.lookup(1, SNAPSHOTS_NAME) in (None, known.getattr(SNAPSHOTS_INO))
        volume.getattr(SNAPSHOTS_INO)
        assert known.getattr(SNAPSHOTS_INO).nlink == 3
        await volume.store.snapshots.create("t")
        assert known.getattr(SNAPSHOTS_INO) is None
        assert known.lookup(SNAPSHOTS_INO, b"s") is None
        assert volume.getattr(SNAPSHOTS_INO).nlink == 4
        assert view_of(large) == snapshot.id and within(large) == volume.lookup(1, b"large").ino

    run(tmp_path, body, known=Known(), noatime=True)


def test_after_a_rollback_nothing_older_is_told(tmp_path):
    """Inodes, names, pages, vouches; what is open goes on, or is ESTALE until it is back."""

    async def body(volume):
        volume.audience = listener = Listener()
        known = volume.known
        await make_tree(volume)
        large = volume.lookup(1, b"large").ino
        small = volume.lookup(1, b"small").ino
        volume.open(large, os.O_RDWR)
        await volume.fsync(1)
        then = await described(volume, 1)
        await volume.store.snapshots.create("then")
        await ruin_tree(volume)
        volume.open(volume.lookup(1, b"small").ino, os.O_RDWR)
        newer = volume.lookup(1, b"small").ino
        assert newer != small and known.getattr(newer) is not None
        await volume.fsync(1)
        now = await described(volume, 1)
        listener.inos.clear()
        listener.names.clear()
        await rollback(volume, "then", keep="now")
        assert None in listener.names and {1, large, newer} <= set(listener.inos)
        assert known.getattr(newer) is None and known.lookup(1, b"small") is None
        refused(errno.ESTALE, volume.getattr, newer)
        await refused_later(errno.ESTALE, volume.read, newer, 0, 10)
        assert await described(volume, 1) == then
        assert volume.lookup(1, b"small").ino == small
        assert volume.store.pages.resident(large)
        await volume.write(large, 0, b"written after")
        assert bytes(await volume.read(large, 0, 13)) == b"written after"
        await rollback(volume, "now")
        assert await described(volume, 1) == now
        assert volume.getattr(newer).size == len(b"another")
        assert await content(volume, newer) == b"another"
        await rollback(volume, "then")
        volume.release(newer)
        assert not volume.store.pages.resident(newer)
        assert await described(volume, 1) == then
        volume.release(large)
        await volume.fsync(1)
        assert volume.statistics().dirty == 0

    run(tmp_path, body, known=Known(), noatime=True)


def test_a_view_alone_as_the_root(tmp_path):
    at_the_time = {}

    async def body(volume):
        await make_tree(volume)
        await volume.fsync(1)
        at_the_time["it"] = await described(volume, 1)
        at_the_time["id"] = (await volume.store.snapshots.create("s")).id
        await ruin_tree(volume)

    paths = run(tmp_path, body, noatime=True)

    async def alone():
        root = as_view(at_the_time["id"], 1)
        async with mounted(paths, read_only=True, root=root, known=Known()) as volume:
            assert await described(volume, 1) == at_the_time["it"]
            refused(errno.ENOENT, volume.lookup, 1, SNAPSHOTS_NAME)
            directory = volume.lookup(1, b"dir").ino
            assert volume.lookup(directory, b"..").ino == 1 == volume.lookup(1, b"..").ino
            deep = volume.lookup(directory, b"deep").ino
            assert volume.lookup(deep, b"..").ino == directory
            refused(errno.EROFS, volume.mkdir, 1, b"new", 0o755, ROOT)
            refused(errno.EROFS, volume.setxattr, 1, b"user.new", b"", 0, ROOT)
            for name in (b"x", b"y", b"z"):
                refused(errno.ENOENT, volume.lookup, 1, name)
            assert volume.known.lookup(1, b"whatever") == 0

    trio.run(alone)
    check(paths)


def test_many_snapshots(tmp_path):
    """Listing goes in pieces and costs by the piece."""

    async def body(volume):
        await make_file(volume, 1, b"file", b"content")
        await volume.fsync(1)
        for number in range(300):
            await volume.store.snapshots.create(f"s{number}")
        listed = names(volume, SNAPSHOTS_INO, 128)
        assert listed == [b"s%d" % number for number in range(300)]
        for name in (b"s0", b"s123", b"s299"):
            root = volume.lookup(SNAPSHOTS_INO, name).ino
            assert await content(volume, volume.lookup(root, b"file").ino) == b"content"

    run(tmp_path, body, clock=Clock())
