"""One operation of the service's REST interface: the request is sent, its proof renewed if refused, the answer judged.

Nothing is retried here. One exception is no retry of something that may have been done: a request refused for its
proof of identity (401, 403) is sent again with another date, if the service's clock seems to differ, and once more if
meanwhile the credential was renewed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

from blobfuse_dysk.azure.credential.credential import NO_CREDENTIAL, Credential
from blobfuse_dysk.azure.plainway import Begun
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.refusal import gateway_error, is_services_own, service_error
from blobfuse_dysk.azure.signing import DatedSigner, Signer
from blobfuse_dysk.azure.wire import Reply, Request
from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError, ServiceError, TransportError

__all__ = ["Operations"]

_CLOCK_S = 10.0  # how often an answer's Date is looked at
_NO_PROOF = frozenset({401, 403})
_DATED = frozenset({"key", "token"})  # credentials that date what they sign
_MAYBE_DATE = frozenset({"", "AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo"})


class Operations:
    """What is asked of one blob, for a client to extend. Raises ServiceError and TransportError, as BlobClient has it.

    `what` names the operation in errors. A `deadline` is a time of trio's clock.
    """

    def __init__(self, address: DiskAddress, credential: Credential, pool: HttpPool) -> None:
        self.address = address
        self.credential = credential
        self._pool = pool
        self._look_at_clock = -math.inf
        self._now = bound_clock()

    async def _ask(
        self, request: Request, success: int, what: str, timeout_s: float, begun: Begun | None = None
    ) -> Reply:
        """Send it, return the answer if its status is the one that means success, else raise. begun: it was sent."""
        await attach()
        now = self._now()
        credential = self.credential
        if begun is None:
            deadline = now + timeout_s
            signer = credential.ready_signer() or await self._signer(what, deadline)
            offset_s = credential.clock.offset_s
            reply = await self._send(request, signer, what, deadline)
        else:
            reply, signer, offset_s, deadline = begun
            self._check_origin(reply, what)
        if now >= self._look_at_clock or reply.status in _NO_PROOF:
            self._look_at_clock = now + _CLOCK_S
            credential.clock.measure(reply.header("date"))
        if reply.status in _NO_PROOF:
            reply = await self._prove_again(request, reply, signer, offset_s, what, deadline)
        if reply.status != success:
            if reply.status < 300:
                raise self._damaged(what, f"answered with status {reply.status} where {success} is due")
            raise service_error(reply, f"{what} of {self.address}")
        return reply

    async def _ask_with_metadata(
        self, make: Callable[..., Request], success: int, what: str, timeout_s: float
    ) -> Reply:
        """`_ask` for a request with metadata.

        How a value with white space in it is signed, the reference and the Azure SDKs do not agree on: if the service
        refuses the first way, which changes nothing, the other one is tried.
        """
        deadline = self._now() + timeout_s
        try:
            request, other = (make(as_sent=as_sent) for as_sent in (False, True))
        except ValueError as error:
            raise ServiceError(f"metadata of {self.address}: {error}", status=400, code="InvalidMetadata") from None
        try:
            return await self._ask(request, success, what, timeout_s)
        except ServiceError as error:
            if error.status != 403 or request.after == other.after or self.credential.kind != "key":
                raise
            return await self._ask(other, success, what, deadline - self._now())

    async def _prove_again(
        self, request: Request, reply: Reply, signer: Signer, offset_s: float, what: str, deadline: float
    ) -> Reply:
        """After a refusal of the proof, `reply`: ask with another date, then with another proof, if there are such.

        offset_s: what the request was dated with. Returns the last answer.
        """
        credential = self.credential
        if credential.kind in _DATED and reply.header("x-ms-error-code") in _MAYBE_DATE:
            for other_s in credential.clock.others(offset_s):
                reply = await self._send(request, DatedSigner(signer, credential.clock, other_s), what, deadline)
                if reply.status not in _NO_PROOF:
                    credential.clock.follow(other_s)
                    return reply
                credential.clock.disproved = True
        renewed = False
        with trio.move_on_at(deadline):
            renewed = await credential.renew_refused(signer)
        if renewed:
            signer = await self._signer(what, deadline)
            reply = await self._send(request, signer, what, deadline)
        return reply

    async def _send(self, request: Request, signer: Signer, what: str, deadline: float) -> Reply:
        """Send it, return the service's answer, whatever its status; raises TransportError and nothing else."""
        try:
            reply = await self._pool.request(request, signer, deadline)
        except Exception as error:
            raise self._lost(error, what) from (error.__cause__ or error)
        self._check_origin(reply, what)
        return reply

    def _check_origin(self, reply: Reply, what: str) -> None:
        if not is_services_own(reply):
            raise gateway_error(reply, f"{what} of {self.address}")

    async def _signer(self, what: str, deadline: float) -> Signer:
        """The signer to use now; renews the credential first when that is due."""
        credential = self.credential
        try:
            if credential.renew_at <= time.time():
                with trio.fail_at(deadline):
                    await credential.freshen()
            return credential.signer()
        except CredentialError as error:
            raise ServiceError(
                f"{what} of {self.address}: {error}", status=401, code=NO_CREDENTIAL, remedy=error.remedy
            ) from error
        except trio.TooSlowError:
            raise ServiceError(
                f"{what} of {self.address}: the {credential.describe()} did not come in time",
                status=401,
                code=NO_CREDENTIAL,
                remedy="run what fetches it by hand, as root, and see what it waits for",
            ) from None

    def _lost(self, error: Exception, what: str) -> TransportError:
        """The error of an exchange, saying which request of which disk it was.

        What nobody thought of must not end the worker; the request may have left by then.
        """
        if not isinstance(error, TransportError):
            text = f"{what} of {self.address}: unexpected {type(error).__name__}: {error}"
            return TransportError(text, sent=True)
        text = f"{what} of {self.address}: {error}"
        return TransportError(text, sent=error.sent, stale=error.stale, remedy=error.remedy)

    def _damaged(self, what: str, how: str) -> TransportError:
        return TransportError(f"{what} of {self.address}: damaged answer: {how}", sent=True)
