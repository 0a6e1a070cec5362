"""Which members are believed, and whether a volume may be mounted: two tables.

The newest label's member table decides. Every label found is compared with it: is it the same
generation, an older one of its line, or one that isn't of its line? The first table turns that, and
how the newest table lists the member, into a verdict on the member; the second turns all verdicts
into an outcome. The tables are data; exactly one row matches each combination that can occur.

 1. A member listed as failed is never believed: it missed changes.
 2. A member with an older label of the newest's line that is still listed as active is believed: a
    crash cut off an update of labels, which comes before anything that the member could miss.
 3. A label that isn't of the newest's line means that two parts of the volume went on separately:
    the mount is refused whatever else holds.
 4. Running newly without a member needs `degraded`; a loss once recorded doesn't.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raidfs.raid.label import Label

Seen = Literal["absent", "corrupt", "current", "older", "ancient", "apart"]
Listed = Literal["active", "failed"]
Verdict = Literal["current", "interrupted", "stale", "divergent", "absent", "corrupt"]
Losses = Literal["none", "recorded", "new"]
Reach = Literal["within", "beyond"]
Outcome = Literal[
    "healthy", "degraded", "needs_degraded", "refused_divergent", "refused_lost", "ask_zones"
]

SEEN: tuple[Seen, ...] = ("absent", "corrupt", "current", "older", "ancient", "apart")
LISTED: tuple[Listed, ...] = ("active", "failed")

# (seen, listed) -> verdict. "ancient": older than the newest label's history goes back. A member
# that is active gets every label, so one that is ancient and active is of another line.
MEMBER_TABLE: tuple[tuple[tuple[Seen, ...], tuple[Listed, ...], Verdict], ...] = (
    (("current",), ("active",), "current"),
    (("older",), ("active",), "interrupted"),
    (("absent",), ("active",), "absent"),
    (("corrupt",), ("active",), "corrupt"),
    (("absent", "corrupt", "current", "older", "ancient"), ("failed",), "stale"),
    (("ancient",), ("active",), "divergent"),
    (("apart",), ("active", "failed"), "divergent"),
)

BELIEVED: frozenset[Verdict] = frozenset({"current", "interrupted"})
NEW_LOSS: frozenset[Verdict] = frozenset({"absent", "corrupt"})

YES, NO, ANY = (True,), (False,), (True, False)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the volume table: the values of each condition that it takes, and the outcome."""

    divergent: tuple[bool, ...]
    losses: tuple[Losses, ...]
    reach: tuple[Reach, ...]
    may_survive_more: tuple[bool, ...]
    degraded_flag: tuple[bool, ...]
    outcome: Outcome

    def matches(self, case: Case) -> bool:
        return (
            case.divergent in self.divergent
            and case.losses in self.losses
            and case.reach in self.reach
            and case.may_survive_more in self.may_survive_more
            and case.degraded_flag in self.degraded_flag
        )


@dataclass(frozen=True, slots=True)
class Case:
    """The conditions of a mount. reach: lost members against what the code always survives."""

    divergent: bool
    losses: Losses
    reach: Reach
    may_survive_more: bool
    degraded_flag: bool

    def possible(self) -> bool:
        """No loss is within any tolerance."""
        return not (self.losses == "none" and self.reach == "beyond")


_ALL_LOSSES: tuple[Losses, ...] = ("none", "recorded", "new")
_BOTH: tuple[Reach, ...] = ("within", "beyond")

# divergent, losses, reach, may survive more, flag -> outcome
VOLUME_TABLE: tuple[Row, ...] = (
    Row(YES, _ALL_LOSSES, _BOTH, ANY, ANY, "refused_divergent"),
    Row(NO, ("none",), ("within",), ANY, ANY, "healthy"),
    Row(NO, ("recorded",), ("within",), ANY, ANY, "degraded"),
    Row(NO, ("new",), ("within",), ANY, YES, "degraded"),
    Row(NO, ("new",), ("within",), ANY, NO, "needs_degraded"),
    Row(NO, ("recorded", "new"), ("beyond",), NO, ANY, "refused_lost"),
    Row(NO, ("recorded",), ("beyond",), YES, ANY, "ask_zones"),
    Row(NO, ("new",), ("beyond",), YES, YES, "ask_zones"),
    Row(NO, ("new",), ("beyond",), YES, NO, "needs_degraded"),
)


@dataclass(frozen=True, slots=True)
class Observation:
    """One member of the newest table, as found."""

    seen: Seen
    listed: Listed


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome, and the verdict on each member of the newest table."""

    outcome: Outcome
    verdicts: Mapping[int, Verdict]

    def having(self, verdicts: frozenset[Verdict]) -> list[int]:
        """The members with one of these verdicts, ascending."""
        return sorted(member for member, verdict in self.verdicts.items() if verdict in verdicts)


def newest_of(labels: list[Label]) -> Label:
    """The one whose member table decides. Of two of the same generation either will do."""
    return max(labels, key=lambda label: (label.generation, label.generation_id))


def seen_as(label: Label, newest: Label) -> Seen:
    """How a label that could be read stands to the newest."""
    mine = (label.generation, label.generation_id)
    if mine == newest.history[-1]:
        return "current"
    if mine in newest.history:
        return "older"
    return "ancient" if label.generation < newest.history[0][0] else "apart"


def verdict_on(observation: Observation) -> Verdict:
    """The first table."""
    found = [
        verdict
        for seen, listed, verdict in MEMBER_TABLE
        if observation.seen in seen and observation.listed in listed
    ]
    assert len(found) == 1, observation
    return found[0]


def outcome_of(case: Case) -> Outcome:
    """The second table."""
    assert case.possible(), case
    found = [row.outcome for row in VOLUME_TABLE if row.matches(case)]
    assert len(found) == 1, case
    return found[0]


def decide(
    observations: Mapping[int, Observation],
    *,
    tolerance: int,
    may_survive_more: bool,
    degraded: bool,
) -> Decision:
    """Both tables. tolerance: members that the volume's code survives losing, wherever."""
    verdicts = {member: verdict_on(seen) for member, seen in observations.items()}
    lost = [verdict for verdict in verdicts.values() if verdict not in BELIEVED]
    losses: Losses = "none"
    if lost:
        losses = "new" if NEW_LOSS.intersection(lost) else "recorded"
    case = Case(
        divergent="divergent" in lost,
        losses=losses,
        reach="beyond" if len(lost) > tolerance else "within",
        may_survive_more=may_survive_more,
        degraded_flag=degraded,
    )
    return Decision(outcome_of(case), verdicts)
