"""Who is in a volume's group: making one, joining, leaving, being taken out, and a new keeper.

1. A request that is refused has changed nothing, here or in another volume.
2. Who leaves, however, leaves nothing behind: what was promised to others is decided first (by
   them, or by a person: `group resolve`), what was not promised is dropped.
3. A keeper is replaced only while no member that is reached can reach it, with the consent of all
   of these, and of a majority of all members unless a person takes that upon himself.
4. A volume that is no member any more hears of it when it comes back, and says so.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_leaving import Leaving
from raidfs.daemon.group_moves import GroupMoves
from raidfs.daemon.group_requests import (
    GroupAdmitRequest,
    GroupAdoptRequest,
    GroupExpelRequest,
    GroupInitRequest,
    GroupInviteRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupLeft,
    GroupTakeOverRequest,
)
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import RaidfsError, UsageError
from raidfs.group import keys
from raidfs.group.authority import Authority
from raidfs.group.charter import Charter, CharterTold, Member, TakeOverAsked, TakeOverTold
from raidfs.group.join import JoinServer, join
from raidfs.group.keys import Applicant, TrustError
from raidfs.group.messages import GATE_MS_MAX
from raidfs.group.transport import Address, TcpAddress, parse_address

log = logging.getLogger("raidfs.group")

TAKE_OVER_S = 10.0
CONSENT_S = 60.0  # for so long a member that has agreed to one agrees to no other
INQUIRE_S = 3.0
Hearer = Callable[[str, object], None]


def check_group_name(name: str) -> None:
    """UsageError unless it can be the name of a group."""
    if not 1 <= len(name.encode()) <= 255 or not name.isprintable() or set("/@") & set(name):
        raise UsageError(f"{name!r} can't be the name of a group: 1 to 255 bytes without / and @")


class GroupMembership:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, works: GroupWorks, moves: GroupMoves) -> None:
        self.group = group
        self.store = group.store
        self.leaving = Leaving(group, works, moves)
        self._volume = self.store.assembly.label.volume_name
        self._nursery: trio.Nursery | None = None
        self._joining: tuple[Address, ...] = ()
        self._answers: dict[str, str] | None = None  # to a take-over, by member
        self._consent = ("", 0.0)  # to whom it was given, and when

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            GroupInitRequest: self._init,
            GroupAdoptRequest: self._adopt,
            GroupAdmitRequest: self._admit,
            GroupInviteRequest: self._invite,
            GroupJoinRequest: self._join,
            GroupLeaveRequest: self._leave,
            GroupExpelRequest: self._expel,
            GroupTakeOverRequest: self._take_over,
        }

    def hearers(self) -> dict[type, Hearer]:
        """By the message that each takes."""
        return {TakeOverAsked: self._take_over_asked, TakeOverTold: self._take_over_told}

    async def run(self) -> None:
        """Until cancelled: who joins is answered, and members that should connect and don't are
        asked why."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.leaving.run)
            while True:
                await self.group.until(lambda: self.group.is_linked)
                await trio.sleep(INQUIRE_S)
                for peer in self.group.away():
                    if peer < self.group.me:
                        await self.group.inquire(peer)

    # -- coming -----------------------------------------------------------------------------------

    def _check_free(self) -> None:
        """UsageError unless this volume can get into a group."""
        group = self.group
        if group.charter is not None:
            raise UsageError(
                f"volume {self._volume} is in group {group.charter.name!r} already;"
                " leave that one first: raidfs-ctl group leave"
            )
        if group.obstacle:
            raise UsageError(group.obstacle)
        self.store.writable()
        self.leaving.check_no_promise()

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
        if charter.member(member.volume) == member:
            return charter
        return await self.group.change((*charter.without(member.volume), member))

    async def _invite(self, request: GroupInviteRequest) -> str:
        charter = self.group.must_be_in()
        if charter.keeper != self.group.me:
            raise UsageError(f"invitations are made by {charter.called(charter.keeper)}")
        if not 0 < request.lifetime_s < 10 * 365 * 86400:
            raise UsageError("an invitation is good for more than 0 hours, and less than 10 years")
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
        if request.renew:
            return await self._join_again(request)
        self._check_free()
        addresses = self._addresses(request.listen)
        if not addresses:
            raise UsageError("say where this volume's daemon is to listen: --listen tcp:HOST:PORT")
        self.group.keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys.discard(self.group.keys)
        charter = await self._joined(request.token, Member(self.group.me, self._volume, addresses))
        await self.group.adopt(charter)
        return charter

    async def _join_again(self, request: GroupJoinRequest) -> Charter:
        """A member whose certificate has ended gets another for its key."""
        charter = self.group.charter
        own = charter.member(self.group.me) if charter else None
        if charter is None or own is None or not own.addresses:
            raise UsageError("this volume has no certificate that could be renewed")
        await self._joined(request.token, own)
        return charter

    async def _joined(self, token: str, me: Member) -> Charter:
        details = msgspec.msgpack.encode(me)
        _, answer = await join(token, self.group.keys, self.group.me, details)
        try:
            return msgspec.msgpack.decode(answer, type=Charter)
        except msgspec.DecodeError as error:
            raise TrustError("the issuer's answer was not understood") from error

    # -- going ------------------------------------------------------------------------------------

    async def _leave(self, request: GroupLeaveRequest) -> GroupLeft:
        group, charter = self.group, self.group.charter
        name = charter.name if charter else group.out.name if group.out else ""
        if not name:
            raise UsageError(f"volume {self._volume} is in no group")
        notes: list[str] = []
        if charter is None:
            self.leaving.check_no_promise()
        elif request.force:
            notes = await self.leaving.by_force()
        else:
            await self.leaving.politely(charter)
        await group.adopt(None)
        await self.leaving.clean()
        for directory in (group.keys, group.authority):
            if directory.exists():
                await trio.to_thread.run_sync(keys.discard, directory)
        return GroupLeft(name, notes)

    async def _expel(self, request: GroupExpelRequest) -> Charter:
        charter = self.group.must_be_in()
        if charter.keeper != self.group.me:
            raise UsageError(f"that is done by {charter.called(charter.keeper)}")
        found = [one for one in charter.members if request.volume in (one.volume, one.name)]
        if not found:
            raise UsageError(f"{request.volume!r} is no member of group {charter.name}")
        if len(found) > 1:
            ids = ", ".join(one.volume for one in found)
            raise UsageError(f"several members are called {request.volume!r}: name an id ({ids})")
        (member,) = found
        if member.volume == self.group.me:
            raise UsageError("the keeper can't expel itself; it leaves: raidfs-ctl group leave")
        if member.volume not in self.group.away() and not request.force:
            raise UsageError(
                f"{member.name} can be reached, and may leave by itself (raidfs-ctl group leave);"
                " --force takes it out all the same"
            )
        self.leaving.check_no_promise(member.volume)
        new = await self.group.change(charter.without(member.volume))
        if member.addresses:
            authority = await trio.to_thread.run_sync(Authority, self.group.authority)
            await trio.to_thread.run_sync(authority.forget, member.volume)
        return new

    # -- another keeper ---------------------------------------------------------------------------

    async def _take_over(self, request: GroupTakeOverRequest) -> Charter:
        charter, me = self.group.must_be_in(), self.group.me
        self._check_may_take_over(charter)
        new = charter.taken_over(me)
        asked = set(charter.roster.members) - set(self.group.away()) - {me}
        answers = self._answers = dict.fromkeys(asked, "no answer")
        try:
            waiting = {peer for peer in asked if self.group.send(peer, TakeOverAsked(new))}
            with trio.move_on_after(TAKE_OVER_S):
                await self.group.until(lambda: "no answer" not in map(answers.get, waiting))
        finally:
            self._answers = None
        against = [f"{charter.called(one)}: {why}" for one, why in sorted(answers.items()) if why]
        if against:
            raise RaidfsError(f"all that can be reached must agree: {'; '.join(against)}")
        agreed, members = 1 + len(asked), len(charter.members)
        if 2 * agreed <= members and not request.force:
            raise RaidfsError(
                f"{agreed} of {members} members agree, which is no majority: the others may have"
                " chosen another keeper; --force takes over if you know that they have not"
            )
        await self.group.adopt(new)
        for peer in asked:
            self.group.send(peer, CharterTold(new))
        log.warning("group %s: this volume is the keeper now", new.name)
        return new

    def _check_may_take_over(self, charter: Charter) -> None:
        """UsageError, RaidfsError."""
        keeper = charter.called(charter.keeper)
        if charter.keeper == self.group.me:
            raise UsageError(f"{keeper} is the keeper of group {charter.name} already")
        if charter.keeper not in self.group.away():
            raise UsageError(
                f"{keeper}, the keeper, can be reached; it hands over by leaving:"
                " raidfs-ctl group leave"
            )
        own = charter.member(self.group.me)
        if own is not None and own.addresses:
            raise UsageError(
                f"{keeper} has the authority that signs this group's certificates, and nobody else"
                " can: build the group anew (raidfs-ctl group leave --force in each volume, then"
                " init --listen, invite and join); the group's snapshots stay and can be used in"
                " the new group"
            )
        self.leaving.check_no_promise()

    def _take_over_asked(self, peer: str, message: object) -> None:
        assert isinstance(message, TakeOverAsked)
        why = self._objection(peer, message.charter)
        if not why:
            self._consent = (peer, trio.current_time())
        self.group.send(peer, TakeOverTold(message.charter.version, why[:1000]))

    def _objection(self, peer: str, new: Charter) -> str:
        """Why that must not be the group from now on; empty: it may."""
        own = self.group.charter
        if own is None or new.group != own.group:
            return "it is in another group"
        if new != own.taken_over(peer):
            return f"it knows version {own.version} of the group, or other members; try again"
        if own.keeper == self.group.me:
            return "it is the keeper itself"
        if own.keeper not in self.group.away():
            return f"it reaches {own.called(own.keeper)}, the keeper"
        whom, when = self._consent
        if whom not in ("", peer) and trio.current_time() - when < CONSENT_S:
            return f"it has agreed just now that {own.called(whom)} takes over"
        try:
            self.leaving.check_no_promise()
        except RaidfsError as error:
            return str(error)
        return ""

    def _take_over_told(self, peer: str, message: object) -> None:
        assert isinstance(message, TakeOverTold)
        if self._answers is not None and peer in self._answers:
            self._answers[peer] = message.why
            self.group.changed()
