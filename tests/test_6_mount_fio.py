"""fio writes in every way it knows, and reads back and compares; then again after a new mount with
a member gone, when every page comes from the members that are left."""

import shutil
from pathlib import Path

import pytest
from mounting import run

pytestmark = pytest.mark.mount

JOBS = Path(__file__).parent / "jobs" / "verify.fio"


def fio(directory, jobs=JOBS, *options):
    words = ["--directory", directory, "--eta=never", "--output-format=terse", *options]
    return run("fio", *words, jobs, cwd=directory, timeout_s=240)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "members", "lost"), [("5", 3, 1), ("6", 5, 2)], ids=["level 5", "level 6"]
)
def test_fio_verifies_what_it_wrote(workshop, level, members, lost):
    volume = workshop.volume(members, level=level, size=1 << 30, mounted=True)
    fio(volume.mountpoint)
    volume.unmount()
    volume.check()
    for path in volume.members[1 : 1 + lost]:
        shutil.rmtree(path)
    volume.mount("degraded")
    fio(volume.mountpoint, JOBS, "--verify_only")
    volume.unmount()
    volume.check()


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
