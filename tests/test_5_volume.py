"""File operations without a mount: what each returns, refuses, does to times, modes and links."""

import errno
import os
import stat

import pytest
from volumes import ALICE, ROOT, STEP_NS, Clock, forget_all, make_members, mounted, names

from raidfs.errors import FsError, ReadOnly
from raidfs.fs import attributes
from raidfs.fs.attributes import Caller, Changes

FILE = stat.S_IFREG | 0o644


def refused(expected, function, *arguments):
    with pytest.raises(FsError) as caught:
        function(*arguments)
    assert caught.value.errno == expected, (function, arguments)


@pytest.mark.trio
async def test_errors_by_table(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        link = volume.symlink(1, b"link", b"file", ROOT).ino
        full = volume.mkdir(1, b"full", 0o755, ROOT).ino
        volume.mkdir(full, b"sub", 0o755, ROOT)
        gone = volume.mkdir(1, b"gone", 0o755, ROOT).ino
        volume.rmdir(1, b"gone")
        long = b"x" * 256
        before = [(ino, volume.getattr(ino)) for ino in (1, file, link, full)]
        for expected, function, *arguments in [
            (errno.ENOENT, volume.lookup, 1, b"absent"),
            (errno.ENOTDIR, volume.lookup, file, b"x"),
            (errno.ENAMETOOLONG, volume.lookup, 1, long),
            (errno.ESTALE, volume.getattr, 999_999),
            (errno.ESTALE, volume.lookup, 999_999, b"."),
            (errno.EEXIST, volume.mkdir, 1, b"file", 0o755, ROOT),
            (errno.EEXIST, volume.mkdir, 1, b".", 0o755, ROOT),
            (errno.EEXIST, volume.mknod, 1, b"link", FILE, 0, ROOT),
            (errno.EEXIST, volume.symlink, 1, b"full", b"x", ROOT),
            (errno.EEXIST, volume.link, file, 1, b"link"),
            (errno.EEXIST, volume.create, 1, b"file", 0o644, os.O_EXCL, ROOT),
            (errno.ENAMETOOLONG, volume.mkdir, 1, long, 0o755, ROOT),
            (errno.ENAMETOOLONG, volume.symlink, 1, b"s", b"t" * 4096, ROOT),
            (errno.ENOENT, volume.symlink, 1, b"s", b"", ROOT),
            (errno.EINVAL, volume.mkdir, 1, b"a/b", 0o755, ROOT),
            (errno.EINVAL, volume.mkdir, 1, b"", 0o755, ROOT),
            (errno.EINVAL, volume.mknod, 1, b"n", stat.S_IFDIR | 0o755, 0, ROOT),
            (errno.ENOTDIR, volume.mkdir, file, b"x", 0o755, ROOT),
            (errno.ENOENT, volume.mkdir, gone, b"x", 0o755, ROOT),
            (errno.ENOENT, volume.link, file, gone, b"x"),
            (errno.EPERM, volume.link, full, 1, b"x"),
            (errno.ENOENT, volume.unlink, 1, b"absent"),
            (errno.EISDIR, volume.unlink, 1, b"full"),
            (errno.ENOTDIR, volume.unlink, file, b"x"),
            (errno.ENOTDIR, volume.rmdir, 1, b"file"),
            (errno.ENOTEMPTY, volume.rmdir, 1, b"full"),
            (errno.EINVAL, volume.rmdir, full, b"."),
            (errno.ENOTEMPTY, volume.rmdir, full, b".."),
            (errno.ENOENT, volume.rmdir, 1, b"absent"),
            (errno.EINVAL, volume.readlink, file),
            (errno.EINVAL, volume.readlink, full),
            (errno.ENOTDIR, volume.opendir, file),
            (errno.ENOTDIR, volume.readdir, file, 0, 10),
            (errno.EISDIR, volume.open, full, os.O_RDONLY),
        ]:
            refused(expected, function, *arguments)
        assert [(ino, volume.getattr(ino)) for ino in (1, file, link, full)] == before


@pytest.mark.trio
async def test_asynchronous_errors(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        fifo = volume.mknod(1, b"fifo", stat.S_IFIFO | 0o644, 0, ROOT).ino
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        top = 2**63 - 1
        for expected, function, *arguments in [
            (errno.EISDIR, volume.read, 1, 0, 10),
            (errno.EISDIR, volume.write, 1, 0, b"x"),
            (errno.EISDIR, volume.setattr, 1, Changes(size=0), ROOT),
            (errno.EINVAL, volume.setattr, fifo, Changes(size=0), ROOT),
            (errno.EINVAL, volume.setattr, file, Changes(size=-1), ROOT),
            (errno.EFBIG, volume.setattr, file, Changes(size=2**63), ROOT),
            (errno.EFBIG, volume.write, file, top, b"x"),
            (errno.EINVAL, volume.write, file, -1, b"x"),
            (errno.EINVAL, volume.read, file, -1, 1),
            (errno.ESTALE, volume.write, 999_999, 0, b"x"),
        ]:
            with pytest.raises(FsError) as caught:
                await function(*arguments)
            assert caught.value.errno == expected, (function, arguments)
        assert await volume.write(file, top, b"") == 0
        assert volume.getattr(file).size == 0
        assert await volume.write(file, top - 3, b"abcdef") == 3
        assert volume.getattr(file).size == top
        assert bytes(await volume.read(file, top - 5, 100)) == b"\0\0abc"
        assert (await volume.setattr(file, Changes(size=top), ROOT)).size == top


@pytest.mark.trio
async def test_times(tmp_path):
    """Which of atime, mtime, ctime each operation moves, for the object and for its directory."""
    clock = Clock()
    async with mounted(make_members(tmp_path), clock=clock) as volume:
        parent = volume.mkdir(1, b"dir", 0o755, ROOT).ino
        file = volume.create(parent, b"file", 0o644, os.O_RDWR, ROOT).ino
        made = volume.getattr(file)
        assert made.atime_ns == made.mtime_ns == made.ctime_ns == made.btime_ns == clock.now_ns

        async def moved(function, *arguments):
            before = [volume.getattr(ino) for ino in (file, parent)]
            result = function(*arguments)
            if result is not None and hasattr(result, "__await__"):
                await result
            found = set()
            for who, old, ino in zip("fd", before, (file, parent), strict=True):
                new = volume.getattr(ino)
                assert new.btime_ns == old.btime_ns
                for which in "amc":
                    times = [getattr(each, f"{which}time_ns") for each in (old, new)]
                    assert times[1] >= times[0]
                    if times[0] != times[1]:
                        found.add(who + which)
            return found

        for expected, function, *arguments in [
            ("fa", volume.read, file, 0, 1),  # atime was not after mtime
            ("", volume.read, file, 0, 1),
            ("fm fc", volume.write, file, 0, b"hello"),
            ("fa", volume.read, file, 0, 5),
            ("", volume.read, file, 0, 5),
            ("", volume.write, file, 0, b""),
            ("fm fc", volume.setattr, file, Changes(size=3), ROOT),
            ("fc", volume.setattr, file, Changes(mode=0o600), ROOT),
            ("fc", volume.setattr, file, Changes(uid=5), ROOT),
            ("", volume.setattr, file, Changes(), ROOT),
            ("fc", volume.setxattr, file, b"user.a", b"1", 0, ROOT),
            ("fc", volume.removexattr, file, b"user.a"),
            ("", volume.getattr, file),
            ("", volume.lookup, parent, b"file"),
            ("fc dm dc", volume.link, file, parent, b"second"),
            ("fc dm dc", volume.rename, parent, b"second", parent, b"third"),
            ("fc dm dc", volume.unlink, parent, b"third"),
            ("dm dc", volume.mkdir, parent, b"sub", 0o755, ROOT),
            ("dm dc", volume.symlink, parent, b"link", b"x", ROOT),
            ("da", volume.readdir, parent, 0, 10),
            ("", volume.readdir, parent, 0, 10),
            ("dm dc", volume.rmdir, parent, b"sub"),
            ("fm fc", volume.open, file, os.O_WRONLY | os.O_TRUNC),
        ]:
            got = await moved(function, *arguments)
            assert got == set(expected.split()), (function, arguments)
        link = volume.lookup(parent, b"link")
        assert volume.readlink(link.ino) == b"x"
        assert volume.getattr(link.ino).atime_ns > link.atime_ns


@pytest.mark.trio
async def test_utimens_and_relatime(tmp_path):
    clock = Clock()
    paths = make_members(tmp_path)
    day_ns = 24 * 3600 * 10**9
    async with mounted(paths, clock=clock) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ROOT).ino
        for atime_ns, mtime_ns in [(1, 2), (-1, -(2**62)), (2**63 - 1, 123456789987654321)]:
            changes = Changes(atime_ns=atime_ns, mtime_ns=mtime_ns)
            got = await volume.setattr(file, changes, ROOT)
            assert (got.atime_ns, got.mtime_ns) == (atime_ns, mtime_ns)
            assert got.ctime_ns == clock.now_ns
        got = await volume.setattr(file, Changes(atime_ns=2**70, mtime_ns=-(2**70)), ROOT)
        assert (got.atime_ns, got.mtime_ns) == (2**63 - 1, -(2**63 - 1))
        await volume.setattr(file, Changes(atime_ns=clock.now_ns + 10 * STEP_NS, mtime_ns=0), ROOT)
        atime_ns = volume.getattr(file).atime_ns
        clock.now_ns += 100 * STEP_NS
        await volume.write(file, 0, b"x")
        await volume.read(file, 0, 1)
        assert volume.getattr(file).atime_ns > atime_ns
        atime_ns = volume.getattr(file).atime_ns
        clock.now_ns += day_ns - 10 * STEP_NS
        await volume.read(file, 0, 1)
        assert volume.getattr(file).atime_ns == atime_ns
        clock.now_ns += 10 * STEP_NS
        await volume.read(file, 0, 1)
        assert volume.getattr(file).atime_ns == clock.now_ns
        last = volume.getattr(file)
    async with mounted(paths, clock=clock, noatime=True) as volume:
        assert volume.getattr(file) == last
        await volume.write(file, 0, b"y")
        await volume.read(file, 0, 1)
        volume.readdir(1, 0, 10)
        assert volume.getattr(file).atime_ns == last.atime_ns


@pytest.mark.trio
async def test_kinds_modes_and_groups(tmp_path):
    groups = {ALICE.pid: (50,)}
    async with mounted(
        make_members(tmp_path), groups_of=lambda caller: groups.get(caller.pid, ())
    ) as volume:
        device = volume.mknod(1, b"dev", stat.S_IFCHR | 0o666, os.makedev(8, 300), ROOT)
        assert (device.mode, device.rdev) == (stat.S_IFCHR | 0o644, os.makedev(8, 300))
        for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFREG, 0):
            made = volume.mknod(1, b"k%o" % kind, kind | 0o777, 7, ALICE)
            assert made.mode == (kind or stat.S_IFREG) | 0o775
            assert made.rdev == (7 if kind == stat.S_IFBLK else 0)
            assert (made.uid, made.gid, made.nlink, made.size) == (1000, 1000, 1, 0)
        link = volume.symlink(1, b"link", b"t" * 4095, ALICE)
        assert (link.mode, link.size) == (stat.S_IFLNK | 0o777, 4095)
        shared = volume.mkdir(1, b"shared", 0o775, ROOT)
        await volume.setattr(shared.ino, Changes(gid=50, mode=0o2775), ROOT)
        sub = volume.mkdir(shared.ino, b"sub", 0o777, ALICE)
        assert (sub.mode, sub.gid) == (stat.S_IFDIR | 0o2775, 50)
        assert volume.symlink(sub.ino, b"l", b"x", ALICE).gid == 50
        stranger = Caller(2000, 2000, 9, 0)
        for caller, mode in ((ALICE, 0o2755), (stranger, 0o755), (ROOT, 0o2755)):
            made = volume.mknod(sub.ino, b"p%d" % caller.uid, stat.S_IFREG | 0o2755, 0, caller)
            assert (made.mode & 0o7777, made.gid) == (mode, 50)


@pytest.mark.trio
async def test_setuid_and_setgid_go_as_on_linux(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        file = volume.mknod(1, b"file", FILE, 0, ALICE).ino

        async def after(mode, caller, changes):
            await volume.setattr(file, Changes(mode=mode), ROOT)
            return (await volume.setattr(file, changes, caller)).mode & 0o7777

        assert await after(0o6755, ROOT, Changes(uid=1000)) == 0o755
        assert await after(0o6745, ROOT, Changes(uid=1000)) == 0o2745  # no group may execute
        assert await after(0o6755, ALICE, Changes(size=5)) == 0o755
        assert await after(0o6755, ROOT, Changes(size=6)) == 0o6755
        assert await after(0o755, ALICE, Changes(mode=0o2755)) == 0o2755
        assert await after(0o755, Caller(1000, 3), Changes(mode=0o2755)) == 0o755
        await volume.setattr(file, Changes(mode=0o6755), ROOT)
        await volume.write(file, 0, b"x")
        assert volume.getattr(file).mode & 0o7777 == 0o6755
        await volume.write(file, 0, b"x", kill_privileges=True)
        assert volume.getattr(file).mode & 0o7777 == 0o755
        await volume.setattr(1, Changes(mode=0o3777), ROOT)
        await volume.setattr(1, Changes(gid=7), ROOT)
        assert volume.getattr(1).mode & 0o7777 == 0o3777


@pytest.mark.trio
async def test_links_and_orphans(tmp_path, monkeypatch):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        file = volume.create(1, b"a", 0o644, os.O_RDWR, ROOT).ino
        assert volume.link(file, 1, b"b").nlink == 2
        monkeypatch.setattr("raidfs.fs.names.LINKS_MAX", 2)
        refused(errno.EMLINK, volume.link, file, 1, b"c")
        refused(errno.EMLINK, volume.mkdir, 1, b"d", 0o755, ROOT)
        monkeypatch.undo()
        volume.unlink(1, b"a")
        volume.unlink(1, b"b")
        assert volume.getattr(file).nlink == 0
        refused(errno.ENOENT, volume.link, file, 1, b"c")
        await volume.write(file, 10_000, b"still here")
        assert bytes(await volume.read(file, 9_999, 99)) == b"\0still here"
        forget_all(volume, file)
        await volume.fsync(file)
        assert bytes(await volume.read(file, 10_000, 5)) == b"still"
        assert volume.statistics().orphans == 1
        volume.release(file)
        refused(errno.ESTALE, volume.getattr, file)
        assert volume.statistics().orphans == 0
        # Referred to but not open: goes with the last reference.
        other = volume.mknod(1, b"a", FILE, 0, ROOT).ino
        volume.lookup(1, b"a")
        await volume.write(other, 0, b"x" * 9000)
        volume.unlink(1, b"a")
        volume.forget(other, 1)
        assert volume.getattr(other).nlink == 0
        volume.forget(other, 1)
        refused(errno.ESTALE, volume.getattr, other)
        again = volume.mknod(1, b"a", FILE, 0, ROOT).ino
        assert again > other > file
    async with mounted(paths) as volume:
        assert names(volume, 1) == [b"a"]
        assert volume.mknod(1, b"b", FILE, 0, ROOT).ino > again
        assert volume.store.space.reserved == 0


@pytest.mark.trio
async def test_orphans_that_a_crash_leaves_are_reaped(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        file = volume.create(1, b"a", 0o644, os.O_RDWR, ROOT).ino
        directory = volume.mkdir(1, b"d", 0o755, ROOT).ino
        volume.opendir(directory)
        await volume.write(file, 0, b"x" * 100_000)
        volume.setxattr(file, b"user.x", b"1", 0, ROOT)
        await volume.fsync(file)
        volume.unlink(1, b"a")
        volume.rmdir(1, b"d")
        # The end comes with both open: as after a crash, they are orphans in the metadata.
    async with mounted(paths) as volume:
        refused(errno.ESTALE, volume.getattr, file)
        refused(errno.ESTALE, volume.getattr, directory)
        assert volume.store.meta.orphans() == []
        assert volume.store.meta.xattr_names(file) == []
        await volume.fsync(1)
        assert volume.store.space.usage().live_cells == 0


@pytest.mark.trio
async def test_read_only(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        file = volume.create(1, b"a", 0o644, os.O_RDWR, ROOT).ino
        await volume.write(file, 0, b"x" * 5000)
        sub = volume.mkdir(1, b"sub", 0o755, ROOT).ino
    async with mounted(paths, read_only=True) as volume:
        assert bytes(await volume.read(file, 4998, 99)) == b"xx"
        assert names(volume, 1) in ([b"a", b"sub"], [b"sub", b"a"])
        volume.open(file, os.O_RDONLY)
        volume.release(file)
        before = volume.getattr(file), volume.getattr(1)
        for function, *arguments in [
            (volume.mkdir, 1, b"x", 0o755, ROOT),
            (volume.mknod, 1, b"x", FILE, 0, ROOT),
            (volume.symlink, 1, b"x", b"x", ROOT),
            (volume.link, file, 1, b"x"),
            (volume.unlink, 1, b"a"),
            (volume.rmdir, 1, b"sub"),
            (volume.rename, 1, b"a", 1, b"b"),
            (volume.rename, 1, b"a", sub, b"b"),
            (volume.setxattr, file, b"user.a", b"1", 0, ROOT),
            (volume.open, file, os.O_WRONLY),
            (volume.open, file, os.O_TRUNC),
            (volume.create, 1, b"x", 0o644, os.O_RDWR, ROOT),
        ]:
            with pytest.raises(ReadOnly):
                function(*arguments)
        for function, *arguments in [
            (volume.write, file, 0, b"x"),
            (volume.setattr, file, Changes(mode=0), ROOT),
            (volume.setattr, file, Changes(size=0), ROOT),
        ]:
            with pytest.raises(ReadOnly):
                await function(*arguments)
        assert (volume.getattr(file), volume.getattr(1)) == before
        assert volume.statistics().dirty == 0


@pytest.mark.trio
async def test_statfs(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        before = volume.statfs()
        assert before.unit_bytes == volume.store.cell_bytes
        assert 0 < before.free <= before.total
        assert before.name_bytes_max == attributes.NAME_BYTES_MAX
        file = volume.mknod(1, b"a", FILE, 0, ROOT).ino
        await volume.write(file, 0, b"x" * (1 << 20))
        after = volume.statfs()
        assert before.free - after.free >= (1 << 20) // before.unit_bytes
        assert after.files - after.files_free == before.files - before.files_free + 1


@pytest.mark.trio
async def test_the_cache_is_bounded(tmp_path):
    paths = make_members(tmp_path)
    async with mounted(paths, cached_max=50, dirty_max=40) as volume:
        made = []
        for number in range(300):
            attributes_ = volume.mknod(1, b"f%d" % number, FILE, 0, ROOT)
            made.append(attributes_)
            if number % 100 == 99:
                await volume.fsync(1)
        await volume.fsync(1)
        figures = volume.statistics()
        assert figures.cached <= 50
        assert figures.dirty == 0
        assert figures.pinned == 0
        assert figures.referenced == 300
        assert [volume.getattr(each.ino) for each in made] == made
        for each in made:
            await volume.write(each.ino, 0, b"content")
        await volume.fsync(1)
        volume.store.request_cut()  # the pages are clean now: the next cut lets go of the files
        await volume.fsync(1)
        assert volume.statistics().closed_resident == 0
        assert volume.statistics().cached <= 50
