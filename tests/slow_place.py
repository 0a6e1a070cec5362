"""A directory on a file system that answers late, or not at all: to have members that do so.

    with SlowPlace(tmp_path / "beneath", tmp_path / "seen") as place:
        place.read_delay_ms = 300       each read takes that much longer
        place.stop()                    nothing is answered any more (SIGSTOP)
        place.go_on()

A pass-through of FUSE, in a process of its own: real for threads of C as well. Nothing that is read
is kept by the kernel (direct_io).
"""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

ROOT_INO = 1
ATTRIBUTES_S = 3600.0  # nobody else changes what lies beneath


class SlowPlace:
    """See the module. `path` is where it is seen."""

    def __init__(self, beneath, seen):
        self.beneath, self.path = Path(beneath), Path(seen)
        for path in (self.beneath, self.path):
            path.mkdir(parents=True)
        self._told = self.beneath.with_name(self.beneath.name + ".delay")
        self.read_delay_ms = 0
        self._process = None

    @property
    def read_delay_ms(self):
        return int(self._told.read_text())

    @read_delay_ms.setter
    def read_delay_ms(self, delay):
        new = self._told.with_suffix(".new")
        new.write_text(str(delay))
        new.rename(self._told)

    def __enter__(self):
        words = [sys.executable, __file__, self.beneath, self.path, self._told]
        self._process = subprocess.Popen([str(word) for word in words])
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path):
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.go_on()
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()

    def stop(self):
        """No answers from now on; returns when that is so."""
        self._process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self._process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)


def serve(beneath, seen, told):
    """The process."""
    import pyfuse3
    import trio

    class PassThrough(pyfuse3.Operations):
        """Inodes are those of what lies beneath."""

        def __init__(self):
            super().__init__()
            self.paths = {ROOT_INO: beneath}
            self.open_fds = {}  # by inode, of files that may have no name any more

        def path_of(self, parent, name):
            return os.path.join(self.paths[parent], os.fsdecode(name))

        def attributes(self, path_or_fd):
            try:
                found = (
                    os.stat(path_or_fd, follow_symlinks=False)
                    if isinstance(path_or_fd, str)
                    else os.fstat(path_or_fd)
                )
            except OSError as error:
                raise pyfuse3.FUSEError(error.errno) from None
            entry = pyfuse3.EntryAttributes()
            for name in ("mode", "nlink", "uid", "gid", "rdev", "size", "blocks"):
                setattr(entry, f"st_{name}", getattr(found, f"st_{name}"))
            for name in ("atime_ns", "mtime_ns", "ctime_ns"):
                setattr(entry, f"st_{name}", getattr(found, f"st_{name}"))
            entry.st_ino = ROOT_INO if path_or_fd == beneath else found.st_ino
            entry.st_blksize = 4096
            entry.entry_timeout = entry.attr_timeout = ATTRIBUTES_S
            return entry

        def known(self, path):
            entry = self.attributes(path)
            self.paths[entry.st_ino] = path
            return entry

        def place(self, ino):
            return self.open_fds.get(ino, self.paths.get(ino))

        async def lookup(self, parent, name, ctx=None):
            path = self.path_of(parent, name)
            if not os.path.lexists(path):
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self.known(path)

        async def getattr(self, ino, ctx=None):
            return self.attributes(self.place(ino))

        async def setattr(self, ino, attr, fields, fh, ctx):
            place = self.place(ino) if fh is None else fh
            if fields.update_size:
                os.truncate(place, attr.st_size)
            if fields.update_mode:
                os.chmod(place, stat.S_IMODE(attr.st_mode))
            return self.attributes(place)

        async def mkdir(self, parent, name, mode, ctx):
            path = self.path_of(parent, name)
            os.mkdir(path, mode)
            return self.known(path)

        async def unlink(self, parent, name, ctx):
            os.unlink(self.path_of(parent, name))

        async def rmdir(self, parent, name, ctx):
            os.rmdir(self.path_of(parent, name))

        async def rename(self, parent, name, parent_new, name_new, flags, ctx):
            new = self.path_of(parent_new, name_new)
            os.rename(self.path_of(parent, name), new)
            self.known(new)

        async def open(self, ino, flags, ctx):
            fd = os.open(self.paths[ino], (flags & os.O_ACCMODE) | os.O_CLOEXEC)
            self.open_fds[ino] = fd
            return pyfuse3.FileInfo(fh=fd, direct_io=True)

        async def create(self, parent, name, mode, flags, ctx):
            path = self.path_of(parent, name)
            fd = os.open(path, (flags & os.O_ACCMODE) | os.O_CREAT | os.O_CLOEXEC, mode)
            entry = self.known(path)
            self.open_fds[entry.st_ino] = fd
            return pyfuse3.FileInfo(fh=fd, direct_io=True), entry

        async def read(self, fd, offset, nbytes):
            delay_ms = int(Path(told).read_text())
            if delay_ms:
                await trio.sleep(delay_ms / 1000)
            return os.pread(fd, nbytes, offset)

        async def write(self, fd, offset, data):
            return os.pwrite(fd, data, offset)

        async def flush(self, fd):
            raise pyfuse3.FUSEError(errno.ENOSYS)

        async def fsync(self, fd, only_data):
            os.fsync(fd)

        async def fsyncdir(self, fh, only_data):
            return

        async def release(self, fd):
            for ino, known in list(self.open_fds.items()):
                if known == fd:
                    del self.open_fds[ino]
            os.close(fd)

        async def opendir(self, ino, ctx):
            return ino

        async def readdir(self, ino, after, token):
            names = sorted(os.listdir(self.paths[ino]))
            for number, name in enumerate(names[after:], after + 1):
                entry = self.known(os.path.join(self.paths[ino], name))
                if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                    return

        async def statfs(self, ctx):
            found, told_of = os.statvfs(beneath), pyfuse3.StatvfsData()
            for name in (
                "bsize",
                "frsize",
                "blocks",
                "bfree",
                "bavail",
                "files",
                "ffree",
                "favail",
            ):
                setattr(told_of, f"f_{name}", getattr(found, f"f_{name}"))
            return told_of

    pyfuse3.init(PassThrough(), seen, {"fsname=slow-place", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    serve(*sys.argv[1:])
