"""Doing the same on several members: one after the other where that costs less, else side by side.

Members must not wait for each other's media. But a thread costs ten times what a small write into
the page cache does, to wake it and to hear of its end; and where a sync is over at once, since
memory lies beneath, or a cache that survives the loss of power, side by side gains nothing. Which
of the two it is can't be asked, so a crew goes by how long its work has taken lately.

 1. All of it has been done when `map` returns, whatever some of it raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

APART_NS = 400_000  # of all items, one after the other: from here on it pays to wake threads
TOGETHER_NS = 200_000


class Crew:
    """Threads for work on up to `members` members."""

    def __init__(self, members: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max(2, members), name)
        self._apart = False
        self._lately_ns = 0.0  # one item, of the work that was small

    def close(self) -> None:
        """Waits for what is under way."""
        self._pool.shutdown()

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], small: bool = False
    ) -> list[Result]:
        """The results, in order; the first exception, if there was one. `small`: a few pages for
        each, so that only syncs take time. What isn't small is done side by side."""
        if not small:
            return self._side_by_side(work, items)
        if self._apart:
            times: list[int] = []

            def timed(item: Item) -> Result:
                begun = time.perf_counter_ns()
                try:
                    return work(item)
                finally:
                    times.append(time.perf_counter_ns() - begun)

            try:
                return self._side_by_side(timed, items)
            finally:
                # Threads also wait for each other; the quickest says most of what lies beneath.
                self._learn(min(times, default=0), len(items))
        begun = time.perf_counter_ns()
        try:
            return self._in_turn(work, items)
        finally:
            spent = time.perf_counter_ns() - begun
            self._learn(spent / max(1, len(items)), len(items))

    def _learn(self, item_ns: float, count: int) -> None:
        self._lately_ns += (item_ns - self._lately_ns) / 4
        if self._apart:
            self._apart = self._lately_ns * count > TOGETHER_NS
        else:
            self._apart = self._lately_ns * count > APART_NS

    def _side_by_side(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        futures = [self._pool.submit(work, item) for item in items]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]

    @staticmethod
    def _in_turn(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        results, first = [], None
        for item in items:
            try:
                results.append(work(item))
            except Exception as error:
                first = first or error
        if first is not None:
            raise first
        return results
