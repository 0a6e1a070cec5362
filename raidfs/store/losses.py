"""Members that are lost while the volume is open.

1. On return of `settle` every loss noticed so far is in the labels of the others, so no later
   mount believes the lost member; or the store has failed.
2. A member that the others don't make up for stays: the store fails, and goes on reading from it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import trio

from ..errors import RaidfsError

if TYPE_CHECKING:
    from .store import Store


class Losses:
    """Of one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._settling = trio.Lock()

    async def settle(self) -> None:
        """Promise 1: to be called before anything is told durable that a lost member missed."""
        losses = self.store.notices.losses
        if not losses and not self._settling.locked():
            return
        async with self._settling:
            while losses:
                member, reason = losses.popitem()
                if self.store.array.states[member].state != "failed":
                    await self._settle(member, reason)

    async def _settle(self, member: int, reason: str) -> None:
        store = self.store
        store.dirty_room.before_loss()
        if not store.space.affordable(member):  # promise 2
            store.fail(f"member {member} failed, and the others don't make up for it: {reason}")
            return
        store.array.fail(member, reason)
        store.feed.lose(member)
        store.space.after_loss()
        try:
            store.mirror.lose(member, reason)
            left = await store.offload(
                functools.partial(store.assembly.fail, member, reason, zones_survive=True)
            )
            store.mirror.recorded(member)
        except RaidfsError as error:
            store.fail(f"member {member} failed ({reason}): {error}")
            return
        for other in left - {member}:
            store.notices.loss(other, "its label could not be written")

    async def fail_member(self, member: int, reason: str) -> None:
        """An administrator takes a member out. The caller has checked that redundancy covers it."""
        self.store.notices.loss(member, reason)
        await self.settle()
        self.store.request_cut()
        await self.store.commit()
