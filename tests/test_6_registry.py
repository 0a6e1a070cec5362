"""Entries of mounted volumes, believed only while their daemon lives; mounts as /proc tells."""

import multiprocessing
import os

import pytest

from raidfs.cli import target
from raidfs.daemon import mounts, registry
from raidfs.daemon.registry import Entry, Registration
from raidfs.errors import UsageError

VOLUME = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("RAIDFS_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path / "runtime"


def entry(**changes):
    return Entry(
        **{
            "volume_id": VOLUME,
            "volume_name": "tank",
            "mountpoint": "/mnt/x",
            "pid": os.getpid(),
            "members": ["/a", "/b"],
            **changes,
        }
    )


def test_an_entry_lives_as_long_as_its_registration(runtime):
    registration = Registration(entry())
    assert runtime.stat().st_mode & 0o777 == 0o700
    found, socket = registry.find_volume(VOLUME)
    assert found == entry() and socket == runtime / f"{VOLUME}.sock"
    registration.closing()
    assert registry.find_volume(VOLUME)[0].closing
    registration.close()
    assert registry.find_volume(VOLUME) is None
    assert list(runtime.iterdir()) == []


def test_members_that_come_later_are_found(tmp_path):
    gone, new = str(tmp_path / "gone"), str(tmp_path / "new")
    registration = Registration(entry(members=[gone]))
    assert registry.find_member(gone) == (registration.entry, registration.socket)
    assert registry.find_member(new) is None
    registration.tell_members([gone, new])
    found = registry.find_member(new)
    assert found is not None and found[0].members == [gone, new]
    assert target.find(new) == target.Mounted(*found)  # nothing is there
    (tmp_path / "gone").mkdir()
    assert target.find(gone) == target.Mounted(*found)  # nor is this a member any more
    registration.closing()
    assert registry.find_volume(VOLUME)[0].members == [gone, new]
    registration.close()
    registration.tell_members([gone])
    assert registry.find_member(gone) is None
    with pytest.raises(UsageError, match="neither the mountpoint"):
        target.find(gone)


def test_a_second_daemon_for_one_volume_is_refused():
    registration = Registration(entry())
    with pytest.raises(UsageError, match="is mounted on /mnt/x"):
        Registration(entry(mountpoint="/mnt/y"))
    registration.close()


def _register_and_die():
    Registration(entry())
    os._exit(0)


def test_what_a_dead_daemon_left_is_not_believed_and_cleared(runtime):
    process = multiprocessing.get_context("fork").Process(target=_register_and_die)
    process.start()
    process.join()
    (runtime / f"{VOLUME}.sock").touch()
    assert (runtime / f"{VOLUME}.json").exists()
    assert registry.find_volume(VOLUME) is None
    assert list(runtime.iterdir()) == []


def test_a_directory_that_others_may_write_is_refused(runtime):
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    with pytest.raises(UsageError, match="not yours alone"):
        Registration(entry())


def test_mountinfo_is_understood_with_all_its_oddities():
    text = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "90 22 0:42 / /mnt/with\\040space rw shared:1 master:2 - fuse.raidfs raidfs:t\\134x rw\n"
        "broken line\n"
    )
    root, odd = mounts.parse_mountinfo(text)
    assert (root.mountpoint, root.kind, root.device) == ("/", "ext4", "254:0")
    assert (odd.mountpoint, odd.kind) == ("/mnt/with space", "fuse.raidfs")
    assert odd.source == "raidfs:t\\x"


def test_mountpoints_that_can_not_be(tmp_path):
    with pytest.raises(UsageError, match="doesn't exist"):
        mounts.check_mountpoint(str(tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        mounts.check_mountpoint(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="busy"):
        mounts.check_mountpoint("/proc")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounts.check_mountpoint(str(tmp_path / "link")) == str(tmp_path / "real")


def test_member_and_mountpoint_may_not_contain_each_other(tmp_path):
    (tmp_path / "member").mkdir()
    with pytest.raises(UsageError, match="below the mountpoint"):
        mounts.check_apart(str(tmp_path), [str(tmp_path / "member")])
    with pytest.raises(UsageError, match="inside member"):
        mounts.check_apart(str(tmp_path / "member" / "x"), [str(tmp_path / "member")])
    mounts.check_apart(str(tmp_path / "memb"), [str(tmp_path / "member")])
