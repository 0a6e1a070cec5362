"""Moves: the tables alone, and in a world of crashes, lost connections and group snapshots."""

import itertools
import random

import msgspec
import pytest
from moving import SABOTAGES, Violation, World

from raidfs.group import move as m
from raidfs.group.messages import Transfer

PEER = "0b" * 16
OUT = m.SourceRow("offered", PEER, 1, b"f", 2, b"f", (), 10)
IN = m.TargetRow("staging", PEER, 1, b"f", 10)
STAGED = m.Staged(b"stamp", 7, b"f")


def kinds(actions):
    return [type(one).__name__ for one in actions]


def test_the_way_of_a_source():
    core = m.Source(OUT)
    assert core.start() == [m.Keep(OUT)]
    assert core.handle(m.Kept()) == [m.Send(m.Offered(b"f", (), 10))]
    (keep,) = core.handle(m.Heard(STAGED))
    assert keep.row.state == "giving" and keep.row.stamp == b"stamp"
    assert core.handle(m.Kept()) == [m.Give(b"stamp")]
    assert core.handle(m.GivenAway()) == [m.Send(m.Given(7, b"f"))] == core.handle(m.Up())
    assert core.handle(m.Cancel("too late")) == []
    assert core.handle(m.Heard(m.Refused("too late"))) == []
    assert core.handle(m.Heard(m.Taken(b"g"))) == [m.Drop()]
    assert core.handle(m.Dropped()) == [m.Send(m.Settled()), m.Finish(b"g")]


def test_the_way_of_a_target():
    core = m.Target(IN)
    assert core.start() == [m.Keep(IN)]
    assert core.handle(m.Kept()) == [m.Stage()]
    assert kinds(core.handle(m.Content(b"stamp"))) == ["Keep"]
    said = [m.Send(m.Staged(b"stamp", 1, b"f"))]
    assert core.handle(m.Kept()) == said == core.handle(m.Up())
    assert core.handle(m.Heard(m.Given(1, b"f"))) == [m.Link()] and core.is_owned
    assert core.handle(m.Heard(m.Withdrawn())) == []
    assert kinds(core.handle(m.Linked(b"g"))) == ["Keep"] and not core.is_owned
    assert core.handle(m.Kept()) == [m.Send(m.Taken(b"g"))] == core.handle(m.Up())
    assert core.handle(m.Heard(m.Given(1, b"f"))) == [m.Send(m.Taken(b"g"))]
    assert core.handle(m.Heard(m.Settled())) == [m.Drop()]
    assert core.handle(m.Dropped()) == [m.Finish(b"g")]


def test_what_changed_is_staged_anew():
    source, target = m.Source(OUT), m.Target(IN)
    source.state, target.state = "giving", "staged"
    source.row = m.SourceRow("giving", PEER, 1, b"f", 2, b"f", (), 10, stamp=b"old")
    target.row = m.TargetRow("staged", PEER, 1, b"f", 10, stamp=b"old")
    assert kinds(source.handle(m.Changed())) == ["Keep"]
    (said,) = source.handle(m.Kept())
    assert said.payload.stale == b"old"
    assert source.handle(m.Heard(m.Staged(b"old", 1, b"f"))) == []
    assert kinds(target.handle(m.Heard(m.Offered(b"f", (), 10)))) == ["Send"]
    assert kinds(target.handle(m.Heard(said.payload))) == ["Keep"]
    assert target.handle(m.Kept()) == [m.Stage()]


def test_refused_and_given_up():
    for event, why in ((m.Heard(m.Refused("no")), "no"), (m.Cancel("why"), "why")):
        core = m.Source(OUT)
        core.handle(m.Kept())
        assert core.handle(event) == [m.Drop()]
        assert core.handle(m.Dropped()) == [m.Send(m.Withdrawn()), m.Finish(b"", why)]


def test_a_persons_word():
    """On what was given to a volume that is gone, and on what is staged from one."""
    for event, link in ((m.Believe(), False), (m.TakeBack(), True)):
        core = m.Source(msgspec.structs.replace(OUT, state="giving", to_name=b"g"), "given")
        actions = core.handle(event)
        if link:
            assert actions == [m.Link()] and core.links and core.is_given
            assert core.handle(m.Heard(m.Taken(b"f"))) == [], "too late"
            actions = core.handle(m.Linked(b"f"))
        assert actions == [m.Drop()] and not core.is_given
        said, finish = core.handle(m.Dropped())
        assert said == m.Send(m.Withdrawn() if link else m.Settled())
        assert finish.name == (b"" if link else b"g") and bool(finish.why) == link
    assert m.answer_of_source(STAGED) == m.Withdrawn(), "should it come back"
    assert m.Source(OUT, "offered").handle(m.TakeBack()) == [m.Drop()]
    assert m.Source(OUT, "offered").handle(m.Believe()) == []
    target = m.Target(IN, "staged")
    assert target.handle(m.Believe()) == [m.Link()]
    assert kinds(target.handle(m.Linked(b"f")) + target.handle(m.Kept())) == ["Keep", "Send"]
    assert target.handle(m.TakeBack()) == [] and target.handle(m.Believe()) == [m.Drop()]
    for state in ("begin", "staging", "sealing", "staged"):
        assert m.Target(IN, state).handle(m.TakeBack()) == [m.Drop()]


def test_every_event_has_an_answer_in_every_state():
    said = [
        m.Offered(b"f", (), 1), m.Withdrawn(), m.Given(1, b"f"), m.Staging(), STAGED,
        m.Refused("no"), m.Taken(b"f"), m.Settled(), m.Unknown(),
    ]  # fmt: skip
    events = [
        *map(m.Heard, said), m.Up(), m.Kept(), m.Dropped(), m.GivenAway(), m.Changed(),
        m.Cancel(""), m.Content(b"s"), m.Unable("no"), m.Linked(b"f"), m.Believe(), m.TakeBack(),
    ]  # fmt: skip
    for (side, row), table in (((m.Source, OUT), m.SOURCE), ((m.Target, IN), m.TARGET)):
        for state, event in itertools.product(table, events):
            core = side(row, state)
            core.handle(event)
            assert core.state in table
        assert {kind for rules in table.values() for kind in rules} <= {*map(m.kind_of, events)}


def test_messages_are_told_apart():
    for payload in (m.Offered(b"f", (b"d",), 1), m.Given(1, b"f"), STAGED, m.Settled()):
        message = m.transfer(b"m" * 16, payload)
        assert m.payload_of(message) == payload
        other = "ack" if message.step != "ack" else "offer"
        assert m.payload_of(Transfer(message.move, other, message.payload)) is None
    assert m.payload_of(Transfer(b"m" * 16, "ack", b"\xff")) is None


@pytest.mark.parametrize("seed", range(8))
def test_random_worlds(seed):
    """Seeds of one number each replay what was found."""
    sums = [0, 0, 0, 0]
    for part in range(40):
        world = World(random.Random(seed * 1000 + part), count=2 + part % 2)
        try:
            world.run(400)
        except Violation as error:
            raise AssertionError(f"seed {seed * 1000 + part}: {error}") from error
        figures = (world.moved, len(world.committed), world.recorded, world.crashes)
        sums = [a + b for a, b in zip(sums, figures, strict=True)]
    assert all(sums), sums
    print("moves, snapshots, with something recorded, crashes:", sums)


FOUND_AS = {"not hidden again": "two places", "given before the row is durable": "two places",
            "taken said early": "a snapshot holds", "not repeated": "left in"}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotage_is_found(name):
    """In worlds that hold without it."""
    words = FOUND_AS.get(name, "a snapshot holds")
    for seed in range(400):
        try:
            World(random.Random(seed), count=2 + seed % 2, sabotage=name).run(400)
        except Violation as error:
            assert words in str(error), f"seed {seed}: {error}"
            World(random.Random(seed), count=2 + seed % 2).run(400)
            return
    raise AssertionError("not found")
