"""The lane, with sockets playing the kernel's device and the FUSE library.

A socket keeps the borders of messages as the device does. What only the real kernel shows (INIT
taken at its word, blocking notifications, unmounting) is in the tests of the daemon.
"""

import errno
import os
import random
import select
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from raidfs import native
from raidfs._native import lib
from raidfs.columns import Columns
from raidfs.engine import Engine
from raidfs.known import Known
from raidfs.lane import Gate, Lane, LaneSetup
from raidfs.pages import LEAF_PAGES, Pages

ROOT = Path(__file__).resolve().parent.parent
CELL = 4096
MAX_WRITE = 64 * CELL
HEADER = struct.Struct("=IIQQIIIHH")
OUT = struct.Struct("=IiQ")
IO = struct.Struct("=QQIIQII")
INIT_IN = struct.Struct("=IIIII44x")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
LOOKUP, FORGET, GETATTR, MKDIR, OPEN, READ, WRITE = 1, 2, 3, 9, 14, 15, 16
RELEASE, FSYNC, FLUSH, INIT, READDIR, RELEASEDIR = 18, 20, 25, 26, 28, 29
GETXATTR, LISTXATTR = 22, 23
CREATE, INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE, TMPFILE = 35, 36, 38, 42, 43, 51
ALL = (
    lib.RF_LANE_READ
    | lib.RF_LANE_WRITE
    | lib.RF_LANE_GETATTR
    | lib.RF_LANE_LOOKUP
    | lib.RF_LANE_FORGET
    | lib.RF_LANE_RELEASE
    | lib.RF_LANE_FLUSH
    | lib.RF_LANE_XATTR
)
CARRIED = 1 << READ | 1 << WRITE | 1 << FSYNC | 1 << FALLOCATE
VOUCHED = lib.RF_SERVE_READS | lib.RF_SERVE_WRITES | lib.RF_NO_ATIME
TIMEOUT_S = 20
FILE, ZONE = 7, 3


def seqpacket():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
        end.settimeout(TIMEOUT_S)
    theirs.setblocking(True)
    return ours, theirs


class Bench:
    """A lane between a kernel and a library, both played by the test."""

    def __init__(self, *, threads=1, engine=None, **setup):
        self.pages = Pages(CELL)
        self.columns = Columns(CELL)
        self.known = Known()
        self.gate = Gate()
        self.engine = Engine(engine) if engine else None
        values = {
            "pages": self.pages,
            "columns": self.columns,
            "known": self.known,
            "gate": self.gate,
            "engine": self.engine,
            "cell_bytes": CELL,
            "max_write": MAX_WRITE,
            "max_background": 128,
            "max_readahead": 0,
            "init_add": 0,
            "init_remove": 0,
            "cache_ns": 300_500_000_000,
            "carry": CARRIED,
            "serve": ALL,
            "ask_cells": 0,
        }
        self.lane = Lane(LaneSetup(**values | setup))
        pairs = [seqpacket() for _ in range(threads)]
        self.kernels = [ours for ours, _ in pairs]
        self.kernel = self.kernels[0]
        self.devices = [theirs for _, theirs in pairs]
        self.library, self.ours = seqpacket()
        self.ours.setblocking(True)
        self.unique = 0
        self.lane.start([device.fileno() for device in self.devices], self.ours.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lane.stop()
        self.lane.free()
        if self.engine:
            self.engine.close()
        self.columns.close()
        for end in (*self.kernels, *self.devices, self.library, self.ours):
            end.close()

    # -- the kernel --

    def ask(self, opcode, body=b"", *, ino=FILE, way=0, nbytes=None, unique=None, extensions=0):
        """Sends a request; returns its unique."""
        if unique is None:
            self.unique += 2
            unique = self.unique
        length = HEADER.size + len(body) if nbytes is None else nbytes
        header = HEADER.pack(length, opcode, unique, ino, 1000, 1000, 4242, extensions, 0)
        self.kernels[way].send(header + body)
        return unique

    def answer(self, way=0):
        """The next answer: (unique, errno, body)."""
        message = self.kernels[way].recv(MAX_WRITE + 65536)
        length, error, unique = OUT.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[OUT.size :]

    def call(self, opcode, body=b"", **how):
        """A request and its answer: (errno, body)."""
        unique = self.ask(opcode, body, **how)
        found, error, data = self.answer(how.get("way", 0))
        assert found == unique
        return error, data

    def silent(self, way=0, time_s=0.05):
        """Whether no answer comes."""
        return not select.select([self.kernels[way]], [], [], time_s)[0]

    def write(self, offset, data, **how):
        return self.call(WRITE, IO.pack(FILE, offset, len(data), 0, 0, 0, 0) + data, **how)

    def ask_write(self, offset, data, **how):
        return self.ask(WRITE, IO.pack(FILE, offset, len(data), 0, 0, 0, 0) + data, **how)

    def read(self, offset, nbytes, **how):
        return self.call(READ, IO.pack(FILE, offset, nbytes, 0, 0, 0, 0), **how)

    def ask_read(self, offset, nbytes, **how):
        return self.ask(READ, IO.pack(FILE, offset, nbytes, 0, 0, 0, 0), **how)

    # -- Python --

    def take(self):
        """The next carried request: (number, message as bytes)."""
        while True:
            request = self.lane.take()
            if request is not None:
                return request.number, bytes(request.message)
            assert select.select([self.lane.eventfd], [], [], TIMEOUT_S)[0], "nothing carried"
            self.lane.reset()

    def told(self, question, timeout_s=TIMEOUT_S):
        """Asks again each time the lane says so, until there is an answer."""
        while not (found := question()):
            fds = [self.lane.eventfd, self.lane.late_fd]
            assert select.select(fds, [], [], timeout_s)[0], "never told"
            self.lane.reset()
            self.lane.reset_late()
        return found

    # -- the library --

    def forwarded(self):
        """The next request that the library gets: (header fields, body)."""
        message = self.library.recv(MAX_WRITE + 65536)
        return HEADER.unpack_from(message), message[HEADER.size :]

    def respond(self, unique, error=0, body=b""):
        self.library.send(OUT.pack(OUT.size + len(body), -error, unique) + body)

    # -- state --

    def load(self, size=0, vouched=VOUCHED, credits=1 << 20, files=1 << 20):
        now = time.time_ns()
        self.pages.load(FILE, size, now, now, now)
        self.pages.vouch(FILE, vouched)
        self.pages.grant(credits)
        self.pages.allow_files(files)

    def on_members(self, tmp_path, pages, absent=(), flags=0):
        """Content of that many pages in a zone of one column; its leaf is known."""
        content = np.frombuffer(random.Random(1).randbytes(pages * CELL), np.uint8)
        cells = content.reshape(pages, CELL).copy()
        path = tmp_path / "column"
        path.write_bytes(cells.tobytes())
        self.columns.zone_put(ZONE, 1, 256, [(os.open(path, os.O_RDONLY | flags), 0)], [0])
        self.columns.slab_put(ZONE, 0, native.crc32c_cells(cells).reshape(pages, 1))
        leaf = np.zeros(LEAF_PAGES, np.uint64)
        leaf[:pages] = [ZONE << 32 | row << 8 for row in range(pages)]
        leaf[list(absent)] = 0
        cells[list(absent)] = 0
        self.pages.leaf_put(FILE, 0, leaf)
        return path, cells.tobytes()


@pytest.fixture
def bench():
    with Bench() as made:
        made.load()
        yield made


def expect(bench, **values):
    """These statistics, soon: what is counted is counted after the answer."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        told = bench.lane.statistics()
        if all(told[name] == value for name, value in values.items()):
            return told
        if time.monotonic() > deadline:
            assert {name: told[name] for name in values} == values
        time.sleep(0.001)


# ---- READ and WRITE ----


def test_what_was_written_is_read(bench):
    model = bytearray()
    chooser = random.Random(5)
    for _ in range(400):
        offset = chooser.choice((CELL, 1)) * chooser.randrange(40)
        data = chooser.randbytes(
            chooser.choice((1, 100, CELL, CELL, 3 * CELL, 3 * CELL + 5, MAX_WRITE))
        )
        if len(model) < offset + len(data):
            model.extend(bytes(offset + len(data) - len(model)))
        model[offset : offset + len(data)] = data
        error, body = bench.write(offset, data)
        assert (error, body) == (0, struct.pack("=II", len(data), 0))
        offset, nbytes = chooser.randrange(len(model) + 10), chooser.randrange(MAX_WRITE + 1)
        assert bench.read(offset, nbytes) == (0, bytes(model[offset : offset + nbytes]))
    assert bench.pages.attributes(FILE)[0] == len(model)
    told = expect(bench, served={"read": 400, "write": 400}, carried={}, forwarded={}, refused=0)
    assert told["reads_memory"] == 400 and told["writes_put"] > 50
    assert told["credits_spent"] == bench.pages.dirty_cells


def test_cells_are_neither_lost_nor_made(bench):
    for i in range(300):
        bench.write(CELL * (i % 50), bytes([i % 256]) * CELL * (1 + i % 3))
        bench.pages.seal()
        bench.pages.retire(bench.pages.generation - 1)
    assert bench.pages.statistics().dirty_cells == 0
    assert bench.pages.statistics().cell_pool_bytes < 64 << 20


@pytest.mark.parametrize("engine", [None, "threads", "ring"])
def test_pages_are_read_from_members(tmp_path, engine):
    with Bench(engine=engine) as bench:
        bench.load(size=40 * CELL - 7)
        _, content = bench.on_members(tmp_path, 40, absent=(3, 4, 39))
        content = content[: 40 * CELL - 7]
        for offset, nbytes in [(0, CELL), (5, 100), (2 * CELL + 9, 5 * CELL), (0, MAX_WRITE)]:
            assert bench.read(offset, nbytes) == (0, content[offset : offset + nbytes])
        bench.write(CELL, b"new" * 1000)
        changed = bytearray(content)
        changed[CELL : CELL + 3000] = b"new" * 1000
        assert bench.read(10, 3 * CELL) == (0, bytes(changed[10 : 10 + 3 * CELL]))
        expect(bench, bases_read=1, carried={})


@pytest.mark.parametrize("engine", [None, "threads"])
def test_a_page_written_in_part_keeps_the_rest(tmp_path, engine):
    with Bench(engine=engine) as bench:
        bench.load(size=20 * CELL)
        _, content = bench.on_members(tmp_path, 20, absent=(7,))
        model = bytearray(content)
        chooser = random.Random(8)
        for _ in range(200):
            offset = chooser.randrange(20 * CELL)
            data = chooser.randbytes(chooser.choice((1, 50, CELL, 2 * CELL + 1)))
            data = data[: 20 * CELL - offset]
            assert bench.write(offset, data)[0] == 0
            model[offset : offset + len(data)] = data
            if chooser.random() < 0.1:
                assert bench.read(0, MAX_WRITE) == (0, bytes(model))
        assert bench.read(0, MAX_WRITE) == (0, bytes(model))
        expect(bench, carried={})


def test_what_the_engine_has_read_waits_for_the_gate(tmp_path):
    """Direct IO always waits, so the engine does it."""
    with Bench(engine="threads") as bench:
        bench.load(size=40 * CELL)
        _, content = bench.on_members(tmp_path, 40, absent=(3,), flags=os.O_DIRECT)
        for offset, nbytes in [(0, CELL), (5, 100), (2 * CELL + 9, 5 * CELL), (0, MAX_WRITE)]:
            assert bench.read(offset, nbytes) == (0, content[offset : offset + nbytes])
        assert bench.write(CELL + 10, b"new")[0] == 0
        assert bench.read(CELL + 9, 5) == (
            *(0, content[CELL + 9 : CELL + 10] + b"new" + content[CELL + 13 : CELL + 14]),
        )
        with bench.gate.shut_for():
            reads = [bench.ask_read(page * CELL, CELL) for page in range(5, 25)]
            assert bench.silent()
        assert sorted(bench.answer()[:2] for _ in reads) == [(unique, 0) for unique in reads]
        expect(bench, served={"read": 25, "write": 1}, carried={}, bases_read=1)


def test_a_cell_that_does_not_match_is_pythons(bench, tmp_path):
    bench.pages.truncate(FILE, 3 * CELL, 0)
    path, content = bench.on_members(tmp_path, 3)
    bench.pages.truncate(FILE, 0, 0)
    bench.pages.seal()
    bench.pages.retire(1)
    assert bench.pages.evict(FILE)
    bench.load(size=3 * CELL)
    bench.on_members(tmp_path, 3)
    with path.open("r+b") as file:
        file.seek(CELL + 5)
        file.write(bytes([content[CELL + 5] ^ 1]))
    assert bench.read(0, CELL) == (0, content[:CELL])
    unique = bench.ask_read(0, 2 * CELL)
    number, message = bench.take()
    assert HEADER.unpack_from(message)[1:4] == (READ, unique, FILE)
    assert bench.lane.reply(number, errno.EIO)
    assert bench.answer() == (unique, errno.EIO, b"")
    unique = bench.ask_write(CELL + 1, b"x")
    number, message = bench.take()
    assert message.endswith(b"x")
    assert bench.lane.reply(number, 0, struct.pack("=II", 1, 0))
    assert bench.answer()[:2] == (unique, 0)


def test_a_zone_forgotten_is_pythons(tmp_path):
    with Bench() as bench:
        bench.load(size=3 * CELL)
        bench.on_members(tmp_path, 3)
        bench.columns.zone_forget(ZONE)
        bench.ask_read(0, 100)
        bench.take()
        bench.ask_write(1, b"y")
        bench.take()


def test_what_is_not_vouched_for_is_carried_whole(bench):
    bench.pages.vouch(FILE, lib.RF_SERVE_READS | lib.RF_NO_ATIME)
    data = random.Random(2).randbytes(MAX_WRITE)
    unique = bench.ask_write(123, data)
    number, message = bench.take()
    assert message[HEADER.size + IO.size :] == data
    assert HEADER.unpack_from(message) == (
        len(message),
        WRITE,
        unique,
        FILE,
        1000,
        1000,
        4242,
        0,
        0,
    )
    assert bench.lane.reply(number, 0, struct.pack("=II", 5, 0))
    assert bench.answer() == (unique, 0, struct.pack("=II", 5, 0))
    bench.ask_read(0, 10, ino=99)
    assert HEADER.unpack_from(bench.take()[1])[3] == 99
    bench.pages.vouch(FILE, lib.RF_SERVE_WRITES)
    bench.ask_read(0, 10)
    bench.take()
    expect(bench, carried_now=2, carried={"read": 2, "write": 1})


@pytest.mark.parametrize("bit,opcode", [(lib.RF_LANE_READ, READ), (lib.RF_LANE_WRITE, WRITE)])
def test_each_kind_can_be_turned_off(bit, opcode):
    with Bench(serve=ALL & ~bit) as bench:
        bench.load()
        bench.ask(opcode, IO.pack(FILE, 0, 1, 0, 0, 0, 0) + b"x" * (opcode == WRITE))
        assert HEADER.unpack_from(bench.take()[1])[1] == opcode
    with Bench(serve=ALL & ~bit, carry=0) as bench:
        bench.load()
        bench.ask(opcode, IO.pack(FILE, 0, 1, 0, 0, 0, 0) + b"x" * (opcode == WRITE))
        assert bench.forwarded()[0][1] == opcode


def test_no_more_files_than_allowed_are_dirtied(bench):
    bench.pages.allow_files(0)
    bench.ask_write(0, b"x")
    bench.take()
    bench.pages.allow_files(1)
    assert bench.write(0, b"x")[0] == 0


# ---- requests that make no sense ----


def test_impossible_requests_are_refused(bench):
    io = IO.pack(FILE, 0, 10, 0, 0, 0, 0)
    cases = [
        (READ, io[:-1], {}),
        (READ, io, {"nbytes": 1000}),
        (READ, io, {"nbytes": 50}),
        (READ, io, {"extensions": 200}),
        (READ, IO.pack(FILE, 1 << 63, 10, 0, 0, 0, 0), {}),
        (READ, IO.pack(FILE, (1 << 64) - 5, 10, 0, 0, 0, 0), {}),
        (READ, IO.pack(FILE, 0, MAX_WRITE + 1, 0, 0, 0, 0), {}),
        (READ, IO.pack(FILE, 0, 2**32 - 1, 0, 0, 0, 0), {}),
        (WRITE, b"", {}),
        (WRITE, io[:20], {}),
        (WRITE, io + b"123456789", {}),
        (WRITE, io + b"12345678901", {}),
        (WRITE, IO.pack(FILE, 0, 2**32 - 1, 0, 0, 0, 0) + b"x" * 100, {}),
        (WRITE, IO.pack(FILE, 1 << 63, 10, 0, 0, 0, 0) + b"x" * 10, {}),
        (GETATTR, b"", {}),
        (LOOKUP, b"", {}),
        (LOOKUP, b"x", {}),
        (GETXATTR, b"", {}),
        (GETXATTR, bytes(9), {}),
        (GETXATTR, bytes(8) + b"user.a\0", {"extensions": 1}),
        (LISTXATTR, bytes(7), {}),
        (LISTXATTR, bytes(8), {"nbytes": 49}),
        (RELEASE, b"x" * 23, {}),
        (READDIR, b"x" * 39, {}),
        (OPEN, b"", {"nbytes": 41}),
        (200, b"", {"nbytes": 39}),
    ]
    for opcode, body, how in cases:
        assert bench.call(opcode, body, **how) == (errno.EINVAL, b""), (opcode, body, how)
    assert bench.call(1000) == (errno.ENOSYS, b"")
    assert bench.call(2**31) == (errno.ENOSYS, b"")
    assert bench.call(OPEN, bytes(8), unique=1 << 50) == (errno.EIO, b"")
    for short in (b"x", bytes(39)):
        bench.kernel.send(short)
    bench.ask(FORGET, b"short")
    bench.ask(BATCH_FORGET, struct.pack("=IIQQ", 1000, 0, FILE, 1))
    bench.ask(BATCH_FORGET, b"")
    assert bench.write(0, b"alive")[0] == 0
    expect(bench, refused=len(cases) + 3 + 5, served={"write": 1})


def test_writes_at_the_end_of_all_files_are_pythons(bench):
    for offset, data in [(2**63 - 1, b"x"), (2**63 - 5, b"123456"), (100, b"")]:
        bench.ask_write(offset, data)
        bench.take()
    assert bench.read(2**63 - 1, 10) == (0, b"")
    assert bench.write(2**63 - 6, b"12345") == (0, struct.pack("=II", 5, 0))


def test_unknown_opcodes_go_to_the_library(bench):
    for opcode in (0, 7, 19, 62, 63, 64, 255):
        unique = bench.ask(opcode, b"something")
        fields, body = bench.forwarded()
        assert fields[1] == opcode and body == b"something"
        bench.respond(fields[2], errno.ENOSYS)
        assert bench.answer() == (unique, errno.ENOSYS, b"")
    expect(bench, forwarded={"0": 1, "7": 1, "19": 1, "62": 1, "other": 3})


def test_random_bytes_do_no_harm():
    chooser = random.Random(11)
    with Bench(threads=2) as bench:
        bench.load()
        for end in (*bench.kernels, bench.library):
            end.setblocking(False)
        for i in range(3000):
            opcode = chooser.choice(
                (LOOKUP, FORGET, GETATTR, READ, WRITE, RELEASE, BATCH_FORGET, GETXATTR, LISTXATTR)
            )
            body = chooser.randbytes(chooser.choice((0, 8, 16, 24, 40, 41, 80, 200, CELL)))
            length = HEADER.size + len(body) + chooser.choice((0, 0, 0, 1, -1, 2**20))
            unique, ino = chooser.choice((i, 1 << 60)), chooser.choice((FILE, 1, 0, 2**64 - 1))
            header = HEADER.pack(length % 2**32, opcode, unique, ino, 0, 0, 0, 0, 0)
            cut = chooser.choice((0, 0, 0, 39))
            try:
                bench.kernels[i % 2].send((header + body)[: -cut or None])
                while True:
                    for end in (*bench.kernels, bench.library):
                        select.select([end], [], [], 0) and end.recv(MAX_WRITE)
                    if (request := bench.lane.take()) is None:
                        break
                    assert bench.lane.reply(request.number, errno.EIO)
            except BlockingIOError:
                pass
            bench.lane.released()
        bench.kernel.settimeout(TIMEOUT_S)
        unique = bench.ask(INTERRUPT, bytes(8), unique=(1 << 40) + 1)
        while bench.answer()[0] != unique:
            pass


# ---- the gate ----


def test_no_answer_leaves_while_the_gate_is_shut():
    with Bench(threads=3) as bench:
        bench.load()
        for way in range(3):
            assert bench.write(way * CELL, b"before", way=way)[0] == 0
        forwarded = bench.ask(OPEN, bytes(8))
        fields, _ = bench.forwarded()
        carried = bench.ask(FSYNC, bytes(16), way=1)
        number, _ = bench.take()
        before = bench.pages.attributes(FILE)
        with bench.gate.shut_for():
            written = bench.ask_write(0, b"while it is shut " * 1000)
            bench.respond(fields[2], 0, bytes(16))
            assert bench.lane.reply(number, 0)
            read = bench.ask_read(0, 6, way=2)
            time.sleep(0.1)
            assert all(bench.silent(way) for way in range(3))
            assert bench.pages.attributes(FILE) == before
        assert {bench.answer()[:2], bench.answer()[:2]} == {(forwarded, 0), (written, 0)}
        assert bench.answer(1) == (carried, 0, b"")
        assert bench.answer(2)[0] == read
        expect(bench, queued=2)


@pytest.mark.slow
def test_a_cut_has_a_write_and_its_answer_or_neither():
    """Each writer counts up in a page of its own. What a cut finds in the pages is what the writers
    were answered, neither less nor more."""
    writers, cuts, stop = 3, 100, threading.Event()
    with Bench(threads=writers) as bench:
        bench.load()
        answered = [0] * writers

        def write(way):
            while not stop.is_set():
                number = answered[way] + 1
                bench.kernels[way].send(
                    HEADER.pack(80 + CELL, WRITE, number, FILE, 0, 0, 0, 0, 0)
                    + IO.pack(FILE, way * CELL, CELL, 0, 0, 0, 0)
                    + struct.pack("=Q", number) * (CELL // 8)
                )
                assert bench.answer(way)[:2] == (number, 0)
                answered[way] = number

        crew = [threading.Thread(target=write, args=(way,)) for way in range(writers)]
        for thread in crew:
            thread.start()
        content = np.zeros((writers, CELL // 8), np.uint64)
        for _ in range(cuts):
            with bench.gate.shut_for():
                sealed = bench.pages.seal()
                bench.pages.read(FILE, 0, content)
                assert (content == content[:, :1]).all()
                deadline = time.monotonic() + TIMEOUT_S
                while answered != content[:, 0].tolist():  # the last ones are on their way
                    assert all(answered[way] <= content[way, 0] for way in range(writers))
                    assert time.monotonic() < deadline, (answered, content[:, 0])
            assert sealed.generation + 1 == bench.pages.generation
            time.sleep(0.001)
        stop.set()
        for thread in crew:
            thread.join()
        assert min(answered) > 10


# ---- credits ----


def test_writes_without_credits_wait_in_their_order():
    with Bench() as bench:
        bench.load(credits=2)
        assert bench.write(0, b"x" * 2 * CELL)[0] == 0
        assert bench.write(0, b"y" * 2 * CELL)[0] == 0  # dirty already: costs nothing
        large = bench.ask_write(2 * CELL, b"z" * 10 * CELL)
        assert bench.told(lambda: bench.lane.wants()) >= 10
        small = bench.ask_write(0, b"w")  # queues behind, although it would cost nothing
        assert bench.silent()
        assert bench.read(0, 1) == (0, b"y")
        bench.pages.grant(9)
        bench.lane.resume()
        assert bench.silent()
        assert bench.told(lambda: bench.lane.wants()) >= 10
        bench.pages.grant(1)
        bench.lane.resume()
        assert bench.answer() == (large, 0, struct.pack("=II", 10 * CELL, 0))
        assert bench.answer() == (small, 0, struct.pack("=II", 1, 0))
        expect(bench, parked=2, parked_now=0)
        assert bench.lane.wants() in (None, 0)
        assert bench.pages.claims() == (12, 0)


def test_parked_writes_can_be_passed_on():
    with Bench() as bench:
        bench.load(credits=0)
        uniques = [bench.ask_write(i * CELL, bytes([i]) * CELL) for i in range(5)]
        expect(bench, parked_now=5)
        bench.lane.pass_on()
        for i, unique in enumerate(uniques):
            number, message = bench.take()
            assert HEADER.unpack_from(message)[2] == unique
            assert message[80:] == bytes([i]) * CELL
            assert bench.lane.reply(number, errno.ENOSPC)
            assert bench.answer() == (unique, errno.ENOSPC, b"")
        bench.pages.grant(1)
        assert bench.write(0, b"again")[0] == 0


def test_credits_are_asked_for_in_time():
    with Bench(ask_cells=8) as bench:
        bench.load()
        for i in range(7):
            bench.write(i * CELL, b"x")
        assert bench.lane.wants() is None
        bench.write(7 * CELL, b"x")
        assert bench.told(lambda: bench.lane.wants() == 0)
        assert bench.lane.wants() is None
        bench.write(8 * CELL, b"x" * 8 * CELL)
        assert bench.told(lambda: bench.lane.wants() == 0)


def test_grants_race_with_writers():
    """Writers on all descriptors, credits given bit by bit: nobody is left waiting."""
    ways, each = 4, 300
    with Bench(threads=ways) as bench:
        bench.load(credits=0)
        failed = []

        def write(way):
            chooser = random.Random(way)
            for i in range(each):
                nbytes = chooser.choice((CELL, 2 * CELL, 5 * CELL))
                bench.kernels[way].send(
                    HEADER.pack(80 + nbytes, WRITE, i + 1, FILE, 0, 0, 0, 0, 0)
                    + IO.pack(FILE, (way * 100 + i % 20) * CELL, nbytes, 0, 0, 0, 0)
                    + bytes(nbytes)
                )
                if bench.answer(way)[1]:
                    failed.append((way, i))

        crew = [threading.Thread(target=write, args=(way,)) for way in range(ways)]
        for thread in crew:
            thread.start()
        deadline = time.monotonic() + 60
        while any(thread.is_alive() for thread in crew):
            assert time.monotonic() < deadline, bench.lane.statistics()
            select.select([bench.lane.eventfd], [], [], 0.01)
            bench.lane.reset()
            wanted = bench.lane.wants()
            if bench.pages.dirty_cells > 60:
                bench.pages.seal()
                bench.pages.retire(bench.pages.generation - 1)
            if wanted:
                bench.pages.grant(1 + wanted // 2)
                bench.lane.resume()
        assert not failed
        expect(bench, served={"write": ways * each}, parked_now=0)


# ---- names and attributes ----


def tell(
    bench, ino, mode, parent=0, name=b"", size=0, cells=0, resident=0, times=(1, 2, 3), no_xattrs=0
):
    values = (ino, 5, size, cells, *times, mode, 1, 1000, 1001, 0x12345, 64, resident, no_xattrs)
    bench.known.tell(values, parent, name, 0)


ATTR = struct.Struct("=QQQQQQIIIIIIIIII")


def test_getattr_tells_what_python_told(bench):
    tell(bench, 50, stat.S_IFDIR | 0o755, size=99, times=(-1, 10**9 + 5, -(10**9)))
    error, body = bench.call(GETATTR, bytes(16), ino=50)
    assert error == 0 and len(body) == 16 + ATTR.size
    assert struct.unpack_from("=QII", body) == (300, 500_000_000, 0)
    assert ATTR.unpack_from(body, 16) == (
        *(50, CELL, 0),
        *(2**64 - 1, 1, 2**64 - 1),
        *(999_999_999, 5, 0),
        *(stat.S_IFDIR | 0o755, 1, 1000, 1001, 0x12345, CELL, 0),
    )
    bench.known.forget_inode(50)
    bench.ask(GETATTR, bytes(16), ino=50)
    assert bench.forwarded()[0][1] == GETATTR


FLEETING = 1 << 62


def test_of_what_is_fleeting_the_kernel_keeps_nothing():
    """Neither the attributes of that inode nor where the names in it lead; others as ever."""
    with Bench(fleeting_ino=FLEETING) as bench:
        tell(bench, FLEETING, stat.S_IFDIR | 0o555, 1, b".snapshots")
        tell(bench, 1 << 40 | 1, stat.S_IFDIR | 0o755, FLEETING, b"name")
        valid = struct.Struct("=QQQQII")
        kept, nothing = (300, 500_000_000), (0, 0)
        for parent, name, names, attributes in (
            (1, b".snapshots\0", kept, nothing),
            (FLEETING, b"name\0", nothing, kept),
        ):
            error, body = bench.call(LOOKUP, name, ino=parent)
            told = valid.unpack_from(body)
            assert error == 0
            assert ((told[2], told[4]), (told[3], told[5])) == (names, attributes)
        bench.known.put_name(FLEETING, b"missing", 0)
        error, body = bench.call(LOOKUP, b"missing\0", ino=FLEETING)
        assert error == 0 and valid.unpack_from(body) == (0,) * 6
        for ino, expected in ((FLEETING, nothing), (1 << 40 | 1, kept)):
            error, body = bench.call(GETATTR, bytes(16), ino=ino)
            assert error == 0 and struct.unpack_from("=QI", body) == expected


def test_size_and_times_of_resident_files_come_from_pages(bench):
    tell(bench, FILE, stat.S_IFREG | 0o644, size=1, cells=3, resident=1)
    bench.pages.set_times(FILE, 7, 8, 9)
    bench.write(0, b"x" * 100)
    _, mtime_ns, ctime_ns, _ = bench.pages.attributes(FILE)
    for size, units in ((100, 8), (10 * CELL + 1, 32)):
        bench.pages.truncate(FILE, size, mtime_ns)
        bench.pages.set_times(FILE, mtime_ns, ctime_ns, 9)
        _, body = bench.call(GETATTR, bytes(16))
        told = ATTR.unpack_from(body, 16)
        assert told[:3] == (FILE, size, units)
        assert told[3:9] == (
            *(0, mtime_ns // 10**9, ctime_ns // 10**9),
            *(9, mtime_ns % 10**9, ctime_ns % 10**9),
        )
    bench.pages.truncate(FILE, 60, 1)
    assert ATTR.unpack_from(bench.call(GETATTR, bytes(16))[1], 16)[:3] == (FILE, 60, 1)
    tell(bench, 51, stat.S_IFREG, resident=1)  # in pages no more
    bench.ask(GETATTR, bytes(16), ino=51)
    bench.forwarded()


def test_lookup_counts_what_it_tells(bench):
    long = b"n" * 255
    for name in (b"a", long):
        tell(bench, 60, stat.S_IFREG | 0o600, 1, name, size=5)
        error, body = bench.call(LOOKUP, name + b"\0", ino=1)
        assert error == 0
        assert struct.unpack_from("=QQQQII", body) == (60, 5, 300, 300, 500_000_000, 500_000_000)
        assert ATTR.unpack_from(body, 40)[:3] == (60, 5, 1)
    assert bench.known.references(60) == 2
    bench.known.put_name(1, b"missing", 0)
    error, body = bench.call(LOOKUP, b"missing\0", ino=1)
    assert error == 0 and struct.unpack_from("=QQQ", body) == (0, 0, 300)
    for name in (b".\0", b"..\0", b"unknown\0", b"a\0b\0", b"no end", b"\0\0", b"x" * 256 + b"\0"):
        bench.ask(LOOKUP, name, ino=1)
        assert bench.forwarded()[1] == name
    tell(bench, 61, stat.S_IFREG, 1, b"left", resident=1)
    bench.ask(LOOKUP, b"left\0", ino=1)
    assert bench.forwarded()[0][1] == LOOKUP
    assert bench.known.references(61) == 0
    with bench.gate.shut_for():
        bench.ask(LOOKUP, b"a\0", ino=1)
        assert bench.silent()
        assert bench.known.references(60) == 2
    bench.answer()
    assert bench.known.references(60) == 3


XATTR_NAMES = [b"user.a", b"trusted.b", b"security.capability", b"user." + b"n" * 250]
XATTR_NAMES += [b"system.posix_acl_access", b"system.posix_acl_default"]
NO_XATTR_NAMES = [b"user.", b"user", b"security.", b"system.posix_acl", b"system.posix_acl_accessx"]
NO_XATTR_NAMES += [b"x", b"btrfs.a", b"User.a", b"user." + b"n" * 251]


def test_inodes_without_extended_attributes_are_answered_for(bench):
    tell(bench, 80, stat.S_IFREG | 0o600, no_xattrs=1)
    for name in XATTR_NAMES:
        for size in (0, 4096):
            question = struct.pack("=II", size, 0) + name + b"\0"
            assert bench.call(GETXATTR, question, ino=80) == (errno.ENODATA, b"")
    assert bench.call(LISTXATTR, struct.pack("=II", 0, 0), ino=80) == (0, bytes(8))
    for size in (1, 65536, 2**32 - 1):
        assert bench.call(LISTXATTR, struct.pack("=II", size, 0), ino=80) == (0, b"")
    with bench.gate.shut_for():
        bench.ask(GETXATTR, bytes(8) + b"user.a\0", ino=80)
        assert bench.silent()
    assert bench.answer()[1] == errno.ENODATA
    expect(bench, served={"getxattr": 13, "listxattr": 4}, forwarded={}, refused=0)


def test_other_extended_attributes_are_pythons(bench):
    tell(bench, 80, stat.S_IFREG | 0o600, no_xattrs=1)
    tell(bench, 81, stat.S_IFREG | 0o600, no_xattrs=0)
    questions = [(80, name + b"\0") for name in NO_XATTR_NAMES]
    questions += [(80, b"user.a\0b\0"), (80, b"user.no end"), (80, b"\0\0"), (80, b"user.a\0\0")]
    questions += [(ino, name + b"\0") for ino in (81, 82) for name in XATTR_NAMES]
    for ino, name in questions:
        bench.ask(GETXATTR, bytes(8) + name, ino=ino)
        assert bench.forwarded()[1] == bytes(8) + name
    for ino in (81, 82):
        bench.ask(LISTXATTR, bytes(8), ino=ino)
        assert bench.forwarded()[0][3] == ino
    bench.known.forget_inode(80)
    bench.ask(GETXATTR, bytes(8) + b"user.a\0", ino=80)
    assert bench.forwarded()[0][1] == GETXATTR
    with Bench(serve=ALL & ~lib.RF_LANE_XATTR) as other:
        tell(other, 80, stat.S_IFREG | 0o600, no_xattrs=1)
        for opcode, body in ((GETXATTR, bytes(8) + b"user.a\0"), (LISTXATTR, bytes(8))):
            other.ask(opcode, body, ino=80)
            assert other.forwarded()[0][1] == opcode


def test_references_are_given_back(bench):
    bench.known.refer(70, 10)
    bench.known.refer(71, 1)
    bench.ask(FORGET, struct.pack("=Q", 4), ino=70)
    many = [(70, 1)] * 5 + [(72 + i, 1) for i in range(600)] + [(71, 1)]
    bench.known.watch(71)
    body = struct.pack("=II", len(many), 0) + b"".join(struct.pack("=QQ", *one) for one in many)
    bench.ask(BATCH_FORGET, body, ino=0)
    assert bench.told(bench.known.unreferenced) == [71]
    assert bench.known.references(70) == 1
    assert bench.known.references(71) == 0
    assert bench.silent(time_s=0.01)


def test_releases_are_told_later(bench):
    for opcode in (RELEASE, RELEASEDIR):
        for ino in (5, 6, 5):
            assert bench.call(opcode, bytes(24), ino=ino) == (0, b"")
    found = []
    while len(found) < 6:
        found += bench.told(bench.lane.released)
    assert sorted(found) == [5, 5, 5, 5, 6, 6]
    assert not select.select([bench.lane.eventfd], [], [], 0.03)[0]  # nobody waits for it
    for ino in range(1, 1200):
        bench.call(RELEASE, bytes(24), ino=ino)
    assert select.select([bench.lane.eventfd], [], [], TIMEOUT_S)[0]  # but for so many
    found = []
    while more := bench.lane.released():
        found += more
    assert sorted(found) == list(range(1, 1200))


def test_flush_interrupt_and_destroy_are_answered(bench):
    assert bench.call(FLUSH, bytes(24)) == (errno.ENOSYS, b"")
    assert bench.call(INTERRUPT, bytes(8), unique=9) == (errno.ENOSYS, b"")
    assert bench.call(DESTROY) == (0, b"")


# ---- Python ----


def test_carried_requests_are_answered_in_any_order():
    with Bench(threads=2) as bench:
        uniques = [bench.ask(FSYNC, bytes(16), way=i % 2) for i in range(300)]
        taken = [bench.take() for _ in uniques]
        assert sorted(HEADER.unpack_from(message)[2] for _, message in taken) == uniques
        random.Random(3).shuffle(taken)
        for number, message in taken:
            assert bench.lane.reply(number, 0, message[8:16])
        for way in (0, 1):
            answers = [bench.answer(way) for _ in range(150)]
            assert all(struct.unpack("=Q", body) == (unique,) for unique, _, body in answers)
            assert sorted(unique for unique, *_ in answers) == uniques[way::2]
        expect(bench, carried_now=0)


def test_an_answer_needs_a_question(bench):
    unique = bench.ask(FSYNC, bytes(16))
    number, _ = bench.take()
    for wrong in (number + 1, number + (1 << 32), 0, 2**64 - 1):
        with pytest.raises(AssertionError):
            bench.lane.reply(wrong, 0)
    for error in (-1, 512, 2**30):
        with pytest.raises(AssertionError):
            bench.lane.reply(number, error)
    assert bench.lane.reply(number, errno.EIO, b"not sent with an error")
    with pytest.raises(AssertionError):
        bench.lane.reply(number, 0)
    assert bench.answer() == (unique, errno.EIO, b"")
    assert bench.silent(time_s=0.01)
    assert bench.lane.take() is None


def test_the_eventfd_is_raised_once_for_many(bench):
    for _ in range(10):
        bench.ask(FSYNC, bytes(16))
    time.sleep(0.1)
    assert select.select([bench.lane.eventfd], [], [], TIMEOUT_S)[0]
    bench.lane.reset()
    assert not select.select([bench.lane.eventfd], [], [], 0.01)[0]
    bench.lane.reset()
    for _ in range(10):
        assert bench.lane.take() is not None
    bench.ask(FSYNC, bytes(16))
    assert select.select([bench.lane.eventfd], [], [], TIMEOUT_S)[0]


# ---- the library ----


def test_forwarded_requests_come_back_where_they_belong():
    with Bench(threads=4) as bench:
        asked = {}
        for i in range(200):
            body = os.urandom(random.Random(i).choice((0, 8, 39, 40, 41, 5000, 60000)))
            unique = bench.ask(MKDIR, body, way=i % 4, ino=i + 1)
            fields, found = bench.forwarded()
            assert found == body and fields[0] == 40 + len(body)
            assert (fields[1], *fields[3:]) == (MKDIR, i + 1, 1000, 1000, 4242, 0, 0)
            asked[fields[2]] = (unique, i % 4, body)
        order = list(asked)
        random.Random(4).shuffle(order)
        for tagged in order:
            bench.respond(tagged, 0, asked[tagged][2])
        for way in range(4):
            answers = [bench.answer(way) for _ in range(50)]
            assert answers == [
                (unique, 0, body)
                for unique, at, body in (asked[tagged] for tagged in order)
                if at == way
            ]


def test_answers_of_the_library_are_not_believed(bench):
    unique = bench.ask(OPEN, bytes(8))
    tagged = bench.forwarded()[0][2]
    bench.library.send(b"short")
    bench.library.send(OUT.pack(16, 0, tagged | 63 << 56))  # no such descriptor
    bench.library.send(OUT.pack(99, 0, tagged))
    assert bench.answer() == (unique, errno.EIO, b"")
    for error in (-5, 600, -(2**31) + 1):
        unique = bench.ask(OPEN, bytes(8))
        bench.respond(bench.forwarded()[0][2], error, b"body")
        assert bench.answer() == (unique, errno.EIO, b"")
    unique = bench.ask(OPEN, bytes(8))
    bench.respond(bench.forwarded()[0][2], errno.EPERM, b"body")
    assert bench.answer() == (unique, errno.EPERM, b"")
    expect(bench, lost=2)


def test_a_library_that_is_gone(bench):
    bench.library.close()
    assert bench.call(OPEN, bytes(8)) == (errno.EIO, b"")
    assert bench.write(0, b"goes on")[0] == 0


def test_notifications_pass_while_the_gate_is_shut(bench):
    with bench.gate.shut_for():
        bench.respond(0, -2, b"invalidate")
        assert bench.answer() == (0, -2, b"invalidate")
        assert bench.lane.notify(OUT.pack(OUT.size, 3, 0)) == 0
        assert bench.answer() == (0, -3, b"")
    expect(bench, notified=2)


def test_listings_fit_into_the_socket():
    with Bench() as bench:
        room = bench.ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        bench.ask(READDIR, IO.pack(1, 7, 2**31, 0, 0, 0, 0))
        fields = IO.unpack(bench.forwarded()[1])
        assert fields[1] == 7 and CELL < fields[2] < room - 16
        bench.ask(READDIR, IO.pack(1, 7, 5000, 0, 0, 0, 0))
        assert IO.unpack(bench.forwarded()[1])[2] == 5000


EXTENDED, SPLICE, WRITEBACK, KILLPRIV, MMAP = 1 << 30, 7 << 7, 1 << 16, 1 << 28, 1 << 36
AUTO_INVAL, EXPLICIT_INVAL, NEVER_OFFERED = 1 << 12, 1 << 25, 1 << 27


def agree(bench, offered, wanted, minor=45):
    body = INIT_IN.pack(7, minor, 131072, offered & 0xFFFFFFFF, offered >> 32)
    unique = bench.ask(INIT, body)
    fields, found = bench.forwarded()
    theirs = INIT_IN.unpack(found)
    assert theirs[3] | theirs[4] << 32 == offered & ~SPLICE and theirs[:3] == (7, minor, 131072)
    answer = INIT_OUT.pack(7, 38, 131072, wanted & 0xFFFFFFFF, 12, 9, 9, 1, 0, 0, wanted >> 32)
    bench.respond(fields[2], 0, answer)
    found, error, body = bench.answer()
    assert (found, error) == (unique, 0)
    _, minor, readahead, low, background, congested, write, grain, pages, _, high = INIT_OUT.unpack(
        body
    )
    assert (readahead, background, congested, write) == (131072, 128, 96, MAX_WRITE)
    assert (grain, pages) == (1, MAX_WRITE // 4096)
    return minor, low | high << 32


def test_init_asks_for_what_is_offered():
    with Bench() as bench:
        offered = (2**42 - 1) & ~NEVER_OFFERED
        minor, agreed = agree(bench, offered, EXTENDED | SPLICE | AUTO_INVAL | WRITEBACK)
        assert minor == 45
        assert agreed & (EXTENDED | KILLPRIV | MMAP | EXPLICIT_INVAL) == (
            EXTENDED | KILLPRIV | MMAP | EXPLICIT_INVAL
        )
        assert not agreed & (SPLICE | AUTO_INVAL | WRITEBACK | NEVER_OFFERED | 1 << 37 | 1 << 41)
    with Bench(init_add=WRITEBACK | NEVER_OFFERED, init_remove=KILLPRIV) as bench:
        _, agreed = agree(bench, offered, EXTENDED)
        assert agreed & WRITEBACK and not agreed & (KILLPRIV | NEVER_OFFERED)
    with Bench() as bench:
        minor, agreed = agree(bench, EXTENDED | AUTO_INVAL, AUTO_INVAL, minor=50)
        assert (minor, agreed) == (45, EXTENDED)
    with Bench() as bench:
        unique = bench.ask(INIT, b"")
        bench.respond(bench.forwarded()[0][2], errno.EPROTO)
        assert bench.answer() == (unique, errno.EPROTO, b"")


def test_direct_opens_that_python_answers_get_parallel_writes():
    entry = os.urandom(128)
    carry = 1 << OPEN | 1 << CREATE | 1 << TMPFILE | 1 << FSYNC
    for offered, flags in ((2**42 - 1, 0x41), (EXTENDED, 0)):
        with Bench(carry=carry) as bench:
            agree(bench, offered, EXTENDED)
            for opcode, before in ((OPEN, b""), (CREATE, entry), (TMPFILE, entry), (FSYNC, entry)):
                for wanted in (0, os.O_DIRECT):
                    bench.ask(opcode, struct.pack("=IIII", os.O_RDWR | wanted, 0, 0, 0) + b"n\0")
                    bench.lane.reply(bench.take()[0], 0, before + struct.pack("=QII", 9, 2, 0))
                    _, error, body = bench.answer()
                    assert (error, body[: len(before)]) == (0, before)
                    found = struct.unpack("=QII", body[len(before) :])
                    added = flags if wanted and opcode != FSYNC else 0
                    assert found == (9, 2 | added, 0)
            for data in (b"", b"short", entry + bytes(1000)):  # whatever Python says
                bench.ask(CREATE, struct.pack("=IIII", os.O_DIRECT, 0, 0, 0) + b"n\0")
                bench.lane.reply(bench.take()[0], 0, data)
                _, error, body = bench.answer()
                assert (error, len(body)) == (0, len(data))


def test_direct_opens_get_parallel_writes():
    entry = os.urandom(128)
    for offered, flags in ((2**42 - 1, 0x41), (EXTENDED, 0)):
        with Bench() as bench:
            agree(bench, offered, EXTENDED)
            for opcode, before in ((OPEN, b""), (CREATE, entry)):
                for wanted in (0, os.O_DIRECT):
                    bench.ask(opcode, struct.pack("=IIII", os.O_RDWR | wanted, 0, 0, 0) + b"n\0")
                    tagged = bench.forwarded()[0][2]
                    bench.respond(tagged, 0, before + struct.pack("=QII", 9, 2, 0))
                    _, error, body = bench.answer()
                    assert (error, body[: len(before)]) == (0, before)
                    found = struct.unpack("=QII", body[len(before) :])
                    assert found == (9, 2 | (flags if wanted else 0), 0)


# ---- the end ----


def test_the_end_of_the_device_is_told():
    with Bench(threads=2) as bench:
        assert not bench.lane.ended
        bench.kernels[0].close()
        assert bench.told(lambda: bench.lane.ended)


@pytest.mark.slow
def test_stopping_in_the_middle():
    for round_ in range(10):
        with Bench(threads=4, engine="threads" if round_ % 2 else None) as bench:
            bench.load(credits=20)
            stop = threading.Event()

            def hurry(way, bench=bench, stop=stop):
                bench.kernels[way].settimeout(0.2)
                while not stop.is_set():
                    try:
                        bench.ask_write(way * CELL * 20, b"x" * CELL * 3, way=way, unique=2)
                        bench.ask_read(0, CELL, way=way, unique=4)
                        bench.ask(FSYNC, bytes(16), way=way, unique=6)
                        bench.ask(OPEN, bytes(8), way=way, unique=8)
                        while not bench.silent(way, 0):
                            bench.kernels[way].recv(MAX_WRITE)
                    except OSError:
                        return

            crew = [threading.Thread(target=hurry, args=(way,)) for way in range(4)]
            for thread in crew:
                thread.start()
            time.sleep(0.03)
            request = bench.lane.take()
            bench.lane.stop()
            if request is not None:
                assert bench.lane.reply(request.number, 0)
            bench.lane.stop()
            stop.set()
            for thread in crew:
                thread.join()


def test_setups_that_make_no_sense():
    for setup in ({"max_write": 0}, {"max_write": 5000}, {"cell_bytes": 3000}):
        with pytest.raises(MemoryError):
            Bench(**setup)
    with Bench() as bench, pytest.raises(OSError):
        bench.lane.start([0], 0)
