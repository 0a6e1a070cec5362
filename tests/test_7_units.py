"""What `make install` puts into the system: units of systemd, the helper of mount(8), programs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mounting import BIN, is_mounted, run, wait_until

from raidfs.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted((ROOT / "systemd").iterdir())
SERVICE = ROOT / "systemd" / "raidfs@.service"
# Each gives the service a mount namespace, in which nobody else would see the volume.
NAMESPACES = re.compile(
    r"^(Private(Mounts|Tmp|Devices|Users)|Protect\w+|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)"
    r"Paths|Bind\w*Paths|TemporaryFileSystem|Root\w+|MountFlags|DynamicUser|MountAPIVFS|"
    r"(State|Cache|Logs|Runtime)Directory\w*)=",
    re.MULTILINE,
)


def setting(name, text):
    """The value of a setting that is there once."""
    (value,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return value


# -- units ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong(tmp_path):
    """With the programs where they are, and a name for each template."""
    for unit in UNITS:
        text = unit.read_text().replace("/usr/local/bin/", f"{BIN}/")
        (tmp_path / unit.name.replace("@.", "@tank.")).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one"]
    done = run(*words, *sorted(tmp_path.iterdir()))
    assert not done.stderr, done.stderr
    (tmp_path / "raidfs@tank.service").write_text("[Service]\nExecStart=/missing\nFrob=1\n")
    assert run(*words, tmp_path / "raidfs@tank.service", expect=None).stderr  # that it can fail


@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix == ".service"], ids=lambda u: u.name)
def test_what_units_start_exists(unit):
    words = setting("ExecStart", unit.read_text()).split()
    program, *arguments = words
    assert program.startswith("/usr/local/bin/") and (BIN / Path(program).name).exists()
    if Path(program).name == "raidfs-ctl":
        assert arguments[0] in VERBS, f"raidfs-ctl {arguments[0]} is not there"
        verbs = [word for word in arguments if re.fullmatch("[a-z-]*[a-z]", word)][:2]
        told = run("raidfs-ctl", *verbs, "--help").stdout
        for option in (word for word in arguments if re.fullmatch(r"--\w[\w-]*", word)):
            assert option in told


def test_every_timer_has_its_service():
    for timer in (unit for unit in UNITS if unit.suffix == ".timer"):
        assert timer.with_suffix(".service") in UNITS
        text = timer.read_text()
        assert setting("WantedBy", text) == "timers.target" and "OnCalendar=" in text


def test_the_mount_is_seen_by_everybody():
    assert not NAMESPACES.search(SERVICE.read_text())
    assert NAMESPACES.search("A=1\nPrivateTmp=yes\n") and NAMESPACES.search("ProtectSystem=full\n")


class Notified:
    """Stands for systemd at the other end of sd_notify."""

    def __init__(self, path):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(60)

    def next(self):
        return self._socket.recv(1024).decode()

    def close(self):
        self._socket.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directories", "loop_devices"])
def test_the_service_with_no_more_rights_than_its_unit_gives(workshop, kind):
    """Command line and capabilities of the unit, which allows just what is needed."""
    members = workshop.directories(3) if kind == "directories" else workshop.loop_devices(3)
    volume = workshop.volume(members)
    text = SERVICE.read_text()
    granted = setting("CapabilityBoundingSet", text).lower().replace("cap_", "").split()
    assert setting("NoNewPrivileges", text) == "yes"
    rights = ",".join(["-all", *(f"+{name}" for name in granted)])
    values = {"${OPTIONS}": setting("Environment", text).removeprefix("OPTIONS=")}
    values |= {"${SOURCE}": str(members[0]), "${MOUNTPOINT}": str(volume.mountpoint)}
    command = setting("ExecStart", text).replace("/usr/local/bin", str(BIN)).split()
    systemd = Notified(workshop.directory / "notify")
    process = subprocess.Popen(
        ["setpriv", "--no-new-privs", f"--bounding-set={rights}", f"--inh-caps={rights}",
         *(values.get(word, word) for word in command)],
        env={**workshop.env, "NOTIFY_SOCKET": str(systemd.path)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert systemd.next() == "READY=1"
        status = Path(f"/proc/{process.pid}/status").read_text()
        for rights in ("CapBnd", "CapEff"):
            mask = int(re.search(rf"{rights}:\s*(\w+)", status)[1], 16)
            assert mask.bit_count() == len(granted)
        (volume.mountpoint / "file").write_text("written")
        os.chown(volume.mountpoint / "file", 12345, 12345)
        process.send_signal(signal.SIGTERM)
        assert systemd.next() == "STOPPING=1"
        assert process.wait(60) == 0
    finally:
        process.kill()
        _, said = process.communicate()
        systemd.close()
    assert not re.search("error|denied", said, re.IGNORECASE), said
    assert not is_mounted(volume.mountpoint)
    volume.check()


SYSTEMD = Path("/lib/systemd/systemd")
MANAGED = """
    mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system     # "booted with systemd"
    "$1" --user --unit=basic.target >"$2/log" 2>&1 &
    manager=$!
    until systemctl --user is-active -q basic.target; do sleep 0.1; done
    pid() { systemctl --user show raidfs@tank -p MainPID --value; }
    systemctl --user start raidfs@tank
    first=$(pid); echo kept >"$3/file"; sync "$3/file"
    grep -E '^(NoNewPrivs|Seccomp):' /proc/$first/status | tr -d '\\t'
    kill -9 $first
    until [ "$(pid)" != $first ] && systemctl --user is-active -q raidfs@tank; do sleep 0.1; done
    cat "$3/file"; grep -c " $3 " /proc/self/mountinfo
    systemctl --user stop raidfs@tank; systemctl --user show raidfs@tank -p Result
    grep -c " $3 " /proc/self/mountinfo
    kill $manager; wait $manager
"""


@pytest.mark.slow
@pytest.mark.skipif(not SYSTEMD.exists(), reason="no systemd here")
def test_a_real_systemd_starts_restarts_and_stops_it(workshop):
    """A manager of its own, in a mount namespace; the unit as it is; a kill in between."""
    volume = workshop.volume(3)
    home = workshop.directory / "manager"
    for name in ("units", "run"):
        (home / name).mkdir(parents=True)
    text = SERVICE.read_text().replace("/usr/local/bin/", f"{BIN}/")
    text = text.replace("/etc/raidfs/", f"{home}/").replace("RestartSec=5s", "RestartSec=100ms")
    text = re.sub("^After=.*\n", "", text, flags=re.MULTILINE)  # what a user's manager doesn't have
    runtime = f"Environment=RAIDFS_RUNTIME_DIR={workshop.runtime}"
    text = text.replace("[Service]\n", f"[Service]\n{runtime}\n")
    (home / "units" / SERVICE.name).write_text(text)
    where = f"SOURCE={volume.members[0]}\nMOUNTPOINT={volume.mountpoint}\n"
    (home / "tank.conf").write_text(where)
    environment = {**workshop.env, "XDG_RUNTIME_DIR": str(home / "run")}
    environment["SYSTEMD_UNIT_PATH"] = f"{home / 'units'}:/usr/lib/systemd/user"
    environment["SYSTEMD_LOG_TARGET"] = "console"
    words = ["unshare", "-m", "timeout", "100", "sh", "-c", MANAGED, "sh", SYSTEMD, home]
    done = run(*words, volume.mountpoint, env=environment, expect=None, timeout_s=120)
    expected = ["NoNewPrivs:1", "Seccomp:2", "kept", "1", "Result=success", "0"]
    assert done.stdout.split() == expected, f"{done}\n{(home / 'log').read_text()}"
    volume.check()


# -- mount(8) -------------------------------------------------------------------------------------


class Fstab:
    """An fstab of its own, used in a mount namespace in which mount(8) finds the helper."""

    def __init__(self, shop):
        self.shop = shop
        self.path = shop.directory / "fstab"
        self.helpers = shop.directory / "helpers"
        self.helpers.mkdir()
        (self.helpers / "mount.raidfs").symlink_to(BIN / "mount.raidfs")

    def line(self, volume, options, source=None):
        words = [source or volume.members[0], volume.mountpoint, "raidfs", options, "0", "0"]
        with self.path.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def script(self, text, *arguments):
        """What it prints, and each `mount` followed by its exit code."""
        start = 'set -u; mount -t overlay overlay -o lowerdir="$1":/usr/sbin /usr/sbin; shift\n'
        words = ["unshare", "-m", "sh", "-c", start + text, "sh", self.helpers, self.path]
        return self.shop.run(*words, *arguments, expect=None)


@pytest.mark.slow
def test_fstab(workshop):
    """Options of mount(8) and systemd are taken; what is mounted is what the line says."""
    fstab, one, two = Fstab(workshop), workshop.volume(3), workshop.volume(3)
    systems = "x-systemd.device-timeout=5s,x-systemd.requires=network-online.target,x-any"
    fstab.line(one, f"nofail,allow_other,_netdev,{systems}")
    fstab.line(two, "ro,noauto,nodev")
    done = fstab.script(
        """
        mount -a -T "$1"; echo $?
        grep -c " $2 .*fuse.raidfs.*allow_other" /proc/self/mountinfo
        grep -c " $3 " /proc/self/mountinfo
        mount -T "$1" "$3"; echo $?
        grep -c " $3 ro,nodev.* fuse.raidfs" /proc/self/mountinfo
        echo written >"$2/file"; echo refused 2>/dev/null >"$3/file" || echo read-only
        umount "$2"; umount "$3"
        """,
        one.mountpoint,
        two.mountpoint,
    )
    assert done.stdout.split() == ["0", "1", "0", "0", "1", "read-only"], done
    wait_until(lambda: not list(workshop.runtime.glob("*.json")), "the daemons end")
    one.mount()
    assert (one.mountpoint / "file").read_text() == "written\n"
    one.unmount()
    one.check()
    two.check()


@pytest.mark.slow
def test_fstab_when_members_are_missing(workshop):
    """With nofail that is told, and the machine goes on; what is a mistake fails all the same."""
    fstab, volume = Fstab(workshop), workshop.volume(3)
    other, third = workshop.volume(3), workshop.volume(3)
    fstab.line(volume, "nofail")
    fstab.line(other, "noauto,defaults")
    fstab.line(third, "noauto,nofail,frobnicate")
    for path in (*volume.members[1:], *other.members[1:]):
        path.rename(path.with_suffix(".away"))
    arguments = (volume.mountpoint, other.mountpoint, third.mountpoint)
    done = fstab.script(
        """
        mount -a -T "$1"; echo $?
        for place in "$2" "$3" "$4"; do mount -T "$1" "$place"; echo $?; done
        mv "$5" "${5%.away}"
        mount -T "$1" "$2"; echo $?; grep -c " $2 " /proc/self/mountinfo
        mount -T "$1" -o degraded "$2"; echo $?; grep -c " $2 " /proc/self/mountinfo
        umount "$2"
        """,
        *arguments,
        volume.members[1].with_suffix(".away"),
    )
    assert done.stdout.split() == ["0", "0", "32", "32", "0", "0", "0", "1"], done
    assert "lost 2 members" in done.stderr and "frobnicate" in done.stderr
    assert "-o degraded" in done.stderr
    assert run("mount.raidfs", expect=1).stderr.startswith("Usage:")
    wait_until(lambda: not list(workshop.runtime.glob("*.json")), "the daemon ends")
    volume.check()


# -- make install ---------------------------------------------------------------------------------


def files_below(path):
    return {str(each.relative_to(path)) for each in path.rglob("*") if not each.is_dir()}


@pytest.mark.slow
def test_install_and_uninstall(workshop, tmp_path):
    """By make, into a directory that stands for the machine; then a prefix from which it runs."""
    place = tmp_path / "machine"
    (place / "usr/bin").mkdir(parents=True)
    (place / "usr/bin/other").touch()
    make = ["make", "-C", ROOT, "-o", "build", f"DESTDIR={place}", "PREFIX=/usr"]
    run(*make, "install", timeout_s=300)
    found = files_below(place)
    outside = {path for path in found if not path.startswith("usr/lib/raidfs/")}
    assert {"usr/bin/raidfs", "usr/bin/raidfs-ctl", "usr/sbin/mkfs.raidfs", "usr/sbin/fsck.raidfs",
            "sbin/mount.raidfs", "usr/share/man/man8/raidfs-ctl.8",
            "usr/share/bash-completion/completions/raidfs-ctl",
            "usr/share/zsh/site-functions/_raidfs",
            "usr/share/fish/vendor_completions.d/raidfs.fish"} <= outside  # fmt: skip
    assert {f"usr/lib/systemd/system/{unit.name}" for unit in UNITS} <= outside
    assert "usr/lib/raidfs/raidfs/store/schema.sql" in found
    for path in outside:
        text = (place / path).read_text()
        assert str(place) not in text and str(ROOT) not in text, path
        assert "/usr/local/" not in text or "man8" in path, path
    run(*make, "uninstall", timeout_s=300)
    assert files_below(place) == {"usr/bin/other"}
    assert {path.name for path in (place / "usr").iterdir()} <= {"bin", "sbin", "lib", "share"}


@pytest.mark.slow
def test_what_is_installed_runs_by_itself(workshop, tmp_path):
    """From its prefix, over an older version, with a PYTHONPATH that would lead astray."""
    prefix = tmp_path / "prefix"
    left = prefix / "lib/raidfs/raidfs/gone.py"
    left.parent.mkdir(parents=True)
    left.write_text("of an older version\n")
    tool = [sys.executable, ROOT / "tools/install.py", "install", "--prefix", prefix]
    run(*tool, "--helper-directory", tmp_path / "helpers", "--no-compile", timeout_s=300)
    assert not left.exists() and not left.parent.parent.with_name("raidfs.old").exists()
    env = {**workshop.env, "PYTHONPATH": str(tmp_path / "nothing")}
    bin_directory = prefix / "bin"
    members = workshop.directories(3)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    run(prefix / "sbin/mkfs.raidfs", "--size", "64M", *members, env=env, cwd="/")
    run(tmp_path / "helpers/mount.raidfs", members[0], mountpoint, "-o", "rw", env=env, cwd="/")
    try:
        (mountpoint / "file").write_text("x")
        told = run(bin_directory / "raidfs-ctl", "status", "--json", mountpoint, env=env).stdout
        pid = json.loads(told)["pid"]
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert str(prefix) in loaded and str(ROOT) not in loaded
    finally:
        run(bin_directory / "raidfs-ctl", "umount", mountpoint, env=env, expect=None)
    run(prefix / "sbin/fsck.raidfs", members[0], env=env)
