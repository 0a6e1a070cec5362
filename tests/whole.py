"""Everything that a volume tells of its files, to be compared: the present's, or a snapshot's."""

from __future__ import annotations

import stat
from typing import Any

from workload import ME, ROOT

from raidfs.fs.volume import Volume
from raidfs.store.past import as_view, within

ENTRIES_AT_ONCE = 7


async def whole(volume: Volume, snapshot: Any = None, *, atimes: bool = True) -> dict[str, Any]:
    """Path -> inode number and all attributes, target, xattrs, entries or content, of every name.
    `snapshot`: of its view; None: of the present. Reads leave times alone."""
    root = as_view(snapshot.id, ROOT) if snapshot is not None else ROOT
    found: dict[str, Any] = {}
    todo = [("", root)]
    while todo:
        path, ino = todo.pop()
        told = volume.getattr(ino)
        fields = {name: getattr(told, name) for name in told.__slots__}
        fields["ino"] = within(told.ino)
        if not atimes:
            del fields["atime_ns"]
        xattrs = {name: volume.getxattr(ino, name) for name in volume.listxattr(ino, ME)}
        if stat.S_ISDIR(told.mode):
            content: Any = None
            entries = names_of(volume, ino)
            todo += [(f"{path}/{name.decode()}", entry) for name, entry in entries.items()]
        elif stat.S_ISLNK(told.mode):
            row = volume.inodes.get(ino).row
            content = row.target
        elif stat.S_ISREG(told.mode):
            content = await content_of(volume, ino, told.size)
        else:
            content = None
        found[path] = (fields, xattrs, content)
    return found


def names_of(volume: Volume, ino: int) -> dict[bytes, int]:
    """Of a directory, but "." and ".."."""
    names, after = {}, 0
    while entries := volume.names.entries(ino, after, ENTRIES_AT_ONCE):
        after = entries[-1].cookie
        names |= {e.name: e.ino for e in entries if e.name not in (b".", b"..")}
    return names


async def content_of(volume: Volume, ino: int, size: int) -> bytes:
    noatime, volume.files.noatime = volume.files.noatime, True
    try:
        volume.open(ino, 0)
        content = bytes(await volume.read(ino, 0, size)) if size else b""
        volume.release(ino)
    finally:
        volume.files.noatime = noatime
    assert len(content) == size
    return content
