"""Faults on purpose, for tests of what a crash leaves: points of the program, in RAIDFS_FAULT.

    RAIDFS_FAULT=group.before-send-marker     the daemon kills itself (-9) when it comes there first
    RAIDFS_FAULT=group.after-commit:3,word    ... the third time; and the switch `word` is set
    RAIDFS_FAULT=@FILE                        ... what that file says, if it is there, at any time

Without the variable nothing of this does anything.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_GIVEN = os.environ.get("RAIDFS_FAULT", "")
_FILE = Path(_GIVEN[1:]) if _GIVEN.startswith("@") else None
_ARMED: dict[str, int] = {}
_said = ""


def _arm(words: str) -> None:
    _ARMED.clear()
    for word in filter(None, words.strip().split(",")):
        point, _, times = word.partition(":")
        _ARMED[point] = int(times or 1)


def _look() -> None:
    """Into the file, if there is to be one."""
    global _said
    if _FILE is None:
        return
    try:
        said = _FILE.read_text()
    except FileNotFoundError:
        said = ""
    if said != _said:
        _said = said
        _arm(said)


if _FILE is None:
    _arm(_GIVEN)


def is_set(switch: str) -> bool:
    """Whether a switch of that name is given."""
    _look()
    return switch in _ARMED


def value(switch: str) -> int | None:
    """The number given with a switch; None: it isn't given."""
    _look()
    return _ARMED.get(switch)


def here(point: str) -> None:
    """The program is at that point."""
    _look()
    if point not in _ARMED:
        return
    _ARMED[point] -= 1
    if _ARMED[point] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
