"""The part of the snapshot service that keeps a volume's policy, and carries it out.

1. Two runs at once take nothing twice.
2. What was held, or deleted, since it was judged is left alone.
3. A volume that is too full for what is due first lets go what is to go.
4. In a group, its parts of the group's snapshots are none of its own policy's business.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.errors import OutOfSpace, UsageError
from raidfs.fs import policy as policies
from raidfs.fs.policy import KINDS, Policy, Verdict
from raidfs.store.snapshot_rows import Snapshot
from raidfs.store.store import Store

POLICY = "policy"  # its name among the volume's settings
GROUP = "group"  # the setting that holds the volume's group
VERDICTS_AT_ONCE = 256


class PolicyGetRequest(Request, frozen=True, tag="policy-get"):
    """Answered with a PolicyTold."""


class PolicySetRequest(Request, frozen=True, tag="policy-set"):
    """Fields of the Policy that get another value; `clear`: first there is none. Answered with a
    PolicyTold."""

    fields: dict[str, int] = msgspec.field(default_factory=dict)
    clear: bool = False

    def changes(self) -> bool:
        return True


class PolicyRunRequest(Request, frozen=True, tag="policy-run"):
    """Takes what is due (if `take`), then deletes what is to go. Answered with a PolicyRan, and
    more of them, of which only the verdicts count, where there are many."""

    take: bool = True
    dry_run: bool = False

    def changes(self) -> bool:
        return not self.dry_run


class PolicyTold(msgspec.Struct, frozen=True):
    """`surplus`: how many snapshots the next run would delete."""

    volume: str
    policy: Policy | None
    surplus: int = 0


class PolicyRan(msgspec.Struct, frozen=True):
    """What a run did, or would do. `verdicts`: all snapshots that there were, those just taken too,
    the oldest first; those without `keep` were deleted."""

    volume: str
    taken: list[str]
    verdicts: list[Verdict]
    freed_bytes: int


class _Planned(msgspec.Struct, frozen=True):
    """A snapshot that a dry run would take; see policy.Taken."""

    name: str
    created_ns: int
    holds: tuple[str, ...] = ()


class PolicyService:
    """Of one store. `drain` returns when what applications were told has arrived here."""

    def __init__(self, store: Store, drain: Callable[[], Awaitable[None]]) -> None:
        self.store = store
        self.snapshots = store.snapshots
        self._volume = store.assembly.label.volume_name
        self._drain = drain
        self._running = trio.Lock()

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            PolicyGetRequest: self._policy,
            PolicySetRequest: self._set_policy,
            PolicyRunRequest: self._run_policy,
        }

    def _current(self) -> Policy | None:
        stored = self.store.meta.setting(POLICY)
        return None if stored is None else policies.decode(stored)

    async def _policy(self, _: PolicyGetRequest) -> PolicyTold:
        return self._policy_told(self._current())

    def _policy_told(self, policy: Policy | None) -> PolicyTold:
        verdicts = policies.judge(policy, self._own()) if policy else []
        surplus = sum(not verdict.keep for verdict in verdicts)
        return PolicyTold(self._volume, policy, surplus)

    def _own(self) -> list[Snapshot]:
        """Promise 4."""
        found = self.snapshots.all()
        if self.store.meta.setting(GROUP) is None:
            return list(found)
        return [row for row in found if row.group_id is None]

    async def _set_policy(self, request: PolicySetRequest) -> PolicyTold:
        unknown = request.fields.keys() - {*KINDS, "minutes"}
        if unknown:
            raise UsageError(f"a policy has no {', '.join(sorted(unknown))}")
        policy = None
        if request.fields:
            before = None if request.clear else self._current()
            policy = msgspec.structs.replace(before or Policy(), **request.fields)
            policy.check()
        elif not request.clear:
            raise UsageError("say what the policy is to keep, such as --daily 30")
        stored = None if policy is None else policies.encode(policy)
        await self.store.cut_with(lambda _: self.store.meta.put_setting(POLICY, stored))
        return self._policy_told(policy)

    async def _run_policy(self, request: PolicyRunRequest) -> AsyncGenerator[PolicyRan, None]:
        async with self._running:
            ran = await self._ran(request)
        verdicts = ran.verdicts
        yield msgspec.structs.replace(ran, verdicts=verdicts[:VERDICTS_AT_ONCE])
        for at in range(VERDICTS_AT_ONCE, len(verdicts), VERDICTS_AT_ONCE):
            yield PolicyRan(self._volume, [], verdicts[at : at + VERDICTS_AT_ONCE], 0)

    async def _ran(self, request: PolicyRunRequest) -> PolicyRan:
        policy = self._current()
        if policy is None:
            raise UsageError(
                f"volume {self._volume} has no policy; give it one: raidfs-ctl policy set"
            )
        if not request.dry_run:
            self.store.writable()
        planned = self._planned(policy) if request.take else []
        taken = [plan.name for plan in planned]
        if not request.dry_run:
            await self._take(policy, planned)
            planned = []
        verdicts = policies.judge(policy, [*self._own(), *planned])
        going = [self.snapshots.find(verdict.name) for verdict in verdicts if not verdict.keep]
        freed = await self.snapshots.freed_cells(going)
        if not request.dry_run:
            await self._prune(going)
        return PolicyRan(self._volume, taken, verdicts, freed * self.store.cell_bytes)

    def _planned(self, policy: Policy) -> list[_Planned]:
        """What is due now."""
        now_ns = self.store.clock()
        kinds = policies.due(policy, self._own(), now_ns)
        planned = [_Planned(policies.name_of(kind, now_ns), now_ns) for kind in kinds]
        return [plan for plan in planned if not self.snapshots.is_taken(plan.name)]

    async def _take(self, policy: Policy, planned: Sequence[_Planned]) -> None:
        """On a volume that is full, what is to go makes room first."""
        if planned:
            await self._drain()
        for plan in planned:
            try:
                await self.snapshots.create(plan.name)
            except OutOfSpace:
                verdicts = policies.judge(policy, self._own())
                await self._prune(
                    [self.snapshots.find(verdict.name) for verdict in verdicts if not verdict.keep]
                )
                await self.snapshots.swept()
                await self.snapshots.create(plan.name)
            await trio.lowlevel.checkpoint()

    async def _prune(self, going: Iterable[Snapshot]) -> None:
        """Those that are still there and not held since they were judged."""
        now = (self.snapshots.get(snapshot.id) for snapshot in going)
        names = [each.name for each in now if each is not None and not each.holds]
        if names:
            await self.snapshots.delete(names)
