"""Snapshots sent and received, without a mount: the target is the source, down to times and holes;
or, whatever is wrong with the stream and whenever a crash comes, it is what it was before."""

import itertools
import os
import random

import msgspec
import pytest
import trio
from simulated import World, members_of
from simulated_volume import (
    assembly_of,
    checked,
    contents,
    fresh_files,
    in_simulated_time,
    inline,
    mounted,
    new_members,
    reopened,
    simulated,
)
from streams import ROOT, reader, received, records, sent, tree
from test_5_stream import resealed
from volumes import forget_all
from workload import Workload

from raidfs.check import check_assembly
from raidfs.errors import FormatError, NoSuchSnapshot, OutOfSpace, UsageError
from raidfs.fs import stream as form
from raidfs.fs.attributes import Changes
from raidfs.fs.receive import Receiver, StreamInterrupted, give_up, kept_token
from raidfs.fs.rollback import rollback
from raidfs.fs.send import choose
from raidfs.fs.spool import Spool
from raidfs.fs.stream import Decoder, Encoder, Extent, Gone, Names, NameTo, Token, Xattr
from raidfs.fs.volume import Volume
from raidfs.store.store import Store

PAGE = 4096


def quietly(volume):
    """Looking changes no atime."""
    volume.files.noatime = True
    return volume


async def write(volume, parent, name, *pieces):
    """A file of (offset, content)."""
    ino = volume.create(parent, name, 0o644, os.O_RDWR, ROOT).ino
    for offset, data in pieces:
        await volume.write(ino, offset, data)
    volume.release(ino)
    forget_all(volume, ino)
    return ino


def random_bytes(seed, nbytes):
    return random.Random(seed).randbytes(nbytes)


async def fill(volume):
    """Something of each kind."""
    directory = volume.mkdir(1, b"directory", 0o755, ROOT).ino
    for number in range(12):
        ino = await write(
            volume,
            directory,
            b"%d" % number,
            (number % 3 * 9000, random_bytes(number, number * 1700 + 10)),
        )
        volume.setxattr(ino, b"user.a", b"x" * number, 0, ROOT)
    volume.link(ino, 1, b"hard")
    volume.symlink(1, b"soft", b"target", ROOT)
    volume.mknod(1, b"fifo", 0o10644, 0, ROOT)
    await write(volume, 1, b"big", (0, random_bytes(1, 500_000)), (3 << 20, random_bytes(2, 5000)))
    await write(volume, 1, b"small", (0, b"small"))


async def change(volume):
    """Of each kind of change, one."""
    directory = volume.lookup(1, b"directory").ino
    big = volume.lookup(1, b"big").ino
    await volume.write(big, 5 * PAGE + 100, b"new")
    await volume.fallocate(big, 20 * PAGE, 10 * PAGE, 3)
    volume.rename(directory, b"3", 1, b"moved")
    volume.unlink(directory, b"4")
    volume.rename(directory, b"5", directory, b"6")
    await volume.setattr(volume.lookup(directory, b"11").ino, Changes(size=5), ROOT)
    await volume.write(volume.lookup(1, b"small").ino, 4, b"er than it was")
    new = volume.mkdir(directory, b"new", 0o700, ROOT).ino
    await write(volume, new, b"file", (0, random_bytes(7, 10_000)))
    volume.removexattr(volume.lookup(directory, b"7").ino, b"user.a")
    for ino in range(2, 40):
        forget_all(volume, ino)


async def source(members, *steps):
    """Snapshots "1", "2", ... after each step: (full stream of the first, streams of changes since
    the one before, trees)."""
    trees, streams = [], []
    async with mounted(members) as volume:
        quietly(volume)
        for number, step in enumerate(steps):
            await step(volume)
            await volume.store.snapshots.create(str(number + 1), f"note {number}")
            base = str(number) if number else None
            streams.append(await sent(volume, str(number + 1), base))
            trees.append(await tree(volume, str(number + 1)))
    checked(members)
    return streams, trees


@pytest.fixture(scope="module", autouse=True)
def small_records():
    """So that streams of these tests have many, and many places from which they can be resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form, "STRETCH_BYTES", 40_000)
        patch.setattr(form, "CONTENT_BYTES_MAX", 16 * PAGE)
        yield


@pytest.fixture(scope="module")
def two_states(small_records):
    """(streams, trees) of `fill` and of `change` after it."""
    return in_simulated_time(lambda: source(new_members("5", 4), fill, change))


async def unchanged(members, before=None):
    """After a refusal: as a new volume, or as before, nothing kept, nothing wrong."""
    again = reopened(members)
    async with mounted(again) as volume:
        assert not Spool(volume).there
        if before is None:
            assert volume.store.meta.is_empty(1) and not volume.store.snapshots.all()
        else:
            assert await tree(quietly(volume)) == before
    checked(again)


# ---- what is sent arrives ----


def test_full_and_changes(two_states):
    streams, trees = two_states

    async def body(volume):
        quietly(volume)
        for number, (stream, told) in enumerate(zip(streams, trees, strict=True)):
            name = str(number + 1)
            done = await received(volume, stream)
            assert done.snapshot == name
            assert await tree(volume) == told == await tree(volume, name)
            assert volume.store.snapshots.find(name).note == f"note {number}"
        assert await tree(volume, "1") == trees[0]
        assert not Spool(volume).there
        await volume.store.snapshots.swept()
        assert await sent(volume, "2", "1") is not None

    simulated(body, "6", 5)


def test_the_same_snapshot_gives_the_same_bytes_wherever_it_is(two_states):
    """Numbers, order of names aside: the copy's directories have other hashes, so that what is
    compared is what is said, record by record."""

    def said(stream):
        names = []
        for body in records(stream):
            if isinstance(body, Names):
                names.append(sorted((each.name, each.ino) for each in body.added))
            elif not isinstance(body, form.Header | form.End):
                yield body
        yield names

    async def run():
        async with mounted(new_members("5", 3)) as volume:
            await received(volume, two_states[0][0])
            again = await sent(volume, "1")
            assert again == await sent(volume, "1")
            assert list(said(again)) == list(said(two_states[0][0]))

    in_simulated_time(run)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 7))]
)
def test_random_operations_between_snapshots(seed):
    rng = random.Random(seed)

    async def run():
        workload = None

        async def step(volume):
            nonlocal workload
            workload = workload or Workload(volume, seed)
            for _ in range(rng.randint(5, 60)):
                await workload.step()

        streams, trees = await source(new_members("5", 4), *[step] * 5)
        members = new_members("1", 2)
        for stream, told in zip(streams, trees, strict=True):
            async with mounted(members) as volume:
                await received(quietly(volume), stream, piece=rng.choice((1000, 65536)))
                assert await tree(volume) == told
            checked(members)
            members = reopened(members)

    in_simulated_time(run)


def test_what_a_rollback_brought_back_is_sent():
    async def run():
        members, copy = new_members("5", 3), new_members("5", 3)
        async with mounted(members) as volume:
            quietly(volume)
            await fill(volume)
            await volume.store.snapshots.create("old")
            for name in (b"big", b"small", b"hard"):
                volume.unlink(1, name)
            await volume.store.snapshots.create("1")
            full = await sent(volume, "1")
            await rollback(volume, "old")
            await volume.store.snapshots.create("2")
            changes, told = await sent(volume, "2", "1"), await tree(volume, "2")
        async with mounted(copy) as volume:
            await received(quietly(volume), full)
            await received(volume, changes)
            assert await tree(volume) == told
        checked(copy)

    in_simulated_time(run)


@pytest.mark.parametrize("page_bytes", [8192, 65536])
def test_larger_pages_than_the_senders(page_bytes):
    async def run():
        async with mounted(new_members("5", 3)) as volume:
            quietly(volume)
            await fill(volume)
            await volume.store.snapshots.create("1")
            await change(volume)
            await volume.store.snapshots.create("2")
            extents = {}
            for name, base in (("1", None), ("2", "1")):
                stream = await sent(volume, name, base, page_bytes=page_bytes)
                size = {b.ino: b.size for b in records(stream) if isinstance(b, form.Inode)}
                decoder = Decoder()
                decoder.feed(stream)
                for record in decoder.records():
                    if not isinstance(record.body, form.Extents):
                        continue
                    at = 0
                    for extent in record.body.extents:
                        nbytes = 0 if extent.hole else extent.count * page_bytes
                        start = extent.first * page_bytes
                        view = volume.store.snapshots.find(name).id << 40 | extent.ino
                        there = bytes(await volume.read(view, start, extent.count * page_bytes))
                        told = (
                            bytes(record.content[at : at + nbytes]) if nbytes else bytes(len(there))
                        )
                        assert told[: len(there)] == there and not any(told[len(there) :])
                        assert start < size[extent.ino]
                        at += nbytes
                        extents[extent.hole] = extents.get(extent.hole, 0) + 1
            assert extents[False]
            with pytest.raises(UsageError, match="page-bytes"):
                await received(volume, stream)

    in_simulated_time(run)


# ---- what is refused ----


def test_a_damaged_stream_changes_nothing(two_states):
    stream = two_states[0][0]

    async def run():
        members = new_members("5", 3)
        rng = random.Random(1)
        async with mounted(members) as volume:
            for at in rng.sample(range(len(stream)), 12):
                damaged = bytearray(stream)
                damaged[at] ^= 1 << rng.randrange(8)
                with pytest.raises((FormatError, StreamInterrupted)):
                    await received(volume, bytes(damaged))
                await give_up(volume)
        await unchanged(members)

    in_simulated_time(run)


def resent(stream, edit):
    """The same stream, honestly sealed, with other records: `edit` says what comes of each."""
    decoder = Decoder()
    decoder.feed(stream)
    encoder, data = None, b""
    for record in decoder.records():
        for body in edit(record.body):
            if isinstance(body, form.Header):
                encoder = Encoder(body)
                data += encoder.begin()
            elif isinstance(body, form.Extents):
                pages = sum(e.count for e in body.extents if not e.hole)
                content = bytes(record.content)[: pages * PAGE].ljust(pages * PAGE, b"\0")
                data += encoder.extents(body.extents, content)
            elif isinstance(body, form.End):
                data += encoder.end()
            else:
                data += encoder.record(body)
    return data


def each(kind, **fields):
    """Every record of a kind gets other fields; a function makes one of the old record."""

    def edit(body):
        if not isinstance(body, kind):
            return [body]
        values = {k: v(body) if callable(v) else v for k, v in fields.items()}
        return [msgspec.structs.replace(body, **values)]

    return edit


def without(kind):
    return lambda body: [] if isinstance(body, kind) else [body]


def behind(kind, *more):
    return lambda body: [body, *more] if isinstance(body, kind) else [body]


def one(ino, **fields):
    """The inode of that number gets other fields."""

    def edit(body):
        hit = isinstance(body, form.Inode) and body.ino == ino
        return [msgspec.structs.replace(body, **fields)] if hit else [body]

    return edit


def swap_first_two(body):
    if isinstance(body, form.Extents) and len(body.extents) > 1:
        first, second, *rest = body.extents
        return [form.Extents([second, first, *rest])]
    return [body]


def first_name(**fields):
    def edit(body):
        if isinstance(body, Names) and body.added:
            first = msgspec.structs.replace(body.added[0], **fields)
            return [Names(body.removed, [first, *body.added[1:]])]
        return [body]

    return edit


FULL_LIES = {
    "no names": without(Names),
    "no inodes": without(form.Inode),
    "content without end": each(form.Inode, size=lambda b: 3 if b.mode >> 12 == 8 else b.size),
    "wrong link count": one(3, nlink=9),
    "wrong count of directories": one(1, nlink=2),
    "the root a file": one(1, mode=0o100644),
    "elsewhere": one(2, parent=2),
    "of no kind": one(3, mode=0o644),
    "of another kind": one(3, mode=0o60644),
    "a link without target": one(3, mode=0o120777, nlink=1),
    "a directory with a size": one(2, size=1),
    "a device's number": one(3, rdev=7),
    "a number never handed out": each(form.Header, next_ino=5),
    "all numbers handed out": each(form.Header, next_ino=(1 << 40) - 1),
    "changes of nothing": each(form.Inode, whole=False),
    "gone": behind(form.Header, Gone([5])),
    "a slash": first_name(name=b"a/b"),
    "dots": first_name(name=b".."),
    "NUL": first_name(name=b"a\0b"),
    "raidfs's own": first_name(name=b".snapshots"),
    "leads nowhere": first_name(ino=99),
    "leads to itself": first_name(ino=1, kind=4),
    "name of another kind": first_name(kind=10),
    "an attribute of nobody": behind(form.Header, Xattr(b"user.a", b"")),
    "an attribute of no namespace": each(Xattr, name=b"other.a"),
    "an ACL of nonsense": each(Xattr, name=b"system.posix_acl_access"),
    "an attribute not there": each(Xattr, value=None),
    "twice": lambda b: [b, b] if isinstance(b, Names | form.Inode | Xattr | form.Extents) else [b],
    "holes in what is new": each(
        form.Extents, extents=lambda b: [Extent(e.ino, e.first, e.count, True) for e in b.extents]
    ),
    "out of order": swap_first_two,
    "content of a directory": each(form.Extents, extents=[Extent(2, 0, 1, False)]),
    "content of nobody": each(form.Extents, extents=[Extent(98, 0, 1, False)]),
    "inline and content": one(17, inline=b"x"),
}  # fmt: skip


@pytest.mark.parametrize("lie", FULL_LIES)
def test_a_full_stream_that_makes_no_sense_changes_nothing(two_states, lie):
    stream = resent(two_states[0][0], FULL_LIES[lie])
    assert stream != two_states[0][0]

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            with pytest.raises(FormatError, match="nothing was changed"):
                await received(volume, stream)
        await unchanged(members)

    in_simulated_time(run)


CHANGE_LIES = {
    "no names": without(Names),
    "no inodes gone": without(Gone),
    "others gone": each(Gone, inos=[3]),
    "the root gone": each(Gone, inos=[1]),
    "nobody gone": each(Gone, inos=[90]),
    "wrong link count": each(form.Inode, nlink=lambda b: b.nlink + 1),
    "of another kind": each(form.Inode, mode=lambda b: b.mode ^ 0o140000),
    "not new at all": each(form.Inode, whole=False),
    "names lost twice": each(Names, removed=lambda b: b.removed * 2),
    "names lost that aren't": each(Names, removed=lambda b: [*b.removed, b"never there"]),
    "names there already": each(
        Names, added=lambda b: [*b.added, NameTo(b"big", 15, 8), NameTo(b"1", 4, 8)]
    ),
    "names left": each(Names, removed=[]),
    "one directory within itself": each(Names, added=lambda b: [*b.added, NameTo(b"up", 2, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("lie", CHANGE_LIES)
def test_changes_that_make_no_sense_change_nothing(two_states, lie):
    streams, trees = two_states
    stream = resent(streams[1], CHANGE_LIES[lie])
    assert stream != streams[1]

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            await received(volume, streams[0])
            with pytest.raises(FormatError, match="nothing was changed"):
                await received(volume, stream)
        await unchanged(members, trees[0])

    in_simulated_time(run)


@pytest.mark.parametrize("size", [1000, 5000, 9000])
def test_a_file_that_became_shorter_ends_in_zeros(size):
    """What is left of its last page isn't believed to do so, but looked at: a rollback, too, leaves
    a shorter file with the same page."""

    async def fill_one(volume):
        await write(volume, 1, b"file", (0, random_bytes(1, min(size * 2, 10_000))))

    async def shorten(volume):
        await volume.setattr(volume.lookup(1, b"file").ino, Changes(size=size), ROOT)

    async def lengthen(volume):
        await volume.setattr(volume.lookup(1, b"file").ino, Changes(size=size + 100), ROOT)

    async def back(volume):
        await rollback(volume, "2")

    def lie(body):
        if isinstance(body, form.Inode):
            return [msgspec.structs.replace(body, inline=None)]
        return [] if isinstance(body, form.Extents) else [body]

    async def run():
        streams, trees = await source(new_members("5", 3), fill_one, shorten, lengthen, back)
        members = new_members("6", 4)
        async with mounted(members) as volume:
            quietly(volume)
            await received(volume, streams[0])
            with pytest.raises(FormatError, match="behind its end"):
                await received(volume, resent(streams[1], lie))
        await unchanged(members, trees[0])
        members = reopened(members)
        async with mounted(members) as volume:
            for stream in streams[1:3]:
                await received(volume, stream)
            assert not any(isinstance(each, form.Extents) for each in records(streams[3]))
            await received(volume, resent(streams[3], lie))
            assert await tree(quietly(volume)) == trees[3]
        checked(members)

    in_simulated_time(run)


def test_generations_leave_room_for_those_of_a_rollback(two_states):
    stream = resent(two_states[0][0], each(form.Inode, generation=(1 << 63) - 1))

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            with pytest.raises(FormatError, match="generation"):
                await received(volume, stream)
        await unchanged(members)

    in_simulated_time(run)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 5))]
)
def test_streams_changed_on_purpose_are_refused_or_make_a_sound_volume(two_states, seed):
    """Bytes of records changed at random, checksums made to match."""
    rng = random.Random(seed)
    full, changes = two_states[0]

    async def run():
        members = new_members("5", 3)
        outcomes = {True: 0, False: 0}
        async with mounted(members) as volume:
            await received(volume, full)
        start = contents(members)
        for _ in range(60):
            which = bytearray(changes)
            for _ in range(rng.randint(1, 2)):
                which[rng.randrange(16, min(len(which), 1500))] = rng.randrange(256)
            try:
                stream = resealed(bytes(which))
            except ValueError:
                continue
            again = members_of(dict(start), World(dict(start)), [0, 1, 2])
            async with mounted(again) as volume:
                try:
                    await received(volume, stream)
                    outcomes[True] += 1
                except (FormatError, StreamInterrupted, UsageError):
                    await give_up(volume)
                    outcomes[False] += 1
            checked(again)
        assert outcomes[False]

    in_simulated_time(run)


def test_a_target_that_is_not_what_the_stream_goes_on_from(two_states):
    streams, trees = two_states

    async def body(volume):
        quietly(volume)
        with pytest.raises(UsageError, match="hasn't got"):
            await received(volume, streams[1])
        mine = await write(volume, 1, b"mine", (0, b"mine"))
        with pytest.raises(UsageError, match="not empty"):
            await received(volume, streams[0])
        await received(volume, streams[0], force=True)
        assert await tree(volume) == trees[0]
        with pytest.raises(UsageError, match="already"):
            await received(volume, streams[0])
        mine = await write(volume, 1, b"mine", (0, b"mine"))
        assert mine >= 17
        with pytest.raises(UsageError, match="was changed"):
            await received(volume, streams[1])
        with pytest.raises(UsageError, match="another snapshot"):
            await received(volume, streams[1], name="1", force=True)
        await received(volume, streams[1], force=True, name="mine")
        assert await tree(volume) == trees[1] == await tree(volume, "mine")
        assert not Spool(volume).there

    simulated(body)


def test_reading_in_between_is_no_change(two_states):
    streams, trees = two_states

    async def body(volume):
        await received(volume, streams[0])
        ino = volume.lookup(1, b"big").ino
        before = volume.getattr(ino).atime_ns
        await volume.read(ino, 0, 10)
        volume.readdir(volume.lookup(1, b"directory").ino, 0, 10)
        assert volume.getattr(ino).atime_ns != before
        for each_ino in range(2, 40):
            forget_all(volume, each_ino)
        await received(volume, streams[1])
        assert await tree(quietly(volume)) == trees[1]

    simulated(body)


def test_a_stream_too_large_for_the_volume(two_states):
    async def body(volume):
        with pytest.raises(OutOfSpace):
            await received(volume, two_states[0][0])
        await write(volume, 1, b"there is room again", (0, bytes(200_000)))

    simulated(body, slots=6)


def test_a_snapshot_deleted_while_it_is_sent(two_states):
    async def run():
        async with mounted(new_members("5", 3)) as volume:
            await received(volume, two_states[0][0])
            taken = bytearray()

            async def write_some(data):
                taken.extend(data)
                if volume.store.snapshots.all():
                    await volume.store.snapshots.delete(["1"])

            with pytest.raises(NoSuchSnapshot):
                await choose(volume.store, "1", None, None, None).run(write_some)
            decoder = Decoder()
            decoder.feed(bytes(taken))
            list(decoder.records())
            assert not decoder.ended

    in_simulated_time(run)


# ---- interrupted, resumed, crashed ----


def test_interrupted_anywhere_and_resumed(two_states):
    rng = random.Random(3)

    async def run():
        members, copy = new_members("5", 3), new_members("5", 3)
        async with mounted(members) as volume:
            await fill(quietly(volume))
            await volume.store.snapshots.create("1")
            told = await tree(volume, "1")
            rest, breaks = await sent(volume, "1"), 0
            while True:
                end = rng.randrange(30_000, 200_000)
                async with mounted(copy) as target:
                    quietly(target)
                    try:
                        done = await received(target, rest[:end], piece=rng.choice((3000, 65536)))
                    except StreamInterrupted:
                        breaks += 1
                        assert target.store.meta.is_empty(1)
                        token = await kept_token(target)
                    else:
                        assert done.resumed_at and await tree(target) == told
                        break
                checked(copy)
                copy = reopened(copy)
                if token is not None:
                    rest = await sent(volume, "1", token=Token.of(token.text()))
            assert breaks > 4
        checked(copy)

    in_simulated_time(run)


def test_what_goes_on_with_something_else_is_refused(two_states):

    async def run():
        members, copy = new_members("5", 3), new_members("5", 3)
        async with mounted(members) as volume, mounted(copy) as target:
            await fill(volume)
            await volume.store.snapshots.create("1")
            await volume.store.snapshots.create("2")
            whole = await sent(volume, "1")
            with pytest.raises(StreamInterrupted):
                await received(target, whole[:200_000])
            token = await kept_token(target)
            with pytest.raises(UsageError, match="received before"):
                await received(target, whole)
            rest = await sent(volume, "1", token=token)
            other = bytearray(rest)
            other[30] ^= 1
            with pytest.raises(FormatError):
                await received(target, bytes(other))
            header = msgspec.structs.replace(
                token.header, guid=volume.store.snapshots.find("2").guid, name="2"
            )
            wrong = Token(header, token.offset, token.digest)
            with pytest.raises(UsageError, match="another one"):
                await received(target, await sent(volume, "2", token=wrong))
            await received(target, rest)  # it is still there
            with pytest.raises(UsageError, match="nothing is here"):
                await received(target, rest)

    in_simulated_time(run)


def test_what_is_kept_of_a_stream_is_no_part_of_any_state(two_states):
    """Snapshots, a rollback and changes, between the interruption and what comes after it."""
    streams, trees = two_states

    async def run():
        members = new_members("5", 3)
        async with mounted(members) as volume:
            quietly(volume)
            await received(volume, streams[0])
            with pytest.raises(StreamInterrupted):
                await received(volume, streams[1][:-10])
            await volume.store.snapshots.create("between")
            token = await kept_token(volume)
            assert (token is None) == (not Spool(volume).there)
            with pytest.raises(StreamInterrupted):
                await received(volume, resent(streams[1], without(form.End)))
            await write(volume, 1, b"mine", (0, b"mine"))
            await rollback(volume, "between")
            assert await tree(volume) == trees[0]
            assert not any(
                isinstance(b, form.Inode) for b in records(await sent(volume, "between", "1"))
            )
        checked(members)
        members = reopened(members)
        async with mounted(members) as volume:
            quietly(volume).reap_orphans()
            await give_up(volume)
            await volume.store.snapshots.delete(["between"])
            await received(volume, streams[1])
            assert await tree(volume) == trees[1]
        checked(members)

    in_simulated_time(run)


async def _recover(files):
    """After a crash: what the volume holds, in words; ends in check."""
    members = members_of(files, World(files), [0, 1, 2])
    async with mounted(members) as volume:
        quietly(volume).reap_orphans()
        found = await tree(volume)
        names = [row.name for row in volume.store.snapshots.all()]
        views = [await tree(volume, name) for name in names]
        kept = await kept_token(volume)
        await volume.store.snapshots.swept()
    again = reopened(members)
    report = check_assembly(assembly_of(again, read_only=True))
    assert not report.findings, report.findings[:5]
    return names, found, views, kept


@pytest.mark.parametrize(
    "every", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"]
)
def test_a_crash_at_every_sync_while_receiving(two_states, every):
    streams, trees = two_states
    world = World(fresh_files("5", 3))

    async def run():
        members = members_of(world.files, world, [0, 1, 2])
        clock = itertools.count(10**18, 1000).__next__
        store = await Store.open(assembly_of(members), clock=clock, offload=inline)
        volume = Volume(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            for number, stream in enumerate(streams):
                with pytest.raises(StreamInterrupted):
                    await received(volume, stream[: len(stream) * 2 // 3])
                token = await kept_token(volume)
                if token is not None:
                    await give_up(volume)
                await received(volume, stream, piece=30_000)
                world.mark(number + 1)
            await store.stop()

    in_simulated_time(run)
    empty = None
    seen = set()
    for at, (position, image, marks) in enumerate(world.images()):
        if at % every:
            continue
        for seed in (1, 2)[: 1 if every > 1 else 2]:
            files = image.crash(seed)
            names, found, views, kept = in_simulated_time(lambda files=files: _recover(files))
            where = f"log position {position}, seed {seed}"
            seen.add((len(names), kept is not None))
            assert len(names) >= max(marks, default=0), where
            assert names == ["1", "2"][: len(names)], where
            assert views == trees[: len(names)], where
            if not names:
                empty = empty or found
                assert found == empty and len(found) == 1, where
            else:
                assert found == trees[len(names) - 1], where
    assert {count for count, _ in seen} == {0, 1, 2}
    assert every > 1 or (0, True) in seen  # a crash leaves what came of a stream


def test_a_receiver_that_is_told_to_end_leaves_a_volume_that_goes_on(two_states):
    async def body(volume):
        with trio.CancelScope() as scope:
            pieces = reader(two_states[0][0], 5000)

            async def read():
                data = await pieces()
                if volume.store.pages.dirty_cells or not data:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                return data

            await Receiver(volume, read).run()
        assert scope.cancelled_caught
        await give_up(volume)
        await received(volume, two_states[0][0])

    simulated(body)
