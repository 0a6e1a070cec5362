"""A small table over a mirror over simulated members, for tests, and a model of each commit."""

import apsw
from simulated import Image, World, members_of

from raidfs.raid.member import MetaFile
from raidfs.store.mirror import Mirror
from raidfs.store.vfs import SQLiteFiles, connect

DB, WAL = MetaFile.DB.value, MetaFile.WAL.value


class Opened:
    """A connection over a mirror over simulated members; a context manager."""

    def __init__(self, files=None, numbers=(0, 1, 2), cache_bytes=1 << 20, **options):
        self.world = World()
        self.members = {m.number: m for m in members_of(files or {}, self.world, list(numbers))}
        self.events = []
        self.mirror = Mirror(
            self.members, on_event=lambda *event: self.events.append(event), **options
        )
        self.files = SQLiteFiles(self.mirror)
        try:
            self.db = connect(self.files, cache_bytes, empty=not self.mirror.db_bytes)
        except BaseException:
            self.files.unregister()
            self.mirror.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.db.close()
        self.files.unregister()
        self.mirror.close()

    def checkpoint(self, mode=apsw.SQLITE_CHECKPOINT_PASSIVE):
        return self.db.wal_checkpoint(mode=mode)

    def content(self):
        return {
            (m, name): bytes(data)
            for m, x in self.members.items()
            for name, data in x.files.items()
        }


class Workload:
    """Random transactions on a table; `states[n]` is its content after commit n."""

    def __init__(self, opened, rng, states=None):
        self.opened, self.db, self.rng = opened, opened.db, rng
        self.states = states if states is not None else []
        if not self.states:
            self.db.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
            self.db.execute("CREATE TABLE n (n INTEGER)")
            self.db.execute("INSERT INTO n VALUES (0)")
            self.states.append({})
            opened.mirror.sync_db()
            self.mark("synced")

    def mark(self, what):
        self.opened.world.mark((what, len(self.states) - 1))

    def transaction(self, changes, abort=False):
        state = dict(self.states[-1])
        self.db.execute("BEGIN IMMEDIATE")
        for _ in range(changes):
            key = self.rng.randrange(60)
            if self.rng.random() < 0.2:
                self.db.execute("DELETE FROM t WHERE k = ?", (key,))
                state.pop(key, None)
            else:
                value = self.rng.randbytes(self.rng.choice((10, 700, 3000, 9000)))
                self.db.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (key, value))
                state[key] = value
        if abort:
            self.db.execute("ROLLBACK")
            return
        self.db.execute("UPDATE n SET n = ?", (len(self.states),))
        self.states.append(state)
        self.mark("committing")
        self.db.execute("COMMIT")

    def run(self, steps):
        for _ in range(steps):
            what = self.rng.random()
            if what < 0.55:
                self.transaction(self.rng.choice((1, 3, 20)), self.rng.random() < 0.1)
            elif what < 0.8:
                self.opened.mirror.sync_wal()
                self.mark("synced")
            elif what < 0.92:
                self.opened.checkpoint()
            else:
                self.opened.mirror.sync_db()
                self.mark("synced")


def table(db):
    return dict(db.execute("SELECT k, v FROM t").fetchall())


def images(world, files):
    """As World.images, of members that began with `files`."""
    image, marks = Image(dict(files)), []
    for record in world.log:
        if record.kind == "mark":
            marks.append(record.value)
            continue
        if record.kind == "sync" and image.pending.get(record.key):
            yield image, marks
        image.apply(record)
    yield image, marks


def settled(opened):
    """What an opener does before anything else; all copies are equal then."""
    opened.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
    opened.mirror.sync_db()
    copies = {bytes(m.files.get(DB, b"")).rstrip(b"\0") for m in opened.members.values()}
    assert len(copies) == 1
    assert not any(any(m.files.get(WAL, b"")[:4]) for m in opened.members.values())
