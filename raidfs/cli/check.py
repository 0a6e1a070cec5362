"""`raidfs-ctl check` and fsck.raidfs: is every promise of the format kept? Changes nothing."""

from __future__ import annotations

import sys
import time
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
PROGRESS_S = 0.2


class _Progress:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._columns = 0
        self._told_at = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._shown or now - self._told_at < PROGRESS_S:
            return
        self._told_at = now
        part = f" {100 * done // total} %" if total else f" {done}"
        text = f"checking {what}{part}"
        print(f"\r{text:<{self._columns}}", end="", file=sys.stderr, flush=True)
        self._columns = len(text)

    def close(self) -> None:
        """Clears the line."""
        if self._shown and self._columns:
            print("\r" + " " * self._columns + "\r", end="", file=sys.stderr, flush=True)


def report_lines(report: Report, quiet: bool) -> list[str]:
    """Findings first, then what is only to be known, what was looked at, and the verdict."""
    lines = [f"{finding.code}: {finding.text}" for finding in report.findings]
    if report.cut_short:
        lines.append(f"... and {report.cut_short} findings more")
    found = len(report.findings) + report.cut_short
    verdict = "clean: every promise is kept" if not found else f"NOT CLEAN: {found} findings"
    if quiet:
        return [*lines, verdict] if found else []
    lines += [f"note: {note.code}: {note.text}" for note in report.notes]
    counts = ", ".join(f"{number} {name}" for name, number in report.counts.items())
    return [*lines, f"checked: {counts}", verdict]


@click.command("check")
@click.argument("where", metavar="MEMBER")
@click.option("--member", "members", multiple=True, help="Where another member is now.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
@click.option("--no-data", is_flag=True, help="Metadata only: by its size, not by the data's.")
@click.option("-q", "--quiet", is_flag=True, help="Only findings, no progress.")
@click.option("-a", "-p", "-y", "-n", "-f", "-T", "-M", "-V", "flags", is_flag=True, hidden=True)
@click.option("-C", "progress_fd", hidden=True, type=int, default=None)
def check_command(
    where: str,
    members: tuple[str, ...],
    as_json: bool,
    no_data: bool,
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

    \b
    Examples:
      raidfs-ctl check /srv/disk1
      fsck.raidfs --no-data /dev/sdb
    """
    found = target.must_be_unmounted(where, "check")
    progress = _Progress(quiet or as_json)
    try:
        report = check_volume(found.path, extra_paths=members, data=not no_data, progress=progress)
    finally:
        progress.close()
    if as_json:
        print_json(
            {
                "clean": report.clean,
                "findings": report.findings,
                "findings_not_listed": report.cut_short,
                "notes": report.notes,
                "counts": report.counts,
                "snapshots": report.snapshots,
            }
        )
    else:
        for line in report_lines(report, quiet):
            click.echo(line)
    return EXIT_CLEAN if report.clean else EXIT_FINDINGS


def fsck_main() -> NoReturn:
    """Entry point of fsck.raidfs."""
    run_command(check_command, "fsck.raidfs", exit_error=EXIT_OPERATIONAL, exit_usage=EXIT_USAGE)
