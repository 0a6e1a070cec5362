"""The table of snapshots, what holds them, and the figures that are told of them."""

from __future__ import annotations

import re
from itertools import pairwise

from ..errors import UsageError
from ..store.group_snapshots import HIDDEN, MOVING
from ..store.hidden import MOVES_INO
from ..store.meta import Meta
from ..store.past import SNAPSHOT_ID_MAX
from ..store.snapshots import PREPARED, TOOK_PART, check_name
from .leaves import Leaves
from .ledger import Views
from .report import Held, Report
from .tree import Tree
from .versions import Versions
from .zones import Zones

GUID_BYTES = 16
ENTRIES_AT_ONCE = 1000
HEX = re.compile(rb"[0-9a-f]{32}")
KEPT_KINDS = frozenset({PREPARED, TOOK_PART, "decision", "intent", "verdict", *MOVING})


class Snapshots:
    """Those of one volume; `views`: what they and the present show."""

    def __init__(self, meta: Meta, report: Report) -> None:
        self.meta = meta
        self.report = report
        self.rows = meta.snapshots()
        self.condemned = meta.condemned()
        self.retained = tuple(sorted({row.epoch for row in self.rows}))
        self.views = Views({row.epoch: row.name for row in self.rows})

    def versions(self) -> Versions:
        """To look at the versions of one more table."""
        condemned = [epoch for _, epoch in self.condemned]
        return Versions(self.meta, self.retained, condemned, self.report)

    def table(self) -> None:
        """Names, numbers, holds."""
        self.report.count("snapshots", len(self.rows))
        self.report.count("condemned snapshots", len(self.condemned))
        known = [(row.id, row.epoch, row.name) for row in self.rows]
        known += [(*row, "that was deleted") for row in self.condemned]
        for number, epoch, name in known:
            if not 0 < number <= SNAPSHOT_ID_MAX:
                self.report.add("snapshot.number", f"snapshot {name} has number {number}")
            if not 0 < epoch <= self.meta.durable:
                text = f"snapshot {name} is of epoch {epoch}, durable is {self.meta.durable}"
                self.report.add("snapshot.epoch", text)
        for row in self.rows:
            try:
                if not row.internal:
                    check_name(row.name)
            except UsageError as error:
                self.report.add("snapshot.name", str(error))
            if len(row.guid) != GUID_BYTES:
                text = f"snapshot {row.name} has an identity of {len(row.guid)} bytes"
                self.report.add("snapshot.guid", text)
        self._holds()
        self._groups()
        self._moves()

    def _holds(self) -> None:
        """A hold is of a snapshot that has a name, and can be named to be released."""
        ids = {row.id for row in self.rows}
        for number, tag in self.meta.all_holds():
            self.report.count("holds")
            if number not in ids:
                text = f"{tag!r} holds snapshot {number}, which isn't there"
                self.report.add("hold.dangling", text)
            try:
                check_name(tag, "hold")
            except UsageError as error:
                self.report.add("hold.tag", str(error))

    def _groups(self) -> None:
        """Parts of group snapshots are told by their ids; one without a name is called as it
        should, what is promised is there, and so is what messages were recorded for."""
        of_groups = {row.group_id: row for row in self.rows if row.group_id is not None}
        self.report.count("parts of group snapshots", len(of_groups))
        for group_id, row in of_groups.items():
            if len(group_id) != GUID_BYTES:
                text = f"snapshot {row.name} is of a group snapshot with {len(group_id)} bytes"
                self.report.add("snapshot.group", text)
            if row.internal and row.name != HIDDEN + group_id.hex():
                text = f"snapshot {row.name} is of group snapshot {group_id.hex()}"
                self.report.add("snapshot.group", text)
        for group_id, kind, _ in self.meta.kept():
            if kind != TOOK_PART:
                self.report.count("promises to the group")
            if kind not in KEPT_KINDS or len(group_id) != GUID_BYTES:
                self.report.add("kept.kind", f"{kind!r} is kept of {group_id.hex()}")
            row_of = of_groups.get(group_id)
            if kind == PREPARED and (row_of is None or not row_of.internal):
                text = f"group snapshot {group_id.hex()} is promised, and there is no hidden part"
                self.report.add("kept.prepared", text)
            if kind == TOOK_PART and (row_of is None or row_of.internal):
                text = f"who took part in group snapshot {group_id.hex()}, which isn't there"
                self.report.add("kept.parts", text)
        for group_id in self.meta.recorded_ids():
            if group_id not in of_groups:
                text = f"messages are recorded for {group_id.hex()}, which isn't there"
                self.report.add("recorded.dangling", text)

    def _moves(self) -> None:
        """What is hidden is so for a move, told by its number."""
        moves = {number.hex().encode() for number, kind, _ in self.meta.kept() if kind in MOVING}
        position, over = -1, 0
        while entries := self.meta.entries(MOVES_INO, position, ENTRIES_AT_ONCE):
            position = entries[-1].position
            for entry in entries:
                self.report.count("hidden for moves")
                over += entry.name not in moves
                if not HEX.fullmatch(entry.name):
                    self.report.add("moves.number", f"{entry.name!r} is hidden and no move's")
        if over:
            self.report.count("hidden for moves that are over", over)  # until the next mount

    # -- figures ----------------------------------------------------------------------------------

    def figures(self, tree: Tree, leaves: Leaves, zones: Zones) -> None:
        """What the rows of `snapshot` and `state` say, against what was counted."""
        inodes, cells = self.views.sums(tree.inodes), self.views.sums(leaves.cells)
        alone = zones.alone()
        if self.meta.live_cells() != cells[-1]:
            text = f"live leaves have {cells[-1]} cells, not {self.meta.live_cells()}"
            self.report.add("state.cells", text)
        several = {a.epoch for a, b in pairwise(self.rows) if a.epoch == b.epoch}
        for row in self.rows:
            view = self.views.epochs.index(row.epoch)
            counted = {"inodes": inodes[view], "cells": cells[view]}
            for what, number in counted.items():
                said = getattr(row, what)
                if said != number:
                    text = f"snapshot {row.name} has {number} {what}, not {said}"
                    self.report.add("snapshot.count", text)
            if row.next_ino > self.meta.next_ino or tree.highest[view] >= row.next_ino:
                text = (
                    f"snapshot {row.name}: numbers below {row.next_ino} were handed out, it has "
                    f"inode {tree.highest[view]}, and the present {self.meta.next_ino}"
                )
                self.report.add("snapshot.next_ino", text)
            held = 0 if row.epoch in several else alone[view]
            self.report.snapshots[row.name] = Held(inodes[view], cells[view], held)
