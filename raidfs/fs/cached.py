"""One inode in memory: its row, and what is known of it besides. See inode.py for the words."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..store.meta import InodeRow


class Inode:
    """One inode in memory. `row` is its live version. `told`: `Known` may have its attributes.
    `untold`: it had them when the last change began."""

    __slots__ = (
        "before",
        "capability",
        "dirty",
        "gone",
        "linkable",
        "opens",
        "pins",
        "resident",
        "row",
        "told",
        "untold",
    )

    def __init__(self, row: InodeRow, told: bool) -> None:
        self.row = row
        self.before: InodeRow | None = None  # the row when `change_alone` first changed the inode
        self.told = told
        self.untold = False
        self.pins = 0
        self.opens = 0
        self.dirty = False
        self.resident = False
        self.gone = False
        self.linkable = False  # made without a name, and may get one
        self.capability: bool | None = None  # has the xattr security.capability; None: not known

    @property
    def ino(self) -> int:
        return self.row.ino

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.row.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.row.mode)


@dataclass(frozen=True, slots=True)
class InodeStatistics:
    """A moment's figures: inodes in memory; of these pinned, dirty, resident though closed; orphans
    not yet reaped; inodes that the kernel refers to."""

    cached: int
    pinned: int
    dirty: int
    closed_resident: int
    orphans: int
    referenced: int
