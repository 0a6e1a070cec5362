"""Commands of raidfs-ctl in the test's own process, which saves the start of Python for each.

What they print, and the exit code, are what a shell would get; but there is nobody to answer
questions.
"""

import contextlib
import io
import os
import subprocess

from mounting import judge

from raidfs.cli.main import control
from raidfs.cli.output import run_command
from raidfs.daemon import registry
from raidfs.daemon.control import ControlClient


@contextlib.contextmanager
def runtime_of(shop):
    """This process looks for daemons where the workshop's are."""
    before = os.environ.get("RAIDFS_RUNTIME_DIR")
    os.environ["RAIDFS_RUNTIME_DIR"] = str(shop.runtime)
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAIDFS_RUNTIME_DIR"]
        else:
            os.environ["RAIDFS_RUNTIME_DIR"] = before


def ctl(shop, *words, expect=0):
    """`raidfs-ctl WORDS...`; `expect`: the exit code (None: any)."""
    arguments = [str(word) for word in words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with runtime_of(shop), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(control, "raidfs-ctl", arguments)
        except SystemExit as end:
            code = end.code
    done = subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
    judge(done, expect)
    return done


def status_of(volume):
    """The status of a mounted volume, as its daemon tells it."""
    with runtime_of(volume.shop):
        for entry, socket in registry.entries():
            if entry.mountpoint == str(volume.mountpoint):
                with ControlClient(socket) as client:
                    return client.status()
    raise AssertionError(f"{volume.mountpoint} has no daemon")
