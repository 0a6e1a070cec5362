"""Which group is meant, and asking the daemons of its volumes.

GROUP is the name of a group, as any mounted volume on this host knows it, or the mountpoint of one
of its volumes.
"""

from __future__ import annotations

from typing import TypeVar

import click
import msgspec

from raidfs.cli import target
from raidfs.daemon import registry
from raidfs.daemon.control import ControlError, Request
from raidfs.daemon.group_requests import GroupStatus, GroupStatusRequest
from raidfs.errors import UsageError

T = TypeVar("T")
PATIENCE_S = 300.0  # a daemon answers sooner, whatever happens to its peers
json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON, with a version and plain integers."
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


def ask(volume: target.Mounted, request: Request, kind: type[T], patience_s: float = 0.0) -> T:
    """The answer of one daemon."""
    with volume.client() as client:
        raw = client.ask(request, patience_s or PATIENCE_S)
        return msgspec.json.decode(raw, type=kind)


def status_of(volume: target.Mounted) -> GroupStatus:
    return ask(volume, GroupStatusRequest(), GroupStatus)


def find(group: str) -> tuple[target.Mounted, GroupStatus]:
    """A volume of that group on this host, rather one that takes part; UsageError."""
    if "/" in group:
        volume = target.must_be_mounted(group, "group")
        status = status_of(volume)
        if not status.group:
            raise UsageError(
                status.out or f"volume {status.volume} is in no group; see raidfs-ctl group init"
            )
        return volume, status
    found = [pair for pair in volumes() if pair[1].group == group]
    if not found:
        raise UsageError(f"no mounted volume on this host is in a group {group!r}")
    if len({status.group_id for _, status in found}) > 1:
        raise UsageError(f"there are several groups {group!r}: name a mountpoint instead")
    return min(found, key=lambda pair: bool(pair[1].obstacle or pair[1].trouble))


def volumes() -> list[tuple[target.Mounted, GroupStatus]]:
    """All that are mounted here."""
    found = []
    for entry, socket in registry.entries():
        volume = target.Mounted(entry, socket)
        try:
            found.append((volume, status_of(volume)))
        except ControlError:
            continue  # it is ending, or somebody else's
    return found


def keeper_of(status: GroupStatus) -> target.Mounted:
    """Who changes the membership, if it is here."""
    found = registry.find_volume(status.keeper)
    if found is None:
        called = next((one.name for one in status.members if one.volume == status.keeper), "")
        raise UsageError(
            f"that is done where volume {called} is mounted, which is not on this host"
        )
    return target.Mounted(*found)
