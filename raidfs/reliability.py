"""How long an array lasts: the mean time to data loss (MTTDL), by the equations of Chen et al.

Source: Chen, Lee, Gibson, Katz, Patterson, "RAID: High-Performance, Reliable Secondary Storage",
ACM Computing Surveys 26(2), 1994, section 3.4 and its tables 4 to 6 (below: the survey). It has the
equations for one and two parities; here they stand for any number t of losses survived:

    MTTF(i) = MTTF / c^(i-1)     of a member while i-1 others are lost; c: correlation, 10 there
    x(i) = (G - i) MTTR / MTTF(i+1)      that one more goes before one of i lost ones is repaired

    cause                            losses per hour: 1 / MTTDL
    t+1 members, independent         N / MTTF  x(1) ... x(t) s      with c = 1
    t+1 members, correlated          N / MTTF  x(1) ... x(t) s
    t members, then a bit error      N / MTTF  x(1) ... x(t-1)  (1 - p^r)
    a system crash, then a member    N / MTTF  MTTR(sys) / MTTF(sys)

N members in all, G of them in a group: members that share rows. p: the probability that a member
can be read whole, r: the members that must be read so while t are rebuilt, G - t in the survey.
s: the share of the combinations of t+1 members whose loss is fatal, 1 in the survey; less for codes
that may survive more than they promise (of pairs, only a pair's two). With t = 1 and 2, and s = 1,
these are the survey's equations. For other t they follow in the same way: a member fails, then at
each step one more before a repair is done; the rates of the steps are those of a birth-death
process in which all ways but the shortest are neglected. t = 0 leaves N / MTTF, also the survey's.

What is assumed, there and here:
 1. Times to failure and to repair are exponential; MTTR is far shorter than MTTF (x(i) is never
    taken for more than 1, so that the sum stays sensible where this does not hold).
 2. One lost member is repaired after the other. If all were at the same time, t+1 losses would be
    t! times rarer (Angus, "On computing MTBF for a k-out-of-n:G repairable system", IEEE
    Transactions on Reliability 37(3), 1988): the survey's equations are the careful ones.
 3. Bit errors strike bits independently, and only while rebuilding: nobody scrubs.
 4. Each further loss is c times as likely as the one before, until it is repaired.
 5. A crash leaves parity inconsistent for MTTR(sys), and with it as much as t losses would.
 6. Losses are as a Poisson process: in a time T one comes with probability 1 - exp(-T / MTTDL).
    Hence rates add up, and the mean times of all causes together are their harmonic sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

HOURS_PER_YEAR = 8760.0

Cause = Literal["independent", "correlated", "bit_error", "crash"]


@dataclass(frozen=True, slots=True)
class Model:
    """What the equations are about; see the module. Times in hours.

    reads: members read whole per rebuild (None: as the survey, G - t). bits_per_error: bits read
    per one that can't be. fatal_share: s.
    """

    members: float
    group: float
    losses_survived: int
    mttf: float
    mttr: float
    member_bytes: float
    bits_per_error: float
    correlation: float = 10.0
    crash_mttf: float = 720.0
    crash_mttr: float = 1.0
    reads: float | None = None
    fatal_share: float = 1.0

    def __post_init__(self) -> None:
        assert self.members >= self.group > self.losses_survived >= 0
        assert min(self.mttf, self.mttr, self.crash_mttf, self.crash_mttr) > 0
        assert self.bits_per_error > 1 and self.member_bytes >= 0 and self.correlation >= 1
        assert 0 < self.fatal_share <= 1


@dataclass(frozen=True, slots=True)
class Term:
    """One cause of data loss. `mttdl` in hours, infinite if it can't happen."""

    cause: Cause
    mttdl: float

    def probability(self, hours: float) -> float:
        return loss_probability(self.mttdl, hours)


def loss_probability(mttdl: float, hours: float) -> float:
    """That data is lost within so many hours (assumption 6)."""
    return -math.expm1(-hours / mttdl)


def harmonic_sum(times: Iterable[float]) -> float:
    """The mean time until the first of several independent causes; infinite without any."""
    rate = sum(1 / time for time in times)
    return 1 / rate if rate else math.inf


def clean_read_probability(nbytes: float, bits_per_error: float) -> float:
    """That so many bytes are read without an error: p of the survey for one member's bytes."""
    return math.exp(nbytes * 8 * math.log1p(-1 / bits_per_error))


def member_losses(model: Model) -> float:
    """MTTDL by t+1 members lost before one is repaired, each likelier than the one before."""
    chance = math.prod(_overlaps(model, model.losses_survived)) * model.fatal_share
    return _time(model.members / model.mttf * chance)


def independent_losses(model: Model) -> float:
    """The same if no loss made another likelier: the survey's section 3.4.1."""
    return member_losses(replace(model, correlation=1.0))


def bit_error(model: Model) -> float:
    """MTTDL by t members lost and an error in what is read to rebuild them.

    Infinite without redundancy: then nothing is rebuilt, and how often an error is met is a matter
    of how much is read.
    """
    if model.losses_survived == 0:
        return math.inf
    reads = model.group - model.losses_survived if model.reads is None else model.reads
    nbytes = model.member_bytes * reads
    error = -math.expm1(nbytes * 8 * math.log1p(-1 / model.bits_per_error))
    before = math.prod(_overlaps(model, model.losses_survived - 1))
    return _time(model.members / model.mttf * before * error)


def crash(model: Model) -> float:
    """MTTDL by a system crash that leaves parity inconsistent, and a member lost before it is
    made right: of an array that updates rows in place. Infinite without redundancy."""
    if model.losses_survived == 0:
        return math.inf
    return _time(model.members / model.mttf * model.crash_mttr / model.crash_mttf)


def terms(model: Model) -> list[Term]:
    """All causes, in the survey's order. The independent losses are a part of the correlated."""
    return [
        Term("independent", independent_losses(model)),
        Term("correlated", member_losses(model)),
        Term("bit_error", bit_error(model)),
        Term("crash", crash(model)),
    ]


def total(counted: Sequence[Term]) -> float:
    """MTTDL by all of these causes."""
    return harmonic_sum(term.mttdl for term in counted)


def dominant(counted: Sequence[Term]) -> Term:
    """The cause that comes first most often."""
    return min(counted, key=lambda term: term.mttdl)


def beyond_validity(model: Model) -> bool:
    """Whether assumption 1 does not hold: with some members lost, a further loss comes about as
    soon as the repair. What is said then is an order of magnitude."""
    return any(chance > 0.1 for chance in _overlaps(model, model.losses_survived))


def _overlaps(model: Model, count: int) -> list[float]:
    """x(1) ... x(count) of the module."""
    return [
        min(1.0, (model.group - i) * model.mttr * model.correlation**i / model.mttf)
        for i in range(1, count + 1)
    ]


def _time(rate: float) -> float:
    return 1 / rate if rate else math.inf
