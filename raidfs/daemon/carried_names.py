"""Carried requests for names: looked up, made, removed, moved, listed.

As the handlers of daemon/fuse.py, with the same calls of the volume, but answered at once.

 1. One reference is counted for each inode the kernel is told of, in a listing only for the entries
    that fitted into the reply.
 2. Strings of the kernel are taken as such only if they end where it says; what may be a name, the
    volume decides.
"""

from __future__ import annotations

import errno

from raidfs.daemon.fuse import FLEETING_INO, LISTED_AT_ONCE, Watcher
from raidfs.daemon.protocol import (
    CREATE,
    CREATE_IN,
    ENTRY_BYTES,
    IO_IN,
    LINK,
    LINK_IN,
    LOOKUP,
    MKDIR,
    MKDIR_IN,
    MKNOD,
    MKNOD_IN,
    NO_ENTRY,
    OFFSET_MAX,
    OPEN_IN,
    OPEN_OUT,
    OPENDIR,
    READDIRPLUS,
    READLINK,
    RENAME,
    RENAME2,
    RENAME2_IN,
    RENAME_IN,
    RMDIR,
    SYMLINK,
    UNLINK,
    Request,
    dirent_bytes,
    dirent_out,
    entry_out,
    malformed,
    open_out,
)
from raidfs.errors import RaidfsError
from raidfs.fs.volume import Volume

DOTS = (b".", b"..")


class CarriedNames:
    """See the module."""

    def __init__(self, volume: Volume, watcher: Watcher, io_bytes_max: int) -> None:
        self._volume = volume
        self._watcher = watcher
        self._io_bytes_max = io_bytes_max
        self.quick = {
            LOOKUP: self._lookup,
            CREATE: self._create,
            MKNOD: self._mknod,
            MKDIR: self._mkdir,
            SYMLINK: self._symlink,
            LINK: self._link,
            UNLINK: self._unlink,
            RMDIR: self._rmdir,
            RENAME: self._rename,
            RENAME2: self._rename2,
            READLINK: self._readlink,
            OPENDIR: self._opendir,
            READDIRPLUS: self._listing,
        }

    # -- made and found ---------------------------------------------------------------------------

    def _lookup(self, request: Request) -> bytes:
        """A missing name is remembered by the kernel as missing."""
        try:
            return entry_out(self._volume.lookup(request.ino, request.name()), request.ino)
        except RaidfsError as error:
            if error.errno != errno.ENOENT or request.ino == FLEETING_INO:
                raise
            return NO_ENTRY

    def _create(self, request: Request) -> bytes:
        flags, mode, umask, _ = request.fields(CREATE_IN)
        name = request.name(CREATE_IN.size)
        told = self._volume.create(request.ino, name, mode, flags, request.caller(umask))
        self._watcher.opened(told.ino, flags)
        return entry_out(told) + open_out(told.ino)

    def _mknod(self, request: Request) -> bytes:
        mode, rdev, umask, _ = request.fields(MKNOD_IN)
        name, caller = request.name(MKNOD_IN.size), request.caller(umask)
        return entry_out(self._volume.mknod(request.ino, name, mode, rdev, caller))

    def _mkdir(self, request: Request) -> bytes:
        mode, umask = request.fields(MKDIR_IN)
        name, caller = request.name(MKDIR_IN.size), request.caller(umask)
        return entry_out(self._volume.mkdir(request.ino, name, mode, caller))

    def _symlink(self, request: Request) -> bytes:
        name, target = request.strings(0, 2)
        return entry_out(self._volume.symlink(request.ino, name, target, request.caller()))

    def _link(self, request: Request) -> bytes:
        (ino,) = request.fields(LINK_IN)
        return entry_out(self._volume.link(ino, request.ino, request.name(LINK_IN.size)))

    def _readlink(self, request: Request) -> bytes:
        return self._volume.readlink(request.ino)

    # -- removed and moved ------------------------------------------------------------------------

    def _unlink(self, request: Request) -> bytes:
        self._volume.unlink(request.ino, request.name())
        return b""

    def _rmdir(self, request: Request) -> bytes:
        self._volume.rmdir(request.ino, request.name())
        return b""

    def _rename(self, request: Request) -> bytes:
        (there,) = request.fields(RENAME_IN)
        old, new = request.strings(RENAME_IN.size, 2)
        self._volume.rename(request.ino, old, there, new, 0)
        return b""

    def _rename2(self, request: Request) -> bytes:
        there, flags, _ = request.fields(RENAME2_IN)
        old, new = request.strings(RENAME2_IN.size, 2)
        self._volume.rename(request.ino, old, there, new, flags)
        return b""

    # -- listed -----------------------------------------------------------------------------------

    def _opendir(self, request: Request) -> bytes:
        request.fields(OPEN_IN)
        self._volume.opendir(request.ino)
        return OPEN_OUT.pack(request.ino, 0, 0)

    def _listing(self, request: Request) -> bytes:
        """As many entries as fit, with their attributes. An error after the first one waits for the
        next call, or the references of those already counted would be lost."""
        _, after, room, _, _, _, _ = request.fields(IO_IN)
        if after > OFFSET_MAX:
            raise malformed()
        listed: list[bytes] = []
        try:
            self._list(request.ino, after, min(room, self._io_bytes_max), listed)
        except RaidfsError:
            if not listed:
                raise
        return b"".join(listed)

    def _list(self, ino: int, after: int, room: int, listed: list[bytes]) -> None:
        volume = self._volume
        while entries := volume.readdir(ino, after, min(LISTED_AT_ONCE, room // ENTRY_BYTES + 1)):
            for entry in entries:
                room -= dirent_bytes(entry.name)
                if room < 0:
                    return
                if entry.name in DOTS:
                    listed.append(dirent_out(entry, None))
                else:
                    listed.append(dirent_out(entry, volume.getattr(entry.ino), ino))
                    volume.remember(entry.ino)
                after = entry.cookie
