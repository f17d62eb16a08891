"""refusal.py and what becomes of it: whose word an answer is, what a refusal says, and what a gateway's cannot say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.azure.refusal import service_error
from blobfuse_dysk.azure.wire import Condition, Reply
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import GatewayError, Kind, ServiceError
from blobfuse_dysk.store.serviceerrors import is_service_timeout, to_store_error
from tests.unit.scripted import Peer, answer, client_to, forever, gateways

T = 20.0
LEASE = "11111111-2222-3333-4444-555555555555"
PAGE = bytes(range(256)) * 2
HTML = b"<html><body><h1>404 Not Found</h1><hr>nginx</body></html>"
ETAG = Condition(if_match='"0x1"')


def reply(status: int, headers: dict[str, str], body: bytes = b"") -> Reply:
    text = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Reply(status, text.encode() + b"\r\n", body)


def test_a_refusal_carries_status_code_and_the_service_s_own_words() -> None:
    body = (
        b'<?xml version="1.0"?><Error><Code>ServerBusy</Code>'
        b"<Message>Slow down &amp; wait.\nRequestId:1\nTime:2</Message></Error>"
    )
    error = service_error(reply(503, {"x-ms-error-code": "ServerBusy", "Retry-After": "7"}, body), "write")
    assert (error.status, error.code, error.retry_after_s) == (503, "ServerBusy", 7.0)
    assert str(error) == "write: ServerBusy (HTTP 503): Slow down & wait."
    assert service_error(reply(503, {}, body), "write").code == "ServerBusy"
    bare = service_error(reply(502, {"Retry-After": "soon"}, b"<html>bad gateway"), "read")
    assert (bare.status, bare.code, bare.retry_after_s) == (502, "", None)


def test_a_refusal_shows_no_signature() -> None:
    body = (
        b"<Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the request.</Message>"
        b"<AuthenticationErrorDetail>Signature did not match. String to sign: r SECRET</AuthenticationErrorDetail>"
        b"</Error>"
    )
    assert "SECRET" not in str(service_error(reply(403, {}, body), "read"))
    timed = body.replace(b"did not match.", b"not valid in the specified time frame: Expiry [2020]")
    assert "Expiry [2020]" in str(service_error(reply(403, {}, timed), "read"))


OPERATIONS: dict[str, tuple[str, Callable[[BlobClient], Awaitable[object]]]] = {
    "write": ("201 Created", lambda client: client.put_pages(0, PAGE, lease_id=LEASE, epoch=1, timeout_s=T)),
    "clear": ("201 Created", lambda client: client.clear_pages(0, 512, lease_id=LEASE, epoch=1, timeout_s=T)),
    "acquire": ("201 Created", lambda client: client.acquire_lease(60, proposed_id=LEASE, timeout_s=T)),
    "renew": ("200 OK", lambda client: client.renew_lease(LEASE, timeout_s=T)),
    "release": ("200 OK", lambda client: client.release_lease(LEASE, timeout_s=T)),
    "break": ("202 Accepted", lambda client: client.break_lease(timeout_s=T)),
    "raise": ("200 OK", lambda client: client.raise_sequence_number(5, lease_id=LEASE, timeout_s=T)),
    "resize": ("200 OK", lambda client: client.resize(1024, lease_id=LEASE, condition=ETAG, timeout_s=T)),
    "metadata": ("200 OK", lambda client: client.set_metadata({}, lease_id=LEASE, timeout_s=T)),
    "properties": ("200 OK", lambda client: client.properties(timeout_s=T)),
    "list": ("200 OK", lambda client: client.page_ranges(0, 1 << 20, timeout_s=T)),
    "read": ("206 Partial Content", lambda client: client.get_range(0, 512, timeout_s=T)),
}
GATEWAYS = [
    "302 Found",
    "307 Temporary Redirect",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "407 Proxy Authentication Required",
    "409 Conflict",
    "410 Gone",
    "412 Precondition Failed",
    "416 Range Not Satisfiable",
    "429 Too Many Requests",
    "502 Bad Gateway",
    "503 Service Unavailable",
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("status", [*GATEWAYS, "success"])
async def test_what_is_not_the_services_own_word_leaves_the_outcome_unknown(operation: str, status: str) -> None:
    """Neither done nor refused for sure: the gateway may have handed the request on, and may be gone in a second."""
    success, call = OPERATIONS[operation]
    headers = ["Content-Range: bytes 0-511/4096"] if operation == "read" else []
    if status == "success":  # a portal that says yes to everything, in the service's very words
        status = success
        headers += [
            f"x-ms-lease-id: {LEASE}",
            "x-ms-blob-sequence-number: 5",
            'ETag: "0x1"',
            "x-ms-blob-type: PageBlob",
        ]
    body = {"read": PAGE, "list": b"<PageList/>"}.get(operation, HTML)
    async with client_to(forever(gateways(body, status, "Server: nginx", *headers))) as client:
        with pytest.raises(GatewayError) as caught:
            await call(client)
    error = caught.value
    assert error.sent
    assert not error.stale
    assert "not the service's" in str(error)
    changes = operation not in ("properties", "list", "read")
    found = to_store_error(error, "x", modifies=changes, epoch=7, conditional=True)
    assert found.kind in (Kind.INTERNAL, Kind.THROTTLED)
    assert found.kind.retryable
    assert found.unknown == changes


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("404 Not Found", "BlobNotFound", Kind.GONE),
        ("409 Conflict", "LeaseIdMismatchWithLeaseOperation", Kind.LEASE),
        ("412 Precondition Failed", "LeaseLost", Kind.LEASE),
        ("412 Precondition Failed", "SequenceNumberConditionNotMet", Kind.EPOCH),
        ("400 Bad Request", "InvalidHeaderValue", Kind.REJECTED),
    ],
)
@pytest.mark.parametrize("with_id", [True, False])
async def test_a_refusal_of_the_service_is_final(status: str, code: str, kind: Kind, with_id: bool) -> None:
    make = answer if with_id else gateways
    async with client_to(forever(make(b"", status, f"x-ms-error-code: {code}"))) as client:
        with pytest.raises(ServiceError) as caught:
            await OPERATIONS["write"][1](client)
    found = to_store_error(caught.value, "x", modifies=True)
    assert (found.kind, found.unknown) == (kind, False)


async def test_another_stores_error_in_the_services_form_is_not_its_word() -> None:
    body = b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>"
    async with client_to(forever(gateways(body, "404 Not Found", "x-amz-request-id: 1"))) as client:
        with pytest.raises(GatewayError):
            await OPERATIONS["write"][1](client)


async def test_a_gateways_refusal_of_the_proof_is_no_reason_to_show_another() -> None:
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            await peer.send(gateways(HTML, "403 Forbidden", "Date: Mon, 05 Jan 2026 10:20:30 GMT"))

    async with client_to(script) as client:
        with pytest.raises(GatewayError):
            await client.properties(timeout_s=T)
        assert client.credential.clock.measured_s is None
    assert asked == 1


@pytest.mark.parametrize(("status", "slow"), [(404, False), (502, False), (408, True), (504, True)])
def test_only_a_gateways_timeout_says_that_a_list_was_too_long(status: int, slow: bool) -> None:
    assert is_service_timeout(GatewayError("x", status=status)) is slow


def test_a_busy_gateway_is_given_the_time_that_it_asks_for() -> None:
    found = to_store_error(GatewayError("x", status=429, retry_after_s=7.0), "writing", modifies=True)
    assert (found.kind, found.retry_after_s, found.unknown) == (Kind.THROTTLED, 7.0, True)


def test_a_gateways_answer_is_not_called_a_missing_disk() -> None:
    error = to_store_error(GatewayError("x", status=404, remedy="look"), "asking", modifies=False)
    error.__cause__ = GatewayError("x", status=404, remedy="look")
    assert isinstance(explain(error, DiskAddress.parse("acc/disks/data")), GatewayError)
