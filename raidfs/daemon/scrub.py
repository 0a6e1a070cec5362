"""The scrub of a mounted volume by control socket: begun, held up, ended, told, waited for.

What it does is in store/scrub.py. What is told of it is also what `raidfs-ctl scrub status` reads
from the metadata of a volume that isn't mounted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

import msgspec
import trio

from raidfs.daemon.control import Handler, Request
from raidfs.store.scrub_record import Figures, LostFile, Record, text_of
from raidfs.store.store import Store

TELL_S = 1.0  # between two looks of who waits


class ScrubStartRequest(Request, frozen=True, tag="scrub-start"):
    """Answered with the ScrubTold when it has begun. `limit_bytes_s`: 0, none."""

    check_only: bool = False
    limit_bytes_s: int = 0

    def changes(self) -> bool:
        return not self.check_only


class ScrubChangeRequest(Request, frozen=True, tag="scrub-change"):
    """To one that is under way. Answered with the ScrubTold after it. With "resume" a limit may be
    given; below 0: as it was."""

    what: Literal["stop", "pause", "resume"] = "stop"
    limit_bytes_s: int = -1

    def changes(self) -> bool:
        return True


class ScrubStatusRequest(Request, frozen=True, tag="scrub-status"):
    """Answered with a ScrubTold."""


class ScrubWaitRequest(Request, frozen=True, tag="scrub-wait"):
    """Answered with a ScrubTold now and then, the last one when none is running any more."""


class ScrubMember(msgspec.Struct, frozen=True):
    """What was found on one member; see Figures."""

    id: int
    path: str
    cells: int
    bad: int
    healed: int
    left: int
    metadata: int
    metadata_healed: int
    labels: int
    labels_healed: int


ScrubState = Literal["none", "running", "waiting", "paused", "stopped", "finished", "failed"]


class ScrubTold(msgspec.Struct, frozen=True):
    """The last scrub, or the one under way. `state` "none": there was none; "waiting": `reason`
    says for what. `ok`: nothing that it found is left as it was. Bytes are read from members, all
    together. `files` are at most 1000, of `files_damaged`."""

    volume: str
    state: ScrubState
    reason: str = ""
    ok: bool = True
    result: str = ""
    check_only: bool = False
    limit_bytes_s: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    done_bytes: int = 0
    left_bytes: int = 0
    rate_bytes_s: float = 0.0
    seconds_left: float | None = None
    rows_lost: int = 0
    pages_lost: int = 0
    metadata_lost: int = 0
    files_damaged: int = 0
    members: tuple[ScrubMember, ...] = ()
    files: tuple[LostFile, ...] = ()
    version: int = 1


def scrub_told(store: Store, *, mounted: bool = True, files: bool = True) -> ScrubTold:
    """What there is to tell. Not mounted, one that is under way is as if paused."""
    scrub, label = store.scrub, store.assembly.label
    record, it = scrub.record, scrub.statistics()
    if record is None:
        return ScrubTold(label.volume_name, "none")
    state: ScrubState = record.state
    reason = record.reason or (it.reason if it is not None else "")
    if state == "running" and not mounted:
        state, reason = "waiting", "the volume is not mounted: it goes on with the next mount"
    elif it is not None and state == "running" and it.state == "waiting":
        state = "waiting"
    paths = {entry.id: entry.path for entry in label.members}
    return ScrubTold(
        volume=label.volume_name,
        state=state,
        reason=reason,
        ok=not (record.damaged or state == "failed"),
        result=text_of(record),
        check_only=record.check_only,
        limit_bytes_s=record.limit_bytes_s,
        started_ns=record.started_ns,
        ended_ns=record.ended_ns,
        done_bytes=it.done_bytes if it is not None else record.done_bytes,
        left_bytes=it.left_bytes if it is not None else 0,
        rate_bytes_s=it.rate_bytes_s if it is not None else 0.0,
        seconds_left=it.seconds_left if it is not None else None,
        rows_lost=record.rows_lost,
        pages_lost=record.pages_lost,
        metadata_lost=record.metadata_lost,
        files_damaged=record.files,
        members=tuple(
            _member(number, paths.get(number, ""), record) for number in sorted(record.members)
        ),
        files=tuple(scrub.files) if files else (),
    )


def _member(number: int, path: str, record: Record) -> ScrubMember:
    figures = record.members[number]
    counts = {name: getattr(figures, name) for name in Figures.__struct_fields__}
    return ScrubMember(id=number, path=path, **counts)


class ScrubService:
    """Of one mounted volume."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            ScrubStartRequest: self._start,
            ScrubChangeRequest: self._change,
            ScrubStatusRequest: self._status,
            ScrubWaitRequest: self._wait,
        }

    async def _start(self, request: ScrubStartRequest) -> ScrubTold:
        self.store.scrub.start(
            check_only=request.check_only, limit_bytes_s=max(0, request.limit_bytes_s)
        )
        return await self._durable()

    async def _change(self, request: ScrubChangeRequest) -> ScrubTold:
        scrub = self.store.scrub
        {"stop": scrub.stop, "pause": scrub.pause, "resume": scrub.resume}[request.what]()
        if request.what == "resume" and request.limit_bytes_s >= 0:
            scrub.limit(request.limit_bytes_s)
        return await self._durable()

    async def _durable(self) -> ScrubTold:
        """What was ordered stays so after a crash."""
        if not self.store.read_only and self.store.failed is None:
            await self.store.commit()
        return scrub_told(self.store)

    async def _status(self, _: ScrubStatusRequest) -> ScrubTold:
        return scrub_told(self.store)

    async def _wait(self, _: ScrubWaitRequest) -> AsyncGenerator[ScrubTold, None]:
        scrub = self.store.scrub
        while scrub.running:
            yield scrub_told(self.store, files=False)
            with trio.move_on_after(TELL_S):
                await scrub.ended()
        yield scrub_told(self.store)
