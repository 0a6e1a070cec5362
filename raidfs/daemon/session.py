"""What a daemon needs of a mounted filesystem, and the plain kind of it: pyfuse3 alone.

The other kind is daemon/lane.py. Both have the same handlers behind them.

 1. `open` mounts, or leaves nothing behind and raises a sentence for people.
 2. `run` returns when the filesystem is unmounted, or after `stop` when the requests under way are
    answered. `close` takes the mount away if it is still there, however things ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyfuse3
import trio

from raidfs.daemon.device import DEVICE, SUBTYPE
from raidfs.daemon.fuse import FuseOperations
from raidfs.daemon.status import LaneStatus
from raidfs.daemon.teller import Teller
from raidfs.errors import UsageError
from raidfs.fs.volume import Volume

THREADS_DEFAULT_MAX = 4
READ_AHEAD_BYTES = 1 << 20  # the kernel's 128 KiB for FUSE halve sequential reads


@dataclass(frozen=True, slots=True)
class LaneOptions:
    """`threads`: 0 chooses. `serve`: what C may answer, of RF_LANE_...; the default is all."""

    threads: int = 0
    writeback: bool = False
    serve: int = 0xFF

    def thread_count(self) -> int:
        """One for each core that this process may use."""
        if self.threads:
            return self.threads
        return max(1, min(THREADS_DEFAULT_MAX, len(os.sched_getaffinity(0))))


class Session(Protocol):
    """One mounted filesystem."""

    def open(self, mountpoint: str, name: str, words: Collection[str]) -> None:
        """Mounts; `name` is what df shows, `words` are those of -o that concern the kernel."""

    async def run(self) -> None:
        """Serves until unmounted or stopped."""

    async def drain(self) -> None:
        """Returns when what applications were told is here and not in the kernel alone."""

    def stop(self) -> None:
        """Ends `run`."""

    def close(self) -> None:
        """Takes the mount away, if there is one."""

    def status(self) -> LaneStatus | None:
        """What the lane did, in short; None without one."""

    def statistics(self) -> dict[str, Any] | None:
        """What the lane did, in full."""


def devices() -> set[int]:
    """This process's descriptors of the FUSE device."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == DEVICE:
                found.add(int(name))
    return found


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """What C code (libfuse, fusermount3) prints on descriptor 2 meanwhile, as text."""
    capture = os.memfd_create("stderr")
    saved = os.dup(2)
    os.dup2(capture, 2)

    def text() -> str:
        return " ".join(os.pread(capture, 4096, 0).decode(errors="replace").split())

    try:
        yield text
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(capture)


class PlainSession:
    """libfuse mounts and reads the device; every request goes through pyfuse3."""

    def __init__(self, volume: Volume) -> None:
        self._operations = FuseOperations(volume)
        self._teller = Teller(volume, self._notify, abandons=True)
        volume.audience = self._teller
        self._open = False
        self._device = -1  # libfuse's descriptor of the FUSE device

    def open(self, mountpoint: str, name: str, words: Collection[str]) -> None:
        """See Session."""
        escaped = name.replace("\\", "\\\\").replace(",", "\\,")
        options = {f"subtype={SUBTYPE}", f"fsname={escaped}", *words}
        before = devices()
        with captured_stderr() as text:
            try:
                pyfuse3.init(self._operations, mountpoint, options)
            except RuntimeError as error:
                raise UsageError(
                    f"can't mount on {mountpoint}: {text() or error};"
                    " check the mount options and your rights on the mountpoint",
                    errno.EPERM,
                ) from error
        self._open = True
        self._device = min(devices() - before, default=-1)

    async def run(self) -> None:
        """See Session."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._teller.run, contextlib.nullcontext)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    def _notify(self, message: bytes) -> int:
        """In a thread, which may be left alone where the kernel gets no answers any more."""
        try:
            os.write(self._device, message)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    async def drain(self) -> None:
        """The kernel holds nothing back: its write-back cache is off."""

    def stop(self) -> None:
        """pyfuse3.main() returns when the requests under way are answered."""
        if self._open:
            pyfuse3.terminate()

    def close(self) -> None:
        """Lazily: open files keep nothing alive."""
        self._device = -1
        if self._open:
            self._open = False
            pyfuse3.close(unmount=True)

    def status(self) -> LaneStatus | None:
        """There is no lane."""
        return None

    def statistics(self) -> dict[str, Any] | None:
        """There is no lane."""
        return None
