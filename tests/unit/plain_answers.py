"""Answers to a read of a page and to a write of one: the plain ones, and what else may be said."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.plain import Exchange, PlainConnection
from blobfuse_dysk.azure.wire import MOST_PLAIN, Buffer, Reply
from blobfuse_dysk.errors import TransportError

__all__ = [
    "CASES",
    "CREATED",
    "EMPTY",
    "GOOD",
    "ID",
    "IN_LANE",
    "LEASE",
    "LENGTH",
    "PAGE",
    "PART",
    "RANGE",
    "Call",
    "Made",
    "T",
    "ask_once",
    "fill",
    "raw",
    "read",
    "write",
]

T = 20.0
LEASE = "11111111-2222-3333-4444-555555555555"
PAGE = bytes(range(256)) * 2
DATE = "Mon, 30 Nov 2026 15:00:00 GMT"
ID = "x-ms-request-id: 1"
Call = Callable[[BlobClient], Awaitable[Buffer | None]]


async def read(client: BlobClient) -> Buffer | None:
    return await client.get_range(512, 512, timeout_s=T)


async def write(client: BlobClient) -> Buffer | None:
    await client.put_pages(512, PAGE, lease_id=LEASE, epoch=7, timeout_s=T)
    return None


class Made:
    """A call that is made in the plain lane, if it can be; what came of it is in `result`."""

    def __init__(self) -> None:
        self.offset = self.length = 512
        self.started = trio.current_time()
        self.rest: Coroutine[Any, Any, Any] | None = None
        self.ended = trio.Event()
        self.came: Buffer | Coroutine[Any, Any, Any]

    def succeed(self, result: Buffer, now: float) -> None:
        self._end(result)

    def hand_over(self, rest: Coroutine[Any, Any, Any]) -> None:
        self._end(rest)

    def _end(self, came: Buffer | Coroutine[Any, Any, Any]) -> None:
        assert not self.ended.is_set()
        self.came = came
        self.ended.set()

    async def result(self) -> Buffer | None:
        if self.rest is not None:
            assert not self.ended.is_set()
            self.came = self.rest
        else:
            await self.ended.wait()
        return await self.came if isinstance(self.came, Coroutine) else self.came


async def read_in_lane(client: BlobClient) -> Buffer | None:
    made = Made()
    if not client.begin_get(made, T):
        return await read(client)
    return await made.result()


async def write_in_lane(client: BlobClient) -> Buffer | None:
    made = Made()
    if not client.begin_put(made, PAGE, LEASE, 7, T):
        return await write(client)
    await made.result()
    return None


IN_LANE: dict[Call, Call] = {read: read_in_lane, write: write_in_lane}


def fill(connection: Connection) -> int:
    """Send until nothing more is taken; returns how many bytes that was."""
    filled = 0
    with socket.socket(fileno=socket.dup(connection._fd)) as ours:
        ours.setblocking(False)
        try:
            while True:
                filled += ours.send(bytes(1000))
        except BlockingIOError:
            return filled


async def ask_once(connection: Connection, writes: bool, found: list[object], in_lane: bool = False) -> None:
    """Read a page or write one, in C if the connection can: what came of it is in `found`, alike for both ways.

    in_lane: begun for nobody, which must come to nothing.
    """
    body, scratch = PAGE if writes else None, bytearray(64 << 10)
    try:
        answer: bytes | Reply
        head, most = (b"PUT", MOST_PLAIN) if writes else (b"GET", 512)
        if isinstance(connection, PlainConnection) and in_lane:
            exchange = Exchange(head, body, 512)
            assert not connection.begin_plain(exchange, 512)
            answer = await connection.rest_plain(exchange, scratch)
        elif isinstance(connection, PlainConnection):
            answer = await connection.exchange_plain(head, body, 512, 512, scratch)
        else:
            answer = await connection.exchange(head, body, scratch, no_body=False, most=most)
    except TransportError as error:
        found.extend((str(error), error.sent, error.stale))
    else:
        if isinstance(answer, Reply) and answer.status == (201 if writes else 206):
            fits = answer.has(b"\r\ncontent-range: bytes 512-1023/") or writes
            found.append((answer.status, bytes(answer.body), fits and answer.has(b"\r\nx-ms-request-id:")))
        elif isinstance(answer, Reply):
            found.append((answer.status, bytes(answer.body), answer.head))
        else:
            found.append((201 if writes else 206, answer, True))
    found.append(connection.reusable)


def raw(start: str, *lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join((start, *lines, "", "")).encode("latin-1") + body


RANGE = "Content-Range: bytes 512-1023/4096"
LENGTH = "Content-Length: 512"
EMPTY = "Content-Length: 0"
PART, CREATED = "HTTP/1.1 206 Partial Content", "HTTP/1.1 201 Created"
GOOD: dict[Call, bytes] = {read: raw(PART, LENGTH, RANGE, ID, body=PAGE), write: raw(CREATED, EMPTY, ID)}

PLAIN_READS = {
    "as it is": GOOD[read],
    "other order, case and blanks": raw(PART, "X-MS-Request-ID:a-b", "content-length:  512\t",
        "CONTENT-RANGE:bytes 512-1023/4096", "Connection: Keep-Alive", "Keep-Alive: timeout=5", f"Date: {DATE}",
        body=PAGE),
    "no reason": raw("HTTP/1.1 206 ", LENGTH, RANGE, ID, body=PAGE),
}  # fmt: skip
PLAIN_WRITES = {
    "as it is": GOOD[write],
    "more headers": raw(
        CREATED, f"Date: {DATE}", "Content-MD5: abc=", EMPTY, "x-ms-request-server-encrypted: true", ID
    ),
}
ODD_READS = {
    "interim": raw("HTTP/1.1 100 Continue") + GOOD[read],
    "another protocol": raw("HTTP/1.1 101 Switching Protocols", "Upgrade: x", "Connection: upgrade"),
    "200": raw("HTTP/1.1 200 OK", LENGTH, RANGE, ID, body=PAGE),
    "201": raw(CREATED, LENGTH, RANGE, ID, body=PAGE),
    "404": raw("HTTP/1.1 404 Not Found", EMPTY, ID, "x-ms-error-code: BlobNotFound"),
    "503": raw("HTTP/1.1 503 Busy", "Content-Length: 2", "Retry-After: 3", ID, "x-ms-error-code: Busy", body=b"no"),
    "gateway": raw("HTTP/1.1 502 Bad Gateway", "Content-Length: 4", body=b"oops"),
    "not the service's": raw(PART, LENGTH, RANGE, body=PAGE),
    "HTTP/1.0": raw("HTTP/1.0 206 Partial Content", LENGTH, RANGE, ID, body=PAGE),
    "HTTP/1.2": raw("HTTP/1.2 206 Partial Content", LENGTH, RANGE, ID, body=PAGE),
    "2060": raw("HTTP/1.1 2060 Partial Content", LENGTH, RANGE, ID, body=PAGE),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "control character in the reason": raw("HTTP/1.1 206 Par\x01tial", LENGTH, RANGE, ID, body=PAGE),
    "no reason, no blank": raw("HTTP/1.1 206", LENGTH, RANGE, ID, body=PAGE),
    "line feeds alone": GOOD[read].replace(b"\r\n", b"\n", 4),
    "carriage return within": raw(PART, LENGTH, RANGE, ID, "X: a\rb", body=PAGE),
    "folded line": raw(PART, LENGTH, RANGE, ID, "X: a", " b", body=PAGE),
    "blank in a name": raw(PART, LENGTH, RANGE, ID, "X y: a", body=PAGE),
    "blank before the colon": raw(PART, "Content-Length : 512", RANGE, ID, body=PAGE),
    "no colon": raw(PART, LENGTH, RANGE, ID, "X", body=PAGE),
    "no name": raw(PART, LENGTH, RANGE, ID, ": x", body=PAGE),
    "zero byte in a value": raw(PART, LENGTH, RANGE, ID, "X: a\0b", body=PAGE),
    "no ASCII in a value": raw(PART, LENGTH, RANGE, ID, "X: \xe4", body=PAGE),
    "no length": raw(PART, RANGE, ID, body=PAGE),
    "two lengths": raw(PART, LENGTH, LENGTH, RANGE, ID, body=PAGE),
    "two different lengths": raw(PART, LENGTH, "Content-Length: 511", RANGE, ID, body=PAGE),
    "list of lengths": raw(PART, "Content-Length: 512, 512", RANGE, ID, body=PAGE),
    "length with a sign": raw(PART, "Content-Length: +512", RANGE, ID, body=PAGE),
    "length in hexadecimal": raw(PART, "Content-Length: 0x200", RANGE, ID, body=PAGE),
    "length with zeros": raw(PART, "Content-Length: 0512", RANGE, ID, body=PAGE),
    "length of 5000 digits": raw(PART, f"Content-Length: {'9' * 5000}", RANGE, ID, body=PAGE),
    "length of 2^64 and 512": raw(PART, "Content-Length: 18446744073709552128", RANGE, ID, body=PAGE),
    "empty length": raw(PART, "Content-Length:", RANGE, ID, body=PAGE),
    "too short": raw(PART, "Content-Length: 511", RANGE, ID, body=PAGE[:-1]),
    "too long": raw(PART, "Content-Length: 513", RANGE, ID, body=PAGE + b"x"),
    "surplus": GOOD[read] + b"surplus",
    "a second answer": GOOD[read] + GOOD[read],
    "chunked": raw(PART, "Transfer-Encoding: chunked", RANGE, ID, body=b"200\r\n" + PAGE + b"\r\n0\r\n\r\n"),
    "chunked with a length": raw(PART, LENGTH, "Transfer-Encoding: chunked", RANGE, ID, body=PAGE),
    "coding without a name": raw(PART, LENGTH, "Transfer-Encoding:", RANGE, ID, body=PAGE),
    "close": raw(PART, LENGTH, RANGE, ID, "Connection: close", body=PAGE),
    "close and more": raw(PART, LENGTH, RANGE, ID, "Connection: x, close", body=PAGE),
    "two Connections": raw(PART, LENGTH, RANGE, ID, "Connection: keep-alive", "Connection: close", body=PAGE),
    "upgrade": raw(PART, LENGTH, RANGE, ID, "Connection: upgrade", "Upgrade: h2c", body=PAGE),
    "no range": raw(PART, LENGTH, ID, body=PAGE),
    "two ranges": raw(PART, LENGTH, RANGE, RANGE, ID, body=PAGE),
    "another range": raw(PART, LENGTH, "Content-Range: bytes 0-511/4096", ID, body=PAGE),
    "another end": raw(PART, LENGTH, "Content-Range: bytes 512-1024/4096", ID, body=PAGE),
    "range backwards": raw(PART, LENGTH, "Content-Range: bytes 512-0/4096", ID, body=PAGE),
    "range of 2^64 more": raw(PART, LENGTH, "Content-Range: bytes 18446744073709552128-1023/4096", ID, body=PAGE),
    "range without unit": raw(PART, LENGTH, "Content-Range: 512-1023/4096", ID, body=PAGE),
    "range without size": raw(PART, LENGTH, "Content-Range: bytes 512-1023/*", ID, body=PAGE),
    "range of a smaller blob": raw(PART, LENGTH, "Content-Range: bytes 512-1023/1000", ID, body=PAGE),
    "cut range": raw(PART, "Content-Length: 100", "Content-Range: bytes 512-611/612", ID, body=PAGE[:100]),
    "long head": raw(PART, LENGTH, RANGE, ID, f"X: {'y' * 9000}", body=PAGE),
    "head without end": raw(PART, LENGTH, RANGE, ID, f"X: {'y' * 200_000}"),
}  # fmt: skip
ODD_WRITES = {
    "interim": raw("HTTP/1.1 100 Continue") + GOOD[write],
    "interim twice": raw("HTTP/1.1 103 Early Hints", "Link: x") * 2 + GOOD[write],
    "200": raw("HTTP/1.1 200 OK", EMPTY, ID),
    "206": raw(PART, EMPTY, ID),
    "no length": raw(CREATED, ID),
    "a body": raw(CREATED, "Content-Length: 2", ID, body=b"hi"),
    "a long body": raw(CREATED, "Content-Length: 2000", ID, body=bytes(2000)),
    "chunked": raw(CREATED, "Transfer-Encoding: chunked", ID, body=b"0\r\n\r\n"),
    "a range": raw(CREATED, EMPTY, ID, "Content-Range: bytes 512-1023/4096"),
    "not the service's": raw(CREATED, EMPTY),
    "close": raw(CREATED, EMPTY, ID, "Connection: close"),
    "surplus": GOOD[write] + b"HTTP",
    "412": raw("HTTP/1.1 412 Condition", EMPTY, ID, "x-ms-error-code: SequenceNumberConditionNotMet"),
    "500": raw("HTTP/1.1 500 Error", EMPTY, ID, "x-ms-error-code: InternalError"),
    "redirect": raw("HTTP/1.1 307 Elsewhere", EMPTY, "Location: http://127.0.0.1:1/"),
    "two ids": raw(CREATED, EMPTY, ID, ID),
}
CASES = [
    *(pytest.param(read, data, True, id=f"read-{name}") for name, data in PLAIN_READS.items()),
    *(pytest.param(write, data, True, id=f"write-{name}") for name, data in PLAIN_WRITES.items()),
    *(pytest.param(read, data, False, id=f"read-{name}") for name, data in ODD_READS.items()),
    *(pytest.param(write, data, False, id=f"write-{name}") for name, data in ODD_WRITES.items()),
]
