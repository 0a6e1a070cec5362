"""Network namespaces that only a slow relay connects: daemons in different places of the network.

Each namespace has but its own loopback. For each port of a daemon in another one the relay listens
here under the same address, and passes on what comes, late: `delay_s` each way, and now and then
by `stall_s`, as when a packet is lost and sent again.
"""

import ctypes
import os
import random
import select
import socket
import threading
import time
from collections import deque

from mounting import run

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Far:
    """`with Far(3) as far`: `far.launcher(0)` starts a command in the first namespace."""

    def __init__(self, count, delay_s=0.002, stall_s=0.05, stalls=0.01):
        self.names = [f"raidfs-test-{os.getpid()}-{number}" for number in range(count)]
        self.delay_s, self.stall_s, self.stalls = delay_s, stall_s, stalls
        self._ended = threading.Event()
        self._threads = []

    def __enter__(self):
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for name in self.names:
            run("ip", "netns", "del", name)

    def launcher(self, number):
        return ("nsenter", f"--net=/run/netns/{self.names[number]}")

    def relay(self, ports):
        """`ports[i]` is where the daemon in namespace i listens on its loopback."""
        for here in range(len(ports)):
            for there, port in enumerate(ports):
                if here != there:
                    self._begin(self._listen, here, there, port)

    def _begin(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _socket(self, number):
        """Of that namespace, whatever thread uses it later. A thread of its own makes it."""
        made = []

        def make():
            fd = os.open(f"/run/netns/{self.names[number]}", os.O_RDONLY)
            assert _libc.setns(fd, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            os.close(fd)
            made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def _listen(self, here, there, port):
        with self._socket(here) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            listener.settimeout(0.1)
            while not self._ended.is_set():
                try:
                    near, _ = listener.accept()
                except TimeoutError:
                    continue
                far = self._socket(there)
                try:
                    far.connect(("127.0.0.1", port))
                except OSError:
                    near.close()
                    far.close()
                    continue
                self._begin(self._pass, near, far)

    def _pass(self, near, far):
        """Both ways, until either end closes."""
        dice = random.Random(near.fileno())
        ways = {near: far, far: near}
        late = {near: deque(), far: deque()}  # (when, bytes) for that end
        for end in ways:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with near, far:
            while not self._ended.is_set():
                dues = [queue[0][0] for queue in late.values() if queue]
                wait_s = min([0.1, *(max(0.0, due - time.monotonic()) for due in dues)])
                try:
                    for end in select.select(list(ways), [], [], wait_s)[0]:
                        data = end.recv(1 << 16)
                        if not data:
                            return
                        stall_s = self.stall_s if dice.random() < self.stalls else 0.0
                        queue = late[ways[end]]
                        due = time.monotonic() + self.delay_s + stall_s
                        queue.append((max(due, queue[-1][0] if queue else 0.0), data))
                    for end, queue in late.items():
                        while queue and queue[0][0] <= time.monotonic():
                            end.sendall(queue.popleft()[1])
                except OSError:
                    return
