"""Columns go to members that have few, and nothing else changes."""

import random

import pytest
from simulated_volume import checked, in_simulated_time, mounted, reopened
from test_3_cleaner import make_past, trees
from test_3_reshape import ended, volume_of

from raidfs.errors import UsageError
from raidfs.store.shape import fill_of


def test_columns_go_to_members_that_have_few():
    """Unequal members, filled while some were closed to new columns."""
    members = volume_of("5", 3, 6, slots=[30, 30, 30, 30, 15, 15])

    async def test():
        async with mounted(members) as volume:
            store = volume.store
            allocation = store.space.allocation
            allocation.closed_to = frozenset({3, 4, 5})
            await make_past(volume, random.Random(8), snapshots=2)
            allocation.closed_to = frozenset()
            wanted = await trees(volume)
            fill_before = fill_of(store.space)
            assert not any(fill_before.used[member] for member in (3, 4, 5))
            count, nbytes = await store.reshape.evening.plan()
            assert count and nbytes
            await store.reshape.rebalance()
            assert store.reshape.statistics().kind == "rebalance"
            await ended(volume)
            told = fill_of(store.space)
            parts = [told.of(member) for member in told.used]
            assert max(parts) - min(parts) <= 2 / 15, parts
            assert await trees(volume) == wanted
            assert store.reshape.statistics().done_bytes >= nbytes * 0.9
            assert not store.reshape.settings.rebalance and not store.mender.wishes
            assert store.events.counts["RebalanceFinished"] == 1
            with pytest.raises(UsageError, match="no rebalance"):
                await store.reshape.stop_rebalance()

    in_simulated_time(test)
    checked(members)
    left = reopened(members, (3,))

    async def degraded():
        async with mounted(left) as volume:
            await trees(volume)

    in_simulated_time(degraded)


def test_a_rebalance_goes_on_after_a_mount():
    members, wanted = volume_of("5", 3, 5), {}

    async def begin():
        async with mounted(members) as volume:
            volume.store.space.allocation.closed_to = frozenset({3, 4})
            await make_past(volume, random.Random(9), snapshots=2)
            wanted.update(await trees(volume))
            volume.store.space.allocation.closed_to = frozenset()
            await volume.store.reshape.rebalance()

    in_simulated_time(begin)
    again = reopened(members)

    async def go_on():
        async with mounted(again) as volume:
            assert volume.store.reshape.settings.rebalance
            await ended(volume)
            parts = fill_of(volume.store.space)
            assert min(parts.used.values()) >= max(parts.used.values()) - 2
            assert await trees(volume) == wanted

    in_simulated_time(go_on)
    checked(again)
