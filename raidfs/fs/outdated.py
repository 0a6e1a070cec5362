"""What is in memory of inodes when they go, or become others, by no operation on them.

A snapshot is deleted, and with it all inodes of its view; a rollback makes the present what it was
at a snapshot. Whoever has files of these open keeps them: they go on with their new content, or
answer ESTALE until they are closed.

 1. From the return on, nothing older is told: not by `Inodes`, `Pages`, nor `Known`. (Of a view
    `Inodes` tells nothing from the moment on that the snapshot is gone.)
 2. Opens and references stay counted, whatever becomes of the inode.
"""

from __future__ import annotations

from collections.abc import Collection

from ..store.past import FIRST_VIEW, as_view, view_of
from ..store.spool import SPOOL_INO
from .cached import Inode
from .inode import Inodes


def forget_views(inodes: Inodes, ids: Collection[int]) -> list[int]:
    """These snapshots exist no more. Returns their inodes that are open. It looks at all that is in
    memory, so many at once are best; `Known` may lose what it knows of those in between, too."""
    ids = inodes.viewed & set(ids)
    if not ids:
        return []
    inodes.viewed -= ids
    inodes.known.forget_between(as_view(min(ids), 0), as_view(max(ids) + 1, 0) - 1)
    here = [inode for inode in inodes.in_memory() if view_of(inode.ino) in ids]
    for inode in here:
        inodes.vanish(inode)
    return [inode.ino for inode in here if inode.opens]


def reread(inodes: Inodes) -> list[Inode]:
    """The metadata of the present is other than it was; nothing is dirty and nobody within an
    operation. Returns the files still open, for which nobody vouches yet."""
    inodes.known.forget_between(0, FIRST_VIEW - 1)
    here = [inode for inode in inodes.in_memory() if inode.ino < FIRST_VIEW]
    for inode in here:
        row = inodes.row(inode.ino) if inode.pins else None  # others are read again when needed
        if row is None:
            inodes.vanish(inode)
        else:
            inodes.renew(inode, row)
    inodes.found_orphans(ino for ino in inodes.meta.orphans() if ino != SPOOL_INO)
    return [inode for inode in here if inode.resident and not inode.gone]
