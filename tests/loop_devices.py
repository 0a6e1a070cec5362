"""Block devices for tests: loop devices over files, always detached again."""

import contextlib
import os
import subprocess


@contextlib.contextmanager
def loop_device(path, nbytes=None, offset=0):
    """The path of a loop device over the file at `path`, made (sparse) if nbytes is given."""
    if nbytes is not None:
        with open(path, "wb") as file:
            file.truncate(nbytes)
    command = ["losetup", "--find", "--show", "--offset", str(offset), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"loop devices are needed here: {done.stderr}"
    device = done.stdout.strip()
    try:
        # a device keeps its write protection when its file is detached: start and end without
        subprocess.run(["blockdev", "--setrw", device], check=True)
        yield device
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)
        assert os.path.exists(path)
