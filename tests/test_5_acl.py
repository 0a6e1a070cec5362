"""POSIX ACLs: the xattr format, and list and mode kept in step. Pure functions, vectors by hand."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidfs.errors import FsError
from raidfs.fs import acl
from raidfs.fs.acl import GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, AclEntry


def value(*entries: tuple[int, ...]) -> bytes:
    """An xattr's value from (tag, permissions[, id])."""
    packed = [struct.pack("<HHI", *(e if len(e) == 3 else (*e, NO_ID))) for e in entries]
    return struct.pack("<I", 2) + b"".join(packed)


# What `setfacl -m u:1000:rw,g:50:rx FILE` stores for a file of mode 0640.
NAMED = value((USER_OBJ, 6), (USER, 6, 1000), (GROUP_OBJ, 4), (GROUP, 5, 50), (MASK, 7), (OTHER, 0))
PLAIN = value((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 1))


def test_parse_and_encode_are_inverse() -> None:
    for data in (NAMED, PLAIN):
        parsed = acl.parse(data)
        assert parsed is not None
        assert acl.encode(parsed) == data
    assert acl.parse(value()) is None


def test_known_bytes() -> None:
    parsed = acl.parse(
        bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff")
        + bytes.fromhex("10000600ffffffff20000000ffffffff")
    )
    assert parsed == (
        AclEntry(USER_OBJ, 6),
        AclEntry(USER, 6, 1000),
        AclEntry(GROUP_OBJ, 4),
        AclEntry(MASK, 6),
        AclEntry(OTHER, 0),
    )


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\2\0\0",
        PLAIN[:-1],
        PLAIN[:-8],  # no other
        value((GROUP_OBJ, 5), (OTHER, 1)),
        value((USER_OBJ, 7), (OTHER, 1)),
        value((USER_OBJ, 7), (OTHER, 1), (GROUP_OBJ, 5)),
        value((USER_OBJ, 7), (USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 1)),
        value((USER_OBJ, 7), (USER, 6, 1), (GROUP_OBJ, 5), (OTHER, 1)),  # named, no mask
        value((USER_OBJ, 7), (GROUP_OBJ, 5), (GROUP, 6, 1), (OTHER, 1)),
        value((USER_OBJ, 7), (USER, 6), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 1)),  # no id
        value((USER_OBJ, 8), (GROUP_OBJ, 5), (OTHER, 1)),
        value((USER_OBJ, 7), (GROUP_OBJ, 5), (0x40, 1)),
        value((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 1), (OTHER, 1)),
    ],
)
def test_bad_values_are_refused(bad: bytes) -> None:
    with pytest.raises(FsError) as caught:
        acl.parse(bad)
    assert caught.value.errno == errno.EINVAL


def test_unknown_version() -> None:
    with pytest.raises(FsError) as caught:
        acl.parse(struct.pack("<I", 1) + PLAIN[4:])
    assert caught.value.errno == errno.EOPNOTSUPP


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_fail(data: bytes) -> None:
    for each in (data, struct.pack("<I", 2) + data):
        try:
            parsed = acl.parse(each)
        except FsError:
            continue
        assert parsed is None or acl.parse(acl.encode(parsed)) == parsed


def parsed(data: bytes) -> acl.Acl:
    result = acl.parse(data)
    assert result is not None
    return result


def test_mode_shows_owner_mask_other() -> None:
    assert acl.mode_of(parsed(NAMED), 0o104755) == 0o104670
    assert acl.mode_of(parsed(PLAIN), 0o100000) == 0o100751
    assert acl.minimal(parsed(PLAIN))
    assert not acl.minimal(parsed(NAMED))
    # A mask alone is more than a mode can say.
    assert not acl.minimal(parsed(value((USER_OBJ, 7), (GROUP_OBJ, 5), (MASK, 1), (OTHER, 1))))


def test_chmod_changes_the_mask_not_the_group() -> None:
    after = acl.with_mode(parsed(NAMED), 0o751)
    assert acl.mode_of(after, 0) == 0o751
    assert AclEntry(GROUP_OBJ, 4) in after
    assert AclEntry(USER, 6, 1000) in after
    assert AclEntry(GROUP_OBJ, 3) in acl.with_mode(parsed(PLAIN), 0o731)


@pytest.mark.parametrize(
    ("default", "asked", "mode", "kept"),
    [
        (PLAIN, 0o100666, 0o100640, None),  # and: 751 & 666, no umask
        (PLAIN, 0o040777, 0o040751, None),
        (NAMED, 0o100666, 0o100660, (6, 6, 4, 5, 6, 0)),
        (NAMED, 0o100604, 0o100600, (6, 6, 4, 5, 0, 0)),
        (NAMED, 0o040777, 0o040670, (6, 6, 4, 5, 7, 0)),
        (NAMED, 0o102070, 0o102070, (0, 6, 4, 5, 7, 0)),
    ],
)
def test_inherit(default: bytes, asked: int, mode: int, kept: tuple[int, ...] | None) -> None:
    got, access = acl.inherit(parsed(default), asked)
    assert got == mode
    assert (access and tuple(entry.permissions for entry in access)) == kept
    if access is not None:
        assert acl.mode_of(access, mode) == mode
