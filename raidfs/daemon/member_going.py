"""Members that go, in order: removed, emptied, replaced. See members.py.

What is on them is copied, or rebuilt if they are lost already, by the mender in the background.
"""

from __future__ import annotations

import msgspec

from raidfs.daemon.member_changes import Changes, Plan, Turn, moving, named, places_of
from raidfs.daemon.member_plans import (
    Fit,
    changed,
    fit,
    require_fit,
    require_width,
    usable_bytes,
)
from raidfs.daemon.member_requests import (
    MemberAnswer,
    MemberEvacuateRequest,
    MemberRemoveRequest,
    MemberReplaceRequest,
    find_entry,
    require_entries,
)
from raidfs.errors import UsageError
from raidfs.raid.create import size_text
from raidfs.raid.label import MemberEntry
from raidfs.store.works import Works


class Going(Changes):
    """See the module."""

    @property
    def works(self) -> Works:
        return self.store.mender.works

    # -- remove, evacuate -------------------------------------------------------------------------

    async def remove(self, request: MemberRemoveRequest) -> Plan:
        going = require_entries(self.label.members, request.members, request.cwd)
        names, ids = named(going), {entry.id for entry in going}
        rest = [entry for entry in self.label.members if entry.id not in ids]
        if not any(self.online_now(entry.id) for entry in rest):
            raise UsageError(f"{names} is all that is left of the volume; nothing would remain")
        what = f"removing {names}"
        found = self._require_going(going, rest, what)
        before = usable_bytes(self.store, self.label.members)
        after = usable_bytes(self.store, rest)
        said = [f"{names} will be no member of {self.label.volume_name} any more"]
        said.append(moving(found.columns, found.nbytes))
        said.append(f"usable size: {size_text(before)} before, {size_text(after)} after")

        async def act(turn: Turn) -> None:
            turn.said = []
            for entry in going:
                await self._let_go(entry, turn)

        return Plan(
            MemberAnswer(
                "remove", False, said, [], sorted(ids), found.columns, found.nbytes,
                (before, after), jobs=_jobs(going, found.columns),
            ),
            act,
        )  # fmt: skip

    def _require_going(self, going: list[MemberEntry], rest: list[MemberEntry], what: str) -> Fit:
        """They fit on the rest, and zones can be as wide as before."""
        if any(entry.role == "data" for entry in going):
            require_width(self.store, rest, what)
        found = fit(self.store, {entry.id for entry in going})
        require_fit(self.store, what, found)
        return found

    async def _let_go(self, entry: MemberEntry, turn: Turn) -> None:
        await self.change(entry.id, role="leaving")
        await self.membership.tidy()
        if any(each.id == entry.id for each in self.label.members):
            turn.said.append(f"member {entry.id} ({entry.path}) is being emptied, then removed")
            if self.left([entry.id])[0]:
                self.works.evacuates(entry.id, f"{entry.path} is to be removed")
        else:
            turn.said.append(f"member {entry.id} ({entry.path}) is no member any more")

    async def evacuate(self, request: MemberEvacuateRequest) -> Plan:
        chosen = require_entries(self.label.members, request.members, request.cwd)
        if request.cancel:
            return self._stay(chosen)
        names, ids = named(chosen), {entry.id for entry in chosen}
        for entry in chosen:
            if entry.role == "leaving":
                raise UsageError(f"member {entry.id} is being emptied already, to be removed")
        rest = [entry for entry in self.label.members if entry.id not in ids]
        found = self._require_going(chosen, rest, f"emptying {names}")
        said = [f"{names} will be empty, and get nothing new", moving(found.columns, found.nbytes)]

        async def act(turn: Turn) -> None:
            for entry in chosen:
                await self.change(entry.id, role="evacuating")
                columns, nbytes = self.left([entry.id])
                if columns:
                    self.works.evacuates(entry.id, moving(columns, nbytes))

        answer = MemberAnswer("evacuate", False, said, [], sorted(ids), found.columns, found.nbytes)
        return Plan(msgspec.structs.replace(answer, jobs=_jobs(chosen, found.columns)), act)

    def _stay(self, chosen: list[MemberEntry]) -> Plan:
        """Ordinary members again; nobody replaces them."""
        for entry in chosen:
            if entry.role not in ("leaving", "evacuating"):
                raise UsageError(f"member {entry.id} ({entry.path}) is not being emptied")
        ids = {entry.id for entry in chosen}

        async def act(turn: Turn) -> None:
            for entry in chosen:
                self.works.give_up(entry.id)
            for entry in self.label.members:
                if entry.replaces in ids:
                    await self.change(entry.id, replaces=-1)
            for entry in chosen:
                await self.change(entry.id, role="data")

        said = [f"{named(chosen)} will stay, with what has not been moved yet"]
        return Plan(MemberAnswer("evacuate", False, said, [], sorted(ids)), act)

    # -- replace ----------------------------------------------------------------------------------

    async def replace(self, request: MemberReplaceRequest) -> Plan:
        table = self.label.members
        olds = require_entries(table, [old for old, _ in request.pairs], request.cwd)
        spares, places = dict[int, MemberEntry](), list[tuple[MemberEntry, str]]()
        for old, (_, word) in zip(olds, request.pairs, strict=True):
            spare = self._heir(old, word, request.cwd)
            if spare is None:
                places.append((old, word))
            elif spare.id in {each.id for each in spares.values()}:
                raise UsageError(f"member {spare.id} ({spare.path}) was named twice")
            else:
                spares[old.id] = spare
        entries = await self._new_heirs(places, request)
        heirs = {**spares, **dict(zip([old.id for old, _ in places], entries, strict=True))}
        said, warned = [], list[str]()
        for old in olds:
            said.append(self._require_large(old, heirs[old.id]))
        if request.force and entries:
            warned.append(f"all that is on {places_of(entries)} now will be lost")
        rest = [each for each in table if each.id not in {old.id for old in olds}]
        rest = [*rest, *(changed([heir], {heir.id}, role="data")[0] for heir in heirs.values())]
        before, after = usable_bytes(self.store, table), usable_bytes(self.store, rest)
        if after < before:
            warned.append(
                f"the usable size goes from {size_text(before)} down to {size_text(after)}"
            )
        columns, nbytes = self.left(old.id for old in olds)

        async def act(turn: Turn) -> None:
            for old in olds:
                await self._succeed(old, heirs[old.id], turn)

        answer = MemberAnswer(
            "replace", False, said, warned, [old.id for old in olds], columns, nbytes,
            (before, after), jobs=[f"replace:{old.id}" for old in olds] if columns else [],
        )  # fmt: skip
        return Plan(answer, act)

    def _heir(self, old: MemberEntry, word: str, cwd: str) -> MemberEntry | None:
        """NEW as a member that there is; None: it is a place."""
        found = find_entry(self.label.members, word, cwd)
        if found is None or (found.id == old.id and not old.is_current):
            return None  # another one in the place of one that was lost
        if found.id == old.id:
            raise UsageError(f"member {old.id} can't replace itself")
        if found.replaces == old.id:
            return found  # asked for again
        if found.role != "spare" or self.membership.columns_of(found.id):
            raise UsageError(
                f"member {found.id} ({found.path}) is in use; what takes the place of another must"
                " be a spare, or a place that is no member yet"
            )
        if not self.online_now(found.id):
            raise UsageError(f"spare {found.id} ({found.path}) is not there: it is lost itself")
        return found

    async def _new_heirs(
        self, places: list[tuple[MemberEntry, str]], request: MemberReplaceRequest
    ) -> list[MemberEntry]:
        if not places:
            return []
        entries = await self.places(
            [path for _, path in places],
            request.cwd,
            size_bytes=request.size_bytes or None,
            replaces=[old.id for old, _ in places],
            force=request.force,
        )
        return [
            msgspec.structs.replace(entry, domain=old.domain)
            for entry, (old, _) in zip(entries, places, strict=True)
        ]

    def _require_large(self, old: MemberEntry, new: MemberEntry) -> str:
        """What will happen, or UsageError: it is too small."""
        columns, column = self.membership.columns_of(old.id), self.store.parameters.zone_bytes
        if new.slots < columns:
            raise UsageError(
                f"{new.path} is too small: it has room for {new.slots} columns"
                f" ({size_text(new.slots * column)}) and member {old.id} holds {columns}"
                f" ({size_text(columns * column)}); use a larger one"
            )
        how = "copied" if self.online_now(old.id) else "rebuilt from the others"
        return (
            f"{new.path} takes the place of member {old.id} ({old.path}), whose {columns} columns"
            f" are {how} onto it; then {old.id} is no member any more"
        )

    async def _succeed(self, old: MemberEntry, heir: MemberEntry, turn: Turn) -> None:
        """The heir first: from there on it is clear who gets what, wherever a crash comes."""
        if not any(each.id == heir.id for each in self.label.members):
            await self.join(heir, turn)
        else:
            await self.change(heir.id, role="data", replaces=old.id)
        if old.state == "offline":  # nobody waits for it any more
            await self.change(old.id, state="failed")
        await self.change(old.id, role="leaving")
        await self.membership.tidy()


def _jobs(entries: list[MemberEntry], columns: int) -> list[str]:
    return [f"evacuate:{entry.id}" for entry in entries] if columns else []
