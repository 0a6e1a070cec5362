"""Telling somebody of an event: a program, a mail, scripts in a directory.

1. No shell takes part. What is run gets a small environment of its own, no input, and LIMIT_S;
   what takes longer is ended with all that it started. At most AT_ONCE run at once.
2. A script is run only if nobody but root, or the user who runs this, could have written it or
   put it there. One that isn't is named, once, with the reason.
3. Nothing that goes wrong here ends the monitor or keeps an event from the others who are told.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from subprocess import DEVNULL

import trio

from raidfs.daemon.events import EventTold
from raidfs.errors import UsageError
from raidfs.store.events import KINDS, family, kind_of

HOOKS = Path("/etc/raidfs/hooks.d")
SENDMAIL = Path("/usr/sbin/sendmail")
AT_ONCE = 16
LIMIT_S = 30.0
GRACE_S = 2.0  # from SIGTERM to SIGKILL
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INHERITED = ("HOME", "LANG", "LC_ALL", "TZ")
ALL = "all"
_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~][\w.!#$%&'*+/=?^`{|}~-]*(@[\w.-]+)?", re.ASCII)
_SCRIPT = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_LEFTOVERS = (".dpkg-old", ".dpkg-new", ".dpkg-dist", ".rpmsave", ".rpmnew", ".rpmorig", ".bak")


@dataclass(frozen=True, slots=True)
class Alert:
    """An event and where it was. `report` is called for a mail: more text for people."""

    event: EventTold
    volume_id: str
    mountpoint: str
    report: Callable[[], str] = str


def check_address(address: str) -> str:
    """UsageError unless it can be given to sendmail as it is."""
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"{address!r} is no address for mail; write for example root@example.org")
    return address


def check_program(path: Path) -> Path:
    """UsageError unless it can be run."""
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(f"{path} is no program that can be run; name one by its path")
    return path.absolute()


def environment_of(alert: Alert) -> dict[str, str]:
    """What programs and scripts are told, as ZED tells its own. Details are RAIDFS_DETAIL_..."""
    event = alert.event
    when = datetime.datetime.fromtimestamp(event.time_ns / 1e9).astimezone()
    told = {
        "EVENT": event.kind,
        "SEVERITY": event.severity,
        "VOLUME": event.volume,
        "VOLUME_ID": alert.volume_id,
        "MOUNTPOINT": alert.mountpoint,
        "MEMBER": event.path,
        "MEMBER_ID": str(event.member) if event.member >= 0 else "",
        "TEXT": event.text,
        "TIME": when.isoformat(timespec="seconds"),
        "TIME_NS": str(event.time_ns),
        "NUMBER": str(event.number),
    }
    for name, value in event.details.items():
        if re.fullmatch(r"\w+", name, re.ASCII):
            one = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            told[f"DETAIL_{name.upper()}"] = one
    told = {f"RAIDFS_{name}": value.replace("\0", " ") for name, value in told.items()}
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {"PATH": PATH, **kept, **told}


def mail_of(alert: Alert, address: str) -> bytes:
    """The whole message. Its headers can't be added to by what is in the event."""
    event = alert.event
    message = EmailMessage()
    message["To"] = address
    host = socket.gethostname()
    message["Subject"] = " ".join(f"{event.kind} event on {event.volume}:{host}".split())
    message["Auto-Submitted"] = "auto-generated"
    environment = environment_of(alert)
    lines = [
        f"This is a message of raidfs-ctl monitor on {host}.",
        "",
        f"A {event.kind} event has happened to volume {event.volume}"
        f" ({alert.mountpoint or 'not mounted'}), at {environment['RAIDFS_TIME']}.",
        kind_of(event.kind).meaning,
        "",
        f"{event.text}",
    ]
    if event.member >= 0:
        lines.append(f"It concerns member {event.member}, {event.path or 'which has left'}.")
    lines += ["", alert.report()]
    message.set_content("\n".join(lines).encode(errors="replace").decode())
    return message.as_bytes()


# -- scripts ---------------------------------------------------------------------------------------


def _trusted(found: os.stat_result) -> str:
    """Why not, or ""."""
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {found.st_uid}; run chown root on it"
    if found.st_mode & 0o022:
        return "others than its owner may write to it; run chmod go-w on it"
    return ""


def _refusal(path: Path) -> str:
    """Why a script isn't run, or ""."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return "it is no ordinary file; links aren't followed: copy it there"
    if why := _trusted(found):
        return why
    if not found.st_mode & 0o111:
        return "it is not executable; run chmod +x on it, or take it away"
    prefix = re.split(r"[-.]", path.name)[0]
    if prefix != ALL and family(prefix) not in KINDS:
        return f"its name begins with {prefix!r}, which is no event, and not all"
    return ""


class Hooks:
    """The scripts of one directory, looked at anew for each event."""

    def __init__(self, directory: Path, complain: Callable[[str], None]) -> None:
        self.directory = directory
        self._complain = complain
        self._complained: set[str] = set()

    def of(self, kind: str) -> list[Path]:
        """What is to be run for such an event, in order of the names: those that begin with its
        name, or with "all", then "-" or "."."""
        prefixes = {kind, family(kind), ALL}
        return [path for path in self.scripts() if re.split(r"[-.]", path.name)[0] in prefixes]

    def scripts(self) -> list[Path]:
        """All that may be run; complains of the others, once."""
        try:
            found = self.directory.stat()
            names = sorted(os.listdir(self.directory))
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or self.directory != HOOKS:
                self._refuse(self.directory, os.strerror(error.errno or 0))
            return []
        if why := _trusted(found):
            self._refuse(self.directory, f"no script in it is run: {why}")
            return []
        return list(self._believed(names))

    def _believed(self, names: Sequence[str]) -> Iterator[Path]:
        for name in names:
            if not _SCRIPT.fullmatch(name) or name.endswith(_LEFTOVERS) or name == "README":
                continue
            path = self.directory / name
            try:
                why = _refusal(path)
            except OSError as error:
                why = os.strerror(error.errno or 0)
            if why:
                self._refuse(path, f"not run: {why}")
            else:
                yield path

    def _refuse(self, path: Path, why: str) -> None:
        text = f"{path}: {why}"
        if text not in self._complained:
            self._complained.add(text)
            self._complain(text)


# -- running ---------------------------------------------------------------------------------------


class Alerts:
    """Whoever is to be told of events. `complain` is given a sentence for people."""

    def __init__(
        self,
        *,
        program: Path | None,
        mail: str | None,
        hooks: Path,
        complain: Callable[[str], None],
        sendmail: Path = SENDMAIL,
        limit_s: float = LIMIT_S,
    ) -> None:
        """UsageError for what can't work."""
        self._program = check_program(program) if program is not None else None
        self._mail = check_address(mail) if mail is not None else None
        self._sendmail = sendmail
        if mail is not None and not os.access(sendmail, os.X_OK):
            raise UsageError(f"mail can't be sent: there is no {sendmail}; install a mail server")
        self.hooks = Hooks(hooks, complain)
        self._complain = complain
        self._limit_s = limit_s
        self._places = trio.CapacityLimiter(AT_ONCE)

    async def tell(self, alert: Alert) -> None:
        """All of them; returns when they have ended."""
        event = alert.event
        environment = environment_of(alert)
        async with trio.open_nursery() as nursery:
            if self._program is not None:
                words = [str(self._program), event.kind, event.volume]
                if event.member >= 0:
                    words.append(event.path or str(event.member))
                nursery.start_soon(self._run, words, environment)
            for script in self.hooks.of(event.kind):
                nursery.start_soon(self._run, [str(script)], environment)
            if self._mail is not None and kind_of(event.kind).mail:
                nursery.start_soon(self._send, alert, self._mail, environment)

    async def _send(self, alert: Alert, address: str, environment: Mapping[str, str]) -> None:
        message = await trio.to_thread.run_sync(mail_of, alert, address)
        await self._run([str(self._sendmail), "-oi", address], environment, message)

    async def _run(
        self, words: list[str], environment: Mapping[str, str], message: bytes | None = None
    ) -> None:
        """Promises 1 and 3."""
        words = [word.replace("\0", " ") for word in words]
        async with self._places:
            code: int | None = None
            try:
                with trio.move_on_after(self._limit_s) as limit:
                    ended = await trio.run_process(
                        words,
                        stdin=DEVNULL if message is None else message,
                        env=environment,
                        cwd="/",
                        check=False,
                        start_new_session=True,
                        deliver_cancel=_end_all,
                    )
                    code = ended.returncode
            except OSError as error:
                self._complain(f"{words[0]} can't be run: {error.strerror}")
                return
        if limit.cancelled_caught:
            self._complain(f"{words[0]} was ended: it took longer than {self._limit_s:g} s")
        elif code:
            self._complain(f"{words[0]} has ended with {code}")


async def _end_all(process: trio.Process) -> None:
    """The process and what it has started, politely at first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        await trio.sleep(GRACE_S)
