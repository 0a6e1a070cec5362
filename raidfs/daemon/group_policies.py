"""The policy of a group: which of its snapshots are taken and kept; carried out by the keeper.

The rules are those of a volume's own policy (fs/policy.py); it is in the group's charter, so it
goes on when the keeper leaves. Names begin with a prefix of their own.

 1. Only the keeper's daemon takes and deletes, one run at a time: nothing is taken twice.
 2. A snapshot that is to go goes from all volumes, or from none, and what is held in any of them
    stays. What could not be taken or deleted is told; the next run tries again.
 3. A group that is too full for what is due lets go first what is to go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_catalogue import GroupCatalogue, Whole, merged
from raidfs.daemon.group_requests import GroupSnapshotRequest, GroupTaken
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import RaidfsError, UsageError
from raidfs.fs import policy as policies
from raidfs.fs.policy import KINDS, Policy, Verdict
from raidfs.group.charter import Charter, Schedule
from raidfs.store.snapshots import check_name

PREFIX = "groupsnap"
VERDICTS_AT_ONCE = 256
Take = Callable[[GroupSnapshotRequest], Awaitable[GroupTaken]]


class GroupPolicyGetRequest(Request, frozen=True, tag="group-policy-get"):
    """Answered with a GroupPolicyTold."""


class GroupPolicySetRequest(Request, frozen=True, tag="group-policy-set"):
    """To the keeper. Fields of the Policy that get another value; `clear`: first there is none.
    `prefix`, `allow_missing`: None leaves them. Answered with a GroupPolicyTold."""

    fields: dict[str, int] = msgspec.field(default_factory=dict)
    prefix: str | None = None
    allow_missing: bool | None = None
    clear: bool = False


class GroupPolicyRunRequest(Request, frozen=True, tag="group-policy-run"):
    """To the keeper: takes what is due, then deletes what is to go. Answered with GroupPolicyRan's,
    of which only the first tells more than verdicts."""

    dry_run: bool = False


class GroupPolicyTold(msgspec.Struct, frozen=True):
    """`surplus`: how many snapshots the next run would delete."""

    group: str
    keeper: str
    policy: Policy | None
    prefix: str
    allow_missing: bool
    surplus: int = 0


class GroupPolicyRan(msgspec.Struct, frozen=True):
    """What a run did, or would do. `verdicts`: all snapshots of the group that there were, oldest
    first. `deleted`: those that are gone, or would go; `failed`: sentences."""

    group: str
    taken: list[str]
    verdicts: list[Verdict]
    deleted: list[str]
    failed: list[str]


class _Seen(msgspec.Struct, frozen=True):
    """See policy.Taken."""

    name: str
    created_ns: int
    holds: tuple[str, ...] = ()


class GroupPolicyService:
    """Of one mounted volume. `take` takes a snapshot of the group."""

    def __init__(
        self, group: GroupProcess, works: GroupWorks, catalogue: GroupCatalogue, take: Take
    ) -> None:
        self.group = group
        self.works = works
        self.catalogue = catalogue
        self._take_one = take
        self._running = trio.Lock()

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            GroupPolicyGetRequest: self._get,
            GroupPolicySetRequest: self._set,
            GroupPolicyRunRequest: self._run,
        }

    async def _get(self, _: GroupPolicyGetRequest) -> GroupPolicyTold:
        charter = self.group.must_be_in()
        told = self._told(charter)
        if told.policy is None:
            return told
        verdicts = self._verdicts(charter, await self._seen())
        return msgspec.structs.replace(told, surplus=sum(not each.keep for each in verdicts))

    def _told(self, charter: Charter) -> GroupPolicyTold:
        schedule, keeper = charter.schedule, charter.called(charter.keeper)
        if schedule is None:
            return GroupPolicyTold(charter.name, keeper, None, "", False)
        policy = policies.decode(schedule.policy)
        prefix, allow_missing = schedule.prefix, schedule.allow_missing
        return GroupPolicyTold(charter.name, keeper, policy, prefix, allow_missing)

    def _must_keep(self) -> Charter:
        """UsageError unless this volume is the keeper."""
        charter = self.group.must_be_in()
        if charter.keeper != self.group.me:
            keeper = charter.called(charter.keeper)
            raise UsageError(f"the policy of group {charter.name} is in the hands of {keeper}")
        return charter

    async def _set(self, request: GroupPolicySetRequest) -> GroupPolicyTold:
        charter = self._must_keep()
        unknown = request.fields.keys() - {*KINDS, "minutes"}
        if unknown:
            raise UsageError(f"a policy has no {', '.join(sorted(unknown))}")
        options = (request.prefix, request.allow_missing)
        if not request.clear and not request.fields and options == (None, None):
            raise UsageError("say what the policy is to keep, such as --daily 30")
        schedule = self._changed(charter, request)
        if schedule != charter.schedule:
            new = charter.changed(charter.members)
            charter = await self.group.put(msgspec.structs.replace(new, schedule=schedule))
        return await self._get(GroupPolicyGetRequest()) if schedule else self._told(charter)

    @staticmethod
    def _changed(charter: Charter, request: GroupPolicySetRequest) -> Schedule | None:
        """UsageError: it makes no sense."""
        old = None if request.clear else charter.schedule
        if request.clear and not request.fields:
            return None
        before = policies.decode(old.policy) if old else Policy()
        policy = msgspec.structs.replace(before, **request.fields)
        policy.check()
        prefix = request.prefix if request.prefix is not None else old.prefix if old else PREFIX
        check_name(policies.name_of("frequently", 0, prefix=prefix))
        if not 1 <= len(prefix) <= 100:
            raise UsageError("a prefix has 1 to 100 characters")
        allowed = request.allow_missing
        if allowed is None:
            allowed = old.allow_missing if old else False
        return Schedule(policies.encode(policy), prefix, allowed)

    # -- a run ------------------------------------------------------------------------------------

    async def _run(self, request: GroupPolicyRunRequest) -> AsyncGenerator[GroupPolicyRan, None]:
        async with self._running:
            ran = await self._ran(request.dry_run)
        yield msgspec.structs.replace(ran, verdicts=ran.verdicts[:VERDICTS_AT_ONCE])
        for at in range(VERDICTS_AT_ONCE, len(ran.verdicts), VERDICTS_AT_ONCE):
            some = ran.verdicts[at : at + VERDICTS_AT_ONCE]
            yield GroupPolicyRan(ran.group, [], some, [], [])

    async def _ran(self, dry_run: bool) -> GroupPolicyRan:
        charter = self._must_keep()
        schedule = charter.schedule
        if schedule is None:
            raise UsageError(
                f"group {charter.name} has no policy; give it one: raidfs-ctl group policy set"
            )
        now_ns, prefix = self.group.store.clock(), schedule.prefix
        seen = await self._seen()
        kinds = policies.due(policies.decode(schedule.policy), _all(seen), now_ns, prefix=prefix)
        planned = [policies.name_of(kind, now_ns, prefix=prefix) for kind in kinds]
        failed: list[str] = []
        if dry_run:
            verdicts = self._verdicts(charter, seen, [_Seen(name, now_ns) for name in planned])
            going = [each.name for each in verdicts if not each.keep]
            return GroupPolicyRan(charter.name, planned, verdicts, going, failed)
        taken = await self._take(charter, planned, failed)
        seen = await self._seen()
        verdicts = self._verdicts(charter, seen)
        deleted = await self._prune(verdicts, failed)
        return GroupPolicyRan(charter.name, taken, verdicts, deleted, failed)

    async def _seen(self) -> list[Whole]:
        return merged(await self.catalogue.everywhere())

    def _verdicts(
        self, charter: Charter, seen: Sequence[Whole], planned: Sequence[_Seen] = ()
    ) -> list[Verdict]:
        """What isn't in this volume can't be judged by it: its policy has no say."""
        if charter.schedule is None:
            return []
        mine = [whole for whole in seen if self.group.me in whole.parts]
        policy = policies.decode(charter.schedule.policy)
        return policies.judge(policy, [*_all(mine), *planned], charter.schedule.prefix)

    async def _take(self, charter: Charter, planned: list[str], failed: list[str]) -> list[str]:
        """The names of those that were."""
        taken = []
        for name in planned:
            why = await self._taken(charter, name)
            if why:  # room, perhaps: promise 3
                gone = await self._prune(self._verdicts(charter, await self._seen()), [])
                why = await self._taken(charter, name) if gone else why
            if why:
                failed.append(f"{name} was not taken: {why}")
            else:
                taken.append(name)
        return taken

    async def _taken(self, charter: Charter, name: str) -> str:
        """Empty, or why it was not."""
        allow = charter.schedule is not None and charter.schedule.allow_missing
        try:
            told = await self._take_one(GroupSnapshotRequest(name=name, allow_missing=allow))
        except RaidfsError as error:
            return str(error)
        return "" if told.state == "committed" else f"{told.state}: {told.reason}"

    async def _prune(self, verdicts: Sequence[Verdict], failed: list[str]) -> list[str]:
        """The names of those that are gone."""
        gone = []
        for verdict in verdicts:
            if verdict.keep:
                continue
            try:
                await self.works.carry("delete", verdict.name)
                gone.append(verdict.name)
            except RaidfsError as error:
                failed.append(f"{verdict.name} was not deleted: {error}")
        return gone


def _all(seen: Sequence[Whole]) -> list[_Seen]:
    return [_Seen(whole.name, whole.created_ns, whole.holds) for whole in seen]
