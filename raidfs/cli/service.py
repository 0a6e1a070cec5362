"""Asking a volume's snapshot service: in its daemon, or on a store opened here.

1. A volume that is not mounted answers as a mounted one would; what doesn't change anything opens
   it read-only, and works while members are missing as long as the data is whole.
2. When a change of an unmounted volume is told, it is on the members, and what it freed is free.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

import click
import msgspec
import trio

from raidfs.cli.target import Mounted, Unmounted
from raidfs.daemon.control import Request
from raidfs.daemon.snapshots import SnapshotService
from raidfs.errors import RaidfsError
from raidfs.fs.volume import Volume
from raidfs.raid.assembly import Assembly
from raidfs.store.store import Store

T = TypeVar("T")
Consumer = Callable[[Any], None]


def ask(volume: Mounted | Unmounted, request: Request, kind: type[T]) -> T:
    """The answer to a request that has one."""
    answers: list[T] = []
    each(volume, request, kind, answers.append)
    return answers[0]


def each(
    volume: Mounted | Unmounted, request: Request, kind: type[T], consume: Callable[[T], None]
) -> None:
    """Every part of the answer, as it comes."""
    if isinstance(volume, Unmounted):
        _ask_here(volume, request, lambda told: consume(_plain(told, kind)))
        return
    with volume.client() as client:
        for raw in client.answers(request):
            consume(msgspec.json.decode(raw, type=kind))


def _plain(told: Any, kind: type[T]) -> T:
    """As it would be from a daemon."""
    return msgspec.json.decode(msgspec.json.encode(told), type=kind)


def _ask_here(volume: Unmounted, request: Request, consume: Consumer) -> None:
    changes = request.changes()
    assembly = Assembly.open(volume.path, degraded=not changes, read_only=not changes)
    interrupted = False
    try:
        trio.run(_serve_once, assembly, request, consume)
    except* KeyboardInterrupt:
        interrupted = True
    finally:
        assembly.close()
    if interrupted:
        raise click.Abort


async def _serve_once(assembly: Assembly, request: Request, consume: Consumer) -> None:
    changes = request.changes()
    store = await Store.open(assembly, read_only=not changes, clock=time.time_ns)
    refused: RaidfsError | OSError | None = None
    try:
        volume = Volume(store)
        if changes:
            volume.reap_orphans()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            await trio.lowlevel.checkpoint()  # so that it has begun before it is stopped
            try:
                await _answer_and_close(volume, request, consume)
            except (RaidfsError, OSError) as error:
                refused = error
            nursery.cancel_scope.cancel()
    except BaseException:  # no cut: what is durable stays as it is
        with trio.CancelScope(shield=True):
            await store.close()
        raise
    if refused is not None:  # not in a group, which only programs can read
        raise refused


async def _answer_and_close(volume: Volume, request: Request, consume: Consumer) -> None:
    try:
        await _answer(SnapshotService(volume), request, consume)
        if request.changes():
            await volume.store.snapshots.swept()
    finally:
        await volume.store.stop()


async def _answer(service: SnapshotService, request: Request, consume: Consumer) -> None:
    handled = service.handlers()[type(request)](request)
    if inspect.isasyncgen(handled):
        async with aclosing(handled) as parts:
            async for part in parts:
                consume(part)
        return
    assert inspect.isawaitable(handled)
    consume(await handled)
