"""How fast work goes that nobody waits for: rebuilding, scrubbing, moving to another shape.

1. It gives way to users: a pause after each piece is as long as the work was, times `PAUSE_BUSY`
   while users write or wait, times `PAUSE_IDLE` while they don't.
2. It is never faster than its limit in bytes per second, if it has one. Another limit counts at
   once: what the old one made wait for is forgotten.
3. It goes on in any case: no pause is longer than `PAUSE_S_MAX` unless the limit asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from .store import Store

TURN_S = 0.002  # of work without a pause
PAUSE_BUSY, PAUSE_IDLE = 2.0, 0.0
PAUSE_S_MAX = 0.5
LIMIT_STEP_S = 0.2  # of work at the limit, in one step
RATE_S = 10.0  # rates are those of about so long


class Pace:
    """Of one kind of work."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._limit_bytes_s = 0
        self._changed = trio.Event()
        self.rate_bytes_s = 0.0  # lately
        self._begun = 0.0
        self._since_bytes = 0  # made since then
        self._debt_s = 0.0  # by the limit, until it may go on

    @property
    def limit_bytes_s(self) -> int:
        """0: none."""
        return self._limit_bytes_s

    @limit_bytes_s.setter
    def limit_bytes_s(self, value: int) -> None:
        self._limit_bytes_s, self._debt_s = value, 0.0
        self._changed.set()

    def begin(self) -> None:
        """Work begins, after a time without."""
        self._begun, self._debt_s, self.rate_bytes_s = trio.current_time(), 0.0, 0.0
        self._since_bytes = 0

    @property
    def busy(self) -> bool:
        """Users write, or wait."""
        return self.store.pages.open_files > 0 or self.store.users_busy()

    def step(self, most: int, most_busy: int, columns: int) -> tuple[int, bool]:
        """How many bytes of each of so many columns to do before the next turn, and whether in one
        step at a time: little while users are there, or where the limit would make long pauses of
        much."""
        if self.busy:
            most = most_busy
        if self.limit_bytes_s:
            return min(most, int(self.limit_bytes_s * LIMIT_STEP_S) // columns), True
        return most, self.busy

    async def turn(self, nbytes: int) -> None:
        """So many bytes were made since the last turn."""
        await trio.lowlevel.checkpoint()
        self._since_bytes += nbytes
        worked = trio.current_time() - self._begun
        if worked <= TURN_S and not self.limit_bytes_s:
            return
        pause = min(worked * (PAUSE_BUSY if self.busy else PAUSE_IDLE), PAUSE_S_MAX)
        if self.limit_bytes_s:
            due = self._since_bytes / self.limit_bytes_s
            self._debt_s = max(0.0, self._debt_s + due - worked)
            pause = max(pause, self._debt_s)
        if pause:
            self._changed = trio.Event()
            with trio.move_on_after(pause):
                await self._changed.wait()
        now = trio.current_time()
        self._debt_s = max(0.0, self._debt_s - (now - self._begun - worked))
        self._count(self._since_bytes, now - self._begun)
        self._begun, self._since_bytes = now, 0

    def _count(self, nbytes: int, seconds: float) -> None:
        if seconds > 0:
            weight = min(1.0, seconds / RATE_S)
            rate = nbytes / seconds
            first = self.rate_bytes_s == 0
            self.rate_bytes_s = rate if first else self.rate_bytes_s * (1 - weight) + rate * weight
