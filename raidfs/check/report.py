"""What a check found, for people and scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

FINDINGS_MAX = 1000

Progress = Callable[[str, int, int], None]  # what is being checked, done, total


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is stable, for scripts: area and what is wrong, as in "names.nlink"."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a snapshot has, counted: inodes; entries of leaves that name a cell; and cells that it
    has alone, which its deletion would free."""

    inodes: int
    cells: int
    alone: int


@dataclass(slots=True)
class Report:
    """What was found. `counts`: how much was looked at. `cut_short`: findings not kept.
    `snapshots`: by name."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    cut_short: int = 0
    snapshots: dict[str, Held] = field(default_factory=dict)

    def add(self, code: str, text: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(code, text))
        else:
            self.cut_short += 1

    def note(self, code: str, text: str) -> None:
        self.notes.append(Finding(code, text))

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def clean(self) -> bool:
        return not self.findings
