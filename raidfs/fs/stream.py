"""The form of a snapshot that is sent: bytes made and taken apart, without any input or output.

    prefix | HEADER | INODE, XATTR, NAMES, GONE, EXTENTS ... | END    (docs/FORMAT.md: the fields)

A *full* stream holds all that a snapshot holds, an *incremental* one what changed since an older
one, its *base*. Records stand in the order of inode numbers: an inode's attributes and names behind
it, its content as soon as a megabyte of content has come together. Content lies at a multiple of
`page_bytes` of the stream, so whoever keeps the stream in a file has pages in its pages.

The *chain* is the digest of all bytes so far: digest n+1 is SHA-256 of digest n and stretch n. So
a stream can be resumed at the border of a stretch by someone who knows the chain there: that is in
the *token*, with all that makes the sender send the same bytes again.

 1. The same snapshot (and base) gives the same bytes, wherever its cells lie by then.
 2. The decoder believes nothing: lengths are bounded before anything is kept, types and ranges
    are checked, each record has a CRC-32C, and END must match the chain. Whatever isn't so is one
    FormatError. It holds no more than one record in memory.
 3. What the records say of each other (that a name leads to an inode) is not looked at here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from .. import native
from ..errors import FormatError, UsageError
from ..store.tables import INLINE_BYTES_MAX
from .attributes import FILE_BYTES_MAX

MAGIC = b"raidfsST"
MAGIC_RESUMED = b"raidfsSR"
FORMAT = 1
STRETCH_BYTES = 4 << 20
CONTENT_BYTES_MAX = 1 << 20  # of an EXTENTS record
BODY_BYTES_MAX = 192 << 10
EXTENTS_MAX = 2048  # of an EXTENTS record
NAMES_MAX = 256  # of a NAMES record, added and removed
GONE_MAX = 1024
TOKEN_BYTES_MAX = 16 << 10
PAGE_BYTES = (4096, 8192, 16384, 32768, 65536)

HEADER, INODE, XATTR, NAMES, GONE, EXTENTS, END = range(1, 8)

_PREFIX = struct.Struct("<8sII")  # magic, format, zero
_RESUMED = struct.Struct("<8sII Q 32s I I")  # magic, format, zero, offset, identity, zero, crc
_RECORD = struct.Struct("<B3xIII")  # kind, bytes of the body, of the content, crc

_INT64_MAX = 2**63 - 1
_NUMBER_MAX = (1 << 40) - 1
Guid = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Number = Annotated[int, msgspec.Meta(ge=1, le=_NUMBER_MAX)]
Word = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Long = Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)]
Time = Annotated[int, msgspec.Meta(ge=-_INT64_MAX, le=_INT64_MAX)]
Name = Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)]


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the stream is: the snapshot as it was named when the sending began. `base`: the guid of
    the base; None: a full stream. `next_ino`: above all inode numbers."""

    guid: Guid
    base: Guid | None
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    note: Annotated[str, msgspec.Meta(max_length=4096)]
    created_ns: Time
    page_bytes: int
    next_ino: Number
    volume: Annotated[str, msgspec.Meta(max_length=255)]

    @property
    def pages_max(self) -> int:
        """Of one EXTENTS record."""
        return CONTENT_BYTES_MAX // self.page_bytes


class Inode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An inode as the snapshot has it. `whole`: the base has none of that number, and attributes,
    names and content that follow are all there are; else they are what changed. Pages at or above
    the size are holes. `inline`: the beginning of page 0, the rest being zeros."""

    ino: Number
    whole: bool
    generation: Long
    mode: Word
    uid: Word
    gid: Word
    rdev: Word
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_BYTES_MAX)]
    nlink: Annotated[int, msgspec.Meta(ge=1, le=_INT64_MAX)]
    parent: Annotated[int, msgspec.Meta(ge=0, le=_NUMBER_MAX)]
    atime_ns: Time
    mtime_ns: Time
    ctime_ns: Time
    btime_ns: Time
    target: Annotated[bytes, msgspec.Meta(min_length=1, max_length=4095)] | None
    inline: Annotated[bytes, msgspec.Meta(max_length=INLINE_BYTES_MAX)] | None


class Xattr(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of the last inode; value None: it has that attribute no more."""

    name: Name
    value: Annotated[bytes, msgspec.Meta(max_length=65536)] | None


class NameTo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A directory entry; `kind`: the type bits of the inode's mode, shifted down by 12."""

    name: Name
    ino: Number
    kind: Annotated[int, msgspec.Meta(ge=1, le=15)]


class Names(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of the last inode, a directory: names that are no more, then names that came to be."""

    removed: Annotated[list[Name], msgspec.Meta(max_length=NAMES_MAX)]
    added: Annotated[list[NameTo], msgspec.Meta(max_length=NAMES_MAX)]


class Gone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Numbers of inodes that the base has and the snapshot has not, with all their names."""

    inos: Annotated[list[Number], msgspec.Meta(min_length=1, max_length=GONE_MAX)]


class Extent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Pages [first, first + count) of a file: holes now, or the next pages of the content."""

    ino: Number
    first: Long
    count: Annotated[int, msgspec.Meta(ge=1, le=1 << 51)]
    hole: bool


class Extents(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Ascending by inode and page over the whole stream, of inodes that stand before it."""

    extents: Annotated[list[Extent], msgspec.Meta(min_length=1, max_length=EXTENTS_MAX)]


class End(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The chain before this record, and how many records and pages of content came."""

    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    records: Long
    pages: Long


Body = Header | Inode | Xattr | Names | Gone | Extents | End
_KINDS: dict[int, type[Body]] = {
    HEADER: Header,
    INODE: Inode,
    XATTR: Xattr,
    NAMES: Names,
    GONE: Gone,
    EXTENTS: Extents,
    END: End,
}
_KIND_OF = {kind: number for number, kind in _KINDS.items()}
_DECODERS = {number: msgspec.msgpack.Decoder(kind) for number, kind in _KINDS.items()}


class Record(msgspec.Struct, frozen=True):
    """A record that was read. `content`: of EXTENTS, which begins at byte `at` of the stream."""

    body: Body
    content: memoryview
    at: int


class Chain:
    """The digest of a stream up to a place, see the module."""

    def __init__(self, offset: int = 0, digest: bytes = bytes(32)) -> None:
        assert offset % STRETCH_BYTES == 0
        self.offset = offset
        self.border = (offset, digest)  # the last one passed, and the digest there
        self._hash = hashlib.sha256(digest)

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            part = view[: STRETCH_BYTES - self.offset % STRETCH_BYTES]
            self._hash.update(part)
            self.offset += len(part)
            view = view[len(part) :]
            if self.offset % STRETCH_BYTES == 0:
                self.border = (self.offset, self._hash.digest())
                self._hash = hashlib.sha256(self.border[1])

    def digest(self) -> bytes:
        return self._hash.digest()


class Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """From where on a receiver needs a stream, in a form to be passed on by hand."""

    header: Header
    offset: Long
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

    def text(self) -> str:
        data = msgspec.msgpack.encode(self)
        data += native.crc32c(data).to_bytes(4, "little")
        return f"raidfs{FORMAT}-{base64.urlsafe_b64encode(data).decode().rstrip('=')}"

    @staticmethod
    def of(text: str) -> Token:
        """UsageError for what is none."""
        head, _, rest = text.strip().partition("-")
        try:
            if head != f"raidfs{FORMAT}" or len(rest) > TOKEN_BYTES_MAX:
                raise ValueError
            data = base64.b64decode(rest + "=" * (-len(rest) % 4), altchars=b"-_", validate=True)
            if native.crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
                raise ValueError
            token = msgspec.msgpack.decode(data[:-4], type=Token)
            _check_header(token.header)
            if token.offset % STRETCH_BYTES:
                raise ValueError
        except (ValueError, binascii.Error, msgspec.DecodeError, FormatError):
            raise UsageError(
                "that is not a token as `snapshot receive` prints it; copy it whole"
            ) from None
        return token


def identity(header: Header) -> bytes:
    """Of a stream: equal only if all its bytes are to be equal."""
    return hashlib.sha256(msgspec.msgpack.encode(header)).digest()


def _check_header(header: Header) -> None:
    if header.page_bytes not in PAGE_BYTES:
        raise FormatError(f"pages of {header.page_bytes} bytes")


def _padding(offset: int, page_bytes: int) -> int:
    return -offset % page_bytes


# ---- making ----


class Encoder:
    """Makes a stream; each method returns the bytes to be sent next. With a token, those that the
    receiver has are left out."""

    def __init__(self, header: Header, token: Token | None = None) -> None:
        _check_header(header)
        self.header = header
        self.offset = 0
        self.records = 0
        self.pages = 0
        self._from = token.offset if token is not None else 0
        self._chain = Chain(self._from, token.digest) if token is not None else Chain()
        self._resumed = token is not None

    def begin(self) -> bytes:
        """Prefix and header."""
        resumed = b""
        if self._resumed:
            fields = (MAGIC_RESUMED, FORMAT, 0, self._from, identity(self.header), 0)
            crc = native.crc32c(_RESUMED.pack(*fields, 0)[:-4])
            resumed = _RESUMED.pack(*fields, crc)
        return resumed + self._emit(_PREFIX.pack(MAGIC, FORMAT, 0)) + self.record(self.header)

    def record(self, body: Body) -> bytes:
        """A record without content."""
        return self._record(_KIND_OF[type(body)], msgspec.msgpack.encode(body), b"")

    def wants(self, extents: Sequence[Extent]) -> bool:
        """The content of that record, the next one, is not yet with the receiver."""
        body, pages = self._plan(extents)
        end = self.offset + _RECORD.size + len(body)
        end += _padding(end, self.header.page_bytes) + pages * self.header.page_bytes
        return end > self._from

    def extents(self, extents: Sequence[Extent], content: bytes | memoryview) -> bytes:
        """EXTENTS; `content` may be empty if it isn't wanted."""
        body, pages = self._plan(extents)
        nbytes = pages * self.header.page_bytes
        if not self.wants(extents):
            self.offset += _RECORD.size + len(body)
            self.offset += _padding(self.offset, self.header.page_bytes) * (pages > 0) + nbytes
            self.records += 1
            self.pages += pages
            return b""
        assert len(content) == nbytes <= CONTENT_BYTES_MAX
        self.pages += pages
        return self._record(EXTENTS, body, content)

    def end(self) -> bytes:
        return self.record(End(self._chain.digest(), self.records, self.pages))

    def _plan(self, extents: Sequence[Extent]) -> tuple[bytes, int]:
        """(the body, how many pages of content)"""
        assert len(extents) <= EXTENTS_MAX
        pages = sum(extent.count for extent in extents if not extent.hole)
        return msgspec.msgpack.encode(Extents(list(extents))), pages

    def _record(self, kind: int, body: bytes, content: bytes | memoryview) -> bytes:
        assert len(body) <= BODY_BYTES_MAX
        crc = native.crc32c(_RECORD.pack(kind, len(body), len(content), 0))
        crc = native.crc32c(body, crc)
        crc = native.crc32c(content, crc) if len(content) else crc
        data = _RECORD.pack(kind, len(body), len(content), crc) + body
        if len(content):
            padding = _padding(self.offset + len(data), self.header.page_bytes)
            data = b"".join((data, bytes(padding), content))
        self.records += 1
        return self._emit(data)

    def _emit(self, data: bytes) -> bytes:
        known = min(max(0, self._from - self.offset), len(data))
        self.offset += len(data)
        data = data[known:]
        self._chain.update(data)
        return data


# ---- taking apart ----


class Decoder:
    """Takes a stream apart: `feed` it, then take `records` until there are no more for now.

    A stream that goes on where `kept` bytes are there already begins with what says so: see
    `resumes`. FormatError for all that is wrong; after one the decoder is of no use.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.chain = Chain()
        self.ended = False
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the stream
        self._records = 0
        self._pages = 0

    @property
    def token(self) -> Token | None:
        """From where on it is to be sent again, should it end here; None: from the start."""
        offset, digest = self.chain.border
        if self.header is None or not offset:
            return None
        return Token(self.header, offset, digest)

    def feed(self, data: bytes | memoryview) -> None:
        if self.ended and len(data):
            raise self._damaged("something follows the end")
        self._buffer += data

    def records(self) -> Iterator[Record]:
        """Those that are there as a whole. What they hold of the buffer is good until the next."""
        if self._offset == 0 and not self._begin():
            return
        while (record := self._next()) is not None:
            yield record

    def _begin(self) -> bool:
        if len(self._buffer) < _PREFIX.size:
            if self._buffer[:8] != MAGIC[: len(self._buffer)]:
                raise FormatError("this is no stream of a raidfs snapshot")
            return False
        magic, version, zero = _PREFIX.unpack_from(self._buffer)
        if magic != MAGIC or zero:
            raise FormatError("this is no stream of a raidfs snapshot")
        if version != FORMAT:
            raise FormatError(
                f"the stream has format {version} and this raidfs knows format {FORMAT}: receive it"
                " with a newer raidfs"
            )
        self._consume(_PREFIX.size)
        return True

    def _next(self) -> Record | None:
        if self.ended:
            if self._buffer:
                raise self._damaged("something follows the end")
            return None
        if len(self._buffer) < _RECORD.size:
            return None
        kind, body_bytes, content_bytes, crc = _RECORD.unpack_from(self._buffer)
        padding = self._check_lengths(kind, body_bytes, content_bytes)
        start = _RECORD.size + body_bytes + padding
        if len(self._buffer) < start + content_bytes:
            return None
        whole = bytes(memoryview(self._buffer)[: start + content_bytes])
        body = whole[_RECORD.size : _RECORD.size + body_bytes]
        content = memoryview(whole)[start:]
        found = native.crc32c(_RECORD.pack(kind, body_bytes, content_bytes, 0) + body)
        if content_bytes:
            found = native.crc32c(content, found)
        if found != crc or whole[1:4] != bytes(3) or any(whole[_RECORD.size + body_bytes : start]):
            raise self._damaged("a checksum doesn't match")
        record = Record(self._decoded(kind, body), content, self._offset + start)
        self._check_order(record)
        self._consume(len(whole))
        return record

    def _check_lengths(self, kind: int, body_bytes: int, content_bytes: int) -> int:
        """Before anything is waited for. Returns how much padding there is."""
        if kind not in _KINDS or body_bytes > BODY_BYTES_MAX:
            raise self._damaged("there is no such record")
        if (kind == HEADER) != (self.header is None):
            raise self._damaged("its header is not where it belongs")
        if not content_bytes:
            return 0
        if kind != EXTENTS or content_bytes > CONTENT_BYTES_MAX:
            raise self._damaged("there is no such record")
        assert self.header is not None
        if content_bytes % self.header.page_bytes:
            raise self._damaged("content that is not in pages")
        return _padding(self._offset + _RECORD.size + body_bytes, self.header.page_bytes)

    def _decoded(self, kind: int, body: bytes) -> Body:
        try:
            found: Body = _DECODERS[kind].decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self._damaged(f"a record makes no sense ({error})") from None
        if msgspec.msgpack.encode(found) != body:  # one form for each, or digests mean nothing
            raise self._damaged("a record is not in its one form")
        return found

    def _check_order(self, record: Record) -> None:
        body = record.body
        if isinstance(body, Header):
            try:
                _check_header(body)
            except FormatError as error:
                raise self._damaged(str(error)) from None
            self.header = body
        elif isinstance(body, End):
            counts = (self.chain.digest(), self._records, self._pages)
            if (body.digest, body.records, body.pages) != counts:
                raise self._damaged("its digest doesn't match")
            self.ended = True
        elif isinstance(body, Extents):
            assert self.header is not None
            pages = sum(extent.count for extent in body.extents if not extent.hole)
            if pages * self.header.page_bytes != len(record.content):
                raise self._damaged("content that is not as long as it says")
            self._pages += pages
        self._records += 1

    def _consume(self, nbytes: int) -> None:
        with memoryview(self._buffer) as view, view[:nbytes] as part:
            self.chain.update(part)
        del self._buffer[:nbytes]
        self._offset += nbytes

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"the stream is damaged at byte {self._offset}: {what}")


RESUMED_BYTES = _RESUMED.size


def resumed(data: bytes) -> tuple[int, bytes] | None:
    """What the first RESUMED_BYTES of an input say if they are of a stream that goes on: (offset,
    identity of the stream). None: it is one from the start, or none at all."""
    if data[:8] != MAGIC_RESUMED:
        return None
    if len(data) < _RESUMED.size:
        raise FormatError("the stream ends before it has begun")
    _, version, zero, offset, stream, also_zero, crc = _RESUMED.unpack_from(data)
    if version != FORMAT:
        raise FormatError(f"the stream has format {version}, this raidfs knows format {FORMAT}")
    if zero or also_zero or crc != native.crc32c(data[: _RESUMED.size - 4]):
        raise FormatError("the stream is damaged at its first byte")
    return offset, stream
