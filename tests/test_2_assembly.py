"""Assembling volumes: who is found, who is believed, what is recorded, and what is refused."""

import contextlib
import itertools
import os
import shutil

import msgspec
import pytest
from loop_devices import loop_device

from raidfs.errors import (
    Divergent,
    LabelError,
    LabelMissing,
    MemberBusy,
    MemberError,
    NotEnoughMembers,
    UsageError,
)
from raidfs.raid.assembly import Assembly
from raidfs.raid.create import create_volume, plan_volume
from raidfs.raid.label import LABEL_BYTES, encode_label, read_copies
from raidfs.raid.member import MetaFile
from raidfs.raid.places import open_member, peek


@pytest.fixture
def make(tmp_path):
    """make(level, count) -> paths of a new volume's members, directories."""

    def make(level="5", count=3, name="v", **options):
        paths = [str(tmp_path / f"{name}{i}") for i in range(count)]
        for path in paths:
            os.mkdir(path)
        options = {"size_bytes": 64 << 20, **options}
        create_volume(plan_volume(paths, level=level, name=name, **options), lambda *_: None)
        return paths

    return make


@pytest.fixture
def assemble():
    """Assembly.open, closed at the end of the test."""
    opened = []

    def assemble(source, **options):
        assembly = Assembly.open(source, **options)
        opened.append(assembly)
        return assembly

    yield assemble
    for assembly in opened:
        assembly.close()


def labels(paths):
    return [[copy for copy in read_copies_at(path)] for path in paths]


def read_copies_at(path):
    member = open_member(path, read_only=True)
    try:
        return read_copies(member)
    finally:
        member.close()


def hidden(path):
    """Take a member away; give it back with the returned function."""
    os.rename(path, path + ".away")
    return lambda: os.rename(path + ".away", path)


def test_any_member_finds_the_others(make, assemble):
    paths = make(count=4)
    for source in paths:
        assembly = assemble(source)
        assert sorted(assembly.members) == [0, 1, 2, 3] and not assembly.lost
        assert {m.path for m in assembly.members.values()} == set(paths)
        assert assembly.label.generation == 1 and assembly.code.text == "5/4"
        assert all(m.slots_total > 0 for m in assembly.members.values())
        assembly.close()


def test_a_healthy_open_writes_nothing(make, assemble):
    paths = make()
    before = [os.stat(os.path.join(path, "label")).st_mtime_ns for path in paths]
    assemble(paths[0]).close()
    assert [os.stat(os.path.join(path, "label")).st_mtime_ns for path in paths] == before


def test_a_volume_is_open_once(make, assemble):
    paths = make()
    assembly = assemble(paths[0])
    for source in paths:
        with pytest.raises(MemberBusy, match="in use"):
            assemble(source)
    with pytest.raises(MemberBusy):
        assemble(paths[1], read_only=True)
    assembly.close()
    assemble(paths[1], read_only=True)


def test_an_open_that_is_refused_leaves_no_lock(make, assemble):
    paths = make()
    back = hidden(paths[2])
    with pytest.raises(NotEnoughMembers):
        assemble(paths[0])
    back()
    assemble(paths[0])


@pytest.mark.parametrize(("level", "count"), [("5", 3), ("6", 5), ("1", 3), ("rs:2+3", 5)])
def test_losses_up_to_tolerance(make, assemble, level, count):
    paths = make(level, count)
    tolerance = peek(paths[0]).parameters.width and plan_tolerance(level, count)
    gone = list(range(count - tolerance, count))
    for member in gone:
        hidden(paths[member])
    with pytest.raises(NotEnoughMembers, match="would newly run without") as caught:
        assemble(paths[0])
    assert "-o degraded" in str(caught.value)
    assert all(paths[member] in str(caught.value) for member in gone)
    assert labels(paths[: gone[0]]) == [[label] * 2 for (label, _) in labels(paths[: gone[0]])]
    assert peek(paths[0]).generation == 1, "a refusal changes nothing"

    assembly = assemble(paths[0], degraded=True)
    assert sorted(assembly.lost) == gone and assembly.label.generation == 2
    assert not assembly.doubtful
    assembly.close()
    for path in paths[: gone[0]]:
        for copy in read_copies_at(path):
            assert copy.generation == 2
            assert [e.id for e in copy.members if e.state == "failed"] == gone
            assert all("not found" in copy.entry(m).reason for m in gone)
    assembly = assemble(paths[0])
    assert sorted(assembly.lost) == gone and assembly.label.generation == 2, "recorded: no flag"


def plan_tolerance(level, count):
    from raidfs.raid.code import code_for

    return code_for(level, count).tolerance


@pytest.mark.parametrize("degraded", [False, True])
def test_one_loss_too_many(make, assemble, degraded):
    paths = make("5", 4)
    hidden(paths[1])
    hidden(paths[3])
    with pytest.raises(NotEnoughMembers, match="lost 2 members and level 5 survives 1") as caught:
        assemble(paths[0], degraded=degraded)
    assert paths[1] in str(caught.value) and paths[3] in str(caught.value)
    assert peek(paths[0]).generation == 1


def test_a_stale_member_is_never_believed(make, assemble):
    paths = make()
    back = hidden(paths[2])
    assemble(paths[0], degraded=True).close()
    back()
    for source in paths:  # the stale one too may be named
        assembly = assemble(source)
        assert sorted(assembly.members) == [0, 1] and list(assembly.lost) == [2]
        assembly.close()
    hidden(paths[0])
    with pytest.raises(NotEnoughMembers, match="newly run without member 0"):
        assemble(paths[1])
    # What was written since the first loss lies on 0 and 1 alone: the zones will tell.
    assert assemble(paths[1], degraded=True).doubtful


def test_two_halves_of_a_mirror_that_went_on_separately(make, assemble):
    paths = make("1", 2)
    back = hidden(paths[1])
    assemble(paths[0], degraded=True).close()
    away = hidden(paths[0])
    back()
    with pytest.raises(NotEnoughMembers, match="-o degraded"):
        assemble(paths[1])
    assemble(paths[1], degraded=True).close()
    away()
    for source in paths:
        for degraded in (False, True):
            with pytest.raises(Divergent) as caught:
                assemble(source, degraded=degraded)
            assert paths[0] in str(caught.value) and paths[1] in str(caught.value)
    # also after one half went on some generations further
    back = hidden(paths[1])
    one = assemble(paths[0])
    one._advance(one.label.members, 1)
    one.close()
    back()
    with pytest.raises(Divergent, match="choose the part to keep"):
        assemble(paths[1])
    hidden(paths[1])
    assemble(paths[0])  # as the message said


def interrupted_labels(paths, upto):
    """A change of labels (member 0 failed) that was cut off after so many copies were written."""
    old = peek(paths[1])
    table = [
        msgspec.structs.replace(e, state="failed", reason="broke") if e.id == 0 else e
        for e in old.members
    ]
    new = msgspec.structs.replace(
        old,
        generation=2,
        generation_id="22" * 8,
        history=[*old.history, (2, "22" * 8)],
        members=table,
    )
    places = [(member, copy) for member in range(1, len(paths)) for copy in (0, 1)]
    for member_id, copy in places[:upto]:
        member = open_member(paths[member_id])
        member.write_label(copy, encode_label(new.for_member(member_id)))
        member.close()
    return len(places)


@pytest.mark.parametrize("upto", range(7))
def test_an_update_of_labels_that_was_cut_off(make, assemble, upto):
    paths = make("6", 4)
    assert interrupted_labels(paths, upto) == 6
    for source in paths[1:]:
        assembly = assemble(source, read_only=True)
        expected = [0, 1, 2, 3] if upto == 0 else [1, 2, 3]
        assert sorted(assembly.members) == expected
        assembly.close()
    assembly = assemble(paths[3])
    assembly.close()
    if upto:
        for path in paths[1:]:
            for copy in read_copies_at(path):
                assert copy.generation == 2 and copy.entry(0).state == "failed"
        assert read_copies_at(paths[0])[0].generation == 1


def test_a_damaged_copy_of_a_label_is_mended(make, assemble):
    paths = make()
    with open(os.path.join(paths[1], "label"), "r+b") as file:
        file.seek(LABEL_BYTES + 100)
        file.write(b"garbage")
    assemble(paths[0], read_only=True).close()
    assert isinstance(read_copies_at(paths[1])[1], LabelError)
    assemble(paths[0]).close()
    assert read_copies_at(paths[1])[0] == read_copies_at(paths[1])[1]


def test_a_label_damaged_twice_is_a_lost_member(make, assemble):
    paths = make()
    with open(os.path.join(paths[1], "label"), "r+b") as file:
        for offset in (100, LABEL_BYTES + 100):
            file.seek(offset)
            file.write(b"garbage")
    with pytest.raises(LabelError, match="name another member"):
        assemble(paths[1])
    with pytest.raises(NotEnoughMembers, match=r"label of .*v1 are unusable"):
        assemble(paths[0])
    assembly = assemble(paths[0], degraded=True)
    assert list(assembly.lost) == [1]


def test_failing_a_member(make, assemble):
    paths = make("6", 4)
    assembly = assemble(paths[0])
    member = assembly.members[0]
    assert assembly.fail(0, "write failed") == {0}
    assert assembly.label.generation == 2 and assembly.label.member_id == 1
    assert assembly.lost == {0: "write failed"} and sorted(assembly.members) == [1, 2, 3]
    with pytest.raises(MemberError, match="closed"):
        member.read_label(0)
    assert assembly.fail(0, "again") == set()
    assert peek(paths[0]).generation == 1
    for path in paths[1:]:
        for copy in read_copies_at(path):
            assert copy.generation == 2 and copy.entry(0).reason == "write failed"
    open_member(paths[0]).close()  # its lock is released


def test_failing_beyond_tolerance_changes_nothing(make, assemble):
    paths = make("5", 3)
    assembly = assemble(paths[0])
    assembly.fail(0, "first")
    with pytest.raises(NotEnoughMembers, match="can't go on without member 1"):
        assembly.fail(1, "second")
    assert sorted(assembly.members) == [1, 2]
    assembly.close()
    assembly = assemble(paths[1])
    assert sorted(assembly.members) == [1, 2], "what was good stays believed"


def test_failing_while_the_zones_survive(make, assemble):
    paths = make("10", 6)
    assembly = assemble(paths[0])
    assembly.fail(0, "first")
    with pytest.raises(NotEnoughMembers):
        assembly.fail(2, "second")
    assert assembly.fail(2, "second", zones_survive=True) == {2}
    assembly.close()
    assembly = assemble(paths[1])
    assert assembly.doubtful and sorted(assembly.lost) == [0, 2]


def test_a_member_that_fails_while_labels_are_written(make, assemble, monkeypatch):
    paths = make("6", 5)
    assembly = assemble(paths[0])
    broken = assembly.members[3]

    def fail(copy, data):
        raise MemberError(f"{broken.path}: writing the label failed", broken.path)

    monkeypatch.setattr(broken, "write_label", fail)
    assert assembly.fail(1, "first") == {1, 3}
    assert assembly.label.generation == 3
    assembly.close()
    again = assemble(paths[0])
    assert sorted(again.members) == [0, 2, 4] and "writing the label" in again.label.entry(3).reason


def test_labels_that_cannot_be_written_do_not_lose_good_members(make, assemble, monkeypatch):
    """Beyond tolerance the change stops half-way; the next open goes on from there."""
    paths = make("5", 3)
    assembly = assemble(paths[0])
    broken = assembly.members[2]

    def fail(copy, data):
        raise MemberError(f"{broken.path}: writing the label failed", broken.path)

    monkeypatch.setattr(broken, "write_label", fail)
    with pytest.raises(NotEnoughMembers, match="mend the cause"):
        assembly.fail(0, "first")
    assembly.close()
    again = assemble(paths[1])
    assert sorted(again.members) == [1, 2] and list(again.lost) == [0]


def test_read_only_writes_nothing(make, assemble):
    paths = make("6", 4)
    hidden(paths[3])
    before = labels(paths[:3])
    with pytest.raises(NotEnoughMembers):
        assemble(paths[0], read_only=True)
    assembly = assemble(paths[0], read_only=True, degraded=True)
    assembly.fail(1, "unreadable")
    assert sorted(assembly.members) == [0, 2]
    assembly.close()
    assert labels(paths[:3]) == before


def test_doubtful_levels_wait_for_the_zones(make, assemble):
    paths = make("10", 4)
    back = [hidden(paths[0]), hidden(paths[2])]
    with pytest.raises(NotEnoughMembers, match="newly"):
        assemble(paths[1])
    assembly = assemble(paths[1], degraded=True)
    assert assembly.doubtful and peek(paths[1]).generation == 1
    assembly.close()
    for give in back:
        give()
    assembly = assemble(paths[1])
    assert not assembly.doubtful and not assembly.lost, "nothing was recorded"
    assembly.close()
    hidden(paths[0])
    hidden(paths[2])
    assembly = assemble(paths[1], degraded=True)
    assembly.settle()
    assembly.close()
    assert peek(paths[3]).generation == 2
    assert assemble(paths[3]).doubtful, "recorded, yet beyond what is promised"


def test_more_members_than_width_are_doubtful_too(make, assemble):
    paths = make("5", 6, width=3)
    hidden(paths[0])
    hidden(paths[1])
    assert assemble(paths[2], degraded=True).doubtful


def test_members_that_moved_together(make, assemble, tmp_path):
    paths = make()
    other = tmp_path / "other"
    other.mkdir()
    for path in paths:
        shutil.move(path, other)
    moved = [str(other / os.path.basename(path)) for path in paths]
    assembly = assemble(moved[1])
    assert not assembly.lost
    assembly.close()
    assert [entry.path for entry in peek(moved[0]).members] == moved
    assert peek(moved[0]).generation == 2


def test_members_that_moved_apart(make, assemble, tmp_path):
    paths = make()
    moved = str(tmp_path / "elsewhere")
    shutil.move(paths[2], moved)
    with pytest.raises(NotEnoughMembers):
        assemble(paths[0])
    assembly = assemble(paths[0], extra_paths=[moved])
    assert not assembly.lost
    assembly.close()
    assert assemble(paths[0]).members[2].path == moved, "remembered"


def test_the_same_member_named_twice(make, assemble, tmp_path):
    paths = make()
    link = tmp_path / "link"
    link.symlink_to(paths[0])
    with pytest.raises(UsageError, match="the same"):
        assemble(paths[0], extra_paths=[str(link)])
    with pytest.raises(UsageError, match="the same"):
        assemble(paths[0], extra_paths=[paths[1], paths[1]])


def test_a_copy_of_a_member(make, assemble, tmp_path):
    paths = make()
    copy = tmp_path / "copy"
    shutil.copytree(paths[1], copy)
    for source in (paths[0], str(copy)):
        with pytest.raises(UsageError, match=r"both hold member 1.*so one is a copy") as caught:
            assemble(source, extra_paths=[] if source == str(copy) else [str(copy)])
        assert paths[1] in str(caught.value) and str(copy) in str(caught.value)


def test_members_of_other_volumes(make, assemble):
    ours, theirs = make(name="ours"), make(name="theirs")
    with pytest.raises(UsageError, match="belongs to another volume, theirs"):
        assemble(ours[0], extra_paths=[theirs[0]])
    shutil.rmtree(ours[2])
    shutil.move(theirs[2], ours[2])
    with pytest.raises(NotEnoughMembers, match="now belongs to another volume, theirs"):
        assemble(ours[0])


def test_what_is_no_member(make, assemble, tmp_path):
    with pytest.raises(MemberError, match="no such file"):
        assemble(str(tmp_path / "nothing"))
    with pytest.raises(LabelMissing, match="not a member"):
        assemble(str(tmp_path))
    with pytest.raises(UsageError, match="can't be a member"):
        assemble("/dev/null")
    empty = tmp_path / "empty.img"
    empty.write_bytes(bytes(1000))
    with pytest.raises(LabelMissing, match="not a member"):
        assemble(str(empty))


def test_an_image_found_through_a_loop_device_and_back(tmp_path, assemble):
    images = [str(tmp_path / f"{i}.img") for i in range(3)]
    for image in images:
        with open(image, "wb") as file:
            file.truncate(64 << 20)
    create_volume(plan_volume(images), lambda *_: None)
    with loop_device(images[1]) as device:
        assembly = assemble(device, extra_paths=[images[0], images[2]])
        assert not assembly.lost and assembly.members[1].kind == "device"
        assembly.close()
        assert peek(images[0]).entry(1).path == device
    with pytest.raises(NotEnoughMembers, match="member 1"):
        assemble(images[0])
    assembly = assemble(images[1])
    assert assembly.members[1].kind == "image" and not assembly.lost
    for member in assembly.members.values():
        member.meta_write(MetaFile.DB, 0, b"x")


def test_devices_that_changed_their_names(tmp_path, assemble):
    backing = [tmp_path / f"backing{i}" for i in range(3)]
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(loop_device(path, 64 << 20)) for path in backing]
        create_volume(plan_volume(devices), lambda *_: None)
    with contextlib.ExitStack() as stack:
        swapped = [stack.enter_context(loop_device(path)) for path in reversed(backing)]
        assert peek(swapped[0]).member_id == 2
        assembly = assemble(swapped[1])
        assert [assembly.members[i].path for i in range(3)] == swapped[::-1]
        assembly.close()


def test_a_cut_off_image_counts_as_lost(tmp_path, assemble):
    images = [str(tmp_path / f"{i}.img") for i in range(3)]
    for image in images:
        with open(image, "wb") as file:
            file.truncate(64 << 20)
    create_volume(plan_volume(images), lambda *_: None)
    os.truncate(images[1], 50 << 20)
    with pytest.raises(NotEnoughMembers, match="cut off or is a partial copy"):
        assemble(images[0])
    assert list(assemble(images[0], degraded=True).lost) == [1]


def test_generations_may_go_on_for_ever(make, assemble):
    """The history is bounded, and a member that failed long ago stays merely stale."""
    paths = make("6", 4)
    back = hidden(paths[3])
    assembly = assemble(paths[0], degraded=True)
    for _ in range(66):
        assembly._advance(assembly.label.members, 2)
    assert len(assembly.label.history) == 64 and assembly.label.generation == 68
    assembly.close()
    back()
    for source in paths:
        assembly = assemble(source)
        assert list(assembly.lost) == [3]
        assembly.close()


def test_every_single_or_double_loss_of_directories(make, assemble):
    """Who is believed is exactly who is there."""
    paths = make("6", 4)
    for count in (1, 2):
        for gone in itertools.combinations(range(4), count):
            back = [hidden(paths[member]) for member in gone]
            source = next(path for i, path in enumerate(paths) if i not in gone)
            assembly = assemble(source, degraded=True, read_only=True)
            assert sorted(assembly.lost) == list(gone)
            assert sorted(assembly.members) == [i for i in range(4) if i not in gone]
            assembly.close()
            for give in back:
                give()
