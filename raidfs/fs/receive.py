"""Receiving a snapshot: a stream comes in, is kept, verified as a whole, and only then shown.

    input -> spool (spool.py)             and at the same time
          -> Decoder (stream.py), Arrival (arrival.py): bytes, then what they say
    the end has come, all is right -> Delivery (deliver.py): one commit

The target is an empty volume, for a full stream; one whose present is exactly the base, for an
incremental one. With `force` the present is whatever it is, and becomes the past.

 1. Until the stream has been verified as a whole, nothing that users see is changed; then all of it
    is, with one commit. A damaged stream leaves nothing behind.
 2. A stream that ends early, or a crash, leaves the spool: `token` tells how to go on, and a stream
    that goes on is taken only where the spool ends, and only if it is the same stream.
 3. Snapshots that are there stay, whatever is received.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING

import msgspec
import trio

from ..errors import (
    FormatError,
    FsError,
    NoSuchSnapshot,
    OutOfSpace,
    RaidfsError,
    Unrecoverable,
    UsageError,
)
from ..store.hidden import hidden
from ..store.meta import ROOT_INO
from ..store.past import as_view, within
from ..store.rewrite import Rewrite, rewriting
from ..store.snapshots import NAME_BYTES_MAX, check_name
from ..store.spool import SPOOL_INO
from .arrival import Arrival
from .deliver import Delivery, records_of
from .rollback import check_no_moves, go_back
from .spool import Spool
from .stream import RESUMED_BYTES, Decoder, Header, Record, Token, identity, resumed

if TYPE_CHECKING:
    from ..store.inodes import InodeRow
    from ..store.snapshot_rows import Snapshot
    from .volume import Volume

Read = Callable[[], Awaitable[bytes]]  # the next bytes of the input; b"": the end
WRITE_BYTES = 1 << 20


class StreamInterrupted(RaidfsError):
    """The input ended before the stream did; what came is kept."""

    errno = errno.EPIPE


class Received(msgspec.Struct, frozen=True):
    """What one receiving did. `bytes`: that came now."""

    snapshot: str
    guid: str
    base: str | None
    bytes: int
    resumed_at: int
    inodes: int
    removed: int
    epoch: int


class Receiver:
    """One stream into one volume. `name`: of the snapshot, if not the one it was sent with."""

    def __init__(
        self,
        volume: Volume,
        read: Read,
        *,
        force: bool = False,
        name: str | None = None,
    ) -> None:
        self.volume = volume
        self.store = volume.store
        self.meta = volume.store.meta
        self.spool = Spool(volume)
        self._read = read
        self._force = force
        self._name = name
        self._decoder = Decoder()
        self._arrival = Arrival(self.meta)
        self._base: Snapshot | None = None
        self._offset = 0  # of the stream, up to which it is in the spool
        self._pending = bytearray()  # behind that
        self._bytes = 0
        self._resumed_at = 0

    async def run(self) -> Received:
        """FormatError, UsageError, OutOfSpace; StreamInterrupted. Then nothing is changed."""
        self.store.writable()
        if self._name is not None:
            check_name(self._name)
        first = await self._first()
        going_on = resumed(first)
        if going_on is not None:
            await self._go_on(*going_on)
            first = first[RESUMED_BYTES:]
        else:
            await self._start()
        try:
            await self._take_in(first)
            self._arrival.finish()
            await self._check_tails()
        except FormatError as error:
            await self._give_up()
            raise self._reason(error) from error
        except (UsageError, OutOfSpace):
            await self._give_up()
            raise
        return await self._deliver()

    # -- coming in --------------------------------------------------------------------------------

    async def _first(self) -> bytes:
        """Enough to see what it is."""
        first = b""
        while len(first) < RESUMED_BYTES and (more := await self._more()):
            first += more
        if not first:
            raise UsageError("nothing came in; pipe the output of `snapshot send` into this")
        return first

    async def _more(self) -> bytes:
        data = await self._read()
        self._bytes += len(data)
        return data

    async def _start(self) -> None:
        if self.spool.there:
            kept = None
            with suppress(FormatError, Unrecoverable):  # nobody can go on with what is damaged
                kept = await kept_token(self.volume)
            if kept is not None:
                raise UsageError(
                    f"a part of {kept.header.name!r} was received before: go on with it (`snapshot"
                    " receive --token` tells how), or give it up with `snapshot receive --abort`",
                    errno.EEXIST,
                )
            await self.spool.drop()
        await self.spool.make()

    async def _go_on(self, offset: int, stream: bytes) -> None:
        """What the spool holds is verified anew; the new input begins where it ends."""
        self._resumed_at = offset
        await self.store.commit()
        if not self.spool.there or offset > self.spool.size or not offset:
            raise UsageError(
                "this stream goes on with one of which nothing is here; send it from the start",
                errno.ENOENT,
            )
        try:
            async for record in records_of(self.spool, self._decoder, offset):
                self._look_at(record)
        except FormatError as error:
            await self._give_up()
            raise FormatError(f"what was received before is damaged: {error}") from error
        header = self._decoder.header
        if header is None or identity(header) != stream:
            raise UsageError(
                "this stream goes on with another one than the one that was interrupted here; "
                "`snapshot receive --token` tells what is needed",
                errno.EEXIST,
            )
        await self.spool.cut(offset)
        self._offset = offset

    async def _take_in(self, first: bytes) -> None:
        """All of the input, into the spool; StreamInterrupted where it ends too early."""
        data, looked = first or await self._more(), False
        while data:
            self._decoder.feed(data)
            for record in self._decoder.records():
                self._look_at(record)
            if self._decoder.header is not None and not looked:
                await self._check_present()  # not only when all has come
                looked = True
            self._pending += data
            if len(self._pending) >= WRITE_BYTES:
                await self._store_pending()
            data = await self._more()
        if not self._decoder.ended:
            await self._interrupted()
            raise StreamInterrupted(self._advice())
        await self._store_pending()

    async def _store_pending(self) -> None:
        if self._pending:
            data, self._pending = bytes(self._pending), bytearray()
            await self.spool.write(self._offset, data)
            self._offset += len(data)

    def _look_at(self, record: Record) -> None:
        if isinstance(record.body, Header):
            self._base = self._check_target(record.body)
            self._arrival.begin(record.body, self._base)
        else:
            self._arrival.record(record)

    # -- coming to nothing ------------------------------------------------------------------------

    async def _interrupted(self) -> None:
        """What came is kept, if that is worth anything."""
        if self._decoder.token is None:
            await self.spool.drop()
        else:
            await self._store_pending()
        await self.store.commit()

    def _advice(self) -> str:
        token = self._decoder.token
        if token is None:
            return "the stream ended too early; nothing was kept, so receive it again"
        return (
            f"the stream ended too early; {token.offset} bytes of it are kept. Go on with"
            f" `snapshot send --resume {token.text()}`, or give it up with `receive --abort`"
        )

    async def _give_up(self) -> None:
        with trio.CancelScope(shield=True), suppress(RaidfsError):
            await self.spool.drop()

    def _reason(self, error: FormatError) -> RaidfsError:
        """Of a base that is no more, nothing that was said can be right."""
        base = self._base
        if base is not None and self.meta.views.get(base.id) != base.epoch:
            return NoSuchSnapshot(f"snapshot {base.name!r}, the base, was deleted meanwhile")
        return FormatError(f"{error}; nothing was changed")

    # -- the target -------------------------------------------------------------------------------

    @property
    def _chosen_name(self) -> str:
        assert self._decoder.header is not None
        return self._name or self._decoder.header.name

    def _check_target(self, header: Header) -> Snapshot | None:
        """As far as it can be told by the header alone. Returns the base. UsageError."""
        if header.page_bytes != self.store.cell_bytes:
            raise UsageError(
                f"the stream has pages of {header.page_bytes} bytes and this volume of"
                f" {self.store.cell_bytes}: send it with --page-bytes {self.store.cell_bytes}"
            )
        by_guid = {row.guid: row for row in self.store.snapshots.all()}
        if header.guid in by_guid:
            raise UsageError(
                f"this snapshot is here already, as {by_guid[header.guid].name!r}", errno.EEXIST
            )
        name = self._name or header.name
        check_name(name)
        if self.store.snapshots.is_taken(name):
            raise UsageError(
                f"there is another snapshot {name!r}; receive this one with --name", errno.EEXIST
            )
        if header.base is None:
            return None
        if header.base not in by_guid:
            raise UsageError(
                f"the stream goes on from a snapshot that this volume hasn't got; send {name!r} in"
                " full, or from a snapshot that both have",
                errno.ENOENT,
            )
        return by_guid[header.base]

    async def _check_present(self) -> None:
        """It is what the stream goes on from, but for atimes. UsageError."""
        check_no_moves(self.store)
        if self._force:
            return
        if self._base is None:
            if not self.meta.is_empty(ROOT_INO):
                raise UsageError(
                    "the volume is not empty; receive a full stream into a new one, or let it take"
                    " the place of what is there with --force (snapshots stay)",
                    errno.ENOTEMPTY,
                )
            return
        before, after = await hidden(self.meta, self._base.id), await hidden(self.meta)
        for ino in await self.meta.touched(self._base.epoch, self._base.next_ino):
            now = after.seen(self.meta.inode(ino))
            then = before.seen(self.meta.inode(as_view(self._base.id, ino)))
            if ino != SPOOL_INO and _told(now) != _told(then):
                raise UsageError(
                    f"the volume was changed since snapshot {self._base.name!r}, from which the"
                    " stream goes on; roll it back to that, or use --force, which does",
                    errno.ESTALE,
                )

    def _check_kernel(self) -> None:
        """A program that has a file open shall not find another one in its place, of which it may
        not know. UsageError."""
        known = self.volume.known.referenced()
        if any(ino != ROOT_INO and self._arrival.replaces(ino) for ino in known):
            raise UsageError(
                "the stream brings files under the numbers of others that are in use; unmount the"
                " volume and receive into one of its members",
                errno.EBUSY,
            )

    async def _check_tails(self) -> None:
        """What the base has of their last pages is zeros behind their ends. FormatError."""
        base, cell_bytes = self._base, self.store.cell_bytes
        for ino, size in self._arrival.tails.items():
            assert base is not None
            async with self.volume.door.passing():
                with suppress(FsError):  # the base is gone: `_deliver` says so
                    left = await self.volume.read(as_view(base.id, ino), size, -size % cell_bytes)
                    if any(left):
                        raise FormatError(
                            f"the stream makes no sense: inode {ino} has content behind its end"
                        )

    # -- being shown ------------------------------------------------------------------------------

    async def _deliver(self) -> Received:
        header, base = self._decoder.header, self._base
        assert header is not None
        try:
            await self.store.commit()  # most of it while users' requests are still answered
            async with self.volume.door.closed():
                await self.store.commit()
                await self._check_present()
                self._check_kernel()
                async with rewriting(self.store) as rewrite:
                    if base is not None:
                        await go_back(self.volume, base, rewrite)
                    replace = self._force and base is None
                    await Delivery(
                        self.store, self.spool, self._arrival, rewrite, replace=replace
                    ).run()
                    epoch = await self._finish(rewrite)
        except RaidfsError:
            await self._give_up()
            raise
        await self.volume.audience.told()
        names = {row.guid: row.name for row in self.store.snapshots.all()}
        return Received(
            names.get(header.guid, self._chosen_name),  # that it had, if it was deleted by now
            header.guid.hex(),
            names.get(base.guid, base.name) if base is not None else None,
            self._bytes,
            self._resumed_at,
            len(self._arrival.inos),
            len(self._arrival.gone),
            epoch,
        )

    async def _finish(self, rewrite: Rewrite) -> int:
        epoch = 0
        with trio.CancelScope(shield=True):  # what is durable, all must know of
            try:
                epoch = await rewrite.finish(also=self._give_name)
            finally:
                with suppress(RaidfsError):
                    self.volume.reread()
        return epoch

    def _give_name(self, epoch: int) -> None:
        """Within the last transaction, which may not fail: if somebody took the name meanwhile, it
        is another one."""
        header, snapshots = self._decoder.header, self.store.snapshots
        assert header is not None
        name = self._chosen_name
        if snapshots.is_taken(name):
            beginning = name.encode()[: NAME_BYTES_MAX - 33].decode(errors="ignore")
            name = f"{beginning}-{header.guid.hex()}"
        snapshots.insert_in(epoch, name, header.note, header.guid, header.created_ns)


def _told(row: InodeRow | None) -> InodeRow | None:
    """What makes a difference: a file without a name makes none, nor does an atime."""
    if row is None or row.nlink == 0:
        return None
    told = copy(row)
    told.ino, told.parent, told.atime_ns, told.born = 0, within(row.parent), 0, 0
    return told


async def kept_token(volume: Volume) -> Token | None:
    """What to send to go on with the stream that was interrupted; None: there is none. FormatError
    or Unrecoverable if what is kept is damaged."""
    spool, decoder = Spool(volume), Decoder()
    if not volume.store.read_only:
        await volume.store.commit()
    async for _ in records_of(spool, decoder, spool.size):
        pass
    return decoder.token


async def give_up(volume: Volume) -> int:
    """Drop what came of a stream that was interrupted. Returns how many bytes that were."""
    volume.store.writable()
    await volume.store.commit()
    spool = Spool(volume)
    nbytes = spool.size
    await spool.drop()
    await volume.store.commit()
    return nbytes
