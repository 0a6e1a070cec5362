"""Jobs in words: one line each, and one line that is written over while somebody waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from raidfs.cli.output import size_text
from raidfs.daemon.jobs import ENDED, Job

EXIT_FAILED = 1
EXIT_GOES_ON = 3
REASON_S = 60.0  # without a terminal, the same reason is told again after so long


def duration_text(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def job_line(job: Job) -> str:
    """rebuild:3  running, 42 %, 1.2 GiB left, 80.1 MiB/s, 15 s left"""
    parts: list[str] = [job.state]
    if job.state not in ENDED:
        parts.append(f"{100 * job.part_done:.0f} %")
        parts.append(f"{size_text(job.left_bytes)} left")
    elif job.done_bytes:
        parts.append(size_text(job.done_bytes))
    if job.rate_bytes_s:
        parts.append(f"{size_text(int(job.rate_bytes_s))}/s")
    if job.seconds_left is not None and job.state not in ENDED:
        parts.append(f"{duration_text(job.seconds_left)} to go")
    if job.limit_bytes_s and job.state not in ENDED:
        parts.append(f"limit {size_text(job.limit_bytes_s)}/s")
    reason = f" ({job.reason})" if job.reason else ""
    return f"{job.id}: {', '.join(parts)}{reason}"


def outcome_lines(jobs: Sequence[Job]) -> list[str]:
    """When nobody waits any more."""
    return [job_line(job) for job in jobs]


def exit_code(jobs: Sequence[Job]) -> int:
    """0: all done; 1: one failed; 3: one goes on, or can't for now."""
    if any(job.state == "failed" for job in jobs):
        return EXIT_FAILED
    return EXIT_GOES_ON if any(job.state not in ENDED for job in jobs) else 0


class Progress:
    """On a terminal one line that changes; else a line when something stalls, and why."""

    def __init__(self, quiet: bool) -> None:
        self._terminal = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._open = False
        self._told: dict[str, tuple[str, float]] = {}

    def jobs(self, jobs: Sequence[Job]) -> None:
        active = [job for job in jobs if job.state not in ENDED]
        if self._terminal:
            self._line("; ".join(map(job_line, active)))
        elif not self._quiet:
            self._reasons(active)

    def copying(self, done: int, total: int) -> None:
        """Of the metadata, to a member that comes."""
        if self._terminal:
            part = 100 * done / max(1, total)
            self._line(f"metadata: {part:.0f} % of {size_text(total)} copied")

    def _reasons(self, active: Sequence[Job]) -> None:
        now = time.monotonic()
        for job in active:
            said, when = self._told.get(job.id, ("", 0.0))
            if job.state in ("stalled", "paused") and (job.reason != said or now > when + REASON_S):
                self._told[job.id] = (job.reason, now)
                print(job_line(job), file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        print(f"\r\x1b[K{text[:200]}", end="", file=sys.stderr, flush=True)
        self._open = True

    def close(self) -> None:
        """The line stays as it is; what follows begins a new one."""
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False
