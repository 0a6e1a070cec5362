"""Who keeps copies of what a volume told, and must hear when they are out of date: the kernel.

Mostly it need not: all changes come through it. But a snapshot goes, or the volume becomes what it
was at a snapshot, without any request that says so.
"""

from __future__ import annotations

from collections.abc import Collection

Name = tuple[int, bytes]  # a directory, and a name in it


class Audience:
    """Nobody keeps anything. A mounted filesystem has a better one (daemon/teller.py)."""

    def outdated(self, inos: Collection[int], names: Collection[Name] | None = ()) -> None:
        """Attributes and content of these inodes, and where these names lead (None: all names), may
        be other than what was told. It is passed on soon; nobody waits for that here, since it
        may have to wait for requests that are being answered."""

    async def told(self) -> None:
        """Returns when all that was outdated before is known to be so. Requests must go on being
        answered meanwhile."""
