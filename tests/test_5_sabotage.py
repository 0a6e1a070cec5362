"""Would the crash test notice? Each of these takes one promise's keeper away, and it must fail.

Promise 2: bursts aren't synced. Promise 4: the log isn't synced, or nothing is undone. Promise 3:
zones are erased before the commit that emptied them is durable, or although a copy refers to them.
"""

from __future__ import annotations

from typing import Any

import pytest
from simulated import SimulatedMember
from test_5_crash import base_seed, record, record_failing, verify

from raidfs.pages import Pages
from raidfs.raid.assembly import Assembly
from raidfs.raid.member import MetaFile
from raidfs.store import burst
from raidfs.store.flush import Flush
from raidfs.store.meta import Meta
from raidfs.store.space import Space


def no_burst_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "sync", lambda array, zones: set())


def no_log_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimulatedMember.meta_sync

    def sync(self: SimulatedMember, file: MetaFile) -> None:
        if file is not MetaFile.WAL:
            real(self, file)

    monkeypatch.setattr(SimulatedMember, "meta_sync", sync)


def no_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meta, "_undo", lambda self: None)


def early_erase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns go at once when their zone is empty, before the commit."""
    real = Space.store_zones

    def store_zones(self: Space, touched: Any, epoch: int) -> None:
        real(self, touched, epoch)
        for zone in self.limbo.values():
            self.array.remove_zone(zone.map)

    monkeypatch.setattr(Space, "store_zones", store_zones)


def crash_everywhere(seed: int) -> None:
    recording = record("5", 4, seed, 150)
    for number, point in enumerate(recording.points()):
        verify(recording, point, seed * 1000 + number)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [no_burst_sync, no_log_sync, no_undo, early_erase])
def test_the_crash_test_notices(sabotage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(base_seed(), base_seed() + 5):
            crash_everywhere(seed)


def copies_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is shared has one reference fewer than leaves that name it."""
    monkeypatch.setattr(Flush, "_count_shared", lambda self: None)


def holes_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Pages.sealed_marks

    def sealed_marks(self: Pages, generation: int) -> Any:
        marks = real(self, generation)
        return tuple(column[marks[2] != 0] for column in marks)

    monkeypatch.setattr(Pages, "sealed_marks", sealed_marks)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [copies_not_counted, holes_not_applied])
def test_the_crash_test_notices_wrong_marks(sabotage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it finds after a crash, or because the volume failed before that."""
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)):
        for seed in range(base_seed(), base_seed() + 5):
            crash_everywhere(seed)


def no_loss_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 12: what a failed member missed is acknowledged before its loss is in the labels."""

    def fail(self: Assembly, member_id: int, reason: str, **options: Any) -> set[int]:
        self.lost[member_id] = reason
        return set()

    monkeypatch.setattr(Assembly, "fail", fail)


@pytest.mark.slow
def test_the_crash_test_notices_that_a_stale_member_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_loss_recorded(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(base_seed(), base_seed() + 5):
            recording = record_failing("6", 5, seed, 80)
            for number, point in enumerate(recording.points()):
                verify(recording, point, seed * 1000 + number)
