"""The mount daemon: one process for one volume, one trio nursery in it.

In the nursery: the session (requests of the kernel), the store's flusher, the control socket,
signals.

 1. In the background, the command returns when the mount answers, or with the sentence that says
    why there is none; nobody has to wait or look.
 2. However the mount ends (umount, signal, control socket, an error in here), the kernel's mount is
    taken away, then a last cut makes all that was told durable, then the members are let go.
 3. Members held by a daemon whose mount is already gone are waited for; umount(8) returns before
    the last cut is done, and a mount right after it must not fail for that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import logging.handlers
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from raidfs import native
from raidfs.daemon import mounts, notify, registry, stale
from raidfs.daemon.condition import store_condition
from raidfs.daemon.control import (
    ControlServer,
    Handler,
    Request,
    StatisticsRequest,
    StatusRequest,
    StopRequest,
    SyncRequest,
    WaitRequest,
)
from raidfs.daemon.events import EventService
from raidfs.daemon.fuse import groups_of
from raidfs.daemon.group import GroupProcess
from raidfs.daemon.group_figures import obstacle_of
from raidfs.daemon.group_moves import GroupMoves
from raidfs.daemon.group_service import GroupService, state_directory
from raidfs.daemon.group_works import GroupWorks
from raidfs.daemon.job_service import JobService
from raidfs.daemon.lane import LaneSession
from raidfs.daemon.members import MemberService
from raidfs.daemon.metrics import MetricsService, statistics_of
from raidfs.daemon.metrics_server import Endpoint, MetricsServer
from raidfs.daemon.reshape import ReshapeService
from raidfs.daemon.scrub import ScrubService
from raidfs.daemon.session import READ_AHEAD_BYTES, LaneOptions, PlainSession, Session
from raidfs.daemon.slow import slow_down
from raidfs.daemon.snapshots import SnapshotService
from raidfs.daemon.status import VolumeStatus, describe
from raidfs.daemon.users import UsersReading
from raidfs.errors import MemberBusy, RaidfsError, UsageError, means_missing
from raidfs.fs.views import SNAPSHOTS_NAME
from raidfs.fs.volume import Volume
from raidfs.known import Known
from raidfs.raid.assembly import Assembly
from raidfs.raid.places import peek
from raidfs.store.meta import ROOT_INO
from raidfs.store.past import as_view
from raidfs.store.store import DIRTY_BYTES_MAX, Store

log = logging.getLogger("raidfs")

EXIT_REFUSED = 1
EXIT_UNCLEAN = 3
EXIT_MISSING = 4  # refused, because members are missing
BUSY_WAIT_S = 10.0
BUSY_POLL_S = 0.1
READY = b"ready"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the mount command was asked for. `fuse_options` go to the kernel as they are;
    `direct`: past the page cache to the members; without `lane`, pyfuse3 alone serves. `snapshot`:
    its name, if it alone is to be seen, read-only; `snapshots_listed`: in the root. `slow_read_ms`:
    see patience_for."""

    source: str
    mountpoint: str
    foreground: bool = False
    snapshot: str | None = None
    snapshots_listed: bool = False
    read_only: bool = False
    degraded: bool = False
    members: tuple[str, ...] = ()
    dirty_bytes: int = DIRTY_BYTES_MAX
    slow_read_ms: int | None = None
    fuse_options: frozenset[str] = frozenset()
    direct: bool = False
    lane: LaneOptions | None = field(default_factory=LaneOptions)
    log_level: int = logging.INFO
    log_path: str | None = None
    metrics: Endpoint | None = None
    wait_busy_s: float = BUSY_WAIT_S


def mount(options: MountOptions) -> int:
    """Serves the volume, in the background unless told otherwise. Returns the exit code."""
    if options.snapshot is not None:
        options = dataclasses.replace(options, read_only=True)
    if options.foreground:
        _log_to(_stderr_or_file(options), options.log_level)
        return _serve(options, notify.ready)
    return _serve_in_background(options)


def _serve_in_background(options: MountOptions) -> int:
    """Forks before anything is opened: threads and locks belong to the child alone."""
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child:
        os.close(to_parent)
        with os.fdopen(from_child, "rb") as pipe:
            told = pipe.read()
        if told == READY:
            return 0
        _, wait_status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(wait_status)
        if code < 0:
            name = signal.Signals(-code).name
            print(f"raidfs: the daemon was ended by {name} before it was ready", file=sys.stderr)
        return code if code > 0 else EXIT_REFUSED
    os.close(from_child)
    os.setsid()

    def ready() -> None:
        os.write(to_parent, READY)
        os.close(to_parent)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)

    code = EXIT_REFUSED
    try:
        _log_to(_syslog_or_file(options), options.log_level)
        code = _serve(options, ready)
    finally:
        logging.shutdown()
        os._exit(code)


def _stderr_or_file(options: MountOptions) -> logging.Handler:
    if options.log_path:
        return logging.FileHandler(options.log_path)
    return logging.StreamHandler()


def _syslog_or_file(options: MountOptions) -> logging.Handler:
    if options.log_path:
        return logging.FileHandler(options.log_path)
    if not Path("/dev/log").exists():
        return logging.NullHandler()
    handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.ident = f"raidfs[{os.getpid()}]: "
    return handler


def _log_to(handler: logging.Handler, level: int) -> None:
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(level)


def _serve(options: MountOptions, ready: Callable[[], None]) -> int:
    """Runs one daemon from start to end; errors of the world become a sentence on stderr."""
    daemon = Daemon(options, ready)
    try:
        trio.run(daemon.run, strict_exception_groups=True)
    except* RaidfsError as group:
        daemon.report(_first(group))
    except* OSError as group:
        daemon.report(_first(group))
    if daemon.was_ready and daemon.trouble:
        return EXIT_UNCLEAN
    if daemon.missing:
        return EXIT_MISSING
    return EXIT_REFUSED if daemon.trouble else 0


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first single error in a group; the others are its company."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _allow_descriptors() -> None:
    """As many as the system lets us: the columns of many zones are kept open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(slots=True)
class Outcome:
    """How the volume was closed; `wait` requests are answered when it is known."""

    known: trio.Event = field(default_factory=trio.Event)
    error: str = ""


class Daemon:
    """One mounted volume."""

    def __init__(self, options: MountOptions, ready: Callable[[], None]) -> None:
        self.options = options
        self.mountpoint = ""
        self.trouble = ""
        self.missing = False
        self.was_ready = False
        self._ready = ready
        self._outcome = Outcome()
        self._end_streams: Callable[[], Awaitable[None]] | None = None
        self._session: Session | None = None

    def report(self, error: BaseException) -> None:
        """Says what went wrong where it can be seen: on stderr before ready, in the log after."""
        if isinstance(error, OSError) and not isinstance(error, RaidfsError):
            place = f"{error.filename}: " if error.filename else ""
            self.trouble = f"{place}{error.strerror or error}"
        else:
            self.trouble = str(error)
        self.missing = not self.was_ready and means_missing(error)
        if self.was_ready:
            log.error("%s", self.trouble)
        else:
            print(f"raidfs: {self.trouble}", file=sys.stderr, flush=True)

    async def run(self) -> None:
        """Everything, from the first check to the last cut."""
        mounts.check_fuse_device()
        stale.clear(self.options.mountpoint)
        self.mountpoint = mounts.check_mountpoint(self.options.mountpoint)
        native.self_test()
        _allow_descriptors()
        self.assembly = await self._assemble()
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self.assembly.close)
            mounts.check_apart(self.mountpoint, (m.path for m in self.assembly.members.values()))
            label = self.assembly.label
            entry = registry.Entry(
                label.volume_id,
                label.volume_name,
                self.mountpoint,
                os.getpid(),
                [each.path for each in label.members],
            )
            self.registration = await self._register(entry)
            cleanup.callback(self.registration.close)
            self.store = await Store.open(
                self.assembly,
                read_only=self.options.read_only,
                clock=time.time_ns,
                dirty_bytes_max=self.options.dirty_bytes,
                slow_read_ms=self.options.slow_read_ms,
            )
            # From here on the store closes the members; the entry still goes last.
            self.volume = Volume(
                self.store,
                groups_of=groups_of,
                noatime="noatime" in self.options.fuse_options,
                known=None if self.options.lane is None else Known(),
                root=self._root(),
                snapshots_listed=self.options.snapshots_listed,
            )
            if not self.options.read_only:
                self.volume.reap_orphans()
            await self._serve_mounted(cleanup)

    def _root(self) -> int:
        """The root to be seen: the volume's, or that of a snapshot."""
        if self.options.snapshot is None:
            return ROOT_INO
        return as_view(self.store.snapshots.find(self.options.snapshot).id, ROOT_INO)

    async def _assemble(self) -> Assembly:
        deadline = trio.current_time() + self.options.wait_busy_s
        while True:
            try:
                return await trio.to_thread.run_sync(self._open_members)
            except MemberBusy as busy:
                holder = self._holder()
                if holder is None:
                    raise
                if mounts.is_mounted(holder.mountpoint) and not holder.closing:
                    raise UsageError(registry.busy_sentence(holder), errno.EBUSY) from busy
                if trio.current_time() > deadline:
                    raise MemberBusy(
                        f"the last daemon of volume {holder.volume_name} (process {holder.pid})"
                        f" is still closing after {self.options.wait_busy_s:.0f} s; try again later"
                    ) from busy
            await trio.sleep(BUSY_POLL_S)

    async def _register(self, entry: registry.Entry) -> registry.Registration:
        """The last daemon lets go of its members a moment before it lets go of its entry."""
        deadline = trio.current_time() + self.options.wait_busy_s
        while trio.current_time() < deadline:
            holder = registry.find_volume(entry.volume_id)
            if holder is None or not holder[0].closing:
                break
            await trio.sleep(BUSY_POLL_S)
        return registry.Registration(entry)

    def _open_members(self) -> Assembly:
        assembly = Assembly.open(
            os.path.abspath(self.options.source),
            degraded=self.options.degraded,
            read_only=self.options.read_only,
            direct=self.options.direct,
            extra_paths=[os.path.abspath(path) for path in self.options.members],
        )
        slow_down(assembly.members.values())
        return assembly

    def _holder(self) -> registry.Entry | None:
        """Who has the volume of SOURCE mounted, if one of our daemons does."""
        try:
            found = registry.find_volume(peek(os.path.abspath(self.options.source)).volume_id)
        except RaidfsError:
            return None
        return found[0] if found else None

    # -- while mounted ----------------------------------------------------------------------------

    async def _serve_mounted(self, cleanup: contextlib.ExitStack) -> None:
        try:
            self._events = EventService(self.store, self.mountpoint)
            self.store.events.listeners.append(lambda _: self._tell_members())
            self._jobs = JobService(self.store)
            self._members = MemberService(
                self.store, self.mountpoint, self.status, self._jobs.book.look
            )
            self._join_group()
            metrics = MetricsService(self.status, self.statistics, self._group_service.status)
            handlers = {**self._handlers(), **self._group_service.handlers()}
            handlers |= metrics.handlers()
            server = await self._metrics_server(metrics, cleanup)
            control = ControlServer(self.registration.socket, handlers, self._group.told)
            session = self._mount()
            self.store.users_busy = UsersReading(session.statistics)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.store.run)
                nursery.start_soon(control.run)
                nursery.start_soon(self._works.run)
                nursery.start_soon(self._group.run)
                nursery.start_soon(self._group_service.run)
                nursery.start_soon(self._signals)
                nursery.start_soon(self._events.run)
                nursery.start_soon(self._jobs.run)
                nursery.start_soon(self._members.run)
                if server is not None:
                    nursery.start_soon(server.run)
                self._events.mounted()
                self._tune()
                self.was_ready = True
                self._ready()
                log.info("%s is mounted on %s", self.assembly.label.volume_name, self.mountpoint)
                try:
                    await session.run()
                finally:
                    self._unmount()
                await self._close_volume()
                await control.finish()
                nursery.cancel_scope.cancel()
        except BaseException:
            # A failed mount, or an error inside raidfs: no cut, what is durable stays as it is.
            self._unmount()
            with contextlib.suppress(Exception), trio.CancelScope(shield=True):
                await self.store.close()
            if self.was_ready:
                log.exception("the daemon ends because of an error inside raidfs")
                self.trouble = self.trouble or "an error inside raidfs; its log tells more"
            raise

    def _tell_members(self) -> None:
        """Where members are, to whoever looks for their volume: they come and go with events."""
        with contextlib.suppress(OSError):
            self.registration.tell_members([each.path for each in self.assembly.label.members])

    async def _metrics_server(
        self, metrics: MetricsService, cleanup: contextlib.ExitStack
    ) -> MetricsServer | None:
        """It listens, if there is to be one; `cleanup` ends that."""
        if self.options.metrics is None:
            return None
        server = MetricsServer(self.options.metrics, metrics.samples)
        await server.open()
        cleanup.callback(server.close)
        return server

    def _join_group(self) -> None:
        """What the volume needs to be in a group, whether it is or not."""
        lane = self.options.lane
        obstacle = obstacle_of(
            lane=lane is not None,
            writeback=lane is not None and lane.writeback,
            read_only=self.options.read_only,
        )
        label = self.assembly.label
        state = state_directory(label.volume_id)
        self._group = GroupProcess(self.store, self.registration.path.parent, state, obstacle)
        self._works = GroupWorks(self._group, self.volume)
        self._moves = GroupMoves(self._group, self._works, self.volume)
        if not self.options.read_only:
            self._moves.recover()
        seen_at = os.path.join(self.mountpoint, SNAPSHOTS_NAME.decode())
        self._group_service = GroupService(self._group, self._works, self._moves, seen_at)

    def _mount(self) -> Session:
        words = {"default_permissions", *self.options.fuse_options}
        if self.options.read_only:
            words.add("ro")
        lane = self.options.lane
        session: Session
        if lane is None:
            session = PlainSession(self.volume)
        else:
            session = LaneSession(self.store, self.volume, lane)
        name = f"raidfs:{self.assembly.label.volume_name}"
        if self.options.snapshot is not None:
            name += f"@{self.options.snapshot}"
        session.open(self.mountpoint, name, words)
        self._session = session
        return session

    def _unmount(self) -> None:
        """Takes the mount away if it is still there. Lazily: open files keep nothing alive."""
        session, self._session = self._session, None
        if session is None:
            return
        notify.stopping()
        self._group.give_way()  # threads can't be stopped while the gate is shut
        with contextlib.suppress(OSError):
            self.registration.closing()
        session.close()

    async def _close_volume(self) -> None:
        """Promise 2. Whatever happens to the asker, the last cut is made."""
        with trio.CancelScope(shield=True):
            try:
                self._moves.end()
                await self._group.stop()
                if self._end_streams is not None:
                    await self._end_streams()
                await self._events.unmounted()
                await self.store.stop()
                log.info("%s is closed", self.assembly.label.volume_name)
            except RaidfsError as error:
                self._outcome.error = f"the last changes could not be made durable: {error}"
                self.report(RaidfsError(self._outcome.error))
            self._outcome.known.set()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for number in received:
                log.info("%s: unmounting", signal.Signals(number).name)
                await self.stop()

    async def stop(self) -> None:
        """Ends the mount, with all that was told so far; requests under way are answered."""
        if self._session is not None:
            await self._session.drain()
        if self._session is not None:
            self._group.give_way()  # nothing is answered while the gate is shut
            self._session.stop()

    def _tune(self) -> None:
        """Larger read-ahead than the kernel's default. Root only; others go without. The answer to
        INIT, which may come later, can only lower it: the lane's allows as much."""
        for mounted in mounts.all_mounts():
            if mounted.mountpoint == self.mountpoint and mounted.kind == mounts.FILESYSTEM_TYPE:
                with contextlib.suppress(OSError):
                    setting = Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb")
                    setting.write_text(f"{READ_AHEAD_BYTES >> 10}\n")

    # -- the control socket -----------------------------------------------------------------------

    def _handlers(self) -> dict[type[Request], Handler]:
        return {
            StatusRequest: self._status,
            StatisticsRequest: self._statistics,
            SyncRequest: self._sync,
            WaitRequest: self._wait,
            StopRequest: self._stop,
            **self._members.handlers(),
            **self._jobs.handlers(),
            **ReshapeService(self.store).handlers(),
            **self._snapshots().handlers(),
            **self._events.handlers(),
            **ScrubService(self.store).handlers(),
        }

    def _snapshots(self) -> SnapshotService:
        seen_at = os.path.join(self.mountpoint, SNAPSHOTS_NAME.decode())
        whole = self.options.snapshot is None
        service = SnapshotService(
            self.volume, seen_at=seen_at if whole else None, drain=self._drain
        )
        self._end_streams = service.streams.end
        return service

    async def _status(self, _: StatusRequest) -> VolumeStatus:
        return self.status()

    def status(self) -> VolumeStatus:
        """The volume as it is now."""
        lane = self._session.status() if self._session is not None else None
        jobs = self._jobs.book.jobs()
        return describe(store_condition(self.store, self.mountpoint, lane, jobs))

    async def _statistics(self, _: StatisticsRequest) -> dict[str, Any]:
        return self.statistics()

    def statistics(self) -> dict[str, Any]:
        """What was counted since the mount, by part."""
        lane = self._session.statistics() if self._session is not None else None
        return statistics_of(self.volume, lane)

    async def _sync(self, _: SyncRequest) -> None:
        await self._drain()
        await self.store.commit()

    async def _drain(self) -> None:
        if self._session is not None:
            await self._session.drain()

    async def _wait(self, _: WaitRequest) -> None:
        await self._outcome.known.wait()
        if self._outcome.error:
            raise RaidfsError(self._outcome.error)

    async def _stop(self, _: StopRequest) -> None:
        await self.stop()
        await self._wait(WaitRequest())
