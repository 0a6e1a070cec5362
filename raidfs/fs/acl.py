"""POSIX access control lists, in the form in which Linux passes them as extended attributes.

An ACL has three entries that mirror the mode (owner, group, other), named users and groups, and,
once it has any of these, a mask: the most that owner group, named users and groups get. The mode's
group bits then show the mask. The kernel checks permissions; ours is to keep list and mode in step.

Format (version 2, little endian): u32 version = 2, then per entry u16 tag, u16 permissions, u32 id.
After Linux's fs/posix_acl.c (posix_acl_valid, posix_acl_equiv_mode, posix_acl_create_masq,
posix_acl_chmod), which follows the withdrawn POSIX 1003.1e draft 17, section 23.

 1. An access ACL that says no more than the mode is not kept: the mode alone then speaks.
 2. After every setxattr and chmod the kept ACL and the mode agree in owner, mask (or group), other.
 3. Whatever bytes arrive, the answer is an Acl or FsError(EINVAL).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import FsError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_VERSION = 2

# Which tag may follow which: the order that the kernel demands and getfacl prints.
_FOLLOWS: dict[int, frozenset[int]] = {
    0: frozenset({USER_OBJ}),
    USER_OBJ: frozenset({USER, GROUP_OBJ}),
    USER: frozenset({USER, GROUP_OBJ}),
    GROUP_OBJ: frozenset({GROUP, MASK, OTHER}),
    GROUP: frozenset({GROUP, MASK}),
    MASK: frozenset({OTHER}),
    OTHER: frozenset(),
}


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One line of a list: `permissions` are rwx bits 0..7, `id` is NO_ID unless named."""

    tag: int
    permissions: int
    id: int = NO_ID


Acl = tuple[AclEntry, ...]


def parse(data: bytes) -> Acl | None:
    """The list in an xattr's value; None for one without entries, which means "remove it"."""
    if len(data) < _HEADER.size or (len(data) - _HEADER.size) % _ENTRY.size:
        raise FsError(errno.EINVAL, "an ACL of impossible length")
    if _HEADER.unpack_from(data)[0] != _VERSION:
        raise FsError(errno.EOPNOTSUPP, "an ACL of unknown version")
    acl = tuple(
        AclEntry(tag, permissions, number if tag in (USER, GROUP) else NO_ID)
        for tag, permissions, number in _ENTRY.iter_unpack(data[_HEADER.size :])
    )
    if not acl:
        return None
    _validate(acl)
    return acl


def _validate(acl: Acl) -> None:
    """Order and number of entries; a mask exactly when someone is named (or, allowed, without)."""
    before, named = 0, False
    for entry in acl:
        if entry.tag not in _FOLLOWS[before]:
            raise FsError(errno.EINVAL, "the entries of an ACL are out of order")
        if entry.permissions & ~7:
            raise FsError(errno.EINVAL, "an ACL grants what does not exist")
        if entry.tag in (USER, GROUP):
            named = True
            if entry.id == NO_ID:
                raise FsError(errno.EINVAL, "an ACL names nobody")
        if entry.tag == OTHER and named and before != MASK:
            raise FsError(errno.EINVAL, "an ACL names someone but has no mask")
        before = entry.tag
    if before != OTHER:
        raise FsError(errno.EINVAL, "an ACL is cut short")


def encode(acl: Acl) -> bytes:
    """The xattr's value for a list."""
    return _HEADER.pack(_VERSION) + b"".join(
        _ENTRY.pack(entry.tag, entry.permissions, entry.id) for entry in acl
    )


def minimal(acl: Acl) -> bool:
    """The list says no more than a mode can."""
    return len(acl) == 3


def mode_of(acl: Acl, mode: int) -> int:
    """`mode` with the permission bits that the list gives to owner, group class and other."""
    bits = {entry.tag: entry.permissions for entry in acl}
    group = bits.get(MASK, bits[GROUP_OBJ])
    return mode & ~0o777 | bits[USER_OBJ] << 6 | group << 3 | bits[OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """The list after chmod(mode): owner, other, and the mask where there is one, else the group."""
    group_class = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_class: mode >> 3 & 7, OTHER: mode & 7}
    return _with_bits(acl, bits)


def _with_bits(acl: Iterable[AclEntry], bits: dict[int, int]) -> Acl:
    return tuple(replace(e, permissions=bits.get(e.tag, e.permissions)) for e in acl)


def inherit(default: Acl, mode: int) -> tuple[int, Acl | None]:
    """(mode, access ACL or None) of an object created with `mode` where `default` rules: the umask
    plays no part, each class gets what both the list and the asked mode allow."""
    have = {entry.tag: entry.permissions for entry in default}
    group_class = MASK if MASK in have else GROUP_OBJ
    bits = {
        USER_OBJ: have[USER_OBJ] & mode >> 6,
        group_class: have[group_class] & mode >> 3,
        OTHER: have[OTHER] & mode,
    }
    acl = _with_bits(default, bits)
    return mode_of(acl, mode), None if minimal(acl) else acl
