"""Reading directories that change: what is there throughout is listed exactly once."""

import random
import stat

import pytest
from volumes import ROOT, make_members, mounted, names

KIND = stat.S_IFREG | 0o644


@pytest.mark.trio
async def test_special_entries_and_cookies(tmp_path):
    async with mounted(make_members(tmp_path)) as volume:
        top = volume.mkdir(1, b"top", 0o755, ROOT).ino
        sub = volume.mkdir(top, b"sub", 0o755, ROOT).ino
        volume.mknod(top, b"file", KIND, 0, ROOT)
        entries = volume.readdir(top, 0, 100)
        assert [(e.name, e.ino) for e in entries[:2]] == [(b".", top), (b"..", 1)]
        assert sorted(e.name for e in entries[2:]) == [b"file", b"sub"]
        cookies = [e.cookie for e in entries]
        assert cookies == sorted(set(cookies))
        assert all(0 < cookie < 2**63 for cookie in cookies)
        for position, cookie in enumerate([0, *cookies]):  # telldir and seekdir
            assert volume.readdir(top, cookie, 100) == entries[position:]
            assert volume.readdir(top, cookie, 1) == entries[position : position + 1]
        assert volume.readdir(1, 0, 2)[1].ino == 1
        assert volume.lookup(sub, b"..").ino == top
        assert volume.lookup(sub, b".").ino == sub
        assert volume.lookup(1, b"..").ino == 1


@pytest.mark.trio
@pytest.mark.parametrize("seed", [1, 2])
async def test_while_it_changes(tmp_path, seed):
    print("seed", seed)
    rng = random.Random(seed)
    async with mounted(make_members(tmp_path)) as volume:
        top = volume.mkdir(1, b"top", 0o755, ROOT).ino
        stay = {b"stay%d" % number for number in range(150)}
        for name in stay:
            volume.mknod(top, name, KIND, 0, ROOT)
        others: set[bytes] = set()
        for turn in range(6):
            seen, after = [], 0
            while entries := volume.readdir(top, after, rng.randrange(1, 20)):
                seen += [entry.name for entry in entries]
                after = entries[-1].cookie
                for _ in range(rng.randrange(8)):
                    change(volume, top, others, rng, turn)
            assert len(seen) == len(set(seen))
            assert stay <= set(seen)
        assert set(names(volume, top, limit=7)) == stay | others


def change(volume, top, others, rng, turn):
    """Another name appears or goes."""
    if others and rng.random() < 0.4:
        name = rng.choice(sorted(others))
        volume.unlink(top, name)
        others.discard(name)
    elif others and rng.random() < 0.5:
        name, new = rng.choice(sorted(others)), b"renamed%d" % rng.randrange(1000)
        volume.rename(top, name, top, new)
        others.discard(name)
        others.add(new)
    else:
        name = b"other%d-%d" % (turn, rng.randrange(100_000))
        if name not in others:
            volume.mknod(top, name, KIND, 0, ROOT)
            others.add(name)
