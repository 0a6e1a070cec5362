"""Commands in forks of one process that has loaded all of them: what a command does is the same,
but the half second is saved that Python takes to load. Many tests start daemons again and again.

Workshop.run (mounting.py) goes this way, unless the test is marked `processes`.

The process ends with the one that has started it.
"""

import array
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import import_module, reload
from pathlib import Path

COMMANDS = {"raidfs": "raidfs.cli.mount", "raidfs-ctl": "raidfs.cli.main"}
MESSAGE_BYTES = 200_000


_control: list[socket.socket] = []  # the socket to the process, once it was started


def can(words, options):
    """Whether `done` runs such a command."""
    return Path(words[0]).name in COMMANDS and options.keys() <= {"expect", "timeout_s"}


def done(words, env, timeout_s):
    """What came of a command, as subprocess.run tells it."""
    if not _control:
        _control.append(_start())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        fds = array.array("i", [theirs.fileno(), out.fileno(), err.fileno()])
        message = json.dumps([words, env]).encode()
        _control[0].sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        theirs.close()
        pid = int(ours.recv(16))
        ours.settimeout(timeout_s)
        try:
            told = ours.recv(16)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, timeout_s) from None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(words, int(told or -9), *texts)


def _start():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
    words = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(control):
    """Until whoever started this process is gone."""
    for name in (*COMMANDS.values(), "raidfs.daemon.main"):
        import_module(name)
    for module, _ in import_module("raidfs.cli.main").VERBS.values():
        import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 3)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _command(*json.loads(message), fds)
        for fd in fds:
            os.close(fd)


def _command(words, env, fds):
    told, out, err = fds
    os.write(told, b"%d" % os.getpid())
    for fd, number in ((out, 1), (err, 2)):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(env)
    reload(import_module("raidfs.daemon.fault"))  # which looks into the environment
    sys.argv = words
    code = 1
    try:
        import_module(COMMANDS[Path(words[0]).name]).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(told, str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
