"""Whether users read just now, for what works in the background (store/pace.py). Writes are seen by
the store itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LATELY_S = 0.2  # a read is felt for so long


class UsersReading:
    """`statistics`: the lane's, in full; None if there is no lane, which then says nothing."""

    def __init__(self, statistics: Callable[[], dict[str, Any] | None]) -> None:
        self._statistics = statistics
        self._seen = -1
        self._until = 0.0

    def __call__(self) -> bool:
        told, now = self._statistics(), time.monotonic()
        if told is None:
            return False
        count = sum(told[how].get("read", 0) for how in ("served", "carried", "forwarded"))
        if self._seen >= 0 and count != self._seen:
            self._until = now + LATELY_S
        self._seen = count
        return now < self._until
