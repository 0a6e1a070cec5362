"""Asking about members and jobs: the daemon of a mounted volume, or a store opened here.

1. A volume that is not mounted answers as a mounted one would. What only looks opens it read-only.
2. Rebuilding goes on only while somebody waits for it here; else the next mount takes it up.
3. Whatever ends a change here, what was told is on the members, and what was not is not begun.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import click
import msgspec
import trio

from raidfs.cli.target import Mounted, Unmounted, read_label
from raidfs.daemon.condition import store_condition
from raidfs.daemon.control import Handler, Request
from raidfs.daemon.job_service import JobService
from raidfs.daemon.member_requests import (
    JobRequest,
    JobWaitRequest,
    MemberFailRequest,
    MemberRequest,
    find_entry,
)
from raidfs.daemon.members import MemberService
from raidfs.daemon.status import describe
from raidfs.errors import RaidfsError
from raidfs.raid.assembly import Assembly
from raidfs.store.store import Store

Asked = MemberRequest | JobRequest
Consumer = Callable[[Any], None]
# What is asked, and who takes the answers; or, when they are in, what to ask next (None: nothing).
Next = Callable[[], Asked | None]


def ask(volume: Mounted | Unmounted, request: Asked, consume: Consumer, then: Next) -> None:
    """All answers, one by one, of that and of whatever `then` asks after it."""
    if isinstance(volume, Unmounted):
        _ask_here(volume, request, consume, then)
        return
    with volume.client() as client:
        following: Asked | None = request
        while following is not None:
            for raw in client.answers(following):
                consume(msgspec.json.decode(raw, type=type(following).ANSWER))
            following = then()


def _ask_here(volume: Unmounted, request: Asked, consume: Consumer, then: Next) -> None:
    losing = isinstance(request, MemberFailRequest)
    assembly = Assembly.open(
        _source(volume, request),
        degraded=losing or not request.changes(),  # who is taken out may have gone before
        read_only=not request.changes(),
    )
    interrupted = False
    try:
        trio.run(_converse, assembly, request, consume, then)
    except* KeyboardInterrupt:
        interrupted = True
    finally:
        assembly.close()
    if interrupted:
        raise click.Abort


def _source(volume: Unmounted, request: Asked) -> str:
    """Who is to be taken out can't be the one to start from."""
    if not isinstance(request, MemberFailRequest):
        return volume.path
    label = volume.label
    going = [find_entry(label.members, word, request.cwd) for word in request.members]
    if label.member_id not in {entry.id for entry in going if entry is not None}:
        return volume.path
    for entry in label.members:
        with contextlib.suppress(RaidfsError):
            if entry not in going and read_label(entry.path).volume_id == label.volume_id:
                return entry.path
    return volume.path


async def _converse(assembly: Assembly, request: Asked, consume: Consumer, then: Next) -> None:
    changes = request.changes()
    store = await Store.open(assembly, read_only=not changes, clock=time.time_ns)
    refused: RaidfsError | OSError | None = None
    try:
        jobs = JobService(store)

        def status() -> Any:
            return describe(store_condition(store, None, jobs=jobs.book.jobs()))

        members = MemberService(store, None, status, jobs.book.look)
        handlers = {**members.handlers(), **jobs.handlers()}
        paused, store.mender.paused = store.mender.paused, True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            await nursery.start(members.run)
            try:
                following: Asked | None = request
                while following is not None:
                    if isinstance(following, JobWaitRequest):
                        store.mender.paused = paused
                        store.mender.wake()
                    await _answers(handlers, following, consume)
                    following = then()
                await store.stop()
            except (RaidfsError, OSError) as error:
                refused = error
                with contextlib.suppress(RaidfsError, OSError):
                    await store.stop()
            nursery.cancel_scope.cancel()
    except BaseException:  # no cut: what is durable stays as it is
        with trio.CancelScope(shield=True):
            await store.close()
        raise
    if refused is not None:  # not in a group, which only programs can read
        raise refused


async def _answers(
    handlers: dict[type[Request], Handler], request: Asked, consume: Consumer
) -> None:
    handled = handlers[type(request)](request)
    if inspect.isasyncgen(handled):
        async with aclosing(handled) as parts:
            async for part in parts:
                consume(part)
        return
    assert inspect.isawaitable(handled)
    consume(await handled)
