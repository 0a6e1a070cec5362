"""Asking members for metadata and room, which the event loop waits for: of slow ones no more than a
deadline once, see raid/patience.py.

 1. A slow member is asked for metadata only when no other has what is wanted; for its room not at
    all: what it said before counts.
 2. What is in the kernel's memory is had at once, and costs no thread.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping

from ..errors import MemberError
from ..raid.member import Member, MetaFile
from ..raid.patience import Late, Patience


class Asking:
    """`patience`: None until the volume is open, or if members are given all the time they take."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience
        self._limits: dict[tuple[int, MetaFile], int] = {}  # as last told
        self._rooms: dict[int, tuple[object, int]] = {}

    def each(
        self,
        readers: list[int],
        members: Mapping[int, Member],
        file: MetaFile,
        offset: int,
        nbytes: int,
    ) -> Iterator[tuple[int, bytes | MemberError]]:
        """What one of them after the other has there, or why not, until nobody asks for more."""
        for number, patient in self._in_order(readers):
            member = members.get(number)
            if member is None:
                continue
            try:
                yield number, self._read(number, member, file, offset, nbytes, patient)
            except Late:
                continue
            except MemberError as error:
                yield number, error

    def _in_order(self, readers: list[int]) -> Iterator[tuple[int, bool]]:
        """Whom to ask, and whether to wait for him."""
        patience = self.patience
        if patience is None:
            yield from ((number, True) for number in readers)
            return
        late, sitting = patience.late_count, patience.sitting
        yield from ((number, False) for number in readers if number not in sitting)
        if sitting or patience.late_count != late:
            yield from ((number, True) for number in readers)

    def _read(
        self, number: int, member: Member, file: MetaFile, offset: int, nbytes: int, patient: bool
    ) -> bytes:
        """As `Member.meta_read`. Late, unless `patient`."""
        if self.patience is None or member.never_waits:
            return member.meta_read(file, offset, nbytes)
        data = member.meta_read_cached(file, offset, nbytes)
        if data is not None:
            return data
        work = functools.partial(member.meta_read, file, offset, nbytes)
        return self.patience.ask(number, work, patient=patient)

    def limit(self, number: int, member: Member, file: MetaFile) -> int:
        """As `Member.meta_limit`."""
        patience, key = self.patience, (number, file)
        if patience is None or member.never_waits or member.kind != "directory":
            return member.meta_limit(file)
        if number not in patience.sitting or key not in self._limits:
            with contextlib.suppress(Late):
                work = functools.partial(member.meta_limit, file)
                self._limits[key] = patience.ask(number, work)
        if key not in self._limits:
            raise MemberError(f"{member.path}: it doesn't answer", member.path)
        return self._limits[key]

    def room(self, number: int, member: Member) -> tuple[object, int]:
        """(whose room it is, bytes). OSError, MemberError."""

        def ask() -> tuple[object, int]:
            key: object = number
            if member.kind == "directory":
                key = ("filesystem", os.stat(member.path).st_dev)
            return key, member.room_bytes()

        patience = self.patience
        if patience is None or member.never_waits or member.kind != "directory":
            return ask()
        if number not in patience.sitting or number not in self._rooms:
            with contextlib.suppress(Late):
                self._rooms[number] = patience.ask(number, ask)
        if number not in self._rooms:
            raise MemberError(f"{member.path}: it doesn't answer", member.path)
        return self._rooms[number]
