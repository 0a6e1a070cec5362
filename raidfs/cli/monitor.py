"""`raidfs-ctl monitor`: follows the events of all mounted volumes, and tells somebody.

1. Each event is told once, also over restarts of the monitor and of daemons: what was told of a
   volume is remembered in the state directory, when whoever is told has ended. Only a monitor that
   is killed in between tells an event again. One monitor at a time uses a directory.
2. Of a volume that it sees for the first time it tells what happened since the mount.
3. A daemon that has gone without unmounting its volume is told as DeviceDisappeared.
4. Root follows the daemons of other users, too, and believes of what they say nothing that could
   harm: ids name files only if they are ids, and what is printed has no control characters.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import trio

from raidfs.cli.alerts import HOOKS, SENDMAIL, Alert, Alerts
from raidfs.cli.events import event_line, printable
from raidfs.cli.output import EXIT_ERROR, sentence
from raidfs.cli.status import status_lines
from raidfs.daemon import mounts, registry
from raidfs.daemon.control import ControlClient, ControlError
from raidfs.daemon.events import EventsRequest, EventTold, follow
from raidfs.daemon.group_service import state_directory
from raidfs.daemon.registry import Entry
from raidfs.daemon.status import VolumeStatus
from raidfs.errors import RaidfsError, UsageError
from raidfs.store.events import NO_MEMBER, kind_of

DELAY_S = 10.0
THIS_MOUNT = -1  # as `after` of EventsRequest
LAST_EVENT = "Unmounted"
VOLUME_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
ENDING_TRIES = 50
ENDING_PAUSE_S = 0.1


class Seen(msgspec.Struct):
    """What was told of a volume: events up to `number`, and of those that aren't kept `not_kept` of
    the mount `session`. `mounted`: when it was looked at last."""

    volume_id: str
    volume: str
    mountpoint: str = ""
    number: int = THIS_MOUNT
    session: str = ""
    not_kept: int = 0
    mounted: bool = False
    version: int = 1


class Memory:
    """What was told, a file for each volume. Promise 1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = -1

    def open(self) -> None:
        """UsageError if it can't be, or another monitor has it."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another monitor runs with the state in {self.directory}; end it, or give this"
                " one a directory of its own (--state)",
                errno.EBUSY,
            ) from None
        except OSError as error:
            raise UsageError(
                f"the state directory {self.directory} can't be used ({error.strerror}); name"
                " another (--state)"
            ) from error

    def close(self) -> None:
        """Others may have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, volume_id: str) -> Path:
        assert VOLUME_ID.fullmatch(volume_id), volume_id
        return self.directory / f"{volume_id}.json"

    def of(self, volume_id: str) -> Seen | None:
        """None: it was never seen, or that can't be read."""
        try:
            return msgspec.json.decode(self._path(volume_id).read_bytes(), type=Seen)
        except (OSError, msgspec.DecodeError):
            return None

    def all(self) -> Iterator[Seen]:
        """Of all volumes ever seen."""
        for path in sorted(self.directory.glob("*.json")):
            seen = self.of(path.stem) if VOLUME_ID.fullmatch(path.stem) else None
            if seen is not None and seen.volume_id == path.stem:
                yield seen

    def put(self, seen: Seen) -> None:
        """OSError."""
        path = self._path(seen.volume_id)
        beside = path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(seen))
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)


def _complain(text: str) -> None:
    click.echo(f"raidfs-ctl monitor: {text}", err=True)


def own_event(kind: str, volume: str, text: str) -> EventTold:
    """One that is the monitor's and in no log."""
    severity = kind_of(kind).severity
    return EventTold(0, time.time_ns(), kind, severity, volume, NO_MEMBER, "", text, {})


def _status_of(socket: Path) -> VolumeStatus:
    with ControlClient(socket) as client:
        return client.status()


def _report(socket: Path) -> str:
    """The volume's status, for a mail."""
    try:
        return "\n".join(status_lines(_status_of(socket)))
    except (RaidfsError, OSError) as error:
        return f"Its status can't be told: {sentence(error)}"


class Monitor:
    """Follows volumes on `mountpoints`; all, if there are none."""

    def __init__(
        self, alerts: Alerts, memory: Memory, mountpoints: tuple[str, ...], delay_s: float
    ) -> None:
        self._alerts = alerts
        self._memory = memory
        self._mountpoints = {mounts.resolve(path) for path in mountpoints}
        self._delay_s = delay_s
        self._followed: set[str] = set()

    def entries(self) -> list[tuple[Entry, Path]]:
        """Those that are to be followed, and mounted now."""
        return [
            (entry, socket)
            for entry, socket in registry.entries()
            if VOLUME_ID.fullmatch(entry.volume_id)
            and (not self._mountpoints or entry.mountpoint in self._mountpoints)
        ]

    async def tell(self, event: EventTold, entry: Entry, socket: Path) -> None:
        """Somebody, and standard output."""
        click.echo(f"{printable(event.volume)}: {event_line(event)}")
        report = functools.partial(_report, socket)
        await self._alerts.tell(Alert(event, entry.volume_id, entry.mountpoint, report))

    # -- once -------------------------------------------------------------------------------------

    async def test(self) -> None:
        """A TestMessage for each volume."""
        for entry, socket in self.entries():
            event = own_event("TestMessage", entry.volume_name, "asked for by monitor --test")
            await self.tell(event, entry, socket)

    async def once(self) -> int:
        """Tells what is degraded now; EXIT_ERROR if anything is."""
        code = 0
        found = self.entries()
        for path in sorted(self._mountpoints - {entry.mountpoint for entry, _ in found}):
            _complain(f"{path}: no volume is mounted there, or its daemon has gone")
            code = EXIT_ERROR
        for entry, socket in found:
            try:
                status = await trio.to_thread.run_sync(_status_of, socket)
            except RaidfsError as error:
                event = own_event("DeviceDisappeared", entry.volume_name, sentence(error))
            else:
                if status.state == "ONLINE":
                    continue
                event = own_event("DegradedArray", entry.volume_name, status.status)
            code = EXIT_ERROR
            await self.tell(event, entry, socket)
        return code

    # -- following --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until a signal ends it; what is being told then is told to its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_signal, nursery.cancel_scope)
            self._memory.open()
            try:
                await self._look_back()
                while True:
                    for entry, socket in self.entries():
                        if entry.volume_id not in self._followed and not entry.closing:
                            self._followed.add(entry.volume_id)
                            nursery.start_soon(self._follow, entry, socket)
                    await trio.sleep(self._delay_s)
            finally:
                self._memory.close()

    async def _until_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for _ in received:
                scope.cancel()

    async def _look_back(self) -> None:
        """Volumes whose daemons have gone while no monitor ran, with their mounts still there."""
        living = {entry.volume_id for entry, _ in registry.entries()}
        for seen in self._memory.all():
            if seen.mounted and seen.volume_id not in living:
                if mounts.is_mounted(seen.mountpoint):
                    await self._gone(seen)
                else:
                    self._remember(seen, mounted=False)

    async def _follow(self, entry: Entry, socket: Path) -> None:
        """One volume, until it is unmounted or its daemon has gone."""
        try:
            seen = self._memory.of(entry.volume_id)
            if seen is None:
                seen = Seen(entry.volume_id, entry.volume_name)
                text = f"mounted on {entry.mountpoint}"
                await self.tell(own_event("NewArray", entry.volume_name, text), entry, socket)
            self._remember(
                seen, mounted=True, mountpoint=entry.mountpoint, volume=entry.volume_name
            )
            try:
                await self._tell_all(seen, entry, socket)
            except ControlError:
                if seen.mounted and await _has_gone(entry):
                    await self._gone(seen)
            except RaidfsError as error:
                _complain(f"{entry.mountpoint}: its events can't be read: {sentence(error)}")
                await trio.sleep(self._delay_s)
        finally:
            self._followed.discard(entry.volume_id)

    async def _tell_all(self, seen: Seen, entry: Entry, socket: Path) -> None:
        request = EventsRequest(
            after=seen.number, not_kept=seen.not_kept, session=seen.session, follow=True
        )
        async with contextlib.aclosing(follow(socket, request)) as parts:
            async for part in parts:
                if part.session != seen.session:
                    seen.session, seen.not_kept = part.session, 0
                for event in part.events:
                    with trio.CancelScope(shield=True):  # the time of each is limited
                        await self.tell(event, entry, socket)
                        if event.number > 0:
                            seen.number = event.number
                        else:
                            seen.not_kept = -event.number
                        seen.mounted = event.kind != LAST_EVENT
                        self._remember(seen)
                    await trio.lowlevel.checkpoint()
                if part.through > seen.number:
                    seen.number = part.through
                    self._remember(seen)

    async def _gone(self, seen: Seen) -> None:
        """Promise 3."""
        text = (
            f"the daemon on {seen.mountpoint} has gone without unmounting the volume; see its log,"
            f" then clear the mount (umount -l {seen.mountpoint}) and mount again"
        )
        entry = Entry(seen.volume_id, seen.volume, seen.mountpoint, 0, [])
        with trio.CancelScope(shield=True):
            event = own_event("DeviceDisappeared", seen.volume, text)
            await self.tell(event, entry, Path("/nonexistent/socket"))
            self._remember(seen, mounted=False)

    def _remember(self, seen: Seen, **changes: object) -> None:
        for name, value in changes.items():
            setattr(seen, name, value)
        try:
            self._memory.put(seen)
        except OSError as error:
            _complain(f"what was told can't be remembered: {sentence(error)}")


async def _has_gone(entry: Entry) -> bool:
    """The daemon is no more. One that has just hung up may take a moment to be gone."""
    for _ in range(ENDING_TRIES):
        found = registry.find_volume(entry.volume_id)
        if found is None or found[0].pid != entry.pid:
            return True
        await trio.sleep(ENDING_PAUSE_S)
    return False


def default_state() -> Path:
    """Beside what volumes keep on this host."""
    return state_directory("").parent / "monitor"


@click.command("monitor")
@click.argument("where", metavar="[MOUNTPOINT...]", nargs=-1)
@click.option(
    "--program",
    type=click.Path(path_type=Path),
    metavar="PROGRAM",
    help="Run it with EVENT VOLUME [MEMBER], as mdadm does.",
)
@click.option("--mail", metavar="ADDRESS", help="Send mail of what costs redundancy or data.")
@click.option(
    "--hooks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=HOOKS,
    show_default=True,
    help="Run the scripts in it whose names begin with the event, or with all.",
)
@click.option("--oneshot", is_flag=True, help="Tell what is degraded now, and end: 1 if any is.")
@click.option("--test", is_flag=True, help="Begin with a TestMessage for each volume.")
@click.option(
    "--delay",
    type=click.FloatRange(0.1, 86_400),
    default=DELAY_S,
    show_default=True,
    metavar="SECONDS",
    help="How often to look for volumes that were mounted meanwhile.",
)
@click.option(
    "--state", type=click.Path(path_type=Path), metavar="DIR", help="Where what was told is kept."
)
@click.option("--sendmail", type=click.Path(path_type=Path), default=SENDMAIL, hidden=True)
def monitor_command(
    where: tuple[str, ...],
    program: Path | None,
    mail: str | None,
    hooks: Path,
    oneshot: bool,
    test: bool,
    delay: float,
    state: Path | None,
    sendmail: Path,
) -> int:
    """Follow the events of mounted volumes, all or those named, and tell somebody of each.

    Programs and scripts find the event in RAIDFS_EVENT, _VOLUME, _MEMBER, _TEXT, _SEVERITY and
    more; they have 30 seconds. Scripts must belong to root (or to you), and nobody else may be able
    to write to them or their directory: Fail-page.sh is run for Fail, all-log.sh for every event.
    Mail goes out for Fail, FailSpare, DegradedArray, SparesMissing, Unrecoverable, ReadOnly and
    TestMessage. Every event is also written to standard output.

    \b
    Examples:
      raidfs-ctl monitor --mail root
      raidfs-ctl monitor --program /usr/local/bin/page --test --oneshot
      systemctl enable --now raidfs-monitor
    """
    alerts = Alerts(program=program, mail=mail, hooks=hooks, complain=_complain, sendmail=sendmail)
    if hooks != HOOKS and not hooks.is_dir():
        raise UsageError(f"there is no directory {hooks}")
    alerts.hooks.scripts()  # so that what is refused is said at the start
    monitor = Monitor(alerts, Memory(state or default_state()), where, delay)

    async def run() -> int:
        if test:
            await monitor.test()
        if oneshot:
            return await monitor.once()
        await monitor.run()
        return 0

    return trio.run(run)
