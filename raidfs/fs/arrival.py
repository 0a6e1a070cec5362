"""What a stream says of a tree, checked against itself and against its base, before it is believed.

Every record is looked at as it comes, the whole at its end: names lead to inodes that are there, of
the kind they say; link counts are what the names come to; directories have one name each, and lead
to the root; content lies within its file, and is zeros behind its end. For an incremental stream
all this is asked of the base with the changes made, and costs by the changes.

 1. What passes here is a tree that check finds nothing wrong with, but for `tails`.
 2. Whatever doesn't is a FormatError. Nothing is changed here.
 3. Memory: some 60 bytes for each inode and each name of the stream.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, FsError
from ..store.hidden import MOVES_INO
from ..store.meta import ROOT_INO
from ..store.past import as_view, within
from ..store.spool import SPOOL_INO
from . import acl
from .stream import END, Body, Extent, Extents, Gone, Header, Inode, Names, NameTo, Record, Xattr
from .xattr import LIST_BYTES_MAX, check_xattr_name

if TYPE_CHECKING:
    from ..store.inodes import InodeRow
    from ..store.meta import Meta
    from ..store.snapshot_rows import Snapshot

I64 = npt.NDArray[np.int64]
LISTED_AT_ONCE = 1000
NUMBERS_MAX = SPOOL_INO // 2  # so that the volume never runs out of numbers by what it receives
GENERATION_MAX = 1 << 62  # so that rollbacks can always give the next one
_KINDS = (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR,
    stat.S_IFBLK,
)  # fmt: skip
_DIRECTORY = stat.S_IFDIR >> 12
_FILE = stat.S_IFREG >> 12

assert END  # the records known here are those of stream.py


class _Links:
    """Names: the directory, the inode and its kind, of each."""

    def __init__(self) -> None:
        self.parents, self.inos, self.kinds = array("q"), array("q"), array("q")

    def add(self, parent: int, ino: int, kind: int) -> None:
        self.parents.append(parent)
        self.inos.append(ino)
        self.kinds.append(kind)

    def arrays(self) -> tuple[I64, I64, I64]:
        return _numbers(self.parents), _numbers(self.inos), _numbers(self.kinds)


class Arrival:
    """Of one stream. `base`: the snapshot that an incremental one goes on from."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.header: Header | None = None
        self.base: Snapshot | None = None
        self.inos, self._kinds, self._nlinks = array("q"), array("b"), array("q")
        self._parents, self._sizes = array("q"), array("q")
        self._inline, self._whole = array("b"), array("b")
        self.gone = array("q")
        self._added, self._removed = _Links(), _Links()
        self._inode: Inode | None = None  # the last one, and what came of it so far
        self._last_xattr = b""
        self._xattr_names: dict[bytes, bool] = {}
        self._names_added: set[bytes] = set()
        self._names_removed: set[bytes] = set()
        self._place = (0, 0)  # inode and page up to which content came
        self.tails: dict[int, int] = {}  # files that became shorter: the sizes; see `_open`
        self._homes: npt.NDArray[np.bool_] | None = None  # see `home`

    # -- record by record -------------------------------------------------------------------------

    def begin(self, header: Header, base: Snapshot | None) -> None:
        """The first record; the caller has found the base."""
        assert (header.base is None) == (base is None)
        self.header, self.base = header, base
        if header.next_ino > NUMBERS_MAX:
            raise FormatError("the stream has inode numbers beyond all bounds")

    def record(self, record: Record) -> None:
        """Any other."""
        body: Body = record.body
        if isinstance(body, Inode):
            self._close()
            self._open(body)
        elif isinstance(body, Xattr):
            self._xattr(body)
        elif isinstance(body, Names):
            self._names(body)
        elif isinstance(body, Gone):
            self._close()
            self._are_gone(body)
        elif isinstance(body, Extents):
            at = 0
            for extent in body.extents:
                at += self._extent(extent, record.content[at:])
        else:
            self._close()

    def _base_row(self, ino: int) -> InodeRow | None:
        if self.base is None:
            return None
        row = self.meta.inode(as_view(self.base.id, ino))
        return row if row is not None and row.nlink > 0 else None

    def _open(self, inode: Inode) -> None:
        assert self.header is not None
        if self.inos and inode.ino <= self.inos[-1]:
            raise _wrong(inode.ino, "is out of order")
        if inode.ino >= self.header.next_ino:
            raise _wrong(inode.ino, "has a number that was never handed out")
        old = self._base_row(inode.ino)
        if not inode.whole and (old is None or stat.S_IFMT(old.mode) != stat.S_IFMT(inode.mode)):
            raise _wrong(inode.ino, "is not the one in the base")
        _check_row(inode)
        self.inos.append(inode.ino)
        self._kinds.append(inode.mode >> 12)
        self._nlinks.append(inode.nlink)
        self._parents.append(inode.parent)
        self._sizes.append(inode.size)
        self._inline.append(inode.inline is not None)
        self._whole.append(inode.whole)
        if old is not None and not inode.whole and inode.size < old.size:
            self._shorter(inode)
        self._inode, self._last_xattr = inode, b""
        if old is not None and not inode.whole and old.xattrs:
            self._xattr_names = dict.fromkeys(self.meta.xattr_names(old.ino), True)

    def _shorter(self, inode: Inode) -> None:
        """If its last page doesn't come, what the base has of it must be zeros behind the end: that
        is for the caller to see to, as it takes a look at the content."""
        assert self.header is not None
        page, keep = divmod(inode.size, self.header.page_bytes)
        if stat.S_ISREG(inode.mode) and keep and (page or inode.inline is None):
            self.tails[inode.ino] = inode.size

    def _close(self) -> None:
        """All of the last inode has come."""
        inode, self._inode = self._inode, None
        if inode is None:
            return
        if (
            sum(len(name) + 1 for name, there in self._xattr_names.items() if there)
            > LIST_BYTES_MAX
        ):
            raise _wrong(inode.ino, "has too many attributes")
        self._xattr_names = {}
        if self.base is not None and not inode.whole:
            directory = as_view(self.base.id, inode.ino)
            for name in self._names_added - self._names_removed:
                if self.meta.lookup(directory, name) is not None:
                    raise _wrong(inode.ino, "has one name twice")
        self._names_added, self._names_removed = set(), set()

    def _xattr(self, xattr: Xattr) -> None:
        inode = self._inode
        if inode is None or xattr.name <= self._last_xattr:
            raise FormatError("an attribute in the stream is out of order")
        self._last_xattr = xattr.name
        if xattr.value is None:
            if not self._xattr_names.get(xattr.name):
                raise _wrong(inode.ino, "loses an attribute that it hasn't")
        else:
            _check_xattr(inode, xattr.name, xattr.value)
        self._xattr_names[xattr.name] = xattr.value is not None

    def _names(self, names: Names) -> None:
        inode = self._inode
        if inode is None or not stat.S_ISDIR(inode.mode):
            raise FormatError("names in the stream that are in no directory")
        for name in names.removed:
            entry = None
            if self.base is not None and not inode.whole:
                entry = self.meta.lookup(as_view(self.base.id, inode.ino), name)
            if entry is None or name in self._names_removed:
                raise _wrong(inode.ino, "loses a name that it hasn't")
            self._names_removed.add(name)
            self._removed.add(inode.ino, within(entry.ino), entry.kind)
        for added in names.added:
            self._name(inode, added)

    def _name(self, inode: Inode, added: NameTo) -> None:
        name = added.name
        if name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise _wrong(inode.ino, "has a name that can't be")
        if inode.ino == ROOT_INO and name == b".snapshots":
            raise _wrong(inode.ino, "has a name that is raidfs's own")
        if name in self._names_added:
            raise _wrong(inode.ino, "has one name twice")
        self._names_added.add(name)
        self._added.add(inode.ino, added.ino, added.kind)

    def _are_gone(self, gone: Gone) -> None:
        for ino in gone.inos:
            if self.gone and ino <= self.gone[-1]:
                raise _wrong(ino, "is out of order")
            row = self._base_row(ino)
            if row is None or ino == ROOT_INO:
                raise _wrong(ino, "is said to be gone, and can't be")
            self.gone.append(ino)
            if stat.S_ISDIR(row.mode):
                self._loses_all(ino)

    def _loses_all(self, ino: int) -> None:
        """A directory of the base is no more, or is another one: its names go with it."""
        assert self.base is not None
        directory, after = as_view(self.base.id, ino), -1
        while found := self.meta.entries(directory, after, LISTED_AT_ONCE):
            after = found[-1].position
            for entry in found:
                self._removed.add(ino, within(entry.ino), entry.kind)

    def _extent(self, extent: Extent, content: memoryview) -> int:
        """How many bytes of the content are its own."""
        assert self.header is not None
        at = bisect_left(self.inos, extent.ino)
        if at == len(self.inos) or self.inos[at] != extent.ino or self._kinds[at] != _FILE:
            raise _wrong(extent.ino, "has content and is no file")
        if (extent.ino, extent.first) < self._place or (extent.first == 0 and self._inline[at]):
            raise _wrong(extent.ino, "has content that is out of order")
        end = extent.first + extent.count
        page_bytes, size = self.header.page_bytes, self._sizes[at]
        if end > -(-size // page_bytes):
            raise _wrong(extent.ino, "has content behind its end")
        self._place = (extent.ino, end)
        if end > size // page_bytes:
            self.tails.pop(extent.ino, None)
        if extent.hole:
            if self._whole[at]:
                raise _wrong(extent.ino, "is new and has holes made into it")
            return 0
        nbytes = extent.count * page_bytes
        behind = end * page_bytes - size
        if behind > 0 and any(content[nbytes - behind : nbytes]):
            raise _wrong(extent.ino, "has content behind its end")
        return nbytes

    # -- the whole --------------------------------------------------------------------------------

    def finish(self) -> None:
        """After the last record."""
        inos, gone = _numbers(self.inos), _numbers(self.gone)
        if self.base is None and (not len(inos) or inos[0] != ROOT_INO):
            raise FormatError("the stream has no root directory")
        if len(np.intersect1d(inos, gone)):
            raise FormatError("the stream has an inode that is gone")
        self._replaced()
        self._kinds_agree(inos, gone)
        self._counts(inos, gone)
        self._directories()

    def _replaced(self) -> None:
        """Of directories that took the place of others nothing is left."""
        if self.base is not None:
            for at in np.flatnonzero(_numbers(self._whole)).tolist():
                row = self._base_row(self.inos[at])
                if row is not None and stat.S_ISDIR(row.mode):
                    self._loses_all(self.inos[at])

    def _kinds_agree(self, inos: I64, gone: I64) -> None:
        """Names that came lead to inodes of the stream, names that went to such or to gone ones:
        whatever gets or loses a name was changed by that."""
        _, targets, kinds = self._added.arrays()
        at = np.searchsorted(inos, targets)
        known = np.zeros(len(targets), np.bool_)
        inside = at < len(inos)
        known[inside] = inos[at[inside]] == targets[inside]
        if not known.all():
            raise _wrong(int(targets[np.argmin(known)]), "has a name and isn't there")
        agree = _numbers(self._kinds)[at] == kinds
        if not agree.all():
            raise _wrong(int(targets[np.argmin(agree)]), "is not of the kind that its name says")
        left = np.setdiff1d(self._removed.arrays()[1], np.union1d(inos, gone))
        if len(left):
            raise _wrong(int(left[0]), "loses a name and is not among what changed")

    def _counts(self, inos: I64, gone: I64) -> None:
        """Link counts are what names come to."""
        names, subdirectories = self._base_counts(inos)
        of_gone, _ = self._base_counts(gone)
        for links, sign in ((self._added, 1), (self._removed, -1)):
            parents, targets, kinds = links.arrays()
            _count(names, inos, targets, sign)
            _count(of_gone, gone, targets, sign)
            _count(subdirectories, inos, parents[kinds == _DIRECTORY], sign)
        if of_gone.any():
            raise _wrong(int(gone[np.flatnonzero(of_gone)[0]]), "is gone and has names")
        directories = _numbers(self._kinds) == _DIRECTORY
        wanted = np.where(directories, names, _numbers(self._nlinks))
        if len(inos) and inos[0] == ROOT_INO:
            wanted[0] = 0
        wanted[directories & (inos != ROOT_INO)] = 1
        wrong = (names != wanted) | (directories & (_numbers(self._nlinks) != 2 + subdirectories))
        if wrong.any():
            raise _wrong(int(inos[np.argmax(wrong)]), "has a wrong count of names")

    def _base_counts(self, inos: I64) -> tuple[I64, I64]:
        """(names, subdirectories) in the base."""
        names, subdirectories = np.zeros((2, len(inos)), np.int64)
        for at, ino in enumerate(inos.tolist() if self.base is not None else ()):
            row = self._base_row(ino)
            if row is not None and stat.S_ISDIR(row.mode):
                names[at], subdirectories[at] = int(ino != ROOT_INO), row.nlink - 2
            elif row is not None:
                names[at] = row.nlink
        return names, subdirectories

    def _directories(self) -> None:
        """Each says rightly where it is, and leads to the root."""
        parents, targets, kinds = self._added.arrays()
        chosen = kinds == _DIRECTORY
        places = dict(zip(targets[chosen].tolist(), parents[chosen].tolist(), strict=True))
        good = {ROOT_INO}
        for at in np.flatnonzero(_numbers(self._kinds) == _DIRECTORY).tolist():
            ino, said = self.inos[at], self._parents[at]
            old = self._base_row(ino) if ino not in places and ino != ROOT_INO else None
            true = places.get(ino, within(old.parent) if old is not None else ROOT_INO)
            if said != true:
                raise _wrong(ino, "is not where it says")
        for ino in places:
            self._climb(ino, good)

    def _climb(self, ino: int, good: set[int]) -> None:
        """From a directory to one known to lead to the root, or to the root."""
        path: list[int] = []
        seen: set[int] = set()
        while ino not in good:
            if ino in seen:
                raise _wrong(ino, "is a directory within itself")
            path.append(ino)
            seen.add(ino)
            ino = self._parent_directory(ino)
        good.update(path)

    def _parent_directory(self, ino: int) -> int:
        at = bisect_left(self.inos, ino)
        if at < len(self.inos) and self.inos[at] == ino:
            return self._parents[at]
        row = self._base_row(ino)
        gone_at = bisect_left(self.gone, ino)
        is_gone = gone_at < len(self.gone) and self.gone[gone_at] == ino
        if row is None or is_gone or not stat.S_ISDIR(row.mode):
            raise _wrong(ino, "is no directory, and has names in it")
        return within(row.parent)

    # -- what is to be made of it -----------------------------------------------------------------

    def home(self, inode: Inode) -> int:
        """The directory to be noted for an inode: the one that it says, if a name of it is there;
        else 0, not known."""
        if stat.S_ISDIR(inode.mode):
            return inode.parent
        if self._homes is None:
            self._homes = self._true_homes()
        return inode.parent if self._homes[bisect_left(self.inos, inode.ino)] else 0

    def _true_homes(self) -> npt.NDArray[np.bool_]:
        """By place in the stream, where what inodes that aren't directories say is true."""
        inos, said = _numbers(self.inos), _numbers(self._parents)
        parents, targets, _ = self._added.arrays()
        at = np.searchsorted(inos, targets)
        true = np.zeros(len(inos), np.bool_)
        true[at[said[at] == parents]] = True
        if self.base is not None:
            pairs = (numbers.tolist() for numbers in self._removed.arrays()[:2])
            lost = set(zip(*pairs, strict=True))
            for place in np.flatnonzero(~true).tolist():
                ino, parent = self.inos[place], self._parents[place]
                row = self._base_row(ino)
                same = row is not None and within(row.parent) == parent
                true[place] = same and (parent, ino) not in lost
        return true

    def replaces(self, ino: int) -> bool:
        """The stream has it, and not as a change of what the base has."""
        at = bisect_left(self.inos, ino)
        return at < len(self.inos) and self.inos[at] == ino and bool(self._whole[at])

    def has(self, ino: int) -> bool:
        at = bisect_left(self.inos, ino)
        return at < len(self.inos) and self.inos[at] == ino


def _numbers(numbers: array[int]) -> I64:
    if numbers.typecode == "q":
        return np.frombuffer(numbers, np.int64) if len(numbers) else np.empty(0, np.int64)
    return np.array(numbers, np.int64)


def _count(counts: I64, inos: I64, found: I64, sign: int) -> None:
    """One more, or fewer, for each of the numbers found that is among `inos`."""
    if not len(inos) or not len(found):
        return
    at = np.minimum(np.searchsorted(inos, found), len(inos) - 1)
    np.add.at(counts, at[inos[at] == found], sign)


def _wrong(ino: int, what: str) -> FormatError:
    return FormatError(f"the stream makes no sense: inode {ino} {what}")


def _check_row(inode: Inode) -> None:
    """What a row can say of itself."""
    kind = stat.S_IFMT(inode.mode)
    if kind not in _KINDS or inode.mode > 0o177777:
        raise _wrong(inode.ino, "is of no kind")
    if inode.generation > GENERATION_MAX:
        raise _wrong(inode.ino, "has a generation beyond all bounds")
    if inode.ino >= MOVES_INO or (inode.ino == ROOT_INO and kind != stat.S_IFDIR):
        raise _wrong(inode.ino, "can't have that number")
    if (inode.target is not None) != (kind == stat.S_IFLNK):
        raise _wrong(inode.ino, "is a link without a target, or the reverse")
    if inode.target is not None and (b"\0" in inode.target or inode.size != len(inode.target)):
        raise _wrong(inode.ino, "has a target that can't be")
    if kind not in (stat.S_IFREG, stat.S_IFLNK) and inode.size:
        raise _wrong(inode.ino, "has a size and can't have one")
    if kind not in (stat.S_IFCHR, stat.S_IFBLK) and inode.rdev:
        raise _wrong(inode.ino, "is no device and has its number")
    if inode.inline is not None and not (
        kind == stat.S_IFREG and 0 < len(inode.inline) <= inode.size
    ):
        raise _wrong(inode.ino, "has content that can't be")


def _check_xattr(inode: Inode, name: bytes, value: bytes) -> None:
    try:
        check_xattr_name(name, inode.mode)
        if name in (acl.ACCESS, acl.DEFAULT):
            _check_acl(inode, name, value)
    except FsError as error:
        raise _wrong(inode.ino, f"has an attribute that can't be ({error})") from None


def _check_acl(inode: Inode, name: bytes, value: bytes) -> None:
    if stat.S_ISLNK(inode.mode) or (name == acl.DEFAULT and not stat.S_ISDIR(inode.mode)):
        raise _wrong(inode.ino, "can't have an access control list")
    found = acl.parse(value)
    if found is None or acl.encode(found) != value:
        raise _wrong(inode.ino, "has an access control list that can't be")
