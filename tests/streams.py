"""Streams between volumes without a mount: sent to bytes, received from bytes, compared."""

import stat

from raidfs.fs.attributes import Caller
from raidfs.fs.receive import Receiver
from raidfs.fs.send import choose
from raidfs.fs.stream import Decoder
from raidfs.pages import LEAF_PAGES
from raidfs.store.past import as_view, within

ROOT = Caller(0, 0, 1, 0o022)


async def sent(volume, name, base=None, **options):
    """The stream, whole."""
    stream = bytearray()

    async def write(data):
        stream.extend(data)

    page_bytes, token = options.get("page_bytes"), options.get("token")
    await choose(volume.store, name, base, page_bytes, token).run(write)
    return bytes(stream)


async def nothing(at):
    """Comes between the pieces of a stream."""


def reader(stream, piece=65536, between=nothing):
    """What `Receiver` asks for input. `between` is awaited before each piece, with its place, and
    before the end, with None."""
    places = iter(range(0, len(stream), piece))

    async def read():
        at = next(places, None)
        await between(at)
        return b"" if at is None else stream[at : at + piece]

    return read


async def received(volume, stream, *, piece=65536, **options):
    return await Receiver(volume, reader(stream, piece), **options).run()


def records(stream):
    decoder = Decoder()
    decoder.feed(stream)
    found = [record.body for record in decoder.records()]
    assert decoder.ended
    return found


async def tree(volume, snapshot=None):
    """path -> all there is to know of what stands there, in the present or in a snapshot: numbers,
    rows but cells, attributes, content, holes."""
    view = volume.store.snapshots.find(snapshot).id if snapshot is not None else 0
    root = as_view(view, 1) if view else 1
    found, todo = {}, [(b"/", root)]
    while todo:
        path, ino = todo.pop()
        found[path] = await _told(volume, ino)
        if stat.S_ISDIR(volume.store.meta.inode(ino).mode):
            for entry in _entries(volume, ino):
                todo.append((path + b"/" + entry.name, entry.ino))
    return found


def _entries(volume, ino):
    found = []
    while more := volume.store.meta.entries(ino, found[-1].position if found else -1, 500):
        found += more
    return found


async def _told(volume, ino):
    meta = volume.store.meta
    row = meta.inode(ino)
    told = [within(row.ino), row.generation, row.mode, row.uid, row.gid, row.rdev, row.size]
    told += [row.nlink, within(row.parent), row.atime_ns, row.mtime_ns, row.ctime_ns, row.btime_ns]
    told += [row.target, row.cells, row.xattrs]
    told.append({name: meta.xattr(ino, name) for name in meta.xattr_names(ino)})
    if stat.S_ISREG(row.mode):
        told += [_data_pages(meta, ino), bytes(await _content(volume, ino, row.size))]
    return told


def _data_pages(meta, ino):
    """Pages that aren't holes."""
    found = []
    for number, leaf in meta.leaf_range(ino, 0, 1 << 40):
        if leaf.inline is not None:
            found.append("inline")
        if leaf.addresses is not None:
            found += (leaf.addresses.nonzero()[0] + number * LEAF_PAGES).tolist()
    return found


async def _content(volume, ino, size):
    data = bytearray()
    while len(data) < min(size, 4 << 20):
        data += await volume.read(ino, len(data), 1 << 20)
    return data
