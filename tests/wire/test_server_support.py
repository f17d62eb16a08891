"""What the server does not do it refuses and names: nothing a client asks for is ignored. And metadata's limits."""

from __future__ import annotations

import email.utils
from collections.abc import Iterator

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.rest import VERSION, Rest

PAGE = 512
DATA = b"d" * PAGE


@pytest.fixture
def rest(shared_server: PageBlobServer, container: str) -> Iterator[Rest]:
    """A connection, and a container with a page blob `disk`."""
    shared_server.create(container, "disk", 64 * PAGE)
    with Rest(shared_server.endpoint, shared_server.account, shared_server.key) as found:
        yield found


@pytest.fixture
def path(container: str) -> str:
    return f"{container}/disk"


@pytest.mark.parametrize(
    "name",
    ["x-ms-if-tags", "x-ms-encryption-scope", "x-ms-encryption-key", "x-ms-structured-body", "x-ms-of-the-future"],
)
def test_a_header_that_is_not_honoured_is_refused_by_name(rest: Rest, path: str, name: str) -> None:
    for reply in (
        rest.put(path, 0, DATA, **{name: "a"}),
        rest.clear(path, 0, PAGE, **{name: "a"}),
        rest.get(path, 0, PAGE, **{name: "a"}),
        rest.create(path, PAGE, **{name: "a"}),
        rest("HEAD", path, headers={name: "a"}),
        rest("PUT", path, "comp=metadata", {name: "a"}),
        rest("PUT", path, "comp=lease", {"x-ms-lease-action": "renew", name: "a"}),
        rest("DELETE", path, headers={name: "a"}),
    ):
        assert (reply.status, reply.code) == (501, "NotImplemented")
        assert not reply.body or name in (reply.xml.findtext("Message") or "")


@pytest.mark.parametrize(
    ("method", "query", "name"),
    [
        ("PUT", "comp=metadata", "x-ms-tags"),
        ("PUT", "comp=snapshot", "x-ms-range"),
        ("PUT", "comp=metadata", "x-ms-if-sequence-number-eq"),
        ("HEAD", "", "x-ms-range"),
        ("GET", "comp=pagelist", "x-ms-previous-snapshot-url"),
        ("GET", "", "x-ms-meta-a"),
    ],
)
def test_a_header_of_another_operation_is_refused(rest: Rest, path: str, method: str, query: str, name: str) -> None:
    more = {"x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": "512"} if (method, query) == ("PUT", "") else {}
    assert rest(method, path, query, {**more, name: "bytes=0-511"}).status == 501


@pytest.mark.parametrize("query", ["versionid=2026-01-01T00:00:00.0000000Z", "deletetype=permanent", "comp=block"])
def test_a_parameter_that_is_not_honoured_is_refused(rest: Rest, path: str, query: str) -> None:
    assert rest("GET", path, query).code == "NotImplemented"


def test_lists_name_what_they_cannot_include(rest: Rest, container: str) -> None:
    assert rest("GET", container, "restype=container&comp=list&include=metadata,copy,snapshots").status == 200
    reply = rest("GET", container, "restype=container&comp=list&include=metadata,deleted")
    assert reply.status == 501
    assert "deleted" in (reply.xml.findtext("Message") or "")


@pytest.mark.parametrize(
    ("version", "status", "code"),
    [
        ("2019-12-12", 200, ""),
        ("2026-02-06", 200, ""),
        ("2009-09-19", 501, "NotImplemented"),
        ("2099-01-01", 501, "NotImplemented"),
        ("latest", 400, "InvalidHeaderValue"),
    ],
)
def test_a_version_is_one_that_is_served(rest: Rest, path: str, version: str, status: int, code: str) -> None:
    reply = rest("HEAD", path, headers={"x-ms-version": version})
    assert (reply.status, reply.code) == (status, code)


def test_metadata_has_8_kib_at_most(rest: Rest, path: str) -> None:
    for length, status, code in ((8192, 200, ""), (8193, 400, "MetadataTooLarge")):
        headers = {"x-ms-meta-a": "1" * 4000, "x-ms-meta-bc": "2" * (length - 4003)}
        reply = rest("PUT", path, "comp=metadata", headers)
        assert (reply.status, reply.code) == (status, code)
    assert rest.create(path, PAGE, x_ms_meta_a="1" * 8192).code == "MetadataTooLarge"


def test_names_of_metadata_differ_in_more_than_case(rest: Rest, path: str) -> None:
    assert rest("PUT", path, "comp=metadata", {"x-ms-meta-costCenter": "1"}).status == 200
    assert rest("HEAD", path).headers["x-ms-meta-costcenter"] == "1"
    # The server reads them as one header, so that is what has to be signed.
    date = {"x-ms-date": email.utils.formatdate(usegmt=True)}
    once = {"x-ms-version": VERSION, **date, "Content-Length": "0", "x-ms-meta-costcenter": "1"}
    signature = rest.signature("PUT", f"/{rest.account}/{path}", "comp=metadata", once)
    twice = {**date, "x-ms-meta-costCenter": "1", "x-ms-meta-costcenter": "1"}
    reply = rest("PUT", path, "comp=metadata", {**twice, "Authorization": f"SharedKey {rest.account}:{signature}"})
    assert (reply.status, reply.code) == (400, "InvalidMetadata")


def test_a_name_of_metadata_is_an_identifier(rest: Rest, path: str) -> None:
    assert rest("PUT", path, "comp=metadata", {"x-ms-meta-": "1"}).code == "EmptyMetadataKey"
    assert rest("PUT", path, "comp=metadata", {"x-ms-meta-1a": "1"}).code == "InvalidMetadata"
