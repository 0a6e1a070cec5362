"""What members, the mirror and the array report from any thread, until the store takes it up.

What is noticed becomes events (events.py) on the event loop; members that failed a write are
recorded in the labels of the others before anything that they missed is told durable
(`Losses.settle`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("raidfs.store")

EVENTS_WAITING_MAX = 1000  # a flood of equal errors is cut off, the counters go on


class Notices:
    """`losses`: reason by member. All methods may be called from any thread."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.losses: dict[int, str] = {}
        self.on_event: Callable[[], None] = lambda: None  # called in whichever thread
        self._clock = clock
        self._events: list[tuple[int, str, int, str]] = []
        self._lock = threading.Lock()

    @property
    def waiting(self) -> bool:
        """Something was noticed and not taken yet."""
        return bool(self._events)

    def event(self, name: str, member: int, text: str) -> None:
        """`member` is -1 when the event concerns none."""
        log.info("%s%s: %s", name, f" (member {member})" if member >= 0 else "", text)
        with self._lock:
            if len(self._events) < EVENTS_WAITING_MAX:
                self._events.append((self._clock(), name, member, text))
        self.on_event()

    def loss(self, member: int, reason: str) -> None:
        """The member failed a write, and is used no more."""
        self.losses.setdefault(member, reason)

    def take_events(self) -> list[tuple[int, str, int, str]]:
        """(time_ns, name, member, text) noticed since the last call."""
        with self._lock:
            events, self._events = self._events, []
        return events
