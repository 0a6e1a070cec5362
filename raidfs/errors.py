"""The vocabulary of errors: everything the world can do to us, typed, each with an errno.

Two kinds of error exist. Ours are asserts: they stay on and stop the program, because a state that
must not exist is not to be written to members. The world's are the classes below: an operation that
raises one has changed nothing, its text says in one sentence what is wrong and what to do next, and
its `errno` is what the kernel (or a script, through the exit code) is told.

 1. Every error that leaves a public function for a reason outside raidfs is a RaidfsError.
 2. `str(error)` is fit for a person: no traceback, no type name, no number without its meaning.
"""

from __future__ import annotations

import errno as _errno


class RaidfsError(Exception):
    """Base of all errors of the world. `errno` is a class attribute unless given."""

    errno: int = _errno.EIO

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        if errno is not None:
            self.errno = errno


class UsageError(RaidfsError):
    """What was asked for makes no sense: unknown level, wrong number of members, bad size."""

    errno = _errno.EINVAL


class MemberError(RaidfsError):
    """A member failed an operation (IO error, vanished, short transfer). `path` names it."""

    errno = _errno.EIO

    def __init__(self, message: str, path: str = "", errno: int | None = None) -> None:
        super().__init__(message, errno)
        self.path = path


class MemberFull(MemberError):
    """A member has no room for what must be written (its filesystem is full, say)."""

    errno = _errno.ENOSPC


class LossUnrecorded(MemberError):
    """A member was lost, and going on would make it differ from the others beyond what a later
    opening could notice. Record the loss in the labels, tell the mirror so, and try again."""


class MemberBusy(RaidfsError):
    """A member is in use by another process."""

    errno = _errno.EBUSY


class LabelError(RaidfsError):
    """A label is missing, damaged, or of a format this version doesn't know."""

    errno = _errno.EINVAL


class LabelMissing(LabelError):
    """There is no label at all: not a member of any volume."""


class NotEnoughMembers(RaidfsError):
    """More members are lost than the code survives; or running without one needs `-o degraded`."""

    errno = _errno.ENXIO


def means_missing(error: BaseException) -> bool:
    """Whether members are not there, as opposed to being there and refused."""
    gone = (_errno.ENOENT, _errno.ENXIO, _errno.ENODEV)
    return isinstance(error, NotEnoughMembers) or (
        isinstance(error, MemberError) and error.errno in gone
    )


class Divergent(RaidfsError):
    """Two parts of one volume were each changed without the other; neither is the newer."""

    errno = _errno.EUCLEAN


class Unrecoverable(RaidfsError):
    """Cells are lost or damaged beyond what their row can rebuild."""

    errno = _errno.EIO


class FormatError(RaidfsError):
    """Bytes read from a member or the network are not what the format says."""

    errno = _errno.EUCLEAN


class OutOfSpace(RaidfsError):
    """No room for data or metadata. Said when an operation arrives, never once it was done."""

    errno = _errno.ENOSPC


class ReadOnly(RaidfsError):
    """The volume was mounted read-only, or became so after an error it could not cover."""

    errno = _errno.EROFS


class NoSuchSnapshot(RaidfsError):
    """No snapshot has that name."""

    errno = _errno.ENOENT


class SnapshotHeld(RaidfsError):
    """The snapshot has holds; who wants it deleted releases them first."""

    errno = _errno.EBUSY


class FsError(RaidfsError):
    """A POSIX outcome of a file operation (ENOENT, EEXIST, ...): always made with its errno."""

    def __init__(self, errno: int, message: str = "") -> None:
        super().__init__(message or _errno.errorcode.get(errno, str(errno)), errno)
