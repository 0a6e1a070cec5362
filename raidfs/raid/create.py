"""Making a volume: a plan that refuses everything refusable, then members, labels last.

1. `plan_volume` changes nothing. Whatever it accepts, only the world's faults can stop later.
2. Labels come last: until all are written no member belongs to the volume. If anything fails
   before that, what was made is taken away again (with `force`, what was overwritten is gone).
3. Files that aren't ours are never removed or changed, with `force` neither.
4. The plan's numbers hold for the volume as made: zones that fit, usable bytes, what stays unused.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raidfs.errors import MemberError, UsageError
from raidfs.raid.code import COPIES_MAX, WIDTH_MAX, Code, code_for, rs_numbers
from raidfs.raid.directory import lay_out_directory, remove_layout
from raidfs.raid.label import (
    LABEL_BYTES,
    LABEL_COPIES,
    MEMBERS_MAX,
    Label,
    MemberEntry,
    Parameters,
    encode_label,
    write_label,
)
from raidfs.raid.member import Member
from raidfs.raid.placement import usable_zones
from raidfs.raid.places import construct
from raidfs.raid.raw import MIB, Geometry, RawMember
from raidfs.raid.sites import Site, survey

ZONES_LEAST = 4
DOMAIN_BYTES_MAX = 63
LEAF_AND_CHECKSUM_BYTES = 14  # of metadata per cell: its address in a leaf, its CRC, owner records
DB_BYTES_MIN = 24 * MIB
WAL_BYTES_MIN, WAL_BYTES_MAX = 16 * MIB, 512 * MIB
DIRECTORY_SHARE = 0.95  # of the filesystem's free room, all members on it together

_MEMBERS_LEAST = {"0": 1, "1": 2, "2": 3, "3": 3, "4": 3, "5": 3, "6": 4, "10": 4}

Prepare = Callable[[dict[int, Member], Parameters], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be made. Sizes in bytes; member ids are 0, 1, ... in the order given."""

    volume_id: str
    volume_name: str
    code: Code
    parameters: Parameters
    members: tuple[MemberEntry, ...]
    zones: int
    usable_bytes: int
    unused_bytes: dict[int, int]  # of members that have more room than the zones can take
    warnings: tuple[str, ...]
    force: bool
    sites: tuple[Site, ...] = field(repr=False)

    @property
    def tolerance(self) -> int:
        """Members that may be lost, whichever they are."""
        return self.code.tolerance

    def label(self) -> Label:
        """The first label, as member 0 holds it."""
        generation_id = self.volume_id[:16]
        return Label(
            volume_id=self.volume_id,
            volume_name=self.volume_name,
            member_id=0,
            generation=1,
            generation_id=generation_id,
            history=[(1, generation_id)],
            members=list(self.members),
            parameters=self.parameters,
            next_member=len(self.members),
        )


def plan_volume(
    paths: Sequence[str],
    *,
    level: str | None = None,
    name: str | None = None,
    width: int | None = None,
    cell_bytes: int = 4096,
    zone_bytes: int | None = None,
    size_bytes: int | None = None,
    force: bool = False,
    domains: Sequence[str] = (),
    random_bytes: Callable[[int], bytes] = os.urandom,
    sites: Sequence[Site] | None = None,
) -> Plan:
    """Check everything; UsageError, MemberError, MemberBusy with one sentence if it can't be.

    size_bytes: room to take per member (default: devices and images whole, directories their share
    of the free room). width: members per zone (default: all, as far as the level allows). domains:
    for each place what fails together with it, "" for nothing; or none at all. sites:
    what to take for granted at `paths` instead of looking there, for a plan never carried out.
    """
    if not paths:
        raise UsageError("name at least one member: a directory, an image file or a block device")
    level = _default_level(len(paths)) if level is None else level
    code = code_over(level, width, len(paths))
    _check_sizes(cell_bytes, zone_bytes, size_bytes)
    sites = survey(paths, force=force) if sites is None else sites
    rooms = rooms_of(sites, size_bytes)
    zone = zone_bytes or _default_zone_bytes(min(rooms), cell_bytes)
    db, wal, slots, zones = _divide(sites, rooms, code, zone)
    volume_id = random_bytes(16).hex()
    label_name = f"volume-{volume_id[:8]}" if name is None else name
    _check_name(label_name)
    plan = Plan(
        volume_id=volume_id,
        volume_name=label_name,
        code=code,
        parameters=Parameters(level, code.width, cell_bytes, zone, db, wal, time.time_ns()),
        members=tuple(
            MemberEntry(
                i, site.kind, site.path, slots[i], rooms[i], domain=domains[i] if domains else ""
            )
            for i, site in enumerate(sites)
        ),
        zones=zones,
        usable_bytes=zones * code.k * zone,
        unused_bytes={i: (s - zones) * zone for i, s in enumerate(slots) if s > zones},
        warnings=(*_warnings(sites, code, slots, zones), *_domain_warnings(code, domains)),
        force=force,
        sites=tuple(sites),
    )
    encode_label(plan.label())  # does the table fit?
    return plan


def lay_out(plan: Plan) -> dict[int, Member]:
    """Make all members' empty structures; opened and locked, by id, without labels.

    On an error what was made is taken away again. MemberError, MemberBusy.
    """
    members: dict[int, Member] = {}
    geometry = Geometry.of(plan.parameters)
    try:
        for entry in plan.members:
            if entry.kind == "directory":
                members[entry.id] = lay_out_directory(entry.path)
                members[entry.id].adopt(plan.label().for_member(entry.id))
            else:
                member = construct(entry.path, read_only=False, lock=True)
                members[entry.id] = member
                assert isinstance(member, RawMember)
                member.lay_out(geometry, entry.slots)
    except BaseException:
        undo(plan, members)
        raise
    return members


def write_labels(plan: Plan, members: dict[int, Member]) -> None:
    """The last step. On an error no member keeps a label; then call `undo`. MemberError."""
    label = plan.label()
    try:
        for member_id, member in members.items():
            write_label(member, label.for_member(member_id))
    except BaseException:
        for member in members.values():
            erase_label(member)
        raise


def undo(plan: Plan, members: dict[int, Member]) -> None:
    """Close the members and take away what `lay_out` made of them."""
    for entry in plan.members:
        member = members.get(entry.id)
        if member is not None:
            if entry.kind != "directory":
                erase_label(member)
            member.close()
        if entry.kind == "directory" and (member is not None or not plan.sites[entry.id].ours):
            remove_layout(entry.path)


def create_volume(plan: Plan, prepare: Prepare) -> None:
    """All steps after the plan. `prepare` writes what must be there before labels: the metadata.

    Everything or nothing: on any error the members are as they were (but see promise 2).
    """
    members = lay_out(plan)
    try:
        for member in members.values():
            member.volume_id = plan.volume_id
        prepare(members, plan.parameters)
        write_labels(plan, members)
    except BaseException:
        undo(plan, members)
        raise
    for member in members.values():
        member.close()


def erase_label(member: Member) -> None:
    for copy in range(LABEL_COPIES):
        with contextlib.suppress(MemberError):
            member.write_label(copy, bytes(LABEL_BYTES))


def _default_level(count: int) -> str:
    if count <= 2:
        return "0" if count == 1 else "1"
    return "5" if count <= 5 else "6"


def code_over(level: str, width: int | None, count: int) -> Code:
    """The code for so many members; `width`: None for all of them, as far as the level allows.
    UsageError says how many are needed."""
    exact = None if level in _MEMBERS_LEAST else sum(rs_numbers(level))
    least = exact or _MEMBERS_LEAST[level]
    if count < least:
        raise UsageError(
            f"level {level} needs at least {least} members and {count} "
            f"{'was' if count == 1 else 'were'} named: add {least - count} or choose another level"
        )
    if count > MEMBERS_MAX:
        raise UsageError(f"a volume has at most {MEMBERS_MAX} members, not {count}")
    if width is None:
        width = exact or min(count, 1 + COPIES_MAX if level == "1" else WIDTH_MAX)
        if level == "10":
            width -= width % 2
    elif not least <= width <= count:
        raise UsageError(
            f"a zone of level {level} over {count} members can be {least} to {count} wide, "
            f"not {width}"
        )
    return code_for(level, width)


def _check_sizes(cell_bytes: int, zone_bytes: int | None, size_bytes: int | None) -> None:
    if cell_bytes not in (4096, 8192, 16384, 32768, 65536):
        raise UsageError(f"cells can be 4, 8, 16, 32 or 64 KiB, not {cell_bytes} bytes")
    if zone_bytes is not None:
        least = max(65536, 16 * cell_bytes)
        if not least <= zone_bytes <= 1 << 30 or zone_bytes & (zone_bytes - 1):
            raise UsageError(
                f"a zone's column must be a power of two from {size_text(least)} to 1 GiB, "
                f"not {zone_bytes} bytes"
            )
    if size_bytes is not None and size_bytes <= 0:
        raise UsageError(f"the size to take per member must be positive, not {size_bytes}")


def _check_name(name: str) -> None:
    if not 0 < len(name.encode(errors="surrogateescape")) <= 255:
        raise UsageError("a volume's name must have 1 to 255 bytes")
    if not name.isprintable() or "/" in name or name != name.strip():
        raise UsageError(
            f"the name {name!r} won't do: use printable characters without slashes, and no blanks "
            "at its ends"
        )


def rooms_of(sites: Sequence[Site], size_bytes: int | None) -> list[int]:
    """Bytes that each member gives. Directories share what their filesystem has free."""
    sharing = Counter(site.filesystem for site in sites if site.kind == "directory")
    rooms = []
    for site in sites:
        room = site.room_bytes
        if site.kind == "directory":
            room = int(room * DIRECTORY_SHARE) // sharing[site.filesystem]
        if size_bytes is not None:
            if size_bytes > room:
                raise UsageError(
                    f"{site.path} has {size_text(room)} to give and {size_text(size_bytes)} were "
                    "asked for: ask for less, or free some room"
                )
            room = size_bytes
        rooms.append(room)
    return rooms


def _default_zone_bytes(room_bytes: int, cell_bytes: int) -> int:
    """The power of two nearest to 1/256 of the smallest member, within bounds."""
    small = min(max(_nearest_power(room_bytes // 256), MIB), 64 * MIB)
    large = min(_nearest_power(room_bytes // 16384), 1 << 30)
    return max(small, large, 16 * cell_bytes)


def _nearest_power(value: int) -> int:
    if value < 1:
        return 1
    below = 1 << (value.bit_length() - 1)
    return below if value - below <= 2 * below - value else 2 * below


def _divide(
    sites: Sequence[Site], rooms: Sequence[int], code: Code, zone_bytes: int
) -> tuple[int, int, list[int], int]:
    """(db_bytes, wal_bytes, slots by member, zones).

    The metadata is the same on all members, so its area follows from what the volume holds in all.
    That again follows from the slots; taking the areas as empty first errs on the large side.
    """
    zones = usable_zones([room // zone_bytes for room in rooms], code)
    cells_bytes = zones * code.width * zone_bytes
    estimate = cells_bytes * LEAF_AND_CHECKSUM_BYTES // 4096 + cells_bytes // len(rooms) // 50
    db = max(DB_BYTES_MIN, -(-estimate // MIB) * MIB)
    wal = min(max(WAL_BYTES_MIN, db // 4 // MIB * MIB), WAL_BYTES_MAX)
    slots = []
    for site, room in zip(sites, rooms, strict=True):
        if site.kind == "directory":  # its metadata grows as needed
            overhead = LABEL_COPIES * LABEL_BYTES + estimate + min(wal, room // 16)
            slots.append(max(0, room - overhead) // zone_bytes)
        else:
            slots.append(Geometry(db, wal, zone_bytes).slots_in(room))
    for site, room, count in zip(sites, rooms, slots, strict=True):
        if count < ZONES_LEAST:
            overhead = Geometry(db, wal, zone_bytes).data_offset_bytes
            if site.kind == "directory":
                overhead = 2 * MIB + estimate
            least = (overhead + ZONES_LEAST * zone_bytes) * 17 // 16
            raise UsageError(
                f"{site.path} is too small: it gives {size_text(room)} and at least "
                f"{size_text(least)} are needed; use a larger one or smaller zones"
            )
    return db, wal, slots, usable_zones(slots, code)


def _warnings(sites: Sequence[Site], code: Code, slots: Sequence[int], zones: int) -> list[str]:
    said = []
    if code.tolerance == 0:
        said.append(f"level {code.level} survives no loss: one lost member loses the volume")
    shared = Counter(site.filesystem for site in sites if site.filesystem is not None)
    for filesystem, count in shared.items():
        if count > 1 and code.tolerance:
            first = next(site.path for site in sites if site.filesystem == filesystem)
            said.append(
                f"{count} members lie on the filesystem of {first}: if it is lost, they all are"
            )
    unused = [sites[i].path for i, count in enumerate(slots) if count > zones]
    if unused:
        said.append(f"part of {', '.join(unused)} stays unused: the others have too little room")
    if len(sites) > code.width:
        said.append(
            f"zones are {code.width} wide and spread over {len(sites)} members: any "
            f"{code.tolerance} may be lost, not {code.tolerance} of each {code.width}"
        )
    return said


def _domain_warnings(code: Code, domains: Sequence[str]) -> list[str]:
    """What fails together should not take more of a zone than its code survives."""
    if not any(domains):
        return []
    apart = len(set(filter(None, domains))) + sum(not domain for domain in domains)
    together = -(-code.width // apart)
    if together <= code.tolerance:
        return []
    return [
        f"zones are {code.width} wide over {apart} failure domains: when one fails, zones lose "
        f"{together} columns, and level {code.level} survives {code.tolerance}"
    ]


def check_domain(name: str) -> str:
    """UsageError: no failure domain can be called that."""
    fits = len(name.encode(errors="surrogateescape")) <= DOMAIN_BYTES_MAX
    if not fits or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"the failure domain {name!r} won't do: use at most {DOMAIN_BYTES_MAX} bytes of "
            "printable characters, and no blanks at its ends"
        )
    return name


def size_text(nbytes: int) -> str:
    """For people: 1.5 GiB."""
    value = float(nbytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
