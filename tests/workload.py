"""A seeded workload on a Volume, and the plain model that says what the volume must hold.

The model is a dictionary of names and a dictionary of files. It changes in the same turn of the
event loop as the volume does, so a copy taken inside a cut is exactly the state of that cut.
"""

from __future__ import annotations

import errno
import random
import stat
from dataclasses import dataclass, field, replace
from typing import Any

from raidfs.errors import FsError
from raidfs.fs.attributes import Caller, Changes
from raidfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from raidfs.fs.volume import Volume

ROOT = 1
PUNCH = PUNCH_HOLE | KEEP_SIZE
ME = Caller(uid=0, gid=0, pid=1, umask=0o022)
Tree = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class File:
    """What the model knows of one inode."""

    kind: str  # "file", "directory", "symlink"
    mode: int
    content: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass
class Model:
    """names: path -> file number; files: number -> File. The root is not in it."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, File] = field(default_factory=dict)
    last: int = 0

    def add(self, path: str, file: File) -> int:
        self.last += 1
        self.files[self.last] = file
        self.names[path] = self.last
        return self.last

    def copy(self) -> Model:
        return Model(dict(self.names), dict(self.files), self.last)

    def tree(self) -> Tree:
        """Path -> everything comparable; hard links show as a common set of paths."""
        paths: dict[int, list[str]] = {}
        for path, number in self.names.items():
            paths.setdefault(number, []).append(path)
        found = {}
        for path, number in self.names.items():
            file = self.files[number]
            links = tuple(sorted(paths[number])) if file.kind == "file" else ()
            found[path] = (file.kind, file.mode, file.content, file.xattrs, links)
        return found


async def read_tree(volume: Volume, root: int = ROOT) -> Tree:
    """The same of a real volume, through its public operations; `root`: of a snapshot's view."""
    entries: dict[str, tuple[int, Any]] = {}
    todo = [("", root)]
    while todo:
        base, directory = todo.pop()
        after = 0
        volume.opendir(directory)
        while batch := volume.readdir(directory, after, 7):
            for entry in batch:
                after = entry.cookie
                if entry.name in (b".", b".."):
                    continue
                path = f"{base}/{entry.name.decode()}"
                attributes = volume.getattr(entry.ino)
                entries[path] = (entry.ino, attributes)
                if stat.S_ISDIR(attributes.mode):
                    todo.append((path, entry.ino))
        volume.release(directory)
    by_ino: dict[int, list[str]] = {}
    for path, (ino, _) in entries.items():
        by_ino.setdefault(ino, []).append(path)
    tree = {}
    for path, (ino, attributes) in entries.items():
        xattrs = tuple(sorted((n, volume.getxattr(ino, n)) for n in volume.listxattr(ino, ME)))
        mode = stat.S_IMODE(attributes.mode)
        if stat.S_ISDIR(attributes.mode):
            tree[path] = ("directory", mode, b"", xattrs, ())
        elif stat.S_ISLNK(attributes.mode):
            tree[path] = ("symlink", mode, volume.readlink(ino), xattrs, ())
        else:
            volume.open(ino, 0)
            content = bytes(await volume.read(ino, 0, attributes.size))
            volume.release(ino)
            assert len(content) == attributes.size
            tree[path] = ("file", mode, content, xattrs, tuple(sorted(by_ino[ino])))
            assert attributes.nlink == len(by_ino[ino]), path
    return tree


class Workload:
    """Random operations on a volume, mirrored in `model`. One seed replays them."""

    def __init__(self, volume: Volume, seed: int, model: Model | None = None) -> None:
        self.volume = volume
        self.random = random.Random(seed)
        self.model = model or Model()

    def _ino(self, path: str, root: int = ROOT) -> int:
        ino = root
        for part in path.split("/")[1:]:
            ino = self.volume.lookup(ino, part.encode()).ino
            self.volume.forget(ino)
        return ino

    def _split(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self._ino(parent), name.encode()

    def _pick(self, *kinds: str) -> str | None:
        paths = [p for p, n in self.model.names.items() if self.model.files[n].kind in kinds]
        return self.random.choice(paths) if paths else None

    def _new_path(self) -> str:
        parent = self.random.choice(["", self._pick("directory") or ""])
        return f"{parent}/{self.random.choice('abcdefgh')}{self.random.randrange(30)}"

    async def step(self) -> str:
        """One operation; returns its name. Refusals that the model foresees are checked too."""
        names = ("create", "write", "write", "write", "truncate", "rename", "unlink", "mkdir")
        more = ("rmdir", "symlink", "link", "setxattr", "chmod", "overwrite", "unlink")
        more += ("copy",) * 5 + ("allocate",) * 3 + ("tmpfile",)
        name = self.random.choice(names + more)
        await getattr(self, f"_{name}")()
        return name

    async def _create(self) -> None:
        path = self._new_path()
        parent, name = self._split(path)
        if path in self.model.names:
            return
        ino = self.volume.create(parent, name, 0o644, 0, ME).ino
        number = self.model.add(path, File("file", 0o644))
        self.volume.forget(ino)
        self.volume.release(ino)
        if self.random.random() < 0.7:
            await self._write_to(path, number, 0, self.random.randbytes(self._length()))

    def _length(self) -> int:
        return self.random.choice((1, 100, 2048, 4095, 4096, 5000, 12288, 40000, 90000))

    async def _write_to(self, path: str, number: int, offset: int, data: bytes) -> None:
        ino = self._ino(path)
        self.volume.open(ino, 1)
        await self.volume.write(ino, offset, data)
        self._patch(number, offset, data)
        self.volume.release(ino)

    def _patch(self, number: int, offset: int, data: bytes) -> None:
        """Write to a file of the model."""
        file = self.model.files[number]
        content = file.content.ljust(offset, b"\0")
        content = content[:offset] + data + content[offset + len(data) :]
        self.model.files[number] = replace(file, content=content)

    async def _write(self) -> None:
        path = self._pick("file")
        if path is not None:
            number = self.model.names[path]
            size = len(self.model.files[number].content)
            offset = self.random.choice((0, size, self.random.randrange(size + 9000)))
            if offset < 300_000:
                await self._write_to(path, number, offset, self.random.randbytes(self._length()))

    async def _overwrite(self) -> None:
        path = self._pick("file")
        if path is not None:
            number = self.model.names[path]
            await self._write_to(path, number, 0, bytes(self._length()))

    async def _truncate(self) -> None:
        path = self._pick("file")
        if path is None:
            return
        number = self.model.names[path]
        file = self.model.files[number]
        size = self.random.choice((0, len(file.content) // 2, len(file.content) + 5000))
        if size < 300_000:
            await self.volume.setattr(self._ino(path), Changes(size=size), ME)
            content = file.content[:size].ljust(size, b"\0")
            self.model.files[number] = replace(file, content=content)

    async def _allocate(self) -> None:
        """Holes, zeros, or a larger size; few enough pages to be done at once."""
        path = self._pick("file")
        if path is None:
            return
        number = self.model.names[path]
        content = self.model.files[number].content
        mode = self.random.choice((KEEP_SIZE, 0, PUNCH, PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE))
        start = self._somewhere(len(content))
        end = start + self.random.choice((1, 3000, 4096, 8192, 50_000))
        if end > 300_000:
            return
        await self.volume.fallocate(self._ino(path), start, end - start, mode)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            zeros = bytes(max(0, min(end, len(content)) - start))
            content = content[:start] + zeros + content[start + len(zeros) :]
        if not mode & KEEP_SIZE:
            content = content.ljust(end, b"\0")
        self.model.files[number] = replace(self.model.files[number], content=content)

    def _content(self, path: str) -> bytes:
        return self.model.files[self.model.names[path]].content

    def _somewhere(self, size: int) -> int:
        """An offset, mostly at a page's border and within the size."""
        offset = self.random.randrange(size + 5000)
        return offset if self.random.random() < 0.3 else offset // 4096 * 4096

    async def _copy(self) -> None:
        """All of a file or a part of it, to another or to the same, piece by piece: a cut may come
        between two pieces, and the model is as far as the volume then."""
        source, target = self._pick("file"), self._pick("file")
        another = self._pick("file")
        if source is None or another is None or target is None:
            return
        source = max(source, another, key=lambda path: len(self._content(path)))  # has whole pages
        old, new = self.model.names[source], self.model.names[target]
        whole = self.random.random() < 0.5
        start = 0 if whole else self._somewhere(len(self.model.files[old].content))
        there = 0 if whole else self._somewhere(len(self.model.files[new].content))
        want = self.model.files[old].content[start:]
        want = want[: self.random.choice((5000, 4096, 8192, 1 << 20))]
        if there + len(want) > 300_000 or (old == new and abs(start - there) < len(want)):
            return
        inos, done = (self._ino(source), self._ino(target)), 0
        while done < len(want):
            places = (inos[0], start + done, inos[1], there + done, len(want) - done)
            got = await self.volume.copy_range(*places)
            assert got > 0
            self._patch(new, there + done, want[done : done + got])
            done += got

    async def _tmpfile(self) -> None:
        """A file that gets its name, if any, when its content is there."""
        path = self._new_path()
        parent, name = self._split(path)
        ino = self.volume.tmpfile(parent, 0o644, 2, ME).ino
        content = self.random.randbytes(self._length())
        await self.volume.write(ino, 0, content)
        if path not in self.model.names:
            self.volume.forget(self.volume.link(ino, parent, name).ino)
            self.model.add(path, File("file", 0o644, content))
        self.volume.forget(ino)
        self.volume.release(ino)

    async def _chmod(self) -> None:
        path = self._pick("file", "directory")
        if path is not None:
            mode = self.random.choice((0o600, 0o755, 0o640))
            await self.volume.setattr(self._ino(path), Changes(mode=mode), ME)
            number = self.model.names[path]
            self.model.files[number] = replace(self.model.files[number], mode=mode)

    async def _rename(self) -> None:
        source, target = self._pick("file", "directory", "symlink"), self._new_path()
        if source is None or target == source:
            return
        model = self.model
        number = model.names[source]
        kind = model.files[number].kind
        inside = [p for p in model.names if p.startswith(f"{target}/")]
        old = model.names.get(target)
        refused = target.startswith(f"{source}/") or source.startswith(f"{target}/")
        if old is not None:
            same_kind = (kind == "directory") == (model.files[old].kind == "directory")
            refused = refused or not same_kind or bool(inside)
        try:
            self.volume.rename(*self._split(source), *self._split(target), 0)
        except FsError as error:
            assert refused, (source, target, error)
            return
        assert not refused, (source, target)
        if old == number:
            return  # two names of one file: nothing happens
        moved = {p: n for p, n in model.names.items() if p.startswith(f"{source}/")}
        for path in moved:
            del model.names[path]
        del model.names[source]
        model.names[target] = number
        for path, inner in moved.items():
            model.names[target + path[len(source) :]] = inner

    async def _unlink(self) -> None:
        path = self._pick("file", "symlink")
        if path is not None:
            self.volume.unlink(*self._split(path))
            del self.model.names[path]

    async def _mkdir(self) -> None:
        path = self._new_path()
        if path not in self.model.names and path.count("/") < 5:
            self.volume.forget(self.volume.mkdir(*self._split(path), 0o755, ME).ino)
            self.model.add(path, File("directory", 0o755))

    async def _rmdir(self) -> None:
        path = self._pick("directory")
        if path is None:
            return
        full = any(p.startswith(f"{path}/") for p in self.model.names)
        try:
            self.volume.rmdir(*self._split(path))
            del self.model.names[path]
            assert not full
        except FsError as error:
            assert full and error.errno == errno.ENOTEMPTY

    async def _symlink(self) -> None:
        path = self._new_path()
        if path not in self.model.names:
            target = self.random.randbytes(8).hex().encode()
            self.volume.forget(self.volume.symlink(*self._split(path), target, ME).ino)
            self.model.add(path, File("symlink", 0o777, target))

    async def _link(self) -> None:
        source, path = self._pick("file"), self._new_path()
        if source is not None and path not in self.model.names:
            parent, name = self._split(path)
            self.volume.forget(self.volume.link(self._ino(source), parent, name).ino)
            self.model.names[path] = self.model.names[source]

    async def _setxattr(self) -> None:
        path = self._pick("file", "directory")
        if path is None:
            return
        name, value = f"user.{self.random.choice('xyz')}".encode(), self.random.randbytes(10)
        self.volume.setxattr(self._ino(path), name, value, 0, ME)
        number = self.model.names[path]
        file = self.model.files[number]
        xattrs = tuple(sorted({**dict(file.xattrs), name: value}.items()))
        self.model.files[number] = replace(file, xattrs=xattrs)
