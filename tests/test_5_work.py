"""Works of a group: the tables alone, and in a world of crashes, lost connections and others."""

import itertools
import random
from collections import Counter

import pytest
from working import IDS, SABOTAGES, Violation, World

from raidfs.group import work_events as e
from raidfs.group.charter import (
    Able,
    Agreed,
    Bind,
    Intend,
    Objected,
    Release,
    Verdict,
    Work,
    WorkAsked,
    WorkDone,
)
from raidfs.group.work import Works
from raidfs.group.work_sides import COORDINATOR, PARTICIPANT, Coordinator, Participant

A, B = IDS[:2]
N = b"n" * 16
ROLLBACK = Work(N, "rollback", b"s" * 16, "s", A, (A, B))
WORDS = {Able, Agreed, Bind, Objected, Release, WorkAsked, WorkDone}


def kinds(actions):
    return [type(one).__name__ for one in actions]


def said(actions):
    return [one.message for one in actions if isinstance(one, e.Send)]


def participant(*events):
    """Of A's work, in B; and what came of the last event."""
    works, actions = Works(B), []
    for event in (e.Up(A), e.Heard(A, Intend(ROLLBACK)), *events):
        actions = works.handle(event)
    return works, actions


AGREED = (e.Prepared(N), e.Heard(A, Bind(N)), e.Kept(N, e.INTENT))


def test_the_way_of_a_participant():
    works, actions = participant()
    assert actions == [e.Prepare(ROLLBACK)]
    assert said(works.handle(e.Prepared(N))) == [Able(N)]
    assert works.handle(e.Heard(A, Bind(N))) == [e.Keep(ROLLBACK, e.INTENT)]
    assert said(works.handle(e.Kept(N, e.INTENT))) == [Agreed(N)]
    assert works.phase(N) == "in doubt"
    assert works.handle(e.Heard(A, Verdict(N, True))) == [e.Do(ROLLBACK)]
    assert said(works.handle(e.Ended(N))) == [WorkDone(N)]
    assert said(works.handle(e.Heard(A, Verdict(N, True)))) == [WorkDone(N)]
    assert works.handle(e.Heard(A, Release(N))) == [e.Free(N)]
    assert not works.pending()


def test_the_way_of_a_coordinator():
    works = Works(A)
    works.handle(e.Up(B))
    actions = works.handle(e.Start(ROLLBACK))
    assert said(actions) == [Intend(ROLLBACK)] and e.Prepare(ROLLBACK) in actions
    assert said(works.handle(e.Prepared(N))) == []
    actions = works.handle(e.Heard(B, Able(N)))
    assert said(actions) == [Bind(N)] and e.Keep(ROLLBACK, e.INTENT) in actions
    assert said(works.handle(e.Kept(N, e.INTENT))) == []
    assert works.handle(e.Heard(B, Agreed(N))) == [e.Keep(ROLLBACK, e.VERDICT)]
    assert said(works.handle(e.Heard(B, WorkAsked(N)))) == []  # not decided yet
    actions = works.handle(e.Kept(N, e.VERDICT))
    assert said(actions) == [Verdict(N, True)] and e.Do(ROLLBACK) in actions
    assert said(works.handle(e.Heard(B, WorkDone(N)))) == []
    actions = works.handle(e.Ended(N))
    assert said(actions) == [Release(N)] and e.Finished(N, frozenset()) in actions
    assert e.Free(N) in actions and e.Drop(N, e.VERDICT) in actions
    works.handle(e.Dropped(N, e.VERDICT))
    assert not works.pending()


@pytest.mark.parametrize("event", [e.Timeout(N, "able"), e.Down(A), e.Heard(A, Verdict(N, False))])
def test_who_has_not_promised_withdraws(event):
    works, actions = participant(e.Prepared(N), event)
    assert e.Free(N) in actions and not works.pending()
    works.handle(e.Up(A))
    (word,) = said(works.handle(e.Heard(A, Bind(N))))
    assert isinstance(word, Objected)


@pytest.mark.parametrize("event", [e.Timeout(N, "able"), e.Down(A), e.Timeout(N, "hold")])
def test_who_has_promised_does_not(event):
    works, actions = participant(*AGREED, event)
    assert kinds(actions) == (["Refuse"] if event == e.Timeout(N, "hold") else [])
    assert works.phase(N) == "in doubt"
    assert said(works.handle(e.Up(A))) == [WorkAsked(N)]
    assert kinds(works.handle(e.Heard(A, Verdict(N, False)))) == ["Free", "Drop"]


def test_given_up_while_the_promise_is_being_written():
    """It must not be left in doubt, as it was when the no came before the promise was durable."""
    works, actions = participant(*AGREED[:2], e.Heard(A, Verdict(N, False)))
    assert actions == []
    assert kinds(works.handle(AGREED[2])) == ["Free", "Drop"]
    works.handle(e.Dropped(N, e.INTENT))
    assert not works.pending()


def test_who_knows_nothing_says_no():
    works = Works(A)
    works.handle(e.Up(B))
    for word in (Able(N), Agreed(N), WorkAsked(N)):
        assert said(works.handle(e.Heard(B, word))) == [Verdict(N, False)]


def test_a_second_work_is_objected_to():
    works, _ = participant(e.Prepared(N))
    works.handle(e.Up(IDS[2]))
    other = Work(b"o" * 16, "delete", b"s" * 16, "s", IDS[2], (A, B, IDS[2]))
    (word,) = said(works.handle(e.Heard(IDS[2], Intend(other))))
    assert isinstance(word, Objected) and "under way" in word.reason


def test_a_person_decides_what_is_in_doubt_and_nothing_else():
    for go, expected in ((True, ["Do"]), (False, ["Free", "Drop"])):
        works, _ = participant(*AGREED, e.Down(A), e.Timeout(N, "hold"))
        assert kinds(works.handle(e.Resolve(N, go))) == expected
    works, _ = participant(e.Prepared(N))
    (rejected,) = works.handle(e.Resolve(N, True))
    assert "able" in rejected.why
    (rejected,) = works.handle(e.Resolve(b"?" * 16, True))
    assert "unknown" in rejected.why


def test_who_is_never_coming_back_is_not_waited_for():
    works, _ = Works.recover(A, [(e.VERDICT, ROLLBACK)])
    assert B in works.phase(N)
    assert kinds(works.handle(e.Resolve(N, False))) == ["Rejected"]  # it is decided
    assert works.handle(e.Resolve(N, True)) == [e.Drop(N, e.VERDICT)]
    works, _ = Works.recover(A, [(e.VERDICT, ROLLBACK)])
    assert works.handle(e.Membership(frozenset({A, B}))) == []
    assert works.handle(e.Membership(frozenset({A}))) == [e.Drop(N, e.VERDICT)]


def test_what_could_not_be_done_is_tried_again():
    works, _ = participant(*AGREED, e.Heard(A, Verdict(N, True)))
    actions = works.handle(e.Failed(N, "no room"))
    assert kinds(actions) == ["Refuse", "StartTimer"] and "no room" in works.phase(N)
    assert works.handle(e.Timeout(N, "retry")) == [e.Do(ROLLBACK)]


def test_every_event_has_an_answer_in_every_state():
    words = [Intend(ROLLBACK), Verdict(N, True), Verdict(N, False), Objected(N, "no")]
    words += [word(N) for word in WORDS - {Objected}]
    events = [e.Heard(peer, word) for peer in (A, B) for word in words]
    events += [e.Up(A), e.Up(B), e.Down(A), e.Down(B), e.Cancel(N), e.Prepared(N), e.Ended(N)]
    events += [
        e.Membership(frozenset({A})),
        e.Failed(N, "no"),
        e.Resolve(N, True),
        e.Resolve(N, False),
    ]
    events += [one(N, kind) for one in (e.Kept, e.Dropped) for kind in (e.INTENT, e.VERDICT)]
    events += [e.Timeout(N, name) for name in ("vote", "able", "hold", "retry", "done")]
    states = itertools.product([*COORDINATOR, None], [*PARTICIPANT, None])
    for (vote, part), event, me in itertools.product(states, events, (A, B)):
        works = Works(me)
        if vote not in (None, "ended"):
            works.votes[N] = Coordinator(ROLLBACK, works, vote)
        if part not in (None, "ended"):
            works.parts[N] = Participant(ROLLBACK, works, part)
        works.handle(event)
        assert all(one.state in COORDINATOR for one in works.votes.values())
        assert all(one.state in PARTICIPANT for one in works.parts.values())


@pytest.mark.parametrize("losses", [True, False])
def test_random_worlds(losses):
    """Seeds of one number each replay what was found."""
    figures = Counter()
    for seed in range(300):
        world = World(random.Random(seed), count=2 + seed % 4, losses=losses)
        try:
            world.run(250)
            world.check_end()
        except Violation as error:
            raise AssertionError(f"seed {seed}, losses {losses}: {error}") from error
        figures += world.figures
    print(dict(figures))
    wanted = {"done", "not done", "pending", "crashes"} if losses else {"done", "not done"}
    assert all(figures[word] > 20 for word in wanted), figures


def gone(seed, sabotage=""):
    """A world in which one volume never comes back, and a person decides in the end."""
    world = World(random.Random(seed), count=2 + seed % 4, sabotage=sabotage)
    for _ in range(100):
        own = world.steps()
        if own and world.chance.random() < 0.9:
            world.step(own)
        else:
            world.begin()
    volume = world.chance.choice([*world.volumes.values()])
    if volume.up:
        volume.crash()
    volume.is_gone = True
    world.settle()
    world.check_nobody_waits()
    in_doubt = sum(bool(one.works.parts) for one in world.volumes.values() if one.up)
    world.resolve()
    world.settle()
    world.check_end()
    return in_doubt, world.figures["resolved"]


def test_gone_for_ever():
    """Nobody waits without end, and what is in doubt a person ends."""
    in_doubt = resolved = 0
    for seed in range(200):
        try:
            found = gone(seed)
        except Violation as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        in_doubt, resolved = in_doubt + found[0], resolved + found[1]
    print("in doubt:", in_doubt, "resolved:", resolved)
    assert in_doubt > 10 and resolved > in_doubt


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_sabotage_is_found(sabotage):
    """In worlds that hold without it."""
    for seed in range(2000):
        count, losses = 2 + seed % 4, sabotage != "released before all are done"
        try:
            if sabotage == "users wait for ever":
                gone(seed, sabotage)
                continue
            world = World(random.Random(seed), count, sabotage, losses)
            world.run(250)
            world.check_end()
        except Violation as error:
            found = any(words in str(error) for words in SABOTAGES[sabotage])
            assert found, f"seed {seed}: {error}"
            return
    raise AssertionError("not found")
