"""Mounts with -o direct: columns are read and written past the kernel's cache, labels and metadata
are not; everything else is as without."""

import json
import os
import random
import shutil

import pytest
from mounting import run

pytestmark = pytest.mark.mount


def served(volume):
    """The lane's own counters."""
    done = volume.shop.run("raidfs-ctl", "statistics", "--json", volume.mountpoint)
    return json.loads(done.stdout)["lane"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("direct",), ("direct", "nolane")])
@pytest.mark.parametrize("kind", ["directories", "images"])
def test_content_survives_and_a_lost_member_is_made_up_for(workshop, kind, options):
    dice = random.Random(5)
    members = 4 if kind == "directories" else workshop.images(4, 64 << 20)
    volume = workshop.volume(members, level="5", mounted=True, options=options)
    made = {}
    for number, size in enumerate((1, 4096, 5000, 200_000, 3_000_000)):
        made[f"file{number}"] = dice.randbytes(size)
        (volume.mountpoint / f"file{number}").write_bytes(made[f"file{number}"])
    with (volume.mountpoint / "file4").open("r+b") as file:  # a partial page over a cell
        volume.ctl("sync")
        os.pwrite(file.fileno(), b"middle", 1_000_003)
    made["file4"] = made["file4"][:1_000_003] + b"middle" + made["file4"][1_000_009:]
    volume.unmount()
    volume.check()
    volume.mount(*options)
    for name, content in made.items():
        assert (volume.mountpoint / name).read_bytes() == content
    volume.unmount()
    if kind == "directories":
        shutil.rmtree(volume.members[1])
    else:
        volume.members[1].unlink()
    volume.mount(*options, "degraded")
    for name, content in made.items():
        assert (volume.mountpoint / name).read_bytes() == content
    volume.unmount()


@pytest.mark.slow
def test_the_lane_reads_through_the_engine(workshop):
    volume = workshop.volume(4, level="5", mounted=True, options=("direct",))
    content = random.Random(6).randbytes(2 << 20)
    (volume.mountpoint / "file").write_bytes(content)
    volume.ctl("sync")
    for _ in range(2):  # the first time Python loads what the lane needs to know
        run("sysctl", "-q", "vm.drop_caches=1")
        assert (volume.mountpoint / "file").read_bytes() == content
    assert served(volume)["reads_engine"] > 0
    volume.unmount()
