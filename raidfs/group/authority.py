"""Who belongs to a group: its authority, the certificates of its volumes, and invitations to join.

A group has one authority, a key that signs and never leaves the directory it was made in. Each
volume makes a key of its own, hands in a request, and is given a certificate that names it
(`raidfs:volume:ID`). A *token* invites one volume: the secret that it shows, and the fingerprint by
which it knows the authority before it says anything. The *ledger* is what the authority remembers:
invitations by the hash of their secret, and which key and certificates each volume has.

 1. Keys and the ledger are 0600 in a directory that nobody else may write to; a key that others can
    read is refused, not used. What replaces a file is durable before it takes the file's name.
 2. A certificate names exactly one volume, is good for both ends of a connection and for nothing
    else, and never outlives the authority. Of a request only the key and the volume are used.
 3. A token is spent, durably, before the certificate leaves. Shown again with the same key, as
    after a lost reply, it gives the same certificate; with another key, nothing.
 4. A volume that has a certificate gets none for another key, unless it shows a certificate that is
    in the ledger (renewal) or was forgotten (it left).
"""

from __future__ import annotations

import base64
import datetime
import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from raidfs.group.keys import (
    AUTHORITY_FILE,
    GROUP_URI,
    IDENTITY,
    PEM,
    VOLUME_FILE,
    VOLUME_URI,
    Applicant,
    TrustError,
    check_directory,
    common_name,
    der,
    fingerprint_of,
    key_pem,
    named,
    read_certificate,
    read_key,
    read_private,
    read_request,
    volume_of,
    write_private,
)

AUTHORITY_S, VOLUME_S = 3653 * 86400, 365 * 86400
SKEW_S = 3600  # clocks of two hosts may differ by so much
INVITATION_S = 3600.0
TOKEN_PREFIX, TOKEN_VERSION, TOKEN_CHECK_BYTES, TOKEN_CHARS_MAX = "raidfs-join:", 1, 4, 4096
AUTHORITY_KEY, LEDGER_FILE = "authority.key", "ledger.json"
Clock = Callable[[], float]


class TokenError(TrustError):
    """A token that lets nobody in."""


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What an invitation carries. `addresses`: where the issuer listens; `issuer`: the volume that
    its certificate names; `fingerprint`: SHA-256 of the authority's certificate."""

    version: int
    group: str
    issuer: str
    addresses: tuple[str, ...]
    fingerprint: bytes
    secret: bytes
    expires_s: int

    def __repr__(self) -> str:
        return f"Token(group={self.group!r}, issuer={self.issuer!r})"  # without the secret


def token_text(token: Token) -> str:
    """As people hand it on."""
    packed = msgspec.msgpack.encode(token)
    check = hashlib.sha256(packed).digest()[:TOKEN_CHECK_BYTES]
    return TOKEN_PREFIX + base64.urlsafe_b64encode(packed + check).decode().rstrip("=")


def parse_token(text: str) -> Token:
    """TokenError for anything that isn't whole."""
    text = text.strip()
    refusal = TokenError("this is no token, or a part of it is missing; copy it whole")
    if not text.startswith(TOKEN_PREFIX) or len(text) > TOKEN_CHARS_MAX:
        raise refusal
    code = text.removeprefix(TOKEN_PREFIX)
    try:
        packed = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
        data, check = packed[:-TOKEN_CHECK_BYTES], packed[-TOKEN_CHECK_BYTES:]
        if hashlib.sha256(data).digest()[:TOKEN_CHECK_BYTES] != check:
            raise refusal
        token = msgspec.msgpack.decode(data, type=Token)
    except (ValueError, RecursionError) as error:  # also binascii.Error and DecodeError
        raise refusal from error
    if token.version != TOKEN_VERSION:
        raise TokenError("this token was made by another version of raidfs; use the same one here")
    return token


# ---- the authority ----


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _draft(
    subject: x509.Name, uri: str, key: Ed25519PublicKey, begins_s: float, ends_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(begins_s))
        .not_valid_after(_time(ends_s))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


class _Invitation(msgspec.Struct):
    expires_s: float
    volume: str = ""  # for this one only
    key: str = ""  # it was spent on (hash)


class _Holder(msgspec.Struct):
    key: str
    serials: list[str]  # the newest last
    certificate: bytes
    expires_s: float


class _Ledger(msgspec.Struct):
    version: int = 1
    invitations: dict[str, _Invitation] = {}
    holders: dict[str, _Holder] = {}


class Authority:
    """The group's authority, where its key is. Plain functions that may wait for a sync; several
    processes may use one directory at once."""

    def __init__(self, directory: Path, *, clock: Clock = time.time) -> None:
        """Opens what `create` made. TrustError."""
        check_directory(directory)
        self._directory = directory
        self._clock = clock
        self._key = read_key(directory / AUTHORITY_KEY)
        self._certificate = read_certificate(directory / AUTHORITY_FILE)
        self.group = named(self._certificate, GROUP_URI)
        self.certificate = der(self._certificate)
        self.fingerprint = fingerprint_of(self.certificate)
        if self._certificate.public_key() != self._key.public_key():
            raise TrustError(f"{directory} holds the key of another authority than its certificate")

    @classmethod
    def create(cls, directory: Path, group: str, *, clock: Clock = time.time) -> Authority:
        """A new one for that group; EEXIST if the directory has one already."""
        assert IDENTITY.fullmatch(group), group
        if (directory / AUTHORITY_KEY).exists() or (directory / VOLUME_FILE).exists():
            raise TrustError(
                f"{directory} belongs to a group already; leave it first", errno.EEXIST
            )
        key = Ed25519PrivateKey.generate()
        subject, now = common_name("group", group), clock()
        certificate = (
            _draft(subject, GROUP_URI + group, key.public_key(), now - SKEW_S, now + AUTHORITY_S)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
            .sign(key, None)
        )
        pem = certificate.public_bytes(PEM)
        write_private(directory, LEDGER_FILE, msgspec.json.encode(_Ledger()))
        write_private(directory, AUTHORITY_FILE, pem)
        write_private(directory, AUTHORITY_KEY, key_pem(key))  # last: without it there is none
        return cls(directory, clock=clock)

    @property
    def expires_s(self) -> float:
        """When it ends, and all its certificates with it."""
        return self._certificate.not_valid_after_utc.timestamp()

    def invite(
        self,
        issuer: str,
        addresses: Sequence[str],
        *,
        lifetime_s: float = INVITATION_S,
        volume: str = "",
    ) -> str:
        """A token; `issuer` is the volume whose daemon listens at `addresses` for who joins.
        `volume`: nobody else can use it."""
        secret = secrets.token_bytes(32)
        expires_s = self._clock() + lifetime_s
        with self._ledger() as ledger:
            ledger.invitations[hashlib.sha256(secret).hexdigest()] = _Invitation(expires_s, volume)
        return token_text(
            Token(
                TOKEN_VERSION,
                self.group,
                issuer,
                tuple(addresses),
                self.fingerprint,
                secret,
                int(expires_s),
            )
        )

    def invitations(self) -> int:
        """How many tokens could still let somebody in."""
        with self._ledger() as ledger:
            return sum(not row.key for row in ledger.invitations.values())

    def withdraw_all(self) -> None:
        """No token made so far lets anybody in."""
        with self._ledger() as ledger:
            ledger.invitations.clear()

    def redeem(self, secret: bytes, request: bytes) -> tuple[Applicant, bytes]:
        """Who shows a token's secret gets a certificate (DER). TokenError, TrustError."""
        applicant = read_request(request)
        key = applicant.key_hash
        with self._ledger() as ledger:
            row = ledger.invitations.get(hashlib.sha256(secret).hexdigest())
            if row is None:
                raise TokenError("this token is unknown or has expired; ask for a new one")
            if row.volume not in ("", applicant.volume):
                raise TokenError(f"this token is for volume {row.volume} only; ask for another")
            if row.key not in ("", key):
                raise TokenError("this token was used already; ask for a new one")
            holder = ledger.holders.get(applicant.volume)
            if row.key and (holder is None or holder.key != key):
                raise TokenError("this token was used already; ask for a new one")
            row.key = key
            return applicant, self._issued(ledger, applicant)

    def enroll(self, request: bytes) -> bytes:
        """A certificate (DER) for a volume of whoever calls: no token is asked for."""
        with self._ledger() as ledger:
            return self._issued(ledger, read_request(request))

    def renew(self, shown: bytes, request: bytes) -> tuple[Applicant, bytes]:
        """A certificate for a new key of the volume that has shown (and proved, by TLS) the one
        given. TrustError unless that one is in the ledger."""
        applicant = read_request(request)
        certificate = x509.load_der_x509_certificate(shown)
        if volume_of(shown) != applicant.volume:
            raise TrustError("a volume can renew its own certificate only")
        with self._ledger() as ledger:
            holder = ledger.holders.get(applicant.volume)
            if holder is None or f"{certificate.serial_number:x}" not in holder.serials:
                raise TrustError("this certificate was replaced, or its volume has left the group")
            if holder.key == applicant.key_hash:
                return applicant, self._issued(ledger, applicant)
            return applicant, self._sign(ledger, applicant, kept=certificate.serial_number)

    def reissue(self, volume: str, request: bytes) -> bytes:
        """A certificate (DER) for a new key of a volume that has proved, over a link, to be it.
        TrustError if it has none to be renewed."""
        applicant = read_request(request)
        if applicant.volume != volume:
            raise TrustError("a volume can renew its own certificate only")
        with self._ledger() as ledger:
            holder = ledger.holders.get(volume)
            if holder is None:
                raise TrustError("this volume has left the group")
            if holder.key == applicant.key_hash:
                return self._issued(ledger, applicant)
            return self._sign(ledger, applicant, kept=int(holder.serials[-1], 16))

    def forget(self, volume: str) -> None:
        """The volume has left: it can't renew, and may join anew with a token and another key."""
        with self._ledger() as ledger:
            ledger.holders.pop(volume, None)
            for secret_hash, row in list(ledger.invitations.items()):
                if volume == row.volume:
                    del ledger.invitations[secret_hash]

    def holders(self) -> dict[str, float]:
        """The volumes that have certificates, and when these expire."""
        with self._ledger() as ledger:
            return {volume: holder.expires_s for volume, holder in ledger.holders.items()}

    def _issued(self, ledger: _Ledger, applicant: Applicant) -> bytes:
        """The certificate that this key has already, or the volume's first."""
        holder = ledger.holders.get(applicant.volume)
        if holder is None:
            return self._sign(ledger, applicant)
        if holder.key != applicant.key_hash:
            raise TrustError(
                f"volume {applicant.volume} is in the group with another key; let it leave first",
                errno.EEXIST,
            )
        if holder.expires_s - self._clock() < VOLUME_S / 2:
            return self._sign(ledger, applicant)
        return holder.certificate

    def _sign(self, ledger: _Ledger, applicant: Applicant, kept: int | None = None) -> bytes:
        """`kept`: the serial of the certificate that is good for a renewal besides the new one,
        which may never arrive."""
        now = self._clock()
        ends_s = min(now + VOLUME_S, self.expires_s)
        public = self._key.public_key()
        subject, uri = common_name("volume", applicant.volume), VOLUME_URI + applicant.volume
        certificate = (
            _draft(subject, uri, applicant.key, now - SKEW_S, ends_s)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), False)
            .sign(self._key, None)
        )
        serials = [certificate.serial_number] if kept is None else [kept, certificate.serial_number]
        ledger.holders[applicant.volume] = _Holder(
            applicant.key_hash,
            [f"{serial:x}" for serial in serials],
            der(certificate),
            ends_s,
        )
        return der(certificate)

    @contextmanager
    def _ledger(self) -> Iterator[_Ledger]:
        """The ledger without invitations that have expired, ours alone meanwhile; durable
        afterwards if it was changed. What an error leaves half done is not kept."""
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            data = read_private(self._directory / LEDGER_FILE)
            try:
                ledger = msgspec.json.decode(data, type=_Ledger)
            except (ValueError, RecursionError) as error:
                raise TrustError(f"{self._directory / LEDGER_FILE} is damaged: {error}") from error
            now = self._clock()
            for secret_hash, row in list(ledger.invitations.items()):
                if row.expires_s <= now:
                    del ledger.invitations[secret_hash]
            yield ledger
            changed = msgspec.json.encode(ledger)
            if changed != data:
                write_private(self._directory, LEDGER_FILE, changed)
        finally:
            os.close(handle)
