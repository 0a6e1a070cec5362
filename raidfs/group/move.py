"""Moves of files between two volumes of a group: the protocol of both sides, as tables.

    source                                       target
    begin, offered   -- Offered (offer) -->      begin, staging   pulls the content, hidden
    promising        <-- Staged (ack) --         sealing, staged
    giving, given    -- Given (ownership) -->    owned, linked    it has its name
    ending           <-- Taken (ack) --          taken
                     -- Settled (ack) -->        ending

Words. *Row*: what a side keeps of a move through a crash; `Keep` and `Drop` change it durably, and
what is done before is durable with it. *Give*: in one step without waiting, the source hides the
file and Given is sent. *Link*: the target gives what it has staged its name. *Stamp*: tells whether
the file is what was staged. Nothing here awaits, has a clock or a socket: `handle` takes an event
and gives the actions to carry out, in their order.

 1. The source gives only after the row says `giving`, with the stamp; the hiding and the message
    lie in one epoch, so a cut has the file before both or after both.
 2. A source that comes back with a row `giving` hides the file before anybody sees it, unless the
    stamp tells that it was never given: nothing that was given is shown again.
 3. Taken is said when the link is durable; only then does the source forget, and remove what it
    has hidden; only then (Settled) does the target forget. So Given may come any number of times.
 4. Until it is given, whatever goes wrong leaves the file at the source.
 5. Each event has an answer in each state: the tables', or none, which changes nothing.
 6. A person's word takes the place of the other side's when that is gone for good (Believe,
    TakeBack). It may be wrong; then the file is in two places, or in none: nothing else goes wrong,
    and if the other side comes back, the move ends there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from .messages import Name
from .move_said import CONTENT_BYTES as CONTENT_BYTES
from .move_said import LIST_BYTES as LIST_BYTES
from .move_said import ContentAsked as ContentAsked
from .move_said import ContentTold as ContentTold
from .move_said import Given as Given
from .move_said import Item as Item
from .move_said import Offered as Offered
from .move_said import Payload as Payload
from .move_said import Refused as Refused
from .move_said import Settled as Settled
from .move_said import SourceRow as SourceRow
from .move_said import Staged as Staged
from .move_said import Staging as Staging
from .move_said import Taken as Taken
from .move_said import TargetRow as TargetRow
from .move_said import Unknown as Unknown
from .move_said import Withdrawn as Withdrawn
from .move_said import payload_of as payload_of
from .move_said import transfer as transfer

# -- events and actions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    payload: Payload


@dataclass(frozen=True, slots=True)
class Up:
    """There is a connection to the peer; what was sent before may be lost."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The last Keep is durable."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """So is Drop."""


@dataclass(frozen=True, slots=True)
class GivenAway:
    """The answer to Give: the file is hidden."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The answer to Give: it isn't what was staged any more. Nothing was done."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Whoever asked for the move doesn't want it any more, or it can't be."""

    why: str


@dataclass(frozen=True, slots=True)
class Content:
    """All is staged, and durable."""

    stamp: bytes


@dataclass(frozen=True, slots=True)
class Unable:
    """It can't be staged."""

    why: str


@dataclass(frozen=True, slots=True)
class Linked:
    """It has that name."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Believe:
    """A person's word: the file is the target's; to the source: the target has it."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """A person's word: the file is the source's; the target hasn't got it, and won't."""


Event = (
    Heard | Up | Kept | Dropped | GivenAway | Changed | Cancel | Content | Unable | Linked
    | Believe | TakeBack
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Send:
    payload: Payload


@dataclass(frozen=True, slots=True)
class Keep:
    """Make the row durable, with all that was done before; then Kept."""

    row: SourceRow | TargetRow


@dataclass(frozen=True, slots=True)
class Drop:
    """Durably; then Dropped."""


@dataclass(frozen=True, slots=True)
class Give:
    """If it is what was staged, hide it: then GivenAway, at once; else Changed. It may be answered
    later, when there is a connection and nobody has the file open."""

    stamp: bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """Fetch the content; then Content or Unable. Again: begin anew where that stamp is another."""


@dataclass(frozen=True, slots=True)
class Link:
    """Give what is hidden its name, as soon as that can be (at the source: the one it had); then
    Linked."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The move is over; what is hidden of it isn't needed. `name`: what the target called it;
    `why`: it was not moved."""

    name: bytes = b""
    why: str = ""


Action = Send | Keep | Drop | Give | Stage | Link | Finish
Kind = str


def kind_of(event: Event) -> Kind:
    what = event.payload if isinstance(event, Heard) else event
    return type(what).__name__.lower()


@dataclass
class Source:
    """The side that has the file."""

    row: SourceRow
    state: str = "begin"
    name: bytes = b""
    why: str = ""
    _out: list[Action] = field(default_factory=list)

    @classmethod
    def recover(cls, row: SourceRow, *, hidden: bool) -> Source:
        """`hidden`: whether the file is, after promise 2 was kept."""
        if hidden:
            return cls(row, "given")
        return cls(msgspec.structs.replace(row, state="offered"), "offered")

    @property
    def is_given(self) -> bool:
        """It is hidden here, and whether the target has it is not known."""
        return self.state in ("given", "returning")

    @property
    def links(self) -> bool:
        return self.state == "returning"

    def start(self) -> list[Action]:
        return [Keep(self.row)]

    def handle(self, event: Event) -> list[Action]:
        rule = SOURCE[self.state].get(kind_of(event))
        if rule is not None:
            rule(self, event)
        out, self._out = self._out, []
        return out

    def _go(self, state: str, *actions: Action) -> None:
        self.state = state
        self._out += actions

    def _offer(self, _: Event) -> None:
        row = self.row
        said = Offered(row.name, row.place, row.size_bytes, row.waits, row.stamp)
        self._go("offered", Send(said))

    def _promise(self, event: Event) -> None:
        assert isinstance(event, Heard) and isinstance(event.payload, Staged)
        said = event.payload
        if said.stamp == self.row.stamp:
            return  # that is stale, and it will hear so
        self.row = msgspec.structs.replace(
            self.row, state="giving", stamp=said.stamp, to_parent=said.parent, to_name=said.name
        )
        self._go("promising", Keep(self.row))

    def _give(self, _: Event) -> None:
        self._go("giving", Give(self.row.stamp))

    def _gave(self, _: Event) -> None:
        self._go("given", Send(Given(self.row.to_parent, self.row.to_name)))

    def _retract(self, _: Event) -> None:
        self.row = msgspec.structs.replace(self.row, state="offered")
        self._go("begin", Keep(self.row))

    def _refused(self, event: Event) -> None:
        assert isinstance(event, Heard) and isinstance(event.payload, Refused)
        self.why = event.payload.reason
        self._go("ending", Drop())

    def _cancel(self, event: Event) -> None:
        self.why = (event.why if isinstance(event, Cancel) else "") or "given up"
        self._go("ending", Drop())

    def _taken(self, event: Event) -> None:
        assert isinstance(event, Heard) and isinstance(event.payload, Taken)
        self.name = event.payload.name
        self._go("ending", Drop())

    def _believe(self, _: Event) -> None:
        self.name = self.row.to_name
        self._go("ending", Drop())

    def _take_back(self, _: Event) -> None:
        self._go("returning", Link())

    def _returned(self, event: Event) -> None:
        assert isinstance(event, Linked)
        self.why = f"taken back, as {name_text(event.name)}"
        self._go("ending", Drop())

    def _end(self, _: Event) -> None:
        said: Payload = Settled() if self.name else Withdrawn()
        self._go("ended", Send(said), Finish(self.name, self.why))


SourceRule = Callable[[Source, Event], None]
SOURCE: dict[str, dict[Kind, SourceRule]] = {
    "begin": {"kept": Source._offer, "cancel": Source._cancel},
    "offered": {
        "up": Source._offer,
        "staged": Source._promise,
        "refused": Source._refused,
        "cancel": Source._cancel,
        "takeback": Source._cancel,
        "taken": Source._cancel,  # taken back, but a crash left the row
    },
    "promising": {"kept": Source._give, "cancel": Source._cancel, "takeback": Source._cancel},
    "giving": {
        "up": Source._give,
        "givenaway": Source._gave,
        "changed": Source._retract,
        "cancel": Source._cancel,
        "takeback": Source._cancel,
    },
    "given": {
        "up": Source._gave,
        "staged": Source._gave,
        "taken": Source._taken,
        "believe": Source._believe,
        "takeback": Source._take_back,
    },
    "returning": {"linked": Source._returned},
    "ending": {"dropped": Source._end},
    "ended": {},
}


@dataclass
class Target:
    """The side that gets it. `state` "none": nothing is known of the move."""

    row: TargetRow
    state: str = "begin"
    why: str = ""
    _out: list[Action] = field(default_factory=list)

    @classmethod
    def recover(cls, row: TargetRow, *, hidden: bool) -> tuple[Target, list[Action]]:
        """`hidden`: whether what was staged is there, without its name."""
        if row.state == "staging":
            return cls(row, "staging"), [Stage()]
        if row.state == "taken":
            return cls(row, "taken"), []
        if hidden:
            return cls(row, "staged"), []
        row = msgspec.structs.replace(row, state="taken", taken_as=row.name)
        return cls(row, "linked"), [Keep(row)]

    @property
    def is_owned(self) -> bool:
        """It is ours, and has no name yet: a cut now has to record that it is on its way."""
        return self.state == "owned"

    @property
    def links(self) -> bool:
        return self.state == "owned"

    def start(self) -> list[Action]:
        return [Keep(self.row)]

    def handle(self, event: Event) -> list[Action]:
        rule = TARGET[self.state].get(kind_of(event))
        if rule is not None:
            rule(self, event)
        out, self._out = self._out, []
        return out

    def _go(self, state: str, *actions: Action) -> None:
        self.state = state
        self._out += actions

    def _stage(self, _: Event) -> None:
        self._go("staging", Stage())

    def _still(self, _: Event) -> None:
        self._go("staging", Send(Staging()))

    def _again(self, event: Event) -> None:
        """It was changed before it was given; or only said again."""
        assert isinstance(event, Heard) and isinstance(event.payload, Offered)
        if event.payload.stale != self.row.stamp:
            self._staged(event)
            return
        self.row = msgspec.structs.replace(self.row, state="staging", stamp=b"")
        self._go("begin", Keep(self.row))

    def _seal(self, event: Event) -> None:
        assert isinstance(event, Content)
        self.row = msgspec.structs.replace(self.row, state="staged", stamp=event.stamp)
        self._go("sealing", Keep(self.row))

    def _staged(self, _: Event) -> None:
        row = self.row
        self._go("staged", Send(Staged(row.stamp, row.parent, row.name)))

    def _own(self, _: Event) -> None:
        self._go("owned", Link())

    def _link(self, event: Event) -> None:
        assert isinstance(event, Linked)
        self.row = msgspec.structs.replace(self.row, state="taken", taken_as=event.name)
        self._go("linked", Keep(self.row))

    def _taken(self, _: Event) -> None:
        self._go("taken", Send(Taken(self.row.taken_as)))

    def _unable(self, event: Event) -> None:
        assert isinstance(event, Unable)
        self.why = event.why[:1000]
        self._go("ending", Drop())

    def _drop(self, _: Event) -> None:
        self._go("ending", Drop())

    def _end(self, _: Event) -> None:
        said = [Send(Refused(self.why))] if self.why else []
        self._go("ended", *said, Finish(self.row.taken_as, self.why))


TargetRule = Callable[[Target, Event], None]
TARGET: dict[str, dict[Kind, TargetRule]] = {
    "begin": {"kept": Target._stage, "withdrawn": Target._drop, "takeback": Target._drop},
    "staging": {
        "up": Target._still,
        "content": Target._seal,
        "unable": Target._unable,
        "withdrawn": Target._drop,
        "takeback": Target._drop,
    },
    "sealing": {"kept": Target._staged, "withdrawn": Target._drop, "takeback": Target._drop},
    "staged": {
        "up": Target._staged,
        "offered": Target._again,
        "given": Target._own,
        "withdrawn": Target._drop,
        "believe": Target._own,
        "takeback": Target._drop,
    },
    "owned": {"linked": Target._link},
    "linked": {"kept": Target._taken},
    "taken": {
        "up": Target._taken,
        "given": Target._taken,
        "settled": Target._drop,
        "believe": Target._drop,
    },
    "ending": {"dropped": Target._end},
    "ended": {},
}


def answer_of_source(payload: Payload) -> Payload | None:
    """What who knows nothing of a move answers, when it is spoken to as its source."""
    match payload:
        case Staging() | Staged():
            return Withdrawn()
        case Taken():
            return Settled()
        case _:
            return None


def name_text(name: bytes) -> Name:
    return name.decode(errors="replace")[:255] or "?"
