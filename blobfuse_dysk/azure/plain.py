"""The quick way of Get Blob (a range) and Put Page: in C, as long as the answer is the plain one.

Whatever else happens is done by Connection as if it had begun the exchange: the rest of a request that the socket did
not take at once, an answer that is not just the expected one (native/answer.h), the end of the stream, an error. So the
outcome is the same on both ways, which tests/unit/test_plain.py compares. Everything that is not about data, each first
request of a connection, over TLS its handshake and each request that is no one record, and all of a machine where the
module is missing or DYSK_NATIVE is "no", go the way of Python alone.

Waiting. The lines of a pool are in one set (native/exchange.c), for which one task waits, the pump; it reschedules
those whose exchange has ended. Each is woken once: by the pump, by `expire`, or by trio for a cancellation, whichever
takes the task out of the line. An exchange can also be made without a task that waits for it (`begin_plain`): then the
line has the connection in its place, which tells the `Exchange` of the plain answer, and of anything else that
it is over, so that a task does the rest (`rest_plain`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import outcome
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_readable, wait_task_rescheduled

from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.framing import CutError
from blobfuse_dysk.azure.tlsconnection import ONE_RECORD, Tls, TlsConnection
from blobfuse_dysk.azure.wire import MOST_PLAIN, Buffer, Reply
from blobfuse_dysk.detached import Detached, attach, running
from blobfuse_dysk.environment import uses_native

if TYPE_CHECKING:
    from blobfuse_dysk.azure.native import _exchange

__all__ = ["MOST_RANGE", "NATIVE", "Exchange", "PlainConnection", "Pump", "is_there"]


def _found() -> ModuleType | None:
    try:
        from blobfuse_dysk.azure.native import _exchange
    except ImportError:  # not built: there was no compiler
        return None
    return _exchange


NATIVE = _found()
"""The module in C, None where it is missing."""
MOST_RANGE = NATIVE.MOST_BODY if NATIVE else 0
"""Bytes of the longest range that is read this way; memory for it is taken at once, when an answer has begun."""


def is_there() -> bool:
    """Whether there is the quick way on this machine, and it is to be used."""
    return NATIVE is not None and uses_native()


class Pump:
    """Wakes those who wait on the connections of one pool, in one trio run."""

    def __init__(self) -> None:
        self._ready: _exchange.Ready | None = None
        self._scope = trio.CancelScope()

    def connection(self, sock: socket.socket, tls: Tls | None = None) -> Connection:
        """A connection on this connected, non-blocking socket; with the quick way if that is to be had.

        tls: that of this socket, after the handshake.
        """
        line = self._line(sock, tls)
        if tls:
            return _PlainTlsConnection(sock, tls, line) if line else TlsConnection(sock, tls)
        return _PlainSocketConnection(sock, line) if line else Connection(sock)

    def _line(self, sock: socket.socket, tls: Tls | None) -> _exchange.Line | None:
        if NATIVE is None or self._scope.cancel_called:
            return None
        try:
            if self._ready is None:
                self._ready = NATIVE.Ready()
                trio.lowlevel.spawn_system_task(self._run, self._ready, name="http pool pump")
            line: _exchange.Line = NATIVE.Line(self._ready, sock.fileno(), *((*tls, ONE_RECORD) if tls else ()))
        except (OSError, ValueError):  # descriptors or memory are short, or there are very many connections
            return None
        return line

    def close(self) -> None:
        """End the task. Who still waits is not woken any more."""
        self._scope.cancel()
        self._ready = None

    async def _run(self, ready: _exchange.Ready) -> None:
        fd = ready.fileno()
        with self._scope:
            while True:
                await wait_readable(fd)
                _go_on(ready.collect())


def _go_on(waiters: list[_exchange.Waiter]) -> None:
    """Nobody is kept here until others come: they have data, which may lie in memory that is to be free soon."""
    for waiter in waiters:  # these first: what a detached one does may cancel them
        if type(waiter) is Task:  # isinstance() asks its metaclass: longer than all of the rest
            reschedule(waiter)
    for waiter in waiters:
        if type(waiter) is Detached:
            waiter.go_on(None)
        elif type(waiter) is not Task:
            assert isinstance(waiter, Exchange)
            waiter.connection.came(waiter)


class Exchange:
    """What is to be known of an exchange if it does not end with the plain answer. body, length: see exchange_plain.

    One that no task waits for is of a class of its own, whose `plain_came` or `other_came` is called, once, and never
    within `begin_plain`.
    """

    __slots__ = ("body", "connection", "done", "error", "head", "length", "reused")
    connection: PlainConnection
    reused: bool

    def __init__(self, head: bytes, body: Buffer | None, length: int) -> None:
        self.head = head
        self.body = body
        self.length = length
        self.done = 0  # as Line.start says it
        self.error: Exception | None = None

    def plain_came(self, answer: bytes) -> None:
        """The answer is the plain one: its body."""

    def other_came(self) -> None:
        """It is not, or there is none: `rest_plain` says what came of it."""

    @property
    def is_sent(self) -> bool:
        """Whether all of the request was sent."""
        return self.done == len(self.head) + (0 if self.body is None else len(self.body))


class PlainConnection(Connection):
    """A Connection that has the quick way as well: what it is over TLS and without has in common."""

    __slots__ = ()
    _line: _exchange.Line
    _abort: Callable[[object], Abort]  # kept, as making one costs as much as the rest of the wait

    def is_quiet(self) -> bool:
        """See Connection."""
        return self._line.quiet()

    def expire(self) -> None:
        """See Connection."""
        super().expire()
        waiter = self._line.stop()
        if isinstance(waiter, Detached):
            waiter.wake(outcome.Error(trio.ClosedResourceError()))
        elif isinstance(waiter, Task):
            reschedule(waiter, outcome.Error(trio.ClosedResourceError()))
        elif waiter is not None:
            waiter.error = trio.ClosedResourceError()
            waiter.other_came()

    def close(self) -> None:
        """See Connection."""
        self._line.close()
        super().close()

    async def exchange_plain(
        self, head: bytes, body: Buffer | None, offset: int, length: int, scratch: bytearray
    ) -> bytes | Reply:
        """Send Get Blob of a range, or Put Page; return the body if the answer is the plain one, else the answer.

        body: None for Get Blob. offset, length: of the range, in bytes. Not for the first exchange of a connection, the
        answer to which says how long it may be idle. Otherwise as `exchange`.
        """
        exchange = Exchange(head, body, length)
        exchange.reused = self._begin()
        line = self._line
        try:
            me = running()
            exchange.done = line.start(head, body, offset, length, current_task() if me is None else me)
            self._sent = exchange.done != 0
            if exchange.is_sent:
                if me is None:
                    await wait_task_rescheduled(self._abort)
                else:
                    await me.wait(line.stop)
                answer = line.take()
                if answer is not None:
                    self.reusable = True
                    return answer
        except (OSError, trio.ClosedResourceError, EOFError) as error:
            exchange.error = error
        return await self.rest_plain(exchange, scratch)

    def begin_plain(self, exchange: Exchange, offset: int) -> bool:
        """`exchange_plain` that no task waits for. False: it is not told of anything; do `rest_plain` now."""
        head, body = exchange.head, exchange.body
        exchange.reused = self._begin()
        exchange.connection = self
        try:
            exchange.done = done = self._line.start(head, body, offset, exchange.length, exchange)
        except Exception as error:
            exchange.error = error
            return False
        self._sent = done != 0
        return done == (len(head) if body is None else len(head) + len(body))

    def came(self, exchange: Exchange) -> None:
        """The exchange has ended that `begin_plain` began. For the pump."""
        try:
            answer = self._line.take()
        except (OSError, EOFError) as error:
            exchange.error = error
        else:
            if answer is not None:
                self.reusable = True
                exchange.plain_came(answer)
                return
        exchange.other_came()

    async def rest_plain(self, exchange: Exchange, scratch: bytearray) -> Reply:
        """Do what is left of an exchange that did not end with the plain answer."""
        error, line, begun = exchange.error, self._line, b""
        exchange.error = None  # its traceback knows the exchange, and so the data: nobody else is to keep these two
        if error is not None:
            self._answered = line.heard()
            await attach()
            if not isinstance(error, OSError | trio.ClosedResourceError | EOFError):
                raise error
            lost = CutError.ended() if isinstance(error, EOFError) else error
            raise self._failure(lost, exchange.reused) from error
        if exchange.is_sent:
            begun = line.begun()
            self._answered = True
        await attach()
        head, body, done = exchange.head, exchange.body, exchange.done
        most = exchange.length if body is None else MOST_PLAIN
        return await self._finish(exchange.reused, head, body, done, begun, scratch, False, most)


class _PlainSocketConnection(PlainConnection):
    __slots__ = ("_abort", "_line")

    def __init__(self, sock: socket.socket, line: _exchange.Line) -> None:
        """line: of this socket."""
        super().__init__(sock)
        self._line, self._abort = line, _abort_of(line)


class _PlainTlsConnection(PlainConnection, TlsConnection):
    __slots__ = ("_abort", "_line")

    def __init__(self, sock: socket.socket, tls: Tls, line: _exchange.Line) -> None:
        """line: of this socket and of what does TLS for it, after the handshake."""
        super().__init__(sock, tls)
        self._line, self._abort = line, _abort_of(line)

    def is_quiet(self) -> bool:
        """See Connection. What came may be a session ticket, which is nothing."""
        return self._line.quiet() or TlsConnection.is_quiet(self)


def _abort_of(line: _exchange.Line) -> Callable[[object], Abort]:
    """What trio calls to cancel the wait. It does not know the connection, which would keep itself then."""

    def abort(_: object) -> Abort:
        line.stop()
        return Abort.SUCCEEDED

    return abort
