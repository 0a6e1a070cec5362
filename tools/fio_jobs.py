"""The jobs of the fio benchmark: what each does, with which flags, and how it is counted.

A job runs on a *side* (a directory of some filesystem, and the process that serves it, if one
does) and returns {"per_s", "mib_s", "us"}: operations per second, throughput, mean time of one.
What a job writes is made durable within the job's CPU time, not within its rate, but for the jobs
whose name says otherwise: a rate of buffered writes is what applications see.

Flags common to all fio jobs: one file of the size given, --time_based for --runtime seconds unless
the job reads or writes a file once, --fallocate=none (blank reservations help nobody here),
--norandommap (each offset drawn anew), --randrepeat=1 (the same offsets on every side).
"""

import json
import os
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

FIO = {
    # name: (flags, MiB of the file, what is counted, the file is written first)
    "4k-randread-q16": ("--rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=16", 256),
    "4k-randread-q1": ("--rw=randread --bs=4k --direct=1 --ioengine=psync", 256),
    "4k-randwrite-q16": ("--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16", 256),
    "4k-randwrite-q1": ("--rw=randwrite --bs=4k --direct=1 --ioengine=psync", 256),
    "1m-write-direct": ("--rw=write --bs=1m --direct=1 --ioengine=libaio --iodepth=4", 512),
    "1m-read-direct": ("--rw=read --bs=1m --direct=1 --ioengine=libaio --iodepth=4", 512),
    "1m-read-cold": ("--rw=read --bs=1m --direct=0 --ioengine=psync", 512),
    "1m-write-buffered": ("--rw=write --bs=1m --direct=0 --ioengine=psync", 512),
    "4k-append": ("--rw=write --bs=4k --direct=0 --ioengine=psync", 512),
    "4k-write-fsync": ("--rw=randwrite --bs=4k --direct=0 --ioengine=psync --fsync=1", 64),
}
ONCE = {"1m-read-cold"}  # a second pass would find all of it in the kernel's cache
FRESH = {"1m-write-direct", "1m-write-buffered", "4k-append"}  # begin with an empty file
FILES = ("create-4k", "stat-cold", "cp-a")
JOBS = (*FIO, *FILES)
DESCRIPTIONS = {
    "4k-randread-q16": "4 KiB random read, direct, queue 16",
    "4k-randread-q1": "4 KiB random read, direct, one at a time",
    "4k-randwrite-q16": "4 KiB random write, direct, queue 16",
    "4k-randwrite-q1": "4 KiB random write, direct, one at a time",
    "1m-write-direct": "1 MiB sequential write, direct, queue 4",
    "1m-read-direct": "1 MiB sequential read, direct, queue 4",
    "1m-read-cold": "1 MiB sequential read, buffered, cold",
    "1m-write-buffered": "1 MiB sequential write, buffered",
    "4k-append": "4 KiB append, buffered",
    "4k-write-fsync": "4 KiB write and fsync",
    "create-4k": "create files of 4 KiB",
    "stat-cold": "stat them, kernel caches dropped",
    "cp-a": "cp -a of a tree",
}
SMALL_FILES = 4000
TREE_FILES = 2000


def drop_caches(what=3):
    """Of the whole machine; root only, others measure what is cached and are told so."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text(f"{what}\n")
    except OSError:
        return False
    return True


def _sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fio(name, directory, runtime_s):
    """One fio job on a fresh file."""
    flags, mib = FIO[name]
    path = directory / "fio.data"
    if name not in FRESH:
        chunk = os.urandom(1 << 20)
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(chunk)
            os.fsync(file.fileno())
    if "read" in name:
        drop_caches()
    timed = () if name in ONCE else ("--time_based", f"--runtime={runtime_s * 1000:.0f}ms")
    command = ["fio", "--name=job", f"--filename={path}", f"--size={mib}m", *timed]
    command += ["--fallocate=none", "--norandommap", "--randrepeat=1", "--output-format=json"]

    def work():
        done = subprocess.run([*command, *flags.split()], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"fio, {name}: {done.stderr.strip()[-500:]}")
        _sync(path)
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        told = job["read" if "=read" in flags or "=randread" in flags else "write"]
        return {
            "per_s": told["iops"],
            "mib_s": told["bw_bytes"] / 2**20,
            "us": told["lat_ns"]["mean"] / 1e3,
            "count": told["total_ios"],
        }

    def after():
        path.unlink()
        _sync(directory)

    return work, after


def _counted(count, nbytes, work):
    begun = time.monotonic()
    work()
    spent = time.monotonic() - begun
    return {
        "per_s": count / spent,
        "mib_s": count * nbytes / spent / 2**20,
        "us": spent / count * 1e6,
        "count": count,
    }


def _create(directory):
    content = os.urandom(4096)
    directory.mkdir()
    for number in range(SMALL_FILES):
        fd = os.open(directory / f"file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, content)
        os.close(fd)


def _stat(directory):
    for number in range(SMALL_FILES):
        os.stat(directory / f"file{number}")


def small_files(place):
    """A tree of real small files in `place`; how many."""
    library = Path(sysconfig.get_path("stdlib"))
    count = 0
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts or path.stat().st_size > 200_000:
            continue
        target = place / path.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        count += 1
        if count == TREE_FILES:
            break
    return count


def files(name, directory, tree, tree_files):
    """The jobs of many small files."""
    made = directory / "files"

    def after():
        shutil.rmtree(made)
        _sync(directory)

    if name == "cp-a":
        command = ["cp", "-a", str(tree), str(made)]
        return (
            lambda: _counted(tree_files, 0, lambda: subprocess.run(command, check=True)),
            after,
        )
    if name == "create-4k":
        return lambda: _counted(SMALL_FILES, 4096, lambda: _create(made)), after
    _create(made)
    _sync(directory)
    drop_caches()
    return lambda: _counted(SMALL_FILES, 0, lambda: _stat(made)), after
