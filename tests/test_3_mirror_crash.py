"""Crashes of the mirrored files alone: what is found is a commit, the last synced one or later."""

import random

import apsw
import pytest
from mirrored import WAL, Opened, Workload, images, settled, table

from raidfs.raid.member import MetaFile
from raidfs.store.batches import FRAME_BYTES

# -- crashes ---------------------------------------------------------------------------------------


@pytest.fixture
def small_writes(monkeypatch):
    """Frame by frame, so that more subsets of them are lost."""
    monkeypatch.setattr("raidfs.store.batches._WRITE_BYTES_MAX", FRAME_BYTES)


def survivors(files, rng, count):
    numbers = rng.sample(range(count), rng.randint(1, count))
    return {key: data for key, data in files.items() if key[0] in numbers}, sorted(numbers)


def recover_and_compare(files, numbers, marks, states, rng, depth):
    """Open after a crash: the content is that of a commit not older than the last synced one."""
    synced = max((n for what, n in marks if what == "synced"), default=0)
    begun = max(n for _, n in marks)
    with Opened(files, numbers) as opened:
        if depth and rng.random() < 0.5:
            settled(opened)
        assert opened.db.execute("PRAGMA integrity_check").get == "ok"
        found = opened.db.execute("SELECT n FROM n").get
        assert synced <= found <= begun, (synced, found, begun)
        assert table(opened.db) == states[found]
        settled(opened)
        assert table(opened.db) == states[found]
        if not depth:
            return
        opened.world.mark(("synced", found))
        again = Workload(opened, rng, states[: found + 1])
        again.run(12)
    for image, marks_then in list_some(images(opened.world, files), rng):
        told = [("synced", synced), ("committing", found), *marks_then]
        left = image.crash(rng.randrange(2**32))
        fewer = rng.sample(numbers, rng.randint(1, len(numbers)))
        left = {key: data for key, data in left.items() if key[0] in fewer}
        recover_and_compare(left, sorted(fewer), told, again.states, rng, depth - 1)


def list_some(images_and_marks, rng):
    """Each with probability 0.15, copied."""
    return [(i.copy(), list(m)) for i, m in images_and_marks if rng.random() < 0.15]


def crash_run(seed, steps, probability, depth):
    """One workload, cut off at many places. Replay with the seed."""
    print("seed", seed)
    rng = random.Random(seed)
    count = rng.choice((1, 2, 3))
    options = {
        "cache_bytes": rng.choice((1 << 15, 1 << 20)),
        "queue_bytes_max": rng.choice((1 << 17, 1 << 26)),
    }
    with Opened(numbers=range(count), **options) as opened:
        load = Workload(opened, rng)
        load.run(steps)
    crashes = 0
    for image, marks in images(opened.world, {}):
        if not marks or rng.random() > probability:
            continue  # not even created
        for fate in (0, 1, rng.randrange(2, 2**32)):
            files, numbers = survivors(image.crash(fate), rng, count)
            recover_and_compare(files, numbers, marks, load.states, rng, depth)
            crashes += 1
    return crashes


@pytest.mark.parametrize("seed", range(12))
def test_crash(seed, small_writes):
    assert crash_run(seed, 25, 0.2, 1 if seed % 2 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_crash_more(seed, request):
    if seed % 4:
        request.getfixturevalue("small_writes")
    assert crash_run(seed, 60, 0.5, 2 if seed % 3 == 0 else 0)


def is_commit(db, states, oldest):
    try:
        found = db.execute("SELECT n FROM n").get
        whole = db.execute("PRAGMA integrity_check").get == "ok"
        return whole and found is not None and found >= oldest and table(db) == states[found]
    except apsw.Error:
        return False


@pytest.mark.parametrize("rule_c", [True, False])
def test_the_old_header_is_gone_before_frames_come(rule_c, small_writes):
    """Only the later ones of the unsynced frames arrive. Without rule C, the old header and the old
    frames before them make an old state of some pages, over a database that is newer."""
    with Opened(numbers=(0,)) as opened:
        load = Workload(opened, random.Random(1))
        for _ in range(6):
            load.transaction(3)
        opened.checkpoint()
        opened.mirror.sync_db()
        sync = opened.members[0].meta_sync
        stop_after = 1 if rule_c else 0  # syncs of the log that take place

        def few(file):
            nonlocal stop_after
            if file is MetaFile.DB or stop_after > 0:
                stop_after -= file is MetaFile.WAL
                sync(file)

        load.transaction(20)
        opened.members[0].meta_sync = few
        opened.mirror.sync_wal()
    *_, (image, _) = images(opened.world, {})
    assert len(image.pending[0, WAL]) > 6
    outcomes = set()
    for cut in range(32, 32 + 20 * FRAME_BYTES, FRAME_BYTES):
        left = image.copy()
        left.settle(
            (0, WAL), lambda record, cut=cut: "kept" if record.offset >= cut else "dropped", None
        )
        with Opened(left.durable, (0,)) as again:
            outcomes.add(is_commit(again.db, load.states, 6))
    assert outcomes == ({True} if rule_c else {True, False})


def test_copies_of_several_lengths_are_made_equal():
    with Opened() as opened:
        load = Workload(opened, random.Random(4))
        for _ in range(4):
            load.transaction(3)
            opened.mirror.sync_wal()
        files = opened.content()
    cut = 32 + FRAME_BYTES * 3 + 100
    files[0, WAL] = files[0, WAL][:cut]
    files[1, WAL] = b""
    with Opened(files) as again:
        assert len({bytes(m.files[WAL]) for m in again.members.values()}) == 1
        assert table(again.db) == load.states[-1]


def test_a_foreign_generation_is_replaced_header_last():
    with Opened() as opened:
        load = Workload(opened, random.Random(4))
        load.transaction(3)
        opened.mirror.sync_db()
        old = opened.content()[0, WAL]
        opened.checkpoint()
        load.transaction(3)
        opened.mirror.sync_wal()
        files = opened.content()
    files[0, WAL] = old
    with Opened(files) as again:
        mine = [r for r in again.world.log if r.key == (0, WAL)]
        assert [(r.kind, r.offset) for r in mine][:2] == [("write", 0), ("sync", 0)]
        assert mine[0].data == bytes(32)
        assert (mine[-2].kind, mine[-2].offset, len(mine[-2].data)) == ("write", 0, 32)
        assert table(again.db) == load.states[-1]
