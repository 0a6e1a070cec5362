"""Metrics: what is exported is what docs/METRICS.md lists, each with a value that is right; and the
responder, which no client can hold up.
"""

import os
import re
import socket
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
import trio
from mounting import wait_until
from prometheus_client.parser import text_string_to_metric_families
from volumes import ROOT, make_members, mounted

from raidfs.cli.metrics import write_whole
from raidfs.daemon import metrics_server as module
from raidfs.daemon.condition import store_condition
from raidfs.daemon.group_figures import GATE_BOUNDS_US
from raidfs.daemon.group_requests import GateFigures, GroupStatus, PeerTold, RunningTold
from raidfs.daemon.metrics import (
    FAMILIES,
    Sample,
    exposition,
    samples_of,
    statistics_of,
    unreachable,
)
from raidfs.daemon.metrics_server import (
    CLIENTS_MAX,
    REQUEST_BYTES_MAX,
    Endpoint,
    MetricsServer,
    parse_endpoint,
)
from raidfs.daemon.status import LaneStatus, describe
from raidfs.errors import UsageError

DOCUMENT = Path(__file__).parent.parent / "docs" / "METRICS.md"
SUFFIXES = {"counter": "_total", "info": "_info", "gauge": "", "histogram": ""}
LANE_TOLD = {"bytes_read": 7, "bytes_written": 8, "parked_now": 1, "refused": 2, "lost": 3}
LANE = LaneStatus(3, False, {"READ": 10}, {"WRITE": 2}, {"LOOKUP": 1})
NO_GATES = GateFigures(GATE_BOUNDS_US, (0,) * (len(GATE_BOUNDS_US) + 1), 0)


def group_status(group="crew"):
    peer = PeerTold("id", "a", (), True, "", True)
    counts = (0, 2, *(0,) * (len(GATE_BOUNDS_US) - 2), 1)
    return GroupStatus(
        volume="tank",
        volume_id="id",
        group=group,
        group_id="g",
        keeper="id",
        version_of_members=1,
        gate_ms=500,
        members=[peer, msgspec.structs.replace(peer, volume="x", up=False, me=False)],
        listening=[],
        obstacle="",
        trouble="",
        running=[RunningTold("s", "n", 0, "id", "p")],
        works=[],
        gate=GateFigures(GATE_BOUNDS_US, counts, 700_000, 700_300),
        results={"committed": 4, "aborted": 1},
        channel_bytes=99,
        snapshots=2,
    )


def values(text):
    """(name of the sample, labels without the volume) -> value"""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "volume"}
            key = (sample.name, *sorted(labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


async def figures(tmp_path, **options):
    """Samples of a volume with something in it."""
    async with mounted(make_members(tmp_path), **options) as volume:
        ino = volume.create(1, b"file", 0o644, os.O_RDWR, ROOT).ino
        await volume.write(ino, 0, os.urandom(100_000))
        await volume.fsync(ino)
        await volume.store.snapshots.create("monday", "")
        volume.store.events.note("Rebuild20")
        volume.store.array.states[1].read_errors = 5
        volume.store.slow.patience.learn(1, [100, *[0] * 127])  # reads by the engine
        volume.store.scrub.start()
        await volume.store.scrub.ended()
        volume.release(ino)
        status = describe(store_condition(volume.store, "/mnt/tank", LANE))
        told = msgspec.to_builtins(statistics_of(volume, LANE_TOLD))
        return samples_of(status, told, group_status()), status


# -- what is exported -----------------------------------------------------------------------------


@pytest.mark.trio
async def test_every_family_is_exported_and_the_document_lists_them(tmp_path):
    samples, status = await figures(tmp_path)
    assert {sample.name for sample in samples} == set(FAMILIES), "a family that nothing fills"
    text, content_type = exposition([samples])
    assert content_type.startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCUMENT.read_text(), re.M)
    listed = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows
    }
    assert len(rows) == len(listed) == len(FAMILIES)
    for name, (kind, labels, help_text) in listed.items():
        family = families[name.removesuffix("_total") if kind == "counter" else name]
        assert family.documentation == help_text, name
        assert family.type == ("gauge" if kind == "info" else kind), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels | {"volume"}, name
            assert sample.labels["volume"] == status.volume
    named = set(re.findall(r"\b(raidfs_\w+)\b", DOCUMENT.read_text()))
    assert named <= set(listed), "the document names what there isn't"


def test_names_are_as_prometheus_wants_them():
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"raidfs(_[a-z]+)+", name) and not name.endswith("_total")
        assert family.help.endswith(".") and "|" not in family.help
        assert all(re.fullmatch(r"[a-z_]+", label) for label in family.labels)
        assert not set(name.split("_")) & {"ms", "us", "ns", "kb", "percent"}


@pytest.mark.trio
async def test_values_are_those_that_status_and_statistics_tell(tmp_path):
    samples, status = await figures(tmp_path)
    found = values(exposition([samples])[0].decode())
    assert found["raidfs_up",] == 1
    assert found["raidfs_volume_state", ("state", "online")] == 1
    assert found["raidfs_volume_state", ("state", "failed")] == 0
    assert found["raidfs_size_bytes",] == status.total_bytes
    assert found["raidfs_free_bytes",] == status.free_bytes < status.total_bytes
    assert found["raidfs_inodes",] == 2
    assert found["raidfs_members", ("state", "online")] == 3
    errors = "raidfs_member_errors_total"
    assert found[errors, ("kind", "read"), ("member", "1")] == 5
    assert found[errors, ("kind", "write"), ("member", "1")] == 0
    assert found["raidfs_commits_total",] == found["raidfs_flush_seconds_count",] >= 2
    assert found["raidfs_flush_seconds_bucket", ("le", "+Inf")] == found["raidfs_commits_total",]
    assert 0 < found["raidfs_flush_max_seconds",] <= found["raidfs_flush_seconds_sum",]
    assert found["raidfs_cells_total", ("kind", "written")] >= 25 * 3 // 2
    assert found["raidfs_snapshots",] == 1
    assert found["raidfs_events_total", ("kind", "Rebuild20")] == 1
    assert found["raidfs_requests_total", ("how", "carried"), ("request", "WRITE")] == 2
    assert found["raidfs_lane_bytes_total", ("direction", "written")] == 8
    zones = [value for key, value in found.items() if key[0] == "raidfs_zones"]
    assert sum(zones) > 1 and len(zones) == 6
    assert found["raidfs_group_members", ("state", "away")] == 1
    assert found["raidfs_group_gate_seconds_bucket", ("le", "0.0002")] == 2
    assert found["raidfs_group_gate_seconds_bucket", ("le", "0.5")] == 2
    assert found["raidfs_group_gate_seconds_bucket", ("le", "+Inf")] == 3
    assert found["raidfs_group_gate_seconds_sum",] == pytest.approx(0.7003)
    assert found["raidfs_group_snapshots_taken_total", ("result", "aborted")] == 1


@pytest.mark.trio
async def test_what_there_is_not_is_left_out(tmp_path):
    async with mounted(make_members(tmp_path), read_only=True) as volume:
        status = describe(store_condition(volume.store, "/mnt/tank"))
        told = msgspec.to_builtins(statistics_of(volume, None))
    told = samples_of(status, told, group_status(group=""))
    found = values(exposition([told])[0].decode())
    names = {key[0] for key in found}
    assert not any(name.startswith(("raidfs_lane", "raidfs_group", "raidfs_cle")) for name in names)
    assert found["raidfs_read_only",] == 1


def test_several_volumes_are_one_text():
    odd = 'a"b\\c\nd'
    volumes = [[Sample("raidfs_up", {"volume": "tank"}, 1)], unreachable(odd)]
    text = exposition(volumes)[0].decode()
    assert text.count("# HELP raidfs_up ") == text.count("# TYPE raidfs_up ") == 1
    (family,) = text_string_to_metric_families(text)
    assert {s.labels["volume"]: s.value for s in family.samples} == {"tank": 1, odd: 0}
    openmetrics, kind = exposition(volumes, "application/openmetrics-text; version=1.0.0")
    assert openmetrics.endswith(b"# EOF\n") and "openmetrics" in kind


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "raidfs.prom"
    write_whole(path, b"first")
    with path.open() as reader:
        write_whole(path, b"second")
        assert reader.read() == "first"
    assert path.read_text() == "second" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["raidfs.prom"]
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "none" / "raidfs.prom", b"")


# -- the responder --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:9813", Endpoint("127.0.0.1", 9813)),
        ("localhost:0", Endpoint("localhost", 0)),
        ("[::1]:9813", Endpoint("::1", 9813)),
        ("unix:/run/x.sock", Endpoint(path="/run/x.sock")),
        ("unix:/run/../x", Endpoint(path="/x")),
    ],
)
def test_endpoints(text, wanted):
    assert parse_endpoint(text) == wanted


NO_ENDPOINTS = (
    *("", "9813", ":9813", "host:", "host:70000", "::1:9", "host:1a", "host:-1", "host:\u0661"),
    *("unix:x", "unix:", "unix:/x/"),
)


@pytest.mark.parametrize("text", NO_ENDPOINTS)
def test_what_is_no_endpoint_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="metrics="):
        parse_endpoint(text)


class Client:
    """A raw connection."""

    def __init__(self, stream):
        self.stream = stream

    async def send(self, data):
        await self.stream.send_all(data)

    async def all(self):
        received = b""
        try:
            while chunk := await self.stream.receive_some():
                received += chunk
        except trio.BrokenResourceError:
            pass
        return received


async def connect(server):
    return Client(await trio.open_tcp_stream("127.0.0.1", server.port))


async def ask(server, request):
    with trio.fail_after(20):
        client = await connect(server)
        async with client.stream:
            await client.send(request)
            return await client.all()


class running:
    """A server in a nursery."""

    def __init__(self, endpoint=None):
        self.asked = 0
        self.server = MetricsServer(endpoint or Endpoint("127.0.0.1", 0), self.samples)

    def samples(self):
        self.asked += 1
        return [Sample("raidfs_up", {"volume": "tank"}, 1)]

    async def __aenter__(self):
        await self.server.open()
        self.manager = trio.open_nursery()
        self.nursery = await self.manager.__aenter__()
        self.nursery.start_soon(self.server.run)
        return self

    async def __aexit__(self, *error):
        self.nursery.cancel_scope.cancel()
        result = await self.manager.__aexit__(*error)
        self.server.close()
        return result


@pytest.mark.trio
async def test_requests_and_what_is_answered():
    async with running() as it:
        answer = await ask(it.server, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
        assert f"Content-Length: {len(body)}".encode() in head and b"Connection: close" in head
        assert values(body.decode()) == {("raidfs_up",): 1}
        head_only = await ask(it.server, b"HEAD / HTTP/1.0\r\n\r\n")
        assert head_only.partition(b"\r\n\r\n")[2] == b""
        assert f"Content-Length: {len(body)}".encode() in head_only
        accept = b"Accept: application/openmetrics-text; version=1.0.0\r\n"
        assert b"# EOF" in await ask(it.server, b"GET /metrics?x=1 HTTP/1.1\r\n" + accept + b"\r\n")
        asked = it.asked
        for request, code in [
            (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
            (b"GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
            (b"GET /../metrics HTTP/1.1\r\n\r\n", 404),
            (b"nonsense\r\n\r\n", 400),
            (b"\r\n\r\n", 400),
            (b"GET /metrics SSH/2\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 2 * REQUEST_BYTES_MAX, 431),
        ]:
            answer = await ask(it.server, request)
            assert answer.startswith(f"HTTP/1.1 {code} ".encode()), (request[:40], answer[:80])
        assert it.asked == asked


@pytest.mark.trio
async def test_slow_and_silent_clients_hold_a_place_for_a_while_only(monkeypatch):
    monkeypatch.setattr(module, "CLIENT_S", 2.0)
    async with running() as it:
        silent = [await connect(it.server) for _ in range(CLIENTS_MAX)]
        await silent[0].send(b"GET /metrics HTTP/1.1\r\n")  # and no more
        with trio.fail_after(20):
            while it.server._clients < CLIENTS_MAX:
                await trio.sleep(0.01)
        turned_away = await connect(it.server)
        with trio.fail_after(20):
            assert await turned_away.all() == b""
            assert it.server._clients == CLIENTS_MAX, "it had to wait for that"
            for client in silent:
                assert await client.all() == b""
            while it.server._clients:
                await trio.sleep(0.01)
        answer = await ask(it.server, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.trio
async def test_an_error_inside_ends_one_connection_only(monkeypatch):
    async with running() as it:
        monkeypatch.setattr(it.server, "_samples", lambda: 1 // 0)
        assert await ask(it.server, b"GET / HTTP/1.1\r\n\r\n") == b""
        monkeypatch.setattr(it.server, "_samples", it.samples)
        assert (await ask(it.server, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.trio
async def test_places_that_can_not_be_used(tmp_path):
    async with running() as it:
        with pytest.raises(UsageError, match="another address"):
            await MetricsServer(Endpoint("127.0.0.1", it.server.port), list).open()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(UsageError, match="something else"):
        await MetricsServer(Endpoint(path=str(file)), list).open()
    assert file.read_text() == "precious"
    with pytest.raises(UsageError, match="No such file"):
        await MetricsServer(Endpoint(path=str(tmp_path / "none" / "x")), list).open()
    used = tmp_path / "used.sock"
    async with running(Endpoint(path=str(used))):
        with pytest.raises(UsageError, match="listens there already"):
            await MetricsServer(Endpoint(path=str(used)), list).open()
        assert stat.S_IMODE(used.stat().st_mode) == 0o600
    assert not used.exists()
    with socket.socket(socket.AF_UNIX) as left:  # by a daemon that was killed
        left.bind(str(used))
    async with running(Endpoint(path=str(used))):
        assert used.is_socket()


# -- real mounts ----------------------------------------------------------------------------------


@pytest.mark.mount
@pytest.mark.slow
def test_metrics_of_a_mounted_volume(workshop):
    """By HTTP over a unix socket, and as a file of all volumes, one of which does not answer."""
    path = workshop.directory / "metrics.sock"
    volume = workshop.volume(3, level="5", mounted=True, options=[f"metrics=unix:{path}"])
    other = workshop.volume(2, level="1", mounted=True)
    (volume.mountpoint / "file").write_bytes(b"x" * 300_000)
    volume.ctl("sync")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    got = subprocess.run(
        ["curl", "-sf", "--unix-socket", path, "http://x/metrics"], capture_output=True, check=True
    ).stdout.decode()
    found = values(got)
    assert found["raidfs_inodes",] == 2
    assert found["raidfs_requests_total", ("how", "served"), ("request", "write")] >= 1
    status = volume.status()
    assert found["raidfs_size_bytes",] == status["total_bytes"]
    file = workshop.directory / "raidfs.prom"
    workshop.run("raidfs-ctl", "metrics", "--textfile", file)
    names = {
        sample.labels["volume"]: sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
        if sample.name == "raidfs_up"
    }
    assert len(names) == 2 and set(names.values()) == {1.0}
    refused = workshop.run(
        "raidfs-ctl", "metrics", "--textfile", workshop.directory / "x", expect=1
    )
    assert ".prom" in refused.stderr
    volume.unmount()
    wait_until(lambda: not path.exists(), "the socket is taken away")
    found = values(workshop.run("raidfs-ctl", "metrics", other.mountpoint).stdout)
    assert found["raidfs_members", ("state", "online")] == 2
    other.unmount()
    volume.check()
    busy = socket.socket(socket.AF_UNIX)
    with busy:
        busy.bind(str(path))
        busy.listen()
        refused = volume.mount(f"metrics=unix:{path}", expect=1)
        assert "listens there already" in refused.stderr
    volume.check()
