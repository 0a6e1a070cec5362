"""Members in memory whose writes can be cut off: the crash simulator.

A `World` keeps one ordered log of everything that its members were asked to write. Replaying it up
to a point gives what had been synced by then plus, per file, the writes that no sync has covered;
`Image.crash(seed)` keeps, drops or tears each of those by seed. So a workload is run once and can
be cut off at every point afterwards; one seed replays any failure.

What is modelled: files (label, database, WAL, columns) whose unsynced writes may be lost in any
subset and torn at 512-byte sectors; unlinked columns that come back. What is not: a device that
lies about a finished sync.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raidfs import native
from raidfs.errors import MemberError, MemberFull
from raidfs.raid.member import LABEL_BYTES, Member, MetaFile

SECTOR_BYTES = 512
FILE_KINDS = {"label": "label", "raidfs.db": "metadata", "raidfs.db-wal": "metadata"}
WRITE_KINDS = frozenset({"label", "metadata", "data", "create", "sync"})
FileKey = tuple[int, str]  # (member's number in its world, name of the file)


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the log. kind: write, truncate, sync, create, remove, mark."""

    kind: str
    key: FileKey
    offset: int = 0
    data: bytes = b""
    value: Any = None


def patched(content: bytes, offset: int, data: bytes) -> bytes:
    """`content` with `data` at `offset`, zero-filled up to there."""
    if len(content) < offset:
        content = content.ljust(offset, b"\0")
    return content[:offset] + data + content[offset + len(data) :]


@dataclass
class Image:
    """What a crash finds: synced contents, and what came after each file's last sync."""

    durable: dict[FileKey, bytes] = field(default_factory=dict)
    pending: dict[FileKey, list[Record]] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        key = record.key
        if record.kind in ("write", "truncate", "remove"):
            self.pending.setdefault(key, []).append(record)
        elif record.kind == "create":  # makes the file durable at once, as fsync of file and folder
            self.pending.pop(key, None)
            self.durable[key] = bytes(record.offset)
        elif record.kind == "sync":
            self.settle(key, lambda _: "kept", None)

    def settle(self, key: FileKey, fate: Any, rng: random.Random | None) -> None:
        for record in self.pending.pop(key, []):
            what = fate(record)
            content = self.durable.get(key, b"")
            if what == "dropped":
                continue
            if record.kind == "remove":
                self.durable.pop(key, None)
            elif record.kind == "truncate":
                self.durable[key] = content[: record.offset].ljust(record.offset, b"\0")
            elif what == "kept":
                self.durable[key] = patched(content, record.offset, record.data)
            else:
                assert rng is not None
                self.durable[key] = torn(content, record, rng)

    def copy(self) -> Image:
        return Image(dict(self.durable), {k: list(v) for k, v in self.pending.items()})

    def crash(self, seed: int) -> dict[FileKey, bytes]:
        """The files as one crash may leave them. Seeds 0 and 1 keep, respectively drop, all."""
        rng = random.Random(seed)
        image = self.copy()

        def fate(record: Record) -> str:
            if seed < 2:
                return ("kept", "dropped")[seed]
            choice = rng.choice(("kept", "dropped", "torn"))
            return choice if record.kind == "write" else rng.choice(("kept", "dropped"))

        for key in sorted(image.pending):
            image.settle(key, fate, rng)
        return image.durable


def torn(content: bytes, record: Record, rng: random.Random) -> bytes:
    """The write reached some of its sectors, and one of them holds garbage."""
    data = record.data
    for start in range(0, len(data), SECTOR_BYTES):
        piece = data[start : start + SECTOR_BYTES]
        outcome = rng.random()
        if outcome < 0.5:
            content = patched(content, record.offset + start, piece)
        elif outcome < 0.6:
            content = patched(content, record.offset + start, rng.randbytes(len(piece)))
    return content


class World:
    """The shared log of several simulated members. `mark` puts the test's own notes between."""

    def __init__(self, files: dict[FileKey, bytes] | None = None) -> None:
        self.files = dict(files or {})  # synced before the log begins
        self.log: list[Record] = []
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        with self._lock:
            self.log.append(record)

    def mark(self, value: Any) -> None:
        self.add(Record("mark", (-1, ""), value=value))

    def images(self) -> Iterator[tuple[int, Image, list[Any]]]:
        """(position, image, marks so far) just before each sync takes effect, and at the end."""
        image, marks = Image(dict(self.files)), []
        for position, record in enumerate(self.log):
            if record.kind == "mark":
                marks.append(record.value)
                continue
            if record.kind == "sync" and image.pending.get(record.key):
                yield position, image, marks
            image.apply(record)
        yield len(self.log), image, marks


class SimulatedMember(Member):
    """A member of a `World`. It fails like a broken one: all reads (`fail_reads`), the cells of
    `unreadable` (file, offset of the cell), all writes (`fail_writes`), or those of some kinds
    (`failing`; `fails_then` once `writes_left` operations that write have succeeded)."""

    kind = "image"

    def __init__(
        self,
        world: World,
        number: int,
        files: dict[str, bytes] | None = None,
        *,
        slots: int = 64,
        wal_bytes_max: int = 1 << 30,
    ) -> None:
        self.world = world
        self.number = number
        self.path = f"/simulated/{number}"
        self.slots_total = slots
        self.wal_bytes_max = wal_bytes_max
        self.files = {name: bytearray(content) for name, content in (files or {}).items()}
        self.fail_writes = False
        self.fail_reads = False
        self.failing: set[str] = set()
        self.writes_left: int | None = None
        self.fails_then = WRITE_KINDS
        self.writes = 0
        self.unreadable: set[tuple[str, int]] = set()
        self.lock = threading.Lock()

    def close(self) -> None:
        pass

    # -- files ----------------------------------------------------------------------------------

    def _read(self, name: str, offset: int, nbytes: int) -> bytes:
        bad = any(file == name and offset <= at < offset + nbytes for file, at in self.unreadable)
        if self.fail_reads or bad:
            raise MemberError(f"{self.path}: simulated read error", self.path)
        with self.lock:
            return bytes(self.files.get(name, b"")[offset : offset + nbytes])

    def _attempt(self, name: str, *kinds: str) -> None:
        """One operation that changes something, which may be the one to fail."""
        self.writes += 1
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                self.failing |= self.fails_then
        kind = FILE_KINDS.get(name, "data")
        if self.fail_writes or self.failing & {kind, *kinds}:
            raise MemberError(f"{self.path}: simulated write error of {name}", self.path)

    def _write(self, name: str, offset: int, data: bytes) -> None:
        self._attempt(name)
        end = offset + len(data)
        written = {
            (file, at) for file, at in self.unreadable if file == name and offset <= at < end
        }
        self.unreadable -= written
        with self.lock:
            content = self.files.setdefault(name, bytearray())
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
            self.world.add(Record("write", (self.number, name), offset, bytes(data)))

    def _sync(self, name: str) -> None:
        self._attempt(name, "sync")
        self.world.add(Record("sync", (self.number, name)))

    # -- Member -----------------------------------------------------------------------------------

    def read_label(self, copy: int) -> bytes:
        return self._read("label", copy * LABEL_BYTES, LABEL_BYTES)

    def write_label(self, copy: int, data: bytes) -> None:
        self._write("label", copy * LABEL_BYTES, data)
        self._sync("label")

    def meta_read(self, file: MetaFile, offset: int, nbytes: int) -> bytes:
        return self._read(file.value, offset, nbytes)

    def meta_write(self, file: MetaFile, offset: int, data: bytes) -> None:
        self._write(file.value, offset, bytes(data))

    def meta_truncate(self, file: MetaFile, nbytes: int) -> None:
        self._attempt(file.value)
        with self.lock:
            content = self.files.setdefault(file.value, bytearray())
            del content[nbytes:]
            content.extend(bytes(nbytes - len(content)))
            self.world.add(Record("truncate", (self.number, file.value), nbytes))

    def meta_size(self, file: MetaFile) -> int:
        return len(self.files.get(file.value, b""))

    def meta_sync(self, file: MetaFile) -> None:
        self._sync(file.value)

    def meta_limit(self, file: MetaFile) -> int:
        return self.wal_bytes_max if file is MetaFile.WAL else 1 << 30

    @staticmethod
    def _column(zone: int, column: int) -> str:
        return f"zone-{zone}.{column}"

    def column_create(self, zone: int, column: int, slot: int, nbytes: int) -> None:
        name = self._column(zone, column)
        self._attempt(name, "create")
        if self.room_bytes() < nbytes:
            raise MemberFull(f"{self.path}: simulated, no room", self.path)
        with self.lock:
            if len(self.files.get(name, b"")) == nbytes:
                return  # harmless if it exists
            self.files[name] = bytearray(nbytes)
            self.world.add(Record("create", (self.number, name), nbytes))

    def column_remove(self, zone: int, column: int, slot: int) -> None:
        name = self._column(zone, column)
        with self.lock:
            if self.files.pop(name, None) is not None:
                self.world.add(Record("remove", (self.number, name)))

    def column_read(self, zone: int, column: int, slot: int, offset_bytes: int, out: Any) -> None:
        view = memoryview(out).cast("B")
        data = self._read(self._column(zone, column), offset_bytes, len(view))
        if len(data) != len(view):
            raise MemberError(f"{self.path}: column of zone {zone} ends early", self.path)
        view[:] = data

    def column_write(
        self,
        zone: int,
        column: int,
        slot: int,
        offset_bytes: int,
        addresses: np.ndarray[Any, Any],
        cell_bytes: int,
    ) -> None:
        data = b"".join(bytes(native.memory(int(a), cell_bytes)) for a in addresses.tolist())
        if not self.column_exists(zone, column, slot):
            raise MemberError(f"{self.path}: no column {column} of zone {zone}", self.path)
        self._write(self._column(zone, column), offset_bytes, data)

    def column_sync(self, zone: int, column: int, slot: int) -> None:
        self._sync(self._column(zone, column))

    def column_exists(self, zone: int, column: int, slot: int) -> bool:
        return self._column(zone, column) in self.files

    def columns(self) -> list[tuple[int, int]]:
        names = [name[5:].split(".") for name in list(self.files) if name.startswith("zone-")]
        return [(int(zone), int(column)) for zone, column in names]

    def room_bytes(self) -> int:
        return 1 << 40


def members_of(
    files: dict[FileKey, bytes], world: World, numbers: list[int], **options: Any
) -> list[SimulatedMember]:
    """Members of a new world that start from a crash's files. Their content counts as synced."""
    members = []
    for number in numbers:
        mine = {name: content for (owner, name), content in files.items() if owner == number}
        members.append(SimulatedMember(world, number, mine, **options))
    return members
