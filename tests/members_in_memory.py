"""A member in memory, with faults: for tests that need many members and no filesystem."""

import ctypes
import threading

from raidfs.errors import MemberError, MemberFull
from raidfs.raid.label import LABEL_BYTES, read_labels
from raidfs.raid.member import Member


class MemoryMember(Member):
    """Columns as bytearrays. unreadable: (zone, column, byte offset) of cells that give EIO."""

    kind = "image"

    def __init__(self, number=0, *, slots=64, zone_bytes=1 << 20):
        self.path = f"/in-memory/{number}"
        self.slots_total = slots
        self.zone_bytes = zone_bytes
        self.labels = [bytes(LABEL_BYTES)] * 2
        self.meta = {}
        self.data = {}
        self.unreadable = set()
        self.fail_writes = False
        self.fail_labels_after = None
        self.full = False
        self.closed = False
        self.writes = []
        self.reads = []
        self.synced = []
        self.lock = threading.Lock()

    def again(self, *, read_only=False, lock=None):
        """The same content, opened anew, with the sizes that its label gives it."""
        other = MemoryMember()
        other.path, other.read_only = self.path, read_only
        other.labels, other.meta, other.data = self.labels, self.meta, self.data
        other.adopt(read_labels(other))
        return other

    def _alive(self):
        if self.closed:
            raise MemberError(f"{self.path}: this in-memory member was closed", self.path)

    def close(self):
        self.closed = True

    def read_label(self, copy):
        self._alive()
        return self.labels[copy]

    def write_label(self, copy, data):
        assert not self.read_only
        self._alive()
        if self.fail_labels_after is not None:
            if self.fail_labels_after == 0:
                raise MemberError(f"{self.path}: writing the label failed", self.path)
            self.fail_labels_after -= 1
        self.labels[copy] = bytes(data)

    def meta_read(self, file, offset_bytes, nbytes):
        self._alive()
        return bytes(self.meta.get(file, b"")[offset_bytes : offset_bytes + nbytes])

    def meta_write(self, file, offset_bytes, data):
        self._alive()
        content = self.meta.setdefault(file, bytearray())
        content.extend(bytes(max(0, offset_bytes - len(content))))
        content[offset_bytes : offset_bytes + len(data)] = data

    def meta_truncate(self, file, nbytes):
        self._alive()
        content = self.meta.setdefault(file, bytearray())
        del content[nbytes:]
        content.extend(bytes(nbytes - len(content)))

    def meta_size(self, file):
        return len(self.meta.get(file, b""))

    def meta_sync(self, file):
        self._alive()

    def meta_limit(self, file):
        return 1 << 40

    def column_create(self, zone, column, slot, nbytes):
        self._alive()
        if self.full:
            raise MemberFull(f"{self.path}: no room", self.path)
        self.data.setdefault((zone, column), bytearray(nbytes))

    def column_remove(self, zone, column, slot):
        self._alive()
        self.data.pop((zone, column), None)

    def column_read(self, zone, column, slot, offset_bytes, out):
        self._alive()
        with self.lock:
            self.reads.append((zone, column, offset_bytes, len(out)))
        end = offset_bytes + len(out)
        for bad in self.unreadable:
            if bad[:2] == (zone, column) and offset_bytes <= bad[2] < end:
                raise MemberError(f"{self.path}: reading failed: EIO", self.path)
        content = self.data.get((zone, column), b"")
        if end > len(content):
            raise MemberError(f"{self.path}: no such column", self.path)
        out[:] = content[offset_bytes:end]

    def column_write(self, zone, column, slot, offset_bytes, addresses, cell_bytes):
        self._alive()
        if self.fail_writes or (zone, column) not in self.data:
            raise MemberError(f"{self.path}: writing failed: EIO", self.path)
        content = b"".join(ctypes.string_at(int(a), cell_bytes) for a in addresses)
        with self.lock:
            self.writes.append((zone, column, offset_bytes, len(content)))
        self.data[zone, column][offset_bytes : offset_bytes + len(content)] = content
        for bad in list(self.unreadable):  # writing a sector anew mends it
            if bad[:2] == (zone, column) and 0 <= bad[2] - offset_bytes < len(content):
                self.unreadable.discard(bad)

    def column_sync(self, zone, column, slot):
        self._alive()
        with self.lock:
            self.synced.append((zone, column))

    def column_exists(self, zone, column, slot):
        return (zone, column) in self.data

    def columns(self):
        return sorted(self.data)

    def room_bytes(self):
        return 0 if self.full else 1 << 40
