"""`raidfs-ctl member list`: what each member is for, how it is, what lies on it."""

from __future__ import annotations

import click

from raidfs.cli.output import print_json, size_text, table
from raidfs.cli.status import note_text, role_text, status_of


@click.command("list")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def list_command(where: str, as_json: bool) -> int:
    """List the members of one volume: number, kind, size, state, role, errors, path.

    \b
    Example:
      raidfs-ctl member list /mnt/tank
    """
    status = status_of(where)
    if as_json:
        print_json({"volume": status.volume, "state": status.state, "members": status.members})
        return 0
    rows: list[tuple[object, ...]] = [
        ("ID", "KIND", "SIZE", "STATE", "ROLE", "DOMAIN", "COLUMNS", "READ", "WRITE", "CKSUM",
         "PATH", "")
    ]  # fmt: skip
    for member in status.members:
        counts = (member.read_errors, member.write_errors, member.checksum_errors)
        size, domain = size_text(member.bytes), member.domain or "-"
        what = (member.state, role_text(member), domain, member.columns)
        rows.append((member.id, member.kind, size, *what, *counts, member.path, note_text(member)))
    click.echo("\n".join(table(rows, frozenset({0, 2, 6, 7, 8, 9}))))
    return 0
