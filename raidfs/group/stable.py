"""Stable properties: what a recorded global state tells of the present, although it is past.

Chandy and Lamport: a property is stable if it stays true once it is. The state that a group
snapshot records (all volumes at their cuts, and what was on its way between them) may never have
been the state of the group at any one moment, but it lies between that at its beginning and that at
its end. So what is found here is true now; and what isn't found wasn't true when it began.

 1. *Terminated*: no move, rebuild or cleaning is outstanding, in no volume and on no way between
    two. Stable as long as nobody asks for new work.
 2. *Stuck*: a move that waits for more room in its target than there is and than all moves out of
    it that aren't stuck themselves could ever free. *Deadlocked*: stuck because stuck moves wait in
    a circle. *Stalled*: stuck without that, for want of room that no move at all would free.
    Stable as long as nobody makes room or gives up a move.
Pure functions; the answers are sentences and the graph they rest on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from .messages import Count, MoveId, Name, Transfer, VolumeId


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's move, as one of its two volumes knows it. `waits`: its target has no room for it;
    said by the target. `size_bytes`: the room it needs there, and frees in the source."""

    move: MoveId
    name: Name
    source: VolumeId
    target: VolumeId
    size_bytes: Count
    waits: bool = False


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that a volume does by itself and has not finished. `what`: of which member, say."""

    kind: Literal["rebuild", "cleaning"]
    what: str = ""


class VolumeState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume at its cut. `free_bytes`: room not promised to any move. `name`: for people."""

    volume: VolumeId
    name: str
    free_bytes: Count
    moves: tuple[Move, ...] = ()
    works: tuple[Work, ...] = ()


class OnTheWay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that a channel was recorded to hold."""

    source: VolumeId
    target: VolumeId
    message: Transfer


class GlobalState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    volumes: tuple[VolumeState, ...]
    channels: tuple[OnTheWay, ...] = ()


class Termination(msgspec.Struct, frozen=True):
    """`holds`: nothing is outstanding. `outstanding`: a sentence for each thing that is."""

    holds: bool
    text: str
    outstanding: tuple[str, ...]


class Wait(msgspec.Struct, frozen=True):
    """An edge of the wait-for graph: `waiting` could go on if `awaited` freed room in `volume`."""

    waiting: MoveId
    awaited: MoveId
    volume: VolumeId


class Deadlock(msgspec.Struct, frozen=True):
    """`holds`: there is one. `moves`: all that can't go on because of one, `cycle`: a shortest
    circle among them, `stalled`: those that can't go on although nobody waits in a circle.
    `graph`: who waits for whom, of all moves that wait."""

    holds: bool
    text: str
    moves: tuple[MoveId, ...]
    cycle: tuple[MoveId, ...]
    stalled: tuple[MoveId, ...]
    graph: tuple[Wait, ...]


def termination(state: GlobalState) -> Termination:
    """Is all work that was asked for done, everywhere?"""
    names = _names(state)
    outstanding = [_move_text(move, names) for move in _moves(state).values()]
    known = _moves(state).keys()
    for way in state.channels:
        if way.message.move not in known:
            between = f"from {_of(names, way.source)} to {_of(names, way.target)}"
            outstanding.append(f"the {way.message.step} of a move is on its way {between}")
    for volume in state.volumes:
        for work in volume.works:
            what = f" of {work.what}" if work.what else ""
            outstanding.append(f"{work.kind}{what} in {volume.name}")
    if not outstanding:
        text = "Terminated: no move, rebuild or cleaning is outstanding in any volume."
    else:
        text = f"Not terminated: {len(outstanding)} outstanding: {'; '.join(outstanding)}."
    return Termination(not outstanding, text, tuple(outstanding))


def deadlock(state: GlobalState) -> Deadlock:
    """Do moves wait for each other's room?"""
    moves = _moves(state)
    free = {volume.volume: volume.free_bytes for volume in state.volumes}
    talking = {way.message.move for way in state.channels}
    leaving = {name: [m for m in moves.values() if m.source == name] for name in free}
    lacking = {
        m.move
        for m in moves.values()
        if m.waits and m.move not in talking and m.size_bytes > free.get(m.target, m.size_bytes)
    }
    graph = tuple(
        Wait(one, other.move, moves[one].target)
        for one in sorted(lacking)
        for other in leaving.get(moves[one].target, ())
    )
    stuck = _stuck(lacking, moves, leaving, free)
    hopeless = {one for one in stuck if _lacks(moves[one], leaving, free, set())}
    cycle = _shortest_cycle(stuck - hopeless, graph)
    dead = _waiting_for(set(cycle), stuck - hopeless, graph) if cycle else set()
    stalled = stuck - dead
    return Deadlock(
        bool(cycle),
        _deadlock_text(state, moves, cycle, dead, stalled, bool(lacking)),
        tuple(sorted(dead)),
        cycle,
        tuple(sorted(stalled)),
        graph,
    )


def _lacks(
    move: Move, leaving: Mapping[str, list[Move]], free: Mapping[str, int], stuck: set[bytes]
) -> bool:
    """Has its target too little room even when all that leave it, but the stuck, are gone?"""
    freed = sum(m.size_bytes for m in leaving[move.target] if m.move not in stuck)
    return move.size_bytes > free[move.target] + freed


def _stuck(
    lacking: set[bytes],
    moves: Mapping[bytes, Move],
    leaving: Mapping[str, list[Move]],
    free: Mapping[str, int],
) -> set[bytes]:
    """The largest set that lacks room as long as none of its own goes on."""
    stuck = set(lacking)
    while lucky := {one for one in stuck if not _lacks(moves[one], leaving, free, stuck)}:
        stuck -= lucky
    return stuck


def _waiting_for(seed: set[bytes], within: set[bytes], graph: Iterable[Wait]) -> set[bytes]:
    """`seed`, and all of `within` that wait for it, however indirectly."""
    edges = [w for w in graph if w.waiting in within]
    found = set(seed)
    while more := {w.waiting for w in edges if w.awaited in found} - found:
        found |= more
    return found


def _shortest_cycle(among: set[bytes], graph: Iterable[Wait]) -> tuple[bytes, ...]:
    """A shortest circle of waits, beginning at its smallest id; empty if there is none."""
    after: dict[bytes, list[bytes]] = {one: [] for one in among}
    for wait in graph:
        if wait.waiting in among and wait.awaited in among:
            after[wait.waiting].append(wait.awaited)
    best: tuple[bytes, ...] = ()
    for start in sorted(among):
        ways: list[tuple[bytes, ...]] = [(start,)]
        seen = {start}
        while ways and (not best or len(ways[0]) < len(best)):
            way = ways.pop(0)
            if start in after[way[-1]]:
                best = way
                break
            fresh = [other for other in sorted(after[way[-1]]) if other not in seen]
            seen |= set(fresh)
            ways += [(*way, other) for other in fresh]
    return best


def _moves(state: GlobalState) -> dict[bytes, Move]:
    """All moves by id; it is the target that knows whether one waits."""
    found: dict[bytes, Move] = {}
    for volume in state.volumes:
        for move in volume.moves:
            if move.move not in found or volume.volume == move.target:
                found[move.move] = move
    return dict(sorted(found.items()))


def _names(state: GlobalState) -> dict[str, str]:
    return {volume.volume: volume.name for volume in state.volumes}


def _of(names: Mapping[str, str], volume: str) -> str:
    return names.get(volume, f"volume {volume}")


def _move_text(move: Move, names: Mapping[str, str]) -> str:
    return f"the move of {move.name} from {_of(names, move.source)} to {_of(names, move.target)}"


def _deadlock_text(
    state: GlobalState,
    moves: Mapping[bytes, Move],
    cycle: tuple[bytes, ...],
    dead: set[bytes],
    stalled: set[bytes],
    waits: bool,
) -> str:
    names = _names(state)
    free = {volume.volume: volume.free_bytes for volume in state.volumes}
    parts = []
    if cycle:
        chain = []
        for one, other in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            move = moves[one]
            chain.append(
                f"{_move_text(move, names)} waits for room in {_of(names, move.target)}"
                f" ({move.size_bytes} bytes, {free[move.target]} are free), which"
                f" {_move_text(moves[other], names)} would free"
            )
        parts.append(f"Deadlock: {'; '.join(chain)}.")
        if others := len(dead) - len(cycle):
            parts.append(f"{others} more wait for these.")
        short = moves[cycle[0]].size_bytes - free[moves[cycle[0]].target]
        place = _of(names, moves[cycle[0]].target)
        parts.append(f"Free {short} bytes in {place}, or give up one of these moves.")
    for one in sorted(stalled):
        move = moves[one]
        short = move.size_bytes - free[move.target]
        parts.append(
            f"Stalled: {_move_text(move, names)} waits for {short} bytes more in"
            f" {_of(names, move.target)} than are free, and no move will free them:"
            " make room there, or give it up."
        )
    if not parts:
        parts.append("No deadlock: no moves wait for each other's room.")
        if waits:
            parts.append("Those that wait for room will get it from moves that go on.")
    return " ".join(parts)
