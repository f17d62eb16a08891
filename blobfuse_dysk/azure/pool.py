"""A pool of HTTP connections to one endpoint. One attempt a request; those above retry, as they know what is safe.

Connections are made when needed, up to a bound, and the one used last is used next, so that few are kept busy and the
rest close. One task of the pool (a trio system task, so that no nursery has to be handed around) closes idle
connections and ends exchanges that are past their deadline; this is cheaper than a cancel scope for every request.
"""

from __future__ import annotations

import math
import socket
import ssl

import trio

from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.plain import PlainConnection, Pump, is_there
from blobfuse_dysk.azure.signing import Signer
from blobfuse_dysk.azure.tls import tls_context, untrusted
from blobfuse_dysk.azure.tlsconnection import Tls, TlsConnection
from blobfuse_dysk.azure.tunnel import open_stream
from blobfuse_dysk.azure.wire import Reply, Request
from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import TransportError
from blobfuse_dysk.proxies import Proxy

__all__ = ["HttpPool"]

MAX_CONNECTIONS = 256
IDLE_S = 60.0  # an idle connection is closed after this, or earlier if the server's Keep-Alive header says so
_SCRATCH = 64 << 10  # bytes
_LOOK_S = 5.0  # the keeper looks at least this often while connections are open
_EXPIRY_REPEAT_S = 0.05


class HttpPool(trio.abc.AsyncResource):
    """Connections to one endpoint. Any number of requests may run at the same time, from any tasks of one trio run."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        ssl_context: ssl.SSLContext | None = None,
        connect_timeout_s: float = 10.0,
        max_connections: int = MAX_CONNECTIONS,
        proxy: Proxy | None = None,
    ) -> None:
        """ssl_context: tls_context() by default. max_connections: further requests wait, first come first served.

        proxy: the way to the endpoint, None for a direct one.
        """
        self._endpoint = endpoint
        self._proxy = proxy
        self._tls = (ssl_context or tls_context()) if endpoint.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._free = max_connections  # slots: those of connections that are not busy, nor being made
        self._waiting = trio.lowlevel.ParkingLot()  # for a slot, which who leaves one gives to the first of them
        self._session: ssl.SSLSession | None = None  # of the endpoint's TLS, for the connections to come
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self.scratch = bytearray(_SCRATCH)
        self._pump = Pump()
        self.plain = is_there()  # whether connections may have the quick way
        self._closed = False
        self._wake_at = math.inf  # when the keeper looks next; inf: it does not run
        self._nap = trio.CancelScope()
        self._keeping = False
        self._now = bound_clock()

    @property
    def has_tls(self) -> bool:
        """Whether what is sent is encrypted."""
        return self._tls is not None

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._idle) + len(self._busy)

    async def request(self, request: Request, signer: Signer, deadline: float) -> Reply:
        """Send a request and return the answer, whatever its status; redirects are not followed.

        deadline: of all of it, waiting for a connection included, in trio's time. Raises TransportError (see errors.py
        for what sent and stale mean). Cancellation closes the connection, and the request may or may not have arrived.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait_for_slot(deadline)
        try:
            connection = self._take_idle() or await self._connect(deadline)
            connection.deadline = deadline
            self._busy.add(connection)
            try:
                if deadline < self._wake_at:
                    self._look_at(deadline)
                # Signed now, not earlier: waiting for a connection must not age the signature.
                head = signer.head(request)
                return await connection.exchange(
                    head, request.body, self.scratch, no_body=request.method == "HEAD", most=request.most
                )
            except TransportError:
                self.drop_idle()
                raise
            finally:
                self._busy.discard(connection)
                self._give_back(connection)
        finally:
            self._leave_slot()

    def take_plain(self, deadline: float) -> PlainConnection | None:
        """An idle connection for one exchange, if there is one just now that has the quick way (plain.py).

        To be given to `leave_plain` afterwards, whatever became of it; and see drop_idle.
        """
        idle = self._idle
        if not idle or not self._free:
            return None
        connection = self._take_idle()
        if not isinstance(connection, PlainConnection):
            if connection is not None:
                idle.append(connection)
            return None
        self._free -= 1
        connection.deadline = deadline
        self._busy.add(connection)
        if deadline < self._wake_at:
            self._look_at(deadline)
        return connection

    def leave_plain(self, connection: PlainConnection) -> float:
        """Take back what take_plain gave; the time at which that is, in trio's time."""
        self._busy.discard(connection)
        if self._waiting:
            self._waiting.unpark()
        else:
            self._free += 1
        return self._give_back(connection)

    def hurry(self, timeout_s: float) -> None:
        """Let no exchange that is on its way now take longer than timeout_s from now."""
        deadline = trio.current_time() + timeout_s
        for connection in self._busy:
            connection.deadline = min(connection.deadline, deadline)
        if self._busy and deadline < self._wake_at:
            self._look_at(deadline)

    async def aclose(self) -> None:
        """Close all connections; requests in flight fail. Idempotent."""
        self._closed = True
        self._nap.cancel()
        self._pump.close()
        self.drop_idle()
        self.hurry(0.0)  # the keeper goes on until all have ended: see _tend
        await trio.lowlevel.checkpoint()

    async def _wait_for_slot(self, deadline: float) -> None:
        with trio.move_on_at(deadline):
            await self._waiting.park()
            return
        raise TransportError("no connection became free within the time limit", sent=False)

    def _leave_slot(self) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._free += 1

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    def drop_idle(self) -> None:
        """One connection failed: whatever ended it, a NAT that lost its table or a service that was replaced, ended
        those that were idle meanwhile as well. The request's repeat must not try them one after the other."""
        while self._idle:
            self._idle.pop().close()

    def _give_back(self, connection: Connection) -> float:
        now = self._now()
        if not connection.idle_since and connection.reusable and isinstance(connection, TlsConnection):
            self._session = connection.session  # tickets come with the first answer
        if connection.reusable and not self._closed:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            connection.close()
        return now

    async def _connect(self, deadline: float) -> Connection:
        """Open a connection, directly or through the proxy."""
        where = f"{self._endpoint.scheme}://{self._endpoint.authority}"
        if self._proxy:
            where += f" through the proxy {self._proxy}"
        if self._closed:
            raise TransportError(f"{where}: the client is closed", sent=False)
        try:
            with trio.move_on_at(min(deadline, trio.current_time() + self._connect_timeout_s)):
                connection = await self._open()
                if not self._closed:
                    return connection
                connection.close()
                raise TransportError(f"{where}: the client is closed", sent=False)
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"{where}: its certificate is not accepted ({error.verify_message.rstrip('.')})",
                sent=False,
                remedy=untrusted(error),
            ) from error
        except OSError as error:
            reason = _reason(error)
            raise TransportError(f"cannot connect to {where} ({reason.strerror or reason})", sent=False) from reason
        raise TransportError(f"cannot connect to {where} (no answer within the time limit)", sent=False)

    async def _open(self) -> Connection:
        stream = await open_stream(self._endpoint, self._proxy)
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            sock.setblocking(False)
            if self._tls is None:
                return self._pump.connection(sock) if self.plain else Connection(sock)
            # Resumed, a handshake takes 0.50 in place of 0.66 ms of our CPU time, and a pool may make 256 of them.
            tls = Tls.of(self._tls, self._endpoint.host, self._session)
            connection = TlsConnection(sock, tls)
            await connection.handshake()
            return self._pump.connection(sock, tls) if self.plain else connection
        except BaseException:
            sock.close()
            raise

    def _look_at(self, when: float) -> None:
        """Have the keeper look at `when` at the latest; starts it if it does not run."""
        self._wake_at = when
        self._nap.deadline = when
        if not self._keeping:
            self._keeping = True
            trio.lowlevel.spawn_system_task(self._keep, name="http pool keeper")

    async def _keep(self) -> None:
        """Expire exchanges past their deadline, close connections idle for too long; end when there are none.

        That is so in a closed pool, too: what is left of an exchange may be a task's that does not wait yet.
        """
        try:
            while self._busy or self._idle:
                self._wake_at = self._tend(trio.current_time())
                with trio.CancelScope(deadline=self._wake_at) as self._nap:
                    await trio.sleep_forever()
        finally:
            self._keeping = False
            self._wake_at = math.inf

    def _tend(self, now: float) -> float:
        """Do what is due; return the time at which to look again."""
        wake = now + _LOOK_S
        for connection in self._busy:
            if connection.deadline <= now:
                connection.expire()  # again and again: it may be between two waits just now
                wake = min(wake, now + _EXPIRY_REPEAT_S)
            else:
                wake = min(wake, connection.deadline)
        kept = []
        for connection in self._idle:
            end = connection.idle_since + min(IDLE_S, connection.idle_limit_s or IDLE_S)
            if end <= now:
                connection.close()
            else:
                kept.append(connection)
                wake = min(wake, end)
        self._idle[:] = kept
        return wake


def _reason(error: OSError) -> OSError:
    """The first of the failures to connect to a name's addresses, which trio wraps."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else error
