"""Giving a file to another volume: looked at piece by piece, hidden and said in one step.

A directory may hold many thousand files, and whether they are what was staged is to be known in the
very step in which they are hidden. So they are looked at before, in pieces, under a watch
(fs/watch.py); if that is whole in the end, nothing of what was seen has changed.

 1. The step holds the gate and doesn't wait: a cut has the file before it, or, given, after it.
 2. What is open is not given: who has it open closes it soon, or the move is given up.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable

import trio

from raidfs.daemon import fault
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_works import GroupWorks
from raidfs.errors import RaidfsError, UsageError
from raidfs.fs.moves import Moves, Stale, Tree
from raidfs.fs.volume import Volume
from raidfs.group import move as m

log = logging.getLogger("raidfs.group")

TICK_S = 0.1
BUSY_S = 5.0  # for who has the file open to close it
Tell = Callable[[m.Event], None]


class Giving:
    """Of one mounted volume."""

    def __init__(
        self, group: GroupProcess, works: GroupWorks, volume: Volume, moves: Moves
    ) -> None:
        self.group = group
        self.works = works
        self.volume = volume
        self.moves = moves

    async def give(self, core: m.Source, move: bytes, tell: Tell) -> None:
        """Until it is given, or can't be. It is tried again and again meanwhile."""
        busy_since = trio.current_time()
        busy_s_max = (fault.value("move.busy-ms") or BUSY_S * 1000) / 1000
        while core.state == "giving":
            if not self._can(core):
                busy_since = trio.current_time()
            elif (event := await self._tried(core, move)) is not None:
                tell(event)
                return
            elif trio.current_time() - busy_since > busy_s_max:
                tell(m.Cancel(f"{m.name_text(core.row.name)} is open in some program"))
                return
            if core.state == "giving":
                await trio.sleep(TICK_S)

    def _can(self, core: m.Source) -> bool:
        up = self.group.is_up(core.row.peer)
        held = fault.is_set("move.hold-give")
        return up and self.volume.door.is_open and not self.works.pending() and not held

    async def _tried(self, core: m.Source, move: bytes) -> m.Event | None:
        """What came of it; None: nothing did."""
        row = core.row
        with self.volume.inodes.watches.watch() as watch:
            try:
                tree = await self.moves.look(row.parent, row.source_name, row.ino, watch)
            except Stale as error:
                return m.Cancel(str(error)) if error.errno == errno.ENOENT else None
            except UsageError as error:
                return m.Cancel(str(error))
            if core.state != "giving" or not self._can(core):
                return None
            if tree.stamp != row.stamp:
                return m.Changed()
            if not watch.is_whole or self.moves.is_open(tree):
                return None
            return self._hidden(core, move, tree)

    def _hidden(self, core: m.Source, move: bytes, tree: Tree) -> m.Event | None:
        """Promise 1."""
        row, begun_ns = core.row, time.perf_counter_ns()
        with self.volume.store.gate.shut_for():
            fault.here("move.before-give")
            try:
                self.moves.hide(move, row.parent, row.source_name, tree)
            except RaidfsError as error:
                log.info("move: not yet: %s", error)
                return None
            fault.here("move.after-give")
        gate_us = (time.perf_counter_ns() - begun_ns) // 1000
        name = m.name_text(row.name)
        log.info("move of %s: %d items given in %d us", name, len(tree.items), gate_us)
        return m.GivenAway()
