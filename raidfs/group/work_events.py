"""What goes into the works of a group (work.py), and what comes out of them. Values only.

An event is something that happened; an action is something to do, in the order given. One that
takes time is answered by an event later, and none has to be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .charter import Work, Working

INTENT: Final = "intent"  # kinds of what is kept
VERDICT: Final = "verdict"
KeptKind = Literal["intent", "verdict"]
TimerName = Literal["vote", "able", "hold", "retry", "done"]


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """In ms. `vote`: for all to be able, and again to agree; `able`: a volume withdraws then;
    `hold`: users are refused then; `retry`: a work that failed is tried again; `done`: the others
    let users in although one, which can be reached, isn't done."""

    vote: int = 15_000
    able: int = 20_000
    hold: int = 10_000
    retry: int = 5_000
    done: int = 120_000


@dataclass(frozen=True, slots=True)
class Up:
    """There is a connection to the peer; what was sent on an earlier one may be lost."""

    peer: str


@dataclass(frozen=True, slots=True)
class Down:
    peer: str


@dataclass(frozen=True, slots=True)
class Membership:
    """Who is in the group from now on."""

    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class Heard:
    peer: str
    message: Working


@dataclass(frozen=True, slots=True)
class Start:
    """Somebody here asks for it, with a number never used before."""

    work: Work


@dataclass(frozen=True, slots=True)
class Cancel:
    """Whoever asked doesn't want it any more."""

    work: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """The answer to Prepare: users are kept out, and it can be done."""

    work: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The other answer to Prepare, Keep and Do: it can't be."""

    work: bytes
    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    work: bytes
    kind: KeptKind


@dataclass(frozen=True, slots=True)
class Dropped:
    work: bytes
    kind: KeptKind


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer to Do: it is done and the promise is gone, both durably."""

    work: bytes


@dataclass(frozen=True, slots=True)
class Timeout:
    work: bytes
    name: TimerName


@dataclass(frozen=True, slots=True)
class Resolve:
    """A person's word on a work in doubt; it has to be the same in all volumes. For one that is
    decided, `go`: volumes that are away are never coming back."""

    work: bytes
    go: bool


Event = (
    Up | Down | Membership | Heard | Start | Cancel | Prepared | Failed | Kept | Dropped | Ended
    | Timeout | Resolve
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Send:
    peer: str
    message: Working


@dataclass(frozen=True, slots=True)
class Prepare:
    """Keep users out, for a rollback, then look whether it can be done: Prepared or Failed; users
    stay out until Free. `again`: it was agreed to before a crash: keep them out, no answer."""

    work: Work
    again: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """Let users in."""

    work: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Users are refused from now on, rather than kept waiting."""

    work: Work
    why: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Durably; then Kept, or Failed: then it may be durable or not."""

    work: Work
    kind: KeptKind


@dataclass(frozen=True, slots=True)
class Drop:
    """Durably; then Dropped."""

    work: bytes
    kind: KeptKind


@dataclass(frozen=True, slots=True)
class Do:
    """And drop the promise with it; then Ended, or Failed: nothing was done."""

    work: Work


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Give `event` back after so many ms. A late one changes nothing."""

    event: Timeout
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Finished:
    """For whoever asked. `why`: it was done nowhere, or nobody knows; else it is decided, and
    `undone` will do it when they are back."""

    work: bytes
    undone: frozenset[str]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Of Resolve: it changed nothing, and why."""

    work: bytes
    why: str


Action = (
    Send | Prepare | Free | Refuse | Keep | Drop | Do | StartTimer | Finished | Rejected
)  # fmt: skip
Kind = str
