"""What users read and what their shells offer: help texts, manual pages, completion."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import pytest
from mounting import BIN, run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import manual  # noqa: E402

from raidfs.cli.completion import PROGRAMS, SHELLS, command_of, variable  # noqa: E402
from raidfs.cli.words import meanings, usage_words  # noqa: E402


def all_commands():
    """Every program, group and verb, as a context of click."""
    waiting = [click.Context(command_of(name), info_name=name) for name in PROGRAMS]
    while waiting:
        context = waiting.pop(0)
        yield context
        waiting += manual.subcommands(context)


COMMANDS = list(all_commands())
NAMES = [context.command_path for context in COMMANDS]


def without_roff(text):
    """A page as plain words."""
    for code, letter in ((r"\e", "\\"), (r"\-", "-"), (r"\(ga", "`"), (r"\(dq", '"'),
                         (r"\(aq", "'"), (r"\(ha", "^"), (r"\(ti", "~"), (r"\&", ""),
                         (r"\fB", ""), (r"\fR", "")):  # fmt: skip
        text = text.replace(code, letter)
    return " ".join(text.split())


@pytest.fixture(scope="module")
def pages():
    return {page.name: without_roff(page.text) for page in manual.pages()}


# -- the manual -----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", COMMANDS, ids=NAMES)
def test_everything_is_explained_and_in_the_manual(context, pages):
    command = context.command
    group = context if manual.subcommands(context) else context.parent or context
    page = pages[group.command_path.replace(" ", "-")]
    assert command.help, "a command needs a docstring"
    assert manual.first_sentence(command) in page
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            if parameter.hidden:
                continue
            assert parameter.help, f"{parameter.opts}: help is missing"
            for name in parameter.opts:
                assert name in page
            assert " ".join(parameter.help.split()) in page
            continue
        words = usage_words(parameter)
        assert words, f"{parameter.name}: no words in its usage"
        for name, word in [pair for each, _ in words for pair in meanings(context, each)]:
            meant = getattr(parameter, "help", None) or word
            assert meant, f"{name} is not in the table of raidfs/cli/words.py, nor has help="
            assert f"{name} {meant if isinstance(meant, str) else meant.help}" in page


@pytest.mark.parametrize("context", COMMANDS, ids=NAMES)
def test_every_help_has_an_example(context):
    """The command itself, with something after it."""
    name = "raidfs-ctl create" if context.command_path == "mkfs.raidfs" else context.command_path
    text = context.command.help
    assert re.search(rf"^ +(\S.* )?{re.escape(name)} \S", text, re.MULTILINE), text


def test_pages_are_as_man_wants_them(tmp_path):
    """Every warning of groff counts, and every line of a verbatim part is there as it was."""
    run(sys.executable, ROOT / "tools" / "manual.py", tmp_path)
    written = sorted(path.name for path in (tmp_path / "man8").iterdir())
    assert written == sorted(f"{page.name}.8" for page in manual.pages())
    assert {"raidfs.8", "raidfs-ctl.8", "mkfs.raidfs.8", "fsck.raidfs.8", "mount.raidfs.8"} <= set(
        written
    )
    environment = {**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    for name in written:
        words = ["man", "-M", tmp_path, "--warnings=w", "-E", "UTF-8", "-P", "cat"]
        done = run(*words, name.removesuffix(".8"), env=environment)
        assert not done.stderr, f"{name}: {done.stderr}"
        assert "NAME" in done.stdout and "SEE ALSO" in done.stdout
    text = run(*words, "raidfs-ctl", env=environment).stdout
    assert "  raidfs-ctl create --level 6 --name tank --dry-run /srv/disk*\n" in text
    assert run(*words, "mount.raidfs", env=environment).stdout.startswith("RAIDFS(8)")


def test_what_has_a_meaning_in_roff_is_escaped():
    assert manual.escaped(".so x\\n -y ~") == "\\&.so x\\en \\-y \\(ti"
    made = manual.described("One.\n\n\b\nTitle:\n  .x 'y'\n    z\nEnd.")
    assert made == [".PP", "One.", ".PP", "Title:", *manual.verbatim([".x 'y'", "  z"]),
                    ".PP", "End."]  # fmt: skip


# -- completion -----------------------------------------------------------------------------------

PATIENT = {"RAIDFS_COMPLETION_SECONDS": "60"}


def offered(shop, line, shell="bash", limit=PATIENT, expect_in_time=None):
    """(type, value) of what a shell is offered at the end of a line."""
    words = line.split() + ([""] if line.endswith(" ") else [])
    environment = {**shop.env, **limit, variable(words[0]): f"{shell}_complete"}
    environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        environment["COMP_CWORD"] = words[-1]
    begun = time.monotonic()
    done = run(words[0], env=environment)
    assert not done.stderr
    assert expect_in_time is None or time.monotonic() - begun < expect_in_time
    if shell == "zsh":
        lines = done.stdout.splitlines()
        return list(zip(lines[::3], lines[1::3], strict=False))
    return [tuple(line.split(",", 1)) for line in done.stdout.splitlines()]


def plain(shop, line, shell="bash"):
    return {
        value.partition("\t")[0] for kind, value in offered(shop, line, shell) if kind == "plain"
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A mounted volume with snapshots, in a group."""
    from mounting import Workshop

    with Workshop(tmp_path_factory.mktemp("completion")) as made:
        volume = made.volume(3, mounted=True, name="tank")
        for name in ("monday", "morning", "two words"):
            made.run("raidfs-ctl", "snapshot", "create", volume.mountpoint, name)
        made.run("raidfs-ctl", "group", "init", "shop", volume.mountpoint)
        made.run("raidfs-ctl", "group", "snapshot", "shop", "together")
        yield made
        volume.unmount()
        volume.check()


@pytest.mark.slow
def test_verbs_options_and_files(shop):
    assert {"create", "snapshot", "completion"} <= plain(shop, "raidfs-ctl ")
    assert plain(shop, "raidfs-ctl snapshot re") == {"rename", "release", "receive"}
    assert "--dry-run" in plain(shop, "raidfs-ctl create --d")
    assert offered(shop, "raidfs-ctl create /sr") == [("file", "/sr")]
    assert offered(shop, "mkfs.raidfs /sr") == [("file", "/sr")]
    assert plain(shop, "raidfs -o ro,deg") == {"ro,degraded"}
    assert plain(shop, "raidfs-ctl completion z") == {"zsh"}
    assert offered(shop, "raidfs d0 ") == [("dir", "")]
    for shell in ("zsh", "fish"):
        assert {"snapshot", "group"} <= plain(shop, "raidfs-ctl ", shell)


@pytest.mark.slow
def test_what_is_mounted_is_offered(shop):
    (volume,) = shop.volumes
    here = str(volume.mountpoint)
    assert plain(shop, "raidfs-ctl status ") == {here}
    assert plain(shop, f"raidfs-ctl umount {here[:-1]}") == {here}
    assert plain(shop, "raidfs-ctl sync ta") == {"tank"}
    assert plain(shop, f"raidfs-ctl group init g {here[:-2]}") == {here}
    for line in (f"snapshot show {here} mo", "snapshot diff tank mo"):
        assert plain(shop, f"raidfs-ctl {line}") == {"monday", "morning"}
    # Bash would take a name with a blank apart; the other shells quote it.
    assert "two words" not in plain(shop, f"raidfs-ctl snapshot delete {here} ")
    assert "two words" in plain(shop, f"raidfs-ctl snapshot delete {here} ", "zsh")
    assert plain(shop, f"raidfs-ctl snapshot delete {here} monday mo") == {"morning"}
    assert plain(shop, f"raidfs-ctl snapshot send {here} morning --base mo") == {"monday"}
    assert plain(shop, f"raidfs-ctl snapshot show {here}@mo", "zsh") == {
        f"{here}@monday", f"{here}@morning"
    }  # fmt: skip
    assert plain(shop, f"raidfs-ctl snapshot create {here} mo") == set()
    assert plain(shop, f"raidfs-ctl member fail {here} ") == {"0", "1", "2"}
    assert plain(shop, f"raidfs-ctl member fail {here} {volume.members[1]}") == {
        str(volume.members[1])
    }
    assert plain(shop, "raidfs-ctl group show ") == {"shop"}
    assert plain(shop, "raidfs-ctl group show shop to") == {"together"}


@pytest.mark.slow
def test_jobs_are_offered(shop):
    (volume,) = shop.volumes
    here = volume.mountpoint
    assert plain(shop, f"raidfs-ctl wait {here} ") == set()
    (new,) = shop.directories(1, prefix="new")
    shop.run("raidfs-ctl", "member", "add", here, new)
    here.joinpath("file").write_bytes(os.urandom(1 << 20))
    shop.run("raidfs-ctl", "job", "pause", here, "rebuild")
    shop.run("raidfs-ctl", "member", "evacuate", here, "0")
    shop.run("raidfs-ctl", "scrub", "start", here)
    shop.run("raidfs-ctl", "wait", here, "scrub")
    for verb in ("wait", "job pause", "job resume", "job limit", "job list"):
        assert plain(shop, f"raidfs-ctl {verb} {here} ") == {"evacuate:0", "scrub"}, verb
    assert plain(shop, f"raidfs-ctl wait {here} ev") == {"evacuate:0"}
    assert plain(shop, f"raidfs-ctl job limit {here} scrub ") == set()  # a rate comes next
    shop.run("raidfs-ctl", "job", "resume", here)
    shop.run("raidfs-ctl", "member", "evacuate", "--cancel", here, "0")
    shop.run("raidfs-ctl", "member", "remove", "--yes", "--wait", here, new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "raidfs-ctl job pause / ",
        "raidfs-ctl snapshot show /nonexistent ",
        "raidfs-ctl group show x ",
        "raidfs-ctl frobnicate x",
        "raidfs-ctl member fail / ",
        "raidfs-ctl create --frob=",
        "raidfs-ctl snapshot show 'x ",
    ],
)
def test_nothing_to_offer_is_no_error(shop, line):
    assert [offer for offer in offered(shop, line) if offer[0] == "plain"] == []


@pytest.mark.slow
def test_a_daemon_that_hangs_delays_nobody(shop):
    """One second is the limit; the machine may be busy, so here it is some."""
    (volume,) = shop.volumes
    os.kill(volume.pid, signal.SIGSTOP)
    try:
        for line in (f"snapshot show {volume.mountpoint} ", "group show "):
            found = offered(shop, f"raidfs-ctl {line}", limit={}, expect_in_time=20.0)
            assert found == []
        assert str(volume.mountpoint) in plain(shop, "raidfs-ctl status ")  # that needs no answer
    finally:
        os.kill(volume.pid, signal.SIGCONT)


@pytest.mark.slow
def test_runtime_directories_that_are_not_as_they_should_be(shop, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "x.json").write_text("rubbish")
    for place in (tmp_path / "file", tmp_path, tmp_path / "missing"):
        limit = {**PATIENT, "RAIDFS_RUNTIME_DIR": str(place)}
        found = offered(shop, "raidfs-ctl status ", limit=limit)
        assert [offer for offer in found if offer[0] == "plain"] == []


@pytest.mark.slow
def test_scripts_are_ones_their_shells_understand(tmp_path):
    checks = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}
    for shell in SHELLS:
        for program in PROGRAMS if shell == "bash" else ["raidfs-ctl"]:
            script = run("raidfs-ctl", "completion", shell, program).stdout
            assert variable(program) in script and program in script
            path = tmp_path / f"{program}.{shell}"
            path.write_text(script)
            if run("sh", "-c", f"command -v {shell}", expect=None).returncode == 0:
                run(*checks[shell], path)
    assert "Usage" in run("raidfs-ctl", "completion", "tcsh", expect=2).stderr


class Terminal:
    """An interactive bash that somebody types into."""

    def __init__(self, environment):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 500, 0, 0))
        words = ["bash", "--norc", "--noprofile", "-i"]
        self._child = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def type(self, text, until, timeout_s=60.0):
        """Types, and reads until a regular expression is on the screen."""
        self.seen = ""
        os.write(self._ours, text.encode())
        deadline = time.monotonic() + timeout_s
        while not re.search(until, self.seen):
            left = deadline - time.monotonic()
            assert left > 0, f"{until!r} is not in {self.seen!r}"
            if select.select([self._ours], [], [], left)[0]:
                self.seen += os.read(self._ours, 4096).decode(errors="replace")

    def close(self):
        self._child.kill()
        self._child.wait()
        os.close(self._ours)


@pytest.mark.slow
def test_at_a_real_bash(shop):
    """What comes with the tabulator key, also where bash takes words apart."""
    (volume,) = shop.volumes
    path = f"{BIN}:{os.environ['PATH']}"
    terminal = Terminal({**shop.env, **PATIENT, "PATH": path, "PS1": "> ", "TERM": "dumb"})
    try:
        terminal.type('eval "$(raidfs-ctl completion bash)"; echo rea""dy\n', "ready\r\n> ")
        here = volume.mountpoint
        for typed in (f"{here} mond", "tank@mond"):
            terminal.type(f"raidfs-ctl snapshot show {typed}\t", "monday $")
            terminal.type("\n", r"snapshot: tank@monday\s[^>]*> $")  # so that was the line
        terminal.type("raidfs-ctl snaps\t", "snapshot $")
    finally:
        terminal.close()
