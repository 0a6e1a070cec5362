"""A volume without a mount, for tests: a real store over directory members, and a clock that ticks.

    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        volume.create(1, b"file", 0o644, os.O_RDWR, ROOT)

The loop's interval is so long that cuts come only when asked for: by fsync, pressure, or the end.
"""

from contextlib import asynccontextmanager
from pathlib import Path

import trio

from raidfs.fs.attributes import Caller
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.raid.create import plan_volume
from raidfs.store.make import make_volume
from raidfs.store.store import Store

ROOT = Caller(0, 0, 1, 0o022)
ALICE = Caller(1000, 1000, 2, 0o002)
START_NS = 1_700_000_000 * 10**9
STEP_NS = 1000


class Clock:
    """Later by STEP_NS each time it is asked, so that every operation has a time of its own."""

    def __init__(self, now_ns=START_NS):
        self.now_ns = now_ns

    def __call__(self):
        self.now_ns += STEP_NS
        return self.now_ns


def make_members(directory, count=3, level="5", size_bytes=48 << 20, **options):
    """A new volume over fresh directories; returns their paths."""
    paths = [Path(directory) / f"member{number}" for number in range(count)]
    for path in paths:
        path.mkdir(parents=True)
    names = [str(path) for path in paths]
    options = {"zone_bytes": 1 << 20, **options}
    plan = plan_volume(names, level=level, size_bytes=size_bytes, **options)
    make_volume(plan, now_ns=Clock(START_NS - 10**9))
    return names


async def open_store(paths, *, read_only=False, direct=False, clock=None, **options):
    """The store over members that were made before, its flusher not running."""
    assembly = Assembly.open(paths[0], read_only=read_only, direct=direct)
    options = {"interval_s": 3600.0, **options}
    return await Store.open(assembly, read_only=read_only, clock=clock or Clock(), **options)


@asynccontextmanager
async def mounted(
    paths, *, read_only=False, direct=False, clock=None, store_options=None, **options
):
    """A Volume over existing members, its flusher running; clean end on exit."""
    store = await open_store(
        paths, read_only=read_only, direct=direct, clock=clock, **(store_options or {})
    )
    volume = Volume(store, **options)
    if not read_only:
        volume.reap_orphans()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        try:
            yield volume
        finally:
            with trio.CancelScope(shield=True):
                await store.stop()


def forget_all(volume, ino):
    """The kernel drops every reference to an inode."""
    volume.forget(ino, 1 << 40)


async def content(volume, ino):
    """All bytes of a file."""
    return bytes(await volume.read(ino, 0, volume.getattr(ino).size))


def names(volume, ino, limit=1000):
    """The names in a directory, without the two that are always there."""
    found, after = [], 0
    while entries := volume.readdir(ino, after, limit):
        after = entries[-1].cookie
        found += [entry.name for entry in entries]
    assert found[:2] == [b".", b".."]
    return found[2:]
