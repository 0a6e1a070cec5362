"""Programs whose writes to several volumes follow one from another, and the judge of snapshots.

    python ordered.py KIND PLACE...     until it gets SIGTERM; then it says how it went, in JSON

Places: a directory in each volume, A, B, C ... Kinds:

write   counts: n to A, then n to B, then n to C, then n + 1 to A; each write(2) is answered before
        the next is asked for
fsync   the same, with fsync(2) after each write
rename  the same with names: in a directory of each volume, file n - 1 becomes file n
read    another program looks where `write` is, at A, at B, at C, and writes what it saw of A into
        B, of B into C, and of C into A. It reads with O_DIRECT, for what is read from the kernel's
        cache may be a write that was not answered yet: no file system can know of that

The rule for each snapshot, of all volumes together. It may have been taken at any moment, so:

 1. `write`, `fsync` and `rename` were at the same n everywhere, or some volumes, A first, at n + 1.
 2. What `read` had written into a volume, `write` had reached in the volume that it was seen in.
 3. Each program's files are there, if they were there before the snapshot was asked for.

A cut through the middle of what one program did is allowed only where the program was.
"""

import json
import mmap
import os
import signal
import sys
import time

KINDS = ("write", "fsync", "rename")
READ = "read"  # beside `write`
ALL_KINDS = (*KINDS, READ)


# -- the programs ---------------------------------------------------------------------------------


class Steps:
    """Counted and timed; `longest_s` of those that need no disk."""

    def __init__(self):
        self.count = 0
        self.longest_s = 0.0
        self.is_going = True
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_):
        self.is_going = False

    def take(self, call, *arguments):
        begun = time.monotonic()
        result = call(*arguments)
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        self.count += 1
        return result

    def told(self):
        return json.dumps({"steps": self.count, "longest_s": self.longest_s})


def _opened(places, name, flags=0):
    flags |= os.O_RDWR | os.O_CREAT
    return [os.open(os.path.join(place, name), flags, 0o600) for place in places]


def _word(number):
    return number.to_bytes(8, "little")


def _count_up(steps, places, kind):
    """`write` and `fsync`."""
    fds = _opened(places, kind)
    for fd in fds:
        os.pwrite(fd, _word(0), 0)
    yield
    number = 0
    while True:
        number += 1
        for fd in fds:
            steps.take(os.pwrite, fd, _word(number), 0)
            if kind == "fsync":
                os.fsync(fd)
            yield


def _rename(steps, places, kind):
    directories = [os.path.join(place, kind) for place in places]
    for path in directories:
        os.mkdir(path)
        os.close(os.open(f"{path}/0", os.O_CREAT | os.O_WRONLY))
    yield
    number = 0
    while True:
        number += 1
        for path in directories:
            steps.take(os.rename, f"{path}/{number - 1}", f"{path}/{number}")
            yield


def _read(steps, places, kind):
    fds = _opened(places, kind)
    seen = _opened(places, KINDS[0], os.O_DIRECT)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    for fd in fds:
        os.pwrite(fd, _word(0), 0)
    yield
    while True:
        for at, fd in enumerate(seen):
            steps.take(os.preadv, fd, [page], 0)
            steps.take(os.pwrite, fds[(at + 1) % len(fds)], page[:8], 0)
            yield


def main():
    """Runs one program until it is told to end."""
    kind, *places = sys.argv[1:]
    steps = Steps()
    program = {"rename": _rename, READ: _read}.get(kind, _count_up)(steps, places, kind)
    next(program)
    print("ready", flush=True)
    while steps.is_going:
        next(program)
    print(steps.told(), flush=True)
    return 0


# -- the judge ------------------------------------------------------------------------------------


def possible(counts):
    """Rule 1: 5 5 5, 6 5 5, 6 6 5, 6 6 6."""
    return sorted(counts, reverse=True) == counts and counts[0] - counts[-1] <= 1


def possible_reads(read, written):
    """Rule 2. Both by volume."""
    return all(read[at] <= written[at - 1] for at in range(len(read)))


def count_of(path):
    """Where a program was."""
    if path.is_dir():
        (name,) = os.listdir(path)
        return int(name)
    return int.from_bytes(path.read_bytes(), "little")


def counts_in(places, kinds):
    """By kind: where its program was, by volume. FileNotFoundError breaks rule 3."""
    return {kind: [count_of(place / kind) for place in places] for kind in kinds}


def impossible(counts):
    """The kinds of which a snapshot holds what no program could have caused."""
    wrong = [kind for kind in KINDS if kind in counts and not possible(counts[kind])]
    if READ in counts and not possible_reads(counts[READ], counts[KINDS[0]]):
        wrong.append(READ)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
