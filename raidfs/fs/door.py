"""The door between users' requests and the volume: closed while the whole present is exchanged.

Who answers requests in Python passes the door with each; while it is closed they wait before it. It
closes when all who are inside have left. Then the gate is shut, too (lane.py): so no thread of the
lane serves anything, and no answer leaves. Whoever closed the door has the volume for himself.

 1. Inside of `closed` no request is under way, and none begins before its end.
 2. What waits for the kernel (`ajar`), which may have to be answered for that, keeps the door open.
 3. Whatever ends `closed`, or `give_way`, opens the gate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from ..lane import Gate


class Door:
    """Of one volume; belongs to the event loop's thread."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._inside = 0
        self._ajar = 0
        self._closing = trio.Lock()
        self._wanted = False  # to be closed, or closed
        self._shut = False  # the gate, by us
        self._changed = trio.Event()  # something that others wait for

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- who passes -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Who asks may `enter` in the same moment."""
        return not self._wanted or (self._ajar > 0 and not self._shut)

    async def opened(self) -> None:
        """Returns when it is open: in that moment."""
        while not self.is_open:
            await self._changed.wait()

    def enter(self) -> None:
        """A request that has to wait within the volume begins."""
        assert self.is_open
        self._inside += 1

    def leave(self) -> None:
        """It is over."""
        self._inside -= 1
        if not self._inside:
            self._tell()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """One request."""
        if not self.is_open:
            await self.opened()
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def ajar(self) -> Iterator[None]:
        """Promise 2, inside of the `with`: by a request that is inside."""
        self._ajar += 1
        self._tell()
        try:
            yield
        finally:
            self._ajar -= 1

    # -- who closes it ----------------------------------------------------------------------------

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Promise 1."""
        async with self._closing:
            self._wanted = True
            try:
                while self._inside:
                    await self._changed.wait()
                self._gate.shut()
                self._shut = True
                yield
            finally:
                self.give_way()
                self._wanted = False
                self._tell()

    def give_way(self) -> None:
        """Open the gate: by who takes the mount away, whatever is being exchanged behind it."""
        if self._shut:
            self._shut = False
            self._gate.open()
