"""What users get wrong, by running the real commands: one clear sentence that says what to do, a
non-zero exit, no traceback, and nothing changed on any member."""

import contextlib
import os
import re
import subprocess

import pytest
from mounting import BIN, fingerprint, run


def refused(done, *words):
    """One sentence on stderr, with these words (regular expressions) in it."""
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert re.match(r"(raidfs|raidfs-ctl|mkfs.raidfs|fsck.raidfs): ", lines[0]), lines
    assert "Error" not in lines[0] and "errno" not in lines[0].lower(), lines
    for word in words:
        assert re.search(word, lines[0]), f"{word!r} is not in: {lines[0]}"


# -- create ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "count"), [("1", 1), ("5", 2), ("6", 3), ("rs:4+2", 5), ("10", 3), ("3", 2)]
)
def test_too_few_members(workshop, level, count):
    members = workshop.directories(count)
    before = fingerprint(*members)
    done = workshop.run("raidfs-ctl", "create", "--level", level, *members, expect=1)
    refused(done, "member")
    assert fingerprint(*members) == before


@pytest.mark.slow
@pytest.mark.parametrize("level", ["7", "raid5", "rs:0+1", "rs:4", "rs:4+9", "rs:30+2", "-1", ""])
def test_unknown_level(workshop, level):
    members = workshop.directories(4)
    done = workshop.run("raidfs-ctl", "create", f"--level={level}", *members, expect=1)
    refused(done, "level")
    assert not any(any(member.iterdir()) for member in members)


def test_the_same_directory_twice(workshop):
    one, two = workshop.directories(2)
    (workshop.directory / "link").symlink_to(one)
    for again in (one, workshop.directory / "d1" / ".." / "d0", workshop.directory / "link"):
        done = workshop.run("raidfs-ctl", "create", one, two, again, expect=1)
        refused(done, "same|twice")
        assert not list(one.iterdir()) and not list(two.iterdir())


@pytest.mark.slow
def test_a_member_inside_another(workshop):
    one, two = workshop.directories(2)
    inside = one / "inside"
    inside.mkdir()
    done = workshop.run("raidfs-ctl", "create", one, two, inside, expect=1)
    refused(done)
    assert not list(two.iterdir()) and not list(inside.iterdir())


@pytest.mark.slow
def test_a_member_of_another_volume_is_not_taken_for_a_new_one(workshop):
    volume = workshop.volume(3)
    fresh = workshop.directories(2, prefix="fresh")
    before = fingerprint(*volume.members)
    done = workshop.run("raidfs-ctl", "create", *fresh, volume.members[1], expect=1)
    refused(done, str(volume.members[1]), "member of|belongs to|volume")
    assert fingerprint(*volume.members) == before
    assert not any(any(member.iterdir()) for member in fresh)


def test_a_directory_with_files_is_not_overwritten(workshop):
    members = workshop.directories(3)
    (members[1] / "thesis.tex").write_text("years of work")
    done = workshop.run("raidfs-ctl", "create", *members, expect=1)
    refused(done, "not empty|thesis")
    assert (members[1] / "thesis.tex").read_text() == "years of work"
    assert not list(members[0].iterdir())


@pytest.mark.slow
def test_an_image_with_a_filesystem_is_not_overwritten(workshop):
    images = workshop.images(3)
    run("mkfs.ext4", "-q", images[2])
    before = fingerprint(*images)
    refused(workshop.run("raidfs-ctl", "create", *images, expect=1), str(images[2]))
    assert fingerprint(*images) == before


@pytest.mark.slow
def test_force_asks_and_nothing_but_yes_is_a_yes(workshop):
    members = workshop.directories(3)
    (members[1] / "thesis.tex").write_text("years of work")
    before = fingerprint(*members)
    done = workshop.run("raidfs-ctl", "create", "--force", *members, expect=1, input_text="")
    assert "nothing was changed" in done.stderr and fingerprint(*members) == before
    done = workshop.run("raidfs-ctl", "create", "--force", *members, expect=1, input_text="n\n")
    assert "nothing was changed" in done.stderr and fingerprint(*members) == before


@pytest.mark.slow
def test_a_member_too_small(workshop):
    images = [*workshop.images(2), *workshop.images(1, nbytes=64 << 10, prefix="tiny")]
    before = fingerprint(*images)
    done = workshop.run("raidfs-ctl", "create", *images, expect=1)
    refused(done, "tiny0.img", "small|too little|at least")
    assert fingerprint(*images) == before


@pytest.mark.slow
def test_a_member_that_does_not_exist(workshop):
    members = workshop.directories(2)
    done = workshop.run("raidfs-ctl", "create", *members, workshop.directory / "nosuch", expect=1)
    refused(done, "nosuch")
    assert not any(any(member.iterdir()) for member in members)


@pytest.mark.slow
def test_a_member_that_is_no_place_for_bytes(workshop):
    members = workshop.directories(2)
    refused(workshop.run("raidfs-ctl", "create", *members, "/dev/null", expect=1), "/dev/null")
    assert not any(any(member.iterdir()) for member in members)


@pytest.mark.slow
def test_a_read_only_member(workshop):
    members = [*workshop.directories(2), *workshop.loop_devices(1)]
    run("blockdev", "--setro", members[2])
    done = workshop.run("raidfs-ctl", "create", *members, expect=1)
    refused(done, str(members[2]), "read-only|[Rr]ead-only|not permitted|writable")
    assert not any(any(member.iterdir()) for member in members[:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    ["--zone-size=100", "--zone-size=3M", "--cell-size=1000", "--cell-size=128K", "--name=",
     "--name=../x", "--width=5", "--size=1000T"],
)  # fmt: skip
def test_senseless_numbers_and_names(workshop, option):
    members = workshop.directories(3)
    refused(workshop.run("raidfs-ctl", "create", option, *members, expect=1))
    assert not any(any(member.iterdir()) for member in members)


@pytest.mark.slow
def test_no_room_where_a_directory_member_lies(workshop):
    members = workshop.directories(3)
    with small_filesystem(members[1], 1 << 20):
        (members[1] / "filler").write_bytes(b"x" * (900 << 10))
        os.unlink(members[1] / "filler")
        done = workshop.run("raidfs-ctl", "create", *members, expect=1)
        refused(done, str(members[1]))
        assert not list(members[1].iterdir())
    assert not list(members[0].iterdir())


# -- mount ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_filesystem(place, nbytes):
    """A tmpfs of that size, mounted on a directory."""
    run("mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", place)
    try:
        yield
    finally:
        run("umount", place, expect=None)
        run("umount", "-l", place, expect=None)


@contextlib.contextmanager
def read_only_bind(place):
    """The directory, read-only as seen from everywhere."""
    run("mount", "--bind", place, place)
    try:
        run("mount", "-o", "remount,ro,bind", place)
        yield
    finally:
        run("umount", place)


@pytest.mark.slow
def test_a_volume_that_is_mounted_already(workshop):
    volume = workshop.volume(3, mounted=True)
    elsewhere = workshop.directory / "elsewhere"
    elsewhere.mkdir()
    done = workshop.run("raidfs", volume.members[1], elsewhere, expect=1)
    refused(done, str(volume.mountpoint), "raidfs-ctl umount")
    done = workshop.run("raidfs-ctl", "create", "--force", "--yes", *volume.members, expect=1)
    assert "in use" in done.stderr or "mounted" in done.stderr
    refused(workshop.run("raidfs-ctl", "check", volume.members[0], expect=8), "is mounted on")
    done = workshop.run("raidfs-ctl", "extract", volume.members[0], "--to", elsewhere, expect=1)
    refused(done, "is mounted on")
    volume.unmount()
    volume.check()


@pytest.mark.parametrize("what", ["missing", "file", "busy"])
def test_a_mountpoint_that_can_not_be_one(workshop, what):
    volume = workshop.volume(3)
    place = workshop.directory / "place"
    if what == "file":
        place.touch()
    before = fingerprint(*volume.members)
    words = {"missing": "mkdir -p", "file": "not a directory", "busy": "busy.*umount"}
    with contextlib.ExitStack() as cleanup:
        if what == "busy":
            place.mkdir()
            cleanup.enter_context(small_filesystem(place, 1 << 20))
        refused(workshop.run("raidfs", volume.members[0], place, expect=1), words[what])
    assert fingerprint(*volume.members) == before


@pytest.mark.slow
def test_a_stale_mountpoint_is_told_from_a_busy_one(workshop):
    """Mounting there again clears it (test_6_mount_stale.py); all else says what it is."""
    volume = workshop.volume(3, mounted=True)
    pid = volume.pid
    subprocess.run(["kill", "-9", str(pid)], check=True)
    volume.wait_gone()
    assert "stale mount" in volume.ctl("status", expect=4).stderr
    assert "had died" in volume.ctl("umount").stderr
    volume.mount()
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_a_mountpoint_inside_a_member_and_the_reverse(workshop):
    volume = workshop.volume(3)
    inside = volume.members[0] / "metadata"
    refused(workshop.run("raidfs", volume.members[0], inside, expect=1), "inside member")
    refused(workshop.run("raidfs", volume.members[0], workshop.directory, expect=1), "would hide")


@pytest.mark.slow
def test_a_source_that_is_no_member(workshop):
    volume = workshop.volume(3)
    (plain,) = workshop.directories(1, prefix="plain")
    (image,) = workshop.images(1)
    for source in (plain, image, workshop.directory / "nosuch", "/dev/null"):
        refused(volume.mount(source=source, expect=1), str(source))
    assert not list(plain.iterdir())


@pytest.mark.slow
def test_a_named_member_of_another_volume(workshop):
    first, second = workshop.volume(3), workshop.volume(3)
    before = fingerprint(*first.members, *second.members)
    done = first.mount(f"member={second.members[0]}", expect=1)
    refused(done, str(second.members[0]), "another volume")
    assert fingerprint(*first.members, *second.members) == before


@pytest.mark.slow
def test_a_member_of_another_volume_in_the_place_of_ours(workshop):
    first, second = workshop.volume(3), workshop.volume(3)
    first.members[2].rename(workshop.directory / "away")
    second.members[2].rename(first.members[2])
    before = fingerprint(*first.members)
    refused(first.mount(expect=1), "another volume|not found", "degraded|bring")
    assert fingerprint(*first.members) == before


@pytest.mark.slow
def test_a_copied_member(workshop):
    volume = workshop.volume(3)
    copy = workshop.directory / "copy"
    run("cp", "-a", volume.members[1], copy)
    refused(volume.mount(f"member={copy}", expect=1), "copy")


@pytest.mark.slow
def test_a_corrupt_label(workshop):
    volume = workshop.volume(3)
    label = volume.members[1] / "label"
    label.write_bytes(b"\xff" * label.stat().st_size)
    before = fingerprint(*volume.members)
    refused(volume.mount(source=volume.members[1], expect=1), str(volume.members[1]))
    refused(volume.mount(expect=1), "degraded")
    assert fingerprint(*volume.members) == before
    volume.mount("degraded")
    assert volume.status()["state"] == "DEGRADED"
    volume.unmount()


@pytest.mark.slow
def test_one_corrupt_copy_of_a_label_is_no_loss(workshop):
    volume = workshop.volume(3)
    label = volume.members[1] / "label"
    with label.open("r+b") as file:
        file.write(b"\xff" * 65536)
    volume.mount()
    assert volume.status()["state"] == "ONLINE"
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_missing_members(workshop):
    volume = workshop.volume(3, level="5")
    volume.members[2].rename(workshop.directory / "away2")
    before = fingerprint(*volume.members[:2])
    refused(volume.mount(expect=1), str(volume.members[2]), "-o degraded")
    volume.members[1].rename(workshop.directory / "away1")
    refused(volume.mount("degraded", expect=1), "bring back")
    (workshop.directory / "away1").rename(volume.members[1])
    assert fingerprint(*volume.members[:2]) == before


@pytest.mark.slow
def test_a_member_that_became_read_only(workshop):
    volume = workshop.volume(3)
    with read_only_bind(volume.members[1]):
        before = fingerprint(*volume.members)
        refused(volume.mount(expect=1), str(volume.members[1]))
        assert fingerprint(*volume.members) == before
        volume.mount("ro")
        volume.unmount()
        assert fingerprint(*volume.members) == before


def without_privileges(workshop, *command):
    """Runs a command as root without the right to pass over permissions: others' mistake."""
    drop = "-dac_override,-dac_read_search"
    setpriv = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    words = [BIN / command[0], *command[1:]]
    return workshop.run(*setpriv, *words, expect=1)


@pytest.mark.slow
def test_no_permission_on_a_member(workshop):
    volume = workshop.volume(3)
    for path in (volume.members[0], volume.members[0] / "label"):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            done = without_privileges(workshop, "raidfs", volume.members[0], volume.mountpoint)
            refused(done, "[Pp]ermission denied", "root|access|rights")
        finally:
            path.chmod(mode)
    fresh = workshop.directories(3, prefix="fresh")
    fresh[1].chmod(0)
    done = without_privileges(workshop, "raidfs-ctl", "create", *fresh)
    refused(done, str(fresh[1]), "[Pp]ermission denied")
    fresh[1].chmod(0o700)
    assert not any(any(member.iterdir()) for member in fresh)


@pytest.mark.slow
def test_no_fuse_device(workshop):
    volume = workshop.volume(3)
    nothing = workshop.directory / "nothing"
    nothing.touch()
    before = fingerprint(*volume.members)
    script = 'mount --bind "$0" /dev/fuse && exec "$1" "$2" "$3"'
    words = [nothing, BIN / "raidfs", volume.members[0], volume.mountpoint]
    done = workshop.run("unshare", "-m", "sh", "-c", script, *words, expect=1)
    refused(done, "/dev/fuse is missing", "modprobe")
    assert fingerprint(*volume.members) == before


@pytest.mark.slow
def test_an_unknown_mount_option(workshop):
    volume = workshop.volume(3)
    refused(volume.mount("degradde", expect=1), "degradde", "--help")


# -- while mounted, and after ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_fills_up_under_a_directory_member(workshop):
    members = workshop.directories(3)
    with small_filesystem(members[1], 48 << 20):
        volume = workshop.volume(members, level="5", size=32 << 20, mounted=True)
        (volume.mountpoint / "before").write_bytes(b"b" * 100_000)
        volume.ctl("sync")
        with contextlib.suppress(OSError), (members[1] / "filler").open("wb") as filler:
            while True:
                filler.write(b"f" * 65536)
                filler.flush()
        written = 0
        with pytest.raises(OSError, match="No space left") as caught:
            for number in range(1000):
                (volume.mountpoint / f"file{number}").write_bytes(b"w" * 1_000_000)
                written += 1
        assert caught.value.errno == 28
        assert volume.status()["state"] in ("ONLINE", "DEGRADED")
        assert (volume.mountpoint / "before").read_bytes() == b"b" * 100_000
        for number in range(written):
            assert (volume.mountpoint / f"file{number}").read_bytes() == b"w" * 1_000_000
        os.unlink(members[1] / "filler")
        volume.unmount()
        volume.check()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["status", "check", "umount", "sync", "extract", "member"])
def test_verbs_on_what_is_nothing(workshop, verb):
    extra = {"extract": ["--to", workshop.directory / "out"]}.get(verb, [])
    words = ["member", "list"] if verb == "member" else [verb]
    (plain,) = workshop.directories(1)
    code = {"status": 4, "check": 8}.get(verb, 1)
    for target in (workshop.directory / "nosuch", plain):
        done = workshop.run("raidfs-ctl", *words, target, *extra, expect=code)
        refused(done, str(target))


@pytest.mark.slow
def test_a_member_that_may_not_fail(workshop):
    volume = workshop.volume(3, level="5", mounted=True)
    ctl = volume.ctl
    refused(
        workshop.run("raidfs-ctl", "member", "fail", volume.mountpoint, "9", expect=1), "no member"
    )
    done = workshop.run("raidfs-ctl", "member", "fail", volume.mountpoint, "1", expect=1)
    assert "nothing was changed" in done.stderr
    assert volume.status()["state"] == "ONLINE"
    workshop.run("raidfs-ctl", "member", "fail", volume.mountpoint, volume.members[1], "--yes")
    done = workshop.run("raidfs-ctl", "member", "fail", volume.mountpoint, "1", "--yes", expect=1)
    refused(done, "already")
    done = workshop.run("raidfs-ctl", "member", "fail", volume.mountpoint, "2", "--yes", expect=1)
    refused(done, "data would be lost")
    assert ctl("status", expect=1)
    volume.unmount()


@pytest.mark.slow
def test_extract_does_not_overwrite(workshop):
    volume = workshop.volume(3, mounted=True)
    (volume.mountpoint / "file").write_text("from the volume")
    volume.unmount()
    out = workshop.directory / "out"
    out.mkdir()
    (out / "file").write_text("precious")
    done = workshop.run("raidfs-ctl", "extract", volume.members[0], "--to", out, expect=1)
    refused(done, "not empty", "--force")
    words = ["raidfs-ctl", "extract", volume.members[0], "file", "--to", out]
    refused(workshop.run(*words, expect=1), "exists already")
    assert (out / "file").read_text() == "precious"
    refused(workshop.run(*words[:3], "nosuch", "--to", out, expect=1), "nosuch")
    workshop.run(*words, "--force")
    assert (out / "file").read_text() == "from the volume"
