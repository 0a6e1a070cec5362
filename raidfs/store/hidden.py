"""What is hidden of files that move between volumes (fs/moves.py): a tree with a root of its own.

    MOVES_INO / number of the move, in hex / item ...

No name leads to that root, so nobody who sets out from the volume's root gets there, in the present
or in a snapshot. It has a number above all that are ever handed out, and is there only as long as
there is something in it. Who goes by inode numbers (send, diff, rollback) asks here what to leave
out.

 1. A file is seen if one of its names is: then it is told as if it had no others.
"""

from __future__ import annotations

import stat
from collections.abc import Collection
from copy import copy
from typing import TYPE_CHECKING

import trio

from raidfs.store.past import FIRST_VIEW, as_view, within

if TYPE_CHECKING:
    from raidfs.store.meta import InodeRow, Meta

MOVES_INO = FIRST_VIEW - 2
ENTRIES_AT_ONCE = 1000
DIRECTORY = stat.S_IFDIR >> 12


class Hidden:
    """Of one state: a snapshot, or the present (0). `names`: of each inode, how many of its names
    are hidden; numbers are those of the tables."""

    def __init__(self, names: dict[int, int]) -> None:
        self.names = names

    @property
    def inos(self) -> Collection[int]:
        """What has a name that is hidden; it may have others."""
        return self.names.keys() - {MOVES_INO}

    def seen(self, row: InodeRow | None) -> InodeRow | None:
        """Promise 1. None: nothing of it is to be seen."""
        count = self.names.get(within(row.ino)) if row is not None else None
        if row is None or count is None:
            return row
        if stat.S_ISDIR(row.mode) or row.nlink <= count:
            return None
        row = copy(row)
        row.nlink -= count
        if within(row.parent) in self.names:
            row.parent = 0  # where another one is, is not known
        return row


async def hidden(meta: Meta, snapshot: int = 0) -> Hidden:
    """All that is hidden there. It costs what that is; others get the event loop meanwhile."""
    names = {MOVES_INO: 1}
    todo = [MOVES_INO]
    while todo:
        directory, position = as_view(snapshot, todo.pop()), -1
        while found := meta.entries(directory, position, ENTRIES_AT_ONCE):
            position = found[-1].position
            for entry in found:
                ino = within(entry.ino)
                names[ino] = names.get(ino, 0) + 1
                if entry.kind == DIRECTORY:
                    todo.append(ino)
            await trio.lowlevel.checkpoint()
    return Hidden(names)
