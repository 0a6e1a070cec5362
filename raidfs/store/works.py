"""What the mender has to do, told by member: how much it was, how much is left, and the events.

1. A work is there from when a member is first seen to have columns to be made until none is left.
   Its total is what there was at the beginning; what comes on top later counts as left, and takes
   nothing back of the part that was told to be done. A column that moved and lacks rows, which came
   meanwhile, belongs to the work that moved it.
2. A rebuild is told to have begun (RebuildStarted) when the first column really is: not when there
   is no place for any. Only then come Rebuild20 to Rebuild80, RebuildStalled (once for each
   reason), and at its end RebuildFinished, or RebuildStopped; SpareActive when who takes a member's
   place has all that was its. A member that is replaced while it is there is told so, too; one that
   just is to be empty has EvacuateStarted (by command, if it holds anything), EvacuateStalled and
   EvacuateFinished.
3. Each beginning and each end is told once, whatever crashes and mounts come between: the log of
   events itself says which works have begun and not ended. So who ended in the moment of a crash is
   told at the next mount, and who goes on there does not begin again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .tables import EVENTS_MAX

if TYPE_CHECKING:
    from ..raid.label import MemberEntry
    from .space import Zone
    from .store import Store
    from .tables import Event

STEP = 20  # percent
Kind = Literal["Rebuild", "Evacuate"]
KINDS: tuple[Kind, ...] = ("Rebuild", "Evacuate")


class _Started(msgspec.Struct):
    """What RebuildStarted keeps for later mounts."""

    bytes: int = 0
    heirs: tuple[int, ...] = ()


@dataclass(slots=True)
class _One:
    kind: Kind
    columns: int = 0
    total_cells: int = 0
    left_cells: int = 0
    lost: bool = False


@dataclass(slots=True)
class _Begun:
    """As events have told it. `part`: percent; `reasons`: for which it stood still."""

    kind: Kind
    bytes: int = 0
    heirs: tuple[int, ...] = ()
    part: int = 0
    reasons: set[str] = field(default_factory=set)


class Works:
    """Of one store's mender."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._of: dict[int, _One] = {}
        self._known: dict[int, _Begun] | None = None
        self._moved: dict[tuple[int, int], int] = {}  # columns just moved, and whose they were
        self._given_up: set[int] = set()  # by command, which is being carried out

    @property
    def total_bytes(self) -> int:
        return sum(one.total_cells for one in self._of.values()) * self.store.cell_bytes

    @property
    def left_bytes(self) -> int:
        return sum(one.left_cells for one in self._of.values()) * self.store.cell_bytes

    @property
    def _begun(self) -> dict[int, _Begun]:
        """Promise 3: as the log has it, when first asked for."""
        if self._known is None:
            self._known = {}
            for event in self.store.meta.events(EVENTS_MAX):
                for kind in KINDS:
                    if event.kind.startswith(kind):
                        _take_up(self._known, kind, event)
        return self._known

    # -- the mender's -----------------------------------------------------------------------------

    def look(
        self, found: list[tuple[Zone, dict[int, Any]]], cells: Callable[[Zone, int, Any], int]
    ) -> None:
        """`found`: all that there is to do, `cells`: of a column."""
        now: dict[int, _One] = {}
        moved: dict[tuple[int, int], int] = {}
        entries = self._entries()
        heirs = {entry.replaces for entry in entries.values()}
        for zone, why in found:
            for column, reason in why.items():
                if reason == "wished":
                    continue
                member, which = zone.map.columns[column][0], (zone.map.zone, column)
                if reason == "stale" and which in self._moved:
                    member = moved[which] = self._moved[which]
                copied = reason == "leaving" and member not in heirs
                one = now.setdefault(member, _One("Evacuate" if copied else "Rebuild"))
                one.columns += 1
                one.lost |= reason == "lost"
                one.left_cells += cells(zone, column, reason)
        self._moved = moved
        for member in self._begun.keys() - now.keys():
            self._ended(member, entries)
        self._given_up &= now.keys()
        for member, one in now.items():
            self._seen(member, one, entries)
        self._of = now

    def _entries(self) -> dict[int, MemberEntry]:
        return {entry.id: entry for entry in self.store.assembly.label.members}

    def _seen(self, member: int, one: _One, entries: dict[int, MemberEntry]) -> None:
        known, begun = self._of.get(member), self._begun.get(member)
        if begun is not None and begun.kind == "Evacuate" and one.lost:
            text = "it was lost on the way; what is left there is rebuilt"
            self._end(member, "EvacuateFinished", text)
            begun = known = None
        total = known.total_cells if known is not None else 0
        if known is None and begun is not None:
            total = begun.bytes // self.store.cell_bytes
        one.total_cells = max(total, one.left_cells) if known is None else total
        if begun is not None:
            begun.heirs = self._heirs(member, entries) or begun.heirs
        self._tell_part(member, one)

    def _heirs(self, member: int, entries: dict[int, MemberEntry]) -> tuple[int, ...]:
        return tuple(entry.id for entry in entries.values() if entry.replaces == member)

    def begins(self, zone: int, members: Iterable[tuple[int, int]]) -> None:
        """Columns of that zone are being made anew: (column, whose it is)."""
        for column, owner in members:
            member = self._moved.get((zone, column), owner)
            one = self._of.get(member)
            if one is not None and member not in self._begun and member not in self._given_up:
                self._begin(member, one)

    def _begin(self, member: int, one: _One) -> None:
        size, heirs = one.left_cells * self.store.cell_bytes, self._heirs(member, self._entries())
        self._begun[member] = _Begun(one.kind, size, heirs)
        text = f"{one.columns} columns, {size} bytes"
        more = {"columns": one.columns, "bytes": size, "heirs": heirs}
        self._note(f"{one.kind}Started", member, text, **more)

    def made(self, zone: int, column: int, member: int, why: str, cells: int) -> None:
        """A column of that member was made anew."""
        member = self._moved.get((zone, column), member)
        one = self._of.get(member)
        if one is None or why == "wished":
            return
        self._moved[zone, column] = member
        one.left_cells = max(0, one.left_cells - cells)
        self._tell_part(member, one)

    def _tell_part(self, member: int, one: _One) -> None:
        begun = self._begun.get(member)
        if begun is None or begun.kind != "Rebuild" or not one.total_cells:
            return  # of rows that all came later there is no part
        done = 100 - 100 * one.left_cells // one.total_cells
        part = min(100 - STEP, done // STEP * STEP)
        if part > begun.part:
            begun.part = part
            left = one.left_cells * self.store.cell_bytes
            self._note(f"Rebuild{part}", member, f"{left} bytes are left", left_bytes=left)

    def stalled(self, reason: str) -> None:
        """Nothing goes on."""
        for member in self._of:
            begun = self._begun.get(member)
            if reason and begun is not None and reason not in begun.reasons:
                begun.reasons.add(reason)
                self._note(f"{begun.kind}Stalled", member, reason)

    # -- ends, and what commands begin ------------------------------------------------------------

    def evacuates(self, member: int, text: str) -> None:
        """By command: it is to be empty, and holds something yet. If it is lost, it is rebuilt."""
        entry = self._entries().get(member)
        if entry is not None and entry.is_current and member not in self._begun:
            self._begun[member] = _Begun("Evacuate")
            self._note("EvacuateStarted", member, text)
            self.store.mender.wake()

    def give_up(self, member: int) -> None:
        """By command: what is left of it stays where it is. To be called before labels say so."""
        self._given_up.add(member)
        begun = self._begun.get(member)
        if begun is not None:
            kind = "EvacuateFinished" if begun.kind == "Evacuate" else "RebuildStopped"
            self._end(member, kind, "given up by command")

    def gone(self, member: int) -> None:
        """It has no columns, and is no member any more."""
        if member in self._begun:
            self._ended(member, self._entries())

    def _ended(self, member: int, entries: dict[int, MemberEntry]) -> None:
        begun, entry = self._begun[member], entries.get(member)
        if entry is not None and entry.state == "offline":
            if begun.kind == "Rebuild":  # else it goes on when that member is back
                self._end(member, "RebuildStopped", "it is offline, and expected back")
            return
        self._end(member, f"{begun.kind}Finished", "nothing is left to be done")
        for heir in begun.heirs:
            if begun.kind == "Rebuild" and heir in entries and entries[heir].is_current:
                self._note("SpareActive", heir, f"has what member {member} had", replaces=member)

    def _end(self, member: int, kind: str, text: str) -> None:
        del self._begun[member]
        self._note(kind, member, text)

    def _note(self, kind: str, member: int, text: str, **details: Any) -> None:
        self.store.events.note(kind, member, text, **details)


def _take_up(begun: dict[int, _Begun], kind: Kind, event: Event) -> None:
    """What an event of an earlier mount says."""
    what, known = event.kind.removeprefix(kind), begun.get(event.member)
    if what == "Started":
        try:
            told = msgspec.json.decode(event.details, type=_Started)
        except msgspec.MsgspecError:
            told = _Started()
        begun[event.member] = _Begun(kind, told.bytes, told.heirs)
    elif known is None or known.kind != kind:
        return
    elif what in ("Finished", "Stopped"):
        del begun[event.member]
    elif what == "Stalled":
        known.reasons.add(event.text)
    elif what.isdecimal():
        known.part = int(what)
