"""Promise 6, for each version of any table: its life is not empty, it overlaps none of its key, and
it is there for a reason."""

from __future__ import annotations

from ..store.database import needed
from ..store.meta import Meta, Version
from .report import Report


class Versions:
    """For the versions of one table, in the order of their keys."""

    def __init__(
        self, meta: Meta, retained: tuple[int, ...], condemned: list[int], report: Report
    ) -> None:
        """Ascending epochs of snapshots, and the epochs of those that are still to be swept up."""
        self._durable = meta.durable
        self._retained = retained
        self._condemned = condemned
        self._report = report
        self._key: object = None
        self._died = 0

    def look(self, key: tuple[object, ...], version: Version) -> None:
        born, died = version.born, version.died
        if not born < died:
            self._report.add("version.empty", f"{key}: born {born}, died {died}")
        if key == self._key and self._died > born:
            self._report.add("version.overlap", f"{key}: one died at {self._died}, one born {born}")
        if born > self._durable:
            self._report.add("version.later", f"{key}: born {born}, durable is {self._durable}")
        self._key, self._died = key, died
        if version.live or born >= died:
            return
        if died > self._durable:
            self._report.add("version.died", f"{key}: died {died}, durable is {self._durable}")
        elif not needed(born, died, self._retained):
            if any(born <= epoch < died for epoch in self._condemned):
                self._report.count("versions to be swept")
            else:
                self._report.add(
                    "version.unneeded", f"{key}: no snapshot sees it, born {born}, died {died}"
                )
