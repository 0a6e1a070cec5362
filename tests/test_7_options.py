"""Arguments of commands: sizes, mount options, help. Nothing here touches a volume."""

import json

import pytest
from mounting import run

from raidfs.cli.mount import parse_options
from raidfs.cli.output import parse_size, size_text, table
from raidfs.errors import UsageError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("4096", 4096), ("64K", 65536), ("64k", 65536), ("1.5M", 3 << 19), ("2GiB", 2 << 30),
     ("1TB", 1 << 40), ("7b", 7), (" 3 mib ", 3 << 20)],
)  # fmt: skip
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0", "1X", "1KK", "nan", "1e3", "0x10", "K", "1.2.3"]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError):
        parse_size(text)


def test_size_text():
    assert [size_text(n) for n in (None, 0, 1023, 1536, 5 << 30)] == [
        "unknown", "0 B", "1023 B", "1.5 KiB", "5.0 GiB"
    ]  # fmt: skip


def test_table_aligns():
    assert table([("A", "N"), ("long", 7)], frozenset({1})) == ["A     N", "long  7"]


def test_mount_options_ours_the_kernels_and_those_to_ignore():
    parsed = parse_options(
        ("ro,degraded,member=/a,member=/b,dirty=64M,log=/tmp/l", "noatime,_netdev")
    )
    assert parsed.read_only and parsed.degraded and parsed.members == ["/a", "/b"]
    assert parsed.dirty_bytes == 64 << 20 and parsed.log_path == "/tmp/l"
    assert parsed.fuse == {"noatime"}
    parsed = parse_options(("rw,defaults,noauto,nofail,user,x-systemd.automount,x-foo=bar,",))
    assert not parsed.fuse and not parsed.read_only


def test_later_options_win():
    assert not parse_options(("ro,rw",)).read_only
    assert parse_options(("suid,nosuid",)).fuse == {"nosuid"}
    assert parse_options(("nodev,dev",)).fuse == {"dev"}


@pytest.mark.parametrize("text", ["degrade", "ro=1", "member", "member=", "dirty=lots", "xro"])
def test_a_typing_error_in_a_mount_option_is_not_silent(text):
    with pytest.raises(UsageError):
        parse_options((text,))


@pytest.mark.parametrize(
    "command", ["raidfs", "raidfs-ctl", "mkfs.raidfs", "fsck.raidfs", "mount.raidfs"]
)
def test_every_command_explains_itself(command):
    done = run(command, "--help")
    assert "Usage" in done.stdout and len(done.stdout.splitlines()) > 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["create"], ["status"], ["list"], ["member", "fail"], ["member", "list"],
                  ["check"], ["extract"], ["umount"], ["sync"]],
)  # fmt: skip
def test_every_verb_explains_itself_and_has_json(arguments):
    text = run("raidfs-ctl", *arguments, "--help").stdout
    assert "--json" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code"),
    [(["raidfs-ctl", "frobnicate"], 2), (["raidfs-ctl", "status"], 2), (["raidfs"], 2),
     (["raidfs-ctl", "status", "--frob", "x"], 2), (["raidfs", "a", "b", "c"], 2),
     (["raidfs-ctl", "create"], 2), (["fsck.raidfs"], 16), (["raidfs-ctl", "check"], 16),
     (["raidfs-ctl", "create", "--size", "many", "x"], 2), (["mkfs.raidfs"], 2)],
)  # fmt: skip
def test_wrong_arguments_give_short_help(command, code):
    done = run(*command, expect=code)
    assert "Usage:" in done.stderr and len(done.stderr.splitlines()) <= 6


def test_errors_as_json(tmp_path):
    done = run("raidfs-ctl", "umount", "--json", tmp_path / "missing", expect=1)
    told = json.loads(done.stdout)
    assert told["version"] == 1 and "doesn't exist" in told["error"] and told["errno"] == 2
