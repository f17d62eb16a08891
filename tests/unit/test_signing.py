"""signing.py: SharedKey against the Azure SDK's own signer, dates, and the service's clock."""

from __future__ import annotations

import base64
import logging
import time
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy
from hypothesis import example, given
from hypothesis import strategies as st

from blobfuse_dysk.azure import signing
from blobfuse_dysk.azure.signing import (
    AnonymousSigner,
    BearerSigner,
    DatedSigner,
    SasSigner,
    ServiceClock,
    SharedKeySigner,
    http_date,
    parse_http_date,
)
from blobfuse_dysk.azure.wire import BlobRequests, Request
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError

KEY = base64.b64encode(bytes(range(64))).decode()
LEASE = "11111111-2222-3333-4444-555555555555"


def fields(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers of a request as it goes onto the wire."""
    first, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    return method, target, {name: value for name, _, value in (line.partition(":") for line in rest)}


def sdk_signature(account: str, key: str, head: bytes) -> str:
    """What the Azure SDK puts into Authorization for the very request that we would send."""
    method, target, headers = fields(head)
    headers.pop("Authorization", None)
    request = HttpRequest(method, f"http://host{target}", headers=headers)
    pipeline = PipelineRequest(request, PipelineContext(None))
    policy: Any = SharedKeyCredentialPolicy(account, key)  # type: ignore[no-untyped-call]
    policy.on_request(pipeline)
    return str(request.headers["Authorization"])


def samples(blob: BlobRequests) -> list[Request]:
    return [
        blob.get_range(0, 4096),
        blob.get_range(512, 512, checksum=True),
        blob.put_pages(0, b"x" * 1024, lease_id=LEASE, epoch=12, checksum=True),
        blob.put_pages(0, b"x" * 512, lease_id=None, epoch=None),
        blob.clear_pages(1 << 40, 1 << 30, lease_id=LEASE, epoch=0),
        blob.page_ranges(0, 1 << 20, marker="m/+ =&", max_results=100),
        blob.page_ranges(0, 1 << 20, marker=None, max_results=None),
        blob.properties(),
        blob.raise_sequence_number(77, lease_id=LEASE),
        blob.lease("acquire", lease_duration=60, proposed_lease_id=LEASE),
        blob.lease("renew", lease_id=LEASE),
        blob.lease("break", lease_break_period=0),
        blob.set_metadata(
            {"dysk_node": "n-1", "dysk_since": "2026-01-01T00:00:00Z", "a_b": "x", "a1": "y"}, lease_id=LEASE
        ),
    ]


@pytest.mark.parametrize(
    "disk",
    [
        "https://acc.blob.core.windows.net/disks/data.vhd",
        "https://acc.blob.core.windows.net/disks/a%20b/%C3%BC+~(1)%25.vhd",
        "https://acc.blob.core.windows.net/disks/d?snapshot=2026-01-31T12:00:00.0000000Z",
        "http://127.0.0.1:10000/acc/disks/d",
    ],
)
def test_shared_key_signs_as_the_sdk_does(disk: str) -> None:
    signer = SharedKeySigner("acc", KEY)
    for request in samples(BlobRequests(DiskAddress.parse(disk))):
        head = signer.head(request)
        assert fields(head)[2]["Authorization"] == sdk_signature("acc", KEY, head), request


@given(st.binary(min_size=1, max_size=100))
@example(bytes(64))
@example(bytes(range(65)))  # longer than a block of SHA-256
def test_keys_of_any_length(key: bytes) -> None:
    text = base64.b64encode(key).decode()
    head = SharedKeySigner("acc", text).head(BlobRequests(DiskAddress.parse("https://acc.x.y/disks/d")).properties())
    assert fields(head)[2]["Authorization"] == sdk_signature("acc", text, head)


@pytest.mark.parametrize("key", ["", "not base64!", "abc"])
def test_a_key_that_is_not_base64(key: str) -> None:
    with pytest.raises(CredentialError, match="not base64"):
        SharedKeySigner("acc", key)


def test_a_sas_goes_into_the_address_and_a_token_into_a_header() -> None:
    request = BlobRequests(DiskAddress.parse("https://acc.x.y/disks/d")).properties()
    assert fields(SasSigner("sv=1&sig=s%3D").head(request))[1] == "/disks/d?sv=1&sig=s%3D"
    bearer = fields(BearerSigner("to.ken").head(request))[2]
    assert bearer["Authorization"] == "Bearer to.ken"
    assert parse_http_date(bearer["x-ms-date"]) == pytest.approx(time.time(), abs=5)
    assert "Authorization" not in fields(AnonymousSigner().head(request))[2]


def test_no_repr_shows_a_secret() -> None:
    shown = repr([SharedKeySigner("acc", KEY), SasSigner("sig=SECRET"), BearerSigner("SECRET"), AnonymousSigner()])
    assert "SECRET" not in shown
    assert KEY not in shown


@given(st.integers(0, 4_000_000_000))
def test_a_date_is_what_the_standard_library_makes_of_it(seconds: int) -> None:
    text = http_date(seconds)
    assert text == format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)
    assert parse_http_date(text) == seconds == parsedate_to_datetime(text).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "Mon, 05 Jan 2026 10:20:30 CET",
        "Mon, 05 Foo 2026 10:20:30 GMT",
        "Mon, 05 Jan 0000 10:20:30 GMT",
        "Mon, 05 Jan 10000 10:20:30 GMT",
        "Mon, 30 Feb 2026 10:20:30 GMT",
        "Mon, 1000000000000000 Jan 2026 10:20:30 GMT",
        "Mon, 05 Jan 2026 24:20:30 GMT",
        "Mon, -5 Jan 2026 10:20:30 GMT",
        "Mon, 05 Jan 2026 10:20:30 GMT, Tue",
        f"Mon, 05 Jan {'2' * 5000} 10:20:30 GMT",
        "Mon, 05 Jan 2026 1_0:20:30 GMT",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert parse_http_date(text) is None


def test_a_date_alone_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy may have put it there, and its clock may be the one that is wrong."""
    clock = ServiceClock()
    for difference_s in (60, 7200, -86400):
        clock.measure(http_date(time.time() + difference_s))
        assert clock.measured_s == pytest.approx(difference_s, abs=2)
        assert parse_http_date(clock.date()) == pytest.approx(time.time(), abs=2)
    clock.measure("nonsense")
    assert clock.measured_s == pytest.approx(-86400, abs=2)
    assert not caplog.records


@pytest.mark.parametrize("year", [1971, 2099, 9999])
def test_a_difference_that_no_clock_has_is_left_out(year: int) -> None:
    clock = ServiceClock()
    clock.measure(f"Mon, 05 Jan {year} 10:20:30 GMT")
    assert clock.measured_s is None
    assert clock.others(0.0) == []


def test_what_else_a_refused_request_may_be_dated_with() -> None:
    clock = ServiceClock()
    assert clock.others(0.0) == [], "nothing is known of the service's clock"
    clock.measure(http_date(time.time() + 100))
    assert clock.others(0.0) == [], "the service takes dates that are this far off"
    clock.measure(http_date(time.time() + 3600))
    assert clock.others(0.0) == [pytest.approx(3600, abs=2)]
    clock.follow(3600.0)
    assert clock.others(0.0) == [3600.0], "another request found that out meanwhile"
    assert clock.others(3600.0) == [0.0], "this machine's clock was set"
    clock.measure(http_date(time.time() - 7200))
    assert clock.others(3600.0) == [0.0, pytest.approx(-7200, abs=2)]


def test_a_clock_that_is_off_is_followed_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    clock = ServiceClock()
    signer = SharedKeySigner("acc", KEY, clock)
    clock.disproved = True
    for _ in range(3):
        clock.follow(3600.0)
    assert not clock.disproved
    assert clock.now() == pytest.approx(time.time() + 3600, abs=3)
    request = BlobRequests(DiskAddress.parse("https://acc.x.y/disks/d")).properties()
    head = signer.head(request)
    assert parse_http_date(fields(head)[2]["x-ms-date"]) == pytest.approx(time.time() + 3600, abs=5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "behind the service's" in caplog.text
    other = DatedSigner(signer, clock, -60.0).head(request)
    assert parse_http_date(fields(other)[2]["x-ms-date"]) == pytest.approx(time.time() - 60, abs=5)
    assert clock.offset_s == 3600.0, "that was one request's date"
    clock.follow(0.0)
    assert clock.offset_s == 0.0


def test_when_a_sas_ends_is_told_by_the_services_clock() -> None:
    clock = ServiceClock()
    clock.measure(http_date(time.time() + 7200))
    assert clock.now() == pytest.approx(time.time() + 7200, abs=3)


def test_the_date_is_formatted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def counted(seconds: float) -> str:
        made.append(seconds)
        return http_date(seconds)

    monkeypatch.setattr(signing, "http_date", counted)
    monkeypatch.setattr(time, "time", lambda: 1000.25)
    clock = ServiceClock()
    assert {clock.date() for _ in range(5)} == {http_date(1000)}
    assert made == [1000]


def test_a_date_is_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ServiceClock()
    for now in (1000.0, 1001.0, 1900.5, 1900.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert clock.date() == http_date(int(now))
