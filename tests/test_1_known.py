"""Known against a slow and obvious model: what is answered, what is evicted, what is counted."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from raidfs.known import Known, KnownInode

ROOT = Path(__file__).resolve().parent.parent
UNSURE = "unsure"
MORE = 1 << 20


def fields_of(ino, version=0):
    """Attributes that differ in every field."""
    flags = (version % 2, version % 3 == 0)
    return (ino, *(ino * 100 + version * 10 + field for field in range(1, 13)), *flags)


def sizes():
    """What the entries take: an inode, a directory, a name without its bytes."""
    known = Known(MORE)
    known.tell(fields_of(1))
    inode = known.statistics().nbytes
    assert known.put_directory(1, 0)
    directory = known.statistics().nbytes - inode
    known.put_name(1, b"abc", 0)
    return inode, directory, known.statistics().nbytes - inode - directory - 3


INODE_BYTES, DIRECTORY_BYTES, NAME_BYTES = sizes()


class Model:
    """Entries in the order of their use, oldest first: ("inode", ino) -> its fields;
    ("name", parent, name) -> ino, 0 or UNSURE; ("directory", ino) -> whether it is complete."""

    def __init__(self, nbytes_max):
        self.nbytes_max = nbytes_max
        self.entries = {}
        self.references = Counter()
        self.watched, self.unreferenced = set(), set()

    def nbytes(self):
        sizes = {"inode": INODE_BYTES, "directory": DIRECTORY_BYTES}
        return sum(
            NAME_BYTES + len(key[2]) if key[0] == "name" else sizes[key[0]] for key in self.entries
        )

    def use(self, key):
        if key in self.entries:
            self.entries[key] = self.entries.pop(key)

    def names(self, directory):
        return {k: v for k, v in self.entries.items() if k[0] == "name" and k[1] == directory}

    def complete(self, directory):
        return self.entries.get(("directory", directory), False)

    def put(self, key, value):
        self.entries.pop(key, None)
        self.entries[key] = value

    def put_name(self, parent, name, ino):
        self.put(("name", parent, name), ino)
        self.put(("directory", parent), self.complete(parent))

    def drop(self, key):
        value = self.entries.pop(key)
        if key[0] != "name":
            return
        if value != 0 and ("directory", key[1]) in self.entries:
            self.entries["directory", key[1]] = False
        if not self.names(key[1]) and not self.complete(key[1]):
            self.entries.pop(("directory", key[1]), None)

    def trim(self):
        while self.nbytes() > self.nbytes_max:
            self.drop(next(iter(self.entries)))

    def forget_name(self, parent, name):
        if self.complete(parent):
            self.put_name(parent, name, UNSURE)
            self.trim()
        elif ("name", parent, name) in self.entries:
            self.drop(("name", parent, name))

    def name_removed(self, parent, name):
        if ("name", parent, name) in self.entries:
            self.entries["name", parent, name] = 0
            self.drop(("name", parent, name))

    def put_directory(self, ino, names):
        existing = sum(value not in (0, UNSURE) for value in self.names(ino).values())
        if existing != names:
            return False
        if names == 0 and ("directory", ino) not in self.entries:
            self.put(("directory", ino), True)
        if ("directory", ino) in self.entries:
            self.entries["directory", ino] = True
        self.trim()
        return self.complete(ino)

    def forget_directory(self, ino):
        for key in self.names(ino):
            del self.entries[key]
        self.entries.pop(("directory", ino), None)

    def forget_between(self, first, last):
        for key in list(self.entries):
            if key[0] == "directory" and first <= key[1] <= last:
                self.forget_directory(key[1])
            elif key[0] == "inode" and first <= key[1] <= last:
                del self.entries[key]

    def lookup(self, parent, name):
        found = self.entries.get(("name", parent, name))
        self.use(("name", parent, name))
        self.use(("directory", parent))
        if found == 0 or (found is None and self.complete(parent)):
            return 0
        if found in (None, UNSURE) or ("inode", found) not in self.entries:
            return None
        self.use(("inode", found))
        self.references[found] += 1
        return KnownInode(*self.entries["inode", found])

    def release(self, ino, count):
        left = max(0, self.references[ino] - count)
        if left == 0 and self.references.pop(ino, 0) and ino in self.watched:
            self.watched.remove(ino)
            self.unreferenced.add(ino)
        elif left:
            self.references[ino] = left
        return left


INOS = st.integers(1, 8)
PARENTS = st.integers(1, 3)
NAMES = st.sampled_from([b"a", b"b", b"c", b"d" * 8, b"e" * 255, b"\xff"])
COUNTS = st.sampled_from([1, 1, 2, 2**31, 2**32 - 1, 2**40])


class KnownMachine(RuleBasedStateMachine):
    """Each rule does the same to both."""

    @initialize(nbytes_max=st.sampled_from([0, 150, 700, 2000, MORE]))
    def start(self, nbytes_max):
        self.known, self.model = Known(nbytes_max), Model(nbytes_max)

    @rule(ino=INOS, parent=PARENTS, name=NAMES, version=st.integers(0, 9), count=st.integers(0, 2))
    def tell(self, ino, parent, name, version, count):
        self.known.tell(fields_of(ino, version), parent, name, count)
        self.model.put_name(parent, name, ino)
        self.model.put(("inode", ino), fields_of(ino, version))
        self.model.references[ino] += count
        self.model.trim()

    @rule(ino=INOS, version=st.integers(0, 9))
    def tell_attributes(self, ino, version):
        self.known.tell(fields_of(ino, version))
        self.model.put(("inode", ino), fields_of(ino, version))
        self.model.trim()

    @rule(ino=INOS, version=st.integers(0, 9))
    def put_inode(self, ino, version):
        self.known.put_inode(fields_of(ino, version))
        self.model.put(("inode", ino), fields_of(ino, version))
        self.model.trim()

    @rule(ino=INOS)
    def forget_inode(self, ino):
        was_known = self.model.entries.pop(("inode", ino), None) is not None
        assert self.known.forget_inode(ino) == was_known

    @rule(ino=INOS)
    def getattr(self, ino):
        expected = self.model.entries.get(("inode", ino))
        assert self.known.getattr(ino) == (None if expected is None else KnownInode(*expected))
        self.model.use(("inode", ino))

    @rule(parent=PARENTS, name=NAMES, ino=st.integers(0, 8))
    def put_name(self, parent, name, ino):
        self.known.put_name(parent, name, ino)
        self.model.put_name(parent, name, ino)
        self.model.trim()

    @rule(parent=PARENTS, name=NAMES)
    def forget_name(self, parent, name):
        self.known.forget_name(parent, name)
        self.model.forget_name(parent, name)

    @rule(parent=PARENTS, name=NAMES)
    def name_removed(self, parent, name):
        self.known.name_removed(parent, name)
        self.model.name_removed(parent, name)

    @rule(ino=PARENTS, difference=st.sampled_from([0, 0, 0, 1, -1]))
    def put_directory(self, ino, difference):
        existing = sum(value not in (0, UNSURE) for value in self.model.names(ino).values())
        names = max(0, existing + difference)
        assert self.known.put_directory(ino, names) == self.model.put_directory(ino, names)

    @rule(ino=PARENTS)
    def forget_directory(self, ino):
        self.known.forget_directory(ino)
        self.model.forget_directory(ino)

    @rule(ends=st.tuples(INOS, INOS))
    def forget_between(self, ends):
        self.known.forget_between(min(ends), max(ends))
        self.model.forget_between(min(ends), max(ends))

    @rule(parent=PARENTS, name=NAMES)
    def lookup(self, parent, name):
        assert self.known.lookup(parent, name) == self.model.lookup(parent, name)

    @rule(ino=INOS, count=COUNTS)
    def refer(self, ino, count):
        self.known.refer(ino, count)
        self.model.references[ino] += count

    @rule(ino=INOS, count=COUNTS)
    def release(self, ino, count):
        assert self.known.release(ino, count) == self.model.release(ino, count)

    @rule(ino=INOS)
    def watch(self, ino):
        assert self.known.watch(ino) == self.model.references[ino]
        if self.model.references[ino]:
            self.model.watched.add(ino)

    @rule()
    def unreferenced(self):
        found = self.known.unreferenced()
        # An inode may be watched again and lose its references again before anybody asks.
        assert set(found) == self.model.unreferenced
        self.model.unreferenced.clear()

    @invariant()
    def counters_agree(self):
        if not hasattr(self, "known"):
            return
        statistics, model = self.known.statistics(), self.model
        kinds = Counter(key[0] for key in model.entries)
        assert statistics.inodes == kinds["inode"]
        assert statistics.names == kinds["name"]
        assert statistics.directories == kinds["directory"]
        complete = [key for key, value in model.entries.items() if key[0] == "directory" and value]
        assert statistics.complete == len(complete)
        assert statistics.nbytes == model.nbytes() <= statistics.nbytes_max
        counts = {ino: count for ino, count in model.references.items() if count}
        assert statistics.referenced == len(counts)
        assert all(self.known.references(ino) == count for ino, count in counts.items())
        assert sorted(self.known.referenced()) == sorted(counts)
        assert statistics.watched == len(model.watched)


def run(examples, steps):
    run_state_machine_as_test(
        KnownMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_against_a_model():
    run(examples=80, steps=60)


@pytest.mark.slow
def test_against_a_model_for_longer():
    run(examples=300, steps=120)


# ---- what a model of the calls does not show ----


def test_many_are_forgotten_in_steps_and_listed_whole():
    known = Known()
    for view in range(3):
        for ino in range(1, 5001):
            told = (view << 40 | ino, *fields_of(20)[1:])
            known.tell(told, view << 40 | 1, b"%d" % ino, 1)
    known.forget_between(1 << 40, (2 << 40) - 1)
    statistics = known.statistics()
    assert (statistics.inodes, statistics.names, statistics.directories) == (10000, 10000, 2)
    assert known.getattr(1 << 40 | 77) is None and known.lookup(1 << 40 | 1, b"77") is None
    assert known.getattr(2 << 40 | 77) is not None and known.lookup(1, b"77").ino == 77
    expected = {view << 40 | ino for view in range(3) for ino in range(1, 5001)}
    found = known.referenced()
    assert len(found) == len(expected) and set(found) == expected
    known.forget_between(0, 2**64 - 1)
    assert known.statistics().nbytes == 0 and len(known.referenced()) == 15000


def test_a_directory_is_complete_until_it_loses_a_name():
    known = Known()
    assert known.put_directory(7, 0)
    assert known.lookup(7, b"a") == 0
    known.tell(fields_of(20), 7, b"a", 1)
    assert known.lookup(7, b"a") == KnownInode(*fields_of(20))
    assert known.lookup(7, b"b") == 0
    known.forget_name(7, b"b")  # somebody is about to make it
    assert known.lookup(7, b"b") is None
    assert known.lookup(7, b"c") == 0
    known.put_name(7, b"b", 21)
    assert known.lookup(7, b"b") is None  # the name is known, its inode is not
    known.forget_name(7, b"a")
    known.name_removed(7, b"a")
    assert known.lookup(7, b"a") == 0
    known.forget_directory(7)
    assert known.lookup(7, b"c") is None
    assert known.references(20) == 2


def test_names_that_python_must_judge():
    known = Known()
    assert known.put_directory(7, 0)
    for name in (b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256):
        assert known.lookup(7, name) is None
        known.tell(fields_of(3), 7, name, 1)
        known.forget_name(7, name)
        with pytest.raises(AssertionError):
            known.put_name(7, name, 3)
    assert known.references(3) == 6
    assert known.statistics().names == 0
    assert known.lookup(7, b"...") == 0


def test_only_references_when_not_enabled():
    known = Known(enabled=False)
    known.refer(5, 3)
    assert (known.references(5), known.release(5, 2), known.release(5, 2)) == (3, 1, 0)
    assert known.statistics().reference_bytes < 1000


def test_references_against_a_dictionary():
    rng = random.Random(5)
    known, model = Known(enabled=False), {}
    inos = [rng.randrange(1, 30_000) for _ in range(300)] + [2**40 + 1, 2**62]
    for _ in range(20_000):
        ino = rng.choice(inos)
        if rng.random() < 0.5:
            count = rng.choice([1, 1, 1, 7, 2**31, 2**33 + 5])
            known.refer(ino, count)
            model[ino] = model.get(ino, 0) + count
        else:
            count = rng.choice([1, 1, 2, 2**31 - 1, 2**34])
            left = max(0, model.pop(ino, 0) - count)
            if left:
                model[ino] = left
            assert known.release(ino, count) == left
        assert known.references(ino) == model.get(ino, 0)
    assert known.statistics().referenced == len(model)
    for ino in list(model):
        assert known.release(ino, 2**63) == 0
    statistics = known.statistics()
    assert statistics.referenced == 0 and statistics.reference_bytes < 1000


def test_a_million_references_take_less_than_eight_bytes_each():
    known = Known(enabled=False)
    for ino in range(1, 1_000_001):
        known.refer(ino)
    statistics = known.statistics()
    assert statistics.referenced == 1_000_000
    assert statistics.reference_bytes < 8 * 1_000_000
    for ino in range(1, 1_000_001):
        known.release(ino)
    assert known.statistics().reference_bytes < 1000


def test_the_least_recently_used_go_first():
    known = Known(1 << 20)
    for ino in range(1, 20_000):
        known.tell(fields_of(ino), 1, b"name%d" % ino)
        assert known.getattr(1) and known.lookup(1, b"name1")
    kept = [ino for ino in range(1, 20_000) if known.getattr(ino)]
    assert len(kept) > 2000
    assert kept == [1, *range(20_001 - len(kept), 20_000)]
    statistics = known.statistics()
    assert statistics.nbytes <= statistics.nbytes_max and statistics.evicted > 30_000


@pytest.mark.slow
def test_the_c_test_under_the_thread_sanitizer(tmp_path):
    """Under the others it runs in `make sanitize`."""
    sources = [ROOT / "csrc/tests/test_known.c", *sorted((ROOT / "csrc").glob("known*.c"))]
    program = tmp_path / "test_known"
    flags = ["-g", "-O1", "-std=gnu11", "-fsanitize=thread", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["cc", *flags, *map(str, sources), "-o", str(program), "-lpthread"], check=True, timeout=120
    )
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    print(result.stdout, result.stderr, file=sys.stderr)
    assert result.returncode == 0
