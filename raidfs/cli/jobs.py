"""`raidfs-ctl wait` and `raidfs-ctl job ...`: what goes on in the background of a volume."""

from __future__ import annotations

import click

from raidfs.cli import target
from raidfs.cli.job_lines import Progress, exit_code, job_line, outcome_lines
from raidfs.cli.opened import ask
from raidfs.cli.output import parse_size, print_json
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

_JSON = click.option("--json", "as_json", is_flag=True, help="JSON, with a version.")
_WHERE = click.argument("where", metavar="MOUNTPOINT")
_JOB = click.argument("job", metavar="[JOB]", default="")


def _ask(where: str, request: JobRequest, verb: str) -> JobsAnswer:
    found: list[JobsAnswer] = []
    ask(target.must_be_mounted(where, verb), request, found.append, lambda: None)
    return found[-1]


@click.command("wait")
@_WHERE
@_JOB
@click.option("--timeout", type=click.FloatRange(min=0.001), help="Seconds to wait at most.")
@_JSON
def wait_command(where: str, job: str, timeout: float | None, as_json: bool) -> int:
    """Wait until jobs of a volume are done: all of them, or JOB.

    JOB is a kind (rebuild, replace, evacuate, scrub, convert, rebalance) or one as `job list` shows
    it. On a terminal a line tells how far they are, how fast, how long it will take, and why one
    doesn't go on.

    Exit code: 0 nothing is left to wait for, 1 a job failed, 3 the time is over.

    \b
    Examples:
      raidfs-ctl wait /mnt/tank
      raidfs-ctl wait --timeout 3600 /mnt/tank rebuild && mail -s whole root < /dev/null
    """
    volume = target.must_be_mounted(where, "wait")
    progress, found = Progress(quiet=as_json), list[JobsAnswer]()

    def consume(told: JobsAnswer) -> None:
        found[:] = [told]
        progress.jobs(told.jobs)

    try:
        ask(volume, JobWaitRequest(job=job, timeout_s=timeout or 0.0), consume, lambda: None)
    finally:
        progress.close()
    jobs = found[0].jobs
    if as_json:
        print_json({"jobs": jobs})
    else:
        click.echo("\n".join(outcome_lines(jobs)) or "nothing to wait for")
    return exit_code(jobs)


@click.group("job")
def job_group() -> None:
    """List, pause, resume and limit what goes on in the background.

    \b
    Examples:
      raidfs-ctl job list /mnt/tank
      raidfs-ctl job limit /mnt/tank 50M
    """


@job_group.command("list")
@_WHERE
@_JOB
@_JSON
def list_command(where: str, job: str, as_json: bool) -> int:
    """List the jobs of a volume, also those that have ended since it was mounted.

    \b
    Example:
      raidfs-ctl job list /mnt/tank
    """
    told = _ask(where, JobListRequest(job=job), "job list")
    if as_json:
        print_json({"jobs": told.jobs})
    else:
        click.echo("\n".join(job_line(each) for each in told.jobs) or "no jobs")
    return 0


@job_group.command("pause")
@_WHERE
@_JOB
@_JSON
def pause_command(where: str, job: str, as_json: bool) -> int:
    """Let jobs stand still, also after the next mount, until `job resume`.

    Rebuild, replace and evacuate stand still together.

    \b
    Example:
      raidfs-ctl job pause /mnt/tank rebuild
    """
    return _tell(_ask(where, JobPauseRequest(job=job), "job pause"), as_json)


@job_group.command("resume")
@_WHERE
@_JOB
@_JSON
def resume_command(where: str, job: str, as_json: bool) -> int:
    """Let jobs that were paused go on.

    \b
    Example:
      raidfs-ctl job resume /mnt/tank
    """
    return _tell(_ask(where, JobResumeRequest(job=job), "job resume"), as_json)


@job_group.command("limit")
@_WHERE
@click.argument("words", metavar="[JOB] RATE", nargs=-1, required=True)
@_JSON
def limit_command(where: str, words: tuple[str, ...], as_json: bool) -> int:
    """Limit how fast jobs are: RATE is bytes a second (50M), or none.

    In any case they give way to those who use the volume.

    \b
    Examples:
      raidfs-ctl job limit /mnt/tank 50M
      raidfs-ctl job limit /mnt/tank scrub none
    """
    if len(words) > 2:
        raise click.UsageError("name one JOB, or none, and a RATE")
    job, rate = ("", words[0]) if len(words) == 1 else (words[0], words[1])
    request = JobLimitRequest(job=job, rate_bytes_s=_rate(rate))
    return _tell(_ask(where, request, "job limit"), as_json)


def _rate(text: str) -> int:
    if text.lower() in ("none", "0"):
        return 0
    try:
        return parse_size(text.lower().removesuffix("/s"))
    except UsageError:
        raise UsageError(
            f"{text!r} is no rate; write bytes a second, for example 50M, or none"
        ) from None


def _tell(told: JobsAnswer, as_json: bool) -> int:
    if as_json:
        print_json({"jobs": told.jobs, "said": told.said})
    else:
        click.echo("\n".join(told.said))
    return 0
