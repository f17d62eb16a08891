"""The quick way of one client: heads by native/heads.c, exchanges by PlainConnection, and when that is to be had.

It is taken for what is plain before it is sent, too: a credential that is ready, an idle connection, no checksum, no
look at the answer's Date due. All else begins in BlobClient as it always did, and what began here and came to something
else than the plain answer goes on there (`Begun`): a refusal, an answer of a gateway, a repeat with another date.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.plain import MOST_RANGE, NATIVE
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.signing import ServiceClock, Signer
from blobfuse_dysk.azure.wire import BlobRequests, Buffer, Reply, Request
from blobfuse_dysk.errors import TransportError

if TYPE_CHECKING:
    from blobfuse_dysk.azure.native._exchange import Heads

__all__ = ["Begun", "PlainWay", "heads_for"]


class Begun(NamedTuple):
    """An answer that is not the plain one. signer, offset_s: what the request was signed and dated with."""

    reply: Reply
    signer: Signer
    offset_s: float
    deadline: float


class PlainWay:
    """For one BlobClient. lost: makes the TransportError of an exchange that failed and of what was asked for."""

    def __init__(
        self,
        requests: BlobRequests,
        credential: Credential,
        pool: HttpPool,
        lost: Callable[[Exception, str], TransportError],
    ) -> None:
        self._requests = requests
        self._credential = credential
        self._pool = pool
        self._lost = lost
        self._signer: Signer | None = None  # whom _heads and _clock are of
        self._heads: Heads | None = None
        self._clock: ServiceClock | None = None

    async def exchange(
        self, offset: int, length: int, data: Buffer | None, lease_id: str | None, epoch: int | None, deadline: float
    ) -> bytes | Begun | None:
        """Get Blob of a range, or Put Page, update, if there is data. Return the body, if the answer is the plain one.

        None if this way is not to be had just now; nothing was done then. Raises TransportError and nothing else.
        """
        signer = self._credential.ready_signer()
        if signer is not self._signer:
            self._change(signer)
        heads, clock, pool = self._heads, self._clock, self._pool
        if signer is None or heads is None:
            return None
        connection = pool.take_plain(deadline)
        if connection is None:
            return None
        try:
            # Signed now, not earlier, as in HttpPool.request; nothing awaits between that and the sending.
            date = clock.date() if clock else None
            offset_s = clock.offset_s if clock else 0.0
            if data is None:
                head = heads.get(date, offset, length) if length <= MOST_RANGE else None
            else:
                head = heads.put(date, offset, length, lease_id, epoch)
            if head is None:
                return None
            answer = await connection.exchange_plain(head, data, offset, length, pool.scratch)
        except Exception as error:
            if isinstance(error, TransportError):
                pool.drop_idle()
            raise self._lost(error, "read" if data is None else "write") from (error.__cause__ or error)
        finally:
            pool.leave_plain(connection)
        return Begun(answer, signer, offset_s, deadline) if isinstance(answer, Reply) else answer

    def _change(self, signer: Signer | None) -> None:
        """Sign by this one from now on."""
        self._signer = signer
        self._heads = heads_for(self._requests, signer) if signer else None
        means = signer.means() if signer else None
        self._clock = means.clock if means else None


def heads_for(requests: BlobRequests, signer: Signer) -> Heads | None:
    """What makes the heads of this blob's requests, signed by `signer`; None if that can only be done in Python."""
    means = signer.means()
    if NATIVE is None or means is None:
        return None
    get = requests.get_range(0, 512)
    put = requests.put_pages(0, b"", lease_id=None, epoch=None)
    texts = (
        *(_start(request, means.sas) for request in (get, put)),
        *(f"/{means.account}{request.resource}" for request in (get, put)),
        get.after.rstrip("\n").rpartition("\n")[2],
        f"Authorization:{means.authorization}" if means.authorization else "",
    )
    if not all(text.isascii() for text in texts):
        return None
    heads: Heads = NATIVE.Heads(*texts, means.inner, means.outer)
    return heads


def _start(request: Request, sas: str) -> str:
    """A head as sent, up to its first x-ms- header."""
    query = "&".join(filter(None, (request.query, sas)))
    line = f"{request.method} {request.target}{'?' if query else ''}{query} HTTP/1.1\n"
    return (line + request.common).replace("\n", "\r\n")
