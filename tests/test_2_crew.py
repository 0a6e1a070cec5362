"""Work on several members at once: all of it is done, errors are told, slow media side by side."""

import threading
import time

import pytest

from raidfs.raid.crew import Crew


@pytest.fixture
def crew():
    crew = Crew(5, "crew")
    yield crew
    crew.close()


@pytest.mark.parametrize("small", [False, True])
def test_results_come_in_order(crew, small):
    for _ in range(3):
        assert crew.map(lambda n: n * n, range(7), small) == [n * n for n in range(7)]
    assert crew.map(lambda n: n, [], small) == []


@pytest.mark.parametrize("slow_s", [0, 0.002])
@pytest.mark.parametrize("small", [False, True])
def test_an_error_stops_none_of_the_others(crew, small, slow_s):
    for _ in range(12):  # both ways, once it has learned that they are slow
        done = []

        def work(n, done=done):
            time.sleep(slow_s)
            done.append(n)
            if n in (1, 3):
                raise OSError(n, "failed")

        with pytest.raises(OSError) as caught:
            crew.map(work, range(5), small)
        assert caught.value.errno == 1 and sorted(done) == [0, 1, 2, 3, 4]


def threads_used(crew, work):
    used = set()

    def noted(n):
        used.add(threading.get_ident())
        work()

    crew.map(noted, range(5), True)
    return len(used)


def test_what_is_quick_is_done_in_turn_and_what_is_slow_is_not(crew):
    here = {threading.get_ident()}
    assert threads_used(crew, lambda: None) == 1
    for _ in range(10):
        threads_used(crew, lambda: time.sleep(0.003))
    assert threads_used(crew, lambda: time.sleep(0.003)) == 5
    begun = time.monotonic()
    for _ in range(3):
        crew.map(lambda n: time.sleep(0.02), range(5), True)
    assert time.monotonic() - begun < 3 * 5 * 0.02
    for _ in range(40):
        crew.map(lambda n: None, range(5), True)
    seen = set()
    crew.map(lambda n: seen.add(threading.get_ident()), range(5), True)
    assert seen == here
