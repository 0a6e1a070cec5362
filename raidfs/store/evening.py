"""Columns go from the fullest members to the emptiest: shape.py chooses, the mender moves them.

1. What is planned is only what was best when it was; each move is asked for only if its column
   still lies where it did, and what can't be moved just now is left alone for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from .shape import Move, even_moves, fill_of

if TYPE_CHECKING:
    from .store import Store

PASSED_OVER_S = 10.0  # a column that couldn't be moved
LOOK_S = 0.02
IDLE_S_MAX = 10.0  # the mender has done nothing for so long


class Evening:
    """Of one store, for its `Reshape`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.moves: deque[Move] = deque()  # chosen, and not yet asked for
        self._asked: list[Move] = []  # of the mender
        self._tried: dict[tuple[int, int], float] = {}  # columns left alone, until then

    def forget(self) -> None:
        """What was planned; and what couldn't be moved is tried again."""
        self.moves.clear()
        self._tried.clear()

    @property
    def left_bytes(self) -> int:
        asked = (move for move in self._asked if self._lies(move, move.source))
        return sum(map(self._bytes, (*asked, *self.moves)))

    @property
    def waits(self) -> bool:
        """Some columns are left alone for now."""
        now = trio.current_time()
        self._tried = {which: until for which, until in self._tried.items() if until > now}
        return bool(self._tried)

    async def plan(self) -> tuple[int, int]:
        """How many columns would be moved, as things are now, and bytes of them."""
        moves = await self._chosen()
        return len(moves), sum(map(self._bytes, moves))

    async def choose(self) -> bool:
        """Whether there are moves, known or found now."""
        if not self.moves:
            self.moves.extend(await self._chosen())
        return bool(self.moves)

    async def _chosen(self) -> list[Move]:
        """In a thread: of very many zones this takes a while."""
        space = self.store.space
        zones = {
            number: [member for member, _ in zone.map.columns]
            for number, zone in space.zones.items()
            if zone.needed or zone.room_cells
        }
        fill, domains = fill_of(space), dict(space.allocation.domains)
        tried = frozenset(self._tried) if self.waits else frozenset()

        def may(zone: int, column: int) -> bool:
            return (zone, column) not in tried

        found: list[Move] = await self.store.offload(even_moves, zones, fill, domains, may)
        return found

    async def some(self, most: int, goes_on: Callable[[], bool]) -> int:
        """Ask the mender for so many of the moves, and wait until it has tried, or `goes_on` says
        no. Returns the bytes moved."""
        mender, zones = self.store.mender, self.store.space.zones
        moves = [self.moves.popleft() for _ in range(min(most, len(self.moves)))]
        asked = {move: self._bytes(move) for move in moves if self._lies(move, move.source)}
        self._asked = list(asked)
        for move in asked:
            mender.wish(move.zone, move.column, move.member)
        idle_since = trio.current_time()
        while mender.wishes and goes_on() and not mender.paused:
            await trio.sleep(LOOK_S)
            for gone in [key for key in mender.wishes if key[0] not in zones]:
                del mender.wishes[gone]
            if mender.working:
                idle_since = trio.current_time()
            elif trio.current_time() > idle_since + IDLE_S_MAX:
                break
        mender.wishes.clear()
        self._asked = []
        done = 0
        for move, nbytes in asked.items():
            if self._lies(move, move.member):
                done += nbytes
            else:
                self._tried[move.zone, move.column] = trio.current_time() + PASSED_OVER_S
        return done

    def _lies(self, move: Move, member: int) -> bool:
        zone = self.store.space.zones.get(move.zone)
        return zone is not None and zone.map.columns[move.column][0] == member

    def _bytes(self, move: Move) -> int:
        zone = self.store.space.zones.get(move.zone)
        return zone.fill * self.store.cell_bytes if zone is not None else 0
