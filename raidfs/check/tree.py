"""Inodes, names, attributes: one tree of directories in every view, and all counts are right.

Words: view, span: see ledger.py. What names of a directory or an inode can't have in one view they
may well have in different ones, so every comparison is one of spans.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate, pairwise

import numpy as np

from ..store.hidden import MOVES_INO
from ..store.inodes import Dirent, InodeRow
from ..store.meta import ROOT_INO, Meta
from ..store.spool import SPOOL_INO
from .ledger import Difference, Ledger, Numbers, Span, Views
from .report import Report
from .versions import Versions

DIRECTORY = stat.S_IFDIR >> 12
FILE = stat.S_IFREG >> 12
ABOVE_ALL = frozenset({SPOOL_INO, MOVES_INO})  # numbers that are never handed out
# What is counted of an inode
LINKS, SUBDIRECTORIES, XATTRS, CELLS = range(4)


class Files:
    """The versions of all inodes that some view sees, by number and birth; columns of numbers."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._columns: Numbers | None = None
        self._inos: Numbers = np.empty(0, dtype=np.int64)

    def add(self, ino: int, span: Span, kind: int, size: int) -> None:
        self._rows.extend((ino, span[0], span[1], kind, size))

    def _of(self, ino: int) -> Numbers:
        """(versions, 4): first, end, kind, size."""
        if self._columns is None:
            self._columns = np.frombuffer(self._rows, dtype=np.int64).reshape(-1, 5)
            self._inos = np.ascontiguousarray(self._columns[:, 0])
        first, end = np.searchsorted(self._inos, [ino, ino + 1])
        return self._columns[first:end, 1:]

    def exists(self, ino: int, view: int) -> bool:
        rows = self._of(ino)
        return bool(((rows[:, 0] <= view) & (view < rows[:, 1])).any())

    def sizes(self, ino: int, span: Span) -> Numbers | None:
        """Sizes of a regular file in these views, each once; None if it is missing in any."""
        rows = self._of(ino)
        if len(rows) > 1:
            rows = rows[(rows[:, 0] < span[1]) & (rows[:, 1] > span[0])]
        rows = rows[rows[:, 2] == FILE]
        seen = np.minimum(rows[:, 1], span[1]) - np.maximum(rows[:, 0], span[0])
        if int(seen.sum()) != span[1] - span[0]:
            return None
        return np.unique(rows[:, 3]) if len(rows) > 1 else rows[:, 3]


class Tree:
    """One run over the tables. `files` and `counts` are for the leaves, which come after."""

    def __init__(
        self, meta: Meta, views: Views, versions: Callable[[], Versions], report: Report
    ) -> None:
        self.meta = meta
        self.views = views
        self.report = report
        self._versions = versions
        self.files = Files()
        self.counts = Ledger()  # by (inode, what is counted)
        self._kinds = Ledger()  # by (inode, kind): names lead there, and are in directories
        self._places = Ledger()  # by (inode, parent)
        self._directories: dict[int, list[tuple[int, int, int]]] = {}  # first, end, parent
        self._orphans: set[int] = set()
        self.inodes = views.totals()
        self.highest = [0] * (views.present + 1)  # number of an inode, in each view

    def run(self) -> None:
        self._inodes()
        self._names()
        self._xattrs()

    # -- what the rows say ------------------------------------------------------------------------

    def _inodes(self) -> None:
        versions = self._versions()
        for row, version in self.meta.all_inodes():
            versions.look(("inode", row.ino), version)
            if row.ino >= self.meta.next_ino and row.ino not in ABOVE_ALL:
                self.report.add("inode.number", f"inode {row.ino} was never handed out")
            if row.size < 0 or (stat.S_ISLNK(row.mode) and row.size != len(row.target or b"")):
                self.report.add("inode.size", f"inode {row.ino} has size {row.size}")
            self.report.count("inodes", version.live)
            span = self.views.span(version)
            if span[0] < span[1]:
                self._inode(row, span)
        self._kinds.said(ROOT_INO, DIRECTORY, (0, self.views.present + 1))
        if self.meta.count_inodes() != self.report.counts.get("inodes", 0):
            live = self.report.counts.get("inodes", 0)
            self.report.add("inode.count", f"{live} inodes, not {self.meta.count_inodes()}")

    def _inode(self, row: InodeRow, span: Span) -> None:
        ino, nlink, kind = row.ino, row.nlink, stat.S_IFMT(row.mode) >> 12
        self.files.add(ino, span, kind, row.size)
        self.views.add(self.inodes, span)
        if ino not in ABOVE_ALL:
            self.highest[span[0]] = max(self.highest[span[0]], ino)
        self._kinds.found(ino, kind, span)
        self.counts.said(ino, XATTRS, span, row.xattrs)
        self.counts.said(ino, CELLS, span, row.cells)
        if kind != DIRECTORY:
            self.counts.said(ino, LINKS, span, nlink)
            if nlink and row.parent:
                self._places.said(ino, row.parent, span)
        else:
            # A removed one, still open, leads nowhere, and nothing leads through it.
            parent = row.parent if nlink else ROOT_INO
            self._directories.setdefault(ino, []).append((*span, parent))
            self.counts.said(ino, SUBDIRECTORIES, span, max(nlink - 2, 0))
            if nlink and ino not in (ROOT_INO, MOVES_INO):
                self.counts.said(ino, LINKS, span)
                self._places.said(ino, row.parent, span)
        if nlink == 0 and span[1] > self.views.present:
            if ino == SPOOL_INO:
                self.report.count("streams received in part")
            else:
                self._orphans.add(ino)

    def _names(self) -> None:
        versions = self._versions()
        directory = -1
        there: dict[bytes, list[Span]] = {}
        for parent, entry, version in self.meta.all_dirents():
            versions.look(("name", parent, entry.position), version)
            self.report.count("names", version.live)
            span = self.views.span(version)
            if span[0] == span[1]:
                continue
            if not self.meta.position_good(entry):
                text = f"{entry.name!r} in inode {parent} can't be found by its name"
                self.report.add("names.position", text)
            if parent != directory:
                self._twice(directory, there)
                directory, there = parent, {}
            there.setdefault(entry.name, []).append(span)
            self._name(parent, entry, span)
        self._twice(directory, there)

    def _name(self, parent: int, entry: Dirent, span: Span) -> None:
        self._kinds.said(entry.ino, entry.kind, span)
        self._kinds.said(parent, DIRECTORY, span)
        self._places.found(entry.ino, parent, span)
        self.counts.found(entry.ino, LINKS, span)
        if entry.kind == DIRECTORY:
            self.counts.found(parent, SUBDIRECTORIES, span)

    def _twice(self, directory: int, there: dict[bytes, list[Span]]) -> None:
        """A name is in a directory once."""
        for name, spans in there.items():
            if len(spans) == 1:
                continue
            spans.sort()
            for before, after in pairwise(spans):
                if before[1] > after[0]:
                    where = self.views.where(min(before[1], after[1]) - 1)
                    self.report.add("names.twice", f"{name!r} in inode {directory}{where}")

    def _xattrs(self) -> None:
        versions = self._versions()
        for ino, name, _, version in self.meta.all_xattrs():
            versions.look(("xattr", ino, name), version)
            self.counts.found(ino, XATTRS, self.views.span(version))

    # -- what follows from them -------------------------------------------------------------------

    def conclude(self) -> None:
        """After the leaves were counted."""
        # Who was there in a view and is no more still was handed out: let `highest` only rise.
        self.highest = list(accumulate(self.highest, max))
        self._leads()
        self._held()
        self._counted()
        self._cycles()
        if self._orphans:
            text = f"{len(self._orphans)} files have no name; a mount removes them"
            self.report.note("names.orphans", text)

    def _leads(self) -> None:
        """Names lead to what is there, and are in directories that are."""
        lacking = {(each.key, each.sort): each.view for each in self._kinds.lacking()}
        if not lacking:
            return
        if (ROOT_INO, DIRECTORY) in lacking:
            where = self.views.where(lacking[ROOT_INO, DIRECTORY])
            self.report.add("inode.root", f"the root directory is missing{where}")
        for parent, entry, version in self.meta.all_dirents():  # again, to tell which names
            first, end = self.views.span(version)
            text = f"{entry.name!r} in inode {parent}"
            view = lacking.get((parent, DIRECTORY), -1)
            if first <= view < end:
                where = self.views.where(view)
                self.report.add("names.parent", f"{text}: that is no directory{where}")
            view = lacking.get((entry.ino, entry.kind), -1)
            if first <= view < end:
                self._misled(text, entry, view)

    def _misled(self, text: str, entry: Dirent, view: int) -> None:
        where = self.views.where(view)
        if self.files.exists(entry.ino, view):
            text = f"{text} says that inode {entry.ino} is of kind {entry.kind}{where}"
            self.report.add("names.kind", text)
        else:
            text = f"{text} leads to inode {entry.ino}, which isn't there{where}"
            self.report.add("names.dangling", text)

    def _held(self) -> None:
        """What an inode says of where it is has a name of it."""
        for wrong in self._places.lacking():
            text = f"inode {wrong.key} has parent {wrong.sort}, where no name leads to it"
            text += self.views.where(wrong.view)
            if wrong.key in self._directories:
                self.report.add("names.dotdot", text)
            else:
                self.report.add("inode.parent", text)

    def _counted(self) -> None:
        for wrong in self.counts.unequal():
            ino, where = wrong.key, self.views.where(wrong.view)
            if not self.files.exists(ino, wrong.view):
                if wrong.sort == XATTRS:
                    text = f"attributes of inode {ino}, which isn't there{where}"
                    self.report.add("xattr.dangling", text)
            elif wrong.sort == XATTRS:
                text = f"inode {ino}: {wrong.said} attributes, counted {wrong.found}{where}"
                self.report.add("xattr.count", text)
            elif wrong.sort == CELLS:
                text = f"inode {ino}: {wrong.said} cells, counted {wrong.found}{where}"
                self.report.add("inode.cells", text)
            else:
                self._links(wrong, where)

    def _links(self, wrong: Difference, where: str) -> None:
        ino = wrong.key
        self._orphans.discard(ino)
        if wrong.sort == SUBDIRECTORIES or ino not in self._directories:
            also = 2 if wrong.sort == SUBDIRECTORIES else 0
            text = f"inode {ino}: nlink {wrong.said + also}, counted {wrong.found + also}{where}"
            self.report.add("names.nlink", text)
        elif wrong.found:
            self.report.add("names.directory", f"directory {ino} has {wrong.found} names{where}")
        else:
            self.report.add("names.lost", f"directory {ino} has no name{where}")

    def _cycles(self) -> None:
        """Each directory leads to the root. A cycle is complete when the last of the versions that
        it is made of begins, so it is enough to set out from each version in its first view. That
        what a directory says of where it is has its name was looked at in `_held`."""
        starts = [(life[0], ino) for ino, lives in self._directories.items() for life in lives]
        view, good = -1, {ROOT_INO}
        for first, ino in sorted(starts):
            if first != view:
                view, good = first, {ROOT_INO}
            steps: set[int] = set()
            at: int | None = ino
            while at is not None and at not in good and at not in steps:
                steps.add(at)
                at = self._parent(at, view)
            if at is not None and at in good:
                good |= steps
            else:
                text = f"directory {ino} does not lead to the root{self.views.where(view)}"
                self.report.add("names.cycle", text)

    def _parent(self, ino: int, view: int) -> int | None:
        """Of a directory in a view."""
        lives = self._directories.get(ino, [])
        at = bisect_right(lives, view, key=lambda life: life[0]) - 1
        return lives[at][2] if at >= 0 and view < lives[at][1] else None
