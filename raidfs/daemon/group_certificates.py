"""Renewing the certificate of a volume's group before it ends, without anybody's doing.

A volume makes a new key, asks the keeper over the link that they have (which proves who asks), and
takes the certificate into use; the next connections show it. The keeper signs for itself.

 1. The key is made on the volume's host and stays there; a crash at any moment leaves the old
    credentials or the new ones, and asking again with the same key gives the same certificate.
 2. It is begun when a third of a certificate's life is left, and tried again until it is done:
    at once when the keeper is back, and every RETRY_S otherwise.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable

import trio

from raidfs.daemon.group import GroupProcess
from raidfs.errors import RaidfsError
from raidfs.group import keys
from raidfs.group.authority import Authority
from raidfs.group.charter import RenewAsked, RenewTold
from raidfs.group.keys import Credentials, TrustError

log = logging.getLogger("raidfs.group")

CHECK_S = 3600.0
RETRY_S = 60.0
ANSWER_S = 20.0
Hearer = Callable[[str, object], None]


class GroupCertificates:
    """Of one mounted volume. `clock`: seconds of the epoch of 1970."""

    def __init__(self, group: GroupProcess, clock: Callable[[], float] = time.time) -> None:
        self.group = group
        self.trouble = ""  # why a renewal that is due isn't done
        self._clock = clock
        self._answer: RenewTold | None = None
        self._awaited = ""  # whose answer
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()

    def hearers(self) -> dict[type, Hearer]:
        """By the message that each takes."""
        return {RenewAsked: self._asked, RenewTold: self._told}

    def up(self, peer: str) -> None:
        """There is a session with it."""
        charter = self.group.charter
        if charter is not None and peer == charter.keeper:
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                await self.group.until(lambda: self.group.charter is not None)
                self._wake, wait_s = trio.Event(), CHECK_S
                try:
                    await self._renew_if_due()
                    self.trouble = ""
                except RaidfsError as error:
                    self.trouble, wait_s = f"not renewed: {error}", RETRY_S
                    log.warning("group certificate: %s", self.trouble)
                with trio.move_on_after(wait_s):
                    await self._wake.wait()

    # -- telling ----------------------------------------------------------------------------------

    async def ends(self) -> tuple[dict[str, int], int | None]:
        """When the certificates end that are known here, by volume; and the authority."""
        return await trio.to_thread.run_sync(self._ends)

    def _ends(self) -> tuple[dict[str, int], int | None]:
        if not self._is_certified():
            return {}, None
        try:
            own = Credentials.load(self.group.keys)
            found = {}
            if self._is_keeper():
                found = Authority(self.group.authority).holders()
            found[self.group.me] = own.expires_s
        except TrustError as error:
            log.warning("group certificate: %s", error)
            return {}, None
        return {volume: int(ends) for volume, ends in found.items()}, int(own.authority_expires_s)

    def _is_certified(self) -> bool:
        """This volume talks over TLS."""
        charter = self.group.charter
        own = charter.member(self.group.me) if charter else None
        return own is not None and bool(own.addresses)

    def _is_keeper(self) -> bool:
        return self.group.charter is not None and self.group.charter.keeper == self.group.me

    # -- one that is due --------------------------------------------------------------------------

    async def _renew_if_due(self) -> None:
        """TrustError, RaidfsError."""
        charter, me = self.group.charter, self.group.me
        if charter is None or not self._is_certified():
            return
        credentials = await trio.to_thread.run_sync(Credentials.load, self.group.keys)
        if not credentials.is_due(self._clock()):
            return
        if credentials.expires_s <= self._clock() and not self._is_keeper():
            raise TrustError(
                "the certificate has ended; on the keeper's host make a token (raidfs-ctl group"
                " invite), and here: raidfs-ctl group join --renew MOUNTPOINT TOKEN"
            )
        request = await trio.to_thread.run_sync(keys.new_request, self.group.keys, me)
        if self._is_keeper():
            certificate = await trio.to_thread.run_sync(self._sign, me, request)
        else:
            certificate = await self._signed(
                charter.keeper, charter.called(charter.keeper), request
            )
        install = functools.partial(
            keys.install, self.group.keys, me, certificate, credentials.authority
        )
        renewed = await trio.to_thread.run_sync(install)
        days = math.floor((renewed.expires_s - self._clock()) / 86400)
        log.warning("group certificate: renewed, good for %d days", days)

    async def _signed(self, keeper: str, called: str, request: bytes) -> bytes:
        self._answer, self._awaited = None, keeper
        if not self.group.send(keeper, RenewAsked(request)):
            raise TrustError(f"{called}, which signs it, can't be reached")
        with trio.move_on_after(ANSWER_S):
            await self.group.until(lambda: self._answer is not None)
        answer, self._awaited = self._answer, ""
        if answer is None:
            raise TrustError(f"{called} doesn't answer")
        if not answer.certificate:
            raise TrustError(f"{called} has refused: {answer.why}")
        return answer.certificate

    def _told(self, peer: str, message: object) -> None:
        assert isinstance(message, RenewTold)
        if peer == self._awaited:
            self._answer = message
            self.group.changed()

    # -- the keeper's side ------------------------------------------------------------------------

    def _sign(self, volume: str, request: bytes) -> bytes:
        return Authority(self.group.authority, clock=self._clock).reissue(volume, request)

    def _asked(self, peer: str, message: object) -> None:
        assert isinstance(message, RenewAsked)
        if self._nursery is not None:
            self._nursery.start_soon(self._answered, peer, message.request)

    async def _answered(self, peer: str, request: bytes) -> None:
        try:
            if not self._is_keeper() or not self._is_certified():
                raise TrustError("certificates are signed by the group's keeper, over TLS")
            certificate = await trio.to_thread.run_sync(self._sign, peer, request)
            told = RenewTold(certificate)
        except RaidfsError as error:
            log.warning("group certificate of %s: %s", peer, error)
            told = RenewTold(why=str(error)[:1000])
        self.group.send(peer, told)
