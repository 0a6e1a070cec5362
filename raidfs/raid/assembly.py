"""From one member named to an open set of members that are believed, and its changes.

 1. `open` holds a lock on every believed member, and decided by labels read under those locks.
 2. A change of membership is a new generation, written to both copies of the label of every member
    that stays; it has happened once all have it. A member that fails meanwhile leaves in the next.
 3. Nothing is written to a member before the losses with which the volume newly runs are recorded
    (`settle`). `open` does that itself unless the assembly is read-only or doubtful.
 4. A read-only assembly writes nothing, ever.

A *doubtful* assembly lost more members than the code survives wherever they are, but perhaps not
these. Whoever opened it looks at the zones (`Code.survives` for each) and then calls `settle`, or
refuses.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import msgspec

from raidfs.errors import Divergent, LabelError, MemberError, NotEnoughMembers
from raidfs.raid.code import Code, code_for
from raidfs.raid.decision import BELIEVED, NEW_LOSS, Decision, Listed, Observation, decide, seen_as
from raidfs.raid.finding import Found, find_members
from raidfs.raid.label import (
    HISTORY_MAX,
    LABEL_BYTES,
    LABEL_COPIES,
    Label,
    MemberEntry,
    Parameters,
    encode_label,
    read_copies,
    read_labels,
)
from raidfs.raid.member import Member
from raidfs.raid.places import open_member

RandomBytes = Callable[[int], bytes]
JOINING = "it was being added when raidfs was stopped"  # the reason in the line of a new member


class Assembly:
    """label: the newest, as the first believed member holds it. lost: why, by member id."""

    def __init__(
        self,
        label: Label,
        members: dict[int, Member],
        lost: dict[int, str],
        *,
        read_only: bool = False,
        doubtful: bool = False,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        self.label = label
        self.members = members
        self.lost = lost
        self.known_lost = frozenset(e.id for e in label.members if e.state == "failed")  # before
        self.read_only = read_only
        self.doubtful = doubtful
        self.zones_survive: Callable[[set[int]], bool] | None = None  # whoever knows; any thread
        self._expected: set[int] = set()  # lost ones that are expected back: they are "offline"
        self._random_bytes = random_bytes
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        source: str,
        *,
        degraded: bool = False,
        read_only: bool = False,
        direct: bool = False,
        extra_paths: Iterable[str] = (),
        random_bytes: RandomBytes = os.urandom,
    ) -> Assembly:
        """Find, lock and judge the members of the volume that `source` belongs to. direct: their
        columns are read and written past the page cache.

        MemberError, MemberBusy, LabelMissing, LabelError: of `source`. NotEnoughMembers, Divergent:
        by the decision tables. UsageError: a copy of a member, a path of another volume, a member
        that can't be used with `direct`.
        """
        found = find_members(source, extra_paths)
        members = _open_found(found, read_only=read_only, direct=direct)
        return cls._judge(
            found, members, degraded=degraded, read_only=read_only, random_bytes=random_bytes
        )

    @classmethod
    def of_members(
        cls,
        members: Iterable[Member],
        *,
        degraded: bool = False,
        read_only: bool = False,
        random_bytes: RandomBytes = os.urandom,
    ) -> Assembly:
        """The same judgement of members that are open already, all of one volume."""
        found, opened = Found(), dict[int, Member]()
        for member in members:
            label = read_labels(member)
            found.labels[label.member_id] = label
            found.paths[label.member_id] = member.path
            opened[label.member_id] = member
        for entry in found.newest.members:
            if entry.id not in opened:
                found.problems[entry.id] = f"not found at {entry.path}"
        return cls._judge(
            found, opened, degraded=degraded, read_only=read_only, random_bytes=random_bytes
        )

    @classmethod
    def _judge(
        cls,
        found: Found,
        members: dict[int, Member],
        *,
        degraded: bool,
        read_only: bool,
        random_bytes: RandomBytes,
    ) -> Assembly:
        """What the labels make of these open members; closes those that aren't believed."""
        try:
            newest = found.newest
            decision = _decide(found, degraded=degraded)
            _refuse(found, decision)
            believed = decision.having(BELIEVED)
            for member_id in [m for m in members if m not in believed]:
                members.pop(member_id).close()
            for member_id, member in members.items():
                member.adopt(newest.for_member(member_id))
            assembly = cls(
                newest.for_member(believed[0]),
                {member_id: members[member_id] for member_id in believed},
                _reasons(found, decision),
                read_only=read_only,
                doubtful=decision.outcome == "ask_zones",
                random_bytes=random_bytes,
            )
            if not (read_only or assembly.doubtful):
                assembly.settle()
        except BaseException:
            for member in members.values():
                member.close()
            raise
        return assembly

    @property
    def code(self) -> Code:
        """The code that new zones have while no member is lost."""
        return code_for(self.label.parameters.level, self.label.parameters.width)

    @property
    def tolerance(self) -> int:
        """Losses that are survived wherever they fall, as far as labels alone can tell."""
        return 0 if self.label.parameters.uneven else self.code.tolerance

    def settle(self) -> None:
        """Record new losses and moved members; bring labels up to date that a crash left behind.

        NotEnoughMembers if more members fail at it than can be lost.
        """
        assert not self.read_only
        with self._lock:
            self.doubtful = False
            table = [self._updated(entry) for entry in self.label.members]
            most = max(self.tolerance, len(self.lost))
            if table != self.label.members:
                self._advance(table, most)
                return
            failed: dict[int, str] = {}
            for member_id, member in self.members.items():
                mine = self.label.for_member(member_id)
                try:
                    if read_copies(member) != [mine] * LABEL_COPIES:
                        _write_copies({member_id: member}, self.label)
                except MemberError as error:
                    failed[member_id] = str(error)
            if failed:
                self._leave(failed, most)

    def fail(
        self, member_id: int, reason: str, *, zones_survive: bool = False, expected: bool = False
    ) -> set[int]:
        """The member leaves the volume: it is closed, and the others' labels say so on return.

        Returns all members that left by it (writing the labels may show that others are broken
        too); empty if it had left before. NotEnoughMembers if more would be lost than the code
        always survives, unless `zones_survive` says that all zones were looked at: then nothing
        was changed, and the labels go on saying that the member's data is good, which it is.
        `expected`: it is to come back, so the labels say "offline".
        """
        with self._lock:
            if member_id not in self.members:
                return set()
            if expected:
                self._expected.add(member_id)
            most = self.tolerance
            if zones_survive:
                most = max(most, len(self.lost) + 1)
            try:
                return self._leave({member_id: reason}, most)
            finally:
                self._expected.discard(member_id)

    # -- changes that an administrator wants ------------------------------------------------------

    def retable(
        self,
        table: list[MemberEntry],
        parameters: Parameters | None = None,
        next_member: int = 0,
    ) -> set[int]:
        """Another table, or other parameters, as a new generation. Returns members that left by it,
        as `fail`. UsageError: the label can't hold that; nothing was changed."""
        with self._lock:
            new = msgspec.structs.replace(
                self.label,
                member_id=next(iter(self.members)),
                members=table,
                parameters=parameters or self.label.parameters,
                next_member=max(next_member, self.label.next_member),
            )
            encode_label(new)
            before = set(self.members)
            self.label = new
            self._advance(table, max(self.tolerance, len(self.lost)))
            return before - set(self.members)

    def enroll(self, entries: list[MemberEntry]) -> set[int]:
        """New lines of the table, that nobody believes yet. Their ids begin at `next_member`."""
        waiting = [
            msgspec.structs.replace(entry, state="offline", reason=JOINING) for entry in entries
        ]
        following = max(entry.id for entry in entries) + 1
        return self.retable([*self.label.members, *waiting], next_member=following)

    def activate(self, member_id: int, member: Member) -> set[int]:
        """The member is believed from here on: it is open, locked, and holds what the others do. It
        gets the new label first: wherever a crash comes, it either has that, and so is believed by
        whoever finds it, or isn't listed as believed anywhere. MemberError of its own: nothing has
        changed, but perhaps one of its copies; so let another generation follow, before it misses
        anything. Returns members that left by it."""
        with self._lock:
            assert member_id not in self.members
            table = [
                msgspec.structs.replace(
                    entry, state="active", reason="", path=member.path, kind=member.kind
                )
                if entry.id == member_id
                else entry
                for entry in self.label.members
            ]
            before = set(self.members)
            reason = self.lost.pop(member_id, None)
            self.members[member_id] = member
            try:
                most = max(self.tolerance, len(self.lost))
                self._advance(table, most, first=member_id)
            except MemberError:
                del self.members[member_id]
                if reason is not None:
                    self.lost[member_id] = reason
                raise
            return before - set(self.members)

    def withdraw(self, member_id: int) -> set[int]:
        """The line goes, and with it, in the same generation, that others replace it; if the member
        is there, its label goes as well, and it is closed. Returns members that left by it."""
        with self._lock:
            member = self.members.pop(member_id, None)
            self.lost.pop(member_id, None)
            rest = [each for each in self.label.members if each.id != member_id]
            left = self.retable(without_heirs(rest, member_id))
            if member is not None:
                with contextlib.suppress(MemberError):  # nobody knows it any more in any case
                    for copy in range(LABEL_COPIES):
                        member.write_label(copy, bytes(LABEL_BYTES))
                member.close()
            return left

    def check_copies(self, *, heal: bool) -> tuple[dict[int, int], dict[int, str]]:
        """How many copies of each member's label aren't what they should be, by member; if asked,
        they are written anew, and the other is what went wrong at that."""
        wrong: dict[int, int] = {}
        failed: dict[int, str] = {}
        with self._lock:
            for member_id, member in self.members.items():
                mine = self.label.for_member(member_id)
                try:
                    count = sum(copy != mine for copy in read_copies(member))
                except MemberError:
                    count = LABEL_COPIES
                if count:
                    wrong[member_id] = count
                    if heal:
                        failed.update(_write_copies({member_id: member}, self.label))
        return wrong, failed

    def close(self) -> None:
        """Close all members, and so release their locks."""
        with self._lock:
            for member in self.members.values():
                member.close()

    def _leave(self, failed: dict[int, str], most: int) -> set[int]:
        self._afford(failed, most)
        before = set(self.members)
        leaving = [self.members.pop(member_id) for member_id in failed]
        self.lost.update(failed)
        try:
            if not self.read_only:
                self._advance([self._updated(entry) for entry in self.label.members], most)
        finally:
            for member in leaving:
                member.close()
        return before - set(self.members)

    def _afford(self, failed: dict[int, str], most: int) -> None:
        """NotEnoughMembers if these can't be lost on top of those that are."""
        over = len(self.lost) + len(failed) > most
        if over and self.zones_survive is not None:
            over = not self.zones_survive({*self.lost, *failed})
        if over or len(failed) >= len(self.members):
            raise NotEnoughMembers(
                f"volume {self.label.volume_name} can't go on without "
                f"{', '.join(f'member {m} ({reason})' for m, reason in failed.items())}: "
                f"{len(self.lost)} of its members are lost already; mend the cause and mount again"
            )

    def _updated(self, entry: MemberEntry) -> MemberEntry:
        """The entry as it should be now."""
        member = self.members.get(entry.id)
        if member is not None:
            return msgspec.structs.replace(entry, path=member.path, kind=member.kind)
        if not entry.is_current:
            return entry
        reason = self.lost.get(entry.id, "")[:200]
        state: Literal["failed", "offline"] = "offline" if entry.id in self._expected else "failed"
        return msgspec.structs.replace(entry, state=state, reason=reason)

    def _advance(self, table: list[MemberEntry], most: int, first: int | None = None) -> None:
        """Promise 2. Each turn ends or loses a member; NotEnoughMembers rather than losing more
        than `most`. Those that then have an older label count as interrupted, so as good. `first`:
        that one gets it before all others; MemberError if it can't, and nothing has changed."""
        before = self.label
        while True:
            generation = self.label.generation + 1
            generation_id = self._random_bytes(8).hex()
            self.label = msgspec.structs.replace(
                self.label,
                member_id=next(iter(self.members)),
                generation=generation,
                generation_id=generation_id,
                history=[*self.label.history, (generation, generation_id)][-HISTORY_MAX:],
                members=table,
            )
            if first is not None:
                failed = _write_copies({first: self.members[first]}, self.label)
                if failed:  # who comes next descends from what it may have
                    self.label = msgspec.structs.replace(self.label, members=before.members)
                    raise MemberError(failed[first], self.members[first].path)
                first = None
            failed = _write_copies(self.members, self.label)
            if not failed:
                return
            self._afford(failed, most)
            for member_id, reason in failed.items():
                self.members.pop(member_id).close()
                self.lost[member_id] = reason
            table = [self._updated(entry) for entry in table]


def without_heirs(table: list[MemberEntry], member_id: int) -> list[MemberEntry]:
    """Nobody replaces that member."""
    return [
        msgspec.structs.replace(each, replaces=-1) if each.replaces == member_id else each
        for each in table
    ]


def _write_copies(members: dict[int, Member], label: Label) -> dict[int, str]:
    """Both copies on each member, members in parallel; what went wrong by member id."""
    data = {member_id: encode_label(label.for_member(member_id)) for member_id in members}
    failed: dict[int, str] = {}

    def write(member_id: int) -> None:
        try:
            for copy in range(LABEL_COPIES):
                members[member_id].write_label(copy, data[member_id])
        except MemberError as error:
            failed[member_id] = str(error)

    with ThreadPoolExecutor(len(members)) as pool:
        list(pool.map(write, members))
    return failed


def _open_found(found: Found, *, read_only: bool, direct: bool) -> dict[int, Member]:
    """Open and lock what was found, and read the labels again. MemberBusy, UsageError."""
    members: dict[int, Member] = {}
    try:
        for member_id, path in list(found.paths.items()):
            try:
                member = open_member(path, read_only=read_only, lock=True, direct=direct)
            except (MemberError, LabelError) as error:
                _forget(found, member_id, str(error))
                continue
            members[member_id] = member
            label = read_labels(member)
            if (label.volume_id, label.member_id) == (found.newest.volume_id, member_id):
                found.labels[member_id] = label
            else:
                members.pop(member_id).close()
                _forget(found, member_id, f"{path} was changed by another program just now")
        if not members:
            raise MemberError(next(iter(found.problems.values())))
    except BaseException:
        for member in members.values():
            member.close()
        raise
    return members


def _forget(found: Found, member_id: int, why: str) -> None:
    """What was found can't be used after all. Its label still says what is newest."""
    found.problems[member_id] = why
    found.corrupt.add(member_id)


def _decide(found: Found, *, degraded: bool) -> Decision:
    newest = found.newest
    observations = {}
    for entry in newest.members:
        label = found.labels.get(entry.id)
        if entry.id in found.corrupt:
            observations[entry.id] = Observation("corrupt", _listed_as(entry))
        elif label is None:
            observations[entry.id] = Observation("absent", _listed_as(entry))
        else:
            observations[entry.id] = Observation(seen_as(label, newest), _listed_as(entry))
    code = code_for(newest.parameters.level, newest.parameters.width)
    # Zones made after a loss avoid the lost member, and survive others on top of it.
    avoided = any(not entry.is_current for entry in newest.members)
    uneven = newest.parameters.uneven
    many = len(newest.members) > code.width
    return decide(
        observations,
        tolerance=0 if uneven else code.tolerance,
        may_survive_more=code.may_survive_more or avoided or uneven or many,
        degraded=degraded,
    )


def _listed_as(entry: MemberEntry) -> Listed:
    return "active" if entry.is_current else "failed"


def _reasons(found: Found, decision: Decision) -> dict[int, str]:
    """Why each member that isn't believed isn't."""
    reasons = {}
    for entry in found.newest.members:
        if decision.verdicts[entry.id] in BELIEVED:
            continue
        reasons[entry.id] = found.problems.get(entry.id, "")
        if not entry.is_current:
            reasons[entry.id] = entry.reason or entry.state
    return reasons


def _refuse(found: Found, decision: Decision) -> None:
    """Raise what the outcome calls for, in words for an administrator."""
    newest = found.newest
    name = newest.volume_name
    reasons = _reasons(found, decision)
    if decision.outcome == "refused_divergent":
        raise Divergent(_divergent_text(found, decision))
    if decision.outcome == "refused_lost":
        code = code_for(newest.parameters.level, newest.parameters.width)
        raise NotEnoughMembers(
            f"volume {name} lost {len(reasons)} members and level {code.level} survives "
            f"{code.tolerance}: {_listed(found, reasons)}; bring back members that still hold "
            "their data"
        )
    if decision.outcome == "needs_degraded":
        missing = {m: reasons[m] for m in decision.having(NEW_LOSS)}
        raise NotEnoughMembers(
            f"volume {name} would newly run without {_listed(found, missing)}; bring it back, or "
            "mount with -o degraded to go on without it"
        )
    if not decision.having(BELIEVED):
        raise NotEnoughMembers(f"volume {name} has no usable member: {_listed(found, reasons)}")


def _listed(found: Found, reasons: dict[int, str]) -> str:
    parts = []
    for member_id, reason in reasons.items():
        path = found.newest.entry(member_id).path
        parts.append(f"member {member_id} ({reason if path in reason else f'{path}: {reason}'})")
    return ", ".join(parts)


def _divergent_text(found: Found, decision: Decision) -> str:
    newest = found.newest
    apart = decision.having(frozenset({"divergent"}))
    ours = sorted(set(found.labels) - set(apart))
    one = ", ".join(found.paths[m] for m in ours)
    other = ", ".join(found.paths[m] for m in apart)
    return (
        f"volume {newest.volume_name} was changed in two parts that did not know of each other: "
        f"{one} (generation {newest.generation}) and {other} (generation "
        f"{max(found.labels[m].generation for m in apart)}); choose the part to keep and unplug "
        "or rename the other before mounting"
    )
