"""Labels: what is written is read, and nothing else is believed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from members_conformance import label_of

from raidfs.errors import LabelError, LabelMissing, MemberError, UsageError
from raidfs.raid.directory import lay_out_directory
from raidfs.raid.label import (
    LABEL_BYTES,
    MemberEntry,
    decode_label,
    encode_label,
    read_labels,
    write_label,
)


def test_round_trip():
    label = label_of(1, volume_name="Bänke 7", generation=3, generation_id="ff" * 8)
    label = label_of(
        1, history=[(1, "01" * 8), (3, "ff" * 8)], generation=3, generation_id="ff" * 8
    )
    data = encode_label(label)
    assert len(data) == LABEL_BYTES
    assert decode_label(data) == label
    assert decode_label(data).entry(2).path == "/somewhere/2"
    with pytest.raises(KeyError):
        label.entry(9)


@given(st.integers(0, LABEL_BYTES * 8 - 1))
def test_every_bit_is_checked(bit):
    data = bytearray(encode_label(label_of()))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(LabelError):
        decode_label(bytes(data))


@given(st.binary(max_size=300))
def test_nonsense_is_refused_politely(data):
    with pytest.raises(LabelError):
        decode_label(data)
    with pytest.raises(LabelError):
        decode_label(b"raidfsLB" + data.ljust(LABEL_BYTES - 8, b"\0"))


def test_no_label_is_told_from_a_damaged_one():
    for nothing in (b"", bytes(LABEL_BYTES), b"\xff" * LABEL_BYTES):
        with pytest.raises(LabelMissing):
            decode_label(nothing)
    with pytest.raises(LabelError, match="cut off") as caught:
        decode_label(encode_label(label_of())[:-1])
    assert not isinstance(caught.value, LabelMissing)


def test_a_newer_format_is_named(monkeypatch):
    monkeypatch.setattr("raidfs.raid.label.FORMAT_VERSION", 3)
    data = encode_label(label_of())
    monkeypatch.undo()
    with pytest.raises(LabelError, match="format 3 and this raidfs knows format 2"):
        decode_label(data)


@pytest.mark.parametrize(
    "change",
    [
        {"volume_id": "AB" * 16},
        {"volume_name": ""},
        {"member_id": 7},
        {"generation": 0},
        {"generation": 2},
        {"generation_id": "02" * 8},
        {"history": []},
        {"history": [(2, "00" * 8), (1, "01" * 8)]},
        {"history": [(1, "xx" * 8)]},
        {"members": []},
        {"members": [MemberEntry(0, "directory", "/a", 1, 1)] * 2},
        {"members": [MemberEntry(0, "tape", "/a", 1, 1)]},
        {"members": [MemberEntry(0, "image", "/a", -1, 1)]},
    ],
)
def test_what_makes_no_sense_is_neither_written_nor_read(change):
    with pytest.raises(LabelError, match="makes no sense"):
        encode_label(label_of(**change))


def test_a_table_too_large_is_said():
    entries = [MemberEntry(i, "image", "/" + "x" * 4000, 1, 1) for i in range(20)]
    with pytest.raises(UsageError, match="fewer members or shorter paths"):
        encode_label(label_of(members=entries))
    encode_label(label_of(members=[MemberEntry(i, "image", "/dev/sd", 1, 1) for i in range(256)]))


@pytest.fixture
def member(tmp_path):
    member = lay_out_directory(str(tmp_path))
    yield member
    member.close()


def later(generation):
    history = [(g, f"{g:016x}") for g in range(1, generation + 1)]
    return label_of(generation=generation, generation_id=f"{generation:016x}", history=history)


def test_the_newest_whole_copy_counts(member):
    with pytest.raises(LabelMissing, match="no label"):
        read_labels(member)
    write_label(member, later(3))
    member.write_label(0, encode_label(later(4)))  # cut off between the copies
    assert read_labels(member) == later(4)
    member.write_label(1, encode_label(later(5)))
    assert read_labels(member) == later(5)


def test_a_crash_while_a_label_is_written_leaves_one(member):
    """A copy may be torn at any byte; the other is whole."""
    rng = random.Random(1)
    old, new = encode_label(later(3)), encode_label(later(4))
    for copy in (0, 1):
        write_label(member, later(3))
        for _ in range(5):
            if copy == 1:
                member.write_label(0, new)
            cut = rng.randrange(1, 2000)
            torn = new[:cut] + rng.randbytes(100) + old[cut + 100 :]
            member.write_label(copy, torn)
            assert read_labels(member) == later(4 if copy == 1 else 3)


def test_both_copies_damaged(member):
    write_label(member, later(3))
    for copy in (0, 1):
        data = bytearray(member.read_label(copy))
        data[100] ^= 1
        member.write_label(copy, bytes(data))
    with pytest.raises(LabelError, match="name another member") as caught:
        read_labels(member)
    assert not isinstance(caught.value, LabelMissing)


def test_copies_are_written_one_after_the_other():
    calls = []

    class Recorder:
        def write_label(self, copy, data):
            calls.append((copy, decode_label(data)))
            if len(calls) == 2:
                raise MemberError("broken")

    with pytest.raises(MemberError):
        write_label(Recorder(), later(2))
    assert [copy for copy, _ in calls] == [0, 1]
    assert all(label == later(2) for _, label in calls)
