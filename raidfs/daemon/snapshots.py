"""The snapshot service of a volume: requests and what answers them, mounted or not.

The daemon of a mounted volume has one behind its control socket; a command that is given a member
of an unmounted volume opens the store itself and has one of its own (cli/service.py). So both say
and do the same.

 1. A request that is refused has changed nothing; one that only looks (`dry_run`) says what the
    other would do, refusals included.
 2. `create` first lets the kernel pass on what applications were told (-o writeback), then cuts.
 3. Lists are yielded in pieces, and between two of them others are served.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.policies import GROUP, PolicyService
from raidfs.daemon.streams import StreamService
from raidfs.errors import NoSuchSnapshot, RaidfsError, SnapshotHeld, UsageError
from raidfs.fs.difference import Change, difference
from raidfs.fs.rollback import Rollback, rollback
from raidfs.fs.volume import Volume
from raidfs.store.snapshot_rows import Snapshot
from raidfs.store.snapshots import check_name

RANGE = "%"  # no name of a snapshot has it
PIECE = 256  # of what is yielded at once
RANGES_PER_WEIGHT = 50  # so many ranges of a change are as long as another change
RANGES_AT_ONCE = 10_000


class SnapshotCreateRequest(Request, frozen=True, tag="snapshot-create"):
    """Answered with a SnapshotCreated when the cut is durable."""

    name: str = ""
    note: str = ""

    def changes(self) -> bool:
        return True


class SnapshotListRequest(Request, frozen=True, tag="snapshot-list"):
    """Answered with lists of SnapshotTold, by epoch. Without `used`, that is left open: it takes a
    look at the metadata where it isn't known. `patience_ms`: if that takes longer it is left open,
    too; 0: it never is. No names: all."""

    names: tuple[str, ...] = ()
    used: bool = False
    patience_ms: int = 0


class SnapshotSpaceRequest(Request, frozen=True, tag="snapshot-space"):
    """Answered with a SnapshotSpace: all snapshots together."""


class SnapshotDeleteRequest(Request, frozen=True, tag="snapshot-delete"):
    """Names, and ranges FIRST%LAST. Answered with a SnapshotDeleted: at once, or with `wait` when
    the room is free. All are deleted, or none. `measure`: also how much that frees; that may
    take longer than deleting. `force`: also parts of group snapshots, in this volume alone."""

    names: tuple[str, ...] = ()
    dry_run: bool = False
    wait: bool = False
    measure: bool = True
    force: bool = False

    def changes(self) -> bool:
        return not self.dry_run


class SnapshotRenameRequest(Request, frozen=True, tag="snapshot-rename"):
    """Answered with the SnapshotTold."""

    name: str = ""
    new_name: str = ""

    def changes(self) -> bool:
        return True


class SnapshotNoteRequest(Request, frozen=True, tag="snapshot-note"):
    """Answered with the SnapshotTold."""

    name: str = ""
    note: str = ""

    def changes(self) -> bool:
        return True


class SnapshotHoldRequest(Request, frozen=True, tag="snapshot-hold"):
    """Holds, or releases, each of them; those that are so already are left. Answered with the
    names."""

    names: tuple[str, ...] = ()
    tag: str = ""
    release: bool = False

    def changes(self) -> bool:
        return True


class SnapshotRollbackRequest(Request, frozen=True, tag="snapshot-rollback"):
    """See fs/rollback.py; answered with a RolledBack. `keep` may be empty."""

    name: str = ""
    delete_newer: bool = False
    keep: str = ""
    dry_run: bool = False

    def changes(self) -> bool:
        return True  # before it looks, what is in memory goes to the members


class SnapshotDiffRequest(Request, frozen=True, tag="snapshot-diff"):
    """From one to the other, or to the present (`new` is empty). Answered with lists of
    difference.Change, by path; one with very many ranges comes as several in a row, alike but for
    these."""

    old: str = ""
    new: str = ""


class SnapshotTold(msgspec.Struct, frozen=True):
    """A snapshot. `refer_bytes`: content that it shows; `used_bytes`: what deleting it would free.
    `path`: where it is seen, if the volume is mounted."""

    name: str
    volume: str
    id: int
    guid: str
    epoch: int
    created_ns: int
    note: str
    refer_bytes: int
    used_bytes: int | None
    inodes: int
    holds: tuple[str, ...]
    path: str | None
    group_id: str | None = None  # of the group snapshot that it is a part of


class SnapshotCreated(msgspec.Struct, frozen=True):
    """`gate_us`: so long the replies to applications stood still for cuts meanwhile."""

    snapshot: SnapshotTold
    seconds: float
    gate_us: float


class SnapshotSpace(msgspec.Struct, frozen=True):
    """`together_bytes`: what deleting all snapshots would free."""

    volume: str
    snapshots: int
    together_bytes: int


class SnapshotDeleted(msgspec.Struct, frozen=True):
    """What was deleted, or would be. `freed_bytes`: None if nobody asked."""

    volume: str
    names: list[str]
    freed_bytes: int | None


class RolledBack(msgspec.Struct, frozen=True):
    """`seconds`: how long it took. `rollback.epoch` is 0 if it was not done."""

    volume: str
    snapshot: SnapshotTold
    rollback: Rollback
    seconds: float


async def _nothing_to_drain() -> None:
    """Nobody holds anything back."""


class SnapshotService:
    """Of one volume."""

    def __init__(
        self,
        volume: Volume,
        *,
        seen_at: str | None = None,
        drain: Callable[[], Awaitable[None]] = _nothing_to_drain,
    ) -> None:
        """`seen_at`: the directory in which snapshots are seen by name. `drain` returns when what
        applications were told has arrived here."""
        self.volume = volume
        self.store = volume.store
        self.snapshots = self.store.snapshots
        self._volume = self.store.assembly.label.volume_name
        self._seen_at = seen_at
        self._drain = drain
        self.streams = StreamService(volume)

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            SnapshotCreateRequest: self._create,
            SnapshotListRequest: self._list,
            SnapshotSpaceRequest: self._space,
            SnapshotDeleteRequest: self._delete,
            SnapshotRenameRequest: self._rename,
            SnapshotNoteRequest: self._note,
            SnapshotHoldRequest: self._hold,
            SnapshotRollbackRequest: self._rollback,
            SnapshotDiffRequest: self._diff,
            **PolicyService(self.store, self._drain).handlers(),
            **self.streams.handlers(),
        }

    # -- telling ----------------------------------------------------------------------------------

    def _bytes(self, cells: int) -> int:
        return cells * self.store.cell_bytes

    def _told(self, snapshot: Snapshot, used: int | None = None) -> SnapshotTold:
        return SnapshotTold(
            name=snapshot.name,
            volume=self._volume,
            id=snapshot.id,
            guid=snapshot.guid.hex(),
            epoch=snapshot.epoch,
            created_ns=snapshot.created_ns,
            note=snapshot.note,
            refer_bytes=self._bytes(snapshot.cells),
            used_bytes=None if used is None else self._bytes(used),
            inodes=snapshot.inodes,
            holds=snapshot.holds,
            path=f"{self._seen_at}/{snapshot.name}" if self._seen_at else None,
            group_id=None if snapshot.group_id is None else snapshot.group_id.hex(),
        )

    def _find(self, name: str) -> Snapshot:
        """NoSuchSnapshot, also for one that is raidfs's own."""
        found = self.snapshots.find(name)
        if found.internal:
            raise NoSuchSnapshot(f"{name!r} is raidfs's own; `snapshot list` shows yours")
        return found

    def _chosen(self, names: Iterable[str]) -> list[Snapshot]:
        """What is named, ranges resolved, each once, by epoch. NoSuchSnapshot, UsageError."""
        all_there = self.snapshots.all()
        found: dict[int, Snapshot] = {}
        for name in names:
            first, is_range, last = name.partition(RANGE)
            part = self._range(all_there, first, last) if is_range else [self._find(name)]
            found.update((snapshot.id, snapshot) for snapshot in part)
        return sorted(found.values(), key=lambda snapshot: (snapshot.epoch, snapshot.id))

    def _range(self, all_there: Sequence[Snapshot], first: str, last: str) -> Sequence[Snapshot]:
        """From one to another, both among them; an end left out is the oldest or the newest."""
        begin = all_there.index(self._find(first)) if first else 0
        end = all_there.index(self._find(last)) if last else len(all_there) - 1
        if begin > end:
            raise UsageError(f"{first!r} is newer than {last!r}; write {last}{RANGE}{first}")
        return all_there[begin : end + 1]

    async def _list(self, request: SnapshotListRequest) -> AsyncGenerator[list[SnapshotTold], None]:
        chosen = self._chosen(request.names) if request.names else self.snapshots.all()
        used: dict[int, int] = {}
        with trio.move_on_after(request.patience_ms / 1000 or math.inf):
            used = await self.snapshots.alone_each(chosen) if request.used else {}
        for at in range(0, len(chosen), PIECE):
            told = []
            for snapshot in chosen[at : at + PIECE]:
                now = self.snapshots.get(snapshot.id)
                if now is None:
                    continue  # deleted meanwhile
                told.append(self._told(now, used.get(now.id)))
            yield told

    async def _space(self, _: SnapshotSpaceRequest) -> SnapshotSpace:
        everything = self.snapshots.all()
        cells = await self.snapshots.freed_cells(everything)
        return SnapshotSpace(self._volume, len(everything), self._bytes(cells))

    async def _diff(self, request: SnapshotDiffRequest) -> AsyncGenerator[list[Change], None]:
        for name in filter(None, (request.old, request.new)):
            self._find(name)
        await self._drain()
        piece: list[Change] = []
        weight = 0
        async with difference(self.volume, request.old, request.new or None) as changes:
            async for change in changes:
                for part in _split(change):
                    piece.append(part)
                    weight += 1 + len(part.ranges) // RANGES_PER_WEIGHT
                    if weight >= PIECE:
                        yield piece
                        piece, weight = [], 0
            yield piece

    # -- changing ---------------------------------------------------------------------------------

    async def _create(self, request: SnapshotCreateRequest) -> SnapshotCreated:
        check_name(request.name)
        begun = time.monotonic()
        self.store.writable()
        await self._drain()
        shut_ns = self.store.gate.shut_ns
        snapshot = await self.snapshots.create(request.name, request.note)
        shut_ns = self.store.gate.shut_ns - shut_ns
        return SnapshotCreated(self._told(snapshot), time.monotonic() - begun, shut_ns / 1000)

    async def _delete(self, request: SnapshotDeleteRequest) -> SnapshotDeleted:
        chosen = self._chosen(request.names)
        self._check_not_held(chosen)
        if not request.force:
            self._check_not_shared(chosen, "delete")
        self._check_not_bound(chosen)
        freed = None
        if request.measure:
            freed = self._bytes(await self.snapshots.freed_cells(chosen))
        if not request.dry_run:
            await self.snapshots.delete([snapshot.name for snapshot in chosen])
            if request.wait:
                await self.snapshots.swept()
        names = [snapshot.name for snapshot in chosen]
        return SnapshotDeleted(self._volume, names, freed)

    def _check_not_held(self, chosen: Iterable[Snapshot]) -> None:
        held = [snapshot for snapshot in chosen if snapshot.holds]
        if held:
            told = "; ".join(f"{each.name} ({', '.join(each.holds)})" for each in held[:5])
            more = f" and {len(held) - 5} more" if len(held) > 5 else ""
            raise SnapshotHeld(
                f"nothing was deleted, since there are holds on {told}{more}:"
                " remove them with `raidfs-ctl snapshot release`"
            )

    def _check_not_shared(self, chosen: Iterable[Snapshot], verb: str) -> None:
        """While the volume is in a group, its part of a group snapshot stays as the others are."""
        if self.store.meta.setting(GROUP) is None:
            return
        for each in chosen:
            if each.group_id is not None:
                raise UsageError(
                    f"{each.name!r} is part of a snapshot of the group, the same in all its"
                    f" volumes, and can't be {verb}d alone: raidfs-ctl group delete deletes all of"
                    " it (snapshot delete --force: this part alone, so it is INCOMPLETE)"
                )

    def _check_not_bound(self, chosen: Iterable[Snapshot]) -> None:
        bound = self.store.group_snapshots.bound
        if any(each.group_id in bound for each in chosen):
            raise UsageError("the group is about to delete it, or to go back to it")

    async def _rename(self, request: SnapshotRenameRequest) -> SnapshotTold:
        snapshot = self._find(request.name)
        self._check_not_shared([snapshot], "rename")
        snapshot_id = snapshot.id
        await self.snapshots.rename(request.name, request.new_name)
        return self._changed(snapshot_id)

    async def _note(self, request: SnapshotNoteRequest) -> SnapshotTold:
        snapshot_id = self._find(request.name).id
        await self.snapshots.annotate(request.name, request.note)
        return self._changed(snapshot_id)

    async def _hold(self, request: SnapshotHoldRequest) -> list[str]:
        check_name(request.tag, "hold")
        chosen = self._chosen(request.names)
        lacking = [each.name for each in chosen if request.tag not in each.holds]
        if request.release and lacking and len(lacking) == len(chosen):
            raise UsageError(f"nothing to release: {lacking[0]} has no hold {request.tag!r}")
        if not request.release:
            self._check_not_bound(chosen)
        for snapshot in chosen:
            if request.release and snapshot.name not in lacking:
                await self.snapshots.release(snapshot.name, request.tag)
            elif not request.release and snapshot.name in lacking:
                await self.snapshots.hold(snapshot.name, request.tag)
        return [snapshot.name for snapshot in chosen]

    async def _rollback(self, request: SnapshotRollbackRequest) -> RolledBack:
        begun = time.monotonic()
        snapshot = self._find(request.name)
        if request.delete_newer:
            newer = [each for each in self.snapshots.all() if each.epoch > snapshot.epoch]
            self._check_not_shared(newer, "delete")
        await self._drain()
        done = await rollback(
            self.volume,
            request.name,
            delete_newer=request.delete_newer,
            keep=request.keep or None,
            dry_run=request.dry_run,
        )
        seconds = time.monotonic() - begun
        return RolledBack(self._volume, self._told(snapshot), done, seconds)

    def _changed(self, snapshot_id: int) -> SnapshotTold:
        now = self.snapshots.get(snapshot_id)
        if now is None:
            raise RaidfsError("the snapshot was deleted meanwhile")
        return self._told(now)


def _split(change: Change) -> Iterator[Change]:
    """The same in parts, of which none has too many ranges for one reply."""
    yield msgspec.structs.replace(change, ranges=change.ranges[:RANGES_AT_ONCE])
    for at in range(RANGES_AT_ONCE, len(change.ranges), RANGES_AT_ONCE):
        yield msgspec.structs.replace(change, ranges=change.ranges[at : at + RANGES_AT_ONCE])
