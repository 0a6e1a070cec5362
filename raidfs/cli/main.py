"""`raidfs-ctl`: everything about volumes but mounting them."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from raidfs.cli.output import EXIT_ERROR, EXIT_USAGE, run_command

# verb -> (module, command): imported when called, so that help and typing errors are quick.
VERBS = {
    "create": ("raidfs.cli.create", "create_command"),
    "plan": ("raidfs.cli.plan", "plan_command"),
    "status": ("raidfs.cli.status", "status_command"),
    "statistics": ("raidfs.cli.status", "statistics_command"),
    "list": ("raidfs.cli.status", "list_command"),
    "member": ("raidfs.cli.member", "member_group"),
    "convert": ("raidfs.cli.convert", "convert_command"),
    "rebalance": ("raidfs.cli.rebalance", "rebalance_command"),
    "wait": ("raidfs.cli.jobs", "wait_command"),
    "job": ("raidfs.cli.jobs", "job_group"),
    "snapshot": ("raidfs.cli.snapshot", "snapshot_group"),
    "group": ("raidfs.cli.group", "group_group"),
    "mv": ("raidfs.cli.mv", "mv_command"),
    "events": ("raidfs.cli.events", "events_command"),
    "monitor": ("raidfs.cli.monitor", "monitor_command"),
    "metrics": ("raidfs.cli.metrics", "metrics_command"),
    "policy": ("raidfs.cli.policy", "policy_group"),
    "sync": ("raidfs.cli.umount", "sync_command"),
    "umount": ("raidfs.cli.umount", "umount_command"),
    "scrub": ("raidfs.cli.scrub", "scrub_group"),
    "check": ("raidfs.cli.check", "check_command"),
    "extract": ("raidfs.cli.extract", "extract_command"),
    "clone": ("raidfs.cli.clone", "clone_command"),
    "completion": ("raidfs.cli.completion", "completion_command"),
}


class Verbs(click.Group):
    """Finds commands by the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which one needs them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None for an unknown verb; click then says so."""
        if cmd_name not in VERBS:
            return None
        module, name = VERBS[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group("raidfs-ctl", cls=Verbs)
@click.version_option(package_name="raidfs")
def control() -> None:
    """Make, look at and take care of raidfs volumes. To mount one, use raidfs.

    A volume is named by its mountpoint, or by any one of its members.

    \b
    A first session:
      raidfs-ctl create --name tank /srv/disk1 /srv/disk2 /srv/disk3
      raidfs /srv/disk1 /mnt/tank
      raidfs-ctl status /mnt/tank
      raidfs-ctl umount /mnt/tank
    """


def main() -> NoReturn:
    """Entry point of raidfs-ctl. `check` keeps the exit codes of fsck(8), all else 1 and 2."""
    checks = sys.argv[1:2] == ["check"]
    run_command(
        control,
        "raidfs-ctl",
        exit_error=8 if checks else EXIT_ERROR,
        exit_usage=16 if checks else EXIT_USAGE,
    )
