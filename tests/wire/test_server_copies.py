"""Copies: pending, aborted, incremental, and pages taken from a URL. Azurite has none of these."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.page_lists import ranges, snapshot
from tests.wire.rest import Reply, Rest, md5_of
from tests.wire.sas import blob_sas

PAGE = 512
SIZE = 64 * PAGE
OTHER = {"other": "b3RoZXIga2V5"}


@pytest.fixture
def server() -> Iterator[PageBlobServer]:
    """With a second account."""
    from blobfuse_dysk.testing.pageblobserver import DEVELOPMENT_ACCOUNT, DEVELOPMENT_KEY

    with PageBlobServer({DEVELOPMENT_ACCOUNT: DEVELOPMENT_KEY, **OTHER}) as running:
        running.create("disks", "disk", SIZE)
        yield running


@pytest.fixture
def rest(server: PageBlobServer) -> Iterator[Rest]:
    with Rest(server.endpoint, server.account, server.key) as found:
        assert found.put("disks/disk", 0, b"a" * 2 * PAGE).status == 201
        yield found


def url(server: PageBlobServer, path: str = "disks/disk", query: str = "") -> str:
    return f"{server.endpoint}/{path}" + (f"?{query}" if query else "")


def readable(server: PageBlobServer, path: str = "disks/disk", permissions: str = "r") -> str:
    return url(server, path, blob_sas(server.account, server.key, path, permissions))


def take(rest: Rest, source: str, offset: int, first: int, length: int, **headers: str) -> Reply:
    """Put Page From URL."""
    given = {
        "x-ms-page-write": "update",
        "x-ms-copy-source": source,
        "x-ms-range": f"bytes={offset}-{offset + length - 1}",
        "x-ms-source-range": f"bytes={first}-{first + length - 1}",
    }
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return rest("PUT", "disks/disk", "comp=page", {**given, **more})


def copy(rest: Rest, source: str, path: str = "disks/copy", **headers: str) -> Reply:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return rest("PUT", path, headers={"x-ms-copy-source": source, **more})


def incremental(rest: Rest, source: str) -> Reply:
    return rest("PUT", "disks/backup", "comp=incrementalcopy", {"x-ms-copy-source": source})


# Pages from a URL.


def test_pages_from_a_url(server: PageBlobServer, rest: Rest) -> None:
    rest.create("disks/source", SIZE)
    rest.put("disks/source", 4 * PAGE, b"s" * 3 * PAGE)
    reply = take(rest, readable(server, "disks/source"), PAGE, 5 * PAGE, 2 * PAGE)
    assert (reply.status, reply.headers["x-ms-blob-sequence-number"]) == (201, "0")
    assert rest.get("disks/disk", 0, 4 * PAGE).body == b"a" * PAGE + b"s" * 2 * PAGE + bytes(PAGE)
    assert server.stats()["requests"]["put_page_from_url"] == 1


def test_pages_from_a_url_meet_what_every_write_meets(server: PageBlobServer, rest: Rest) -> None:
    source = readable(server)
    assert take(rest, source, SIZE, 0, PAGE).code == "InvalidPageRange"
    assert take(rest, source, 0, SIZE, PAGE).code == "InvalidRange"
    assert take(rest, source, 0, 0, PAGE, x_ms_source_range="bytes=0-1023").code == "InvalidHeaderValue"
    assert take(rest, source, 0, 0, PAGE, x_ms_if_sequence_number_eq="7").code == "SequenceNumberConditionNotMet"
    assert take(rest, source, 0, 0, PAGE, x_ms_source_if_match='"0x1"').code == "SourceConditionNotMet"
    assert take(rest, source, 0, 0, PAGE, x_ms_source_content_md5=md5_of(b"x")).code == "Md5Mismatch"
    right = md5_of(b"a" * PAGE)
    assert take(rest, source, 0, 0, PAGE, x_ms_source_content_md5=right).headers["content-md5"] == right
    assert rest.lease("disks/disk", "acquire", duration="-1").status == 201
    assert take(rest, source, 0, 0, PAGE).code == "LeaseIdMissing"
    assert server.stats()["writes_without_lease"] > 0


def test_the_source_of_pages_must_be_readable(server: PageBlobServer, rest: Rest) -> None:
    for source, status in (
        (url(server), 401),
        (readable(server, permissions="w"), 403),
        (readable(server)[:-8] + "AAAA%3D", 403),
        (readable(server, "disks/none"), 404),
    ):
        reply = take(rest, source, 0, 0, PAGE)
        assert (reply.status, reply.code) == (status, "CannotVerifyCopySource"), source
    server.configure(tokens={"reader": {"permissions": "rl"}})
    assert take(rest, url(server), 0, 0, PAGE, x_ms_copy_source_authorization="Bearer other").status == 403


# Copies.


def test_a_source_of_another_account_needs_its_own_authorization(server: PageBlobServer, rest: Rest) -> None:
    with Rest(f"{server.url}/other", "other", OTHER["other"]) as other:
        other("PUT", "disks", "restype=container")
        other.create("disks/disk", SIZE)
        other.put("disks/disk", 0, b"o" * PAGE)
    foreign = f"{server.url}/other/disks/disk"
    assert copy(rest, foreign).code == "CannotVerifyCopySource"
    assert copy(rest, f"{foreign}?{blob_sas('other', OTHER['other'], 'disks/disk', 'r')}").status == 202
    assert rest.get("disks/copy", 0, PAGE).body == b"o" * PAGE


def test_conditions_on_the_source_of_a_copy(server: PageBlobServer, rest: Rest) -> None:
    etag = rest("HEAD", "disks/disk").headers["etag"]
    reply = copy(rest, url(server), x_ms_source_if_match='"0x1"')
    assert (reply.status, reply.code) == (412, "SourceConditionNotMet")
    assert copy(rest, url(server), x_ms_source_if_match=etag).status == 202


def test_a_pending_copy_is_aborted(server: PageBlobServer, rest: Rest) -> None:
    server.configure(copies="pending")
    reply = copy(rest, url(server), x_ms_meta_Owner="me")
    copy_id = reply.headers["x-ms-copy-id"]
    assert (reply.status, reply.headers["x-ms-copy-status"]) == (202, "pending")
    assert rest.put("disks/copy", 0, b"x" * PAGE).code == "PendingCopyOperation"
    abort = {"x-ms-copy-action": "abort"}
    assert rest("PUT", "disks/copy", "comp=copy&copyid=other", abort).code == "CopyIdMismatch"
    reply = rest("PUT", "disks/copy", f"comp=copy&copyid={copy_id}", abort)
    assert (reply.status, "content-length" in reply.headers) == (204, False)
    left = rest("HEAD", "disks/copy").headers
    assert (left["x-ms-copy-status"], left["content-length"], left["x-ms-meta-owner"]) == ("aborted", "0", "me")
    reply = rest("PUT", "disks/copy", f"comp=copy&copyid={copy_id}", abort)
    assert (reply.status, reply.code) == (409, "NoPendingCopyOperation")


# Incremental copies.


def test_snapshots_are_copied_one_after_the_other(server: PageBlobServer, rest: Rest) -> None:
    first = snapshot(rest, "disks/disk")
    reply = incremental(rest, url(server, query=f"snapshot={first}"))
    assert (reply.status, reply.headers["x-ms-copy-status"]) == (202, "success")
    rest.put("disks/disk", PAGE, b"b" * PAGE)
    second = snapshot(rest, "disks/disk")
    assert incremental(rest, url(server, query=f"snapshot={second}")).status == 202
    left = rest("HEAD", "disks/backup").headers
    assert left["x-ms-incremental-copy"] == "true"
    copies = server.blob("disks", "backup")["snapshots"]
    assert len(copies) == 2
    assert copies[1] == left["x-ms-copy-destination-snapshot"]
    read = [rest.get("disks/backup", 0, 2 * PAGE, f"snapshot={each}").body for each in copies]
    assert read == [b"a" * 2 * PAGE, b"a" * PAGE + b"b" * PAGE]
    changes = rest("GET", "disks/backup", f"comp=pagelist&snapshot={copies[1]}&prevsnapshot={copies[0]}")
    assert ranges(changes) == [("P", PAGE, 2 * PAGE)]
    assert incremental(rest, url(server, query=f"snapshot={first}")).code == (
        "IncrementalCopyOfEarlierSnapshotNotAllowed"
    )


def test_an_incremental_copy_is_for_nothing_else(server: PageBlobServer, rest: Rest) -> None:
    taken = snapshot(rest, "disks/disk")
    assert incremental(rest, url(server)).code == "IncrementalCopySourceMustBeSnapshot"
    assert incremental(rest, url(server, query=f"snapshot={taken}")).status == 202
    for reply in (
        rest.get("disks/backup", 0, PAGE),
        rest("GET", "disks/backup", "comp=pagelist"),
        rest.put("disks/backup", 0, b"x" * PAGE),
        rest("PUT", "disks/backup", "comp=metadata", {"x-ms-meta-a": "1"}),
    ):
        assert (reply.status, reply.code) == (409, "OperationNotAllowedOnIncrementalCopyBlob")
    rest.create("disks/second", SIZE)
    second = snapshot(rest, "disks/second")
    assert incremental(rest, url(server, "disks/second", f"snapshot={second}")).code == "IncrementalCopyBlobMismatch"
    rest.create("disks/disk", SIZE)
    anew = snapshot(rest, "disks/disk")
    assert incremental(rest, url(server, query=f"snapshot={anew}")).code == "BlobOverwritten"
    assert rest("DELETE", "disks/backup", headers={"x-ms-delete-snapshots": "include"}).status == 202


def test_a_pending_incremental_copy_has_its_snapshot_when_it_ends(server: PageBlobServer, rest: Rest) -> None:
    server.configure(copies="pending")
    taken = snapshot(rest, "disks/disk")
    assert incremental(rest, url(server, query=f"snapshot={taken}")).headers["x-ms-copy-status"] == "pending"
    assert server.blob("disks", "backup")["snapshots"] == []
    server.copy("disks", "backup", "success", SIZE)
    (copied,) = server.blob("disks", "backup")["snapshots"]
    assert rest.get("disks/backup", 0, PAGE, f"snapshot={copied}").body == b"a" * PAGE
