"""Carried requests for attributes of all kinds: stat, chmod, truncate, statvfs, xattrs.

As the handlers of daemon/fuse.py, with the same calls of the volume, but answered at once; and
SETXATTR passes on its flags, SETATTR that a time is to be now, and who truncates a file and makes
setuid go.

 1. A size, a time or a length that can't be is refused before the volume hears of it.
"""

from __future__ import annotations

import errno

from raidfs.daemon.protocol import (
    ACCESS,
    ACCESS_IN,
    GETATTR,
    GETATTR_IN,
    GETXATTR,
    GETXATTR_IN,
    GETXATTR_OUT,
    LISTXATTR,
    OFFSET_MAX,
    REMOVEXATTR,
    SECOND_NS,
    SETATTR,
    SETATTR_IN,
    SETXATTR,
    SETXATTR_IN,
    STATFS,
    STATX,
    STATX_IN,
    Request,
    attr_out,
    malformed,
    statfs_out,
    statx_out,
)
from raidfs.errors import FsError
from raidfs.fs.attributes import Changes
from raidfs.fs.volume import Volume

# What a SETATTR says it has; FATTR_FH and FATTR_LOCKOWNER say nothing that matters here.
SET_MODE, SET_UID, SET_GID, SET_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SET_ATIME, SET_MTIME, SET_ATIME_NOW, SET_MTIME_NOW = 1 << 4, 1 << 5, 1 << 7, 1 << 8
SET_CTIME, SET_KILL_PRIVILEGES = 1 << 10, 1 << 11


class CarriedAttributes:
    """See the module."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.quick = {
            GETATTR: self._getattr,
            SETATTR: self._setattr,
            STATX: self._statx,
            STATFS: self._statfs,
            ACCESS: self._access,
            GETXATTR: self._getxattr,
            SETXATTR: self._setxattr,
            LISTXATTR: self._listxattr,
            REMOVEXATTR: self._removexattr,
        }
        self.waiting = {SETATTR: self._truncate}

    # -- of stat ----------------------------------------------------------------------------------

    def _getattr(self, request: Request) -> bytes:
        request.fields(GETATTR_IN)
        return attr_out(self._volume.getattr(request.ino))

    def _statx(self, request: Request) -> bytes:
        request.fields(STATX_IN)
        return statx_out(self._volume.getattr(request.ino))

    def _setattr(self, request: Request) -> bytes | None:
        """None: it changes the size."""
        changes, _ = self._changes(request)
        if changes.size is not None:
            return None
        told = self._volume.set_attributes(request.ino, changes, request.caller())
        return attr_out(told)

    async def _truncate(self, request: Request) -> bytes:
        changes, kill = self._changes(request)
        told = await self._volume.setattr(
            request.ino, changes, request.caller(), kill_privileges=kill
        )
        return attr_out(told)

    def _changes(self, request: Request) -> tuple[Changes, bool]:
        """(what is to change, whether setuid and setgid go)."""
        fields = request.fields(SETATTR_IN)
        valid, _, _, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns = fields[:11]
        mode, _, uid, gid, _ = fields[11:]
        if valid & SET_SIZE and size > OFFSET_MAX:
            raise FsError(errno.EINVAL)
        if atime_ns >= SECOND_NS or mtime_ns >= SECOND_NS or ctime_ns >= SECOND_NS:
            raise malformed()
        atime_ns += atime * SECOND_NS
        mtime_ns += mtime * SECOND_NS
        ctime_ns += ctime * SECOND_NS
        if valid & (SET_ATIME_NOW | SET_MTIME_NOW):
            now_ns = self._volume.clock()  # as writes have it, where the kernel's lags behind
            atime_ns = now_ns if valid & SET_ATIME_NOW else atime_ns
            mtime_ns = now_ns if valid & SET_MTIME_NOW else mtime_ns
        changes = Changes(
            mode=mode if valid & SET_MODE else None,
            uid=uid if valid & SET_UID else None,
            gid=gid if valid & SET_GID else None,
            size=size if valid & SET_SIZE else None,
            atime_ns=atime_ns if valid & (SET_ATIME | SET_ATIME_NOW) else None,
            mtime_ns=mtime_ns if valid & (SET_MTIME | SET_MTIME_NOW) else None,
            ctime_ns=ctime_ns if valid & SET_CTIME else None,
        )
        return changes, bool(valid & SET_KILL_PRIVILEGES)

    # -- of the whole -----------------------------------------------------------------------------

    def _statfs(self, request: Request) -> bytes:
        return statfs_out(self._volume.statfs())

    def _access(self, request: Request) -> bytes:
        """The kernel checks permissions itself (default_permissions)."""
        request.fields(ACCESS_IN)
        return b""

    # -- xattrs -----------------------------------------------------------------------------------

    def _getxattr(self, request: Request) -> bytes:
        room, _ = request.fields(GETXATTR_IN)
        name = request.name(GETXATTR_IN.size)
        return _fitting(self._volume.getxattr(request.ino, name), room)

    def _listxattr(self, request: Request) -> bytes:
        room, _ = request.fields(GETXATTR_IN)
        names = self._volume.listxattr(request.ino, request.caller())
        return _fitting(b"".join([name + b"\0" for name in names]), room)

    def _setxattr(self, request: Request) -> bytes:
        nbytes, flags = request.fields(SETXATTR_IN)
        body = request.body
        assert isinstance(body, bytes)
        end = body.find(b"\0", SETXATTR_IN.size)
        if end < 0 or len(body) != end + 1 + nbytes:
            raise malformed()
        name, value = body[SETXATTR_IN.size : end], body[end + 1 :]
        self._volume.setxattr(request.ino, name, value, flags, request.caller())
        return b""

    def _removexattr(self, request: Request) -> bytes:
        self._volume.removexattr(request.ino, request.name())
        return b""


def _fitting(value: bytes, room: int) -> bytes:
    """The answer to who has that much room; 0: the length is asked for."""
    if room == 0:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > room:
        raise FsError(errno.ERANGE)
    return value
