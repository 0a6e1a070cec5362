"""System calls, other users and one shared mount, for the tests of POSIX on a real mount."""

import ctypes
import errno
import os
import subprocess
import tempfile
from contextlib import contextmanager, suppress

import pytest
from mounting import Workshop

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


@pytest.fixture(scope="module", name="volume")
def shared_volume():
    """A volume that other users can reach, as below pytest's own directory they could not."""
    with tempfile.TemporaryDirectory(prefix="raidfs-test-") as name:
        os.chmod(name, 0o755)
        with Workshop(name) as shop:
            made = shop.volume(3, level="5", size=1 << 30)
            made.mount("allow_other")
            made.mountpoint.chmod(0o755)
            yield made
            made.unmount()
            made.check()


@pytest.fixture(name="root")
def own_directory(volume, request):
    """This test's own directory, empty again at the end."""
    path = volume.mountpoint / request.node.name.replace("/", "_")
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@contextmanager
def refused(*numbers):
    """The block must fail with one of these error numbers."""
    try:
        yield
    except OSError as error:
        assert error.errno in numbers, error
    else:
        raise AssertionError(f"not refused with {[errno.errorcode[n] for n in numbers]}")


@contextmanager
def opened(path, flags, mode=0o666):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def in_child(function, *, uid=0, gid=0, groups=()):
    """Runs the function in a child process; True, or what went wrong there."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        try:
            if uid:
                os.setgroups(groups)
                os.setresgid(gid or uid, gid or uid, gid or uid)
                os.setresuid(uid, uid, uid)
            function()
        except BaseException as error:
            said = repr(error).encode() or b"?"
        finally:
            with suppress(OSError):
                os.write(write_end, said)
            os._exit(bool(said))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said or True


def renameat2(old, new, flags):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
