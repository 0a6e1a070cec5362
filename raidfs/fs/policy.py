"""Which snapshots are due and which are to go: sanoid's words, as plain functions of what is there.

A volume's policy says how many snapshots of each kind are kept. Those that it asks for are named
`autosnap_2026-05-01_00:00:00_daily`: a date for people, and the kind for this module.

 1. A period (an hour, a day, ...) has its snapshot if one of that kind was taken within it; clocks
    that jump make at most one too many, and never stop the taking.
 2. The newest so many of a kind are kept, whatever their age: a machine that was off for a year
    loses nothing by it.
 3. What is held, and what has a name of any other form, is never to go.
 4. Time is what `Taken.created_ns` says, never what a name says. Days and longer begin at midnight
    of the time zone given, or of this machine's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Protocol

import msgspec

from ..errors import FormatError, UsageError

KINDS = ("frequently", "hourly", "daily", "weekly", "monthly", "yearly")
COUNT_MAX = 100_000
MINUTES_MAX = 60
SECOND_NS = 10**9
VERSION = 1
PREFIX = "autosnap"
_NAME = re.compile(r"(.+)_\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d_([a-z]+)", re.ASCII | re.DOTALL)


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many of each kind are kept; 0: none is taken, and there is none to keep. `minutes`: how
    often "frequently" is; it divides an hour."""

    frequently: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    minutes: int = 15

    def count(self, kind: str) -> int:
        """How many of a kind are kept."""
        count: int = getattr(self, kind)
        return count

    def check(self) -> None:
        """UsageError unless it makes sense."""
        for kind in KINDS:
            if not 0 <= self.count(kind) <= COUNT_MAX:
                raise UsageError(f"{kind} is a number of snapshots from 0 to {COUNT_MAX}")
        if not any(self.count(kind) for kind in KINDS):
            raise UsageError("a policy keeps something: give at least one count above 0")
        if not 1 <= self.minutes <= MINUTES_MAX or MINUTES_MAX % self.minutes:
            raise UsageError(f"{self.minutes} minutes don't divide an hour; try 5, 10, 15 or 30")


class Taken(Protocol):
    """What is to be known of a snapshot."""

    @property
    def name(self) -> str: ...
    @property
    def created_ns(self) -> int: ...
    @property
    def holds(self) -> Sequence[str]: ...


class Verdict(msgspec.Struct, frozen=True):
    """What the policy has to say of one snapshot; `kind` is empty if it has no say."""

    name: str
    kind: str
    keep: bool
    reason: str


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keep: Policy


def encode(policy: Policy) -> bytes:
    """The form in which a volume stores it."""
    return msgspec.json.encode(_Stored(VERSION, policy))


def decode(stored: bytes) -> Policy:
    """FormatError for what `encode` of this version can't have made."""
    try:
        found = msgspec.json.decode(stored, type=_Stored)
        found.keep.check()
    except (msgspec.DecodeError, UsageError) as error:
        raise FormatError(
            f"the volume's snapshot policy is not understood ({error}); set it anew, or use the"
            " raidfs that set it"
        ) from error
    if found.version != VERSION:
        raise FormatError(
            f"the volume's snapshot policy has version {found.version}, this raidfs knows"
            f" {VERSION}; set it anew, or use the raidfs that set it"
        )
    return found.keep


def name_of(kind: str, now_ns: int, zone: tzinfo | None = None, prefix: str = PREFIX) -> str:
    """What a snapshot taken now is called."""
    return f"{prefix}_{_local(now_ns, zone):%Y-%m-%d_%H:%M:%S}_{kind}"


def kind_of(name: str, prefix: str = PREFIX) -> str:
    """The kind that a name is of; empty for one that the policy has not given."""
    match = _NAME.fullmatch(name)
    return match[2] if match and match[1] == prefix and match[2] in KINDS else ""


def _local(time_ns: int, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(time_ns // SECOND_NS, zone)


def _hour(now: datetime) -> datetime:
    return now.replace(minute=0, second=0, microsecond=0)


def _day(now: datetime) -> datetime:
    """Midnight; the first, should the clocks have gone back over it."""
    return _hour(now).replace(hour=0, fold=0)


def _week(now: datetime) -> datetime:
    """Midnight before Monday. By the calendar: a day may have 23 hours."""
    return _day(now) - timedelta(days=now.weekday())


_STARTS: dict[str, Callable[[datetime], datetime]] = {
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": lambda now: _day(now).replace(day=1),
    "yearly": lambda now: _day(now).replace(month=1, day=1),
}


def start(policy: Policy, kind: str, time_ns: int, zone: tzinfo | None = None) -> int:
    """When the period of that kind began in which a time lies."""
    if kind == "frequently":
        step_ns = policy.minutes * 60 * SECOND_NS
        return time_ns - time_ns % step_ns
    return int(_STARTS[kind](_local(time_ns, zone)).timestamp()) * SECOND_NS


def due(
    policy: Policy,
    snapshots: Iterable[Taken],
    now_ns: int,
    zone: tzinfo | None = None,
    prefix: str = PREFIX,
) -> list[str]:
    """The kinds of which a snapshot is to be taken now."""
    starts = {kind: start(policy, kind, now_ns, zone) for kind in KINDS if policy.count(kind)}
    for snapshot in snapshots:
        kind = kind_of(snapshot.name, prefix)
        begun = starts.get(kind)
        if begun is None or snapshot.created_ns < begun:
            continue
        if start(policy, kind, snapshot.created_ns, zone) == begun:
            del starts[kind]
    return list(starts)


def judge(policy: Policy, snapshots: Iterable[Taken], prefix: str = PREFIX) -> list[Verdict]:
    """What is to be kept and what is to go, and why: the oldest first."""
    seen = dict.fromkeys(KINDS, 0)
    verdicts = []
    for snapshot in sorted(snapshots, key=lambda taken: (taken.created_ns, taken.name))[::-1]:
        kind = kind_of(snapshot.name, prefix)
        if kind:
            seen[kind] += 1
        keep, reason = _judged(kind, seen.get(kind, 0), policy, snapshot)
        verdicts.append(Verdict(snapshot.name, kind, keep, reason))
    return verdicts[::-1]


def _judged(kind: str, place: int, policy: Policy, snapshot: Taken) -> tuple[bool, str]:
    """`place`: counted from the newest of its kind, from 1."""
    if not kind:
        return True, "not of this policy"
    count = policy.count(kind)
    if place <= count:
        return True, f"{kind}, number {place} of {count}"
    if snapshot.holds:
        return True, f"held: {', '.join(snapshot.holds)}"
    if not count:
        return False, f"{kind}, and the policy keeps none"
    return False, f"{kind}, number {place}, and {count} are kept"
