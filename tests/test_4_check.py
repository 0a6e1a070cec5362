"""The checker: every finding it knows is produced by some sabotage of a good volume; a good volume
has none; and it writes nothing, ever (`simulated_volume.check` compares the members).
"""

import os
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from simulated_volume import (
    CELL_BYTES,
    assembly_of,
    check,
    checked,
    in_simulated_time,
    mounted,
    new_members,
    reopened,
)
from volumes import make_members
from workload import ME

import raidfs.check
from raidfs import native
from raidfs.check import FINDINGS_MAX, check_assembly, check_volume
from raidfs.fs.attributes import Changes
from raidfs.raid.array import ZoneMap
from raidfs.raid.code import parse_code
from raidfs.raid.label import LABEL_BYTES, encode_label, read_labels, write_label
from raidfs.store.batches import sealed_page
from raidfs.store.hidden import MOVES_INO
from raidfs.store.meta import Leaf, Meta
from raidfs.store.mirror import Mirror
from raidfs.store.scrub_record import Figures, LostFile, Record, encode_files, encode_record

ROOT = 1
INF = 2**63 - 1
NUMBERS = {}  # name -> inode number in the good volume


@pytest.fixture(scope="module")
def good():
    """The members of a volume that holds something of everything."""
    members = new_members("5", 3)

    async def fill():
        async with mounted(members) as volume:
            chooser = np.random.default_rng(1)

            async def file(name, *pieces):
                ino = NUMBERS[name] = volume.create(ROOT, name, 0o644, 0, ME).ino
                for offset, data in pieces:
                    await volume.write(ino, offset, data)
                    await volume.fsync(ino)
                volume.release(ino)
                volume.forget(ino)

            await file(b"big", (0, chooser.bytes(40 * CELL_BYTES)), (0, chooser.bytes(50)))
            await file(b"small", (0, b"inline"))
            await file(b"both", (0, b"inline"), (3 * CELL_BYTES, chooser.bytes(CELL_BYTES)))
            await file(b"copy")
            places = (NUMBERS[b"big"], 33 * CELL_BYTES, NUMBERS[b"copy"], 0)
            assert await volume.copy_range(*places, 4 * CELL_BYTES) == 4 * CELL_BYTES
            NUMBERS[b"dir"] = volume.mkdir(ROOT, b"dir", 0o755, ME).ino
            NUMBERS[b"sub"] = volume.mkdir(NUMBERS[b"dir"], b"sub", 0o755, ME).ino
            NUMBERS[b"sym"] = volume.symlink(ROOT, b"sym", b"target", ME).ino
            volume.link(NUMBERS[b"small"], NUMBERS[b"sub"], b"link")
            volume.setxattr(NUMBERS[b"big"], b"user.x", b"value", 0, ME)
            for name in (b"dir", b"sub", b"sym", b"small"):
                volume.forget(NUMBERS[name], 9)

    in_simulated_time(fill)
    checked(members)
    return members


@pytest.fixture(scope="module")
def kept(good):
    """The same volume after three snapshots, each with something that nobody else has."""
    members = reopened(good)

    async def change():
        async with mounted(members) as volume:
            create = volume.store.snapshots.create
            await create("first", "as it was made")
            big = NUMBERS[b"big"]
            await volume.write(big, 0, os.urandom(3 * CELL_BYTES))
            volume.unlink(ROOT, b"small")
            volume.rename(NUMBERS[b"dir"], b"sub", ROOT, b"moved", 0)
            volume.setxattr(big, b"user.x", b"another", 0, ME)
            await create("second")
            await volume.store.snapshots.hold("second", "important")
            await volume.setattr(big, Changes(size=20 * CELL_BYTES + 5), ME)
            volume.removexattr(big, b"user.x")
            volume.unlink(ROOT, b"copy")
            volume.rename(ROOT, b"both", NUMBERS[b"dir"], b"both", 0)
            await create("third")
            await volume.write(big, 0, os.urandom(50))

    in_simulated_time(change)
    checked(members)
    return members


class Saboteur:
    """Changes metadata and members behind everybody's back, so that all checksums are right."""

    def __init__(self, members):
        self.members = members
        self.mirror = Mirror({member.number: member for member in members})
        self.meta = Meta(self.mirror)

    def done(self):
        self.meta.commit(None)
        self.meta.close()
        self.mirror.close()

    def sql(self, statement, *values):
        statement = re.sub(r"\{(\w+)\}", lambda m: str(NUMBERS[m[1].encode()]), statement)
        self.meta._run(statement, values)

    def leaf(self, name, change):
        """Change a copy of the addresses of leaf 0."""
        old = self.meta.leaf(NUMBERS[name], 0)
        addresses = old.addresses.copy()
        change(addresses)
        self.meta.put_leaf(self.meta.durable, NUMBERS[name], 0, Leaf(addresses, old.inline))

    def cell(self, name, page, column=None):
        """(member, name of the column file, slice of a cell) of a page, or of its row."""
        address = int(self.meta.leaf(NUMBERS[name], 0).addresses[page])
        zone = next(row for row in self.meta.zones() if row.zone == address >> 32)
        row = (address >> 8) & 0xFFFFFF
        column = address & 0xFF if column is None else column
        place = ZoneMap(zone.zone, parse_code(zone.code), zone.rows, zone.columns)
        member = self.members[place.columns[column][0]]
        part = slice(row * CELL_BYTES, (row + 1) * CELL_BYTES)
        return member, f"zone-{zone.zone}.{column}", part, place, row


def setting(name, value):
    """What belongs to the volume is that."""
    return sql(f"INSERT OR REPLACE INTO setting VALUES ('{name}', x'{value.hex()}')")


def set_address(index, value):
    def change(addresses):
        addresses[index] = value(addresses) if callable(value) else value

    return change


def absent_cell(bench):
    """A cell that no page fell to, in place of one of the same zone that is shared."""
    leaf = bench.meta.leaf(NUMBERS[b"copy"], 0)
    zones = leaf.addresses >> np.uint64(32)
    for owner in bench.meta.owners(int(zones[3])):
        if owner.pages % 2:
            place = owner.zone << 32 | (owner.row + owner.rows - 1) << 8 | 1
    bench.leaf(b"copy", set_address(3, place))


def swap(addresses):
    addresses[[4, 5]] = addresses[[5, 4]]


def spoil_page(bench):
    content = bench.members[0].files["raidfs.db"]
    for offset in range(4096, len(content), 4096):
        content[offset + 50] ^= 1


def foreign_metadata(bench):
    """What page 1 says of the volume that it belongs to."""
    content = bench.members[0].files["raidfs.db"]
    content[68] ^= 1
    content[:4096] = sealed_page(bytes(content[:4096]), 0)


def spoil_label(bench):
    bench.members[1].files["label"][LABEL_BYTES + 40] ^= 1


def spoil_cell(bench):
    member, name, part, _, _ = bench.cell(b"big", 9)
    member.files[name][part.start] ^= 1


def spoil_cells_of_a_row(bench):
    for column in (0, 1):
        member, name, part, _, _ = bench.cell(b"big", 9, column)
        member.files[name][part.start] ^= 1


def wrong_parity(bench):
    """Bytes and checksum agree, the row doesn't."""
    member, name, part, place, row = bench.cell(b"big", 9, 2)
    member.files[name][part] = os.urandom(CELL_BYTES)
    crcs = bench.meta.crcs(place.zone, row, 1)
    crcs[0, 2] = native.crc32c(bytes(member.files[name][part]))
    bench.meta.put_crcs(place.zone, row, crcs)


def remove_column(bench):
    member, name, _, _, _ = bench.cell(b"big", 9)
    del member.files[name]


def change_runs(bench):
    owner = next(iter(bench.meta.owners(1)))
    runs = np.frombuffer(owner.runs, "<u8").reshape(-1, 3).copy()
    runs[-1, 2] += 1
    bench.meta.put_owner(1, owner.row, owner.rows, owner.pages, runs.tobytes())


def interrupted_label(bench):
    old = read_labels(bench.members[0])
    history = [*old.history, (2, "ee" * 8)]
    label = msgspec.structs.replace(old, generation=2, generation_id="ee" * 8, history=history)
    for member in bench.members:
        write_label(member, label.for_member(member.number))
    copy = bench.members[0].files["label"]
    copy[LABEL_BYTES : 2 * LABEL_BYTES] = encode_label(old.for_member(0))


def sql(*statements):
    def sabotage(bench):
        for statement in statements:
            bench.sql(statement)

    return sabotage


def leaf(name, change):
    return lambda bench: bench.leaf(name, change)


INDEX = "CREATE INDEX inode_orphan ON inode (ino) WHERE nlink >= 0 AND died = 9223372036854775807"

SABOTAGE = {
    "label.copy": spoil_label,
    "metadata.MetadataBad": spoil_page,
    "metadata.page": spoil_page,
    "metadata.member": foreign_metadata,
    "metadata.open": sql("UPDATE state SET format = 99"),
    "metadata.format": sql("UPDATE leaf SET cells = x'07ff' WHERE ino = {big}"),
    "metadata.sqlite": sql(
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = '{INDEX}' WHERE name = 'inode_orphan'",
    ),
    "version.empty": sql("INSERT INTO leaf VALUES ({big}, 900, 1, 1, NULL, NULL)"),
    "version.overlap": sql(f"INSERT INTO leaf VALUES ({{both}}, 0, 1, {INF - 1}, NULL, NULL)"),
    "version.died": sql("UPDATE leaf SET died = 999 WHERE ino = {big}"),
    "version.unneeded": sql("INSERT INTO leaf VALUES ({big}, 900, 1, 2, NULL, x'01')"),
    "version.later": sql(f"INSERT INTO leaf VALUES ({{big}}, 900, 999, {INF}, NULL, NULL)"),
    "inode.number": sql("UPDATE state SET next_ino = 2"),
    "inode.size": sql("UPDATE inode SET size = 99 WHERE ino = {sym}"),
    "inode.root": sql("UPDATE inode SET mode = 33188 WHERE ino = 1"),
    "inode.count": sql("UPDATE state SET inodes = inodes + 1"),
    "inode.cells": sql("UPDATE inode SET cells = cells + 1 WHERE ino = {big}"),
    "inode.parent": sql("UPDATE inode SET parent = {dir} WHERE ino = {small}"),
    "state.cells": sql("UPDATE state SET cells = cells + 1"),
    "names.twice": sql(
        "INSERT INTO dirent SELECT parent, position + 1, born, died, name, ino, kind "
        "FROM dirent WHERE ino = {big}"
    ),
    "names.position": sql("UPDATE dirent SET position = position + 99 WHERE ino = {big}"),
    "names.parent": sql("UPDATE dirent SET parent = {big} WHERE ino = {both}"),
    "names.dangling": sql("UPDATE dirent SET ino = 9999 WHERE ino = {big}"),
    "moves.number": sql(f"UPDATE dirent SET parent = {MOVES_INO} WHERE ino = {{both}}"),
    "names.kind": sql("UPDATE dirent SET kind = 4 WHERE ino = {big}"),
    "names.dotdot": sql("UPDATE inode SET parent = 1 WHERE ino = {sub}"),
    "names.directory": sql(
        "INSERT INTO dirent SELECT {sub}, position, born, died, name, ino, kind "
        "FROM dirent WHERE ino = {sub}"
    ),
    "names.cycle": sql("UPDATE inode SET parent = {sub} WHERE ino = {dir}"),
    "names.nlink": sql("UPDATE inode SET nlink = 7 WHERE ino = {big}"),
    "names.lost": sql("DELETE FROM dirent WHERE ino = {sub}"),
    "xattr.dangling": sql("UPDATE xattr SET ino = 9999"),
    "xattr.count": sql("UPDATE inode SET xattrs = 5 WHERE ino = {big}"),
    "zone.numbers": sql("UPDATE zone SET fill = rows + 1 WHERE zone = 1"),
    "zone.columns": sql('DELETE FROM "column" WHERE zone = 1 AND "column" = 2'),
    "zone.code": sql("UPDATE zone SET code = '0/3' WHERE zone = 1"),
    "zone.slot": sql('UPDATE "column" SET slot = 9999 WHERE zone = 1 AND "column" = 2'),
    "zone.missed": sql('UPDATE "column" SET missed = 9999 WHERE zone = 1 AND "column" = 2'),
    "zone.live": sql("UPDATE zone SET live = live + 1 WHERE zone = 1"),
    "owner.rows": sql('UPDATE owner SET rows = rows + 1 WHERE zone = 1 AND "row" = 0'),
    "owner.pages": change_runs,
    "owner.gap": sql('DELETE FROM owner WHERE zone = 2 AND "row" > 0'),
    "column.missing": remove_column,
    "leaf.dangling": sql("UPDATE leaf SET ino = 9999 WHERE ino = {big}"),
    "leaf.inline": sql("UPDATE leaf SET inline = x'0102030405060708' WHERE ino = {small}"),
    "leaf.end": sql("UPDATE inode SET size = 10 WHERE ino = {big}"),
    "leaf.both": leaf(b"both", set_address(0, lambda a: a[3])),
    "leaf.zone": leaf(b"big", set_address(4, 999 << 32)),
    "leaf.cell": leaf(b"big", set_address(4, lambda a: a[4] | np.uint64(0xFFFF << 8))),
    "leaf.absent": absent_cell,
    "leaf.owner": leaf(b"big", swap),
    "share.stale": sql("UPDATE share SET number = 7"),
    "cell.damaged": spoil_cell,
    "cell.end": sql(f"UPDATE inode SET size = {40 * CELL_BYTES - 99} WHERE ino = {{big}}"),
    "row.parity": wrong_parity,
    "event.count": sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001) "
        "INSERT INTO event SELECT i, 1, 'Healed', 0, '', '{}' FROM n"
    ),
    "event.row": sql("INSERT INTO event VALUES (-5, 1, 'Healed', 0, '', '{}')"),
    "event.member": sql("INSERT INTO event VALUES (5, 1, 'Healed', -7, '', '{}')"),
    "event.details": sql("INSERT INTO event VALUES (5, 1, 'Healed', 0, '', '[1]')"),
    "scrub.record": setting("scrub", b"nonsense"),
    "scrub.files": setting("scrub.files", encode_files([LostFile("/a", "", 2, 1, 0)])),
    "scrub.cursor": setting("scrub", encode_record(Record(cursor=1 << 30))),
    "scrub.figures": setting("scrub", encode_record(Record(members={1: Figures(healed=1)}))),
}

# Of the volume with snapshots: what is wrong in one of them, or with all of them.
GROUP_ID = f"x'{bytes(16).hex()}'"
IN_SNAPSHOTS = {
    "version.unneeded": sql("DELETE FROM snapshot WHERE name = 'first'"),
    "snapshot.number": sql("UPDATE snapshot SET id = 1 << 30 WHERE name = 'first'"),
    "snapshot.epoch": sql("UPDATE snapshot SET epoch = 999 WHERE name = 'first'"),
    "snapshot.name": sql("UPDATE snapshot SET name = 'a/b' WHERE name = 'first'"),
    "snapshot.guid": sql("UPDATE snapshot SET guid = x'00' WHERE name = 'first'"),
    "snapshot.count": sql("UPDATE snapshot SET cells = cells + 1 WHERE name = 'second'"),
    "snapshot.next_ino": sql("UPDATE snapshot SET next_ino = 3 WHERE name = 'first'"),
    "hold.dangling": sql("UPDATE hold SET snapshot = 99"),
    "snapshot.group": sql("UPDATE snapshot SET group_id = x'00' WHERE name = 'first'"),
    "kept.kind": sql(f"INSERT INTO kept VALUES ({GROUP_ID}, 'whim', x'00')"),
    "kept.prepared": sql(f"INSERT INTO kept VALUES ({GROUP_ID}, 'prepared', x'00')"),
    "kept.parts": sql(f"INSERT INTO kept VALUES ({GROUP_ID}, 'took-part', x'00')"),
    "recorded.dangling": sql(f"INSERT INTO recorded VALUES ({GROUP_ID}, 0, 'x', x'00')"),
    "hold.tag": sql("UPDATE hold SET tag = '-x'"),
    "zone.missed": sql('UPDATE "column" SET missed = 9999 WHERE zone = 1 AND "column" = 2'),
    "zone.live": sql("DELETE FROM leaf WHERE ino = {big} AND died < 99"),
    "leaf.dangling": sql("DELETE FROM inode WHERE ino = {copy} AND died < 99"),
    "inode.cells": sql("UPDATE inode SET cells = cells + 1 WHERE ino = {big} AND died < 99"),
    "names.dangling": sql("DELETE FROM inode WHERE ino = {copy} AND died < 99"),
    "names.nlink": sql("UPDATE inode SET nlink = 5 WHERE ino = {small} AND died < 99"),
    "names.dotdot": sql("UPDATE inode SET parent = 1 WHERE ino = {sub} AND died < 99"),
    "names.lost": sql("DELETE FROM dirent WHERE ino = {sub} AND died < 99"),
    "names.cycle": sql("UPDATE inode SET parent = {sub} WHERE ino = {dir} AND died < 99"),
    "xattr.count": sql("DELETE FROM xattr WHERE value = CAST('another' AS BLOB)"),
    "leaf.end": sql("UPDATE inode SET size = 10 WHERE ino = {big} AND died < 99"),
    "cell.end": sql(f"UPDATE inode SET size = {3 * CELL_BYTES + 9} WHERE ino = {{copy}}"),
}
OF_ALL = re.compile(r"version|snapshot|hold|zone|leaf.end|cell.end|kept|recorded")

NOTES = {
    "label.update": interrupted_label,
    "names.orphans": sql(
        "DELETE FROM dirent WHERE ino = {both}", "UPDATE inode SET nlink = 0 WHERE ino = {both}"
    ),
    "column.stray": lambda bench: bench.members[0].column_create(99, 0, 9, 65536),
}


def sabotaged(good, what):
    members = reopened(good)
    bench = Saboteur(members)
    closed = what in (spoil_page, spoil_label)  # what an open volume writes anew
    try:
        if not closed:
            what(bench)
    finally:
        bench.done()
    if closed:
        what(bench)
    return members


@pytest.mark.parametrize("code", SABOTAGE)
def test_each_finding(good, code):
    report = check(sabotaged(good, SABOTAGE[code]))
    assert code in {finding.code for finding in report.findings}
    assert all(finding.text for finding in report.findings)


@pytest.mark.parametrize("code", IN_SNAPSHOTS)
def test_each_finding_in_a_snapshot(kept, code):
    report = check(sabotaged(kept, IN_SNAPSHOTS[code]))
    found = [finding.text for finding in report.findings if finding.code == code]
    assert found
    assert OF_ALL.match(code) or all(", in snapshot " in text for text in found)


@pytest.mark.parametrize("code", NOTES)
def test_each_note(good, code):
    """Nothing is violated; the next mount clears it."""
    members = sabotaged(good, NOTES[code])
    report = check(members)
    assert [note.code for note in report.notes] == [code] and report.clean

    async def mount():
        async with mounted(members) as volume:
            volume.reap_orphans()
            volume.setxattr(ROOT, b"user.y", b"", 0, ME)

    in_simulated_time(mount)
    report = check(members)
    assert not report.notes and report.clean


def test_a_lost_member_is_a_note(good):
    report = check(good, without=(1,))
    assert [note.code for note in report.notes] == ["member.lost"] and report.clean


def test_every_code_in_the_source_is_produced():
    package = Path(raidfs.check.__file__).parent
    source = "".join(path.read_text() for path in sorted(package.glob("*.py")))
    findings = set(re.findall(r'report\.add\(\s*f?"(\w+\.[\w{}]+)"', source))
    findings.remove("metadata.{name}")  # events of the mirror; one for a mirror that can't write
    known = set(SABOTAGE) | set(IN_SNAPSHOTS)
    assert len(findings) > 50 and findings | {"metadata.MetadataBad"} == known
    notes = set(re.findall(r'report\.note\(\s*"(\w+\.\w+)"', source))
    assert notes == {*NOTES, "member.lost"}


def test_a_good_volume_has_nothing_to_find(good):
    report = check(good)
    assert report.clean and not report.notes and report.cut_short == 0
    counts = report.counts
    assert (counts["members"], counts["inodes"], counts["names"]) == (3, 8, 8)
    assert (counts["live cells"], counts["shared cells"], counts["shares"]) == (45, 4, 1)
    assert counts["cells"] > 41 * 3 // 2  # four of the 45 are there once
    assert counts["zones"] >= 2 and counts["leaves"] == 4


def test_beyond_repair_is_said(good):
    report = check(sabotaged(good, spoil_cells_of_a_row))
    texts = [finding.text for finding in report.findings if finding.code == "cell.damaged"]
    assert len(texts) == 2 and all("its row can't rebuild it" in text for text in texts)
    report = check(sabotaged(good, spoil_cell))
    assert [f.code for f in report.findings] == ["cell.damaged"]
    assert "its row can rebuild it" in report.findings[0].text


def test_findings_are_bounded(good):
    report = raidfs.check.Report()
    for number in range(FINDINGS_MAX + 7):
        report.add("area.thing", str(number))
    assert len(report.findings) == FINDINGS_MAX and report.cut_short == 7


def test_without_data_cells_are_not_read(good):
    members = sabotaged(good, spoil_cell)
    assert check_assembly(assembly_of(members, read_only=True), data=False).clean


def test_check_leaves_real_members_as_they_are(tmp_path):
    paths = make_members(tmp_path, 3)

    def everything():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(tmp_path.rglob("*"))
            if path.is_file()
        }

    before = everything()
    seen = []
    report = check_volume(paths[1], progress=lambda *what: seen.append(what))
    assert report.clean and not report.notes
    assert everything() == before and len(seen) >= 0
