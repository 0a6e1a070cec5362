"""A volume with known content that is damaged, looked at and begun anew, for tests of corruption.

    rig = Rig(workshop, dice, "directories", "6", 5)
    game = Round(rig, dice)                 # members as they were when the rig was made
    game.vandal.cells(2, "ranges")
    game.check_names_the_damage()           # the offline check, cell by cell
    game.mount()
    game.read_and_judge()                   # content, counters, healing, what was overwritten

Loop devices are good for one round. What the test knows of the damage it tells: `gone`,
`label_copies`, `metadata_hit`, `live`.
"""

import functools
import json
import os
import re
import shutil

from damage import FILE_KINDS, PRESENT, Survey, Tree, Vandal, columns_copied
from mounting import run

from raidfs.check import check_volume
from raidfs.daemon import registry
from raidfs.daemon.control import ControlClient
from raidfs.daemon.snapshots import SnapshotCreateRequest
from raidfs.raid.code import code_for
from raidfs.raid.label import LABEL_BYTES, decode_label
from raidfs.raid.raw import Geometry

MEMBER_BYTES = 80 << 20
DAMAGED = re.compile(r"zone (\d+) row (\d+) column (\d+) \(member \d+\): its row (can|can't) ")


@functools.cache
def has_scrub():
    return "scrub" in run("raidfs-ctl", "--help").stdout


@functools.cache
def reads_around():
    return "slow_read_ms" in run("raidfs", "--help").stdout


def client_of(volume):
    """The control socket, which commands use: each of them would take a third of a second more."""
    for path in volume.shop.runtime.glob("*.json"):
        if json.loads(path.read_text())["mountpoint"] == str(volume.mountpoint):
            return ControlClient(registry.socket_path(path))
    raise AssertionError("no daemon")


def sync(root):
    fd = os.open(root, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def unmount(volume):
    run("umount", volume.mountpoint)
    volume.wait_gone()


class Rig:
    """A volume with content and two snapshots, not mounted, and a copy of its members, from which
    each round begins. `crash`: killed, so that its log holds something."""

    def __init__(self, shop, dice, kind, level, count, crash=False):
        print(f"{kind}, level {level} of {count}{', killed' * crash}")
        self.kind = kind
        if kind == "directories":
            members = shop.directories(count)
        elif kind == "images":
            members = shop.images(count, MEMBER_BYTES)
        else:
            members = shop.loop_devices(count, MEMBER_BYTES)
        self.volume = volume = shop.volume(
            members, level=level, size=MEMBER_BYTES, zone_bytes=1 << 20
        )
        self.members = volume.members
        self.tolerance = code_for(level, count).tolerance
        self.old = [shop.directory / f"old{number}" for number in range(count)]
        self.spoilt = [shop.directory / f"pristine{number}" for number in range(count)]
        self.geometry = self._geometry()
        self._fill(dice)
        if crash:
            volume.kill()
        else:
            unmount(volume)
        if kind != "devices":
            self._copy(self.members, self.spoilt)
        self.fresh = True

    def _geometry(self):
        path = self.members[0]
        with (path / "label" if path.is_dir() else path).open("rb") as file:
            return Geometry.of(decode_label(file.read(LABEL_BYTES)).parameters)

    def _fill(self, dice):
        """Between the snapshots, columns are copied as they then are."""
        self.volume.mount()
        root, tree = self.volume.mountpoint, Tree()
        self.trees = {PRESENT: tree}
        tree.grow(root, dice)
        self.snapshot("first")
        for member, place in zip(self.members, self.old, strict=True):
            columns_copied(member, place, self.geometry)
        tree.change(root, dice, 20)
        self.snapshot("second")
        tree.change(root, dice)
        sync(root)

    def snapshot(self, name):
        with client_of(self.volume) as client:
            client.ask(SnapshotCreateRequest(name=name))
        self.trees[name] = self.trees[PRESENT].copy()

    @staticmethod
    def _copy(sources, targets):
        for source, target in zip(sources, targets, strict=True):
            if target.is_dir():
                shutil.rmtree(target)
            run("cp", "-a", "-T", "--sparse=always", source, target)

    def restore(self):
        """Loop devices are good for one round."""
        assert self.fresh or self.kind != "devices"
        self.volume.tear_down()  # of a round that failed
        if not self.fresh:
            self._copy(self.spoilt, self.members)
        self.fresh = False


class Round:
    """One volume, damaged and looked at."""

    def __init__(self, rig, dice):
        rig.restore()
        self.rig, self.volume, self.dice = rig, rig.volume, dice
        self.survey = Survey(rig.members)
        self.vandal = Vandal(self.survey, dice)
        self.gone = set()  # members of which no label is left
        self.label_copies = set()  # (member, copy) damaged, of others
        self.metadata_hit = set()  # members
        self.live = False  # mounted before the damage

    def some(self, count=None):
        """So many members, or as many as may be lost."""
        count = self.rig.tolerance if count is None else count
        return self.dice.sample(range(len(self.rig.members)), count)

    @property
    def source(self):
        """A member that can be named."""
        return next(m for n, m in enumerate(self.rig.members) if n not in self.gone)

    def damage_label(self, member, copies):
        self.vandal.label(member, copies)
        if len(copies) == 2:
            self.gone.add(member)
        else:
            self.label_copies |= {(member, copy) for copy in copies}

    def damage_metadata(self, keeper=None):
        """Pages of the database, of which one copy each stays, or all but the keeper's; and all
        logs but the keeper's."""
        dice, members = self.dice, range(len(self.rig.members))
        keeper = dice.choice(members) if keeper is None else keeper
        if dice.random() < 0.5 and not self.gone:
            self.metadata_hit |= self.vandal.pages(dice.choice((0.05, 0.5, 1.0)))
        else:
            for member in members:
                if member != keeper and dice.random() < 0.7:
                    how = dice.choice(("noise", *FILE_KINDS))
                    self.vandal.metadata(member, "raidfs.db", how)
                    self.metadata_hit.add(member)
        for member in members:
            if member != keeper and dice.random() < 0.7:
                how = dice.choice(("noise", *FILE_KINDS))
                self.vandal.metadata(member, "raidfs.db-wal", how)
                self.metadata_hit.add(member)

    # -- before the mount --------------------------------------------------------------------------

    def check_names_the_damage(self):
        """The offline check finds exactly the cells, labels and copies that were hit."""
        wrong = {c for c in self.survey.wrong() if self.survey.member_of(c) not in self.gone}
        beyond = self.survey.beyond(wrong, self.gone)
        report = check_volume(str(self.source))
        by_code = {}
        for finding in report.findings:
            by_code.setdefault(finding.code, []).append(finding.text)
        told = [DAMAGED.match(text) for text in by_code.pop("cell.damaged", [])]
        cells = {tuple(map(int, match.groups()[:3])): match[4] for match in told}
        if not report.cut_short:
            assert cells.keys() == wrong, sorted(cells.keys() ^ wrong)[:20]
        assert cells.keys() <= wrong
        for cell, fate in cells.items():
            assert (fate == "can't") == (cell in beyond), (cell, fate)
        missing = [c for c in self.survey.columns.values() if not c.path.exists()]
        missing = [c for c in missing if c.member not in self.gone]
        assert len(by_code.pop("column.missing", [])) == len(missing) or report.cut_short
        assert len(by_code.pop("label.copy", [])) == len(self.label_copies)
        metadata = [
            text
            for code in list(by_code)
            if code.startswith("metadata.")
            for text in by_code.pop(code)
        ]
        named = {int(number) for text in metadata for number in re.findall(r"member (\d+)", text)}
        assert named <= self.metadata_hit, metadata
        assert not by_code or report.cut_short, by_code
        notes = {note.code for note in report.notes}
        assert ("member.lost" in notes) == bool(self.gone), notes
        return report

    # -- reading -----------------------------------------------------------------------------------

    def mount(self, *options):
        if reads_around():  # else a busy machine decides which copies are asked
            options = (*options, "slow_read_ms=0")
        if self.gone:
            refused = self.volume.mount(*options, source=self.source, expect=None)
            assert refused.returncode and "degraded" in refused.stderr, refused
            options = (*options, "degraded")
        self.volume.mount(*options, source=self.source)

    def read_all(self, lost=None):
        """All views; returns the paths with pages that can't be had, by view."""
        root, broken = self.volume.mountpoint, {}
        for view, tree in self.rig.trees.items():
            place = root if view == PRESENT else root / ".snapshots" / view
            broken[view] = tree.compare(place, (lost or {}).get(view))
        return {view: paths for view, paths in broken.items() if paths}

    def errors(self):
        """By member: errors of cells, counted since the volume was made."""
        with client_of(self.volume) as client:
            status = client.status()
        assert status.state == ("DEGRADED" if self.gone else "ONLINE"), status
        assert {m.id for m in status.members if m.state != "ONLINE"} == self.gone, status
        return [m.read_errors + m.checksum_errors for m in status.members]

    def read_and_judge(self):
        """Mounted, and damaged within tolerance: everything is right and counted, once."""
        survey = self.survey
        damaged = survey.content()
        wrong = {c for c in survey.wrong(damaged) if survey.member_of(c) not in self.gone}
        assert not survey.beyond(wrong, self.gone), "the test's own fault"
        self.read_all()
        errors = self.errors()
        needed = [0] * len(errors)
        for cell in survey.read_by_somebody(wrong):
            needed[survey.member_of(cell)] += 1
        hit = {survey.member_of(cell) for cell in wrong}
        left = survey.wrong() & wrong  # nobody asked for it so far
        for member, count in enumerate(errors):
            asked = needed[member] - sum(
                survey.member_of(cell) == member for cell in survey.read_by_somebody(left)
            )
            assert count >= asked, (errors, needed)
            assert count == 0 or member in hit, (errors, hit)
        self.read_all()
        grown = [now - before for now, before in zip(self.errors(), errors, strict=True)]
        if all(survey.columns[c[0], c[2]].path.exists() for c in wrong):  # else it can't be healed
            assert not survey.read_by_somebody(left), "read, and not healed"
            for member, count in enumerate(grown):  # another copy may be asked this time
                assert count <= sum(survey.member_of(cell) == member for cell in left), grown
        self.finish(damaged, wrong)

    def finish(self, damaged, wrong):
        """Scrubs, if there is such a command; unmounts; looks at the members once more."""
        if has_scrub():
            self.volume.shop.run("raidfs-ctl", "scrub", "start", "--wait", self.volume.mountpoint)
            self.errors()
        unmount(self.volume)
        if self.live and self.label_copies and not has_scrub():  # seen, and mended, at an opening
            self.volume.mount(source=self.source)
            unmount(self.volume)
        after = Survey(self.rig.members, self.source)
        self.nothing_good_was_overwritten(after, damaged, wrong)
        read = self.survey.read_by_somebody(wrong)
        missing = {c for c in wrong if not self.survey.columns[c[0], c[2]].path.exists()}
        if read - missing:
            assert "Healed" in after.events, after.events
            assert after.events & {"ChecksumErrors", "ReadErrors"}, after.events
        files_missing = any(not c.path.exists() for c in self.survey.columns.values())
        left = wrong & self.survey.wrong()
        assert not (left & read) - missing, "read, and not healed"
        report = check_volume(str(self.source))
        if has_scrub():
            assert report.clean, report.findings[:20]
            return
        for finding in report.findings:
            if finding.code == "cell.damaged":
                match = DAMAGED.match(finding.text)
                assert tuple(map(int, match.groups()[:3])) in left, finding
            elif finding.code.startswith("metadata."):
                member = int(re.search(r"member (\d+)", finding.text)[1])
                assert member in self.metadata_hit, finding
            else:
                assert finding.code == "column.missing" and files_missing, finding

    def nothing_good_was_overwritten(self, after, damaged, wrong):
        """Each cell of zones that are still there is what it was before the damage, or is as it
        was damaged."""
        now = self.survey.content()
        differ = self.survey.wrong(now)
        for zone, row, column in differ:
            if (zone, column) not in after.columns:
                continue  # emptied by the cleaner meanwhile
            assert (zone, row, column) in wrong or self.survey.member_of(
                (zone, row, column)
            ) in self.gone
            part = slice(row * 4096, (row + 1) * 4096)
            old = damaged[zone, column][part]
            assert now[zone, column][part] in (old, old.ljust(4096, b"\0")), "neither old nor new"
