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
from blobfuse_dysk.azure.wire import Reply
from blobfuse_dysk.errors import ServiceError, TransportError
from tests.conftest import need
from tests.unit.plain_answers import EMPTY, GOOD, ID, LEASE, PAGE, PART, Made, T, raw, read
from tests.unit.scripted import Peer, client_to, forever
from tests.unit.trusted import Trust


@pytest.fixture(autouse=True)
def _native() -> None:
    need(plain.NATIVE, "the module in C is not built")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each range that was asked for in C."""
    found: list[int] = []
    exchange = plain.PlainConnection.exchange_plain

    async def counting(
        self: plain.PlainConnection, head: bytes, body: object, offset: int, length: int, *rest: object
    ) -> bytes | Reply:
        found.append(length)
        return await exchange(self, head, body, offset, length, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(plain.PlainConnection, "exchange_plain", counting)
    return found


async def test_an_answers_date_is_looked_at_now_and_then(quick: list[int], autojump_clock: MockClock) -> None:
    """In Python, so those requests are."""
    async with client_to(forever(GOOD[read])) as client:
        for expected in (0, 1, 2):
            await read(client)
            assert len(quick) == expected
        await trio.sleep(11)
        for expected in (2, 3):
            await read(client)
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
    def ranged(length: int) -> bytes:
        return raw(
            PART, f"Content-Length: {length}", f"Content-Range: bytes 0-{length - 1}/{1 << 30}", ID, body=bytes(length)
        )

    lengths = (512, 1 << 20, (1 << 20) + 512, 512)
    async with client_to(forever(*map(ranged, lengths)), trust=trust) as client:
        for length in lengths:
            assert len(await client.get_range(0, length, timeout_s=T)) == length
    assert quick == [1 << 20, 512]


async def test_a_renewed_credential_is_the_one_that_is_used(quick: list[int]) -> None:
    heads = []

    async def script(peer: Peer) -> None:
        while True:
            heads.append(await peer.request())
            await peer.send(GOOD[read])

    async with client_to(script, proof=Proof("sas", "a test", sas="sig=first")) as client:
        await read(client)
        await read(client)
        client.credential._use(Proof("sas", "a test", sas="sig=second"))
        await read(client)
    assert len(quick) == 2
    assert [b"sig=second" in head for head in heads] == [False, False, True]


async def test_a_refused_date_is_not_tried_again(quick: list[int]) -> None:
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
            assert await read(client) == PAGE
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
