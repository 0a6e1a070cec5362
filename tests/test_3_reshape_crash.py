"""Another level or width, and columns spread evenly, while users write, and a crash comes before
any sync takes effect: as test_3_membership_crash.py has it for members. The work goes on and ends
with the next mount, and then as many members may be lost as the level survives that labels tell.

RAIDFS_CRASH_SEED replays one seed; RAIDFS_CRASH_ALL=1 cuts at every sync, not at some.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from simulated_volume import CELL_BYTES
from test_3_membership_crash import (
    SEED,
    Case,
    Life,
    not_synced,
    old_place_given_up_early,
    record,
    verify_some,
)

from raidfs.store import burst, mending
from raidfs.store.moving import Mover
from raidfs.store.shape import fill_of, plan_conversion
from raidfs.store.space import Rows


async def convert(life: Life, level: str, width: int) -> None:
    """As the command would; what it says when it has ended is so."""
    plan = plan_conversion(life.store.space, level, width)
    assert plan.move_bytes
    await life.store.reshape.convert(plan.new.level, plan.new.width)
    await ended(life)
    codes = {zone.map.code for zone in life.store.space.zones.values() if zone.needed}
    assert codes == {plan.new}


async def ended(life: Life) -> None:
    with trio.fail_after(2000):
        while life.store.reshape.statistics().state in ("running", "waiting"):
            await trio.sleep(0.05)
    told = life.store.reshape.statistics()
    assert told.state == "done" and told.done_bytes, told


async def five_to_six(life: Life) -> None:
    await convert(life, "6", 5)


async def six_to_five(life: Life) -> None:
    await convert(life, "5", 3)


async def five_to_mirror(life: Life) -> None:
    await convert(life, "1", 2)


async def rebalance(life: Life) -> None:
    """Over members that were added just now."""
    for number in range(life.count, life.count + 2):
        await life.add(number)
    await life.store.reshape.rebalance()
    await ended(life)
    used = fill_of(life.store.space).used
    assert min(used.values()) >= max(used.values()) - 3, used


async def rebalance_and_loss(life: Life) -> None:
    """The rebuild comes first, then the rest is spread."""
    for number in range(life.count, life.count + 2):
        await life.add(number)
    await life.store.reshape.rebalance()
    await trio.sleep(0.3)
    await life.fail(1)
    await ended(life)


async def convert_and_loss(life: Life) -> None:
    plan = plan_conversion(life.store.space, "6", 5)
    await life.store.reshape.convert(plan.new.level, plan.new.width)
    await trio.sleep(0.3)
    await life.fail(1)
    await ended(life)


CASES = [
    Case(five_to_six, "5", 5, width=4, extra=0),
    Case(six_to_five, "6", 5, extra=0),
    Case(five_to_mirror, "5", 4, extra=0),
    Case(rebalance, "5", 3, extra=2),
    Case(rebalance_and_loss, "5", 4, width=3, extra=2),
    Case(convert_and_loss, "5", 6, width=4, extra=0),
]


def test_a_change_of_level_and_a_crash_smoke() -> None:
    assert verify_some(record(CASES[0]), 1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_change_of_shape_and_a_crash(case: Case) -> None:
    assert verify_some(record(case), 3) >= 3


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone takes several, so that much comes between."""
    monkeypatch.setattr(mending, "PIECE_BYTES", 3 * CELL_BYTES)


# -- would it notice? -----------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def cells_not_synced(patch: Patch) -> None:
    """Leaves name the places of cells that were moved before these were synced."""

    async def write(self: Mover, cells: Any, outlet: Any, addresses: Any) -> Any:
        store, count = self.store, len(addresses)
        rows = Rows(outlet, outlet.fill, -(-count // outlet.map.code.k), count)
        made = burst.Burst(rows, cells.inos, cells.indexes, addresses)
        return await burst.write(store.array, made, store.cell_bytes, store.offload, False)

    patch.setattr(Mover, "_write", write)


SABOTAGE = [
    (cells_not_synced, CASES[0]),
    (not_synced, CASES[3]),
    (old_place_given_up_early, Case(rebalance, "0", 2, extra=2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "case"), SABOTAGE, ids=lambda each: getattr(each, "__name__", None)
)
def test_the_crash_test_notices(sabotage: Any, case: Case, monkeypatch: Patch) -> None:
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)):
        for seed in range(SEED, SEED + 5):
            verify_some(record(case, seed), 16)
