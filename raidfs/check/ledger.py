"""Many states compared at once: the present and every snapshot, at the cost of their differences.

A *view* is a state that somebody can look at: that of a retained epoch, or the present. Views are
numbered from 0, the oldest, and the last is the present. A version is in the views of a *span*,
from one number up to, not including, another; an empty one if only a condemned snapshot explains
it.

What one table says of a thing and what is found of it in another are functions of the view, which
change where a span begins or ends. `Ledger` adds up both, sorts, and compares them wherever one
of them changes; so all views are compared, and none is walked.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..store.meta import INF, Version

Span = tuple[int, int]
Numbers = npt.NDArray[np.int64]


class Views:
    """The views of a volume. `names`: of the snapshots, by epoch."""

    def __init__(self, names: dict[int, str]) -> None:
        self.epochs = [*sorted(names), INF - 1]
        self._names = names
        self._no_snapshots = len(self.epochs) == 1

    @property
    def present(self) -> int:
        return len(self.epochs) - 1

    def span(self, version: Version) -> Span:
        if self._no_snapshots:
            return (0, 1) if version.died == INF else (0, 0)
        return bisect_left(self.epochs, version.born), bisect_left(self.epochs, version.died)

    def where(self, view: int) -> str:
        """To be appended to a finding."""
        return "" if view == self.present else f", in snapshot {self._names[self.epochs[view]]}"

    def totals(self) -> Numbers:
        """Zeros, for `add`."""
        return np.zeros(len(self.epochs) + 1, dtype=np.int64)

    @staticmethod
    def add(totals: Numbers, span: Span, amount: int = 1) -> None:
        totals[span[0]] += amount
        totals[span[1]] -= amount

    @staticmethod
    def sums(totals: Numbers) -> list[int]:
        """What was added in each view."""
        return [int(total) for total in np.cumsum(totals)[:-1]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the thing (key, sort) something else is found than is said; `view` is the newest view in
    which that is so."""

    key: int
    sort: int
    view: int
    said: int
    found: int


class Ledger:
    """What is said and what is found, in numbers, of things that are named by two numbers."""

    def __init__(self) -> None:
        self._rows = array("q")

    def said(self, key: int, sort: int, span: Span, amount: int = 1) -> None:
        if amount and span[0] < span[1]:
            self._rows.extend((key, sort, span[0], span[1], amount, 0))

    def found(self, key: int, sort: int, span: Span, amount: int = 1) -> None:
        if amount and span[0] < span[1]:
            self._rows.extend((key, sort, span[0], span[1], 0, amount))

    def unequal(self) -> Iterator[Difference]:
        """Things of which not as many are found as are said."""
        return self._differences(lambda said, found: said != found)

    def lacking(self) -> Iterator[Difference]:
        """Things that are said to be there and are not found at all."""
        return self._differences(lambda said, found: (said > 0) & (found == 0))

    def _differences(
        self, wrong: Callable[[Numbers, Numbers], npt.NDArray[np.bool_]]
    ) -> Iterator[Difference]:
        """One per thing, by (key, sort)."""
        rows = np.frombuffer(self._rows, dtype=np.int64).reshape(-1, 6)
        if not len(rows):
            return
        starts, ends = rows[:, [0, 1, 2, 4, 5]], rows[:, [0, 1, 3, 4, 5]]
        ends[:, 3:] *= -1
        events = np.concatenate((starts, ends))
        events = events[np.lexsort((events[:, 2], events[:, 1], events[:, 0]))]
        borders = (events[1:, :3] != events[:-1, :3]).any(axis=1)
        firsts = np.concatenate(([0], np.flatnonzero(borders) + 1))
        # All that is added of a thing is taken off again, so a sum over all begins anew with each.
        said = np.cumsum(np.add.reduceat(events[:, 3], firsts))
        found = np.cumsum(np.add.reduceat(events[:, 4], firsts))
        places = events[firsts, :3]
        last: Difference | None = None
        for at in np.flatnonzero(wrong(said, found)).tolist():
            key, sort, _ = places[at].tolist()
            view = int(places[at + 1][2]) - 1  # until the next change; the last one is to nothing
            if last is not None and (last.key, last.sort) != (key, sort):
                yield last
            last = Difference(key, sort, view, int(said[at]), int(found[at]))
        if last is not None:
            yield last
