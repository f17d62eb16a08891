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
from tests.conftest import need
from tests.unit.plain_answers import GOOD, ID, LENGTH, RANGE, ask_once, read, write
from tests.unit.test_plain_tls import same
from tests.unit.trusted import FarSide, Trust

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
        theirs.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await connection.exchange(b"HEAD", None, scratch, no_body=False)
        found: list[object] = []

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_once, connection, writes, found)
            for piece in pieces:
                await trio.testing.wait_all_tasks_blocked()
                if not found:
                    theirs.send(piece)
            await trio.testing.wait_all_tasks_blocked()
            if not found:
                theirs.close()
        connection.close()
    return found


def cut(data: bytes, rng: Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 2])))
    return [data[a:b] for a, b in pairwise([0, *cuts, len(data)]) if a < b]


@pytest.mark.parametrize("seed", range(40))
async def test_the_outcome_is_the_same(seed: int) -> None:
    need(plain.NATIVE, "the module in C is not built")
    rng, pump = Random(seed), plain.Pump()
    for _ in range(25):
        writes = rng.random() < 0.4
        data = damaged(GOOD[write if writes else read], rng)
        pieces = cut(data, rng)
        assert await outcome(True, writes, pieces, pump) == await outcome(False, writes, pieces, pump), pieces
    pump.close()


@pytest.mark.parametrize("seed", range(20))
async def test_the_outcome_is_the_same_over_tls(seed: int, certificates: Trust) -> None:
    """In any records, which are cut anywhere, and may be damaged themselves."""
    need(plain.NATIVE, "the module in C is not built")
    rng = Random(seed)
    for _ in range(15):
        writes = rng.random() < 0.4
        records = cut(damaged(GOOD[write if writes else read], rng), rng)
        choice = rng.random()

        def answering(far: FarSide, records: list[bytes] = records, choice: float = choice) -> list[bytes]:
            sealed = bytearray(b"".join(far.seal(record) for record in records))
            again = Random(choice)
            if choice < 0.2:
                sealed[again.randrange(len(sealed))] ^= 1 << again.randrange(8)
            elif choice < 0.4:
                sealed += far.bye()
            return cut(bytes(sealed), again)

        await same(certificates, writes, answering)
