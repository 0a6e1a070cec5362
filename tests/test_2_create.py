"""Making volumes: what is refused, what a plan promises, and that it is everything or nothing."""

import os
import subprocess

import pytest
from loop_devices import loop_device

from raidfs.errors import MemberBusy, MemberError, MemberFull, RaidfsError, UsageError
from raidfs.raid.assembly import Assembly
from raidfs.raid.create import create_volume, lay_out, plan_volume, undo, write_labels
from raidfs.raid.label import read_labels
from raidfs.raid.member import MetaFile
from raidfs.raid.places import open_member, peek
from raidfs.raid.raw import MIB
from raidfs.raid.sites import SIGNATURES


@pytest.fixture
def places(tmp_path):
    """places(count, "directory" or "image", bytes) -> paths."""
    numbers = iter(range(1000))

    def places(count, kind="directory", nbytes=64 * MIB):
        paths = []
        for _ in range(count):
            path = tmp_path / f"{kind[0]}{next(numbers)}"
            if kind == "directory":
                path.mkdir()
            else:
                with open(path, "wb") as file:
                    file.truncate(nbytes)
            paths.append(str(path))
        return paths

    return places


def make(paths, **options):
    plan = plan_volume(paths, **options)
    create_volume(plan, lambda members, parameters: None)
    return plan


def state(*paths):
    """All there is at these paths: names, sizes, times of change, and content."""
    found = {}
    for path in paths:
        inside = [path]
        if os.path.isdir(path):
            inside += [os.path.join(top, n) for top, ds, fs in os.walk(path) for n in ds + fs]
        for name in sorted(inside):
            info = os.stat(name)
            content = b""
            if os.path.isfile(name):
                with open(name, "rb") as file:
                    content = file.read(MIB // 4)
            found[name] = (info.st_mode, info.st_size, info.st_mtime_ns, content)
    return found


def refused(paths, match, error=RaidfsError, **options):
    """One sentence that matches, of the right type, and nothing changed."""
    existing = [path for path in paths if os.path.isfile(path) or os.path.isdir(path)]
    before = state(*existing)
    with pytest.raises(error, match=match) as caught:
        make(paths, **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    assert state(*existing) == before
    return text


# what is made


def test_defaults(places):
    expected = {1: "0/1", 2: "1/2", 3: "5/3", 5: "5/5", 6: "6/6", 7: "6/7"}
    for count, code in expected.items():
        plan = plan_volume(places(count), size_bytes=64 * MIB)
        assert plan.code.text == code
        assert plan.parameters.cell_bytes == 4096 and plan.parameters.zone_bytes == MIB
        assert plan.tolerance == plan.code.tolerance
        assert plan.volume_name.startswith("volume-")


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_a_volume_is_made(places, kind):
    paths = places(3, kind)
    seen = []

    def prepare(members, parameters):
        assert not any(any(member.read_label(0)) for member in members.values())
        for member in members.values():
            member.meta_write(MetaFile.DB, 0, b"the metadata")
            seen.append(member.path)
        assert parameters.level == "5"

    options = {"size_bytes": 64 * MIB} if kind == "directory" else {}
    plan = plan_volume(paths, name="photos", **options)
    before = state(*paths)
    assert plan.usable_bytes == plan.zones * 2 * MIB > 40 * MIB
    create_volume(plan, prepare)
    assert state(*paths) != before and seen == paths
    labels = [peek(path) for path in paths]
    assert [label.member_id for label in labels] == [0, 1, 2]
    assert all(label.for_member(0) == plan.label() for label in labels)
    assert labels[0].volume_name == "photos" and labels[0].generation == 1
    assembly = Assembly.open(paths[1])
    for member in assembly.members.values():
        assert member.slots_total == plan.members[0].slots >= plan.zones
        if kind == "directory":
            assert member.meta_read(MetaFile.DB, 0, 99) == b"the metadata"
        slot = member.slots_total - 1
        member.column_create(1, 0, slot, MIB)
    assembly.close()


def test_a_dry_run_changes_nothing(places):
    paths = [*places(2), *places(2, "image")]
    before = state(*paths)
    plan_volume(paths)
    assert state(*paths) == before


def test_unequal_members(places):
    paths = [*places(1, "image", 64 * MIB), *places(2, "image", 128 * MIB)]
    plan = plan_volume(paths)
    small, large = plan.members[0].slots, plan.members[1].slots
    assert large - small == 64
    assert plan.zones == small and plan.unused_bytes == {1: 64 * MIB, 2: 64 * MIB}
    assert any("stays unused" in warning for warning in plan.warnings)
    plan = plan_volume(paths, level="1", width=2)
    assert plan.zones == (small + 2 * large) // 2 and plan.unused_bytes == {}
    assert plan.usable_bytes == plan.zones * MIB
    assert any("spread over 3 members" in warning for warning in plan.warnings)


def test_warnings(places):
    assert any("survives no loss" in w for w in plan_volume(places(2), level="0").warnings)
    assert any("3 members lie on the filesystem" in w for w in plan_volume(places(3)).warnings)


def test_directories_share_the_room_of_their_filesystem(places):
    paths = places(4)
    one = plan_volume(paths[:1]).members[0].bytes
    four = [member.bytes for member in plan_volume(paths).members]
    assert len(set(four)) == 1 and four[0] == pytest.approx(one / 4, rel=0.05)


def test_zone_sizes_follow_the_members(places, monkeypatch):
    def zone_bytes(nbytes):
        return plan_volume(places(3, "image", nbytes)).parameters.zone_bytes

    assert zone_bytes(64 * MIB) == MIB
    assert zone_bytes(512 * MIB) == 2 * MIB
    assert zone_bytes(20 << 30) == 64 * MIB  # 80 MiB is nearer to 64 than to 128
    assert zone_bytes(1 << 40) == 64 * MIB
    assert zone_bytes(4 << 40) == 256 * MIB


def test_metadata_areas_grow_with_the_volume(places):
    plan = plan_volume(places(4, "image", 64 * MIB))
    assert plan.parameters.db_bytes == 24 * MIB and plan.parameters.wal_bytes == 16 * MIB
    plan = plan_volume(places(4, "image", 1 << 40))
    whole = 1 << 40
    assert plan.parameters.db_bytes == pytest.approx(whole * 4 * 14 / 4096 + whole / 50, rel=0.01)
    assert plan.parameters.db_bytes % MIB == 0 and plan.parameters.wal_bytes == 512 * MIB


def test_a_mixed_volume(places, tmp_path):
    with loop_device(tmp_path / "backing", 64 * MIB) as device:
        paths = [*places(1), *places(1, "image"), device]
        plan = make(paths, level="5")
        assert [member.kind for member in plan.members] == ["directory", "image", "device"]
        Assembly.open(device).close()


def test_all_levels(places):
    for level, count in [("0", 2), ("1", 3), ("2", 7), ("3", 3), ("4", 3), ("5", 3), ("6", 4)]:
        assert make(places(count), level=level, size_bytes=32 * MIB).code.width == count
    assert make(places(5), level="10", size_bytes=32 * MIB).code.width == 4
    assert make(places(6), level="rs:4+2", size_bytes=32 * MIB).code.text == "rs:4+2/6"
    assert make(places(7), level="rs:2+3", size_bytes=32 * MIB).code.width == 5


# what is refused


@pytest.mark.parametrize(
    ("level", "count", "needed"),
    [("1", 1, 2), ("2", 2, 3), ("5", 2, 3), ("6", 3, 4), ("10", 3, 4), ("rs:4+2", 5, 6)],
)
def test_too_few_members(places, level, count, needed):
    paths = places(count)
    text = refused(paths, f"level .* needs at least {needed} members", UsageError, level=level)
    assert f"add {needed - count}" in text


def test_no_members():
    with pytest.raises(UsageError, match="name at least one"):
        plan_volume([])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"level": "7"}, "unknown level '7': choose one of"),
        ({"level": ""}, "unknown level"),
        ({"width": 2}, "3 to 4 wide"),
        ({"width": 5}, "3 to 4 wide"),
        ({"level": "10", "width": 3}, "4 to 4 wide"),
        ({"level": "rs:2+1", "width": 4}, "is 3 members wide"),
        ({"cell_bytes": 1000}, "cells can be"),
        ({"zone_bytes": 100_000}, "power of two"),
        ({"zone_bytes": 1 << 31}, "power of two"),
        ({"cell_bytes": 65536, "zone_bytes": 65536}, "power of two from 1 MiB"),
        ({"size_bytes": 0}, "must be positive"),
        ({"size_bytes": 1 << 60}, "to give and .* asked for"),
        ({"name": ""}, "1 to 255 bytes"),
        ({"name": "a/b"}, "won't do"),
        ({"name": "a\nb"}, "won't do"),
        ({"name": "x" * 256}, "1 to 255 bytes"),
    ],
)
def test_senseless_options(places, options, match):
    refused(places(4), match, UsageError, **{"level": "5", **options})


def test_the_same_place_twice(places, tmp_path):
    paths = places(3)
    (tmp_path / "link").symlink_to(paths[0])
    for again in (paths[0], str(tmp_path / "link"), f"{paths[0]}/../{os.path.basename(paths[0])}"):
        text = refused([*paths, again], "are the same place", UsageError)
        assert paths[0] in text and again in text
    (image,) = places(1, "image")
    with loop_device(image) as one, loop_device(image) as two:
        for pair in ([one, two], [one, image], [image, two]):
            refused([*paths, *pair], "are the same place", UsageError)


def test_a_member_inside_another(places):
    paths = places(2)
    inside = os.path.join(paths[0], "inside")
    os.mkdir(inside)
    refused([*paths, inside], "lies inside", UsageError)
    refused([inside, *paths], "lies inside", UsageError)


def test_a_path_that_is_missing_or_no_place(places, tmp_path):
    paths = places(2)
    text = refused([*paths, str(tmp_path / "no")], "does not exist", MemberError)
    assert "mkdir" in text and "truncate -s SIZE" in text
    refused([*paths, "/dev/null"], "/dev/null can't be a member", UsageError)


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_a_member_of_a_volume(places, kind):
    old = places(3, kind)
    make(old, name="old", **({"size_bytes": 64 * MIB} if kind == "directory" else {}))
    paths = [*places(2), old[1]]
    text = refused(paths, "is member 1 of the volume old already", UsageError)
    assert "--force" in text
    make(paths, force=True, name="new", size_bytes=48 * MIB)
    assert peek(old[1]).volume_name == "new" and peek(old[0]).volume_name == "old"
    assembly = Assembly.open(old[1])
    assert assembly.members[2].columns() == []
    assert assembly.members[2].meta_size(MetaFile.DB) == 0
    assembly.close()


def test_force_takes_away_the_old_volume_and_nothing_else(places):
    old = places(3)
    make(old, size_bytes=64 * MIB)
    member = open_member(old[0])
    member.column_create(7, 0, 0, MIB)
    member.meta_write(MetaFile.DB, 0, b"old")
    member.close()
    with open(os.path.join(old[0], "notes"), "w") as file:
        file.write("mine")
    make(old, force=True, size_bytes=64 * MIB)
    assert not os.path.exists(os.path.join(old[0], "zones", "07"))
    assert not os.path.exists(os.path.join(old[0], "metadata", "raidfs.db"))
    with open(os.path.join(old[0], "notes")) as file:
        assert file.read() == "mine"


def test_a_damaged_label(places):
    paths = places(3)
    make(paths, size_bytes=64 * MIB)
    with open(os.path.join(paths[2], "label"), "r+b") as file:
        for offset in (100, 65536 + 100):
            file.seek(offset)
            file.write(b"garbage")
    refused([*places(2), paths[2]], "damaged raidfs label", UsageError)


def test_a_directory_that_is_not_empty(places):
    paths = places(3)
    with open(os.path.join(paths[1], "thesis"), "w") as file:
        file.write("years of work")
    refused(paths, "is not empty", UsageError)
    make(paths, force=True, size_bytes=64 * MIB)
    with open(os.path.join(paths[1], "thesis")) as file:
        assert file.read() == "years of work"


@pytest.mark.parametrize("name", ["label", "zones", "metadata"])
@pytest.mark.parametrize("force", [False, True])
def test_files_that_bear_our_names(places, name, force):
    paths = places(3)
    with open(os.path.join(paths[1], name), "w") as file:
        file.write("mine")
    refused(paths, f"holds {name}, names that raidfs needs", UsageError, force=force)
    os.unlink(os.path.join(paths[1], name))
    os.mkdir(os.path.join(paths[1], name))
    refused(paths, f"holds {name}, names that raidfs needs", UsageError, force=force)


def test_a_member_in_use(places):
    old = places(3)
    make(old, size_bytes=64 * MIB)
    assembly = Assembly.open(old[0])
    fresh = places(2)
    for force in (False, True):
        with pytest.raises(MemberBusy, match=f"{old[2]} is in use"):
            plan_volume([*fresh, old[2]], force=force)
    assembly.close()
    plan_volume([*fresh, old[2]], force=True)


def test_an_image_under_a_loop_device(places):
    (image,) = places(1, "image")
    with loop_device(image) as device:
        with pytest.raises(MemberBusy, match=f"attached to {device}: name {device} instead"):
            plan_volume([*places(2), image], force=True)
        plan_volume([*places(2), device])


def test_a_mounted_device(places, tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with loop_device(tmp_path / "backing", 64 * MIB) as device:
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", device, mountpoint], check=True)
        try:
            for force in (False, True):
                with pytest.raises(MemberBusy, match="in use"):
                    plan_volume([*places(2), device], force=force)
        finally:
            subprocess.run(["umount", mountpoint], check=True)
        refused([*places(2), device], "ext2/3/4 filesystem", UsageError)
        make([*places(2), device], force=True)


def test_read_only_places(places, tmp_path):
    with loop_device(tmp_path / "backing", 64 * MIB) as device:
        subprocess.run(["blockdev", "--setro", device], check=True)
        refused([*places(2), device], "read-only file system; make it writable", MemberError)
    mountpoint = tmp_path / "ro"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", mountpoint], check=True)
    try:
        refused([*places(2), str(mountpoint)], "read-only file system", MemberError)
    finally:
        subprocess.run(["umount", mountpoint], check=True)


@pytest.mark.parametrize(("offset", "magic", "what"), SIGNATURES)
def test_known_signatures(places, offset, magic, what):
    paths = places(3, "image")
    with open(paths[1], "r+b") as file:
        file.seek(offset)
        file.write(magic)
    assert what in refused(paths, "seems to hold", UsageError)
    plan_volume(paths, force=True)


def test_signatures_as_the_tools_write_them(places):
    (image,) = places(1, "image")
    for command, what in [
        (["mkfs.ext4", "-q", "-F"], "ext2/3/4"),
        (["mkswap", "-q"], "swap"),
    ]:
        os.truncate(image, 0)
        os.truncate(image, 64 * MIB)
        subprocess.run([*command, image], check=True)
        refused([*places(2), image], what, UsageError)


@pytest.mark.parametrize("nbytes", [0, 4096, MIB, 42 * MIB, 44 * MIB])
def test_a_member_that_is_too_small(places, nbytes):
    paths = [*places(2, "image"), *places(1, "image", nbytes)]
    text = refused(paths, "is too small", UsageError)
    assert paths[2] in text and "at least" in text


def test_the_least_that_the_message_names_is_enough(places):
    plan_volume(places(3, "image", 48 * MIB))
    plan_volume(places(3), size_bytes=16 * MIB)


def test_small_filesystems(places, tmp_path):
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mountpoint], check=True)
    try:
        refused([*places(2), str(mountpoint)], "is too small", UsageError)
    finally:
        subprocess.run(["umount", mountpoint], check=True)


# everything or nothing


class Broken(Exception):
    pass


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_a_failure_before_the_labels_leaves_nothing(places, kind):
    paths = places(3, kind)
    names = [sorted(os.listdir(path)) if kind == "directory" else [] for path in paths]

    def prepare(members, parameters):
        for member in members.values():
            member.meta_write(MetaFile.DB, 0, b"half of it")
        raise Broken

    with pytest.raises(Broken):
        create_volume(plan_volume(paths, size_bytes=64 * MIB), prepare)
    for path, before in zip(paths, names, strict=True):
        if kind == "directory":
            assert sorted(os.listdir(path)) == before == []
        else:
            with pytest.raises(RaidfsError, match="not a member"):
                peek(path)
    make(paths, size_bytes=64 * MIB)


@pytest.mark.parametrize("fails_at", range(6))
def test_a_failure_while_labels_are_written_leaves_none(places, monkeypatch, fails_at):
    paths = places(3)
    plan = plan_volume(paths, size_bytes=64 * MIB)
    members = lay_out(plan)
    count = 0

    def wrap(member):
        write = member.write_label

        def write_label(copy, data):
            nonlocal count
            count += 1
            if count == fails_at + 1:
                raise MemberError("broke")
            write(copy, data)

        monkeypatch.setattr(member, "write_label", write_label)

    for member in members.values():
        wrap(member)
    with pytest.raises(MemberError, match="broke"):
        write_labels(plan, members)
    for member in members.values():
        with pytest.raises(RaidfsError, match="no label"):
            read_labels(member)
    undo(plan, members)
    assert not any(os.listdir(path) for path in paths)


def test_a_failure_while_laying_out_leaves_nothing(places, monkeypatch):
    paths = places(3)
    with open(os.path.join(paths[0], "mine"), "w") as file:
        file.write("mine")
    plan = plan_volume(paths, force=True, size_bytes=64 * MIB)
    makedirs = os.makedirs

    def full(path, *rest, **options):
        if path.startswith(paths[1]) and path.endswith("zones"):
            raise OSError(28, "No space left on device")
        makedirs(path, *rest, **options)

    monkeypatch.setattr(os, "makedirs", full)
    with pytest.raises(MemberFull, match=paths[1]):
        create_volume(plan, lambda *_: None)
    assert os.listdir(paths[0]) == ["mine"] and not os.listdir(paths[1] + "/")
    assert not os.listdir(paths[2])
