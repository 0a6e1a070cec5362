"""The changing part of an operation: see the skeleton in inode.py.

1. Versions split, names and xattrs change: all of it, or none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cached import Inode
from .views import check_changeable

if TYPE_CHECKING:
    from .inode import Inodes


class Change:
    """See `Inodes.change`; a class, since each change of a name passes here."""

    __slots__ = ("_atomic", "_inodes", "_owner")

    def __init__(self, owner: Inodes, inodes: tuple[Inode, ...], freeing: bool) -> None:
        self._owner = owner
        self._inodes = inodes
        self._atomic = owner.meta.atomic(freeing)

    def __enter__(self) -> int:
        owner = self._owner
        owner.store.writable()
        epoch = owner.store.epoch
        for inode in self._inodes:
            check_changeable(inode.row.ino)
            owner.watches.note(inode.row.ino)
            owner.untell(inode)
        self._atomic.__enter__()
        try:
            for inode in self._inodes:
                if inode.row.born != epoch:
                    owner.meta.save_inode(epoch, inode.row)
        except BaseException as error:
            self._atomic.__exit__(type(error), error, None)
            raise
        return epoch

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._atomic.__exit__(kind, error, trace)
        if error is None:
            self._owner.changed(self._inodes)
