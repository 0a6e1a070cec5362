"""Hot spares: who takes the place of a lost member, if nobody was named for that.

1. A spare is taken for a member that failed and whose columns zones still name, whenever it was
   lost; not for one that is offline, nor for one that somebody replaces already.
2. The best: with room for all; in no failure domain of members that zones of the lost one lie on;
   the smallest of these, so that larger ones are there for larger losses.
3. When a member is lost and there is no spare although the volume had one or relies on them, an
   event says so (SparesMissing), once for each loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import RebuildSettings

if TYPE_CHECKING:
    from ..raid.label import MemberEntry
    from .space import Zone
    from .store import Store


class Spares:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._missed: set[int] = set()  # losses for which there was none, as told

    async def take(
        self, found: list[tuple[Zone, dict[int, Any]]], settings: RebuildSettings
    ) -> bool:
        """Spares for the members of which columns are lost. True: one was taken."""
        if settings.rebuild == "manual":
            return False
        entries = {entry.id: entry for entry in self.store.assembly.label.members}
        replaced = {entry.replaces for entry in entries.values() if entry.is_current}
        lost: dict[int, list[Zone]] = {}
        for zone, why in found:
            for column, reason in why.items():
                member = zone.map.columns[column][0]
                entry = entries.get(member)
                if reason == "lost" and entry is not None and entry.state == "failed":
                    lost.setdefault(member, []).append(zone)
        for member, zones in lost.items():
            if member in replaced or self._replaced_by(member, entries):
                continue
            spare = self._best(entries, zones)
            if spare is not None:
                await self.store.membership.change(spare, role="data", replaces=member)
                self._tell_if_last(member, settings)
                return True
            if settings.rebuild == "spare":
                self._missing(member)
        return False

    def _replaced_by(self, member: int, entries: dict[int, MemberEntry]) -> bool:
        """Somebody does, or somebody who replaces that one."""
        for entry in entries.values():
            if entry.replaces == member:
                return entry.is_current or self._replaced_by(entry.id, entries)
        return False

    def _best(self, entries: dict[int, MemberEntry], zones: list[Zone]) -> int | None:
        allocation = self.store.space.allocation
        others = {member for zone in zones for member, _ in zone.map.columns}
        domains = {allocation.domains[each] for each in others if each in allocation.domains}
        rooms = {
            entry.id: allocation.room_of(entry.id)
            for entry in entries.values()
            if entry.role == "spare" and allocation.online(entry.id)
        }

        def worth(spare: int) -> tuple[bool, bool, int]:
            room = rooms[spare]
            near = allocation.domains.get(spare, "") in domains
            return room < len(zones), near, room if room >= len(zones) else -room

        able = [spare for spare, room in rooms.items() if room > 0]
        return min(able, key=worth, default=None)

    def _tell_if_last(self, member: int, settings: RebuildSettings) -> None:
        left = [e for e in self.store.assembly.label.members if e.role == "spare" and e.is_current]
        if not left:
            self._missing(member)

    def _missing(self, member: int) -> None:
        if member not in self._missed:
            self._missed.add(member)
            text = f"member {member} was lost, and no hot spare is left: add one"
            self.store.events.note("SparesMissing", member, text)
