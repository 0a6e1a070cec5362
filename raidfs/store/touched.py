"""Which inodes differ between two epochs, and which of their leaves: found by what was changed.

Both epochs are retained, or the later one is the present (PRESENT). An inode that was changed after
the earlier one left a dead version behind, which the index on `died` names; one that came into
being has a number that was not yet handed out. One that was gone by then and was brought back since
(by a rollback) has neither, but a name: in a directory that was changed, or came back itself.

 1. What `touched` leaves out is the same at both epochs: row, names in it, attributes, leaves.
 2. The cost follows what was changed between the epochs, and the size of the directories (for
    `leaves_between`: of the files' leaves) among it; never the size of the volume.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

import trio

from raidfs.store.database import INF
from raidfs.store.snapshot_rows import SnapshotRows

PRESENT = INF - 1  # as an epoch: what is live
ROWS_PER_TURN = 1000
_DIRECTORY = stat.S_IFDIR >> 12

SEEN_FROM = "SELECT ino FROM inode WHERE ino > ? AND born <= ? AND died > ? ORDER BY ino LIMIT ?"
SEEN = "SELECT 1 FROM inode WHERE ino = ? AND born <= ? AND died > ? LIMIT 1"
NEW_NAMES = (
    "SELECT position, ino, kind FROM dirent WHERE parent = ? AND position > ? "
    "AND born > ? AND born <= ? AND died > ? ORDER BY position LIMIT ?"
)
LEAVES_BETWEEN = (
    "SELECT DISTINCT number FROM leaf WHERE ino = ? AND number > ? "
    "AND ((born > ? AND born <= ?) OR (died > ? AND died <= ? AND died < 9223372036854775807)) "
    "ORDER BY number LIMIT ?"
)


class Touched(SnapshotRows):
    """See the module."""

    async def touched(self, since: int, next_ino: int, until: int = PRESENT) -> list[int]:
        """The inodes (numbers of the tables, ascending) that may differ between the epochs `since`
        and `until`, the later one; `next_ino` as it was at `since`."""
        inos: set[int] = set()
        place = self.dead_from("inode", since)
        while rows := self.dead("inode", place, until, ROWS_PER_TURN):
            place = rows[-1]
            inos.update(ino for _, ino, born in rows if born <= since)
            await trio.lowlevel.checkpoint()
        last = next_ino - 1
        while rows := self._rows(SEEN_FROM, (last, until, until, ROWS_PER_TURN)):
            last = rows[-1][0]
            inos.update(row[0] for row in rows)
            await trio.lowlevel.checkpoint()
        await self._add_returned(inos, since, until)
        return sorted(inos)

    async def _add_returned(self, inos: set[int], since: int, until: int) -> None:
        """Those that names which are new lead to, and that `since` doesn't know."""
        looked_at, todo = 0, list(inos)
        while todo:
            directory = todo.pop()
            for ino, kind in self._new_names(directory, since, until):
                if ino not in inos and self._row(SEEN, (ino, since, since)) is None:
                    inos.add(ino)
                    if kind == _DIRECTORY:
                        todo.append(ino)
            looked_at += 1
            if looked_at % ROWS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()

    def _new_names(self, directory: int, since: int, until: int) -> Iterator[tuple[int, int]]:
        """(ino, kind) of the names that `until` sees in a directory and that came after `since`."""
        position = -1
        while rows := self._rows(
            NEW_NAMES, (directory, position, since, until, until, ROWS_PER_TURN)
        ):
            position = rows[-1][0]
            for _, ino, kind in rows:
                yield ino, kind

    def leaves_between(self, ino: int, since: int, until: int = PRESENT) -> Iterator[int]:
        """Numbers, ascending, of the leaves of an inode that may differ between the epochs."""
        last = -1
        while rows := self._rows(
            LEAVES_BETWEEN, (ino, last, since, until, since, until, ROWS_PER_TURN)
        ):
            last = rows[-1][0]
            for row in rows:
                yield row[0]
