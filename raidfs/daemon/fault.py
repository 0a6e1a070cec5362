"""Faults on purpose, for tests of what a crash leaves: points of the program, in RAIDFS_FAULT.

    RAIDFS_FAULT=group.before-send-marker     the daemon kills itself (-9) when it comes there first
    RAIDFS_FAULT=group.after-commit:3,word    ... the third time; and the switch `word` is set

Without the variable nothing of this does anything.
"""

from __future__ import annotations

import os
import signal


def _armed() -> dict[str, int]:
    found: dict[str, int] = {}
    for word in filter(None, os.environ.get("RAIDFS_FAULT", "").split(",")):
        point, _, times = word.partition(":")
        found[point] = int(times or 1)
    return found


_ARMED = _armed()


def is_set(switch: str) -> bool:
    """Whether a switch of that name is given."""
    return switch in _ARMED


def here(point: str) -> None:
    """The program is at that point."""
    if point not in _ARMED:
        return
    _ARMED[point] -= 1
    if _ARMED[point] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
