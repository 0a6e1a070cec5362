"""fio writes in every way it knows, and reads back and compares; then again after a new mount with
a member gone, when every page comes from the members that are left."""

import hashlib
import shutil
from pathlib import Path

import pytest
from mounting import run

pytestmark = [pytest.mark.mount, pytest.mark.slow]

JOBS = Path(__file__).parent / "jobs" / "verify.fio"


def fio(directory, jobs):
    words = ["--directory", directory, "--eta=never", "--output-format=terse"]
    return run("fio", *words, jobs, cwd=directory.parent, timeout_s=240)


def digests(directory):
    """Name -> SHA-256 of each file, read from the members, not from the kernel's cache."""
    run("sysctl", "-q", "vm.drop_caches=1")
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def test_fio_verifies_what_it_wrote(workshop):
    volume = workshop.volume(5, level="6", size=1 << 30, mounted=True)
    fio(volume.mountpoint, JOBS)
    written = digests(volume.mountpoint)
    assert len(written) == 10
    volume.unmount()
    volume.check()
    for path in volume.members[1:3]:
        shutil.rmtree(path)
    volume.mount("degraded")
    assert digests(volume.mountpoint) == written
    fio(volume.mountpoint, JOBS)  # over the old content, with two members less
    written = digests(volume.mountpoint)
    volume.unmount()
    volume.check()
    volume.mount()
    assert digests(volume.mountpoint) == written
    volume.unmount()
