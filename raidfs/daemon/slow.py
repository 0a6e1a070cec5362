"""Members that sync slowly on purpose, to see who waits for them: for benchmarks and tests.

    RAIDFS_FAULT=member.slow-sync:200     each sync of each member takes 200 ms longer

Such members lend no descriptors, so all that is synced is synced by their own methods. 0 ms changes
only that: what to compare with. Without the variable nothing of this does anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from raidfs.daemon import fault
from raidfs.raid.member import Member

SWITCH = "member.slow-sync"
_SYNCS = ("meta_sync", "meta_write_synced", "column_sync", "column_create", "write_label")


def slow_down(members: Iterable[Member]) -> None:
    """If the switch is given. Before anything is written to them."""
    delay_ms = fault.value(SWITCH)
    if delay_ms is None:
        return
    for member in members:
        late = {name: _late(getattr(member, name), delay_ms / 1000) for name in _SYNCS}
        vars(member).update(late, lends=False)


def _late(method: Callable[..., Any], delay_s: float) -> Callable[..., Any]:
    def late(*arguments: Any) -> Any:
        time.sleep(delay_s)
        return method(*arguments)

    return late
