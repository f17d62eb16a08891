"""blob.py: what is taken as an answer to which request, and what an error says of what may have been done."""

from __future__ import annotations

import time
from collections.abc import Awaitable

import pytest

from blobfuse_dysk.azure.signing import http_date
from blobfuse_dysk.azure.wire import content_md5
from blobfuse_dysk.errors import ServiceError, TransportError
from tests.unit.scripted import Peer, answer, client_to, forever

T = 20.0
LEASE = "11111111-2222-3333-4444-555555555555"
PAGE = bytes(range(256)) * 2
FORBIDDEN = answer(b"", "403 Forbidden", "x-ms-error-code: AuthenticationFailed")


async def lost(call: Awaitable[object]) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await call
    return caught.value


def ranged(body: bytes, span: str, *headers: str) -> bytes:
    return answer(body, "206 Partial Content", *((f"Content-Range: {span}",) if span else ()), *headers)


@pytest.mark.parametrize("span", ["bytes 512-1023/4096", "bytes 0-51/4096", "bytes 0-5110/8192", "bytes */4096", ""])
async def test_a_read_of_the_right_length_is_of_the_right_range_or_damaged(span: str) -> None:
    async with client_to(forever(ranged(PAGE, span))) as client:
        assert (await lost(client.get_range(0, 512, timeout_s=T))).sent


@pytest.mark.parametrize("body", [PAGE[:-1], PAGE + b"x", b""])
async def test_a_read_of_the_right_range_has_the_right_length_or_is_damaged(body: bytes) -> None:
    async with client_to(forever(ranged(body, "bytes 0-511/4096"))) as client:
        assert "came where 512 at 0" in str(await lost(client.get_range(0, 512, timeout_s=T)))


async def test_a_range_is_known_however_its_header_is_written() -> None:
    good = answer(PAGE, "206 Partial Content", "Content-Range:   bytes 512-1023/4096")
    async with client_to(forever(good)) as client:
        assert await client.get_range(512, 512, timeout_s=T) == PAGE


async def test_only_a_read_beyond_the_end_is_refused_for_good() -> None:
    async with client_to(forever(ranged(PAGE, "bytes 0-511/8192"), ranged(PAGE, "bytes 0-511/512"))) as client:
        await lost(client.get_range(0, 1024, timeout_s=T))
        with pytest.raises(ServiceError) as caught:
            await client.get_range(0, 1024, timeout_s=T)
        assert (caught.value.status, caught.value.code) == (416, "InvalidRange")


@pytest.mark.parametrize("told", ["", content_md5(b"other")])
async def test_a_read_with_checksum_has_the_right_one_or_is_damaged(told: str) -> None:
    good = ranged(PAGE, "bytes 0-511/4096", f"Content-MD5: {content_md5(PAGE)}")
    bad = ranged(PAGE, "bytes 0-511/4096", *((f"Content-MD5: {told}",) if told else ()))
    async with client_to(forever(good, bad), checksum=True) as client:
        assert await client.get_range(0, 512, timeout_s=T) == PAGE
        assert "checksum" in str(await lost(client.get_range(0, 512, timeout_s=T)))


async def test_a_success_that_is_not_the_operations_own_is_damaged_and_may_have_been_done() -> None:
    """A gateway's page or a proxy's cache answers 200; only the service says 201 to a write."""
    async with client_to(forever(answer(b"<html>", "200 OK"))) as client:
        for call in (
            client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T),
            client.clear_pages(0, 512, lease_id=None, epoch=None, timeout_s=T),
            client.acquire_lease(60, proposed_id=None, timeout_s=T),
            client.get_range(0, 512, timeout_s=T),
        ):
            error = await lost(call)
            assert "status 200" in str(error)
            assert error.sent


@pytest.mark.parametrize("told", ["4", "", "-5", "5x"])
async def test_a_raise_is_answered_with_the_number_or_a_greater_one(told: str) -> None:
    def raised(number: str) -> bytes:
        return answer(b"", "200 OK", f"x-ms-blob-sequence-number: {number}")

    async with client_to(forever(raised("5"), raised("6"), raised(told))) as client:
        for number in (5, 6):
            assert (await client.raise_sequence_number(5, lease_id=None, timeout_s=T)).number == number
        assert (await lost(client.raise_sequence_number(5, lease_id=None, timeout_s=T))).sent


async def test_a_lease_without_an_id_is_none() -> None:
    async with client_to(forever(answer(b"", "201 Created"))) as client:
        assert "no lease id" in str(await lost(client.acquire_lease(60, proposed_id=None, timeout_s=T)))


async def test_a_damaged_page_list_is_not_an_empty_one() -> None:
    async with client_to(forever(answer(b"<PageList><PageRange>"))) as client:
        assert "page list" in str(await lost(client.page_ranges(0, 1 << 20, timeout_s=T)))


async def test_what_was_asked_for_is_what_is_sent() -> None:
    heads: list[str] = []

    async def script(peer: Peer) -> None:
        while True:
            heads.append((await peer.request()).decode())
            good = b"<PageList/>" if "comp=pagelist" in heads[-1] else b""
            await peer.send(answer(good, "200 OK" if good else "201 Created"))

    async with client_to(script, checksum=True) as client:
        await client.put_pages(512, PAGE, lease_id=LEASE, epoch=7, timeout_s=T)
        await client.clear_pages(0, 1024, lease_id=LEASE, epoch=8, timeout_s=T)
        await client.page_ranges(0, 4096, marker="m", max_results=5, timeout_s=T)
        await lost(client.get_range(0, 4 << 20, timeout_s=T))
        await lost(client.get_range(0, (4 << 20) + 512, timeout_s=T))
    put, clear, pages, small, large = heads
    for head, epoch, span in ((put, 7, "bytes=512-1023"), (clear, 8, "bytes=0-1023")):
        for line in (f"x-ms-if-sequence-number-eq:{epoch}", f"x-ms-lease-id:{LEASE}", f"x-ms-range:{span}"):
            assert f"\r\n{line}\r\n" in head
    assert f"\r\nContent-MD5:{content_md5(PAGE)}\r\n" in put
    assert "marker=m&maxresults=5" in pages
    assert "x-ms-range-get-content-md5:true" in small
    assert "x-ms-range-get-content-md5" not in large, "the service computes none of more than 4 MiB"


@pytest.mark.parametrize("first", [True, False])
async def test_an_error_says_whether_the_request_may_have_been_done(first: bool) -> None:
    async def script(peer: Peer) -> None:
        if not first:
            await peer.request()
            await peer.send(answer(b"", "201 Created"))
        await peer.request()

    async with client_to(script) as client:
        if not first:
            await client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T)
        error = await lost(client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T))
        assert (error.sent, error.stale) == (True, not first)


async def test_a_refused_proof_is_shown_again_only_if_it_became_another_one() -> None:
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            await peer.send(FORBIDDEN)

    async with client_to(script) as client:
        with pytest.raises(ServiceError):
            await client.properties(timeout_s=T)
    assert asked == 1


async def test_a_refusal_tells_the_services_clock_at_once() -> None:
    """The clock was looked at a moment ago, and then this machine's was set wrong."""
    now = answer(b"", "201 Created", f"Date: {http_date(time.time())}")
    refusal = FORBIDDEN.replace(b"\r\n\r\n", f"\r\nDate: {http_date(time.time() + 7200)}\r\n\r\n".encode())
    async with client_to(forever(now, refusal, now)) as client:
        for _ in range(2):
            await client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T)
        assert client.credential.clock.offset_s == pytest.approx(7200, abs=60)
