"""Get Page Ranges with a previous snapshot, and crc64: Azurite has neither, so the reference is the measure."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator

import pytest

from blobfuse_dysk.testing import PageBlobServer
from tests.wire.page_lists import ranges, snapshot
from tests.wire.rest import Reply, Rest, md5_of

PAGE = 512
CHUNK = 65536


@pytest.fixture
def rest(shared_server: PageBlobServer, container: str) -> Iterator[Rest]:
    """A connection, and a container with a page blob `disk` of 256 KiB."""
    shared_server.create(container, "disk", 4 * CHUNK)
    with Rest(shared_server.endpoint, shared_server.account, shared_server.key) as found:
        yield found


@pytest.fixture
def path(container: str) -> str:
    return f"{container}/disk"


def ask(rest: Rest, path: str, before: str, *more: str, **headers: str) -> Reply:
    query = "&".join(["comp=pagelist", f"prevsnapshot={before}", *more])
    return rest("GET", path, query, {name.replace("_", "-"): value for name, value in headers.items()})


def test_what_was_written_and_what_was_cleared_since_a_snapshot(rest: Rest, path: str) -> None:
    rest.put(path, 0, b"a" * 4 * PAGE)
    rest.put(path, CHUNK - PAGE, b"b" * 2 * PAGE)
    before = snapshot(rest, path)
    assert ranges(ask(rest, path, before)) == []
    rest.put(path, PAGE, b"c" * PAGE)
    rest.put(path, 4 * PAGE, bytes(PAGE))  # zeros, allocated
    rest.clear(path, 2 * PAGE, 2 * PAGE)
    rest.clear(path, CHUNK - 2 * PAGE, 3 * PAGE)  # the page before was free and is
    rest.put(path, 2 * CHUNK - PAGE, b"d" * 2 * PAGE)
    assert ranges(ask(rest, path, before)) == [
        ("P", PAGE, 2 * PAGE),
        ("C", 2 * PAGE, 4 * PAGE),
        ("P", 4 * PAGE, 5 * PAGE),
        ("C", CHUNK - PAGE, CHUNK + PAGE),
        ("P", 2 * CHUNK - PAGE, 2 * CHUNK + PAGE),
    ]
    some = ask(rest, path, before, x_ms_range=f"bytes={3 * PAGE}-{CHUNK - 1}")
    assert ranges(some) == [("C", 3 * PAGE, 4 * PAGE), ("P", 4 * PAGE, 5 * PAGE), ("C", CHUNK - PAGE, CHUNK)]


def test_changes_come_in_pages_of_an_answer(rest: Rest, path: str) -> None:
    rest.put(path, 0, b"a" * 20 * PAGE)
    before = snapshot(rest, path)
    for page in range(0, 20, 2):
        rest.put(path, page * PAGE, b"b" * PAGE)
        rest.clear(path, (page + 1) * PAGE, PAGE)
    found: list[tuple[str, int, int]] = []
    marker, answers = "", 0
    while True:
        reply = ask(rest, path, before, "maxresults=3", f"marker={marker}")
        found += ranges(reply)
        answers += 1
        marker = reply.xml.findtext("NextMarker", "")
        if not marker:
            break
    assert found == ranges(ask(rest, path, before))
    assert (len(found), answers) == (20, 7)


def test_between_two_snapshots(rest: Rest, path: str) -> None:
    first = snapshot(rest, path)
    rest.put(path, 0, b"a" * PAGE)
    second = snapshot(rest, path)
    rest.put(path, PAGE, b"b" * PAGE)
    assert ranges(ask(rest, path, first, f"snapshot={second}")) == [("P", 0, PAGE)]
    assert ranges(ask(rest, path, second)) == [("P", PAGE, 2 * PAGE)]
    assert ranges(ask(rest, path, first)) == [("P", 0, 2 * PAGE)]
    reply = ask(rest, path, second, f"snapshot={first}")
    assert (reply.status, reply.code) == (400, "PreviousSnapshotCannotBeNewer")
    reply = ask(rest, path, "2026-01-01T00:00:00.0000000Z")
    assert (reply.status, reply.code) == (409, "PreviousSnapshotNotFound")


@pytest.mark.parametrize("how", ["Put Blob", "Copy Blob"])
def test_a_blob_that_was_made_anew_has_no_list_of_changes(rest: Rest, path: str, how: str) -> None:
    before = snapshot(rest, path)
    if how == "Put Blob":
        assert rest.create(path, 4 * CHUNK).status == 201
    else:
        source = f"http://127.0.0.1/{rest.account}/{path}?snapshot={before}"
        assert rest("PUT", path, headers={"x-ms-copy-source": source}).status == 202
    reply = ask(rest, path, before)
    assert (reply.status, reply.code) == (409, "BlobOverwritten")
    after = snapshot(rest, path)
    assert ask(rest, path, before, f"snapshot={after}").code == "BlobOverwritten"
    assert ranges(ask(rest, path, after)) == []


def test_changes_of_a_blob_that_became_smaller_or_larger(rest: Rest, path: str) -> None:
    """What was cut off is not there any more; what comes in its place was cleared."""
    rest.put(path, 0, b"a" * PAGE)
    rest.put(path, 3 * CHUNK, b"b" * 2 * PAGE)
    before = snapshot(rest, path)
    smaller = {"x-ms-blob-content-length": str(3 * CHUNK + PAGE)}
    assert rest("PUT", path, "comp=properties", smaller).status == 200
    reply = ask(rest, path, before)
    assert (ranges(reply), reply.headers["x-ms-blob-content-length"]) == ([], str(3 * CHUNK + PAGE))
    assert rest("PUT", path, "comp=properties", {"x-ms-blob-content-length": str(8 * CHUNK)}).status == 200
    rest.put(path, 7 * CHUNK, b"c" * PAGE)
    assert ranges(ask(rest, path, before)) == [
        ("C", 3 * CHUNK + PAGE, 3 * CHUNK + 2 * PAGE),
        ("P", 7 * CHUNK, 7 * CHUNK + PAGE),
    ]


def test_changes_applied_to_a_copy_of_the_snapshot_make_the_blob(rest: Rest, path: str) -> None:
    """What a backup does, with a hundred random writes between."""
    drawn = random.Random(1)

    def scribble() -> None:
        for _ in range(100):
            at, length = drawn.randrange(4 * CHUNK // PAGE - 8) * PAGE, drawn.randrange(1, 9) * PAGE
            if drawn.random() < 0.4:
                rest.clear(path, at, length)
            else:
                rest.put(path, at, drawn.randbytes(length))

    scribble()
    before = snapshot(rest, path)
    copy = bytearray(rest.get(path, 0, 4 * CHUNK).body)
    scribble()
    for kind, start, end in ranges(ask(rest, path, before)):
        copy[start:end] = rest.get(path, start, end - start).body if kind == "P" else bytes(end - start)
    assert bytes(copy) == rest.get(path, 0, 4 * CHUNK).body


# Check value of CRC-64/NVME in https://reveng.sourceforge.io/crc-catalogue/all.htm: of the nine digits 1 to 9.
CRC_OF_DIGITS = base64.b64encode(0xAE8B14860A799888.to_bytes(8, "little")).decode()


def crc64_bit_by_bit(data: bytes) -> str:
    value = (1 << 64) - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x9A6C9329AC4BC9B5 if value & 1 else 0)
    return base64.b64encode((value ^ (1 << 64) - 1).to_bytes(8, "little")).decode()


def test_crc64_of_what_is_written_is_checked(rest: Rest, path: str) -> None:
    data = random.Random(2).randbytes(PAGE)
    right = crc64_bit_by_bit(data)
    reply = rest.put(path, 0, data, x_ms_content_crc64=right)
    assert (reply.status, reply.headers["x-ms-content-crc64"]) == (201, right)
    reply = rest.put(path, 0, bytes(PAGE), x_ms_content_crc64=right)
    assert (reply.status, reply.code) == (400, "Crc64Mismatch")
    assert rest.put(path, 0, data, x_ms_content_crc64=right, Content_MD5=md5_of(data)).status == 400
    assert rest.put(path, 0, data, x_ms_content_crc64="AAAA").code == "InvalidHeaderValue"
    assert rest.get(path, 0, PAGE).body == data


@pytest.mark.parametrize("length", [1, 9, 512, 1000])
def test_crc64_of_what_is_read(rest: Rest, path: str, length: int) -> None:
    data = (b"123456789" + random.Random(3).randbytes(2 * PAGE))[: 2 * PAGE]
    rest.put(path, 0, data)
    reply = rest.get(path, 0, length, x_ms_range_get_content_crc64="true")
    assert (reply.status, reply.body) == (206, data[:length])
    assert reply.headers["x-ms-content-crc64"] == crc64_bit_by_bit(data[:length])
    if length == 9:
        assert reply.headers["x-ms-content-crc64"] == CRC_OF_DIGITS
    both = rest.get(path, 0, length, x_ms_range_get_content_crc64="true", x_ms_range_get_content_md5="true")
    assert both.status == 400
