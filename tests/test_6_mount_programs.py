"""SQLite and git do their own work on a real mount; their own checkers judge it."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mounting import run

pytestmark = [pytest.mark.mount, pytest.mark.slow]

ROWS = 1600


def connect(path, journal, mmap_bytes):
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert db.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
    db.execute("PRAGMA synchronous=FULL")
    assert db.execute(f"PRAGMA mmap_size={mmap_bytes}").fetchone()[0] == mmap_bytes
    return db


def text_of(key):
    return random.Random(key).randbytes(20 + key * 37 % 1800).hex()


@pytest.mark.parametrize("mmap_bytes", [0, 1 << 26], ids=["read", "mapped"])
@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_at_its_usual_work(workshop, journal, mmap_bytes):
    volume = workshop.volume(3, mounted=True)
    path = volume.mountpoint / "work.db"
    rows = ROWS // 2 if mmap_bytes else ROWS // 4
    with closing(connect(path, journal, mmap_bytes)) as db:
        db.execute("CREATE TABLE item(key INTEGER PRIMARY KEY, text TEXT, size INT)")
        db.execute("CREATE INDEX by_text ON item(text)")
        for start in range(0, rows, 400):
            db.execute("BEGIN")
            keys = range(start, start + 400)
            db.executemany(
                "INSERT INTO item VALUES (?, ?, ?)",
                [(k, text_of(k), len(text_of(k))) for k in keys],
            )
            db.execute("COMMIT")
        db.execute("DELETE FROM item WHERE key % 3 = 0")
        db.execute("BEGIN")
        db.execute("UPDATE item SET text = 'undone'")
        db.execute("ROLLBACK")
        db.execute("VACUUM")
        verify(db, rows)
    size = path.stat().st_size
    volume.unmount()
    volume.check()
    shutil.rmtree(volume.members[1])
    volume.mount("degraded")
    assert path.stat().st_size == size
    with closing(connect(path, journal, mmap_bytes)) as db:
        verify(db, rows)
    said = run("sqlite3", path, "PRAGMA integrity_check; SELECT count(*) FROM item").stdout
    assert said.split() == ["ok", str(rows - len(range(0, rows, 3)))]
    volume.unmount()
    volume.check()


def verify(db, rows):
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = dict(db.execute("SELECT key, text FROM item"))
    assert found == {key: text_of(key) for key in range(rows) if key % 3}


CLIENT = """
import random, sqlite3, sys
path, journal, number, turns = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute(f"PRAGMA mmap_size={(number % 2) * (1 << 26)}")
dice = random.Random(number)
for turn in range(turns):
    a, b = dice.sample(range(50), 2)
    amount = dice.randrange(100)
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE account SET sum = sum - ? WHERE id = ?", (amount, a))
    db.execute("UPDATE account SET sum = sum + ? WHERE id = ?", (amount, b))
    db.execute("INSERT INTO log VALUES (?, ?, ?)", (number, turn, dice.randbytes(3000)))
    db.execute("COMMIT")
    total, = db.execute("SELECT sum(sum) FROM account").fetchone()
    assert total == 0, total
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_used_by_many_processes_at_once(workshop, journal):
    volume = workshop.volume(3, mounted=True)
    path = volume.mountpoint / "shared.db"
    clients, turns = 4, 60
    with closing(connect(path, journal, 0)) as db:
        db.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, sum INT)")
        db.execute("CREATE TABLE log(client INT, turn INT, text BLOB)")
        db.executemany("INSERT INTO account VALUES (?, 0)", [(number,) for number in range(50)])
    words = [sys.executable, "-c", CLIENT, path, journal]
    running = [
        subprocess.Popen([*words, str(number), str(turns)], stderr=subprocess.PIPE, text=True)
        for number in range(clients)
    ]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    volume.unmount()
    volume.mount()
    with closing(connect(path, journal, 0)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT sum(sum) FROM account").fetchone() == (0,)
        done = db.execute("SELECT client, count(*) FROM log GROUP BY client").fetchall()
        assert done == [(number, turns) for number in range(clients)]
    volume.unmount()
    volume.check()


GIT = ("git", "-c", "user.name=Tester", "-c", "user.email=tester@localhost", "-c", "gc.auto=0")


def tree_of_sources(root, count):
    """`count` files in many directories, made from a seed."""
    dice = random.Random(count)
    for number in range(count):
        place = root / f"part{number % 23}" / f"section{number % 7}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file{number}.txt").write_text(dice.randbytes(dice.randrange(900)).hex())


def test_git_at_its_usual_work(workshop):
    count = 1000
    volume = workshop.volume(4, level="5", size=1 << 30, mounted=True)
    root = volume.mountpoint / "repository"
    root.mkdir()
    env = {**os.environ, "HOME": str(volume.mountpoint), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words, place=root):
        return run(*GIT, "-C", place, *words, env=env, timeout_s=120).stdout

    git("init", "-q", "-b", "main")
    tree_of_sources(root, count)
    git("add", ".")
    git("commit", "-q", "-m", "all of it")
    git("switch", "-q", "-c", "other")
    for path in sorted(root.glob("part*/section*/*.txt"))[: count // 2]:
        path.write_text(path.read_text() + "\nchanged")
    run("rm", "-r", root / "part3", root / "part4")
    git("commit", "-q", "-a", "-m", "half of it changed")
    for branch in ("main", "other", "main"):
        git("switch", "-q", branch)
        assert git("status", "--porcelain") == ""
    git("gc", "-q", "--aggressive")
    git("fsck", "--strict", "--full")
    git("clone", "-q", "--no-local", root, volume.mountpoint / "clone", place="/")
    before = fingerprints(root)
    assert len(before) == count
    assert fingerprints(volume.mountpoint / "clone") == before
    volume.unmount()
    volume.check()
    volume.mount()
    git("fsck", "--strict", "--full")
    assert git("status", "--porcelain") == "" and fingerprints(root) == before
    git("merge", "-q", "other")
    git("fsck", "--strict", "--full", place=volume.mountpoint / "clone")
    volume.unmount()
    volume.check()


def fingerprints(root):
    return {path.relative_to(root): path.read_bytes() for path in Path(root).glob("part*/*/*.txt")}
