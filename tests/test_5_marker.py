"""The marker process, rule by rule: tables and answers, without a world around them."""

import itertools

import msgspec
import pytest

from raidfs.errors import FormatError
from raidfs.group import events as e
from raidfs.group.marker import INITIATOR, PARTICIPANT, Process
from raidfs.group.messages import (
    Decision,
    DecisionKept,
    Done,
    HiddenKept,
    Marker,
    Message,
    Outcome,
    Plan,
    Prepared,
    PreparedKept,
    Query,
    Refused,
    Roster,
    Transfer,
    VisibleKept,
    VolumeResult,
)
from raidfs.group.progress import Kind, Limits, Phase
from raidfs.group.recovery import RECOVERY

A, B, C = ("0a" * 16, "0b" * 16, "0c" * 16)
ROSTER = Roster(7, (A, B, C))
ID, OTHER_ID = b"i" * 16, b"j" * 16


def plan(initiator=A, snapshot=ID, **changes):
    base = Plan(snapshot, "daily", 123, initiator, ROSTER.version, ROSTER.fingerprint)
    return msgspec.structs.replace(base, **changes)


def process(me=A, peers=(A, B, C), limits=None):
    """A process that has sessions with all peers: session 1."""
    made = Process(me, ROSTER, limits)
    for peer in peers:
        if peer != me:
            assert made.handle(e.SessionUp(peer, 1)) == []
    return made


def heard(made, peer, message, session=1):
    return made.handle(e.Received(peer, session, message))


def sent(actions):
    return [(one.peer, one.message) for one in actions if isinstance(one, e.Send)]


def of(actions, kind):
    return [one for one in actions if isinstance(one, kind)]


def transfer(text=b""):
    return Transfer(b"m" * 16, "ownership", text)


# Ways into each phase of snapshot ID. The process is A's.


def recording(mine):
    made = process()
    if mine:
        made.handle(e.Start(plan()))
    else:
        heard(made, B, Marker(plan(B)))
    return made


def settling(mine):
    made = recording(mine)
    for peer in (B, C) if mine else (C,):
        heard(made, peer, Marker(plan(A if mine else B)))
    return made


def prepared():
    made = settling(mine=False)
    made.handle(e.Durable(ID, 5, 90))
    return made


def collecting():
    made = settling(mine=True)
    made.handle(e.Durable(ID, 5, 90))
    return made


def deciding():
    made = collecting()
    heard(made, B, Prepared(ID, 6, 91))
    heard(made, C, Prepared(ID, 7, 92))
    return made


def committing(mine):
    made = deciding() if mine else prepared()
    if mine:
        made.handle(e.Decided(ID))
    else:
        heard(made, B, Decision(ID, "commit"))
    return made


def distributing():
    made = committing(mine=True)
    made.handle(e.Visible(ID))
    return made


def committed(mine=False):
    made = distributing() if mine else committing(mine=False)
    if mine:
        heard(made, B, Done(ID))
        heard(made, C, Done(ID))
    else:
        made.handle(e.Visible(ID))
    return made


def aborted(mine):
    made = recording(mine)
    made.handle(e.GateTimeout(ID))
    return made


WAYS = {
    ("mine", Phase.UNKNOWN): process,
    ("theirs", Phase.UNKNOWN): process,
    ("mine", Phase.RECORDING): lambda: recording(True),
    ("theirs", Phase.RECORDING): lambda: recording(False),
    ("mine", Phase.SETTLING): lambda: settling(True),
    ("theirs", Phase.SETTLING): lambda: settling(False),
    ("theirs", Phase.PREPARED): prepared,
    ("mine", Phase.COLLECTING): collecting,
    ("mine", Phase.DECIDING): deciding,
    ("mine", Phase.COMMITTING): lambda: committing(True),
    ("theirs", Phase.COMMITTING): lambda: committing(False),
    ("mine", Phase.DISTRIBUTING): distributing,
    ("mine", Phase.COMMITTED): lambda: committed(True),
    ("theirs", Phase.COMMITTED): committed,
    ("mine", Phase.ABORTED): lambda: aborted(True),
    ("theirs", Phase.ABORTED): lambda: aborted(False),
}


def every_event(initiator):
    """One of each, and of each message from each peer."""
    for peer in (B, C):
        for message in (
            Marker(plan(initiator)),
            Prepared(ID, 1, 1),
            Refused(ID, "no"),
            Decision(ID, "commit"),
            Decision(ID, "abort", "no"),
            Done(ID),
            Query(ID, initiator),
            Outcome(ID, "commit"),
            Outcome(ID, "abort"),
            transfer(),
        ):
            yield e.Received(peer, 1, message)
        yield e.Received(peer, 9, Done(ID))
        yield e.SessionUp(peer, 1)
        yield e.SessionUp(peer, 2)
        yield e.SessionDown(peer, 1, "test")
        yield e.SessionDown(peer, 9, "test")
        yield e.Transmit(peer, transfer())
    yield e.Start(plan(initiator))
    yield e.Membership(ROSTER)
    yield e.Membership(Roster(8, (A, B)))
    yield e.Membership(Roster(6, (A, B)))
    yield e.Durable(ID, 1, 1)
    yield e.Failed(ID, "test")
    yield e.Resolve(ID, True)
    yield e.Resolve(ID, False)
    for kind in (e.Decided, e.Visible, e.GateTimeout, e.SettleTimeout, e.AskTimeout):
        yield kind(ID)
    for kind in (e.DoneTimeout, e.Cancel, e.Deleted):
        yield kind(ID)


def test_the_ways_lead_there():
    for (_, phase), way in WAYS.items():
        assert way().phase(ID) is phase
    phases = {(whose, phase) for whose, phase in WAYS}
    assert {phase for whose, phase in phases if whose == "mine"} >= set(INITIATOR)
    assert {phase for whose, phase in phases if whose == "theirs"} >= set(PARTICIPANT)


@pytest.mark.parametrize(("whose", "phase"), WAYS)
def test_every_event_has_an_answer_in_every_phase(whose, phase):
    """And a rejected one changes nothing; an abort leaves nothing; the gate is what phases say."""
    initiator = A if whose == "mine" else B
    for event in every_event(initiator):
        made = WAYS[whose, phase]()
        before = made.key()
        actions = made.handle(event)
        if of(actions, e.Rejected):
            assert made.key() == before, event
            assert [one.reason for one in of(actions, e.Rejected)] != [""]
        after = made.phase(ID)
        assert made.gate_shut == (after is Phase.RECORDING)
        if phase not in (Phase.UNKNOWN, Phase.ABORTED) and after is Phase.ABORTED:
            assert of(actions, e.Discard) == [e.Discard(ID)]
            opened = [e.OpenGate(ID, True)] if phase is Phase.RECORDING else []
            assert of(actions, e.OpenGate) == opened
        if phase in (Phase.COMMITTING, Phase.DISTRIBUTING, Phase.COMMITTED):
            assert after is not Phase.ABORTED, event


@pytest.mark.parametrize(("whose", "phase"), WAYS)
def test_unprepared_and_undecided_may_abort_and_nobody_else(whose, phase):
    """Losing all sessions: who is in doubt, or knows of the commit, keeps the snapshot."""
    made = WAYS[whose, phase]()
    for peer in (B, C):
        made.handle(e.SessionDown(peer, 1, "test"))
    dies = (Phase.RECORDING, Phase.SETTLING, Phase.COLLECTING)
    assert made.phase(ID) is (Phase.ABORTED if phase in dies else phase)


BY_ITSELF = {
    "settle timeout": e.SettleTimeout(ID),
    "cancel": e.Cancel(ID),
    "failed": e.Failed(ID, "test"),
    "peer": e.SessionDown(C, 1, "test"),
    "initiator": e.SessionDown(B, 1, "test"),  # B's, where it isn't A's own
    "roster": e.Membership(Roster(8, (A, B, C))),
}
TOLD = {"refused": e.Received(C, 1, Refused(ID, "no"))}
ABORT = {"abort": e.Received(B, 1, Decision(ID, "abort", "no"))}
GATE = {"gate": e.GateTimeout(ID)}
# (whose, phase) -> what it dies of there; written down a second time, apart from the tables.
DEATHS = {
    ("mine", Phase.RECORDING): BY_ITSELF | TOLD | GATE,
    ("mine", Phase.SETTLING): BY_ITSELF | TOLD,
    ("mine", Phase.COLLECTING): BY_ITSELF | TOLD,
    ("theirs", Phase.RECORDING): {
        **{name: BY_ITSELF[name] for name in ("failed", "peer", "initiator", "roster")},
        **TOLD,
        **ABORT,
        **GATE,
    },
    ("theirs", Phase.SETTLING): {
        **{name: BY_ITSELF[name] for name in ("failed", "initiator", "roster")},
        **TOLD,
        **ABORT,
    },
    ("theirs", Phase.PREPARED): TOLD | ABORT,
}
EVERYTHING = {
    **BY_ITSELF,
    **TOLD,
    **ABORT,
    **GATE,
    "ask": e.AskTimeout(ID),
    "done": e.DoneTimeout(ID),
    "query": e.Received(C, 1, Query(ID, A)),
    "deleted": e.Deleted(ID),
}


@pytest.mark.parametrize(("whose", "phase"), WAYS)
def test_what_a_snapshot_dies_of(whose, phase):
    """And of nothing else; and who ends it by itself says so to all that it can reach."""
    if phase in (Phase.UNKNOWN, Phase.ABORTED):
        return
    deaths = DEATHS.get((whose, phase), {})
    for name, event in EVERYTHING.items():
        made = WAYS[whose, phase]()
        actions = made.handle(event)
        died = made.phase(ID) is Phase.ABORTED
        assert died == (name in deaths), name
        told = [message for _, message in sent(actions)]
        if died and whose == "mine":
            assert {(type(one), one.verdict) for one in told} == {(Decision, "abort")}, name
            assert len(of(actions, e.Finished)) == 1
        elif died:
            quiet = name in ("refused", "abort")
            assert {type(one) for one in told} == (set() if quiet else {Refused}), name


@pytest.mark.parametrize("whose", ["mine", "theirs"])
def test_too_much_on_the_way_ends_it(whose):
    made = process(limits=Limits(channel_bytes_max=3))
    if whose == "mine":
        made.handle(e.Start(plan()))
    else:
        heard(made, B, Marker(plan(B)))
    heard(made, C, transfer(b"123"))
    assert made.phase(ID) is Phase.RECORDING
    heard(made, C, transfer(b"4"))
    assert made.phase(ID) is Phase.ABORTED


def test_late_news_of_an_abort_is_answered():
    made = aborted(True)
    assert [type(m) for _, m in sent(heard(made, B, Marker(plan())))] == [Refused]
    (peer, message), *more = sent(heard(made, C, Prepared(ID, 1, 1)))
    assert (peer, message.verdict, more) == (C, "abort", [])
    assert made.handle(e.Durable(ID, 1, 1)) == []


def test_a_committed_snapshot_answers_at_every_step():
    for made in (committing(True), distributing(), committed(True)):
        assert sent(heard(made, C, Query(ID, A))) == [(C, Outcome(ID, "commit"))]


def test_a_failed_commit_is_told_as_pending():
    made = committing(True)
    result = of(made.handle(e.Failed(ID, "the disk fails")), e.Finished)[0].result
    assert (result.state, result.reason) == ("committed", "the disk fails")
    assert {one.state for one in result.volumes} == {"pending"}
    made = committing(False)
    assert made.handle(e.Failed(ID, "the disk fails")) == []
    assert made.phase(ID) is Phase.COMMITTING


def test_what_is_late_or_already_known_is_no_fault():
    assert committing(False).handle(e.Deleted(ID)) == []
    assert distributing().handle(e.Deleted(ID)) == []
    assert heard(process(), B, Outcome(ID, "commit")) == []


def test_the_cut_and_its_markers_are_one_step():
    made = process()
    actions = made.handle(e.Start(plan()))
    assert actions == [
        e.Cut(plan()),
        e.Send(B, 1, Marker(plan())),
        e.Send(C, 1, Marker(plan())),
        e.StartTimer(e.GateTimeout(ID), 500),
        e.StartTimer(e.SettleTimeout(ID), 60_000),
    ]
    assert made.gate_shut
    other = process(B)
    actions = heard(other, A, Marker(plan()))
    assert actions[0] == e.Cut(plan())
    assert sent(actions) == [(A, Marker(plan())), (C, Marker(plan()))]


def test_what_arrives_between_cut_and_marker_is_recorded_and_delivered():
    made = recording(mine=True)
    assert heard(made, B, transfer(b"1")) == [
        e.Record(ID, B, transfer(b"1")),
        e.Deliver(B, transfer(b"1")),
    ]
    heard(made, B, Marker(plan()))
    assert heard(made, B, transfer(b"2")) == [e.Deliver(B, transfer(b"2"))]
    assert of(heard(made, C, transfer(b"3")), e.Record)
    assert heard(process(), B, transfer(b"0")) == [e.Deliver(B, transfer(b"0"))]


def test_the_first_markers_channel_is_recorded_as_empty():
    made = recording(mine=False)
    assert heard(made, B, transfer()) == [e.Deliver(B, transfer())]
    assert of(heard(made, C, transfer()), e.Record) == [e.Record(ID, C, transfer())]


def test_each_snapshot_records_for_itself():
    made = recording(mine=True)
    heard(made, B, Marker(plan()))
    heard(made, C, Marker(plan(C, OTHER_ID)))
    assert [one.snapshot for one in of(heard(made, B, transfer()), e.Record)] == [OTHER_ID]
    assert [one.snapshot for one in of(heard(made, C, transfer()), e.Record)] == [ID]


def test_the_gate_opens_when_no_snapshot_needs_it():
    made = recording(mine=True)
    heard(made, C, Marker(plan(C, OTHER_ID)))
    assert of(heard(made, B, Marker(plan())), e.OpenGate) == []
    assert of(heard(made, C, Marker(plan())), e.OpenGate) == [e.OpenGate(ID, False)]
    assert made.gate_shut
    actions = heard(made, B, Marker(plan(C, OTHER_ID)))
    assert of(actions, e.OpenGate) == [e.OpenGate(OTHER_ID, True)]
    assert not made.gate_shut


def test_prepared_is_said_after_it_is_durable():
    made = recording(mine=False)
    actions = heard(made, C, Marker(plan(B)))
    assert of(actions, e.Prepare) == [e.Prepare(PreparedKept(plan(B), (A, B, C)))]
    assert not sent(actions)
    assert sent(made.handle(e.Durable(ID, 5, 90))) == [(B, Prepared(ID, 5, 90))]


def test_a_snapshot_from_start_to_end():
    made = collecting()
    assert heard(made, B, Prepared(ID, 6, 91)) == []
    votes = [(A, 5, 90), (B, 6, 91), (C, 7, 92)]
    kept = DecisionKept(plan(), tuple(VolumeResult(v, "prepared", e_, g) for v, e_, g in votes))
    assert heard(made, C, Prepared(ID, 7, 92)) == [e.Decide(kept)]
    actions = made.handle(e.Decided(ID))
    assert sent(actions) == [(B, Decision(ID, "commit")), (C, Decision(ID, "commit"))]
    assert of(actions, e.Commit) == [e.Commit(ID)]
    assert made.handle(e.Visible(ID)) == []
    assert heard(made, B, Done(ID)) == []
    finished, forget = heard(made, C, Done(ID))
    assert forget == e.Forget(ID)
    assert finished.result.state == "committed"
    assert [(r.volume, r.epoch, r.gate_us) for r in finished.result.volumes] == votes
    assert {r.state for r in finished.result.volumes} == {"visible"}
    assert made.phase(ID) is Phase.COMMITTED
    assert made.running() == []


def test_an_abort_is_told_to_everybody_with_its_reason():
    made = collecting()
    actions = heard(made, B, Refused(ID, "no room"))
    why = f"{B} refused: no room"
    assert sent(actions) == [(B, Decision(ID, "abort", why)), (C, Decision(ID, "abort", why))]
    result = of(actions, e.Finished)[0].result
    assert (result.state, result.reason) == ("aborted", why)
    assert [r.state for r in result.volumes] == ["prepared", "unprepared", "unprepared"]


def test_a_participants_own_abort_is_refused_everywhere():
    actions = recording(mine=False).handle(e.GateTimeout(ID))
    assert [peer for peer, message in sent(actions) if isinstance(message, Refused)] == [B, C]
    assert actions[0] == e.OpenGate(ID, True)


def test_a_session_that_is_replaced_was_lost():
    made = recording(mine=True)
    actions = made.handle(e.SessionUp(B, 2))
    assert made.phase(ID) is Phase.ABORTED
    assert (C, 1) in [(one.peer, one.session) for one in of(actions, e.Send)]
    assert not [one for one in of(actions, e.Send) if one.peer == B]
    assert of(heard(made, B, transfer(), session=1), e.Rejected)
    assert heard(made, B, transfer(), session=2) == [e.Deliver(B, transfer())]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 6}, "version 6"),
        ({"fingerprint": b"x" * 16}, "knows another"),
        ({"missing": (A,)}, "leaves out this volume"),
        ({"missing": ("0d" * 16,)}, "no member"),
    ],
)
def test_another_roster_is_refused(changes, words):
    started = process().handle(e.Start(plan(**changes)))
    assert len(started) == 1
    assert words in started[0].reason
    made = process()
    actions = heard(made, B, Marker(plan(B, **changes)))
    assert not of(actions, e.Cut)
    assert {peer for peer, _ in sent(actions)} == {B, C}
    assert all(words in message.reason for _, message in sent(actions))
    assert made.phase(ID) is Phase.ABORTED


def test_who_is_away_is_named_and_may_be_left_out():
    made = process(peers=(B,))
    (rejected,) = made.handle(e.Start(plan()))
    assert C in rejected.reason
    used = plan(missing=(C,))
    actions = made.handle(e.Start(used))
    assert sent(actions) == [(B, Marker(used))]
    heard(made, B, Marker(used))
    made.handle(e.Durable(ID, 1, 1))
    heard(made, B, Prepared(ID, 1, 1))
    made.handle(e.Decided(ID))
    made.handle(e.Visible(ID))
    result = of(heard(made, B, Done(ID)), e.Finished)[0].result
    assert result.plan.missing == (C,)
    assert [one.volume for one in result.volumes] == [A, B]


def test_a_volume_that_was_left_out_takes_no_part():
    made = process()
    made.handle(e.Start(plan(missing=(C,))))
    before = made.key()
    assert of(heard(made, C, Marker(plan(missing=(C,)))), e.Rejected)
    assert made.key() == before


def test_alone_it_needs_nobody():
    roster = Roster(1, (A,))
    made = Process(A, roster)
    one = Plan(ID, "n", 1, A, 1, roster.fingerprint)
    actions = made.handle(e.Start(one))
    assert [type(action) for action in actions] == [
        e.Cut,
        e.StartTimer,
        e.OpenGate,
        e.Prepare,
        e.StartTimer,
    ]
    assert of(made.handle(e.Durable(ID, 1, 0)), e.Decide)
    made.handle(e.Decided(ID))
    assert of(made.handle(e.Visible(ID)), e.Finished)[0].result.state == "committed"


def test_limits_are_kept():
    made = process(limits=Limits(snapshots_max=1, gate_ms_max=100, channel_bytes_max=10))
    actions = made.handle(e.Start(plan()))
    assert e.StartTimer(e.GateTimeout(ID), 100) in actions
    assert "1 snapshots" in made.handle(e.Start(plan(snapshot=OTHER_ID)))[0].reason
    assert of(heard(made, B, transfer(b"0123456789")), e.Record)
    actions = heard(made, C, transfer(b"x"))
    assert made.phase(ID) is Phase.ABORTED
    assert not of(actions, e.Record)
    assert actions[-1] == e.Deliver(C, transfer(b"x"))


def test_aborted_ids_are_forgotten_in_their_order():
    made = process(limits=Limits(aborted_max=2))
    ids = [bytes([n]) * 16 for n in range(3)]
    for one in ids:
        heard(made, B, Refused(one, "no"))
    assert [made.phase(one) for one in ids] == [Phase.UNKNOWN, Phase.ABORTED, Phase.ABORTED]


def test_in_doubt_it_asks_until_it_hears():
    made = prepared()
    assert sent(made.handle(e.AskTimeout(ID))) == [(B, Query(ID, B))]
    made.handle(e.SessionDown(B, 1, "gone"))
    actions = made.handle(e.AskTimeout(ID))
    assert sent(actions) == [(C, Query(ID, B))]
    assert of(actions, e.StartTimer) == [e.StartTimer(e.AskTimeout(ID), 2000)]
    assert sent(made.handle(e.SessionUp(B, 2))) == [(B, Query(ID, B))]
    assert heard(made, C, Outcome(ID, "commit")) == [e.Commit(ID)]
    assert sent(made.handle(e.Visible(ID))) == [(B, Done(ID))]


def test_only_the_initiator_decides():
    for verdict in ("commit", "abort"):
        made = prepared()
        assert of(heard(made, C, Decision(ID, verdict)), e.Rejected)
        assert made.phase(ID) is Phase.PREPARED


def test_who_knows_answers_and_who_does_not_is_silent():
    asked = {
        "committing": (committing(False), "commit"),
        "committed": (committed(), "commit"),
        "aborted": (aborted(False), "abort"),
        "in doubt": (prepared(), None),
        "nothing": (process(), None),
    }
    for name, (made, verdict) in asked.items():
        answer = [(C, Outcome(ID, verdict))] if verdict else []
        assert sent(heard(made, C, Query(ID, B))) == answer, name


def test_an_initiator_that_knows_nothing_has_aborted():
    made = process()
    assert sent(heard(made, B, Query(ID, A))) == [(B, Outcome(ID, "abort"))]
    made = process()
    (peer, message), *_ = sent(heard(made, B, Marker(plan(A))))
    assert (peer, type(message)) == (B, Refused)
    assert of(made.handle(e.Start(plan())), e.Rejected)


def test_undecided_it_does_not_answer():
    for made in (recording(True), settling(True), collecting(), deciding()):
        assert sent(heard(made, B, Query(ID, A))) == []


def test_a_person_may_decide_only_what_is_in_doubt():
    made = prepared()
    assert made.handle(e.Resolve(ID, True)) == [e.Commit(ID)]
    made = prepared()
    assert made.handle(e.Resolve(ID, False)) == [e.Discard(ID)]
    for way in (process, collecting, deciding, committed, lambda: settling(False)):
        assert of(way().handle(e.Resolve(ID, True)), e.Rejected)


def test_an_unknown_decision_is_not_told():
    made = deciding()
    actions = made.handle(e.Failed(ID, "the disk fails"))
    assert of(actions, e.Finished)[0].result.state == "in doubt"
    assert not sent(actions)
    assert made.phase(ID) is Phase.DECIDING


def test_the_user_is_not_kept_waiting_by_who_is_away():
    made = distributing()
    heard(made, B, Done(ID))
    made.handle(e.SessionDown(C, 1, "gone"))
    result = of(made.handle(e.DoneTimeout(ID)), e.Finished)[0].result
    assert result.state == "committed"
    assert [one.state for one in result.volumes] == ["visible", "visible", "pending"]
    assert C in result.reason
    assert sent(made.handle(e.SessionUp(C, 2))) == [(C, Decision(ID, "commit"))]
    assert heard(made, C, Done(ID), session=2) == [e.Forget(ID)]


def test_a_deleted_snapshot_is_still_acknowledged():
    made = committed()
    assert made.handle(e.Deleted(ID)) == []
    assert made.phase(ID) is Phase.UNKNOWN
    assert sent(heard(made, B, Decision(ID, "commit"))) == [(B, Done(ID))]


def kept_of(whose, prepared_, decided, visible):
    initiator = {"mine": A, "theirs": B, "nobody's": A}[whose]
    results = tuple(VolumeResult(v, "prepared", 1, 1) for v in (A, B, C))
    kept = [HiddenKept(ID)]
    if prepared_:
        kept.append(PreparedKept(plan(initiator), (A, B, C)))
    if decided:
        kept.append(DecisionKept(plan(initiator), results))
    if visible:
        kept.append(VisibleKept(ID))
    return kept


def test_recovery_knows_every_combination():
    possible = {
        (whose, *flags)
        for whose in ("nobody's", "mine", "theirs")
        for flags in itertools.product((False, True), repeat=3)
        # an initiator is known by what names it
        if (whose == "nobody's") == (not flags[0] and not flags[1])
    }
    assert set(RECOVERY) == possible


@pytest.mark.parametrize("case", RECOVERY)
def test_recovery(case):
    """What each combination begins with, written down a second time."""
    expected = {
        ("nobody's", False, False, False): (Phase.ABORTED, [e.Discard(ID)]),
        ("nobody's", False, False, True): (Phase.COMMITTED, []),
        ("mine", True, False, False): (Phase.ABORTED, [e.Discard(ID)]),
        ("theirs", True, False, False): (
            Phase.PREPARED,
            [e.StartTimer(e.AskTimeout(ID), 2000)],
        ),
        ("mine", True, True, False): (Phase.COMMITTING, [e.Commit(ID)]),
        ("mine", False, True, True): (Phase.DISTRIBUTING, []),
        ("mine", False, True, False): (Phase.DISTRIBUTING, []),
    }
    if case not in expected:
        with pytest.raises(FormatError, match=ID.hex()):
            Process.recover(A, ROSTER, kept_of(*case))
        return
    made, actions = Process.recover(A, ROSTER, kept_of(*case))
    assert (made.phase(ID), actions) == expected[case]
    assert not made.gate_shut
    ups = [message for peer in (B, C) for _, message in sent(made.handle(e.SessionUp(peer, 1)))]
    wants = {
        Phase.PREPARED: [Query(ID, B)],
        Phase.COMMITTING: [Decision(ID, "commit")] * 2,
        Phase.DISTRIBUTING: [Decision(ID, "commit")] * 2,
    }
    assert ups == wants.get(made.phase(ID), [])


def test_every_kind_is_in_some_table():
    from raidfs.group import marker

    tables = [*INITIATOR.values(), *PARTICIPANT.values(), *marker._PAST.values()]
    assert {kind for table in tables for kind in table} == set(Kind)


def test_messages_are_bounded_and_survive_the_wire():
    decoder = msgspec.msgpack.Decoder(Message)
    messages = [one.message for one in every_event(A) if isinstance(one, e.Received)]
    for message in messages:
        assert decoder.decode(msgspec.msgpack.encode(message)) == message
    wrong = [
        Marker(plan(initiator="0A" * 16)),
        Marker(plan(initiator="0a" * 16 + "\n")),
        Marker(plan(gate_ms=0)),
        Marker(plan(name="")),
        Marker(plan(snapshot=b"short")),
        Refused(ID, "x" * 1001),
        Prepared(ID, -1, 0),
        Decision(ID, "perhaps"),
        Transfer(b"m" * 16, "theft"),
    ]
    for message in wrong:
        with pytest.raises(msgspec.ValidationError):
            decoder.decode(msgspec.msgpack.encode(message))


def test_a_roster_is_known_by_its_members_too():
    assert Roster(7, (C, B, A)).fingerprint == ROSTER.fingerprint
    assert Roster(8, (A, B, C)).fingerprint != ROSTER.fingerprint
    assert Roster(7, (A, B)).fingerprint != ROSTER.fingerprint


def test_who_is_no_member_any_more_is_not_waited_for():
    """Once it is decided; before that a change of the members is the end of it."""
    made = distributing()
    heard(made, B, Done(ID))
    assert [one.phase for one in made.running()] == [Phase.DISTRIBUTING]
    actions = made.handle(e.Membership(Roster(8, (A, B))))
    assert e.Forget(ID) in actions and made.running() == []
    made = distributing()  # the other one still has to say so
    assert e.Forget(ID) not in made.handle(e.Membership(Roster(8, (A, B))))
    assert e.Forget(ID) in heard(made, B, Done(ID))
    made = committing(mine=True)  # gone before it was visible here
    heard(made, B, Done(ID))
    made.handle(e.Membership(Roster(8, (A, B))))
    assert e.Forget(ID) in made.handle(e.Visible(ID))
