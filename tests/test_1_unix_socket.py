"""Listening for one user only, and telling who is at the other end."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from raidfs import unix_socket

CONNECT = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
end = socket.socket(socket.AF_UNIX)
try:
    end.connect(sys.argv[1])
    print(end.recv(1))
except OSError as error:
    print(type(error).__name__)
"""


def connected(path):
    with unix_socket.short(path) as name:
        end = socket.socket(socket.AF_UNIX)
        end.connect(name)
    return end


def test_the_file_is_its_owners_alone_from_the_first_moment(tmp_path, monkeypatch):
    """Also with a umask that takes nothing away: looked at between bind and listen."""
    path, seen = tmp_path / "socket", []
    before = os.umask(0)
    try:
        listening = socket.socket.listen

        def watched(self, backlog):
            seen.append(stat.S_IMODE(path.stat().st_mode))
            listening(self, backlog)

        monkeypatch.setattr(socket.socket, "listen", watched)
        unix_socket.listen(path).close()
    finally:
        os.umask(before)
    assert seen == [0o600] and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_long_paths_and_what_was_there(tmp_path):
    path = tmp_path / ("x" * 150) / "socket"
    path.parent.mkdir()
    path.write_text("left by another life")
    with unix_socket.listen(path) as listener:
        one = connected(path)
        other, _ = listener.accept()
        with one, other:
            one.send(b"x")
            assert other.recv(1) == b"x"
            for end in (one, other):
                assert unix_socket.peer_uid(end) == os.geteuid()
                assert unix_socket.stranger(end) is None
    assert not [name for name in os.listdir("/proc/self/fd") if _leads_to(name, path.parent)]


def _leads_to(name, directory):
    try:
        return os.readlink(f"/proc/self/fd/{name}") == str(directory)
    except OSError:
        return False


def test_what_can_not_be_listened_at(tmp_path):
    with pytest.raises(FileNotFoundError):
        unix_socket.listen(tmp_path / "nosuch" / "socket")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out_twice(tmp_path):
    """By the file's permissions, and, should these be wider, by who it is."""
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == os.geteuid() and above.stat().st_mode & 0o001 == 0:
            above.chmod(0o711)
    path = tmp_path / "socket"
    found = []
    with unix_socket.listen(path) as listener:

        def accept():
            end, _ = listener.accept()
            with end:
                told = unix_socket.stranger(end), unix_socket.stranger(end, 65534)
                found.append(told)

        words = [sys.executable, "-c", CONNECT, str(path)]
        assert subprocess.check_output(words) == b"PermissionError\n"
        path.chmod(0o666)
        thread = threading.Thread(target=accept)
        thread.start()
        assert subprocess.check_output(words) == b"b''\n"
        thread.join()
    assert found == [(65534, None)]
