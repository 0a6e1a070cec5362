"""The adapter between pyfuse3 and the volume: every handler answers, whatever happens inside."""

import errno
import inspect
import logging
from types import SimpleNamespace

import pyfuse3
import pytest
import trio
import trio.testing

from raidfs.daemon import fuse
from raidfs.daemon.fuse import FuseOperations, answered, groups_of
from raidfs.errors import FsError, MemberError, OutOfSpace, ReadOnly, Unrecoverable
from raidfs.fs.attributes import Attributes, Caller, Entry
from raidfs.fs.door import Door
from raidfs.lane import Gate


def stub(**functions):
    """A volume that has these functions, and an open door."""
    return SimpleNamespace(door=Door(Gate()), **functions)


TOLD = Attributes(7, 1, 0o100644, 1, 2, 3, 0, 99, 1, 4096, 11, 12, 13, 14)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (FsError(errno.ENOTEMPTY), errno.ENOTEMPTY),
        (OutOfSpace("full"), errno.ENOSPC),
        (ReadOnly("no"), errno.EROFS),
        (Unrecoverable("gone"), errno.EIO),
        (MemberError("broken"), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
        (AssertionError("ours"), errno.EIO),
        (OSError(errno.EBADF, "low"), errno.EIO),
        (pyfuse3.FUSEError(errno.EXDEV), errno.EXDEV),
    ],
    ids=lambda value: str(value),
)
def test_every_error_becomes_an_answer(error, number, caplog):
    @answered
    async def handler(operations):
        raise error

    with pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(handler, FuseOperations(stub()))
    assert caught.value.errno == number
    ours = not isinstance(error, fuse.RaidfsError | pyfuse3.FUSEError)
    assert bool([r for r in caplog.records if r.exc_info]) == ours  # a traceback for ours only
    assert any(r.levelno >= logging.ERROR for r in caplog.records) == (number == errno.EIO)


def test_every_handler_is_guarded_and_overrides_one_of_pyfuse3():
    mine = {
        name: method
        for name, method in vars(FuseOperations).items()
        if inspect.iscoroutinefunction(method)
    }
    assert set(mine) <= set(dir(pyfuse3.Operations))
    lacking = {
        name
        for name, method in vars(pyfuse3.Operations).items()
        if inspect.iscoroutinefunction(method) and name not in mine
    }
    assert lacking == {"poll"}  # whose default says that files are always ready
    unguarded = {name for name, method in mine.items() if not hasattr(method, "__wrapped__")}
    assert unguarded == {"forget"}


def test_requests_wait_while_the_door_is_closed():
    async def test():
        volume, asked = stub(lookup=lambda *_: asked.append("lookup") or TOLD), []
        volume.forget = lambda *_: asked.append("forget")
        operations = FuseOperations(volume)
        async with trio.open_nursery() as nursery, volume.door.closed():
            nursery.start_soon(operations.lookup, 1, b"name", None)
            nursery.start_soon(operations.forget, [(7, 1)])
            await trio.testing.wait_all_tasks_blocked()
            assert not asked
        assert sorted(asked) == ["forget", "lookup"]

    trio.run(test)


def test_a_missing_name_is_answered_so_that_the_kernel_remembers():
    def lookup(parent, name):
        raise FsError(errno.ENOENT)

    operations = FuseOperations(stub(lookup=lookup))
    entry = trio.run(operations.lookup, 1, b"nosuch", None)
    assert entry.st_ino == 0 and entry.entry_timeout > 60


def test_attributes_are_passed_on_whole():
    entry = fuse.entry_of(TOLD)
    assert (entry.st_ino, entry.generation, entry.st_mode, entry.st_size) == (7, 1, 0o100644, 99)
    assert (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns) == (11, 12, 13)
    assert entry.attr_timeout > 60


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 100])
def test_a_listing_counts_references_only_for_what_was_sent(monkeypatch, room):
    entries = [Entry(b".", 1, 0, 1), Entry(b"..", 1, 0, 2)]
    entries += [Entry(b"f%d" % n, 10 + n, 0, 3 + n) for n in range(6)]
    remembered, sent = [], []

    def readdir(ino, after, limit):
        return [entry for entry in entries if entry.cookie > after][:limit]

    def reply(token, name, attributes, next_id):
        if len(sent) == room:
            return False
        sent.append((bytes(name), attributes.st_ino, next_id))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    monkeypatch.setattr(fuse, "LISTED_AT_ONCE", 3)
    volume = stub(
        readdir=readdir, getattr=lambda ino: TOLD, remember=lambda ino: remembered.append(ino)
    )
    trio.run(FuseOperations(volume).readdir, 1, 0, None)
    assert [name for name, _, _ in sent] == [entry.name for entry in entries[:room]]
    assert remembered == [entry.ino for entry in entries[2:room]]


def test_an_error_in_a_listing_keeps_what_was_sent(monkeypatch):
    def readdir(ino, after, limit):
        if after:
            raise Unrecoverable("gone")
        return [Entry(b"f", 10, 0, 3)]

    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *arguments: True)
    remembered = []
    volume = stub(
        readdir=readdir, getattr=lambda ino: TOLD, remember=lambda ino: remembered.append(ino)
    )
    trio.run(FuseOperations(volume).readdir, 1, 0, None)
    assert remembered == [10]
    with pytest.raises(pyfuse3.FUSEError):
        trio.run(FuseOperations(volume).readdir, 1, 3, None)


def test_groups_of_a_process_that_is_gone_are_none():
    assert groups_of(Caller(1, 1, pid=2**22 + 1)) == set()
