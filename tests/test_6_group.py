"""Group snapshots on real mounts: in all volumes or in none, and what becomes of the members."""

import pytest
from groups import ControlError, Crew

from raidfs.daemon.snapshots import SnapshotCreated, SnapshotCreateRequest

pytestmark = pytest.mark.mount


def test_one_snapshot_is_the_same_in_all_volumes(workshop):
    crew = Crew(workshop)
    crew.init()
    for number, volume in enumerate(crew.volumes):
        (volume.mountpoint / "file").write_text(f"old {number}")
    told = crew.told("snapshot", "crew", "monday")
    assert told["state"] == "committed" and len(told["volumes"]) == 3
    for part in told["volumes"]:
        assert part["state"] == "visible" and part["epoch"] > 0 and part["gate_us"] > 0
    for number, volume in enumerate(crew.volumes):
        (volume.mountpoint / "file").write_text("new")
        seen = volume.mountpoint / ".snapshots/monday/file"
        assert seen.read_text() == f"old {number}"
    ((name, (number, created_ns)),) = crew.same_everywhere().items()
    assert (name, number, created_ns) == ("monday", told["id"], told["created_ns"])
    shown = crew.told("show", "crew", "monday")
    assert [len(part["snapshots"]) for part in shown["volumes"]] == [1, 1, 1]
    listed = crew.shop.run(
        "raidfs-ctl", "snapshot", "list", "-H", "-o", "name,group", crew.volumes[1].mountpoint
    )
    assert listed.stdout == f"monday\t{told['id']}\n"
    again = crew.group("snapshot", "crew", "monday", expect=1)
    assert "there is a snapshot 'monday' already" in again.stderr
    crew.finish()


def test_a_name_that_one_volume_has_is_refused_by_all(workshop):
    crew = Crew(workshop)
    crew.init()
    crew.ask(2, SnapshotCreateRequest(name="mine"), SnapshotCreated)
    taken = crew.snapshot("mine")
    assert taken.state == "aborted" and "there is a snapshot 'mine' already" in taken.reason
    assert crew.same_everywhere() == {}
    crew.settle()
    crew.finish()


@pytest.mark.slow
def test_delete_and_rollback_are_of_all_or_none(workshop):
    crew = Crew(workshop)
    crew.init()
    files = [volume.mountpoint / "file" for volume in crew.volumes]
    for name in ("one", "two"):
        for file in files:
            file.write_text(name)
        crew.group("snapshot", "crew", name)
    crew.group("rollback", "-y", "--keep", "before", "crew", "one")
    assert [file.read_text() for file in files] == ["one"] * 3
    crew.group("delete", "-y", "crew", "one")
    assert list(crew.same_everywhere()) == ["two"]
    # held in one volume: in none
    place = crew.volumes[1].mountpoint
    workshop.run("raidfs-ctl", "snapshot", "hold", place, "two")
    refused = crew.group("delete", "-y", "crew", "two", expect=1)
    assert "nothing was done in any volume" in refused.stderr and "held" in refused.stderr
    assert list(crew.same_everywhere()) == ["two"]
    workshop.run("raidfs-ctl", "snapshot", "release", place, "two")
    # a part alone: no
    for words in (("delete", "-y", place, "two"), ("rename", place, "two", "three")):
        refused = workshop.run("raidfs-ctl", "snapshot", *words, expect=1)
        assert "part of a snapshot of the group" in refused.stderr
    crew.finish()


@pytest.mark.slow
def test_members_come_and_go(workshop):
    crew = Crew(workshop, count=4)
    places = [volume.mountpoint for volume in crew.volumes]
    crew.group("init", "crew", *places[:2])
    crew.group("join", places[2], "crew")
    crew.group("join", places[3], places[1])
    crew.settle()
    assert {len(crew.status(number).members) for number in range(4)} == {4}
    assert crew.snapshot("four", 3).state == "committed"
    crew.group("leave", places[0])  # the keeper
    crew.group("leave", places[2])
    assert crew.status(0).group == "" and crew.status(2).group == ""
    crew.settle(1, 3)
    assert crew.snapshot("two", 3).state == "committed"
    assert set(crew.names(1)) == {"four", "two"} and set(crew.names(0)) == {"four"}
    # who left is free, and its part with it
    workshop.run("raidfs-ctl", "snapshot", "delete", "-y", places[0], "four")
    crew.group("join", places[0], "crew")
    crew.settle(0, 1, 3)
    assert crew.snapshot("three", 0).state == "committed"
    crew.finish()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["nolane", "writeback", "ro"])
def test_a_mount_that_can_not_hold_back_replies_stays_out(workshop, option):
    crew = Crew(workshop, count=2)
    crew.volumes[1].unmount()
    crew.volumes[1].mount(option)
    refused = crew.init(expect=1)
    assert "can't take part in a group: it is mounted" in refused.stderr
    assert crew.status(0).group == ""
    crew.volumes[1].unmount()
    crew.volumes[1].mount()
    crew.init()
    crew.volumes[1].unmount()
    crew.volumes[1].mount(option)
    refused = crew.group("snapshot", crew.volumes[0].mountpoint, "s", expect=1)
    assert "not all volumes can be reached" in refused.stderr
    refused = crew.group("snapshot", crew.volumes[1].mountpoint, "s", expect=1)
    assert "can't take part in a group" in refused.stderr
    crew.finish()


@pytest.mark.slow
def test_missing_volumes_are_named_and_left_out_only_if_told_so(workshop):
    crew = Crew(workshop)
    crew.init()
    crew.volumes[2].unmount()
    with pytest.raises(ControlError, match="not all volumes can be reached"):
        crew.snapshot("s")
    assert crew.group("status", "crew", expect=1).stdout.count("AWAY") == 1
    taken = crew.snapshot("s", allow_missing=True)
    assert taken.state == "committed"
    assert sorted(part.state for part in taken.volumes) == ["missing", "visible", "visible"]
    crew.mount(2)
    crew.settle()
    assert [len(crew.names(number)) for number in range(3)] == [1, 1, 0]
    assert crew.snapshot("t").state == "committed"
    crew.finish()


@pytest.mark.slow
def test_check_records_a_state_and_leaves_nothing(workshop):
    crew = Crew(workshop)
    crew.init()
    told = crew.told("check", "crew")
    assert told["terminated"] and not told["deadlocked"], told
    assert "no move, rebuild or cleaning" in told["termination"]
    crew.settle()
    assert crew.same_everywhere() == {}
    crew.volumes[1].unmount()
    refused = crew.group("check", str(crew.volumes[0].mountpoint), expect=1)
    assert "could not be recorded" in refused.stderr
    crew.finish()
