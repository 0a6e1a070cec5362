"""The door between users' requests and the volume: closed while the whole present is exchanged.

Who answers requests in Python passes the door with each; while it is closed they wait before it. It
closes when all who are inside have left. Then the gate is shut, too (lane.py): so no thread of the
lane serves anything, and no answer leaves. Whoever closed the door has the volume for himself.
Where that takes too long, who waits, and who comes, can be *refused*: the door stays closed, the
gate is open for the refusals.

 1. Inside of `closed` no request is under way, and none begins before its end.
 2. What waits for the kernel (`ajar`), which may have to be answered for that, keeps the door open.
 3. Whatever ends `closed`, or `give_way`, opens the gate.
 4. Who is refused has got nothing of the volume, and done nothing to it. No other closes the door
    meanwhile, or waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from ..errors import RaidfsError
from ..lane import Gate


class KeptOut(RaidfsError):
    """Users are refused, and why. EIO."""


class Door:
    """Of one volume; belongs to the event loop's thread."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._inside = 0
        self._ajar = 0
        self._held = False  # by who closes it, or has closed it
        self._wanted = False  # to be closed, or closed
        self._refusal = ""
        self._shut = False  # the gate, by us
        self._changed = trio.Event()  # something that others wait for

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- who passes -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Who asks may `enter` in the same moment."""
        ajar = self._ajar > 0 and not self._shut and not self._refusal
        return not self._wanted or ajar

    @property
    def refusal(self) -> str:
        """Why who asks is refused in this moment; "": that isn't so."""
        return self._refusal

    async def opened(self) -> None:
        """Returns when it is open, or who asks is refused: in that moment."""
        while not self.is_open and not self._refusal:
            await self._changed.wait()

    def enter(self) -> None:
        """A request that has to wait within the volume, or to be refused, begins."""
        assert self.is_open or self._refusal
        self._inside += 1

    def leave(self) -> None:
        """It is over."""
        self._inside -= 1
        if not self._inside:
            self._tell()

    @asynccontextmanager
    async def passing(self, *, refusable: bool = True) -> AsyncIterator[None]:
        """One request. KeptOut: it is refused."""
        if not self.is_open:
            await self.opened()
        if self._refusal and refusable:
            raise KeptOut(self._refusal)
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

    def bar(self) -> None:
        """Before anybody can ask: nobody gets in before who closes it next lets him."""
        assert not self._inside
        self._wanted = True

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Promise 1. KeptOut: who has closed it keeps all others out."""
        while self._held and not self._refusal:
            await self._changed.wait()
        if self._refusal:
            raise KeptOut(self._refusal)
        self._held = self._wanted = True
        try:
            await self._shut_gate()
            yield
        finally:
            self.give_way()
            self._held = self._wanted = False
            self._refusal = ""
            self._tell()

    async def _shut_gate(self) -> None:
        while self._inside:
            await self._changed.wait()
        self._gate.shut()
        self._shut = True

    def refuse(self, why: str) -> None:
        """By who has closed it: promise 4, from now on. The gate is open, so nothing that threads
        of the lane could answer from may be in memory."""
        assert self._held and why
        self.give_way()
        self._refusal = why
        self._tell()

    async def wait_again(self) -> None:
        """By who has closed it: who asks waits again, on return nothing is answered."""
        assert self._held
        if self._refusal:
            self._refusal = ""
            await self._shut_gate()

    def give_way(self) -> None:
        """Open the gate: by who takes the mount away, whatever is being exchanged behind it."""
        if self._shut:
            self._shut = False
            self._gate.open()
