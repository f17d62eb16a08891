"""A line, the two ends of its socket, and what went over it; for exchange.py."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import termios
from typing import Any

from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.framing import CutError
from blobfuse_dysk.azure.native import _exchange
from blobfuse_dysk.azure.tlsconnection import ONE_RECORD
from blobfuse_dysk.azure.wire import MOST_PLAIN
from tools.fuzzlib.farside import Far, Plain, Real, Toy

__all__ = ["GOOD", "ID", "LENGTHS", "OFFSET", "Side", "Waiter", "as_in_python"]

OFFSET = 512
"""Of each read, in bytes."""
LENGTHS = (1, 512, 20_000, 70_000)
"""Of reads, in bytes."""
ID = b"x-ms-request-id: 1\r\n"
"""Without this line, an answer is not the service's."""


def _good(length: int) -> bytes:
    """The expected answer to a read of so many bytes; 0: to a write."""
    if not length:
        return b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n" + ID + b"\r\n"
    where = b"Content-Length: %d\r\nContent-Range: bytes %d-%d/90000\r\n" % (length, OFFSET, OFFSET + length - 1)
    return b"HTTP/1.1 206 Partial Content\r\n" + where + ID + b"\r\n" + (b"%8d" % length * (length // 8 + 1))[:length]


GOOD = {length: _good(length) for length in (0, *LENGTHS)}
"""The expected answers to a read of so many bytes; 0: to a write."""


class _Reference(Connection):
    """Reads what is there, and then the end. It does no I/O, so nothing is awaited."""

    def __init__(self) -> None:
        pass

    async def _receive(self, into: bytearray | memoryview) -> int:
        raise CutError.ended()


def as_in_python(came: bytes, length: int) -> tuple[int, bytes, bool]:
    """What connection.py makes of it: status, body, whether the connection goes on. length: see GOOD."""
    reading = _Reference()._read_reply(came, bytearray(1), False, length or MOST_PLAIN)
    try:
        reading.send(None)
    except StopIteration as done:
        reply, goes_on = done.value
        return reply.status, bytes(reply.body), goes_on
    raise AssertionError("it waits")


class Waiter:
    """Who waits on a line, and knows it: the two are a cycle."""

    def __init__(self, line: object) -> None:
        self.line = line


class Side:
    """A line, its two sockets, and what went over them."""

    def __init__(self, ready: Any, far: Far, narrow: bool) -> None:
        self.far = far
        self.ours, self.theirs = socket.socketpair()
        for each in (self.ours, self.theirs):
            each.setblocking(False)
        if narrow:
            self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.line: Any = _exchange.Line(ready, self.ours.fileno(), *far.near)
        self.spent = False  # of no use: what comes on it means nothing
        self.late = False  # something had come before it asked: it asks nevertheless, and is not told of that
        self.ended = False
        self.broken = False  # an error is due
        self.wire = b""  # not delivered yet
        self.bounds: list[tuple[int, bytes]] = []  # records on their way: where in `wire` each ends, and its text
        self.came = b""  # text that was delivered since the exchange began
        self.first = 0  # bytes of that when it was first collected
        self.waiter: Waiter | None = None
        self.asked = -1  # bytes; 0: a write; -1: nothing
        self.got = self.sent = b""
        if isinstance(far, Real):
            self.put(far.tickets, b"")

    def put(self, sealed: bytes, text: bytes) -> None:
        """To be delivered, the last byte of `text` with the last of `sealed`."""
        self.wire += sealed
        self.bounds.append((len(self.wire), text))

    def say(self, text: bytes) -> None:
        """To be delivered, unless the stream has ended."""
        for start in range(0, 0 if self.ended else len(text), ONE_RECORD):
            piece = text[start : start + ONE_RECORD]
            sealed = self.far.seal(piece)
            if isinstance(self.far, Plain):  # no record holds it back
                self.wire += sealed
            else:
                self.put(sealed, piece)

    def deliver(self, most: int) -> None:
        """So many bytes of what was said, or as many as there are."""
        if self.ended or not self.wire[:most]:
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            done = self.theirs.send(self.wire[:most])
            if isinstance(self.far, Plain):
                self.came += self.wire[:done]
            self.wire = self.wire[done:]
            self.came += b"".join(text for end, text in self.bounds if end <= done)
            self.bounds = [(end - done, text) for end, text in self.bounds if end > done]

    def in_socket(self) -> int:
        """Bytes that this end has not received."""
        count = array.array("i", [0])
        fcntl.ioctl(self.ours, termios.FIONREAD, count)
        return count[0]

    def hear(self) -> None:
        """The far end receives what it was sent."""
        if self.theirs.fileno() < 0:
            return
        with contextlib.suppress(BlockingIOError, OSError):
            while piece := self.theirs.recv(1 << 20):
                self.got += piece
        if isinstance(self.far, Plain):
            assert self.got == self.sent, "what was sent is not what `start` said"
        elif isinstance(self.far, Toy):
            assert self.far.said.startswith(self.got), "what was sent is not what ssl made"

    def read_rest(self) -> bytes:
        """What nobody has read of what came."""
        received = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while piece := self.ours.recv(1 << 20):
                received += piece
        return self.far.unread(received)

    def close(self) -> None:
        """Also if it is closed already."""
        if self.line is not None:
            self.line.close()
            self.line = None
        self.ours.close()
        self.theirs.close()
