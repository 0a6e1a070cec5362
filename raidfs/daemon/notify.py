"""Telling systemd how far a daemon is, if it was started by it (sd_notify(3), Type=notify).

1. Nothing goes wrong for want of somebody who listens.
"""

from __future__ import annotations

import contextlib
import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def tell(state: str) -> None:
    """One message, such as "READY=1"."""
    address = os.environ.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)


def ready() -> None:
    """The mount answers."""
    tell("READY=1")


def stopping() -> None:
    """The mount is gone; the last cut is being made."""
    tell("STOPPING=1")
