"""The group service of a mounted volume: requests about its group, and what answers them.

1. A request that is refused has changed nothing, here or in another volume.
2. Nothing here waits without end for a peer: what doesn't come in time is said so, with its name.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from pathlib import Path
from typing import Literal

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_figures import GATE_BOUNDS_US
from raidfs.daemon.group_looks import GroupLooks
from raidfs.daemon.group_moves import GroupMoves
from raidfs.daemon.group_requests import (
    GateFigures,
    GroupAdmitRequest,
    GroupAdoptRequest,
    GroupInitRequest,
    GroupInviteRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupListed,
    GroupListRequest,
    GroupResolveRequest,
    GroupSnapshotRequest,
    GroupSnapshotTold,
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
from raidfs.errors import NoSuchSnapshot, RaidfsError, UsageError
from raidfs.group import keys
from raidfs.group.authority import Authority
from raidfs.group.charter import Charter, LeaveAsked, Member
from raidfs.group.join import JoinServer, join
from raidfs.group.keys import Applicant, TrustError
from raidfs.group.messages import GATE_MS_MAX, Result
from raidfs.group.transport import Address, TcpAddress, parse_address
from raidfs.store.group_snapshots import BUSY

LEAVE_S = 10.0
PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)


def state_directory(volume_id: str) -> Path:
    """Where keys of a volume's group are kept on this host."""
    chosen = os.environ.get("RAIDFS_STATE_DIR")
    if chosen is None and os.geteuid():
        chosen = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
        chosen += "/raidfs"
    return Path(chosen or "/var/lib/raidfs") / "groups" / volume_id


def check_group_name(name: str) -> None:
    """UsageError unless it can be the name of a group."""
    if not 1 <= len(name.encode()) <= 255 or not name.isprintable() or set("/@") & set(name):
        raise UsageError(f"{name!r} can't be the name of a group: 1 to 255 bytes without / and @")


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
        self._seen_at = seen_at
        self._volume = self.store.assembly.label.volume_name
        self._nursery: trio.Nursery | None = None
        self._joining: tuple[Address, ...] = ()

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            GroupStatusRequest: self._status,
            GroupInitRequest: self._init,
            GroupAdoptRequest: self._adopt,
            GroupAdmitRequest: self._admit,
            GroupInviteRequest: self._invite,
            GroupJoinRequest: self._join,
            GroupLeaveRequest: self._leave,
            GroupSnapshotRequest: self._snapshot,
            GroupListRequest: self._list,
            GroupWorkRequest: self._work,
            GroupWaitRequest: self._wait,
            GroupResolveRequest: self._resolve,
            **self.looks.handlers(),
            **self.moves.handlers(),
        }

    async def run(self) -> None:
        """Until cancelled: who joins is answered."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.looks.run)
            self._nursery.start_soon(self.moves.run)
            await trio.sleep_forever()

    # -- telling ----------------------------------------------------------------------------------

    async def _status(self, _: GroupStatusRequest) -> GroupStatus:
        return self.status()

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
                for plan, phase in group.running()
            ],
            works=[
                *(f"{work.verb} {work.name}" for work in self.works.pending()),
                *self.moves.pending(),
            ],
            gate=GateFigures(GATE_BOUNDS_US, tuple(figures.gate), figures.gate_us_max),
            results=dict(figures.results),
            channel_bytes=figures.channel_bytes,
            snapshots=len(self.store.group_snapshots.visible()),
        )

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
            )
            for each in charter.members
        ]

    async def _list(self, request: GroupListRequest) -> GroupListed:
        charter = self.group.charter
        rows = self.store.group_snapshots.visible()
        told = [
            GroupSnapshotTold(
                group_id.hex(),
                row.name,
                row.created_ns,
                row.epoch,
                row.holds,
                f"{self._seen_at}/{row.name}",
            )
            for group_id, row in rows.items()
            if request.name in ("", row.name)
        ]
        if request.name and not told:
            raise NoSuchSnapshot(f"there is no group snapshot {request.name!r}; see group list")
        return GroupListed(charter.name if charter else "", self._volume, told)

    # -- snapshots --------------------------------------------------------------------------------

    async def _snapshot(self, request: GroupSnapshotRequest) -> GroupTaken:
        begun = time.monotonic()
        charter = self.group.must_be_in()
        away = self.group.away()
        if away and not request.allow_missing:
            told = "; ".join(f"{charter.called(one)}: {why}" for one, why in away.items())
            raise RaidfsError(
                f"no snapshot was taken, since not all volumes can be reached ({told});"
                " --allow-missing takes it of the others"
            )
        result = await self._result(request.name, tuple(sorted(away)))
        return self._taken(charter, result, time.monotonic() - begun)

    async def _result(self, name: str, missing: tuple[str, ...]) -> Result:
        """Where a volume can't cut in that moment it is tried again: soon it can."""
        for pause_s in PAUSES_S:
            try:
                result = await self.group.snapshot(name, missing)
            except RaidfsError as error:
                if str(error) != BUSY:
                    raise
            else:
                if not result.reason.endswith(BUSY):
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
            self.group.resolve(bytes.fromhex(request.snapshot), request.commit)
        except ValueError:
            raise UsageError(f"{request.snapshot!r} is no id of a snapshot") from None
        return self.status()

    async def _wait(self, request: GroupWaitRequest) -> GroupStatus:
        self.group.must_be_in()

        def settled() -> bool:
            group = self.group
            quiet = not self.works.pending() and not self.moves.pending()
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
        parts += [f"{work.verb} of {work.name}" for work in self.works.pending()]
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

    # -- membership -------------------------------------------------------------------------------

    def _check_free(self) -> None:
        """UsageError unless this volume can get into a group."""
        group = self.group
        if group.charter is not None:
            raise UsageError(
                f"volume {self._volume} is in group {group.charter.name!r} already;"
                " leave that one first: raidfs-ctl group leave",
                errno.EEXIST,
            )
        if group.obstacle:
            raise UsageError(group.obstacle)
        self.store.writable()

    def _addresses(self, listen: str) -> tuple[str, ...]:
        if not listen:
            return ()
        address = parse_address(listen)
        if not isinstance(address, TcpAddress) or not address.port or not address.host:
            raise UsageError(f"{listen!r}: name host and port, as others reach this one")
        return (str(address),)

    async def _init(self, request: GroupInitRequest) -> Charter:
        self._check_free()
        check_group_name(request.name)
        if not 1 <= request.gate_ms <= GATE_MS_MAX:
            raise UsageError(f"a gate may be shut for 1 to {GATE_MS_MAX} ms, not {request.gate_ms}")
        addresses = self._addresses(request.listen)
        if addresses and request.others:
            raise UsageError("with --listen, a group begins with one volume; others join by token")
        number = os.urandom(16).hex()
        if addresses:
            await trio.to_thread.run_sync(self._make_authority, number)
        me = Member(self.group.me, self._volume, addresses)
        charter = Charter(
            number, request.name, self.group.me, 1, (me, *request.others), request.gate_ms
        )
        await self.group.adopt(charter)
        return charter

    def _make_authority(self, number: str) -> None:
        """A thread's."""
        for directory in (self.group.authority, self.group.keys):
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            keys.discard(directory)  # of a group that this volume has left
        authority = Authority.create(self.group.authority, number)
        request = keys.new_request(self.group.keys, self.group.me)
        certificate = authority.enroll(request)
        keys.install(self.group.keys, self.group.me, certificate, authority.certificate)

    async def _adopt(self, request: GroupAdoptRequest) -> Charter:
        self._check_free()
        if request.charter.member(self.group.me) is None:
            raise UsageError("that group doesn't have this volume among its members")
        await self.group.adopt(request.charter)
        return request.charter

    async def _admit(self, request: GroupAdmitRequest) -> Charter:
        charter = self.group.must_be_in()
        own = charter.member(self.group.me)
        if own is not None and own.addresses:
            raise UsageError(
                "this group spans hosts: join it with a token (raidfs-ctl group invite)"
            )
        return await self._grow(request.member)

    async def _grow(self, member: Member) -> Charter:
        charter = self.group.must_be_in()
        known = charter.member(member.volume)
        if known == member:
            return charter
        others = tuple(each for each in charter.members if each.volume != member.volume)
        return await self.group.change((*others, member))

    async def _invite(self, request: GroupInviteRequest) -> str:
        charter = self.group.must_be_in()
        if charter.keeper != self.group.me:
            raise UsageError(f"invitations are made by {charter.called(charter.keeper)}")
        own = charter.member(self.group.me)
        if own is None or not own.addresses:
            raise UsageError(
                "all volumes of this group are on one host: join it with"
                " raidfs-ctl group join MOUNTPOINT MOUNTPOINT-OF-A-MEMBER"
            )
        authority = await trio.to_thread.run_sync(Authority, self.group.authority)
        if not self._joining:
            host = parse_address(own.addresses[0])
            assert isinstance(host, TcpAddress) and self._nursery is not None
            server = JoinServer(authority, self.group.keys, self._let_in)
            listening = await self._nursery.start(server.run, TcpAddress(host.host, 0))
            self._joining = listening
        addresses = [str(address) for address in self._joining]
        make = functools.partial(
            authority.invite, self.group.me, addresses, lifetime_s=request.lifetime_s
        )
        return await trio.to_thread.run_sync(make)

    async def _let_in(self, applicant: Applicant, details: bytes) -> bytes:
        try:
            member = msgspec.msgpack.decode(details, type=Member)
        except msgspec.DecodeError as error:
            raise TrustError("what the volume says of itself was not understood") from error
        if member.volume != applicant.volume or not member.addresses:
            raise TrustError("a volume can only join as itself, and must listen somewhere")
        return msgspec.msgpack.encode(await self._grow(member))

    async def _join(self, request: GroupJoinRequest) -> Charter:
        self._check_free()
        addresses = self._addresses(request.listen)
        if not addresses:
            raise UsageError("say where this volume's daemon is to listen: --listen tcp:HOST:PORT")
        self.group.keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys.discard(self.group.keys)
        me = Member(self.group.me, self._volume, addresses)
        _, details = await join(
            request.token, self.group.keys, self.group.me, msgspec.msgpack.encode(me)
        )
        try:
            charter = msgspec.msgpack.decode(details, type=Charter)
        except msgspec.DecodeError as error:
            raise TrustError("the issuer's answer was not understood") from error
        await self.group.adopt(charter)
        return charter

    async def _leave(self, request: GroupLeaveRequest) -> None:
        group, charter = self.group, self.group.charter
        if charter is None:
            raise UsageError(f"volume {self._volume} is in no group")
        if request.force:
            self._check_no_promise()
        else:
            await self._leave_politely(charter)
        await group.adopt(None)
        for directory in (group.keys, group.authority):
            if directory.exists():
                await trio.to_thread.run_sync(keys.discard, directory)

    def _check_no_promise(self) -> None:
        """What was promised can only be kept, or broken, in the group."""
        doubts = [plan for plan, phase in self.group.running() if phase == "prepared"]
        if doubts:
            told = ", ".join(f"{plan.name} ({plan.snapshot.hex()})" for plan in doubts)
            raise RaidfsError(f"in doubt: {told}; decide on it first: raidfs-ctl group resolve")

    async def _leave_politely(self, charter: Charter) -> None:
        group = self.group
        group.must_be_in()
        if group.running() or self.works.pending() or self.moves.pending():
            raise RaidfsError(f"not now: {self._unsettled()}; --force leaves all the same")
        others = tuple(each for each in charter.members if each.volume != group.me)
        if charter.keeper == group.me:
            if others:
                self._check_handing_over(charter)
                await group.change(others, keeper=others[0].volume)
            return
        if charter.keeper in group.away():
            raise RaidfsError(
                f"{charter.called(charter.keeper)}, which keeps the list of members, can't be"
                " reached; --force leaves without telling anybody"
            )
        group.send(charter.keeper, LeaveAsked())
        with trio.move_on_after(LEAVE_S):
            await group.until(lambda: group.charter is None or group.charter.group != charter.group)
            return
        raise RaidfsError(f"{charter.called(charter.keeper)} doesn't answer; try again, or --force")

    def _check_handing_over(self, charter: Charter) -> None:
        own = charter.member(self.group.me)
        if own is not None and own.addresses:
            raise UsageError(
                "this volume has the group's authority: let the others leave first"
                " (--force leaves them without one)"
            )
        if away := self.group.away():
            raise RaidfsError(f"all others must be reached for that: {', '.join(away.values())}")
