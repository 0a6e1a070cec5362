"""The counts of the kernel's references: right for any history, and small."""

import random
import sys

from raidfs.fs.inode import References


def test_against_a_dictionary() -> None:
    rng = random.Random(5)
    references = References()
    model: dict[int, int] = {}
    inos = [rng.randrange(1, 30_000) for _ in range(300)] + [2**40 + 1, 2**62]
    for _ in range(20_000):
        ino = rng.choice(inos)
        if rng.random() < 0.5:
            count = rng.choice([1, 1, 1, 7, 2**31, 2**33 + 5])
            references.add(ino, count)
            model[ino] = model.get(ino, 0) + count
        else:
            count = rng.choice([1, 1, 2, 2**31 - 1, 2**34])
            left = max(0, model.pop(ino, 0) - count)
            if left:
                model[ino] = left
            assert references.take(ino, count) == (left == 0)
        assert references.count(ino) == model.get(ino, 0)
        assert references.inodes == len(model)
    for ino in list(model):
        assert references.take(ino, 2**63)
    assert references.inodes == 0
    assert not references._chunks
    assert not references._used
    assert not references._large


def test_a_million_take_less_than_eight_bytes_each() -> None:
    references = References()
    for ino in range(1, 1_000_001):
        references.add(ino)
    chunks = references._chunks
    size = sum(map(sys.getsizeof, chunks.values())) + sys.getsizeof(chunks)
    size += sys.getsizeof(references._used) + 64 * len(references._used)
    assert size < 8 * 1_000_000
    assert references.inodes == 1_000_000
