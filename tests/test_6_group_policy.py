"""The policy of a group: taken once, by the keeper, in all volumes or none; deleted likewise.

The tests share the mounts of a module; all volumes are checked at the end.
"""

import json

import pytest
from groups import ControlError, Crew, wait_until
from mounting import Workshop

from raidfs.daemon.group_policies import (
    GroupPolicyRan,
    GroupPolicyRunRequest,
    GroupPolicySetRequest,
    GroupPolicyTold,
)
from raidfs.daemon.policies import PolicyRan, PolicyRunRequest, PolicySetRequest, PolicyTold

pytestmark = [pytest.mark.mount, pytest.mark.slow]  # several volumes are mounted


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Workshop(tmp_path_factory.mktemp("policy")) as shop:
        made = Crew(shop, count=3)
        made.init()
        yield made
        made.finish()


@pytest.fixture
def crew(shared):
    """All are mounted; there is no policy, and no snapshot."""
    yield shared
    for number, volume in enumerate(shared.volumes):
        if volume.pid is None:
            shared.mount(number)
    shared.settle()
    shared.ask(0, GroupPolicySetRequest(clear=True), GroupPolicyTold)
    for number, volume in enumerate(shared.volumes):
        for name in shared.names(number):
            shared.shop.run(
                "raidfs-ctl", "snapshot", "release", volume.mountpoint, name, expect=None
            )
    for name in {name for number in range(3) for name in shared.names(number)}:
        shared.group("delete", "-y", "crew", name)


def run(crew, number=0, dry_run=False):
    return crew.ask(number, GroupPolicyRunRequest(dry_run=dry_run), GroupPolicyRan)


def put(crew, **fields):
    """With `prefix` and `allow_missing` beside the counts."""
    options = {name: fields.pop(name) for name in ("prefix", "allow_missing") if name in fields}
    return crew.ask(0, GroupPolicySetRequest(fields=fields, **options), GroupPolicyTold)


def test_set_show_and_clear(crew):
    assert "has no policy" in crew.group("policy", "show", "crew").stdout
    refused = crew.group("policy", "run", "crew", expect=1)
    assert "group crew has no policy" in refused.stderr
    assert "say what the policy is to keep" in crew.group("policy", "set", "crew", expect=1).stderr
    told = crew.told("policy", "set", "crew", "--daily", "3", "--hourly", "2")
    assert (told["keep"]["daily"], told["keep"]["hourly"], told["keep"]["weekly"]) == (3, 2, 0)
    assert (told["prefix"], told["allow_missing"], told["surplus"]) == ("groupsnap", False, 0)
    told = crew.told(
        "policy", "set", "crew", "--hourly", "0", "--prefix", "auto", "--allow-missing"
    )
    assert (told["keep"]["daily"], told["keep"]["hourly"]) == (3, 0)
    for number in range(3):  # all know it
        place = str(crew.volumes[number].mountpoint)
        wait_until(
            lambda place=place: crew.told("policy", "show", place)["prefix"] == "auto", "all know"
        )
    text = crew.group("policy", "show", "crew").stdout
    assert "daily  3" in text and "auto_*" in text and "can be reached" in text
    for words in (["--daily", "-1"], ["--daily", "0"], ["--minutes", "7"], ["--prefix", "a/b"],
                  ["--prefix", ""], ["--prefix", "x" * 101], ["--prefix", "."]):  # fmt: skip
        refused = crew.group("policy", "set", "crew", *words, expect=1)
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert crew.told("policy", "show", "crew")["keep"]["daily"] == 3
    crew.group("policy", "clear", "crew")
    assert crew.told("policy", "show", "crew")["keep"] is None
    refused = crew.group("policy", "run", "crew", "--all", expect=1)
    assert "name the groups" in refused.stderr
    assert json.loads(crew.group("policy", "run", "--all", "--json").stdout)["groups"] == []


def test_taken_once_everywhere_and_pruned_as_a_whole(crew):
    put(crew, frequently=2, daily=1, minutes=1)
    planned = run(crew, dry_run=True)
    assert len(planned.taken) == 2 and crew.same_everywhere() == {}
    with pytest.raises(ControlError, match="in the hands of"):
        run(crew, 1)
    done = crew.group("policy", "run", "--all").stdout.splitlines()
    assert len(done) == 2 and all(" take groupsnap_" in line for line in done)
    first = crew.same_everywhere()
    assert sorted(name.rpartition("_")[2] for name in first) == ["daily", "frequently"]
    kinds = [name.rpartition("_")[2] for name in run(crew).taken]
    assert set(kinds) <= {"frequently"}, "no period has two"  # a minute may have ended
    # in their places some of yesterday's, taken by hand under the policy's names
    old = [f"groupsnap_2020-01-0{day}_00:00:00_daily" for day in (1, 2)]
    for name in (*old, "mine"):
        assert crew.snapshot(name).state == "committed"
    place = crew.volumes[2].mountpoint
    crew.shop.run("raidfs-ctl", "snapshot", "hold", place, old[0])  # in one volume only
    put(crew, frequently=0)
    told = crew.told("policy", "show", str(place))
    ran = run(crew)
    going = {name for name in first if name.endswith("frequently")}
    assert told["surplus"] == len(ran.deleted) and going <= set(ran.deleted) and not ran.failed
    left = crew.same_everywhere()
    assert old[0] in left and "mine" in left
    assert sum(name.endswith("daily") for name in left) == 2  # the newest, and what is held
    (held,) = [verdict for verdict in ran.verdicts if verdict.name == old[0]]
    assert held.keep and held.reason.startswith("held")
    crew.shop.run("raidfs-ctl", "snapshot", "release", place, old[0])
    assert run(crew).deleted == [old[0]]
    assert old[0] not in crew.same_everywhere()


def test_what_fails_is_told_and_tried_again_by_the_next_run(crew):
    put(crew, yearly=1)
    crew.volumes[1].unmount()
    done = crew.group("policy", "run", "--all", expect=1)
    assert "was not taken" in done.stderr and "not all volumes can be reached" in done.stderr
    assert "nothing to do" not in done.stdout
    document = json.loads(crew.group("policy", "run", "--all", "--json", expect=1).stdout)
    assert len(document["groups"][0]["failed"]) == 1 and not document["groups"][0]["taken"]
    both = crew.shop.run("raidfs-ctl", "policy", "run", "--all", "--groups", expect=1)
    assert "was not taken" in both.stderr  # as the timer runs it
    assert crew.names(0) == {}
    crew.mount(1)
    crew.settle()
    done = crew.shop.run("raidfs-ctl", "policy", "run", "--all", "--groups")
    assert "take groupsnap_" in done.stdout
    assert len(crew.same_everywhere()) == 1
    assert run(crew).taken == []
    # without those that are away, if that is allowed; then deleting waits until all are back
    put(crew, yearly=0, monthly=1, allow_missing=True)
    crew.volumes[1].unmount()
    ran = run(crew)
    assert len(ran.taken) == 1 and ran.taken[0].endswith("monthly")
    assert len(ran.failed) == 1 and "was not deleted" in ran.failed[0]
    assert "all volumes have to be there" in ran.failed[0]
    crew.mount(1)
    crew.settle()
    ran = run(crew)
    assert (ran.taken, len(ran.deleted), ran.failed) == ([], 1, [])
    assert [len(crew.names(number)) for number in range(3)] == [1, 0, 1]


def test_a_volumes_own_policy_leaves_the_groups_alone(crew):
    """Also where the names would be its own; and the group's leaves the volumes' alone."""
    put(crew, daily=1, prefix="autosnap")
    (taken,) = run(crew).taken
    assert taken.startswith("autosnap_")
    crew.ask(1, PolicySetRequest(fields={"hourly": 1}), PolicyTold)
    told = crew.ask(1, PolicyRunRequest(), PolicyRan)
    assert [name.rpartition("_")[2] for name in told.taken] == ["hourly"]
    assert [verdict.name for verdict in told.verdicts] == told.taken
    assert taken in crew.same_everywhere()
    place = crew.volumes[1].mountpoint
    pruned = crew.shop.run("raidfs-ctl", "snapshot", "prune", "-y", "-v", place)
    assert taken not in pruned.stdout
    put(crew, daily=0, weekly=1)
    assert run(crew).deleted == [taken]
    listed = crew.shop.run("raidfs-ctl", "snapshot", "list", "-H", "-o", "name", place).stdout
    assert told.taken[0] in listed.splitlines()
    crew.ask(1, PolicySetRequest(clear=True), PolicyTold)


def test_it_goes_on_when_the_keeper_leaves(crew):
    put(crew, daily=2)
    keeper = crew.status().volume_id
    crew.group("leave", crew.volumes[0].mountpoint)
    crew.settle(1, 2)
    (now,) = [n for n in (1, 2) if crew.status(n).keeper == crew.status(n).volume_id]
    assert crew.status(now).keeper != keeper
    assert len(run(crew, now).taken) == 1
    assert crew.names(1) == crew.names(2) and len(crew.names(1)) == 1 and crew.names(0) == {}
    with pytest.raises(ControlError, match="is in no group"):
        run(crew, 0)
    # back, and keeper again: the others leave, and come
    crew.group("join", crew.volumes[0].mountpoint, "crew")
    crew.settle()
    for number in (1, 2):
        crew.group("leave", crew.volumes[number].mountpoint)
    crew.settle(0)
    assert crew.told("policy", "show", "crew")["keep"]["daily"] == 2
    # what isn't in the keeper's volume is not its policy's: told by nobody, deleted by nobody
    for number in (1, 2):
        crew.group("join", crew.volumes[number].mountpoint, "crew")
    crew.settle()
    assert run(crew).deleted == []
    for number in (1, 2):
        for name in crew.names(number):
            if name not in crew.names(0):
                place = crew.volumes[number].mountpoint
                crew.shop.run("raidfs-ctl", "snapshot", "delete", "-y", "--force", place, name)
