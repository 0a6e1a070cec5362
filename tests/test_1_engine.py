"""The engine: one suite for both kinds, and what happens where the kernel gives no ring."""

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import trio

from raidfs._native import lib
from raidfs.engine import Batch, Engine

CELL = 4096
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["threads", "ring", "ring_only"])
def engine(request):
    made = Engine(request.param)
    yield made
    made.close()


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def cells(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, CELL), dtype=np.uint8)


def addresses_of(array):
    return np.uint64(array.ctypes.data) + np.arange(len(array), dtype=np.uint64) * np.uint64(CELL)


def test_a_chain_is_done_in_order(engine, fd):
    batch, found = Batch(), bytearray(6)
    batch.chain()
    batch.write(fd, 10, b"abcdef")
    batch.sync(fd)
    batch.read(fd, 10, found)
    batch.write(fd, 12, b"XY")
    engine.run_blocking(batch)
    assert batch.errors() == {} and found == b"abcdef"
    assert os.pread(fd, 20, 0) == bytes(10) + b"abXYef"


def test_an_error_ends_its_chain_and_no_other(engine, fd):
    os.pwrite(fd, b"0123456789", 0)
    batch, outs = Batch(), [bytearray(4) for _ in range(3)]
    batch.chain()
    batch.read(fd, 0, outs[0])
    batch.read(fd, 8, outs[1])  # two bytes short
    batch.write(fd, 0, b"never")
    batch.chain()
    batch.sync(-1)
    batch.write(fd, 0, b"never")
    batch.chain()
    batch.read(fd, 4, outs[2])
    engine.run_blocking(batch)
    assert batch.errors() == {1: (errno.ENODATA, "reading"), 2: (errno.EBADF, "syncing")}
    assert outs[0] == b"0123" and outs[2] == b"4567" and os.pread(fd, 20, 0) == b"0123456789"


def test_gathers_larger_than_the_kernel_takes_at_once(engine, fd):
    content = cells(1500)
    order = np.random.default_rng(1).permutation(1500)
    batch, found = Batch(), np.empty((1500, CELL), np.uint8)
    batch.write_cells(fd, CELL, addresses_of(content)[order], CELL)
    batch.sync(fd)
    batch.read(fd, CELL, found)
    engine.run_blocking(batch)
    assert batch.errors() == {} and (found == content[order]).all()


def test_nothing_to_do(engine, fd):
    batch = Batch()
    engine.run_blocking(batch)
    batch.write(fd, 0, b"")
    batch.write_cells(fd, 0, np.empty(0, np.uint64), CELL)
    engine.run_blocking(batch)
    trio.run(engine.run, Batch())
    assert batch.errors() == {} and os.fstat(fd).st_size == 0


def test_a_batch_is_run_once(engine, fd):
    batch = Batch()
    batch.sync(fd)
    engine.run_blocking(batch)
    with pytest.raises(AssertionError, match="once"):
        engine.run_blocking(batch)
    with pytest.raises(AssertionError, match="once"):
        batch.write(fd, 0, b"late")


@pytest.mark.trio
async def test_many_tasks_wait_at_once(engine, fd):
    """With chains that take long and short, whoever waits on the eventfd for all changes often."""
    ended = []

    async def work(number):
        rng = random.Random(number)
        for turn in range(20):
            batch, found = Batch(), bytearray(8)
            data = rng.randbytes(8)
            batch.write(fd, number * 8, data)
            if rng.random() < 0.3:
                batch.sync(fd)
            batch.read(fd, number * 8, found)
            await engine.run(batch)
            assert batch.errors() == {} and found == data, (number, turn)
        ended.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(work, number)
    assert sorted(ended) == list(range(50))
    assert not engine._finished and not engine._waiting and not engine._led


@pytest.mark.trio
async def test_more_chains_than_the_ring_has_entries(engine, fd):
    count = 3000
    content = np.arange(count, dtype=np.uint64)
    batch = Batch()
    for i in range(count):
        batch.chain()
        batch.write(fd, i * 8, content[i : i + 1])
        if i % 500 == 0:
            batch.sync(fd)
    await engine.run(batch)
    assert batch.errors() == {} and os.pread(fd, count * 8, 0) == content.tobytes()
    found = np.zeros_like(content)
    batch = Batch()
    for i in range(count):
        batch.chain()
        batch.read(fd, i * 8, found[i : i + 1])
    await engine.run(batch)
    assert batch.errors() == {} and (found == content).all()


@pytest.mark.trio
async def test_a_cancelled_task_leaves_when_its_batch_is_done(engine, fd):
    found = bytearray(4)
    with trio.CancelScope() as scope:
        scope.cancel()
        await engine.run(Batch())
    assert scope.cancelled_caught  # not even begun
    batch = Batch()
    for _ in range(200):
        batch.write(fd, 0, bytes(1 << 16))
    batch.read(fd, 0, found)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run, batch)
            while batch._ios is None:
                await trio.sleep(0)
            scope.cancel()
    assert batch.errors() == {} and found == bytes(4)


@pytest.mark.trio
async def test_closing_while_busy(fd):
    for kind in ("threads", "ring", "ring_only"):
        engine = Engine(kind)
        batches = []
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                batch = Batch()
                batch.write(fd, 0, bytes(1 << 20))
                batch.sync(fd)
                batches.append(batch)
                nursery.start_soon(engine.run, batch)
            while any(batch._ios is None for batch in batches):
                await trio.sleep(0)
            engine.close()
        assert all(batch._ios is not None and batch.errors() == {} for batch in batches)
        with pytest.raises(ValueError, match="closed"):
            engine.run_blocking(_one(fd))
        with pytest.raises(ValueError, match="closed"):
            await engine.run(_one(fd))
        engine.close()


def _one(fd):
    batch = Batch()
    batch.sync(fd)
    return batch


@pytest.mark.trio
async def test_threads_and_tasks_share_an_engine(engine, fd):
    os.ftruncate(fd, 1 << 16)

    def work(number):
        for turn in range(100):
            batch, found = Batch(), bytearray(16)
            data = bytes([number, turn]) * 8
            batch.chain()
            batch.write(fd, number * 16, data)
            batch.read(fd, number * 16, found)
            batch.chain()
            batch.read(fd, 4096, bytearray(100))
            engine.run_blocking(batch)
            assert batch.errors() == {} and found == data

    failed = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(100):
        batch, found = Batch(), bytearray(8)
        batch.write(fd, 8192, turn.to_bytes(8, "big"))
        batch.read(fd, 8192, found)
        await engine.run(batch)
        assert int.from_bytes(found, "big") == turn
    for thread in threads:
        await trio.to_thread.run_sync(thread.join)
    assert not failed


def test_a_thread_that_ends_takes_no_io_along(engine, tmp_path):
    """Requests of io_uring die with the thread that submitted them: so that must be another."""
    fd = os.open(tmp_path / "big", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    batches = []

    def begin():
        for i in range(50):
            batch = Batch()
            batch.write(fd, i << 20, bytes([i]) * (1 << 20))
            batch.sync(fd)
            batches.append(batch)
            ios = batch._freeze()
            assert lib.rf_engine_start(engine.handle, ios, len(batch), 1000 + i) == 0

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    done = set()

    async def wait():
        while len(done) < 50:
            await trio.lowlevel.wait_readable(engine._eventfd)
            engine._collect()
            done.update(engine._finished)

    trio.run(wait)
    assert done == set(range(1000, 1050)) and all(batch.errors() == {} for batch in batches)
    os.close(fd)


REFUSED = """
import ctypes, errno, struct, sys
from raidfs.engine import Engine, Batch
code = int(sys.argv[1])
SETUP = 425  # io_uring_setup, on every architecture
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, SETUP), (0x06, 0, 0, 0x00050000 | code),
         (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *rule) for rule in rules)
memory = ctypes.create_string_buffer(program, len(program))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(memory)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header) == 0, ctypes.get_errno()
engine = Engine()
assert engine.kind == "threads"
batch = Batch()
with open(sys.argv[2], "r+b") as file:
    batch.write(file.fileno(), 0, b"by threads")
    batch.sync(file.fileno())
    engine.run_blocking(batch)
assert batch.errors() == {}
engine.close()
try:
    Engine("ring")
except OSError as error:
    assert error.errno == code, error
else:
    raise AssertionError("a ring?")
"""


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_kernels_that_give_no_ring(tmp_path, code):
    path = tmp_path / "file"
    path.write_bytes(b"")
    subprocess.run([sys.executable, "-c", REFUSED, str(code), str(path)], check=True, cwd=ROOT)
    assert path.read_bytes() == b"by threads"


@pytest.mark.slow
def test_no_data_races(tmp_path):
    """The C test under the thread sanitizer; it wants fewer random addresses than kernels give."""
    sources = ["tests/test_engine.c", "engine.c", "engine_ring.c", "engine_threads.c"]
    flags = ["-g", "-O1", "-std=gnu11", "-UNDEBUG", "-fsanitize=thread", "-Icsrc"]
    paths = [f"csrc/{source}" for source in sources]
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, *flags, *paths, "-o", tmp_path / "engine", "-lpthread"], check=True, cwd=ROOT
    )
    command = ["setarch", "-R", tmp_path / "engine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
