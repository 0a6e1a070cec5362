"""Content of files that move: asked for by the target, piece by piece, told by the source.

It goes beside the messages of the moves, and no snapshot records it: until all is there it counts
for nothing, and whatever is lost is asked for again.

 1. It shares the connection with markers, which wait for the piece before them. So from each peer
    one piece is asked for at a time, for whatever move, and pieces are as large as a connection
    carries in `AIM_S` (`Pace`): replies held back for a snapshot wait so much longer, at most.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from dataclasses import dataclass

import msgspec
import trio

from raidfs.daemon import fault
from raidfs.daemon.group import GroupProcess
from raidfs.errors import RaidfsError
from raidfs.fs.moves import Moves, Stale, Tree
from raidfs.group.move import (
    CONTENT_BYTES,
    LIST_BYTES,
    ContentAsked,
    ContentTold,
    Item,
    SourceRow,
)

log = logging.getLogger("raidfs.group")

ANSWER_S = 5.0
AWAY_S = 0.3
TREES_ITEMS_MAX = 100_000  # kept of moves under way, beside one
LIST = -1
AIM_S = 0.02
PIECE_BYTES_MIN = 16 << 10
_items = msgspec.msgpack.Decoder(list[Item])


@dataclass(slots=True)
class Progress:
    """Bytes of content."""

    done: int = 0
    total: int = 0


class Pace:
    """How much one peer is asked for at once (promise 1). What a piece takes beyond the shortest
    time of all, which is the way there and back, it takes by its size."""

    def __init__(self) -> None:
        self.nbytes = 4 * PIECE_BYTES_MIN
        self.turn = trio.Lock()
        self._idle_s = math.inf

    def took(self, nbytes: int, seconds: float) -> None:
        """A piece of that size, from question to answer."""
        self._idle_s = min(self._idle_s, seconds)
        carried_s = seconds - self._idle_s
        if carried_s > AIM_S * 1.5:
            self.nbytes = max(PIECE_BYTES_MIN, self.nbytes // 2)
        elif carried_s < AIM_S / 2 and nbytes == self.nbytes:
            self.nbytes = min(CONTENT_BYTES, self.nbytes * 2)


class ContentService:
    """Of one mounted volume."""

    def __init__(self, group: GroupProcess, moves: Moves) -> None:
        self.group = group
        self.moves = moves
        self._trees: dict[bytes, tuple[Tree, list[int]]] = {}  # and how much comes before each item
        self._awaited: dict[tuple[str, bytes, int, int], list[ContentTold]] = {}
        self._came = trio.Event()
        self._paces: dict[str, Pace] = {}  # by peer

    # -- the target's part ------------------------------------------------------------------------

    def told(self, peer: str, message: ContentTold) -> None:
        key = (peer, message.move, message.item, message.offset)
        if key in self._awaited:
            self._awaited[key].append(message)
            self._came.set()
            self._came = trio.Event()

    async def _ask(self, peer: str, move: bytes, item: int, offset: int) -> ContentTold:
        """The answer, however long the peer is away. Stale: there is none."""
        pace = self._paces.setdefault(peer, Pace())
        async with pace.turn:
            begun = trio.current_time()
            told = await self._asked(peer, ContentAsked(move, item, offset, pace.nbytes))
            pace.took(len(told.data), trio.current_time() - begun)
            return told

    async def _asked(self, peer: str, asked: ContentAsked) -> ContentTold:
        key = (peer, asked.move, asked.item, asked.offset)
        answers = self._awaited[key] = []
        try:
            while True:
                if self.group.send(peer, asked):
                    with trio.move_on_after(ANSWER_S):
                        while not answers:
                            await self._came.wait()
                else:
                    await trio.sleep(AWAY_S)
                if answers:
                    if answers[0].failed:
                        raise Stale(answers[0].failed)
                    return answers[0]
        finally:
            self._awaited.pop(key, None)

    async def list(self, peer: str, move: bytes) -> tuple[list[Item], bytes]:
        """What there is, and its stamp. Stale: it changed meanwhile."""
        items: list[Item] = []
        stamp = b""
        while True:
            told = await self._ask(peer, move, LIST, len(items))
            if items and told.stamp != stamp:
                raise Stale("it was changed while it was listed")
            stamp = told.stamp
            try:
                items += _items.decode(told.data)
            except msgspec.DecodeError:
                raise RaidfsError("what the source lists was not understood") from None
            if told.last:
                break
        for number, item in enumerate(items):
            good = number == 0 or (0 <= item.parent < number and _is_name(item.name))
            if not good or item.same >= number or (item.same >= 0 and not number):
                raise RaidfsError("what the source lists makes no sense")
        return items, stamp

    async def fetch(
        self, peer: str, move: bytes, progress: Progress, item: int, offset: int
    ) -> ContentTold:
        """A piece of a file."""
        fault.here("move.fetch")
        told = await self._ask(peer, move, item, offset)
        progress.done += len(told.data) or told.hole
        return told

    # -- the source's part ------------------------------------------------------------------------

    async def answer(
        self, peer: str, asked: ContentAsked, row: SourceRow, progress: Progress
    ) -> None:
        try:
            told = await self._answer(asked, row, progress)
        except RaidfsError as error:
            why = str(error) or os.strerror(error.errno)
            told = ContentTold(asked.move, asked.item, asked.offset, failed=why[:1000])
        self.group.send(peer, told)

    async def _answer(self, asked: ContentAsked, row: SourceRow, progress: Progress) -> ContentTold:
        move, number, offset = asked.move, asked.item, asked.offset
        known = self._trees.get(move)
        if known is None or (number == LIST and offset == 0):
            tree = await self.moves.look(row.parent, row.source_name, row.ino)
            known = self._trees[move] = (tree, _before(tree))
            while sum(len(each.items) for each, _ in self._trees.values()) > TREES_ITEMS_MAX:
                if len(self._trees) == 1:
                    break
                self._trees.pop(next(iter(self._trees)))
        tree, before = known
        if number == LIST:
            data, last = _page(tree.items, offset)
            return ContentTold(move, LIST, offset, data, last=last, stamp=tree.stamp)
        if not 0 <= number < len(tree.items):
            raise Stale("there is no such item")
        content, hole = await self.moves.content(tree.items[number].ino, offset, asked.nbytes)
        progress.done = min(progress.total, before[number] + offset + (len(content) or hole))
        return ContentTold(move, number, offset, content, hole, stamp=tree.stamp)


def _is_name(name: bytes) -> bool:
    return 0 < len(name) <= 255 and not {0, ord("/")} & set(name) and name not in (b".", b"..")


def _before(tree: Tree) -> list[int]:
    found, sum_bytes = [], 0
    for item in tree.items:
        found.append(sum_bytes)
        if stat.S_ISREG(item.mode) and item.same < 0:
            sum_bytes += item.size
    return found


def _page(items: list[Item], first: int) -> tuple[bytes, bool]:
    """As many items from there on as fit, and whether these are the last."""
    size, end = 0, first
    while end < len(items) and (size < LIST_BYTES or end == first):
        size += len(msgspec.msgpack.encode(items[end]))
        if size > LIST_BYTES and end > first:
            break
        end += 1
    return msgspec.msgpack.encode(items[first:end]), end >= len(items)
