"""What moves hide is nobody's: not in the present, in snapshots, in streams, in differences; it
doesn't come back with a rollback, and it can't be opened or changed by who had its name before."""

import errno
import os

import pytest
import trio
from simulated_volume import ROOT, check, checked, in_simulated_time, mounted, new_members, pattern
from streams import received, sent, tree
from whole import whole
from workload import ME

from raidfs.errors import FsError, UsageError
from raidfs.fs.attributes import Changes
from raidfs.fs.difference import difference
from raidfs.fs.moves import ITEM, Moves, Stale
from raidfs.fs.rollback import rollback
from raidfs.store.group_snapshots import MOVE_IN
from raidfs.store.hidden import MOVES_INO

MOVE, OTHER = b"m" * 16, b"o" * 16


async def written(volume, parent, name, data):
    ino = volume.create(parent, name, 0o644, 0, ME).ino
    await volume.write(ino, 0, data)
    volume.release(ino)
    volume.forget(ino)
    return ino


async def directory(volume, parent, name):
    """With a file, a directory in it, and a file in that."""
    ino = volume.mkdir(parent, name, 0o755, ME).ino
    await written(volume, ino, b"file", pattern(3, 20))
    await written(volume, volume.mkdir(ino, b"sub", 0o755, ME).ino, b"deep", pattern(4, 3))
    return ino


def hide(moves, move, parent, name):
    ino = moves.meta.lookup(parent, name).ino
    moves.hide(move, parent, name, moves.walk(parent, name, ino))


async def changes(volume, old, new=None):
    async with difference(volume, old, new) as found:
        return sorted([(each.what, each.path) async for each in found])


def story(body, members=None):
    members = members or new_members("5", 3)

    async def run():
        async with mounted(members) as volume:
            await body(volume, Moves(volume))

    in_simulated_time(run)
    report = check(members)
    assert not report.findings, report.findings[:10]
    return members, report


D = [b"/d", b"/d/file", b"/d/sub", b"/d/sub/deep"]


def test_what_comes_is_seen_when_it_has_its_name():
    """In the order: staged, a snapshot, linked, another one."""
    there = new_members("5", 3)

    async def body(volume, moves):
        await written(volume, ROOT, b"seen", pattern(1, 2))
        before = volume.getattr(ROOT)
        await directory(volume, moves.make_place(MOVE), ITEM)
        assert volume.getattr(ROOT) == before
        await volume.store.snapshots.create("staged")
        assert list(await whole(volume)) == ["", "/seen"]
        assert list(await whole(volume, volume.store.snapshots.find("staged"))) == ["", "/seen"]
        streams = [await sent(volume, "staged")]
        moves.link(MOVE, ROOT, b"d")
        await volume.store.snapshots.create("linked")
        told = await changes(volume, "staged", "linked")
        assert told == [*(("created", path) for path in D), ("modified", b"/")]
        back = await changes(volume, "linked", "staged")
        assert back == [("modified", b"/"), *(("removed", path) for path in D)]
        streams.append(await sent(volume, "linked", "staged"))
        streams.append(await sent(volume, "linked"))
        assert not any(MOVE.hex().encode() in stream for stream in streams)
        async with mounted(there) as other:
            await received(other, streams[0])
            assert await tree(other, "staged") == await tree(volume, "staged")
            await received(other, streams[1])
            assert await tree(other, "linked") == await tree(volume, "linked")
            with pytest.raises(UsageError):
                await received(other, streams[2])
        await rollback(volume, "staged")
        assert list(await whole(volume)) == ["", "/seen"]
        assert volume.store.meta.inode(MOVES_INO) is None
        await rollback(volume, "linked")
        assert "/d/sub/deep" in await whole(volume)

    story(body)
    checked(there)


def test_what_has_gone_does_not_come_back():
    """Snapshots before and after it was given; one name of two is hidden of a file."""
    there = new_members("5", 3)

    async def body(volume, moves):
        ino = await directory(volume, ROOT, b"d")
        both = volume.lookup(ino, b"file").ino
        volume.link(both, ROOT, b"other")
        await volume.store.snapshots.create("before")
        hide(moves, MOVE, ROOT, b"d")
        assert volume.store.meta.inode(both).nlink == 2
        await volume.store.snapshots.create("given")
        removed = [("removed", path) for path in D]
        assert await changes(volume, "before", "given") == [("modified", b"/"), *removed]
        assert await changes(volume, "before") == [("modified", b"/"), *removed]
        async with mounted(there) as other:
            await received(other, await sent(volume, "before"))
            stream = await sent(volume, "given", "before")
            await other.store.group_snapshots.keep(MOVE, MOVE_IN, b"row")
            with pytest.raises(UsageError, match="on their way"):
                await received(other, stream)
            await other.store.group_snapshots.keep(MOVE, MOVE_IN, None)
            await received(other, stream)
            seen = await tree(other, "given")
            assert list(seen) == [b"/", b"//other"] and seen[b"//other"][7:9] == [1, 0]
        await rollback(volume, "given")  # what is hidden now, and then, goes
        assert list(await whole(volume)) == ["", "/other"]
        assert volume.getattr(both).nlink == 1
        await rollback(volume, "before")
        assert volume.getattr(both).nlink == 2 and len(await whole(volume)) == 6
        await volume.store.group_snapshots.keep(MOVE, MOVE_IN, b"row")
        with pytest.raises(UsageError, match="on their way"):
            await rollback(volume, "given")
        await volume.store.group_snapshots.keep(MOVE, MOVE_IN, None)

    story(body)
    checked(there)


def test_the_check_knows_it():
    async def body(volume, moves):
        await directory(volume, moves.make_place(MOVE), ITEM)
        await directory(volume, moves.make_place(OTHER), ITEM)
        await volume.store.group_snapshots.keep(MOVE, MOVE_IN, b"row")

    members, report = story(body)
    counts = report.counts
    assert (counts["hidden for moves"], counts["hidden for moves that are over"]) == (2, 1)

    async def swept(volume, moves):
        await moves.sweep(lambda: {MOVE})
        assert moves.place(OTHER) is None and moves.item(MOVE) is not None
        await moves.sweep(lambda: ())
        assert volume.store.meta.inode(MOVES_INO) is None
        await volume.store.group_snapshots.keep(MOVE, MOVE_IN, None)

    _, report = story(swept, members)
    assert "hidden for moves" not in report.counts


def test_a_name_that_the_kernel_has_cached_leads_nowhere():
    """Whoever holds on to inodes of what was given can neither open nor change them."""

    async def body(volume, moves):
        ino = await directory(volume, ROOT, b"d")
        file, kept = volume.lookup(ino, b"file").ino, await written(volume, ROOT, b"kept", b"x")
        hide(moves, MOVE, ROOT, b"d")
        calls = [
            lambda: volume.open(file, os.O_WRONLY),
            lambda: volume.opendir(ino),
            lambda: volume.lookup(ino, b"file"),
            lambda: volume.create(ino, b"new", 0o644, 0, ME),
            lambda: volume.tmpfile(ino, 0o644, 0, ME),
            lambda: volume.mkdir(ino, b"new", 0o755, ME),
            lambda: volume.mknod(ino, b"new", 0o644, 0, ME),
            lambda: volume.symlink(ino, b"new", b"t", ME),
            lambda: volume.link(file, ROOT, b"again"),
            lambda: volume.link(kept, ino, b"again"),
            lambda: volume.unlink(ino, b"file"),
            lambda: volume.rmdir(ino, b"sub"),
            lambda: volume.rename(ino, b"file", ROOT, b"again"),
            lambda: volume.rename(ROOT, b"kept", ino, b"again"),
            lambda: volume.set_attributes(file, Changes(mode=0o600), ME),
            lambda: volume.setxattr(file, b"user.x", b"", 0, ME),
            lambda: volume.removexattr(file, b"user.x"),
        ]
        for call in calls:
            with pytest.raises(FsError) as refused:
                call()
            assert refused.value.errno == errno.ESTALE
        with pytest.raises(FsError) as refused:
            await volume.setattr(file, Changes(size=0), ME)
        assert refused.value.errno == errno.ESTALE
        volume.open(kept, os.O_WRONLY)
        volume.release(kept)
        assert moves.link(MOVE, ROOT, b"d") == b"d"  # taken back
        volume.open(file, os.O_WRONLY)
        volume.release(file)
        hide(moves, MOVE, ROOT, b"d")
        await moves.remove(MOVE)
        await moves.sweep(lambda: ())
        assert file in set().union(*volume.inodes.watches.given.values()), "still referred to"
        for each in volume.known.referenced():
            volume.forget(each, volume.known.references(each))
        await moves.sweep(lambda: ())
        assert not volume.inodes.watches.given

    story(body)


def test_a_watch_sees_every_change():
    """Laid while the tree is looked at in pieces: whoever comes in between breaks it."""

    async def body(volume, moves):
        ino = await directory(volume, ROOT, b"d")
        file, deep = volume.lookup(ino, b"file").ino, volume.lookup(ino, b"sub").ino
        watches = volume.inodes.watches

        async def touch():
            await volume.setattr(file, Changes(size=7), ME)

        calls = [
            lambda: volume.open(file, 0),
            lambda: volume.opendir(ino),
            lambda: volume.unlink(deep, b"deep"),
            lambda: volume.mkdir(deep, b"more", 0o755, ME),
            lambda: volume.set_attributes(deep, Changes(mode=0o700), ME),
            lambda: volume.setxattr(file, b"user.x", b"1", 0, ME),
            touch,
        ]
        for call in calls:
            with watches.watch() as watch:
                tree = await moves.look(ROOT, b"d", ino, watch)
                assert watch.is_whole and watch.inos == tree.inos
                assert moves.walk(ROOT, b"d", ino).stamp == tree.stamp
                await written(volume, ROOT, b"elsewhere", b"")
                volume.unlink(ROOT, b"elsewhere")
                assert watch.is_whole
                if (later := call()) is not None and call is touch:
                    await later
                assert not watch.is_whole
        volume.release(file)
        volume.release(ino)
        assert not watches.all

    story(body)


def test_what_goes_while_it_is_looked_at_is_stale(monkeypatch):
    monkeypatch.setattr("raidfs.fs.moves.ITEMS_PER_TURN", 1)

    async def body(volume, moves):
        ino = await directory(volume, ROOT, b"d")
        sub = volume.lookup(ino, b"sub").ino
        failed = []

        async def look():
            try:
                await moves.look(ROOT, b"d", ino)
            except Stale as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            volume.unlink(ino, b"file")
            volume.unlink(sub, b"deep")
            volume.forget(sub, volume.known.references(sub))
            volume.rmdir(ino, b"sub")
        assert failed

    story(body)
