"""What the store makes of the members that an assembly believes, before and while it opens."""

from __future__ import annotations

from typing import Literal

from ..engine import Engine
from ..errors import NotEnoughMembers
from ..raid.array import MemberState
from ..raid.assembly import Assembly
from ..raid.code import parse_code
from .meta import Meta
from .mirror import Mirror


def member_states(assembly: Assembly, meta: Meta) -> dict[int, MemberState]:
    """Every member of the volume, present or not, with the error counts kept in the metadata."""
    counters = meta.member_counters()
    states = {}
    for entry in assembly.label.members:
        member = assembly.members.get(entry.id)
        state: Literal["online", "failed", "missing"] = "online"
        if member is None:
            state = "failed" if entry.state == "failed" else "missing"
        read, write, checksum = counters.get(entry.id, (0, 0, 0))
        states[entry.id] = MemberState(member, state, read, write, checksum)
    return states


def engine_for(assembly: Assembly) -> Engine | None:
    """None where members lend no descriptors, as a simulator's. Each may be waited for in a thread
    of its own, for its columns and for its metadata."""
    members = assembly.members.values()
    if not all(member.lends for member in members):
        return None
    return Engine(threads=min(max(4, 2 * len(members)), 64))


def require_zones(assembly: Assembly) -> None:
    """Every zone that holds anything can be read without the members lost; NotEnoughMembers names
    one that can't."""
    mirror = Mirror(assembly.members, read_only=True)
    try:
        meta = Meta(mirror)
        try:
            for row in meta.zones():
                if not row.live:
                    continue
                members = enumerate(row.columns)
                lost = frozenset(
                    column
                    for column, (member, _) in members
                    if member not in assembly.members or column in row.missed
                )
                if not parse_code(row.code).survives(lost):
                    raise NotEnoughMembers(
                        f"volume {assembly.label.volume_name}: zone {row.zone} can't be read "
                        f"without members {', '.join(map(str, sorted(assembly.lost)))}; bring back "
                        "one that still holds its data"
                    )
        finally:
            meta.close()
    finally:
        mirror.close()
