"""New members, spares and failure domains: see members.py."""

from __future__ import annotations

from raidfs.daemon.member_changes import Changes, Plan, Turn, counted, places_of
from raidfs.daemon.member_plans import changed, require_width, usable_bytes
from raidfs.daemon.member_requests import (
    MemberAddRequest,
    MemberAnswer,
    MemberDomainRequest,
    MemberPolicyRequest,
    MemberSpareRequest,
    find_entry,
    require_entry,
)
from raidfs.errors import UsageError
from raidfs.raid.create import check_domain, size_text
from raidfs.raid.label import MemberEntry

POLICIES = {
    "auto": "a hot spare takes its place; without one, all members with room share its columns",
    "spare": "a hot spare takes its place; without one, nothing is rebuilt until you say where",
    "manual": "nothing is rebuilt until you say where (`member replace`)",
}


class Coming(Changes):
    """See the module."""

    async def add(self, request: MemberAddRequest) -> Plan:
        role = "spare" if request.spare else "data"
        entries = await self.places(
            request.paths,
            request.cwd,
            role=role,
            domain=check_domain(request.domain),
            size_bytes=request.size_bytes or None,
            force=request.force,
        )
        return self.joining("add", entries, request.force)

    def joining(self, verb: str, entries: list[MemberEntry], force: bool) -> Plan:
        """New ones that replace nobody."""
        before = usable_bytes(self.store, self.label.members)
        after = usable_bytes(self.store, [*self.label.members, *entries])
        said = [self.described(entry) for entry in entries]
        if entries[0].role == "data":
            said.append(f"usable size: {size_text(before)} before, {size_text(after)} after")
        warned = []
        if force:
            warned.append(f"all that is on {places_of(entries)} now will be lost")
        if entries[0].role == "data" and after == before:
            warned.append("the usable size stays as it is: the others are too small, or too few")

        async def act(turn: Turn) -> None:
            for entry in entries:
                await self.join(entry, turn)

        ids = [entry.id for entry in entries]
        return Plan(MemberAnswer(verb, False, said, warned, ids, usable_bytes=(before, after)), act)

    async def spare(self, request: MemberSpareRequest) -> Plan:
        entry = find_entry(self.label.members, request.word, request.cwd)
        if entry is None and request.data:
            entry = require_entry(self.label.members, request.word, request.cwd)
        if entry is None:
            entries = await self.places(
                [request.word],
                request.cwd,
                role="spare",
                domain=check_domain(request.domain),
                size_bytes=request.size_bytes or None,
                force=request.force,
            )
            return self.joining("spare", entries, request.force)
        role = "data" if request.data else "spare"
        if entry.role == role:
            what = "no spare" if request.data else "a spare already"
            raise UsageError(f"member {entry.id} ({entry.path}) is {what}; nothing to do")
        if not request.data:
            self._require_spare(entry)
        word = "an ordinary member, for new data" if request.data else "a spare"
        said = [f"member {entry.id} ({entry.path}) will be {word}"]
        before = usable_bytes(self.store, self.label.members)
        after = usable_bytes(self.store, changed(self.label.members, {entry.id}, role=role))
        said.append(f"usable size: {size_text(before)} before, {size_text(after)} after")

        async def act(turn: Turn) -> None:
            await self.change(entry.id, role=role)
            self.note("SpareRemoved" if request.data else "SpareAdded", entry.id, said[0])

        ids = [entry.id]
        return Plan(MemberAnswer("spare", False, said, [], ids, usable_bytes=(before, after)), act)

    def _require_spare(self, entry: MemberEntry) -> None:
        if not self.online_now(entry.id):
            raise UsageError(
                f"member {entry.id} ({entry.path}) is lost, so it is no help as a spare"
            )
        if columns := self.membership.columns_of(entry.id):
            raise UsageError(
                f"member {entry.id} ({entry.path}) holds {counted(columns)}, and a spare holds"
                f" none; empty it first: raidfs-ctl member evacuate MOUNTPOINT {entry.id}"
            )
        rest = [each for each in self.label.members if each.id != entry.id]
        if entry.role == "data":
            require_width(self.store, rest, f"making member {entry.id} a spare")

    async def domain(self, request: MemberDomainRequest) -> Plan:
        entry = require_entry(self.label.members, request.member, request.cwd)
        name = check_domain(request.name)
        if entry.domain == name:
            raise UsageError(f"member {entry.id} ({entry.path}) is there already; nothing to do")
        where = f"in domain {name}" if name else "in no domain"
        said = [f"member {entry.id} ({entry.path}) will be {where}"]
        domains = {each.id: each.domain for each in self.label.members if each.domain}
        domains[entry.id] = name
        shared = 0
        for zone in self.store.space.zones.values():
            of = [domains[m] for m, _ in zone.map.columns if domains.get(m)]
            shared += len(set(of)) < len(of)
        warned = []
        if shared:
            warned.append(
                f"{shared} zones that exist have two columns in one domain; new ones won't as long"
                " as there are enough domains, and `raidfs-ctl rebalance` moves the old ones"
            )

        async def act(turn: Turn) -> None:
            await self.change(entry.id, domain=name)

        return Plan(MemberAnswer("domain", False, said, warned, [entry.id]), act)

    async def policy(self, request: MemberPolicyRequest) -> Plan:
        mender = self.store.mender
        rebuild = request.rebuild or mender.settings.rebuild
        said = [f"{rebuild}: when a member is lost {POLICIES[rebuild]}"]

        async def act(turn: Turn) -> None:
            if request.rebuild:
                await mender.set(rebuild=request.rebuild)

        return Plan(MemberAnswer("policy", False, said), act)
