"""plainway.py and pool.py: when a request goes the quick way, and with what; what becomes of the connections."""

from __future__ import annotations

import gc
import socket
import time

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.azure import plain
from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Proof
from blobfuse_dysk.azure.signing import http_date, parse_http_date
from blobfuse_dysk.azure.tlsconnection import ONE_RECORD
from blobfuse_dysk.azure.wire import Reply
from blobfuse_dysk.errors import ServiceError, TransportError
from tests.conftest import need
from tests.unit.plain_answers import (
    EMPTY,
    GOOD,
    ID,
    IN_LANE,
    LEASE,
    PAGE,
    PART,
    Call,
    Made,
    T,
    fill,
    raw,
    read,
    write,
)
from tests.unit.scripted import Peer, client_to, forever
from tests.unit.trusted import Trust


@pytest.fixture(autouse=True)
def _native() -> None:
    need(plain.NATIVE, "the module in C is not built")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each range that was asked for in C."""
    found: list[int] = []
    exchange, begin = plain.PlainConnection.exchange_plain, plain.PlainConnection.begin_plain

    async def counting(
        self: plain.PlainConnection, head: bytes, body: object, offset: int, length: int, *rest: object
    ) -> bytes | Reply:
        found.append(length)
        return await exchange(self, head, body, offset, length, *rest)  # type: ignore[arg-type]

    def beginning(self: plain.PlainConnection, exchange: plain.Exchange, offset: int) -> bool:
        found.append(exchange.length)
        return begin(self, exchange, offset)

    monkeypatch.setattr(plain.PlainConnection, "exchange_plain", counting)
    monkeypatch.setattr(plain.PlainConnection, "begin_plain", beginning)
    return found


def ranged(length: int) -> bytes:
    """The answer to a read of this many bytes."""
    return raw(
        PART, f"Content-Length: {length}", f"Content-Range: bytes 0-{length - 1}/{1 << 30}", ID, body=bytes(length)
    )


@pytest.mark.parametrize("call", [read, write])
@pytest.mark.parametrize("in_lane", [False, True])
async def test_an_answers_date_is_looked_at_now_and_then(
    in_lane: bool, call: Call, quick: list[int], autojump_clock: MockClock
) -> None:
    """In Python, so those requests are."""
    made = IN_LANE[call] if in_lane else call
    async with client_to(forever(GOOD[call])) as client:
        for expected in (0, 1, 2):
            await made(client)
            assert len(quick) == expected
        await trio.sleep(11)
        for expected in (2, 3):
            await made(client)
            assert len(quick) == expected


async def test_what_is_to_have_a_checksum_is_asked_for_in_python(quick: list[int]) -> None:
    async with client_to(
        forever(GOOD[read].replace(b"\r\n\r\n", b"\r\nContent-MD5: x\r\n\r\n", 1)), checksum=True
    ) as client:
        for _ in range(3):
            with pytest.raises(TransportError, match="checksum"):
                await read(client)
    assert quick == []


async def test_a_long_range_is_read_in_python(quick: list[int], trust: Trust | None) -> None:
    lengths = (512, 1 << 20, (1 << 20) + 512, 512)
    async with client_to(forever(*map(ranged, lengths)), trust=trust) as client:
        for length in lengths:
            assert len(await client.get_range(0, length, timeout_s=T)) == length
    assert quick == [1 << 20, 512]


@pytest.mark.parametrize("call", [read, write])
async def test_what_is_longer_is_not_begun(call: Call, quick: list[int], trust: Trust | None) -> None:
    """Of a write, what no socket takes at once or is more than one record of TLS."""
    most = plain.MOST_RANGE if call is read else ONE_RECORD - (2 << 10) if trust else 256 << 10
    async with client_to(forever(GOOD[call], ranged(most) if call is read else GOOD[call]), trust=trust) as client:
        await call(client)
        for length in (most + 512, most):
            made = Made()
            made.offset, made.length = 0, length
            begun = client.begin_get(made, T) if call is read else client.begin_put(made, bytes(length), LEASE, 7, T)
            assert begun == (length == most)
        await made.result()
        assert (quick, client._pool._free) == ([most], 256)


async def test_a_head_that_python_has_to_make_takes_no_connection(quick: list[int]) -> None:
    async with client_to(forever(GOOD[write])) as client:
        await write(client)
        assert not client.begin_put(Made(), PAGE, "no\nheader", 7, T)
        assert (client._pool._free, client._pool.connections) == (256, 1)
        await IN_LANE[write](client)
    assert quick == [512]


async def test_what_does_not_begin_goes_on_in_python(quick: list[int]) -> None:
    """The socket takes none of it at first."""
    filled, go = [0], trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[write])
        await go.wait()
        while len(peer._received) < filled[0]:
            await peer._more()
        del peer._received[: filled[0]]
        await peer.request()
        await peer.send(GOOD[write])

    async with client_to(script) as client:
        await write(client)
        filled[0] = fill(client._pool._idle[0])
        made = Made()
        assert client.begin_put(made, PAGE, LEASE, 7, T)
        go.set()
        with trio.fail_after(5):
            await made.result()
        assert (quick, client._pool._free, client._pool.connections) == ([512], 256, 1)


async def test_what_is_begun_and_sent_in_part_is_sent_whole_in_python() -> None:
    body = bytes(range(256)) * (4 << 12)
    ours, theirs = socket.socketpair()
    pump = plain.Pump()
    with theirs, ours:
        ours.setblocking(False)
        connection = pump.connection(ours)
        assert isinstance(connection, plain.PlainConnection)
        exchange = plain.Exchange(b"PUT", body, len(body))
        assert not connection.begin_plain(exchange, 512)
        assert 0 < exchange.done < len(body)
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.rest_plain, exchange, bytearray(4096))
            while len(received) < 3 + len(body):
                await trio.testing.wait_all_tasks_blocked()
                received += theirs.recv(1 << 20)
            theirs.send(GOOD[write])
        assert received == b"PUT" + body
        connection.close()
    pump.close()


async def test_who_waits_for_a_place_has_it_before_a_call_that_is_begun(quick: list[int]) -> None:
    """The place of a request that ended is the waiting one's, though nothing is done in it yet."""
    go = trio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.send(GOOD[read])

    async def read_and_begin(client: BlobClient) -> None:
        await read(client)
        assert not client.begin_get(Made(), T)

    async with client_to(script) as client:
        client._pool._free = 1
        async with trio.open_nursery() as nursery:
            for call in (read_and_begin, read):
                nursery.start_soon(call, client)
                await trio.testing.wait_all_tasks_blocked()
            go.set()
        assert (client._pool._free, client._pool.connections) == (1, 1)


@pytest.mark.parametrize("in_lane", [False, True])
async def test_who_waits_for_a_place_goes_on_when_a_plain_answer_came(in_lane: bool, quick: list[int]) -> None:
    go = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])
        await peer.request()
        await go.wait()
        await peer.send(GOOD[read])
        await peer.request()
        await peer.send(GOOD[read])

    async with client_to(script) as client:
        client._pool._free = 1
        await read(client)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for call in (IN_LANE[read] if in_lane else read, read):
                    nursery.start_soon(call, client)
                    await trio.testing.wait_all_tasks_blocked()
                go.set()
        assert (client._pool._free, client._pool.connections) == (1, 1)
    assert quick == [512]


async def test_a_connection_without_the_quick_way_is_kept(quick: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be more connections than C has room for."""
    async with client_to(forever(GOOD[read])) as client:
        with monkeypatch.context() as patch:
            patch.setattr(plain.Pump, "_line", lambda *connection: None)
            await read(client)
        for _ in range(2):
            assert not client.begin_get(Made(), T)
            assert (client._pool._free, client._pool.connections) == (256, 1)
            await read(client)
    assert quick == []


@pytest.mark.parametrize("made", [read, IN_LANE[read]])
async def test_a_renewed_credential_is_the_one_that_is_used(made: Call, quick: list[int]) -> None:
    heads = []

    async def script(peer: Peer) -> None:
        while True:
            heads.append(await peer.request())
            await peer.send(GOOD[read])

    async with client_to(script, proof=Proof("sas", "a test", sas="sig=first")) as client:
        await made(client)
        await made(client)
        client.credential._use(Proof("sas", "a test", sas="sig=second"))
        await made(client)
    assert len(quick) == 2
    assert [b"sig=second" in head for head in heads] == [False, False, True]


@pytest.mark.parametrize("made", [read, IN_LANE[read]])
async def test_a_refused_date_is_not_tried_again(made: Call, quick: list[int]) -> None:
    """The service takes another one, by which requests are dated from then on."""
    refusal = raw(
        "HTTP/1.1 403 No", EMPTY, ID, "x-ms-error-code: AuthenticationFailed", f"Date: {http_date(time.time() + 3600)}"
    )
    heads = []

    async def script(peer: Peer) -> None:
        for data in (GOOD[read], refusal, GOOD[read], GOOD[read]):
            heads.append(await peer.request())
            await peer.send(data)

    async with client_to(script, proof=Proof("key", "a test", account_key="aGk=")) as client:
        for _ in range(3):
            assert await made(client) == PAGE
    dates = [parse_http_date(head.partition(b"x-ms-date:")[2].partition(b"\r\n")[0].decode()) for head in heads]
    assert [round((date or 0) - time.time(), -2) for date in dates] == [0, 0, 3600, 3600]
    assert len(quick) == 2


async def test_what_was_idle_beside_a_broken_connection_is_dropped(trust: Trust | None) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(GOOD[read])
        await peer.request()
        await peer.reset()

    async with client_to(script, trust=trust) as client:
        pool = client._pool
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read, client)
        assert pool.connections == 4
        with pytest.raises(TransportError):
            await read(client)
        assert (pool.connections, pool._free) == (0, 256)


async def test_an_idle_connection_that_was_closed_is_not_used_and_takes_no_place(
    quick: list[int], trust: Trust | None
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])

    async with client_to(script, trust=trust) as client:
        for _ in range(3):
            await read(client)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert client._pool._free == 256
    assert quick == []


@pytest.mark.parametrize("cut", ["request", "answer"])
async def test_what_is_left_of_a_call_when_the_client_is_closed_ends(cut: str) -> None:
    """It may be a task's that has not begun to wait, and that nobody cancels."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])
        if cut == "answer":
            await peer.request()
            await peer.send(raw("HTTP/1.1 503 Busy", "Content-Length: 9", ID, body=b"cut"))
        await trio.sleep_forever()

    async with client_to(script) as client:
        await read(client)
        made = Made()
        if cut == "request":
            made.length = 256 << 10
            client._pool._idle[0]._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            assert client.begin_put(made, bytes(made.length), LEASE, 7, T)
            assert made.rest is not None
        else:
            assert client.begin_get(made, T)
            await made.ended.wait()
        await client.aclose()
        with trio.fail_after(10), pytest.raises(TransportError, match="time limit") as caught:
            await made.result()
        assert caught.value.sent
        assert client._pool.connections == 0


@pytest.mark.parametrize("in_lane", [False, True])
@pytest.mark.parametrize("end", ["reset", "refused"])
async def test_what_was_to_be_written_is_kept_by_nobody_when_that_failed(end: str, in_lane: bool) -> None:
    """It may lie where the next request is to come, and the garbage collector takes its time."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD[read])
        await peer.request()
        if end == "reset":
            await peer.reset()
        else:
            await peer.send(raw("HTTP/1.1 400 Bad", EMPTY, ID))
            await trio.sleep_forever()

    buffer = bytearray(PAGE)
    async with client_to(script) as client:
        await read(client)
        gc.disable()
        try:
            assert await _fails(client, memoryview(buffer), in_lane)
            buffer.append(0)  # raises BufferError while somebody looks at it
        finally:
            gc.enable()


async def _fails(client: BlobClient, data: memoryview, in_lane: bool) -> bool:
    try:
        if in_lane:
            made = Made()
            assert client.begin_put(made, data, LEASE, 7, T)
            await made.result()
        else:
            await client.put_pages(512, data, lease_id=LEASE, epoch=7, timeout_s=T)
    except (ServiceError, TransportError):
        return True
    return False
