"""Other filesystems to measure beside raidfs, each over five members in the same place.

A peer is a context manager that yields (directory, process number or None) and leaves nothing
behind. Their packages are the user's to install; what is missing is told by `missing`.

    mergerfs   pools directories: no parity, no checksums; its own defaults but for where files go
    btrfs      raid5 for data, raid1 for metadata, in the kernel, over loop devices on image files
    zfs-fuse   raidz over image files
    plain      a directory of the filesystem that all the members lie on
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time

MEMBERS = 5
NEEDED = {
    "mergerfs": ["mergerfs", "umount"],
    "btrfs": ["mkfs.btrfs", "losetup", "mount", "umount"],
    "zfs-fuse": ["zfs-fuse", "zpool"],
    "plain": [],
}
POOL = "raidfsbench"
WAIT_S = 20


def missing(name):
    """Commands that the peer needs and this machine lacks."""
    return [command for command in NEEDED[name] if shutil.which(command) is None]


def _run(*command):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


def _end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _images(directory, nbytes):
    paths = [directory / f"image{number}" for number in range(MEMBERS)]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(nbytes)
    return paths


@contextlib.contextmanager
def plain(directory, nbytes):
    """No filesystem of its own."""
    yield directory, None


@contextlib.contextmanager
def mergerfs(directory, nbytes):
    """In the foreground, so that its process is known."""
    branches = [directory / f"branch{number}" for number in range(MEMBERS)]
    for branch in branches:
        branch.mkdir()
    mountpoint = directory / "mount"
    mountpoint.mkdir()
    words = ["mergerfs", "-f", "-o", "category.create=mfs"]
    process = subprocess.Popen(
        [*words, ":".join(map(str, branches)), str(mountpoint)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + WAIT_S
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("mergerfs did not mount")
            time.sleep(0.05)
        yield mountpoint, process.pid
    finally:
        subprocess.run(["umount", str(mountpoint)], capture_output=True, check=False)
        _end(process)


@contextlib.contextmanager
def btrfs(directory, nbytes):
    """Loop devices over images."""
    mountpoint = directory / "mount"
    mountpoint.mkdir()
    loops = []
    try:
        for image in _images(directory, nbytes):
            loops.append(_run("losetup", "--find", "--show", image))
            _run("blockdev", "--setrw", loops[-1])  # the flag outlives the last user's image
        _run("mkfs.btrfs", "-q", "-f", "-d", "raid5", "-m", "raid1", *loops)
        _run("btrfs", "device", "scan", *loops)
        _run("mount", loops[0], mountpoint)
        yield mountpoint, None
    finally:
        subprocess.run(["umount", str(mountpoint)], capture_output=True, check=False)
        for loop in loops:
            subprocess.run(["losetup", "-d", loop], capture_output=True, check=False)


@contextlib.contextmanager
def zfs_fuse(directory, nbytes):
    """Its own daemon, with nothing of an installed one."""
    mountpoint = directory / "mount"
    process = subprocess.Popen(
        ["zfs-fuse", "-n", "--no-kstat-mount"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        time.sleep(2)  # it doesn't tell when its socket listens
        create = ["zpool", "create", "-o", "cachefile=none", "-m", mountpoint, POOL, "raidz"]
        _run(*create, *_images(directory, nbytes))
        try:
            yield mountpoint, process.pid
        finally:
            subprocess.run(["umount", str(mountpoint)], capture_output=True, check=False)
            # in vain while the kernel still holds files; with the daemon and its images all goes
            subprocess.run(["zpool", "destroy", "-f", POOL], capture_output=True, check=False)
    finally:
        _end(process)


PEERS = {"plain": plain, "mergerfs": mergerfs, "btrfs": btrfs, "zfs-fuse": zfs_fuse}
