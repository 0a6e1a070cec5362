"""fio writes in every way it knows, and reads back and compares; then again after a new mount with
a member gone, when every page comes from the members that are left."""

import hashlib
import shutil
from pathlib import Path

import pytest
from mounting import run

pytestmark = pytest.mark.mount

JOBS = Path(__file__).parent / "jobs" / "verify.fio"


def fio(directory, jobs):
    words = ["--directory", directory, "--eta=never", "--output-format=terse"]
    return run("fio", *words, jobs, cwd=directory.parent, timeout_s=240)


def digests(directory):
    """Name -> SHA-256 of each file, read from the members, not from the kernel's cache."""
    run("sysctl", "-q", "vm.drop_caches=1")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.slow
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


def test_smoke_of_fio(workshop, tmp_path):
    volume = workshop.volume(3, mounted=True)
    jobs = tmp_path / "jobs.fio"
    jobs.write_text(
        "[global]\nfallocate=none\nverify=crc32c\nverify_fatal=1\nsize=1m\nstonewall\n"
        "[random]\nrw=randwrite\nbs=4k\nfsync=100\n"
        "[mapped]\nrw=randwrite\nbs=4k\nioengine=mmap\n"
        "[direct]\nrw=write\nbs=64k\ndirect=1\nioengine=libaio\niodepth=4\n"
    )
    fio(volume.mountpoint, jobs)
    volume.unmount()
    volume.check()
