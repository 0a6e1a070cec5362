"""What a volume has to put in order before it leaves its group, and what is dropped after that.

Words: *promised* is what other volumes rely on: a part of a snapshot that may be committed (in
doubt), a deletion or rollback that was agreed to, a file that was given or may have been. A promise
is kept or broken by the others' word, or by a person's: `raidfs-ctl group resolve`.

 1. Nobody leaves, is let in, or helps to change the keeper, with a promise open.
 2. What was begun and not promised is given up, and the others are told if they can be reached.
 3. A volume that was taken out by others drops the same, by itself; its promises stay until a
    person decides on them.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_moves import GroupMoves, One
from raidfs.daemon.group_parts import DECISION, PREPARED
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import RaidfsError, UsageError
from raidfs.group import events as e
from raidfs.group import move as m
from raidfs.group.charter import Charter, LeaveAsked
from raidfs.group.messages import DecisionKept, Kept, Plan, PreparedKept

log = logging.getLogger("raidfs.group")

LEAVE_S = 10.0
SETTLE_S = 10.0
RETRY_S = 5.0
WHY = "the volume leaves the group"
SOON = frozenset({"deciding", "committing"})  # over in a moment, without others' help


class Leaving:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, works: GroupWorks, moves: GroupMoves) -> None:
        self.group = group
        self.works = works
        self.moves = moves
        self.store = group.store

    async def run(self) -> None:
        """Until cancelled: promise 3."""
        looked = False
        while True:
            if (self.group.out or not looked) and self._has_leavings():
                try:
                    await self.clean()
                except RaidfsError as error:
                    log.warning("group: what is left of it can't be dropped yet: %s", error)
            else:
                looked = True
            await trio.sleep(RETRY_S)

    def _called(self, volume: str) -> str:
        charter = self.group.charter
        return charter.called(volume) if charter else volume

    # -- promises ---------------------------------------------------------------------------------

    def doubts(self) -> list[Plan]:
        """Snapshots that others may have committed, as far as is known here."""
        return [plan for plan in self._plans(PREPARED) if plan.initiator != self.group.me]

    def _plans(self, wanted: str) -> list[Plan]:
        found = []
        for _, kind, value in self.store.meta.kept():
            if kind == wanted:
                kept = msgspec.msgpack.decode(value, type=Kept)
                assert isinstance(kept, PreparedKept | DecisionKept)
                found.append(kept.plan)
        return found

    def check_no_promise(self, but: str = "") -> None:
        """RaidfsError, with names and numbers. `but`: moves from and to other volumes than this one
        don't count; empty: all count."""
        found = [f"snapshot {plan.name} (id {plan.snapshot.hex()})" for plan in self.doubts()]
        found += self.works.promised()
        found += [
            f"move of {m.name_text(one.core.row.name)} (id {one.move.hex()})"
            for one in self.moves.known.values()
            if but in ("", one.peer) and _is_promised(one)
        ]
        if found:
            raise RaidfsError(
                f"not yet decided: {', '.join(found)}; wait for the others, or decide yourself:"
                " raidfs-ctl group resolve"
            )

    async def resolve(self, number: bytes, commit: bool) -> bool:
        """A person's word, for a volume that is in no group any more. False: that number isn't of
        a snapshot in doubt."""
        if self.group.is_linked or number not in {plan.snapshot for plan in self.doubts()}:
            return False
        await self._settle(number, commit)
        return True

    async def _settle(self, number: bytes, commit: bool) -> None:
        snapshots = self.store.group_snapshots
        if not commit:
            await snapshots.discard(number)
            return
        if self.group.parts.before_commit is not None:
            await self.group.parts.before_commit(number)
        await snapshots.commit(number)

    # -- leaving ----------------------------------------------------------------------------------

    async def politely(self, charter: Charter) -> None:
        """The others know of it on return. RaidfsError."""
        group = self.group
        group.must_be_in()
        self._check_at_rest()
        others = charter.without(group.me)
        if charter.keeper == group.me:
            if others:
                self._check_handing_over(charter)
                await group.change(others, keeper=others[0].volume)
            return
        if charter.keeper in group.away():
            raise RaidfsError(
                f"{charter.called(charter.keeper)}, which keeps the list of members, can't be"
                " reached; --force leaves without telling anybody, and if it is gone for good,"
                " another can be the keeper: raidfs-ctl group take-over"
            )
        group.send(charter.keeper, LeaveAsked())
        with trio.move_on_after(LEAVE_S):
            await group.until(lambda: group.charter is None or group.charter.group != charter.group)
            return
        raise RaidfsError(f"{charter.called(charter.keeper)} doesn't answer; try again, or --force")

    def _check_at_rest(self) -> None:
        found = [f"snapshot {plan.name} is {phase}" for plan, phase in self.group.running()]
        found += [f"{work.verb} of {work.name}" for work in self.works.pending()]
        found += self.moves.pending()
        if found:
            raise RaidfsError(
                f"not now: {'; '.join(found)}; wait (raidfs-ctl group wait), or leave with --force,"
                " which gives up what can be given up"
            )

    def _check_handing_over(self, charter: Charter) -> None:
        own = charter.member(self.group.me)
        if own is not None and own.addresses:
            raise UsageError(
                "this volume has the group's authority: let the others leave first"
                " (--force leaves them without one)"
            )
        if away := self.group.away():
            told = ", ".join(f"{charter.called(one)} ({why})" for one, why in away.items())
            raise RaidfsError(
                f"all others must be reached for that: {told}; who is gone for good can be expelled"
            )

    async def by_force(self) -> list[str]:
        """Nothing is promised or begun on return; what is to be known of it. RaidfsError: promises
        are open."""
        group = self.group
        self.check_no_promise()
        if self.works.pending():
            raise RaidfsError(
                f"not yet over: {'; '.join(self.works.told())}; wait for the others, or make an end"
                " of it: raidfs-ctl group resolve"
            )
        await self._give_up_moves()
        for plan, phase in group.running():
            if phase not in SOON and phase != "distributing":
                group.give(e.Failed(plan.snapshot, WHY))
        with trio.move_on_after(SETTLE_S):
            await group.until(
                lambda: (
                    all(phase == "distributing" for _, phase in group.running())
                    and group.parts.is_settled()
                )
            )
        self.check_no_promise()
        if busy := [plan.name for plan, phase in group.running() if phase != "distributing"]:
            raise RaidfsError(f"not now: snapshot {', '.join(busy)} is being made; try again")
        return [
            f"not all volumes have heard that snapshot {plan.name} (id {plan.snapshot.hex()}) is"
            " committed: where it is in doubt, say so: raidfs-ctl group resolve"
            for plan, _ in group.running()
        ]

    async def _give_up_moves(self) -> None:
        for one in list(self.moves.known.values()):
            if not _is_promised(one):
                is_source = isinstance(one.core, m.Source)
                self.moves.tell(one, m.Cancel(WHY) if is_source else m.Unable(WHY))
        with trio.move_on_after(SETTLE_S):
            await self.group.until(lambda: not self.moves.known)
        if left := self.moves.pending():
            raise RaidfsError(f"not now: {'; '.join(left)}; try again in a moment")

    # -- afterwards -------------------------------------------------------------------------------

    def _has_leavings(self) -> bool:
        if self.group.charter is not None or self.group.is_linked:
            return False
        mine = any(plan.initiator == self.group.me for plan in self._plans(PREPARED))
        return mine or bool(self._plans(DECISION) or self._unpromised())

    def _unpromised(self) -> set[bytes]:
        promised = {plan.snapshot for plan in self._plans(PREPARED)}
        return self.store.group_snapshots.unfinished() - promised

    async def clean(self) -> None:
        """What the volume has begun in a group that it isn't in any more, and promised nobody, is
        gone; what it had decided itself to commit is committed."""
        await self.group.until(lambda: not self.group.is_linked)
        snapshots, me = self.store.group_snapshots, self.group.me
        if self.group.charter is not None:
            return
        decided = {plan.snapshot for plan in self._plans(DECISION)}
        for plan in self._plans(PREPARED):
            if plan.initiator == me:
                await self._settle(plan.snapshot, plan.snapshot in decided)
        for number in decided:
            await snapshots.keep(number, DECISION, None)
        for number in self._unpromised():
            await snapshots.discard(number)


def _is_promised(one: One) -> bool:
    """Others count on it, or may: it was given, or all of it is there and may have been."""
    if isinstance(one.core, m.Source):
        return one.core.is_given
    return one.core.state not in ("begin", "staging", "ending", "ended")
