"""Change of shape by command: another level or width, and members that are equally full.

What it does is store/reshape.py's; what it needs, and whether that can be, is store/shape.py's.

 1. A request that is refused has changed nothing; one that only looks (`dry_run`) says what the
    other would do, refusals included.
 2. A level that survives less than the present one is refused unless the request says that this is
    known (`weaker`).
"""

from __future__ import annotations

import msgspec

from raidfs.daemon.control import Handler, Request
from raidfs.errors import UsageError
from raidfs.raid.create import size_text
from raidfs.store.shape import Conversion, plan_conversion
from raidfs.store.store import Store

RATE_LEAST = 1.0


class ConvertRequest(Request, frozen=True, tag="convert"):
    """Answered with a ReshapeAnswer when all new zones get that code. No level: the present one; no
    width: that of a new volume over these members."""

    level: str = ""
    width: int = 0
    weaker: bool = False
    dry_run: bool = False

    def changes(self) -> bool:
        return not self.dry_run


class RebalanceRequest(Request, frozen=True, tag="rebalance"):
    """Answered with a ReshapeAnswer when it is under way. `stop`: it ends."""

    stop: bool = False
    dry_run: bool = False

    def changes(self) -> bool:
        return not self.dry_run


class ReshapeAnswer(msgspec.Struct, frozen=True):
    """`done` false: nothing was changed (yet, or ever). `said`: what was done, or would be;
    `warned`: what to think of before. `move_bytes`: to be written anew. `seconds`: that it takes at
    the present rate; None if that isn't known. `usable_bytes`, `losses`: before and after."""

    verb: str
    done: bool
    said: list[str] = []
    warned: list[str] = []
    move_bytes: int = 0
    seconds: float | None = None
    usable_bytes: tuple[int, int] | None = None
    losses: tuple[int, int] | None = None
    job: str = ""
    version: int = 1


class ReshapeService:
    """Of one open store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def handlers(self) -> dict[type[Request], Handler]:
        """By the request that each answers."""
        return {ConvertRequest: self._convert, RebalanceRequest: self._rebalance}

    async def _convert(self, request: ConvertRequest) -> ReshapeAnswer:
        store = self.store
        store.writable()
        level = request.level or store.assembly.label.parameters.level
        plan = plan_conversion(store.space, level, request.width or None)
        if plan.is_weaker and not (request.weaker or request.dry_run):
            raise UsageError(
                f"level {plan.new.level} survives less than level {plan.old.level}:"
                f" {plan.warnings[0]}; --yes does it all the same"
            )
        answer = self._told(plan, done=not request.dry_run)
        if not request.dry_run:
            await store.reshape.convert(plan.new.level, plan.new.width)
        return answer

    def _told(self, plan: Conversion, *, done: bool) -> ReshapeAnswer:
        old, new = plan.old, plan.new
        did = "new zones are" if done else "new zones would be"
        return ReshapeAnswer(
            "convert",
            done,
            said=[
                f"{did} of level {new.level}, {new.width} wide, instead of level {old.level},"
                f" {old.width} wide; {size_text(plan.move_bytes)} in {plan.zones} zones"
                f" {'are' if done else 'would be'} moved to such in the background"
            ],
            warned=list(plan.warnings),
            move_bytes=plan.move_bytes,
            seconds=self._seconds(plan.move_bytes),
            usable_bytes=(plan.usable_before_bytes, plan.usable_after_bytes),
            losses=(old.tolerance, new.tolerance),
            job="convert",
        )

    async def _rebalance(self, request: RebalanceRequest) -> ReshapeAnswer:
        store, reshape = self.store, self.store.reshape
        store.writable()
        if request.stop:
            if not request.dry_run:
                await reshape.stop_rebalance()
            return ReshapeAnswer("rebalance", not request.dry_run, ["the rebalance is stopped"])
        if reshape.settings.rebalance:
            raise UsageError("a rebalance is under way already; `raidfs-ctl wait` waits for it")
        moves, nbytes = await reshape.evening.plan()
        if not moves and not reshape.unwanted_zones():
            nothing = "all members are equally full, as far as can be: nothing to do"
            return ReshapeAnswer("rebalance", False, [nothing])
        said = (
            f"{moves} columns ({size_text(nbytes)}) {'would be' if request.dry_run else 'are'}"
            " moved from the fullest members to the emptiest"
        )
        answer = ReshapeAnswer(
            "rebalance",
            not request.dry_run,
            [said],
            move_bytes=nbytes,
            seconds=self._seconds(nbytes),
            job="rebalance",
        )
        if not request.dry_run:
            await reshape.rebalance()
        return answer

    def _seconds(self, nbytes: int) -> float | None:
        """At the rate of what was done lately, of this kind or in rebuilding."""
        rates = (self.store.reshape.pace.rate_bytes_s, self.store.mender.pace.rate_bytes_s)
        rate = next((rate for rate in rates if rate >= RATE_LEAST), 0.0)
        return nbytes / rate if rate else None
