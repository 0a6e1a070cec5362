"""How long something took, each time: counted by bounds, for a histogram."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

BOUNDS_US = (
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
)


@dataclass(slots=True)
class Durations:
    """`counts`: how often it took at most so long (BOUNDS_US; the last: longer)."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_US) + 1))
    max_us: int = 0
    sum_us: int = 0

    def add(self, took_us: int) -> None:
        """Once more."""
        self.counts[bisect_left(BOUNDS_US, took_us)] += 1
        self.max_us = max(self.max_us, took_us)
        self.sum_us += took_us
