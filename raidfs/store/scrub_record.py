"""What is kept of a scrub in the metadata: how far it came, and what it found.

It lies in two settings: the record, which changes all the time, and the list of files, which may be
long and seldom changes. Numbers are those of schema.sql; bytes are of all columns, parity too.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from ..errors import FormatError

SETTING = "scrub"
FILES_SETTING = "scrub.files"
FILES_MAX = 1000

State = Literal["running", "paused", "stopped", "finished", "failed"]
T = TypeVar("T")


class Figures(msgspec.Struct):
    """Of one member. Cells: `bad` ones were unreadable or not what their checksum says; `healed`
    ones of these were written anew, `left` ones were not. `metadata`, `labels`: copies of pages and
    of the label that were not as they should be."""

    cells: int = 0
    bad: int = 0
    healed: int = 0
    left: int = 0
    metadata: int = 0
    metadata_healed: int = 0
    labels: int = 0
    labels_healed: int = 0


class LostFile(msgspec.Struct, frozen=True):
    """A file, as it is now (`snapshot` empty) or as a snapshot has it, of which `pages` can't be
    read. `page`: the first of them."""

    path: str
    snapshot: str
    ino: int
    pages: int
    page: int


class Record(msgspec.Struct):
    """The last scrub. Zones below `cursor` are done, those from `end` on were made later. `copies`:
    labels and metadata were looked at. `rows_lost`: with cells that can't be had though something
    needs them; `files`: how many files that concerns, also those beyond FILES_MAX."""

    state: State = "running"
    check_only: bool = False
    limit_bytes_s: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    cursor: int = 0
    end: int = 0
    copies: bool = False
    done_bytes: int = 0
    zones: int = 0
    rows_lost: int = 0
    pages_lost: int = 0
    metadata_lost: int = 0
    files: int = 0
    reason: str = ""
    members: dict[int, Figures] = {}

    def of(self, member: int) -> Figures:
        """The figures of that member."""
        return self.members.setdefault(member, Figures())

    def total(self) -> Figures:
        """Of all members together."""
        sums = Figures()
        for figures in self.members.values():
            for name in Figures.__struct_fields__:
                setattr(sums, name, getattr(sums, name) + getattr(figures, name))
        return sums

    @property
    def damaged(self) -> bool:
        """Something is not as it should be, and was not healed."""
        sums = self.total()
        found = sums.bad + sums.metadata + sums.labels
        healed = sums.healed + sums.metadata_healed + sums.labels_healed
        return bool(self.rows_lost or self.metadata_lost or sums.left or found > healed)


def encode_record(record: Record) -> bytes:
    return msgspec.msgpack.encode(record)


def decode_record(stored: bytes | None) -> Record | None:
    """None: there was no scrub yet. FormatError."""
    return None if stored is None else _decoded(stored, Record)


def encode_files(files: list[LostFile]) -> bytes:
    return msgspec.msgpack.encode(files)


def decode_files(stored: bytes | None) -> list[LostFile]:
    """FormatError."""
    return [] if stored is None else _decoded(stored, list[LostFile])


def _decoded(stored: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(stored, type=kind)
    except msgspec.MsgspecError as error:
        raise FormatError(f"what is kept of the last scrub can't be understood: {error}") from None


def text_of(record: Record) -> str:
    """What it found, in a sentence."""
    sums, parts = record.total(), list[str]()
    for name, what in (("", "cells"), ("metadata", "pages of metadata"), ("labels", "labels")):
        found = getattr(sums, name or "bad")
        healed = getattr(sums, f"{name}_healed" if name else "healed")
        if found:
            done = "" if record.check_only else f", {healed} of them healed"
            parts.append(f"{found} damaged {what}{done}")
    if record.rows_lost:
        parts.append(
            f"{record.rows_lost} rows beyond redundancy, {record.files} files have lost pages"
        )
    if record.metadata_lost:
        parts.append(f"{record.metadata_lost} pages of metadata can't be decided upon")
    return "; ".join(parts) or "nothing was damaged"
