"""native/exchange.c against connection.py: answers that chance has damaged and cut come to the same on both."""

from __future__ import annotations

import socket
from itertools import pairwise
from random import Random

import pytest
import trio
import trio.testing

from blobfuse_dysk.azure import plain
from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.wire import MOST_PLAIN, Reply
from blobfuse_dysk.errors import TransportError
from tests.conftest import need
from tests.unit.plain_answers import GOOD, ID, LENGTH, PAGE, RANGE, read, write

WORDS = [
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b"0",
        b"9",
        b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"\xff",
    ),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: x\r\n"),
    *(f"{line}\r\n".encode() for line in (LENGTH, RANGE, ID, "Content-Length: 0", "Content-Length: 5", "X: y")),
]
HEADS = {read: b"GET", write: b"PUT"}


def damaged(data: bytes, rng: Random) -> bytes:
    """The answer, with a few things done to it; mostly to its head."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        at = rng.randrange(min(len(data), 150) + 1)
        change = rng.randrange(4)
        if change == 0:
            data = data[:at] + rng.choice(WORDS) + data[at:]
        elif change == 1:
            data = data[:at] + data[at + rng.randrange(1, 5) :]
        elif change == 2:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        else:  # behind a line's end
            at = data.find(b"\r\n", at) + 2
            data = data[:at] + rng.choice(WORDS) + data[at:]
    return data


async def outcome(quick: bool, writes: bool, pieces: list[bytes], pump: plain.Pump) -> object:
    """What one exchange on a connection comes to, and whether the connection may go on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        connection = pump.connection(ours) if quick else Connection(ours)
        scratch = bytearray(64 << 10)
        body = PAGE if writes else None
        theirs.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await connection.exchange(b"HEAD", None, scratch, no_body=False)
        found: list[object] = []

        async def ask() -> None:
            try:
                if isinstance(connection, plain.PlainConnection):
                    answer = await connection.exchange_plain(HEADS[write if writes else read], body, 512, 512, scratch)
                else:
                    most = MOST_PLAIN if writes else 512
                    answer = await connection.exchange(b"", body, scratch, no_body=False, most=most)
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

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            for piece in pieces:
                await trio.testing.wait_all_tasks_blocked()
                if not found:
                    theirs.send(piece)
            await trio.testing.wait_all_tasks_blocked()
            if not found:
                theirs.close()
        connection.close()
    return found


@pytest.mark.parametrize("seed", range(40))
async def test_the_outcome_is_the_same(seed: int) -> None:
    need(plain.NATIVE, "the module in C is not built")
    rng, pump = Random(seed), plain.Pump()
    for _ in range(25):
        writes = rng.random() < 0.4
        data = damaged(GOOD[write if writes else read], rng)
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 2])))
        edges = [0, *cuts, len(data)]
        pieces = [data[a:b] for a, b in pairwise(edges) if a < b]
        assert await outcome(True, writes, pieces, pump) == await outcome(False, writes, pieces, pump), pieces
    pump.close()
