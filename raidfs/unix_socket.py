"""Unix sockets of daemons and commands: listening for one user only, and who is at the other end.

1. The file of a listening socket is 0600 from the moment it has a name: no wider permissions for
   the time between two calls, and no process-wide umask that another thread could miss.
2. Whose process is at the other end the kernel says (SO_PEERCRED, as of connect or listen); only
   root and this process's own user are let in, and those whom the caller names.
3. Paths may be longer than the 108 bytes of sun_path: they are taken from their directory on.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Connection(Protocol):
    """A connected socket, of the standard library or of trio."""

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


@contextmanager
def short(path: Path) -> Iterator[str]:
    """Another path to the same, that fits a socket's address; good within the `with`. OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path, backlog: int = BACKLOG) -> socket.socket:
    """A socket at `path`, in place of what was there, that only its owner can connect to. The file
    gets the permissions that the socket has when it is bound (Linux), less the umask. OSError."""
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(raw.fileno(), 0o600)
        with short(path) as name:
            path.unlink(missing_ok=True)
            raw.bind(name)
        raw.listen(backlog)
    except OSError:
        raw.close()
        raise
    return raw


def peer_uid(connection: Connection) -> int:
    """The user whose process is at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


def stranger(connection: Connection, *others: int) -> int | None:
    """None: the other end is root's or our own user's, or of one of the `others`. Else, whose."""
    uid = peer_uid(connection)
    return None if uid in {0, os.geteuid(), *others} else uid
