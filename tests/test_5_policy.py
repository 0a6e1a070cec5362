"""Which snapshots are due and which are to go, as plain functions of what is there."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidfs.errors import FormatError, UsageError
from raidfs.fs import policy as policies
from raidfs.fs.policy import KINDS, Policy, due, judge, kind_of, name_of, start

UTC = timezone.utc  # noqa: UP017  (as users write it)
BERLIN = ZoneInfo("Europe/Berlin")
SECOND = 10**9
HOUR = 3600 * SECOND
ALL = Policy(frequently=3, hourly=24, daily=30, weekly=4, monthly=12, yearly=2)


@dataclass(frozen=True)
class Snap:
    name: str
    created_ns: int
    holds: tuple[str, ...] = ()


def at(*when, zone=UTC):
    return int(datetime(*when, tzinfo=zone).timestamp()) * SECOND


def auto(kind, when_ns, zone=UTC, holds=()):
    return Snap(name_of(kind, when_ns, zone), when_ns, holds)


def test_names_are_sanoids_and_carry_the_kind():
    name = name_of("daily", at(2026, 5, 1), UTC)
    assert name == "autosnap_2026-05-01_00:00:00_daily" and kind_of(name) == "daily"
    assert name_of("hourly", at(2026, 5, 1), BERLIN) == "autosnap_2026-05-01_02:00:00_hourly"


@pytest.mark.parametrize(
    "name",
    ["monday", "autosnap_2026-05-01_00:00:00_minutely", "autosnap_2026-05-01_daily", "daily",
     "xautosnap_2026-05-01_00:00:00_daily", "autosnap_2026-05-01_00:00:00_daily2",
     "autosnap_२०२६-05-01_00:00:00_daily"],
)  # fmt: skip
def test_other_names_are_nobodys(name):
    assert kind_of(name) == ""


@pytest.mark.parametrize(
    ("kind", "begun"),
    [("frequently", (2026, 5, 7, 13, 45)), ("hourly", (2026, 5, 7, 13)), ("daily", (2026, 5, 7)),
     ("weekly", (2026, 5, 4)), ("monthly", (2026, 5, 1)), ("yearly", (2026, 1, 1))],
)  # fmt: skip
def test_when_periods_begin(kind, begun):
    for zone in (UTC, BERLIN):
        now = at(2026, 5, 7, 13, 59, 59, zone=zone) + 999_999_999
        assert start(ALL, kind, now, zone) == at(*begun, zone=zone)


def test_a_day_with_23_hours_and_one_with_25_begin_at_midnight():
    for day in ((2026, 3, 29), (2026, 10, 25)):
        begun = at(*day, zone=BERLIN)
        following = datetime(*day, tzinfo=BERLIN) + timedelta(days=1)
        end = int(following.timestamp()) * SECOND
        hours = (end - begun) // HOUR
        assert hours in (23, 25)
        starts = {start(ALL, "hourly", begun + h * HOUR + HOUR // 2, BERLIN) for h in range(hours)}
        assert len(starts) == hours  # the hour that comes twice is two hours
        for hour in range(hours):
            assert start(ALL, "daily", begun + hour * HOUR, BERLIN) == begun
        assert start(ALL, "daily", begun - 1, BERLIN) < begun
        assert start(ALL, "daily", end, BERLIN) == end


def test_everything_is_due_at_first_and_nothing_right_after():
    now = at(2026, 5, 7, 13, 50)
    assert due(ALL, [], now, UTC) == list(KINDS)
    taken = [auto(kind, now) for kind in KINDS]
    assert due(ALL, taken, now + SECOND, UTC) == []
    assert due(ALL, taken, at(2026, 5, 7, 14), UTC) == ["frequently", "hourly"]
    assert due(ALL, taken, at(2027, 1, 1), UTC) == list(KINDS)
    assert due(Policy(daily=1), [], now, UTC) == ["daily"]


def test_only_own_names_count_as_taken():
    now = at(2026, 5, 7, 13, 50)
    others = [Snap("daily", now), Snap("before-upgrade", now), auto("hourly", now)]
    assert due(Policy(daily=3), others, now, UTC) == ["daily"]


def test_a_snapshot_from_the_future_stops_nothing():
    """The clock was ten years ahead for a while."""
    wrong = auto("daily", at(2036, 5, 7))
    now = at(2026, 5, 7, 13)
    assert due(Policy(daily=3), [wrong], now, UTC) == ["daily"]
    assert due(Policy(daily=3), [wrong, auto("daily", now)], now + HOUR, UTC) == []


def test_what_goes_and_why():
    days = [auto("daily", at(2026, 5, day)) for day in range(1, 8)]
    hours = [auto("hourly", at(2026, 5, 7, hour)) for hour in range(2)]
    others = [Snap("before-upgrade", at(2020, 1, 1))]
    held = [auto("daily", at(2026, 4, 1), holds=("court", "tax"))]
    verdicts = judge(Policy(daily=5), [*hours, *days, *others, *held])
    in_order = [*others, *held, *days, *hours]  # as taken; the first hour and the last day together
    assert {v.name for v in verdicts} == {s.name for s in in_order} and len(verdicts) == 11
    assert verdicts[0].name == "before-upgrade" and verdicts[-1].name == hours[1].name
    by_name = {v.name: v for v in verdicts}
    assert {name for name, v in by_name.items() if not v.keep} == {
        days[0].name,
        days[1].name,
        hours[0].name,
        hours[1].name,
    }
    assert by_name[days[0].name].reason == "daily, number 7, and 5 are kept"
    assert by_name[days[6].name].reason == "daily, number 1 of 5"
    assert by_name[hours[0].name].reason == "hourly, and the policy keeps none"
    assert by_name[held[0].name].reason == "held: court, tax"
    assert by_name["before-upgrade"].reason == "not of this policy"


def test_a_year_of_sleep_loses_nothing():
    taken = [auto("daily", at(2024, 5, day)) for day in range(1, 20)]
    assert all(v.keep for v in judge(Policy(daily=30), taken))


@pytest.mark.slow
@pytest.mark.parametrize("zone", [BERLIN, ZoneInfo("America/Sao_Paulo")])
def test_years_of_a_timer(zone):
    """Run many times a day: after that, so many of each kind, one from each period."""
    policy = Policy(hourly=30, daily=20, weekly=10, monthly=14, yearly=2)
    kept: list[Snap] = []
    now, end = at(2016, 9, 5, 7, 3), at(2018, 3, 20)
    step = 0
    while now < end:
        step += 1
        kept += [auto(kind, now, zone) for kind in due(policy, kept, now, zone)]
        assert len({snap.name for snap in kept}) == len(kept)
        gone = {v.name for v in judge(policy, kept) if not v.keep}
        kept = [snap for snap in kept if snap.name not in gone]
        # Dense around the changes of the clocks and at the end, a few times a day else.
        month = datetime.fromtimestamp(now // SECOND, UTC).month
        dense = month in (2, 3, 10) or end - now < 40 * 24 * HOUR
        now += (47 if dense else 60 * 7) * 60 * SECOND + step % 7 * 60 * SECOND
    assert Counter(kind_of(snap.name) for snap in kept) == Counter(
        hourly=30, daily=20, weekly=10, monthly=14, yearly=2
    )
    for kind in ("hourly", "daily", "weekly", "monthly", "yearly"):
        starts = [start(policy, kind, s.created_ns, zone) for s in kept if kind_of(s.name) == kind]
        assert len(set(starts)) == len(starts)
    daily = sorted(
        start(policy, "daily", s.created_ns, zone) for s in kept if kind_of(s.name) == "daily"
    )
    assert all(22 * HOUR < b - a < 26 * HOUR for a, b in pairwise(daily))


snaps = st.lists(
    st.builds(
        lambda kind, minute, holds: (
            auto(kind, at(2026, 1, 1) + minute * 60 * SECOND, holds=holds)
            if kind in KINDS
            else Snap(f"{kind}{minute}", at(2026, 1, 1) + minute * 60 * SECOND, holds)
        ),
        st.sampled_from([*KINDS, "mine"]),
        st.integers(0, 10_000),
        st.sampled_from([(), (), ("keep",)]),
    ),
    unique_by=lambda snap: snap.name,
    max_size=40,
)
keeping = st.builds(Policy, *[st.integers(0, 4)] * 6)


@settings(max_examples=150, deadline=None)
@given(snaps, keeping, st.randoms())
def test_verdicts_keep_the_newest_the_held_and_the_others(taken, policy, order):
    verdicts = {v.name: v for v in judge(policy, taken)}
    assert len(verdicts) == len(taken)
    for kind in KINDS:
        mine = sorted((s for s in taken if kind_of(s.name) == kind), key=lambda s: -s.created_ns)
        for place, snap in enumerate(mine):
            wanted = place < policy.count(kind) or bool(snap.holds)
            assert verdicts[snap.name].keep == wanted, (snap, place)
    for snap in taken:
        assert kind_of(snap.name) or verdicts[snap.name].keep
    # Order of the input doesn't matter, and what is left after pruning stays.
    shuffled = list(taken)
    order.shuffle(shuffled)
    assert judge(policy, shuffled) == judge(policy, taken)
    left = [snap for snap in taken if verdicts[snap.name].keep]
    assert all(v.keep for v in judge(policy, left))


def test_stored_form_comes_back_and_is_versioned():
    assert policies.decode(policies.encode(ALL)) == ALL
    assert msgspec.json.decode(policies.encode(ALL))["version"] == 1


@pytest.mark.parametrize(
    "stored",
    [b"", b"{}", b"[1]", b'{"version":2,"keep":{"daily":1}}', b'{"version":1,"keep":{"daily":-1}}',
     b'{"version":1,"keep":{"minutely":1}}', b'{"version":1,"keep":{}}', b"\xff\xfe"],
)  # fmt: skip
def test_a_damaged_stored_form_is_a_sentence(stored):
    with pytest.raises(FormatError, match="set it anew"):
        policies.decode(stored)


@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(daily=-1), Policy(daily=10**6), Policy(daily=1, minutes=7),
     Policy(daily=1, minutes=0), Policy(daily=1, minutes=120)],
)  # fmt: skip
def test_senseless_policies_are_refused(policy):
    with pytest.raises(UsageError):
        policy.check()
