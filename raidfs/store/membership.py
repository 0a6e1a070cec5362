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

from ..errors import LossUnrecorded, MemberError, OutOfSpace, RaidfsError, UsageError
from ..raid.assembly import JOINING, without_heirs
from ..raid.label import MemberEntry, Parameters
from .admit import admit
from .meta import Meta
from .mirror import Mirror

if TYPE_CHECKING:
    from ..raid.member import Member
    from .store import Store

log = logging.getLogger("raidfs.store")

Progress = Callable[[int, int], None]  # bytes of metadata copied, and all
ZONES_PER_CUT = 256
PAGES_PER_COLUMN = 4  # of the metadata, that a note on one may dirty


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
        self._all_forgotten = False  # promise 3, after a crash in between
        self._clearing = False  # labels are about to say `uneven` no more

    def entry(self, member: int) -> MemberEntry:
        """Its line in the labels. UsageError: there is none."""
        table = self.store.assembly.label.members
        for entry in table:
            if entry.id == member:
                return entry
        known = ", ".join(str(each.id) for each in table)
        raise UsageError(f"there is no member {member}; the members are {known}")

    def columns_of(self, member: int) -> int:
        """How many columns of zones lie on it, or did when it was lost; also of zones that aren't
        erased yet."""
        zones = (*self.store.space.zones.values(), *self.store.space.limbo.values())
        return sum(member == each for zone in zones for each, _ in zone.map.columns)

    # -- new ones ---------------------------------------------------------------------------------

    async def add(self, entry: MemberEntry, member: Member, progress: Progress) -> None:
        """A member that is laid out, open and locked, and has no label yet. `entry`: with the id
        `next_member` of the label. MemberError, UsageError: it is none, and the caller's again."""
        self.store.writable()
        async with self._turn:
            store = self.store
            if entry.id != store.assembly.label.next_member:
                raise UsageError("members were added meanwhile; look at them, and try again")
            await self._labels(store.assembly.enroll, [entry])
            try:
                member.adopt(store.assembly.label.for_member(entry.id))
                await self._join(entry, member, progress)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._give_up(entry.id)
                raise
            log.info("member %d: %s", entry.id, member.path)
        store.mender.wake()
        store.reshape.wake()

    async def _give_up(self, number: int) -> None:
        """It did not become a member. What fails here, the next opening tidies."""
        try:
            await self._labels(self.store.assembly.withdraw, number)
        except RaidfsError as error:
            log.warning("member %d stays in the labels for now: %s", number, error)
        self._forget(number)

    def _forget(self, number: int) -> None:
        self.store.array.withdraw(number)
        self.store.space.allocation.withdraw(number)

    async def _join(self, entry: MemberEntry, member: Member, progress: Progress) -> None:
        """Metadata, label, then all else. MemberError: it failed, and labels say that it is lost,
        or expected back, as before."""
        store, number = self.store, entry.id
        store.losses.joining = number
        try:
            await self._copy(number, member, progress)
            try:
                await self._labels(store.assembly.activate, number, member)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._part(number)
                raise
            if number not in store.mirror.members:
                reason = store.mirror.failed.get(number, "it failed")
                with trio.CancelScope(shield=True):
                    await self._part(number)
                raise MemberError(f"{member.path} failed while it joined: {reason}", member.path)
            store.space.allocation.admit(number, entry.slots)
            store.array.admit(number, member)
        finally:
            store.losses.joining = None
        store.feed.forget_all()
        store.space.after_return()

    async def _copy(self, number: int, member: Member, progress: Progress) -> None:
        store = self.store
        while True:
            try:
                await store.offload(admit, store.mirror, number, member, progress)
                return
            except LossUnrecorded:  # of another one
                await store.losses.settle()
                store.writable()

    async def _part(self, number: int) -> None:
        """One that has the metadata isn't to be a member after all. Its label, or a copy of it, may
        say that it is: so the others get one that descends from that and knows better."""
        store = self.store
        store.mirror.leave(number)
        try:
            if number in store.assembly.members:
                fail = functools.partial(store.assembly.fail, zones_survive=True)
                await self._labels(fail, number, "it failed while it joined")
            else:
                await self._labels(store.assembly.retable, store.assembly.label.members)
        except RaidfsError as error:
            store.fail(f"that member {number} is none can't be recorded: {error}")
            return
        store.mirror.recorded(number)

    async def _labels(self, change: Callable[..., set[int]], *arguments: object) -> None:
        """In a thread; members that could not be written to are lost."""
        store = self.store
        with trio.CancelScope(shield=True):
            for other in await store.offload(change, *arguments):
                store.notices.loss(other, "its label could not be written")
            await store.losses.settle()
        if store.failed is not None:
            raise RaidfsError(store.failed)
        label = store.assembly.label
        store.space.allocation.retable(label.members, label.parameters)
        store.space.after_retable()

    # -- those that are back ----------------------------------------------------------------------

    async def back(self, number: int, member: Member, progress: Progress) -> bool:
        """A member that was lost, open and locked, with its own label, of this volume and not of
        another line. Returns whether what it has is believed. MemberError: it is as before, and
        the caller's again."""
        self.store.writable()
        async with self._turn:
            store, entry = self.store, self.entry(number)
            if entry.is_current or number in store.assembly.members:
                raise UsageError(f"member {number} is in use already")
            member.adopt(store.assembly.label.for_member(number))
            had = await store.offload(durable_of, member)
            lost_at = store.losses.lost_at(number)
            believed = had is not None and lost_at is not None and had >= lost_at
            await self._uneven(True)
            if not believed:
                await self._distrust(number)
            await store.offload(store.space.sweep_member, number, member)
            await self._join(entry, member, progress)
            table = without_heirs(store.assembly.label.members, number)
            if table != store.assembly.label.members:  # nobody need replace it any more
                await self._labels(store.assembly.retable, table)
            async with store.space.allocating:
                pass  # a zone that was being made without it has been made: the mender sees it
            await store.cut_with(lambda _: store.losses.back(number))
        store.mender.wake()
        store.reshape.wake()
        return believed

    async def _distrust(self, number: int) -> None:
        """All columns there are stale from row 0, before it is a member again. As many at once as
        the metadata has room for."""
        space, meta = self.store.space, self.store.meta
        todo = [
            (zone, column)
            for zone in space.zones.values()
            for column, (member, _) in enumerate(zone.map.columns)
            if member == number and zone.missed.get(column) != 0
        ]

        def some(epoch: int) -> None:
            count = min(ZONES_PER_CUT, max(0, meta.spare_pages() // PAGES_PER_COLUMN))
            space.distrust(todo[:count], epoch)
            del todo[:count]

        while todo:
            before = len(todo)
            await self.store.cut_with(some)
            if len(todo) == before:
                raise OutOfSpace("the metadata has no room to note what the member lacks")

    def _is_uneven(self) -> bool:
        return self.store.mender.working or self._lacking() or self._other_codes()

    def _lacking(self) -> bool:
        """Columns lack rows on members that aren't lost themselves."""
        zones, array = self.store.space.zones, self.store.array
        return any(
            number in zones and array.present(zones[number].map, column) is not None
            for number, column in array.stale
        )

    async def _uneven(self, uneven: bool) -> None:
        parameters = self.store.assembly.label.parameters
        if parameters.uneven == uneven:
            return
        self._clearing = not uneven
        try:
            await self._parameters(msgspec.structs.replace(parameters, uneven=uneven))
        finally:
            self._clearing = False

    async def be_uneven(self) -> bool:
        """The labels say it. False: they did so already, and nobody is about to change that."""
        if self.store.assembly.label.parameters.uneven and not self._clearing:
            return False
        async with self._turn:
            await self._uneven(True)
        return True

    async def _parameters(self, changed: Parameters) -> None:
        table = self.store.assembly.label.members
        await self._labels(self.store.assembly.retable, table, changed)

    async def reshape(self, level: str, width: int) -> None:
        """New zones are of that level and width from here on, and the labels say so. As long as
        there are others they say `uneven`."""
        self.store.writable()
        async with self._turn:
            parameters = self.store.assembly.label.parameters
            changed = msgspec.structs.replace(parameters, level=level, width=width, uneven=True)
            store = self.store
            try:
                await self._parameters(changed)
            finally:  # also when not all members could be told: the newest label counts
                label = store.assembly.label
                store.space.allocation.retable(label.members, label.parameters)
                store.space.after_retable()

    async def settle_uneven(self) -> None:
        """The labels say it just if there are zones that survive less, or may."""
        async with self._turn:
            await self._uneven(self._is_uneven())

    # -- other roles ------------------------------------------------------------------------------

    async def change(
        self,
        number: int,
        *,
        role: Literal["data", "spare", "leaving", "evacuating"] | None = None,
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
        """Members that were to go and have nothing any more are none from here on, as are those
        that somebody replaced, and those that never came to be (a crash came first)."""
        store = self.store
        async with self._turn:
            await self._forget_removed()
            table = store.assembly.label.members
            heirs = {entry.replaces for entry in table if entry.replaces >= 0}
            for entry in table:
                replaced = entry.id in heirs and entry.state == "failed"
                unborn = entry.state == "offline" and entry.reason == JOINING
                if not (replaced or unborn or entry.role == "leaving"):
                    continue
                if self.columns_of(entry.id):
                    if not store.mender.works.left_bytes:
                        store.request_cut()  # nobody needs these zones: with that they go
                else:
                    await self._remove(entry.id, told=not unborn)
            await self._uneven(self._is_uneven())

    def _other_codes(self) -> bool:
        """There are zones that survive less than new ones, or more: then labels alone would refuse
        what can be read."""
        tolerance = self.store.space.code.tolerance
        zones = (*self.store.space.zones.values(), *self.store.space.limbo.values())
        return any(zone.map.code.tolerance != tolerance for zone in zones)

    async def _forget_removed(self) -> None:
        """Of members that labels don't know any more, as a crash left them."""
        if self._all_forgotten:
            return
        known = {entry.id for entry in self._table()}
        for number in self.store.meta.member_counters().keys() - known:
            await self._forget_all(number, f"it was member {number}", told=True)
        self._all_forgotten = True

    async def _forget_all(self, number: int, text: str, told: bool) -> None:
        """Promise 3; in the same transaction it is told, so that is done once."""
        store = self.store

        def forget(_: int) -> None:
            store.losses.back(number)
            store.meta.drop_member(number)
            if told:
                store.mender.works.gone(number)
                store.events.note("MemberRemoved", number, text)

        await store.cut_with(forget)

    async def _remove(self, number: int, told: bool = True) -> bool:
        """It has no columns, and is to be no member any more. False: it got some, or somebody may
        still read there."""
        store, entry = self.store, self.entry(number)
        if not store.assembly.members.keys() - {number}:
            return False
        if self._is_uneven():  # what it was that labels told of is no more
            await self._uneven(True)
        if entry.role != "leaving":
            await self._labels(store.assembly.retable, _with(self._table(), number, role="leaving"))
        async with store.space.allocating:
            pass  # a zone that was being made when it was no leaving one has been made
        if self.columns_of(number) or store.mender.uses(number):
            return False
        store.mirror.leave(number)
        try:
            await self._labels(store.assembly.withdraw, number)
        except RaidfsError as error:
            store.fail(f"that member {number} is none can't be recorded: {error}")
            raise
        store.mirror.recorded(number)
        self._forget(number)
        await self._forget_all(number, entry.path, told)
        log.info("member %d is no member any more", number)
        return True

    def _table(self) -> list[MemberEntry]:
        return self.store.assembly.label.members

    async def remove(self, number: int) -> None:
        """A member without columns. UsageError: it has some, or is the last one."""
        async with self._turn:
            entry = self.entry(number)
            if count := self.columns_of(number):
                raise UsageError(f"member {number} has {count} columns of zones")
            if not self.store.assembly.members.keys() - {number}:
                raise UsageError(f"member {number} is the last one; nothing would remain")
            if entry.role != "leaving":  # nothing new is begun there
                table = _with(self._table(), number, role="leaving")
                await self._labels(self.store.assembly.retable, table)
            await self.store.mender.stand_aside(number)
            if not await self._remove(number):
                raise UsageError(f"member {number} has got columns just now; they go elsewhere")


def _with(table: list[MemberEntry], number: int, *, role: Literal["leaving"]) -> list[MemberEntry]:
    return [
        msgspec.structs.replace(each, role=role) if each.id == number else each for each in table
    ]
