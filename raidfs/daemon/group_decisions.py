"""What is told of moves under way, and a person's word on those whose other side is gone for good.

    raidfs-ctl group resolve GROUP ID commit    it is the target's
    raidfs-ctl group resolve GROUP ID abort     it is the source's

To the source's daemon `commit` means: the target has it, forget it here; `abort`: show it again. To
the target's, `commit`: what was staged gets its name; `abort`: drop it.

 1. As long as the other side is reached, nothing is decided here: the move goes on by itself. But
    if it knows nothing of the move, a person has decided there, and has to do so here.
 2. Only what the state allows: what was never given can't be the target's, and what has its name
    there can't be dropped.
"""

from __future__ import annotations

import errno

import trio

from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_moves import GroupMoves, One
from raidfs.daemon.group_requests import MoveTold
from raidfs.errors import RaidfsError, UsageError
from raidfs.group import move as m
from raidfs.store.group_snapshots import MOVE_OUT

DONE_S = 10.0


class Decisions:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, moves: GroupMoves) -> None:
        self.group = group
        self.moves = moves

    def _called(self, one: One) -> str:
        charter = self.group.charter
        return charter.called(one.peer) if charter else one.peer

    def told(self) -> list[MoveTold]:
        """All that are under way here."""
        return [
            MoveTold(
                one.move.hex(),
                m.name_text(one.core.row.name),
                "to" if one.kind == MOVE_OUT else "from",
                self._called(one),
                one.core.state + (", but unknown there" if one.is_unknown else ""),
                one.core.row.begun_ns,
                one.core.row.size_bytes,
                self.group.is_up(one.peer),
            )
            for one in self.moves.known.values()
        ]

    async def resolve(self, number: bytes, commit: bool) -> bool:
        """False: no move has that number here. UsageError: that can't be decided."""
        found = [one for (_, move), one in self.moves.known.items() if move == number]
        if not found:
            return False
        (one,) = found
        self._check(one, commit)
        self.moves.tell(one, m.Believe() if commit else m.TakeBack())

        def settled() -> bool:
            return one.finished is not None or one.core.state == "taken"

        with trio.move_on_after(DONE_S):
            await self.group.until(settled)
            if one.finished is None:
                self.moves.tell(one, m.Believe())
                await self.group.until(lambda: one.finished is not None)
        if one.finished is None:
            raise RaidfsError(f"not yet; it is {one.core.state}: try again", errno.EBUSY)
        return True

    def _check(self, one: One, commit: bool) -> None:
        """Promises 1 and 2."""
        called, core = self._called(one), one.core
        if self.group.is_up(one.peer) and not one.is_unknown:
            raise UsageError(
                f"{called} can be reached, so the move goes on by itself: raidfs-ctl group wait",
                errno.EBUSY,
            )
        if isinstance(core, m.Source):
            if commit and not core.is_given:
                raise UsageError(f"it was never given to {called}: it can only be aborted")
        elif commit and core.state not in ("staged", "taken"):
            raise UsageError("not all of it has come: it can only be aborted")
        elif not commit and core.state in ("owned", "linked", "taken"):
            raise UsageError("it is here already, with its name: it can only be committed")
