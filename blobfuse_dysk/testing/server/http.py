"""HTTP/1.1 over asyncio: one connection, requests one after the other, answers in the same order.

Parsing is httptools'. A subclass says what a request is answered with; while a request is being worked on, further
ones of the same connection wait in a queue, and reading stops when that queue grows.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import cast

import httptools

__all__ = ["Headers", "HttpConnection"]

MAX_QUEUE = 64
MAX_BODY = 64 << 20
_LINGER_ZERO = struct.pack("ii", 1, 0)  # closing sends RST


class Headers(dict[bytes, bytes]):
    """Header values by name in lower case. spelled: how a name of metadata was sent, since the service keeps that.

    repeated: whether a name of metadata came twice, in whatever case.
    """

    __slots__ = ("repeated", "spelled")

    def __init__(self) -> None:
        super().__init__()
        self.spelled: dict[bytes, bytes] = {}
        self.repeated = False


class HttpConnection(asyncio.Protocol, ABC):
    """Calls `handle(method, target, headers, body)` for one request at a time; it must end in one of respond,
    respond_and_close or abandon.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.client_ip = ""
        self.busy = False
        self._queue: deque[tuple[str, str, Headers, bytes, bool]] = deque()
        self._keep_alive = True
        self._paused = False
        self._draining = False
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers = Headers()
        self._body: list[bytes] = []
        self._body_length = 0

    @abstractmethod
    def handle(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        """Answer a request, now or later."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's classes do not inherit from asyncio's
        peer = transport.get_extra_info("peername")
        self.client_ip = peer[0] if peer else ""

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = Headers()
        self._body = []
        self._body_length = 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        self._headers[lower] = value
        if lower.startswith(b"x-ms-meta-"):
            self._headers.repeated |= lower in self._headers.spelled
            self._headers.spelled[lower] = name

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_length += len(body)
        if self._body_length > MAX_BODY:
            self.transport.abort()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        chunks = self._body
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        keep_alive = self._parser.should_keep_alive()
        if self.busy:
            self._queue.append((method, target, self._headers, body, keep_alive))
            if len(self._queue) >= MAX_QUEUE and not self._paused:
                self._paused = True
                self.transport.pause_reading()
        else:
            self.busy = True
            self._keep_alive = keep_alive
            self.handle(method, target, self._headers, body)

    # How a request ends.

    def respond(self, parts: Sequence[bytes]) -> None:
        """Send a whole answer and go on with the next request."""
        self.send(parts)
        if not self._keep_alive:
            self.transport.close()
            return
        self.busy = False
        if self._queue and not self._draining:
            self._drain()

    def respond_and_close(self, parts: Sequence[bytes]) -> None:
        """Send an answer, maybe not a whole one, and close."""
        self.send(parts)
        self.transport.close()

    def abandon(self, how: str) -> None:
        """No answer: leave the connection "open" for ever, "close" it, or "reset" it."""
        if how == "close":
            self.transport.close()
        elif how == "reset":
            self.reset()

    def send(self, parts: Sequence[bytes]) -> None:
        """Write, unless the peer has gone."""
        if not self.transport.is_closing():
            self.transport.writelines(parts)

    def read_on(self) -> None:
        """Read again, unless the queue is full."""
        if not self._paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def reset(self) -> None:
        """Close with RST, so that the peer sees `connection reset by peer`."""
        if self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self.transport.abort()

    def _drain(self) -> None:
        """Work off the queue until a request takes its time; a loop, because a pipeline may be thousands long."""
        self._draining = True
        while self._queue and not self.busy and not self.transport.is_closing():
            method, target, headers, body, self._keep_alive = self._queue.popleft()
            self.busy = True
            self.handle(method, target, headers, body)
        self._draining = False
        if self._paused and not self._queue:
            self._paused = False
            self.read_on()
