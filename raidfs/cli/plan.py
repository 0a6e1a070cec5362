"""`raidfs-ctl plan`: what members of given sizes would hold, and how long that would last.

1. Nothing is made or changed. Usable sizes are those of `create --dry-run`: the same function says
   them. Mean times to data loss are those of raidfs.reliability.
2. Everything assumed is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import click

from raidfs import reliability
from raidfs.cli.create import plan_document, plan_lines
from raidfs.cli.forecast import IN_NEXT, Forecast, World, forecast, sites_of
from raidfs.cli.output import Size, print_json, size_text, table
from raidfs.errors import UsageError
from raidfs.raid.code import LEVELS, width_least
from raidfs.raid.create import Plan, plan_volume
from raidfs.reliability import HOURS_PER_YEAR, loss_probability

MAGNITUDE = (
    "after the last losses survived, repairs take so long beside the time to the next loss that "
    "these figures are orders of magnitude only"
)
WIDE = 100  # columns of text


class Quantity(click.ParamType[float]):
    """A number above zero (or from `least` on) with which one can calculate."""

    name = "number"

    def __init__(self, least: float = 0.0) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Fails for anything else, "nan" and "inf" included."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (self.least <= number <= 1e30 and number >= 1e-9):
            least = f"from {self.least:g} on" if self.least else "above zero"
            self.fail(f"{value!r} is not a number {least}; write for example 1000 or 1e15")
        return number


def time_text(hours: float) -> str:
    """2850 years, 12.0 days: three digits, since more would mean nothing."""
    years = hours / HOURS_PER_YEAR
    if math.isinf(years):
        return "never"
    if years >= 1e6:
        return f"{years / 1e6:.3g} million years" if years < 1e9 else f"{years:.1e} years"
    if years >= 1:
        return f"{float(f'{years:.3g}'):.0f} years" if years >= 100 else f"{years:.1f} years"
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.2g} hours"


def share_text(probability: float) -> str:
    """24.4 %, 0.02 %."""
    percent = 100 * probability
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


def forecast_lines(told: Forecast) -> list[str]:
    """Which cause loses data how soon."""
    hours = told.years * HOURS_PER_YEAR
    rows: list[tuple[object, ...]] = [("DATA IS LOST BY", "MEAN TIME", f"IN {told.years:g} YEARS")]
    for line in told.lines:
        rows.append(
            (
                line.text,
                time_text(line.term.mttdl) if line.counted else f"({time_text(line.term.mttdl)})",
                share_text(line.term.probability(hours)) if line.counted else "not counted",
            )
        )
    rows.append(("any of these", time_text(told.mttdl), share_text(told.probability)))
    lines = table(rows, frozenset({1, 2}))
    lines += ["", f"dominant: {told.dominant.text}"]
    lines += [
        click.wrap_text(f"not counted: {line.text}: {line.why}", WIDE)
        for line in told.lines
        if not line.counted and line.why != IN_NEXT
    ]
    if reliability.beyond_validity(told.model):
        lines.append(click.wrap_text(f"warning: {MAGNITUDE}", WIDE))
    return lines


def assumed_text(told: Forecast) -> str:
    model = told.model
    assumed = (
        f"assumed: a member fails once in {model.mttf:g} hours "
        f"({share_text(loss_probability(model.mttf, HOURS_PER_YEAR))} a year), is repaired in "
        f"{model.mttr:.3g} hours and has one unreadable bit in {model.bits_per_error:g}; the "
        f"volume is full ({size_text(int(model.member_bytes))} on the largest member) and never "
        f"scrubbed; the system crashes once in {model.crash_mttf:g} hours."
    )
    source = (
        "Equations: Chen et al., ACM Computing Surveys 26(2), 1994, section 3.4. They compare "
        "arrangements; they know nothing of fire, theft, software and mistakes: keep backups."
    )
    return f"{click.wrap_text(assumed, WIDE)}\n{click.wrap_text(source, WIDE)}"


def forecast_document(told: Forecast) -> dict[str, Any]:
    """The same for scripts. null is a time without end."""
    hours = told.years * HOURS_PER_YEAR
    model = told.model
    return {
        **{k: v for k, v in plan_document(told.plan).items() if k not in ("volume", "volume_id")},
        "assumed": {
            "mttf_hours": model.mttf,
            "mttr_hours": model.mttr,
            "bits_per_error": model.bits_per_error,
            "correlation": model.correlation,
            "crash_mttf_hours": model.crash_mttf,
            "crash_mttr_hours": model.crash_mttr,
            "member_bytes": int(model.member_bytes),
            "members_read_per_rebuild": model.reads,
            "fatal_share": model.fatal_share,
        },
        "causes": [
            {
                "cause": line.term.cause,
                "text": line.text,
                "mttdl_hours": _finite(line.term.mttdl),
                "probability": line.term.probability(hours),
                "counted": line.counted,
                "why": line.why,
            }
            for line in told.lines
        ],
        "years": told.years,
        "mttdl_hours": _finite(told.mttdl),
        "probability": told.probability,
        "dominant": told.dominant.term.cause,
        "order_of_magnitude_only": reliability.beyond_validity(model),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def every_level(count: int) -> list[str]:
    """The levels that so many members can have; of rs:K+M three parities over all."""
    plain = [level for level in LEVELS if level != "rs:K+M" and width_least(level) <= count]
    return [*plain, *([f"rs:{count - 3}+3"] if 4 <= count <= 24 else [])]


def compared(told: Sequence[Forecast], refused: Sequence[tuple[str, str]]) -> list[str]:
    """One line for each level."""
    rows: list[tuple[object, ...]] = [
        ("LEVEL", "USABLE", "SURVIVES", "MEAN TIME", f"IN {told[0].years:g} YEARS", "DOMINANT")
    ]
    for one in told:
        rows.append(
            (
                one.plan.code.level,
                size_text(one.plan.usable_bytes),
                one.plan.tolerance,
                time_text(one.mttdl),
                share_text(one.probability),
                one.dominant.text,
            )
        )
    rough = [one.plan.code.level for one in told if reliability.beyond_validity(one.model)]
    return [
        *table(rows, frozenset({1, 2, 3, 4})),
        *([f"level {', '.join(rough)}: {MAGNITUDE}"] if rough else []),
        *(why for _, why in refused),
    ]


@click.command("plan")
@click.argument("members", metavar="SIZE|MEMBER...", nargs=-1, required=True)
@click.option(
    "--level",
    help="0, 1, 2, 3, 4, 5, 6, 10, rs:K+M, or all, to compare. Default: as create; of members of "
    "a volume, its own.",
)
@click.option("--width", type=click.IntRange(1, 24), help="Members a zone lies on. Default: all.")
@click.option("--zone-size", type=Size(), help="Bytes of a zone on one member, a power of two.")
@click.option("--cell-size", type=Size(), help="4K to 64K. Default: 4K.")
@click.option(
    "--mttf",
    type=Quantity(),
    default=600_000,
    show_default=True,
    help="Hours until a member fails. The default is 1.5 % a year, as large populations of disks "
    "show; data sheets say 1 to 2.5 million, the survey took 200000.",
)
@click.option(
    "--bit-error-rate",
    type=Quantity(least=2),
    default=1e15,
    show_default=True,
    help="Bits read per one that can't be. Data sheets say 1e14 (desktop; the survey's) to 1e17.",
)
@click.option(
    "--rebuild-speed",
    type=Size(),
    default="100M",
    show_default=True,
    help="Bytes a second onto the new member.",
)
@click.option(
    "--replacement",
    type=Quantity(),
    default=24,
    show_default=True,
    help="Hours until a rebuild begins. With a spare: 0.1 or less.",
)
@click.option(
    "--mttr",
    type=Quantity(),
    help="Hours for the whole repair, in place of the two above. The survey's: 1.",
)
@click.option(
    "--correlation",
    type=Quantity(least=1),
    default=10,
    show_default=True,
    help="How many times likelier each loss makes the next, until repaired. The default is the "
    "survey's; 1: independent.",
)
@click.option(
    "--crash-mttf",
    type=Quantity(),
    default=720,
    show_default=True,
    help="Hours between system crashes. The default, a month, is the survey's.",
)
@click.option(
    "--crash-mttr",
    type=Quantity(),
    default=1,
    show_default=True,
    help="Hours until parity is right again after one (the survey's), where it must be.",
)
@click.option("--years", type=Quantity(), default=10, show_default=True, help="To look ahead.")
@click.option("--json", "as_json", is_flag=True, help="JSON, with a version and plain integers.")
def plan_command(
    members: tuple[str, ...],
    level: str | None,
    width: int | None,
    zone_size: int | None,
    cell_size: int | None,
    as_json: bool,
    **assumed: Any,
) -> int:
    """How much members would hold, and the mean time until data is lost.

    Members are given by size (4T, or 6x4T for six), or by path: a place as for create, or a member
    of a volume. One member of a volume, alone, stands for all of that volume. Nothing is changed.

    Each cause of loss is shown with its mean time and its probability, by the equations of Chen et
    al. (ACM Computing Surveys, 1994; below: the survey). A system crash followed by a loss is
    shown, but doesn't count: raidfs never has parity that doesn't fit its data.

    \b
    Examples:
      raidfs-ctl plan 6x4T --level 6
      raidfs-ctl plan 4T 4T 8T 8T --level all --bit-error-rate 1e14
      raidfs-ctl plan /srv/disk1 --level rs:4+3 --rebuild-speed 200M
    """
    assumed["bits_per_error"] = assumed.pop("bit_error_rate")
    world = World(**assumed)
    sites, label = sites_of(members)
    if label is not None:
        width = label.parameters.width if width is None and level is None else width
        level = label.parameters.level if level is None else level
        zone_size = zone_size or label.parameters.zone_bytes
        cell_size = cell_size or label.parameters.cell_bytes

    def planned(level: str | None) -> Plan:
        return plan_volume(
            [site.path for site in sites],
            level=level,
            name=label.volume_name if label else "planned",
            width=width,
            cell_bytes=cell_size or 4096,
            zone_bytes=zone_size,
            sites=sites,
        )

    if level == "all":
        _compare(planned, len(sites), world, as_json)
        return 0
    told = forecast(planned(level), world)
    if as_json:
        print_json(forecast_document(told))
        return 0
    lines = [*plan_lines(told.plan)[1:], "", *forecast_lines(told), "", assumed_text(told)]
    click.echo("\n".join(lines))
    return 0


def _compare(planned: Callable[[str], Plan], count: int, world: World, as_json: bool) -> None:
    """All levels; those that can't be, with the reason."""
    told: list[Forecast] = []
    refused: list[tuple[str, str]] = []
    for level in every_level(count):
        try:
            told.append(forecast(planned(level), world))
        except UsageError as error:
            refused.append((level, str(error)))
    if not told:
        raise UsageError(refused[0][1])
    if as_json:
        print_json(
            {
                "levels": [forecast_document(one) for one in told],
                "refused": [{"level": level, "reason": why} for level, why in refused],
            }
        )
        return
    click.echo("\n".join([*compared(told, refused), "", assumed_text(told[0])]))
