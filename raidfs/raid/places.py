"""From a path to a member: what kind of place it is, whether two paths mean the same, opening.

1. Looking (`kind_of`, `identity`, `peek`) takes no lock and changes nothing.
2. Two paths have the same identity if writes to one show in the other as far as the system tells:
   through symbolic links, bind mounts, device aliases, and loop devices over one file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from raidfs.errors import UsageError
from raidfs.raid.directory import DirectoryMember
from raidfs.raid.label import Label, read_labels
from raidfs.raid.member import Kind, Member, said_of
from raidfs.raid.raw import DeviceMember, ImageMember

Identity = tuple[str, int, int, int]


def kind_of(path: str) -> Kind:
    """MemberError if there is nothing or it can't be reached, UsageError if it is no such place."""
    with said_of(path, "looking at it"):
        mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISREG(mode):
        return "image"
    if stat.S_ISBLK(mode):
        return "device"
    raise UsageError(f"{path} can't be a member: name a directory, an image file or a block device")


def identity(path: str) -> Identity:
    """Equal for two paths that mean the same bytes (promise 2). MemberError."""
    with said_of(path, "looking at it"):
        found = os.stat(path)
    if not stat.S_ISBLK(found.st_mode):
        return ("file", found.st_dev, found.st_ino, 0)
    loop = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/loop")
    try:
        backing = os.stat((loop / "backing_file").read_text().rstrip("\n"))
        offset = int((loop / "offset").read_text())
    except OSError:  # no loop device, or a file that can't be seen from here
        return ("device", found.st_rdev, 0, 0)
    return ("file", backing.st_dev, backing.st_ino, offset)


def construct(path: str, *, read_only: bool, lock: bool, direct: bool = False) -> Member:
    """Opened, but its label not looked at. MemberError, MemberBusy, LabelMissing, UsageError."""
    kind = kind_of(path)
    path = os.path.abspath(path)
    if kind == "directory":
        return DirectoryMember(path, read_only=read_only, lock=lock, direct=direct)
    if kind == "image":
        return ImageMember(path, read_only=read_only, lock=lock, direct=direct)
    return DeviceMember(path, read_only=read_only, lock=lock, direct=direct)


def open_member(
    path: str, *, read_only: bool = False, lock: bool | None = None, direct: bool = False
) -> Member:
    """Open the member at `path` with the sizes that its own label gives it.

    lock: by default only if not read_only. direct: columns past the page cache.
    MemberError, MemberBusy, LabelMissing, LabelError; UsageError if `direct` can't be.
    """
    lock = not read_only if lock is None else lock
    member = construct(path, read_only=read_only, lock=lock, direct=direct)
    try:
        member.adopt(read_labels(member))
    except BaseException:
        member.close()
        raise
    return member


def peek(path: str) -> Label:
    """The label of the member at `path`, mounted or not. Errors as `open_member`."""
    member = construct(path, read_only=True, lock=False)
    try:
        return read_labels(member)
    finally:
        member.close()
