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

# How long one item takes:
QUICK_NS = 30_000  # waking another thread for it would take as long
TOGETHER_NS = 40_000
APART_NS = 80_000  # from here on it pays to wake threads
DOUBTFUL_NS = 140_000  # below it may be the threads that take the time
COUNTED_NS_MAX = 160_000  # one that was interrupted says little
TRY_EVERY = 32


class Crew:
    """Threads for work on up to `members` members."""

    def __init__(self, members: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max(2, members), name)
        self._apart = False
        self._until_try = TRY_EVERY  # to do it in turn, though it seems to pay not to
        self._lately_ns = float(TOGETHER_NS)  # one item, of the work that was small

    def close(self) -> None:
        """Waits for what is under way."""
        self._pool.shutdown()

    @property
    def quick(self) -> bool:
        """What is small is over at once, by all that is known of it."""
        return self._lately_ns < QUICK_NS

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], small: bool = False
    ) -> list[Result]:
        """The results, in order; the first exception, if there was one. `small`: a few pages for
        each, so that only syncs take time. What isn't small is done side by side."""
        if not small:
            return self._side_by_side(work, items)
        if self._apart and not self._try():
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
                self._learn(min(times, default=0))
        begun = time.perf_counter_ns()
        try:
            return self._in_turn(work, items)
        finally:
            spent = time.perf_counter_ns() - begun
            self._learn(spent / max(1, len(items)))

    def _try(self) -> bool:
        """In doubt, now and then: how long do they take one after the other?"""
        if self._lately_ns < DOUBTFUL_NS:
            self._until_try -= 1
        if self._until_try > 0:
            return False
        self._until_try = TRY_EVERY
        self._lately_ns = float(QUICK_NS)
        return True

    def _learn(self, item_ns: float) -> None:
        self._lately_ns += (min(item_ns, COUNTED_NS_MAX) - self._lately_ns) / 8
        self._apart = self._lately_ns > (TOGETHER_NS if self._apart else APART_NS)

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
