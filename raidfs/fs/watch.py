"""Inodes whose changes somebody waits for, and inodes that are not to be reached any more.

A *watch* is laid on inodes one by one, before each is looked at. As long as it is whole, nothing of
what was seen has changed: so a tree of any size can be looked at in pieces, and then be acted upon
in one step. Whoever opens an inode breaks it, too, since C alone serves writes to what is open.

What is *given* belongs to another volume (moves.py). The kernel may yet have cached where names
led; opening or changing it answers ESTALE, upon which the kernel looks for the names anew.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import FsError


class Watch:
    """See the module. `inos`: those it lies on."""

    def __init__(self) -> None:
        self.inos: set[int] = set()
        self.is_whole = True


class Watches:
    """Those of one volume, and what it has given away: by move, inodes without a name elsewhere."""

    def __init__(self) -> None:
        self.all: list[Watch] = []
        self.given: dict[bytes, set[int]] = {}

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """It ends with the `with`."""
        watch = Watch()
        self.all.append(watch)
        try:
            yield watch
        finally:
            self.all.remove(watch)

    def note(self, ino: int) -> None:
        """The inode is about to change, or is opened."""
        for watch in self.all:
            if ino in watch.inos:
                watch.is_whole = False

    def break_all(self) -> None:
        """All may be other than it was; what was given away, too."""
        for watch in self.all:
            watch.is_whole = False
        self.given.clear()

    def check(self, *inos: int) -> None:
        """FsError: one of them is given away."""
        for given in self.given.values():
            if not given.isdisjoint(inos):
                raise FsError(errno.ESTALE, "it was moved to another volume")
