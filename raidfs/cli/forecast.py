"""What a volume that isn't there would be: members by size or path, and how long it would last.

What can't be known is assumed to the volume's disadvantage: it is full, a member to rebuild is the
largest, and with more members than width any losses beyond what the level survives are fatal.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from raidfs import reliability
from raidfs.cli.output import parse_size
from raidfs.errors import LabelMissing, UsageError
from raidfs.raid.code import Code
from raidfs.raid.create import DIRECTORY_SHARE, Plan
from raidfs.raid.finding import find_members
from raidfs.raid.label import MEMBERS_MAX, Label, MemberEntry
from raidfs.raid.places import identity, kind_of, peek
from raidfs.raid.sites import Site, survey
from raidfs.reliability import HOURS_PER_YEAR, Model, Term, loss_probability

_MANY = re.compile(r"([0-9]{1,9})x(.+)", re.ASCII | re.IGNORECASE)
ROW_RULE = (
    "removed: a row is written once, in full, before anything refers to it, so no crash leaves "
    "parity that doesn't fit its data"
)
NO_SHARED_PARITY = "none: no parity is shared, so a crash endangers nothing but what is written"
IN_NEXT = "part of the next line"


@dataclass(frozen=True, slots=True)
class World:
    """What is assumed of members and their surroundings; times in hours."""

    mttf: float
    bits_per_error: float
    rebuild_speed: int
    replacement: float
    mttr: float | None
    correlation: float
    crash_mttf: float
    crash_mttr: float
    years: float


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the outcome. `counted`: in the sum of all causes; else `why` says why not."""

    term: Term
    text: str
    counted: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is told of one plan."""

    plan: Plan
    model: Model
    lines: tuple[Line, ...]
    years: float

    @property
    def counted(self) -> list[Term]:
        return [line.term for line in self.lines if line.counted]

    @property
    def mttdl(self) -> float:
        return reliability.total(self.counted)

    @property
    def probability(self) -> float:
        return loss_probability(self.mttdl, self.years * HOURS_PER_YEAR)

    @property
    def dominant(self) -> Line:
        first = reliability.dominant(self.counted)
        return next(line for line in self.lines if line.counted and line.term is first)


# -- members that need not exist ------------------------------------------------------------------


def sites_of(words: Sequence[str]) -> tuple[list[Site], Label | None]:
    """Places by words: SIZE, COUNTxSIZE, a path. One member of a volume stands for all of them;
    then its label comes with them."""
    if len(words) == 1 and (label := _label_at(words[0])) is not None:
        newest = find_members(words[0]).newest
        return [_of_entry(i, entry) for i, entry in enumerate(newest.members)], newest
    sites: list[Site] = []
    looked_at = iter(survey([word for word in words if _is_place(word)], force=True))
    for word in words:
        many = _MANY.fullmatch(word)
        count, text = (int(many[1]), many[2]) if many else (1, word)
        nbytes = _size_of(text)
        if nbytes is not None:
            if not 1 <= count <= MEMBERS_MAX - len(sites):
                raise UsageError(f"{word}: a volume has 1 to {MEMBERS_MAX} members")
            sites += [_imagined(len(sites) + i, nbytes) for i in range(count)]
        elif _is_place(word):
            sites.append(next(looked_at))
        elif (label := _label_at(word)) is not None:
            sites.append(_of_entry(len(sites), label.entry(label.member_id)))
        else:
            raise UsageError(
                f"{word} is neither a size (write 4T, or 6x4T for six of them) nor a place that "
                "exists"
            )
    seen = [site.identity for site in sites]
    for site in sites:
        if seen.count(site.identity) > 1:
            raise UsageError(f"{site.path} was named twice: name each member once")
    return sites, None


def _is_place(word: str) -> bool:
    """Somewhere that `create` could take: it exists, and isn't a member yet."""
    return _size_of(word) is None and os.path.exists(word) and _label_at(word) is None


def _size_of(text: str) -> int | None:
    try:
        return parse_size(text)
    except UsageError:
        return None


def _label_at(path: str) -> Label | None:
    """Of a place that exists and is a member already."""
    if _size_of(path) is not None or not os.path.exists(path):
        return None
    kind_of(path)  # says what is wrong with what can't be a member
    try:
        return peek(path)
    except LabelMissing:
        return None


def _imagined(number: int, nbytes: int) -> Site:
    return Site(
        path=f"member {number}",
        kind="image",
        identity=("imagined", number, 0, 0),
        filesystem=None,
        room_bytes=nbytes,
        ours=False,
    )


def _of_entry(number: int, entry: MemberEntry) -> Site:
    """A member as its volume's label knows it, with the room that it was given."""
    directory = entry.kind == "directory"
    there = os.path.exists(entry.path)
    return Site(
        path=entry.path,
        kind="directory" if directory else "image",
        identity=identity(entry.path) if there else ("absent", number, 0, 0),
        filesystem=-1 - number if directory else None,  # its room is not to be shared once more
        room_bytes=math.ceil(entry.bytes / DIRECTORY_SHARE) + 1 if directory else entry.bytes,
        ours=True,
    )


# -- what they make -------------------------------------------------------------------------------


def forecast(plan: Plan, world: World) -> Forecast:
    """The equations for that plan."""
    model = model_of(plan, world)
    return Forecast(plan, model, tuple(_lines(plan.code, model)), world.years)


def model_of(plan: Plan, world: World) -> Model:
    """See the module."""
    code, count = plan.code, len(plan.members)
    zone_bytes = plan.parameters.zone_bytes
    largest = max(min(member.slots, plan.zones) for member in plan.members) * zone_bytes
    survived, share = losses_survived(code)
    reads = (code.width - survived) * share
    for i in range(1, survived):  # only zones on all that are lost have no redundancy left
        reads *= (code.width - i) / (count - i)
    repair = world.replacement + largest / world.rebuild_speed / 3600
    return Model(
        members=count,
        group=count,
        losses_survived=survived,
        mttf=world.mttf,
        mttr=repair if world.mttr is None else world.mttr,
        member_bytes=largest,
        bits_per_error=world.bits_per_error,
        correlation=world.correlation,
        crash_mttf=world.crash_mttf,
        crash_mttr=world.crash_mttr,
        reads=reads,
        fatal_share=share if count == code.width else 1.0,
    )


def losses_survived(code: Code) -> tuple[int, float]:
    """(losses survived wherever they fall, the share of combinations of one more that are fatal).
    The former may be more than the code promises: the narrowest of level 2 is four copies."""
    if not code.may_survive_more:
        return code.tolerance, 1.0
    for survived in range(code.tolerance, code.m + 1):
        every = list(itertools.combinations(_checks(code), survived + 1))
        fatal = sum(map(_dependent, every))
        if fatal:
            return survived, fatal / len(every)
    raise AssertionError("more losses survived than there are parity columns")


def _checks(code: Code) -> list[int]:
    """The columns of the parity check matrix, as bits. Codes that may survive more are all binary,
    so this says as much as `Code.survives`, and does so for thousands of combinations at once."""
    assert code.parity.max() == 1
    data = [sum(int(code.parity[i, c]) << i for i in range(code.m)) for c in range(code.k)]
    return data + [1 << i for i in range(code.m)]


def _dependent(columns: Sequence[int]) -> bool:
    """Whether some of them sum to zero: then what they held can't be told apart, and is lost."""
    sums = {0}
    for column in columns:
        if column in sums:
            return True
        sums |= {column ^ other for other in sums}
    return False


def _lines(code: Code, model: Model) -> list[Line]:
    lost = model.losses_survived
    independent, correlated, bit_error, crash = reliability.terms(model)
    more = f"{lost + 1} members" if lost else "any member"
    if lost == 0:
        return [
            Line(independent, f"{more} lost", True),
            Line(bit_error, "an unreadable sector", False, "loses what it held, at any time"),
            Line(crash, "a system crash, then a member lost", False, NO_SHARED_PARITY),
        ]
    factor = f"each loss makes a further one {model.correlation:g} times as likely"
    few = f"{lost} member{'s' if lost > 1 else ''}"
    shared = code.k > 1 and code.placement != "pairs"
    return [
        Line(independent, f"{more} lost independently", False, IN_NEXT),
        Line(correlated, f"{more} lost; {factor}", True),
        Line(bit_error, f"{few} lost, then an unreadable sector in the rebuild", True),
        Line(
            crash,
            "a system crash, then a member lost",
            False,
            ROW_RULE if shared else NO_SHARED_PARITY,
        ),
    ]
