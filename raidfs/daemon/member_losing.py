"""Members that are taken out of use, and that are back: see members.py."""

from __future__ import annotations

import os

import trio

from raidfs.daemon import mounts
from raidfs.daemon.member_back import NotBelieved, open_back
from raidfs.daemon.member_changes import Changes, Plan, Turn, counted, named
from raidfs.daemon.member_plans import fit, require_survival
from raidfs.daemon.member_requests import (
    MemberAnswer,
    MemberFailRequest,
    MemberOnlineRequest,
    require_entries,
    require_entry,
)
from raidfs.errors import UsageError
from raidfs.raid.create import size_text
from raidfs.raid.label import MemberEntry
from raidfs.raid.member import Member


class Losing(Changes):
    """See the module."""

    async def fail(self, request: MemberFailRequest) -> Plan:
        chosen = require_entries(self.label.members, request.members, request.cwd)
        verb = "offline" if request.offline else "fail"
        for entry in chosen:
            self._require_there(entry, request.offline)
        losing = [entry for entry in chosen if self.online_now(entry.id)]
        if losing:
            require_survival(self.store, {entry.id for entry in losing}, named(losing))
        columns, nbytes = self.left(entry.id for entry in chosen)
        said = [f"{named(chosen)} goes out of use, with {counted(columns)} ({size_text(nbytes)})"]
        said += self._after(chosen, request.offline)

        async def act(turn: Turn) -> None:
            for entry in chosen:
                await self._lose(entry, request)
            self.store.mender.wake()

        ids = [entry.id for entry in chosen]
        answer = MemberAnswer(verb, False, said, [], ids, columns, nbytes)
        return Plan(answer, act)

    def _require_there(self, entry: MemberEntry, offline: bool) -> None:
        if entry.state == ("offline" if offline else "failed"):
            already = "offline" if offline else "out of the volume"
            raise UsageError(f"member {entry.id} ({entry.path}) is already {already}")

    def _after(self, chosen: list[MemberEntry], offline: bool) -> list[str]:
        if offline:
            return [
                "it is expected back: nothing is rebuilt until `member online` or `member fail`"
            ]
        found = fit(self.store, {entry.id for entry in chosen})
        if not found.columns:
            return []
        return [
            f"{found.placed} of {counted(found.columns)} can be rebuilt on other members now"
            + ("" if found.placed == found.columns else "; for the others a member must be added")
        ]

    async def _lose(self, entry: MemberEntry, request: MemberFailRequest) -> None:
        state = "offline" if request.offline else "failed"
        reason = request.reason or f"{state} by the administrator"
        if self.online_now(entry.id):
            await self.store.losses.fail_member(entry.id, reason, expected=request.offline)
        else:
            await self.change(entry.id, state=state)
        if request.offline:
            self.note("MemberOffline", entry.id, entry.path)

    async def online(self, request: MemberOnlineRequest) -> Plan:
        entry = require_entry(self.label.members, request.member, request.cwd)
        if self.online_now(entry.id):
            if entry.role in ("leaving", "evacuating"):
                raise UsageError(
                    f"member {entry.id} is online, and being emptied; `member evacuate --cancel`"
                    " gives that up"
                )
            raise UsageError(f"member {entry.id} ({entry.path}) is online; nothing to do")
        path = os.path.normpath(os.path.join(request.cwd, request.path)) if request.path else ""
        if path and self.mountpoint is not None:
            mounts.check_apart(self.mountpoint, [path])
        source = next(iter(self.store.assembly.members.values()))
        label = self.label

        try:
            member: Member = await self.store.offload(
                open_back, label, entry, source.path, path, source.direct
            )
        except NotBelieved as error:
            if not request.dry_run:
                self.note("MemberRefused", entry.id, str(error))
            raise
        columns = self.membership.columns_of(entry.id)
        said = [f"member {entry.id} is back at {member.path}; {counted(columns)} lie on it"]
        answer = MemberAnswer("online", False, said, [], [entry.id], columns)
        if request.dry_run:
            await self.store.offload(member.close)
            return Plan(answer)
        return Plan(answer, lambda turn: self._take_back(entry, member, turn))

    async def _take_back(self, entry: MemberEntry, member: Member, turn: Turn) -> None:
        store = self.store
        try:
            believed = await self.membership.back(entry.id, member, turn.progress)
        except BaseException:
            if store.assembly.members.get(entry.id) is not member:
                with trio.CancelScope(shield=True):
                    await store.offload(member.close)
            raise
        zones = store.space.zones.values()
        stale = [
            (zone, column)
            for zone in zones
            for column in zone.missed
            if zone.map.columns[column][0] == entry.id
        ]
        nbytes = sum(zone.fill - min(zone.missed[c], zone.fill) for zone, c in stale)
        nbytes *= store.cell_bytes
        text = f"member {entry.id} is in use again, at {member.path}"
        if not believed:
            text += "; it is older than when it was lost, so nothing that it holds is believed"
        turn.said = [text]
        if stale:
            turn.said.append(f"{counted(len(stale))} lack {size_text(nbytes)}, which are rebuilt")
        self.note("MemberBack", entry.id, "; ".join(turn.said))
