"""native/tls.c: whatever comes in whichever records, the outcome is that of TlsConnection alone."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from blobfuse_dysk.azure import plain
from blobfuse_dysk.azure.connection import Connection
from blobfuse_dysk.azure.tlsconnection import HELD, TlsConnection
from blobfuse_dysk.azure.wire import Reply
from blobfuse_dysk.errors import TransportError
from tests.conftest import need
from tests.unit.plain_answers import GOOD, PAGE, ask_once, fill, read, write
from tests.unit.trusted import FarSide, Trust

VERSIONS = [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2]
REQUEST = {True: b"PUT" + PAGE, False: b"GET"}
ANSWER = {True: GOOD[write], False: GOOD[read]}
START = GOOD[read].find(b"\r\n\r\n") + 4  # of the body


@pytest.fixture(autouse=True)
def _native() -> None:
    need(plain.NATIVE, "the module in C is not built")


@dataclass
class Pair:
    """A connection that has been used once, and its server."""

    connection: Connection
    far: FarSide
    theirs: socket.socket

    def requests(self) -> bytes:
        """What the server has got since it was last asked."""
        data = b""
        try:
            while piece := self.theirs.recv(1 << 20):
                data += piece
        except BlockingIOError:
            pass
        return self.far.open(data)

    async def bring(self, *pieces: bytes) -> None:
        """Each as it is, when all has been done about the one before."""
        for piece in pieces:
            await trio.testing.wait_all_tasks_blocked()
            self.theirs.send(piece)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def pair_of(trust: Trust, quick: bool, version: ssl.TLSVersion = VERSIONS[0]) -> AsyncIterator[Pair]:
    ours, theirs = socket.socketpair()
    pump = plain.Pump()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        far = FarSide(trust, version=version)
        connection = pump.connection(ours, far.tls) if quick else TlsConnection(ours, far.tls)
        assert isinstance(connection, plain.PlainConnection) == quick
        pair = Pair(connection, far, theirs)
        theirs.send(far.late + far.seal(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
        await connection.exchange(b"HEAD", None, bytearray(64 << 10), no_body=False)
        assert pair.requests() == b"HEAD"
        yield pair
        connection.close()
    pump.close()


Answering = Callable[[FarSide], list[bytes]]


async def outcome(
    trust: Trust, quick: bool, writes: bool, answering: Answering, version: ssl.TLSVersion = VERSIONS[0]
) -> object:
    """What an exchange comes to when its answer comes in these pieces and then no more; and whether it goes on."""
    async with pair_of(trust, quick, version) as pair:
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_once, pair.connection, writes, found)
            await trio.testing.wait_all_tasks_blocked()
            assert pair.requests() == REQUEST[writes]
            await pair.bring(*answering(pair.far))
            early = bool(found)
            pair.theirs.shutdown(socket.SHUT_WR)
        return found, early


async def same(trust: Trust, writes: bool, answering: Answering, version: ssl.TLSVersion = VERSIONS[0]) -> object:
    quick = await outcome(trust, True, writes, answering, version)
    assert quick == await outcome(trust, False, writes, answering, version)
    return quick


def is_whole(found: object, writes: bool) -> bool:
    return found == ([(201 if writes else 206, b"" if writes else PAGE, True), True], True)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_record_may_end_anywhere(
    writes: bool, together: bool, version: ssl.TLSVersion, certificates: Trust
) -> None:
    """Head and body in two records that come together, or one after the other."""
    whole = ANSWER[writes]
    for end in [*range(1, min(len(whole), START + 3)), *range(START + 3, len(whole), 97)]:

        def answering(far: FarSide, end: int = end) -> list[bytes]:
            records = [far.seal(whole[:end]), far.seal(whole[end:])]
            return [b"".join(records)] if together else records

        assert is_whole(await same(certificates, writes, answering, version), writes), end


@pytest.mark.parametrize("writes", [True, False])
async def test_byte_by_byte(writes: bool, certificates: Trust) -> None:
    def answering(far: FarSide) -> list[bytes]:
        sealed = far.seal(ANSWER[writes][:50]) + far.seal(ANSWER[writes][50:])
        return [sealed[i : i + 1] for i in range(len(sealed))]

    assert is_whole(await same(certificates, writes, answering), writes)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("cut", [0, 3, 60, 100, 200, -1])
async def test_the_end_in_the_middle_of_the_bytes(writes: bool, cut: int, certificates: Trust) -> None:
    def answering(far: FarSide) -> list[bytes]:
        sealed = far.seal(ANSWER[writes][:50]) + far.seal(ANSWER[writes][50:])
        return [sealed[:cut]] if cut else []

    await same(certificates, writes, answering)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("cut", [0, 20, START, START + 10])
async def test_the_end_that_tls_tells_of(writes: bool, cut: int, certificates: Trust) -> None:
    """Before, in the middle and behind of what is expected, in one piece with it and after it."""
    for together in (True, False):

        def answering(far: FarSide, together: bool = together) -> list[bytes]:
            said = far.seal(ANSWER[writes][:cut]) if cut else b""
            return [said + far.bye()] if together else [said, far.bye()]

        await same(certificates, writes, answering)


@pytest.mark.parametrize("at", [7, 60, 120, 400, -1])
async def test_a_damaged_record(at: int, certificates: Trust) -> None:
    def answering(far: FarSide) -> list[bytes]:
        sealed = bytearray(far.seal(GOOD[read][:50]) + far.seal(GOOD[read][50:]))
        sealed[at] ^= 1
        return [bytes(sealed)]

    found = await same(certificates, False, answering)
    assert "SSL" in str(found)


async def test_more_behind_the_answer_is_found_before_the_next(certificates: Trust) -> None:
    for writes in (True, False):
        for cut in (40, START, None):
            for own in (True, False):
                for quick in (True, False):
                    async with pair_of(certificates, quick) as pair, trio.open_nursery() as nursery:
                        found: list[object] = []
                        nursery.start_soon(ask_once, pair.connection, writes, found)
                        whole, more = ANSWER[writes], b"HTTP/1.1 200"
                        parts = [whole[:cut], whole[cut:]] if cut else [whole]
                        parts[-1:] = [parts[-1], more] if own else [parts[-1] + more]
                        await pair.bring(b"".join(pair.far.seal(part) for part in parts if part))
                        assert not (found[-1] and pair.connection.is_quiet()), (writes, cut, own, quick)


@pytest.mark.parametrize("quick", [True, False])
async def test_what_tls_says_for_itself_in_between(
    quick: bool, certificates: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked something, answers, and gets new tickets: while idle, before an answer, and in the middle of one."""
    finish = Connection._finish

    async def finishing(self: Connection, *rest: object) -> Reply:
        assert not quick, "it is not done in C"
        return await finish(self, *rest)  # type: ignore[arg-type]

    async with pair_of(certificates, quick) as pair:
        monkeypatch.setattr(Connection, "_finish", finishing)
        far, connection = pair.far, pair.connection
        await pair.bring(far.ask_who())
        assert connection.is_quiet()
        for number in range(6):
            found: list[object] = []
            writes = number % 2 == 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_once, connection, writes, found)
                await trio.testing.wait_all_tasks_blocked()
                assert pair.requests() == REQUEST[writes]
                cut = START if not writes else 0
                if cut:
                    await pair.bring(far.seal(ANSWER[writes][:cut]))
                if number in (2, 3):
                    await pair.bring(far.ask_who())
                    answer = pair.theirs.recv(1 << 20)  # at once: the other side may wait for it
                    assert (answer != b"", far.open(answer)) == (True, b"")
                await pair.bring(far.seal(ANSWER[writes][cut:]))
                assert len(found) == 2
            assert found[-1] is True
            assert connection.is_quiet()


@pytest.mark.parametrize("quick", [True, False])
async def test_tickets_that_come_while_idle(quick: bool, certificates: Trust) -> None:
    """In two pieces, with a look at the connection in between."""
    async with pair_of(certificates, quick) as pair:
        await pair.bring(pair.far.ask_who())
        assert pair.connection.is_quiet()
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_once, pair.connection, False, found)
            await trio.testing.wait_all_tasks_blocked()
            assert pair.requests() == b"GET"
            await pair.bring(pair.far.seal(GOOD[read]))
        tickets = pair.far.ask_who()
        await pair.bring(tickets[:20])
        assert pair.connection.is_quiet()
        await pair.bring(tickets[20:])
        assert pair.connection.is_quiet()
        assert found == [(206, PAGE, True), True]


@pytest.mark.parametrize("ends", ["cancelled", "expired"])
@pytest.mark.parametrize("brought", [0, 4, 80, 150, 400])
async def test_a_wait_that_is_ended_in_each_state(ends: str, brought: int, certificates: Trust) -> None:
    """Nothing, a part of a record, a head's record, a part of the body's: the late rest wakes nobody."""
    for quick in (True, False):
        async with pair_of(certificates, quick) as pair, trio.open_nursery() as nursery:
            found: list[object] = []
            nursery.start_soon(ask_once, pair.connection, False, found)
            sealed = pair.far.seal(GOOD[read][:START]) + pair.far.seal(GOOD[read][START:])
            await pair.bring(sealed[:brought])
            assert found == []
            if ends == "expired":
                pair.connection.expire()
                pair.theirs.send(sealed[brought:])
                await trio.testing.wait_all_tasks_blocked()
                assert found == ["no whole answer within the time limit", True, False, False]
            else:
                nursery.cancel_scope.cancel()
                pair.theirs.send(sealed[brought:])
        assert not pair.connection.reusable


@pytest.mark.parametrize("length", [(16 << 10) - 300, 16 << 10, 100_000, 1 << 20])
async def test_a_long_range(length: int, certificates: Trust) -> None:
    body = bytes(range(256)) * (length // 256 + 1)
    head = f"HTTP/1.1 206 x\r\nContent-Length: {length}\r\nContent-Range: bytes 0-{length - 1}/{1 << 30}\r\n"
    whole = f"{head}x-ms-request-id: 1\r\n\r\n".encode() + body[:length]
    async with pair_of(certificates, True) as pair, trio.open_nursery() as nursery:
        connection, answers = pair.connection, []

        async def ask() -> None:
            assert isinstance(connection, plain.PlainConnection)
            answers.append(await connection.exchange_plain(b"GET", None, 0, length, bytearray(64 << 10)))

        nursery.start_soon(ask)
        sealed = b"".join(pair.far.seal(whole[i : i + (16 << 10)]) for i in range(0, len(whole), 16 << 10))
        await pair.bring(*(sealed[i : i + 40_001] for i in range(0, len(sealed), 40_001)))
        assert answers == [body[:length]]
        assert isinstance(answers[0], bytes)
        assert connection.is_quiet()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was done of each request of which the rest was sent in Python."""
    found: list[int] = []
    send = TlsConnection._send

    async def sending(self: TlsConnection, head: bytes, body: bytes, done: int) -> None:
        found.append(done)
        await send(self, head, body, done)

    monkeypatch.setattr(TlsConnection, "_send", sending)
    return found


@pytest.mark.parametrize("in_lane", [False, True])
async def test_a_request_that_the_socket_does_not_take_at_once(
    in_lane: bool, certificates: Trust, held: list[int]
) -> None:
    """The rest of it is sent in Python, once."""
    async with pair_of(certificates, True) as pair:
        held.clear()
        filled = fill(pair.connection)
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_once, pair.connection, True, found, in_lane)
            await trio.testing.wait_all_tasks_blocked()
            assert (held, found) == ([HELD], [])
            while filled:
                filled -= len(pair.theirs.recv(min(filled, 1 << 16)))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert pair.requests() == REQUEST[True]
            await pair.bring(pair.far.seal(GOOD[write]))
        assert found == [(201, b"", True), True]


@pytest.mark.parametrize("in_lane", [False, True])
async def test_a_connection_that_ends_before_the_rest_is_sent(in_lane: bool, certificates: Trust) -> None:
    """A part of it may have gone."""
    async with pair_of(certificates, True) as pair:
        fill(pair.connection)
        found: list[object] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_once, pair.connection, True, found, in_lane)
            await trio.testing.wait_all_tasks_blocked()
            pair.theirs.close()
        assert found[1:] == [True, True, False]


async def test_a_request_that_cannot_be_sent(certificates: Trust) -> None:
    """The connection was closed, and nobody has looked: nothing of it was sent, on all ways."""
    for writes in (True, False):
        found: list[list[object]] = [[], [], []]
        for way, (quick, in_lane) in enumerate([(False, False), (True, False), (True, True)]):
            async with pair_of(certificates, quick) as pair:
                pair.theirs.close()
                await ask_once(pair.connection, writes, found[way], in_lane)
        assert found[0] == found[1] == found[2]
        assert found[0][1:] == [False, True, False]


async def test_a_large_write_is_sent_in_python(certificates: Trust, held: list[int]) -> None:
    """What is encrypted at once stays in memory, for each connection."""
    body = bytes(range(256)) * 80
    async with pair_of(certificates, True) as pair, trio.open_nursery() as nursery:
        held.clear()
        connection = pair.connection
        assert isinstance(connection, plain.PlainConnection)
        nursery.start_soon(connection.exchange_plain, b"PUT", memoryview(body), 512, len(body), bytearray(4096))
        await trio.testing.wait_all_tasks_blocked()
        assert pair.requests() == b"PUT" + body
        assert held == [0]
        await pair.bring(pair.far.seal(GOOD[write]))


async def test_a_broken_peer_is_the_connections_failure(certificates: Trust) -> None:
    async with pair_of(certificates, True) as pair:
        assert isinstance(pair.connection, plain.PlainConnection)
        pair.theirs.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert not pair.connection.is_quiet()
        with pytest.raises(TransportError):
            await pair.connection.exchange_plain(b"GET", None, 512, 512, bytearray(4096))
