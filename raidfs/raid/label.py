"""The label: who a member is, which volume it belongs to, and what was known of the others.

A label is 64 KiB, kept twice on every member. It holds the whole table of members and the volume's
parameters, so naming any one member is enough to find the rest. Each change of membership makes a
new *generation*: a number that rises, and a random id. The label keeps the line of generations that
led to it (its *history*), so that of two labels one can say which descends from the other, or that
neither does: then two parts of the volume went on separately.

    offset  bytes  content
         0      8  magic "raidfsLB"
         8      4  format version, little-endian
        12      4  payload bytes
        16      4  CRC-32C of all 65536 bytes with this field zero
        20      4  zero
        24      .  payload: msgpack map, fields as in `Label`; the rest is zero

 1. A label that decodes is one that `encode_label` made: every byte is under the checksum.
 2. What decodes is consistent in itself: its member is in its table, ids are unique, its own
    generation is the last of its history, all numbers are within the bounds of the format.
 3. The two copies are written one after the other, each synced before the next is begun; so a crash
    leaves at least one whole.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Literal

import msgspec

from raidfs import native
from raidfs.errors import LabelError, LabelMissing, UsageError

if TYPE_CHECKING:
    from raidfs.raid.member import Member

LABEL_BYTES = 65536
LABEL_COPIES = 2
FORMAT_VERSION = 2
HISTORY_MAX = 64
MEMBERS_MAX = 256

_MAGIC = b"raidfsLB"
_HEADER = struct.Struct("<8sIIII")
_PAYLOAD_BYTES_MAX = LABEL_BYTES - _HEADER.size
_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX16 = re.compile(r"[0-9a-f]{16}")


class MemberEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the member table. `path` is where it was last seen.

    state: "failed" and "offline" missed changes; `reason` says why. Who is offline is expected
    back, so its columns aren't made anew elsewhere.
    role: a "spare" gets no columns until a member is lost; one that is "leaving" gets no new ones,
    and those it has go elsewhere, after which it is no member any more; one that is "evacuating"
    stays a member, empty.
    domain: members of one fail together; "": of none but its own.
    replaces: the member whose columns this one is to get, or -1.
    """

    id: int
    kind: str
    path: str
    slots: int
    bytes: int
    state: Literal["active", "failed", "offline"] = "active"
    reason: str = ""
    role: Literal["data", "spare", "leaving", "evacuating"] = "data"
    domain: str = ""
    replaces: int = -1

    @property
    def is_current(self) -> bool:
        """It gets all changes."""
        return self.state == "active"


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the volume. All but level, width and uneven was fixed when it was made.
    db_bytes, wal_bytes: areas of raw members. level, width: of new zones; uneven: there may be
    zones that survive less (of another level, or with columns that lack rows), so that only they
    can tell what the volume survives."""

    level: str
    width: int
    cell_bytes: int
    zone_bytes: int
    db_bytes: int
    wal_bytes: int
    created_ns: int
    uneven: bool = False


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member's label. `history` ends with (generation, generation_id) of this label itself.
    Ids of members are given once; `next_member` is the lowest that never was."""

    volume_id: str
    volume_name: str
    member_id: int
    generation: int
    generation_id: str
    history: list[tuple[int, str]]
    members: list[MemberEntry]
    parameters: Parameters
    next_member: int

    def entry(self, member_id: int) -> MemberEntry:
        """The line of that member; KeyError if the table doesn't know it."""
        for entry in self.members:
            if entry.id == member_id:
                return entry
        raise KeyError(member_id)

    def for_member(self, member_id: int) -> Label:
        """The same label as that member holds it."""
        return msgspec.structs.replace(self, member_id=member_id)


def encode_label(label: Label) -> bytes:
    """LABEL_BYTES bytes. UsageError if the member table is too large for a label."""
    _check(label)
    payload = msgspec.msgpack.encode(label)
    if len(payload) > _PAYLOAD_BYTES_MAX:
        raise UsageError(
            f"the table of {len(label.members)} members takes {len(payload)} bytes and a label "
            f"holds {_PAYLOAD_BYTES_MAX}: use fewer members or shorter paths"
        )
    body = payload.ljust(_PAYLOAD_BYTES_MAX, b"\0")
    unsummed = _HEADER.pack(_MAGIC, FORMAT_VERSION, len(payload), 0, 0) + body
    data = _HEADER.pack(_MAGIC, FORMAT_VERSION, len(payload), native.crc32c(unsummed), 0) + body
    assert len(data) == LABEL_BYTES
    return data


def decode_label(data: bytes) -> Label:
    """The label in `data`. LabelMissing if there is none, LabelError if it is unusable."""
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise LabelMissing("no raidfs label")
    _, version, payload_bytes, crc, _ = _HEADER.unpack_from(data)
    if len(data) != LABEL_BYTES:
        raise LabelError(f"the label is cut off after {len(data)} bytes")
    unsummed = data[:16] + bytes(4) + data[20:]
    if native.crc32c(unsummed) != crc:
        raise LabelError("the label's checksum does not match")
    if version != FORMAT_VERSION:
        raise LabelError(
            f"the label has format {version} and this raidfs knows format {FORMAT_VERSION}: "
            "use the raidfs that made it, or a newer one"
        )
    if payload_bytes > _PAYLOAD_BYTES_MAX:
        raise LabelError(f"the label claims {payload_bytes} bytes of content")
    try:
        label = msgspec.msgpack.decode(data[_HEADER.size :][:payload_bytes], type=Label)
    except msgspec.MsgspecError as error:
        raise LabelError(f"the label can't be understood: {error}") from None
    _check(label)
    return label


def _check(label: Label) -> None:
    """Promise 2."""
    parameters = label.parameters
    ids = [entry.id for entry in label.members]
    generations = [generation for generation, _ in label.history]
    rules = {
        "volume id": _HEX32.fullmatch(label.volume_id) is not None,
        "volume name": 0 < len(label.volume_name.encode()) <= 255,
        "generation": 0 < label.generation < 1 << 62,
        "generation id": all(_HEX16.fullmatch(ident) for _, ident in label.history),
        "history": 0 < len(generations) <= HISTORY_MAX
        and generations == sorted(set(generations))
        and generations[0] > 0
        and label.history[-1] == (label.generation, label.generation_id),
        "member table": 0 < len(ids) <= MEMBERS_MAX
        and len(set(ids)) == len(ids)
        and label.member_id in ids
        and all(0 <= ident < 1 << 16 for ident in ids),
        "member sizes": all(
            0 <= entry.slots < 1 << 32 and 0 <= entry.bytes < 1 << 62 for entry in label.members
        ),
        "next member": max(ids, default=0) < label.next_member <= 1 << 16,
        "member domains": all(len(entry.domain.encode()) <= 63 for entry in label.members),
        "member kinds": all(e.kind in ("directory", "image", "device") for e in label.members),
        "width": 1 <= parameters.width <= 24,
        "cell size": _power_of_two(parameters.cell_bytes, 4096, 65536),
        "zone size": _power_of_two(parameters.zone_bytes, 65536, 1 << 30)
        and parameters.zone_bytes >= parameters.cell_bytes,
        "metadata size": 0 < parameters.db_bytes < 1 << 50 and 0 < parameters.wal_bytes < 1 << 50,
    }
    for name, holds in rules.items():
        if not holds:
            raise LabelError(f"the label's {name} makes no sense")


def _power_of_two(value: int, lowest: int, highest: int) -> bool:
    return lowest <= value <= highest and value & (value - 1) == 0


def read_copies(member: Member) -> list[Label | LabelError]:
    """What each of the two copies holds. MemberError if the member can't be read at all."""
    found: list[Label | LabelError] = []
    for copy in range(LABEL_COPIES):
        try:
            found.append(decode_label(member.read_label(copy)))
        except LabelError as error:
            found.append(error)
    return found


def read_labels(member: Member) -> Label:
    """The newest valid of the two copies; heals nothing. LabelMissing, LabelError."""
    return newest_copy(member.path, read_copies(member))


def newest_copy(path: str, copies: list[Label | LabelError]) -> Label:
    """The newest valid label among `copies` of the member at `path`. LabelMissing, LabelError."""
    labels = [copy for copy in copies if isinstance(copy, Label)]
    if labels:
        return max(labels, key=lambda label: label.generation)
    if all(isinstance(copy, LabelMissing) for copy in copies):
        raise LabelMissing(f"{path} is not a member of a raidfs volume: it has no label")
    reasons = " and ".join(sorted({str(c) for c in copies if not isinstance(c, LabelMissing)}))
    raise LabelError(
        f"both copies of the label of {path} are unusable ({reasons}): name another member of the "
        "volume, this one counts as lost"
    )


def write_label(member: Member, label: Label) -> None:
    """Both copies, in the order of promise 3. MemberError if either can't be written."""
    data = encode_label(label.for_member(label.member_id))
    for copy in range(LABEL_COPIES):
        member.write_label(copy, data)
