"""Commands that do what they say, on real volumes."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from mounting import BIN, run

pytestmark = [pytest.mark.mount, pytest.mark.slow]


def test_dry_run_shows_what_unequal_members_give_and_changes_nothing(workshop):
    members = [
        *workshop.images(2, nbytes=256 << 20, prefix="small"),
        *workshop.images(2, nbytes=512 << 20, prefix="large"),
    ]
    words = ["raidfs-ctl", "create", "--level", "rs:1+1", "--dry-run", *members]
    done = workshop.run(*words)
    assert "usable" in done.stdout and "nothing was changed" in done.stdout
    told = json.loads(workshop.run(*words, "--json").stdout)
    assert told["version"] == 1 and told["created"] is False
    raw = sum(path.stat().st_size for path in members)
    assert 0.35 * raw < told["usable_bytes"] < 0.5 * raw  # not 2 x the smallest
    assert all(path.stat().st_blocks == 0 for path in members)


@pytest.mark.processes
def test_create_then_status_list_member_list_offline_and_mounted(workshop):
    volume = workshop.volume(3, level="5", name="tank")
    for where in (*volume.members, None):
        if where is None:
            volume.mount()
            where = volume.mountpoint
        status = json.loads(workshop.run("raidfs-ctl", "status", "--json", where).stdout)
        assert (status["version"], status["volume"], status["state"]) == (1, "tank", "ONLINE")
        assert status["mountpoint"] == (
            str(volume.mountpoint) if where == volume.mountpoint else None
        )
        assert [m["path"] for m in status["members"]] == [str(path) for path in volume.members]
        text = workshop.run("raidfs-ctl", "status", where).stdout
        assert "state: ONLINE" in text and "errors: No known data errors" in text
        listed = workshop.run("raidfs-ctl", "member", "list", where).stdout
        assert all(str(path) in listed for path in volume.members)
    assert "tank" in workshop.run("raidfs-ctl", "list").stdout
    listed = json.loads(workshop.run("raidfs-ctl", "list", "--json").stdout)
    assert [v["volume"] for v in listed["volumes"]] == ["tank"]
    assert workshop.run("raidfs-ctl", "status", "tank").stdout  # by name, too
    assert "all volumes" in workshop.run("raidfs-ctl", "status", "-x", "tank").stdout
    volume.unmount()
    assert "no volumes" in workshop.run("raidfs-ctl", "list").stdout


@pytest.mark.processes
def test_status_exit_codes_are_a_contract(workshop):
    volume = workshop.volume(3, level="5", mounted=True)
    (volume.mountpoint / "file").write_text("x")
    volume.unmount()

    def code():
        return workshop.run("raidfs-ctl", "status", volume.members[0], expect=None).returncode

    assert code() == 0
    volume.members[2].rename(workshop.directory / "away2")
    assert code() == 1
    volume.members[1].rename(workshop.directory / "away1")
    assert code() == 2
    volume.members[0].rename(workshop.directory / "away0")
    assert code() == 4


def test_member_fail_dry_run_and_offline(workshop):
    volume = workshop.volume(4, level="6")
    words = ["raidfs-ctl", "member", "fail", volume.members[1]]
    assert "would do" in workshop.run(*words, "1", "--dry-run").stdout
    assert volume.shop.run("raidfs-ctl", "status", volume.members[0])
    told = json.loads(workshop.run(*words, "1", "--yes", "--json").stdout)  # naming itself
    assert told["state"] == "DEGRADED" and told["members"][1]["state"] == "FAILED"
    volume.check()
    volume.mount()
    volume.unmount()


def make_tree(root):
    """One of everything that a filesystem can hold."""
    (root / "a" / "deep").mkdir(parents=True)
    (root / "a" / "deep" / "file").write_bytes(os.urandom(1_234_567))
    (root / "empty").touch()
    (root / "small").write_text("inline")
    (root / "small").chmod(0o4751)
    os.chown(root / "small", 1001, 1002)
    os.link(root / "a" / "deep" / "file", root / "hard")
    os.symlink("nowhere/at all", root / "soft")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    with (root / "sparse").open("wb") as file:
        file.seek(300 << 20)
        file.write(b"far")
        file.truncate(1 << 30)
    os.setxattr(root / "small", "user.colour", b"blue")
    os.utime(root / "a" / "deep", ns=(10**18, 10**18 + 7))
    (root / "a" / "deep").chmod(0o750)


def described(root):
    """Everything about a tree that must survive a copy."""
    found = {}
    links = {}
    for path in sorted(root.rglob("*")):
        told = path.lstat()
        name = str(path.relative_to(root))
        content = b""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file() and told.st_size < 1 << 24:
            content = path.read_bytes()
        times = told.st_mtime_ns
        size = 0 if path.is_dir() else told.st_size
        links.setdefault(told.st_ino, []).append(name)
        nlink = 0 if path.is_dir() else told.st_nlink
        found[name] = (told.st_mode, told.st_uid, told.st_gid, told.st_rdev, size, times, nlink,
                       content, links[told.st_ino][0])  # fmt: skip
    return found


def test_extract_brings_back_everything_even_degraded(workshop):
    volume = workshop.volume(3, level="5", mounted=True)
    make_tree(volume.mountpoint)
    before = described(volume.mountpoint)
    volume.unmount()
    subprocess.run(["rm", "-rf", volume.members[1]], check=True)
    out = workshop.directory / "out"
    done = workshop.run("raidfs-ctl", "extract", volume.members[0], "--to", out, "--json")
    told = json.loads(done.stdout)
    assert told["files"] == 4 and told["failures"] == [] and told["others"] == 3
    assert described(out) == before
    assert (out / "sparse").stat().st_blocks < 1000
    with (out / "sparse").open("rb") as file:
        file.seek(300 << 20)
        assert file.read(10) == b"far" + bytes(7)
    assert os.getxattr(out / "small", "user.colour") == b"blue"
    some = workshop.directory / "some"
    workshop.run("raidfs-ctl", "extract", volume.members[2], "a/deep", "small", "--to", some)
    assert sorted(p.name for p in some.rglob("*")) == ["a", "deep", "file", "small"]


def test_check_finds_what_was_damaged(workshop):
    volume = workshop.volume(3, level="5", mounted=True)
    data = os.urandom(3_000_000)
    (volume.mountpoint / "file").write_bytes(data)
    volume.unmount()
    done = volume.check()
    assert "clean" in done.stdout
    for column in volume.members[1].glob("zones/*/*"):
        with column.open("r+b") as file:
            file.write(b"rotten")
    done = volume.check(expect=4)
    assert "NOT CLEAN" in done.stdout
    words = ["raidfs-ctl", "check", "--json", volume.members[0]]
    told = json.loads(workshop.run(*words, expect=4).stdout)
    assert told["version"] == 1 and told["findings"] and not told["clean"]
    assert workshop.run("fsck.raidfs", "-a", "-f", volume.members[0], expect=4)
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == data
    status = volume.status()
    assert status["members"][1]["checksum_errors"] > 0 and "Nothing is lost" in status["action"]
    volume.unmount()
    again = json.loads(workshop.run(*words, expect=None).stdout)  # what was read has healed
    assert len(again["findings"]) < len(told["findings"])


@pytest.mark.processes
def test_mount_helper_and_fstab_forms(workshop):
    """mount -t raidfs and mount -t fuse.raidfs, in a mount namespace that has the helper."""
    volume = workshop.volume(3)
    extra, work = workshop.directory / "extra", workshop.directory / "work"
    extra.mkdir()
    work.mkdir()
    for command in ("mount.raidfs", "raidfs"):  # as `make install` links them
        os.symlink(BIN / command, extra / command)
    fstab = workshop.directory / "fstab"
    options = "noauto,nofail,allow_other,x-test.option=1,_netdev"
    fstab.write_text(f"{volume.members[0]} {volume.mountpoint} raidfs {options} 0 0\n")
    script = """
        set -e
        mount -t overlay overlay -o lowerdir="$1":/usr/sbin /usr/sbin
        for how in "-t raidfs -o allow_other $2" "-t fuse.raidfs -o noatime $2" "-T $4"; do
            mount $how "$3"
            echo "$how" > "$3/file"
            grep -q " $3 .*fuse.raidfs" /proc/self/mountinfo
            umount "$3"
        done
        mount -f -t raidfs "$2" "$3"
    """
    environment = {**workshop.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
    words = ["unshare", "-m", "sh", "-c", script, "sh", extra, volume.members[0]]
    run(*words, volume.mountpoint, fstab, env=environment)
    workshop.run("raidfs", volume.members[0], volume.mountpoint)
    assert (volume.mountpoint / "file").read_text() == f"-T {fstab}\n"
    volume.unmount()


def test_real_programs_work_on_it(workshop):
    volume = workshop.volume(4, level="6", mounted=True)
    root = volume.mountpoint
    run("sqlite3", root / "db", "pragma journal_mode=wal; create table t(x); "
        "with recursive c(i) as (select 1 union all select i+1 from c where i<2000) "
        "insert into t select i from c;")  # fmt: skip
    assert run("sqlite3", root / "db", "select sum(x) from t; pragma integrity_check;").stdout == (
        "2001000\nok\n"
    )
    repository = root / "repository"
    repository.mkdir()
    package = Path(__file__).resolve().parent.parent / "raidfs"
    subprocess.run(["cp", "-r", package, repository], check=True)
    program = "from raidfs import native; native.self_test(); print(native.__file__)"
    done = run(sys.executable, "-c", program, cwd=repository)  # the library mapped from there too
    assert done.stdout.startswith(str(repository))
    (root / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); }\n')
    run("gcc", "-o", root / "hello", root / "hello.c")
    assert run(root / "hello").stdout == "hello\n"
    volume.unmount()
    volume.check()
