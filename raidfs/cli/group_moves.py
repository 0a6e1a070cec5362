"""What `raidfs-ctl group status` and `resolve` say of files that move between volumes."""

from __future__ import annotations

from raidfs.cli import target
from raidfs.cli.group_target import status_of, volumes
from raidfs.cli.output import size_text
from raidfs.cli.snapshot_list import time_text
from raidfs.daemon.group_requests import GroupStatus, MoveTold
from raidfs.errors import UsageError

WARNINGS = {
    ("to", "commit"): (
        "{name} is forgotten here. If {peer} hasn't got it (it had only been given), it is lost."
    ),
    ("to", "abort"): (
        "{name} is shown here again. If {peer} has taken it and comes back, it is in both, and both"
        " may change."
    ),
    ("from", "commit"): (
        "{name} gets its name here. If {peer} comes back and never gave it, it is in both, and both"
        " may change."
    ),
    ("from", "abort"): (
        "what was copied of {name} is dropped. If {peer} had given it and doesn't come back, it is"
        " lost; if it does, it has it hidden, until somebody resolves the move there, too."
    ),
}


def move_lines(status: GroupStatus) -> list[str]:
    """Of `group status`."""
    lines = []
    for one in status.moves:
        away = "" if one.up else f"; {one.peer} is AWAY"
        lines.append(
            f"move {one.id} of {one.name} ({size_text(one.size_bytes)}) {one.way} {one.peer}:"
            f" {one.state}, since {time_text(one.begun_ns)}{away}"
        )
    if any(not one.up or "unknown" in one.state for one in status.moves):
        lines.append(
            "  where a volume never comes back, or knows nothing of a move, a person decides:"
            " raidfs-ctl group resolve MOUNTPOINT ID commit|abort"
        )
    return lines


def find_move(volume: target.Mounted, number: str) -> MoveTold | None:
    """The move of that number, as that volume has it. UsageError: another one has it, and it is for
    its daemon to act."""
    status = status_of(volume)
    found = next((one for one in status.moves if one.id == number), None)
    if found is not None:
        return found
    for other, theirs in volumes():
        if any(one.id == number for one in theirs.moves):
            place = other.entry.mountpoint
            raise UsageError(f"volume {theirs.volume} has that move: name its mountpoint, {place}")
    return None


def warning(move: MoveTold, verdict: str) -> str:
    """What can go wrong."""
    return WARNINGS[move.way, verdict].format(name=move.name, peer=move.peer)
