"""A group's authority, its certificates and tokens, and joining over real TLS."""

import os
import ssl
import stat
import time
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from group_rig import GROUP, OTHER_GROUP, A, B, C, enrolled
from hypothesis import given
from hypothesis import strategies as st

from raidfs.errors import RaidfsError, UsageError
from raidfs.group import join as joining
from raidfs.group.authority import (
    LEDGER_FILE,
    Authority,
    Token,
    TokenError,
    parse_token,
    token_text,
)
from raidfs.group.join import Denied, Greeting, Issued, Join, JoinServer, Renew, join, renew
from raidfs.group.keys import (
    PENDING_KEY,
    VOLUME_FILE,
    Credentials,
    TrustError,
    discard,
    install,
    new_request,
    read_request,
    same_request,
    tls,
    volume_of,
)
from raidfs.group.transport import (
    Framed,
    TcpAddress,
    TransportError,
    bound_address,
    connect_tcp,
    secured,
)

DAY_S = 86400
ADDRESS = "tcp:127.0.0.1:1"


class Clock:
    """Goes when it is told to."""

    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def authority(tmp_path, clock):
    return Authority.create(tmp_path / "authority", GROUP, clock=clock)


def secret_of(text):
    return parse_token(text).secret


# ---- files ----


def test_files_are_for_their_owner_alone(authority, tmp_path):
    enrolled(authority, tmp_path / "a", A)
    new_request(tmp_path / "a", A)
    files = [*(tmp_path / "authority").iterdir(), *(tmp_path / "a").iterdir()]
    assert len(files) == 6
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


def test_keys_that_others_can_reach_are_not_used(authority, tmp_path):
    enrolled(authority, tmp_path / "a", A)
    for directory, name, opens in (
        (tmp_path / "authority", "authority.key", Authority),
        (tmp_path / "a", VOLUME_FILE, Credentials.load),
    ):
        opens(directory)
        (directory / name).chmod(0o640)
        with pytest.raises(TrustError, match=r"others can read .*chmod 600"):
            opens(directory)
        (directory / name).chmod(0o600)
        (directory / name).rename(directory / "moved")
        (directory / name).symlink_to("moved")
        with pytest.raises(TrustError, match="can't be read"):
            opens(directory)
        (directory / name).unlink()
        with pytest.raises(TrustError, match="can't be read"):
            opens(directory)
        (directory / "moved").rename(directory / name)
        opens(directory)
    (tmp_path / "authority").chmod(0o770)
    with pytest.raises(TrustError, match="written to by others"):
        Authority(tmp_path / "authority")


def test_damaged_files_are_named(authority, tmp_path):
    enrolled(authority, tmp_path / "a", A)
    for directory, name, opens in (
        (tmp_path / "authority", "authority.key", Authority),
        (tmp_path / "authority", "authority.pem", Authority),
        (tmp_path / "authority", LEDGER_FILE, lambda path: Authority(path).holders()),
        (tmp_path / "a", VOLUME_FILE, Credentials.load),
    ):
        whole = (directory / name).read_bytes()
        for damaged in (b"", b"x", whole[: len(whole) // 3]):
            (directory / name).write_bytes(damaged)
            with pytest.raises(TrustError, match=name):
                opens(directory)
        (directory / name).write_bytes(whole)
        opens(directory)


def test_what_belongs_to_two_groups_is_refused(authority, tmp_path):
    other = Authority.create(tmp_path / "other", OTHER_GROUP)
    enrolled(authority, tmp_path / "a", A)
    with pytest.raises(TrustError, match="leave it first"):
        Authority.create(tmp_path / "authority", GROUP)
    with pytest.raises(TrustError, match="leave it first"):
        Authority.create(tmp_path / "a", GROUP)
    issued = other.enroll(new_request(tmp_path / "a", A))
    with pytest.raises(TrustError, match="another group"):
        install(tmp_path / "a", A, issued, other.certificate)
    with pytest.raises(TrustError, match="isn't a certificate of the group's authority"):
        install(tmp_path / "a", A, issued, authority.certificate)
    assert Credentials.load(tmp_path / "a").group == GROUP
    discard(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    other.forget(A)
    enrolled(other, tmp_path / "a", A)
    assert Credentials.load(tmp_path / "a").group == OTHER_GROUP
    os.replace(tmp_path / "authority" / "authority.pem", tmp_path / "a" / "authority.pem")
    with pytest.raises(TrustError, match="mixes two groups"):
        Credentials.load(tmp_path / "a")


@pytest.mark.slow
def test_a_crash_while_a_certificate_is_taken_leaves_the_old_or_the_new(
    authority, tmp_path, monkeypatch
):
    """Each change of a name or sync may be the last that happens."""
    for last in range(30):
        directory = tmp_path / f"a{last}"
        authority.forget(A)
        old = enrolled(authority, directory, A)
        shown = (directory / VOLUME_FILE).read_bytes()
        serial = x509.load_pem_x509_certificate(shown).public_bytes(serialization.Encoding.DER)
        left = [last]

        def dies(call, left=left):
            def counted(*args, **more):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return call(*args, **more)

            return counted

        crashed = False
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (os, "rename"), (os, "open"), (os, "unlink")):
                patch.setattr(owner, name, dies(getattr(owner, name)))
            try:
                _, issued = authority.renew(serial, new_request(directory, A))
                install(directory, A, issued, authority.certificate)
            except KeyboardInterrupt:
                crashed = True
        found = Credentials.load(directory)
        assert (found.volume, found.group) == (A, GROUP) == (old.volume, old.group)
        found.client_context("x")  # key and certificate fit
        if not crashed:
            assert (directory / VOLUME_FILE).read_bytes() != shown
            assert not (directory / PENDING_KEY).exists()
            break
        now = x509.load_pem_x509_certificate((directory / VOLUME_FILE).read_bytes())
        der = now.public_bytes(serialization.Encoding.DER)
        _, issued = authority.renew(der, new_request(directory, A))
        install(directory, A, issued, authority.certificate)
    else:
        pytest.fail("it never came to an end")
    assert last > 8


# ---- certificates ----


def test_a_certificate_names_one_volume_and_nothing_more(authority, tmp_path, clock):
    credentials = enrolled(authority, tmp_path / "a", A)
    made = x509.load_pem_x509_certificate((tmp_path / "a" / VOLUME_FILE).read_bytes())
    extensions = made.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"raidfs:volume:{A}"]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert credentials.expires_s == pytest.approx(clock.now + 365 * DAY_S, abs=2)
    assert credentials.authority_expires_s == pytest.approx(clock.now + 3653 * DAY_S, abs=2)
    assert authority.expires_s == credentials.authority_expires_s
    assert not credentials.is_due(clock.now) and credentials.is_due(clock.now + 300 * DAY_S)
    clock.now += 3600 * DAY_S  # towards the authority's own end
    assert enrolled(authority, tmp_path / "b", B).expires_s == authority.expires_s


def request_with(names, key=None, signer=None):
    key = key or Ed25519PrivateKey.generate()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


URI = x509.UniformResourceIdentifier(f"raidfs:volume:{A}")


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        [URI, x509.UniformResourceIdentifier(f"raidfs:volume:{B}")],
        [URI, URI],
        [URI, x509.DNSName("host")],
        [x509.DNSName(f"raidfs:volume:{A}")],
        [x509.UniformResourceIdentifier(f"raidfs:group:{A}")],
        [x509.UniformResourceIdentifier(f"raidfs:volume:{A}0")],
        [x509.UniformResourceIdentifier(f"raidfs:volume:{A[:-1]}\n")],
        [x509.UniformResourceIdentifier(f"raidfs:volume:{A.upper()}")],
        [x509.UniformResourceIdentifier("raidfs:volume:")],
    ],
)
def test_requests_that_name_anything_else_are_refused(authority, names):
    with pytest.raises(TrustError):
        authority.enroll(request_with(names))
    assert authority.holders() == {}


def test_requests_have_to_be_signed_with_their_own_key(authority):
    good = request_with([URI])
    assert read_request(good).volume == A
    for changed in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good + b"x", b"", b"x" * 300):
        with pytest.raises(TrustError):
            authority.enroll(changed)
    with pytest.raises(TrustError, match="Ed25519"):
        authority.enroll(request_with([URI], ec.generate_private_key(ec.SECP256R1())))
    assert authority.holders() == {}


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_certificate_and_no_request(data):
    with pytest.raises(TrustError):
        volume_of(data)
    with pytest.raises(TrustError):
        read_request(data)


def test_no_key_is_given_to_a_volume_that_has_another(authority, tmp_path):
    enrolled(authority, tmp_path / "a", A)
    with pytest.raises(TrustError, match="let it leave first"):
        authority.enroll(new_request(tmp_path / "thief", A))
    token = authority.invite(B, [ADDRESS])
    with pytest.raises(TrustError, match="let it leave first"):
        authority.redeem(secret_of(token), new_request(tmp_path / "thief", A))
    assert authority.invitations() == 1  # not spent on what was refused
    authority.forget(A)
    authority.redeem(secret_of(token), new_request(tmp_path / "thief", A))


def test_a_renewal_needs_a_certificate_that_is_in_the_ledger(authority, tmp_path):
    first = authority.enroll(new_request(tmp_path / "a", A))
    install(tmp_path / "a", A, first, authority.certificate)
    other = authority.enroll(new_request(tmp_path / "b", B))
    with pytest.raises(TrustError, match="its own"):
        authority.renew(other, new_request(tmp_path / "a", A))
    request = new_request(tmp_path / "a", A)
    _, second = authority.renew(first, request)
    assert second != first
    assert authority.renew(first, request)[1] == second  # the answer was lost: the same again
    install(tmp_path / "a", A, second, authority.certificate)
    request = new_request(tmp_path / "a", A)
    _, third = authority.renew(second, request)
    with pytest.raises(TrustError, match="replaced"):
        authority.renew(first, new_request(tmp_path / "thief", A))
    authority.forget(A)
    for shown in (first, second, third):
        with pytest.raises(TrustError, match="left the group"):
            authority.renew(shown, request)


# ---- tokens ----


TOKEN = Token(1, GROUP, B, ("tcp:host:7", "tcp:[::1]:8"), b"f" * 32, b"s" * 32, 1_700_000_000)


def test_a_token_is_whole_or_none():
    text = token_text(TOKEN)
    assert parse_token(f"  {text}\n") == TOKEN
    for at in range(len(text)):
        other = "A" if text[at] != "A" else "B"
        for changed in (text[:at] + other + text[at + 1 :], text[:at], text[:at] + text[at + 1 :]):
            with suppress(TokenError):
                assert parse_token(changed) == TOKEN  # unused bits of the last letter
                assert at == len(text) - 1
    for none in ("", "raidfs-join:", "raidfs-join:AAAA", text + text, "x" * 10_000, text[12:]):
        with pytest.raises(TokenError, match="copy it whole"):
            parse_token(none)
    with pytest.raises(TokenError, match="another version"):
        parse_token(token_text(msgspec.structs.replace(TOKEN, version=2)))


@given(st.text(max_size=200))
def test_arbitrary_text_is_no_token(text):
    for given_text in (text, f"raidfs-join:{text}"):
        with pytest.raises(TokenError):
            parse_token(given_text)


def test_secrets_are_not_kept_and_not_shown(authority, tmp_path):
    text = authority.invite(B, [ADDRESS])
    secret = secret_of(text)
    kept = (tmp_path / "authority" / LEDGER_FILE).read_bytes()
    assert secret not in kept and secret.hex().encode() not in kept
    assert repr(secret)[2:-1] not in repr(parse_token(text))
    assert "secret" not in repr(Join(secret, b"", b""))


def test_a_token_lets_one_volume_in_once(authority, tmp_path):
    secret = secret_of(authority.invite(B, [ADDRESS]))
    assert authority.invitations() == 1
    applicant, made = authority.redeem(secret, new_request(tmp_path / "a", A))
    assert applicant.volume == volume_of(made) == A
    assert authority.invitations() == 0
    again = Authority(tmp_path / "authority")  # and remembers
    enrolled(again, tmp_path / "b", B)
    member = same_request(tmp_path / "b", B)  # has a certificate, but not by this token
    for refused in (new_request(tmp_path / "c", C), new_request(tmp_path / "thief", A), member):
        with pytest.raises(TokenError, match="used already"):
            again.redeem(secret, refused)
    assert set(again.holders()) == {A, B}


def test_asking_again_with_the_same_key_gives_the_same(authority, tmp_path):
    secret = secret_of(authority.invite(B, [ADDRESS]))
    request = new_request(tmp_path / "a", A)
    assert new_request(tmp_path / "a", A) != b"" and (tmp_path / "a" / PENDING_KEY).exists()
    made = authority.redeem(secret, request)
    assert authority.redeem(secret, new_request(tmp_path / "a", A)) == made
    authority.forget(A)
    with pytest.raises(TokenError, match="used already"):
        authority.redeem(secret, request)


def test_tokens_end(authority, tmp_path, clock):
    request = new_request(tmp_path / "a", A)
    secret = secret_of(authority.invite(B, [ADDRESS], lifetime_s=60))
    clock.now += 60
    with pytest.raises(TokenError, match="expired"):
        authority.redeem(secret, request)
    clock.now -= 60
    authority.redeem(secret, request)  # a refusal changes nothing
    used = secret
    secret = secret_of(authority.invite(B, [ADDRESS]))
    authority.withdraw_all()
    for gone in (secret, used, b"", b"x" * 32, secret[:-1]):
        with pytest.raises(TokenError, match="unknown"):
            authority.redeem(gone, request)
    other = Authority.create(tmp_path / "other", OTHER_GROUP)
    with pytest.raises(TokenError, match="unknown"):
        authority.redeem(secret_of(other.invite(B, [ADDRESS])), request)


def test_a_token_can_be_for_one_volume_only(authority, tmp_path):
    secret = secret_of(authority.invite(B, [ADDRESS], volume=C))
    with pytest.raises(TokenError, match="for volume"):
        authority.redeem(secret, new_request(tmp_path / "a", A))
    authority.redeem(secret, new_request(tmp_path / "c", C))


def test_a_token_is_spent_before_the_certificate_leaves(authority, tmp_path, monkeypatch):
    secret = secret_of(authority.invite(B, [ADDRESS]))
    request = new_request(tmp_path / "a", A)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(TrustError, match="can't be written"):
            authority.redeem(secret, request)
    assert authority.holders() == {}
    assert not list((tmp_path / "authority").glob(".*"))
    authority.redeem(secret, request)


def _full(_):
    raise OSError(28, "No space left on device")


def test_processes_that_share_the_ledger_lose_nothing(authority, tmp_path):
    """Each at once, with an Authority of its own, in threads: flock is per open file."""
    secrets_given = [secret_of(authority.invite(B, [ADDRESS])) for _ in range(8)]
    requests = [new_request(tmp_path / f"v{n}", f"{n:032x}") for n in range(8)]

    async def all_at_once():
        async with trio.open_nursery() as nursery:
            for secret, request in zip(secrets_given, requests, strict=True):
                one = Authority(tmp_path / "authority")
                nursery.start_soon(trio.to_thread.run_sync, partial(one.redeem, secret, request))

    trio.run(all_at_once)
    assert set(authority.holders()) == {f"{n:032x}" for n in range(8)}
    assert authority.invitations() == 0


# ---- joining, over TLS ----


class Issuer:
    """Volume B's daemon, where the authority is."""

    def __init__(self, directory, nursery):
        self.authority = Authority.create(directory / "authority", GROUP)
        self.keys = directory / "issuer"
        enrolled(self.authority, self.keys, B)
        self.nursery = nursery
        self.asked = []
        self.refuses = None
        self.server = JoinServer(self.authority, self.keys, self.admit)

    async def admit(self, applicant, details):
        self.asked.append((applicant.volume, details))
        if self.refuses is not None:
            raise self.refuses
        return b"the roster"

    async def start(self):
        run = partial(self.server.run, TcpAddress("127.0.0.1", 0))
        (self.address,) = await self.nursery.start(run)
        return self

    def invite(self, **changes):
        return self.authority.invite(B, [str(self.address)], **changes)


@pytest.fixture
async def issuer(tmp_path, nursery):
    return await Issuer(tmp_path, nursery).start()


@asynccontextmanager
async def within(seconds=10):
    with trio.fail_after(seconds):
        yield


@pytest.mark.trio
async def test_who_has_a_token_joins(issuer, tmp_path):
    async with within():
        token, details = await join(issuer.invite(), tmp_path / "a", A, b"about me")
    assert (token.group, token.issuer, details) == (GROUP, B, b"the roster")
    assert issuer.asked == [(A, b"about me")]
    found = Credentials.load(tmp_path / "a")
    assert (found.volume, found.group, found.authority) == (A, GROUP, issuer.authority.certificate)
    assert not (tmp_path / "a" / PENDING_KEY).exists()
    assert issuer.server.statistics() == {"issued": 1, "denied": 0}


@pytest.mark.trio
async def test_a_used_an_expired_and_an_invented_token_let_nobody_in(issuer, tmp_path):
    used = issuer.invite()
    async with within():
        await join(used, tmp_path / "a", A)
        with pytest.raises(TrustError, match="used already"):
            await join(used, tmp_path / "c", C)
        with pytest.raises(TrustError, match="expired"):
            await join(issuer.invite(lifetime_s=-1), tmp_path / "c", C)
        invented = msgspec.structs.replace(parse_token(used), secret=b"x" * 32)
        with pytest.raises(TrustError, match="unknown"):
            await join(token_text(invented), tmp_path / "c", C)
        with pytest.raises(TrustError, match="another key"):
            await join(issuer.invite(), tmp_path / "thief", A)
    assert not (tmp_path / "c" / VOLUME_FILE).exists()
    assert set(issuer.authority.holders()) == {A, B}
    assert issuer.asked == [(A, b"")]


@pytest.mark.trio
async def test_a_lost_answer_is_asked_for_again(issuer, tmp_path, monkeypatch):
    """At each step where the joiner may die; and asking once more than needed does no harm."""
    text = issuer.invite()
    async with within():
        for step in ("_ask", "install"):
            with monkeypatch.context() as patch:
                real = getattr(joining, step)
                patch.setattr(joining, step, _dies(real) if step == "_ask" else _dies_at_once)
                with pytest.raises(ZeroDivisionError):
                    await join(text, tmp_path / "a", A)
            assert issuer.authority.invitations() == 0  # it is spent
            assert not (tmp_path / "a" / VOLUME_FILE).exists()
        first = await join(text, tmp_path / "a", A)
        shown = (tmp_path / "a" / VOLUME_FILE).read_bytes()
        assert await join(text, tmp_path / "a", A) == first  # the caller has lost the details
    assert (tmp_path / "a" / VOLUME_FILE).read_bytes() == shown


def _dies(real):
    async def asked(*args):
        await real(*args)
        raise ZeroDivisionError

    return asked


def _dies_at_once(*_):
    raise ZeroDivisionError


@pytest.mark.trio
async def test_the_group_may_refuse_or_fail_and_the_token_is_good_later(issuer, tmp_path):
    text = issuer.invite()
    async with within():
        issuer.refuses = UsageError("the group is full")
        with pytest.raises(TrustError, match="the group is full") as caught:
            await join(text, tmp_path / "a", A)
        assert caught.value.errno == UsageError.errno
        issuer.refuses = ValueError("a defect")
        with pytest.raises(TrustError, match="its log has the details"):
            await join(text, tmp_path / "a", A)
        assert not (tmp_path / "a" / VOLUME_FILE).exists()
        issuer.refuses = None
        await join(text, tmp_path / "a", A)


@pytest.mark.trio
async def test_who_is_in_another_group_spends_no_token(issuer, tmp_path):
    other = Authority.create(tmp_path / "other", OTHER_GROUP)
    enrolled(other, tmp_path / "a", A)
    async with within():
        with pytest.raises(TrustError, match="leave that one first"):
            await join(issuer.invite(), tmp_path / "a", A)
    assert issuer.authority.invitations() == 1
    assert Credentials.load(tmp_path / "a").group == OTHER_GROUP


@pytest.mark.trio
async def test_a_second_address_is_gone_to(issuer, tmp_path):
    dead = ["tcp:127.0.0.1:1", str(issuer.address)]
    async with within():
        await join(issuer.authority.invite(B, dead), tmp_path / "a", A)
        for address in ("tcp:127.0.0.1:1", "unix:/nowhere"):
            with pytest.raises(TransportError, match=address):
                await join(issuer.authority.invite(B, [address]), tmp_path / "c", C)


class Liar:
    """Listens where the issuer should be, and notes what it is told."""

    def __init__(self, shown, authority):
        self.shown = shown
        self.authority = authority
        self.heard = []
        self.connections = 0

    async def run(self, task_status):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(bound_address(listener))
        await trio.serve_listeners(self.serve, [listener])

    async def serve(self, raw):
        self.connections += 1
        context = self.shown.server_context(joining.PROTOCOL, strangers=True)
        try:
            stream, _ = await secured(raw, context, joining.PROTOCOL, listening=True)
            framed = Framed(stream, (Join | Renew,), bytes_max=1 << 16)
            await framed.say(0, Greeting(self.authority))
            self.heard.append((await framed.hear()).message)
            await framed.say(0, Issued(b"", b""))
        except RaidfsError:
            pass


@pytest.mark.trio
@pytest.mark.parametrize(
    "kind",
    ["another authority", "the authority's certificate only", "a member that isn't the issuer"],
)
async def test_who_only_says_to_be_the_issuer_is_told_nothing(issuer, tmp_path, nursery, kind):
    foreign = Authority.create(tmp_path / "foreign", GROUP)
    right = issuer.authority.certificate
    if kind == "another authority":
        liar = Liar(enrolled(foreign, tmp_path / "liar", B), foreign.certificate)
        why = "not the issuer of this token"
    elif kind == "the authority's certificate only":
        liar = Liar(enrolled(foreign, tmp_path / "liar", B), right)
        why = "not accepted here"
    else:
        liar = Liar(enrolled(issuer.authority, tmp_path / "liar", C), right)
        why = f"volume {C} is at"
    address = await nursery.start(liar.run)
    async with within():
        text = issuer.authority.invite(B, [str(address)])
        with pytest.raises((TrustError, TransportError), match=why):
            await join(text, tmp_path / "a", A)
    assert liar.connections and liar.heard == []
    assert issuer.authority.invitations() == 1


@pytest.mark.trio
async def test_what_is_issued_has_to_fit(issuer, tmp_path, nursery):
    """Even the issuer can't make a volume use a certificate for another key."""
    liar = Liar(Credentials.load(issuer.keys), issuer.authority.certificate)
    address = await nursery.start(liar.run)
    async with within():
        with pytest.raises(TrustError, match="isn't a certificate"):
            await join(issuer.authority.invite(B, [str(address)]), tmp_path / "a", A)
    assert len(liar.heard) == 1 and isinstance(liar.heard[0], Join)
    theirs = issuer.authority.enroll(new_request(tmp_path / "c", C))
    ours = issuer.authority.enroll(new_request(tmp_path / "a", A))
    for volume, certificate in ((A, theirs), (C, theirs), (C, ours)):
        with pytest.raises(TrustError, match="another volume or key"):
            install(tmp_path / "a", volume, certificate, issuer.authority.certificate)
    assert not (tmp_path / "a" / VOLUME_FILE).exists()


@pytest.mark.trio
async def test_a_certificate_is_renewed_by_who_shows_it(issuer, tmp_path):
    async with within():
        await join(issuer.invite(), tmp_path / "a", A)
        before = (tmp_path / "a" / VOLUME_FILE).read_bytes()
        for _ in range(3):
            renewed = await renew(tmp_path / "a", B, issuer.address)
        assert (renewed.volume, renewed.group) == (A, GROUP)
        after = (tmp_path / "a" / VOLUME_FILE).read_bytes()
        assert before.split(b"BEGIN CERT")[0] != after.split(b"BEGIN CERT")[0]  # the key, too
        issuer.authority.forget(A)
        with pytest.raises(TrustError, match="left the group"):
            await renew(tmp_path / "a", B, issuer.address)
        with pytest.raises(TrustError, match="not the issuer"):
            await renew(tmp_path / "a", C, issuer.address)


async def ask(issuer, context, question):
    """What the issuer answers on such a connection."""
    raw = await connect_tcp(issuer.address)
    stream, _ = await secured(raw, context, joining.PROTOCOL, listening=False)
    framed = Framed(stream, (Greeting | Issued | Denied,), bytes_max=1 << 20)
    assert isinstance((await framed.hear()).message, Greeting)
    await framed.say(0, question)
    return (await framed.hear()).message


@pytest.mark.trio
async def test_who_shows_none_or_a_wrong_certificate_renews_nothing(issuer, tmp_path):
    request = new_request(tmp_path / "thief", A)
    enrolled(issuer.authority, tmp_path / "a", A)
    bare = tls(ssl.PROTOCOL_TLS_CLIENT, joining.PROTOCOL, issuer.authority.certificate)
    async with within():
        answer = await ask(issuer, bare, Renew(request))
        assert isinstance(answer, Denied) and "has to show it" in answer.why
        other = enrolled(issuer.authority, tmp_path / "c", C).client_context(joining.PROTOCOL)
        answer = await ask(issuer, other, Renew(request))
        assert isinstance(answer, Denied) and "its own certificate only" in answer.why
        foreign = Authority.create(tmp_path / "foreign", GROUP)
        stranger = enrolled(foreign, tmp_path / "s", A).client_context(joining.PROTOCOL)
        stranger.verify_mode = ssl.CERT_NONE
        with pytest.raises(TransportError):
            await ask(issuer, stranger, Renew(request))
        long_ago = Authority(tmp_path / "authority", clock=lambda: time.time() - 366 * DAY_S)
        long_ago.forget(C)
        discard(tmp_path / "c")
        expired = enrolled(long_ago, tmp_path / "c", C)
        with pytest.raises(TransportError):
            await ask(issuer, expired.client_context(joining.PROTOCOL), Renew(request))
        with pytest.raises(TrustError, match="has expired"):
            await renew(tmp_path / "c", B, issuer.address)
        # What it says to do next helps, and the key stays.
        await join(issuer.invite(), tmp_path / "c", C)
        assert Credentials.load(tmp_path / "c").expires_s > time.time() + 360 * DAY_S


@pytest.mark.slow
@pytest.mark.trio
async def test_strangers_who_say_nothing_or_nonsense_hold_nobody_up(issuer, tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "TALK_S_MAX", 0.5)
    silent = [await connect_tcp(issuer.address) for _ in range(joining.STRANGERS_MAX)]
    await trio.sleep(0.1)
    with pytest.raises(TransportError):
        await join(issuer.invite(), tmp_path / "a", A)
    bare = tls(ssl.PROTOCOL_TLS_CLIENT, joining.PROTOCOL, issuer.authority.certificate)
    async with within():
        for stream in silent:
            assert await stream.receive_some() == b""
        monkeypatch.setattr(joining, "TALK_S_MAX", 10.0)
        for nonsense in (Greeting(b""), Join(b"x" * 65, b"", b""), Join(b"", b"x" * 5000, b"")):
            with pytest.raises(TransportError):
                await ask(issuer, bare, nonsense)
        raw = await connect_tcp(issuer.address)
        await raw.send_all(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while await raw.receive_some():
                pass
        await join(issuer.invite(), tmp_path / "a", A)
    assert issuer.server.statistics()["issued"] == 1
