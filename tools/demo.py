#!/usr/bin/env python3
"""raidfs at work, as a user would type it: five directories, a volume, a snapshot, two losses.

Everything happens in a new directory under $TMPDIR, which is removed at the end. Nothing is staged:
each command shown is run as shown, and the first one that doesn't do what it should ends the demo
with a non-zero exit.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

FILES_MAX, BYTES_MAX = 4000, 64 << 20
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}
COMMANDS = Path(sys.executable).parent
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


class DemoFailed(Exception):
    """A command did not do what the demo says it does."""


class Demo:
    """Runs commands in one directory and shows them."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.env = {
            **os.environ,
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "RAIDFS_RUNTIME_DIR": str(self.directory / "run"),
            "LC_ALL": "C.UTF-8",
        }

    def say(self, text):
        """A heading."""
        print(f"\n{BOLD}# {text}{PLAIN}", flush=True)

    def shell(self, line, expect=0):
        """Shows and runs one line; the exit code must be the expected one."""
        print(f"$ {line}", flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.directory, env=self.env, stdin=subprocess.DEVNULL
        )
        spent = time.monotonic() - begun
        if spent > 1:
            print(f"  ({spent:.1f} s)")
        if done.returncode != expect:
            raise DemoFailed(f"`{line}` ended with {done.returncode}, expected {expect}")

    def tear_down(self):
        """Takes the mount away if the demo ended early."""
        for command in (["raidfs-ctl", "umount", "--force", "mnt"], ["umount", "-l", "mnt"]):
            if f" {self.directory}/mnt " in Path("/proc/self/mountinfo").read_text():
                subprocess.run(command, cwd=self.directory, env=self.env, check=False)


def real_tree(destination):
    """Thousands of real files of all sizes, with their links: Python's library and C headers, as
    much of them as a demo has time for."""
    sources = [Path(sysconfig.get_path("stdlib")), Path("/usr/include")]
    files, nbytes = 0, 0
    for source in sources:
        for place, directories, names in os.walk(source):
            directories[:] = sorted(set(directories) - LEFT_OUT)
            target = destination / source.name / Path(place).relative_to(source)
            target.mkdir(parents=True)
            for name in sorted(names):
                size = os.lstat(Path(place) / name).st_size
                if size <= 1 << 20 and files < FILES_MAX and nbytes + size <= BYTES_MAX:
                    shutil.copy2(Path(place) / name, target / name, follow_symlinks=False)
                    files, nbytes = files + 1, nbytes + size
            shutil.copystat(place, target)


def play(demo):
    """The whole demo."""
    demo.say("Five directories; think of each as a disk of its own. And a real tree of files.")
    demo.shell("mkdir disk1 disk2 disk3 disk4 disk5 mnt")
    demo.shell("find tree -type f | wc -l; du -sh tree | cut -f1")
    demo.say("One volume over them. Level 6: any two may be lost.")
    disks = "disk1 disk2 disk3 disk4 disk5"
    demo.shell(f"raidfs-ctl create --level 6 --name demo --size 1G --dry-run {disks}")
    demo.shell(f"raidfs-ctl create --level 6 --name demo --size 1G {disks}")
    demo.say("Mount it by naming any one member, and copy the tree in.")
    demo.shell("raidfs disk1 mnt")
    demo.shell("df -h mnt")
    demo.shell("cp -a tree mnt/")
    demo.shell("raidfs-ctl sync mnt")
    demo.shell("raidfs-ctl status mnt")
    demo.say("A snapshot. Then something goes wrong; what was, is still there.")
    demo.shell("raidfs-ctl snapshot create mnt whole --note 'all is well'")
    demo.shell("rm -rf mnt/tree/include && mv mnt/tree mnt/moved")
    demo.shell("raidfs-ctl snapshot diff mnt whole | head -5")
    demo.shell("diff -r --no-dereference tree mnt/.snapshots/whole/tree && echo identical")
    demo.shell("raidfs-ctl snapshot rollback mnt whole --yes")
    demo.shell("diff -r --no-dereference tree mnt/tree && echo identical")
    demo.shell("raidfs-ctl snapshot list mnt")
    demo.say("A member is lost while the volume is in use. Everything still reads as it was.")
    demo.shell("raidfs-ctl member fail mnt disk3 --yes >/dev/null && rm -rf disk3")
    demo.shell("diff -r --no-dereference tree mnt/tree && echo identical")
    demo.shell("raidfs-ctl status mnt", expect=1)
    demo.say("Unmount, and check every promise of the format.")
    demo.shell("raidfs-ctl umount mnt")
    demo.shell("raidfs-ctl check disk1")
    demo.say("A second member goes, this time unnoticed. That mount must be asked for.")
    demo.shell("rm -rf disk5")
    demo.shell("raidfs disk1 mnt", expect=1)
    demo.shell("raidfs -o degraded disk1 mnt")
    demo.shell("diff -r --no-dereference tree mnt/tree && echo identical")
    demo.shell("raidfs-ctl status mnt", expect=1)
    demo.shell("raidfs-ctl umount mnt")
    demo.say("Even without mounting, files can be copied out of the members that are left.")
    demo.shell("raidfs-ctl extract disk2 tree --to rescued")
    demo.shell("diff -r --no-dereference tree rescued/tree && echo identical")


def main():
    """Makes the directory, plays, clears up."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raidfs-demo-") as directory:
        demo = Demo(os.path.realpath(directory))
        (demo.directory / "tree").mkdir()
        try:
            real_tree(demo.directory / "tree")
            play(demo)
        except DemoFailed as error:
            print(f"\ndemo failed: {error}", file=sys.stderr)
            return 1
        finally:
            demo.tear_down()
    print(f"\ndone in {time.monotonic() - begun:.0f} s; nothing is left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
