"""What lies where a member is to be made, and whether it may be made there.

1. Nothing is changed; locks are taken only to see whether others hold them.
2. Refused in any case: what isn't there, isn't writable, is in use, is named twice or lies inside
   another member, or holds files of someone else under the names that we need.
3. Refused unless forced: a label of any volume, a directory that isn't empty, an image or device
   that begins as a filesystem, partition table, swap area or volume of another kind.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raidfs.errors import LabelError, LabelMissing, MemberBusy, MemberError, UsageError
from raidfs.raid.directory import LABEL_NAME, METADATA_NAME, OWN_NAMES, ZONES_NAME
from raidfs.raid.label import Label, newest_copy, read_copies
from raidfs.raid.member import Kind, Member, read_up_to, said_of
from raidfs.raid.places import Identity, construct, identity, kind_of

# (offset, bytes there, what it is); first match is named
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"XFSB", "an XFS filesystem"),
    (0x438, b"\x53\xef", "an ext2/3/4 filesystem"),
    (0x10040, b"_BHRfS_M", "a btrfs filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (54, b"FAT", "a FAT filesystem"),
    (82, b"FAT32", "a FAT filesystem"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    (0x8001, b"CD001", "an ISO 9660 filesystem"),
    (0, b"hsqs", "a squashfs filesystem"),
    (4086, b"SWAPSPACE2", "a swap area"),
    (4086, b"SWAP-SPACE", "a swap area"),
    (0, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    (0x200, b"LABELONE", "an LVM physical volume"),
    (0x1018, b"\xc6\x85\x73\xf6", "a bcache or bcachefs member"),
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1000, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
)
_PROBE_BYTES = 0x10048


@dataclass(frozen=True, slots=True)
class Site:
    """A place that passed. filesystem: st_dev of what it lies on, None for devices."""

    path: str
    kind: Kind
    identity: Identity
    filesystem: int | None
    room_bytes: int
    ours: bool  # it holds a structure of ours already, which force allows to overwrite


def survey(paths: Sequence[str], *, force: bool) -> list[Site]:
    """Look at all places. UsageError, MemberError, MemberBusy by promises 2 and 3."""
    seen: dict[Identity, str] = {}
    for path in paths:
        _require_existing(path)
        who = identity(path)
        if who in seen:
            raise UsageError(f"{seen[who]} and {path} are the same place: name each member once")
        seen[who] = path
    _refuse_nested(paths)
    return [_look(os.path.abspath(path), force=force) for path in paths]


def _require_existing(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        raise MemberError(
            f"{path} does not exist: make a directory (mkdir {path}) or an image file "
            f"(truncate -s SIZE {path}) first",
            path,
            errno.ENOENT,
        ) from None
    except OSError:
        kind_of(path)  # says what is wrong
        raise


def _refuse_nested(paths: Iterable[str]) -> None:
    real = sorted((os.path.realpath(path).rstrip("/") + "/", path) for path in paths)
    for (outer, first), (inner, second) in itertools.pairwise(real):
        if inner.startswith(outer):
            raise UsageError(f"{second} lies inside {first}: members must lie beside each other")


def _look(path: str, *, force: bool) -> Site:
    kind = kind_of(path)
    with said_of(path, "looking at it"):
        found = os.stat(path)
    if kind == "directory":
        ours = _look_into_directory(path, force=force)
        with said_of(path, "asking for free room"):
            room = os.statvfs(path)
        room_bytes = room.f_bavail * room.f_frsize
    else:
        ours, room_bytes = _look_into_raw(path, force=force)
    return Site(
        path=path,
        kind=kind,
        identity=identity(path),
        filesystem=None if kind == "device" else found.st_dev,
        room_bytes=room_bytes,
        ours=ours,
    )


def _look_into_directory(path: str, *, force: bool) -> bool:
    with said_of(path, "looking into it"):
        names = set(os.listdir(path))
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "")
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "")
    if LABEL_NAME in names and os.path.isfile(os.path.join(path, LABEL_NAME)):
        member = construct(path, read_only=False, lock=True)  # refuses if it is in use
        try:
            ours = _look_at_label(member, force=force)
        finally:
            member.close()
        if ours:
            return True
    taken = sorted(names & set(OWN_NAMES))
    if taken and not _is_remainder(path, taken):
        raise UsageError(
            f"{path} holds {' and '.join(taken)}, names that raidfs needs, and they aren't its "
            "own: move them away or use another directory"
        )
    if names and not force:
        raise UsageError(
            f"{path} is not empty: use an empty directory, or --force to share this one (its files "
            "stay as they are)"
        )
    return bool(taken)


def _is_remainder(path: str, taken: list[str]) -> bool:
    """Whether what bears our names is what a creation that was killed leaves: no content."""
    for name in taken:
        full = os.path.join(path, name)
        if name == LABEL_NAME:
            if not os.path.isfile(full) or _has_content(full):
                return False
        elif name in (METADATA_NAME, ZONES_NAME) and not os.path.isdir(full):
            return False
    return LABEL_NAME in taken


def _has_content(path: str) -> bool:
    with said_of(path, "reading"), open(path, "rb") as file:
        return any(file.read(1 << 20))


def _look_at_label(member: Member, *, force: bool) -> bool:
    """Whether there is a label of ours, whole or damaged; refused unless forced."""
    try:
        label: Label | None = newest_copy(member.path, read_copies(member))
    except LabelMissing:
        return False
    except LabelError:
        label = None
    if force:
        return True
    if label is None:
        raise UsageError(
            f"{member.path} has a damaged raidfs label, so it may hold data of a volume: use "
            "another place, or --force to give that data up"
        )
    raise UsageError(
        f"{member.path} is member {label.member_id} of the volume {label.volume_name} already: use "
        "another place, or --force to give that volume's data here up"
    )


def _look_into_raw(path: str, *, force: bool) -> tuple[bool, int]:
    member = construct(path, read_only=False, lock=True)  # refuses if in use or not writable
    try:
        _refuse_attached(path)
        ours = _look_at_label(member, force=force)
        with said_of(path, "reading"):
            size = _raw_bytes(path)
            head = _head(path)
    finally:
        member.close()
    if not ours and not force:
        for offset, magic, what in SIGNATURES:
            if head[offset : offset + len(magic)] == magic:
                raise UsageError(
                    f"{path} seems to hold {what}: use another place, or --force to overwrite it"
                )
    return ours, size


def _refuse_attached(path: str) -> None:
    """An image file under a loop device is in use, though nothing locks it."""
    if kind_of(path) != "image":
        return
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            attached = os.path.samefile(loop.read_text().rstrip("\n"), path)
        except OSError:
            continue
        if attached:
            device = f"/dev/{loop.parent.parent.name}"
            raise MemberBusy(
                f"{path} is attached to {device}: name {device} instead, or detach it "
                f"(losetup -d {device})"
            )


def _raw_bytes(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _head(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        out = bytearray(_PROBE_BYTES)
        got = read_up_to(fd, 0, memoryview(out))
        return bytes(out[:got])
    finally:
        os.close(fd)
