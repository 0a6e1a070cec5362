"""Corruption: whatever disks do to cells, labels and metadata, on as many members as the level
survives, everything read is right, what was wrong is counted, told and mended, nothing good is
overwritten, and a second reading meets nothing. Beyond that, exactly the pages that can't be had
give EIO.

What must be found is known from the content that was written (damage.Tree) and from the volume's
own map of cells (damage.Survey), cell by cell. RAIDFS_TEST_SEED replays; RAIDFS_TEST_ROUNDS is how
many seeds, from that one on, the random test goes through.
"""

import contextlib
import json
import os
import random
import shutil

import pytest
import trio
from damage import CELL_KINDS, FILE_KINDS, PAGE, Survey, patch
from damaged_volume import Rig, Round, has_scrub, unmount
from mounting import Workshop, run
from volumes import make_members, open_store

from raidfs.check import check_volume

pytestmark = pytest.mark.mount

SEED = int(os.environ.get("RAIDFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
ROUNDS = int(os.environ.get("RAIDFS_TEST_ROUNDS", "1"))
SHAPES = (("5", 3), ("6", 5), ("1", 3), ("rs:3+3", 6), ("10", 4), ("4", 4), ("3", 4), ("2", 7))


# -- cells -----------------------------------------------------------------------------------------


@pytest.fixture
def dice(request):
    print(f"seed {SEED} (RAIDFS_TEST_SEED)")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="module")
def rigs(tmp_path_factory):
    """Rigs that several tests use, each with a copy of its own to begin with: by kind."""
    made = {}
    with contextlib.ExitStack() as cleanup:

        def rig(kind, level, count):
            if kind not in made:
                shop = cleanup.enter_context(Workshop(tmp_path_factory.mktemp(kind)))
                dice = random.Random(f"{SEED} {kind}")
                made[kind] = Rig(shop, dice, kind, level, count, crash=True)
            return made[kind]

        yield rig


@pytest.fixture
def directories(rigs):
    return rigs("directories", "6", 5)


@pytest.fixture
def images(rigs):
    return rigs("images", "rs:3+3", 6)


def damage_cells(game, kinds, each=3):
    """Of as many members as may be lost."""
    hit = game.some()
    for member in hit:
        for kind in game.dice.sample(kinds, min(each, len(kinds))):
            game.vandal.cells(member, kind, hit)
    game.hit = hit
    print(game.vandal.story)


def test_cells_of_as_many_members_as_may_be_lost(directories, dice):
    game = Round(directories, dice)
    damage_cells(game, CELL_KINDS)
    assert game.check_names_the_damage().findings
    game.mount()
    game.read_and_judge()
    told = json.loads(run("raidfs-ctl", "status", "--json", game.source).stdout)
    counted = [member["checksum_errors"] for member in told["members"]]
    assert [n for n, count in enumerate(counted) if count] == sorted(game.hit), told


@pytest.mark.slow
def test_cells_in_images(images, dice):
    game = Round(images, dice)
    damage_cells(game, CELL_KINDS)
    assert game.check_names_the_damage().findings
    game.mount("direct")
    game.read_and_judge()


@pytest.mark.slow
def test_cells_on_devices(workshop, dice):
    game = Round(Rig(workshop, dice, "devices", "5", 3), dice)
    damage_cells(game, CELL_KINDS)
    assert game.check_names_the_damage().findings
    game.mount()
    game.read_and_judge()


@pytest.mark.slow
def test_column_files_cut_short_emptied_deleted_and_swapped(directories, dice):
    game = Round(directories, dice)
    damage_cells(game, (*FILE_KINDS, "zones swapped", "members swapped"))
    assert game.check_names_the_damage().findings
    game.mount()
    game.read_and_judge()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directories", "images"])
def test_a_member_that_answers_with_old_data(request, dice, kind):
    """Lost writes: columns as they were some time ago, under a label and metadata of now."""
    game = Round(request.getfixturevalue(kind), dice)
    for member in game.some():
        game.vandal.old_data(member, game.rig.old[member])
    print(game.vandal.story)
    assert game.check_names_the_damage().findings
    game.mount()
    game.read_and_judge()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("direct",), ("nolane",)])
def test_damage_while_mounted(rigs, request, dice, options):
    """Cells, labels and copies of metadata, under a mount that has read everything before."""
    game = Round(request.getfixturevalue("images" if "nolane" in options else "directories"), dice)
    game.mount(*options)
    game.live = True
    game.read_all()
    damage_cells(game, CELL_KINDS)
    game.metadata_hit = game.vandal.pages(0.3)
    for member in game.some(4):
        game.damage_label(member, [dice.randrange(2)])
    game.read_and_judge()


# -- labels and metadata ---------------------------------------------------------------------------


@pytest.mark.slow
def test_labels_and_metadata_copies(directories, dice):
    """One copy of each label, and of each page and of the log all copies but one."""
    game = Round(directories, dice)
    for member in range(5):
        game.damage_label(member, [dice.randrange(2)])
    game.damage_metadata()
    print(game.vandal.story)
    assert game.check_names_the_damage().findings
    game.mount()
    game.read_and_judge()


@pytest.mark.slow
def test_both_labels_of_as_many_members_as_may_be_lost(images, dice):
    """Nobody goes on without them unasked; asked, all is there, with metadata damaged as well."""
    game = Round(images, dice)
    for member in game.some():
        game.damage_label(member, [0, 1])
    game.damage_metadata(keeper=dice.choice([m for m in range(6) if m not in game.gone]))
    print(game.vandal.story)
    game.check_names_the_damage()
    game.mount()
    game.read_and_judge()


# -- wrong members ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("label", ["its label", "own label"])
def test_a_member_holds_what_another_does(directories, dice, label):
    game = Round(directories, dice)
    one, other = game.some(2)
    paths = [game.rig.members[number] for number in (one, other)]
    kept = (paths[0] / "label").read_bytes()
    shutil.rmtree(paths[0])
    shutil.copytree(paths[1], paths[0])
    if label == "own label":
        (paths[0] / "label").write_bytes(kept)
        game.check_names_the_damage()
    else:
        refused = game.volume.mount(source=paths[1], expect=1)
        assert "both hold member" in refused.stderr and str(paths[0]) in refused.stderr
        shutil.rmtree(paths[0])
        game.gone = {one}
    game.mount()
    game.read_and_judge()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["all", "metadata"])
def test_a_member_holds_what_another_volume_does(directories, tmp_path, dice, what):
    """Whichever volume was opened more often, and whoever is named."""
    game = Round(directories, dice)
    (number,) = game.some(1)
    member = game.rig.members[number]
    make_members(tmp_path, 5, "6")
    foreign = tmp_path / f"member{number}"
    trio.run(opened_often, [str(foreign)], dice.choice((0, 1, 2, 20)))
    if what == "all":
        shutil.rmtree(member)
        shutil.copytree(foreign, member)
    else:
        shutil.rmtree(member / "metadata")
        shutil.copytree(foreign / "metadata", member / "metadata")
    game.gone = {number}
    if what == "all":
        game.check_names_the_damage()
        game.mount()
    else:  # its label is good, so that is found out only when its metadata are looked at
        findings = check_volume(str(game.source)).findings
        assert [finding.code for finding in findings] == ["metadata.member"]
        game.volume.mount(source=game.source)
    game.read_and_judge()


async def opened_often(paths, times):
    for _ in range(times):
        store = await open_store(paths)
        await store.close()
        store.assembly.close()


# -- beyond redundancy -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["directories", "images"])
def test_beyond_redundancy_exactly_those_pages_are_lost(request, dice, kind):
    game = Round(request.getfixturevalue(kind), dice)
    survey, rig = game.survey, game.rig
    damage_cells(game, ("bits", "ranges"), each=1)
    for cell in dice.sample(sorted(survey.users), 4):
        zone, row, column = cell
        others = [c for c in range(survey.codes[zone].width) if c != column]
        for number in (column, *dice.sample(others, rig.tolerance)):
            place = survey.columns[zone, number]
            patch(
                place.path, place.base + row * PAGE + dice.randrange(PAGE - 50), dice.randbytes(50)
            )
    wrong = survey.wrong()
    beyond = survey.beyond(wrong)
    lost = survey.pages_of(beyond)
    assert lost
    report = game.check_names_the_damage()
    assert any("can't" in finding.text for finding in report.findings)
    game.volume.check(expect=4)
    game.mount()
    broken = game.read_all(lost)
    assert broken
    errors = game.errors()
    assert sum(errors) > 0
    if has_scrub():
        command = ("raidfs-ctl", "scrub", "start", "--wait", "--json", game.volume.mountpoint)
        told = json.loads(game.volume.shop.run(*command, expect=1).stdout)
        named = {(file["snapshot"], file["path"].lstrip("/")) for file in told["files"]}
        named = {(view, path) for view, path in named if not path.startswith("inode ")}  # nameless
        assert named == {(view, path) for view, paths in broken.items() for path in paths}
    assert game.read_all(lost) == broken
    (game.volume.mountpoint / "new").write_bytes(b"the volume goes on")
    unmount(game.volume)
    left = survey.wrong() & survey.read_by_somebody(wrong)
    assert left and left <= beyond
    assert "Unrecoverable" in Survey(rig.members).events


# -- all of it at once -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_random_damage(workshop, number):
    """Cells of any m members, some of which may lose their labels, and metadata and labels of any,
    before a mount or under it."""
    seed = SEED + number
    print(f"RAIDFS_TEST_SEED={seed}")
    dice = random.Random(f"{seed} random")
    level, count = dice.choice(SHAPES)
    kind = dice.choice(("directories", "directories", "images"))
    rig = Rig(workshop, dice, kind, level, count, crash=dice.random() < 0.6)
    for _ in range(2):
        play_at_random(Round(rig, dice))


def play_at_random(game):
    dice, rig = game.dice, game.rig
    hit = game.some()
    live = dice.random() < 0.3
    options = dice.choice(((), (), ("direct",), ("nolane",)))
    lost = dice.sample(hit, dice.randint(0, len(hit))) if dice.random() < 0.3 and not live else ()
    if live:
        game.live = True
        game.mount(*options)
        if dice.random() < 0.5:
            game.read_all()
    for member in hit:
        if member in lost:
            game.damage_label(member, [0, 1])
        elif dice.random() < 0.2 and not live:
            game.vandal.old_data(member, rig.old[member])
        else:
            kinds = CELL_KINDS + (FILE_KINDS if rig.kind == "directories" and not live else ())
            for kind in dice.sample(kinds, dice.randint(0, 4)):
                game.vandal.cells(member, kind, [m for m in hit if m not in lost])
    for member in range(len(rig.members)):
        if member not in lost and dice.random() < 0.4:
            game.damage_label(member, [dice.randrange(2)])
    keeper = dice.choice([m for m in range(len(rig.members)) if m not in lost])
    if live:
        game.metadata_hit = game.vandal.pages(dice.choice((0.0, 0.05, 0.5)))
    elif dice.random() < 0.6:
        game.damage_metadata(keeper)
    print(options, "live" if live else "", game.vandal.story)
    if not live:
        game.check_names_the_damage()
        game.mount(*options)
    game.read_and_judge()
