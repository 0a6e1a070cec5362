"""Writers that note what they begin and what they were told, to find out which instant a snapshot
shows.

    python acknowledged.py DIRECTORY BOARD NUMBER        one writer, until the board says stop

A writer does a sequence of operations that follows from its number alone; each is one change, and
each leaves a trace, so a directory tells how many operations it has seen. The *board* is memory
that all share: before an operation the writer notes on it that it begins and what the other writers
had been told by then; after it, that it was told.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WRITERS = 4
OPERATIONS_MAX = 200_000
PAGE = 4096
PAGES = 64
ENTRY = 8


class Board:
    """The shared memory, in a file."""

    def __init__(self, path, create=False):
        shape = 1 + 2 * WRITERS + WRITERS * OPERATIONS_MAX * WRITERS
        self._all = np.memmap(path, np.int64, "w+" if create else "r+", shape=(shape,))
        self.stop = self._all[:1]
        self.begun = self._all[1 : 1 + WRITERS]
        self.told = self._all[1 + WRITERS : 1 + 2 * WRITERS]
        # what the others had been told when an operation began
        self.known = self._all[1 + 2 * WRITERS :].reshape(WRITERS, OPERATIONS_MAX, WRITERS)


@dataclass
class State:
    """What a writer's directory holds after so many operations."""

    number: int
    done: int = 0
    log: int = 0  # entries
    pages: dict[int, int] = field(default_factory=dict)  # page -> operation that wrote it
    size: int = 0  # of the file that is cut
    names: dict[str, int] = field(default_factory=dict)  # name -> mode
    attribute: bytes = b""

    def plan(self):
        """The next operation."""
        dice = random.Random(self.number * OPERATIONS_MAX + self.done)
        names = sorted(self.names)
        kind = dice.choice(("log", "page", "page", "page", "size", "make", "attribute", "name"))
        if kind == "name" and names:
            kind, name = dice.choice(("move", "drop", "mode")), dice.choice(names)
            if kind == "mode":
                return kind, name, 0o600 + (self.names[name] + 1) % 64
            return kind, name, f"m{self.done}"
        if kind == "page":
            return kind, dice.randrange(PAGES), self.done
        if kind in ("make", "name") and len(names) < 40:
            return "make", f"f{self.done}", 0o600
        if kind == "size":
            return kind, self.done * 3 % 50_000 + 1, 0
        return ("attribute", b"%d" % self.done, 0) if kind == "attribute" else ("log", self.log, 0)

    def do(self, kind, what, how):
        """The same to the model."""
        if kind == "log":
            self.log += 1
        elif kind == "page":
            self.pages[what] = how
        elif kind == "size":
            self.size = what
        elif kind == "attribute":
            self.attribute = what
        elif kind == "move":
            self.names[how] = self.names.pop(what)
        elif kind == "drop":
            del self.names[what]
        else:
            self.names[what] = how
        self.done += 1

    def is_shown(self, log, pages, size, names, attribute):
        """Whether `seen` found this state; what is cheap to compare comes first."""
        return (
            (len(log), size, attribute) == (self.log * ENTRY, self.size, self.attribute)
            and names == self.names
            and pages == self.content()
            and log == b"".join(entry.to_bytes(ENTRY, "little") for entry in range(self.log))
        )

    def content(self):
        """Of the file of pages."""
        count = max(self.pages, default=-1) + 1
        return b"".join(
            page_of(self.pages[page]) if page in self.pages else bytes(PAGE)
            for page in range(count)
        )


def page_of(operation):
    return operation.to_bytes(ENTRY, "little") * (PAGE // ENTRY)


def prepare(directory):
    """Before the first operation."""
    directory.mkdir()
    (directory / "names").mkdir()
    for name in ("log", "pages", "size"):
        (directory / name).touch()


def seen(directory):
    """What a writer's directory holds; all of it, as it is read."""
    names = {path.name: path.stat().st_mode & 0o777 for path in (directory / "names").iterdir()}
    try:
        attribute = os.getxattr(directory, "user.done")
    except OSError:
        attribute = b""
    log, pages = (directory / "log").read_bytes(), (directory / "pages").read_bytes()
    return log, pages, (directory / "size").stat().st_size, names, attribute


class Writer:
    """Does the operations."""

    def __init__(self, directory):
        self.directory = directory
        self.names = directory / "names"
        self.log = os.open(directory / "log", os.O_WRONLY | os.O_APPEND)
        self.pages = os.open(directory / "pages", os.O_RDWR)

    def do(self, kind, what, how):
        if kind == "log":
            assert os.write(self.log, what.to_bytes(ENTRY, "little")) == ENTRY
        elif kind == "page":
            assert os.pwrite(self.pages, page_of(how), what * PAGE) == PAGE
        elif kind == "size":
            os.truncate(self.directory / "size", what)
        elif kind == "attribute":
            os.setxattr(self.directory, "user.done", what)
        elif kind == "move":
            os.rename(self.names / what, self.names / how)
        elif kind == "drop":
            os.unlink(self.names / what)
        elif kind == "mode":
            os.chmod(self.names / what, how)
        else:
            os.close(os.open(self.names / what, os.O_CREAT | os.O_EXCL | os.O_WRONLY, how))


def main(directory, board, number):
    """One writer."""
    board, number = Board(board), int(number)
    state, writer = State(number), Writer(Path(directory))
    while not board.stop[0] and state.done < OPERATIONS_MAX:
        operation = state.plan()
        board.known[number, state.done] = board.told
        board.begun[number] = state.done + 1
        writer.do(*operation)
        board.told[number] = state.done + 1
        state.do(*operation)


if __name__ == "__main__":
    os.umask(0)
    main(*sys.argv[1:])
