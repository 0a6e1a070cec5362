"""A real volume on a real mount for tests: made, mounted, and whatever happens, taken away again.

    with Workshop(tmp_path) as shop:
        volume = shop.volume(members=5, level="6")
        volume.mount()
        (volume.mountpoint / "file").write_bytes(b"...")
        volume.unmount()
        volume.check()

Everything goes through the commands that users type. Daemons are ended by their process number,
loop devices detached, mounts taken away, also after a failed assertion.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked

from raidfs.raid.create import plan_volume
from raidfs.store.make import make_volume

BIN = Path(sys.executable).parent
COMMAND_TIMEOUT_S = 60


class CommandFailed(AssertionError):
    """A command that should have succeeded did not; its text shows all it said."""


def run(*command, expect=0, env=None, timeout_s=COMMAND_TIMEOUT_S, cwd=None, input_text=None):
    """Runs a command; `expect` is the exit code (None: any)."""
    words = [str(word) for word in command]
    if (BIN / words[0]).exists():
        words[0] = str(BIN / words[0])
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=env,
        cwd=cwd,
        input=input_text if input_text is not None else "",
        check=False,
    )
    judge(done, expect)
    return done


def judge(done, expect):
    """CommandFailed unless it ended as expected (None: anyhow), without a traceback."""
    assert "Traceback" not in done.stderr, f"{done.args}\n{done.stderr}"
    if expect is not None and done.returncode != expect:
        raise CommandFailed(
            f"{' '.join(done.args)}: exit {done.returncode}, expected {expect}\n"
            f"stdout: {done.stdout}\nstderr: {done.stderr}"
        )


def is_mounted(path):
    """Whether something is mounted there, without touching it."""
    wanted = f" {os.path.realpath(path.parent)}/{path.name} "
    return wanted in Path("/proc/self/mountinfo").read_text()


def wait_until(condition, what, timeout_s=15.0):
    """Polls; fails with `what` after the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def fingerprint(*paths):
    """Names, modes and content of everything below the paths."""
    found = hashlib.sha256()
    for path in paths:
        for place in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
            found.update(f"{place} {place.lstat().st_mode} ".encode())
            if place.is_file() and not place.is_symlink():
                found.update(place.read_bytes())
    return found.hexdigest()


class Workshop:
    """Makes members and volumes below one directory, and clears all of it away at the end."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.runtime = self.directory / "run"
        self.volumes = []
        self.loops = []
        self.forks = True  # of one loaded process run its commands, see forked.py
        self.launcher = ()  # words before the command that mounts
        self.env = {**os.environ, "RAIDFS_RUNTIME_DIR": str(self.runtime)}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for volume in self.volumes:
            volume.tear_down()
            if error is not None and volume.log.exists():
                print(f"--- log of {volume.mountpoint}\n{volume.log.read_text()[-8000:]}")
        for loop in self.loops:
            run("losetup", "-d", loop, expect=None)

    def run(self, *command, **options):
        """As `run`, with this workshop's runtime directory."""
        words = [str(word) for word in command]
        if self.forks and forked.can(words, options):
            done = forked.done(words, self.env, options.get("timeout_s", COMMAND_TIMEOUT_S))
            judge(done, options.get("expect", 0))
            return done
        return run(*command, env=self.env, **options)

    def directories(self, count, prefix="d"):
        """Fresh empty directory members."""
        paths = [self.directory / f"{prefix}{number}" for number in range(count)]
        for path in paths:
            path.mkdir()
        return paths

    def images(self, count, nbytes=64 << 20, prefix="i"):
        """Fresh sparse image files."""
        paths = [self.directory / f"{prefix}{number}.img" for number in range(count)]
        for path in paths:
            with path.open("wb") as file:
                file.truncate(nbytes)
        return paths

    def loop_devices(self, count, nbytes=64 << 20):
        """Fresh loop devices over image files (root only)."""
        paths = []
        for image in self.images(count, nbytes, prefix="loop"):
            done = run("losetup", "--find", "--show", image)
            self.loops.append(done.stdout.strip())
            run("blockdev", "--setrw", self.loops[-1])  # the flag outlives the last user's image
            paths.append(Path(self.loops[-1]))
        return paths

    def volume(self, members=3, level=None, size=256 << 20, mounted=False, options=(), **create):
        """A fresh volume over that many directories, or over the members given. Made by the
        function that `raidfs-ctl create` calls, to save each test the start of one command."""
        if isinstance(members, int):
            members = self.directories(members, prefix=f"v{len(self.volumes)}d")
        if not all(path.is_dir() for path in members):
            size = None
        plan = plan_volume([str(p) for p in members], level=level, size_bytes=size, **create)
        make_volume(plan, now_ns=time.time_ns)
        volume = MountedVolume(self, members, len(self.volumes))
        self.volumes.append(volume)
        if mounted:
            volume.mount(*options)
        return volume


class MountedVolume:
    """One volume and where it is, or was, mounted."""

    def __init__(self, shop, members, number):
        self.shop = shop
        self.members = [Path(path) for path in members]
        self.mountpoint = shop.directory / f"mnt{number}"
        self.mountpoint.mkdir()
        self.log = shop.directory / f"mnt{number}.log"
        self.pid = None

    def mount(self, *options, source=None, expect=0):
        """`raidfs MEMBER MOUNTPOINT`; returns the finished command."""
        words = ["-o", ",".join([f"log={self.log}", *options])]
        done = self.shop.run(
            *self.shop.launcher,
            BIN / "raidfs",
            *words,
            source or self.members[0],
            self.mountpoint,
            expect=expect,
        )
        if done.returncode == 0:
            (self.pid,) = self._daemons()
        return done

    def unmount(self):
        """Unmounts and waits until all is on the members."""
        self.shop.run("raidfs-ctl", "umount", self.mountpoint)
        self.wait_gone()

    def wait_gone(self):
        """Until the daemon has ended."""
        if self.pid is not None:
            wait_until(lambda: not _alive(self.pid), f"daemon {self.pid} ends")
        self.pid = None

    def kill(self):
        """kill -9, then the stale mount is cleared, as an administrator would."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        self.wait_gone()
        run("umount", "-l", self.mountpoint, expect=None)

    def ctl(self, verb, *arguments, **options):
        """`raidfs-ctl VERB MOUNTPOINT ...`"""
        return self.shop.run("raidfs-ctl", verb, self.mountpoint, *arguments, **options)

    def status(self, expect=None):
        """The status as JSON."""
        done = self.shop.run("raidfs-ctl", "status", "--json", self.mountpoint, expect=expect)
        return json.loads(done.stdout)

    def check(self, expect=0, source=None):
        """`raidfs-ctl check`; clean unless told otherwise."""
        return self.shop.run("raidfs-ctl", "check", source or self.members[0], expect=expect)

    def tear_down(self):
        """Whatever state it is in: no mount and no daemon remain."""
        if is_mounted(self.mountpoint):
            run("umount", "-l", self.mountpoint, expect=None)
        for pid in self._daemons():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            try:
                wait_until(lambda pid=pid: not _alive(pid), "daemon ends", timeout_s=5)
            except AssertionError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: not _alive(pid), "killed daemon ends")

    def _daemons(self):
        """Process numbers of living daemons of this volume, from the workshop's own registry."""
        found = {self.pid} if self.pid is not None and _alive(self.pid) else set()
        for path in self.shop.runtime.glob("*.json"):
            with contextlib.suppress(OSError, ValueError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    entry = json.load(file)
                    if entry["mountpoint"] == str(self.mountpoint):
                        found.add(entry["pid"])
        return found


def _alive(pid):
    """A process that has ended but was not yet reaped counts as ended; not one of which the first
    thread has ended and others still hold its files."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in ("Z", "X") or threads > 1
