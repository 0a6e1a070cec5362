"""What `convert` and `rebalance` have in common: asking, telling, waiting."""

from __future__ import annotations

import contextlib

import click
import msgspec

from raidfs.cli.job_lines import Progress, duration_text, exit_code, job_line
from raidfs.cli.output import print_json, size_text
from raidfs.cli.target import Mounted
from raidfs.daemon.jobs import Job
from raidfs.daemon.member_requests import JobListRequest, JobsAnswer, JobWaitRequest
from raidfs.daemon.reshape import ConvertRequest, RebalanceRequest, ReshapeAnswer


def ask(volume: Mounted, request: ConvertRequest | RebalanceRequest) -> ReshapeAnswer:
    """The daemon's answer. ControlError: refused."""
    with contextlib.closing(volume.client()) as client:
        return msgspec.json.decode(client.ask(request), type=ReshapeAnswer)


def tell(answer: ReshapeAnswer, as_json: bool) -> int:
    """What was done, or would be, in numbers."""
    if as_json:
        print_json(answer)
        return 0
    lines = [*answer.said, *(f"warning: {text}" for text in answer.warned)]
    if answer.usable_bytes is not None:
        before, after = answer.usable_bytes
        lines.append(f"usable: {size_text(before)} before, {size_text(after)} afterwards")
    if answer.losses is not None:
        lines.append(f"losses survived: {answer.losses[0]} before, {answer.losses[1]} afterwards")
    if answer.job:
        takes = "unknown until it has run for a while"
        if answer.seconds is not None:
            takes = f"about {duration_text(answer.seconds)} at the present rate"
        lines.append(f"to move: {size_text(answer.move_bytes)}; time: {takes}")
    click.echo("\n".join(lines))
    return 0


def wait_for(volume: Mounted, answer: ReshapeAnswer, as_json: bool) -> int:
    """Until the job is done, with its progress. 0: it is; 1: it failed."""
    progress = Progress(quiet=as_json)
    with contextlib.closing(volume.client()) as client:
        try:
            for raw in client.answers(JobWaitRequest(job=answer.job)):
                progress.jobs(msgspec.json.decode(raw, type=JobsAnswer).jobs)
        finally:
            progress.close()
        told = msgspec.json.decode(client.ask(JobListRequest(job=answer.job)), type=JobsAnswer)
    jobs: list[Job] = told.jobs
    if as_json:
        print_json({**msgspec.to_builtins(answer), "jobs": msgspec.to_builtins(jobs)})
    else:
        click.echo("\n".join(map(job_line, jobs)))
    return exit_code(jobs)
