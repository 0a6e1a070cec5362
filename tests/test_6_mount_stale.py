"""A mount whose daemon was killed is cleared by the next mount on its mountpoint; no other mount is
ever taken away. Volumes are real, and so is kill -9; where only the kernel's answer matters, a
descriptor of /dev/fuse that is closed plays the daemon."""

import errno
import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import pytest
from mounting import run

from raidfs._native import lib
from raidfs.daemon import mounts, stale
from raidfs.errors import UsageError

pytestmark = pytest.mark.mount


def mounts_at(path):
    return [mount for mount in mounts.all_mounts() if mount.mountpoint == str(path)]


def kill(volume):
    """Only that: the mount stays."""
    os.kill(volume.pid, signal.SIGKILL)
    volume.wait_gone()


@pytest.fixture
def take_away():
    """Mountpoints that a test leaves behind, whatever is on them."""
    paths = []
    yield paths.append
    for path in paths:
        while mounts_at(path) and not run("umount", "-l", path, expect=None).returncode:
            pass


def played_mount(path, kind="fuse.raidfs", owner=0):
    """A mount and its daemon: close the descriptor, and it is dead."""
    if not mounts_at(path):
        path.mkdir(exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=40000,user_id={owner},group_id={owner}".encode()
    assert lib.rf_mount(b"raidfs:played", os.fsencode(path), kind.encode(), 0, data) == 0
    return fd


# -- real ones ------------------------------------------------------------------------------------


def test_mounting_again_after_a_kill(workshop):
    volume = workshop.volume(3, mounted=True)
    volume.mountpoint.joinpath("file").write_text("whole")
    volume.ctl("sync")
    kill(volume)
    with pytest.raises(OSError) as told:
        os.statvfs(volume.mountpoint)
    assert told.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    volume.mount()
    assert len(mounts_at(volume.mountpoint)) == 1
    assert volume.mountpoint.joinpath("file").read_text() == "whole"
    assert "cleared the stale mount" in volume.log.read_text()
    volume.unmount()
    assert not mounts_at(volume.mountpoint)
    volume.check()


def test_commands_say_that_the_daemon_is_gone_and_umount_clears_it(workshop):
    """A living one that hangs is left alone, and so said."""
    volume = workshop.volume(3, mounted=True)
    volume.mountpoint.joinpath("file").write_text("whole")
    volume.ctl("sync")
    kill(volume)
    for verb, code in (("status", 4), ("sync", 1), ("member list", 1)):
        done = workshop.run("raidfs-ctl", *verb.split(), volume.mountpoint, expect=code)
        assert "has died" in done.stderr and "raidfs-ctl umount" in done.stderr, done.stderr
    done = workshop.run("raidfs-ctl", "status", "--json", volume.mountpoint, expect=4)
    told = json.loads(done.stdout)
    assert told["state"] == "UNKNOWN" and "has died" in told["error"]
    assert "not mounted" in workshop.run("raidfs-ctl", "status", volume.members[0]).stdout
    done = workshop.run("raidfs-ctl", "umount", "--json", volume.mountpoint)
    assert json.loads(done.stdout)["unmounted"] == str(volume.mountpoint)
    assert "had died" in done.stderr and not mounts_at(volume.mountpoint)
    volume.mount()
    env = {**workshop.env, "RAIDFS_RUNTIME_DIR": str(workshop.directory / "elsewhere")}
    done = run("raidfs-ctl", "umount", volume.mountpoint, env=env, expect=1)
    assert "another user" in done.stderr and len(mounts_at(volume.mountpoint)) == 1
    assert volume.mountpoint.joinpath("file").read_text() == "whole"
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_without_the_lane(workshop):
    volume = workshop.volume(3, mounted=True, options=["nolane"])
    kill(volume)
    volume.mount()
    assert len(mounts_at(volume.mountpoint)) == 1
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_a_program_that_is_still_in_it(workshop):
    """Working directory and an open file, of a program that notices nothing until it asks."""
    volume = workshop.volume(3, mounted=True)
    program = (
        "open('f', 'w'); held = open('f'); print(flush=True); input(); import os; os.statvfs('.')"
    )
    inside = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=volume.mountpoint,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        inside.stdout.readline()
        kill(volume)
        volume.mount()
        assert len(mounts_at(volume.mountpoint)) == 1
        _, said = inside.communicate("\n", timeout=60)
        assert "OSError" in said and ("not connected" in said or "abort" in said)
    finally:
        inside.kill()
        inside.wait()
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_two_dead_ones_on_each_other(workshop):
    lower, upper = workshop.volume(3, mounted=True), workshop.volume(3, mounted=True)
    run("mount", "--make-private", "--bind", upper.mountpoint, lower.mountpoint)
    assert len(mounts_at(lower.mountpoint)) == 2
    kill(lower)
    kill(upper)
    lower.mount()
    assert len(mounts_at(lower.mountpoint)) == 1 and os.listdir(lower.mountpoint) == []
    upper.mount()
    for volume in (lower, upper):
        volume.unmount()
        volume.check()


@pytest.mark.slow
def test_a_living_one_below_a_dead_one_stays(workshop, tmp_path):
    """Only what is dead goes; what comes to light is then refused as it always is."""
    lower, upper = workshop.volume(3, mounted=True), workshop.volume(3)
    (number,) = [mount.number for mount in mounts_at(lower.mountpoint)]
    os.close(played_mount(lower.mountpoint))
    os.rename(upper.mountpoint, tmp_path / "aside")
    upper.mountpoint = lower.mountpoint
    done = upper.mount(expect=1)
    assert "busy" in done.stderr
    # Its daemon is registered for this mountpoint, so nothing on it is touched.
    found = [mount.number for mount in mounts_at(lower.mountpoint)]
    assert found[0] == number and len(found) == 2
    run("umount", lower.mountpoint)
    assert lower.status()["state"] == "ONLINE"
    lower.unmount()
    lower.check()


@pytest.mark.slow
def test_snapshots_that_were_bound_elsewhere(workshop, take_away):
    volume = workshop.volume(3, mounted=True)
    place = workshop.directory / "monday"
    place.mkdir()
    take_away(place)
    volume.ctl("sync")
    workshop.run("raidfs-ctl", "snapshot", "create", volume.mountpoint, "monday")
    source = f"{volume.members[0]}@monday"
    workshop.run("raidfs", source, place)
    kill(volume)
    volume.mount()
    workshop.run("raidfs", source, place)
    assert len(mounts_at(place)) == 1 and os.listdir(place) == []
    run("umount", place)
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_a_living_mount_is_refused(workshop):
    """Known to the registry or not (another user's may not be), it stays."""
    volume, other = workshop.volume(3, mounted=True), workshop.volume(3)
    (mounted,) = mounts_at(volume.mountpoint)
    for runtime, words in ((workshop.runtime, "is mounted on"), ("elsewhere", "it is in use")):
        env = {**workshop.env, "RAIDFS_RUNTIME_DIR": str(workshop.directory / runtime)}
        done = run("raidfs", other.members[0], volume.mountpoint, env=env, expect=1)
        assert "is busy" in done.stderr and words in done.stderr
    assert mounts_at(volume.mountpoint) == [mounted]
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_a_daemon_that_hangs_is_alive(workshop):
    volume, other = workshop.volume(3, mounted=True), workshop.volume(3)
    (mounted,) = mounts_at(volume.mountpoint)
    os.kill(volume.pid, signal.SIGSTOP)
    try:
        for runtime, words in ((workshop.runtime, "is mounted on"), ("x", "doesn't answer")):
            env = {**workshop.env, "RAIDFS_RUNTIME_DIR": str(workshop.directory / runtime)}
            done = run("raidfs", other.members[0], volume.mountpoint, env=env, expect=1)
            assert "is busy" in done.stderr and words in done.stderr
    finally:
        os.kill(volume.pid, signal.SIGCONT)
    assert mounts_at(volume.mountpoint) == [mounted]
    assert volume.status()["state"] == "ONLINE"
    volume.unmount()
    volume.check()


@pytest.mark.slow
def test_two_who_mount_there_at_once(workshop):
    """One clears and mounts; what it has mounted isn't cleared by the other."""
    one, two = workshop.volume(3, mounted=True), workshop.volume(3)
    for _ in range(2):
        kill(one)
        done = [None, None]

        def start(number, volume, done=done):
            words = ["raidfs", "-o", f"log={volume.log}", volume.members[0], one.mountpoint]
            done[number] = workshop.run(*words, expect=None)

        threads = [threading.Thread(target=start, args=each) for each in enumerate((one, two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [each.returncode == 0 for each in done]
        assert sum(won) == 1, [each.stderr for each in done]
        assert len(mounts_at(one.mountpoint)) == 1
        workshop.run("raidfs-ctl", "umount", one.mountpoint)
        one.mount()
    one.unmount()
    one.check()
    two.check()


# -- what the kernel says -------------------------------------------------------------------------


def test_only_dead_mounts_of_raidfs_are_taken_away(tmp_path, take_away):
    here = tmp_path / "mnt"
    take_away(here)
    os.close(played_mount(here, "fuse.other"))
    assert stale.clear(here) == 0 and len(mounts_at(here)) == 1
    with pytest.raises(UsageError, match=r"stale mount.*umount -l"):
        mounts.check_mountpoint(here)
    os.close(played_mount(here))
    assert stale.clear(here) == 1
    assert [mount.kind for mount in mounts_at(here)] == ["fuse.other"]


def test_a_dead_mount_of_another_user(tmp_path, take_away):
    """The kernel would answer root with "all is well", without asking any daemon."""
    here = tmp_path / "mnt"
    take_away(here)
    fd = played_mount(here, owner=12345)
    try:
        assert os.statvfs(here).f_blocks == 0
    finally:
        os.close(fd)
    assert os.statvfs(here).f_blocks == 0
    assert stale.clear(here) == 1 and not mounts_at(here)


def test_one_that_does_not_answer_is_left(tmp_path, take_away, monkeypatch):
    monkeypatch.setattr(stale, "ANSWER_S", 0.1)
    here = tmp_path / "mnt"
    take_away(here)
    fd = played_mount(here, owner=12345)
    with pytest.raises(UsageError, match="doesn't answer"):
        stale.clear(here)
    assert len(mounts_at(here)) == 1
    os.close(fd)
    assert stale.clear(here) == 1


def test_while_somebody_waits_it_is_left(tmp_path, take_away, monkeypatch):
    """The counter of the kernel's control filesystem, and one that never comes down."""
    here, control = tmp_path / "mnt", tmp_path / "connections"
    control.mkdir()
    take_away(here)
    take_away(control)
    run("mount", "-t", "fusectl", "fusectl", control)
    os.close(played_mount(here))
    (mounted,) = mounts_at(here)
    counter = Path(mounted.device.partition(":")[2], "waiting")
    assert control.joinpath(counter).read_text() == "0\n"
    pretended = tmp_path / "pretended"
    pretended.joinpath(counter).parent.mkdir(parents=True)
    pretended.joinpath(counter).write_text("1\n")
    monkeypatch.setattr(stale, "CONNECTIONS", pretended)
    monkeypatch.setattr(stale, "SETTLE_S", 0.1)
    with pytest.raises(UsageError, match="still wait"):
        stale.clear(here)
    assert mounts_at(here) == [mounted]
    monkeypatch.setattr(stale, "CONNECTIONS", control)
    assert stale.clear(here) == 1


@pytest.mark.slow
def test_a_mountpoint_within_a_dead_mount(workshop):
    volume = workshop.volume(3, mounted=True)
    kill(volume)
    inside = volume.mountpoint / "inside"
    done = workshop.run("raidfs", volume.members[0], inside, expect=1)
    assert "lies in a stale mount" in done.stderr
    assert f"umount -l {volume.mountpoint}\n" in done.stderr


def test_by_who_is_not_root(take_away):
    """fusermount3 takes away what this user had mounted, and nobody else's."""
    user = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants one with a name
    with tempfile.TemporaryDirectory(prefix="stale-") as name:  # tmp_path is open to root only
        place = Path(name)
        for owner, cleared in ((user, True), (12345, False)):
            here = place / f"mnt{owner}"
            take_away(here)
            os.close(played_mount(here, owner=owner))
            os.chown(place, user, user)
            assert as_user(user, place, lambda here=here: stale.clear(here) == 1) == cleared
            assert len(mounts_at(here)) == (not cleared)
        for path in place.glob("mnt*"):
            run("umount", "-l", path, expect=None)


def as_user(user, place, function):
    """What the function returns, called by that user, who may write to `place`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        del os.environ["RAIDFS_RUNTIME_DIR"]
        os.environ["XDG_RUNTIME_DIR"] = str(place)
        code = 0 if function() else 1
    except UsageError as error:
        print(error)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
