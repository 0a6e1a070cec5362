"""Groups between hosts: daemons that talk over TCP with the group's own certificates."""

import contextlib
import stat
import time

import pytest
from far import Far, free_port, joined, retransmitted
from groups import Crew
from ordered import ALL_KINDS

from raidfs.group.keys import VOLUME_FILE

pytestmark = [pytest.mark.mount, pytest.mark.slow]  # each mounts several volumes


def listen():
    return f"tcp:127.0.0.1:{free_port()}"


def test_a_group_over_tls(workshop):
    crew = Crew(workshop)
    joined(crew)
    status = crew.status(1)
    assert all(one.addresses[0].startswith("tcp:") for one in status.members)
    assert not list(workshop.runtime.glob("*.group")), "a unix socket, too"
    for number in range(3):
        assert crew.snapshot(f"s{number}", number).state == "committed"
    assert len(crew.same_everywhere()) == 3
    # keys: nobody else's, and still good after a mount
    files = [path for path in (workshop.directory / "state").rglob("*") if path.is_file()]
    assert sum(path.name == VOLUME_FILE for path in files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    for number in (0, 2):
        crew.volumes[number].unmount()
        crew.mount(number)
    crew.settle()
    assert crew.snapshot("again", 2).state == "committed"
    assert len(crew.same_everywhere()) == 4
    # who has left has no keys, and gets nowhere
    crew.group("leave", crew.volumes[2].mountpoint)
    crew.settle(0, 1)
    assert len(list((workshop.directory / "state").rglob(VOLUME_FILE))) == 2
    assert crew.snapshot("two", 0).state == "committed"
    crew.finish()


def test_a_token_is_good_once_and_for_this_group(workshop):
    crew = Crew(workshop, count=3)
    first, second, third = (volume.mountpoint for volume in crew.volumes)
    crew.group("init", "crew", first, "--listen", listen())
    refused = crew.group("join", second, "crew", expect=1)
    assert "join it with a token" in refused.stderr
    token = crew.group("invite", "crew").stdout.strip()
    refused = crew.group("join", second, token, expect=1)
    assert "--listen" in refused.stderr
    refused = crew.group("join", second, token[:-3], "--listen", listen(), expect=1)
    assert "copy it whole" in refused.stderr
    crew.group("join", second, token, "--listen", listen())
    refused = crew.group("join", third, token, "--listen", listen(), expect=1)
    assert "used already" in refused.stderr
    assert crew.status(2).group == ""
    crew.settle(0, 1)
    assert crew.snapshot("s").state == "committed"
    crew.finish()


GATE_S = 0.5  # the limit, as it is if nobody says otherwise
MARGIN_S = 1.0  # for a machine that is busy


@contextlib.contextmanager
def far_crew(workshop, **network):
    """Three volumes in one group, each on a host of its own."""
    with Far(3, **network) as far:
        crew = Crew(workshop, count=0)
        for number in range(3):
            workshop.launcher = far.launcher(number)
            crew.add()
        joined(crew, [f"tcp:{far.address(number)}:7000" for number in range(3)])
        yield far, crew
        workshop.launcher = ()
        crew.finish()


def check_order(crew, taken):
    """All that were committed are everywhere, and none could not be."""
    committed = {one.name for one in taken if one.state == "committed"}
    assert set(crew.same_everywhere()) == committed
    assert crew.violations(sorted(committed), ALL_KINDS) == []
    for one in taken:
        if one.state != "committed":
            print(f"{one.name}: {one.state}: {one.reason}")
            assert one.state == "aborted"
    return len(committed)


def check_writers(told):
    """None waited for much longer than a gate may be shut."""
    assert all(one["steps"] > 20 for one in told.values()), told
    assert max(one["longest_s"] for one in told.values()) < GATE_S + MARGIN_S, told


def test_the_order_is_kept_over_a_bad_line(workshop):
    """5 ms each way, give or take 5, and one packet of fifty is lost."""
    with far_crew(workshop, delay_s=0.005, jitter_s=0.005, loss=0.02) as (far, crew):
        before = sum(retransmitted(volume.pid) for volume in crew.volumes)
        with crew.writers(ALL_KINDS) as told:
            taken = [crew.snapshot(f"s{number}", number % 3) for number in range(30)]
        check_writers(told)
        again = sum(retransmitted(volume.pid) for volume in crew.volumes) - before
        print(f"{far.passed} packets passed, {far.lost} lost, {far.overtaken} overtaken")
        assert far.lost > 10 and far.overtaken > 10 and again > 0
        crew.settle()
        assert check_order(crew, taken) > len(taken) // 2


def test_far_apart_and_then_cut_off(workshop):
    """2 ms each way. A host that can't be reached costs the snapshot, and nothing else."""
    with far_crew(workshop, delay_s=0.002) as (far, crew):
        with crew.writers(ALL_KINDS) as told:
            taken = [crew.snapshot(f"s{number}", number % 3) for number in range(10)]
            with far.cut_off(2):
                without = crew.snapshot("without", 1)
                time.sleep(0.5)
            deadline = time.monotonic() + 20  # TCP waits ever longer before it tries again
            later = [without]
            while later[-1].state != "committed" and time.monotonic() < deadline:
                crew.settle()
                later.append(crew.snapshot(f"later{len(later)}", 2))
        check_writers(told)
        assert (without.state, later[-1].state) == ("aborted", "committed")
        assert "longer than the gate may be shut" in without.reason
        committed = [one for one in taken if one.state == "committed"]
        assert check_order(crew, taken + later) == len(committed) + 1 >= 10
        # who asks waits for there and back; who hears of it last may wait for hardly anything
        assert min(max(part.gate_us for part in one.volumes) for one in committed) > 3500
