"""Making a volume: members laid out, the first metadata on them, labels last.

1. Until the last label is written no member belongs to the volume; if anything fails before, what
   was made is taken away again (raid/create.py).
"""

from __future__ import annotations

from collections.abc import Callable

from ..raid.create import Plan, create_volume
from ..raid.label import Parameters
from ..raid.member import Member
from .meta import Meta


def make_volume(
    plan: Plan, *, uid: int | None = None, gid: int | None = None, now_ns: Callable[[], int]
) -> None:
    """Carry out a plan (raid.create.plan_volume). The root directory belongs to uid and gid, those
    of this process if not given. MemberError, MemberBusy: then nothing was changed."""

    def prepare(members: dict[int, Member], parameters: Parameters) -> None:
        Meta.create(members, parameters, now_ns(), uid=uid, gid=gid)

    create_volume(plan, prepare)
