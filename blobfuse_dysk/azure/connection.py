"""One HTTP/1.1 connection: sends a request, reads the whole answer. Plain sockets and TLS.

Sockets are the standard library's own, non-blocking, with trio only to wait for them: a request costs one pass
through trio's scheduler. What comes is read into a scratch buffer that all connections of a pool share (nothing awaits
between receiving and copying out of it); the rest of a long body is received straight into the body itself.
The head of an answer is checked by httptools (llhttp); the few headers that matter here are looked up in its bytes.
"""

from __future__ import annotations

import select
import socket
import ssl
from typing import cast

import httptools
import trio
from trio.lowlevel import wait_readable, wait_writable

from blobfuse_dysk.azure.wire import Buffer, Reply
from blobfuse_dysk.errors import TransportError

__all__ = ["Connection", "TlsConnection"]

_MAX_HEAD = 64 << 10  # bytes
_MAX_BODY = 256 << 20  # bytes; far above anything that is asked for
_ONE_RECORD = 15 << 10  # bytes; a TLS record takes 16 KiB, and joining this much costs less than a second record
_HEAD_END = b"\r\n\r\n"
_NO_CALLBACKS = object()


class _CutError(Exception):
    """The connection ended, or what came is not an answer."""


class _Collector:
    """Callbacks of a parser that collects a chunked body."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, piece: bytes) -> None:
        self.body += piece

    def on_message_complete(self) -> None:
        self.complete = True


class Connection:
    """A connected, non-blocking TCP socket. One exchange at a time; the pool sees to that.

    reusable: True while the last request was sent and its answer read completely, and both sides may go on. A peer that
    still waits for the rest of a request would take the next one for that, and its answer would be the wrong one.
    deadline: of the exchange that is running, in trio's time; the pool calls expire() once it is past.
    idle_since: trio's time when the last exchange ended. idle_limit_s: the server's own Keep-Alive timeout, or None.
    """

    __slots__ = (
        "_answered",
        "_expired",
        "_fd",
        "_poll",
        "_sent",
        "_sock",
        "_used",
        "deadline",
        "idle_limit_s",
        "idle_since",
        "reusable",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._used = False
        self._sent = False
        self._answered = False
        self._expired = False
        self.reusable = True
        self.deadline = 0.0
        self.idle_since = 0.0
        self.idle_limit_s: float | None = None

    def is_quiet(self) -> bool:
        """Whether an idle connection is as it was left: neither closed by the other side nor with bytes to read."""
        return not self._poll.poll(0)

    def expire(self) -> None:
        """Make the exchange that is waiting on this connection fail as timed out."""
        self._expired = True
        trio.lowlevel.notify_closing(self._fd)

    def close(self) -> None:
        """Close at once. Idempotent."""
        self.reusable = False
        self._sock.close()

    async def exchange(self, head: bytes, body: Buffer | None, scratch: bytearray, *, no_body: bool) -> Reply:
        """Send one request and return its answer. no_body: the answer has none whatever its headers say (HEAD).

        Raises TransportError. After that, or after cancellation, the connection is not reusable.
        """
        self.reusable = False
        reused = self._used
        self._used = True
        self._sent = self._answered = self._expired = False
        try:
            done = self._send_at_once(head, body)
            whole = done == len(head) + (0 if body is None else len(body)) or await self._send_all(head, body, done)
            reply, reusable = await self._read_reply(scratch, no_body)
        except (OSError, trio.ClosedResourceError, httptools.HttpParserError, _CutError) as error:
            raise self._failure(error, reused) from error
        if not reused:
            timeout = reply.header("keep-alive").partition("timeout=")[2].partition(",")[0]
            self.idle_limit_s = float(timeout) - 1.0 if timeout.isdecimal() else None
        self.reusable = reusable and whole
        return reply

    def _failure(self, error: Exception, reused: bool) -> TransportError:
        if self._expired:
            return TransportError("no whole answer within the time limit", sent=self._sent)
        if isinstance(error, httptools.HttpParserError):
            return TransportError(f"the answer is not HTTP ({error})", sent=True)
        stale = reused and not self._answered
        what = "connection lost while reading the answer" if self._answered else "connection lost before the answer"
        if isinstance(error, _CutError) and self._answered:
            what = str(error)
        elif not isinstance(error, _CutError):
            what = f"{what} ({error})"
        return TransportError(what, sent=self._sent, stale=stale)

    async def _send_all(self, head: bytes, body: Buffer | None, done: int) -> bool:
        """Send the rest of the request; False if that was cut short and yet there may be an answer."""
        try:
            await self._send(head, body, done)
        except OSError:
            # An answer given before the body was read (a refusal) may be waiting: look for it, if anything was sent.
            if not self._sent or self._expired:
                raise
            return False
        return True

    def _send_at_once(self, head: bytes, body: Buffer | None) -> int:
        """Send as much of the request as the socket takes now; returns how many bytes that is."""
        try:
            done = self._sock.send(head) if body is None else self._sock.sendmsg([head, body])
        except BlockingIOError:
            return 0
        self._sent = True
        return done

    async def _send(self, head: bytes, body: Buffer | None, done: int) -> None:
        """Send what follows the first `done` bytes."""
        buffers: list[Buffer] = [head] if body is None else [head, body]
        total = sum(map(len, buffers))
        while done < total:
            await wait_writable(self._fd)
            if done < len(head):
                rest: list[Buffer] = [memoryview(head)[done:], *buffers[1:]]
            else:
                rest = [memoryview(buffers[1])[done - len(head) :]]
            try:
                done += self._sock.sendmsg(rest)
                self._sent = True
            except BlockingIOError:
                continue

    async def _receive(self, into: bytearray | memoryview) -> int:
        """Receive at least a byte, or raise _CutError at the end of the stream."""
        while True:
            try:
                count = self._sock.recv_into(into)
            except BlockingIOError:
                await wait_readable(self._fd)
            else:
                if not count:
                    raise _CutError("connection closed in the middle of the answer")
                self._answered = True
                return count

    async def _read_reply(self, scratch: bytearray, no_body: bool) -> tuple[Reply, bool]:
        await wait_readable(self._fd)
        data = scratch
        count = await self._receive(scratch)
        end = data.find(_HEAD_END, 0, count)
        if end < 0:
            data = scratch[:count]
            while (end := data.find(_HEAD_END)) < 0:
                if len(data) > _MAX_HEAD:
                    raise _CutError("the answer's headers do not end")
                count = await self._receive(scratch)
                data += memoryview(scratch)[:count]
            count = len(data)
        start = end + len(_HEAD_END)
        head = bytes(data[:start])
        parser = httptools.HttpResponseParser(_NO_CALLBACKS)
        parser.feed_data(head)
        status = parser.get_status_code()
        lower = head.lower()
        keep = lower.startswith(b"http/1.1") and b"close" not in _value(lower, b"\r\nconnection:")
        body: Buffer
        if _value(lower, b"\r\ntransfer-encoding:") and not no_body:
            body, clean = await self._read_chunked(bytes(data[:count]), scratch)
            return Reply(status, head, body, lower), keep and clean
        length = 0 if no_body or status in (204, 304) else _length(lower, status)
        have = count - start
        if have < length:
            body = await self._read_rest(memoryview(data)[start:count], length)
        else:
            body = data[start : start + length]
        return Reply(status, head, body, lower), keep and have <= length

    async def _read_rest(self, begun: memoryview, length: int) -> bytearray:
        """Return `length` bytes: those that are there already, and what is still to come."""
        have = len(begun)
        body = bytearray(length)
        body[:have] = begun
        rest = memoryview(body)
        while have < length:
            have += await self._receive(rest[have:])
        return body

    async def _read_chunked(self, received: bytes, scratch: bytearray) -> tuple[bytearray, bool]:
        collector = _Collector()
        parser = httptools.HttpResponseParser(collector)
        clean = True
        while True:
            try:
                parser.feed_data(received)
            except httptools.HttpParserError:
                if not collector.complete:
                    raise
                clean = False  # bytes behind the end
            if collector.complete:
                return collector.body, clean
            if len(collector.body) > _MAX_BODY:
                raise _CutError("the answer is larger than anything that is asked for")
            count = await self._receive(scratch)
            received = bytes(memoryview(scratch)[:count])


class TlsConnection(Connection):
    """The same over TLS; OpenSSL reads and writes the socket itself."""

    __slots__ = ()

    async def handshake(self) -> None:
        """Do the TLS handshake, which checks certificate and host name. Raises OSError (ssl.SSLError is one)."""
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                await wait_readable(self._fd)
            except ssl.SSLWantWriteError:
                await wait_writable(self._fd)

    @property
    def session(self) -> ssl.SSLSession | None:
        """For another connection to the same endpoint, in the same context; it has a ticket after the first answer."""
        return self._tls.session

    @property
    def _tls(self) -> ssl.SSLSocket:
        return cast(ssl.SSLSocket, self._sock)

    def is_quiet(self) -> bool:
        """See Connection. Session tickets that wait to be read are the connection's own affair."""
        try:
            self._tls.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def _send_at_once(self, head: bytes, body: Buffer | None) -> int:
        """See Connection. Records are sent by `_send` alone."""
        return 0

    async def _send(self, head: bytes, body: Buffer | None, done: int) -> None:
        if body is not None and len(head) + len(body) <= _ONE_RECORD:
            await self._send_one(b"".join((head, body)))
        else:
            await self._send_one(head)
            if body is not None:
                await self._send_one(body)

    async def _send_one(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            self._sent = True  # even a call that ends in SSLWantWriteError may have sent a part
            try:
                rest = rest[self._tls.send(rest) :]
            except ssl.SSLWantWriteError:
                await wait_writable(self._fd)
            except ssl.SSLWantReadError:
                await wait_readable(self._fd)

    async def _receive(self, into: bytearray | memoryview) -> int:
        while True:
            try:
                count = self._tls.recv_into(into)
            except ssl.SSLWantReadError:
                await wait_readable(self._fd)
            except ssl.SSLWantWriteError:
                await wait_writable(self._fd)
            else:
                if not count:
                    raise _CutError("connection closed in the middle of the answer")
                self._answered = True
                return count


def _value(lower: bytes, name: bytes) -> bytes:
    """The value of a header in a head in lower case; name: with the line end before it and the colon."""
    found = lower.find(name)
    if found < 0:
        return b""
    start = found + len(name)
    return lower[start : lower.find(b"\r\n", start)]


def _length(lower: bytes, status: int) -> int:
    """The body's length by Content-Length. Without one, only answers that have no body here are taken."""
    text = _value(lower, b"\r\ncontent-length:")
    if not text:
        if status in (201, 202):
            return 0
        raise _CutError("the answer does not tell its length")
    length = int(text)
    if length > _MAX_BODY:
        raise _CutError("the answer is larger than anything that is asked for")
    return length
