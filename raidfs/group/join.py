"""Joining a group, and renewing a certificate: what is said between a volume and the issuer.

The issuer is the daemon on whose host the authority's key is. Who joins has a token and nothing
else, so it connects twice: first only to be given the authority's certificate, which is the right
one if it has the fingerprint that the token carries; then with TLS that believes that authority and
nobody else, and the volume that the token names as issuer.

 1. The token's secret and the request are said to the issuer only, after it has proved to be it.
 2. The issuer gives a certificate for a secret that it knows (authority.py) and if `admit` agrees;
    a renewal, to who shows in the same connection the certificate to be renewed.
 3. Asking again after a lost answer gives the same answer; a crash at either end leaves nothing
    that asking again doesn't finish.
 4. A stranger costs a bounded number of bytes, `TALK_S_MAX`, and one of `STRANGERS_MAX` places.
"""

from __future__ import annotations

import errno
import hmac
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio

from raidfs.errors import RaidfsError
from raidfs.group.authority import Authority, Token, TokenError, parse_token
from raidfs.group.keys import (
    VOLUME_FILE,
    Applicant,
    Credentials,
    TrustError,
    fingerprint_of,
    install,
    new_request,
    same_request,
    tls,
)
from raidfs.group.transport import (
    Address,
    Framed,
    TcpAddress,
    TransportError,
    bound_address,
    connect_tcp,
    listen_tcp,
    parse_address,
    secured,
)
from raidfs.group.wire import WireError

PROTOCOL = "raidfs-join/1"
ASKED_BYTES_MAX = 64 << 10  # of a frame from somebody who isn't known yet
TALK_S_MAX = 20.0
STRANGERS_MAX = 16
log = logging.getLogger(__name__)

Details = Annotated[bytes, msgspec.Meta(max_length=32 << 10)]
Request = Annotated[bytes, msgspec.Meta(max_length=4 << 10)]


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag="greeting"):
    """The issuer's first word: the authority's certificate (DER)."""

    authority: bytes


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """Asks for a certificate. `details`: for `admit`, not looked into here."""

    secret: Annotated[bytes, msgspec.Meta(max_length=64)]
    request: Request
    details: Details

    def __repr__(self) -> str:
        return "Join()"  # without the secret


class Renew(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """Asks for a certificate for a new key."""

    request: Request


class Issued(msgspec.Struct, frozen=True, array_like=True, tag="issued"):
    """The certificate (DER). `details`: what `admit` gave."""

    certificate: bytes
    details: bytes


class Denied(msgspec.Struct, frozen=True, array_like=True, tag="denied"):
    """There is none, and why."""

    why: str
    errno: int


Admit = Callable[[Applicant, bytes], Awaitable[bytes]]
"""Takes a volume into the group, durably, and gives what it needs to know (the roster, say); or
raises a RaidfsError with a sentence for who asked. Called again for one that asks again."""


class JoinServer:
    """The issuer's side. It needs to listen only while there are invitations, or renewals due."""

    def __init__(self, authority: Authority, keys: Path, admit: Admit) -> None:
        self._authority = authority
        self._keys = keys
        self._admit = admit
        self._strangers = 0
        self._issued = 0
        self._denied = 0
        self._turn = trio.Lock()  # one certificate at a time

    async def run(
        self,
        address: TcpAddress,
        *,
        task_status: trio.TaskStatus[tuple[Address, ...]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled; says where it listens once it does. TransportError, TrustError."""
        Credentials.load(self._keys)
        listeners = await listen_tcp(address)
        task_status.started(tuple(bound_address(listener) for listener in listeners))
        await trio.serve_listeners(self._serve, listeners)

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        return {"issued": self._issued, "denied": self._denied}

    async def _serve(self, raw: trio.SocketStream) -> None:
        if self._strangers >= STRANGERS_MAX:
            await trio.aclose_forcefully(raw)
            return
        self._strangers += 1
        try:
            with trio.move_on_after(TALK_S_MAX):
                await self._talk(raw)
        except RaidfsError as error:
            log.info("group join: a connection came to nothing: %s", error)
        finally:
            self._strangers -= 1
            await trio.aclose_forcefully(raw)

    async def _talk(self, raw: trio.SocketStream) -> None:
        context = Credentials.load(self._keys).server_context(PROTOCOL, strangers=True)
        stream, _ = await secured(raw, context, PROTOCOL, listening=True)
        framed = Framed(stream, (Join | Renew,), bytes_max=ASKED_BYTES_MAX)
        await framed.say(0, Greeting(self._authority.certificate))
        _, asked = await framed.hear()
        answer = await self._answer(asked, stream.tls.getpeercert(binary_form=True))
        await framed.say(0, answer)

    async def _answer(self, asked: Join | Renew, shown: bytes | None) -> Issued | Denied:
        try:
            async with self._turn:
                issued = await self._issue(asked, shown)
        except RaidfsError as error:
            self._denied += 1
            log.warning("group join: refused: %s", error)
            return Denied(str(error), error.errno)
        except Exception:
            log.exception("group join: a request failed")
            return Denied("the issuer failed here; its log has the details", errno.EIO)
        self._issued += 1
        return issued

    async def _issue(self, asked: Join | Renew, shown: bytes | None) -> Issued:
        authority = self._authority
        if isinstance(asked, Renew):
            if not shown:
                raise TrustError("who renews a certificate has to show it")
            renew = partial(authority.renew, shown, asked.request)
            _, certificate = await trio.to_thread.run_sync(renew)
            return Issued(certificate, b"")
        redeem = partial(authority.redeem, asked.secret, asked.request)
        applicant, certificate = await trio.to_thread.run_sync(redeem)
        details = await self._admit(applicant, asked.details)
        log.warning("group join: volume %s was let in by a token", applicant.volume)
        return Issued(certificate, details)


async def join(text: str, keys: Path, volume: str, details: bytes = b"") -> tuple[Token, bytes]:
    """Makes `volume` one of the token's group: its credentials are in `keys` then. Gives the token,
    and what the issuer's `admit` gave. TokenError, TrustError, TransportError; try again with
    the same token after an error of the connection. A volume that is in the group already, with
    a certificate that has expired, say, keeps its key."""
    token = parse_token(text)
    is_in = (keys / VOLUME_FILE).exists()
    if is_in and fingerprint_of(Credentials.load(keys).authority) != token.fingerprint:
        raise TrustError("this volume is in another group; leave that one first", errno.EEXIST)
    addresses = [parse_address(address) for address in token.addresses]
    address, authority = await _authority_of(token, addresses)
    request = same_request(keys, volume) if is_in else new_request(keys, volume)
    context = tls(ssl.PROTOCOL_TLS_CLIENT, PROTOCOL, authority)
    asked = Join(token.secret, request, details)
    issued = await _ask(address, context, token.issuer, asked)
    install(keys, volume, issued.certificate, authority)
    return token, issued.details


async def renew(keys: Path, issuer: str, address: Address) -> Credentials:
    """A new key and certificate in place of those in `keys`; connections made from then on show
    them. TrustError, TransportError."""
    credentials = Credentials.load(keys)
    if credentials.expires_s <= time.time():
        raise TrustError("the certificate has expired: get a token, and join the group again")
    request = new_request(keys, credentials.volume)
    context = credentials.client_context(PROTOCOL)
    issued = await _ask(address, context, issuer, Renew(request))
    return install(keys, credentials.volume, issued.certificate, credentials.authority)


async def _authority_of(token: Token, addresses: Sequence[Address]) -> tuple[Address, bytes]:
    """The group's authority, as the token knows it, and the address that gave it."""
    failure: RaidfsError = TokenError("the token names no address to go to; ask for another")
    for address in addresses:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # nothing is said, and the fingerprint is compared
            context.set_alpn_protocols([PROTOCOL])
            framed, _ = await _open(address, context)
            authority = await _greeted(framed)
            await framed.close()
        except (TransportError, TrustError, WireError) as error:
            failure = TransportError(f"{address}: {error}", error.errno)
            continue
        if hmac.compare_digest(fingerprint_of(authority), token.fingerprint):
            return address, authority
        failure = TrustError(f"who answers at {address} is not the issuer of this token")
    raise failure


async def _ask(
    address: Address, context: ssl.SSLContext, issuer: str, asked: Join | Renew
) -> Issued:
    framed, volume = await _open(address, context)
    try:
        if volume != issuer:
            raise TrustError(f"volume {volume} is at {address}, not the issuer, {issuer}")
        await _greeted(framed)
        await framed.say(0, asked)
        answer = await _heard(framed)
    finally:
        await framed.close()
    if isinstance(answer, Denied):
        raise TrustError(answer.why, answer.errno)
    if not isinstance(answer, Issued):
        raise TransportError("the issuer didn't answer as it should", errno.EPROTO)
    return answer


async def _open(address: Address, context: ssl.SSLContext) -> tuple[Framed, str]:
    if not isinstance(address, TcpAddress):
        raise TransportError(f"{address} can't be used to join; it has to be tcp:HOST:PORT")
    try:
        with trio.fail_after(TALK_S_MAX):
            raw = await connect_tcp(address)
            stream, volume = await secured(raw, context, PROTOCOL, listening=False)
    except trio.TooSlowError as error:
        raise TransportError(f"{address} doesn't answer", errno.ETIMEDOUT) from error
    return Framed(stream, (Greeting | Issued | Denied,), bytes_max=1 << 20), volume


async def _greeted(framed: Framed) -> bytes:
    greeting = await _heard(framed)
    if not isinstance(greeting, Greeting):
        raise TransportError("what answers is no issuer", errno.EPROTO)
    return greeting.authority


async def _heard(framed: Framed) -> Any:
    return (await framed.hear(TALK_S_MAX)).message
