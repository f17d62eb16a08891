"""wire.py: requests as bytes, answers as values, nothing in between."""

from __future__ import annotations

import base64
import hashlib

import pytest

from blobfuse_dysk.azure import wire
from blobfuse_dysk.azure.properties import CopyState
from blobfuse_dysk.azure.wire import BlobRequests, Reply
from blobfuse_dysk.disk import DiskAddress

LEASE = "11111111-2222-3333-4444-555555555555"


def requests(text: str = "https://acc.blob.core.windows.net/disks/a%20b/d.vhd") -> BlobRequests:
    return BlobRequests(DiskAddress.parse(text))


def lines(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head.decode().removesuffix("\r\n\r\n").split("\r\n")


def reply(status: int, headers: dict[str, str], body: bytes = b"") -> Reply:
    text = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Reply(status, text.encode("latin-1") + b"\r\n", body)


def test_read_of_a_range() -> None:
    head = requests().get_range(4096, 512).head("SharedKey acc:xyz", "Mon, 05 Jan 2026 10:20:30 GMT")
    assert lines(head) == [
        "GET /disks/a%20b/d.vhd HTTP/1.1",
        "Host:acc.blob.core.windows.net",
        "User-Agent:blobfuse-dysk",
        "x-ms-date:Mon, 05 Jan 2026 10:20:30 GMT",
        "x-ms-range:bytes=4096-4607",
        f"x-ms-version:{wire.API_VERSION}",
        "Authorization:SharedKey acc:xyz",
    ]


def test_write_carries_lease_epoch_length_and_checksum() -> None:
    data = bytes(range(256)) * 2
    request = requests().put_pages(512, data, lease_id=LEASE, epoch=7, checksum=True)
    head = lines(request.head())
    assert head[0] == "PUT /disks/a%20b/d.vhd?comp=page HTTP/1.1"
    assert "x-ms-if-sequence-number-eq:7" in head
    assert f"x-ms-lease-id:{LEASE}" in head
    assert "x-ms-page-write:update" in head
    assert "x-ms-range:bytes=512-1023" in head
    assert "Content-Length:512" in head
    assert f"Content-MD5:{base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}" in head
    assert request.body is data


def test_the_first_epoch_of_all_is_a_condition_like_any_other() -> None:
    made = requests()
    for request in (
        made.put_pages(0, bytes(512), lease_id=None, epoch=0),
        made.clear_pages(0, 512, lease_id=None, epoch=0),
    ):
        assert "x-ms-if-sequence-number-eq:0" in lines(request.head())


def test_a_checksum_is_asked_for_only_when_wanted() -> None:
    asked = "x-ms-range-get-content-md5:true"
    assert asked in lines(requests().get_range(0, 512, checksum=True).head())
    assert asked not in lines(requests().get_range(0, 512).head())
    assert not requests().put_pages(0, bytes(512), lease_id=None, epoch=None).md5


def test_clear_has_no_body_and_an_emulators_path_begins_with_the_account() -> None:
    head = lines(requests("http://127.0.0.1:10000/acc/disks/d").clear_pages(0, 512, lease_id=None, epoch=None).head())
    assert head[0] == "PUT /acc/disks/d?comp=page HTTP/1.1"
    assert "Host:127.0.0.1:10000" in head
    assert "x-ms-page-write:clear" in head
    assert "Content-Length:0" in head
    assert not [line for line in head if "lease" in line or "sequence" in line]


def test_sas_and_snapshot_stand_behind_the_query() -> None:
    time = "2026-01-31T12:00:00.0000000Z"
    made = requests(f"https://acc.blob.core.windows.net/disks/d?snapshot={time}")
    escaped = time.replace(":", "%3A")
    assert lines(made.get_range(0, 512).head(sas="sv=1&sig=a%2Bb"))[0] == (
        f"GET /disks/d?snapshot={escaped}&sv=1&sig=a%2Bb HTTP/1.1"
    )
    request = made.page_ranges(0, 512, marker="a b", max_results=5)
    assert request.query == f"comp=pagelist&marker=a%20b&maxresults=5&snapshot={escaped}"
    assert request.resource == f"/disks/d\ncomp:pagelist\nmarker:a b\nmaxresults:5\nsnapshot:{time}"


def test_headers_are_sorted_as_the_service_sorts_and_split_at_the_date() -> None:
    request = requests().set_metadata({"a1": "1", "A_b": " 2 ", "b": "3"}, lease_id=LEASE)
    names = [line.partition(":")[0] for line in (request.before + request.after).splitlines()]
    assert names == ["x-ms-lease-id", "x-ms-meta-a_b", "x-ms-meta-a1", "x-ms-meta-b", "x-ms-version"]
    raised = requests().raise_sequence_number(9, lease_id=None)
    assert raised.before == "x-ms-blob-sequence-number:9\n"
    assert raised.after.startswith("x-ms-sequence-number-action:max\n")


@pytest.mark.parametrize("value", ["a\r\nx-ms-lease-id:evil", "a\nb", "a\0b"])
def test_no_value_can_add_a_header(value: str) -> None:
    with pytest.raises(ValueError, match="x-ms-meta-node"):
        requests().set_metadata({"node": value}, lease_id=None)


def test_a_lease_action_carries_what_it_was_given_and_nothing_else() -> None:
    head = lines(requests().lease("acquire", lease_duration=-1, proposed_lease_id=LEASE).head())
    assert head[0].endswith("?comp=lease HTTP/1.1")
    assert "x-ms-lease-action:acquire" in head
    assert "x-ms-lease-duration:-1" in head
    assert f"x-ms-proposed-lease-id:{LEASE}" in head
    assert "x-ms-proposed-lease-id" not in requests().lease("acquire", proposed_lease_id=None).after


def test_a_header_is_found_whatever_its_case() -> None:
    answer = reply(200, {"ETag": '"0x1"', "Content-Length": "12", "X-Ms-Meta-Content-Length": "13"})
    assert answer.header("etag") == '"0x1"'
    assert answer.header("content-length") == "12"
    assert answer.header("nothing") == ""
    assert answer.headers()["x-ms-meta-content-length"] == "13"


def test_a_header_is_not_found_at_the_end_of_anothers_name_or_within_a_value() -> None:
    answer = reply(200, {"X-Ms-Meta-Etag": "no", "X-Note": "etag: no", "ETag": '"0x1"'})
    assert answer.header("etag") == '"0x1"'
    assert reply(200, {"X-Ms-Meta-Etag": "no"}).header("etag") == ""


def test_the_properties_of_a_blob_are_read_from_its_headers() -> None:
    headers = {
        "Content-Length": "1048576",
        "x-ms-blob-type": "PageBlob",
        "x-ms-blob-sequence-number": "3",
        "x-ms-lease-state": "leased",
        "x-ms-meta-Dysk_Node": "n1",
        "ETag": '"0x2"',
        "Last-Modified": "Mon, 05 Jan 2026 10:20:30 GMT",
    }
    found = wire.parse_properties(reply(200, headers))
    assert (found.size, found.blob_type, found.sequence_number) == (1 << 20, "PageBlob", 3)
    assert found.lease_state == "leased"
    assert found.metadata == {"Dysk_Node": "n1"}
    assert wire.parse_properties(reply(200, {"content-length": "5", "etag": "x"})).sequence_number is None


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, None),
        ({"x-ms-copy-status": "pending", "x-ms-copy-progress": "5/9"}, CopyState("pending", 5, 9, "")),
        ({"x-ms-copy-status": "pending", "x-ms-copy-progress": "5"}, CopyState("pending", None, None, "")),
        (
            {"x-ms-copy-status": "pending", "x-ms-copy-progress": f"{'9' * 5000}/9"},
            CopyState("pending", None, None, ""),
        ),
        ({"x-ms-copy-status": "failed", "x-ms-copy-status-description": "why"}, CopyState("failed", None, None, "why")),
        (
            {"x-ms-copy-status": "success", "x-ms-incremental-copy": "true"},
            CopyState("success", None, None, "", incremental=True),
        ),
    ],
)
def test_what_became_of_a_copy_is_read_from_its_headers(headers: dict[str, str], found: CopyState | None) -> None:
    blob = {"Content-Length": "512", "x-ms-blob-type": "PageBlob", "ETag": "x"}
    assert wire.parse_properties(reply(200, blob | headers)).copy == found


@pytest.mark.parametrize(
    "odd",
    [
        {"content-length": ""},
        {"content-length": "9" * 5000},  # int() refuses more than 4,300 digits
        {"content-length": "-1"},
        {"content-length": "1_0"},
        {"content-length": "\xb2"},
        {"x-ms-blob-sequence-number": ""},
        {"x-ms-blob-sequence-number": "9" * 5000},
        {"etag": ""},  # a condition on it would be none
    ],
)
def test_properties_with_an_odd_number_or_without_an_etag_are_damaged(odd: dict[str, str]) -> None:
    headers = {"content-length": "512", "x-ms-blob-sequence-number": "3", "etag": "x"}
    assert wire.parse_properties(reply(200, headers)).size == 512
    with pytest.raises(wire.DamagedAnswerError):
        wire.parse_properties(reply(200, {**headers, **odd}))
