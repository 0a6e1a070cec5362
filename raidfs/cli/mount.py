"""`raidfs SOURCE MOUNTPOINT`, also as mount.raidfs for mount(8) and fstab.

1. Options that mount(8) handles itself, or that mean nothing here, are taken without complaint; an
   option that is neither those nor ours is refused, so that a typing error is never silent.
2. As mount.raidfs it ends with the codes of mount(8). With `nofail`, members that are missing are
   told and are no failure, as a device that is missing is none to mount(8).
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from typing import NoReturn

import click

from raidfs.cli.output import parse_size, run_command
from raidfs.errors import UsageError

# Handled by mount(8), systemd or the boot scripts; they may reach a helper all the same.
IGNORED = frozenset(
    [
        "rw",
        "defaults",
        "auto",
        "noauto",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "async",
        "exec",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "loud",
        "silent",
        "nolazytime",
        "lazytime",
    ]
)
# These the kernel or libfuse knows.
TO_KERNEL = frozenset(
    [
        "noatime",
        "nodiratime",
        "noexec",
        "nosuid",
        "nodev",
        "suid",
        "dev",
        "sync",
        "dirsync",
        "allow_other",
        "allow_root",
        "default_permissions",
        "auto_unmount",
    ]
)
LANE_THREADS_MAX = 64
SLOW_READ_MS_MAX = 60_000
HELPER = "mount.raidfs"
# mount(8)
HELPER_EXIT_USAGE = 1
HELPER_EXIT_FAILED = 32
# What a shell offers; a value follows "=".
OFFERED = (
    *("ro", "degraded", "member=", "allow_other", "dirty=", "direct", "writeback"),
    *("snapdir=visible", "lane_threads=", "nolane", "log=", "debug", "nofail", "noauto", "_netdev"),
    "metrics=",
    "slow_read_ms=",
    *sorted(TO_KERNEL - {"allow_other", "suid", "dev", "default_permissions"}),
)
OPTIONS_HELP = """\
\b
Options of -o (comma-separated):
  ro               read-only: nothing is written to any member
  snapdir=visible  list .snapshots in the root, which snapshots below it need to be
                   exported by NFS; hidden (the default): it is there for whoever
                   names it
  degraded         mount although members are missing that were there last time
  nofail           in /etc/fstab: missing members are no failure
  member=PATH      where a member is now, if not where it was (may be repeated)
  dirty=SIZE       most memory for data that is not yet on members (default 256M)
  allow_other      let other users in (without it, only the one who mounts; in
                   fstab you usually want it)
  direct           read and write the members' data past the page cache
                   (O_DIRECT), so that nothing is kept in memory twice
  slow_read_ms=N   how long a read waits for one member before it is rebuilt from
                   the others (0: as long as it takes; default: ten times what is
                   usual for the member, from 50 to 1000)
  writeback        let the kernel collect small writes before it passes them on:
                   faster, but then a crash of the daemon loses what was not
                   synced, and a cut (every 5 s) holds only what the kernel has
                   passed on; fsync and `raidfs-ctl sync` keep their promise
  nolane           without the data path in C: slower; for comparing
  lane_threads=N   threads that take requests from the kernel (default: one for
                   each core, at most 4)
  metrics=WHERE    serve figures to Prometheus on HOST:PORT, to whoever connects,
                   or on unix:/path, to this user; see docs/METRICS.md
  log=FILE         log to FILE instead of syslog
  debug            log more
  noatime, noexec, nosuid, nodev, sync, dirsync, auto_unmount: as in mount(8)
"""


@dataclass(slots=True)
class ParsedOptions:
    """What a string of -o options says."""

    read_only: bool = False
    degraded: bool = False
    debug: bool = False
    log_path: str | None = None
    metrics: str | None = None
    dirty_bytes: int | None = None
    slow_read_ms: int | None = None
    direct: bool = False
    lane: bool = True
    lane_threads: int = 0
    writeback: bool = False
    snapshots_listed: bool = False
    may_be_missing: bool = False
    members: list[str] = field(default_factory=list)
    fuse: set[str] = field(default_factory=set)


def parse_options(texts: tuple[str, ...]) -> ParsedOptions:
    """All of `-o a,b=c`; UsageError for what nobody knows. A later option wins over an earlier."""
    parsed = ParsedOptions()
    for option in (word for text in texts for word in text.split(",") if word):
        name, has_value, value = option.partition("=")
        if has_value and not value:
            raise UsageError(f"mount option {name}= needs a value after the sign")
        if not _take(parsed, name, value) and not _is_ignored(name):
            raise UsageError(f"unknown mount option {option!r}; see raidfs --help")
    _check_lane(parsed)
    return parsed


def _is_ignored(name: str) -> bool:
    return name in IGNORED or name.startswith(("x-", "X-", "comment", "uhelper", "helper"))


def _take(parsed: ParsedOptions, name: str, value: str) -> bool:
    """Notes one option of ours; False if it is none."""
    match (name, value):
        case ("ro", ""):
            parsed.read_only = True
        case ("rw", ""):
            parsed.read_only = False
        case ("degraded", ""):
            parsed.degraded = True
        case ("nofail", ""):
            parsed.may_be_missing = True
        case ("debug", ""):
            parsed.debug = True
        case ("log", path) if path:
            parsed.log_path = os.path.abspath(path)
        case ("metrics", where) if where:
            parsed.metrics = where
        case ("snapdir", "visible" | "hidden" as how):
            parsed.snapshots_listed = how == "visible"
        case ("member", path) if path:
            parsed.members.append(path)
        case ("dirty", size) if size:
            parsed.dirty_bytes = parse_size(size)
        case ("slow_read_ms", number) if number:
            parsed.slow_read_ms = _milliseconds(number)
        case ("direct" | "writeback" | "lane" as word, ""):
            setattr(parsed, word, True)
        case ("nolane", ""):
            parsed.lane = False
        case ("lane_threads", number) if number:
            parsed.lane_threads = _threads(number)
        case (word, "") if word in TO_KERNEL:
            for opposite in (f"no{word}", word.removeprefix("no")):
                parsed.fuse.discard(opposite)
            parsed.fuse.add(word)
        case _:
            return False
    return True


def _threads(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= LANE_THREADS_MAX:
        raise UsageError(f"lane_threads={text}: write a number from 1 to {LANE_THREADS_MAX}")
    return int(text)


def _milliseconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > SLOW_READ_MS_MAX:
        raise UsageError(f"slow_read_ms={text}: write a number from 0 to {SLOW_READ_MS_MAX}")
    return int(text)


def _check_lane(parsed: ParsedOptions) -> None:
    """What only the lane can do is not silently left out."""
    if not parsed.lane and (parsed.writeback or parsed.lane_threads):
        word = "writeback" if parsed.writeback else "lane_threads"
        raise UsageError(f"mount option {word} needs the lane; leave out nolane")


def _kernel_options(parsed: ParsedOptions) -> frozenset[str]:
    """libfuse mounts nosuid,nodev unless told; root gets what mount(8) gives for other types."""
    chosen = set(parsed.fuse)
    if os.geteuid() == 0:
        chosen |= {word for word in ("suid", "dev") if f"no{word}" not in chosen}
    else:
        chosen -= {"suid", "dev"}
    return frozenset(chosen)


@click.command("raidfs", epilog=OPTIONS_HELP)
@click.argument("source")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Mount options, see below.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, log to stderr.")
@click.option("-s", "sloppy", is_flag=True, hidden=True)
@click.option("-n", "no_mtab", is_flag=True, hidden=True)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("-t", "kind", hidden=True)
@click.version_option(package_name="raidfs")
def mount_command(
    source: str,
    mountpoint: str,
    options: tuple[str, ...],
    foreground: bool,
    sloppy: bool,
    no_mtab: bool,
    verbose: bool,
    kind: str | None,
) -> int:
    """Mount the volume that SOURCE, any one of its members, belongs to; or a snapshot of it.

    Returns when the mount is ready; the daemon goes on in the background until it is unmounted
    (umount, fusermount3 -u, or raidfs-ctl umount, which waits until all is on the members).

    \b
    Examples:
      raidfs /srv/disk1 /mnt/tank
      raidfs -o ro,degraded /dev/sdb /mnt/tank
      raidfs /srv/disk1@monday /mnt/monday    a snapshot, read-only
    In /etc/fstab (needs the mount helper, see `make install`):
      /srv/disk1  /mnt/tank  raidfs       allow_other,nofail  0 0
      /srv/disk1  /mnt/tank  fuse.raidfs  allow_other,nofail  0 0

    Exit code: 0 mounted; 1 refused or failed, nothing was changed; 2 wrong arguments; in the
    foreground also 3 when the last changes could not be made durable. As mount.raidfs, those of
    mount(8): 1 wrong arguments, 32 refused or failed.
    """
    # Imported late: --help and wrong arguments need neither numpy nor libfuse.
    from raidfs.cli import target
    from raidfs.daemon.bound import bind_snapshot
    from raidfs.daemon.main import EXIT_MISSING, EXIT_REFUSED, MountOptions, mount
    from raidfs.daemon.metrics_server import parse_endpoint
    from raidfs.daemon.session import LaneOptions
    from raidfs.store.store import DIRTY_BYTES_MAX

    parsed = parse_options(options)
    lane = LaneOptions(parsed.lane_threads, parsed.writeback) if parsed.lane else None
    source, snapshot = target.split(source)
    if snapshot is not None:
        found = target.find(source)
        if isinstance(found, target.Mounted) and not found.entry.closing:
            bind_snapshot(found.entry, target.check_text(snapshot), mountpoint, parsed.fuse)
            return 0
    code = mount(
        MountOptions(
            source=source,
            mountpoint=mountpoint,
            foreground=foreground,
            snapshot=snapshot,
            snapshots_listed=parsed.snapshots_listed,
            read_only=parsed.read_only,
            degraded=parsed.degraded,
            members=tuple(parsed.members),
            dirty_bytes=parsed.dirty_bytes or DIRTY_BYTES_MAX,
            fuse_options=_kernel_options(parsed),
            slow_read_ms=parsed.slow_read_ms,
            direct=parsed.direct,
            lane=lane,
            log_level=logging.DEBUG if parsed.debug or verbose else logging.INFO,
            log_path=parsed.log_path,
            metrics=parse_endpoint(parsed.metrics) if parsed.metrics else None,
        )
    )
    if click.get_current_context().info_name != HELPER:
        return EXIT_REFUSED if code == EXIT_MISSING else code
    if code == EXIT_MISSING and parsed.may_be_missing:
        return 0
    return HELPER_EXIT_FAILED if code else 0


def main() -> NoReturn:
    """Entry point of `raidfs` and `mount.raidfs`. For mount(8), -f is "do all but mount"."""
    name = os.path.basename(sys.argv[0])
    arguments = sys.argv[1:]
    if name != HELPER:
        run_command(mount_command, name, arguments)
    if "-f" in arguments:
        sys.exit(0)
    run_command(
        mount_command,
        HELPER,
        arguments,
        exit_error=HELPER_EXIT_FAILED,
        exit_usage=HELPER_EXIT_USAGE,
    )
