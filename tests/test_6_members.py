"""What is asked of members and jobs, without a mount: words, plans in numbers, who is believed, and
the words for a volume that lost some."""

import msgspec
import pytest
import trio
from checking import run_check
from volumes import ROOT as CALLER
from volumes import content, make_members, mounted

from raidfs.cli.job_lines import duration_text, exit_code, job_line
from raidfs.cli.status import status_lines
from raidfs.daemon.condition import store_condition, unreadable_without
from raidfs.daemon.job_service import JobService
from raidfs.daemon.jobs import Job
from raidfs.daemon.member_back import NotBelieved, judge
from raidfs.daemon.member_plans import fit, require_fit, require_survival
from raidfs.daemon.member_requests import (
    JobWaitRequest,
    MemberEvacuateRequest,
    MemberFailRequest,
    MemberRemoveRequest,
    find_entry,
    require_entries,
    require_entry,
)
from raidfs.daemon.members import MemberService
from raidfs.daemon.status import Condition, Redundancy, describe
from raidfs.errors import OutOfSpace, UsageError
from raidfs.raid.label import Label, MemberEntry, Parameters

GENERATIONS = [(number, f"{number:016x}") for number in range(70, 134)]


def label(*members, width=3):
    members = list(members) or [
        MemberEntry(n, "directory", f"/srv/shelf{n % 2}/d{n}", 99, 1 << 30) for n in range(4)
    ]
    parameters = Parameters("5", width, 4096, 1 << 20, 1 << 24, 1 << 24, 0)
    number, ident = GENERATIONS[-1]
    return Label("ab" * 16, "tank", 0, number, ident, GENERATIONS, members, parameters, 9)


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "cwd", "number"),
    [("2", "/", 2), ("/srv/shelf0/d2", "/", 2), ("d2", "/srv/shelf0", 2), ("d3", "/", 3),
     ("../shelf1/d1", "/srv/shelf0", 1), ("7", "/", None), ("d", "/", None), ("", "/", None)],
)  # fmt: skip
def test_a_member_is_a_number_a_path_or_the_end_of_one(word, cwd, number):
    found = find_entry(label().members, word, cwd)
    assert (found.id if found else None) == number


def test_a_word_that_means_nobody_or_two():
    entries = label().members
    with pytest.raises(UsageError, match="its members are: 0 /srv/shelf0/d0, 1 "):
        require_entry(entries, "d9")
    twins = [*entries, MemberEntry(8, "directory", "/mnt/d1", 99, 1 << 30)]
    with pytest.raises(UsageError, match="may mean members 1 /srv/shelf1/d1 and 8 /mnt/d1"):
        require_entry(twins, "d1")
    with pytest.raises(UsageError, match="named twice"):
        require_entries(entries, ["1", "d1"])
    with pytest.raises(UsageError, match="at least one"):
        require_entries(entries, [])


# -- who is believed -------------------------------------------------------------------------------

FOUND = {
    "another volume": ({"volume_id": "cd" * 16}, "another volume, tank"),
    "another member": ({"member_id": 3}, "is member 3 of this volume, not 2"),
    "a copy": ({}, "it is a copy"),
    "went on alone": ({"generation_id": "f" * 16}, "went on by itself"),
    "too old to tell": ({"generation": 5, "generation_id": "5" * 16}, "nobody can tell"),
}


@pytest.mark.parametrize("case", FOUND)
def test_who_is_not_believed_and_why(case):
    changes, said = FOUND[case]
    newest = label()
    found = msgspec.structs.replace(newest, **{"member_id": 2, **changes})
    found = msgspec.structs.replace(
        found, history=[*GENERATIONS[:-1], (found.generation, found.generation_id)]
    )
    with pytest.raises(NotBelieved, match=said):
        judge(newest, newest.members[2], "/srv/shelf0/d2", found)


def test_an_older_label_of_the_same_line_may_be_believed():
    newest = label()
    number, ident = GENERATIONS[-5]
    found = msgspec.structs.replace(
        newest, member_id=2, generation=number, generation_id=ident, history=GENERATIONS[:-4]
    )
    judge(newest, newest.members[2], "/srv/shelf0/d2", found)


# -- plans -----------------------------------------------------------------------------------------


async def write(volume, name, nbytes):
    ino = volume.create(1, name, 0o644, 2, CALLER).ino
    await volume.write(ino, 0, bytes(name) * (nbytes // len(name)))
    volume.release(ino)
    await volume.store.commit()


@pytest.mark.trio
async def test_plans_count_columns_and_room(tmp_path):
    paths = make_members(tmp_path, 4, "5", width=3, size_bytes=24 << 20)
    async with mounted(paths) as volume:
        store = volume.store
        await write(volume, b"x", 10 << 20)
        assert not unreadable_without(store, {0})
        lost = unreadable_without(store, {0, 1})
        assert lost and all({0, 1} <= {m for m, _ in zone.map.columns} for zone in lost)
        with pytest.raises(UsageError, match=rf"{len(lost)} of [0-9]+ zones could not be read"):
            require_survival(store, {0, 1}, "members 0, 1")
        columns = store.membership.columns_of(0)
        found = fit(store, {0})
        assert (found.columns, found.placed) == (columns, columns) and found.nbytes > 0
        both = fit(store, {0, 1})
        assert both.no_member  # two others are too few for zones that are three wide
        with pytest.raises(UsageError, match="have nowhere to go"):
            require_fit(store, "it", both)
        for member in (1, 2, 3):
            store.space.allocation.slots[member].free = []
        full = fit(store, {0})
        assert full.no_room == columns and not full.placed
        with pytest.raises(OutOfSpace, match=f"{columns} columns must go .* room for 0"):
            require_fit(store, "it", full)


@pytest.mark.trio
async def test_one_change_after_the_other_and_jobs_until_they_are_done(tmp_path):
    paths = make_members(tmp_path, 4, "5", width=3)
    async with mounted(paths) as volume, trio.open_nursery() as nursery:
        store = volume.store
        await write(volume, b"x", 3 << 20)
        jobs = JobService(store)
        service = MemberService(
            store,
            None,
            lambda: describe(store_condition(store, None, jobs=jobs.book.jobs())),
            jobs.book.look,
        )
        await nursery.start(service.run)
        handlers = {**service.handlers(), **jobs.handlers()}

        async def ask(request):
            return [told async for told in handlers[type(request)](request)][-1]

        planned = await ask(MemberRemoveRequest(members=("3",), dry_run=True))
        assert not planned.done and planned.columns and planned.status is None
        assert store.membership.entry(3).role == "data"
        store.mender.paused = True
        told = await ask(MemberFailRequest(members=("3",)))
        assert told.done and told.status.state == "DEGRADED"
        (job,) = told.status.jobs
        assert (job.id, job.state, job.done_bytes) == ("rebuild:3", "paused", 0)
        maps = [zone.map.columns for zone in store.space.zones.values() if zone.needed]
        beside = next(m for columns in maps for m, _ in columns if m != 3 and 3 in dict(columns))
        with pytest.raises(UsageError, match="data would be lost"):
            await ask(MemberFailRequest(members=(str(beside),)))
        store.mender.paused = False
        store.mender.wake()
        with trio.fail_after(20):
            last = await ask(JobWaitRequest(job="rebuild"))
        assert [each.state for each in last.jobs] == ["done"] and not last.more
        status = describe(store_condition(store, None))
        assert status.state == "ONLINE" and status.members[3].removable
        assert "member remove" in status.action and "can be removed" in text(status)
        with pytest.raises(UsageError, match="leave 2 members"):
            await ask(MemberEvacuateRequest(members=("2",)))
        gone = await ask(MemberRemoveRequest(members=("3",)))
        assert "no member any more" in gone.said[0]
        assert [entry.id for entry in store.assembly.label.members] == [0, 1, 2]
        assert await content(volume, volume.lookup(1, b"x").ino) == b"x" * (3 << 20)
        nursery.cancel_scope.cancel()
    run_check(paths)


# -- words for it ----------------------------------------------------------------------------------


def text(status):
    return " ".join("\n".join(status_lines(status)).split())


def lost_one(**changes):
    entries = label().members
    entries[1] = msgspec.structs.replace(entries[1], **{"state": "failed", **changes})
    return label(*entries)


WHOLE, LACKING = Redundancy(9, 0, 0, 1), Redundancy(9, 4, 0, 0)
COLUMNS = {number: (5, 0) for number in (0, 2, 3)}
CASES = {
    "rebuilt elsewhere": (Condition(lost_one(), {1: "x"}, {}, redundancy=WHOLE, columns=COLUMNS),
                          "ONLINE", "member remove MOUNTPOINT 1` takes it off the list, at once"),
    "some lack": (Condition(lost_one(), {1: "x"}, {}, redundancy=LACKING, mountpoint="/m"),
                  "DEGRADED", "4 of 9 zones lack a column"),
    "offline": (Condition(lost_one(state="offline"), {1: "x"}, {}, redundancy=LACKING,
                          mountpoint="/m"), "DEGRADED", "member online /m 1"),
    "too few": (Condition(label(*lost_one().members, width=4), {1: "x"}, {}, redundancy=WHOLE,
                          mountpoint="/m"), "DEGRADED", "3 wide instead of 4"),
    "being rebuilt": (Condition(lost_one(), {1: "x"}, {}, redundancy=LACKING, mountpoint="/m",
                                jobs=[Job("rebuild:1", "rebuild", "running", 1, 2)]),
                      "DEGRADED", "raidfs-ctl wait /m"),
    "paused": (Condition(lost_one(), {1: "x"}, {}, redundancy=LACKING, mountpoint="/m",
                         jobs=[Job("rebuild:1", "rebuild", "paused", 1, 2)]),
               "DEGRADED", "job resume /m"),
    "missing newly": (Condition(label(), {1: "x"}, {}, redundancy=WHOLE), "DEGRADED", "Bring back"),
    "beyond": (Condition(lost_one(), {1: "x"}, {}, redundancy=Redundancy(9, 4, 2, 0)),
               "FAILED", "2 of 9 zones lost more"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_volume_is_degraded_as_far_as_its_zones_are(case):
    condition, state, said = CASES[case]
    status = describe(condition)
    assert status.state == state
    assert said in text(status), text(status)
    lines = "\n".join(status_lines(status)).splitlines()
    assert all(len(line) <= 100 for line in lines)


def test_jobs_in_words_and_exit_codes():
    running = Job("rebuild:3", "rebuild", "running", 3 << 30, 1 << 30, 80 << 20, 12.8, member=3)
    assert job_line(running) == ("rebuild:3: running, 75 %, 1.0 GiB left, 80.0 MiB/s, 13 s to go")
    stalled = Job("evacuate:1", "evacuate", "stalled", 0, 5, reason="no room")
    assert job_line(stalled).endswith("(no room)") and "0 %" in job_line(stalled)
    done = Job("replace:0", "replace", "done", 1 << 20)
    assert job_line(done) == "replace:0: done, 1.0 MiB"
    failed = Job("scrub", "scrub", "failed")
    assert [exit_code([done]), exit_code([done, stalled]), exit_code([failed, running])] == [
        0,
        3,
        1,
    ]
    assert [duration_text(s) for s in (4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 05 min"]
