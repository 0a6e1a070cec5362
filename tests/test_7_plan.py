"""`raidfs-ctl plan`: sizes as `create` has them, times as the equations have them, and refusals."""

import itertools
import json
import math

import pytest
from click.testing import CliRunner

from raidfs import reliability
from raidfs.cli import forecast as forecasts
from raidfs.cli.main import control
from raidfs.cli.output import sentence
from raidfs.cli.plan import every_level, share_text, time_text
from raidfs.errors import RaidfsError
from raidfs.raid.code import code_for
from raidfs.raid.create import plan_volume
from raidfs.raid.places import peek
from raidfs.store.make import make_volume

YEAR = reliability.HOURS_PER_YEAR


def ctl(*words):
    """What is printed; an error of the world as its sentence."""
    done = CliRunner().invoke(control, [str(word) for word in words], catch_exceptions=True)
    if isinstance(done.exception, RaidfsError):
        return sentence(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def told(*words):
    return json.loads(ctl("plan", *words, "--json"))


def causes(document):
    return {cause["cause"]: cause for cause in document["causes"]}


def images(directory, *sizes):
    paths = [directory / f"image{number}" for number in range(len(sizes))]
    for path, nbytes in zip(paths, sizes, strict=True):
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(nbytes)
    return paths


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["0", "1", "2", "3", "4", "5", "6", "10", "rs:2+2"])
def test_usable_sizes_are_those_of_create(tmp_path, level):
    """By size, by path, and as `create --dry-run` tells it, of unequal members."""
    sizes = [256 << 20, 256 << 20, 320 << 20, 512 << 20]
    paths = images(tmp_path, *sizes)
    created = json.loads(ctl("create", "--dry-run", "--json", "--level", level, *paths))
    by_path = told("--level", level, *paths)
    by_size = told("--level", level, "2x256M", "320M", "512M")
    for name in ("level", "width", "losses_survived", "usable_bytes", "zone_bytes", "cell_bytes"):
        assert created[name] == by_path[name] == by_size[name], name
    assert by_path["members"] == created["members"]
    assert [m["zones"] for m in by_size["members"]] == [m["zones"] for m in created["members"]]
    assert all(path.stat().st_blocks == 0 for path in paths)  # nothing was written


def test_options_of_the_shape(tmp_path):
    paths = images(tmp_path, *[128 << 20] * 5)
    words = ["--level", "5", "--width", "3", "--zone-size", "2M", "--cell-size", "16K"]
    created = json.loads(ctl("create", "--dry-run", "--json", *words, *paths))
    found = told(*words, "5x128M")
    assert (found["width"], found["zone_bytes"], found["cell_bytes"]) == (3, 2 << 20, 16384)
    assert found["usable_bytes"] == created["usable_bytes"]


@pytest.mark.parametrize("kind", ["image", "directory"])
def test_a_member_stands_for_its_volume(tmp_path, kind):
    if kind == "image":
        paths = images(tmp_path, *[96 << 20] * 4)
    else:
        paths = [tmp_path / f"d{number}" for number in range(4)]
        for path in paths:
            path.mkdir()
    size = 64 << 20 if kind == "directory" else None
    plan = plan_volume(
        [str(path) for path in paths], level="6", size_bytes=size, zone_bytes=1 << 19
    )
    make_volume(plan, now_ns=lambda: 1)
    label = peek(str(paths[2]))
    found = told(paths[2])
    assert (found["level"], found["width"], len(found["members"])) == ("6", 4, 4)
    assert found["usable_bytes"] == plan.usable_bytes and found["zone_bytes"] == 1 << 19
    assert [m["path"] for m in found["members"]] == [str(path) for path in paths]
    other = told("--level", "5", paths[0])
    assert other["level"] == "5" and other["usable_bytes"] > found["usable_bytes"]
    two = told("--level", "1", *paths[:2])  # several stand for themselves
    assert len(two["members"]) == 2 and two["zone_bytes"] == 1 << 20
    mixed = told("--level", "5", paths[0], paths[1], "96M")
    assert len(mixed["members"]) == 3
    assert peek(str(paths[2])) == label  # nothing was changed
    paths[3].rename(tmp_path / "away")
    assert len(told(paths[0])["members"]) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["4X"], "neither a size"),
        (["0x4T"], "1 to 256 members"),
        (["257x4T"], "1 to 256 members"),
        (["200x4T", "57x4T"], "1 to 256 members"),
        (["999999999x4T"], "1 to 256 members"),
        (["3x1M"], "too small"),
        (["3x4T", "--level", "6"], "needs at least 4 members"),
        (["3x4T", "--level", "7"], "unknown level"),
        (["5x4T", "--level", "rs:2+2", "--width", "5"], "is 4 members wide"),
        (["/dev/null"], "can't be a member"),
        (["/does/not/exist"], "neither a size"),
        (["3x4T", "--mttf", "nan"], "not a number above zero"),
        (["3x4T", "--mttf", "inf"], "not a number above zero"),
        (["3x4T", "--mttf", "0"], "not a number above zero"),
        (["3x4T", "--mttf", "-1"], "not a number above zero"),
        (["3x4T", "--correlation", "0.9"], "from 1 on"),
        (["3x4T", "--bit-error-rate", "1"], "from 2 on"),
        (["3x4T", "--rebuild-speed", "0"], "above zero"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_are_told(words, said):
    assert said in ctl("plan", *words)


def test_a_place_named_twice(tmp_path):
    paths = images(tmp_path, 96 << 20, 96 << 20, 96 << 20)
    assert "the same place" in ctl("plan", paths[0], paths[1], paths[0])
    make_volume(plan_volume([str(path) for path in paths]), now_ns=lambda: 1)
    assert "named twice" in ctl("plan", paths[0], paths[1], paths[0])


# -- times ----------------------------------------------------------------------------------------


def test_the_survey_s_parameters_give_the_survey_s_figures():
    """One group of 16 (the survey has N = 106.67 disks in such groups, so its times are N / 16
    shorter): table 5 but for what is kept free for metadata."""
    words = ["16x5G", "--level", "5", "--mttf", "200000", "--mttr", "1", "--bit-error-rate", "1e14"]
    found = told(*words, "--correlation", "10", "--crash-mttf", "720", "--crash-mttr", "1")
    groups = 100 * 16 / 15 / 16
    years = {name: cause["mttdl_hours"] / YEAR / groups for name, cause in causes(found).items()}
    assert years["correlated"] == pytest.approx(285, abs=0.5)
    assert years["crash"] == pytest.approx(154, abs=0.5)
    assert years["independent"] == pytest.approx(2854, abs=0.5)
    used = found["assumed"]["member_bytes"] / 5e9
    assert years["bit_error"] == pytest.approx(36 / used, rel=0.01)
    assert found["dominant"] == "bit_error"


def test_a_crash_is_told_but_not_counted():
    found = told("5x4T", "--level", "5")
    every = causes(found)
    assert not every["crash"]["counted"] and "before anything refers" in every["crash"]["why"]
    assert not every["independent"]["counted"]  # it is part of the correlated
    counted = [each["mttdl_hours"] for each in every.values() if each["counted"]]
    assert len(counted) == 2
    assert found["mttdl_hours"] == pytest.approx(reliability.harmonic_sum(counted))
    assert found["probability"] == pytest.approx(-math.expm1(-10 * YEAR / found["mttdl_hours"]))
    text = ctl("plan", "5x4T", "--level", "5")
    assert "removed: a row is written once" in " ".join(text.split())
    assert "dominant: 1 member lost, then an unreadable sector" in text
    assert "no parity is shared" in " ".join(ctl("plan", "4x4T", "--level", "10").split())


def test_what_each_option_does():
    def mttdl(name, *words):
        return causes(told("6x4T", "--level", "6", *words))[name]["mttdl_hours"]

    plain = {name: mttdl(name) for name in ("independent", "correlated", "bit_error", "crash")}
    assert mttdl("independent", "--mttf", "1200000") == pytest.approx(8 * plain["independent"])
    assert mttdl("bit_error", "--mttf", "1200000") == pytest.approx(4 * plain["bit_error"])
    assert mttdl("correlated", "--correlation", "1") == pytest.approx(plain["independent"])
    assert mttdl("correlated", "--correlation", "5") == pytest.approx(8 * plain["correlated"])
    assert mttdl("bit_error", "--bit-error-rate", "1e20") > 1e4 * plain["bit_error"]
    assert mttdl("crash", "--crash-mttf", "1440") == pytest.approx(2 * plain["crash"])
    assert mttdl("crash", "--crash-mttr", "2") == pytest.approx(plain["crash"] / 2)
    one = told("6x4T", "--level", "6", "--years", "1")
    assert one["probability"] == pytest.approx(one["years"] * YEAR / one["mttdl_hours"], rel=1e-3)
    repair = told("6x4T", "--rebuild-speed", "1M", "--replacement", "7")["assumed"]
    assert repair["mttr_hours"] == pytest.approx(7 + repair["member_bytes"] / (1 << 20) / 3600)
    assert told("6x4T", "--mttr", "3")["assumed"]["mttr_hours"] == 3


def test_of_pairs_only_both_of_one_are_fatal():
    """Level 10: as the survey's equation for N disks in groups of two. More members than width:
    pairs differ from zone to zone, and any two are."""
    words = ["--level", "10", "--mttf", "1e6", "--mttr", "10", "--correlation", "1"]
    found = told("6x1T", *words)
    assert causes(found)["correlated"]["mttdl_hours"] == pytest.approx(1e12 / (6 * 1 * 10))
    assert found["assumed"]["members_read_per_rebuild"] == pytest.approx(1)
    spread = told("6x1T", *words, "--width", "4")
    assert causes(spread)["correlated"]["mttdl_hours"] == pytest.approx(1e12 / (6 * 5 * 10))
    assert spread["assumed"]["members_read_per_rebuild"] == pytest.approx(1)


def test_fatal_shares_are_those_of_the_codes():
    of = forecasts.losses_survived
    for level, width, lost in (
        ("5", 5, 1),
        ("6", 6, 2),
        ("1", 3, 2),
        ("rs:3+3", 6, 3),
        ("0", 4, 0),
    ):
        assert of(code_for(level, width)) == (lost, 1)
    assert of(code_for("10", 8)) == (1, pytest.approx(4 / 28))
    assert of(code_for("2", 4)) == (3, 1)  # k = 1: copies, which survive more than level 2 promises
    code = code_for("2", 7)  # the Hamming code: words of weight 3 are 7 of the 35 triples
    assert of(code) == (2, pytest.approx(7 / 35))
    for level, width in itertools.product(("2", "10"), (4, 6, 8, 10)):
        code = code_for(level, width)
        survived, share = of(code)
        every = [set(lost) for lost in itertools.combinations(range(width), survived + 1)]
        assert sum(not code.survives(lost) for lost in every) == pytest.approx(share * len(every))
        fewer = itertools.combinations(range(width), survived)
        assert all(code.survives(set(lost)) for lost in fewer)


def test_more_members_than_width_are_told_to_be_one_group():
    narrow = told("8x4T", "--level", "6", "--width", "5", "--mttr", "10")
    wide = told("8x4T", "--level", "6", "--mttr", "10")
    same = [causes(each)["correlated"]["mttdl_hours"] for each in (narrow, wide)]
    assert same[0] == pytest.approx(same[1])  # any three of eight
    # Of a lost member's zones only those on the other lost one, too, have nothing to spare.
    assert narrow["assumed"]["members_read_per_rebuild"] == pytest.approx(3 * 4 / 7)
    assert wide["assumed"]["members_read_per_rebuild"] == 6


def test_no_redundancy_is_told_as_what_it_is():
    found = told("2x4T", "--level", "0", "--mttf", "1000")
    assert found["mttdl_hours"] == 500 and found["dominant"] == "independent"
    assert causes(found)["bit_error"]["mttdl_hours"] is None
    assert "any member lost" in ctl("plan", "2x4T", "--level", "0")


def test_figures_beyond_the_equations_are_marked():
    words = ["12x20T", "--level", "rs:8+4", "--mttr", "500"]
    assert told(*words)["order_of_magnitude_only"]
    assert "orders of magnitude" in ctl("plan", *words)
    assert not told("6x4T", "--mttr", "1")["order_of_magnitude_only"]


# -- all levels -----------------------------------------------------------------------------------


def test_levels_compared():
    found = told("6x4T", "--level", "all")
    by_level = {each["level"]: each for each in found["levels"]}
    assert list(by_level) == ["0", "1", "2", "3", "4", "5", "6", "10", "rs:3+3"]
    assert not found["refused"]
    assert {"version": 1, **by_level["5"]} == told("6x4T", "--level", "5")
    order = [by_level[level]["mttdl_hours"] for level in ("0", "5", "10", "6", "rs:3+3")]
    assert order == sorted(order)
    text = ctl("plan", "3x4T", "--level", "all")
    assert "level 6 needs at least 4 members" in text and "DOMINANT" in text
    assert "too small" in ctl("plan", "3x1M", "--level", "all")


@pytest.mark.parametrize("count", range(1, 30))
def test_every_level_is_one(count):
    for level in every_level(count):
        if level.startswith("rs:"):
            assert code_for(level, count).tolerance == 3


# -- words ----------------------------------------------------------------------------------------


def test_times_and_shares_in_words():
    years = [0.0001, 0.002, 0.5, 3, 285.4, 38_052, 5e6, 3e12]
    assert [time_text(each * YEAR) for each in years] == [
        "0.88 hours", "18 hours", "182.5 days", "3.0 years", "285 years", "38100 years",
        "5 million years", "3.0e+12 years",
    ]  # fmt: skip
    assert time_text(math.inf) == "never"
    assert [share_text(each) for each in (0, 0.000263, 0.034, 1)] == [
        "0 %", "0.026 %", "3.4 %", "100.0 %"
    ]  # fmt: skip


def test_help_says_where_the_defaults_come_from():
    text = " ".join(ctl("plan", "--help").split())
    for word in ("Examples:", "Chen et al.", "600000", "1e14", "[default: 10]"):
        assert word in text
