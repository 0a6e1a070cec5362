"""Damage to real members, and what must be found afterwards: content that is known byte by byte, a
map of where its cells lie, and everything that a disk may do to them.

    tree = Tree()
    tree.grow(volume.mountpoint, dice)      # volume unmounted or killed, then:
    survey = Survey(volume.members)
    vandal = Vandal(survey, dice)
    vandal.cells(2, "ranges")
    survey.wrong()                          # cells that are not what they were

The map is made of the volume's own metadata while nobody has it open, so it is right only until
somebody writes.
"""

import errno
import functools
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from raidfs.raid.assembly import Assembly
from raidfs.raid.code import parse_code, present
from raidfs.raid.label import LABEL_BYTES
from raidfs.raid.raw import META_OFFSET_BYTES, Geometry
from raidfs.store.database import INF
from raidfs.store.meta import Meta
from raidfs.store.mirror import Mirror
from raidfs.store.past import as_view

PAGE = 4096
INO_MASK = (1 << 40) - 1  # of a snapshot's inode numbers, what they are in the present
PRESENT = ""  # the view that is no snapshot
SIZES = (0, 10, 1500, 2048, 2049, 4096, 5000, 40_000, 150_000, 400_000)
CELL_KINDS = ("bits", "ranges", "zeros", "whole", "shifted", "zones swapped", "members swapped")
FILE_KINDS = ("cut short", "emptied", "deleted")  # of column files: directories alone have such


# -- content ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One name. `content`: bytes of a file, target of a link, None for a directory."""

    content: bytes | str | None
    xattrs: tuple[tuple[str, bytes], ...] = ()


@dataclass
class Tree:
    """What a mount, or a snapshot, must show, by path."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def copy(self):
        return Tree(dict(self.entries))

    def grow(self, root, dice):
        """Directories, files of all sizes, inline and sparse ones, links, attributes."""
        for directory in ("d0", "d0/d1", "d2"):
            (root / directory).mkdir()
            self.entries[directory] = Entry(None)
        self.write(root, "d0/large", dice.randbytes(1_300_000))
        for number in range(24):
            self.new_file(root, dice, f"file{number}")
        self.write(root, "d0/all hole", bytes(300_000), sparse=True)
        content = bytearray(1_500_000)
        for offset in (0, 500_000, 1_200_003):
            content[offset : offset + 9000] = dice.randbytes(9000)
        self.write(root, "d0/sparse", bytes(content), sparse=True)
        os.symlink("../d0/large", root / "d2" / "link")
        self.entries["d2/link"] = Entry("../d0/large")
        for name, size in (("user.colour", 7), ("user.large", 3000)):
            self.attribute(root, "d0/d1", name, dice.randbytes(size))
            self.attribute(root, "file3" if "file3" in self.entries else "d2", name, b"of a file")

    def change(self, root, dice, count=10):
        """Files rewritten in part or whole, cut, removed and made."""
        for number in range(count):
            name = dice.choice(sorted(n for n, e in self.entries.items() if self.is_file(n)))
            content = self.entries[name].content
            kind = dice.choice(("part", "part", "part", "whole", "cut", "gone", "new"))
            if kind == "part" and content:
                offset = dice.randrange(len(content))
                piece = dice.randbytes(dice.choice((1, 100, 5000, 70_000)))
                with (root / name).open("r+b") as file:
                    os.pwrite(file.fileno(), piece, offset)
                new = content[:offset] + piece + content[offset + len(piece) :]
                self.entries[name] = replace(self.entries[name], content=new)
            elif kind == "cut":
                size = dice.randrange(len(content) + 5000)
                os.truncate(root / name, size)
                new = content[:size].ljust(size, b"\0")
                self.entries[name] = replace(self.entries[name], content=new)
            elif kind == "gone":
                (root / name).unlink()
                del self.entries[name]
            elif kind == "whole":
                self.write(root, name, dice.randbytes(dice.choice(SIZES)))
            else:
                self.new_file(root, dice, f"new{number}-{dice.randrange(10**6)}")

    def is_file(self, name):
        return isinstance(self.entries[name].content, bytes)

    def new_file(self, root, dice, name):
        directory = dice.choice(("", "d0/", "d0/d1/", "d2/"))
        self.write(root, directory + name, dice.randbytes(dice.choice(SIZES)))

    def write(self, root, name, content, sparse=False):
        with (root / name).open("wb") as file:
            for offset in range(0, len(content), 1000 if sparse else 1 << 20):
                piece = content[offset : offset + (1000 if sparse else 1 << 20)]
                if not sparse or any(piece):
                    os.pwrite(file.fileno(), piece, offset)
            file.truncate(len(content))
        kept = self.entries[name].xattrs if name in self.entries else ()
        self.entries[name] = Entry(content, kept)

    def attribute(self, root, path, name, value):
        os.setxattr(root / path, name, value)
        entry = self.entries[path]
        kept = (*(each for each in entry.xattrs if each[0] != name), (name, value))
        self.entries[path] = replace(entry, xattrs=tuple(sorted(kept)))

    def compare(self, root, lost=None):
        """All that a mount shows below `root`, read from the members. `lost`: by inode number, the
        pages that can't be had; these and no others must give EIO. Returns the paths that have
        such."""
        found = {}
        for place, directories, files in os.walk(root):
            for name in (*directories, *files):
                found[os.path.relpath(os.path.join(place, name), root)] = os.path.join(place, name)
        found = {name: path for name, path in found.items() if not name.startswith(".snapshots")}
        assert found.keys() == self.entries.keys(), found.keys() ^ self.entries.keys()
        broken = set()
        for name, path in found.items():
            entry = self.entries[name]
            xattrs = {a: os.getxattr(path, a, follow_symlinks=False) for a in _listed(path)}
            assert xattrs == dict(entry.xattrs), name
            if entry.content is None:
                assert os.path.isdir(path), name
            elif isinstance(entry.content, str):
                assert os.readlink(path) == entry.content, name
            else:
                pages = (lost or {}).get(os.lstat(path).st_ino & INO_MASK, set())
                _compare_file(name, path, entry.content, pages)
                if pages:
                    broken.add(name)
        return broken


def _listed(path):
    return os.listxattr(path, follow_symlinks=False)


def _compare_file(name, path, content, lost):
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.fstat(fd).st_size == len(content), name
        step = PAGE if lost else 1 << 20
        if lost:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        failed = set()
        for offset in range(0, len(content), step):
            try:
                data = os.pread(fd, step, offset)
            except OSError as error:
                assert error.errno == errno.EIO and lost, (name, offset, error)
                failed.add(offset // PAGE)
                continue
            assert data == content[offset : offset + step], (name, offset)
        assert failed == lost, (name, sorted(failed ^ lost))
    finally:
        os.close(fd)


# -- where everything lies -------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """Of a zone: bytes [base, base + nbytes) at `path`; the first cells count, where `there`."""

    zone: int
    number: int
    member: int
    path: Path
    base: int
    nbytes: int
    there: np.ndarray  # bool (rows filled,)

    def read(self):
        """Of what counts; shorter, or nothing, if it isn't there."""
        try:
            with self.path.open("rb") as file:
                return os.pread(file.fileno(), len(self.there) * PAGE, self.base)
        except FileNotFoundError:
            return b""


class Survey:
    """A volume that nobody has open, by its own metadata. Members are numbered as in `members`."""

    def __init__(self, members, source=None):
        self.members = [Path(member) for member in members]
        self.columns = {}  # (zone, column) -> Column
        self.codes = {}  # zone -> Code
        self.users = {}  # (zone, row, column) -> [(view, ino, page)]
        assembly = Assembly.open(str(source or members[0]), degraded=True, read_only=True)
        try:
            self.geometry = Geometry.of(assembly.label.parameters)
            mirror = Mirror(assembly.members, read_only=True)
            self.db_bytes, self.wal_bytes = mirror.db_bytes, mirror.wal_bytes
            meta = Meta(mirror)
            try:
                self._zones(meta)
                self._leaves(meta)
                self.events = {event.kind for event in meta.events(1000)}
            finally:
                meta.close()
                mirror.close()
        finally:
            assembly.close()
        self.before = self.content()

    def _zones(self, meta):
        for row in meta.zones():
            code = self.codes[row.zone] = parse_code(row.code)
            there = np.zeros((code.width, row.fill), dtype=bool)
            for owner in meta.owners(row.zone):
                there[:, owner.row : owner.row + owner.rows] = present(code, owner.pages)
            for number, (member, slot) in enumerate(row.columns):
                path, base = self.members[member], 0
                if path.is_dir():
                    path = path / "zones" / f"{row.zone & 255:02x}" / f"{row.zone:08x}.{number}"
                else:
                    base = self.geometry.data_offset_bytes + slot * self.geometry.zone_bytes
                column = Column(
                    row.zone, number, member, path, base, row.rows * PAGE, there[number]
                )
                self.columns[row.zone, number] = column

    def _leaves(self, meta):
        """Not those of files that had lost their names and were still open when a snapshot was
        taken (the kernel closes late): nobody can read these."""
        views = [(row.id, row.name, row.epoch) for row in meta.snapshots()]
        named = functools.cache(lambda ino: bool(meta.inode(ino).nlink))
        for ino, leaf_number, leaf, version in meta.all_leaves():
            if leaf.addresses is None:
                continue
            seen = [
                name
                for number, name, epoch in views
                if version.born <= epoch < version.died and named(as_view(number, ino))
            ]
            seen += [PRESENT] if version.died == INF and named(ino) else []
            for at in np.flatnonzero(leaf.addresses).tolist() if seen else ():
                address = int(leaf.addresses[at])
                cell = (address >> 32, address >> 8 & 0xFFFFFF, address & 0xFF)
                page = leaf_number * 256 + at
                self.users.setdefault(cell, []).extend((view, ino, page) for view in seen)

    def of_member(self, member):
        return [c for c in self.columns.values() if c.member == member and len(c.there)]

    def content(self):
        """Of all columns, as it is now."""
        return {place: column.read() for place, column in self.columns.items()}

    def wrong(self, now=None):
        """Cells (zone, row, column) that count and aren't what they were."""
        now = self.content() if now is None else now
        found = set()
        for place, column in self.columns.items():
            rows = len(column.there)
            old, new = self.before[place], now[place].ljust(rows * PAGE, b"\xff")
            if old == new:
                continue
            cut = len(now[place]) // PAGE  # what is missing is wrong, whatever was there
            differ = (_cells(old) != _cells(new)).any(axis=1)
            differ[cut:] = True
            rows_wrong = np.flatnonzero(differ & column.there).tolist()
            found |= {(column.zone, row, column.number) for row in rows_wrong}
        return found

    def member_of(self, cell):
        return self.columns[cell[0], cell[2]].member

    def beyond(self, wrong, gone=()):
        """Of the wrong cells, and those of members that are gone, what redundancy doesn't cover."""
        rows, found = {}, set()
        for zone, row, column in wrong:
            rows.setdefault((zone, row), set()).add(column)
        for (zone, row), bad in rows.items():
            code = self.codes[zone]
            for number in range(code.width):
                if self.columns[zone, number].member in gone:
                    bad.add(number)
            good = tuple(c for c in range(code.width) if c not in bad)
            for column in bad:
                if code.express((column,), good) is None:
                    found.add((zone, row, column))
        return found

    def pages_of(self, cells):
        """view -> inode -> pages, of cells that can't be had."""
        found = {}
        for cell in cells:
            for view, ino, page in self.users.get(cell, ()):
                found.setdefault(view, {}).setdefault(ino, set()).add(page)
        return found

    def read_by_somebody(self, cells):
        return {cell for cell in cells if cell in self.users}


def _cells(data):
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE)


# -- damage ----------------------------------------------------------------------------------------


def patch(path, offset, data):
    """Overwrites, and nothing else."""
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def noise(dice, old):
    """As long, and different in its first byte and its last."""
    new = bytearray(dice.randbytes(len(old)))
    for at in (0, -1):
        new[at] = old[at] ^ dice.randrange(1, 256)
    return bytes(new)


class Vandal:
    """Does damage by a survey. `story`: what was done, in words."""

    def __init__(self, survey, dice):
        self.survey, self.dice = survey, dice
        self.story = []

    def cells(self, member, kind, hit=()):
        """To some or all columns of a member. `hit`: members that may be damaged with it."""
        self.story.append(f"cells of member {member}: {kind}")
        columns = self.survey.of_member(member)
        some = self.dice.sample(columns, self.dice.randint(1, len(columns)))
        if kind in ("zones swapped", "members swapped"):
            pool = hit if kind == "members swapped" and len(hit) > 1 else (member,)
            others = [c for other in pool for c in self.survey.of_member(other)]
            for column in some[:3]:
                self._swap(column, self.dice.choice(others))
            return
        for column in some:
            {
                "bits": self._bits,
                "ranges": self._ranges,
                "zeros": self._ranges,
                "whole": self._whole,
                "shifted": self._shifted,
                "cut short": self._file,
                "emptied": self._file,
                "deleted": self._file,
            }[kind](column, kind)

    def _bits(self, column, kind):
        for _ in range(self.dice.choice((1, 3, 40))):
            row = self.dice.choice(np.flatnonzero(column.there).tolist() or [0])
            at = row * PAGE + self.dice.randrange(PAGE)
            data = column.read()
            if at < len(data):
                patch(
                    column.path, column.base + at, bytes([data[at] ^ 1 << self.dice.randrange(8)])
                )

    def _ranges(self, column, kind):
        for _ in range(self.dice.randint(1, 6)):
            data = column.read()
            if not data:
                return
            start = self.dice.randrange(len(data))
            old = data[start : start + self.dice.choice((1, 100, 5000, 70_000))]
            new = bytes(len(old)) if kind == "zeros" else noise(self.dice, old)
            patch(column.path, column.base + start, new)

    def _whole(self, column, kind):
        data = column.read()
        if data:
            patch(column.path, column.base, noise(self.dice, data))

    def _shifted(self, column, kind):
        """As by writes that went one cell too far."""
        data = column.read()
        if data:
            patch(column.path, column.base, (data[-PAGE:] + data)[: len(data)])

    def _swap(self, one, other):
        contents = one.read(), other.read()
        for column, content in ((one, contents[1]), (other, contents[0])):
            if column.path.exists():
                patch(column.path, column.base, content[: column.nbytes])

    def _file(self, column, kind):
        if kind == "deleted":
            column.path.unlink(missing_ok=True)
        elif column.path.exists():
            rows = len(column.there)
            cut = 0 if kind == "emptied" else self.dice.randrange(rows * PAGE)
            os.truncate(column.path, cut)

    def old_data(self, member, copy):
        """Its columns as `columns_copied` found them."""
        self.story.append(f"columns of member {member}: old ones")
        columns_restored(self.survey.members[member], copy, self.survey.geometry)

    def label(self, member, copies):
        """Of both copies of a label, those named."""
        place = self.survey.members[member]
        path = place / "label" if place.is_dir() else place
        for copy in copies:
            how = self.dice.choice(("noise", "bit", "zeros"))
            self.story.append(f"label of member {member}, copy {copy}: {how}")
            with path.open("rb") as file:
                old = os.pread(file.fileno(), LABEL_BYTES, copy * LABEL_BYTES)
            start = self.dice.randrange(300)
            if how == "bit":
                new = bytes([old[start] ^ 1 << self.dice.randrange(8)])
            elif how == "noise":
                new = noise(self.dice, old[start : start + 300])
            else:
                start, new = 0, bytes(LABEL_BYTES)
            patch(path, copy * LABEL_BYTES + start, new)

    def pages(self, share):
        """Pages of the database on all members, but each on one of them, another one each time.
        Returns the members hit."""
        members, hit = range(len(self.survey.members)), set()
        for number in range(self.survey.db_bytes // PAGE):
            keeper = self.dice.choice(members)
            for member in members:
                if member != keeper and self.dice.random() < share:
                    hit.add(member)
                    self._metadata(member, "raidfs.db", number * PAGE, PAGE)
        self.story.append(f"{share:.0%} of the pages of the database on members {sorted(hit)}")
        return hit

    def metadata(self, member, name, kind):
        """All of it: "noise", or of directories "cut short", "emptied", "deleted"."""
        self.story.append(f"{name} of member {member}: {kind}")
        nbytes = self.survey.db_bytes if name == "raidfs.db" else self.survey.wal_bytes
        path = self.survey.members[member] / "metadata" / name
        if not self.survey.members[member].is_dir() or kind == "noise":
            self._metadata(member, name, 0, nbytes)
        elif kind == "deleted":
            path.unlink(missing_ok=True)
        elif path.exists():
            os.truncate(path, 0 if kind == "emptied" else self.dice.randrange(nbytes + 1))

    def _metadata(self, member, name, offset, nbytes):
        place, base = self.survey.members[member], 0
        if place.is_dir():
            place = place / "metadata" / name
        else:
            base = META_OFFSET_BYTES + (name != "raidfs.db") * self.survey.geometry.db_bytes
        with place.open("rb") as file:
            old = os.pread(file.fileno(), nbytes, base + offset)
        if old:
            start = self.dice.randrange(len(old))
            length = self.dice.choice((1, 50, len(old)))
            patch(place, base + offset + start, noise(self.dice, old[start : start + length]))


def columns_copied(member, target, geometry):
    """Of one member, all columns: for `columns_restored`."""
    if member.is_dir():
        shutil.copytree(member / "zones", target)
    else:
        with member.open("rb") as source, target.open("wb") as out:
            out.write(os.pread(source.fileno(), 1 << 30, geometry.data_offset_bytes))


def columns_restored(member, source, geometry):
    """As they were; label and metadata stay."""
    if member.is_dir():
        shutil.rmtree(member / "zones")
        shutil.copytree(source, member / "zones")
    else:
        patch(member, geometry.data_offset_bytes, source.read_bytes())
