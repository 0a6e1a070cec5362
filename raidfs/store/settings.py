"""How rebuilding goes about, as the volume's administrator wants it; kept in the volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from .meta import Meta

NAME = "rebuild"  # among the volume's settings


class RebuildSettings(msgspec.Struct, frozen=True):
    """rebuild: what is done when a member is lost and nobody was named to replace it. "auto": a hot
    spare takes its place, or without one all members with room share its columns; "spare": only a
    spare does; "manual": nobody, until an administrator says who. limit_bytes_s: 0 for none."""

    rebuild: Literal["auto", "spare", "manual"] = "auto"
    paused: bool = False
    limit_bytes_s: int = 0

    @property
    def spreads(self) -> bool:
        """Columns of a lost member go to any member with room."""
        return self.rebuild == "auto"

    @property
    def why_no_place(self) -> str:
        """What to do when a column has nowhere to go."""
        if self.spreads:
            return "no member that could take them has room: add one"
        what = {"spare": "hot spares are used", "manual": "what is named is used"}[self.rebuild]
        return f"by the volume's setting only {what}: add a spare, or replace the lost member"

    def changed(self, **values: Any) -> RebuildSettings:
        return msgspec.structs.replace(self, **values)

    def save(self, meta: Meta) -> None:
        """In the transaction that makes an epoch durable."""
        meta.put_setting(NAME, msgspec.json.encode(self))


def load_settings(meta: Meta) -> RebuildSettings:
    """Those of the volume; what can't be understood, as by default."""
    stored = meta.setting(NAME)
    if stored is None:
        return RebuildSettings()
    try:
        return msgspec.json.decode(stored, type=RebuildSettings)
    except msgspec.MsgspecError:
        return RebuildSettings()
