"""`raidfs-ctl snapshot send` and `receive` between volumes as users have them: mounted and not."""

import json
import os
import subprocess

import pytest
from mounting import BIN, run
from trees import assert_same, described, make_odd_tree

pytestmark = pytest.mark.slow

CTL = BIN / "raidfs-ctl"


def snapshot(shop, verb, *words, expect=0, **options):
    return shop.run("raidfs-ctl", "snapshot", verb, *words, expect=expect, **options)


def send(shop, path, *words, expect=0):
    """Into a file; what was said."""
    with open(path, "wb") as file:
        done = subprocess.run(
            [CTL, "snapshot", "send", *map(str, words)],
            stdout=file, stderr=subprocess.PIPE, env=shop.env, timeout=60, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def receive(shop, path, *words, expect=0, nbytes=None):
    """From a file, or only from so many of its bytes."""
    data = path.read_bytes()[:nbytes]
    done = subprocess.run(
        [CTL, "snapshot", "receive", *map(str, words)],
        input=data, capture_output=True, env=shop.env, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout.decode() + done.stderr.decode()


def facts(root):
    return described(root, numbers=True, atimes=False)


def change(root):
    """Some of everything that an incremental stream has to carry."""
    odd = root / "odd"
    os.rename(odd / "page", root / "moved")
    os.unlink(odd / "small")
    os.rename(odd / "deep", root / "deeper")
    with (odd / "large").open("r+b") as file:
        file.seek(400_000)
        file.write(os.urandom(10_000))
    run("fallocate", "-p", "-o", 1 << 20, "-l", 16384, odd / "sparse")
    os.truncate(odd / "all hole", 1000)
    os.setxattr(odd / "empty", "user.colour", b"green")
    os.chown(odd / "program", 55, 66)
    (root / "new").write_bytes(os.urandom(50_000))
    os.link(root / "new", odd / "new too")


def test_full_and_incremental_between_mounted_volumes(workshop, tmp_path):
    one = workshop.volume(3, mounted=True, options=("noatime",))
    two = workshop.volume(4, level="6", mounted=True, options=("noatime",))
    make_odd_tree(one.mountpoint)
    snapshot(workshop, "create", one.mountpoint, "a", "--note", "first")
    before = facts(one.mountpoint)
    assert "sent" in send(workshop, tmp_path / "full", one.mountpoint, "a", "-v")
    told = json.loads(receive(workshop, tmp_path / "full", two.mountpoint, "--json"))
    assert told["snapshot"] == "a" and told["base"] is None
    assert_same(before, facts(two.mountpoint))
    change(one.mountpoint)
    snapshot(workshop, "create", one.mountpoint, "b")
    after = facts(one.mountpoint)
    send(workshop, tmp_path / "changes", f"{one.mountpoint}@b", "-i", "a")
    assert (tmp_path / "changes").stat().st_size < (tmp_path / "full").stat().st_size / 4
    receive(workshop, tmp_path / "changes", two.mountpoint)
    assert_same(after, facts(two.mountpoint))
    assert_same(before, facts(two.mountpoint / ".snapshots" / "a"))
    assert_same(after, facts(two.mountpoint / ".snapshots" / "b"))
    listed = [json.loads(snapshot(workshop, "list", v.mountpoint, "--json").stdout)
              for v in (one, two)]  # fmt: skip
    guids = [[(s["name"], s["guid"], s["note"]) for s in each["snapshots"]] for each in listed]
    assert guids[0] == guids[1]
    (two.mountpoint / "odd" / "large").write_bytes(b"changed")
    for volume in (one, two):
        volume.unmount()
        volume.check()


def test_unmounted_volumes_and_what_is_refused(workshop, tmp_path):
    one, two = workshop.volume(3, mounted=True), workshop.volume(3)
    make_odd_tree(one.mountpoint)
    snapshot(workshop, "create", one.mountpoint, "a")
    before = facts(one.mountpoint / ".snapshots" / "a")
    one.unmount()
    stream = tmp_path / "stream"
    send(workshop, stream, one.members[0], "a")
    assert "no snapshot" in send(workshop, tmp_path / "none", one.members[0], "b", expect=1)
    damaged = tmp_path / "damaged"
    data = bytearray(stream.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert "damaged" in receive(workshop, damaged, two.members[0], expect=1)
    assert "no stream" in receive(workshop, one.members[0] / "label", two.members[0], expect=1)
    assert "nothing came" in receive(workshop, stream, two.members[0], expect=1, nbytes=0)
    two.check()
    receive(workshop, stream, two.members[1])
    two.check()
    assert "already" in receive(workshop, stream, two.members[0], expect=1)
    two.mount("noatime")
    assert_same(before, facts(two.mountpoint))
    two.unmount()


def test_a_broken_transfer_goes_on_after_the_daemon_was_killed(workshop, tmp_path):
    one, two = workshop.volume(3, mounted=True), workshop.volume(3, mounted=True)
    (one.mountpoint / "large").write_bytes(os.urandom(18 << 20))
    (one.mountpoint / "other").write_bytes(os.urandom(100_000))
    snapshot(workshop, "create", one.mountpoint, "a")
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    send(workshop, whole, one.mountpoint, "a")
    said = receive(workshop, whole, two.mountpoint, expect=1, nbytes=11 << 20)
    assert "--resume" in said
    assert os.listdir(two.mountpoint) == []
    two.kill()
    two.mount()
    assert "received before" in receive(workshop, whole, two.mountpoint, expect=1)
    token = snapshot(workshop, "receive", "--token", two.mountpoint).stdout.strip()
    snapshot(workshop, "rename", one.mountpoint, "a", "renamed meanwhile")
    send(workshop, rest, "--resume", token, one.mountpoint)
    assert rest.stat().st_size < whole.stat().st_size - (7 << 20)
    receive(workshop, rest, two.mountpoint)
    assert_same(facts(one.mountpoint), facts(two.mountpoint))
    assert os.listdir(two.mountpoint / ".snapshots") == ["a"]
    for volume in (one, two):
        volume.unmount()
        volume.check()


def test_giving_up_and_force(workshop, tmp_path):
    one, two = workshop.volume(3, mounted=True), workshop.volume(3, mounted=True)
    (one.mountpoint / "large").write_bytes(os.urandom(6 << 20))
    snapshot(workshop, "create", one.mountpoint, "a")
    send(workshop, tmp_path / "stream", one.mountpoint, "a")
    receive(workshop, tmp_path / "stream", two.mountpoint, expect=1, nbytes=5 << 20)
    assert "dropped" in snapshot(workshop, "receive", "--abort", "-y", two.mountpoint).stdout
    (two.mountpoint / "mine").write_bytes(b"mine")
    snapshot(workshop, "create", two.mountpoint, "mine")
    assert "not empty" in receive(workshop, tmp_path / "stream", two.mountpoint, expect=1)
    with (two.mountpoint / "mine").open("rb") as file:  # another file gets its number
        said = receive(workshop, tmp_path / "stream", two.mountpoint, "-F", expect=1)
        assert "unmount" in said and file.read() == b"mine"
    two.unmount()
    receive(workshop, tmp_path / "stream", two.members[0], "-F", "--name", "taken")
    two.mount()
    assert_same(facts(one.mountpoint), facts(two.mountpoint))
    assert (two.mountpoint / ".snapshots" / "mine" / "mine").read_bytes() == b"mine"
    assert sorted(os.listdir(two.mountpoint / ".snapshots")) == ["mine", "taken"]
    for volume in (one, two):
        volume.unmount()
        volume.check()


def test_unmounting_ends_a_send_that_nobody_reads(workshop):
    volume = workshop.volume(3, mounted=True)
    (volume.mountpoint / "large").write_bytes(os.urandom(8 << 20))
    snapshot(workshop, "create", volume.mountpoint, "a")
    words = [CTL, "snapshot", "send", volume.mountpoint, "a"]
    sending = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=workshop.env
    )
    try:
        assert sending.stdout.read(8) == b"raidfsST"
        volume.unmount()
        told = sending.communicate(timeout=20)[1].decode()
        assert sending.returncode == 1 and "unmounted" in told and "Traceback" not in told
    finally:
        sending.kill()
        sending.wait()
    volume.check()


def test_a_reader_that_goes_away(workshop):
    volume = workshop.volume(3, mounted=True)
    (volume.mountpoint / "large").write_bytes(os.urandom(8 << 20))
    snapshot(workshop, "create", volume.mountpoint, "a")
    script = (
        f"{CTL} snapshot send {volume.mountpoint} a | head -c 100 | wc -c; echo ${{PIPESTATUS[0]}}"
    )
    done = run("bash", "-c", script, env=workshop.env)
    assert done.stdout.split() == ["100", "1"], (done.stdout, done.stderr)
    volume.unmount()
    volume.check()
