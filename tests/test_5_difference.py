"""What differs between two states, compared with a walk over both that reads everything."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from simulated_volume import (
    CELL_BYTES,
    ROOT,
    furnish,
    furnish_and_upset,
    in_simulated_time,
    mounted,
    new_members,
    overwrite,
    pattern,
    simulated,
    upset,
    write_file,
)
from whole import whole
from workload import ME, Workload

from raidfs.errors import NoSuchSnapshot
from raidfs.fs.attributes import RENAME_EXCHANGE, Changes
from raidfs.fs.difference import Change, Range, difference
from raidfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE
from raidfs.fs.rollback import rollback

COMPARED = {
    "mode": "mode",
    "uid": "uid",
    "gid": "gid",
    "rdev": "rdev",
    "size": "size",
    "mtime_ns": "mtime",
}


async def changes_of(volume, old, new=None) -> list[Change]:
    async with difference(volume, old, new) as changes:
        return [change async for change in changes]


def by_ino(state: dict[str, Any]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for path, (fields, _, _) in sorted(state.items()):
        found.setdefault(fields["ino"], []).append(path)
    return found


def by_name(state: dict[str, Any]) -> dict[int, set[tuple[int, str]]]:
    """ino -> (inode of the directory, name): what a name is, wherever its directory is."""
    found: dict[int, set[tuple[int, str]]] = {}
    for path, (fields, _, _) in state.items():
        above, _, name = path.rpartition("/")
        parent = state[above][0]["ino"] if path else 0
        found.setdefault(fields["ino"], set()).add((parent, name))
    return found


def attributes_of(one: Any, other: Any) -> tuple[str, ...]:
    return tuple(word for field, word in COMPARED.items() if one[0][field] != other[0][field])


def _symlink(entry: Any) -> bool:
    return entry[0]["mode"] >> 12 == 0o12


def pages_of(one: bytes, other: bytes) -> set[int]:
    """Pages below the later end that read otherwise."""
    size = len(other)
    one = one[:size].ljust(size, b"\0")
    starts = range(0, size, CELL_BYTES)
    return {
        at // CELL_BYTES
        for at in starts
        if one[at : at + CELL_BYTES] != other[at : at + CELL_BYTES]
    }


def compare(told: list[Change], old: dict[str, Any], new: dict[str, Any]) -> None:
    """The slow way to the same. Pages may be told that were written with what they held."""
    assert [c.path for c in told] == sorted(c.path for c in told)
    names = by_name(old), by_name(new)
    paths = by_ino(old), by_ino(new)
    expected: Counter[tuple[str, int, bool]] = Counter()
    for ino in names[0].keys() | names[1].keys():
        lost = names[0].get(ino, set()) - names[1].get(ino, set())
        gained = names[1].get(ino, set()) - names[0].get(ino, set())
        both = ino in names[0] and ino in names[1]
        renamed = min(len(lost), len(gained)) if both else 0
        for what, count in (
            ("renamed", renamed),
            ("removed", len(lost) - renamed),
            ("created", len(gained) - renamed),
        ):
            if count:
                expected[what, ino, both and what != "renamed"] += count
    found = Counter((c.what, c.ino, c.link) for c in told if c.what != "modified")
    assert found == expected
    details = {c.ino: c for c in told if c.attributes or c.xattrs or c.ranges}
    for c in told:
        assert (c.path.decode() or "/") in {*new, "/"} if c.what != "removed" else True
        if c.what == "removed":
            assert c.path.decode() in paths[0][c.ino]
        elif c.path != b"/":
            assert c.path.decode() in paths[1][c.ino]
        if c.old_path is not None:
            assert c.old_path.decode() in paths[0][c.ino]
        assert c.what != "modified" or c.ino in details
    for ino in paths[0].keys() & paths[1].keys():
        one, other = old[paths[0][ino][0]], new[paths[1][ino][0]]
        change = details.get(ino)
        attributes = tuple(sorted(change.attributes)) if change is not None else ()
        assert attributes == tuple(sorted(attributes_of(one, other))), (paths[1][ino], change)
        xattrs = {
            name: "removed"
            if name not in other[1]
            else "created"
            if name not in one[1]
            else "modified"
            for name in one[1].keys() | other[1].keys()
            if one[1].get(name) != other[1].get(name)
        }
        assert (change.xattrs if change is not None else {}) == xattrs
        if isinstance(other[2], bytes) and not _symlink(other):
            pages = set()
            end = -1
            for each in change.ranges if change is not None else ():
                assert each.offset > end and each.nbytes > 0 and not each.offset % CELL_BYTES
                end = each.offset + each.nbytes
                assert end <= len(other[2])
                pages |= set(range(each.offset // CELL_BYTES, -(-end // CELL_BYTES)))
            assert pages_of(one[2], other[2]) <= pages, (paths[1][ino], change)


def test_one_of_each():
    async def body(volume):
        store = volume.store
        await furnish(volume)
        then = await whole(volume)
        await store.snapshots.create("one")
        await upset(volume)
        now = await whole(volume)
        compare(await changes_of(volume, "one"), then, now)
        await store.snapshots.create("two")
        told = await changes_of(volume, "one", "two")
        compare(told, then, now)
        compare(await changes_of(volume, "two", "one"), now, then)
        assert not await changes_of(volume, "two") and not await changes_of(volume, "one", "one")
        assert all(each.name in ("one", "two") for each in store.snapshots.all(internal=True))
        by_path = {each.path: each for each in told}
        moved = by_path[b"/moved"]
        assert (moved.what, moved.old_path, moved.kind) == ("renamed", b"/directory", "directory")
        assert moved.xattrs == {b"user.colour": "removed", b"user.size": "created"}
        large = by_path[b"/large"]
        assert large.what == "modified" and large.attributes == ("size", "mtime")
        assert by_path[b"/new"].what == "created" and by_path[b"/new"].size == 40 * CELL_BYTES
        assert by_path[b"/small"].what == "removed" == by_path[b"/directory/inner/hard"].what
        with pytest.raises(NoSuchSnapshot):
            await changes_of(volume, "three")

    simulated(body)


def test_ranges():
    async def body(volume):
        store = volume.store
        ino = await write_file(volume, b"file", pattern(1, 700, 100))
        await write_file(volume, b"inline", b"few")
        await store.snapshots.create("one")
        for page, extra in ((0, 0), (1, 0), (255, 7), (256, 0), (600, 4094)):
            await overwrite(volume, b"file", b"other", page * CELL_BYTES + extra)
        volume.open(ino, 2)
        await volume.fallocate(ino, 300 * CELL_BYTES, 2 * CELL_BYTES, PUNCH_HOLE | KEEP_SIZE)
        volume.release(ino)
        await overwrite(volume, b"file", b"behind the end", 800 * CELL_BYTES)
        await overwrite(volume, b"inline", b"FEW")
        file, inline = [c for c in await changes_of(volume, "one") if c.path != b"/"]

        def pages(first, count, less=0):
            return Range(first * CELL_BYTES, count * CELL_BYTES - less)

        tail = CELL_BYTES - len(b"behind the end")
        expected = [pages(0, 2), pages(255, 2), pages(300, 2), pages(600, 2), pages(800, 1, tail)]
        found = [r for r in file.ranges if r.offset != 700 * CELL_BYTES]  # the old end's page
        assert found == expected, (found, expected)
        assert inline.ranges == (Range(0, 3),)

    simulated(body)


def test_names_of_one_file():
    """Links that come and go, a rename of one of several, an exchange, and a name that is lost from
    the directory by which the file is found."""

    async def body(volume):
        store = volume.store
        here = volume.mkdir(ROOT, b"here", 0o755, ME).ino
        there = volume.mkdir(ROOT, b"there", 0o755, ME).ino
        deep = volume.mkdir(there, b"deep", 0o755, ME).ino
        ino = await write_file(volume, b"file", b"1")
        volume.link(ino, here, b"link")
        volume.link(ino, deep, b"far")
        one = await write_file(volume, b"a", b"a")
        other = await write_file(volume, b"b", b"b")
        states = [await whole(volume)]
        await store.snapshots.create("s0")

        def link():
            volume.link(ino, there, b"more")

        def unlink():
            volume.unlink(ROOT, b"file")  # where it stands is not known now

        def rename():
            volume.rename(here, b"link", there, b"link 2")

        def exchange():
            volume.rename(ROOT, b"a", ROOT, b"b", RENAME_EXCHANGE)

        def up():
            volume.rename(ROOT, b"there", here, b"there")

        for number, act in enumerate((link, unlink, rename, exchange, up), 1):
            act()
            states.append(await whole(volume))
            await store.snapshots.create(f"s{number}")
        await volume.setattr(ino, Changes(mode=0o600), ME)
        states.append(await whole(volume))
        await store.snapshots.create("s6")
        volume.unlink(there, b"more")
        volume.unlink(there, b"link 2")
        await volume.setattr(ino, Changes(mode=0o640), ME)
        states.append(await whole(volume))
        await store.snapshots.create("s7")
        await overwrite_at(volume, ino, b"2")
        states.append(await whole(volume))
        await store.snapshots.create("s8")
        for first in range(9):
            for last in range(9):
                told = await changes_of(volume, f"s{first}", f"s{last}")
                compare(told, states[first], states[last])
        told = await changes_of(volume, "s3", "s4")
        assert {(c.what, c.old_path, c.path, c.ino) for c in told if c.ino in (one, other)} == {
            ("renamed", b"/a", b"/b", one),
            ("renamed", b"/b", b"/a", other),
        }

    simulated(body)


async def overwrite_at(volume, ino, content):
    volume.open(ino, 2)
    await volume.write(ino, 0, content)
    volume.release(ino)


def test_a_renamed_directory_is_one_change_whatever_it_holds():
    async def body(volume):
        store = volume.store
        top = volume.mkdir(ROOT, b"top", 0o755, ME).ino
        for number in range(200):
            volume.release(volume.create(top, b"%d" % number, 0o644, 0, ME).ino)
        await store.snapshots.create("one")
        volume.rename(ROOT, b"top", ROOT, b"bottom")
        told = [c for c in await changes_of(volume, "one") if c.path != b"/"]
        assert [(c.what, c.old_path, c.path) for c in told] == [("renamed", b"/top", b"/bottom")]

    simulated(body)


def test_the_cost_follows_what_was_changed():
    """Rows looked at, of inodes: those changed and the directories above, not all there are."""

    async def body(volume):
        store, meta = volume.store, volume.store.meta
        directories = [volume.mkdir(ROOT, b"d%d" % n, 0o755, ME).ino for n in range(20)]
        for directory in directories:
            for number in range(40):
                made = volume.create(directory, b"%d" % number, 0o644, 0, ME)
                volume.release(made.ino)
                volume.forget(made.ino)
        await store.snapshots.create("one")
        found = volume.lookup(directories[3], b"7").ino
        await overwrite_at(volume, found, b"changed")
        looked: set[int] = set()
        inode = meta.inode

        def counted(ino):
            looked.add(ino & (1 << 40) - 1)
            return inode(ino)

        meta.inode = counted
        told = await changes_of(volume, "one")
        meta.inode = inode
        assert [(c.what, c.path) for c in told] == [("modified", b"/d3/7")]
        assert looked <= {ROOT, directories[3], found}

    simulated(body)


def test_users_go_on_and_a_deleted_end_is_told():
    async def body(volume):
        store = volume.store
        for number in range(250):
            await write_file(volume, b"%03d" % number, b"1")
        await store.snapshots.create("one")
        for number in range(250):
            await overwrite(volume, b"%03d" % number, b"2")
        async with difference(volume, "one") as changes:
            seen = 0
            async for change in changes:
                if change.path == b"/":
                    continue
                assert change.path == b"/%03d" % seen and change.what == "modified"
                seen += 1
                if seen % 10 == 0:
                    volume.unlink(ROOT, b"%03d" % (250 - seen))
                    await store.commit()
        assert seen == 250
        with pytest.raises(NoSuchSnapshot, match="deleted while"):
            async with difference(volume, "one") as changes:
                async for _ in changes:
                    await store.snapshots.delete(["one"])

    simulated(body)


def test_after_going_back():
    """What was brought back differs from the snapshots in which it was not."""

    async def body(volume):
        store = volume.store
        await furnish_and_upset(volume)
        await store.snapshots.create("two")
        await rollback(volume, "one")
        assert not await changes_of(volume, "one")
        states = {name: await whole(volume, store.snapshots.find(name)) for name in ("one", "two")}
        compare(await changes_of(volume, "two"), states["two"], states["one"])
        await store.snapshots.create("three")
        compare(await changes_of(volume, "three", "two"), states["one"], states["two"])

    simulated(body)


def random_life(seed, steps, snapshots):
    rng = random.Random(seed)

    async def body(volume):
        store, states = volume.store, []
        workload = Workload(volume, seed)
        models = []
        for number in range(snapshots):
            for _ in range(rng.randrange(steps)):
                await workload.step()
            if number > 2 and rng.random() < 0.4:
                back = rng.randrange(number)
                await rollback(volume, f"s{back}")
                workload.model = models[back].copy()
            states.append(await whole(volume))
            models.append(workload.model.copy())
            await store.snapshots.create(f"s{number}")
        for _ in range(rng.randrange(steps)):
            await workload.step()
        for first in range(snapshots):
            for last in range(snapshots):
                told = await changes_of(volume, f"s{first}", f"s{last}")
                compare(told, states[first], states[last])
            compare(await changes_of(volume, f"s{first}"), states[first], await whole(volume))

    return body


def test_random_life():
    simulated(random_life(3, 40, 4))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20, 26))
def test_more_random_lives(seed):
    simulated(random_life(seed, 80, 6))


def test_of_a_volume_that_is_read_only():
    members = new_members("5", 3)

    async def test():
        async with mounted(members) as volume:
            await furnish_and_upset(volume)
        async with mounted(members, read_only=True) as volume:
            then = await whole(volume, volume.store.snapshots.find("one"))
            compare(await changes_of(volume, "one"), then, await whole(volume))

    in_simulated_time(test)
