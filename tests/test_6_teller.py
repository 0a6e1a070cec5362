"""What the kernel is told of outdated things: in which messages, in which order, and who waits."""

import contextlib
import errno
import os
import struct

import trio
import trio.testing
from volumes import ROOT, make_members, mounted

from raidfs.daemon import teller as teller_module
from raidfs.daemon.teller import EPOCH_NOTICE, Teller, entry_notice, inode_notice
from raidfs.known import Known


class Kernel:
    """Takes notifications and keeps them."""

    def __init__(self, volume, *, knows_epochs=True):
        self.taken = []
        self.knows_epochs = knows_epochs
        self.inside = 0
        self.teller = Teller(volume, self.send)

    def send(self, message):
        assert self.inside == 1
        self.taken.append(message)
        return 0 if self.knows_epochs or message != EPOCH_NOTICE else errno.EINVAL

    @contextlib.contextmanager
    def counted(self):
        self.inside += 1
        yield
        self.inside -= 1


def with_kernel(tmp_path, body, **options):
    paths = make_members(tmp_path)

    async def main():
        async with mounted(paths, known=Known()) as volume:
            kernel = Kernel(volume, **options)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel.teller.run, kernel.counted)
                await trio.testing.wait_all_tasks_blocked()
                await body(volume, kernel)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_form_of_the_messages():
    """As linux/fuse.h has them."""
    head = struct.Struct("=IiQ")
    message = inode_notice(1 << 40 | 7)
    assert head.unpack_from(message) == (len(message), 2, 0)
    assert struct.unpack_from("=Qqq", message, 16) == (1 << 40 | 7, 0, 0) and len(message) == 40
    message = entry_notice(1 << 62, b"name")
    assert head.unpack_from(message) == (len(message), 3, 0)
    assert struct.unpack_from("=QII", message, 16) == (1 << 62, 4, 0)
    assert message[32:] == b"name\0"
    assert head.unpack(EPOCH_NOTICE) == (16, 8, 0)


def test_each_is_told_once_and_in_order(tmp_path):
    async def body(volume, kernel):
        teller = kernel.teller
        await teller.told()
        teller.outdated([5, 6, 5], [(1, b"a")])
        teller.outdated([6, 7], [(1, b"b"), (1, b"a")])
        assert kernel.taken == []  # nobody waits for it
        await teller.told()
        assert kernel.taken == [
            *map(inode_notice, (5, 6)),
            entry_notice(1, b"a"),
            inode_notice(7),
            entry_notice(1, b"b"),
        ]
        teller.outdated([5])
        await teller.told()
        assert kernel.taken[5:] == [inode_notice(5)]
        teller.outdated(range(1, 1001))
        teller.outdated((), None)
        await teller.told()
        assert kernel.taken[6:] == [*map(inode_notice, range(1, 1001)), EPOCH_NOTICE]

    with_kernel(tmp_path, body)


def test_an_older_kernel_is_told_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr(teller_module, "LISTED_AT_ONCE", 3)

    async def body(volume, kernel):
        volume.audience = kernel.teller
        directory = volume.mkdir(1, b"dir", 0o755, ROOT).ino
        inner = {b"file %d" % number for number in range(10)}
        for name in inner:
            volume.release(volume.create(directory, name, 0o644, os.O_RDWR, ROOT).ino)
        other = volume.mkdir(1, b"not referred to", 0o755, ROOT).ino
        volume.mkdir(other, b"inner", 0o755, ROOT)
        volume.forget(other)
        kernel.teller.outdated((), None)
        await kernel.teller.told()
        expected = {EPOCH_NOTICE}
        expected |= {entry_notice(1, name) for name in (b".", b"..", b"dir", b"not referred to")}
        expected |= {entry_notice(directory, name) for name in (b".", b"..", *inner)}
        inners = volume.known.referenced()
        assert other not in inners and directory in inners
        assert {m for m in kernel.taken if m[8:16] == bytes(8)} == set(kernel.taken)
        directories = {m for m in kernel.taken if m in expected}
        assert directories == expected

    with_kernel(tmp_path, body, knows_epochs=False)


def test_without_a_mount_nobody_waits(tmp_path):
    paths = make_members(tmp_path)

    async def main():
        async with mounted(paths) as volume:
            kernel = Kernel(volume)
            kernel.teller.outdated([1], [(1, b"name")])
            await kernel.teller.told()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kernel.teller.run, kernel.counted)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert kernel.taken == []  # that mount never heard of it
            kernel.teller.outdated([2])
            await kernel.teller.told()

    trio.run(main)


def test_it_ends_while_somebody_waits(tmp_path):
    paths = make_members(tmp_path)

    async def main():
        async with mounted(paths) as volume:
            kernel = Kernel(volume)
            async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
                inner.start_soon(kernel.teller.run, kernel.counted)
                await trio.testing.wait_all_tasks_blocked()
                kernel.teller.outdated([1])
                nursery.start_soon(kernel.teller.told)
                inner.cancel_scope.cancel()

    trio.run(main)
