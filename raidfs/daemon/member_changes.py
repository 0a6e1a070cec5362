"""What all changes of a volume's members have in common: see members.py."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from raidfs.daemon import mounts
from raidfs.daemon.member_plans import fit
from raidfs.daemon.member_requests import MemberAnswer
from raidfs.raid.create import size_text
from raidfs.raid.enlarge import abandon, lay_out_member, plan_members
from raidfs.raid.label import Label, MemberEntry
from raidfs.store.store import Store


@dataclass(slots=True)
class Turn:
    """A request that is being carried out."""

    ended: trio.Event = field(default_factory=trio.Event)
    copied: tuple[int, int] = (0, 0)
    said: list[str] = field(default_factory=list)
    error: Exception | None = None
    answer: MemberAnswer | None = None

    def progress(self, done: int, total: int) -> None:
        self.copied = (done, total)


@dataclass(slots=True)
class Plan:
    """What a request comes to. `act` does it; None: there is nothing to do."""

    answer: MemberAnswer
    act: Callable[[Turn], Awaitable[None]] | None = None


class Changes:
    """Of the members of one open store."""

    def __init__(self, store: Store, mountpoint: str | None) -> None:
        self.store, self.membership, self.mountpoint = store, store.membership, mountpoint

    @property
    def label(self) -> Label:
        return self.store.assembly.label

    def online_now(self, member: int) -> bool:
        state = self.store.array.states.get(member)
        return state is not None and state.state == "online"

    def left(self, ids: Iterable[int]) -> tuple[int, int]:
        """Columns of these members that hold something, and their bytes."""
        gone = set(ids)
        found = fit(self.store, gone)
        return found.columns, found.nbytes

    async def change(self, member: int, **fields: Any) -> None:
        await self.membership.change(member, **fields)

    def note(self, kind: str, member: int, text: str) -> None:
        self.store.events.note(kind, member, text)

    async def places(self, paths: Iterable[str], cwd: str, **options: Any) -> list[MemberEntry]:
        """Lines for new members. UsageError, MemberError, MemberBusy."""
        full = [os.path.normpath(os.path.join(cwd, path)) for path in paths]
        if self.mountpoint is not None:
            mounts.check_apart(self.mountpoint, full)
        label = self.label
        found: list[MemberEntry] = await self.store.offload(
            lambda: plan_members(label, full, **options)
        )
        return found

    def described(self, entry: MemberEntry) -> str:
        what = "spare" if entry.role == "spare" else "member"
        domain = f", domain {entry.domain}" if entry.domain else ""
        room = f"{size_text(entry.bytes)}, {entry.slots} columns"
        return f"{what} {entry.id}: {entry.kind} {entry.path} ({room}{domain})"

    async def join(self, entry: MemberEntry, turn: Turn) -> None:
        """Laid out, and a member. On an error what was made is taken away again."""
        store = self.store
        member = await store.offload(lay_out_member, self.label, entry)
        try:
            await self.membership.add(entry, member, turn.progress)
        except BaseException:
            with trio.CancelScope(shield=True):
                await store.offload(abandon, entry, member)
            raise
        kind = "SpareAdded" if entry.role == "spare" else "MemberAdded"
        self.note(kind, entry.id, self.described(entry))


def named(entries: list[MemberEntry]) -> str:
    listed = ", ".join(f"{entry.id} ({entry.path})" for entry in entries)
    return f"member{'s' if len(entries) > 1 else ''} {listed}"


def places_of(entries: list[MemberEntry]) -> str:
    return ", ".join(entry.path for entry in entries)


def counted(count: int) -> str:
    return f"{count} column" if count == 1 else f"{count} columns"


def moving(columns: int, nbytes: int) -> str:
    if not columns:
        return "nothing lies there"
    return f"{counted(columns)} with {size_text(nbytes)} go to other members"
