"""Keys and certificates of a group as files, and what one volume shows to the others.

A certificate names one volume by the URI `raidfs:volume:ID`, that of a group's authority the group
by `raidfs:group:ID`. In a volume's directory: `authority.pem`, whom it believes; `volume.pem`, its
key and its certificate together, so that both are replaced at once; `pending.key`, a key for which
a certificate was asked. All are Ed25519. The directory must not lie in the mount that its daemon
serves, which reads it.

 1. A key is made where it is used and leaves that host never; files are 0600 in a directory that
    nobody else may write to. A key that others can read is refused, not used.
 2. What replaces a file is durable before it takes the file's name: a crash leaves the old
    credentials or the new ones.
 3. A connection is TLS 1.3, both ends show certificates of the group's authority that are valid
    now, and no session is resumed: each connection checks anew.
 4. A certificate that names nobody, several, or anything but one volume names no volume.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import ssl
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from raidfs.errors import RaidfsError

VOLUME_URI, GROUP_URI = "raidfs:volume:", "raidfs:group:"
IDENTITY = re.compile(r"[0-9a-f]{32}")  # of a volume or a group
AUTHORITY_FILE, VOLUME_FILE, PENDING_KEY = "authority.pem", "volume.pem", "pending.key"
RENEW_LEFT = 3  # renewed when less than one part of so many is left of its life
PEM = serialization.Encoding.PEM


class TrustError(RaidfsError):
    """Somebody isn't who they should be, or a key or certificate can't be relied on."""

    errno = errno.EACCES


def check_directory(directory: Path) -> None:
    """TrustError if others can put files there."""
    try:
        about = directory.stat()
    except OSError as error:
        raise TrustError(f"{directory} can't be used: {error.strerror}", error.errno) from error
    if about.st_mode & 0o022 or about.st_uid not in (0, os.geteuid()):
        raise TrustError(f"{directory} can be written to by others; chmod 700 it, or use another")


def write_private(directory: Path, name: str, data: bytes) -> None:
    """Makes or replaces a file that only its owner can read; durable on return. TrustError."""
    draft = directory / f".{name}.{secrets.token_hex(8)}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        check_directory(directory)
        _write_synced(draft, data)
        draft.rename(directory / name)
        sync_directory(directory)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise TrustError(
            f"{directory / name} can't be written: {error.strerror}", error.errno
        ) from error


def _write_synced(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(file)


def sync_directory(directory: Path) -> None:
    """Names made or taken away in it are durable on return."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_private(path: Path) -> bytes:
    """The content; TrustError if others could have read or changed it, or it isn't there."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TrustError(f"{path} can't be read: {error.strerror}", error.errno) from error
    with open(file, "rb") as stream:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o077:
            raise TrustError(f"others can read {path}; chmod 600 it if nobody did")
        if about.st_uid not in (0, os.geteuid()):
            raise TrustError(f"{path} belongs to another user; give it to the one who mounts")
        return stream.read()


def key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError) as error:
        raise TrustError(f"{path} holds no key that can be used: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path} holds a key of another kind than Ed25519")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_private(path))
    except ValueError as error:
        raise TrustError(f"{path} holds no certificate: {error}") from error


# ---- certificates and requests ----


def named(carrier: x509.Certificate | x509.CertificateSigningRequest, prefix: str) -> str:
    """The one name of that kind in it; TrustError if there are others, more or none."""
    try:
        names = carrier.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception as error:  # of many kinds, for what is missing, doubled or malformed
        raise TrustError("a certificate names nobody") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or len(list(names)) != 1 or not uris[0].startswith(prefix):
        raise TrustError("a certificate doesn't name one volume of a group")
    name = uris[0].removeprefix(prefix)
    if not IDENTITY.fullmatch(name):
        raise TrustError("a certificate names something that is no id")
    return name


def volume_of(certificate: bytes) -> str:
    """The volume that a certificate (DER) names. Whether it is to be believed is not asked."""
    try:
        parsed = x509.load_der_x509_certificate(certificate)
    except Exception as error:  # x509.InvalidVersion is no ValueError
        raise TrustError("what was shown is no certificate") from error
    return named(parsed, VOLUME_URI)


def fingerprint_of(certificate: bytes) -> bytes:
    """Of a certificate (DER)."""
    return hashlib.sha256(certificate).digest()


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


class Applicant(msgspec.Struct, frozen=True):
    """Who hands in a request: the volume it names, and the key it proved to have."""

    volume: str
    public: bytes  # of Ed25519, 32 bytes

    @property
    def key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.public)

    @property
    def key_hash(self) -> str:
        return hashlib.sha256(self.public).hexdigest()


def read_request(request: bytes) -> Applicant:
    """What a request (PKCS #10, DER) says; TrustError unless it is signed with the key in it."""
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        signed = parsed.is_signature_valid
    except Exception as error:  # cryptography raises many kinds for keys it doesn't know
        raise TrustError("what was handed in is no request for a certificate") from error
    if not isinstance(key, Ed25519PublicKey) or not signed:
        raise TrustError(
            "the request for a certificate isn't signed with an Ed25519 key of its own"
        )
    return Applicant(named(parsed, VOLUME_URI), key.public_bytes_raw())


def common_name(kind: str, name: str) -> x509.Name:
    """For people who look at a certificate; nothing rests on it."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"raidfs {kind} {name}")])


# ---- what a volume has ----


def new_request(directory: Path, volume: str) -> bytes:
    """A request (DER) for a certificate of that volume, for the pending key; made if there is
    none, so that asking again after a crash is asking for the same."""
    if not (directory / PENDING_KEY).exists():
        write_private(directory, PENDING_KEY, key_pem(Ed25519PrivateKey.generate()))
    return _request(directory / PENDING_KEY, volume)


def same_request(directory: Path, volume: str) -> bytes:
    """A request for the key that is in use already: for who has a certificate and asks again."""
    return _request(directory / VOLUME_FILE, volume)


def _request(path: Path, volume: str) -> bytes:
    assert IDENTITY.fullmatch(volume), volume
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(VOLUME_URI + volume)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name("volume", volume))
        .add_extension(names, critical=False)
        .sign(read_key(path), None)
    )
    return request.public_bytes(serialization.Encoding.DER)


def install(directory: Path, volume: str, certificate: bytes, authority: bytes) -> Credentials:
    """Takes what was issued (DER) into use, with the key it was issued for: the pending one, or
    that in use. TrustError unless it all fits, or if the directory is that of a volume in another
    group."""
    try:
        issued = x509.load_der_x509_certificate(certificate)
        issuer = x509.load_der_x509_certificate(authority)
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion) as error:
        raise TrustError("what was issued isn't a certificate of the group's authority") from error
    named(issuer, GROUP_URI)
    present = [name for name in (PENDING_KEY, VOLUME_FILE) if (directory / name).exists()]
    keys = [(name, read_key(directory / name)) for name in present]
    fitting = [(name, key) for name, key in keys if key.public_key() == issued.public_key()]
    if not fitting or named(issued, VOLUME_URI) != volume:
        raise TrustError("the certificate that was issued is for another volume or key")
    path = directory / AUTHORITY_FILE
    if not path.exists() or der(read_certificate(path)) != authority:
        if VOLUME_FILE in present:
            raise TrustError("this volume is in another group; leave that one first", errno.EEXIST)
        write_private(directory, AUTHORITY_FILE, issuer.public_bytes(PEM))
    name, key = fitting[0]
    write_private(directory, VOLUME_FILE, key_pem(key) + issued.public_bytes(PEM))
    if name == PENDING_KEY:
        (directory / PENDING_KEY).unlink()
    return Credentials.load(directory)


def discard(directory: Path) -> None:
    """After leaving a group: nothing here opens anything any more. The authority's own key, if it
    is here, goes with the rest."""
    for name in (VOLUME_FILE, PENDING_KEY, "authority.key", "ledger.json", AUTHORITY_FILE):
        (directory / name).unlink(missing_ok=True)
    if directory.exists():
        sync_directory(directory)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a volume shows, and whom it believes. `authority`: the certificate (DER)."""

    directory: Path
    volume: str
    group: str
    authority: bytes
    begins_s: float
    expires_s: float
    authority_expires_s: float

    @classmethod
    def load(cls, directory: Path) -> Credentials:
        """TrustError if they aren't there or don't belong together."""
        authority = read_certificate(directory / AUTHORITY_FILE)
        own = read_certificate(directory / VOLUME_FILE)
        try:
            own.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise TrustError(f"{directory} mixes two groups; leave, and join again") from error
        return cls(
            directory,
            named(own, VOLUME_URI),
            named(authority, GROUP_URI),
            der(authority),
            own.not_valid_before_utc.timestamp(),
            own.not_valid_after_utc.timestamp(),
            authority.not_valid_after_utc.timestamp(),
        )

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to renew."""
        return now_s >= self.expires_s - (self.expires_s - self.begins_s) / RENEW_LEFT

    def server_context(self, protocol: str, *, strangers: bool = False) -> ssl.SSLContext:
        """For who listens. `strangers`: some have no certificate yet; what is shown has to be valid
        all the same."""
        context = tls(ssl.PROTOCOL_TLS_SERVER, protocol, self.authority)
        context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
        context.num_tickets = 0
        self._show(context)
        return context

    def client_context(self, protocol: str) -> ssl.SSLContext:
        """For who connects. The caller asks `volume_of` what it reached."""
        context = tls(ssl.PROTOCOL_TLS_CLIENT, protocol, self.authority)
        self._show(context)
        return context

    def _show(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.directory / VOLUME_FILE)
        except (OSError, ssl.SSLError) as error:
            raise TrustError(f"{self.directory / VOLUME_FILE} can't be used: {error}") from error


def tls(side: int, protocol: str, authority: bytes) -> ssl.SSLContext:
    """TLS 1.3 and nothing older, with those whom that authority (DER) has signed. `protocol`: what
    is spoken inside (ALPN), so that a connection made for one thing can't be used for another."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # volumes are named, not hosts
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority)
    context.set_alpn_protocols([protocol])
    return context
