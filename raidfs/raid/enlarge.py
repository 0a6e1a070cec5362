"""More members for a volume that exists: a plan that refuses all it can, then their layout.

1. `plan_members` changes nothing. Whatever it accepts, only the world's faults can stop later.
2. What is laid out has no label, so it is nobody's; `abandon` takes it away again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from raidfs.errors import MemberError, RaidfsError, UsageError
from raidfs.raid.create import ZONES_LEAST, erase_label, rooms_of, size_text
from raidfs.raid.directory import lay_out_directory, remove_layout
from raidfs.raid.label import LABEL_BYTES, LABEL_COPIES, MEMBERS_MAX, Label, MemberEntry
from raidfs.raid.member import Member
from raidfs.raid.places import Identity, construct, identity, peek
from raidfs.raid.raw import Geometry, RawMember
from raidfs.raid.sites import survey


def plan_members(
    label: Label,
    paths: Sequence[str],
    *,
    size_bytes: int | None = None,
    role: Literal["data", "spare"] = "data",
    domain: str = "",
    replaces: Sequence[int] = (),
    force: bool = False,
) -> list[MemberEntry]:
    """The lines for these places, in their order. `replaces`: for each the member whose columns it
    is to get, or none. UsageError, MemberError, MemberBusy with one sentence if it can't be."""
    if not paths:
        raise UsageError("name at least one place: a directory, an image file or a block device")
    if len(label.members) + len(paths) > MEMBERS_MAX:
        raise UsageError(f"a volume has at most {MEMBERS_MAX} members")
    _refuse_known(_current(label) if force else label, paths)
    sites = survey(paths, force=force)
    found = []
    for number, (site, room) in enumerate(zip(sites, rooms_of(sites, size_bytes), strict=True)):
        slots = slots_in(label, site.kind, room)
        if slots < ZONES_LEAST:
            least = -(-ZONES_LEAST * label.parameters.zone_bytes * room // max(1, slots))
            least = max(least, overhead_bytes(label) + ZONES_LEAST * label.parameters.zone_bytes)
            raise UsageError(
                f"{site.path} is too small: it gives {size_text(room)} and at least "
                f"{size_text(least)} are needed; use a larger one"
            )
        found.append(
            MemberEntry(
                label.next_member + number,
                site.kind,
                site.path,
                slots,
                room,
                role=role,
                domain=domain,
                replaces=replaces[number] if replaces else -1,
            )
        )
    return found


def overhead_bytes(label: Label) -> int:
    """What a member keeps beside zones, at most."""
    parameters = label.parameters
    return 2 * LABEL_BYTES + parameters.db_bytes + parameters.wal_bytes


def slots_in(label: Label, kind: str, room_bytes: int) -> int:
    """Zone slots that a member with that room has."""
    parameters = label.parameters
    if kind == "directory":  # its metadata grows as needed
        overhead = LABEL_COPIES * LABEL_BYTES + parameters.db_bytes // 2
        overhead += min(parameters.wal_bytes, room_bytes // 16)
        return max(0, room_bytes - overhead) // parameters.zone_bytes
    geometry = Geometry(parameters.db_bytes, parameters.wal_bytes, parameters.zone_bytes)
    return geometry.slots_in(room_bytes)


def _refuse_known(label: Label, paths: Sequence[str]) -> None:
    known = dict[Identity, MemberEntry]()
    for entry in label.members:
        if entry.is_current or _holds(entry, label):
            with contextlib.suppress(MemberError):
                known[identity(entry.path)] = entry
    for path in paths:
        with contextlib.suppress(MemberError):
            one = known.get(identity(path))
            if one is not None:
                back = "" if one.is_current else f"; `member online` {one.id} brings it back"
                raise UsageError(f"{path} is member {one.id} of this volume already{back}")


def _current(label: Label) -> Label:
    """As if those that are lost were none: forced, what they hold is written over."""
    current = [entry for entry in label.members if entry.is_current]
    return msgspec.structs.replace(label, members=current)


def _holds(entry: MemberEntry, label: Label) -> bool:
    """What was lost there may have gone, and something else be in its place."""
    try:
        there = peek(entry.path)
    except RaidfsError:
        return False
    return (there.volume_id, there.member_id) == (label.volume_id, entry.id)


def lay_out_member(label: Label, entry: MemberEntry) -> Member:
    """Its empty structures: opened and locked, without a label. MemberError, MemberBusy: what was
    made is taken away again."""
    if entry.kind == "directory":
        return lay_out_directory(entry.path)
    member = construct(entry.path, read_only=False, lock=True)
    assert isinstance(member, RawMember)
    try:
        member.lay_out(Geometry.of(label.parameters), entry.slots)
    except BaseException:
        member.close()
        raise
    return member


def abandon(entry: MemberEntry, member: Member) -> None:
    """It became no member: what was laid out goes."""
    if entry.kind != "directory":
        erase_label(member)
    member.close()
    if entry.kind == "directory":
        remove_layout(entry.path)


def with_label(label: Label, entry: MemberEntry) -> Label:
    """The label as that member would hold it, were it one."""
    return msgspec.structs.replace(label, member_id=entry.id, members=[*label.members, entry])
