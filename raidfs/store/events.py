"""What happened to a volume: the log of events in its metadata, and what each kind of event means.

    store.events.note("SpareActive", member, "rebuilt onto /srv/disk7", zones=120)

Names are those of mdadm --monitor where it has one, and in its manner where not. `notices.py`
collects faults from any thread; here they become events: of one kind and one member at most one in
LIMIT_S, the others are counted and told together afterwards.

 1. `note` takes no time, waits for nothing and fails nothing. Listeners are called in it.
 2. What was noted is in the metadata with the next epoch that becomes durable; the newest
    EVENTS_MAX are kept. Their numbers rise; one that anybody was told is never used again, not
    after a crash either (then some are left out).
 3. A volume that can't be written keeps nothing: then events have numbers below zero, counted down
    since the opening, and are remembered for as long as it is open.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import trio

from raidfs.raid.array import NO_MEMBER as NO_MEMBER
from raidfs.raid.array import MemberState
from raidfs.store.database import INF
from raidfs.store.meta import Meta
from raidfs.store.notices import Notices
from raidfs.store.tables import Event as Event

log = logging.getLogger("raidfs.events")

LIMIT_S = 60
WAITING_MAX = 1000  # not yet in the metadata; what comes on top is not kept
REMEMBERED_MAX = 1000  # that can't be kept
TEXT_MAX = 1000
DETAILS_BYTES_MAX = 4000
CLEAN_END = "Unmounted"

Severity = Literal["info", "warning", "alert"]
Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """`mail`: it goes out by mail; as mdadm has it, and for what costs data."""

    meaning: str
    severity: Severity = "info"
    mail: bool = False


KINDS: dict[str, Kind] = {
    # as mdadm has them
    "NewArray": Kind("A volume was seen for the first time, by the monitor."),
    "DeviceDisappeared": Kind(
        "A member that should be there was not found when the volume was opened; or, without a"
        " member, the daemon of a mounted volume has gone without unmounting it.",
        "alert",
    ),
    "DegradedArray": Kind("The volume runs without some of its members.", "alert", True),
    "Fail": Kind("A member has left the volume, for a failed write or by command.", "alert", True),
    "FailSpare": Kind("A hot spare, or what a rebuild writes to, has failed.", "alert", True),
    "SpareActive": Kind("A member that was rebuilt is in full use."),
    "SparesMissing": Kind("There are fewer hot spares than there should be.", "warning", True),
    "RebuildStarted": Kind("Columns of a lost or replaced member are being made anew."),
    "RebuildNN": Kind("So much of a rebuild is done: Rebuild20, Rebuild40 and so on, in percent."),
    "RebuildFinished": Kind("A rebuild has ended; the text says how."),
    "TestMessage": Kind("Asked for, to see whether alerts arrive.", "info", True),
    # ours: the volume
    "Mounted": Kind("The volume was mounted."),
    "Unmounted": Kind("The volume was unmounted, with everything durable."),
    "ReadOnly": Kind("After an error nothing can be written until the next mount.", "alert", True),
    "RoomLow": Kind("Little room is left for new data.", "warning"),
    "RoomEnough": Kind("There is enough room again."),
    # members
    "ReadErrors": Kind("A member failed to read; what was wanted was rebuilt.", "warning"),
    "WriteErrors": Kind("A member failed to write.", "warning"),
    "ChecksumErrors": Kind("A member returned something else than was written to it.", "warning"),
    "Healed": Kind("Damaged cells were rebuilt and written back."),
    "Unrecoverable": Kind("Data is lost: damage beyond what redundancy covers.", "alert", True),
    "MetadataBad": Kind("A member's copy of a page of metadata is damaged.", "warning"),
    "MetadataHealed": Kind("A damaged copy of metadata was replaced by a good one."),
    "MemberSlow": Kind("A member has been slow for long; reads go around it.", "warning"),
    "MemberNormal": Kind("A member that was slow answers as usual, and is read again."),
    "MemberBack": Kind("A member that was away is in use again."),
    "MemberAdded": Kind("A member has joined the volume."),
    "MemberRemoved": Kind("A member has left the volume by command; nothing was lost by it."),
    "MemberOffline": Kind("A member was taken out of use for a while, by command.", "warning"),
    "MemberRefused": Kind("A member was not believed: it is older, a copy, or another's.", "alert"),
    "SpareAdded": Kind("A hot spare is ready."),
    "SpareRemoved": Kind("A hot spare was given up by command."),
    # jobs
    "RebuildStalled": Kind("A rebuild can't go on; the text says why.", "warning"),
    "RebuildStopped": Kind("A rebuild has ended by command, before all was made anew."),
    "ScrubStarted": Kind("All that is stored is being read and compared with its checksums."),
    "ScrubPaused": Kind("A scrub stands still, to be resumed."),
    "ScrubFinished": Kind("A scrub has ended; the text says what it found."),
    "ScrubStopped": Kind("A scrub was stopped by command."),
    "EvacuateStarted": Kind("A member is being emptied."),
    "EvacuateStalled": Kind("Emptying a member can't go on; the text says why.", "warning"),
    "EvacuateFinished": Kind("A member is empty, or emptying it has ended; the text says which."),
    "ConvertStarted": Kind("The volume gets another level or width."),
    "ConvertFinished": Kind("All that is stored has the new level and width."),
    "RebalanceStarted": Kind("What is stored is being spread evenly over the members."),
    "RebalanceFinished": Kind("What is stored is spread evenly."),
    "JobFailed": Kind("A job has ended for an error; the text names both.", "warning"),
    # snapshots
    "GroupSnapshotFailed": Kind("A snapshot of the group was taken by no volume.", "warning"),
}
_UNKNOWN = Kind("An event that this version of raidfs doesn't know.", "warning")

# What the array and the mirror report, as often as it happens -> events, of which there are fewer.
FAULTS = {
    "ReadError": "ReadErrors",
    "WriteError": "WriteErrors",
    "ChecksumError": "ChecksumErrors",
    "Healed": "Healed",
    "Unrecoverable": "Unrecoverable",
    "MetadataBad": "MetadataBad",
    "MetadataHealed": "MetadataHealed",
}
# Where the array counts how many cells had such a fault.
_CELLS = {
    "ReadErrors": "read_errors",
    "ChecksumErrors": "checksum_errors",
    "Healed": "healed",
}


def family(kind: str) -> str:
    """The name by which KINDS and hooks know it: RebuildNN of Rebuild20."""
    number = kind.removeprefix("Rebuild")
    return "RebuildNN" if number != kind and number.isdecimal() else kind


def kind_of(kind: str) -> Kind:
    """What an event means, also one that a later version of raidfs has kept."""
    return KINDS.get(family(kind), _UNKNOWN)


@dataclass(slots=True)
class _Held:
    """Faults of one kind and member that were only counted, since the last event of them."""

    told_ns: int
    cells: int  # as counted when it was told
    count: int = 0
    text: str = ""


class Events:
    """Of one open store. All methods belong to the event loop's thread."""

    def __init__(
        self,
        meta: Meta,
        notices: Notices,
        clock: Callable[[], int],
        *,
        keeps: Callable[[], bool],
        states: Mapping[int, MemberState],
    ) -> None:
        """`keeps`: the volume can be written. `states`: of its members, with what is counted."""
        self.listeners: list[Listener] = []
        self.counts: dict[str, int] = {}  # by kind, since the opening
        self._meta = meta
        self._notices = notices
        self._clock = clock
        self._keeps = keeps
        self._states = states
        self.last, kind = meta.last_event()  # the highest number so far
        if self.last and kind != CLEAN_END:
            self.last += WAITING_MAX  # promise 2: so many may have been told and not become durable
        self.first = self.last + 1  # the first one of this opening has this number, or a higher one
        self._waiting: list[Event] = []
        self._remembered: deque[Event] = deque(maxlen=REMEMBERED_MAX)
        self._not_kept = 0
        self._held: dict[tuple[str, int], _Held] = {}
        self._start_cells = {(k, m): self._cells(k, m) for m in states for k in _CELLS}

    def attach(self) -> None:
        """From now on faults become events soon after they are noticed, in whichever thread."""
        token, thread = trio.lowlevel.current_trio_token(), threading.get_ident()

        def noticed() -> None:
            if threading.get_ident() == thread:
                self.take_up()
            else:
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(self.take_up, idempotent=True)

        self._notices.on_event = noticed
        self.take_up()

    # -- noting -----------------------------------------------------------------------------------

    def note(self, kind: str, member: int = NO_MEMBER, text: str = "", **details: Any) -> None:
        """It happened. `details`: for programs; numbers, texts and lists of them."""
        self._note(self._clock(), kind, member, text, details)

    def _note(
        self, time_ns: int, kind: str, member: int, text: str, details: dict[str, Any]
    ) -> None:
        kept = self._keeps() and len(self._waiting) < WAITING_MAX
        if kept:
            self.last += 1
        else:
            self._not_kept += 1
        number = self.last if kept else -self._not_kept
        event = Event(number, time_ns, kind, member, _cleaned(text), _encoded(details))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        (self._waiting if kept else self._remembered).append(event)
        of = f" (member {member})" if member != NO_MEMBER else ""
        level = logging.INFO if kind_of(kind).severity == "info" else logging.WARNING
        log.log(level, "%s%s: %s%s", kind, of, event.text, "" if kept else " (not kept)")
        for listener in list(self.listeners):
            try:
                listener(event)
            except Exception:
                log.exception("a listener to events failed")

    def take_up(self) -> None:
        """What was noticed by now becomes events, or is counted for later ones."""
        for time_ns, name, member, text in self._notices.take_events():
            if name in FAULTS:
                self._fault(time_ns, FAULTS[name], member, text)
            else:
                self._note(time_ns, name, member, text, {})

    def _fault(self, time_ns: int, kind: str, member: int, text: str) -> None:
        held = self._held.get((kind, member))
        if held is None:
            held = self._held[kind, member] = _Held(0, self._start_cells.get((kind, member), 0))
        held.count += 1
        held.text = text
        if not held.told_ns or _is_over(held.told_ns, time_ns):
            self._tell_held(kind, member, held, time_ns)

    def _tell_held(self, kind: str, member: int, held: _Held, now_ns: int) -> None:
        details: dict[str, int] = {"count": held.count}
        cells = self._cells(kind, member)
        if cells > held.cells:
            details["cells"] = cells - held.cells
        several = f"{held.count} times, last: " if held.count > 1 else ""
        text, held.count, held.cells, held.told_ns = held.text, 0, cells, now_ns
        self._note(now_ns, kind, member, f"{several}{text}", details)

    def look(self, at_once: bool = False) -> None:
        """Tell what was only counted, if its time is over; `at_once`: in any case, as nothing
        comes after. To be called every few seconds."""
        self.take_up()
        if not any(held.count for held in self._held.values()):
            return
        now_ns = self._clock()
        for (kind, member), held in list(self._held.items()):
            if held.count and (at_once or _is_over(held.told_ns, now_ns)):
                self._tell_held(kind, member, held, now_ns)

    def _cells(self, kind: str, member: int) -> int:
        """So many cells of the member had that fault, in all; 0 if they aren't counted."""
        state = self._states.get(member)
        counter = _CELLS.get(kind)
        return getattr(state, counter) if state is not None and counter is not None else 0

    # -- keeping ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Something is to be kept."""
        return bool(self._waiting) or self._notices.waiting

    def keep(self) -> None:
        """Promise 2: in the transaction that makes an epoch durable."""
        self.take_up()
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._meta.add_events(waiting)

    # -- telling ----------------------------------------------------------------------------------

    def since(self, number: int, not_kept: int = 0, limit: int = 256) -> list[Event]:
        """Those after these two (`not_kept`: how many of the others are known), oldest first, and
        at most so many of those that are kept. RaidfsError: the metadata can't be read."""
        found: list[Event] = []
        if number < self.last:
            if not self._waiting or number + 1 < self._waiting[0].number:
                found = self._meta.events_after(number, limit)
            if len(found) < limit:
                found += [event for event in self._waiting if event.number > number]
        return found[:limit] + [event for event in self._remembered if -event.number > not_kept]


def _is_over(told_ns: int, now_ns: int) -> bool:
    """The time in which faults are only counted. A clock that was set back ends it, too."""
    return not 0 <= now_ns - told_ns < LIMIT_S * 10**9


def _cleaned(text: str) -> str:
    """One line of Unicode, not too long."""
    line = " ".join(text.replace("\0", " ").split())
    return line.encode(errors="replace").decode()[:TEXT_MAX]


def _encoded(details: dict[str, Any]) -> str:
    """As JSON. What can't be written so, or is too long, is left out: nothing fails for it."""
    try:
        encoded = msgspec.json.encode(details)
    except (TypeError, ValueError, RecursionError, UnicodeError):
        log.exception("details of an event can't be kept")
        return "{}"
    return encoded.decode() if len(encoded) <= DETAILS_BYTES_MAX else "{}"


def read_log(meta: Meta, limit: int = 256) -> list[Event]:
    """All that is kept, oldest first."""
    found: list[Event] = []
    while part := meta.events_after(found[-1].number if found else -INF, limit):
        found += part
    return found
