"""The quick way of one client: heads by native/heads.c, exchanges by PlainConnection, and when that is to be had.

It is taken for what is plain before it is sent, too: a credential that is ready, an idle connection, no checksum, no
look at the answer's Date due. All else begins in BlobClient as it always did, and what began here and came to something
else than the plain answer goes on there (`Begun`): a refusal, an answer of a gateway, a repeat with another date.

`begin` is for those who do not wait in a coroutine (store/passage.py has the theory): what they gave is told of the
plain answer, or handed the rest of the exchange, as a coroutine.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.plain import MOST_RANGE, NATIVE, Exchange
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.signing import ServiceClock, Signer
from blobfuse_dysk.azure.tlsconnection import ONE_RECORD
from blobfuse_dysk.azure.wire import BlobRequests, Buffer, Reply, Request
from blobfuse_dysk.errors import TransportError

if TYPE_CHECKING:
    from blobfuse_dysk.azure.native._exchange import Heads

__all__ = ["Begun", "PlainWay", "Then", "heads_for"]

_MOST_HEAD = 2 << 10  # bytes; of what a record takes. Where a head is longer, TlsConnection sends it
_MOST_PUT = 256 << 10  # bytes; of more, a socket does not take all at once


class Begun(NamedTuple):
    """An answer that is not the plain one. signer, offset_s: what the request was signed and dated with."""

    reply: Reply
    signer: Signer
    offset_s: float
    deadline: float


class Then(Protocol):
    """What is told how a call ended that was begun: one of these, once, and never while it is being begun.

    offset, length: of its range, in bytes. started: now, in trio's time. rest: in place of being told, if it has to go
    on at once.
    """

    offset: int
    length: int
    started: float
    rest: Coroutine[Any, Any, Any] | None

    def succeed(self, result: Buffer, now: float) -> None: ...
    def hand_over(self, rest: Coroutine[Any, Any, Any]) -> None: ...


Put: TypeAlias = tuple[Buffer, "str | None", "int | None"]
"""Of Put Page: the data, the lease's id, the epoch."""
What: TypeAlias = Callable[["Then", "Put | None", Coroutine[Any, Any, Begun]], Coroutine[Any, Any, Any]]


class _Call(Exchange):
    """A call that was begun: hears of its exchange, and tells `then`."""

    __slots__ = ("_deadline", "_offset_s", "_put", "_signer", "_then", "_way", "_what")

    def __init__(
        self,
        way: PlainWay,
        then: Then,
        what: What,
        put: Put | None,
        signer: Signer,
        offset_s: float,
        deadline: float,
        head: bytes,
        length: int,
    ) -> None:
        super().__init__(head, None if put is None else put[0], length)
        self._way = way
        self._then = then
        self._what = what
        self._put = put
        self._signer = signer
        self._offset_s = offset_s
        self._deadline = deadline

    def plain_came(self, answer: bytes) -> None:
        """See Exchange."""
        self._then.succeed(answer, self._way.pool.leave_plain(self.connection))

    def other_came(self) -> None:
        """See Exchange."""
        self._then.hand_over(self.rest())

    def rest(self) -> Coroutine[Any, Any, Any]:
        """What is left of the call."""
        return self._what(self._then, self._put, self._finish())

    async def _finish(self) -> Begun:
        pool, connection = self._way.pool, self.connection
        try:
            reply = await connection.rest_plain(self, pool.scratch)
        except Exception as error:
            raise self._way.failed(error, self._put is None) from (error.__cause__ or error)
        finally:
            pool.leave_plain(connection)
        return Begun(reply, self._signer, self._offset_s, self._deadline)


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
        self.pool = pool
        self._lost = lost
        self._most_put = ONE_RECORD - _MOST_HEAD if pool.has_tls else _MOST_PUT
        self._signer: Signer | None = None  # whom _heads and _clock are of
        self._heads: Heads | None = None
        self._clock: ServiceClock | None = None

    async def exchange(
        self, offset: int, length: int, data: Buffer | None, lease_id: str | None, epoch: int | None, deadline: float
    ) -> bytes | Begun | None:
        """Get Blob of a range, or Put Page, update, if there is data. Return the body, if the answer is the plain one.

        None if this way is not to be had just now; nothing was done then. Raises TransportError and nothing else.
        """
        pool = self.pool
        signer = self._ready_signer()
        connection = pool.take_plain(deadline) if signer else None
        if signer is None or connection is None:
            return None
        try:
            # Signed now, not earlier, as in HttpPool.request; nothing awaits between that and the sending.
            offset_s = self._clock.offset_s if self._clock else 0.0
            head = self._head(offset, length, data, lease_id, epoch)
            if head is None:
                return None
            answer = await connection.exchange_plain(head, data, offset, length, pool.scratch)
        except Exception as error:
            raise self.failed(error, data is None) from (error.__cause__ or error)
        finally:
            pool.leave_plain(connection)
        return Begun(answer, signer, offset_s, deadline) if isinstance(answer, Reply) else answer

    def begin(
        self,
        then: Then,
        what: What,
        offset: int,
        length: int,
        data: Buffer | None,
        lease_id: str | None,
        epoch: int | None,
        deadline: float,
    ) -> bool:
        """`exchange` without waiting for it. False if this way is not to be had just now; nothing was done then.

        what: makes the rest of the call, once it is known what became of its exchange.
        """
        if length > (MOST_RANGE if data is None else self._most_put):
            return False
        signer = self._ready_signer()
        head = self._head(offset, length, data, lease_id, epoch) if signer else None
        if signer is None or head is None:
            return False
        connection = self.pool.take_plain(deadline)
        if connection is None:
            return False
        put = None if data is None else (data, lease_id, epoch)
        offset_s = self._clock.offset_s if self._clock else 0.0
        call = _Call(self, then, what, put, signer, offset_s, deadline, head, length)
        if not connection.begin_plain(call, offset):
            then.rest = call.rest()
        return True

    def failed(self, error: Exception, reads: bool) -> TransportError:
        """What an exchange has raised, as those above are told of it."""
        if isinstance(error, TransportError):
            self.pool.drop_idle()
        return self._lost(error, "read" if reads else "write")

    def _ready_signer(self) -> Signer | None:
        """Who signs now; None if heads for him cannot be made here, or he is not ready."""
        signer = self._credential.ready_signer()
        if signer is not self._signer:
            self._change(signer)
        return signer if self._heads is not None else None

    def _head(
        self, offset: int, length: int, data: Buffer | None, lease_id: str | None, epoch: int | None
    ) -> bytes | None:
        date = self._clock.date() if self._clock else None
        assert self._heads is not None
        if data is None:
            return self._heads.get(date, offset, length) if length <= MOST_RANGE else None
        return self._heads.put(date, offset, length, lease_id, epoch)

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
