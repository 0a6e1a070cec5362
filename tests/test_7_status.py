"""The words for a volume's state: what it means, what to do, and the same in text and JSON."""

import msgspec
import pytest

from raidfs.cli.status import status_lines
from raidfs.daemon.status import EXIT_CODES, CleanerStatus, Condition, Usage, describe
from raidfs.raid.label import Label, MemberEntry, Parameters

USAGE = Usage(total_bytes=1000 << 20, used_bytes=1 << 20, free_bytes=999 << 20, files=3, epoch=9)


def label(level="6", count=5, failed=()):
    members = [
        MemberEntry(number, "directory", f"/srv/d{number}", 100, 1 << 30,
                    "failed" if number in failed else "active",
                    "write failed" if number in failed else "")
        for number in range(count)
    ]  # fmt: skip
    parameters = Parameters(level, count, 4096, 1 << 20, 1 << 24, 1 << 24, 0)
    return Label(
        "ab" * 16, "tank", 0, 1, "cd" * 8, [(1, "cd" * 8)], members, parameters, len(members)
    )


CASES = {
    "healthy": (Condition(label(), {}, {}, USAGE, mountpoint="/mnt", pid=7), "ONLINE"),
    "one lost": (Condition(label(failed=[1]), {1: "x"}, {}, USAGE, mountpoint="/mnt"), "DEGRADED"),
    "two lost": (Condition(label(), {1: "x", 2: "y"}, {}, USAGE, mountpoint="/mnt"), "DEGRADED"),
    "too many": (Condition(label(), {1: "x", 2: "y", 3: "z"}, {}), "FAILED"),
    "errors": (Condition(label(), {}, {2: (0, 1, 2)}, USAGE, mountpoint="/mnt"), "ONLINE"),
    "failed": (Condition(label(), {}, {}, USAGE, failed="no", mountpoint="/mnt"), "FAILED"),
    "no volume": (Condition(label(), {}, {}, failed="metadata damaged"), "FAILED"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_state_says_what_it_means_and_what_to_do(case):
    condition, state = CASES[case]
    status = describe(condition)
    assert status.state == state and EXIT_CODES[status.state] == {"O": 0, "D": 1, "F": 2}[state[0]]
    quiet = case == "healthy"
    assert bool(status.status) == bool(status.action) == (not quiet)
    for sentence in (status.status, status.action):
        assert quiet or sentence.endswith((".", "!")) or ":" in sentence
    text = " ".join("\n".join(status_lines(status)).split())
    assert f"state: {state}" in text and "volume: tank" in text and "no write hole" in text
    for member in status.members:
        assert f"{member.id} {member.path}" in text and member.state in text
    assert all(len(line) <= 100 for part in status_lines(status) for line in part.splitlines())


def test_members_have_their_own_states_and_reasons():
    lost = {1: "failed", 3: "not found at /srv/d3"}
    members = describe(Condition(label(failed=[1]), lost, {0: (1, 2, 3)})).members
    assert [m.state for m in members] == ["ONLINE", "FAILED", "ONLINE", "MISSING", "ONLINE"]
    assert members[1].reason == "write failed" and members[3].reason == "not found at /srv/d3"
    assert (members[0].read_errors, members[0].write_errors, members[0].checksum_errors) == (
        1,
        2,
        3,
    )


def test_json_has_a_version_and_plain_integers():
    document = msgspec.to_builtins(describe(CASES["healthy"][0]))
    assert document["version"] == 1 and document["state"] == "ONLINE"
    assert document["total_bytes"] == 1000 << 20 and document["members"][0]["bytes"] == 1 << 30


def test_the_cleaner_says_what_it_is_at_and_what_waits_for_it():
    def text(**fields):
        told = {"zone": 0, "left_bytes": 0, "zones_emptied": 4, "moved_bytes": 3 << 20}
        cleaner = CleanerStatus(**{**told, "gain_bytes": 9 << 20, "waiting": False, **fields})
        condition = Condition(label(), {}, {}, USAGE, mountpoint="/mnt", cleaner=cleaner)
        status = describe(condition)
        assert msgspec.json.decode(msgspec.json.encode(status))["cleaner"]["zones_emptied"] == 4
        return " ".join("\n".join(status_lines(status)).split())

    assert "cleaner: idle; 4 zones emptied by moving 3.0 MiB; 9.0 MiB of what is free" in text()
    busy = text(zone=17, left_bytes=1 << 20)
    assert "emptying zone 17, 1.0 MiB left to move; 4" in busy
    assert "writers wait for room" in text(zone=17, waiting=True)
    assert "stopped after an error; unmount and mount" in text(broken="an error")
    assert "cleaner" not in "".join(status_lines(describe(Condition(label(), {}, {}, USAGE))))
