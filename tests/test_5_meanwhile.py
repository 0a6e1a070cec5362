"""What comes in between while the present is exchanged: names given and taken, whoever asked is
cancelled, the flusher ends. Nobody waits for ever, and nothing fails the volume."""

import pytest
import trio
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    checked,
    in_simulated_time,
    mounted,
    new_members,
    overwrite,
    pattern,
    read_file,
    reopened,
    simulated,
    write_file,
)
from streams import reader, received, sent, tree
from workload import ME

from raidfs.errors import FormatError, NoSuchSnapshot, RaidfsError, UsageError
from raidfs.fs import difference, receive, send
from raidfs.fs import rollback as go_back
from raidfs.fs import stream as form
from raidfs.fs.receive import Receiver, StreamInterrupted, kept_token
from raidfs.fs.rollback import rollback
from raidfs.fs.spool import Spool
from raidfs.fs.stream import RESUMED_BYTES
from raidfs.store import past, rewrite, snapshots
from raidfs.store.rewrite import rewriting


async def two_states(volume):
    """Snapshot "one", and a present that differs."""
    await write_file(volume, b"a", pattern(1, 5))
    await volume.store.snapshots.create("one")
    await overwrite(volume, b"a", pattern(2, 5))
    await volume.store.commit()


# ---- names ----


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.2, 1.0])
def test_the_name_to_be_kept_is_nobody_elses(delay_s):
    """Whenever somebody else wants it: one of the two is refused."""

    async def body(volume):
        store = volume.store
        await two_states(volume)
        refused = []

        async def go_back():
            try:
                await rollback(volume, "one", keep="kept", progress=lambda *_: None)
            except UsageError as error:
                refused.append(error)

        async def create():
            await trio.sleep(delay_s)
            try:
                await store.snapshots.create("kept")
            except UsageError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_back)
            nursery.start_soon(create)
        assert store.failed is None and len(refused) == 1
        assert [each.name for each in store.snapshots.all()] == ["one", "kept"]
        await store.snapshots.rename("kept", "other")
        await store.snapshots.create("kept")

    simulated(body)


def test_a_snapshot_given_up_by_who_asked_keeps_its_name():
    """The cut is made, and the name is given when it is durable: meanwhile it is not vacant."""

    async def body(volume):
        store = volume.store
        await two_states(volume)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.snapshots.create, "two")
            await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        with pytest.raises(UsageError, match="already"):
            await store.snapshots.create("two")
        await store.commit()
        assert store.failed is None and store.snapshots.find("two")

    simulated(body)


def test_numbers_of_snapshots_come_to_an_end():
    """Each has one, never used twice; without any left that is said, and the volume goes on."""

    async def body(volume):
        store = volume.store
        await two_states(volume)
        last = past.SNAPSHOT_ID_MAX - 3
        store.meta._run("UPDATE sqlite_sequence SET seq = ? WHERE name = 'snapshot'", (last,))
        refused = 0
        for number in range(6):
            try:
                await store.snapshots.create(f"s{number}")
            except RaidfsError as error:
                assert "numbers" in str(error)
                refused += 1
        assert 3 <= refused < 6 and store.failed is None
        with pytest.raises(RaidfsError, match="numbers"):
            store.group_snapshots.check("grouped")
        await write_file(volume, b"b", b"goes on")
        await store.commit()

    simulated(body)


@pytest.mark.parametrize("what", ["hold", "annotate"])
def test_full_metadata_takes_no_more_words(what, monkeypatch):
    """They would go into the reserve of those whose changes can't be refused."""

    async def body(volume):
        store = volume.store
        await two_states(volume)
        with monkeypatch.context() as patch:
            patch.setattr(type(store.meta), "has_room", lambda _: False)
            with pytest.raises(RaidfsError, match="full"):
                await getattr(store.snapshots, what)("one", "word")
            await store.snapshots.annotate("one", "")
        await getattr(store.snapshots, what)("one", "word")
        with monkeypatch.context() as patch:
            patch.setattr(type(store.meta), "has_room", lambda _: False)
            if what == "hold":
                await store.snapshots.release("one", "word")
            await store.snapshots.delete(["one"])

    simulated(body)


# ---- who asked is cancelled ----


@pytest.mark.parametrize("steps", range(12))
def test_an_exchange_that_is_cancelled_leaves_nothing_behind(steps):
    """At whichever of its steps, while somebody else makes cuts."""

    async def body(volume):
        store = volume.store
        await two_states(volume)

        async def exchange():
            async with rewriting(store) as rewrite:
                row = store.meta.inode(ROOT)
                row.uid = 77
                rewrite.put_inode(row)
                await trio.sleep(3)

        async def cuts():
            for _ in range(5):
                await store.cut_with(lambda _: None)

        async with trio.open_nursery() as others, trio.open_nursery() as nursery:
            nursery.start_soon(exchange)
            for _ in range(2):
                others.start_soon(cuts)
            await trio.sleep(0.011 * steps)
            nursery.cancel_scope.cancel()
        with trio.fail_after(100):
            await store.commit()
            await store.snapshots.swept()
        assert not [each for each in store.snapshots.all(internal=True) if each.internal]
        assert store.meta.inode(ROOT).uid != 77
        await rollback(volume, "one")
        assert await read_file(volume, b"a") == pattern(1, 5)

    simulated(body)


def test_an_exchange_ends_when_the_flusher_does():
    """As when an error of raidfs itself ends all tasks: nobody waits for what won't come."""

    async def test():
        members = new_members("5", 3)
        async with mounted(members, fails=True) as volume:
            await two_states(volume)
        again = reopened(members)
        ended, under_way = trio.Event(), trio.Event()
        stores = []

        async def all_tasks(scope):
            with scope:
                async with mounted(again, fails=True) as volume, trio.open_nursery() as nursery:
                    stores.append(volume.store)
                    nursery.start_soon(exchange, volume.store)
                    nursery.start_soon(waiting, volume.store)
                    await trio.sleep_forever()
            ended.set()

        async def exchange(store):
            async with rewriting(store) as rewrite:
                row = store.meta.inode(ROOT)
                row.uid = 77
                rewrite.put_inode(row)
                under_way.set()
                await trio.sleep(3)

        async def waiting(store):
            with trio.CancelScope(shield=True):
                await under_way.wait()
                with pytest.raises(RaidfsError):
                    await store.cut_with(lambda _: None)

        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(all_tasks, scope)
            await under_way.wait()
            scope.cancel()
            with trio.move_on_after(500):
                await ended.wait()
            in_time = ended.is_set()
            if not in_time:
                stores[0].fail("so that this test ends")
                stores[0].let_cut()
        assert in_time
        checked(again)

    in_simulated_time(test)


# ---- what is swept ----


def test_who_waits_for_the_sweeper_is_told_that_it_stopped(monkeypatch):
    async def body(volume):
        store = volume.store
        await two_states(volume)

        def broken(*_):
            raise RaidfsError("as if")

        with monkeypatch.context() as patch:
            patch.setattr(store.meta, "dead", broken)
            await store.snapshots.delete(["one"])
            with trio.fail_after(100), pytest.raises(RaidfsError, match="as if"):
                await store.snapshots.swept()
        await store.snapshots.create("two")
        await store.snapshots.delete(["two"])
        with trio.fail_after(100):
            await store.snapshots.swept()
        assert not store.meta.condemned()

    simulated(body)


# ---- streams ----


@pytest.fixture(scope="module")
def streams():
    """(full stream of "1", stream of what changed until "2", the trees of both)"""

    async def test():
        async with mounted(new_members("5", 4)) as volume:
            volume.files.noatime = True
            snapshots = volume.store.snapshots
            await write_file(volume, b"a", pattern(1, 40))
            await snapshots.create("1")
            full, before = await sent(volume, "1"), await tree(volume, "1")
            await overwrite(volume, b"a", pattern(2, 10), 7 * CELL_BYTES)
            await snapshots.create("2")
            return full, await sent(volume, "2", "1"), before, await tree(volume, "2")

    return in_simulated_time(test)


def test_a_base_goes_by_itself_and_not_by_its_name(streams):
    """It gets another name, and another snapshot its name, while the stream comes in."""
    full, changes, _, then = streams

    async def body(volume):
        volume.files.noatime = True
        await received(volume, full)

        async def between(at):
            if at == 8192:
                await volume.store.snapshots.rename("1", "renamed")
                await write_file(volume, b"other", b"not in the base")
                await volume.store.snapshots.create("1")

        done = await Receiver(volume, reader(changes, 4096, between), force=True).run()
        assert done.base == "renamed"
        assert await tree(volume, "2") == then == await tree(volume)

    simulated(body)


def test_a_base_that_is_deleted_meanwhile_changes_nothing(streams):
    full, changes, before, _ = streams

    async def body(volume):
        volume.files.noatime = True
        await received(volume, full)

        async def between(at):
            if at is None:
                await volume.store.snapshots.delete(["1"])
                await volume.store.snapshots.create("1")

        with pytest.raises(NoSuchSnapshot):
            await Receiver(volume, reader(changes, 4096, between), force=True).run()
        assert await tree(volume) == before

    simulated(body)


@pytest.mark.parametrize("piece", [RESUMED_BYTES, 1, RESUMED_BYTES + 1])
def test_a_stream_that_goes_on_comes_in_any_pieces(piece, monkeypatch):
    monkeypatch.setattr(form, "STRETCH_BYTES", 40_000)
    monkeypatch.setattr(form, "CONTENT_BYTES_MAX", 4 * CELL_BYTES)

    async def body(volume):
        volume.files.noatime = True
        await write_file(volume, b"a", pattern(1, 40))
        await volume.store.snapshots.create("1")
        full, then = await sent(volume, "1"), await tree(volume, "1")
        members = new_members("5", 3)
        async with mounted(members) as target:
            with pytest.raises(StreamInterrupted):
                await received(target, full[:100_000])
            rest = await sent(volume, "1", token=await kept_token(target))
            pieces = iter([rest[:piece], rest[piece:]])

            async def read():
                return next(pieces, b"")

            await Receiver(target, read).run()
            assert await tree(target, "1") == then
        checked(members)

    simulated(body)


def test_a_name_that_somebody_took_meanwhile_is_made_another(streams):
    """One that is still a name, however long."""
    long = "ü" * (snapshots.NAME_BYTES_MAX // 2)

    async def body(volume):
        async def between(at):
            if at is None:
                await volume.store.snapshots.create(long)

        done = await Receiver(volume, reader(streams[0], 4096, between), name=long).run()
        snapshots.check_name(done.snapshot)
        assert done.snapshot != long and len(volume.store.snapshots.all()) == 2

    simulated(body)


def test_what_is_kept_of_a_stream_and_damaged_hinders_nobody(streams):
    """A new one is received as if there were nothing."""

    async def body(volume):
        volume.files.noatime = True
        spool = Spool(volume)
        await spool.make()
        await spool.write(0, b"what no raidfs has sent" * 1000)
        await volume.store.commit()
        await received(volume, streams[0])
        assert await tree(volume) == streams[2]

    simulated(body)


def test_a_damaged_stream_and_at_once_the_right_one(streams, monkeypatch):
    monkeypatch.setattr(receive, "WRITE_BYTES", 8192)
    damaged = bytearray(streams[0])
    damaged[-1000] ^= 1

    async def body(volume):
        for _ in range(2):
            with pytest.raises(FormatError):
                await received(volume, bytes(damaged))
        await received(volume, streams[0])
        assert await tree(volume) == streams[2]

    simulated(body)


# ---- the cleaner ----


def test_who_asks_the_cleaner_while_it_gives_up_is_looked_after(monkeypatch):
    """Not told that there is nothing to gain, when nobody has looked."""

    async def body(volume):
        cleaner = volume.store.cleaner
        looked = []

        async def in_background():
            await trio.sleep(5)
            return False

        async def gain_once():
            looked.append(True)
            return True

        monkeypatch.setattr(cleaner, "_low", lambda: not looked)
        monkeypatch.setattr(cleaner, "_clean_in_background", in_background)
        monkeypatch.setattr(cleaner, "_gain_once", gain_once)
        await trio.sleep(3)  # it is at it
        assert await cleaner.gain() and looked

    simulated(body)


# ---- large directories ----


@pytest.mark.parametrize("what", ["difference", "send", "rollback"])
def test_others_have_the_event_loop_while_a_large_directory_is_looked_through(what, monkeypatch):
    """However much of it is the same: as often as some entries were looked at."""
    for module, name in (
        (difference, "ENTRIES_AT_ONCE"),
        (send, "NAMES_MAX"),
        (rewrite, "NAMES_AT_ONCE"),
        (go_back, "ENTRIES_AT_ONCE"),
    ):
        monkeypatch.setattr(module, name, 20)

    async def body(volume):
        snapshots, turns = volume.store.snapshots, 0
        directory = volume.mkdir(ROOT, b"directory", 0o755, ME).ino
        for number in range(1000):
            volume.release(ino := volume.create(directory, b"%d" % number, 0o600, 0, ME).ino)
            volume.forget(ino)
        await snapshots.create("1")
        volume.unlink(directory, b"500")
        await snapshots.create("2")
        stream = await sent(volume, "2", "1")

        checkpoint = trio.lowlevel.checkpoint

        async def counted():
            nonlocal turns
            turns += 1
            await checkpoint()

        monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
        if what == "difference":
            async with difference.difference(volume, "1", "2") as changes:
                assert [each.what async for each in changes] == ["modified", "removed"]
        elif what == "send":
            assert await sent(volume, "2", "1") == stream
        else:
            await rollback(volume, "1")
        monkeypatch.undo()
        assert turns > 40

    simulated(body)
