"""Files that move between this volume and others of its group: group/move.py, carried out.

What the tables say is done in their order. Hiding, giving a name and queueing a message are steps
without waiting; what takes time (rows, content) goes to tasks and answers with an event.

 1. A cut has a file here, or has it recorded as on its way (`_cut`, and the marker process), or
    doesn't have it: never two of these in all volumes together, and never none.
 2. What was on its way is put into this volume's part of a group snapshot before that can be seen:
    `before_commit` waits until the present has it, `_deliver` amends the past. So whoever reads
    `.snapshots`, or goes back, finds one and the same.
 3. A move that was not given leaves its file as it was, whatever happens; what was given arrives.
 4. What was given, and not yet taken as far as is known, would be in no part of a snapshot without
    the target: there is none until that is known, or a person has decided (group_decisions.py).
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from raidfs.daemon import fault
from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_content import ContentService, Progress
from raidfs.daemon.group_giving import Giving
from raidfs.daemon.group_requests import (
    MoveCheckRequest,
    MoveProgress,
    MoveRequest,
)
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import FsError, OutOfSpace, RaidfsError, UsageError
from raidfs.fs.moves import Moves, Stale, Tree
from raidfs.fs.volume import Volume
from raidfs.group import events as e
from raidfs.group import move as m
from raidfs.group.messages import Plan, Transfer
from raidfs.group.stable import Move
from raidfs.store.group_snapshots import MOVE_IN, MOVE_OUT
from raidfs.store.snapshot_rows import Snapshot

log = logging.getLogger("raidfs.group")

RETRY_S = 0.3
STALE_MAX = 20
TELL_S = 0.25
KERNEL_S = 5.0


@dataclass(slots=True)
class One:
    """A move, as one side has it."""

    move: bytes
    peer: str
    core: m.Source | m.Target
    todo: deque[m.Keep | m.Drop] = field(default_factory=deque)
    is_worked_on: bool = False
    is_giving: bool = False
    is_unknown: bool = False  # to the other side, although it was given
    scope: trio.CancelScope | None = None
    waits: bool = False  # for room
    progress: Progress = field(default_factory=Progress)
    finished: m.Finish | None = None

    @property
    def kind(self) -> str:
        return MOVE_OUT if isinstance(self.core, m.Source) else MOVE_IN


class GroupMoves:
    """Of one mounted volume. All methods belong to the event loop's thread."""

    def __init__(self, group: GroupProcess, works: GroupWorks, volume: Volume) -> None:
        self.group = group
        self.works = works
        self.volume = volume
        self.store = volume.store
        self.moves = Moves(volume)
        self.content = ContentService(group, self.moves)
        self.known: dict[tuple[str, bytes], One] = {}  # by kind and number
        self._recovered: list[tuple[One, list[m.Action]]] = []
        self._nursery: trio.Nursery | None = None
        works.on_move = self._heard
        works.on_back = self._up
        self.giving = Giving(group, works, volume, self.moves)
        group.parts.on_cut.append(self._cut)
        group.parts.checks.append(self._check_cut)
        group.parts.before_commit = self.before_commit
        volume.store.group_snapshots.deliver = self._deliver

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {MoveRequest: self._move, MoveCheckRequest: self._check}

    # -- its life ---------------------------------------------------------------------------------

    def recover(self) -> None:
        """Before anybody sees the volume: what was given is hidden again."""
        for move, kind, value in self.store.meta.kept():
            if kind == MOVE_OUT:
                row = msgspec.msgpack.decode(value, type=m.SourceRow)
                hidden = row.state == "giving" and self._hidden_again(move, row)
                self._know(One(move, row.peer, m.Source.recover(row, hidden=hidden)))
            elif kind == MOVE_IN:
                into = msgspec.msgpack.decode(value, type=m.TargetRow)
                hidden = self.moves.item(move) is not None
                core, actions = m.Target.recover(into, hidden=hidden)
                one = self._know(One(move, into.peer, core))
                self._recovered.append((one, actions))

    def _hidden_again(self, move: bytes, row: m.SourceRow) -> bool:
        """Whether it was given, or may have been: then it is hidden on return."""
        if self.moves.item(move) is not None:
            self.moves.hide_again(move)
            return True
        try:
            tree = self.moves.walk(row.parent, row.source_name, row.ino)
        except RaidfsError:
            return False
        if tree.stamp != row.stamp:
            return False
        self.moves.hide(move, row.parent, row.source_name, tree)
        return True

    def _know(self, one: One) -> One:
        self.known[one.kind, one.move] = one
        return one

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for one, actions in self._recovered:
                self._act(one, actions)
            self._spawn(self._sweep)
            await trio.sleep_forever()

    def _spawn(self, part: Callable[..., Awaitable[None]], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(partial(self._guarded, part, *arguments))

    @staticmethod
    async def _guarded(part: Callable[..., Awaitable[None]], *arguments: object) -> None:
        try:
            await part(*arguments)
        except RaidfsError as error:
            log.warning("move: %s", error)

    def end(self) -> None:
        """The volume is about to be closed; what is under way goes on at the next mount."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            self._nursery = None

    async def _sweep(self) -> None:
        await self.moves.sweep(lambda: {move for _, move in self.known})

    # -- telling ----------------------------------------------------------------------------------

    def pending(self) -> list[str]:
        """Sentences, of all that are under way here."""
        charter = self.group.charter
        found = []
        for one in self.known.values():
            called = charter.called(one.peer) if charter else one.peer
            way = "to" if one.kind == MOVE_OUT else "from"
            found.append(f"move of {m.name_text(one.core.row.name)} {way} {called}")
        return found

    def states(self) -> tuple[Move, ...]:
        """For what is decided of a recorded state."""
        me, found = self.group.me, []
        for one in self.known.values():
            ends = (me, one.peer) if one.kind == MOVE_OUT else (one.peer, me)
            row = one.core.row
            found.append(Move(one.move, m.name_text(row.name), *ends, row.size_bytes, one.waits))
        return tuple(found)

    def promised_bytes(self) -> int:
        """Room that is for moves to here, and not yet taken."""
        return sum(
            max(0, one.core.row.size_bytes - one.progress.done)
            for one in self.known.values()
            if isinstance(one.core, m.Target) and one.core.state == "staging" and not one.waits
        )

    def free_bytes(self) -> int:
        room = max(0, self.store.space.usage().free_cells) * self.store.cell_bytes
        return max(0, room - self.promised_bytes())

    # -- what is heard ----------------------------------------------------------------------------

    def _heard(self, peer: str, message: object) -> None:
        if not isinstance(message, Transfer):
            self._content(peer, message)
            return
        payload = m.payload_of(message)
        if payload is None:
            log.warning("move: a message of %s was not understood", peer)
            return
        to_target = isinstance(payload, m.Offered | m.Withdrawn | m.Given | m.Settled)
        one = self.known.get((MOVE_IN if to_target else MOVE_OUT, message.move))
        if one is not None and one.peer == peer:
            one.is_unknown = isinstance(payload, m.Unknown)
            self.tell(one, m.Heard(payload))
        elif isinstance(payload, m.Offered):
            self._offered(peer, message.move, payload)
        elif isinstance(payload, m.Given):
            self._say(peer, message.move, m.Unknown())
        elif not to_target and (answer := m.answer_of_source(payload)) is not None:
            self._say(peer, message.move, answer)

    def _content(self, peer: str, message: object) -> None:
        if isinstance(message, m.ContentTold):
            self.content.told(peer, message)
        elif isinstance(message, m.ContentAsked):
            one = self.known.get((MOVE_OUT, message.move))
            if one is not None and one.peer == peer and isinstance(one.core, m.Source):
                self._spawn(self.content.answer, peer, message, one.core.row, one.progress)

    def _up(self, peer: str) -> None:
        """Nothing else was sent to it yet: what was given before goes first."""
        for one in list(self.known.values()):
            if one.peer == peer:
                self.tell(one, m.Up())

    def _offered(self, peer: str, move: bytes, offer: m.Offered) -> None:
        try:
            parent = self._acceptable(offer.place, offer.name)
            if not offer.waits:
                self._check_room(offer.size_bytes)
        except RaidfsError as error:
            self._say(peer, move, m.Refused(str(error)[:1000] or os.strerror(error.errno)))
            return
        row = m.TargetRow(
            "staging", peer, parent, offer.name, offer.size_bytes, offer.waits,
            begun_ns=self.store.clock(),
        )  # fmt: skip
        one = self._know(One(move, peer, m.Target(row)))
        one.progress.total = offer.size_bytes
        self._act(one, one.core.start())

    def _acceptable(self, place: tuple[bytes, ...], name: bytes) -> int:
        """The directory. RaidfsError: nothing can come there by that name."""
        self.store.writable()
        if self.works.pending():
            raise RaidfsError("a rollback or deletion of the group is under way", errno.EBUSY)
        try:
            parent = self.moves.find(place)
        except FsError as error:
            where = os.fsdecode(b"/".join(place))
            raise UsageError(f"{where}: {os.strerror(error.errno)}", error.errno) from None
        self.moves.check_vacant(parent, name)
        coming = [one.core.row for one in self.known.values() if isinstance(one.core, m.Target)]
        if any(row.name == name and row.parent == parent for row in coming):
            raise UsageError(f"another {os.fsdecode(name)!r} is on its way there", errno.EEXIST)
        return parent

    def _check_room(self, size_bytes: int) -> None:
        free = self.free_bytes()
        if size_bytes > free:
            raise OutOfSpace(f"there is no room for it: {size_bytes} bytes, and {free} are free")

    # -- actions ----------------------------------------------------------------------------------

    def tell(self, one: One, event: m.Event) -> None:
        self._act(one, one.core.handle(event))
        self.group.changed()

    def _act(self, one: One, actions: list[m.Action]) -> None:
        for action in actions:
            match action:
                case m.Send(payload):
                    self._say(one.peer, one.move, payload)
                case m.Keep() | m.Drop():
                    one.todo.append(action)
                    if not one.is_worked_on:
                        one.is_worked_on = True
                        self._spawn(self._work, one)
                case m.Give():
                    if not one.is_giving:
                        one.is_giving = True
                        self._spawn(self._give, one)
                case m.Stage():
                    if one.scope is not None:
                        one.scope.cancel()
                    self._spawn(self._stage, one)
                case m.Link():
                    self._spawn(self._link, one)
                case m.Finish():
                    self._finish(one, action)

    def _say(self, peer: str, move: bytes, payload: m.Payload) -> None:
        point = f"send-{type(payload).__name__.lower()}"
        fault.here(f"move.before-{point}")
        self.group.give(e.Transmit(peer, m.transfer(move, payload)))
        fault.here(f"move.after-{point}")

    async def _work(self, one: One) -> None:
        """Rows, in order."""
        try:
            while one.todo:
                action = one.todo.popleft()
                drops = isinstance(action, m.Drop)
                value = None if drops else msgspec.msgpack.encode(action.row)  # type: ignore[union-attr]
                point = "drop" if drops else f"keep-{action.row.state}"  # type: ignore[union-attr]
                point = f"{one.kind}-{point}"
                fault.here(f"move.before-{point}")
                await self.store.group_snapshots.keep(one.move, one.kind, value)
                fault.here(f"move.after-{point}")
                if point.endswith(("keep-taken", "out-drop")):
                    await self._kernel_told()
                self.tell(one, m.Dropped() if drops else m.Kept())
        finally:
            one.is_worked_on = False

    async def _kernel_told(self) -> None:
        """What it has cached of names is so no more: before anybody is told that it is over."""
        with trio.move_on_after(KERNEL_S):
            await self.volume.audience.told()

    def _finish(self, one: One, action: m.Finish) -> None:
        one.finished = action
        if one.scope is not None:
            one.scope.cancel()
        self.known.pop((one.kind, one.move), None)
        self._spawn(self._sweep)
        self.group.changed()

    async def _give(self, one: One) -> None:
        assert isinstance(one.core, m.Source)
        try:
            await self.giving.give(one.core, one.move, partial(self.tell, one))
        finally:
            one.is_giving = False

    # -- the target stages, and links -------------------------------------------------------------

    async def _stage(self, one: One) -> None:
        event: m.Event | None = None
        with trio.CancelScope() as one.scope:
            try:
                event = m.Content(await self._staged(one))
            except RaidfsError as error:
                event = m.Unable(str(error) or os.strerror(error.errno))
            except Exception:
                log.exception("a move can't be staged")
                event = m.Unable("an error inside raidfs; its log tells more")
        one.scope, one.waits = None, False
        if event is not None:
            self.tell(one, event)

    async def _staged(self, one: One) -> bytes:
        """All of it is here, hidden and durable; the stamp. RaidfsError."""
        assert isinstance(one.core, m.Target)
        for attempt in range(STALE_MAX):
            try:
                items, stamp = await self.content.list(one.peer, one.move)
                fetch = partial(self.content.fetch, one.peer, one.move, one.progress)
                if stamp != one.core.row.stamp:
                    await self.moves.remove(one.move)
                    one.core.row = msgspec.structs.replace(one.core.row, stamp=stamp)
                    encoded = msgspec.msgpack.encode(one.core.row)
                    await self.store.group_snapshots.keep(one.move, MOVE_IN, encoded)
                    await self._room(one)
                fault.here("move.before-stage")
                await self.moves.build(one.move, items, fetch)
                await self.store.commit()
                fault.here("move.after-stage")
                return stamp
            except Stale as error:
                log.info("move: %s", error)
                if attempt == STALE_MAX - 1:
                    raise
                await trio.sleep(RETRY_S)
        raise AssertionError

    async def _room(self, one: One) -> None:
        """Returns when there is some; OutOfSpace, if it isn't to be waited for."""
        size = one.core.row.size_bytes
        one.waits = True  # and so nothing is promised to it
        while size > self.free_bytes():
            if not one.core.row.waits:
                self._check_room(size)
            await trio.sleep(RETRY_S)
        one.waits = False

    async def _link(self, one: One) -> None:
        while one.core.links:
            try:
                async with self.volume.door.passing():
                    await self.volume.ready()
                    if not one.core.links:
                        return
                    row = one.core.row
                    called = row.name if isinstance(row, m.TargetRow) else row.source_name
                    if fault.is_set("move.hold-link"):
                        raise RaidfsError("held back, for a test")
                    fault.here("move.before-link")
                    name = self.moves.link(one.move, row.parent, called)
                    self.tell(one, m.Linked(name))
                    fault.here("move.after-link")
            except RaidfsError as error:
                log.warning("move: not yet: %s", error)
                await trio.sleep(RETRY_S)

    # -- group snapshots --------------------------------------------------------------------------

    def _check_cut(self, plan: Plan) -> None:
        """Promise 4. RaidfsError."""
        charter = self.group.must_be_in()
        for one in self.known.values():
            out = charter.member(one.peer) is None or one.peer in plan.missing
            if out and isinstance(one.core, m.Source) and one.core.is_given:
                raise RaidfsError(
                    f"{m.name_text(one.core.row.name)!r} was given to {charter.called(one.peer)},"
                    " which is left out, so it would be in no part: wait for that volume, or"
                    f" decide where it is: raidfs-ctl group resolve, with id {one.move.hex()}",
                    errno.EBUSY,
                )

    def _cut(self, snapshot: bytes) -> None:
        """Ours, and without a name at the cut: recorded, as if it came only now."""
        for one in self.known.values():
            if isinstance(one.core, m.Target) and one.core.is_owned:
                row = one.core.row
                message = m.transfer(one.move, m.Given(row.parent, row.name))
                self.group.parts.record(snapshot, one.peer, message)

    @staticmethod
    def _given(ways: list[tuple[str, bytes]]) -> list[tuple[bytes, str, m.Given]]:
        found = []
        for peer, encoded in ways:
            message = msgspec.msgpack.decode(encoded, type=Transfer)
            payload = m.payload_of(message)
            if isinstance(payload, m.Given):
                found.append((message.move, peer, payload))
        return found

    async def before_commit(self, snapshot: bytes) -> None:
        """Promise 2: what was recorded is linked in the present, so that the past can be amended:
        the versions concerned have died. That it was recorded proves that it was given."""
        row = self.store.group_snapshots.hidden().get(snapshot)
        given = self._given(self.store.meta.recorded(snapshot))
        for move, _, payload in given:
            one = self.known.get((MOVE_IN, move))
            if one is not None:
                self.tell(one, m.Heard(payload))
                await self.group.until(lambda one=one: not one.core.is_owned)  # type: ignore[misc]
            found = self.moves.item_then(row.id, move) if row is not None else None
            if row is None or found is None:
                continue
            parent, _ = self.moves.name_then(row.id, move, payload.parent, payload.name)
            for ino in {*found, parent}:
                if self.store.meta.is_live_then(ino, row.epoch):
                    self.volume.inodes.change_alone(self.volume.inodes.get(ino))

    def _deliver(self, row: Snapshot, ways: list[tuple[str, bytes]]) -> None:
        for move, _, payload in self._given(ways):
            found = self.moves.item_then(row.id, move)
            if found is None or fault.is_set("move.no-deliver"):
                continue  # the cut has it
            where = self.moves.name_then(row.id, move, payload.parent, payload.name)
            try:
                self.store.meta.move_then(row.id, found[0], b"item", *where)
            except RaidfsError as error:
                log.error("snapshot %s lacks %r: %s", row.note, payload.name, error)

    # -- who asks ---------------------------------------------------------------------------------

    async def _check(self, request: MoveCheckRequest) -> int:
        """Free bytes. RaidfsError: it would be refused."""
        self.group.must_be_in()
        self._acceptable(request.place, request.name)
        if not request.wait:
            self._check_room(request.size_bytes)
        return self.free_bytes()

    async def _move(self, request: MoveRequest) -> AsyncGenerator[MoveProgress, None]:
        charter = self.group.must_be_in()
        if charter.member(request.target) is None or request.target == self.group.me:
            raise UsageError("the target is not in the same group")
        self.store.writable()
        if self.works.pending():
            raise RaidfsError("a rollback or deletion of the group is under way", errno.EBUSY)
        parent, tree = await self._chosen(request)
        begun = trio.current_time()
        if request.dry_run:
            yield MoveProgress("would move", 0, tree.size_bytes, len(tree.items), 0.0)
            return
        if not self.group.is_up(request.target):
            called = charter.called(request.target)
            raise RaidfsError(f"{called} can't be reached", errno.ENOTCONN)
        row = m.SourceRow(
            "offered", request.target, parent, request.source[-1], tree.items[0].ino,
            request.name, request.place, tree.size_bytes, request.wait,
            begun_ns=self.store.clock(),
        )  # fmt: skip
        one = self._know(One(os.urandom(16), request.target, m.Source(row)))
        one.progress.total = tree.size_bytes
        self._act(one, one.core.start())
        try:
            while one.finished is None:
                with trio.move_on_after(TELL_S):
                    await self.group.until(lambda: one.finished is not None)
                took = trio.current_time() - begun
                done, total = one.progress.done, one.progress.total
                yield MoveProgress(one.core.state, done, total, len(tree.items), took)
        finally:
            if one.finished is None:
                self.tell(one, m.Cancel("interrupted"))
        if one.finished.why:
            raise RaidfsError(f"not moved: {one.finished.why}")
        took = trio.current_time() - begun
        yield MoveProgress(
            "moved", tree.size_bytes, tree.size_bytes, len(tree.items), took, one.finished.name
        )

    async def _chosen(self, request: MoveRequest) -> tuple[int, Tree]:
        """The directory, and what is to be moved out of it. RaidfsError."""
        if not request.source:
            raise UsageError("the root of a volume can't be moved")
        name = request.source[-1]
        try:
            parent = self.moves.find(request.source[:-1])
            tree = await self.moves.look(parent, name, self.volume.names.lookup(parent, name).ino)
        except FsError as error:
            where = os.fsdecode(b"/".join(request.source))
            raise UsageError(f"{where}: {os.strerror(error.errno)}", error.errno) from None
        moving = {one.core.row.ino for one in self.known.values() if isinstance(one.core, m.Source)}
        if moving & {each.ino for each in tree.items}:
            raise UsageError(f"{m.name_text(name)} is being moved already", errno.EBUSY)
        return parent, tree
