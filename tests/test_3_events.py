"""The log of events: noted at once, durable with the next epoch, bounded, never told twice under
one number; faults are counted, and told once a minute.
"""

import re
from pathlib import Path

import msgspec
import pytest
import trio
from simulated_volume import (
    checked,
    in_simulated_time,
    mounted,
    new_members,
    reopened,
)
from workload import ME

import raidfs
from raidfs.store import tables
from raidfs.store.events import (
    DETAILS_BYTES_MAX,
    FAULTS,
    KINDS,
    REMEMBERED_MAX,
    TEXT_MAX,
    WAITING_MAX,
    family,
    kind_of,
)

ROOT = 1
S = 10**9


class Wall:
    """A clock that stands still until told."""

    def __init__(self, now_ns=1_700_000_000 * S):
        self.now_ns = now_ns

    def __call__(self):
        return self.now_ns


def kinds(events):
    return [event.kind for event in events]


def with_volume(test, members=None, **options):
    members = members or new_members("5", 3)

    async def run():
        async with mounted(members, **options) as volume:
            await test(volume.store)

    in_simulated_time(run)
    return members


# -- kinds ----------------------------------------------------------------------------------------


def test_every_kind_that_the_source_notes_is_known():
    source = "".join(
        path.read_text() for path in sorted(Path(raidfs.__file__).parent.rglob("*.py"))
    )
    noted = set(re.findall(r'events\.note\(\s*"(\w+)"', source))
    assert noted and {family(kind) for kind in noted} <= set(KINDS)
    assert set(FAULTS.values()) <= set(KINDS)


def test_kinds_say_what_they_mean_and_what_goes_by_mail():
    mdadm = {"Fail", "FailSpare", "DegradedArray", "SparesMissing", "TestMessage"}
    mailed = {name for name, kind in KINDS.items() if kind.mail}
    assert mailed == mdadm | {"Unrecoverable", "ReadOnly"}
    assert all(kind.meaning.endswith(".") and name.isalnum() for name, kind in KINDS.items())
    assert all(KINDS[name].severity != "info" for name in mailed - {"TestMessage"})
    assert family("Rebuild40") == "RebuildNN" and kind_of("Rebuild40") is KINDS["RebuildNN"]
    assert family("RebuildStarted") == "RebuildStarted" and family("Rebuild") == "Rebuild"
    assert kind_of("OfALaterVersion").severity == "warning"


# -- noting and keeping ---------------------------------------------------------------------------


def test_an_event_is_told_at_once_and_durable_with_the_next_epoch():
    async def run(store):
        told = []
        store.events.listeners.append(told.append)
        durable = store.durable
        store.events.note("SpareActive", 2, "rebuilt", zones=7, onto="/srv/x")
        assert kinds(told) == ["SpareActive"] and store.durable == durable
        assert kinds(store.events.since(0)) == ["SpareActive"], "told before it is durable"
        assert not store.meta.events(10)
        await store.commit()
        assert store.durable == durable + 1, "an event alone makes a cut"
        assert store.events.since(0) == told == store.meta.events(10)
        await store.commit()
        assert store.durable == durable + 1

    members = with_volume(run)

    async def after(store):
        (event,) = store.events.since(0)
        assert (event.member, event.text) == (2, "rebuilt")
        assert msgspec.json.decode(event.details) == {"zones": 7, "onto": "/srv/x"}

    with_volume(after, reopened(members))
    checked(members)


def test_a_listener_that_fails_harms_nobody():
    async def run(store):
        told = []
        store.events.listeners += [lambda event: 1 // 0, told.append]
        store.events.note("TestMessage")
        assert kinds(told) == ["TestMessage"] and store.failed is None

    with_volume(run)


def test_whatever_is_noted_can_be_kept():
    async def run(store):
        note = store.events.note
        note("TestMessage", text="a\nb\0c \udcff" + "x" * 5000, odd=object())
        note("TestMessage", text="long", what="y" * DETAILS_BYTES_MAX)
        note("TestMessage", text="", names=["a", "b"], ratio=0.5, none=None)
        await store.commit()
        first, second, third = store.meta.events(10)
        assert first.text.startswith("a b c ?x") and len(first.text) == TEXT_MAX
        assert first.details == second.details == "{}"
        wanted = {"names": ["a", "b"], "ratio": 0.5, "none": None}
        assert msgspec.json.decode(third.details) == wanted

    checked(with_volume(run))


def test_the_newest_are_kept_and_read_in_pieces(monkeypatch):
    monkeypatch.setattr(tables, "EVENTS_MAX", 50)

    async def run(store):
        for number in range(40):
            store.events.note("TestMessage", text=str(number))
        await store.commit()
        for number in range(40, 80):
            store.events.note("TestMessage", text=str(number))
            if number % 7 == 0:
                await store.commit()
        assert [e.number for e in store.events.since(0)] == list(range(29, 81)), "two wait"
        found, last = [], 0
        while part := store.events.since(last, limit=8):
            assert len(part) <= 8
            found += part
            last = part[-1].number
        assert [int(e.text) for e in found] == list(range(28, 80))
        await store.commit()
        assert len(store.meta.events(1000)) == 50

    async def after(store):
        store.events.note("TestMessage", text="one more")
        await store.commit()
        assert len(store.meta.events(1000)) == 50

    checked(with_volume(after, reopened(with_volume(run))))


def test_numbers_go_on_after_a_clean_end_and_leave_a_gap_after_any_other():
    async def clean(store):
        store.events.note("Mounted")
        store.events.note("Unmounted")

    async def goes_on(store):
        assert store.events.first == 3
        store.events.note("Mounted")  # 3, and then no Unmounted

    async def after_a_crash(store):
        assert store.events.first == 3 + WAITING_MAX + 1
        store.events.note("TestMessage")
        assert store.events.since(3)[0].number == store.events.first

    members = with_volume(clean)
    members = with_volume(goes_on, reopened(members))
    checked(with_volume(after_a_crash, reopened(members)))


def test_a_crash_takes_back_no_number_that_was_told():
    """The last events before a crash were told and are not durable: no later one is called so."""
    members = new_members("5", 3)
    told = []

    async def run():
        async with mounted(members) as volume:
            volume.store.events.listeners.append(lambda event: told.append(event.number))
            volume.store.events.note("Mounted")
            await volume.store.commit()
            files = reopened(members)  # the state of the members now, as a crash would leave it
            for _ in range(WAITING_MAX):
                volume.store.events.note("TestMessage")
            return files

    crashed = in_simulated_time(run)

    async def after(store):
        assert kinds(store.meta.events(10)) == ["Mounted"]
        assert store.events.first > max(told)

    with_volume(after, crashed)


def test_more_than_can_wait_is_told_and_not_kept():
    async def run(store):
        told = []
        store.events.listeners.append(told.append)
        for number in range(WAITING_MAX + 5):
            store.events.note("TestMessage", text=str(number))
        assert len(told) == WAITING_MAX + 5
        assert [event.number for event in told[WAITING_MAX:]] == [-1, -2, -3, -4, -5]
        await store.commit()
        assert len(store.meta.events(2000)) == WAITING_MAX
        assert len(store.events.since(0, 0, 2 * WAITING_MAX)) == WAITING_MAX + 5
        assert [e.number for e in store.events.since(store.events.last, 3)] == [-4, -5]

    checked(with_volume(run))


def test_a_read_only_volume_remembers_and_keeps_nothing():
    async def before(store):
        store.events.note("Mounted")

    async def run(store):
        for _ in range(REMEMBERED_MAX + 2):
            store.events.note("TestMessage", 1)
        found = store.events.since(0)
        assert found[0].kind == "Mounted" and len(found) == REMEMBERED_MAX + 1
        assert found[1].number == -3 and found[-1].number == -REMEMBERED_MAX - 2
        assert not store.events.waiting

    members = with_volume(before)
    content = reopened(members)
    with_volume(run, content, read_only=True)

    async def after(store):
        assert kinds(store.meta.events(10)) == ["Mounted"]

    with_volume(after, reopened(content))


def test_a_volume_that_fails_says_so_without_keeping_it():
    members = new_members("0", 2)
    told = []

    async def run():
        async with mounted(members, fails=True) as volume:
            volume.store.events.listeners.append(told.append)
            ino = volume.create(ROOT, b"file", 0o644, 0, ME).ino
            await volume.write(ino, 0, b"x" * 90_000)
            await volume.fsync(ino)
            members[1].failing = {"data"}
            await volume.write(ino, 0, b"y" * 90_000)
            with pytest.raises(raidfs.errors.RaidfsError):
                await volume.fsync(ino)
            assert volume.store.failed
            assert [e.kind for e in volume.store.events.since(0) if e.number < 0] == ["ReadOnly"]

    in_simulated_time(run)
    assert kinds(told).count("ReadOnly") == 1
    read_only = next(event for event in told if event.kind == "ReadOnly")
    assert read_only.number == -1 and "member 1" in read_only.text


# -- faults ---------------------------------------------------------------------------------------


def test_a_flood_of_faults_is_one_event_a_minute():
    clock = Wall()

    async def run(store):
        notice = store.notices.event

        def found():
            return [event for event in store.events.since(0) if event.kind == "ChecksumErrors"]

        def fault(member, cells):
            store.array.states[member].checksum_errors += cells
            notice("ChecksumError", member, f"{cells} cells")

        fault(1, 3)
        assert [e.details for e in found()] == ['{"count":1,"cells":3}'], "the first one at once"
        for _ in range(500):
            fault(1, 2)
        fault(2, 1)
        assert [(e.member, e.details) for e in found()[1:]] == [(2, '{"count":1,"cells":1}')]
        clock.now_ns += 59 * S
        store.events.look()
        assert len(found()) == 2
        clock.now_ns += 2 * S
        await trio.sleep(store.interval_s + 1)  # by itself
        assert [(e.member, e.details) for e in found()[2:]] == [(1, '{"count":500,"cells":1000}')]
        assert found()[2].text == "500 times, last: 2 cells"
        fault(1, 9)  # within a minute after that
        assert len(found()) == 3
        clock.now_ns -= 3600 * S  # somebody sets the clock
        store.events.look()
        assert [e.details for e in found()[3:]] == ['{"count":1,"cells":9}']
        fault(1, 4)
        # the end of the mount tells the rest

    members = with_volume(run, clock=clock)

    async def after(store):
        events = [e for e in store.meta.events(100) if e.kind == "ChecksumErrors"]
        assert [e.details for e in events][-1] == '{"count":1,"cells":4}'
        before = store.array.states[1].checksum_errors
        store.array.states[1].checksum_errors += 5
        store.notices.event("ChecksumError", 1, "again")
        assert store.events.since(0)[-1].details == '{"count":1,"cells":5}', before

    with_volume(after, reopened(members))


def test_what_threads_notice_becomes_events_on_the_loop():
    """As the array's pool does; nothing is lost, whoever runs first."""

    async def run():
        async with mounted(new_members("5", 3)) as volume:
            events = volume.store.events
            told = []
            events.listeners.append(told.append)

            def work(member):
                volume.store.notices.event("Healed", member, "a cell")
                volume.store.notices.event("Fail", member, "broke")

            async with trio.open_nursery() as nursery:
                for member in range(3):
                    nursery.start_soon(trio.to_thread.run_sync, work, member)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(kinds(told)) == ["Fail"] * 3 + ["Healed"] * 3

    trio.run(run)


def test_a_member_that_fails_a_write_is_in_the_log():
    members = new_members("5", 4)

    async def run():
        async with mounted(members) as volume:
            ino = volume.create(ROOT, b"file", 0o644, 0, ME).ino
            await volume.write(ino, 0, b"x" * 90_000)
            await volume.fsync(ino)
            members[2].failing = {"data"}
            await volume.write(ino, 0, b"y" * 90_000)
            await volume.fsync(ino)

    async def seen():
        async with mounted(reopened(members)) as volume:
            return [(event.kind, event.member) for event in volume.store.meta.events(100)]

    in_simulated_time(run)
    found = in_simulated_time(seen)
    assert ("WriteErrors", 2) in found
    assert found.index(("Fail", 2)) < found.index(("DegradedArray", -1))
