"""What all volumes of a group do together without a cut: delete a group snapshot, or go back to it.

   coordinator: Intend -> all Agreed -> verdict durable -> Verdict -> all WorkDone -> Release
   each:        checks, intent durable, Agreed -> Verdict: does it, or forgets it -> WorkDone

1. It is done in all volumes or in none: an agreement is durable before it is said, and so is the
   verdict. Who agreed and doesn't know the verdict asks, after a crash as well; a coordinator that
   knows nothing has given none.
2. The work and the end of the intent are one transaction: it is done once.
3. For a rollback users are kept out everywhere before anything is changed anywhere, and until all
   is done, so nobody sees one volume as it was beside another as it had become; but no longer than
   `HOLD_S` beyond a volume's own part.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import trio

from raidfs.daemon import fault
from raidfs.daemon.group import GroupProcess
from raidfs.errors import NoSuchSnapshot, RaidfsError, SnapshotHeld
from raidfs.fs.rollback import rollback
from raidfs.fs.volume import Volume
from raidfs.group.charter import (
    Agreed,
    Intend,
    Objected,
    Release,
    StateAsked,
    StateTold,
    Verdict,
    Work,
    WorkAsked,
    WorkDone,
)
from raidfs.group.messages import Transfer
from raidfs.group.move import ContentAsked, ContentTold
from raidfs.store.snapshot_rows import Snapshot

log = logging.getLogger("raidfs.group")

INTENT, VERDICT = "intent", "verdict"
DOOR_S = 5.0  # for requests under way to end
VOTE_S = 15.0
HOLD_S = 10.0
DONE_S = 120.0


@dataclass(slots=True)
class _Votes:
    """What the coordinator has heard. `undone`: who has still to do it, once it is decided."""

    work: Work
    agreed: set[str] = field(default_factory=set)
    objection: str = ""
    undone: set[str] | None = None


@dataclass(slots=True)
class _Intent:
    """What was agreed to here."""

    work: Work
    verdict: bool | None = None
    is_done: bool = False
    released: bool = False
    waited_for: bool = False  # by a task that acts on the verdict


class GroupWorks:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, volume: Volume) -> None:
        self.group = group
        self.volume = volume
        self.store = volume.store
        self.me = group.me
        self._intents: dict[bytes, _Intent] = {}
        self._votes: dict[bytes, _Votes] = {}
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.on_state: Callable[[str, StateAsked | StateTold], None] = lambda peer, message: None
        self.on_move: Callable[[str, object], None] = lambda peer, message: None
        self.on_back: Callable[[str], None] = lambda peer: None
        group.on_message = self._heard
        group.on_up = self._up

    def pending(self) -> list[Work]:
        """Not yet done everywhere, or in doubt."""
        works = {one.work.work: one.work for one in self._intents.values()}
        works |= {one.work.work: one.work for one in self._votes.values()}
        return list(works.values())

    async def run(self) -> None:
        """Until cancelled; first takes up what a crash left."""
        async with trio.open_nursery() as self._nursery:
            kept = self.store.meta.kept()
            intended = {number for number, kind, _ in kept if kind == INTENT}
            works = [
                (kind, msgspec.msgpack.decode(value, type=Work))
                for _, kind, value in kept
                if kind in (INTENT, VERDICT)
            ]
            for kind, work in works:
                if kind == VERDICT:
                    self._votes[work.work] = _Votes(work, undone=set(work.members))
                    if work.work not in intended:  # it was done here
                        self._done(self.me, work.work)
            for kind, work in works:
                if kind == INTENT:
                    self._spawn(self._take_part, work, True)
            await trio.sleep_forever()

    def _spawn(self, part: Callable[..., Awaitable[None]], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(part, *arguments)

    # -- the coordinator --------------------------------------------------------------------------

    async def carry(
        self,
        verb: Literal["delete", "rollback"],
        name: str,
        *,
        keep: str = "",
        delete_newer: bool = False,
    ) -> tuple[Work, set[str]]:
        """Done on return, but in those volumes that are told: there it will be when they are back.
        RaidfsError: it is done nowhere."""
        async with self._turn:
            charter = self.group.must_be_in()
            if away := self.group.away():
                told = ", ".join(f"{charter.called(one)} ({why})" for one, why in away.items())
                raise RaidfsError(f"all volumes have to be there for that; away: {told}")
            row = self.find(name)
            assert row.group_id is not None
            work = Work(
                os.urandom(16), verb, row.group_id, name, self.me, charter.roster.members,
                keep, delete_newer,
            )  # fmt: skip
            votes = self._votes[work.work] = _Votes(work)
            try:
                await self._decide(votes)
            except BaseException:
                if votes.undone is None:
                    del self._votes[work.work]
                    self._tell(work, Verdict(work.work, False))
                raise
            fault.here("group.after-verdict")
            self._tell(work, Verdict(work.work, True))
            with trio.move_on_after(DONE_S):
                await self.group.until(lambda: not votes.undone or bool(self.group.away()))
                with trio.move_on_after(HOLD_S):
                    await self.group.until(lambda: not votes.undone)
            self._tell(work, Release(work.work))
            return work, set(votes.undone or ())

    def find(self, name: str) -> Snapshot:
        """NoSuchSnapshot."""
        row = self.store.snapshots.find(name)
        if row.group_id is None or row.internal:
            raise NoSuchSnapshot(f"{name!r} is a snapshot of this volume alone, not of the group")
        return row

    async def _decide(self, votes: _Votes) -> None:
        """All agreed and that is durable, or RaidfsError."""
        work = votes.work
        self._tell(work, Intend(work))

        def voted() -> bool:
            if not votes.objection and (away := self.group.away()):
                votes.objection = f"{', '.join(away.values())}"
            return bool(votes.objection) or votes.agreed == set(work.members)

        with trio.move_on_after(VOTE_S):
            await self.group.until(voted)
        if votes.objection or votes.agreed != set(work.members):
            slow = ", ".join(sorted(set(work.members) - votes.agreed))
            why = votes.objection or f"no answer from {slow}"
            raise RaidfsError(f"nothing was done in any volume: {why}")
        fault.here("group.before-verdict")
        encoded = msgspec.msgpack.encode(work)
        votes.undone = set(work.members)  # from here on it may be durable
        await self.store.group_snapshots.keep(work.work, VERDICT, encoded)

    def _tell(self, work: Work, message: object) -> None:
        for member in work.members:
            self.group.send(member, message)

    # -- what is heard ----------------------------------------------------------------------------

    def _heard(self, peer: str, message: object) -> None:
        match message:
            case Intend(work):
                if work.coordinator == peer and work.work not in self._intents:
                    self._spawn(self._take_part, work, False)
            case Agreed(number):
                if number in self._votes:
                    self._votes[number].agreed.add(peer)
            case Objected(number, reason):
                if number in self._votes:
                    charter = self.group.charter
                    called = charter.called(peer) if charter else peer
                    self._votes[number].objection = f"{called}: {reason}"
            case Verdict(number, go):
                self._verdict(peer, number, go)
            case WorkDone(number):
                self._done(peer, number)
            case Release(number):
                if number in self._intents:
                    self._intents[number].released = True
            case StateAsked() | StateTold():
                self.on_state(peer, message)
            case Transfer() | ContentAsked() | ContentTold():
                self.on_move(peer, message)
            case WorkAsked(number):
                votes = self._votes.get(number)
                if votes is None or votes.undone is not None:
                    self.group.send(peer, Verdict(number, votes is not None))
        self.group.changed()

    def _up(self, peer: str) -> None:
        """A peer is back: what it has to know, or may know."""
        self.on_back(peer)
        for number, votes in self._votes.items():
            if votes.undone and peer in votes.undone:
                self.group.send(peer, Verdict(number, True))
        for number, intent in self._intents.items():
            if intent.work.coordinator == peer:
                self.group.send(peer, WorkAsked(number))

    def _verdict(self, peer: str, number: bytes, go: bool) -> None:
        intent = self._intents.get(number)
        if intent is None or intent.is_done:
            if go:  # done before, and the answer may have been lost
                self.group.send(peer, WorkDone(number))
            return
        if intent.work.coordinator == peer and intent.verdict is None:
            intent.verdict = go
            if not intent.waited_for:
                self._spawn(self._act_late, intent)

    def _done(self, peer: str, number: bytes) -> None:
        votes = self._votes.get(number)
        if votes is None or votes.undone is None:
            return
        votes.undone.discard(peer)
        if not votes.undone:
            self._tell(votes.work, Release(number))
            del self._votes[number]
            self._spawn(self._forget, number, VERDICT)

    async def _forget(self, number: bytes, kind: str) -> None:
        with contextlib.suppress(RaidfsError):
            await self.store.group_snapshots.keep(number, kind, None)

    # -- one volume's part ------------------------------------------------------------------------

    async def _take_part(self, work: Work, again: bool) -> None:
        """`again`: it was agreed to before the daemon was restarted."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                if work.verb == "rollback":
                    with trio.fail_after(DOOR_S):
                        await stack.enter_async_context(self.volume.door.closed())
                if not again:
                    await self._check(work)
                    encoded = msgspec.msgpack.encode(work)
                    await self.store.group_snapshots.keep(work.work, INTENT, encoded)
                    fault.here("group.after-intent")
                intent = self._intents[work.work] = _Intent(work, waited_for=True)
                self.store.group_snapshots.bound.add(work.snapshot)
                self.group.send(
                    work.coordinator, WorkAsked(work.work) if again else Agreed(work.work)
                )
                with trio.move_on_after(HOLD_S):
                    await self.group.until(lambda: intent.verdict is not None)
                intent.waited_for = False
                if intent.verdict is None:
                    return  # users go on; it is acted on when it is told
                await self._act(intent, behind_door=True)
                if intent.verdict:
                    if work.verb == "rollback":
                        with trio.move_on_after(HOLD_S):
                            await self.group.until(lambda: intent.released)
                    self._intents.pop(work.work, None)
        except trio.TooSlowError:
            self._object(work, "requests under way don't come to an end", again)
        except RaidfsError as error:
            self._object(work, str(error), again)

    def _object(self, work: Work, reason: str, again: bool) -> None:
        log.warning("group %s of %s: %s", work.verb, work.name, reason)
        if work.work in self._intents:
            self._intents[work.work].waited_for = False
        elif again:
            self._intents[work.work] = _Intent(work)
        else:
            self.group.send(work.coordinator, Objected(work.work, reason[:1000]))

    async def _check(self, work: Work) -> None:
        """RaidfsError: it can't be done here."""
        row = self.store.group_snapshots.visible().get(work.snapshot)
        if row is None:
            raise NoSuchSnapshot(f"there is no part of group snapshot {work.name!r}")
        if self._intents:
            raise RaidfsError("another deletion or rollback of the group is under way")
        if work.verb == "rollback":
            await rollback(
                self.volume, row.name, keep=work.keep or None, delete_newer=work.delete_newer,
                dry_run=True,
            )  # fmt: skip
        elif row.holds:
            raise SnapshotHeld(f"snapshot {row.name!r} is held ({', '.join(row.holds)})")

    async def _act_late(self, intent: _Intent) -> None:
        try:
            await self._act(intent, behind_door=False)
        except RaidfsError as error:
            log.error("group %s of %s: %s", intent.work.verb, intent.work.name, error)

    async def _act(self, intent: _Intent, *, behind_door: bool) -> None:
        """Promise 2."""
        work = intent.work
        if not intent.verdict:
            await self.store.group_snapshots.keep(work.work, INTENT, None)
        else:
            fault.here("group.before-work")
            await self._work(work, behind_door)
            fault.here("group.after-work")
            intent.is_done = True
        self.store.group_snapshots.bound.discard(work.snapshot)
        if not behind_door or not intent.verdict:
            self._intents.pop(work.work, None)
        if intent.verdict:
            self.group.send(work.coordinator, WorkDone(work.work))
        self.group.changed()

    async def _work(self, work: Work, behind_door: bool) -> None:
        row = self.store.group_snapshots.visible().get(work.snapshot)

        def end(_: int) -> None:
            self.store.meta.keep(work.work, INTENT, None)

        def delete(epoch: int) -> None:
            end(epoch)
            if row is not None:
                self.store.snapshots.condemn({row.id})

        if work.verb == "delete" or row is None:
            await self.store.cut_with(delete if work.verb == "delete" else end)
            return
        keep = work.keep
        if keep and self.store.snapshots.is_taken(keep):  # by somebody since it was agreed
            keep = f"{keep}-{work.work.hex()[:8]}"
        await rollback(
            self.volume, row.name, keep=keep or None, delete_newer=work.delete_newer,
            door=contextlib.nullcontext() if behind_door else None, also=end,
        )  # fmt: skip
