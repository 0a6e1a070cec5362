"""How a change of members is asked for: first what it comes to, then whether, then it is done."""

from __future__ import annotations

import sys

import click
import msgspec

from raidfs.cli import target
from raidfs.cli.job_lines import Progress, exit_code, outcome_lines
from raidfs.cli.opened import ask
from raidfs.cli.output import confirm, print_json
from raidfs.cli.status import status_lines
from raidfs.daemon.member_requests import (
    JobRequest,
    JobsAnswer,
    JobWaitRequest,
    MemberAnswer,
    MemberRequest,
)
from raidfs.daemon.status import VolumeStatus

LOSING = frozenset({"fail", "offline"})  # after these the whole status is of interest


def carry_out(
    where: str,
    request: MemberRequest,
    *,
    asks: bool,
    as_json: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    wait: bool = False,
) -> int:
    """The command's exit code. `asks`: unless told --yes."""
    volume = target.find(where)
    if dry_run or (asks and not yes):
        planned = _plan(volume, request)
        if dry_run:
            _tell_plan(planned, as_json)
            return 0
        _ask(planned, yes)
    talk = _Talk(wait, as_json)
    try:
        ask(volume, request, talk.take, talk.then)
    finally:
        talk.progress.close()
    return talk.end(isinstance(volume, target.Mounted))


def _plan(volume: target.Mounted | target.Unmounted, request: MemberRequest) -> MemberAnswer:
    found: list[MemberAnswer] = []
    ask(volume, msgspec.structs.replace(request, dry_run=True), found.append, lambda: None)
    return found[-1]


def _tell_plan(planned: MemberAnswer, as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    for line in planned.said:
        click.echo(f"would do: {line}")
    for line in planned.warned:
        click.echo(f"warning: {line}")
    click.echo("nothing was changed (--dry-run)")


def _ask(planned: MemberAnswer, yes: bool) -> None:
    for line in [*planned.said, *(f"warning: {line}" for line in planned.warned)]:
        click.echo(line, err=True)
    confirm("Go on?", yes)


class _Talk:
    """Takes the answers to the change, and, if that is wanted, to the waiting after it."""

    def __init__(self, wait: bool, as_json: bool) -> None:
        self.progress = Progress(quiet=as_json)
        self._wait, self._as_json = wait, as_json
        self._answer: MemberAnswer | None = None
        self._jobs: JobsAnswer | None = None
        self._waits_for: list[str] = []

    def take(self, told: MemberAnswer | JobsAnswer) -> None:
        if isinstance(told, JobsAnswer):
            self._jobs = told
            self.progress.jobs(told.jobs)
        elif told.copy_bytes and told.status is None:
            self.progress.copying(told.copied_bytes, told.copy_bytes)
        else:
            self._answer = told
            if not self._as_json:
                self.progress.close()
                _say(told, self._wait)

    def then(self) -> JobRequest | None:
        if not self._wait or self._jobs is not None:
            return None
        return JobWaitRequest()

    def end(self, mounted: bool) -> int:
        assert self._answer is not None
        answer, jobs = self._answer, self._jobs.jobs if self._jobs is not None else []
        if self._as_json:
            print_json(_document(answer, self._jobs))
        else:
            for line in outcome_lines(jobs):
                click.echo(line)
            if self._jobs is None and answer.jobs:
                _hint(mounted)
        return exit_code(jobs)


def _document(answer: MemberAnswer, waited: JobsAnswer | None) -> dict[str, object]:
    """The status after it, and what was done beside it."""
    status: VolumeStatus | None = answer.status
    plain: dict[str, object] = msgspec.to_builtins(status) if status is not None else {}
    done = msgspec.to_builtins(msgspec.structs.replace(answer, status=None))
    done.pop("status")
    if waited is not None:
        plain["jobs"] = msgspec.to_builtins(waited.jobs)
    return {**plain, "done": done}


def _say(answer: MemberAnswer, waits: bool) -> None:
    for line in answer.said:
        click.echo(line)
    for line in answer.warned:
        click.echo(f"warning: {line}", err=True)
    if answer.status is not None and answer.verb in LOSING and not waits:
        click.echo("\n".join(status_lines(answer.status)))


def _hint(mounted: bool) -> None:
    if mounted:
        click.echo("it goes on in the background; `raidfs-ctl wait` returns when it is done")
    else:
        click.echo("it is done while the volume is mounted; --wait does it here and now")
    sys.stdout.flush()
