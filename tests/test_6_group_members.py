"""Who is in a group, on real mounts: leaving, being taken out, another keeper, certificates.

The tests share the mounts of a module, each with a group of its own; all are checked at the end.
"""

import os
import re
import socket
import subprocess
import time

import pytest
from groups import ControlError, Crew, wait_until
from mounting import BIN, Workshop

from raidfs.cli.group import _certificate_lines, _gate_lines, _quantile_us
from raidfs.daemon.group_requests import (
    GateFigures,
    GroupAdoptRequest,
    GroupExpelRequest,
    GroupInitRequest,
    GroupLeaveRequest,
    GroupLeft,
    GroupListed,
    GroupListRequest,
    GroupResolveRequest,
    GroupStatus,
    GroupTakeOverRequest,
    PeerTold,
)
from raidfs.group.authority import Authority
from raidfs.group.charter import Charter, Member
from raidfs.group.keys import PENDING_KEY, VOLUME_FILE, Credentials, install, new_request

pytestmark = [pytest.mark.mount, pytest.mark.slow]  # several volumes are mounted

DAY_S = 86400


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Workshop(tmp_path_factory.mktemp("members")) as shop:
        made = Crew(shop, count=4)
        yield made
        made.finish()


@pytest.fixture
def crew(shared):
    """All are mounted, and in no group."""
    mount_all(shared)
    yield shared
    mount_all(shared)
    for number in range(len(shared.volumes)):
        status = shared.status(number)
        if status.group or status.out:
            wait_until(lambda number=number: not shared.status(number).works, "works are over")
            shared.ask(number, GroupLeaveRequest(force=True), GroupLeft)


def mount_all(crew):
    for number, volume in enumerate(crew.volumes):
        if volume.pid is None:
            crew.mount(number)


def gather(crew, *numbers):
    """A group of these, the first its keeper, made as `group init` makes it."""
    told = [crew.status(number) for number in numbers]
    others = tuple(Member(one.volume_id, one.volume) for one in told[1:])
    charter = crew.ask(numbers[0], GroupInitRequest(name="crew", others=others), Charter)
    for number in numbers[1:]:
        crew.ask(number, GroupAdoptRequest(charter=charter), Charter)
    crew.settle(*numbers)
    return charter


def listed(crew, number):
    """By name: state, and the names of those that lack it."""
    found = crew.ask(number, GroupListRequest(everywhere=True), GroupListed)
    return {
        one.name: (one.state, [part.name for part in one.parts if part.state == "LACKING"])
        for one in found.snapshots
    }


def place(crew, number):
    return crew.volumes[number].mountpoint


def called(crew, number):
    return crew.status(number).volume


def taken_out(crew, number):
    """It has heard so; what it says."""
    wait_until(lambda: crew.status(number).out, "the volume hears that it is out", 30)
    status = crew.status(number)
    assert status.group == "" and not status.members
    return status.out


# -- parts ----------------------------------------------------------------------------------------


def test_a_part_that_is_gone_is_told_by_all_and_the_rest_swept_up(crew):
    gather(crew, 0, 1, 2)
    for name in ("one", "two"):
        assert crew.snapshot(name).state == "committed"
    shop, here = crew.shop, place(crew, 1)
    for words in (("delete", "-y", here, "one"), ("rename", here, "one", "uno")):
        refused = shop.run("raidfs-ctl", "snapshot", *words, expect=1)
        assert "group delete" in refused.stderr and "INCOMPLETE" in refused.stderr
    assert {name: state for name, (state, _) in listed(crew, 2).items()} == {
        "one": "complete",
        "two": "complete",
    }
    shop.run("raidfs-ctl", "snapshot", "delete", "-y", "--force", here, "one")
    lacking = [called(crew, 1)]
    for number in range(3):  # also who has no part of it
        assert listed(crew, number) == {"one": ("INCOMPLETE", lacking), "two": ("complete", [])}
    text = crew.group("list", str(here)).stdout
    assert f"INCOMPLETE: {lacking[0]}" in text and "complete" in text
    assert "LACKING" in crew.group("show", "crew", "one").stdout
    refused = crew.group("rollback", "-y", "crew", "one", expect=1)
    assert "nothing was done in any volume" in refused.stderr and lacking[0] in refused.stderr
    crew.group("delete", "-y", "crew", "one")
    assert [sorted(crew.names(number)) for number in range(3)] == [["two"]] * 3
    # away is not lacking, and left out isn't either
    crew.volumes[2].unmount()
    assert crew.snapshot("three", allow_missing=True).state == "committed"
    assert listed(crew, 0) == {"two": ("unknown", []), "three": ("complete", [])}
    text = crew.group("list", str(here)).stdout
    assert "unknown: " in text and ", without " in text
    refused = crew.group("status", "crew", expect=1)
    assert "AWAY since " in refused.stdout and refused.stdout.count("AWAY") == 1
    crew.mount(2)
    crew.settle(0, 1, 2)
    assert listed(crew, 2)["two"] == ("complete", [])


def test_what_is_told_of_gates_and_certificates():
    bounds = (100, 1000, 10_000)
    gate = GateFigures(bounds, (98, 1, 1, 0), 4321, 0)
    assert (_quantile_us(gate, 0.5), _quantile_us(gate, 0.99)) == (100, 1000)
    (line,) = _gate_lines(gate)
    assert "100 times" in line and "0.1 ms" in line and "1 ms" in line and "4.32 ms" in line
    assert _gate_lines(GateFigures(bounds, (0, 0, 0, 0), 0)) == []
    assert _quantile_us(GateFigures(bounds, (0, 0, 0, 2), 99_000), 0.5) == 99_000

    def status(ends_s, authority_ends_s=10**10):
        member = PeerTold("0a" * 16, "orders", (), True, "", True, 0, ends_s)
        return GroupStatus(
            "orders", "0a" * 16, "shop", "", "", 1, 500, [member], [], "", "", [], [], gate, {}, 0,
            0, authority_ends_s=authority_ends_s,
        )  # fmt: skip

    now = 1_800_000_000
    assert "good until" in _certificate_lines(status(now + 31 * DAY_S), now)[0]
    assert "WARNING: the certificate of orders ends in 29 days" in "".join(
        _certificate_lines(status(now + 29 * DAY_S), now)
    )
    assert "has ended" in _certificate_lines(status(now - 1), now)[0]
    assert _certificate_lines(status(None), now) == []
    assert "authority ends" in _certificate_lines(status(None, now + DAY_S), now)[0]


# -- being taken out ------------------------------------------------------------------------------


def by_id(crew, numbers):
    """The volume with the smaller id connects: both ways have to be tried."""
    return sorted(numbers, key=lambda number: crew.status(number).volume_id)


def test_who_was_expelled_hears_it_when_it_is_back_and_may_join_again(crew):
    first, keeper, last = by_id(crew, range(3))
    gather(crew, keeper, first, last)
    crew.snapshot("before")
    for number in (first, last):
        name, where = called(crew, number), place(crew, number)
        refused = crew.group("expel", "-y", "crew", name, expect=1)
        assert "can be reached" in refused.stderr and "--force" in refused.stderr
        assert "no member" in crew.group("expel", "-y", "crew", "nobody", expect=1).stderr
        with pytest.raises(ControlError, match="the keeper can't expel itself"):
            crew.ask(keeper, GroupExpelRequest(volume=called(crew, keeper)), Charter)
        crew.volumes[number].unmount()
        assert "not confirmed" in crew.group("expel", "crew", name, expect=1).stderr
        crew.group("expel", "-y", "crew", name)
        assert len(crew.status(keeper).members) == 2
        assert crew.snapshot(f"without-{number}", keeper).state == "committed"
        crew.mount(number)
        told = taken_out(crew, number)
        assert "not in group 'crew' any more" in told and "group join" in told
        for words in (("status", where), ("snapshot", where, "s"), ("list", where)):
            assert "not in group 'crew' any more" in crew.group(*words, expect=1).stderr
        assert told in crew.group("status", expect=1).stdout
        assert set(crew.names(number)) >= {"before"}
        crew.volumes[number].unmount()  # it stays so
        crew.mount(number)
        assert crew.status(number).out == told
        crew.group("join", where, "crew")
        assert crew.status(number).out == ""
        crew.settle(first, keeper, last)
    assert crew.snapshot("again", last).state == "committed"
    assert {len(crew.status(number).members) for number in range(3)} == {3}


def test_a_volume_that_only_a_force_takes_out(crew):
    gather(crew, 0, 1)
    crew.group("expel", "-y", "--force", "crew", called(crew, 1))
    assert "any more" in taken_out(crew, 1)
    crew.group("leave", place(crew, 1))  # an end of it
    assert crew.status(1).out == ""
    assert "is in no group" in crew.group("leave", place(crew, 1), expect=1).stderr


# -- another keeper -------------------------------------------------------------------------------


def test_another_keeper_when_the_first_is_gone_for_good(crew):
    first, keeper, third, last = by_id(crew, range(4))
    gather(crew, keeper, first, third, last)
    crew.group("policy", "set", "crew", "--daily", "3")
    where = place(crew, third)
    refused = crew.group("take-over", "-y", where, expect=1)
    assert "can be reached; it hands over by leaving" in refused.stderr
    refused = crew.group("take-over", "-y", place(crew, keeper), expect=1)
    assert "is the keeper of group crew already" in refused.stderr
    crew.volumes[keeper].kill()
    wait_until(lambda: not all(m.up for m in crew.status(first).members), "it is missed", 20)
    wait_until(lambda: not all(m.up for m in crew.status(last).members), "it is missed", 20)
    refused = crew.group("leave", where, expect=1)
    assert "take-over" in refused.stderr and "--force" in refused.stderr
    assert "not confirmed" in crew.group("take-over", where, expect=1).stderr
    crew.group("take-over", "-y", where)
    crew.settle(first, third, last)
    for number in (first, third, last):
        status = crew.status(number)
        assert status.keeper == crew.status(third).volume_id and len(status.members) == 3
        assert status.version_of_members > 1000
    assert crew.snapshot("new", first).state == "committed"
    assert crew.told("policy", "show", str(where))["keep"]["daily"] == 3
    crew.group("leave", place(crew, first))  # the new one keeps the list
    crew.mount(keeper)
    assert called(crew, third) in taken_out(crew, keeper)
    crew.group("join", place(crew, keeper), "crew")
    crew.settle(keeper, third, last)
    assert crew.snapshot("all", keeper).state == "committed"


def test_no_majority_no_keeper_but_by_force(crew):
    gather(crew, 0, 1)
    crew.volumes[0].unmount()
    wait_until(lambda: not all(m.up for m in crew.status(1).members), "it is missed", 20)
    with pytest.raises(ControlError, match="1 of 2 members agree, which is no majority"):
        crew.ask(1, GroupTakeOverRequest(), Charter)
    assert crew.status(1).keeper != crew.status(1).volume_id
    charter = crew.ask(1, GroupTakeOverRequest(force=True), Charter)
    assert charter.keeper == crew.status(1).volume_id and len(charter.members) == 1
    crew.mount(0)
    taken_out(crew, 0)


# -- what is promised, and what isn't -------------------------------------------------------------


def test_promises_come_first_and_are_decided_by_a_person(crew):
    """The initiator dies between all promises and its decision."""
    gather(crew, 0, 1, 2)
    assert crew.snapshot("calm").state == "committed"
    crew.volumes[0].unmount()
    crew.mount(0, "group.before-decide")
    crew.settle(0, 1, 2)
    with pytest.raises((ControlError, OSError)):
        crew.snapshot("doubtful")
    wait_until(lambda: not crew.volumes[0]._daemons(), "the initiator dies", 20)
    crew.shop.run("umount", "-l", place(crew, 0), expect=None)
    crew.volumes[0].pid = None
    wait_until(lambda: not all(m.up for m in crew.status(1).members), "it is missed", 20)
    (doubt,) = crew.status(1).running
    assert (doubt.name, doubt.phase) == ("doubtful", "prepared")
    for words in (("leave", "--force", place(crew, 1)), ("take-over", "-y", place(crew, 1))):
        refused = crew.group(*words, expect=1).stderr
        assert f"snapshot doubtful (id {doubt.id})" in refused and "group resolve" in refused
    assert len(crew.status(1).running) == 1
    crew.group("resolve", "-y", str(place(crew, 2)), doubt.id, "abort")
    with pytest.raises(ControlError, match="not yet decided"):
        crew.ask(1, GroupTakeOverRequest(), Charter)
    crew.group("resolve", "-y", str(place(crew, 1)), doubt.id, "abort")
    crew.group("leave", "--force", place(crew, 1))
    assert crew.status(1).group == "" and set(crew.names(1)) >= {"calm"}
    assert "doubtful" not in crew.names(1)
    # what died undecided is told so when it is back, and hears who is out
    crew.mount(0)
    wait_until(lambda: not crew.status(0).running, "its own is given up", 20)
    assert "doubtful" not in crew.names(0)


def test_in_doubt_and_taken_out(crew):
    """Then there is no group to ask any more: a person decides, with the same command."""
    gather(crew, 0, 1, 2)
    crew.volumes[0].unmount()
    crew.mount(0, "group.before-decide")
    crew.settle(0, 1, 2)
    with pytest.raises((ControlError, OSError)):
        crew.snapshot("open")
    wait_until(lambda: not crew.volumes[0]._daemons(), "the initiator dies", 20)
    crew.shop.run("umount", "-l", place(crew, 0), expect=None)
    crew.volumes[0].pid = None
    crew.volumes[1].unmount()
    (doubt,) = crew.status(2).running
    wait_until(lambda: not all(m.up for m in crew.status(2).members), "they are missed", 20)
    crew.ask(2, GroupResolveRequest(snapshot=doubt.id, commit=True), GroupStatus)
    crew.ask(2, GroupTakeOverRequest(force=True), Charter)  # without 0, and 1 doesn't hear it
    crew.ask(2, GroupExpelRequest(volume=called_unmounted(crew, 2, 1)), Charter)
    crew.mount(1)
    taken_out(crew, 1)
    assert [one.name for one in crew.status(1).running] == ["open"]
    for words in (("leave", place(crew, 1)), ("join", place(crew, 1), "crew")):
        assert doubt.id in crew.group(*words, expect=1).stderr
    assert len(crew.status(2).members) == 1, "who was refused is no member of theirs either"
    crew.group("resolve", "-y", str(place(crew, 1)), doubt.id, "commit")
    assert "open" in crew.names(1) and crew.status(1).running == []
    crew.group("join", place(crew, 1), "crew")
    crew.settle(1, 2)
    assert listed(crew, 2)["open"][0] == "complete"
    crew.mount(0)


def called_unmounted(crew, asked, number):
    """The id of a volume that is away, as another knows it."""
    place_of = str(crew.volumes[number].members[0])
    status = crew.status(asked)
    ids = {one.volume for one in status.members} - {status.volume_id}
    label = crew.shop.run("raidfs-ctl", "status", "--json", place_of, expect=None).stdout
    (found,) = [one for one in ids if one in label]
    return found


def moved_until(crew, point):
    """From 0 to 1, whose daemon dies at that point; the command, which still waits."""
    crew.volumes[1].unmount()
    crew.mount(1, point)
    crew.settle(0, 1)
    (place(crew, 0) / "letter").write_text("dear all")
    words = [BIN / "raidfs-ctl", "mv", place(crew, 0) / "letter", place(crew, 1)]
    done = subprocess.Popen(words, env=crew.shop.env, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: not crew.volumes[1]._daemons(), "the target dies", 20)
    crew.shop.run("umount", "-l", place(crew, 1), expect=None)
    crew.volumes[1].pid = None
    wait_until(lambda: not all(m.up for m in crew.status(0).members), "it is missed", 20)
    return done


def test_who_leaves_keeps_what_was_not_given_and_decides_on_what_was(crew):
    gather(crew, 0, 1)
    letter = place(crew, 0) / "letter"
    moving = moved_until(crew, "move.before-stage")
    refused = crew.group("leave", place(crew, 0), expect=1).stderr
    assert "move of letter" in refused and "--force" in refused
    crew.group("leave", "--force", place(crew, 0))
    assert "the volume leaves the group" in moving.communicate(timeout=30)[1]
    assert moving.returncode == 1 and letter.read_text() == "dear all"
    crew.mount(1)
    crew.ask(1, GroupLeaveRequest(force=True), GroupLeft)  # what has not all come is dropped
    assert os.listdir(place(crew, 1)).count("letter") == 0
    # given: nobody but the other one knows, or a person
    gather(crew, 0, 1)
    moving = moved_until(crew, "move.before-link")
    wait_until(lambda: not letter.exists(), "it is given", 20)
    refused = crew.group("leave", "--force", place(crew, 0), expect=1).stderr
    assert "not yet decided: move of letter (id " in refused and "group resolve" in refused
    number = re.search("id ([0-9a-f]{32})", refused)[1]
    moving.kill()
    moving.communicate()
    crew.mount(1)
    crew.settle(0, 1)
    assert (place(crew, 1) / "letter").read_text() == "dear all"
    crew.group("leave", "--force", place(crew, 0))
    assert not letter.exists() and number


def test_a_group_built_anew_can_use_the_old_snapshots(crew):
    gather(crew, 0, 1)
    files = [place(crew, number) / "file" for number in (0, 1)]
    for file in files:
        file.write_text("old")
    crew.snapshot("treasure")
    for file in files:
        file.write_text("new")
    for number in (0, 1):
        crew.ask(number, GroupLeaveRequest(force=True), GroupLeft)
    gather(crew, 1, 0)
    assert listed(crew, 0)["treasure"] == ("complete", [])
    crew.group("rollback", "-y", "--keep", "after", "crew", "treasure")
    assert [file.read_text() for file in files] == ["old", "old"]
    crew.group("delete", "-y", "crew", "treasure")
    assert "treasure" not in {**crew.names(0), **crew.names(1)}


# -- certificates ---------------------------------------------------------------------------------


def listen():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"tcp:127.0.0.1:{one.getsockname()[1]}"


def certificate_of_another_time(crew, number, keeper, days_left):
    """Signed as it would have been a year ago, less so many days."""
    directory = crew.shop.directory / "state/groups"
    began_s = time.time() - (365 - days_left) * DAY_S
    authority = Authority(directory / keeper / "authority", clock=lambda: began_s)
    keys = directory / number / "keys"
    certificate = authority.reissue(number, new_request(keys, number))
    install(keys, number, certificate, authority.certificate)
    assert Credentials.load(keys).expires_s == pytest.approx(
        time.time() + days_left * DAY_S, abs=60
    )
    return keys


def days_left(crew, keeper, volume):
    """As the keeper tells it."""
    (ends_s,) = [
        one.certificate_ends_s for one in crew.status(keeper).members if one.volume == volume
    ]
    return (ends_s - time.time()) / DAY_S


def test_certificates_are_renewed_in_time_and_by_a_token_after_it(crew):
    places = [place(crew, number) for number in (0, 1)]
    crew.group("init", "crew", places[0], "--listen", listen())
    token = crew.group("invite", "crew").stdout.strip()
    crew.group("join", places[1], token, "--listen", listen())
    crew.settle(0, 1)
    ids = [crew.status(number).volume_id for number in (0, 1)]
    assert all(days_left(crew, 0, one) > 360 for one in ids)
    # both are due when they are mounted: renewed by themselves, over the link
    for number in (0, 1):
        crew.volumes[number].unmount()
    keys = [certificate_of_another_time(crew, one, ids[0], 100) for one in ids]
    old = [(one / VOLUME_FILE).read_bytes() for one in keys]
    for number in (0, 1):
        crew.mount(number)
    crew.settle(0, 1)
    for one in ids:
        wait_until(lambda one=one: days_left(crew, 0, one) > 360, "it is renewed", 30)
    wait_until(lambda: not any((one / PENDING_KEY).exists() for one in keys), "all is in use")
    assert all(
        (one / VOLUME_FILE).read_bytes() != before for one, before in zip(keys, old, strict=True)
    )
    assert crew.snapshot("s").state == "committed"
    # one that isn't due stays
    now = [(one / VOLUME_FILE).read_bytes() for one in keys]
    for number in (0, 1):
        crew.volumes[number].unmount()
        crew.mount(number)
    crew.settle(0, 1)
    assert [(one / VOLUME_FILE).read_bytes() for one in keys] == now
    # ended: the keeper's own is replaced, the other's says what to do
    for number in (0, 1):
        crew.volumes[number].unmount()
    for one in ids:
        certificate_of_another_time(crew, one, ids[0], -1)
    for number in (0, 1):
        crew.mount(number)
    wait_until(lambda: days_left(crew, 0, ids[0]) > 360, "the keeper has renewed its own", 30)
    told = crew.group("status", str(places[1]), expect=1).stdout
    assert "has ended" in told and "group join --renew" in told and "group invite" in told
    wait_until(lambda: not crew.status(0).trouble, "the keeper listens again", 30)
    token = crew.group("invite", str(places[0])).stdout.strip()
    assert "takes a token" in crew.group("join", "--renew", places[1], "crew", expect=1).stderr
    crew.group("join", "--renew", places[1], token)
    crew.settle(0, 1)
    assert days_left(crew, 0, ids[1]) > 360
    assert crew.snapshot("t", 1).state == "committed"
    # nobody but the keeper can sign, so nobody can take over
    crew.volumes[0].unmount()
    wait_until(lambda: not all(m.up for m in crew.status(1).members), "it is missed", 20)
    refused = crew.group("take-over", "-y", "--force", places[1], expect=1).stderr
    assert "authority" in refused and "build the group anew" in refused
    # expelled, it is told so over TLS
    crew.volumes[1].unmount()
    crew.mount(0)
    crew.group("expel", "-y", str(places[0]), ids[1])
    crew.mount(1)
    assert "any more" in taken_out(crew, 1)


# -- what users get wrong -------------------------------------------------------------------------


def refused(done, *words):
    """One sentence, with these words in it."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("raidfs-ctl: "), done.stderr
    assert "Error" not in lines[0] and "errno" not in lines[0].lower(), lines
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


def test_wrong_arguments_are_one_sentence_and_change_nothing(crew):
    gather(crew, 0, 1)
    inside, outside = place(crew, 0), place(crew, 3)
    unmounted = crew.shop.directories(1, prefix="plain")[0]
    before = [crew.status(number) for number in (0, 1, 3)]
    alone = [[verb, outside] for verb in ("leave", "take-over", "status", "list", "check", "wait")]
    for words in (*alone, ["invite", outside], ["snapshot", outside, "s"], ["show", outside, "s"],
                  ["policy", "show", outside], ["policy", "run", outside],
                  ["policy", "set", outside, "--daily", "1"], ["expel", outside, "x"]):  # fmt: skip
        refused(crew.group(*words, expect=1), "is in no group")
    for words in (["leave", unmounted], ["take-over", unmounted], ["join", unmounted, "crew"],
                  ["status", unmounted], ["policy", "show", unmounted], ["init", "x", unmounted],
                  ["resolve", "-y", unmounted, "00", "abort"]):  # fmt: skip
        refused(crew.group(*words, expect=1), str(unmounted))
    for words in (["status"], ["list"], ["invite"], ["policy", "show"], ["policy", "run"]):
        refused(crew.group(*words, "nosuch", expect=1), "is in a group 'nosuch'")
    told = {
        ("init", "x", inside): "in group 'crew' already",
        ("init", "x", outside, outside): "named twice",
        ("init", "a/b", outside): "can't be the name of a group",
        ("init", "x", outside, "--gate-timeout", "0"): "1 to ",
        ("init", "x", outside, "--listen", "10.0.0.1"): "no address",
        ("init", "x", outside, "--listen", "tcp::0"): "name host and port",
        ("join", inside, "crew"): "in group 'crew' already",
        ("join", outside, "nosuch"): "is in a group 'nosuch'",
        ("join", outside, "crew", "--listen", "tcp:h:1"): "joins by a token",
        ("join", outside, "raidfs-join:AAAA", "--listen", "tcp:h:1"): "copy it whole",
        ("join", "--renew", inside, "raidfs-join:AAAA"): "no certificate that could be renewed",
        ("invite", "crew"): "on one host",
        ("expel", "-y", "crew", "nosuch"): "no member of group crew; its members: ",
        ("show", "crew", "nosuch"): "no group snapshot 'nosuch'",
        ("delete", "-y", "crew", "nosuch"): "no group snapshot 'nosuch'",
        ("rollback", "-y", "crew", "nosuch"): "no group snapshot 'nosuch'",
        ("resolve", "-y", "crew", "zz", "abort"): "no id",
        ("resolve", "-y", "crew", "00" * 16, "abort"): "makes no sense",
        ("snapshot", "crew", "a/b"): "a/b",
        ("snapshot", "crew", b"\xff"): "not UTF-8",
        ("delete", "-y", "crew", b"\xff"): "not UTF-8",
        ("policy", "set", "crew", "--prefix", b"\xff", "--daily", "1"): "not UTF-8",
        ("policy", "run"): "name the groups",
    }
    for words, sentence in told.items():
        refused(crew.group(*map(_decoded, words), expect=1), sentence)
    for words in (["expel", "crew"], ["policy", "set", "crew", "--daily", "x"], ["take-over"]):
        assert "Usage: " in crew.group(*words, expect=2).stderr
    for number, status in zip((0, 1, 3), before, strict=True):
        now = crew.status(number)
        assert (now.group, now.version_of_members) == (status.group, status.version_of_members)


def _decoded(word):
    return os.fsdecode(word) if isinstance(word, bytes) else word
