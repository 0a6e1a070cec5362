"""Which snapshots a group has, as all its members tell it, and which of them are whole.

Words: *part*: a volume's snapshot of a group snapshot. A group snapshot is *complete* if each of
those that took part in it, and are members still, has its part; *INCOMPLETE* if one has none any
more, as after `snapshot delete --force`.

 1. Who can't be reached, or doesn't answer in time, is not guessed at: "unknown".
 2. Members are asked piece by piece, so no answer is longer than PIECE_BYTES, or than one part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_requests import (
    GroupListed,
    GroupListRequest,
    GroupPartTold,
    GroupSnapshotTold,
)
from raidfs.errors import NoSuchSnapshot
from raidfs.group.charter import HOLDS_MAX, PARTS_AT_ONCE, Charter, Part, PartsAsked, PartsTold
from raidfs.group.messages import Kept, PreparedKept
from raidfs.store.snapshot_rows import Snapshot
from raidfs.store.snapshots import PREPARED, TOOK_PART

ANSWER_S = 10.0
PIECE_BYTES = 128 << 10
Hearer = Callable[[str, object], None]


@dataclass(slots=True)
class Whole:
    """One group snapshot. `parts`: by volume, as told. `members`: who took part."""

    id: bytes
    name: str
    created_ns: int
    parts: dict[str, Part] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    @property
    def holds(self) -> tuple[str, ...]:
        """Of all its parts."""
        return tuple(sorted({tag for part in self.parts.values() for tag in part.holds}))

    @property
    def is_committed(self) -> bool:
        """Somebody has it for all to see."""
        return any(not part.pending for part in self.parts.values())

    def told(self, charter: Charter, answered: Iterable[str]) -> tuple[GroupPartTold, ...]:
        """Who has what."""
        known = set(answered)
        found = []
        for volume in sorted(self.members | self.missing | set(self.parts)):
            part = self.parts.get(volume)
            if part is not None:
                state = "pending" if part.pending else "here"
            elif volume in self.missing:
                state = "left out"
            elif charter.member(volume) is None:
                state = "left the group"
            else:
                state = "LACKING" if volume in known else "away"
            epoch = part.epoch if part else 0
            found.append(GroupPartTold(volume, charter.called(volume), state, epoch))
        return tuple(found)


def state_of(parts: Iterable[GroupPartTold]) -> str:
    """Of a group snapshot as a whole."""
    states = {part.state for part in parts}
    if "LACKING" in states:
        return "INCOMPLETE"
    return "unknown" if "away" in states else "complete"


def merged(told: dict[str, list[Part]]) -> list[Whole]:
    """All group snapshots, oldest first, from what each volume has told."""
    found: dict[bytes, Whole] = {}
    for volume, parts in told.items():
        for part in parts:
            made = Whole(part.snapshot, part.name, part.created_ns)
            whole = found.setdefault(part.snapshot, made)
            whole.parts[volume] = part
            whole.members |= set(part.members)
            whole.missing |= set(part.missing)
    order = sorted(found.values(), key=lambda one: (one.created_ns, one.name))
    return [whole for whole in order if whole.is_committed]


class GroupCatalogue:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, seen_at: str) -> None:
        self.group = group
        self.store = group.store
        self._seen_at = seen_at
        self._answers: dict[bytes, list[PartsTold]] = {}

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {GroupListRequest: self._list}

    def hearers(self) -> dict[type, Hearer]:
        """By the message that each takes."""
        return {PartsAsked: self._asked, PartsTold: self._told}

    # -- what is here -----------------------------------------------------------------------------

    def own(self, after: int = 0) -> list[Part]:
        """This volume's parts of later epochs, in their order."""
        kept = {
            group_id: msgspec.msgpack.decode(value, type=Kept)
            for group_id, kind, value in self.store.meta.kept()
            if kind in (PREPARED, TOOK_PART)
        }
        snapshots = self.store.group_snapshots
        rows = {
            **{number: row for number, row in snapshots.hidden().items() if number in kept},
            **snapshots.visible(),
        }
        order = sorted(rows.items(), key=lambda pair: pair[1].epoch)
        return [_part(*pair, kept.get(pair[0])) for pair in order if pair[1].epoch > after]

    def _asked(self, peer: str, message: object) -> None:
        assert isinstance(message, PartsAsked)
        parts, size = self.own(message.after), 0
        piece: list[Part] = []
        for part in parts:
            size += len(msgspec.msgpack.encode(part))
            if piece and (size > PIECE_BYTES or len(piece) == PARTS_AT_ONCE):
                break
            piece.append(part)
        last = len(piece) == len(parts)
        self.group.send(peer, PartsTold(message.number, tuple(piece), last))

    # -- what is elsewhere ------------------------------------------------------------------------

    def _told(self, peer: str, message: object) -> None:
        assert isinstance(message, PartsTold)
        if message.number in self._answers:
            self._answers[message.number].append(message)
            self.group.changed()

    async def _ask(self, peer: str, told: dict[str, list[Part]]) -> None:
        parts: list[Part] = []
        while True:
            number = os.urandom(16)
            answers = self._answers[number] = []
            try:
                after = parts[-1].epoch if parts else 0
                if not self.group.send(peer, PartsAsked(number, after)):
                    return
                await self.group.until(lambda answers=answers: bool(answers))  # type: ignore[misc]
            finally:
                del self._answers[number]
            (answer,) = answers
            parts += answer.parts
            if answer.last or not answer.parts:
                told[peer] = parts
                return

    async def everywhere(self) -> dict[str, list[Part]]:
        """By volume, of all that answered."""
        told = {self.group.me: self.own()}
        charter = self.group.must_be_in()
        away = self.group.away()
        with trio.move_on_after(ANSWER_S):
            async with trio.open_nursery() as nursery:
                for peer in charter.roster.members:
                    if peer != self.group.me and peer not in away:
                        nursery.start_soon(self._ask, peer, told)
        return told

    # -- who asks ---------------------------------------------------------------------------------

    async def _list(self, request: GroupListRequest) -> GroupListed:
        found = await self._everywhere() if request.everywhere else self._here()
        chosen = [one for one in found if request.name in ("", one.name)]
        if request.name and not chosen:
            raise NoSuchSnapshot(
                f"there is no group snapshot {request.name!r}; see raidfs-ctl group list"
            )
        charter = self.group.charter
        volume = self.store.assembly.label.volume_name
        return GroupListed(charter.name if charter else "", volume, chosen)

    def _here(self) -> list[GroupSnapshotTold]:
        return [
            GroupSnapshotTold(
                group_id.hex(),
                row.name,
                row.created_ns,
                row.epoch,
                row.holds,
                f"{self._seen_at}/{row.name}",
            )
            for group_id, row in self.store.group_snapshots.visible().items()
        ]

    async def _everywhere(self) -> list[GroupSnapshotTold]:
        told = await self.everywhere()
        charter = self.group.must_be_in()
        found = []
        for whole in merged(told):
            mine = whole.parts.get(self.group.me)
            parts = whole.told(charter, told)
            path = f"{self._seen_at}/{mine.name}" if mine and not mine.pending else ""
            found.append(
                GroupSnapshotTold(
                    whole.id.hex(), whole.name, whole.created_ns, mine.epoch if mine else 0,
                    whole.holds, path, state_of(parts), parts,
                )
            )  # fmt: skip
        return found


def _part(group_id: bytes, row: Snapshot, kept: object) -> Part:
    members: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    if isinstance(kept, PreparedKept):
        members, missing = kept.members, kept.plan.missing
    name = row.note if row.internal else row.name
    return Part(
        group_id, name, row.created_ns, row.epoch, row.holds[:HOLDS_MAX],
        members, missing, row.internal,
    )  # fmt: skip
