"""The log of events: each row can be read by whoever is to be told of it."""

from __future__ import annotations

import msgspec

from ..store.events import NO_MEMBER, read_log
from ..store.meta import Meta
from ..store.tables import EVENTS_MAX
from .report import Report


def check_events(meta: Meta, report: Report) -> None:
    """Members that an event concerns may have left the volume since."""
    rows = read_log(meta)
    report.count("events", len(rows))
    if len(rows) > EVENTS_MAX:
        report.add("event.count", f"{len(rows)} events are kept, {EVENTS_MAX} are allowed")
    for row in rows:
        what = f"event {row.number}, {row.kind!r},"
        if row.number < 1 or row.time_ns < 0 or not row.kind.isalnum():
            report.add("event.row", f"{what} of time {row.time_ns}, can't be told")
        if row.member < NO_MEMBER:
            report.add("event.member", f"{what} is of member {row.member}, which can't be")
        try:
            msgspec.json.decode(row.details, type=dict)
        except (msgspec.DecodeError, msgspec.ValidationError):
            report.add("event.details", f"{what} has details that are no JSON object")
