"""kill -9 of the daemon under several writers, again and again, while members come and go.

Each writer has a directory of its own, and a journal beside the volume: one line before each
operation, one after each fsync that returned. The operations of a writer form one sequence, and
so must what is found after a crash: exactly the first N of them, N not less than the last one
that an fsync acknowledged. Nothing else counts as right: no lost byte, no older content, no
content that was never written, no later operation without an earlier one.

The kernel may cut one write(2) into several requests, at borders of pages; so the operation after
the Nth may be there in part, if it is a write.

RAIDFS_TEST_SEED replays the operations; the moments of the kills are those of the machine.
"""

import json
import os
import random
import shutil
import time
import traceback
from dataclasses import dataclass, field

import pytest

pytestmark = pytest.mark.mount

SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
ROUNDS_EACH = 6
WRITERS = 3
PAGE = 4096
NAMES = [f"name{number}" for number in range(8)]
SHAPES = [("5", 3, 1), ("6", 5, 2), ("1", 3, 2), ("rs:3+2", 5, 2), ("10", 4, 1)]


def content_of(operation):
    """The bytes of a write, told by who wrote it and when; no two writes have equal ones."""
    dice = random.Random(f"{operation['writer']} {operation['round']} {operation['number']}")
    return dice.randbytes(operation["length"])


@dataclass
class Files:
    """What a writer's directory must hold. `choose` makes an operation, `apply` does it here."""

    held: dict[str, bytes] = field(default_factory=dict)

    def choose(self, dice):
        name = dice.choice(NAMES)
        old = self.held.get(name)
        if old is None:
            return {"kind": "create", "name": name}
        kind = dice.choice(("write",) * 5 + ("append", "append", "truncate", "rename", "unlink"))
        length = dice.choice((1, 100, 3000, PAGE, 9000, 50_000, 300_000))
        if kind == "write":
            offset = dice.randrange(len(old) + 5000)
            return {"kind": "write", "name": name, "offset": offset, "length": length}
        if kind == "append":
            return {"kind": "write", "name": name, "offset": len(old), "length": length}
        if kind == "truncate":
            return {"kind": "truncate", "name": name, "size": dice.randrange(len(old) + 5000)}
        if kind == "rename":
            return {"kind": "rename", "name": name, "to": dice.choice(NAMES)}
        return {"kind": "unlink", "name": name}

    def apply(self, operation):
        """Returns the names touched."""
        kind, name = operation["kind"], operation["name"]
        if kind == "create":
            self.held[name] = b""
        elif kind == "write":
            data = content_of(operation)
            self.held[name] = written(self.held[name], operation["offset"], data)
        elif kind == "truncate":
            size = operation["size"]
            self.held[name] = self.held[name][:size].ljust(size, b"\0")
        elif kind == "unlink":
            del self.held[name]
        elif operation["to"] != name:
            self.held[operation["to"]] = self.held.pop(name)
        return {name, operation.get("to", name)}


def written(old, offset, data):
    old = old.ljust(offset, b"\0")
    return old[:offset] + data + old[offset + len(data) :]


def really_apply(root, operation):
    """The same on the mount."""
    kind, path = operation["kind"], os.path.join(root, operation["name"])
    if kind == "create":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    elif kind == "write":
        fd = os.open(path, os.O_WRONLY)
        try:
            data, done = content_of(operation), 0
            while done < len(data):  # short when the daemon dies between two requests
                done += os.pwrite(fd, data[done:], operation["offset"] + done)
        finally:
            os.close(fd)
    elif kind == "truncate":
        os.truncate(path, operation["size"])
    elif kind == "unlink":
        os.unlink(path)
    else:
        os.rename(path, os.path.join(root, operation["to"]))


def write_until_killed(root, journal, writer, turn, held, seed):
    """A writer's life, in a process of its own: ends when the mount does."""
    dice = random.Random(f"{seed} {writer} {turn}")
    files = Files(held)
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    number = 0
    while True:
        operation = files.choose(dice) | {"writer": writer, "round": turn, "number": number}
        os.write(out, json.dumps(operation).encode() + b"\n")
        really_apply(root, operation)
        files.apply(operation)
        number += 1
        if dice.random() < 0.08:
            target = dice.choice([".", *files.held])
            fd = os.open(os.path.join(root, target), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            os.write(out, json.dumps({"acknowledged": number}).encode() + b"\n")


def start_writer(*arguments):
    child = os.fork()
    if child:
        return child
    try:
        write_until_killed(*arguments)
    except OSError:
        os._exit(0)  # the mount went away, as it was meant to
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def read_journal(path):
    """(operations in order, how many of them are acknowledged)."""
    operations, acknowledged = [], 0
    for line in path.read_text().splitlines():
        told = json.loads(line)
        if "acknowledged" in told:
            acknowledged = told["acknowledged"]
        else:
            operations.append(told)
    return operations, acknowledged


def which_prefix(before, operations, acknowledged, found):
    """How many operations, from the first on, are in what was found; AssertionError if no number of
    them gives it."""
    files = Files(dict(before))
    different = {n for n in files.held | found if files.held.get(n) != found.get(n)}
    nearest = []
    for number in range(len(operations) + 1):
        if number >= acknowledged:
            coming = operations[number] if number < len(operations) else None
            if not different or (coming and in_part(files.held, coming, different, found)):
                return number
            nearest.append((len(different), number, sorted(different)))
        if number < len(operations):
            for name in files.apply(operations[number]):
                different.discard(name)
                if files.held.get(name) != found.get(name):
                    different.add(name)
    sizes = {name: len(content) for name, content in found.items()}
    raise AssertionError(
        f"no state from {acknowledged} (acknowledged) to {len(operations)} was found; nearest"
        f" (files that differ, operations, names): {min(nearest)}; found {sizes}"
    )


def in_part(held, operation, different, found):
    """Only the first pages of the coming write are there."""
    name = operation["name"]
    if operation["kind"] != "write" or different != {name} or name not in found:
        return False
    offset, data = operation["offset"], content_of(operation)
    border = PAGE - offset % PAGE
    while border < len(data):
        if written(held[name], offset, data[:border]) == found[name]:
            return True
        border += PAGE
    return False


def found_below(root):
    return {entry.name: (root / entry.name).read_bytes() for entry in os.scandir(root)}


class Rounds:
    """Rounds of writing and killing on one volume."""

    def __init__(self, volume, tolerance, dice, tmp_path):
        self.volume, self.tolerance, self.dice = volume, tolerance, dice
        self.journals = [tmp_path / f"journal{writer}" for writer in range(WRITERS)]
        self.held = [{} for _ in range(WRITERS)]
        self.operations = self.kept = self.acknowledged = 0
        for writer in range(WRITERS):
            self.root(writer).mkdir()
        volume.ctl("sync")

    def root(self, writer):
        return self.volume.mountpoint / f"writer{writer}"

    def write_and_kill(self, turn, lose=()):
        """Writers at work, then, in the middle of it, members go and the daemon dies."""
        children = [
            start_writer(
                str(self.root(writer)), self.journals[writer], writer, turn, self.held[writer], SEED
            )
            for writer in range(WRITERS)
        ]
        time.sleep(self.dice.uniform(0.02, 0.5))
        for member in lose:
            while member.exists():  # the daemon may be making a file there
                shutil.rmtree(member, ignore_errors=True)
            time.sleep(self.dice.uniform(0.0, 0.3))
        self.volume.kill()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [0] * WRITERS

    def verify(self):
        """Each writer's directory holds a prefix of its work. Returns what was found, and how many
        operations of each writer that is."""
        everything, numbers = [], []
        for writer in range(WRITERS):
            operations, acknowledged = read_journal(self.journals[writer])
            found = found_below(self.root(writer))
            kept = which_prefix(self.held[writer], operations, acknowledged, found)
            self.operations += len(operations)
            self.kept += kept
            self.acknowledged += acknowledged
            everything.append(found)
            numbers.append(kept)
        return everything, numbers

    def verify_without(self, members):
        """The same through a mount that changes nothing, with members out of the way."""
        away = [(member, member.with_name(f"{member.name}-away")) for member in members]
        for member, place in away:
            member.rename(place)
        (source,) = [m for m in self.volume.members if m.exists()][:1]
        self.volume.mount("ro", "degraded", source=source)
        _, numbers = self.verify()
        self.volume.unmount()
        for member, place in away:
            place.rename(member)
        return numbers


@pytest.mark.slow
@pytest.mark.parametrize(("level", "members", "tolerance"), SHAPES)
def test_kills(workshop, tmp_path, level, members, tolerance):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    dice = random.Random(f"{SEED} {level}")
    volume = workshop.volume(members, level=level, size=512 << 20, mounted=True)
    rounds = Rounds(volume, tolerance, dice, tmp_path)
    for turn in range(ROUNDS_EACH):
        last = turn == ROUNDS_EACH - 1
        lose = dice.sample(volume.members[1:], tolerance) if last else ()
        rounds.write_and_kill(turn, lose)
        volume.check()
        seen = [0] * WRITERS
        if turn % 3 == 1:
            seen = rounds.verify_without(dice.sample(volume.members, tolerance))
        volume.mount(*(["degraded"] if last else []))
        rounds.held, numbers = rounds.verify()
        # Those that were away may have had the beginning of what nobody was told of: a later state.
        assert all(number >= least for number, least in zip(numbers, seen, strict=True))
    volume.unmount()
    volume.check()
    print(f"{rounds.operations} operations, {rounds.acknowledged} acknowledged, {rounds.kept} kept")


def test_the_judge_sees_what_is_wrong():
    """Lost, older, never written, out of order: none of these passes as a prefix."""
    base = {"writer": 0, "round": 0}
    operations = [
        {"kind": "create", "name": "a", "number": 0, **base},
        {"kind": "write", "name": "a", "offset": 10, "length": 9000, "number": 1, **base},
        {"kind": "create", "name": "b", "number": 2, **base},
        {"kind": "truncate", "name": "a", "size": 5000, "number": 3, **base},
    ]
    states = [{}]
    files = Files()
    for operation in operations:
        files.apply(operation)
        states.append(dict(files.held))
    for number, state in enumerate(states):
        assert which_prefix({}, operations, 0, state) == number
    half = states[2]["a"][:4096]
    assert which_prefix({}, operations, 0, {"a": half}) == 1
    for acknowledged, found in (
        (2, states[1]),
        (0, {"a": states[2]["a"][:4000]}),
        (0, {"a": bytes(9010)}),
        (0, {"b": b""}),
        (0, {"a": states[4]["a"]}),
    ):
        with pytest.raises(AssertionError, match="no state"):
            which_prefix({}, operations, acknowledged, found)
