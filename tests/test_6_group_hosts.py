"""Groups between hosts: daemons that talk over TCP with the group's own certificates."""

import socket
import stat

import pytest
from far import Far
from groups import Crew

from raidfs.group.keys import VOLUME_FILE

pytestmark = [pytest.mark.mount, pytest.mark.slow]  # each mounts several volumes


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listen():
    return f"tcp:127.0.0.1:{free_port()}"


def joined(crew):
    """The first makes the group, the others come in by tokens."""
    first, *others = crew.volumes
    crew.group("init", "crew", first.mountpoint, "--listen", listen())
    for volume in others:
        token = crew.group("invite", "crew").stdout.strip()
        crew.group("join", volume.mountpoint, token, "--listen", listen())
    crew.settle()


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


def test_the_order_is_kept_between_namespaces_with_delay_and_stalls(workshop):
    """2 ms each way, one chunk of a hundred 50 ms late."""
    crew = Crew(workshop)
    joined(crew)
    ports = [int(one.addresses[0].rpartition(":")[2]) for one in crew.status().members]
    crew.unmount()
    with Far(3) as far:
        far.relay(ports)
        for number in range(3):
            workshop.launcher = far.launcher(number)
            crew.mount(number)
        crew.settle()
        taken = []
        with crew.writers():
            for number in range(30):
                one = crew.snapshot(f"s{number}", number % 3)
                taken += [one] if one.state == "committed" else []
        assert len(taken) >= 25
        assert crew.violations([one.name for one in taken]) == []
        # who asks waits for there and back; who hears of it last may wait for hardly anything
        assert min(max(part.gate_us for part in one.volumes) for one in taken) > 3500
        assert set(crew.same_everywhere()) == {one.name for one in taken}
        crew.finish()
