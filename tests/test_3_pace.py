"""How fast work goes that nobody waits for, by a clock that stands still while nobody sleeps."""

from types import SimpleNamespace

import pytest
import trio

from raidfs.store.pace import PAUSE_BUSY, Pace


def pace_of(*, busy=False):
    pages = SimpleNamespace(open_files=0)
    pace = Pace(SimpleNamespace(pages=pages, users_busy=lambda: busy))
    pace.begin()
    return pace


@pytest.mark.trio
async def test_it_is_never_faster_than_its_limit(autojump_clock):
    pace, begun = pace_of(), trio.current_time()
    pace.limit_bytes_s = 1000
    for _ in range(20):
        await pace.turn(500)
    assert trio.current_time() - begun == pytest.approx(10, abs=0.1)
    assert pace.rate_bytes_s == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("other", [0, 1_000_000])
@pytest.mark.trio
async def test_another_limit_counts_at_once(autojump_clock, other):
    pace, begun = pace_of(), trio.current_time()
    pace.limit_bytes_s = 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.turn, 10_000)  # a thousand seconds of it
        await trio.sleep(1)
        pace.limit_bytes_s = other
    await pace.turn(10_000)
    assert trio.current_time() - begun == pytest.approx(1, abs=0.1)


@pytest.mark.trio
async def test_it_gives_way_to_users(autojump_clock):
    for busy in (False, True):
        pace, begun = pace_of(busy=busy), trio.current_time()
        for _ in range(10):
            await trio.sleep(0.01)  # the work
            await pace.turn(1)
        expected = 0.1 * (1 + PAUSE_BUSY * busy)
        assert trio.current_time() - begun == pytest.approx(expected, abs=0.01)
