"""Hosts far from each other: network namespaces, and a bad network of packets between them.

Each namespace has a TUN device with an address, 10.177.N.1 for the Nth. A thread here reads the IP
packets that leave by one of them, and gives each to the device that has its destination; but late,
each by a time of its own, so they overtake each other, and some never. TCP sees what it sees on a
bad line: gaps, disorder, and packets to be sent again.

`with Far(3, delay_s=0.005, jitter_s=0.005, loss=0.02) as far:` `far.launcher(0)` starts a command
in the first namespace; `far.cut_off(0)` makes it unreachable inside of a `with`.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import threading
import time
from pathlib import Path

from mounting import run

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
PACKET_BYTES_MAX = 1 << 16
DESTINATION = slice(16, 20)  # of an IPv4 header
QUEUE_MAX = 10_000  # packets on their way; what comes then is lost, too
_libc = ctypes.CDLL(None, use_errno=True)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def joined(crew, listen=None):
    """The first makes the group, the others come in by tokens. `listen`: where each listens."""
    listen = listen or [f"tcp:127.0.0.1:{free_port()}" for _ in crew.volumes]
    first, *others = crew.volumes
    crew.group("init", "crew", first.mountpoint, "--listen", listen[0])
    for volume, address in zip(others, listen[1:], strict=True):
        token = crew.group("invite", "crew").stdout.strip()
        crew.group("join", volume.mountpoint, token, "--listen", address)
    crew.settle()


def retransmitted(pid):
    """TCP segments that were sent again in the network namespace of that process."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines()]
    names, values = (row for row in rows if row[0] == "Tcp:")
    return int(values[names.index("RetransSegs")])


class Far:
    """See the module. `delay_s` each way, give or take up to `jitter_s`; `loss`: of all packets.
    Of those that came here `passed`, `lost` and `overtaken` (by a later one of the same way)."""

    def __init__(self, count, *, delay_s, jitter_s=0.0, loss=0.0, seed=1):
        self.delay_s, self.jitter_s, self.loss = delay_s, jitter_s, loss
        self.passed = self.lost = self.overtaken = 0
        self._names = [f"raidfs-test-{os.getpid()}-{number}" for number in range(count)]
        self._dice = random.Random(seed)
        self._away = set()  # addresses that can't be reached, and reach nobody
        self._devices = {}  # by address
        self._end, self._ended = os.pipe()
        self._relay = threading.Thread(target=self._pass_on, name="far")

    def __enter__(self):
        try:
            for number, name in enumerate(self._names):
                run("ip", "netns", "add", name)
                self._devices[socket.inet_aton(self.address(number))] = self._device(name)
                address = f"{self.address(number)}/16"
                run("ip", "-n", name, "link", "set", "lo", "up")
                run("ip", "-n", name, "address", "add", address, "dev", "far")
                run("ip", "-n", name, "link", "set", "far", "up")
        except BaseException:
            self._clear()
            raise
        self._relay.start()
        return self

    def __exit__(self, *_):
        os.write(self._ended, b"x")
        self._relay.join()
        self._clear()

    def _clear(self):
        for fd in (*self._devices.values(), self._end, self._ended):
            os.close(fd)
        for name in self._names:
            run("ip", "netns", "del", name, expect=None)

    def address(self, number):
        return f"10.177.{number}.1"

    def launcher(self, number):
        return ("nsenter", f"--net=/run/netns/{self._names[number]}")

    @contextlib.contextmanager
    def cut_off(self, number):
        """Inside of the `with`, no packet reaches that host or comes from it."""
        address = socket.inet_aton(self.address(number))
        self._away.add(address)
        try:
            yield
        finally:
            self._away.remove(address)

    @staticmethod
    def _device(name):
        """A TUN device in that namespace. A thread of its own goes there to make it."""
        made = []

        def make():
            with open(f"/run/netns/{name}") as place:
                assert _libc.setns(place.fileno(), CLONE_NEWNET) == 0, os.strerror(
                    ctypes.get_errno()
                )
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"far", IFF_TUN | IFF_NO_PI))
            made.append(fd)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def _pass_on(self):
        """Until the end."""
        on_the_way, turns, latest = [], itertools.count(), {}
        while True:
            wait_s = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
            readable = select.select([self._end, *self._devices.values()], [], [], wait_s)[0]
            if self._end in readable:
                return
            for fd in readable:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._take(fd, os.read(fd, PACKET_BYTES_MAX), on_the_way, turns)
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _, turn, came_by, to, packet = heapq.heappop(on_the_way)
                self.overtaken += turn < latest.get((came_by, to), 0)
                latest[came_by, to] = max(turn, latest.get((came_by, to), 0))
                with contextlib.suppress(OSError):  # its queue is full: lost
                    os.write(to, packet)
                    self.passed += 1

    def _take(self, came_by, packet, on_the_way, turns):
        """One packet, unless it is lost."""
        to = self._devices.get(packet[DESTINATION])
        if packet[0] >> 4 != 4 or to is None:
            return
        away = self._away
        ends = {packet[DESTINATION], next(a for a, fd in self._devices.items() if fd == came_by)}
        if ends & away or self._dice.random() < self.loss or len(on_the_way) > QUEUE_MAX:
            self.lost += 1
            return
        late_s = self.delay_s + self.jitter_s * self._dice.uniform(-1, 1)
        heapq.heappush(on_the_way, (time.monotonic() + late_s, next(turns), came_by, to, packet))
