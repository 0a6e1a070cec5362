"""Why a change of shape stands still, in one sentence each: what, in numbers, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import OutOfSpace, RaidfsError
from ..raid.create import size_text

if TYPE_CHECKING:
    from .space import Space
    from .store import Store
    from .zones import Zone

FREE = "free files or snapshots, or add members"


def full(space: Space, zones: int) -> str:
    """So many zones would have to be made for it to go on."""
    code, _ = space.allocation.shape()
    column = space.rows_per_zone * space.parameters.cell_bytes
    free = sorted(space.allocation.free_slots().values(), reverse=True)[: code.width]
    return (
        f"too little room: {size_text(zones * column)} are needed on each of {code.width} members,"
        f" and {size_text(min(free, default=0) * column)} are free there: {FREE}"
    )


def promised(space: Space) -> str:
    """A zone with room can't be closed."""
    size = space.parameters.cell_bytes
    owed = (space.credits + space.rounding_cells) * size
    return (
        f"writers were promised {size_text(owed)} of the {size_text(space.room_cells * size)} that"
        f" zones have room for: {FREE}"
    )


def beyond(space: Space, zones: Sequence[Zone]) -> str:
    """Some of these can't be read."""
    count = sum(not space.readable(zone) for zone in zones)
    return (
        f"{_zones(count)} lost more columns than their code survives: bring back the members that"
        " are missing (raidfs-ctl member online)"
    )


def not_writable(store: Store, zones: int, nbytes: int) -> str:
    """The volume has failed, or is mounted so."""
    left = f"{_zones(zones)} ({size_text(nbytes)}) wait"
    if store.failed is None:
        return f"the volume is mounted read-only: {left} for a mount for writing"
    return (
        f"the volume is read-only after an error: {store.failed}; {left}: unmount, run"
        " `raidfs-ctl check MEMBER`, and mount again"
    )


def of_conversion(error: RaidfsError, store: Store, zones: Sequence[Zone]) -> str:
    """It met an error, with these zones left."""
    nbytes = sum(map(store.space.reserve.bound, zones)) * store.cell_bytes
    return _met(error, f"{_zones(len(zones))} with {size_text(nbytes)} are left to be changed")


def of_rebalance(error: RaidfsError, columns: int, nbytes: int) -> str:
    return _met(error, f"{columns} columns ({size_text(nbytes)}) are left to be moved")


def _met(error: RaidfsError, left: str) -> str:
    what = "`raidfs-ctl events` tells more"
    if isinstance(error, OutOfSpace):
        what = "remove files or snapshots, or add members (raidfs-ctl member add)"
    return f"{left}, and there is no going on: {error}; {what}; it is tried again by itself"


def _zones(count: int) -> str:
    return f"{count} zone" if count == 1 else f"{count} zones"
