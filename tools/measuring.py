"""What the benchmarks of a mount have in common: a volume in memory, a daemon's cost, the machine.

Machines are shared and virtual: operations per second swing by factors between runs. Hold on to
ratios within one run and to the daemon's CPU time per request; the time of single requests includes
the waking of an idle CPU (guest_halt_poll_ns, reported with the results).
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from mounting import Workshop

from raidfs import native
from raidfs.daemon.control import StatisticsRequest, connect
from raidfs.raid.places import peek

MEMORY = Path("/dev/shm")
_STARTED = time.monotonic()


def progress(text):
    """A line for who waits, on stderr; results go to stdout."""
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def workshop(parent=None):
    """A Workshop in a fresh directory in memory; no mount, daemon or file of it remains, also when
    the benchmark is interrupted or terminated."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    parent = parent or (MEMORY if MEMORY.is_dir() else None)
    directory = Path(tempfile.mkdtemp(prefix="raidfs-bench-", dir=parent))
    try:
        with Workshop(directory) as shop:
            yield shop
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def cpu_ns(pid):
    """CPU time of a process, all its threads, also those that have ended, in nanoseconds."""
    process_clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of the whole process: linux posix-timers
    return time.clock_gettime_ns(process_clock)


def memory_kib(pid):
    """{"VmRSS": ..., "VmHWM": ..., "RssAnon": ...}, KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssAnon")}


def statistics(volume, env_directory):
    """The daemon's own counters."""
    os.environ["RAIDFS_RUNTIME_DIR"] = str(env_directory)
    found = connect(peek(str(volume.members[0])).volume_id)
    assert found is not None, "no daemon answers"
    with found[1] as client:
        return json.loads(bytes(client.ask(StatisticsRequest())))


def machine():
    """What to know about where the figures come from."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            model = line.split(":", 1)[1].strip()
            break
    halt = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
        "guest_halt_poll_ns": int(halt.read_text()) if halt.exists() else None,
        "load": os.getloadavg()[0],
        "erasure_kernel": native.kernel_selected(),
    }


def machine_line(told):
    """The same for people."""
    halt = told["guest_halt_poll_ns"]
    return (
        f"{told['cpu']}, {told['cpus']} CPUs, Linux {told['kernel']}, "
        f"guest_halt_poll_ns {'none' if halt is None else halt}, load {told['load']:.1f}, "
        f"erasure kernel {told['erasure_kernel']}"
    )


def spread(values):
    """The median, the 99th percentile and the highest."""
    values = sorted(values)
    rank = min(len(values) - 1, int(len(values) * 0.99))
    return {"p50": median(values), "p99": values[rank], "max": values[-1]}


def table(head, rows):
    """Columns right-aligned, the first one left."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
