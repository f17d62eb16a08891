"""framing.py and connection.py: how long a body is, what comes before an answer, and how much of it is taken."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import trio
import trio.testing

from blobfuse_dysk.azure import connection as receiving
from blobfuse_dysk.errors import TransportError
from tests.unit.scripted import Peer, answer, ask, forever, get, pool_to

pytestmark = pytest.mark.usefixtures("way")

CHUNKED = b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSED = b"HTTP/1.1 %s\r\n\r\n"


@pytest.mark.parametrize("head", [CHUNKED, CLOSED])
async def test_a_success_without_end_is_given_up(head: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head % b"200 OK")
        while True:
            await peer.send(b"64\r\n" + bytes(100) + b"\r\n")

    async with pool_to(script) as pool:
        with pytest.raises(TransportError, match="larger than anything"):
            await ask(pool, get(most=1000))


@pytest.mark.parametrize("head", [CHUNKED, CLOSED, b"HTTP/1.1 %s\r\nContent-Length: 99999999999\r\n\r\n"])
async def test_of_a_refusal_without_end_the_first_bytes_are_read(head: bytes) -> None:
    """A gateway's page may be long; what it says of the request is in the head."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head % b"503 Busy")
        while True:
            await peer.send(b"64\r\n" + b"b" * 100 + b"\r\n")

    async with pool_to(script) as pool:
        reply = await ask(pool, get(most=1000))
        assert (reply.status, len(reply.body)) == (503, 64 << 10)
        assert pool.connections == 0


async def test_no_memory_is_taken_for_what_an_answer_only_promises() -> None:
    """The worker's memory is locked: 256 answers that promise 16 MiB each would take 4 GiB of the machine's."""
    promised = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nbegun" % (256 << 20))
        promised.set()
        await trio.sleep_forever()

    async with pool_to(script) as pool, trio.open_nursery() as nursery:
        tracemalloc.start()
        try:
            nursery.start_soon(ask, pool, get(most=512 << 20))
            await promised.wait()
            for _ in range(5):
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (3 << 20) + 12345])
async def test_a_body_longer_than_a_step_of_memory_comes_whole(size: int) -> None:
    body = random.Random(size).randbytes(size)
    async with pool_to(forever(answer(body))) as pool:
        assert (await ask(pool)).body == body
        assert (await ask(pool)).body == body
        assert pool.connections == 1


@pytest.mark.parametrize("status", ["200 OK", "206 Partial Content", "404 Not Found"])
@pytest.mark.parametrize("body", [b"", b"0123456789", bytes(range(256)) * 1024])
async def test_a_body_may_end_with_the_connection(status: str, body: bytes) -> None:
    """HTTP/1.1 allows it, and proxies do it; what was asked for has a length, which its reader checks."""
    body = body[: 60 << 10] if status[0] == "4" else body

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(f"HTTP/1.1 {status}\r\nX: y\r\n\r\n".encode() + body[:5])
        await peer.send(body[5:])

    async with pool_to(script) as pool:
        for _ in range(2):
            reply = await ask(pool)
            assert (f"{reply.status}", bytes(reply.body)) == (status[:3], body)
            assert pool.connections == 0


async def test_a_reset_is_no_end_of_a_body() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await trio.sleep(0.05)
        await peer.reset()

    async with pool_to(script) as pool:
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, False)


INTERIM = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nContent-Length: 5\r\n\r\n",
)


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_interim_answers_are_skipped(method: str, step: int) -> None:
    """Taken for the answer, a write that landed was never believed, and the real answer was the next request's."""
    body = b"" if method == "HEAD" else b"the answer"
    data = b"".join(INTERIM) + answer(body) if body else b"".join(INTERIM) + answer(b"x" * 10)[:-10]

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            for at in range(0, len(data), step):
                await peer.send(data[at : at + step])

    async with pool_to(script) as pool:
        for _ in range(3):
            reply = await ask(pool, get(method=method, body=b"data" if method == "PUT" else None))
            assert (reply.status, bytes(reply.body)) == (200, body)
        assert pool.connections == 1


async def test_interim_answers_without_end_are_given_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(INTERIM[0])

    async with pool_to(script) as pool:
        with pytest.raises(TransportError, match="without end") as caught:
            await ask(pool)
        assert caught.value.sent


@pytest.mark.parametrize("headers", [b"", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"])
async def test_a_change_of_protocol_is_an_error_of_the_connection(headers: bytes) -> None:
    async with pool_to(forever(b"HTTP/1.1 101 Switching Protocols\r\n" + headers + b"\r\n")) as pool:
        with pytest.raises(TransportError, match=r"another protocol|not HTTP") as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, False)
        assert pool.connections == 0


async def test_what_nobody_thought_of_is_an_error_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(head: bytes) -> int:
        raise OverflowError("an odd answer")

    monkeypatch.setattr(receiving, "status_of", odd)
    async with pool_to(forever(answer())) as pool:
        with pytest.raises(TransportError, match="OverflowError: an odd answer") as caught:
            await ask(pool)
        assert caught.value.sent
        assert pool.connections == 0
