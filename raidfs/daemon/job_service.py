"""Jobs by command: listed, waited for, paused, resumed, limited. What they are: jobs.py.

1. What was told to stand still stands still, and what was limited is limited, until the contrary
   is said, also after a crash and in the next mount: it is kept in the volume's settings.
2. Whoever waits is told again and again how far it is, and holds up nothing.
3. Rebuild, replace and evacuate are one worker's: pausing or limiting one does so to all three,
   and the answer says so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import trio

from raidfs.daemon.control import Handler, Request
from raidfs.daemon.jobs import ENDED, MENDER_KINDS, Job, JobBook
from raidfs.daemon.member_requests import (
    JobLimitRequest,
    JobListRequest,
    JobPauseRequest,
    JobRequest,
    JobResumeRequest,
    JobsAnswer,
    JobWaitRequest,
)
from raidfs.errors import UsageError
from raidfs.store.store import Store

TELL_S = 0.5
FIRST_S = 0.05  # what is soon over isn't waited for longer than that
LOOK_S = 5.0
RATE_BYTES_S_MIN = 64 << 10
MENDING = "rebuild, replace and evacuate"


class JobService:
    """Of one open store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.book = JobBook(store)

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {
            JobListRequest: self._list,
            JobWaitRequest: self._wait,
            JobPauseRequest: self._pause,
            JobResumeRequest: self._resume,
            JobLimitRequest: self._limit,
        }

    async def run(self) -> None:
        """Until cancelled: sees jobs from their beginning, whoever asks for them later."""
        while True:
            self.book.look()
            await trio.sleep(LOOK_S)

    # -- which ------------------------------------------------------------------------------------

    def _chosen(self, name: str) -> list[Job]:
        """UsageError: there is none of that name. Of a kind there need not be any."""
        jobs = self.book.jobs()
        found = [job for job in jobs if _means(name, job)]
        if not found and name and not _is_kind(name):
            known = ", ".join(job.id for job in jobs) or "none at all"
            raise UsageError(f"there is no job {name}; there are: {known}")
        return found

    async def _list(self, request: JobListRequest) -> JobsAnswer:
        return JobsAnswer(self._chosen(request.job))

    async def _wait(self, request: JobWaitRequest) -> AsyncGenerator[JobsAnswer, None]:
        self._chosen(request.job)
        chosen = set[str]()
        deadline = trio.current_time() + (request.timeout_s or float("inf"))
        pause = FIRST_S
        while True:
            jobs = self.book.jobs()
            active = [job for job in jobs if job.state not in ENDED]
            chosen |= {job.id for job in active if _means(request.job, job)}
            found = [job for job in jobs if job.id in chosen]
            goes_on = any(job.state not in ENDED for job in found)
            over = not goes_on or trio.current_time() >= deadline
            yield JobsAnswer(found, more=not over)
            if over:
                return
            await trio.sleep(min(pause, max(0.0, deadline - trio.current_time())))
            pause = min(2 * pause, TELL_S)

    # -- changes ----------------------------------------------------------------------------------

    async def _pause(self, request: JobPauseRequest) -> JobsAnswer:
        return await self._change(request, "paused", paused=True)

    async def _resume(self, request: JobResumeRequest) -> JobsAnswer:
        return await self._change(request, "resumed", paused=False)

    async def _limit(self, request: JobLimitRequest) -> JobsAnswer:
        rate = request.rate_bytes_s
        if rate and rate < RATE_BYTES_S_MIN:
            raise UsageError(
                f"a limit of {rate} bytes a second would never end; give at least"
                f" {RATE_BYTES_S_MIN >> 10}K, or pause the job"
            )
        what = f"limited to {rate / (1 << 20):.1f} MiB/s" if rate else "not limited any more"
        return await self._change(request, what, limit_bytes_s=rate)

    async def _change(self, request: JobRequest, what: str, **fields: Any) -> JobsAnswer:
        self.store.writable()
        self._chosen(request.job)
        said = []
        kind = request.job.partition(":")[0]
        if kind in ("", *MENDER_KINDS):
            await self.store.mender.set(**fields)
            said.append(f"{MENDING}: {what}")
        said += self._others(request.job, kind, what, fields)
        if not said:
            raise UsageError(f"{request.job} can't be {what.split(' to ')[0]}")
        return JobsAnswer(self.book.jobs(), said)

    def _others(self, name: str, kind: str, what: str, fields: dict[str, Any]) -> list[str]:
        """Scrub and change of shape; UsageError if it was named and can't be."""
        scrub, reshape = self.store.scrub, self.store.reshape
        paused, said = fields.get("paused"), list[str]()
        if kind == "scrub" or (not name and scrub.under_way):
            if paused is None:
                scrub.limit(fields["limit_bytes_s"])
            elif paused != (scrub.record is not None and scrub.record.state == "paused"):
                (scrub.pause if paused else scrub.resume)()
            said.append(f"scrub: {what}")
        told = reshape.statistics()
        shaped = told.kind if told.state in ("running", "waiting", "paused", "stalled") else None
        if kind in ("convert", "rebalance") or (not name and shaped is not None):
            if paused is None:
                reshape.limit(fields["limit_bytes_s"])
            else:
                (reshape.pause if paused else reshape.resume)()
            said.append(f"{shaped or kind}: {what}")
        return said


def _means(name: str, job: Job) -> bool:
    """What a spare takes over is a rebuild, too."""
    if name in ("", job.id, job.kind):
        return True
    return job.kind == "replace" and name in ("rebuild", f"rebuild:{job.member}")


def _is_kind(name: str) -> bool:
    return name in (*MENDER_KINDS, "scrub", "convert", "rebalance")
