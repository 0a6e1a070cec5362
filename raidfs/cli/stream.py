"""`raidfs-ctl snapshot send` and `receive`: a snapshot as bytes on standard output and input.

The bytes pass through a socket between this command and the volume's service (daemon/streams.py),
and a thread here that does nothing but copy.

 1. Standard output gets the stream and nothing else; all that is said goes to standard error, but
    for --token, --abort and what `receive` reports.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from raidfs import unix_socket
from raidfs.cli import target
from raidfs.cli.output import Size, confirm, print_json, size_text
from raidfs.cli.service import ask
from raidfs.cli.target import Mounted, Unmounted
from raidfs.daemon.streams import (
    SnapshotGiveUpRequest,
    SnapshotReceiveRequest,
    SnapshotSendRequest,
    SnapshotTokenRequest,
    TokenTold,
)
from raidfs.errors import RaidfsError, UsageError
from raidfs.fs.receive import Received
from raidfs.fs.send import Sent

PIECE_BYTES = 1 << 20


class _Passage:
    """One stream between a descriptor of ours and whoever connects to the socket at `path`."""

    def __init__(self, directory: str, fd: int, *, outwards: bool) -> None:
        self.path = os.path.join(directory, "stream")
        self.error: OSError | None = None
        self._fd = fd
        self._outwards = outwards
        self._listener = unix_socket.listen(Path(self.path), 1)
        self._others: tuple[int, ...] = ()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def allow(self, uid: int) -> None:
        """Who connects, and this user; nobody else."""
        if uid != os.geteuid():
            self._others = (uid,)
            os.chown(os.path.dirname(self.path), uid, -1)
            os.chown(self.path, uid, -1)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """After the answer: whoever connected has gone, or nobody will any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._outwards:
            self._thread.join()

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            if not self._may(connection):
                return
            try:
                if self._outwards:
                    self._out(connection)
                else:
                    self._in(connection)
            except OSError as error:
                self.error = error

    def _may(self, connection: socket.socket) -> bool:
        return unix_socket.stranger(connection, *self._others) is None

    def _out(self, connection: socket.socket) -> None:
        while data := connection.recv(PIECE_BYTES):
            while data:
                data = data[os.write(self._fd, data) :]

    def _in(self, connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it will say why
            while data := os.read(self._fd, PIECE_BYTES):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)


@contextmanager
def _passage(volume: Mounted | Unmounted, fd: int, *, outwards: bool) -> Iterator[_Passage]:
    directory = tempfile.mkdtemp(prefix="raidfs-")
    try:
        passage = _Passage(directory, fd, outwards=outwards)
        if isinstance(volume, Mounted):
            passage.allow(volume.socket.stat().st_uid)
        passage.begin()
        try:
            yield passage
        finally:
            passage.end()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Report as JSON, with a version and plain integers."
)


def _source(words: Sequence[str], token: str) -> tuple[Mounted | Unmounted, str, str]:
    """(the volume, the snapshot's name, the volume as it was written)"""
    if not token:
        named = target.snapshots(words)
        return named.volume, named.names[0], named.where
    where, name = target.split(words[0])
    return target.find(where), name or "".join(words[1:2]), where


@click.command("send")
@click.argument("words", metavar="MOUNTPOINT NAME", nargs=-1, required=True)
@click.option("-i", "--base", default="", metavar="BASE", help="Only what changed since BASE.")
@click.option("--resume", "token", default="", metavar="TOKEN", help="Go on where it ended.")
@click.option("--page-bytes", type=Size(), default=0, help="Those of the receiver's volume.")
@click.option("-v", "--verbose", is_flag=True, help="Say at the end how much it was.")
def send_command(
    words: tuple[str, ...], base: str, token: str, page_bytes: int, verbose: bool
) -> int:
    """Write a snapshot to standard output, for `snapshot receive`.

    The whole snapshot, or with -i what is different from an older one that the receiver has. The
    same snapshot gives the same bytes, so a transfer that was interrupted goes on with the token
    that `snapshot receive --token` prints. Compress and encrypt on the way as you like.

    \b
    Examples:
      raidfs-ctl snapshot send /mnt/tank@monday | ssh host raidfs-ctl snapshot receive /mnt/copy
      raidfs-ctl snapshot send /mnt/tank@tuesday -i monday > tuesday.raidfs
    """
    if os.isatty(1):
        raise UsageError("a stream is nothing for a terminal; pipe it, or write it to a file")
    volume, name, where = _source(words, token)
    older = target.split(base)[1] or base if base and {"@", "/"} & set(base) else base
    with _passage(volume, 1, outwards=True) as passage:
        request = SnapshotSendRequest(
            socket=passage.path,
            name=target.check_text(name),
            base=target.check_text(older),
            page_bytes=page_bytes,
            token=token,
        )
        try:
            told = ask(volume, request, Sent)
        except RaidfsError:
            if passage.error is None:
                raise
    if passage.error is not None:
        raise RaidfsError(
            f"the stream could not be written: {passage.error.strerror}", passage.error.errno
        )
    if verbose:
        since = f" since {told.base}" if told.base else ""
        click.echo(f"sent {where}@{told.snapshot}{since}: {size_text(told.bytes)}", err=True)
    return 0


@click.command("receive")
@click.argument("where", metavar="MOUNTPOINT-OR-MEMBER")
@click.option("--name", default="", help="Another name for the snapshot than it was sent with.")
@click.option("-F", "--force", is_flag=True, help="Let it take the place of what is there.")
@click.option("--token", "ask_token", is_flag=True, help="Only tell how to go on after a break.")
@click.option("--abort", is_flag=True, help="Only drop what an interrupted transfer left.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@json_option
def receive_command(
    where: str, name: str, force: bool, ask_token: bool, abort: bool, yes: bool, as_json: bool
) -> int:
    """Take a snapshot from standard input, as `snapshot send` writes it.

    A full stream goes into an empty volume; one with only the changes into a volume that has its
    base and was not changed since. Then the volume is as the snapshot was, and has it as a
    snapshot. All of the stream is verified before anything of it is seen; a damaged one changes
    nothing. With --force what is there gives way; snapshots stay in any case.

    \b
    After a break:
      token=$(raidfs-ctl snapshot receive --token /mnt/copy)
      raidfs-ctl snapshot send --resume $token /mnt/tank | raidfs-ctl snapshot receive /mnt/copy
    """
    volume = target.find(where)
    if ask_token:
        return _tell_token(volume, where, as_json)
    if abort:
        return _abort(volume, where, yes, as_json)
    if os.isatty(0):
        raise UsageError("a stream comes from a pipe or a file, not from a terminal")
    with _passage(volume, 0, outwards=False) as passage:
        request = SnapshotReceiveRequest(
            socket=passage.path, name=target.check_text(name), force=force
        )
        told = ask(volume, request, Received)
    if as_json:
        print_json(told)
    else:
        click.echo(f"received {told.snapshot}: {told.inodes} inodes, {size_text(told.bytes)}")
    return 0


def _tell_token(volume: Mounted | Unmounted, where: str, as_json: bool) -> int:
    told = ask(volume, SnapshotTokenRequest(), TokenTold)
    if as_json:
        print_json(told)
        return 0
    if not told.token and told.bytes:
        raise UsageError(
            f"what is kept on {where} is damaged: drop it with --abort, and start anew"
        )
    if not told.token:
        raise UsageError(f"no interrupted transfer is kept on {where}", errno.ENOENT)
    click.echo(told.token)
    return 0


def _abort(volume: Mounted | Unmounted, where: str, yes: bool, as_json: bool) -> int:
    told = ask(volume, SnapshotTokenRequest(), TokenTold)
    if told.token:
        what = f"{size_text(told.bytes)} received of {told.snapshot!r} are dropped"
        confirm(f"{what}. Go on?", yes)
    dropped = ask(volume, SnapshotGiveUpRequest(), int)
    if as_json:
        print_json({"bytes": dropped})
    else:
        click.echo(f"dropped {size_text(dropped)}" if dropped else f"nothing was kept on {where}")
    return 0
