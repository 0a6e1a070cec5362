"""Reading SQLite's write-ahead log from outside: how far one copy of it can be believed.

The C side (csrc/wal.c) knows the format and checks the frames; this reads a copy piece by piece and
says what was found. `state_by_words` in the tests is the slow, obvious reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raidfs import _native

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
_FRAMES_PER_READ = 256


@dataclass(frozen=True, slots=True)
class WalState:
    """One copy of the log, if its header is valid. Frames are counted, and numbered from 1."""

    sequence: int  # checkpoint sequence number: rises by one when the log is begun anew
    salts: tuple[int, int]  # name this generation of the log
    page_bytes: int
    committed: int  # frames up to and with the last one that commits
    committed_sum: tuple[int, int]  # running checksum there: copies with equal ones are equal
    committed_pages: int  # pages of the database after that commit
    first_page_frame: int  # last committed frame that holds page 1, or 0

    @property
    def committed_bytes(self) -> int:
        """Bytes of the file that matter: 0 if nothing was committed in this generation."""
        if not self.committed:
            return 0
        return HEADER_BYTES + self.committed * (FRAME_HEADER_BYTES + self.page_bytes)


def page_offset(frame: int, page_bytes: int) -> int:
    """Where in the log the page of that frame begins."""
    return HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + page_bytes) + FRAME_HEADER_BYTES


def scan(read: Callable[[int, int], bytes]) -> WalState | None:
    """The state of the log that `read(offset, nbytes)` (short at its end) gives; None if none."""
    header = read(0, HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    state = _native.ffi.new("struct rf_wal *")
    if not _native.lib.rf_wal_begin(state, header):
        return None
    offset = HEADER_BYTES
    wanted = _FRAMES_PER_READ * (FRAME_HEADER_BYTES + state.page_bytes)
    while not state.ended:
        data = read(offset, wanted)
        offset += _native.lib.rf_wal_scan(state, _native.ffi.from_buffer(data), len(data))
        if len(data) < wanted:
            break
    return WalState(
        state.sequence,
        (state.salt[0], state.salt[1]),
        state.page_bytes,
        state.committed,
        (state.committed_sum[0], state.committed_sum[1]),
        state.committed_pages,
        state.committed_first,
    )
