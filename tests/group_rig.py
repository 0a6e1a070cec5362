"""Daemons' links on real sockets, and a wire between them that can be cut, stopped and tampered
with."""

from functools import partial

import trio

from raidfs.group.authority import Authority
from raidfs.group.events import Received, SessionDown, SessionUp
from raidfs.group.keys import install, new_request
from raidfs.group.link import LinkLimits, Links
from raidfs.group.messages import Message
from raidfs.group.transport import (
    TcpAddress,
    UnixAddress,
    bound_address,
    connect_unix,
    listen_unix,
    parse_address,
)

GROUP, OTHER_GROUP = "9a" * 16, "9b" * 16
A, B, C, D = ("0a" * 16, "0b" * 16, "0c" * 16, "0d" * 16)
FAST = LinkLimits(
    alive_s=0.1, silence_s_max=2.0, handshake_s_max=3.0, retry_s_min=0.01, retry_s_max=0.1
)


def enrolled(authority, directory, volume):
    """Credentials of a volume on the authority's own host."""
    certificate = authority.enroll(new_request(directory, volume))
    return install(directory, volume, certificate, authority.certificate)


class Rig:
    """`is_tls`: whether its links talk over TCP. Everything ends with the nursery."""

    def __init__(self, directory, nursery, is_tls=False):
        self.directory = directory
        self.nursery = nursery
        self.is_tls = is_tls
        self.authority = Authority.create(directory / "authority", GROUP) if is_tls else None

    def links(self, volume, limits=FAST, **changes):
        keys = None
        if self.is_tls:
            keys = self.directory / f"keys-{volume}"
            if not keys.exists():
                enrolled(self.authority, keys, volume)
        given = {"group": GROUP, "vocabulary": Message, "keys": keys, **changes}
        return Links(volume=volume, limits=limits, **given)

    def address(self, volume):
        """Where to listen."""
        return TcpAddress("127.0.0.1", 0) if self.is_tls else self.unix(volume)

    def unix(self, volume):
        return UnixAddress(self.directory / f"{volume}.sock")

    async def start(self, links):
        """Runs; gives where it listens."""
        run = partial(links.run, [self.address(links.volume)])
        (address,) = await self.nursery.start(run)
        assert parse_address(str(address)) == address
        return address

    async def pair(self, limits=FAST, *, wire=False):
        """Two with a session, of which both have said so; and the wire between them."""
        one, two = self.links(A, limits), self.links(B, limits)
        two.set_peers({A: ()})
        address = await self.start(two)
        between = Wire(address)
        if wire:
            address = await self.nursery.start(between.run)
        one.set_peers({B: [address]})
        await self.start(one)
        assert await taken(one) == SessionUp(B, 1)
        assert await taken(two) == SessionUp(A, 1)
        return one, two, between


async def taken(links, timeout_s=10):
    """The next event."""
    with trio.fail_after(timeout_s):
        return await links.events.receive()


async def ended(links):
    """Why the session ended; what came before that is thrown away."""
    while not isinstance(event := await taken(links), SessionDown):
        assert isinstance(event, Received), event
    return event.why


async def nothing_comes(links, seconds):
    """Asserts that for so long there is no event."""
    with trio.move_on_after(seconds):
        raise AssertionError(await links.events.receive())


class Wire:
    """Passes bytes on, both ways. `is_stopped`: swallows them."""

    def __init__(self, address):
        self.address = address
        self.is_stopped = False
        self.forth, self.back = bytearray(), bytearray()  # what went by
        self._ends = []

    async def run(self, task_status):
        if isinstance(self.address, UnixAddress):
            near = UnixAddress(self.address.path.with_suffix(".wire"))
            listener = listen_unix(near.path)
        else:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            near = bound_address(listener)
        task_status.started(near)
        await trio.serve_listeners(self._serve, [listener])

    async def _connect(self):
        if isinstance(self.address, UnixAddress):
            return await connect_unix(self.address)
        return await trio.open_tcp_stream(self.address.host, self.address.port)

    async def _serve(self, near):
        far = await self._connect()
        self._ends += [near, far]
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, near, far, self.forth)
            nursery.start_soon(self._pass, far, near, self.back)

    async def _pass(self, source, target, record):
        try:
            async for data in source:
                record += data
                if not self.is_stopped:
                    await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(target)

    async def inject(self, data):
        """Bytes to the one that was connected to."""
        await self._ends[1].send_all(data)

    async def cut(self):
        ends, self._ends = self._ends, []
        for end in ends:
            await trio.aclose_forcefully(end)
