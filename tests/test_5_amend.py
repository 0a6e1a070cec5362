"""A name that arrives in a snapshot after it was taken: there it is, and nothing else differs."""

import itertools

import pytest
from simulated_volume import ROOT, checked, in_simulated_time, mounted, new_members, pattern
from whole import whole
from workload import ME

from raidfs.fs.moves import ITEM, Moves
from raidfs.fs.rollback import rollback
from raidfs.store.hidden import MOVES_INO

MOVE, GROUP = b"m" * 16, b"g" * 16


async def written(volume, parent, name, data):
    ino = volume.create(parent, name, 0o644, 0, ME).ino
    await volume.write(ino, 0, data)
    volume.release(ino)
    volume.forget(ino)


async def staged(volume, moves, is_directory):
    place = moves.make_place(MOVE)
    if is_directory:
        inner = volume.mkdir(place, ITEM, 0o755, ME).ino
        volume.mkdir(inner, b"sub", 0o755, ME)
        await written(volume, inner, b"file", pattern(3, 20))
    else:
        await written(volume, place, ITEM, pattern(3, 20))


def deliver_to(moves, parent, name):
    def deliver(row, _):
        found = moves.item_then(row.id, MOVE)
        where = moves.name_then(row.id, MOVE, parent, name)
        moves.meta.move_then(row.id, found[0], ITEM, *where)

    return deliver


CASES = list(itertools.product((False, True), repeat=4))


@pytest.mark.parametrize(("is_directory", "older", "newer", "in_root"), CASES)
def test_it_is_there_and_all_else_is_as_it_was(is_directory, older, newer, in_root):
    members = new_members("5", 3)

    async def body():
        async with mounted(members) as volume:
            await story(volume, is_directory, older, newer, in_root)

    in_simulated_time(body)
    checked(members)


async def story(volume, is_directory, older, newer, in_root):
    store, moves = volume.store, Moves(volume)
    parts, snapshots = store.group_snapshots, store.snapshots
    parent = ROOT if in_root else volume.mkdir(ROOT, b"d", 0o755, ME).ino
    await staged(volume, moves, is_directory)
    if older:
        await snapshots.create("older")
    parts.cut(GROUP, "then", store.clock())
    await parts.prepare(GROUP, b"promise", [("0a" * 16, b"given")])
    if newer:
        await written(volume, ROOT, b"more", b"x")
        await snapshots.create("between")
    assert moves.link(MOVE, parent, b"f") == b"f"
    if newer:
        await snapshots.create("newer")
    kept = [row for row in snapshots.all() if not row.internal]
    before = [await whole(volume, row) for row in kept]
    parts.deliver = deliver_to(moves, parent, b"f")
    await parts.commit(GROUP)
    then = await whole(volume, snapshots.find("then"), atimes=False)
    path = "/f" if in_root else "/d/f"
    assert path in then and (not is_directory or f"{path}/file" in then)
    assert before == [await whole(volume, row) for row in kept]
    await moves.remove(MOVE)
    await moves.sweep(lambda: ())
    assert store.meta.inode(MOVES_INO) is None
    await rollback(volume, "then")
    back = await whole(volume, atimes=False)
    assert back.keys() == then.keys() and back[path] == then[path]
    for row in [row for row in snapshots.all() if not row.internal]:
        await snapshots.delete([row.name])
    await snapshots.swept()
    assert back.keys() == (await whole(volume)).keys()
