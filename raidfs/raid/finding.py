"""From one member to the others of its volume: where they may lie, and what was found there.

Each member of the newest table is looked for where its entry says it was last seen, under the same
name beside the member that was named, and at the paths given besides. A place is looked at once.
Devices change their names from one start of the machine to the next, so for one that is missing all
block devices are looked at too.

 1. Nothing is opened for writing, locked or changed here.
 2. Two places that both hold the same member of the same volume are an error: one is a copy, and
    nothing says which is the good one.
 3. What lies at a recorded path and isn't the member expected there explains a loss; at a path that
    was given by name it is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from raidfs.errors import LabelError, LabelMissing, MemberError, RaidfsError, UsageError
from raidfs.raid.decision import newest_of
from raidfs.raid.label import Label, MemberEntry
from raidfs.raid.places import Identity, identity, peek


@dataclass(slots=True)
class Found:
    """What is known of the members of one volume. `problems`: why a member wasn't found."""

    labels: dict[int, Label] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    corrupt: set[int] = field(default_factory=set)

    @property
    def newest(self) -> Label:
        return newest_of(list(self.labels.values()))


def find_members(source: str, extra_paths: Iterable[str] = ()) -> Found:
    """Look for all members of the volume that `source` belongs to.

    Raises what is wrong with `source` or with a path in extra_paths; UsageError by promise 2.
    """
    search = _Search(source)
    for path in extra_paths:
        search.named(path)
    while True:
        known = len(search.seen)
        for entry in search.found.newest.members:
            search.expected(entry)
        if len(search.seen) == known and not search.scan_devices():
            break  # else a newer label may have named more members
    for entry in search.found.newest.members:
        if entry.id not in search.found.labels:
            search.found.problems.setdefault(entry.id, f"not found at {entry.path}")
    return search.found


class _Search:
    def __init__(self, source: str) -> None:
        self.source = os.path.abspath(source)
        self.found = Found()
        self.seen: dict[Identity, str] = {}
        self._missing: set[str] = set()
        label = peek(self.source)
        self.volume_id = label.volume_id
        self.seen[identity(self.source)] = self.source
        self._take(self.source, label)

    def named(self, path: str) -> None:
        """A path that the user gave: it must be another member of the volume."""
        path = os.path.abspath(path)
        who = identity(path)
        if who in self.seen:
            raise UsageError(f"{path} and {self.seen[who]} are the same: name each member once")
        self.seen[who] = path
        label = peek(path)
        if label.volume_id != self.volume_id:
            raise UsageError(
                f"{path} belongs to another volume, {label.volume_name}: leave it out, or mount "
                "that volume by itself"
            )
        self._take(path, label)

    def expected(self, entry: MemberEntry) -> None:
        """Look where this member may lie."""
        beside = os.path.join(os.path.dirname(self.source), os.path.basename(entry.path))
        for path in (entry.path, beside):
            try:
                label = self._look(path, entry)
            except RaidfsError as error:
                if entry.id in self.found.labels:
                    continue
                if isinstance(error, LabelError) and not isinstance(error, LabelMissing):
                    self.found.corrupt.add(entry.id)
                self.found.problems.setdefault(entry.id, str(error))
                continue
            if label is not None:
                self._take(path, label)

    def scan_devices(self) -> bool:
        """Look for missing devices under other names; whether any was found."""
        found = self.found
        missing = {
            entry.id
            for entry in found.newest.members
            if entry.kind == "device" and entry.id not in found.labels
        }
        for device in sorted(Path("/sys/class/block").iterdir()) if missing else ():
            path = f"/dev/{device.name}"
            try:
                if (device / "size").read_text().strip() == "0" or any(device.glob("holders/*")):
                    continue  # nothing in it, or part of another device, which is looked at too
                who = identity(path)
                if who in self.seen:
                    continue
                label = peek(path)
            except (OSError, RaidfsError):
                continue
            if label.volume_id == self.volume_id and label.member_id in missing:
                self.seen[who] = path
                self._take(path, label)
        return bool(missing & found.labels.keys())

    def _look(self, path: str, entry: MemberEntry) -> Label | None:
        """The label there, if it wasn't looked at before and is one of this volume."""
        if path in self._missing or not os.path.lexists(path):
            self._missing.add(path)
            return None
        who = identity(path)
        if who in self.seen:
            return None
        self.seen[who] = path
        label = peek(path)
        if label.volume_id == self.volume_id:
            return label
        if path == entry.path:
            raise MemberError(f"{path} now belongs to another volume, {label.volume_name}", path)
        return None

    def _take(self, path: str, label: Label) -> None:
        member_id = label.member_id
        if member_id in self.found.labels:
            raise UsageError(
                f"{self.found.paths[member_id]} and {path} both hold member {member_id} of volume "
                f"{label.volume_name}, so one is a copy: disconnect or rename the one that is not "
                "to be used"
            )
        self.found.labels[member_id] = label
        self.found.paths[member_id] = path
        self.found.problems.pop(member_id, None)
        self.found.corrupt.discard(member_id)
