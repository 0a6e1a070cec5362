"""The members of a volume as an administrator changes them: requests, and what carries them out.

The daemon of a mounted volume has one such service behind its control socket; a command that is
given a member of an unmounted volume opens the store itself and has one of its own. So both say
and do the same.

 1. What can't be done is refused before anything is changed, in numbers (member_plans.py); with
    `dry_run` that is all that is done.
 2. One change at a time, in the order in which they were asked for. One that has begun goes on to
    its end, whether whoever asked still listens or not.
 3. What takes long goes on in the background, as jobs (jobs.py): it survives the end of the mount.
 4. Every change is told as an event.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.member_changes import Plan, Turn
from raidfs.daemon.member_coming import Coming
from raidfs.daemon.member_going import Going
from raidfs.daemon.member_losing import Losing
from raidfs.daemon.member_requests import (
    MemberAddRequest,
    MemberAnswer,
    MemberDomainRequest,
    MemberEvacuateRequest,
    MemberFailRequest,
    MemberOnlineRequest,
    MemberPolicyRequest,
    MemberRemoveRequest,
    MemberReplaceRequest,
    MemberRequest,
    MemberSpareRequest,
)
from raidfs.daemon.status import VolumeStatus
from raidfs.store.store import Store

BEAT_S = 0.5  # between answers that tell how far a copy of the metadata is


class MemberService:
    """Of one open store. `run` must run while requests are answered. `look`: at jobs, when one may
    have begun."""

    def __init__(
        self,
        store: Store,
        mountpoint: str | None,
        status: Callable[[], VolumeStatus],
        look: Callable[[], None],
    ) -> None:
        self.store, self.membership = store, store.membership
        self._status, self._look = status, look
        self._lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        coming, going = Coming(store, mountpoint), Going(store, mountpoint)
        losing = Losing(store, mountpoint)
        self._plans: dict[type[MemberRequest], Callable[..., Awaitable[Plan]]] = {
            MemberAddRequest: coming.add,
            MemberSpareRequest: coming.spare,
            MemberDomainRequest: coming.domain,
            MemberPolicyRequest: coming.policy,
            MemberRemoveRequest: going.remove,
            MemberEvacuateRequest: going.evacuate,
            MemberReplaceRequest: going.replace,
            MemberFailRequest: losing.fail,
            MemberOnlineRequest: losing.online,
        }

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {kind: self._handler(plan) for kind, plan in self._plans.items()}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def _handler(self, plan: Callable[..., Awaitable[Plan]]) -> Handler:
        async def handle(request: MemberRequest) -> AsyncGenerator[MemberAnswer, None]:
            if not request.changes():
                yield (await plan(request)).answer
                return
            turn = Turn()
            assert self._nursery is not None
            self._nursery.start_soon(self._carry_out, plan, request, turn)
            while not turn.ended.is_set():
                with trio.move_on_after(BEAT_S) as waited:
                    await turn.ended.wait()
                if waited.cancelled_caught and turn.copied[1]:
                    copied, total = turn.copied
                    yield MemberAnswer("", False, copied_bytes=copied, copy_bytes=total)
            if turn.error is not None:
                raise turn.error
            assert turn.answer is not None
            yield turn.answer

        return handle

    async def _carry_out(
        self, plan: Callable[..., Awaitable[Plan]], request: MemberRequest, turn: Turn
    ) -> None:
        """Promise 2. Errors are whoever asked's."""
        try:
            async with self._lock:
                self.store.writable()
                made = await plan(request)
                if made.act is not None:
                    await made.act(turn)
                self._look()
                said = turn.said or made.answer.said
                turn.answer = msgspec.structs.replace(
                    made.answer, said=said, done=made.act is not None, status=self._status()
                )
        except Exception as error:
            turn.error = error
        finally:
            turn.ended.set()
