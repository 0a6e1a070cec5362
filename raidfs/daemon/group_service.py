"""The group service of a mounted volume: requests about its group, and what answers them.

1. A request that is refused has changed nothing, here or in another volume.
2. Nothing here waits without end for a peer: what doesn't come in time is said so, with its name.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_catalogue import GroupCatalogue
from raidfs.daemon.group_certificates import GroupCertificates
from raidfs.daemon.group_decisions import Decisions
from raidfs.daemon.group_figures import GATE_BOUNDS_US
from raidfs.daemon.group_looks import GroupLooks
from raidfs.daemon.group_membership import GroupMembership
from raidfs.daemon.group_moves import GroupMoves
from raidfs.daemon.group_policies import GroupPolicyService
from raidfs.daemon.group_requests import (
    GateFigures,
    GroupResolveRequest,
    GroupSnapshotRequest,
    GroupStatus,
    GroupStatusRequest,
    GroupTaken,
    GroupWaitRequest,
    GroupWorked,
    GroupWorkRequest,
    PeerTold,
    RunningTold,
    VolumeTaken,
)
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import RaidfsError, UsageError
from raidfs.group.charter import Charter
from raidfs.group.messages import Plan, Result
from raidfs.store.group_snapshots import BUSY

LOOK_S = 1.0  # so exactly is known since when a member is away
PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)


def state_directory(volume_id: str) -> Path:
    """Where keys of a volume's group are kept on this host."""
    chosen = os.environ.get("RAIDFS_STATE_DIR")
    if chosen is None and os.geteuid():
        chosen = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
        chosen += "/raidfs"
    return Path(chosen or "/var/lib/raidfs") / "groups" / volume_id


def _is_soon_over(reason: str) -> bool:
    """Of a snapshot that was not taken."""
    changed = "membership version " in reason or "membership changed " in reason
    return changed or reason.endswith(BUSY)


class GroupService:
    """Of one mounted volume."""

    def __init__(
        self, group: GroupProcess, works: GroupWorks, moves: GroupMoves, seen_at: str
    ) -> None:
        self.group = group
        self.works = works
        self.moves = moves
        self.store = group.store
        self.looks = GroupLooks(group, works, moves)
        self._volume = self.store.assembly.label.volume_name
        self.catalogue = GroupCatalogue(group, seen_at)
        self.membership = GroupMembership(group, works, moves)
        self.certificates = GroupCertificates(group)
        self.policies = GroupPolicyService(group, works, self.catalogue, self._snapshot)
        self._away_since_ns: dict[str, int] = {}
        self.decisions = Decisions(group, moves)
        # Asked in turn whether a number is of something that they know: then they have decided it.
        self.resolvers: list[Callable[[bytes, bool], Awaitable[bool]]] = [
            self.decisions.resolve,
            self.works.resolve,
            self.membership.leaving.resolve,
        ]
        parts = (self.catalogue, self.membership, self.certificates)
        self._hearers = {kind: hear for part in parts for kind, hear in part.hearers().items()}
        self._passed_on, self._told_up = group.on_message, group.on_up
        group.on_message, group.on_up = self._heard, self._up

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            GroupStatusRequest: self._status,
            GroupSnapshotRequest: self._snapshot,
            GroupWorkRequest: self._work,
            GroupWaitRequest: self._wait,
            GroupResolveRequest: self._resolve,
            **self.looks.handlers(),
            **self.moves.handlers(),
            **self.catalogue.handlers(),
            **self.membership.handlers(),
            **self.policies.handlers(),
        }

    def _heard(self, peer: str, message: object) -> None:
        hear = self._hearers.get(type(message), self._passed_on)
        hear(peer, message)

    def _up(self, peer: str) -> None:
        self._told_up(peer)
        self.certificates.up(peer)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for part in (self.looks, self.moves, self.membership, self.certificates):
                nursery.start_soon(part.run)
            while True:
                now_ns, known = self.store.clock(), self._away_since_ns
                self._away_since_ns = {peer: known.get(peer, now_ns) for peer in self.group.away()}
                await trio.sleep(LOOK_S)

    # -- telling ----------------------------------------------------------------------------------

    async def _status(self, _: GroupStatusRequest) -> GroupStatus:
        told = self.status()
        ends, authority = await self.certificates.ends()
        members = [
            msgspec.structs.replace(one, certificate_ends_s=ends.get(one.volume))
            for one in told.members
        ]
        return msgspec.structs.replace(
            told,
            members=members,
            authority_ends_s=authority,
            certificate_trouble=self.certificates.trouble,
        )

    def status(self) -> GroupStatus:
        """The group as this volume sees it."""
        group, figures = self.group, self.group.figures
        charter = group.charter
        return GroupStatus(
            volume=self._volume,
            volume_id=group.me,
            group=charter.name if charter else "",
            group_id=charter.group if charter else "",
            keeper=charter.keeper if charter else "",
            version_of_members=charter.version if charter else 0,
            gate_ms=charter.gate_ms if charter else 0,
            members=self._members(charter) if charter else [],
            listening=[str(address) for address in group.listening],
            obstacle=group.obstacle,
            trouble=group.trouble,
            running=[
                RunningTold(plan.snapshot.hex(), plan.name, plan.created_ns, plan.initiator, phase)
                for plan, phase in self._running()
            ],
            out=group.out.text(self._volume) if group.out else "",
            works=[
                *self.works.told(),
                *self.moves.pending(),
            ],
            gate=GateFigures(
                GATE_BOUNDS_US, tuple(figures.gate), figures.gate_us_max, figures.gate_us_sum
            ),
            results=dict(figures.results),
            channel_bytes=figures.channel_bytes,
            snapshots=len(self.store.group_snapshots.visible()),
            moves=self.decisions.told(),
        )

    def _away_since(self, volume: str) -> int:
        return self._away_since_ns.setdefault(volume, self.store.clock())

    def _running(self) -> list[tuple[Plan, str]]:
        """Also what is in doubt where there is no group to ask."""
        if self.group.is_linked:
            return self.group.running()
        return [(plan, "prepared") for plan in self.membership.leaving.doubts()]

    def _members(self, charter: Charter) -> list[PeerTold]:
        away = self.group.away()
        return [
            PeerTold(
                volume=each.volume,
                name=each.name,
                addresses=each.addresses or (str(self.group.socket(each.volume)),),
                up=each.volume not in away,
                why=away.get(each.volume, ""),
                me=each.volume == self.group.me,
                away_since_ns=self._away_since(each.volume) if each.volume in away else 0,
            )
            for each in charter.members
        ]

    # -- snapshots --------------------------------------------------------------------------------

    async def _snapshot(self, request: GroupSnapshotRequest) -> GroupTaken:
        begun = time.monotonic()
        charter = self.group.must_be_in()
        away = self.group.away()
        if away and not request.allow_missing:
            told = "; ".join(f"{charter.called(one)}: {why}" for one, why in away.items())
            self._note_failure(charter, request.name, f"not all volumes can be reached ({told})")
            raise RaidfsError(
                f"no snapshot was taken, since not all volumes can be reached ({told});"
                " --allow-missing takes it of the others"
            )
        result = await self._result(request.name, tuple(sorted(away)))
        taken = self._taken(charter, result, time.monotonic() - begun)
        if taken.state != "committed":
            self._note_failure(charter, request.name, f"{taken.state}: {taken.reason}")
        return taken

    def _note_failure(self, charter: Charter, name: str, why: str) -> None:
        text = f"{name} of group {charter.name}: {why}"
        self.store.events.note("GroupSnapshotFailed", text=text, group=charter.name, snapshot=name)

    async def _result(self, name: str, missing: tuple[str, ...]) -> Result:
        """Where a volume can't cut in that moment, or hasn't yet heard of a new member, it is tried
        again: soon it can, or has."""
        for pause_s in PAUSES_S:
            try:
                result = await self.group.snapshot(name, missing)
            except RaidfsError as error:
                if not _is_soon_over(str(error)):
                    raise
            else:
                if not _is_soon_over(result.reason):
                    return result
            await trio.sleep(pause_s)
        return await self.group.snapshot(name, missing)

    def _taken(self, charter: Charter, result: Result, seconds: float) -> GroupTaken:
        parts = [
            VolumeTaken(
                each.volume, charter.called(each.volume), each.state, each.epoch, each.gate_us
            )
            for each in result.volumes
        ]
        parts += [
            VolumeTaken(each, charter.called(each), "missing", 0, 0) for each in result.plan.missing
        ]
        parts.sort(key=lambda part: part.name)
        reason = result.reason
        for each in charter.members:  # ids are for programs
            reason = reason.replace(each.volume, each.name)
        return GroupTaken(
            charter.name,
            result.plan.snapshot.hex(),
            result.plan.name,
            result.plan.created_ns,
            result.state,
            reason,
            parts,
            seconds,
        )

    async def _resolve(self, request: GroupResolveRequest) -> GroupStatus:
        try:
            number = bytes.fromhex(request.snapshot)
            for resolve in self.resolvers:
                if await resolve(number, request.commit):
                    return self.status()
            self.group.resolve(number, request.commit)
        except ValueError:
            raise UsageError(f"{request.snapshot!r} is no id of a snapshot") from None
        return self.status()

    async def _wait(self, request: GroupWaitRequest) -> GroupStatus:
        self.group.must_be_in()

        def settled() -> bool:
            group = self.group
            quiet = not self.works.pending() and not self.moves.pending()
            quiet = quiet and group.parts.is_settled()  # what is over is forgotten, too
            return not group.away() and not group.running() and quiet

        with trio.move_on_after(request.timeout_s):
            await self.group.until(settled)
        if not settled():
            raise RaidfsError(
                f"not settled within {request.timeout_s:g} s: {self._unsettled()}", errno.ETIMEDOUT
            )
        return self.status()

    def _unsettled(self) -> str:
        charter = self.group.must_be_in()
        parts = [f"{charter.called(one)} ({why})" for one, why in self.group.away().items()]
        parts += [f"snapshot {plan.name} is {phase}" for plan, phase in self.group.running()]
        parts += self.works.told()
        parts += self.moves.pending()
        return "; ".join(parts)

    async def _work(self, request: GroupWorkRequest) -> GroupWorked:
        charter = self.group.must_be_in()
        if request.kind not in ("delete", "rollback"):
            raise UsageError(f"a group can't {request.kind!r}")
        verb: Literal["delete", "rollback"] = "delete" if request.kind == "delete" else "rollback"
        work, undone = await self.works.carry(
            verb, request.name, keep=request.keep, delete_newer=request.delete_newer
        )
        pending = sorted(charter.called(one) for one in undone)
        return GroupWorked(charter.name, verb, request.name, work.snapshot.hex(), pending)
