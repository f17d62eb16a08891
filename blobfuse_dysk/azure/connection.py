"""One HTTP/1.1 connection: sends a request, reads the whole answer. tlsconnection.py has the same over TLS.

Sockets are the standard library's own, non-blocking, with trio only to wait for them: a request costs one pass
through trio's scheduler. What comes is read into a scratch buffer that all connections of a pool share (nothing awaits
between receiving and copying out of it); the rest of a long body is received straight into the body itself.
The head of an answer is checked by httptools (llhttp); the few headers that matter here are looked up in its bytes.

An exchange knows how long the body of its success may be. Memory for it is taken as bytes come, whatever length the
answer promises, since the worker's memory is locked. Of a refusal the first bytes are read, and the connection is left.

Interim answers (1xx) are skipped: nobody asks for them, and whoever sends them answers afterwards (RFC 9110, 15.2).
"""

from __future__ import annotations

import select
import socket

import httptools
import trio
from trio.lowlevel import wait_readable, wait_writable

from blobfuse_dysk.azure.framing import CutError, Framing, frame, status_of
from blobfuse_dysk.azure.wire import MOST_PLAIN, Buffer, Reply, number
from blobfuse_dysk.errors import TransportError

__all__ = ["Connection"]

_MAX_HEAD = 64 << 10  # bytes
_MOST_INTERIM = 16  # answers before the answer
_STEP = 1 << 20  # bytes; a body that is longer is given memory as it comes
_HEAD_END = b"\r\n\r\n"


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

    async def exchange(
        self, head: bytes, body: Buffer | None, scratch: bytearray, *, no_body: bool, most: int = MOST_PLAIN
    ) -> Reply:
        """Send one request and return its answer. no_body: the answer has none whatever its headers say (HEAD).

        most: bytes that the body of a success may have; of anything else the first 64 KiB are returned.
        Raises TransportError and nothing else. After that, or after cancellation, the connection is not reusable.
        """
        reused = self._begin()
        return await self._finish(reused, head, body, None, b"", scratch, no_body, most)

    def _begin(self) -> bool:
        """Note that an exchange begins; return whether there was one before it."""
        self.reusable = False
        reused = self._used
        self._used = True
        self._sent = self._answered = self._expired = False
        return reused

    async def _finish(
        self,
        reused: bool,
        head: bytes,
        body: Buffer | None,
        done: int | None,
        begun: bytes,
        scratch: bytearray,
        no_body: bool,
        most: int,
    ) -> Reply:
        """Do what is left of an exchange. done: bytes of the request that are sent, None if it was not tried yet.

        begun: what was read of the answer.
        """
        try:
            if done is None:
                done = self._send_at_once(head, body)
            whole = done == len(head) + (0 if body is None else len(body)) or await self._send_all(head, body, done)
            reply, reusable = await self._read_reply(begun, scratch, no_body, most)
        except (OSError, trio.ClosedResourceError, httptools.HttpParserError, CutError) as error:
            raise self._failure(error, reused) from error
        except Exception as error:  # what nobody thought of: an odd answer must not end the worker
            raise TransportError(f"the answer cannot be read ({type(error).__name__}: {error})", sent=True) from error
        if not reused:
            timeout = number(reply.header("keep-alive").partition("timeout=")[2].partition(",")[0])
            self.idle_limit_s = None if timeout is None else timeout - 1.0
        self.reusable = reusable and whole
        return reply

    def _failure(self, error: Exception, reused: bool) -> TransportError:
        if self._expired:
            return TransportError("no whole answer within the time limit", sent=self._sent)
        if isinstance(error, httptools.HttpParserError):
            return TransportError(f"the answer is not HTTP ({error})", sent=True)
        stale = reused and not self._answered
        what = "connection lost while reading the answer" if self._answered else "connection lost before the answer"
        if isinstance(error, CutError) and self._answered:
            what = str(error)
        elif not isinstance(error, CutError):
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

    async def _wait_for_answer(self) -> None:
        """Wait until there is something to receive; that it comes at once is not expected."""
        await wait_readable(self._fd)

    async def _receive(self, into: bytearray | memoryview) -> int:
        """Receive at least a byte, or raise CutError at the end of the stream."""
        while True:
            try:
                count = self._sock.recv_into(into)
            except BlockingIOError:
                await wait_readable(self._fd)
            else:
                if not count:
                    raise CutError.ended()
                self._answered = True
                return count

    async def _read_reply(self, begun: bytes, scratch: bytearray, no_body: bool, most: int) -> tuple[Reply, bool]:
        """The answer, and whether the peer goes on. begun: what was read of it already."""
        if begun:
            data, count = bytearray(begun), len(begun)
        else:
            await self._wait_for_answer()
            data, count = scratch, await self._receive(scratch)
        for _ in range(_MOST_INTERIM + 1):
            end = data.find(_HEAD_END, 0, count)
            if end < 0:
                data, count, end = await self._read_head(data, count, scratch)
            start = end + len(_HEAD_END)
            head = bytes(data[:start])
            status = status_of(head)
            if status < 200:
                data, count = data[start:count], count - start
                continue
            framing = frame(status, head, no_body=no_body, most=most)
            if framing.length == count - start:  # as a rule all of it came at once
                return Reply(status, head, data[start:count], framing.lower), framing.keep
            body, clean = await self._read_body(framing, data, start, count, scratch)
            return Reply(status, head, body, framing.lower), framing.keep and clean
        raise CutError("interim answers without end")

    async def _read_head(self, data: bytearray, count: int, scratch: bytearray) -> tuple[bytearray, int, int]:
        """Receive more than the first `count` bytes of data, until there is a whole head; returns its end, too."""
        data = data[:count]
        while (end := data.find(_HEAD_END)) < 0:
            if len(data) > _MAX_HEAD:
                raise CutError("the answer's headers do not end")
            count = await self._receive(scratch)
            data += memoryview(scratch)[:count]
        return data, len(data), end

    async def _read_body(
        self, framing: Framing, data: bytearray, start: int, count: int, scratch: bytearray
    ) -> tuple[Buffer, bool]:
        """The body, and whether nothing came behind it. data: what is there up to `count`; the body begins at start."""
        if framing.chunked:
            return await self._read_chunked(bytes(data[:count]), scratch, framing)
        length, have = framing.length, count - start
        if length is None:
            return await self._read_to_end(bytearray(data[start:count]), scratch, framing), False
        if have < length:
            return await self._read_rest(memoryview(data)[start:count], length), True
        return data[start : start + length], have <= length

    async def _read_rest(self, begun: memoryview, length: int) -> bytearray:
        """Return `length` bytes: those that are there already, and what is still to come."""
        have = len(begun)
        body = bytearray(min(length, max(have, _STEP)))
        body[:have] = begun
        while have < length:
            if have == len(body):
                body += bytes(min(length - have, _STEP))
            with memoryview(body) as whole:
                have += await self._receive(whole[have:])
        return body

    async def _read_to_end(self, body: bytearray, scratch: bytearray, framing: Framing) -> bytearray:
        """Return what comes until the peer closes the connection, the other way to end a body."""
        while len(body) <= framing.most:
            try:
                count = await self._receive(scratch)
            except CutError:
                return body
            body += memoryview(scratch)[:count]
        if not framing.cuts:
            raise CutError.too_large()
        return body[: framing.most]

    async def _read_chunked(self, received: bytes, scratch: bytearray, framing: Framing) -> tuple[bytearray, bool]:
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
            if len(collector.body) > framing.most:
                if not framing.cuts:
                    raise CutError.too_large()
                return collector.body[: framing.most], False
            if collector.complete:
                return collector.body, clean
            count = await self._receive(scratch)
            received = bytes(memoryview(scratch)[:count])
