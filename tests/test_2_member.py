"""Members of every kind against one suite, and what is particular to each kind."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
from loop_devices import loop_device
from members_conformance import (
    CELL,
    DB_BYTES,
    PARAMETERS,
    SLOTS,
    WAL_BYTES,
    ZONE_BYTES,
    Conformance,
    Maker,
    addresses_of,
    cells,
    label_of,
    read,
)
from members_in_memory import MemoryMember

from raidfs import native
from raidfs.errors import LabelMissing, MemberBusy, MemberError, MemberFull, UsageError
from raidfs.raid.directory import (
    SPARES_MAX,
    DirectoryMember,
    lay_out_directory,
    remove_layout,
)
from raidfs.raid.label import write_label
from raidfs.raid.member import Descriptors, MetaFile
from raidfs.raid.places import construct, identity, kind_of, open_member
from raidfs.raid.raw import Geometry, RawMember

GEOMETRY = Geometry.of(PARAMETERS)
RAW_BYTES = GEOMETRY.data_offset_bytes + SLOTS * ZONE_BYTES


def adopted(member):
    """As if it had been opened by a label of the suite's parameters."""
    member.adopt(label_of())
    return member


def directory_maker(path):
    path.mkdir()

    def reopen(**options):
        return open_member(str(path), **options)

    return Maker(
        "directory", lambda: adopted(lay_out_directory(str(path))), reopen, lists_columns=True
    )


def raw_maker(kind, path):
    def make():
        member = construct(str(path), read_only=False, lock=True)
        assert isinstance(member, RawMember)
        member.lay_out(GEOMETRY, SLOTS)
        return member

    return Maker(kind, make, lambda **options: open_member(str(path), **options))


class TestDirectory(Conformance):
    @pytest.fixture
    def maker(self, tmp_path):
        return directory_maker(tmp_path / "member")


class TestImage(Conformance):
    @pytest.fixture
    def maker(self, tmp_path):
        path = tmp_path / "image"
        path.write_bytes(b"")
        os.truncate(path, RAW_BYTES)
        return raw_maker("image", path)


class TestDevice(Conformance):
    @pytest.fixture
    def maker(self, tmp_path):
        with loop_device(tmp_path / "backing", RAW_BYTES) as device:
            yield raw_maker("device", device)


@contextlib.contextmanager
def ext4(directory):
    """A filesystem of its own, on a loop device."""
    mountpoint = directory / "ext4"
    mountpoint.mkdir()
    with loop_device(directory / "ext4.backing", 64 << 20) as device:
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", device, mountpoint], check=True)
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", mountpoint], check=True)


def directly(maker):
    """The same places, used past the page cache."""

    def make():
        member = maker.make()
        member.close()
        return adopted(construct(member.path, read_only=False, lock=True, direct=True))

    def reopen(**options):
        return maker.reopen(direct=True, **options)

    return dataclasses.replace(maker, make=make, reopen=reopen)


class TestDirectoryDirectly(Conformance):
    @pytest.fixture
    def maker(self, tmp_path):
        with ext4(tmp_path) as mountpoint:
            yield directly(directory_maker(mountpoint / "member"))


class TestImageDirectly(Conformance):
    @pytest.fixture
    def maker(self, tmp_path):
        with ext4(tmp_path) as mountpoint:
            path = mountpoint / "image"
            path.write_bytes(b"")
            os.truncate(path, RAW_BYTES)
            yield directly(raw_maker("image", path))


class TestDeviceDirectly(Conformance):
    @pytest.fixture
    def maker(self, tmp_path):
        with loop_device(tmp_path / "backing", RAW_BYTES) as device:
            yield directly(raw_maker("device", device))


class TestInMemory(Conformance):
    """The one that other tests trust."""

    @pytest.fixture
    def maker(self):
        member = MemoryMember(slots=SLOTS, zone_bytes=ZONE_BYTES)
        return Maker("image", lambda: member, member.again, locks=False, lists_columns=True)


@pytest.mark.parametrize("kind", ["directory", "image"])
def test_columns_in_files_have_descriptors(tmp_path, kind):
    path = tmp_path / "member"
    if kind == "image":
        path.write_bytes(b"")
        os.truncate(path, RAW_BYTES)
    maker = directory_maker(path) if kind == "directory" else raw_maker(kind, path)
    member = maker.make()
    assert member.column_descriptor(5, 1, 4) is None or kind == "image"
    member.column_create(5, 1, 4, ZONE_BYTES)
    member.column_open(5, 1, 4)
    fd, offset = member.column_descriptor(5, 1, 4)
    assert os.fstat(fd).st_size >= offset + ZONE_BYTES
    os.close(fd)
    member.close()


# directories


def test_a_directory_holds_what_the_format_says(tmp_path):
    member = lay_out_directory(str(tmp_path))
    member.meta_write(MetaFile.DB, 0, b"x")
    member.meta_write(MetaFile.WAL, 0, b"x")
    member.column_create(0x1FF, 3, 0, ZONE_BYTES)
    member.close()
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [
        "label",
        "metadata/raidfs.db",
        "metadata/raidfs.db-wal",
        "zones/ff/000001ff.3",
    ]
    column = tmp_path / "zones/ff/000001ff.3"
    assert column.stat().st_size == ZONE_BYTES
    assert column.stat().st_blocks * 512 >= ZONE_BYTES, "room must be taken at once"


def spares(path):
    return sorted(p.name for p in (path / "zones").glob("spare.*"))


def test_the_files_of_removed_columns_become_the_next_ones(tmp_path):
    member = lay_out_directory(str(tmp_path))
    for zone in range(1, 8):
        member.column_create(zone, 0, 0, ZONE_BYTES)
    before = member.room_bytes()
    inodes = {os.stat(tmp_path / f"zones/{zone:02x}/{zone:08x}.0").st_ino for zone in range(1, 8)}
    for zone in range(1, 8):
        member.column_remove(zone, 0, 0)
        member.column_remove(zone, 0, 0)
    assert member.columns() == []
    assert len(spares(tmp_path)) == SPARES_MAX
    assert member.room_bytes() >= before + 7 * ZONE_BYTES - (1 << 20)  # others write here, too
    member.column_create(9, 2, 0, 2 * ZONE_BYTES)  # another size: a file of its own
    assert len(spares(tmp_path)) == SPARES_MAX
    for zone in range(10, 10 + SPARES_MAX + 1):
        member.column_create(zone, 1, 0, ZONE_BYTES)
        column = tmp_path / f"zones/{zone:02x}/{zone:08x}.1"
        assert column.stat().st_size == ZONE_BYTES
        assert (column.stat().st_ino in inodes) == (zone < 10 + SPARES_MAX)
    assert spares(tmp_path) == []
    member.column_remove(10, 1, 0)
    assert len(spares(tmp_path)) == 1
    member.close()
    assert spares(tmp_path) == []


def test_kept_files_that_somebody_touched_are_not_used(tmp_path):
    member = lay_out_directory(str(tmp_path))
    for zone in range(1, 4):
        member.column_create(zone, 0, 0, ZONE_BYTES)
    os.truncate(tmp_path / "zones/03/00000003.0", ZONE_BYTES // 2)
    for zone in range(1, 4):
        member.column_remove(zone, 0, 0)
    first, second, third = (tmp_path / "zones" / name for name in spares(tmp_path))
    assert third.stat().st_size == ZONE_BYTES // 2  # kept, and of no use
    first.unlink()
    os.truncate(second, ZONE_BYTES - 4096)
    member.column_create(4, 0, 0, ZONE_BYTES)
    column = tmp_path / "zones/04/00000004.0"
    assert column.stat().st_size == ZONE_BYTES and column.stat().st_blocks * 512 >= ZONE_BYTES
    assert spares(tmp_path) == [third.name]
    member.close()
    assert spares(tmp_path) == []


def test_a_file_without_all_its_room_is_not_kept(tmp_path):
    member = lay_out_directory(str(tmp_path))
    member.column_create(1, 0, 0, ZONE_BYTES)
    path = tmp_path / "zones/01/00000001.0"
    path.unlink()
    with path.open("wb") as file:
        file.truncate(ZONE_BYTES)
    member.column_remove(1, 0, 0)
    assert spares(tmp_path) == [] and member.columns() == []
    member.close()


def test_kept_files_of_a_daemon_that_was_killed_go_at_the_next_opening(tmp_path):
    lay_out_directory(str(tmp_path)).close()
    (tmp_path / "zones/spare.3").write_bytes(b"x")
    (tmp_path / "zones/spare.of.somebody").write_bytes(b"x")
    DirectoryMember(str(tmp_path), read_only=True).close()
    assert spares(tmp_path) == ["spare.3", "spare.of.somebody"]
    DirectoryMember(str(tmp_path)).close()
    assert spares(tmp_path) == ["spare.of.somebody"]


def test_a_column_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    member = lay_out_directory(str(tmp_path))

    def full(fd, offset, nbytes):
        os.ftruncate(fd, nbytes)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemberFull, match=f"{tmp_path}: no room"):
        member.column_create(5, 0, 0, ZONE_BYTES)
    assert member.columns() == []
    member.close()


@pytest.mark.slow
def test_a_directory_that_is_really_full(tmp_path):
    """On a filesystem of its own, 16 MiB large."""
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", mountpoint], check=True)
    try:
        member = lay_out_directory(str(mountpoint))
        made = 0
        with pytest.raises(MemberFull):
            for zone in range(1, 100):
                member.column_create(zone, 0, 0, 1 << 20)
                made = zone
        assert 10 <= made < 16 and len(member.columns()) == made
        with pytest.raises(MemberFull):
            for i in range(1000):
                member.meta_write(MetaFile.DB, i << 20, bytes(1 << 20))
        member.close()
    finally:
        subprocess.run(["umount", mountpoint], check=True)


def test_a_short_column_is_an_error(tmp_path):
    member = lay_out_directory(str(tmp_path))
    member.column_create(5, 0, 0, ZONE_BYTES)
    os.truncate(tmp_path / "zones/05/00000005.0", CELL + 100)
    read(member, 5, 0, 0, 0, 1)
    with pytest.raises(MemberError, match="shorter"):
        read(member, 5, 0, 0, 1, 1)
    member.close()


def test_a_directory_that_vanishes_is_noticed(tmp_path):
    path = tmp_path / "member"
    path.mkdir()
    member = lay_out_directory(str(path))
    content = cells(1)
    member.column_create(5, 0, 0, ZONE_BYTES)
    member.column_write(5, 0, 0, 0, addresses_of(content), CELL)
    member.meta_write(MetaFile.DB, 0, b"x")
    shutil.rmtree(path)
    with pytest.raises(MemberError):  # the descriptor is still open, yet what it holds is lost
        member.column_sync(5, 0, 0)
    with pytest.raises(MemberError):
        member.meta_sync(MetaFile.DB)
    with pytest.raises(MemberError):
        member.column_create(6, 0, 0, ZONE_BYTES)
    member.close()


def test_many_columns_share_few_descriptors(tmp_path):
    member = lay_out_directory(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    content = cells(1)
    for zone in range(1, 90):
        member.column_create(zone, 0, 0, CELL)
        member.column_write(zone, 0, 0, 0, addresses_of(content), CELL)
    assert len(os.listdir("/proc/self/fd")) <= before + 66
    assert (read(member, 1, 0, 0, 0, 1) == content).all()
    member.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_foreign_files_are_neither_listed_nor_removed(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    member = lay_out_directory(str(tmp_path))
    member.column_create(5, 0, 0, CELL)
    (tmp_path / "zones/05/notes").write_text("keep")
    (tmp_path / "zones/other").mkdir()
    assert member.columns() == [(5, 0)]
    member.close()
    remove_layout(str(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert (tmp_path / "zones/05/notes").read_text() == "keep"
    assert not (tmp_path / "label").exists() and not (tmp_path / "metadata").exists()


def test_a_directory_without_a_label_is_no_member(tmp_path):
    with pytest.raises(LabelMissing, match="not a member"):
        open_member(str(tmp_path))
    with pytest.raises(LabelMissing, match="not a member"):
        DirectoryMember(str(tmp_path))


# past the page cache


def test_only_columns_bypass_the_page_cache(tmp_path):
    with ext4(tmp_path) as mountpoint:
        member = directly(directory_maker(mountpoint / "member")).make()
        member.column_create(5, 0, 0, ZONE_BYTES)
        with member.column_borrow(5, 0, 0) as place:
            assert fcntl.fcntl(place.fd, fcntl.F_GETFL) & os.O_DIRECT
        fd, _ = member.column_descriptor(5, 0, 0)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        os.close(fd)
        for key in ("label", *MetaFile):
            with member._files.borrow(key) as fd:
                assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        content = cells(3)
        shifted = native.aligned((4, CELL)).reshape(-1)[8 : 8 + CELL]
        with pytest.raises(AssertionError):
            member.column_read(5, 0, 0, 0, shifted.data)
        with pytest.raises(AssertionError):
            member.column_write(5, 0, 0, 0, addresses_of(content) + np.uint64(8), CELL)
        member.close()


def test_a_filesystem_without_direct_io_is_named_before_anything_is_lost(tmp_path):
    mountpoint = tmp_path / "ramfs"
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", mountpoint], check=True)
    try:
        lay_out_directory(str(mountpoint)).close()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(UsageError, match=r"ramfs: .*mount without -o direct, or move") as told:
            construct(str(mountpoint), read_only=False, lock=True, direct=True)
        assert told.value.errno == errno.EINVAL
        image = mountpoint / "image"
        image.write_bytes(b"")
        os.truncate(image, RAW_BYTES)
        with pytest.raises(UsageError, match=r"ramfs/image: .*without -o direct"):
            construct(str(image), read_only=False, lock=True, direct=True)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        subprocess.run(["umount", mountpoint], check=True)


# image files and devices


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"")
    os.truncate(path, RAW_BYTES)
    return path


def test_slots_lie_where_the_format_says(image):
    member = raw_maker("image", image).make()
    content = cells(2)
    member.column_create(99, 1, 3, ZONE_BYTES)
    member.column_write(99, 1, 3, CELL, addresses_of(content), CELL)
    member.meta_write(MetaFile.DB, 0, b"database")
    member.meta_write(MetaFile.WAL, 0, b"log")
    member.close()
    data = image.read_bytes()
    offset = GEOMETRY.data_offset_bytes + 3 * ZONE_BYTES + CELL
    assert GEOMETRY.data_offset_bytes % (1 << 20) == 0
    assert data[offset : offset + 2 * CELL] == content.tobytes()
    assert data[128 * 1024 :][:8] == b"database"
    assert data[128 * 1024 + DB_BYTES :][:3] == b"log"


def test_an_image_takes_room_with_the_column_and_gives_it_back(image):
    member = raw_maker("image", image).make()
    before = image.stat().st_blocks
    member.column_create(1, 0, 0, ZONE_BYTES)
    assert (image.stat().st_blocks - before) * 512 >= ZONE_BYTES
    member.column_remove(1, 0, 0)
    assert image.stat().st_blocks == before
    member.close()


def test_metadata_areas_are_bounded(image):
    member = raw_maker("image", image).make()
    for file, limit in ((MetaFile.DB, DB_BYTES), (MetaFile.WAL, WAL_BYTES)):
        assert member.meta_limit(file) == limit
        member.meta_write(file, limit - 10, bytes(10))
        with pytest.raises(MemberFull):
            member.meta_write(file, limit - 10, bytes(11))
        with pytest.raises(MemberFull):
            member.meta_truncate(file, limit + 1)
    member.close()


def sqlite_head(page_bytes, pages):
    head = bytearray(4096)
    head[:16] = b"SQLite format 3\0"
    head[16:18] = struct.pack(">H", 1 if page_bytes == 65536 else page_bytes)
    head[28:32] = struct.pack(">I", pages)
    return bytes(head)


@pytest.mark.parametrize(("page_bytes", "pages"), [(4096, 7), (512, 30), (65536, 3)])
def test_the_size_of_a_database_comes_from_its_header(image, page_bytes, pages):
    maker = raw_maker("image", image)
    member = maker.make()
    write_label(member, label_of())
    member.meta_write(MetaFile.DB, 0, sqlite_head(page_bytes, pages))
    member.close()
    member = maker.reopen()
    assert member.meta_size(MetaFile.DB) == page_bytes * pages
    member.close()


def test_the_size_of_a_log_that_another_process_wrote_is_unknown(image):
    maker = raw_maker("image", image)
    member = maker.make()
    write_label(member, label_of())
    member.meta_write(MetaFile.WAL, 0, b"\x37\x7f\x06\x83" + bytes(5000))
    member.close()
    member = maker.reopen()
    assert member.meta_size(MetaFile.WAL) == WAL_BYTES
    member.meta_truncate(MetaFile.WAL, 0)
    assert member.meta_size(MetaFile.WAL) == 0
    member.close()
    member = maker.reopen()
    assert member.meta_size(MetaFile.WAL) == 0
    member.close()


def test_cutting_a_log_destroys_the_frame_after_the_cut(image):
    maker = raw_maker("image", image)
    member = maker.make()
    write_label(member, label_of())
    member.meta_write(MetaFile.WAL, 0, b"\x37\x7f\x06\x82".ljust(40_000, b"f"))
    member.meta_truncate(MetaFile.WAL, 8192)
    member.close()
    member = maker.reopen()
    assert member.meta_read(MetaFile.WAL, 8000, 4288) == b"f" * 192 + bytes(4096)
    member.close()


def test_cutting_a_log_stays_within_its_area(image):
    end = GEOMETRY.area(MetaFile.WAL)[0] + WAL_BYTES
    with open(image, "r+b") as file:
        file.seek(end)
        file.write(b"not ours")
    member = raw_maker("image", image).make()
    member.meta_write(MetaFile.WAL, 0, b"x" * WAL_BYTES)
    member.meta_truncate(MetaFile.WAL, WAL_BYTES - 100)
    member.close()
    assert image.read_bytes()[end - 101 : end + 8] == b"x" + bytes(100) + b"not ours"


def test_an_image_that_was_cut_off_is_refused(image):
    member = raw_maker("image", image).make()
    write_label(member, label_of())
    member.close()
    os.truncate(image, RAW_BYTES - 1)
    with pytest.raises(MemberError, match="cut off"):
        open_member(str(image))


def test_a_mounted_device_is_busy(tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with loop_device(tmp_path / "backing", 8 << 20) as device:
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", device, mountpoint], check=True)
        try:
            with pytest.raises(MemberBusy, match="in use"):
                construct(device, read_only=False, lock=True)
        finally:
            subprocess.run(["umount", mountpoint], check=True)


def test_a_read_only_device_says_so(tmp_path):
    with loop_device(tmp_path / "backing", RAW_BYTES) as device:
        maker = raw_maker("device", device)
        member = maker.make()
        write_label(member, label_of())
        member.close()
        subprocess.run(["blockdev", "--setro", device], check=True)
        with pytest.raises(MemberError, match=r"read-only.*make it writable"):
            maker.reopen()
        maker.reopen(read_only=True).close()


# places


def test_kinds(tmp_path, image):
    assert kind_of(str(tmp_path)) == "directory"
    assert kind_of(str(image)) == "image"
    with pytest.raises(UsageError, match="can't be a member"):
        kind_of("/dev/null")
    with pytest.raises(MemberError, match="no such file"):
        kind_of(str(tmp_path / "nothing"))


def test_the_same_place_by_other_names(tmp_path, image):
    (tmp_path / "link").symlink_to(image)
    os.link(image, tmp_path / "hard")
    same = identity(str(image))
    assert identity(str(tmp_path / "link")) == same == identity(str(tmp_path / "hard"))
    with loop_device(image) as one, loop_device(image) as two:
        assert one != two
        assert identity(one) == identity(two) == same
        with loop_device(image, offset=1 << 20) as three:
            assert identity(three) != same
    other = tmp_path / "other"
    other.mkdir()
    assert identity(str(other)) != identity(str(tmp_path))


@pytest.mark.parametrize("end", ["close", "forget"])
def test_a_borrowed_descriptor_stays_open_until_given_back(image, end):
    files = Descriptors(str(image), lambda key: os.open(image, os.O_RDONLY | os.O_CLOEXEC))
    with files.borrow("a") as fd:
        files.close() if end == "close" else files.forget("a")
        assert os.pread(fd, 1, 0) == b"\0"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    if end == "close":
        with pytest.raises(MemberError, match="closed"), files.borrow("a"):
            pass
    files.close()


def test_idle_descriptors_are_bounded(image):
    files = Descriptors(str(image), lambda key: os.open(image, os.O_RDONLY | os.O_CLOEXEC), limit=3)
    with files.borrow(0) as first:
        for key in range(1, 20):
            with files.borrow(key):
                pass
        assert len(files._open) == 3 and os.fstat(first)
    files.close()
    assert not files._open


def test_descriptors_are_not_shared_with_children(image):
    member = raw_maker("image", image).make()
    assert not os.get_inheritable(member._fd)
    member.close()


def test_addresses_reach_memory():
    content = cells(2)
    assert int(addresses_of(content)[1]) == content.ctypes.data + CELL
    assert content.dtype == np.uint8
