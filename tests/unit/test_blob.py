"""blob.py: what is taken as an answer to which request, and what an error says of what may have been done."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Awaitable

import pytest
import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Proof
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.signing import http_date, parse_http_date
from blobfuse_dysk.azure.wire import content_md5
from blobfuse_dysk.errors import GatewayError, ServiceError, TransportError
from tests.unit.scripted import Peer, answer, client_to, forever, gateways

pytestmark = pytest.mark.usefixtures("way")

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
        error = await lost(client.get_range(0, 512, timeout_s=T))
        assert error.sent
        assert re.search("came where 512 at 0|larger than anything that is asked for", str(error))


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


@pytest.mark.parametrize("told", ["4", "", "-5", "5x", "6" * 5000, "\xb2"])
async def test_a_raise_is_answered_with_the_number_or_a_greater_one(told: str) -> None:
    def raised(number: str) -> bytes:
        return answer(b"", "200 OK", f"x-ms-blob-sequence-number: {number}", 'ETag: "0x1"')

    async with client_to(forever(raised("5"), raised("6"), raised(told))) as client:
        for number in (5, 6):
            assert (await client.raise_sequence_number(5, lease_id=None, timeout_s=T)).number == number
        assert (await lost(client.raise_sequence_number(5, lease_id=None, timeout_s=T))).sent


async def test_a_change_that_is_answered_without_an_etag_is_damaged() -> None:
    """What follows rests on the ETag; without one its condition would be none."""
    async with client_to(forever(answer(b"", "200 OK", "x-ms-blob-sequence-number: 5"))) as client:
        assert (await lost(client.raise_sequence_number(5, lease_id=None, timeout_s=T))).sent
        assert (await lost(client.set_metadata({}, lease_id=None, timeout_s=T))).sent


@pytest.mark.parametrize(
    "odd",
    [
        f"Content-Range: bytes 0-511/{'9' * 5000}",
        "Content-Range: bytes 0-511/\xb2",
        f"Retry-After: {'9' * 5000}",
        f"Keep-Alive: timeout={'9' * 5000}",
        "Date: Mon, 05 Jan 0000 10:20:30 GMT",
        "Date: Mon, 05 Jan 10000 10:20:30 GMT",
        "Date: Mon, 1000000000000000 Jan 2026 10:20:30 GMT",
        f"Date: Mon, {'9' * 5000} Jan 2026 10:20:30 GMT",
        "Date: Mon, 30 Feb 2026 10:20:30 GMT",
        "Upgrade: h2c\r\nConnection: upgrade",
        "Content-Length: 511",
        f"Content-Length: {'9' * 25}",
        "x-ms-request-id: \xff\xfe",
    ],
)
@pytest.mark.parametrize("status", ["201 Created", "206 Partial Content", "403 Forbidden", "500 Internal"])
async def test_no_odd_header_brings_out_another_error(odd: str, status: str) -> None:
    """Anything else would end the worker."""
    odd_one = answer(PAGE, status).replace(b"\r\n\r\n", b"\r\n" + odd.encode("latin-1") + b"\r\n\r\n", 1)
    async with client_to(forever(odd_one)) as client:
        for call in (
            lambda: client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T),
            lambda: client.get_range(0, 1024, timeout_s=T),
            lambda: client.properties(timeout_s=T),
        ):
            with contextlib.suppress(ServiceError, TransportError):
                await call()
        assert client.credential.clock.offset_s == 0.0


async def test_what_nobody_thought_of_may_have_been_done(monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(self: HttpPool, request: object, signer: object, deadline: float) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(HttpPool, "request", odd)
    async with client_to(forever()) as client:
        error = await lost(client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T))
        assert error.sent
        assert "unexpected ValueError: odd" in str(error)


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


KEY = Proof("key", "test", account_key="bmV3LWtleS1uZXcta2V5")


class DatingService:
    """Takes requests that are dated within 15 minutes of its clock; its answers come with what Date something says.

    off_s: its clock, and date_off_s the Date's, each against this machine's. refuses: everything, for another reason.
    """

    def __init__(self, off_s: float, date_off_s: float | None = None, *, refuses: bool = False) -> None:
        self.off_s = off_s
        self.date_off_s = off_s if date_off_s is None else date_off_s
        self.refuses = refuses
        self.asked = 0

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await peer.request()
            self.asked += 1
            dated = parse_http_date(head.decode().partition("x-ms-date:")[2].partition("\r\n")[0])
            date = f"Date: {http_date(time.time() + self.date_off_s)}"
            if self.refuses or dated is None or abs(dated - time.time() - self.off_s) > 900.0:
                code = "x-ms-error-code: AuthenticationFailed"
                await peer.send(answer(b"", "403 Forbidden", date, code))
            else:
                await peer.send(answer(b"", "201 Created", date))


async def write(client: BlobClient) -> None:
    await client.put_pages(0, PAGE, lease_id=None, epoch=None, timeout_s=T)


@pytest.mark.parametrize("date_off_s", [0.0, 7200.0, -7200.0, 86400.0 * 365])
async def test_a_gateways_wrong_date_changes_no_signature(date_off_s: float) -> None:
    """A clock that is right was replaced by the gateway's: 403, EIO, a lost write."""
    service = DatingService(0.0, date_off_s)
    async with client_to(service, proof=KEY) as client:
        for _ in range(3):
            client._look_at_clock = -math.inf
            await write(client)
        assert client.credential.clock.measured_s == pytest.approx(date_off_s, abs=3)
    assert service.asked == 3


@pytest.mark.parametrize("off_s", [7200.0, -7200.0])
async def test_a_refusal_for_the_date_tells_the_services_clock_at_once(off_s: float) -> None:
    service = DatingService(off_s)
    async with client_to(service, proof=KEY) as client:
        for _ in range(3):
            await write(client)
        assert client.credential.clock.offset_s == pytest.approx(off_s, abs=3)
        assert service.asked == 4
        service.off_s = service.date_off_s = 0.0  # this machine's clock was set
        for _ in range(3):
            await write(client)
        assert client.credential.clock.offset_s == 0.0
        service.off_s = service.date_off_s = -off_s  # the last look at the Date was a moment ago
        await write(client)


async def test_when_the_services_date_is_refused_as_well_the_own_one_stays() -> None:
    service = DatingService(0.0, 7200.0, refuses=True)
    async with client_to(service, proof=KEY) as client:
        for _ in range(2):
            with pytest.raises(ServiceError):
                await write(client)
        assert client.credential.clock.offset_s == 0.0
        assert client.credential.clock.disproved
        assert service.asked == 4
        refused = ServiceError("no", status=403, code="AuthenticationFailed")
        found = explain(refused, client.address, client.credential)
        assert "is not the key" in str(found), "the clock is not to blame"
        service.refuses = False
        await write(client)


async def test_two_requests_that_are_refused_at_once_find_one_clock() -> None:
    service = DatingService(7200.0)
    async with client_to(service, proof=KEY) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(write, client)
    assert client.credential.clock.offset_s == pytest.approx(7200, abs=3)
    assert service.asked <= 40


async def test_a_request_without_a_date_is_not_asked_again_for_the_clock() -> None:
    service = DatingService(7200.0, refuses=True)
    async with client_to(service) as client:
        with pytest.raises(ServiceError):
            await write(client)
    assert service.asked == 1


async def test_the_repeat_of_a_refused_request_is_the_services_to_answer_as_well() -> None:
    refusal = answer(b"", "403 Forbidden", f"Date: {http_date(time.time() + 7200)}")
    async with client_to(forever(refusal, gateways(b"", "201 Created")), proof=KEY) as client:
        with pytest.raises(GatewayError):
            await write(client)
        assert client.credential.clock.offset_s == 0.0
