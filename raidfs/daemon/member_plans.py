"""Whether a change of members fits, in numbers, before anything is changed.

The columns that would have to go elsewhere are placed, one after the other, as the mender would
place them: on members with room that have no other column of that zone.

 1. What is refused here could not be carried out as things are; what is let pass can still meet a
    member that fills up or is lost meanwhile. Then the job stalls and says so; nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import msgspec

from raidfs.daemon.condition import counted_zones, data_bytes, unreadable_without
from raidfs.errors import OutOfSpace, UsageError
from raidfs.raid.create import size_text
from raidfs.raid.label import MemberEntry
from raidfs.raid.placement import usable_zones
from raidfs.store.store import Store


@dataclass(slots=True)
class Fit:
    """How many columns have to move, and for how many there is a place. `no_room`: for these only
    room is lacking; `no_member`: every member that takes columns has one of that zone already."""

    columns: int = 0
    nbytes: int = 0  # that are written for it
    no_room: int = 0
    no_member: int = 0

    @property
    def placed(self) -> int:
        return self.columns - self.no_room - self.no_member


def fit(store: Store, gone: Set[int]) -> Fit:
    """Columns of the members `gone` onto others."""
    allocation = store.space.allocation
    room, found = allocation.free_slots(), Fit()
    takes = [member for member in room if member not in gone | allocation.closed_to]
    for zone in counted_zones(store):
        have = {member for member, _ in zone.map.columns}
        for _ in have & gone:
            found.columns += 1
            found.nbytes += zone.fill * store.cell_bytes
            able = (each for each in takes if each not in have)
            best = max(able, key=lambda each: room[each], default=None)
            if best is None:
                found.no_member += 1
            elif room[best] <= 0:
                found.no_room += 1
            else:
                room[best] -= 1
                have.add(best)
    return found


def require_fit(store: Store, what: str, found: Fit) -> None:
    """OutOfSpace, UsageError with numbers: not all columns have a place."""
    where = "raidfs-ctl member add"
    if found.no_member:
        raise UsageError(
            f"{what} can't be done: {found.no_member} of {_columns(found.columns)} have nowhere to"
            f" go, since all others hold a column of the same zone; add a member first: {where}"
        )
    if found.no_room:
        column = store.parameters.zone_bytes
        raise OutOfSpace(
            f"{what} can't be done: {_columns(found.columns)} must go elsewhere and the other"
            f" members have room for {found.placed}; {size_text(found.no_room * column)} are"
            f" lacking: delete files or snapshots, or add a member first: {where}"
        )


def _columns(count: int) -> str:
    return f"{count} column" if count == 1 else f"{count} columns"


def data_members(entries: Iterable[MemberEntry]) -> list[MemberEntry]:
    """Those that new zones may lie on, now or when they are back."""
    return [entry for entry in entries if entry.role == "data" and entry.state != "failed"]


def require_width(store: Store, table: Iterable[MemberEntry], what: str) -> None:
    """UsageError: with these members zones can't be as wide as they should."""
    parameters, count = store.assembly.label.parameters, len(data_members(table))
    if count < parameters.width:
        some = f"{count} member" if count == 1 else f"{count} members"
        raise UsageError(
            f"{what} can't be done: it would leave {some} for zones of level {parameters.level}"
            f" that are {parameters.width} wide; add {parameters.width - count} first (raidfs-ctl"
            f" member add), or make zones narrower (raidfs-ctl convert --width {max(1, count)})"
        )


def usable_bytes(store: Store, table: Iterable[MemberEntry]) -> int:
    """What files could use with these members, as `create` would say."""
    code = store.space.code
    zones = usable_zones([entry.slots for entry in data_members(table)], code)
    return zones * code.k * store.parameters.zone_bytes


def changed(entries: Iterable[MemberEntry], ids: Set[int], **fields: object) -> list[MemberEntry]:
    """The table with these fields in the lines of those members."""
    return [msgspec.structs.replace(each, **fields) if each.id in ids else each for each in entries]


def require_survival(store: Store, gone: Set[int], names: str) -> None:
    """UsageError: without these members something could not be read any more."""
    states = store.array.states
    online = {member for member, state in states.items() if state.state == "online"}
    if not online - gone:
        raise UsageError(f"{names} is all that is left of the volume; nothing would remain")
    lost = unreadable_without(store, gone)
    if lost:
        count, total = len(lost), sum(1 for _ in counted_zones(store))
        nbytes = data_bytes(store, lost)
        held = f", which hold {size_text(nbytes)} of files" if nbytes else ""
        raise UsageError(
            f"without {names} data would be lost: {count} of {total} zones could not be read any"
            f" more{held}; wait until what is being rebuilt is whole again, or replace the member"
            " instead, which copies it: raidfs-ctl member replace"
        )
