"""Functions that block, beside the event loop: the real `offload`.

It does what trio.to_thread.run_sync does for three fifths of the processor time (25 microseconds
and 43): a thread takes its work from a queue of C, and the waiting task itself waits on the eventfd
that tells the end of it.

 1. The function is waited for, also by a task that is cancelled meanwhile.
 2. What the function raised is raised in the task.
 3. At most THREADS run at once; who comes later waits for one of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import trio

THREADS = 32


class _Worker:
    """A thread that waits for work. They are few, and live as long as the process."""

    __slots__ = ("_jobs", "error", "eventfd", "result")

    def __init__(self) -> None:
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.result: Any = None
        self.error: BaseException | None = None
        self._jobs: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        threading.Thread(target=self._run, name="offload", daemon=True).start()

    def _run(self) -> None:
        while True:
            function, args = self._jobs.get()
            try:
                self.result = function(*args)
            except BaseException as error:
                self.error = error
            del function, args
            os.eventfd_write(self.eventfd, 1)

    async def do(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Return when the function has; `take` tells how."""
        self._jobs.put((function, args))
        with trio.CancelScope(shield=True):
            await trio.lowlevel.wait_readable(self.eventfd)
        os.eventfd_read(self.eventfd)

    def take(self) -> Any:
        """What the function returned or raised."""
        result, error = self.result, self.error
        self.result = self.error = None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return result


class Workers:
    """The threads of this process; see the module."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._count = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`, in one of the threads."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._idle and self._count >= THREADS:
            await self._waiting.park()
        if self._idle:
            worker = self._idle.pop()
        else:
            worker = _Worker()
            self._count += 1
        try:
            await worker.do(function, args)
        except BaseException:  # an interrupt from the keyboard: the thread may still be at work
            self._count -= 1
            raise
        self._idle.append(worker)
        if self._waiting:
            self._waiting.unpark()
        return worker.take()


in_thread = Workers()
