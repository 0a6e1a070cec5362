"""Leaves: every version of each belongs to a file, ends with it, refers to cells that are its."""

from __future__ import annotations

import numpy as np

from ..pages import LEAF_PAGES
from ..store.meta import Leaf, Meta
from .ledger import Numbers, Span, Views
from .report import Report
from .tree import CELLS, Tree
from .versions import Versions
from .zones import Reference, Zones

_NO_SIZES = np.empty(0, dtype=np.int64)


class Leaves:
    """One walk over the table."""

    def __init__(self, meta: Meta, views: Views, tree: Tree, zones: Zones, report: Report) -> None:
        self.meta = meta
        self.views = views
        self.tree = tree
        self.zones = zones
        self.report = report
        self.cells = views.totals()

    def run(self, versions: Versions) -> None:
        for ino, number, leaf, version in self.meta.all_leaves():
            versions.look(("leaf", ino, number), version)
            self.report.count("leaves", version.live)
            self._leaf(ino, number, leaf, self.views.span(version))

    def _leaf(self, ino: int, number: int, leaf: Leaf, span: Span) -> None:
        where = f"leaf {number} of inode {ino}"
        sizes = self._sizes(ino, span, where)
        if sizes is None:
            return
        smallest = int(sizes.min()) if len(sizes) else 1 << 62
        if leaf.inline is not None and any(leaf.inline[smallest:]):
            self.report.add("leaf.inline", f"{where}: bytes beyond the end are not zeros")
        if leaf.addresses is None:
            return
        used = np.flatnonzero(leaf.addresses)
        last = number * LEAF_PAGES + int(used[-1]) if len(used) else -1
        if last * self.meta.cell_bytes >= smallest:
            self.report.add("leaf.end", f"{where} has cells beyond the end of the file")
        if leaf.inline is not None and leaf.addresses[0]:
            self.report.add("leaf.both", f"{where}: page 0 is inline and in a cell")
        self.tree.counts.found(ino, CELLS, span, len(used))
        self.views.add(self.cells, span, len(used))
        pages = used.astype(np.uint64) + np.uint64(number * LEAF_PAGES)
        reference = Reference(ino, number, span, where)
        self.zones.refer(reference, pages, leaf.addresses[used], sizes)

    def _sizes(self, ino: int, span: Span, where: str) -> Numbers | None:
        """Of the file in all views that see the leaf. None, and a finding, if there is no file."""
        if span[0] == span[1]:
            return _NO_SIZES  # nobody sees it; only what it refers to counts
        sizes = self.tree.files.sizes(ino, span)
        if sizes is None:
            text = f"{where}: no such file{self.views.where(span[1] - 1)}"
            self.report.add("leaf.dangling", text)
        return sizes
