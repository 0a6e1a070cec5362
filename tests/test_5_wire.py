"""Frames: what is sent arrives as it was, and nothing else is ever taken for a message."""

import random
import struct

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raidfs.errors import FormatError
from raidfs.group.messages import Decision, Marker, Message, Plan, Prepared, Query, Transfer
from raidfs.group.wire import (
    AROUND_BYTES,
    FRAME_BYTES_MAX,
    HANDSHAKE,
    LENGTH,
    Incoming,
    Outgoing,
    WireError,
)


class Word(msgspec.Struct, frozen=True, array_like=True, tag="word"):
    text: str


class Nothing(msgspec.Struct, frozen=True, array_like=True, tag="nothing"):
    pass


VOCABULARIES = (Word | Nothing, Message)
SESSION, OTHER = b"s" * 16, b"o" * 16
PLAN = Plan(b"i" * 16, "nightly", 1_700_000_000_000_000_000, "0a" * 16, 3, b"f" * 16)
SAID = [
    Marker(PLAN),
    Prepared(b"i" * 16, 12, 345),
    Decision(b"i" * 16, "abort", "no room"),
    Query(b"i" * 16, "0b" * 16),
    Transfer(b"m" * 16, "offer", b"payload"),
]

some_messages = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.one_of(st.builds(Word, st.text()), st.just(Nothing()))),
        st.tuples(st.just(1), st.sampled_from(SAID)),
        st.tuples(
            st.just(1),
            st.builds(Transfer, st.just(b"m" * 16), st.just("ownership"), st.binary()),
        ),
    ),
    max_size=8,
)


def frames_of(messages, session=SESSION):
    outgoing = Outgoing(session)
    return [outgoing.frame(kind, message) for kind, message in messages]


def reader(session=SESSION):
    incoming = Incoming(VOCABULARIES)
    incoming.enter(session)
    return incoming


def drain(incoming, data=b""):
    incoming.feed(data)
    taken = []
    while (one := incoming.take()) is not None:
        taken.append(one)
    return taken


@given(some_messages, st.randoms(use_true_random=False))
def test_what_was_sent_arrives_however_it_is_cut_to_pieces(messages, chance):
    stream = b"".join(frames_of(messages))
    incoming, taken = reader(), []
    while stream:
        size = chance.randint(1, 40)
        taken += drain(incoming, stream[:size])
        stream = stream[size:]
    assert taken == messages
    assert [type(one.message) for one in taken] == [type(message) for _, message in messages]


def test_a_session_begins_in_the_middle_of_what_was_fed():
    outgoing = Outgoing()
    stream = outgoing.frame(0, Word("hello"))
    outgoing.enter(SESSION)
    stream += outgoing.frame(0, Word("in session")) + outgoing.frame(1, SAID[0])
    incoming = Incoming(VOCABULARIES)
    incoming.feed(stream)
    assert incoming.take() == (0, Word("hello"))
    incoming.enter(SESSION)
    assert [incoming.take(), incoming.take()] == [(0, Word("in session")), (1, SAID[0])]
    assert incoming.take() is None


def refused(stream, after=(), session=SESSION):
    """Asserts that what `after` says is taken and the rest is an error, for good."""
    incoming = reader(session)
    incoming.feed(stream)
    for message in after:
        assert incoming.take().message == message
    with pytest.raises(WireError) as caught:
        incoming.take()
    assert isinstance(caught.value, FormatError)
    fresh = frames_of([(1, SAID[0])])[0]
    incoming.feed(fresh)
    with pytest.raises(WireError):
        incoming.take()
    return str(caught.value)


def test_frames_out_of_turn_are_refused():
    first, second, third = frames_of([(1, message) for message in SAID[:3]])
    assert "frame 0 came where 1 was due" in refused(first + first, SAID[:1])  # replayed
    assert "frame 1 came where 0 was due" in refused(second + first)  # reordered
    assert "frame 2 came where 1 was due" in refused(first + third, SAID[:1])  # one left out
    refused(first + second + first, SAID[:2])  # replayed later


def test_frames_of_other_sessions_are_refused():
    foreign = frames_of([(1, SAID[0])], OTHER)[0]
    first, second = frames_of([(1, SAID[0]), (1, SAID[1])])
    assert "another session" in refused(foreign)
    assert "another session" in refused(first + foreign, SAID[:1])
    assert "another session" in refused(first, session=OTHER)  # as when reflected to its sender
    assert "another session" in refused(first, session=HANDSHAKE)
    assert drain(reader(), first + second)  # they were good ones


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_length_is_judged_before_its_bytes_are_there(length):
    assert f"{length} bytes" in refused(LENGTH.pack(length))


def test_frames_before_the_session_may_be_kept_shorter():
    frame = Outgoing().frame(0, Word("x" * 5000))
    incoming = Incoming(VOCABULARIES, bytes_max=4096)
    incoming.feed(frame[:8])
    with pytest.raises(WireError):
        incoming.take()


def test_the_largest_message_fits_and_a_larger_one_harms_nothing():
    outgoing, incoming = Outgoing(SESSION), reader()
    empty = msgspec.msgpack.encode(Word(""))
    # An array of two, the tag, and a string with a length of 4 bytes instead of none.
    room = FRAME_BYTES_MAX - AROUND_BYTES - (len(empty) + 4)
    assert drain(incoming, outgoing.frame(0, Word("x" * room)))[0].message.text == "x" * room
    with pytest.raises(WireError):
        outgoing.frame(0, Word("x" * (room + 1)))
    assert drain(incoming, outgoing.frame(0, Word("next"))) == [(0, Word("next"))]


def raw_frame(*fields):
    body = msgspec.msgpack.encode(fields)
    return LENGTH.pack(len(body)) + body


GOOD = msgspec.Raw(msgspec.msgpack.encode(Word("x")))


@pytest.mark.parametrize(
    "frame",
    [
        raw_frame(SESSION, 0, 0),
        raw_frame(SESSION, 0, 0, GOOD, 1),
        raw_frame(SESSION, -1, 0, GOOD),
        raw_frame(SESSION, 2**64 - 1, 0, GOOD),
        raw_frame(SESSION, 0.0, 0, GOOD),
        raw_frame(SESSION, True, 0, GOOD),
        raw_frame(SESSION, None, 0, GOOD),
        raw_frame(SESSION[:15], 0, 0, GOOD),
        raw_frame(SESSION + b"s", 0, 0, GOOD),
        raw_frame(SESSION.decode(), 0, 0, GOOD),
        raw_frame(SESSION, 0, 2, GOOD),
        raw_frame(SESSION, 0, -1, GOOD),
        raw_frame(SESSION, 0, 1, GOOD),
        raw_frame(SESSION, 0, 0, ["word"]),
        raw_frame(SESSION, 0, 0, ["unheard of", "x"]),
        raw_frame(SESSION, 0, 0, ["word", b"x"]),
        raw_frame(SESSION, 0, 1, {"type": "marker"}),
        raw_frame(SESSION, 0, 1, {"type": "done", "snapshot": b"short"}),
        raw_frame(SESSION, 0, 1, {"type": "done", "snapshot": b"i" * 16, "more": 1}),
        raw_frame(SESSION, 0, 0, msgspec.Raw(b"\x92\xa4word\xa2\xff\xfe")),  # not UTF-8
        raw_frame(SESSION, 0, 0, msgspec.Raw(b"\x91" * 100_000 + b"\xc0")),  # too deep
        raw_frame(SESSION, 0, 0, msgspec.Raw(b"\xdd\xff\xff\xff\xff")),  # says it is huge
        LENGTH.pack(1) + b"\xc1",
        LENGTH.pack(3) + b"\x94\xc4\x10",  # ends too soon
        LENGTH.pack(len(raw_frame(SESSION, 0, 0, GOOD)) - 3)
        + raw_frame(SESSION, 0, 0, GOOD)[4:]
        + b"\0",
    ],
)
def test_malformed_frames_are_one_error(frame):
    refused(frame)


@given(st.binary(max_size=300))
@example(b"\0\0\0\0")
@example(LENGTH.pack(20) + b"\x94\xc4\x10" + SESSION + b"\0")
def test_arbitrary_bytes_give_nothing_or_the_one_error(data):
    incoming = reader()
    try:
        assert drain(incoming, data) == []
    except WireError:
        return
    assert len(data) < 4 or struct.unpack_from("<I", data)[0] > len(data) - 4


@settings(max_examples=200)
@given(st.data())
def test_a_changed_stream_gives_messages_of_the_vocabulary_or_the_one_error(data):
    frames = frames_of([(1, message) for message in SAID])
    stream = bytearray(b"".join(frames))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at] = data.draw(st.integers(0, 255))
    incoming = reader()
    incoming.feed(bytes(stream))
    taken = []
    try:
        while (one := incoming.take()) is not None:
            taken.append(one)
    except WireError:
        assert len(taken) < len(SAID)
    assert len(taken) <= len(SAID)
    assert all(type(one.message) in set(map(type, SAID)) for one in taken if one.kind == 1)


def test_random_cuts_joins_and_repeats_of_frames_never_pass():
    """What a network or an attacker without the session's name can do to frames as wholes: only an
    unharmed prefix is ever taken."""
    chance = random.Random(5)
    frames = frames_of([(1, message) for message in SAID * 3])
    foreign = frames_of([(1, message) for message in SAID], OTHER)
    wholes = 0
    for _ in range(2000):
        order = list(frames)
        for _ in range(chance.randint(0, 3)):
            i, j = chance.randrange(len(order)), chance.randrange(len(order))
            match chance.randrange(4):
                case 0:
                    order[i], order[j] = order[j], order[i]
                case 1:
                    order.insert(i, order[j])
                case 2 if len(order) > 2:
                    del order[i]
                case _:
                    order.insert(i, chance.choice(foreign))
        good = 0
        while good < min(len(order), len(frames)) and order[good] == frames[good]:
            good += 1
        incoming, taken = reader(), 0
        incoming.feed(b"".join(order))
        try:
            while incoming.take() is not None:
                taken += 1
            assert taken == good == len(order)
            wholes += 1
        except WireError:
            assert taken == good < len(order)
    assert 0 < wholes < 2000
