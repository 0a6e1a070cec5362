"""`raidfs-ctl umount` and `sync`: commands that return when all is on the members."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time

import click

from raidfs.cli import target
from raidfs.cli.output import print_json
from raidfs.daemon import mounts, registry, stale
from raidfs.daemon.control import ControlClient, StopRequest, SyncRequest, WaitRequest
from raidfs.errors import UsageError

GONE_POLL_S = 0.02


def _take_away(mountpoint: str) -> None:
    """umount(8) for root, fusermount3 for others; both refuse while files are open."""
    command = (
        ["umount", "-i", mountpoint] if os.geteuid() == 0 else ["fusermount3", "-u", mountpoint]
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"{command[0]} failed"
        raise UsageError(
            f"{said}; close what is open below it (see `fuser -vm {mountpoint}`),"
            " or use --force, after which those programs get errors"
        )


def _wait_until_gone(volume_id: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while registry.find_volume(volume_id) is not None:
        if time.monotonic() > deadline:
            raise UsageError("the daemon has closed the volume but doesn't end; see its log")
        time.sleep(GONE_POLL_S)


def _check_seen_once(mountpoint: str) -> None:
    """The kernel would keep the volume for whatever else is mounted of it."""
    mounted = mounts.mount_at(mountpoint)
    others = mounts.others_of(mounted) if mounted is not None else []
    if others:
        listing = ", ".join(other.mountpoint for other in others)
        raise UsageError(
            f"a part of the volume is mounted on {listing}, too; unmount that first, or use"
            " --force, after which programs there get errors",
            errno.EBUSY,
        )


def unmount(where: str, force: bool, timeout_s: float | None) -> str:
    """Unmounts and waits until the volume is closed and its members are free. The mountpoint."""
    bound = mounts.mount_at(where)
    if bound is not None and stale.is_dead(bound):
        stale.clear(where)
        click.echo(
            f"the daemon that served {bound.mountpoint} had died: its stale mount was taken away."
            " What was not durable by then is lost, all else is on the members; mount the volume"
            " again",
            err=True,
        )
        return bound.mountpoint
    if bound is not None and bound.kind == mounts.FILESYSTEM_TYPE and bound.root != "/":
        _take_away(bound.mountpoint)  # a snapshot, say; the volume stays mounted
        return bound.mountpoint
    found = target.must_be_mounted(where, "umount")
    if not force:
        _check_seen_once(found.entry.mountpoint)
    client: ControlClient
    with found.client() as client:
        if force:
            client.send(StopRequest())
        else:
            client.send(WaitRequest())
            if not found.entry.closing:
                _take_away(found.entry.mountpoint)
        client.receive(timeout_s)
    _wait_until_gone(found.entry.volume_id, 10.0)
    return found.entry.mountpoint


@click.command("umount")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--force", is_flag=True, help="Even while files are open.")
@click.option("--timeout", type=float, help="Seconds to wait (default: as long as it takes).")
@click.option("--json", "as_json", is_flag=True, help="JSON answer.")
def umount_command(where: str, force: bool, timeout: float | None, as_json: bool) -> int:
    """Unmount a volume and wait until everything is on its members.

    umount(8) and fusermount3 -u work too, but return before the daemon has written the last
    changes; this returns when it has, and fails if it could not. A mount whose daemon has died is
    taken away, too, and that is said.

    Exit code: 0 nothing is mounted there any more, 1 it is, or the last changes were not written.

    \b
    Example:
      raidfs-ctl umount /mnt/tank
    """
    mountpoint = unmount(where, force, timeout)
    if as_json:
        print_json({"unmounted": mountpoint})
    return 0


@click.command("sync")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--json", "as_json", is_flag=True, help="JSON answer.")
def sync_command(where: str, as_json: bool) -> int:
    """Make everything written so far durable.

    sync(1) is no barrier on a FUSE mount: the kernel doesn't pass it on. This is one, as is
    fsync(2) on any file.

    \b
    Example:
      raidfs-ctl sync /mnt/tank
    """
    found = target.must_be_mounted(where, "sync")
    with contextlib.closing(found.client()) as client:
        client.ask(SyncRequest(), timeout_s=None)
    if as_json:
        print_json({"synced": found.entry.mountpoint})
    return 0
