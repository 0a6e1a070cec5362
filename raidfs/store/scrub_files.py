"""Who needs cells that can't be had: files by name, of the present and of snapshots.

Owner records and the table share name every leaf of which a version may refer to a cell; all
versions of these are looked at. A file's name is found by its parents; of what has several names
one is told, and where the metadata knows none, its inode number is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from trio.lowlevel import checkpoint

from ..pages import LEAF_PAGES
from .database import INF
from .meta import ROOT_INO
from .owners import owner_leaves
from .past import FIRST_VIEW, as_view, within
from .scrub_record import LostFile

if TYPE_CHECKING:
    from .meta import Meta
    from .store import Store

U64 = npt.NDArray[np.uint64]
LEAVES_PER_TURN = 64
ENTRIES_AT_ONCE = 256
DEPTH_MAX = 4096
PRESENT = 0  # instead of the id of a snapshot


@dataclass(slots=True)
class Needed:
    """`cells`: those that some version of a leaf refers to. `pages`: of those asked for as lost, by
    (snapshot's id or PRESENT, inode): how many pages, and the first."""

    cells: set[int] = field(default_factory=set)
    pages: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)


async def who_needs(store: Store, zone: int, cells: U64, lost: U64) -> Needed:
    """Of these cells of a zone, which is pinned; `lost` are some of them."""
    meta, needed = store.meta, Needed()
    if zone not in store.space.zones:
        return needed
    leaves = sorted(owner_leaves(meta, zone, cells) | set(meta.sharers(zone)))
    for at, (ino, number) in enumerate(leaves):
        for version in meta.leaf_versions(ino, number):
            if version.addresses is None:
                continue
            named = version.addresses[np.isin(version.addresses, cells)]
            needed.cells.update(named.tolist())
            where = np.flatnonzero(np.isin(version.addresses, lost))
            if len(where):
                first = number * LEAF_PAGES + int(where[0])
                for view in _views(meta, version.born, version.died):
                    pages, before = needed.pages.get((view, ino), (0, first))
                    needed.pages[view, ino] = (pages + len(where), min(before, first))
        if at % LEAVES_PER_TURN == LEAVES_PER_TURN - 1:
            await checkpoint()
    return needed


def _views(meta: Meta, born: int, died: int) -> list[int]:
    """Who sees a version: the present, and snapshots by id."""
    seen = [number for number, epoch in meta.views.items() if born <= epoch < died]
    return [PRESENT, *seen] if died == INF else seen


async def named(store: Store, needed: Needed, most: int) -> list[LostFile]:
    """At most so many, those of the present first."""
    found = []
    for (view, ino), (pages, page) in sorted(needed.pages.items())[:most]:
        snapshot = store.snapshots.get(view) if view != PRESENT else None
        if view != PRESENT and snapshot is None:
            continue  # deleted meanwhile
        number = as_view(view, ino) if snapshot is not None else ino
        path = await path_of(store.meta, number)
        name = snapshot.name if snapshot is not None else ""
        found.append(LostFile(path, name, ino, pages, page))
    return found


async def path_of(meta: Meta, ino: int) -> str:
    """From the root of the volume, or of the snapshot that the number belongs to."""
    root = ROOT_INO if ino < FIRST_VIEW else ino - within(ino) + ROOT_INO
    at, parts = ino, list[bytes]()
    while at != root:
        row = meta.inode(at)
        parent = row.parent if row is not None else 0
        name = await _name(meta, parent, at) if parent else None
        if name is None or len(parts) > DEPTH_MAX:
            return f"inode {within(ino)}"
        parts.append(name)
        at = parent
    return "/" + b"/".join(reversed(parts)).decode(errors="backslashreplace")


async def _name(meta: Meta, parent: int, ino: int) -> bytes | None:
    """By which the directory knows it."""
    after = -1
    while entries := meta.entries(parent, after, ENTRIES_AT_ONCE):
        for entry in entries:
            if entry.ino == ino:
                return entry.name
        after = entries[-1].position
        await checkpoint()
    return None
