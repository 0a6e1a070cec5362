"""Figures of a volume's part in its group, and which mounts can't have one."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

GATE_BOUNDS_US = (
    100,
    200,
    500,
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
)


@dataclass(slots=True)
class Figures:
    """Since the mount. `gate`: how many gates were shut for at most so long (GATE_BOUNDS_US; the
    last: for longer). Results are of snapshots asked for here."""

    gate: list[int] = field(default_factory=lambda: [0] * (len(GATE_BOUNDS_US) + 1))
    gate_us_max: int = 0
    gate_us_sum: int = 0
    results: dict[str, int] = field(default_factory=dict)
    channel_bytes: int = 0
    rejected: int = 0

    def gate_was_shut(self, gate_us: int) -> None:
        self.gate[bisect_left(GATE_BOUNDS_US, gate_us)] += 1
        self.gate_us_max = max(self.gate_us_max, gate_us)
        self.gate_us_sum += gate_us


def obstacle_of(*, lane: bool, writeback: bool, read_only: bool) -> str:
    """Why a mount with these options can't take part in a group; "": it can."""
    because = ""
    if read_only:
        because = "it is mounted read-only"
    elif not lane:
        because = "it is mounted with -o nolane, and only the lane can hold back replies for a cut"
    elif writeback:
        because = (
            "it is mounted with -o writeback: the kernel answers writes before this daemon hears"
            " of them, so a cut can't tell what was answered"
        )
    return because and f"this volume can't take part in a group: {because}; mount it otherwise"
