"""Recording the state of all volumes of a group, to decide what is true of it for ever after.

A snapshot is begun as any other, so that cuts and channels are recorded; but its initiator never
prepares it. When all have told what they recorded it is cancelled, and nothing of it stays.
"""

from __future__ import annotations

import os
from collections import OrderedDict

import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_moves import GroupMoves
from raidfs.daemon.group_requests import GroupCheckRequest, GroupCondition
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import RaidfsError
from raidfs.group import events as e
from raidfs.group.charter import CHANNELS_MAX, StateAsked, StateTold
from raidfs.group.messages import Result
from raidfs.group.stable import GlobalState, VolumeState, Work, deadlock, termination

TELL_S = 10.0
STATES_MAX = 64


class GroupLooks:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, works: GroupWorks, moves: GroupMoves) -> None:
        self.group = group
        self.store = group.store
        self.moves = moves
        self._states: OrderedDict[bytes, VolumeState] = OrderedDict()  # at the cuts, the last ones
        self._told: dict[bytes, dict[str, StateTold]] = {}
        self._nursery: trio.Nursery | None = None
        group.parts.on_cut.append(self._cut)
        works.on_state = self._heard

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {GroupCheckRequest: self._check}

    async def run(self) -> None:
        """Until cancelled: others are told what they ask for."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    # -- what each records ------------------------------------------------------------------------

    def _cut(self, snapshot: bytes) -> None:
        self._states[snapshot] = self.state()
        while len(self._states) > STATES_MAX:
            self._states.popitem(last=False)

    def state(self) -> VolumeState:
        """Of the volume now."""
        cleaning = self.store.cleaner.statistics().zone
        return VolumeState(
            volume=self.group.me,
            name=self.store.assembly.label.volume_name,
            free_bytes=self.moves.free_bytes(),
            moves=self.moves.states(),
            works=(Work("cleaning", f"zone {cleaning}"),) if cleaning else (),
        )

    def _heard(self, peer: str, message: StateAsked | StateTold) -> None:
        if isinstance(message, StateTold):
            if message.snapshot in self._told and message.state.volume == peer:
                self._told[message.snapshot][peer] = message
        elif self._nursery is not None:
            self._nursery.start_soon(self._tell, peer, message.snapshot)

    async def _tell(self, peer: str, snapshot: bytes) -> None:
        with trio.move_on_after(TELL_S):
            await self.group.until(lambda: self.group.recorded(snapshot) is not None)
        channels, state = self.group.recorded(snapshot), self._states.get(snapshot)
        if channels is not None and state is not None:
            self.group.send(peer, StateTold(snapshot, state, tuple(channels[:CHANNELS_MAX])))

    # -- who asks ---------------------------------------------------------------------------------

    async def _check(self, _: GroupCheckRequest) -> GroupCondition:
        charter = self.group.must_be_in()
        state = await self.recorded()
        ended, dead = termination(state), deadlock(state)
        graph = [
            f"move {wait.waiting.hex()} waits for room in {charter.called(wait.volume)}"
            f" that move {wait.awaited.hex()} would free"
            for wait in dead.graph
        ]
        return GroupCondition(
            charter.name,
            ended.holds,
            ended.text,
            list(ended.outstanding),
            dead.holds,
            dead.text,
            graph,
        )

    async def recorded(self) -> GlobalState:
        """A state of all volumes, and of what is between them. RaidfsError."""
        group = self.group
        plan = group.plan(f"look-{os.urandom(8).hex()}")
        snapshot, told = plan.snapshot, self._told.setdefault(plan.snapshot, {})
        group.parts.looks.add(snapshot)
        results: list[Result] = []
        channels, refused = None, ""
        peers = set(group.must_be_in().roster.members) - {group.me}

        async def follow() -> None:
            results.append(await group.taken(plan))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await trio.lowlevel.checkpoint()
                await group.until(lambda: snapshot in self._states or bool(results))
                for peer in peers:
                    group.send(peer, StateAsked(snapshot))
                with trio.move_on_after(TELL_S):
                    await group.until(lambda: bool(results) or self._complete(snapshot, peers))
                channels = group.recorded(snapshot)
                group.give(e.Cancel(snapshot))
                with trio.move_on_after(TELL_S):
                    await group.until(lambda: bool(results))
                nursery.cancel_scope.cancel()
        except* RaidfsError as errors:
            refused = str(errors.exceptions[0])
        finally:
            del self._told[snapshot]
            group.parts.looks.discard(snapshot)
        if channels is None or told.keys() != peers:
            why = refused or (results[0].reason if results else "not all have told theirs")
            raise RaidfsError(f"the state of the group could not be recorded: {why}")
        ways = [*channels, *(way for one in told.values() for way in one.channels)]
        states = [self._states[snapshot], *(one.state for one in told.values())]
        return GlobalState(tuple(states), tuple(ways))

    def _complete(self, snapshot: bytes, peers: set[str]) -> bool:
        told = self._told[snapshot].keys() == peers
        return told and self.group.recorded(snapshot) is not None
