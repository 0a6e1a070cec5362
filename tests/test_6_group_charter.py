"""Who is in a group, as values; certificates renewed over a link; who hears of being out."""

import time
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from checking import run_check
from group_rig import GROUP, A, B, C, Rig, enrolled, taken
from volumes import make_members, mounted

from raidfs.daemon import group_certificates
from raidfs.daemon.group import OUT_SETTING, SETTING, GroupProcess
from raidfs.daemon.group_catalogue import merged, state_of
from raidfs.daemon.group_certificates import GroupCertificates
from raidfs.daemon.group_leaving import Leaving
from raidfs.daemon.group_membership import GroupMembership
from raidfs.errors import RaidfsError
from raidfs.group.authority import Authority
from raidfs.group.charter import (
    TAKE_OVER_GAP,
    Charter,
    Member,
    Part,
    Removal,
    RenewAsked,
    RenewTold,
    TakeOverAsked,
    TakeOverTold,
)
from raidfs.group.events import SessionUp
from raidfs.group.keys import PENDING_KEY, VOLUME_FILE, Credentials, TrustError, new_request
from raidfs.group.messages import DecisionKept, Plan, PreparedKept

DAY_S = 86400
MEMBERS = tuple(Member(one, name) for one, name in ((A, "a"), (B, "b"), (C, "c")))
CHARTER = Charter(GROUP, "crew", A, 7, MEMBERS)


# -- charters -------------------------------------------------------------------------------------


def test_charters_have_one_order():
    later, taken_over = CHARTER.changed(MEMBERS[:2]), CHARTER.taken_over(B)
    assert later.follows(CHARTER) and not CHARTER.follows(later)
    assert not CHARTER.follows(CHARTER)
    assert (taken_over.keeper, taken_over.version) == (B, 7 + TAKE_OVER_GAP)
    assert [one.volume for one in taken_over.members] == [B, C]
    assert taken_over.follows(later) and not later.follows(taken_over)
    # what the old keeper does until it hears of it is overruled
    old = later
    for _ in range(50):
        old = old.changed(MEMBERS)
    assert taken_over.follows(old) and taken_over.removal().concerns(old)
    # of two at once one is the later for everybody
    other = CHARTER.taken_over(C)
    assert other.follows(taken_over) and not taken_over.follows(other)


def test_only_what_is_later_takes_somebody_out():
    out = CHARTER.changed(MEMBERS[:2]).removal()
    assert out.concerns(CHARTER) and "crew" in out.text("c") and "a, its keeper" in out.text("c")
    assert not out.concerns(CHARTER.changed(MEMBERS).changed(MEMBERS))  # joined again since
    assert not msgspec.structs.replace(out, group="ee" * 16).concerns(CHARTER)
    assert not CHARTER.removal().concerns(CHARTER)


# -- links ----------------------------------------------------------------------------------------


@pytest.mark.trio
@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("out", [A, B], ids=["connects", "is connected to"])
async def test_who_is_no_peer_any_more_is_told_so(tmp_path, is_tls, out):
    """Whichever of the two has to connect; strangers and other groups hear nothing."""
    inside = B if out == A else A
    told, asked = [], []

    def parting(volume):
        asked.append(volume)
        return b"you left" if volume == out else b""

    async with trio.open_nursery() as nursery:
        rig = Rig(tmp_path, nursery, is_tls)
        stays = rig.links(inside, parting=parting)
        address = await rig.start(stays)
        goes = rig.links(out, on_parting=lambda peer, word: told.append((peer, word)))
        goes.set_peers({inside: [address]})
        await rig.start(goes)
        with trio.fail_after(10):
            while not told:
                await goes.inquire(inside)  # nothing for who connects by itself
                await trio.sleep(0.02)
        assert set(told) == {(inside, b"you left")} and set(asked) == {out}
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_who_is_of_another_group_is_told_nothing(tmp_path):
    asked = []
    async with trio.open_nursery() as nursery:
        rig = Rig(tmp_path, nursery)
        links = rig.links(B, parting=lambda volume: asked.append(volume) or b"you left")
        address = await rig.start(links)
        stranger = rig.links(A, group="ee" * 16, on_parting=lambda *word: asked.append(word))
        stranger.set_peers({B: [address]})
        await rig.start(stranger)
        with trio.fail_after(10):
            while "different groups" not in links.last_refusal:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not asked


@pytest.mark.trio
async def test_inquiring_of_a_peer_harms_no_session(tmp_path):
    async with trio.open_nursery() as nursery:
        rig = Rig(tmp_path, nursery)
        one, two, _ = await rig.pair()
        await two.inquire(A)
        assert one.states()[B].is_up and two.states()[A].is_up
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_member_that_only_isnt_connected_is_told_nothing(tmp_path):
    """The one with the larger id asks, and is still a peer: it is refused, and told nothing."""
    told = []
    async with trio.open_nursery() as nursery:
        rig = Rig(tmp_path, nursery)
        small = rig.links(A, parting=lambda volume: b"")
        address = await rig.start(small)
        small.set_peers({B: [rig.unix("nobody")]})
        large = rig.links(B, on_parting=lambda *word: told.append(word))
        large.set_peers({A: [address]})
        await rig.start(large)
        await large.inquire(A)
        assert not told and "smaller id" in small.last_refusal
        small.set_peers({B: [rig.unix(B)]})
        assert await taken(large) == SessionUp(A, 1)
        nursery.cancel_scope.cancel()


# -- a process that is not connected to anybody ---------------------------------------------------


@asynccontextmanager
async def alone(tmp_path):
    """A volume, its process, and what that sends (`sent`)."""
    paths = make_members(tmp_path)
    async with mounted(paths) as volume:
        group = GroupProcess(volume.store, tmp_path, tmp_path / "state")
        group.sent = []
        group.send = lambda peer, message: group.sent.append((peer, message)) or True
        group.away = dict
        yield group
    run_check(paths)


class Nothing:
    """Works and moves of which there are none."""

    def __init__(self):
        self.known = {}

    def promised(self):
        return []

    def pending(self):
        return []


def charter_of(group, keeper=None, **members):
    """This volume, called "me", and two others."""
    mine = Member(group.me, "me", members.get("addresses", ()))
    others = (Member(B, "b"), Member(C, "c"))
    return Charter(GROUP, "crew", keeper or group.me, 7, (mine, *others))


@pytest.mark.trio
async def test_being_taken_out_is_kept_and_ends_with_a_new_group(tmp_path):
    async with alone(tmp_path) as group:
        charter = charter_of(group, keeper=B)
        await group.adopt(charter)
        await group.adopt(charter.changed(charter.without(group.me)))
        assert group.charter is None and group.out.by == "b"
        meta = group.store.meta
        assert meta.setting(SETTING) is None
        assert msgspec.json.decode(meta.setting(OUT_SETTING), type=Removal) == group.out
        with pytest.raises(RaidfsError, match="not in group 'crew' any more"):
            group.must_be_in()
        await group.adopt(charter.changed(charter.members))
        assert group.out is None and meta.setting(OUT_SETTING) is None
        await group.part(charter.removal())  # an old word
        assert group.charter is not None


@pytest.mark.trio
async def test_what_was_begun_and_not_promised_goes_with_the_group(tmp_path):
    """Own decisions are carried out; what others may have committed stays, until it is decided."""
    async with alone(tmp_path) as group:
        parts, me = group.store.group_snapshots, group.me
        leaving = Leaving(group, Nothing(), Nothing())
        for number, name, initiator in (
            (b"m" * 16, "mine", me), (b"d" * 16, "decided", me), (b"t" * 16, "theirs", B),
            (b"u" * 16, "unsure", B), (b"h" * 16, "hidden", me),
        ):  # fmt: skip
            parts.cut(number, name, 77)
            if name == "hidden":
                continue
            plan = Plan(number, name, 77, initiator, 7, bytes(16))
            kept = PreparedKept(plan, (me, B))
            await parts.prepare(number, msgspec.msgpack.encode(kept), [])
            if name == "decided":
                kept = msgspec.msgpack.encode(DecisionKept(plan, ()))
                await parts.keep(number, "decision", kept)
        assert [plan.name for plan in leaving.doubts()] == ["theirs", "unsure"]
        with pytest.raises(RaidfsError, match=f"theirs .id {(b't' * 16).hex()}.*group resolve"):
            leaving.check_no_promise()
        await leaving.clean()
        assert [row.name for row in parts.visible().values()] == ["decided"]
        assert sorted(row.note for row in parts.hidden().values()) == ["theirs", "unsure"]
        assert not await leaving.resolve(b"x" * 16, True)
        assert await leaving.resolve(b"t" * 16, True) and await leaving.resolve(b"u" * 16, False)
        assert [row.name for row in parts.visible().values()] == ["decided", "theirs"]
        leaving.check_no_promise()
        kinds = {(number[:1], kind) for number, kind, _ in group.store.meta.kept()}
        assert kinds == {(b"d", "took-part"), (b"t", "took-part")}


@pytest.mark.trio
async def test_who_consents_to_another_keeper(tmp_path):
    async with alone(tmp_path) as group:
        await group.adopt(charter_of(group, keeper=B))
        membership = GroupMembership(group, Nothing(), Nothing())
        hear = membership.hearers()[TakeOverAsked]

        def answer(peer, charter):
            hear(peer, TakeOverAsked(charter))
            ((_, told),) = group.sent
            group.sent.clear()
            assert isinstance(told, TakeOverTold) and told.version == charter.version
            return told.why

        new = group.charter.taken_over(C)
        assert "it reaches b, the keeper" in answer(C, new)
        group.away = lambda: {B: "gone"}
        assert "another group" in answer(C, msgspec.structs.replace(new, group="ee" * 16))
        for wrong in (
            msgspec.structs.replace(new, version=9), group.charter.taken_over(group.me),
            msgspec.structs.replace(new, members=new.members[:1]),
        ):  # fmt: skip
            assert "knows version 7" in answer(C, wrong)
        group.store.group_snapshots.cut(b"t" * 16, "theirs", 77)
        kept = PreparedKept(Plan(b"t" * 16, "theirs", 77, B, 7, bytes(16)), (group.me, B))
        encoded = msgspec.msgpack.encode(kept)
        await group.store.group_snapshots.prepare(b"t" * 16, encoded, [])
        assert "not yet decided: snapshot theirs" in answer(C, new)
        await group.store.group_snapshots.discard(b"t" * 16)
        assert answer(C, new) == "" and answer(C, new) == ""
        assert group.charter.keeper == B, "until it is told so"
        await group.adopt(charter_of(group))
        assert "knows version" in answer(C, new)


# -- whole and incomplete -------------------------------------------------------------------------


def part(number, members, **changes):
    given = {"name": f"s{number[0]}", "created_ns": number[0], "epoch": 5, "holds": ()}
    return Part(snapshot=number, members=members, **{**given, **changes})


def test_what_is_whole_and_what_is_not():
    one, two, three, four = (bytes([n]) * 16 for n in range(1, 5))
    everybody = (A, B, C)
    told = {
        A: [part(one, everybody, holds=("x",)), part(two, everybody),
            part(three, (A, B), missing=(C,))],
        B: [part(one, everybody, pending=True, holds=("y",)), part(three, (A, B), missing=(C,)),
            part(four, everybody, pending=True)],
    }  # fmt: skip
    found = {whole.name: whole for whole in merged(told)}
    assert list(found) == ["s1", "s2", "s3"], "what nobody has committed isn't there"
    assert found["s1"].holds == ("x", "y")

    def states(name, answered, charter=CHARTER):
        parts = found[name].told(charter, answered)
        return state_of(parts), [each.state for each in parts]

    assert states("s1", (A, B)) == ("unknown", ["here", "pending", "away"])
    assert states("s1", everybody) == ("INCOMPLETE", ["here", "pending", "LACKING"])
    assert states("s2", (A, B)) == ("INCOMPLETE", ["here", "LACKING", "away"])
    assert states("s3", (A, B)) == ("complete", ["here", "here", "left out"])
    left = CHARTER.changed(MEMBERS[:2])
    assert states("s1", (A, B), left) == ("complete", ["here", "pending", "left the group"])


# -- certificates ---------------------------------------------------------------------------------


def test_a_link_renews_and_nothing_else_does(tmp_path):
    authority = Authority.create(tmp_path / "authority", GROUP)
    enrolled(authority, tmp_path / "a", A)
    request = new_request(tmp_path / "a", A)
    with pytest.raises(TrustError, match="its own certificate only"):
        authority.reissue(B, request)
    with pytest.raises(TrustError, match="has left the group"):
        authority.reissue(B, new_request(tmp_path / "b", B))
    first = authority.reissue(A, request)
    assert authority.reissue(A, request) == first, "the answer was lost: the same again"
    authority.forget(A)
    with pytest.raises(TrustError, match="has left the group"):
        authority.reissue(A, request)
    with pytest.raises(TrustError, match="no request"):
        authority.reissue(A, b"\x30\x00")


class Clock:
    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.mark.trio
async def test_renewed_when_a_third_of_its_life_is_left(tmp_path, monkeypatch):
    """By a clock of its own; the keeper is asked, refuses, doesn't answer, and then signs."""
    monkeypatch.setattr(group_certificates, "ANSWER_S", 0.2)
    clock = Clock()
    authority = Authority.create(tmp_path / "authority", GROUP, clock=clock)
    async with alone(tmp_path / "volume") as group:
        own, others = Member(group.me, "me", ("tcp:h:1",)), (Member(B, "b", ("tcp:h:2",)),)
        await group.adopt(Charter(GROUP, "crew", B, 7, (own, *others)))
        group.keys.parent.mkdir(parents=True)
        enrolled(authority, group.keys, group.me)
        before = (group.keys / VOLUME_FILE).read_bytes()
        certificates = GroupCertificates(group, clock)
        hear = certificates.hearers()[RenewTold]
        answers = []

        def send(peer, message):
            assert peer == B and isinstance(message, RenewAsked)
            group.sent.append(message.request)
            if answers:
                hear(peer, answers.pop(0)(message.request))
            return True

        group.send = send
        clock.now += 240 * DAY_S
        await certificates._renew_if_due()
        assert not group.sent and not (group.keys / PENDING_KEY).exists()
        clock.now += 10 * DAY_S
        with pytest.raises(TrustError, match="b doesn't answer"):
            await certificates._renew_if_due()
        answers.append(lambda _: RenewTold(why="no mood"))
        with pytest.raises(TrustError, match="b has refused: no mood"):
            await certificates._renew_if_due()
        hear(C, RenewTold(b"of somebody else"))  # nobody waits for that
        answers.append(lambda _: RenewTold(b"rubbish"))
        with pytest.raises(TrustError):
            await certificates._renew_if_due()
        assert (group.keys / VOLUME_FILE).read_bytes() == before
        answers.append(lambda request: RenewTold(authority.reissue(group.me, request)))
        await certificates._renew_if_due()
        hashes = {authority_key(request) for request in group.sent}
        assert len(group.sent) == 4 and len(hashes) == 1, "one key, asked for again and again"
        assert Credentials.load(group.keys).expires_s == pytest.approx(
            clock.now + 365 * DAY_S, abs=5
        )
        assert not (group.keys / PENDING_KEY).exists()
        clock.now += 366 * DAY_S
        with pytest.raises(TrustError, match=r"group invite.*join --renew"):
            await certificates._renew_if_due()
        assert len(group.sent) == 4


def authority_key(request):
    from raidfs.group.keys import read_request

    return read_request(request).public


@pytest.mark.trio
async def test_only_the_keeper_signs_and_only_for_who_asks(tmp_path):
    async with alone(tmp_path / "volume") as group, trio.open_nursery() as nursery:
        own, other = Member(group.me, "me", ("tcp:h:1",)), Member(B, "b", ("tcp:h:2",))
        group.keys.parent.mkdir(parents=True)
        authority = Authority.create(group.authority, GROUP)
        enrolled(authority, group.keys, group.me)
        enrolled(authority, tmp_path / "b", B)
        certificates = GroupCertificates(group)
        nursery.start_soon(certificates.run)
        await trio.testing.wait_all_tasks_blocked()
        hear = certificates.hearers()[RenewAsked]

        async def answer(peer, request):
            group.sent.clear()
            hear(peer, RenewAsked(request))
            with trio.fail_after(10):
                while not group.sent:
                    await trio.sleep(0.01)
            ((to, told),) = group.sent
            assert to == peer
            return told

        request = new_request(tmp_path / "b", B)
        await group.adopt(Charter(GROUP, "crew", B, 7, (own, other)))
        assert "signed by the group's keeper" in (await answer(B, request)).why
        await group.adopt(Charter(GROUP, "crew", group.me, 8, (own, other)))
        assert (await answer(B, request)).certificate
        assert "its own certificate only" in (await answer(C, request)).why
        assert (await answer(B, b"rubbish")).why
        nursery.cancel_scope.cancel()
