"""Functions beside the event loop: results, errors, many at once, cancelled tasks."""

import threading
import time

import pytest
import trio

from raidfs.store import offload
from raidfs.store.offload import Workers


def test_results_and_errors():
    async def run():
        workers = Workers()
        assert await workers(lambda a, b: (a, b), 1, 2) == (1, 2)
        assert await workers(threading.get_ident) != threading.get_ident()
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await workers(lambda: 1 // 0)
        assert await workers(int) == 0

    trio.run(run)


def test_others_go_on_meanwhile():
    async def run():
        workers, ticks = Workers(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers, time.sleep, 0.1)
            for _ in range(10):
                await trio.sleep(0.005)
                ticks += 1
            assert ticks == 10

    trio.run(run)


def test_no_more_threads_than_there_may_be(monkeypatch):
    monkeypatch.setattr(offload, "THREADS", 4)
    lock, now, most, done = threading.Lock(), 0, 0, []

    def work(number):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1
        done.append(number)

    async def run():
        workers = Workers()
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(workers, work, number)

    trio.run(run)
    assert sorted(done) == list(range(30)) and most == 4


def test_a_cancelled_task_waits_for_the_end():
    async def run():
        workers, done = Workers(), []
        with trio.move_on_after(0.01) as scope:
            await workers(lambda: (time.sleep(0.05), done.append(1)))
            assert done
            await trio.lowlevel.checkpoint()
        assert done and scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await workers(done.append, 2)
        assert done == [1] and scope.cancelled_caught
        assert await workers(int) == 0

    trio.run(run)


def test_in_one_loop_after_the_other():
    async def run():
        return await offload.in_thread(threading.get_ident)

    assert trio.run(run) == trio.run(run)
