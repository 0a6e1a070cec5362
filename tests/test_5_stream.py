"""The form of a stream: what is made can be taken apart, in pieces of any size; what was changed
anywhere, by chance or on purpose, is a FormatError and nothing else; resumed, it is the same."""

import contextlib
import random
import struct

import msgspec
import pytest

from raidfs import native
from raidfs.errors import FormatError, UsageError
from raidfs.fs import stream
from raidfs.fs.stream import (
    Chain,
    Decoder,
    Encoder,
    End,
    Extent,
    Extents,
    Gone,
    Header,
    Inode,
    Names,
    NameTo,
    Token,
    Xattr,
)

PAGE = 4096
HEADER = Header(b"g" * 16, b"b" * 16, "monday", "a note", 5, PAGE, 100, "tank")
EXTENTS = [Extent(7, 0, 2, False), Extent(7, 9, 1 << 40, True), Extent(8, 3, 1, False)]


def inode(ino, **fields):
    row = Inode(ino, True, 1, 0o100644, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4, None, None)
    return msgspec.structs.replace(row, **fields)


def bodies():
    """One of each, but header, content and end."""
    return [
        inode(1, mode=0o40755, nlink=2),
        Names([b"old"], [NameTo(b"new", 7, 8), NameTo(b"\xff\n", 8, 8)]),
        Gone([5, 6]),
        inode(7, size=1 << 50, inline=b"begins"),
        Xattr(b"user.a", b"value"),
        Xattr(b"user.b", None),
        inode(8, mode=0o120777, target=b"../there", size=8),
    ]


def made(content, token=None):
    """Records, content twice, end."""
    encoder = Encoder(HEADER, token)
    data = encoder.begin()
    for body in bodies():
        data += encoder.record(body)
    for part in content:
        data += encoder.extents(EXTENTS, part if encoder.wants(EXTENTS) else b"")
    return data + encoder.end()


CONTENT = [random.Random(seed).randbytes(3 * PAGE) for seed in range(4)]
WHOLE = made(CONTENT)


def taken(data, piece=1 << 20):
    decoder = Decoder()
    found = []
    for at in range(0, len(data), piece):
        decoder.feed(data[at : at + piece])
        for record in decoder.records():
            found.append((record.body, bytes(record.content), record.at))
    return found, decoder


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
def test_what_is_made_can_be_taken_apart(piece):
    found, decoder = taken(WHOLE, piece)
    assert decoder.ended
    assert [each[0] for each in found[1:-1]] == [*bodies(), *[Extents(EXTENTS)] * len(CONTENT)]
    assert found[0][0] == HEADER and isinstance(found[-1][0], End)
    contents = [(content, at) for _, content, at in found if content]
    assert [content for content, _ in contents] == CONTENT
    for content, at in contents:
        assert at % PAGE == 0 and WHOLE[at : at + len(content)] == content


def test_an_extents_record_may_have_holes_alone():
    encoder = Encoder(HEADER)
    data = encoder.begin() + encoder.extents([Extent(7, 0, 9, True)], b"") + encoder.end()
    assert taken(data)[0][1][0] == Extents([Extent(7, 0, 9, True)])


def test_any_byte_changed_is_noticed():
    rng = random.Random(1)
    for at in [*range(400), *rng.sample(range(len(WHOLE)), 600)]:
        damaged = bytearray(WHOLE)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises(FormatError):
            _, decoder = taken(damaged)
            assert not decoder.ended
            raise FormatError("it has no end")


def test_any_end_that_comes_too_early_is_not_the_end():
    for at in range(0, len(WHOLE), 97):
        assert not taken(WHOLE[:at])[1].ended


def test_nothing_may_follow_the_end():
    for more in (b"\0", WHOLE):
        with pytest.raises(FormatError):
            taken(WHOLE + more)
        decoder = taken(WHOLE)[1]
        with pytest.raises(FormatError):
            decoder.feed(more)


def resealed(data):
    """The same records with checksums that match, and a digest: by somebody who means it."""
    out, at = bytearray(data[:16]), 16
    prefix = struct.Struct("<B3xIII")
    chain = Chain()
    chain.update(data[:16])
    while at + prefix.size <= len(data):
        kind, body_bytes, content_bytes, _ = prefix.unpack_from(data, at)
        start = at + prefix.size
        body = data[start : start + body_bytes]
        end = start + body_bytes
        padding = -end % PAGE if content_bytes else 0
        if kind == stream.END:
            body = body[:3] + chain.digest() + body[35:]
        crc = native.crc32c(prefix.pack(kind, body_bytes, content_bytes, 0) + body)
        content = data[end + padding : end + padding + content_bytes]
        crc = native.crc32c(content, crc) if content else crc
        record = prefix.pack(kind, body_bytes, content_bytes, crc) + body + bytes(padding) + content
        chain.update(record)
        out += record
        at = end + padding + content_bytes
    return bytes(out)


def test_resealing_gives_the_same():
    assert resealed(WHOLE) == WHOLE


def test_what_is_changed_on_purpose_is_well_formed_or_a_format_error():
    rng = random.Random(2)
    survived = 0
    limit = len(WHOLE) - len(CONTENT) * (3 * PAGE)
    for _ in range(3000):
        changed = bytearray(WHOLE)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(16, min(600, limit))] = rng.randrange(256)
        with contextlib.suppress(FormatError):
            survived += taken(resealed(bytes(changed)))[1].ended
    assert 0 < survived < 3000  # the test reaches what lies behind the checksums


@pytest.mark.parametrize("kind", [0, 1, 2, 8, 255])
def test_a_length_is_refused_before_anything_is_kept(kind):
    decoder = Decoder()
    decoder.feed(WHOLE[:16] + struct.pack("<B3xIII", kind, 0xFFFFFFF0, 0, 0))
    with pytest.raises(FormatError):
        list(decoder.records())
    start = Encoder(HEADER).begin()
    decoder = Decoder()
    decoder.feed(start + struct.pack("<B3xIII", stream.EXTENTS, 10, 0xFFFFF000, 0))
    with pytest.raises(FormatError):
        list(decoder.records())


@pytest.mark.parametrize(
    "first", [b"", b"x", b"raidfsS", b"\x89PNG\r\n\x1a\n" * 8, b"raidfsST" * 4]
)
def test_what_is_no_stream_at_all(first):
    decoder = Decoder()
    decoder.feed(first)
    if first in (b"", b"raidfsS"):
        assert not list(decoder.records())
        return
    with pytest.raises(FormatError):
        list(decoder.records())


def test_a_later_format_says_so():
    with pytest.raises(FormatError, match="format 2"):
        taken(WHOLE[:8] + b"\2" + WHOLE[9:])


@pytest.mark.parametrize("stretch", [512, 4096, 20_000])
def test_resumed_at_any_border_it_is_the_same(monkeypatch, stretch):
    monkeypatch.setattr(stream, "STRETCH_BYTES", stretch)
    whole = made(CONTENT)
    decoder = Decoder()
    tokens = {}
    for at in range(0, len(whole), 100):
        decoder.feed(whole[at : at + 100])
        list(decoder.records())
        if decoder.token is not None:
            tokens[decoder.token.offset] = decoder.token
    assert len(tokens) >= 3
    for offset, token in tokens.items():
        token = Token.of(token.text())
        rest = made(CONTENT, token)
        told = stream.resumed(rest)
        assert told == (offset, stream.identity(HEADER))
        assert whole[:offset] + rest[stream.RESUMED_BYTES :] == whole


def test_a_token_is_believed_only_as_a_whole():
    text = Token(HEADER, stream.STRETCH_BYTES, bytes(32)).text()
    assert Token.of(f" {text}\n").header == HEADER
    for wrong in ("", "x", text[:-1], text[1:], text.replace("raidfs1", "raidfs2"), text + "AAAA"):
        with pytest.raises(UsageError):
            Token.of(wrong)
    with pytest.raises(UsageError):
        Token.of(Token(HEADER, 5, bytes(32)).text())
