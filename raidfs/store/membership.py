"""Members that come and go while the volume is open.

   new        laid out --> enrolled --> metadata copied --> label: it is a member --> gets columns
   back       its label and metadata are looked at --> metadata copied --> label --> mended (stale)
   leaving    gets no new columns --> mender: those it has go elsewhere --> label: none any more

1. One change at a time; each is whole or not at all, wherever a crash comes (assembly.py).
2. A member that is back is believed as far as its own metadata says that it saw what was durable
   when it was lost, and then but for the rows that it is known to have missed. Else it is like an
   empty one: all its columns are stale.
3. What is in the metadata about a member that is none any more goes with it.
4. As long as columns are stale, labels say `uneven`: the next opening asks the zones.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from ..errors import RaidfsError, UsageError
from ..raid.label import MemberEntry
from .admit import admit
from .meta import Meta
from .mirror import Mirror

if TYPE_CHECKING:
    from ..raid.member import Member
    from .store import Store

log = logging.getLogger("raidfs.store")

Progress = Callable[[int, int], None]  # bytes of metadata copied, and all
ZONES_PER_CUT = 256


def durable_of(member: Member) -> int | None:
    """The last epoch that this member's copy of the metadata, by itself, says is durable; None: it
    can't be read. Blocks; changes nothing."""
    try:
        mirror = Mirror({0: member}, read_only=True)
    except RaidfsError:
        return None
    try:
        meta = Meta(mirror)
        try:
            return meta.durable
        finally:
            meta.close()
    except RaidfsError:
        return None
    finally:
        mirror.close()


class Membership:
    """Of one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._turn = trio.Lock()

    def entry(self, member: int) -> MemberEntry:
        """Its line in the labels. UsageError: there is none."""
        table = self.store.assembly.label.members
        for entry in table:
            if entry.id == member:
                return entry
        known = ", ".join(str(each.id) for each in table)
        raise UsageError(f"there is no member {member}; the members are {known}")

    def columns_of(self, member: int) -> int:
        """How many columns of zones lie on it, or did when it was lost."""
        zones = self.store.space.zones.values()
        return sum(member == each for zone in zones for each, _ in zone.map.columns)

    # -- new ones ---------------------------------------------------------------------------------

    async def add(self, entry: MemberEntry, member: Member, progress: Progress) -> None:
        """A member that is laid out, open and locked, and has no label yet. `entry`: with the id
        `next_member` of the label. MemberError, UsageError: it is none, and the caller's again."""
        self.store.writable()
        async with self._turn:
            store = self.store
            assert entry.id == store.assembly.label.next_member
            await self._labels(store.assembly.enroll, [entry])
            member.adopt(store.assembly.label.for_member(entry.id))
            try:
                await self._join(entry, member, progress)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._labels(store.assembly.withdraw, entry.id)
                raise
            log.info("member %d: %s", entry.id, member.path)
        store.mender.wake()

    async def _join(self, entry: MemberEntry, member: Member, progress: Progress) -> None:
        """Metadata, label, then all else."""
        store = self.store
        await store.offload(admit, store.mirror, entry.id, member, progress)
        try:
            await self._labels(store.assembly.activate, entry.id, member)
        except BaseException:
            store.mirror.leave(entry.id)
            raise
        store.space.allocation.admit(entry.id, entry.slots)
        store.array.admit(entry.id, member)
        store.feed.forget_all()

    async def _labels(self, change: Callable[..., set[int]], *arguments: object) -> None:
        """In a thread; members that could not be written to are lost."""
        store = self.store
        for other in await store.offload(change, *arguments):
            store.notices.loss(other, "its label could not be written")
        await store.losses.settle()
        if store.failed is not None:
            raise RaidfsError(store.failed)
        label = store.assembly.label
        store.space.allocation.retable(label.members, label.parameters)

    # -- those that are back ----------------------------------------------------------------------

    async def back(self, number: int, member: Member, progress: Progress) -> bool:
        """A member that was lost, open and locked, with its own label, of this volume and not of
        another line. Returns whether what it has is believed. MemberError: it is as before, and
        the caller's again."""
        self.store.writable()
        async with self._turn:
            store, entry = self.store, self.entry(number)
            assert not entry.is_current and number not in store.assembly.members
            member.adopt(store.assembly.label.for_member(number))
            had = await store.offload(durable_of, member)
            lost_at = store.losses.lost_at(number)
            believed = had is not None and lost_at is not None and had >= lost_at
            if not believed:
                await self._distrust(number)
            await self._uneven(True)
            await store.offload(store.space.sweep_member, number, member)
            await self._join(entry, member, progress)
            await store.cut_with(lambda _: store.losses.back(number))
        store.mender.wake()
        return believed

    async def _distrust(self, number: int) -> None:
        """All columns there are stale from row 0, before it is a member again."""
        space = self.store.space
        todo = [
            (zone, column)
            for zone in space.zones.values()
            for column, (member, _) in enumerate(zone.map.columns)
            if member == number and zone.missed.get(column) != 0
        ]
        for first in range(0, len(todo), ZONES_PER_CUT):
            part = todo[first : first + ZONES_PER_CUT]
            await self.store.cut_with(functools.partial(space.distrust, part))

    async def _uneven(self, uneven: bool) -> None:
        parameters = self.store.assembly.label.parameters
        if parameters.uneven != uneven:
            table = self.store.assembly.label.members
            changed = msgspec.structs.replace(parameters, uneven=uneven)
            await self._labels(self.store.assembly.retable, table, changed)

    # -- other roles ------------------------------------------------------------------------------

    async def change(
        self,
        number: int,
        *,
        role: Literal["data", "spare", "leaving"] | None = None,
        domain: str | None = None,
        replaces: int | None = None,
        state: Literal["failed", "offline"] | None = None,
    ) -> None:
        """Of a member's line. `state`: only of one that is lost."""
        async with self._turn:
            entry = self.entry(number)
            assert state is None or not entry.is_current
            wanted = {"role": role, "domain": domain, "replaces": replaces, "state": state}
            given = {name: value for name, value in wanted.items() if value is not None}
            changed = msgspec.structs.replace(entry, **given)
            table = [
                changed if each.id == number else each for each in self.store.assembly.label.members
            ]
            await self._labels(self.store.assembly.retable, table)
        self.store.mender.wake()

    # -- those that go ----------------------------------------------------------------------------

    async def tidy(self) -> None:
        """When there was something to mend, and isn't any more: members that were to go are none
        any more, and those that took their place are like others."""
        store = self.store
        async with self._turn:
            table = store.assembly.label.members
            heirs = {entry.replaces for entry in table if entry.replaces >= 0}
            for entry in table:
                gone = entry.role == "leaving" or (entry.id in heirs and not entry.is_current)
                if gone and not self.columns_of(entry.id):
                    await self._remove(entry.id)
            if not store.array.stale and not self._other_codes():
                await self._uneven(False)

    def _other_codes(self) -> bool:
        tolerance = self.store.space.code.tolerance
        zones = self.store.space.zones.values()
        return any(zone.map.code.tolerance < tolerance for zone in zones)

    async def _remove(self, number: int) -> None:
        store = self.store
        table = [
            msgspec.structs.replace(each, replaces=-1) if each.replaces == number else each
            for each in store.assembly.label.members
        ]
        store.mirror.leave(number)
        if table != store.assembly.label.members:
            await self._labels(store.assembly.retable, table)
        await self._labels(store.assembly.withdraw, number)
        store.mirror.recorded(number)
        store.array.withdraw(number)
        store.space.allocation.withdraw(number)

        def forget(_: int) -> None:
            store.losses.back(number)
            store.meta.drop_member(number)

        await store.cut_with(forget)
        log.info("member %d is no member any more", number)

    async def remove(self, number: int) -> None:
        """A member without columns. UsageError: it has some."""
        async with self._turn:
            self.entry(number)
            if count := self.columns_of(number):
                raise UsageError(f"member {number} has {count} columns of zones")
            await self._remove(number)
