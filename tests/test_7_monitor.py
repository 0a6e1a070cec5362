"""The monitor: each event told once, to programs, mail and scripts that nobody else can change; and
what is refused of them.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from email import message_from_bytes
from email.policy import default

import click.testing
import pytest
import trio
from mounting import BIN, wait_until

from raidfs.cli import alerts as module
from raidfs.cli import monitor
from raidfs.cli.alerts import (
    AT_ONCE,
    Alert,
    Alerts,
    Hooks,
    check_address,
    environment_of,
    mail_of,
)
from raidfs.cli.events import event_line, parse_time
from raidfs.cli.monitor import Memory, Seen
from raidfs.daemon.events import EventTold
from raidfs.daemon.registry import Entry
from raidfs.errors import UsageError


def event(kind="Fail", member=2, **changes):
    values = {
        "number": 7,
        "time_ns": 1_700_000_000 * 10**9,
        "kind": kind,
        "severity": "alert",
        "volume": "tank",
        "member": member,
        "path": "/srv/disk2" if member >= 0 else "",
        "text": "write failed",
        "details": {},
    }
    return EventTold(**{**values, **changes})


def alert(*words, **changes):
    return Alert(event(*words, **changes), "ab" * 16, "/mnt/tank", lambda: "  volume: tank")


def script(path, text, mode=0o755):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def tell(*told, timeout_s=60, **options):
    """Tells these alerts, one by one; returns the complaints."""
    complaints = []
    options = {"program": None, "mail": None, "hooks": module.HOOKS, **options}

    async def run():
        alerts = Alerts(complain=complaints.append, **options)
        with trio.fail_after(timeout_s):
            for each in told:
                await alerts.tell(each)

    trio.run(run)
    return complaints


# -- programs and scripts -------------------------------------------------------------------------


def test_a_program_is_told_as_by_mdadm_and_more_in_its_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "token")
    out = tmp_path / "out"
    program = script(tmp_path / "a program", f'printf "%s|" $# "$@" >> {out}; env >> {out}')
    odd = "$(touch x); `reboot` 'quoted'"
    details = {"missing": [1, 2], "cells": 5, "odd name": 1, "ratio": 0.5}
    told = event(text=odd, details=details)
    complaints = tell(Alert(told, "ab" * 16, "/mnt/tank"), alert("Mounted", -1), program=program)
    assert not complaints
    text = out.read_text()
    assert text.startswith("3|Fail|tank|/srv/disk2|") and "2|Mounted|tank|" in text
    assert f"RAIDFS_TEXT={odd}\n" in text and "RAIDFS_MEMBER_ID=2\n" in text
    for line in ("EVENT=Fail", "SEVERITY=alert", "VOLUME=tank", "MEMBER=/srv/disk2", "NUMBER=7",
                 "MOUNTPOINT=/mnt/tank", "DETAIL_MISSING=1 2", "DETAIL_CELLS=5"):  # fmt: skip
        assert f"RAIDFS_{line}\n" in text, line
    assert "SECRET" not in text and "odd name" not in text and "PWD=/\n" in text
    assert os.listdir(tmp_path).count("x") == 0


def test_a_program_that_can_not_be_run_is_refused_at_once(tmp_path):
    for path in (tmp_path / "none", tmp_path, script(tmp_path / "plain", "", 0o644)):
        with pytest.raises(UsageError, match="no program"):
            tell(program=path)


def test_what_goes_wrong_is_said_and_keeps_nobody_from_being_told(tmp_path):
    out = tmp_path / "out"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    script(hooks / "Fail-1.sh", "exit 3")
    (hooks / "Fail-2.sh").write_text("#!/nonexistent/shell\n")
    (hooks / "Fail-2.sh").chmod(0o755)
    script(hooks / "Fail-3.sh", "kill -9 $$")
    script(hooks / "Fail-4.sh", f"echo told >> {out}")
    complaints = tell(alert(), hooks=hooks)
    assert out.read_text() == "told\n" and len(complaints) == 3
    text = "\n".join(sorted(complaints))
    assert "Fail-1.sh has ended with 3" in text and "Fail-2.sh can't be run" in text
    assert "Fail-3.sh has ended with -9" in text


def test_what_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 0.2)
    pids = tmp_path / "pids"
    stubborn = script(
        tmp_path / "stubborn", f"trap '' TERM\nsleep 1000 & echo $! $$ > {pids}\nwait\nsleep 1000"
    )
    begun = time.monotonic()
    (complaint,) = tell(alert(), program=stubborn, limit_s=0.5)
    assert "longer than 0.5 s" in complaint and time.monotonic() - begun < 50
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not alive(pid), f"process {pid} has ended")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_at_most_so_many_run_at_once(tmp_path):
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    running = tmp_path / "running"
    running.mkdir()
    body = (
        f"mkdir {running}/$$; ls {running} | wc -l >> {tmp_path}/seen;"
        f" sleep 0.2; rmdir {running}/$$"
    )
    for number in range(3 * AT_ONCE):
        script(hooks / f"all-{number}.sh", body)
    assert not tell(alert(), hooks=hooks)
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert len(seen) == 3 * AT_ONCE and 1 < max(seen) <= AT_ONCE


def test_scripts_are_chosen_by_the_beginning_of_their_names(tmp_path):
    names = ["Fail-a.sh", "Fail.sh", "FailSpare-b.sh", "all-c.sh", "RebuildNN-d", "Rebuild40-e",
             ".Fail-hidden", "Fail-f.sh~", "Fail-g.dpkg-old", "README"]  # fmt: skip
    for name in names:
        script(tmp_path / name, "")
    complaints = []
    hooks = Hooks(tmp_path, complaints.append)

    def of(kind):
        return [path.name for path in hooks.of(kind)]

    assert of("Fail") == ["Fail-a.sh", "Fail.sh", "all-c.sh"]
    assert of("FailSpare") == ["FailSpare-b.sh", "all-c.sh"]
    assert of("Rebuild40") == ["Rebuild40-e", "RebuildNN-d", "all-c.sh"]
    assert of("Rebuild60") == ["RebuildNN-d", "all-c.sh"] and of("Mounted") == ["all-c.sh"]
    assert not complaints


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_scripts_that_somebody_else_could_change_are_refused_by_name(tmp_path):
    script(tmp_path / "Fail-group.sh", "", 0o775)
    script(tmp_path / "Fail-others.sh", "", 0o757)
    script(tmp_path / "Fail-plain.sh", "", 0o644)
    os.chown(script(tmp_path / "Fail-theirs.sh", ""), 1000, 0)
    (tmp_path / "Fail-link.sh").symlink_to("/bin/true")
    (tmp_path / "Fail-directory").mkdir()
    script(tmp_path / "Fial-typo.sh", "")
    script(tmp_path / "Fail-good.sh", "")
    complaints = []
    hooks = Hooks(tmp_path, complaints.append)
    for _ in range(3):
        assert [path.name for path in hooks.of("Fail")] == ["Fail-good.sh"]
    assert len(complaints) == 7, "each is named once"
    by_name = {line.split(":")[0].rpartition("/")[2]: line for line in complaints}
    assert "chmod go-w" in by_name["Fail-group.sh"] and "chmod go-w" in by_name["Fail-others.sh"]
    assert "chmod +x" in by_name["Fail-plain.sh"] and "user 1000" in by_name["Fail-theirs.sh"]
    assert "links" in by_name["Fail-link.sh"] and "Fial" in by_name["Fial-typo.sh"]
    tmp_path.chmod(0o777)
    assert hooks.of("Fail") == [] and "no script in it is run" in complaints[-1]
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 1000, 0)
    assert hooks.of("Fail") == [] and "user 1000" in complaints[-1]
    os.chown(tmp_path, 0, 0)
    assert [path.name for path in hooks.of("Fail")] == ["Fail-good.sh"]


def test_the_usual_directory_may_be_missing_and_another_not(tmp_path, monkeypatch):
    complaints = []
    assert Hooks(tmp_path / "none", complaints.append).of("Fail") == [] and len(complaints) == 1
    monkeypatch.setattr(module, "HOOKS", tmp_path / "none")
    assert Hooks(tmp_path / "none", complaints.append).of("Fail") == [] and len(complaints) == 1


# -- mail -----------------------------------------------------------------------------------------


def test_mail_goes_out_for_what_costs_redundancy_or_data(tmp_path):
    out = tmp_path / "mails"
    out.mkdir()
    sendmail = script(tmp_path / "sendmail", f'echo "$@" > {out}/$$.to; cat > {out}/$$.mail')
    told = [alert("Fail"), alert("Mounted", -1), alert("Healed"), alert("ReadOnly", -1)]
    assert not tell(*told, mail="root@example.org", sendmail=sendmail)
    mails = [message_from_bytes(p.read_bytes(), policy=default) for p in out.glob("*.mail")]
    assert sorted(mail["Subject"].split()[0] for mail in mails) == ["Fail", "ReadOnly"]
    assert {p.read_text() for p in out.glob("*.to")} == {"-oi root@example.org\n"}
    text = next(m for m in mails if m["Subject"].startswith("Fail ")).get_content()
    assert "A Fail event has happened to volume tank (/mnt/tank)" in text
    assert "member 2, /srv/disk2" in text and "  volume: tank" in text


def test_a_mail_can_not_be_given_headers_by_what_it_tells():
    told = event(volume="tank\nBcc: all@example.org", text="x\r\n.\r\nFrom: y", path="/\udcff")
    message = message_from_bytes(mail_of(Alert(told, "", "/mnt"), "root"), policy=default)
    assert sorted(message.keys())[:2] == ["Auto-Submitted", "Content-Transfer-Encoding"]
    assert message["Bcc"] is None and "Bcc" in message["Subject"] and message["To"] == "root"


@pytest.mark.parametrize(
    "address", ["", "-t", "-oQ/tmp", "a b", "a@b,c@d", "a\nb", "a@b@c", "a;b", "<a@b>", "ä@b", "a@"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="no address"):
        check_address(address)


def test_addresses():
    for address in ("root", "a.b+c@example.org", "x_y@host", "o'neil@x.y"):
        assert check_address(address) == address


def test_mail_without_a_mail_server_is_refused(tmp_path):
    with pytest.raises(UsageError, match="install a mail server"):
        tell(mail="root", sendmail=tmp_path / "none")


# -- words ----------------------------------------------------------------------------------------


def test_nothing_in_the_environment_ends_it_early():
    told = environment_of(alert(text="a\0b", path="x\0y", details={"k": "\0", "\0": 1}))
    assert not any("\0" in value or "\0" in name for name, value in told.items())


def test_a_line_has_no_control_characters():
    line = event_line(event(path="/srv/\x1b[31mdisk\n2"))
    assert line.isprintable() and "* Fail" in line


@pytest.mark.parametrize(
    ("text", "wanted_s"),
    [("@5", 5), ("90s", -90), ("2 h", -7200), ("3d", -3 * 86_400), ("1w", -7 * 86_400)],
)
def test_times(text, wanted_s):
    now = 1_700_000_000
    wanted = wanted_s if text.startswith("@") else now + wanted_s
    assert parse_time(text, now) == wanted * 10**9


def test_days_begin_at_midnight_here():
    now = 1_700_000_000
    today = parse_time("today", now)
    assert 0 <= now * 10**9 - today < 86_400 * 10**9
    assert time.localtime(today // 10**9)[3:6] == (0, 0, 0)
    assert parse_time(time.strftime("%Y-%m-%d", time.localtime(now)), now) == today
    assert parse_time("yesterday", now) < today
    for text in ("", "soon", "@x", "2y", "2026-13-01", "@1e999"):
        with pytest.raises(UsageError, match="yesterday"):
            parse_time(text, now)


# -- what is remembered ---------------------------------------------------------------------------


def test_what_was_told_is_remembered_and_a_broken_file_is_none(tmp_path):
    memory = Memory(tmp_path / "a" / "monitor")
    memory.open()
    one = "ab" * 16
    assert memory.of(one) is None and list(memory.all()) == []
    memory.put(Seen(one, "tank", number=7, session="s", not_kept=2, mounted=True))
    assert memory.of(one).number == 7 and [seen.volume for seen in memory.all()] == ["tank"]
    assert (tmp_path / "a" / "monitor").stat().st_mode & 0o777 == 0o700
    other = Memory(tmp_path / "a" / "monitor")
    with pytest.raises(UsageError, match="another monitor"):
        other.open()
    memory.close()
    other.open()
    (tmp_path / "a" / "monitor" / f"{one}.json").write_text("{")
    assert other.of(one) is None and list(other.all()) == []
    other.close()


def test_ids_that_are_none_name_no_files_and_are_not_followed(tmp_path, monkeypatch):
    """A user's daemon may call itself whatever it likes."""
    ids = ["ab" * 16, "../../../etc/cron.d/x", "", "AB" * 16, "ab" * 16 + "\n"]
    entries = [(Entry(one, "tank", "/mnt/x", 1, []), tmp_path / "x.sock") for one in ids]
    monkeypatch.setattr(monitor.registry, "entries", lambda: iter(entries))
    memory = Memory(tmp_path)
    alerts = Alerts(program=None, mail=None, hooks=module.HOOKS, complain=print)
    found = monitor.Monitor(alerts, memory, (), 1.0).entries()
    assert [entry.volume_id for entry, _ in found] == ids[:1]
    for one in ids[1:]:
        with pytest.raises(AssertionError):
            memory.put(Seen(one, "tank"))
    assert not list(tmp_path.iterdir())


# -- the command ----------------------------------------------------------------------------------


class Running:
    """A monitor in the background, that writes what it tells to a file."""

    def __init__(self, shop, *words):
        self.shop = shop
        self.out = shop.directory / "told"
        self.program = shop.directory / "program"
        script(self.program, f'echo "$RAIDFS_NUMBER $@" >> {self.out}')
        self.words = [BIN / "raidfs-ctl", "monitor", "--program", self.program, "--delay", "0.1"]
        self.words += words
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self.words, env=self.shop.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[0].decode()
        assert "Traceback" not in said, said
        return self.process.returncode, said

    def told(self):
        """(number, kind) of each, in order."""
        if not self.out.exists():
            return []
        words = [line.split() for line in self.out.read_text().splitlines()]
        return [(int(number), kind) for number, kind, *_ in words]

    def kinds(self):
        return [kind for _, kind in self.told()]

    def until(self, kind, count=1):
        wait_until(lambda: self.kinds().count(kind) >= count, f"{kind} is told", timeout_s=60)


@pytest.fixture
def watched(workshop):
    workshop.env["RAIDFS_STATE_DIR"] = str(workshop.directory / "state")
    running = Running(workshop)
    yield running
    if running.process is not None and running.process.poll() is None:
        running.process.kill()
        running.process.communicate()


@pytest.mark.slow
def test_each_event_is_told_once_over_restarts_of_everybody(workshop, watched):
    volume = workshop.volume(4, level="6", mounted=True)
    watched.start()
    watched.until("Mounted")
    assert watched.kinds() == ["NewArray", "Mounted"]
    workshop.run("raidfs-ctl", "member", "fail", "-y", volume.mountpoint, "1")
    watched.until("DegradedArray")
    assert watched.end()[0] == 0
    workshop.run("raidfs-ctl", "member", "fail", "-y", volume.mountpoint, "3")  # unseen
    later = workshop.volume(2, level="1")
    watched.start()
    watched.until("Fail", 2)
    later.mount()  # while it runs
    watched.until("NewArray", 2)
    volume.unmount()
    watched.until("Unmounted")
    volume.mount()
    watched.until("Mounted", 3)
    volume.ctl("sync")
    volume.kill()  # and the monitor goes on: nothing is lost or told twice by that
    watched.until("DeviceDisappeared")
    volume.mount()
    watched.until("Mounted", 4)
    watched.until("DegradedArray", 4)
    code, _ = watched.end(signal.SIGINT)
    assert code == 0
    volume.unmount()
    later.unmount()
    own = [kind for number, kind in watched.told() if number == 0]
    assert sorted(own) == ["DeviceDisappeared", "NewArray", "NewArray"]
    numbered = [each for each in watched.told() if each[0] > 0]
    logs = []
    for each in (volume, later):
        done = workshop.run("raidfs-ctl", "events", "--json", each.members[0])
        logs += [(one["number"], one["kind"]) for one in json.loads(done.stdout)["events"]]
    missing = sorted(set(logs) - set(numbered))
    assert [kind for _, kind in missing] == ["Unmounted", "Unmounted"], "after its end"
    assert len(numbered) == len(logs) - 2, "something was told twice"
    volume.check()


@pytest.mark.slow
def test_a_daemon_that_died_while_no_monitor_ran_is_told(workshop, watched):
    volume = workshop.volume(2, level="1", mounted=True)
    watched.start()
    watched.until("Mounted")
    assert watched.end()[0] == 0
    os.kill(volume.pid, signal.SIGKILL)  # its mount stays
    volume.wait_gone()
    watched.start()
    watched.until("DeviceDisappeared")
    watched.end()
    watched.start()
    time.sleep(1)
    watched.end()
    assert watched.kinds().count("DeviceDisappeared") == 1
    workshop.run("umount", "-l", volume.mountpoint)
    volume.check()


@pytest.mark.slow
def test_once_and_tests(workshop):
    def told(*words, expect):
        return workshop.run("raidfs-ctl", "monitor", "--oneshot", *words, expect=expect).stdout

    workshop.env["RAIDFS_STATE_DIR"] = str(workshop.directory / "state")
    assert told(expect=0) == ""
    volume = workshop.volume(3, level="5", mounted=True)
    assert told(expect=0) == ""
    assert "TestMessage" in told("--test", volume.mountpoint, expect=0)
    workshop.run("raidfs-ctl", "member", "fail", "-y", volume.mountpoint, "1")
    text = told(expect=1)
    assert "DegradedArray" in text and "1 member lost" in text
    other = workshop.directory / "other"
    other.mkdir()
    assert "DegradedArray" not in told(other, expect=1)  # nothing is mounted there
    assert not (workshop.directory / "state" / "monitor").exists(), "it remembers nothing"
    volume.unmount()
    volume.check()


def test_mistakes_are_told_in_a_sentence(tmp_path):
    runner = click.testing.CliRunner()
    for words, text in (
        (["--program", "/none"], "no program"),
        (["--mail", "-x"], "no address"),
        (["--hooks", str(tmp_path / "none")], "no directory"),
    ):
        with contextlib.suppress(UsageError):
            result = runner.invoke(monitor.monitor_command, words)
            assert isinstance(result.exception, UsageError) and text in str(result.exception)
