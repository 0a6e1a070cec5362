"""What the mender has to do, told by member: how much it was, how much is left, and the events.

1. A work begins when a member is first seen to have columns to be made, and ends when none is
   left. Its total is what there was at the beginning; what comes on top later counts as left, and
   takes nothing back of the part that was told to be done.
2. Events: RebuildStarted, Rebuild20 to Rebuild80, RebuildFinished or EvacuateFinished; of one that
   stands still RebuildStalled, once for each reason; SpareActive when who takes a member's place
   has all that was its.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .space import Zone
    from .store import Store

STEP = 20  # percent
Kind = Literal["Rebuild", "Evacuate"]


@dataclass(slots=True)
class _One:
    kind: Kind
    columns: int
    total_cells: int
    left_cells: int
    told: int = 0  # percent
    heirs: tuple[int, ...] = ()


class Works:
    """Of one store's mender."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._of: dict[int, _One] = {}
        self._stalled = ""

    @property
    def total_bytes(self) -> int:
        return sum(one.total_cells for one in self._of.values()) * self.store.cell_bytes

    @property
    def left_bytes(self) -> int:
        return sum(one.left_cells for one in self._of.values()) * self.store.cell_bytes

    def look(
        self, found: list[tuple[Zone, dict[int, Any]]], cells: Callable[[Zone, int, Any], int]
    ) -> None:
        """`found`: what there is to do, `cells`: of a column."""
        now: dict[int, _One] = {}
        for zone, why in found:
            for column, reason in why.items():
                if reason == "wished":
                    continue
                member = zone.map.columns[column][0]
                kind: Kind = "Evacuate" if reason == "leaving" else "Rebuild"
                one = now.setdefault(member, _One(kind, 0, 0, 0))
                one.columns += 1
                one.left_cells += cells(zone, column, reason)
        for member in [member for member in self._of if member not in now]:
            self._finished(member, self._of.pop(member))
        for member, one in now.items():
            self._seen(member, one)
        if not found:
            self._stalled = ""

    def _seen(self, member: int, one: _One) -> None:
        entries = self.store.assembly.label.members
        heirs = tuple(entry.id for entry in entries if entry.replaces == member)
        known = self._of.get(member)
        if known is None or known.kind != one.kind:
            one.total_cells, one.heirs = one.left_cells, heirs
            self._of[member] = one
            if one.kind == "Rebuild":
                size = one.left_cells * self.store.cell_bytes
                text = f"{one.columns} columns, {size} bytes"
                self._note("RebuildStarted", member, text, columns=one.columns, bytes=size)
            return
        known.columns, known.left_cells = one.columns, one.left_cells
        known.heirs = heirs or known.heirs
        self._tell_part(member, known)

    def made(self, member: int, why: str, cells: int) -> None:
        """A column of that member was made anew."""
        one = self._of.get(member)
        if one is not None and why != "wished":
            one.left_cells = max(0, one.left_cells - cells)
            self._stalled = ""
            self._tell_part(member, one)

    def _tell_part(self, member: int, one: _One) -> None:
        done = 100 - 100 * one.left_cells // max(1, one.total_cells)
        part = min(100 - STEP, done // STEP * STEP)
        if one.kind == "Rebuild" and part > one.told:
            one.told = part
            left = one.left_cells * self.store.cell_bytes
            self._note(f"Rebuild{part}", member, f"{left} bytes are left", left_bytes=left)

    def _finished(self, member: int, one: _One) -> None:
        entries = {entry.id: entry for entry in self.store.assembly.label.members}
        entry = entries.get(member)
        if entry is not None and entry.state == "offline":
            self._note("RebuildStopped", member, "it is offline, and expected back")
            return
        self._note(f"{one.kind}Finished", member, "nothing is left to be done")
        for heir in one.heirs:
            if one.kind == "Rebuild" and heir in entries and entries[heir].is_current:
                self._note("SpareActive", heir, f"has what member {member} had", replaces=member)

    def stalled(self, reason: str) -> None:
        """Nothing goes on."""
        if reason and reason != self._stalled and self._of:
            for member in self._of:
                self._note("RebuildStalled", member, reason)
        self._stalled = reason

    def _note(self, kind: str, member: int, text: str, **details: Any) -> None:
        self.store.events.note(kind, member, text, **details)
