"""The life of an array by its commands, on real mounts, with verified writes under way."""

import json
import os
import random
import re
import shutil
import threading
from pathlib import Path

import pytest
from commands import ctl, runtime_of, status_of
from mounting import Workshop, run, wait_until
from verified import Writer

from raidfs.daemon import registry

pytestmark = [pytest.mark.mount, pytest.mark.slow]

ZONE = 1 << 20
SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


def member(volume, verb, *words, expect=0):
    """`raidfs-ctl member VERB MOUNTPOINT ...`, without questions."""
    return ctl(volume.shop, "member", verb, "--yes", volume.mountpoint, *words, expect=expect)


def job(volume, verb, *words, expect=0):
    """`raidfs-ctl job VERB MOUNTPOINT ...`"""
    return ctl(volume.shop, "job", verb, volume.mountpoint, *words, expect=expect)


def waited(volume, *words, expect=0):
    """Until all jobs are done; what was said."""
    words = words or ("--timeout", "40")
    return ctl(volume.shop, "wait", volume.mountpoint, *words, expect=expect)


def events(volume):
    return ctl(volume.shop, "events", volume.mountpoint).stdout


def state(volume):
    return status_of(volume).state


def members_of(volume):
    return {each.id: each for each in status_of(volume).members}


def jobs_of(volume):
    return {each.id: each for each in status_of(volume).jobs}


def fill(volume, nbytes, name="filled"):
    """Content to compare later; durable."""
    content = random.Random(f"{SEED} {name}").randbytes(nbytes)
    (volume.mountpoint / name).write_bytes(content)
    ctl(volume.shop, "sync", volume.mountpoint)
    return content


def finish(volume, writer=None, filled=None, source=None):
    """Not from memory: unmounted, checked, mounted again, compared as a whole."""
    ctl(volume.shop, "umount", volume.mountpoint)
    volume.wait_gone()
    ctl(volume.shop, "check", source or volume.members[0])
    volume.mount(source=source)
    if writer is not None:
        writer.compare()
    for name, content in (filled or {}).items():
        assert (volume.mountpoint / name).read_bytes() == content, name
    ctl(volume.shop, "umount", volume.mountpoint)


def places(workshop, kind, count):
    if kind == "directory":
        return workshop.directories(count, prefix="m")
    if kind == "image":
        return workshop.images(count, nbytes=160 << 20, prefix="m")
    return workshop.loop_devices(count, nbytes=160 << 20)


@pytest.mark.parametrize(
    ("kind", "level", "count"), [("directory", "5", 3), ("image", "6", 4), ("loop", "1", 2)]
)
def test_replaced_while_it_is_online_and_when_it_is_lost(workshop, kind, level, count):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    paths = places(workshop, kind, count + 2)
    volume = workshop.volume(paths[:count], level=level, zone_bytes=ZONE, size=160 << 20)
    volume.mount()
    content = fill(volume, 6 << 20)
    root = volume.mountpoint / "busy"
    root.mkdir()
    with Writer(root, SEED) as writer:
        said = member(volume, "replace", "0", paths[count], "--wait").stdout
        assert re.search(r"^replace:0: done", said, re.MULTILINE), said
        assert state(volume) == "ONLINE" and sorted(members_of(volume)) == [*range(1, count + 1)]
        member(volume, "fail", "1")
        told = status_of(volume)
        assert told.state == "DEGRADED" and told.redundancy.lacking > 0
        member(volume, "replace", paths[1], paths[count + 1], "--wait")
    told = members_of(volume)
    assert sorted(told) == [*range(2, count + 2)] and state(volume) == "ONLINE"
    assert {each.path for each in told.values()} == {str(p) for p in paths[2 : count + 2]}
    finish(volume, writer, {"filled": content}, source=paths[count])


@pytest.mark.parametrize("what", ["replace", "remove", "rebuild", "evacuate"])
def test_killed_in_the_middle_it_goes_on(workshop, what):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    paths = workshop.directories(5)
    volume = workshop.volume(paths[:4], level="5", width=3, zone_bytes=ZONE, size=160 << 20)
    volume.mount()
    job(volume, "limit", "1M")
    content = fill(volume, 14 << 20)
    root = volume.mountpoint / "busy"
    root.mkdir()
    name = f"{'evacuate' if what == 'remove' else what}:0"
    with Writer(root, SEED, pause_s=0.05) as writer:
        if what == "replace":
            member(volume, "replace", "0", paths[4])
        elif what == "rebuild":
            member(volume, "fail", "0")
        else:
            member(volume, what, "0")
        wait_until(lambda: jobs_of(volume)[name].done_bytes > 0, "some of it is done")
        volume.kill()
        writer.stop()
        writer.error = None
    volume.mount(source=paths[1])
    told = jobs_of(volume)[name]
    assert (told.limit_bytes_s, told.left_bytes > 0) == (1 << 20, True), told
    job(volume, "limit", "none")
    assert f"{name}: done" in waited(volume).stdout
    assert state(volume) == "ONLINE"
    if what in ("replace", "remove"):
        wait_until(lambda: 0 not in members_of(volume), "0 is none any more")
    else:
        told = members_of(volume)[0]
        assert told.columns == 0 and told.removable
        assert "can be removed" in ctl(volume.shop, "status", volume.mountpoint).stdout
        member(volume, "remove", "0")
        assert 0 not in members_of(volume)
    finish(volume, writer, {"filled": content}, source=paths[1])


def test_offline_and_online_again_gets_what_it_missed(workshop):
    paths = workshop.directories(4)
    volume = workshop.volume(paths[:3], level="5", zone_bytes=ZONE, size=160 << 20)
    volume.mount()
    member(volume, "add", "--spare", paths[3])
    content = fill(volume, 6 << 20)
    root = volume.mountpoint / "busy"
    root.mkdir()
    with Writer(root, SEED) as writer:
        member(volume, "offline", "d1")
        wait_until(lambda: writer.written_bytes > 1 << 20, "something is written meanwhile")
        told = status_of(volume)
        assert told.state == "DEGRADED" and "member online" in told.action
        assert told.members[1].state == "OFFLINE" and told.members[3].role == "spare"
        assert not [each for each in told.jobs if each.kind in ("rebuild", "replace")]
        said = member(volume, "online", "d1", "--wait").stdout
        assert "in use again" in said and "not believed" not in said
    told = status_of(volume)
    assert told.state == "ONLINE"
    assert told.members[1].state == "ONLINE" and not told.members[1].lacking
    assert "MemberOffline" in events(volume) and "MemberBack" in events(volume)
    member(volume, "fail", "d0", "--wait")  # the spare takes over
    assert "SpareActive" in events(volume)
    finish(volume, writer, {"filled": content}, source=paths[1])


def test_missing_at_the_mount_and_plugged_in_again(workshop):
    volume = workshop.volume(3, level="5", zone_bytes=ZONE, size=160 << 20, mounted=True)
    content = fill(volume, 4 << 20)
    volume.unmount()
    away = workshop.directory / "away"
    volume.members[2].rename(away)
    assert "DEGRADED" in ctl(workshop, "status", volume.members[0], expect=1).stdout
    volume.mount("degraded")
    more = fill(volume, 4 << 20, "more")
    refused(member(volume, "online", "2", expect=1), "not found", "--path")
    said = member(volume, "online", "2", "--path", away, "--wait").stdout
    assert "in use again" in said and "not believed" not in said
    told = status_of(volume)
    assert told.state == "ONLINE" and told.members[2].path == str(away)
    finish(volume, None, {"filled": content, "more": more})


def refused(done, *words):
    """One sentence on stderr, with these words in it."""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("raidfs-ctl: "), done.stderr
    for word in words:
        assert re.search(word, lines[0]), f"{word!r} is not in: {lines[0]}"


def test_who_comes_back_is_looked_at_closely(workshop):
    """A copy beside it, another volume's, another member of this one, an empty place: refused.
    Older: nothing of it is believed."""
    volume = workshop.volume(3, level="1", zone_bytes=ZONE, size=100 << 20, mounted=True)
    first = fill(volume, 2 << 20, "first")
    volume.unmount()
    place, old = volume.members[2], workshop.directory / "old"
    shutil.copytree(place, old)
    volume.mount()
    second = fill(volume, 2 << 20, "second")
    member(volume, "offline", "2")

    def back(*words):
        return member(volume, "online", "2", *words, expect=1)

    refused(back("--path", old), "both hold member 2", "copy")
    other = workshop.volume(2, level="1", zone_bytes=ZONE, size=100 << 20)
    refused(back("--path", other.members[0]), "another volume", "replace --force")
    refused(back("--path", volume.members[1]), "is member 1 of this volume, not 2")
    (empty,) = workshop.directories(1, prefix="empty")
    refused(back("--path", empty), "no label", "replace")
    assert not list(empty.iterdir())
    refused(member(volume, "online", "1", expect=1), "online; nothing to do")
    shutil.rmtree(place)
    old.rename(place)
    said = member(volume, "online", "2", "--wait").stdout
    assert "nothing that it holds is believed" in said
    assert state(volume) == "ONLINE" and "MemberRefused" in events(volume)
    finish(volume, None, {"first": first, "second": second})


def test_the_other_half_of_a_mirror_that_went_on_alone(workshop):
    volume = workshop.volume(2, level="1", zone_bytes=ZONE, size=100 << 20, mounted=True)
    content = fill(volume, 2 << 20)
    volume.unmount()
    here, there = volume.members
    away = workshop.directory / "away"
    there.rename(away)
    volume.mount("degraded")
    more = fill(volume, 1 << 20, "more")
    volume.unmount()
    here.rename(workshop.directory / "hidden")
    volume.mount("degraded", source=away)
    fill(volume, 1 << 20, "alone")
    volume.unmount()
    (workshop.directory / "hidden").rename(here)
    away_now = workshop.directory / "other" / "away"  # where no mount would look by itself
    away_now.parent.mkdir()
    away.rename(away_now)
    volume.mount(source=here)
    refused(
        member(volume, "online", "1", "--path", away_now, expect=1),
        "went on by itself",
        "replace --force",
    )
    member(volume, "replace", "--force", "1", away_now, "--wait")
    assert state(volume) == "ONLINE"
    finish(volume, None, {"filled": content, "more": more})


def test_another_one_in_the_place_of_one_that_was_lost(workshop):
    """The volume is found by each of its members, also by one that came later, or is no more."""
    volume = workshop.volume(3, level="5", zone_bytes=ZONE, size=160 << 20, mounted=True)
    content = fill(volume, 4 << 20)
    (new,) = workshop.directories(1, prefix="new")
    member(volume, "add", "--spare", new)
    with runtime_of(workshop):
        assert registry.find_member(new) is not None
    assert "(process" in ctl(workshop, "status", new).stdout
    member(volume, "remove", new)
    with runtime_of(workshop):
        assert registry.find_member(new) is None
    member(volume, "fail", "2")
    shutil.rmtree(volume.members[2])
    assert "(process" in ctl(workshop, "status", volume.members[2], expect=1).stdout
    volume.members[2].mkdir()
    assert "replace:2: done" in member(volume, "replace", "2", volume.members[2], "--wait").stdout
    wait_until(lambda: sorted(members_of(volume)) == [0, 1, 4], "2 is none any more")
    finish(volume, None, {"filled": content})


def test_several_members_leave_in_one_step_and_domains_are_kept_apart(workshop):
    paths = workshop.directories(7)
    volume = workshop.volume(
        paths[:4], level="5", width=3, zone_bytes=ZONE, size=160 << 20,
        domains=["left", "right", "left", "far"],
    )  # fmt: skip
    volume.mount()
    content = fill(volume, 8 << 20)
    assert status_of(volume).redundancy.shared_domains == 0
    member(volume, "add", "--domain", "far", paths[4])
    member(volume, "add", "--domain", "right", *paths[5:7])
    told = json.loads(member(volume, "remove", "-n", "--json", "0", "d1").stdout)
    assert (told["version"], told["done"], told["ids"]) == (1, False, [0, 1])
    assert told["columns"] > 0 and told["usable_bytes"][0] > told["usable_bytes"][1]
    assert sorted(members_of(volume)) == [*range(7)]
    member(volume, "remove", "0", "d1", "--wait")
    wait_until(lambda: sorted(members_of(volume)) == [2, 3, 4, 5, 6], "they are gone")
    assert state(volume) == "ONLINE" and status_of(volume).redundancy.shared_domains == 0
    finish(volume, None, {"filled": content}, source=paths[2])


def test_jobs_are_paused_limited_waited_for_and_given_up(workshop):
    paths = workshop.directories(4)
    volume = workshop.volume(paths, level="5", width=3, zone_bytes=ZONE, size=160 << 20)
    volume.mount()
    content = fill(volume, 8 << 20)
    assert "nothing to wait for" in waited(volume).stdout
    assert "paused" in job(volume, "pause").stdout
    member(volume, "evacuate", "0")
    (told,) = json.loads(waited(volume, "--timeout", "0.2", "--json", expect=3).stdout)["jobs"]
    assert (told["id"], told["state"], told["done_bytes"]) == ("evacuate:0", "paused", 0)
    assert told["left_bytes"] > 0 and "resume" in told["reason"]
    volume.unmount()
    volume.mount()  # it still stands
    assert "paused" in job(volume, "list").stdout
    job(volume, "limit", "rebuild", "1M")
    job(volume, "resume", "evacuate")
    said = waited(volume, "--timeout", "1.5", expect=3).stdout
    assert "running" in said and "limit 1.0 MiB/s" in said
    member(volume, "evacuate", "--cancel", "0")
    assert "evacuate:0" not in job(volume, "list").stdout
    assert state(volume) == "ONLINE" and members_of(volume)[0].role == "data"
    job(volume, "limit", "none")
    refused(job(volume, "pause", "rebuild:77", expect=1), "no job rebuild:77")
    refused(job(volume, "limit", "10", expect=1), "at least 64K")
    member(volume, "evacuate", "0", "--wait")
    told = members_of(volume)[0]
    assert (told.columns, told.role, told.removable) == (0, "evacuating", True)
    member(volume, "spare", "0")
    member(volume, "fail", "1", "--wait")  # and is taken at once
    wait_until(lambda: sorted(members_of(volume)) == [0, 2, 3], "1 is none any more")
    assert state(volume) == "ONLINE"
    finish(volume, None, {"filled": content})


def test_on_a_volume_that_is_not_mounted(workshop):
    volume = workshop.volume(4, level="5", width=3, zone_bytes=ZONE, size=160 << 20, mounted=True)
    content = fill(volume, 4 << 20)
    volume.unmount()

    def here(verb, *words, expect=0):
        return ctl(workshop, "member", verb, "-y", volume.members[1], *words, expect=expect)

    here("domain", "0", "shelf")
    listed = ctl(workshop, "member", "list", "--json", volume.members[1]).stdout
    assert json.loads(listed)["members"][0]["domain"] == "shelf"
    refused(here("domain", "0", "shelf", expect=1), "nothing to do")
    refused(here("spare", "3", expect=1), "columns", "evacuate")
    here("evacuate", "3", "--wait")
    here("spare", "3")
    here("fail", "1", "--wait")  # the one that it was named by; the spare is rebuilt here and now
    listed = ctl(workshop, "member", "list", "--json", volume.members[0]).stdout
    assert [each["id"] for each in json.loads(listed)["members"]] == [0, 2, 3]
    volume.mount()
    finish(volume, None, {"filled": content})


def test_fio_verifies_what_it_writes_while_members_change(workshop):
    assert shutil.which("fio"), "fio is needed here"
    paths = workshop.directories(5)
    volume = workshop.volume(paths[:3], level="5", zone_bytes=ZONE, size=200 << 20)
    volume.mount()
    words = [
        "fio", "--name=v", f"--directory={volume.mountpoint}", "--rw=randwrite", "--bs=16k",
        "--size=16m", "--io_size=40m", "--verify=crc32c", "--do_verify=1", "--fallocate=none",
        "--rate=12m", "--randseed=7", "--verify_fatal=1",
    ]  # fmt: skip
    done = {}
    thread = threading.Thread(
        target=lambda: done.update(fio=run(*words, expect=None, cwd=workshop.directory))
    )
    thread.start()
    try:
        wait_until(lambda: list(Path(volume.mountpoint).glob("v*")), "fio has begun")
        member(volume, "replace", "0", paths[3], "--wait")
        member(volume, "fail", "1")
        member(volume, "replace", "1", paths[4], "--wait")
    finally:
        thread.join()
    assert done["fio"].returncode == 0, done["fio"].stdout + done["fio"].stderr
    assert state(volume) == "ONLINE"
    finish(volume, source=paths[2])


# -- what users get wrong --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One mounted volume of four members for all tests below; none changes anything."""
    with Workshop(tmp_path_factory.mktemp("members")) as shop:
        volume = shop.volume(4, level="5", zone_bytes=ZONE, size=100 << 20, mounted=True)
        content = fill(volume, 4 << 20)
        (shop.directory / "twin").mkdir()
        yield volume
        assert state(volume) == "ONLINE" and sorted(members_of(volume)) == [0, 1, 2, 3]
        finish(volume, None, {"filled": content})


WRONG = {
    "no such member": (["fail", "9"], ["9 is no member", "members are: 0 "]),
    "twice": (["fail", "1", "v0d1"], ["named twice"]),
    "too many at once": (["fail", "1", "2"], ["data would be lost", r"[0-9]+ of [0-9]+ zones"]),
    "offline beyond": (["offline", "1", "2"], ["data would be lost"]),
    "all": (["fail", "0", "1", "2", "3"], ["nothing would remain"]),
    "too narrow": (["remove", "1"], ["leave 3 members", "4 wide", "convert"]),
    "empty too narrow": (["evacuate", "1"], ["leave 3 members", "add 1 first"]),
    "not evacuated": (["evacuate", "--cancel", "1"], ["not being emptied"]),
    "no place": (["add", "/nonexistent/place"], ["/nonexistent/place"]),
    "a member already": (["add", "{0}"], ["is member 0 of this volume already|label"]),
    "below the mount": (["add", "{mnt}/sub"], ["below the mountpoint"]),
    "replaced by itself": (["replace", "1", "1"], ["can't replace itself"]),
    "replaced by another": (["replace", "1", "2"], ["is in use"]),
    "too small": (["replace", "1", "{twin}", "--size", "6M"], ["too small"]),
    "one old twice": (["replace", "1", "{twin}", "1", "{twin}"], ["named twice"]),
    "no spare": (["spare", "--no", "1"], ["is no spare"]),
    "has columns": (["spare", "1"], ["holds [0-9]+ columns?", "evacuate"]),
    "domain too long": (["domain", "1", "x" * 64], ["at most 63"]),
    "domain odd": (["domain", "1", "a\nb"], ["failure domain"]),
    "in no domain already": (["domain", "1", "-"], ["nothing to do"]),
    "online already": (["online", "1"], ["nothing to do"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_with_a_sentence_and_nothing_changed(shared, case):
    words, said = WRONG[case]
    names = {"mnt": shared.mountpoint, "twin": shared.shop.directory / "twin"}
    words = [word.format(*shared.members, **names) for word in words]
    if case == "below the mount":
        (shared.mountpoint / "sub").mkdir(exist_ok=True)
    labels = [(path / "label").read_bytes() for path in shared.members]
    refused(member(shared, *words, expect=1), *said)
    assert [(path / "label").read_bytes() for path in shared.members] == labels
    assert not list((shared.shop.directory / "twin").iterdir())


def test_without_a_yes_nothing_is_done(shared):
    labels = [(path / "label").read_bytes() for path in shared.members]
    done = shared.shop.run("raidfs-ctl", "member", "fail", shared.mountpoint, "1", expect=1)
    assert "nothing was changed" in done.stderr and "columns" in done.stderr
    done = ctl(shared.shop, "member", "replace", shared.mountpoint, "1", expect=2)
    assert "no NEW" in done.stderr
    assert [(path / "label").read_bytes() for path in shared.members] == labels


def test_waiting_for_what_is_not_there(shared):
    refused(waited(shared, "nosuch", expect=1), "no job nosuch")
    assert "nothing to wait for" in waited(shared, "rebuild").stdout
    done = ctl(shared.shop, "wait", shared.shop.directory, expect=1)
    refused(done, "neither the mountpoint")


def test_who_was_lost_and_holds_nothing_any_more_is_listed_until_removed(workshop):
    """As spread over the others; in text, JSON, exit codes; also when it is not mounted."""
    volume = workshop.volume(5, level="5", width=3, zone_bytes=ZONE, size=160 << 20, mounted=True)
    content = fill(volume, 6 << 20)
    member(volume, "fail", "2", "--wait")
    for where in (volume.mountpoint, volume.members[0]):
        if where != volume.mountpoint:
            volume.unmount()
        told = json.loads(ctl(workshop, "status", "--json", where, expect=0).stdout)
        assert (told["state"], told["redundancy"]["lacking"]) == ("ONLINE", 0)
        assert told["redundancy"]["losses_left"] == 1
        gone = told["members"][2]
        assert (gone["state"], gone["columns"], gone["removable"]) == ("FAILED", 0, True)
        assert [each["removable"] for each in told["members"]].count(True) == 1
        text = " ".join(ctl(workshop, "status", where, expect=0).stdout.split())
        assert "Member 2 is lost and holds nothing any more: all data is whole" in text
        assert "holds nothing, can be removed" in text and "takes it off the list" in text
        assert "all volumes are ONLINE" in ctl(workshop, "status", "-x", where, expect=0).stdout
        listed = ctl(workshop, "member", "list", where).stdout.splitlines()[3]
        assert re.search(r"^ *2 .* FAILED +data +- +0 .*can be removed$", listed), listed
        assert "4 + 1 lost" in ctl(workshop, "list", volume.members[0]).stdout
    volume.mount()
    said = member(volume, "remove", "2")
    assert "is no member any more" in said.stdout
    told = status_of(volume)
    assert [each.id for each in told.members] == [0, 1, 3, 4] and not told.status
    assert " lost" not in ctl(workshop, "list").stdout
    finish(volume, None, {"filled": content})
