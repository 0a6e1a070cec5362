"""What goes into the marker process, and what comes out of it.

Values only. An event is something that happened: a peer was heard, a session ended, something is
durable, time has passed. An action is something to do, in the order given; an action that takes
time (to disk) is answered by an event later, and none has to be waited for.

A *session* is one life of the two channels between this process and a peer. Its number is the
caller's; a peer never gets the same one twice. Whoever carries out `Send` gives the message to that
session or, if it is over, to none: a later session must never get what was meant for an earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

from .messages import (
    DecisionKept,
    Message,
    Plan,
    PreparedKept,
    Result,
    Roster,
    Transfer,
)


@dataclass(frozen=True, slots=True)
class Start:
    """Someone here asks for a snapshot, with an id never used before."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Received:
    """A message, in the order of the channel."""

    peer: str
    session: int
    message: Message


@dataclass(frozen=True, slots=True)
class SessionUp:
    """Both channels are there. If an older session was never said to be down, it is now."""

    peer: str
    session: int


@dataclass(frozen=True, slots=True)
class SessionDown:
    """The session ended; what was sent on it and not received is lost."""

    peer: str
    session: int
    why: str


@dataclass(frozen=True, slots=True)
class Membership:
    """The group has another roster from now on."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class Transmit:
    """A part of this daemon wants to send; what it did before sending is in the present epoch."""

    peer: str
    message: Transfer


@dataclass(frozen=True, slots=True)
class Durable:
    """What Prepare asked for is durable. `epoch` is the cut's, `gate_us` what was measured."""

    snapshot: bytes
    epoch: int
    gate_us: int


@dataclass(frozen=True, slots=True)
class Decided:
    """What Decide asked for is durable."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Visible:
    """What Commit asked for is durable."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """What Cut, Record, Prepare, Decide or Commit asked for can't be done."""

    snapshot: bytes
    why: str


@dataclass(frozen=True, slots=True)
class GateTimeout:
    """The gate was shut for as long as it may."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class SettleTimeout:
    """The initiator has waited long enough for everybody to be prepared."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class AskTimeout:
    """It is time to ask for the outcome again."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class DoneTimeout:
    """Whoever asked for the snapshot is not to wait any longer for volumes that are away."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Cancel:
    """Whoever asked for the snapshot doesn't want it any more."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Resolve:
    """A person's word on a snapshot in doubt whose initiator never comes back, and that nobody
    reachable knows of. It has to be the same word in all volumes: say it in one, it is passed on
    to those that ask."""

    snapshot: bytes
    commit: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """A committed snapshot was deleted from the volume."""

    snapshot: bytes


Timer = GateTimeout | SettleTimeout | AskTimeout | DoneTimeout
Event = (
    Start
    | Received
    | SessionUp
    | SessionDown
    | Membership
    | Transmit
    | Durable
    | Decided
    | Visible
    | Failed
    | Timer
    | Cancel
    | Resolve
    | Deleted
)


@dataclass(frozen=True, slots=True)
class Cut:
    """Shut the gate and close the epoch, as one step, without waiting for anything; begin to make
    it durable, hidden, under the snapshot's id. If it can't be done: Failed."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Send:
    """Queue a message on that session; drop it if the session is over."""

    peer: str
    session: int
    message: Message


@dataclass(frozen=True, slots=True)
class Record:
    """The message belongs to the snapshot, as one that was on its way from `peer`."""

    snapshot: bytes
    peer: str
    message: Transfer


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give the message to the part of the daemon that it is for; it acts in the open epoch."""

    peer: str
    message: Transfer


@dataclass(frozen=True, slots=True)
class OpenGate:
    """This snapshot doesn't need the gate shut any longer. `opens`: nor does any other."""

    snapshot: bytes
    opens: bool


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Give `event` back after so many ms. Timers needn't be stopped: a late one changes nothing."""

    event: Timer
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """When the epoch and all that was recorded are durable, keep `kept`; then Durable."""

    kept: PreparedKept


@dataclass(frozen=True, slots=True)
class Decide:
    """Keep the commit; then Decided. If it can't be known whether it is kept: Failed."""

    kept: DecisionKept


@dataclass(frozen=True, slots=True)
class Commit:
    """Make the hidden snapshot visible and forget that it was prepared, in one durable step; then
    Visible. Done twice it is the same as done once."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the hidden snapshot, what was recorded for it and PreparedKept, after whatever was
    asked for before. Done twice, or lost in a crash, does no harm."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    """All are done: DecisionKept isn't needed any more."""

    snapshot: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """For whoever asked: this is what became of it."""

    result: Result


@dataclass(frozen=True, slots=True)
class Rejected:
    """The event makes no sense here: nothing was changed by it, and this is why. For a message of a
    peer it means that the two disagree about the protocol."""

    event: Event
    reason: str


Action = (
    Cut
    | Send
    | Record
    | Deliver
    | OpenGate
    | StartTimer
    | Prepare
    | Decide
    | Commit
    | Discard
    | Forget
    | Finished
    | Rejected
)
