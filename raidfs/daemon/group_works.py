"""What all volumes of a group do together without a cut, carried out: deleting a group snapshot,
and going back to one.

What is to be done, and when, is said by the works (group/work.py). Here it is done: users are kept
out by the door (fs/door.py), promises and verdicts are rows of table kept.

1. The work and the end of the promise are one transaction.
2. A volume that was in doubt when its daemon ended lets nobody in, from its mount on.
3. Who is refused is refused by all: nothing that a thread of the lane, or the kernel, could answer
   from is in memory then.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import trio

from raidfs.daemon import fault
from raidfs.daemon.group import GroupProcess
from raidfs.errors import NoSuchSnapshot, RaidfsError, SnapshotHeld, UsageError
from raidfs.fs.rollback import rollback
from raidfs.fs.volume import Volume
from raidfs.group import work_events as e
from raidfs.group.charter import Charter, StateAsked, StateTold, Work, Working
from raidfs.group.messages import Transfer
from raidfs.group.move import ContentAsked, ContentTold
from raidfs.group.work import Works
from raidfs.group.work_events import WorkLimits
from raidfs.store.snapshot_rows import Snapshot

log = logging.getLogger("raidfs.group")

DOOR_S = 5.0  # for requests under way to end


class _Hold:
    """Users are kept out for a work as long as `scope` isn't cancelled; meanwhile it is done, or
    users are refused, as is said by `words`."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        words = trio.open_memory_channel[e.Do | e.Refuse](math.inf)
        self.words: trio.MemorySendChannel[e.Do | e.Refuse] = words[0]
        self.heard: trio.MemoryReceiveChannel[e.Do | e.Refuse] = words[1]


class GroupWorks:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, volume: Volume) -> None:
        """Promise 2: before anybody can ask for anything."""
        self.group = group
        self.volume = volume
        self.store = volume.store
        self.me = group.me
        self._holds: dict[bytes, _Hold] = {}
        self._asked: dict[bytes, e.Finished | None] = {}
        self._rejected: dict[bytes, str] = {}
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.on_state: Callable[[str, StateAsked | StateTold], None] = lambda peer, message: None
        self.on_move: Callable[[str, object], None] = lambda peer, message: None
        self.on_back: Callable[[str], None] = lambda peer: None
        group.on_message = self._heard
        group.on_up = self._up
        group.on_down = self._down
        limits = WorkLimits(hold=fault.value("group.hold-ms") or WorkLimits().hold)
        self._works, self._begin = Works.recover(self.me, self._kept(), limits)
        if any(work.verb == "rollback" for work in self._works.promised()):
            volume.door.bar()

    def _kept(self) -> list[tuple[e.KeptKind, Work]]:
        """What was left by an earlier mount. One that can't change anything has nothing to do."""
        try:
            self.store.writable()
        except RaidfsError:
            return []
        found: list[tuple[e.KeptKind, Work]] = []
        for _, kind, value in self.store.meta.kept():
            if kind in (e.INTENT, e.VERDICT):
                of: e.KeptKind = e.INTENT if kind == e.INTENT else e.VERDICT
                found.append((of, msgspec.msgpack.decode(value, type=Work)))
        return found

    # -- telling ----------------------------------------------------------------------------------

    def pending(self) -> list[Work]:
        """Not yet done everywhere, or in doubt."""
        return self._works.pending()

    def told(self) -> list[str]:
        """The same for people, with ids."""
        return [
            f"{work.verb} of {work.name}: {self._called(self._works.phase(work.work))}"
            f" (id {work.work.hex()})"
            for work in self.pending()
        ]

    def promised(self) -> list[str]:
        """What others rely on: agreements, and verdicts that not all may have heard of."""
        return [f"{work.verb} of {work.name} (id {work.work.hex()})" for work in self._works.owed()]

    def knows(self, number: bytes) -> bool:
        return any(work.work == number for work in self.pending())

    def _called(self, text: str) -> str:
        """Ids of volumes are for programs."""
        charter = self.group.charter
        for member in charter.members if charter else ():
            text = text.replace(member.volume, member.name)
        return text

    # -- who asks ---------------------------------------------------------------------------------

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
            result = await self._result(work)
            if result.why:
                doubt = self.knows(work.work)
                what = "" if doubt else "nothing was done in any volume: "
                raise RaidfsError(what + self._called(result.why))
            return work, set(result.undone)

    async def _result(self, work: Work) -> e.Finished:
        number = work.work
        self._asked[number] = None
        try:
            self._give(e.Start(work))
            await self.group.until(lambda: self._asked[number] is not None)
            result = self._asked[number]
            assert result is not None
            return result
        except trio.Cancelled:
            self._give(e.Cancel(number))
            raise
        finally:
            del self._asked[number]

    def find(self, name: str) -> Snapshot:
        """NoSuchSnapshot."""
        row = self.store.snapshots.find(name)
        if row.group_id is None or row.internal:
            raise NoSuchSnapshot(f"{name!r} is a snapshot of this volume alone, not of the group")
        return row

    async def resolve(self, number: bytes, go: bool) -> bool:
        """A person's word on a work in doubt, or of which a volume is gone; False: it isn't known.
        UsageError: it is neither."""
        if not self.knows(number):
            return False
        self._give(e.Resolve(number, go))
        if why := self._rejected.pop(number, ""):
            raise UsageError(self._called(why))
        return True

    # -- events -----------------------------------------------------------------------------------

    def _heard(self, peer: str, message: object) -> None:
        match message:
            case StateAsked() | StateTold():
                self.on_state(peer, message)
            case Transfer() | ContentAsked() | ContentTold():
                self.on_move(peer, message)
            case _ if isinstance(message, Working):
                self._give(e.Heard(peer, message))
        self.group.changed()

    def _up(self, peer: str) -> None:
        self.on_back(peer)
        self._give(e.Up(peer))

    def _down(self, peer: str) -> None:
        self._give(e.Down(peer))

    def _give(self, event: e.Event) -> None:
        """Tells the works, and does what they say."""
        self._carry_out(self._works.handle(event))
        self.group.changed()

    # -- actions ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; first takes up what a crash left."""
        async with trio.open_nursery() as self._nursery:
            self._carry_out(self._begin)
            while True:
                charter = self.group.charter
                if charter is not None:
                    self._give(e.Membership(frozenset(charter.roster.members)))
                await self._another(charter)

    async def _another(self, charter: Charter | None) -> None:
        """Returns when the group's charter isn't this one any more."""
        await self.group.until(lambda: self.group.charter is not charter)

    def _spawn(self, part: Callable[..., Awaitable[None]], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(part, *arguments)

    def _carry_out(self, actions: list[e.Action]) -> None:
        for action in actions:
            match action:
                case e.Send(peer, message):
                    self.group.send(peer, message)
                case e.Prepare(work, again):
                    hold = self._holds[work.work] = _Hold()
                    self._spawn(self._keep_out, work, hold, again)
                case e.Free(number):
                    if number in self._holds:
                        self._holds.pop(number).scope.cancel()
                case e.Do() | e.Refuse():
                    log.warning("group %s", _sentence(action))
                    self._holds[action.work.work].words.send_nowait(action)
                case e.Keep(work, kind):
                    self._spawn(self._keep, work, kind)
                case e.Drop(number, kind):
                    self._spawn(self._drop, number, kind)
                case e.StartTimer(event, delay_ms):
                    self._spawn(self._timer, event, delay_ms)
                case e.Finished(number):
                    if number in self._asked:
                        self._asked[number] = action
                case e.Rejected(number, why):
                    self._rejected[number] = why

    async def _timer(self, event: e.Timeout, delay_ms: int) -> None:
        await trio.sleep(delay_ms / 1000)
        self._give(event)

    async def _keep(self, work: Work, kind: e.KeptKind) -> None:
        event: e.Event = e.Kept(work.work, kind)
        try:
            fault.here(f"group.before-{kind}")
            encoded = msgspec.msgpack.encode(work)
            await self.store.group_snapshots.keep(work.work, kind, encoded)
            fault.here(f"group.after-{kind}")
        except RaidfsError as error:
            event = e.Failed(work.work, str(error))
        self._give(event)

    async def _drop(self, number: bytes, kind: e.KeptKind) -> None:
        """If it can't be, the volume has failed, and another mount tries it."""
        with contextlib.suppress(RaidfsError):
            await self.store.group_snapshots.keep(number, kind, None)
            self._give(e.Dropped(number, kind))

    async def _keep_out(self, work: Work, hold: _Hold, again: bool) -> None:
        """Until Free."""
        with hold.scope:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    with trio.fail_after(math.inf if again else DOOR_S):
                        if work.verb == "rollback":
                            await stack.enter_async_context(self.volume.door.closed())
                    if not again:
                        await self._check(work)
                    stack.callback(self.store.group_snapshots.bound.discard, work.snapshot)
                    self.store.group_snapshots.bound.add(work.snapshot)
                    if not again:
                        self._give(e.Prepared(work.work))
                    async for word in hold.heard:
                        await self._obey(word)
            except trio.TooSlowError:
                self._give(e.Failed(work.work, "requests under way don't come to an end"))
            except RaidfsError as error:
                self._give(e.Failed(work.work, str(error)))

    async def _check(self, work: Work) -> None:
        """RaidfsError: it can't be done here."""
        row = self.store.group_snapshots.visible().get(work.snapshot)
        if row is None:
            if work.verb == "delete":
                return  # as it is to be: an incomplete one is swept up
            raise NoSuchSnapshot(f"there is no part of group snapshot {work.name!r}")
        if work.verb == "rollback":
            await rollback(
                self.volume, row.name, keep=work.keep or None, delete_newer=work.delete_newer,
                dry_run=True,
            )  # fmt: skip
        elif row.holds:
            raise SnapshotHeld(f"snapshot {row.name!r} is held ({', '.join(row.holds)})")

    async def _obey(self, word: e.Do | e.Refuse) -> None:
        """With users kept out."""
        work = word.work
        try:
            if isinstance(word, e.Refuse):
                if work.verb == "rollback":
                    await self._refuse(word.why)
                return
            if work.verb == "rollback":
                await self.volume.door.wait_again()
            fault.here("group.before-work")
            await self._work(work)
            fault.here("group.after-work")
        except RaidfsError as error:
            log.error("group %s of %s: %s", work.verb, work.name, error)
            if isinstance(word, e.Do):
                self._give(e.Failed(work.work, str(error)))
        else:
            self._give(e.Ended(work.work))

    async def _refuse(self, why: str) -> None:
        """Promise 3."""
        if not self.volume.door.refusal:
            await self.store.commit()
            self.volume.reread()
            self.volume.door.refuse(f"a rollback of the group is in doubt here: {why}")

    async def _work(self, work: Work) -> None:
        """Promise 1."""
        row = self.store.group_snapshots.visible().get(work.snapshot)

        def end(_: int) -> None:
            self.store.meta.keep(work.work, e.INTENT, None)

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
            door=contextlib.nullcontext(), also=end,
        )  # fmt: skip


def _sentence(action: e.Do | e.Refuse) -> str:
    work = action.work
    what = f"{work.verb} of {work.name} (id {work.work.hex()})"
    if isinstance(action, e.Do):
        return f"{what}: it is done now"
    return (
        f"{what}: users are refused, since {action.why}; see raidfs-ctl group status, and if a"
        " volume is gone for good, group resolve"
    )
