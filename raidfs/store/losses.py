"""Members that are lost while the volume is open.

1. On return of `settle` every loss noticed so far is in the labels of the others, so no later
   mount believes the lost member; or the store has failed.
2. A member that the others don't make up for stays: the store fails, and goes on reading from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from ..errors import LossUnrecorded, RaidfsError

if TYPE_CHECKING:
    from .store import Store


class Losses:
    """Of one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._settling = trio.Lock()
        self._at: dict[int, int] = store.meta.lost_members()
        self._unsaved: set[int] = set()
        self._expected: set[int] = set()  # to be back, of those that are about to be lost
        self.joining: int | None = None  # a member that takes metadata already, and isn't one yet
        for member, state in store.array.states.items():
            if state.state != "online" and member not in self._at:
                self._note(member)

    def _note(self, member: int) -> None:
        self._at[member] = self.store.durable
        self._unsaved.add(member)

    def lost_at(self, member: int) -> int | None:
        """What was durable when it was lost, so that it must have at least that; None: it isn't."""
        return self._at.get(member)

    def save(self) -> None:
        """In a transaction that makes an epoch durable."""
        for member in self._unsaved:
            self.store.meta.set_lost(member, self._at[member])
        self._unsaved.clear()

    def back(self, member: int) -> None:
        """It has all again, or what it lacks is known. In such a transaction, too."""
        state = self.store.array.states.get(member)
        if state is not None and state.state != "online":
            return  # lost again by now
        if self._at.pop(member, None) is not None:
            self._unsaved.discard(member)
            self.store.meta.set_lost(member, None)

    async def settle(self) -> None:
        """Promise 1: to be called before anything is told durable that a lost member missed."""
        losses = self.store.notices.losses
        if not losses and not self._settling.locked():
            return
        with trio.CancelScope(shield=True):  # nobody else would record what was taken from there
            await self._settle_all(losses)

    async def _settle_all(self, losses: dict[int, str]) -> None:
        async with self._settling:
            while losses:
                member, reason = losses.popitem()
                state = self.store.array.states.get(member)
                if state is None or member == self.joining:
                    continue  # none any more; or whoever admits it looks for itself
                if state.state != "failed":
                    await self._settle(member, reason)

    async def _settle(self, member: int, reason: str) -> None:
        store = self.store
        store.dirty_room.before_loss()
        if not store.space.affordable(member):  # promise 2
            store.fail(f"member {member} failed, and the others don't make up for it: {reason}")
            return
        store.array.fail(member, reason)
        self._note(member)
        store.feed.lose(member)
        store.space.after_loss()
        try:
            store.mirror.lose(member, reason)
            left = await store.offload(
                functools.partial(
                    store.assembly.fail,
                    member,
                    reason,
                    zones_survive=True,
                    expected=member in self._expected,
                )
            )
            store.mirror.recorded(member)
        except RaidfsError as error:
            store.fail(f"member {member} failed ({reason}): {error}")
            return
        for other in left - {member}:
            store.notices.loss(other, "its label could not be written")
        entries = {entry.id: entry for entry in store.assembly.label.members}
        entry = entries.get(member)
        if entry is not None and (entry.role == "spare" or entry.replaces >= 0):
            store.events.note("FailSpare", member, reason)
        store.mender.wake()

    async def fail_member(self, member: int, reason: str, *, expected: bool = False) -> None:
        """An administrator takes a member out. The caller has checked that redundancy covers it.
        `expected`: it is to come back ("offline"), so nothing is rebuilt elsewhere."""
        if expected:
            self._expected.add(member)
        try:
            self.store.notices.loss(member, reason)
            await self.settle()
        finally:
            self._expected.discard(member)
        self.store.request_cut()
        await self.store.commit()

    async def sync(self, sync: Callable[[], None], at_once: bool = False) -> bool:
        """Sync the log, or all, on the members that are left, with losses recorded. False if that
        failed the volume. `at_once`: it is over sooner than a thread could be woken for it."""
        store = self.store
        while True:
            try:
                if at_once:
                    sync()
                else:
                    await store.offload(sync)
                at_once = again = False
            except LossUnrecorded:  # the mirror wants the loss in the labels first
                again = True
            await self.settle()
            if store.failed is not None or not again:
                return store.failed is None
