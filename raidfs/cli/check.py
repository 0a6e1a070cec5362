"""`raidfs-ctl check` and fsck.raidfs: is every promise of the format kept? Changes nothing."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from raidfs.check import Report, check_volume
from raidfs.cli import target
from raidfs.cli.output import print_json, run_command

# fsck(8)
EXIT_CLEAN = 0
EXIT_FINDINGS = 4
EXIT_OPERATIONAL = 8
EXIT_USAGE = 16


class _Progress:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._columns = 0

    def __call__(self, text: str) -> None:
        if self._shown:
            print(f"\r{text:<{self._columns}}", end="", file=sys.stderr, flush=True)
            self._columns = len(text)

    def close(self) -> None:
        """Clears the line."""
        if self._shown and self._columns:
            print("\r" + " " * self._columns + "\r", end="", file=sys.stderr, flush=True)


def report_lines(report: Report) -> list[str]:
    """Findings first, then what was looked at, then the verdict."""
    lines = [f"{finding.code}: {finding.text}" for finding in report.findings]
    counts = ", ".join(f"{number} {name}" for name, number in report.counts.items())
    lines.append(f"checked: {counts}")
    found = len(report.findings)
    lines.append("clean: every promise is kept" if not found else f"NOT CLEAN: {found} findings")
    return lines


@click.command("check")
@click.argument("where", metavar="MEMBER")
@click.option("--member", "members", multiple=True, help="Where another member is now.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
@click.option("-q", "--quiet", is_flag=True, help="Only findings, no progress.")
@click.option("-a", "-p", "-y", "-n", "-f", "-T", "-M", "-V", "flags", is_flag=True, hidden=True)
@click.option("-C", "progress_fd", hidden=True, type=int, default=None)
def check_command(
    where: str,
    members: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    flags: bool,
    progress_fd: int | None,
) -> int:
    """Check an unmounted volume, named by any member. Changes nothing.

    Reads all metadata and all cells that are in use, parity too, compares checksums, and lists each
    violated promise. Repair is not its business: damaged cells heal when they are read through a
    mount.

    Exit code as of fsck(8): 0 clean, 4 something found, 8 could not check, 16 wrong arguments.
    The flags -a -p -y -n -f of fsck are accepted and change nothing.
    """
    found = target.must_be_unmounted(where, "check")
    progress = _Progress(quiet or as_json)
    try:
        report = check_volume(found.path, extra_paths=list(members), progress=progress)
    finally:
        progress.close()
    if as_json:
        findings = [{"code": f.code, "text": f.text} for f in report.findings]
        print_json({"clean": not findings, "findings": findings, "counts": report.counts})
    elif report.findings or not quiet:
        click.echo("\n".join(report_lines(report)))
    return EXIT_FINDINGS if report.findings else EXIT_CLEAN


def fsck_main() -> NoReturn:
    """Entry point of fsck.raidfs."""
    run_command(check_command, "fsck.raidfs", exit_error=EXIT_OPERATIONAL, exit_usage=EXIT_USAGE)
