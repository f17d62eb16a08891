"""connection.py: what may come back on a connection, whole, in pieces, cut or damaged."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import trio
import trio.testing

from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.errors import TransportError
from tests.unit.scripted import Peer, answer, ask, forever, get, pool_to

pytestmark = pytest.mark.usefixtures("way")


async def test_one_connection_serves_many_requests() -> None:
    async with pool_to(forever(answer(b"one"), answer(b"two", "206 Partial Content", "X-A: b"))) as pool:
        first, second = await ask(pool), await ask(pool)
        assert (first.status, bytes(first.body)) == (200, b"one")
        assert (second.status, bytes(second.body), second.header("x-a")) == (206, b"two", "b")
        assert pool.connections == 1


async def test_a_body_in_pieces_and_a_head_in_pieces() -> None:
    whole = answer(bytes(range(256)) * 4096)  # 1 MiB: far more than the scratch buffer

    async def script(peer: Peer) -> None:
        await peer.request()
        for at in range(0, 60, 7):
            await peer.send(whole[at : at + 7])
        await peer.send(whole[63:])
        await peer.request()
        await peer.send(answer(b"next"))
        await peer.request()

    async with pool_to(script) as pool:
        assert (await ask(pool)).body == bytes(range(256)) * 4096
        assert (await ask(pool)).body == b"next"


async def test_a_large_request_body_is_sent_whole_even_if_the_server_is_slow_to_read() -> None:
    received: list[int] = []

    async def script(peer: Peer) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await peer.stream.receive_some(10)
        total = len(head.partition(b"\r\n\r\n")[2])
        while total < 8 << 20:
            total += len(await peer.stream.receive_some(100_000))
            await trio.lowlevel.checkpoint()
        received.append(total)
        await peer.send(answer(b"", "201 Created"))
        await peer.request()

    async with pool_to(script) as pool:
        body = memoryview(bytearray(8 << 20))
        assert (await ask(pool, get(method="PUT", body=body))).status == 201
    assert received == [8 << 20]


@pytest.mark.parametrize("step", [1, 5, 1000])
async def test_a_chunked_answer_is_put_together_wherever_it_is_cut(step: int) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n3;x=y\r\nefg\r\n0\r\n\r\n"

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            for at in range(0, len(data), step):
                await peer.send(data[at : at + step])

    async with pool_to(script) as pool:
        assert (await ask(pool)).body == b"abcdefg"
        assert (await ask(pool)).body == b"abcdefg"
        assert pool.connections == 1


async def test_answers_without_a_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n"
    created = b"HTTP/1.1 201 Created\r\nX: y\r\n\r\n"
    async with pool_to(forever(head, created, b"HTTP/1.1 204 No Content\r\n\r\n", answer(b"end"))) as pool:
        found = await ask(pool, get(method="HEAD"))
        assert (found.body, found.header("content-length")) == (b"", "4096")
        assert (await ask(pool, get(method="PUT"))).status == 201
        assert (await ask(pool)).status == 204
        assert (await ask(pool)).body == b"end"


@pytest.mark.parametrize(
    "data",
    [
        answer(b"x", "200 OK", "Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
        answer(b"x") + b"bytes that nobody asked for",
        answer(b"x") + answer(b"y")[:30],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nmore",
    ],
)
async def test_a_connection_that_cannot_go_on_is_not_used_again(data: bytes) -> None:
    made: set[int] = set()

    async def script(peer: Peer) -> None:
        made.add(peer.number)
        await forever(data)(peer)

    async with pool_to(script) as pool:
        for _ in range(3):
            assert (await ask(pool)).body == b"x"
            assert pool.connections == 0
    assert len(made) == 3


async def test_the_length_is_that_of_the_header_of_this_very_name() -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Content-Length: 2\r\nContent-Length: 4\r\n\r\n"
    async with pool_to(forever(head + b"abcd")) as pool:
        assert (await ask(pool)).body == b"abcd"
        assert pool.connections == 1


async def test_redirects_are_not_followed() -> None:
    async with pool_to(forever(answer(b"", "302 Found", "Location: http://127.0.0.1:1/"))) as pool:
        assert (await ask(pool)).status == 302


@pytest.mark.parametrize(
    "data",
    [
        answer(b"0123456789")[:-1],  # body cut
        b"HTTP/1.1 200 OK\r\nContent-Le",  # head cut
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
async def test_a_cut_or_damaged_answer(data: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)

    async with pool_to(script) as pool:
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert caught.value.sent
        assert not caught.value.stale
        assert pool.connections == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_no_answer_on_a_new_connection_is_not_stale(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if how == "reset":
            await peer.reset()

    async with pool_to(script) as pool:
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, False)


async def test_an_answer_cut_on_a_connection_used_before_is_not_stale() -> None:
    async with pool_to(_cut_second) as pool:
        await ask(pool)
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, False)


async def _cut_second(peer: Peer) -> None:
    await peer.request()
    await peer.send(answer(b"first"))
    await peer.request()
    await peer.send(answer(b"second")[:-1])


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_idle_connection_that_breaks_with_the_request_is_stale(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"first"))
        await peer.request()
        if how == "reset":
            await peer.reset()

    async with pool_to(script) as pool:
        await ask(pool)
        with pytest.raises(TransportError) as caught:
            await ask(pool)
        assert (caught.value.sent, caught.value.stale) == (True, True)
        assert (await ask(pool)).body == b"first"  # on a new connection


async def test_an_idle_connection_that_was_closed_is_dropped_before_use() -> None:
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(str(peer.number).encode()))
        if peer.number:
            await peer.request()
        await peer.stream.aclose()
        closed.set()

    async with pool_to(script) as pool:
        assert (await ask(pool)).body == b"0"
        await closed.wait()
        assert (await ask(pool)).body == b"1"


async def test_an_answer_given_before_the_body_was_read_is_not_lost() -> None:
    async def script(peer: Peer) -> None:
        await peer.stream.receive_some(100)
        await peer.send(answer(b"", "412 Precondition Failed", "Connection: close"))
        assert isinstance(peer.stream, trio.SocketStream)
        await peer.stream.send_eof()
        peer.stream.socket.shutdown(trio.socket.SHUT_RD)
        while await peer.stream.receive_some():
            pass

    async with pool_to(script) as pool:
        assert (await ask(pool, get(method="PUT", body=bytes(4 << 20)))).status == 412


class _ShortOfBuffers(socket.socket):
    """Takes a part of a request, then the kernel has no memory for the rest."""

    calls = 0

    def sendmsg(self, buffers, *rest):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == 1:
            return self.send(buffers[0])
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


async def test_a_connection_with_half_a_request_in_it_is_not_used_again() -> None:
    """The server answers, keeps the connection, and still waits for the body: it would take the next request for it."""
    ours, theirs = socket.socketpair()
    with theirs, _ShortOfBuffers(ours.family, ours.type, ours.proto, fileno=ours.detach()) as sock:
        sock.setblocking(False)
        connection = Connection(sock)
        theirs.send(answer(b"", "408 Request Timeout"))
        reply = await connection.exchange(b"PUT / HTTP/1.1\r\n\r\n", b"x" * 512, bytearray(4096), no_body=False)
        assert reply.status == 408
        assert not connection.reusable


class _Trickle(socket.socket):
    """Takes nothing at first, then a few bytes at a time."""

    calls = 0

    def sendmsg(self, buffers, *rest):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls % 2:
            raise BlockingIOError
        return self.send(b"".join(buffers)[:7])


async def test_a_request_that_goes_in_pieces_arrives_as_it_is() -> None:
    ours, theirs = socket.socketpair()
    with theirs, _Trickle(ours.family, ours.type, ours.proto, fileno=ours.detach()) as sock:
        sock.setblocking(False)
        theirs.send(answer(b"", "201 Created"))
        head, body = b"PUT /a/path HTTP/1.1\r\n\r\n", bytes(range(200))
        await Connection(sock).exchange(head, body, bytearray(4096), no_body=False)
        assert theirs.recv(4096) == head + body


async def test_a_request_that_went_in_pieces_may_have_been_done() -> None:
    ours, theirs = socket.socketpair()
    with theirs, _Trickle(ours.family, ours.type, ours.proto, fileno=ours.detach()) as sock:
        sock.setblocking(False)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(TransportError) as caught:
            await Connection(sock).exchange(b"PUT / HTTP/1.1\r\n\r\n", bytes(99), bytearray(4096), no_body=False)
        assert caught.value.sent


async def test_a_request_of_which_nothing_went_was_not_sent_whatever_went_before() -> None:
    ours, theirs = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        connection = Connection(ours)
        theirs.send(answer(b"fine"))
        await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", None, bytearray(4096), no_body=False)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(TransportError) as caught:
            await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", None, bytearray(4096), no_body=False)
        assert not caught.value.sent


async def test_an_answer_that_came_as_its_time_ended_leaves_nothing_behind() -> None:
    """The next exchange on the connection has a time of its own; when it breaks, it is stale, not late."""
    ours, theirs = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        connection = Connection(ours)
        theirs.send(answer(b"in time"))
        await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", None, bytearray(4096), no_body=False)
        connection.expire()
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(TransportError) as caught:
            await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", None, bytearray(4096), no_body=False)
        assert caught.value.stale
